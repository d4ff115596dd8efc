//! Access and refresh tokens: JWTs with SimpleJWT's claims (contract §3).
//!
//! A token's `jti` derives from its session's id and generation, and its times from the moment of
//! that generation: the same generation always makes the same two tokens, byte for byte, so that
//! nothing of a token needs to be stored.

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    keys::{Algorithm, Keys, same},
    model::{Session, SessionId, UserId},
    policy::TokenPolicy,
};

/// What a token is for (`token_type`, ASVS 9.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Opens protected routes.
    Access,
    /// Gets the next pair.
    Refresh,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Refresh => "refresh",
        }
    }
}

/// The claims, in the order they are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Access or refresh.
    pub token_type: Kind,
    /// Seconds since 1970.
    pub exp: i64,
    /// Seconds since 1970.
    pub iat: i64,
    /// 32 hex digits.
    pub jti: String,
    /// The user.
    pub user_id: UserId,
    /// The session.
    pub sid: SessionId,
    /// Who issued it.
    pub iss: String,
    /// For whom.
    pub aud: String,
}

/// Two tokens of one generation of a session.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// Access token.
    pub access: String,
    /// Refresh token.
    pub refresh: String,
    /// Seconds until the access token runs out, at the moment it was issued.
    pub expires_in: u64,
    /// When the refresh token runs out.
    pub refresh_expires_at: OffsetDateTime,
}

/// A token that was not issued here, is out of date, or is of the wrong kind. Why does not matter
/// to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token is not valid")]
pub struct NotValid;

// Ours have some 500 bytes; what is much longer is no token of ours.
const MOST_BYTES: usize = 4096;

/// What the tokens of one generation are made of.
#[derive(Debug, Clone, Copy)]
pub struct Issue {
    /// Which session.
    pub session: SessionId,
    /// Whose.
    pub user: UserId,
    /// Which of its generations.
    pub generation: i64,
    /// When that began.
    pub at: OffsetDateTime,
    /// When the session runs out.
    pub expires_at: OffsetDateTime,
}

impl From<&Session> for Issue {
    /// The session's present generation.
    fn from(session: &Session) -> Self {
        let Session { id, user_id, generation, rotated_at, expires_at, .. } = *session;
        Self { session: id, user: user_id, generation, at: rotated_at, expires_at }
    }
}

/// The tokens of one generation of a session.
pub fn mint(issue: impl Into<Issue>, keys: &Keys, policy: &TokenPolicy) -> Pair {
    let issue = issue.into();
    let issued = issue.at.unix_timestamp();
    let token = |kind: Kind, expires: i64| {
        let claims = Claims {
            token_type: kind,
            exp: expires,
            iat: issued,
            jti: keys.token_id(issue.session, issue.generation, kind.word()),
            user_id: issue.user,
            sid: issue.session,
            iss: policy.issuer.clone(),
            aud: policy.audience.clone(),
        };
        let mut token = keys.signing_header().to_owned();
        token.push('.');
        BASE64URL_NOPAD.encode_append(&serde_json::to_vec(&claims).unwrap_or_default(), &mut token);
        #[expect(clippy::expect_used, reason = "the key is of the algorithm")]
        let signature =
            jsonwebtoken::crypto::sign(token.as_bytes(), keys.signing_key(), algorithm(keys)).expect("a signature");
        token.push('.');
        token.push_str(&signature);
        token
    };
    let life = i64::try_from(policy.access_ttl.as_secs()).unwrap_or(i64::MAX);
    // An access token never outlives its session.
    let access_expires = issued.saturating_add(life).min(issue.expires_at.unix_timestamp());
    Pair {
        access: token(Kind::Access, access_expires),
        refresh: token(Kind::Refresh, issue.expires_at.unix_timestamp()),
        expires_in: u64::try_from(access_expires - issued).unwrap_or_default(),
        refresh_expires_at: issue.expires_at,
    }
}

