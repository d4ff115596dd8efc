//! Who may name what: the layers of the house, read from the source. Comments and the contents of strings do not count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A file by its path inside the package.
struct Source {
    path: String,
    text: String,
}

/// Files under one of these paths name none of these words.
struct Rule {
    under: &'static [&'static str],
    except: &'static [&'static str],
    words: &'static [&'static str],
    /// Code that contains such a word and means something else.
    harmless: &'static [&'static str],
}

const SERVICES: Rule = Rule {
    under: &["src/services/"],
    except: &[],
    // An address such as `std::net::IpAddr` is a value; a socket is not.
    words: &[
        "tokio",
        "diesel",
        "rouille",
        "actix",
        "r2d2",
        "deadpool",
        "redis",
        "lettre",
        "std::thread",
        "std::fs",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "ToSocketAddrs",
        "sync_engine",
        "async_engine",
    ],
    harmless: &[],
};
const SHARED_LAYER: Rule = Rule {
    under: &["src/api.rs", "src/api/", "src/store.rs", "src/store/"],
    except: &[],
    words: &["rouille", "actix", "sync_engine", "async_engine"],
    harmless: &[],
};
const SYNC_ENGINE: Rule = Rule {
    under: &["src/sync_engine.rs", "src/sync_engine/"],
    except: &[],
    words: &["async", "await", "tokio", "actix", "reqwest", "async_engine"],
    harmless: &[],
};
const ASYNC_ENGINE: Rule = Rule {
    under: &["src/async_engine.rs", "src/async_engine/"],
    except: &[],
    words: &["rouille", "ureq", "sync_engine"],
    harmless: &[],
};
const BLOCKING: Rule = Rule {
    under: &["src/"],
    except: &["src/async_engine/sqlite_thread.rs", "src/async_engine/hasher.rs", "src/async_engine/mailer.rs"],
    words: &["spawn_blocking", "block_in_place", "web::block"],
    // The SQLite connection has a method of this name, which runs on its own named thread.
    harmless: &["conn.spawn_blocking("],
};
const RULES: [&Rule; 5] = [&SERVICES, &SHARED_LAYER, &SYNC_ENGINE, &ASYNC_ENGINE, &BLOCKING];

/// Files that one engine has and the other has no use for.
const ONLY_ASYNC: &[&str] = &["sqlite_thread.rs", "lease.rs"];
const ONLY_SYNC: &[&str] = &["server/connection.rs", "server/http1.rs", "server/waiting.rs"];

impl Rule {
    fn applies_to(&self, path: &str) -> bool {
        self.under.iter().any(|start| path.starts_with(start)) && !self.except.contains(&path)
    }

    fn violations(&self, sources: &[Source]) -> Vec<String> {
        let mut found = Vec::new();
        for source in sources.iter().filter(|source| self.applies_to(&source.path)) {
            let mut code = code_of(&source.text);
            for harmless in self.harmless {
                code = code.replace(harmless, "");
            }
            let searched = format!("{code}\n{}", imports(&code));
            for word in self.words.iter().filter(|word| names(&searched, word)) {
                found.push(format!("{} names {word}", source.path));
            }
        }
        found
    }
}

/// Whether the code has the word, or a name that begins with the word and an underscore.
fn names(code: &str, word: &str) -> bool {
    let part_of_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(word).any(|(start, _)| {
        let before = code.get(..start).and_then(|text| text.chars().next_back());
        let after = code.get(start + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(part_of_name) && after.is_none_or(|letter| letter == '_' || !part_of_name(letter))
    })
}

/// The text without comments and without the contents of strings.
fn code_of(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let at = |position: usize| letters.get(position).copied().unwrap_or('\0');
    let mut code = String::new();
    let mut position = 0;
    while position < letters.len() {
        let (letter, next) = (at(position), at(position + 1));
        if letter == '/' && next == '/' {
            while position < letters.len() && at(position) != '\n' {
                position += 1;
            }
        } else if letter == '/' && next == '*' {
            let mut depth = 0;
            loop {
                match (at(position), at(position + 1)) {
                    ('/', '*') => (depth, position) = (depth + 1, position + 2),
                    ('*', '/') => (depth, position) = (depth - 1, position + 2),
                    _ => position += 1,
                }
                if depth == 0 || position >= letters.len() {
                    break;
                }
            }
        } else if let Some(hashes) = raw_string(&letters, position) {
            let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            position += hashes + 2;
            while position < letters.len() && !letters.get(position..).is_some_and(|rest| rest.starts_with(&end)) {
                position += 1;
            }
            position += end.len();
            code.push_str("\"\"");
        } else if letter == '"' {
            position += 1;
            while position < letters.len() && at(position) != '"' {
                position += if at(position) == '\\' { 2 } else { 1 };
            }
            position += 1;
            code.push_str("\"\"");
        } else if letter == '\'' && next == '\\' {
            position += 3;
            while position < letters.len() && at(position) != '\'' {
                position += 1;
            }
            position += 1;
        } else if letter == '\'' && at(position + 2) == '\'' {
            position += 3;
        } else {
            code.push(letter);
            position += 1;
        }
    }
    code
}

/// The number of hashes when a raw string begins here.
fn raw_string(letters: &[char], position: usize) -> Option<usize> {
    let rest = letters.get(position..)?;
    let before = position.checked_sub(1).and_then(|before| letters.get(before));
    if rest.first() != Some(&'r') || before.is_some_and(|letter| letter.is_alphanumeric() && *letter != 'b') {
        return None;
    }
    let hashes = rest.iter().skip(1).take_while(|letter| **letter == '#').count();
    (rest.get(hashes + 1) == Some(&'"')).then_some(hashes)
}

/// Every imported path in full, one per line: `use a::{b, c::d};` gives `a::b` and `a::c::d`.
fn imports(code: &str) -> String {
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let tree =
            statement.rsplit_once("use ").filter(|(before, _)| before.is_empty() || before.ends_with([' ', '\n']));
        if let Some((_, tree)) = tree {
            let tree: String = tree.chars().filter(|letter| !letter.is_whitespace()).collect();
            expand(&tree, "", &mut paths);
        }
    }
    paths.join("\n")
}

