//! A world in memory, for tests: frozen clock, seeded randomness, faults on demand.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use jsonwebtoken::DecodingKey;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    authenticate::{Bearer, Look, authenticate},
    create_user::{CreateUser, Credential, create_user},
    enrol_totp::{begin_totp, confirm_totp},
    error::{Overloaded, Unavailable},
    fields::read_fields,
    identifier::Identifier,
    imported_hashes::{Cost, Profile},
    keys::Keys,
    letters::{Letter, Message},
    limits::{Decision, LocalLimiter, Rate, Rule},
    model::{
        AuditEvent, AuthProvider, Caller, Channel, Confirmation, EndReason, Listed, LoginEvent, OutboxEntry,
        OutboxState, Page, Place, ProfileChanges, Role, Session, SessionId, Settlement, User, UserId,
    },
    passwords::{self, Arena, HashAs, HashParams, Password, Verified, Weakness},
    policy::{
        Breaches, GooglePolicy, LimitPolicy, LinkPolicy, Linking, LockoutPolicy, MfaPolicy, OtpPolicy, OutboxPolicy,
        PasswordPolicy, Policy, SessionPolicy, StuffingPolicy, TokenPolicy,
    },
    ports::{
        Audit, Before, Claim, Entry, Ephemeral, FoundSession, Inserted, Living, Outbox, Ports, Rotated, Rotation,
        SecondFactors, Sessions, Users,
    },
    run::run,
    session::{self, SignedIn},
    session_cache::Known,
    tokens::Pair,
    totp::{TotpFactor, TotpSecret},
};

const CHEAP: HashParams = HashParams { memory_kib: 8, iterations: 1, parallelism: 1 };

/// Ada's password.
pub const PASSWORD: &str = "violet-Kettle-93";
/// Ada's address.
pub const ADDRESS: &str = "ada@example.org";
/// Ada's number.
pub const NUMBER: &str = "+2348031234567";

/// The defaults of the configuration.
pub fn policy() -> Policy {
    let seconds = Duration::from_secs;
    Policy {
        public_url: "https://id.example.org".into(),
        tokens: TokenPolicy {
            access_ttl: seconds(900),
            refresh_ttl: seconds(30 * 86_400),
            reuse_grace: seconds(30),
            issuer: "bifrons".into(),
            audience: "bifrons".into(),
        },
        otp: OtpPolicy {
            ttl: seconds(300),
            guesses: 5,
            account_guesses: 20,
            resend_interval: seconds(60),
            daily_sends: 20,
            link_ttl: seconds(3600),
        },
        passwords: PasswordPolicy { min_length: 8, max_length: 128, min_score: 2, breaches: Breaches::Off },
        lockout: LockoutPolicy { failures: 5, duration: seconds(900) },
        limits: LimitPolicy::default(),
        stuffing: StuffingPolicy {
            identifiers: 20,
            window: seconds(600),
            duration: seconds(3600),
            rate: Some(Rate { count: 2, per: seconds(60) }),
        },
        google: GooglePolicy { client_ids: Vec::new(), linking: Linking::Authoritative, require_nonce: false },
        sessions: SessionPolicy { idle: Some(seconds(30 * 86_400)), absolute: Some(seconds(180 * 86_400)), most: None },
        links: LinkPolicy {
            sign_in: "/login".into(),
            password_forgotten: "/password-reset".into(),
            password_reset: "/password-reset-confirm/{uidb64}/{token}".into(),
        },
        mfa: MfaPolicy { ttl: seconds(300), issuer: "Bifrons".into(), daily_guesses: 50 },
        device_ttl: seconds(365 * 86_400),
        reveal_existing: false,
        default_region: "NG".into(),
        outbox: OutboxPolicy {
            poll: seconds(1),
            lease: seconds(60),
            attempts: 10,
            backoff: seconds(5),
            backoff_max: seconds(3600),
            retention: seconds(7 * 86_400),
        },
        audit_retention: seconds(365 * 86_400),
    }
}

/// A session that begins at `at`.
pub fn session(at: OffsetDateTime, life: Duration) -> Session {
    Session {
        id: SessionId(Uuid::from_u128(1)),
        user_id: UserId(Uuid::from_u128(2)),
        generation: 0,
        rotated_at: at,
        expires_at: at + life,
        created_at: at,
        last_used_at: at,
        ended_at: None,
        end_reason: None,
        ip: "192.0.2.1".into(),
        user_agent: "test".into(),
        browser: String::new(),
        os: String::new(),
        device: String::new(),
        place: Place::default(),
    }
}

/// Somebody.
pub fn caller() -> Caller {
    Caller {
        ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        request_id: "r1".into(),
        engine: "sync",
        user_agent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0".into(),
        device_token: None,
    }
}

/// A request from JSON, as a client sends it.
#[expect(clippy::needless_pass_by_value, reason = "tests hand over `json!` literals")]
pub fn request<T>(json: serde_json::Value) -> T
where
    T: serde::de::DeserializeOwned + garde::Validate<Context = ()>,
{
    let fields = json.as_object().unwrap().clone().into_iter().collect();
    read_fields(fields).unwrap_or_else(|unfit| panic!("{unfit:?}"))
}

