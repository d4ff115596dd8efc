//! A new password for whoever has forgotten theirs: with a link, or with a code.

use crate::support::{
    Account, Answer, Backend, Client, Engine, Gateway, PASSWORD, Request, Side, eventually, for_each_backend,
    for_each_world, pause, unique,
};
use crate::verify::at_once;
use crate::{PROMPT, Refused, Story, assert_alike, refuse_all, rows};
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) const NEW: &str = "copper-lantern-58-harbour";

const VALIDATION: &[&str] = &["validation_error"];

const REQUEST: &str = "/api/{v}/password/reset-request/";
const CONFIRM: &str = "/api/{v}/password/reset-confirm/";

/// Links that lead to pages of the operator's own.
const LINKED: Story = Story {
    env: &[
        ("BIFRONS_PUBLIC_URL", "https://auth.example.com/app"),
        ("BIFRONS_LINKS__PASSWORD_RESET", "/new-password?user={uidb64}&key={token}"),
        ("BIFRONS_LINKS__PASSWORD_FORGOTTEN", "/forgotten"),
        ("BIFRONS_OTP__RESEND_INTERVAL", "0s"),
    ],
};

/// What a link proves.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) uidb64: String,
    pub(crate) token: String,
}

impl Link {
    /// The JSON body that sets this password.
    pub(crate) fn sets(&self, password: &str) -> Value {
        json!({ "uidb64": self.uidb64, "token": self.token, "new_password": password })
    }
}

/// Asks for a link and takes it from the mail with this number.
pub(crate) fn link(side: &mut Side<'_>, email: &str, nth: usize) -> Link {
    let answer = side.post("password/reset-request/", &json!({ "email_or_phone": email }));
    assert_eq!(answer.status, 200, "{}", answer.shown());
    link_in_mail(side, email, nth)
}

pub(crate) fn link_in_mail(side: &mut Side<'_>, email: &str, nth: usize) -> Link {
    let text = side.gateway.wait_for_mail(email, nth).text;
    let url = text.split_whitespace().find(|word| word.contains("/password-reset-confirm/"));
    let url = url.unwrap_or_else(|| panic!("no link: {text}"));
    let mut parts = url.rsplit('/');
    let (token, uidb64) = (parts.next().expect("a token").to_owned(), parts.next().expect("a user").to_owned());
    side.stand_in(&token, "<token>");
    side.stand_in(&uidb64, "<uidb64>");
    Link { uidb64, token }
}

/// An account of a number, with its first code spent.
pub(crate) fn phone_account(side: &mut Side<'_>, name: &str) -> (String, Answer) {
    let phone = side.phone(name);
    let answer = side.post("auth/register/", &json!({ "phone": phone, "password": PASSWORD }));
    assert_eq!(answer.status, 201, "{}", answer.shown());
    let code = side.gateway.wait_for_text(&phone, 1).code().expect("a code");
    let answer = side.post("auth/verify-otp/", &json!({ "phone": phone, "otp": code }));
    assert_eq!(answer.status, 200, "{}", answer.shown());
    (phone, answer)
}

/// Asks for a code and takes it from the text message with this number.
pub(crate) fn code(side: &mut Side<'_>, phone: &str, nth: usize) -> String {
    let answer = side.post("password/reset-request/", &json!({ "email_or_phone": phone }));
    assert_eq!(answer.status, 200, "{}", answer.shown());
    side.gateway.wait_for_text(phone, nth).code().expect("a code")
}

pub(crate) fn login(side: &mut Side<'_>, name: &str, password: &str) -> Answer {
    side.post("auth/login/", &json!({ "email_or_phone": name, "password": password }))
}

/// The password was set, and that is all that was done: nobody is signed in.
#[track_caller]
fn assert_set(answer: &Answer) {
    assert_eq!((answer.status, answer.at("success")), (200, json!(true)), "{}", answer.shown());
    assert_eq!(answer.at("data"), Value::Null, "{}", answer.shown());
    let body = answer.json();
    let mut keys: Vec<_> = body.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["data", "errors", "message", "meta", "success"], "nothing else, by any path");
    assert_eq!(answer.all("set-cookie").count(), 0, "{:?}", answer.headers);
    assert!(!answer.shown().contains("eyJ"), "{}", answer.shown());
}

fn assert_enters_only_with(side: &mut Side<'_>, name: &str, password: &str, old: &str) {
    assert_eq!(login(side, name, password).status, 200);
    let answer = login(side, name, old);
    side.refused(&answer, 401, "invalid_credentials");
}

