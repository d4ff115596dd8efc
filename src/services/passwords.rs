//! Passwords: what a new one must be, and the Argon2id kernel that engines run on their threads.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::BASE64_NOPAD;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::{fields::Text, keys::same, policy::PasswordPolicy};

/// A password as typed, outer white space trimmed; wiped from memory when dropped.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Trims outer white space, as the hashes that are imported were made.
    pub fn new(typed: &str) -> Self {
        Self(Zeroizing::new(typed.trim().to_owned()))
    }

    /// The text, for hashing and for judging.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(********)")
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Text::deserialize(deserializer).map(|text| Self(Zeroizing::new(text.0)))
    }
}

/// Whether a password fitted its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verified {
    /// It did not.
    No,
    /// It did.
    Yes,
    /// It did, and the hash was made with other parameters than today's.
    Outdated,
}

/// Cost of Argon2id (RFC 9106).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashParams {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes.
    pub iterations: u32,
    /// Lanes.
    pub parallelism: u32,
}

const HASH_BYTES: usize = 32;
// The largest cost a stored hash may ask for: a planted row must not take the machine down.
const MOST_MEMORY_KIB: u32 = 256 * 1024;
const MOST_ITERATIONS: u32 = 16;
const MOST_LANES: u32 = 8;

impl HashParams {
    fn argon2(self) -> Option<Argon2<'static>> {
        let params = Params::new(self.memory_kib, self.iterations, self.parallelism, Some(HASH_BYTES)).ok()?;
        Some(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
    }

    /// Hashes to a PHC string. Costs a core for milliseconds: run it behind a gate.
    pub fn hash(self, password: &Password, salt: [u8; 16]) -> Option<String> {
        let mut digest = Zeroizing::new([0; HASH_BYTES]);
        self.argon2()?.hash_password_into(password.expose().as_bytes(), &salt, digest.as_mut_slice()).ok()?;
        Some(self.phc(&salt, digest.as_slice()))
    }

    /// Verifies against a stored PHC string. Without one it takes as long and is `No`.
    pub fn verify(self, password: &Password, stored: Option<&str>) -> Verified {
        let nobodys = self.phc(&[0; 16], &[0; HASH_BYTES]);
        let parsed = stored.and_then(Phc::parse).or_else(|| Phc::parse(&nobodys));
        let Some(phc) = parsed else { return Verified::No };
        let mut digest = Zeroizing::new([0; HASH_BYTES]);
        let Some(argon2) = phc.params.argon2() else { return Verified::No };
        let hashed = argon2.hash_password_into(password.expose().as_bytes(), &phc.salt, digest.as_mut_slice());
        let fits = hashed.is_ok() && same(digest.as_slice(), &phc.digest);
        match (fits && stored.is_some(), phc.params == self) {
            (false, _) => Verified::No,
            (true, true) => Verified::Yes,
            (true, false) => Verified::Outdated,
        }
    }

    fn phc(self, salt: &[u8], digest: &[u8]) -> String {
        let Self { memory_kib, iterations, parallelism } = self;
        let (salt, digest) = (BASE64_NOPAD.encode(salt), BASE64_NOPAD.encode(digest));
        format!("$argon2id$v=19$m={memory_kib},t={iterations},p={parallelism}${salt}${digest}")
    }
}

/// The salt of a stored hash: hashing with it tells whether two passwords are the same.
pub fn salt_of(stored: &str) -> Option<[u8; 16]> {
    Phc::parse(stored)?.salt.try_into().ok()
}

struct Phc {
    params: HashParams,
    salt: Vec<u8>,
    digest: Vec<u8>,
}

impl Phc {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("$argon2id$v=19$")?.split('$');
        let (costs, salt, digest) = (parts.next()?, parts.next()?, parts.next()?);
        let mut costs = costs.split(',');
        let mut cost = |name: &str| costs.next()?.strip_prefix(name)?.parse::<u32>().ok();
        let params = HashParams { memory_kib: cost("m=")?, iterations: cost("t=")?, parallelism: cost("p=")? };
        let is_bounded = params.memory_kib <= MOST_MEMORY_KIB
            && params.iterations <= MOST_ITERATIONS
            && params.parallelism <= MOST_LANES;
        let salt = BASE64_NOPAD.decode(salt.as_bytes()).ok()?;
        let digest = BASE64_NOPAD.decode(digest.as_bytes()).ok()?;
        let is_whole = parts.next().is_none() && digest.len() == HASH_BYTES;
        (is_bounded && is_whole).then_some(Self { params, salt, digest })
    }
}

