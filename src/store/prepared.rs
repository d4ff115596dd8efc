//! Statements that are prepared once on each connection.

use std::marker::PhantomData;

use diesel::{
    QueryResult, RunQueryDsl as _, SqliteConnection,
    backend::Backend,
    connection::LoadConnection,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    query_dsl::methods::LoadQuery,
    sql_types::Integer,
};

/// A statement that its connection keeps prepared: by its type where all of that type have one text, or else by its text,
/// which is then made each time.
///
/// diesel prepares an `UPDATE`, an upsert and every statement in plain SQL anew each time, because it cannot know how many
/// different texts there will be: a second round trip to PostgreSQL, and a plan made for one use. Only for statements of
/// a few texts. On a blocking connection it is to be [`run`](Self::run), since `execute` there asks a reference to the
/// statement, whose answer is not this one's.
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

    /// As [`run`](Self::run), and says how many rows it changed. On SQLite, where a statement that changes rows and returns
    /// any fills a table of its own first, [`changed_in_file`](Self::changed_in_file) does so for less.
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

    /// As [`changed`](Self::changed), on SQLite.
    ///
    /// # Errors
    /// The database's.
    pub fn changed_in_file<'a>(self, conn: &mut SqliteConnection) -> QueryResult<usize>
    where
        Prepared<Silent<Q>>: LoadQuery<'a, SqliteConnection, i32>,
    {
        self.run(conn)?;
        diesel::select(changes()).get_result::<i32>(conn).map(|rows| usize::try_from(rows).unwrap_or_default())
    }
}

#[diesel::declare_sql_function]
extern "SQL" {
    /// How many rows the last statement that changes any has changed on this connection.
    fn changes() -> Integer;
}

impl<Q: QueryFragment<DB>, DB: Backend> QueryFragment<DB> for Prepared<Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, _backend: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

impl<Q: QueryId> QueryId for Prepared<Q> {
    type QueryId = Prepared<Q::QueryId>;
    const HAS_STATIC_QUERY_ID: bool = Q::HAS_STATIC_QUERY_ID;
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

impl<Q: QueryId> QueryId for Silent<Q> {
    type QueryId = Silent<Q::QueryId>;
    const HAS_STATIC_QUERY_ID: bool = Q::HAS_STATIC_QUERY_ID;
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

impl<Q: QueryId> QueryId for Told<Q> {
    type QueryId = Told<Q::QueryId>;
    const HAS_STATIC_QUERY_ID: bool = Q::HAS_STATIC_QUERY_ID;
}

impl<Q> Query for Told<Q> {
    type SqlType = Integer;
}

/// A statement that has one text, although diesel does not know it of its type; `M` is a type of its own for it.
#[derive(Debug, Clone, Copy)]
pub struct OfOneText<M, Q>(Q, PhantomData<M>);

impl<M, Q> OfOneText<M, Q> {
    /// Nothing but this is to be known by `M`.
    pub const fn new(statement: Q) -> Self {
        Self(statement, PhantomData)
    }
}

impl<M, Q: QueryFragment<DB>, DB: Backend> QueryFragment<DB> for OfOneText<M, Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }
}

impl<M: 'static, Q> QueryId for OfOneText<M, Q> {
    type QueryId = OfOneText<M, ()>;
    const HAS_STATIC_QUERY_ID: bool = true;
}
