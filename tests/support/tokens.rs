//! Takes JSON Web Tokens apart and makes false ones, without the library that the gateway uses.

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

/// Header and claims of a token, not verified.
#[derive(Clone, Debug)]
pub struct Claims {
    pub header: Value,
    pub claims: Value,
}

/// Takes a token apart; `None` when it is not made of three parts of base64url with JSON in the first two.
pub fn claims_of(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (header, claims, signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || BASE64URL_NOPAD.decode(signature.as_bytes()).is_err() {
        return None;
    }
    let decode = |part: &str| serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).ok()?).ok();
    Some(Claims { header: decode(header)?, claims: decode(claims)? })
}

// In the gateway's order, which is the only one that it takes.
fn written(header: &Value) -> String {
    let Some(fields) = header.as_object() else { return header.to_string() };
    let first = ["typ", "alg", "kid"];
    let known = first.iter().filter_map(|name| fields.get_key_value(*name));
    let others = fields.iter().filter(|(name, _)| !first.contains(&name.as_str()));
    let pairs: Vec<_> =
        known.chain(others).map(|(name, value)| format!("{}:{value}", Value::from(name.as_str()))).collect();
    format!("{{{}}}", pairs.join(","))
}

/// A token with this header and these claims, signed with HMAC-SHA-256 whatever its header says.
pub fn signed(header: &Value, claims: &Value, key: &[u8]) -> String {
    let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    let signed = format!("{}.{}", encode(&written(header)), encode(&claims.to_string()));
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()))
}
