//! Limits per client address, and whose address that is.

use crate::support::{PASSWORD, Request, Side, Story, for_each_world, unique};
use serde_json::json;

const LIMITED: Story =
    Story { env: &[("BIFRONS_LIMITS__BURST", "10/min"), ("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32")] };

/// Behind no proxy that could be believed.
const DIRECT: Story = Story { env: &[("BIFRONS_LIMITS__BURST", "10/min")] };

/// An address of documentation that nobody else has in this test binary.
fn client() -> String {
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
            ["/api/{v}/auth/register/", "/auth/verify-otp/", "/api/{v}/auth/resend-otp/", "/api/{v}/auth/login/"]
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
