//! What the URLs of a configuration mean, and what each must state.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use url::{Host, Url};

use super::secret::{MASK, Secret};

/// Where the tables live.
#[derive(Debug, Clone)]
pub enum DatabaseUrl {
    /// An SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL URL as libpq takes it.
    Postgres(Secret),
}

/// Whether connections to PostgreSQL are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresTls {
    /// Clear text: `sslmode=disable`, or nothing stated on a loopback host or a socket.
    Off,
    /// TLS with the server's certificate and name verified: `sslmode=verify-full`.
    VerifyFull,
}

/// Where codes, counters and locks live.
#[derive(Debug, Clone)]
pub enum StoreUrl {
    /// In the database.
    Embedded,
    /// A `redis://` or `rediss://` URL.
    Redis(Secret),
}

/// Where mail goes.
#[derive(Debug, Clone)]
pub enum MailUrl {
    /// One `.eml` file per message in this directory.
    File(PathBuf),
    /// A mail server.
    Smtp {
        /// Name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// How the connection is protected.
        security: Security,
        /// User name and password.
        credentials: Option<(String, Secret)>,
        /// PEM file of a certificate that is trusted besides the public ones.
        root: Option<PathBuf>,
    },
}

/// How a connection to a mail server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Not at all.
    Plain,
    /// TLS is demanded by STARTTLS, before anything else is said.
    StartTls,
    /// TLS from the first byte.
    Tls,
}

/// Where text messages go.
#[derive(Debug, Clone)]
pub enum SmsUrl {
    /// One text file per message in this directory.
    File(PathBuf),
    /// Twilio's Messages API.
    Twilio {
        /// Account SID.
        sid: String,
        /// Auth token.
        token: Secret,
        /// Sender: a number, a messaging service's SID or a sender name.
        from: String,
        /// Address of the API.
        base_url: Url,
    },
}

const DATABASE_FORM: &str = "it must be sqlite://PATH or postgres://USER:PASSWORD@HOST:PORT/NAME";
const STORE_FORM: &str = "it must be embedded, redis://[USER:PASSWORD@]HOST[:PORT][/DB] or rediss://…";
const MAIL_FORM: &str = "it must be file://DIR, or smtp://, smtp+starttls:// or smtps:// \
                         with [USER:PASSWORD@]HOST[:PORT][?root=FILE], special characters percent-encoded";
const SMS_FORM: &str = "it must be file://DIR or twilio://SID:TOKEN@FROM[?base_url=https://…]";

/// Reads `database.url`.
pub(super) fn database(text: &str, data_dir: &Path) -> Result<DatabaseUrl, String> {
    if text.is_empty() {
        return Ok(DatabaseUrl::Sqlite(data_dir.join("bifrons.db")));
    }
    if let Some(path) = text.strip_prefix("sqlite://") {
        if path.is_empty() || path.contains(['?', '#', '\0']) || path.starts_with(':') {
            return Err("sqlite:// must be followed by the path of a file".to_owned());
        }
        return Ok(DatabaseUrl::Sqlite(PathBuf::from(path)));
    }
    postgres_tls(text)?;
    Ok(DatabaseUrl::Postgres(Secret::new(text)))
}

/// Reads what a PostgreSQL URL says about TLS, and refuses what does not prove who answers.
pub(super) fn postgres_tls(text: &str) -> Result<PostgresTls, String> {
    let url =
        Url::parse(text).ok().filter(|url| matches!(url.scheme(), "postgres" | "postgresql")).ok_or(DATABASE_FORM)?;
    // libpq lets parameters replace the host before them, so each of them counts.
    let mut hosts: Vec<String> =
        url.host_str().filter(|host| !host.is_empty()).map(percent_decode).into_iter().collect();
    let mut modes = Vec::new();
    for (key, value) in url.query_pairs() {
        match key.as_ref() {
            "host" | "hostaddr" => hosts.push(value.into_owned()),
            "sslmode" => modes.push(value.into_owned()),
            "ssl" | "requiressl" => {
                return Err(format!("`{key}` is not supported; state sslmode=verify-full or sslmode=disable"));
            }
            _ => {}
        }
    }
    if hosts.is_empty() {
        return Err(format!("it names no host; {DATABASE_FORM}"));
    }
    if modes.len() > 1 {
        return Err("it states sslmode more than once".to_owned());
    }
    match modes.first().map(String::as_str) {
        Some("disable") => Ok(PostgresTls::Off),
        Some("verify-full") => Ok(PostgresTls::VerifyFull),
        Some(mode @ ("require" | "prefer" | "allow" | "verify-ca")) => Err(format!(
            "sslmode={mode} encrypts, at best, without proving who answers; state \
             sslmode=verify-full, or sslmode=disable for clear text"
        )),
        Some(_) => Err("sslmode must be verify-full or disable".to_owned()),
        None if hosts.iter().flat_map(|list| list.split(',')).all(is_local) => Ok(PostgresTls::Off),
        None => Err("for a server on another machine it must state sslmode=verify-full \
                     (or sslmode=disable for clear text)"
            .to_owned()),
    }
}

