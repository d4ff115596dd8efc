//! Whether the time of an answer tells what its text does not. Ignored by default: run them with `make timing`, on a
//! machine that has nothing else to do.

use crate::actors::{address, login, request_reset, verify};
use crate::imported::import;
use crate::statistics::Comparison;
use crate::support::{Answer, Client, Engine, PASSWORD, Request, Side, Story, random_bytes};
use crate::target::{inside, is_own, measured_everywhere};
use serde_json::json;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::time::Instant;

/// Cheap hashes hide less of what else an answer takes than the default ones do.
const CHEAP: Story = Story { env: &[("BIFRONS_OTP__RESEND_INTERVAL", "0s"), ("BIFRONS_OTP__DAILY_SENDS", "1000")] };

/// Times of each kind; every account is good for a few, since failures lock it.
const ACCOUNTS: usize = 80;
const EACH: usize = 4;

/// Accounts that are verified.
fn verified(side: &mut Side<'_>, count: usize) -> Vec<String> {
    let mut emails = Vec::new();
    while emails.len() < count {
        // To find one letter all are read, so there should be few.
        forget_letters(side);
        for (email, challenge) in waiting(side, 20.min(count - emails.len())) {
            let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
            assert_eq!(side.send_apart(&verify(&challenge, &code)).status, 200);
            emails.push(email);
        }
    }
    emails
}

/// Removes the letters of a gateway of the test's own.
fn forget_letters(side: &Side<'_>) {
    if is_own() {
        let letters = fs::read_dir(side.gateway.data_directory().join("mail"));
        for letter in letters.into_iter().flatten().flatten() {
            // One that is being written may have another name by now; it goes the next time.
            let _ = fs::remove_file(letter.path());
        }
    }
}

fn register(email: &str) -> Request {
    Request::post("/api/{v}/auth/register/", &json!({ "email": email, "password": PASSWORD }))
}

/// Registrations that wait for their codes, with their challenges.
fn waiting(side: &mut Side<'_>, count: usize) -> Vec<(String, String)> {
    let emails = unknown(side, count);
    emails
        .into_iter()
        .map(|email| {
            let answer = side.send_apart(&register(&email));
            assert_eq!(answer.status, 201, "{}", answer.shown());
            let challenge = answer.text("data.challenge");
            (email, challenge)
        })
        .collect()
}

fn waiting_emails(side: &mut Side<'_>, count: usize) -> Vec<String> {
    waiting(side, count).into_iter().map(|(email, _)| email).collect()
}

fn unknown(side: &mut Side<'_>, count: usize) -> Vec<String> {
    (0..count).map(|_| address(side, "timed")).collect()
}

/// Each name so often, not one after the other.
fn repeated(names: &[String]) -> Vec<String> {
    (0..EACH).flat_map(|_| names.iter().cloned()).collect()
}

/// Times both kinds of request in turn, the first of each pair by lot, on one connection.
fn interleave(side: &Side<'_>, first: &[Request], second: &[Request], expect: &dyn Fn(&Answer)) -> Comparison {
    assert_eq!(first.len(), second.len());
    let mut client = Client::new(side.engine.address(side.gateway));
    let mut time = |request: &Request| {
        let request = Request { path: request.path.replace("{v}", side.engine.name()), ..request.clone() };
        let start = Instant::now();
        let answer = client.send(&request);
        let taken = start.elapsed();
        expect(&answer);
        taken.as_secs_f64() * 1e6
    };
    let (mut times_of_first, mut times_of_second) = (Vec::new(), Vec::new());
    for (number, (one, other)) in first.iter().zip(second).enumerate() {
        let [lot] = random_bytes::<1>();
        let pair = if lot % 2 == 0 {
            (time(one), time(other))
        } else {
            let late = time(other);
            (time(one), late)
        };
        // The first pairs warm both sides up.
        if number >= 10 {
            times_of_first.push(pair.0);
            times_of_second.push(pair.1);
        }
    }
    Comparison::of(&times_of_first, &times_of_second)
}

type Prepared = (Vec<Request>, Vec<Request>);

