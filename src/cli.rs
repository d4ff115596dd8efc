//! The command line: what each command takes, and how its outcome is told.

use std::error::Error;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use crate::admin::{self, NewUser, OutboxLine, Retry};
use crate::api::{Version, openapi};
use crate::settings::{self, Secret, Settings, Sources};
use crate::store::migrations::{self, MigrationProgress};
use crate::{allocator, parts, serve};

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// The longest line that is read as a password, in bytes; the service has the rule for characters.
const LONGEST_LINE: u64 = 4096;

const EXAMPLES: &str = "\
Examples:
  bifrons serve                              start both engines with the embedded database
  bifrons serve --set engines.v1.enabled=false
                                             start the async engine alone
  bifrons config show --config bifrons.toml  every key, its value and where it came from
  bifrons user create --email ada@example.com --role admin
                                             asks for the password
  bifrons keys generate                      a fresh master secret
  bifrons openapi v2 > openapi.json          the document of an engine's API

Configuration, a later source over an earlier one: the defaults; the file named by
--config, else by BIFRONS_CONFIG, else ./bifrons.toml; environment variables such as
BIFRONS_TOKENS__ACCESS_TTL=10m for tokens.access_ttl; --set KEY=VALUE.

Exit status: 0 done, 1 refused or failed (one sentence on standard error), 2 wrong usage.";

const SERVE_HELP: &str = "\
Examples:
  bifrons serve
  bifrons serve --config /etc/bifrons/bifrons.toml
  BIFRONS_DATABASE__URL=postgres://bifrons:…@localhost/bifrons \\
  BIFRONS_SECRETS__MASTER_FILE=/run/secrets/master bifrons serve

SIGTERM and SIGINT stop it: running requests may finish within http.shutdown_grace.";

const USER_HELP: &str = "\
On a terminal the password is asked for twice and not shown. Otherwise it is one line
of standard input:
  bifrons user create --email ada@example.com --role admin < password.txt

With --django-hash it is a value of Django's auth_user.password, such as
pbkdf2_sha256$600000$…, which the user's first sign-in replaces.

Prints the id of the new user.";

const UNLOCK_HELP: &str = "\
Examples:
  bifrons user unlock ada@example.com
  bifrons user unlock +2348031234567

Failed sign-ins lock an identifier for lockout.duration; this ends it at once.";

const RESET_MFA_HELP: &str = "\
Examples:
  bifrons user reset-mfa ada@example.com
  bifrons user reset-mfa +2348031234567

For somebody who has lost the authenticator and the recovery codes. Make sure who asks:
from then on the password is enough. All sessions of the user end, and they get a letter.";

const KEYS_HELP: &str = "\
Examples:
  (umask 077; bifrons keys generate > master.key)
  BIFRONS_SECRETS__MASTER_FILE=master.key bifrons serve
  (umask 077; bifrons keys generate --kind signing --algorithm EdDSA > signing.pem)

Only the key goes to standard output; how to use it goes to standard error.";

const OUTBOX_HELP: &str = "\
Examples:
  bifrons outbox list --state dead
  bifrons outbox retry 0190b6a4-3c1e-7c3a-9d5e-0c8f1f2a3b4c
  bifrons outbox retry --all-dead";

/// An authentication gateway with two HTTP engines over one service layer.
#[derive(Debug, Parser)]
#[command(name = "bifrons", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until it is told to stop.
    #[command(after_help = SERVE_HELP)]
    Serve(SourceArgs),
    /// Bring the database's schema up to date.
    Migrate(SourceArgs),
    /// Check or show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Manage users.
    #[command(subcommand)]
    User(UserCommand),
    /// Make keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Print the OpenAPI document of a version, as it is served at /api/{v}/openapi.json.
    #[command(name = "openapi")]
    OpenApi {
        /// v1 is the blocking engine's, v2 the async engine's
        #[arg(value_enum)]
        version: ApiVersion,
        #[command(flatten)]
        sources: SourceArgs,
    },
    /// See and retry letters that wait for delivery.
    #[command(subcommand)]
    Outbox(OutboxCommand),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ApiVersion {
    V1,
    V2,
}

