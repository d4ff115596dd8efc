//! Signing out: of this session, of another, of all.

use crate::support::{Account, Backend, Engine, Gateway, Options, Request, Side, for_each_world, pause};
use crate::{ORDINARY, Refused, refuse_all};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn assert_over(side: &mut Side<'_>, account: &Account) {
    let answer = side.me(&account.access);
    side.refused(&answer, 401, "token_not_valid");
    let answer = side.send_to_other(&Request::get("/api/{v}/auth/me/").bearer(&account.access));
    side.refused(&answer, 401, "token_not_valid");
    let answer = side.refresh(&account.refresh);
    assert_eq!(answer.status, 401, "{}", answer.shown());
    let answer =
        side.send_to_other(&Request::post("/api/{v}/auth/token/refresh/", &json!({ "refresh": account.refresh })));
    assert_eq!(answer.status, 401, "{}", answer.shown());
    let answer = side.post("auth/token/verify/", &json!({ "token": account.access }));
    side.refused(&answer, 401, "token_not_valid");
}

fn assert_alive(side: &mut Side<'_>, account: &Account) {
    assert_eq!(side.me(&account.access).status, 200);
    assert_eq!(side.refresh(&account.refresh).status, 200);
}

#[test]
fn after_signing_out_both_tokens_are_dead_on_both_engines_at_once() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let other = side.sign_in(&account);
        assert_eq!(
            side.send_to_other(&Request::get("/api/{v}/auth/me/").bearer(&account.access)).status,
            200,
            "in every cache"
        );
        let answer = side.post_as(&account.access, "auth/logout/", &json!({}));
        assert_eq!((answer.status, answer.at("success")), (200, json!(true)), "{}", answer.shown());
        assert_over(side, &account);
        assert_alive(side, &other);
    });
}

#[test]
fn a_session_of_one_engine_is_ended_by_the_other() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        assert_eq!(side.me(&account.access).status, 200);
        let request = Request::post("/api/{v}/auth/logout/", &json!({})).bearer(&account.access);
        assert_eq!(side.send_to_other(&request).status, 200);
        assert_over(side, &account);
    });
}

#[test]
fn signing_out_needs_no_body() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let answer = side.send(&Request::new("POST", "/api/{v}/auth/logout/").bearer(&account.access));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_over(side, &account);
    });
}

#[test]
fn a_refresh_token_of_the_same_user_ends_its_session_too() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let other = side.sign_in(&account);
        let answer = side.post_as(&account.access, "auth/logout/", &json!({ "refresh": other.refresh }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_over(side, &other);
    });
}

#[test]
fn a_refresh_token_of_another_user_ends_nothing_of_theirs() {
    for_each_world(ORDINARY, |side| {
        let (ada, bayo) = (side.account("ada"), side.account("bayo"));
        side.post_as(&ada.access, "auth/logout/", &json!({ "refresh": bayo.refresh }));
        assert_alive(side, &bayo);
    });
}

#[test]
fn signing_out_everywhere_ends_every_session_of_this_user_alone() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let others = [side.sign_in(&account), side.sign_in(&account)];
        let bystander = side.account("bayo");
        let answer = side.post_as(&account.access, "auth/logout/", &json!({ "all": true }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_over(side, &account);
        for other in &others {
            assert_over(side, other);
        }
        assert_alive(side, &bystander);
        let _ = side.sign_in(&account);
    });
}

#[test]
fn signing_out_needs_an_access_token() {
    refuse_all(|side| {
        let account = side.account("ada");
        let post = |body: &Value| Request::post("/api/{v}/auth/logout/", body);
        vec![
            Refused::new("none", post(&json!({ "refresh": account.refresh })), 401, &["not_authenticated"]),
            Refused::new("a refresh token", post(&json!({})).bearer(&account.refresh), 401, &["token_not_valid"]),
            Refused::new(
                "a flag that is none",
                post(&json!({ "all": "perhaps" })).bearer(&account.access),
                400,
                &["validation_error"],
            )
            .field("all"),
        ]
    });
}

#[test]
fn signing_out_twice_is_refused_the_second_time() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        assert_eq!(side.post_as(&account.access, "auth/logout/", &json!({})).status, 200);
        let answer = side.post_as(&account.access, "auth/logout/", &json!({}));
        side.refused(&answer, 401, "token_not_valid");
    });
}

#[test]
fn a_session_ended_on_one_instance_is_over_on_every_other_within_a_second() {
    let gateway = Gateway::start(Options::new(Backend::PostgresRedis));
    let twin = gateway.twin(&[]);
    for engine in Engine::BOTH {
        let mut side = Side::new(&gateway, engine);
        let account = side.account("ada");
        let there = |request: &Request| Side::new(&twin, engine).send(request);
        let me = Request::get("/api/{v}/auth/me/").bearer(&account.access);
        let verify = Request::post("/api/{v}/auth/token/verify/", &json!({ "token": account.access }));
        assert_eq!((there(&me).status, there(&verify).status), (200, 200));
        assert_eq!(side.post_as(&account.access, "auth/logout/", &json!({})).status, 200);
        let ended_at = Instant::now();
        // Whatever would change something is refused at once.
        let write = Request::patch("/api/{v}/auth/me/", &json!({ "bio": "x" })).bearer(&account.access);
        assert_eq!(there(&write).code(), "token_not_valid");
        for read in [&me, &verify] {
            loop {
                let asked_at = Instant::now();
                let answer = there(read);
                if answer.status != 200 {
                    assert_eq!(answer.code(), "token_not_valid");
                    break;
                }
                assert!(asked_at - ended_at < Duration::from_secs(1), "the session goes on elsewhere");
                pause(Duration::from_millis(20));
            }
        }
        let refresh = Request::post("/api/{v}/auth/token/refresh/", &json!({ "refresh": account.refresh }));
        assert_eq!(there(&refresh).code(), "token_not_valid");
    }
}
