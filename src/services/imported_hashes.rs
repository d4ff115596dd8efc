//! Password hashes as Django keeps them in `auth_user.password`: whether a password fits one and at
//! what cost, and the work that lets a failed sign-in take as long whoever it was meant for.

use std::{collections::BTreeMap, fmt, hint::black_box, str::FromStr};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use data_encoding::{BASE64, BASE64_NOPAD, HEXLOWER};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    keys::same,
    passwords::{MOST_ITERATIONS, MOST_LANES, MOST_MEMORY_KIB, NOBODYS_SALT, Password},
};

// What a hash may ask for: a planted row must not take the machine down. Everything that a Django
// up to 6.1 makes by default is far within, and no bound takes a core of today for much more than a
// second.

/// Django 1.11 has 36 000, Django 6.1 has 1 500 000.
pub const MOST_PBKDF2_ITERATIONS: u32 = 2_000_000;
/// Log₂ of the rounds; Django has 12.
pub const MOST_BCRYPT_COST: u32 = 14;
/// Memory of one scrypt, `128·n·r`; Django has 16 MiB.
pub const MOST_SCRYPT_BYTES: u64 = 64 * 1024 * 1024;
/// Scrypt's `r`; Django has 8.
pub const MOST_SCRYPT_R: u32 = 32;
/// Scrypt's `p`; Django has 5, and had 1.
pub const MOST_SCRYPT_P: u32 = 16;
/// Scrypt's time, `n·r·p`; Django has 655 360.
pub const MOST_SCRYPT_MIXES: u64 = 4 * 1024 * 1024;
/// Argon2's time, KiB times passes; Django has 204 800. Each cost has the bounds of our own hashes
/// besides.
pub const MOST_ARGON2_KIB: u64 = 1024 * 1024;
/// Sets of scrypt and Argon2 parameters in a [`Profile`]: every failed sign-in pays each of them.
pub const MOST_MEMORY_HARD: usize = 4;

const LEAST_BCRYPT_COST: u32 = 4;
// Django's column has 128 characters.
const MOST_TEXT: usize = 512;
const LEAST_ARGON2_SALT: usize = 8;

/// Why a stored hash is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another scheme, or no hash at all.
    #[error("the password hash is of no scheme that can be imported")]
    Unknown,
    /// The scheme is known, the rest cannot be read.
    #[error("the password hash names its scheme, but is not as Django writes it")]
    Malformed,
    /// It asks for more work or memory than the bounds here allow.
    #[error("the password hash asks for more work or memory than a sign-in may cost")]
    TooCostly,
}

/// The two varieties of Argon2 that Django has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variety {
    /// Argon2i, before Django 3.2.
    I,
    /// Argon2id.
    Id,
}

/// What a verification runs. Two hashes of one scheme differ in the amount of work only, and the
/// difference can be run by itself; what fills memory has no such difference, so that each set of
/// its parameters is a scheme of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// PBKDF2 with HMAC-SHA-256; the work is its iterations.
    Pbkdf2Sha256,
    /// PBKDF2 with HMAC-SHA-1; the work is its iterations.
    Pbkdf2Sha1,
    /// Bcrypt, of the password or of its SHA-256, which takes no other time; the work is its rounds.
    Bcrypt,
    /// Scrypt (RFC 7914); the work is 1.
    Scrypt {
        /// CPU and memory cost, a power of two.
        n: u32,
        /// Block size.
        r: u32,
        /// Parallelism.
        p: u32,
    },
    /// Argon2 (RFC 9106); the work is 1.
    Argon2 {
        /// Which of them.
        variety: Variety,
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes.
        iterations: u32,
        /// Lanes.
        lanes: u32,
    },
}

impl Scheme {
    fn scrypt([n, r, p]: [u32; 3]) -> Result<Self, Refused> {
        if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 {
            return Err(Refused::Malformed);
        }
        let mixes = u64::from(n).saturating_mul(u64::from(r));
        let is_bounded = r <= MOST_SCRYPT_R
            && p <= MOST_SCRYPT_P
            && mixes.saturating_mul(128) <= MOST_SCRYPT_BYTES
            && mixes.saturating_mul(u64::from(p)) <= MOST_SCRYPT_MIXES;
        is_bounded.then_some(Self::Scrypt { n, r, p }).ok_or(Refused::TooCostly)
    }