#[track_caller]
fn assert_invalid_token(side: &Side<'_>, answer: &Answer) {
    side.refused(answer, 400, "invalid_token");
    assert!(crate::has_sentences(answer, "token"), "{}", answer.shown());
    assert_eq!(answer.at("data"), Value::Null);
}

#[test]
fn a_link_sets_a_new_password_in_every_form_and_by_every_path_and_signs_nobody_in() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let mut old = PASSWORD.to_owned();
        for form in 0..7 {
            let password = format!("copper-lantern-{form}8-harbour");
            let ask = json!({ "email_or_phone": account.email });
            let ask = match form {
                0 | 4 => Request::post(REQUEST, &ask),
                1 => Request::new("POST", REQUEST).form(&[("email_or_phone", &account.email)]),
                2 => Request::post("/api/{v}/password/reset-request", &json!({ "email": account.email })),
                3 => Request::post("/auth/password-reset/", &ask),
                5 => Request::new("POST", "/auth/password-reset-request").form(&[("email", &account.email)]),
                _ => Request::post("/auth/password-reset-request/", &json!({ "email": account.email.to_uppercase() })),
            };
            let answer = side.send(&ask);
            assert_set(&answer);
            let link = link_in_mail(side, &account.email, 2 + 2 * form);
            let (uidb64, token) = (link.uidb64.as_str(), link.token.as_str());
            let twice = json!({ "password": password, "password2": password });
            let by_path = format!("/api/{{v}}/password/reset-confirm/{uidb64}/{token}/");
            let by_old_path = format!("/auth/password-reset-confirm-email/{uidb64}/{token}");
            let fields = [("uidb64", uidb64), ("token", token), ("new_password", password.as_str())];
            let confirm = match form {
                0 => Request::post(CONFIRM, &link.sets(&password)),
                1 => Request::new("POST", "/api/{v}/password/reset-confirm").form(&fields),
                2 => Request::post(&by_path, &twice),
                3 => Request::new("POST", &by_path).form(&[("password", &password), ("password2", &password)]),
                4 => Request::post("/auth/password-reset-confirm/", &link.sets(&password)),
                5 => Request::post(&format!("{by_old_path}/"), &twice),
                _ => Request::new("POST", &by_old_path).form(&[("password", &password), ("password2", &password)]),
            };
            let answer = side.send(&confirm);
            assert_set(&answer);
            assert_enters_only_with(side, &account.email, &password, &old);
            // The letter that tells of it, so that the next link is the next letter.
            side.gateway.wait_for_mail(&account.email, 3 + 2 * form);
            old = password;
        }
    });
}

#[test]
fn a_code_sets_a_new_password_in_every_form_and_by_every_path_and_signs_nobody_in() {
    for_each_world(PROMPT, |side| {
        let (phone, _) = phone_account(side, "ada");
        let local = format!("0{}", phone.trim_start_matches("+234"));
        let mut old = PASSWORD.to_owned();
        for form in 0..6 {
            let password = format!("copper-lantern-{form}8-harbour");
            let ask = match form {
                0 => Request::post(REQUEST, &json!({ "email_or_phone": phone })),
                1 => Request::post(REQUEST, &json!({ "phone": local })),
                2 => Request::new("POST", REQUEST).form(&[("email_or_phone", &local)]),
                3 => Request::post("/auth/password-reset/", &json!({ "email_or_phone": phone })),
                4 => Request::new("POST", "/auth/password-reset-request/").form(&[("phone", &phone)]),
                _ => Request::post("/auth/password-reset-request/", &json!({ "phone": phone })),
            };
            let answer = side.send(&ask);
            assert_set(&answer);
            let message = side.gateway.wait_for_text(&phone, 2 + 2 * form);
            let otp = message.code().expect("a code");
            assert!(message.text.trim().starts_with(&otp) && message.text.trim().chars().count() <= 160);
            let one = json!({ "email_or_phone": phone, "otp": otp, "new_password": password });
            let two = json!({ "phone": local, "otp": otp, "new_password": password, "new_password_confirm": password });
            let fields = [
                ("phone", phone.as_str()),
                ("otp", &otp),
                ("new_password", &password),
                ("new_password_confirm", &password),
            ];
            let confirm = match form {
                0 => Request::post(CONFIRM, &one),
                1 => Request::new("POST", CONFIRM).form(&[
                    ("email_or_phone", &local),
                    ("otp", &otp),
                    ("new_password", &password),
                ]),
                2 => Request::post("/api/{v}/password/reset-phone-confirm/", &two),
                3 => Request::new("POST", "/api/{v}/password/reset-phone-confirm").form(&fields),
                4 => Request::post("/auth/password-reset-confirm/", &one),
                _ => Request::post("/auth/password-reset-confirm-phone/", &two),
            };
            let answer = side.send(&confirm);
            assert_set(&answer);
            assert_enters_only_with(side, &phone, &password, &old);
            side.gateway.wait_for_text(&phone, 3 + 2 * form);
            old = password;
        }
    });
}

