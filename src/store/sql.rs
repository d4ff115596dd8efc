//! Statements that diesel's query builder cannot spell. Parameters first appear in their order,
//! so that `$1` means the same to PostgreSQL and SQLite.

// One more, or the first where the counter has run out by `$4`.
macro_rules! count_on {
    () => {
        "SET count = CASE WHEN ephemeral_entries.expires_at <= $4 THEN 1 ELSE ephemeral_entries.count + 1 END,
             expires_at = CASE WHEN ephemeral_entries.expires_at <= $4
                          THEN excluded.expires_at ELSE ephemeral_entries.expires_at END"
    };
}

/// Binds: key, value, expires_at, now. Changes one row when the entry was absent or had run out.
pub const PUT_IF_ABSENT: &str = "
    INSERT INTO ephemeral_entries (key, value, count, expires_at) VALUES ($1, $2, 0, $3)
    ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, count = 0, expires_at = excluded.expires_at
    WHERE ephemeral_entries.expires_at <= $4";

/// Binds: key, value, expires_at. Replaces what is there.
pub const PUT: &str = "
    INSERT INTO ephemeral_entries (key, value, count, expires_at) VALUES ($1, $2, 0, $3)
    ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, count = 0, expires_at = excluded.expires_at";

/// PostgreSQL. Binds: those of [`PUT_IF_ABSENT`]; the counter of those that had the right, that of those that had not, no
/// value, until when they count, and the most; then of each entry: key, value, expires_at, the last but one with the
/// right and the last one without it. Answers how often it was granted, which is once or not at all.
pub fn claim(entries: usize) -> String {
    let goes_with = |nth: usize| match entries - nth {
        1 => "false",
        2 => "true",
        _ => "NULL",
    };
    let entry = |nth: usize| {
        let first = 10 + 3 * nth;
        format!("({}::boolean, ${first}, ${}, ${})", goes_with(nth), first + 1, first + 2)
    };
    let entries: Vec<String> = (0..entries).map(entry).collect();
    format!(
        "WITH taken AS ({PUT_IF_ABSENT} RETURNING 1),
         counted AS (
             INSERT INTO ephemeral_entries (key, value, count, expires_at)
             SELECT CASE WHEN EXISTS (SELECT FROM taken) THEN $5 ELSE $6 END, $7, 1, $8
             ON CONFLICT (key) DO UPDATE {}
             RETURNING count
         ),
         granted AS (SELECT EXISTS (SELECT FROM taken) AND count <= $9 AS is_granted FROM counted),
         put AS (
             INSERT INTO ephemeral_entries (key, value, count, expires_at)
             SELECT entry.key, entry.value, 0, entry.expires_at
             FROM granted, (VALUES {}) AS entry (goes_with, key, value, expires_at)
             WHERE goes_with IS NULL OR goes_with = is_granted
             ON CONFLICT (key) DO UPDATE
             SET value = excluded.value, count = 0, expires_at = excluded.expires_at
         )
         SELECT count(*) AS count FROM granted WHERE is_granted",
        count_on!(),
        entries.join(", ")
    )
}

macro_rules! count {
    () => {
        "INSERT INTO ephemeral_entries (key, value, count, expires_at) VALUES ($1, $2, 1, $3) ON CONFLICT (key) DO UPDATE "
    };
}

/// Binds: key, empty value, expires_at, now.
pub const COUNT: &str = concat!(count!(), count_on!());

/// The same; returns `count`.
pub const INCREMENT: &str = concat!(count!(), count_on!(), " RETURNING count");

/// Binds: owner, end of lease, now, most. Returns outbox rows. SQLite has one writer at a time.
pub const CLAIM_SQLITE: &str = "
    UPDATE outbox SET lease_owner = $1, available_at = $2, attempts = attempts + 1
    WHERE id IN (SELECT id FROM outbox WHERE state = 'pending' AND available_at <= $3
                 ORDER BY available_at LIMIT $4)
    RETURNING id, channel, kind, payload, state, attempts, created_at, available_at, expires_at, last_error";

/// The same for PostgreSQL: claimers pass over rows that another is claiming. The array is made
/// once, where `IN` could be planned as a join that asks, and claims, again.
pub const CLAIM_POSTGRES: &str = "
    UPDATE outbox SET lease_owner = $1, available_at = $2, attempts = attempts + 1
    WHERE id = ANY (ARRAY(SELECT id FROM outbox WHERE state = 'pending' AND available_at <= $3
                          ORDER BY available_at LIMIT $4 FOR UPDATE SKIP LOCKED))
    RETURNING id, channel, kind, payload, state, attempts, created_at, available_at, expires_at, last_error";

/// PostgreSQL. Binds: now. Deletes what has run out, but for what somebody is changing: whoever changes several entries
/// does so in an order of their own, and must not wait for this one while it waits for them.
pub const PURGE_ENTRIES: &str = "
    DELETE FROM ephemeral_entries
    WHERE key = ANY (ARRAY(SELECT key FROM ephemeral_entries WHERE expires_at < $1 FOR UPDATE SKIP LOCKED))";

/// Binds: scheme, work. Keeps the greatest.
pub const NOTE_IMPORTED_HASH: &str = "
    INSERT INTO imported_hashes (scheme, work) VALUES ($1, $2)
    ON CONFLICT (scheme) DO UPDATE SET work = excluded.work WHERE imported_hashes.work < excluded.work";

