//! Audit events: who did what, from where, and whether it worked.

use super::{
    identifier::Identifier,
    model::{AuditEvent, Caller, Outcome, SessionId, UserId},
    ports::Ports,
};

/// Begins an event of `action`; it is a success of nobody until more is said.
pub fn event<P: Ports>(ports: &P, action: &'static str, caller: &Caller) -> AuditEvent {
    AuditEvent {
        id: ports.new_id(),
        at: ports.now(),
        action,
        outcome: Outcome::Success,
        reason: "",
        user_id: None,
        session_id: None,
        identifier_index: None,
        caller: caller.clone(),
        place: ports.place(caller.ip),
    }
}

impl AuditEvent {
    /// Who did it, or whom it was tried on.
    pub fn of_user(self, user: UserId) -> Self {
        Self { user_id: Some(user), ..self }
    }

    /// In which session.
    pub fn in_session(self, session: SessionId) -> Self {
        Self { session_id: Some(session), ..self }
    }

    /// The identifier that was tried, as its keyed digest only.
    pub fn with_identifier<P: Ports>(self, ports: &P, identifier: &Identifier) -> Self {
        Self { identifier_index: Some(ports.keys().blind_index(identifier).to_vec()), ..self }
    }

    /// It was refused, and why: one stable word.
    pub fn refused(self, reason: &'static str) -> Self {
        Self { outcome: Outcome::Failure, reason, ..self }
    }
}
