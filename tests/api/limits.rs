//! Limits per client address, and whose address that is.

use crate::support::{
    Account, Answer, Backend, Engine, Gateway, Options, PASSWORD, Redis, Request, Side, Story, for_each_world, unique,
};
use serde_json::json;

const LIMITED: Story =
    Story { env: &[("BIFRONS_LIMITS__BURST", "10/min"), ("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32")] };

/// Behind no proxy that could be believed.
const DIRECT: Story = Story { env: &[("BIFRONS_LIMITS__BURST", "10/min")] };

/// An address of documentation that nobody else has in this test binary.
pub(crate) fn client() -> String {
    let number = unique();
    format!("198.{}.{}.{}", 18 + number / 65536 % 2, number / 256 % 256, number % 256)
}

fn attempt(side: &mut Side<'_>) -> Request {
    let email = side.email("nobody");
    Request::post("/api/{v}/auth/login/", &json!({ "email_or_phone": email, "password": PASSWORD }))
}

#[test]
fn the_eleventh_attempt_of_a_minute_is_refused() {
    for_each_world(LIMITED, |side| {
        let from = client();
        for turn in 1..=10 {
            let request = attempt(side).header("X-Forwarded-For", &from);
            let answer = side.send(&request);
            assert_eq!(answer.status, 401, "{turn}: {}", answer.shown());
        }
        let request = attempt(side).header("X-Forwarded-For", &from);
        let answer = side.send(&request);
        side.refused(&answer, 429, "throttled");
        let seconds: u64 = answer.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After");
        // A window that slides over two counters may ask for a part of the second one too.
        assert!((1..=120).contains(&seconds), "{seconds}");
        assert_eq!(answer.at("data.retry_after"), json!(seconds));
        let answer = side.send_to_other(&request);
        side.refused(&answer, 429, "throttled");
        let request = attempt(side).header("X-Forwarded-For", client());
        assert_eq!(side.send(&request).status, 401, "another client is not concerned");
    });
}

#[test]
fn every_route_that_takes_a_credential_or_a_code_is_counted_and_no_other() {
    for_each_world(LIMITED, |side| {
        let from = client();
        for path in [
            "/api/{v}/auth/register/",
            "/api/{v}/auth/verify-otp/",
            "/api/{v}/auth/resend-otp/",
            "/api/{v}/auth/login/",
            "/auth/login/",
            "/auth/register/",
            "/auth/verify-otp/",
            "/auth/resend-otp/",
            "/api/{v}/auth/login",
            "/auth/login",
        ] {
            let answer = side.send(&Request::post(path, &json!({})).header("X-Forwarded-For", &from));
            side.refused(&answer, 400, "validation_error");
        }
        for path in
            ["/api/{v}/auth/register/", "/auth/verify-otp/", "/api/{v}/auth/mfa/verify/", "/api/{v}/auth/login/"]
        {
            let answer = side.send(&Request::post(path, &json!({})).header("X-Forwarded-For", &from));
            side.refused(&answer, 429, "throttled");
        }
        for _ in 0..12 {
            let answer = side.send(&Request::get("/health/live").header("X-Forwarded-For", &from));
            assert_eq!(answer.status, 200);
            let verify = Request::post("/api/{v}/auth/token/verify/", &json!({ "token": "x" }));
            let answer = side.send(&verify.header("X-Forwarded-For", &from));
            side.refused(&answer, 401, "token_not_valid");
        }
    });
}

#[test]
fn only_the_right_most_untrusted_hop_counts() {
    for_each_world(LIMITED, |side| {
        let from = client();
        for _ in 0..10 {
            let spoofed = format!("{}, {from}", client());
            let request = attempt(side).header("X-Forwarded-For", spoofed).header("X-Real-IP", client());
            assert_eq!(side.send(&request).status, 401);
        }
        let spoofed = format!("{}, {from}, 127.0.0.1", client());
        let request = attempt(side).header("X-Forwarded-For", spoofed).header("Forwarded", format!("for={}", client()));
        let answer = side.send(&request);
        side.refused(&answer, 429, "throttled");
        let two = attempt(side).header("X-Forwarded-For", client()).header("X-Forwarded-For", &from);
        let answer = side.send(&two);
        side.refused(&answer, 429, "throttled");
    });
}

