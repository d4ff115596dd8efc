//! The gateway among other people's software: an SMTP server receives its mail, PyJWT reads its tokens, a Django
//! service with SimpleJWT accepts them, and a stand-in for Twilio receives its text messages.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod support;

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{
    Answer, Backend, Client, Engine, Gateway, Options, PASSWORD, Postgres, Process, Program, Request, eventually,
    fresh_directory, pause, run_alone, unique,
};

const KEY: &str = "a-key-that-only-these-tests-share-0123456789";
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough for several polls and repeated attempts, to see that nothing more arrives.
const AFTERWARDS: Duration = Duration::from_millis(1500);

fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers-venv/bin/python3");
    assert!(python.exists(), "{} is missing: run scripts/bootstrap", python.display());
    python
}

fn script(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name).display().to_string()
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A Python program of `tests/peers` that writes what it received to a file and reads its manner from another.
struct Peer {
    port: u16,
    directory: PathBuf,
    program: Program,
    process: Option<Process>,
}

impl Peer {
    fn start(name: &str, environment: &[(&str, &str)], arguments: impl Fn(u16, &Path) -> Vec<String>) -> Self {
        let directory = fresh_directory("peer");
        let port = free_port();
        fs::write(directory.join("mode"), "accept").unwrap();
        fs::write(directory.join("received"), "").unwrap();
        let mut program = Program::new(python(), &directory, "peer.log")
            .arguments([script(name)])
            .arguments(arguments(port, &directory));
        program.environment = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut peer = Self { port, directory, program, process: None };
        peer.start_again();
        peer
    }

    /// Plain, without authentication, unless the further arguments say otherwise.
    fn smtp(further: &[&str]) -> Self {
        Self::start("smtp_server.py", &[], |port, directory| {
            let mut arguments = vec!["--port".to_owned(), port.to_string()];
            arguments.extend(["--output".to_owned(), directory.join("received").display().to_string()]);
            arguments.extend(["--mode-file".to_owned(), directory.join("mode").display().to_string()]);
            arguments.extend(further.iter().map(|argument| (*argument).to_owned()));
            arguments
        })
    }

    fn twilio() -> Self {
        Self::start("twilio_server.py", &[], |port, directory| {
            let file = |name: &str| directory.join(name).display().to_string();
            vec![port.to_string(), file("received"), file("mode")]
        })
    }

    /// Trusts the shared key, or what the further variables say.
    fn django(further: &[(&str, &str)]) -> Self {
        let environment = [&[("SIGNING_KEY", KEY), ("ISSUER", "bifrons"), ("AUDIENCE", "bifrons")], further].concat();
        Self::start("django_simplejwt.py", &environment, |port, _| vec![port.to_string()])
    }

    fn start_again(&mut self) {
        let log = self.directory.join("peer.log");
        let _ = fs::remove_file(&log);
        let mut process = self.program.start();
        eventually("the peer is ready", PATIENCE, || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            assert!(process.ended().is_none(), "the peer ended: {log}");
            log.contains("ready").then_some(())
        });
        self.process = Some(process);
    }

    fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal("KILL");
        process.wait(PATIENCE);
    }

    fn mode(&self, mode: &str) {
        // Renamed, since the peer may read the file at any moment.
        let file = self.directory.join("mode.new");
        fs::write(&file, mode).unwrap();
        fs::rename(file, self.directory.join("mode")).unwrap();
    }

    fn received(&self) -> Vec<Value> {
        let lines = fs::read_to_string(self.directory.join("received")).unwrap();
        // The last line may be half written.
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn mails_to(&self, address: &str) -> Vec<Value> {
        self.received().into_iter().filter(|mail| mail["to"] == json!([address])).collect()
    }

    fn wait_for_mail(&self, address: &str, nth: usize) -> Value {
        eventually(&format!("mail {nth} to {address}"), PATIENCE, || self.mails_to(address).into_iter().nth(nth - 1))
    }

    fn url(&self) -> String {
        format!("smtp://127.0.0.1:{}", self.port)
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }
}

fn header(mail: &Value, name: &str) -> Option<String> {
    let headers = mail["headers"].as_array().unwrap();
    let found = headers.iter().find(|header| header[0].as_str().is_some_and(|other| other.eq_ignore_ascii_case(name)));
    found.map(|header| header[1].as_str().unwrap().to_owned())
}

