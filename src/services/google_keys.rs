//! The keys that Google signs ID tokens with (RFC 7517), as far as an engine knows them, and when it asks for them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;

use super::error::Unavailable;

/// How much of an answer is read, in bytes; Google's has about 1 500.
pub const ANSWER_LIMIT: u64 = 64 * 1024;

/// Keys are asked for anew for the sake of an unknown key id no more often than this: whoever makes up key ids must
/// not make us a nuisance (ABUSE 22).
const BETWEEN_UNKNOWN: Duration = Duration::from_secs(60);
/// After a failure nobody is asked for this long.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// What an answer's `Cache-Control: max-age` is kept between, and what stands in for none.
const FRESH: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(86_400));
const FRESH_UNSAID: Duration = Duration::from_secs(3600);
/// How much longer keys are used while there is no answer.
const BEYOND: Duration = Duration::from_secs(3600);

/// RSA moduli that are taken, in bytes: 2048 bits and more (RFC 7518, 3.3), up to what costs no more than a glance.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// What is known of a key id.
pub enum Look {
    /// Its key.
    Known(Arc<DecodingKey>),
    /// There is no such key.
    Unknown,
    /// To be found out: [`KeyRing::begin`], ask, [`KeyRing::note`] the answer, look again.
    Ask,
    /// Nobody answers, and nothing usable is known.
    Silent,
}

impl Look {
    /// The key, once all was asked that may be asked.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn settled(self) -> Result<Option<Arc<DecodingKey>>, Unavailable> {
        match self {
            Self::Known(key) => Ok(Some(key)),
            Self::Unknown => Ok(None),
            Self::Ask | Self::Silent => Err(Unavailable::google("there was no answer a moment ago")),
        }
    }
}

/// An answer as it came.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Field `Cache-Control`.
    pub cache_control: Option<String>,
    /// `None` when it was longer than [`ANSWER_LIMIT`].
    pub body: Option<Vec<u8>>,
}

/// Why an answer cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Unusable {
    #[error("it answered with status {0}")]
    Status(u16),
    #[error("its answer is longer than {ANSWER_LIMIT} bytes")]
    TooLong,
    #[error("its answer holds no RSA key for RS256")]
    NoKeys,
}

/// The keys, by id.
#[derive(Default)]
pub struct KeyRing {
    keys: HashMap<String, Arc<DecodingKey>>,
    // When the keys were fetched, and for how long they need not be asked for again.
    fetched: Option<(Instant, Duration)>,
    failed: Option<Instant>,
    asked_for_unknown: Option<Instant>,
    // For whose sake the keys are asked for the first time.
    first_for: Option<String>,
}

impl KeyRing {
    /// What is known of a key id at this moment.
    pub fn look(&self, id: &str, now: Instant) -> Look {
        let since = |moment: Instant| now.saturating_duration_since(moment);
        let is_quiet = self.failed.is_some_and(|at| since(at) < AFTER_FAILURE);
        let Some((fetched, fresh_for)) = self.fetched else {
            return if is_quiet { Look::Silent } else { Look::Ask };
        };
        let age = since(fetched);
        match self.keys.get(id) {
            Some(key) if age < fresh_for => Look::Known(Arc::clone(key)),
            Some(_) if !is_quiet => Look::Ask,
            // A key that was withdrawn must not be good for ever.
            Some(key) if age < fresh_for + BEYOND => Look::Known(Arc::clone(key)),
            Some(_) => Look::Silent,
            None if is_quiet => Look::Silent,
            None if age >= fresh_for => Look::Ask,
            None if self.asked_for_unknown.is_some_and(|at| since(at) < BETWEEN_UNKNOWN) => Look::Unknown,
            None => Look::Ask,
        }
    }

    /// Notes that the keys are asked for, for the sake of this id. Until the answer is noted it counts as a failure:
    /// whoever asked may have gone away meanwhile.
    pub fn begin(&mut self, id: &str, now: Instant) {
        self.failed = Some(now);
        if !self.keys.contains_key(id) {
            self.asked_for_unknown = Some(now);
            self.first_for = self.fetched.is_none().then(|| id.to_owned());
        }
    }

