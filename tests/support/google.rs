//! A Google of the tests' own: keys made at run time, a key set that may be slow, false or away, and ID tokens that say
//! whatever a test wants.

use super::http::Request;
use super::processes::random_bytes;
use super::worlds::unique;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use rsa::rand_core::OsRng;
use rsa::sha2::{Digest as _, Sha256, Sha512};
use rsa::traits::PublicKeyParts as _;
use rsa::{Pkcs1v15Sign, RsaPrivateKey, RsaPublicKey};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The client that every gateway of the tests accepts tokens for.
pub const CLIENT_ID: &str = "client-1.apps.googleusercontent.com";

/// Where Google's own keys lie on its host.
const CERTS: &str = "/oauth2/v3/certs";

/// Where a redirection leads, to keys that are good.
const ELSEWHERE: &str = "/elsewhere";

/// The Google of every gateway that has none of its own.
static SHARED: LazyLock<Google> = LazyLock::new(Google::start);

/// A key pair that signs ID tokens.
pub struct GoogleKey {
    pub kid: &'static str,
    private: RsaPrivateKey,
}

impl GoogleKey {
    pub fn new(kid: &'static str, bits: usize) -> Self {
        Self { kid, private: RsaPrivateKey::new(&mut OsRng, bits).expect("a key of this size") }
    }

    /// What a Google serves from the beginning.
    pub fn present() -> &'static Self {
        static KEY: LazyLock<GoogleKey> = LazyLock::new(|| GoogleKey::new("present", 2048));
        &KEY
    }

    /// What no Google serves until it is told to.
    pub fn next() -> &'static Self {
        static KEY: LazyLock<GoogleKey> = LazyLock::new(|| GoogleKey::new("next", 2048));
        &KEY
    }

    pub fn public(&self) -> RsaPublicKey {
        self.private.to_public_key()
    }

    /// Its public part as a key set holds it.
    pub fn jwk(&self) -> Value {
        let encode = |number: &rsa::BigUint| BASE64URL_NOPAD.encode(&number.to_bytes_be());
        let (n, e) = (encode(self.private.n()), encode(self.private.e()));
        json!({ "kty": "RSA", "alg": "RS256", "use": "sig", "kid": self.kid, "n": n, "e": e })
    }

    fn sign(&self, algorithm: &str, text: &str) -> Vec<u8> {
        let signature = match algorithm {
            "RS512" => self.private.sign(Pkcs1v15Sign::new::<Sha512>(), &Sha512::digest(text)),
            _ => self.private.sign(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(text)),
        };
        signature.expect("a signature")
    }
}

/// An ID token before it is signed; one of an ordinary person unless something else is said.
#[derive(Clone)]
pub struct IdToken {
    pub header: Value,
    pub claims: Value,
    key: &'static GoogleKey,
}

impl IdToken {
    /// Of a person whom no other token is about.
    pub fn of(email: &str) -> Self {
        let key = GoogleKey::present();
        let claims = json!({
            "iss": "https://accounts.google.com",
            "azp": CLIENT_ID,
            "aud": CLIENT_ID,
            "sub": format!("1{:020}", unique()),
            "email": email,
            "email_verified": true,
            "name": "Ada Obi",
            "given_name": "Ada",
            "family_name": "Obi",
            "picture": "https://lh3.googleusercontent.com/a/portrait=s96-c",
            "iat": now() - 5,
            "exp": now() + 3595,
        });
        Self { header: json!({ "alg": "RS256", "kid": key.kid, "typ": "JWT" }), claims, key }.again()
    }

    /// Another token about the same.
    #[must_use]
    pub fn again(&self) -> Self {
        self.with("jti", HEXLOWER.encode(&random_bytes::<20>()))
    }

    #[must_use]
    pub fn with(&self, claim: &str, value: impl Into<Value>) -> Self {
        let mut token = self.clone();
        set(&mut token.claims, claim, value.into());
        token
    }

    #[must_use]
    pub fn without(&self, claim: &str) -> Self {
        let mut token = self.clone();
        token.claims.as_object_mut().expect("claims").remove(claim);
        token
    }

    /// With another field in its header; null takes it out.
    #[must_use]
    pub fn with_header(&self, field: &str, value: impl Into<Value>) -> Self {
        let (mut token, value) = (self.clone(), value.into());
        if value.is_null() {
            token.header.as_object_mut().expect("a header").remove(field);
        } else {
            set(&mut token.header, field, value);
        }
        token
    }

    /// Signed with another key, which its header names.
    #[must_use]
    pub fn signed_by(&self, key: &'static GoogleKey) -> Self {
        Self { key, ..self.with_header("kid", key.kid) }
    }

