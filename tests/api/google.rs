//! Signing in with a Google account: who is let in, as whom, and what becomes of an account that was there before.

use crate::devices::device_of;
use crate::limits::client;
use crate::login::keys;
use crate::login_events::history;
use crate::password_reset::{NEW, link, login};
use crate::support::{
    Answer, Backend, CLIENT_ID, Engine, Gateway, Google, GoogleKey, IdToken, Keys, Options, PASSWORD, Request, Side,
    Story, eventually, for_each_backend, for_each_world, google, run_alone, unique,
};
use crate::verify::at_once;
use crate::{ORDINARY, ORIGIN, PROMPT, Refused, assert_alike, refuse_all, rows};
use serde_json::{Value, json};
use std::time::Duration;

const OTHER_CLIENT: &str = "client-2.apps.googleusercontent.com";

/// Whoever has proven an address to Google has proven it here.
const VERIFIED: Story = Story { env: &[("BIFRONS_GOOGLE__LINKING", "verified")] };

const NONCE: Story = Story { env: &[("BIFRONS_GOOGLE__REQUIRE_NONCE", "true")] };

const TWO_CLIENTS: Story = Story {
    env: &[("BIFRONS_GOOGLE__CLIENT_IDS", "client-1.apps.googleusercontent.com,client-2.apps.googleusercontent.com")],
};

const OFF: Story = Story { env: &[("BIFRONS_GOOGLE__CLIENT_IDS", "")] };

/// Limits, and a proxy that is believed.
const FIVE: Story = Story { env: &[("BIFRONS_LIMITS__BURST", "5/hour"), ("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32")] };

/// An address at this domain that nobody else has.
fn address_at(side: &mut Side<'_>, name: &str, domain: &str) -> String {
    let email = format!("{name}.{}{:05}@{domain}", side.engine.name(), unique());
    side.stand_in(&email, &format!("<{name}@>"));
    email
}

/// A person whom nobody knows yet.
fn person(side: &mut Side<'_>, name: &str) -> IdToken {
    IdToken::of(&side.email(name))
}

fn email_of(token: &IdToken) -> String {
    token.claims.get("email").and_then(Value::as_str).expect("an address").to_owned()
}

#[track_caller]
fn enter(side: &mut Side<'_>, token: &IdToken, status: u16) -> Answer {
    let answer = side.send(&token.request());
    assert_entered(&answer, status);
    answer
}

#[track_caller]
fn assert_entered(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.shown());
    let message = if status == 201 { "Account created successfully." } else { "Login successful." };
    assert_eq!(answer.at("message"), json!(message));
    assert_eq!(answer.at("data.is_verified"), json!(true), "{}", answer.shown());
}

#[track_caller]
fn assert_refused(side: &Side<'_>, answer: &Answer) {
    side.refused(answer, 401, "invalid_google_token");
    assert_eq!(answer.all("set-cookie").count(), 0, "{:?}", answer.headers);
}

/// A verified account of this address with a password; its first letter had the code.
fn verified(side: &mut Side<'_>, email: &str) -> Answer {
    let (code, challenge) = side.register(email, PASSWORD);
    let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
    assert_eq!(answer.status, 200, "{}", answer.shown());
    answer
}

fn lock(side: &mut Side<'_>, email: &str) {
    for _ in 0..5 {
        let answer = login(side, email, "wrong-password-1");
        side.refused(&answer, 401, "invalid_credentials");
    }
}

#[test]
fn a_new_person_gets_a_verified_account_and_is_signed_in() {
    for_each_world(ORDINARY, |side| {
        let ada = person(side, "ada");
        let answer = enter(side, &ada, 201);
        let user_id = answer.text("data.user_id");
        for (path, value) in [
            ("data.token_type", "Bearer"),
            ("data.identifying_info", &email_of(&ada)),
            ("data.role", "client"),
            ("data.user.id", &user_id),
            ("data.user.email", &email_of(&ada)),
            ("data.user.first_name", "Ada"),
            ("data.user.last_name", "Obi"),
            ("data.user.avatar", "https://lh3.googleusercontent.com/a/portrait=s96-c"),
            ("data.user.auth_provider", "google"),
        ] {
            assert_eq!(answer.at(path), json!(value), "{path}");
        }
        assert_eq!(answer.at("data.expires_in"), json!(900));
        assert_eq!(answer.at("data.user.is_staff"), json!(false));
        assert_eq!(answer.at("data.user.phone"), Value::Null);
        let account = side.account("bayo");
        let classic = login(side, &account.email, PASSWORD);
        for path in ["data", "data.user"] {
            assert_eq!(keys(&answer.at(path)), keys(&classic.at(path)), "login data as of any sign-in");
        }
        let refresh = answer.text("data.refresh");
        assert_eq!(answer.all("set-cookie").count(), 2, "{:?}", answer.headers);
        assert!(answer.all("set-cookie").any(|cookie| cookie.contains(&refresh)), "{:?}", answer.headers);
        assert_eq!(side.me(&answer.text("data.access")).status, 200);
        assert_eq!(side.refresh(&refresh).status, 200);

        let again = enter(side, &ada.again(), 200);
        assert_eq!(again.text("data.user_id"), user_id);
        let again = side.send_to_other(&ada.again().request());
        assert_entered(&again, 200);
        assert_eq!(again.text("data.user_id"), user_id);
        assert!(side.gateway.mails_to(&email_of(&ada)).iter().all(|mail| mail.code().is_none()), "nothing to prove");
    });
}

