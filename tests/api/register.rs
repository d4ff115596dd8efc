//! Registration: who may ask for what, and what nobody learns from it.

use crate::support::{PASSWORD, Request, Side, for_each_world};
use crate::{ORDINARY, PROMPT, Refused, assert_alike, refuse_all};
use serde_json::{Value, json};

const VALIDATION: &[&str] = &["validation_error"];

fn post(body: &Value) -> Request {
    Request::post("/api/{v}/auth/register/", body)
}

/// A registration that differs from a good one in some fields.
fn but(side: &mut Side<'_>, fields: &Value) -> Request {
    let mut body = json!({ "email": side.email("ada"), "password": PASSWORD });
    if let (Some(body), Some(fields)) = (body.as_object_mut(), fields.as_object()) {
        body.extend(fields.clone());
        body.retain(|_, value| value != "<none>");
    }
    post(&body)
}

#[test]
fn a_registration_is_answered_with_where_the_code_went() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let answer = side.send(&post(&json!({
            "email": email, "password": PASSWORD, "password2": PASSWORD, "first_name": "Ada", "last_name": "Obi"
        })));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        assert_eq!(answer.text("data.verification.channel"), "email");
        assert!(!answer.text("data.verification.destination").contains(&email));
        assert_eq!(answer.at("data.verification.expires_in"), json!(300));
        assert!(!answer.text("data.challenge").is_empty());
        assert!(answer.header("set-cookie").is_none(), "nobody is signed in yet");
        let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
        assert!(!answer.shown().contains(&code), "the answer shows the code");
    });
}

