//! Locks, states of an account and limits: cases 17, 19, 20 and the rest of 50.

use crate::actors::{address, assert_over, enter, lock, login, me, person, race, refresh, verify};
use crate::support::{Account, Answer, Backend, Engine, PASSWORD, Request, Side, Story, unique};
use crate::target::{STAGING, everywhere, own_gateways, own_worlds, own_worlds_apart};
use crate::{WRONG, other_code};
use serde_json::json;

/// Every door that takes a password, on both engines and by the old path.
fn every_login(side: &mut Side<'_>, name: &str, password: &str) -> Vec<Answer> {
    let request = login(name, password);
    let alias = Request { path: "/auth/login/".to_owned(), ..request.clone() };
    vec![side.send(&request), side.send_to_other(&request), side.send(&alias), side.send_to_other(&alias)]
}

#[track_caller]
fn assert_locked(side: &Side<'_>, answer: &Answer) {
    side.refused(answer, 429, "account_locked");
    let seconds: u32 = answer.header("retry-after").and_then(|it| it.parse().ok()).expect("whole seconds");
    // A request may have begun a moment before the lock, and seconds are rounded up.
    assert!((1..=901).contains(&seconds), "{seconds}");
}

#[test]
fn case_17_five_wrong_passwords_lock_for_the_right_one_and_the_lock_does_not_grow() {
    everywhere(|side| {
        let account = person(side, "locked");
        lock(side, &account.email);
        let left = |answer: &Answer| answer.at("data.retry_after").as_u64().expect("seconds");
        let first = enter(side, &account);
        assert_locked(side, &first);
        for _ in 0..5 {
            let answer = side.send(&login(&account.email, WRONG));
            assert_locked(side, &answer);
        }
        let last = enter(side, &account);
        assert_locked(side, &last);
        assert!(left(&last) <= left(&first), "failing against a lock prolongs it");
    });
}

#[test]
fn case_17_of_many_wrong_passwords_at_once_no_more_than_five_are_judged() {
    everywhere(|side| {
        let account = person(side, "stormed");
        let lane = |password: &str| vec![login(&account.email, password)];
        // With the right one among them: who comes after the fifth failure learns nothing of it.
        let lanes: Vec<_> = (0..40).map(|_| lane(WRONG)).collect();
        let answers = race(side, &lanes);
        let judged = answers.iter().filter(|answer| answer.code() == "invalid_credentials").count();
        assert!((1..=5).contains(&judged), "{judged} of 40 guesses were judged");
        for answer in answers.iter().filter(|answer| answer.code() != "invalid_credentials") {
            assert_locked(side, answer);
        }
        let answer = enter(side, &account);
        assert_locked(side, &answer);
    });
}

#[test]
fn case_17_a_lock_and_four_counted_failures_outlive_kill_and_restart() {
    own_gateways("it restarts the gateway", &[], |gateway| {
        let mut told = Vec::new();
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let (locked, counted) = (person(&mut side, "locked"), person(&mut side, "counted"));
            lock(&mut side, &locked.email);
            for _ in 0..4 {
                let answer = side.send(&login(&counted.email, WRONG));
                side.refused(&answer, 401, "invalid_credentials");
            }
            told.push((engine, locked, counted));
        }
        gateway.kill();
        gateway.restart();
        for (engine, locked, counted) in told {
            let mut side = Side::new(gateway, engine);
            for answer in every_login(&mut side, &locked.email, PASSWORD) {
                assert_locked(&side, &answer);
            }
            let answer = side.send(&login(&counted.email, WRONG));
            side.refused(&answer, 401, "invalid_credentials");
            let answer = enter(&mut side, &counted);
            assert_locked(&side, &answer);
        }
    });
}

