//! What a client sends besides what it should: cases 31, 32, 34, 39 and 42.

use crate::actors::{address, enter, login, me, person, verify};
use crate::support::{Answer, Client, PASSWORD, Request, Side, eventually};
use crate::target::{STAGING, everywhere, own_worlds};
use serde_json::{Value, json};
use std::time::Duration;

/// What no client decides, with values that would show.
fn privileges() -> Value {
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    json!({
        "is_staff": true, "is_superuser": true, "is_admin": true, "is_verified": true, "is_active": true, "verified": true,
        "email_verified": true, "id": id, "user_id": id, "pk": 1, "pid": "aaaaaaaaaa", "password_hash": "x",
        "auth_provider": "google", "created_at": "2001-01-01T00:00:00Z", "date_joined": "2001-01-01T00:00:00Z",
        "last_login": "2001-01-01T00:00:00Z", "deleted_at": "2001-01-01T00:00:00Z", "groups": [1], "permissions": ["*"],
        "user": { "role": "admin", "is_staff": true }, "__proto__": { "is_staff": true }, "$set": { "role": "admin" }
    })
}

fn merged(base: &Value, more: &Value) -> Value {
    let mut whole = base.clone();
    let fields = more.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
    whole.as_object_mut().expect("an object").extend(fields);
    whole
}

/// An ordinary client, as far as the answer of a sign-in shows.
fn assert_ordinary(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.shown());
    let user = answer.at("data.user");
    for (field, value) in [("role", json!("client")), ("is_staff", json!(false)), ("auth_provider", json!("email"))] {
        assert_eq!(user.get(field), Some(&value), "{user}");
    }
    let text = user.to_string();
    assert!(!text.contains("aaaaaaaaaa") && !text.contains("b302099a8057") && !text.contains("2001-01-01"), "{text}");
}

#[test]
fn case_31_a_registration_applies_no_field_that_is_not_its_own() {
    everywhere(|side| {
        for path in ["/api/{v}/auth/register/", "/auth/register/"] {
            let email = address(side, "climber");
            let body = merged(&json!({ "email": email, "password": PASSWORD }), &privileges());
            let answer = side.send(&Request::post(path, &body));
            assert_eq!(answer.status, 201, "{}", answer.shown());
            let refused = side.send(&login(&email, PASSWORD));
            side.refused(&refused, 403, "account_not_verified");
            let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
            let body =
                merged(&json!({ "email": email, "otp": code }), &merged(&privileges(), &json!({ "role": "admin" })));
            let answer = side.post("auth/verify-otp/", &body);
            assert_ordinary(&answer);
            let body = merged(&json!({ "email_or_phone": email, "password": PASSWORD }), &json!({ "role": "admin" }));
            let answer = side.post("auth/login/", &merged(&body, &privileges()));
            assert_ordinary(&answer);
        }
    });
}

