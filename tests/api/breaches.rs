//! The look-up of breached passwords: a list that answers, one that says nothing, and one that is not there.

use crate::password_reset::{NEW, link, login};
use crate::support::{Engine, Gateway, PASSWORD, Request, Side, for_each_backend};
use data_encoding::HEXUPPER;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use socket2::{Domain, Socket, Type};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const BREACHED: &str = "granite-orchid-93-kettle";

/// How the list behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Answers,
    Silent,
    Fails,
    Babbles,
}

/// A list that knows one password.
struct List {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    /// The head of every request.
    asked: Arc<Mutex<Vec<String>>>,
}

fn digits(password: &str) -> String {
    HEXUPPER.encode(&Sha1::digest(password.as_bytes()))
}

impl List {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (mood, asked) = (Arc::new(Mutex::new(Mood::Answers)), Arc::new(Mutex::new(Vec::new())));
        let (of_thread, heads) = (Arc::clone(&mood), Arc::clone(&asked));
        std::thread::spawn(move || {
            // Connections that got no answer stay open.
            let mut open = Vec::new();
            for mut connection in listener.incoming().flatten() {
                let head = read_head(&mut connection);
                let mood = *of_thread.lock().expect("no panic under the lock");
                if let Some(answer) = answer(&head, mood) {
                    let _ = connection.write_all(answer.as_bytes());
                } else {
                    open.push(connection);
                }
                heads.lock().expect("no panic under the lock").push(head);
            }
        });
        Self { address, mood, asked }
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock().expect("no panic under the lock") = mood;
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic under the lock").clone()
    }

    fn url(&self) -> String {
        format!("http://{}/list", self.address)
    }
}

fn read_head(connection: &mut TcpStream) -> String {
    let _ = connection.set_read_timeout(Some(Duration::from_secs(5)));
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte).is_ok_and(|count| count == 1) {
        head.extend(byte);
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn answer(head: &str, mood: Mood) -> Option<String> {
    let prefix = head.split(' ').nth(1).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    let mut lines = vec!["0018A45C4D1DEF81644B54AB7F969B88D65:3".to_owned()];
    for (password, count) in [(BREACHED, 52), (NEW, 0)] {
        let digits = digits(password);
        lines.extend(digits.strip_prefix(prefix).map(|suffix| format!("{suffix}:{count}")));
    }
    let (status, body) = match mood {
        Mood::Answers => ("200 OK", lines.join("\r\n")),
        Mood::Fails => ("503 Service Unavailable", String::new()),
        Mood::Babbles => ("200 OK", "<html>Please sign in to the wireless network</html>".to_owned()),
        Mood::Silent => return None,
    };
    let length = body.len();
    Some(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"))
}

/// Gateways on both backends that ask this list.
fn asking(list: &List, on_failure: &str, tell: impl Fn(&mut Gateway)) {
    let url = list.url();
    let env = [
        ("BIFRONS_PASSWORDS__BREACHES_URL", url.as_str()),
        ("BIFRONS_PASSWORDS__BREACHES_TIMEOUT", "400ms"),
        ("BIFRONS_PASSWORDS__BREACHES_ON_FAILURE", on_failure),
        ("BIFRONS_OTP__RESEND_INTERVAL", "0s"),
    ];
    for_each_backend(&env, tell);
}

#[test]
fn a_breached_password_is_refused_wherever_one_is_set_and_others_are_taken() {
    let list = List::start();
    asking(&list, "closed", |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = side.account("ada");
            let email = side.email("bayo");
            let link = link(&mut side, &account.email, 2);
            let path = format!("/api/{{v}}/password/reset-confirm/{}/{}/", link.uidb64, link.token);
            let change = json!({ "current_password": PASSWORD, "new_password": BREACHED });
            for (field, request) in [
                (
                    "password",
                    Request::post("/api/{v}/auth/register/", &json!({ "email": email, "password": BREACHED })),
                ),
                ("new_password", Request::post("/api/{v}/password/reset-confirm/", &link.sets(BREACHED))),
                ("password", Request::post(&path, &json!({ "password": BREACHED, "password2": BREACHED }))),
                ("new_password", Request::post("/api/{v}/password/change/", &change).bearer(&account.access)),
            ] {
                let answer = side.send(&request);
                side.refused(&answer, 400, "validation_error");
                let sentences = answer.at(&format!("errors.{field}"));
                assert!(sentences.to_string().contains("data breach"), "{}", answer.shown());
                assert_eq!(sentences.as_array().map(Vec::len), Some(1), "{}", answer.shown());
            }
            let answer = side.post("password/reset-confirm/", &link.sets(NEW));
            assert_eq!(answer.status, 200, "a line with the count 0 is padding: {}", answer.shown());
            assert_eq!(login(&mut side, &account.email, NEW).status, 200);
        }
        let create = ["user", "create", "--role", "staff", "--email", "staff@example.com"];
        let outcome = gateway.run(&create, &format!("{BREACHED}\n"));
        assert_eq!(outcome.status.code(), Some(1), "{}", outcome.output);
        assert!(outcome.errors.contains("data breach"), "{}", outcome.errors);
        assert!(gateway.run(&create, &format!("{NEW}\n")).status.success());
    });
    for head in list.asked() {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let asked = path.strip_prefix("/list/range/").unwrap_or_default();
        let known = [BREACHED, NEW, PASSWORD].map(|password| digits(password).chars().take(5).collect::<String>());
        assert!(known.contains(&asked.to_owned()), "five digits and nothing else: {path}");
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("get ") && head.contains("\r\nadd-padding: true\r\n"), "{head}");
        assert!(head.contains("\r\nuser-agent: bifrons/") && !head.contains("cookie"), "{head}");
    }
    assert!(list.asked().len() >= 8);
}

