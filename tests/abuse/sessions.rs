//! Refresh, sessions, sign-out: cases 1, 2, 3, 7, 8, 49 and the sessions' part of 50.

use crate::actors::{assert_over, count_of_user, enter, letter_about, me, person, race_of, refresh};
use crate::support::{Answer, Request, Side, Story, claims_of, eventually, pause};
use crate::target::{everywhere, inside, own_gateways, own_worlds};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// A grace time that a test can wait out.
const IMPATIENT: Story =
    Story { env: &[("BIFRONS_TOKENS__REUSE_GRACE", "1s"), ("BIFRONS_OTP__RESEND_INTERVAL", "0s")] };

/// The refresh token of a good answer.
#[track_caller]
fn child(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.shown());
    answer.text("data.refresh")
}

#[test]
fn case_01_refresh_race_leaves_one_branch() {
    everywhere(|side| {
        let account = person(side, "racer");
        let children: BTreeSet<_> = race_of(side, 50, &refresh(&account.refresh)).iter().map(child).collect();
        assert_eq!(children.len(), 1, "all fifty get the same child");
        let only = children.first().expect("a child");
        let next: BTreeSet<_> = race_of(side, 50, &refresh(only)).iter().map(child).collect();
        assert_eq!(next.len(), 1, "so do those who use the child at once");
        inside("it counts the rows of sessions", || {
            assert_eq!(count_of_user(side, "sessions", &account.user_id, "ended_at is null"), 1);
        });
        let answer = side.send(&refresh(next.first().expect("a child")));
        assert_eq!(side.send(&me(&answer.text("data.access"))).status, 200);
    });
}

#[test]
fn case_02_a_retry_within_the_grace_time_gets_the_same_child() {
    everywhere(|side| {
        let account = person(side, "retrier");
        let lost = child(&side.send(&refresh(&account.refresh)));
        assert_eq!(child(&side.send_to_other(&refresh(&account.refresh))), lost);
        assert_ne!(child(&side.send(&refresh(&lost))), lost);
    });
}

#[test]
fn case_02_a_lost_response_beyond_the_grace_time_ends_the_session_as_documented() {
    own_worlds("it needs a short tokens.reuse_grace", IMPATIENT, |side| {
        let account = person(side, "sleeper");
        let bystander = enter(side, &account);
        let lost = side.send(&refresh(&account.refresh));
        pause(Duration::from_millis(1200));
        let answer = side.send(&refresh(&account.refresh));
        side.refused(&answer, 401, "token_reused");
        assert_over(side, &lost.text("data.access"), &lost.text("data.refresh"));
        assert_eq!(side.send(&refresh(&bystander.text("data.refresh"))).status, 200, "no other session is concerned");
        assert_eq!(enter(side, &account).status, 200, "the person signs in again");
    });
}

#[test]
fn case_03_theft_ends_the_family_and_is_told() {
    everywhere(|side| {
        let account = person(side, "robbed");
        let first = side.send(&refresh(&account.refresh));
        assert_eq!(side.send(&me(&first.text("data.access"))).status, 200);
        let second = side.send(&refresh(&child(&first)));
        assert_eq!(second.status, 200, "{}", second.shown());
        let stolen = side.send(&refresh(&account.refresh));
        side.refused(&stolen, 401, "token_reused");
        for answer in [&first, &second] {
            assert_over(side, &answer.text("data.access"), &answer.text("data.refresh"));
        }
        letter_about(side, &account.email, "session");
        inside("it reads the audit events and the sessions", || {
            let audited = count_of_user(side, "audit_events", &account.user_id, "reason = 'token_reused'");
            assert_eq!(audited, 1, "audited once");
            assert_eq!(count_of_user(side, "sessions", &account.user_id, "ended_at is null"), 0);
        });
    });
}

#[test]
fn case_03_a_grandparent_is_theft_within_the_grace_time_too() {
    everywhere(|side| {
        let account = person(side, "robbed");
        let parent = child(&side.send(&refresh(&account.refresh)));
        let present = side.send(&refresh(&parent));
        let answer = side.send_to_other(&refresh(&account.refresh));
        side.refused(&answer, 401, "token_reused");
        assert_over(side, &present.text("data.access"), &present.text("data.refresh"));
    });
}

/// The other engine has just answered these tokens, and refuses them at once when the session ends.
fn end_and_ask_elsewhere(side: &mut Side<'_>, ending: impl Fn(&str, &str) -> Request) {
    let account = person(side, "leaver");
    for _ in 0..5 {
        assert_eq!(side.send_to_other(&me(&account.access)).status, 200);
    }
    assert_eq!(side.send(&ending(&account.access, &account.refresh)).status, 200);
    for request in [me(&account.access), refresh(&account.refresh)] {
        let answer = side.send_to_other(&request);
        side.refused(&answer, 401, "token_not_valid");
    }
    let verify = Request::post("/api/{v}/auth/token/verify/", &json!({ "token": account.access }));
    for answer in [side.send(&verify), side.send_to_other(&verify)] {
        side.refused(&answer, 401, "token_not_valid");
    }
}

#[test]
fn case_07_a_revoked_session_is_refused_by_the_other_engine_at_once() {
    everywhere(|side| {
        for all in [false, true] {
            end_and_ask_elsewhere(side, |access, _| {
                Request::post("/api/{v}/auth/logout/", &json!({ "all": all })).bearer(access)
            });
        }
    });
}