fn expand(tree: &str, prefix: &str, paths: &mut Vec<String>) {
    let Some((start, rest)) = tree.split_once('{') else {
        paths.push(format!("{prefix}{tree}"));
        return;
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut branch) = (0, String::new());
    for letter in inner.chars().chain([',']) {
        match letter {
            ',' if depth == 0 => {
                if !branch.is_empty() {
                    expand(&branch, &format!("{prefix}{start}"), paths);
                }
                branch.clear();
                continue;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        branch.push(letter);
    }
}

/// Files of one folder that the other one lacks, but for those that it may lack.
fn unmatched(one: &BTreeSet<String>, other: &BTreeSet<String>, may_lack: &[&str]) -> Vec<String> {
    one.difference(other).filter(|path| !may_lack.contains(&path.as_str())).cloned().collect()
}

fn lacks_module_docs(source: &Source) -> bool {
    !source.text.trim_start().starts_with("//!")
}

fn has_allow(source: &Source) -> bool {
    let code: String = code_of(&source.text).split_whitespace().collect();
    code.contains("#[allow(") || code.contains("#![allow(")
}

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The paths of all files below a folder, relative to it.
fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}")));
        } else {
            found.insert(name);
        }
    }
    found
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    for folder in folders {
        for path in files(&package().join(folder)).into_iter().filter(|path| path.ends_with(".rs")) {
            let text = fs::read_to_string(package().join(folder).join(&path)).expect("a source file");
            found.push(Source { path: format!("{folder}/{path}"), text });
        }
    }
    assert!(!found.is_empty(), "no source files below {folders:?}");
    found
}

fn planted(path: &str, text: &str) -> Vec<Source> {
    vec![Source { path: path.to_owned(), text: text.to_owned() }]
}

#[test]
fn the_services_name_no_engine_no_database_no_runtime_and_no_socket() {
    assert_eq!(SERVICES.violations(&sources(&["src"])), Vec::<String>::new());
}

#[test]
fn the_shared_layer_names_no_engine() {
    assert_eq!(SHARED_LAYER.violations(&sources(&["src"])), Vec::<String>::new());
}

#[test]
fn nothing_in_the_sync_engine_waits_for_a_future() {
    assert_eq!(SYNC_ENGINE.violations(&sources(&["src"])), Vec::<String>::new());
}

#[test]
fn the_async_engine_does_not_name_the_sync_one() {
    assert_eq!(ASYNC_ENGINE.violations(&sources(&["src"])), Vec::<String>::new());
}

#[test]
fn the_event_loop_is_left_in_the_named_files_only() {
    assert_eq!(BLOCKING.violations(&sources(&["src"])), Vec::<String>::new());
}

#[test]
fn the_two_engines_have_the_same_files() {
    let (sync, asynchronous) = (files(&package().join("src/sync_engine")), files(&package().join("src/async_engine")));
    assert_eq!(unmatched(&sync, &asynchronous, ONLY_SYNC), Vec::<String>::new(), "only in src/sync_engine");
    assert_eq!(unmatched(&asynchronous, &sync, ONLY_ASYNC), Vec::<String>::new(), "only in src/async_engine");
}