#[test]
fn nobody_is_asked_about_a_password_that_is_refused_anyway_or_only_shown() {
    let list = List::start();
    asking(&list, "open", |gateway| {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let account = side.account("ada");
            let before = list.asked().len();
            for password in ["short", "password123", &"wT9~ k".repeat(22)] {
                let email = side.email("bayo");
                let answer = side.post("auth/register/", &json!({ "email": email, "password": password }));
                side.refused(&answer, 400, "validation_error");
            }
            side.sign_in(&account);
            let wrong = json!({ "current_password": "wrong-password-1", "new_password": BREACHED });
            let answer = side.post_as(&account.access, "password/change/", &wrong);
            side.refused(&answer, 400, "invalid_current_password");
            let guess = json!({ "uidb64": "dQ", "token": "dA", "new_password": BREACHED });
            let answer = side.post("password/reset-confirm/", &guess);
            side.refused(&answer, 400, "invalid_token");
            assert_eq!(list.asked().len(), before);
        }
    });
}

#[test]
fn without_an_answer_the_password_is_accepted_or_refused_as_configured() {
    for (on_failure, status) in [("open", 201), ("closed", 503)] {
        let list = List::start();
        asking(&list, on_failure, |gateway| {
            for engine in Engine::BOTH {
                let mut side = Side::new(gateway, engine);
                list.be(Mood::Answers);
                let account = side.account("ada");
                let link = link(&mut side, &account.email, 2);
                for mood in [Mood::Silent, Mood::Fails, Mood::Babbles] {
                    list.be(mood);
                    let email = side.email("bayo");
                    let answer = side.post("auth/register/", &json!({ "email": email, "password": BREACHED }));
                    assert_eq!(answer.status, status, "{}", answer.shown());
                    if status == 503 {
                        side.refused(&answer, 503, "service_unavailable");
                        assert!(answer.header("retry-after").is_some());
                        assert_eq!(answer.at("errors"), Value::Null);
                    }
                }
                assert_eq!(login(&mut side, &account.email, PASSWORD).status, 200, "who has a password needs no list");
                let answer = side.post("password/reset-confirm/", &link.sets(NEW));
                assert_eq!(answer.status, if status == 503 { 503 } else { 200 }, "{}", answer.shown());
                if status == 503 {
                    list.be(Mood::Answers);
                    let answer = side.post("password/reset-confirm/", &link.sets(NEW));
                    assert_eq!(answer.status, 200, "the link was not spent: {}", answer.shown());
                }
            }
        });
    }
}

#[test]
fn a_list_that_is_not_there_is_one_that_does_not_answer() {
    // Held, so that no server of another test has it meanwhile; nobody listens there.
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    held.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let address = held.local_addr().ok().and_then(|address| address.as_socket()).expect("its address");
    let nobody = List { address, ..List::start() };
    for (on_failure, status) in [("open", 201), ("closed", 503)] {
        asking(&nobody, on_failure, |gateway| {
            for engine in Engine::BOTH {
                let mut side = Side::new(gateway, engine);
                let email = side.email("ada");
                let answer = side.post("auth/register/", &json!({ "email": email, "password": BREACHED }));
                assert_eq!(answer.status, status, "{}", answer.shown());
            }
        });
    }
}
