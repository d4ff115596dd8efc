//! The store contract: what the ports promise, told as one set of stories to every adapter. Both engines on SQLite and
//! on PostgreSQL; their ephemeral stores in a table of either and in Redis.

mod support;

use bifrons::async_engine::{self, AsyncPorts};
use bifrons::hashing::{HashPool, Telling};
use bifrons::parts;
use bifrons::services::error::Unavailable;
use bifrons::services::identifier::Identifier;
use bifrons::services::keys::Keys;
use bifrons::services::limits::{Decision, Left, LocalLimiter, Rate, Rule};
use bifrons::services::model::{
    AuditEvent, AuthProvider, Caller, Channel, Confirmation, EndReason, LoginEvent, OutboxEntry, OutboxState, Outcome,
    Page, ProfileChanges, Role, Session, SessionId, Settlement, User, UserId,
};
use bifrons::services::ports::{
    Audit as _, Before, Bundle, Claim, Claiming, Ephemeral, First, Inserted, Living, Outbox as _, Ports, Put,
    READS_SIDE_BY_SIDE, Rotated, Rotation, SecondFactors as _, Sessions, Users as _,
};
use bifrons::services::run::run;
use bifrons::services::totp::{TotpFactor, TotpSecret};
use bifrons::settings::{DatabaseUrl, Settings, StoreUrl};
use bifrons::store::migrations;
use bifrons::sync_engine::{self, BlockingPorts};
use bifrons::system;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, PgConnection, RunQueryDsl as _, SqliteConnection};
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};
use support::{
    Backend, Client, Gateway, Options, PASSWORD, Postgres, Redis, Request, fresh_directory, pause, random_bytes,
    run_alone, unique,
};
use time::OffsetDateTime;
use uuid::Uuid;

static POSTGRES: LazyLock<Postgres> = LazyLock::new(Postgres::start);
static REDIS: LazyLock<Redis> = LazyLock::new(Redis::start);

/// Where an adapter keeps its data.
#[derive(Clone, Copy, Debug)]
struct Place {
    in_postgres: bool,
    in_redis: bool,
}

/// For the stories of the durable store.
const DATABASES: [Place; 2] =
    [Place { in_postgres: false, in_redis: false }, Place { in_postgres: true, in_redis: false }];
/// For those of the ephemeral store.
const STORES: [Place; 3] = [
    Place { in_postgres: false, in_redis: false },
    Place { in_postgres: true, in_redis: false },
    Place { in_postgres: false, in_redis: true },
];
const IN_REDIS: [Place; 1] = [Place { in_postgres: false, in_redis: true }];

fn hash_pool(settings: &Settings) -> HashPool {
    HashPool::start(settings, 1).expect("a thread")
}

/// An engine's ports, made as the engine makes them.
trait Adapter: Ports + Clone + Send + Sync {
    const ENGINE: &'static str;

    fn new(settings: &Settings, keys: Arc<Keys>) -> Self;

    /// Runs a story.
    fn tell(story: impl AsyncFnOnce());

    /// Does the same thing so many times at once.
    async fn together<T: Send>(&self, times: usize, work: impl AsyncFn(Self, usize) -> T + Sync) -> Vec<T>;
}

impl Adapter for BlockingPorts {
    const ENGINE: &'static str = "the sync engine";

    fn new(settings: &Settings, keys: Arc<Keys>) -> Self {
        let database = sync_engine::Database::new(settings);
        Self {
            ephemeral: sync_engine::EphemeralStore::new(settings, &database, Arc::default()).expect("a store"),
            sessions: sync_engine::SessionCache::new(Arc::default()),
            reads: sync_engine::Together::new(READS_SIDE_BY_SIDE),
            rotations: sync_engine::Together::new(bifrons::store::rotation::side_by_side(settings)),
            bundles: sync_engine::Together::in_file(settings, &Telling::default()),
            hasher: sync_engine::Hasher::new(parts::hash_params(settings), hash_pool(settings)),
            google: Arc::new(sync_engine::GoogleKeys::of(settings)),
            policy: Arc::new(parts::policy(settings)),
            keys,
            wake: Arc::default(),
            places: None,
            breaches: None,
            database,
        }
    }

    fn tell(story: impl AsyncFnOnce()) {
        run(story());
    }

    async fn together<T: Send>(&self, times: usize, work: impl AsyncFn(Self, usize) -> T + Sync) -> Vec<T> {
        let work = &work;
        thread::scope(|scope| {
            let one = |nth| {
                let ports = self.clone();
                scope.spawn(move || run(work(ports, nth)))
            };
            let threads: Vec<_> = (0..times).map(one).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    }
}

impl Adapter for AsyncPorts {
    const ENGINE: &'static str = "the async engine";

    fn new(settings: &Settings, keys: Arc<Keys>) -> Self {
        let pool = usize::from(settings.database.pool);
        let database = async_engine::Database::new(settings, pool).expect("a pool");
        Self {
            ephemeral: async_engine::EphemeralStore::new(settings, &database, Arc::default(), &Telling::default())
                .expect("a store"),
            sessions: async_engine::SessionCache::new(Arc::default()),
            lookups: async_engine::Together::in_file(settings, &Telling::default()),
            reads: async_engine::Together::new(READS_SIDE_BY_SIDE),
            rotations: async_engine::Together::new(bifrons::store::rotation::side_by_side(settings)),
            bundles: async_engine::Together::in_file(settings, &Telling::default()),
            hasher: async_engine::Hasher::new(parts::hash_params(settings), hash_pool(settings)),
            google: Arc::new(async_engine::GoogleKeys::of(settings).expect("a client")),
            policy: Arc::new(parts::policy(settings)),
            keys,
            wake: Arc::default(),
            places: None,
            breaches: None,
            database,
        }
    }

    fn tell(story: impl AsyncFnOnce()) {
        actix_web::rt::System::new().block_on(story());
    }

    async fn together<T: Send>(&self, times: usize, work: impl AsyncFn(Self, usize) -> T + Sync) -> Vec<T> {
        let mut running: Vec<Pin<Box<dyn Future<Output = T> + '_>>> = Vec::new();
        for nth in 0..times {
            running.push(Box::pin(work(self.clone(), nth)));
        }
        let mut answers = Vec::new();
        std::future::poll_fn(|context| {
            running.retain_mut(|future| match future.as_mut().poll(context) {
                Poll::Ready(answer) => {
                    answers.push(answer);
                    false
                }
                Poll::Pending => true,
            });
            if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        answers
    }
}

/// One adapter on a database of its own.
struct World<P> {
    settings: Settings,
    keys: Arc<Keys>,
    ports: P,
}

impl<P: Adapter> World<P> {
    fn new(place: Place) -> Self {
        let directory = fresh_directory("contract");
        let mut overrides = vec![
            format!("data_dir={}", directory.join("data").display()),
            format!("secrets.master={}", BASE64URL_NOPAD.encode(&random_bytes::<32>())),
        ];
        if place.in_postgres {
            overrides.push(format!("database.url={}", POSTGRES.create_database()));
        }
        if place.in_redis {
            overrides.push(format!("store.url={}", REDIS.create_database()));
        }
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        let settings = Settings::from_overrides(&overrides).expect("a configuration");
        settings.create_data_dir().expect("a directory");
        let keys = Arc::new(parts::keys(&settings).expect("keys"));
        migrations::migrate(&settings, &mut |_| ()).expect("a schema");
        migrations::prepare(&settings, &keys).expect("a database that is ready");
        let ports = P::new(&settings, Arc::clone(&keys));
        Self { settings, keys, ports }
    }

    /// The ports of another instance.
    fn twin(&self) -> P {
        P::new(&self.settings, Arc::clone(&self.keys))
    }

    /// Runs a statement past the adapter; the first column of the first row.
    fn value(&self, sqlite: &str, postgres: &str) -> String {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::Text)]
            value: String,
        }
        let rows: Vec<Row> = match self.settings.database() {
            DatabaseUrl::Sqlite(path) => {
                let mut conn = SqliteConnection::establish(&path.to_string_lossy()).expect("a connection");
                conn.batch_execute("PRAGMA busy_timeout = 10000").expect("a pragma");
                diesel::sql_query(sqlite).load(&mut conn).expect(sqlite)
            }
            DatabaseUrl::Postgres(url) => {
                let mut conn = PgConnection::establish(url.expose()).expect("a connection");
                diesel::sql_query(postgres).load(&mut conn).expect(postgres)
            }
        };
        rows.into_iter().next().expect("a row").value
    }

    /// What has been counted under a limit in its present window.
    fn counted_in_redis(&self, key: &str) -> usize {
        let StoreUrl::Redis(url) = self.settings.store() else { panic!("no Redis") };
        let mut conn = ::redis::Client::open(url.expose()).and_then(|client| client.get_connection()).expect("Redis");
        ::redis::cmd("HGET").arg(key).arg("current").query(&mut conn).expect("a number")
    }

    /// Cuts every connection to this world's Redis database, and to no other's.
    fn cut_redis_connections(&self) {
        let StoreUrl::Redis(url) = self.settings.store() else { panic!("no Redis") };
        let (server, database) = url.expose().rsplit_once('/').expect("a database's number");
        let client = ::redis::Client::open(server).expect("a URL");
        let mut conn = client.get_connection().expect("a connection");
        let clients: String = ::redis::cmd("CLIENT").arg("LIST").query(&mut conn).expect("a list");
        let (of_database, mut cut) = (format!("db={database}"), 0);
        for line in clients.lines().filter(|line| line.split(' ').any(|field| field == of_database)) {
            let id = line.split(' ').find_map(|field| field.strip_prefix("id=")).expect("an id");
            let _: i64 = ::redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).query(&mut conn).expect("an answer");
            cut += 1;
        }
        assert!(cut > 0, "there was no connection to cut");
    }

    fn execute(&self, sqlite: &str, postgres: &str) {
        match self.settings.database() {
            DatabaseUrl::Sqlite(path) => {
                let mut conn = SqliteConnection::establish(&path.to_string_lossy()).expect("a connection");
                conn.batch_execute(&format!("PRAGMA busy_timeout = 10000; {sqlite}")).expect(sqlite);
            }
            DatabaseUrl::Postgres(url) => {
                let mut conn = PgConnection::establish(url.expose()).expect("a connection");
                conn.batch_execute(postgres).expect(postgres);
            }
        }
    }

    fn count(&self, table: &str) -> i64 {
        let statement = format!("SELECT CAST(count(*) AS TEXT) AS value FROM {table}");
        self.value(&statement, &statement).parse().expect("a number")
    }

    /// From now on no unit of work that inserts or changes a user can be committed.
    fn refuse_commits(&self) {
        self.execute(
            "CREATE TABLE nowhere (id INTEGER PRIMARY KEY);
             CREATE TABLE refused (id INTEGER REFERENCES nowhere (id) DEFERRABLE INITIALLY DEFERRED);
             CREATE TRIGGER refuse_insert AFTER INSERT ON users BEGIN INSERT INTO refused VALUES (1); END;
             CREATE TRIGGER refuse_update AFTER UPDATE ON users BEGIN INSERT INTO refused VALUES (1); END;",
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'this commit is refused'; END $$;
             CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON users
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse();",
        );
    }

    fn allow_commits(&self) {
        self.execute("DROP TRIGGER refuse_insert; DROP TRIGGER refuse_update;", "DROP TRIGGER refuse ON users;");
    }
}

/// Says during a panic where it happened.
struct Told(String);

impl Drop for Told {
    #[expect(clippy::print_stderr, reason = "belongs to the message of the failed test")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("this was {}", self.0);
        }
    }
}

fn tell<P: Adapter>(place: Place, story: &impl AsyncFn(&World<P>)) {
    let _told = Told(format!("{} on {place:?}", P::ENGINE));
    P::tell(async || {
        let world = World::<P>::new(place);
        story(&world).await;
    });
}

/// Makes a test of each story, which tells it to both engines everywhere.
macro_rules! everywhere {
    ($places:ident: $($story:ident)+) => {$(
        #[test]
        fn $story() {
            for place in $places {
                tell::<BlockingPorts>(place, &async |world| stories::$story(world).await);
                tell::<AsyncPorts>(place, &async |world| stories::$story(world).await);
            }
        }
    )+};
}

everywhere! { DATABASES:
    a_user_is_read_as_it_was_written
    what_is_not_there_is_none
    addresses_and_numbers_are_sealed_and_bound_to_their_row
    an_identifier_and_a_pid_belong_to_one_user
    of_many_inserts_of_one_identifier_exactly_one_succeeds
    a_deleted_user_is_unknown_and_keeps_the_identifier
    a_user_is_confirmed_once
    only_an_unverified_user_can_be_contested
    a_profile_changes_only_where_it_is_told_to
    a_login_is_noted_and_may_renew_the_hash
    a_second_factor_is_marked_where_nothing_has_changed
    an_authenticator_and_recovery_codes_are_sealed_and_spent_once
    a_password_is_set_where_it_is_the_one_that_was_seen
    of_many_new_passwords_at_once_exactly_one_is_set
    an_account_elsewhere_belongs_to_one_user_and_a_user_has_one_of_each_provider
    of_many_links_of_one_account_elsewhere_exactly_one_is_made
    the_greatest_cost_of_imported_hashes_is_kept_while_there_are_any
    a_session_is_read_as_it_was_written
    a_session_moves_on_only_as_long_as_it_may_live_and_its_user_is_active
    a_session_moves_on_from_its_present_generation_only
    many_sessions_move_on_in_one_commit_each_for_itself
    a_known_session_is_as_this_process_left_it_and_as_another_did_a_second_ago
    of_fifty_rotations_from_one_generation_exactly_one_succeeds
    a_session_ends_once
    every_living_session_of_one_user_ends
    every_living_session_but_one_ends
    the_use_of_a_session_is_noted_once_the_last_note_is_old
    living_sessions_are_counted_and_listed_in_pages
    a_letter_belongs_to_one_owner_until_its_lease_ends
    claims_side_by_side_share_no_letter
    a_letter_is_sent_tried_again_or_given_up
    letters_are_claimed_by_due_time_and_listed_by_age
    dead_letters_come_back
    old_rows_are_purged_and_no_others
    an_audit_event_is_written_whole
    ways_in_are_counted_and_listed_in_pages
    a_unit_of_work_is_kept_or_undone_as_a_whole
    a_commit_that_fails_keeps_nothing_and_spoils_no_connection
    a_count_that_cannot_be_committed_is_not_told
    units_of_work_side_by_side_all_succeed
    a_sign_in_is_written_in_one_trip_as_row_by_row
    a_sign_up_is_written_in_one_trip_or_not_at_all
    of_what_is_written_at_once_each_fails_for_itself
    whoever_looks_for_users_at_once_finds_their_own
    what_fails_in_one_trip_keeps_nothing_of_it
    a_sign_up_that_nobody_waits_for_any_more_is_written_whole_or_not_at_all
}

everywhere! { STORES:
    an_entry_lives_as_long_as_it_is_told
    an_entry_is_put_where_none_is
    entries_are_stored_with_a_right_and_found_together
    whoever_reads_entries_at_once_finds_their_own
    a_right_is_had_once_in_its_time_and_so_often_in_its_window
    what_depends_on_a_right_is_written_with_it_or_not_at_all
    of_many_removals_of_one_value_exactly_one_succeeds
    a_counter_counts_everyone_and_lives_from_its_first_count
    what_is_taken_back_from_a_counter_is_as_if_it_had_not_been_counted
    what_has_run_out_is_absent_and_replaceable
    a_request_counts_against_every_rule_or_none
    a_request_is_taken_back
}

everywhere! { IN_REDIS:
    limits_decide_alike_in_process_and_in_redis
    whoever_asks_often_is_counted_ahead_and_has_no_more_than_the_limit
    a_broken_connection_is_replaced_where_a_repeat_does_no_harm
}

/// A moment as both databases keep it, some time from now.
fn later(now: OffsetDateTime, seconds: i64) -> OffsetDateTime {
    now + time::Duration::seconds(seconds)
}

fn letters_only(count: usize) -> String {
    random_bytes::<16>().iter().take(count).map(|byte| char::from(b'a' + byte % 26)).collect()
}

