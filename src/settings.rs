//! The configuration: embedded defaults, then a file, then the environment, then the command line.
//! It is read and checked once, at the start; what cannot keep its promises does not start.

mod layers;
mod master;
mod pem;
mod secret;
mod span;
mod urls;
mod validate;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::error::{Actual, Kind};
use ipnet::IpNet;
use lettre::message::Mailbox;
use phonenumber::country;
use serde::{Deserialize, Deserializer, de};
use url::Url;

use crate::services::{keys::Algorithm, passwords::Kernel};

pub use layers::{DEFAULTS, Sources};
pub use master::{
    FurtherKey, MasterSecret, fresh_ed25519_key, fresh_key, load_configured_signing_key, load_master_secret,
    load_signing_key, load_verification_keys,
};
pub use secret::{MASK, Secret};
pub use span::{Rate, Span};
pub use urls::{DatabaseUrl, MailUrl, PostgresTls, Security, SmsUrl, StoreUrl};

/// Keys whose values are never shown.
const SECRET_KEYS: [&str; 2] = ["secrets.master", "tokens.signing_key"];

/// Keys whose values may hold a password.
const URL_KEYS: [&str; 4] = ["database.url", "store.url", "mail.url", "sms.url"];

/// Why a configuration is refused; each is one sentence that names key and source.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read or written.
    #[error("cannot use {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// A source is not written as it must be.
    #[error("{origin}: {reason}")]
    Syntax {
        /// The source.
        origin: String,
        /// What is wrong, without quoting the source.
        reason: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}` ({origin}){}", nearest.as_ref().map(|near| format!("; did you mean {near}?")).unwrap_or_default())]
    UnknownKey {
        /// The key as it was given.
        key: String,
        /// The source.
        origin: String,
        /// The existing key that is most like it, in the source's spelling.
        nearest: Option<String>,
    },
    /// A value that is not allowed.
    #[error("`{key}` ({origin}): {reason}")]
    Invalid {
        /// The key.
        key: String,
        /// The source.
        origin: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// A key file that cannot be trusted or used.
    #[error("the key file {} is refused: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl SettingsError {
    fn file(path: &Path, error: &std::io::Error) -> Self {
        Self::File { path: path.to_owned(), reason: error.to_string() }
    }

    fn refused(key: &str, settings: &Settings, reason: impl Into<String>) -> Self {
        Self::Invalid { key: key.to_owned(), origin: settings.source(key).to_owned(), reason: reason.into() }
    }
}

/// One key of the configuration in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLine {
    /// The dotted key.
    pub key: String,
    /// Its value as TOML, secrets masked.
    pub value: String,
    /// `default`, the file's name, `environment BIFRONS_…` or `--set`.
    pub source: String,
}

/// The whole configuration, checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Directory for everything that is stored locally.
    pub data_dir: PathBuf,
    /// The only source of links in mail.
    #[serde(deserialize_with = "url")]
    pub public_url: Url,
    /// Networks of the proxies whose `X-Forwarded-For` is believed.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// The HTTP engines.
    pub engines: Engines,
    /// Deadlines of HTTP connections.
    pub http: Http,
    /// The database.
    pub database: Database,
    /// Codes, counters and locks.
    pub store: Store,
    /// The secret that keys derive from.
    pub secrets: Secrets,
    /// Mail.
    pub mail: Mail,
    /// Text messages.
    pub sms: Sms,
    /// Delivery of letters.
    pub outbox: Outbox,
    /// Rate limits.
    pub limits: Limits,
    /// Locking of identifiers.
    pub lockout: Lockout,
    /// Slowing of addresses that try many accounts.
    pub stuffing: Stuffing,
    /// Second factors.
    pub mfa: Mfa,
    /// Devices that have signed in.
    pub devices: Devices,
    /// Life and number of sessions.
    pub sessions: Sessions,
    /// One-time codes.
    pub otp: Otp,
    /// Password hashing and rules.
    pub passwords: Passwords,
    /// Access and refresh tokens.
    pub tokens: Tokens,
    /// Registration.
    pub registration: Registration,
    /// Links in mail.
    pub links: Links,
    /// Where addresses are.
    pub geoip: GeoIp,
    /// Sign-in with Google.
    pub google: Google,
    /// The published documents.
    pub docs: Docs,
    /// Cross-origin requests.
    pub cors: Cors,
    /// Logs.
    pub log: Log,
    /// Audit events.
    pub audit: Audit,
    #[serde(skip)]
    lines: Vec<KeyLine>,
    #[serde(skip)]
    resolved: Resolved,
}

/// The HTTP engines.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engines {
    /// The blocking engine.
    pub v1: BlockingEngine,
    /// The async engine.
    pub v2: AsyncEngine,
}

/// The blocking engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockingEngine {
    /// Whether it runs.
    pub enabled: bool,
    /// Where it listens.
    #[serde(deserialize_with = "socket_address")]
    pub bind: SocketAddr,
    /// Threads, one per request answered.
    pub threads: usize,
    /// Connections open at once.
    pub connections: usize,
}

/// The async engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AsyncEngine {
    /// Whether it runs.
    pub enabled: bool,
    /// Where it listens.
    #[serde(deserialize_with = "socket_address")]
    pub bind: SocketAddr,
    /// Worker threads, 0 being one per core.
    pub workers: usize,
    /// Connections served at once, over all workers.
    pub connections: usize,
}

/// Deadlines of HTTP connections.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// For a request's head to arrive.
    #[serde(deserialize_with = "span::duration")]
    pub head_timeout: Duration,
    /// For a request's body to arrive.
    #[serde(deserialize_with = "span::duration")]
    pub body_timeout: Duration,
    /// For the next request on an open connection.
    #[serde(deserialize_with = "span::duration")]
    pub idle_timeout: Duration,
    /// For the client to take the response.
    #[serde(deserialize_with = "span::duration")]
    pub write_timeout: Duration,
    /// For running requests after SIGTERM; zero ends them at once.
    #[serde(deserialize_with = "span::duration")]
    pub shutdown_grace: Duration,
}

/// The database.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// As configured; [`Settings::database`] says what it means.
    pub url: Secret,
    /// Connections that an engine keeps at most.
    pub pool: u16,
    /// For a connection from the pool, and for connecting.
    #[serde(deserialize_with = "span::duration")]
    pub timeout: Duration,
    /// What an SQLite commit waits for.
    pub durability: Durability,
}

/// SQLite's `synchronous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A commit survives a power cut.
    Full,
    /// The last commits may be lost in a power cut.
    Normal,
}