    fn argon2(variety: &str, [memory_kib, iterations, lanes]: [u32; 3]) -> Result<Self, Refused> {
        let variety = match variety {
            "argon2i" => Variety::I,
            "argon2id" => Variety::Id,
            _ => return Err(Refused::Malformed),
        };
        let is_bounded = memory_kib <= MOST_MEMORY_KIB
            && iterations <= MOST_ITERATIONS
            && lanes <= MOST_LANES
            && u64::from(memory_kib).saturating_mul(u64::from(iterations)) <= MOST_ARGON2_KIB;
        if !is_bounded {
            return Err(Refused::TooCostly);
        }
        Params::new(memory_kib, iterations, lanes, None).or(Err(Refused::Malformed))?;
        Ok(Self::Argon2 { variety, memory_kib, iterations, lanes })
    }

    /// KiB written, for what fills memory.
    fn kib_written(self) -> Option<u64> {
        match self {
            Self::Pbkdf2Sha256 | Self::Pbkdf2Sha1 | Self::Bcrypt => None,
            Self::Scrypt { n, r, p } => Some(u64::from(n) * u64::from(r) * u64::from(p) / 8),
            Self::Argon2 { memory_kib, iterations, .. } => Some(u64::from(memory_kib) * u64::from(iterations)),
        }
    }
}

/// As it is kept beside the greatest work: Django's word, and what is fixed of the parameters.
impl fmt::Display for Scheme {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pbkdf2Sha256 => formatter.write_str("pbkdf2_sha256"),
            Self::Pbkdf2Sha1 => formatter.write_str("pbkdf2_sha1"),
            Self::Bcrypt => formatter.write_str("bcrypt"),
            Self::Scrypt { n, r, p } => write!(formatter, "scrypt$n={n},r={r},p={p}"),
            Self::Argon2 { variety, memory_kib, iterations, lanes } => {
                let variety = match variety {
                    Variety::I => "argon2i",
                    Variety::Id => "argon2id",
                };
                write!(formatter, "{variety}$m={memory_kib},t={iterations},p={lanes}")
            }
        }
    }
}

impl FromStr for Scheme {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        match text.split_once('$') {
            None if text == "pbkdf2_sha256" => Ok(Self::Pbkdf2Sha256),
            None if text == "pbkdf2_sha1" => Ok(Self::Pbkdf2Sha1),
            None if text == "bcrypt" => Ok(Self::Bcrypt),
            Some(("scrypt", costs)) => Self::scrypt(named(costs, ["n=", "r=", "p="])?),
            Some((variety @ ("argon2i" | "argon2id"), costs)) => {
                Self::argon2(variety, named(costs, ["m=", "t=", "p="])?)
            }
            _ => Err(Refused::Unknown),
        }
    }
}

/// What verifying one hash takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cost {
    /// What is run.
    pub scheme: Scheme,
    /// How much of it: see [`Scheme`].
    pub work: u64,
}

impl Cost {
    /// Refuses what no verification may cost.
    fn bounded(scheme: Scheme, work: u64) -> Result<Self, Refused> {
        let (least, most) = match scheme {
            Scheme::Pbkdf2Sha256 | Scheme::Pbkdf2Sha1 => (1, u64::from(MOST_PBKDF2_ITERATIONS)),
            Scheme::Bcrypt => (1 << LEAST_BCRYPT_COST, 1 << MOST_BCRYPT_COST),
            Scheme::Scrypt { n, r, p } => {
                Scheme::scrypt([n, r, p])?;
                (1, 1)
            }
            Scheme::Argon2 { memory_kib, iterations, lanes, .. } => {
                Scheme::argon2("argon2id", [memory_kib, iterations, lanes])?;
                (1, 1)
            }
        };
        match work {
            _ if work < least => Err(Refused::Malformed),
            _ if work > most => Err(Refused::TooCostly),
            _ => Ok(Self { scheme, work }),
        }
    }

    /// Does the work. None when the parameters fit no such function.
    fn run(self, password: &[u8], salt: &[u8], length: usize) -> Option<Zeroizing<Vec<u8>>> {
        at_one_place(move || self.work(password, salt, length))
    }

