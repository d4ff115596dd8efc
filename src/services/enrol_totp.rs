//! Sets up an authenticator as the second factor: a secret waits until its first code is shown.

use std::time::Duration;

use garde::Validate;
use serde::{Deserialize, Serialize};

use super::{
    audit,
    authenticate::Bearer,
    error::Unavailable,
    fields::{Text, at_most, bounded_password, nullable, present, required},
    letters::FactorChange,
    model::{Caller, UserId},
    passwords::Password,
    ports::{Audit as _, Entry, Ephemeral as _, Ports, SecondFactors as _},
    problem::Problem,
    recovery_codes,
    second_factor::{self, GuessError},
    step_up::{self, StepUpError, step_up},
    totp::{TotpFactor, TotpSecret},
    verify_otp::identifier_of,
};

/// `POST /auth/mfa/totp/`
#[derive(Debug, Deserialize, Validate)]
pub struct BeginTotp {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(bounded_password))]
    current_password: Option<Password>,
}

/// `POST /auth/mfa/totp/confirm/`
#[derive(Debug, Deserialize, Validate)]
pub struct ConfirmTotp {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required), custom(at_most::<64>))]
    code: Option<Text>,
}

/// What an authenticator is set up with. No `Debug`: it holds the secret.
#[derive(Serialize)]
pub struct Enrolment {
    /// Base32.
    pub secret: String,
    /// The same for a picture.
    pub otpauth_uri: String,
    /// Seconds in which its first code has to be shown.
    pub expires_in: u64,
}

/// Why no authenticator was set up.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Who asks has not shown what they have to.
    #[error(transparent)]
    StepUp(#[from] StepUpError),
    /// The user has a second factor.
    #[error("there is a second factor already")]
    Enabled,
    /// Nothing waits for its first code in this session.
    #[error("nothing waits for a code")]
    NotBegun,
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<GuessError> for EnrolError {
    fn from(error: GuessError) -> Self {
        Self::StepUp(error.into())
    }
}

impl From<EnrolError> for Problem {
    fn from(error: EnrolError) -> Self {
        match error {
            EnrolError::StepUp(error) => error.into(),
            EnrolError::Enabled => Self::new(409, "conflict", "Your account has a second factor already."),
            EnrolError::NotBegun => {
                Self::new(409, "conflict", "No authenticator waits for its first code. Please begin again.")
            }
            EnrolError::Unavailable(error) => error.into(),
        }
    }
}

/// How long a secret waits for its first code.
const ENROLMENT_TTL: Duration = Duration::from_secs(600);

const BEGIN: &str = "totp_begin";

fn key(user: UserId) -> String {
    format!("totp_enrolment:{user}")
}

/// Makes a secret, which replaces one that waits.
///
/// # Errors
/// [`EnrolError`].
pub async fn begin_totp<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    request: BeginTotp,
) -> Result<Enrolment, EnrolError> {
    let user = &bearer.user;
    if user.second_factor_at.is_some() {
        return Err(EnrolError::Enabled);
    }
    step_up(ports, caller, bearer, BEGIN, request.current_password).await?;
    let secret = TotpSecret::new(ports.random());
    let text = secret.to_base32();
    // It opens in this session only.
    let sealed = ports.keys().seal_payload(bearer.session.id.0, text.as_bytes(), ports.random());
    ports.ephemeral().put(&key(user.id), &sealed, ENROLMENT_TTL).await?;
    // A secret is handed out: whoever looks into the set-up of a factor later sees where that came from.
    let event = audit::event(ports, BEGIN, caller).of_user(user.id).in_session(bearer.session.id);
    ports.store_to_write().await?.record(&event).await?;
    step_up::forgive(ports, bearer).await;
    let account = identifier_of(user).map_or_else(|| user.pid.clone(), |identifier| identifier.as_str().to_owned());
    let otpauth_uri = secret.uri(&ports.policy().mfa.issuer, &account);
    Ok(Enrolment { secret: text, otpauth_uri, expires_in: ENROLMENT_TTL.as_secs() })
}

