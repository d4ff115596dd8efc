//! The users and sessions of a gateway, and the requests that they make.

use std::{io, net::SocketAddr, thread, time::Duration};

use super::{
    driver::{self, Kind, Load, Mark, Pace, Plan, Verdict},
    gateway::Gateway,
    limits::slots,
};

pub const PASSWORD: &str = "violet-anchor-72-meadow";
/// Of those who sign up, in turn. What it takes to judge one grows with its length and with the digits that may stand for
/// letters, here from a quarter of the mean to two and a half times of it; people choose, and programs make, such as these.
pub const NEW_PASSWORDS: [&str; 8] = [
    PASSWORD,
    "kT9vQm2xLw7RbZ",
    "summer2024Paris",
    "Xk29fmPq",
    "qwfpgj-xazbyc-hudreq",
    "jazz.Frank.41",
    "correct-horse-9",
    "hUnter2-Gatsby",
];
/// Sign-ins are spread over so many accounts.
const USERS: usize = 64;
/// Fewer than the gateway lets wait for a hash by default.
const SIGNING_IN_AT_ONCE: usize = 32;
const HEADERS: &str = "Accept: application/json\r\nAccept-Language: en-GB,en;q=0.7\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Engine {
    V1,
    V2,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Scenario {
    Login,
    Register,
    Refresh,
    Verify,
    Me,
    Mixed,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Register => "register",
            Self::Refresh => "refresh",
            Self::Verify => "verify",
            Self::Me => "me",
            Self::Mixed => "mixed",
        }
    }
}

struct Session {
    access: String,
    refresh: String,
    /// Whether an answer with its next tokens may have been lost.
    is_lost: bool,
}

/// What a gateway's clients hold.
pub struct World {
    emails: Vec<String>,
    sessions: Vec<Session>,
    registered: u64,
    dice: u64,
}

impl World {
    /// Makes users, and signs them in so often that each connection has a session of its own.
    pub fn seed(gateway: &Gateway, sessions: usize) -> io::Result<Self> {
        let emails: Vec<String> = (0..USERS).map(|number| format!("load-{number}@example.com")).collect();
        // Each is a process that hashes once: as many at a time as there are processors.
        thread::scope(|scope| {
            let parts = emails.chunks(USERS.div_ceil(slots()));
            let create = |part: &[String]| part.iter().try_for_each(|email| gateway.create_user(email, PASSWORD));
            let workers: Vec<_> = parts.map(|part| scope.spawn(move || create(part))).collect();
            workers
                .into_iter()
                .map(|worker| worker.join())
                .try_for_each(|ended| ended.unwrap_or_else(|_panic| Err(io::Error::other("a thread has panicked"))))
        })?;
        let mut world = Self { emails, sessions: Vec::new(), registered: 0, dice: 0x9E37_79B9_7F4A_7C15 };
        world.sessions.extend((0..sessions).map(|_| Session {
            access: String::new(),
            refresh: String::new(),
            is_lost: true,
        }));
        world.repair(gateway)?;
        Ok(world)
    }

    /// Signs in where a session is missing.
    pub fn repair(&mut self, gateway: &Gateway) -> io::Result<()> {
        let missing: Vec<usize> =
            self.sessions.iter().enumerate().filter(|(_, session)| session.is_lost).map(|(index, _)| index).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let plan = Plan {
            address: gateway.address(Engine::V2),
            connections: SIGNING_IN_AT_ONCE.min(missing.len()),
            pace: Pace::Closed,
            warm_up: Duration::ZERO,
            length: Duration::from_secs(300),
        };
        let mut load = SigningIn {
            connections: vec![None; plan.connections],
            left: missing.len(),
            missing,
            world: self,
            host: plan.address,
        };
        let tally = driver::drive(&plan, &mut load, &mut |_: Mark| {})?;
        if load.left > 0 {
            return Err(io::Error::other(format!("not everybody could sign in: {:?}", tally.errors)));
        }
        Ok(())
    }

    /// A request for somebody's account.
    pub fn me(&self, engine: Engine, host: SocketAddr) -> Vec<u8> {
        let mut out = Vec::new();
        let access = self.sessions.first().map(|session| session.access.as_str());
        me(&mut out, host, engine.name(), access.unwrap_or_default());
        out
    }

    fn random(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }

    fn any_email(&mut self) -> String {
        let count = u64::try_from(self.emails.len()).unwrap_or(1);
        let index = usize::try_from(self.random() % count).unwrap_or_default();
        self.emails.get(index).cloned().unwrap_or_default()
    }
}