/// Every rule that a new password breaks, as sentences for the client; empty when it is good.
/// `personal` is what the person told of themselves.
pub fn judge(password: &Password, personal: &[&str], policy: &PasswordPolicy) -> Vec<String> {
    let text = password.expose();
    let length = text.chars().count();
    if length > policy.max_length {
        // Nothing else is looked at: judging costs time that grows with the length.
        return vec![format!("This password is too long. It must contain at most {} characters.", policy.max_length)];
    }
    let mut broken = Vec::new();
    if length < policy.min_length {
        broken.push(format!("This password is too short. It must contain at least {} characters.", policy.min_length));
    }
    if personal.iter().any(|known| is_like(text, known)) {
        broken.push("The password is too similar to your other personal information.".to_owned());
    }
    if u8::from(zxcvbn::zxcvbn(text, personal).score()) < policy.min_score {
        broken.push("This password is too common or too easy to guess.".to_owned());
    }
    broken
}

fn is_like(password: &str, known: &str) -> bool {
    let (password, known) = (password.to_lowercase(), known.to_lowercase());
    let parts = known.split(|c: char| !c.is_alphanumeric()).chain([known.as_str()]);
    parts.filter(|part| part.chars().count() >= 4).any(|part| {
        let covers = part.chars().count() * 2 >= password.chars().count();
        (password.contains(part) && covers) || strsim::normalized_damerau_levenshtein(&password, part) >= 0.7
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: HashParams = HashParams { memory_kib: 64, iterations: 1, parallelism: 1 };

    fn policy() -> PasswordPolicy {
        PasswordPolicy { min_length: 8, max_length: 128, min_score: 2 }
    }

    #[test]
    fn a_hash_fits_its_password_and_no_other() {
        let hash = CHEAP.hash(&Password::new("correct horse"), [1; 16]).unwrap();
        assert_eq!(CHEAP.verify(&Password::new("correct horse"), Some(&hash)), Verified::Yes);
        assert_eq!(CHEAP.verify(&Password::new(" correct horse\n"), Some(&hash)), Verified::Yes);
        assert_eq!(CHEAP.verify(&Password::new("Correct horse"), Some(&hash)), Verified::No);
        assert_eq!(CHEAP.verify(&Password::new("correct horse"), None), Verified::No);
        assert_eq!(salt_of(&hash), Some([1; 16]));
    }

    #[test]
    fn the_kernel_answers_as_the_reference_does() {
        // From the reference implementation: `echo -n password | argon2 somesaltsomesalt -id -m 10 -t 2 -p 1`
        // is reproduced here by the `argon2` crate's own PHC verifier.
        use argon2::password_hash::{PasswordVerifier, phc::PasswordHash};
        let params = HashParams { memory_kib: 1024, iterations: 2, parallelism: 1 };
        let hash = params.hash(&Password::new("password"), *b"somesaltsomesalt").unwrap();
        let parsed = PasswordHash::new(&hash).unwrap();
        assert!(Argon2::default().verify_password(b"password", &parsed).is_ok());
    }

    #[test]
    fn other_parameters_make_a_hash_outdated() {
        let hash = CHEAP.hash(&Password::new("correct horse"), [1; 16]).unwrap();
        let dearer = HashParams { iterations: 2, ..CHEAP };
        assert_eq!(dearer.verify(&Password::new("correct horse"), Some(&hash)), Verified::Outdated);
    }

    #[test]
    fn a_stored_hash_cannot_ask_for_any_cost() {
        let bomb =
            "$argon2id$v=19$m=4000000,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        assert_eq!(CHEAP.verify(&Password::new("x"), Some(bomb)), Verified::No);
        for garbled in ["", "!", "$argon2id$", "$argon2id$v=19$m=64,t=1,p=1$$", "$2b$12$abc"] {
            assert_eq!(CHEAP.verify(&Password::new("x"), Some(garbled)), Verified::No);
        }
    }

    #[test]
    fn passwords_are_never_cut_short() {
        let hash = CHEAP.hash(&Password::new(&"a".repeat(72)), [1; 16]).unwrap();
        assert_eq!(CHEAP.verify(&Password::new(&"a".repeat(73)), Some(&hash)), Verified::No);
    }

    #[test]
    fn every_broken_rule_is_named() {
        let judge = |text: &str, personal: &[&str]| judge(&Password::new(text), personal, &policy());
        assert_eq!(judge("violet-Kettle-93-orbit", &[]), Vec::<String>::new());
        assert_eq!(judge("abc", &[]).len(), 2);
        assert_eq!(judge("password", &[]).len(), 1);
        assert!(judge("ada.lovelace1", &["ada.lovelace@example.org"]).iter().any(|rule| rule.contains("similar")));
        assert!(judge(&"x".repeat(129), &[])[0].contains("at most 128"));
        assert!(judge(&"wT9~ k".repeat(21), &[]).is_empty());
    }

    #[test]
    fn a_password_never_shows_itself() {
        assert_eq!(format!("{:?}", Password::new("secret")), "Password(********)");
    }
}
