//! Entries of the ephemeral store's table that have not run out.

use diesel::{
    BoolExpressionMethods as _, ExpressionMethods as _, QueryDsl as _, QueryResult, RunQueryDsl as _, SqliteConnection,
};
use time::OffsetDateTime;

use super::{
    prepared::Prepared,
    rows::{EntryRow, entry_of},
    schema::ephemeral_entries as entries,
    types::DbMoment,
};
use crate::services::ports::Entry;

/// The entries of these keys that live at a time.
pub struct Living {
    /// Whose.
    pub keys: Vec<String>,
    /// When.
    pub now: OffsetDateTime,
}

impl Living {
    /// Asks SQLite.
    ///
    /// # Errors
    /// The database's.
    pub fn in_sqlite(&self, conn: &mut SqliteConnection) -> QueryResult<Vec<Option<Entry>>> {
        let statement = entries::table
            .filter(entries::key.eq_any(&self.keys).and(entries::expires_at.gt(DbMoment(self.now))))
            .select((entries::key, entries::value, entries::expires_at));
        Prepared(statement).load(conn).map(|rows| self.found(&rows))
    }

    /// One for each key, in their order, from the rows that were found.
    pub fn found(&self, rows: &[EntryRow]) -> Vec<Option<Entry>> {
        self.keys.iter().map(|key| entry_of(key, rows, self.now)).collect()
    }
}
