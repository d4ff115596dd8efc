//! Asks Google for the keys of its ID tokens, from the v1 engine.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Instant,
};

use jsonwebtoken::DecodingKey;
use ureq::Agent;
use url::Url;

use super::web::agent;
use crate::{
    services::{
        error::Unavailable,
        google_keys::{ANSWER_LIMIT, Answer, KeyRing, Look},
    },
    settings::Settings,
};

/// Google's keys, as far as this engine knows them.
pub struct GoogleKeys {
    agent: Agent,
    url: Url,
    ring: RwLock<KeyRing>,
    asking: Mutex<()>,
}

impl GoogleKeys {
    /// As configured.
    pub fn of(settings: &Settings) -> Self {
        let google = &settings.google;
        let agent = agent(google.timeout);
        Self { agent, url: google.jwks_url.clone(), ring: RwLock::default(), asking: Mutex::default() }
    }

    /// The key of this id, if Google has one. One request asks; others that cannot do without wait for it.
    ///
    /// # Errors
    /// Google does not answer, and no key is known that would do.
    pub fn key(&self, id: &str) -> Result<Option<Arc<DecodingKey>>, Unavailable> {
        if let Look::Known(key) = self.look(id) {
            return Ok(Some(key));
        }
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(self.look(id), Look::Ask) {
            self.change(|ring| ring.begin(id, Instant::now()));
            let answer = self.ask();
            if let Err(error) = self.change(|ring| ring.note(answer, Instant::now())) {
                tracing::warn!(error = %error, "no keys for ID tokens");
            }
        }
        self.look(id).settled()
    }

    fn look(&self, id: &str) -> Look {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).look(id, Instant::now())
    }

    fn change<T>(&self, change: impl FnOnce(&mut KeyRing) -> T) -> T {
        change(&mut self.ring.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn ask(&self) -> Result<Answer, Unavailable> {
        let mut answer = self.agent.get(self.url.as_str()).call().map_err(Unavailable::google)?;
        let cache_control = answer.headers().get("cache-control").and_then(|value| value.to_str().ok());
        let cache_control = cache_control.map(str::to_owned);
        // The client refuses a body that reaches its limit.
        let body = match answer.body_mut().with_config().limit(ANSWER_LIMIT + 1).read_to_vec() {
            Ok(body) => Some(body),
            Err(ureq::Error::BodyExceedsLimit(_)) => None,
            Err(error) => return Err(Unavailable::google(error)),
        };
        Ok(Answer { status: answer.status().as_u16(), cache_control, body })
    }
}