#[derive(Clone, Default)]
struct Facts {
    users: Vec<User>,
    sessions: Vec<Session>,
    outbox: Vec<OutboxEntry>,
    audit: Vec<AuditEvent>,
    leases: HashMap<Uuid, Uuid>,
    imported_hashes: HashMap<String, i64>,
    identities: Vec<Identity>,
    totp: HashMap<UserId, TotpFactor>,
    // Whose, digest, whether it is used.
    recovery_codes: Vec<(UserId, Vec<u8>, bool)>,
}

// Google's keys by id, when it answers.
type GoogleSide = Option<HashMap<String, Arc<DecodingKey>>>;

// Subject's index, user, provider.
type Identity = ([u8; 32], UserId, AuthProvider);

// Value, count, end of life.
type Counted = (Vec<u8>, i64, OffsetDateTime);

type Meanwhile = Box<dyn FnOnce(&mut User)>;
type Beside = Box<dyn FnOnce()>;

struct Inner {
    facts: RefCell<Facts>,
    entries: RefCell<HashMap<String, Counted>>,
    now: Cell<OffsetDateTime>,
    drawn: Cell<u64>,
    hashes: Cell<u32>,
    made_up: RefCell<Vec<Vec<Cost>>>,
    breaches: RefCell<Option<String>>,
    google: RefCell<GoogleSide>,
    commit_fails: Cell<bool>,
    outbox_is_broken: Cell<bool>,
    meanwhile: RefCell<Option<Meanwhile>>,
    beside: RefCell<Option<Beside>>,
    calls: RefCell<Vec<&'static str>>,
    store_fails: Cell<bool>,
    is_overloaded: Cell<bool>,
    policy: Policy,
    keys: Keys,
    limiter: LocalLimiter,
}

/// What a user with a second factor has at hand.
pub struct Guarded {
    /// Who, in the session that set it up.
    pub bearer: Bearer,
    /// That session's.
    pub tokens: Pair,
    /// Their authenticator's.
    pub secret: TotpSecret,
    /// Unused.
    pub recovery_codes: Vec<String>,
}

