//! What several wrote at the same time, in one commit of SQLite: the disk, and the pages that all of them change, are
//! written once.

use diesel::{QueryResult, SqliteConnection};

use super::sql;
use crate::settings::{DatabaseUrl, Settings};

/// Whether several are to be written in one commit. A file has one writer, and whoever comes meanwhile waits for it in any
/// case; a server is written to by each on a connection of their own, and gathers the commits itself.
pub fn is_worthwhile(settings: &Settings) -> bool {
    matches!(settings.database(), DatabaseUrl::Sqlite(_))
}

/// Writes each of `all`, by `write`, in one unit of work. Where one breaks a rule of the schema, nothing of that unit is
/// kept, and each is written in a unit of its own: nobody fails for what another wrote.
///
/// # Errors
/// The unit could not begin, go on or be committed; then nothing is known to be written.
pub fn in_one_commit<Q, A>(
    conn: &mut SqliteConnection,
    all: &[Q],
    write: impl Fn(&Q, &mut SqliteConnection) -> QueryResult<A>,
) -> QueryResult<Vec<QueryResult<A>>> {
    let mut has_failed = false;
    let by_itself = |one, conn: &mut SqliteConnection| conn.immediate_transaction(|conn| write(one, conn));
    let unit = |conn: &mut SqliteConnection| {
        let mut answers = Vec::with_capacity(all.len());
        for one in all {
            answers.push(write(one, conn).inspect_err(|_| has_failed = true)?);
        }
        Ok(answers)
    };
    match conn.immediate_transaction(unit) {
        Ok(answers) => Ok(answers.into_iter().map(Ok).collect()),
        // The disk's or the file's trouble is everybody's: each by itself would only find it out anew.
        Err(error) if !has_failed || !sql::spares_connection(&error) => Err(error),
        Err(error) if all.len() < 2 => Ok(vec![Err(error)]),
        Err(_) => Ok(all.iter().map(|one| by_itself(one, conn)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
    };

    use diesel::{
        Connection as _, RunQueryDsl as _,
        connection::{InstrumentationEvent, SimpleConnection as _},
        sql_types::BigInt,
    };

    use super::*;

    #[derive(diesel::QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }

    /// A file with a table of numbers that are there once.
    fn numbers() -> (tempfile::TempDir, SqliteConnection) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("numbers.db");
        let mut conn = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        conn.batch_execute("PRAGMA journal_mode = WAL; CREATE TABLE numbers (n INTEGER PRIMARY KEY)").unwrap();
        (directory, conn)
    }

    fn insert(n: &i32, conn: &mut SqliteConnection) -> QueryResult<i32> {
        let query = diesel::sql_query("INSERT INTO numbers VALUES ($1), ($1 + 1000)");
        query.bind::<diesel::sql_types::Integer, _>(n).execute(conn).map(|_| *n)
    }

    fn count(conn: &mut SqliteConnection) -> i64 {
        diesel::sql_query("SELECT count(*) AS count FROM numbers").get_result::<Count>(conn).unwrap().count
    }

    fn told(answers: QueryResult<Vec<QueryResult<i32>>>) -> Vec<Option<i32>> {
        answers.unwrap().into_iter().map(Result::ok).collect()
    }

    #[test]
    fn all_are_written_in_one_commit() {
        let (_directory, mut conn) = numbers();
        let commits = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&commits);
        conn.set_instrumentation(move |event: InstrumentationEvent<'_>| {
            if matches!(event, InstrumentationEvent::CommitTransaction { .. }) {
                counter.fetch_add(1, Relaxed);
            }
        });
        assert_eq!(told(in_one_commit(&mut conn, &[1, 2, 3], insert)), [Some(1), Some(2), Some(3)]);
        assert_eq!((count(&mut conn), commits.load(Relaxed)), (6, 1));
    }

    #[test]
    fn nobody_fails_for_what_another_wrote() {
        let (_directory, mut conn) = numbers();
        // Of the second 7 even its first row is there already; of 1000 its first one comes from 0.
        let answers = told(in_one_commit(&mut conn, &[7, 8, 7, 0, 1000, 9], insert));
        assert_eq!(answers, [Some(7), Some(8), None, Some(0), None, Some(9)]);
        assert_eq!(count(&mut conn), 8);
        assert_eq!(told(in_one_commit(&mut conn, &[10], insert)), [Some(10)]);
    }

    #[test]
    fn what_fails_by_itself_is_tried_once_and_keeps_nothing() {
        let (_directory, mut conn) = numbers();
        insert(&5, &mut conn).unwrap();
        let tries = Cell::new(0);
        let answers = in_one_commit(&mut conn, &[1005], |n, conn| {
            tries.set(tries.get() + 1);
            insert(n, conn)
        });
        assert_eq!(told(answers), [None], "whoever waits behind it is not told that the database is away");
        assert_eq!((tries.get(), count(&mut conn)), (1, 2));
    }

    #[test]
    fn where_another_holds_the_file_all_are_told_at_once() {
        let (directory, mut conn) = numbers();
        let mut other = SqliteConnection::establish(directory.path().join("numbers.db").to_str().unwrap()).unwrap();
        other.batch_execute("BEGIN IMMEDIATE").unwrap();
        let tries = Cell::new(0);
        let answers = in_one_commit(&mut conn, &[1, 2, 3], |n, conn| {
            tries.set(tries.get() + 1);
            insert(n, conn)
        });
        assert!(answers.is_err());
        assert_eq!(tries.get(), 0);
        other.batch_execute("ROLLBACK").unwrap();
        assert_eq!(told(in_one_commit(&mut conn, &[1, 2], insert)), [Some(1), Some(2)]);
    }
}