#[test]
fn case_19_every_door_for_a_password_obeys_the_lock() {
    everywhere(|side| {
        let account = person(side, "locked");
        lock(side, &account.email);
        for name in [account.email.clone(), account.email.to_uppercase(), format!("  {} ", account.email)] {
            for answer in every_login(side, &name, PASSWORD) {
                assert_locked(side, &answer);
            }
        }
        // docs/ABUSE.md: a lock keeps strangers out, and nobody out of the session that they have.
        assert_eq!(side.send(&me(&account.access)).status, 200);
        assert_eq!(side.send(&refresh(&account.refresh)).status, 200);
    });
}

/// Changes the account's row as an operator would.
pub fn set_state(side: &Side<'_>, account: &Account, assignment: &str) {
    let id = match side.gateway.backend {
        Backend::PostgresRedis => format!("'{}'", account.user_id),
        Backend::Embedded => format!("x'{}'", account.user_id.replace('-', "")),
    };
    side.gateway.query(&format!("update users set {assignment} where id = {id}"));
}

fn deletion(backend: Backend) -> &'static str {
    match backend {
        Backend::PostgresRedis => "deleted_at = now()",
        Backend::Embedded => "deleted_at = created_at",
    }
}

#[test]
fn case_19_every_door_refuses_a_disabled_user() {
    own_worlds("it changes the database", STAGING, |side| {
        let account = person(side, "disabled");
        set_state(side, &account, "is_active = false");
        for answer in every_login(side, &account.email, PASSWORD) {
            side.refused(&answer, 403, "account_disabled");
        }
        for answer in every_login(side, &account.email, WRONG) {
            side.refused(&answer, 401, "invalid_credentials");
        }
        assert_over(side, &account.access, &account.refresh);
        let alias = Request { path: "/auth/token/refresh/".to_owned(), ..refresh(&account.refresh) };
        assert_eq!(side.send(&alias).status, 401);
        let verify = Request::post("/api/{v}/auth/token/verify/", &json!({ "token": account.access }));
        let answer = side.send(&verify);
        side.refused(&answer, 401, "token_not_valid");
    });
}

#[test]
fn case_19_a_disabled_user_who_never_verified_is_let_in_by_no_code() {
    // Its gateways are no other case's: all who wait are disabled.
    let alone = Story { env: &[("BIFRONS_OTP__GUESSES", "5")] };
    own_worlds("it changes the database", alone, |side| {
        let email = address(side, "disabled");
        let (code, challenge) = side.register(&email, PASSWORD);
        let row = "select count(*) from users where is_verified = false";
        assert_ne!(side.gateway.query(row), "0");
        side.gateway.query("update users set is_active = false where is_verified = false");
        let answer = side.send(&verify(&challenge, &code));
        assert!(answer.status == 403 || answer.status == 400, "{}", answer.shown());
        let answer = side.send(&verify(&challenge, &other_code(&code, 1)));
        side.refused(&answer, 400, "invalid_otp");
        side.gateway.query("update users set is_active = true where is_verified = false");
    });
}

#[test]
fn case_19_every_door_takes_a_deleted_user_for_an_unknown_one() {
    own_worlds("it changes the database", STAGING, |side| {
        let account = person(side, "deleted");
        set_state(side, &account, deletion(side.gateway.backend));
        for password in [PASSWORD, WRONG] {
            let request = login(&account.email, password);
            let answer = side.send(&request);
            side.refused(&answer, 401, "invalid_credentials");
            let answer = side.send_to_other(&Request { path: "/auth/login/".to_owned(), ..request });
            side.refused(&answer, 401, "invalid_credentials");
        }
        assert_over(side, &account.access, &account.refresh);
        let resend = Request::post("/api/{v}/auth/resend-otp/", &json!({ "email_or_phone": account.email }));
        assert_eq!(side.send(&resend).status, 200);
        let guess = json!({ "email": account.email, "otp": "123456" });
        let answer = side.post("auth/verify-otp/", &guess);
        side.refused(&answer, 400, "invalid_otp");
        assert_eq!(side.gateway.mails_to(&account.email).len(), 1, "no letter goes to a deleted user");
    });
}

/// Addresses that are nobody's.
fn invented() -> String {
    let number = unique();
    format!("198.18.{}.{}", number / 256 % 256, number % 256)
}

