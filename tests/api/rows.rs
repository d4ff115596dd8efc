//! The rows behind the answers: what was written down, and how to make something older than it is.

use crate::support::{Answer, Backend, Gateway, claims_of, pause};
use std::time::Duration;

/// A condition on a column that holds an id.
pub(crate) fn is(gateway: &Gateway, column: &str, id: &str) -> String {
    match gateway.backend {
        Backend::Embedded => format!("hex({column}) = '{}'", id.replace('-', "").to_ascii_uppercase()),
        Backend::PostgresRedis => format!("{column} = '{id}'"),
    }
}

/// The moment so many seconds ago, as the columns hold moments.
pub(crate) fn ago(gateway: &Gateway, seconds: u64) -> String {
    match gateway.backend {
        Backend::Embedded => format!("((cast(strftime('%s', 'now') as integer) - {seconds}) * 1000000)"),
        Backend::PostgresRedis => format!("(now() - interval '{seconds} seconds')"),
    }
}

/// The audit events of a request, one per line: action, outcome, reason.
pub(crate) fn audited(gateway: &Gateway, answer: &Answer) -> String {
    audited_by(gateway, std::slice::from_ref(answer)).join("\n")
}

/// The audit events of several requests, in the order in which they were written.
pub(crate) fn audited_by(gateway: &Gateway, answers: &[Answer]) -> Vec<String> {
    let requests: Vec<_> = answers.iter().map(|answer| format!("'{}'", answer.text("meta.request_id"))).collect();
    let of_requests = format!("request_id in ({}) order by at, action", requests.join(", "));
    let found = gateway.query(&format!("select action, outcome, reason from audit_events where {of_requests}"));
    found.lines().map(str::to_owned).collect()
}

/// How many audit events of a request are about this user.
pub(crate) fn audited_of(gateway: &Gateway, answer: &Answer, user: &str) -> String {
    let (request, is_user) = (answer.text("meta.request_id"), is(gateway, "user_id", user));
    gateway.query(&format!("select count(*) from audit_events where request_id = '{request}' and {is_user}"))
}

/// Changes the row of a user.
pub(crate) fn change_user(gateway: &Gateway, user: &str, what: &str) {
    gateway.query(&with_answer(gateway, "users", what, user));
}

/// Changes the row of a session.
pub(crate) fn change_session(gateway: &Gateway, session: &str, what: &str) {
    gateway.query(&with_answer(gateway, "sessions", what, session));
    // What another process changes is seen within the contract's second (§3).
    pause(Duration::from_secs(1));
}

fn with_answer(gateway: &Gateway, table: &str, what: &str, id: &str) -> String {
    format!("update {table} set {what} where {} returning 1", is(gateway, "id", id))
}

/// One column of a session's row.
pub(crate) fn of_session(gateway: &Gateway, session: &str, column: &str) -> String {
    gateway.query(&format!("select {column} from sessions where {}", is(gateway, "id", session)))
}

/// The stored hash of a user's password.
pub(crate) fn hash_of(gateway: &Gateway, user: &str) -> String {
    gateway.query(&format!("select password_hash from users where {}", is(gateway, "id", user)))
}

/// The session that a token belongs to.
pub(crate) fn session_of(token: &str) -> String {
    let claims = claims_of(token).expect("a token").claims;
    claims.get("sid").and_then(serde_json::Value::as_str).expect("a session").to_owned()
}
