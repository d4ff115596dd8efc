//! The things services speak of: users, sessions, outbox entries and audit events.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    )+};
}

id! {
    /// A user's id (UUIDv7), `user_id` in the contract.
    UserId,
    /// A session's id (UUIDv7), `sid` in the tokens.
    SessionId,
    /// One attempt to register; what a verification challenge points to.
    RegistrationId,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {$(
            $(#[$variant_doc])*
            #[serde(rename = $word)]
            $variant
        ),+}

        impl $name {
            /// The word that stands for it in the database, the contract and the logs.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    other => Err(UnknownWord { kind: stringify!($name), word: other.to_owned() }),
                }
            }
        }
    };
}

/// A word that names none of an enumeration's values.
#[derive(Debug, thiserror::Error)]
#[error("`{word}` is no {kind}")]
pub struct UnknownWord {
    /// The enumeration.
    pub kind: &'static str,
    /// What was found instead.
    pub word: String,
}

words! {
    /// What a user may do.
    Role {
        /// Buys.
        Client = "client",
        /// Sells.
        Vendor = "vendor",
        /// Works for the operator.
        Staff = "staff",
        /// Runs the installation.
        Admin = "admin",
    }
}

impl Role {
    /// `is_staff` as Django understands it.
    pub const fn is_staff(self) -> bool {
        matches!(self, Self::Staff | Self::Admin)
    }
}

words! {
    /// How the account was made.
    AuthProvider {
        /// With an e-mail address and a password.
        Email = "email",
        /// With a phone number and a password.
        Phone = "phone",
        /// With a Google account.
        Google = "google",
    }
}

/// A user, with personal data in clear; a store keeps e-mail and phone encrypted.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// UUIDv7.
    pub id: UserId,
    /// The address as it was typed, its domain in ASCII.
    pub email: Option<String>,
    /// E.164.
    pub phone: Option<String>,
    /// PHC string; `None` when no password can sign this user in.
    pub password_hash: Option<String>,
    /// What the user may do.
    pub role: Role,
    /// How the account was made.
    pub auth_provider: AuthProvider,
    /// Whether a code proved the address or number.
    pub is_verified: bool,
    /// Whether an operator lets the user in.
    pub is_active: bool,
    /// Two people with different passwords tried to register this unverified identifier.
    pub is_contested: bool,
    /// Given name, `""` when unknown.
    pub first_name: String,
    /// Family name, `""` when unknown.
    pub last_name: String,
    /// Free text.
    pub bio: String,
    /// Address of a picture.
    pub avatar: String,
    /// Free text.
    pub country: String,
    /// Free text.
    pub state: String,
    /// Free text.
    pub city: String,
    /// Postal address.
    pub address: String,
    /// Public id: ten lower-case letters, unique.
    pub pid: String,
    /// When the row was made.
    pub created_at: OffsetDateTime,
    /// When the row last changed.
    pub updated_at: OffsetDateTime,
    /// When the user last signed in.
    pub last_login_at: Option<OffsetDateTime>,
    /// When the password was last reset or changed; reset links and known devices of before are void.
    pub password_changed_at: Option<OffsetDateTime>,
    /// Set while the user has a second factor: when it last changed, recovery codes included.
    pub second_factor_at: Option<OffsetDateTime>,
    /// Soft delete: when; such a user is unknown to every route.
    pub deleted_at: Option<OffsetDateTime>,
}

impl User {
    /// A new client without identifier, password or profile, active and not verified.
    pub const fn new(id: UserId, pid: String, at: OffsetDateTime) -> Self {
        Self {
            id,
            email: None,
            phone: None,
            password_hash: None,
            role: Role::Client,
            auth_provider: AuthProvider::Email,
            is_verified: false,
            is_active: true,
            is_contested: false,
            first_name: String::new(),
            last_name: String::new(),
            bio: String::new(),
            avatar: String::new(),
            country: String::new(),
            state: String::new(),
            city: String::new(),
            address: String::new(),
            pid,
            created_at: at,
            updated_at: at,
            last_login_at: None,
            password_changed_at: None,
            second_factor_at: None,
            deleted_at: None,
        }
    }
}

impl fmt::Debug for User {
    // Personal data and hashes stay out of logs and panics.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("User").field("id", &self.id).field("role", &self.role).finish_non_exhaustive()
    }
}

