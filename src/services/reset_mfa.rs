//! Removes the second factor of a user who has lost it, for an operator.

use super::{
    error::Unavailable,
    identifier::{Identifier, InvalidIdentifier},
    letters::FactorChange,
    model::Caller,
    ports::{Ports, SecondFactors as _, Users as _},
    second_factor,
};

/// Why nothing was removed; `Display` is the sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ResetMfaError {
    /// The address or number is malformed.
    #[error(transparent)]
    Identifier(#[from] InvalidIdentifier),
    /// Nobody has it.
    #[error("there is no such user")]
    Unknown,
    /// Disabled, or changed at the same time.
    #[error("the user is disabled, or was changed at the same time")]
    Changed,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Removes a user's second factor and ends all of their sessions; `false` when there was none.
///
/// # Errors
/// [`ResetMfaError`].
pub async fn reset_mfa<P: Ports>(ports: &P, caller: &Caller, typed: &str) -> Result<bool, ResetMfaError> {
    let identifier = Identifier::email_or_phone(typed, &ports.policy().default_region)?;
    let user = ports.store().await?.user_by_identifier(&identifier).await?.ok_or(ResetMfaError::Unknown)?;
    if user.second_factor_at.is_none() {
        return Ok(false);
    }
    let user = &user;
    ports
        .transaction(async |store| {
            if !store.mark_second_factor(user, None, ports.now()).await? {
                return Err(ResetMfaError::Changed);
            }
            store.remove_totp(user.id).await?;
            store.replace_recovery_codes(user.id, &[]).await?;
            Ok(second_factor::note_change(ports, store, caller, user, None, FactorChange::Reset).await?)
        })
        .await?;
    // After the commit: a fault here must not undo it.
    if let Err(error) = second_factor::lift(ports, user.id).await {
        tracing::warn!(error = %error, "guesses at a second factor not forgotten");
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::services::{
        memory::{self, ADDRESS, World, caller},
        model::MfaMethod,
        policy::{MfaPolicy, Policy},
        run::run,
        unlock::unlock,
    };

    #[test]
    fn it_removes_the_factor_ends_every_session_and_is_told() {
        for typed in [ADDRESS, "0803 123 4567"] {
            let world = World::with_ada();
            let ada = world.guard(world.users()[0].id);
            let letters = world.letters().len();
            assert!(run(reset_mfa(&world, &caller(), typed)).unwrap());
            assert!(!world.is_alive(&ada.tokens));
            assert_eq!(world.users()[0].second_factor_at, None);
            assert_eq!(world.letters().len(), letters + 2);
            assert_eq!(world.audited().last(), Some(&("mfa_reset", "")));
            world.sign_in(ada.bearer.user.id);
            assert!(!run(reset_mfa(&world, &caller(), typed)).unwrap());
        }
    }

    #[test]
    fn nobodys_is_told_so() {
        let world = World::with_ada();
        assert!(matches!(run(reset_mfa(&world, &caller(), "nobody@example.org")), Err(ResetMfaError::Unknown)));
        assert!(matches!(run(reset_mfa(&world, &caller(), "ada")), Err(ResetMfaError::Identifier(_))));
    }

    #[test]
    fn an_unlock_and_a_reset_give_the_days_guesses_back() {
        for is_reset in [false, true] {
            let policy = memory::policy();
            let mfa = MfaPolicy { daily_guesses: 5, ..policy.mfa.clone() };
            let world = World::with(Policy { mfa, ..policy });
            let id = world.add_ada().id;
            let ada = world.guard(id);
            let wrong = || {
                let guess = second_factor::guess(&world, &ada.bearer.user, MfaMethod::Totp, "aaaaaa");
                run(guess).err().unwrap()
            };
            for _ in 0..5 {
                assert!(matches!(wrong(), second_factor::GuessError::Wrong));
            }
            world.pass(Duration::from_secs(901));
            assert!(matches!(wrong(), second_factor::GuessError::Locked(_)), "the lock is over, the day is not");
            if is_reset {
                assert!(run(reset_mfa(&world, &caller(), ADDRESS)).unwrap());
                world.guard(id);
            } else {
                assert!(run(unlock(&world, &caller(), ADDRESS)).unwrap());
                assert!(!run(unlock(&world, &caller(), ADDRESS)).unwrap(), "nothing is locked");
            }
            assert!(matches!(wrong(), second_factor::GuessError::Wrong));
        }
    }

    #[test]
    fn an_unlock_lifts_the_lock_of_the_second_factor_and_leaves_it_on() {
        let world = World::with_ada();
        let ada = world.guard(world.users()[0].id);
        let user = &ada.bearer.user;
        for _ in 0..5 {
            let guess = second_factor::guess(&world, user, MfaMethod::Totp, "aaaaaa");
            assert!(matches!(run(guess), Err(second_factor::GuessError::Wrong)));
        }
        assert!(run(unlock(&world, &caller(), ADDRESS)).unwrap());
        let code = &ada.recovery_codes[0];
        let guess = second_factor::guess(&world, user, MfaMethod::RecoveryCode, code);
        assert!(run(guess).is_ok());
        assert!(world.users()[0].second_factor_at.is_some());
    }
}