    fn work(self, password: &[u8], salt: &[u8], length: usize) -> Option<Zeroizing<Vec<u8>>> {
        let mut digest = Zeroizing::new(vec![0; length]);
        match self.scheme {
            Scheme::Pbkdf2Sha256 => {
                let rounds = u32::try_from(self.work).ok()?;
                // Compiled with its crate, so that it is fast in debug builds too; not for few rounds.
                match pbkdf2::Params::new(rounds) {
                    Ok(params) => {
                        let algorithm = pbkdf2::Algorithm::Pbkdf2Sha256;
                        pbkdf2::pbkdf2_hmac_with_params(password, salt, algorithm, params, &mut digest);
                    }
                    Err(_) => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, rounds, &mut digest),
                }
            }
            Scheme::Pbkdf2Sha1 => {
                pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, u32::try_from(self.work).ok()?, &mut digest);
            }
            Scheme::Bcrypt => {
                // Cuts at 72 bytes, as Django's bcrypt did.
                let parts = bcrypt::hash_with_salt(password, self.work.checked_ilog2()?, salt.try_into().ok()?);
                digest = Zeroizing::new(parts.ok()?.to_string().into_bytes());
            }
            Scheme::Scrypt { n, r, p } => {
                let params = scrypt::Params::new(u8::try_from(n.checked_ilog2()?).ok()?, r, p).ok()?;
                scrypt::scrypt(password, salt, &params, &mut digest).ok()?;
            }
            Scheme::Argon2 { variety, memory_kib, iterations, lanes } => {
                let algorithm = match variety {
                    Variety::I => Algorithm::Argon2i,
                    Variety::Id => Algorithm::Argon2id,
                };
                let params = Params::new(memory_kib, iterations, lanes, Some(length)).ok()?;
                // Memory of its own: in the arena of the native hashes, its state from before would
                // show in the time.
                let mut blocks = vec![Block::default(); params.block_count()];
                let argon2 = Argon2::new(algorithm, Version::V0x13, params);
                let hashed = argon2.hash_password_into_with_memory(password, salt, &mut digest, &mut blocks);
                blocks.iter_mut().for_each(|block| block.zeroize());
                hashed.ok()?;
            }
        }
        Some(digest)
    }
}