/// The world; clones are the same world.
#[derive(Clone)]
pub struct World(Rc<Inner>);

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// Empty, at a fixed time.
    pub fn new() -> Self {
        Self::with(policy())
    }

    /// Empty, under another policy.
    pub fn with(policy: Policy) -> Self {
        Self(Rc::new(Inner {
            facts: RefCell::default(),
            entries: RefCell::default(),
            now: Cell::new(OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000)),
            drawn: Cell::new(0),
            hashes: Cell::new(0),
            made_up: RefCell::default(),
            breaches: RefCell::default(),
            google: RefCell::default(),
            commit_fails: Cell::new(false),
            outbox_is_broken: Cell::new(false),
            meanwhile: RefCell::default(),
            beside: RefCell::default(),
            calls: RefCell::default(),
            store_fails: Cell::new(false),
            is_overloaded: Cell::new(false),
            policy,
            keys: Keys::derive(&[7; 32], None, None),
            limiter: LocalLimiter::default(),
        }))
    }

    /// With Ada in it: a verified user with an address and a number.
    pub fn with_ada() -> Self {
        let world = Self::new();
        world.add_ada();
        world
    }

    /// The same in a world that is there already.
    pub fn add_ada(&self) -> User {
        self.add(ADDRESS, Some(NUMBER))
    }

    /// A verified user with an address of their own, and Ada's password and name.
    pub fn add(&self, address: &str, number: Option<&str>) -> User {
        let request = CreateUser {
            email: Some(address.to_owned()),
            phone: number.map(str::to_owned),
            role: Role::Client,
            password: Credential::Password(Password::new(PASSWORD)),
            first_name: "Ada".into(),
            last_name: "Lovelace".into(),
        };
        let id = run(create_user(self, &caller(), request)).unwrap();
        self.users().into_iter().find(|user| user.id == id).unwrap()
    }

    /// Signs a user in as they are now, past the password.
    pub fn sign_in(&self, id: UserId) -> SignedIn {
        let user = self.users().into_iter().find(|user| user.id == id).unwrap();
        let open = async |store: &mut Self| session::open(self, store, user, None, "login", &caller()).await;
        run(self.transaction(open)).unwrap().session()
    }

    /// Sets up a second factor of somebody without one, in a new session of theirs.
    pub fn guard(&self, id: UserId) -> Guarded {
        let tokens = self.sign_in(id).tokens;
        let bearer = self.bearer(&tokens);
        let password = request(serde_json::json!({ "current_password": PASSWORD }));
        let begun = run(begin_totp(self, &caller(), &bearer, password)).unwrap_or_else(|error| panic!("{error}"));
        let secret = TotpSecret::from_base32(&begun.secret).unwrap();
        let code = request(serde_json::json!({ "code": secret.code(self.now()) }));
        let recovery_codes =
            run(confirm_totp(self, &caller(), &bearer, code)).unwrap_or_else(|error| panic!("{error}"));
        Guarded { bearer: self.bearer(&tokens), tokens, secret, recovery_codes }
    }

    /// Who bears a pair.
    pub fn bearer(&self, pair: &Pair) -> Bearer {
        run(authenticate(self, Some(&pair.access), Look::Anew)).unwrap()
    }

    /// Whether a pair's session still lives.
    pub fn is_alive(&self, pair: &Pair) -> bool {
        run(authenticate(self, Some(&pair.access), Look::Anew)).is_ok()
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        self.0.now.set(self.0.now.get() + time);
    }

    /// Whether the next commits fail.
    pub fn fail_commits(&self, fail: bool) {
        self.0.commit_fails.set(fail);
    }

    /// Whether the ephemeral store fails.
    pub fn fail_store(&self, fail: bool) {
        self.0.store_fails.set(fail);
    }

    /// Whether there is no room left for making up.
    pub fn overload_make_up(&self, is_overloaded: bool) {
        self.0.is_overloaded.set(is_overloaded);
    }

    /// Does this when the next password is hashed or verified, as a request beside this one would.
    pub fn on_next_hash(&self, work: impl FnOnce() + 'static) {
        self.0.beside.replace(Some(Box::new(work)));
    }

    /// What the ports were asked for since this was last asked.
    pub fn calls(&self) -> Vec<&'static str> {
        self.0.calls.take()
    }

    fn note(&self, call: &'static str) {
        self.0.calls.borrow_mut().push(call);
    }

    fn reach(&self, call: &'static str) -> Result<(), Unavailable> {
        self.note(call);
        match self.0.store_fails.get() {
            true => Err(Unavailable::store("the store fails on purpose")),
            false => Ok(()),
        }
    }

    fn rotated(&self, rotation: &Rotation) -> Option<Rotated> {
        let Rotation { id, user, from, at, expires_at, absolute, .. } = *rotation;
        let mut facts = self.0.facts.borrow_mut();
        let is_active = |row: &User| row.id == user && row.is_active && row.deleted_at.is_none();
        if !facts.users.iter().any(is_active) {
            return None;
        }
        let is_it = |session: &&mut Session| {
            let is_same = session.id == id && session.user_id == user && session.generation == from;
            is_same && session.is_alive(&self.0.policy.sessions, at)
        };
        let session = facts.sessions.iter_mut().find(is_it)?;
        session.expires_at = absolute.map_or(expires_at, |life| expires_at.min(session.created_at + life));
        (session.generation, session.rotated_at, session.last_used_at) = (from + 1, at, at);
        Some(Rotated { at, expires_at: session.expires_at })
    }

    /// From now on no letter can be written.
    pub fn break_outbox(&self) {
        self.0.outbox_is_broken.set(true);
    }

    /// Every user.
    pub fn users(&self) -> Vec<User> {
        self.0.facts.borrow().users.clone()
    }

    /// Changes the first user when the next unit of work begins, as somebody else would.
    pub fn on_next_commit(&self, change: impl FnOnce(&mut User) + 'static) {
        self.0.meanwhile.replace(Some(Box::new(change)));
    }

    /// Changes a user behind the services' back.
    pub fn change_user(&self, change: impl FnOnce(&mut User)) {
        change(self.0.facts.borrow_mut().users.first_mut().unwrap());
    }

    /// Soft-deletes the first user: no look-up finds them, but their identifier stays taken.
    pub fn hide_user(&self) {
        self.change_user(|user| user.deleted_at = Some(OffsetDateTime::UNIX_EPOCH));
    }

    /// Every session.
    pub fn sessions(&self) -> Vec<Session> {
        self.0.facts.borrow().sessions.clone()
    }

    /// What was audited: action, reason.
    pub fn audited(&self) -> Vec<(&'static str, &'static str)> {
        self.0.facts.borrow().audit.iter().map(|event| (event.action, event.reason)).collect()
    }

    /// Every event's name.
    pub fn events(&self) -> Vec<String> {
        let facts = self.0.facts.borrow();
        facts.outbox.iter().filter(|entry| entry.channel == Channel::Event).map(|entry| entry.kind.clone()).collect()
    }

    /// Every letter, opened.
    pub fn letters(&self) -> Vec<Message> {
        let facts = self.0.facts.borrow();
        let letters = facts.outbox.iter().filter(|entry| entry.channel != Channel::Event);
        let open = |entry: &OutboxEntry| self.0.keys.open_payload(entry.id, &entry.payload).unwrap();
        letters.map(|entry| serde_json::from_slice(&open(entry)).unwrap()).collect()
    }

    /// The code in the newest letter that has one.
    pub fn code(&self) -> String {
        let code = |message: Message| match message.letter {
            Letter::VerificationCode { code, .. } | Letter::PasswordResetCode { code, .. } => Some(code),
            _ => None,
        };
        self.letters().into_iter().rev().find_map(code).unwrap()
    }

    /// The `uidb64` and the token of the newest reset link.
    pub fn link(&self) -> (String, String) {
        let link = |message: Message| match message.letter {
            Letter::PasswordReset { url, .. } => {
                let mut parts = url.rsplit('/').map(str::to_owned);
                let token = parts.next()?;
                parts.next().map(|uidb64| (uidb64, token))
            }
            _ => None,
        };
        self.letters().into_iter().rev().find_map(link).unwrap()
    }

    /// The kind of every letter.
    pub fn letter_kinds(&self) -> Vec<&'static str> {
        self.letters().iter().map(|message| message.letter.kind()).collect()
    }

    /// How many entries the outbox has, letters and events.
    pub fn entries(&self) -> usize {
        self.0.facts.borrow().outbox.len()
    }

    /// The greatest cost of each scheme of imported hashes.
    pub fn imported(&self) -> Vec<(String, i64)> {
        self.0.facts.borrow().imported_hashes.clone().into_iter().collect()
    }

    /// What each failed sign-in had to do besides.
    pub fn made_up(&self) -> Vec<Vec<Cost>> {
        self.0.made_up.borrow().clone()
    }

    /// The keys that Google has from now on; without any, it is silent.
    pub fn answer_google(&self, keys: Option<&[(&str, Arc<DecodingKey>)]>) {
        let owned = |keys: &[(&str, Arc<DecodingKey>)]| {
            keys.iter().map(|(id, key)| ((*id).to_owned(), Arc::clone(key))).collect()
        };
        self.0.google.replace(keys.map(owned));
    }

    /// What the look-up of breaches answers from now on.
    pub fn answer_breaches(&self, answer: Option<&str>) {
        self.0.breaches.replace(answer.map(str::to_owned));
    }

    /// How many hashes were made or verified.
    pub fn hashes(&self) -> u32 {
        self.0.hashes.get()
    }
}