#[test]
fn names_and_a_picture_that_no_profile_holds_keep_nobody_out() {
    for_each_world(ORDINARY, |side| {
        let long = "\u{e9}".repeat(400);
        let url = format!("https://example.com/{}", "x".repeat(3000));
        for (claim, value) in [
            ("given_name", json!(long)),
            ("family_name", json!(long)),
            ("given_name", json!("Ada\r\nBcc: eve@example.com\u{0}\u{202e}")),
            ("given_name", json!(7)),
            ("family_name", Value::Null),
            ("picture", json!(url)),
            ("picture", json!("javascript:alert(1)")),
            ("picture", json!(["https://example.com/a"])),
        ] {
            let ada = person(side, "ada").with(claim, value);
            let answer = enter(side, &ada, 201);
            for name in ["first_name", "last_name"].map(|name| answer.text(&format!("data.user.{name}"))) {
                assert!(name.chars().count() <= 150 && !name.contains(char::is_control), "{claim}: {name:?}");
                assert!(!name.contains('\u{202e}'), "{claim}: {name:?}");
            }
            let avatar = answer.text("data.user.avatar");
            assert!(avatar.is_empty() || avatar.starts_with("https://"), "{claim}: {avatar}");
        }
        let bare = person(side, "ada").without("given_name").without("family_name").without("picture");
        let answer = enter(side, &bare, 201);
        for field in ["first_name", "last_name", "avatar"] {
            assert_eq!(answer.at(&format!("data.user.{field}")), json!(""), "{field}");
        }
    });
}

#[test]
fn what_google_says_later_changes_no_profile() {
    for_each_world(ORDINARY, |side| {
        let ada = person(side, "ada");
        let access = enter(side, &ada, 201).text("data.access");
        let own = json!({ "first_name": "Adaeze", "last_name": "" });
        assert_eq!(side.send(&Request::patch("/api/{v}/auth/me/", &own).bearer(&access)).status, 200);
        let answer =
            enter(side, &ada.again().with("given_name", "Mallory").with("picture", "https://example.com/m"), 200);
        let shown = ["first_name", "last_name", "avatar"].map(|field| answer.text(&format!("data.user.{field}")));
        assert_eq!(shown, ["Adaeze", "", "https://lh3.googleusercontent.com/a/portrait=s96-c"]);
    });
}

#[test]
fn a_role_counts_for_a_new_account_only() {
    for_each_world(ORDINARY, |side| {
        for role in ["client", "vendor"] {
            let ada = person(side, "ada");
            let answer = side.send(&ada.request_with("role", role));
            assert_entered(&answer, 201);
            assert_eq!((answer.text("data.role"), answer.text("data.user.role")), (role.to_owned(), role.to_owned()));
            let other = if role == "client" { "vendor" } else { "client" };
            let answer = side.send(&ada.again().request_with("role", other));
            assert_entered(&answer, 200);
            assert_eq!(answer.text("data.role"), role);
        }
    });
    refuse_all(|side| {
        let ada = person(side, "ada");
        ["staff", "admin", "Vendor", "root", "client,admin"]
            .map(|role| Refused::new(role, ada.request_with("role", role), 400, &["validation_error"]).field("role"))
            .into()
    });
    for_each_world(ORDINARY, |side| {
        let ada = person(side, "ada");
        let answer = side.send(&ada.request_with("role", "admin"));
        side.refused(&answer, 400, "validation_error");
        assert_entered(&side.send(&ada.request()), 201);
    });
}

#[test]
fn a_request_without_a_token_names_the_field() {
    refuse_all(|_| {
        [json!({}), json!({ "id_token": null }), json!({ "id_token": "" })]
            .into_iter()
            .chain([json!({ "id_token": ["x"] }), json!({ "token": "x" })])
            .map(|body| Refused::new("no id_token", google(&body), 400, &["validation_error"]).field("id_token"))
            .collect()
    });
}

#[test]
fn what_is_no_token_is_refused_with_the_one_sentence_and_audited() {
    for_each_world(ORDINARY, |side| {
        let ada = person(side, "ada");
        let good = ada.sign();
        let (unsigned, signature) = good.rsplit_once('.').expect("a signature");
        let padded = ada.with("pad", "x".repeat(7000));
        assert!(padded.sign().len() > 8192, "{}", padded.sign().len());
        let mut first = None;
        for token in [
            "x".to_owned(),
            "..".to_owned(),
            "a.b.c".to_owned(),
            "eyJhbGciOiJSUzI1NiJ9.e30.AA".to_owned(),
            unsigned.to_owned(),
            format!("{unsigned}."),
            format!("{good}."),
            format!("{good}.{signature}"),
            format!("{good}="),
            good.replacen("eyJ", "eyI", 1),
            padded.sign(),
            "x".repeat(8193),
        ] {
            let answer = side.send(&google(&json!({ "id_token": token })));
            assert_refused(side, &answer);
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert_eq!(rows::audited(side.gateway, &answer), "google|failure|invalid_google_token");
            let first = first.get_or_insert_with(|| side.last());
            assert_alike(first, &side.last());
        }
        let answer = side.send(&google(&json!({ "id_token": "x".repeat(70_000) })));
        side.refused(&answer, 413, "payload_too_large");
        enter(side, &ada, 201);
    });
}

