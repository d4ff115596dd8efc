//! The keys that everything secret rests on: all derived from one master secret by HKDF-SHA256
//! (RFC 5869), each for one purpose, so that no value made for one purpose is good for another.

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use jsonwebtoken::{
    DecodingKey, EncodingKey,
    jwk::{AlgorithmParameters, Jwk},
};
use serde::Deserialize;
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

/// PKCS#8 of an Ed25519 private key up to the key itself (RFC 8410, 7).
pub const ED25519_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A sealed value could not be opened: another key made it, it belongs to another row, or it was
/// changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed value does not open with this master secret")]
pub struct Unreadable;

/// A key id stands for two keys, so that it would not tell which of them signed a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("two keys that verify tokens have the id {0:?}")]
pub struct AmbiguousKeyId(pub String);

/// How tokens are signed, under its name in RFC 7518 and RFC 8037.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// HMAC-SHA-256: who can verify can also sign.
    #[serde(rename = "HS256")]
    Hs256,
    /// Ed25519: the public key verifies, and is published.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// A key that signs tokens. No `Debug`, no `Serialize`; overwritten when dropped.
pub enum SigningKey {
    /// The secret of HS256.
    Hs256(Zeroizing<Vec<u8>>),
    /// The private key of Ed25519 (RFC 8032, 5.1.5).
    Ed25519(Zeroizing<[u8; 32]>),
}

/// A key that verifies tokens. No `Debug`, no `Serialize`.
pub enum VerifyingKey {
    /// The secret of HS256.
    Hs256(Zeroizing<Vec<u8>>),
    /// The public key of Ed25519.
    Ed25519([u8; 32]),
}

impl SigningKey {
    /// The key of this algorithm that derives from the master secret.
    pub fn derive(master: &[u8], algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Hs256 => Self::Hs256(Zeroizing::new(derived(master, "token signing").to_vec())),
            Algorithm::EdDsa => Self::Ed25519(derived(master, "token signing with Ed25519")),
        }
    }

    /// What it signs with.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hs256(_) => Algorithm::Hs256,
            Self::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    /// What verifies its signatures.
    pub fn verifying_key(&self) -> VerifyingKey {
        match self {
            Self::Hs256(secret) => VerifyingKey::Hs256(secret.clone()),
            Self::Ed25519(_) => VerifyingKey::Ed25519(public_key(&self.prepared())),
        }
    }

    fn prepared(&self) -> EncodingKey {
        match self {
            Self::Hs256(secret) => EncodingKey::from_secret(secret),
            Self::Ed25519(seed) => {
                let der = Zeroizing::new([ED25519_HEAD.as_slice(), seed.as_slice()].concat());
                EncodingKey::from_ed_der(&der)
            }
        }
    }
}

impl VerifyingKey {
    /// A public key of Ed25519; `None` when the bytes are no point of the curve.
    pub fn ed25519(public: [u8; 32]) -> Option<Self> {
        let key = DecodingKey::from_ed_der(&public);
        // An error tells of the key; a signature that does not match is `false`.
        jsonwebtoken::crypto::verify("", b"", &key, jsonwebtoken::Algorithm::EdDSA).ok()?;
        Some(Self::Ed25519(public))
    }

    /// Names the key without telling anything of a secret: for Ed25519 its thumbprint (RFC 7638; RFC 8037, 2).
    fn id(&self) -> String {
        match self {
            Self::Hs256(secret) => fingerprint(secret),
            Self::Ed25519(public) => {
                let members = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, coordinate(public));
                data_encoding::BASE64URL_NOPAD.encode(&Sha256::digest(members.as_bytes()))
            }
        }
    }

    fn prepared(&self) -> DecodingKey {
        match self {
            Self::Hs256(secret) => DecodingKey::from_secret(secret),
            Self::Ed25519(public) => DecodingKey::from_ed_der(public),
        }
    }
}

struct Verifier {
    id: String,
    // The first part of each token that it signs.
    header: String,
    key: DecodingKey,
    public: Option<[u8; 32]>,
}

