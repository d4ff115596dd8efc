//! The refresh cookie and CORS in a real browser: Chromium loads pages of several origins, and what it sends to the
//! gateway and gets from it is read off the wire.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use support::{
    Backend, Engine, Gateway, Options, PASSWORD, Process, Program, Side, eventually, fresh_directory, pause, unique,
};

const COOKIE: &str = "bifrons_refresh";
/// How long a step in the browser may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Carries bytes between the browser and one engine unchanged, and keeps them.
struct Wire {
    port: u16,
    engine: Arc<Mutex<Option<SocketAddr>>>,
    connections: Arc<Mutex<Vec<Arc<Mutex<Carried>>>>>,
}

/// What went over one connection so far.
#[derive(Default)]
struct Carried {
    asked: Vec<u8>,
    answered: Vec<u8>,
    taken: usize,
}

/// A request of the browser and the gateway's answer to it.
#[derive(Clone, Debug)]
struct Exchange {
    asked: Message,
    answered: Message,
}

/// A request or an answer: its first line, its fields with names in lower case, its body.
#[derive(Clone, Debug, Default)]
struct Message {
    first_line: String,
    fields: Vec<(String, String)>,
    body: String,
}

impl Message {
    /// Cuts the first message off the bytes; `None` while it is not whole.
    fn cut(bytes: &[u8], has_body: bool) -> Option<(Self, &[u8])> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(bytes.get(..end)?).into_owned();
        let mut lines = head.split("\r\n");
        let first_line = lines.next()?.to_owned();
        let fields: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut message = Self { first_line, fields, body: String::new() };
        assert!(message.field("transfer-encoding").is_none(), "a length is expected: {head}");
        let length = message.field("content-length").filter(|_| has_body);
        let length = length.map_or(0, |length| length.parse().expect("a length"));
        let rest = bytes.get(end + 4..)?;
        message.body = String::from_utf8_lossy(rest.get(..length)?).into_owned();
        Some((message, rest.get(length..)?))
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

impl Exchange {
    fn method(&self) -> &str {
        self.asked.first_line.split(' ').next().unwrap_or_default()
    }

    fn path(&self) -> &str {
        self.asked.first_line.split(' ').nth(1).unwrap_or_default()
    }

    fn status(&self) -> u16 {
        let status = self.answered.first_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("no status: {self:?}"))
    }

    /// The refresh token that the browser sent along as a cookie.
    fn cookie(&self) -> Option<&str> {
        let pairs = self.asked.field("cookie")?.split(';').filter_map(|pair| pair.trim().split_once('='));
        pairs.into_iter().find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
    }

    fn code(&self) -> Value {
        let body: Value = serde_json::from_str(&self.answered.body).unwrap_or_default();
        at(&body, "/code").clone()
    }
}

impl Wire {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let wire = Self { port, engine: Arc::default(), connections: Arc::default() };
        let (engine, connections) = (Arc::clone(&wire.engine), Arc::clone(&wire.connections));
        thread::spawn(move || {
            for browser in listener.incoming().flatten() {
                let address = engine.lock().expect("no panic under the lock").expect("the engine runs");
                let Ok(gateway) = TcpStream::connect(address) else { continue };
                let carried: Arc<Mutex<Carried>> = Arc::default();
                connections.lock().expect("no panic under the lock").push(Arc::clone(&carried));
                let ends = (browser.try_clone().expect("a socket"), gateway.try_clone().expect("a socket"));
                let kept = Arc::clone(&carried);
                thread::spawn(move || carry(browser, gateway, |bytes| lock(&kept).asked.extend_from_slice(bytes)));
                thread::spawn(move || {
                    carry(ends.1, ends.0, |bytes| lock(&carried).answered.extend_from_slice(bytes));
                });
            }
        });
        wire
    }

    fn leads_to(&self, address: SocketAddr) {
        *self.engine.lock().expect("no panic under the lock") = Some(address);
    }

    fn url(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// Every exchange on this path that has been answered since the last look.
    fn take(&self, path: &str) -> Vec<Exchange> {
        let connections = self.connections.lock().expect("no panic under the lock").clone();
        let mut found = Vec::new();
        for connection in connections {
            let mut carried = lock(&connection);
            let mut exchanges = Vec::new();
            let (mut asked, mut answered) = (carried.asked.as_slice(), carried.answered.as_slice());
            while let Some((request, next)) = Message::cut(asked, true) {
                let Some((answer, rest)) = Message::cut(answered, true) else { break };
                (asked, answered) = (next, rest);
                exchanges.push(Exchange { asked: request, answered: answer });
            }
            let before = std::mem::replace(&mut carried.taken, exchanges.len());
            found.extend(exchanges.into_iter().skip(before).filter(|exchange| exchange.path() == path));
        }
        found
    }
}

