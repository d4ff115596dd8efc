//! Rows that are written together in one trip: one statement of PostgreSQL, within one unit of work of SQLite.

use std::{borrow::Cow, fmt::Write as _, sync::OnceLock};

use diesel::{QueryResult, SqliteConnection};
use time::OffsetDateTime;

use super::{
    claim::ClaimedAt,
    prepared::{OfOneText, Prepared},
    rows::{AuditRow, OutboxRow, Plain, RenewalRow, SessionRow, SignInRow, UserRow},
    schema::{audit_events, outbox, sessions, users},
    sql,
};
use crate::services::{
    keys::Keys,
    model::{AuditEvent, OutboxEntry, UserId},
    ports::{Bundle, Claiming, First},
};

/// The rows of a [`Bundle`].
pub struct Rows {
    /// Whose row it changes, if anybody's that there was before.
    pub changed_user: Option<UserId>,
    /// How much there may be to send.
    pub letters: usize,
    first: FirstRow,
    session: Option<SessionRow>,
    with_right: Others,
    claimed: Option<Box<Claimed>>,
}

// What is written beside the others.
struct Others {
    event: AuditRow,
    entries: Vec<OutboxRow>,
}

// The right on which it depends what is written.
struct Claimed {
    right: ClaimedAt,
    without: Others,
}

impl Others {
    fn of(event: &AuditEvent, entries: &[OutboxEntry]) -> Self {
        Self { event: event.into(), entries: entries.iter().map(OutboxRow::from).collect() }
    }
}

// The statement by which somebody signs up.
enum SignUp {}

enum FirstRow {
    SignIn(SignInRow),
    SignUp(Box<UserRow>),
    Renewal(RenewalRow),
    Nothing,
}

impl Rows {
    /// Encrypts; `nonce` draws 24 random bytes.
    pub fn of(bundle: &Bundle<'_>, keys: &Keys, nonce: fn() -> [u8; 24]) -> Self {
        let first = match bundle.first {
            First::SignIn { user, new_hash, at } => FirstRow::SignIn(SignInRow::new(user, new_hash, at)),
            First::SignUp(user) => FirstRow::SignUp(Box::new(UserRow::seal(user, keys, nonce))),
            First::Renewal { user, is_contested, at } => FirstRow::Renewal(RenewalRow::new(user, is_contested, at)),
            First::Nothing => FirstRow::Nothing,
        };
        Self {
            changed_user: bundle.changed_user(),
            letters: bundle.letters(),
            first,
            session: bundle.session.map(SessionRow::from),
            with_right: Others::of(bundle.event, bundle.entries),
            claimed: None,
        }
    }

    /// As [`Self::of`], for a file that has the entries of the ephemeral store as well.
    pub fn claiming(claiming: &Claiming<'_>, now: OffsetDateTime, keys: &Keys, nonce: fn() -> [u8; 24]) -> Self {
        let right = ClaimedAt { claim: claiming.claim.clone(), now };
        let without = Others::of(claiming.withheld.0, claiming.withheld.1);
        let granted = Self::of(&claiming.granted, keys, nonce);
        // Whatever is written: whether the pump has to do must not tell whether there is an account.
        Self { letters: 1, claimed: Some(Box::new(Claimed { right, without })), ..granted }
    }

    /// Writes them to SQLite, within a unit of work; `false` when the condition does not hold, and nothing was written.
    ///
    /// # Errors
    /// The database's; then some may be written, and the unit is to be undone.
    pub fn in_sqlite(&self, conn: &mut SqliteConnection) -> QueryResult<bool> {
        let holds = match &self.first {
            FirstRow::SignUp(row) => {
                let insert = diesel::insert_into(users::table).values(row.as_ref()).on_conflict_do_nothing();
                Prepared(OfOneText::<SignUp, _>::new(insert)).changed_in_file(conn)? == 1
            }
            FirstRow::SignIn(row) => row.in_sqlite(conn)? == 1,
            FirstRow::Renewal(row) => row.in_sqlite(conn).map(|_changed| true)?,
            FirstRow::Nothing => true,
        };
        if !holds {
            return Ok(false);
        }
        if let Some(row) = &self.session {
            Prepared(diesel::insert_into(sessions::table).values(row)).run(conn)?;
        }
        let Others { event, entries } = match &self.claimed {
            Some(claimed) if !claimed.right.in_sqlite(conn)? => &claimed.without,
            _ => &self.with_right,
        };
        Prepared(diesel::insert_into(audit_events::table).values(event)).run(conn)?;
        for row in entries {
            Prepared(diesel::insert_into(outbox::table).values(row)).run(conn)?;
        }
        Ok(true)
    }

