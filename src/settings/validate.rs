//! The rules that a configuration as a whole must keep, so that what it promises holds.

use crate::services::passwords::{MOST_ITERATIONS, MOST_LANES, MOST_MEMORY_KIB};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use url::Url;

use super::{DatabaseUrl, Settings, SettingsError, StoreUrl, master, urls};

/// OWASP Password Storage Cheat Sheet: Argon2id memory in KiB and passes, equal in strength.
const OWASP_ARGON2ID: [(u32, u32); 5] = [(47_104, 1), (19_456, 2), (12_288, 3), (9_216, 4), (7_168, 5)];

/// A rule that was broken: the key to change, and why.
struct Broken(&'static str, String);

/// Holds a configuration against every rule.
pub(super) fn validate(settings: &Settings) -> Result<(), SettingsError> {
    let rules = [addresses, counts, durations, secrets, links, tokens, passwords, delivery, texts];
    for rule in rules {
        rule(settings).map_err(|Broken(key, reason)| SettingsError::refused(key, settings, reason))?;
    }
    Ok(())
}

fn require(holds: bool, key: &'static str, reason: impl Into<String>) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken(key, reason.into())) }
}

fn addresses(settings: &Settings) -> Result<(), Broken> {
    let (v1, v2) = (&settings.engines.v1, &settings.engines.v2);
    require(v1.enabled || v2.enabled, "engines.v1.enabled", "both engines are off; at least one must be on")?;
    require(
        !(v1.enabled && v2.enabled && collide(v1.bind, v2.bind)),
        "engines.v2.bind",
        format!("both engines would listen on {}; each needs an address of its own", v2.bind),
    )?;
    let url = &settings.public_url;
    require(
        urls::is_https_or_loopback(url),
        "public_url",
        "it must be https://, or http:// on a loopback host, for tokens and cookies would go in clear text",
    )?;
    require(
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none(),
        "public_url",
        "it must be scheme, host, port and path only",
    )?;
    require(
        settings.trusted_proxies.iter().all(|network| network.prefix_len() > 0),
        "trusted_proxies",
        "a network that holds every address lets every client choose the address it is counted under",
    )?;
    if let Some(url) = &settings.passwords.breaches_url {
        require(
            urls::is_https_or_loopback(url) && url.username().is_empty() && url.query().is_none(),
            "passwords.breaches_url",
            "it must be https://, or http:// on a loopback host, without user and query",
        )?;
    }
    let keys = &settings.google.jwks_url;
    require(
        urls::is_https_or_loopback(keys) && keys.username().is_empty() && keys.fragment().is_none(),
        "google.jwks_url",
        "it must be https://, or http:// on a loopback host, without user and fragment",
    )?;
    require(
        settings.google.client_ids.iter().all(|id| !id.trim().is_empty()),
        "google.client_ids",
        "an empty client id would be anybody's",
    )?;
    for origin in &settings.cors.origins {
        bare_origin(origin).map_err(|reason| Broken("cors.origins", reason))?;
    }
    Ok(())
}

/// Whether two addresses cannot be listened on together; port 0 is a free one each time.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let overlap = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && overlap
}

/// An origin is compared as text, so it must be written as a browser writes it (RFC 6454, 6.2).
fn bare_origin(text: &str) -> Result<(), String> {
    let written = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "https" | "http") && !text.contains('*'))
        .map(|url| url.origin().ascii_serialization());
    match written {
        Some(written) if written == text => Ok(()),
        Some(written) => Err(format!("found {text:?}, but an origin is scheme, host and port only: {written:?}")),
        None => {
            Err(format!("found {text:?}, but an origin such as \"https://app.example.com\" is needed, without `*`"))
        }
    }
}

