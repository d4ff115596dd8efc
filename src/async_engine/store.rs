//! The durable database on connections that do not block.

use std::sync::Arc;

use diesel::sql_types::{Array, BigInt, Nullable};
use diesel::{
    BoolExpressionMethods as _, ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, SelectableHelper as _,
};
use diesel_async::RunQueryDsl;
use time::OffsetDateTime;
use tokio::time::timeout;
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
        sought::Sought,
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

type Answer<T> = Result<T, Unavailable>;

/// Runs `$query` on whichever database the store speaks to; each spells it in its own SQL.
macro_rules! on {
    ($store:expr, $conn:ident => $query:expr) => {
        match &mut $store.connection {
            Connection::Sqlite(lease) => {
                let limit = lease.begin_statement();
                let $conn = &mut **lease;
                let answer = timeout(limit, async { $query }).await;
                lease.end_statement(answer)
            }
            Connection::Postgres(lease) => {
                let limit = lease.begin_statement();
                let $conn = &mut **lease;
                let answer = timeout(limit, async { $query }).await;
                lease.end_statement(answer)
            }
        }
    };
}

impl Users for Store {
    async fn user_by_identifier(&mut self, identifier: &Identifier) -> Answer<Option<User>> {
        let found = self.sought_row(&Sought::of(identifier, &self.keys)).await;
        found.and_then(|row| row.map(|row| row.open(&self.keys)).transpose())
    }

    async fn user(&mut self, id: UserId) -> Answer<Option<User>> {
        let found = on!(self, conn => users::table
            .filter(users::id.eq(DbId(id.0)).and(users::deleted_at.is_null()))
            .select(UserRow::as_select())
            .first(conn).await
            .optional());
        found.and_then(|row| row.map(|row| row.open(&self.keys)).transpose())
    }

    async fn insert_user(&mut self, user: &User) -> Answer<Inserted> {
        let row = UserRow::seal(user, &self.keys, self.nonce);
        let inserted = on!(self, conn => Prepared(diesel::insert_into(users::table)
            .values(&row)
            .on_conflict_do_nothing())
            .execute(conn).await);
        inserted.map(|rows| if rows == 1 { Inserted::Yes } else { Inserted::Taken })
    }

    async fn renew_registration(&mut self, id: UserId, is_contested: bool, at: OffsetDateTime) -> Answer<()> {
        self.changes.note_user(id);
        let contested = is_contested.then(|| users::is_contested.eq(true));
        let changed = on!(self, conn => Prepared(diesel::update(users::table)
            .filter(users::id.eq(DbId(id.0)).and(users::deleted_at.is_null()))
            .filter(users::is_verified.eq(false))
            .set((users::updated_at.eq(DbMoment(at)), contested)))
            .execute(conn).await);
        changed.map(drop)
    }

    async fn confirm_user(&mut self, id: UserId, with: &Confirmation, at: OffsetDateTime) -> Answer<bool> {
        self.changes.note_user(id);
        let row = ConfirmationRow::new(with, at);
        let changed = on!(self, conn => Prepared(diesel::update(users::table)
            .filter(users::id.eq(DbId(id.0)))
            .filter(users::is_verified.eq(false).and(users::is_active.eq(true)).and(users::deleted_at.is_null()))
            .set(&row))
            .execute(conn).await);
        changed.map(|rows| rows == 1)
    }

    async fn update_profile(
        &mut self,
        id: UserId,
        changes: &ProfileChanges,
        at: OffsetDateTime,
    ) -> Answer<Option<User>> {
        self.changes.note_user(id);
        let row = ProfileRow::new(changes, at);
        let changed = on!(self, conn => diesel::update(users::table)
            .filter(users::id.eq(DbId(id.0)).and(users::deleted_at.is_null()))
            .set(&row)
            .returning(UserRow::as_returning())
            .get_result(conn).await
            .optional());
        changed.and_then(|row| row.map(|row| row.open(&self.keys)).transpose())
    }

