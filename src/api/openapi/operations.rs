//! What the document says of each operation: its purpose, its body, and everything that it may answer.

use serde_json::{Value, json};

use super::{
    examples,
    schemas::{Field, Rule, exact, flag, named, text, word},
};
use crate::api::Operation;

/// The chapter of the document that an operation stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// Sign-up and codes.
    Registration,
    /// Sign-in, tokens, sessions and sign-out.
    Sessions,
    /// The second factor.
    SecondFactor,
    /// Reset and change of passwords.
    Passwords,
    /// The signed-in user.
    Profile,
    /// Health.
    Health,
    /// Documents about the gateway itself.
    Documents,
}

impl Tag {
    /// Every chapter but that of the legacy paths, in order.
    pub const ALL: [Self; 7] = [
        Self::Registration,
        Self::Sessions,
        Self::SecondFactor,
        Self::Passwords,
        Self::Profile,
        Self::Health,
        Self::Documents,
    ];

    /// Its name and what it is about.
    pub const fn text(self) -> (&'static str, &'static str) {
        match self {
            Self::Registration => ("registration", "Sign-up, and the codes that prove an address or a number."),
            Self::Sessions => ("sessions", "Sign-in, tokens, sessions and sign-out."),
            Self::SecondFactor => ("second factor", "Two-step sign-in with an authenticator and recovery codes."),
            Self::Passwords => ("passwords", "Reset and change."),
            Self::Profile => ("profile", "The signed-in user."),
            Self::Health => ("health", "For load balancers and orchestrators."),
            Self::Documents => ("documents", "What the gateway says of itself."),
        }
    }
}

/// What the document says of an operation.
pub struct Description {
    /// A few words.
    pub summary: &'static str,
    /// More of it.
    pub text: &'static str,
    /// Its chapter.
    pub tag: Tag,
    /// What it reads of the body.
    pub body: Option<Body>,
    /// What it answers when it was done.
    pub answer: Answer,
    /// What it may refuse, beside what every operation of its kind may.
    pub failures: Vec<Failure>,
}

/// What an operation reads of the body.
pub struct Body {
    /// All fields that are read; any other is ignored.
    pub fields: Vec<Field>,
    /// What is demanded of the fields together.
    pub rule: Rule,
    /// Whether an empty body is refused.
    pub is_required: bool,
    /// Name and value of each example.
    pub examples: Vec<(&'static str, Value)>,
}

/// What an operation answers when it was done.
pub enum Answer {
    /// The envelope.
    Envelope {
        /// HTTP status.
        status: u16,
        /// For people.
        message: &'static str,
        /// Name of the schema and an example; without it, `data` is null.
        data: Option<(&'static str, Value)>,
        /// Whether the refresh cookie is set or removed.
        sets_cookie: bool,
    },
    /// Something of its own.
    Plain {
        /// Without parameters.
        content_types: &'static [&'static str],
        /// What it is.
        text: &'static str,
        /// Its schema.
        schema: Value,
        /// An example.
        example: Value,
    },
}

/// A way to fail.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    /// HTTP status.
    pub status: u16,
    /// Stable word.
    pub code: &'static str,
    /// For people.
    pub message: &'static str,
    /// A field at fault and the sentence about it.
    pub field: Option<(&'static str, &'static str)>,
    /// Name of the schema of `data`; without it, `data` is null.
    pub data: Option<&'static str>,
}

impl Failure {
    /// Whether it says when another attempt makes sense.
    pub const fn has_wait(&self) -> bool {
        self.data.is_some()
    }
}

const fn failure(status: u16, code: &'static str, message: &'static str) -> Failure {
    let data = if matches!(status, 429 | 503) { Some("Wait") } else { None };
    Failure { status, code, message, field: None, data }
}

const fn at_field(failure: Failure, field: &'static str, sentence: &'static str) -> Failure {
    Failure { field: Some((field, sentence)), ..failure }
}

