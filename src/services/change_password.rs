//! Changes the password of a signed-in user, who shows the present one again (contract §2).

use std::time::Duration;

use garde::Validate;
use serde::Deserialize;

use super::{
    authenticate::Bearer,
    confirm_reset::personal,
    devices,
    error::{Overloaded, Unavailable},
    fields::{FieldErrors, bounded_password, field_error, nullable, present, required_password},
    judge_password::{JudgeError, judge_password},
    model::Caller,
    new_password::{self, NewPasswordError, Occasion},
    passwords::Password,
    ports::Ports,
    problem::Problem,
    registration,
    step_up::{self, StepUpError},
};

/// `POST /password/change/`
#[derive(Debug, Deserialize, Validate)]
pub struct ChangePassword {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(bounded_password))]
    current_password: Option<Password>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(bounded_password))]
    old_password: Option<Password>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    new_password: Option<Password>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    confirm_password: Option<Password>,
}

/// Why the password is the old one still.
#[derive(Debug, thiserror::Error)]
pub enum ChangePasswordError {
    /// Fields are missing or wrong, or the new password breaks rules.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// The present password was another.
    #[error("the present password is wrong")]
    WrongPassword,
    /// Too many wrong ones.
    #[error("too many wrong passwords")]
    Locked(Duration),
    /// Too many hashes are being made.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<StepUpError> for ChangePasswordError {
    fn from(error: StepUpError) -> Self {
        match error {
            StepUpError::Invalid(errors) => Self::Invalid(errors),
            // Only a password was asked for.
            StepUpError::WrongPassword | StepUpError::WrongCode | StepUpError::Required => Self::WrongPassword,
            StepUpError::Locked(wait) => Self::Locked(wait),
            StepUpError::Overloaded(error) => Self::Overloaded(error),
            StepUpError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

impl From<JudgeError> for ChangePasswordError {
    fn from(error: JudgeError) -> Self {
        match error {
            JudgeError::Overloaded(error) => Self::Overloaded(error),
            JudgeError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

impl From<ChangePasswordError> for Problem {
    fn from(error: ChangePasswordError) -> Self {
        match error {
            ChangePasswordError::Invalid(errors) => Self::invalid(errors),
            ChangePasswordError::WrongPassword => Self {
                errors: Some(field_error("current_password", "This is not your present password.")),
                ..Self::new(400, "invalid_current_password", "The current password is wrong.")
            },
            ChangePasswordError::Locked(wait) => {
                Self::new(429, "account_locked", "Too many failed attempts. Please try again later.").after(wait)
            }
            ChangePasswordError::Overloaded(error) => error.into(),
            ChangePasswordError::Unavailable(error) => error.into(),
        }
    }
}

/// Sets the new password; every other session ends. Returns the device's token anew: it has signed in
/// with this password, so to say.
///
/// # Errors
/// [`ChangePasswordError`].
pub async fn change_password<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    request: ChangePassword,
) -> Result<String, ChangePasswordError> {
    let invalid = |field: &str, sentence: &str| Err(ChangePasswordError::Invalid(field_error(field, sentence)));
    let present = request.current_password.or(request.old_password).filter(|given| !given.expose().is_empty());
    let Some(present) = present else { return invalid("current_password", "This field is required.") };
    let new = request.new_password.unwrap_or_else(|| Password::new(""));
    if request.confirm_password.is_some_and(|again| again.expose() != new.expose()) {
        return invalid("confirm_password", "The two passwords do not match.");
    }
    let user = &bearer.user;
    if new.expose().chars().count() > ports.policy().passwords.max_length {
        let broken = judge_password(ports, &new, &[]).await?;
        return Err(ChangePasswordError::Invalid([("new_password".to_owned(), broken)].into()));
    }
    step_up::show_password(ports, caller, bearer, "password_change", &present).await?;
    let mut broken = judge_password(ports, &new, &personal(user)).await?;
    if new.expose() == present.expose() {
        broken.push("The new password must differ from the present one.".to_owned());
    }
    if !broken.is_empty() {
        return Err(ChangePasswordError::Invalid([("new_password".to_owned(), broken)].into()));
    }
    let how = registration::hash_beside_waiting(ports, user).await?;
    let hash = ports.hash_password(new, how).await?;
    match new_password::set(ports, caller, user, &hash, Occasion::Change(bearer.session.id)).await {
        Ok(()) => (),
        // By another change at the same time: the present password is another now.
        Err(NewPasswordError::Changed) => return Err(ChangePasswordError::WrongPassword),
        Err(NewPasswordError::Unavailable(error)) => return Err(error.into()),
    }
    step_up::forgive(ports, bearer).await;
    Ok(devices::remember(ports, caller, user.id))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::services::{
        confirm_reset::{ConfirmReset, ConfirmResetError, confirm_reset},
        login::{Login, login},
        memory::{ADDRESS, PASSWORD, World, caller, request},
        model::EndReason,
        request_reset::request_reset,
        run::run,
    };

    const OTHER: &str = "silver-Meadow-58-anchor";
    const NEW: &str = "silver-Meadow-58";
    const WRONG: &str = "orange-Lantern-41";

    fn signed_in() -> (World, Bearer) {
        let world = World::with_ada();
        let tokens = world.sign_in(world.users()[0].id).tokens;
        let bearer = world.bearer(&tokens);
        (world, bearer)
    }

    fn ask(world: &World, bearer: &Bearer, body: Value) -> Result<String, ChangePasswordError> {
        run(change_password(world, &caller(), bearer, request(body)))
    }

    fn change(world: &World, bearer: &Bearer, present: &str, new: &str) -> Result<String, ChangePasswordError> {
        ask(world, bearer, json!({ "current_password": present, "new_password": new }))
    }

    fn enters(world: &World, password: &str) -> bool {
        let wanted = json!({ "email_or_phone": ADDRESS, "password": password });
        run(login(world, &caller(), request::<Login>(wanted))).is_ok()
    }

    fn fields(refused: Result<String, ChangePasswordError>) -> FieldErrors {
        match refused {
            Err(ChangePasswordError::Invalid(errors)) => errors,
            other => panic!("{:?}", other.map(|_| "a token")),
        }
    }

    #[test]
    fn it_keeps_this_session_and_ends_the_others() {
        let world = World::with_ada();
        let id = world.users()[0].id;
        let (other, this) = (world.sign_in(id).tokens, world.sign_in(id).tokens);
        let bearer = world.bearer(&this);
        change(&world, &bearer, PASSWORD, NEW).unwrap();
        assert!(world.is_alive(&this) && !world.is_alive(&other));
        let reasons = world.sessions().iter().map(|session| session.end_reason).collect::<Vec<_>>();
        assert_eq!(reasons, [Some(EndReason::PasswordChanged), None]);
        assert_eq!(world.letter_kinds(), ["password_changed", "password_changed"]);
        assert_eq!(world.audited().last(), Some(&("password_change", "")));
        assert!(enters(&world, NEW) && !enters(&world, PASSWORD));
    }

    #[test]
    fn both_names_of_the_present_password_are_taken() {
        let (world, bearer) = signed_in();
        ask(&world, &bearer, json!({ "old_password": PASSWORD, "new_password": NEW, "confirm_password": NEW }))
            .unwrap();
        assert!(enters(&world, NEW));
    }

    #[test]
    fn what_is_missing_or_does_not_match_is_named_before_anything_is_looked_up() {
        let (world, bearer) = signed_in();
        world.calls();
        for (body, field) in [
            (json!({ "new_password": NEW }), "current_password"),
            (json!({ "current_password": null, "new_password": NEW }), "current_password"),
            (json!({ "current_password": "", "new_password": NEW }), "current_password"),
            (
                json!({ "current_password": PASSWORD, "new_password": NEW, "confirm_password": WRONG }),
                "confirm_password",
            ),
            (json!({ "current_password": PASSWORD, "new_password": "x".repeat(129) }), "new_password"),
        ] {
            assert!(fields(ask(&world, &bearer, body.clone())).contains_key(field), "{body}");
        }
        assert_eq!(world.calls(), Vec::<&str>::new());
    }

    #[test]
    fn wrong_present_passwords_lock_changing_and_nothing_else() {
        let (world, bearer) = signed_in();
        for _ in 0..5 {
            assert!(matches!(change(&world, &bearer, WRONG, NEW), Err(ChangePasswordError::WrongPassword)));
            assert_eq!(world.audited().last(), Some(&("password_change", "invalid_current_password")));
        }
        for password in [WRONG, PASSWORD] {
            let hashes = world.hashes();
            let refused = change(&world, &bearer, password, NEW);
            assert!(matches!(refused, Err(ChangePasswordError::Locked(wait)) if wait <= Duration::from_secs(900)));
            assert_eq!(world.hashes(), hashes);
            assert_eq!(world.audited().last(), Some(&("password_change", "locked")));
        }
        assert!(enters(&world, PASSWORD), "signing in is another thing");
        let other = world.clone();
        world.pass(Duration::from_secs(901));
        change(&world, &bearer, PASSWORD, NEW).unwrap();
        let elsewhere = other.bearer(&other.sign_in(bearer.user.id).tokens);
        for _ in 0..5 {
            assert!(change(&other, &elsewhere, WRONG, OTHER).is_err());
        }
        assert!(matches!(change(&other, &elsewhere, NEW, OTHER), Err(ChangePasswordError::Locked(_))));
        let owners = other.bearer(&other.sign_in(bearer.user.id).tokens);
        change(&other, &owners, NEW, OTHER).unwrap();
    }

    #[test]
    fn failed_sign_ins_do_not_lock_changing() {
        let (world, bearer) = signed_in();
        for _ in 0..6 {
            assert!(!enters(&world, WRONG));
        }
        assert!(!enters(&world, PASSWORD));
        change(&world, &bearer, PASSWORD, NEW).unwrap();
        assert!(!enters(&world, NEW), "who is signed in lifts no lock of strangers' making");
    }

    #[test]
    fn a_success_clears_the_count() {
        let (world, bearer) = signed_in();
        for _ in 0..4 {
            let _ = change(&world, &bearer, WRONG, NEW);
        }
        change(&world, &bearer, PASSWORD, NEW).unwrap();
        let bearer = Bearer { user: world.users().remove(0).into(), ..bearer };
        for _ in 0..5 {
            assert!(matches!(change(&world, &bearer, WRONG, PASSWORD), Err(ChangePasswordError::WrongPassword)));
        }
    }

    #[test]
    fn a_wrong_present_password_learns_nothing_of_the_new_one() {
        let (world, bearer) = signed_in();
        world.calls();
        for new in ["abc", "password", "Lovelace-99", WRONG] {
            assert!(matches!(change(&world, &bearer, WRONG, new), Err(ChangePasswordError::WrongPassword)), "{new}");
        }
        assert!(!world.calls().contains(&"weakness"));
        let problem = Problem::from(ChangePasswordError::WrongPassword);
        assert_eq!((problem.status, problem.code), (400, "invalid_current_password"));
        assert!(problem.errors.unwrap().contains_key("current_password"));
    }

    #[test]
    fn every_rule_that_the_new_password_breaks_is_named() {
        let (world, bearer) = signed_in();
        let broken = |new: &str| fields(change(&world, &bearer, PASSWORD, new))["new_password"].join(" ");
        assert!(broken(PASSWORD).contains("differ"));
        assert!(broken(&format!("  {PASSWORD}\n")).contains("differ"), "outer white space is none of it");
        let several = broken("lovelac");
        assert!(several.contains("too short") && several.contains("similar"), "{several}");
        assert!(broken("ada@example.org").contains("similar"));
        assert!(world.is_alive(&world.sign_in(bearer.user.id).tokens) && enters(&world, PASSWORD));
    }

    #[test]
    fn who_has_no_password_has_no_present_one() {
        let (world, bearer) = signed_in();
        world.change_user(|user| user.password_hash = None);
        let bearer = Bearer { user: world.users().remove(0).into(), ..bearer };
        let before = world.hashes();
        assert!(matches!(change(&world, &bearer, PASSWORD, NEW), Err(ChangePasswordError::WrongPassword)));
        assert_eq!((world.hashes(), world.users()[0].password_hash.clone()), (before + 1, None));
    }

    #[test]
    fn of_two_changes_side_by_side_one_succeeds() {
        let (world, bearer) = signed_in();
        let (beside, its_bearer) = (world.clone(), bearer.clone());
        // It begins when the first has shown the present password and makes its hash.
        world.on_next_hash(move || drop(change(&beside, &its_bearer, PASSWORD, WRONG).unwrap()));
        assert!(matches!(change(&world, &bearer, PASSWORD, NEW), Err(ChangePasswordError::WrongPassword)));
        assert!(enters(&world, WRONG) && !enters(&world, NEW));
        assert_eq!(world.letter_kinds(), ["password_changed", "password_changed"], "of one change");
    }

    #[test]
    fn what_fails_half_way_leaves_no_trace() {
        let (world, bearer) = signed_in();
        let other = world.sign_in(bearer.user.id).tokens;
        world.fail_commits(true);
        assert!(matches!(change(&world, &bearer, PASSWORD, NEW), Err(ChangePasswordError::Unavailable(_))));
        world.fail_commits(false);
        assert!(world.is_alive(&other) && enters(&world, PASSWORD) && world.letters().is_empty());
    }

    #[test]
    fn an_outstanding_link_is_dead_after_a_change() {
        let (world, bearer) = signed_in();
        run(request_reset(&world, &caller(), request(json!({ "email_or_phone": ADDRESS })))).unwrap();
        let (uidb64, token) = world.link();
        change(&world, &bearer, PASSWORD, NEW).unwrap();
        let body = json!({ "uidb64": uidb64, "token": token, "new_password": WRONG });
        let reset = request::<ConfirmReset>(body).read(&world).unwrap();
        let answer = run(confirm_reset(&world, &caller(), reset));
        assert!(matches!(answer, Err(ConfirmResetError::InvalidToken)));
        assert!(enters(&world, NEW));
    }

    #[test]
    fn this_device_stays_known_and_others_do_not() {
        let (world, bearer) = signed_in();
        let elsewhere = world.sign_in(bearer.user.id).device;
        world.pass(Duration::from_secs(1));
        let here = change(&world, &bearer, PASSWORD, NEW).unwrap();
        let user = world.users().remove(0);
        let is_known = |token: String| {
            let caller = Caller { device_token: Some(token), ..caller() };
            devices::known(&world, &caller, Some(&user)).is_some()
        };
        assert!(is_known(here) && !is_known(elsewhere));
    }
}