#[test]
fn addresses_of_one_ipv6_network_count_together() {
    for_each_world(LIMITED, |side| {
        let network = format!("2001:db8:{:x}:1", unique());
        for host in 1..=10 {
            let request = attempt(side).header("X-Forwarded-For", format!("{network}::{host:x}"));
            assert_eq!(side.send(&request).status, 401);
        }
        let request = attempt(side).header("X-Forwarded-For", format!("{network}:ffff::1"));
        let answer = side.send(&request);
        side.refused(&answer, 429, "throttled");
    });
}

#[test]
fn a_header_from_no_trusted_proxy_is_not_believed() {
    // Both engines count together, so each backend is spent by its first side.
    crate::support::for_each_backend(DIRECT.env, |gateway| {
        let mut side = Side::new(gateway, crate::support::Engine::V1);
        for name in ["X-Forwarded-For", "X-Real-IP", "Forwarded", "CF-Connecting-IP", "True-Client-IP"] {
            for _ in 0..2 {
                let request = attempt(&mut side).header(name, client());
                assert_eq!(side.send(&request).status, 401);
            }
        }
        let request = attempt(&mut side).header("X-Forwarded-For", client());
        let answer = side.send(&request);
        side.refused(&answer, 429, "throttled");
        let answer = side.send_to_other(&request);
        side.refused(&answer, 429, "throttled");
    });
}

#[test]
fn more_sign_ins_at_once_than_can_be_hashed_are_told_to_come_back() {
    let env = [
        ("BIFRONS_PASSWORDS__MEMORY_KIB", "47104"),
        ("BIFRONS_PASSWORDS__ITERATIONS", "2"),
        ("BIFRONS_PASSWORDS__SLOTS", "1"),
        ("BIFRONS_PASSWORDS__QUEUE", "1"),
    ];
    crate::support::for_each_backend(&env, |gateway| {
        for engine in crate::support::Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let requests: Vec<_> = (0..40).map(|_| attempt(&mut side)).collect();
            let answers = crate::verify::at_once(40, |number| {
                let request = requests.get(usize::try_from(number).unwrap_or_default()).expect("a request");
                side.send_apart(request)
            });
            for answer in &answers {
                if answer.status == 503 {
                    side.refused(answer, 503, "overloaded");
                    assert!(answer.header("retry-after").is_some(), "{}", answer.shown());
                } else {
                    side.refused(answer, 401, "invalid_credentials");
                }
            }
            assert!(answers.iter().any(|answer| answer.status == 503), "nobody was turned away");
            assert!(answers.iter().any(|answer| answer.status == 401), "nobody was served");
            let account = side.account("ada");
            assert_eq!(side.me(&account.access).status, 200, "and afterwards all is well");
        }
    });
}

/// An account whose requests came from this address.
pub(crate) fn account_from(side: &mut Side<'_>, name: &str, from: &str) -> Account {
    side.stand_in(from, "<client>");
    let email = side.email(name);
    let body = json!({ "email": email, "password": PASSWORD });
    let answer = side.send(&Request::post("/api/{v}/auth/register/", &body).header("X-Forwarded-For", from));
    assert_eq!(answer.status, 201, "{}", answer.shown());
    let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
    let body = json!({ "email": email, "otp": code });
    let answer = side.send(&Request::post("/api/{v}/auth/verify-otp/", &body).header("X-Forwarded-For", from));
    assert_eq!(answer.status, 200, "{}", answer.shown());
    let (user_id, password) = (answer.text("data.user_id"), PASSWORD.to_owned());
    Account { email, password, user_id, access: answer.text("data.access"), refresh: answer.text("data.refresh") }
}

/// Long windows, so that no test meets the end of one.
const TOLD: Story = Story {
    env: &[
        ("BIFRONS_LIMITS__BURST", "5/hour"),
        ("BIFRONS_LIMITS__SUSTAINED", "20/day"),
        ("BIFRONS_LIMITS__GENERAL", "3/hour"),
        ("BIFRONS_LIMITS__TOKEN_VERIFY", "2/hour"),
        ("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32"),
    ],
};

/// Few in a day, any number at once.
const FEW: Story =
    Story { env: &[("BIFRONS_LIMITS__SUSTAINED", "4/day"), ("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32")] };