    async fn record_login(&mut self, user: &User, new_hash: Option<&str>, at: OffsetDateTime) -> Answer<bool> {
        self.changes.note_user(user.id);
        let rehashed = new_hash.map(|hash| users::password_hash.eq(hash));
        let living = users::is_active.eq(true).and(users::deleted_at.is_null());
        // A second factor that is set up beside a sign-in is asked for all the same.
        let living = living.and(same(users::second_factor_at, user.second_factor_at));
        let changed = match user.password_hash.as_deref() {
            Some(known) => on!(self, conn => Prepared(diesel::update(users::table)
                .filter(users::id.eq(DbId(user.id.0)).and(living).and(users::password_hash.eq(known)))
                .set((users::last_login_at.eq(DbMoment(at)), rehashed)))
                .execute(conn).await),
            None => on!(self, conn => Prepared(diesel::update(users::table)
                .filter(users::id.eq(DbId(user.id.0)).and(living).and(users::password_hash.is_null()))
                .set((users::last_login_at.eq(DbMoment(at)), rehashed)))
                .execute(conn).await),
        };
        changed.map(|rows| rows == 1)
    }

    async fn set_password(&mut self, user: &User, new_hash: &str, at: OffsetDateTime) -> Answer<bool> {
        self.changes.note_user(user.id);
        let row = NewPasswordRow::new(new_hash, at);
        let living = users::is_active.eq(true).and(users::deleted_at.is_null());
        let changed = match user.password_hash.as_deref() {
            Some(known) => on!(self, conn => Prepared(diesel::update(users::table)
                .filter(users::id.eq(DbId(user.id.0)).and(living).and(users::password_hash.eq(known)))
                .set(&row))
                .execute(conn).await),
            None => on!(self, conn => Prepared(diesel::update(users::table)
                .filter(users::id.eq(DbId(user.id.0)).and(living).and(users::password_hash.is_null()))
                .set(&row))
                .execute(conn).await),
        };
        changed.map(|rows| rows == 1)
    }

    async fn user_by_identity(&mut self, subject_index: &[u8; 32]) -> Answer<Option<User>> {
        let index = subject_index.as_slice();
        let found = on!(self, conn => identities::table
            .inner_join(users::table)
            .filter(identities::subject_index.eq(index).and(users::deleted_at.is_null()))
            .select(UserRow::as_select())
            .first(conn).await
            .optional());
        found.and_then(|row| row.map(|row| row.open(&self.keys)).transpose())
    }

    async fn has_identity(&mut self, user: UserId, provider: AuthProvider) -> Answer<bool> {
        let found = on!(self, conn => identities::table
            .filter(identities::user_id.eq(DbId(user.0)).and(identities::provider.eq(provider.word())))
            .count()
            .get_result::<i64>(conn).await);
        found.map(|count| count > 0)
    }

    async fn insert_identity(
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
            .execute(conn).await);
        inserted.map(|rows| if rows == 1 { Inserted::Yes } else { Inserted::Taken })
    }

    async fn forget_identities(&mut self, user: UserId) -> Answer<()> {
        let gone = on!(self, conn => diesel::delete(identities::table)
            .filter(identities::user_id.eq(DbId(user.0)))
            .execute(conn).await);
        gone.map(drop)
    }

    async fn note_imported_hash(&mut self, scheme: &str, work: i64) -> Answer<()> {
        let noted = on!(self, conn => Prepared(diesel::sql_query(sql::NOTE_IMPORTED_HASH)
            .bind::<diesel::sql_types::Text, _>(scheme)
            .bind::<diesel::sql_types::BigInt, _>(work))
            .execute(conn).await);
        noted.map(drop)
    }

    async fn imported_hashes(&mut self) -> Answer<Vec<(String, i64)>> {
        on!(self, conn => imported_hashes::table.load(conn).await)
    }
}

impl Store {
    /// [`Ports::write`](crate::services::ports::Ports::write) for many, on this connection.
    ///
    /// # Errors
    /// The database is away, or did not answer in time; then nothing is known to be written.
    pub async fn write_all(&mut self, bundles: &[Arc<Rows>]) -> Answer<Vec<Answer<bool>>> {
        bundles.iter().filter_map(|rows| rows.changed_user).for_each(|id| self.changes.note_user(id));
        match &mut self.connection {
            Connection::Sqlite(lease) => lease.in_one_commit(bundles, |rows, conn| rows.in_sqlite(conn)).await,
            Connection::Postgres(lease) => {
                let mut written = Vec::with_capacity(bundles.len());
                for rows in bundles {
                    let limit = lease.begin_statement();
                    let answer = timeout(limit, rows.for_postgres().load(&mut **lease)).await;
                    let count = lease.end_statement(answer.map(|counted| counted.and_then(sql::counted)));
                    written.push(count.map(|count| count > 0));
                }
                Ok(written)
            }
        }
    }

