//! One-time codes: six digits, kept as keyed digests under `otp:{user_id}:{purpose}` (contract §4).

use std::time::Duration;

use uuid::Uuid;

use super::{
    error::Unavailable,
    identifier::Identifier,
    model::UserId,
    ports::{Ephemeral, Ports},
};

/// What a code proves; one made for another purpose proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// That the registered address or number can be read.
    Registration,
}

impl Purpose {
    const fn word(self) -> &'static str {
        match self {
            Self::Registration => "registration",
        }
    }
}

/// A code that was accepted, and is spent.
#[derive(Debug)]
pub struct Spent {
    key: String,
    value: Vec<u8>,
    expires_in: Duration,
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Makes a code that replaces any earlier one for this user and purpose.
///
/// # Errors
/// The store is away.
pub async fn issue<P: Ports>(ports: &P, user: UserId, purpose: Purpose) -> Result<String, Unavailable> {
    let code = six_digits(ports);
    let issue = ports.new_id();
    let digest = ports.keys().code_digest(user, purpose.word(), &code);
    let value = [issue.as_bytes().as_slice(), digest.as_slice()].concat();
    ports.ephemeral().put(&key(user, purpose), &value, ports.policy().otp.ttl).await?;
    Ok(code)
}

/// Checks a guess. Every guess is counted before it is looked at, for the code and for the
/// account, so that guesses side by side get no more than their number. A right one spends the
/// code, for exactly one of several callers.
///
/// # Errors
/// The store is away.
pub async fn check<P: Ports>(
    ports: &P,
    user: UserId,
    purpose: Purpose,
    guess: &str,
) -> Result<Option<Spent>, Unavailable> {
    let (policy, store) = (&ports.policy().otp, ports.ephemeral());
    // As many calls for an account without a code as for one with: time must not tell.
    let by_account = store.increment(&format!("otp_account:{user}"), HOUR).await?;
    let key = key(user, purpose);
    let entry = store.get(&key).await?;
    let (issue, digest) = entry.as_ref().and_then(|entry| entry.value.split_first_chunk::<16>()).unzip();
    let counted = issue.map_or(user.0, |issue| Uuid::from_bytes(*issue));
    let of_code = store.increment(&format!("otp_guesses:{counted}"), policy.ttl).await?;
    let (Some(entry), Some(digest)) = (&entry, digest) else { return Ok(None) };
    if of_code > policy.guesses || by_account > policy.account_guesses {
        return Ok(None);
    }
    let is_right = super::keys::same(&ports.keys().code_digest(user, purpose.word(), guess), digest);
    if !is_right || !store.remove_if_equal(&key, &entry.value).await? {
        return Ok(None);
    }
    Ok(Some(Spent { key, value: entry.value.clone(), expires_in: entry.expires_in }))
}

/// Gives a spent code back, when what it was spent on could not be done.
///
/// # Errors
/// The store is away.
pub async fn give_back<P: Ports>(ports: &P, spent: &Spent) -> Result<(), Unavailable> {
    ports.ephemeral().put_if_absent(&spent.key, &spent.value, spent.expires_in).await.map(drop)
}

/// Claims the right to send a code or notice; `false` when the last one was a moment ago, or the
/// day's are used up.
///
/// Counted by account where there is one, else by identifier: a stranger who asks for codes to an
/// address without an account cannot hold up its owner's registration.
///
/// # Errors
/// The store is away.
pub async fn claim_send<P: Ports>(ports: &P, who: &SendTo<'_>) -> Result<bool, Unavailable> {
    let (policy, store) = (&ports.policy().otp, ports.ephemeral());
    let who = who.key(ports);
    if store.put_if_absent(&format!("sent:{who}"), b"1", policy.resend_interval).await?.is_some() {
        return Ok(false);
    }
    Ok(store.increment(&format!("sends:{who}"), DAY).await? <= policy.daily_sends)
}

/// Gives a claim back, when nothing could be sent.
///
/// # Errors
/// The store is away.
pub async fn release_send<P: Ports>(ports: &P, who: &SendTo<'_>) -> Result<(), Unavailable> {
    ports.ephemeral().remove(&format!("sent:{}", who.key(ports))).await
}

/// Whose sends are counted.
#[derive(Debug, Clone, Copy)]
pub enum SendTo<'a> {
    /// An account's.
    Account(UserId),
    /// Those to an address or number without an account.
    Identifier(&'a Identifier),
}

impl SendTo<'_> {
    fn key<P: Ports>(&self, ports: &P) -> String {
        match self {
            Self::Account(user) => user.to_string(),
            Self::Identifier(identifier) => data_encoding::HEXLOWER.encode(&ports.keys().blind_index(identifier)),
        }
    }
}

