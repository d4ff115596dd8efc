//! Everything a service may ask of the outside world.
//!
//! Each engine answers in its own way: the sync engine with values that are already there
//! (`std::future::Ready`), the async engine with futures that wait. Rules: a look-up returns
//! `Option`; "taken" and "late" are values; only [`Unavailable`] is an infrastructure error; a
//! unit of work opens no second connection, sends nothing and calls nobody.
#![expect(
    async_fn_in_trait,
    reason = "every engine runs a request on the thread that took it; no `Send` bound is wanted"
)]

use std::{net::IpAddr, sync::Arc, time::Duration};

use jsonwebtoken::DecodingKey;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    error::{Overloaded, Unavailable},
    identifier::Identifier,
    imported_hashes::{Cost, Profile},
    keys::Keys,
    limits::{Decision, Rule},
    model::{
        AuditEvent, AuthProvider, Channel, Confirmation, EndReason, Listed, LoginEvent, OutboxEntry, OutboxState, Page,
        Place, ProfileChanges, Session, SessionId, Settlement, User, UserId,
    },
    passwords::{HashAs, Password, Verified, Weakness},
    policy::Policy,
    session_cache::Known,
    totp::TotpFactor,
};

/// The world as one request sees it.
pub trait Ports {
    /// A connection to the durable database.
    type Store: Store;
    /// The ephemeral store.
    type Ephemeral: Ephemeral;

    /// The operator's decisions.
    fn policy(&self) -> &Policy;

    /// Keys derived from the master secret.
    fn keys(&self) -> &Keys;

    /// The time, UTC, in whole microseconds (what both databases keep).
    fn now(&self) -> OffsetDateTime;

    /// Bytes from the operating system's random source.
    fn random<const N: usize>(&self) -> [u8; N];

    /// A new UUIDv7 (RFC 9562 §5.7).
    fn new_id(&self) -> Uuid {
        let millis = u64::try_from(self.now().unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
        uuid::Builder::from_unix_timestamp_millis(millis, &self.random::<10>()).into_uuid()
    }

    /// Where an address is, as far as the operator's database of places knows.
    fn place(&self, ip: IpAddr) -> Place;

    /// Codes, counters and locks that run out by themselves.
    fn ephemeral(&self) -> &Self::Ephemeral;

    /// A connection on which every statement stands for itself.
    async fn store(&self) -> Result<Self::Store, Unavailable>;

    /// [`Users::user_by_identifier`]; those who look for somebody at the same time may do so together.
    async fn user_of(&self, identifier: &Identifier) -> Result<Option<User>, Unavailable> {
        self.store().await?.user_by_identifier(identifier).await
    }

    /// A connection on which a statement that writes stands for itself, in turn with other writers.
    async fn store_to_write(&self) -> Result<Self::Store, Unavailable> {
        self.store().await
    }

    /// A session and its user, as they were less than a second ago, and with every change that this process has
    /// made. Those who ask at once for what nobody has read yet wait for one statement.
    async fn known_session(&self, id: SessionId, user: UserId) -> Result<Option<Arc<Known>>, Unavailable>;

    /// Moves a session on, together with the others that are to move on at the same time: one commit serves them all.
    async fn rotate_session(&self, rotation: Rotation) -> Result<Option<Rotated>, Unavailable>;

    /// One unit of work: committed when `work` is `Ok`, undone when it is not.
    async fn transaction<T, E>(&self, work: impl AsyncFnOnce(&mut Self::Store) -> Result<T, E>) -> Result<T, E>
    where
        E: From<Unavailable>;

    /// A unit of work that is known beforehand, in one trip to the database, or in one commit with others'; `false` when its condition does not hold,
    /// and nothing was written.
    async fn write(&self, bundle: &Bundle<'_>) -> Result<bool, Unavailable> {
        self.transaction(async |store| bundle.write_each(store).await).await
    }

    /// Asks for a right and writes what depends on it, in one commit where both are in one file. `false` when the
    /// condition of the bundle does not hold, and nothing was written. Then, or when it fails, nobody has the right.
    async fn claim_and_write(&self, claiming: &Claiming<'_>) -> Result<bool, Unavailable> {
        claiming.one_after_the_other(self).await
    }

    /// Argon2id of `password`, as a PHC string.
    async fn hash_password(&self, password: Password, how: HashAs) -> Result<String, Overloaded>;

    /// Whether `password` is the one of `hash`, or else of `other`, which has the same salt. Without
    /// a hash it takes as long.
    async fn verify_password(
        &self,
        password: Password,
        hash: Option<String>,
        other: Option<String>,
    ) -> Result<Verified, Overloaded>;

    /// Whether a new password is common or easily guessed; where the hashes are made, since it may
    /// cost as much.
    async fn weakness(&self, password: Password, personal: Vec<String>) -> Result<Option<Weakness>, Overloaded>;

    /// Does the work that a failed sign-in lacks beside others, where the hashes are made.
    async fn make_up(&self, password: Password, profile: Profile, done: Option<Cost>) -> Result<(), Overloaded>;

    /// What a service of breached passwords says of a range of SHA-1 digests.
    async fn breaches(&self, prefix: &str) -> Result<String, Unavailable>;

    /// The key of this id that Google signs ID tokens with, if there is one.
    async fn google_key(&self, id: &str) -> Result<Option<Arc<DecodingKey>>, Unavailable>;
}

/// The durable database.
pub trait Store: Users + Sessions + Outbox + Audit + SecondFactors {}
impl<T: Users + Sessions + Outbox + Audit + SecondFactors> Store for T {}

/// Whether a row with unique values went in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Inserted {
    /// It did.
    Yes,
    /// One of its unique values is taken.
    Taken,
}

