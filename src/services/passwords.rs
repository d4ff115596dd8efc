//! Passwords: what a new one must be, and the Argon2id kernel that engines run on their threads.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use data_encoding::BASE64_NOPAD;
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    common_passwords::is_common,
    fields::Text,
    imported_hashes::{self, Cost},
    keys::same,
    policy::PasswordPolicy,
};

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
    /// It did not, but it fits the other hash that was given.
    Other,
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
/// The largest cost that may be configured, and that a stored hash may ask for: a planted row must
/// not take the machine down.
pub const MOST_MEMORY_KIB: u32 = 256 * 1024;
/// See [`MOST_MEMORY_KIB`].
pub const MOST_ITERATIONS: u32 = 16;
/// See [`MOST_MEMORY_KIB`].
pub const MOST_LANES: u32 = 8;

/// Which code computes Argon2id (`passwords.kernel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// RustCrypto's `argon2`, as fast as the instructions that the binary was built for.
    #[default]
    Portable,
    /// `argon2-rust`, which finds the processor's vector instructions out by itself. Nobody has audited it, so it is
    /// held against known answers and the portable one before it is used.
    Simd,
}

/// The kernel hashes otherwise than it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("passwords.kernel = \"simd\" does not hash right on this machine: set it to \"portable\"")]
pub struct WrongKernel;

// Digests of `password` under the salt `somesalt`, of Argon2id 1.3: the vectors of the reference implementation
// (phc-winner-argon2, src/test.c), the less costly ones.
const KNOWN_ANSWERS: [(HashParams, &str); 3] = [
    (
        HashParams { memory_kib: 256, iterations: 2, parallelism: 1 },
        "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe",
    ),
    (
        HashParams { memory_kib: 256, iterations: 2, parallelism: 2 },
        "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037",
    ),
    (
        HashParams { memory_kib: 65_536, iterations: 1, parallelism: 1 },
        "f6a5adc1ba723dddef9b5ac1d464e180fcd9dffc9d1cbf76cca2fed795d9ca98",
    ),
];

impl Kernel {
    /// Makes sure that it computes Argon2id: known answers, and what the portable one makes of many passwords, salts
    /// and costs, `params` among them. Costs next to nothing for the portable one, which its own tests cover.
    ///
    /// # Errors
    /// [`WrongKernel`].
    pub fn check(self, params: HashParams) -> Result<(), WrongKernel> {
        if self == Self::Portable {
            return Ok(());
        }
        let (mut own, mut portable) = (Arena::new(self), Arena::new(Self::Portable));
        for (params, digest) in KNOWN_ANSWERS {
            let found = params.digest(&Password::new("password"), b"somesalt", &mut own).ok_or(WrongKernel)?;
            if data_encoding::HEXLOWER.encode(found.as_slice()) != digest {
                return Err(WrongKernel);
            }
        }
        let costs = [(8, 1, 1), (9, 3, 1), (64, 2, 2), (257, 1, 1), (1024, 2, 4)];
        let costs =
            costs.map(|(memory_kib, iterations, parallelism)| HashParams { memory_kib, iterations, parallelism });
        for (turn, params) in costs.into_iter().chain([params]).cycle().take(24).enumerate() {
            let turn = u8::try_from(turn).unwrap_or_default();
            let password = Password::new(&"pässword ".repeat(usize::from(turn)));
            let salt = [turn.wrapping_mul(37); 16];
            let of = |arena: &mut Arena| params.digest(&password, &salt, arena);
            if of(&mut own).is_none_or(|own| of(&mut portable).is_none_or(|other| !same(&own[..], &other[..]))) {
                return Err(WrongKernel);
            }
        }
        Ok(())
    }
}

/// Argon2's working memory, used again for the next hash: taking and giving back that much for every hash costs time,
/// and the allocator does not give it all back.
///
/// What a hash leaves in it is overwritten by the next one, from the first block to the last. Whoever has no next one at
/// hand calls [`Self::wipe`], which takes a twentieth of what a hash of two passes takes.
#[derive(Default)]
pub struct Arena {
    kernel: Kernel,
    blocks: Vec<Block>,
    is_used: bool,
    // Wipes its memory by itself.
    simd: Option<(HashParams, argon2_rust::Hasher)>,
}