fn six_digits(text: &str) -> Option<String> {
    text.split(|letter: char| !letter.is_ascii_digit()).find(|run| run.len() == 6).map(str::to_owned)
}

fn code(mail: &Value) -> String {
    six_digits(mail["text"].as_str().unwrap()).unwrap_or_else(|| panic!("a mail without a code: {mail}"))
}

/// A gateway that sends its mail there and soon tries again.
fn options(backend: Backend, mail_url: &str) -> Options {
    Options::new(backend)
        .with("BIFRONS_MAIL__URL", mail_url)
        .with("BIFRONS_MAIL__FROM", "Bifrons <no-reply@id.example>")
        .with("BIFRONS_MAIL__TIMEOUT", "2s")
        .with("BIFRONS_SMS__TIMEOUT", "2s")
        .with("BIFRONS_OUTBOX__BACKOFF", "200ms")
        .with("BIFRONS_OUTBOX__BACKOFF_MAX", "500ms")
        .with("BIFRONS_OUTBOX__ATTEMPTS", "100")
        .with("BIFRONS_TOKENS__SIGNING_KEY", KEY)
}

/// The same with one engine only, so that it is known which of the two has sent a letter.
fn only(engine: Engine, options: Options) -> Options {
    let off = match engine {
        Engine::V1 => "BIFRONS_ENGINES__V2__ENABLED",
        Engine::V2 => "BIFRONS_ENGINES__V1__ENABLED",
    };
    options.with(off, "false")
}

fn new_address(name: &str) -> String {
    format!("{name}{}@example.org", unique())
}

fn post(gateway: &Gateway, engine: Engine, path: &str, body: &Value) -> Answer {
    let path = format!("/api/{}/{path}", engine.name());
    Client::new(engine.address(gateway)).send(&Request::post(&path, body))
}

fn register(gateway: &Gateway, engine: Engine, address: &str) -> String {
    let answer = post(gateway, engine, "auth/register/", &json!({"email": address, "password": PASSWORD}));
    assert_eq!(answer.status, 201, "{}", answer.shown());
    answer.text("data.challenge")
}

fn verify(gateway: &Gateway, engine: Engine, challenge: &str, code: &str) -> Answer {
    let answer = post(gateway, engine, "auth/verify-otp/", &json!({"challenge": challenge, "otp": code}));
    assert_eq!(answer.status, 200, "{}", answer.shown());
    answer
}

fn log_in(gateway: &Gateway, engine: Engine, identifier: &str) -> Answer {
    let answer = post(gateway, engine, "auth/login/", &json!({"email_or_phone": identifier, "password": PASSWORD}));
    assert_eq!(answer.status, 200, "{}", answer.shown());
    answer
}

/// The ids that `outbox list` shows in lines with this text.
fn listed(gateway: &Gateway, arguments: &[&str], text: &str) -> Vec<String> {
    let outcome = gateway.run(&[&["outbox", "list"], arguments].concat(), "");
    assert!(outcome.status.success(), "{}", outcome.errors);
    let ids = outcome.output.lines().filter(|line| line.contains(text)).filter_map(|line| {
        line.split(|letter: char| !letter.is_ascii_hexdigit() && letter != '-')
            .find(|word| uuid::Uuid::parse_str(word).is_ok())
    });
    ids.map(str::to_owned).collect()
}

#[test]
fn a_mail_server_receives_the_code_and_the_account_signs_in_on_each_engine() {
    let server = Peer::smtp(&[]);
    for engine in Engine::BOTH {
        let gateway = Gateway::start(only(engine, options(Backend::Embedded, &server.url())));
        let address = new_address("ada");
        let challenge = register(&gateway, engine, &address);
        let mail = server.wait_for_mail(&address, 1);
        assert_eq!(mail["from"], "no-reply@id.example");
        assert_eq!(mail["content_type"], "multipart/alternative");
        assert_eq!(mail["defects"], json!([]));
        assert_eq!(mail["tls"], false);
        assert_eq!(header(&mail, "From").as_deref(), Some("Bifrons <no-reply@id.example>"));
        assert_eq!(header(&mail, "Auto-Submitted").as_deref(), Some("auto-generated"));
        assert!(header(&mail, "Message-ID").unwrap().ends_with("@id.example>"));
        assert!(header(&mail, "User-Agent").or(header(&mail, "X-Mailer")).is_none());
        let code = code(&mail);
        assert!(mail["html"].as_str().unwrap().contains(&format!(">{code}<")));
        assert!(!header(&mail, "Subject").unwrap().contains(&code));
        verify(&gateway, engine, &challenge, &code);
        log_in(&gateway, engine, &address);
        pause(AFTERWARDS);
        assert_eq!(server.mails_to(&address).len(), 1, "sent by {}", engine.kind());
    }
}