    /// Notes an answer, or that there was none.
    ///
    /// # Errors
    /// The answer cannot be used; what was known stays.
    pub fn note(&mut self, answer: Result<Answer, Unavailable>, now: Instant) -> Result<(), Unavailable> {
        self.failed = Some(now);
        let answer = answer?;
        if answer.status != 200 {
            return Err(Unavailable::google(Unusable::Status(answer.status)));
        }
        let body = answer.body.ok_or_else(|| Unavailable::google(Unusable::TooLong))?;
        self.keys = read(&body)?;
        if self.first_for.take().is_some_and(|id| self.keys.contains_key(&id)) {
            // It was unknown because all were.
            self.asked_for_unknown = None;
        }
        self.fetched = Some((now, fresh_for(answer.cache_control.as_deref())));
        self.failed = None;
        Ok(())
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct PublicKey {
    kid: String,
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    n: String,
    e: String,
}

// Keys of other kinds are passed over, as RFC 7517 §5 asks.
fn read(body: &[u8]) -> Result<HashMap<String, Arc<DecodingKey>>, Unavailable> {
    let set: KeySet = serde_json::from_slice(body).map_err(Unavailable::google)?;
    let usable = |key: serde_json::Value| {
        let key: PublicKey = serde_json::from_value(key).ok()?;
        let is_for_us = key.kty == "RSA"
            && key.purpose.is_none_or(|purpose| purpose == "sig")
            && key.alg.is_none_or(|algorithm| algorithm == "RS256");
        let modulus = BASE64URL_NOPAD.decode(key.n.as_bytes()).ok()?;
        let is_long = modulus.first() != Some(&0) && MODULUS_BYTES.contains(&modulus.len());
        if !is_for_us || !is_long {
            return None;
        }
        Some((key.kid, Arc::new(DecodingKey::from_rsa_components(&key.n, &key.e).ok()?)))
    };
    let keys: HashMap<_, _> = set.keys.into_iter().filter_map(usable).collect();
    if keys.is_empty() { Err(Unavailable::google(Unusable::NoKeys)) } else { Ok(keys) }
}

fn fresh_for(cache_control: Option<&str>) -> Duration {
    let seconds = |directive: &str| directive.trim().to_ascii_lowercase().strip_prefix("max-age=")?.parse().ok();
    let said = cache_control.and_then(|text| text.split(',').find_map(seconds));
    said.map_or(FRESH_UNSAID, |seconds| Duration::from_secs(seconds).clamp(FRESH.0, FRESH.1))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(id: &str) -> Value {
        let modulus = BASE64URL_NOPAD.encode(&[&[0xc1][..], &[7; 255]].concat());
        json!({ "kid": id, "kty": "RSA", "use": "sig", "alg": "RS256", "n": modulus, "e": "AQAB" })
    }

    fn answer(keys: &[Value], cache_control: Option<&str>) -> Result<Answer, Unavailable> {
        let body = json!({ "keys": keys }).to_string().into_bytes();
        Ok(Answer { status: 200, cache_control: cache_control.map(str::to_owned), body: Some(body) })
    }

    fn silence() -> Result<Answer, Unavailable> {
        Err(Unavailable::google("silent on purpose"))
    }

    fn word(look: &Look) -> &'static str {
        match look {
            Look::Known(_) => "known",
            Look::Unknown => "unknown",
            Look::Ask => "ask",
            Look::Silent => "silent",
        }
    }

    fn at(ring: &KeyRing, id: &str, now: Instant) -> &'static str {
        word(&ring.look(id, now))
    }

    #[test]
    fn keys_are_asked_for_once_and_again_when_they_are_old() {
        let (mut ring, start) = (KeyRing::default(), Instant::now());
        assert_eq!(at(&ring, "a", start), "ask");
        ring.begin("a", start);
        assert_eq!(at(&ring, "a", start), "silent", "one question at a time");
        ring.note(answer(&[key("a")], Some("public, max-age=600, must-revalidate")), start).unwrap();
        assert_eq!(at(&ring, "a", start + 599 * SECOND), "known");
        assert_eq!(at(&ring, "a", start + 600 * SECOND), "ask");
    }