impl Ports for World {
    type Store = Self;
    type Ephemeral = Self;

    fn policy(&self) -> &Policy {
        &self.0.policy
    }

    fn keys(&self) -> &Keys {
        &self.0.keys
    }

    fn now(&self) -> OffsetDateTime {
        self.0.now.get()
    }

    // SplitMix64: different every time, the same in every run.
    fn random<const N: usize>(&self) -> [u8; N] {
        std::array::from_fn(|_| {
            self.0.drawn.set(self.0.drawn.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
            let mut mixed = self.0.drawn.get();
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)).to_le_bytes()[0]
        })
    }

    // Documentation addresses are somewhere.
    fn place(&self, ip: IpAddr) -> Place {
        match ip.to_string().starts_with("192.0.2.") {
            true => Place { country: "Nigeria".into(), city: "Lagos".into() },
            false => Place::default(),
        }
    }

    fn ephemeral(&self) -> &Self {
        self
    }

    async fn store(&self) -> Result<Self, Unavailable> {
        self.note("store");
        Ok(self.clone())
    }

    async fn known_session(&self, id: SessionId, _user: UserId) -> Result<Option<Arc<Known>>, Unavailable> {
        let found = self.clone().session_with_user(id).await?;
        Ok(found.map(|(session, user)| Arc::new(Known::new(session, user, Instant::now()))))
    }

    async fn rotate_session(&self, rotation: Rotation) -> Result<Option<Rotated>, Unavailable> {
        Ok(self.clone().rotate_sessions(&[rotation]).await?.into_iter().next().flatten())
    }

    async fn transaction<T, E>(&self, work: impl AsyncFnOnce(&mut Self) -> Result<T, E>) -> Result<T, E>
    where
        E: From<Unavailable>,
    {
        self.note("transaction");
        if let Some(change) = self.0.meanwhile.take() {
            self.change_user(change);
        }
        let before = self.0.facts.borrow().clone();
        let done = work(&mut self.clone()).await;
        if done.is_err() {
            self.0.facts.replace(before);
        } else if self.0.commit_fails.get() {
            self.0.facts.replace(before);
            return Err(Unavailable::database("the commit fails on purpose").into());
        }
        done
    }

    async fn hash_password(&self, password: Password, how: HashAs) -> Result<String, Overloaded> {
        self.note("hash_password");
        self.0.hashes.set(self.0.hashes.get() + 1);
        if let Some(beside) = self.0.beside.take() {
            beside();
        }
        CHEAP.hash_as(&password, &how, &mut Arena::default()).ok_or(Overloaded)
    }

    async fn verify_password(
        &self,
        password: Password,
        hash: Option<String>,
        other: Option<String>,
    ) -> Result<Verified, Overloaded> {
        self.note("verify_password");
        self.0.hashes.set(self.0.hashes.get() + 1);
        if let Some(beside) = self.0.beside.take() {
            beside();
        }
        Ok(CHEAP.verify(&password, hash.as_deref(), other.as_deref(), &mut Arena::default()))
    }

    async fn make_up(&self, password: Password, profile: Profile, done: Option<Cost>) -> Result<(), Overloaded> {
        self.note("make_up");
        if self.0.is_overloaded.get() {
            return Err(Overloaded);
        }
        self.0.made_up.borrow_mut().push(profile.missing(done));
        profile.make_up(done, &password);
        Ok(())
    }

    async fn google_key(&self, id: &str) -> Result<Option<Arc<DecodingKey>>, Unavailable> {
        self.note("google_key");
        let keys = self.0.google.borrow();
        let keys = keys.as_ref().ok_or_else(|| Unavailable::google("silent on purpose"))?;
        Ok(keys.get(id).cloned())
    }

    async fn breaches(&self, _prefix: &str) -> Result<String, Unavailable> {
        self.note("breaches");
        self.0.breaches.borrow().clone().ok_or_else(|| Unavailable::database("silent on purpose"))
    }

    async fn weakness(&self, password: Password, personal: Vec<String>) -> Result<Option<Weakness>, Overloaded> {
        self.note("weakness");
        Ok(passwords::weakness(&password, &personal, &self.0.policy.passwords))
    }
}

