//! Rows, and their way to and from what services speak of. E-mail, phone and the secrets of
//! second factors are encrypted and decrypted here, and nowhere else.

use std::collections::HashMap;

use diesel::{
    pg::Pg,
    prelude::*,
    query_builder::{BoxedSqlQuery, SqlQuery},
    sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text},
    sqlite::Sqlite,
};

use super::{
    prepared::Prepared,
    schema::{audit_events, outbox, recovery_codes, sessions, totp_factors, users},
    sql,
    types::{DbId, DbMoment, Id, Moment},
};
use crate::services::{
    error::Unavailable,
    identifier::Identifier,
    keys::Keys,
    model::{
        AuditEvent, Confirmation, Listed, LoginEvent, OutboxEntry, OutboxState, Place, ProfileChanges, Session,
        SessionId, Settlement, User, UserId,
    },
    ports::{Entry, FoundSession},
    totp::{TotpFactor, TotpSecret},
};
use time::OffsetDateTime;

/// A statement of PostgreSQL in plain SQL, with as many values as it comes to.
pub type Plain<'a> = BoxedSqlQuery<'a, Pg, SqlQuery>;

/// Gives a row its columns' names, and binds its values to plain SQL in the same order. They need not be all that the
/// table has.
macro_rules! columns {
    ($row:ident: $($name:ident $kind:ty),+ $(,)?) => {
        impl $row {
            /// The names of its columns.
            pub const COLUMNS: &[&str] = &[$(stringify!($name)),+];

            /// Binds its values, in the order of [`Self::COLUMNS`].
            pub fn bind<'a>(&'a self, query: Plain<'a>) -> Plain<'a> {
                query$(.bind::<$kind, _>(&self.$name))+
            }
        }
    };
}

columns!(UserRow:
    id Id, email Nullable<Binary>, email_index Nullable<Binary>, phone Nullable<Binary>, phone_index Nullable<Binary>,
    password_hash Nullable<Text>, role Text, auth_provider Text, is_verified Bool, is_active Bool, is_contested Bool,
    first_name Text, last_name Text, bio Text, avatar Text, country Text, state Text, city Text, address Text, pid Text,
    created_at Moment, updated_at Moment, last_login_at Nullable<Moment>, deleted_at Nullable<Moment>,
    password_changed_at Nullable<Moment>, second_factor_at Nullable<Moment>,
);
columns!(SessionRow:
    id Id, user_id Id, generation BigInt, rotated_at Moment, expires_at Moment, created_at Moment, last_used_at Moment,
    ended_at Nullable<Moment>, end_reason Nullable<Text>, ip Text, user_agent Text, browser Text, os Text, device Text,
    country Text, city Text,
);
columns!(AuditRow:
    id Id, at Moment, action Text, outcome Text, reason Text, user_id Nullable<Id>, session_id Nullable<Id>,
    identifier_index Nullable<Binary>, ip Text, user_agent Text, browser Text, os Text, request_id Text, engine Text,
    device Text, country Text, city Text,
);
columns!(OutboxRow:
    id Id, channel Text, kind Text, payload Binary, state Text, attempts Integer, created_at Moment,
    available_at Moment, expires_at Nullable<Moment>, last_error Text,
);
columns!(SignInRow:
    last_login_at Moment, new_hash Nullable<Text>, id Id, second_factor_at Nullable<Moment>, password_hash Nullable<Text>,
);
columns!(RenewalRow: updated_at Moment, is_contested Bool, id Id);

/// What [`sql::SIGN_IN`] binds.
pub struct SignInRow {
    last_login_at: DbMoment,
    new_hash: Option<String>,
    id: DbId,
    second_factor_at: Option<DbMoment>,
    password_hash: Option<String>,
}

impl SignInRow {
    /// Of a user as they were looked up.
    pub fn new(user: &User, new_hash: Option<&str>, at: OffsetDateTime) -> Self {
        Self {
            last_login_at: DbMoment(at),
            new_hash: new_hash.map(str::to_owned),
            id: DbId(user.id.0),
            second_factor_at: user.second_factor_at.map(DbMoment),
            password_hash: user.password_hash.clone(),
        }
    }

