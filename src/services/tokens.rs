//! Access and refresh tokens: JWTs with SimpleJWT's claims (contract §3).
//!
//! A token's `jti` derives from its session's id and generation, and its times from the moment of
//! that generation: the same generation always makes the same two tokens, byte for byte, so that
//! nothing of a token needs to be stored.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    keys::{Keys, same},
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

/// The tokens of the session's present generation.
pub fn mint(session: &Session, keys: &Keys, policy: &TokenPolicy) -> Pair {
    let issued = session.rotated_at.unix_timestamp();
    let token = |kind: Kind, expires: i64| {
        let claims = Claims {
            token_type: kind,
            exp: expires,
            iat: issued,
            jti: keys.token_id(session.id, session.generation, kind.word()),
            user_id: session.user_id,
            sid: session.id,
            iss: policy.issuer.clone(),
            aud: policy.audience.clone(),
        };
        let header = Header { kid: Some(keys.signing_key_id().to_owned()), ..Header::new(Algorithm::HS256) };
        #[expect(clippy::expect_used, reason = "plain claims always serialise, and HMAC takes any key")]
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(keys.signing_key())).expect("a signed token")
    };
    let life = i64::try_from(policy.access_ttl.as_secs()).unwrap_or(i64::MAX);
    // An access token never outlives its session.
    let access_expires = issued.saturating_add(life).min(session.expires_at.unix_timestamp());
    Pair {
        access: token(Kind::Access, access_expires),
        refresh: token(Kind::Refresh, session.expires_at.unix_timestamp()),
        expires_in: u64::try_from(access_expires - issued).unwrap_or_default(),
        refresh_expires_at: session.expires_at,
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
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_issuer(&[&policy.issuer]);
    validation.set_audience(&[&policy.audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    // The time comes from the ports, and without leeway.
    validation.validate_exp = false;
    let key = DecodingKey::from_secret(keys.signing_key());
    let data = jsonwebtoken::decode::<Claims>(token, &key, &validation).or(Err(NotValid))?;
    let is_ours = data.header.kid.as_deref() == Some(keys.signing_key_id());
    let is_current = data.claims.exp > now.unix_timestamp() && data.claims.iat <= now.unix_timestamp() + 60;
    if is_ours && is_current { Ok(data.claims) } else { Err(NotValid) }
}

/// Whether the claims are those of the session's generation `generation`.
pub fn is_of_generation(claims: &Claims, session: &Session, generation: i64, keys: &Keys) -> bool {
    let id = keys.token_id(session.id, generation, claims.token_type.word());
    same(claims.jti.as_bytes(), id.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::services::memory;

    fn policy() -> TokenPolicy {
        memory::policy().tokens
    }

    fn keys() -> Keys {
        Keys::derive(&[7; 32], None, None)
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000)
    }

    fn session() -> Session {
        memory::session(now(), Duration::from_secs(30 * 86_400))
    }

    #[test]
    fn one_generation_makes_the_same_tokens_every_time() {
        let (one, two) = (mint(&session(), &keys(), &policy()), mint(&session(), &keys(), &policy()));
        assert!(one == two);
        let next = mint(&Session { generation: 1, ..session() }, &keys(), &policy());
        assert_ne!(one.access, next.access);
        assert_ne!(one.refresh, next.refresh);
    }

    #[test]
    fn a_token_opens_until_it_runs_out() {
        let pair = mint(&session(), &keys(), &policy());
        let claims = open(&pair.access, &keys(), &policy(), now()).unwrap();
        assert_eq!((claims.token_type, claims.sid), (Kind::Access, session().id));
        let last = now() + policy().access_ttl;
        assert!(open(&pair.access, &keys(), &policy(), last - Duration::from_secs(1)).is_ok());
        assert_eq!(open(&pair.access, &keys(), &policy(), last), Err(NotValid));
        assert_eq!(open(&pair.access, &keys(), &policy(), now() - Duration::from_secs(3600)), Err(NotValid));
    }

    #[test]
    fn what_another_made_does_not_open() {
        let pair = mint(&session(), &keys(), &policy());
        let refused = |token: &str| assert_eq!(open(token, &keys(), &policy(), now()), Err(NotValid), "{token}");
        let other = Keys::derive(&[8; 32], None, None);
        refused(&mint(&session(), &other, &policy()).access);
        refused(&mint(&session(), &keys(), &TokenPolicy { issuer: "x".into(), ..policy() }).access);
        refused(&mint(&session(), &keys(), &TokenPolicy { audience: "x".into(), ..policy() }).access);
        refused(&mint(&session(), &Keys::derive(&[7; 32], None, Some("other kid")), &policy()).access);
        refused("");
        refused("a.b.c");
        refused(&"a".repeat(5000));
        let mut parts = pair.access.split('.');
        let (_, claims, signature) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let none = data_encoding::BASE64URL_NOPAD.encode(br#"{"alg":"none","typ":"JWT"}"#);
        refused(&format!("{none}.{claims}."));
        refused(&format!("{none}.{claims}.{signature}"));
    }
}