/// Reads `store.url`.
pub(super) fn store(text: &str) -> Result<StoreUrl, String> {
    if text == "embedded" {
        return Ok(StoreUrl::Embedded);
    }
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "redis" | "rediss"))
        .filter(|url| url.host_str().is_some_and(|host| !host.is_empty()))
        .ok_or(STORE_FORM)?;
    if url.fragment().is_some() {
        return Err("a part after `#` is not supported: TLS always verifies the server".to_owned());
    }
    let number = url.path().trim_matches('/');
    if !number.is_empty() && number.parse::<u16>().is_err() {
        return Err("the path of a Redis URL is the number of a database, such as /0".to_owned());
    }
    Ok(StoreUrl::Redis(Secret::new(text)))
}

/// Reads `mail.url`.
pub(super) fn mail(text: &str, data_dir: &Path) -> Result<MailUrl, String> {
    if text.is_empty() {
        return Ok(MailUrl::File(data_dir.join("mail")));
    }
    if let Some(dir) = text.strip_prefix("file://") {
        return directory(dir).map(MailUrl::File);
    }
    let url = Url::parse(text).map_err(|error| format!("it is no URL ({error}); {MAIL_FORM}"))?;
    let (security, default_port) = match url.scheme() {
        "smtp" => (Security::Plain, 25),
        "smtp+starttls" => (Security::StartTls, 587),
        "smtps" => (Security::Tls, 465),
        _ => return Err(MAIL_FORM.to_owned()),
    };
    let host = host_of(&url).ok_or(MAIL_FORM)?;
    if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
        return Err(format!("no path may follow host and port; {MAIL_FORM}"));
    }
    let mut root = None;
    for (key, value) in url.query_pairs() {
        if key != "root" || value.is_empty() {
            return Err(format!("unknown parameter `{key}`; {MAIL_FORM}"));
        }
        root = Some(PathBuf::from(value.into_owned()));
    }
    if root.is_some() && security == Security::Plain {
        return Err("smtp:// is clear text and verifies no certificate; root would have no effect".to_owned());
    }
    let credentials = match (url.username(), url.password()) {
        ("", None) => None,
        ("", Some(_)) | (_, None) => {
            return Err("user name and password must both be given, or neither".to_owned());
        }
        (user, Some(password)) => Some((percent_decode(user), Secret::new(percent_decode(password)))),
    };
    if security == Security::Plain && credentials.is_some() && !is_loopback(&host) {
        return Err("smtp:// would send the password in clear text; use smtps:// or smtp+starttls://".to_owned());
    }
    Ok(MailUrl::Smtp { host, port: url.port().unwrap_or(default_port), security, credentials, root })
}

/// Reads `sms.url`.
pub(super) fn sms(text: &str, data_dir: &Path) -> Result<SmsUrl, String> {
    if text.is_empty() {
        return Ok(SmsUrl::File(data_dir.join("sms")));
    }
    if let Some(dir) = text.strip_prefix("file://") {
        return directory(dir).map(SmsUrl::File);
    }
    let url = Url::parse(text).ok().filter(|url| url.scheme() == "twilio").ok_or(SMS_FORM)?;
    let from = host_of(&url).ok_or(SMS_FORM)?;
    let (sid, token) = match (url.username(), url.password()) {
        ("", _) | (_, None) => return Err(SMS_FORM.to_owned()),
        (sid, Some(token)) => (percent_decode(sid), Secret::new(percent_decode(token))),
    };
    if !matches!(url.path(), "" | "/") || url.port().is_some() || url.fragment().is_some() {
        return Err(SMS_FORM.to_owned());
    }
    let mut base_url = "https://api.twilio.com".to_owned();
    for (key, value) in url.query_pairs() {
        if key != "base_url" {
            return Err(format!("unknown parameter `{key}`; {SMS_FORM}"));
        }
        base_url = value.into_owned();
    }
    let base_url = Url::parse(&base_url)
        .ok()
        .filter(is_https_or_loopback)
        .ok_or("base_url must be https://, or http:// on a loopback host")?;
    Ok(SmsUrl::Twilio { sid, token, from, base_url })
}

fn directory(dir: &str) -> Result<PathBuf, String> {
    if dir.is_empty() {
        return Err("file:// must be followed by the path of a directory".to_owned());
    }
    Ok(PathBuf::from(dir))
}

