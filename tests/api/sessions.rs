//! The own sessions: seen, ended one by one, ended all but this, and ended by time and by number.

use crate::support::{Account, Answer, Engine, PASSWORD, Request, Side, eventually, for_each_backend, for_each_world};
use crate::{ORDINARY, Refused, Story, password_reset, refuse_all, rows};
use serde_json::{Value, json};
use std::time::Duration;

/// Places are known, and a proxy is believed.
pub(crate) const PLACED: Story = Story {
    env: &[
        ("BIFRONS_GEOIP__DATABASE", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/places.mmdb")),
        ("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32"),
    ],
};

const TWO_AT_MOST: Story = Story { env: &[("BIFRONS_SESSIONS__MAX_PER_USER", "2")] };

const LIST: &str = "/api/{v}/auth/sessions/";

pub(crate) const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
pub(crate) const IPHONE: &str = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, \
                                 like Gecko) Version/18.5 Mobile/15E148 Safari/604.1";

/// What a list holds.
pub(crate) fn results(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.shown());
    answer.at("data.results").as_array().expect("a list").clone()
}

pub(crate) fn text(item: &Value, key: &str) -> String {
    item.get(key).and_then(Value::as_str).unwrap_or_else(|| panic!("no text {key}: {item}")).to_owned()
}

/// A session of the account that began in this way.
pub(crate) fn sign_in_from(side: &mut Side<'_>, account: &Account, from: &str, agent: &str) -> Account {
    let body = json!({ "email_or_phone": account.email, "password": PASSWORD });
    let request = Request::post("/api/{v}/auth/login/", &body);
    let answer = side.send(&request.header("X-Forwarded-For", from).header("User-Agent", agent));
    assert_eq!(answer.status, 200, "{}", answer.shown());
    let (access, refresh) = (answer.text("data.access"), answer.text("data.refresh"));
    Account { access, refresh, ..account.clone() }
}

fn ids(answer: &Answer) -> Vec<String> {
    results(answer).iter().map(|item| text(item, "id")).collect()
}

fn delete(id: &str, access: &str) -> Request {
    Request::new("DELETE", &format!("{LIST}{id}/")).bearer(access)
}

#[test]
fn every_session_is_shown_with_device_place_and_times_the_newest_first() {
    for_each_world(PLACED, |side| {
        let account = side.account("ada");
        let lagos = sign_in_from(side, &account, "192.0.2.7", FIREFOX);
        let zurich = sign_in_from(side, &account, "203.0.113.77, 198.51.100.9", IPHONE);
        sign_in_from(side, &account, "203.0.113.200", "curl/8.14");
        let answer = side.get("auth/sessions/", &zurich.access);
        assert_eq!(answer.at("data.count"), json!(4));
        assert_eq!(answer.at("data.next"), Value::Null);
        let shown = results(&answer);
        let places: Vec<_> =
            shown.iter().map(|item| [text(item, "ip"), text(item, "country"), text(item, "city")]).collect();
        assert_eq!(places[0], ["203.0.113.200", "", ""]);
        assert_eq!(places[1], ["198.51.100.9", "Switzerland", "Zürich"]);
        assert_eq!(places[2], ["192.0.2.7", "Nigeria", "Lagos"]);
        assert_eq!(places[3], ["127.0.0.1", "", ""]);
        let clients: Vec<_> = shown.iter().map(|item| [text(item, "browser"), text(item, "os")]).collect();
        assert!(clients[2][0].contains("Firefox") && clients[2][1].contains("Linux"), "{clients:?}");
        assert!(clients[1][0].contains("Safari") && clients[1][1].contains("iPhone"), "{clients:?}");
        assert!(!text(&shown[1], "device").is_empty(), "{:?}", shown[1]);
        let current: Vec<_> = shown.iter().map(|item| item.get("is_current").and_then(Value::as_bool)).collect();
        assert_eq!(current, [Some(false), Some(true), Some(false), Some(false)]);
        for item in &shown {
            let keys: Vec<_> = item.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            let all = [
                "browser",
                "city",
                "country",
                "created_at",
                "device",
                "expires_at",
                "id",
                "ip",
                "is_current",
                "last_used_at",
                "os",
            ];
            assert_eq!(keys, all);
            let [created, used, expires] = ["created_at", "last_used_at", "expires_at"].map(|key| text(item, key));
            assert!(created <= used && used < expires, "{item}");
        }
        assert_eq!(text(&shown[1], "id"), rows::session_of(&zurich.access));
        let seen = side.send_to_other(&Request::get(LIST).bearer(&lagos.access));
        assert_eq!(ids(&seen), ids(&answer), "the other engine shows the same");
    });
}

