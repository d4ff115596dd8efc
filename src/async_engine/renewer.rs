//! Reads anew what is remembered of the sessions in use, before its time is over: no request waits for that.

use std::time::Instant;

use tokio::time::sleep;

use super::ports::AsyncPorts;
use crate::services::{
    error::Unavailable,
    ports::{MOST_TOGETHER, Ports as _, Sessions as _},
    session_cache::{GATHERED_FOR, Known},
};

/// Gathers what is due, then reads it. Where that fails, whoever asks when the time of what is remembered is over finds
/// out.
#[expect(clippy::disallowed_methods, reason = "no request waits: each has its answer from what is remembered")]
pub async fn renew(ports: AsyncPorts) {
    sleep(GATHERED_FOR).await;
    if let Err(error) = read(&ports).await {
        tracing::debug!(error = %error, "sessions not read anew");
    }
}

async fn read(ports: &AsyncPorts) -> Result<(), Unavailable> {
    for keys in ports.sessions.take_due().chunks(MOST_TOGETHER) {
        let (read_at, ids) = (Instant::now(), keys.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        // Others may wait for the connection: it is given back before what it told is kept.
        let found = ports.store().await?.sessions_with_users(&ids).await?;
        for (key, found) in keys.iter().zip(found) {
            if let Ok(Some((session, user))) = found {
                ports.sessions.keep(*key, Known::new(session, user, read_at));
            }
        }
    }
    Ok(())
}
