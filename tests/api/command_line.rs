//! The commands beside `serve`.

use crate::support::{Backend, Engine, Gateway, Options, Side, for_each_backend, run_alone};
use serde_json::json;

const PASSWORD: &str = "copper-willow-37-tunnel";

#[test]
fn a_user_made_on_the_command_line_signs_in_on_both_engines() {
    for_each_backend(&[], |gateway| {
        let mut side = Side::new(gateway, Engine::V1);
        let email = side.email("admin");
        let outcome = gateway.run(&["user", "create", "--email", &email, "--role", "admin"], &format!("{PASSWORD}\n"));
        assert!(outcome.status.success(), "{}", outcome.errors);
        assert!(!outcome.output.contains(PASSWORD) && !outcome.errors.contains(PASSWORD));
        for engine in Engine::BOTH {
            let mut side = Side::new(gateway, engine);
            let answer = side.post("auth/login/", &json!({ "email_or_phone": email, "password": PASSWORD }));
            assert_eq!(answer.status, 200, "{}", answer.shown());
            assert_eq!(answer.at("data.role"), json!("admin"));
            assert_eq!(answer.at("data.user.is_staff"), json!(true));
            assert_eq!(answer.at("data.is_verified"), json!(true));
        }
        let again = gateway.run(&["user", "create", "--email", &email, "--role", "admin"], &format!("{PASSWORD}\n"));
        assert_eq!(again.status.code(), Some(1), "the address is taken: {}", again.output);
        let weak = gateway.run(&["user", "create", "--email", "weak@example.com", "--role", "staff"], "password\n");
        assert_eq!(weak.status.code(), Some(1), "{}", weak.output);
        let none = gateway.run(&["user", "create", "--email", "none@example.com", "--role", "staff"], "");
        assert!(!none.status.success());
        let role =
            gateway.run(&["user", "create", "--email", "r@example.com", "--role", "root"], &format!("{PASSWORD}\n"));
        assert_eq!(role.status.code(), Some(2), "usage: {}", role.errors);
    });
}

#[test]
fn the_outbox_is_listed_without_what_it_says_and_to_whom() {
    for_each_backend(&[], |gateway| {
        let mut side = Side::new(gateway, Engine::V2);
        let email = side.email("ada");
        let (code, _) = side.register(&email, PASSWORD);
        let listed = gateway.run(&["outbox", "list"], "");
        assert!(listed.status.success(), "{}", listed.errors);
        assert!(!listed.output.contains(&email) && !listed.output.contains(&code), "{}", listed.output);
        let dead = gateway.run(&["outbox", "list", "--state", "dead"], "");
        assert!(dead.status.success(), "{}", dead.errors);
        let retried = gateway.run(&["outbox", "retry", "--all-dead"], "");
        assert!(retried.status.success(), "{}", retried.errors);
        let nothing = gateway.run(&["outbox", "retry", "no-such-id"], "");
        assert!(!nothing.status.success(), "{}", nothing.output);
    });
}

#[test]
fn the_configuration_is_shown_with_its_sources_and_without_its_secrets() {
    let outcome = run_alone(
        &[
            ("BIFRONS_MAIL__URL", "smtps://user:open-sesame@mail.example.com"),
            ("BIFRONS_TOKENS__SIGNING_KEY", "sesame-sesame-sesame-sesame-sesame"),
            ("BIFRONS_LIMITS__BURST", "7/min"),
        ],
        &["config", "show"],
        "",
    );
    assert!(outcome.status.success(), "{}", outcome.errors);
    let shown = &outcome.output;
    assert!(!shown.contains("sesame"), "{shown}");
    assert!(shown.contains("********"), "{shown}");
    let line = shown.lines().find(|line| line.contains("limits.burst")).expect("limits.burst");
    assert!(line.contains("7/min") && line.contains("BIFRONS_LIMITS__BURST"), "{line}");
    for key in [
        "data_dir",
        "engines.v1.bind",
        "store.url",
        "passwords.memory_kib",
        "otp.ttl",
        "otp.link_ttl",
        "sessions.max_per_user",
        "stuffing.rate",
        "links.password_reset",
        "geoip.database",
        "passwords.breaches_url",
        "secrets.master",
    ] {
        assert!(shown.contains(key), "{key} is not shown");
    }
    assert!(run_alone(&[], &["config", "check"], "").status.success());
}

