//! Sign-in with a Google account (contract §2).
//!
//! An account is found by issuer and subject, never by its address alone (ASVS 6.8.1). The address matters once, when
//! a Google account is shown for the first time:
//!
//! ```text
//! account with that address   what happens
//! none                        an account is made, verified
//! unverified                  it becomes the Google account's owner's; the password that somebody
//!                             chose for it without proof is removed (pre-hijacking, ABUSE 21)
//! verified                    linked where Google itself runs the address, or `google.linking` is
//!                             "verified"; else 409. Never when another Google account is linked.
//! soft-deleted, disabled      403
//! ```
//! Whoever has a second factor is linked in the unit of work that has spent it (`verify_mfa`), not before.

use std::time::Duration;

use garde::Validate;
use serde::Deserialize;

use super::{
    audit,
    error::Unavailable,
    events::Event,
    fields::{Exact, FieldErrors, Text, at_most, field_error, nullable, present, required_exact},
    google_token::{self, GoogleAccount},
    letters::Letter,
    lockout::{self, Subject},
    model::{AuthProvider, Caller, Confirmation, Role, User, UserId},
    outbox,
    policy::{GooglePolicy, Linking},
    ports::{Audit as _, Ephemeral as _, Inserted, Outbox as _, Ports, Users as _},
    problem::Problem,
    register::{public_id, stored_identifiers},
    second_factor::{Entered, enter as enter_or_ask},
    session::{self, OpenError, Opened},
};

/// `POST /auth/google/`
#[derive(Debug, Deserialize, Validate)]
pub struct Google {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_exact))]
    id_token: Option<Exact>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    role: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(at_most::<256>))]
    nonce: Option<Text>,
}