/// Codes, counters and locks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// As configured; [`Settings::store`] says what it means.
    pub url: Secret,
    /// Redis connections that an engine keeps at most.
    pub pool: u16,
    /// For a connection or an answer.
    #[serde(deserialize_with = "span::duration")]
    pub timeout: Duration,
}

/// The secret that keys derive from; read it with [`load_master_secret`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// The master secret, encoded.
    #[serde(deserialize_with = "optional")]
    pub master: Option<Secret>,
    /// A file that holds it.
    #[serde(deserialize_with = "optional")]
    pub master_file: Option<PathBuf>,
}

/// Mail.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// As configured; [`Settings::mail`] says what it means.
    pub url: Secret,
    /// Sender of every letter.
    #[serde(deserialize_with = "mailbox")]
    pub from: Mailbox,
    /// For one delivery.
    #[serde(deserialize_with = "span::duration")]
    pub timeout: Duration,
}

/// Text messages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sms {
    /// As configured; [`Settings::sms`] says what it means.
    pub url: Secret,
    /// For one delivery.
    #[serde(deserialize_with = "span::duration")]
    pub timeout: Duration,
}

/// Delivery of letters.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outbox {
    /// Between two looks for letters to send.
    #[serde(deserialize_with = "span::duration")]
    pub poll: Duration,
    /// How long a claimed letter is kept from other instances.
    #[serde(deserialize_with = "span::duration")]
    pub lease: Duration,
    /// Deliveries tried before a letter is dead.
    pub attempts: u32,
    /// After the first failed delivery; doubles with each further one.
    #[serde(deserialize_with = "span::duration")]
    pub backoff: Duration,
    /// The longest wait between two deliveries.
    #[serde(deserialize_with = "span::duration")]
    pub backoff_max: Duration,
    /// How long sent letters are kept; zero deletes them once sent.
    #[serde(deserialize_with = "span::duration")]
    pub retention: Duration,
}

/// Rate limits, `None` being off.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Per address, where a credential or a code is taken.
    #[serde(deserialize_with = "span::rate")]
    pub burst: Option<Rate>,
    /// Per user or else address, there and on refresh, logout and change.
    #[serde(deserialize_with = "span::rate")]
    pub sustained: Option<Rate>,
    /// Per user on the other authenticated routes.
    #[serde(deserialize_with = "span::rate")]
    pub general: Option<Rate>,
    /// Per address on token/verify and forward-auth.
    #[serde(deserialize_with = "span::rate")]
    pub token_verify: Option<Rate>,
}

/// Locking of identifiers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lockout {
    /// Failed sign-ins that lock.
    pub failures: u32,
    /// How long the lock lasts.
    #[serde(deserialize_with = "span::duration")]
    pub duration: Duration,
}

/// Slowing of addresses that try many accounts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stuffing {
    /// Distinct identifiers that failed from one address.
    pub identifiers: u32,
    /// Within this time.
    #[serde(deserialize_with = "span::duration")]
    pub window: Duration,
    /// How often the address may try to sign in then.
    #[serde(deserialize_with = "span::rate")]
    pub rate: Option<Rate>,
    /// For how long.
    #[serde(deserialize_with = "span::duration")]
    pub duration: Duration,
}

/// Devices that have signed in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// How long a device stays known after a sign-in.
    #[serde(deserialize_with = "span::duration")]
    pub ttl: Duration,
}