/// Rows that are written together.
#[derive(Clone, Copy)]
pub struct Bundle<'a> {
    /// What is done first.
    pub first: First<'a>,
    /// A new sign-in.
    pub session: Option<&'a Session>,
    /// What is audited.
    pub event: &'a AuditEvent,
    /// What is put into the outbox.
    pub entries: &'a [OutboxEntry],
}

/// Rows that depend on a right.
#[derive(Clone, Copy)]
pub struct Claiming<'a> {
    /// What is asked for.
    pub claim: &'a Claim,
    /// What is written with the right.
    pub granted: Bundle<'a>,
    /// What is written without it, instead of the event and the entries.
    pub withheld: (&'a AuditEvent, &'a [OutboxEntry]),
}

impl Claiming<'_> {
    /// Asks for the right, then writes, which is what [`Ports::claim_and_write`] comes to.
    ///
    /// # Errors
    /// The store or the database is away.
    pub async fn one_after_the_other<P: Ports + ?Sized>(&self, ports: &P) -> Result<bool, Unavailable> {
        let is_granted = ports.ephemeral().claim(self.claim).await?;
        let (event, entries) = self.withheld;
        let withheld = Bundle { event, entries, ..self.granted };
        let written = ports.write(if is_granted { &self.granted } else { &withheld }).await;
        if is_granted && !matches!(written, Ok(true)) {
            // As good as certainly nothing will be sent, so the next request need not wait; should this fail too, it must.
            let _ = ports.ephemeral().remove(&self.claim.key).await;
        }
        written
    }
}

/// What a [`Bundle`] does to table `users`, and may find that it cannot.
#[derive(Clone, Copy)]
pub enum First<'a> {
    /// [`Users::record_login`]; the rest only if that is `true`.
    SignIn {
        /// As they were looked up.
        user: &'a User,
        /// The password's hash, made anew.
        new_hash: Option<&'a str>,
        /// When.
        at: OffsetDateTime,
    },
    /// [`Users::insert_user`]; the rest only if nothing of theirs is taken.
    SignUp(&'a User),
    /// [`Users::renew_registration`]; the rest in any case.
    Renewal {
        /// Whose.
        user: UserId,
        /// Whether it was with another password.
        is_contested: bool,
        /// When.
        at: OffsetDateTime,
    },
    /// Nothing.
    Nothing,
}

