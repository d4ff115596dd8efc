//! A configuration that cannot keep what it promises does not start.

use crate::support::{Backend, Engine, Gateway, Options, Side, for_each_backend, run_alone};
use std::net::TcpStream;

/// `serve` ends by itself with one sentence that contains these words.
fn assert_refused(env: &[(&str, &str)], words: &[&str]) {
    let outcome = run_alone(env, &["serve"], "");
    assert_eq!(outcome.status.code(), Some(1), "{env:?}: {}", outcome.errors);
    let sentence = outcome.errors.to_ascii_lowercase();
    for word in words {
        assert!(sentence.contains(&word.to_ascii_lowercase()), "{env:?}: no `{word}` in: {}", outcome.errors);
    }
    assert!(!sentence.contains("panicked"), "{}", outcome.errors);
    let check = run_alone(env, &["config", "check"], "");
    assert!(!check.status.success(), "`config check` accepts what `serve` refuses: {env:?}");
}

const OFF_1: (&str, &str) = ("BIFRONS_ENGINES__V1__ENABLED", "false");
const OFF_2: (&str, &str) = ("BIFRONS_ENGINES__V2__ENABLED", "false");

#[test]
fn both_engines_off_is_refused() {
    assert_refused(&[OFF_1, OFF_2], &["engines"]);
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_right_one() {
    assert_refused(&[("BIFRONS_LIMITS__BRUST", "10/min")], &["brust", "burst"]);
    assert_refused(&[("BIFRONS_ENGINES__V1__THREAD", "4")], &["thread", "threads"]);
}

#[test]
fn a_value_of_another_form_is_named() {
    assert_refused(&[("BIFRONS_LIMITS__BURST", "many")], &["limits.burst"]);
    assert_refused(&[("BIFRONS_ENGINES__V1__BIND", "nowhere")], &["engines.v1.bind"]);
    assert_refused(&[("BIFRONS_TOKENS__ACCESS_TTL", "soon")], &["tokens.access_ttl"]);
}

#[test]
fn a_shared_database_or_store_without_a_configured_secret_is_refused() {
    assert_refused(&[("BIFRONS_DATABASE__URL", "postgres://postgres@127.0.0.1:1/x")], &["secrets.master"]);
    assert_refused(&[("BIFRONS_STORE__URL", "redis://127.0.0.1:1/0")], &["secrets.master"]);
}

#[test]
fn what_would_weaken_the_service_is_refused() {
    assert_refused(&[("BIFRONS_PASSWORDS__MEMORY_KIB", "1024")], &["passwords"]);
    assert_refused(&[("BIFRONS_TOKENS__SIGNING_KEY", "short")], &["signing_key"]);
    assert_refused(&[("BIFRONS_OTP__TTL", "1h")], &["otp.ttl"]);
    assert_refused(&[("BIFRONS_CORS__ORIGINS", "*")], &["cors.origins"]);
    assert_refused(&[("BIFRONS_TOKENS__ACCESS_TTL", "60d")], &["access_ttl"]);
    assert_refused(&[("BIFRONS_SECRETS__MASTER", "c2hvcnQ")], &["secrets.master"]);
}

#[test]
fn times_numbers_and_pages_that_break_a_promise_are_refused_by_name() {
    for (variable, value, key) in [
        ("BIFRONS_OTP__LINK_TTL", "25h", "otp.link_ttl"),
        ("BIFRONS_OTP__LINK_TTL", "0s", "otp.link_ttl"),
        ("BIFRONS_OTP__GUESSES", "6", "otp.guesses"),
        ("BIFRONS_OTP__ACCOUNT_GUESSES", "101", "otp.account_guesses"),
        ("BIFRONS_OTP__DAILY_SENDS", "0", "otp.daily_sends"),
        ("BIFRONS_SESSIONS__IDLE_TIMEOUT", "2m", "sessions.idle_timeout"),
        ("BIFRONS_SESSIONS__ABSOLUTE_TIMEOUT", "15m", "sessions.absolute_timeout"),
        ("BIFRONS_SESSIONS__MAX_PER_USER", "1001", "sessions.max_per_user"),
        ("BIFRONS_DEVICES__TTL", "401d", "devices.ttl"),
        ("BIFRONS_STUFFING__IDENTIFIERS", "1", "stuffing.identifiers"),
        ("BIFRONS_STUFFING__RATE", "often", "stuffing.rate"),
        ("BIFRONS_STUFFING__WINDOW", "0s", "stuffing.window"),
        ("BIFRONS_MFA__TTL", "11m", "mfa.ttl"),
        ("BIFRONS_MFA__ISSUER", "Ada: Co", "mfa.issuer"),
        ("BIFRONS_MFA__DAILY_GUESSES", "4", "mfa.daily_guesses"),
        ("BIFRONS_LOCKOUT__FAILURES", "0", "lockout.failures"),
        ("BIFRONS_LINKS__PASSWORD_RESET", "/reset/{uidb64}", "links.password_reset"),
        ("BIFRONS_LINKS__PASSWORD_RESET", "https://evil.example/{uidb64}/{token}", "links.password_reset"),
        ("BIFRONS_LINKS__SIGN_IN", "//evil.example/", "links.sign_in"),
        ("BIFRONS_LINKS__PASSWORD_FORGOTTEN", "forgotten", "links.password_forgotten"),
        ("BIFRONS_PASSWORDS__BREACHES_URL", "http://list.example.com", "passwords.breaches_url"),
        ("BIFRONS_PASSWORDS__BREACHES_ON_FAILURE", "ajar", "passwords.breaches_on_failure"),
        ("BIFRONS_PASSWORDS__MAX_LENGTH", "63", "passwords.max_length"),
        ("BIFRONS_PASSWORDS__MIN_LENGTH", "7", "passwords.min_length"),
        ("BIFRONS_TRUSTED_PROXIES", "0.0.0.0/0", "trusted_proxies"),
    ] {
        assert_refused(&[(variable, value)], &[key]);
    }
}

#[test]
fn a_database_of_places_that_is_none_is_refused_by_name() {
    for (file, words) in [
        ("/nowhere/places.mmdb", "/nowhere/places.mmdb"),
        (concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "Cargo.toml"),
    ] {
        let outcome = run_alone(&[("BIFRONS_GEOIP__DATABASE", file)], &["serve"], "");
        assert_eq!(outcome.status.code(), Some(1), "{}", outcome.errors);
        assert!(outcome.errors.contains(words) && !outcome.errors.contains("panicked"), "{}", outcome.errors);
    }
}

#[test]
fn a_secret_in_a_refused_value_is_not_shown() {
    let key = "tooshort-sesame";
    for variable in ["BIFRONS_TOKENS__SIGNING_KEY", "BIFRONS_SECRETS__MASTER"] {
        let outcome = run_alone(&[(variable, key)], &["serve"], "");
        assert!(!outcome.status.success() && !outcome.errors.contains(key), "{}", outcome.errors);
    }
    let url = "smtp://user:open-sesame@mail.example.com:25";
    let outcome = run_alone(&[("BIFRONS_MAIL__URL", url)], &["serve"], "");
    assert!(!outcome.status.success() && !outcome.errors.contains("open-sesame"), "{}", outcome.errors);
}

#[test]
fn an_engine_that_is_off_opens_no_port_and_the_other_serves() {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        for (off, on) in [(OFF_1, Engine::V2), (OFF_2, Engine::V1)] {
            let gateway = Gateway::start(Options::new(backend).with(off.0, off.1));
            let mut side = Side::new(&gateway, on);
            let account = side.account("ada");
            assert_eq!(side.me(&account.access).status, 200);
            let refused = TcpStream::connect(on.other().address(&gateway));
            assert!(refused.is_err(), "{off:?} but something listens");
        }
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    for variable in ["BIFRONS_ENGINES__V1__BIND", "BIFRONS_ENGINES__V2__BIND"] {
        let other = if variable.contains("V1") { "BIFRONS_ENGINES__V2__BIND" } else { "BIFRONS_ENGINES__V1__BIND" };
        let outcome = run_alone(&[(variable, &address), (other, "127.0.0.1:0")], &["serve"], "");
        assert_eq!(outcome.status.code(), Some(1), "{}", outcome.errors);
        assert!(outcome.errors.contains(&address), "{}", outcome.errors);
    }
}

#[test]
fn a_database_that_is_newer_than_the_binary_is_refused_by_name() {
    for_each_backend(&[], |gateway| {
        gateway.stop();
        gateway.query(
            "insert into __diesel_schema_migrations (version, run_on) values ('99991231', '2026-01-01 00:00:00')",
        );
        let outcome = gateway.run(&["serve"], "");
        assert_eq!(outcome.status.code(), Some(1), "{}", outcome.errors);
        assert!(outcome.errors.contains("99991231"), "{}", outcome.errors);
        let outcome = gateway.run(&["migrate"], "");
        assert_eq!(outcome.status.code(), Some(1), "{}", outcome.errors);
    });
}

#[test]
fn a_database_with_a_gap_is_refused_by_name() {
    for_each_backend(&[], |gateway| {
        gateway.stop();
        let versions = gateway.query("select version from __diesel_schema_migrations order by version");
        let versions: Vec<_> = versions.lines().collect();
        // With a single migration there is no gap to make.
        if let [first, _, ..] = versions.as_slice() {
            gateway.query(&format!("delete from __diesel_schema_migrations where version = '{first}'"));
            let outcome = gateway.run(&["serve"], "");
            assert_eq!(outcome.status.code(), Some(1), "{}", outcome.errors);
        }
    });
}

#[test]
fn two_instances_share_everything() {
    for_each_backend(&[], |gateway| {
        if gateway.backend == Backend::Embedded {
            return;
        }
        let twin = gateway.twin(&[]);
        for (here, there) in [(&*gateway, &twin), (&twin, &*gateway)] {
            let account = Side::new(here, Engine::V1).account("ada");
            let mut side = Side::new(there, Engine::V2);
            assert_eq!(side.me(&account.access).status, 200);
            let mut here = Side::new(here, Engine::V2);
            assert_eq!(here.post_as(&account.access, "auth/logout/", &serde_json::json!({})).status, 200);
            crate::support::eventually("the other instance refuses it", std::time::Duration::from_secs(1), || {
                (side.me(&account.access).status == 401).then_some(())
            });
        }
    });
}

#[test]
fn sigterm_ends_it_with_zero() {
    for_each_backend(&[], |gateway| {
        let status = gateway.stop();
        assert_eq!(status.code(), Some(0), "{}", gateway.log());
        gateway.restart();
    });
}