fn lock(carried: &Mutex<Carried>) -> std::sync::MutexGuard<'_, Carried> {
    carried.lock().expect("no panic under the lock")
}

/// Carries one direction to its end; the bytes are kept before they go on.
fn carry(mut from: TcpStream, mut to: TcpStream, keep: impl Fn(&[u8])) {
    let mut part = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut part) {
        let bytes = part.get(..count).unwrap_or_default();
        keep(bytes);
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A page of one origin that runs the scripts that the test hands it, and reports what they return.
struct Page {
    origin: String,
    scripts: Sender<String>,
    results: Receiver<Value>,
}

/// Asks for a script, runs it, reports, again and again; `go` leaves for another origin.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>page</title><script>
let leaveFor = null;
function go(address) { leaveFor = address; }
(async () => {
  while (true) {
    const script = await (await fetch('/next')).text();
    let result;
    try { result = { value: await new Function('return (async () => {' + script + '})()')() ?? null }; }
    catch (error) { result = { failed: String(error) }; }
    await fetch('/result', { method: 'POST', body: JSON.stringify(result) });
    if (leaveFor) { location.href = leaveFor; return; }
  }
})();
</script>"#;

impl Page {
    fn serve(host: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let origin = format!("http://{host}:{}", listener.local_addr().expect("its address").port());
        let (scripts, to_run) = mpsc::channel::<String>();
        let (report, results) = mpsc::channel();
        let to_run = Arc::new(Mutex::new(to_run));
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (to_run, report) = (Arc::clone(&to_run), report.clone());
                // The browser may open a connection ahead of time and send nothing on it.
                thread::spawn(move || Self::answer(connection, &to_run, &report));
            }
        });
        Self { origin, scripts, results }
    }

    fn answer(connection: TcpStream, to_run: &Mutex<Receiver<String>>, report: &Sender<Value>) -> Option<()> {
        let mut reader = BufReader::new(connection);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let (kind, text) = match head.split(' ').nth(1)? {
            "/next" => ("text/plain", to_run.lock().ok()?.recv().ok()?),
            "/result" => {
                report.send(serde_json::from_slice(&body).ok()?).ok()?;
                ("text/plain", String::new())
            }
            "/" => ("text/html", PAGE.to_owned()),
            _ => ("text/plain", "nothing".to_owned()),
        };
        let mut connection = reader.into_inner();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nCache-Control: no-store\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            text.len()
        );
        connection.write_all(head.as_bytes()).ok()?;
        connection.write_all(text.as_bytes()).ok()
    }
}

/// A headless Chromium with a profile of its own.
struct Browser {
    process: Option<Process>,
    directory: PathBuf,
    log: PathBuf,
}