/// Makes the authenticator the second factor once its first code is shown; returns the recovery codes. Every
/// other session ends.
///
/// # Errors
/// [`EnrolError`].
pub async fn confirm_totp<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    request: ConfirmTotp,
) -> Result<Vec<String>, EnrolError> {
    let (user, typed) = (&bearer.user, request.code.map(|code| code.0).unwrap_or_default());
    if user.second_factor_at.is_some() {
        return Err(EnrolError::Enabled);
    }
    let (key, store) = (key(user.id), ports.ephemeral());
    let entry = store.get(&key).await?.ok_or(EnrolError::NotBegun)?;
    let text = ports.keys().open_payload(bearer.session.id.0, &entry.value).ok();
    let secret = text.and_then(|text| String::from_utf8(text).ok()).and_then(|text| TotpSecret::from_base32(&text));
    let factor = TotpFactor::new(secret.ok_or(EnrolError::NotBegun)?);
    let step = match second_factor::guess_first(ports, user, &factor, &typed).await {
        Ok(step) => step,
        Err(error) => {
            step_up::refuse_guess(ports, caller, bearer, FactorChange::Enabled.action(), &error).await?;
            return Err(error.into());
        }
    };
    let done = enable(ports, caller, bearer, TotpFactor { last_step: step, ..factor }, &key, entry).await;
    // The code was right, whatever came of it.
    second_factor::forgive(ports, user.id).await;
    done
}

