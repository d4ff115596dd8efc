//! The servers that the tests start for themselves.

use crate::support::{Postgres, Redis};

#[test]
fn a_cluster_keeps_its_data_over_a_stop() {
    let cluster = Postgres::start();
    let database = cluster.create_database();
    cluster.query(&database, "create table t (n int); insert into t values (7)");
    cluster.stop();
    cluster.start_again();
    assert_eq!(cluster.query(&database, "select n from t"), "7");
    assert!(String::from_utf8_lossy(&cluster.dump(&database)).contains("CREATE TABLE public.t"));
}

#[test]
fn a_redis_comes_back_on_its_port_without_what_it_held() {
    let server = Redis::start();
    let database = server.create_database();
    let set = || {
        let mut connection = redis::Client::open(database.as_str())
            .and_then(|client| client.get_connection())
            .expect("a Redis connection");
        redis::cmd("SET").arg("k").arg("123456").exec(&mut connection).expect("SET");
        redis::cmd("HSET").arg("h").arg("f").arg("v").exec(&mut connection).expect("HSET");
    };
    set();
    let dump = String::from_utf8_lossy(&server.dump(&database)).into_owned();
    assert!(dump.contains("k\n123456\n") && dump.contains("h\nf\nv\n"), "{dump}");
    server.stop();
    server.start_again();
    assert!(server.dump(&database).is_empty());
}