#[test]
fn a_form_is_read_too_and_the_older_paths_have_no_such_route() {
    for_each_world(ORDINARY, |side| {
        let (ada, bayo) = (person(side, "ada"), person(side, "bayo"));
        let form = [("id_token", ada.sign()), ("role", "vendor".to_owned())];
        let form: Vec<_> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = side.send(&Request::new("POST", "/api/{v}/auth/google/").form(&form));
        assert_entered(&answer, 201);
        assert_eq!(answer.text("data.role"), "vendor");
        let alias = Request { path: "/auth/google/".to_owned(), ..bayo.request() };
        let answer = side.send(&alias);
        side.refused(&answer, 404, "not_found");
        let bare = Request { path: "/api/{v}/auth/google".to_owned(), ..bayo.request() };
        assert_entered(&side.send(&bare), 201);
    });
}

#[test]
fn a_page_of_an_allowed_origin_gets_the_cookies() {
    for_each_world(ORDINARY, |side| {
        let request = person(side, "ada").request().header("Origin", ORIGIN);
        let answer = side.send(&request);
        assert_entered(&answer, 201);
        assert_eq!(answer.all("set-cookie").count(), 2, "{:?}", answer.headers);
    });
}

#[test]
fn every_configured_client_is_accepted_and_no_other() {
    for_each_world(TWO_CLIENTS, |side| {
        for id in [CLIENT_ID, OTHER_CLIENT] {
            let ada = person(side, "ada").with("aud", id);
            enter(side, &ada, 201);
        }
        let both = format!("{CLIENT_ID},{OTHER_CLIENT}");
        for aud in [json!([CLIENT_ID, OTHER_CLIENT]), json!(both), json!("client-3.apps.googleusercontent.com")] {
            let request = person(side, "ada").with("aud", aud).request();
            let answer = side.send(&request);
            assert_refused(side, &answer);
        }
    });
}

#[test]
fn a_token_is_good_once_on_both_engines() {
    for_each_world(ORDINARY, |side| {
        let ada = person(side, "ada");
        enter(side, &ada, 201);
        for answer in [side.send(&ada.request()), side.send_to_other(&ada.request())] {
            assert_refused(side, &answer);
        }
        // The signature is the same to whoever decodes it more kindly.
        let spaced = google(&json!({ "id_token": format!(" {} ", ada.sign()) }));
        let answer = side.send(&spaced);
        assert_refused(side, &answer);
        let answer = side.send(&ada.request_with("role", "vendor"));
        assert_refused(side, &answer);
        enter(side, &ada.again(), 200);
    });
}

#[test]
fn a_nonce_has_to_be_the_one_of_the_request() {
    for_each_world(ORDINARY, |side| {
        let ada = person(side, "ada").with("nonce", "n-0S6_WzA2Mj");
        for request in [
            ada.request(),
            ada.request_with("nonce", "n-0S6_WzA2M"),
            ada.request_with("nonce", "N-0S6_WzA2Mj"),
            ada.request_with("nonce", ""),
            ada.request_with("nonce", Value::Null),
            ada.without("nonce").request_with("nonce", "n-0S6_WzA2Mj"),
            ada.with("nonce", "").request_with("nonce", "n-0S6_WzA2Mj"),
            ada.with("nonce", 7).request_with("nonce", "7"),
            ada.with("nonce", json!(["n-0S6_WzA2Mj"])).request_with("nonce", "n-0S6_WzA2Mj"),
        ] {
            let answer = side.send(&request);
            assert_refused(side, &answer);
        }
        let answer = side.send(&ada.request_with("nonce", "n-0S6_WzA2Mj"));
        assert_entered(&answer, 201);
        let bayo = person(side, "bayo");
        let answer = side.send(&bayo.request_with("nonce", Value::Null));
        assert_entered(&answer, 201);
    });
}

#[test]
fn a_nonce_can_be_required() {
    for_each_world(NONCE, |side| {
        let ada = person(side, "ada");
        let named = ada.with("nonce", "n-1");
        for request in [
            ada.request(),
            ada.request_with("nonce", ""),
            ada.request_with("nonce", "n-1"),
            named.request(),
            ada.with("nonce", "").request_with("nonce", ""),
        ] {
            let answer = side.send(&request);
            assert_refused(side, &answer);
        }
        assert_entered(&side.send(&named.request_with("nonce", "n-1")), 201);
    });
}

#[test]
fn clocks_may_differ_a_little() {
    for_each_world(ORDINARY, |side| {
        let now = crate::support::now();
        let ada = person(side, "ada");
        enter(side, &ada.with("iat", now + 30), 201);
        enter(side, &ada.again().with("iat", now - 3000).with("exp", now + 20), 200);
        for (claim, value) in [("iat", now + 300), ("exp", now - 10), ("exp", 0)] {
            let answer = side.send(&ada.again().with(claim, value).request());
            assert_refused(side, &answer);
        }
    });
}

#[test]
fn the_history_and_the_audit_events_tell_of_it() {
    for_each_world(ORDINARY, |side| {
        let ada = person(side, "ada");
        let answer = enter(side, &ada, 201);
        assert!(rows::audited(side.gateway, &answer).lines().any(|line| line == "google|success|"));
        let answer = enter(side, &ada.again(), 200);
        assert_eq!(rows::audited(side.gateway, &answer), "google|success|");
        let access = answer.text("data.access");
        assert_eq!(history(side, &access), ["google success", "google success"]);
        assert_refused(side, &side.send_apart(&ada.request()));
        rows::change_user(side.gateway, &answer.text("data.user_id"), "is_active = false");
        let answer = side.send(&ada.again().request());
        side.refused(&answer, 403, "account_disabled");
        assert_eq!(rows::audited(side.gateway, &answer), "google|failure|disabled");
    });
}

