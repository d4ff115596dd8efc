//! The keys that everything secret rests on: all derived from one master secret by HKDF-SHA256
//! (RFC 5869), each for one purpose, so that no value made for one purpose is good for another.

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    identifier::Identifier,
    model::{SessionId, UserId},
};

const NONCE_BYTES: usize = 24;
const KEY_ID_BYTES: usize = 4;
const FORMAT: u8 = 1;

/// A sealed value could not be opened: another key made it, it belongs to another row, or it was
/// changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed value does not open with this master secret")]
pub struct Unreadable;

/// Keys derived from the master secret. No `Debug`, no `Serialize`.
pub struct Keys {
    id: [u8; KEY_ID_BYTES],
    fields: XChaCha20Poly1305,
    payloads: XChaCha20Poly1305,
    challenges: XChaCha20Poly1305,
    index: Zeroizing<[u8; 32]>,
    codes: Zeroizing<[u8; 32]>,
    token_ids: Zeroizing<[u8; 32]>,
    signing: Zeroizing<Vec<u8>>,
    signing_id: String,
}

impl Keys {
    /// Derives every key from `master` (at least 32 bytes). `signing` replaces the derived
    /// token-signing key, for services that must share it; `signing_id` its `kid`.
    pub fn derive(master: &[u8], signing: Option<&[u8]>, signing_id: Option<&str>) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(b"bifrons"), master);
        let key = |purpose: &str| {
            let mut bytes = Zeroizing::new([0; 32]);
            let info = format!("bifrons/v1/{purpose}");
            #[expect(clippy::expect_used, reason = "32 bytes are far below HKDF's limit of 255 blocks")]
            hkdf.expand(info.as_bytes(), bytes.as_mut_slice()).expect("32 bytes from HKDF");
            bytes
        };
        let cipher = |purpose: &str| XChaCha20Poly1305::new(&(*key(purpose)).into());
        let signing = Zeroizing::new(signing.map_or_else(|| key("token signing").to_vec(), <[u8]>::to_vec));
        let mut id = [0; KEY_ID_BYTES];
        id.iter_mut().zip(key("key id").iter()).for_each(|(to, from)| *to = *from);
        Self {
            id,
            fields: cipher("field encryption"),
            payloads: cipher("outbox payloads"),
            challenges: cipher("challenges"),
            index: key("blind index"),
            codes: key("one-time codes"),
            token_ids: key("token ids"),
            signing_id: signing_id.map_or_else(|| fingerprint(&signing), str::to_owned),
            signing,
        }
    }

    /// Names the master secret without telling anything of it; kept in the database, so that a
    /// start with another secret is refused.
    pub fn id(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.id)
    }

    /// The key that signs tokens (HS256).
    pub fn signing_key(&self) -> &[u8] {
        &self.signing
    }

    /// `kid` of the key that signs tokens.
    pub fn signing_key_id(&self) -> &str {
        &self.signing_id
    }

    /// Encrypts a personal field of one row: it opens in that column of that row only.
    pub fn seal_field(&self, column: &str, row: Uuid, clear: &str, nonce: [u8; NONCE_BYTES]) -> Vec<u8> {
        self.seal(&self.fields, &context(column, row), clear.as_bytes(), nonce)
    }

    /// Opens what [`Self::seal_field`] made.
    ///
    /// # Errors
    /// [`Unreadable`] for another key, row or column.
    pub fn open_field(&self, column: &str, row: Uuid, sealed: &[u8]) -> Result<String, Unreadable> {
        let clear = self.open(&self.fields, &context(column, row), sealed)?;
        String::from_utf8(clear).or(Err(Unreadable))
    }

    /// Encrypts the payload of an outbox entry or of an ephemeral entry named by `id`.
    pub fn seal_payload(&self, id: Uuid, clear: &[u8], nonce: [u8; NONCE_BYTES]) -> Vec<u8> {
        self.seal(&self.payloads, &context("payload", id), clear, nonce)
    }

    /// Opens what [`Self::seal_payload`] made.
    ///
    /// # Errors
    /// [`Unreadable`] for another key or entry.
    pub fn open_payload(&self, id: Uuid, sealed: &[u8]) -> Result<Vec<u8>, Unreadable> {
        self.open(&self.payloads, &context("payload", id), sealed)
    }

    /// Encrypts an opaque token that a client carries back, as base64url.
    pub fn seal_challenge(&self, purpose: &str, clear: &[u8], nonce: [u8; NONCE_BYTES]) -> String {
        data_encoding::BASE64URL_NOPAD.encode(&self.seal(&self.challenges, purpose.as_bytes(), clear, nonce))
    }

    /// Opens what [`Self::seal_challenge`] made.
    ///
    /// # Errors
    /// [`Unreadable`] for anything else.
    pub fn open_challenge(&self, purpose: &str, token: &str) -> Result<Vec<u8>, Unreadable> {
        let sealed = data_encoding::BASE64URL_NOPAD.decode(token.as_bytes()).or(Err(Unreadable))?;
        self.open(&self.challenges, purpose.as_bytes(), &sealed)
    }

    /// Keyed digest of an identifier: finds its row and keeps it unique without telling it.
    pub fn blind_index(&self, identifier: &Identifier) -> [u8; 32] {
        mac(&*self.index, &[identifier.kind().as_bytes(), identifier.comparable().as_bytes()])
    }

    /// An id that stands in for the account that `text` has not got: the same every time, nobody's.
    pub fn stand_in(&self, text: &str) -> UserId {
        let digest = mac(&*self.index, &[b"stand-in", text.as_bytes()]);
        UserId(uuid::Builder::from_random_bytes(*digest.first_chunk::<16>().unwrap_or(&[0; 16])).into_uuid())
    }

    /// Keyed digest of a one-time code: without the key, trying all codes tells nothing
    /// (ASVS 6.5.2).
    pub fn code_digest(&self, user: UserId, purpose: &str, code: &str) -> [u8; 32] {
        mac(&*self.codes, &[user.0.as_bytes(), purpose.as_bytes(), code.as_bytes()])
    }

    /// Keyed digest of anything else, for one purpose.
    pub fn digest(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        let all: Vec<&[u8]> = std::iter::once(purpose.as_bytes()).chain(parts.iter().copied()).collect();
        mac(&*self.index, &all)
    }

    /// The `jti` of a session's token in one generation: 32 hex digits, never stored.
    pub fn token_id(&self, session: SessionId, generation: i64, kind: &str) -> String {
        let digest = mac(&*self.token_ids, &[session.0.as_bytes(), &generation.to_be_bytes(), kind.as_bytes()]);
        data_encoding::HEXLOWER.encode(digest.first_chunk::<16>().unwrap_or(&[0; 16]))
    }

    // format ‖ key id ‖ nonce ‖ ciphertext and tag
    fn seal(&self, cipher: &XChaCha20Poly1305, context: &[u8], clear: &[u8], nonce: [u8; NONCE_BYTES]) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "encryption fails beyond 256 GiB only")]
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: clear, aad: context })
            .expect("a message below 256 GiB");
        [&[FORMAT], self.id.as_slice(), nonce.as_slice(), sealed.as_slice()].concat()
    }

    fn open(&self, cipher: &XChaCha20Poly1305, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unreadable> {
        let rest = sealed.strip_prefix(&[FORMAT]).ok_or(Unreadable)?;
        let rest = rest.strip_prefix(self.id.as_slice()).ok_or(Unreadable)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(Unreadable)?;
        cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: context }).or(Err(Unreadable))
    }
}