#[test]
fn the_link_comes_from_the_configuration_and_from_no_header() {
    for_each_world(LINKED, |side| {
        let account = side.account("ada");
        for (nth, path) in [REQUEST, "http://evil.example/api/{v}/password/reset-request/"].into_iter().enumerate() {
            let mut request = Request::post(path, &json!({ "email_or_phone": account.email }));
            for name in
                ["Host", "X-Forwarded-Host", "X-Forwarded-Server", "X-Host", "X-Original-Host", "X-Original-URL"]
            {
                request = request.header(name, "evil.example");
            }
            for name in ["Origin", "Referer", "User-Agent", "X-Forwarded-Prefix", "X-Rewrite-URL"] {
                request = request.header(name, "https://evil.example/evil");
            }
            let request = request.header("X-Forwarded-Proto", "evil").header("X-Forwarded-Port", "666");
            let request = request.header("Forwarded", "for=192.0.2.1;host=evil.example;proto=evil");
            // As a proxy is asked, past the look-up of the path in the document.
            let request = Request { path: request.path.replace("{v}", side.engine.name()), ..request };
            let answer = Client::new(side.engine.address(side.gateway)).send(&request);
            assert_eq!(answer.status, 200, "{}", answer.shown());
            let mail = side.gateway.wait_for_mail(&account.email, 2 + nth);
            assert!(!mail.raw.contains("evil") && !mail.text.contains("evil") && !mail.html.contains("evil"));
            let link = mail.text.split_whitespace().find(|word| word.starts_with("http")).expect("a link").to_owned();
            let rest = link.strip_prefix("https://auth.example.com/app/new-password?user=");
            let (uidb64, token) =
                rest.and_then(|rest| rest.split_once("&key=")).expect("the link of the configuration");
            let in_html = link.replace('&', "&amp;");
            assert!(mail.html.contains(&in_html) || mail.html.contains(&link.replace('&', "&#38;")), "{}", mail.html);
            assert_eq!(mail.html.matches("href=").count(), 1, "{}", mail.html);
            let link = Link { uidb64: uidb64.to_owned(), token: token.to_owned() };
            if nth == 1 {
                let answer = side.post("password/reset-confirm/", &link.sets(NEW));
                assert_set(&answer);
                let told = side.gateway.wait_for_mail(&account.email, 4).text;
                assert!(told.contains("https://auth.example.com/app/forgotten"), "{told}");
            }
        }
    });
}

#[test]
fn whoever_may_not_reset_gets_the_same_answer_and_no_letter() {
    for_each_world(PROMPT, |side| {
        let known = side.account("ada");
        let (disabled, deleted) = (side.account("disabled"), side.account("deleted"));
        let waiting = side.email("waiting");
        side.register(&waiting, PASSWORD);
        rows::change_user(side.gateway, &disabled.user_id, "is_active = false");
        let moment = rows::ago(side.gateway, 5);
        rows::change_user(side.gateway, &deleted.user_id, &format!("deleted_at = {moment}"));
        let (phone, answer) = phone_account(side, "phone");
        rows::change_user(side.gateway, &answer.text("data.user_id"), "is_active = false");
        let names = [disabled.email, deleted.email, waiting, side.email("nobody"), phone, side.phone("nobody")];
        let answer = side.post("password/reset-request/", &json!({ "email_or_phone": known.email }));
        assert_set(&answer);
        assert_eq!(rows::audited(side.gateway, &answer), "password_reset_request|success|");
        let first = side.last();
        let mut answers = Vec::new();
        for name in names.iter().chain(&names) {
            answers.push(side.post("password/reset-request/", &json!({ "email_or_phone": name })));
            assert_alike(&first, &side.last());
        }
        let audited = rows::audited_by(side.gateway, &answers);
        assert_eq!(audited, vec!["password_reset_request|failure|not_entitled"; answers.len()]);
        link(side, &known.email, 3);
        pause(Duration::from_millis(200));
        for name in &names {
            let mails = side.gateway.mails_to(name);
            assert!(mails.iter().all(|mail| !mail.text.contains("password-reset-confirm")), "a link for {name}");
            assert!(mails.len() <= 1 && side.gateway.texts_to(name).len() <= 1, "a letter for {name}");
        }
    });
}

