//! The one table of routes. Both engines look a request up here and must answer every operation.

use crate::services::{authenticate::Look, limits::Class, problem::Problem};

/// The version of the API, which is the engine that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The sync engine.
    V1,
    /// The async engine.
    V2,
}

impl Version {
    /// As it stands in paths.
    pub const fn word(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// As logs and audit events name the engine.
    pub const fn engine(self) -> &'static str {
        match self {
            Self::V1 => "sync",
            Self::V2 => "async",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::V1 => Self::V2,
            Self::V2 => Self::V1,
        }
    }
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Sign-up.
    Register,
    /// Proof of an address or number.
    VerifyOtp,
    /// Another code.
    ResendOtp,
    /// Sign-in.
    Login,
    /// Sign-in with a Google account.
    Google,
    /// The second step of a sign-in.
    VerifyMfa,
    /// The signed-in user's second factor.
    Mfa,
    /// A secret for an authenticator.
    BeginTotp,
    /// The first code of an authenticator.
    ConfirmTotp,
    /// New recovery codes.
    ReplaceRecoveryCodes,
    /// The end of a second factor.
    DisableMfa,
    /// The next pair of tokens.
    RefreshToken,
    /// Whether a token is good.
    VerifyToken,
    /// Sign-out.
    Logout,
    /// The signed-in user.
    Me,
    /// Changes to the signed-in user.
    UpdateMe,
    /// Asking for a new password.
    RequestReset,
    /// A new password, with a link or a code.
    ConfirmReset,
    /// A new password, with what a link's path says.
    ConfirmResetByLink,
    /// A new password, with a code that went to a phone.
    ConfirmResetByPhone,
    /// Another password for the signed-in user.
    ChangePassword,
    /// The signed-in user's sessions.
    Sessions,
    /// The end of one of them.
    RevokeSession,
    /// The end of all but this one.
    RevokeOtherSessions,
    /// The signed-in user's sign-ins.
    LoginEvents,
    /// The keys that tokens are verified with.
    JsonWebKeys,
    /// The OpenAPI document.
    OpenApi,
    /// The page of Swagger UI.
    Docs,
    /// A file that the page loads.
    DocsFile,
    /// The process runs.
    Live,
    /// The process can serve.
    Ready,
}

impl Operation {
    /// As logs name it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::VerifyOtp => "verify_otp",
            Self::ResendOtp => "resend_otp",
            Self::Login => "login",
            Self::Google => "google",
            Self::VerifyMfa => "mfa_verify",
            Self::Mfa => "mfa",
            Self::BeginTotp => "totp_begin",
            Self::ConfirmTotp => "totp_confirm",
            Self::ReplaceRecoveryCodes => "recovery_codes_replace",
            Self::DisableMfa => "mfa_disable",
            Self::RefreshToken => "token_refresh",
            Self::VerifyToken => "token_verify",
            Self::Logout => "logout",
            Self::Me => "me",
            Self::UpdateMe => "profile_update",
            Self::RequestReset => "password_reset_request",
            Self::ConfirmReset | Self::ConfirmResetByLink | Self::ConfirmResetByPhone => "password_reset",
            Self::ChangePassword => "password_change",
            Self::Sessions => "sessions",
            Self::RevokeSession => "session_revoke",
            Self::RevokeOtherSessions => "sessions_revoke_others",
            Self::LoginEvents => "login_events",
            Self::JsonWebKeys => "jwks",
            Self::OpenApi => "openapi",
            Self::Docs => "docs",
            Self::DocsFile => "docs_file",
            Self::Live => "live",
            Self::Ready => "ready",
        }
    }

    /// Which limits it is under (contract §4).
    pub const fn class(self) -> Class {
        match self {
            Self::Register | Self::VerifyOtp | Self::ResendOtp | Self::Login | Self::Google => Class::Credential,
            Self::RequestReset | Self::ConfirmReset | Self::ConfirmResetByLink | Self::ConfirmResetByPhone => {
                Class::Credential
            }
            Self::VerifyMfa => Class::Credential,
            Self::RefreshToken | Self::Logout | Self::ChangePassword => Class::Sustained,
            Self::BeginTotp | Self::ConfirmTotp | Self::ReplaceRecoveryCodes | Self::DisableMfa => Class::Sustained,
            Self::Mfa => Class::General,
            Self::VerifyToken => Class::TokenVerify,
            Self::Me | Self::UpdateMe | Self::LoginEvents => Class::General,
            Self::Sessions | Self::RevokeSession | Self::RevokeOtherSessions => Class::General,
            Self::JsonWebKeys | Self::OpenApi | Self::Docs | Self::DocsFile => Class::Free,
            Self::Live | Self::Ready => Class::Free,
        }
    }

    /// Whether it asks for an access token.
    pub const fn needs_bearer(self) -> bool {
        matches!(
            self,
            Self::Logout
                | Self::Me
                | Self::UpdateMe
                | Self::ChangePassword
                | Self::Mfa
                | Self::BeginTotp
                | Self::ConfirmTotp
                | Self::ReplaceRecoveryCodes
                | Self::DisableMfa
                | Self::Sessions
                | Self::RevokeSession
                | Self::RevokeOtherSessions
                | Self::LoginEvents
        )
    }

    /// How old what is known of its bearer may be: whatever changes something looks them up.
    pub const fn look(self) -> Look {
        match self {
            Self::Me | Self::Sessions | Self::LoginEvents | Self::Mfa => Look::Remembered,
            _ => Look::Anew,
        }
    }

    /// Whether it takes an `X-Idempotency-Key`. None of these answers with a token.
    pub const fn takes_idempotency_key(self) -> bool {
        matches!(self, Self::Register | Self::RequestReset | Self::UpdateMe)
    }
}