/// Compares without telling by time where two values differ.
pub fn same(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}

fn context(what: &str, row: Uuid) -> Vec<u8> {
    [what.as_bytes(), b"|", row.as_bytes()].concat()
}

fn fingerprint(key: &[u8]) -> String {
    let digest = Sha256::new().chain_update(b"bifrons kid").chain_update(key).finalize();
    data_encoding::HEXLOWER.encode(digest.first_chunk::<8>().unwrap_or(&[0; 8]))
}

// Every part is preceded by its length, so that no two lists of parts are the same input.
fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    for part in parts {
        mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::derive(&[7; 32], None, None)
    }

    #[test]
    fn a_field_opens_in_its_own_row_and_column_only() {
        let (row, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let sealed = keys().seal_field("email", row, "ada@example.org", [1; 24]);
        assert_eq!(keys().open_field("email", row, &sealed).unwrap(), "ada@example.org");
        assert_eq!(keys().open_field("email", other, &sealed), Err(Unreadable));
        assert_eq!(keys().open_field("phone", row, &sealed), Err(Unreadable));
        assert_eq!(Keys::derive(&[8; 32], None, None).open_field("email", row, &sealed), Err(Unreadable));
        assert!(!sealed.windows(3).any(|bytes| bytes == b"ada"));
    }

    #[test]
    fn a_value_changed_anywhere_does_not_open() {
        let row = Uuid::from_u128(1);
        let sealed = keys().seal_payload(row, b"123456", [1; 24]);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(keys().open_payload(row, &changed), Err(Unreadable));
        }
        assert_eq!(keys().open_payload(row, &[]), Err(Unreadable));
    }

    #[test]
    fn a_challenge_is_good_for_its_purpose_only() {
        let token = keys().seal_challenge("registration", b"x", [3; 24]);
        assert_eq!(keys().open_challenge("registration", &token).unwrap(), b"x");
        assert_eq!(keys().open_challenge("mfa", &token), Err(Unreadable));
        assert_eq!(keys().open_challenge("registration", "no token"), Err(Unreadable));
    }

    #[test]
    fn token_ids_differ_by_session_generation_and_kind() {
        let (one, two) = (SessionId(Uuid::from_u128(1)), SessionId(Uuid::from_u128(2)));
        let ids = [(one, 0, "access"), (one, 0, "refresh"), (one, 1, "access"), (two, 0, "access")]
            .map(|(session, generation, kind)| keys().token_id(session, generation, kind));
        assert!(ids.iter().all(|id| id.len() == 32));
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    }

    #[test]
    fn an_explicit_signing_key_leaves_the_others_as_they_are() {
        let shared = Keys::derive(&[7; 32], Some(b"shared with another service 1234"), Some("k1"));
        assert_eq!(shared.signing_key(), b"shared with another service 1234");
        assert_eq!(shared.signing_key_id(), "k1");
        assert_eq!(shared.id(), keys().id());
        assert_ne!(keys().signing_key(), shared.signing_key());
    }
}
