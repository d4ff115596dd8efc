//! What outlives its owner, and letters that outlive the process: cases 45 and 48.

use crate::actors::{address, login, person, verify};
use crate::support::{Backend, Engine, Gateway, Mail, PASSWORD, Request, Side, eventually, pause};
use crate::target::{STAGING, own_gateways, own_worlds};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// Another password, of whoever comes later.
const LATER: &str = "later-Tamarind-58-quarry";

fn set_deleted(side: &Side<'_>, user_id: &str, is_deleted: bool) {
    let (id, now) = match side.gateway.backend {
        Backend::PostgresRedis => (format!("'{user_id}'"), "now()"),
        Backend::Embedded => (format!("x'{}'", user_id.replace('-', "")), "created_at"),
    };
    let value = if is_deleted { now } else { "null" };
    side.gateway.query(&format!("update users set deleted_at = {value} where id = {id}"));
}

#[test]
fn case_45_a_deleted_users_address_is_taken_over_by_nobody_and_told_to_nobody() {
    own_worlds("it changes the database", STAGING, |side| {
        let account = person(side, "gone");
        set_deleted(side, &account.user_id, true);
        let free = address(side, "free");
        let register =
            |email: &str| Request::post("/api/{v}/auth/register/", &json!({ "email": email, "password": LATER }));
        assert_eq!(side.send(&register(&free)).status, 201);
        let for_free = side.last();
        let answer = side.send(&register(&account.email));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        let difference = crate::support::first_difference(&[for_free], &[side.last()]);
        assert_eq!(difference, None, "a deleted user's address is told apart from a free one");
        let refused = side.send(&verify(&answer.text("data.challenge"), "123456"));
        side.refused(&refused, 400, "invalid_otp");
        for password in [PASSWORD, LATER] {
            let answer = side.send(&login(&account.email, password));
            assert!([401, 403].contains(&answer.status), "{}", answer.shown());
            assert!(answer.at("data.access").is_null());
        }
        // Recovered by an operator, it is what it was: the password of the later one is no way in.
        set_deleted(side, &account.user_id, false);
        let answer = side.send(&login(&account.email, LATER));
        assert!([401, 403].contains(&answer.status), "{}", answer.shown());
        let answer = side.send(&login(&account.email, PASSWORD));
        assert_eq!(answer.at("data.user_id"), json!(account.user_id), "{}", answer.shown());
    });
}

/// Puts a file in the place of the directory of mails while this goes on, so that none can be sent.
fn without_mail(gateway: &mut Gateway, meanwhile: impl FnOnce(&mut Gateway)) {
    let place = gateway.data_directory().join("mail");
    let aside = gateway.data_directory().join("aside");
    fs::create_dir_all(&place).expect("the directory of mails");
    fs::rename(&place, &aside).expect("it can be moved");
    fs::write(&place, b"").expect("a file in its place");
    meanwhile(gateway);
    fs::remove_file(&place).expect("the file goes");
    fs::rename(&aside, &place).expect("the directory comes back");
}

fn register(gateway: &Gateway, engine: Engine, name: &str) -> String {
    let mut side = Side::new(gateway, engine);
    let email = address(&mut side, name);
    let answer = side.post("auth/register/", &json!({ "email": email, "password": PASSWORD }));
    assert_eq!(answer.status, 201, "{}", answer.shown());
    email
}

#[test]
fn case_48_a_letter_that_was_committed_and_not_sent_when_the_process_was_killed_arrives() {
    let env = [("BIFRONS_OUTBOX__LEASE", "2s"), ("BIFRONS_MAIL__TIMEOUT", "500ms"), ("BIFRONS_SMS__TIMEOUT", "500ms")];
    own_gateways("it kills the gateway", &env, |gateway| {
        let mut waiting = Vec::new();
        without_mail(gateway, |gateway| {
            for engine in Engine::BOTH {
                waiting.push(register(gateway, engine, "patient"));
            }
            gateway.kill();
        });
        gateway.restart();
        for email in waiting {
            assert!(gateway.wait_for_mail(&email, 1).code().is_some());
            let ids: BTreeSet<_> = gateway.mails_to(&email).iter().map(message_id).collect();
            assert_eq!(ids.len(), 1, "sent again, it is the same letter");
        }
    });
}

fn message_id(mail: &Mail) -> String {
    mail.header("message-id").expect("a Message-ID").to_owned()
}

#[test]
fn case_48_two_workers_send_each_letter_once() {
    own_gateways("it starts a second instance", &[], |gateway| {
        let place = gateway.data_directory().join("mail");
        let twin = gateway.twin(&[("BIFRONS_MAIL__URL", &format!("file://{}", place.display()))]);
        let instances = [&*gateway, &twin];
        let emails: Vec<_> = (0..24)
            .zip(instances.into_iter().cycle())
            .map(|(turn, instance)| register(instance, Engine::BOTH[turn % 2], "one"))
            .collect();
        for email in &emails {
            let _ = gateway.wait_for_mail(email, 1);
        }
        pause(Duration::from_millis(300));
        for email in &emails {
            assert_eq!(gateway.mails_to(email).len(), 1, "{email}");
        }
    });
}

#[test]
fn case_48_a_poison_letter_ends_dead_and_stalls_no_other() {
    let env = [("BIFRONS_OUTBOX__ATTEMPTS", "2"), ("BIFRONS_OUTBOX__BACKOFF", "50ms")];
    own_gateways("it changes the database", &env, |gateway| {
        for engine in Engine::BOTH {
            without_mail(gateway, |gateway| {
                register(gateway, engine, "poisoned");
                let payload = match gateway.backend {
                    Backend::PostgresRedis => r"'\x00'::bytea",
                    Backend::Embedded => "x'00'",
                };
                gateway.query(&format!(
                    "update outbox set payload = {payload} where channel = 'mail' and state = 'pending'"
                ));
            });
            let next = register(gateway, engine, "healthy");
            assert!(gateway.wait_for_mail(&next, 1).code().is_some());
            let unsettled = "select count(*) from outbox where channel = 'mail' and state = 'pending'";
            eventually("the poison letter is given up", Duration::from_secs(10), || {
                (gateway.query(unsettled) == "0").then_some(())
            });
            let dead = gateway.run(&["outbox", "list", "--state", "dead"], "");
            assert!(dead.status.success() && !dead.output.trim().is_empty(), "{}{}", dead.output, dead.errors);
        }
    });
}
