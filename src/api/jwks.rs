//! The public keys that tokens are verified with, as a JWK set (RFC 7517 §5).

use super::reply::Document;
use crate::services::keys::Keys;

/// The set; with HS256 it is empty, since that key is a secret.
pub fn document(_keys: &Keys) -> Document {
    let body = br#"{"keys":[]}"#.to_vec();
    Document { content_type: "application/jwk-set+json", is_cacheable: true, headers: Vec::new(), body }
}
