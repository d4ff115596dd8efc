//! A request that is sent again with its key gets the answer of the first time, and is not done again.

use crate::limits::client;
use crate::password_reset::login;
use crate::support::{
    Answer, Backend, Engine, PASSWORD, Request, Side, eventually, for_each_backend, for_each_world, pause, unique,
};
use crate::verify::at_once;
use crate::{ORDINARY, PROMPT, Refused, Story, refuse_all, rows};
use serde_json::{Value, json};
use std::time::Duration;

const KEY: &str = "X-Idempotency-Key";

/// Behind a proxy that is believed.
const PROXIED: Story =
    Story { env: &[("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32"), ("BIFRONS_OTP__RESEND_INTERVAL", "0s")] };

fn key() -> String {
    format!("key-{}", unique())
}

#[track_caller]
fn assert_replayed(first: &Answer, again: &Answer) {
    assert_eq!(again.header("idempotent-replay"), Some("true"), "{}", again.shown());
    assert_eq!(again.status, first.status, "{}", again.shown());
    for part in ["success", "message", "data", "errors"] {
        assert_eq!(again.at(part), first.at(part), "{part}");
    }
    assert_ne!(again.at("meta.request_id"), first.at("meta.request_id"), "each request has its own id");
}

#[track_caller]
fn assert_fresh(answer: &Answer, status: u16) {
    assert_eq!((answer.status, answer.header("idempotent-replay")), (status, None), "{}", answer.shown());
}

#[track_caller]
fn assert_conflict(side: &Side<'_>, answer: &Answer) {
    side.refused(answer, 409, "conflict");
    assert_eq!(answer.header("idempotent-replay"), None);
}

#[test]
fn a_registration_is_done_once_on_both_engines_and_at_the_alias() {
    for_each_world(PROMPT, |side| {
        let (email, key) = (side.email("ada"), key());
        let body = json!({ "email": email, "password": PASSWORD, "first_name": "Ada" });
        let request = Request::post("/api/{v}/auth/register/", &body).header(KEY, &key);
        let first = side.send(&request);
        assert_fresh(&first, 201);
        let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
        assert_replayed(&first, &side.send(&request));
        assert_replayed(&first, &side.send_to_other(&request));
        let alias = Request { path: "/auth/register/".to_owned(), ..request.clone() };
        let flat = side.send(&alias);
        assert_replayed(&first, &flat);
        assert_eq!(flat.at("challenge"), first.at("data.challenge"), "flat, as the alias answers");
        let spelled = Request::post("/api/{v}/auth/register/", &body).header("x-idempotency-KEY", format!(" {key} "));
        assert_replayed(&first, &side.send(&spelled));
        let other = Request::post("/api/{v}/auth/register/", &body).header(KEY, self::key());
        assert_fresh(&side.send(&other), 201);
        side.gateway.wait_for_mail(&email, 2);
        pause(Duration::from_millis(150));
        assert_eq!(side.gateway.mails_to(&email).len(), 2, "one letter for each key");
        let newer = side.gateway.mails_to(&email)[1].code().expect("a code");
        let answer = side.post("auth/verify-otp/", &json!({ "challenge": first.text("data.challenge"), "otp": newer }));
        assert_eq!(answer.status, 200, "the challenge of a replay is a living one: {} {code}", answer.shown());
        assert_replayed(&first, &side.send(&request));
    });
}

#[test]
fn a_reset_is_asked_for_once() {
    for_each_world(PROMPT, |side| {
        let (account, key) = (side.account("ada"), key());
        let body = json!({ "email_or_phone": account.email });
        let request = Request::post("/api/{v}/password/reset-request/", &body).header(KEY, &key);
        let first = side.send(&request);
        assert_fresh(&first, 200);
        side.gateway.wait_for_mail(&account.email, 2);
        for path in ["/api/{v}/password/reset-request/", "/auth/password-reset/", "/auth/password-reset-request"] {
            let again = side.send(&Request { path: path.to_owned(), ..request.clone() });
            assert_replayed(&first, &again);
            assert_eq!(rows::audited(side.gateway, &again), "", "nothing was done");
        }
        assert_replayed(&first, &side.send_to_other(&request));
        pause(Duration::from_millis(150));
        assert_eq!(side.gateway.mails_to(&account.email).len(), 2, "one letter only");
        let form = Request::new("POST", "/api/{v}/password/reset-request/").form(&[("email_or_phone", &account.email)]);
        let answer = side.send(&form.header(KEY, &key));
        assert_conflict(side, &answer);
    });
}