/// Why nobody was signed in.
#[derive(Debug, thiserror::Error)]
pub enum GoogleError {
    /// Fields are missing or wrong.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// No token of Google's for this gateway, out of date, used before, or of another nonce.
    #[error("the ID token is not valid")]
    NotValid,
    /// The address belongs to an account that this Google account is not linked with.
    #[error("the address belongs to another account")]
    Conflict,
    /// Too many failed sign-ins for an identifier of the account.
    #[error("the identifier is locked")]
    Locked(Duration),
    /// An operator has disabled the account, or it was deleted.
    #[error("the account is disabled")]
    Disabled,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<GoogleError> for Problem {
    fn from(error: GoogleError) -> Self {
        match error {
            GoogleError::Invalid(errors) => Self::invalid(errors),
            GoogleError::NotValid => Self::new(401, "invalid_google_token", "The Google sign-in is not valid."),
            GoogleError::Conflict => Self::new(
                409,
                "conflict",
                "An account with this email address exists. Please sign in as you did before.",
            ),
            GoogleError::Locked(wait) => {
                Self::new(429, "account_locked", "Too many failed attempts. Please try again later.").after(wait)
            }
            GoogleError::Disabled => Self::new(403, "account_disabled", "This account is disabled."),
            GoogleError::Unavailable(error) => error.into(),
        }
    }
}

/// Somebody who has shown who they are with Google.
pub struct ByGoogle {
    /// Signed in, or asked for their second factor.
    pub entered: Entered,
    /// Whether the account was made, or made theirs, by that.
    pub is_new: bool,
}

/// Verifies the ID token, finds, links or makes the account, and opens a session.
///
/// # Errors
/// [`GoogleError`].
pub async fn google<P: Ports>(ports: &P, caller: &Caller, request: Google) -> Result<ByGoogle, GoogleError> {
    let given = |text: Option<Text>| text.map(|text| text.0).filter(|text| !text.is_empty());
    let role = match given(request.role).as_deref() {
        None | Some("client") => Role::Client,
        Some("vendor") => Role::Vendor,
        Some(_) => return Err(GoogleError::Invalid(field_error("role", "Choose `client` or `vendor`."))),
    };
    let token = request.id_token.map(|token| token.0).unwrap_or_default();
    let nonce = given(request.nonce);
    let account = match verified(ports, &token, nonce.as_deref()).await {
        Ok(account) => account,
        Err(GoogleError::NotValid) => return refuse(ports, caller, None, "invalid_google_token").await,
        Err(error) => return Err(error),
    };

    // A token is good once: whoever reads it on its way or in a log later cannot use it (ABUSE 4).
    let (spent, life) = spent_key(ports, &token, &account);
    if ports.ephemeral().put_if_absent(&spent, b"1", life).await?.is_some() {
        return refuse(ports, caller, None, "replayed").await;
    }
    let done = enter(ports, caller, &account, role).await;
    if done.is_err() {
        // Nobody was signed in; should this fail too, Google gives another token.
        let _ = ports.ephemeral().remove(&spent).await;
    }
    done
}

async fn verified<P: Ports>(ports: &P, token: &str, nonce: Option<&str>) -> Result<GoogleAccount, GoogleError> {
    let policy: &GooglePolicy = &ports.policy().google;
    if policy.client_ids.is_empty() {
        return Err(GoogleError::NotValid);
    }
    let id = google_token::key_id(token).or(Err(GoogleError::NotValid))?;
    let key = ports.google_key(&id).await?.ok_or(GoogleError::NotValid)?;
    let account = google_token::open(token, &key, policy, ports.now().unix_timestamp());
    let account = account.or(Err(GoogleError::NotValid))?;
    // The nonce binds the token to the browser that asked for it (OpenID Connect Core 1.0, 15.5.2; ABUSE 25):
    // a client that leaves it out must not get in with a token that has one.
    let is_bound = account.nonce.as_deref() == nonce && (nonce.is_some() || !policy.require_nonce);
    if is_bound { Ok(account) } else { Err(GoogleError::NotValid) }
}

fn spent_key<P: Ports>(ports: &P, token: &str, account: &GoogleAccount) -> (String, Duration) {
    let digest = ports.keys().digest("google_token", &[google_token::signed_part(token).as_bytes()]);
    let left = u64::try_from(account.expires.saturating_sub(ports.now().unix_timestamp())).unwrap_or_default();
    // Clocks of instances differ.
    (format!("google:{}", data_encoding::HEXLOWER.encode(&digest)), Duration::from_secs(left + 60))
}

// What is to be written.
enum Found {
    // A linked account.
    Linked(User),
    // To be linked with an account that was there.
    Link(User),
    // To be made the owner's of the address.
    Claim(User),
    // To be made.
    Make,
}

enum Undone {
    Taken,
    Changed,
    Unavailable(Unavailable),
}

impl From<Unavailable> for Undone {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

impl From<OpenError> for Undone {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Changed => Self::Changed,
            OpenError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

async fn enter<P: Ports>(
    ports: &P,
    caller: &Caller,
    account: &GoogleAccount,
    role: Role,
) -> Result<ByGoogle, GoogleError> {
    let index = account.index(ports.keys());
    // Whoever loses a race against a sign-in beside this one finds what that one wrote on the next turn.
    let mut lost = "conflict";
    for is_last in [false, false, true] {
        let found = match find(ports, account, &index).await? {
            Ok(found) => found,
            Err(user) if is_last => return refuse(ports, caller, Some(&user), "conflict").await,
            Err(_) => continue,
        };
        if let Found::Linked(user) | Found::Link(user) | Found::Claim(user) = &found {
            if let Some(wait) = lockout::any_locked_for(ports, caller, user).await? {
                return refused(ports, caller, Some(user), "locked", GoogleError::Locked(wait)).await;
            }
            if !user.is_active {
                return refused(ports, caller, Some(user), "disabled", GoogleError::Disabled).await;
            }
        } else if let Some(wait) = lockout::locked_for(ports, &Subject::new(ports, &account.email, None)).await? {
            return refused(ports, caller, None, "locked", GoogleError::Locked(wait)).await;
        }
        let is_new = matches!(found, Found::Claim(_) | Found::Make);
        lost = if matches!(found, Found::Make) { "disabled" } else { "conflict" };
        match write(ports, caller, account, &index, role, found).await {
            Ok(opened) => {
                // Without an identifier: the address is Google's word, and need not be one of the account's.
                return Ok(ByGoogle { entered: enter_or_ask(ports, opened, None).await?, is_new });
            }
            Err(Undone::Taken | Undone::Changed) => (),
            Err(Undone::Unavailable(error)) => return Err(error.into()),
        }
    }
    // Taken every time by what no look-up shows: a deleted account.
    let error = if lost == "disabled" { GoogleError::Disabled } else { GoogleError::Conflict };
    refused(ports, caller, None, lost, error).await
}

// `Err` is the account that stands in the way.
async fn find<P: Ports>(
    ports: &P,
    account: &GoogleAccount,
    index: &[u8; 32],
) -> Result<Result<Found, User>, Unavailable> {
    let mut store = ports.store().await?;
    if let Some(user) = store.user_by_identity(index).await? {
        return Ok(Ok(Found::Linked(user)));
    }
    let Some(user) = store.user_by_identifier(&account.email).await? else { return Ok(Ok(Found::Make)) };
    if !user.is_verified {
        return Ok(Ok(Found::Claim(user)));
    }
    let may_link = account.is_authoritative || ports.policy().google.linking == Linking::Verified;
    let is_free = may_link && !store.has_identity(user.id, AuthProvider::Google).await?;
    Ok(if is_free { Ok(Found::Link(user)) } else { Err(user) })
}

async fn write<P: Ports>(
    ports: &P,
    caller: &Caller,
    account: &GoogleAccount,
    index: &[u8; 32],
    role: Role,
    found: Found,
) -> Result<Opened, Undone> {
    let now = ports.now();
    let insert = async |store: &mut P::Store, user: UserId| match store
        .insert_identity(index, user, AuthProvider::Google, now)
        .await?
    {
        Inserted::Yes => Ok(()),
        Inserted::Taken => Err(Undone::Taken),
    };
    let is_link = matches!(found, Found::Link(_));
    ports
        .transaction(async |store| {
            let user = match found {
                Found::Linked(user) | Found::Link(user) => user,
                Found::Claim(user) => {
                    let with = Confirmation {
                        password_hash: None,
                        role,
                        auth_provider: AuthProvider::Google,
                        first_name: account.first_name.clone(),
                        last_name: account.last_name.clone(),
                    };
                    if !store.confirm_user(user.id, &with, now).await? {
                        return Err(Undone::Changed);
                    }
                    insert(store, user.id).await?;
                    store.enqueue(&outbox::event(ports, &Event::UserVerified { user_id: user.id })).await?;
                    with.apply(user)
                }
                Found::Make => {
                    let user = User {
                        email: Some(account.email.as_str().to_owned()),
                        role,
                        auth_provider: AuthProvider::Google,
                        is_verified: true,
                        ..account.introduce(User::new(UserId(ports.new_id()), public_id(ports), now))
                    };
                    if store.insert_user(&user).await? == Inserted::Taken {
                        return Err(Undone::Taken);
                    }
                    insert(store, user.id).await?;
                    store.enqueue(&outbox::event(ports, &Event::UserRegistered { user_id: user.id })).await?;
                    store.enqueue(&outbox::event(ports, &Event::UserVerified { user_id: user.id })).await?;
                    user
                }
            };
            let mut opened = session::open(ports, store, user, None, "google", caller).await?;
            match &mut opened {
                Opened::Session(signed_in) if is_link => {
                    // After the user's row, which every unit of work takes first.
                    if link(ports, store, caller, &signed_in.user, index).await? == Inserted::Taken {
                        return Err(Undone::Taken);
                    }
                }
                Opened::SecondFactor(half) if is_link => half.to_link = Some(*index),
                Opened::Session(_) | Opened::SecondFactor(_) => (),
            }
            Ok(opened)
        })
        .await
}

/// Links a Google account with an account that was there, and tells its owner.
///
/// # Errors
/// The database is away.
pub async fn link<P: Ports>(
    ports: &P,
    store: &mut P::Store,
    caller: &Caller,
    user: &User,
    index: &[u8; 32],
) -> Result<Inserted, Unavailable> {
    let now = ports.now();
    if store.insert_identity(index, user.id, AuthProvider::Google, now).await? == Inserted::Taken {
        return Ok(Inserted::Taken);
    }
    store.record(&audit::event(ports, "google_link", caller).of_user(user.id)).await?;
    store.enqueue(&outbox::event(ports, &Event::IdentityLinked { user_id: user.id })).await?;
    let client = caller.client();
    let letter = Letter::GoogleLinked { when: now, browser: client.browser, os: client.os };
    for to in stored_identifiers(user) {
        store.enqueue(&outbox::letter(ports, &to, letter.clone(), None)).await?;
    }
    Ok(Inserted::Yes)
}

async fn refuse<P: Ports>(
    ports: &P,
    caller: &Caller,
    user: Option<&User>,
    reason: &'static str,
) -> Result<ByGoogle, GoogleError> {
    let error = if reason == "conflict" { GoogleError::Conflict } else { GoogleError::NotValid };
    refused(ports, caller, user, reason, error).await
}

async fn refused<P: Ports>(
    ports: &P,
    caller: &Caller,
    user: Option<&User>,
    reason: &'static str,
    error: GoogleError,
) -> Result<ByGoogle, GoogleError> {
    let event = audit::event(ports, "google", caller).refused(reason);
    let event = user.map(|user| event.clone().of_user(user.id)).unwrap_or(event);
    ports.store_to_write().await?.record(&event).await?;
    Err(error)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, LazyLock};