#[test]
fn a_code_or_link_of_an_account_that_was_disabled_meanwhile_is_no_good() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let link = link(side, &account.email, 2);
        let (phone, answer) = phone_account(side, "bayo");
        let otp = code(side, &phone, 2);
        rows::change_user(side.gateway, &account.user_id, "is_active = false");
        rows::change_user(side.gateway, &answer.text("data.user_id"), "is_active = false");
        let answer = side.post("password/reset-confirm/", &link.sets(NEW));
        assert_invalid_token(side, &answer);
        let body = json!({ "email_or_phone": phone, "otp": otp, "new_password": NEW });
        let answer = side.post("password/reset-confirm/", &body);
        side.refused(&answer, 400, "invalid_otp");
    });
}

#[test]
fn a_link_is_good_once_and_a_newer_one_kills_it() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let older = link(side, &account.email, 2);
        let newer = link(side, &account.email, 3);
        let answer = side.post("password/reset-confirm/", &older.sets(NEW));
        assert_invalid_token(side, &answer);
        assert_eq!(rows::audited(side.gateway, &answer), "password_reset|failure|invalid_token");
        let answer = side.post("password/reset-confirm/", &newer.sets(NEW));
        assert_set(&answer);
        for link in [&newer, &older] {
            for password in ["granite-orchid-93-kettle", NEW] {
                let answer = side.post("password/reset-confirm/", &link.sets(password));
                assert_invalid_token(side, &answer);
                let path = format!("/api/{{v}}/password/reset-confirm/{}/{}/", link.uidb64, link.token);
                let body = json!({ "password": password, "password2": password });
                let answer = side.send_to_other(&Request::post(&path, &body));
                assert_invalid_token(side, &answer);
            }
        }
        assert_enters_only_with(side, &account.email, NEW, PASSWORD);
    });
}

#[test]
fn a_link_is_no_good_for_another_user_nor_when_anything_about_it_is_other() {
    for_each_world(PROMPT, |side| {
        let (ada, bayo) = (side.account("ada"), side.account("bayo"));
        let of_ada = link(side, &ada.email, 2);
        let of_bayo = link(side, &bayo.email, 2);
        let nobody = data_encoding::BASE64URL_NOPAD.encode(b"01890a5d-ac96-774b-bcce-b302099a8057");
        let (head, last) = of_ada.token.split_at(of_ada.token.len() - 1);
        let other_last = if last == "A" { "Q" } else { "A" };
        for (uidb64, token) in [
            (of_bayo.uidb64.clone(), of_ada.token.clone()),
            (of_ada.uidb64.clone(), of_bayo.token.clone()),
            (nobody, of_ada.token.clone()),
            ("nonsense!".to_owned(), of_ada.token.clone()),
            (of_ada.uidb64.to_lowercase(), of_ada.token.clone()),
            (of_ada.uidb64.clone(), head.to_owned()),
            (of_ada.uidb64.clone(), format!("{head}{other_last}")),
            (of_ada.uidb64.clone(), format!("{}=", of_ada.token)),
            (of_ada.uidb64.clone(), format!("{} ", of_ada.token)),
            (of_ada.uidb64.clone(), format!(" {}", of_ada.token)),
            (of_ada.uidb64.clone(), format!("{}{}", of_ada.token, "A".repeat(5000))),
            (of_ada.uidb64.clone(), "123456".to_owned()),
        ] {
            let body = json!({ "uidb64": uidb64, "token": token, "new_password": NEW });
            let answer = side.post("password/reset-confirm/", &body);
            assert_invalid_token(side, &answer);
        }
        for link in [of_ada, of_bayo] {
            let answer = side.post("password/reset-confirm/", &link.sets(NEW));
            assert_eq!(answer.status, 200, "wrong tries spend nothing: {}", answer.shown());
        }
    });
}