impl Verifier {
    fn new(key: &VerifyingKey, id: Option<&str>) -> Self {
        let public = match key {
            VerifyingKey::Hs256(_) => None,
            VerifyingKey::Ed25519(public) => Some(*public),
        };
        let id = id.map_or_else(|| key.id(), str::to_owned);
        let algorithm = if public.is_some() { "EdDSA" } else { "HS256" };
        let kid = serde_json::Value::from(id.as_str());
        let header = format!(r#"{{"typ":"JWT","alg":"{algorithm}","kid":{kid}}}"#);
        Self { id, header: data_encoding::BASE64URL_NOPAD.encode(header.as_bytes()), key: key.prepared(), public }
    }
}

/// Keys derived from the master secret. No `Debug`, no `Serialize`.
pub struct Keys {
    id: [u8; KEY_ID_BYTES],
    fields: XChaCha20Poly1305,
    payloads: XChaCha20Poly1305,
    challenges: XChaCha20Poly1305,
    index: Zeroizing<[u8; 32]>,
    codes: Zeroizing<[u8; 32]>,
    token_ids: Zeroizing<[u8; 32]>,
    algorithm: Algorithm,
    signing: EncodingKey,
    signing_id: String,
    // The signing key's own is the first.
    verifiers: Vec<Verifier>,
}

impl Keys {
    /// Derives every key from `master` (at least 32 bytes). `signing` replaces the derived token-signing
    /// key of HS256; `signing_id` its `kid`.
    pub fn derive(master: &[u8], signing: Option<SigningKey>, signing_id: Option<&str>) -> Self {
        let key = |purpose: &str| derived(master, purpose);
        let cipher = |purpose: &str| XChaCha20Poly1305::new(&(*key(purpose)).into());
        let signing = signing.unwrap_or_else(|| SigningKey::derive(master, Algorithm::Hs256));
        let verifier = Verifier::new(&signing.verifying_key(), signing_id);
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
            algorithm: signing.algorithm(),
            signing: signing.prepared(),
            signing_id: verifier.id.clone(),
            verifiers: vec![verifier],
        }
    }

    /// Accepts the tokens of a further key of the same algorithm, which signs none: one that signed until
    /// now, or that will.
    ///
    /// # Errors
    /// [`AmbiguousKeyId`] when another key has its id.
    pub fn accept(&mut self, key: &VerifyingKey, id: Option<&str>) -> Result<(), AmbiguousKeyId> {
        let verifier = Verifier::new(key, id);
        if self.verifiers.iter().any(|known| known.id == verifier.id) {
            return Err(AmbiguousKeyId(verifier.id));
        }
        self.verifiers.push(verifier);
        Ok(())
    }

    /// Names the master secret without telling anything of it; kept in the database, so that a
    /// start with another secret is refused.
    pub fn id(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.id)
    }

    /// What tokens are signed with, and the only algorithm that is accepted in one.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key that signs tokens.
    pub const fn signing_key(&self) -> &EncodingKey {
        &self.signing
    }

    /// The header of the tokens that are signed, as it is encoded.
    pub fn signing_header(&self) -> &str {
        self.verifiers.first().map_or("", |verifier| &verifier.header)
    }

    /// The key that verifies tokens with this header, as it is encoded. A header is one of the few that are written
    /// here: nothing in it is ever read.
    pub fn verifying_key(&self, header: &str) -> Option<&DecodingKey> {
        self.verifiers.iter().find(|verifier| verifier.header == header).map(|verifier| &verifier.key)
    }

    /// `kid` and public key of each key that verifies tokens; none of HS256, whose keys are secret.
    pub fn public_keys(&self) -> impl Iterator<Item = (&str, &[u8; 32])> {
        self.verifiers.iter().filter_map(|verifier| Some((verifier.id.as_str(), verifier.public.as_ref()?)))
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

    /// The `jti` of a session's token in one generation: 32 hex digits, never stored. The first eight are the
    /// generation, so that nobody needs a look-up to know it; the others a keyed digest, so that whoever holds the
    /// signing key, as other services may, still cannot make the tokens of another generation.
    pub fn token_id(&self, session: SessionId, generation: i64, kind: &str) -> String {
        let digest = mac(&*self.token_ids, &[session.0.as_bytes(), &generation.to_be_bytes(), kind.as_bytes()]);
        let mut id = [0; 16];
        let [.., a, b, c, d] = generation.to_be_bytes();
        let bytes = [a, b, c, d].into_iter().chain(digest);
        id.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        data_encoding::HEXLOWER.encode(&id)
    }

    /// The generation that a `jti` is of, when it is one of this session and kind.
    pub fn generation(&self, session: SessionId, kind: &str, jti: &str) -> Option<i64> {
        // Of more generations than that, a look-up tells.
        let generation = jti.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).map(i64::from)?;
        same(jti.as_bytes(), self.token_id(session, generation, kind).as_bytes()).then_some(generation)
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

fn derived(master: &[u8], purpose: &str) -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    let info = format!("bifrons/v1/{purpose}");
    #[expect(clippy::expect_used, reason = "32 bytes are far below HKDF's limit of 255 blocks")]
    Hkdf::<Sha256>::new(Some(b"bifrons"), master)
        .expand(info.as_bytes(), bytes.as_mut_slice())
        .expect("32 bytes from HKDF");
    bytes
}

// The library has no other way to it.
#[expect(clippy::expect_used, reason = "every 32 bytes are a private key of Ed25519")]
fn public_key(private: &EncodingKey) -> [u8; 32] {
    let jwk = Jwk::from_encoding_key(private, jsonwebtoken::Algorithm::EdDSA).expect("a private key of Ed25519");
    let AlgorithmParameters::OctetKeyPair(pair) = jwk.algorithm else { unreachable!("an Ed25519 key is a key pair") };
    let public = data_encoding::BASE64URL_NOPAD.decode(pair.x.as_bytes()).expect("base64url");
    public.try_into().expect("32 bytes")
}

