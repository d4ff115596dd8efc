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
    second_factor::forgive(ports, user.id).await;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{
        memory::{ADDRESS, World, caller},
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
    fn an_unlock_lifts_the_lock_of_the_second_factor_and_leaves_it_on() {
        let world = World::with_ada();
        let ada = world.guard(world.users()[0].id);
        let user = &ada.bearer.user;
        for _ in 0..5 {
            let guess = second_factor::guess(&world, user, crate::services::model::MfaMethod::Totp, "aaaaaa");
            assert!(matches!(run(guess), Err(second_factor::GuessError::Wrong)));
        }
        assert!(run(unlock(&world, &caller(), ADDRESS)).unwrap());
        let code = &ada.recovery_codes[0];
        let guess = second_factor::guess(&world, user, crate::services::model::MfaMethod::RecoveryCode, code);
        assert!(run(guess).is_ok());
        assert!(world.users()[0].second_factor_at.is_some());
    }
}
