//! Proves an address or number with its code; the account is verified and signed in (contract §2).

use std::time::Duration;

use garde::Validate;
use serde::Deserialize;

use super::{
    audit, codes,
    codes::Purpose,
    devices,
    error::Unavailable,
    events::Event,
    fields::{FieldErrors, NON_FIELD, Text, at_most, field_error, nullable, present, required},
    identifier::Identifier,
    letters::Letter,
    lockout::{self, Subject},
    model::{Caller, Confirmation, Role, User},
    outbox,
    ports::{Audit as _, Outbox as _, Ports, Users as _},
    problem::Problem,
    registration::{self, Pending},
    second_factor::{Entered, enter},
    session::{self, OpenError},
};

/// Names an account: by challenge or by identifier.
#[derive(Debug, Deserialize, Validate)]
pub struct VerifyOtp {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required), custom(at_most::<32>))]
    otp: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    challenge: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    email: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    phone: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    email_or_phone: Option<Text>,
}

/// Why nobody was verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyOtpError {
    /// Fields are missing or wrong.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// No such code: wrong, spent, run out, guessed at too often, or no such account.
    #[error("the code is wrong")]
    WrongCode,
    /// Too many failed sign-ins for this identifier.
    #[error("the identifier is locked")]
    Locked(Duration),
    /// The code was right, but an operator has disabled the account.
    #[error("the account is disabled")]
    Disabled,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<VerifyOtpError> for Problem {
    fn from(error: VerifyOtpError) -> Self {
        match error {
            VerifyOtpError::Invalid(errors) => Self::invalid(errors),
            VerifyOtpError::WrongCode => Self {
                errors: Some(field_error("otp", "The code is wrong or has expired.")),
                ..Self::new(400, "invalid_otp", "The code is wrong or has expired.")
            },
            VerifyOtpError::Locked(wait) => {
                Self::new(429, "account_locked", "Too many failed attempts. Please try again later.").after(wait)
            }
            VerifyOtpError::Disabled => Self::new(403, "account_disabled", "This account is disabled."),
            VerifyOtpError::Unavailable(error) => error.into(),
        }
    }
}

/// Whom a request is about.
pub enum Target {
    /// The bearer of a challenge, with what they registered.
    Challenge(String, Option<Pending>),
    /// An identifier.
    Identifier(Identifier),
}

/// Reads the one of `challenge`, `email`, `phone`, `email_or_phone` that is given.
///
/// # Errors
/// Sentences when none or several are given, or the one given is malformed.
pub async fn target<P: Ports>(
    ports: &P,
    challenge: Option<Text>,
    email: Option<Text>,
    phone: Option<Text>,
    email_or_phone: Option<Text>,
) -> Result<Target, VerifyOtpError> {
    let region = &ports.policy().default_region;
    let given = |text: Option<Text>| text.map(|text| text.0).filter(|text| !text.is_empty());
    let invalid = |field: &str, sentence: String| VerifyOtpError::Invalid(field_error(field, sentence));
    match (given(challenge), given(email), given(phone), given(email_or_phone)) {
        (Some(challenge), None, None, None) => {
            let pending = registration::pending(ports, &challenge).await?;
            Ok(Target::Challenge(challenge, pending))
        }
        (None, Some(email), None, None) => {
            Identifier::email(&email).map(Target::Identifier).map_err(|error| invalid("email", error.to_string()))
        }
        (None, None, Some(phone), None) => Identifier::phone(&phone, region)
            .map(Target::Identifier)
            .map_err(|error| invalid("phone", error.to_string())),
        (None, None, None, Some(either)) => Identifier::email_or_phone(&either, region)
            .map(Target::Identifier)
            .map_err(|error| invalid("email_or_phone", error.to_string())),
        (None, None, None, None) => {
            Err(invalid(NON_FIELD, "Give a challenge, an email address or a phone number.".to_owned()))
        }
        _ => Err(invalid(NON_FIELD, "Give only one of challenge, email, phone and email_or_phone.".to_owned())),
    }
}