    /// Runs it on SQLite; says how many rows it changed.
    ///
    /// # Errors
    /// The database's.
    pub fn in_sqlite(&self, conn: &mut SqliteConnection) -> QueryResult<usize> {
        let statement = diesel::sql_query(sql::SIGN_IN)
            .bind::<Moment, _>(self.last_login_at)
            .bind::<Nullable<Text>, _>(&self.new_hash)
            .bind::<Id, _>(self.id)
            .bind::<Nullable<Moment>, _>(self.second_factor_at)
            .bind::<Nullable<Text>, _>(&self.password_hash);
        Prepared(statement).changed_in_file(conn)
    }
}

/// What [`sql::RENEW`] binds.
pub struct RenewalRow {
    updated_at: DbMoment,
    is_contested: bool,
    id: DbId,
}

impl RenewalRow {
    /// Of a user, at this time.
    pub const fn new(user: UserId, is_contested: bool, at: OffsetDateTime) -> Self {
        Self { updated_at: DbMoment(at), is_contested, id: DbId(user.0) }
    }

    /// Runs it on SQLite, in the way in which a sign-up is inserted: time must not tell them apart.
    ///
    /// # Errors
    /// The database's.
    pub fn in_sqlite(&self, conn: &mut SqliteConnection) -> QueryResult<usize> {
        let statement = diesel::sql_query(sql::RENEW)
            .bind::<Moment, _>(self.updated_at)
            .bind::<Bool, _>(self.is_contested)
            .bind::<Id, _>(self.id);
        Prepared(statement).changed_in_file(conn)
    }
}

/// Table `users`, whole.
#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = users, treat_none_as_default_value = false, check_for_backend(Pg, Sqlite))]
pub struct UserRow {
    id: DbId,
    email: Option<Vec<u8>>,
    email_index: Option<Vec<u8>>,
    phone: Option<Vec<u8>>,
    phone_index: Option<Vec<u8>>,
    password_hash: Option<String>,
    role: String,
    auth_provider: String,
    is_verified: bool,
    is_active: bool,
    is_contested: bool,
    first_name: String,
    last_name: String,
    bio: String,
    avatar: String,
    country: String,
    state: String,
    city: String,
    address: String,
    pid: String,
    created_at: DbMoment,
    updated_at: DbMoment,
    last_login_at: Option<DbMoment>,
    deleted_at: Option<DbMoment>,
    password_changed_at: Option<DbMoment>,
    second_factor_at: Option<DbMoment>,
}

impl UserRow {
    /// Encrypts; `nonce` draws 24 random bytes.
    pub fn seal(user: &User, keys: &Keys, nonce: impl Fn() -> [u8; 24]) -> Self {
        let id = user.id.0;
        let index = |identifier: Identifier| keys.blind_index(&identifier).to_vec();
        Self {
            id: DbId(id),
            email: user.email.as_deref().map(|clear| keys.seal_field("email", id, clear, nonce())),
            email_index: user.email.clone().map(Identifier::Email).map(index),
            phone: user.phone.as_deref().map(|clear| keys.seal_field("phone", id, clear, nonce())),
            phone_index: user.phone.clone().map(Identifier::Phone).map(index),
            password_hash: user.password_hash.clone(),
            role: user.role.word().to_owned(),
            auth_provider: user.auth_provider.word().to_owned(),
            is_verified: user.is_verified,
            is_active: user.is_active,
            is_contested: user.is_contested,
            first_name: user.first_name.clone(),
            last_name: user.last_name.clone(),
            bio: user.bio.clone(),
            avatar: user.avatar.clone(),
            country: user.country.clone(),
            state: user.state.clone(),
            city: user.city.clone(),
            address: user.address.clone(),
            pid: user.pid.clone(),
            created_at: DbMoment(user.created_at),
            updated_at: DbMoment(user.updated_at),
            last_login_at: user.last_login_at.map(DbMoment),
            deleted_at: user.deleted_at.map(DbMoment),
            password_changed_at: user.password_changed_at.map(DbMoment),
            second_factor_at: user.second_factor_at.map(DbMoment),
        }
    }