#[test]
fn nothing_of_a_request_gets_into_a_mail() {
    let server = Peer::smtp(&[]);
    let interval = Duration::from_secs(1);
    let gateway = Gateway::start(options(Backend::Embedded, &server.url()).with("BIFRONS_OTP__RESEND_INTERVAL", "1s"));
    for engine in Engine::BOTH {
        let address = new_address("host");
        let path = format!("/api/{}/auth/register/", engine.name());
        let request =
            Request::post(&path, &json!({"email": address, "password": PASSWORD, "first_name": "<b>Evil</b>"}))
                .header("X-Forwarded-Host", "evil.example")
                .header("Forwarded", "host=evil.example;proto=http")
                .header("X-Original-URL", "http://evil.example/")
                .header("User-Agent", "Evil/1.0")
                .header("Origin", "http://127.0.0.1:8002");
        let answer = Client::new(engine.address(&gateway)).send(&request);
        assert_eq!(answer.status, 201, "{}", answer.shown());
        let first = server.wait_for_mail(&address, 1);
        verify(&gateway, engine, &answer.text("data.challenge"), &code(&first));
        pause(interval * 2);
        let again = Client::new(engine.address(&gateway)).send(&request);
        assert_eq!(again.status, 201, "{}", again.shown());
        let second = server.wait_for_mail(&address, 2);
        assert_eq!(six_digits(second["text"].as_str().unwrap()), None, "the owner of an account gets no code");
        assert!(second["html"].as_str().unwrap().contains("href=\"http://127.0.0.1:8002/"));
        for mail in [first, second] {
            assert!(!mail["raw"].as_str().unwrap().to_lowercase().contains("evil"), "{mail}");
        }
    }
}

/// Writes a certificate for `localhost` and gives the paths of certificate, key and root.
fn certificates(directory: &Path) -> [String; 3] {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::new(Vec::<String>::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // A leaf of the same name as its issuer looks self-signed to OpenSSL.
    root.distinguished_name.push(rcgen::DnType::CommonName, "a root for tests");
    let root_certificate = root.self_signed(&root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&root, &root_key)).unwrap();
    [("leaf.pem", leaf.pem()), ("leaf.key", key.serialize_pem()), ("root.pem", root_certificate.pem())].map(
        |(name, pem)| {
            let path = directory.join(name);
            fs::write(&path, pem).unwrap();
            path.display().to_string()
        },
    )
}

#[test]
fn mail_goes_over_tls_with_authentication_to_a_server_whose_root_is_configured() {
    let [certificate, key, root] = certificates(&fresh_directory("tls"));
    let with_starttls =
        Peer::smtp(&["--cert", &certificate, "--key", &key, "--user", "relay", "--password", "p@ss/word"]);
    let with_tls = Peer::smtp(&["--cert", &certificate, "--key", &key, "--tls"]);
    for engine in Engine::BOTH {
        for (url, server, user) in [
            (
                format!("smtp+starttls://relay:p%40ss%2Fword@localhost:{}?root={root}", with_starttls.port),
                &with_starttls,
                json!("relay"),
            ),
            (format!("smtps://localhost:{}?root={root}", with_tls.port), &with_tls, Value::Null),
        ] {
            let gateway = Gateway::start(only(engine, options(Backend::Embedded, &url)));
            let address = new_address("tls");
            let challenge = register(&gateway, engine, &address);
            let mail = server.wait_for_mail(&address, 1);
            assert_eq!((&mail["tls"], &mail["user"]), (&json!(true), &user));
            verify(&gateway, engine, &challenge, &code(&mail));
        }
    }
}

#[test]
fn no_mail_goes_to_a_server_whose_certificate_is_not_trusted() {
    let [certificate, key, _] = certificates(&fresh_directory("tls"));
    let server = Peer::smtp(&["--cert", &certificate, "--key", &key]);
    for engine in Engine::BOTH {
        let url = format!("smtp+starttls://localhost:{}", server.port);
        let gateway = Gateway::start(only(engine, options(Backend::Embedded, &url)));
        register(&gateway, engine, &new_address("mitm"));
        eventually("an attempt has failed for the certificate", PATIENCE, || {
            listed(&gateway, &["--state", "pending"], "certificate is not trusted").pop()
        });
        assert_eq!(server.received(), Vec::<Value>::new());
    }
}

