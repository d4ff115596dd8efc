//! Recovery codes: what lets a user in whose authenticator is lost. Shown once, used once, kept as keyed digests.

use super::{
    keys::Keys,
    model::{User, UserId},
    ports::Ports,
};

/// How many a user has.
pub const COUNT: usize = 10;

// 120 bits: a digest is enough to keep them (ASVS 6.5.2). The digits `0`, `1`, `8` and `9` do not occur.
const BYTES: usize = 15;
const GROUP: usize = 4;

const PURPOSE: &str = "recovery_code";

/// New codes.
pub struct RecoveryCodes {
    /// As the user is shown them, once.
    pub shown: Vec<String>,
    /// As they are kept.
    pub digests: Vec<[u8; 32]>,
}

/// Makes codes for a user.
pub fn fresh<P: Ports>(ports: &P, user: &User) -> RecoveryCodes {
    let shown: Vec<String> = (0..COUNT).map(|_| code(&ports.random())).collect();
    let digests = shown.iter().map(|code| digest(ports.keys(), user.id, code)).collect();
    RecoveryCodes { shown, digests }
}

fn code(bytes: &[u8; BYTES]) -> String {
    let mut code = String::new();
    for (place, letter) in data_encoding::BASE32_NOPAD.encode(bytes).chars().enumerate() {
        if place > 0 && place % GROUP == 0 {
            code.push('-');
        }
        code.push(letter.to_ascii_lowercase());
    }
    code
}

/// What a code is kept as, in whichever case and groups it is written.
pub fn digest(keys: &Keys, user: UserId, typed: &str) -> [u8; 32] {
    let letters = typed.chars().filter(|letter| !letter.is_whitespace() && *letter != '-');
    let plain: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
    keys.code_digest(user, PURPOSE, &plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::memory::World;

    #[test]
    fn codes_differ_and_have_a_hundred_and_twenty_bits() {
        let world = World::with_ada();
        let codes = fresh(&world, &world.users()[0]);
        assert_eq!((codes.shown.len(), codes.digests.len()), (COUNT, COUNT));
        let mut distinct = codes.shown.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), COUNT);
        for code in &codes.shown {
            let groups: Vec<&str> = code.split('-').collect();
            let is_plain = |letter: u8| letter.is_ascii_lowercase() || (b'2'..=b'7').contains(&letter);
            assert!(groups.len() == 6 && groups.iter().all(|group| group.len() == 4), "{code}");
            assert!(groups.concat().bytes().all(is_plain), "{code}");
        }
    }

    #[test]
    fn a_code_is_known_in_every_spelling_and_is_nobody_elses() {
        let world = World::with_ada();
        let (ada, grace) = (world.users().remove(0), world.add("grace@example.org", None));
        let codes = fresh(&world, &ada);
        let (code, kept) = (&codes.shown[0], codes.digests[0]);
        for typed in [code.clone(), code.to_uppercase(), code.replace('-', ""), code.replace('-', " ")] {
            assert_eq!(digest(world.keys(), ada.id, &typed), kept, "{typed}");
        }
        assert_ne!(digest(world.keys(), grace.id, code), kept);
        assert_ne!(digest(world.keys(), ada.id, &codes.shown[1]), kept);
    }
}
