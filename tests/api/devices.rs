//! Devices that have signed in before: nobody else can lock their owner out of them.

use crate::password_reset::{NEW, link, login};
use crate::support::{Account, Answer, Engine, PASSWORD, Request, Side, for_each_backend, for_each_world, pause};
use crate::{BRISK, ORDINARY, PROMPT, rows};
use serde_json::json;
use std::time::Duration;

const LOGIN: &str = "/api/{v}/auth/login/";

/// The cookie that an answer sets for the device, as a browser sends it back.
pub(crate) fn device_of(answer: &Answer) -> String {
    let cookie = answer.all("set-cookie").find(|cookie| cookie.contains("bifrons_device="));
    let cookie = cookie.unwrap_or_else(|| panic!("no device: {:?}", answer.headers));
    cookie.split(';').next().unwrap_or_default().to_owned()
}

fn request(name: &str, password: &str, device: &str) -> Request {
    Request::post(LOGIN, &json!({ "email_or_phone": name, "password": password })).header("Cookie", device)
}

fn enter(side: &mut Side<'_>, account: &Account, device: &str) -> Answer {
    side.send(&request(&account.email, &account.password, device))
}

/// The device of a further sign-in.
fn device(side: &mut Side<'_>, account: &Account) -> String {
    let answer = login(side, &account.email, &account.password);
    assert_eq!(answer.status, 200, "{}", answer.shown());
    device_of(&answer)
}

fn lock(side: &mut Side<'_>, account: &Account) {
    for _ in 0..5 {
        login(side, &account.email, "wrong-password-1");
    }
    let answer = login(side, &account.email, &account.password);
    side.refused(&answer, 429, "account_locked");
}

#[test]
fn strangers_lock_nobody_out_of_a_device_of_theirs() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let device = device(side, &account);
        lock(side, &account);
        let answer = enter(side, &account, &device);
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert!(device_of(&answer).len() > 40, "it is known anew");
        let right = request(&account.email, PASSWORD, &format!("theme=dark; {device}; other=1"));
        assert_eq!(side.send_to_other(&right).status, 200, "with other cookies, on the other engine");
        let right = Request { path: "/auth/login/".to_owned(), ..request(&account.email, PASSWORD, &device) };
        assert_eq!(side.send(&right).status, 200, "at the alias");
        let answer = login(side, &account.email, PASSWORD);
        side.refused(&answer, 429, "account_locked");
    });
}

#[test]
fn the_device_that_verified_an_account_is_known_too() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, challenge) = side.register(&email, PASSWORD);
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        let device = device_of(&answer);
        for _ in 0..5 {
            login(side, &email, "wrong-password-1");
        }
        let answer = login(side, &email, PASSWORD);
        side.refused(&answer, 429, "account_locked");
        assert_eq!(side.send(&request(&email, PASSWORD, &device)).status, 200);
    });
}

#[test]
fn the_cookie_is_for_the_server_alone_and_lasts() {
    for_each_world(BRISK, |side| {
        let account = side.account("ada");
        let answer = login(side, &account.email, PASSWORD);
        let cookie = answer.all("set-cookie").find(|cookie| cookie.contains("_device=")).expect("the device's");
        let mut attributes: Vec<_> = cookie.split("; ").skip(1).collect();
        attributes.sort_unstable();
        assert!(cookie.starts_with("__Host-bifrons_device="), "{cookie}");
        assert_eq!(attributes, ["HttpOnly", "Max-Age=31536000", "Path=/", "SameSite=Lax", "Secure"]);
        assert!(cookie.len() < 500, "{cookie}");
    });
}

#[test]
fn the_device_of_another_user_and_what_is_no_device_are_no_use() {
    for_each_world(ORDINARY, |side| {
        let (ada, bayo) = (side.account("ada"), side.account("bayo"));
        let (of_ada, of_bayo) = (device(side, &ada), device(side, &bayo));
        lock(side, &ada);
        let (head, last) = of_ada.split_at(of_ada.len() - 1);
        let altered = format!("{head}{}", if last == "A" { "Q" } else { "A" });
        let refresh = format!("bifrons_device={}", ada.refresh);
        let long = format!("bifrons_device={}", "A".repeat(2000));
        for cookie in
            [of_bayo.as_str(), &altered, head, "bifrons_device=", "bifrons_device=x", &refresh, &long, "bifrons_device"]
        {
            let answer = enter(side, &ada, cookie);
            assert_eq!((answer.status, answer.at("code")), (429, json!("account_locked")), "{cookie}");
        }
        assert_eq!(enter(side, &ada, &of_ada).status, 200);
    });
}

#[test]
fn a_device_keeps_its_own_count_and_locks_itself_alone() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let (one, two) = (device(side, &account), device(side, &account));
        for turn in 0..5 {
            let wrong = request(&account.email, "wrong-password-1", &one);
            let answer = if turn % 2 == 0 { side.send(&wrong) } else { side.send_to_other(&wrong) };
            side.refused(&answer, 401, "invalid_credentials");
        }
        let answer = enter(side, &account, &one);
        side.refused(&answer, 429, "account_locked");
        assert!(answer.header("retry-after").is_some());
        assert_eq!(login(side, &account.email, PASSWORD).status, 200, "others may enter");
        assert_eq!(enter(side, &account, &two).status, 200, "and another device of theirs");
    });
}