/// What PyJWT verifies a token with.
#[derive(Clone, Copy)]
enum Verifier<'a> {
    Secret(&'a str),
    JwkSet { address: &'a str },
}

/// Header and claims of a token as PyJWT reads them, or its refusal.
fn read_by_pyjwt(token: &str, verifier: Verifier<'_>) -> Result<Value, String> {
    let (name, secret, address) = match verifier {
        Verifier::Secret(secret) => ("read_token.py", secret, None),
        Verifier::JwkSet { address } => ("read_token_by_jwks.py", "", Some(address)),
    };
    let mut child = Command::new(python())
        .args([script(name), "bifrons".to_owned(), "bifrons".to_owned()])
        .args(address)
        .env("JWT_KEY", secret)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice::<Value>(&output.stdout).map_err(|_error| errors)
}

#[test]
fn pyjwt_reads_the_tokens_of_both_engines_with_the_shared_key() {
    let server = Peer::smtp(&[]);
    let gateway = Gateway::start(options(Backend::Embedded, &server.url()));
    let read = |token: &str, key: &str| read_by_pyjwt(token, Verifier::Secret(key));
    for engine in Engine::BOTH {
        let address = new_address("jwt");
        let challenge = register(&gateway, engine, &address);
        let account = verify(&gateway, engine, &challenge, &code(&server.wait_for_mail(&address, 1)));
        for (name, kind, lifetime) in [("access", "access", 15 * 60), ("refresh", "refresh", 30 * 24 * 3600)] {
            let token = account.text(&format!("data.{name}"));
            let read_token = read(&token, KEY).unwrap_or_else(|errors| panic!("{errors}"));
            let (head, claims) = (&read_token["header"], &read_token["claims"]);
            assert_eq!(head["alg"], "HS256");
            assert!(head["kid"].is_string());
            assert_eq!(claims["token_type"], kind);
            assert_eq!(claims["user_id"], account.at("data.user_id"));
            assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), lifetime);
            assert!(uuid::Uuid::parse_str(claims["sid"].as_str().unwrap()).is_ok());
            let jti = claims["jti"].as_str().unwrap();
            assert!(jti.len() == 32 && jti.bytes().all(|digit| b"0123456789abcdef".contains(&digit)), "{jti}");
            let refusal = read(&token, "another-key-of-at-least-thirty-two-bytes").unwrap_err();
            assert!(refusal.contains("InvalidSignatureError"), "{refusal}");
        }
    }
}

#[test]
fn a_django_service_with_the_shared_key_accepts_access_tokens_and_nothing_else() {
    let server = Peer::smtp(&[]);
    let django = Peer::django(&[]);
    let gateway = Gateway::start(options(Backend::Embedded, &server.url()));
    let ask = |path: &str, token: &str| Client::new(django.address()).send(&Request::get(path).bearer(token));
    for engine in Engine::BOTH {
        let address = new_address("django");
        let challenge = register(&gateway, engine, &address);
        let account = verify(&gateway, engine, &challenge, &code(&server.wait_for_mail(&address, 1)));
        let (access, refresh) = (account.text("data.access"), account.text("data.refresh"));
        let user_id = account.text("data.user_id");
        let made = Client::new(django.address()).send(&Request::post("/users/", &json!({"id": user_id})));
        assert_eq!(made.status, 201, "{}", made.shown());
        for path in ["/stateless/", "/database/"] {
            let accepted = ask(path, &access);
            assert_eq!((accepted.status, accepted.at("user_id")), (200, json!(user_id)), "{}", accepted.shown());
            let (unsigned, signature) = access.rsplit_once('.').unwrap();
            let turned: String = signature.chars().rev().collect();
            let mut parts = access.split('.');
            let (head, _, end) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            let other_claims = refresh.split('.').nth(1).unwrap();
            for token in [format!("{unsigned}.{turned}"), format!("{head}.{other_claims}.{end}"), refresh.clone()] {
                let refused = ask(path, &token);
                assert_eq!((refused.status, refused.code().as_str()), (401, "token_not_valid"), "{}", refused.shown());
            }
        }
    }
}

