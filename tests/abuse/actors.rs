//! What the people of the cases do over and over: sign in from elsewhere, refresh, send many things at once.

use crate::support::{Account, Answer, Client, Engine, Mail, PASSWORD, Request, Side, Sms, eventually, random_bytes};
use crate::target::named;
use serde_json::json;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

/// A verified account that is signed in.
pub fn person(side: &mut Side<'_>, name: &str) -> Account {
    side.account(&named(name))
}

/// An address that nobody else has.
pub fn address(side: &mut Side<'_>, name: &str) -> String {
    side.email(&named(name))
}

/// A mobile number that probably no other run has used.
pub fn number(side: &mut Side<'_>, name: &str) -> String {
    let digits = u32::from_le_bytes(random_bytes()) % 9_000_000 + 1_000_000;
    let phone = format!("+234803{digits}");
    side.stand_in(&phone, &format!("<{name} phone>"));
    phone
}

/// A sign-in from a device that the account has never seen.
pub fn login(name: &str, password: &str) -> Request {
    Request::post("/api/{v}/auth/login/", &json!({ "email_or_phone": name, "password": password }))
        .header("User-Agent", "nobody's device/1.0")
}

pub fn refresh(token: &str) -> Request {
    Request::post("/api/{v}/auth/token/refresh/", &json!({ "refresh": token }))
}

pub fn me(access: &str) -> Request {
    Request::get("/api/{v}/auth/me/").bearer(access)
}

/// Proves an address by the challenge of its registration.
pub fn verify(challenge: &str, code: &str) -> Request {
    Request::post("/api/{v}/auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }))
}

/// Fails to sign in so often that the identifier is locked.
pub fn lock(side: &mut Side<'_>, name: &str) {
    for _ in 0..5 {
        let answer = side.send(&login(name, crate::WRONG));
        side.refused(&answer, 401, "invalid_credentials");
    }
}

/// The own password from a new device.
pub fn enter(side: &mut Side<'_>, account: &Account) -> Answer {
    side.send(&login(&account.email, PASSWORD))
}

/// Neither token of the session is good for anything, on either engine.
pub fn assert_over(side: &mut Side<'_>, access: &str, token: &str) {
    for request in [me(access), refresh(token)] {
        for answer in [side.send(&request), side.send_to_other(&request)] {
            assert_eq!(answer.status, 401, "{}: {}", request.path, answer.shown());
            assert!(["token_not_valid", "token_reused"].contains(&answer.code().as_str()), "{}", answer.shown());
        }
    }
}

/// Sends all lanes at once and the requests of a lane one after the other; every second lane goes to the other engine.
/// The connections are open before the first request goes out.
pub fn race(side: &Side<'_>, lanes: &[Vec<Request>]) -> Vec<Answer> {
    let start = Barrier::new(lanes.len());
    let run = |engine: Engine, lane: &[Request]| {
        let mut client = Client::new(engine.address(side.gateway));
        client.send(&Request::get("/health/live"));
        start.wait();
        let send = |request: &Request| {
            let path = request.path.replace("{v}", engine.name());
            client.send(&Request { path, ..request.clone() })
        };
        lane.iter().map(send).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let engines = [side.engine, side.engine.other()].into_iter().cycle();
        let lanes = engines.zip(lanes).map(|(engine, lane)| scope.spawn(move || run(engine, lane)));
        let lanes: Vec<_> = lanes.collect();
        lanes.into_iter().flat_map(|lane| lane.join().expect("every request of a lane is answered")).collect()
    })
}

/// The same request so often at once.
pub fn race_of(side: &Side<'_>, count: usize, request: &Request) -> Vec<Answer> {
    race(side, &vec![vec![request.clone()]; count])
}