/// Life and number of sessions, `None` being off.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sessions {
    /// Unused sessions end after this time.
    #[serde(deserialize_with = "span::limit")]
    pub idle_timeout: Option<Duration>,
    /// Every session ends after this time.
    #[serde(deserialize_with = "span::limit")]
    pub absolute_timeout: Option<Duration>,
    /// Sessions of one user, 0 being any number.
    pub max_per_user: usize,
}

/// Links in mail, as paths below `public_url`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// The page to sign in.
    pub sign_in: String,
    /// The page to ask for a new password.
    pub password_forgotten: String,
    /// The page to set a new password, with `{uidb64}` and `{token}`.
    pub password_reset: String,
}

/// Where addresses are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeoIp {
    /// A database in MaxMind's format; `None` for none.
    #[serde(deserialize_with = "optional")]
    pub database: Option<PathBuf>,
}

/// Sign-in with Google.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Google {
    /// OAuth client ids whose ID tokens are taken; none turns it off.
    pub client_ids: Vec<String>,
    /// Where Google publishes its keys.
    #[serde(deserialize_with = "url")]
    pub jwks_url: Url,
    /// How long asking for them may take.
    #[serde(deserialize_with = "span::duration")]
    pub timeout: Duration,
    /// Which Google accounts are linked with an account that has their address.
    pub linking: GoogleLinking,
    /// Whether a token must be bound to a nonce.
    pub require_nonce: bool,
}

/// Which Google accounts are linked with a verified account that has their address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GoogleLinking {
    /// Those of addresses that Google itself runs.
    Authoritative,
    /// All that Google calls verified.
    Verified,
}

/// The published documents.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Docs {
    /// Whether the OpenAPI document and Swagger UI are served.
    pub enabled: bool,
}

/// What a look-up of breached passwords without an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The password is accepted.
    Open,
    /// The request is refused.
    Closed,
}

/// One-time codes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Otp {
    /// How long a code is valid.
    #[serde(deserialize_with = "span::duration")]
    pub ttl: Duration,
    /// Guesses that one code allows.
    pub guesses: u32,
    /// Between two codes for one account.
    #[serde(deserialize_with = "span::duration")]
    pub resend_interval: Duration,
    /// Guesses for one account in an hour.
    pub account_guesses: u32,
    /// Codes, links and notices sent to one account in a day.
    pub daily_sends: u32,
    /// How long a reset link is valid.
    #[serde(deserialize_with = "span::duration")]
    pub link_ttl: Duration,
}

/// Second factors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mfa {
    /// How long a sign-in waits for its second factor.
    #[serde(deserialize_with = "span::duration")]
    pub ttl: Duration,
    /// What an authenticator calls the service; `None` is `tokens.issuer`.
    #[serde(deserialize_with = "optional")]
    pub issuer: Option<String>,
    /// Wrong guesses at a user's second factor within a day.
    pub daily_guesses: u32,
}

/// Password hashing and rules.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passwords {
    /// Argon2id memory, in KiB.
    pub memory_kib: u32,
    /// Argon2id passes.
    pub iterations: u32,
    /// Argon2id lanes.
    pub parallelism: u32,
    /// Accepts parameters below OWASP's table; for tests only.
    pub allow_weak: bool,
    /// Hashes computed at once, 0 being one per core.
    pub slots: usize,
    /// Hashes that may wait for a slot.
    pub queue: usize,
    /// How long a hash may wait for one.
    #[serde(deserialize_with = "span::duration")]
    pub queue_timeout: Duration,
    /// Which code computes Argon2id.
    pub kernel: Kernel,
    /// Shortest password, in characters.
    pub min_length: usize,
    /// Longest password, in characters.
    pub max_length: usize,
    /// zxcvbn score that a new password must reach, 0 to 4.
    pub min_score: u8,
    /// A service that knows breached passwords by range; `None` asks nobody.
    #[serde(deserialize_with = "optional_url")]
    pub breaches_url: Option<Url>,
    /// How long it may take.
    #[serde(deserialize_with = "span::duration")]
    pub breaches_timeout: Duration,
    /// What it means when it does not answer.
    pub breaches_on_failure: OnFailure,
}

/// Access and refresh tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// How long an access token is valid.
    #[serde(deserialize_with = "span::duration")]
    pub access_ttl: Duration,
    /// How long a refresh token is valid.
    #[serde(deserialize_with = "span::duration")]
    pub refresh_ttl: Duration,
    /// How long a spent refresh token still gets the same answer.
    #[serde(deserialize_with = "span::duration")]
    pub reuse_grace: Duration,
    /// The `iss` claim.
    pub issuer: String,
    /// The `aud` claim.
    pub audience: String,
    /// How they are signed.
    pub algorithm: Algorithm,
    /// The signing key as text; read it with [`load_signing_key`].
    #[serde(deserialize_with = "optional")]
    pub signing_key: Option<Secret>,
    /// A file that holds it.
    #[serde(deserialize_with = "optional")]
    pub signing_key_file: Option<PathBuf>,
    /// The `kid` header, `None` when it is to be derived from the key.
    #[serde(deserialize_with = "optional")]
    pub key_id: Option<String>,
    /// Further keys that verify; read them with [`load_verification_keys`].
    #[serde(deserialize_with = "named_keys")]
    pub verification_keys: Vec<NamedKey>,
}