/// A fresh Ed25519 key of the gateway's own making.
fn signing_key(directory: &Path, name: &str) -> String {
    let made = run_alone(&[], &["keys", "generate", "--kind", "signing", "--algorithm", "EdDSA"], "");
    assert!(made.status.success(), "{}", made.errors);
    let path = directory.join(name);
    fs::write(&path, made.output).unwrap();
    path.display().to_string()
}

fn signed_with_eddsa(options: Options, key_file: &str) -> Options {
    options
        .with("BIFRONS_TOKENS__SIGNING_KEY", "")
        .with("BIFRONS_TOKENS__SIGNING_KEY_FILE", key_file)
        .with("BIFRONS_TOKENS__ALGORITHM", "EdDSA")
}

fn jwks_address(gateway: &Gateway, engine: Engine) -> String {
    format!("http://{}/.well-known/jwks.json", engine.address(gateway))
}

fn published(gateway: &Gateway, engine: Engine) -> Vec<Value> {
    let answer = Client::new(engine.address(gateway)).send(&Request::get("/.well-known/jwks.json"));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/jwk-set+json")));
    assert!(answer.header("cache-control").is_some_and(|value| value.contains("max-age=300")), "{}", answer.shown());
    answer.at("keys").as_array().unwrap().clone()
}

#[test]
fn pyjwt_reads_eddsa_tokens_of_both_engines_by_the_keys_that_each_publishes() {
    let server = Peer::smtp(&[]);
    let directory = fresh_directory("eddsa");
    let [first, second] = ["first.pem", "second.pem"].map(|name| signing_key(&directory, name));
    let mut gateway = Gateway::start(signed_with_eddsa(options(Backend::Embedded, &server.url()), &first));
    let read = |gateway: &Gateway, token: &str, publisher: Engine| {
        let address = jwks_address(gateway, publisher);
        read_by_pyjwt(token, Verifier::JwkSet { address: &address })
    };
    let me = |gateway: &Gateway, engine: Engine, token: &str| {
        let path = format!("/api/{}/auth/me/", engine.name());
        Client::new(engine.address(gateway)).send(&Request::get(&path).bearer(token)).status
    };
    let accounts = Engine::BOTH.map(|engine| {
        let address = new_address("eddsa");
        let challenge = register(&gateway, engine, &address);
        (address.clone(), verify(&gateway, engine, &challenge, &code(&server.wait_for_mail(&address, 1))))
    });
    let tokens: Vec<_> =
        accounts.iter().flat_map(|(_, account)| [account.text("data.access"), account.text("data.refresh")]).collect();
    for publisher in Engine::BOTH {
        let keys = published(&gateway, publisher);
        assert_eq!(keys.len(), 1);
        for token in &tokens {
            let read = read(&gateway, token, publisher).unwrap_or_else(|errors| panic!("{errors}"));
            let expected = json!({ "typ": "JWT", "alg": "EdDSA", "kid": keys[0]["kid"] });
            assert_eq!(read["header"], expected);
            let (unsigned, signature) = token.rsplit_once('.').unwrap();
            let turned: String = signature.chars().rev().collect();
            assert!(read_refused(&gateway, &format!("{unsigned}.{turned}"), publisher));
        }
    }

    // The key changes: what was signed before goes on being valid, until its key is taken out.
    gateway.stop();
    gateway.set("BIFRONS_TOKENS__SIGNING_KEY_FILE", &second);
    gateway.set("BIFRONS_TOKENS__VERIFICATION_KEYS", &first);
    gateway.restart();
    for (engine, (address, account)) in Engine::BOTH.into_iter().zip(&accounts) {
        assert_eq!(published(&gateway, engine).len(), 2);
        let old = account.text("data.access");
        let new = log_in(&gateway, engine, address).text("data.access");
        for token in [&old, &new] {
            assert_eq!(me(&gateway, engine, token), 200);
            read(&gateway, token, engine).unwrap_or_else(|errors| panic!("{errors}"));
        }
        let path = format!("/api/{}/auth/token/refresh/", engine.name());
        let body = json!({ "refresh": account.text("data.refresh") });
        let refreshed = Client::new(engine.address(&gateway)).send(&Request::post(&path, &body));
        assert_eq!(refreshed.status, 200, "{}", refreshed.shown());
        let newer = read(&gateway, &refreshed.text("data.access"), engine).unwrap();
        assert_eq!(newer["header"]["kid"], published(&gateway, engine)[0]["kid"]);
    }
    gateway.stop();
    gateway.set("BIFRONS_TOKENS__VERIFICATION_KEYS", "");
    gateway.restart();
    for engine in Engine::BOTH {
        assert_eq!(published(&gateway, engine).len(), 1);
        for token in tokens.iter().step_by(2) {
            assert_eq!(me(&gateway, engine, token), 401);
            assert!(read_refused(&gateway, token, engine));
        }
    }
}