#[test]
fn case_31_a_role_beyond_vendor_cannot_be_asked_for_in_any_spelling() {
    everywhere(|side| {
        let email = address(side, "climber");
        for role in ["staff", "admin", "ADMIN", " admin ", "superuser", "root", "client,admin", "vendor\u{0}"] {
            let body = json!({ "email": email, "password": PASSWORD, "role": role });
            let answer = side.post("auth/register/", &body);
            side.refused(&answer, 400, "validation_error");
        }
        for role in [json!(["admin"]), json!({ "name": "admin" }), json!(3), json!(true)] {
            let answer = side.post("auth/register/", &json!({ "email": email, "password": PASSWORD, "role": role }));
            side.refused(&answer, 400, "validation_error");
        }
        // Said twice: neither the first nor the last is taken.
        let path = "/api/{v}/auth/register/";
        let form = [("email", email.as_str()), ("password", PASSWORD), ("role", "client"), ("role", "admin")];
        assert_eq!(side.send(&Request::new("POST", path).form(&form)).status, 400);
        let twice = format!(r#"{{"email":"{email}","password":"{PASSWORD}","role":"client","role":"admin"}}"#);
        assert_eq!(side.send(&Request::new("POST", path).body("application/json", twice)).status, 400);
        assert!(side.gateway.mails_to(&email).is_empty(), "nothing of it was registered");
    });
}

#[test]
fn case_31_and_32_a_profile_takes_neither_privileges_nor_another_address() {
    everywhere(|side| {
        let account = person(side, "climber");
        let before = side.send(&me(&account.access)).at("data");
        let other = address(side, "elsewhere");
        for path in ["/api/{v}/auth/me/", "/api/{v}/profile/me/"] {
            for own in [json!({}), json!({ "first_name": "Ada" })] {
                let claimed = json!({
                    "role": "admin", "email": other, "phone": "+2348031234567", "email_or_phone": other,
                    "new_email": other, "identifying_info": other, "phone_verified": true, "password": "x"
                });
                let body = merged(&merged(&own, &privileges()), &claimed);
                let answer = side.send(&Request::patch(path, &body).bearer(&account.access));
                assert_eq!(answer.status, 200, "{}", answer.shown());
            }
        }
        let mut after = side.send(&me(&account.access)).at("data");
        assert_eq!(after.get("first_name"), Some(&json!("Ada")));
        after["first_name"] = json!("");
        assert_eq!(after, before, "nothing but the name is changed");
        assert_ordinary(&enter(side, &account));
        let answer = side.send(&login(&other, PASSWORD));
        side.refused(&answer, 401, "invalid_credentials");
        assert!(side.gateway.mails_to(&other).is_empty());
    });
}

#[test]
fn case_32_a_code_verifies_the_registered_address_and_no_other() {
    everywhere(|side| {
        let (own, coveted) = (address(side, "mallory"), address(side, "coveted"));
        let (code, challenge) = side.register(&own, PASSWORD);
        for extra in
            [json!({ "email": coveted }), json!({ "email_or_phone": coveted }), json!({ "phone": "+2348030000001" })]
        {
            let body = merged(&json!({ "challenge": challenge, "otp": code }), &extra);
            let answer = side.post("auth/verify-otp/", &body);
            side.refused(&answer, 400, "validation_error");
        }
        let answer = side.send(&verify(&challenge, &code));
        assert_eq!(answer.at("data.user.email"), json!(own));
    });
}

/// Text of so many characters that no rule calls guessable.
fn long_text(length: usize) -> String {
    "Kestrel.violet-91 meadow/Anchor_orchid:lantern+Gravel 48;".chars().cycle().take(length).collect()
}

#[test]
fn case_34_passwords_of_64_to_128_characters_count_to_the_last_one() {
    everywhere(|side| {
        for length in [64, 72, 73, 128] {
            let stem = long_text(length - 1);
            let email = address(side, "verbose");
            let (code, challenge) = side.register(&email, &format!("{stem}x"));
            assert_eq!(side.send(&verify(&challenge, &code)).status, 200);
            for wrong in [format!("{stem}y"), stem.clone(), format!("{stem}xx"), format!("{stem}X")] {
                let answer = side.send(&login(&email, &wrong));
                assert!([400, 401].contains(&answer.status), "{length}: {}", answer.shown());
            }
            assert_eq!(side.send(&login(&email, &format!("{stem}x"))).status, 200, "{length}");
        }
    });
}

#[test]
fn case_34_two_passwords_with_the_same_72_bytes_are_two_passwords() {
    everywhere(|side| {
        let stem = long_text(72);
        let email = address(side, "verbose");
        let (code, challenge) = side.register(&email, &format!("{stem}-first-tail"));
        assert_eq!(side.send(&verify(&challenge, &code)).status, 200);
        for wrong in [stem.clone(), format!("{stem}-other-tail"), format!("{stem}\u{0}-first-tail")] {
            let answer = side.send(&login(&email, &wrong));
            assert!([400, 401].contains(&answer.status), "{}", answer.shown());
        }
        assert_eq!(side.send(&login(&email, &format!("{stem}-first-tail"))).status, 200);
    });
}

#[test]
fn case_34_the_greatest_length_is_128_characters_and_is_told() {
    everywhere(|side| {
        let email = address(side, "verbose");
        for (length, letter) in [(129, 'k'), (129, '\u{1f98a}'), (400, 'k')] {
            let password: String = long_text(length - 1).chars().chain([letter]).collect();
            let answer = side.post("auth/register/", &json!({ "email": email, "password": password }));
            side.refused(&answer, 400, "validation_error");
            assert!(answer.at("errors.password").to_string().contains("128"), "{}", answer.shown());
            let answer = side.send(&login(&email, &password));
            assert!([400, 401].contains(&answer.status), "{}", answer.shown());
        }
        // Characters, not bytes.
        let wide: String = long_text(64).chars().flat_map(|letter| [letter, '\u{1f98a}']).collect();
        let answer = side.post("auth/register/", &json!({ "email": email, "password": wide }));
        assert_eq!(answer.status, 201, "{}", answer.shown());
    });
}

/// What would begin a record of its own, colour a terminal or end a JSON string.
const BREAKERS: [&str; 9] = [
    "\r\n",
    "\n",
    "\u{1b}[2J\u{1b}[31m",
    "\u{2028}",
    "\u{2029}",
    "\u{85}",
    "\u{9b}31m",
    "\u{202e}",
    "\",\"level\":\"X",
];

#[test]
fn case_39_whatever_a_client_writes_is_one_escaped_record() {
    own_worlds("it reads the log", STAGING, |side| {
        let forged = format!("{{\"level\":\"ERROR\",\"message\":\"forged {}\"}}", side.engine.name());
        let mut sent = 0;
        for breaker in BREAKERS {
            let text = format!("a{breaker}{forged}");
            let escaped: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
            let body = json!({ "email_or_phone": format!("{text}@example.com"), "password": text, "otp": text });
            let mut requests = vec![
                Request::post("/api/{v}/auth/login/", &body),
                Request::post("/api/{v}/auth/verify-otp/", &json!({ "email": text, "otp": text })),
                Request::get(&format!("/{escaped}/?{escaped}={escaped}")),
            ];
            if !breaker.contains(['\r', '\n']) {
                for name in ["User-Agent", "X-Request-ID", "Referer", "X-Forwarded-For", "Origin", "Cookie", "Host"] {
                    requests.push(Request::post("/api/{v}/auth/login/", &body).header(name, &text));
                }
                requests.push(Request::new(&format!("GET{escaped}"), "/health/live"));
            }
            for request in requests {
                let path = request.path.replace("{v}", side.engine.name());
                let request = Request { path, ..request };
                // A head that the parser refuses may be answered by the end of the connection.
                let answer = Client::new(side.engine.address(side.gateway)).try_send(&request);
                sent += u32::from(answer.is_ok());
            }
        }
        assert!(sent > 60, "only {sent} of the requests were answered");
        let id = format!("end-of-{}", side.engine.name());
        side.send_apart(&Request::get("/health/live").header("X-Request-ID", &id));
        let log = eventually("the last record", Duration::from_secs(5), || {
            Some(side.gateway.log()).filter(|log| log.contains(&id) && log.ends_with('\n'))
        });
        for line in log.split_terminator('\n') {
            let record: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("no record ({error}): {line}"));
            let level = record.get("level").and_then(Value::as_str).expect("a level");
            assert!(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level), "{line}");
            let message = record.get("message").or_else(|| record.get("fields")?.get("message")).cloned();
            assert!(!message.is_some_and(|it| it.to_string().contains("forged")), "a forged record: {line}");
        }
        let bare = log.chars().find(|letter| {
            *letter != '\n' && (letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{202e}'))
        });
        assert_eq!(bare, None, "the log has a bare {bare:?}");
        audited_text_is_clean(side);
    });
}