#[test]
fn nobody_sees_the_sessions_of_another() {
    for_each_world(ORDINARY, |side| {
        let (ada, bayo) = (side.account("ada"), side.account("bayo"));
        side.sign_in(&bayo);
        let answer = side.get("auth/sessions/", &ada.access);
        assert_eq!(ids(&answer), [rows::session_of(&ada.access)]);
        assert_eq!(answer.at("data.count"), json!(1));
    });
}

#[test]
fn a_list_is_shown_in_parts_and_each_session_once() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        for _ in 0..4 {
            side.sign_in(&account);
        }
        let whole = ids(&side.get("auth/sessions/", &account.access));
        assert_eq!(whole.len(), 5);
        for limit in [1, 2, 4, 5, 100] {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let answer = side.get(&format!("auth/sessions/?limit={limit}{cursor}"), &account.access);
                assert_eq!(answer.at("data.count"), json!(5), "of the whole list");
                let part = ids(&answer);
                assert!((1..=limit).contains(&part.len()), "{limit}: {part:?}");
                seen.extend(part);
                match answer.at("data.next").as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            assert_eq!(seen, whole, "{limit}");
        }
    });
}

#[test]
fn an_impossible_part_of_a_list_is_refused() {
    refuse_all(|side| {
        let account = side.account("ada");
        let mut cases = Vec::new();
        for path in [LIST, "/api/{v}/auth/login-events/"] {
            for limit in ["0", "-1", "101", "9223372036854775808", "1.5", "", "x", "1%20or%201=1", "%00"] {
                let request = Request::get(&format!("{path}?limit={limit}")).bearer(&account.access);
                cases.push(Refused::new("limit", request, 400, &["validation_error"]).field("limit"));
            }
            for cursor in ["", "x", "AAAA", "'%20OR%201=1", &"A".repeat(33), &"A".repeat(5000)] {
                let request = Request::get(&format!("{path}?cursor={cursor}")).bearer(&account.access);
                cases.push(Refused::new("cursor", request, 400, &["validation_error"]).field("cursor"));
            }
            let twice = Request::get(&format!("{path}?limit=1&limit=2")).bearer(&account.access);
            cases.push(Refused::new("twice", twice, 400, &["validation_error", "parse_error"]));
        }
        cases
    });
}

#[test]
fn whoever_is_not_signed_in_sees_and_ends_nothing() {
    refuse_all(|side| {
        let account = side.account("ada");
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        let one = format!("{LIST}{id}/");
        let others = format!("{LIST}revoke-others/");
        let mut cases = Vec::new();
        for (method, path) in
            [("GET", LIST), ("DELETE", one.as_str()), ("POST", others.as_str()), ("GET", "/api/{v}/auth/login-events/")]
        {
            cases.push(Refused::new("no token", Request::new(method, path), 401, &["not_authenticated"]));
            let refresh = Request::new(method, path).bearer(&account.refresh);
            cases.push(Refused::new("a refresh token", refresh, 401, &["token_not_valid"]));
        }
        for (method, path) in [("POST", LIST), ("DELETE", LIST), ("GET", one.as_str()), ("GET", others.as_str())] {
            let request = Request::new(method, path).bearer(&account.access);
            cases.push(Refused::new("another method", request, 405, &["method_not_allowed"]));
        }
        // There are no old paths for what is new.
        for path in ["/auth/sessions/", "/auth/login-events/"] {
            cases.push(Refused::new("no alias", Request::get(path).bearer(&account.access), 404, &["not_found"]));
        }
        cases
    });
}

#[test]
fn a_session_is_ended_from_another_once_and_at_once() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let other = side.sign_in(&account);
        let id = rows::session_of(&other.access);
        side.stand_in(&id, "<session>");
        let me = Request::get("/api/{v}/auth/me/").bearer(&other.access);
        assert_eq!(side.send_to_other(&me).status, 200, "in every cache");
        let answer = side.send(&delete(&id, &account.access));
        assert_eq!((answer.status, answer.at("data")), (200, Value::Null), "{}", answer.shown());
        password_reset::assert_over(side, &other);
        assert_eq!(rows::audited(side.gateway, &answer), "session_revoke|success|");
        assert_eq!(rows::of_session(side.gateway, &id, "end_reason"), "revoked");
        assert_eq!(ids(&side.get("auth/sessions/", &account.access)), [rows::session_of(&account.access)]);
        let again = delete(&id, &account.access);
        for answer in [side.send(&again), side.send_to_other(&again)] {
            side.refused(&answer, 404, "not_found");
        }
        let own = rows::session_of(&account.access);
        side.stand_in(&own, "<own session>");
        let request = delete(&own, &account.access);
        assert_eq!(
            side.send_to_other(&Request { path: request.path.trim_end_matches('/').into(), ..request }).status,
            200
        );
        password_reset::assert_over(side, &account);
    });
}