impl Users for World {
    async fn user_by_identifier(&mut self, identifier: &Identifier) -> Result<Option<User>, Unavailable> {
        self.note("user_by_identifier");
        let is_same = |text: &Option<String>, make: fn(String) -> Identifier| {
            text.clone()
                .map(make)
                .is_some_and(|own| own.kind() == identifier.kind() && own.comparable() == identifier.comparable())
        };
        let facts = self.0.facts.borrow();
        let mut living = facts.users.iter().filter(|user| user.deleted_at.is_none());
        Ok(living
            .find(|user| is_same(&user.email, Identifier::Email) || is_same(&user.phone, Identifier::Phone))
            .cloned())
    }

    async fn user(&mut self, id: UserId) -> Result<Option<User>, Unavailable> {
        self.note("user");
        Ok(self.0.facts.borrow().users.iter().find(|user| user.id == id && user.deleted_at.is_none()).cloned())
    }

    async fn insert_user(&mut self, user: &User) -> Result<Inserted, Unavailable> {
        for identifier in [user.email.clone().map(Identifier::Email), user.phone.clone().map(Identifier::Phone)] {
            let index = |of: &Option<String>| of.as_ref().map(|text| text.to_lowercase());
            let is_taken = |row: &User| match &identifier {
                Some(Identifier::Email(_)) => index(&row.email) == index(&user.email),
                Some(Identifier::Phone(_)) => index(&row.phone) == index(&user.phone),
                None => false,
            };
            if self.0.facts.borrow().users.iter().any(is_taken) {
                return Ok(Inserted::Taken);
            }
        }
        self.0.facts.borrow_mut().users.push(user.clone());
        Ok(Inserted::Yes)
    }

    async fn renew_registration(
        &mut self,
        id: UserId,
        is_contested: bool,
        at: OffsetDateTime,
    ) -> Result<(), Unavailable> {
        for user in self.0.facts.borrow_mut().users.iter_mut().filter(|user| user.id == id && !user.is_verified) {
            (user.is_contested, user.updated_at) = (user.is_contested || is_contested, at);
        }
        Ok(())
    }

    async fn confirm_user(&mut self, id: UserId, with: &Confirmation, at: OffsetDateTime) -> Result<bool, Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        let Some(user) = facts.users.iter_mut().find(|user| user.id == id && !user.is_verified) else {
            return Ok(false);
        };
        *user = User { updated_at: at, ..with.apply(user.clone()) };
        Ok(true)
    }

    async fn update_profile(
        &mut self,
        id: UserId,
        changes: &ProfileChanges,
        at: OffsetDateTime,
    ) -> Result<Option<User>, Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        let Some(user) = facts.users.iter_mut().find(|user| user.id == id) else { return Ok(None) };
        let set = |field: &mut String, new: &Option<String>| new.iter().for_each(|new| new.clone_into(field));
        set(&mut user.first_name, &changes.first_name);
        set(&mut user.last_name, &changes.last_name);
        set(&mut user.bio, &changes.bio);
        set(&mut user.avatar, &changes.avatar);
        set(&mut user.country, &changes.country);
        set(&mut user.state, &changes.state);
        set(&mut user.city, &changes.city);
        set(&mut user.address, &changes.address);
        user.updated_at = at;
        Ok(Some(user.clone()))
    }

    async fn record_login(
        &mut self,
        user: &User,
        new_hash: Option<&str>,
        at: OffsetDateTime,
    ) -> Result<bool, Unavailable> {
        self.note("record_login");
        let mut facts = self.0.facts.borrow_mut();
        let is_same = |row: &&mut User| {
            let is_living = row.is_active && row.deleted_at.is_none();
            let is_unchanged = row.password_hash == user.password_hash && row.second_factor_at == user.second_factor_at;
            row.id == user.id && is_living && is_unchanged
        };
        let Some(row) = facts.users.iter_mut().find(is_same) else { return Ok(false) };
        row.last_login_at = Some(at);
        row.password_hash = new_hash.map(str::to_owned).or(row.password_hash.take());
        Ok(true)
    }

    async fn set_password(&mut self, user: &User, new_hash: &str, at: OffsetDateTime) -> Result<bool, Unavailable> {
        self.note("set_password");
        let mut facts = self.0.facts.borrow_mut();
        let is_same = |row: &&mut User| {
            row.id == user.id && row.is_active && row.deleted_at.is_none() && row.password_hash == user.password_hash
        };
        let Some(row) = facts.users.iter_mut().find(is_same) else { return Ok(false) };
        (row.password_hash, row.password_changed_at, row.updated_at) = (Some(new_hash.to_owned()), Some(at), at);
        Ok(true)
    }

    async fn user_by_identity(&mut self, subject_index: &[u8; 32]) -> Result<Option<User>, Unavailable> {
        self.note("user_by_identity");
        let identity = self.0.facts.borrow().identities.iter().find(|row| row.0 == *subject_index).copied();
        match identity {
            Some((_, user, _)) => self.user(user).await,
            None => Ok(None),
        }
    }

    async fn has_identity(&mut self, user: UserId, provider: AuthProvider) -> Result<bool, Unavailable> {
        Ok(self.0.facts.borrow().identities.iter().any(|row| (row.1, row.2) == (user, provider)))
    }

    async fn insert_identity(
        &mut self,
        subject_index: &[u8; 32],
        user: UserId,
        provider: AuthProvider,
        _at: OffsetDateTime,
    ) -> Result<Inserted, Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        let is_taken = |row: &Identity| row.0 == *subject_index || (row.1, row.2) == (user, provider);
        if facts.identities.iter().any(is_taken) {
            return Ok(Inserted::Taken);
        }
        facts.identities.push((*subject_index, user, provider));
        Ok(Inserted::Yes)
    }

    async fn forget_identities(&mut self, user: UserId) -> Result<(), Unavailable> {
        self.0.facts.borrow_mut().identities.retain(|row| row.1 != user);
        Ok(())
    }

    async fn note_imported_hash(&mut self, scheme: &str, work: i64) -> Result<(), Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        let known = facts.imported_hashes.entry(scheme.to_owned()).or_default();
        *known = work.max(*known);
        Ok(())
    }

    async fn imported_hashes(&mut self) -> Result<Vec<(String, i64)>, Unavailable> {
        self.note("imported_hashes");
        Ok(self.0.facts.borrow().imported_hashes.clone().into_iter().collect())
    }
}