async fn enable<P: Ports>(
    ports: &P,
    caller: &Caller,
    bearer: &Bearer,
    factor: TotpFactor,
    key: &str,
    entry: Entry,
) -> Result<Vec<String>, EnrolError> {
    let (user, ephemeral) = (&bearer.user, ports.ephemeral());
    if !ephemeral.remove_if_equal(key, &entry.value).await? {
        return Err(EnrolError::NotBegun);
    }
    let codes = recovery_codes::fresh(ports, user);
    let (now, kept) = (ports.now(), Some(bearer.session.id));
    let done = ports
        .transaction(async |store| {
            if !store.mark_second_factor(user, Some(now), now).await? {
                return Err(EnrolError::NotBegun);
            }
            store.insert_totp(user.id, &factor, now).await?;
            store.replace_recovery_codes(user.id, &codes.digests).await?;
            Ok(second_factor::note_change(ports, store, caller, user, kept, FactorChange::Enabled).await?)
        })
        .await;
    if matches!(done, Err(EnrolError::Unavailable(_))) {
        // Should this fail too, the enrolment can be begun anew.
        let _ = ephemeral.put_if_absent(key, &entry.value, entry.expires_in).await;
    }
    done.map(|()| codes.shown)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::services::{
        memory::{PASSWORD, World, caller, request},
        model::EndReason,
        run::run,
    };

    fn signed_in() -> (World, Bearer) {
        let world = World::with_ada();
        let tokens = world.sign_in(world.users()[0].id).tokens;
        let bearer = world.bearer(&tokens);
        (world, bearer)
    }

    fn begin(world: &World, bearer: &Bearer, password: &str) -> Result<TotpSecret, EnrolError> {
        let wanted = request(json!({ "current_password": password }));
        run(begin_totp(world, &caller(), bearer, wanted))
            .map(|enrolment| TotpSecret::from_base32(&enrolment.secret).unwrap())
    }

    fn confirm(world: &World, bearer: &Bearer, code: &str) -> Result<Vec<String>, EnrolError> {
        run(confirm_totp(world, &caller(), bearer, request(json!({ "code": code }))))
    }

    fn code_of<T>(done: Result<T, EnrolError>) -> &'static str {
        Problem::from(done.err().unwrap()).code
    }

    #[test]
    fn nothing_is_on_before_the_first_code_and_then_other_sessions_end() {
        let world = World::with_ada();
        let id = world.users()[0].id;
        let (other, this) = (world.sign_in(id).tokens, world.sign_in(id).tokens);
        let bearer = world.bearer(&this);
        let secret = begin(&world, &bearer, PASSWORD).unwrap();
        assert_eq!(world.audited().last(), Some(&("totp_begin", "")));
        assert_eq!(world.users()[0].second_factor_at, None);
        let codes = confirm(&world, &bearer, &secret.code(world.now())).unwrap();
        assert_eq!(codes.len(), 10);
        assert_eq!(world.users()[0].second_factor_at, Some(world.now()));
        assert!(world.is_alive(&this) && !world.is_alive(&other));
        assert_eq!(world.sessions()[0].end_reason, Some(EndReason::SecondFactorChanged));
        assert_eq!(world.letter_kinds(), ["second_factor_changed", "second_factor_changed"]);
        assert_eq!(world.audited().last(), Some(&("mfa_enable", "")));
        assert_eq!(world.events().last().unwrap(), "SecondFactorChanged");
        let bearer = world.bearer(&this);
        assert_eq!(code_of(begin(&world, &bearer, PASSWORD)), "conflict");
        assert_eq!(code_of(confirm(&world, &bearer, &secret.code(world.now()))), "conflict");
    }

    #[test]
    fn it_asks_for_the_present_password_and_counts_wrong_ones() {
        let (world, bearer) = signed_in();
        for _ in 0..5 {
            assert_eq!(code_of(begin(&world, &bearer, "orange-Lantern-41")), "invalid_current_password");
        }
        assert_eq!(code_of(begin(&world, &bearer, PASSWORD)), "account_locked");
        assert_eq!(code_of(begin(&world, &bearer, "")), "validation_error");
    }

    #[test]
    fn who_has_no_password_has_signed_in_a_moment_ago() {
        let (world, bearer) = signed_in();
        world.change_user(|user| user.password_hash = None);
        let bearer = Bearer { user: world.users().remove(0).into(), ..bearer };
        begin(&world, &bearer, "").unwrap();
        world.pass(step_up::RECENT);
        assert_eq!(code_of(begin(&world, &bearer, PASSWORD)), "step_up_required");
        assert_eq!(world.audited().last(), Some(&("totp_begin", "step_up_required")));
    }

    #[test]
    fn a_secret_is_of_its_session_and_of_its_time() {
        let (world, bearer) = signed_in();
        let tokens = world.sign_in(bearer.user.id).tokens;
        let other = world.bearer(&tokens);
        let secret = begin(&world, &bearer, PASSWORD).unwrap();
        assert_eq!(code_of(confirm(&world, &other, &secret.code(world.now()))), "conflict");
        world.pass(ENROLMENT_TTL + Duration::from_secs(1));
        assert_eq!(code_of(confirm(&world, &bearer, &secret.code(world.now()))), "conflict");
    }

    #[test]
    fn wrong_first_codes_are_counted() {
        let (world, bearer) = signed_in();
        let secret = begin(&world, &bearer, PASSWORD).unwrap();
        for _ in 0..5 {
            assert_eq!(code_of(confirm(&world, &bearer, "aaaaaa")), "invalid_mfa_code");
        }
        assert_eq!(code_of(confirm(&world, &bearer, &secret.code(world.now()))), "account_locked");
    }

    #[test]
    fn a_commit_that_fails_leaves_the_secret_waiting() {
        let (world, bearer) = signed_in();
        let secret = begin(&world, &bearer, PASSWORD).unwrap();
        world.fail_commits(true);
        // More often than wrong codes would lock.
        for _ in 0..6 {
            assert_eq!(code_of(confirm(&world, &bearer, &secret.code(world.now()))), "service_unavailable");
        }
        world.fail_commits(false);
        assert!(world.letters().is_empty() && world.users()[0].second_factor_at.is_none());
        confirm(&world, &bearer, &secret.code(world.now())).unwrap();
    }

    #[test]
    fn a_password_that_is_set_beside_it_comes_first() {
        let (world, bearer) = signed_in();
        let secret = begin(&world, &bearer, PASSWORD).unwrap();
        world.on_next_commit(|user| user.password_changed_at = Some(time::OffsetDateTime::UNIX_EPOCH));
        assert_eq!(code_of(confirm(&world, &bearer, &secret.code(world.now()))), "conflict");
        assert_eq!(world.users()[0].second_factor_at, None);
    }
}