#[test]
fn a_link_and_a_code_are_dead_after_their_time() {
    let env = [("BIFRONS_OTP__LINK_TTL", "1s"), ("BIFRONS_OTP__TTL", "1s"), ("BIFRONS_OTP__RESEND_INTERVAL", "0s")];
    for_each_backend(&env, |gateway| {
        let mut found = Vec::new();
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = side.account("ada");
            let (phone, _) = phone_account(&mut side, "bayo");
            found.push((engine, link(&mut side, &account.email, 2), code(&mut side, &phone, 2), phone));
        }
        pause(Duration::from_millis(1200));
        for (engine, link, otp, phone) in found {
            let mut side = Side::new(gateway, engine);
            let answer = side.post("password/reset-confirm/", &link.sets(NEW));
            assert_invalid_token(&side, &answer);
            let body = json!({ "email_or_phone": phone, "otp": otp, "new_password": NEW });
            let answer = side.post("password/reset-confirm/", &body);
            side.refused(&answer, 400, "invalid_otp");
        }
    });
}

/// An account with an address and a number, both verified, and its id.
fn with_both(side: &mut Side<'_>) -> (Account, String) {
    let (email, phone) = (side.email("both"), side.phone("both"));
    let arguments = ["user", "create", "--role", "client", "--email", &email, "--phone", &phone];
    let outcome = side.gateway.run(&arguments, &format!("{PASSWORD}\n"));
    assert!(outcome.status.success(), "{}", outcome.errors);
    let (access, refresh) = (String::new(), String::new());
    let user_id = outcome.output.trim().to_owned();
    (side.sign_in(&Account { email, password: PASSWORD.to_owned(), user_id, access, refresh }), phone)
}

#[test]
fn one_proof_kills_the_other_and_the_owner_is_told_at_the_address_and_at_the_number() {
    for_each_world(PROMPT, |side| {
        let (account, phone) = with_both(side);
        let unused = link(side, &account.email, 1);
        let otp = code(side, &phone, 1);
        let body = json!({ "email_or_phone": phone, "otp": otp, "new_password": NEW });
        let request = Request::post(CONFIRM, &body).header("User-Agent", "Mozilla/5.0 (X11; Linux) Firefox/140.0 evil");
        let answer = side.send(&request);
        assert_set(&answer);
        let mail = side.gateway.wait_for_mail(&account.email, 2);
        assert_eq!(mail.header("subject"), Some("Your password was changed"));
        assert!(mail.text.contains("Firefox") && !mail.text.contains("evil"), "{}", mail.text);
        assert!(mail.text.contains("http://127.0.0.1:8002/password-reset\n"), "{}", mail.text);
        let text = side.gateway.wait_for_text(&phone, 2).text;
        assert!(text.contains("password was changed") && text.trim().chars().count() <= 160, "{text}");
        for letter in [&mail.text, &mail.html, &text] {
            assert!(!letter.contains(NEW) && !letter.contains(PASSWORD), "{letter}");
        }
        let answer = side.post("password/reset-confirm/", &unused.sets("granite-orchid-93-kettle"));
        assert_invalid_token(side, &answer);

        let otp = code(side, &phone, 3);
        let used = link(side, &account.email, 3);
        let answer = side.post("password/reset-confirm/", &used.sets("granite-orchid-93-kettle"));
        assert_set(&answer);
        let answer = side.post("password/reset-confirm/", &json!({ "phone": phone, "otp": otp, "new_password": NEW }));
        side.refused(&answer, 400, "validation_error");
        let body = json!({ "email_or_phone": phone, "otp": otp, "new_password": NEW });
        let answer = side.post("password/reset-confirm/", &body);
        side.refused(&answer, 400, "invalid_otp");
        side.gateway.wait_for_text(&phone, 4);
        assert_enters_only_with(side, &phone, "granite-orchid-93-kettle", NEW);
    });
}

/// Every token of the account is refused on both engines.
pub(crate) fn assert_over(side: &mut Side<'_>, account: &Account) {
    let me = Request::get("/api/{v}/auth/me/").bearer(&account.access);
    let refresh = Request::post("/api/{v}/auth/token/refresh/", &json!({ "refresh": account.refresh }));
    let verify = Request::post("/api/{v}/auth/token/verify/", &json!({ "token": account.access }));
    for request in [me, refresh, verify] {
        let answer = side.send(&request);
        side.refused(&answer, 401, "token_not_valid");
        let answer = side.send_to_other(&request);
        side.refused(&answer, 401, "token_not_valid");
    }
}

