//! Devices that have signed in before (OWASP: device cookies). A device keeps the users it signed in
//! in a sealed token; for those it has a count of failures of its own, so that strangers who fail on
//! purpose cannot lock its owner out of it (ABUSE 18).

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    keys::Keys,
    model::{Caller, User, UserId},
    ports::Ports,
};

const PURPOSE: &str = "device";

// A family's tablet has a few users; a token must stay short.
const MOST_USERS: usize = 5;
const USER_BYTES: usize = 16 + 8;

/// A device, as its token tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    id: [u8; 16],
    // Who signed in on it and when, the latest first.
    users: Vec<(UserId, OffsetDateTime)>,
}

impl Device {
    /// What counts of failures on it are kept under.
    pub fn name(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.id)
    }

    // One that signed in before the password was changed may be in other hands.
    fn knows(&self, user: &User, ttl: Duration, now: OffsetDateTime) -> bool {
        let signed_in = self.users.iter().find(|(id, _)| *id == user.id).map(|(_, at)| *at);
        signed_in.is_some_and(|at| at + ttl > now && user.password_changed_at.is_none_or(|changed| at >= changed))
    }

    fn seal(&self, keys: &Keys, nonce: [u8; 24]) -> String {
        let mut clear = self.id.to_vec();
        for (id, at) in &self.users {
            clear.extend_from_slice(id.0.as_bytes());
            clear.extend_from_slice(&micros(*at).to_be_bytes());
        }
        keys.seal_challenge(PURPOSE, &clear, nonce)
    }

    fn open(keys: &Keys, token: &str) -> Option<Self> {
        let clear = keys.open_challenge(PURPOSE, token).ok()?;
        let (id, rest) = clear.split_first_chunk::<16>()?;
        let users = rest.chunks_exact(USER_BYTES).filter_map(|chunk| {
            let (user, at) = chunk.split_first_chunk::<16>()?;
            let at = i64::from_be_bytes(*at.first_chunk::<8>()?);
            let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1000).ok()?;
            Some((UserId(Uuid::from_bytes(*user)), at))
        });
        Some(Self { id: *id, users: users.collect() })
    }
}

fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or_default()
}

/// The caller's device, when this user has signed in on it.
pub fn known<P: Ports>(ports: &P, caller: &Caller, user: Option<&User>) -> Option<Device> {
    let device = Device::open(ports.keys(), caller.device_token.as_deref()?)?;
    device.knows(user?, ports.policy().device_ttl, ports.now()).then_some(device)
}

/// The token of the caller's device, on which `user` has signed in now.
pub fn remember<P: Ports>(ports: &P, caller: &Caller, user: UserId) -> String {
    let known = caller.device_token.as_deref().and_then(|token| Device::open(ports.keys(), token));
    let mut device = known.unwrap_or_else(|| Device { id: ports.random(), users: Vec::new() });
    device.users.retain(|(id, _)| *id != user);
    device.users.insert(0, (user, ports.now()));
    device.users.truncate(MOST_USERS);
    device.seal(ports.keys(), ports.random())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::memory::{World, caller};

    fn user(id: u128) -> User {
        User::new(UserId(Uuid::from_u128(id)), String::new(), OffsetDateTime::UNIX_EPOCH)
    }

    fn with(token: &str) -> Caller {
        Caller { device_token: Some(token.to_owned()), ..caller() }
    }

    #[test]
    fn a_device_is_known_to_whom_it_signed_in_and_to_nobody_else() {
        let world = World::new();
        let token = remember(&world, &caller(), user(1).id);
        assert!(known(&world, &with(&token), Some(&user(1))).is_some());
        assert_eq!(known(&world, &with(&token), Some(&user(2))), None);
        assert_eq!(known(&world, &with(&token), None), None);
        assert_eq!(known(&world, &caller(), Some(&user(1))), None);
        assert_eq!(known(&world, &with(&format!("{token}A")), Some(&user(1))), None);
    }

    #[test]
    fn several_users_of_one_device_are_known_and_it_stays_the_same() {
        let world = World::new();
        let mut token = remember(&world, &caller(), user(1).id);
        let name = known(&world, &with(&token), Some(&user(1))).unwrap().name();
        for id in 2..=5 {
            token = remember(&world, &with(&token), user(id).id);
        }
        for id in 1..=5 {
            assert_eq!(known(&world, &with(&token), Some(&user(id))).unwrap().name(), name);
        }
        token = remember(&world, &with(&token), user(6).id);
        assert_eq!(known(&world, &with(&token), Some(&user(1))), None, "the oldest makes room");
        assert!(token.len() < 300);
    }

    #[test]
    fn a_device_is_forgotten_with_time_and_with_a_new_password() {
        let world = World::new();
        let token = remember(&world, &caller(), user(1).id);
        world.pass(Duration::from_secs(1));
        let changed = User { password_changed_at: Some(world.now()), ..user(1) };
        assert_eq!(known(&world, &with(&token), Some(&changed)), None);
        world.pass(world.policy().device_ttl);
        assert_eq!(known(&world, &with(&token), Some(&user(1))), None);
    }
}