#[test]
fn both_spellings_of_googles_name_are_the_same_google() {
    for_each_world(ORDINARY, |side| {
        let ada = person(side, "ada").with("iss", "accounts.google.com");
        let first = enter(side, &ada, 201);
        let second = enter(side, &ada.again().with("iss", "https://accounts.google.com"), 200);
        assert_eq!(first.text("data.user_id"), second.text("data.user_id"));
    });
}

#[test]
fn a_person_is_who_google_says_whatever_their_address_is_now() {
    for_each_world(ORDINARY, |side| {
        let ada = person(side, "ada");
        let first = enter(side, &ada, 201);
        let other = side.account("bayo");
        let free = side.email("renamed");
        for email in [free, other.email.clone(), other.email.to_uppercase()] {
            let answer = enter(side, &ada.again().with("email", email).with("hd", "example.com"), 200);
            assert_eq!(answer.text("data.user_id"), first.text("data.user_id"));
            assert_eq!(answer.text("data.user.email"), email_of(&ada), "ours stays");
        }
        assert_eq!(login(side, &other.email, PASSWORD).status, 200);
    });
}

#[test]
fn another_google_account_with_the_same_address_is_a_conflict() {
    for_each_world(VERIFIED, |side| {
        let ada = IdToken::of(&address_at(side, "ada", "gmail.com"));
        let first = enter(side, &ada, 201);
        for email in [email_of(&ada), email_of(&ada).to_uppercase()] {
            let other = IdToken::of(&email).with("hd", "gmail.com");
            let answer = side.send(&other.request());
            side.refused(&answer, 409, "conflict");
            assert_eq!(answer.all("set-cookie").count(), 0);
        }
        let again = enter(side, &ada.again(), 200);
        assert_eq!(again.text("data.user_id"), first.text("data.user_id"));
        assert_eq!(side.me(&first.text("data.access")).status, 200);
        // A sub is compared letter by letter.
        let lower = person(side, "bayo").with("sub", format!("abc{}", ada.sub()));
        let upper = person(side, "chidi").with("sub", format!("ABC{}", ada.sub()));
        assert_ne!(enter(side, &lower, 201).text("data.user_id"), enter(side, &upper, 201).text("data.user_id"));
    });
}

/// A person with a password whom Google, by this claim, may speak for.
#[derive(Clone, Copy)]
struct Spoken {
    domain: &'static str,
    hd: Option<&'static str>,
}

#[test]
fn google_links_the_accounts_of_the_addresses_that_it_speaks_for() {
    for_each_world(ORDINARY, |side| {
        for Spoken { domain, hd } in [
            Spoken { domain: "gmail.com", hd: None },
            Spoken { domain: "googlemail.com", hd: None },
            Spoken { domain: "example.com", hd: Some("example.com") },
            Spoken { domain: "example.com", hd: Some("EXAMPLE.com") },
        ] {
            let email = address_at(side, "ada", domain);
            let classic = verified(side, &email);
            let access = classic.text("data.access");
            let own = json!({ "first_name": "Adaeze" });
            assert_eq!(side.send(&Request::patch("/api/{v}/auth/me/", &own).bearer(&access)).status, 200);
            let ada = IdToken::of(&email.to_uppercase());
            let ada = hd.map_or(ada.clone(), |hd| ada.with("hd", hd));
            let answer = side.send(&ada.request_with("role", "vendor"));
            assert_entered(&answer, 200);
            assert_eq!(answer.text("data.user_id"), classic.text("data.user_id"));
            let shown = ["role", "first_name", "last_name", "email", "auth_provider"]
                .map(|field| answer.text(&format!("data.user.{field}")));
            assert_eq!(shown, ["client", "Adaeze", "", &email, "email"], "the account stays what it was");
            let letter = side.gateway.wait_for_mail(&email, 2);
            assert!(letter.text.contains("Google"), "{}", letter.text);
            assert_eq!(side.me(&access).status, 200, "sessions stay");
            assert_eq!(side.refresh(&classic.text("data.refresh")).status, 200);
            assert_eq!(login(side, &email, PASSWORD).status, 200, "the password stays");
            enter(side, &ada.again(), 200);
            enter(side, &ada.again().with("email", "elsewhere@example.org").without("hd"), 200);
        }
    });
}

#[test]
fn google_links_no_account_of_another_address() {
    for_each_world(ORDINARY, |side| {
        for Spoken { domain, hd } in [
            Spoken { domain: "example.com", hd: None },
            Spoken { domain: "example.com", hd: Some("") },
            Spoken { domain: "example.com", hd: Some("example.org") },
            Spoken { domain: "example.com", hd: Some("gmail.com") },
            Spoken { domain: "sub.example.com", hd: Some("example.com") },
            Spoken { domain: "example.com", hd: Some("sub.example.com") },
            Spoken { domain: "evil-gmail.com", hd: None },
            Spoken { domain: "gmail.com.example.org", hd: None },
            Spoken { domain: "mail.gmail.com", hd: None },
        ] {
            let email = address_at(side, "ada", domain);
            let classic = verified(side, &email);
            let ada = IdToken::of(&email);
            let ada = hd.map_or(ada.clone(), |hd| ada.with("hd", hd));
            for token in [&ada, &ada.again()] {
                let answer = side.send(&token.request());
                side.refused(&answer, 409, "conflict");
                assert_eq!(answer.all("set-cookie").count(), 0);
            }
            assert_eq!(side.me(&classic.text("data.access")).status, 200);
            let answer = login(side, &email, PASSWORD);
            assert_eq!(answer.at("data.user.auth_provider"), json!("email"));
            assert_eq!(answer.at("data.user.first_name"), json!(""), "nothing has changed");
        }
        let odd = side.account("ada");
        let answer = side.send(&IdToken::of(&odd.email).with("hd", json!(["example.com"])).request());
        assert!([401, 409].contains(&answer.status), "{}", answer.shown());
    });
}