/// The same for what is kept of a client in the audit events.
fn audited_text_is_clean(side: &Side<'_>) {
    let agents = side.gateway.query("select user_agent from audit_events");
    for agent in agents.split('\n') {
        let bare = agent.chars().find(|letter| letter.is_control() || matches!(letter, '\u{2028}' | '\u{202e}'));
        assert_eq!(bare, None, "an audit event has a bare {bare:?}: {}", agent.escape_debug());
    }
}

#[test]
fn case_42_an_address_that_would_break_out_of_a_header_is_refused() {
    everywhere(|side| {
        let own = address(side, "mallory");
        let (name, domain) = own.split_once('@').expect("an address");
        let others = [
            format!("{name}\r\nBcc: all@evil.example\r\n@{domain}"),
            format!("{own}\r\nBcc: all@evil.example"),
            format!("{own}\nSubject: evil"),
            format!("{own},all@evil.example"),
            format!("{own} <all@evil.example>"),
            format!("\"{name}\\\r\n Bcc: all@evil.example\"@{domain}"),
            format!("{name}%0d%0aBcc:all@evil.example@{domain}"),
            format!("{own}\u{0}"),
        ];
        for text in &others {
            let answer = side.post("auth/register/", &json!({ "email": text, "password": PASSWORD }));
            side.refused(&answer, 400, "validation_error");
            let answer = side.post("auth/resend-otp/", &json!({ "email_or_phone": text }));
            assert!([200, 400].contains(&answer.status), "{text:?}: {}", answer.shown());
        }
        // A letter that is asked for afterwards would come after theirs.
        side.register(&own, PASSWORD);
        assert_eq!(side.gateway.mails_to("all@evil.example").len(), 0);
        assert_eq!(side.gateway.mails_to(&own).len(), 1);
    });
}

#[test]
fn case_42_a_name_adds_no_header_no_markup_and_no_end_to_a_letter() {
    everywhere(|side| {
        let email = address(side, "mallory");
        let body = json!({
            "email": email, "password": PASSWORD, "first_name": "A\r\nBcc: all@evil.example\r\n\r\n.\r\n",
            "last_name": "<img src=x onerror=alert(1)>{{ 7*7 }}"
        });
        let answer = side.post("auth/register/", &body);
        if answer.status == 201 {
            let mail = side.gateway.wait_for_mail(&email, 1);
            for forbidden in ["evil.example", "<img", "onerror=", "{{", "\n.\n"] {
                assert!(!mail.raw.contains(forbidden) && !mail.html.contains(forbidden), "{forbidden}: {}", mail.raw);
            }
            for name in ["to", "from", "subject"] {
                assert_eq!(mail.headers.iter().filter(|(other, _)| other == name).count(), 1, "{name}");
            }
            assert!(mail.header("bcc").is_none() && mail.header("cc").is_none());
        } else {
            side.refused(&answer, 400, "validation_error");
        }
    });
}