#[test]
fn a_session_of_another_user_and_one_that_is_none_are_not_found() {
    for_each_world(ORDINARY, |side| {
        let (ada, bayo) = (side.account("ada"), side.account("bayo"));
        let id = rows::session_of(&bayo.access);
        side.stand_in(&id, "<session of bayo>");
        let answer = side.send(&delete(&id, &ada.access));
        side.refused(&answer, 404, "not_found");
        assert_eq!(rows::audited(side.gateway, &answer), "session_revoke|failure|not_found");
        let of_another = side.last();
        let own_id = side.me(&ada.access).text("data.id");
        side.stand_in(&own_id, "<id of ada>");
        let nil = "00000000-0000-0000-0000-000000000000";
        let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
        for id in [own_id.as_str(), nil, unknown, "x", "1", "-1", "%27%20OR%201=1", "%00", "..", &"f".repeat(4000)] {
            let answer = side.send(&delete(id, &ada.access));
            side.refused(&answer, 404, "not_found");
            if id == unknown {
                assert_eq!(of_another.answer, side.last().answer, "whether it is somebody's is not told");
            }
        }
        assert_eq!(side.me(&bayo.access).status, 200);
        assert_eq!(side.refresh(&bayo.refresh).status, 200);
    });
}

#[test]
fn all_other_sessions_end_and_this_one_goes_on() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let others = [side.sign_in(&account), side.sign_in(&account)];
        let bayo = side.account("bayo");
        let answer = side.send(&Request::new("POST", &format!("{LIST}revoke-others/")).bearer(&account.access));
        assert_eq!((answer.status, answer.at("data")), (200, json!({ "revoked": 2 })), "{}", answer.shown());
        for other in &others {
            password_reset::assert_over(side, other);
        }
        assert_eq!(side.me(&account.access).status, 200);
        assert_eq!(side.refresh(&account.refresh).status, 200);
        assert_eq!(side.me(&bayo.access).status, 200, "nobody else is concerned");
        assert_eq!(rows::audited(side.gateway, &answer), "sessions_revoke_others|success|");
        let request = Request::post(&format!("{LIST}revoke-others"), &json!({})).bearer(&account.access);
        assert_eq!(side.send_to_other(&request).at("data"), json!({ "revoked": 0 }));
    });
}

#[test]
fn a_session_that_is_ended_on_one_instance_is_dead_on_another_within_a_second() {
    for_each_backend(&[], |gateway| {
        let twin = gateway.twin(&[]);
        let mut here = Side::new(gateway, Engine::V2);
        let account = here.account("ada");
        let one = here.sign_in(&account);
        let two = here.sign_in(&account);
        for (ended, request) in [
            (&one, delete(&rows::session_of(&one.access), &account.access)),
            (&two, Request::new("POST", &format!("{LIST}revoke-others/")).bearer(&account.access)),
        ] {
            for engine in Engine::BOTH {
                assert_eq!(Side::new(&twin, engine).me(&ended.access).status, 200, "in every cache");
            }
            assert_eq!(here.send(&request).status, 200);
            for engine in Engine::BOTH {
                let mut there = Side::new(&twin, engine);
                eventually("the other instance refuses it", Duration::from_secs(1), || {
                    (there.me(&ended.access).status == 401).then_some(())
                });
                assert_eq!(there.refresh(&ended.refresh).status, 401);
            }
        }
    });
}

