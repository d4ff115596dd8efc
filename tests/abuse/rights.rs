//! What belongs to others, lists, and locks turned against their owners: cases 7, 18, 33, 38 and 50.

use crate::actors::{assert_over, enter, forget, lock, login, me, person, refresh};
use crate::support::{Account, Answer, Request, Side, claims_of};
use crate::target::{everywhere, inside, own_gateways, own_worlds_apart};
use crate::{WRONG, actors};
use serde_json::{Value, json};

fn session_of(access: &str) -> String {
    let claims = claims_of(access).expect("a token").claims;
    claims.get("sid").and_then(Value::as_str).expect("a session").to_owned()
}

fn list(access: &str) -> Request {
    Request::get("/api/{v}/auth/sessions/").bearer(access)
}

fn revoke(access: &str, session: &str) -> Request {
    Request::new("DELETE", &format!("/api/{{v}}/auth/sessions/{session}/")).bearer(access)
}

/// The id stands in the path, which the comparison of the worlds cannot know; status and code are compared here.
fn try_to_revoke(side: &Side<'_>, access: &str, session: &str) -> (u16, Value) {
    let answer = side.send_apart(&revoke(access, session));
    (answer.status, answer.at("code"))
}

#[test]
fn case_33_nobody_sees_or_ends_what_is_anothers() {
    everywhere(|side| {
        let (mallory, victim) = (person(side, "mallory"), person(side, "victim"));
        let theirs = session_of(&victim.access);
        let absent = "01890a5d-ac96-774b-bcce-b302099a8057";
        for session in [theirs.as_str(), absent, "1", "..", "%2e%2e", "' or 1=1 --"] {
            let session: String = form_urlencoded::byte_serialize(session.as_bytes()).collect();
            let answer = try_to_revoke(side, &mallory.access, &session);
            assert_eq!(answer, (404, json!("not_found")), "{session}");
        }
        let others = Request::post("/api/{v}/auth/sessions/revoke-others/", &json!({ "user_id": victim.user_id }));
        assert_eq!(side.send(&others.bearer(&mallory.access)).status, 200);
        for path in ["auth/sessions/", "auth/login-events/", "auth/me/"] {
            for query in [
                String::new(),
                format!("?user_id={}", victim.user_id),
                format!("?user={0}&id={0}&email={1}", victim.user_id, victim.email),
            ] {
                let answer =
                    side.send_apart(&Request::get(&format!("/api/{{v}}/{path}{query}")).bearer(&mallory.access));
                let text = answer.shown();
                let shows = [&theirs, &victim.user_id, &victim.email].into_iter().any(|it| text.contains(it));
                assert!(!shows, "{path}{query}: {text}");
            }
        }
        assert_eq!(side.send(&me(&victim.access)).status, 200, "the victim's session goes on");
        assert_eq!(side.send(&refresh(&victim.refresh)).status, 200);
        inside("it reads the audit events", || {
            let condition = "action = 'session_revoke' and outcome <> 'success'";
            let refused = actors::count_of_user(side, "audit_events", &mallory.user_id, condition);
            assert!(refused >= 1, "a try at another's session is audited");
        });
    });
}

#[test]
fn case_33_lists_and_ends_are_for_bearers_of_an_access_token_alone() {
    everywhere(|side| {
        let account = person(side, "mallory");
        for (method, path) in [
            ("GET", "auth/sessions/"),
            ("POST", "auth/sessions/revoke-others/"),
            ("GET", "auth/login-events/"),
            ("DELETE", "auth/sessions/01890a5d-ac96-774b-bcce-b302099a8057/"),
            ("POST", "password/change/"),
        ] {
            let request = Request::new(method, &format!("/api/{{v}}/{path}"));
            let answer = side.send(&request);
            side.refused(&answer, 401, "not_authenticated");
            let cookie = format!("bifrons_refresh={}", account.refresh);
            let answer = side.send(&request.clone().header("Cookie", cookie));
            side.refused(&answer, 401, "not_authenticated");
            let answer = side.send(&request.bearer(&account.refresh));
            side.refused(&answer, 401, "token_not_valid");
        }
    });
}