/// Works where on its page the stack always is, whoever calls, and by the same machine code. A hash that is verified and
/// one that is made up for are called from different depths; where a digest's state then lay across two cache lines, one
/// took a tenth longer than the other, and time told them apart.
#[inline(never)]
pub fn at_one_place<T>(work: impl FnOnce() -> T) -> T {
    #[repr(align(4096))]
    struct Page(#[expect(dead_code, reason = "what counts is where it is")] u8);
    let mut page = Page(0);
    black_box(&mut page);
    let done = work();
    black_box(&mut page);
    done
}

/// What stands in Django's column.
pub enum Imported {
    /// No password fits (Django's `!…`).
    Unusable,
    /// A hash that a password may fit.
    Hash(Hash),
}

/// A hash, read and found within the bounds.
pub struct Hash {
    cost: Cost,
    salt: Vec<u8>,
    digest: Vec<u8>,
    // The password's SHA-256 in hexadecimal is hashed, not the password.
    is_of_digest: bool,
}

impl Imported {
    /// What verifying it takes; nothing when no password fits.
    pub fn cost(&self) -> Option<Cost> {
        match self {
            Self::Unusable => None,
            Self::Hash(hash) => Some(hash.cost),
        }
    }

    /// Whether the password fits. Costs a core for up to a second or two: run it behind a gate.
    pub fn fits(&self, password: &Password) -> bool {
        let Self::Hash(hash) = self else { return false };
        let text = password.expose().as_bytes();
        let first = hash.is_of_digest.then(|| Zeroizing::new(HEXLOWER.encode(&Sha256::digest(text))));
        let hashed = first.as_ref().map_or(text, |first| first.as_bytes());
        let digest = hash.cost.run(hashed, &hash.salt, hash.digest.len());
        digest.is_some_and(|digest| same(&digest, &hash.digest))
    }
}

/// Reads a hash as Django stores it. Costs next to nothing.
///
/// # Errors
/// [`Refused`] for what Django does not write, and for what asks for too much.
pub fn parse(text: &str) -> Result<Imported, Refused> {
    if text.starts_with('!') {
        return Ok(Imported::Unusable);
    }
    let (word, rest) = text.split_once('$').ok_or(Refused::Unknown)?;
    let read = match word {
        "pbkdf2_sha256" => |rest: &str| pbkdf2_of(Scheme::Pbkdf2Sha256, 32, rest),
        "pbkdf2_sha1" => |rest: &str| pbkdf2_of(Scheme::Pbkdf2Sha1, 20, rest),
        "bcrypt_sha256" => |rest: &str| bcrypt_of(true, rest),
        "bcrypt" => |rest: &str| bcrypt_of(false, rest),
        "scrypt" => scrypt_of,
        "argon2" => argon2_of,
        _ => return Err(Refused::Unknown),
    };
    if text.len() > MOST_TEXT {
        return Err(Refused::Malformed);
    }
    read(rest).map(Imported::Hash)
}

// iterations$salt$digest
fn pbkdf2_of(scheme: Scheme, length: usize, rest: &str) -> Result<Hash, Refused> {
    let [iterations, salt, digest] = fields(rest)?;
    let cost = Cost::bounded(scheme, number(iterations)?.into())?;
    let digest = BASE64.decode(digest.as_bytes()).or(Err(Refused::Malformed))?;
    hash(cost, salt.as_bytes().to_vec(), digest, length..=length)
}

// $2b$cost$salt and digest, 60 characters in all
fn bcrypt_of(is_of_digest: bool, rest: &str) -> Result<Hash, Refused> {
    let ["", "2a" | "2b" | "2y", log, _] = fields(rest)? else { return Err(Refused::Malformed) };
    let rounds = log.parse::<u32>().ok().and_then(|log| 1_u64.checked_shl(log)).ok_or(Refused::Malformed)?;
    let cost = Cost::bounded(Scheme::Bcrypt, rounds)?;
    let parts = rest.parse::<bcrypt::HashParts>().or(Err(Refused::Malformed))?;
    let digest = parts.to_string().into_bytes();
    Ok(Hash { cost, salt: parts.get_salt_raw().to_vec(), digest, is_of_digest })
}

// n$salt$r$p$digest
fn scrypt_of(rest: &str) -> Result<Hash, Refused> {
    let [n, salt, r, p, digest] = fields(rest)?;
    let cost = Cost::bounded(Scheme::scrypt([number(n)?, number(r)?, number(p)?])?, 1)?;
    let digest = BASE64.decode(digest.as_bytes()).or(Err(Refused::Malformed))?;
    hash(cost, salt.as_bytes().to_vec(), digest, 64..=64)
}

// variety$v=19$m=…,t=…,p=…$salt$digest, the end of a PHC string
fn argon2_of(rest: &str) -> Result<Hash, Refused> {
    let [variety, "v=19", costs, salt, digest] = fields(rest)? else { return Err(Refused::Malformed) };
    let cost = Cost::bounded(Scheme::argon2(variety, named(costs, ["m=", "t=", "p="])?)?, 1)?;
    let salt = BASE64_NOPAD.decode(salt.as_bytes()).or(Err(Refused::Malformed))?;
    let digest = BASE64_NOPAD.decode(digest.as_bytes()).or(Err(Refused::Malformed))?;
    if salt.len() < LEAST_ARGON2_SALT {
        return Err(Refused::Malformed);
    }
    // 16 bytes by the argon2-cffi of those days, 32 by today's.
    hash(cost, salt, digest, 16..=64)
}

fn hash(cost: Cost, salt: Vec<u8>, digest: Vec<u8>, length: std::ops::RangeInclusive<usize>) -> Result<Hash, Refused> {
    let is_whole = !salt.is_empty() && length.contains(&digest.len());
    is_whole.then_some(Hash { cost, salt, digest, is_of_digest: false }).ok_or(Refused::Malformed)
}

fn fields<const N: usize>(rest: &str) -> Result<[&str; N], Refused> {
    rest.split('$').collect::<Vec<_>>().try_into().or(Err(Refused::Malformed))
}

fn named(costs: &str, names: [&str; 3]) -> Result<[u32; 3], Refused> {
    let costs: [&str; 3] = costs.split(',').collect::<Vec<_>>().try_into().or(Err(Refused::Malformed))?;
    let mut numbers = [0; 3];
    for ((to, cost), name) in numbers.iter_mut().zip(costs).zip(names) {
        *to = number(cost.strip_prefix(name).ok_or(Refused::Malformed)?)?;
    }
    Ok(numbers)
}

/// A number as Python prints it; one that has no room here is too much.
fn number(text: &str) -> Result<u32, Refused> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty();
    match text.parse() {
        _ if !is_number || (text.starts_with('0') && text != "0") => Err(Refused::Malformed),
        parsed => parsed.or(Err(Refused::TooCostly)),
    }
}

/// The greatest cost of each scheme among an installation's imported users. A failed sign-in costs
/// all of it besides today's own hash, whoever it was meant for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    greatest: BTreeMap<Scheme, u64>,
    left_out: usize,
}

impl Profile {
    /// Of what table `imported_hashes` says.
    pub fn of_rows(rows: Vec<(String, i64)>) -> Self {
        let cost = |(scheme, work): (String, i64)| {
            Some(Cost { scheme: scheme.parse().ok()?, work: u64::try_from(work).ok()? })
        };
        rows.into_iter().filter_map(cost).collect()
    }

    /// Whether there is nothing to make up.
    pub fn is_empty(&self) -> bool {
        self.greatest.is_empty()
    }