/// Checks signature, algorithm, key id, issuer, audience and times. The session it names is not
/// looked at.
///
/// # Errors
/// [`NotValid`].
pub fn open(token: &str, keys: &Keys, policy: &TokenPolicy, now: OffsetDateTime) -> Result<Claims, NotValid> {
    if token.len() > MOST_BYTES {
        return Err(NotValid);
    }
    // The header chooses among our keys of the one algorithm, never the algorithm.
    let (message, signature) = token.rsplit_once('.').ok_or(NotValid)?;
    let (header, payload) = message.split_once('.').ok_or(NotValid)?;
    let key = keys.verifying_key(header).ok_or(NotValid)?;
    if !jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, algorithm(keys)).unwrap_or(false) {
        return Err(NotValid);
    }
    let payload = BASE64URL_NOPAD.decode(payload.as_bytes()).or(Err(NotValid))?;
    let claims: Claims = serde_json::from_slice(&payload).or(Err(NotValid))?;
    let is_ours = claims.iss == policy.issuer && claims.aud == policy.audience;
    // The time comes from the ports, and without leeway.
    let is_current = claims.exp > now.unix_timestamp() && claims.iat <= now.unix_timestamp() + 60;
    if is_ours && is_current { Ok(claims) } else { Err(NotValid) }
}

const fn algorithm(keys: &Keys) -> jsonwebtoken::Algorithm {
    match keys.algorithm() {
        Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
    }
}

/// The generation that a refresh token is of, when its id says so.
pub fn generation(claims: &Claims, keys: &Keys) -> Option<i64> {
    keys.generation(claims.sid, claims.token_type.word(), &claims.jti)
}