    #[test]
    fn unknown_ids_make_one_question_a_minute() {
        let (mut ring, start) = (KeyRing::default(), Instant::now());
        ring.note(answer(&[key("a")], None), start).unwrap();
        assert_eq!(at(&ring, "b", start), "ask", "a new key may have come since");
        ring.begin("b", start);
        ring.note(answer(&[key("a")], None), start).unwrap();
        for id in ["b", "c", ""] {
            assert_eq!(at(&ring, id, start + 59 * SECOND), "unknown");
            assert_eq!(at(&ring, id, start + 60 * SECOND), "ask");
        }
        assert_eq!(at(&ring, "a", start), "known");
        ring.begin("b", start + 60 * SECOND);
        ring.note(answer(&[key("b")], None), start + 60 * SECOND).unwrap();
        assert_eq!(at(&ring, "b", start + 61 * SECOND), "known");
        assert_eq!(at(&ring, "a", start + 61 * SECOND), "unknown", "it was withdrawn");
    }

    #[test]
    fn an_unknown_id_makes_one_question_of_a_fresh_gateway_too() {
        let (mut ring, start) = (KeyRing::default(), Instant::now());
        ring.begin("b", start);
        ring.note(answer(&[key("a")], None), start).unwrap();
        assert_eq!((at(&ring, "b", start), at(&ring, "a", start)), ("unknown", "known"));
        assert_eq!(at(&ring, "b", start + 60 * SECOND), "ask");
        let mut ring = KeyRing::default();
        ring.begin("a", start);
        ring.note(answer(&[key("a")], None), start).unwrap();
        assert_eq!((at(&ring, "a", start), at(&ring, "b", start)), ("known", "ask"));
    }

    #[test]
    fn silence_is_outlived_for_a_while() {
        let (mut ring, start) = (KeyRing::default(), Instant::now());
        assert!(ring.note(silence(), start).is_err());
        assert_eq!(at(&ring, "a", start + 4 * SECOND), "silent");
        assert_eq!(at(&ring, "a", start + 5 * SECOND), "ask");
        ring.note(answer(&[key("a")], Some("max-age=300")), start).unwrap();
        let old = start + 300 * SECOND;
        ring.begin("a", old);
        assert!(ring.note(silence(), old).is_err());
        assert_eq!((at(&ring, "a", old), at(&ring, "b", old)), ("known", "silent"));
        let too_old = start + 300 * SECOND + BEYOND;
        ring.begin("a", too_old);
        assert_eq!(at(&ring, "a", too_old), "silent");
    }

    #[test]
    fn only_rsa_keys_that_sign_are_taken() {
        let short = BASE64URL_NOPAD.encode(&[0xc1; 128]);
        let others = [
            json!({ "kid": "x", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }),
            json!("nothing"),
            json!({ "kid": "x", "kty": "RSA", "use": "enc", "n": key("x")["n"], "e": "AQAB" }),
            json!({ "kid": "x", "kty": "RSA", "alg": "RS512", "n": key("x")["n"], "e": "AQAB" }),
            json!({ "kid": "x", "kty": "RSA", "n": short, "e": "AQAB" }),
            json!({ "kid": "x", "kty": "RSA", "n": "not base64!", "e": "AQAB" }),
            json!({ "kty": "RSA", "n": key("x")["n"], "e": "AQAB" }),
        ];
        for other in others {
            assert!(KeyRing::default().note(answer(std::slice::from_ref(&other), None), Instant::now()).is_err());
            let mut ring = KeyRing::default();
            ring.note(answer(&[other, key("a")], None), Instant::now()).unwrap();
            assert_eq!(ring.keys.keys().collect::<Vec<_>>(), ["a"]);
        }
    }

    #[test]
    fn what_is_no_answer_leaves_the_keys_as_they_are() {
        let (mut ring, now) = (KeyRing::default(), Instant::now());
        ring.note(answer(&[key("a")], None), now).unwrap();
        for (status, body) in [(500, Some("{}")), (302, None), (200, None), (200, Some("<html>")), (200, Some("{}"))] {
            let body = body.map(|text| text.as_bytes().to_vec());
            assert!(ring.note(Ok(Answer { status, cache_control: None, body }), now).is_err(), "{status}");
            assert_eq!(at(&ring, "a", now), "known");
        }
    }

    #[test]
    fn how_long_keys_stay_fresh_has_bounds() {
        for (said, seconds) in [
            (None, 3600),
            (Some("no-cache"), 3600),
            (Some("public,Max-Age=7200"), 7200),
            (Some("max-age=0"), 300),
            (Some("max-age=99999999"), 86_400),
            (Some("max-age=x"), 3600),
        ] {
            assert_eq!(fresh_for(said), Duration::from_secs(seconds), "{said:?}");
        }
    }
}