fn counts(settings: &Settings) -> Result<(), Broken> {
    let (otp, passwords) = (&settings.otp, &settings.passwords);
    within("engines.v1.threads", settings.engines.v1.threads, 1..=16_384)?;
    within("engines.v2.workers", settings.engines.v2.workers, 0..=1_024)?;
    within("engines.v1.connections", settings.engines.v1.connections, 16..=1_000_000)?;
    within("engines.v2.connections", settings.engines.v2.connections, 16..=1_000_000)?;
    within("database.pool", settings.database.pool, 1..=1_024)?;
    within("store.pool", settings.store.pool, 1..=1_024)?;
    within("outbox.attempts", settings.outbox.attempts, 1..=100)?;
    within("lockout.failures", settings.lockout.failures, 1..=100)?;
    within("mfa.daily_guesses", settings.mfa.daily_guesses, 5..=1_000)?;
    within("stuffing.identifiers", settings.stuffing.identifiers, 2..=10_000)?;
    within("sessions.max_per_user", settings.sessions.max_per_user, 0..=1_000)?;
    within("otp.guesses", otp.guesses, 1..=5)?;
    within("otp.account_guesses", otp.account_guesses, 1..=100)?;
    within("otp.daily_sends", otp.daily_sends, 1..=1_000)?;
    within("passwords.iterations", passwords.iterations, 1..=MOST_ITERATIONS)?;
    within("passwords.parallelism", passwords.parallelism, 1..=MOST_LANES)?;
    within("passwords.slots", passwords.slots, 0..=1_024)?;
    within("passwords.queue", passwords.queue, 1..=65_536)?;
    within("passwords.max_length", passwords.max_length, 64..=128)?;
    within("passwords.min_length", passwords.min_length, 8..=passwords.max_length)?;
    within("passwords.min_score", passwords.min_score, 0..=4)
}

fn within<T: PartialOrd + Copy + std::fmt::Display>(
    key: &'static str,
    number: T,
    allowed: RangeInclusive<T>,
) -> Result<(), Broken> {
    let reason = format!("found {number}, but a number from {} to {} is needed", allowed.start(), allowed.end());
    require(allowed.contains(&number), key, reason)
}

fn durations(settings: &Settings) -> Result<(), Broken> {
    let (http, outbox) = (&settings.http, &settings.outbox);
    for (key, duration) in [
        ("http.head_timeout", http.head_timeout),
        ("http.body_timeout", http.body_timeout),
        ("http.idle_timeout", http.idle_timeout),
        ("http.write_timeout", http.write_timeout),
        ("database.timeout", settings.database.timeout),
        ("store.timeout", settings.store.timeout),
        ("mail.timeout", settings.mail.timeout),
        ("sms.timeout", settings.sms.timeout),
        ("outbox.poll", outbox.poll),
        ("outbox.lease", outbox.lease),
        ("outbox.backoff", outbox.backoff),
        ("lockout.duration", settings.lockout.duration),
        ("otp.ttl", settings.otp.ttl),
        ("otp.link_ttl", settings.otp.link_ttl),
        ("stuffing.window", settings.stuffing.window),
        ("stuffing.duration", settings.stuffing.duration),
        ("mfa.ttl", settings.mfa.ttl),
        ("passwords.queue_timeout", settings.passwords.queue_timeout),
        ("devices.ttl", settings.devices.ttl),
        ("google.timeout", settings.google.timeout),
        ("passwords.breaches_timeout", settings.passwords.breaches_timeout),
        ("tokens.access_ttl", settings.tokens.access_ttl),
        ("audit.retention", settings.audit.retention),
    ] {
        require(!duration.is_zero(), key, "a duration above zero is needed")?;
    }
    require(
        settings.otp.ttl <= Duration::from_secs(600),
        "otp.ttl",
        "a code may be valid for 10 minutes at most (ASVS 6.5.5)",
    )?;
    require(
        settings.otp.link_ttl <= Duration::from_secs(86_400),
        "otp.link_ttl",
        "a reset link may be valid for 24 hours at most",
    )?;
    require(
        settings.passwords.queue_timeout <= Duration::from_secs(10),
        "passwords.queue_timeout",
        "whoever would wait longer than 10 seconds had better be told at once",
    )?;
    require(
        settings.mfa.ttl <= Duration::from_secs(600),
        "mfa.ttl",
        "a sign-in may wait for its second factor for 10 minutes at most (ASVS 6.5.5)",
    )?;
    require(
        settings.mfa.issuer.as_deref().is_none_or(|issuer| !issuer.contains(':')),
        "mfa.issuer",
        "it may hold no colon, which ends the name in what an authenticator reads",
    )?;
    require(
        settings.devices.ttl <= Duration::from_secs(400 * 86_400),
        "devices.ttl",
        "browsers keep no cookie for longer than 400 days (RFC 6265bis, 5.6.1)",
    )?;
    let sessions = &settings.sessions;
    require(
        sessions.idle_timeout.is_none_or(|idle| idle > Duration::from_secs(120)),
        "sessions.idle_timeout",
        "it must be more than 2m, since use is noted once a minute, or \"off\"",
    )?;
    require(
        sessions.absolute_timeout.is_none_or(|absolute| absolute > settings.tokens.access_ttl),
        "sessions.absolute_timeout",
        "it must be more than tokens.access_ttl, or \"off\"",
    )?;
    require(outbox.backoff <= outbox.backoff_max, "outbox.backoff_max", "it must not be less than outbox.backoff")
}

