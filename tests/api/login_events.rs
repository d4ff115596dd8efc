//! The own sign-in history: what worked, and what somebody tried.

use crate::password_reset::{NEW, link, login};
use crate::sessions::{FIREFOX, PLACED, results, sign_in_from, text};
use crate::support::{PASSWORD, Request, Side, for_each_world};
use crate::{ORDINARY, PROMPT, rows};
use serde_json::{Value, json};

/// Action, outcome and reason of each, the newest first.
pub(crate) fn history(side: &mut Side<'_>, access: &str) -> Vec<String> {
    let answer = side.get("auth/login-events/", access);
    let line = |item: &Value| format!("{} {} {}", text(item, "action"), text(item, "outcome"), text(item, "reason"));
    results(&answer).iter().map(|item| line(item).trim().to_owned()).collect()
}

#[test]
fn successes_and_failures_are_shown_with_their_reasons_the_newest_first() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        assert_eq!(history(side, &account.access), ["verify_otp success"]);
        let answer = login(side, &account.email, "wrong-password-1");
        side.refused(&answer, 401, "invalid_credentials");
        side.sign_in(&account);
        for _ in 0..5 {
            login(side, &account.email, "wrong-password-1");
        }
        let answer = login(side, &account.email, PASSWORD);
        side.refused(&answer, 429, "account_locked");
        let wrong = "login failure invalid_credentials";
        let all =
            ["login failure locked", wrong, wrong, wrong, wrong, wrong, "login success", wrong, "verify_otp success"];
        assert_eq!(history(side, &account.access), all);
    });
}

#[test]
fn an_entry_tells_when_where_and_with_what() {
    for_each_world(PLACED, |side| {
        let account = side.account("ada");
        let other = sign_in_from(side, &account, "192.0.2.7", FIREFOX);
        let body = json!({ "email_or_phone": account.email, "password": "wrong-password-1" });
        let request = Request::post("/auth/login/", &body).header("X-Forwarded-For", "198.51.100.9");
        side.send_to_other(&request.header("User-Agent", FIREFOX));
        let answer = side.get("auth/login-events/", &account.access);
        assert_eq!(answer.at("data.count"), json!(3));
        let shown = results(&answer);
        for (item, wanted) in shown.iter().zip([
            ["login", "failure", "198.51.100.9", "Switzerland", "Zürich"],
            ["login", "success", "192.0.2.7", "Nigeria", "Lagos"],
            ["verify_otp", "success", "127.0.0.1", "", ""],
        ]) {
            assert_eq!(["action", "outcome", "ip", "country", "city"].map(|key| text(item, key)), wanted);
            let keys: Vec<_> = item.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            let all = [
                "action",
                "at",
                "browser",
                "city",
                "country",
                "device",
                "id",
                "ip",
                "os",
                "outcome",
                "reason",
                "session_id",
            ];
            assert_eq!(keys, all);
        }
        assert!(text(&shown[0], "browser").contains("Firefox") && text(&shown[1], "os").contains("Linux"), "{shown:?}");
        assert_eq!(shown[0].get("session_id"), Some(&Value::Null));
        assert_eq!(text(&shown[1], "session_id"), rows::session_of(&other.access));
        assert_eq!(text(&shown[2], "session_id"), rows::session_of(&account.access));
    });
}

#[test]
fn only_the_own_ways_in_are_shown() {
    for_each_world(PROMPT, |side| {
        let (ada, bayo) = (side.account("ada"), side.account("bayo"));
        let nobody = side.email("nobody");
        login(side, &bayo.email, "wrong-password-1");
        login(side, &nobody, "wrong-password-1");
        side.refresh(&ada.refresh);
        side.send(&Request::patch("/api/{v}/auth/me/", &json!({ "city": "Ikeja" })).bearer(&ada.access));
        assert_eq!(history(side, &ada.access), ["verify_otp success"]);
        let link = link(side, &ada.email, 2);
        assert_eq!(side.post("password/reset-confirm/", &link.sets(NEW)).status, 200);
        let again = login(side, &ada.email, NEW);
        assert_eq!(history(side, &again.text("data.access")), ["login success", "verify_otp success"]);
    });
}

#[test]
fn the_history_is_shown_in_parts() {
    for_each_world(ORDINARY, |side| {
        let account = side.account("ada");
        for _ in 0..3 {
            login(side, &account.email, "wrong-password-1");
            side.sign_in(&account);
        }
        let whole: Vec<_> =
            results(&side.get("auth/login-events/", &account.access)).iter().map(|item| text(item, "id")).collect();
        assert_eq!(whole.len(), 7);
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let answer = side.get(&format!("auth/login-events/?limit=2{cursor}"), &account.access);
            assert_eq!(answer.at("data.count"), json!(7));
            seen.extend(results(&answer).iter().map(|item| text(item, "id")));
            match answer.at("data.next").as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen, whole);
    });
}