impl Browser {
    fn start(first: &Page) -> Self {
        let directory = fresh_directory("browser");
        let profile = directory.join("profile");
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--disable-breakpad",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-default-apps",
            "--disable-extensions",
            "--disable-sync",
            "--no-first-run",
            "--no-proxy-server",
            // A form's answer opens in a window of its own, without anybody's click.
            "--disable-popup-blocking",
        ];
        let mut program = Program::new("chromium", &directory, "chromium.log").arguments(arguments);
        program = program.arguments([format!("--user-data-dir={}", profile.display()), format!("{}/", first.origin)]);
        // What it leaves behind is removed with the directory.
        program.environment = ["HOME", "TMPDIR"].map(|name| (name.to_owned(), directory.display().to_string())).into();
        let log = program.log.clone();
        Self { process: Some(program.start()), directory, log }
    }

    /// What it has written, for the message of a failed test.
    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Runs a script in the page that it shows, and gives what the script returns.
    #[track_caller]
    fn run(&mut self, page: &Page, script: &str) -> Value {
        let result = self.try_run(page, script);
        assert!(result.get("failed").is_none(), "at {}: {result}\n{script}", page.origin);
        at(&result, "/value").clone()
    }

    /// Runs a script that may throw: the answer has `value` or `failed`.
    #[track_caller]
    fn try_run(&mut self, page: &Page, script: &str) -> Value {
        page.scripts.send(script.to_owned()).expect("the page is served");
        page.results.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let ended = self.process.as_mut().and_then(Process::ended);
            panic!(
                "Chromium (is it installed? scripts/bootstrap) did not run the script within {PATIENCE:?}; it ended: \
                 {ended:?}; it said: {}\n{script}",
                self.said()
            )
        })
    }

    /// Leaves one page for another.
    #[track_caller]
    fn go(&mut self, from: &Page, to: &Page) {
        self.run(from, &format!("go({});", json!(format!("{}/", to.origin))));
        let shown = self.run(to, "return location.origin;");
        assert_eq!(shown, json!(to.origin), "Chromium shows another page");
    }

    /// Ends it, and makes sure that none of its processes is left.
    fn close(mut self) {
        let mut process = self.process.take().expect("a running browser");
        let pid = process.pid();
        let running = self.processes();
        assert!(running.contains(&pid) && running.len() > 3, "{pid} is not Chromium: {}", self.said());
        process.signal("TERM");
        let ended = (0..500).any(|_| {
            pause(Duration::from_millis(20));
            process.ended().is_some()
        });
        if !ended {
            process.signal("KILL");
            panic!("Chromium did not end by itself: {}", self.said());
        }
        drop(process);
        eventually("every process of Chromium ends", Duration::from_secs(10), || {
            self.processes().is_empty().then_some(())
        });
    }

    /// Its processes, which all were started with its directory as their home.
    fn processes(&self) -> Vec<u32> {
        let home = format!("HOME={}", self.directory.display());
        let pids = fs::read_dir("/proc").expect("the processes").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
        pids.filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == home.as_bytes())
        })
        .collect()
    }
}

/// What stands at this JSON pointer; null when nothing does.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// A script that posts JSON with credentials and returns everything that the page can see of the answer.
fn fetch_json(url: &str, body: &Value, bearer: Option<&str>) -> String {
    let headers = match bearer {
        Some(token) => json!({ "Content-Type": "application/json", "Authorization": format!("Bearer {token}") }),
        None => json!({ "Content-Type": "application/json" }),
    };
    let options = json!({ "method": "POST", "credentials": "include", "headers": headers, "body": body.to_string() });
    format!(
        "const answer = await fetch({}, {options});
         return {{ status: answer.status, type: answer.type, body: await answer.json(), cookies: document.cookie,
                   headers: Object.fromEntries(answer.headers) }};",
        json!(url)
    )
}

/// A script that posts without a pre-flight, and returns what the page can see.
fn fetch_simple(url: &str, options: &Value) -> String {
    let mut all = options.clone();
    let fields = all.as_object_mut().expect("the options of a fetch");
    fields.extend([("method".to_owned(), json!("POST")), ("credentials".to_owned(), json!("include"))]);
    format!("const answer = await fetch({}, {all}); return answer.type;", json!(url))
}

/// A script that submits a plain HTML form into a frame or a window of this name.
fn submit_form(url: &str, target: &str) -> String {
    format!(
        "if ({target:?} !== '_blank') {{
           const frame = document.createElement('iframe'); frame.name = {target:?}; document.body.append(frame);
         }}
         const form = document.createElement('form');
         Object.assign(form, {{ method: 'POST', action: {url:?}, target: {target:?} }});
         form.append(Object.assign(document.createElement('input'), {{ name: 'device', value: 'x' }}));
         document.body.append(form); form.submit();"
    )
}

/// The gateway with a wire in front of each engine, and the pages that ask it.
struct World {
    gateway: Gateway,
    wires: [Wire; 2],
}

struct Pages {
    allowed: Page,
    other: Page,
    foreign: Page,
}

impl Pages {
    fn serve() -> Self {
        Self { allowed: Page::serve("localhost"), other: Page::serve("localhost"), foreign: Page::serve("127.0.0.1") }
    }
}