impl Bundle<'_> {
    /// Whose row it changes, if anybody's that there was before.
    pub fn changed_user(&self) -> Option<UserId> {
        match self.first {
            First::SignIn { user, .. } => Some(user.id),
            First::Renewal { user, .. } => Some(user),
            First::SignUp(_) | First::Nothing => None,
        }
    }

    /// How much there is to send.
    pub fn letters(&self) -> usize {
        self.entries.iter().filter(|entry| entry.channel != Channel::Event).count()
    }

    /// Writes row by row, which is what [`Ports::write`] comes to; `false` when nothing is to be kept.
    ///
    /// # Errors
    /// The database is away.
    pub async fn write_each(&self, store: &mut impl Store) -> Result<bool, Unavailable> {
        let holds = match self.first {
            First::SignIn { user, new_hash, at } => store.record_login(user, new_hash, at).await?,
            First::SignUp(user) => store.insert_user(user).await? == Inserted::Yes,
            First::Renewal { user, is_contested, at } => {
                store.renew_registration(user, is_contested, at).await?;
                true
            }
            First::Nothing => true,
        };
        if !holds {
            return Ok(false);
        }
        if let Some(session) = self.session {
            store.insert_session(session).await?;
        }
        store.record(self.event).await?;
        for entry in self.entries {
            store.enqueue(entry).await?;
        }
        Ok(true)
    }
}

/// What a unit of work came to, by what it answered and by how its commit, or where it failed its rollback, ended.
///
/// # Errors
/// The work's own, or that it was not committed.
pub fn concluded<T, E: From<Unavailable>>(done: Result<T, E>, ended: Result<(), Unavailable>) -> Result<T, E> {
    match (done, ended) {
        (done, Ok(())) => done,
        (Ok(_), Err(error)) => Err(error.into()),
        // The work's own error says more; the connection is closed, which undoes the work.
        (done, Err(error)) => {
            tracing::warn!(error = %error, "not rolled back");
            done
        }
    }
}

/// Table `users`. Soft-deleted users are found by nothing here.
pub trait Users {
    /// By blind index of the identifier.
    async fn user_by_identifier(&mut self, identifier: &Identifier) -> Result<Option<User>, Unavailable>;
    /// By id.
    async fn user(&mut self, id: UserId) -> Result<Option<User>, Unavailable>;
    /// Unique: identifiers and `pid`.
    async fn insert_user(&mut self, user: &User) -> Result<Inserted, Unavailable>;
    /// Notes that an unverified user was registered again, and whether with another password.
    async fn renew_registration(
        &mut self,
        id: UserId,
        is_contested: bool,
        at: OffsetDateTime,
    ) -> Result<(), Unavailable>;
    /// Makes an unverified user verified; `false` when it was verified already.
    async fn confirm_user(&mut self, id: UserId, with: &Confirmation, at: OffsetDateTime) -> Result<bool, Unavailable>;
    /// Changes profile fields and returns the user as it is then.
    async fn update_profile(
        &mut self,
        id: UserId,
        changes: &ProfileChanges,
        at: OffsetDateTime,
    ) -> Result<Option<User>, Unavailable>;
    /// Sets `last_login_at`, and the hash anew when its parameters are out of date; `false` when the
    /// user was disabled or deleted, or their hash or second factor changed, since they were looked up.
    async fn record_login(
        &mut self,
        user: &User,
        new_hash: Option<&str>,
        at: OffsetDateTime,
    ) -> Result<bool, Unavailable>;
    /// Gives a user another password; `false` when they were disabled or deleted, or their password
    /// changed, since they were looked up.
    async fn set_password(&mut self, user: &User, new_hash: &str, at: OffsetDateTime) -> Result<bool, Unavailable>;
    /// Table `identities`: whose this account elsewhere is.
    async fn user_by_identity(&mut self, subject_index: &[u8; 32]) -> Result<Option<User>, Unavailable>;
    /// Table `identities`: whether the user has an account of this provider.
    async fn has_identity(&mut self, user: UserId, provider: AuthProvider) -> Result<bool, Unavailable>;
    /// Table `identities`. Unique: the account elsewhere, and the provider of a user.
    async fn insert_identity(
        &mut self,
        subject_index: &[u8; 32],
        user: UserId,
        provider: AuthProvider,
        at: OffsetDateTime,
    ) -> Result<Inserted, Unavailable>;
    /// Table `identities`: forgets all of a user.
    async fn forget_identities(&mut self, user: UserId) -> Result<(), Unavailable>;
    /// Table `imported_hashes`: remembers that there is a hash of this scheme and cost.
    async fn note_imported_hash(&mut self, scheme: &str, work: i64) -> Result<(), Unavailable>;
    /// Table `imported_hashes`: the greatest cost of each scheme.
    async fn imported_hashes(&mut self) -> Result<Vec<(String, i64)>, Unavailable>;
}

