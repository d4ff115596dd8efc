//! Shows the second factor of a signed-in user, renews its recovery codes, and switches it off.

use garde::Validate;
use serde::{Deserialize, Serialize};

use super::{
    authenticate::Bearer,
    error::Unavailable,
    fields::{Text, at_most, bounded_password, nullable, present, required},
    letters::FactorChange,
    model::{Caller, MfaMethod},
    passwords::Password,
    ports::{Ports, SecondFactors as _},
    problem::Problem,
    recovery_codes, second_factor,
    step_up::{self, StepUpError, step_up_with_code},
};

/// `POST /auth/mfa/recovery-codes/` and `POST /auth/mfa/disable/`
#[derive(Debug, Deserialize, Validate)]
pub struct ChangeMfa {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(bounded_password))]
    current_password: Option<Password>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required), custom(at_most::<64>))]
    code: Option<Text>,
}

/// The second factor as its user is shown it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct MfaState {
    /// Whether a sign-in asks for it.
    pub enabled: bool,
    /// With what it may be shown.
    pub methods: Vec<MfaMethod>,
    /// Unused ones.
    pub recovery_codes_left: usize,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeMfaError {
    /// Who asks has not shown what they have to.
    #[error(transparent)]
    StepUp(#[from] StepUpError),
    /// The user has no second factor.
    #[error("there is no second factor")]
    NotEnabled,
    /// Another change came first.
    #[error("another change came first")]
    Changed,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<ChangeMfaError> for Problem {
    fn from(error: ChangeMfaError) -> Self {
        match error {
            ChangeMfaError::StepUp(error) => error.into(),
            ChangeMfaError::NotEnabled => Self::new(409, "conflict", "Your account has no second factor."),
            ChangeMfaError::Changed => {
                Self::new(409, "conflict", "Your account was changed at the same time. Please try again.")
            }
            ChangeMfaError::Unavailable(error) => error.into(),
        }
    }
}

/// The bearer's second factor.
///
/// # Errors
/// The database is away.
pub async fn mfa_state<P: Ports>(ports: &P, bearer: &Bearer) -> Result<MfaState, Unavailable> {
    let user = &bearer.user;
    if user.second_factor_at.is_none() {
        return Ok(MfaState { enabled: false, methods: Vec::new(), recovery_codes_left: 0 });
    }
    let recovery_codes_left = ports.store().await?.recovery_codes(user.id).await?.len();
    let recovery = (recovery_codes_left > 0).then_some(MfaMethod::RecoveryCode);
    let methods = [MfaMethod::Totp].into_iter().chain(recovery).collect();
    Ok(MfaState { enabled: true, methods, recovery_codes_left })
}

/// Makes new recovery codes; the old ones are void. Every other session ends.
///
/// # Errors
/// [`ChangeMfaError`].
pub async fn replace_recovery_codes<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    request: ChangeMfa,
) -> Result<Vec<String>, ChangeMfaError> {
    let codes = recovery_codes::fresh(ports, &bearer.user);
    change(ports, caller, bearer, request, FactorChange::CodesReplaced, Some(&codes.digests)).await?;
    Ok(codes.shown)
}

/// Switches the second factor off. Every other session ends.
///
/// # Errors
/// [`ChangeMfaError`].
pub async fn disable_mfa<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    request: ChangeMfa,
) -> Result<(), ChangeMfaError> {
    change(ports, caller, bearer, request, FactorChange::Disabled, None).await
}