const INVALID: Failure = failure(400, "validation_error", "Some fields are not valid.");
const OVERLOADED: Failure = failure(503, "overloaded", "The service is busy. Please try again in a moment.");
const WRONG_CODE: Failure = at_field(
    failure(400, "invalid_otp", "The code is wrong or has expired."),
    "otp",
    "The code is wrong or has expired.",
);
const WRONG_LINK: Failure = at_field(
    failure(400, "invalid_token", "The link is not valid or has expired. Please ask for a new one."),
    "token",
    "The link is not valid or has expired.",
);
const LOCKED: Failure = failure(429, "account_locked", "Too many failed attempts. Please try again later.");
const DISABLED: Failure = failure(403, "account_disabled", "This account is disabled.");
const WRONG_PASSWORD: Failure = at_field(
    failure(400, "invalid_current_password", "The current password is wrong."),
    "current_password",
    "This is not your present password.",
);
const WRONG_MFA_CODE: Failure = at_field(
    failure(401, "invalid_mfa_code", "The code is wrong, has expired or was used before."),
    "code",
    "The code is wrong, has expired or was used before.",
);
const STEP_UP: Failure = failure(403, "step_up_required", "Please sign in again to do this.");
const TOKEN_NOT_VALID: Failure = failure(401, "token_not_valid", "The token is not valid or has expired.");

/// What the transfer of any request may fail with, whatever it asks for.
pub const OF_EVERY: [Failure; 4] = [
    failure(400, "parse_error", "The body's framing is broken."),
    failure(408, "request_timeout", "The body did not arrive in time."),
    failure(413, "payload_too_large", "The body is longer than 64 KiB."),
    failure(500, "server_error", "Something went wrong on our side. Please try again."),
];

/// What an operation may fail with that reads its body.
pub const OF_BODIES: [Failure; 2] = [
    at_field(INVALID, "password", "This field is required."),
    failure(415, "unsupported_media_type", "Send JSON (application/json) in UTF-8."),
];

/// What an operation may fail with that asks for an access token.
pub const OF_BEARERS: [Failure; 2] =
    [failure(401, "not_authenticated", "Authentication credentials were not provided."), TOKEN_NOT_VALID];

/// What an operation may fail with that is counted against a limit.
pub const OF_LIMITS: Failure = failure(429, "throttled", "Too many requests. Please try again later.");

/// What an operation may fail with that takes an idempotency key.
pub const OF_KEYS: [Failure; 2] = [
    failure(409, "conflict", "This idempotency key was used for another request."),
    Failure {
        data: Some("Wait"),
        ..failure(409, "conflict", "The first request with this idempotency key is still being processed.")
    },
];

/// What a list may fail with.
pub const OF_LISTS: Failure = at_field(INVALID, "limit", "A valid integer between 1 and 100 is required.");

/// What an operation may fail with that asks the database or the store.
pub const OF_STORES: Failure =
    failure(503, "service_unavailable", "The service is temporarily unavailable. Please try again.");

const NAMES_ACCOUNT: Rule = Rule::OneOf(&["challenge", "email", "phone", "email_or_phone"]);
const IDENTIFIER: &str = "An e-mail address or a phone number, in any spelling.";

// Fields by which codes are asked for and shown.
fn account_names() -> [Field; 4] {
    [
        text("challenge", "The challenge that the registration gave.").nullable(),
        text("email", "The e-mail address that was registered.").nullable(),
        text("phone", "The phone number that was registered.").nullable(),
        text("email_or_phone", IDENTIFIER).nullable(),
    ]
}

fn signed_in(message: &'static str) -> Answer {
    Answer::Envelope { status: 200, message, data: Some(("LoginData", examples::login_data())), sets_cookie: true }
}

// The same where a second factor may be asked for first.
fn entered(message: &'static str) -> Answer {
    Answer::Envelope { status: 200, message, data: Some(("Entered", examples::login_data())), sets_cookie: true }
}

const fn done(message: &'static str) -> Answer {
    Answer::Envelope { status: 200, message, data: None, sets_cookie: false }
}

const fn shown(message: &'static str, schema: &'static str, example: Value) -> Answer {
    Answer::Envelope { status: 200, message, data: Some((schema, example)), sets_cookie: false }
}