    /// Decrypts.
    ///
    /// # Errors
    /// A value of another master secret, a value moved from another row, an unknown word.
    pub fn open(self, keys: &Keys) -> Result<User, Unavailable> {
        let id = self.id.0;
        let field = |column: &str, sealed: Option<Vec<u8>>| {
            sealed.map(|sealed| keys.open_field(column, id, &sealed)).transpose().map_err(Unavailable::database)
        };
        Ok(User {
            id: UserId(id),
            email: field("email", self.email)?,
            phone: field("phone", self.phone)?,
            password_hash: self.password_hash,
            role: self.role.parse().map_err(Unavailable::database)?,
            auth_provider: self.auth_provider.parse().map_err(Unavailable::database)?,
            is_verified: self.is_verified,
            is_active: self.is_active,
            is_contested: self.is_contested,
            first_name: self.first_name,
            last_name: self.last_name,
            bio: self.bio,
            avatar: self.avatar,
            country: self.country,
            state: self.state,
            city: self.city,
            address: self.address,
            pid: self.pid,
            created_at: self.created_at.0,
            updated_at: self.updated_at.0,
            last_login_at: self.last_login_at.map(|at| at.0),
            deleted_at: self.deleted_at.map(|at| at.0),
            password_changed_at: self.password_changed_at.map(|at| at.0),
            second_factor_at: self.second_factor_at.map(|at| at.0),
        })
    }
}

/// What [`Confirmation`] sets.
#[derive(AsChangeset)]
#[diesel(table_name = users, treat_none_as_null = true)]
pub struct ConfirmationRow {
    password_hash: Option<String>,
    role: String,
    auth_provider: String,
    first_name: String,
    last_name: String,
    is_verified: bool,
    is_contested: bool,
    updated_at: DbMoment,
}

impl ConfirmationRow {
    /// At this time.
    pub fn new(with: &Confirmation, at: OffsetDateTime) -> Self {
        Self {
            password_hash: with.password_hash.clone(),
            role: with.role.word().to_owned(),
            auth_provider: with.auth_provider.word().to_owned(),
            first_name: with.first_name.clone(),
            last_name: with.last_name.clone(),
            is_verified: true,
            is_contested: false,
            updated_at: DbMoment(at),
        }
    }
}

/// What [`ProfileChanges`] sets; `None` leaves a column as it is.
#[derive(AsChangeset)]
#[diesel(table_name = users)]
pub struct ProfileRow {
    first_name: Option<String>,
    last_name: Option<String>,
    bio: Option<String>,
    avatar: Option<String>,
    country: Option<String>,
    state: Option<String>,
    city: Option<String>,
    address: Option<String>,
    updated_at: DbMoment,
}

impl ProfileRow {
    /// At this time.
    pub fn new(changes: &ProfileChanges, at: OffsetDateTime) -> Self {
        let ProfileChanges { first_name, last_name, bio, avatar, country, state, city, address } = changes.clone();
        Self { first_name, last_name, bio, avatar, country, state, city, address, updated_at: DbMoment(at) }
    }
}

/// Table `sessions`, whole.
#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = sessions, treat_none_as_default_value = false, check_for_backend(Pg, Sqlite))]
pub struct SessionRow {
    id: DbId,
    user_id: DbId,
    generation: i64,
    rotated_at: DbMoment,
    expires_at: DbMoment,
    created_at: DbMoment,
    last_used_at: DbMoment,
    ended_at: Option<DbMoment>,
    end_reason: Option<String>,
    ip: String,
    user_agent: String,
    browser: String,
    os: String,
    device: String,
    country: String,
    city: String,
}

impl From<&Session> for SessionRow {
    fn from(session: &Session) -> Self {
        Self {
            id: DbId(session.id.0),
            user_id: DbId(session.user_id.0),
            generation: session.generation,
            rotated_at: DbMoment(session.rotated_at),
            expires_at: DbMoment(session.expires_at),
            created_at: DbMoment(session.created_at),
            last_used_at: DbMoment(session.last_used_at),
            ended_at: session.ended_at.map(DbMoment),
            end_reason: session.end_reason.map(|reason| reason.word().to_owned()),
            ip: session.ip.clone(),
            user_agent: session.user_agent.clone(),
            browser: session.browser.clone(),
            os: session.os.clone(),
            device: session.device.clone(),
            country: session.place.country.clone(),
            city: session.place.city.clone(),
        }
    }
}

