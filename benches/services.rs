//! What the services cost by themselves, without an engine or a database.

use std::{hint::black_box, time::Duration};

use bifrons::{
    api::{Call, Edge, Handled, Reply, Success, Version, call::Parts},
    services::{
        identifier::Identifier,
        keys::Keys,
        limits::{LocalLimiter, Rate, Rule},
        model::{Place, Session, SessionId, UserId},
        passwords::{Arena, HashParams, Password, weakness},
        policy::{Breaches, PasswordPolicy, TokenPolicy},
        run::run,
        tokens,
    },
    settings::Settings,
    system,
};
use divan::Bencher;
use uuid::Uuid;

fn main() {
    divan::main();
}

fn keys() -> Keys {
    Keys::derive(&[7; 32], None, None)
}

fn policy() -> TokenPolicy {
    TokenPolicy {
        access_ttl: Duration::from_secs(900),
        refresh_ttl: Duration::from_secs(2_592_000),
        reuse_grace: Duration::from_secs(30),
        issuer: "bifrons".to_owned(),
        audience: "bifrons".to_owned(),
    }
}

fn session() -> Session {
    let now = system::now();
    Session {
        id: SessionId(Uuid::from_u128(1)),
        user_id: UserId(Uuid::from_u128(2)),
        generation: 0,
        rotated_at: now,
        expires_at: now + Duration::from_secs(2_592_000),
        created_at: now,
        last_used_at: now,
        ended_at: None,
        end_reason: None,
        ip: String::new(),
        user_agent: String::new(),
        browser: String::new(),
        os: String::new(),
        device: String::new(),
        place: Place::default(),
    }
}

#[divan::bench]
fn argon2id_at_the_default_cost(bencher: Bencher<'_, '_>) {
    let (params, password) =
        (HashParams { memory_kib: 19_456, iterations: 2, parallelism: 1 }, Password::new("violet-Kettle-93"));
    let mut arena = Arena::default();
    bencher.bench_local(|| params.hash(black_box(&password), [1; 16], &mut arena));
}

#[divan::bench]
fn judging_a_password(bencher: Bencher<'_, '_>) {
    let policy = PasswordPolicy { min_length: 8, max_length: 128, min_score: 2, breaches: Breaches::Off };
    let password = Password::new("violet-Kettle-93");
    bencher.bench(|| weakness(black_box(&password), &["ada@example.org"], &policy));
}

#[divan::bench]
fn minting_a_pair_of_tokens(bencher: Bencher<'_, '_>) {
    let (keys, policy, session) = (keys(), policy(), session());
    bencher.bench(|| tokens::mint(black_box(&session), &keys, &policy));
}

#[divan::bench]
fn opening_a_token(bencher: Bencher<'_, '_>) {
    let (keys, policy) = (keys(), policy());
    let pair = tokens::mint(&session(), &keys, &policy);
    let now = system::now();
    bencher.bench(|| tokens::open(black_box(&pair.access), &keys, &policy, now));
}

#[divan::bench]
fn deciding_two_limits(bencher: Bencher<'_, '_>) {
    let limiter = LocalLimiter::default();
    let rate = Rate { count: u32::MAX, per: Duration::from_secs(60) };
    let rules = ["limit:burst:192.0.2.1", "limit:sustained:192.0.2.1"].map(|key| Rule { key: key.to_owned(), rate });
    let now = system::now();
    bencher.bench(|| limiter.admit(black_box(&rules), now));
}

#[divan::bench]
fn reading_an_address(bencher: Bencher<'_, '_>) {
    bencher.bench(|| Identifier::email(black_box("Ada.Lovelace@Example.org")));
}

#[divan::bench]
fn reading_a_phone_number(bencher: Bencher<'_, '_>) {
    bencher.bench(|| Identifier::phone(black_box("0803 123 4567"), "NG"));
}

#[divan::bench]
fn sealing_and_indexing_an_address(bencher: Bencher<'_, '_>) {
    let (keys, address) = (keys(), Identifier::Email("ada@example.org".to_owned()));
    bencher.bench(|| {
        let sealed = keys.seal_field("email", Uuid::from_u128(1), address.as_str(), [1; 24]);
        (sealed, keys.blind_index(black_box(&address)))
    });
}

#[divan::bench]
fn putting_new_tokens_into_the_envelope(bencher: Bencher<'_, '_>) {
    let settings = Settings::from_overrides(&[]).expect("the defaults");
    let edge = Edge::new(&settings);
    let headers = [
        ("host", "127.0.0.1:8002"),
        ("accept", "application/json"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("content-type", "application/json"),
    ];
    let parts = Parts {
        method: "POST",
        target: "/api/v2/auth/token/refresh/",
        peer: std::net::Ipv4Addr::LOCALHOST.into(),
        headers: headers.map(|(name, value)| (name, value.as_bytes())),
        body: Ok(Vec::new()),
    };
    let call = Call::new(Version::V2, &edge, parts);
    let pair = tokens::mint(&session(), &keys(), &policy());
    bencher.bench(|| {
        let handled = Handled::new(None, Ok(Success::refreshed(&edge, black_box(&pair))));
        Reply::new(&edge, &call, false, handled)
    });
}

#[divan::bench]
fn running_a_ready_service(bencher: Bencher<'_, '_>) {
    // As many waits as a refresh has; without the black box the compiler would run it ahead.
    bencher.bench(|| {
        run(black_box(async {
            let mut sum = 0_u64;
            for n in 0..4 {
                sum += black_box(std::future::ready(n)).await;
            }
            sum
        }))
    });
}