fn read_refused(gateway: &Gateway, token: &str, publisher: Engine) -> bool {
    let address = jwks_address(gateway, publisher);
    read_by_pyjwt(token, Verifier::JwkSet { address: &address }).is_err_and(|errors| errors.contains("refused"))
}

#[test]
fn hs256_publishes_no_key() {
    let gateway = Gateway::start(options(Backend::Embedded, ""));
    for engine in Engine::BOTH {
        assert_eq!(published(&gateway, engine), Vec::<Value>::new());
    }
}

#[test]
fn a_django_service_accepts_eddsa_access_tokens_by_the_published_key_and_nothing_else() {
    let server = Peer::smtp(&[]);
    let key = signing_key(&fresh_directory("eddsa"), "signing.pem");
    let gateway = Gateway::start(signed_with_eddsa(options(Backend::Embedded, &server.url()), &key));
    for engine in Engine::BOTH {
        let address = jwks_address(&gateway, engine);
        let django = Peer::django(&[("SIGNING_KEY", ""), ("ALGORITHM", "EdDSA"), ("JWK_URL", &address)]);
        let ask = |token: &str| Client::new(django.address()).send(&Request::get("/stateless/").bearer(token));
        let address = new_address("django");
        let challenge = register(&gateway, engine, &address);
        let account = verify(&gateway, engine, &challenge, &code(&server.wait_for_mail(&address, 1)));
        let (access, refresh) = (account.text("data.access"), account.text("data.refresh"));
        let accepted = ask(&access);
        let user_id = json!(account.text("data.user_id"));
        assert_eq!((accepted.status, accepted.at("user_id")), (200, user_id), "{}", accepted.shown());
        let (unsigned, signature) = access.rsplit_once('.').unwrap();
        let turned: String = signature.chars().rev().collect();
        for token in [format!("{unsigned}.{turned}"), refresh] {
            let refused = ask(&token);
            assert_eq!((refused.status, refused.code().as_str()), (401, "token_not_valid"), "{}", refused.shown());
        }
    }
}

#[test]
fn a_letter_that_met_no_server_arrives_once_when_the_server_is_back() {
    let mut server = Peer::smtp(&[]);
    server.stop();
    for engine in Engine::BOTH {
        let gateway = Gateway::start(only(engine, options(Backend::Embedded, &server.url())));
        let address = new_address("later");
        let challenge = register(&gateway, engine, &address);
        eventually("an attempt has failed", PATIENCE, || {
            listed(&gateway, &["--state", "pending"], "cannot be reached").pop()
        });
        server.start_again();
        let mail = server.wait_for_mail(&address, 1);
        verify(&gateway, engine, &challenge, &code(&mail));
        pause(AFTERWARDS);
        assert_eq!(server.mails_to(&address).len(), 1);
        server.stop();
    }
}

#[test]
fn a_letter_put_off_by_the_server_arrives_once_when_the_server_takes_it() {
    let server = Peer::smtp(&[]);
    for engine in Engine::BOTH {
        server.mode("defer");
        let gateway = Gateway::start(only(engine, options(Backend::Embedded, &server.url())));
        let address = new_address("grey");
        register(&gateway, engine, &address);
        eventually("it was put off", PATIENCE, || listed(&gateway, &["--state", "pending"], "451").pop());
        server.mode("accept");
        server.wait_for_mail(&address, 1);
        pause(AFTERWARDS);
        assert_eq!(server.mails_to(&address).len(), 1);
    }
}

#[test]
fn a_letter_sent_twice_for_want_of_a_reply_carries_the_same_message_id() {
    let server = Peer::smtp(&[]);
    for engine in Engine::BOTH {
        server.mode("hang-up");
        let gateway = Gateway::start(only(engine, options(Backend::Embedded, &server.url())));
        let address = new_address("double");
        register(&gateway, engine, &address);
        let first = server.wait_for_mail(&address, 1);
        server.mode("accept");
        let second = eventually("it is taken", PATIENCE, || {
            server.mails_to(&address).into_iter().find(|mail| mail["mode"] == "accept")
        });
        assert_eq!(header(&first, "Message-ID"), header(&second, "Message-ID"));
        assert_eq!(first["raw"], second["raw"]);
    }
}

