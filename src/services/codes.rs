//! One-time codes: six digits, kept as keyed digests under `otp:{user_id}:{purpose}` (contract §4).

use std::time::Duration;

use uuid::Uuid;

use super::{
    error::Unavailable,
    identifier::Identifier,
    model::UserId,
    ports::{Claim, Entry, Ephemeral, Ports, Put},
};

/// What a code proves; one made for another purpose proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// That the registered address or number can be read.
    Registration,
    /// That whoever has forgotten a password can read the account's number.
    PasswordReset,
}

impl Purpose {
    const fn word(self) -> &'static str {
        match self {
            Self::Registration => "registration",
            Self::PasswordReset => "password_reset",
        }
    }
}

/// A value of the store that a right guess has found: a code, or the token of a link.
#[derive(Debug)]
pub struct Proof {
    key: String,
    value: Vec<u8>,
    expires_in: Duration,
}

impl Proof {
    /// Of what was found under a key.
    pub fn new(key: String, entry: Entry) -> Self {
        Self { key, value: entry.value, expires_in: entry.expires_in }
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// As [`draw`], and stores it.
#[cfg(test)]
pub async fn issue<P: Ports>(ports: &P, user: UserId, purpose: Purpose, binding: &str) -> Result<String, Unavailable> {
    let (code, put) = draw(ports, user, purpose, binding);
    ports.ephemeral().put(&put.key, &put.value, put.ttl).await?;
    Ok(code)
}

/// Makes a code that replaces any earlier one for this user and purpose once it is stored. It is no good once `binding`
/// is another.
pub fn draw<P: Ports>(ports: &P, user: UserId, purpose: Purpose, binding: &str) -> (String, Put) {
    let code = six_digits(ports);
    let issue = ports.new_id();
    let digest = ports.keys().code_digest(user, &bound(purpose, binding), &code);
    let value = [issue.as_bytes().as_slice(), digest.as_slice()].concat();
    (code, Put { key: key(user, purpose), value, ttl: ports.policy().otp.ttl })
}

fn bound(purpose: Purpose, binding: &str) -> String {
    if binding.is_empty() { purpose.word().to_owned() } else { format!("{}|{binding}", purpose.word()) }
}

/// Checks a guess and spends the code when it is right.
///
/// # Errors
/// The store is away.
pub async fn check<P: Ports>(
    ports: &P,
    user: UserId,
    purpose: Purpose,
    binding: &str,
    guess: &str,
) -> Result<Option<Proof>, Unavailable> {
    match self::guess(ports, user, purpose, binding, guess).await? {
        Some(proof) if spend(ports, &proof).await? => Ok(Some(proof)),
        _ => Ok(None),
    }
}

/// Checks a guess. Every guess is counted before it is looked at, for the code and for the
/// account over all its codes and purposes, so that guesses side by side get no more than their
/// number.
///
/// # Errors
/// The store is away.
pub async fn guess<P: Ports>(
    ports: &P,
    user: UserId,
    purpose: Purpose,
    binding: &str,
    guess: &str,
) -> Result<Option<Proof>, Unavailable> {
    let (policy, store) = (&ports.policy().otp, ports.ephemeral());
    // As many calls for an account without a code as for one with: time must not tell.
    let by_account = store.increment(&format!("otp_account:{user}"), HOUR).await?;
    let key = key(user, purpose);
    let entry = store.get(&key).await?;
    let (issue, digest) = entry.as_ref().and_then(|entry| entry.value.split_first_chunk::<16>()).unzip();
    let counted = issue.map_or(user.0, |issue| Uuid::from_bytes(*issue));
    let of_code = store.increment(&format!("otp_guesses:{counted}"), policy.ttl).await?;
    let Some(digest) = digest else { return Ok(None) };
    if of_code > policy.guesses || by_account > policy.account_guesses {
        return Ok(None);
    }
    let is_right = super::keys::same(&ports.keys().code_digest(user, &bound(purpose, binding), guess), digest);
    Ok(entry.filter(|_| is_right).map(|entry| Proof::new(key, entry)))
}

/// Spends what was proven; `true` for exactly one of several callers.
///
/// # Errors
/// The store is away.
pub async fn spend<P: Ports>(ports: &P, proof: &Proof) -> Result<bool, Unavailable> {
    ports.ephemeral().remove_if_equal(&proof.key, &proof.value).await
}

/// Gives back what was spent, when what it was spent on could not be done.
///
/// # Errors
/// The store is away.
pub async fn give_back<P: Ports>(ports: &P, proof: &Proof) -> Result<(), Unavailable> {
    ports.ephemeral().put_if_absent(&proof.key, &proof.value, proof.expires_in).await.map(drop)
}

/// Makes a user's code for a purpose worthless.
///
/// # Errors
/// The store is away.
pub async fn void<P: Ports>(ports: &P, user: UserId, purpose: Purpose) -> Result<(), Unavailable> {
    ports.ephemeral().remove(&key(user, purpose)).await
}

/// What is stored with the right to send.
pub struct Stored {
    /// In any case.
    pub always: Vec<Put>,
    /// With the right: what the letter proves.
    pub with: Put,
    /// Without it: the same for nobody.
    pub without: Put,
}

/// Asks for the right to send a code, link or notice, and stores what goes with it. It is not granted when the last one
/// for this purpose was a moment ago, or the day's, over all purposes, are used up.
///
/// One question in either case, with as many entries counted and stored: time must not tell that two identifiers have one
/// account.
///
/// Counted by account where there is one, else by identifier: a stranger who asks for codes to an
/// address without an account cannot hold up its owner's registration.
pub fn claim_send<P: Ports>(ports: &P, who: &SendTo<'_>, purpose: Purpose, stored: Stored) -> Claim {
    let policy = &ports.policy().otp;
    let key = who.key(ports);
    Claim {
        // Beside the counter, so that both lie on one page of the index.
        key: format!("sends:{key}:{}", purpose.word()),
        ttl: policy.resend_interval,
        had: format!("sends:{key}"),
        withheld: format!("sends:{key}:withheld"),
        window: DAY,
        most: policy.daily_sends,
        always: stored.always,
        with: stored.with,
        without: stored.without,
    }
}

/// Whose sends are counted.
#[derive(Debug, Clone, Copy)]
pub enum SendTo<'a> {
    /// An account's.
    Account(UserId),
    /// Those to an address or number without an account.
    Identifier(&'a Identifier),
}

/// Whether there is a right to send, with which nothing is stored that anybody asks for.
#[cfg(test)]
pub fn may_send<P: Ports>(ports: &P, who: &SendTo<'_>, purpose: Purpose) -> bool {
    let put = |key: &str| Put { key: key.to_owned(), value: Vec::new(), ttl: DAY };
    let stored = Stored { always: Vec::new(), with: put("with"), without: put("without") };
    super::run::run(ports.ephemeral().claim(&claim_send(ports, who, purpose, stored))).unwrap()
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
        run(check(world, user, Purpose::Registration, "", code)).unwrap().is_some()
    }

    fn wrong(code: &str) -> String {
        format!("{:06}", (code.parse::<u32>().unwrap() + 1) % 1_000_000)
    }

    #[test]
    fn a_code_works_once_for_its_user() {
        let world = World::new();
        let code = run(issue(&world, USER, Purpose::Registration, "")).unwrap();
        assert!(code.len() == 6 && code.bytes().all(|digit| digit.is_ascii_digit()));
        assert!(!try_code(&world, OTHER, &code));
        assert!(try_code(&world, USER, &code));
        assert!(!try_code(&world, USER, &code));
    }

    #[test]
    fn after_five_wrong_guesses_the_right_one_is_refused() {
        let world = World::new();
        let code = run(issue(&world, USER, Purpose::Registration, "")).unwrap();
        for _ in 0..5 {
            assert!(!try_code(&world, USER, &wrong(&code)));
        }
        assert!(!try_code(&world, USER, &code));
    }

    #[test]
    fn new_codes_do_not_buy_new_guesses_without_end() {
        let world = World::new();
        for _ in 0..4 {
            let code = run(issue(&world, USER, Purpose::Registration, "")).unwrap();
            for _ in 0..5 {
                assert!(!try_code(&world, USER, &wrong(&code)));
            }
        }
        let code = run(issue(&world, USER, Purpose::Registration, "")).unwrap();
        assert!(!try_code(&world, USER, &code));
    }

    #[test]
    fn a_code_runs_out_and_a_new_one_replaces_it() {
        let world = World::new();
        let code = run(issue(&world, USER, Purpose::Registration, "")).unwrap();
        world.pass(Duration::from_secs(301));
        assert!(!try_code(&world, USER, &code));
        let old = run(issue(&world, USER, Purpose::Registration, "")).unwrap();
        let new = run(issue(&world, USER, Purpose::Registration, "")).unwrap();
        assert!(old == new || !try_code(&world, USER, &old));
        assert!(try_code(&world, USER, &new));
    }

    #[test]
    fn a_code_is_bound_to_purpose_and_circumstances() {
        let world = World::new();
        let code = run(issue(&world, USER, Purpose::PasswordReset, "before")).unwrap();
        let found = |purpose, binding| run(check(&world, USER, purpose, binding, &code)).unwrap().is_some();
        assert!(!found(Purpose::Registration, "before"));
        assert!(!found(Purpose::PasswordReset, "after"));
        assert!(found(Purpose::PasswordReset, "before"));
    }

    #[test]
    fn guesses_count_over_all_purposes() {
        let world = World::new();
        for _ in 0..20 {
            assert!(!try_code(&world, USER, "000000"));
        }
        let code = run(issue(&world, USER, Purpose::PasswordReset, "")).unwrap();
        assert!(run(guess(&world, USER, Purpose::PasswordReset, "", &code)).unwrap().is_none());
    }

    #[test]
    fn a_code_given_back_works_again() {
        let world = World::new();
        let code = run(issue(&world, USER, Purpose::Registration, "")).unwrap();
        let spent = run(check(&world, USER, Purpose::Registration, "", &code)).unwrap().unwrap();
        run(give_back(&world, &spent)).unwrap();
        assert!(try_code(&world, USER, &code));
    }

    #[test]
    fn sends_keep_their_distance() {
        let world = World::new();
        let ada = Identifier::email("ada@example.org").unwrap();
        let may_send = |who: &SendTo<'_>| super::may_send(&world, who, Purpose::Registration);
        let (stranger, account) = (SendTo::Identifier(&ada), SendTo::Account(USER));
        assert!(may_send(&stranger) && !may_send(&stranger) && may_send(&account));
        for _ in 1..20 {
            world.pass(Duration::from_secs(61));
            assert!(may_send(&account));
        }
        world.pass(Duration::from_secs(61));
        assert!(!may_send(&account));
        assert!(!super::may_send(&world, &account, Purpose::PasswordReset), "the day's are for all purposes");
    }
}