#[test]
fn case_07_a_session_that_its_owner_ends_is_over_everywhere_at_once_and_gone_from_the_list() {
    everywhere(|side| {
        let account = person(side, "tidy");
        let (first, second) = (enter(side, &account), enter(side, &account));
        let pair = |answer: &Answer| (answer.text("data.access"), answer.text("data.refresh"));
        let ((access_1, refresh_1), (access_2, refresh_2)) = (pair(&first), pair(&second));
        assert_eq!(side.send(&list(&account.access)).at("data.count"), json!(3));
        assert_eq!(side.send_to_other(&me(&access_1)).status, 200);
        assert_eq!(side.send_apart(&revoke(&account.access, &session_of(&access_1))).status, 200);
        assert_over(side, &access_1, &refresh_1);
        let again = try_to_revoke(side, &account.access, &session_of(&access_1));
        assert_eq!(again, (404, json!("not_found")), "what is over is not found");
        assert_eq!(side.send(&list(&account.access)).at("data.count"), json!(2));
        assert_eq!(side.send_to_other(&me(&access_2)).status, 200);
        let others = Request::post("/api/{v}/auth/sessions/revoke-others/", &json!({})).bearer(&account.access);
        assert_eq!(side.send(&others).status, 200);
        assert_over(side, &access_2, &refresh_2);
        assert_eq!(side.send_to_other(&list(&account.access)).at("data.count"), json!(1));
    });
}

#[test]
fn case_38_a_list_has_no_part_of_impossible_size_or_place() {
    everywhere(|side| {
        let account = person(side, "pager");
        for path in ["auth/sessions/", "auth/login-events/"] {
            for query in [
                "limit=0",
                "limit=-1",
                "limit=9223372036854775808",
                "limit=99999999999999999999",
                "limit=1e3",
                "limit=%27%3B--",
                "limit=",
                "cursor=nonsense",
                "cursor=%27%20or%201%3D1%20--",
                "cursor=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
                "limit=1&limit=2",
            ] {
                let request = Request::get(&format!("/api/{{v}}/{path}?{query}")).bearer(&account.access);
                let answer = side.send(&request);
                assert_eq!(answer.status, 400, "{path}?{query}: {}", answer.shown());
            }
        }
    });
}

/// A device's cookie from a sign-in on it.
fn device_of(side: &mut Side<'_>, account: &Account) -> String {
    let answer = enter(side, account);
    assert_eq!(answer.status, 200, "{}", answer.shown());
    let cookie = answer.all("set-cookie").find(|cookie| cookie.contains("device")).expect("a device cookie").to_owned();
    cookie.split(';').next().unwrap_or_default().to_owned()
}

#[test]
fn case_18_strangers_cannot_lock_a_person_out_of_a_device_that_they_have_used() {
    everywhere(|side| {
        let (victim, mallory) = (person(side, "victim"), person(side, "mallory"));
        let (known, theirs) = (device_of(side, &victim), device_of(side, &mallory));
        lock(side, &victim.email);
        let on = |device: &str, password: &str| login(&victim.email, password).header("Cookie", device);
        let strange = login(&victim.email, &victim.password);
        for answer in [side.send(&strange), side.send_to_other(&strange), side.send(&on(&theirs, &victim.password))] {
            side.refused(&answer, 429, "account_locked");
        }
        let entered = side.send(&on(&known, &victim.password));
        assert_eq!(entered.status, 200, "{}", entered.shown());
        assert_eq!(side.send_to_other(&on(&known, &victim.password)).status, 200);
        let cut = known.get(..known.len() - 2).unwrap_or_default().to_owned();
        let answer = side.send(&on(&cut, &victim.password));
        side.refused(&answer, 429, "account_locked");
        // The device has a count of its own, so that whoever took it has five guesses too.
        for _ in 0..5 {
            let answer = side.send(&on(&known, WRONG));
            side.refused(&answer, 401, "invalid_credentials");
        }
        let answer = side.send(&on(&known, &victim.password));
        side.refused(&answer, 429, "account_locked");
    });
}