/// Whether the claims are those of the session's generation `generation`.
pub fn is_of_generation(claims: &Claims, session: &Session, generation: i64, keys: &Keys) -> bool {
    let id = keys.token_id(session.id, generation, claims.token_type.word());
    same(claims.jti.as_bytes(), id.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jsonwebtoken::Header;
    use serde_json::{Value, json};
    use zeroize::Zeroizing;

    use super::*;
    use crate::services::{
        keys::{SigningKey, VerifyingKey},
        memory,
    };

    const BOTH: [Algorithm; 2] = [Algorithm::Hs256, Algorithm::EdDsa];

    fn policy() -> TokenPolicy {
        memory::policy().tokens
    }

    fn derived(master: u8, algorithm: Algorithm, id: Option<&str>) -> Keys {
        Keys::derive(&[7; 32], Some(SigningKey::derive(&[master; 32], algorithm)), id)
    }

    fn keys(algorithm: Algorithm) -> Keys {
        derived(7, algorithm, None)
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000)
    }

    fn session() -> Session {
        memory::session(now(), Duration::from_secs(30 * 86_400))
    }

    fn access(keys: &Keys) -> String {
        mint(&session(), keys, &policy()).access
    }

    fn parts(token: &str) -> [String; 3] {
        let parts: Vec<_> = token.split('.').map(str::to_owned).collect();
        parts.try_into().unwrap()
    }

    fn header(token: &str) -> Value {
        let [header, ..] = parts(token);
        serde_json::from_slice(&BASE64URL_NOPAD.decode(header.as_bytes()).unwrap()).unwrap()
    }

    #[track_caller]
    fn refuses(keys: &Keys, token: &str) {
        assert_eq!(open(token, keys, &policy(), now()), Err(NotValid), "{token}");
    }

    #[test]
    fn one_generation_makes_the_same_tokens_every_time() {
        for keys in BOTH.map(keys) {
            let (one, two) = (mint(&session(), &keys, &policy()), mint(&session(), &keys, &policy()));
            assert!(one == two);
            let next = mint(&Session { generation: 1, ..session() }, &keys, &policy());
            assert_ne!(one.access, next.access);
            assert_ne!(one.refresh, next.refresh);
        }
    }

    #[test]
    fn a_token_opens_until_it_runs_out() {
        for keys in BOTH.map(keys) {
            let pair = mint(&session(), &keys, &policy());
            let claims = open(&pair.access, &keys, &policy(), now()).unwrap();
            assert_eq!((claims.token_type, claims.sid), (Kind::Access, session().id));
            let last = now() + policy().access_ttl;
            assert!(open(&pair.access, &keys, &policy(), last - Duration::from_secs(1)).is_ok());
            assert_eq!(open(&pair.access, &keys, &policy(), last), Err(NotValid));
            assert_eq!(open(&pair.access, &keys, &policy(), now() - Duration::from_secs(3600)), Err(NotValid));
        }
    }

    #[test]
    fn the_header_names_algorithm_and_key() {
        for (algorithm, name) in [(Algorithm::Hs256, "HS256"), (Algorithm::EdDsa, "EdDSA")] {
            let keys = keys(algorithm);
            let expected = json!({ "typ": "JWT", "alg": name, "kid": keys.signing_key_id() });
            assert_eq!(header(&access(&keys)), expected);
        }
    }

    #[test]
    fn what_another_made_does_not_open() {
        for algorithm in BOTH {
            let keys = keys(algorithm);
            let own = access(&keys);
            assert!(open(&own, &keys, &policy(), now()).is_ok());
            refuses(&keys, &access(&derived(8, algorithm, None)));
            // Another's, under the id of ours.
            refuses(&keys, &access(&derived(8, algorithm, Some(keys.signing_key_id()))));
            refuses(&keys, &mint(&session(), &keys, &TokenPolicy { issuer: "x".into(), ..policy() }).access);
            refuses(&keys, &mint(&session(), &keys, &TokenPolicy { audience: "x".into(), ..policy() }).access);
            refuses(&keys, &access(&derived(7, algorithm, Some("other kid"))));
            for text in ["", "a.b.c", "..", &"a".repeat(5000)] {
                refuses(&keys, text);
            }
        }
    }

    #[test]
    fn a_token_changed_anywhere_does_not_open() {
        for keys in BOTH.map(keys) {
            let own = access(&keys);
            for (at, letter) in own.char_indices() {
                let other = if letter == 'A' { 'B' } else { 'A' };
                let changed: String =
                    own.char_indices().map(|(index, letter)| if index == at { other } else { letter }).collect();
                refuses(&keys, &changed);
                refuses(&keys, own.get(..at).unwrap());
            }
            refuses(&keys, &format!("{own}A"));
            refuses(&keys, &format!("{own}="));
            refuses(&keys, &format!("{own}."));
        }
    }

    #[test]
    fn a_token_without_signature_does_not_open() {
        for keys in BOTH.map(keys) {
            let [_, claims, signature] = parts(&access(&keys));
            for name in ["none", "None", "NONE", ""] {
                let header = json!({ "alg": name, "typ": "JWT", "kid": keys.signing_key_id() });
                let header = BASE64URL_NOPAD.encode(header.to_string().as_bytes());
                refuses(&keys, &format!("{header}.{claims}."));
                refuses(&keys, &format!("{header}.{claims}.{signature}"));
                refuses(&keys, &format!("{header}.{claims}"));
            }
        }
    }

    #[test]
    fn only_the_configured_algorithm_opens() {
        let (secret, pair) = (keys(Algorithm::Hs256), keys(Algorithm::EdDsa));
        refuses(&secret, &access(&pair));
        refuses(&pair, &access(&secret));
        refuses(&secret, &access(&derived(7, Algorithm::EdDsa, Some(secret.signing_key_id()))));
        refuses(&pair, &access(&derived(7, Algorithm::Hs256, Some(pair.signing_key_id()))));
    }

    #[test]
    fn a_token_signed_with_the_secret_under_another_hmac_does_not_open() {
        let keys = keys(Algorithm::Hs256);
        let claims = open(&access(&keys), &keys, &policy(), now()).unwrap();
        for algorithm in [jsonwebtoken::Algorithm::HS384, jsonwebtoken::Algorithm::HS512] {
            let header = Header { kid: Some(keys.signing_key_id().to_owned()), ..Header::new(algorithm) };
            refuses(&keys, &jsonwebtoken::encode(&header, &claims, keys.signing_key()).unwrap());
        }
    }

    #[test]
    fn the_public_key_is_no_secret_that_signs() {
        let keys = keys(Algorithm::EdDsa);
        let (id, public) = keys.public_keys().next().unwrap();
        let der = [&[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0], public.as_slice()].concat();
        let pem = |end: &str| {
            let content = data_encoding::BASE64.encode(&der);
            format!("-----BEGIN PUBLIC KEY-----\n{content}\n-----END PUBLIC KEY-----{end}").into_bytes()
        };
        let spellings = [
            public.to_vec(),
            BASE64URL_NOPAD.encode(public).into_bytes(),
            data_encoding::HEXLOWER.encode(public).into_bytes(),
            pem(""),
            pem("\n"),
            der.clone(),
        ];
        for secret in spellings {
            let forger = Keys::derive(&[7; 32], Some(SigningKey::Hs256(Zeroizing::new(secret))), Some(id));
            let forged = access(&forger);
            assert!(open(&forged, &forger, &policy(), now()).is_ok(), "or the refusal proves nothing");
            refuses(&keys, &forged);
            // The same signature under the algorithm that is accepted.
            let [_, claims, signature] = parts(&forged);
            let [header, ..] = parts(&access(&keys));
            refuses(&keys, &format!("{header}.{claims}.{signature}"));
        }
    }

    #[test]
    fn a_key_in_the_header_is_not_used() {
        let (keys, other) = (keys(Algorithm::EdDsa), derived(8, Algorithm::EdDsa, None));
        let claims = open(&access(&keys), &keys, &policy(), now()).unwrap();
        let own_key = jsonwebtoken::jwk::Jwk::from_encoding_key(other.signing_key(), jsonwebtoken::Algorithm::EdDSA);
        let header = Header {
            kid: Some(keys.signing_key_id().to_owned()),
            jwk: Some(own_key.unwrap()),
            ..Header::new(jsonwebtoken::Algorithm::EdDSA)
        };
        refuses(&keys, &jsonwebtoken::encode(&header, &claims, other.signing_key()).unwrap());
    }

    #[test]
    fn a_token_without_key_id_does_not_open() {
        for keys in BOTH.map(keys) {
            let claims = open(&access(&keys), &keys, &policy(), now()).unwrap();
            let header = Header::new(super::algorithm(&keys));
            refuses(&keys, &jsonwebtoken::encode(&header, &claims, keys.signing_key()).unwrap());
        }
    }

    #[test]
    fn a_change_of_the_signing_key_interrupts_nobody() {
        for algorithm in BOTH {
            let (old, new) = (|| SigningKey::derive(&[8; 32], algorithm), || SigningKey::derive(&[9; 32], algorithm));
            let keys = |signing: SigningKey, id: Option<&str>, further: &[(VerifyingKey, Option<&str>)]| {
                let mut keys = Keys::derive(&[7; 32], Some(signing), id);
                for (key, id) in further {
                    keys.accept(key, *id).unwrap();
                }
                keys
            };
            let before = keys(old(), Some("k1"), &[]);
            let announced = keys(old(), Some("k1"), &[(new().verifying_key(), None)]);
            let changed = keys(new(), None, &[(old().verifying_key(), Some("k1"))]);
            let after = keys(new(), None, &[]);
            for keys in [&before, &announced, &changed] {
                assert!(open(&access(&before), keys, &policy(), now()).is_ok());
                assert_eq!(header(&access(keys))["kid"], keys.signing_key_id());
            }
            for keys in [&announced, &changed, &after] {
                assert!(open(&access(&changed), keys, &policy(), now()).is_ok());
            }
            refuses(&before, &access(&changed));
            refuses(&after, &access(&before));
            // The keys are not interchanged.
            refuses(&changed, &access(&keys(old(), Some(changed.signing_key_id()), &[])));
            refuses(&changed, &access(&keys(new(), Some("k1"), &[])));
        }
    }
}