#[test]
fn a_generated_key_is_new_each_time_and_good_as_the_master_secret() {
    let keys = [(), ()].map(|()| {
        let outcome = run_alone(&[], &["keys", "generate"], "");
        assert!(outcome.status.success(), "{}", outcome.errors);
        outcome.output.trim().to_owned()
    });
    assert_ne!(keys[0], keys[1]);
    for key in &keys {
        assert!(!key.contains(char::is_whitespace), "standard output has the key and nothing else: {key}");
    }
    let mut gateway = Gateway::start(Options::new(Backend::Embedded).with("BIFRONS_SECRETS__MASTER", &keys[0]));
    let account = Side::new(&gateway, Engine::V1).account("ada");
    assert!(!gateway.data_directory().join("master.key").exists(), "a configured secret is not written down");
    gateway.stop();
    gateway.set("BIFRONS_SECRETS__MASTER", &keys[1]);
    let outcome = gateway.run(&["serve", "--help"], "");
    assert!(outcome.status.success());
    gateway.set("BIFRONS_SECRETS__MASTER", &keys[0]);
    gateway.restart();
    assert_eq!(Side::new(&gateway, Engine::V2).me(&account.access).status, 200);
}

#[test]
fn migrating_twice_changes_nothing() {
    for_each_backend(&[], |gateway| {
        for _ in 0..2 {
            let outcome = gateway.run(&["migrate"], "");
            assert!(outcome.status.success(), "{}", outcome.errors);
        }
    });
}

#[test]
fn help_is_there_and_a_wrong_command_is_a_usage_error() {
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["user", "create", "--help"],
        &["user", "unlock", "--help"],
        &["outbox", "--help"],
    ] {
        let outcome = run_alone(&[], arguments, "");
        assert!(outcome.status.success() && outcome.output.contains("Usage"), "{arguments:?}: {}", outcome.errors);
    }
    assert_eq!(run_alone(&[], &["user", "unlock"], "").status.code(), Some(2));
    assert_eq!(run_alone(&[], &["server"], "").status.code(), Some(2));
    assert_eq!(run_alone(&[], &["serve", "--port", "1"], "").status.code(), Some(2));
}

// `serve` begins once more, as the same process, to have the allocator keep less for each thread and large pages asked
// for.
#[cfg(target_env = "gnu")]
#[test]
fn the_gateway_tells_its_allocator_what_an_operator_has_not() {
    let environment = |options: Options| {
        let gateway = Gateway::start(options);
        let environment = std::fs::read(format!("/proc/{}/environ", gateway.pid())).unwrap();
        // glibc may put an end to each tunable where the next begins.
        (String::from_utf8(environment).unwrap().replace("\0glibc.", ":glibc."), gateway)
    };
    let set = |environment: &str, variable: &str| environment.split('\0').any(|set| set == variable);
    let ours = "GLIBC_TUNABLES=glibc.malloc.tcache_max=200:glibc.malloc.hugetlb=1";
    // Whatever these tests were started with.
    let none = || Options::new(Backend::Embedded).with("GLIBC_TUNABLES", "");
    let (begun, gateway) = environment(none());
    assert!(set(&begun, ours), "{begun}");
    let own_process = format!("ALLOCATOR_TUNED_IN_PROCESS={}", gateway.pid());
    assert!(set(&begun, &own_process), "so that it does not begin for ever");
    // glibc asks for them only where the kernel waits to be asked, and since 2.35.
    let version = std::process::Command::new("getconf").arg("GNU_LIBC_VERSION").output().unwrap().stdout;
    let minor = String::from_utf8(version).unwrap().trim().rsplit('.').next().and_then(|n| n.parse::<u32>().ok());
    let on_request = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|modes| modes.contains("[madvise]") && minor.is_some_and(|minor| minor >= 35));
    if on_request {
        let memory = std::fs::read_to_string(format!("/proc/{}/smaps", gateway.pid())).unwrap();
        let flags = |line: &&str| line.starts_with("VmFlags:") && line.contains(" hg");
        assert!(memory.lines().find(flags).is_some(), "no large pages are asked for");
    }
    // As of a gateway that began before in the same environment.
    let (begun, _gateway) = environment(none().with("ALLOCATOR_TUNED_IN_PROCESS", "1"));
    assert!(set(&begun, ours), "{begun}");
    let own = "glibc.malloc.tcache_count=2:glibc.malloc.hugetlb=0";
    let (begun, _gateway) = environment(Options::new(Backend::Embedded).with("GLIBC_TUNABLES", own));
    assert!(set(&begun, &format!("GLIBC_TUNABLES={own}")), "{begun}");
    assert!(!begun.contains("ALLOCATOR_TUNED_IN_PROCESS"), "{begun}");
}
