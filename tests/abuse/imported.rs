//! Passwords that Django hashed: case 47.

use crate::actors::{address, login};
use crate::support::{Backend, Engine, Gateway, Side};
use crate::target::own_gateways;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

struct Imported {
    django: String,
    hash: String,
    password: String,
    scheme: String,
}

/// One hash of each scheme as the oldest and the newest Django of the fixtures make it by default.
fn imported() -> Vec<Imported> {
    let place = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/django_hashes.jsonl");
    let lines = fs::read_to_string(place).expect("the fixtures");
    let mut found: Vec<Imported> = Vec::new();
    for line in lines.lines() {
        let value: Value = serde_json::from_str(line).expect("a line of JSON");
        let text = |key: &str| value.get(key).and_then(Value::as_str).expect("a text").to_owned();
        let (django, scheme) = (text("django"), text("scheme"));
        let is_end = django.starts_with("1.11") || django.starts_with("6.");
        if is_end && !found.iter().any(|one| one.django == django && one.scheme == scheme) {
            found.push(Imported { hash: text("hash"), password: text("password"), django, scheme });
        }
    }
    assert!(found.len() >= 10, "{} hashes", found.len());
    found
}

/// Makes a user of this hash; whether it was taken, and what was said.
pub fn import(gateway: &Gateway, email: &str, hash: &str) -> (bool, String) {
    let arguments = ["user", "create", "--email", email, "--role", "client", "--django-hash"];
    let outcome = gateway.run(&arguments, &format!("{hash}\n"));
    (outcome.status.success(), format!("{}{}", outcome.output, outcome.errors))
}

#[test]
fn case_47_imported_hashes_sign_in_are_replaced_and_stay_unusable_where_they_were() {
    own_gateways("it imports users with a command", &[], |gateway| {
        let ours = "select count(*) from users where password_hash like '$argon2id$%'";
        for (one, engine) in imported().iter().zip(Engine::BOTH.into_iter().cycle()) {
            let mut side = Side::new(gateway, engine);
            let email = address(&mut side, "imported");
            let (created, told) = import(gateway, &email, &one.hash);
            assert!(created, "{}: {told}", one.hash);
            let before: u32 = gateway.query(ours).parse().expect("a count");
            if one.scheme == "unusable" {
                for guess in [one.password.as_str(), &one.hash] {
                    let answer = side.send(&login(&email, guess));
                    side.refused(&answer, 401, "invalid_credentials");
                }
                continue;
            }
            // Every failure costs as much as the costliest imported hash; the newer Django's are left out for that.
            if one.django.starts_with("1.") {
                let answer = side.send(&login(&email, &format!("{}x", one.password)));
                side.refused(&answer, 401, "invalid_credentials");
            }
            for turn in 1..=2 {
                let answer = side.send(&login(&email, &one.password));
                assert_eq!(answer.status, 200, "{}, sign-in {turn}: {}", one.hash, answer.shown());
                let after: u32 = gateway.query(ours).parse().expect("a count");
                assert_eq!(after, before + 1, "{} is replaced by the first sign-in", one.hash);
            }
        }
    });
}

/// Hashes that ask for more than a sign-in may cost, or that are none.
const REFUSED: [&str; 12] = [
    "pbkdf2_sha256$999999999$c2FsdHNhbHQ$xDnn+tX6EtVlylYKOdHPICdYvCx4CcxPIi0Na+AgtOw=",
    "pbkdf2_sha256$99999999999999999999$c2FsdHNhbHQ$xDnn+tX6EtVlylYKOdHPICdYvCx4CcxPIi0Na+AgtOw=",
    "pbkdf2_sha256$-1$c2FsdHNhbHQ$xDnn+tX6EtVlylYKOdHPICdYvCx4CcxPIi0Na+AgtOw=",
    "pbkdf2_sha1$999999999$c2FsdHNhbHQ$qwYm9dawgliS3KGSk1fYJ38jy20=",
    "argon2$argon2id$v=19$m=4194304,t=4,p=1$c29tZXNhbHRzb21lc2FsdA$uZ8c9ptvM0/7plWsb8JcFQ",
    "argon2$argon2id$v=19$m=1024,t=4294967295,p=1$c29tZXNhbHRzb21lc2FsdA$uZ8c9ptvM0/7plWsb8JcFQ",
    "bcrypt$$2b$31$UbCWAkMKWzyH/8dbreFSQumEu7rz5M5Ps9IVbCUjj20RI4ILKU7py",
    "bcrypt_sha256$$2b$31$2WYbwsPcRXYIDG/gfswXjeYTA7xxOSO/AOj/h2bVYQaoDxHsrpcxm",
    "scrypt$1073741824$c2FsdHNhbHQ$8$1$xDnn+tX6EtVlylYKOdHPICdYvCx4CcxPIi0Na+AgtOw=",
    "scrypt$16384$c2FsdHNhbHQ$4294967295$4294967295$xDnn+tX6EtVlylYKOdHPICdYvCx4CcxPIi0Na+AgtOw=",
    "md5$c2FsdA$0123456789abcdef0123456789abcdef",
    "correct horse battery staple",
];

#[test]
fn case_47_a_hash_that_costs_too_much_or_is_none_is_refused_at_the_import_and_at_the_sign_in() {
    own_gateways("it imports users with a command", &[], |gateway| {
        let (emails, mut planted) = {
            let mut side = Side::new(gateway, Engine::V1);
            (REFUSED.map(|_| address(&mut side, "bomb")), address(&mut side, "planted"))
        };
        for (hash, email) in REFUSED.iter().zip(&emails) {
            let (created, told) = import(gateway, email, hash);
            assert!(!created, "{hash} was taken: {told}");
            assert!(!told.contains(hash), "the hash is shown: {told}");
        }
        // One that came into the table on another way.
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = crate::actors::person(&mut side, "planted");
            planted.clone_from(&account.email);
            let id = match gateway.backend {
                Backend::PostgresRedis => format!("'{}'", account.user_id),
                Backend::Embedded => format!("x'{}'", account.user_id.replace('-', "")),
            };
            for hash in REFUSED {
                gateway.query(&format!("update users set password_hash = '{hash}' where id = {id}"));
                let start = Instant::now();
                let answer = side.send(&login(&planted, &account.password));
                assert!([401, 429].contains(&answer.status), "{hash}: {}", answer.shown());
                assert!(start.elapsed() < Duration::from_secs(3), "{hash} took {:?}", start.elapsed());
                assert_eq!(side.send(&crate::support::Request::get("/health/live")).status, 200);
            }
        }
    });
}
