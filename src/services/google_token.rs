//! Google's ID tokens (OpenID Connect Core 1.0, 2 and 3.1.3.7).

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;

use super::{identifier::Identifier, keys::Keys, model::User, policy::GooglePolicy};

/// How Google names itself: `iss`, in both spellings that it documents.
const ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];
/// Google's have 1 to 2 KiB.
const MOST_BYTES: usize = 8192;
/// Clocks differ: how far `iat` and `nbf` may lie ahead, in seconds.
const AHEAD: i64 = 60;
/// Google's live an hour; one that says it lives longer than a day would have to be remembered as spent for as long.
const MOST_LIFE: i64 = 86_400;
/// OpenID Connect Core 1.0, 2: `sub` has 255 characters at most.
const MOST_SUBJECT: usize = 255;

/// What a token says of somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoogleAccount {
    /// Never changes and is never given to anybody else; the address may be.
    pub subject: String,
    /// The address, proven to Google at some time.
    pub email: Identifier,
    /// Whether Google itself runs the address: then its word is as good as a code sent there. Google's own advice
    /// (Sign in with Google, "Verify the ID token").
    pub is_authoritative: bool,
    /// Given name.
    pub first_name: String,
    /// Family name.
    pub last_name: String,
    /// Address of a picture, or `""`.
    pub picture: String,
    /// The client's own text, when it sent one along.
    pub nonce: Option<String>,
    /// When the token runs out, in seconds since 1970.
    pub expires: i64,
}

/// A token that Google did not make for us, or that is out of date. Why does not matter to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ID token is not valid")]
pub struct NotValid;

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    exp: i64,
    iat: i64,
    nbf: Option<i64>,
    email: String,
    email_verified: bool,
    hd: Option<String>,
    // Nobody is kept out for an odd name.
    given_name: Option<Value>,
    family_name: Option<Value>,
    picture: Option<Value>,
    nonce: Option<String>,
}

/// The id of the key that a token says it is signed with.
///
/// # Errors
/// [`NotValid`]: it is no token that could be good.
pub fn key_id(token: &str) -> Result<String, NotValid> {
    if token.len() > MOST_BYTES {
        return Err(NotValid);
    }
    let header = jsonwebtoken::decode_header(token).or(Err(NotValid))?;
    let kid = header.kid.filter(|kid| !kid.is_empty()).ok_or(NotValid)?;
    if header.alg == Algorithm::RS256 { Ok(kid) } else { Err(NotValid) }
}

/// Checks signature and claims; `now` in seconds since 1970. Whether the nonce is the right one is not looked at.
///
/// # Errors
/// [`NotValid`].
pub fn open(token: &str, key: &DecodingKey, policy: &GooglePolicy, now: i64) -> Result<GoogleAccount, NotValid> {
    let mut validation = Validation::new(Algorithm::RS256);
    // All claims are checked below, where a claim of the wrong type is no claim.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<Claims>(token, key, &validation).or(Err(NotValid))?.claims;
    let is_ours = ISSUERS.contains(&claims.iss.as_str()) && policy.client_ids.contains(&claims.aud);
    let is_current = claims.exp > now
        && claims.exp <= now + MOST_LIFE
        && claims.iat <= now + AHEAD
        && claims.nbf.is_none_or(|begins| begins <= now + AHEAD);
    let is_named = !claims.sub.is_empty() && claims.sub.len() <= MOST_SUBJECT;
    if !(is_ours && is_current && is_named && claims.email_verified) {
        return Err(NotValid);
    }
    let email = Identifier::email(&claims.email).or(Err(NotValid))?;
    Ok(GoogleAccount {
        is_authoritative: is_authoritative(&email, claims.hd.as_deref()),
        subject: claims.sub,
        email,
        first_name: name(claims.given_name.as_ref()),
        last_name: name(claims.family_name.as_ref()),
        picture: picture(claims.picture.as_ref()),
        nonce: claims.nonce,
        expires: claims.exp,
    })
}

fn is_authoritative(email: &Identifier, hosted_domain: Option<&str>) -> bool {
    let address = email.comparable();
    let domain = address.rsplit_once('@').map_or("", |(_, domain)| domain);
    matches!(domain, "gmail.com" | "googlemail.com")
        || hosted_domain.is_some_and(|hosted| hosted.to_lowercase() == domain)
}