/// A user with every column set.
fn user(ports: &impl Ports) -> User {
    let (now, number) = (ports.now(), unique());
    User {
        id: UserId(ports.new_id()),
        email: Some(format!("Ada.{number}@Example.org")),
        phone: Some(format!("+234803{number:07}")),
        password_hash: Some("$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA".to_owned()),
        role: Role::Vendor,
        auth_provider: AuthProvider::Phone,
        is_verified: true,
        is_active: true,
        is_contested: false,
        first_name: "Adá 'Ä' \\ \"q\"".to_owned(),
        last_name: "Lovelace 🜚".to_owned(),
        bio: "line\nline".to_owned(),
        avatar: "https://example.org/a.png".to_owned(),
        country: "NG".to_owned(),
        state: "Lagos".to_owned(),
        city: "Ikeja".to_owned(),
        address: "1 Allen Avenue".to_owned(),
        pid: letters_only(10),
        created_at: later(now, -7200),
        updated_at: later(now, -3600),
        last_login_at: Some(later(now, -60)),
        password_changed_at: Some(later(now, -1800)),
        second_factor_at: Some(later(now, -900)),
        deleted_at: None,
    }
}

/// One that waits for its code, with everything optional left out.
async fn pending(store: &mut impl bifrons::services::ports::Outbox, channel: Channel) -> usize {
    let entries = store.outbox_entries(Some(OutboxState::Pending), 100).await.expect("an answer");
    entries.iter().filter(|entry| entry.channel == channel).count()
}

fn unverified(ports: &impl Ports) -> User {
    User {
        phone: None,
        password_hash: None,
        role: Role::Client,
        auth_provider: AuthProvider::Email,
        is_verified: false,
        last_login_at: None,
        first_name: String::new(),
        last_name: String::new(),
        bio: String::new(),
        avatar: String::new(),
        country: String::new(),
        state: String::new(),
        city: String::new(),
        address: String::new(),
        ..user(ports)
    }
}

fn session(ports: &impl Ports, user: &User) -> Session {
    let now = ports.now();
    Session {
        id: SessionId(ports.new_id()),
        user_id: user.id,
        generation: 0,
        rotated_at: later(now, -50),
        expires_at: later(now, 3600),
        created_at: later(now, -100),
        last_used_at: later(now, -25),
        ended_at: None,
        end_reason: None,
        ip: "2001:db8::1".to_owned(),
        user_agent: "Mozilla/5.0 (X11) \u{1F98A}".to_owned(),
        browser: "Firefox".to_owned(),
        os: "Linux".to_owned(),
        device: "desktop".to_owned(),
        place: bifrons::services::model::Place { country: "Côte d’Ivoire".to_owned(), city: "Abidjan".to_owned() },
    }
}

fn letter(ports: &impl Ports) -> OutboxEntry {
    let now = ports.now();
    OutboxEntry {
        id: ports.new_id(),
        channel: Channel::Mail,
        kind: "verification_code".to_owned(),
        payload: vec![0, 159, 146, 150, 255],
        state: OutboxState::Pending,
        attempts: 0,
        created_at: later(now, -10),
        available_at: later(now, -5),
        expires_at: Some(later(now, 300)),
        last_error: String::new(),
    }
}

fn audit_event(ports: &impl Ports) -> AuditEvent {
    AuditEvent {
        id: ports.new_id(),
        at: ports.now(),
        action: "login",
        outcome: Outcome::Failure,
        reason: "invalid_credentials",
        user_id: None,
        session_id: None,
        identifier_index: None,
        caller: Caller {
            ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
            request_id: "request-1".to_owned(),
            engine: "sync",
            user_agent: "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0".to_owned(),
            device_token: None,
        },
        place: bifrons::services::model::Place { country: "Nigeria".to_owned(), city: "Lagos".to_owned() },
    }
}

fn email_of(user: &User) -> Identifier {
    Identifier::Email(user.email.clone().expect("an address"))
}

fn phone_of(user: &User) -> Identifier {
    Identifier::Phone(user.phone.clone().expect("a number"))
}

async fn insert<P: Ports>(ports: &P, user: &User) -> Inserted {
    ports.store().await.expect("a connection").insert_user(user).await.expect("an answer")
}

async fn inserted<P: Ports>(ports: &P, user: User) -> User {
    assert_eq!(insert(ports, &user).await, Inserted::Yes);
    user
}

async fn opened<P: Ports>(ports: &P, session: Session) -> Session {
    ports.store().await.expect("a connection").insert_session(&session).await.expect("an answer");
    session
}

async fn enqueued<P: Ports>(ports: &P, entry: OutboxEntry) -> OutboxEntry {
    ports.store().await.expect("a connection").enqueue(&entry).await.expect("an answer");
    entry
}

async fn found<P: Ports>(ports: &P, id: UserId) -> Option<User> {
    ports.store().await.expect("a connection").user(id).await.expect("an answer")
}

async fn session_now<P: Ports>(ports: &P, id: SessionId) -> Session {
    let mut store = ports.store().await.expect("a connection");
    store.session_with_user(id).await.expect("an answer").expect("a session").0
}

/// A user has no `Debug` that shows more than its id, so the columns are compared one by one.
#[track_caller]
fn assert_same(read: &User, written: &User) {
    assert_eq!(read.id, written.id);
    assert_eq!(read.email, written.email);
    assert_eq!(read.phone, written.phone);
    assert_eq!(read.password_hash, written.password_hash);
    assert_eq!((read.role, read.auth_provider), (written.role, written.auth_provider));
    assert_eq!(
        (read.is_verified, read.is_active, read.is_contested),
        (written.is_verified, written.is_active, written.is_contested)
    );
    assert_eq!((&read.first_name, &read.last_name), (&written.first_name, &written.last_name));
    assert_eq!((&read.bio, &read.avatar), (&written.bio, &written.avatar));
    assert_eq!(
        (&read.country, &read.state, &read.city, &read.address),
        (&written.country, &written.state, &written.city, &written.address)
    );
    assert_eq!(read.pid, written.pid);
    assert_eq!((read.created_at, read.updated_at), (written.created_at, written.updated_at));
    assert_eq!((read.last_login_at, read.deleted_at), (written.last_login_at, written.deleted_at));
    assert!(read == written);
}

/// Why a unit of work was given up.
#[derive(Debug)]
enum Undone {
    OnPurpose,
    Unavailable,
}

impl From<Unavailable> for Undone {
    fn from(_: Unavailable) -> Self {
        Self::Unavailable
    }
}

/// What each of them promises, whatever it is kept in.
mod stories {
    use super::*;

