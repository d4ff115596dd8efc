//! The second step of a sign-in: shows the second factor and opens the session (contract §3).

use std::time::Duration;

use garde::Validate;
use serde::Deserialize;

use super::{
    audit, devices,
    error::Unavailable,
    fields::{Exact, FieldErrors, Text, at_most, field_error, present, required, required_exact},
    google,
    lockout::{self, Subject},
    model::{Caller, MfaMethod, User},
    ports::{Audit as _, Inserted, Ports, Users as _},
    problem::Problem,
    second_factor::{self, GuessError, Proof, Waiting},
    session::{self, OpenError, SignedIn},
};

/// `POST /auth/mfa/verify/`
#[derive(Debug, Deserialize, Validate)]
pub struct VerifyMfa {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_exact))]
    mfa_token: Option<Exact>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required))]
    method: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required), custom(at_most::<64>))]
    code: Option<Text>,
}

/// Why nobody was signed in.
#[derive(Debug, thiserror::Error)]
pub enum VerifyMfaError {
    /// Fields are missing or wrong.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// No sign-in waits under this token: spent, run out, or the account is another than it was.
    #[error("the token is not valid")]
    TokenNotValid,
    /// The code is wrong or spent.
    #[error("the code is wrong")]
    WrongCode,
    /// Too many failures, at the second factor or for the identifier.
    #[error("the second factor is locked")]
    Locked(Duration),
    /// An operator has disabled the account.
    #[error("the account is disabled")]
    Disabled,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<GuessError> for VerifyMfaError {
    fn from(error: GuessError) -> Self {
        match error {
            GuessError::Wrong => Self::WrongCode,
            GuessError::Locked(wait) => Self::Locked(wait),
            GuessError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

impl From<OpenError> for VerifyMfaError {
    fn from(error: OpenError) -> Self {
        match error {
            // Another password, another second factor, disabled or deleted: the token is void.
            OpenError::Changed => Self::TokenNotValid,
            OpenError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

impl VerifyMfaError {
    const fn reason(&self) -> Option<&'static str> {
        match self {
            Self::TokenNotValid => Some("token_not_valid"),
            Self::WrongCode => Some("invalid_mfa_code"),
            Self::Locked(_) => Some("locked"),
            Self::Disabled => Some("disabled"),
            Self::Invalid(_) | Self::Unavailable(_) => None,
        }
    }
}

impl From<VerifyMfaError> for Problem {
    fn from(error: VerifyMfaError) -> Self {
        match error {
            VerifyMfaError::Invalid(errors) => Self::invalid(errors),
            VerifyMfaError::TokenNotValid => {
                Self::new(401, "token_not_valid", "This sign-in is over. Please sign in again.")
            }
            VerifyMfaError::WrongCode => Self::invalid_mfa_code(),
            VerifyMfaError::Locked(wait) => {
                Self::new(429, "account_locked", "Too many failed attempts. Please try again later.").after(wait)
            }
            VerifyMfaError::Disabled => Self::new(403, "account_disabled", "This account is disabled."),
            VerifyMfaError::Unavailable(error) => error.into(),
        }
    }
}

/// Spends the code and the token, and opens a session.
///
/// # Errors
/// [`VerifyMfaError`].
pub async fn verify_mfa<P: Ports>(ports: &P, caller: &Caller, request: VerifyMfa) -> Result<SignedIn, VerifyMfaError> {
    let token = request.mfa_token.map(|token| token.0).unwrap_or_default();
    let typed = request.code.map(|code| code.0).unwrap_or_default();
    let Ok(method) = request.method.map(|method| method.0).unwrap_or_default().parse::<MfaMethod>() else {
        return Err(VerifyMfaError::Invalid(field_error("method", "Choose `totp` or `recovery_code`.")));
    };
    let waiting = second_factor::waiting(ports, &token).await?;
    let user = match &waiting {
        Some(waiting) => ports.store().await?.user(waiting.user_id).await?,
        None => None,
    };
    let done = match (&waiting, &user) {
        (Some(waiting), Some(user)) => go_on(ports, caller, waiting, user, method, &typed).await,
        _ => Err(VerifyMfaError::TokenNotValid),
    };
    if let Some(reason) = done.as_ref().err().and_then(VerifyMfaError::reason) {
        let event = audit::event(ports, method.word(), caller).refused(reason);
        let event = user.map(|user| event.clone().of_user(user.id)).unwrap_or(event);
        ports.store_to_write().await?.record(&event).await?;
    }
    done
}

async fn go_on<P: Ports>(
    ports: &P,
    caller: &Caller,
    waiting: &Waiting,
    user: &User,
    method: MfaMethod,
    typed: &str,
) -> Result<SignedIn, VerifyMfaError> {
    if !user.is_active {
        return Err(VerifyMfaError::Disabled);
    }
    if !waiting.is_of(user) {
        return Err(VerifyMfaError::TokenNotValid);
    }
    // It signs in, so it obeys the lock of what was signed in with (ABUSE 19).
    let locked = match &waiting.identifier {
        Some(identifier) => {
            let known = devices::known(ports, caller, Some(user));
            lockout::locked_for(ports, &Subject::new(ports, identifier, known.as_ref())).await?
        }
        None => lockout::any_locked_for(ports, caller, user).await?,
    };
    if let Some(wait) = locked {
        return Err(VerifyMfaError::Locked(wait));
    }
    let proof = second_factor::guess(ports, user, method, typed).await?;
    let done = sign_in(ports, caller, waiting, user, method, &proof).await;
    // It was right, whatever came of it, unless another has spent it: then it was good no more.
    if !matches!(done, Err(VerifyMfaError::WrongCode)) {
        second_factor::forgive(ports, user.id).await;
    }
    done
}

async fn sign_in<P: Ports>(
    ports: &P,
    caller: &Caller,
    waiting: &Waiting,
    user: &User,
    method: MfaMethod,
    proof: &Proof,
) -> Result<SignedIn, VerifyMfaError> {
    if !second_factor::claim(ports, waiting).await? {
        return Err(VerifyMfaError::TokenNotValid);
    }
    let done = ports
        .transaction(async |store| {
            let noted = session::note(ports, store, user.clone(), waiting.new_hash.as_deref(), caller).await?;
            let Some(shown) = second_factor::spend(ports, store, user, proof).await? else {
                return Err(VerifyMfaError::WrongCode);
            };
            second_factor::tell_of_recovery_code(ports, store, user, proof).await?;
            let signed_in = session::open_proven(ports, store, noted, waiting.way, caller, &shown).await?;
            let event = audit::event(ports, method.word(), caller).of_user(user.id);
            let session_id = signed_in.session;
            store.record(&event.in_session(session_id)).await?;
            if let Some(index) = &waiting.to_link {
                link(ports, store, caller, user, index).await?;
            }
            Ok(signed_in)
        })
        .await;
    if done.is_err() {
        // Nobody was signed in by it; should this fail too, the sign-in can be begun anew.
        let _ = second_factor::give_back(ports, waiting).await;
    }
    done
}

// The Google account that the sign-in began with. One beside it may have linked it; had it become another's, or had
// this user another one now, the first step would be answered otherwise.
async fn link<P: Ports>(
    ports: &P,
    store: &mut P::Store,
    caller: &Caller,
    user: &User,
    index: &[u8; 32],
) -> Result<(), VerifyMfaError> {
    if google::link(ports, store, caller, user, index).await? == Inserted::Yes {
        return Ok(());
    }
    let owner = store.user_by_identity(index).await?;
    if owner.is_some_and(|owner| owner.id == user.id) { Ok(()) } else { Err(VerifyMfaError::TokenNotValid) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::services::{
        change_mfa::disable_mfa,
        login::{Login, login},
        memory::{self, ADDRESS, Guarded, NUMBER, PASSWORD, World, caller, request},
        policy::{LockoutPolicy, MfaPolicy, Policy},
        ports::Ephemeral as _,
        run::run,
    };

    const STEP: Duration = Duration::from_secs(30);

    fn guarded() -> (World, Guarded) {
        let world = World::with_ada();
        let ada = world.guard(world.users()[0].id);
        world.pass(STEP);
        (world, ada)
    }

    fn begin(world: &World, who: &str) -> String {
        let wanted = request::<Login>(json!({ "email_or_phone": who, "password": PASSWORD }));
        run(login(world, &caller(), wanted)).unwrap_or_else(|error| panic!("{error}")).challenge().token
    }

    fn show(world: &World, token: &str, method: &str, code: &str) -> Result<SignedIn, VerifyMfaError> {
        let wanted = json!({ "mfa_token": token, "method": method, "code": code });
        run(verify_mfa(world, &caller(), request(wanted)))
    }

    fn refused(done: Result<SignedIn, VerifyMfaError>) -> &'static str {
        Problem::from(done.err().unwrap()).code
    }

    #[test]
    fn a_password_alone_opens_no_session_and_the_code_does() {
        let (world, ada) = guarded();
        let (sessions, events) = (world.sessions().len(), world.events().len());
        let token = begin(&world, ADDRESS);
        assert_eq!((world.sessions().len(), world.events().len()), (sessions, events));
        assert_eq!(world.audited().last(), Some(&("login", "second_factor_required")));
        let signed_in = show(&world, &token, "totp", &ada.secret.code(world.now())).unwrap();
        assert!(world.is_alive(&signed_in.tokens));
        assert_eq!(world.audited()[world.audited().len() - 2..], [("login", ""), ("totp", "")]);
        assert_eq!(world.users()[0].last_login_at, Some(world.now()));
        assert_eq!(refused(show(&world, &token, "totp", &ada.secret.code(world.now() + STEP))), "token_not_valid");
    }

    #[test]
    fn a_code_is_spent_with_those_before_it() {
        let (world, ada) = guarded();
        world.pass(STEP);
        let (before, now) = (ada.secret.code(world.now() - STEP), ada.secret.code(world.now()));
        show(&world, &begin(&world, ADDRESS), "totp", &now).unwrap();
        let token = begin(&world, ADDRESS);
        for code in [&now, &before] {
            assert_eq!(refused(show(&world, &token, "totp", code)), "invalid_mfa_code");
        }
        show(&world, &token, "totp", &ada.secret.code(world.now() + STEP)).unwrap();
    }

    #[test]
    fn a_recovery_code_is_spent_and_its_owner_told_at_every_address() {
        let (world, ada) = guarded();
        let before = world.letters().len();
        show(&world, &begin(&world, ADDRESS), "recovery_code", &ada.recovery_codes[0]).unwrap();
        assert_eq!(world.letter_kinds()[before..], ["recovery_code_used", "recovery_code_used"]);
        let token = begin(&world, ADDRESS);
        assert_eq!(refused(show(&world, &token, "recovery_code", &ada.recovery_codes[0])), "invalid_mfa_code");
        // One method's code is none of the other's.
        assert_eq!(refused(show(&world, &token, "totp", &ada.recovery_codes[1])), "invalid_mfa_code");
        let code = ada.secret.code(world.now());
        assert_eq!(refused(show(&world, &token, "recovery_code", &code)), "invalid_mfa_code");
    }

    #[test]
    fn guesses_count_for_the_account_over_methods_and_sign_ins() {
        let (world, ada) = guarded();
        for turn in 0..5 {
            let token = begin(&world, if turn < 3 { ADDRESS } else { NUMBER });
            let method = if turn % 2 == 0 { "totp" } else { "recovery_code" };
            assert_eq!(refused(show(&world, &token, method, "aaaaaa")), "invalid_mfa_code");
        }
        let token = begin(&world, ADDRESS);
        let code = ada.secret.code(world.now());
        assert!(matches!(show(&world, &token, "totp", &code), Err(VerifyMfaError::Locked(_))));
        assert_eq!(world.audited().last(), Some(&("totp", "locked")));
        world.pass(Duration::from_secs(901));
        let code = ada.secret.code(world.now());
        show(&world, &begin(&world, ADDRESS), "totp", &code).unwrap();
    }

    #[test]
    fn the_fifth_guess_counts_and_when_it_is_right_nothing_is_locked() {
        let (world, ada) = guarded();
        let token = begin(&world, ADDRESS);
        for _ in 0..2 {
            for _ in 0..4 {
                assert_eq!(refused(show(&world, &token, "totp", "aaaaaa")), "invalid_mfa_code");
            }
            world.pass(STEP);
            let token = begin(&world, ADDRESS);
            show(&world, &token, "totp", &ada.secret.code(world.now())).unwrap();
        }
        assert_eq!(told_of_locks(&world), 0);
    }

    fn told_of_locks(world: &World) -> usize {
        world.letter_kinds().iter().filter(|kind| **kind == "second_factor_locked").count()
    }

    #[test]
    fn the_owner_is_told_of_each_lock_once_at_every_address() {
        let (world, ada) = guarded();
        for lock in 1..=2 {
            let token = begin(&world, ADDRESS);
            for _ in 0..5 {
                assert_eq!(told_of_locks(&world), 2 * (lock - 1));
                assert_eq!(refused(show(&world, &token, "totp", "aaaaaa")), "invalid_mfa_code");
            }
            for code in ["aaaaaa", &ada.recovery_codes[0]] {
                assert_eq!(refused(show(&world, &token, "recovery_code", code)), "account_locked");
            }
            assert_eq!(told_of_locks(&world), 2 * lock);
            world.pass(Duration::from_secs(901));
        }
    }

    // So many wrong guesses a day, and a lock that they do not reach.
    fn guarded_for_a_day(daily_guesses: i64) -> (World, Guarded) {
        let policy = memory::policy();
        let lockout = LockoutPolicy { failures: 100, ..policy.lockout };
        let world = World::with(Policy { mfa: MfaPolicy { daily_guesses, ..policy.mfa.clone() }, lockout, ..policy });
        world.add_ada();
        let ada = world.guard(world.users()[0].id);
        (world, ada)
    }

    #[test]
    fn the_wrong_guesses_of_a_day_are_counted_over_right_ones_and_locks() {
        let (world, ada) = guarded_for_a_day(5);
        let day = Duration::from_secs(86_400);
        let token = begin(&world, ADDRESS);
        for _ in 0..4 {
            assert_eq!(refused(show(&world, &token, "totp", "aaaaaa")), "invalid_mfa_code");
        }
        show(&world, &token, "recovery_code", &ada.recovery_codes[0]).unwrap();
        world.pass(Duration::from_secs(3600));
        let token = begin(&world, NUMBER);
        assert_eq!(refused(show(&world, &token, "recovery_code", "aaaaaa")), "invalid_mfa_code");
        for _ in 0..3 {
            let late = show(&world, &token, "recovery_code", &ada.recovery_codes[1]);
            let Err(VerifyMfaError::Locked(wait)) = late else { panic!("it is taken") };
            assert!(wait <= day - Duration::from_secs(3600) && wait > day / 2, "from the first: {wait:?}");
        }
        assert_eq!(world.audited().last(), Some(&("recovery_code", "locked")));
        // What a signed-in user shows is counted with it.
        let wanted = json!({ "current_password": PASSWORD, "code": ada.recovery_codes[1] });
        let change = run(disable_mfa(&world, &caller(), &ada.bearer, request(wanted)));
        assert_eq!(Problem::from(change.err().unwrap()).code, "account_locked");
        world.pass(day - Duration::from_secs(3600));
        show(&world, &begin(&world, ADDRESS), "recovery_code", &ada.recovery_codes[1]).unwrap();
    }

    #[test]
    fn right_guesses_use_up_no_day() {
        let (world, ada) = guarded_for_a_day(5);
        for code in &ada.recovery_codes {
            show(&world, &begin(&world, ADDRESS), "recovery_code", code).unwrap();
        }
        // Nor do right ones with which nothing could be done.
        world.pass(STEP);
        let token = begin(&world, ADDRESS);
        world.fail_commits(true);
        for _ in 0..10 {
            assert_eq!(refused(show(&world, &token, "totp", &ada.secret.code(world.now()))), "service_unavailable");
        }
        world.fail_commits(false);
        for _ in 0..5 {
            assert_eq!(refused(show(&world, &token, "totp", "aaaaaa")), "invalid_mfa_code");
        }
        assert_eq!(refused(show(&world, &token, "totp", "aaaaaa")), "account_locked");
    }

    #[test]
    fn guesses_side_by_side_are_no_more_than_the_days_and_right_ones_take_none_away() {
        let (world, ada) = guarded_for_a_day(5);
        let user = &ada.bearer.user;
        let guess = |code: &str| run(second_factor::guess(&world, user, MfaMethod::RecoveryCode, code));
        let is_looked_at = |code: &str| !matches!(guess(code), Err(GuessError::Locked(_)));
        for _ in 0..3 {
            assert!(is_looked_at("aaaaaa"));
        }
        // Two right ones on their way to being spent, and others beside them that find no room.
        assert!(guess(&ada.recovery_codes[0]).is_ok() && guess(&ada.recovery_codes[1]).is_ok());
        for _ in 0..20 {
            assert!(!is_looked_at("aaaaaa") && !is_looked_at(&ada.recovery_codes[2]));
        }
        for _ in 0..2 {
            run(second_factor::forgive(&world, user.id));
        }
        assert_eq!([(); 20].map(|()| is_looked_at("aaaaaa")).iter().filter(|is| **is).count(), 2, "five in all");
    }

    #[test]
    fn guesses_that_came_after_the_lock_use_up_no_day() {
        let (world, ada) = guarded();
        let user = &ada.bearer.user;
        let subject = Subject::second_factor(user.id);
        for _ in 0..5 {
            run(lockout::count_failure(&world, &subject)).unwrap();
        }
        // As if they had looked before the lock was set.
        for _ in 0..60 {
            run(world.remove(&format!("lock:second_factor:{}", user.id))).unwrap();
            let late = run(second_factor::guess(&world, user, MfaMethod::Totp, "aaaaaa"));
            assert!(matches!(late, Err(GuessError::Locked(_))));
        }
        world.pass(Duration::from_secs(901));
        show(&world, &begin(&world, ADDRESS), "recovery_code", &ada.recovery_codes[0]).unwrap();
    }

    #[test]
    fn a_database_that_fails_spends_neither_token_nor_code() {
        let (world, ada) = guarded();
        let (token, sessions) = (begin(&world, ADDRESS), world.sessions().len());
        for (method, code) in [("totp", &ada.secret.code(world.now())), ("recovery_code", &ada.recovery_codes[0])] {
            world.fail_commits(true);
            // More often than wrong ones would lock.
            for _ in 0..6 {
                assert_eq!(refused(show(&world, &token, method, code)), "service_unavailable");
            }
            world.fail_commits(false);
            assert_eq!(world.sessions().len(), sessions);
        }
        show(&world, &token, "recovery_code", &ada.recovery_codes[0]).unwrap();
        show(&world, &begin(&world, ADDRESS), "totp", &ada.secret.code(world.now())).unwrap();
    }

    fn new_password(user: &mut User) {
        user.password_hash = Some("$another".into());
        user.password_changed_at = Some(time::OffsetDateTime::UNIX_EPOCH);
    }

    #[test]
    fn what_waits_is_dead_once_the_account_is_another() {
        type Change = fn(&mut User);
        let changes: [(Change, &str); 4] = [
            (new_password, "token_not_valid"),
            (|user| user.second_factor_at = Some(time::OffsetDateTime::UNIX_EPOCH), "token_not_valid"),
            (|user| user.deleted_at = Some(time::OffsetDateTime::UNIX_EPOCH), "token_not_valid"),
            (|user| user.is_active = false, "account_disabled"),
        ];
        for (change, code) in changes {
            let (world, ada) = guarded();
            let (token, sessions) = (begin(&world, ADDRESS), world.sessions().len());
            world.change_user(change);
            assert_eq!(refused(show(&world, &token, "recovery_code", &ada.recovery_codes[0])), code);
            // The same beside the second step.
            let (world, ada) = guarded();
            let token = begin(&world, ADDRESS);
            world.on_next_commit(change);
            let done = show(&world, &token, "recovery_code", &ada.recovery_codes[0]);
            assert_eq!(refused(done), "token_not_valid");
            assert_eq!(world.sessions().len(), sessions);
        }
    }

    #[test]
    fn a_second_factor_set_up_beside_a_sign_in_is_asked_for() {
        let world = World::with_ada();
        world.on_next_commit(|user| user.second_factor_at = Some(time::OffsetDateTime::UNIX_EPOCH));
        begin(&world, ADDRESS);
        assert!(world.sessions().is_empty());
    }

    #[test]
    fn the_lock_of_what_was_signed_in_with_is_obeyed() {
        let (world, ada) = guarded();
        let (by_address, by_number) = (begin(&world, ADDRESS), begin(&world, NUMBER));
        for _ in 0..5 {
            let wanted = request::<Login>(json!({ "email_or_phone": ADDRESS, "password": "orange-Lantern-41" }));
            assert!(run(login(&world, &caller(), wanted)).is_err());
        }
        let code = &ada.recovery_codes[0];
        assert_eq!(refused(show(&world, &by_address, "recovery_code", code)), "account_locked");
        show(&world, &by_number, "recovery_code", code).unwrap();
    }

    #[test]
    fn it_waits_no_longer_than_its_time() {
        let (world, ada) = guarded();
        let token = begin(&world, ADDRESS);
        world.pass(Duration::from_secs(301));
        assert_eq!(refused(show(&world, &token, "recovery_code", &ada.recovery_codes[0])), "token_not_valid");
    }

    #[test]
    fn users_without_a_second_factor_cost_no_statement_more() {
        let world = World::with_ada();
        world.calls();
        let wanted = request::<Login>(json!({ "email_or_phone": ADDRESS, "password": PASSWORD }));
        assert!(run(login(&world, &caller(), wanted)).is_ok());
        let calls = world.calls();
        assert!(!calls.iter().any(|call| ["totp", "recovery_codes", "put"].contains(call)), "{calls:?}");
    }
}
