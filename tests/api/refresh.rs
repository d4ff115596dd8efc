//! Refresh: rotation, the grace time, reuse, cookies.

use crate::support::{Account, Answer, Engine, Request, Side, claims_of, for_each_backend, for_each_world, pause};
use crate::verify::at_once;
use crate::{BRISK, ORDINARY, ORIGIN, Refused, refuse_all};
use serde_json::{Value, json};
use std::time::Duration;

fn pair(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, 200, "{}", answer.shown());
    (answer.text("data.access"), answer.text("data.refresh"))
}

/// The session is dead: no token of it is good for anything.
fn assert_dead(side: &mut Side<'_>, access: &str, refresh: &str) {
    let answer = side.me(access);
    side.refused(&answer, 401, "token_not_valid");
    let answer = side.send_to_other(&Request::get("/api/{v}/auth/me/").bearer(access));
    side.refused(&answer, 401, "token_not_valid");
    let answer = side.refresh(refresh);
    assert_eq!(answer.status, 401, "{}", answer.shown());
    let answer = side.post("auth/token/verify/", &json!({ "token": access }));
    side.refused(&answer, 401, "token_not_valid");
}

#[test]
fn a_refresh_gives_a_new_pair_of_the_same_session() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let answer = side.refresh(&account.refresh);
        let (access, refresh) = pair(&answer);
        let keys: Vec<_> = answer.at("data").as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
        assert_eq!(keys, ["access", "expires_in", "refresh"]);
        assert!(access != account.access && refresh != account.refresh);
        let session = |token: &str| claims_of(token).and_then(|token| token.claims.get("sid").cloned());
        assert_eq!(session(&access), session(&account.access));
        assert_eq!(session(&refresh), session(&account.refresh));
        assert_eq!(side.me(&access).status, 200);
        assert!(answer.all("set-cookie").any(|cookie| cookie.contains(&refresh)), "the cookie follows");
    });
}

#[test]
fn the_same_parent_within_the_grace_time_gets_the_same_child() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let first = pair(&side.refresh(&account.refresh));
        let second = pair(&side.refresh(&account.refresh));
        let elsewhere = Request::post("/api/{v}/auth/token/refresh/", &json!({ "refresh": account.refresh }));
        let third = pair(&side.send_to_other(&elsewhere));
        assert_eq!(first.1, second.1);
        assert_eq!(first.1, third.1, "the other engine knows the child");
        let _ = pair(&side.refresh(&first.1));
    });
}

#[test]
fn fifty_refreshes_at_once_get_one_child() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let body = json!({ "refresh": account.refresh });
        let answers = at_once(50, |number| {
            let engine = if number % 2 == 0 { side.engine } else { side.engine.other() };
            let path = format!("/api/{}/auth/token/refresh/", engine.name());
            crate::support::Client::new(engine.address(side.gateway)).send(&Request::post(&path, &body))
        });
        let mut children: Vec<_> = answers.iter().map(|answer| pair(answer).1).collect();
        children.sort();
        children.dedup();
        assert_eq!(children.len(), 1);
        let _ = pair(&side.refresh(&children[0]));
    });
}

#[test]
fn a_parent_whose_child_was_used_ends_the_session() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let bystander = side.sign_in(&account);
        let (access_1, refresh_1) = pair(&side.refresh(&account.refresh));
        assert_eq!(side.me(&access_1).status, 200);
        let (access_2, refresh_2) = pair(&side.refresh(&refresh_1));
        let answer = side.refresh(&account.refresh);
        side.refused(&answer, 401, "token_reused");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert_dead(side, &access_2, &refresh_2);
        assert_dead(side, &access_1, &refresh_1);
        assert_eq!(side.me(&bystander.access).status, 200, "the other session goes on");
    });
}

#[test]
fn a_parent_shown_after_the_grace_time_ends_the_session() {
    for_each_world(BRISK, |side| {
        let account = side.account("ada");
        let (access, refresh) = pair(&side.refresh(&account.refresh));
        pause(Duration::from_millis(1300));
        let answer = side.refresh(&account.refresh);
        side.refused(&answer, 401, "token_reused");
        assert_dead(side, &access, &refresh);
    });
}