impl TryFrom<SessionRow> for Session {
    type Error = Unavailable;

    fn try_from(row: SessionRow) -> Result<Self, Unavailable> {
        let end_reason = row.end_reason.as_deref().map(str::parse).transpose();
        Ok(Self {
            id: SessionId(row.id.0),
            user_id: UserId(row.user_id.0),
            generation: row.generation,
            rotated_at: row.rotated_at.0,
            expires_at: row.expires_at.0,
            created_at: row.created_at.0,
            last_used_at: row.last_used_at.0,
            ended_at: row.ended_at.map(|at| at.0),
            end_reason: end_reason.map_err(Unavailable::database)?,
            ip: row.ip,
            user_agent: row.user_agent,
            browser: row.browser,
            os: row.os,
            device: row.device,
            place: Place { country: row.country, city: row.city },
        })
    }
}

/// Both halves of a session's look-up.
///
/// # Errors
/// As [`UserRow::open`].
pub fn session_and_user((session, user): (SessionRow, UserRow), keys: &Keys) -> Result<(Session, User), Unavailable> {
    Ok((session.try_into()?, user.open(keys)?))
}

/// Sessions of living users, with these, in the order of `ids`; a row that cannot be read is an error to whoever asked
/// for it alone.
pub fn sessions_and_users(ids: &[SessionId], rows: Vec<(SessionRow, UserRow)>, keys: &Keys) -> Vec<FoundSession> {
    let read = |row: (SessionRow, UserRow)| (SessionId(row.0.id.0), session_and_user(row, keys));
    let living = rows.into_iter().filter(|(_, user)| user.deleted_at.is_none());
    let found: HashMap<_, _> = living.map(read).collect();
    let told = |id: &SessionId| match found.get(id) {
        None => Ok(None),
        Some(Ok(pair)) => Ok(Some(pair.clone())),
        Some(Err(error)) => Err(error.again()),
    };
    ids.iter().map(told).collect()
}

/// Table `outbox`, without what only the database needs.
#[derive(Queryable, QueryableByName, Selectable, Insertable)]
#[diesel(table_name = outbox, treat_none_as_default_value = false, check_for_backend(Pg, Sqlite))]
pub struct OutboxRow {
    id: DbId,
    channel: String,
    kind: String,
    payload: Vec<u8>,
    state: String,
    attempts: i32,
    created_at: DbMoment,
    available_at: DbMoment,
    expires_at: Option<DbMoment>,
    last_error: String,
}

impl From<&OutboxEntry> for OutboxRow {
    fn from(entry: &OutboxEntry) -> Self {
        Self {
            id: DbId(entry.id),
            channel: entry.channel.word().to_owned(),
            kind: entry.kind.clone(),
            payload: entry.payload.clone(),
            state: entry.state.word().to_owned(),
            attempts: entry.attempts,
            created_at: DbMoment(entry.created_at),
            available_at: DbMoment(entry.available_at),
            expires_at: entry.expires_at.map(DbMoment),
            last_error: entry.last_error.clone(),
        }
    }
}

impl TryFrom<OutboxRow> for OutboxEntry {
    type Error = Unavailable;

    fn try_from(row: OutboxRow) -> Result<Self, Unavailable> {
        Ok(Self {
            id: row.id.0,
            channel: row.channel.parse().map_err(Unavailable::database)?,
            kind: row.kind,
            payload: row.payload,
            state: row.state.parse().map_err(Unavailable::database)?,
            attempts: row.attempts,
            created_at: row.created_at.0,
            available_at: row.available_at.0,
            expires_at: row.expires_at.map(|at| at.0),
            last_error: row.last_error,
        })
    }
}

/// Rows to entries.
///
/// # Errors
/// An unknown word.
pub fn entries(rows: Vec<OutboxRow>) -> Result<Vec<OutboxEntry>, Unavailable> {
    rows.into_iter().map(OutboxEntry::try_from).collect()
}

