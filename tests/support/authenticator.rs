//! An authenticator app of the tests' own (RFC 6238), without the library that the gateway uses, and accounts that have
//! one.

use super::worlds::{Account, Side};
use super::{Answer, PASSWORD, Request, pause};
use data_encoding::BASE32_NOPAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::json;
use sha1::Sha1;
use std::time::Duration;

/// What somebody keeps on their phone.
#[derive(Clone, Debug)]
pub struct Authenticator {
    secret: Vec<u8>,
    last: u64,
}

impl Authenticator {
    pub fn new(base32: &str) -> Self {
        Self { secret: BASE32_NOPAD.decode(base32.as_bytes()).expect("base32"), last: 0 }
    }

    /// The secret as it was typed in.
    pub fn base32(&self) -> String {
        BASE32_NOPAD.encode(&self.secret)
    }

    /// A code that was not shown before; the gateway takes it for half a minute at least.
    pub fn code(&mut self) -> String {
        let step = step().max(self.last + 1);
        // Further ahead than one step it would not be taken yet.
        while step > self::step() + 1 {
            pause(Duration::from_millis(200));
        }
        self.last = step;
        self.of(step)
    }

    /// The code that was shown last.
    pub fn same_code(&self) -> String {
        self.of(self.last)
    }

    /// A code that is wrong for some minutes.
    pub fn wrong_code(&self) -> String {
        let near: Vec<String> = (step() - 5..step() + 20).map(|step| self.of(step)).collect();
        let free = (0..100).map(|number| format!("{number:06}")).find(|code| !near.contains(code));
        free.expect("a hundred codes are more than a few")
    }

    fn of(&self, step: u64) -> String {
        let mut mac = Hmac::<Sha1>::new_from_slice(&self.secret).expect("HMAC takes a key of any length");
        mac.update(&step.to_be_bytes());
        let digest = mac.finalize().into_bytes();
        let offset = usize::from(digest.last().expect("twenty bytes") & 15);
        let word: [u8; 4] = digest.get(offset..offset + 4).and_then(|part| part.try_into().ok()).expect("four bytes");
        format!("{:06}", (u32::from_be_bytes(word) & 0x7fff_ffff) % 1_000_000)
    }
}

#[expect(clippy::disallowed_methods, reason = "an authenticator has a clock of its own")]
fn step() -> u64 {
    let now = time::OffsetDateTime::now_utc();
    u64::try_from(now.unix_timestamp()).expect("a time after 1970") / 30
}

/// An account with a second factor, signed in in the session that set it up.
#[derive(Clone, Debug)]
pub struct Guarded {
    pub account: Account,
    pub authenticator: Authenticator,
    pub recovery_codes: Vec<String>,
}

/// Sets the second factor of an account up.
pub fn guard(side: &mut Side<'_>, account: Account) -> Guarded {
    let begun = side.post_as(&account.access, "auth/mfa/totp/", &json!({ "current_password": account.password }));
    assert_eq!(begun.status, 200, "{}", begun.shown());
    let mut authenticator = Authenticator::new(&begun.text("data.secret"));
    let code = json!({ "code": authenticator.code() });
    let answer = side.post_as(&account.access, "auth/mfa/totp/confirm/", &code);
    assert_eq!(answer.status, 200, "{}", answer.shown());
    Guarded { account, authenticator, recovery_codes: recovery_codes_of(&answer) }
}

/// The codes of an answer.
pub fn recovery_codes_of(answer: &Answer) -> Vec<String> {
    let codes = answer.at("data.recovery_codes");
    let codes = codes.as_array().unwrap_or_else(|| panic!("no recovery codes: {}", answer.shown()));
    codes.iter().filter_map(|code| code.as_str()).map(str::to_owned).collect()
}

/// The first step of a sign-in, by password.
pub fn first_step(email: &str) -> Request {
    Request::post("/api/{v}/auth/login/", &json!({ "email_or_phone": email, "password": PASSWORD }))
}

/// The second step.
pub fn second_step(token: &str, method: &str, code: &str) -> Request {
    Request::post("/api/{v}/auth/mfa/verify/", &json!({ "mfa_token": token, "method": method, "code": code }))
}

/// The token of an answer that asks for the second factor, and gives nothing that signs in.
#[track_caller]
pub fn asked(answer: &Answer) -> String {
    assert_eq!((answer.status, answer.at("data.mfa_required")), (200, json!(true)), "{}", answer.shown());
    assert_eq!(answer.at("data.methods"), json!(["totp", "recovery_code"]), "{}", answer.shown());
    assert_eq!(answer.all("set-cookie").count(), 0, "a cookie before the second factor");
    assert!(!answer.shown().contains("\"eyJ"), "a token before the second factor: {}", answer.shown());
    answer.text("data.mfa_token")
}

impl Guarded {
    /// The password is right; the token for the second step.
    pub fn begin(&self, side: &mut Side<'_>) -> String {
        let answer = side.send(&first_step(&self.account.email));
        asked(&answer)
    }

    /// A further session, with the next recovery code.
    pub fn enter(&mut self, side: &mut Side<'_>) -> Answer {
        let token = self.begin(side);
        let code = self.recovery_codes.pop().expect("an unused recovery code");
        let answer = side.send(&second_step(&token, "recovery_code", &code));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        answer
    }
}