#[test]
fn case_07_a_revoked_session_is_refused_by_another_instance_within_a_second() {
    own_gateways("it starts a second instance", &[], |gateway| {
        let twin = gateway.twin(&[]);
        for engine in crate::support::Engine::BOTH {
            let (mut here, mut there) = (Side::new(gateway, engine), Side::new(&twin, engine));
            let account = person(&mut here, "leaver");
            for _ in 0..5 {
                assert_eq!(there.send(&me(&account.access)).status, 200);
            }
            assert_eq!(here.post_as(&account.access, "auth/logout/", &json!({})).status, 200);
            for request in [me(&account.access), refresh(&account.refresh)] {
                eventually("the other instance refuses", Duration::from_secs(1), || {
                    (there.send(&request).status == 401).then_some(())
                });
            }
        }
    });
}

/// Everything that can be made of a token by leaving out, adding to or changing its text.
fn mangled(token: &str) -> Vec<String> {
    let (signed, signature) = token.rsplit_once('.').expect("a token of three parts");
    let mut texts: Vec<_> = (1..token.len()).filter_map(|end| token.get(..end)).map(str::to_owned).collect();
    for end in [".", "=", "==", " x", "\u{a0}", ".x", "..", "%3D", "\\", ",", ";"] {
        texts.push(format!("{token}{end}"));
    }
    texts.push(format!("{signed}.{}", signature.to_uppercase()));
    texts.push(format!("{signed}.{signature}.{signature}"));
    texts.push(format!("{signed}.{signature}{signature}"));
    texts.push(format!("{signed}..{signature}"));
    texts.push(format!(".{token}"));
    texts.push(token.replace('.', ""));
    texts.push(token.replace(['_', '-'], "+"));
    // The last letter of 32 bytes in base64 has two bits that mean nothing: still another text.
    let last = signature.chars().last().expect("a signature");
    let same_bytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars();
    let letters = same_bytes.filter(|letter| *letter != last);
    texts.extend(letters.filter_map(|letter| Some(format!("{}{letter}", token.get(..token.len() - 1)?))));
    // What changed nothing, since there was no such letter, is another text all the same: worlds send equally many.
    texts.into_iter().map(|text| if text == token { format!("{text}~") } else { text }).collect()
}

#[test]
fn case_08_mangled_tokens_are_refused_by_every_door() {
    everywhere(|side| {
        let account = person(side, "mangler");
        for text in mangled(&account.access) {
            let answer = side.send(&me(&text));
            assert_eq!(answer.status, 401, "{text}: {}", answer.shown());
        }
        // At the other doors the tail, which is where decoders are lenient.
        let tail = |token: &str| mangled(token).into_iter().rev().take(90).collect::<Vec<_>>();
        for text in tail(&account.access) {
            let answer = side.post("auth/token/verify/", &json!({ "token": text }));
            side.refused(&answer, 401, "token_not_valid");
            let answer = side.send(&Request::new("PATCH", "/api/{v}/profile/me/").json(&json!({})).bearer(&text));
            assert_eq!(answer.status, 401, "{text}: {}", answer.shown());
        }
        for text in tail(&account.refresh) {
            let answer = side.send(&refresh(&text));
            side.refused(&answer, 401, "token_not_valid");
        }
        assert_eq!(side.send(&refresh(&account.refresh)).status, 200, "and nothing of it was spent");
        assert_eq!(side.send(&me(&account.access)).status, 200);
    });
}

#[test]
fn case_49_a_sign_in_takes_over_no_id_that_the_client_brought() {
    everywhere(|side| {
        let (attacker, victim) = (person(side, "attacker"), person(side, "victim"));
        let session = |token: &str| claims_of(token).expect("a token").claims.get("sid").cloned();
        let planted = session(&attacker.access).expect("a session");
        let cookies = format!(
            "bifrons_refresh={0}; __Host-bifrons_refresh={0}; refresh={0}; sessionid={planted}; csrftoken={planted}",
            attacker.refresh
        );
        let body = json!({
            "email_or_phone": victim.email, "password": victim.password, "refresh": attacker.refresh, "sid": planted,
            "session_id": planted, "jti": planted, "challenge": planted
        });
        let request = Request::post("/api/{v}/auth/login/", &body)
            .header("Cookie", cookies)
            .header("X-CSRFToken", "planted")
            .bearer(&attacker.access);
        let answer = side.send(&request);
        assert_eq!(answer.status, 200, "{}", answer.shown());
        let (access, token) = (answer.text("data.access"), answer.text("data.refresh"));
        let fresh = session(&access);
        assert!(fresh != session(&attacker.access) && fresh != session(&victim.access) && fresh == session(&token));
        assert!(answer.all("set-cookie").all(|cookie| !cookie.contains(&attacker.refresh)));
        let mine = side.send(&me(&attacker.access));
        assert_eq!(mine.at("data.email"), json!(attacker.email), "the planted session stays what it was");
        let theirs = side.send(&refresh(&attacker.refresh));
        assert_eq!(side.send(&me(&theirs.text("data.access"))).at("data.email"), json!(attacker.email));
    });
}

#[test]
fn case_50_a_session_lives_and_ends_on_both_engines_alike() {
    everywhere(|side| {
        let account = person(side, "commuter");
        let there = side.send_to_other(&refresh(&account.refresh));
        let here = side.send(&refresh(&child(&there)));
        assert_eq!(side.send_to_other(&me(&here.text("data.access"))).status, 200);
        let reused = side.send_to_other(&refresh(&account.refresh));
        side.refused(&reused, 401, "token_reused");
        assert_over(side, &here.text("data.access"), &here.text("data.refresh"));
    });
}
