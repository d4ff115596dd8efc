//! What both engines and the command line are built of: policy and keys, from the settings.

use std::{error::Error, num::NonZero, thread::available_parallelism};

use crate::{
    services::{
        keys::Keys,
        limits,
        passwords::HashParams,
        policy::{LimitPolicy, LockoutPolicy, OtpPolicy, OutboxPolicy, PasswordPolicy, Policy, TokenPolicy},
    },
    settings::{Rate, Settings, load_master_secret, load_signing_key},
};

/// The operator's decisions, as services need them.
pub fn policy(settings: &Settings) -> Policy {
    let rate = |rate: Option<Rate>| rate.map(|Rate { count, per }| limits::Rate { count, per });
    let (otp, outbox) = (&settings.otp, &settings.outbox);
    Policy {
        public_url: settings.public_url.as_str().trim_end_matches('/').to_owned(),
        tokens: TokenPolicy {
            access_ttl: settings.tokens.access_ttl,
            refresh_ttl: settings.tokens.refresh_ttl,
            reuse_grace: settings.tokens.reuse_grace,
            issuer: settings.tokens.issuer.clone(),
            audience: settings.tokens.audience.clone(),
        },
        otp: OtpPolicy {
            ttl: otp.ttl,
            guesses: otp.guesses.into(),
            account_guesses: otp.account_guesses.into(),
            resend_interval: otp.resend_interval,
            daily_sends: otp.daily_sends.into(),
        },
        passwords: PasswordPolicy {
            min_length: settings.passwords.min_length,
            max_length: settings.passwords.max_length,
            min_score: settings.passwords.min_score,
        },
        lockout: LockoutPolicy { failures: settings.lockout.failures.into(), duration: settings.lockout.duration },
        limits: LimitPolicy {
            burst: rate(settings.limits.burst),
            sustained: rate(settings.limits.sustained),
            general: rate(settings.limits.general),
            token_verify: rate(settings.limits.token_verify),
        },
        reveal_existing: settings.registration.reveal_existing,
        default_region: settings.registration.default_region.clone(),
        outbox: OutboxPolicy {
            poll: outbox.poll,
            lease: outbox.lease,
            attempts: i32::try_from(outbox.attempts).unwrap_or(i32::MAX),
            backoff: outbox.backoff,
            backoff_max: outbox.backoff_max,
            retention: outbox.retention,
        },
        audit_retention: settings.audit.retention,
    }
}

/// Argon2id's cost.
pub fn hash_params(settings: &Settings) -> HashParams {
    let passwords = &settings.passwords;
    HashParams {
        memory_kib: passwords.memory_kib,
        iterations: passwords.iterations,
        parallelism: passwords.parallelism,
    }
}

/// How many passwords each engine hashes at a time: as configured, else one a core.
pub fn hash_slots(settings: &Settings) -> usize {
    match settings.passwords.slots {
        0 => available_parallelism().map_or(1, NonZero::get),
        slots => slots,
    }
}

/// The keys, from the configured or generated master secret.
///
/// # Errors
/// The secret cannot be read.
pub fn keys(settings: &Settings) -> Result<Keys, Box<dyn Error + Send + Sync>> {
    let master = load_master_secret(settings)?;
    let signing = load_signing_key(settings)?;
    let signing = signing.as_ref().map(|key| key.as_slice());
    Ok(Keys::derive(master.expose(), signing, settings.tokens.key_id.as_deref()))
}