    /// The statement that writes them to PostgreSQL. Its `count` is zero when the condition does not hold, and nothing
    /// is written.
    pub fn for_postgres(&self) -> Prepared<Plain<'_>> {
        let query = self.bind_first(diesel::sql_query(self.text()).into_boxed());
        let query = self.session.iter().fold(query, |query, row| row.bind(query));
        let query = self.with_right.event.bind(query);
        Prepared(self.with_right.entries.iter().fold(query, |query, row| row.bind(query)))
    }

    // The text of [`Self::for_postgres`], made once for each form that there is. Most bundles have no more entries.
    fn text(&self) -> Cow<'static, str> {
        static TEXTS: [[[OnceLock<String>; 3]; 2]; 4] = [const { [const { [const { OnceLock::new() }; 3] }; 2] }; 4];
        let first = match &self.first {
            FirstRow::SignIn(_) => 0,
            FirstRow::SignUp(_) => 1,
            FirstRow::Renewal(_) => 2,
            FirstRow::Nothing => 3,
        };
        let of_form = TEXTS.get(first).and_then(|texts| texts.get(usize::from(self.session.is_some())));
        match of_form.and_then(|texts| texts.get(self.with_right.entries.len())) {
            Some(text) => Cow::Borrowed(text.get_or_init(|| self.made_text())),
            None => Cow::Owned(self.made_text()),
        }
    }

    // What stands in `WITH` is done in any case, and sees nothing of what the others do but what they return.
    fn made_text(&self) -> String {
        let (first, mut bound) = match &self.first {
            FirstRow::SignIn(_) => (format!("found AS ({} RETURNING id)", sql::SIGN_IN), SignInRow::COLUMNS.len()),
            FirstRow::SignUp(_) => {
                let (names, values) = (UserRow::COLUMNS.join(", "), numbers(0, UserRow::COLUMNS.len()));
                let insert = format!("INSERT INTO users ({names}) VALUES ({values}) ON CONFLICT DO NOTHING");
                (format!("found AS ({insert} RETURNING id)"), UserRow::COLUMNS.len())
            }
            FirstRow::Renewal(_) => {
                (format!("renewed AS ({}), found AS (SELECT 1)", sql::RENEW), RenewalRow::COLUMNS.len())
            }
            FirstRow::Nothing => ("found AS (SELECT 1)".to_owned(), 0),
        };
        let session = self.session.iter().map(|_| ("sessions", SessionRow::COLUMNS));
        let entries = self.with_right.entries.iter().map(|_| ("outbox", OutboxRow::COLUMNS));
        let others = session.chain([("audit_events", AuditRow::COLUMNS)]).chain(entries);
        let mut text = format!("WITH {first}");
        for (n, (table, columns)) in others.enumerate() {
            let (names, values) = (columns.join(", "), numbers(bound, columns.len()));
            let _ = write!(text, ", row{n} AS (INSERT INTO {table} ({names}) SELECT {values} FROM found)");
            bound += columns.len();
        }
        text + " SELECT count(*) AS count FROM found"
    }

    fn bind_first<'a>(&'a self, query: Plain<'a>) -> Plain<'a> {
        match &self.first {
            FirstRow::SignIn(row) => row.bind(query),
            FirstRow::SignUp(row) => row.bind(query),
            FirstRow::Renewal(row) => row.bind(query),
            FirstRow::Nothing => query,
        }
    }
}

// `$6, $7, …`
fn numbers(before: usize, count: usize) -> String {
    let numbers: Vec<String> = (before + 1..=before + count).map(|n| format!("${n}")).collect();
    numbers.join(", ")
}
