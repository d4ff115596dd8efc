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
    /// Codes to one recipient in a day.
    pub daily_sends: i64,
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