/// Table `sessions`.
pub trait Sessions {
    /// A new sign-in.
    async fn insert_session(&mut self, session: &Session) -> Result<(), Unavailable>;
    /// A session, ended or not, with its user.
    async fn session_with_user(&mut self, id: SessionId) -> Result<Option<(Session, User)>, Unavailable>;
    /// Sessions, ended or not, with their users, in the order of `ids`.
    async fn sessions_with_users(&mut self, ids: &[SessionId]) -> Result<Vec<FoundSession>, Unavailable>;
    /// Moves living sessions of active users to their next generation, all in one statement or unit of work and at the
    /// same moment, the latest of theirs. `None` for one that has moved on or does not live, and for all but the first
    /// of those that name the same session.
    async fn rotate_sessions(&mut self, rotations: &[Rotation]) -> Result<Vec<Option<Rotated>>, Unavailable>;
    /// Ends a living session; `false` when it had ended.
    async fn end_session(&mut self, id: SessionId, why: EndReason, at: OffsetDateTime) -> Result<bool, Unavailable>;
    /// Ends every living session of a user, but for one when it is named, and returns them.
    async fn end_sessions_of(
        &mut self,
        user: UserId,
        but: Option<SessionId>,
        why: EndReason,
        at: OffsetDateTime,
    ) -> Result<Vec<SessionId>, Unavailable>;
    /// Notes that a session is in use at `at`, unless it was noted after `before`.
    async fn touch_session(
        &mut self,
        id: SessionId,
        before: OffsetDateTime,
        at: OffsetDateTime,
    ) -> Result<(), Unavailable>;
    /// A user's sessions that have neither ended nor run out, the newest sign-in first.
    async fn sessions_of(&mut self, user: UserId, living: &Living, page: Page) -> Result<Listed<Session>, Unavailable>;
}

/// A session with its user, when there is one; or why it cannot be told.
pub type FoundSession = Result<Option<(Session, User)>, Unavailable>;

/// How many questions are asked together at most, for instance how many sessions move on in one commit.
pub const MOST_TOGETHER: usize = 64;

/// How many readings of sessions go on side by side: while one is on its way, the next gathers.
pub const READS_SIDE_BY_SIDE: usize = 2;

/// A generation that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotated {
    /// When.
    pub at: OffsetDateTime,
    /// When the session runs out from then on.
    pub expires_at: OffsetDateTime,
}

/// The next generation of a session.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// Which.
    pub id: SessionId,
    /// Whose.
    pub user: UserId,
    /// The generation that it is in.
    pub from: i64,
    /// When it moves on.
    pub at: OffsetDateTime,
    /// Only if it is one of these.
    pub living: Living,
    /// When it runs out from then on …
    pub expires_at: OffsetDateTime,
    /// … but no later than this long after it was opened.
    pub absolute: Option<Duration>,
}

/// Which sessions live.
#[derive(Debug, Clone, Copy)]
pub struct Living {
    /// Those that run out after this time.
    pub at: OffsetDateTime,
    /// Those that were used after this time.
    pub used_after: OffsetDateTime,
    /// Those that were opened after this time.
    pub opened_after: OffsetDateTime,
}