fn secrets(settings: &Settings) -> Result<(), Broken> {
    let secrets = &settings.secrets;
    require(
        secrets.master.is_none() || secrets.master_file.is_none(),
        "secrets.master_file",
        "secrets.master is set as well; only one of the two may be",
    )?;
    if let Some(master) = &secrets.master {
        master::decode(master.expose()).map_err(|reason| Broken("secrets.master", reason.to_owned()))?;
    }
    let shared = match (settings.database(), settings.store()) {
        (DatabaseUrl::Postgres(_), _) => Some("PostgreSQL"),
        (_, StoreUrl::Redis(_)) => Some("Redis"),
        _ => None,
    };
    require(
        settings.has_configured_master() || shared.is_none(),
        "secrets.master",
        format!(
            "with {} a master secret must be configured, for all instances need the same one; \
             `bifrons keys generate` makes one",
            shared.unwrap_or_default()
        ),
    )
}

fn links(settings: &Settings) -> Result<(), Broken> {
    let links = &settings.links;
    for (key, path) in [
        ("links.sign_in", &links.sign_in),
        ("links.password_forgotten", &links.password_forgotten),
        ("links.password_reset", &links.password_reset),
    ] {
        // Two slashes would begin another host.
        let is_path = path.starts_with('/') && !path.starts_with("//") && path.bytes().all(|b| b.is_ascii_graphic());
        require(is_path && !path.contains(['\\', '"', '<', '>']), key, "a path such as \"/login\" is needed")?;
    }
    let has = |name: &str| links.password_reset.matches(name).count() == 1;
    require(has("{uidb64}") && has("{token}"), "links.password_reset", "it must have {uidb64} and {token}, once each")
}

fn tokens(settings: &Settings) -> Result<(), Broken> {
    let tokens = &settings.tokens;
    require(
        tokens.access_ttl < tokens.refresh_ttl,
        "tokens.access_ttl",
        "an access token must expire before the refresh token: it must be less than tokens.refresh_ttl",
    )?;
    require(
        tokens.reuse_grace < tokens.access_ttl,
        "tokens.reuse_grace",
        "a spent refresh token must be refused before its access token expires: it must be less than tokens.access_ttl",
    )?;
    require(
        tokens.signing_key.is_none() || tokens.signing_key_file.is_none(),
        "tokens.signing_key_file",
        "tokens.signing_key is set as well; only one of the two may be",
    )?;
    match tokens.signing_key.as_ref().map(|key| master::signing_key(key.expose(), tokens.algorithm)) {
        Some(Err(reason)) => Err(Broken("tokens.signing_key", reason.to_owned())),
        _ => Ok(()),
    }
}