impl World {
    fn start(backend: Backend, origin: &str) -> Self {
        let wires = [Wire::new(), Wire::new()];
        let [first, _] = &wires;
        let options =
            Options::new(backend).with("BIFRONS_PUBLIC_URL", &first.url()).with("BIFRONS_CORS__ORIGINS", origin);
        let gateway = Gateway::start(options);
        for (engine, wire) in Engine::BOTH.iter().zip(&wires) {
            wire.leads_to(engine.address(&gateway));
        }
        Self { gateway, wires }
    }

    fn wire(&self, engine: Engine) -> &Wire {
        let [first, second] = &self.wires;
        if engine == Engine::V1 { first } else { second }
    }
}

/// One exchange of this method on the wire, and how many pre-flights came with it.
#[track_caller]
fn one(exchanges: &[Exchange], origin: &str) -> (Exchange, usize) {
    let (preflights, others): (Vec<_>, Vec<_>) = exchanges.iter().partition(|exchange| exchange.method() == "OPTIONS");
    let [only] = others.as_slice() else { panic!("one request is expected: {exchanges:?}") };
    for exchange in exchanges {
        assert_eq!(exchange.asked.field("origin"), Some(origin), "{exchange:?}");
    }
    ((*only).clone(), preflights.len())
}

/// A request that reached the gateway was refused: no token, no new cookie, nothing that the page may read.
#[track_caller]
fn assert_no_gift(exchange: &Exchange) {
    assert!(exchange.answered.field("set-cookie").is_none(), "{exchange:?}");
    assert!(exchange.answered.field("access-control-allow-origin").is_none(), "{exchange:?}");
    assert!(!exchange.answered.body.contains("eyJ"), "{exchange:?}");
}

#[test]
fn the_refresh_cookie_works_in_a_real_browser_from_an_allowed_origin_and_from_no_other() {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        let pages = Pages::serve();
        let world = World::start(backend, &pages.allowed.origin);
        let mut browser = Browser::start(&pages.allowed);
        for engine in Engine::BOTH {
            tell(&world, engine, &mut browser, &pages);
        }
        browser.close();
    }
}