/// Spends the code, verifies the account, opens a session.
///
/// # Errors
/// [`VerifyOtpError`].
pub async fn verify_otp<P: Ports>(ports: &P, caller: &Caller, request: VerifyOtp) -> Result<Entered, VerifyOtpError> {
    let guess = request.otp.map(|otp| otp.0).unwrap_or_default();
    let target = target(ports, request.challenge, request.email, request.phone, request.email_or_phone).await?;
    let (user, pending, stand_in, identifier) = match target {
        Target::Challenge(challenge, pending) => {
            let id = pending.as_ref().map_or_else(|| ports.keys().stand_in(&challenge), |pending| pending.user_id);
            let identifier = pending.as_ref().map(Pending::identifier);
            (ports.store().await?.user(id).await?, pending, id, identifier)
        }
        Target::Identifier(identifier) => {
            let stand_in = ports.keys().stand_in(&identifier.comparable());
            (ports.user_of(&identifier).await?, None, stand_in, Some(identifier))
        }
    };
    // It signs in, so it obeys the lock, for identifiers with and without an account (ABUSE 19).
    if let Some(identifier) = identifier {
        let known = devices::known(ports, caller, user.as_ref());
        if let Some(wait) = lockout::locked_for(ports, &Subject::new(ports, &identifier, known.as_ref())).await? {
            return refuse(ports, caller, user.as_ref(), "locked", VerifyOtpError::Locked(wait)).await;
        }
    }
    // For an account that waits for no code, the same calls are made with an id that has none.
    let user = user.filter(|user| !user.is_verified);
    let spent = codes::check(ports, user.as_ref().map_or(stand_in, |user| user.id), Purpose::Registration, "", &guess);
    let (Some(user), Some(spent)) = (&user, spent.await?) else {
        return refuse(ports, caller, user.as_ref(), "invalid_otp", VerifyOtpError::WrongCode).await;
    };
    if !user.is_active {
        return refuse(ports, caller, Some(user), "disabled", VerifyOtpError::Disabled).await;
    }

    let done = confirm(ports, caller, user, pending.as_ref()).await;
    if matches!(done, Err(VerifyOtpError::Unavailable(_))) {
        // Nothing was verified, so the code is not spent; should this fail too, a new one can be had.
        let _ = codes::give_back(ports, &spent).await;
    }
    done
}

async fn confirm<P: Ports>(
    ports: &P,
    caller: &Caller,
    user: &User,
    pending: Option<&Pending>,
) -> Result<Entered, VerifyOtpError> {
    let with = match pending {
        Some(pending) => pending.confirmation(),
        // The code alone does not tell which of several people's passwords its owner chose.
        None if user.is_contested => Confirmation {
            password_hash: None,
            role: Role::Client,
            auth_provider: user.auth_provider,
            first_name: String::new(),
            last_name: String::new(),
        },
        None => Confirmation {
            password_hash: user.password_hash.clone(),
            role: user.role,
            auth_provider: user.auth_provider,
            first_name: user.first_name.clone(),
            last_name: user.last_name.clone(),
        },
    };
    let warning = with.password_hash.is_none().then(|| identifier_of(user)).flatten().map(|identifier| {
        let policy = ports.policy();
        let reset_url = format!("{}{}", policy.public_url, policy.links.password_forgotten);
        outbox::letter(ports, &identifier, Letter::PasswordRemoved { reset_url }, None)
    });
    let opened = ports
        .transaction(async |store| {
            if !store.confirm_user(user.id, &with, ports.now()).await? {
                return Err(VerifyOtpError::WrongCode);
            }
            store.enqueue(&outbox::event(ports, &Event::UserVerified { user_id: user.id })).await?;
            if let Some(warning) = &warning {
                store.enqueue(warning).await?;
            }
            match session::open(ports, store, with.apply(user.clone()), None, "verify_otp", caller).await {
                Ok(opened) => Ok(opened),
                Err(OpenError::Changed) => Err(VerifyOtpError::WrongCode),
                Err(OpenError::Unavailable(error)) => Err(error.into()),
            }
        })
        .await?;
    // After the commit: a fault here must not undo it.
    if let (Some(identifier), Some(proven)) = (identifier_of(user), &with.password_hash)
        && let Err(error) = registration::forget_waiting(ports, &identifier, proven).await
    {
        tracing::warn!(error = %error, "a proven registration's hash not forgotten");
    }
    Ok(enter(ports, opened, identifier_of(user).as_ref()).await?)
}

async fn refuse<P: Ports>(
    ports: &P,
    caller: &Caller,
    user: Option<&User>,
    reason: &'static str,
    error: VerifyOtpError,
) -> Result<Entered, VerifyOtpError> {
    let event = audit::event(ports, "verify_otp", caller).refused(reason);
    let event = user.map(|user| event.clone().of_user(user.id)).unwrap_or(event);
    ports.store_to_write().await?.record(&event).await?;
    Err(error)
}