    pub(super) async fn a_user_is_read_as_it_was_written<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        for written in [
            user(ports),
            unverified(ports),
            User { email: None, is_active: false, is_contested: true, role: Role::Admin, ..user(ports) },
            User { phone: None, auth_provider: AuthProvider::Google, role: Role::Staff, ..user(ports) },
            User { password_changed_at: None, password_hash: None, second_factor_at: None, ..user(ports) },
        ] {
            let written = inserted(ports, written).await;
            assert_same(&found(ports, written.id).await.expect("by id"), &written);
            let mut store = world.twin().store().await.expect("a connection");
            if written.email.is_some() {
                let by_email = store.user_by_identifier(&email_of(&written)).await.expect("an answer");
                assert_same(&by_email.expect("by address"), &written);
                let shouted = Identifier::Email(written.email.clone().expect("an address").to_uppercase());
                assert!(store.user_by_identifier(&shouted).await.expect("an answer").is_some(), "case matters");
            }
            if written.phone.is_some() {
                let by_phone = store.user_by_identifier(&phone_of(&written)).await.expect("an answer");
                assert_same(&by_phone.expect("by number"), &written);
            }
        }
    }

    pub(super) async fn what_is_not_there_is_none<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let nobody = user(ports);
        let nothing = session(ports, &nobody);
        let now = ports.now();
        let mut store = ports.store().await.expect("a connection");
        assert!(store.user(nobody.id).await.expect("an answer").is_none());
        assert!(store.user_by_identifier(&email_of(&nobody)).await.expect("an answer").is_none());
        assert!(store.user_by_identifier(&phone_of(&nobody)).await.expect("an answer").is_none());
        let changes = ProfileChanges { bio: Some("x".to_owned()), ..ProfileChanges::default() };
        assert!(store.update_profile(nobody.id, &changes, now).await.expect("an answer").is_none());
        store.renew_registration(nobody.id, true, now).await.expect("an answer");
        assert!(!store.record_login(&nobody, None, now).await.expect("an answer"));
        assert!(store.session_with_user(nothing.id).await.expect("an answer").is_none());
        assert!(!rotated(&mut store, rotation(&nothing, 0, now, later(now, 9))).await);
        assert!(!store.end_session(nothing.id, EndReason::Logout, now).await.expect("an answer"));
        assert_eq!(store.end_sessions_of(nobody.id, None, EndReason::Logout, now).await.expect("an answer"), []);
        assert_eq!(store.claim(ports.new_id(), now, later(now, 9), 10).await.expect("an answer"), []);
        assert_eq!(
            store.settle(&[ports.new_id()], ports.new_id(), &Settlement::Sent, now).await.expect("an answer"),
            0
        );
        assert_eq!(store.outbox_entries(None, 10).await.expect("an answer"), []);
        assert_eq!(store.revive(None, now).await.expect("an answer"), 0);
        assert_eq!(store.revive(Some(&[]), now).await.expect("an answer"), 0);
        assert_eq!(pending(&mut store, Channel::Mail).await, 0);
        assert_eq!(
            store
                .purge(now, &Before { outbox: now, audit: now, unverified: now, sessions: now })
                .await
                .expect("an answer"),
            0
        );
    }

    pub(super) async fn addresses_and_numbers_are_sealed_and_bound_to_their_row<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let (one, other) = (inserted(ports, user(ports)).await, inserted(ports, user(ports)).await);
        for column in ["email", "email_index", "phone", "phone_index"] {
            let stored = world.value(
                &format!("SELECT lower(group_concat(hex({column}), ',')) AS value FROM users"),
                &format!("SELECT string_agg(encode({column}, 'hex'), ',') AS value FROM users"),
            );
            for clear in [&one.email, &one.phone, &other.email, &other.phone] {
                let clear = clear.as_deref().expect("personal data");
                for spelling in [clear.to_owned(), clear.to_lowercase(), clear.to_uppercase()] {
                    assert!(!stored.contains(&HEXLOWER.encode(spelling.as_bytes())), "{column} shows {spelling}");
                }
            }
        }
        // Somebody who can write to the database must not be able to hand one user's address to another.
        let moved = "UPDATE users SET email = (SELECT email FROM users AS other WHERE other.id <> users.id)";
        world.execute(moved, moved);
        let mut store = ports.store().await.expect("a connection");
        assert!(store.user(one.id).await.is_err(), "a value of another row was read");
    }

    pub(super) async fn an_identifier_and_a_pid_belong_to_one_user<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let first = inserted(ports, user(ports)).await;
        let shouted = first.email.clone().map(|email| email.to_uppercase());
        for taken in [
            User { email: shouted, ..user(ports) },
            User { phone: first.phone.clone(), ..user(ports) },
            User { pid: first.pid.clone(), ..user(ports) },
            User { id: first.id, ..user(ports) },
        ] {
            assert_eq!(insert(ports, &taken).await, Inserted::Taken);
            // A unit of work can go on after it.
            let next = user(ports);
            let done = ports
                .transaction(async |store| {
                    assert_eq!(store.insert_user(&taken).await?, Inserted::Taken);
                    assert_eq!(store.insert_user(&next).await?, Inserted::Yes);
                    Ok::<_, Unavailable>(())
                })
                .await;
            assert!(done.is_ok(), "{done:?}");
            assert!(found(ports, next.id).await.is_some());
        }
        assert_same(&found(ports, first.id).await.expect("the first"), &first);
        // Nobody's address is not one that could be taken.
        for _ in 0..2 {
            inserted(ports, User { email: None, phone: None, ..user(ports) }).await;
        }
    }

    pub(super) async fn of_many_inserts_of_one_identifier_exactly_one_succeeds<P: Adapter>(world: &World<P>) {
        let email = user(&world.ports).email;
        let twin = world.twin();
        let answers = world
            .ports
            .together(20, async |ports, nth| {
                let ports = if nth % 2 == 0 { ports } else { twin.clone() };
                let one = User { email: email.clone(), ..user(&ports) };
                ports.transaction(async |store| store.insert_user(&one).await).await.expect("an answer")
            })
            .await;
        assert_eq!(answers.iter().filter(|answer| **answer == Inserted::Yes).count(), 1);
        assert_eq!(world.count("users"), 1);
    }

    pub(super) async fn a_deleted_user_is_unknown_and_keeps_the_identifier<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let gone = inserted(ports, User { deleted_at: Some(ports.now()), ..unverified(ports) }).await;
        let its_session = opened(ports, session(ports, &gone)).await;
        let now = ports.now();
        let mut store = ports.store().await.expect("a connection");
        assert!(store.user(gone.id).await.expect("an answer").is_none());
        assert!(store.user_by_identifier(&email_of(&gone)).await.expect("an answer").is_none());
        assert!(store.session_with_user(its_session.id).await.expect("an answer").is_none());
        let changes = ProfileChanges { bio: Some("x".to_owned()), ..ProfileChanges::default() };
        assert!(store.update_profile(gone.id, &changes, now).await.expect("an answer").is_none());
        assert!(!store.confirm_user(gone.id, &confirmation(), now).await.expect("an answer"));
        store.renew_registration(gone.id, true, now).await.expect("an answer");
        assert!(!store.record_login(&gone, Some("new"), now).await.expect("an answer"));
        drop(store);
        let again = User { email: gone.email.clone(), ..user(ports) };
        assert_eq!(insert(ports, &again).await, Inserted::Taken);
        let untouched = "SELECT CAST(count(*) AS TEXT) AS value FROM users WHERE password_hash IS NULL
                         AND last_login_at IS NULL AND NOT is_contested AND NOT is_verified AND bio = ''";
        assert_eq!(world.value(untouched, untouched), "1", "something wrote to a deleted user");
    }

    fn confirmation() -> Confirmation {
        Confirmation {
            password_hash: Some("$chosen".to_owned()),
            role: Role::Vendor,
            auth_provider: AuthProvider::Google,
            first_name: "Grace".to_owned(),
            last_name: "Hopper".to_owned(),
        }
    }

    pub(super) async fn a_user_is_confirmed_once<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let waiting = User { is_contested: true, ..unverified(ports) };
        let waiting = inserted(ports, waiting).await;
        let at = later(ports.now(), 5);
        let answers = ports
            .together(10, async |ports, _| {
                let mut store = ports.store().await.expect("a connection");
                store.confirm_user(waiting.id, &confirmation(), at).await.expect("an answer")
            })
            .await;
        assert_eq!(answers.iter().filter(|confirmed| **confirmed).count(), 1);
        let confirmed = found(ports, waiting.id).await.expect("the user");
        let expected = User {
            is_verified: true,
            is_contested: false,
            password_hash: Some("$chosen".to_owned()),
            role: Role::Vendor,
            auth_provider: AuthProvider::Google,
            first_name: "Grace".to_owned(),
            last_name: "Hopper".to_owned(),
            updated_at: at,
            ..waiting
        };
        assert_same(&confirmed, &expected);

        // Without a password of its own it ends up with none.
        let contested = User { password_hash: Some("$other".to_owned()), ..unverified(ports) };
        let contested = inserted(ports, contested).await;
        let without = Confirmation { password_hash: None, ..confirmation() };
        let mut store = ports.store().await.expect("a connection");
        assert!(store.confirm_user(contested.id, &without, at).await.expect("an answer"));
        assert_eq!(store.user(contested.id).await.expect("an answer").expect("the user").password_hash, None);
    }

    pub(super) async fn only_an_unverified_user_can_be_contested<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let (waiting, verified) = (inserted(ports, unverified(ports)).await, inserted(ports, user(ports)).await);
        let at = later(ports.now(), 5);
        let mut store = ports.store().await.expect("a connection");
        store.renew_registration(waiting.id, false, ports.now()).await.expect("an answer");
        assert!(!store.user(waiting.id).await.expect("an answer").expect("the user").is_contested);
        store.renew_registration(waiting.id, true, ports.now()).await.expect("an answer");
        store.renew_registration(waiting.id, false, at).await.expect("an answer");
        store.renew_registration(verified.id, true, at).await.expect("an answer");
        drop(store);
        let expected = User { is_contested: true, updated_at: at, ..waiting };
        assert_same(&found(ports, expected.id).await.expect("the user"), &expected);
        assert_same(&found(ports, verified.id).await.expect("the user"), &verified);
    }

    pub(super) async fn a_profile_changes_only_where_it_is_told_to<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let bystander = inserted(ports, user(ports)).await;
        let mut expected = inserted(ports, user(ports)).await;
        type Field = (fn(&mut ProfileChanges) -> &mut Option<String>, fn(&mut User) -> &mut String);
        let fields: [Field; 8] = [
            (|changes| &mut changes.first_name, |user| &mut user.first_name),
            (|changes| &mut changes.last_name, |user| &mut user.last_name),
            (|changes| &mut changes.bio, |user| &mut user.bio),
            (|changes| &mut changes.avatar, |user| &mut user.avatar),
            (|changes| &mut changes.country, |user| &mut user.country),
            (|changes| &mut changes.state, |user| &mut user.state),
            (|changes| &mut changes.city, |user| &mut user.city),
            (|changes| &mut changes.address, |user| &mut user.address),
        ];
        for (nth, (change, column)) in (1i64..).zip(fields) {
            for new in ["neu ÿ", ""] {
                let mut changes = ProfileChanges::default();
                *change(&mut changes) = Some(new.to_owned());
                *column(&mut expected) = new.to_owned();
                expected.updated_at = later(ports.now(), nth);
                let mut store = ports.store().await.expect("a connection");
                let changed = store.update_profile(expected.id, &changes, expected.updated_at).await;
                assert_same(&changed.expect("an answer").expect("the user"), &expected);
            }
        }
        expected.updated_at = later(ports.now(), 90);
        let mut store = ports.store().await.expect("a connection");
        let same = store.update_profile(expected.id, &ProfileChanges::default(), expected.updated_at).await;
        assert_same(&same.expect("an answer").expect("the user"), &expected);
        drop(store);
        assert_same(&found(ports, bystander.id).await.expect("the other"), &bystander);
    }

    pub(super) async fn a_login_is_noted_and_may_renew_the_hash<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let mut expected = inserted(ports, user(ports)).await;
        for new_hash in [None, Some("$renewed"), None] {
            let at = ports.now();
            let mut store = ports.store().await.expect("a connection");
            assert!(store.record_login(&expected, new_hash, at).await.expect("an answer"));
            let stale = User { password_hash: Some("$changed meanwhile".to_owned()), ..expected.clone() };
            assert!(!store.record_login(&stale, Some("$lost"), at).await.expect("an answer"));
            for second_factor_at in [None, Some(later(at, 5))] {
                let stale = User { second_factor_at, ..expected.clone() };
                assert!(!store.record_login(&stale, Some("$lost"), at).await.expect("an answer"));
            }
            drop(store);
            expected.last_login_at = Some(at);
            expected.password_hash = new_hash.map(str::to_owned).or(expected.password_hash);
            assert_same(&found(ports, expected.id).await.expect("the user"), &expected);
        }
    }

    pub(super) async fn a_second_factor_is_marked_where_nothing_has_changed<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let bystander = inserted(ports, user(ports)).await;
        let mut expected =
            inserted(ports, User { second_factor_at: None, password_changed_at: None, ..user(ports) }).await;
        for since in [Some(ports.now()), Some(later(ports.now(), 1)), None, Some(later(ports.now(), 2))] {
            let at = later(expected.updated_at, 10);
            let mut store = ports.store().await.expect("a connection");
            let other = expected.second_factor_at.map_or(Some(later(at, 7)), |_| None);
            for stale in [
                User { second_factor_at: other, ..expected.clone() },
                User { password_changed_at: Some(at), ..expected.clone() },
            ] {
                assert!(!store.mark_second_factor(&stale, since, at).await.expect("an answer"));
            }
            assert!(store.mark_second_factor(&expected, since, at).await.expect("an answer"));
            drop(store);
            (expected.second_factor_at, expected.updated_at) = (since, at);
            assert_same(&found(&world.twin(), expected.id).await.expect("the user"), &expected);
        }
        assert_same(&found(ports, bystander.id).await.expect("the other"), &bystander);
        let now = ports.now();
        let mut store = ports.store().await.expect("a connection");
        for gone in [User { is_active: false, ..user(ports) }, User { deleted_at: Some(now), ..user(ports) }] {
            assert_eq!(store.insert_user(&gone).await.expect("an answer"), Inserted::Yes);
            assert!(!store.mark_second_factor(&gone, None, now).await.expect("an answer"));
        }
    }

    pub(super) async fn an_authenticator_and_recovery_codes_are_sealed_and_spent_once<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let (ada, grace) = (inserted(ports, user(ports)).await, inserted(ports, user(ports)).await);
        let factor = TotpFactor { last_step: 7, ..TotpFactor::new(TotpSecret::new(random_bytes())) };
        let digests = [random_bytes::<32>(), random_bytes::<32>()];
        let mut store = ports.store().await.expect("a connection");
        assert!(store.totp(ada.id).await.expect("an answer").is_none());
        for owner in [&ada, &grace] {
            store.insert_totp(owner.id, &factor, ports.now()).await.expect("an answer");
            store.replace_recovery_codes(owner.id, &digests).await.expect("an answer");
        }
        assert!(store.insert_totp(ada.id, &factor, ports.now()).await.is_err(), "one at most");
        drop(store);
        let read = async || {
            let mut store = world.twin().store().await.expect("a connection");
            let factor = store.totp(ada.id).await.expect("an answer").expect("an authenticator");
            (factor.secret.to_base32(), factor.last_step, store.recovery_codes(ada.id).await.expect("an answer").len())
        };
        assert_eq!(read().await, (factor.secret.to_base32(), 7, 2));
        let is_sealed = format!(
            "SELECT CAST(count(*) AS TEXT) AS value FROM totp_factors WHERE CAST(secret AS TEXT) LIKE '%{}%'",
            factor.secret.to_base32()
        );
        let is_sealed_in_postgres = is_sealed.replace("CAST(secret AS TEXT)", "encode(secret, 'escape')");
        assert_eq!(world.value(&is_sealed, &is_sealed_in_postgres), "0");

        let twin = world.twin();
        let advanced = ports
            .together(20, async |ports, nth| {
                let ports = if nth % 2 == 0 { ports } else { twin.clone() };
                ports.transaction(async |store| store.advance_totp(ada.id, 8).await).await.expect("an answer")
            })
            .await;
        assert_eq!(advanced.iter().filter(|is_first| **is_first).count(), 1);
        let spent = ports
            .together(20, async |ports, nth| {
                let (ports, now) = (if nth % 2 == 0 { ports } else { twin.clone() }, twin.now());
                let spend = async |store: &mut P::Store| store.spend_recovery_code(ada.id, &digests[0], now).await;
                ports.transaction(spend).await.expect("an answer")
            })
            .await;
        assert_eq!(spent.iter().filter(|is_first| **is_first).count(), 1);
        assert_eq!(read().await, (factor.secret.to_base32(), 8, 1));
        let mut store = ports.store().await.expect("a connection");
        assert!(!store.advance_totp(ada.id, 7).await.expect("an answer"), "an earlier step");
        assert!(!store.spend_recovery_code(ada.id, &random_bytes::<32>(), ports.now()).await.expect("an answer"));
        assert_eq!(store.recovery_codes(ada.id).await.expect("an answer"), [digests[1].to_vec()]);
        store.replace_recovery_codes(ada.id, &[]).await.expect("an answer");
        store.remove_totp(ada.id).await.expect("an answer");
        assert!(store.totp(ada.id).await.expect("an answer").is_none());
        assert!(store.recovery_codes(ada.id).await.expect("an answer").is_empty());
        assert_eq!(store.recovery_codes(grace.id).await.expect("an answer").len(), 2, "another's stay");
        assert_eq!(store.totp(grace.id).await.expect("an answer").expect("hers").last_step, 7);
    }

    pub(super) async fn a_password_is_set_where_it_is_the_one_that_was_seen<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let bystander = inserted(ports, user(ports)).await;
        let without = User { password_hash: None, password_changed_at: None, ..user(ports) };
        for mut expected in [user(ports), without] {
            expected = inserted(ports, expected).await;
            for (nth, new_hash) in ["$first", "$second"].into_iter().enumerate() {
                let at = later(ports.now(), 1 + i64::try_from(nth).expect("a small number"));
                let mut store = ports.store().await.expect("a connection");
                let opposite = expected.password_hash.is_none().then(String::new);
                for password_hash in [Some("$changed meanwhile".to_owned()), opposite] {
                    let stale = User { password_hash, ..expected.clone() };
                    assert!(!store.set_password(&stale, "$lost", at).await.expect("an answer"));
                }
                assert!(store.set_password(&expected, new_hash, at).await.expect("an answer"));
                drop(store);
                expected.password_hash = Some(new_hash.to_owned());
                (expected.password_changed_at, expected.updated_at) = (Some(at), at);
                assert_same(&found(&world.twin(), expected.id).await.expect("the user"), &expected);
            }
        }
        assert_same(&found(ports, bystander.id).await.expect("the other"), &bystander);

        let now = ports.now();
        let mut store = ports.store().await.expect("a connection");
        assert!(!store.set_password(&user(ports), "$nobody's", now).await.expect("an answer"));
        for gone in [
            User { is_active: false, ..user(ports) },
            User { deleted_at: Some(now), ..user(ports) },
            User { deleted_at: Some(now), password_hash: None, ..user(ports) },
        ] {
            assert_eq!(store.insert_user(&gone).await.expect("an answer"), Inserted::Yes);
            assert!(!store.set_password(&gone, "$lost", now).await.expect("an answer"));
        }
        let lost = "SELECT CAST(count(*) AS TEXT) AS value FROM users WHERE password_hash = '$lost'";
        assert_eq!(world.value(lost, lost), "0");
    }

    pub(super) async fn of_many_new_passwords_at_once_exactly_one_is_set<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let seen = inserted(ports, user(ports)).await;
        let twin = world.twin();
        let answers = ports
            .together(20, async |ports, nth| {
                let ports = if nth % 2 == 0 { ports } else { twin.clone() };
                let (hash, now) = (format!("$hash {nth}"), ports.now());
                let set = ports.transaction(async |store| store.set_password(&seen, &hash, now).await).await;
                (hash, set.expect("an answer"))
            })
            .await;
        let set: Vec<&String> = answers.iter().filter(|(_, set)| *set).map(|(hash, _)| hash).collect();
        assert_eq!(set.len(), 1);
        assert_eq!(found(ports, seen.id).await.expect("the user").password_hash.as_ref(), set.first().copied());
    }

    pub(super) async fn an_account_elsewhere_belongs_to_one_user_and_a_user_has_one_of_each_provider<P: Adapter>(
        world: &World<P>,
    ) {
        let ports = &world.ports;
        let (ada, grace) = (inserted(ports, user(ports)).await, inserted(ports, user(ports)).await);
        let (one, two, three) = ([1; 32], [2; 32], [3; 32]);
        let google = AuthProvider::Google;
        let mut store = ports.store().await.expect("a connection");
        assert!(store.user_by_identity(&one).await.expect("an answer").is_none());
        assert!(!store.has_identity(ada.id, google).await.expect("an answer"));
        for (index, user, expected) in [
            (one, &ada, Inserted::Yes),
            (one, &ada, Inserted::Taken),
            (one, &grace, Inserted::Taken),
            (two, &ada, Inserted::Taken),
            (two, &grace, Inserted::Yes),
        ] {
            let inserted = store.insert_identity(&index, user.id, google, ports.now()).await.expect("an answer");
            assert_eq!(inserted, expected, "{index:?}");
        }
        let mut twin = world.twin().store().await.expect("a connection");
        assert!(twin.user_by_identity(&one).await.expect("an answer").is_some_and(|found| found.id == ada.id));
        assert!(twin.user_by_identity(&two).await.expect("an answer").is_some_and(|found| found.id == grace.id));
        assert!(twin.has_identity(ada.id, google).await.expect("an answer"));
        assert!(!twin.has_identity(ada.id, AuthProvider::Email).await.expect("an answer"));
        twin.forget_identities(ada.id).await.expect("an answer");
        assert!(store.user_by_identity(&one).await.expect("an answer").is_none());
        assert!(store.user_by_identity(&two).await.expect("an answer").is_some());
        let gone = inserted(ports, User { deleted_at: Some(ports.now()), ..user(ports) }).await;
        let linked = store.insert_identity(&three, gone.id, google, ports.now()).await.expect("an answer");
        assert_eq!(linked, Inserted::Yes);
        assert!(store.user_by_identity(&three).await.expect("an answer").is_none(), "a deleted user is unknown");
    }

    pub(super) async fn of_many_links_of_one_account_elsewhere_exactly_one_is_made<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let ada = inserted(ports, user(ports)).await;
        let answers = ports
            .together(20, async |ports, _| {
                let mut store = ports.store().await.expect("a connection");
                store.insert_identity(&[9; 32], ada.id, AuthProvider::Google, ports.now()).await.expect("an answer")
            })
            .await;
        assert_eq!(answers.iter().filter(|answer| **answer == Inserted::Yes).count(), 1);
        assert_eq!(world.count("identities"), 1);
    }

    pub(super) async fn the_greatest_cost_of_imported_hashes_is_kept_while_there_are_any<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let sorted = async || {
            let mut store = world.twin().store().await.expect("a connection");
            let mut rows = store.imported_hashes().await.expect("an answer");
            rows.sort();
            rows
        };
        assert_eq!(sorted().await, []);
        let mut store = ports.store().await.expect("a connection");
        for (scheme, work) in [
            ("pbkdf2_sha256", 36_000),
            ("pbkdf2_sha256", 1_500_000),
            ("pbkdf2_sha256", 870_000),
            ("scrypt$n=16384,r=8,p=1", 1),
            ("bcrypt", i64::MAX),
        ] {
            store.note_imported_hash(scheme, work).await.expect("an answer");
        }
        let noted = [
            ("bcrypt".to_owned(), i64::MAX),
            ("pbkdf2_sha256".to_owned(), 1_500_000),
            ("scrypt$n=16384,r=8,p=1".to_owned(), 1),
        ];
        assert_eq!(sorted().await, noted);
        let undone = ports
            .transaction(async |store| {
                store.note_imported_hash("pbkdf2_sha1", 1).await?;
                Err::<(), _>(Undone::OnPurpose)
            })
            .await;
        assert!(undone.is_err());
        assert_eq!(sorted().await, noted);

        let old = later(ports.now(), -1000);
        let before = Before { outbox: old, audit: old, unverified: old, sessions: old };
        let imported = User { password_hash: Some("pbkdf2_sha256$36000$salt$AAAA".to_owned()), ..user(ports) };
        let imported = inserted(ports, imported).await;
        inserted(ports, user(ports)).await;
        inserted(ports, User { password_hash: None, ..user(ports) }).await;
        assert_eq!(store.purge(ports.now(), &before).await.expect("an answer"), 0);
        assert_eq!(sorted().await, noted, "one of them is still to be replaced");
        assert!(store.record_login(&imported, Some("$argon2id$v=19$x"), ports.now()).await.expect("an answer"));
        assert_eq!(store.purge(ports.now(), &before).await.expect("an answer"), 3);
        assert_eq!(sorted().await, []);
    }

    pub(super) async fn a_session_is_read_as_it_was_written<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let owner = inserted(ports, user(ports)).await;
        let end = |reason| Session {
            ended_at: Some(ports.now()),
            end_reason: Some(reason),
            generation: i64::MAX,
            ..session(ports, &owner)
        };
        for written in [
            session(ports, &owner),
            end(EndReason::Logout),
            end(EndReason::LogoutAll),
            end(EndReason::TokenReused),
            end(EndReason::Revoked),
            end(EndReason::PasswordChanged),
            end(EndReason::PasswordReset),
            end(EndReason::Displaced),
            Session { place: bifrons::services::model::Place::default(), ..session(ports, &owner) },
            Session { expires_at: later(ports.now(), -1), ..session(ports, &owner) },
        ] {
            let written = opened(ports, written).await;
            let mut store = world.twin().store().await.expect("a connection");
            let read = store.session_with_user(written.id).await.expect("an answer");
            let (read, its_user) = read.expect("the session");
            assert_eq!(read, written);
            assert_same(&its_user, &owner);
        }
        let mut store = ports.store().await.expect("a connection");
        let other = inserted(ports, user(ports)).await;
        let (one, two) = (opened(ports, session(ports, &owner)).await, opened(ports, session(ports, &other)).await);
        let nobodys = session(ports, &owner).id;
        let gone = inserted(ports, User { deleted_at: Some(ports.now()), ..user(ports) }).await;
        let gones = opened(ports, session(ports, &gone)).await.id;
        let alive = |id: &SessionId| *id == one.id || *id == two.id;
        for wanted in [
            vec![one.id],
            vec![nobodys],
            vec![gones],
            vec![gones, one.id],
            vec![two.id, nobodys, one.id, gones, two.id],
            Vec::new(),
        ] {
            let found = store.sessions_with_users(&wanted).await.expect("an answer");
            let found: Vec<_> = found.into_iter().map(|found| found.expect("readable")).collect();
            let ids: Vec<_> = found.iter().map(|found| found.as_ref().map(|(session, _)| session.id)).collect();
            let expected: Vec<_> = wanted.iter().map(|id| Some(*id).filter(alive)).collect();
            assert_eq!(ids, expected);
            for (session, its_user) in found.into_iter().flatten() {
                assert_eq!(session, if session.id == one.id { one.clone() } else { two.clone() });
                assert_same(&its_user, if session.id == one.id { &owner } else { &other });
            }
        }
        let orphan = session(ports, &user(ports));
        assert!(store.insert_session(&orphan).await.is_err(), "a session of nobody was written");
    }

    // Of a session that is used and open no matter since when.
    fn rotation(session: &Session, from: i64, at: OffsetDateTime, expires_at: OffsetDateTime) -> Rotation {
        let living = Living { at, used_after: OffsetDateTime::UNIX_EPOCH, opened_after: OffsetDateTime::UNIX_EPOCH };
        Rotation { id: session.id, user: session.user_id, from, at, living, expires_at, absolute: None }
    }

    async fn rotated<S: Sessions>(store: &mut S, rotation: Rotation) -> bool {
        let rotated = one(store, rotation).await;
        assert!(rotated.is_none_or(|rotated| rotated == Rotated { at: rotation.at, expires_at: rotation.expires_at }));
        rotated.is_some()
    }

    async fn one<S: Sessions>(store: &mut S, rotation: Rotation) -> Option<Rotated> {
        let rotated = store.rotate_sessions(&[rotation]).await.expect("an answer");
        assert_eq!(rotated.len(), 1);
        rotated.into_iter().next().flatten()
    }

    pub(super) async fn many_sessions_move_on_in_one_commit_each_for_itself<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let (owner, other) = (inserted(ports, user(ports)).await, inserted(ports, user(ports)).await);
        let mut sessions = Vec::new();
        for nth in 0..9 {
            sessions.push(opened(ports, session(ports, if nth % 2 == 0 { &owner } else { &other })).await);
        }
        let (at, until) = (later(ports.now(), 100), later(ports.now(), 9000));
        let mut store = ports.store().await.expect("a connection");
        let ended = sessions.get(4).expect("a session").id;
        assert!(store.end_session(ended, EndReason::Logout, at).await.expect("an answer"));
        // The fourth was ended, the sixth is in another generation, and the eighth is not this user's.
        let asked = |(nth, it): (usize, &Session)| {
            let good = rotation(it, 0, at, until);
            match nth {
                6 => Rotation { from: 1, ..good },
                7 => Rotation { user: owner.id, ..good },
                8 => Rotation { at: later(at, -5), ..good },
                _ => good,
            }
        };
        let mut rotations: Vec<_> = sessions.iter().enumerate().map(asked).collect();
        // Named twice, it moves on once, and the first is told.
        rotations.push(rotation(sessions.first().expect("a session"), 0, at, until));
        let rotated = store.rotate_sessions(&rotations).await.expect("an answer");
        let moved: Vec<_> = rotated.iter().map(Option::is_some).collect();
        assert_eq!(moved, [true, true, true, true, false, true, false, false, true, false]);
        // All at the same moment, the latest.
        assert!(rotated.iter().flatten().all(|rotated| *rotated == Rotated { at, expires_at: until }));
        for (before, moved) in sessions.iter().zip(moved) {
            let after = session_now(ports, before.id).await;
            assert_eq!((after.generation, after.rotated_at == at), (i64::from(moved), moved));
        }
        assert_eq!(store.rotate_sessions(&[]).await.expect("an answer"), []);
    }

    pub(super) async fn a_session_moves_on_only_as_long_as_it_may_live_and_its_user_is_active<P: Adapter>(
        world: &World<P>,
    ) {
        let ports = &world.ports;
        let owner = inserted(ports, user(ports)).await;
        let it = opened(ports, session(ports, &owner)).await;
        let (at, until) = (later(it.created_at, 100), later(it.created_at, 9000));
        let good = rotation(&it, 0, at, until);
        let mut store = ports.store().await.expect("a connection");
        let living = |used_after, opened_after| Living { at, used_after, opened_after };
        for refused in [
            Rotation { user: user(ports).id, ..good },
            Rotation { living: living(it.last_used_at, OffsetDateTime::UNIX_EPOCH), ..good },
            Rotation { living: living(OffsetDateTime::UNIX_EPOCH, it.created_at), ..good },
        ] {
            assert_eq!(one(&mut store, refused).await, None);
        }
        assert_eq!(session_now(ports, it.id).await, it);
        // It runs out at the earlier of both.
        let brief = Rotation { absolute: Some(Duration::from_secs(5000)), ..good };
        let end = later(it.created_at, 5000);
        assert_eq!(one(&mut store, brief).await, Some(Rotated { at, expires_at: end }));
        assert_eq!(session_now(ports, it.id).await.expires_at, end);
        let long = Rotation { from: 1, absolute: Some(Duration::from_secs(10_000)), ..good };
        assert_eq!(one(&mut store, long).await, Some(Rotated { at, expires_at: until }));
        let next = Rotation { from: 2, ..good };
        for change in ["is_active = false", "is_active = true, deleted_at = created_at"] {
            let statement = format!("UPDATE users SET {change} WHERE pid = '{}'", owner.pid);
            world.execute(&statement, &statement);
            assert_eq!(one(&mut store, next).await, None, "{change}");
        }
        let statement = format!("UPDATE users SET deleted_at = NULL WHERE pid = '{}'", owner.pid);
        world.execute(&statement, &statement);
        assert_eq!(one(&mut store, next).await, Some(Rotated { at, expires_at: until }));
    }

    pub(super) async fn a_session_moves_on_from_its_present_generation_only<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let owner = inserted(ports, user(ports)).await;
        let bystander = opened(ports, session(ports, &owner)).await;
        let before = opened(ports, session(ports, &owner)).await;
        let (at, until) = (ports.now(), later(ports.now(), 9000));
        let mut store = ports.store().await.expect("a connection");
        for wrong in [-1, 1, 2] {
            assert!(!rotated(&mut store, rotation(&before, wrong, at, until)).await);
        }
        assert!(rotated(&mut store, rotation(&before, 0, at, until)).await);
        let after = Session { generation: 1, rotated_at: at, last_used_at: at, expires_at: until, ..before.clone() };
        assert_eq!(session_now(ports, before.id).await, after);
        assert!(!rotated(&mut store, rotation(&before, 0, at, until)).await, "a spent generation");
        assert!(rotated(&mut store, rotation(&before, 1, at, until)).await);
        // Neither one that has run out, to the microsecond, nor one that was ended.
        let last = later(at, 10);
        assert!(rotated(&mut store, rotation(&before, 2, at, last)).await);
        assert!(!rotated(&mut store, rotation(&before, 3, last, until)).await, "it has run out");
        let just_before = last - Duration::from_micros(1);
        assert!(rotated(&mut store, rotation(&before, 3, just_before, until)).await);
        assert!(store.end_session(before.id, EndReason::Logout, at).await.expect("an answer"));
        assert!(!rotated(&mut store, rotation(&before, 4, at, until)).await, "it was ended");
        assert_eq!(session_now(ports, bystander.id).await, bystander);
    }

    pub(super) async fn a_known_session_is_as_this_process_left_it_and_as_another_did_a_second_ago<P: Adapter>(
        world: &World<P>,
    ) {
        let (ports, twin) = (&world.ports, world.twin());
        let owner = inserted(ports, user(ports)).await;
        let it = opened(ports, session(ports, &owner)).await;
        let known = async |ports: &P| ports.known_session(it.id, owner.id).await.expect("an answer");
        let nobodys = ports.known_session(SessionId(ports.new_id()), owner.id).await.expect("an answer");
        assert!(nobodys.is_none());
        for ports in [ports, &twin] {
            let (first, second) = (known(ports).await.expect("a session"), known(ports).await.expect("a session"));
            assert_eq!(*first.session, it);
            assert_same(&first.user, &owner);
            // On a busy machine the second look may come too late.
            let is_late = first.good_for(Instant::now()).is_zero();
            assert!(Arc::ptr_eq(&first.session, &second.session) || is_late);
        }
        let changes = ProfileChanges { bio: Some("new".to_owned()), ..ProfileChanges::default() };
        let mut store = ports.store().await.expect("a connection");
        assert!(store.update_profile(owner.id, &changes, ports.now()).await.expect("an answer").is_some());
        drop(store);
        assert_eq!(known(ports).await.expect("a session").user.bio, "new", "this process has made the change");
        let undone = ports
            .transaction(async |store| {
                assert!(store.end_session(it.id, EndReason::Revoked, ports.now()).await?);
                Err::<(), _>(Unavailable::database("on purpose"))
            })
            .await;
        assert!(undone.is_err());
        assert_eq!(known(ports).await.expect("a session").session.ended_at, None);
        let done = ports.transaction(async |store| store.end_session(it.id, EndReason::Revoked, ports.now()).await);
        assert!(done.await.expect("an answer"));
        let ended_at = Instant::now();
        assert!(known(ports).await.expect("a session").session.ended_at.is_some(), "this process has ended it");
        loop {
            let asked_at = Instant::now();
            let session = Arc::clone(&known(&twin).await.expect("a session").session);
            if session.ended_at.is_some() {
                break;
            }
            assert!(asked_at - ended_at < Duration::from_secs(1), "another process still thinks that it lives");
        }
    }

    pub(super) async fn of_fifty_rotations_from_one_generation_exactly_one_succeeds<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let owner = inserted(ports, user(ports)).await;
        let it = opened(ports, session(ports, &owner)).await;
        let twin = world.twin();
        let until = later(ports.now(), 9000);
        for generation in 0..3 {
            let answers = ports
                .together(50, async |ports, nth| {
                    let ports = if nth % 2 == 0 { ports } else { twin.clone() };
                    let mut store = ports.store().await.expect("a connection");
                    rotated(&mut store, rotation(&it, generation, ports.now(), until)).await
                })
                .await;
            assert_eq!(answers.iter().filter(|rotated| **rotated).count(), 1);
            assert_eq!(session_now(ports, it.id).await.generation, generation + 1);
        }
    }

    pub(super) async fn a_session_ends_once<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let owner = inserted(ports, user(ports)).await;
        let (it, other) = (opened(ports, session(ports, &owner)).await, opened(ports, session(ports, &owner)).await);
        let at = ports.now();
        let answers = ports
            .together(10, async |ports, nth| {
                let why = if nth % 2 == 0 { EndReason::Logout } else { EndReason::TokenReused };
                let mut store = ports.store().await.expect("a connection");
                (why, store.end_session(it.id, why, at).await.expect("an answer"))
            })
            .await;
        let ended: Vec<EndReason> = answers.iter().filter(|(_, ended)| *ended).map(|(why, _)| *why).collect();
        assert_eq!(ended.len(), 1);
        let after = session_now(ports, it.id).await;
        assert_eq!((after.ended_at, after.end_reason), (Some(at), ended.first().copied()));
        assert_eq!(session_now(ports, other.id).await, other);
    }

    pub(super) async fn every_living_session_of_one_user_ends<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let (owner, other) = (inserted(ports, user(ports)).await, inserted(ports, user(ports)).await);
        let earlier = later(ports.now(), -1);
        let ended =
            Session { ended_at: Some(earlier), end_reason: Some(EndReason::TokenReused), ..session(ports, &owner) };
        let ended = opened(ports, ended).await;
        let mut living =
            [opened(ports, session(ports, &owner)).await.id, opened(ports, session(ports, &owner)).await.id];
        living.sort();
        let bystander = opened(ports, session(ports, &other)).await;
        let at = ports.now();
        let mut store = ports.store().await.expect("a connection");
        let mut answer = store.end_sessions_of(owner.id, None, EndReason::LogoutAll, at).await.expect("an answer");
        answer.sort();
        assert_eq!(answer, living);
        for id in living {
            let after = session_now(ports, id).await;
            assert_eq!((after.ended_at, after.end_reason), (Some(at), Some(EndReason::LogoutAll)));
        }
        assert_eq!(session_now(ports, ended.id).await, ended);
        assert_eq!(session_now(ports, bystander.id).await, bystander);
        assert_eq!(store.end_sessions_of(owner.id, None, EndReason::Logout, at).await.expect("an answer"), []);
    }

    pub(super) async fn every_living_session_but_one_ends<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let (owner, other) = (inserted(ports, user(ports)).await, inserted(ports, user(ports)).await);
        let kept = opened(ports, session(ports, &owner)).await;
        let mut ended =
            [opened(ports, session(ports, &owner)).await.id, opened(ports, session(ports, &owner)).await.id];
        ended.sort();
        let bystander = opened(ports, session(ports, &other)).await;
        let at = ports.now();
        let mut store = ports.store().await.expect("a connection");
        let why = EndReason::PasswordChanged;
        let mut answer = store.end_sessions_of(owner.id, Some(kept.id), why, at).await.expect("an answer");
        answer.sort();
        assert_eq!(answer, ended);
        for id in ended {
            let after = session_now(ports, id).await;
            assert_eq!((after.ended_at, after.end_reason), (Some(at), Some(why)));
        }
        assert_eq!(session_now(ports, kept.id).await, kept);
        assert_eq!(session_now(ports, bystander.id).await, bystander);
        assert_eq!(store.end_sessions_of(owner.id, Some(kept.id), why, at).await.expect("an answer"), []);
        // Another user's session spares none.
        let spared = store.end_sessions_of(owner.id, Some(bystander.id), why, at).await.expect("an answer");
        assert_eq!(spared, [kept.id]);
    }

    pub(super) async fn the_use_of_a_session_is_noted_once_the_last_note_is_old<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let owner = inserted(ports, user(ports)).await;
        let (it, bystander) =
            (opened(ports, session(ports, &owner)).await, opened(ports, session(ports, &owner)).await);
        let at = later(ports.now(), 100);
        let mut store = ports.store().await.expect("a connection");
        for before in [later(it.last_used_at, -1), it.last_used_at] {
            store.touch_session(it.id, before, at).await.expect("an answer");
            assert_eq!(session_now(ports, it.id).await, it, "noted again too soon");
        }
        let before = it.last_used_at + Duration::from_micros(1);
        store.touch_session(it.id, before, at).await.expect("an answer");
        assert_eq!(session_now(ports, it.id).await, Session { last_used_at: at, ..it.clone() });
        assert_eq!(session_now(ports, bystander.id).await, bystander);
        store.touch_session(session(ports, &owner).id, at, at).await.expect("an answer of nothing");
    }

    pub(super) async fn living_sessions_are_counted_and_listed_in_pages<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let (owner, other) = (inserted(ports, user(ports)).await, inserted(ports, user(ports)).await);
        let now = ports.now();
        let living = Living { at: now, used_after: later(now, -1000), opened_after: later(now, -5000) };
        let moment = Duration::from_micros(1);
        let base = Session { created_at: later(now, -400), last_used_at: later(now, -25), ..session(ports, &owner) };
        let one = || Session { id: SessionId(ports.new_id()), ..base.clone() };
        // At each limit, and one moment on its better side.
        for not_living in [
            Session { ended_at: Some(now), end_reason: Some(EndReason::Revoked), ..one() },
            Session { expires_at: living.at, ..one() },
            Session { last_used_at: living.used_after, ..one() },
            Session { created_at: living.opened_after, ..one() },
            Session { user_id: other.id, ..one() },
        ] {
            opened(ports, not_living).await;
        }
        let mut expected = Vec::new();
        for alive in [
            Session { expires_at: living.at + moment, ..one() },
            Session { last_used_at: living.used_after + moment, created_at: later(now, -2000), ..one() },
            Session { created_at: living.opened_after + moment, ..one() },
            // Of one moment, told apart by their ids.
            one(),
            one(),
            Session { created_at: later(now, -1), ..one() },
        ] {
            expected.push(opened(ports, alive).await);
        }
        expected.sort_by_key(|session| std::cmp::Reverse((session.created_at, session.id)));
        let mut store = ports.store().await.expect("a connection");
        for limit in [1_i64, 2, 4, 6, 100] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = Page { limit, after };
                let listed = store.sessions_of(owner.id, &living, page).await.expect("an answer");
                assert_eq!(listed.count, 6, "of the whole list");
                assert!(i64::try_from(listed.items.len()).expect("a number") <= limit);
                let Some(last) = listed.items.last() else { break };
                after = Some((last.created_at, last.id.0));
                seen.extend(listed.items);
            }
            assert_eq!(seen, expected, "in pages of {limit}");
        }
        let nobody = UserId(ports.new_id());
        let listed = store.sessions_of(nobody, &living, Page { limit: 9, after: None }).await.expect("an answer");
        assert_eq!((listed.count, listed.items), (0, Vec::new()));
    }

    pub(super) async fn a_letter_belongs_to_one_owner_until_its_lease_ends<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let written = enqueued(ports, letter(ports)).await;
        let (first, second) = (ports.new_id(), ports.new_id());
        let (now, lease_end) = (ports.now(), later(ports.now(), 60));
        let mut store = ports.store().await.expect("a connection");
        let claimed = store.claim(first, now, lease_end, 10).await.expect("an answer");
        let expected = OutboxEntry { attempts: 1, available_at: lease_end, ..written.clone() };
        assert_eq!(claimed, [expected]);
        let just_before = lease_end - Duration::from_micros(1);
        assert_eq!(store.claim(second, just_before, later(now, 999), 10).await.expect("an answer"), []);
        let handed_over = store.claim(second, lease_end, later(lease_end, 60), 10).await.expect("an answer");
        assert_eq!(handed_over.iter().map(|one| one.attempts).collect::<Vec<_>>(), [2]);
        // The first owner comes back late.
        assert_eq!(store.settle(&[written.id], first, &Settlement::Sent, now).await.expect("an answer"), 0);
        let failed = Settlement::Dead { error: "late".to_owned() };
        assert_eq!(store.settle(&[written.id], first, &failed, now).await.expect("an answer"), 0);
        assert_eq!(pending(&mut store, Channel::Mail).await, 1);
        assert_eq!(store.settle(&[written.id], second, &Settlement::Sent, now).await.expect("an answer"), 1);
        assert_eq!(
            store.settle(&[written.id], second, &Settlement::Sent, now).await.expect("an answer"),
            0,
            "settled twice"
        );
        assert_eq!(pending(&mut store, Channel::Mail).await, 0);
    }

    pub(super) async fn claims_side_by_side_share_no_letter<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let mut written = Vec::new();
        for _ in 0..60 {
            written.push(enqueued(ports, letter(ports)).await.id);
        }
        let twin = world.twin();
        let claims = ports
            .together(12, async |ports, nth| {
                let ports = if nth % 2 == 0 { ports } else { twin.clone() };
                let (owner, now) = (ports.new_id(), ports.now());
                let mut mine = Vec::new();
                // SKIP LOCKED may pass over a letter; its holder has it then.
                for _ in 0..20 {
                    let mut store = ports.store().await.expect("a connection");
                    let some = store.claim(owner, now, later(now, 60), 2).await.expect("an answer");
                    assert!(some.len() <= 2, "more than were asked for");
                    mine.extend(some.into_iter().map(|entry| entry.id));
                }
                mine
            })
            .await;
        let mut claimed: Vec<Uuid> = claims.concat();
        claimed.sort();
        written.sort();
        assert_eq!(claimed, written);
    }

    pub(super) async fn a_letter_is_sent_tried_again_or_given_up<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let (now, owner) = (ports.now(), ports.new_id());
        let listed = async |id: Uuid| {
            let mut store = ports.store().await.expect("a connection");
            let entries = store.outbox_entries(None, 100).await.expect("an answer");
            entries.into_iter().find(|entry| entry.id == id).expect("the letter")
        };
        let settled = async |settlement: Settlement| {
            let written = enqueued(ports, letter(ports)).await;
            let mut store = ports.store().await.expect("a connection");
            let claimed = store.claim(owner, now, later(now, 60), 10).await.expect("an answer");
            assert!(claimed.iter().any(|entry| entry.id == written.id));
            assert_eq!(store.settle(&[written.id], owner, &settlement, now).await.expect("an answer"), 1);
            drop(store);
            (written.clone(), listed(written.id).await)
        };

        let (written, sent) = settled(Settlement::Sent).await;
        assert_eq!((sent.state, sent.attempts, sent.last_error.as_str()), (OutboxState::Sent, 1, ""));
        assert_eq!(sent.payload, Vec::<u8>::new(), "what was sent need not be kept");
        assert_eq!((sent.created_at, sent.expires_at), (written.created_at, written.expires_at));

        let again = later(now, 30);
        let (written, retried) = settled(Settlement::Retry { at: again, error: "451 later".to_owned() }).await;
        assert_eq!((retried.state, retried.available_at), (OutboxState::Pending, again));
        assert_eq!((retried.payload, retried.last_error.as_str()), (written.payload, "451 later"));
        let mut store = ports.store().await.expect("a connection");
        assert_eq!(store.claim(owner, now, later(now, 60), 10).await.expect("an answer"), [], "before its time");
        assert_eq!(store.claim(owner, again, later(again, 60), 10).await.expect("an answer").len(), 1);
        drop(store);

        let (written, dead) = settled(Settlement::Dead { error: "550 never".to_owned() }).await;
        assert_eq!((dead.state, dead.last_error.as_str()), (OutboxState::Dead, "550 never"));
        assert_eq!(dead.payload, written.payload, "a dead letter can be sent again");
        let mut store = ports.store().await.expect("a connection");
        let much_later = later(now, 99_999);
        let claimed = store.claim(owner, much_later, much_later, 10).await.expect("an answer");
        assert!(claimed.iter().all(|entry| entry.id != dead.id), "a dead letter was claimed");
    }

    pub(super) async fn letters_are_claimed_by_due_time_and_listed_by_age<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let now = ports.now();
        let due = |due: i64, age: i64| OutboxEntry {
            available_at: later(now, -due),
            created_at: later(now, -age),
            ..letter(ports)
        };
        let late = enqueued(ports, due(1, 30)).await.id;
        let early = enqueued(ports, due(20, 20)).await.id;
        let between = enqueued(ports, due(10, 10)).await.id;
        let not_yet = enqueued(ports, due(-5, 40)).await.id;
        let text = OutboxEntry { channel: Channel::Sms, ..due(-50, 50) };
        let text = enqueued(ports, text).await.id;
        let event = OutboxEntry { channel: Channel::Event, state: OutboxState::Published, ..due(99, 99) };
        let event = enqueued(ports, event).await.id;

        let mut store = ports.store().await.expect("a connection");
        assert_eq!(pending(&mut store, Channel::Mail).await, 4);
        assert_eq!(pending(&mut store, Channel::Sms).await, 1);
        assert_eq!(pending(&mut store, Channel::Event).await, 0);
        let ids = |entries: Vec<OutboxEntry>| entries.into_iter().map(|entry| entry.id).collect::<Vec<_>>();
        let all = ids(store.outbox_entries(None, 100).await.expect("an answer"));
        assert_eq!(all, [between, early, late, not_yet, text]);
        assert!(!all.contains(&event), "an event is not a letter");
        let two = ids(store.outbox_entries(Some(OutboxState::Pending), 2).await.expect("an answer"));
        assert_eq!(two, [between, early]);
        assert_eq!(store.outbox_entries(Some(OutboxState::Dead), 9).await.expect("an answer"), []);

        let owner = ports.new_id();
        for expected in [early, between, late] {
            let claimed = store.claim(owner, now, later(now, 60), 1).await.expect("an answer");
            assert_eq!(ids(claimed), [expected]);
        }
        assert_eq!(store.claim(owner, now, later(now, 60), 1).await.expect("an answer"), []);
    }

    pub(super) async fn dead_letters_come_back<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let (now, owner) = (ports.now(), ports.new_id());
        let mut dead = Vec::new();
        for _ in 0..3 {
            dead.push(enqueued(ports, letter(ports)).await.id);
        }
        let mut store = ports.store().await.expect("a connection");
        store.claim(owner, now, later(now, 60), 10).await.expect("an answer");
        for id in &dead {
            let settlement = Settlement::Dead { error: "550".to_owned() };
            assert_eq!(store.settle(&[*id], owner, &settlement, now).await.expect("an answer"), 1);
        }
        let sent = enqueued(ports, letter(ports)).await.id;
        store.claim(owner, now, later(now, 60), 10).await.expect("an answer");
        assert_eq!(store.settle(&[sent], owner, &Settlement::Sent, now).await.expect("an answer"), 1);

        let first = *dead.first().expect("a dead letter");
        let chosen = [first, sent, ports.new_id()];
        assert_eq!(store.revive(Some(&chosen), now).await.expect("an answer"), 1, "only dead ones come back");
        assert_eq!(store.revive(Some(&chosen), now).await.expect("an answer"), 0);
        let claimed = store.claim(ports.new_id(), now, later(now, 60), 10).await.expect("an answer");
        assert_eq!(claimed.iter().map(|entry| (entry.id, entry.attempts)).collect::<Vec<_>>(), [(first, 1)]);
        assert_eq!(
            store.settle(&[first], owner, &Settlement::Sent, now).await.expect("an answer"),
            0,
            "an owner of old"
        );
        assert_eq!(store.revive(None, now).await.expect("an answer"), 2);
        assert_eq!(store.outbox_entries(Some(OutboxState::Dead), 9).await.expect("an answer"), []);
    }

    pub(super) async fn old_rows_are_purged_and_no_others<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let now = ports.now();
        let old = later(now, -1000);
        let owner = inserted(ports, user(ports)).await;
        opened(ports, Session { created_at: old, expires_at: later(now, -1), ..session(ports, &owner) }).await;
        let in_use = opened(ports, Session { created_at: old, ..session(ports, &owner) }).await;
        let living = opened(ports, session(ports, &owner)).await;
        let ended = Session { ended_at: Some(now), end_reason: Some(EndReason::Logout), ..session(ports, &owner) };
        // A spent token must be recognized as such as long as it has not run out.
        let ended = opened(ports, ended).await;
        let of_state = |state, created_at| OutboxEntry { state, created_at, ..letter(ports) };
        for state in [OutboxState::Sent, OutboxState::Dead, OutboxState::Published, OutboxState::Pending] {
            enqueued(ports, of_state(state, old)).await;
            enqueued(ports, of_state(state, now)).await;
        }
        let mut store = ports.store().await.expect("a connection");
        store.record(&AuditEvent { at: old, ..audit_event(ports) }).await.expect("an answer");
        store.record(&audit_event(ports)).await.expect("an answer");
        ports.ephemeral().put("short", b"1", Duration::from_millis(1)).await.expect("an answer");
        ports.ephemeral().put("long", b"1", Duration::from_secs(60)).await.expect("an answer");
        pause(Duration::from_millis(5));

        let never_verified = User { updated_at: old, ..unverified(ports) };
        assert_eq!(store.insert_user(&never_verified).await.expect("an answer"), Inserted::Yes);
        let just_registered = User { updated_at: now, ..unverified(ports) };
        assert_eq!(store.insert_user(&just_registered).await.expect("an answer"), Inserted::Yes);

        let boundary = later(now, -500);
        let before = Before { outbox: boundary, audit: boundary, unverified: boundary, sessions: boundary };
        let purged = store.purge(ports.now(), &before).await.expect("an answer");
        assert_eq!(purged, 7, "a session, three settled entries, an audit event, an ephemeral entry, a user");
        assert_eq!(store.purge(ports.now(), &before).await.expect("an answer"), 0);
        assert!(store.user(never_verified.id).await.expect("an answer").is_none());
        assert!(store.user(just_registered.id).await.expect("an answer").is_some());
        drop(store);
        assert_eq!(session_now(ports, living.id).await, living);
        assert_eq!(session_now(ports, in_use.id).await, in_use);
        assert_eq!(session_now(ports, ended.id).await, ended);
        let counts = ["users", "sessions", "outbox", "audit_events", "ephemeral_entries"].map(|it| world.count(it));
        assert_eq!(counts, [2, 3, 5, 1, 1]);
    }

    pub(super) async fn an_audit_event_is_written_whole<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let who = UserId(ports.new_id());
        let which = SessionId(ports.new_id());
        let event = AuditEvent {
            user_id: Some(who),
            session_id: Some(which),
            identifier_index: Some(vec![0, 255, 16]),
            ..audit_event(ports)
        };
        let mut store = ports.store().await.expect("a connection");
        store.record(&event).await.expect("an answer");
        let read = world.value(
            "SELECT lower(hex(id)) || '|' || at || '|' || action || '|' || outcome || '|' || reason || '|' ||
                    lower(hex(user_id)) || '|' || lower(hex(session_id)) || '|' || lower(hex(identifier_index)) ||
                    '|' || ip || '|' || user_agent || '|' || browser || '|' || os || '|' || request_id || '|' || engine
                    AS value FROM audit_events",
            "SELECT replace(id::text, '-', '') || '|' || (extract(epoch FROM at) * 1000000)::bigint || '|' || action ||
                    '|' || outcome || '|' || reason || '|' || replace(user_id::text, '-', '') || '|' ||
                    replace(session_id::text, '-', '') || '|' || encode(identifier_index, 'hex') || '|' || ip || '|' ||
                    user_agent || '|' || browser || '|' || os || '|' || request_id || '|' || engine
                    AS value FROM audit_events",
        );
        let micros = event.at.unix_timestamp_nanos() / 1000;
        let (id, who, which) = (event.id.simple(), who.0.simple(), which.0.simple());
        let agent = &event.caller.user_agent;
        assert_eq!(
            read,
            format!(
                "{id}|{micros}|login|failure|invalid_credentials|{who}|{which}|00ff10|192.0.2.7|{agent}|Firefox|Linux|\
                 request-1|sync"
            )
        );
        // An event of nobody.
        store.record(&audit_event(ports)).await.expect("an answer");
        assert_eq!(world.count("audit_events"), 2);
    }

    pub(super) async fn ways_in_are_counted_and_listed_in_pages<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let (who, other, now) = (UserId(ports.new_id()), UserId(ports.new_id()), ports.now());
        let event = |action: &'static str, age: i64| AuditEvent {
            action,
            at: later(now, -age),
            user_id: Some(who),
            ..audit_event(ports)
        };
        let mut store = ports.store().await.expect("a connection");
        for foreign in [
            event("token_refresh", 3),
            event("create_user", 3),
            AuditEvent { user_id: Some(other), ..event("login", 3) },
            AuditEvent { user_id: None, ..event("login", 3) },
        ] {
            store.record(&foreign).await.expect("an answer");
        }
        let session_id = Some(SessionId(ports.new_id()));
        let nowhere = bifrons::services::model::Place::default();
        let mut expected = Vec::new();
        for one in [
            AuditEvent { outcome: Outcome::Success, reason: "", session_id, ..event("login", 50) },
            AuditEvent { outcome: Outcome::Success, reason: "", session_id, ..event("verify_otp", 90) },
            AuditEvent { place: nowhere, ..event("login", 10) },
            // Of one moment, told apart by their ids.
            event("login", 20),
            event("login", 20),
        ] {
            store.record(&one).await.expect("an answer");
            expected.push(LoginEvent {
                id: one.id,
                at: one.at,
                action: one.action.to_owned(),
                outcome: one.outcome,
                reason: one.reason.to_owned(),
                session_id: one.session_id,
                ip: "192.0.2.7".to_owned(),
                browser: "Firefox".to_owned(),
                os: "Linux".to_owned(),
                device: "desktop".to_owned(),
                place: one.place,
            });
        }
        expected.sort_by_key(|one| std::cmp::Reverse((one.at, one.id)));
        let ways_in = ["login", "verify_otp"];
        for limit in [1_i64, 2, 3, 5, 100] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = Page { limit, after };
                let listed = store.login_events(who, &ways_in, page).await.expect("an answer");
                assert_eq!(listed.count, 5, "of the whole list");
                assert!(i64::try_from(listed.items.len()).expect("a number") <= limit);
                let Some(last) = listed.items.last() else { break };
                after = Some((last.at, last.id));
                seen.extend(listed.items);
            }
            assert_eq!(seen, expected, "in pages of {limit}");
        }
        let whole = Page { limit: 9, after: None };
        let one_way = store.login_events(who, &["verify_otp"], whole).await.expect("an answer");
        assert_eq!((one_way.count, one_way.items.len()), (1, 1));
        for (nobody, actions) in [(UserId(ports.new_id()), &ways_in[..]), (who, &[])] {
            let listed = store.login_events(nobody, actions, whole).await.expect("an answer");
            assert_eq!((listed.count, listed.items), (0, Vec::new()));
        }
    }

    /// Writes to every table.
    async fn write_everywhere<P: Ports>(ports: &P, store: &mut P::Store) -> Result<UserId, Unavailable> {
        let one = user(ports);
        assert_eq!(store.insert_user(&one).await?, Inserted::Yes);
        store.insert_session(&session(ports, &one)).await?;
        store.enqueue(&letter(ports)).await?;
        store.record(&audit_event(ports)).await?;
        Ok(one.id)
    }

    fn rows<P: Adapter>(world: &World<P>) -> [i64; 4] {
        ["users", "sessions", "outbox", "audit_events"].map(|table| world.count(table))
    }

    /// Everything in a row of this table, but for its id.
    fn all_but_id<P: Adapter>(world: &World<P>, table: &str) -> Vec<String> {
        let columns: &[&str] = match table {
            "audit_events" => &[
                "action",
                "outcome",
                "reason",
                "ip",
                "user_agent",
                "browser",
                "os",
                "request_id",
                "engine",
                "device",
                "country",
                "city",
                "user_id",
                "session_id",
                "identifier_index",
                "at",
            ],
            "outbox" => &[
                "channel",
                "kind",
                "payload",
                "state",
                "attempts",
                "created_at",
                "available_at",
                "expires_at",
                "last_error",
            ],
            _ => &[
                "user_id",
                "generation",
                "rotated_at",
                "expires_at",
                "created_at",
                "last_used_at",
                "ended_at",
                "end_reason",
                "ip",
                "user_agent",
                "browser",
                "os",
                "device",
                "country",
                "city",
            ],
        };
        let of = |column: &&str| {
            let sqlite = format!("SELECT group_concat(hex({column}), '|' ORDER BY id) AS value FROM {table}");
            let postgres =
                format!("SELECT string_agg(coalesce({column}::text, 'none'), '|' ORDER BY id) AS value FROM {table}");
            format!("{column} {}", world.value(&sqlite, &postgres))
        };
        columns.iter().map(of).collect()
    }

    pub(super) async fn a_sign_in_is_written_in_one_trip_as_row_by_row<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let user = inserted(ports, user(ports)).await;
        let session = Session {
            ended_at: Some(later(ports.now(), 9)),
            end_reason: Some(EndReason::Displaced),
            ..session(ports, &user)
        };
        let event = AuditEvent { identifier_index: Some(vec![0, 255, 16]), ..audit_event(ports) }
            .of_user(user.id)
            .in_session(session.id);
        let entries = [letter(ports), OutboxEntry { channel: Channel::Event, expires_at: None, ..letter(ports) }];
        let at = later(ports.now(), 1);
        let first = First::SignIn { user: &user, new_hash: Some("$new"), at };
        let bundle = Bundle { first, session: Some(&session), event: &event, entries: &entries };
        let tables = ["audit_events", "outbox", "sessions"];
        assert!(ports.write(&bundle).await.expect("an answer"));
        let in_one_trip = tables.map(|table| all_but_id(world, table));
        let written = found(&world.twin(), user.id).await.expect("a user");
        assert_same(
            &written,
            &User { last_login_at: Some(at), password_hash: Some("$new".to_owned()), ..user.clone() },
        );
        assert_eq!(session_now(ports, session.id).await, session);
        assert_eq!(pending(&mut ports.store().await.expect("a connection"), Channel::Mail).await, 1);

        // Once more it is not who was looked up: not a row of it is written.
        assert!(!ports.write(&bundle).await.expect("an answer"));
        let disabled = inserted(ports, User { is_active: false, ..super::user(ports) }).await;
        let since = User { second_factor_at: None, ..written.clone() };
        for stale in [&user, &disabled, &since] {
            let first = First::SignIn { user: stale, new_hash: None, at: later(at, 1) };
            assert!(!ports.write(&Bundle { first, ..bundle }).await.expect("an answer"));
        }
        assert_same(&found(ports, user.id).await.expect("a user"), &written);
        assert_eq!(tables.map(|table| all_but_id(world, table)), in_one_trip);

        // Row by row it comes to the same.
        for table in tables {
            let statement = format!("DELETE FROM {table}");
            world.execute(&statement, &statement);
        }
        let again = Bundle { first: First::SignIn { user: &written, new_hash: None, at }, ..bundle };
        let each = ports.transaction(async |store| again.write_each(store).await).await;
        assert!(each.expect("an answer"));
        assert_eq!(tables.map(|table| all_but_id(world, table)), in_one_trip);
        assert_same(&found(ports, user.id).await.expect("a user"), &written);
    }

    pub(super) async fn a_sign_up_is_written_in_one_trip_or_not_at_all<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let rest = async |first: First<'_>| {
            let (event, entries) = (audit_event(ports), [letter(ports)]);
            ports.write(&Bundle { first, session: None, event: &event, entries: &entries }).await.expect("an answer")
        };
        let (whole, sparse) = (user(ports), unverified(ports));
        for fresh in [&whole, &sparse] {
            assert!(rest(First::SignUp(fresh)).await);
            assert_same(&found(&world.twin(), fresh.id).await.expect("a user"), fresh);
        }
        assert_eq!(rows(world), [2, 0, 2, 2]);
        // Under one identifier there is one, and of the other's sign-up nothing.
        let other = User { id: UserId(ports.new_id()), pid: letters_only(10), phone: None, ..whole.clone() };
        assert!(!rest(First::SignUp(&other)).await);
        assert_eq!(rows(world), [2, 0, 2, 2]);
        let answers = ports
            .together(20, async |ports, _| {
                let fresh = User { email: Some("one@example.org".to_owned()), ..unverified(&ports) };
                let (event, entries) = (audit_event(&ports), [letter(&ports)]);
                let bundle = Bundle { first: First::SignUp(&fresh), session: None, event: &event, entries: &entries };
                ports.write(&bundle).await.expect("an answer")
            })
            .await;
        assert_eq!(answers.iter().filter(|is_written| **is_written).count(), 1);
        assert_eq!(rows(world), [3, 0, 3, 3]);

        let at = later(ports.now(), 5);
        for (id, is_contested) in [(sparse.id, false), (sparse.id, true), (sparse.id, false), (whole.id, true)] {
            assert!(rest(First::Renewal { user: id, is_contested, at }).await);
        }
        assert!(rest(First::Nothing).await);
        assert_same(&found(ports, whole.id).await.expect("a user"), &whole);
        let renewed = User { is_contested: true, updated_at: at, ..sparse.clone() };
        assert_same(&found(ports, sparse.id).await.expect("a user"), &renewed);
        assert_eq!(rows(world), [3, 0, 8, 8], "in any case the rest is written");

        // Row by row it comes to the same.
        let each = async |first: First<'_>| {
            let (event, entries) = (audit_event(ports), [letter(ports)]);
            let bundle = Bundle { first, session: None, event: &event, entries: &entries };
            ports.transaction(async |store| bundle.write_each(store).await).await.expect("an answer")
        };
        let fresh = unverified(ports);
        assert!(each(First::SignUp(&fresh)).await && !each(First::SignUp(&other)).await);
        assert!(each(First::Renewal { user: fresh.id, is_contested: true, at }).await && each(First::Nothing).await);
        let renewed = User { is_contested: true, updated_at: at, ..fresh.clone() };
        assert_same(&found(ports, fresh.id).await.expect("a user"), &renewed);
        assert_eq!(rows(world), [4, 0, 11, 11]);
    }

    pub(super) async fn whoever_looks_for_users_at_once_finds_their_own<P: Adapter>(world: &World<P>) {
        let (ports, in_file) = (&world.ports, matches!(world.settings.database(), DatabaseUrl::Sqlite(_)));
        let (ada, bayo) = (inserted(ports, user(ports)).await, inserted(ports, user(ports)).await);
        let chidi = inserted(ports, user(ports)).await;
        let damaged = inserted(ports, user(ports)).await;
        // No moment that there is, as only SQLite lets it be.
        let statement = format!("UPDATE users SET last_login_at = {} WHERE pid = '{}'", i64::MAX, damaged.pid);
        world.execute(&statement, "SELECT 1");
        let nobody = user(ports);
        let looks = ports
            .together(60, async |ports, nth| {
                let by_email = |user| (Some(user), email_of(user));
                let (expected, identifier) = match nth % 6 {
                    0 => by_email(&ada),
                    1 => by_email(&bayo),
                    2 => (Some(&chidi), phone_of(&chidi)),
                    3 => by_email(&damaged),
                    4 => (None, email_of(&nobody)),
                    _ => (None, phone_of(&nobody)),
                };
                (nth % 6 == 3, expected, ports.user_of(&identifier).await)
            })
            .await;
        assert_eq!(looks.len(), 60);
        for (is_damaged, expected, found) in looks {
            match (is_damaged && in_file, found) {
                (true, found) => assert!(found.is_err(), "what cannot be read is nobody"),
                (false, found) => match (expected, found.expect("nobody fails for another's row")) {
                    (Some(expected), Some(found)) => assert_same(&found, expected),
                    (expected, found) => assert_eq!(expected.is_some(), found.is_some()),
                },
            }
        }
        // The connection is as good as before.
        assert!(ports.user_of(&email_of(&ada)).await.expect("an answer").is_some());
    }

    pub(super) async fn of_what_is_written_at_once_each_fails_for_itself<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let known = enqueued(ports, letter(ports)).await;
        let taken = inserted(ports, unverified(ports)).await;
        // Of each three, one is well, one has a letter that is there already, and one an identifier that is taken.
        let answers = ports
            .together(30, async |ports, nth| {
                let fresh = User { phone: None, ..unverified(&ports) };
                let fresh = if nth % 3 == 2 { User { email: taken.email.clone(), ..fresh } } else { fresh };
                let entry = if nth % 3 == 1 { known.clone() } else { letter(&ports) };
                let (event, entries) = (audit_event(&ports), [entry]);
                let bundle = Bundle { first: First::SignUp(&fresh), session: None, event: &event, entries: &entries };
                (nth % 3, fresh.id, ports.write(&bundle).await.ok())
            })
            .await;
        let twin = world.twin();
        for (kind, id, answer) in answers {
            let is_there = found(&twin, id).await.is_some();
            let expected = match kind {
                0 => (Some(true), true),
                1 => (None, false),
                _ => (Some(false), false),
            };
            assert_eq!((answer, is_there), expected);
        }
        assert_eq!(rows(world), [11, 0, 11, 10]);
    }

    pub(super) async fn a_sign_up_that_nobody_waits_for_any_more_is_written_whole_or_not_at_all<P: Adapter>(
        world: &World<P>,
    ) {
        let ports = &world.ports;
        let mut fresh = Vec::new();
        for looks in 1..=20 {
            let user = unverified(ports);
            let (event, entries) = (audit_event(ports), [letter(ports)]);
            let bundle = Bundle { first: First::SignUp(&user), session: None, event: &event, entries: &entries };
            let mut write = pin!(ports.write(&bundle));
            let mut left = looks;
            poll_fn(|context| {
                left -= 1;
                let is_done = write.as_mut().poll(context).is_ready();
                if is_done || left == 0 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            fresh.push((user.id, entries[0].id));
        }
        // Whoever comes after them neither waits for long nor is refused.
        let last = unverified(ports);
        let (event, entries) = (audit_event(ports), [letter(ports)]);
        let bundle = Bundle { first: First::SignUp(&last), session: None, event: &event, entries: &entries };
        assert!(ports.write(&bundle).await.expect("an answer"));
        let mut seen = rows(world);
        loop {
            pause(Duration::from_millis(200));
            let now = rows(world);
            if now == seen {
                break;
            }
            seen = now;
        }
        let [users, sessions, events, letters] = seen;
        assert!(users >= 1 && (users, users, 0) == (events, letters, sessions), "{seen:?}");
        let mut store = world.twin().store().await.expect("a connection");
        let sent = store.outbox_entries(None, 100).await.expect("an answer");
        for (user, letter) in fresh {
            let is_there = store.user(user).await.expect("an answer").is_some();
            assert_eq!(is_there, sent.iter().any(|entry| entry.id == letter));
        }
    }

    pub(super) async fn what_fails_in_one_trip_keeps_nothing_of_it<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let user = inserted(ports, user(ports)).await;
        let (session, event, entry) = (session(ports, &user), audit_event(ports), letter(ports));
        let first = First::SignIn { user: &user, new_hash: None, at: ports.now() };
        // The second of two entries is there already.
        let entries = [entry.clone(), entry.clone()];
        let bundle = Bundle { first, session: Some(&session), event: &event, entries: &entries };
        assert!(ports.write(&bundle).await.is_err());
        assert_eq!(rows(world), [1, 0, 0, 0]);
        assert_same(&found(ports, user.id).await.expect("a user"), &user);
        world.refuse_commits();
        assert!(ports.write(&Bundle { entries: &[entry], ..bundle }).await.is_err());
        assert_eq!(rows(world), [1, 0, 0, 0]);
        assert_same(&found(&world.twin(), user.id).await.expect("a user"), &user);
    }

    pub(super) async fn a_unit_of_work_is_kept_or_undone_as_a_whole<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let kept = ports
            .transaction(async |store| {
                let id = write_everywhere(ports, store).await?;
                assert!(store.user(id).await?.is_some(), "it does not see its own work");
                assert_eq!(rows(world), [0; 4], "others see what is not committed");
                Ok::<_, Undone>(id)
            })
            .await;
        assert_eq!(rows(world), [1; 4]);
        assert!(found(&world.twin(), kept.expect("a commit")).await.is_some());

        let undone = ports
            .transaction(async |store| {
                write_everywhere(ports, store).await?;
                Err::<(), _>(Undone::OnPurpose)
            })
            .await;
        assert!(matches!(undone, Err(Undone::OnPurpose)));
        assert_eq!(rows(world), [1; 4]);

        // A statement that fails.
        let failed = ports
            .transaction(async |store| {
                write_everywhere(ports, store).await?;
                store.insert_session(&session(ports, &user(ports))).await?;
                Ok::<_, Undone>(())
            })
            .await;
        assert!(matches!(failed, Err(Undone::Unavailable)), "{failed:?}");
        assert_eq!(rows(world), [1; 4]);

        // One that fails and is passed over: PostgreSQL cannot commit what is left, so nobody does.
        let passed_over = ports
            .transaction(async |store| {
                let id = write_everywhere(ports, store).await?;
                let _ = store.insert_session(&session(ports, &user(ports))).await;
                Ok::<_, Undone>(id)
            })
            .await;
        assert!(matches!(passed_over, Err(Undone::Unavailable)), "{passed_over:?}");
        assert_eq!(rows(world), [1; 4]);

        for _ in 0..20 {
            let answer = ports.transaction(async |store| write_everywhere(ports, store).await).await;
            assert!(answer.is_ok(), "{answer:?}");
        }
    }

    pub(super) async fn a_commit_that_fails_keeps_nothing_and_spoils_no_connection<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let before = inserted(ports, unverified(ports)).await;
        world.refuse_commits();
        // More often than the pool has connections.
        for _ in 0..20 {
            let refused = ports.transaction(async |store| write_everywhere(ports, store).await).await;
            assert!(refused.is_err(), "a commit that failed was taken for one");
            let refused = ports
                .transaction(async |store| store.confirm_user(before.id, &confirmation(), ports.now()).await)
                .await;
            assert!(refused.is_err());
            assert_same(&found(ports, before.id).await.expect("the user"), &before);
        }
        // A single statement is a unit of its own.
        let mut store = ports.store().await.expect("a connection");
        assert!(store.confirm_user(before.id, &confirmation(), ports.now()).await.is_err());
        drop(store);
        assert_eq!(rows(world), [1, 0, 0, 0]);
        world.allow_commits();
        for _ in 0..20 {
            let kept = ports.transaction(async |store| write_everywhere(ports, store).await).await;
            assert!(kept.is_ok(), "{kept:?}");
        }
        assert_eq!(rows(world), [21, 20, 20, 20]);
    }

    pub(super) async fn units_of_work_side_by_side_all_succeed<P: Adapter>(world: &World<P>) {
        let twin = world.twin();
        let answers = world
            .ports
            .together(60, async |ports, nth| {
                let ports = if nth % 2 == 0 { ports } else { twin.clone() };
                ports
                    .transaction(async |store| {
                        write_everywhere(&ports, store).await?;
                        if nth % 3 == 0 { Err(Undone::OnPurpose) } else { Ok(()) }
                    })
                    .await
            })
            .await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 40, "{answers:?}");
        assert!(answers.iter().all(|answer| !matches!(answer, Err(Undone::Unavailable))), "{answers:?}");
        assert_eq!(rows(world), [40; 4]);
    }

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(60);

    fn lives(left: Duration, ttl: Duration) -> bool {
        left <= ttl && left + Duration::from_secs(5) >= ttl && !left.is_zero()
    }

    pub(super) async fn an_entry_lives_as_long_as_it_is_told<P: Adapter>(world: &World<P>) {
        let store = world.ports.ephemeral();
        assert_eq!(store.get("k").await.expect("an answer"), None);
        for (value, ttl) in [
            (b"one".as_slice(), LONG),
            (&[0, 255, 10, 13, 0, 128], LONG * 1000),
            (b"", LONG),
            ([7; 5000].as_slice(), LONG * 60 * 24 * 30),
        ] {
            store.put("k", value, ttl).await.expect("an answer");
            let entry = world.twin().ephemeral().get("k").await.expect("an answer").expect("an entry");
            assert_eq!(entry.value, value);
            assert!(lives(entry.expires_in, ttl), "{:?} of {ttl:?}", entry.expires_in);
        }
        assert_eq!(store.get("K").await.expect("an answer"), None);
        store.put("k:ÿ", b"other", LONG).await.expect("an answer");
        store.remove("k").await.expect("an answer");
        store.remove("k").await.expect("an answer");
        assert_eq!(store.get("k").await.expect("an answer"), None);
        assert_eq!(store.get("k:ÿ").await.expect("an answer").expect("an entry").value, b"other");
    }

    pub(super) async fn an_entry_is_put_where_none_is<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let store = ports.ephemeral();
        assert_eq!(store.put_if_absent("k", b"first", LONG).await.expect("an answer"), None);
        let left = store.put_if_absent("k", b"second", LONG * 9).await.expect("an answer").expect("one is there");
        assert!(lives(left, LONG), "{left:?}");
        let entry = store.get("k").await.expect("an answer").expect("an entry");
        assert_eq!(entry.value, b"first");
        assert!(lives(entry.expires_in, LONG), "the second changed how long the first lives");
        for key in ["a", "b"] {
            let answers = ports
                .together(50, async |ports, nth| {
                    let value = nth.to_string();
                    ports.ephemeral().put_if_absent(key, value.as_bytes(), LONG).await.expect("an answer")
                })
                .await;
            assert_eq!(answers.iter().filter(|answer| answer.is_none()).count(), 1);
        }
    }

    pub(super) async fn entries_are_stored_with_a_right_and_found_together<P: Adapter>(world: &World<P>) {
        let store = world.ports.ephemeral();
        let put = |key: &str, value: &[u8], ttl| Put { key: key.to_owned(), value: value.to_owned(), ttl };
        store.put("a", b"old", LONG * 9).await.expect("an answer");
        store.increment("count", LONG).await.expect("an answer");
        store.put("short", b"1", Duration::from_millis(1)).await.expect("an answer");
        let (a, b) = (put("a", b"new", LONG), put("b", &[0, 255, 0], LONG * 2));
        let claim = claim_of("k", vec![a, b], put("c", b"", LONG), put("nobody", b"1", LONG));
        assert!(store.claim(&claim).await.expect("an answer"));
        pause(Duration::from_millis(5));
        let keys = ["nobody", "b", "count", "a", "short", "c"];
        let found = world.twin().ephemeral().get_all(keys).await.expect("an answer");
        let values = found.each_ref().map(|entry| entry.as_ref().map(|entry| entry.value.as_slice()));
        let [nobody, b, count, a, short, c] = values;
        assert_eq!(
            (nobody, b, a, short, c),
            (None, Some([0, 255, 0].as_slice()), Some(b"new".as_slice()), None, Some(b"".as_slice()))
        );
        assert!(count.is_some(), "a counter is there");
        let lives_for =
            |n: usize, ttl| found.get(n).and_then(Option::as_ref).is_some_and(|entry| lives(entry.expires_in, ttl));
        assert!(lives_for(1, LONG * 2) && lives_for(3, LONG) && lives_for(5, LONG));
        assert_eq!(store.increment("count", LONG).await.expect("an answer"), 2);
    }

    pub(super) async fn whoever_reads_entries_at_once_finds_their_own<P: Adapter>(world: &World<P>) {
        let store = world.ports.ephemeral();
        for key in ["a", "b", "c"] {
            store.put(key, key.as_bytes(), LONG).await.expect("an answer");
        }
        store.put("gone", b"1", Duration::from_millis(1)).await.expect("an answer");
        pause(Duration::from_millis(5));
        let value = |found: &Option<bifrons::services::ports::Entry>| found.as_ref().map(|entry| entry.value.clone());
        let answers = world
            .ports
            .together(60, async |ports, nth| {
                let store = ports.ephemeral();
                let found = match nth % 4 {
                    0 => vec![store.get("a").await.expect("an answer")],
                    1 => vec![store.get("gone").await.expect("an answer")],
                    2 => store.get_all(["c", "nobody", "b"]).await.expect("an answer").to_vec(),
                    _ => store.get_all(["b", "gone", "a", "c"]).await.expect("an answer").to_vec(),
                };
                (nth % 4, found.iter().map(value).collect::<Vec<_>>())
            })
            .await;
        assert_eq!(answers.len(), 60);
        for (kind, found) in answers {
            let expected: &[Option<&str>] = match kind {
                0 => &[Some("a")],
                1 => &[None],
                2 => &[Some("c"), None, Some("b")],
                _ => &[Some("b"), None, Some("a"), Some("c")],
            };
            let expected =
                expected.iter().map(|value| value.map(|value| value.as_bytes().to_vec())).collect::<Vec<_>>();
            assert_eq!(found, expected);
        }
    }

    fn claim_of(key: &str, always: Vec<Put>, with: Put, without: Put) -> Claim {
        Claim {
            key: key.to_owned(),
            ttl: LONG,
            had: format!("had:{key}"),
            withheld: format!("withheld:{key}"),
            window: LONG * 9,
            most: 3,
            always,
            with,
            without,
        }
    }

    pub(super) async fn a_right_is_had_once_in_its_time_and_so_often_in_its_window<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let twin = world.twin();
        let put = |key: &str, value: String| Put { key: key.to_owned(), value: value.into_bytes(), ttl: LONG };
        let stored = async |key: &str| {
            let entry = world.twin().ephemeral().get(key).await.expect("an answer");
            entry.map(|entry| String::from_utf8(entry.value).expect("text"))
        };
        // Of many who ask at once, of two instances, one has it; what each stores is there, or another's.
        for round in 1..=3 {
            let granted = ports
                .together(20, async |ports, nth| {
                    let ports = if nth % 2 == 0 { ports } else { twin.clone() };
                    let own = put(&format!("own:{nth}"), round.to_string());
                    let (with, without) = (put("with", nth.to_string()), put("without", nth.to_string()));
                    let claim = claim_of("k", vec![own], with, without);
                    (nth, ports.ephemeral().claim(&claim).await.expect("an answer"))
                })
                .await;
            let granted: Vec<_> = granted.iter().filter(|(_, is_granted)| *is_granted).map(|(nth, _)| *nth).collect();
            assert_eq!(granted.len(), 1, "round {round}");
            assert_eq!(stored("with").await, Some(granted.iter().map(usize::to_string).collect()));
            assert_ne!(stored("without").await, stored("with").await);
            for nth in 0..20 {
                assert_eq!(stored(&format!("own:{nth}")).await, Some(round.to_string()));
            }
            // Given back.
            twin.ephemeral().remove("k").await.expect("an answer");
        }
        let claim = |ttl| Claim {
            ttl,
            ..claim_of("k", Vec::new(), put("with", "late".to_owned()), put("without", "late".to_owned()))
        };
        let store = ports.ephemeral();
        assert!(!store.claim(&claim(Duration::from_millis(1))).await.expect("an answer"), "more than in a window");
        assert_eq!(stored("without").await.as_deref(), Some("late"));
        assert_ne!(stored("with").await.as_deref(), Some("late"));
        // Refused for that, it was counted and taken all the same; those that came too soon count elsewhere.
        assert_eq!(store.increment("had:k", LONG).await.expect("an answer"), 5);
        assert_eq!(store.increment("withheld:k", LONG).await.expect("an answer"), 58);
        // What has run out is as if it were not there.
        pause(Duration::from_millis(5));
        store.remove("had:k").await.expect("an answer");
        // What lasts for no time is had again at once.
        let at_once = Claim {
            ttl: Duration::ZERO,
            most: 1000,
            ..claim_of("z", Vec::new(), put("w", String::new()), put("x", String::new()))
        };
        for nth in 0..20 {
            assert!(store.claim(&at_once).await.expect("an answer"), "refused after {nth}");
        }
        assert!(store.claim(&claim(LONG)).await.expect("an answer"));
        let [taken, counted] = store.get_all(["k", "had:k"]).await.expect("an answer");
        assert!(lives(taken.expect("it is taken").expires_in, LONG));
        assert!(lives(counted.expect("it is counted").expires_in, LONG * 9));
    }

    pub(super) async fn what_depends_on_a_right_is_written_with_it_or_not_at_all<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let put = |key: &str| Put { key: key.to_owned(), value: Vec::new(), ttl: LONG };
        let claim_named = |name: &str| Claim {
            most: 100,
            ..claim_of(name, vec![put(&format!("always:{name}"))], put("with"), put("without"))
        };
        let ask = async |ports: &P, name: &str, first: First<'_>| {
            let (event, letters) = (audit_event(ports), [letter(ports), letter(ports)]);
            let refused = AuditEvent { reason: "too_soon", ..audit_event(ports) };
            let notice = OutboxEntry { channel: Channel::Event, ..letter(ports) };
            let granted = Bundle { first, session: None, event: &event, entries: &letters };
            let withheld = (&refused, std::slice::from_ref(&notice));
            ports.claim_and_write(&Claiming { claim: &claim_named(name), granted, withheld }).await
        };
        let is_there = async |key: &str| world.twin().ephemeral().get(key).await.expect("an answer").is_some();
        let refused = "SELECT CAST(count(*) AS TEXT) AS value FROM audit_events WHERE reason = 'too_soon'";

        let ada = unverified(ports);
        assert!(ask(ports, "a", First::SignUp(&ada)).await.expect("an answer"));
        assert_eq!((rows(world), world.value(refused, refused)), ([1, 0, 2, 1], "0".to_owned()));
        assert!(is_there("a").await && is_there("always:a").await && is_there("with").await);
        assert!(!is_there("without").await);
        // It is had already: what is first is done all the same.
        let bob = unverified(ports);
        assert!(ask(ports, "a", First::SignUp(&bob)).await.expect("an answer"));
        assert_eq!((rows(world), world.value(refused, refused)), ([2, 0, 3, 2], "1".to_owned()));
        assert!(is_there("without").await);
        assert!(found(&world.twin(), bob.id).await.is_some());

        // Of a sign-up that cannot be, nothing is written, and nobody has the right.
        let other = User { id: UserId(ports.new_id()), ..ada.clone() };
        assert!(!ask(ports, "b", First::SignUp(&other)).await.expect("an answer"));
        assert_eq!(rows(world), [2, 0, 3, 2]);
        assert!(!is_there("b").await);
        // In one file all is one commit; elsewhere what was stored stays.
        let in_one_file = matches!(world.settings.database(), DatabaseUrl::Sqlite(_))
            && matches!(world.settings.store(), StoreUrl::Embedded);
        assert_eq!(is_there("always:b").await, !in_one_file);
        world.refuse_commits();
        assert!(ask(ports, "b", First::SignUp(&unverified(ports))).await.is_err());
        assert_eq!(rows(world), [2, 0, 3, 2]);
        assert!(!is_there("b").await);
        assert_eq!(is_there("always:b").await, !in_one_file);
        world.allow_commits();
        assert!(ask(ports, "b", First::Nothing).await.expect("an answer"));
        assert_eq!((rows(world), world.value(refused, refused)), ([2, 0, 5, 3], "1".to_owned()));

        // Of many at once each has what is its own, and one of those who ask for one right has it.
        let answers = ports
            .together(40, async |ports, nth| {
                let fresh = if nth % 4 == 0 { ada.clone() } else { unverified(&ports) };
                ask(&ports, &format!("right:{}", nth % 8), First::SignUp(&fresh)).await.expect("an answer")
            })
            .await;
        assert_eq!(answers.iter().filter(|is_written| **is_written).count(), 30);
        // Six rights, with two letters each; the other 24 have a notice.
        let [users, sessions, outbox, audited] = rows(world);
        assert_eq!((users, sessions, audited), (32, 0, 33));
        assert_eq!((outbox, world.value(refused, refused)), (5 + 6 * 2 + 24, "25".to_owned()));
        for nth in 0..8 {
            assert_eq!(is_there(&format!("right:{nth}")).await, nth % 4 != 0, "{nth}");
        }
    }

    pub(super) async fn of_many_removals_of_one_value_exactly_one_succeeds<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let store = ports.ephemeral();
        assert!(!store.remove_if_equal("k", b"value").await.expect("an answer"));
        store.put("k", b"value", LONG).await.expect("an answer");
        for other in [b"valu".as_slice(), b"value2", b"VALUE", b""] {
            assert!(!store.remove_if_equal("k", other).await.expect("an answer"));
        }
        let twin = world.twin();
        let answers = ports
            .together(50, async |ports, nth| {
                let ports = if nth % 2 == 0 { ports } else { twin.clone() };
                ports.ephemeral().remove_if_equal("k", b"value").await.expect("an answer")
            })
            .await;
        assert_eq!(answers.iter().filter(|removed| **removed).count(), 1);
        assert_eq!(store.get("k").await.expect("an answer"), None);
    }

    pub(super) async fn a_counter_counts_everyone_and_lives_from_its_first_count<P: Adapter>(world: &World<P>) {
        let ports = &world.ports;
        let mut counts =
            ports.together(50, async |ports, _| ports.ephemeral().increment("k", LONG).await.expect("an answer")).await;
        counts.sort_unstable();
        assert_eq!(counts, (1..=50).collect::<Vec<i64>>());
        let store = ports.ephemeral();
        store.remove("k").await.expect("an answer");
        assert_eq!(store.increment("k", LONG).await.expect("an answer"), 1, "a removed counter begins anew");

        // Counting on must not make it live longer.
        let ttl = Duration::from_millis(400);
        let began = Instant::now();
        assert_eq!(store.increment("short", ttl).await.expect("an answer"), 1);
        let mut last = 1;
        loop {
            pause(Duration::from_millis(20));
            let asked = Instant::now();
            let count = store.increment("short", ttl).await.expect("an answer");
            if count == 1 {
                assert!(began.elapsed() >= ttl - Duration::from_millis(2), "it ran out early: {:?}", began.elapsed());
                break;
            }
            assert_eq!(count, last + 1);
            last = count;
            assert!(asked - began < ttl * 2, "counting on prolongs its life");
        }
    }

    pub(super) async fn what_is_taken_back_from_a_counter_is_as_if_it_had_not_been_counted<P: Adapter>(
        world: &World<P>,
    ) {
        let ports = &world.ports;
        let store = ports.ephemeral();
        let count = async |key: &str| store.increment(key, LONG).await.expect("an answer");
        for _ in 0..2 {
            // Nothing is taken from what is not there, nor below zero.
            store.decrement("k").await.expect("an answer");
            assert_eq!(count("k").await, 1);
            store.decrement("k").await.expect("an answer");
        }
        for expected in 1..=4 {
            assert_eq!(count("k").await, expected);
        }
        store.decrement("k").await.expect("an answer");
        assert_eq!(count("k").await, 4);
        // Of many at once, that count one and take one back, each is in its turn.
        let twin = world.twin();
        let counts = ports
            .together(40, async |ports, nth| {
                let ports = if nth % 2 == 0 { ports } else { twin.clone() };
                let count = ports.ephemeral().increment("k", LONG).await.expect("an answer");
                ports.ephemeral().decrement("k").await.expect("an answer");
                count
            })
            .await;
        assert!(counts.iter().all(|count| (5..=44).contains(count)), "{counts:?}");
        assert_eq!(count("k").await, 5);
        // It lives from its first count, whatever was taken back since.
        let ttl = Duration::from_millis(400);
        assert_eq!(store.increment("short", ttl).await.expect("an answer"), 1);
        store.decrement("short").await.expect("an answer");
        assert_eq!(store.increment("short", LONG).await.expect("an answer"), 1);
        let left = store.get("short").await.expect("an answer").expect("a counter").expires_in;
        assert!(left <= ttl, "{left:?}");
        pause(ttl * 2);
        assert_eq!(store.get("short").await.expect("an answer"), None);
        store.decrement("short").await.expect("an answer");
        assert_eq!(count("short").await, 1);
    }

    pub(super) async fn what_has_run_out_is_absent_and_replaceable<P: Adapter>(world: &World<P>) {
        let store = world.ports.ephemeral();
        for key in ["get", "put", "absent", "equal"] {
            store.put(key, b"old", SHORT).await.expect("an answer");
        }
        store.increment("count", SHORT).await.expect("an answer");
        assert_eq!(store.put_if_absent("again", b"old", SHORT).await.expect("an answer"), None);
        pause(SHORT * 2);
        assert_eq!(store.get("get").await.expect("an answer"), None);
        assert!(!store.remove_if_equal("equal", b"old").await.expect("an answer"));
        assert_eq!(store.increment("count", LONG).await.expect("an answer"), 1);
        assert_eq!(store.increment("count", LONG).await.expect("an answer"), 2);
        store.put("put", b"new", LONG).await.expect("an answer");
        for key in ["absent", "again"] {
            assert_eq!(store.put_if_absent(key, b"new", LONG).await.expect("an answer"), None);
        }
        for key in ["put", "absent", "again"] {
            let entry = store.get(key).await.expect("an answer").expect("an entry");
            assert_eq!(entry.value, b"new");
            assert!(lives(entry.expires_in, LONG));
        }
    }

    pub(super) async fn a_broken_connection_is_replaced_where_a_repeat_does_no_harm<P: Adapter>(world: &World<P>) {
        let store = world.ports.ephemeral();
        store.put("k", b"one", LONG).await.expect("an answer");
        for _ in 0..3 {
            world.cut_redis_connections();
            assert_eq!(store.get("k").await.expect("an answer").expect("an entry").value, b"one");
        }
        world.cut_redis_connections();
        store.put("k", b"two", LONG).await.expect("an answer");
        assert_eq!(store.get("k").await.expect("an answer").expect("an entry").value, b"two");
        world.cut_redis_connections();
        store.remove("k").await.expect("an answer");
        assert_eq!(store.get("k").await.expect("an answer"), None);
    }

    fn rule(key: &str, count: u32, per: Duration) -> Rule {
        Rule { key: format!("limit:{key}"), rate: Rate { count, per } }
    }

    fn remaining(decision: &Decision) -> u32 {
        let (Decision::Admitted(left) | Decision::Throttled { left, .. }) = decision;
        left.first().map(|left| left.remaining).expect("a rule")
    }

    fn is_admitted(decision: &Decision) -> bool {
        matches!(decision, Decision::Admitted(_))
    }

    // Two clocks may differ by the request that a moment gives back.
    fn assert_left_alike(one: &[Left], other: &[Left]) {
        assert_eq!(one.len(), other.len());
        for (one, other) in one.iter().zip(other) {
            assert!(one.remaining.abs_diff(other.remaining) <= 1, "{one:?} and {other:?}");
            assert!(one.reset.abs_diff(other.reset) < Duration::from_millis(25), "{one:?} and {other:?}");
        }
    }

    pub(super) async fn a_count_that_cannot_be_committed_is_not_told<P: Adapter>(world: &World<P>) {
        let store = world.ports.ephemeral();
        world.execute(
            "CREATE TABLE nobody (id INTEGER PRIMARY KEY);
             CREATE TABLE refusals (id INTEGER REFERENCES nobody (id) DEFERRABLE INITIALLY DEFERRED);
             CREATE TRIGGER refuse_count AFTER INSERT ON ephemeral_entries
                 BEGIN INSERT INTO refusals VALUES (1); END;",
            "CREATE FUNCTION refuse_count() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'this commit is refused'; END $$;
             CREATE CONSTRAINT TRIGGER refuse_count AFTER INSERT ON ephemeral_entries
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_count();",
        );
        assert!(store.increment("count", Duration::from_secs(60)).await.is_err());
        world.execute("DROP TRIGGER refuse_count", "DROP TRIGGER refuse_count ON ephemeral_entries");
        assert_eq!(store.increment("count", Duration::from_secs(60)).await.expect("an answer"), 1);
    }

    pub(super) async fn a_request_is_taken_back<P: Adapter>(world: &World<P>) {
        let store = world.ports.ephemeral();
        let rules =
            [Rule { key: format!("limit:{}", unique()), rate: Rate { count: 2, per: Duration::from_secs(3600) } }];
        for _ in 0..5 {
            assert!(matches!(store.admit(&rules).await, Decision::Admitted(_)));
            store.take_back(&rules).await;
        }
        for _ in 0..2 {
            assert!(matches!(store.admit(&rules).await, Decision::Admitted(_)));
        }
        assert!(matches!(store.admit(&rules).await, Decision::Throttled { .. }));
        store.take_back(&[Rule { key: "limit:nobodys".to_owned(), ..rules[0].clone() }]).await;
        assert!(matches!(store.admit(&rules).await, Decision::Throttled { .. }));
    }

    pub(super) async fn a_request_counts_against_every_rule_or_none<P: Adapter>(world: &World<P>) {
        let store = world.ports.ephemeral();
        let (tight, wide) = (rule("tight", 2, LONG * 60), rule("wide", 4, LONG * 60));
        let both = [tight.clone(), wide.clone()];
        for _ in 0..2 {
            assert!(is_admitted(&store.admit(&both).await));
        }
        for _ in 0..5 {
            let Decision::Throttled { retry_after, .. } = store.admit(&both).await else { panic!("admitted") };
            assert!(!retry_after.is_zero() && retry_after <= LONG * 120, "{retry_after:?}");
        }
        // What was throttled was not counted against the wide one.
        for _ in 0..2 {
            assert!(is_admitted(&store.admit(std::slice::from_ref(&wide)).await));
        }
        assert!(matches!(store.admit(&[wide]).await, Decision::Throttled { .. }));
        assert!(matches!(store.admit(&[rule("free", 9, LONG), tight]).await, Decision::Throttled { .. }));
        assert!(is_admitted(&store.admit(&[]).await));

        let crowd = rule("crowd", 10, LONG * 60);
        let answers = world
            .ports
            .together(50, async |ports, _| ports.ephemeral().admit(std::slice::from_ref(&crowd)).await)
            .await;
        let mut left: Vec<u32> = answers.iter().filter(|answer| is_admitted(answer)).map(remaining).collect();
        left.sort_unstable();
        assert_eq!(left, (0..10).collect::<Vec<_>>(), "each is told what is left after itself");

        // Crowds under rules of which one is the same.
        let (few, many) = (rule("few", 5, LONG * 60), rule("many", 100, LONG * 60));
        let (both, one) = ([few, many.clone()], [many]);
        let answers = world
            .ports
            .together(50, async |ports, nth| {
                ports.ephemeral().admit(if nth % 2 == 0 { both.as_slice() } else { one.as_slice() }).await
            })
            .await;
        assert_eq!(answers.iter().filter(|answer| is_admitted(answer)).count(), 5 + 25);
        assert_eq!(remaining(&store.admit(&one).await), 100 - 5 - 25 - 1);
    }

    pub(super) async fn limits_decide_alike_in_process_and_in_redis<P: Adapter>(world: &World<P>) {
        let store = world.ports.ephemeral();
        // A window passes in 400 ms; times are shares of a window from the start of one.
        let per = Duration::from_millis(400);
        let steps = [(0.1, 5), (0.6, 2), (1.1, 3), (1.65, 4), (2.4, 1), (4.2, 6), (5.6, 3), (5.95, 1)];
        'attempt: for attempt in 0.. {
            assert!(attempt < 10, "the machine is too busy to compare two clocks");
            let limiter = LocalLimiter::default();
            let rules = [rule(&format!("slow{attempt}"), 9, per * 40), rule(&format!("{attempt}"), 4, per)];
            let start = start_of_window(per);
            let began = Instant::now();
            for (at, times) in steps {
                pause(per.mul_f64(at).saturating_sub(began.elapsed()));
                for time in 0..times {
                    let asked = Instant::now();
                    let here = limiter.admit(&rules, system::now());
                    let there = store.admit(&rules).await;
                    // A pause of the machine between the two would let them see different times.
                    if asked.elapsed() > per / 20 || began.elapsed() > per.mul_f64(at + 0.05) {
                        continue 'attempt;
                    }
                    match (here, there) {
                        (Decision::Admitted(one), Decision::Admitted(other)) => assert_left_alike(&one, &other),
                        (
                            Decision::Throttled { retry_after: one, left: one_left },
                            Decision::Throttled { retry_after: other, left: other_left },
                        ) => {
                            assert!(one.abs_diff(other) < per / 20, "{one:?} and {other:?} at {at}");
                            assert_left_alike(&one_left, &other_left);
                        }
                        differing => panic!("{differing:?} at {at}, request {time}, begun at {start}"),
                    }
                }
            }
            return;
        }
    }

    pub(super) async fn whoever_asks_often_is_counted_ahead_and_has_no_more_than_the_limit<P: Adapter>(
        world: &World<P>,
    ) {
        const LIMIT: u32 = 5000;
        // A window that does not end meanwhile.
        let per = LONG * 1_000_000;
        let limited = [rule("often", LIMIT, per)];
        let instances = [world.ports.clone(), world.twin()];
        let [one, _] = &instances;
        // By one instance alone, each is told what is left after itself.
        for before in 0..200 {
            assert_eq!(remaining(&one.ephemeral().admit(&limited).await), LIMIT - before - 1);
        }
        let (mut admitted, mut refused, mut was_ahead) = (200, [false; 2], false);
        while refused != [true; 2] {
            for (instance, refused) in instances.iter().zip(&mut refused) {
                let answers = instance.together(50, async |ports, _| ports.ephemeral().admit(&limited).await).await;
                admitted += answers.iter().filter(|answer| is_admitted(answer)).count();
                *refused = answers.iter().any(|answer| !is_admitted(answer));
            }
            was_ahead |= world.counted_in_redis(&limited[0].key) > admitted;
        }
        assert_eq!(admitted, usize::try_from(LIMIT).expect("a small number"));
        assert!(was_ahead, "each was counted as it came");
        let seldom = [rule("seldom", 1000, per)];
        for before in 0..400 {
            assert!(is_admitted(&one.ephemeral().admit(&seldom).await));
            assert_eq!(world.counted_in_redis(&seldom[0].key), before + 1, "a small limit is counted one by one");
        }
    }

    /// Waits for the next window to begin.
    fn start_of_window(per: Duration) -> OffsetDateTime {
        let micros = |time: OffsetDateTime| u64::try_from(time.unix_timestamp_nanos() / 1000).expect("after 1970");
        let length = u64::try_from(per.as_micros()).expect("a short window");
        pause(Duration::from_micros(length - micros(system::now()) % length));
        system::now()
    }
}