#[test]
fn a_refused_link_leaves_the_google_account_free() {
    for_each_world(ORDINARY, |side| {
        let classic = side.account("ada");
        let ada = IdToken::of(&classic.email);
        let answer = side.send(&ada.request());
        side.refused(&answer, 409, "conflict");
        assert_eq!(rows::audited(side.gateway, &answer), "google|failure|conflict");
        let free = side.email("free");
        let answer = enter(side, &ada.again().with("email", free), 201);
        assert_ne!(answer.text("data.user_id"), classic.user_id);
    });
}

#[test]
fn an_operator_may_link_every_verified_address() {
    for_each_world(VERIFIED, |side| {
        let classic = side.account("ada");
        let ada = IdToken::of(&classic.email);
        let answer = enter(side, &ada, 200);
        assert_eq!(answer.text("data.user_id"), classic.user_id);
        assert!(side.gateway.wait_for_mail(&classic.email, 2).text.contains("Google"));
        assert_eq!(side.me(&classic.access).status, 200);
        let answer = side.send(&ada.again().with("email_verified", false).request());
        assert_refused(side, &answer);
    });
}

#[test]
fn an_account_that_waits_for_its_code_becomes_the_google_persons() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let body = json!({ "email": email, "password": PASSWORD, "role": "client", "first_name": "Mallory" });
        assert_eq!(side.post("auth/register/", &body).status, 201);
        let ada = IdToken::of(&email);
        let answer = side.send(&ada.request_with("role", "vendor"));
        assert_entered(&answer, 201);
        let shown = ["role", "first_name", "last_name", "email", "auth_provider"]
            .map(|field| answer.text(&format!("data.user.{field}")));
        assert_eq!(shown, ["vendor", "Ada", "Obi", &email, "google"]);
        assert_eq!(rows::hash_of(side.gateway, &answer.text("data.user_id")), "");
        // What whoever registers a verified account's address is told.
        let answer = login(side, &email, PASSWORD);
        side.refused(&answer, 403, "account_not_verified");
        enter(side, &ada.again(), 200);
    });
}

#[test]
fn an_account_without_a_password_is_entered_with_none_until_a_reset_gives_it_one() {
    for_each_world(PROMPT, |side| {
        let ada = person(side, "ada");
        let email = email_of(&ada);
        let access = enter(side, &ada, 201).text("data.access");
        let nobody = side.email("nobody");
        let mut refusals = Vec::new();
        for name in [&nobody, &email] {
            let answer = login(side, name, PASSWORD);
            side.refused(&answer, 401, "invalid_credentials");
            refusals.push(side.last());
        }
        assert_alike(&refusals[0], &refusals[1]);
        for current in [PASSWORD, "", "!"] {
            let change = json!({ "current_password": current, "new_password": NEW });
            let answer = side.post_as(&access, "password/change/", &change);
            assert_eq!(answer.status, 400, "{}", answer.shown());
            assert_eq!(answer.code(), if current.is_empty() { "validation_error" } else { "invalid_current_password" });
        }
        let letters = side.gateway.mails_to(&email).len();
        let link = link(side, &email, letters + 1);
        assert_eq!(side.post("password/reset-confirm/", &link.sets(NEW)).status, 200);
        assert_eq!(login(side, &email, NEW).status, 200);
        // The reset took the account back from every Google account, and Google does not run this address.
        let answer = side.send(&ada.again().request());
        side.refused(&answer, 409, "conflict");
    });
}

#[test]
fn a_registration_of_a_google_persons_address_changes_nothing() {
    for_each_world(ORDINARY, |side| {
        let ada = person(side, "ada");
        let email = email_of(&ada);
        let first = enter(side, &ada, 201);
        let answer = side.post("auth/register/", &json!({ "email": email, "password": PASSWORD }));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        let letter = eventually("a notice", Duration::from_secs(15), || side.gateway.mails_to(&email).pop());
        assert_eq!(letter.code(), None, "{}", letter.text);
        let answer = login(side, &email, PASSWORD);
        side.refused(&answer, 403, "account_not_verified");
        assert_eq!(enter(side, &ada.again(), 200).text("data.user_id"), first.text("data.user_id"));
    });
}

