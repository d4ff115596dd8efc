//! A right with what is stored with it, in the table: one statement of PostgreSQL, within one unit of work of SQLite.

use diesel::{
    QueryDsl as _, QueryResult, RunQueryDsl as _, SqliteConnection,
    sql_types::{BigInt, Binary, Text},
};
use time::OffsetDateTime;

use super::{
    prepared::Prepared,
    rows::Plain,
    schema::ephemeral_entries as entries,
    sql,
    types::{DbMoment, Moment},
};
use crate::services::ports::{Claim, Put};

/// A [`Claim`] at a time.
pub struct ClaimedAt {
    /// What is asked for.
    pub claim: Claim,
    /// When.
    pub now: OffsetDateTime,
}

impl ClaimedAt {
    /// Asks SQLite, within a unit of work; `true` when it is granted.
    ///
    /// # Errors
    /// The database's; then some may be claimed, counted or stored, and the unit is to be undone.
    pub fn in_sqlite(&self, conn: &mut SqliteConnection) -> QueryResult<bool> {
        let (claim, until) = (&self.claim, |ttl| DbMoment(self.now + ttl));
        let taken = diesel::sql_query(sql::PUT_IF_ABSENT)
            .bind::<Text, _>(&claim.key)
            .bind::<Binary, _>(NOTED)
            .bind::<Moment, _>(until(claim.ttl))
            .bind::<Moment, _>(DbMoment(self.now));
        let is_free = Prepared(taken).changed_in_file(conn)? == 1;
        let counter = if is_free { &claim.had } else { &claim.withheld };
        let count = diesel::sql_query(sql::COUNT)
            .bind::<Text, _>(counter)
            .bind::<Binary, _>(NOTHING)
            .bind::<Moment, _>(until(claim.window))
            .bind::<Moment, _>(DbMoment(self.now));
        Prepared(count).run(conn)?;
        let count = entries::table.find(counter).select(entries::count).get_result::<i64>(conn)?;
        let is_granted = is_free && count <= claim.most;
        for Put { key, value, ttl } in claim.puts(is_granted) {
            let put = diesel::sql_query(sql::PUT).bind::<Text, _>(key).bind::<Binary, _>(value);
            Prepared(put.bind::<Moment, _>(until(*ttl))).run(conn)?;
        }
        Ok(is_granted)
    }

    /// The statement that asks PostgreSQL. Its `count` is zero when it is not granted.
    pub fn for_postgres(&self) -> Prepared<Plain<'_>> {
        let (claim, until) = (&self.claim, |ttl| DbMoment(self.now + ttl));
        let entries = || claim.always.iter().chain([&claim.with, &claim.without]);
        let query = diesel::sql_query(sql::claim(entries().count()))
            .into_boxed()
            .bind::<Text, _>(&claim.key)
            .bind::<Binary, _>(NOTED)
            .bind::<Moment, _>(until(claim.ttl))
            .bind::<Moment, _>(DbMoment(self.now))
            .bind::<Text, _>(&claim.had)
            .bind::<Text, _>(&claim.withheld)
            .bind::<Binary, _>(NOTHING)
            .bind::<Moment, _>(until(claim.window))
            .bind::<BigInt, _>(claim.most);
        Prepared(entries().fold(query, |query, Put { key, value, ttl }| {
            query.bind::<Text, _>(key).bind::<Binary, _>(value).bind::<Moment, _>(until(*ttl))
        }))
    }
}

const NOTED: &[u8] = b"1";
// A counter has no value.
const NOTHING: &[u8] = b"";