/// Prepares both kinds in every world, times them, prints the figures, and fails where they can be told apart.
fn timed(what: &str, names: [&str; 2], prepare: impl Fn(&mut Side<'_>) -> Prepared, expect: impl Fn(&Answer)) {
    timed_with(CHEAP, what, names, prepare, expect);
}

fn timed_with(
    story: Story,
    what: &str,
    names: [&str; 2],
    prepare: impl Fn(&mut Side<'_>) -> Prepared,
    expect: impl Fn(&Answer),
) {
    let mut failed = String::new();
    measured_everywhere(story, |side, place| {
        let (first, second) = prepare(side);
        let mut comparison = interleave(side, &first, &second, &expect);
        let mut line = format!("{what}, {place}: {} | {} | {comparison}", names[0], names[1]);
        // A machine that did something else for a while is no finding: it has to show again.
        if comparison.tells_apart() {
            let (first, second) = prepare(side);
            comparison = interleave(side, &first, &second, &expect);
            let _ = write!(line, "\n  again: {comparison}");
        }
        let _ = std::io::stderr().write_all(format!("\n{line}").as_bytes());
        if comparison.tells_apart() {
            let _ = writeln!(failed, "{line}");
        }
    });
    assert!(failed.is_empty(), "told apart by time:\n{failed}");
}

fn logins(names: &[String], password: &str) -> Vec<Request> {
    names.iter().map(|name| login(name, password)).collect()
}

fn wrong(names: &[String]) -> Vec<Request> {
    logins(&repeated(names), crate::WRONG)
}

#[track_caller]
fn is(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.shown());
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_login_of_an_unknown_and_of_a_known_address() {
    let prepare = |side: &mut Side<'_>| (wrong(&unknown(side, ACCOUNTS)), wrong(&verified(side, ACCOUNTS)));
    timed("login, wrong password", ["unknown", "known"], prepare, |answer| is(answer, 401));
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_login_of_an_unknown_and_of_an_unverified_address() {
    let prepare = |side: &mut Side<'_>| (wrong(&unknown(side, ACCOUNTS)), wrong(&waiting_emails(side, ACCOUNTS)));
    timed("login, wrong password", ["unknown", "unverified"], prepare, |answer| is(answer, 401));
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_login_of_a_locked_address_that_is_known_or_not() {
    let prepare = |side: &mut Side<'_>| {
        let (nobodies, people) = (unknown(side, 20), verified(side, 20));
        for name in nobodies.iter().chain(&people) {
            (0..5).for_each(|_| is(&side.send_apart(&login(name, crate::WRONG)), 401));
        }
        let many = |names: &[String]| (0..20).flat_map(|_| logins(names, PASSWORD)).collect::<Vec<_>>();
        (many(&nobodies), many(&people))
    };
    timed("login, locked", ["unknown", "known"], prepare, |answer| is(answer, 429));
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_register_of_a_free_and_of_a_taken_address() {
    let prepare = |side: &mut Side<'_>| {
        let free = unknown(side, ACCOUNTS * EACH);
        let taken = repeated(&verified(side, ACCOUNTS));
        let requests = |names: &[String]| names.iter().map(|name| register(name)).collect::<Vec<_>>();
        (requests(&free), requests(&taken))
    };
    timed("register", ["free", "taken"], prepare, |answer| is(answer, 201));
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_register_of_a_free_and_of_a_waiting_address() {
    let prepare = |side: &mut Side<'_>| {
        let free = unknown(side, ACCOUNTS * EACH);
        let taken = repeated(&waiting_emails(side, ACCOUNTS));
        let requests = |names: &[String]| names.iter().map(|name| register(name)).collect::<Vec<_>>();
        (requests(&free), requests(&taken))
    };
    timed("register", ["free", "waiting"], prepare, |answer| is(answer, 201));
}

fn resends(names: &[String]) -> Vec<Request> {
    let resend = |name: &String| Request::post("/api/{v}/auth/resend-otp/", &json!({ "email_or_phone": name }));
    repeated(names).iter().map(resend).collect()
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_resend_for_an_unknown_and_for_a_waiting_address() {
    let prepare = |side: &mut Side<'_>| (resends(&unknown(side, ACCOUNTS)), resends(&waiting_emails(side, ACCOUNTS)));
    timed("resend", ["unknown", "waiting"], prepare, |answer| is(answer, 200));
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_resend_for_an_unknown_and_for_a_verified_address() {
    let prepare = |side: &mut Side<'_>| (resends(&unknown(side, ACCOUNTS)), resends(&verified(side, ACCOUNTS)));
    timed("resend", ["unknown", "verified"], prepare, |answer| is(answer, 200));
}

fn resets(names: &[String]) -> Vec<Request> {
    repeated(names).iter().map(|name| request_reset(name)).collect()
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_reset_request_for_an_unknown_and_for_a_known_address() {
    let prepare = |side: &mut Side<'_>| (resets(&unknown(side, ACCOUNTS)), resets(&verified(side, ACCOUNTS)));
    timed("reset-request", ["unknown", "known"], prepare, |answer| is(answer, 200));
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_reset_request_for_an_unknown_and_for_a_waiting_address() {
    let prepare = |side: &mut Side<'_>| (resets(&unknown(side, ACCOUNTS)), resets(&waiting_emails(side, ACCOUNTS)));
    timed("reset-request", ["unknown", "waiting"], prepare, |answer| is(answer, 200));
}

/// Gateways of its own: once a hash was imported, every failure costs as much as its verification.
const IMPORTING: Story = Story { env: &[("BIFRONS_OTP__RESEND_INTERVAL", "0s"), ("BIFRONS_OTP__DAILY_SENDS", "999")] };

/// As Django 1.11 makes them.
const DJANGO_HASH: &str = "pbkdf2_sha256$36000$ExVXCYaPRtde$xDnn+tX6EtVlylYKOdHPICdYvCx4CcxPIi0Na+AgtOw=";

fn imported(side: &mut Side<'_>, count: usize) -> Vec<String> {
    let emails = unknown(side, count);
    for email in &emails {
        let (created, told) = import(side.gateway, email, DJANGO_HASH);
        assert!(created, "{told}");
    }
    emails
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_login_of_an_imported_and_of_a_native_user() {
    inside("it imports users with a command", || {
        let prepare = |side: &mut Side<'_>| (wrong(&imported(side, ACCOUNTS)), wrong(&verified(side, ACCOUNTS)));
        let what = "login, wrong password";
        timed_with(IMPORTING, what, ["imported", "native"], prepare, |answer| is(answer, 401));
    });
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_login_of_an_imported_and_of_an_unknown_user() {
    inside("it imports users with a command", || {
        let prepare = |side: &mut Side<'_>| (wrong(&imported(side, ACCOUNTS)), wrong(&unknown(side, ACCOUNTS)));
        let what = "login, wrong password";
        timed_with(IMPORTING, what, ["imported", "unknown"], prepare, |answer| is(answer, 401));
    });
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_a_wrong_code_for_an_unknown_and_for_a_waiting_address() {
    let prepare = |side: &mut Side<'_>| {
        let guess =
            |name: &String| Request::post("/api/{v}/auth/verify-otp/", &json!({ "email": name, "otp": "no-code" }));
        let guesses = |names: &[String]| repeated(names).iter().map(guess).collect::<Vec<_>>();
        (guesses(&unknown(side, ACCOUNTS)), guesses(&waiting_emails(side, ACCOUNTS)))
    };
    timed("verify-otp, wrong code", ["unknown", "waiting"], prepare, |answer| is(answer, 400));
}

#[test]
#[ignore = "measures time: make timing"]
fn timing_the_measurement_finds_what_is_there() {
    let prepare = |side: &mut Side<'_>| {
        let login = Request::post("/api/{v}/auth/login/", &json!({ "email_or_phone": "a@b.example" }));
        let names = unknown(side, ACCOUNTS);
        (vec![login; ACCOUNTS * EACH], wrong(&names))
    };
    let mut seen = 0;
    measured_everywhere(CHEAP, |side, place| {
        let (first, second) = prepare(side);
        let comparison = interleave(side, &first, &second, &|answer| {
            assert!([400, 401].contains(&answer.status), "{}", answer.shown());
        });
        let _ = std::io::stderr().write_all(format!("\nno hash | a hash, {place}: {comparison}").as_bytes());
        assert!(comparison.tells_apart(), "the measurement sees nothing: {comparison}");
        seen += 1;
    });
    inside("the number of worlds is the installation's", || assert_eq!(seen, Engine::BOTH.len() * 2));
    assert!(is_own() || seen == Engine::BOTH.len());
}