impl Arena {
    /// Empty, for this kernel.
    pub const fn new(kernel: Kernel) -> Self {
        Self { kernel, blocks: Vec::new(), is_used: false, simd: None }
    }

    fn blocks(&mut self, params: &Params) -> &mut [Block] {
        let count = params.block_count();
        // A hash of another cost than the usual must not leave its memory behind, nor overwrites all of it.
        if self.blocks.len() != count {
            self.wipe();
            // Given back first: there is never memory for both.
            self.blocks = Vec::new();
            self.blocks.resize(count, Block::default());
        }
        self.is_used = true;
        &mut self.blocks
    }

    /// Whether a hash left anything in it.
    pub const fn is_used(&self) -> bool {
        self.is_used
    }

    /// Overwrites what the last hash left in it.
    pub fn wipe(&mut self) {
        if self.is_used {
            self.blocks.iter_mut().for_each(|block| block.zeroize());
            self.is_used = false;
        }
    }

    fn simd(&mut self, params: HashParams) -> Option<&mut argon2_rust::Hasher> {
        use argon2_rust::{Algorithm, Argon2, Params, Version, params};
        if self.simd.as_ref().is_none_or(|(known, _)| *known != params) {
            let HashParams { memory_kib, iterations, parallelism } = params;
            let built = Params::builder()
                .memory(params::Memory::kib(memory_kib.into()))
                .passes(iterations)
                .lanes(parallelism)
                // A slot is one core's.
                .threads(1)
                .tag_len(params::TagLen::bytes(32))
                .build();
            self.simd = Some((params, Argon2::new(Algorithm::Argon2id, Version::V0x13, built.ok()?).hasher()));
        }
        self.simd.as_mut().map(|(_, hasher)| hasher)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl HashParams {
    /// Hashes to a PHC string. Costs a core for milliseconds: run it behind a gate.
    pub fn hash(self, password: &Password, salt: [u8; 16], arena: &mut Arena) -> Option<String> {
        let digest = self.digest(password, &salt, arena)?;
        Some(self.phc(&salt, digest.as_slice()))
    }

    /// Hashes with the cost and salt of a stored hash: the same password gives the same string. One
    /// that cannot be read has nobody's salt, as it has for [`Self::verify`].
    pub fn hash_like(self, password: &Password, stored: &str, arena: &mut Arena) -> Option<String> {
        let Some(phc) = Phc::parse(stored) else { return self.hash(password, NOBODYS_SALT, arena) };
        let digest = phc.params.digest(password, &phc.salt, arena)?;
        Some(phc.params.phc(&phc.salt, digest.as_slice()))
    }

    /// Hashes under the salt of another hash, so that one digest can be compared with both.
    pub fn hash_beside(self, password: &Password, other: &str, arena: &mut Arena) -> Option<String> {
        let Some(phc) = Phc::parse(other) else { return self.hash(password, NOBODYS_SALT, arena) };
        let digest = self.digest(password, &phc.salt, arena)?;
        Some(self.phc(&phc.salt, digest.as_slice()))
    }

    /// Verifies against a stored PHC string, and against another one of the same salt and cost.
    /// Without a stored one it takes as long, under the other's salt. Where an imported hash is stored, one that the password
    /// does not fit takes [`imported_cost`] besides.
    pub fn verify(self, password: &Password, stored: Option<&str>, other: Option<&str>, arena: &mut Arena) -> Verified {
        let imported = stored.and_then(|stored| imported_hashes::parse(stored).ok());
        if imported.is_some_and(|imported| imported.fits(password)) {
            return Verified::Outdated;
        }
        let (own, other) = (stored.and_then(Phc::parse), other.and_then(Phc::parse));
        let has_own = own.is_some();
        let phc = own.unwrap_or_else(|| {
            let salt = other.as_ref().filter(|other| other.params == self).map(|other| other.salt.clone());
            Phc { params: self, salt: salt.unwrap_or_else(|| NOBODYS_SALT.to_vec()), digest: vec![0; HASH_BYTES] }
        });
        let Some(digest) = phc.params.digest(password, &phc.salt, arena) else { return Verified::No };
        let fits = same(digest.as_slice(), &phc.digest) && has_own;
        let is_like = |other: &Phc| other.params == phc.params && other.salt == phc.salt;
        let other = other.filter(is_like);
        let fits_other = other.is_some_and(|other| same(digest.as_slice(), &other.digest));
        match (fits, fits_other, phc.params == self) {
            (true, _, true) => Verified::Yes,
            (true, _, false) => Verified::Outdated,
            (false, true, _) => Verified::Other,
            (false, false, _) => Verified::No,
        }
    }

    /// Hashes as it is asked for.
    pub fn hash_as(self, password: &Password, how: &HashAs, arena: &mut Arena) -> Option<String> {
        match how {
            HashAs::New(salt) => self.hash(password, *salt, arena),
            HashAs::Like(stored) => self.hash_like(password, stored, arena),
            HashAs::Beside(other) => self.hash_beside(password, other, arena),
        }
    }

    fn digest(self, password: &Password, salt: &[u8], arena: &mut Arena) -> Option<Zeroizing<[u8; HASH_BYTES]>> {
        imported_hashes::at_one_place(move || self.digest_here(password, salt, arena))
    }

    fn digest_here(self, password: &Password, salt: &[u8], arena: &mut Arena) -> Option<Zeroizing<[u8; HASH_BYTES]>> {
        if arena.kernel == Kernel::Simd {
            let mut digest = Zeroizing::new([0; HASH_BYTES]);
            let hasher = arena.simd(self)?;
            return hasher
                .hash_into(password.expose().as_bytes(), salt, digest.as_mut_slice())
                .is_ok()
                .then_some(digest);
        }
        let params = Params::new(self.memory_kib, self.iterations, self.parallelism, Some(HASH_BYTES)).ok()?;
        let mut digest = Zeroizing::new([0; HASH_BYTES]);
        let blocks = arena.blocks(&params);
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone());
        argon2
            .hash_password_into_with_memory(password.expose().as_bytes(), salt, digest.as_mut_slice(), blocks)
            .is_ok()
            .then_some(digest)
    }

    fn phc(self, salt: &[u8], digest: &[u8]) -> String {
        let Self { memory_kib, iterations, parallelism } = self;
        let (salt, digest) = (BASE64_NOPAD.encode(salt), BASE64_NOPAD.encode(digest));
        format!("$argon2id$v=19$m={memory_kib},t={iterations},p={parallelism}${salt}${digest}")
    }
}

/// The salt that stands in where nobody's hash is verified.
pub const NOBODYS_SALT: [u8; 16] = [0; 16];

/// Whether `other` is a hash of another password at the cost and under the salt of `stored`, so that
/// one digest can be compared with both. Without a stored one of ours, any salt will do.
pub fn is_beside(other: &str, stored: Option<&str>) -> bool {
    let Some(other) = Phc::parse(other) else { return false };
    match stored.and_then(Phc::parse) {
        None => true,
        Some(stored) => {
            stored.params == other.params && stored.salt == other.salt && !same(&stored.digest, &other.digest)
        }
    }
}

/// Whether a stored hash is one of ours, with a salt that another can be made under.
pub fn is_own(stored: &str) -> bool {
    Phc::parse(stored).is_some()
}

/// What verifying against a stored hash costs besides our own hash: something when it is an imported
/// one that passwords may fit.
pub fn imported_cost(stored: Option<&str>) -> Option<Cost> {
    stored.and_then(|stored| imported_hashes::parse(stored).ok()).and_then(|imported| imported.cost())
}

/// How a password is to be hashed.
#[derive(Debug, Clone)]
pub enum HashAs {
    /// At today's cost, under this salt.
    New([u8; 16]),
    /// At the cost and under the salt of this hash.
    Like(String),
    /// At today's cost, under the salt of this hash.
    Beside(String),
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

/// Every rule on length and likeness that a new password breaks, as sentences for the client.
/// `personal` is what the person told of themselves. Costs next to nothing.
pub fn judge_form(password: &Password, personal: &[&str], policy: &PasswordPolicy) -> Vec<String> {
    let text = password.expose();
    let length = text.chars().count();
    if length > policy.max_length {
        return vec![format!("This password is too long. It must contain at most {} characters.", policy.max_length)];
    }
    let mut broken = Vec::new();
    if length < policy.min_length {
        broken.push(format!("This password is too short. It must contain at least {} characters.", policy.min_length));
    }
    if personal.iter().any(|known| is_like(text, known)) {
        broken.push("The password is too similar to your other personal information.".to_owned());
    }
    broken
}

// zxcvbn tries every reading of characters that look like letters: a text full of them takes it a
// second. So much of such a text is judged, at either end.
const LOOK_ALIKES: &str = "4@8({[<369&#!1/|0$5+7%2";
const MOST_LOOK_ALIKES: usize = 8;
const JUDGED_CHARACTERS: usize = 20;

/// Why a new password is too easy to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weakness {
    /// It is one of those that many people use.
    Common,
    /// zxcvbn finds it too easy.
    Guessable,
}

impl Weakness {
    /// The sentence for the client.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Common => "This password is too common.",
            Self::Guessable => "This password is too easy to guess.",
        }
    }
}