#[test]
fn a_refused_letter_is_dead_until_it_is_retried_by_hand() {
    let server = Peer::smtp(&[]);
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        for engine in Engine::BOTH {
            server.mode("refuse");
            let gateway = Gateway::start(only(engine, options(backend, &server.url())));
            let address = new_address("refused");
            let challenge = register(&gateway, engine, &address);
            let id = eventually("the letter is dead", PATIENCE, || listed(&gateway, &["--state", "dead"], "550").pop());
            let shown = gateway.run(&["outbox", "list"], "").output;
            assert!(!shown.contains(&address), "an address is shown: {shown}");
            assert!(!gateway.log().contains(&address), "an address is logged");
            server.mode("accept");
            pause(AFTERWARDS);
            assert_eq!(server.mails_to(&address).len(), 0, "a dead letter is not tried again by itself");
            let retried = gateway.run(&["outbox", "retry", &id], "");
            assert!(retried.status.success(), "{}", retried.errors);
            let mail = server.wait_for_mail(&address, 1);
            verify(&gateway, engine, &challenge, &code(&mail));
            assert!(listed(&gateway, &["--state", "dead"], &id).is_empty());
        }
    }
}

#[test]
fn recipients_that_are_refused_or_hang_delay_nobody_else() {
    let server = Peer::smtp(&[]);
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        for engine in Engine::BOTH {
            let gateway = Gateway::start(only(engine, options(backend, &server.url())));
            for _ in 0..3 {
                register(&gateway, engine, &new_address("poison"));
            }
            register(&gateway, engine, &new_address("stuck"));
            let others: Vec<_> = (0..5).map(|_| new_address("fine")).collect();
            for address in &others {
                register(&gateway, engine, address);
            }
            for address in &others {
                server.wait_for_mail(address, 1);
            }
            assert_eq!(
                eventually("the poison is dead", PATIENCE, || {
                    Some(listed(&gateway, &["--state", "dead"], "550")).filter(|dead| dead.len() == 3)
                })
                .len(),
                3
            );
        }
    }
}

#[test]
fn a_mail_server_that_never_answers_delays_no_request() {
    let server = Peer::smtp(&[]);
    for engine in Engine::BOTH {
        server.mode("black-hole");
        let gateway = Gateway::start(only(engine, options(Backend::Embedded, &server.url())));
        let address = new_address("silent");
        let started = Instant::now();
        register(&gateway, engine, &address);
        let health = Client::new(engine.address(&gateway)).send(&Request::get("/health/ready"));
        assert_eq!(health.status, 200, "{}", health.shown());
        // Below the mailer's timeout of two seconds, which a request must not wait for.
        assert!(started.elapsed() < Duration::from_millis(1900));
        server.mode("accept");
        server.wait_for_mail(&address, 1);
    }
}

#[test]
fn two_gateways_on_one_database_send_no_letter_twice() {
    let server = Peer::smtp(&[]);
    let gateway = Gateway::start(options(Backend::PostgresRedis, &server.url()));
    let twin = gateway.twin(&[]);
    let mut addresses = Vec::new();
    for number in 0..12 {
        for gateway in [&gateway, &twin] {
            for engine in Engine::BOTH {
                let address = new_address(&format!("many{number}."));
                register(gateway, engine, &address);
                addresses.push(address);
            }
        }
    }
    for address in &addresses {
        server.wait_for_mail(address, 1);
    }
    pause(AFTERWARDS);
    let received = server.received();
    assert_eq!(received.len(), addresses.len());
    let mut ids: Vec<_> = received.iter().map(|mail| header(mail, "Message-ID")).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), addresses.len());
}

