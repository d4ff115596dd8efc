//! Statements that are prepared once on each connection.

use diesel::{
    QueryResult, RunQueryDsl as _,
    backend::Backend,
    connection::LoadConnection,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    query_dsl::methods::LoadQuery,
    sql_types::Integer,
};

/// A statement that its connection keeps prepared, by its text.
///
/// diesel prepares an `UPDATE`, an upsert, an insert with an empty column and every statement in plain SQL anew each
/// time, because it cannot know how many different texts there will be: a second round trip to PostgreSQL, and a plan
/// made for one use. Only for statements of a few texts. On a blocking connection it is to be [`run`](Self::run), since
/// `execute` there asks a reference to the statement, whose answer is not this one's.
#[derive(Debug, Clone, Copy)]
pub struct Prepared<Q>(pub Q);

impl<Q> Prepared<Q> {
    /// Runs a statement that returns no rows, on a blocking connection.
    ///
    /// # Errors
    /// The database's.
    pub fn run<'a, C: LoadConnection>(self, conn: &mut C) -> QueryResult<()>
    where
        Prepared<Silent<Q>>: LoadQuery<'a, C, i32>,
    {
        Prepared(Silent(self.0)).load::<i32>(conn).map(drop)
    }

    /// As [`run`](Self::run), and says how many rows it changed. On SQLite a statement that returns anything also writes
    /// a journal of its own.
    ///
    /// # Errors
    /// The database's.
    pub fn changed<'a, C: LoadConnection>(self, conn: &mut C) -> QueryResult<usize>
    where
        Prepared<Told<Q>>: LoadQuery<'a, C, i32>,
    {
        // To its end, as in `rotation`.
        Prepared(Told(self.0)).load::<i32>(conn).map(|rows| rows.len())
    }
}

impl<Q: QueryFragment<DB>, DB: Backend> QueryFragment<DB> for Prepared<Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, _backend: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

// Without an id of its type, a statement is kept by its text.
impl<Q> QueryId for Prepared<Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q: Query> Query for Prepared<Q> {
    type SqlType = Q::SqlType;
}

impl<Q, C> diesel::RunQueryDsl<C> for Prepared<Q> {}

/// A statement that returns nothing, where diesel wants something returned.
#[derive(Debug, Clone, Copy)]
pub struct Silent<Q>(Q);

impl<Q: QueryFragment<DB>, DB: Backend> QueryFragment<DB> for Silent<Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }
}

impl<Q> QueryId for Silent<Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q> Query for Silent<Q> {
    type SqlType = Integer;
}

/// A statement that returns a row for each that it changes.
#[derive(Debug, Clone, Copy)]
pub struct Told<Q>(Q);

impl<Q: QueryFragment<DB>, DB: Backend> QueryFragment<DB> for Told<Q> {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(pass.reborrow())?;
        pass.push_sql(" RETURNING 1");
        Ok(())
    }
}

impl<Q> QueryId for Told<Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q> Query for Told<Q> {
    type SqlType = Integer;
}