#[test]
fn a_phone_number_gets_its_code_by_text_message() {
    for_each_world(ORDINARY, |side| {
        let phone = side.phone("ada");
        let local = format!("0{}", phone.trim_start_matches("+234"));
        let answer = side.send(&post(&json!({ "phone": local, "password": PASSWORD })));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        assert_eq!(answer.text("data.verification.channel"), "sms");
        let code = side.gateway.wait_for_text(&phone, 1).code().expect("a code");
        let (head, tail) = local.split_at(4);
        let spelled = format!("{head} {}-{}", tail.get(..3).unwrap_or_default(), tail.get(3..).unwrap_or_default());
        let answer = side.post("auth/verify-otp/", &json!({ "phone": spelled, "otp": code }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_eq!(answer.text("data.user.phone"), phone);
        assert_eq!(answer.at("data.user.email"), Value::Null);
        for spelling in
            [phone.clone(), local, format!(" {spelled} "), phone.replace('+', "00").replacen("00234", "+234 ", 1)]
        {
            let answer = side.post("auth/login/", &json!({ "email_or_phone": spelling, "password": PASSWORD }));
            assert_eq!(answer.status, 200, "{spelling}: {}", answer.shown());
        }
    });
}

#[test]
fn exactly_one_of_email_and_phone_is_wanted() {
    refuse_all(|side| {
        let both = json!({ "phone": side.phone("ada") });
        vec![
            Refused::new("both", but(side, &both), 400, VALIDATION),
            Refused::new("neither", post(&json!({ "password": PASSWORD })), 400, VALIDATION),
            Refused::new("empty", post(&json!({ "email": "", "phone": "", "password": PASSWORD })), 400, VALIDATION),
        ]
    });
}

#[test]
fn an_address_or_number_that_is_none_is_refused() {
    refuse_all(|side| {
        let mut cases: Vec<_> = [
            "plain",
            "@example.com",
            "a@",
            "a b@example.com",
            "a@@example.com",
            "a@exa mple.com",
            "a@-x-.com.",
            "a@example.com\r\nBcc: b@example.com",
            "a\0@example.com",
            "a@example.com,b@example.com",
            "<a@example.com>",
        ]
        .map(|email| {
            Refused::new(email, post(&json!({ "email": email, "password": PASSWORD })), 400, VALIDATION).field("email")
        })
        .into();
        let long = format!("{}@example.com", "a".repeat(300));
        cases.push(Refused::new("long", but(side, &json!({ "email": long })), 400, VALIDATION).field("email"));
        cases.extend(["12", "+234", "phone", "+1234567890123456789", "0803 123 456x"].map(|phone| {
            Refused::new(phone, post(&json!({ "phone": phone, "password": PASSWORD })), 400, VALIDATION).field("phone")
        }));
        cases
    });
}

#[test]
fn staff_and_admin_cannot_be_asked_for() {
    refuse_all(|side| {
        ["staff", "admin", "superuser", "Client", "vendor,admin"]
            .map(|role| Refused::new(role, but(side, &json!({ "role": role })), 400, VALIDATION).field("role"))
            .into()
    });
}

#[test]
fn a_vendor_becomes_one_and_a_client_is_the_default() {
    for_each_world(ORDINARY, |side| {
        for (asked, role) in
            [(json!({ "role": "vendor" }), "vendor"), (json!({ "role": "client" }), "client"), (json!({}), "client")]
        {
            let email = side.email("ada");
            let mut body = json!({ "email": email, "password": PASSWORD });
            body.as_object_mut()
                .into_iter()
                .for_each(|body| body.extend(asked.as_object().cloned().unwrap_or_default()));
            let answer = side.send(&post(&body));
            assert_eq!(answer.status, 201, "{}", answer.shown());
            let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
            let answer = side.post("auth/verify-otp/", &json!({ "email": email, "otp": code }));
            assert_eq!(answer.text("data.role"), role);
            assert_eq!(answer.text("data.user.role"), role);
        }
    });
}

#[test]
fn a_weak_password_is_refused_with_its_reasons() {
    refuse_all(|side| {
        let own = side.email("adaobi");
        let like = json!({ "email": own, "password": own });
        let mut cases: Vec<_> =
            ["short", "1234567", "12345678", "password", "password123", "qwertyuiop", "aaaaaaaaaaaa", "iloveyou1"]
                .map(|password| {
                    Refused::new(password, but(side, &json!({ "password": password })), 400, VALIDATION)
                        .field("password")
                })
                .into();
        let long = "kestrel-91-".repeat(12);
        cases.push(
            Refused::new("129 letters", but(side, &json!({ "password": long.get(..129) })), 400, VALIDATION)
                .field("password"),
        );
        cases.push(Refused::new("own address", post(&like), 400, VALIDATION).field("password"));
        let huge = "x".repeat(60_000);
        cases.push(
            Refused::new("60 000 letters", but(side, &json!({ "password": huge })), 400, VALIDATION).field("password"),
        );
        cases.push(
            Refused::new("a NUL", but(side, &json!({ "password": "violet\0anchor-72" })), 400, VALIDATION)
                .field("password"),
        );
        cases.push(
            Refused::new("only spaces", but(side, &json!({ "password": " ".repeat(20) })), 400, VALIDATION)
                .field("password"),
        );
        cases
    });
}

#[test]
fn two_passwords_have_to_be_the_same() {
    refuse_all(|side| {
        let other = json!({ "password2": "violet-anchor-73-meadow" });
        vec![Refused::new("other", but(side, &other), 400, VALIDATION)]
    });
}

#[test]
fn names_have_at_most_150_characters() {
    refuse_all(|side| {
        let long = "\u{e9}".repeat(151);
        vec![
            Refused::new("first", but(side, &json!({ "first_name": long })), 400, VALIDATION).field("first_name"),
            Refused::new("last", but(side, &json!({ "last_name": long })), 400, VALIDATION).field("last_name"),
            Refused::new("a NUL", but(side, &json!({ "first_name": "A\0" })), 400, VALIDATION).field("first_name"),
        ]
    });
    for_each_world(ORDINARY, |side| {
        let request = but(side, &json!({ "first_name": "\u{e9}".repeat(150) }));
        assert_eq!(side.send(&request).status, 201);
    });
}

#[test]
fn a_password_of_any_allowed_length_counts_to_its_last_byte() {
    for_each_world(ORDINARY, |side| {
        for length in [64, 72, 73, 128] {
            let password: String =
                "kestrel violet 91 meadow anchor ".chars().cycle().take(length - 1).chain(['Z']).collect();
            let email = side.email("ada");
            let (code, challenge) = side.register(&email, &password);
            side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
            let shorter: String = password.chars().take(length - 1).collect();
            let answer = side.post("auth/login/", &json!({ "email_or_phone": email, "password": shorter }));
            side.refused(&answer, 401, "invalid_credentials");
            let answer =
                side.post("auth/login/", &json!({ "email_or_phone": email, "password": format!("  {password}\t") }));
            assert_eq!(answer.status, 200, "{length}: {}", answer.shown());
        }
    });
}

#[test]
fn fields_that_a_client_may_not_set_are_never_applied() {
    for_each_world(ORDINARY, |side| {
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        let request = but(
            side,
            &json!({
                "is_staff": true, "is_superuser": true, "is_verified": true, "is_active": true, "id": id, "user_id": id,
                "pid": "aaaaaaaaaa", "password_hash": "x", "created_at": "2001-01-01T00:00:00Z", "auth_provider": "google"
            }),
        );
        let body: Value = serde_json::from_slice(request.body.as_deref().unwrap_or_default()).expect("a JSON body");
        let email = body.get("email").and_then(Value::as_str).unwrap_or_default().to_owned();
        assert_eq!(side.send(&request).status, 201);
        let login = json!({ "email_or_phone": email, "password": PASSWORD });
        let answer = side.post("auth/login/", &login);
        side.refused(&answer, 403, "account_not_verified");
        let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
        let answer = side.post("auth/verify-otp/", &json!({ "email": email, "otp": code }));
        assert_eq!(answer.at("data.user.is_staff"), json!(false), "{}", answer.shown());
        assert_eq!(answer.at("data.user.auth_provider"), json!("email"));
        assert_ne!(answer.text("data.user.id"), id);
        assert_ne!(answer.text("data.user.pid"), "aaaaaaaaaa");
        assert!(
            answer.text("data.user.date_joined").starts_with("20")
                && !answer.text("data.user.date_joined").starts_with("2001")
        );
    });
}

#[test]
fn a_taken_address_is_answered_like_a_free_one_and_its_owner_is_told() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let free = side.email("free");
        let register = |email: &str| post(&json!({ "email": email, "password": "harbour-lantern-55-pine" }));
        side.send(&register(&free));
        let answer_for_free = side.last();
        let answer = side.send(&register(&account.email));
        assert_alike(&answer_for_free, &side.last());
        let mail = side.gateway.wait_for_mail(&account.email, 2);
        assert_eq!(mail.code(), None, "the owner gets no code: {}", mail.text);
        let challenge = answer.text("data.challenge");
        let guess = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": "000000" }));
        side.refused(&guess, 400, "invalid_otp");
        let first = side.post("auth/login/", &json!({ "email_or_phone": account.email, "password": PASSWORD }));
        assert_eq!(first.status, 200, "{}", first.shown());
        let second = side
            .post("auth/login/", &json!({ "email_or_phone": account.email, "password": "harbour-lantern-55-pine" }));
        // As it would be told had the address been free.
        side.refused(&second, 403, "account_not_verified");
        assert_eq!(side.me(&account.access).status, 200, "the session goes on");
    });
}

