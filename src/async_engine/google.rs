//! Asks Google for the keys of its ID tokens, from the v2 engine.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use jsonwebtoken::DecodingKey;
use reqwest::Client;
use tokio::sync::Mutex;
use url::Url;

use super::web::client;
use crate::{
    mail::SetupError,
    services::{
        error::Unavailable,
        google_keys::{ANSWER_LIMIT, Answer, KeyRing, Look},
    },
    settings::Settings,
};

/// Google's keys, as far as this engine knows them.
pub struct GoogleKeys {
    client: Client,
    url: Url,
    ring: RwLock<KeyRing>,
    asking: Mutex<()>,
}

impl GoogleKeys {
    /// As configured.
    ///
    /// # Errors
    /// The client cannot be set up.
    pub fn of(settings: &Settings) -> Result<Self, SetupError> {
        let google = &settings.google;
        let client = client("google.jwks_url", google.timeout)?;
        Ok(Self { client, url: google.jwks_url.clone(), ring: RwLock::default(), asking: Mutex::default() })
    }

    /// The key of this id, if Google has one. One request asks; others that cannot do without wait for it.
    ///
    /// # Errors
    /// Google does not answer, and no key is known that would do.
    pub async fn key(&self, id: &str) -> Result<Option<Arc<DecodingKey>>, Unavailable> {
        if let Look::Known(key) = self.look(id) {
            return Ok(Some(key));
        }
        let _asking = self.asking.lock().await;
        if matches!(self.look(id), Look::Ask) {
            self.change(|ring| ring.begin(id, Instant::now()));
            let answer = self.ask().await;
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

    async fn ask(&self) -> Result<Answer, Unavailable> {
        let mut answer = self.client.get(self.url.clone()).send().await.map_err(failure)?;
        let cache_control = answer.headers().get("cache-control").and_then(|value| value.to_str().ok());
        let cache_control = cache_control.map(str::to_owned);
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failure)? {
            body.extend_from_slice(&chunk);
            if u64::try_from(body.len()).is_ok_and(|length| length > ANSWER_LIMIT) {
                return Ok(Answer { status, cache_control, body: None });
            }
        }
        Ok(Answer { status, cache_control, body: Some(body) })
    }
}

fn failure(error: reqwest::Error) -> Unavailable {
    Unavailable::google(error.without_url())
}