/// Table `outbox`.
pub trait Outbox {
    /// Writes an entry in this unit of work.
    async fn enqueue(&mut self, entry: &OutboxEntry) -> Result<(), Unavailable>;
    /// Takes pending entries that are due, for `owner`, until `until`; counts the attempt.
    async fn claim(
        &mut self,
        owner: Uuid,
        now: OffsetDateTime,
        until: OffsetDateTime,
        most: i64,
    ) -> Result<Vec<OutboxEntry>, Unavailable>;
    /// Says what became of claimed entries, the same of all; returns of how many, without those whose lease has passed to
    /// another owner.
    async fn settle(
        &mut self,
        ids: &[Uuid],
        owner: Uuid,
        settlement: &Settlement,
        now: OffsetDateTime,
    ) -> Result<usize, Unavailable>;
    /// The newest entries, of one state when given; events are left out.
    async fn outbox_entries(&mut self, state: Option<OutboxState>, most: i64) -> Result<Vec<OutboxEntry>, Unavailable>;
    /// Makes dead entries pending again; without ids, all of them. Returns how many.
    async fn revive(&mut self, ids: Option<&[Uuid]>, now: OffsetDateTime) -> Result<usize, Unavailable>;
    /// Deletes what its retention no longer covers, sessions and ephemeral entries that have run out,
    /// and the costs of imported hashes when there are none any more.
    async fn purge(&mut self, now: OffsetDateTime, before: &Before) -> Result<usize, Unavailable>;
}

/// What is older than this is deleted.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    /// Letters that are settled, and events.
    pub outbox: OffsetDateTime,
    /// Audit events.
    pub audit: OffsetDateTime,
    /// Users that were never verified, counted from their last registration.
    pub unverified: OffsetDateTime,
    /// Sessions that have run out, counted from their opening. Under the present lives, whichever has run out was opened
    /// before this; those that were opened under shorter ones stay a while longer.
    pub sessions: OffsetDateTime,
}

/// Table `audit_events`.
pub trait Audit {
    /// Writes an event, in the unit of work it belongs to where there is one.
    async fn record(&mut self, event: &AuditEvent) -> Result<(), Unavailable>;
    /// A user's events of these actions, newest first.
    async fn login_events(
        &mut self,
        user: UserId,
        actions: &[&str],
        page: Page,
    ) -> Result<Listed<LoginEvent>, Unavailable>;
}

/// Tables `totp_factors` and `recovery_codes`, and the mark in `users` that there is something in them. A unit of work
/// changes the user's row first, by the mark or by [`Users::record_login`], and these afterwards.
pub trait SecondFactors {
    /// Sets the mark to `since`; `false` when the user was disabled or deleted, or their password or
    /// second factor changed, since they were looked up.
    async fn mark_second_factor(
        &mut self,
        user: &User,
        since: Option<OffsetDateTime>,
        at: OffsetDateTime,
    ) -> Result<bool, Unavailable>;
    /// A user's authenticator.
    async fn totp(&mut self, user: UserId) -> Result<Option<TotpFactor>, Unavailable>;
    /// A new authenticator; a user has one at most.
    async fn insert_totp(&mut self, user: UserId, factor: &TotpFactor, at: OffsetDateTime) -> Result<(), Unavailable>;
    /// Spends the codes up to this step, in one statement; `false` when they were spent.
    async fn advance_totp(&mut self, user: UserId, step: i64) -> Result<bool, Unavailable>;
    /// Removes the authenticator.
    async fn remove_totp(&mut self, user: UserId) -> Result<(), Unavailable>;
    /// The digests of a user's unused recovery codes.
    async fn recovery_codes(&mut self, user: UserId) -> Result<Vec<Vec<u8>>, Unavailable>;
    /// New recovery codes; all that there were are gone.
    async fn replace_recovery_codes(&mut self, user: UserId, digests: &[[u8; 32]]) -> Result<(), Unavailable>;
    /// Spends a recovery code, in one statement; `false` when it was spent or is none.
    async fn spend_recovery_code(
        &mut self,
        user: UserId,
        digest: &[u8],
        at: OffsetDateTime,
    ) -> Result<bool, Unavailable>;
}