/// Opens the sessions that are missing.
struct SigningIn<'a> {
    world: &'a mut World,
    missing: Vec<usize>,
    left: usize,
    connections: Vec<Option<usize>>,
    host: SocketAddr,
}

impl Load for SigningIn<'_> {
    fn request(&mut self, connection: usize, out: &mut Vec<u8>) -> Kind {
        let session = self.missing.pop();
        if let Some(slot) = self.connections.get_mut(connection) {
            *slot = session;
        }
        login(out, self.host, Engine::V2, &self.world.any_email(), "");
        Kind::Login
    }

    fn answer(&mut self, connection: usize, _: Kind, status: u16, body: &[u8]) -> Verdict {
        let Some(index) = self.connections.get_mut(connection).and_then(Option::take) else { return Verdict::Good };
        let session = self.world.sessions.get_mut(index);
        match (session, text(body, "access"), text(body, "refresh")) {
            (Some(session), Some(access), Some(refresh)) if status == 200 => {
                *session = Session { access: access.to_owned(), refresh: refresh.to_owned(), is_lost: false };
                self.left -= 1;
                Verdict::Good
            }
            _ => {
                self.missing.push(index);
                judge(status, 200)
            }
        }
    }

    fn lost(&mut self, connection: usize) {
        self.missing.extend(self.connections.get_mut(connection).and_then(Option::take));
    }

    fn is_done(&self) -> bool {
        self.left == 0
    }
}

/// The requests of one scenario to one engine.
pub struct Traffic<'a> {
    world: &'a mut World,
    engine: Engine,
    scenario: Scenario,
    host: SocketAddr,
    /// The session that each connection has just used, and how often it has asked.
    turns: Vec<(usize, usize)>,
    /// Whether each sign-in comes over a connection of its own.
    is_from_strangers: bool,
}

impl<'a> Traffic<'a> {
    pub fn new(world: &'a mut World, engine: Engine, scenario: Scenario, plan: &Plan) -> Self {
        Self {
            world,
            engine,
            scenario,
            host: plan.address,
            turns: vec![(0, 0); plan.connections],
            is_from_strangers: false,
        }
    }

    /// Sign-ins of people who have no connection yet.
    pub fn of_strangers(world: &'a mut World, engine: Engine, plan: &Plan) -> Self {
        Self { is_from_strangers: true, ..Self::new(world, engine, Scenario::Login, plan) }
    }

    /// The next of a connection's own sessions.
    fn turn(&mut self, connection: usize) -> usize {
        let connections = self.turns.len().max(1);
        let own = (self.world.sessions.len() / connections).max(1);
        let Some((session, count)) = self.turns.get_mut(connection) else { return 0 };
        *count += 1;
        *session = connection + connections * (*count % own);
        *session
    }

    fn pick(&mut self) -> Kind {
        match self.scenario {
            Scenario::Login => Kind::Login,
            Scenario::Register => Kind::Register,
            Scenario::Refresh => Kind::Refresh,
            Scenario::Verify => Kind::Verify,
            Scenario::Me => Kind::Me,
            Scenario::Mixed => match self.world.random() >> 11 & 1023 {
                // Of 1024: 4 % sign in, 1 % sign up, 15 % rotate, and the others ask who somebody is.
                0..41 => Kind::Login,
                41..51 => Kind::Register,
                51..205 => Kind::Refresh,
                205..615 => Kind::Verify,
                _ => Kind::Me,
            },
        }
    }
}

