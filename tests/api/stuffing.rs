//! One address that tries the passwords of many accounts is slowed, and nobody else is.

use crate::limits::{account_from, client};
use crate::support::{Answer, Engine, PASSWORD, Request, Side, for_each_backend, for_each_world, pause};
use crate::{Story, rows};
use serde_json::json;
use std::time::{Duration, Instant};

const STUFFED: Story = Story {
    env: &[
        ("BIFRONS_STUFFING__IDENTIFIERS", "3"),
        ("BIFRONS_STUFFING__RATE", "2/hour"),
        ("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32"),
    ],
};

fn attempt(name: &str, password: &str, from: &str) -> Request {
    let body = json!({ "email_or_phone": name, "password": password });
    Request::post("/api/{v}/auth/login/", &body).header("X-Forwarded-For", from)
}

/// A wrong password for an account that nobody has tried yet.
fn try_another(side: &mut Side<'_>, from: &str) -> Answer {
    let email = side.email("nobody");
    let answer = side.send(&attempt(&email, "wrong-password-1", from));
    side.refused(&answer, 401, "invalid_credentials");
    answer
}

#[test]
fn an_address_that_tried_many_accounts_is_slowed_and_audited_and_no_other_is() {
    for_each_world(STUFFED, |side| {
        let account = account_from(side, "ada", &client());
        let from = client();
        for _ in 0..2 {
            let answer = try_another(side, &from);
            assert_eq!(rows::audited(side.gateway, &answer), "login|failure|invalid_credentials");
        }
        let answer = try_another(side, &from);
        let audited = rows::audited(side.gateway, &answer);
        let mut lines: Vec<_> = audited.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["credential_stuffing|failure|slowed", "login|failure|invalid_credentials"]);
        let request = answer.text("meta.request_id");
        let ip = side.gateway.query(&format!(
            "select ip from audit_events where action = 'credential_stuffing' and request_id = '{request}'"
        ));
        assert_eq!(ip, from);

        let right = attempt(&account.email, PASSWORD, &from);
        assert_eq!(side.send(&right).status, 200, "it is slowed, not shut out");
        let answer = try_another(side, &from);
        assert_eq!(rows::audited(side.gateway, &answer).lines().count(), 1, "it is told once");
        for answer in [side.send(&right), side.send_to_other(&right)] {
            side.refused(&answer, 429, "throttled");
            let seconds: u64 = answer.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After");
            assert!((1..=7200).contains(&seconds), "{seconds}");
        }
        let alias = Request { path: "/auth/login/".to_owned(), ..right.clone() };
        let answer = side.send(&alias);
        side.refused(&answer, 429, "throttled");
        let elsewhere = attempt(&account.email, PASSWORD, &client());
        assert_eq!(side.send(&elsewhere).status, 200, "the account is not concerned");
        let me = Request::get("/api/{v}/auth/me/").bearer(&account.access).header("X-Forwarded-For", &from);
        assert_eq!(side.send(&me).status, 200, "who is signed in already goes on");
        let refresh = Request::post("/api/{v}/auth/token/refresh/", &json!({ "refresh": account.refresh }));
        assert_eq!(side.send(&refresh.header("X-Forwarded-For", &from)).status, 200);
    });
}

#[test]
fn one_account_tried_often_and_many_signed_in_rightly_slow_nobody() {
    for_each_world(STUFFED, |side| {
        let from = client();
        let email = side.email("nobody");
        for _ in 0..4 {
            let answer = side.send(&attempt(&email, "wrong-password-1", &from));
            side.refused(&answer, 401, "invalid_credentials");
        }
        for name in ["ada", "bayo", "chidi", "dayo"] {
            let account = account_from(side, name, &client());
            assert_eq!(side.send(&attempt(&account.email, PASSWORD, &from)).status, 200, "{name}");
        }
        let answer = try_another(side, &from);
        assert_eq!(rows::audited(side.gateway, &answer), "login|failure|invalid_credentials");
    });
}

#[test]
fn addresses_of_one_ipv6_network_are_one() {
    for_each_world(STUFFED, |side| {
        let network = format!("2001:db8:{:x}:2", crate::support::unique());
        for host in 1..=2 {
            try_another(side, &format!("{network}::{host}"));
        }
        let answer = try_another(side, &format!("{network}:ffff::3"));
        assert!(rows::audited(side.gateway, &answer).contains("credential_stuffing|failure|slowed"));
        let account = account_from(side, "ada", &client());
        let statuses: Vec<_> = (4..=6)
            .map(|host| side.send(&attempt(&account.email, PASSWORD, &format!("{network}::{host}"))).status)
            .collect();
        assert_eq!(statuses, [200, 200, 429]);
    });
}

#[test]
fn it_ends_by_itself_and_without_a_rate_it_is_only_audited() {
    // Long enough for two sign-ins on a busy machine.
    const DURATION: Duration = Duration::from_secs(12);
    for (rate, slowed) in [("1/hour", 429), ("off", 200)] {
        let env = [
            ("BIFRONS_STUFFING__IDENTIFIERS", "2"),
            ("BIFRONS_STUFFING__RATE", rate),
            ("BIFRONS_STUFFING__DURATION", "12s"),
            ("BIFRONS_TRUSTED_PROXIES", "127.0.0.1/32"),
        ];
        for_each_backend(&env, |gateway| {
            let mut side = Side::new(gateway, Engine::V1);
            let (account, from) = (account_from(&mut side, "ada", &client()), client());
            try_another(&mut side, &from);
            let began = Instant::now();
            let answer = try_another(&mut side, &from);
            assert!(rows::audited(gateway, &answer).contains("credential_stuffing|failure|slowed"));
            let right = attempt(&account.email, PASSWORD, &from);
            assert_eq!(side.send(&right).status, 200);
            assert_eq!(side.send(&right).status, slowed, "{rate}, {:?} after it began", began.elapsed());
            if slowed == 429 {
                pause(DURATION);
                assert_eq!(side.send(&right).status, 200);
                assert_eq!(side.send_to_other(&right).status, 200);
            }
        });
    }
}