/// Whether a new password is a common one or easily guessed (zxcvbn). Costs up to tens of
/// milliseconds: run it behind the gate of the hashes.
#[must_use]
pub fn weakness<S: AsRef<str>>(password: &Password, personal: &[S], policy: &PasswordPolicy) -> Option<Weakness> {
    if is_common(password.expose()) {
        return Some(Weakness::Common);
    }
    let personal: Vec<&str> = personal.iter().map(AsRef::as_ref).collect();
    is_easily_guessed(password, &personal, policy).then_some(Weakness::Guessable)
}

fn is_easily_guessed(password: &Password, personal: &[&str], policy: &PasswordPolicy) -> bool {
    let is_good = |text: &str| u8::from(zxcvbn::zxcvbn(text, personal).score()) >= policy.min_score;
    let text = password.expose();
    if text.chars().filter(|c| LOOK_ALIKES.contains(*c)).count() <= MOST_LOOK_ALIKES {
        return !is_good(text);
    }
    let head: Zeroizing<String> = Zeroizing::new(text.chars().take(JUDGED_CHARACTERS).collect());
    let tail: Zeroizing<String> = Zeroizing::new(text.chars().rev().take(JUDGED_CHARACTERS).collect());
    !is_good(&head) && !is_good(&tail)
}

