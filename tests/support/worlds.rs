//! The four worlds: each engine on each backend. A story is told once and runs in all of them; whatever the gateway
//! answered is compared between them.

use super::PASSWORD;
use super::answers::{Exchange, Replacements, first_difference};
use super::document;
use super::gateway::{Backend, Gateway, Options};
use super::http::{Answer, Client, Request};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock};

/// One of the two HTTP engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    V1,
    V2,
}

impl Engine {
    pub const BOTH: [Self; 2] = [Self::V1, Self::V2];

    /// The name in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// The name in logs.
    pub fn kind(self) -> &'static str {
        match self {
            Self::V1 => "sync",
            Self::V2 => "async",
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::V1 => Self::V2,
            Self::V2 => Self::V1,
        }
    }

    pub fn address(self, gateway: &Gateway) -> SocketAddr {
        match self {
            Self::V1 => gateway.v1,
            Self::V2 => gateway.v2,
        }
    }
}

/// The configuration that a story needs. Stories with the same one share a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Story {
    pub env: &'static [(&'static str, &'static str)],
}

type Shared = HashMap<(Story, Backend), &'static OnceLock<Gateway>>;

static GATEWAYS: LazyLock<Mutex<Shared>> = LazyLock::new(Mutex::default);

/// The gateway of this configuration and backend that all stories of the test binary share.
pub fn gateway_for(story: Story, backend: Backend) -> &'static Gateway {
    let cell: &'static OnceLock<Gateway> = {
        let mut gateways = GATEWAYS.lock().expect("no panic under the lock");
        gateways.entry((story, backend)).or_insert_with(|| Box::leak(Box::default()))
    };
    cell.get_or_init(|| {
        let options = story.env.iter().fold(Options::new(backend), |options, (key, value)| options.with(key, value));
        Gateway::start(options)
    })
}

/// A number that no other story of this test binary has.
pub fn unique() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(1);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Tells the story in all four worlds and compares the answers.
pub fn for_each_world(story: Story, tell: impl Fn(&mut Side<'_>)) {
    let backends = [Backend::Embedded, Backend::PostgresRedis];
    compare_in(backends.map(|backend| (format!("{backend:?}"), gateway_for(story, backend))), tell);
}

/// Tells the story on both engines of each of these gateways, which have names, and compares the answers.
pub fn compare_in<'a>(gateways: impl IntoIterator<Item = (String, &'a Gateway)>, tell: impl Fn(&mut Side<'_>)) {
    let mut first: Option<(String, Vec<Exchange>)> = None;
    for (name, gateway) in gateways {
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            // Captured output of a failed test then says where it was.
            let place = format!("{} on {name}", engine.name());
            let guard = Place(&place);
            tell(&mut side);
            std::mem::forget(guard);
            match &first {
                None => first = Some((place, side.exchanges)),
                Some((first_place, exchanges)) => {
                    if let Some(difference) = first_difference(exchanges, &side.exchanges) {
                        panic!("{first_place} / {place}: {difference}");
                    }
                }
            }
        }
    }
}

/// Tells a story that handles both engines itself, with a gateway of its own on each backend.
pub fn for_each_backend(env: &[(&str, &str)], tell: impl Fn(&mut Gateway)) {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        let options = env.iter().fold(Options::new(backend), |options, (key, value)| options.with(key, value));
        let mut gateway = Gateway::start(options);
        let place = format!("{backend:?}");
        let guard = Place(&place);
        tell(&mut gateway);
        std::mem::forget(guard);
    }
}

/// Says during a panic in which world it happened.
struct Place<'a>(&'a str);

impl Drop for Place<'_> {
    #[expect(clippy::print_stderr, reason = "belongs to the message of the failed test")]
    fn drop(&mut self) {
        eprintln!("this was {}", self.0);
    }
}

/// An account that has been verified and is signed in.
#[derive(Clone, Debug)]
pub struct Account {
    pub email: String,
    pub password: String,
    pub user_id: String,
    pub access: String,
    pub refresh: String,
}

/// One engine of one gateway, and everything that it answered to the story.
pub struct Side<'a> {
    pub gateway: &'a Gateway,
    pub engine: Engine,
    exchanges: Vec<Exchange>,
    replacements: Replacements,
    clients: [Client; 2],
}

impl<'a> Side<'a> {
    pub fn new(gateway: &'a Gateway, engine: Engine) -> Self {
        let mut replacements = Replacements::new();
        for (own, name) in [(engine, "own"), (engine.other(), "other")] {
            replacements.add(&format!("/api/{}/", own.name()), &format!("/api/<{name}>/"));
            replacements.add(&own.address(gateway).to_string(), &format!("<{name} address>"));
            replacements.add(&own.address(gateway).port().to_string(), &format!("<{name} port>"));
        }
        Self {
            gateway,
            engine,
            exchanges: Vec::new(),
            replacements,
            clients: [Client::new(engine.address(gateway)), Client::new(engine.other().address(gateway))],
        }
    }

