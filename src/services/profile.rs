//! The signed-in user's own profile: what it shows, and what may be changed (contract §2).

use garde::Validate;
use serde::Deserialize;

use super::{
    audit,
    authenticate::Bearer,
    error::Unavailable,
    events::Event,
    fields::{Text, at_most, present},
    model::{Caller, ProfileChanges, User},
    outbox,
    ports::{Audit as _, Outbox as _, Ports, Users as _},
    problem::Problem,
};

/// `PATCH /auth/me/`; whatever else a body holds is ignored.
#[derive(Debug, Deserialize, Validate)]
pub struct UpdateProfile {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(at_most::<150>))]
    first_name: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(at_most::<150>))]
    last_name: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(at_most::<2000>))]
    bio: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(at_most::<500>), custom(web_address))]
    avatar: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(at_most::<100>))]
    country: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(at_most::<100>))]
    state: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(at_most::<100>))]
    city: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(at_most::<500>))]
    address: Option<Text>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The user is gone since the token was checked.
    #[error("the user is gone")]
    Gone,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<ProfileError> for Problem {
    fn from(error: ProfileError) -> Self {
        match error {
            ProfileError::Gone => Self::token_not_valid(),
            ProfileError::Unavailable(error) => error.into(),
        }
    }
}

/// Changes the fields that are given and returns the user as it is then.
///
/// # Errors
/// [`ProfileError`].
pub async fn update_profile<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    request: UpdateProfile,
) -> Result<User, ProfileError> {
    let text = |field: Option<Text>| field.map(|text| text.0);
    let changes = ProfileChanges {
        first_name: text(request.first_name),
        last_name: text(request.last_name),
        bio: text(request.bio),
        avatar: text(request.avatar),
        country: text(request.country),
        state: text(request.state),
        city: text(request.city),
        address: text(request.address),
    };
    if changes == ProfileChanges::default() {
        return Ok(User::clone(&bearer.user));
    }
    let user_id = bearer.user.id;
    ports
        .transaction(async |store| {
            let user = store.update_profile(user_id, &changes, ports.now()).await?.ok_or(ProfileError::Gone)?;
            let event = audit::event(ports, "profile_update", caller).of_user(user_id).in_session(bearer.session.id);
            store.record(&event).await?;
            store.enqueue(&outbox::event(ports, &Event::ProfileChanged { user_id })).await?;
            Ok(user)
        })
        .await
}

// A picture's address ends up in pages: `javascript:` and `data:` must not.
fn web_address(value: &Option<Text>, (): &()) -> garde::Result {
    match value {
        Some(text) if !text.0.is_empty() => {
            let parsed = url::Url::parse(&text.0).ok();
            let is_web = parsed.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            if is_web { Ok(()) } else { Err(garde::Error::new("Enter a valid URL.")) }
        }
        _ => Ok(()),
    }
}
