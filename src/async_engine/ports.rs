//! The ports of the async engine: whoever must wait steps aside.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{database::Database, ephemeral::EphemeralStore, hasher::Hasher, pump::Wake, store::Store};
use crate::{
    services::{
        error::{Overloaded, Unavailable},
        keys::Keys,
        passwords::{HashAs, Password, Verified},
        policy::Policy,
        ports::Ports,
    },
    system,
};

/// Everything a request of the async engine may use; cheap to clone.
#[derive(Clone)]
pub struct AsyncPorts {
    /// The durable database.
    pub database: Database,
    /// Codes, counters and locks.
    pub ephemeral: EphemeralStore,
    /// Argon2id.
    pub hasher: Hasher,
    /// The operator's decisions.
    pub policy: Arc<Policy>,
    /// Derived from the master secret.
    pub keys: Arc<Keys>,
    /// Tells the pump that a letter waits.
    pub wake: Arc<Wake>,
}

impl AsyncPorts {
    fn lend(&self, connection: super::database::Connection) -> Store {
        Store { connection, keys: Arc::clone(&self.keys), nonce: system::random, has_letters: false }
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

    fn ephemeral(&self) -> &EphemeralStore {
        &self.ephemeral
    }

    async fn store(&self) -> Result<Store, Unavailable> {
        Ok(self.lend(self.database.check_out().await?))
    }

    async fn transaction<T, E>(&self, work: impl AsyncFnOnce(&mut Store) -> Result<T, E>) -> Result<T, E>
    where
        E: From<Unavailable>,
    {
        let mut store = self.lend(self.database.check_out_to_write().await?);
        store.connection.begin().await?;
        let done = work(&mut store).await;
        match (&done, store.connection.end(done.is_ok()).await) {
            (_, Ok(())) => (),
            (Ok(_), Err(error)) => return Err(error.into()),
            // The work's own error says more; the connection is closed, which undoes the work.
            (Err(_), Err(error)) => tracing::warn!(error = %error, "not rolled back"),
        }
        if done.is_ok() && store.has_letters {
            self.wake.wake();
        }
        done
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

    async fn is_guessable(&self, password: Password, personal: Vec<String>) -> Result<bool, Overloaded> {
        self.hasher.is_guessable(password, personal, self.policy.passwords.clone()).await
    }
}