/// The headers say that of these rules this one has so much left.
#[track_caller]
fn assert_told(answer: &Answer, policy: &str, limit: u32, remaining: u32) {
    let told = ["ratelimit-policy", "ratelimit-limit", "ratelimit-remaining"].map(|name| answer.header(name));
    let (limit, remaining) = (limit.to_string(), remaining.to_string());
    assert_eq!(told, [Some(policy), Some(limit.as_str()), Some(remaining.as_str())], "{}", answer.shown());
    let reset: u64 = answer.header("ratelimit-reset").and_then(|value| value.parse().ok()).expect("RateLimit-Reset");
    let window = if policy.contains("3600") && limit != "20" { 3600 } else { 86_400 };
    assert!((1..=window).contains(&reset), "{reset}");
    for name in ["ratelimit-policy", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"] {
        assert_eq!(answer.all(name).count(), 1, "{name}");
    }
}

#[track_caller]
fn assert_throttled(side: &Side<'_>, answer: &Answer) {
    side.refused(answer, 429, "throttled");
    let seconds: u64 = answer.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After");
    assert_eq!(answer.at("data.retry_after"), json!(seconds));
}

#[test]
fn every_answer_tells_how_much_is_left_and_a_refusal_too() {
    const POLICY: &str = "5;w=3600, 20;w=86400";
    for_each_world(TOLD, |side| {
        let account = account_from(side, "ada", &client());
        let from = client();
        let right = json!({ "email_or_phone": account.email, "password": PASSWORD });
        let wrong = json!({ "email_or_phone": account.email, "password": "wrong-password-1" });
        for (n, (path, body, status)) in [
            ("/api/{v}/auth/login/", &right, 200),
            ("/api/{v}/auth/login/", &wrong, 401),
            ("/api/{v}/auth/register/", &json!({}), 400),
            ("/auth/password-reset/", &json!({ "email_or_phone": account.email }), 200),
            ("/api/{v}/password/reset-confirm/", &json!({}), 400),
        ]
        .into_iter()
        .enumerate()
        {
            let answer = side.send(&Request::post(path, body).header("X-Forwarded-For", &from));
            assert_eq!(answer.status, status, "{path}: {}", answer.shown());
            assert_told(&answer, POLICY, 5, 4 - u32::try_from(n).expect("a small number"));
        }
        let request = Request::post("/api/{v}/auth/login/", &right).header("X-Forwarded-For", &from);
        for answer in [side.send(&request), side.send_to_other(&request), side.send(&request)] {
            assert_throttled(side, &answer);
            assert_told(&answer, POLICY, 5, 0);
        }
        let answer = side.send(&Request::get("/health/live").header("X-Forwarded-For", &from));
        assert!(answer.headers.iter().all(|(name, _)| !name.starts_with("ratelimit")), "{:?}", answer.headers);
    });
}

#[test]
fn every_route_of_a_password_that_was_forgotten_is_counted() {
    for_each_world(TOLD, |side| {
        for paths in [
            [
                "/api/{v}/password/reset-request/",
                "/api/{v}/password/reset-confirm",
                "/api/{v}/password/reset-confirm/dQ/dA/",
                "/api/{v}/password/reset-phone-confirm/",
                "/auth/password-reset",
            ],
            [
                "/auth/password-reset-request/",
                "/auth/password-reset-confirm/",
                "/auth/password-reset-confirm-email/dQ/dA/",
                "/auth/password-reset-confirm-phone/",
                "/auth/password-reset/",
            ],
        ] {
            let from = client();
            for path in paths {
                let answer = side.send(&Request::post(path, &json!({})).header("X-Forwarded-For", &from));
                side.refused(&answer, 400, "validation_error");
            }
            for path in paths {
                let answer = side.send(&Request::post(path, &json!({})).header("X-Forwarded-For", &from));
                assert_throttled(side, &answer);
            }
        }
    });
}

#[test]
fn who_is_signed_in_is_counted_by_user_whatever_the_address() {
    for_each_world(TOLD, |side| {
        let (ada, bayo) = (account_from(side, "ada", &client()), account_from(side, "bayo", &client()));
        let from = client();
        for (n, path) in ["auth/me/", "auth/sessions/", "auth/login-events/"].into_iter().enumerate() {
            let request = Request::get(&format!("/api/{{v}}/{path}")).bearer(&ada.access);
            let answer = side.send(&request.header("X-Forwarded-For", client()));
            assert_eq!(answer.status, 200, "{}", answer.shown());
            assert_told(&answer, "3;w=3600", 3, 2 - u32::try_from(n).expect("a small number"));
        }
        let me = |access: &str| Request::get("/api/{v}/profile/me/").bearer(access).header("X-Forwarded-For", &from);
        for answer in [side.send(&me(&ada.access)), side.send_to_other(&me(&ada.access))] {
            assert_throttled(side, &answer);
            assert_told(&answer, "3;w=3600", 3, 0);
        }
        assert_told(&side.send(&me(&bayo.access)), "3;w=3600", 3, 2);
        let answer = side.send(&Request::get("/api/{v}/auth/me/").bearer("nonsense").header("X-Forwarded-For", &from));
        side.refused(&answer, 401, "token_not_valid");
        let verify = Request::post("/api/{v}/auth/token/verify/", &json!({ "token": ada.access }));
        let verify = verify.header("X-Forwarded-For", &from);
        assert_told(&side.send(&verify), "2;w=3600", 2, 1);
        assert_told(&side.send_to_other(&verify), "2;w=3600", 2, 0);
        let answer = side.send(&verify);
        assert_throttled(side, &answer);
    });
}

