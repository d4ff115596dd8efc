//! What several wrote at the same time, in one commit of SQLite: the disk, and the pages that all of them change, are
//! written once.

use diesel::{QueryResult, SqliteConnection};

use crate::settings::{DatabaseUrl, Settings};

/// How many are written side by side. A file has one writer, and whoever comes meanwhile is in the next commit; a server
/// is written to by each on a connection of their own, and gathers the commits itself.
pub fn side_by_side(settings: &Settings) -> usize {
    match settings.database() {
        DatabaseUrl::Sqlite(_) => 1,
        DatabaseUrl::Postgres(_) => usize::MAX,
    }
}

/// Writes each of `all`, by `write`, in one unit of work. Where one fails, nothing of it is kept, and each is written in a
/// unit of its own: nobody fails for what another wrote.
///
/// # Errors
/// The unit could not begin, or not be committed; then nothing was written.
pub fn in_one_commit<Q, A>(
    conn: &mut SqliteConnection,
    all: &[Q],
    write: impl Fn(&Q, &mut SqliteConnection) -> QueryResult<A>,
) -> QueryResult<Vec<QueryResult<A>>> {
    let mut has_failed = false;
    let unit = |conn: &mut SqliteConnection| {
        let mut answers = Vec::with_capacity(all.len());
        for one in all {
            answers.push(write(one, conn).inspect_err(|_| has_failed = true)?);
        }
        Ok(answers)
    };
    match conn.immediate_transaction(unit) {
        Ok(answers) => Ok(answers.into_iter().map(Ok).collect()),
        Err(error) if !has_failed || all.len() < 2 => Err(error),
        Err(_) => Ok(all.iter().map(|one| conn.immediate_transaction(|conn| write(one, conn))).collect()),
    }
}
