//! What waits for its code: a registration under its own id, which only its challenge names, and
//! the hash of the first recent registration of an identifier. Both sealed, in the ephemeral store.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    error::Unavailable,
    identifier::Identifier,
    keys::Keys,
    model::{AuthProvider, Confirmation, RegistrationId, Role, User, UserId},
    passwords::HashAs,
    ports::{Entry, Ephemeral as _, Ports, Put},
    register::stored_identifiers,
};

/// How long a registration waits for its code. After that its challenge, its account and the hash
/// that [`waiting_hash`] finds are gone, for a free identifier as for one that has an account.
pub const REGISTRATION_TTL: std::time::Duration = std::time::Duration::from_secs(86_400);

const CHALLENGE: &str = "registration";

/// What waits for its code, sealed in the ephemeral store.
#[derive(Serialize, Deserialize)]
pub struct Pending {
    /// The account; an id of nobody when the identifier had a verified one.
    pub user_id: UserId,
    /// `email` or `phone`.
    pub kind: String,
    /// The address or number.
    pub identifier: String,
    /// Argon2id, PHC.
    pub password_hash: String,
    /// The role asked for.
    pub role: Role,
    /// Given name.
    pub first_name: String,
    /// Family name.
    pub last_name: String,
}

impl Pending {
    /// What verifying makes of the account.
    pub fn confirmation(&self) -> Confirmation {
        Confirmation {
            password_hash: Some(self.password_hash.clone()),
            role: self.role,
            auth_provider: if self.kind == "email" { AuthProvider::Email } else { AuthProvider::Phone },
            first_name: self.first_name.clone(),
            last_name: self.last_name.clone(),
        }
    }

    /// Where its codes go.
    pub fn identifier(&self) -> Identifier {
        let text = self.identifier.clone();
        if self.kind == "email" { Identifier::Email(text) } else { Identifier::Phone(text) }
    }
}

/// A registration as it is kept, and its challenge.
pub fn keep<P: Ports>(ports: &P, pending: &Pending) -> (Put, String) {
    let (id, keys) = (ports.new_id(), ports.keys());
    let clear = serde_json::to_vec(pending).unwrap_or_default();
    let sealed = keys.seal_payload(id, &clear, ports.random());
    let put = Put { key: registration_key(RegistrationId(id)), value: sealed, ttl: REGISTRATION_TTL };
    (put, keys.seal_challenge(CHALLENGE, id.as_bytes(), ports.random()))
}

fn read_pending(keys: &Keys, id: Uuid, sealed: &[u8]) -> Option<Pending> {
    serde_json::from_slice(&keys.open_payload(id, sealed).ok()?).ok()
}

fn registration_key(id: RegistrationId) -> String {
    format!("registration:{id}")
}

/// The hash of a registration's password, as it is kept for another [`REGISTRATION_TTL`]. The first one
/// stays, as it does in a free identifier's row, when `keeps` finds that it can.
///
/// # Errors
/// The store is away.
pub async fn keep_waiting_hash<P: Ports>(
    ports: &P,
    identifier: &Identifier,
    hash: &str,
    keeps: impl Fn(&str) -> bool,
) -> Result<Put, Unavailable> {
    let key = waiting_key(ports, identifier);
    let first = waiting_hash(ports, identifier).await?.filter(|first| keeps(first));
    let keys = ports.keys();
    let kept = first.as_deref().unwrap_or(hash);
    let value = keys.seal_payload(keys.stand_in(&key).0, kept.as_bytes(), ports.random());
    Ok(Put { key, value, ttl: REGISTRATION_TTL })
}

/// The hash that the first recent registration of this identifier brought along. Whoever signs in
/// with that password is told to verify, whether the identifier was free or had an account: the
/// answer must not tell which.
///
/// # Errors
/// The store is away.
pub async fn waiting_hash<P: Ports>(ports: &P, identifier: &Identifier) -> Result<Option<String>, Unavailable> {
    let key = waiting_key(ports, identifier);
    Ok(waiting(ports, &key, ports.ephemeral().get(&key).await?))
}

/// The hash in what was found at [`waiting_key`].
pub fn waiting<P: Ports>(ports: &P, key: &str, found: Option<Entry>) -> Option<String> {
    let keys = ports.keys();
    let opened = keys.open_payload(keys.stand_in(key).0, &found?.value).ok();
    opened.and_then(|hash| String::from_utf8(hash).ok())
}

/// Forgets the waiting hash of an identifier if it is this one, that of a registration which has been proven:
/// its password is the account's now, and once it is changed, nothing waits for it.
///
/// # Errors
/// The store is away.
pub async fn forget_waiting<P: Ports>(ports: &P, identifier: &Identifier, proven: &str) -> Result<(), Unavailable> {
    if waiting_hash(ports, identifier).await?.is_some_and(|waiting| waiting == proven) {
        ports.ephemeral().remove(&waiting_key(ports, identifier)).await?;
    }
    Ok(())
}

/// How a new password of this user is to be hashed: under the salt of a waiting hash, if there is one. With
/// another salt, one digest at sign-in would no longer find both, and the answer would tell that the
/// identifier has an account.
///
/// # Errors
/// The store is away.
pub async fn hash_beside_waiting<P: Ports>(ports: &P, user: &User) -> Result<HashAs, Unavailable> {
    for identifier in stored_identifiers(user) {
        if let Some(waiting) = waiting_hash(ports, &identifier).await? {
            return Ok(HashAs::Beside(waiting));
        }
    }
    Ok(HashAs::New(ports.random()))
}

/// Where the hash of the first recent registration of an identifier is.
pub fn waiting_key<P: Ports>(ports: &P, identifier: &Identifier) -> String {
    format!("waiting:{}", data_encoding::HEXLOWER.encode(&ports.keys().blind_index(identifier)))
}

/// The registration that a challenge stands for, if it is still kept.
///
/// # Errors
/// The store is away.
pub async fn pending<P: Ports>(ports: &P, challenge: &str) -> Result<Option<Pending>, Unavailable> {
    let keys = ports.keys();
    let id = keys.open_challenge(CHALLENGE, challenge).ok().and_then(|bytes| Uuid::from_slice(&bytes).ok());
    let Some(id) = id else { return Ok(None) };
    let Some(entry) = ports.ephemeral().get(&registration_key(RegistrationId(id))).await? else { return Ok(None) };
    Ok(read_pending(keys, id, &entry.value))
}