#[derive(Debug, Args)]
struct SourceArgs {
    /// Configuration file [default: $BIFRONS_CONFIG, else ./bifrons.toml when it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key, over every other source; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say whether the configuration can be started with, key files included.
    Check(SourceArgs),
    /// Print every key, its value and where it came from, secrets masked.
    Show(SourceArgs),
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Create a verified user of any role.
    #[command(after_help = USER_HELP)]
    Create(CreateArgs),
    /// Lift the lock-out of an address or number, on every device, and of the second factor.
    #[command(after_help = UNLOCK_HELP)]
    Unlock {
        /// E-mail address or phone number
        #[arg(value_name = "EMAIL_OR_PHONE")]
        identifier: String,
        #[command(flatten)]
        sources: SourceArgs,
    },
    /// Remove the second factor of a user who has lost it.
    #[command(after_help = RESET_MFA_HELP)]
    ResetMfa {
        /// E-mail address or phone number
        #[arg(value_name = "EMAIL_OR_PHONE")]
        identifier: String,
        #[command(flatten)]
        sources: SourceArgs,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// E-mail address
    #[arg(long)]
    email: String,
    /// What the user may do
    #[arg(long, value_enum)]
    role: Role,
    /// Phone number, with its country code or of registration.default_region
    #[arg(long)]
    phone: Option<String>,
    /// First name
    #[arg(long, default_value = "", hide_default_value = true)]
    first_name: String,
    /// Last name
    #[arg(long, default_value = "", hide_default_value = true)]
    last_name: String,
    /// What is read is a hash as Django stores it, not a password
    #[arg(long)]
    django_hash: bool,
    #[command(flatten)]
    sources: SourceArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Client,
    Vendor,
    Staff,
    Admin,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Vendor => "vendor",
            Self::Staff => "staff",
            Self::Admin => "admin",
        }
    }
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Print a fresh key: 32 random bytes as base64url, or an Ed25519 private key as PEM.
    #[command(after_help = KEYS_HELP)]
    Generate {
        /// What the key is for
        #[arg(long, value_enum, default_value_t = KeyKind::Master)]
        kind: KeyKind,
        /// How a signing key signs, as tokens.algorithm says [default: HS256]
        #[arg(long, value_enum, ignore_case = true)]
        algorithm: Option<KeyAlgorithm>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KeyKind {
    /// The secret from which all keys derive
    Master,
    /// The key that signs tokens, when it is shared with other services
    Signing,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KeyAlgorithm {
    /// A secret that is shared with whoever verifies
    #[value(name = "HS256")]
    Hs256,
    /// An Ed25519 private key as PEM; the gateway publishes the public key
    #[value(name = "EdDSA")]
    EdDsa,
}

#[derive(Debug, Subcommand)]
enum OutboxCommand {
    /// List letters, the newest first.
    #[command(after_help = OUTBOX_HELP)]
    List {
        /// Only letters in this state
        #[arg(long, value_enum)]
        state: Option<LetterState>,
        /// Print at most this many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
        #[command(flatten)]
        sources: SourceArgs,
    },
    /// Send dead letters again.
    #[command(after_help = OUTBOX_HELP)]
    Retry {
        /// Letters by id, as `outbox list` prints them
        #[arg(value_name = "ID", required_unless_present = "all_dead", conflicts_with = "all_dead")]
        ids: Vec<String>,
        /// Every dead letter
        #[arg(long)]
        all_dead: bool,
        #[command(flatten)]
        sources: SourceArgs,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LetterState {
    Dead,
    Pending,
    Sent,
}

impl LetterState {
    fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Pending => "pending",
            Self::Sent => "sent",
        }
    }
}

/// Runs the command of this process and gives its exit status.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Every TLS connection of the process uses this provider; a second call finds it in place.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if reader_is_gone(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", one_line(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Serve(sources) => {
            // Before anything is read that can be read only once.
            if let Err(error) = allocator::tune() {
                let _ =
                    writeln!(io::stderr(), "warning: the allocator is as it is: more memory, fewer hashes: {error}");
            }
            let settings = load(sources)?;
            serve::serve(&settings).map_err(|error| error.to_string().into())
        }
        Command::Migrate(sources) => migrate(&load(sources)?),
        Command::Config(ConfigCommand::Check(sources)) => check(&load(sources)?),
        Command::Config(ConfigCommand::Show(sources)) => show(&load(sources)?),
        Command::User(UserCommand::Create(arguments)) => create_user(arguments),
        Command::User(UserCommand::Unlock { identifier, sources }) => {
            let was_locked = admin::unlock(&load(sources)?, &identifier)?;
            print(if was_locked { "unlocked\n" } else { "it was not locked\n" })
        }
        Command::User(UserCommand::ResetMfa { identifier, sources }) => {
            let was_on = admin::reset_mfa(&load(sources)?, &identifier)?;
            print(if was_on { "the second factor was removed\n" } else { "there was no second factor\n" })
        }
        Command::Keys(KeysCommand::Generate { kind, algorithm }) => generate_key(kind, algorithm),
        Command::OpenApi { version, sources } => show_document(version, sources),
        Command::Outbox(OutboxCommand::List { state, limit, sources }) => {
            let lines = admin::outbox_list(&load(sources)?, state.map(LetterState::name), limit)?;
            print(&table(&lines))
        }
        Command::Outbox(OutboxCommand::Retry { ids, all_dead, sources }) => {
            let which = if all_dead { Retry::AllDead } else { Retry::Ids(ids) };
            let count = admin::outbox_retry(&load(sources)?, which)?;
            print(&format!("{} will be sent again\n", counted(count, "letter", "letters")))
        }
    }
}

