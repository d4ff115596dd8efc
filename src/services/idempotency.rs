//! `X-Idempotency-Key`: a request that is sent again gets the answer of the first time, and is not done
//! again. A key is bound to route, caller and body, and is kept for 24 hours; answers that hold tokens
//! are never given to this module, and what it keeps is sealed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    error::Unavailable,
    keys::{Keys, same},
    limits::client_network,
    model::{Caller, UserId},
    ports::{Ephemeral as _, Ports},
    problem::Problem,
};

/// How long an answer is kept.
pub const KEPT: Duration = Duration::from_secs(86_400);
/// How long a request may be under way before its key is free again: longer than any, so that only one
/// that died leaves it.
const UNDER_WAY: Duration = Duration::from_secs(60);
const MOST_CHARACTERS: usize = 128;

/// A request that carries a key.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Which route, one word.
    pub route: &'a str,
    /// As sent.
    pub key: &'a str,
    /// The signed-in user, when there is one.
    pub user: Option<UserId>,
    /// The body, as sent.
    pub body: &'a [u8],
}

/// An answer that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// HTTP status.
    pub status: u16,
    /// Sentence for people.
    pub message: String,
    /// What was answered.
    pub data: Value,
}

/// What becomes of a request with a key.
#[derive(Debug)]
#[must_use]
pub enum Begun {
    /// It is new: it is to be done, and [`finish`]ed or [`release`]d.
    Fresh(Claim),
    /// It was done before.
    Replay(Kept),
}

/// The right to do a request.
#[derive(Debug)]
pub struct Claim {
    name: String,
    body: [u8; 32],
    marker: Vec<u8>,
}

/// Why a request with a key is not done.
#[derive(Debug, thiserror::Error)]
pub enum IdempotencyError {
    /// The key is no key.
    #[error("the key is malformed")]
    Malformed,
    /// The same key came with another body.
    #[error("the key was used for another request")]
    OtherBody,
    /// The first request is still under way.
    #[error("the first request is under way")]
    UnderWay,
    /// The store is away.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<IdempotencyError> for Problem {
    fn from(error: IdempotencyError) -> Self {
        match error {
            IdempotencyError::Malformed => {
                Self::invalid(super::fields::field_error("X-Idempotency-Key", "Use 1 to 128 visible ASCII characters."))
            }
            IdempotencyError::OtherBody => {
                Self::new(409, "conflict", "This idempotency key was used for another request.")
            }
            IdempotencyError::UnderWay => {
                Self::new(409, "conflict", "The first request with this idempotency key is still being processed.")
                    .after(Duration::from_secs(1))
            }
            IdempotencyError::Unavailable(error) => error.into(),
        }
    }
}

const WORKING: u8 = 0;
const DONE: u8 = 1;

/// Claims the key, or finds what became of it.
///
/// # Errors
/// [`IdempotencyError`].
pub async fn begin<P: Ports>(ports: &P, caller: &Caller, asked: Asked<'_>) -> Result<Begun, IdempotencyError> {
    let is_key = (1..=MOST_CHARACTERS).contains(&asked.key.len()) && asked.key.bytes().all(|b| b.is_ascii_graphic());
    if !is_key {
        return Err(IdempotencyError::Malformed);
    }
    let keys = ports.keys();
    // Somebody else's key leads to somebody else's place.
    let who = asked.user.map_or_else(|| client_network(caller), |user| user.to_string());
    let name = format!("idempotency:{}", hex(keys, &[asked.route, &who, asked.key].map(str::as_bytes)));
    let body = keys.digest("idempotency body", &[asked.body]);
    let marker = [&[WORKING], body.as_slice(), ports.random::<16>().as_slice()].concat();
    let store = ports.ephemeral();
    if store.put_if_absent(&name, &marker, UNDER_WAY).await?.is_none() {
        return Ok(Begun::Fresh(Claim { name, body, marker }));
    }
    // Run out between the two calls: as good as under way, and free at the next try.
    let Some(entry) = store.get(&name).await? else { return Err(IdempotencyError::UnderWay) };
    let Some((state, rest)) = entry.value.split_first() else { return Err(IdempotencyError::UnderWay) };
    let Some((first_body, rest)) = rest.split_first_chunk::<32>() else { return Err(IdempotencyError::UnderWay) };
    if !same(first_body, &body) {
        return Err(IdempotencyError::OtherBody);
    }
    if *state == WORKING {
        return Err(IdempotencyError::UnderWay);
    }
    let opened = keys.open_payload(keys.stand_in(&name).0, rest).ok();
    let kept = opened.and_then(|clear| serde_json::from_slice(&clear).ok());
    kept.map(Begun::Replay).ok_or(IdempotencyError::UnderWay)
}