/// Where a route's path begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Below `/api/v1` or `/api/v2`.
    Versioned,
    /// At the root, on both engines; answers repeat `data` at the top level (contract §2).
    Legacy,
    /// At the root, on both engines.
    Bare,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// HTTP method.
    pub method: &'static str,
    /// Where the path begins.
    pub scope: Scope,
    /// The path without a trailing slash; `{name}` stands for one segment.
    pub path: &'static str,
    /// What it does.
    pub operation: Operation,
}

const fn route(method: &'static str, scope: Scope, path: &'static str, operation: Operation) -> Route {
    Route { method, scope, path, operation }
}

/// Every route.
pub const ROUTES: &[Route] = &[
    route("POST", Scope::Versioned, "/auth/register", Operation::Register),
    route("POST", Scope::Versioned, "/auth/verify-otp", Operation::VerifyOtp),
    route("POST", Scope::Versioned, "/auth/resend-otp", Operation::ResendOtp),
    route("POST", Scope::Versioned, "/auth/login", Operation::Login),
    route("POST", Scope::Versioned, "/auth/google", Operation::Google),
    route("POST", Scope::Versioned, "/auth/mfa/verify", Operation::VerifyMfa),
    route("GET", Scope::Versioned, "/auth/mfa", Operation::Mfa),
    route("POST", Scope::Versioned, "/auth/mfa/totp", Operation::BeginTotp),
    route("POST", Scope::Versioned, "/auth/mfa/totp/confirm", Operation::ConfirmTotp),
    route("POST", Scope::Versioned, "/auth/mfa/recovery-codes", Operation::ReplaceRecoveryCodes),
    route("POST", Scope::Versioned, "/auth/mfa/disable", Operation::DisableMfa),
    route("POST", Scope::Versioned, "/auth/token/refresh", Operation::RefreshToken),
    route("POST", Scope::Versioned, "/auth/token/verify", Operation::VerifyToken),
    route("POST", Scope::Versioned, "/auth/logout", Operation::Logout),
    route("GET", Scope::Versioned, "/auth/me", Operation::Me),
    route("PATCH", Scope::Versioned, "/auth/me", Operation::UpdateMe),
    route("GET", Scope::Versioned, "/profile/me", Operation::Me),
    route("PATCH", Scope::Versioned, "/profile/me", Operation::UpdateMe),
    route("POST", Scope::Versioned, "/password/reset-request", Operation::RequestReset),
    route("POST", Scope::Versioned, "/password/reset-confirm", Operation::ConfirmReset),
    route("POST", Scope::Versioned, "/password/reset-confirm/{uidb64}/{token}", Operation::ConfirmResetByLink),
    route("POST", Scope::Versioned, "/password/reset-phone-confirm", Operation::ConfirmResetByPhone),
    route("POST", Scope::Versioned, "/password/change", Operation::ChangePassword),
    route("GET", Scope::Versioned, "/auth/sessions", Operation::Sessions),
    route("DELETE", Scope::Versioned, "/auth/sessions/{id}", Operation::RevokeSession),
    route("POST", Scope::Versioned, "/auth/sessions/revoke-others", Operation::RevokeOtherSessions),
    route("GET", Scope::Versioned, "/auth/login-events", Operation::LoginEvents),
    route("GET", Scope::Versioned, "/openapi.json", Operation::OpenApi),
    route("GET", Scope::Versioned, "/docs", Operation::Docs),
    route("GET", Scope::Versioned, "/docs/{file}", Operation::DocsFile),
    route("POST", Scope::Legacy, "/auth/login", Operation::Login),
    route("POST", Scope::Legacy, "/auth/register", Operation::Register),
    route("POST", Scope::Legacy, "/auth/logout", Operation::Logout),
    route("POST", Scope::Legacy, "/auth/token/refresh", Operation::RefreshToken),
    route("POST", Scope::Legacy, "/auth/verify-otp", Operation::VerifyOtp),
    route("POST", Scope::Legacy, "/auth/resend-otp", Operation::ResendOtp),
    route("POST", Scope::Legacy, "/auth/password-reset", Operation::RequestReset),
    route("POST", Scope::Legacy, "/auth/password-reset-request", Operation::RequestReset),
    route("POST", Scope::Legacy, "/auth/password-reset-confirm", Operation::ConfirmReset),
    route("POST", Scope::Legacy, "/auth/password-reset-confirm-email/{uidb64}/{token}", Operation::ConfirmResetByLink),
    route("POST", Scope::Legacy, "/auth/password-reset-confirm-phone", Operation::ConfirmResetByPhone),
    route("POST", Scope::Legacy, "/auth/password-change", Operation::ChangePassword),
    route("GET", Scope::Bare, "/.well-known/jwks.json", Operation::JsonWebKeys),
    route("GET", Scope::Bare, "/health/live", Operation::Live),
    route("GET", Scope::Bare, "/health/ready", Operation::Ready),
];

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matched {
    /// An operation.
    Operation {
        /// Which.
        operation: Operation,
        /// Whether by a legacy alias.
        is_legacy: bool,
        /// What stands in the path for the names in the route's.
        parameters: Vec<String>,
    },
    /// What a path can do (OPTIONS; CORS pre-flight), with its `Allow`.
    Options,
}

