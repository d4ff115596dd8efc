//! Credential stuffing: one address tries the passwords of many accounts. Each fails once or twice, so
//! no account is ever locked; the address is slowed instead, for a time, and an audit event written.

use super::{
    error::Unavailable,
    identifier::Identifier,
    limits::{Rule, admit_by, client_network},
    model::Caller,
    ports::{Ephemeral as _, Ports},
    problem::Problem,
};

/// Counts a sign-in of a slowed address against its own limit; nobody else is concerned.
///
/// # Errors
/// The address has used up its tries.
pub async fn admit_slowed<P: Ports>(ports: &P, caller: &Caller) -> Result<(), Problem> {
    let Some(rate) = ports.policy().stuffing.rate else { return Ok(()) };
    let rule = Rule { key: format!("limit:slowed:{}", client_network(caller)), rate };
    admit_by(ports, &[rule]).await.map(drop)
}

/// Notes that a sign-in failed; `true` when this made the address a slowed one.
///
/// # Errors
/// The store is away.
pub async fn note_failure<P: Ports>(ports: &P, caller: &Caller, identifier: &Identifier) -> Result<bool, Unavailable> {
    let (policy, store) = (&ports.policy().stuffing, ports.ephemeral());
    let network = client_network(caller);
    let tried = data_encoding::HEXLOWER.encode(&ports.keys().blind_index(identifier));
    // Only one that has not failed from here before counts.
    if store.put_if_absent(&format!("tried:{network}:{tried}"), b"1", policy.window).await?.is_some() {
        return Ok(false);
    }
    if store.increment(&format!("tries:{network}"), policy.window).await? < policy.identifiers {
        return Ok(false);
    }
    // Exactly one of several failures side by side finds it absent.
    Ok(store.put_if_absent(&slowed_key(caller), b"1", policy.duration).await?.is_none())
}

/// Where it says that an address is slowed.
pub fn slowed_key(caller: &Caller) -> String {
    format!("slowed:{}", client_network(caller))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::services::{
        memory::{World, caller},
        run::run,
    };

    fn fail(world: &World, from: &Caller, name: u32) -> bool {
        let identifier = Identifier::email(&format!("user{name}@example.org")).unwrap();
        run(note_failure(world, from, &identifier)).unwrap()
    }

    fn admit(world: &World, from: &Caller) -> Result<(), Problem> {
        match run(world.get(&slowed_key(from))).unwrap() {
            Some(_) => run(admit_slowed(world, from)),
            None => Ok(()),
        }
    }

    #[test]
    fn many_accounts_from_one_address_slow_it_and_no_other() {
        let (world, other) = (World::new(), Caller { ip: [198, 51, 100, 1].into(), ..caller() });
        for name in 1..20 {
            assert!(!fail(&world, &caller(), name) && !fail(&world, &caller(), name), "one account counts once");
        }
        assert!(admit(&world, &caller()).is_ok());
        assert!(fail(&world, &caller(), 20));
        assert!(!fail(&world, &caller(), 21), "it is told once");
        assert!(admit(&world, &caller()).is_ok());
        assert!(admit(&world, &caller()).is_ok());
        let slowed = admit(&world, &caller());
        assert!(matches!(slowed, Err(problem) if problem.status == 429));
        for _ in 0..5 {
            assert!(admit(&world, &other).is_ok());
        }
        world.pass(Duration::from_secs(3601));
        for _ in 0..5 {
            assert!(admit(&world, &caller()).is_ok());
        }
    }
}