#[test]
fn twilio_receives_the_text_message_of_a_registration_by_phone() {
    let twilio = Peer::twilio();
    for engine in Engine::BOTH {
        twilio.mode("overloaded");
        let url = format!("twilio://AC1:to%2Fken@+15550100?base_url=http://127.0.0.1:{}/", twilio.port);
        let options = options(Backend::Embedded, "").with("BIFRONS_SMS__URL", &url);
        let gateway = Gateway::start(only(engine, options));
        let (local, phone) = match engine {
            Engine::V1 => ("0803 123 4567", "+2348031234567"),
            Engine::V2 => ("0803 123 4568", "+2348031234568"),
        };
        let answer = post(&gateway, engine, "auth/register/", &json!({"phone": local, "password": PASSWORD}));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        let sent_to = |phone: &str| -> Vec<Value> {
            twilio.received().into_iter().filter(|request| request["form"]["To"] == phone).collect()
        };
        eventually("an attempt has failed", PATIENCE, || sent_to(phone).pop());
        twilio.mode("accept");
        pause(AFTERWARDS);
        let requests = sent_to(phone);
        pause(AFTERWARDS);
        assert_eq!(sent_to(phone).len(), requests.len(), "a message that was taken is not sent again");
        let request = requests.last().unwrap();
        assert_eq!(request["path"], "/2010-04-01/Accounts/AC1/Messages.json");
        assert_eq!(request["user"], "AC1:to/ken");
        assert_eq!(request["form"]["From"], "+15550100");
        let text = request["form"]["Body"].as_str().unwrap();
        assert!(text.chars().count() <= 160, "{text}");
        let code = six_digits(text).unwrap();
        assert!(text.starts_with(&code), "{text}");
        verify(&gateway, engine, &answer.text("data.challenge"), &code);
        log_in(&gateway, engine, phone);
    }
}

#[test]
fn a_text_message_that_the_provider_refuses_is_dead() {
    let twilio = Peer::twilio();
    twilio.mode("refuse");
    for engine in Engine::BOTH {
        let url = format!("twilio://AC1:t@+15550100?base_url=http://127.0.0.1:{}", twilio.port);
        let options = options(Backend::Embedded, "").with("BIFRONS_SMS__URL", &url);
        let gateway = Gateway::start(only(engine, options));
        let answer =
            post(&gateway, engine, "auth/register/", &json!({"phone": "+2348031234569", "password": PASSWORD}));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        eventually("the text message is dead", PATIENCE, || listed(&gateway, &["--state", "dead"], "21211").pop());
    }
}

#[test]
fn postgresql_is_reached_over_tls_and_only_where_its_certificate_is_trusted() {
    let own = fresh_directory("postgres-tls");
    let [certificate, key, root] = certificates(&own);
    let [_, _, strange_root] = certificates(&fresh_directory("strange-tls"));
    let cluster = Postgres::start();
    let plain = cluster.create_database();
    // Written by the server itself, whose own the key has to be.
    for (file, name) in [(&certificate, "server.crt"), (&key, "server.key")] {
        let lines = fs::read_to_string(file).unwrap();
        let rows = format!("SELECT unnest(string_to_array('{}', E'\\n'))", lines.trim());
        cluster.query(&plain, &format!("COPY ({rows}) TO PROGRAM 'umask 077; cat > {name}'"));
    }
    cluster.query(&plain, "ALTER SYSTEM SET ssl = on");
    cluster.query(&plain, "SELECT pg_reload_conf()");
    let name = plain.rsplit('/').next().and_then(|rest| rest.split('?').next()).unwrap();
    let url = |root: &str| {
        format!("postgres://postgres@localhost:{}/{name}?sslmode=verify-full&sslrootcert={root}", cluster.port())
    };
    let master = ("BIFRONS_SECRETS__MASTER", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
    eventually("PostgreSQL speaks TLS", PATIENCE, || {
        let migrated = run_alone(&[master, ("BIFRONS_DATABASE__URL", &url(&root))], &["migrate"], "");
        migrated.status.success().then_some(())
    });
    let strange = run_alone(&[master, ("BIFRONS_DATABASE__URL", &url(&strange_root))], &["migrate"], "");
    assert!(!strange.status.success(), "a certificate of nobody we trust was taken");

    let options = Options::new(Backend::Embedded).with(master.0, master.1).with("BIFRONS_DATABASE__URL", &url(&root));
    let gateway = Gateway::start(options);
    for engine in Engine::BOTH {
        register(&gateway, engine, &new_address("tls"));
    }
    let of_ours = "FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'bifrons'";
    let encrypted = cluster.query(&plain, &format!("SELECT bool_and(ssl), count(*) >= 2 {of_ours}"));
    assert_eq!(encrypted, "t|t");
}