#[test]
fn a_profile_is_written_once_whichever_of_its_paths() {
    for_each_world(ORDINARY, |side| {
        let (account, key) = (side.account("ada"), key());
        let patch = |city: &str, path: &str| Request::patch(path, &json!({ "city": city })).bearer(&account.access);
        let [me, profile] = ["/api/{v}/auth/me/", "/api/{v}/profile/me/"];
        let first = side.send(&patch("Ikeja", me).header(KEY, &key));
        assert_fresh(&first, 200);
        assert_fresh(&side.send(&patch("Yaba", profile)), 200);
        for path in [me, profile] {
            assert_replayed(&first, &side.send(&patch("Ikeja", path).header(KEY, &key)));
        }
        assert_replayed(&first, &side.send_to_other(&patch("Ikeja", me).header(KEY, &key)));
        assert_eq!(side.me(&account.access).at("data.city"), json!("Yaba"), "it was not written again");
        let again = side.sign_in(&account);
        let request = Request::patch(me, &json!({ "city": "Ikeja" })).bearer(&again.access).header(KEY, &key);
        assert_replayed(&first, &side.send(&request));
        let get = Request::get(me).bearer(&account.access).header(KEY, &key);
        assert_fresh(&side.send(&get), 200);
    });
}

#[test]
fn another_body_with_the_same_key_is_a_conflict() {
    for_each_world(ORDINARY, |side| {
        let (email, key) = (side.email("ada"), key());
        let register = |body: &Value| Request::post("/api/{v}/auth/register/", body).header(KEY, &key);
        let body = json!({ "email": email, "password": PASSWORD });
        let first = side.send(&register(&body));
        assert_fresh(&first, 201);
        let other_email = side.email("bayo");
        for body in [
            json!({ "email": other_email, "password": PASSWORD }),
            json!({ "email": email, "password": "copper-lantern-58-harbour" }),
            json!({}),
        ] {
            let answer = side.send(&register(&body));
            assert_conflict(side, &answer);
            assert_eq!(answer.header("retry-after"), None, "waiting does not help");
            let answer = side.send_to_other(&register(&body));
            assert_conflict(side, &answer);
        }
        assert_replayed(&first, &side.send(&register(&body)));
        pause(Duration::from_millis(100));
        assert!(side.gateway.mails_to(&other_email).is_empty());
    });
}

#[test]
fn a_key_is_bound_to_route_and_caller() {
    for_each_world(PROXIED, |side| {
        let key = key();
        let (here, there) = (client(), client());
        let email = side.email("ada");
        let body = json!({ "email": email, "password": PASSWORD });
        let register = |from: &str| {
            let request = Request::post("/api/{v}/auth/register/", &body).header(KEY, &key);
            request.header("X-Forwarded-For", from)
        };
        assert_fresh(&side.send(&register(&here)), 201);
        assert_fresh(&side.send(&register(&there)), 201);
        let reset = Request::post("/api/{v}/password/reset-request/", &json!({ "email_or_phone": email }));
        assert_fresh(&side.send(&reset.header(KEY, &key).header("X-Forwarded-For", &here)), 200);
        let (ada, bayo) = (side.account("chidi"), side.account("dayo"));
        for account in [&ada, &bayo] {
            let patch = Request::patch("/api/{v}/auth/me/", &json!({ "city": "Ikeja" })).bearer(&account.access);
            let answer = side.send(&patch.header(KEY, &key).header("X-Forwarded-For", &here));
            assert_fresh(&answer, 200);
            assert_eq!(answer.text("data.id"), account.user_id);
        }
        let patch = Request::patch("/api/{v}/auth/me/", &json!({ "city": "Ikeja" })).bearer(&ada.access);
        let answer = side.send(&patch.header(KEY, &key).header("X-Forwarded-For", &there));
        assert_eq!(answer.header("idempotent-replay"), Some("true"), "a user is the same at another address");
        assert_eq!(answer.text("data.id"), ada.user_id);
        let patch = Request::patch("/api/{v}/auth/me/", &json!({ "city": "Ikeja" })).header(KEY, &key);
        let answer = side.send(&patch);
        side.refused(&answer, 401, "not_authenticated");
    });
}