/// Where a key that verifies tokens is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedKey {
    /// The `kid` of its tokens, `None` when it is to be derived from the key.
    pub id: Option<String>,
    /// The file that holds it, `None` for the key that derives from the master secret.
    pub file: Option<PathBuf>,
}

/// Registration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Whether registering a taken address says so.
    pub reveal_existing: bool,
    /// Country of phone numbers without a country code.
    #[serde(deserialize_with = "region")]
    pub default_region: String,
}

/// Cross-origin requests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cors {
    /// Origins that may call with credentials, as a browser writes them.
    pub origins: Vec<String>,
}

/// Logs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Filter directives of tracing-subscriber.
    pub level: String,
    /// How a line is written.
    pub format: LogFormat,
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

/// Audit events.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// How long they are kept.
    #[serde(deserialize_with = "span::duration")]
    pub retention: Duration,
}

/// What the URLs mean.
#[derive(Debug, Clone)]
struct Resolved {
    database: DatabaseUrl,
    postgres_tls: PostgresTls,
    store: StoreUrl,
    mail: MailUrl,
    sms: SmsUrl,
}

impl Default for Resolved {
    fn default() -> Self {
        Self {
            database: DatabaseUrl::Sqlite(PathBuf::new()),
            postgres_tls: PostgresTls::Off,
            store: StoreUrl::Embedded,
            mail: MailUrl::File(PathBuf::new()),
            sms: SmsUrl::File(PathBuf::new()),
        }
    }
}

impl Settings {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// The first thing that is wrong, with its key and source.
    pub fn load(sources: &Sources) -> Result<Self, SettingsError> {
        let keys = layers::keys()?;
        let figment = layers::lay(sources, &keys)?;
        let mut settings: Self = figment.extract().map_err(|error| explain(&error, &figment))?;
        settings.lines = keys.keys().filter_map(|key| line(&figment, key, &settings.data_dir)).collect();
        settings.resolved = settings.resolve()?;
        validate::validate(&settings)?;
        Ok(settings)
    }

    /// The defaults with some `key=value` set, without file and environment.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn from_overrides(overrides: &[&str]) -> Result<Self, SettingsError> {
        Self::load(&Sources {
            overrides: overrides.iter().map(|text| (*text).to_owned()).collect(),
            ..Sources::default()
        })
    }

    /// Every key, its value and where it came from, secrets masked.
    #[must_use]
    pub fn describe(&self) -> Vec<KeyLine> {
        self.lines.clone()
    }

    /// Where the tables live.
    #[must_use]
    pub fn database(&self) -> DatabaseUrl {
        self.resolved.database.clone()
    }

    /// Whether connections to PostgreSQL are encrypted and verified.
    #[must_use]
    pub fn postgres_tls(&self) -> PostgresTls {
        self.resolved.postgres_tls
    }

    /// Where codes, counters and locks live.
    #[must_use]
    pub fn store(&self) -> StoreUrl {
        self.resolved.store.clone()
    }

    /// Where mail goes.
    #[must_use]
    pub fn mail(&self) -> MailUrl {
        self.resolved.mail.clone()
    }

    /// Where text messages go.
    #[must_use]
    pub fn sms(&self) -> SmsUrl {
        self.resolved.sms.clone()
    }

    /// Whether cookies are sent with `Secure`: always but for http, which only a loopback host may have.
    #[must_use]
    pub fn cookies_are_secure(&self) -> bool {
        self.public_url.scheme() == "https"
    }

    /// Whether everything is stored in `data_dir`: SQLite and the embedded store.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        matches!(self.resolved.database, DatabaseUrl::Sqlite(_)) && matches!(self.resolved.store, StoreUrl::Embedded)
    }

    /// Whether the master secret comes from the configuration, not from `{data_dir}/master.key`.
    #[must_use]
    pub fn has_configured_master(&self) -> bool {
        self.secrets.master.is_some() || self.secrets.master_file.is_some()
    }

    /// Creates `data_dir` with mode 0700; one that exists is left as it is.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create_data_dir(&self) -> Result<(), SettingsError> {
        master::create_private_dir(&self.data_dir)
    }

    fn source(&self, key: &str) -> &str {
        self.lines.iter().find(|line| line.key == key).map_or("default", |line| &line.source)
    }

    fn resolve(&self) -> Result<Resolved, SettingsError> {
        let refused = |key| move |reason| SettingsError::refused(key, self, reason);
        let database = urls::database(self.database.url.expose(), &self.data_dir).map_err(refused("database.url"))?;
        let postgres_tls = match &database {
            DatabaseUrl::Sqlite(_) => PostgresTls::Off,
            DatabaseUrl::Postgres(url) => urls::postgres_tls(url.expose()).map_err(refused("database.url"))?,
        };
        Ok(Resolved {
            database,
            postgres_tls,
            store: urls::store(self.store.url.expose()).map_err(refused("store.url"))?,
            mail: urls::mail(self.mail.url.expose(), &self.data_dir).map_err(refused("mail.url"))?,
            sms: urls::sms(self.sms.url.expose(), &self.data_dir).map_err(refused("sms.url"))?,
        })
    }
}