impl Load for Traffic<'_> {
    fn request(&mut self, connection: usize, out: &mut Vec<u8>) -> Kind {
        let kind = self.pick();
        let index = self.turn(connection);
        let (host, version) = (self.host, self.engine.name());
        let session = self.world.sessions.get(index);
        match (kind, session) {
            (Kind::Refresh, Some(session)) => {
                post(out, host, version, "token/refresh", &[("refresh", &session.refresh)], "");
            }
            (Kind::Verify, Some(session)) => {
                post(out, host, version, "token/verify", &[("token", &session.access)], "");
            }
            (Kind::Me, Some(session)) => me(out, host, version, &session.access),
            (Kind::Register, _) => {
                self.world.registered += 1;
                let email = format!("new-{}@example.com", self.world.registered);
                let nth = usize::try_from(self.world.registered).unwrap_or_default();
                let password = NEW_PASSWORDS.get(nth % NEW_PASSWORDS.len()).unwrap_or(&PASSWORD);
                post(out, host, version, "register", &[("email", &email), ("password", password)], "");
            }
            _ => {
                let more = if self.is_from_strangers { "Connection: close\r\n" } else { "" };
                login(out, host, self.engine, &self.world.any_email(), more);
            }
        }
        kind
    }

    fn answer(&mut self, connection: usize, kind: Kind, status: u16, body: &[u8]) -> Verdict {
        let verdict = judge(status, if kind == Kind::Register { 201 } else { 200 });
        let index = self.turns.get(connection).map_or(0, |(session, _)| *session);
        let Some(session) = self.world.sessions.get_mut(index) else { return verdict };
        session.is_lost |= matches!(verdict, Verdict::Wrong(_));
        if kind != Kind::Refresh {
            return verdict;
        }
        match (&verdict, text(body, "access"), text(body, "refresh")) {
            (Verdict::Good, Some(access), Some(refresh)) => {
                let is_new = refresh != session.refresh;
                session.access.clear();
                session.access.push_str(access);
                session.refresh.clear();
                session.refresh.push_str(refresh);
                if is_new { verdict } else { Verdict::Wrong("the refresh token did not change".to_owned()) }
            }
            (Verdict::Good, ..) => Verdict::Wrong("no tokens".to_owned()),
            (Verdict::Refused | Verdict::Wrong(_), ..) => verdict,
        }
    }

    fn lost(&mut self, connection: usize) {
        let index = self.turns.get(connection).map_or(0, |(session, _)| *session);
        if let Some(session) = self.world.sessions.get_mut(index) {
            session.is_lost = true;
        }
    }
}

/// The same request again and again.
pub struct Same {
    pub bytes: Vec<u8>,
}

impl Same {
    pub fn get(host: SocketAddr, path: &str, token: Option<&str>) -> Self {
        let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        Self { bytes: format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{HEADERS}{bearer}\r\n").into_bytes() }
    }
}

impl Load for Same {
    fn request(&mut self, _: usize, out: &mut Vec<u8>) -> Kind {
        out.extend_from_slice(&self.bytes);
        Kind::Fixed
    }

    fn answer(&mut self, _: usize, _: Kind, status: u16, _: &[u8]) -> Verdict {
        judge(status, 200)
    }
}

fn login(out: &mut Vec<u8>, host: SocketAddr, engine: Engine, email: &str, more: &str) {
    post(out, host, engine.name(), "login", &[("email_or_phone", email), ("password", PASSWORD)], more);
}

fn me(out: &mut Vec<u8>, host: SocketAddr, version: &str, access: &str) {
    // Writing to a vector does not fail.
    let _ = io::Write::write_fmt(
        out,
        format_args!(
            "GET /api/{version}/auth/me/ HTTP/1.1\r\nHost: {host}\r\n{HEADERS}Authorization: Bearer {access}\r\n\r\n"
        ),
    );
}

/// The values need no escapes.
fn post(out: &mut Vec<u8>, host: SocketAddr, version: &str, route: &str, fields: &[(&str, &str)], more: &str) {
    let length: usize = fields.iter().map(|(name, value)| name.len() + value.len() + 6).sum::<usize>() + 1;
    // Writing to a vector does not fail.
    let _ = io::Write::write_fmt(
        out,
        format_args!(
            "POST /api/{version}/auth/{route}/ HTTP/1.1\r\nHost: {host}\r\n{HEADERS}{more}\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ),
    );
    for (index, (name, value)) in fields.iter().enumerate() {
        for part in [if index == 0 { "{\"" } else { ",\"" }, *name, "\":\"", *value, "\""] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.push(b'}');
}

fn judge(status: u16, expected: u16) -> Verdict {
    match status {
        _ if status == expected => Verdict::Good,
        429 | 503 => Verdict::Refused,
        _ => Verdict::Wrong(format!("status {status}")),
    }
}

/// The text under a key of a JSON document, where neither needs escapes.
fn text<'a>(body: &'a [u8], key: &str) -> Option<&'a str> {
    let body = std::str::from_utf8(body).ok()?;
    let mut rest = body;
    loop {
        rest = rest.split_once('"')?.1;
        if let Some(after) = rest.strip_prefix(key).and_then(|rest| rest.strip_prefix("\":\"")) {
            return after.split('"').next();
        }
    }
}
