//! The ports of the sync engine: every answer is there when the call returns.

use std::{
    future::{Ready, ready},
    net::IpAddr,
    sync::Arc,
};

use jsonwebtoken::DecodingKey;
use time::OffsetDateTime;

use super::{
    breaches::BreachList, database::Database, ephemeral::EphemeralStore, google::GoogleKeys, hasher::Hasher,
    pump::Wake, session_cache::SessionCache, store::Store, together::Together,
};
use crate::{
    places::Places,
    services::{
        error::{Overloaded, Unavailable},
        imported_hashes::{Cost, Profile},
        keys::Keys,
        model::{Place, SessionId, UserId},
        passwords::{HashAs, Password, Verified, Weakness},
        policy::Policy,
        ports::{Bundle, Claiming, FoundSession, Ports, Rotated, Rotation, Sessions as _, concluded},
        run::run,
        session_cache::{Changes, Known},
    },
    store::bundle::Rows,
    system,
};

/// Everything a request of the sync engine may use; cheap to clone.
#[derive(Clone)]
pub struct BlockingPorts {
    /// The durable database.
    pub database: Database,
    /// Codes, counters and locks.
    pub ephemeral: EphemeralStore,
    /// What is remembered of sessions.
    pub sessions: SessionCache,
    /// Sessions that are read together.
    pub reads: Together<SessionId, FoundSession>,
    /// Sessions that move on together.
    pub rotations: Together<Rotation, Option<Rotated>>,
    /// Rows that are committed together.
    pub bundles: Together<Rows, Result<bool, Unavailable>>,
    /// Argon2id.
    pub hasher: Hasher,
    /// The operator's decisions.
    pub policy: Arc<Policy>,
    /// Derived from the master secret.
    pub keys: Arc<Keys>,
    /// Where addresses are, when there is a database of it.
    pub places: Option<Arc<Places>>,
    /// Whom to ask for breached passwords, when anybody.
    pub breaches: Option<Arc<BreachList>>,
    /// What Google signs ID tokens with.
    pub google: Arc<GoogleKeys>,
    /// Tells the pump that a letter waits.
    pub wake: Arc<Wake>,
}

impl BlockingPorts {
    /// A connection of the durable database.
    ///
    /// # Errors
    /// It is away, or all are lent for too long.
    pub fn check_out(&self) -> Result<Store, Unavailable> {
        let connection = self.database.check_out()?;
        let (keys, changes) = (Arc::clone(&self.keys), Changes::new(Arc::clone(self.sessions.versions())));
        Ok(Store { connection, keys, nonce: system::random, letters: 0, changes })
    }

    fn write_rows(&self, rows: Rows) -> Result<bool, Unavailable> {
        let write_all = |bundles: &[Rows]| {
            let mut store = self.check_out()?;
            let written = store.write_all(bundles)?;
            // To look in vain costs the pump little.
            self.wake.wake(store.letters);
            Ok(written)
        };
        self.bundles.ask(rows, write_all).flatten()
    }
}

#[expect(refining_impl_trait, reason = "`Ready` is the proof that nothing here waits")]
impl Ports for BlockingPorts {
    type Store = Store;
    type Ephemeral = EphemeralStore;

    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn keys(&self) -> &Keys {
        &self.keys
    }

    fn now(&self) -> OffsetDateTime {
        system::now()
    }

    fn random<const N: usize>(&self) -> [u8; N] {
        system::random()
    }

    fn place(&self, ip: IpAddr) -> Place {
        self.places.as_deref().map(|places| places.of(ip)).unwrap_or_default()
    }

    fn ephemeral(&self) -> &EphemeralStore {
        &self.ephemeral
    }

    fn store(&self) -> Ready<Result<Store, Unavailable>> {
        ready(self.check_out())
    }

    fn store_to_write(&self) -> Ready<Result<Store, Unavailable>> {
        ready(self.check_out())
    }

    fn known_session(&self, id: SessionId, user: UserId) -> Ready<Result<Option<Arc<Known>>, Unavailable>> {
        let read = |ids: &[SessionId]| run(self.check_out()?.sessions_with_users(ids));
        ready(self.sessions.get(id, user, || self.reads.ask(id, read).flatten()))
    }

    fn rotate_session(&self, rotation: Rotation) -> Ready<Result<Option<Rotated>, Unavailable>> {
        ready(self.rotations.ask(rotation, |rotations| run(self.check_out()?.rotate_sessions(rotations))))
    }

    fn transaction<T, E>(&self, work: impl AsyncFnOnce(&mut Store) -> Result<T, E>) -> Ready<Result<T, E>>
    where
        E: From<Unavailable>,
    {
        let unit = || {
            let mut store = self.check_out()?;
            store.connection.begin()?;
            let done = run(work(&mut store));
            let ended = store.connection.end(done.is_ok());
            let done = concluded(done, ended);
            if done.is_ok() {
                self.wake.wake(store.letters);
            }
            done
        };
        ready(unit())
    }

    fn write(&self, bundle: &Bundle<'_>) -> Ready<Result<bool, Unavailable>> {
        ready(self.write_rows(Rows::of(bundle, &self.keys, system::random)))
    }

    fn claim_and_write(&self, claiming: &Claiming<'_>) -> Ready<Result<bool, Unavailable>> {
        ready(if self.ephemeral.is_in_file() {
            self.write_rows(Rows::claiming(claiming, system::now(), &self.keys, system::random))
        } else {
            run(claiming.one_after_the_other(self))
        })
    }

    fn hash_password(&self, password: Password, how: HashAs) -> Ready<Result<String, Overloaded>> {
        ready(self.hasher.hash(password, how))
    }

    fn verify_password(
        &self,
        password: Password,
        hash: Option<String>,
        other: Option<String>,
    ) -> Ready<Result<Verified, Overloaded>> {
        ready(self.hasher.verify(password, hash, other))
    }

    fn weakness(&self, password: Password, personal: Vec<String>) -> Ready<Result<Option<Weakness>, Overloaded>> {
        ready(self.hasher.weakness(password, personal, self.policy.passwords.clone()))
    }

    fn make_up(&self, password: Password, profile: Profile, done: Option<Cost>) -> Ready<Result<(), Overloaded>> {
        ready(self.hasher.make_up(password, profile, done))
    }

    fn breaches(&self, prefix: &str) -> Ready<Result<String, Unavailable>> {
        ready(match self.breaches.as_deref() {
            Some(list) => list.range(prefix),
            None => Ok(String::new()),
        })
    }

    fn google_key(&self, id: &str) -> Ready<Result<Option<Arc<DecodingKey>>, Unavailable>> {
        ready(self.google.key(id))
    }
}