fn attempt(side: &mut Side<'_>) -> Request {
    let name = address(side, "nobody");
    login(&name, PASSWORD)
}

/// Headers by which proxies say whom they ask for.
const CLAIMS: [&str; 8] = [
    "X-Forwarded-For",
    "X-Real-IP",
    "Forwarded",
    "CF-Connecting-IP",
    "True-Client-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "Fastly-Client-IP",
];

#[test]
fn case_20_a_peer_that_is_no_trusted_proxy_is_counted_and_audited_by_its_own_address() {
    own_worlds_apart("it needs limits", &[("BIFRONS_LIMITS__BURST", "8/min")], |side| {
        for name in CLAIMS {
            let invented = invented();
            let value = if name == "Forwarded" { format!("for=\"{invented}\"") } else { invented };
            let answer = attempt(side).header(name, value);
            let answer = side.send(&answer);
            side.refused(&answer, 401, "invalid_credentials");
        }
        let request = attempt(side).header("X-Forwarded-For", invented());
        for answer in [side.send(&request), side.send_to_other(&request)] {
            side.refused(&answer, 429, "throttled");
        }
        let peers = side.gateway.query("select distinct ip from audit_events where action = 'login'");
        assert_eq!(peers, "127.0.0.1");
    });
}

#[test]
fn case_20_behind_a_trusted_proxy_the_right_most_untrusted_hop_is_counted_and_audited() {
    let env = [("BIFRONS_LIMITS__BURST", "6/min"), ("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32,10.1.0.0/16")];
    own_worlds_apart("it needs limits and a trusted proxy", &env, |side| {
        let true_peer = "203.0.113.77";
        for turn in 0..6 {
            // What the client wrote stands left of what the proxies appended.
            let hops = match turn % 3 {
                0 => format!("{}, {true_peer}", invented()),
                1 => format!("127.0.0.1, {}, {true_peer}, 10.1.2.3", invented()),
                _ => format!("{true_peer}:4711"),
            };
            let mut request = attempt(side).header("X-Forwarded-For", hops);
            for name in CLAIMS.iter().skip(1) {
                request = request.header(name, invented());
            }
            let answer = side.send(&request);
            side.refused(&answer, 401, "invalid_credentials");
        }
        let request = attempt(side).header("X-Forwarded-For", format!("{}, {true_peer}", invented()));
        for answer in [side.send(&request), side.send_to_other(&request)] {
            side.refused(&answer, 429, "throttled");
        }
        let another = attempt(side).header("X-Forwarded-For", "203.0.113.78");
        assert_eq!(side.send(&another).status, 401, "nobody else is slowed");
        let peers = side.gateway.query("select distinct ip from audit_events where action = 'login' order by ip");
        assert_eq!(peers.split_whitespace().collect::<Vec<_>>(), [true_peer, "203.0.113.78"]);
    });
}

#[test]
fn case_50_failures_on_either_engine_count_together_and_lock_both() {
    everywhere(|side| {
        let account = person(side, "commuter");
        for turn in 0..5 {
            let request = login(&account.email, WRONG);
            let answer = if turn % 2 == 0 { side.send(&request) } else { side.send_to_other(&request) };
            side.refused(&answer, 401, "invalid_credentials");
        }
        for answer in every_login(side, &account.email, PASSWORD) {
            assert_locked(side, &answer);
        }
    });
}

#[test]
fn case_50_requests_on_either_engine_count_against_one_limit() {
    own_worlds_apart("it needs limits", &[("BIFRONS_LIMITS__BURST", "6/min")], |side| {
        for turn in 0..6 {
            let request = attempt(side);
            let answer = if turn % 2 == 0 { side.send(&request) } else { side.send_to_other(&request) };
            side.refused(&answer, 401, "invalid_credentials");
        }
        let request = attempt(side);
        for answer in [side.send_to_other(&request), side.send(&request)] {
            side.refused(&answer, 429, "throttled");
        }
    });
}