fn key(user: UserId, purpose: Purpose) -> String {
    format!("otp:{user}:{}", purpose.word())
}

// Values at the upper end are drawn again, so that every code is equally likely.
fn six_digits<P: Ports>(ports: &P) -> String {
    const CODES: u32 = 1_000_000;
    loop {
        let drawn = u32::from_be_bytes(ports.random());
        if drawn < u32::MAX - u32::MAX % CODES {
            return format!("{:06}", drawn % CODES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{memory::World, run::run};

    const USER: UserId = UserId(Uuid::from_u128(1));
    const OTHER: UserId = UserId(Uuid::from_u128(2));

    fn try_code(world: &World, user: UserId, code: &str) -> bool {
        run(check(world, user, Purpose::Registration, code)).unwrap().is_some()
    }

    fn wrong(code: &str) -> String {
        format!("{:06}", (code.parse::<u32>().unwrap() + 1) % 1_000_000)
    }

    #[test]
    fn a_code_works_once_for_its_user() {
        let world = World::new();
        let code = run(issue(&world, USER, Purpose::Registration)).unwrap();
        assert!(code.len() == 6 && code.bytes().all(|digit| digit.is_ascii_digit()));
        assert!(!try_code(&world, OTHER, &code));
        assert!(try_code(&world, USER, &code));
        assert!(!try_code(&world, USER, &code));
    }

    #[test]
    fn after_five_wrong_guesses_the_right_one_is_refused() {
        let world = World::new();
        let code = run(issue(&world, USER, Purpose::Registration)).unwrap();
        for _ in 0..5 {
            assert!(!try_code(&world, USER, &wrong(&code)));
        }
        assert!(!try_code(&world, USER, &code));
    }

    #[test]
    fn new_codes_do_not_buy_new_guesses_without_end() {
        let world = World::new();
        for _ in 0..4 {
            let code = run(issue(&world, USER, Purpose::Registration)).unwrap();
            for _ in 0..5 {
                assert!(!try_code(&world, USER, &wrong(&code)));
            }
        }
        let code = run(issue(&world, USER, Purpose::Registration)).unwrap();
        assert!(!try_code(&world, USER, &code));
    }

    #[test]
    fn a_code_runs_out_and_a_new_one_replaces_it() {
        let world = World::new();
        let code = run(issue(&world, USER, Purpose::Registration)).unwrap();
        world.pass(Duration::from_secs(301));
        assert!(!try_code(&world, USER, &code));
        let old = run(issue(&world, USER, Purpose::Registration)).unwrap();
        let new = run(issue(&world, USER, Purpose::Registration)).unwrap();
        assert!(old == new || !try_code(&world, USER, &old));
        assert!(try_code(&world, USER, &new));
    }

    #[test]
    fn a_code_given_back_works_again() {
        let world = World::new();
        let code = run(issue(&world, USER, Purpose::Registration)).unwrap();
        let spent = run(check(&world, USER, Purpose::Registration, &code)).unwrap().unwrap();
        run(give_back(&world, &spent)).unwrap();
        assert!(try_code(&world, USER, &code));
    }

    #[test]
    fn sends_keep_their_distance() {
        let world = World::new();
        let ada = Identifier::email("ada@example.org").unwrap();
        let may_send = |who: &SendTo<'_>| run(claim_send(&world, who)).unwrap();
        let (stranger, account) = (SendTo::Identifier(&ada), SendTo::Account(USER));
        assert!(may_send(&stranger) && !may_send(&stranger) && may_send(&account));
        for _ in 1..20 {
            world.pass(Duration::from_secs(61));
            assert!(may_send(&account));
        }
        world.pass(Duration::from_secs(61));
        assert!(!may_send(&account));
        run(release_send(&world, &stranger)).unwrap();
        assert!(may_send(&stranger));
    }
}