/// What verifying a code makes of an unverified user.
#[derive(Clone, PartialEq, Eq)]
pub struct Confirmation {
    /// The password of the registration that was proven; `None` removes any.
    pub password_hash: Option<String>,
    /// The role that this registration asked for.
    pub role: Role,
    /// How the account is proven.
    pub auth_provider: AuthProvider,
    /// The given name of this registration.
    pub first_name: String,
    /// The family name of this registration.
    pub last_name: String,
}

impl Confirmation {
    /// The user as it is afterwards.
    pub fn apply(&self, user: User) -> User {
        let Self { password_hash, role, auth_provider, first_name, last_name } = self.clone();
        User {
            password_hash,
            role,
            auth_provider,
            first_name,
            last_name,
            is_verified: true,
            is_contested: false,
            ..user
        }
    }
}

/// New values of profile fields; `None` leaves a field as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProfileChanges {
    /// Given name.
    pub first_name: Option<String>,
    /// Family name.
    pub last_name: Option<String>,
    /// Free text.
    pub bio: Option<String>,
    /// Address of a picture.
    pub avatar: Option<String>,
    /// Free text.
    pub country: Option<String>,
    /// Free text.
    pub state: Option<String>,
    /// Free text.
    pub city: Option<String>,
    /// Postal address.
    pub address: Option<String>,
}

words! {
    /// With what a second factor is shown (contract §3); audit events are named by it.
    MfaMethod {
        /// An authenticator's code.
        Totp = "totp",
        /// One of the codes for who has lost it.
        RecoveryCode = "recovery_code",
    }
}

words! {
    /// Why a session ended.
    EndReason {
        /// The user signed out of it.
        Logout = "logout",
        /// The user signed out everywhere.
        LogoutAll = "logout_all",
        /// A spent refresh token was shown again.
        TokenReused = "token_reused",
        /// The user ended it from another session.
        Revoked = "revoked",
        /// The password was changed in another session.
        PasswordChanged = "password_changed",
        /// The password was reset.
        PasswordReset = "password_reset",
        /// The second factor was set up, changed or removed.
        SecondFactorChanged = "second_factor_changed",
        /// A newer sign-in took its place (`sessions.max_per_user`).
        Displaced = "displaced",
    }
}

/// One sign-in on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// UUIDv7, the `sid` claim.
    pub id: SessionId,
    /// Whose it is.
    pub user_id: UserId,
    /// How often its refresh token was rotated; every token id derives from it.
    pub generation: i64,
    /// When the present generation began: the `iat` of its tokens.
    pub rotated_at: OffsetDateTime,
    /// When its refresh token runs out.
    pub expires_at: OffsetDateTime,
    /// When it was opened.
    pub created_at: OffsetDateTime,
    /// When it was last used; noted once a minute at most.
    pub last_used_at: OffsetDateTime,
    /// When it was ended.
    pub ended_at: Option<OffsetDateTime>,
    /// Why it was ended.
    pub end_reason: Option<EndReason>,
    /// Client address at sign-in.
    pub ip: String,
    /// What the client called itself, shortened.
    pub user_agent: String,
    /// The browser's name, or `""`.
    pub browser: String,
    /// The operating system's name, or `""`.
    pub os: String,
    /// `desktop`, `mobile`, `tablet`, … or `""`.
    pub device: String,
    /// Where the client's address is, as far as known.
    pub place: Place,
}

/// Where an address is, in English; `""` where it is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The country's name.
    pub country: String,
    /// The city's name.
    pub city: String,
}

/// A part of a list, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// At most so many.
    pub limit: i64,
    /// Only what comes after this time and id.
    pub after: Option<(OffsetDateTime, Uuid)>,
}

/// A part of a list, and how long the whole is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// Of the whole list.
    pub count: i64,
    /// One more than asked for where the list goes on.
    pub items: Vec<T>,
}