/// The sentence for a password that the look-up of breaches knows.
pub const BREACHED: &str = "This password has appeared in a data breach. Please choose another one.";

fn is_like(password: &str, known: &str) -> bool {
    let (password, known) = (password.to_lowercase(), known.to_lowercase());
    let parts = known.split(|c: char| !c.is_alphanumeric()).chain([known.as_str()]);
    parts.filter(|part| part.chars().count() >= 4).any(|part| {
        let covers = part.chars().count() * 2 >= password.chars().count();
        (password.contains(part) && covers)
            || shares(&password, part, LIKENESS) && strsim::normalized_damerau_levenshtein(&password, part) >= LIKENESS
    })
}

const LIKENESS: f64 = 0.7;

// Whether so much of the longer one can be made of the shorter one's characters at all. Each that cannot is a difference,
// and to count them is less work than to find the differences.
fn shares(one: &str, other: &str, part: f64) -> bool {
    let (mut left, mut longer, mut shared): (Vec<char>, _, _) = (one.chars().collect(), one.chars().count(), 0_u32);
    longer = longer.max(other.chars().count());
    for character in other.chars() {
        if let Some(at) = left.iter().position(|kept| *kept == character) {
            left.swap_remove(at);
            shared += 1;
        }
    }
    // A hair less, so that no rounding decides.
    f64::from(shared) + 0.01 >= part * f64::from(u32::try_from(longer).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::policy::Breaches;

    const CHEAP: HashParams = HashParams { memory_kib: 64, iterations: 1, parallelism: 1 };

    fn policy() -> PasswordPolicy {
        PasswordPolicy { min_length: 8, max_length: 128, min_score: 2, breaches: Breaches::Off }
    }

    #[test]
    fn both_kernels_compute_argon2id() {
        let params = HashParams { memory_kib: 19_456, iterations: 2, parallelism: 1 };
        for kernel in [Kernel::Portable, Kernel::Simd] {
            kernel.check(params).unwrap();
            for (params, digest) in KNOWN_ANSWERS {
                let found = params.digest(&Password::new("password"), b"somesalt", &mut Arena::new(kernel)).unwrap();
                assert_eq!(data_encoding::HEXLOWER.encode(found.as_slice()), digest, "{kernel:?}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn what_shares_too_few_characters_is_not_like_it(one in "[a-eé]{0,12}", other in "[a-eé]{0,12}") {
            let likeness = strsim::normalized_damerau_levenshtein(&one, &other);
            proptest::prop_assert!(shares(&one, &other, LIKENESS) || likeness < LIKENESS, "{likeness}");
            proptest::prop_assert!(shares(&one, &one, 1.0));
        }
    }

    #[test]
    fn what_shares_too_few_characters_is_told_by_them() {
        assert!(!shares("violet-kettle-93", "example", LIKENESS));
        assert!(!shares("aaaaaaaa", "abababab", LIKENESS));
        assert!(shares("abcdefghij", "xyzgfedcba", LIKENESS), "seven of ten, in whatever order");
        assert!(!shares("abcdefghij", "wxyzfedcba", LIKENESS));
    }

    #[test]
    fn a_kernel_keeps_no_memory_of_a_dearer_hash() {
        for kernel in [Kernel::Portable, Kernel::Simd] {
            let mut arena = Arena::new(kernel);
            let dear = HashParams { memory_kib: 4096, ..CHEAP };
            assert!(dear.hash(&Password::new("violet-Kettle-93"), [1; 16], &mut arena).is_some());
            assert!(CHEAP.hash(&Password::new("violet-Kettle-93"), [1; 16], &mut arena).is_some());
            let kept = arena.simd.as_ref().map_or(arena.blocks.len(), |(_, hasher)| hasher.reserved_blocks());
            assert!(kept <= 64, "{kernel:?}: {kept}");
        }
    }

    #[test]
    fn nothing_of_a_hash_is_left_by_the_next_one_or_once_it_is_wiped() {
        let params = HashParams { parallelism: 2, ..CHEAP };
        let hash = |text: &str, arena: &mut Arena| params.hash(&Password::new(text), [1; 16], arena).unwrap();
        let words = |arena: &Arena| arena.blocks.iter().flat_map(|block| block.as_ref().to_vec()).collect::<Vec<u64>>();
        let (mut arena, mut other) = (Arena::default(), Arena::default());
        assert!(!arena.is_used());
        hash("violet-Kettle-93", &mut arena);
        let first = words(&arena);
        let by_itself = hash("hidden-Orbit-41", &mut other);
        assert_eq!(hash("hidden-Orbit-41", &mut arena), by_itself);
        assert!(arena.is_used() && words(&arena) == words(&other) && words(&arena) != first);
        arena.wipe();
        assert!(!arena.is_used() && words(&arena).iter().all(|word| *word == 0));
    }

    #[test]
    fn a_hash_fits_its_password_and_no_other() {
        let hash = CHEAP.hash(&Password::new("correct horse"), [1; 16], &mut Arena::default()).unwrap();
        assert_eq!(
            CHEAP.verify(&Password::new("correct horse"), Some(&hash), None, &mut Arena::default()),
            Verified::Yes
        );
        assert_eq!(
            CHEAP.verify(&Password::new(" correct horse\n"), Some(&hash), None, &mut Arena::default()),
            Verified::Yes
        );
        assert_eq!(
            CHEAP.verify(&Password::new("Correct horse"), Some(&hash), None, &mut Arena::default()),
            Verified::No
        );
        assert_eq!(CHEAP.verify(&Password::new("correct horse"), None, None, &mut Arena::default()), Verified::No);
        let like = |text: &str| {
            HashParams { iterations: 2, ..CHEAP }.hash_like(&Password::new(text), &hash, &mut Arena::default())
        };
        assert_eq!(like("correct horse").as_deref(), Some(hash.as_str()));
        assert_ne!(like("Correct horse").as_deref(), Some(hash.as_str()));
    }

    #[test]
    fn the_kernel_answers_as_the_reference_does() {
        // From the reference implementation: `echo -n password | argon2 somesaltsomesalt -id -m 10 -t 2 -p 1`
        // is reproduced here by the `argon2` crate's own PHC verifier.
        use argon2::password_hash::{PasswordVerifier, phc::PasswordHash};
        let params = HashParams { memory_kib: 1024, iterations: 2, parallelism: 1 };
        let hash = params.hash(&Password::new("password"), *b"somesaltsomesalt", &mut Arena::default()).unwrap();
        let parsed = PasswordHash::new(&hash).unwrap();
        assert!(Argon2::default().verify_password(b"password", &parsed).is_ok());
    }

    #[test]
    fn other_parameters_make_a_hash_outdated() {
        let hash = CHEAP.hash(&Password::new("correct horse"), [1; 16], &mut Arena::default()).unwrap();
        let dearer = HashParams { iterations: 2, ..CHEAP };
        assert_eq!(
            dearer.verify(&Password::new("correct horse"), Some(&hash), None, &mut Arena::default()),
            Verified::Outdated
        );
    }

    #[test]
    fn a_stored_hash_cannot_ask_for_any_cost() {
        let bomb =
            "$argon2id$v=19$m=4000000,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        assert_eq!(CHEAP.verify(&Password::new("x"), Some(bomb), None, &mut Arena::default()), Verified::No);
        for garbled in ["", "!", "$argon2id$", "$argon2id$v=19$m=64,t=1,p=1$$", "$2b$12$abc"] {
            assert_eq!(CHEAP.verify(&Password::new("x"), Some(garbled), None, &mut Arena::default()), Verified::No);
        }
    }

    #[test]
    fn passwords_are_never_cut_short() {
        let hash = CHEAP.hash(&Password::new(&"a".repeat(72)), [1; 16], &mut Arena::default()).unwrap();
        assert_eq!(
            CHEAP.verify(&Password::new(&"a".repeat(73)), Some(&hash), None, &mut Arena::default()),
            Verified::No
        );
    }

    #[test]
    fn another_hash_of_the_same_salt_is_told_apart() {
        let mut arena = Arena::default();
        let hash = |text: &str| CHEAP.hash(&Password::new(text), [1; 16], &mut Arena::default()).unwrap();
        let (stored, other) = (hash("correct horse"), hash("hidden orbit"));
        let mut verify = |text: &str| CHEAP.verify(&Password::new(text), Some(&stored), Some(&other), &mut arena);
        assert_eq!(verify("correct horse"), Verified::Yes);
        assert_eq!(verify("hidden orbit"), Verified::Other);
        assert_eq!(verify("violet kettle"), Verified::No);
    }

    // Made by Django 1.11, of `correct horse battery`.
    const IMPORTED: &str = "pbkdf2_sha1$1$BuF1JYLlqHJg$cWdADCQK3QzciYAJpbJaNi4pShM=";

    #[test]
    fn an_imported_hash_is_outdated_when_the_password_fits() {
        let mut arena = Arena::default();
        let mut verify = |text: &str, stored: &str, other: Option<&str>| {
            CHEAP.verify(&Password::new(text), Some(stored), other, &mut arena)
        };
        assert_eq!(verify("correct horse battery", IMPORTED, None), Verified::Outdated);
        assert_eq!(verify(" correct horse battery\n", IMPORTED, None), Verified::Outdated);
        assert_eq!(verify("correct horse", IMPORTED, None), Verified::No);
        let other = CHEAP.hash_like(&Password::new("hidden orbit"), IMPORTED, &mut Arena::default()).unwrap();
        assert!(is_beside(&other, Some(IMPORTED)));
        assert_eq!(verify("hidden orbit", IMPORTED, Some(&other)), Verified::Other);
        assert_eq!(verify("correct horse battery", IMPORTED, Some(&other)), Verified::Outdated);
        assert_eq!(verify("violet kettle", IMPORTED, Some(&other)), Verified::No);
        let bomb = IMPORTED.replace("$1$", "$999999999$");
        assert_eq!(verify("correct horse battery", &bomb, None), Verified::No);
        assert_eq!(verify("hidden orbit", &bomb, Some(&other)), Verified::Other);
        assert_eq!(verify("!", "!", None), Verified::No);
        assert_eq!(verify("hidden orbit", "!", Some(&other)), Verified::Other);
    }

    #[test]
    fn a_failure_costs_one_hash_of_today_whatever_is_stored() {
        let today = HashParams { memory_kib: 128, ..CHEAP };
        for stored in [None, Some(IMPORTED), Some("!"), Some("md5$a$b")] {
            let mut arena = Arena::default();
            assert_eq!(today.verify(&Password::new("violet kettle"), stored, None, &mut arena), Verified::No);
            assert_eq!(arena.blocks.len(), 128, "{stored:?}");
        }
        let mut arena = Arena::default();
        assert_eq!(
            today.verify(&Password::new("correct horse battery"), Some(IMPORTED), None, &mut arena),
            Verified::Outdated
        );
        assert_eq!(arena.blocks.len(), 0, "a right password pays its own cost only");
    }

    #[test]
    fn only_imported_hashes_cost_something_besides() {
        let native = CHEAP.hash(&Password::new("correct horse"), [1; 16], &mut Arena::default()).unwrap();
        let bomb = IMPORTED.replace("$1$", "$999999999$");
        for stored in [None, Some(native.as_str()), Some("!"), Some(bomb.as_str()), Some("")] {
            assert_eq!(imported_cost(stored), None, "{stored:?}");
        }
        let scheme = imported_hashes::Scheme::Pbkdf2Sha1;
        assert_eq!(imported_cost(Some(IMPORTED)), Some(Cost { scheme, work: 1 }));
    }

    #[test]
    fn every_broken_rule_is_named() {
        let form = |text: &str, personal: &[&str]| judge_form(&Password::new(text), personal, &policy());
        assert_eq!(form("violet-Kettle-93-orbit", &[]), Vec::<String>::new());
        assert_eq!(form("abc", &[]).len(), 1);
        assert!(form("ada.lovelace1", &["ada.lovelace@example.org"])[0].contains("similar"));
        assert!(form(&"x".repeat(129), &[])[0].contains("at most 128"));
    }

    #[test]
    fn guessable_passwords_are_found_at_any_length() {
        let is_guessable = |text: &str| weakness(&Password::new(text), &[""; 0], &policy()).is_some();
        for text in ["password", "12345678", "qwertyuiop", &"a".repeat(128), &"password".repeat(10)] {
            assert!(is_guessable(text), "{text}");
        }
        for text in ["violet-Kettle-93-orbit", &"wT9~ k".repeat(21), &format!("{}vK93!xq-Tz", "a".repeat(40))] {
            assert!(!is_guessable(text), "{text}");
        }
    }

    #[test]
    fn a_password_never_shows_itself() {
        assert_eq!(format!("{:?}", Password::new("secret")), "Password(********)");
    }
}