fn load(arguments: SourceArgs) -> Result<Settings, Box<dyn Error + Send + Sync>> {
    Ok(Settings::load(&Sources::of_process(arguments.config, arguments.overrides)?)?)
}

fn migrate(settings: &Settings) -> Outcome {
    let bar = io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
        ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    });
    let mut report = |progress: MigrationProgress<'_>| match &bar {
        Some(bar) => {
            bar.set_length(u64::try_from(progress.total).unwrap_or(u64::MAX));
            bar.set_position(u64::try_from(progress.done).unwrap_or(u64::MAX));
            bar.set_message(progress.name.to_owned());
        }
        None => {
            let _ = writeln!(io::stderr(), "{}/{} {}", progress.done, progress.total, progress.name);
        }
    };
    let outcome = migrations::migrate(settings, &mut report);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    match outcome? {
        0 => print("the schema is up to date\n"),
        count => print(&format!("{} applied\n", counted(count, "migration", "migrations"))),
    }
}

fn check(settings: &Settings) -> Outcome {
    // A check reads key files but creates none.
    let generated = settings.data_dir.join("master.key");
    if !settings.is_embedded() || settings.has_configured_master() || generated.exists() {
        parts::keys(settings)?;
    } else {
        settings::load_configured_signing_key(settings)?;
        settings::load_verification_keys(settings, None)?;
    }
    print("the configuration is valid\n")
}