    use data_encoding::BASE64URL_NOPAD;
    use jsonwebtoken::DecodingKey;
    use rsa::{
        Pkcs1v15Sign, RsaPrivateKey,
        rand_core::OsRng,
        sha2::{Digest as _, Sha256},
        traits::PublicKeyParts as _,
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::services::{
        identifier::Identifier,
        memory::{self, ADDRESS, Guarded, World, caller, request},
        new_password::{self, Occasion},
        policy::Policy,
        run::run,
        session::SignedIn,
        verify_mfa::{VerifyMfaError, verify_mfa},
    };

    const CLIENT: &str = "client-1.apps.googleusercontent.com";

    static KEY: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::new(&mut OsRng, 2048).unwrap());

    fn world(linking: Linking) -> World {
        let google = GooglePolicy { client_ids: vec![CLIENT.into()], linking, require_nonce: false };
        let world = World::with(Policy { google, ..memory::policy() });
        let encode = |number: &rsa::BigUint| BASE64URL_NOPAD.encode(&number.to_bytes_be());
        let key = DecodingKey::from_rsa_components(&encode(KEY.n()), &encode(KEY.e())).unwrap();
        world.answer_google(Some(&[("k1", Arc::new(key))]));
        world
    }

    // A token of the person `sub` with this address; `more` takes the place of its claims.
    fn token(world: &World, sub: &str, email: &str, more: &Value) -> String {
        let now = world.now().unix_timestamp();
        let mut claims = json!({
            "iss": "https://accounts.google.com", "aud": CLIENT, "sub": sub, "iat": now, "exp": now + 3600,
            "email": email, "email_verified": true, "given_name": "Ada", "family_name": "Obi",
            "jti": data_encoding::HEXLOWER.encode(&world.random::<8>()),
        });
        for (name, value) in more.as_object().cloned().unwrap_or_default() {
            claims[name] = value;
        }
        let part = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let text = format!("{}.{}", part(json!({ "alg": "RS256", "kid": "k1", "typ": "JWT" })), part(claims));
        let signature = KEY.sign(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(&text)).unwrap();
        format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    struct Known {
        user: User,
        is_new: bool,
    }

    fn show(world: &World, token: &str) -> Result<Known, GoogleError> {
        let ByGoogle { entered, is_new } = run(google(world, &caller(), request(json!({ "id_token": token }))))?;
        Ok(Known { user: entered.signed_in().user, is_new })
    }

    fn enter(world: &World, sub: &str, email: &str) -> Result<Known, GoogleError> {
        show(world, &token(world, sub, email, &json!({})))
    }

    #[test]
    fn a_person_is_known_by_their_subject_whatever_their_address_is() {
        let world = world(Linking::Authoritative);
        let first = enter(&world, "1", "ada@gmail.com").unwrap();
        assert!(first.is_new && first.user.is_verified);
        assert_eq!(first.user.auth_provider, AuthProvider::Google);
        let again = enter(&world, "1", "other@gmail.com").unwrap();
        assert!(!again.is_new);
        assert_eq!(again.user.id, first.user.id);
        assert_eq!(again.user.email.as_deref(), Some("ada@gmail.com"));
        let other = enter(&world, "2", "ada@gmail.com");
        assert!(matches!(other, Err(GoogleError::Conflict)));
        assert_eq!((world.users().len(), world.sessions().len()), (1, 2));
        assert_eq!(world.audited().last(), Some(&("google", "conflict")));
    }

    #[test]
    fn an_account_with_the_address_is_linked_where_google_runs_the_address() {
        let hosted = json!({ "hd": "Example.org" });
        for (linking, more, is_linked) in [
            (Linking::Authoritative, json!({}), false),
            (Linking::Authoritative, json!({ "hd": "example.com" }), false),
            (Linking::Authoritative, hosted, true),
            (Linking::Verified, json!({}), true),
        ] {
            let world = world(linking);
            let ada = world.add_ada();
            let session = world.sign_in(ada.id).tokens;
            let entered = show(&world, &token(&world, "1", ADDRESS, &more));
            assert_eq!(entered.is_ok(), is_linked);
            assert!(world.is_alive(&session));
            assert_eq!(world.users()[0].password_hash, ada.password_hash);
            let told = world.letter_kinds().iter().filter(|kind| **kind == "google_linked").count();
            assert_eq!(told, if is_linked { 2 } else { 0 }, "to the address and to the number");
        }
    }

    #[test]
    fn whoever_takes_the_account_back_ends_other_peoples_google_accounts() {
        let world = world(Linking::Verified);
        let ada = world.add_ada();
        enter(&world, "1", ADDRESS).unwrap();
        run(new_password::set(&world, &caller(), &world.users()[0], "$argon2id$new", Occasion::Reset)).unwrap();
        let again = enter(&world, "1", ADDRESS).unwrap();
        assert_eq!(again.user.id, ada.id);
        let told = world.letter_kinds().iter().filter(|kind| **kind == "google_linked").count();
        assert_eq!(told, 4, "it was linked anew");
    }

    #[test]
    fn a_token_is_good_once_and_not_lost_by_a_fault() {
        let world = world(Linking::Authoritative);
        let token = token(&world, "1", "ada@gmail.com", &json!({}));
        world.fail_commits(true);
        assert!(matches!(show(&world, &token), Err(GoogleError::Unavailable(_))));
        assert!(world.users().is_empty());
        world.fail_commits(false);
        assert!(show(&world, &token).is_ok());
        assert!(matches!(show(&world, &token), Err(GoogleError::NotValid)));
        assert_eq!(world.audited().last(), Some(&("google", "replayed")));
        assert_eq!(world.sessions().len(), 1);
    }

    #[test]
    fn without_googles_keys_nobody_is_refused_for_good() {
        let world = world(Linking::Authoritative);
        let token = token(&world, "1", "ada@gmail.com", &json!({}));
        world.answer_google(None);
        assert!(matches!(show(&world, &token), Err(GoogleError::Unavailable(_))));
        world.answer_google(Some(&[]));
        assert!(matches!(show(&world, &token), Err(GoogleError::NotValid)));
    }

    #[test]
    fn without_client_ids_nobody_is_asked() {
        let world = World::new();
        let token = token(&world, "1", "ada@gmail.com", &json!({}));
        assert!(matches!(show(&world, &token), Err(GoogleError::NotValid)));
        assert!(!world.calls().contains(&"google_key"));
    }

    #[test]
    fn a_deleted_account_stays_closed() {
        let world = world(Linking::Authoritative);
        enter(&world, "1", "ada@gmail.com").unwrap();
        world.hide_user();
        // By subject, by address, and by subject with another address.
        for (sub, email) in [("1", "ada@gmail.com"), ("2", "ada@gmail.com"), ("1", "new@gmail.com")] {
            assert!(matches!(enter(&world, sub, email), Err(GoogleError::Disabled)), "{sub} {email}");
        }
        assert_eq!(world.users().len(), 1);
    }

    #[test]
    fn a_disabled_account_stays_closed() {
        let world = world(Linking::Verified);
        world.add_ada();
        world.change_user(|user| user.is_active = false);
        assert!(matches!(enter(&world, "1", ADDRESS), Err(GoogleError::Disabled)));
        assert_eq!(world.audited().last(), Some(&("google", "disabled")));
        world.change_user(|user| user.is_active = true);
        assert!(enter(&world, "1", ADDRESS).is_ok());
        world.change_user(|user| user.is_active = false);
        assert!(matches!(enter(&world, "1", ADDRESS), Err(GoogleError::Disabled)));
    }

    #[test]
    fn the_lock_of_any_identifier_is_obeyed() {
        let world = world(Linking::Verified);
        world.add_ada();
        for identifier in stored_identifiers(&world.users()[0]) {
            let subject = Subject::new(&world, &identifier, None);
            for _ in 0..5 {
                run(lockout::count_failure(&world, &subject)).unwrap();
            }
            assert!(matches!(enter(&world, "1", ADDRESS), Err(GoogleError::Locked(_))));
            run(lockout::lift(&world, &identifier)).unwrap();
        }
        assert!(enter(&world, "1", ADDRESS).is_ok());
    }

    // Ada with a second factor and without a Google account.
    fn guarded() -> (World, Guarded) {
        let world = world(Linking::Verified);
        let ada = world.add_ada();
        let guarded = world.guard(ada.id);
        (world, guarded)
    }

    fn begin(world: &World, sub: &str, email: &str) -> String {
        let shown = request(json!({ "id_token": token(world, sub, email, &json!({})) }));
        let ByGoogle { entered, is_new } =
            run(google(world, &caller(), shown)).unwrap_or_else(|error| panic!("{error}"));
        assert!(!is_new);
        entered.challenge().token
    }

    fn second_step(world: &World, token: &str, code: &str) -> Result<SignedIn, VerifyMfaError> {
        let wanted = json!({ "mfa_token": token, "method": "recovery_code", "code": code });
        run(verify_mfa(world, &caller(), request(wanted)))
    }

    fn is_linked(world: &World) -> bool {
        run(world.clone().has_identity(world.users()[0].id, AuthProvider::Google)).unwrap()
    }

    fn told(world: &World) -> usize {
        world.letter_kinds().iter().filter(|kind| **kind == "google_linked").count()
    }

    #[test]
    fn whoever_has_a_second_factor_is_asked_for_it_and_linked_with_it() {
        let (world, ada) = guarded();
        let sessions = world.sessions().len();
        let token = begin(&world, "1", ADDRESS);
        assert_eq!(world.audited().last(), Some(&("google", "second_factor_required")));
        assert!(world.sessions().len() == sessions && !is_linked(&world) && told(&world) == 0);
        let signed_in = second_step(&world, &token, &ada.recovery_codes[0]).unwrap();
        assert!(world.is_alive(&signed_in.tokens) && is_linked(&world));
        assert_eq!(told(&world), 2, "at the address and at the number");
        assert!(world.audited().contains(&("google_link", "")));
        // Linked now, whatever the address is called at Google.
        let token = begin(&world, "1", "renamed@example.org");
        let signed_in = second_step(&world, &token, &ada.recovery_codes[1]).unwrap();
        assert_eq!((signed_in.user.id, told(&world)), (ada.bearer.user.id, 2));
    }

    #[test]
    fn nobody_is_linked_without_the_second_step() {
        let (world, ada) = guarded();
        let token = begin(&world, "1", ADDRESS);
        assert!(matches!(second_step(&world, &token, "aaaa-aaaa"), Err(VerifyMfaError::WrongCode)));
        world.fail_commits(true);
        let failed = second_step(&world, &token, &ada.recovery_codes[0]);
        assert!(matches!(failed, Err(VerifyMfaError::Unavailable(_))));
        world.fail_commits(false);
        assert!(!is_linked(&world));
        // Nor once the owner has taken the account back.
        run(new_password::set(&world, &caller(), &world.users()[0], "$argon2id$new", Occasion::Reset)).unwrap();
        let late = second_step(&world, &token, &ada.recovery_codes[0]);
        assert!(matches!(late, Err(VerifyMfaError::TokenNotValid)));
        assert!(!is_linked(&world) && told(&world) == 0);
    }

    #[test]
    fn of_sign_ins_side_by_side_that_would_link_the_first_one_does() {
        let (world, ada) = guarded();
        let [first, same, other] = [("1", ADDRESS); 3].map(|(sub, email)| begin(&world, sub, email));
        let another = begin(&world, "2", ADDRESS);
        for (token, code) in [first, same, other].iter().zip(&ada.recovery_codes) {
            second_step(&world, token, code).unwrap();
        }
        assert_eq!(told(&world), 2);
        let late = second_step(&world, &another, &ada.recovery_codes[3]);
        assert!(matches!(late, Err(VerifyMfaError::TokenNotValid)));
        let unspent = begin(&world, "1", ADDRESS);
        second_step(&world, &unspent, &ada.recovery_codes[3]).unwrap();
        assert!(matches!(enter(&world, "2", ADDRESS), Err(GoogleError::Conflict)));
    }

    #[test]
    fn the_second_step_obeys_the_lock_of_any_identifier() {
        let (world, ada) = guarded();
        second_step(&world, &begin(&world, "1", ADDRESS), &ada.recovery_codes[0]).unwrap();
        // Google's word for the address is none of the account's.
        let token = begin(&world, "1", "renamed@example.org");
        for identifier in stored_identifiers(&world.users()[0]) {
            let subject = Subject::new(&world, &identifier, None);
            for _ in 0..5 {
                run(lockout::count_failure(&world, &subject)).unwrap();
            }
            let locked = second_step(&world, &token, &ada.recovery_codes[1]);
            assert!(matches!(locked, Err(VerifyMfaError::Locked(_))));
            run(lockout::lift(&world, &identifier)).unwrap();
        }
        let subject = Subject::new(&world, &Identifier::email("renamed@example.org").unwrap(), None);
        for _ in 0..5 {
            run(lockout::count_failure(&world, &subject)).unwrap();
        }
        second_step(&world, &token, &ada.recovery_codes[1]).unwrap();
    }

    #[test]
    fn a_user_who_changes_meanwhile_is_looked_at_once_more() {
        let world = world(Linking::Verified);
        world.add_ada();
        enter(&world, "1", ADDRESS).unwrap();
        world.on_next_commit(|user| user.is_active = false);
        assert!(matches!(enter(&world, "1", ADDRESS), Err(GoogleError::Disabled)));
        assert_eq!(world.sessions().len(), 1);
    }
}