#[test]
fn both_databases_have_the_same_migrations_and_each_can_be_undone() {
    let (sqlite, postgres) =
        (files(&package().join("migrations/sqlite")), files(&package().join("migrations/postgres")));
    assert_eq!(unmatched(&sqlite, &postgres, &[]), Vec::<String>::new(), "only for SQLite");
    assert_eq!(unmatched(&postgres, &sqlite, &[]), Vec::<String>::new(), "only for PostgreSQL");
    assert!(!sqlite.is_empty(), "no migrations");
    for up in sqlite.iter().filter(|path| path.ends_with("/up.sql")) {
        assert!(sqlite.contains(&up.replace("/up.sql", "/down.sql")), "{up} cannot be undone");
    }
}

#[test]
fn every_source_file_begins_with_module_docs_and_none_allows_what_a_lint_denies() {
    for source in sources(&["src", "tests", "benches"]) {
        assert!(!lacks_module_docs(&source), "{} has no module docs", source.path);
        assert!(!has_allow(&source), "{}: `expect` with a reason instead of `allow`", source.path);
    }
}

#[test]
fn a_planted_violation_of_each_rule_is_found() {
    for rule in RULES {
        let path = match rule.under.first() {
            Some(folder) if folder.ends_with('/') => format!("{folder}planted.rs"),
            Some(file) => (*file).to_owned(),
            None => panic!("a rule for no file"),
        };
        for word in rule.words {
            let direct = planted(&path, &format!("fn f() {{ let x = {word}; }}"));
            assert!(rule.violations(&direct).contains(&format!("{path} names {word}")));
            let prefixed = planted(&path, &format!("use {word}_more::Thing;"));
            assert!(rule.violations(&prefixed).contains(&format!("{path} names {word}")));
        }
        let innocent =
            "//! async tokio rouille actix spawn_blocking\nfn f() { g(\"tokio::spawn sync_engine\", AsyncFnOnce) }";
        assert_eq!(rule.violations(&planted(&path, innocent)), Vec::<String>::new());
    }
}

#[test]
fn a_name_inside_an_import_tree_is_found() {
    let tree = planted("src/services/planted.rs", "use std::{fmt, thread::{self, Builder}};");
    assert_eq!(SERVICES.violations(&tree), ["src/services/planted.rs names std::thread"]);
    let tree =
        planted("src/async_engine/planted.rs", "use actix_web::{\n    HttpResponse,\n    web::{self, block},\n};");
    assert_eq!(BLOCKING.violations(&tree), ["src/async_engine/planted.rs names web::block"]);
    let address = planted("src/services/planted.rs", "use std::net::IpAddr;\nuse std::{net::SocketAddr, fmt};");
    assert_eq!(SERVICES.violations(&address), Vec::<String>::new());
}

#[test]
fn a_blocking_call_is_found_everywhere_but_in_the_named_files() {
    let call = "fn f() { tokio::task::spawn_blocking(g) }";
    assert_eq!(BLOCKING.violations(&planted("src/async_engine/lease.rs", call)).len(), 1);
    assert_eq!(BLOCKING.violations(&planted("src/serve.rs", call)).len(), 1);
    assert_eq!(BLOCKING.violations(&planted("src/async_engine/hasher.rs", call)).len(), 0);
    let of_connection = "fn f() { conn.spawn_blocking(g) }";
    assert_eq!(BLOCKING.violations(&planted("src/async_engine/database.rs", of_connection)).len(), 0);
    let of_runtime = "fn f() { handle.spawn_blocking(g); conn.spawn_blocking(h) }";
    assert_eq!(BLOCKING.violations(&planted("src/async_engine/database.rs", of_runtime)).len(), 1);
}

#[test]
fn a_file_without_its_mirror_is_found() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let (one, other) = (set(&["routes.rs", "lease.rs", "handlers/login.rs"]), set(&["routes.rs"]));
    assert_eq!(unmatched(&one, &other, ONLY_ASYNC), ["handlers/login.rs"]);
    assert_eq!(unmatched(&other, &one, ONLY_ASYNC), Vec::<String>::new());
}

#[test]
fn missing_module_docs_and_a_planted_allow_are_found() {
    let source = |text: &str| Source { path: "src/planted.rs".to_owned(), text: text.to_owned() };
    assert!(lacks_module_docs(&source("// a comment\nfn f() {}")));
    assert!(!lacks_module_docs(&source("//! What it is for.\nfn f() {}")));
    assert!(has_allow(&source("//! Docs.\n#[allow (dead_code)]\nfn f() {}")));
    assert!(has_allow(&source("//! Docs.\n#![allow(dead_code)]")));
    assert!(!has_allow(&source("//! #[allow(dead_code)]\n#[expect(dead_code)]\nfn f() { g(\"#[allow(x)]\") }")));
}

#[test]
fn comments_and_strings_are_not_code() {
    let text = "a /* b /* c */ d */ e // f\ng \"h // \\\" i\" j r#\"k \" l\"# m '\"' n '\\'' o 'life";
    let words: Vec<_> = code_of(text).split_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["a", "e", "g", "\"\"", "j", "\"\"", "m", "n", "o", "'life"]);
}