/// A public key as the `x` of its JWK (RFC 8037, 2).
pub fn coordinate(public: &[u8; 32]) -> String {
    data_encoding::BASE64URL_NOPAD.encode(public)
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
    fn a_token_id_tells_its_generation_to_whoever_can_make_it() {
        let (one, two) = (SessionId(Uuid::from_u128(1)), SessionId(Uuid::from_u128(2)));
        for generation in [0, 1, 7, i64::from(u32::MAX)] {
            let id = keys().token_id(one, generation, "refresh");
            assert_eq!(keys().generation(one, "refresh", &id), Some(generation));
            assert_eq!(keys().generation(two, "refresh", &id), None);
            assert_eq!(keys().generation(one, "access", &id), None);
            assert_eq!(Keys::derive(&[8; 32], None, None).generation(one, "refresh", &id), None);
        }
        // Of the next generation nothing is known but its number.
        let (now, next) = (keys().token_id(one, 1, "refresh"), keys().token_id(one, 2, "refresh"));
        assert_ne!(now.get(8..), next.get(8..));
        let guess = format!("00000002{}", now.get(8..).unwrap());
        assert_eq!(keys().generation(one, "refresh", &guess), None);
        let many = i64::from(u32::MAX) + 2;
        assert_eq!(keys().generation(one, "refresh", &keys().token_id(one, many, "refresh")), None);
        for id in ["", "0000000", "é0000000", &"0".repeat(32), "+0000001aaaaaaaaaaaaaaaaaaaaaaaa"] {
            assert_eq!(keys().generation(one, "refresh", id), None, "{id}");
        }
    }

    #[test]
    fn an_explicit_signing_key_leaves_the_others_as_they_are() {
        let secret = b"shared with another service 1234";
        let shared = Keys::derive(&[7; 32], Some(SigningKey::Hs256(Zeroizing::new(secret.to_vec()))), Some("k1"));
        assert_eq!(shared.signing_key().as_bytes(), secret);
        assert_eq!(shared.signing_key_id(), "k1");
        assert_eq!(shared.id(), keys().id());
        assert_ne!(keys().signing_key().as_bytes(), shared.signing_key().as_bytes());
    }

    #[test]
    fn the_derived_keys_stay_what_they_were() {
        // Another value would end every session at an upgrade.
        assert_eq!((keys().id().as_str(), keys().signing_key_id()), ("8fedacf9", "5918ceb04dc2010e"));
        let signing = SigningKey::derive(&[7; 32], Algorithm::EdDsa);
        assert_eq!(
            Keys::derive(&[7; 32], Some(signing), None).signing_key_id(),
            "pGlRLTFnaQZqXrclJEp4_NPLfUlw9EsKA62e9iZcK1w"
        );
    }

    // RFC 8037, appendix A.1 to A.3.
    const PRIVATE: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
    const PUBLIC: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const THUMBPRINT: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

    fn decoded(text: &str) -> [u8; 32] {
        data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).unwrap().try_into().unwrap()
    }

    #[test]
    fn an_ed25519_key_has_the_public_key_and_the_thumbprint_of_rfc_8037() {
        let signing = SigningKey::Ed25519(Zeroizing::new(decoded(PRIVATE)));
        let keys = Keys::derive(&[7; 32], Some(signing), None);
        assert_eq!(keys.algorithm(), Algorithm::EdDsa);
        assert_eq!(keys.signing_key_id(), THUMBPRINT);
        assert_eq!(keys.public_keys().collect::<Vec<_>>(), [(THUMBPRINT, &decoded(PUBLIC))]);
    }

    #[test]
    fn keys_of_hs256_are_not_public() {
        let mut keys = keys();
        keys.accept(&VerifyingKey::Hs256(Zeroizing::new(vec![1; 32])), None).unwrap();
        assert_eq!(keys.public_keys().count(), 0);
    }

    #[test]
    fn a_key_id_stands_for_one_key() {
        let signing = || SigningKey::Ed25519(Zeroizing::new(decoded(PRIVATE)));
        let other = SigningKey::derive(&[8; 32], Algorithm::EdDsa).verifying_key();
        let mut keys = Keys::derive(&[7; 32], Some(signing()), None);
        assert_eq!(keys.accept(&signing().verifying_key(), None), Err(AmbiguousKeyId(THUMBPRINT.to_owned())));
        assert_eq!(keys.accept(&other, Some(THUMBPRINT)), Err(AmbiguousKeyId(THUMBPRINT.to_owned())));
        keys.accept(&other, None).unwrap();
        assert!(keys.accept(&other, None).is_err());
        assert_eq!(keys.public_keys().count(), 2);
    }

    #[test]
    fn a_public_key_is_a_point_of_the_curve() {
        assert!(VerifyingKey::ed25519(decoded(PUBLIC)).is_some());
        // y = 2, for which there is no x.
        let mut nowhere = [0; 32];
        nowhere[0] = 2;
        assert!(VerifyingKey::ed25519(nowhere).is_none());
    }
}