/// A key as it is shown: its value in force, and the name of its source.
fn line(figment: &Figment, key: &str, data_dir: &Path) -> Option<KeyLine> {
    let value: toml::Value = figment.find_value(key).ok()?.deserialize().ok()?;
    let shown = match value.as_str() {
        Some("") if SECRET_KEYS.contains(&key) => String::new(),
        Some(_) if SECRET_KEYS.contains(&key) => MASK.to_owned(),
        Some("") if key == "database.url" => {
            format!("sqlite://{}", data_dir.join("bifrons.db").display())
        }
        Some("") if key == "mail.url" => format!("file://{}", data_dir.join("mail").display()),
        Some("") if key == "sms.url" => format!("file://{}", data_dir.join("sms").display()),
        Some(text) if URL_KEYS.contains(&key) => urls::masked(text),
        Some(text) => text.to_owned(),
        None => {
            return Some(KeyLine { key: key.to_owned(), value: value.to_string(), source: source(figment, key) });
        }
    };
    Some(KeyLine { key: key.to_owned(), value: toml::Value::String(shown).to_string(), source: source(figment, key) })
}

fn source(figment: &Figment, key: &str) -> String {
    figment.find_metadata(key).map_or_else(|| "default".to_owned(), |metadata| metadata.name.to_string())
}

/// Words figment's error anew: key, source, what was found and what is needed.
fn explain(error: &figment::Error, figment: &Figment) -> SettingsError {
    // The position in a list is not part of the key.
    let key = error
        .path
        .iter()
        .map(String::as_str)
        .take_while(|name| name.parse::<usize>().is_err())
        .collect::<Vec<_>>()
        .join(".");
    let hidden = SECRET_KEYS.contains(&key.as_str()) || URL_KEYS.contains(&key.as_str());
    let reason = match &error.kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) if hidden => {
            format!("{} is needed", needed(expected))
        }
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            format!("found {}, but {} is needed", found(actual), needed(expected))
        }
        Kind::UnknownVariant(actual, allowed) => {
            format!("found {actual:?}, but one of {} is needed", allowed.join(", "))
        }
        Kind::Message(reason) => reason.clone(),
        other => other.to_string(),
    };
    SettingsError::Invalid { origin: source(figment, &key), key, reason }
}

fn found(actual: &Actual) -> String {
    match actual {
        Actual::Str(text) => format!("{text:?}"),
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Signed(number) => number.to_string(),
        Actual::Float(number) => number.to_string(),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

fn needed(expected: &str) -> &str {
    match expected {
        "usize" | "u64" => "a whole number",
        "u32" => "a whole number from 0 to 4294967295",
        "u16" => "a whole number from 0 to 65535",
        "u8" => "a whole number from 0 to 255",
        "a boolean" => "true or false",
        "a string" | "path string" => "a text in quotes",
        "a sequence" => "a list of texts",
        other => other,
    }
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    span::parsed(deserializer, "a URL such as https://auth.example.com is needed", |text| {
        Url::parse(text).map_err(|error| format!("a URL such as https://auth.example.com is needed ({error})"))
    })
}

fn optional_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    span::parsed(deserializer, "a URL such as https://api.example.com is needed", |text| match text {
        "" => Ok(None),
        text => Url::parse(text)
            .map(Some)
            .map_err(|error| format!("a URL such as https://api.example.com is needed ({error})")),
    })
}

fn socket_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    const FORM: &str = "an address and a port such as 127.0.0.1:8001 or [::1]:8001 are needed";
    span::parsed(deserializer, FORM, |text| text.trim().parse::<SocketAddr>().or(Err(FORM)))
}

fn mailbox<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mailbox, D::Error> {
    const FORM: &str = "an address, or \"Name <address>\", is needed";
    span::parsed(deserializer, FORM, |text| text.trim().parse::<Mailbox>().or(Err(FORM)))
}

fn region<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    const FORM: &str = "an ISO 3166 country code of two capital letters is needed, such as NG";
    span::parsed(deserializer, FORM, |text| match text.parse::<country::Id>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(FORM),
    })
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    Vec::<String>::deserialize(deserializer)?
        .iter()
        .map(|text| {
            let text = text.trim();
            let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_error| {
                de::Error::custom(format!("found {text:?}, but an address or a network such as 10.0.0.0/8 is needed"))
            })
        })
        .collect()
}