/// Longest name that a profile takes, in characters.
const MOST_NAME: usize = 150;
/// Longest address of a picture that a profile takes, in characters.
const MOST_PICTURE: usize = 500;

fn name(claim: Option<&Value>) -> String {
    let clean: String = claim.and_then(Value::as_str).unwrap_or_default().chars().filter(is_shown).collect();
    clean.trim().chars().take(MOST_NAME).collect::<String>().trim_end().to_owned()
}

// Neither control characters nor those that turn the direction of writing.
fn is_shown(letter: &char) -> bool {
    !letter.is_control()
        && !matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

// As a profile takes it, or none.
fn picture(claim: Option<&Value>) -> String {
    let is_web = |text: &&str| {
        let parsed = url::Url::parse(text).ok();
        text.len() <= MOST_PICTURE && parsed.is_some_and(|url| url.scheme() == "https" && url.has_host())
    };
    claim.and_then(Value::as_str).filter(is_web).unwrap_or_default().to_owned()
}

impl GoogleAccount {
    /// What the account is found by: a keyed digest of issuer and subject, which nobody can turn back.
    pub fn index(&self, keys: &Keys) -> [u8; 32] {
        keys.digest("identity", &[b"google", self.subject.as_bytes()])
    }

    /// Fills in what a new user's profile begins with.
    pub fn introduce(&self, user: User) -> User {
        User {
            first_name: self.first_name.clone(),
            last_name: self.last_name.clone(),
            avatar: self.picture.clone(),
            ..user
        }
    }
}

/// The part of a token that its signature covers: no other spelling of it verifies.
pub fn signed_part(token: &str) -> &str {
    token.rsplit_once('.').map_or(token, |(signed, _)| signed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn google_speaks_for_its_own_addresses_only() {
        let speaks = |email: &str, hosted: Option<&str>| is_authoritative(&Identifier::email(email).unwrap(), hosted);
        assert!(speaks("ada@gmail.com", None) && speaks("Ada@GMail.com", None) && speaks("ada@googlemail.com", None));
        assert!(speaks("ada@example.org", Some("Example.ORG")));
        assert!(!speaks("ada@example.org", None) && !speaks("ada@example.org", Some("example.com")));
        assert!(!speaks("ada@notgmail.com", None) && !speaks("ada@sub.example.org", Some("example.org")));
        assert!(!speaks("ada@example.org", Some("")) && !speaks("ada@gmail.com.example.org", None));
    }

    #[test]
    fn names_and_pictures_come_as_a_profile_takes_them() {
        assert_eq!(name(None), "");
        assert_eq!(name(Some(&json!(" Ada\r\n\u{0}\u{202e}"))), "Ada");
        assert_eq!(name(Some(&json!("x".repeat(400)))).len(), MOST_NAME);
        assert_eq!((name(Some(&json!(7))), picture(Some(&json!(["x"])))), (String::new(), String::new()));
        let kept = |text: &str| picture(Some(&json!(text)));
        assert_eq!(kept("https://lh3.googleusercontent.com/a/x"), "https://lh3.googleusercontent.com/a/x");
        for text in
            ["javascript:alert(1)", "http://a.example", "x", "", &format!("https://a.example/{}", "x".repeat(500))]
        {
            assert_eq!(kept(text), "", "{text}");
        }
    }

    #[test]
    fn the_signed_part_leaves_out_the_signature() {
        assert_eq!(signed_part("a.b.c"), "a.b");
        assert_eq!(signed_part("abc"), "abc");
    }

    #[test]
    fn only_rs256_with_a_key_id_is_looked_at() {
        let header = |text: &str| format!("{}.e30.", data_encoding::BASE64URL_NOPAD.encode(text.as_bytes()));
        assert_eq!(key_id(&header(r#"{"alg":"RS256","kid":"a"}"#)), Ok("a".to_owned()));
        for text in [
            r#"{"alg":"HS256","kid":"a"}"#,
            r#"{"alg":"RS384","kid":"a"}"#,
            r#"{"alg":"none","kid":"a"}"#,
            r#"{"alg":"RS256","kid":""}"#,
            r#"{"alg":"RS256"}"#,
            "",
        ] {
            assert_eq!(key_id(&header(text)), Err(NotValid), "{text}");
        }
        assert_eq!(key_id(&"a".repeat(8193)), Err(NotValid));
    }
}