#[test]
fn a_locked_address_is_locked_for_google_too_until_it_is_lifted() {
    for_each_backend(&[], |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let email = address_at(&mut side, "ada", "gmail.com");
            verified(&mut side, &email);
            let ada = IdToken::of(&email);
            let device = device_of(&enter(&mut side, &ada, 200));
            lock(&mut side, &email);
            let locked = ada.again();
            let answer = side.send(&locked.request());
            side.refused(&answer, 429, "account_locked");
            assert_eq!(answer.at("data.retry_after").to_string(), answer.header("retry-after").unwrap_or_default());
            assert_eq!(rows::audited(gateway, &answer), "google|failure|locked");
            let known = ada.again().request().header("Cookie", device);
            assert_entered(&side.send(&known), 200);
            // The address of the account is locked, whatever Google calls the person now.
            let renamed = ada.again().with("email", "elsewhere@example.org");
            let answer = side.send(&renamed.request());
            side.refused(&answer, 429, "account_locked");
            assert!(gateway.run(&["user", "unlock", &email], "").status.success());
            enter(&mut side, &ada.again(), 200);
        }
    });
}

#[test]
fn a_disabled_account_is_told_so() {
    for_each_world(ORDINARY, |side| {
        let email = address_at(side, "ada", "gmail.com");
        let classic = verified(side, &email);
        let ada = IdToken::of(&email);
        rows::change_user(side.gateway, &classic.text("data.user_id"), "is_active = false");
        let answer = side.send(&ada.request());
        side.refused(&answer, 403, "account_disabled");
        rows::change_user(side.gateway, &classic.text("data.user_id"), "is_active = true");
        assert_eq!(enter(side, &ada.again(), 200).text("data.user_id"), classic.text("data.user_id"));
        rows::change_user(side.gateway, &classic.text("data.user_id"), "is_active = false");
        let answer = side.send(&ada.again().request());
        side.refused(&answer, 403, "account_disabled");
        assert_eq!(answer.all("set-cookie").count(), 0);
    });
}

#[test]
fn attempts_count_against_the_limit_of_a_credential() {
    for_each_world(FIVE, |side| {
        let from = client();
        for _ in 0..4 {
            let answer = side.send(&google(&json!({})).header("X-Forwarded-For", &from));
            side.refused(&answer, 400, "validation_error");
        }
        let ada = person(side, "ada");
        assert_entered(&side.send(&ada.request().header("X-Forwarded-For", &from)), 201);
        let request = ada.again().request();
        let throttled = request.clone().header("X-Forwarded-For", &from);
        for answer in [side.send(&throttled), side.send_to_other(&throttled)] {
            side.refused(&answer, 429, "throttled");
        }
        let elsewhere = request.header("X-Forwarded-For", client());
        assert_entered(&side.send(&elsewhere), 200);
    });
}

#[test]
fn of_many_first_sign_ins_at_once_one_makes_the_account_and_all_are_let_in() {
    for_each_backend(&[], |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let ada = person(&mut side, "ada");
            let answers = at_once(20, |_| side.send_apart(&ada.again().request()));
            let made = answers.iter().filter(|answer| answer.status == 201).count();
            assert_eq!(made, 1, "{:?}", answers.iter().map(|answer| answer.status).collect::<Vec<_>>());
            for answer in &answers {
                assert_entered(answer, answer.status);
                assert_eq!(answer.at("data.user_id"), answers[0].at("data.user_id"));
            }
        }
    });
}

#[test]
fn of_many_google_accounts_that_want_one_address_at_once_one_gets_it() {
    for_each_backend(&[], |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let new = address_at(&mut side, "new", "gmail.com");
            let classic = address_at(&mut side, "classic", "gmail.com");
            verified(&mut side, &classic);
            let waiting = address_at(&mut side, "waiting", "gmail.com");
            side.register(&waiting, PASSWORD);
            for (email, status) in [(new, 201), (classic, 200), (waiting, 201)] {
                let answers = at_once(20, |_| side.send_apart(&IdToken::of(&email).request()));
                let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status < 300);
                assert_eq!(good.iter().map(|answer| answer.status).collect::<Vec<_>>(), [status]);
                bad.iter().for_each(|answer| side.refused(answer, 409, "conflict"));
            }
        }
    });
}

/// From now on nothing that writes a session can be committed.
fn refuse_commits(gateway: &Gateway) {
    let statements: &[&str] = match gateway.backend {
        Backend::PostgresRedis => &[
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'this commit is refused'; END $$",
            "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON sessions
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
        ],
        Backend::Embedded => {
            &["CREATE TRIGGER refuse AFTER INSERT ON sessions BEGIN SELECT RAISE(ABORT, 'this insert is refused'); END"]
        }
    };
    for statement in statements {
        gateway.query(statement);
    }
}

fn allow_commits(gateway: &Gateway) {
    let statements: &[&str] = match gateway.backend {
        Backend::PostgresRedis => &["DROP TRIGGER refuse ON sessions", "DROP FUNCTION refuse()"],
        Backend::Embedded => &["DROP TRIGGER refuse"],
    };
    for statement in statements {
        gateway.query(statement);
    }
}

#[test]
fn a_fault_of_the_database_spends_no_token_and_leaves_nothing() {
    for_each_backend(&[], |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let (ada, classic) = (person(&mut side, "ada"), side.account("bayo"));
            let bayo = IdToken::of(&classic.email).with("hd", "example.com");
            refuse_commits(gateway);
            for token in [&ada, &bayo] {
                let answer = side.send(&token.request());
                side.refused(&answer, 503, "service_unavailable");
            }
            allow_commits(gateway);
            assert_eq!(side.gateway.mails_to(&classic.email).len(), 1, "no letter of what did not happen");
            enter(&mut side, &ada, 201);
            enter(&mut side, &bayo, 200);
            for token in [&ada, &bayo] {
                let answer = side.send(&token.request());
                assert_refused(&side, &answer);
            }
        }
    });
}

