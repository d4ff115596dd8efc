//! The OpenAPI document against what is served: every route both ways, Swagger UI, and schemathesis on both engines.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod support;

use bifrons::api::routes::{ROUTES, Scope};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{
    Answer, Backend, Engine, Gateway, Options, PASSWORD, Request, Story, document, for_each_world, fresh_directory,
    judge, run_alone,
};

const ORDINARY: Story = Story { env: &[] };

fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap();
        methods.iter().map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    })
}

/// The path with something in the place of each parameter.
fn filled(path: &str) -> String {
    let segments = path.split('/').map(|segment| match segment {
        "{file}" => "swagger-ui.css",
        _ if segment.starts_with('{') => "01989a4e-7c1b-7d52-9c3e-4f8a2b6d1e90",
        _ => segment,
    });
    segments.collect::<Vec<_>>().join("/")
}

#[test]
fn what_the_command_prints_is_what_is_served() {
    for_each_world(ORDINARY, |side| {
        let answer = side.send_apart(&Request::get("/api/{v}/openapi.json"));
        assert_eq!(answer.status, 200, "{}", answer.shown());
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(&answer.json(), document(side.engine));
        let printed = side.gateway.run(&["openapi", side.engine.name()], "");
        assert_eq!(serde_json::from_str::<Value>(&printed.output).unwrap(), answer.json());
    });
    let public = [("BIFRONS_PUBLIC_URL", "https://id.example.org/accounts")];
    let outcome = run_alone(&public, &["openapi", "v2"], "");
    let printed: Value = serde_json::from_str(&outcome.output).unwrap();
    assert_eq!(printed["servers"][1]["url"], "https://id.example.org/accounts");
    assert_eq!(printed["components"]["securitySchemes"]["refreshCookie"]["name"], "__Host-bifrons_refresh");
    for wrong in [&["openapi"][..], &["openapi", "v3"]] {
        assert_eq!(run_alone(&[], wrong, "").status.code(), Some(2));
    }
}

#[test]
fn every_documented_operation_is_served_and_no_other_method() {
    for_each_world(ORDINARY, |side| {
        for (path, _, _) in operations(document(side.engine)) {
            let methods = document(side.engine)["paths"][path].as_object().unwrap();
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
                // Its examples hold tokens that the comparison would look into.
                let request = Request::new(method, &filled(path));
                let is_document = path.ends_with("/openapi.json");
                let answer = if is_document { side.send_apart(&request) } else { side.send(&request) };
                let is_documented = methods.contains_key(&method.to_ascii_lowercase());
                assert_eq!(answer.status != 405, is_documented, "{method} {path}: {}", answer.shown());
                let is_missing = answer.status == 404 && method != "DELETE";
                assert!(!is_missing, "{method} {path}: {}", answer.shown());
            }
            let options = side.send(&Request::new("OPTIONS", &filled(path)));
            assert_eq!(options.status, 204, "{path}");
            let mut allowed: Vec<_> = options.header("allow").unwrap_or_default().split(", ").collect();
            allowed.retain(|method| *method != "HEAD" && *method != "OPTIONS");
            let mut documented: Vec<_> = methods.keys().map(|method| method.to_ascii_uppercase()).collect();
            allowed.sort_unstable();
            documented.sort_unstable();
            assert_eq!(allowed, documented, "{path}");
        }
    });
}

#[test]
fn every_route_is_documented() {
    for engine in Engine::BOTH {
        assert_eq!(operations(document(engine)).count(), ROUTES.len());
    }
}

