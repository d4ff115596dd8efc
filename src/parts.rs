//! What both engines and the command line are built of: policy and keys, from the settings.

use std::{error::Error, num::NonZero, sync::Arc, thread::available_parallelism};

use crate::{
    hashing::HashPool,
    places::Places,
    services::{
        keys::Keys,
        limits,
        passwords::HashParams,
        policy::{
            Breaches, GooglePolicy, LimitPolicy, LinkPolicy, Linking, LockoutPolicy, MfaPolicy, OtpPolicy,
            OutboxPolicy, PasswordPolicy, Policy, SessionPolicy, StuffingPolicy, TokenPolicy,
        },
    },
    settings::{
        GoogleLinking, OnFailure, Rate, Settings, load_master_secret, load_signing_key, load_verification_keys,
    },
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
            link_ttl: otp.link_ttl,
        },
        passwords: PasswordPolicy {
            min_length: settings.passwords.min_length,
            max_length: settings.passwords.max_length,
            min_score: settings.passwords.min_score,
            breaches: match (&settings.passwords.breaches_url, settings.passwords.breaches_on_failure) {
                (None, _) => Breaches::Off,
                (Some(_), OnFailure::Open) => Breaches::FailOpen,
                (Some(_), OnFailure::Closed) => Breaches::FailClosed,
            },
        },
        lockout: LockoutPolicy { failures: settings.lockout.failures.into(), duration: settings.lockout.duration },
        limits: LimitPolicy {
            burst: rate(settings.limits.burst),
            sustained: rate(settings.limits.sustained),
            general: rate(settings.limits.general),
            token_verify: rate(settings.limits.token_verify),
        },
        stuffing: StuffingPolicy {
            identifiers: settings.stuffing.identifiers.into(),
            window: settings.stuffing.window,
            duration: settings.stuffing.duration,
            rate: rate(settings.stuffing.rate),
        },
        sessions: SessionPolicy {
            idle: settings.sessions.idle_timeout,
            absolute: settings.sessions.absolute_timeout,
            most: Some(settings.sessions.max_per_user).filter(|most| *most > 0),
        },
        links: LinkPolicy {
            sign_in: settings.links.sign_in.clone(),
            password_forgotten: settings.links.password_forgotten.clone(),
            password_reset: settings.links.password_reset.clone(),
        },
        google: GooglePolicy {
            client_ids: settings.google.client_ids.clone(),
            linking: match settings.google.linking {
                GoogleLinking::Authoritative => Linking::Authoritative,
                GoogleLinking::Verified => Linking::Verified,
            },
            require_nonce: settings.google.require_nonce,
        },
        mfa: MfaPolicy {
            ttl: settings.mfa.ttl,
            // A colon ends the issuer's name in what an authenticator reads.
            issuer: settings.mfa.issuer.clone().unwrap_or_else(|| settings.tokens.issuer.replace(':', " ")),
            daily_guesses: settings.mfa.daily_guesses.into(),
        },
        device_ttl: settings.devices.ttl,
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

/// How many passwords are hashed at a time: as configured, else one a core.
pub fn hash_slots(settings: &Settings) -> usize {
    match settings.passwords.slots {
        0 => available_parallelism().map_or(1, NonZero::get),
        slots => slots,
    }
}

/// The threads that hash passwords.
///
/// # Errors
/// `passwords.kernel` does not hash right on this machine, or a thread cannot be started.
pub fn hash_pool(settings: &Settings) -> Result<HashPool, Box<dyn Error + Send + Sync>> {
    settings.passwords.kernel.check(hash_params(settings))?;
    Ok(HashPool::start(settings, hash_slots(settings))?)
}

/// Where addresses are, when there is a database of it.
///
/// # Errors
/// The file cannot be used.
pub fn places(settings: &Settings) -> Result<Option<Arc<Places>>, Box<dyn Error + Send + Sync>> {
    let Some(path) = &settings.geoip.database else { return Ok(None) };
    let places = Places::open(path).map_err(|error| format!("geoip.database: {error}"))?;
    Ok(Some(Arc::new(places)))
}

/// The keys, from the configured or generated master secret.
///
/// # Errors
/// A secret cannot be read, or two keys have the same id.
pub fn keys(settings: &Settings) -> Result<Keys, Box<dyn Error + Send + Sync>> {
    let master = load_master_secret(settings)?;
    let signing = load_signing_key(settings, &master)?;
    let mut keys = Keys::derive(master.expose(), Some(signing), settings.tokens.key_id.as_deref());
    for further in load_verification_keys(settings, Some(&master))? {
        keys.accept(&further.key, further.id.as_deref())
            .map_err(|error| format!("`tokens.verification_keys`: {error}"))?;
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signing_key_is_no_further_key() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = format!("data_dir={}", directory.path().display());
        for algorithm in ["HS256", "EdDSA"] {
            let algorithm = format!("tokens.algorithm={algorithm}");
            let with = |further: &str| {
                keys(&Settings::from_overrides(&[&data_dir, &algorithm, "tokens.key_id=k1", further]).unwrap())
            };
            assert!(with("tokens.verification_keys=derived").is_ok(), "a change of tokens.key_id alone");
            let error = with("tokens.verification_keys=k1=derived").err().unwrap().to_string();
            assert!(error.contains("tokens.verification_keys") && error.contains("\"k1\""), "{error}");
        }
    }
}
