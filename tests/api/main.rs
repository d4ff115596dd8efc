//! The contract from outside: every story runs on both engines, embedded and on PostgreSQL + Redis, and the four
//! answers are compared field by field.

#[path = "../support/mod.rs"]
mod support;

mod breaches;
mod codes;
mod command_line;
mod confidentiality;
mod configuration;
mod cors;
mod devices;
mod envelope;
mod google;
mod harness;
mod idempotency;
mod imported;
mod legacy;
mod limits;
mod lockout;
mod login;
mod login_events;
mod logout;
mod logs;
mod mail;
mod mfa;
mod password_change;
mod password_reset;
mod profile;
mod refresh;
mod register;
mod rows;
mod sessions;
mod stuffing;
mod tokens;
mod verify;

use support::{Answer, Exchange, Request, Side, Story, first_difference, for_each_world};

/// The origin that the configuration allows.
const ORIGIN: &str = "https://app.example.com";

/// A key that nothing but these tests uses, so that they can sign tokens of their own.
const SIGNING_KEY: &str = "a-key-that-only-these-tests-use-0123456789";

/// Defaults, but for a signing key and an origin.
const ORDINARY: Story =
    Story { env: &[("BIFRONS_CORS__ORIGINS", ORIGIN), ("BIFRONS_TOKENS__SIGNING_KEY", SIGNING_KEY)] };

/// A new code or notice may be sent at once.
const PROMPT: Story = Story { env: &[("BIFRONS_OTP__RESEND_INTERVAL", "0s")] };

/// Short times, and an address that a browser reaches by HTTPS.
const BRISK: Story = Story {
    env: &[
        ("BIFRONS_CORS__ORIGINS", ORIGIN),
        ("BIFRONS_TOKENS__ACCESS_TTL", "3s"),
        ("BIFRONS_TOKENS__REUSE_GRACE", "1s"),
        ("BIFRONS_PUBLIC_URL", "https://auth.example.com"),
    ],
};

/// A request and how it has to be refused.
struct Refused {
    name: &'static str,
    request: Request,
    status: u16,
    /// Any of these.
    codes: &'static [&'static str],
    /// The field at fault.
    field: Option<&'static str>,
}

impl Refused {
    fn new(name: &'static str, request: Request, status: u16, codes: &'static [&'static str]) -> Self {
        Self { name, request, status, codes, field: None }
    }

    fn field(mut self, field: &'static str) -> Self {
        self.field = Some(field);
        self
    }
}

/// Sends every request in every world.
fn refuse_all(cases: impl Fn(&mut Side<'_>) -> Vec<Refused>) {
    for_each_world(ORDINARY, |side| {
        for case in cases(side) {
            let answer = side.send(&case.request);
            let name = case.name;
            assert_eq!(answer.status, case.status, "{name}: {}", answer.shown());
            let code = answer.code();
            assert!(case.codes.contains(&code.as_str()), "{name}: {}", answer.shown());
            if let Some(field) = case.field {
                assert!(has_sentences(&answer, field), "{name}: no errors.{field}: {}", answer.shown());
            }
        }
    });
}

/// Whether the field has at least one sentence in `errors`.
fn has_sentences(answer: &Answer, field: &str) -> bool {
    let sentences = answer.at(&format!("errors.{field}"));
    sentences.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(serde_json::Value::is_string))
}

/// Nobody can tell the two answers apart.
#[track_caller]
fn assert_alike(one: &Exchange, other: &Exchange) {
    let difference = first_difference(std::slice::from_ref(one), std::slice::from_ref(other));
    assert!(difference.is_none(), "the answers tell two cases apart: {}", difference.unwrap_or_default());
}
