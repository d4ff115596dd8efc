//! The shapes in which users and tokens are shown (contract §3).

use serde::Serialize;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::services::{
    model::{LoginEvent, MfaMethod, Role, Session, SessionId, User},
    pages::Shown,
    second_factor::Challenge,
    session::SignedIn,
    verify_otp::identifier_of,
};

/// `data` of every sign-in.
#[derive(Serialize)]
pub struct LoginData<'a> {
    access: &'a str,
    refresh: &'a str,
    expires_in: u64,
    token_type: &'static str,
    user_id: String,
    role: Role,
    identifying_info: String,
    is_verified: bool,
    user: UserView<'a>,
}

impl<'a> LoginData<'a> {
    /// Of somebody who has just signed in.
    pub fn new(signed_in: &'a SignedIn) -> Self {
        let SignedIn { user, tokens, .. } = signed_in;
        Self {
            access: &tokens.access,
            refresh: &tokens.refresh,
            expires_in: tokens.expires_in,
            token_type: "Bearer",
            user_id: user.id.to_string(),
            role: user.role,
            identifying_info: identifier_of(user).map(|it| it.as_str().to_owned()).unwrap_or_default(),
            is_verified: user.is_verified,
            user: UserView::new(user),
        }
    }
}

/// `data` of a sign-in that waits for its second factor.
#[derive(Serialize)]
pub struct MfaStep<'a> {
    mfa_required: bool,
    mfa_token: &'a str,
    methods: [MfaMethod; 2],
    expires_in: u64,
}

impl<'a> MfaStep<'a> {
    /// Of what it is gone on with.
    pub fn new(challenge: &'a Challenge) -> Self {
        Self {
            mfa_required: true,
            mfa_token: &challenge.token,
            methods: [MfaMethod::Totp, MfaMethod::RecoveryCode],
            expires_in: challenge.expires_in.as_secs(),
        }
    }
}

/// A user as sign-ins show it.
#[derive(Serialize)]
pub struct UserView<'a> {
    id: String,
    user_id: String,
    email: Option<&'a str>,
    phone: Option<&'a str>,
    first_name: &'a str,
    last_name: &'a str,
    role: Role,
    auth_provider: &'static str,
    is_verified: bool,
    is_staff: bool,
    avatar: &'a str,
    pid: &'a str,
    date_joined: String,
    last_login: Option<String>,
}

impl<'a> UserView<'a> {
    /// Of a user.
    pub fn new(user: &'a User) -> Self {
        Self {
            id: user.id.to_string(),
            user_id: user.id.to_string(),
            email: user.email.as_deref(),
            phone: user.phone.as_deref(),
            first_name: &user.first_name,
            last_name: &user.last_name,
            role: user.role,
            auth_provider: user.auth_provider.word(),
            is_verified: user.is_verified,
            is_staff: user.role.is_staff(),
            avatar: &user.avatar,
            pid: &user.pid,
            date_joined: rfc3339(user.created_at),
            last_login: user.last_login_at.map(rfc3339),
        }
    }
}

/// A user as they see themselves.
#[derive(Serialize)]
pub struct ProfileView<'a> {
    #[serde(flatten)]
    user: UserView<'a>,
    bio: &'a str,
    country: &'a str,
    state: &'a str,
    city: &'a str,
    address: &'a str,
}

impl<'a> ProfileView<'a> {
    /// Of a user.
    pub fn new(user: &'a User) -> Self {
        Self {
            user: UserView::new(user),
            bio: &user.bio,
            country: &user.country,
            state: &user.state,
            city: &user.city,
            address: &user.address,
        }
    }
}

/// A list (contract §1).
#[derive(Serialize)]
pub struct ListView<V> {
    count: i64,
    results: Vec<V>,
    next: Option<String>,
}

impl<V> ListView<V> {
    /// Of a part of a list.
    pub fn new<'a, T>(shown: &'a Shown<T>, view: impl Fn(&'a T) -> V) -> Self {
        let Shown { count, results, next } = shown;
        Self { count: *count, results: results.iter().map(view).collect(), next: next.clone() }
    }
}

/// A session as its user sees it.
#[derive(Serialize)]
pub struct SessionView<'a> {
    id: String,
    device: &'a str,
    browser: &'a str,
    os: &'a str,
    ip: &'a str,
    country: &'a str,
    city: &'a str,
    created_at: String,
    last_used_at: String,
    expires_at: String,
    is_current: bool,
}

impl<'a> SessionView<'a> {
    /// Of a session; `current` is the one that asks.
    pub fn new(session: &'a Session, current: SessionId) -> Self {
        Self {
            id: session.id.to_string(),
            device: &session.device,
            browser: &session.browser,
            os: &session.os,
            ip: &session.ip,
            country: &session.place.country,
            city: &session.place.city,
            created_at: rfc3339(session.created_at),
            last_used_at: rfc3339(session.last_used_at),
            expires_at: rfc3339(session.expires_at),
            is_current: session.id == current,
        }
    }
}

/// A sign-in, or a try at one, as its user sees it.
#[derive(Serialize)]
pub struct LoginEventView<'a> {
    id: String,
    at: String,
    action: &'a str,
    outcome: &'static str,
    reason: &'a str,
    session_id: Option<String>,
    device: &'a str,
    browser: &'a str,
    os: &'a str,
    ip: &'a str,
    country: &'a str,
    city: &'a str,
}

impl<'a> LoginEventView<'a> {
    /// Of an event.
    pub fn new(event: &'a LoginEvent) -> Self {
        Self {
            id: event.id.to_string(),
            at: rfc3339(event.at),
            action: &event.action,
            outcome: event.outcome.word(),
            reason: &event.reason,
            session_id: event.session_id.map(|id| id.to_string()),
            device: &event.device,
            browser: &event.browser,
            os: &event.os,
            ip: &event.ip,
            country: &event.place.country,
            city: &event.place.city,
        }
    }
}

/// RFC 3339, UTC, with `Z` (contract §1).
pub fn rfc3339(at: OffsetDateTime) -> String {
    at.to_offset(UtcOffset::UTC).format(&Rfc3339).unwrap_or_default()
}