/// A gateway that asks a Google of its own, which answers so from the start.
fn gateway_of(backend: Backend, google: &Google, keys: &Keys) -> Gateway {
    google.serve(keys.clone());
    let options = Options::new(backend).with("BIFRONS_GOOGLE__JWKS_URL", &google.jwks_url());
    Gateway::start(options.with("BIFRONS_GOOGLE__TIMEOUT", "2s"))
}

fn asking(keys: &Keys, tell: impl Fn(&Gateway, &Google)) {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        let google = Google::start();
        tell(&gateway_of(backend, &google, keys), &google);
    }
}

fn present() -> Keys {
    Keys::Served(vec![GoogleKey::present().jwk()], 3600)
}

/// The seconds after which it may be tried again.
#[track_caller]
fn assert_unavailable(side: &Side<'_>, answer: &Answer) -> u64 {
    side.refused(answer, 503, "service_unavailable");
    let seconds: u64 = answer.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After");
    assert_eq!(answer.at("data.retry_after"), json!(seconds));
    assert!((1..=60).contains(&seconds), "{seconds}");
    seconds
}

#[test]
fn without_keys_nobody_is_judged_and_with_them_all_goes_on() {
    asking(&Keys::Failure(500), |gateway, google| {
        for engine in Engine::BOTH {
            google.serve(Keys::Failure(500));
            let mut side = Side::new(gateway, engine);
            let ada = person(&mut side, "ada");
            let answer = side.send(&ada.request());
            let seconds = assert_unavailable(&side, &answer);
            let account = side.account("bayo");
            assert_eq!(login(&mut side, &account.email, PASSWORD).status, 200, "who has a password needs no Google");
            google.serve(present());
            // The same token: it was not spent.
            let answer = eventually("the keys are asked for again", Duration::from_secs(seconds + 10), || {
                Some(side.send_apart(&ada.request())).filter(|answer| answer.status != 503)
            });
            assert_entered(&answer, 201);
        }
    });
}

#[test]
fn what_is_no_key_set_is_no_answer_and_no_redirection_is_followed() {
    let good = GoogleKey::present().jwk();
    let huge = json!({ "keys": [good], "pad": "x".repeat(4 << 20) }).to_string();
    for keys in [
        Keys::Failure(404),
        Keys::Silence,
        Keys::Redirection,
        Keys::Body("<html>Please sign in to the wireless network</html>".to_owned()),
        Keys::Body(String::new()),
        Keys::Body("{\"keys\": 7}".to_owned()),
        Keys::Body(huge),
    ] {
        let google = Google::start();
        let gateway = gateway_of(Backend::Embedded, &google, &keys);
        for engine in Engine::BOTH {
            let mut side = Side::new(&gateway, engine);
            let request = person(&mut side, "ada").request();
            let answer = side.send(&request);
            assert_unavailable(&side, &answer);
        }
        assert_eq!((google.fetches(), google.followed()), (2, 0), "once for each engine, and nowhere else");
    }
}

#[test]
fn keys_that_are_known_outlast_the_server_of_them() {
    // To be kept for an hour, and for no time at all.
    for seconds in [3600, 0] {
        asking(&Keys::Served(vec![GoogleKey::present().jwk()], seconds), |gateway, google| {
            for engine in Engine::BOTH {
                let mut side = Side::new(gateway, engine);
                google.serve(Keys::Served(vec![GoogleKey::present().jwk()], seconds));
                let ada = person(&mut side, "ada");
                enter(&mut side, &ada, 201);
                for keys in [Keys::Failure(503), Keys::Silence, Keys::Redirection, Keys::Body("{}".to_owned())] {
                    google.serve(keys);
                    enter(&mut side, &ada.again(), 200);
                }
                let stranger = person(&mut side, "eve").signed_by(GoogleKey::next());
                let answer = side.send(&stranger.request());
                assert!([401, 503].contains(&answer.status), "{}", answer.shown());
            }
        });
    }
}

#[test]
fn keys_are_fetched_once_and_unknown_ones_asked_for_once_a_minute() {
    asking(&present(), |gateway, google| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let before = google.fetches();
            let ada = person(&mut side, "ada");
            enter(&mut side, &ada, 201);
            at_once(10, |_| assert_entered(&side.send_apart(&ada.again().request()), 200));
            assert_eq!(google.fetches() - before, 1, "once for each engine");
            let flood = at_once(60, |number| {
                let unknown = ada.again().with_header("kid", format!("unknown-{number}"));
                side.send_apart(&unknown.request())
            });
            flood.iter().for_each(|answer| assert_refused(&side, answer));
            assert!(google.fetches() - before <= 2, "{} fetches", google.fetches() - before);
            enter(&mut side, &ada.again(), 200);
        }
    });
}

#[test]
fn a_flood_of_unknown_keys_does_not_wait_for_a_google_that_hangs() {
    asking(&present(), |gateway, google| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            google.serve(present());
            let ada = person(&mut side, "ada");
            enter(&mut side, &ada, 201);
            google.serve(Keys::Silence);
            let before = google.fetches();
            at_once(60, |number| {
                let unknown = ada.again().with_header("kid", format!("unknown-{number}"));
                let answer = side.send_apart(&unknown.request());
                assert!([401, 503].contains(&answer.status), "{}", answer.shown());
            });
            assert!(google.fetches() - before <= 1, "{} fetches", google.fetches() - before);
            enter(&mut side, &ada.again(), 200);
        }
    });
}