#[test]
fn an_address_in_another_spelling_is_the_same_address() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let shouted = format!("  {} ", account.email.to_uppercase());
        let answer = side.send(&post(&json!({ "email": shouted, "password": PASSWORD })));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        assert_eq!(side.gateway.wait_for_mail(&account.email, 2).code(), None);
        let answer = side.post("auth/login/", &json!({ "email_or_phone": shouted, "password": PASSWORD }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
    });
}

#[test]
fn an_international_domain_is_one_domain_in_both_spellings() {
    for_each_world(ORDINARY, |side| {
        let name = side.email("ada");
        let name = name.split('@').next().unwrap_or_default();
        let (unicode, ascii) = (format!("{name}@b\u{fc}cher.example"), format!("{name}@xn--bcher-kva.example"));
        side.stand_in(&unicode, "<ada@idn>");
        side.stand_in(&ascii, "<ada@idn>");
        let (code, challenge) = {
            let answer = side.send(&post(&json!({ "email": unicode, "password": PASSWORD })));
            assert_eq!(answer.status, 201, "{}", answer.shown());
            let mail = side.gateway.wait_for_mail(&ascii, 1);
            (mail.code().expect("a code"), answer.text("data.challenge"))
        };
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        for spelling in [unicode, ascii.clone(), ascii.to_uppercase()] {
            let answer = side.post("auth/login/", &json!({ "email_or_phone": spelling, "password": PASSWORD }));
            assert_eq!(answer.status, 200, "{spelling}: {}", answer.shown());
        }
    });
}

/// Registers the address many times at once and gives the challenges.
fn register_at_once(side: &Side<'_>, email: &str) -> Vec<String> {
    let request = post(&json!({ "email": email, "password": PASSWORD }));
    let answers = crate::verify::at_once(12, |_| side.send_apart(&request));
    for answer in &answers {
        assert_eq!(answer.status, 201, "{}", answer.shown());
    }
    answers.iter().map(|answer| answer.text("data.challenge")).collect()
}

#[test]
fn many_registrations_of_one_address_at_once_make_one_account_and_one_letter() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let challenges = register_at_once(side, &email);
        let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenges[0], "otp": code }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let answer = side.post("auth/login/", &json!({ "email_or_phone": email, "password": PASSWORD }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_eq!(side.gateway.mails_to(&email).len(), 1);
    });
}

#[test]
fn a_person_who_registers_twice_at_once_keeps_their_password() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        register_at_once(side, &email);
        let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
        let answer = side.post("auth/verify-otp/", &json!({ "email": email, "otp": code }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let answer = side.post("auth/login/", &json!({ "email_or_phone": email, "password": PASSWORD }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
    });
}

#[test]
fn a_password_that_a_stranger_registered_before_or_after_is_no_way_in() {
    for_each_world(PROMPT, |side| {
        let (theirs, own) = ("stranger-falcon-61-mortar", "owner-saffron-83-cradle");
        let email = side.email("ada");
        let register = |password: &str| post(&json!({ "email": email, "password": password }));
        assert_eq!(side.send(&register(theirs)).status, 201);
        let challenge = side.send(&register(own)).text("data.challenge");
        assert_eq!(side.send(&register(theirs)).status, 201);
        let code = side.gateway.wait_for_mail(&email, 3).code().expect("a code");
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        // Told as to anybody who registers an address: that it had an account must not show.
        let answer = side.post("auth/login/", &json!({ "email_or_phone": email, "password": theirs }));
        side.refused(&answer, 403, "account_not_verified");
        let answer = side.post("auth/login/", &json!({ "email_or_phone": email, "password": own }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
    });
}
