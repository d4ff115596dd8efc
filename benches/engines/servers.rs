//! The PostgreSQL and the Redis that a gateway is measured with.

use super::{postgres::Postgres, redis_server::Redis};

/// Both servers; dropping them ends them.
pub struct Servers {
    postgres: Postgres,
    _redis: Redis,
    database: String,
    store: String,
}

impl Servers {
    /// Starts them as they would run in earnest: what is committed is on the disk.
    pub fn start() -> Self {
        let settings = ["fsync=on", "synchronous_commit=on", "shared_buffers=256MB", "max_wal_size=4GB"];
        let (postgres, redis) = (Postgres::start_with(&settings), Redis::start());
        let (database, store) = (postgres.create_database(), redis.create_database());
        Self { postgres, _redis: redis, database, store }
    }

    pub fn urls(&self) -> (String, String) {
        (self.database.clone(), self.store.clone())
    }

    /// Runs a statement in the gateway's database.
    pub fn query(&self, statement: &str) -> String {
        self.postgres.query(&self.database, statement)
    }

    pub fn postgres_version(&self) -> String {
        self.query("show server_version")
    }

    pub fn redis_version(&self) -> String {
        let information = || -> redis::RedisResult<String> {
            let client = redis::Client::open(self.store.as_str())?;
            redis::cmd("INFO").arg("server").query(&mut client.get_connection()?)
        };
        let information = information().unwrap_or_default();
        let line = information.lines().find_map(|line| line.strip_prefix("redis_version:"));
        line.unwrap_or("unknown").trim().to_owned()
    }
}