    /// [`Users::user_by_identifier`] for many, in their order and sealed as they are.
    ///
    /// # Errors
    /// The database is away, or did not answer in time.
    pub async fn sought_rows(&mut self, all: &[Arc<Sought>]) -> Answer<Vec<Answer<Option<UserRow>>>> {
        if let Connection::Sqlite(lease) = &mut self.connection {
            return lease.in_one_reading(all, |sought, conn| sought.in_sqlite(conn)).await;
        }
        let mut rows = Vec::with_capacity(all.len());
        for sought in all {
            rows.push(self.sought_row(sought).await);
        }
        Ok(rows)
    }

    async fn sought_row(&mut self, sought: &Sought) -> Answer<Option<UserRow>> {
        match sought {
            Sought::Email(index) => on!(self, conn => users::table
                .filter(users::email_index.eq(index).and(users::deleted_at.is_null()))
                .select(UserRow::as_select())
                .first(conn).await
                .optional()),
            Sought::Phone(index) => on!(self, conn => users::table
                .filter(users::phone_index.eq(index).and(users::deleted_at.is_null()))
                .select(UserRow::as_select())
                .first(conn).await
                .optional()),
        }
    }

    async fn session_row(&mut self, id: SessionId) -> Answer<Option<(SessionRow, UserRow)>> {
        on!(self, conn => sessions::table
            .inner_join(users::table)
            .filter(sessions::id.eq(DbId(id.0)).and(users::deleted_at.is_null()))
            .select((SessionRow::as_select(), UserRow::as_select()))
            .first(conn).await
            .optional())
    }
}

impl Sessions for Store {
    async fn insert_session(&mut self, session: &Session) -> Answer<()> {
        let row = SessionRow::from(session);
        on!(self, conn => Prepared(diesel::insert_into(sessions::table).values(&row)).execute(conn).await).map(drop)
    }

    async fn session_with_user(&mut self, id: SessionId) -> Answer<Option<(Session, User)>> {
        let found = self.session_row(id).await;
        found.and_then(|rows| rows.map(|rows| session_and_user(rows, &self.keys)).transpose())
    }

    async fn sessions_with_users(&mut self, ids: &[SessionId]) -> Answer<Vec<FoundSession>> {
        let wanted: Vec<DbId> = ids.iter().map(|id| DbId(id.0)).collect();
        let found = match ids {
            // This one's statement is kept, whatever the database.
            [id] => self.session_row(*id).await.map(Vec::from_iter),
            _ => on!(self, conn => sessions::table
                .inner_join(users::table)
                // Who lives is seen from the row: the planner takes that condition for so selective that, as long as
                // the table is small or was not analysed, it reads all sessions for each user.
                .filter(sessions::id.eq_any(&wanted))
                .select((SessionRow::as_select(), UserRow::as_select()))
                .load(conn).await),
        };
        found.map(|rows| sessions_and_users(ids, rows, &self.keys))
    }

    async fn rotate_sessions(&mut self, rotations: &[Rotation]) -> Answer<Vec<Option<Rotated>>> {
        let Some(batch) = Batch::of(rotations) else { return Ok(Vec::new()) };
        rotations.iter().for_each(|rotation| self.changes.note_session(rotation.id));
        match &mut self.connection {
            Connection::Sqlite(lease) => {
                let moved = lease.on_its_thread(|conn| batch.in_sqlite(conn).map(|changed| (batch, changed))).await;
                moved.map(|(batch, changed)| batch.outcome(rotations, changed))
            }
            Connection::Postgres(lease) => {
                let limit = lease.begin_statement();
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
                let answer = timeout(limit, statement.load(&mut **lease)).await;
                lease.end_statement(answer).map(|changed| batch.outcome(rotations, changed))
            }
        }
    }

