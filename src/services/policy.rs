//! The operator's decisions, as services need them.

use std::time::Duration;

use super::limits::Rate;

/// Everything in the configuration that changes what a service answers.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Where links in mail lead to, without a trailing slash.
    pub public_url: String,
    /// Access tokens, refresh tokens and their rotation.
    pub tokens: TokenPolicy,
    /// One-time codes.
    pub otp: OtpPolicy,
    /// What a new password must be.
    pub passwords: PasswordPolicy,
    /// When an identifier is locked.
    pub lockout: LockoutPolicy,
    /// How often a client may ask.
    pub limits: LimitPolicy,
    /// When an address that tries many accounts is slowed.
    pub stuffing: StuffingPolicy,
    /// How long sessions live, and how many.
    pub sessions: SessionPolicy,
    /// Where the links in mail lead to.
    pub links: LinkPolicy,
    /// Who may sign in with Google.
    pub google: GooglePolicy,
    /// Second factors.
    pub mfa: MfaPolicy,
    /// How long a device that has signed in stays known.
    pub device_ttl: Duration,
    /// Say openly that an identifier is taken (contract §4, `registration.reveal_existing`).
    pub reveal_existing: bool,
    /// ISO 3166 country whose numbers may be written without a country code.
    pub default_region: String,
    /// Outbox entries.
    pub outbox: OutboxPolicy,
    /// How long audit events are kept.
    pub audit_retention: Duration,
}

/// Contract §3.
#[derive(Debug, Clone)]
pub struct TokenPolicy {
    /// Life of an access token.
    pub access_ttl: Duration,
    /// Life of a refresh token.
    pub refresh_ttl: Duration,
    /// How long a spent refresh token still yields the same child.
    pub reuse_grace: Duration,
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
}

/// Contract §4.
#[derive(Debug, Clone)]
pub struct OtpPolicy {
    /// Life of a code; at most ten minutes (ASVS 6.5.5).
    pub ttl: Duration,
    /// Guesses at one code.
    pub guesses: i64,
    /// Guesses at one account in an hour, across codes.
    pub account_guesses: i64,
    /// Least time between two codes to one recipient.
    pub resend_interval: Duration,
    /// Codes, links and notices to one recipient in a day, over all purposes.
    pub daily_sends: i64,
    /// Life of a reset link.
    pub link_ttl: Duration,
}

/// Contract §4.
#[derive(Debug, Clone)]
pub struct PasswordPolicy {
    /// Least length in characters.
    pub min_length: usize,
    /// Greatest length in characters.
    pub max_length: usize,
    /// Least zxcvbn score, 0 to 4.
    pub min_score: u8,
    /// Whether a service is asked for breached passwords, and what its silence means.
    pub breaches: Breaches,
}

/// What the look-up of breached passwords decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaches {
    /// Nobody is asked.
    Off,
    /// Without an answer the password is accepted.
    FailOpen,
    /// Without an answer the request is refused (503).
    FailClosed,
}

/// Sign-in with Google.
#[derive(Debug, Clone)]
pub struct GooglePolicy {
    /// Whom ID tokens must be made for (`aud`); without any, nobody signs in with Google.
    pub client_ids: Vec<String>,
    /// Which Google accounts may be linked with an account that has their address.
    pub linking: Linking,
    /// Refuse tokens that are not bound to a nonce.
    pub require_nonce: bool,
}

/// Which Google accounts may be linked with a verified account that has their address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linking {
    /// Those of addresses that Google itself runs: Gmail, and the domain of a Workspace.
    Authoritative,
    /// All whose address was proven to Google at some time.
    Verified,
}

/// Where the links in mail lead to, below `public_url`.
#[derive(Debug, Clone)]
pub struct LinkPolicy {
    /// The page to sign in.
    pub sign_in: String,
    /// The page to ask for a new password.
    pub password_forgotten: String,
    /// The page to set a new password, with `{uidb64}` and `{token}`.
    pub password_reset: String,
}

/// How long sessions live (ASVS 7.3), and how many a user may have.
#[derive(Debug, Clone, Copy)]
pub struct SessionPolicy {
    /// An unused session ends after this time; `None` is no limit but the refresh token's.
    pub idle: Option<Duration>,
    /// Every session ends after this time; `None` is no limit.
    pub absolute: Option<Duration>,
    /// Sessions of one user; beyond it the least used ones end.
    pub most: Option<usize>,
}

/// Credential stuffing: one address, many identifiers, wrong passwords.
#[derive(Debug, Clone, Copy)]
pub struct StuffingPolicy {
    /// Distinct identifiers that failed from one address, at which it is slowed.
    pub identifiers: i64,
    /// Counted within this time.
    pub window: Duration,
    /// How long it is slowed.
    pub duration: Duration,
    /// How often it may try then.
    pub rate: Option<Rate>,
}

/// Second factors (contract §3).
#[derive(Debug, Clone)]
pub struct MfaPolicy {
    /// How long a sign-in waits for its second factor.
    pub ttl: Duration,
    /// What an authenticator calls the service; without a colon.
    pub issuer: String,
    /// Wrong guesses at a user's second factor within a day.
    pub daily_guesses: i64,
}

/// Contract §4.
#[derive(Debug, Clone)]
pub struct LockoutPolicy {
    /// Failures that lock an identifier.
    pub failures: i64,
    /// How long failures are remembered, and a lock lasts.
    pub duration: Duration,
}

/// Contract §4; `None` is off.
#[derive(Debug, Clone, Default)]
pub struct LimitPolicy {
    /// Per client address, on routes that take a credential or a code.
    pub burst: Option<Rate>,
    /// Per user, else per address, on those and on refresh and logout.
    pub sustained: Option<Rate>,
    /// Per user on the other authenticated routes.
    pub general: Option<Rate>,
    /// Per client address on token verification.
    pub token_verify: Option<Rate>,
}

/// How letters are sent and events are kept.
#[derive(Debug, Clone)]
pub struct OutboxPolicy {
    /// How often a pump looks for work when nobody wakes it.
    pub poll: Duration,
    /// How long a claimed letter belongs to its pump.
    pub lease: Duration,
    /// Attempts before a letter is dead.
    pub attempts: i32,
    /// Wait before the second attempt; doubles each time.
    pub backoff: Duration,
    /// Greatest wait.
    pub backoff_max: Duration,
    /// How long sent letters' rows and events are kept.
    pub retention: Duration,
}