    /// Signed with another key than its header says.
    #[must_use]
    pub fn forged_by(&self, key: &'static GoogleKey) -> Self {
        Self { key, ..self.clone() }
    }

    pub fn sub(&self) -> &str {
        self.claims.get("sub").and_then(Value::as_str).expect("a sub")
    }

    /// Header and claims as they are signed.
    pub fn unsigned(&self) -> String {
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        format!("{}.{}", encode(&self.header), encode(&self.claims))
    }

    /// The same text each time.
    pub fn sign(&self) -> String {
        let (text, algorithm) = (self.unsigned(), self.header.get("alg").and_then(Value::as_str).unwrap_or_default());
        let signature = self.key.sign(algorithm, &text);
        format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    /// A sign-in with it and nothing else.
    pub fn request(&self) -> Request {
        google(&json!({ "id_token": self.sign() }))
    }

    /// A sign-in with it and another field.
    pub fn request_with(&self, field: &str, value: impl Into<Value>) -> Request {
        let mut body = json!({ "id_token": self.sign() });
        set(&mut body, field, value.into());
        google(&body)
    }
}

/// A sign-in with this body.
pub fn google(body: &Value) -> Request {
    Request::post("/api/{v}/auth/google/", body)
}

fn set(object: &mut Value, key: &str, value: Value) {
    object.as_object_mut().expect("an object").insert(key.to_owned(), value);
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a test has no clock to ask")]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is right");
    i64::try_from(since.as_secs()).expect("a time of this era")
}

/// What is answered to who asks for the keys.
#[derive(Clone, Debug)]
pub enum Keys {
    /// The key set, to be kept for so many seconds.
    Served(Vec<Value>, u32),
    /// A body that need not be a key set.
    Body(String),
    /// No keys, and this status.
    Failure(u16),
    /// Another place, where good keys are.
    Redirection,
    /// Nothing at all.
    Silence,
}

/// A server of keys.
pub struct Google {
    address: SocketAddr,
    keys: Arc<Mutex<Keys>>,
    fetches: Arc<AtomicUsize>,
    followed: Arc<AtomicUsize>,
}

impl Google {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let google = Self {
            address,
            keys: Arc::new(Mutex::new(Keys::Served(Vec::new(), 0))),
            fetches: Arc::default(),
            followed: Arc::default(),
        };
        google.serve(Keys::Served(vec![GoogleKey::present().jwk()], 3600));
        let (keys, fetches, followed) =
            (Arc::clone(&google.keys), Arc::clone(&google.fetches), Arc::clone(&google.followed));
        std::thread::spawn(move || {
            // Connections that got no answer stay open.
            let mut open = Vec::new();
            for mut connection in listener.incoming().flatten() {
                let head = read_head(&mut connection);
                let is_elsewhere = head.split(' ').nth(1) == Some(ELSEWHERE);
                let keys = if is_elsewhere {
                    followed.fetch_add(1, Ordering::SeqCst);
                    Keys::Served(vec![GoogleKey::present().jwk()], 3600)
                } else {
                    fetches.fetch_add(1, Ordering::SeqCst);
                    keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
                };
                match answer(&keys) {
                    Some(answer) => drop(connection.write_all(answer.as_bytes())),
                    None => open.push(connection),
                }
            }
        });
        google
    }

    /// The one that gateways ask when nothing else is said.
    pub fn shared() -> &'static Self {
        &SHARED
    }

    pub fn jwks_url(&self) -> String {
        format!("http://{}{CERTS}", self.address)
    }

    /// From now on.
    pub fn serve(&self, keys: Keys) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// How often somebody has asked for the keys.
    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    /// How often a redirection was followed.
    pub fn followed(&self) -> usize {
        self.followed.load(Ordering::SeqCst)
    }
}

fn read_head(connection: &mut TcpStream) -> String {
    let _ = connection.set_read_timeout(Some(Duration::from_secs(5)));
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte).is_ok_and(|count| count == 1) {
        head.extend(byte);
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn answer(keys: &Keys) -> Option<String> {
    let (status, header, body) = match keys {
        Keys::Served(keys, seconds) => {
            let header = format!("Cache-Control: public, max-age={seconds}, must-revalidate, no-transform\r\n");
            (200, header, json!({ "keys": keys }).to_string())
        }
        Keys::Body(body) => (200, String::new(), body.clone()),
        Keys::Failure(status) => (*status, String::new(), String::new()),
        Keys::Redirection => (302, format!("Location: {ELSEWHERE}\r\n"), String::new()),
        Keys::Silence => return None,
    };
    let length = body.len();
    Some(format!(
        "HTTP/1.1 {status} Whatever\r\nContent-Type: application/json; charset=UTF-8\r\n{header}\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    ))
}
