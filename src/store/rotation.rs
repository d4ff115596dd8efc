//! Moving many sessions on at once: one statement of PostgreSQL, one unit of work of SQLite.

use std::collections::HashMap;

use diesel::{
    QueryResult, RunQueryDsl as _, SqliteConnection,
    sql_types::{BigInt, Nullable},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    prepared::Prepared,
    sql::{self, RotatedRow},
    types::{DbId, DbMoment, Id, Moment},
};
use crate::{
    services::ports::{Rotated, Rotation},
    settings::{DatabaseUrl, Settings},
};

/// How many commits go on side by side: on a server, while one waits for the disk, the other is made up. A file has one
/// writer.
pub fn side_by_side(settings: &Settings) -> usize {
    match settings.database() {
        DatabaseUrl::Sqlite(_) => 1,
        DatabaseUrl::Postgres(_) => 2,
    }
}

/// What the statement binds for all of them.
pub struct Batch {
    /// The moment at which all move on.
    pub at: OffsetDateTime,
    /// End by disuse.
    pub expires_at: OffsetDateTime,
    /// Greatest life in microseconds.
    pub absolute: Option<i64>,
    /// Used after.
    pub used_after: OffsetDateTime,
    /// Opened after.
    pub opened_after: OffsetDateTime,
    /// Which, in the order of their ids: batches side by side lock rows in the same order.
    pub ids: Vec<DbId>,
    /// Whose.
    pub users: Vec<DbId>,
    /// From which generation.
    pub generations: Vec<i64>,
}

impl Batch {
    /// Of these rotations; `None` when there are none.
    pub fn of(rotations: &[Rotation]) -> Option<Self> {
        let last = rotations.iter().max_by_key(|rotation| rotation.at)?;
        let mut sorted: Vec<&Rotation> = rotations.iter().collect();
        // Of one session, only one can succeed: the first, which a stable order leaves in front.
        sorted.sort_by_key(|rotation| rotation.id);
        sorted.dedup_by_key(|rotation| rotation.id);
        Some(Self {
            at: last.at,
            expires_at: last.expires_at,
            absolute: last.absolute.map(|life| i64::try_from(life.as_micros()).unwrap_or(i64::MAX)),
            used_after: last.living.used_after,
            opened_after: last.living.opened_after,
            ids: sorted.iter().map(|rotation| DbId(rotation.id.0)).collect(),
            users: sorted.iter().map(|rotation| DbId(rotation.user.0)).collect(),
            generations: sorted.iter().map(|rotation| rotation.from).collect(),
        })
    }

    /// What became of each rotation, from the rows that were changed. Further ones of a session that stands in the batch
    /// already are told to look again.
    pub fn outcome(&self, rotations: &[Rotation], changed: Vec<RotatedRow>) -> Vec<Option<Rotated>> {
        let mut ends: HashMap<Uuid, OffsetDateTime> =
            changed.into_iter().map(|row| (row.id.0, row.expires_at.0)).collect();
        let rotated =
            |rotation: &Rotation| ends.remove(&rotation.id.0).map(|expires_at| Rotated { at: self.at, expires_at });
        rotations.iter().map(rotated).collect()
    }

    /// Moves them on in SQLite: one commit, which is what takes the time there.
    ///
    /// # Errors
    /// The database's; then none has moved on.
    pub fn in_sqlite(&self, conn: &mut SqliteConnection) -> QueryResult<Vec<RotatedRow>> {
        match self.ids.len() {
            1 => self.each_in_sqlite(conn),
            _ => conn.immediate_transaction(|conn| self.each_in_sqlite(conn)),
        }
    }

    fn each_in_sqlite(&self, conn: &mut SqliteConnection) -> QueryResult<Vec<RotatedRow>> {
        let mut changed = Vec::with_capacity(self.ids.len());
        for ((id, user), from) in self.ids.iter().zip(&self.users).zip(&self.generations) {
            let statement = diesel::sql_query(sql::ROTATE_SQLITE)
                .bind::<Moment, _>(DbMoment(self.at))
                .bind::<Moment, _>(DbMoment(self.expires_at))
                .bind::<Nullable<BigInt>, _>(self.absolute)
                .bind::<Id, _>(*id)
                .bind::<Id, _>(*user)
                .bind::<BigInt, _>(*from)
                .bind::<Moment, _>(DbMoment(self.used_after))
                .bind::<Moment, _>(DbMoment(self.opened_after));
            // To its end: asked for one row only, SQLite commits when the statement is put away, and nobody hears of it
            // when that fails.
            changed.extend(Prepared(statement).load(conn)?);
        }
        Ok(changed)
    }
}
