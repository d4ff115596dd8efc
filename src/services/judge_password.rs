//! Judges a new password by every rule there is (contract §4), so that each that it breaks can be named.

use super::{
    breaches::Range,
    error::{Overloaded, Unavailable},
    passwords::{self, Password},
    policy::Breaches,
    ports::Ports,
};

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// Too many hashes are being made, and judging costs as much.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// The look-up of breached passwords does not answer, and is to be closed then.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The sentences for every rule that a new password breaks; none when it is good. `personal` is what is
/// known of the person.
///
/// # Errors
/// [`JudgeError`].
pub async fn judge_password<P: Ports>(
    ports: &P,
    password: &Password,
    personal: &[&str],
) -> Result<Vec<String>, JudgeError> {
    let policy = &ports.policy().passwords;
    let mut broken = passwords::judge_form(password, personal, policy);
    if password.expose().chars().count() > policy.max_length {
        // What is too long is not looked at any further (ABUSE 35).
        return Ok(broken);
    }
    let known: Vec<String> = personal.iter().map(|text| (*text).to_owned()).collect();
    let weakness = ports.weakness(password.clone(), known).await?;
    broken.extend(weakness.map(|weakness| weakness.sentence().to_owned()));
    // Nobody outside is asked about a password that is refused anyway.
    if broken.is_empty() && is_breached(ports, password).await? {
        broken.push(passwords::BREACHED.to_owned());
    }
    Ok(broken)
}

async fn is_breached<P: Ports>(ports: &P, password: &Password) -> Result<bool, Unavailable> {
    let policy = ports.policy().passwords.breaches;
    if policy == Breaches::Off {
        return Ok(false);
    }
    let range = Range::of(password);
    let listed = ports.breaches(&range.prefix).await.and_then(|answer| {
        range.is_listed(&answer).ok_or_else(|| Unavailable::breaches("its answer is no range of digests"))
    });
    match (listed, policy) {
        (Err(error), Breaches::FailOpen) => {
            tracing::warn!(error = %error, "a new password was not looked up");
            Ok(false)
        }
        (listed, _) => listed,
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXUPPER;
    use sha1::{Digest as _, Sha1};

    use super::*;
    use crate::services::{
        memory::{self, World},
        policy::{PasswordPolicy, Policy},
        run::run,
    };

    const GOOD: &str = "silver-Meadow-58";

    fn world(breaches: Breaches) -> World {
        let passwords = PasswordPolicy { breaches, ..memory::policy().passwords };
        World::with(Policy { passwords, ..memory::policy() })
    }

    fn judge(world: &World, password: &str) -> Result<Vec<String>, JudgeError> {
        run(judge_password(world, &Password::new(password), &["Ada", "Lovelace", "ada@example.org"]))
    }

    /// An answer that names this password so many times.
    fn answer(password: &str, count: u32) -> String {
        let digest = HEXUPPER.encode(&Sha1::digest(password.as_bytes()));
        let (_, suffix) = digest.split_at(5);
        format!("{}:7\r\n{suffix}:{count}\r\n", "0".repeat(35))
    }

    #[test]
    fn every_rule_that_is_broken_is_named() {
        let world = world(Breaches::Off);
        assert_eq!(judge(&world, GOOD).unwrap(), Vec::<String>::new());
        let several = judge(&world, "lovelac").unwrap();
        assert_eq!(several.len(), 3, "{several:?}");
        for (sentence, word) in several.iter().zip(["too short", "too similar", "easy to guess"]) {
            assert!(sentence.contains(word), "{sentence}");
        }
        assert_eq!(judge(&world, "password").unwrap(), ["This password is too common."]);
        assert_eq!(judge(&world, "aaaaaaaaaaaaa1").unwrap(), ["This password is too easy to guess."]);
    }

    #[test]
    fn what_is_too_long_is_looked_at_no_further() {
        let world = world(Breaches::FailClosed);
        let broken = judge(&world, &"lovelace".repeat(20)).unwrap();
        assert_eq!(broken.len(), 1);
        assert!(broken[0].contains("at most 128"), "{broken:?}");
        assert_eq!(world.calls(), Vec::<&str>::new());
    }

    #[test]
    fn characters_are_counted_and_not_bytes() {
        let world = world(Breaches::Off);
        let of = |count: usize| "ßж漢é🜚".chars().cycle().take(count).collect::<String>();
        assert!(!judge(&world, &of(128)).unwrap().iter().any(|sentence| sentence.contains("too long")));
        assert!(judge(&world, &of(129)).unwrap()[0].contains("too long"));
        assert!(judge(&world, &of(7)).unwrap()[0].contains("too short"));
        assert!(!judge(&world, &of(8)).unwrap().iter().any(|sentence| sentence.contains("too short")));
    }

    #[test]
    fn a_breached_password_is_refused_whatever_silence_means() {
        for breaches in [Breaches::FailOpen, Breaches::FailClosed] {
            let world = world(breaches);
            world.answer_breaches(Some(&answer(GOOD, 3)));
            assert_eq!(judge(&world, GOOD).unwrap(), [passwords::BREACHED]);
            world.answer_breaches(Some(&answer(GOOD, 0)));
            assert_eq!(judge(&world, GOOD).unwrap(), Vec::<String>::new(), "padding");
            world.answer_breaches(Some(&answer("another", 3)));
            assert_eq!(judge(&world, GOOD).unwrap(), Vec::<String>::new());
            assert_eq!(world.calls().iter().filter(|call| **call == "breaches").count(), 3);
        }
    }

    #[test]
    fn silence_and_nonsense_are_open_or_closed_as_configured() {
        for silent in [None, Some("<html>Sign in to the network</html>"), Some("")] {
            let (open, closed) = (world(Breaches::FailOpen), world(Breaches::FailClosed));
            open.answer_breaches(silent);
            closed.answer_breaches(silent);
            assert_eq!(judge(&open, GOOD).unwrap(), Vec::<String>::new(), "{silent:?}");
            assert!(matches!(judge(&closed, GOOD), Err(JudgeError::Unavailable(_))), "{silent:?}");
        }
    }

    #[test]
    fn nobody_is_asked_when_it_is_off_or_the_password_is_refused_anyway() {
        let off = world(Breaches::Off);
        off.answer_breaches(Some(&answer(GOOD, 3)));
        assert_eq!(judge(&off, GOOD).unwrap(), Vec::<String>::new());
        let on = world(Breaches::FailClosed);
        for password in ["abc", "password", "Lovelace-99", "aaaaaaaaaaaaa1"] {
            assert!(!judge(&on, password).unwrap().is_empty(), "{password}");
        }
        assert!(!off.calls().contains(&"breaches") && !on.calls().contains(&"breaches"));
    }
}
