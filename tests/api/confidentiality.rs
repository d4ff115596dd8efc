//! What somebody finds who has the log, the database and the store.

use crate::password_reset;
use crate::support::{Engine, Gateway, IdToken, Request, Side, for_each_backend, unique};
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

/// A character for each byte, so that bytes can be searched as quickly as text.
fn searchable(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect()
}

/// Whether the code stands there by itself, not within a longer number.
fn shows_code(text: &str, code: &str) -> bool {
    let is_part = |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    text.match_indices(code).any(|(start, _)| {
        let before = text.get(..start).and_then(|text| text.chars().next_back());
        let after = text.get(start + code.len()..).and_then(|text| text.chars().next());
        !is_part(before) && !is_part(after)
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
    let id_token = IdToken::of(&format!("google.{email}"));
    assert_eq!(side.send(&id_token.request()).status, 201);
    side.me(&access);
    side.post("auth/token/verify/", &json!({ "token": access }));
    side.post_as(&access, "auth/logout/", &json!({ "refresh": refresh }));
    side.get(&format!("auth/me/?token={access}&email={email}&password={PASSWORD}"), &access);
    reset_and_change(&mut side, secrets, codes);
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
        ("an ID token", id_token.sign().as_str()),
        ("the claims of an ID token", id_token.unsigned().rsplit('.').next().unwrap_or_default()),
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

/// What there is to know of passwords that were forgotten and changed, and of requests with a key.
fn reset_and_change(side: &mut Side<'_>, secrets: &mut Secrets, codes: &mut Vec<String>) {
    let (reset, changed) = ("juniper-marble-61-window", "saffron-bridge-84-lantern");
    let email = side.email("forgetful");
    let key = format!("private-key-{}", unique());
    let with_key = |request: Request| request.header("X-Idempotency-Key", &key);
    let register = Request::post("/api/{v}/auth/register/", &json!({ "email": email, "password": PASSWORD }));
    let registered = side.send(&with_key(register.clone()));
    assert_eq!(side.send(&with_key(register)).header("idempotent-replay"), Some("true"));
    let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
    let challenge = registered.text("data.challenge");
    assert_eq!(side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code })).status, 200);
    let ask = Request::post("/api/{v}/password/reset-request/", &json!({ "email_or_phone": email }));
    assert_eq!(side.send(&with_key(ask)).status, 200);
    let link = password_reset::link_in_mail(side, &email, 2);
    let path = format!("/api/{{v}}/password/reset-confirm/{}/{}/", link.uidb64, link.token);
    for (password, status) in [("password", 400), (reset, 200), (reset, 400)] {
        let answer = side.send(&Request::post(&path, &json!({ "password": password, "password2": password })));
        assert_eq!(answer.status, status, "{}", answer.shown());
    }
    let login = password_reset::login(side, &email, reset);
    let access = login.text("data.access");
    let device = login.all("set-cookie").find_map(|cookie| cookie.strip_prefix("bifrons_device=")).expect("a device");
    let device = device.split(';').next().unwrap_or_default();
    let body = json!({ "current_password": reset, "new_password": changed });
    assert_eq!(side.post_as(&access, "password/change/", &body).status, 200);
    let patch = Request::patch("/api/{v}/auth/me/", &json!({ "city": "Ikeja" })).bearer(&access);
    assert_eq!(side.send(&with_key(patch)).status, 200);
    side.get("auth/sessions/", &access);
    side.get("auth/login-events/", &access);
    let (phone, _) = password_reset::phone_account(side, "forgetful");
    let otp = password_reset::code(side, &phone, 2);
    for (what, secret) in [
        ("an e-mail address", email.as_str()),
        ("a phone number", &phone),
        ("a phone number without its country", phone.trim_start_matches("+234")),
        ("a challenge", &challenge),
        ("a password that was reset", reset),
        ("a password that was changed", changed),
        ("the token of a link", &link.token),
        ("the token of a device", device),
        ("an idempotency key", &key),
        ("an access token", &access),
    ] {
        add(secrets, what, secret);
    }
    let hash = Sha256::digest(link.token.as_bytes());
    secrets.push(("the plain SHA-256 of a token".to_owned(), hash.to_vec()));
    for encoded in [HEXLOWER.encode(&hash), BASE64.encode(&hash), BASE64URL_NOPAD.encode(&hash)] {
        add(secrets, "the plain SHA-256 of a token", &encoded);
    }
    for code in [code, otp] {
        add_code(secrets, &code);
        codes.push(code);
    }
}

fn assert_absent(bytes: &[u8], secrets: &Secrets, codes: &[String], place: &str) {
    let text = searchable(bytes);
    for (what, secret) in secrets {
        let found = text.contains(&searchable(secret));
        assert!(!found, "{place} shows {what}: {}", String::from_utf8_lossy(secret));
    }
    for code in codes {
        assert!(!shows_code(&text, code), "{place} shows the code {code}");
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

#[test]
fn the_search_finds_what_is_there() {
    let bytes = b"\xff\x00Tok-EN\xe9 1234567 042137 x";
    let text = searchable(bytes);
    assert!(text.contains(&searchable(b"tok-en\xe9")) && !text.contains(&searchable(b"tok-en\xe8")));
    assert!(shows_code(&text, "042137") && !shows_code(&text, "123456"));
}