/// Waits for a letter to this address whose subject has this word in it.
pub fn letter_about(side: &Side<'_>, email: &str, word: &str) {
    eventually(&format!("a letter about {word} to {email}"), Duration::from_secs(10), || {
        let mails = side.gateway.mails_to(email);
        mails.iter().any(|mail| mail.header("subject").is_some_and(|it| it.to_lowercase().contains(word))).then_some(())
    });
}

/// The rows of a table that belong to this user, by a further condition.
pub fn count_of_user(side: &Side<'_>, table: &str, user_id: &str, condition: &str) -> u32 {
    let id = match side.gateway.backend {
        crate::support::Backend::PostgresRedis => format!("'{user_id}'"),
        crate::support::Backend::Embedded => format!("x'{}'", user_id.replace('-', "")),
    };
    let rows = side.gateway.query(&format!("select count(*) from {table} where user_id = {id} and {condition}"));
    rows.parse().expect("a count")
}

/// Asks for a new password.
pub fn request_reset(name: &str) -> Request {
    Request::post("/api/{v}/password/reset-request/", &json!({ "email_or_phone": name }))
}

/// What the link of a letter says: for whom it is, and its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetLink {
    pub url: String,
    pub uidb64: String,
    pub token: String,
}

impl ResetLink {
    fn of(mail: &Mail) -> Option<Self> {
        let url = mail.text.split_whitespace().find(|word| word.starts_with("http"))?;
        let mut parts = url.trim_end_matches('/').rsplit(['/', '=', '&', '?']).filter(|part| part.len() > 15);
        let (token, uidb64) = (parts.next()?, parts.next()?);
        Some(Self { url: url.to_owned(), uidb64: uidb64.to_owned(), token: token.to_owned() })
    }

    pub fn confirm(&self, password: &str) -> Request {
        let body = json!({ "uidb64": self.uidb64, "token": self.token, "new_password": password });
        Request::post("/api/{v}/password/reset-confirm/", &body)
    }
}

/// The links of all reset letters to this address, oldest first, once there are so many.
pub fn reset_links(side: &Side<'_>, email: &str, count: usize) -> Vec<ResetLink> {
    eventually(&format!("{count} reset links to {email}"), Duration::from_secs(15), || {
        let links: Vec<_> = side.gateway.mails_to(email).iter().filter_map(ResetLink::of).collect();
        (links.len() >= count).then_some(links)
    })
}

/// Asks for a reset and reads the letter, which is the first one about it.
pub fn forget(side: &mut Side<'_>, email: &str) -> ResetLink {
    assert_eq!(side.send(&request_reset(email)).status, 200);
    reset_links(side, email, 1).remove(0)
}

pub fn change(access: &str, current: &str, new: &str) -> Request {
    let body = json!({ "current_password": current, "new_password": new });
    Request::post("/api/{v}/password/change/", &body).bearer(access)
}

/// A verified account with a phone number; the texts so far are one.
pub fn phone_person(side: &mut Side<'_>, name: &str) -> (String, Answer) {
    let phone = number(side, name);
    let answer = side.post("auth/register/", &json!({ "phone": phone, "password": PASSWORD }));
    assert_eq!(answer.status, 201, "{}", answer.shown());
    let code = texted_code(side, &phone, 1);
    let answer = side.send(&verify(&answer.text("data.challenge"), &code));
    assert_eq!(answer.status, 200, "{}", answer.shown());
    (phone, answer)
}

pub fn confirm_by_phone(phone: &str, code: &str, password: &str) -> Request {
    let body = json!({ "phone": phone, "otp": code, "new_password": password, "new_password_confirm": password });
    Request::post("/api/{v}/password/reset-phone-confirm/", &body)
}

/// The code in the text message with this number among those that have one, counted from 1: notices have none.
pub fn texted_code(side: &Side<'_>, phone: &str, nth: usize) -> String {
    eventually(&format!("code {nth} to {phone}"), Duration::from_secs(15), || {
        side.gateway.texts_to(phone).iter().filter_map(Sms::code).nth(nth - 1)
    })
}