/// A sign-in, or a try at one, as its user is shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginEvent {
    /// UUIDv7.
    pub id: Uuid,
    /// When.
    pub at: OffsetDateTime,
    /// Which way in.
    pub action: String,
    /// Whether it worked.
    pub outcome: Outcome,
    /// Why it did not, or `""`.
    pub reason: String,
    /// The session that it opened.
    pub session_id: Option<SessionId>,
    /// From where.
    pub ip: String,
    /// The browser's name, or `""`.
    pub browser: String,
    /// The operating system's name, or `""`.
    pub os: String,
    /// `desktop`, `mobile`, `tablet`, … or `""`.
    pub device: String,
    /// Where the address is.
    pub place: Place,
}

words! {
    /// Which way an outbox entry leaves.
    Channel {
        /// By the mailer.
        Mail = "mail",
        /// By the text-message sender.
        Sms = "sms",
        /// Not at all yet: kept for subscribers.
        Event = "event",
    }
}

words! {
    /// Where an outbox entry stands.
    OutboxState {
        /// To be sent, now or at `available_at`.
        Pending = "pending",
        /// Sent; its payload is erased.
        Sent = "sent",
        /// Given up after the last attempt.
        Dead = "dead",
        /// An event, waiting for subscribers until its retention ends.
        Published = "published",
    }
}

/// A row of the outbox, written in the unit of work that needs it sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEntry {
    /// UUIDv7; the idempotency key of whatever is sent.
    pub id: Uuid,
    /// Which way it leaves.
    pub channel: Channel,
    /// The letter's template or the event's name.
    pub kind: String,
    /// Sealed by [`Keys::seal_payload`](super::keys::Keys::seal_payload).
    pub payload: Vec<u8>,
    /// Where it stands.
    pub state: OutboxState,
    /// How often sending was begun.
    pub attempts: i32,
    /// When it was written.
    pub created_at: OffsetDateTime,
    /// Not to be sent before.
    pub available_at: OffsetDateTime,
    /// Not to be sent after: a code that has run out helps nobody.
    pub expires_at: Option<OffsetDateTime>,
    /// What went wrong last, without addresses.
    pub last_error: String,
}

/// What became of a claimed outbox entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// It was sent.
    Sent,
    /// It is to be tried again.
    Retry {
        /// Not before.
        at: OffsetDateTime,
        /// Why.
        error: String,
    },
    /// It is given up.
    Dead {
        /// Why.
        error: String,
    },
}

words! {
    /// Whether what was tried was done.
    Outcome {
        /// Done.
        Success = "success",
        /// Refused.
        Failure = "failure",
    }
}

/// Who did what, from where, and whether it worked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// UUIDv7.
    pub id: Uuid,
    /// When.
    pub at: OffsetDateTime,
    /// What, e.g. `login`, `register`.
    pub action: &'static str,
    /// Whether it worked.
    pub outcome: Outcome,
    /// A stable word that says why it failed, or `""`.
    pub reason: &'static str,
    /// Who, when known.
    pub user_id: Option<UserId>,
    /// In which session, when there is one.
    pub session_id: Option<SessionId>,
    /// Keyed digest of the identifier that was tried; joins attempts at unknown accounts.
    pub identifier_index: Option<Vec<u8>>,
    /// From where and with what.
    pub caller: Caller,
    /// Where the caller's address is.
    pub place: Place,
}

/// Who is asking, as far as the transport can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The client's address, behind trusted proxies.
    pub ip: IpAddr,
    /// The request's id, echoed in the answer.
    pub request_id: String,
    /// `sync` or `async`.
    pub engine: &'static str,
    /// What the client called itself: cleaned of control characters, at most 400 bytes.
    pub user_agent: String,
    /// The token of a device that has signed in before, as it was sent.
    pub device_token: Option<String>,
}

/// What a user agent string says of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    /// The browser's name, or `""`.
    pub browser: String,
    /// The operating system's name, or `""`.
    pub os: String,
    /// `desktop`, `mobile`, …, or `""`.
    pub device: String,
}

impl Caller {
    /// Reads browser, operating system and kind of device from the user agent.
    pub fn client(&self) -> Client {
        let known = |word: &str| if word == "UNKNOWN" { String::new() } else { word.to_owned() };
        woothee::parser::Parser::new().parse(&self.user_agent).map_or_else(Client::default, |found| Client {
            browser: known(found.name),
            os: known(found.os),
            device: match found.category {
                "pc" => "desktop".to_owned(),
                "smartphone" | "mobilephone" => "mobile".to_owned(),
                other => known(other),
            },
        })
    }
}