#[test]
fn an_unused_session_and_an_old_one_end_by_themselves() {
    const DAY: u64 = 86_400;
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        for (column, young, old) in [("last_used_at", 29, 31), ("created_at", 179, 181)] {
            let other = side.sign_in(&account);
            let session = rows::session_of(&other.access);
            let age = |side: &Side<'_>, days: u64| {
                let moment = rows::ago(side.gateway, days * DAY);
                rows::change_session(side.gateway, &session, &format!("{column} = {moment}"));
            };
            age(side, young);
            assert_eq!(side.refresh(&other.refresh).status, 200, "{column}: not yet");
            age(side, young);
            assert_eq!(side.me(&other.access).status, 200, "{column}: not yet");
            age(side, old);
            password_reset::assert_over(side, &other);
            assert!(!ids(&side.get("auth/sessions/", &account.access)).contains(&session), "{column}");
            side.stand_in(&session, "<session>");
            let answer = side.send(&delete(&session, &account.access));
            side.refused(&answer, 404, "not_found");
        }
        assert_eq!(side.me(&account.access).status, 200);
    });
}

#[test]
fn no_refresh_takes_a_session_beyond_its_absolute_end() {
    for_each_backend(&[("BIFRONS_SESSIONS__ABSOLUTE_TIMEOUT", "1h")], |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = side.account("ada");
            let session = rows::session_of(&account.access);
            let moment = rows::ago(gateway, 3000);
            rows::change_session(gateway, &session, &format!("created_at = {moment}"));
            let pair = side.refresh(&account.refresh);
            assert_eq!(pair.status, 200, "{}", pair.shown());
            let end = |token: &str| {
                let claims = crate::support::claims_of(token).expect("a token").claims;
                let number = |name: &str| claims.get(name).and_then(Value::as_i64).expect("a number");
                number("exp") - number("iat")
            };
            let left = end(&pair.text("data.refresh"));
            assert!((500..=600).contains(&left), "ten minutes are left: {left}");
            let cookie = pair.all("set-cookie").find(|cookie| cookie.contains("_refresh=")).expect("the cookie");
            let age = cookie.split("Max-Age=").nth(1).and_then(|rest| rest.split(';').next()?.parse::<i64>().ok());
            assert!(age.is_some_and(|age| (500..=600).contains(&age)), "{cookie}");
        }
    });
}

#[test]
fn beyond_its_number_the_session_that_was_used_least_recently_ends() {
    for_each_world(TWO_AT_MOST, |side| {
        let first = side.account("ada");
        let second = side.sign_in(&first);
        let (one, two) = (rows::session_of(&first.access), rows::session_of(&second.access));
        let moment = rows::ago(side.gateway, 30);
        rows::change_session(side.gateway, &two, &format!("last_used_at = {moment}"));
        let third = side.sign_in(&first);
        password_reset::assert_over(side, &second);
        assert_eq!(rows::of_session(side.gateway, &two, "end_reason"), "displaced");
        for living in [&first, &third] {
            assert_eq!(side.me(&living.access).status, 200);
        }
        rows::change_session(side.gateway, &one, &format!("last_used_at = {moment}"));
        let fourth = side.sign_in(&first);
        password_reset::assert_over(side, &first);
        let answer = side.get("auth/sessions/", &fourth.access);
        assert_eq!(ids(&answer), [&fourth, &third].map(|account| rows::session_of(&account.access)));
        let bayo = side.account("bayo");
        assert_eq!(side.me(&bayo.access).status, 200);
        assert_eq!(side.me(&third.access).status, 200, "each user has their own number");
    });
}

#[test]
fn the_last_use_is_noted_at_most_once_a_minute() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        let session = rows::session_of(&account.access);
        let noted = |side: &Side<'_>| rows::of_session(side.gateway, &session, "last_used_at");
        let first = noted(side);
        for _ in 0..3 {
            assert_eq!(side.me(&account.access).status, 200);
        }
        assert_eq!(noted(side), first, "a minute has not passed");
        let moment = rows::ago(side.gateway, 50);
        rows::change_session(side.gateway, &session, &format!("last_used_at = {moment}"));
        let young = noted(side);
        assert_eq!(side.me(&account.access).status, 200);
        assert_eq!(noted(side), young);
        let moment = rows::ago(side.gateway, 62);
        rows::change_session(side.gateway, &session, &format!("last_used_at = {moment}"));
        let old = noted(side);
        assert_eq!(side.me(&account.access).status, 200);
        let new = noted(side);
        assert!(new > old && new >= first, "{old} {new}");
        assert_eq!(side.me(&account.access).status, 200);
        assert_eq!(noted(side), new);
        let shown = text(&results(&side.get("auth/sessions/", &account.access))[0], "last_used_at");
        let created = text(&results(&side.get("auth/sessions/", &account.access))[0], "created_at");
        assert!(shown >= created, "{shown} {created}");
    });
}
