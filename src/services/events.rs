//! What happened, for later subscribers: written to the outbox in the unit of work that did it.

use serde::{Deserialize, Serialize};

use super::{
    letters::FactorChange,
    model::{EndReason, SessionId, UserId},
};

/// A domain event. It names users and sessions by id; personal data stays in the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Event {
    /// An account was made; it is not verified yet unless an operator made it.
    UserRegistered {
        /// Whose.
        user_id: UserId,
    },
    /// An identifier that has an account, verified or not, was registered again.
    RegistrationRepeated {
        /// Whose.
        user_id: UserId,
    },
    /// A code or notice was asked for and not sent: too soon, or nobody waits for one.
    CodeWithheld {
        /// Whose; an id of nobody when there is no account.
        user_id: UserId,
    },
    /// A code proved the address or number.
    UserVerified {
        /// Whose.
        user_id: UserId,
    },
    /// Somebody signed in.
    SessionStarted {
        /// Who.
        user_id: UserId,
        /// The new session.
        session_id: SessionId,
    },
    /// A session ended before its time.
    SessionEnded {
        /// Whose.
        user_id: UserId,
        /// Which.
        session_id: SessionId,
        /// Why.
        reason: EndReason,
    },
    /// The password was changed or reset.
    PasswordChanged {
        /// Whose.
        user_id: UserId,
    },
    /// The second factor was set up, changed or removed.
    SecondFactorChanged {
        /// Whose.
        user_id: UserId,
        /// How.
        change: FactorChange,
    },
    /// A Google account was linked with an account that was there.
    IdentityLinked {
        /// Whose.
        user_id: UserId,
    },
    /// Profile fields changed.
    ProfileChanged {
        /// Whose.
        user_id: UserId,
    },
}

impl Event {
    /// The name that subscribers know it by.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::UserRegistered { .. } => "UserRegistered",
            Self::RegistrationRepeated { .. } => "RegistrationRepeated",
            Self::CodeWithheld { .. } => "CodeWithheld",
            Self::UserVerified { .. } => "UserVerified",
            Self::SessionStarted { .. } => "SessionStarted",
            Self::SessionEnded { .. } => "SessionEnded",
            Self::PasswordChanged { .. } => "PasswordChanged",
            Self::SecondFactorChanged { .. } => "SecondFactorChanged",
            Self::IdentityLinked { .. } => "IdentityLinked",
            Self::ProfileChanged { .. } => "ProfileChanged",
        }
    }
}