/// What the document says of an operation.
pub fn describe(operation: Operation) -> Description {
    match operation {
        Operation::Register => register(),
        Operation::VerifyOtp => verify_otp(),
        Operation::ResendOtp => resend_otp(),
        Operation::Login => login(),
        Operation::Google => google(),
        Operation::VerifyMfa => verify_mfa(),
        Operation::Mfa => mfa(),
        Operation::BeginTotp => begin_totp(),
        Operation::ConfirmTotp => confirm_totp(),
        Operation::ReplaceRecoveryCodes => replace_recovery_codes(),
        Operation::DisableMfa => disable_mfa(),
        Operation::RefreshToken => refresh_token(),
        Operation::VerifyToken => verify_token(),
        Operation::Logout => logout(),
        Operation::Me => me(),
        Operation::UpdateMe => update_me(),
        Operation::RequestReset => request_reset(),
        Operation::ConfirmReset => confirm_reset(),
        Operation::ConfirmResetByLink => confirm_reset_by_link(),
        Operation::ConfirmResetByPhone => confirm_reset_by_phone(),
        Operation::ChangePassword => change_password(),
        Operation::Sessions => sessions(),
        Operation::RevokeSession => revoke_session(),
        Operation::RevokeOtherSessions => revoke_other_sessions(),
        Operation::LoginEvents => login_events(),
        Operation::JsonWebKeys => json_web_keys(),
        Operation::Live => live(),
        Operation::Ready => ready(),
        Operation::OpenApi => openapi(),
        Operation::Docs => docs(),
        Operation::DocsFile => docs_file(),
    }
}

/// What else an operation answers when it was done, with another status.
pub fn also(operation: Operation) -> Option<Answer> {
    (operation == Operation::Google).then(|| Answer::Envelope {
        status: 201,
        message: "Account created successfully.",
        data: Some(("LoginData", examples::login_data())),
        sets_cookie: true,
    })
}

fn register() -> Description {
    Description {
        summary: "Register with an e-mail address or a phone number",
        text: "Sends a code to the address or number. The answer is the same whether it is free, waits for its code \
               or has an account; the owner of an account gets a notice instead. Nobody is signed in before the code \
               is shown at verify-otp. With `registration.reveal_existing`, a taken address is a `validation_error`.",
        tag: Tag::Registration,
        body: Some(Body {
            fields: vec![
                text("email", "Give either this or `phone`.").nullable(),
                text("phone", "Give either this or `email`. Without a country code it is a number of the installation's country.").nullable(),
                text("password", "8 to 128 characters after trimming (the installation may ask for more). Common and guessable ones are refused.").password().required(),
                text("password2", "Must equal `password` when it is given.").password().nullable(),
                word("role", "Nothing is `client`.", &["client", "vendor", ""]).nullable(),
                text("first_name", "").at_most(150).nullable(),
                text("last_name", "").at_most(150).nullable(),
            ],
            rule: Rule::OneOf(&["email", "phone"]),
            is_required: true,
            examples: vec![
                ("email", json!({ "email": "ada@example.com", "password": "violet-anchor-72-meadow", "first_name": "Ada", "last_name": "Obi" })),
                ("phone", json!({ "phone": "+2348031234567", "password": "violet-anchor-72-meadow", "password2": "violet-anchor-72-meadow", "role": "vendor" })),
            ],
        }),
        answer: Answer::Envelope {
            status: 201,
            message: "Registration received. Please enter the code that was sent to you.",
            data: Some(("Registered", examples::registered())),
            sets_cookie: false,
        },
        failures: vec![OVERLOADED],
    }
}

fn verify_otp() -> Description {
    Description {
        summary: "Prove an address or number with its code",
        text: "The account is verified and signed in. A code can be used once, and guessed at five times.",
        tag: Tag::Registration,
        body: Some(Body {
            fields: std::iter::once(text("otp", "The code.").at_most(32).required()).chain(account_names()).collect(),
            rule: NAMES_ACCOUNT,
            is_required: true,
            examples: vec![
                ("challenge", json!({ "challenge": examples::CHALLENGE, "otp": "493027" })),
                ("identifier", json!({ "email_or_phone": "ada@example.com", "otp": "493027" })),
            ],
        }),
        answer: entered("Your account is verified."),
        failures: vec![
            at_field(
                failure(400, "invalid_otp", "The code is wrong or has expired."),
                "otp",
                "The code is wrong or has expired.",
            ),
            LOCKED,
            DISABLED,
        ],
    }
}