    /// Parameter sets beyond [`MOST_MEMORY_HARD`], the lightest ones: who has a hash of such a set
    /// can be told by time, and the operator should be.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// What a failed sign-in has yet to do, when the hash of the user it was meant for has cost
    /// `done`. Together with `done` it is the same work for everyone.
    pub fn missing(&self, done: Option<Cost>) -> Vec<Cost> {
        let mut missing = Vec::new();
        for (&scheme, &greatest) in &self.greatest {
            let done = done.filter(|done| done.scheme == scheme).map_or(0, |done| done.work);
            let rest = greatest.saturating_sub(done);
            if scheme == Scheme::Bcrypt {
                // A bcrypt's rounds are a power of two: a run for each that the rest is the sum of.
                let powers = (LEAST_BCRYPT_COST..=MOST_BCRYPT_COST).map(|log| 1 << log);
                missing.extend(powers.filter(|power| rest & power != 0).map(|work| Cost { scheme, work }));
            } else if rest > 0 {
                missing.push(Cost { scheme, work: rest });
            }
        }
        missing
    }

    /// Does what is [`missing`](Self::missing). Run it behind the gate of the hashes.
    pub fn make_up(&self, done: Option<Cost>, password: &Password) {
        for cost in self.missing(done) {
            black_box(cost.run(black_box(password.expose().as_bytes()), &NOBODYS_SALT, 32));
        }
    }
}