#[test]
fn what_a_refused_request_had_as_key_is_free_again() {
    for_each_world(ORDINARY, |side| {
        let (email, key) = (side.email("ada"), key());
        let register = |body: &Value| Request::post("/api/{v}/auth/register/", body).header(KEY, &key);
        for _ in 0..2 {
            let answer = side.send(&register(&json!({ "email": email, "password": "password" })));
            side.refused(&answer, 400, "validation_error");
            assert_eq!(answer.header("idempotent-replay"), None);
        }
        let broken = Request::new("POST", "/api/{v}/auth/register/").body("application/json", "{").header(KEY, &key);
        let answer = side.send(&broken);
        side.refused(&answer, 400, "parse_error");
        let body = json!({ "email": email, "password": PASSWORD });
        let first = side.send(&register(&body));
        assert_fresh(&first, 201);
        assert_replayed(&first, &side.send(&register(&body)));
    });
}

#[test]
fn a_key_that_is_none_is_refused_before_anything_is_done() {
    refuse_all(|side| {
        let account = side.account("ada");
        let email = side.email("nobody");
        let mut cases = Vec::new();
        for key in ["", "a b", "\u{e9}", &"k".repeat(129), &"k".repeat(5000)] {
            for request in [
                Request::post("/api/{v}/auth/register/", &json!({ "email": email, "password": PASSWORD })),
                Request::post("/auth/password-reset/", &json!({ "email_or_phone": email })),
                Request::patch("/api/{v}/auth/me/", &json!({ "city": "Ikeja" })).bearer(&account.access),
            ] {
                let request = request.header(KEY, key);
                cases.push(Refused::new("key", request, 400, &["validation_error"]).field(KEY));
            }
        }
        cases
    });
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        for key in ["k".repeat(128), "!#$%&'()*+,-./:;<=>?@[]^_`{|}~\"\\".to_owned()] {
            let patch = Request::patch("/api/{v}/auth/me/", &json!({ "city": "Ikeja" })).bearer(&account.access);
            assert_fresh(&side.send(&patch.clone().header(KEY, &key)), 200);
            assert_eq!(side.send(&patch.header(KEY, &key)).header("idempotent-replay"), Some("true"), "{key}");
        }
    });
}

#[test]
fn routes_that_answer_with_tokens_take_no_key() {
    for_each_world(ORDINARY, |side| {
        let (account, key) = (side.account("ada"), key());
        let body = json!({ "email_or_phone": account.email, "password": PASSWORD });
        let mut tokens = Vec::new();
        for path in ["/api/{v}/auth/login/", "/auth/login/", "/api/{v}/auth/login/"] {
            let answer = side.send(&Request::post(path, &body).header(KEY, &key));
            assert_fresh(&answer, 200);
            tokens.push(answer.text("data.refresh"));
        }
        assert!(tokens[0] != tokens[1] && tokens[0] != tokens[2], "each sign-in is one of its own");
        let mut parent = tokens[0].clone();
        for _ in 0..2 {
            let refresh = Request::post("/api/{v}/auth/token/refresh/", &json!({ "refresh": parent }));
            let answer = side.send(&refresh.header(KEY, &key));
            assert_fresh(&answer, 200);
            parent = answer.text("data.refresh");
        }
        let (waiting, challenge) = {
            let email = side.email("waiting");
            side.register(&email, PASSWORD)
        };
        let verify = Request::post("/api/{v}/auth/verify-otp/", &json!({ "challenge": challenge, "otp": waiting }));
        assert_fresh(&side.send(&verify.clone().header(KEY, &key)), 200);
        let answer = side.send(&verify.header(KEY, &key));
        side.refused(&answer, 400, "invalid_otp");
        let wrong = Request::post("/api/{v}/auth/login/", &body).header(KEY, "k".repeat(500));
        assert_fresh(&side.send(&wrong), 200);
    });
}