fn resend_otp() -> Description {
    Description {
        summary: "Ask for another code",
        text: "The answer is the same whether an account waits for a code or not, and whether one is sent: not more \
               than one a minute is. A new code replaces the old one.",
        tag: Tag::Registration,
        body: Some(Body {
            fields: account_names().into(),
            rule: NAMES_ACCOUNT,
            is_required: true,
            examples: vec![
                ("challenge", json!({ "challenge": examples::CHALLENGE })),
                ("identifier", json!({ "email_or_phone": "08031234567" })),
            ],
        }),
        answer: done("If an account waits for verification, a new code has been sent."),
        failures: Vec::new(),
    }
}

fn login() -> Description {
    Description {
        summary: "Sign in",
        text: "Opens a session. An unknown address and a wrong password answer alike; after five failures the \
               identifier is locked for a while. Whoever has a second factor gets an `mfa_token` instead of a session.",
        tag: Tag::Sessions,
        body: Some(Body {
            fields: vec![
                text("email_or_phone", IDENTIFIER).at_most(254).required(),
                text("password", "").at_most(512).password().required(),
            ],
            rule: Rule::None,
            is_required: true,
            examples: vec![
                ("email", json!({ "email_or_phone": "ada@example.com", "password": "violet-anchor-72-meadow" })),
                ("phone", json!({ "email_or_phone": "08031234567", "password": "violet-anchor-72-meadow" })),
            ],
        }),
        answer: entered("Login successful."),
        failures: vec![
            failure(401, "invalid_credentials", "Wrong email, phone number or password."),
            failure(403, "account_not_verified", "Please verify your account with the code that was sent to you."),
            DISABLED,
            LOCKED,
            OVERLOADED,
        ],
    }
}

fn verify_mfa() -> Description {
    Description {
        summary: "Show the second factor",
        text: "The second step of a sign-in that was answered with `mfa_required`. A token is good for one sign-in, and \
               dead once the password or the second factor is another; a code is good once. Five wrong codes, by \
               either method and over several sign-ins, lock the second factor for a while; `mfa.daily_guesses` of them \
               in a day, whatever was right in between, until the day is over.",
        tag: Tag::SecondFactor,
        body: Some(Body {
            fields: vec![
                exact("mfa_token", "From the answer to the first step.").required(),
                word("method", "With what the factor is shown.", &["totp", "recovery_code"]).required(),
                text("code", "The authenticator's, or one of the recovery codes.").at_most(64).required(),
            ],
            rule: Rule::None,
            is_required: true,
            examples: vec![
                ("totp", json!({ "mfa_token": examples::CHALLENGE, "method": "totp", "code": "493027" })),
                (
                    "recovery_code",
                    json!({ "mfa_token": examples::CHALLENGE, "method": "recovery_code", "code": examples::RECOVERY_CODE }),
                ),
            ],
        }),
        answer: signed_in("Login successful."),
        failures: vec![TOKEN_NOT_VALID, WRONG_MFA_CODE, DISABLED, LOCKED],
    }
}

fn mfa() -> Description {
    Description {
        summary: "Show the signed-in user's second factor",
        text: "",
        tag: Tag::SecondFactor,
        body: None,
        answer: shown("Your second factor.", "MfaState", examples::mfa_state()),
        failures: Vec::new(),
    }
}

const PRESENT_PASSWORD: &str = "The present password. Whoever has none signs in again within ten minutes before.";

fn begin_totp() -> Description {
    Description {
        summary: "Get a secret for an authenticator",
        text: "It waits for its first code in this session, and replaces one that waits. Codes are those of RFC 6238 \
               with SHA-1, six digits and 30 seconds.",
        tag: Tag::SecondFactor,
        body: Some(Body {
            fields: vec![text("current_password", PRESENT_PASSWORD).at_most(512).password().nullable()],
            rule: Rule::None,
            is_required: false,
            examples: vec![("begin", json!({ "current_password": "violet-anchor-72-meadow" }))],
        }),
        answer: shown(
            "Add the secret to your authenticator and enter the code that it shows.",
            "TotpEnrolment",
            examples::totp_enrolment(),
        ),
        failures: vec![
            WRONG_PASSWORD,
            STEP_UP,
            failure(409, "conflict", "Your account has a second factor already."),
            LOCKED,
            OVERLOADED,
        ],
    }
}