#[test]
fn swagger_ui_comes_from_the_binary() {
    for_each_world(ORDINARY, |side| {
        for page in ["/api/{v}/docs/", "/api/{v}/docs"] {
            let answer = side.send(&Request::get(page));
            assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/html; charset=utf-8")));
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            let policy = answer.header("content-security-policy").unwrap().to_owned();
            assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
            assert!(!policy.contains("unsafe"), "{policy}");
            let text = String::from_utf8(answer.body).unwrap();
            assert!(!text.contains("//"), "another host: {text}");
            let base = if page.ends_with('/') { page.to_owned() } else { "/api/{v}/".to_owned() };
            for name in text.split('"').filter(|name| [".js", ".css", ".png"].iter().any(|end| name.ends_with(end))) {
                let file = side.send(&Request::get(&format!("{base}{name}")));
                assert_eq!(file.status, 200, "{name}");
                assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
                assert_eq!(file.header("cache-control"), Some("public, max-age=300"), "{name}");
                assert_eq!(file.header("content-length").unwrap().parse(), Ok(file.body.len()), "{name}");
                let head = side.send(&Request::new("HEAD", &format!("{base}{name}")));
                assert_eq!((head.status, head.body.len()), (200, 0));
            }
        }
        for path in ["index.html", "swagger-ui.js.map", "..%2fopenapi.json", "x/swagger-ui.css"] {
            let answer = side.send(&Request::get(&format!("/api/{{v}}/docs/{path}")));
            side.refused(&answer, 404, "not_found");
        }
    });
}

fn answered(status: u16, headers: &[(&str, &str)], body: &Value) -> Answer {
    let own = [("content-type", "application/json"), ("x-request-id", "a")];
    let headers = own.iter().chain(headers).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Answer { status, headers: headers.collect(), body: body.to_string().into_bytes() }
}