fn passwords(settings: &Settings) -> Result<(), Broken> {
    let passwords = &settings.passwords;
    let strong = OWASP_ARGON2ID
        .iter()
        .any(|(memory_kib, iterations)| passwords.memory_kib >= *memory_kib && passwords.iterations >= *iterations);
    require(
        strong || passwords.allow_weak,
        "passwords.memory_kib",
        format!(
            "{} KiB and {} iterations are weaker than OWASP's least (47104 and 1, 19456 and 2, 12288 and 3, \
             9216 and 4, or 7168 and 5)",
            passwords.memory_kib, passwords.iterations
        ),
    )?;
    // Argon2 needs eight blocks of a KiB in each lane (RFC 9106, 3.1).
    within("passwords.memory_kib", passwords.memory_kib, passwords.parallelism.saturating_mul(8)..=MOST_MEMORY_KIB)
}

fn delivery(settings: &Settings) -> Result<(), Broken> {
    for (key, timeout) in [("mail.timeout", settings.mail.timeout), ("sms.timeout", settings.sms.timeout)] {
        require(
            timeout < settings.outbox.lease / 2,
            key,
            "it must be less than half of outbox.lease, or a letter could be sent twice",
        )?;
    }
    Ok(())
}

fn texts(settings: &Settings) -> Result<(), Broken> {
    for (key, text) in [("tokens.issuer", &settings.tokens.issuer), ("tokens.audience", &settings.tokens.audience)] {
        require(!text.trim().is_empty(), key, "a text that is not empty is needed")?;
    }
    require(!settings.data_dir.as_os_str().is_empty(), "data_dir", "the path of a directory is needed")?;
    let level_of = |directive: &str| {
        let level = directive.rsplit('=').next().unwrap_or(directive).trim().to_ascii_lowercase();
        matches!(level.as_str(), "off" | "error" | "warn" | "info" | "debug" | "trace")
    };
    require(
        settings.log.level.split(',').all(level_of),
        "log.level",
        "off, error, warn, info, debug or trace is needed, or filters such as info,bifrons=debug",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASTER: &str = "secrets.master=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    fn accepts(overrides: &[&str]) {
        if let Err(error) = Settings::from_overrides(overrides) {
            panic!("{overrides:?}: {error}");
        }
    }

    fn refuses(overrides: &[&str], key: &str, reason: &str) {
        let error = Settings::from_overrides(overrides).expect_err(&format!("{overrides:?}")).to_string();
        assert!(error.starts_with(&format!("`{key}` (")) && error.contains(reason), "{overrides:?}: {error}");
    }

    #[test]
    fn one_engine_may_be_off_but_not_both() {
        accepts(&["engines.v1.enabled=false"]);
        accepts(&["engines.v2.enabled=false"]);
        refuses(
            &["engines.v1.enabled=false", "engines.v2.enabled=false"],
            "engines.v1.enabled",
            "both engines are off",
        );
    }

    #[test]
    fn the_engines_need_addresses_of_their_own() {
        refuses(&["engines.v2.bind=127.0.0.1:8001"], "engines.v2.bind", "of its own");
        refuses(&["engines.v2.bind=0.0.0.0:8001"], "engines.v2.bind", "of its own");
        accepts(&["engines.v2.bind=127.0.0.2:8001"]);
        accepts(&["engines.v2.bind=127.0.0.1:8001", "engines.v1.enabled=false"]);
        accepts(&["engines.v1.bind=127.0.0.1:0", "engines.v2.bind=127.0.0.1:0"]);
    }

    #[test]
    fn the_public_url_is_https_or_loopback() {
        for url in
            ["https://auth.example.com", "https://auth.example.com/id/", "http://localhost:8002", "http://[::1]:8002"]
        {
            accepts(&[&format!("public_url={url}")]);
        }
        for url in ["http://auth.example.com", "http://10.0.0.1", "ftp://localhost", "data:text/html,x"] {
            refuses(&[&format!("public_url={url}")], "public_url", "https://");
        }
        for url in ["https://u:p@auth.example.com", "https://auth.example.com/?x=1", "https://auth.example.com/#x"] {
            refuses(&[&format!("public_url={url}")], "public_url", "scheme, host, port and path");
        }
        assert!(Settings::from_overrides(&["public_url=https://auth.example.com"]).unwrap().cookies_are_secure());
    }

    #[test]
    fn not_everybody_can_be_a_trusted_proxy() {
        accepts(&["trusted_proxies=10.0.0.0/8,::1"]);
        refuses(&["trusted_proxies=0.0.0.0/0"], "trusted_proxies", "every address");
        refuses(&["trusted_proxies=10.0.0.0/8,::/0"], "trusted_proxies", "every address");
    }

    #[test]
    fn origins_are_bare() {
        accepts(&["cors.origins=https://app.example.com,http://localhost:3000"]);
        for origin in ["*", "https://*.example.com", "app.example.com", "null", "ftp://app.example.com", "file:///x"] {
            refuses(&[&format!("cors.origins={origin}")], "cors.origins", "without `*`");
        }
        for origin in [
            "https://app.example.com/",
            "https://app.example.com/x",
            "https://App.example.com",
            "https://u@app.example.com",
            "https://app.example.com:443",
        ] {
            refuses(&[&format!("cors.origins={origin}")], "cors.origins", "\"https://app.example.com\"");
        }
    }

    #[test]
    fn counts_stay_within_what_makes_sense() {
        for assignment in [
            "engines.v1.threads=0",
            "engines.v1.connections=15",
            "database.pool=0",
            "store.pool=0",
            "outbox.attempts=0",
            "lockout.failures=0",
            "otp.guesses=0",
            "otp.guesses=6",
            "otp.account_guesses=0",
            "otp.daily_sends=0",
            "passwords.iterations=0",
            "passwords.parallelism=0",
            "passwords.queue=0",
            "passwords.min_length=7",
            "passwords.min_length=129",
            "passwords.max_length=129",
            "passwords.max_length=63",
            "passwords.min_score=5",
            "mfa.daily_guesses=4",
            "mfa.daily_guesses=1001",
            "stuffing.identifiers=1",
            "stuffing.identifiers=10001",
            "sessions.max_per_user=1001",
        ] {
            refuses(&[assignment], assignment.split('=').next().unwrap(), "a number from");
        }
        accepts(&["stuffing.identifiers=2", "sessions.max_per_user=0", "mfa.daily_guesses=5"]);
        accepts(&["stuffing.identifiers=10000", "sessions.max_per_user=1000", "mfa.daily_guesses=1000"]);
    }

    #[test]
    fn durations_of_zero_are_refused_where_they_make_no_sense() {
        for key in [
            "http.head_timeout",
            "http.body_timeout",
            "http.idle_timeout",
            "http.write_timeout",
            "database.timeout",
            "store.timeout",
            "mail.timeout",
            "sms.timeout",
            "outbox.poll",
            "outbox.lease",
            "outbox.backoff",
            "lockout.duration",
            "otp.ttl",
            "otp.link_ttl",
            "mfa.ttl",
            "stuffing.window",
            "stuffing.duration",
            "devices.ttl",
            "passwords.breaches_timeout",
            "passwords.queue_timeout",
            "tokens.access_ttl",
            "audit.retention",
        ] {
            refuses(&[&format!("{key}=0s")], key, "above zero");
        }
        accepts(&["http.shutdown_grace=0s", "otp.resend_interval=0s", "tokens.reuse_grace=0s", "outbox.retention=0s"]);
    }

    #[test]
    fn a_code_lives_for_ten_minutes_at_most() {
        accepts(&["otp.ttl=10m"]);
        refuses(&["otp.ttl=601s"], "otp.ttl", "ASVS 6.5.5");
    }

    #[test]
    fn a_reset_link_lives_for_a_day_at_most() {
        accepts(&["otp.link_ttl=24h"]);
        refuses(&["otp.link_ttl=86401s"], "otp.link_ttl", "24 hours");
    }

    #[test]
    fn a_device_is_known_for_as_long_as_browsers_keep_a_cookie() {
        accepts(&["devices.ttl=400d"]);
        refuses(&["devices.ttl=401d"], "devices.ttl", "400 days");
    }

    #[test]
    fn sessions_end_later_than_their_use_is_noted_and_than_an_access_token() {
        accepts(&["sessions.idle_timeout=121s", "sessions.absolute_timeout=901s"]);
        accepts(&["sessions.idle_timeout=off", "sessions.absolute_timeout=off"]);
        for idle in ["0s", "60s", "2m"] {
            refuses(&[&format!("sessions.idle_timeout={idle}")], "sessions.idle_timeout", "more than 2m");
        }
        for absolute in ["0s", "15m"] {
            let assignment = format!("sessions.absolute_timeout={absolute}");
            refuses(&[&assignment], "sessions.absolute_timeout", "more than tokens.access_ttl");
        }
        let longer = "tokens.access_ttl=2h";
        refuses(&["sessions.absolute_timeout=2h", longer], "sessions.absolute_timeout", "tokens.access_ttl");
    }

    #[test]
    fn breached_passwords_are_looked_up_in_secret_or_not_at_all() {
        for url in ["", "https://list.example.com", "https://list.example.com/mirror/", "http://127.0.0.1:9"] {
            accepts(&[&format!("passwords.breaches_url={url}")]);
        }
        for url in [
            "http://list.example.com",
            "ftp://list.example.com",
            "mailto:list@example.com",
            "https://u@list.example.com",
            "https://list.example.com/?key=1",
        ] {
            refuses(&[&format!("passwords.breaches_url={url}")], "passwords.breaches_url", "https://");
        }
    }

    #[test]
    fn links_stay_on_their_own_site() {
        accepts(&["links.sign_in=/", "links.password_forgotten=/#/forgotten?from=mail"]);
        accepts(&["links.password_reset=/reset?uid={uidb64}&token={token}"]);
        for key in ["links.sign_in", "links.password_forgotten", "links.password_reset"] {
            for path in [
                "",
                "login",
                "//evil.example",
                "/\\\\evil.example",
                "https://evil.example/",
                "/a b",
                "/\"onclick",
                "/<b>",
                "/é",
            ] {
                refuses(&[&format!("{key}={path}")], key, "a path such as");
            }
        }
        for path in [
            "/reset",
            "/reset/{uidb64}",
            "/reset/{token}",
            "/reset/{uidb64}/{token}/{token}",
            "/{uidb64}/{uidb64}/{token}",
        ] {
            refuses(&[&format!("links.password_reset={path}")], "links.password_reset", "once each");
        }
    }

    #[test]
    fn backoff_does_not_begin_above_its_end() {
        refuses(&["outbox.backoff=2h"], "outbox.backoff_max", "outbox.backoff");
    }

    #[test]
    fn an_access_token_expires_before_its_refresh_token() {
        refuses(&["tokens.refresh_ttl=15m"], "tokens.access_ttl", "tokens.refresh_ttl");
        refuses(&["tokens.access_ttl=31d"], "tokens.access_ttl", "tokens.refresh_ttl");
    }

    #[test]
    fn the_reuse_grace_ends_before_the_access_token() {
        refuses(&["tokens.reuse_grace=15m"], "tokens.reuse_grace", "tokens.access_ttl");
    }

    #[test]
    fn a_delivery_ends_well_within_its_lease() {
        refuses(&["mail.timeout=30s"], "mail.timeout", "sent twice");
        refuses(&["sms.timeout=30s"], "sms.timeout", "sent twice");
        refuses(&["outbox.lease=30s"], "mail.timeout", "sent twice");
        accepts(&["mail.timeout=29s", "sms.timeout=29s"]);
    }

    #[test]
    fn password_hashing_reaches_a_row_of_owasps_table() {
        for (memory, iterations) in [(47_104, 1), (19_456, 2), (12_288, 3), (9_216, 4), (7_168, 5), (65_536, 3)] {
            accepts(&[&format!("passwords.memory_kib={memory}"), &format!("passwords.iterations={iterations}")]);
        }
        for (memory, iterations) in [(47_103, 1), (19_455, 2), (12_287, 3), (9_215, 4), (7_167, 16)] {
            let memory = format!("passwords.memory_kib={memory}");
            let iterations = format!("passwords.iterations={iterations}");
            refuses(&[&memory, &iterations], "passwords.memory_kib", "OWASP");
            accepts(&[&memory, &iterations, "passwords.allow_weak=true"]);
        }
        refuses(&["passwords.memory_kib=7", "passwords.allow_weak=true"], "passwords.memory_kib", "from 8 to");
        refuses(&["passwords.memory_kib=262145"], "passwords.memory_kib", "to 262144");
    }

    #[test]
    fn shared_stores_need_a_configured_master_secret() {
        let postgres = "database.url=postgres://u:p@localhost/x";
        let redis = "store.url=redis://localhost";
        refuses(&[postgres], "secrets.master", "PostgreSQL");
        refuses(&[redis], "secrets.master", "Redis");
        accepts(&[postgres, redis, MASTER]);
        accepts(&[postgres, "secrets.master_file=/run/secrets/master"]);
    }

    #[test]
    fn the_master_secret_is_given_once_and_long_enough() {
        refuses(&[MASTER, "secrets.master_file=/run/secrets/master"], "secrets.master_file", "only one");
        for short in ["c2hvcnQ", "00112233445566778899aabbccddeeff"] {
            refuses(&[&format!("secrets.master={short}")], "secrets.master", "32 bytes");
        }
        refuses(&["secrets.master=this is no encoding"], "secrets.master", "base64url");
    }

    #[test]
    fn the_signing_key_is_given_once_and_long_enough() {
        refuses(&["tokens.signing_key=0123456789012345678901234567890"], "tokens.signing_key", "32 bytes");
        let key = "tokens.signing_key=01234567890123456789012345678901";
        accepts(&[key]);
        refuses(&[key, "tokens.signing_key_file=/run/secrets/key"], "tokens.signing_key_file", "only one");
        refuses(&[key, "tokens.algorithm=EdDSA"], "tokens.signing_key", "no PEM key");
        let pem = "tokens.signing_key=-----BEGIN PRIVATE KEY-----\nMC4CAQ==\n-----END PRIVATE KEY-----";
        refuses(&[pem], "tokens.signing_key", "tokens.algorithm = \"EdDSA\"");
        refuses(&[pem, "tokens.algorithm=EdDSA"], "tokens.signing_key", "another kind");
    }

    #[test]
    fn urls_are_checked_at_the_start() {
        refuses(&["database.url=postgres://u:p@db.example.com/x", MASTER], "database.url", "must state sslmode");
        refuses(
            &["database.url=postgres://u:p@db.example.com/x?sslmode=require", MASTER],
            "database.url",
            "without proving who answers",
        );
        refuses(&["store.url=localhost:6379"], "store.url", "redis://");
        refuses(&["mail.url=smtp://u:p@mail.example.com"], "mail.url", "clear text");
        refuses(&["sms.url=twilio://AC1"], "sms.url", "twilio://SID:TOKEN@FROM");
    }

    #[test]
    fn log_levels_are_spelled_right() {
        accepts(&["log.level=debug"]);
        accepts(&["log.level=info,bifrons=trace,bifrons::services=debug"]);
        for level in ["inof", "", "info,bifrons=loud"] {
            refuses(&[&format!("log.level={level}")], "log.level", "trace is needed");
        }
    }

    #[test]
    fn issuer_audience_and_data_directory_are_not_empty() {
        refuses(&["tokens.issuer="], "tokens.issuer", "not empty");
        refuses(&["tokens.audience= "], "tokens.audience", "not empty");
        refuses(&["data_dir="], "data_dir", "directory");
    }
}