impl Sessions for World {
    async fn insert_session(&mut self, session: &Session) -> Result<(), Unavailable> {
        self.note("insert_session");
        self.0.facts.borrow_mut().sessions.push(session.clone());
        Ok(())
    }

    async fn session_with_user(&mut self, id: SessionId) -> Result<Option<(Session, User)>, Unavailable> {
        self.note("session_with_user");
        let session = self.0.facts.borrow().sessions.iter().find(|session| session.id == id).cloned();
        let Some(session) = session else { return Ok(None) };
        Ok(self.user(session.user_id).await?.map(|user| (session, user)))
    }

    async fn sessions_with_users(&mut self, ids: &[SessionId]) -> Result<Vec<FoundSession>, Unavailable> {
        let mut found = Vec::new();
        for id in ids {
            found.push(self.session_with_user(*id).await);
        }
        Ok(found)
    }

    async fn rotate_sessions(&mut self, rotations: &[Rotation]) -> Result<Vec<Option<Rotated>>, Unavailable> {
        self.note("rotate_sessions");
        if self.0.commit_fails.get() {
            return Err(Unavailable::database("the commit fails on purpose"));
        }
        Ok(rotations.iter().map(|rotation| self.rotated(rotation)).collect())
    }

    async fn end_session(&mut self, id: SessionId, why: EndReason, at: OffsetDateTime) -> Result<bool, Unavailable> {
        self.note("end_session");
        let mut facts = self.0.facts.borrow_mut();
        let living = facts.sessions.iter_mut().find(|session| session.id == id && session.ended_at.is_none());
        let Some(session) = living else { return Ok(false) };
        (session.ended_at, session.end_reason) = (Some(at), Some(why));
        Ok(true)
    }

    async fn end_sessions_of(
        &mut self,
        user: UserId,
        but: Option<SessionId>,
        why: EndReason,
        at: OffsetDateTime,
    ) -> Result<Vec<SessionId>, Unavailable> {
        self.note("end_sessions_of");
        let mut facts = self.0.facts.borrow_mut();
        let living = facts.sessions.iter_mut().filter(|session| session.user_id == user && session.ended_at.is_none());
        let living = living.filter(|session| Some(session.id) != but);
        Ok(living
            .map(|session| {
                (session.ended_at, session.end_reason) = (Some(at), Some(why));
                session.id
            })
            .collect())
    }

    async fn touch_session(
        &mut self,
        id: SessionId,
        before: OffsetDateTime,
        at: OffsetDateTime,
    ) -> Result<(), Unavailable> {
        self.note("touch_session");
        if self.0.commit_fails.get() {
            return Err(Unavailable::database("the commit fails on purpose"));
        }
        let mut facts = self.0.facts.borrow_mut();
        let stale = facts.sessions.iter_mut().find(|session| session.id == id && session.last_used_at < before);
        stale.into_iter().for_each(|session| session.last_used_at = at);
        Ok(())
    }

    async fn sessions_of(&mut self, user: UserId, living: &Living, page: Page) -> Result<Listed<Session>, Unavailable> {
        self.note("sessions_of");
        let facts = self.0.facts.borrow();
        let own = facts.sessions.iter().filter(|session| session.user_id == user && session.ended_at.is_none());
        let own = own.filter(|session| session.expires_at > living.at && session.created_at > living.opened_after);
        let own = own.filter(|session| session.last_used_at > living.used_after);
        Ok(paged(own.cloned().collect(), page, |session| (session.created_at, session.id.0)))
    }
}

fn paged<T>(mut items: Vec<T>, page: Page, place: impl Fn(&T) -> (OffsetDateTime, Uuid)) -> Listed<T> {
    let count = i64::try_from(items.len()).unwrap();
    items.sort_by_key(|item| std::cmp::Reverse(place(item)));
    items.retain(|item| page.after.is_none_or(|after| place(item) < after));
    items.truncate(usize::try_from(page.limit).unwrap());
    Listed { count, items }
}

impl Outbox for World {
    async fn enqueue(&mut self, entry: &OutboxEntry) -> Result<(), Unavailable> {
        self.note("enqueue");
        if self.0.outbox_is_broken.get() {
            return Err(Unavailable::database("broken on purpose"));
        }
        self.0.facts.borrow_mut().outbox.push(entry.clone());
        Ok(())
    }