/// Where letters to a user go: the address, else the number.
pub fn identifier_of(user: &User) -> Option<Identifier> {
    let phone = || user.phone.clone().map(Identifier::Phone);
    user.email.clone().map(Identifier::Email).or_else(phone)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::services::{
        login::{Login, LoginError, login},
        memory::{ADDRESS, PASSWORD, World, caller, request},
        register::register,
        resend_otp::resend_otp,
        run::run,
        session::SignedIn,
    };

    const WRONG: &str = "orange-Lantern-41";

    fn sign_up(world: &World) -> String {
        let wanted = json!({ "email": ADDRESS, "password": PASSWORD });
        run(register(world, &caller(), request(wanted))).unwrap().challenge
    }

    fn prove(world: &World, body: Value) -> Result<SignedIn, VerifyOtpError> {
        run(verify_otp(world, &caller(), request(body))).map(Entered::signed_in)
    }

    fn lock(world: &World, who: &str) {
        for _ in 0..5 {
            let wanted = json!({ "email_or_phone": who, "password": WRONG });
            assert!(matches!(
                run(login(world, &caller(), request::<Login>(wanted))),
                Err(LoginError::WrongCredentials)
            ));
        }
    }

    #[test]
    fn a_code_verifies_signs_in_and_is_spent() {
        let world = World::new();
        let challenge = sign_up(&world);
        let body = json!({ "challenge": challenge, "otp": world.code() });
        let signed_in = prove(&world, body.clone()).unwrap();
        assert!(world.users()[0].is_verified && world.is_alive(&signed_in.tokens));
        assert_eq!(world.audited().last(), Some(&("verify_otp", "")));
        assert!(world.events().contains(&"UserVerified".to_owned()));
        assert!(matches!(prove(&world, body), Err(VerifyOtpError::WrongCode)));
        assert_eq!(world.audited().last(), Some(&("verify_otp", "invalid_otp")));
    }

    #[test]
    fn a_code_obeys_the_lock_and_is_not_spent_by_it() {
        for by_challenge in [true, false] {
            let world = World::new();
            let challenge = sign_up(&world);
            lock(&world, ADDRESS);
            let body = |world: &World| match by_challenge {
                true => json!({ "challenge": challenge, "otp": world.code() }),
                false => json!({ "email": ADDRESS, "otp": world.code() }),
            };
            let refused = prove(&world, body(&world)).err().unwrap();
            assert!(matches!(refused, VerifyOtpError::Locked(wait) if wait <= Duration::from_secs(900)));
            assert_eq!(world.audited().last(), Some(&("verify_otp", "locked")));
            let problem = Problem::from(refused);
            assert_eq!((problem.status, problem.code), (429, "account_locked"));
            assert!(!world.users()[0].is_verified && world.sessions().is_empty());
            world.pass(Duration::from_secs(901));
            run(resend_otp(&world, &caller(), request(json!({ "email": ADDRESS })))).unwrap();
            assert!(prove(&world, body(&world)).is_ok());
        }
    }

    #[test]
    fn a_lock_that_is_lifted_leaves_the_code_good() {
        let world = World::new();
        sign_up(&world);
        lock(&world, ADDRESS);
        let body = json!({ "email_or_phone": ADDRESS, "otp": world.code() });
        // More tries behind the lock than a code has guesses.
        for _ in 0..6 {
            assert!(matches!(prove(&world, body.clone()), Err(VerifyOtpError::Locked(_))));
        }
        run(lockout::lift(&world, &Identifier::email(ADDRESS).unwrap())).unwrap();
        assert!(prove(&world, body).is_ok());
    }

    #[test]
    fn a_lock_tells_nobody_whether_there_is_an_account() {
        let world = World::new();
        sign_up(&world);
        let calls = |who: &str| {
            lock(&world, who);
            world.calls();
            let refused = prove(&world, json!({ "email": who, "otp": "not-it" }));
            assert!(matches!(refused, Err(VerifyOtpError::Locked(_))), "{who}");
            world.calls()
        };
        assert_eq!(calls(ADDRESS), calls("nobody@example.org"));
    }

    #[test]
    fn a_wrong_code_costs_the_same_with_and_without_an_account() {
        let world = World::new();
        sign_up(&world);
        let verified = world.add("grace@example.org", None);
        let calls = |who: &str| {
            world.calls();
            assert!(matches!(prove(&world, json!({ "email": who, "otp": "not-it" })), Err(VerifyOtpError::WrongCode)));
            world.calls()
        };
        let waiting = calls(ADDRESS);
        assert_eq!(calls("nobody@example.org"), waiting);
        assert_eq!(calls(verified.email.as_deref().unwrap()), waiting);
    }

    #[test]
    fn only_the_right_code_learns_of_a_disabled_account() {
        let world = World::new();
        sign_up(&world);
        world.change_user(|user| user.is_active = false);
        let with = |otp: &str| prove(&world, json!({ "email": ADDRESS, "otp": otp }));
        assert!(matches!(with("not-it"), Err(VerifyOtpError::WrongCode)));
        assert!(matches!(with(&world.code()), Err(VerifyOtpError::Disabled)));
        assert!(!world.users()[0].is_verified && world.sessions().is_empty());
    }

    #[test]
    fn a_code_of_a_reset_verifies_nobody() {
        let world = World::new();
        sign_up(&world);
        let user = world.users().remove(0);
        let code = run(codes::issue(&world, user.id, Purpose::PasswordReset, "")).unwrap();
        assert!(code == world.code() || prove(&world, json!({ "email": ADDRESS, "otp": code })).is_err());
        assert!(prove(&world, json!({ "email": ADDRESS, "otp": world.code() })).is_ok());
    }

    #[test]
    fn a_request_names_one_account() {
        let world = World::new();
        for body in [
            json!({ "otp": "123456" }),
            json!({ "otp": "123456", "email": "", "challenge": null }),
            json!({ "otp": "123456", "email": ADDRESS, "phone": "+2348031234567" }),
            json!({ "otp": "123456", "email": "ada@" }),
        ] {
            assert!(matches!(prove(&world, body.clone()), Err(VerifyOtpError::Invalid(_))), "{body}");
        }
        assert!(matches!(prove(&world, json!({ "otp": "1", "challenge": "forged" })), Err(VerifyOtpError::WrongCode)));
    }
}