#[test]
fn a_spent_token_is_remembered_over_kill_and_restart() {
    for_each_backend(&[], |gateway| {
        let mut told: Vec<(Engine, Account, String, String)> = Vec::new();
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = side.account("ada");
            let (access, refresh) = pair(&side.refresh(&account.refresh));
            told.push((engine, account, access, refresh));
        }
        gateway.kill();
        gateway.restart();
        for (engine, account, access, refresh) in told {
            let mut side = Side::new(gateway, engine);
            assert_eq!(side.me(&access).status, 200, "the session outlives the process");
            let again = pair(&side.refresh(&account.refresh));
            assert_eq!(again.1, refresh, "the same child after the restart");
            let (access_2, refresh_2) = pair(&side.refresh(&refresh));
            let answer = side.refresh(&account.refresh);
            side.refused(&answer, 401, "token_reused");
            assert_dead(&mut side, &access_2, &refresh_2);
        }
    });
}

#[test]
fn what_is_no_refresh_token_is_refused() {
    refuse_all(|side| {
        let account = side.account("ada");
        let post = |body: &Value| Request::post("/api/{v}/auth/token/refresh/", body);
        vec![
            Refused::new("an access token", post(&json!({ "refresh": account.access })), 401, &["token_not_valid"]),
            Refused::new("nonsense", post(&json!({ "refresh": "nonsense" })), 401, &["token_not_valid"]),
            Refused::new("none", post(&json!({})), 400, &["validation_error"]).field("refresh"),
            Refused::new("a list", post(&json!({ "refresh": [account.refresh] })), 400, &["validation_error"])
                .field("refresh"),
            Refused::new("long", post(&json!({ "refresh": "x".repeat(50_000) })), 401, &["token_not_valid"]),
        ]
    });
}

/// The refresh token as the cookie that a sign-in set.
fn cookie_of(side: &mut Side<'_>, account: &Account) -> (String, String) {
    let body = json!({ "email_or_phone": account.email, "password": account.password });
    let answer = side.post("auth/login/", &body);
    let refresh = answer.text("data.refresh");
    let cookie = answer.all("set-cookie").find(|cookie| cookie.contains(&refresh)).expect("a cookie");
    (cookie.split(';').next().unwrap_or_default().to_owned(), refresh)
}

#[test]
fn a_cookie_is_taken_from_an_allowed_origin_or_from_no_browser() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        for origin in [Some(ORIGIN), None] {
            let (cookie, refresh) = cookie_of(side, &account);
            let mut request =
                Request::new("POST", "/api/{v}/auth/token/refresh/").header("Cookie", format!("a=b; {cookie}; c=d"));
            if let Some(origin) = origin {
                request = request.header("Origin", origin);
            }
            let child = pair(&side.send(&request)).1;
            assert_ne!(child, refresh);
            assert_eq!(side.send(&request.json(&json!({}))).status, 200, "with an empty object as the body");
        }
    });
}

#[test]
fn a_cookie_from_another_origin_is_refused_and_nothing_is_spent() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let (cookie, refresh) = cookie_of(side, &account);
        for origin in [
            "https://evil.example",
            "null",
            "http://app.example.com",
            "https://app.example.com.evil.example",
            "https://app.example.com:8443",
        ] {
            let request =
                Request::new("POST", "/api/{v}/auth/token/refresh/").header("Cookie", &cookie).header("Origin", origin);
            let answer = side.send(&request);
            assert!([400, 401, 403].contains(&answer.status), "{origin}: {}", answer.shown());
            assert!(answer.header("access-control-allow-origin").is_none(), "{origin}");
            assert!(answer.at("data.access").is_null());
        }
        let _ = pair(&side.refresh(&refresh));
    });
}

#[test]
fn the_body_wins_over_the_cookie() {
    for_each_world(ORDINARY, |side| {
        let (ada, bayo) = (side.account("ada"), side.account("bayo"));
        let (cookie, refresh_of_ada) = cookie_of(side, &ada);
        let body = json!({ "refresh": bayo.refresh });
        let request = Request::post("/api/{v}/auth/token/refresh/", &body).header("Cookie", cookie.as_str());
        let (access, _) = pair(&side.send(&request));
        assert_eq!(side.me(&access).at("data.email"), json!(bayo.email));
        let bad =
            Request::post("/api/{v}/auth/token/refresh/", &json!({ "refresh": "nonsense" })).header("Cookie", cookie);
        let answer = side.send(&bad);
        side.refused(&answer, 401, "token_not_valid");
        let _ = pair(&side.refresh(&refresh_of_ada));
    });
}