/// Once every imported hash is replaced, sign-ins need not make up for them any more. The condition is
/// that of the index `users_with_imported_hash`.
pub const FORGET_IMPORTED_HASHES: &str = "
    DELETE FROM imported_hashes WHERE NOT EXISTS (
        SELECT 1 FROM users WHERE password_hash IS NOT NULL AND password_hash NOT LIKE '$argon2id$%'
        AND deleted_at IS NULL)";

/// Binds: now, the password's hash made anew or none, user, their second factor's mark and their hash when they were
/// looked up. Changes one row when both are the same and the user is active.
pub const SIGN_IN: &str = "
    UPDATE users SET last_login_at = $1, password_hash = COALESCE($2, password_hash)
    WHERE id = $3 AND is_active AND deleted_at IS NULL
        AND second_factor_at IS NOT DISTINCT FROM $4 AND password_hash IS NOT DISTINCT FROM $5";

/// Binds: now, whether it was with another password, user. Notes a registration again of whoever is not verified.
pub const RENEW: &str = "
    UPDATE users SET updated_at = $1, is_contested = is_contested OR $2
    WHERE id = $3 AND deleted_at IS NULL AND NOT is_verified";

/// Binds: now, end by disuse, greatest life (µs) or none, session, user, generation, used after, opened after. Returns
/// the one row that it changes when the session is in that generation and lives, and its user is active.
pub const ROTATE_SQLITE: &str = "
    UPDATE sessions SET generation = generation + 1, rotated_at = $1, last_used_at = $1,
        expires_at = MIN($2, COALESCE(created_at + $3, $2))
    WHERE id = $4 AND user_id = $5 AND generation = $6
        AND ended_at IS NULL AND expires_at > $1 AND last_used_at > $7 AND created_at > $8
        AND EXISTS (SELECT 1 FROM users WHERE users.id = $5 AND users.is_active AND users.deleted_at IS NULL)
    RETURNING id, expires_at";

/// The same for PostgreSQL and for many, whose ids, users and generations are arrays. The conditions are in a `CASE`, which
/// hides them from the planner: it would take them for so selective that it reads all sessions for each of the arrays'
/// rows, as long as the table is small or was not analysed.
pub const ROTATE_POSTGRES: &str = "
    UPDATE sessions SET generation = sessions.generation + 1, rotated_at = $1, last_used_at = $1,
        expires_at = LEAST($2, created_at + $3 * INTERVAL '1 microsecond')
    FROM unnest($4::uuid[], $5::uuid[], $6::bigint[]) AS next (id, user_id, generation)
    WHERE sessions.id = next.id
        AND CASE WHEN sessions.user_id = next.user_id AND sessions.generation = next.generation
                AND ended_at IS NULL AND expires_at > $1 AND last_used_at > $7 AND created_at > $8
            THEN EXISTS (SELECT 1 FROM users
                         WHERE users.id = next.user_id AND users.is_active AND users.deleted_at IS NULL)
            ELSE FALSE END
    RETURNING sessions.id, sessions.expires_at";

/// Row of [`ROTATE_SQLITE`].
#[derive(diesel::QueryableByName)]
pub struct RotatedRow {
    /// Which session.
    #[diesel(sql_type = super::types::Id)]
    pub id: super::types::DbId,
    /// When it runs out.
    #[diesel(sql_type = super::types::Moment)]
    pub expires_at: super::types::DbMoment,
}

/// Row of [`INCREMENT`].
#[derive(diesel::QueryableByName)]
pub struct Count {
    /// The new count.
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub count: i64,
}

/// The one row of [`INCREMENT`].
///
/// # Errors
/// There is none, which cannot be.
pub fn counted(rows: Vec<Count>) -> diesel::QueryResult<i64> {
    rows.into_iter().next().map(|row| row.count).ok_or(diesel::result::Error::NotFound)
}

/// What every PostgreSQL connection is told: no statement, lock or forgotten transaction may hold
/// others up for longer. And a table is read whole only where no index will do: while it is small, or was not
/// analysed, the planner would rather read all of it, and a statement that is kept prepared keeps that plan while the
/// table grows.
pub fn postgres_setup(timeout: std::time::Duration) -> String {
    let millis = timeout.as_millis();
    format!(
        "SET statement_timeout = {millis}; SET lock_timeout = {millis}; \
         SET idle_in_transaction_session_timeout = {}; SET application_name = 'bifrons'; \
         SET enable_seqscan = off",
        millis * 2
    )
}

/// Whether an error leaves the connection as good as it was. After any other it is closed rather
/// than pooled, which is how a pool heals when its server was restarted.
pub fn spares_connection(error: &diesel::result::Error) -> bool {
    use diesel::result::{DatabaseErrorKind as Kind, Error};
    match error {
        // A row that is not what it ought to be says nothing of the connection it came on.
        Error::NotFound | Error::DeserializationError(_) => true,
        Error::DatabaseError(kind, _) => matches!(
            kind,
            Kind::UniqueViolation
                | Kind::ForeignKeyViolation
                | Kind::NotNullViolation
                | Kind::CheckViolation
                | Kind::SerializationFailure
        ),
        _ => false,
    }
}