fn show(settings: &Settings) -> Outcome {
    let lines = settings.describe();
    let width = lines.iter().map(|line| line.key.len() + line.value.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for line in lines {
        let pad = width.saturating_sub(line.key.len() + line.value.chars().count());
        text.push_str(&format!("{} = {}{:pad$}  # {}\n", line.key, line.value, "", line.source));
    }
    print(&text)
}

fn show_document(version: ApiVersion, sources: SourceArgs) -> Outcome {
    let version = match version {
        ApiVersion::V1 => Version::V1,
        ApiVersion::V2 => Version::V2,
    };
    let document = openapi::document(version, load(sources)?.public_url.as_str());
    print(&format!("{}\n", serde_json::to_string_pretty(&document)?))
}

fn create_user(arguments: CreateArgs) -> Outcome {
    let settings = load(arguments.sources)?;
    let user = NewUser {
        email: arguments.email,
        phone: arguments.phone,
        role: arguments.role.name().to_owned(),
        password: read_password(arguments.django_hash)?,
        is_hash: arguments.django_hash,
        first_name: arguments.first_name,
        last_name: arguments.last_name,
    };
    print(&format!("{}\n", admin::create_user(&settings, user)?))
}

/// The password twice without echo from a terminal, else one line of standard input.
fn read_password(is_hash: bool) -> Result<Secret, Box<dyn Error + Send + Sync>> {
    let password = if io::stdin().is_terminal() && !is_hash {
        let first = Secret::new(rpassword::prompt_password("Password: ")?);
        let second = Secret::new(rpassword::prompt_password("Password again: ")?);
        if first.expose() != second.expose() {
            return Err("the two passwords differ".into());
        }
        first
    } else {
        let mut line = String::new();
        io::stdin().lock().take(LONGEST_LINE).read_line(&mut line)?;
        line.truncate(line.trim_end_matches(['\r', '\n']).len());
        Secret::new(line)
    };
    if password.is_empty() {
        return Err("no password was given".into());
    }
    Ok(password)
}

fn generate_key(kind: KeyKind, algorithm: Option<KeyAlgorithm>) -> Outcome {
    let key = match (kind, algorithm) {
        (KeyKind::Master, Some(_)) => return Err("--algorithm is of --kind signing".into()),
        (KeyKind::Signing, Some(KeyAlgorithm::EdDsa)) => settings::fresh_ed25519_key()?,
        _ => settings::fresh_key()?,
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(key.trim_end().as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()?;
    let usage = match (kind, algorithm) {
        (KeyKind::Master, _) => {
            "Give it as secrets.master (BIFRONS_SECRETS__MASTER), or write it into a file of mode 0600 and name that\n\
             as secrets.master_file (BIFRONS_SECRETS__MASTER_FILE). Every instance needs the same one. Keep a copy:\n\
             without it, stored addresses and numbers cannot be read."
        }
        (KeyKind::Signing, Some(KeyAlgorithm::EdDsa)) => {
            "Write it into a file of mode 0600, name that as tokens.signing_key_file\n\
             (BIFRONS_TOKENS__SIGNING_KEY_FILE), and set tokens.algorithm = \"EdDSA\". Services that verify tokens\n\
             read the public key from /.well-known/jwks.json. To keep sessions, see tokens.verification_keys."
        }
        (KeyKind::Signing, _) => {
            "Give it as tokens.signing_key (BIFRONS_TOKENS__SIGNING_KEY), or write it into a file of mode 0600 and name\n\
             that as tokens.signing_key_file (BIFRONS_TOKENS__SIGNING_KEY_FILE). The text itself is the HS256 key:\n\
             give the same text to services that verify tokens, such as SimpleJWT's SIGNING_KEY."
        }
    };
    let _ = writeln!(io::stderr(), "{usage}");
    Ok(())
}

fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

fn table(lines: &[OutboxLine]) -> String {
    if lines.is_empty() {
        return "no letters\n".to_owned();
    }
    let head = ["ID", "KIND", "STATE", "ATTEMPTS", "CREATED", "NEXT ATTEMPT", "LAST ERROR"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(head)
        .chain(lines.iter().map(|line| {
            [
                &line.id,
                &line.kind,
                &line.state,
                &line.attempts,
                &line.created_at,
                &line.next_attempt_at,
                &line.last_error,
            ]
            .map(|cell| if cell.is_empty() { "-".to_owned() } else { one_line(cell) })
        }))
        .collect();
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Text without line breaks and control characters, which could move a terminal's cursor.
fn one_line(text: &str) -> String {
    let visible: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    visible.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether output went to a pipe whose reader has read enough, such as `head`.
fn reader_is_gone(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("bifrons").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_is_understood() {
        for line in [
            "serve",
            "serve --config x.toml --set a=b --set c=d",
            "migrate --set data_dir=x",
            "config check --config x.toml",
            "config show",
            "user create --email ada@example.com --role admin",
            "user create --email a@example.com --role client --phone +2348031234567 --first-name Ada --last-name L --set data_dir=x",
            "user create --email ada@example.com --role client --django-hash",
            "user unlock ada@example.com --set data_dir=x",
            "keys generate",
            "keys generate --kind signing",
            "keys generate --kind signing --algorithm EdDSA",
            "keys generate --kind signing --algorithm hs256",
            "openapi v1",
            "openapi v2 --set public_url=https://id.example.org",
            "outbox list",
            "outbox list --state dead --limit 5",
            "outbox retry one two",
            "outbox retry --all-dead",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "",
            "start",
            "user create --email ada@example.com",
            "user create --email ada@example.com --role root",
            "outbox retry",
            "openapi",
            "openapi v3",
            "outbox retry one --all-dead",
            "outbox list --limit 0",
            "outbox list --state lost",
            "keys generate --kind other",
            "keys generate --kind signing --algorithm RS256",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_master_secret_has_no_algorithm() {
        let error = generate_key(KeyKind::Master, Some(KeyAlgorithm::EdDsa)).unwrap_err().to_string();
        assert!(error.contains("--kind signing"), "{error}");
    }

    #[test]
    fn help_has_examples_for_every_command_that_needs_them() {
        for line in ["--help", "serve --help", "user create --help", "keys generate --help", "outbox retry --help"] {
            let help = parse(line).unwrap_err().to_string();
            assert!(help.contains("\n  ") && help.contains("bifrons "), "{help}");
        }
        assert!(parse("migrate --help").unwrap_err().to_string().contains("--set <KEY=VALUE>"));
    }

    #[test]
    fn errors_and_cells_are_one_line_without_control_characters() {
        assert_eq!(one_line("first\nsecond\u{1b}[2J\r\n third"), "first second [2J third");
    }

    #[test]
    fn letters_are_listed_in_columns() {
        let line = OutboxLine {
            id: "0190".to_owned(),
            kind: "mail".to_owned(),
            state: "dead".to_owned(),
            attempts: "10".to_owned(),
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            next_attempt_at: String::new(),
            last_error: "refused\nby the server".to_owned(),
        };
        assert_eq!(
            table(&[line]),
            "ID    KIND  STATE  ATTEMPTS  CREATED               NEXT ATTEMPT  LAST ERROR\n\
             0190  mail  dead   10        2026-01-01T00:00:00Z  -             refused by the server\n"
        );
        assert_eq!(table(&[]), "no letters\n");
    }
}
