//! A Redis server of the test's own, in memory and on a free port.

use super::processes::{Process, Program, eventually, free_port, fresh_directory};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A server; dropping it ends it. What it held is gone after a stop, as when a Redis without persistence restarts.
pub struct Redis {
    directory: PathBuf,
    port: u16,
    process: Mutex<Option<Process>>,
    databases: AtomicU32,
}

impl Redis {
    pub fn start() -> Self {
        let server = Self {
            directory: fresh_directory("redis"),
            port: free_port(),
            process: Mutex::new(None),
            databases: AtomicU32::new(0),
        };
        server.start_again();
        server
    }

    /// Starts it again on the same port.
    pub fn start_again(&self) {
        let program = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|directory| directory.join("redis-server"))
            .find(|program| program.exists())
            .unwrap_or_else(|| panic!("redis-server is missing: run scripts/bootstrap"));
        let server = Program::new(program, &self.directory, "redis.log").arguments([
            "--port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--databases",
            "512",
            "--daemonize",
            "no",
        ]);
        let mut process = server.start();
        eventually("Redis answers", Duration::from_secs(10), || {
            let log = || fs::read_to_string(&server.log).unwrap_or_default();
            assert!(process.ended().is_none(), "Redis ended: {}", log());
            let mut connection = self.connect(0).ok()?;
            ::redis::cmd("PING").query::<String>(&mut connection).ok()
        });
        *self.process.lock().expect("no panic under the lock") = Some(process);
    }

    pub fn stop(&self) {
        if let Some(mut process) = self.process.lock().expect("no panic under the lock").take() {
            process.signal("TERM");
            process.wait(Duration::from_secs(10));
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database of its own.
    pub fn create_database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        assert!(number < 512, "one redis-server has 512 databases");
        format!("redis://127.0.0.1:{}/{number}", self.port)
    }

    fn connect(&self, database: u32) -> ::redis::RedisResult<::redis::Connection> {
        ::redis::Client::open(format!("redis://127.0.0.1:{}/{database}", self.port))?
            .get_connection_with_timeout(Duration::from_secs(2))
    }

    /// Every key of the database and everything stored under it, one after the other.
    pub fn dump(&self, url: &str) -> Vec<u8> {
        let client = ::redis::Client::open(url).expect("a Redis URL");
        let mut connection = client.get_connection().expect("a Redis connection");
        let keys: Vec<Vec<u8>> = ::redis::cmd("KEYS").arg("*").query(&mut connection).expect("KEYS");
        let mut bytes = Vec::new();
        for key in keys {
            let kind: String = ::redis::cmd("TYPE").arg(&key).query(&mut connection).expect("TYPE");
            let mut command = match kind.as_str() {
                "string" => ::redis::cmd("GET"),
                "hash" => ::redis::cmd("HGETALL"),
                "set" => ::redis::cmd("SMEMBERS"),
                "list" => ::redis::cmd("LRANGE"),
                "zset" => ::redis::cmd("ZRANGE"),
                "stream" => ::redis::cmd("XRANGE"),
                _ => continue,
            };
            command.arg(&key);
            match kind.as_str() {
                "list" | "zset" => command.arg(0).arg(-1),
                "stream" => command.arg("-").arg("+"),
                _ => &mut command,
            };
            bytes.extend_from_slice(&key);
            bytes.push(b'\n');
            flatten(&command.query(&mut connection).expect("the value of a key"), &mut bytes);
        }
        bytes
    }
}

fn flatten(value: &::redis::Value, into: &mut Vec<u8>) {
    match value {
        ::redis::Value::BulkString(bytes) => {
            into.extend_from_slice(bytes);
            into.push(b'\n');
        }
        ::redis::Value::SimpleString(text) => into.extend_from_slice(format!("{text}\n").as_bytes()),
        ::redis::Value::Int(number) => into.extend_from_slice(format!("{number}\n").as_bytes()),
        ::redis::Value::Array(values) | ::redis::Value::Set(values) => {
            values.iter().for_each(|value| flatten(value, into));
        }
        ::redis::Value::Map(pairs) => {
            for (key, value) in pairs {
                flatten(key, into);
                flatten(value, into);
            }
        }
        _ => {}
    }
}
