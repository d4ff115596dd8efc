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

/// Why a sign-in may not go on.
#[derive(Debug, thiserror::Error)]
pub enum SlowedError {
    /// The address is slowed and has used up its tries.
    #[error("the address is slowed")]
    Throttled(Problem),
    /// The store is away.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Counts a sign-in of a slowed address against its own limit; nobody else is concerned.
///
/// # Errors
/// [`SlowedError`].
pub async fn admit_slowed<P: Ports>(ports: &P, caller: &Caller) -> Result<(), SlowedError> {
    let Some(rate) = ports.policy().stuffing.rate else { return Ok(()) };
    let network = client_network(caller);
    if ports.ephemeral().get(&slowed_key(&network)).await?.is_none() {
        return Ok(());
    }
    let rule = Rule { key: format!("limit:slowed:{network}"), rate };
    admit_by(ports, &[rule]).await.map(drop).map_err(SlowedError::Throttled)
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
    Ok(store.put_if_absent(&slowed_key(&network), b"1", policy.duration).await?.is_none())
}

fn slowed_key(network: &str) -> String {
    format!("slowed:{network}")
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

    #[test]
    fn many_accounts_from_one_address_slow_it_and_no_other() {
        let (world, other) = (World::new(), Caller { ip: [198, 51, 100, 1].into(), ..caller() });
        for name in 1..20 {
            assert!(!fail(&world, &caller(), name) && !fail(&world, &caller(), name), "one account counts once");
        }
        assert!(run(admit_slowed(&world, &caller())).is_ok());
        assert!(fail(&world, &caller(), 20));
        assert!(!fail(&world, &caller(), 21), "it is told once");
        assert!(run(admit_slowed(&world, &caller())).is_ok());
        assert!(run(admit_slowed(&world, &caller())).is_ok());
        let slowed = run(admit_slowed(&world, &caller()));
        assert!(matches!(slowed, Err(SlowedError::Throttled(problem)) if problem.status == 429));
        for _ in 0..5 {
            assert!(run(admit_slowed(&world, &other)).is_ok());
        }
        world.pass(Duration::from_secs(3601));
        for _ in 0..5 {
            assert!(run(admit_slowed(&world, &caller())).is_ok());
        }
    }
}