    async fn claim(
        &mut self,
        owner: Uuid,
        now: OffsetDateTime,
        until: OffsetDateTime,
        most: i64,
    ) -> Result<Vec<OutboxEntry>, Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        let is_due = |entry: &&mut OutboxEntry| entry.state == OutboxState::Pending && entry.available_at <= now;
        let most = usize::try_from(most).unwrap();
        let mut claimed = Vec::new();
        for entry in facts.outbox.iter_mut().filter(is_due).take(most) {
            entry.available_at = until;
            entry.attempts += 1;
            claimed.push(entry.clone());
        }
        facts.leases.extend(claimed.iter().map(|entry| (entry.id, owner)));
        Ok(claimed)
    }

    async fn settle(
        &mut self,
        ids: &[Uuid],
        owner: Uuid,
        settlement: &Settlement,
        _now: OffsetDateTime,
    ) -> Result<usize, Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        let mut settled = 0;
        for id in ids {
            if facts.leases.get(id) != Some(&owner) {
                continue;
            }
            facts.leases.remove(id);
            settled += 1;
            let entry = facts.outbox.iter_mut().find(|entry| entry.id == *id).unwrap();
            match settlement {
                Settlement::Sent => entry.state = OutboxState::Sent,
                Settlement::Retry { at, error } => {
                    entry.available_at = *at;
                    entry.last_error.clone_from(error);
                }
                Settlement::Dead { error } => {
                    entry.state = OutboxState::Dead;
                    entry.last_error.clone_from(error);
                }
            }
        }
        Ok(settled)
    }

    async fn outbox_entries(&mut self, state: Option<OutboxState>, most: i64) -> Result<Vec<OutboxEntry>, Unavailable> {
        let facts = self.0.facts.borrow();
        let letters = facts.outbox.iter().rev().filter(|entry| entry.channel != Channel::Event);
        let wanted = letters.filter(|entry| state.is_none_or(|state| entry.state == state));
        Ok(wanted.take(usize::try_from(most).unwrap()).cloned().collect())
    }

    async fn revive(&mut self, ids: Option<&[Uuid]>, now: OffsetDateTime) -> Result<usize, Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        let dead = facts.outbox.iter_mut().filter(|entry| entry.state == OutboxState::Dead);
        let wanted = dead.filter(|entry| ids.is_none_or(|ids| ids.contains(&entry.id)));
        Ok(wanted
            .map(|entry| (entry.state, entry.attempts, entry.available_at) = (OutboxState::Pending, 0, now))
            .count())
    }

    async fn purge(&mut self, _now: OffsetDateTime, before: &Before) -> Result<usize, Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        let count = |facts: &Facts| facts.outbox.len() + facts.audit.len() + facts.users.len();
        let at_first = count(&facts);
        facts.outbox.retain(|entry| entry.state == OutboxState::Pending || entry.created_at >= before.outbox);
        facts.audit.retain(|event| event.at >= before.audit);
        facts.users.retain(|user| user.is_verified || user.updated_at >= before.unverified);
        Ok(at_first - count(&facts))
    }
}

impl Audit for World {
    async fn record(&mut self, event: &AuditEvent) -> Result<(), Unavailable> {
        self.note("record");
        self.0.facts.borrow_mut().audit.push(event.clone());
        Ok(())
    }

    async fn login_events(
        &mut self,
        user: UserId,
        actions: &[&str],
        page: Page,
    ) -> Result<Listed<LoginEvent>, Unavailable> {
        self.note("login_events");
        let facts = self.0.facts.borrow();
        let own = facts.audit.iter().filter(|event| event.user_id == Some(user) && actions.contains(&event.action));
        let shown = own.map(|event| {
            let client = event.caller.client();
            LoginEvent {
                id: event.id,
                at: event.at,
                action: event.action.to_owned(),
                outcome: event.outcome,
                reason: event.reason.to_owned(),
                session_id: event.session_id,
                ip: event.caller.ip.to_string(),
                browser: client.browser,
                os: client.os,
                device: client.device,
                place: event.place.clone(),
            }
        });
        Ok(paged(shown.collect(), page, |event| (event.at, event.id)))
    }
}

impl SecondFactors for World {
    async fn mark_second_factor(
        &mut self,
        user: &User,
        since: Option<OffsetDateTime>,
        at: OffsetDateTime,
    ) -> Result<bool, Unavailable> {
        self.note("mark_second_factor");
        let mut facts = self.0.facts.borrow_mut();
        let is_same = |row: &&mut User| {
            let is_living = row.is_active && row.deleted_at.is_none();
            let is_unchanged =
                row.password_changed_at == user.password_changed_at && row.second_factor_at == user.second_factor_at;
            row.id == user.id && is_living && is_unchanged
        };
        let Some(row) = facts.users.iter_mut().find(is_same) else { return Ok(false) };
        (row.second_factor_at, row.updated_at) = (since, at);
        Ok(true)
    }

    async fn totp(&mut self, user: UserId) -> Result<Option<TotpFactor>, Unavailable> {
        self.note("totp");
        Ok(self.0.facts.borrow().totp.get(&user).cloned())
    }

    async fn insert_totp(&mut self, user: UserId, factor: &TotpFactor, _at: OffsetDateTime) -> Result<(), Unavailable> {
        let before = self.0.facts.borrow_mut().totp.insert(user, factor.clone());
        before.map_or(Ok(()), |_| Err(Unavailable::database("a user has one authenticator at most")))
    }