#[test]
fn a_device_may_have_several_users() {
    for_each_world(ORDINARY, |side| {
        let (ada, bayo) = (side.account("ada"), side.account("bayo"));
        let first = device(side, &ada);
        let both = device_of(&enter(side, &bayo, &first));
        lock(side, &ada);
        lock(side, &bayo);
        let answer = enter(side, &bayo, &first);
        side.refused(&answer, 429, "account_locked");
        assert_eq!(enter(side, &ada, &both).status, 200);
        assert_eq!(enter(side, &bayo, &both).status, 200);
        for _ in 0..5 {
            side.send(&request(&ada.email, "wrong-password-1", &both));
        }
        let answer = enter(side, &ada, &both);
        side.refused(&answer, 429, "account_locked");
        assert_eq!(enter(side, &bayo, &both).status, 200, "each has their own count on it");
    });
}

#[test]
fn an_operator_lifts_the_lock_of_an_identifier_and_of_its_devices() {
    for_each_backend(&[], |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = side.account("ada");
            let device = device(&mut side, &account);
            lock(&mut side, &account);
            for _ in 0..5 {
                side.send(&request(&account.email, "wrong-password-1", &device));
            }
            let answer = enter(&mut side, &account, &device);
            side.refused(&answer, 429, "account_locked");
            let typed = format!(" {} ", account.email.to_uppercase());
            for told in ["unlocked\n", "it was not locked\n"] {
                let outcome = gateway.run(&["user", "unlock", &typed], "");
                assert!(outcome.status.success(), "{}", outcome.errors);
                assert_eq!(outcome.output, told);
            }
            for _ in 0..4 {
                let answer = login(&mut side, &account.email, "wrong-password-1");
                side.refused(&answer, 401, "invalid_credentials");
                let answer = side.send(&request(&account.email, "wrong-password-1", &device));
                side.refused(&answer, 401, "invalid_credentials");
            }
            assert_eq!(enter(&mut side, &account, &device).status, 200);
            assert_eq!(login(&mut side, &account.email, PASSWORD).status, 200);
            let is_user = rows::is(gateway, "user_id", &account.user_id);
            let audited = gateway
                .query(&format!("select engine, outcome from audit_events where action = 'unlock' and {is_user}"));
            assert_eq!(audited, "cli|success\ncli|success");

            let nobody = side.email("nobody");
            for _ in 0..5 {
                login(&mut side, &nobody, PASSWORD);
            }
            assert_eq!(gateway.run(&["user", "unlock", &nobody], "").output, "unlocked\n");
            assert_eq!(login(&mut side, &nobody, PASSWORD).status, 401);
        }
        for malformed in ["", "ada@", "12", "ada"] {
            let outcome = gateway.run(&["user", "unlock", malformed], "");
            assert_eq!(outcome.status.code(), Some(1), "{malformed}: {}", outcome.output);
            assert_eq!(outcome.errors.lines().count(), 1, "one sentence: {}", outcome.errors);
        }
    });
}

#[test]
fn after_a_reset_the_old_devices_are_unknown() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let old = device(side, &account);
        let link = link(side, &account.email, 2);
        assert_eq!(side.post("password/reset-confirm/", &link.sets(NEW)).status, 200);
        let account = Account { password: NEW.to_owned(), ..account };
        let new = device(side, &account);
        lock(side, &account);
        let answer = enter(side, &account, &old);
        side.refused(&answer, 429, "account_locked");
        assert_eq!(enter(side, &account, &new).status, 200);
    });
}

#[test]
fn after_a_change_the_device_that_changed_it_is_known_and_the_others_are_not() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let (this, other) = (device(side, &account), device(side, &account));
        let body = json!({ "current_password": PASSWORD, "new_password": NEW });
        let request = Request::post("/api/{v}/password/change/", &body).bearer(&account.access).header("Cookie", &this);
        let answer = side.send(&request);
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let new = device_of(&answer);
        let account = Account { password: NEW.to_owned(), ..account };
        lock(side, &account);
        for old in [&this, &other] {
            let answer = enter(side, &account, old);
            side.refused(&answer, 429, "account_locked");
        }
        assert_eq!(enter(side, &account, &new).status, 200);
    });
}

#[test]
fn a_device_is_forgotten_with_time() {
    for_each_backend(&[("BIFRONS_DEVICES__TTL", "1s")], |gateway| {
        let mut locked = Vec::new();
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = side.account("ada");
            lock(&mut side, &account);
            gateway.run(&["user", "unlock", &account.email], "");
            let device = device(&mut side, &account);
            for _ in 0..5 {
                login(&mut side, &account.email, "wrong-password-1");
            }
            locked.push((engine, account, device));
        }
        pause(Duration::from_millis(1100));
        for (engine, account, device) in locked {
            let mut side = Side::new(gateway, engine);
            let answer = enter(&mut side, &account, &device);
            side.refused(&answer, 429, "account_locked");
        }
    });
}
