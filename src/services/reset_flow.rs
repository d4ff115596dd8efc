//! What a person who has forgotten their password proves themselves with: the token of a link for an
//! e-mail address, a code for a phone number (contract §4). Both are bound to the account as it is:
//! once its password or its address has changed they are worthless, whether they were deleted or not.

use data_encoding::BASE64URL_NOPAD;
use uuid::Uuid;

use super::{
    codes::{self, Proof, Purpose},
    error::Unavailable,
    identifier::Identifier,
    keys::same,
    letters::Letter,
    model::{OutboxEntry, User, UserId},
    outbox,
    ports::{Ephemeral as _, Ports, Put},
};

const LINK: &str = "reset_link";

/// What a reset's proofs are bound to.
pub fn binding(user: &User) -> String {
    let changed = user.password_changed_at.map(time::OffsetDateTime::unix_timestamp_nanos);
    let (email, phone) = (user.email.as_deref(), user.phone.as_deref());
    format!("{changed:?}|{email:?}|{phone:?}")
}

/// A letter with a new link, or with a new code where it goes to a phone, and what is to be stored for it; any earlier
/// one is void then.
pub fn letter<P: Ports>(ports: &P, user: &User, to: &Identifier) -> (OutboxEntry, Put) {
    let policy = &ports.policy().otp;
    let (letter, put) = match to {
        Identifier::Email(_) => {
            let (token, put) = draw_token(ports, user);
            let url = link(ports, user.id, &token);
            (Letter::PasswordReset { url, minutes: policy.link_ttl.as_secs().div_ceil(60) }, put)
        }
        Identifier::Phone(_) => {
            let (code, put) = codes::draw(ports, user.id, Purpose::PasswordReset, &binding(user));
            (Letter::PasswordResetCode { code, minutes: policy.ttl.as_secs().div_ceil(60) }, put)
        }
    };
    (outbox::letter(ports, to, letter, Some(ports.now() + put.ttl)), put)
}

fn draw_token<P: Ports>(ports: &P, user: &User) -> (String, Put) {
    let token = BASE64URL_NOPAD.encode(&ports.random::<32>());
    let digest = ports.keys().code_digest(user.id, &bound(user), &token);
    (token, Put { key: key(user.id), value: digest.to_vec(), ttl: ports.policy().otp.link_ttl })
}

// From the configuration alone: a request's headers play no part (ABUSE 15).
fn link<P: Ports>(ports: &P, user: UserId, token: &str) -> String {
    let policy = ports.policy();
    let path = policy.links.password_reset.replace("{uidb64}", &uidb64(user)).replace("{token}", token);
    format!("{}{path}", policy.public_url)
}

/// A user's id as Django writes it into links.
pub fn uidb64(user: UserId) -> String {
    BASE64URL_NOPAD.encode(user.to_string().as_bytes())
}

/// Reads what [`uidb64`] wrote.
pub fn read_uidb64(text: &str) -> Option<UserId> {
    let bytes = BASE64URL_NOPAD.decode(text.trim_end_matches('=').as_bytes()).ok()?;
    Uuid::try_parse_ascii(&bytes).ok().map(UserId)
}

/// What the token of a link proves, if it is this user's present one.
///
/// # Errors
/// The store is away.
pub async fn check_token<P: Ports>(ports: &P, user: &User, token: &str) -> Result<Option<Proof>, Unavailable> {
    let key = key(user.id);
    let digest = ports.keys().code_digest(user.id, &bound(user), token);
    let entry = ports.ephemeral().get(&key).await?.filter(|entry| same(&entry.value, &digest));
    Ok(entry.map(|entry| Proof::new(key, entry)))
}

/// Deletes every outstanding link and code of a user.
///
/// # Errors
/// The store is away.
pub async fn void<P: Ports>(ports: &P, user: UserId) -> Result<(), Unavailable> {
    ports.ephemeral().remove(&key(user)).await?;
    codes::void(ports, user, Purpose::PasswordReset).await
}

fn key(user: UserId) -> String {
    format!("reset_flow:{user}")
}

fn bound(user: &User) -> String {
    format!("{LINK}|{}", binding(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_as_django_writes_it() {
        let user = UserId(Uuid::from_u128(1));
        let written = uidb64(user);
        assert_eq!(written, "MDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAx");
        assert_eq!(read_uidb64(&written), Some(user));
        assert_eq!(read_uidb64(&format!("{written}==")), Some(user));
        for text in ["", "x", "é", "MQ", &"A".repeat(5000)] {
            assert_eq!(read_uidb64(text), None, "{text}");
        }
    }
}
