//! What the command line does in the database, through the sync engine's ports.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use uuid::Uuid;

use crate::{
    api::views::rfc3339,
    hashing::HashPool,
    parts,
    services::{
        create_user::{self, CreateUser, Credential},
        limits::LocalLimiter,
        model::{Caller, OutboxState},
        passwords::Password,
        ports::{Outbox as _, Ports as _, READS_SIDE_BY_SIDE},
        reset_mfa,
        run::run,
        unlock,
    },
    settings::{Secret, Settings},
    store::{migrations, rotation},
    sync_engine::{BlockingPorts, BreachList, Database, EphemeralStore, GoogleKeys, Hasher, SessionCache, Together},
    system,
};

type Failure = Box<dyn Error + Send + Sync>;

/// What `bifrons user create` takes.
pub struct NewUser {
    /// The address.
    pub email: String,
    /// A number as well.
    pub phone: Option<String>,
    /// Any role's word.
    pub role: String,
    /// From the terminal or standard input.
    pub password: Secret,
    /// Whether that is a hash as Django stores it.
    pub is_hash: bool,
    /// `""` when unknown.
    pub first_name: String,
    /// `""` when unknown.
    pub last_name: String,
}

/// A line of `bifrons outbox list`.
pub struct OutboxLine {
    /// UUIDv7.
    pub id: String,
    /// The letter's template.
    pub kind: String,
    /// Where it stands.
    pub state: String,
    /// How often sending was begun.
    pub attempts: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub next_attempt_at: String,
    /// Without addresses.
    pub last_error: String,
}

/// Which dead letters are to be sent again.
pub enum Retry {
    /// These.
    Ids(Vec<String>),
    /// Every one.
    AllDead,
}

/// Makes an account, verified from the start, and returns its id.
///
/// # Errors
/// One sentence for the operator.
pub fn create_user(settings: &Settings, user: NewUser) -> Result<String, Failure> {
    let ports = ports(settings)?;
    let request = CreateUser {
        email: Some(user.email),
        phone: user.phone,
        role: user.role.parse()?,
        password: match user.is_hash {
            true => Credential::Imported(user.password.expose().trim().to_owned()),
            false => Credential::Password(Password::new(user.password.expose())),
        },
        first_name: user.first_name,
        last_name: user.last_name,
    };
    Ok(run(create_user::create_user(&ports, &operator(), request))?.to_string())
}

/// Lifts the lock-out of an address or number; whether there was one.
///
/// # Errors
/// One sentence for the operator.
pub fn unlock(settings: &Settings, identifier: &str) -> Result<bool, Failure> {
    Ok(run(unlock::unlock(&ports(settings)?, &operator(), identifier))?)
}

/// Removes the second factor of the user of an address or number; whether there was one.
///
/// # Errors
/// One sentence for the operator.
pub fn reset_mfa(settings: &Settings, identifier: &str) -> Result<bool, Failure> {
    Ok(run(reset_mfa::reset_mfa(&ports(settings)?, &operator(), identifier))?)
}

/// Lists letters, newest first.
///
/// # Errors
/// One sentence for the operator.
pub fn outbox_list(settings: &Settings, state: Option<&str>, limit: i64) -> Result<Vec<OutboxLine>, Failure> {
    let state = state.map(str::parse).transpose()?;
    let entries = run(run(ports(settings)?.store())?.outbox_entries(state, limit))?;
    Ok(entries
        .into_iter()
        .map(|entry| OutboxLine {
            id: entry.id.to_string(),
            kind: entry.kind,
            state: entry.state.word().to_owned(),
            attempts: entry.attempts.to_string(),
            created_at: rfc3339(entry.created_at),
            next_attempt_at: match entry.state {
                OutboxState::Pending => rfc3339(entry.available_at),
                _ => "-".to_owned(),
            },
            last_error: entry.last_error,
        })
        .collect())
}

/// Makes dead letters due again and returns how many.
///
/// # Errors
/// One sentence for the operator.
pub fn outbox_retry(settings: &Settings, which: Retry) -> Result<usize, Failure> {
    let ids = match which {
        Retry::AllDead => None,
        Retry::Ids(ids) => Some(ids.iter().map(|id| Uuid::parse_str(id)).collect::<Result<Vec<_>, _>>()?),
    };
    Ok(run(run(ports(settings)?.store())?.revive(ids.as_deref(), system::now()))?)
}

fn ports(settings: &Settings) -> Result<BlockingPorts, Failure> {
    settings.create_data_dir()?;
    let keys = parts::keys(settings)?;
    migrations::prepare(settings, &keys)?;
    let database = Database::new(settings);
    let hashing = HashPool::start(settings, 1)?;
    Ok(BlockingPorts {
        ephemeral: EphemeralStore::new(settings, &database, Arc::new(LocalLimiter::default()))?,
        sessions: SessionCache::new(Arc::default()),
        reads: Together::new(READS_SIDE_BY_SIDE),
        rotations: Together::new(rotation::side_by_side(settings)),
        bundles: Together::in_file(settings, hashing.telling_and_writing()),
        hasher: Hasher::new(parts::hash_params(settings), hashing),
        policy: Arc::new(parts::policy(settings)),
        keys: Arc::new(keys),
        wake: Arc::default(),
        places: None,
        breaches: BreachList::of(settings)?.map(Arc::new),
        google: Arc::new(GoogleKeys::of(settings)),
        database,
    })
}

fn operator() -> Caller {
    Caller {
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        request_id: format!("cli-{}", data_encoding::HEXLOWER.encode(&system::random::<8>())),
        engine: "cli",
        user_agent: String::new(),
        device_token: None,
    }
}