    async fn end_session(&mut self, id: SessionId, why: EndReason, at: OffsetDateTime) -> Answer<bool> {
        self.changes.note_session(id);
        let changed = on!(self, conn => Prepared(diesel::update(sessions::table)
            .filter(sessions::id.eq(DbId(id.0)).and(sessions::ended_at.is_null()))
            .set((sessions::ended_at.eq(DbMoment(at)), sessions::end_reason.eq(why.word()))))
            .execute(conn).await);
        changed.map(|rows| rows == 1)
    }

    async fn end_sessions_of(
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
            .get_results::<DbId>(conn).await);
        ended.map(|ids| ids.into_iter().map(|id| SessionId(id.0)).collect())
    }

    async fn touch_session(&mut self, id: SessionId, before: OffsetDateTime, at: OffsetDateTime) -> Answer<()> {
        self.changes.note_session(id);
        let noted = on!(self, conn => Prepared(diesel::update(sessions::table)
            .filter(sessions::id.eq(DbId(id.0)).and(sessions::last_used_at.lt(DbMoment(before))))
            .set(sessions::last_used_at.eq(DbMoment(at))))
            .execute(conn).await);
        noted.map(drop)
    }

    async fn sessions_of(&mut self, user: UserId, living: &Living, page: Page) -> Answer<Listed<Session>> {
        let living = || {
            sessions::user_id
                .eq(DbId(user.0))
                .and(sessions::ended_at.is_null())
                .and(sessions::expires_at.gt(DbMoment(living.at)))
                .and(sessions::last_used_at.gt(DbMoment(living.used_after)))
                .and(sessions::created_at.gt(DbMoment(living.opened_after)))
        };
        let count = on!(self, conn => sessions::table.filter(living()).count().get_result(conn).await);
        let rows = match page.after {
            None => on!(self, conn => sessions::table
                .filter(living())
                .order((sessions::created_at.desc(), sessions::id.desc()))
                .limit(page.limit)
                .select(SessionRow::as_select())
                .load(conn).await),
            Some((at, id)) => {
                let (at, id) = (DbMoment(at), DbId(id));
                let later = sessions::created_at.lt(at).or(sessions::created_at.eq(at).and(sessions::id.lt(id)));
                on!(self, conn => sessions::table
                    .filter(living().and(later))
                    .order((sessions::created_at.desc(), sessions::id.desc()))
                    .limit(page.limit)
                    .select(SessionRow::as_select())
                    .load(conn).await)
            }
        };
        count.and_then(|count| listed::<SessionRow, Session>((count, rows?)))
    }
}

impl Outbox for Store {
    async fn enqueue(&mut self, entry: &OutboxEntry) -> Answer<()> {
        self.letters += usize::from(entry.channel != Channel::Event);
        let row = OutboxRow::from(entry);
        on!(self, conn => Prepared(diesel::insert_into(outbox::table).values(&row)).execute(conn).await).map(drop)
    }

    async fn claim(
        &mut self,
        owner: Uuid,
        now: OffsetDateTime,
        until: OffsetDateTime,
        most: i64,
    ) -> Answer<Vec<OutboxEntry>> {
        let statement = match &self.connection {
            Connection::Sqlite(..) => sql::CLAIM_SQLITE,
            Connection::Postgres(_) => sql::CLAIM_POSTGRES,
        };
        let rows = on!(self, conn => Prepared(diesel::sql_query(statement)
            .bind::<Id, _>(DbId(owner))
            .bind::<Moment, _>(DbMoment(until))
            .bind::<Moment, _>(DbMoment(now))
            .bind::<diesel::sql_types::BigInt, _>(most))
            .load::<OutboxRow>(conn).await);
        rows.and_then(entries)
    }

    async fn settle(
        &mut self,
        ids: &[Uuid],
        owner: Uuid,
        settlement: &Settlement,
        now: OffsetDateTime,
    ) -> Answer<usize> {
        let (row, ids) = (SettlementRow::new(settlement, now), ids.iter().copied().map(DbId).collect::<Vec<_>>());
        on!(self, conn => Prepared(diesel::update(outbox::table)
            .filter(outbox::id.eq_any(&ids).and(outbox::lease_owner.eq(DbId(owner))))
            .set(&row))
            .execute(conn).await)
    }