/// Looks a request up.
///
/// # Errors
/// 404 `not_found`, 405 `method_not_allowed`.
pub fn find(version: Version, method: &str, path: &str) -> Result<Matched, Problem> {
    let bare = path.strip_suffix('/').unwrap_or(path);
    let versioned = below_api(bare, version);
    let path_for = |route: &Route| match route.scope {
        Scope::Versioned => versioned,
        Scope::Legacy | Scope::Bare => Some(bare),
    };
    // What is named as it is goes before what is named as any segment, and is what most ask for.
    let is_named = |route: &&Route| path_for(route) == Some(route.path) && !route.path.contains('{');
    let mut here: Vec<(&Route, Vec<String>)> =
        ROUTES.iter().filter(is_named).map(|route| (route, Vec::new())).collect();
    if here.is_empty() {
        let fits = |route: &'static Route| Some((route, parameters(route.path, path_for(route)?)?));
        here = ROUTES.iter().filter_map(fits).collect();
    }
    // A GET route answers HEAD too (RFC 9110 §9.3.2).
    let asked = if method == "HEAD" { "GET" } else { method };
    let mut allow = Vec::new();
    for (route, parameters) in here {
        if route.method == asked {
            let is_legacy = route.scope == Scope::Legacy;
            return Ok(Matched::Operation { operation: route.operation, is_legacy, parameters });
        }
        allow.push(route.method);
        if route.method == "GET" {
            allow.push("HEAD");
        }
    }
    if allow.is_empty() {
        return Err(not_found(version, bare));
    }
    if method == "OPTIONS" {
        return Ok(Matched::Options);
    }
    allow.push("OPTIONS");
    let allow = Some(allow.join(", "));
    Err(Problem { allow, ..Problem::new(405, "method_not_allowed", "This method is not allowed here.") })
}

/// The methods of a path, for `Allow`.
pub fn methods(version: Version, path: &str) -> String {
    find(version, "", path).err().and_then(|problem| problem.allow).unwrap_or_default()
}