fn confirm_totp() -> Description {
    Description {
        summary: "Switch the second factor on",
        text: "With the first code of the authenticator. Every other session ends, and the owner is told. The recovery \
               codes are shown only here. A wrong code is 401 `invalid_mfa_code`, though the access token is good.",
        tag: Tag::SecondFactor,
        body: Some(Body {
            fields: vec![text("code", "The authenticator's.").at_most(64).required()],
            rule: Rule::None,
            is_required: true,
            examples: vec![("code", json!({ "code": "493027" }))],
        }),
        answer: shown(
            "Your second factor is on. Keep the recovery codes: they are shown only once.",
            "RecoveryCodes",
            examples::recovery_codes(),
        ),
        failures: vec![
            WRONG_MFA_CODE,
            failure(409, "conflict", "No authenticator waits for its first code. Please begin again."),
            LOCKED,
        ],
    }
}

fn change_mfa(summary: &'static str, text: &'static str, answer: Answer) -> Description {
    Description {
        summary,
        text,
        tag: Tag::SecondFactor,
        body: Some(Body {
            fields: vec![
                self::text("current_password", PRESENT_PASSWORD).at_most(512).password().nullable(),
                self::text("code", "The authenticator's, or one of the recovery codes.").at_most(64).required(),
            ],
            rule: Rule::None,
            is_required: true,
            examples: vec![("change", json!({ "current_password": "violet-anchor-72-meadow", "code": "493027" }))],
        }),
        answer,
        failures: vec![
            WRONG_PASSWORD,
            WRONG_MFA_CODE,
            STEP_UP,
            failure(409, "conflict", "Your account has no second factor."),
            LOCKED,
            OVERLOADED,
        ],
    }
}

fn replace_recovery_codes() -> Description {
    change_mfa(
        "Get new recovery codes",
        "The old ones are void. Every other session ends, and the owner is told. A wrong code is 401 \
         `invalid_mfa_code`, though the access token is good.",
        shown(
            "Your new recovery codes. Keep them: they are shown only once.",
            "RecoveryCodes",
            examples::recovery_codes(),
        ),
    )
}

fn disable_mfa() -> Description {
    change_mfa(
        "Switch the second factor off",
        "Every other session ends, and the owner is told. A wrong code is 401 `invalid_mfa_code`, though the access \
         token is good.",
        done("Your second factor is off. All other sessions were ended."),
    )
}

fn google() -> Description {
    Description {
        summary: "Sign in with a Google account",
        text: "Takes an ID token that Google made for one of the installation's clients, once. Without an account for \
               it, one is made. A verified account with the same address is linked where Google itself runs the \
               address (or `google.linking` is \"verified\"); otherwise, and when another Google account is linked \
               already, the answer is `conflict`. A token with a nonce is taken only together with that nonce.",
        tag: Tag::Sessions,
        body: Some(Body {
            fields: vec![
                exact("id_token", "Google's ID token.").required(),
                word("role", "Of an account that is made by this; nothing is `client`.", &["client", "vendor", ""])
                    .nullable(),
                text("nonce", "The text that the client had Google put into the token.").at_most(256).nullable(),
            ],
            rule: Rule::None,
            is_required: true,
            examples: vec![
                ("plain", json!({ "id_token": examples::ID_TOKEN })),
                ("bound", json!({ "id_token": examples::ID_TOKEN, "nonce": "n-0S6_WzA2Mj", "role": "vendor" })),
            ],
        }),
        answer: entered("Login successful."),
        failures: vec![
            failure(401, "invalid_google_token", "The Google sign-in is not valid."),
            failure(409, "conflict", "An account with this email address exists. Please sign in as you did before."),
            DISABLED,
            LOCKED,
        ],
    }
}