fn named_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NamedKey>, D::Error> {
    let parse = |text: &String| {
        let (id, file) = text.split_once('=').map_or((None, text.as_str()), |(id, file)| (Some(id), file));
        let file = file.trim();
        if file.is_empty() || id.is_some_and(|id| id.trim().is_empty()) {
            return Err(de::Error::custom(format!(
                "found {text:?}, but FILE, ID=FILE, derived or ID=derived is needed"
            )));
        }
        let file = (file != "derived").then(|| PathBuf::from(file));
        Ok(NamedKey { id: id.map(|id| id.trim().to_owned()), file })
    };
    Vec::<String>::deserialize(deserializer)?.iter().map(parse).collect()
}

/// Reads a text, the empty one being none.
fn optional<'de, D: Deserializer<'de>, T: From<String>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok((!text.is_empty()).then(|| T::from(text)))
}

impl fmt::Display for KeyLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}  # {}", self.key, self.value, self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(sources: &Sources) -> String {
        Settings::load(sources).unwrap_err().to_string()
    }

    fn environment(pairs: &[(&str, &str)]) -> Sources {
        Sources {
            environment: pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..Sources::default()
        }
    }

    fn file(content: &str) -> (tempfile::TempDir, Sources) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bifrons.toml");
        std::fs::write(&path, content).unwrap();
        (dir, Sources { file: Some(path), ..Sources::default() })
    }

    #[test]
    fn the_defaults_are_a_valid_configuration() {
        let settings = Settings::load(&Sources::default()).unwrap();
        assert_eq!(settings.engines.v1.bind.to_string(), "127.0.0.1:8001");
        assert_eq!(settings.engines.v2.bind.to_string(), "127.0.0.1:8002");
        assert_eq!(settings.tokens.refresh_ttl, Duration::from_secs(30 * 86_400));
        assert_eq!(settings.limits.burst, Some(Rate { count: 10, per: Duration::from_secs(60) }));
        assert_eq!(settings.limits.token_verify, None);
        assert!(settings.is_embedded());
        assert!(!settings.cookies_are_secure());
        assert!(settings.secrets.master.is_none());
        assert_eq!(settings.mail.from.to_string(), "Bifrons <no-reply@localhost>");
        let day = Duration::from_secs(86_400);
        assert_eq!((settings.otp.link_ttl, settings.devices.ttl), (Duration::from_secs(3600), day * 365));
        assert_eq!(settings.sessions.idle_timeout, Some(day * 30));
        assert_eq!((settings.sessions.absolute_timeout, settings.sessions.max_per_user), (Some(day * 180), 0));
        assert_eq!((settings.stuffing.identifiers, settings.stuffing.window), (20, Duration::from_secs(600)));
        assert_eq!(settings.stuffing.rate, Some(Rate { count: 2, per: Duration::from_secs(60) }));
        assert_eq!(settings.passwords.breaches_url, None, "off by default");
        assert_eq!(settings.passwords.breaches_on_failure, OnFailure::Open);
        assert_eq!(settings.geoip.database, None);
        assert!(settings.docs.enabled);
        assert_eq!(settings.links.password_reset.matches('{').count(), 2);
    }

    #[test]
    fn keys_that_may_be_off_or_empty_say_so() {
        let settings = Settings::from_overrides(&[
            "sessions.idle_timeout=off",
            "sessions.absolute_timeout=off",
            "stuffing.rate=off",
            "geoip.database=",
            "docs.enabled=false",
            "passwords.breaches_url=",
        ])
        .unwrap();
        assert_eq!((settings.sessions.idle_timeout, settings.sessions.absolute_timeout), (None, None));
        assert_eq!((settings.stuffing.rate, settings.geoip.database.clone()), (None, None));
        assert!(!settings.docs.enabled && settings.passwords.breaches_url.is_none());
        let settings = Settings::load(&environment(&[
            ("BIFRONS_SESSIONS__MAX_PER_USER", "3"),
            ("BIFRONS_GEOIP__DATABASE", "/var/lib/places.mmdb"),
            ("BIFRONS_PASSWORDS__BREACHES_URL", "https://list.example.com"),
            ("BIFRONS_PASSWORDS__BREACHES_ON_FAILURE", "closed"),
            ("BIFRONS_LINKS__SIGN_IN", "/enter"),
        ]))
        .unwrap();
        assert_eq!(settings.sessions.max_per_user, 3);
        assert_eq!(settings.geoip.database.as_deref(), Some(Path::new("/var/lib/places.mmdb")));
        assert_eq!(settings.passwords.breaches_on_failure, OnFailure::Closed);
        assert_eq!(settings.links.sign_in, "/enter");
    }

    #[test]
    fn a_later_source_wins_over_an_earlier_one() {
        let (_dir, mut sources) = file(
            "data_dir = \"from-file\"\n[tokens]\nissuer = \"from-file\"\naudience = \"from-file\"\n[engines.v1]\nthreads = 3\n",
        );
        sources.environment = environment(&[
            ("BIFRONS_TOKENS__ISSUER", "from-environment"),
            ("BIFRONS_TOKENS__AUDIENCE", "from-environment"),
            ("BIFRONS_CONFIG", "elsewhere.toml"),
            ("PATH", "/bin"),
        ])
        .environment;
        sources.overrides = vec!["tokens.audience=first".to_owned(), "tokens.audience=second".to_owned()];
        let settings = Settings::load(&sources).unwrap();
        assert_eq!(settings.data_dir, Path::new("from-file"));
        assert_eq!(settings.engines.v1.threads, 3);
        assert!(settings.engines.v1.enabled, "the rest of a section stays");
        assert_eq!(settings.tokens.issuer, "from-environment");
        assert_eq!(settings.tokens.audience, "second");
        for (key, source) in [
            ("data_dir", "bifrons.toml"),
            ("tokens.issuer", "environment BIFRONS_TOKENS__ISSUER"),
            ("tokens.audience", "--set"),
            ("tokens.access_ttl", "default"),
        ] {
            assert!(settings.source(key).ends_with(source), "{key}: {}", settings.source(key));
        }
    }

    #[test]
    fn environment_values_take_the_type_of_their_key() {
        let settings = Settings::load(&environment(&[
            ("BIFRONS_TOKENS__ISSUER", "12345"),
            ("BIFRONS_TOKENS__AUDIENCE", "true"),
            ("BIFRONS_ENGINES__V1__THREADS", "12"),
            ("BIFRONS_ENGINES__V2__ENABLED", "false"),
            ("BIFRONS_TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.1"),
            ("BIFRONS_CORS__ORIGINS", "[\"https://a.example.com\", \"https://b.example.com:8443\"]"),
        ]))
        .unwrap();
        assert_eq!((settings.tokens.issuer.as_str(), settings.tokens.audience.as_str()), ("12345", "true"));
        assert_eq!(settings.engines.v1.threads, 12);
        assert!(!settings.engines.v2.enabled);
        assert_eq!(
            settings.trusted_proxies.iter().map(IpNet::to_string).collect::<Vec<_>>(),
            ["10.0.0.0/8", "192.0.2.1/32"]
        );
        assert_eq!(settings.cors.origins, ["https://a.example.com", "https://b.example.com:8443"]);
        let password = Settings::from_overrides(&["secrets.master=12345"]).unwrap_err().to_string();
        assert!(
            password.contains("32 bytes") || password.contains("base64url"),
            "a text of digits is a text: {password}"
        );
    }

    #[test]
    fn verification_keys_have_a_file_and_may_have_an_id() {
        let settings =
            Settings::from_overrides(&["tokens.verification_keys=/run/a.pem, k1=/run/b=c.pem, derived, k2=derived"]);
        let keys = settings.unwrap().tokens.verification_keys;
        let shown: Vec<_> =
            keys.iter().map(|key| (key.id.as_deref(), key.file.as_deref().and_then(Path::to_str))).collect();
        let files = [Some("/run/a.pem"), Some("/run/b=c.pem"), None, None];
        assert_eq!(shown, [None, Some("k1"), None, Some("k2")].into_iter().zip(files).collect::<Vec<_>>());
    }

    #[test]
    fn unknown_keys_are_named_with_their_source_and_the_nearest_key() {
        let (_dir, sources) = file("[tokens]\nacess_ttl = \"5m\"\n");
        let error = refusal(&sources);
        assert!(
            error.contains("`tokens.acess_ttl`")
                && error.contains("bifrons.toml")
                && error.contains("did you mean `tokens.access_ttl`?"),
            "{error}"
        );
        let (_dir, sources) = file("[token]\naccess_ttl = \"5m\"\n");
        assert!(refusal(&sources).contains("did you mean `tokens.access_ttl`"), "{}", refusal(&sources));
        assert_eq!(
            refusal(&environment(&[("BIFRONS_TOKENS_ACCESS_TTL", "5m")])),
            "unknown key `tokens_access_ttl` (environment BIFRONS_TOKENS_ACCESS_TTL); did you mean BIFRONS_TOKENS__ACCESS_TTL?"
        );
        assert_eq!(
            Settings::from_overrides(&["data-dir=x"]).unwrap_err().to_string(),
            "unknown key `data-dir` (--set); did you mean `data_dir`?"
        );
        assert_eq!(Settings::from_overrides(&["zzzzzz=x"]).unwrap_err().to_string(), "unknown key `zzzzzz` (--set)");
    }

    #[test]
    fn wrong_values_are_answered_with_key_source_and_what_is_allowed() {
        for (assignment, reason) in [
            ("tokens.access_ttl=5", "such as \"15m\""),
            ("limits.burst=ten", "such as \"10/min\""),
            ("engines.v1.threads=many", "found \"many\", but a whole number is needed"),
            ("engines.v1.threads=-1", "found -1, but a whole number is needed"),
            ("engines.v1.enabled=yes", "found \"yes\", but true or false is needed"),
            ("engines.v1.bind=8001", "an address and a port"),
            ("otp.guesses=99999999999", "a whole number from 0 to 4294967295"),
            ("database.durability=half", "one of full, normal is needed"),
            ("log.format=xml", "one of auto, pretty, json is needed"),
            ("registration.default_region=XX", "ISO 3166"),
            ("registration.default_region=ng", "ISO 3166"),
            ("mail.from=nobody", "\"Name <address>\""),
            ("trusted_proxies=10.0.0.0/40", "a network such as"),
            ("trusted_proxies=[1", "TOML array"),
            ("tokens.algorithm=RS256", "found \"RS256\", but one of HS256, EdDSA is needed"),
            ("tokens.verification_keys==x", "ID=FILE"),
            ("tokens.verification_keys=k1=", "ID=FILE"),
            ("cors.origins=[1]", "found 1, but a text in quotes is needed"),
            ("public_url=nowhere", "a URL such as"),
            ("passwords.breaches_url=nowhere", "a URL such as"),
            ("passwords.breaches_on_failure=ajar", "one of open, closed is needed"),
            ("passwords.breaches_timeout=2", "such as \"15m\""),
            ("sessions.idle_timeout=never", "or \"off\""),
            ("sessions.absolute_timeout=180", "or \"off\""),
            ("sessions.max_per_user=all", "found \"all\", but a whole number is needed"),
            ("sessions.max_per_user=-1", "found -1, but a whole number is needed"),
            ("stuffing.rate=2", "such as \"10/min\""),
            ("stuffing.identifiers=few", "a whole number from 0 to 4294967295"),
            ("stuffing.window=10", "such as \"15m\""),
            ("devices.ttl=off", "such as \"15m\""),
            ("otp.link_ttl=1hour", "such as \"15m\""),
            ("docs.enabled=on", "found \"on\", but true or false is needed"),
            ("public_url", "KEY=VALUE"),
        ] {
            let error = Settings::from_overrides(&[assignment]).unwrap_err().to_string();
            let key = assignment.split('=').next().unwrap();
            assert!(
                error.contains(reason) && error.contains("--set") && (error.contains(key) || key == assignment),
                "{error}"
            );
            assert!(!error.contains('\n'), "{error}");
        }
        let (_dir, sources) = file("trusted_proxies = \"10.0.0.0/8\"\n");
        assert!(refusal(&sources).contains("a list of texts is needed"), "{}", refusal(&sources));
        let (_dir, sources) = file("engines = 3\n");
        assert!(refusal(&sources).contains("[engines]"), "{}", refusal(&sources));
        let (_dir, sources) = file("[tokens]\naccess_ttl = 900\n");
        assert!(refusal(&sources).contains("found 900, but a duration"), "{}", refusal(&sources));
    }

    #[test]
    fn a_broken_file_is_answered_with_its_line_and_without_its_content() {
        let (_dir, sources) = file("[secrets]\nmaster = \"hunter2hunter2\n");
        let error = refusal(&sources);
        assert!(error.contains("line 2") && !error.contains("hunter2") && !error.contains('\n'), "{error}");
        let missing = Sources { file: Some("does-not-exist.toml".into()), ..Sources::default() };
        assert!(refusal(&missing).contains("does-not-exist.toml"));
    }

    #[test]
    fn secrets_are_shown_nowhere() {
        let master = "hunter2hunter2hunter2hunter2hunter2hunter2hun";
        let settings = Settings::from_overrides(&[
            &format!("secrets.master={}", &data_encoding::BASE64URL_NOPAD.encode(master.as_bytes())),
            "tokens.signing_key=hunter2hunter2hunter2hunter2hunter2",
            "database.url=postgres://u:hunter2@localhost/x",
            "store.url=redis://:hunter2@localhost",
            "mail.url=smtps://u:hunter2@mail.example.com",
            "sms.url=twilio://AC1:hunter2@+1500",
        ])
        .unwrap();
        let shown: String = settings.describe().iter().map(|line| format!("{line}\n")).collect();
        for text in [shown.as_str(), &format!("{settings:?}")] {
            assert!(!text.contains("hunter2") && !text.contains("aHVudGVy"), "{text}");
        }
        assert!(shown.contains("secrets.master = \"********\"  # --set"), "{shown}");
        assert!(shown.contains("postgres://u:********@localhost/x"), "{shown}");
        let (_dir, sources) = file("[database]\nurl = [\"postgres://u:hunter2@h/x\"]\n");
        assert!(!refusal(&sources).contains("hunter2"));
    }

    #[test]
    fn every_key_is_described_and_the_description_is_toml() {
        let settings = Settings::load(&Sources::default()).unwrap();
        let lines = settings.describe();
        assert_eq!(lines.len(), layers::keys().unwrap().len());
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        assert!(text.contains("database.url = \"sqlite://data/bifrons.db\"  # default"), "{text}");
        let (_dir, sources) = file(&text);
        Settings::load(&sources).unwrap();
    }
}
