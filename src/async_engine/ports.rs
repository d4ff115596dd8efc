//! The ports of the async engine: whoever must wait steps aside.

use std::{net::IpAddr, sync::Arc};

use jsonwebtoken::DecodingKey;
use time::OffsetDateTime;

use super::{
    breaches::BreachList, database::Database, ephemeral::EphemeralStore, google::GoogleKeys, hasher::Hasher,
    pump::Wake, renewer::renew, session_cache::SessionCache, store::Store, together::Together,
};
use crate::{
    places::Places,
    services::{
        error::{Overloaded, Unavailable},
        identifier::Identifier,
        imported_hashes::{Cost, Profile},
        keys::Keys,
        model::{Place, SessionId, User, UserId},
        passwords::{HashAs, Password, Verified, Weakness},
        policy::Policy,
        ports::{Bundle, Claiming, FoundSession, Ports, Rotated, Rotation, Sessions as _, concluded},
        session_cache::{Changes, Known},
    },
    store::{bundle::Rows, rows::UserRow, sought::Sought},
    system,
};

/// Everything a request of the async engine may use; cheap to clone.
#[derive(Clone)]
pub struct AsyncPorts {
    /// The durable database.
    pub database: Database,
    /// Codes, counters and locks.
    pub ephemeral: EphemeralStore,
    /// What is remembered of sessions.
    pub sessions: SessionCache,
    /// Users who are looked for together.
    pub lookups: Together<Arc<Sought>, Result<Option<UserRow>, Unavailable>>,
    /// Sessions that are read together.
    pub reads: Together<SessionId, FoundSession>,
    /// Sessions that move on together.
    pub rotations: Together<Rotation, Option<Rotated>>,
    /// Rows that are committed together.
    pub bundles: Together<Arc<Rows>, Result<bool, Unavailable>>,
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

impl AsyncPorts {
    fn lend(&self, connection: super::database::Connection) -> Store {
        let (keys, changes) = (Arc::clone(&self.keys), Changes::new(Arc::clone(self.sessions.versions())));
        Store { connection, keys, nonce: system::random, letters: 0, changes }
    }

    async fn write_rows(&self, rows: Rows) -> Result<bool, Unavailable> {
        let ports = self.clone();
        let write_all = async move |bundles: &[Arc<Rows>]| {
            let mut store = ports.store_to_write().await?;
            let _wake = WakeAtLast(Arc::clone(&ports.wake), bundles.iter().map(|rows| rows.letters).sum());
            store.write_all(bundles).await
        };
        self.bundles.ask(Arc::new(rows), write_all).await.flatten()
    }
}

// Wakes the pump however this ends: to look in vain costs it little.
struct WakeAtLast(Arc<Wake>, usize);

impl Drop for WakeAtLast {
    fn drop(&mut self) {
        self.0.wake(self.1);
    }
}

impl Ports for AsyncPorts {
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

    async fn store(&self) -> Result<Store, Unavailable> {
        Ok(self.lend(self.database.check_out().await?))
    }

    async fn user_of(&self, identifier: &Identifier) -> Result<Option<User>, Unavailable> {
        let ports = self.clone();
        let find_all = async move |all: &[Arc<Sought>]| ports.store().await?.sought_rows(all).await;
        let found = self.lookups.ask(Arc::new(Sought::of(identifier, &self.keys)), find_all).await.flatten()?;
        found.map(|row| row.open(&self.keys)).transpose()
    }

    async fn store_to_write(&self) -> Result<Store, Unavailable> {
        Ok(self.lend(self.database.check_out_to_write().await?))
    }

    async fn known_session(&self, id: SessionId, user: UserId) -> Result<Option<Arc<Known>>, Unavailable> {
        let read = || {
            let ports = self.clone();
            async move {
                let reading = ports.clone();
                let read_all = async move |ids: &[SessionId]| reading.store().await?.sessions_with_users(ids).await;
                ports.reads.ask(id, read_all).await.flatten()
            }
        };
        let renew = || {
            actix_web::rt::spawn(renew(self.clone()));
        };
        self.sessions.get(id, user, read, renew).await
    }

    async fn rotate_session(&self, rotation: Rotation) -> Result<Option<Rotated>, Unavailable> {
        let ports = self.clone();
        let commit = async move |rotations: &[Rotation]| ports.store_to_write().await?.rotate_sessions(rotations).await;
        self.rotations.ask(rotation, commit).await
    }

    async fn transaction<T, E>(&self, work: impl AsyncFnOnce(&mut Store) -> Result<T, E>) -> Result<T, E>
    where
        E: From<Unavailable>,
    {
        // With room of its own: most of what an operation takes, and only at its end.
        Box::pin(async move {
            let mut store = self.store_to_write().await?;
            store.connection.begin().await?;
            let done = work(&mut store).await;
            let ended = store.connection.end(done.is_ok()).await;
            let done = concluded(done, ended);
            if done.is_ok() {
                self.wake.wake(store.letters);
            }
            done
        })
        .await
    }

    async fn write(&self, bundle: &Bundle<'_>) -> Result<bool, Unavailable> {
        self.write_rows(Rows::of(bundle, &self.keys, system::random)).await
    }

    async fn claim_and_write(&self, claiming: &Claiming<'_>) -> Result<bool, Unavailable> {
        if self.ephemeral.is_in_file() {
            self.write_rows(Rows::claiming(claiming, system::now(), &self.keys, system::random)).await
        } else {
            claiming.one_after_the_other(self).await
        }
    }

    async fn hash_password(&self, password: Password, how: HashAs) -> Result<String, Overloaded> {
        self.hasher.hash(password, how).await
    }

    async fn verify_password(
        &self,
        password: Password,
        hash: Option<String>,
        other: Option<String>,
    ) -> Result<Verified, Overloaded> {
        self.hasher.verify(password, hash, other).await
    }

    async fn weakness(&self, password: Password, personal: Vec<String>) -> Result<Option<Weakness>, Overloaded> {
        self.hasher.weakness(password, personal, self.policy.passwords.clone()).await
    }

    async fn make_up(&self, password: Password, profile: Profile, done: Option<Cost>) -> Result<(), Overloaded> {
        self.hasher.make_up(password, profile, done).await
    }

    async fn breaches(&self, prefix: &str) -> Result<String, Unavailable> {
        match self.breaches.as_deref() {
            Some(list) => list.range(prefix).await,
            None => Ok(String::new()),
        }
    }

    async fn google_key(&self, id: &str) -> Result<Option<Arc<DecodingKey>>, Unavailable> {
        self.google.key(id).await
    }
}
