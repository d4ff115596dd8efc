//! Accounts that were imported with the hash that Django had made of their password.

use crate::password_reset::{NEW, link, login};
use crate::rows;
use crate::support::{Engine, Gateway, Outcome, Side, for_each_backend};
use serde_json::Value;

/// What Django made: the hash and its password.
fn made_by_django() -> Vec<(String, String)> {
    let fixtures = include_str!("../fixtures/django_hashes.jsonl");
    let text = |line: &Value, key: &str| line.get(key).and_then(Value::as_str).expect("a text").to_owned();
    let lines = fixtures.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    lines.map(|line| (text(&line, "hash"), text(&line, "password"))).collect()
}

/// One whose hash begins so.
fn beginning(with: &str) -> (String, String) {
    let found = made_by_django().into_iter().find(|(hash, _)| hash.starts_with(with));
    found.unwrap_or_else(|| panic!("no {with} in the fixtures"))
}

fn import(gateway: &Gateway, email: &str, hash: &str) -> Outcome {
    gateway.run(&["user", "create", "--email", email, "--role", "client", "--django-hash"], &format!("{hash}\n"))
}

#[test]
fn a_hash_of_every_kind_signs_in_and_is_replaced_at_the_first_sign_in() {
    for_each_backend(&[], |gateway| {
        let kinds = [
            "pbkdf2_sha256$1000$",
            "pbkdf2_sha1$1$",
            "bcrypt_sha256$$2b$04$",
            "bcrypt$$2b$05$",
            "scrypt$1024$",
            "argon2$argon2id$v=19$m=1024,",
            "argon2$argon2i$",
        ];
        for (n, kind) in kinds.into_iter().enumerate() {
            let (hash, password) = beginning(kind);
            let engine = if n % 2 == 0 { Engine::V1 } else { Engine::V2 };
            let mut side = Side::new(gateway, engine);
            let email = side.email("imported");
            let outcome = import(gateway, &email, &hash);
            assert!(outcome.status.success(), "{kind}: {}", outcome.errors);
            assert!(!outcome.output.contains(&hash) && !outcome.errors.contains(&hash));
            let user = outcome.output.trim().to_owned();
            assert_eq!(rows::hash_of(gateway, &user), hash, "as Django made it");
            for wrong in ["wrong-password-1", hash.as_str()] {
                let answer = login(&mut side, &email, wrong);
                side.refused(&answer, 401, "invalid_credentials");
            }
            assert_eq!(rows::hash_of(gateway, &user), hash, "a wrong password replaces nothing");
            let answer = login(&mut side, &email, &password);
            assert_eq!(answer.status, 200, "{kind}: {}", answer.shown());
            let new = rows::hash_of(gateway, &user);
            assert!(new.starts_with("$argon2id$v=19$m=1024,t=1,p=1$"), "{kind}: {new}");
            let mut other = Side::new(gateway, engine.other());
            assert_eq!(login(&mut other, &email, &format!(" {password} ")).status, 200, "{kind}");
            assert_eq!(rows::hash_of(gateway, &user), new, "once");
        }
    });
}

#[test]
fn the_costs_that_django_has_had_by_default_are_within_the_bounds() {
    for_each_backend(&[], |gateway| {
        let mut side = Side::new(gateway, Engine::V2);
        for kind in
            ["pbkdf2_sha256$36000$", "pbkdf2_sha256$600000$", "bcrypt_sha256$$2b$12$", "argon2$argon2id$v=19$m=102400"]
        {
            let (hash, password) = beginning(kind);
            let email = side.email("imported");
            assert!(import(gateway, &email, &hash).status.success(), "{kind}");
            assert_eq!(login(&mut side, &email, &password).status, 200, "{kind}");
        }
        for kind in ["pbkdf2_sha256$1500000$", "pbkdf2_sha256$1200000$", "scrypt$16384$"] {
            let email = side.email("imported");
            let outcome = import(gateway, &email, &beginning(kind).0);
            assert!(outcome.status.success(), "{kind}: {}", outcome.errors);
        }
    });
}

#[test]
fn what_is_no_hash_of_django_s_or_asks_for_too_much_is_refused() {
    for_each_backend(&[], |gateway| {
        let mut side = Side::new(gateway, Engine::V1);
        let email = side.email("imported");
        let (good, password) = beginning("pbkdf2_sha256$1000$");
        let [bcrypt, scrypt, argon2] =
            ["bcrypt$$2b$05$", "scrypt$1024$", "argon2$argon2id$v=19$m=1024,"].map(|kind| beginning(kind).0);
        for bad in [
            good.replace("$1000$", "$999999999$"),
            good.replace("$1000$", "$99999999999999999999$"),
            bcrypt.replace("$05$", "$31$"),
            scrypt.replace("$1024$", "$1073741824$"),
            argon2.replace("m=1024", "m=4194304"),
            argon2.replace("t=3", "t=4000000"),
            good.replace("$1000$", "$0$"),
            good.replace("$1000$", "$-1$"),
            good.replace("$1000$", "$many$"),
            "pbkdf2_sha256$1000$".to_owned(),
            "md5$salt$5f4dcc3b5aa765d61d8327deb882cf99".to_owned(),
            "plain-password".to_owned(),
            "x".repeat(3000),
        ] {
            let outcome = import(gateway, &email, &bad);
            assert_eq!(outcome.status.code(), Some(1), "{bad}: {}", outcome.output);
            assert!(outcome.errors.contains("hash"), "{bad}: {}", outcome.errors);
            assert_eq!(outcome.errors.lines().count(), 1, "one sentence: {}", outcome.errors);
            assert!(!outcome.errors.contains(&bad), "{}", outcome.errors);
        }
        let none = import(gateway, &email, "");
        assert_eq!(none.status.code(), Some(1), "{}", none.output);
        let outcome = import(gateway, &email, &good);
        assert!(outcome.status.success(), "nothing was made before: {}", outcome.errors);
        assert_eq!(login(&mut side, &email, &password).status, 200);
    });
}

#[test]
fn an_unusable_password_lets_nobody_in_and_can_be_reset() {
    for_each_backend(&[], |gateway| {
        for (engine, unusable) in [(Engine::V1, beginning("!").0), (Engine::V2, "!".to_owned())] {
            let mut side = Side::new(gateway, engine);
            let email = side.email("imported");
            let outcome = import(gateway, &email, &unusable);
            assert!(outcome.status.success(), "{}", outcome.errors);
            for password in [unusable.as_str(), unusable.trim_start_matches('!'), "correct horse battery"] {
                if !password.is_empty() {
                    let answer = login(&mut side, &email, password);
                    side.refused(&answer, 401, "invalid_credentials");
                }
            }
            let link = link(&mut side, &email, 1);
            assert_eq!(side.post("password/reset-confirm/", &link.sets(NEW)).status, 200);
            assert_eq!(login(&mut side, &email, NEW).status, 200);
        }
    });
}
