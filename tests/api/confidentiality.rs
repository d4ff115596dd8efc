//! What somebody finds who has the log, the database and the store.

use crate::Side;
use crate::support::{Engine, Gateway, for_each_backend};
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use serde_json::json;
use sha2::{Digest as _, Sha256};

const PASSWORD: &str = "lantern-orchid-48-gravel";

/// What must be found nowhere, by what it is.
type Secrets = Vec<(String, Vec<u8>)>;

fn add(secrets: &mut Secrets, what: &str, text: &str) {
    secrets.push((what.to_owned(), text.as_bytes().to_vec()));
}

/// Everything that a plain hash of a short code can look like.
fn add_code(secrets: &mut Secrets, code: &str) {
    let hash = Sha256::digest(code.as_bytes());
    secrets.push(("the plain SHA-256 of a code".to_owned(), hash.to_vec()));
    for encoded in [HEXLOWER.encode(&hash), BASE64.encode(&hash), BASE64URL_NOPAD.encode(&hash)] {
        add(secrets, "the plain SHA-256 of a code", &encoded);
    }
}

/// Whether the code stands there by itself, not within a longer number.
fn shows_code(bytes: &[u8], code: &str) -> bool {
    let digit = |position: Option<usize>| position.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    bytes.windows(code.len()).enumerate().any(|(start, window)| {
        window == code.as_bytes() && !digit(start.checked_sub(1)) && !digit(Some(start + code.len()))
    })
}

/// Uses every route once on this engine and gives all that is secret about it.
fn live(gateway: &Gateway, engine: Engine, secrets: &mut Secrets, codes: &mut Vec<String>) {
    let mut side = Side::new(gateway, engine);
    let email = side.email("confidential");
    let (code, challenge) = side.register(&email, PASSWORD);
    let guess = json!({ "email": email, "otp": if code == "424242" { "424243" } else { "424242" } });
    assert_eq!(side.post("auth/verify-otp/", &guess).status, 400);
    let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
    let (access, refresh) = (answer.text("data.access"), answer.text("data.refresh"));
    let login = side.post("auth/login/", &json!({ "email_or_phone": email, "password": PASSWORD }));
    let child = side.refresh(&login.text("data.refresh"));
    side.post("auth/login/", &json!({ "email_or_phone": email, "password": "wrong-lantern-49" }));
    side.post("auth/register/", &json!({ "email": email, "password": "other-lantern-50-pebble" }));
    side.me(&access);
    side.post("auth/token/verify/", &json!({ "token": access }));
    side.post_as(&access, "auth/logout/", &json!({ "refresh": refresh }));
    side.get(&format!("auth/me/?token={access}&email={email}&password={PASSWORD}"), &access);
    let phone = side.phone("confidential");
    side.post("auth/register/", &json!({ "phone": phone, "password": PASSWORD }));
    let waiting_code = gateway.wait_for_text(&phone, 1).code().expect("a code");
    for (what, secret) in [
        ("an e-mail address", email.as_str()),
        ("the local part of an address", email.split('@').next().unwrap_or_default()),
        ("a phone number", phone.as_str()),
        ("a phone number without its country", phone.trim_start_matches("+234")),
        ("a password", PASSWORD),
        ("a wrong password", "wrong-lantern-49"),
        ("the password of another", "other-lantern-50-pebble"),
        ("a challenge", challenge.as_str()),
        ("an access token", access.as_str()),
        ("a refresh token", refresh.as_str()),
    ] {
        add(secrets, what, secret);
    }
    for (what, token) in
        [("an access token", child.text("data.access")), ("a refresh token", child.text("data.refresh"))]
    {
        add(secrets, what, &token);
        add(secrets, &format!("the signature of {what}"), token.rsplit('.').next().unwrap_or_default());
    }
    for code in [code, waiting_code] {
        add_code(secrets, &code);
        codes.push(code);
    }
}

fn assert_absent(bytes: &[u8], secrets: &Secrets, codes: &[String], place: &str) {
    for (what, secret) in secrets {
        let found = bytes.windows(secret.len()).any(|window| window.eq_ignore_ascii_case(secret));
        assert!(!found, "{place} shows {what}: {}", String::from_utf8_lossy(secret));
    }
    for code in codes {
        assert!(!shows_code(bytes, code), "{place} shows the code {code}");
    }
}

#[test]
fn neither_the_log_nor_the_database_nor_the_store_shows_a_secret() {
    for_each_backend(&[("BIFRONS_LOG__LEVEL", "debug")], |gateway| {
        let (mut secrets, mut codes) = (Secrets::new(), Vec::new());
        for engine in Engine::BOTH {
            live(gateway, engine, &mut secrets, &mut codes);
        }
        assert_absent(&gateway.stored_bytes(), &secrets, &codes, "a dump taken while it runs");
        gateway.stop();
        assert_absent(&gateway.stored_bytes(), &secrets, &codes, "a dump");
        // A challenge may be an id that the log of its own request names.
        secrets.retain(|(what, _)| what != "a challenge");
        assert_absent(gateway.log().as_bytes(), &secrets, &codes, "the log");
        if let Some(master) = gateway.variable("BIFRONS_SECRETS__MASTER") {
            assert!(!gateway.log().contains(master));
        }
    });
}

#[test]
fn what_the_gateway_writes_is_for_its_own_user_only() {
    use std::os::unix::fs::PermissionsExt as _;
    for_each_backend(&[], |gateway| {
        let mut side = Side::new(gateway, Engine::V1);
        side.account("ada");
        let directory = gateway.data_directory();
        let mut unseen = vec![directory.clone()];
        while let Some(path) = unseen.pop() {
            let mode = std::fs::metadata(&path).map(|metadata| metadata.permissions().mode() & 0o777);
            if let Ok(mode) = mode {
                let own = path == directory
                    || path.ends_with("mail")
                    || path.extension().is_some_and(|end| end == "eml")
                    || path.ends_with("master.key");
                assert!(!own || mode & 0o077 == 0, "{}: {mode:o}", path.display());
            }
            unseen.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    });
}
