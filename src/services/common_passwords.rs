//! The most used passwords, as an embedded list: 16 293 of eight characters and more, from Django (BSD-3-Clause) and
//! zxcvbn (MIT). `scripts/common-passwords` makes it and names its sources.

use sha2::{Digest as _, Sha256};

/// How much of each password's SHA-256 is kept. Another password is taken for a common one with a probability of
/// 16 293 / 2^40, one in 67 million.
const DIGEST_BYTES: usize = 5;

/// The digests, sorted, one after the other.
static LIST: &[u8] = include_bytes!("../../assets/common_passwords.bin");

/// Whether a password is one of the most used ones (ASVS 6.2.4), outer white space and case aside. Those of fewer than
/// eight characters are not in the list: the rule about length refuses them.
pub fn is_common(password: &str) -> bool {
    let (digests, _) = LIST.as_chunks::<DIGEST_BYTES>();
    digests.binary_search(&digest_of(password)).is_ok()
}

fn digest_of(password: &str) -> [u8; DIGEST_BYTES] {
    let mut hash = Sha256::new();
    // Letter by letter, so that no second copy of the password lies in memory.
    for letter in password.trim().chars().flat_map(char::to_lowercase) {
        hash.update(letter.encode_utf8(&mut [0; 4]));
    }
    let whole: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, e, ..] = whole;
    [a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn the_list_is_the_one_that_the_script_made() {
        assert_eq!(
            HEXLOWER.encode(&Sha256::digest(LIST)),
            "ebee5cab371d9af1c41bf325f10e33969253b75b3ebd635828e6c37a6ed5f3e3"
        );
        let (digests, rest) = LIST.as_chunks::<DIGEST_BYTES>();
        assert_eq!((digests.len(), rest.len()), (16_293, 0));
        assert!(digests.is_sorted_by(|one, next| one < next), "a search by halves needs an order");
    }

    #[test]
    fn what_everybody_uses_is_common_on_both_sources_word() {
        let both = ["password1", "qwertyuiop", "123456789", "iloveyou", "sunshine", "passw0rd", "!qaz2wsx"];
        let django_alone = ["87654321", "p@ssword"];
        let zxcvbn_alone = ["11234567", "mercede1"];
        for password in both.iter().chain(&django_alone).chain(&zxcvbn_alone) {
            assert!(is_common(password), "{password}");
        }
    }

    #[test]
    fn case_and_outer_white_space_hide_nothing() {
        for password in ["PASSWORD1", "PassWord1", " password1\n", "\u{a0}QwertyUIOP\u{2003}"] {
            assert!(is_common(password), "{password:?}");
        }
        assert!(!is_common("pass word1"), "white space inside is part of the password");
    }

    #[test]
    fn a_good_password_is_not_common() {
        for password in [
            "correct horse battery staple",
            "tangerine-otter-quarry-41",
            "vK8#mPz2!qLw",
            "password1-and-more-that-nobody-uses",
            "",
            "short",
            "слово и дело",
        ] {
            assert!(!is_common(password), "{password:?}");
        }
    }

    #[test]
    fn passwords_at_random_are_not_taken_for_common_ones() {
        let mistaken = (0..100_000).filter(|number| is_common(&format!("nobody's {number}"))).count();
        assert_eq!(mistaken, 0);
    }
}
