//! Sign-in with a password (contract §2, §4).
//!
//! An unknown identifier, a wrong password and a locked identifier cost the same time: each
//! verifies one hash and writes one audit event.

use std::time::Duration;

use garde::Validate;
use serde::Deserialize;

use super::{
    audit, devices,
    error::{Overloaded, Unavailable},
    fields::{FieldErrors, Text, at_most, bounded_password, field_error, present, required, required_password},
    identifier::Identifier,
    imported_hashes::{Cost, Profile},
    lockout::{self, Subject},
    model::{Caller, User},
    passwords::{self, HashAs, Password, Verified},
    ports::{Audit as _, Ephemeral as _, Ports, Users as _},
    problem::Problem,
    registration::{self, REGISTRATION_TTL, waiting_key},
    second_factor::{Entered, enter},
    session::{self, OpenError, Opened},
    stuffing,
};

/// `POST /auth/login/`
#[derive(Debug, Deserialize, Validate)]
pub struct Login {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required), custom(at_most::<254>))]
    email_or_phone: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password), custom(bounded_password))]
    password: Option<Password>,
}

/// Why nobody was signed in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Fields are missing or wrong.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// No such account, or not its password.
    #[error("the identifier or the password is wrong")]
    WrongCredentials,
    /// Too many failures for this identifier.
    #[error("the identifier is locked")]
    Locked(Duration),
    /// The password was right, but no code has proven the address or number yet.
    #[error("the account is not verified")]
    NotVerified,
    /// The password was right, but an operator has disabled the account.
    #[error("the account is disabled")]
    Disabled,
    /// The address has tried many accounts, and has used up its tries.
    #[error("the address is slowed")]
    Throttled(Problem),
    /// Too many hashes are being made.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Invalid(errors) => Self::invalid(errors),
            LoginError::WrongCredentials => {
                Self::new(401, "invalid_credentials", "Wrong email, phone number or password.")
            }
            LoginError::Locked(wait) => {
                Self::new(429, "account_locked", "Too many failed attempts. Please try again later.").after(wait)
            }
            LoginError::NotVerified => {
                Self::new(403, "account_not_verified", "Please verify your account with the code that was sent to you.")
            }
            LoginError::Disabled => Self::new(403, "account_disabled", "This account is disabled."),
            LoginError::Throttled(problem) => problem,
            LoginError::Overloaded(error) => error.into(),
            LoginError::Unavailable(error) => error.into(),
        }
    }
}