fn host_of(url: &Url) -> Option<String> {
    let host = match url.host()? {
        Host::Domain(name) => percent_decode(name),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    (!host.is_empty()).then_some(host)
}

/// https anywhere, http on this machine only.
pub(super) fn is_https_or_loopback(url: &Url) -> bool {
    match url.scheme() {
        "https" => true,
        "http" => host_of(url).is_some_and(|host| is_loopback(&host)),
        _ => false,
    }
}

/// Whether a host, a name or an address without brackets, is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        // RFC 6761, 6.3: names below localhost are loopback too.
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

/// Whether a PostgreSQL host is this machine: a loopback host, or the directory of a socket.
fn is_local(host: &str) -> bool {
    host.starts_with(['/', '@']) || is_loopback(host)
}

/// A URL with its password replaced; the mask alone when there is no telling where a password is.
pub(super) fn masked(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return if text.is_empty() || text == "embedded" { text } else { MASK }.to_owned();
    };
    if matches!(scheme, "file" | "sqlite") {
        return text.to_owned();
    }
    let Ok(mut url) = Url::parse(text) else {
        return format!("{scheme}://{MASK}");
    };
    if rest.contains('@') && url.password().is_none() && url.username().is_empty() {
        return format!("{scheme}://{MASK}");
    }
    if url.password().is_some() && url.set_password(Some(MASK)).is_err() {
        return format!("{scheme}://{MASK}");
    }
    if url.query().is_some() {
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(key, value)| {
                let value = if key.contains("pass") { MASK.to_owned() } else { value.into_owned() };
                (key.into_owned(), value)
            })
            .collect();
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
    url.into()
}