#[test]
fn a_reset_ends_every_session_on_both_engines_and_is_written_down() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let other = side.sign_in(&account);
        let me = Request::get("/api/{v}/auth/me/").bearer(&other.access);
        assert_eq!(side.send_to_other(&me).status, 200, "in every cache");
        let link = link(side, &account.email, 2);
        let answer = side.post("password/reset-confirm/", &link.sets(NEW));
        assert_set(&answer);
        assert_over(side, &account);
        assert_over(side, &other);
        assert_eq!(rows::audited(side.gateway, &answer), "password_reset|success|");
        assert_eq!(rows::audited_of(side.gateway, &answer, &account.user_id), "1");
        for session in [&account, &other].map(|account| rows::session_of(&account.access)) {
            assert_eq!(rows::of_session(side.gateway, &session, "end_reason"), "password_reset");
        }
        assert!(rows::hash_of(side.gateway, &account.user_id).starts_with("$argon2id$"));
    });
}

#[test]
fn a_reset_on_one_instance_ends_the_sessions_on_another_within_a_second() {
    for_each_backend(&[("BIFRONS_OTP__RESEND_INTERVAL", "0s")], |gateway| {
        let twin = gateway.twin(&[]);
        for engine in Engine::BOTH {
            let mut here = Side::new(gateway, engine);
            let account = here.account("ada");
            let mut there: Vec<_> = Engine::BOTH.map(|engine| Side::new(&twin, engine)).into_iter().collect();
            assert!(there.iter_mut().all(|side| side.me(&account.access).status == 200), "in every cache");
            let link = link(&mut here, &account.email, 2);
            assert_eq!(here.post("password/reset-confirm/", &link.sets(NEW)).status, 200);
            for side in &mut there {
                eventually("the other instance refuses it", Duration::from_secs(1), || {
                    (side.me(&account.access).status == 401).then_some(())
                });
                assert_eq!(side.refresh(&account.refresh).status, 401);
                assert_eq!(login(side, &account.email, NEW).status, 200);
            }
        }
    });
}

#[test]
fn a_weak_password_leaves_the_link_unspent_and_every_broken_rule_is_named() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let link = link(side, &account.email, 2);
        let named = Request::patch("/api/{v}/auth/me/", &json!({ "first_name": "Ngozika" })).bearer(&account.access);
        assert_eq!(side.send(&named).status, 200);
        // Short, and their own name.
        let own = "ngozika";
        let path = format!("/api/{{v}}/password/reset-confirm/{}/{}/", link.uidb64, link.token);
        for (password, words) in [
            (own, &["too short", "too similar", "easy to guess"][..]),
            ("password123", &["too common"]),
            ("abcabcabcabc", &["easy to guess"]),
            (&"wT9~ k".repeat(22), &["at most 128"]),
        ] {
            let body = json!({ "password": password, "password2": password });
            for (field, request) in [
                ("new_password", Request::post(CONFIRM, &link.sets(password))),
                ("password", Request::post(&path, &body)),
            ] {
                let answer = side.send(&request);
                side.refused(&answer, 400, "validation_error");
                let sentences = answer.at(&format!("errors.{field}")).to_string();
                assert!(words.iter().all(|word| sentences.contains(word)), "{password}: {}", answer.shown());
                assert_eq!(
                    sentences.matches("This password").count() + sentences.matches("too similar").count(),
                    words.len()
                );
            }
        }
        // To whoever has not proven themselves nothing is told of likeness.
        let wrong = Link { token: "x".repeat(43), ..link.clone() };
        let answer = side.post("password/reset-confirm/", &wrong.sets(own));
        assert_invalid_token(side, &answer);
        let answer = side.send(&Request::post(&path, &json!({ "password": NEW, "password2": "another-one-entirely" })));
        side.refused(&answer, 400, "validation_error");
        assert!(crate::has_sentences(&answer, "password2"), "{}", answer.shown());
        assert_eq!(side.me(&account.access).status, 200, "nothing has happened yet");
        let answer = side.post("password/reset-confirm/", &link.sets(NEW));
        assert_set(&answer);
    });
}

