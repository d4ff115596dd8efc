//! Lifts a lock-out for an operator.

use super::{
    audit,
    error::Unavailable,
    identifier::{Identifier, InvalidIdentifier},
    lockout,
    model::Caller,
    ports::{Audit as _, Ports, Users as _},
    register::stored_identifiers,
    second_factor,
};

/// Why nothing was lifted; `Display` is the sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// The address or number is malformed.
    #[error(transparent)]
    Identifier(#[from] InvalidIdentifier),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Lifts the lock of an identifier, and of the other one of its user where there is one, on every
/// device, and that of their second factor, the day's included; `true` when something was locked.
///
/// # Errors
/// [`UnlockError`].
pub async fn unlock<P: Ports>(ports: &P, caller: &Caller, typed: &str) -> Result<bool, UnlockError> {
    let identifier = Identifier::email_or_phone(typed, &ports.policy().default_region)?;
    let user = ports.store().await?.user_by_identifier(&identifier).await?;
    let mut all = user.as_ref().map(stored_identifiers).unwrap_or_default();
    if !all.iter().any(|own| own.comparable() == identifier.comparable()) {
        all.push(identifier.clone());
    }
    let mut was_locked = false;
    for identifier in &all {
        was_locked |= lockout::lift(ports, identifier).await?;
    }
    if let Some(user) = &user {
        was_locked |= second_factor::lift(ports, user.id).await?;
    }
    let event = audit::event(ports, "unlock", caller).with_identifier(ports, &identifier);
    let event = user.map(|user| event.clone().of_user(user.id)).unwrap_or(event);
    ports.store_to_write().await?.record(&event).await?;
    Ok(was_locked)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::services::{
        login::{Login, LoginError, login},
        memory::{ADDRESS, NUMBER, PASSWORD, World, caller, request},
        run::run,
    };

    const WRONG: &str = "orange-Lantern-41";

    fn attempt(world: &World, caller: &Caller, who: &str, password: &str) -> Result<(), LoginError> {
        let wanted = json!({ "email_or_phone": who, "password": password });
        run(login(world, caller, request::<Login>(wanted))).map(drop)
    }

    fn lock(world: &World, caller: &Caller, who: &str) {
        for _ in 0..5 {
            assert!(matches!(attempt(world, caller, who, WRONG), Err(LoginError::WrongCredentials)));
        }
        assert!(matches!(attempt(world, caller, who, PASSWORD), Err(LoginError::Locked(_))));
    }

    #[test]
    fn naming_one_identifier_unlocks_both() {
        for typed in ["ADA@Example.org", "0803 123 4567"] {
            let world = World::with_ada();
            lock(&world, &caller(), ADDRESS);
            lock(&world, &caller(), NUMBER);
            assert!(run(unlock(&world, &caller(), typed)).unwrap());
            assert_eq!(world.audited().last(), Some(&("unlock", "")));
            for who in [ADDRESS, NUMBER] {
                for _ in 0..4 {
                    assert!(matches!(attempt(&world, &caller(), who, WRONG), Err(LoginError::WrongCredentials)));
                }
                assert!(attempt(&world, &caller(), who, PASSWORD).is_ok(), "{who} counts anew");
            }
            assert!(!run(unlock(&world, &caller(), typed)).unwrap(), "nothing is locked");
        }
    }

    #[test]
    fn a_lock_of_the_other_identifier_alone_is_lifted_too() {
        let world = World::with_ada();
        lock(&world, &caller(), NUMBER);
        assert!(run(unlock(&world, &caller(), ADDRESS)).unwrap());
        assert!(attempt(&world, &caller(), NUMBER, PASSWORD).is_ok());
    }

    #[test]
    fn known_devices_are_unlocked_too() {
        let world = World::with_ada();
        let device = world.sign_in(world.users()[0].id).device;
        let known = Caller { device_token: Some(device), ..caller() };
        lock(&world, &known, ADDRESS);
        assert!(attempt(&world, &caller(), ADDRESS, PASSWORD).is_ok(), "elsewhere nothing is locked");
        assert!(run(unlock(&world, &caller(), ADDRESS)).unwrap());
        assert!(attempt(&world, &known, ADDRESS, PASSWORD).is_ok());
    }

    #[test]
    fn an_identifier_without_an_account_can_be_unlocked_and_others_stay_locked() {
        let world = World::with_ada();
        lock(&world, &caller(), ADDRESS);
        lock(&world, &caller(), "nobody@example.org");
        assert!(run(unlock(&world, &caller(), "nobody@example.org")).unwrap());
        assert!(matches!(
            attempt(&world, &caller(), "nobody@example.org", PASSWORD),
            Err(LoginError::WrongCredentials)
        ));
        assert!(matches!(attempt(&world, &caller(), ADDRESS, PASSWORD), Err(LoginError::Locked(_))));
    }

    #[test]
    fn what_is_no_identifier_is_refused() {
        let world = World::with_ada();
        for typed in ["", "ada", "ada@", "12"] {
            assert!(matches!(run(unlock(&world, &caller(), typed)), Err(UnlockError::Identifier(_))), "{typed}");
        }
    }
}