/// The environment of an instance on a new, empty database.
fn empty_database(backend: Backend) -> Vec<(&'static str, String)> {
    let mut env = vec![("BIFRONS_DATA_DIR", fresh_directory("data").join("data").display().to_string())];
    if backend == Backend::PostgresRedis {
        env.push(("BIFRONS_DATABASE__URL", POSTGRES.create_database()));
        env.push(("BIFRONS_STORE__URL", REDIS.create_database()));
        env.push(("BIFRONS_SECRETS__MASTER", BASE64URL_NOPAD.encode(&random_bytes::<32>())));
    }
    env
}

fn run_in(env: &[(&'static str, String)], command: &str) -> support::Outcome {
    let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (*key, value.as_str())).collect();
    run_alone(&env, &[command], "")
}

/// A gateway on this database; `Embedded` only says that the harness need not make one.
fn gateway_on(env: &[(&'static str, String)]) -> Result<Gateway, support::Refusal> {
    Gateway::try_start(
        env.iter().fold(Options::new(Backend::Embedded), |options, (key, value)| options.with(key, value)),
    )
}

fn execute_in(env: &[(&'static str, String)], statement: &str) {
    let value = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
    match value("BIFRONS_DATABASE__URL") {
        Some(url) => drop(POSTGRES.query(url, statement)),
        None => {
            let file = format!("{}/bifrons.db", value("BIFRONS_DATA_DIR").expect("a directory"));
            let mut conn = SqliteConnection::establish(&file).expect("a connection");
            conn.batch_execute(statement).expect("a statement");
        }
    }
}

#[test]
fn a_database_that_is_newer_or_has_a_gap_is_refused_by_name() {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        let env = empty_database(backend);
        let migrated = run_in(&env, "migrate");
        assert!(migrated.status.success(), "{backend:?}: {}", migrated.errors);
        execute_in(&env, "INSERT INTO __diesel_schema_migrations (version) VALUES ('9999')");
        let refused = run_in(&env, "migrate");
        assert!(!refused.status.success(), "{backend:?}: a newer database was migrated");
        assert!(refused.errors.contains("9999") && refused.errors.contains("newer"), "{backend:?}: {}", refused.errors);
        let refused = gateway_on(&env).err().unwrap_or_else(|| panic!("{backend:?}: a newer database was served"));
        assert!(!refused.status.success());
        assert!(refused.log.contains("9999") && refused.log.contains("newer"), "{backend:?}: {}", refused.log);

        // The later one is there and the first one is not.
        execute_in(&env, "DELETE FROM __diesel_schema_migrations WHERE version <> '9999'");
        let refused = run_in(&env, "migrate");
        assert!(!refused.status.success() && refused.errors.contains("9999"), "{backend:?}: {}", refused.errors);
    }
}

#[test]
fn migrations_of_one_fresh_database_at_once_do_not_collide() {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        let env = empty_database(backend);
        thread::scope(|scope| {
            let one = || scope.spawn(|| run_in(&env, "migrate"));
            let runs: Vec<_> = (0..6).map(|_| one()).collect();
            for run in runs {
                let outcome = run.join().expect("no panic");
                assert!(outcome.status.success(), "{backend:?}: {}", outcome.errors);
            }
        });
        let again = run_in(&env, "migrate");
        assert!(again.status.success(), "{backend:?}: {}", again.errors);
    }
}

#[test]
fn gateways_that_start_at_once_serve_as_one() {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        // `serve` alone makes the embedded database, its schema and its master secret.
        let env = empty_database(backend);
        if backend == Backend::PostgresRedis {
            let migrated = run_in(&env, "migrate");
            assert!(migrated.status.success(), "{}", migrated.errors);
        }
        let gateways: Vec<Gateway> = thread::scope(|scope| {
            let starting: Vec<_> = (0..4).map(|_| scope.spawn(|| gateway_on(&env))).collect();
            let started = starting.into_iter().map(|start| start.join().expect("no panic"));
            started.map(|start| start.unwrap_or_else(|refusal| panic!("{backend:?}: {}", refusal.log))).collect()
        });
        let (first, last) = (gateways.first().expect("a gateway"), gateways.last().expect("a gateway"));
        let email = "ada@example.com";
        let body = serde_json::json!({"email": email, "password": PASSWORD});
        let answer = Client::new(first.v1).send(&Request::post("/api/v1/auth/register/", &body));
        assert_eq!(answer.status, 201, "{backend:?}: {}", answer.shown());
        let code = first.wait_for_mail(email, 1).code().expect("a code");
        // What one instance sealed, every other can open.
        let body = serde_json::json!({"challenge": answer.text("data.challenge"), "otp": code});
        let answer = Client::new(last.v2).send(&Request::post("/api/v2/auth/verify-otp/", &body));
        assert_eq!(answer.status, 200, "{backend:?}: {}", answer.shown());
        for gateway in &gateways {
            let me = Request::get("/api/v1/auth/me/").bearer(&answer.text("data.access"));
            let me = Client::new(gateway.v1).send(&me);
            assert_eq!(me.status, 200, "{backend:?}: {}", me.shown());
        }
    }
}

#[test]
fn a_postgres_database_without_its_schema_is_not_served() {
    let env = empty_database(Backend::PostgresRedis);
    thread::scope(|scope| {
        let starting: Vec<_> = (0..4).map(|_| scope.spawn(|| gateway_on(&env))).collect();
        for start in starting {
            let refused = start.join().expect("no panic").err().expect("an empty database was served");
            assert!(refused.log.contains("bifrons migrate"), "{}", refused.log);
        }
    });
}

#[test]
fn a_database_of_another_master_secret_is_refused() {
    for backend in [Backend::Embedded, Backend::PostgresRedis] {
        let mut env = empty_database(backend);
        let migrated = run_in(&env, "migrate");
        assert!(migrated.status.success(), "{backend:?}: {}", migrated.errors);
        drop(gateway_on(&env).unwrap_or_else(|refusal| panic!("{backend:?}: {}", refusal.log)));
        env.retain(|(key, _)| *key != "BIFRONS_SECRETS__MASTER");
        env.push(("BIFRONS_SECRETS__MASTER", BASE64URL_NOPAD.encode(&random_bytes::<32>())));
        let refused = gateway_on(&env).err().unwrap_or_else(|| panic!("{backend:?}: it was served"));
        assert!(!refused.status.success());
        assert!(refused.log.contains("another master secret"), "{backend:?}: {}", refused.log);
    }
}