/// Verifies the password and opens a session, or asks for the second factor.
///
/// # Errors
/// [`LoginError`].
pub async fn login<P: Ports>(ports: &P, caller: &Caller, request: Login) -> Result<Entered, LoginError> {
    let typed = request.email_or_phone.map(|text| text.0).unwrap_or_default();
    let identifier = Identifier::email_or_phone(&typed, &ports.policy().default_region)
        .map_err(|error| LoginError::Invalid(field_error("email_or_phone", error.to_string())))?;
    let password = request.password.unwrap_or_else(|| Password::new(""));

    let user = ports.user_of(&identifier).await?;
    // A registration that has waited too long is over, whether its row is deleted yet or not.
    let is_over = |user: &User| !user.is_verified && user.updated_at + REGISTRATION_TTL <= ports.now();
    let user = user.filter(|user| !is_over(user));
    let known = devices::known(ports, caller, user.as_ref());
    let subject = Subject::new(ports, &identifier, known.as_ref());
    let waiting_key = waiting_key(ports, &identifier);
    let keys = [&stuffing::slowed_key(caller), &lockout::lock_key(&subject), &waiting_key];
    let [slowed, lock, waiting] = ports.ephemeral().get_all(keys.map(String::as_str)).await?;
    // Whoever shares a slowed address with somebody else goes on signing in on their own device.
    if slowed.is_some() && known.is_none() {
        stuffing::admit_slowed(ports, caller).await.map_err(LoginError::Throttled)?;
    }
    let locked = lockout::left(ports, lock);
    let hash = user.as_ref().and_then(|user| user.password_hash.clone());
    let done = passwords::imported_cost(hash.as_deref());
    let waiting = registration::waiting(ports, &waiting_key, waiting);
    let verified = ports.verify_password(password.clone(), hash, waiting.clone()).await?;

    let event = audit::event(ports, "login", caller).with_identifier(ports, &identifier);
    let event = user.as_ref().map(|user| event.clone().of_user(user.id)).unwrap_or(event);
    let refuse = async |reason: &'static str, error: LoginError| -> Result<Entered, LoginError> {
        let mut store = ports.store_to_write().await?;
        store.record(&event.clone().refused(reason)).await?;
        Err(error)
    };
    let is_wrong = verified == Verified::No || (user.is_none() && verified != Verified::Other);
    let hide_cost = async || hide_cost(ports, &password, done, verified).await;

    if let Some(wait) = locked {
        hide_cost().await?;
        return refuse("locked", LoginError::Locked(wait)).await;
    }
    if is_wrong {
        // Counted first: whoever hangs up meanwhile, or finds the hashers busy, has guessed all the same.
        let too_late = lockout::count_failure(ports, &subject).await?;
        if stuffing::note_failure(ports, caller, &identifier).await? {
            tracing::warn!("many accounts were tried from one address: it is slowed");
            let stuffing = audit::event(ports, "credential_stuffing", caller).refused("slowed");
            ports.store_to_write().await?.record(&stuffing).await?;
        }
        hide_cost().await?;
        return match too_late {
            Some(wait) => refuse("locked", LoginError::Locked(wait)).await,
            None => refuse("invalid_credentials", LoginError::WrongCredentials).await,
        };
    }
    // Failures side by side may have locked it meanwhile: then the right password comes too late.
    let (too_late, has_failures) = lockout::standing(ports, &subject).await?;
    if let Some(wait) = too_late {
        hide_cost().await?;
        return refuse("locked", LoginError::Locked(wait)).await;
    }
    let Some(user) = user.filter(|_| verified != Verified::Other) else {
        hide_cost().await?;
        return refuse("not_verified", LoginError::NotVerified).await;
    };
    if !user.is_active {
        return refuse("disabled", LoginError::Disabled).await;
    }
    if !user.is_verified {
        // As above, where the same answer is given for an address that has an account.
        hide_cost().await?;
        return refuse("not_verified", LoginError::NotVerified).await;
    }
    let new_hash = match verified {
        // Not worth refusing a right password for.
        Verified::Outdated => {
            // Under the salt of a waiting registration, as `registration::hash_beside_waiting` says.
            let how = waiting.map_or_else(|| HashAs::New(ports.random()), HashAs::Beside);
            ports.hash_password(password.clone(), how).await.ok()
        }
        Verified::Yes | Verified::Other | Verified::No => None,
    };
    let mut opened = session::sign_in(ports, user, new_hash.as_deref(), "login", caller).await;
    if matches!(opened, Err(OpenError::Changed)) {
        // Perhaps only rehashed by a sign-in beside this one: looked at once more. Most do without the room for it.
        opened = Box::pin(sign_in_again(ports, &identifier, password, caller)).await?;
    }
    let opened = match opened {
        Ok(opened) => opened,
        // Disabled, deleted, or with another password since: that password is no longer right.
        Err(OpenError::Changed) => return refuse("changed", LoginError::WrongCredentials).await,
        Err(OpenError::Unavailable(error)) => return Err(error.into()),
    };
    // After the sign-in is written: a fault here must not undo it.
    if has_failures && let Err(error) = lockout::forget(ports, &subject).await {
        tracing::warn!(error = %error, "failures not forgotten");
    }
    Ok(enter(ports, opened, Some(&identifier)).await?)
}

// With what is there by now, if the password still is that of the account.
async fn sign_in_again<P: Ports>(
    ports: &P,
    identifier: &Identifier,
    password: Password,
    caller: &Caller,
) -> Result<Result<Opened, OpenError>, LoginError> {
    let user = ports.user_of(identifier).await?;
    let hash = user.as_ref().and_then(|user| user.password_hash.clone());
    let verified = ports.verify_password(password, hash, None).await?;
    match (user, verified) {
        (Some(user), Verified::Yes | Verified::Outdated) => {
            Ok(session::sign_in(ports, user, None, "login", caller).await)
        }
        _ => Ok(Err(OpenError::Changed)),
    }
}

