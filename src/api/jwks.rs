//! The keys that verify our tokens, as a JWK set (RFC 7517, 5) for `/.well-known/jwks.json`.

use serde::Serialize;

use super::reply::Document;
use crate::services::keys::{Keys, coordinate};

/// `Content-Type` of a JWK set (RFC 7517, 8.5.2).
const CONTENT_TYPE: &str = "application/jwk-set+json";

#[derive(Serialize)]
struct Set<'a> {
    keys: Vec<Key<'a>>,
}

// RFC 8037, 2.
#[derive(Serialize)]
struct Key<'a> {
    kty: &'static str,
    crv: &'static str,
    x: String,
    kid: &'a str,
    #[serde(rename = "use")]
    purpose: &'static str,
    alg: &'static str,
}

/// The JWK set, to be kept for a while: a key is announced before it signs (`tokens.verification_keys`).
pub fn document(keys: &Keys) -> Document {
    let body = jwks(keys).into_bytes().into();
    Document { content_type: CONTENT_TYPE, is_cacheable: true, headers: Vec::new(), body }
}

/// The JWK set as JSON, the signing key first; empty with HS256, whose keys are secret.
pub fn jwks(keys: &Keys) -> String {
    let keys = keys.public_keys().map(|(kid, public)| Key {
        kty: "OKP",
        crv: "Ed25519",
        x: coordinate(public),
        kid,
        purpose: "sig",
        alg: "EdDSA",
    });
    #[expect(clippy::expect_used, reason = "plain text always serialises")]
    serde_json::to_string(&Set { keys: keys.collect() }).expect("JSON")
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::services::keys::{Algorithm, SigningKey, VerifyingKey};

    // RFC 8037, appendix A.1 to A.3.
    const SEED: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const THUMBPRINT: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

    fn key_of_the_rfc() -> SigningKey {
        let seed = data_encoding::BASE64URL_NOPAD.decode(SEED.as_bytes()).unwrap();
        SigningKey::Ed25519(Zeroizing::new(seed.try_into().unwrap()))
    }

    #[test]
    fn the_key_of_rfc_8037_is_published_as_there() {
        let published =
            |id: &str| format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{X}","kid":"{id}","use":"sig","alg":"EdDSA"}}"#);
        let keys = Keys::derive(&[7; 32], Some(key_of_the_rfc()), None);
        assert_eq!(jwks(&keys), format!(r#"{{"keys":[{}]}}"#, published(THUMBPRINT)));
        let mut named = Keys::derive(&[7; 32], Some(SigningKey::derive(&[8; 32], Algorithm::EdDsa)), None);
        named.accept(&key_of_the_rfc().verifying_key(), Some("before")).unwrap();
        assert!(jwks(&named).ends_with(&format!("}},{}]}}", published("before"))), "{}", jwks(&named));
    }

    #[test]
    fn neither_a_secret_nor_a_private_key_is_published() {
        let mut keys = Keys::derive(&[7; 32], None, None);
        keys.accept(&VerifyingKey::Hs256(Zeroizing::new(vec![1; 32])), None).unwrap();
        assert_eq!(jwks(&keys), r#"{"keys":[]}"#);
        let set = jwks(&Keys::derive(&[7; 32], Some(key_of_the_rfc()), None));
        assert!(!set.contains(SEED) && !set.contains(r#""d""#), "{set}");
    }
}