#[test]
fn case_18_a_locked_person_gets_in_by_the_link_in_a_letter() {
    everywhere(|side| {
        let victim = person(side, "victim");
        lock(side, &victim.email);
        let link = forget(side, &victim.email);
        let new = "regained-Oleander-49-pier";
        assert_eq!(side.send(&link.confirm(new)).status, 200);
        let answer = side.send(&login(&victim.email, new));
        assert_eq!(answer.status, 200, "{}", answer.shown());
    });
}

#[test]
fn case_18_failures_from_everywhere_lock_for_no_longer_than_five_of_them() {
    let env = [("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32"), ("BIFRONS_LIMITS__BURST", "10/min")];
    own_worlds_apart("it needs a trusted proxy", &env, |side| {
        let from = |number: u32| format!("100.{}.{}.{}", 64 + number / 65536, number / 256 % 256, number % 256);
        let victim = person(side, "victim");
        let known = device_of(side, &victim);
        let mut longest = 0;
        for number in 0..250 {
            let answer = side.send(&login(&victim.email, WRONG).header("X-Forwarded-For", from(number)));
            assert!([401, 429].contains(&answer.status), "{}", answer.shown());
            longest = longest.max(answer.at("data.retry_after").as_u64().unwrap_or_default());
        }
        assert!((1..=901).contains(&longest), "locked for {longest} s");
        let own = login(&victim.email, &victim.password).header("Cookie", &known).header("X-Forwarded-For", from(5000));
        assert_eq!(side.send(&own).status, 200, "the victim's own device");
    });
}

#[test]
fn case_18_an_operator_lifts_a_lock() {
    own_gateways("it runs a command beside the gateway", &[], |gateway| {
        for engine in crate::support::Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = person(&mut side, "victim");
            lock(&mut side, &account.email);
            let answer = enter(&mut side, &account);
            side.refused(&answer, 429, "account_locked");
            let outcome = gateway.run(&["user", "unlock", &account.email], "");
            assert!(outcome.status.success(), "{}{}", outcome.output, outcome.errors);
            assert_eq!(enter(&mut side, &account).status, 200);
        }
    });
}

#[test]
fn case_18_one_address_that_tries_many_accounts_is_slowed_and_others_are_not() {
    let env = [
        ("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32"),
        ("BIFRONS_STUFFING__IDENTIFIERS", "10"),
        ("BIFRONS_STUFFING__RATE", "2/min"),
    ];
    own_worlds_apart("it needs a trusted proxy", &env, |side| {
        let try_from = |side: &mut Side<'_>, from: &str| {
            let name = actors::address(side, "tried");
            side.send(&login(&name, WRONG).header("X-Forwarded-For", from))
        };
        for _ in 0..10 {
            assert_eq!(try_from(side, "192.0.2.1").status, 401);
        }
        let slowed: Vec<_> = (0..6).map(|_| try_from(side, "192.0.2.1").status).collect();
        assert!(slowed.ends_with(&[429, 429, 429]), "{slowed:?}");
        assert_eq!(try_from(side, "192.0.2.2").status, 401, "its neighbour is not");
        let victim = person(side, "bystander");
        let own = login(&victim.email, &victim.password).header("X-Forwarded-For", "192.0.2.3");
        assert_eq!(side.send(&own).status, 200);
        let audited = side.gateway.query("select count(*) from audit_events where action like '%stuffing%'");
        assert_ne!(audited, "0", "it is audited");
    });
}