// While there are imported hashes, each refusal that must not tell what was found costs what the dearest of
// each kind costs, and one of today's: time must not tell whose hash is an imported one, nor that a guess
// at a locked one was right. `done` is what this one's own has cost.
async fn hide_cost<P: Ports>(
    ports: &P,
    password: &Password,
    done: Option<Cost>,
    verified: Verified,
) -> Result<(), LoginError> {
    if verified == Verified::Outdated && done.is_some() {
        // A right one for an imported hash has not cost today's hash, as a wrong one has.
        let _ = ports.hash_password(password.clone(), HashAs::Like(String::new())).await?;
    }
    let profile = Profile::of_rows(ports.store().await?.imported_hashes().await?);
    if profile.is_empty() {
        return Ok(());
    }
    Ok(ports.make_up(password.clone(), profile, done).await?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::services::{
        create_user::{CreateUser, Credential, create_user},
        memory::{World, caller, request},
        model::Role,
        run::run,
        session::SignedIn,
    };

    const RIGHT: &str = "violet-Kettle-93";

    fn world() -> World {
        let world = World::new();
        let user = CreateUser {
            email: Some("ada@example.org".into()),
            phone: None,
            role: Role::Client,
            password: Credential::Password(Password::new(RIGHT)),
            first_name: String::new(),
            last_name: String::new(),
        };
        run(create_user(&world, &caller(), user)).unwrap();
        world
    }

    fn attempt(world: &World, who: &str, password: &str) -> Result<SignedIn, LoginError> {
        let wanted = request(json!({ "email_or_phone": who, "password": password }));
        run(login(world, &caller(), wanted)).map(Entered::signed_in)
    }

    #[test]
    fn the_right_password_opens_a_session() {
        let world = world();
        let signed_in = attempt(&world, " ADA@example.org ", RIGHT).unwrap();
        assert_eq!(world.sessions()[0].user_id, signed_in.user.id);
        assert_eq!(world.sessions()[0].browser, "Firefox");
        assert_eq!(world.audited().last(), Some(&("login", "")));
    }

    #[test]
    fn unknown_wrong_and_locked_cost_one_hash_each() {
        let world = world();
        for (who, password) in [("nobody@example.org", RIGHT), ("ada@example.org", "wrong-Kettle")] {
            let before = world.hashes();
            assert!(matches!(attempt(&world, who, password), Err(LoginError::WrongCredentials)));
            assert_eq!(world.hashes(), before + 1);
        }
        for _ in 0..4 {
            let _ = attempt(&world, "ada@example.org", "wrong-Kettle");
        }
        let before = world.hashes();
        assert!(matches!(attempt(&world, "ada@example.org", RIGHT), Err(LoginError::Locked(_))));
        assert_eq!(world.hashes(), before + 1);
    }

    #[test]
    fn an_unknown_identifier_locks_like_a_known_one() {
        let world = world();
        for who in ["nobody@example.org", "ada@example.org"] {
            let answers: Vec<_> = (0..6).map(|_| attempt(&world, who, "wrong-Kettle").err().unwrap()).collect();
            assert!(answers[..5].iter().all(|answer| matches!(answer, LoginError::WrongCredentials)), "{who}");
            assert!(matches!(answers[5], LoginError::Locked(_)), "{who}");
        }
        world.pass(Duration::from_secs(901));
        assert!(attempt(&world, "ada@example.org", RIGHT).is_ok());
    }

    #[test]
    fn only_the_right_password_learns_of_a_disabled_account() {
        let world = world();
        world.change_user(|user| user.is_active = false);
        assert!(matches!(attempt(&world, "ada@example.org", "wrong-Kettle"), Err(LoginError::WrongCredentials)));
        assert!(matches!(attempt(&world, "ada@example.org", RIGHT), Err(LoginError::Disabled)));
    }

    #[test]
    fn a_deleted_user_is_unknown() {
        let world = world();
        world.change_user(|user| user.deleted_at = Some(time::OffsetDateTime::UNIX_EPOCH));
        assert!(matches!(attempt(&world, "ada@example.org", RIGHT), Err(LoginError::WrongCredentials)));
    }

    #[test]
    fn what_fails_half_way_leaves_no_trace() {
        let world = world();
        world.fail_commits(true);
        assert!(matches!(attempt(&world, "ada@example.org", RIGHT), Err(LoginError::Unavailable(_))));
        assert!(world.sessions().is_empty());
    }

    #[test]
    fn guesses_side_by_side_are_told_nothing_once_the_lock_is_set() {
        let world = world();
        let subject = Subject::new(&world, &Identifier::email("ada@example.org").unwrap(), None);
        // Five failures are counted while others have passed the first look at the lock.
        for _ in 0..5 {
            assert_eq!(run(lockout::count_failure(&world, &subject)).unwrap(), None);
        }
        for password in ["wrong-Kettle", RIGHT] {
            assert!(matches!(attempt(&world, "ada@example.org", password), Err(LoginError::Locked(_))));
        }
        assert!(run(lockout::count_failure(&world, &subject)).unwrap().is_some());
    }

    #[test]
    fn a_hash_that_changed_meanwhile_is_looked_at_once_more() {
        let world = world();
        // As if a sign-in beside this one had rehashed: same password, another hash.
        let rehashed = run(world.hash_password(Password::new(RIGHT), HashAs::New([9; 16]))).unwrap();
        world.on_next_commit(move |user| user.password_hash = Some(rehashed));
        assert!(attempt(&world, "ada@example.org", RIGHT).is_ok());
        let other = run(world.hash_password(Password::new("another-Kettle-1"), HashAs::New([9; 16]))).unwrap();
        world.on_next_commit(move |user| user.password_hash = Some(other));
        assert!(matches!(attempt(&world, "ada@example.org", RIGHT), Err(LoginError::WrongCredentials)));
    }

    #[test]
    fn a_waiting_registration_hides_its_cost_alike_for_free_and_taken_addresses() {
        let world = world();
        let sign_up = |email: &str, password: &str| {
            let wanted = json!({ "email": email, "password": password });
            assert!(run(crate::services::register::register(&world, &caller(), request(wanted))).is_ok());
        };
        sign_up("free@example.org", "copper-Lantern-57-quartz");
        sign_up("ada@example.org", "copper-Lantern-57-quartz");
        run(world.clone().note_imported_hash("bcrypt", 16)).unwrap();
        for email in ["free@example.org", "ada@example.org"] {
            let attempted = attempt(&world, email, "copper-Lantern-57-quartz");
            assert!(matches!(attempted, Err(LoginError::NotVerified)));
        }
        let made_up = world.made_up();
        assert_eq!(made_up.len(), 2);
        assert_eq!(made_up.first(), made_up.last());
    }

    // Made by Django 1.11, of `correct horse battery`.
    const IMPORTED: &str = "pbkdf2_sha1$1$BuF1JYLlqHJg$cWdADCQK3QzciYAJpbJaNi4pShM=";
    const IMPORTED_PASSWORD: &str = "correct horse battery";

    fn import(world: &World, address: &str, hash: &str) {
        let user = CreateUser {
            email: Some(address.into()),
            phone: None,
            role: Role::Client,
            password: Credential::Imported(hash.into()),
            first_name: String::new(),
            last_name: String::new(),
        };
        run(create_user(world, &caller(), user)).unwrap();
    }

    /// The work of each scheme, in order of the schemes.
    fn sum(costs: &[Cost]) -> Vec<(String, u64)> {
        let mut sums = std::collections::BTreeMap::new();
        for cost in costs {
            *sums.entry(cost.scheme.to_string()).or_insert(0) += cost.work;
        }
        sums.into_iter().collect()
    }

    #[test]
    fn a_failure_is_the_same_work_for_unknown_native_and_imported_users() {
        let world = world();
        import(&world, "grace@example.org", IMPORTED);
        import(&world, "mary@example.org", &IMPORTED.replace("$1$", "$300$"));
        import(&world, "joan@example.org", "pbkdf2_sha256$20$salt$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        let stored = |who: &str| {
            let user = world.users().into_iter().find(|user| user.email.as_deref() == Some(who));
            passwords::imported_cost(user.and_then(|user| user.password_hash).as_deref())
        };
        for (n, who) in
            ["nobody@example.org", "ada@example.org", "grace@example.org", "mary@example.org", "joan@example.org"]
                .into_iter()
                .enumerate()
        {
            let hashes = world.hashes();
            assert!(matches!(attempt(&world, who, "wrong-Kettle"), Err(LoginError::WrongCredentials)));
            assert_eq!(world.hashes(), hashes + 1, "{who}");
            assert_eq!(world.made_up().len(), n + 1, "{who}");
            let mut done = world.made_up().pop().unwrap();
            done.extend(stored(who));
            assert_eq!(sum(&done), [("pbkdf2_sha1".to_owned(), 300), ("pbkdf2_sha256".to_owned(), 20)], "{who}");
        }
    }

    #[test]
    fn a_right_password_makes_up_for_nothing() {
        let world = world();
        import(&world, "grace@example.org", IMPORTED);
        attempt(&world, "ada@example.org", RIGHT).unwrap();
        attempt(&world, "grace@example.org", IMPORTED_PASSWORD).unwrap();
        assert_eq!(world.made_up(), Vec::<Vec<Cost>>::new());
    }

    #[test]
    fn without_imported_hashes_nothing_is_made_up() {
        let world = world();
        for who in ["nobody@example.org", "ada@example.org"] {
            assert!(attempt(&world, who, "wrong-Kettle").is_err());
        }
        assert!(!world.calls().contains(&"make_up"));
    }

    #[test]
    fn behind_a_lock_right_and_wrong_passwords_are_the_same_work() {
        let world = world();
        import(&world, "grace@example.org", IMPORTED);
        for _ in 0..5 {
            let _ = attempt(&world, "grace@example.org", "wrong-Kettle");
        }
        let work = |password: &str| {
            world.calls();
            assert!(matches!(attempt(&world, "grace@example.org", password), Err(LoginError::Locked(_))));
            (world.calls(), world.made_up().pop().unwrap())
        };
        let (wrong, right) = (work("wrong-Kettle"), work(IMPORTED_PASSWORD));
        // A wrong one for an imported hash costs today's hash within the verification.
        let (extra, others): (Vec<_>, Vec<_>) = right.0.into_iter().partition(|call| *call == "hash_password");
        assert_eq!((others, right.1), wrong);
        assert_eq!(extra, ["hash_password"]);
    }

    #[test]
    fn an_imported_hash_is_replaced_at_the_first_sign_in_and_not_again() {
        let world = World::new();
        import(&world, "grace@example.org", IMPORTED);
        let hash = || world.users().remove(0).password_hash.unwrap();
        assert!(attempt(&world, "grace@example.org", "wrong-Kettle").is_err());
        assert_eq!(hash(), IMPORTED);
        attempt(&world, "grace@example.org", IMPORTED_PASSWORD).unwrap();
        let replaced = hash();
        assert!(replaced.starts_with("$argon2id$"), "{replaced}");
        attempt(&world, "grace@example.org", IMPORTED_PASSWORD).unwrap();
        assert_eq!(hash(), replaced);
        assert_eq!(world.users()[0].password_changed_at, None, "it is the same password");
    }

    #[test]
    fn stuffing_is_audited_once_and_slows_its_address_only() {
        let world = world();
        for n in 0..19 {
            assert!(attempt(&world, &format!("user{n}@example.org"), "wrong-Kettle").is_err());
        }
        let audits = || world.audited().iter().filter(|(action, _)| *action == "credential_stuffing").count();
        assert_eq!(audits(), 0);
        for n in 19..22 {
            assert!(attempt(&world, &format!("user{n}@example.org"), "wrong-Kettle").is_err());
        }
        assert_eq!(audits(), 1);
        assert!(world.audited().contains(&("credential_stuffing", "slowed")));
        // The two that followed used up the address's tries: not even a hash is made now.
        let hashes = world.hashes();
        let refused = attempt(&world, "ada@example.org", RIGHT).err().unwrap();
        assert_eq!(Problem::from(refused).code, "throttled");
        assert_eq!(world.hashes(), hashes);
        let elsewhere = Caller { ip: [198, 51, 100, 1].into(), ..caller() };
        let wanted = json!({ "email_or_phone": "ada@example.org", "password": RIGHT });
        assert!(run(login(&world, &elsewhere, request(wanted))).is_ok());
        world.pass(Duration::from_secs(120));
        assert!(attempt(&world, "ada@example.org", RIGHT).is_ok(), "slowed is not shut out");
        world.pass(Duration::from_secs(3600));
        for n in 0..20 {
            assert!(attempt(&world, &format!("user{n}@example.org"), "wrong-Kettle").is_err());
        }
        assert_eq!(audits(), 2, "another time is told again");
    }

    #[test]
    fn one_account_tried_often_is_no_stuffing() {
        let world = world();
        for _ in 0..40 {
            assert!(attempt(&world, "ada@example.org", "wrong-Kettle").is_err());
        }
        assert!(!world.audited().iter().any(|(action, _)| *action == "credential_stuffing"));
    }

    #[test]
    fn strangers_cannot_lock_a_person_out_of_their_own_device() {
        let world = world();
        let device = attempt(&world, "ada@example.org", RIGHT).unwrap().device;
        let known = Caller { device_token: Some(device), ..caller() };
        let on_device = |password: &str| {
            let wanted = json!({ "email_or_phone": "ada@example.org", "password": password });
            run(login(&world, &known, request(wanted)))
        };
        for _ in 0..6 {
            assert!(attempt(&world, "ada@example.org", "wrong-Kettle").is_err());
        }
        assert!(matches!(attempt(&world, "ada@example.org", RIGHT), Err(LoginError::Locked(_))));
        assert!(on_device(RIGHT).is_ok());
        assert!(matches!(attempt(&world, "ada@example.org", RIGHT), Err(LoginError::Locked(_))), "still, elsewhere");
        for _ in 0..5 {
            assert!(matches!(on_device("wrong-Kettle"), Err(LoginError::WrongCredentials)));
        }
        assert!(matches!(on_device(RIGHT), Err(LoginError::Locked(_))), "it has a count of its own");
    }

    #[test]
    fn either_identifier_signs_in_and_counts_for_itself() {
        let world = World::with_ada();
        for _ in 0..5 {
            assert!(attempt(&world, "ada@example.org", "wrong-Kettle").is_err());
        }
        assert!(matches!(attempt(&world, "ada@example.org", RIGHT), Err(LoginError::Locked(_))));
        assert!(attempt(&world, "0803 123 4567", RIGHT).is_ok());
    }

    #[test]
    fn a_failure_without_room_to_make_up_is_counted_all_the_same() {
        let world = world();
        import(&world, "grace@example.org", IMPORTED);
        world.overload_make_up(true);
        for _ in 0..5 {
            assert!(attempt(&world, "ada@example.org", "wrong-Kettle").is_err());
        }
        world.overload_make_up(false);
        assert!(matches!(attempt(&world, "ada@example.org", RIGHT), Err(LoginError::Locked(_))));
    }

    #[test]
    fn a_right_password_that_comes_after_the_lock_is_the_same_work_as_a_wrong_one() {
        let made_up = |password: &str| {
            let world = world();
            import(&world, "grace@example.org", IMPORTED);
            let beside = world.clone();
            // They are counted while this one is verified.
            world.on_next_hash(move || {
                for _ in 0..5 {
                    assert!(attempt(&beside, "ada@example.org", "wrong-Kettle").is_err());
                }
            });
            assert!(matches!(attempt(&world, "ada@example.org", password), Err(LoginError::Locked(_))));
            world.made_up().len()
        };
        assert_eq!(made_up(RIGHT), made_up("wrong-Kettle"));
    }
}