fn percent_decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let pair = (byte == b'%').then(|| Some((hex_digit(ahead.next()?)?, hex_digit(ahead.next()?)?)));
        if let Some(Some((high, low))) = pair {
            decoded.push(high << 4 | low);
            bytes = ahead;
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = "data";

    fn postgres(rest: &str) -> Result<PostgresTls, String> {
        postgres_tls(&format!("postgres://{rest}"))
    }

    #[test]
    fn empty_urls_stand_for_places_in_the_data_directory() {
        let dir = Path::new(DATA);
        assert!(matches!(database("", dir), Ok(DatabaseUrl::Sqlite(path)) if path == Path::new("data/bifrons.db")));
        assert!(matches!(mail("", dir), Ok(MailUrl::File(path)) if path == Path::new("data/mail")));
        assert!(matches!(sms("", dir), Ok(SmsUrl::File(path)) if path == Path::new("data/sms")));
    }

    #[test]
    fn sqlite_needs_the_path_of_a_file() {
        let dir = Path::new(DATA);
        assert!(
            matches!(database("sqlite:///var/lib/x.db", dir), Ok(DatabaseUrl::Sqlite(path)) if path == Path::new("/var/lib/x.db"))
        );
        for text in ["sqlite://", "sqlite://:memory:", "sqlite://x.db?mode=ro", "mysql://localhost/x", "bifrons.db"] {
            assert!(database(text, dir).is_err(), "{text}");
        }
    }

    #[test]
    fn postgres_on_another_machine_must_state_how_it_is_protected() {
        assert_eq!(postgres("u:p@db.example.com/x?sslmode=verify-full"), Ok(PostgresTls::VerifyFull));
        assert_eq!(postgres("u:p@db.example.com/x?sslmode=disable"), Ok(PostgresTls::Off));
        for rest in [
            "u:p@db.example.com/x",
            "u:p@10.0.0.1/x",
            "u:p@localhost/x?host=db.example.com",
            "u:p@localhost/x?hostaddr=10.0.0.1",
            "u:p@localhost/x?host=localhost,db.example.com",
        ] {
            assert!(postgres(rest).unwrap_err().contains("must state sslmode"), "{rest}");
        }
    }

    #[test]
    fn postgres_on_this_machine_need_not() {
        for rest in [
            "u:p@localhost/x",
            "u:p@127.0.0.1:5433/x",
            "u:p@[::1]/x",
            "%2Fvar%2Frun%2Fpostgresql/x",
            "/x?host=/var/run/postgresql",
        ] {
            assert_eq!(postgres(rest), Ok(PostgresTls::Off), "{rest}");
        }
        assert!(postgres("/x").unwrap_err().contains("no host"));
    }

    #[test]
    fn encryption_that_does_not_prove_who_answers_is_refused() {
        for mode in ["require", "prefer", "allow", "verify-ca"] {
            let error = postgres(&format!("u:p@db.example.com/x?sslmode={mode}")).unwrap_err();
            assert!(error.contains("without proving who answers"), "{error}");
        }
        for rest in ["u@h/x?sslmode=VERIFY-FULL", "u@h/x?ssl=true", "u@h/x?sslmode=verify-full&sslmode=disable"] {
            assert!(postgres(rest).is_err(), "{rest}");
        }
    }

    #[test]
    fn redis_urls_name_a_host_and_keep_tls_verified() {
        assert!(matches!(store("embedded"), Ok(StoreUrl::Embedded)));
        for text in ["redis://localhost", "redis://:p@cache:6380/2", "rediss://u:p@cache.example.com/0"] {
            assert!(matches!(store(text), Ok(StoreUrl::Redis(_))), "{text}");
        }
        for text in ["", "redis://", "memcached://x", "localhost:6379", "rediss://cache#insecure", "redis://cache/main"]
        {
            assert!(store(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mail_servers_are_read_with_their_default_ports_and_decoded_credentials() {
        let dir = Path::new(DATA);
        let Ok(MailUrl::Smtp { host, port, security, credentials, root: None }) =
            mail("smtp+starttls://me%40example.com:p%3Aw%25@mail.example.com", dir)
        else {
            panic!("a mail server was expected");
        };
        assert_eq!((host.as_str(), port, security), ("mail.example.com", 587, Security::StartTls));
        let (user, password) = credentials.unwrap();
        assert_eq!((user.as_str(), password.expose()), ("me@example.com", "p:w%"));
        assert!(matches!(
            mail("smtps://mail.example.com", dir),
            Ok(MailUrl::Smtp { port: 465, security: Security::Tls, .. })
        ));
        assert!(matches!(mail("smtp://[::1]:2525", dir), Ok(MailUrl::Smtp { host, port: 2525, .. }) if host == "::1"));
        assert!(matches!(mail("file:///var/mail", dir), Ok(MailUrl::File(path)) if path == Path::new("/var/mail")));
        for text in [
            "smtp://",
            "file://",
            "mail.example.com:25",
            "http://mail.example.com",
            "smtps://user@host",
            "smtps://host/path",
            "smtps://host?rot=/ca.pem",
            "smtp://host?root=/ca.pem",
        ] {
            assert!(mail(text, dir).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mail_server_may_have_a_certificate_of_its_own() {
        let Ok(MailUrl::Smtp { root, .. }) = mail("smtp+starttls://h?root=/etc/ca.pem", Path::new(DATA)) else {
            panic!("a mail server was expected");
        };
        assert_eq!(root.as_deref(), Some(Path::new("/etc/ca.pem")));
    }

    #[test]
    fn a_mail_password_does_not_leave_the_machine_in_clear_text() {
        let dir = Path::new(DATA);
        assert!(mail("smtp://u:p@mail.example.com", dir).unwrap_err().contains("clear text"));
        assert!(mail("smtp://u:p@localhost:2525", dir).is_ok());
        assert!(mail("smtp://mail.example.com", dir).is_ok());
    }

    #[test]
    fn twilio_urls_hold_account_token_sender_and_base_url() {
        let dir = Path::new(DATA);
        let Ok(SmsUrl::Twilio { sid, token, from, base_url }) =
            sms("twilio://AC1:to%2Fken@+15005550006?base_url=http://127.0.0.1:9999/", dir)
        else {
            panic!("Twilio was expected");
        };
        assert_eq!((sid.as_str(), token.expose(), from.as_str()), ("AC1", "to/ken", "+15005550006"));
        assert_eq!(base_url.as_str(), "http://127.0.0.1:9999/");
        assert!(matches!(sms("twilio://A:b@%2B1500", dir), Ok(SmsUrl::Twilio { from, .. }) if from == "+1500"));
        for text in [
            "twilio://AC1@+1500",
            "twilio://AC1:t@",
            "twilio://AC1:t@+1500?base_url=http://sms.example.com",
            "twilio://AC1:t@+1500?bas_url=https://sms.example.com",
        ] {
            assert!(sms(text, dir).is_err(), "{text}");
        }
    }

    #[test]
    fn passwords_in_urls_are_masked() {
        for (text, shown) in [
            ("postgres://u:hunter2@h:5432/x?sslmode=disable", "postgres://u:********@h:5432/x?sslmode=disable"),
            ("postgres://u@h/x?password=hunter2", "postgres://u@h/x?password=********"),
            ("redis://:hunter2@h", "redis://:********@h"),
            ("smtps://u:hunter2@h", "smtps://u:********@h"),
            ("twilio://AC1:hunter2@+1500", "twilio://AC1:********@+1500"),
            ("smtps://u:hunt/er2@h", "smtps://********"),
            ("hunter2", "********"),
            ("embedded", "embedded"),
            ("sqlite://data/x.db", "sqlite://data/x.db"),
        ] {
            assert_eq!(masked(text), shown);
        }
    }

    #[test]
    fn loopback_is_recognised_in_every_spelling() {
        for host in [
            "localhost",
            "LOCALHOST",
            "app.localhost",
            "localhost.",
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "10.0.0.1", "0.0.0.0", "localhost.example.com", "mylocalhost", "::"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
