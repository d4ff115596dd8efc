//! Codes by time (RFC 6238) as authenticator apps make them: SHA-1, six digits, a step of 30 seconds. The step
//! before and the one after are taken too, for clocks that differ, and none whose code is spent.

use std::fmt::Write as _;

use time::OffsetDateTime;
use totp_rs::{Builder, Secret, Totp};
use zeroize::Zeroizing;

const STEP_SECONDS: i64 = 30;
const SECRET_BYTES: usize = 20;

/// What a user's authenticator and the gateway share (RFC 4226, 4: 160 bits). No `Debug`, no `Serialize`.
#[derive(Clone)]
pub struct TotpSecret(Zeroizing<[u8; SECRET_BYTES]>);

impl TotpSecret {
    /// Of random bytes.
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// As a person types it into an authenticator.
    pub fn to_base32(&self) -> String {
        data_encoding::BASE32_NOPAD.encode(self.0.as_slice())
    }

    /// Reads what [`Self::to_base32`] wrote.
    pub fn from_base32(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(data_encoding::BASE32_NOPAD.decode(text.as_bytes()).ok()?);
        bytes.as_slice().try_into().ok().map(Self::new)
    }

    /// As an authenticator reads it from a picture. Neither name may hold a colon.
    pub fn uri(&self, issuer: &str, account: &str) -> String {
        let (issuer, account, secret) = (percent_encoded(issuer), percent_encoded(account), self.to_base32());
        format!("otpauth://totp/{issuer}:{account}?secret={secret}&issuer={issuer}&algorithm=SHA1&digits=6&period=30")
    }

    fn totp(&self) -> Totp {
        // Algorithm, digits and step as above are what the builder begins with; the neighbours are ours to look at.
        let step = STEP_SECONDS.unsigned_abs();
        Builder::new()
            .with_secret(Secret::new_stack(*self.0))
            .with_skew(0)
            .with_step_duration(step)
            .build_noncompliant()
    }

    /// The code at a time, for tests.
    #[cfg(test)]
    pub fn code(&self, at: OffsetDateTime) -> String {
        self.totp().generate(u64::try_from(at.unix_timestamp()).unwrap()).to_string()
    }
}

/// A user's authenticator.
#[derive(Clone)]
pub struct TotpFactor {
    /// Shared with it.
    pub secret: TotpSecret,
    /// The codes of this step and of those before it are spent.
    pub last_step: i64,
}

impl TotpFactor {
    /// One whose codes are all unspent.
    pub const fn new(secret: TotpSecret) -> Self {
        Self { secret, last_step: 0 }
    }

    /// The step at `now`, or next to it, whose code this is, if it is not spent.
    pub fn step_of(&self, typed: &str, now: OffsetDateTime) -> Option<i64> {
        // Apps show it in two groups.
        let typed: String = typed.chars().filter(|letter| !letter.is_whitespace() && *letter != '-').collect();
        let (totp, present) = (self.secret.totp(), now.unix_timestamp().div_euclid(STEP_SECONDS));
        let is_of = |step: &i64| {
            let began = u64::try_from(step * STEP_SECONDS).unwrap_or_default();
            totp.check(&typed, began).is_some()
        };
        (present - 1..=present + 1).filter(|step| *step > self.last_step).find(is_of)
    }
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~@".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn secret() -> TotpSecret {
        TotpSecret::new(*b"12345678901234567890")
    }

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    #[test]
    fn codes_are_those_of_the_rfc() {
        // RFC 6238, appendix B; of its eight digits the last six.
        for (seconds, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(secret().code(at(seconds)), code);
            assert_eq!(TotpFactor::new(secret()).step_of(code, at(seconds)), Some(seconds / 30), "{seconds}");
        }
    }

    #[test]
    fn the_steps_beside_the_present_one_are_taken_and_no_others() {
        let (factor, now) = (TotpFactor::new(secret()), at(1_234_567_890));
        let taken = |steps: i64| factor.step_of(&secret().code(now + time::Duration::seconds(steps * 30)), now);
        let present = now.unix_timestamp() / 30;
        assert_eq!([-2, -1, 0, 1, 2].map(taken), [None, Some(present - 1), Some(present), Some(present + 1), None]);
        let began = at(present * 30);
        let code = secret().code(began);
        assert!(factor.step_of(&code, began - Duration::from_secs(30)).is_some());
        assert!(factor.step_of(&code, began - Duration::from_secs(31)).is_none());
        assert!(factor.step_of(&code, began + Duration::from_secs(59)).is_some());
        assert!(factor.step_of(&code, began + Duration::from_secs(60)).is_none());
    }

    #[test]
    fn a_spent_step_and_those_before_it_are_not_taken_again() {
        let now = at(1_234_567_890);
        let present = now.unix_timestamp() / 30;
        let factor = TotpFactor { last_step: present, ..TotpFactor::new(secret()) };
        let taken = |steps: i64| factor.step_of(&secret().code(now + time::Duration::seconds(steps * 30)), now);
        assert_eq!([-1, 0, 1].map(taken), [None, None, Some(present + 1)]);
    }

    #[test]
    fn what_is_no_code_is_none_and_groups_do_not_matter() {
        let (factor, now) = (TotpFactor::new(secret()), at(1_234_567_890));
        for typed in ["", "5924", "0005924", "+05924", "00592a", "٠٠٥٩٢٤", "005 92"] {
            assert_eq!(factor.step_of(typed, now), None, "{typed}");
        }
        for typed in ["005924", "005 924", "005-924"] {
            assert!(factor.step_of(typed, now).is_some(), "{typed}");
        }
    }

    #[test]
    fn the_uri_is_as_authenticators_read_it() {
        assert_eq!(
            secret().uri("Bifrons & Co", "ada+1@example.org"),
            "otpauth://totp/Bifrons%20%26%20Co:ada%2B1@example.org?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\
             &issuer=Bifrons%20%26%20Co&algorithm=SHA1&digits=6&period=30"
        );
        let again = TotpSecret::from_base32(&secret().to_base32()).unwrap();
        assert_eq!(again.to_base32(), secret().to_base32());
        for text in ["", "GEZDGNBV", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJ1", "é"] {
            assert!(TotpSecret::from_base32(text).is_none(), "{text}");
        }
    }
}