// With new codes the second factor stays, without any it goes.
async fn change<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    request: ChangeMfa,
    change: FactorChange,
    codes: Option<&[[u8; 32]]>,
) -> Result<(), ChangeMfaError> {
    let (user, now, action) = (&bearer.user, ports.now(), change.action());
    if user.second_factor_at.is_none() {
        return Err(ChangeMfaError::NotEnabled);
    }
    let typed = request.code.map(|code| code.0).unwrap_or_default();
    let proof = step_up_with_code(ports, caller, bearer, action, request.current_password, &typed).await?;
    let done = ports
        .transaction(async |store| {
            // The user's row first, as at a sign-in: no two units of work wait for each other.
            if !store.mark_second_factor(user, codes.map(|_| now), now).await? {
                return Err(ChangeMfaError::Changed);
            }
            if second_factor::spend(ports, store, user, &proof).await?.is_none() {
                return Err(ChangeMfaError::StepUp(StepUpError::WrongCode));
            }
            if codes.is_none() {
                store.remove_totp(user.id).await?;
            }
            store.replace_recovery_codes(user.id, codes.unwrap_or_default()).await?;
            let kept = Some(bearer.session.id);
            Ok(second_factor::note_change(ports, store, caller, user, kept, change).await?)
        })
        .await;
    // The code was right, whatever came of it, unless another has spent it: then it was good no more.
    if !matches!(done, Err(ChangeMfaError::StepUp(StepUpError::WrongCode))) {
        second_factor::forgive(ports, user.id).await;
    }
    done?;
    step_up::forgive(ports, bearer).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::services::{
        memory::{Guarded, PASSWORD, World, caller, request},
        run::run,
    };

    fn guarded() -> (World, Guarded) {
        let world = World::with_ada();
        let ada = world.guard(world.users()[0].id);
        world.pass(Duration::from_secs(30));
        (world, ada)
    }

    fn wanted(password: &str, code: &str) -> ChangeMfa {
        request(json!({ "current_password": password, "code": code }))
    }

    fn disable(world: &World, bearer: &Bearer, password: &str, code: &str) -> Result<(), ChangeMfaError> {
        run(disable_mfa(world, &caller(), bearer, wanted(password, code)))
    }

    fn code_of<T>(done: Result<T, ChangeMfaError>) -> &'static str {
        Problem::from(done.err().unwrap()).code
    }

    #[test]
    fn either_code_switches_it_off() {
        for with_recovery_code in [false, true] {
            let (world, ada) = guarded();
            let code = match with_recovery_code {
                true => ada.recovery_codes[0].clone(),
                false => ada.secret.code(world.now()),
            };
            disable(&world, &ada.bearer, PASSWORD, &code).unwrap();
            assert_eq!(world.users()[0].second_factor_at, None);
            assert_eq!(world.audited().last(), Some(&("mfa_disable", "")));
            assert!(!world.letter_kinds().contains(&"recovery_code_used"), "none is left, whatever it would say");
            let bearer = world.bearer(&ada.tokens);
            assert_eq!(run(mfa_state(&world, &bearer)).unwrap().recovery_codes_left, 0);
            assert!(run(world.clone().totp(bearer.user.id)).unwrap().is_none());
            assert!(run(world.clone().recovery_codes(bearer.user.id)).unwrap().is_empty());
            assert_eq!(code_of(disable(&world, &bearer, PASSWORD, &code)), "conflict");
            // It can be set up again.
            world.guard(bearer.user.id);
        }
    }

    #[test]
    fn new_recovery_codes_void_the_old_ones() {
        let (world, ada) = guarded();
        let code = &ada.recovery_codes[1];
        let fresh = run(replace_recovery_codes(&world, &caller(), &ada.bearer, wanted(PASSWORD, code))).unwrap();
        assert!(!world.letter_kinds().contains(&"recovery_code_used"), "ten are left, not nine");
        let bearer = world.bearer(&ada.tokens);
        let state = run(mfa_state(&world, &bearer)).unwrap();
        let methods = vec![MfaMethod::Totp, MfaMethod::RecoveryCode];
        assert_eq!(state, MfaState { enabled: true, methods, recovery_codes_left: 10 });
        assert_eq!(code_of(disable(&world, &bearer, PASSWORD, &ada.recovery_codes[0])), "invalid_mfa_code");
        disable(&world, &bearer, PASSWORD, &fresh[0]).unwrap();
    }

    #[test]
    fn it_takes_both_the_password_and_a_code() {
        let (world, ada) = guarded();
        let code = &ada.recovery_codes[0];
        assert_eq!(code_of(disable(&world, &ada.bearer, "orange-Lantern-41", code)), "invalid_current_password");
        assert_eq!(code_of(disable(&world, &ada.bearer, "", code)), "validation_error");
        for _ in 0..5 {
            assert_eq!(code_of(disable(&world, &ada.bearer, PASSWORD, "123 45")), "invalid_mfa_code");
        }
        assert_eq!(world.audited().last(), Some(&("mfa_disable", "invalid_mfa_code")));
        assert_eq!(code_of(disable(&world, &ada.bearer, PASSWORD, code)), "account_locked");
        assert!(world.users()[0].second_factor_at.is_some());
    }

    #[test]
    fn what_fails_half_way_leaves_no_trace() {
        let (world, ada) = guarded();
        let (letters, code) = (world.letters().len(), &ada.recovery_codes[0]);
        world.fail_commits(true);
        // More often than wrong codes would lock.
        for _ in 0..6 {
            assert_eq!(code_of(disable(&world, &ada.bearer, PASSWORD, code)), "service_unavailable");
        }
        world.fail_commits(false);
        assert!(world.users()[0].second_factor_at.is_some());
        assert_eq!(world.letters().len(), letters);
        disable(&world, &ada.bearer, PASSWORD, code).unwrap();
    }

    #[test]
    fn of_two_changes_side_by_side_one_is_done() {
        let (world, ada) = guarded();
        world.on_next_commit(|user| user.second_factor_at = Some(time::OffsetDateTime::UNIX_EPOCH));
        assert_eq!(code_of(disable(&world, &ada.bearer, PASSWORD, &ada.recovery_codes[0])), "conflict");
        let unused = run(world.clone().recovery_codes(ada.bearer.user.id)).unwrap();
        assert_eq!(unused.len(), 10, "its code is not spent");
    }
}
