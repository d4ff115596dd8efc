//! The durable database on blocking connections. Every answer is there when the call returns.

use std::{
    future::{Ready, ready},
    sync::Arc,
};

use diesel::{
    prelude::*,
    sql_types::{Array, BigInt, Nullable},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::database::Connection;
use crate::{
    services::{
        error::Unavailable,
        identifier::Identifier,
        keys::Keys,
        model::{
            AuditEvent, AuthProvider, Channel, Confirmation, EndReason, Listed, LoginEvent, OutboxEntry, OutboxState,
            Page, ProfileChanges, Session, SessionId, Settlement, User, UserId,
        },
        ports::{
            Audit, Before, FoundSession, Inserted, Living, Outbox, Rotated, Rotation, SecondFactors, Sessions, Users,
        },
        session_cache::Changes,
        totp::TotpFactor,
    },
    store::{
        bundle::Rows,
        prepared::Prepared,
        rotation::Batch,
        rows::{
            AuditRow, ConfirmationRow, LoginEventRow, NewPasswordRow, OutboxRow, ProfileRow, RecoveryCodeRow,
            SessionRow, SettlementRow, TotpRow, UserRow, entries, listed, session_and_user, sessions_and_users,
        },
        schema::{
            audit_events, ephemeral_entries, identities, imported_hashes, outbox, recovery_codes, sessions,
            totp_factors, users,
        },
        sql,
        types::{DbId, DbMoment, Id, Moment, same},
    },
};

/// A connection and the keys that its rows are sealed with.
pub struct Store {
    /// On loan from the pool.
    pub connection: Connection,
    /// For personal data.
    pub keys: Arc<Keys>,
    /// Draws a nonce.
    pub nonce: fn() -> [u8; 24],
    /// How many letters were written on this connection.
    pub letters: usize,
    /// What was changed on this connection; after it in this list, so that it is given up after it.
    pub changes: Changes,
}

type Answer<T> = Ready<Result<T, Unavailable>>;

/// Runs `$query` on whichever database the store speaks to; each spells it in its own SQL.
macro_rules! on {
    ($store:expr, $conn:ident => $query:expr) => {
        match &mut $store.connection {
            Connection::Sqlite(pooled) => {
                let $conn = &mut ***pooled;
                let answer = $query;
                pooled.note(answer)
            }
            Connection::Postgres(pooled) => {
                let $conn = &mut ***pooled;
                let answer = $query;
                pooled.note(answer)
            }
        }
    };
}

#[expect(refining_impl_trait, reason = "`Ready` is the proof that nothing here waits")]
impl Users for Store {
    fn user_by_identifier(&mut self, identifier: &Identifier) -> Answer<Option<User>> {
        let index = self.keys.blind_index(identifier).to_vec();
        let found = match identifier {
            Identifier::Email(_) => on!(self, conn => users::table
                .filter(users::email_index.eq(index).and(users::deleted_at.is_null()))
                .select(UserRow::as_select())
                .first(conn)
                .optional()),
            Identifier::Phone(_) => on!(self, conn => users::table
                .filter(users::phone_index.eq(index).and(users::deleted_at.is_null()))
                .select(UserRow::as_select())
                .first(conn)
                .optional()),
        };
        ready(found.and_then(|row| row.map(|row| row.open(&self.keys)).transpose()))
    }

    fn user(&mut self, id: UserId) -> Answer<Option<User>> {
        let found = on!(self, conn => users::table
            .filter(users::id.eq(DbId(id.0)).and(users::deleted_at.is_null()))
            .select(UserRow::as_select())
            .first(conn)
            .optional());
        ready(found.and_then(|row| row.map(|row| row.open(&self.keys)).transpose()))
    }

    fn insert_user(&mut self, user: &User) -> Answer<Inserted> {
        let row = UserRow::seal(user, &self.keys, self.nonce);
        let inserted = on!(self, conn => Prepared(diesel::insert_into(users::table)
            .values(&row)
            .on_conflict_do_nothing())
            .changed(conn));
        ready(inserted.map(|rows| if rows == 1 { Inserted::Yes } else { Inserted::Taken }))
    }

    fn renew_registration(&mut self, id: UserId, is_contested: bool, at: OffsetDateTime) -> Answer<()> {
        self.changes.note_user(id);
        let contested = is_contested.then(|| users::is_contested.eq(true));
        let changed = on!(self, conn => Prepared(diesel::update(users::table)
            .filter(users::id.eq(DbId(id.0)).and(users::deleted_at.is_null()))
            .filter(users::is_verified.eq(false))
            .set((users::updated_at.eq(DbMoment(at)), contested)))
            .run(conn));
        ready(changed)
    }

    fn confirm_user(&mut self, id: UserId, with: &Confirmation, at: OffsetDateTime) -> Answer<bool> {
        self.changes.note_user(id);
        let row = ConfirmationRow::new(with, at);
        let changed = on!(self, conn => Prepared(diesel::update(users::table)
            .filter(users::id.eq(DbId(id.0)))
            .filter(users::is_verified.eq(false).and(users::is_active.eq(true)).and(users::deleted_at.is_null()))
            .set(&row))
            .changed(conn));
        ready(changed.map(|rows| rows == 1))
    }

    fn update_profile(&mut self, id: UserId, changes: &ProfileChanges, at: OffsetDateTime) -> Answer<Option<User>> {
        self.changes.note_user(id);
        let row = ProfileRow::new(changes, at);
        let changed = on!(self, conn => diesel::update(users::table)
            .filter(users::id.eq(DbId(id.0)).and(users::deleted_at.is_null()))
            .set(&row)
            .returning(UserRow::as_returning())
            .get_result(conn)
            .optional());
        ready(changed.and_then(|row| row.map(|row| row.open(&self.keys)).transpose()))
    }

    fn record_login(&mut self, user: &User, new_hash: Option<&str>, at: OffsetDateTime) -> Answer<bool> {
        self.changes.note_user(user.id);
        let rehashed = new_hash.map(|hash| users::password_hash.eq(hash));
        let living = users::is_active.eq(true).and(users::deleted_at.is_null());
        // A second factor that is set up beside a sign-in is asked for all the same.
        let living = living.and(same(users::second_factor_at, user.second_factor_at));
        let changed = match user.password_hash.as_deref() {
            Some(known) => on!(self, conn => Prepared(diesel::update(users::table)
                .filter(users::id.eq(DbId(user.id.0)).and(living).and(users::password_hash.eq(known)))
                .set((users::last_login_at.eq(DbMoment(at)), rehashed)))
                .changed(conn)),
            None => on!(self, conn => Prepared(diesel::update(users::table)
                .filter(users::id.eq(DbId(user.id.0)).and(living).and(users::password_hash.is_null()))
                .set((users::last_login_at.eq(DbMoment(at)), rehashed)))
                .changed(conn)),
        };
        ready(changed.map(|rows| rows == 1))
    }

    fn set_password(&mut self, user: &User, new_hash: &str, at: OffsetDateTime) -> Answer<bool> {
        self.changes.note_user(user.id);
        let row = NewPasswordRow::new(new_hash, at);
        let living = users::is_active.eq(true).and(users::deleted_at.is_null());
        let changed = match user.password_hash.as_deref() {
            Some(known) => on!(self, conn => Prepared(diesel::update(users::table)
                .filter(users::id.eq(DbId(user.id.0)).and(living).and(users::password_hash.eq(known)))
                .set(&row))
                .changed(conn)),
            None => on!(self, conn => Prepared(diesel::update(users::table)
                .filter(users::id.eq(DbId(user.id.0)).and(living).and(users::password_hash.is_null()))
                .set(&row))
                .changed(conn)),
        };
        ready(changed.map(|rows| rows == 1))
    }

    fn user_by_identity(&mut self, subject_index: &[u8; 32]) -> Answer<Option<User>> {
        let index = subject_index.as_slice();
        let found = on!(self, conn => identities::table
            .inner_join(users::table)
            .filter(identities::subject_index.eq(index).and(users::deleted_at.is_null()))
            .select(UserRow::as_select())
            .first(conn)
            .optional());
        ready(found.and_then(|row| row.map(|row| row.open(&self.keys)).transpose()))
    }

    fn has_identity(&mut self, user: UserId, provider: AuthProvider) -> Answer<bool> {
        let found = on!(self, conn => identities::table
            .filter(identities::user_id.eq(DbId(user.0)).and(identities::provider.eq(provider.word())))
            .count()
            .get_result::<i64>(conn));
        ready(found.map(|count| count > 0))
    }

    fn insert_identity(
        &mut self,
        subject_index: &[u8; 32],
        user: UserId,
        provider: AuthProvider,
        at: OffsetDateTime,
    ) -> Answer<Inserted> {
        let row = (
            identities::subject_index.eq(subject_index.as_slice()),
            identities::user_id.eq(DbId(user.0)),
            identities::provider.eq(provider.word()),
            identities::created_at.eq(DbMoment(at)),
        );
        let inserted = on!(self, conn => Prepared(diesel::insert_into(identities::table)
            .values(row)
            .on_conflict_do_nothing())
            .changed(conn));
        ready(inserted.map(|rows| if rows == 1 { Inserted::Yes } else { Inserted::Taken }))
    }

    fn forget_identities(&mut self, user: UserId) -> Answer<()> {
        let gone = on!(self, conn => diesel::delete(identities::table)
            .filter(identities::user_id.eq(DbId(user.0)))
            .execute(conn));
        ready(gone.map(drop))
    }

    fn note_imported_hash(&mut self, scheme: &str, work: i64) -> Answer<()> {
        let noted = on!(self, conn => Prepared(diesel::sql_query(sql::NOTE_IMPORTED_HASH)
            .bind::<diesel::sql_types::Text, _>(scheme)
            .bind::<diesel::sql_types::BigInt, _>(work))
            .run(conn));
        ready(noted)
    }

    fn imported_hashes(&mut self) -> Answer<Vec<(String, i64)>> {
        ready(on!(self, conn => imported_hashes::table.load(conn)))
    }
}

impl Store {
    /// [`Ports::write`](crate::services::ports::Ports::write) for many, on this connection.
    ///
    /// # Errors
    /// The database is away, or did not answer in time; then nothing is known to be written.
    pub fn write_all(&mut self, bundles: &[Rows]) -> Result<Vec<Result<bool, Unavailable>>, Unavailable> {
        for rows in bundles {
            rows.changed_user.into_iter().for_each(|id| self.changes.note_user(id));
            self.letters += rows.letters;
        }
        match &mut self.connection {
            Connection::Sqlite(pooled) => pooled.in_one_commit(bundles, Rows::in_sqlite),
            Connection::Postgres(pooled) => {
                let write = |rows: &Rows| {
                    let answer = rows.for_postgres().load(&mut ***pooled).and_then(sql::counted);
                    pooled.note(answer).map(|count| count > 0)
                };
                Ok(bundles.iter().map(write).collect())
            }
        }
    }

    fn session_row(&mut self, id: SessionId) -> Result<Option<(SessionRow, UserRow)>, Unavailable> {
        on!(self, conn => sessions::table
            .inner_join(users::table)
            .filter(sessions::id.eq(DbId(id.0)).and(users::deleted_at.is_null()))
            .select((SessionRow::as_select(), UserRow::as_select()))
            .first(conn)
            .optional())
    }
}

#[expect(refining_impl_trait, reason = "`Ready` is the proof that nothing here waits")]
impl Sessions for Store {
    fn insert_session(&mut self, session: &Session) -> Answer<()> {
        let row = SessionRow::from(session);
        ready(on!(self, conn => Prepared(diesel::insert_into(sessions::table).values(&row)).run(conn)))
    }

    fn session_with_user(&mut self, id: SessionId) -> Answer<Option<(Session, User)>> {
        let found = self.session_row(id);
        ready(found.and_then(|rows| rows.map(|rows| session_and_user(rows, &self.keys)).transpose()))
    }

    fn sessions_with_users(&mut self, ids: &[SessionId]) -> Answer<Vec<FoundSession>> {
        let wanted: Vec<DbId> = ids.iter().map(|id| DbId(id.0)).collect();
        let found = match ids {
            // This one's statement is kept, whatever the database.
            [id] => self.session_row(*id).map(Vec::from_iter),
            _ => on!(self, conn => sessions::table
                .inner_join(users::table)
                // Who lives is seen from the row: the planner takes that condition for so selective that, as long as
                // the table is small or was not analysed, it reads all sessions for each user.
                .filter(sessions::id.eq_any(&wanted))
                .select((SessionRow::as_select(), UserRow::as_select()))
                .load(conn)),
        };
        ready(found.map(|rows| sessions_and_users(ids, rows, &self.keys)))
    }

    fn rotate_sessions(&mut self, rotations: &[Rotation]) -> Answer<Vec<Option<Rotated>>> {
        let Some(batch) = Batch::of(rotations) else { return ready(Ok(Vec::new())) };
        rotations.iter().for_each(|rotation| self.changes.note_session(rotation.id));
        let changed = match &mut self.connection {
            Connection::Sqlite(pooled) => {
                let answer = batch.in_sqlite(pooled);
                pooled.note(answer)
            }
            Connection::Postgres(pooled) => {
                let statement = Prepared(
                    diesel::sql_query(sql::ROTATE_POSTGRES)
                        .bind::<Moment, _>(DbMoment(batch.at))
                        .bind::<Moment, _>(DbMoment(batch.expires_at))
                        .bind::<Nullable<BigInt>, _>(batch.absolute)
                        .bind::<Array<Id>, _>(&batch.ids)
                        .bind::<Array<Id>, _>(&batch.users)
                        .bind::<Array<BigInt>, _>(&batch.generations)
                        .bind::<Moment, _>(DbMoment(batch.used_after))
                        .bind::<Moment, _>(DbMoment(batch.opened_after)),
                );
                let answer = statement.load(&mut ***pooled);
                pooled.note(answer)
            }
        };
        ready(changed.map(|changed| batch.outcome(rotations, changed)))
    }

    fn end_session(&mut self, id: SessionId, why: EndReason, at: OffsetDateTime) -> Answer<bool> {
        self.changes.note_session(id);
        let changed = on!(self, conn => Prepared(diesel::update(sessions::table)
            .filter(sessions::id.eq(DbId(id.0)).and(sessions::ended_at.is_null()))
            .set((sessions::ended_at.eq(DbMoment(at)), sessions::end_reason.eq(why.word()))))
            .changed(conn));
        ready(changed.map(|rows| rows == 1))
    }

    fn end_sessions_of(
        &mut self,
        user: UserId,
        but: Option<SessionId>,
        why: EndReason,
        at: OffsetDateTime,
    ) -> Answer<Vec<SessionId>> {
        self.changes.note_user(user);
        // The nil id is nobody's.
        let but = DbId(but.map_or(Uuid::nil(), |session| session.0));
        let ended = on!(self, conn => Prepared(diesel::update(sessions::table)
            .filter(sessions::user_id.eq(DbId(user.0)).and(sessions::ended_at.is_null()).and(sessions::id.ne(but)))
            .set((sessions::ended_at.eq(DbMoment(at)), sessions::end_reason.eq(why.word())))
            .returning(sessions::id))
            .get_results::<DbId>(conn));
        ready(ended.map(|ids| ids.into_iter().map(|id| SessionId(id.0)).collect()))
    }

    fn touch_session(&mut self, id: SessionId, before: OffsetDateTime, at: OffsetDateTime) -> Answer<()> {
        self.changes.note_session(id);
        let noted = on!(self, conn => Prepared(diesel::update(sessions::table)
            .filter(sessions::id.eq(DbId(id.0)).and(sessions::last_used_at.lt(DbMoment(before))))
            .set(sessions::last_used_at.eq(DbMoment(at))))
            .run(conn));
        ready(noted)
    }

    fn sessions_of(&mut self, user: UserId, living: &Living, page: Page) -> Answer<Listed<Session>> {
        let living = || {
            sessions::user_id
                .eq(DbId(user.0))
                .and(sessions::ended_at.is_null())
                .and(sessions::expires_at.gt(DbMoment(living.at)))
                .and(sessions::last_used_at.gt(DbMoment(living.used_after)))
                .and(sessions::created_at.gt(DbMoment(living.opened_after)))
        };
        let count = on!(self, conn => sessions::table.filter(living()).count().get_result(conn));
        let rows = match page.after {
            None => on!(self, conn => sessions::table
                .filter(living())
                .order((sessions::created_at.desc(), sessions::id.desc()))
                .limit(page.limit)
                .select(SessionRow::as_select())
                .load(conn)),
            Some((at, id)) => {
                let (at, id) = (DbMoment(at), DbId(id));
                let later = sessions::created_at.lt(at).or(sessions::created_at.eq(at).and(sessions::id.lt(id)));
                on!(self, conn => sessions::table
                    .filter(living().and(later))
                    .order((sessions::created_at.desc(), sessions::id.desc()))
                    .limit(page.limit)
                    .select(SessionRow::as_select())
                    .load(conn))
            }
        };
        ready(count.and_then(|count| listed::<SessionRow, Session>((count, rows?))))
    }
}

#[expect(refining_impl_trait, reason = "`Ready` is the proof that nothing here waits")]
impl Outbox for Store {
    fn enqueue(&mut self, entry: &OutboxEntry) -> Answer<()> {
        self.letters += usize::from(entry.channel != Channel::Event);
        let row = OutboxRow::from(entry);
        ready(on!(self, conn => Prepared(diesel::insert_into(outbox::table).values(&row)).run(conn)))
    }

    fn claim(
        &mut self,
        owner: Uuid,
        now: OffsetDateTime,
        until: OffsetDateTime,
        most: i64,
    ) -> Answer<Vec<OutboxEntry>> {
        let statement = match &self.connection {
            Connection::Sqlite(_) => sql::CLAIM_SQLITE,
            Connection::Postgres(_) => sql::CLAIM_POSTGRES,
        };
        let rows = on!(self, conn => Prepared(diesel::sql_query(statement)
            .bind::<Id, _>(DbId(owner))
            .bind::<Moment, _>(DbMoment(until))
            .bind::<Moment, _>(DbMoment(now))
            .bind::<diesel::sql_types::BigInt, _>(most))
            .load::<OutboxRow>(conn));
        ready(rows.and_then(entries))
    }

    fn settle(&mut self, ids: &[Uuid], owner: Uuid, settlement: &Settlement, now: OffsetDateTime) -> Answer<usize> {
        let (row, ids) = (SettlementRow::new(settlement, now), ids.iter().copied().map(DbId).collect::<Vec<_>>());
        ready(on!(self, conn => Prepared(diesel::update(outbox::table)
            .filter(outbox::id.eq_any(&ids).and(outbox::lease_owner.eq(DbId(owner))))
            .set(&row))
            .changed(conn)))
    }

    fn outbox_entries(&mut self, state: Option<OutboxState>, most: i64) -> Answer<Vec<OutboxEntry>> {
        let letters = outbox::channel.ne(Channel::Event.word());
        let rows = match state {
            Some(state) => on!(self, conn => outbox::table
                .filter(letters.and(outbox::state.eq(state.word())))
                .order(outbox::created_at.desc())
                .limit(most)
                .select(OutboxRow::as_select())
                .load(conn)),
            None => on!(self, conn => outbox::table
                .filter(letters)
                .order(outbox::created_at.desc())
                .limit(most)
                .select(OutboxRow::as_select())
                .load(conn)),
        };
        ready(rows.and_then(entries))
    }

    fn revive(&mut self, ids: Option<&[Uuid]>, now: OffsetDateTime) -> Answer<usize> {
        let again = (
            outbox::state.eq(OutboxState::Pending.word()),
            outbox::attempts.eq(0),
            outbox::available_at.eq(DbMoment(now)),
            outbox::settled_at.eq(None::<DbMoment>),
        );
        let dead = outbox::state.eq(OutboxState::Dead.word());
        ready(match ids {
            Some(ids) => {
                let ids: Vec<DbId> = ids.iter().copied().map(DbId).collect();
                on!(self, conn => diesel::update(outbox::table)
                    .filter(dead.and(outbox::id.eq_any(&ids)))
                    .set(again)
                    .execute(conn))
            }
            None => on!(self, conn => diesel::update(outbox::table).filter(dead).set(again).execute(conn)),
        })
    }

    fn purge(&mut self, now: OffsetDateTime, before: &Before) -> Answer<usize> {
        let settled = outbox::state.ne(OutboxState::Pending.word());
        let mut purged = || {
            let letters = on!(self, conn => diesel::delete(outbox::table).filter(outbox::created_at.lt(DbMoment(before.outbox)).and(settled)).execute(conn))?;
            let events = on!(self, conn => diesel::delete(audit_events::table).filter(audit_events::at.lt(DbMoment(before.audit))).execute(conn))?;
            let unverified = users::is_verified.eq(false).and(users::updated_at.lt(DbMoment(before.unverified)));
            // Whom an operator has disabled or deleted stays known.
            let unverified = unverified.and(users::is_active.eq(true)).and(users::deleted_at.is_null());
            let users = on!(self, conn => diesel::delete(users::table).filter(unverified).execute(conn))?;
            let run_out =
                sessions::created_at.lt(DbMoment(before.sessions)).and(sessions::expires_at.lt(DbMoment(now)));
            let ended = on!(self, conn => diesel::delete(sessions::table).filter(run_out).execute(conn))?;
            let entries = match &mut self.connection {
                Connection::Sqlite(_) => {
                    on!(self, conn => diesel::delete(ephemeral_entries::table).filter(ephemeral_entries::expires_at.lt(DbMoment(now))).execute(conn))?
                }
                Connection::Postgres(_) => {
                    on!(self, conn => diesel::sql_query(sql::PURGE_ENTRIES).bind::<Moment, _>(DbMoment(now)).execute(conn))?
                }
            };
            let costs = on!(self, conn => diesel::sql_query(sql::FORGET_IMPORTED_HASHES).execute(conn))?;
            Ok(letters + events + users + ended + entries + costs)
        };
        ready(purged())
    }
}

#[expect(refining_impl_trait, reason = "`Ready` is the proof that nothing here waits")]
impl Audit for Store {
    fn record(&mut self, event: &AuditEvent) -> Answer<()> {
        let row = AuditRow::from(event);
        ready(on!(self, conn => Prepared(diesel::insert_into(audit_events::table).values(&row)).run(conn)))
    }

    fn login_events(&mut self, user: UserId, actions: &[&str], page: Page) -> Answer<Listed<LoginEvent>> {
        let own = || audit_events::user_id.eq(DbId(user.0)).and(audit_events::action.eq_any(actions));
        let count = on!(self, conn => Prepared(audit_events::table
            .filter(own())
            .count())
            .get_result(conn));
        let rows = match page.after {
            None => on!(self, conn => Prepared(audit_events::table
                .filter(own())
                .order((audit_events::at.desc(), audit_events::id.desc()))
                .limit(page.limit)
                .select(LoginEventRow::as_select()))
                .load(conn)),
            Some((at, id)) => {
                let (at, id) = (DbMoment(at), DbId(id));
                let later = audit_events::at.lt(at).or(audit_events::at.eq(at).and(audit_events::id.lt(id)));
                on!(self, conn => Prepared(audit_events::table
                    .filter(own().and(later))
                    .order((audit_events::at.desc(), audit_events::id.desc()))
                    .limit(page.limit)
                    .select(LoginEventRow::as_select()))
                    .load(conn))
            }
        };
        ready(count.and_then(|count| listed::<LoginEventRow, LoginEvent>((count, rows?))))
    }
}

#[expect(refining_impl_trait, reason = "`Ready` is the proof that nothing here waits")]
impl SecondFactors for Store {
    fn mark_second_factor(&mut self, user: &User, since: Option<OffsetDateTime>, at: OffsetDateTime) -> Answer<bool> {
        self.changes.note_user(user.id);
        let living = users::is_active.eq(true).and(users::deleted_at.is_null());
        let is_same = same(users::second_factor_at, user.second_factor_at)
            .and(same(users::password_changed_at, user.password_changed_at));
        let changed = on!(self, conn => Prepared(diesel::update(users::table)
            .filter(users::id.eq(DbId(user.id.0)).and(living).and(is_same))
            .set((users::second_factor_at.eq(since.map(DbMoment)), users::updated_at.eq(DbMoment(at)))))
            .changed(conn));
        ready(changed.map(|rows| rows == 1))
    }

    fn totp(&mut self, user: UserId) -> Answer<Option<TotpFactor>> {
        let found = on!(self, conn => totp_factors::table
            .filter(totp_factors::user_id.eq(DbId(user.0)))
            .select(TotpRow::as_select())
            .first(conn)
            .optional());
        ready(found.and_then(|row| row.map(|row| row.open(&self.keys)).transpose()))
    }

    fn insert_totp(&mut self, user: UserId, factor: &TotpFactor, at: OffsetDateTime) -> Answer<()> {
        let row = TotpRow::seal(user, factor, at, &self.keys, (self.nonce)());
        ready(on!(self, conn => Prepared(diesel::insert_into(totp_factors::table).values(&row)).run(conn)))
    }

    fn advance_totp(&mut self, user: UserId, step: i64) -> Answer<bool> {
        let changed = on!(self, conn => Prepared(diesel::update(totp_factors::table)
            .filter(totp_factors::user_id.eq(DbId(user.0)).and(totp_factors::last_step.lt(step)))
            .set(totp_factors::last_step.eq(step)))
            .changed(conn));
        ready(changed.map(|rows| rows == 1))
    }

    fn remove_totp(&mut self, user: UserId) -> Answer<()> {
        let removed = on!(self, conn => diesel::delete(totp_factors::table)
            .filter(totp_factors::user_id.eq(DbId(user.0)))
            .execute(conn));
        ready(removed.map(drop))
    }

    fn recovery_codes(&mut self, user: UserId) -> Answer<Vec<Vec<u8>>> {
        ready(on!(self, conn => recovery_codes::table
            .filter(recovery_codes::user_id.eq(DbId(user.0)).and(recovery_codes::used_at.is_null()))
            .select(recovery_codes::digest)
            .load(conn)))
    }

    fn replace_recovery_codes(&mut self, user: UserId, digests: &[[u8; 32]]) -> Answer<()> {
        let mut replaced = || {
            on!(self, conn => diesel::delete(recovery_codes::table).filter(recovery_codes::user_id.eq(DbId(user.0))).execute(conn))?;
            for digest in digests {
                let row = RecoveryCodeRow::new(user, digest);
                on!(self, conn => Prepared(diesel::insert_into(recovery_codes::table).values(&row)).run(conn))?;
            }
            Ok(())
        };
        ready(replaced())
    }

    fn spend_recovery_code(&mut self, user: UserId, digest: &[u8], at: OffsetDateTime) -> Answer<bool> {
        let unused = recovery_codes::digest.eq(digest).and(recovery_codes::used_at.is_null());
        let changed = on!(self, conn => Prepared(diesel::update(recovery_codes::table)
            .filter(recovery_codes::user_id.eq(DbId(user.0)).and(unused))
            .set(recovery_codes::used_at.eq(DbMoment(at))))
            .changed(conn));
        ready(changed.map(|rows| rows == 1))
    }
}