    async fn outbox_entries(&mut self, state: Option<OutboxState>, most: i64) -> Answer<Vec<OutboxEntry>> {
        let letters = outbox::channel.ne(Channel::Event.word());
        let rows = match state {
            Some(state) => on!(self, conn => outbox::table
                .filter(letters.and(outbox::state.eq(state.word())))
                .order(outbox::created_at.desc())
                .limit(most)
                .select(OutboxRow::as_select())
                .load(conn).await),
            None => on!(self, conn => outbox::table
                .filter(letters)
                .order(outbox::created_at.desc())
                .limit(most)
                .select(OutboxRow::as_select())
                .load(conn).await),
        };
        rows.and_then(entries)
    }

    async fn revive(&mut self, ids: Option<&[Uuid]>, now: OffsetDateTime) -> Answer<usize> {
        let again = (
            outbox::state.eq(OutboxState::Pending.word()),
            outbox::attempts.eq(0),
            outbox::available_at.eq(DbMoment(now)),
            outbox::settled_at.eq(None::<DbMoment>),
        );
        let dead = outbox::state.eq(OutboxState::Dead.word());
        match ids {
            Some(ids) => {
                let ids: Vec<DbId> = ids.iter().copied().map(DbId).collect();
                on!(self, conn => diesel::update(outbox::table)
                    .filter(dead.and(outbox::id.eq_any(&ids)))
                    .set(again)
                    .execute(conn).await)
            }
            None => on!(self, conn => diesel::update(outbox::table).filter(dead).set(again).execute(conn).await),
        }
    }

    async fn purge(&mut self, now: OffsetDateTime, before: &Before) -> Answer<usize> {
        let settled = outbox::state.ne(OutboxState::Pending.word());
        let letters = on!(self, conn => diesel::delete(outbox::table).filter(outbox::created_at.lt(DbMoment(before.outbox)).and(settled)).execute(conn).await)?;
        let events = on!(self, conn => diesel::delete(audit_events::table).filter(audit_events::at.lt(DbMoment(before.audit))).execute(conn).await)?;
        let unverified = users::is_verified.eq(false).and(users::updated_at.lt(DbMoment(before.unverified)));
        // Whom an operator has disabled or deleted stays known.
        let unverified = unverified.and(users::is_active.eq(true)).and(users::deleted_at.is_null());
        let users = on!(self, conn => diesel::delete(users::table).filter(unverified).execute(conn).await)?;
        let run_out = sessions::created_at.lt(DbMoment(before.sessions)).and(sessions::expires_at.lt(DbMoment(now)));
        let ended = on!(self, conn => diesel::delete(sessions::table).filter(run_out).execute(conn).await)?;
        let entries = match &mut self.connection {
            Connection::Sqlite(_) => {
                on!(self, conn => diesel::delete(ephemeral_entries::table).filter(ephemeral_entries::expires_at.lt(DbMoment(now))).execute(conn).await)?
            }
            Connection::Postgres(_) => {
                on!(self, conn => diesel::sql_query(sql::PURGE_ENTRIES).bind::<Moment, _>(DbMoment(now)).execute(conn).await)?
            }
        };
        let costs = on!(self, conn => diesel::sql_query(sql::FORGET_IMPORTED_HASHES).execute(conn).await)?;
        Ok(letters + events + users + ended + entries + costs)
    }
}

impl Audit for Store {
    async fn record(&mut self, event: &AuditEvent) -> Answer<()> {
        let row = AuditRow::from(event);
        on!(self, conn => Prepared(diesel::insert_into(audit_events::table).values(&row)).execute(conn).await).map(drop)
    }

    async fn login_events(&mut self, user: UserId, actions: &[&str], page: Page) -> Answer<Listed<LoginEvent>> {
        let own = || audit_events::user_id.eq(DbId(user.0)).and(audit_events::action.eq_any(actions));
        let count = on!(self, conn => Prepared(audit_events::table
            .filter(own())
            .count())
            .get_result(conn).await);
        let rows = match page.after {
            None => on!(self, conn => Prepared(audit_events::table
                .filter(own())
                .order((audit_events::at.desc(), audit_events::id.desc()))
                .limit(page.limit)
                .select(LoginEventRow::as_select()))
                .load(conn).await),
            Some((at, id)) => {
                let (at, id) = (DbMoment(at), DbId(id));
                let later = audit_events::at.lt(at).or(audit_events::at.eq(at).and(audit_events::id.lt(id)));
                on!(self, conn => Prepared(audit_events::table
                    .filter(own().and(later))
                    .order((audit_events::at.desc(), audit_events::id.desc()))
                    .limit(page.limit)
                    .select(LoginEventRow::as_select()))
                    .load(conn).await)
            }
        };
        count.and_then(|count| listed::<LoginEventRow, LoginEvent>((count, rows?)))
    }
}