fn refresh_token() -> Description {
    Description {
        summary: "Get the next pair of tokens",
        text: "The refresh token is taken from the body, else from the cookie, and is spent. The same one shown again \
               within the grace time gets the same pair; shown later it is a copy: the session is ended and the \
               answer is `token_reused`.",
        tag: Tag::Sessions,
        body: Some(Body {
            fields: vec![exact("refresh", "The refresh token. Without it the cookie's is meant.").nullable()],
            rule: Rule::None,
            is_required: false,
            examples: vec![("body", json!({ "refresh": examples::REFRESH })), ("cookie", json!({}))],
        }),
        answer: Answer::Envelope {
            status: 200,
            message: "Token refreshed.",
            data: Some(("TokenPair", examples::token_pair())),
            sets_cookie: true,
        },
        failures: vec![
            TOKEN_NOT_VALID,
            failure(401, "token_reused", "This refresh token was used before. Please sign in again."),
            failure(403, "permission_denied", "This origin may not use the refresh cookie."),
        ],
    }
}

fn verify_token() -> Description {
    Description {
        summary: "Ask whether a token is good",
        text: "For services that do not hold the key. A token of an ended session is not good.",
        tag: Tag::Sessions,
        body: Some(Body {
            fields: vec![exact("token", "An access token or a refresh token.").required()],
            rule: Rule::None,
            is_required: true,
            examples: vec![("access", json!({ "token": examples::ACCESS }))],
        }),
        answer: done("The token is valid."),
        failures: vec![TOKEN_NOT_VALID],
    }
}

fn logout() -> Description {
    Description {
        summary: "Sign out",
        text: "Ends the session of the access token, and that of `refresh` when it is the same user's; with `all`, \
               every session of the user. Their tokens are dead from then on, and the cookie is removed.",
        tag: Tag::Sessions,
        body: Some(Body {
            fields: vec![
                exact("refresh", "A refresh token of the session to end.").nullable(),
                exact("refresh_token", "The older name of `refresh`.").nullable(),
                flag("all", "Whether to end every session.").nullable(),
            ],
            rule: Rule::None,
            is_required: false,
            examples: vec![("this", json!({})), ("everywhere", json!({ "all": true }))],
        }),
        answer: Answer::Envelope { status: 200, message: "Logged out.", data: None, sets_cookie: true },
        failures: Vec::new(),
    }
}

fn me() -> Description {
    Description {
        summary: "Show the signed-in user",
        text: "",
        tag: Tag::Profile,
        body: None,
        answer: shown("Your profile.", "Profile", examples::profile()),
        failures: Vec::new(),
    }
}

fn update_me() -> Description {
    Description {
        summary: "Change the signed-in user's profile",
        text: "Changes the fields that are given and no others.",
        tag: Tag::Profile,
        body: Some(Body {
            fields: vec![
                text("first_name", "").at_most(150),
                text("last_name", "").at_most(150),
                text("bio", "").at_most(2000),
                exact("avatar", "An http or https URL, or nothing.")
                    .at_most(500)
                    .pattern(r"^\s*([Hh][Tt][Tt][Pp][Ss]?:.*)?$"),
                text("country", "").at_most(100),
                text("state", "").at_most(100),
                text("city", "").at_most(100),
                text("address", "").at_most(500),
            ],
            rule: Rule::None,
            is_required: false,
            examples: vec![
                ("name", json!({ "first_name": "Ada", "last_name": "Obi" })),
                (
                    "place",
                    json!({ "city": "Lagos", "country": "Nigeria", "avatar": "https://cdn.example.com/ada.png" }),
                ),
            ],
        }),
        answer: shown("Your profile was updated.", "Profile", examples::profile()),
        failures: Vec::new(),
    }
}

fn live() -> Description {
    Description {
        summary: "Ask whether the process runs",
        text: "",
        tag: Tag::Health,
        body: None,
        answer: shown("The service is running.", "Live", json!({ "status": "ok" })),
        failures: Vec::new(),
    }
}

fn ready() -> Description {
    Description {
        summary: "Ask whether this instance can serve",
        text: "It can when its database and its store answer.",
        tag: Tag::Health,
        body: None,
        answer: shown("The service is ready.", "Ready", json!({ "database": "ok", "store": "ok" })),
        failures: vec![Failure {
            data: Some("NotReady"),
            ..failure(503, "service_unavailable", "The service is not ready.")
        }],
    }
}