/// Keeps the answer of a request that was done. A fault here only means that it is not kept.
pub async fn finish<P: Ports>(ports: &P, claim: Claim, answer: &Kept) {
    let keys = ports.keys();
    let clear = serde_json::to_vec(answer).unwrap_or_default();
    let sealed = keys.seal_payload(keys.stand_in(&claim.name).0, &clear, ports.random());
    let value = [&[DONE], claim.body.as_slice(), sealed.as_slice()].concat();
    if let Err(error) = ports.ephemeral().put(&claim.name, &value, KEPT).await {
        tracing::warn!(error = %error, "an answer was not kept for its idempotency key");
    }
}

/// Frees the key of a request that was refused or failed: nothing was done, so it may be sent again.
pub async fn release<P: Ports>(ports: &P, claim: Claim) {
    if let Err(error) = ports.ephemeral().remove_if_equal(&claim.name, &claim.marker).await {
        tracing::warn!(error = %error, "an idempotency key was not freed");
    }
}

fn hex(keys: &Keys, parts: &[&[u8]]) -> String {
    data_encoding::HEXLOWER.encode(&keys.digest("idempotency key", parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{
        memory::{World, caller},
        run::run,
    };
    use serde_json::json;
    use uuid::Uuid;

    fn asked<'a>(key: &'a str, body: &'a str) -> Asked<'a> {
        Asked { route: "register", key, user: None, body: body.as_bytes() }
    }

    fn begin_as(world: &World, asked: Asked<'_>) -> Result<Begun, IdempotencyError> {
        run(begin(world, &caller(), asked))
    }

    fn kept() -> Kept {
        Kept { status: 201, message: "Done.".into(), data: json!({ "a": 1 }) }
    }

    #[test]
    fn a_request_is_done_once_and_its_answer_replayed() {
        let world = World::new();
        let Ok(Begun::Fresh(claim)) = begin_as(&world, asked("k", "b")) else { panic!("not fresh") };
        assert!(matches!(begin_as(&world, asked("k", "b")), Err(IdempotencyError::UnderWay)));
        run(finish(&world, claim, &kept()));
        assert!(matches!(begin_as(&world, asked("k", "b")), Ok(Begun::Replay(answer)) if answer == kept()));
        assert!(matches!(begin_as(&world, asked("k", "other")), Err(IdempotencyError::OtherBody)));
        world.pass(KEPT + Duration::from_secs(1));
        assert!(matches!(begin_as(&world, asked("k", "other")), Ok(Begun::Fresh(_))));
    }

    #[test]
    fn a_key_is_bound_to_route_and_caller() {
        let world = World::new();
        let Ok(Begun::Fresh(claim)) = begin_as(&world, asked("k", "b")) else { panic!("not fresh") };
        run(finish(&world, claim, &kept()));
        let elsewhere = Caller { ip: [198, 51, 100, 1].into(), ..caller() };
        let user = |id| Some(UserId(Uuid::from_u128(id)));
        assert!(matches!(run(begin(&world, &elsewhere, asked("k", "b"))), Ok(Begun::Fresh(_))));
        assert!(matches!(begin_as(&world, Asked { route: "me", ..asked("k", "b") }), Ok(Begun::Fresh(_))));
        for id in [1, 2] {
            assert!(matches!(begin_as(&world, Asked { user: user(id), ..asked("k", "b") }), Ok(Begun::Fresh(_))));
        }
    }

    #[test]
    fn a_refused_request_frees_its_key_and_a_dead_one_in_a_minute() {
        let world = World::new();
        let Ok(Begun::Fresh(claim)) = begin_as(&world, asked("k", "b")) else { panic!("not fresh") };
        run(release(&world, claim));
        assert!(matches!(begin_as(&world, asked("k", "corrected")), Ok(Begun::Fresh(_))));
        world.pass(Duration::from_secs(61));
        assert!(matches!(begin_as(&world, asked("k", "b")), Ok(Begun::Fresh(_))));
    }

    #[test]
    fn keys_are_visible_ascii_and_short() {
        let world = World::new();
        for key in ["", "a b", "é", "a\u{7f}", &"a".repeat(129)] {
            assert!(matches!(begin_as(&world, asked(key, "b")), Err(IdempotencyError::Malformed)), "{key}");
        }
        assert!(begin_as(&world, asked(&"a".repeat(128), "b")).is_ok());
    }
}