#[test]
fn a_new_key_is_found_on_the_first_look_and_an_old_one_is_forgotten() {
    asking(&present(), |gateway, google| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            google.serve(present());
            let ada = person(&mut side, "ada");
            enter(&mut side, &ada, 201);
            google.serve(Keys::Served(vec![GoogleKey::next().jwk()], 3600));
            let answer = side.send(&ada.again().signed_by(GoogleKey::next()).request());
            assert_entered(&answer, 200);
            let answer = side.send(&ada.again().request());
            assert_refused(&side, &answer);
            let answer = side.send(&ada.again().signed_by(GoogleKey::next()).request());
            assert_entered(&answer, 200);
        }
    });
}

#[test]
fn keys_of_other_kinds_in_the_set_are_passed_over() {
    let weak: &'static GoogleKey = Box::leak(Box::new(GoogleKey::new("weak", 1024)));
    let changed = |field: &str, value: Value| {
        let mut key = GoogleKey::next().jwk();
        key.as_object_mut().expect("a key").insert(field.to_owned(), value);
        key
    };
    for other in [
        changed("use", json!("enc")),
        changed("alg", json!("RS512")),
        changed("kty", json!("EC")),
        changed("n", json!("")),
        changed("n", json!("?")),
        changed("e", json!("AQ")),
        changed("kid", Value::Null),
        json!({ "kty": "oct", "alg": "HS256", "use": "sig", "kid": "next", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQ" }),
        json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": "next", "x": "AA" }),
        weak.jwk(),
        json!(7),
        json!({}),
    ] {
        let google = Google::start();
        let keys = Keys::Served(vec![other, GoogleKey::present().jwk()], 3600);
        let gateway = gateway_of(Backend::Embedded, &google, &keys);
        for engine in Engine::BOTH {
            let mut side = Side::new(&gateway, engine);
            let ada = person(&mut side, "ada");
            enter(&mut side, &ada, 201);
            for key in [GoogleKey::next(), weak] {
                let answer = side.send(&ada.again().signed_by(key).request());
                assert_refused(&side, &answer);
            }
        }
    }
}

#[test]
fn without_a_client_id_every_token_is_refused() {
    for_each_world(OFF, |side| {
        let request = person(side, "ada").request();
        let answer = side.send(&request);
        side.refused(&answer, 401, "invalid_google_token");
        let request = person(side, "ada").with("aud", "").request();
        let answer = side.send(&request);
        side.refused(&answer, 401, "invalid_google_token");
    });
}

#[test]
fn settings_that_would_weaken_it_are_refused_by_name() {
    let check = |variable: &str, value: &str| {
        let env = [("BIFRONS_GOOGLE__CLIENT_IDS", CLIENT_ID), (variable, value)];
        run_alone(&env, &["config", "check"], "")
    };
    for (variable, value, key) in [
        ("BIFRONS_GOOGLE__JWKS_URL", "http://www.googleapis.com/oauth2/v3/certs", "google.jwks_url"),
        ("BIFRONS_GOOGLE__JWKS_URL", "http://127.0.0.1.example.com/certs", "google.jwks_url"),
        ("BIFRONS_GOOGLE__JWKS_URL", "http://10.0.0.1/certs", "google.jwks_url"),
        ("BIFRONS_GOOGLE__JWKS_URL", "file:///etc/passwd", "google.jwks_url"),
        ("BIFRONS_GOOGLE__JWKS_URL", "certs", "google.jwks_url"),
        ("BIFRONS_GOOGLE__JWKS_URL", "", "google.jwks_url"),
        ("BIFRONS_GOOGLE__LINKING", "always", "google.linking"),
        ("BIFRONS_GOOGLE__TIMEOUT", "0s", "google.timeout"),
        ("BIFRONS_GOOGLE__TIMEOUT", "soon", "google.timeout"),
        ("BIFRONS_GOOGLE__REQUIRE_NONCE", "perhaps", "google.require_nonce"),
        ("BIFRONS_GOOGLE__CLIENT_IDS", "client-1,,client-2", "google.client_ids"),
    ] {
        let outcome = check(variable, value);
        assert!(!outcome.status.success(), "{variable}={value} is accepted");
        assert!(outcome.errors.contains(key), "{variable}={value}: {}", outcome.errors);
    }
    for (variable, value) in [
        ("BIFRONS_GOOGLE__JWKS_URL", "https://www.googleapis.com/oauth2/v3/certs"),
        ("BIFRONS_GOOGLE__JWKS_URL", "http://127.0.0.1:9/certs"),
        ("BIFRONS_GOOGLE__JWKS_URL", "http://[::1]:9/certs"),
        ("BIFRONS_GOOGLE__JWKS_URL", "http://localhost:9/certs"),
        ("BIFRONS_GOOGLE__LINKING", "verified"),
        ("BIFRONS_GOOGLE__LINKING", "authoritative"),
        ("BIFRONS_GOOGLE__CLIENT_IDS", "client-1, client-2"),
    ] {
        let outcome = check(variable, value);
        assert!(outcome.status.success(), "{variable}={value}: {}", outcome.errors);
    }
    let shown = run_alone(&[], &["config", "show"], "").output;
    for key in ["google.client_ids", "google.jwks_url", "google.timeout", "google.linking", "google.require_nonce"] {
        assert!(shown.contains(key), "{key} is not shown");
    }
}