const RESET_TEXT: &str = "Every session ends, outstanding links and codes are void, and the owner is told by mail or \
    text message. Nobody is signed in by it.";
const RESET_DONE: Answer = done("Your password was changed. Please sign in with the new one.");
const NEW_PASSWORD: &str = "8 to 128 characters after trimming (the installation may ask for more). Common and \
    guessable ones are refused.";

fn request_reset() -> Description {
    Description {
        summary: "Ask for a new password",
        text: "Sends a link to a stored e-mail address or a code to a stored number. The answer is the same whether \
               there is such an account or not, and whether anything is sent: not more than one a minute is.",
        tag: Tag::Passwords,
        body: Some(Body {
            fields: vec![
                text("email_or_phone", IDENTIFIER).nullable(),
                text("email", "The e-mail address.").nullable(),
                text("phone", "The phone number.").nullable(),
            ],
            rule: Rule::OneOf(&["email_or_phone", "email", "phone"]),
            is_required: true,
            examples: vec![
                ("email", json!({ "email_or_phone": "ada@example.com" })),
                ("phone", json!({ "email_or_phone": "08031234567" })),
            ],
        }),
        answer: done("If there is such an account, instructions to set a new password have been sent."),
        failures: Vec::new(),
    }
}

fn confirm_reset() -> Description {
    Description {
        summary: "Set a new password with a link's token or with a code",
        text: RESET_TEXT,
        tag: Tag::Passwords,
        body: Some(Body {
            fields: vec![
                exact("uidb64", "From the link.").nullable(),
                exact("token", "From the link.").nullable(),
                text("email_or_phone", IDENTIFIER).at_most(254).nullable(),
                text("otp", "The code that was sent.").at_most(32).nullable(),
                text("new_password", NEW_PASSWORD).password().required(),
            ],
            rule: Rule::Forms([["uidb64", "token"], ["email_or_phone", "otp"]]),
            is_required: true,
            examples: vec![
                (
                    "link",
                    json!({ "uidb64": examples::UIDB64, "token": examples::RESET_TOKEN, "new_password": "copper-willow-37-tunnel" }),
                ),
                (
                    "code",
                    json!({ "email_or_phone": "08031234567", "otp": "493027", "new_password": "copper-willow-37-tunnel" }),
                ),
            ],
        }),
        answer: RESET_DONE,
        failures: vec![WRONG_LINK, WRONG_CODE, OVERLOADED],
    }
}

fn confirm_reset_by_link() -> Description {
    Description {
        summary: "Set a new password with what a link's path says",
        text: RESET_TEXT,
        tag: Tag::Passwords,
        body: Some(Body {
            fields: vec![
                text("password", NEW_PASSWORD).password().required(),
                text("password2", "The same again.").password().required(),
            ],
            rule: Rule::None,
            is_required: true,
            examples: vec![(
                "new",
                json!({ "password": "copper-willow-37-tunnel", "password2": "copper-willow-37-tunnel" }),
            )],
        }),
        answer: RESET_DONE,
        failures: vec![WRONG_LINK, OVERLOADED],
    }
}

fn confirm_reset_by_phone() -> Description {
    Description {
        summary: "Set a new password with a code that went to a phone",
        text: RESET_TEXT,
        tag: Tag::Passwords,
        body: Some(Body {
            fields: vec![
                text("phone", "The phone number, in any spelling.").at_most(254).required(),
                text("otp", "The code that was sent.").at_most(32).required(),
                text("new_password", NEW_PASSWORD).password().required(),
                text("new_password_confirm", "The same again.").password().required(),
            ],
            rule: Rule::None,
            is_required: true,
            examples: vec![(
                "new",
                json!({
                    "phone": "08031234567",
                    "otp": "493027",
                    "new_password": "copper-willow-37-tunnel",
                    "new_password_confirm": "copper-willow-37-tunnel"
                }),
            )],
        }),
        answer: RESET_DONE,
        failures: vec![WRONG_CODE, OVERLOADED],
    }
}