/// A value that runs out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What was put.
    pub value: Vec<u8>,
    /// How long it still lives.
    pub expires_in: Duration,
}

/// A value that is to be stored.
#[derive(Debug, Clone)]
pub struct Put {
    /// Where.
    pub key: String,
    /// What.
    pub value: Vec<u8>,
    /// How long.
    pub ttl: Duration,
}

/// A right that one of several who ask for it has for a while, and what is stored with it.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Where it is noted that somebody has it.
    pub key: String,
    /// For how long.
    pub ttl: Duration,
    /// The counter of those that had it: beyond `most` there is none.
    pub had: String,
    /// The counter of those that came while another had it.
    pub withheld: String,
    /// How long the counters live from their first count.
    pub window: Duration,
    /// How many there are in a window.
    pub most: i64,
    /// Stored in any case.
    pub always: Vec<Put>,
    /// Stored with the right …
    pub with: Put,
    /// … and without it.
    pub without: Put,
}

impl Claim {
    /// What is stored when it was granted, or when it was not.
    pub fn puts(&self, is_granted: bool) -> impl Iterator<Item = &Put> + Clone {
        self.always.iter().chain([if is_granted { &self.with } else { &self.without }])
    }
}

/// The ephemeral store: Redis, or a table of the database. Every call is atomic.
pub trait Ephemeral {
    /// Stores a value, replacing any.
    async fn put(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Unavailable>;
    /// Stores a value unless there is one; then says how long that one still lives.
    async fn put_if_absent(&self, key: &str, value: &[u8], ttl: Duration) -> Result<Option<Duration>, Unavailable>;
    /// Asks for a right, counts that, and stores what goes with it; `true` when it is granted. All keys but
    /// those of `with` and `without` are different.
    async fn claim(&self, claim: &Claim) -> Result<bool, Unavailable>;
    /// The living value.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Unavailable>;
    /// The living values of different keys.
    async fn get_all<const N: usize>(&self, keys: [&str; N]) -> Result<[Option<Entry>; N], Unavailable>;
    /// Removes the value if it is this one; `true` for exactly one of several callers.
    async fn remove_if_equal(&self, key: &str, value: &[u8]) -> Result<bool, Unavailable>;
    /// Removes a value or counter.
    async fn remove(&self, key: &str) -> Result<(), Unavailable>;
    /// Adds one to a counter that lives `ttl` from its first count; returns the new count.
    async fn increment(&self, key: &str, ttl: Duration) -> Result<i64, Unavailable>;
    /// Takes one back from a counter that lives and is above zero; it lives no longer for that.
    async fn decrement(&self, key: &str) -> Result<(), Unavailable>;
    /// Counts one request against every rule, or against none when one of them is exhausted.
    /// Never fails: without the store it decides with counters of this process.
    async fn admit(&self, rules: &[Rule]) -> Decision;
    /// Takes back what a request counted. Where that fails, one request more is counted than there was.
    async fn take_back(&self, rules: &[Rule]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_of_work_is_done_once_it_is_committed_and_its_own_error_comes_first() {
        #[derive(Debug, PartialEq)]
        enum Answer {
            Own,
            Away,
        }
        impl From<Unavailable> for Answer {
            fn from(_: Unavailable) -> Self {
                Self::Away
            }
        }
        let gone = || Err(Unavailable::database("gone"));
        assert_eq!(concluded::<_, Answer>(Ok(1), Ok(())), Ok(1));
        assert_eq!(concluded::<_, Answer>(Ok(1), gone()), Err(Answer::Away));
        assert_eq!(concluded::<i32, _>(Err(Answer::Own), Ok(())), Err(Answer::Own));
        assert_eq!(concluded::<i32, _>(Err(Answer::Own), gone()), Err(Answer::Own));
    }
}