/// What [`Settlement`] sets.
#[derive(AsChangeset)]
#[diesel(table_name = outbox)]
pub struct SettlementRow {
    state: &'static str,
    payload: Option<Vec<u8>>,
    available_at: Option<DbMoment>,
    lease_owner: Option<Option<DbId>>,
    settled_at: Option<DbMoment>,
    last_error: String,
}

impl SettlementRow {
    /// At this time.
    pub fn new(settlement: &Settlement, now: OffsetDateTime) -> Self {
        let settled = Some(DbMoment(now));
        let lease_owner = Some(None);
        match settlement {
            // What was sent need not be kept: it holds an address and perhaps a code.
            Settlement::Sent => Self {
                state: OutboxState::Sent.word(),
                payload: Some(Vec::new()),
                available_at: None,
                lease_owner,
                settled_at: settled,
                last_error: String::new(),
            },
            Settlement::Retry { at, error } => Self {
                state: OutboxState::Pending.word(),
                payload: None,
                available_at: Some(DbMoment(*at)),
                lease_owner,
                settled_at: None,
                last_error: error.clone(),
            },
            Settlement::Dead { error } => Self {
                state: OutboxState::Dead.word(),
                payload: None,
                available_at: None,
                lease_owner,
                settled_at: settled,
                last_error: error.clone(),
            },
        }
    }
}

/// Key, value and end of a row of table `ephemeral_entries`.
pub type EntryRow = (String, Vec<u8>, DbMoment);

/// The entry of this key, from the rows that were found.
pub fn entry_of(key: &str, rows: &[EntryRow], now: OffsetDateTime) -> Option<Entry> {
    let (_, value, until) = rows.iter().find(|row| row.0 == key)?;
    Some(Entry { value: value.clone(), expires_in: (until.0 - now).unsigned_abs() })
}

/// Table `audit_events`.
#[derive(Insertable)]
#[diesel(table_name = audit_events, treat_none_as_default_value = false)]
pub struct AuditRow {
    id: DbId,
    at: DbMoment,
    action: &'static str,
    outcome: &'static str,
    reason: &'static str,
    user_id: Option<DbId>,
    session_id: Option<DbId>,
    identifier_index: Option<Vec<u8>>,
    ip: String,
    user_agent: String,
    browser: String,
    os: String,
    request_id: String,
    engine: &'static str,
    device: String,
    country: String,
    city: String,
}

impl From<&AuditEvent> for AuditRow {
    fn from(event: &AuditEvent) -> Self {
        let client = event.caller.client();
        Self {
            id: DbId(event.id),
            at: DbMoment(event.at),
            action: event.action,
            outcome: event.outcome.word(),
            reason: event.reason,
            user_id: event.user_id.map(|id| DbId(id.0)),
            session_id: event.session_id.map(|id| DbId(id.0)),
            identifier_index: event.identifier_index.clone(),
            ip: event.caller.ip.to_string(),
            user_agent: event.caller.user_agent.clone(),
            browser: client.browser,
            os: client.os,
            request_id: event.caller.request_id.clone(),
            engine: event.caller.engine,
            device: client.device,
            country: event.place.country.clone(),
            city: event.place.city.clone(),
        }
    }
}

/// The part of table `audit_events` that a user is shown.
#[derive(Queryable, Selectable)]
#[diesel(table_name = audit_events, check_for_backend(Pg, Sqlite))]
pub struct LoginEventRow {
    id: DbId,
    at: DbMoment,
    action: String,
    outcome: String,
    reason: String,
    session_id: Option<DbId>,
    ip: String,
    browser: String,
    os: String,
    device: String,
    country: String,
    city: String,
}

impl TryFrom<LoginEventRow> for LoginEvent {
    type Error = Unavailable;

    fn try_from(row: LoginEventRow) -> Result<Self, Unavailable> {
        Ok(Self {
            id: row.id.0,
            at: row.at.0,
            action: row.action,
            outcome: row.outcome.parse().map_err(Unavailable::database)?,
            reason: row.reason,
            session_id: row.session_id.map(|id| SessionId(id.0)),
            ip: row.ip,
            browser: row.browser,
            os: row.os,
            device: row.device,
            place: Place { country: row.country, city: row.city },
        })
    }
}