fn change_password() -> Description {
    Description {
        summary: "Change the password",
        text: "Every other session ends, outstanding links and codes are void, and the owner is told. A wrong current \
               password is 400, never 401: the token is good.",
        tag: Tag::Passwords,
        body: Some(Body {
            fields: vec![
                text("current_password", "The present one.").at_most(512).password().nullable(),
                text("old_password", "The older name of `current_password`.").at_most(512).password().nullable(),
                text("new_password", NEW_PASSWORD).password().required(),
                text("confirm_password", "Must equal `new_password` when it is given.").password().nullable(),
            ],
            rule: Rule::Either("current_password", "old_password"),
            is_required: true,
            examples: vec![(
                "change",
                json!({ "current_password": "violet-anchor-72-meadow", "new_password": "copper-willow-37-tunnel" }),
            )],
        }),
        answer: Answer::Envelope {
            status: 200,
            message: "Your password was changed. All other sessions were ended.",
            data: None,
            sets_cookie: true,
        },
        failures: vec![WRONG_PASSWORD, LOCKED, OVERLOADED],
    }
}

fn sessions() -> Description {
    Description {
        summary: "List the signed-in user's sessions",
        text: "The newest sign-in first.",
        tag: Tag::Sessions,
        body: None,
        answer: shown("Your sessions.", "Sessions", examples::sessions()),
        failures: vec![OF_LISTS],
    }
}

fn revoke_session() -> Description {
    Description {
        summary: "End one of the signed-in user's sessions",
        text: "Its refresh and access tokens are dead from then on.",
        tag: Tag::Sessions,
        body: None,
        answer: done("The session was ended."),
        failures: vec![failure(404, "not_found", "There is no such session.")],
    }
}

fn revoke_other_sessions() -> Description {
    Description {
        summary: "End all of the signed-in user's sessions but this",
        text: "",
        tag: Tag::Sessions,
        body: None,
        answer: shown("All other sessions were ended.", "Revoked", json!({ "revoked": 2 })),
        failures: Vec::new(),
    }
}

fn login_events() -> Description {
    Description {
        summary: "List the signed-in user's sign-ins",
        text: "What worked, and what somebody tried; the newest first.",
        tag: Tag::Sessions,
        body: None,
        answer: shown("Your sign-ins.", "LoginEvents", examples::login_events()),
        failures: vec![OF_LISTS],
    }
}

fn json_web_keys() -> Description {
    let answer = Answer::Plain {
        content_types: &["application/jwk-set+json"],
        text: "A JWK set (RFC 7517). With HS256 it is empty: that key is a secret.",
        schema: named("JsonWebKeys"),
        example: json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
            "kid": "kPrK_qmxVWaY", "use": "sig", "alg": "EdDSA"
        }] }),
    };
    plain("Get the keys that tokens are verified with", "", answer, Vec::new())
}

fn plain(summary: &'static str, text: &'static str, answer: Answer, failures: Vec<Failure>) -> Description {
    Description { summary, text, tag: Tag::Documents, body: None, answer, failures }
}

const NOT_FOUND: Failure = failure(404, "not_found", "There is nothing at this path.");

fn openapi() -> Description {
    let answer = Answer::Plain {
        content_types: &["application/json"],
        text: "An OpenAPI 3.1 document.",
        schema: json!({ "type": "object", "required": ["openapi", "info", "paths"] }),
        example: json!({ "openapi": "3.1.0", "info": { "title": "bifrons", "version": "0.1.0" }, "paths": {} }),
    };
    plain("Get this document", "", answer, vec![NOT_FOUND])
}

fn docs() -> Description {
    let answer = Answer::Plain {
        content_types: &["text/html"],
        text: "Swagger UI.",
        schema: json!({ "type": "string" }),
        example: json!("<!DOCTYPE html>"),
    };
    plain("Read this document in a browser", "", answer, vec![NOT_FOUND])
}

fn docs_file() -> Description {
    let answer = Answer::Plain {
        content_types: &["text/javascript", "text/css", "image/png"],
        text: "A script, a style sheet or a picture.",
        schema: json!({ "type": "string" }),
        example: json!("..."),
    };
    plain("Get a file of Swagger UI", "", answer, vec![NOT_FOUND])
}