    /// Sends it to this engine; `{v}` in the path stands for the engine's name.
    pub fn send(&mut self, request: &Request) -> Answer {
        let named = self.named(request, self.engine);
        let [own, _] = &mut self.clients;
        let answer = own.send(&named);
        document::check(self.engine, &named, &answer);
        self.exchanges.push(self.replacements.exchange(request, &answer));
        answer
    }

    /// Sends it to the other engine of the same gateway.
    pub fn send_to_other(&mut self, request: &Request) -> Answer {
        let named = self.named(request, self.engine.other());
        let [_, other] = &mut self.clients;
        let answer = other.send(&named);
        document::check(self.engine.other(), &named, &answer);
        self.exchanges.push(self.replacements.exchange(request, &answer));
        answer
    }

    /// Sends it on a connection of its own and compares nothing: for requests at the same time.
    pub fn send_apart(&self, request: &Request) -> Answer {
        let named = self.named(request, self.engine);
        let answer = Client::new(self.engine.address(self.gateway)).send(&named);
        document::check(self.engine, &named, &answer);
        answer
    }

    /// What the last request and its answer come to in the comparison.
    pub fn last(&self) -> Exchange {
        self.exchanges.last().expect("a request was sent").clone()
    }

    fn named(&self, request: &Request, engine: Engine) -> Request {
        let path = request.path.replace("{v}", engine.name()).replace("{other}", engine.other().name());
        Request { path, ..request.clone() }
    }

    pub fn post(&mut self, path: &str, body: &Value) -> Answer {
        self.send(&Request::post(&api(path), body))
    }

    pub fn get(&mut self, path: &str, access: &str) -> Answer {
        self.send(&Request::get(&api(path)).bearer(access))
    }

    pub fn post_as(&mut self, access: &str, path: &str, body: &Value) -> Answer {
        self.send(&Request::post(&api(path), body).bearer(access))
    }

    /// An address of this world; the comparison takes it for the same in all of them.
    pub fn email(&mut self, name: &str) -> String {
        let email = format!("{name}.{}{:05}@example.com", self.engine.name(), unique());
        self.stand_in(&email, &format!("<{name}@>"));
        email
    }

    /// A Nigerian mobile number of this world in E.164.
    pub fn phone(&mut self, name: &str) -> String {
        let phone = format!("+234803{:07}", 1_000_000 + unique());
        self.stand_in(&phone, &format!("<{name} phone>"));
        phone
    }

    /// Another text that differs between the worlds by nature.
    pub fn stand_in(&mut self, text: &str, stand_in: &str) {
        self.replacements.add(text, stand_in);
    }

    /// Registers an address and gives the code that was mailed to it, and the challenge.
    pub fn register(&mut self, email: &str, password: &str) -> (String, String) {
        let answer = self.post("auth/register/", &json!({ "email": email, "password": password }));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        let mail = self.gateway.wait_for_mail(email, 1);
        let code = mail.code().unwrap_or_else(|| panic!("a mail without a code: {}", mail.raw));
        (code, answer.text("data.challenge"))
    }

    /// An account that is verified and signed in.
    pub fn account(&mut self, name: &str) -> Account {
        let email = self.email(name);
        let (code, challenge) = self.register(&email, PASSWORD);
        let answer = self.post("auth/verify-otp/", &json!({ "challenge": challenge, "otp": code }));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        account(email, &answer)
    }

    /// Another session of an account.
    pub fn sign_in(&mut self, account: &Account) -> Account {
        let body = json!({ "email_or_phone": account.email, "password": account.password });
        let answer = self.post("auth/login/", &body);
        assert_eq!(answer.status, 200, "{}", answer.shown());
        self::account(account.email.clone(), &answer)
    }

    pub fn refresh(&mut self, refresh: &str) -> Answer {
        self.post("auth/token/refresh/", &json!({ "refresh": refresh }))
    }

    pub fn me(&mut self, access: &str) -> Answer {
        self.get("auth/me/", access)
    }

    /// The answer is a failure in the contract's form, with this status and code.
    #[track_caller]
    pub fn refused(&self, answer: &Answer, status: u16, code: &str) {
        assert_eq!((answer.status, answer.at("code")), (status, json!(code)), "{}", answer.shown());
        assert_eq!(answer.at("success"), json!(false), "{}", answer.shown());
    }
}

fn account(email: String, answer: &Answer) -> Account {
    Account {
        email,
        password: PASSWORD.to_owned(),
        user_id: answer.text("data.user_id"),
        access: answer.text("data.access"),
        refresh: answer.text("data.refresh"),
    }
}

fn api(path: &str) -> String {
    format!("/api/{{v}}/{path}")
}