/// Rows and their count to a list.
///
/// # Errors
/// An unknown word.
pub fn listed<R, T>((count, rows): (i64, Vec<R>)) -> Result<Listed<T>, Unavailable>
where
    T: TryFrom<R, Error = Unavailable>,
{
    Ok(Listed { count, items: rows.into_iter().map(T::try_from).collect::<Result<_, _>>()? })
}

/// What a new password sets.
#[derive(AsChangeset)]
#[diesel(table_name = users)]
pub struct NewPasswordRow {
    password_hash: String,
    password_changed_at: DbMoment,
    updated_at: DbMoment,
}

impl NewPasswordRow {
    /// At this time.
    pub fn new(hash: &str, at: OffsetDateTime) -> Self {
        Self { password_hash: hash.to_owned(), password_changed_at: DbMoment(at), updated_at: DbMoment(at) }
    }
}

/// Table `totp_factors`, whole.
#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = totp_factors, treat_none_as_default_value = false, check_for_backend(Pg, Sqlite))]
pub struct TotpRow {
    user_id: DbId,
    secret: Vec<u8>,
    last_step: i64,
    created_at: DbMoment,
}

const TOTP_SECRET: &str = "totp_secret";

impl TotpRow {
    /// Encrypts, with a fresh nonce.
    pub fn seal(user: UserId, factor: &TotpFactor, at: OffsetDateTime, keys: &Keys, nonce: [u8; 24]) -> Self {
        Self {
            user_id: DbId(user.0),
            secret: keys.seal_field(TOTP_SECRET, user.0, &factor.secret.to_base32(), nonce),
            last_step: factor.last_step,
            created_at: DbMoment(at),
        }
    }

    /// Decrypts.
    ///
    /// # Errors
    /// A value of another master secret, or moved from another row.
    pub fn open(self, keys: &Keys) -> Result<TotpFactor, Unavailable> {
        let clear = keys.open_field(TOTP_SECRET, self.user_id.0, &self.secret).map_err(Unavailable::database)?;
        let secret = TotpSecret::from_base32(&clear).ok_or_else(|| Unavailable::database("no secret of TOTP"))?;
        Ok(TotpFactor { secret, last_step: self.last_step })
    }
}

/// Table `recovery_codes`, as a code goes in.
#[derive(Insertable)]
#[diesel(table_name = recovery_codes, treat_none_as_default_value = false)]
pub struct RecoveryCodeRow {
    user_id: DbId,
    digest: Vec<u8>,
}

impl RecoveryCodeRow {
    /// Of an unused code.
    pub fn new(user: UserId, digest: &[u8]) -> Self {
        Self { user_id: DbId(user.0), digest: digest.to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use diesel::query_builder::QueryId;

    use super::*;

    // Of a statement that nobody makes.
    fn is_kept_by_type<Q: QueryId>(_: impl Fn() -> Q) -> bool {
        Q::HAS_STATIC_QUERY_ID
    }

    fn any<'a, T>() -> &'a T {
        unreachable!("only its type is asked for")
    }

    // An empty column must not make another text of an insert. It would be made anew each time; and the sign-up's in
    // `bundle.rs`, which is known by `OfOneText`, would be taken for the one of the first row.
    #[test]
    fn inserts_are_kept_by_their_type() {
        assert!(is_kept_by_type(|| Prepared(diesel::insert_into(users::table).values(any::<UserRow>()))));
        assert!(is_kept_by_type(|| Prepared(diesel::insert_into(sessions::table).values(any::<SessionRow>()))));
        assert!(is_kept_by_type(|| Prepared(diesel::insert_into(audit_events::table).values(any::<AuditRow>()))));
        assert!(is_kept_by_type(|| Prepared(diesel::insert_into(outbox::table).values(any::<OutboxRow>()))));
        assert!(is_kept_by_type(|| Prepared(diesel::insert_into(totp_factors::table).values(any::<TotpRow>()))));
        let code = || Prepared(diesel::insert_into(recovery_codes::table).values(any::<RecoveryCodeRow>()));
        assert!(is_kept_by_type(code));
        let change = || Prepared(diesel::update(users::table).set(users::bio.eq("")));
        assert!(!is_kept_by_type(change), "diesel does not know how many texts it has");
    }
}