#[test]
fn of_the_same_request_many_times_at_once_one_is_done_and_the_others_wait_or_get_its_answer() {
    // A registration that takes its time.
    let env = [
        ("BIFRONS_PASSWORDS__MEMORY_KIB", "65536"),
        ("BIFRONS_PASSWORDS__ITERATIONS", "4"),
        ("BIFRONS_OTP__RESEND_INTERVAL", "0s"),
    ];
    for_each_backend(&env, |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let (email, key) = (side.email("ada"), key());
            let body = json!({ "email": email, "password": PASSWORD });
            let request = Request::post("/api/{v}/auth/register/", &body).header(KEY, &key);
            let answers = at_once(8, |_| side.send_apart(&request));
            let is_replay = |answer: &&Answer| answer.header("idempotent-replay") == Some("true");
            let (waiting, done): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 409);
            for answer in &waiting {
                assert_conflict(&side, answer);
                assert_eq!(answer.header("retry-after"), Some("1"), "{}", answer.shown());
                assert_eq!(answer.at("data.retry_after"), json!(1));
            }
            assert!(!waiting.is_empty(), "nobody met one under way");
            assert!(done.iter().all(|answer| answer.status == 201));
            assert_eq!(done.iter().filter(|answer| !is_replay(answer)).count(), 1);
            let first = done.iter().find(|answer| !is_replay(answer)).expect("the one that was done");
            assert_replayed(first, &side.send(&request));
            side.gateway.wait_for_mail(&email, 1);
            pause(Duration::from_millis(150));
            assert_eq!(side.gateway.mails_to(&email).len(), 1, "one letter only");
        }
    });
}

#[test]
fn an_answer_is_kept_over_a_restart_for_a_day() {
    for_each_backend(&[], |gateway| {
        let (request, first) = {
            let mut side = Side::new(gateway, Engine::V1);
            let email = side.email("ada");
            let body = json!({ "email": email, "password": PASSWORD });
            let request = Request::post("/api/{v}/auth/register/", &body).header(KEY, key());
            let first = side.send(&request);
            (request, first)
        };
        let seconds = eventually("the kept answer", Duration::from_secs(2), || kept_for(gateway));
        assert!((86_300..=86_400).contains(&seconds), "{seconds}");
        gateway.kill();
        gateway.restart();
        let mut side = Side::new(gateway, Engine::V2);
        assert_replayed(&first, &side.send(&request));
        let email = side.email("nobody");
        assert_eq!(login(&mut side, &email, PASSWORD).status, 401);
    });
}

/// For how many seconds more the one answer is kept.
fn kept_for(gateway: &crate::support::Gateway) -> Option<i64> {
    match gateway.backend {
        Backend::Embedded => {
            let now = "cast(strftime('%s', 'now') as integer)";
            let left =
                format!("select expires_at / 1000000 - {now} from ephemeral_entries where key like '%idempotency:%'");
            gateway.query(&left).parse().ok()
        }
        Backend::PostgresRedis => {
            let url = gateway.variable("BIFRONS_STORE__URL").expect("a store");
            let mut connection =
                redis::Client::open(url).and_then(|client| client.get_connection()).expect("a Redis connection");
            let keys: Vec<String> =
                redis::cmd("KEYS").arg("*idempotency:*").query(&mut connection).expect("the keys of the store");
            redis::cmd("TTL").arg(keys.first()?).query(&mut connection).ok()
        }
    }
}
