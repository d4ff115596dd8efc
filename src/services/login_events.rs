//! A user's own sign-in history (contract §2): what worked, and what somebody tried.

use super::{
    authenticate::Bearer,
    error::Unavailable,
    model::{LoginEvent, Page},
    pages::Shown,
    ports::{Audit as _, Ports},
};

/// The audit events that are a way in, or a try at one.
pub const WAYS_IN: [&str; 2] = ["login", "verify_otp"];

/// The bearer's sign-ins, newest first.
///
/// # Errors
/// The database is away.
pub async fn login_events<P: Ports>(ports: &P, bearer: &Bearer, page: Page) -> Result<Shown<LoginEvent>, Unavailable> {
    let listed = ports.store().await?.login_events(bearer.user.id, &WAYS_IN, page).await?;
    Ok(Shown::new(listed, page, |event| (event.at, event.id)))
}