#[test]
fn a_weak_password_leaves_the_code_unspent() {
    for_each_world(PROMPT, |side| {
        let (phone, _) = phone_account(side, "ada");
        let otp = code(side, &phone, 2);
        let digits = phone.trim_start_matches('+');
        for password in ["password123", digits] {
            let body =
                json!({ "phone": phone, "otp": otp, "new_password": password, "new_password_confirm": password });
            let answer = side.post("password/reset-phone-confirm/", &body);
            side.refused(&answer, 400, "validation_error");
            assert!(crate::has_sentences(&answer, "new_password"), "{}", answer.shown());
        }
        let body = json!({ "phone": phone, "otp": otp, "new_password": NEW, "new_password_confirm": NEW });
        let answer = side.post("password/reset-phone-confirm/", &body);
        assert_set(&answer);
    });
}

#[test]
fn a_reset_lifts_the_lock_out() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let (phone, _) = phone_account(side, "bayo");
        for name in [account.email.clone(), phone.clone()] {
            for _ in 0..5 {
                login(side, &name, "wrong-password-1");
            }
            let answer = login(side, &name, PASSWORD);
            side.refused(&answer, 429, "account_locked");
        }
        let link = link(side, &account.email, 2);
        assert_eq!(side.post("password/reset-confirm/", &link.sets(NEW)).status, 200);
        let otp = code(side, &phone, 2);
        let body = json!({ "email_or_phone": phone, "otp": otp, "new_password": NEW });
        assert_eq!(side.post("password/reset-confirm/", &body).status, 200);
        for name in [&account.email, &phone] {
            for _ in 0..4 {
                let answer = login(side, name, PASSWORD);
                side.refused(&answer, 401, "invalid_credentials");
            }
            assert_eq!(login(side, name, NEW).status, 200, "and the count began anew");
        }
    });
}

#[test]
fn of_many_uses_of_one_link_or_code_at_once_exactly_one_succeeds() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let link = link(side, &account.email, 2);
        let (phone, _) = phone_account(side, "bayo");
        let otp = code(side, &phone, 2);
        for (kind, refusal) in [("link", "invalid_token"), ("code", "invalid_otp")] {
            let answers = at_once(16, |n| {
                let password = format!("copper-lantern-{n}8-harbour");
                let body = match kind {
                    "link" => link.sets(&password),
                    _ => json!({ "email_or_phone": phone, "otp": otp, "new_password": password }),
                };
                (password, side.send_apart(&Request::post(CONFIRM, &body)))
            });
            let (set, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|(_, answer)| answer.status == 200);
            assert_eq!(
                set.len(),
                1,
                "{kind}: {:?}",
                answers.iter().map(|(_, answer)| answer.status).collect::<Vec<_>>()
            );
            for (_, answer) in refused {
                side.refused(answer, 400, refusal);
            }
            let name = if kind == "link" { account.email.clone() } else { phone.clone() };
            for (password, answer) in &answers {
                if answer.status == 200 {
                    assert_eq!(login(side, &name, password).status, 200, "{kind}: the one that was told to be set");
                }
            }
        }
        let reset = side.gateway.query(&format!(
            "select count(*) from audit_events where action = 'password_reset' and outcome = 'success' and {}",
            rows::is(side.gateway, "user_id", &account.user_id)
        ));
        assert_eq!(reset, "1");
    });
}

