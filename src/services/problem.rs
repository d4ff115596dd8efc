//! What a client is told when something was refused or failed: status, code, sentences.

use std::{borrow::Cow, time::Duration};

use super::{
    error::{Overloaded, Unavailable},
    fields::{FieldErrors, Unfit},
    limits::Standing,
};

/// A failure as the contract's §1 shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Stable word for clients.
    pub code: &'static str,
    /// Sentence for people.
    pub message: Cow<'static, str>,
    /// Sentences by field.
    pub errors: Option<FieldErrors>,
    /// For 429 and 503: whole seconds, at least one.
    pub retry_after: Option<u64>,
    /// More for `data`.
    pub data: Option<serde_json::Value>,
    /// For 405: the methods that the path has.
    pub allow: Option<String>,
    /// How the client stands with the limits, when one of them refused it.
    pub standing: Option<Standing>,
}

impl Problem {
    /// A failure with a code of the contract.
    pub const fn new(status: u16, code: &'static str, message: &'static str) -> Self {
        let message = Cow::Borrowed(message);
        Self { status, code, message, errors: None, retry_after: None, data: None, allow: None, standing: None }
    }

    /// 400 `validation_error`.
    pub fn invalid(errors: FieldErrors) -> Self {
        Self { errors: Some(errors), ..Self::new(400, "validation_error", "Some fields are not valid.") }
    }

    /// 400 `parse_error`.
    pub fn parse(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), ..Self::new(400, "parse_error", "") }
    }

    /// 401 `token_not_valid`.
    pub const fn token_not_valid() -> Self {
        Self::new(401, "token_not_valid", "The token is not valid or has expired.")
    }

    /// 401 `invalid_mfa_code`
    pub fn invalid_mfa_code() -> Self {
        const SENTENCE: &str = "The code is wrong, has expired or was used before.";
        Self {
            errors: Some(super::fields::field_error("code", SENTENCE)),
            ..Self::new(401, "invalid_mfa_code", SENTENCE)
        }
    }

    /// 500 `server_error`: a defect of ours; the log has the cause under the request's id.
    pub const fn server_error() -> Self {
        Self::new(500, "server_error", "Something went wrong on our side. Please try again.")
    }

    /// 429 `throttled`.
    pub fn throttled(wait: Duration) -> Self {
        Self::new(429, "throttled", "Too many requests. Please try again later.").after(wait)
    }

    /// The same, with the time after which another attempt makes sense.
    pub fn after(self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self { retry_after: Some(seconds.max(1)), ..self }
    }
}

impl From<Unavailable> for Problem {
    fn from(error: Unavailable) -> Self {
        // The cause is for the operator; the request's span carries its id.
        tracing::error!(error = %error, "unavailable");
        Self::new(503, "service_unavailable", "The service is temporarily unavailable. Please try again.")
            .after(Duration::from_secs(1))
    }
}

impl From<Overloaded> for Problem {
    fn from(error: Overloaded) -> Self {
        tracing::warn!(error = %error, "overloaded");
        Self::new(503, "overloaded", "The service is busy. Please try again in a moment.").after(Duration::from_secs(1))
    }
}

impl From<Unfit> for Problem {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Duplicate(name) => Self::parse(format!("The field `{name}` is given more than once.")),
            Unfit::Invalid(errors) => Self::invalid(errors),
        }
    }
}