impl SecondFactors for Store {
    async fn mark_second_factor(
        &mut self,
        user: &User,
        since: Option<OffsetDateTime>,
        at: OffsetDateTime,
    ) -> Answer<bool> {
        self.changes.note_user(user.id);
        let living = users::is_active.eq(true).and(users::deleted_at.is_null());
        let is_same = same(users::second_factor_at, user.second_factor_at)
            .and(same(users::password_changed_at, user.password_changed_at));
        let changed = on!(self, conn => Prepared(diesel::update(users::table)
            .filter(users::id.eq(DbId(user.id.0)).and(living).and(is_same))
            .set((users::second_factor_at.eq(since.map(DbMoment)), users::updated_at.eq(DbMoment(at)))))
            .execute(conn).await);
        changed.map(|rows| rows == 1)
    }

    async fn totp(&mut self, user: UserId) -> Answer<Option<TotpFactor>> {
        let found = on!(self, conn => totp_factors::table
            .filter(totp_factors::user_id.eq(DbId(user.0)))
            .select(TotpRow::as_select())
            .first(conn).await
            .optional());
        found.and_then(|row| row.map(|row| row.open(&self.keys)).transpose())
    }

    async fn insert_totp(&mut self, user: UserId, factor: &TotpFactor, at: OffsetDateTime) -> Answer<()> {
        let row = TotpRow::seal(user, factor, at, &self.keys, (self.nonce)());
        on!(self, conn => Prepared(diesel::insert_into(totp_factors::table).values(&row)).execute(conn).await).map(drop)
    }

    async fn advance_totp(&mut self, user: UserId, step: i64) -> Answer<bool> {
        let changed = on!(self, conn => Prepared(diesel::update(totp_factors::table)
            .filter(totp_factors::user_id.eq(DbId(user.0)).and(totp_factors::last_step.lt(step)))
            .set(totp_factors::last_step.eq(step)))
            .execute(conn).await);
        changed.map(|rows| rows == 1)
    }

    async fn remove_totp(&mut self, user: UserId) -> Answer<()> {
        let removed = on!(self, conn => diesel::delete(totp_factors::table)
            .filter(totp_factors::user_id.eq(DbId(user.0)))
            .execute(conn).await);
        removed.map(drop)
    }

    async fn recovery_codes(&mut self, user: UserId) -> Answer<Vec<Vec<u8>>> {
        on!(self, conn => recovery_codes::table
            .filter(recovery_codes::user_id.eq(DbId(user.0)).and(recovery_codes::used_at.is_null()))
            .select(recovery_codes::digest)
            .load(conn).await)
    }

    async fn replace_recovery_codes(&mut self, user: UserId, digests: &[[u8; 32]]) -> Answer<()> {
        on!(self, conn => diesel::delete(recovery_codes::table).filter(recovery_codes::user_id.eq(DbId(user.0))).execute(conn).await)?;
        for digest in digests {
            let row = RecoveryCodeRow::new(user, digest);
            on!(self, conn => Prepared(diesel::insert_into(recovery_codes::table).values(&row)).execute(conn).await)?;
        }
        Ok(())
    }

    async fn spend_recovery_code(&mut self, user: UserId, digest: &[u8], at: OffsetDateTime) -> Answer<bool> {
        let unused = recovery_codes::digest.eq(digest).and(recovery_codes::used_at.is_null());
        let changed = on!(self, conn => Prepared(diesel::update(recovery_codes::table)
            .filter(recovery_codes::user_id.eq(DbId(user.0)).and(unused))
            .set(recovery_codes::used_at.eq(DbMoment(at))))
            .execute(conn).await);
        changed.map(|rows| rows == 1)
    }
}