fn tell(world: &World, engine: Engine, browser: &mut Browser, Pages { allowed, other, foreign }: &Pages) {
    let wire = world.wire(engine);
    let account = Side::new(&world.gateway, engine).account("ada");
    let path = |route: &str| format!("/api/{}/auth/{route}/", engine.name());
    let (login_path, refresh_path, logout_path) = (path("login"), path("token/refresh"), path("logout"));
    let [login, refresh, logout] = [&login_path, &refresh_path, &logout_path].map(|path| wire.url() + path);
    let place = format!("{} on {:?}", engine.name(), world.gateway.backend);

    // Sign-in: a pre-flight goes first, then the page reads the answer but not the cookie.
    browser.run(allowed, "document.cookie = 'visible=1';");
    let body = json!({ "email_or_phone": account.email, "password": PASSWORD });
    let seen = browser.run(allowed, &fetch_json(&login, &body, None));
    assert_eq!((at(&seen, "/status"), at(&seen, "/type")), (&json!(200), &json!("cors")), "{place}: {seen}");
    let first = at(&seen, "/body/data/refresh").as_str().expect("a refresh token").to_owned();
    assert_eq!(
        *at(&seen, "/headers/x-request-id"),
        *at(&seen, "/body/meta/request_id"),
        "{place}: the header is exposed"
    );
    assert!(
        at(&seen, "/headers").get("set-cookie").is_none() && at(&seen, "/headers").get("vary").is_none(),
        "{place}: {seen}"
    );
    let cookies = at(&seen, "/cookies").as_str().expect("the cookies that a script sees");
    assert!(cookies.contains("visible=1"), "{place}: a script sees no cookie at all: {cookies}");
    assert!(!cookies.contains(COOKIE), "{place}: a script sees the refresh cookie: {cookies}");
    let (exchange, preflights) = one(&wire.take(&login_path), &allowed.origin);
    assert_eq!(preflights, 1, "{place}: JSON from another origin is asked about first");
    let set = exchange.answered.field("set-cookie").expect("a cookie");
    assert!(set.starts_with(&format!("{COOKIE}={first};")), "{place}: {set}");

    // What a page has to know of a refusal, it can read.
    let nobody = json!({ "email_or_phone": format!("nobody{}@example.com", unique()), "password": "violet-Kettle-93" });
    let locked = (0..8).map(|_| browser.run(allowed, &fetch_json(&login, &nobody, None)));
    let locked = locked.into_iter().find(|seen| *at(seen, "/status") == 429).expect("the lock after some failures");
    let seconds = at(&locked, "/body/data/retry_after").as_u64().expect("seconds");
    assert_eq!(*at(&locked, "/headers/retry-after"), json!(seconds.to_string()), "{place}: {locked}");
    wire.take(&login_path);

    // Refresh by the cookie alone, twice: each time another token.
    let mut held = first.clone();
    for _ in 0..2 {
        let seen = browser.run(allowed, &fetch_json(&refresh, &json!({}), None));
        assert_eq!(*at(&seen, "/status"), 200, "{place}: {seen}");
        let next = at(&seen, "/body/data/refresh").as_str().expect("a refresh token").to_owned();
        let exchanges = wire.take(&refresh_path);
        let exchange = exchanges.iter().find(|exchange| exchange.method() == "POST").expect("the request");
        assert_eq!(exchange.cookie(), Some(held.as_str()), "{place}: {exchange:?}");
        assert_eq!(exchange.asked.body, "{}", "{place}");
        assert_ne!(next, held, "{place}: it rotates");
        held = next;
    }
    // Without credentials the browser keeps the cookie to itself.
    let seen = browser.run(allowed, &fetch_json(&refresh, &json!({}), None).replace("\"include\"", "\"omit\""));
    assert_eq!(
        (at(&seen, "/status"), at(&seen, "/body/code")),
        (&json!(400), &json!("validation_error")),
        "{place}: {seen}"
    );
    let (exchange, _) = one(&wire.take(&refresh_path), &allowed.origin);
    assert_eq!(exchange.asked.field("cookie"), None, "{place}: {exchange:?}");

    // Another origin of the same site: the cookie goes along, so only the gateway stands in the way.
    browser.go(allowed, other);
    let seen = browser.try_run(other, &fetch_json(&refresh, &json!({}), None));
    assert!(at(&seen, "/failed").as_str().is_some_and(|error| error.contains("Failed to fetch")), "{place}: {seen}");
    let exchanges = wire.take(&refresh_path);
    let methods: Vec<_> = exchanges.iter().map(Exchange::method).collect();
    assert_eq!(methods, ["OPTIONS"], "{place}: only the question was asked");
    exchanges.iter().for_each(assert_no_gift);
    let form = json!({ "Content-Type": "application/x-www-form-urlencoded" });
    let cases = [
        (json!({ "headers": form, "body": "device=x" }), None),
        (json!({ "headers": form, "body": "device=x", "mode": "no-cors" }), Some("opaque")),
        (json!({ "mode": "no-cors" }), Some("opaque")),
        (json!({ "body": "{}", "mode": "no-cors" }), Some("opaque")),
    ];
    for (options, visible) in &cases {
        let seen = browser.try_run(other, &fetch_simple(&refresh, options));
        match visible {
            Some(kind) => assert_eq!(*at(&seen, "/value"), json!(kind), "{place}: {options}"),
            None => assert!(seen.get("failed").is_some(), "{place}: {options}: the page reads the answer: {seen}"),
        }
        let exchanges = wire.take(&refresh_path);
        let [exchange] = exchanges.as_slice() else { panic!("{place}: {options}: one request: {exchanges:?}") };
        assert_eq!(exchange.asked.field("origin"), Some(other.origin.as_str()), "{place}: {options}");
        assert_eq!(exchange.method(), "POST", "{place}: {options}: no pre-flight");
        assert_eq!(exchange.cookie(), Some(held.as_str()), "{place}: {options}: the browser sends the cookie");
        // Text is no body that the gateway reads, whoever sends it.
        let is_text = options.get("body") == Some(&json!("{}"));
        let refused = if is_text { (415, json!("unsupported_media_type")) } else { (403, json!("permission_denied")) };
        assert_eq!((exchange.status(), exchange.code()), refused, "{place}: {options}");
        assert_no_gift(exchange);
    }
    // A page that tells nobody where it is has no origin to show.
    let hide = "document.head.append(Object.assign(document.createElement('meta'),
                                           { name: 'referrer', content: 'no-referrer' }));";
    for (target, before, origin) in
        [("frame", "", other.origin.as_str()), ("_blank", "", other.origin.as_str()), ("_blank", hide, "null")]
    {
        browser.run(other, &format!("{before} {}", submit_form(&refresh, target)));
        let exchange = submitted(wire, &refresh_path);
        assert_eq!(exchange.asked.field("origin"), Some(origin), "{place}: {target}");
        assert_eq!(exchange.cookie(), Some(held.as_str()), "{place}: {target}");
        assert_eq!((exchange.status(), exchange.code()), (403, json!("permission_denied")), "{place}: {target}");
        assert_no_gift(&exchange);
    }

    // Another site: the browser does not even send the cookie.
    browser.go(other, foreign);
    let seen = browser.try_run(foreign, &fetch_json(&refresh, &json!({}), None));
    assert!(seen.get("failed").is_some(), "{place}: {seen}");
    let exchanges = wire.take(&refresh_path);
    assert!(exchanges.iter().all(|exchange| exchange.method() == "OPTIONS"), "{place}: {exchanges:?}");
    let options = json!({ "headers": form, "body": "device=x", "mode": "no-cors" });
    browser.try_run(foreign, &fetch_simple(&refresh, &options));
    let mut crossed = vec![submitted(wire, &refresh_path)];
    for target in ["frame", "_blank"] {
        browser.run(foreign, &submit_form(&refresh, target));
        crossed.push(submitted(wire, &refresh_path));
    }
    for exchange in crossed {
        assert_eq!(exchange.asked.field("origin"), Some(foreign.origin.as_str()), "{place}");
        assert_eq!(exchange.cookie(), None, "{place}: the cookie crosses sites: {exchange:?}");
        assert_eq!((exchange.status(), exchange.code()), (400, json!("validation_error")), "{place}");
        assert_no_gift(&exchange);
    }

    // Nothing was spent by any of them.
    browser.go(foreign, allowed);
    let seen = browser.run(allowed, &fetch_json(&refresh, &json!({}), None));
    assert_eq!(*at(&seen, "/status"), 200, "{place}: {seen}");
    let (exchange, _) = one(&wire.take(&refresh_path), &allowed.origin);
    assert_eq!(exchange.cookie(), Some(held.as_str()), "{place}: the same token as before");
    let text = |name: &str| at(&seen, &format!("/body/data/{name}")).as_str().expect("a token").to_owned();
    let (access, last) = (text("access"), text("refresh"));
    assert_ne!(last, held, "{place}");

    // Logout takes the cookie away, and its token is dead.
    let seen = browser.run(allowed, &fetch_json(&logout, &json!({}), Some(&access)));
    assert_eq!(*at(&seen, "/status"), 200, "{place}: {seen}");
    let (exchange, preflights) = one(&wire.take(&logout_path), &allowed.origin);
    assert_eq!(preflights, 1, "{place}");
    let set = exchange.answered.field("set-cookie").expect("a cookie that removes the other");
    assert!(set.starts_with(&format!("{COOKIE}=;")) && set.contains("Max-Age=0"), "{place}: {set}");
    let seen = browser.run(allowed, &fetch_json(&refresh, &json!({}), None));
    assert_eq!(
        (at(&seen, "/status"), at(&seen, "/body/code")),
        (&json!(400), &json!("validation_error")),
        "{place}: {seen}"
    );
    let (exchange, _) = one(&wire.take(&refresh_path), &allowed.origin);
    assert_eq!(exchange.cookie(), None, "{place}: the browser still has the cookie");
    let seen = browser.run(allowed, &fetch_json(&refresh, &json!({ "refresh": last }), None));
    assert_eq!(
        (at(&seen, "/status"), at(&seen, "/body/code")),
        (&json!(401), &json!("token_not_valid")),
        "{place}: {seen}"
    );
    wire.take(&refresh_path);
}

/// The answer to a form, whose page does not wait for it.
fn submitted(wire: &Wire, path: &str) -> Exchange {
    let mut exchanges = eventually("the form reaches the gateway", PATIENCE, || {
        Some(wire.take(path)).filter(|exchanges| !exchanges.is_empty())
    });
    assert_eq!(exchanges.len(), 1, "one request is expected: {exchanges:?}");
    exchanges.remove(0)
}