// What stands in `asked` for the `{name}`s of `path`, when it is such a path.
fn parameters(path: &str, asked: &str) -> Option<Vec<String>> {
    if !path.contains('{') {
        return (path == asked).then(Vec::new);
    }
    let mut found = Vec::new();
    let mut segments = asked.split('/');
    for name in path.split('/') {
        let segment = segments.next()?;
        if name.starts_with('{') && !segment.is_empty() {
            found.push(segment.to_owned());
        } else if name != segment {
            return None;
        }
    }
    segments.next().is_none().then_some(found)
}

fn below_api(path: &str, version: Version) -> Option<&str> {
    path.strip_prefix("/api/")?.strip_prefix(version.word()).filter(|rest| rest.starts_with('/'))
}

fn not_found(version: Version, path: &str) -> Problem {
    let other = version.other();
    let problem = Problem::new(404, "not_found", "There is nothing at this path.");
    if below_api(path, other).is_none() {
        return problem;
    }
    let message = format!("There is no /api/{}/ on this port: another port serves it.", other.word());
    Problem { message: message.into(), ..problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(method: &str, path: &str) -> Option<(Operation, bool)> {
        match find(Version::V1, method, path) {
            Ok(Matched::Operation { operation, is_legacy, .. }) => Some((operation, is_legacy)),
            _ => None,
        }
    }

    #[test]
    fn a_path_is_found_with_and_without_its_slash() {
        assert_eq!(operation("POST", "/api/v1/auth/login/"), Some((Operation::Login, false)));
        assert_eq!(operation("POST", "/api/v1/auth/login"), Some((Operation::Login, false)));
        assert_eq!(operation("POST", "/auth/login/"), Some((Operation::Login, true)));
        assert_eq!(operation("HEAD", "/health/live"), Some((Operation::Live, false)));
        for path in [
            "/",
            "",
            "/api/v1",
            "/api/v1//auth/login",
            "/api/v1/auth/login//",
            "/API/v1/auth/login",
            "/api/v10/auth/me",
        ] {
            assert_eq!(operation("POST", path), None, "{path}");
        }
    }

    #[test]
    fn names_in_a_path_stand_for_one_segment_each() {
        let found = |method: &str, path: &str| match find(Version::V1, method, path) {
            Ok(Matched::Operation { operation, parameters, .. }) => Some((operation, parameters.join(","))),
            _ => None,
        };
        let by_link = Some((Operation::ConfirmResetByLink, "a,b".to_owned()));
        assert_eq!(found("POST", "/api/v1/password/reset-confirm/a/b/"), by_link);
        assert_eq!(found("POST", "/auth/password-reset-confirm-email/a/b"), by_link);
        assert_eq!(found("POST", "/api/v1/password/reset-confirm/a"), None);
        assert_eq!(found("POST", "/api/v1/password/reset-confirm//b"), None);
        assert_eq!(found("POST", "/api/v1/password/reset-confirm/a/b/c"), None);
        assert_eq!(found("DELETE", "/api/v1/auth/sessions/x"), Some((Operation::RevokeSession, "x".to_owned())));
        assert_eq!(found("DELETE", "/api/v1/auth/sessions/"), None);
        let allow = |path: &str| methods(Version::V1, path);
        assert_eq!(allow("/api/v1/auth/sessions/revoke-others/"), "POST, OPTIONS");
        assert_eq!(allow("/api/v1/auth/sessions/x/"), "DELETE, OPTIONS");
    }

    #[test]
    fn another_method_is_told_which_there_are() {
        let problem = find(Version::V2, "DELETE", "/api/v2/auth/me/").unwrap_err();
        assert_eq!((problem.status, problem.allow.as_deref()), (405, Some("GET, HEAD, PATCH, OPTIONS")));
        assert_eq!(find(Version::V2, "OPTIONS", "/api/v2/auth/me/"), Ok(Matched::Options));
    }

    #[test]
    fn the_other_engines_paths_say_so() {
        let problem = find(Version::V1, "POST", "/api/v2/auth/login/").unwrap_err();
        assert!(problem.status == 404 && problem.message.contains("/api/v2/"));
    }

    #[test]
    fn no_route_stands_twice() {
        for (n, one) in ROUTES.iter().enumerate() {
            assert!(
                ROUTES
                    .iter()
                    .skip(n + 1)
                    .all(|two| (one.method, one.scope, one.path) != (two.method, two.scope, two.path))
            );
        }
    }
}