#[test]
fn refresh_change_and_sign_out_are_counted_together_by_user() {
    for_each_world(FEW, |side| {
        let (ada, bayo) = (account_from(side, "ada", &client()), account_from(side, "bayo", &client()));
        let refresh = |token: &str| {
            let request = Request::post("/api/{v}/auth/token/refresh/", &json!({ "refresh": token }));
            request.header("X-Forwarded-For", client())
        };
        let answer = side.send(&refresh(&ada.refresh));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_told(&answer, "4;w=86400", 4, 3);
        let body = json!({ "current_password": PASSWORD, "new_password": crate::password_reset::NEW });
        let answer = side.post_as(&ada.access, "password/change/", &body);
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_told(&answer, "4;w=86400", 4, 2);
        assert_told(&side.send_to_other(&refresh(&ada.refresh)), "4;w=86400", 4, 1);
        // What is no living token is counted for the address, and uses up nothing of the user's.
        let from = client();
        for n in 0..4 {
            let body = json!({ "refresh": format!("{}x", ada.refresh) });
            let request = Request::post("/api/{v}/auth/token/refresh/", &body).header("X-Forwarded-For", &from);
            let answer = side.send(&request);
            side.refused(&answer, 401, "token_not_valid");
            assert_told(&answer, "4;w=86400", 4, 3 - n);
        }
        let request =
            Request::post("/auth/token/refresh/", &json!({ "refresh": "x" })).header("X-Forwarded-For", &from);
        let answer = side.send(&request);
        assert_throttled(side, &answer);
        assert_told(&side.send(&refresh(&ada.refresh)), "4;w=86400", 4, 0);
        let answer = side.post_as(&ada.access, "auth/logout/", &json!({}));
        assert_throttled(side, &answer);
        assert_eq!(side.post_as(&bayo.access, "auth/logout/", &json!({})).status, 200);
        let answer = side.me(&ada.access);
        assert_eq!(answer.status, 200, "other routes are not under this limit: {}", answer.shown());
    });
}

#[test]
fn a_success_gives_an_address_nothing_back() {
    for_each_world(LIMITED, |side| {
        let account = account_from(side, "ada", &client());
        let from = client();
        let right = json!({ "email_or_phone": account.email, "password": PASSWORD });
        for _ in 0..5 {
            let request = attempt(side).header("X-Forwarded-For", &from);
            assert_eq!(side.send(&request).status, 401);
            let request = Request::post("/api/{v}/auth/login/", &right).header("X-Forwarded-For", &from);
            assert_eq!(side.send(&request).status, 200);
        }
        let request = attempt(side).header("X-Forwarded-For", &from);
        let answer = side.send(&request);
        side.refused(&answer, 429, "throttled");
    });
}

#[test]
fn a_limit_holds_while_redis_is_away() {
    let redis = Redis::start();
    let gateway = Gateway::start(
        Options::new(Backend::PostgresRedis)
            .with("BIFRONS_STORE__URL", &redis.create_database())
            .with("BIFRONS_STORE__TIMEOUT", "300ms")
            .with("BIFRONS_LIMITS__BURST", "4/hour"),
    );
    redis.stop();
    let mut side = Side::new(&gateway, Engine::V1);
    let request = attempt(&mut side);
    for turn in 0..4 {
        let answer = if turn % 2 == 0 { side.send(&request) } else { side.send_to_other(&request) };
        side.refused(&answer, 503, "service_unavailable");
    }
    for answer in [side.send(&request), side.send_to_other(&request)] {
        assert_throttled(&side, &answer);
        assert_told(&answer, "4;w=3600", 4, 0);
    }
    redis.start_again();
}