    async fn advance_totp(&mut self, user: UserId, step: i64) -> Result<bool, Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        let Some(factor) = facts.totp.get_mut(&user).filter(|factor| factor.last_step < step) else { return Ok(false) };
        factor.last_step = step;
        Ok(true)
    }

    async fn remove_totp(&mut self, user: UserId) -> Result<(), Unavailable> {
        self.0.facts.borrow_mut().totp.remove(&user);
        Ok(())
    }

    async fn recovery_codes(&mut self, user: UserId) -> Result<Vec<Vec<u8>>, Unavailable> {
        self.note("recovery_codes");
        let facts = self.0.facts.borrow();
        let unused = facts.recovery_codes.iter().filter(|(owner, _, is_used)| *owner == user && !is_used);
        Ok(unused.map(|(_, digest, _)| digest.clone()).collect())
    }

    async fn replace_recovery_codes(&mut self, user: UserId, digests: &[[u8; 32]]) -> Result<(), Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        facts.recovery_codes.retain(|(owner, ..)| *owner != user);
        facts.recovery_codes.extend(digests.iter().map(|digest| (user, digest.to_vec(), false)));
        Ok(())
    }

    async fn spend_recovery_code(
        &mut self,
        user: UserId,
        digest: &[u8],
        _at: OffsetDateTime,
    ) -> Result<bool, Unavailable> {
        let mut facts = self.0.facts.borrow_mut();
        let unused =
            facts.recovery_codes.iter_mut().find(|(owner, own, is_used)| *owner == user && own == digest && !*is_used);
        let Some((.., is_used)) = unused else { return Ok(false) };
        *is_used = true;
        Ok(true)
    }
}

impl World {
    fn living(&self, key: &str) -> Option<Counted> {
        self.0.entries.borrow().get(key).filter(|(.., until)| *until > self.now()).cloned()
    }

    fn insert(&self, key: &str, value: &[u8], count: i64, until: OffsetDateTime) {
        self.0.entries.borrow_mut().insert(key.to_owned(), (value.to_vec(), count, until));
    }
}

impl Ephemeral for World {
    async fn put(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Unavailable> {
        self.reach("put")?;
        self.insert(key, value, 0, self.now() + ttl);
        Ok(())
    }

    async fn put_if_absent(&self, key: &str, value: &[u8], ttl: Duration) -> Result<Option<Duration>, Unavailable> {
        self.reach("put_if_absent")?;
        match self.living(key) {
            Some((.., until)) => Ok(Some((until - self.now()).unsigned_abs())),
            None => {
                self.insert(key, value, 0, self.now() + ttl);
                Ok(None)
            }
        }
    }

    async fn claim(&self, claim: &Claim) -> Result<bool, Unavailable> {
        self.reach("claim")?;
        let is_free = self.living(&claim.key).is_none();
        if is_free {
            self.insert(&claim.key, b"1", 0, self.now() + claim.ttl);
        }
        let counter = if is_free { &claim.had } else { &claim.withheld };
        let (count, until) =
            self.living(counter).map_or((1, self.now() + claim.window), |(_, count, until)| (count + 1, until));
        self.insert(counter, b"", count, until);
        let is_granted = is_free && count <= claim.most;
        claim.puts(is_granted).for_each(|put| self.insert(&put.key, &put.value, 0, self.now() + put.ttl));
        Ok(is_granted)
    }

    async fn get_all<const N: usize>(&self, keys: [&str; N]) -> Result<[Option<Entry>; N], Unavailable> {
        self.reach("get_all")?;
        let entry = |(value, _, until): (_, _, OffsetDateTime)| Entry {
            value,
            expires_in: (until - self.now()).unsigned_abs(),
        };
        Ok(keys.map(|key| self.living(key).map(entry)))
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Unavailable> {
        self.reach("get")?;
        let living = self.living(key);
        Ok(living.map(|(value, _, until)| Entry { value, expires_in: (until - self.now()).unsigned_abs() }))
    }

    async fn remove_if_equal(&self, key: &str, value: &[u8]) -> Result<bool, Unavailable> {
        self.reach("remove_if_equal")?;
        let is_it = self.living(key).is_some_and(|(living, ..)| living == value);
        if is_it {
            self.0.entries.borrow_mut().remove(key);
        }
        Ok(is_it)
    }

    async fn remove(&self, key: &str) -> Result<(), Unavailable> {
        self.reach("remove")?;
        self.0.entries.borrow_mut().remove(key);
        Ok(())
    }

    async fn increment(&self, key: &str, ttl: Duration) -> Result<i64, Unavailable> {
        self.reach("increment")?;
        let (count, until) = self.living(key).map_or((1, self.now() + ttl), |(_, count, until)| (count + 1, until));
        self.insert(key, b"", count, until);
        Ok(count)
    }

    async fn take_back(&self, rules: &[Rule]) {
        self.0.limiter.take_back(rules, self.now());
    }

    async fn decrement(&self, key: &str) -> Result<(), Unavailable> {
        self.reach("decrement")?;
        if let Some((_, count, until)) = self.living(key).filter(|(_, count, _)| *count > 0) {
            self.insert(key, b"", count - 1, until);
        }
        Ok(())
    }

    async fn admit(&self, rules: &[Rule]) -> Decision {
        self.0.limiter.admit(rules, self.now())
    }
}