#[test]
fn a_malformed_request_is_refused_and_its_field_named() {
    refuse_all(|side| {
        let (email, phone) = (side.email("nobody"), side.phone("nobody"));
        let ask = |body: Value| Request::post(REQUEST, &body);
        let confirm = |body: Value| Request::post(CONFIRM, &body);
        let by_phone = |body: Value| Request::post("/api/{v}/password/reset-phone-confirm/", &body);
        let by_path = |body: Value| Request::post("/api/{v}/password/reset-confirm/dQ/dA/", &body);
        vec![
            Refused::new("nobody", ask(json!({})), 400, VALIDATION).field("email_or_phone"),
            Refused::new("null", ask(json!({ "email_or_phone": null })), 400, VALIDATION).field("email_or_phone"),
            Refused::new("blank", ask(json!({ "email_or_phone": " " })), 400, VALIDATION).field("email_or_phone"),
            Refused::new("no address", ask(json!({ "email_or_phone": "ada@" })), 400, VALIDATION)
                .field("email_or_phone"),
            Refused::new("no number", ask(json!({ "phone": "12" })), 400, VALIDATION).field("phone"),
            Refused::new("a list", ask(json!({ "email_or_phone": [email] })), 400, VALIDATION).field("email_or_phone"),
            Refused::new("two", ask(json!({ "email": email, "phone": phone })), 400, VALIDATION)
                .field("non_field_errors"),
            Refused::new("no JSON", Request::new("POST", REQUEST).body("application/json", "{"), 400, &["parse_error"]),
            Refused::new(
                "text",
                Request::new("POST", REQUEST).body("text/plain", "x"),
                415,
                &["unsupported_media_type"],
            ),
            Refused::new("method", Request::get(REQUEST), 405, &["method_not_allowed"]),
            Refused::new("method", Request::get("/auth/password-reset/"), 405, &["method_not_allowed"]),
            Refused::new("nothing", confirm(json!({ "new_password": NEW })), 400, VALIDATION).field("non_field_errors"),
            Refused::new("no password", confirm(json!({ "uidb64": "x", "token": "x" })), 400, VALIDATION)
                .field("new_password"),
            Refused::new("no token", confirm(json!({ "uidb64": "x", "new_password": NEW })), 400, VALIDATION)
                .field("token"),
            Refused::new("no user", confirm(json!({ "token": "x", "new_password": NEW })), 400, VALIDATION)
                .field("uidb64"),
            Refused::new("no code", confirm(json!({ "email_or_phone": email, "new_password": NEW })), 400, VALIDATION)
                .field("otp"),
            Refused::new("no name", confirm(json!({ "otp": "123456", "new_password": NEW })), 400, VALIDATION)
                .field("email_or_phone"),
            Refused::new(
                "both",
                confirm(json!({
                    "uidb64": "x", "token": "x", "email_or_phone": email, "otp": "123456", "new_password": NEW
                })),
                400,
                VALIDATION,
            )
            .field("non_field_errors"),
            Refused::new(
                "an unknown account",
                confirm(json!({ "email_or_phone": phone, "otp": "123456", "new_password": NEW })),
                400,
                &["invalid_otp"],
            )
            .field("otp"),
            Refused::new("empty", by_phone(json!({})), 400, VALIDATION).field("new_password_confirm"),
            Refused::new(
                "not the same",
                by_phone(json!({ "phone": phone, "otp": "1", "new_password": NEW, "new_password_confirm": PASSWORD })),
                400,
                VALIDATION,
            )
            .field("new_password_confirm"),
            Refused::new(
                "an address",
                by_phone(json!({ "phone": email, "otp": "1", "new_password": NEW, "new_password_confirm": NEW })),
                400,
                VALIDATION,
            )
            .field("phone"),
            Refused::new("empty", by_path(json!({})), 400, VALIDATION).field("password"),
            Refused::new("one", by_path(json!({ "password": NEW })), 400, VALIDATION).field("password2"),
            Refused::new("wrong", by_path(json!({ "password": NEW, "password2": NEW })), 400, &["invalid_token"])
                .field("token"),
        ]
    });
}

#[test]
fn a_reset_is_done_once_over_a_restart_too() {
    for_each_backend(&[], |gateway| {
        let (account, link, number) = {
            let mut side = Side::new(gateway, Engine::V1);
            let account = side.account("ada");
            let link = link(&mut side, &account.email, 2);
            (account, link, unique())
        };
        gateway.kill();
        gateway.restart();
        let password = format!("copper-lantern-{number}-harbour");
        let mut side = Side::new(gateway, Engine::V2);
        assert_eq!(side.post("password/reset-confirm/", &link.sets(&password)).status, 200, "the link is remembered");
        let answer = side.post("password/reset-confirm/", &link.sets(NEW));
        assert_invalid_token(&side, &answer);
        assert_eq!(login(&mut side, &account.email, &password).status, 200);
    });
}

#[test]
fn the_other_engine_and_the_other_instance_take_the_link() {
    for_each_backend(&[], |gateway| {
        if gateway.backend == Backend::Embedded {
            return across(gateway, gateway);
        }
        let twin = gateway.twin(&[]);
        across(gateway, &twin);
    });
}

fn across(here: &Gateway, there: &Gateway) {
    for engine in Engine::BOTH {
        let mut side = Side::new(here, engine);
        let account = side.account("ada");
        let link = link(&mut side, &account.email, 2);
        let mut other = Side::new(there, engine.other());
        assert_set(&other.post("password/reset-confirm/", &link.sets(NEW)));
        assert_eq!(login(&mut side, &account.email, NEW).status, 200);
    }
}