/// What the black-box tests rely on: an answer that is not as documented is found.
#[test]
fn an_answer_that_is_not_as_documented_is_found() {
    let live = |change: &dyn Fn(&mut Value)| {
        let mut body = json!({
            "success": true, "message": "m", "data": { "status": "ok" }, "errors": null, "meta": { "request_id": "a" }
        });
        change(&mut body);
        judge(Engine::V1, &Request::get("/health/live"), &answered(200, &[], &body))
    };
    assert_eq!(live(&|_| ()), Ok(()));
    let changes: [&dyn Fn(&mut Value); 7] = [
        &|body| body["more"] = json!(1),
        &|body| body["data"]["more"] = json!(1),
        &|body| body["data"] = Value::Null,
        &|body| body["data"]["status"] = json!("fine"),
        &|body| body["meta"]["request_id"] = json!(""),
        &|body| body["code"] = json!("x"),
        &|body| drop(body.as_object_mut().unwrap().remove("errors")),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        assert!(live(change).is_err(), "{number}");
    }
    let me = |status, headers: &[(&str, &str)], code: &str, data: Value| {
        let body = json!({
            "success": false, "message": "m", "data": data, "errors": null, "code": code, "meta": { "request_id": "a" }
        });
        judge(Engine::V2, &Request::get("/api/v2/auth/me"), &answered(status, headers, &body))
    };
    let challenge = &[("www-authenticate", "Bearer")][..];
    assert_eq!(me(401, challenge, "token_not_valid", Value::Null), Ok(()));
    assert!(me(401, &[], "token_not_valid", Value::Null).is_err(), "no WWW-Authenticate");
    assert!(me(401, challenge, "throttled", Value::Null).is_err(), "a code of another status");
    assert!(me(401, challenge, "token_not_valid", json!({})).is_err(), "data");
    assert!(me(402, &[], "token_not_valid", Value::Null).is_err(), "another status");
    assert!(me(429, &[("retry-after", "0")], "throttled", json!({ "retry_after": 1 })).is_err(), "no wait");
    assert_eq!(me(429, &[("retry-after", "1")], "throttled", json!({ "retry_after": 1 })), Ok(()));
    let of_nothing = |path: &str, status| {
        let body = json!({
            "success": false, "message": "m", "data": null, "errors": null, "code": "not_found", "meta": { "request_id": "a" }
        });
        judge(Engine::V1, &Request::get(path), &answered(status, &[], &body))
    };
    assert_eq!(of_nothing("/api/v2/auth/me/", 404), Ok(()));
    assert!(of_nothing("/api/v1/auth/me/", 404).is_err(), "a documented path is found");
    assert!(of_nothing("/nothing/", 400).is_err());
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program of the environment that scripts/bootstrap makes for this test binary.
fn program(name: &str) -> PathBuf {
    let program = package().join("target/schemathesis-venv/bin").join(name);
    assert!(program.exists(), "{} is missing: run scripts/bootstrap", program.display());
    program
}

#[test]
fn the_documents_are_valid_openapi() {
    let directory = fresh_directory("documents");
    for engine in Engine::BOTH {
        let file = directory.join(engine.name());
        fs::write(&file, document(engine).to_string()).unwrap();
        let output =
            Command::new(program("python3")).args(["-m", "openapi_spec_validator"]).arg(&file).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {shown}", engine.name());
    }
}

/// Whom the examples of the document sign in, with the password that they show.
const EXAMPLE: (&str, &str) = ("ada@example.com", PASSWORD);
/// Whose tokens schemathesis uses: with another password, which no example changes.
const TESTER: (&str, &str) = ("tester@example.com", "copper-lantern-58-harbour");

fn prepared(backend: Backend) -> Gateway {
    // It finds the tester's address in answers and tries it at sign-in.
    let gateway = Gateway::start(Options::new(backend).with("BIFRONS_LOCKOUT__DURATION", "1ms"));
    for (email, password) in [EXAMPLE, TESTER] {
        let arguments = ["user", "create", "--email", email, "--role", "client"];
        let outcome = gateway.run(&arguments, &format!("{password}\n"));
        assert!(outcome.status.success(), "{}", outcome.errors);
    }
    gateway
}

/// How many operations there are without the legacy paths.
fn of_today() -> usize {
    ROUTES.iter().filter(|route| route.scope != Scope::Legacy).count()
}

/// Runs schemathesis against one engine and gives what it prints when it finds something.
fn find_with_schemathesis(gateway: &Gateway, engine: Engine, is_signed_in: bool) -> Result<(), String> {
    let origin = format!("http://{}/api/{}", engine.address(gateway), engine.name());
    let mut command = Command::new(program("st"));
    command
        .arg("--config-file")
        .arg(package().join("tests/peers/schemathesis.toml"))
        .args(["run", "--no-color", "--workers", "1", "--generation-deterministic", "--continue-on-failure"])
        .args(["--checks", "all", "--request-timeout", "20", "--max-examples", if is_signed_in { "10" } else { "3" }])
        .arg(format!("{origin}/openapi.json"))
        .env("NO_PROXY", "127.0.0.1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(fresh_directory("schemathesis"));
    if is_signed_in {
        // Signing in for each request takes its time; the legacy paths do what the others do.
        command
            .arg("--exclude-deprecated")
            .env("SCHEMATHESIS_HOOKS", "schemathesis_sign_in")
            .env("PYTHONPATH", package().join("tests/peers"))
            .env("LOGIN_URL", format!("{origin}/auth/login/"))
            .env("IDENTIFIER", TESTER.0)
            .env("PASSWORD", TESTER.1);
    }
    let output = command.output().unwrap();
    let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // It leaves out the operation that gives it the document.
    let count = if is_signed_in { of_today() } else { ROUTES.len() } - 1;
    let is_whole = shown.contains(&format!("Selected: {count}/")) && shown.contains(&format!("Tested: {count}\n"));
    if output.status.success() && is_whole { Ok(()) } else { Err(shown) }
}

#[test]
fn schemathesis_finds_nothing_on_either_engine() {
    let gateways = [Backend::Embedded, Backend::PostgresRedis].map(prepared);
    let [embedded, postgres_redis] = &gateways;
    let runs = [
        (embedded, Engine::V1, true),
        (postgres_redis, Engine::V2, true),
        (postgres_redis, Engine::V1, false),
        (embedded, Engine::V2, false),
    ];
    let findings: Vec<String> = std::thread::scope(|scope| {
        let started = runs.map(|(gateway, engine, is_signed_in)| {
            let run = scope.spawn(move || find_with_schemathesis(gateway, engine, is_signed_in));
            (format!("{} on {:?}, signed in: {is_signed_in}", engine.name(), gateway.backend), run)
        });
        let found = started.into_iter().filter_map(|(name, run)| Some((name, run.join().unwrap().err()?)));
        found.map(|(name, shown)| format!("{name}:\n{shown}")).collect()
    });
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    for gateway in &gateways {
        assert!(!gateway.log().contains("panicked"), "{}", gateway.log());
    }
}
