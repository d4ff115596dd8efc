//! Where a case runs: on gateways of the test's own in the four worlds, or on an operator's installation. What cannot
//! run there says so on standard error, past the capture of the test runner.

use crate::support::{
    Backend, Client, Engine, Gateway, Options, Request, Side, Story, compare_in, for_each_backend, for_each_world,
    gateway_for, random_bytes,
};
use data_encoding::HEXLOWER;
use serde_json::json;
use std::any::type_name;
use std::collections::BTreeSet;
use std::env;
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

/// What the cases need beside the harness's cheap hashes and absent limits; docs/ABUSE.md asks it of an operator too.
pub const STAGING: Story = Story { env: &[("BIFRONS_OTP__RESEND_INTERVAL", "0s")] };

const BACKENDS: [Backend; 2] = [Backend::Embedded, Backend::PostgresRedis];

const NEEDED: &str = "run the cases on a staging copy with the settings of docs/ABUSE.md";

/// The operator's installation if one is named, or why it is of no use.
static INSTALLATION: LazyLock<Result<Option<Gateway>, String>> = LazyLock::new(find_installation);

/// Keeps the accounts of one run from those of another on the same installation.
static RUN: LazyLock<String> = LazyLock::new(|| HEXLOWER.encode(&random_bytes::<4>()));

/// What was told of cases that did not run, or not in full.
static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn find_installation() -> Result<Option<Gateway>, String> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    if variable("BIFRONS_ABUSE_V1").or(variable("BIFRONS_ABUSE_V2")).is_none() {
        return Ok(None);
    }
    let needed = |name: &str| variable(name).ok_or_else(|| format!("{name} is not set: {NEEDED}"));
    let address = |name: &str| {
        let text = needed(name)?;
        let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
        found.ok_or_else(|| format!("{name}: {text} is no HOST:PORT that can be resolved"))
    };
    let directory = |name: &str| {
        let place = PathBuf::from(needed(name)?);
        place.canonicalize().map_err(|error| format!("{name}: {}: {error}", place.display()))
    };
    let (v1, v2) = (address("BIFRONS_ABUSE_V1")?, address("BIFRONS_ABUSE_V2")?);
    let (mail, sms) = (directory("BIFRONS_ABUSE_MAIL_DIR")?, directory("BIFRONS_ABUSE_SMS_DIR")?);
    for (engine, address) in [(Engine::V1, v1), (Engine::V2, v2)] {
        refuse_limits(engine, address)?;
    }
    Ok(Some(Gateway::elsewhere(v1, v2, &mail, &sms)))
}

/// Under limits every case would fail with 429, or pass for a wrong reason.
fn refuse_limits(engine: Engine, address: SocketAddr) -> Result<(), String> {
    let mut client = Client::new(address);
    let request = Request::post(&format!("/api/{}/auth/verify-otp/", engine.name()), &json!({}));
    for turn in 1..=30 {
        let answer = client.try_send(&request).map_err(|error| format!("{address}: {error}"))?;
        match answer.status {
            400 => (),
            429 => return Err(format!("throttled at request {turn}: {NEEDED} (limits.* = off)")),
            _ => return Err(format!("{address} is no {} of a bifrons: {}", engine.name(), answer.shown())),
        }
    }
    Ok(())
}

fn installation() -> Option<&'static Gateway> {
    INSTALLATION.as_ref().unwrap_or_else(|reason| panic!("{reason}")).as_ref()
}

/// Whether the gateways are the test's own: their data, log and process can be looked at.
pub fn is_own() -> bool {
    installation().is_none()
}

fn say<F>(_: &F, what: &str) {
    let case = type_name::<F>().trim_end_matches("::{{closure}}").trim_start_matches("abuse::");
    let line = format!("{case}: {what}\n");
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(line.clone()) {
        // Straight to the file: what is printed by macros is hidden when a test passes.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// A case that needs nothing but two ports and the letters.
pub fn everywhere(tell: impl Fn(&mut Side<'_>)) {
    match installation() {
        None => for_each_world(STAGING, tell),
        Some(gateway) => compare_in([("the installation".to_owned(), gateway)], tell),
    }
}

/// A part of a case of [`everywhere`] that looks inside the gateway.
pub fn inside(reason: &str, look: impl FnOnce()) {
    if is_own() {
        look();
    } else {
        say(&look, &format!("PARTLY NOT RUN: {reason}"));
    }
}

/// A case that an operator's installation cannot run, for this reason; in the four worlds with this configuration.
pub fn own_worlds(reason: &str, story: Story, tell: impl Fn(&mut Side<'_>)) {
    if is_own() {
        for_each_world(story, tell);
    } else {
        say(&tell, &format!("NOT RUN: {reason}"));
    }
}

/// As [`own_worlds`], with a gateway of the case's own on each backend, which it may stop.
pub fn own_gateways(reason: &str, env: &[(&str, &str)], tell: impl Fn(&mut Gateway)) {
    if is_own() {
        for_each_backend(env, tell);
    } else {
        say(&tell, &format!("NOT RUN: {reason}"));
    }
}

/// As [`own_worlds`], with a gateway of its own for each world, so that no count is shared between them.
pub fn own_worlds_apart(reason: &str, env: &[(&str, &str)], tell: impl Fn(&mut Side<'_>)) {
    if !is_own() {
        say(&tell, &format!("NOT RUN: {reason}"));
        return;
    }
    for backend in BACKENDS {
        for engine in Engine::BOTH {
            let options = env.iter().fold(Options::new(backend), |options, (key, value)| options.with(key, value));
            let gateway = Gateway::start(options);
            tell(&mut Side::new(&gateway, engine));
        }
    }
}

/// A first part for an address that no other run has used.
pub fn named(name: &str) -> String {
    format!("{name}.{}", *RUN)
}

/// For measurements: every world one after the other and nothing beside it; answers are not compared.
pub fn measured_everywhere(story: Story, mut measure: impl FnMut(&mut Side<'_>, &str)) {
    static ALONE: Mutex<()> = Mutex::new(());
    // A measurement that failed says nothing of the next.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let gateways: Vec<(String, &Gateway)> = match installation() {
        None => BACKENDS.map(|backend| (format!("{backend:?}"), gateway_for(story, backend))).into(),
        Some(gateway) => vec![("the installation".to_owned(), gateway)],
    };
    for (name, gateway) in gateways {
        for engine in Engine::BOTH {
            measure(&mut Side::new(gateway, engine), &format!("{} on {name}", engine.name()));
        }
    }
}