/// What no hash may cost is ignored, as no such hash is ever verified.
impl FromIterator<Cost> for Profile {
    fn from_iter<I: IntoIterator<Item = Cost>>(costs: I) -> Self {
        let mut greatest = BTreeMap::new();
        for Cost { scheme, work } in costs.into_iter().filter(|cost| Cost::bounded(cost.scheme, cost.work).is_ok()) {
            let known = greatest.entry(scheme).or_insert(work);
            *known = work.max(*known);
        }
        let weighed = |scheme: &Scheme| scheme.kib_written().map(|kib| (kib, *scheme));
        let mut memory_hard: Vec<_> = greatest.keys().filter_map(weighed).collect();
        memory_hard.sort_unstable();
        let left_out = memory_hard.len().saturating_sub(MOST_MEMORY_HARD);
        for (_, scheme) in memory_hard.iter().take(left_out) {
            greatest.remove(scheme);
        }
        Self { greatest, left_out }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Made {
        scheme: String,
        django: String,
        password: String,
        hash: String,
    }

    fn made_by_django() -> Vec<Made> {
        let lines = include_str!("../../tests/fixtures/django_hashes.jsonl").lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn cost(hash: &str) -> Cost {
        parse(hash).ok().and_then(|imported| imported.cost()).unwrap()
    }

    fn of(scheme: &str, work: u64) -> Cost {
        Cost { scheme: scheme.parse().unwrap(), work }
    }

    /// Every hash of these schemes fits its password; the cheap ones are shown others too.
    fn all_fit(schemes: &[&str], least: usize) {
        let made: Vec<_> =
            made_by_django().into_iter().filter(|made| schemes.contains(&made.scheme.as_str())).collect();
        assert!(made.len() >= least, "{} hashes of {schemes:?}", made.len());
        for Made { scheme, django, password, hash } in made {
            let imported = parse(&hash).unwrap_or_else(|refused| panic!("{django} {hash}: {refused}"));
            assert!(imported.fits(&Password::new(&password)), "{django} {password} {hash}");
            let Cost { scheme: kind, work } = imported.cost().unwrap();
            let is_cheap = match kind {
                Scheme::Pbkdf2Sha256 | Scheme::Pbkdf2Sha1 => work <= 1000,
                Scheme::Bcrypt => work <= 32,
                _ => true,
            };
            if is_cheap {
                // The first byte, since bcrypt sees no more than 72.
                for other in [format!("y{password}"), password.to_uppercase(), String::new()] {
                    assert!(!imported.fits(&Password::new(&other)), "{scheme} of {django} fits {other}");
                }
            }
        }
    }

    #[test]
    fn whoever_calls_the_work_lies_at_one_place() {
        fn place() -> usize {
            at_one_place(|| {
                let local = 0_u64;
                black_box(&raw const local).addr() % 4096
            })
        }
        fn below<const ROOM: usize>() -> usize {
            let room = black_box([0_u8; ROOM]);
            let place = place();
            black_box(&room);
            place
        }
        let places = [place(), below::<16>(), below::<48>(), below::<1000>(), below::<5000>()];
        assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    }

    #[test]
    fn pbkdf2_hashes_of_django_fit() {
        all_fit(&["pbkdf2_sha256", "pbkdf2_sha1"], 90);
        let counts: std::collections::BTreeSet<u64> = made_by_django()
            .iter()
            .filter(|made| made.scheme == "pbkdf2_sha256")
            .map(|made| cost(&made.hash).work)
            .collect();
        for count in [36_000, 150_000, 260_000, 390_000, 600_000, 720_000, 870_000, 1_000_000, 1_200_000, 1_500_000] {
            assert!(counts.contains(&count), "{count} iterations");
        }
    }

    #[test]
    fn bcrypt_hashes_of_django_fit() {
        all_fit(&["bcrypt_sha256", "bcrypt"], 90);
    }

    #[test]
    fn scrypt_hashes_of_django_fit() {
        all_fit(&["scrypt"], 6);
    }

    #[test]
    fn argon2_hashes_of_django_fit() {
        all_fit(&["argon2"], 12);
    }

    #[test]
    fn plain_bcrypt_is_cut_at_72_bytes_as_django_did_and_its_sha256_is_not() {
        let made = made_by_django();
        let longer = |scheme: &str| {
            let is_it = |made: &&Made| made.scheme == scheme && made.password == "a".repeat(72);
            let hash = &made.iter().find(is_it).unwrap().hash;
            parse(hash).ok().unwrap().fits(&Password::new(&"a".repeat(100)))
        };
        assert!(longer("bcrypt"));
        assert!(!longer("bcrypt_sha256"));
    }

    #[test]
    fn nothing_fits_an_unusable_hash() {
        let made = made_by_django();
        let unusable: Vec<_> = made.iter().filter(|made| made.scheme == "unusable").collect();
        assert!(unusable.len() >= 6);
        for hash in unusable.iter().map(|made| made.hash.as_str()).chain(["!"]) {
            let imported = parse(hash).ok().unwrap();
            assert_eq!(imported.cost(), None);
            for password in ["", hash, "correct horse battery"] {
                assert!(!imported.fits(&Password::new(password)));
            }
        }
    }

    #[test]
    fn what_asks_for_too_much_is_refused() {
        let digest = BASE64.encode(&[0; 32]);
        let wide = BASE64.encode(&[0; 64]);
        let bare = BASE64_NOPAD.encode(&[0; 32]);
        let salt = BASE64_NOPAD.encode(&[0; 16]);
        for bomb in [
            format!("pbkdf2_sha256$999999999$salt${digest}"),
            format!("pbkdf2_sha256$2000001$salt${digest}"),
            format!("pbkdf2_sha256$99999999999999999999999$salt${digest}"),
            format!("pbkdf2_sha1$4294967295$salt${}", BASE64.encode(&[0; 20])),
            format!("bcrypt$$2b$15${}", "a".repeat(53)),
            format!("bcrypt_sha256$$2b$31${}", "a".repeat(53)),
            format!("scrypt$131072$salt$8$1${wide}"),
            format!("scrypt$65536$salt$8$16${wide}"),
            format!("scrypt$16384$salt$8$17${wide}"),
            format!("scrypt$2$salt$4000000$1${wide}"),
            format!("scrypt$2147483648$salt$8$1${wide}"),
            format!("argon2$argon2id$v=19$m=4000000,t=1,p=1${salt}${bare}"),
            format!("argon2$argon2id$v=19$m=102400,t=17,p=1${salt}${bare}"),
            format!("argon2$argon2id$v=19$m=262144,t=5,p=1${salt}${bare}"),
            format!("argon2$argon2i$v=19$m=1024,t=1,p=9${salt}${bare}"),
        ] {
            assert_eq!(parse(&bomb).err(), Some(Refused::TooCostly), "{bomb}");
        }
        for allowed in [
            format!("pbkdf2_sha256$2000000$salt${digest}"),
            format!("scrypt$65536$salt$8$8${wide}"),
            format!("argon2$argon2id$v=19$m=262144,t=4,p=8${salt}${bare}"),
        ] {
            assert!(parse(&allowed).is_ok(), "{allowed}");
        }
    }

    #[test]
    fn what_django_does_not_write_is_refused() {
        let digest = BASE64.encode(&[0; 32]);
        let bare = BASE64_NOPAD.encode(&[0; 32]);
        let wide = BASE64.encode(&[0; 64]);
        let salt = BASE64_NOPAD.encode(&[0; 16]);
        for malformed in [
            "pbkdf2_sha256$".to_owned(),
            format!("pbkdf2_sha256$0$salt${digest}"),
            format!("pbkdf2_sha256$-1$salt${digest}"),
            format!("pbkdf2_sha256$+1$salt${digest}"),
            format!("pbkdf2_sha256$01$salt${digest}"),
            format!("pbkdf2_sha256$$salt${digest}"),
            format!("pbkdf2_sha256$1$${digest}"),
            format!("pbkdf2_sha256$1$salt${digest}$"),
            format!("pbkdf2_sha256$1$salt${bare}"),
            "pbkdf2_sha256$1$salt$".to_owned(),
            "pbkdf2_sha256$1$salt$AAAA".to_owned(),
            format!("pbkdf2_sha1$1$salt${digest}"),
            format!("pbkdf2_sha256$1${}${digest}", "s".repeat(500)),
            format!("bcrypt$$2b$03${}", "a".repeat(53)),
            format!("bcrypt$$2x$04${}", "a".repeat(53)),
            format!("bcrypt$$2b$99${}", "a".repeat(53)),
            format!("bcrypt$$2b$04${}", "a".repeat(52)),
            format!("bcrypt$$2b$04${}", "\u{e9}".repeat(26) + "a"),
            "bcrypt$".to_owned(),
            format!("scrypt$1$salt$8$1${wide}"),
            format!("scrypt$1000$salt$8$1${wide}"),
            format!("scrypt$1024$salt$0$1${wide}"),
            format!("scrypt$1024$salt$8$0${wide}"),
            format!("scrypt$1024$salt$8$1${digest}"),
            format!("argon2$argon2d$v=19$m=64,t=1,p=1${salt}${bare}"),
            format!("argon2$argon2id$v=16$m=64,t=1,p=1${salt}${bare}"),
            format!("argon2$argon2id$m=64,t=1,p=1${salt}${bare}"),
            format!("argon2$argon2id$v=19$t=1,m=64,p=1${salt}${bare}"),
            format!("argon2$argon2id$v=19$m=64,t=0,p=1${salt}${bare}"),
            format!("argon2$argon2id$v=19$m=8,t=1,p=2${salt}${bare}"),
            format!("argon2$argon2id$v=19$m=64,t=1,p=1$AAAA${bare}"),
            format!("argon2$argon2id$v=19$m=64,t=1,p=1${salt}$AAAA"),
        ] {
            assert_eq!(parse(&malformed).err(), Some(Refused::Malformed), "{malformed}");
        }
        for unknown in ["", "$", "md5$a$b", "sha1$a$b", "$argon2id$v=19$m=64,t=1,p=1$a$b", "$2b$12$a", "pbkdf2_sha256"]
        {
            assert_eq!(parse(unknown).err(), Some(Refused::Unknown), "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_within_the_bounds(which in 0..220_usize, at in 0..128_usize, put in "[0-9$=,a-zA-Z+/]{0,9}") {
            let made = made_by_django();
            let hash: Vec<char> = made[which % made.len()].hash.chars().collect();
            let at = at.min(hash.len());
            let end = (at + put.len()).min(hash.len());
            let changed: String = hash[..at].iter().copied().chain(put.chars()).chain(hash[end..].iter().copied()).collect();
            if let Some(cost) = parse(&changed).ok().and_then(|imported| imported.cost()) {
                prop_assert_eq!(Cost::bounded(cost.scheme, cost.work), Ok(cost));
                prop_assert_eq!(cost.scheme.to_string().parse(), Ok(cost.scheme));
            }
        }
    }

    #[test]
    fn a_scheme_is_read_as_it_is_written() {
        for text in [
            "pbkdf2_sha256",
            "pbkdf2_sha1",
            "bcrypt",
            "scrypt$n=16384,r=8,p=5",
            "argon2id$m=102400,t=2,p=8",
            "argon2i$m=512,t=2,p=2",
        ] {
            assert_eq!(text.parse::<Scheme>().unwrap().to_string(), text);
        }
        for (text, refused) in [
            ("md5", Refused::Unknown),
            ("bcrypt$", Refused::Unknown),
            ("scrypt", Refused::Unknown),
            ("scrypt$n=3,r=8,p=5", Refused::Malformed),
            ("scrypt$n=131072,r=8,p=1", Refused::TooCostly),
            ("argon2id$m=999999,t=2,p=8", Refused::TooCostly),
        ] {
            assert_eq!(text.parse::<Scheme>(), Err(refused), "{text}");
        }
    }

    #[test]
    fn the_dearest_hash_of_each_scheme_makes_the_profile() {
        assert!(Profile::default().is_empty());
        assert_eq!(Profile::default().missing(None), []);
        let costs = [
            of("pbkdf2_sha256", 36_000),
            of("pbkdf2_sha256", 600_000),
            of("pbkdf2_sha256", 150_000),
            of("bcrypt", 4096),
            of("bcrypt", 1024),
            of("argon2id$m=102400,t=2,p=8", 1),
        ];
        let profile: Profile = costs.into_iter().collect();
        assert!(!profile.is_empty());
        assert_eq!(
            profile.missing(None),
            [of("pbkdf2_sha256", 600_000), of("bcrypt", 4096), of("argon2id$m=102400,t=2,p=8", 1)]
        );
    }

    #[test]
    fn what_no_hash_may_cost_is_not_made_up() {
        let beyond = Scheme::Scrypt { n: 1 << 30, r: 8, p: 1 };
        let beyond = [
            of("pbkdf2_sha1", 0),
            of("pbkdf2_sha1", 2_000_001),
            of("bcrypt", 1 << 15),
            of("bcrypt", 8),
            Cost { scheme: beyond, work: 1 },
        ];
        assert!(beyond.into_iter().collect::<Profile>().is_empty());
    }

    #[test]
    fn few_sets_of_parameters_are_made_up_and_the_dearest_of_them() {
        let costs = (1..=6).map(|t| of(&format!("argon2id$m=1024,t={t},p=1"), 1));
        let profile: Profile = costs.chain([of("bcrypt", 16), of("scrypt$n=16384,r=8,p=1", 1)]).collect();
        assert_eq!(profile.left_out(), 3);
        let kept: Vec<_> = profile.missing(None).iter().map(|cost| cost.scheme.to_string()).collect();
        assert_eq!(
            kept,
            [
                "bcrypt",
                "scrypt$n=16384,r=8,p=1",
                "argon2id$m=1024,t=4,p=1",
                "argon2id$m=1024,t=5,p=1",
                "argon2id$m=1024,t=6,p=1"
            ]
        );
    }

    #[test]
    fn a_failed_sign_in_is_the_same_work_for_everyone() {
        let users = [
            of("pbkdf2_sha256", 36_000),
            of("pbkdf2_sha256", 1_200_000),
            of("pbkdf2_sha1", 260_000),
            of("bcrypt", 1 << 4),
            of("bcrypt", 1 << 10),
            of("bcrypt", 1 << 12),
            of("scrypt$n=16384,r=8,p=1", 1),
            of("scrypt$n=16384,r=8,p=5", 1),
            of("argon2i$m=512,t=2,p=2", 1),
            of("argon2id$m=102400,t=2,p=8", 1),
        ];
        let profile: Profile = users.into_iter().collect();
        let total = |done: Option<Cost>| {
            let mut total = BTreeMap::new();
            for cost in done.into_iter().chain(profile.missing(done)) {
                *total.entry(cost.scheme).or_insert(0) += cost.work;
            }
            total
        };
        assert_eq!(total(None).len(), 7);
        for user in users {
            assert_eq!(total(Some(user)), total(None), "{user:?}");
        }
        // Bcrypt: 2^10 + 2^11 rounds on top of 2^10.
        let rest = profile.missing(Some(of("bcrypt", 1 << 10)));
        let rest: Vec<u64> = rest.iter().filter(|cost| cost.scheme == Scheme::Bcrypt).map(|cost| cost.work).collect();
        assert_eq!(rest, [1 << 10, 1 << 11]);
        // Dearer than the profile knows: nothing of it is done again.
        assert!(profile.missing(Some(of("bcrypt", 1 << 13))).iter().all(|cost| cost.scheme != Scheme::Bcrypt));
    }

    #[test]
    fn all_that_is_missing_can_be_run() {
        let users = [
            of("pbkdf2_sha256", 2),
            of("pbkdf2_sha256", 3000),
            of("pbkdf2_sha1", 1),
            of("bcrypt", 1 << 4),
            of("bcrypt", 1 << 6),
            of("scrypt$n=2,r=1,p=1", 1),
            of("argon2i$m=8,t=1,p=1", 1),
            of("argon2id$m=512,t=2,p=2", 1),
        ];
        let profile: Profile = users.into_iter().collect();
        for done in users.into_iter().map(Some).chain([None]) {
            for password in ["", "x", &"\u{1f511}".repeat(128)] {
                for cost in profile.missing(done) {
                    let digest = cost.run(password.as_bytes(), &NOBODYS_SALT, 32);
                    assert!(digest.is_some_and(|digest| digest.iter().any(|byte| *byte != 0)), "{cost:?}");
                }
                profile.make_up(done, &Password::new(password));
            }
        }
    }
}
