//! What the mailers and text-message senders of both engines share: composing a mail, talking
//! to an SMTP server or to Twilio, judging the answer, and the names of spool files.

use std::{
    error::Error as _,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use data_encoding::BASE64;
use lettre::{
    Address,
    message::{
        Mailbox, MultiPart, MultiPartKind, SinglePart,
        header::{HeaderName, HeaderValue},
    },
    transport::smtp::{
        authentication::{Credentials, Mechanism},
        client::{Certificate, CertificateStore, TlsParameters},
        commands::{Mail, Rcpt},
        extension::{ClientId, Extension, MailBodyParameter, MailParameter, ServerInfo},
    },
};
use rustix::fs::{Advice, fadvise};
use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;

use crate::{
    services::{
        deliver::Posted,
        letters::{Recipient, Rendered},
    },
    settings::{MailUrl, Secret, Security, Settings, SmsUrl},
};

pub use crate::services::deliver::SendError;

/// Why a mailer or text-message sender cannot be set up, as one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(pub String);

// --- composing -------------------------------------------------------------------------------

/// Composes the mail: plain text and HTML as alternatives.
///
/// The same id and time give the same bytes, so a repeated attempt carries the same `Message-ID`
/// and a receiver can drop the double. Internationalised domains are written as punycode.
///
/// # Errors
///
/// [`SendError::Permanent`] when an address or the subject cannot stand in a mail header.
pub fn compose(
    from: &Mailbox,
    to: &str,
    rendered: &Rendered,
    message_id: Uuid,
    at: OffsetDateTime,
) -> Result<lettre::Message, SendError> {
    let sender = punycode(&from.email)
        .ok_or_else(|| SendError::Permanent("the sender's address is not a mail address".to_owned()))?;
    let recipient = Some(to)
        .filter(|to| !to.contains(char::is_control))
        .and_then(|to| to.parse::<Address>().ok())
        .and_then(|to| punycode(&to))
        .ok_or_else(|| SendError::Permanent("the recipient's address is not a mail address".to_owned()))?;
    if rendered.subject.contains(char::is_control) {
        return Err(SendError::Permanent("the subject holds control characters".to_owned()));
    }
    let message_id_domain = sender.domain().to_owned();
    let body = MultiPart::builder()
        .kind(MultiPartKind::Alternative)
        .boundary(boundary(message_id))
        .singlepart(SinglePart::plain(rendered.text.clone()))
        .singlepart(SinglePart::html(rendered.html.clone()));
    lettre::Message::builder()
        .from(Mailbox::new(from.name.clone(), sender))
        .to(Mailbox::new(None, recipient))
        .subject(rendered.subject.clone())
        .date(SystemTime::from(at))
        .message_id(Some(format!("<{}@{message_id_domain}>", message_id.hyphenated())))
        // RFC 3834: out-of-office programs do not answer such mail.
        .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()))
        .multipart(body)
        .map_err(|error| SendError::Permanent(format!("the mail cannot be composed: {error}")))
}

fn punycode(address: &Address) -> Option<Address> {
    let domain = address.domain();
    if domain.is_ascii() {
        return Some(address.clone());
    }
    let domain = idna::domain_to_ascii(domain).ok()?;
    Address::new(address.user(), domain).ok()
}

/// The boundary between the parts, in letters only: mail clients look for codes in digits.
fn boundary(message_id: Uuid) -> String {
    message_id
        .simple()
        .to_string()
        .chars()
        .map(|c| match c.to_digit(10) {
            Some(digit) => char::from_digit(digit + 16, 36).unwrap_or(c),
            None => c,
        })
        .collect()
}

// --- spool files -----------------------------------------------------------------------------

/// Mode of a directory that is created for spool files.
const DIRECTORY_MODE: u32 = 0o700;

/// Mode of a spool file.
const FILE_MODE: u32 = 0o600;

/// The names under which one letter is written: first the temporary one, then renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolFile {
    /// Where the bytes are written and synced; in the same directory, so that the rename is atomic.
    pub temporary: PathBuf,
    /// Where the finished file stands.
    pub path: PathBuf,
}

impl SpoolFile {
    /// The file of a mail, `{id}.eml`.
    #[must_use]
    pub fn mail(directory: &Path, id: Uuid) -> Self {
        Self::named(directory, id, "eml")
    }

    /// The file of a text message, `{id}.txt`.
    #[must_use]
    pub fn text_message(directory: &Path, id: Uuid) -> Self {
        Self::named(directory, id, "txt")
    }

    fn named(directory: &Path, id: Uuid, extension: &str) -> Self {
        let id = id.hyphenated();
        Self {
            temporary: directory.join(format!(".{id}.{extension}.tmp")),
            path: directory.join(format!("{id}.{extension}")),
        }
    }

    /// Writes the file: for its owner only, whole or not at all, and on the disk when this returns.
    ///
    /// # Errors
    ///
    /// [`SendError::Transient`] with the kind of failure.
    pub fn write(&self, bytes: &[u8]) -> Result<(), SendError> {
        self.write_and_rename(bytes).map_err(|error| not_written(&error))
    }

    fn write_and_rename(&self, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.write_temporary(bytes)?;
        let named = temporary.sync_all().and_then(|()| self.name());
        named.inspect_err(|_| self.remove_temporary())?;
        sync_directory(self.directory())
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    // Nothing of it is on the disk yet.
    fn write_temporary(&self, bytes: &[u8]) -> io::Result<File> {
        let mut temporary = self.open().or_else(|error| {
            if error.kind() != ErrorKind::NotFound {
                return Err(error);
            }
            DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(self.directory())?;
            self.open()
        })?;
        temporary.write_all(bytes).inspect_err(|_| self.remove_temporary())?;
        Ok(temporary)
    }

    // Nobody may come for it again: a letter that has run out meanwhile is not written any more.
    fn remove_temporary(&self) {
        let _ = std::fs::remove_file(&self.temporary);
    }

    fn name(&self) -> io::Result<()> {
        std::fs::rename(&self.temporary, &self.path)
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&self.temporary)
    }
}

// A file's name survives a power loss only when the directory is on disk too.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Directories for letters of either kind. No letter waits for a server there, so that several may be written at once,
/// and their names reach the disk together.
#[derive(Debug, Clone)]
pub struct Spool {
    mail: PathBuf,
    text_messages: PathBuf,
    from: Mailbox,
    patience: Duration,
    // For how long nobody else may have the letters.
    lease: Duration,
    // Fewer on a slow disk: those whose turn does not come in time lose an attempt.
    at_once: Arc<AtomicUsize>,
}

impl Spool {
    // The most that are written at once.
    const AT_ONCE: usize = 32;

    // A claim and a settlement are a commit each, however many letters they are for.
    const GATHER: Duration = Duration::from_millis(100);
    const GATHER_FOR_EACH: Duration = Duration::from_millis(5);

    // How long letters are written, the last one's sync begun within it.
    const PATIENCE: Duration = Duration::from_secs(3);

    /// How many letters are written at once.
    #[must_use]
    pub fn at_once(&self) -> usize {
        self.at_once.load(Ordering::Relaxed)
    }

    /// How long letters are gathered after so many others, to be written at once: the longer, the more of them come. The
    /// first after a while waits for nothing.
    #[must_use]
    pub fn gather(after: usize) -> Duration {
        Self::GATHER + Self::GATHER_FOR_EACH * u32::try_from(after.min(Self::AT_ONCE)).unwrap_or_default()
    }

    /// Where letters of both kinds go to directories.
    #[must_use]
    pub fn of(settings: &Settings) -> Option<Self> {
        let (MailUrl::File(mail), SmsUrl::File(text_messages)) = (settings.mail(), settings.sms()) else { return None };
        // No letter is to be written when another pump may have it already, nor one be waited for at the end.
        let lease = settings.outbox.lease;
        let patience = (lease / 3).min(Self::PATIENCE);
        let at_once = Arc::new(Self::AT_ONCE.into());
        Some(Self { mail, text_messages, from: settings.mail.from.clone(), patience, lease, at_once })
    }

    /// Writes letters; tells of each what became of it.
    ///
    /// All files are made, and on their way to the disk, before the first is synced, and all are synced before the first
    /// is renamed: a file's sync takes what it shares with others, its directory's entries and the inodes beside its
    /// own, to the disk as well, and whoever makes a file or renames it changes those. So that is done once. Measured on
    /// ext4, a group of sixteen takes a third of the processor that it takes one by one.
    #[must_use]
    pub fn write(&self, letters: &[Posted]) -> Vec<Result<(), SendError>> {
        self.write_by(letters, File::sync_all)
    }

    fn write_by(&self, letters: &[Posted], sync: impl Fn(&File) -> io::Result<()>) -> Vec<Result<(), SendError>> {
        let began = Instant::now();
        // What is on the disk has its name in any case, however long that took, unless another may be at it by then.
        let (end, last) = (began + self.patience, began + self.lease * 2 / 3);
        let begun: Vec<_> = letters.iter().map(|letter| in_time(end).and_then(|()| self.begin(letter))).collect();
        begun.iter().flatten().for_each(Begun::start_writing);
        let synced: Vec<_> =
            begun.into_iter().map(|begun| begun.and_then(|begun| begun.sync(end, last, &sync))).collect();
        self.note(letters.len(), began.elapsed());
        let written: Vec<_> = synced.into_iter().map(|synced| synced.and_then(|synced| synced.name(last))).collect();
        let kept = |directory: &Path| {
            let is_used = written.iter().flatten().any(|used| *used == directory);
            if is_used { sync_directory(directory).map_err(|error| not_written(&error)) } else { Ok(()) }
        };
        let (mail, text_messages) = (kept(&self.mail), kept(&self.text_messages));
        let told = |written: Result<&Path, SendError>| {
            written.and_then(|directory| if directory == self.mail { mail.clone() } else { text_messages.clone() })
        };
        written.into_iter().map(told).collect()
    }

    fn note(&self, letters: usize, took: Duration) {
        let at_once = match took > self.patience / 2 {
            true => letters / 2,
            false => self.at_once() * 2,
        };
        self.at_once.store(at_once.clamp(1, Self::AT_ONCE), Ordering::Relaxed);
    }

    // A letter that makes the code panic must not cost the others an attempt.
    fn begin(&self, letter: &Posted) -> Result<Begun<'_>, SendError> {
        let made = catch_unwind(AssertUnwindSafe(|| self.file_of(letter)));
        let panicked = |_| Err(SendError::Transient("the letter could not be put into words".to_owned()));
        let (directory, file, bytes) = made.unwrap_or_else(panicked)?;
        let temporary = file.write_temporary(&bytes).map_err(|error| not_written(&error))?;
        Ok(Begun { directory, file, temporary })
    }

    fn file_of(&self, Posted { id, message, at }: &Posted) -> Result<(&Path, SpoolFile, Vec<u8>), SendError> {
        match &message.to {
            Recipient::Email(to) => {
                let composed = compose(&self.from, to, &message.letter.render(), *id, *at)?;
                Ok((&self.mail, SpoolFile::mail(&self.mail, *id), composed.formatted()))
            }
            Recipient::Phone(to) => {
                let bytes = text_message_file(to, &message.letter.sms(), *id).into_bytes();
                Ok((&self.text_messages, SpoolFile::text_message(&self.text_messages, *id), bytes))
            }
        }
    }
}

fn in_time(end: Instant) -> Result<(), SendError> {
    match Instant::now() < end {
        true => Ok(()),
        false => Err(SendError::Transient("the disk was too slow for the letters before it".to_owned())),
    }
}

// A letter's file under its temporary name.
struct Begun<'a> {
    directory: &'a Path,
    file: SpoolFile,
    temporary: File,
}

impl<'a> Begun<'a> {
    // On Linux it starts with pages that are not to be kept.
    fn start_writing(&self) {
        let _ = fadvise(&self.temporary, 0, None, Advice::DontNeed);
    }

    // After this its bytes are on the disk.
    fn sync(
        self,
        end: Instant,
        last: Instant,
        sync: impl Fn(&File) -> io::Result<()>,
    ) -> Result<Synced<'a>, SendError> {
        let Self { directory, file, temporary } = self;
        let done = in_time(end).and_then(|()| sync(&temporary).map_err(|error| not_written(&error)));
        done.inspect_err(|_| remove_before(last, &file)).map(|()| Synced { directory, file })
    }
}

// Once another may have the letter, the temporary name may be the other's.
fn remove_before(last: Instant, file: &SpoolFile) {
    if Instant::now() < last {
        file.remove_temporary();
    }
}

// The same, whole on the disk.
struct Synced<'a> {
    directory: &'a Path,
    file: SpoolFile,
}

impl<'a> Synced<'a> {
    // Returns the directory, which is to be synced as well.
    fn name(self, last: Instant) -> Result<&'a Path, SendError> {
        let done = in_time(last).and_then(|()| self.file.name().map_err(|error| not_written(&error)));
        done.inspect_err(|_| remove_before(last, &self.file)).map(|()| self.directory)
    }
}

/// The contents of a text message's file: two header lines, an empty line, the text.
#[must_use]
pub fn text_message_file(to: &str, text: &str, id: Uuid) -> String {
    let to: String = to.chars().filter(|c| !c.is_control()).collect();
    format!("To: {to}\nId: {}\n\n{text}\n", id.hyphenated())
}

/// Judges a failure to write a spool file: all of them may pass.
fn not_written(error: &io::Error) -> SendError {
    SendError::Transient(format!("the letter's file could not be written ({})", error.kind()))
}

// --- SMTP ------------------------------------------------------------------------------------

/// For how long an idle connection to the mail server may be used again.
pub const IDLE: Duration = Duration::from_secs(15);

/// How many idle connections to the mail server are kept.
pub const IDLE_CONNECTIONS: usize = 2;

/// The mechanisms offered for signing in at the mail server.
pub const MECHANISMS: &[Mechanism] = &[Mechanism::Plain, Mechanism::Login];

/// A mail server and how to talk to it.
///
/// Connections are opened by the engines themselves and not through lettre's transports: these
/// apply their timeout to each read alone (sync) or to the TCP connect alone (async), and the
/// async pool takes back a connection that was given up between a command and its reply, after
/// which every reply is read for the wrong command.
pub struct SmtpServer {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Plain, STARTTLS required, or TLS from the start.
    pub security: Security,
    /// Trusted roots and the expected name; absent when plain.
    pub tls: Option<TlsParameters>,
    /// User name and password, if the server asks for them.
    pub credentials: Option<Credentials>,
    /// The name we give in `EHLO`.
    pub hello: ClientId,
}

impl SmtpServer {
    /// Describes a server; `root` adds one PEM certificate (or a bundle) to the public roots.
    ///
    /// # Errors
    ///
    /// When the root certificate cannot be read.
    pub fn new(
        host: &str,
        port: u16,
        security: Security,
        credentials: Option<&(String, Secret)>,
        root: Option<&Path>,
    ) -> Result<Self, SetupError> {
        let tls = match security {
            Security::Plain => None,
            Security::StartTls | Security::Tls => Some(trust(host, root)?),
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            security,
            tls,
            credentials: credentials.map(|(user, password)| Credentials::from((user, password.expose()))),
            hello: ClientId::default(),
        })
    }

    /// Parameters of the handshake that comes before the greeting.
    #[must_use]
    pub fn tls_at_once(&self) -> Option<&TlsParameters> {
        self.tls.as_ref().filter(|_| self.security == Security::Tls)
    }

    /// Parameters of the handshake that `STARTTLS` asks for.
    #[must_use]
    pub fn tls_after_greeting(&self) -> Option<&TlsParameters> {
        self.tls.as_ref().filter(|_| self.security == Security::StartTls)
    }
}

fn trust(host: &str, root: Option<&Path>) -> Result<TlsParameters, SetupError> {
    let mut builder = TlsParameters::builder(host.to_owned()).certificate_store(CertificateStore::WebpkiRoots);
    if let Some(path) = root {
        let unreadable = |reason: String| {
            SetupError(format!("mail.url: the root certificate {} cannot be used: {reason}", path.display()))
        };
        let pem = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
        let has_certificate = pem.windows(b"BEGIN CERTIFICATE".len()).any(|window| window == b"BEGIN CERTIFICATE");
        if !has_certificate {
            return Err(unreadable("it holds no PEM certificate".to_owned()));
        }
        let certificate = Certificate::from_pem(&pem).map_err(|error| unreadable(error.to_string()))?;
        builder = builder.add_root_certificate(certificate);
    }
    builder.build().map_err(|error| SetupError(format!("mail.url: TLS cannot be set up: {error}")))
}

/// The commands and bytes that hand one mail to the server.
pub struct Transaction {
    /// `MAIL FROM`.
    pub mail: Mail,
    /// `RCPT TO`, one for each recipient.
    pub recipients: Vec<Rcpt>,
    /// What follows `DATA`.
    pub bytes: Vec<u8>,
}

impl Transaction {
    /// Prepares a mail for a server with these extensions.
    ///
    /// # Errors
    ///
    /// [`SendError::Permanent`] when the server cannot take the recipient's characters (RFC 6531).
    pub fn new(message: &lettre::Message, server: &ServerInfo) -> Result<Self, SendError> {
        let envelope = message.envelope();
        let bytes = message.formatted();
        let mut parameters = Vec::new();
        let is_plain = |address: &Address| {
            let address: &str = address.as_ref();
            address.is_ascii()
        };
        if !envelope.from().into_iter().chain(envelope.to()).all(is_plain) {
            if !server.supports_feature(Extension::SmtpUtfEight) {
                return Err(SendError::Permanent(
                    "the mail server does not take addresses with such characters".to_owned(),
                ));
            }
            parameters.push(MailParameter::SmtpUtfEight);
        }
        if !bytes.is_ascii() {
            if !server.supports_feature(Extension::EightBitMime) {
                return Err(SendError::Permanent("the mail server takes seven-bit mail only".to_owned()));
            }
            parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        Ok(Self {
            mail: Mail::new(envelope.from().cloned(), parameters),
            recipients: envelope.to().iter().map(|to| Rcpt::new(to.clone(), Vec::new())).collect(),
            bytes,
        })
    }
}

/// What was being done when the mail server refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Connecting, TLS, signing in, `MAIL FROM`: the configuration is at fault, not the letter.
    Setup,
    /// The recipient or the content.
    Letter,
}

/// Judges a failed exchange with the mail server.
///
/// The server's own words are left out, since they often repeat the address.
#[must_use]
pub fn refused(stage: Stage, error: &lettre::transport::smtp::Error) -> SendError {
    if let Some(code) = error.status() {
        let enhanced = error
            .source()
            .map(ToString::to_string)
            .and_then(|text| enhanced_status(&text))
            .map(|status| format!(" {status}"))
            .unwrap_or_default();
        return match stage {
            Stage::Setup => SendError::Transient(format!("the mail server refused the session ({code}{enhanced})")),
            Stage::Letter if error.is_permanent() => {
                SendError::Permanent(format!("the mail server refused the letter ({code}{enhanced})"))
            }
            Stage::Letter => SendError::Transient(format!("the mail server put the letter off ({code}{enhanced})")),
        };
    }
    let tls_failure = tls_failure(error);
    SendError::Transient(
        if is_timeout(error) {
            "the mail server did not answer in time"
        } else if matches!(tls_failure, Some(rustls::Error::InvalidCertificate(_))) {
            "the mail server's certificate is not trusted"
        } else if error.is_tls() || tls_failure.is_some() {
            "the mail server does not speak TLS as mail.url asks for"
        } else if error.is_client() {
            "the mail server does not offer the TLS or authentication that mail.url asks for"
        } else if error.is_response() {
            "the mail server closed the connection or answered out of turn"
        } else {
            "the mail server cannot be reached"
        }
        .to_owned(),
    )
}

/// Says that the time for the whole exchange is over.
#[must_use]
pub fn out_of_time() -> SendError {
    SendError::Transient("the mail server did not answer in time".to_owned())
}

fn sources<'a>(
    error: &'a lettre::transport::smtp::Error,
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |error| (*error).source())
}

fn is_timeout(error: &lettre::transport::smtp::Error) -> bool {
    sources(error)
        .filter_map(|error| error.downcast_ref::<io::Error>())
        // A socket's read timeout is `WouldBlock` on Unix.
        .any(|error| matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock))
}

fn tls_failure(error: &lettre::transport::smtp::Error) -> Option<&rustls::Error> {
    sources(error).find_map(|error| {
        error.downcast_ref::<rustls::Error>().or_else(|| {
            error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref)
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        })
    })
}

/// The enhanced status code a reply begins with (RFC 3463), such as `5.1.1`.
fn enhanced_status(reply: &str) -> Option<String> {
    let first = reply.split_whitespace().next()?;
    let parts: Vec<&str> = first.split('.').collect();
    let is_number = |part: &&str| (1..=3).contains(&part.len()) && part.chars().all(|c| c.is_ascii_digit());
    (parts.len() == 3 && parts.iter().all(is_number)).then(|| first.to_owned())
}

// --- Twilio ----------------------------------------------------------------------------------

/// The media type of [`TwilioRequest::form`].
pub const FORM: &str = "application/x-www-form-urlencoded";

/// The most that is read of Twilio's answer, in bytes.
pub const ANSWER_LIMIT: u64 = 16 * 1024;

/// One text message as a request to Twilio's Messages resource.
pub struct TwilioRequest {
    /// `{base_url}/2010-04-01/Accounts/{sid}/Messages.json`.
    pub url: Url,
    /// The `Authorization` header: basic, of account and token.
    pub authorization: String,
    /// The body: `To`, `From` (or `MessagingServiceSid`), `Body`.
    pub form: String,
}

impl TwilioRequest {
    /// Makes the request.
    ///
    /// # Errors
    ///
    /// [`SendError::Permanent`] when the base address cannot have a path.
    pub fn new(
        (sid, token): (&str, &Secret),
        base_url: &Url,
        from: &str,
        to: &str,
        text: &str,
    ) -> Result<Self, SendError> {
        let mut url = base_url.clone();
        url.path_segments_mut()
            .map_err(|()| SendError::Permanent("sms.url: base_url cannot have a path".to_owned()))?
            .pop_if_empty()
            .extend(["2010-04-01", "Accounts", sid, "Messages.json"]);
        let authorization = format!("Basic {}", BASE64.encode(format!("{sid}:{}", token.expose()).as_bytes()));
        // Twilio's ids are two letters and 32 hex digits; a service's id has a field of its own.
        let is_service = from.len() == 34 && from.starts_with("MG");
        let sender = if is_service { "MessagingServiceSid" } else { "From" };
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("To", to)
            .append_pair(sender, from)
            .append_pair("Body", text)
            .finish();
        Ok(Self { url, authorization, form })
    }
}

/// Judges Twilio's answer.
///
/// # Errors
///
/// [`SendError::Transient`] for 408, 429 and 5xx, [`SendError::Permanent`] for anything else that
/// is no success; a redirect counts as no success.
pub fn twilio_verdict(status: u16, body: &[u8]) -> Result<(), SendError> {
    if (200..300).contains(&status) {
        return Ok(());
    }
    // Twilio's own error numbers are documented and name no person.
    let number = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|answer| answer.get("code").and_then(serde_json::Value::as_u64))
        .map(|code| format!(", code {code}"))
        .unwrap_or_default();
    let sentence = format!("the SMS provider refused the message (HTTP {status}{number})");
    Err(if matches!(status, 408 | 429 | 500..) {
        SendError::Transient(sentence)
    } else {
        SendError::Permanent(sentence)
    })
}

/// Says that Twilio was not reached, or did not answer in time.
#[must_use]
pub fn unreachable_provider(timed_out: bool) -> SendError {
    SendError::Transient(
        if timed_out { "the SMS provider did not answer in time" } else { "the SMS provider cannot be reached" }
            .to_owned(),
    )
}

/// The cryptography that connections to providers use.
#[must_use]
pub fn cryptography() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A mail server and a provider for the engines' own tests, on threads of their own.
#[cfg(test)]
pub(crate) mod scripted {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
        path::Path,
        sync::mpsc::{Receiver, Sender, channel},
        thread,
    };

    use lettre::message::Mailbox;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::{SendError, compose};
    use crate::{
        services::letters::Rendered,
        settings::{MailUrl, Secret, Security, SmsUrl},
    };

    /// How the mail server behaves.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Manner {
        Accept,
        /// Answers `RCPT TO` with this.
        Recipient(&'static str),
        /// Answers `MAIL FROM` with this.
        Sender(&'static str),
        Silent,
        SilentAfterData,
        /// Answers everything just before a timeout of half a second.
        Sluggish,
        HangUpAfterData,
    }

    pub(crate) fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Starts a mail server; what it receives, connections included, comes over the channel.
    pub(crate) fn smtp(manner: Manner) -> (MailUrl, Receiver<String>) {
        let (listener, address) = listener();
        let (log, received) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = log.clone();
                thread::spawn(move || converse(stream, manner, &log));
            }
        });
        let url = MailUrl::Smtp {
            host: address.ip().to_string(),
            port: address.port(),
            security: Security::Plain,
            credentials: None,
            root: None,
        };
        (url, received)
    }

    fn converse(stream: TcpStream, manner: Manner, log: &Sender<String>) -> Option<()> {
        log.send("connected".to_owned()).ok()?;
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        if manner == Manner::Silent {
            lines.next();
            return None;
        }
        let mut say = stream;
        say.write_all(b"220 scripted\r\n").ok()?;
        while let Some(Ok(line)) = lines.next() {
            log.send(line.clone()).ok()?;
            let verb = line.split([' ', ':']).next().unwrap().to_uppercase();
            let reply = match (verb.as_str(), manner) {
                ("MAIL", Manner::Sender(reply)) | ("RCPT", Manner::Recipient(reply)) => reply,
                ("DATA", _) => {
                    say.write_all(b"354 go on\r\n").ok()?;
                    while let Some(Ok(line)) = lines.next() {
                        log.send(line.clone()).ok()?;
                        if line == "." {
                            break;
                        }
                    }
                    match manner {
                        Manner::HangUpAfterData => return None,
                        Manner::SilentAfterData => {
                            lines.next();
                            return None;
                        }
                        _ => "250 2.0.0 taken",
                    }
                }
                ("QUIT", _) => "221 bye",
                _ => "250 2.0.0 fine",
            };
            if manner == Manner::Sluggish {
                // A server's delay is what this test is about.
                _ = std::sync::mpsc::channel::<()>().1.recv_timeout(std::time::Duration::from_millis(300));
            }
            say.write_all(reply.as_bytes()).ok()?;
            say.write_all(b"\r\n").ok()?;
        }
        None
    }

    /// Starts a provider that gives every request this answer; whole requests come over the channel.
    pub(crate) fn twilio(answer: &'static str) -> (SmsUrl, Receiver<String>) {
        let (listener, address) = listener();
        let (log, received) = channel();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut length = 0;
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap_or(0) > 2 {
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    request.push_str(&line);
                    line.clear();
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                request.push_str(&String::from_utf8(body).unwrap());
                _ = log.send(request);
                _ = stream.write_all(answer.as_bytes());
            }
        });
        let url = SmsUrl::Twilio {
            sid: "AC1".to_owned(),
            token: Secret::new("token-of-a-test"),
            from: "+15550100".to_owned(),
            base_url: format!("http://{address}").parse().unwrap(),
        };
        (url, received)
    }

    pub(crate) fn mail() -> lettre::Message {
        let from: Mailbox = "Bifrons <no-reply@id.example>".parse().unwrap();
        let rendered = Rendered {
            subject: "Your verification code".to_owned(),
            text: "042917\n.\n..two\n".to_owned(),
            html: "<p>042917</p>".to_owned(),
        };
        let at = OffsetDateTime::UNIX_EPOCH;
        compose(&from, "ada@example.org", &rendered, Uuid::nil(), at).unwrap()
    }

    pub(crate) fn is_permanent(error: &SendError) -> bool {
        matches!(error, SendError::Permanent(_))
    }

    /// The names and modes below a directory, sorted.
    pub(crate) fn files(directory: &Path) -> Vec<(String, u32)> {
        use std::os::unix::fs::PermissionsExt;
        let mut files: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                (entry.file_name().into_string().unwrap(), mode)
            })
            .collect();
        files.sort();
        files
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::{
        scripted::{files, is_permanent},
        *,
    };
    use crate::services::letters::{Letter, Message};

    const ID: Uuid = Uuid::from_u128(0x0193_4b1e_6c7d_7a11_8000_1234_5678_9abc);

    fn from() -> Mailbox {
        "Bifrons <no-reply@id.example>".parse().unwrap()
    }

    fn rendered() -> Rendered {
        Rendered {
            subject: "Your verification code".to_owned(),
            text: "042917\n.\n..\nGrüße\n".to_owned(),
            html: "<p>042917</p>".to_owned(),
        }
    }

    fn at() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_795_215_240).unwrap()
    }

    fn mail(to: &str) -> String {
        String::from_utf8(compose(&from(), to, &rendered(), ID, at()).unwrap().formatted()).unwrap()
    }

    fn headers(mail: &str) -> Vec<&str> {
        mail.split("\r\n\r\n").next().unwrap().split("\r\n").collect()
    }

    #[test]
    fn letters_that_are_written_at_once_fail_each_for_itself() {
        let directory = tempfile::tempdir().unwrap();
        let (mail, text_messages) = (directory.path().join("mail"), directory.path().join("sms"));
        let (patience, lease) = (Spool::PATIENCE, Spool::PATIENCE * 20);
        let spool = Spool { patience, lease, ..spool(directory.path()) };
        let letters = [
            posted(1, Recipient::Email("ada@example.org".to_owned())),
            posted(2, Recipient::Email("no address".to_owned())),
            posted(3, Recipient::Phone("+22990000000".to_owned())),
            posted(4, Recipient::Email("eve@example.org".to_owned())),
        ];
        let told = spool.write(&letters);
        assert!(told[1].as_ref().is_err_and(is_permanent));
        assert_eq!([&told[0], &told[2], &told[3]], [&Ok(()); 3]);
        let names = |directory: &Path| files(directory).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let name = |n: u128, extension: &str| format!("{}.{extension}", Uuid::from_u128(n));
        assert_eq!(names(&mail), [name(1, "eml"), name(4, "eml")]);
        assert_eq!(names(&text_messages), [name(3, "txt")]);
        let written = std::fs::read(mail.join(name(1, "eml"))).unwrap();
        let rendered = letters[0].message.letter.render();
        assert_eq!(
            written,
            compose(&from(), "ada@example.org", &rendered, Uuid::from_u128(1), at()).unwrap().formatted()
        );

        // Another attempt writes the same again. Where one directory cannot be, the other's letters are written.
        std::fs::remove_dir_all(&text_messages).unwrap();
        std::fs::write(&text_messages, "a file").unwrap();
        let told = spool.write(&letters);
        assert!(matches!(told[2], Err(SendError::Transient(_))), "{told:?}");
        assert_eq!([&told[0], &told[3]], [&Ok(()); 2]);
        assert_eq!(names(&mail), [name(1, "eml"), name(4, "eml")]);

        // One that cannot have its name leaves nothing behind.
        std::fs::remove_file(mail.join(name(4, "eml"))).unwrap();
        std::fs::create_dir(mail.join(name(4, "eml"))).unwrap();
        let told = spool.write(&letters);
        assert!(matches!(told[3], Err(SendError::Transient(_))), "{told:?}");
        assert_eq!(told[0], Ok(()));
        assert_eq!(std::fs::read_dir(&mail).unwrap().count(), 2);

        // Once its time is over, what was begun is not finished, and nothing stays of it; and none is begun.
        let begun = spool.begin(&letters[0]).unwrap();
        assert_eq!(std::fs::read_dir(&mail).unwrap().count(), 3);
        let last = Instant::now() + lease;
        assert!(matches!(begun.sync(Instant::now(), last, File::sync_all), Err(SendError::Transient(_))));
        assert_eq!(std::fs::read_dir(&mail).unwrap().count(), 2);
        std::fs::remove_dir_all(&mail).unwrap();
        let told = Spool { patience: Duration::ZERO, ..spool }.write(&letters);
        assert!(told.iter().all(|told| matches!(told, Err(SendError::Transient(_)))), "{told:?}");
        assert!(!mail.exists());
    }

    fn spool(directory: &Path) -> Spool {
        let settings = Settings::from_overrides(&[]).unwrap();
        let spool = Spool::of(&settings).expect("the default");
        Spool { mail: directory.join("mail"), text_messages: directory.join("sms"), from: from(), ..spool }
    }

    fn posted(n: u128, to: Recipient) -> Posted {
        let letter = Letter::VerificationCode { code: "042917".to_owned(), minutes: 10 };
        Posted { id: Uuid::from_u128(n), message: Message { to, letter }, at: at() }
    }

    #[test]
    fn all_of_a_batch_are_synced_before_one_has_its_name_and_a_slow_disk_makes_the_next_smaller() {
        let directory = tempfile::tempdir().unwrap();
        let patience = Duration::from_secs(1);
        let spool = Spool { patience, ..spool(directory.path()) };
        let letters: Vec<_> = (0..4).map(|n| posted(n, Recipient::Email("ada@example.org".to_owned()))).collect();
        let mail = spool.mail.clone();
        let named = || files(&mail).iter().filter(|(name, _)| !name.starts_with('.')).count();
        let (syncs, (_never, waiting)) = (Cell::new(0), std::sync::mpsc::channel::<()>());
        let told = spool.write_by(&letters, |_| {
            assert_eq!(named(), 0);
            syncs.set(syncs.get() + 1);
            // The second one is over after the time of the others, which is not that of the names.
            let takes = if syncs.get() == 2 { patience } else { Duration::ZERO };
            let _ = waiting.recv_timeout(takes);
            Ok(())
        });
        assert_eq!((syncs.get(), named()), (2, 2), "{told:?}");
        assert_eq!(told.iter().filter(|told| told.is_ok()).count(), 2);
        assert_eq!(files(&mail).len(), 2, "of the others nothing is left");
        // Fewer are claimed next, and as many as ever once the disk is fast again.
        assert_eq!(spool.at_once(), letters.len() / 2);
        let spool = Spool { patience: Spool::PATIENCE, ..spool };
        let fast = (0..6).map(|_| {
            assert!(spool.write_by(&letters, |_| Ok(())).iter().all(Result::is_ok));
            spool.at_once()
        });
        assert_eq!(fast.collect::<Vec<_>>(), [4, 8, 16, 32, 32, 32]);
        // Once another may have the letter, nothing is named and nothing of what the other may have made is taken away.
        let spool = Spool { lease: Duration::ZERO, ..spool };
        let _ = std::fs::remove_dir_all(&mail);
        assert!(spool.write_by(&letters, |_| Ok(())).iter().all(Result::is_err));
        assert_eq!((files(&mail).len(), named()), (4, 0));
    }

    #[test]
    fn the_more_letters_come_the_longer_they_gather_but_for_a_quarter_of_a_second() {
        let after: Vec<_> = (1..Spool::AT_ONCE).map(Spool::gather).collect();
        assert!(after.is_sorted() && after.first() > Some(&Spool::GATHER));
        assert_eq!(after.last(), Some(&Duration::from_millis(255)), "docs/OPERATING.md says so");
    }

    #[test]
    fn a_mail_has_exactly_these_headers() {
        let mail = mail("ada@example.org");
        assert_eq!(
            headers(&mail),
            [
                "From: Bifrons <no-reply@id.example>",
                "To: ada@example.org",
                "Subject: Your verification code",
                "Date: Fri, 20 Nov 2026 22:54:00 +0000",
                "Message-ID: <01934b1e-6c7d-7a11-8000-123456789abc@id.example>",
                "Auto-Submitted: auto-generated",
                "MIME-Version: 1.0",
                "Content-Type: multipart/alternative;",
                " boundary=\"ghpjkbhemcndnahhoggghijklmnopabc\"",
            ]
        );
        assert!(mail.contains("Content-Type: text/plain; charset=utf-8\r\n"));
        assert!(mail.contains("Content-Type: text/html; charset=utf-8\r\n"));
        assert!(mail.is_ascii());
    }

    #[test]
    fn the_same_letter_composed_twice_is_the_same_mail() {
        assert_eq!(mail("ada@example.org"), mail("ada@example.org"));
    }

    #[test]
    fn an_internationalised_domain_is_written_as_punycode() {
        let mail = mail("ada@bücher.example");
        assert!(mail.contains("To: ada@xn--bcher-kva.example\r\n"));
        let sender: Mailbox = "no-reply@bücher.example".parse().unwrap();
        let composed = compose(&sender, "a@b.example", &rendered(), ID, at()).unwrap();
        assert!(composed.envelope().from().unwrap().domain().is_ascii());
        assert!(String::from_utf8(composed.formatted()).unwrap().contains("@xn--bcher-kva.example>\r\n"));
    }

    #[test]
    fn a_recipient_that_breaks_out_of_its_header_is_refused() {
        for to in [
            "ada@example.org\r\nBcc: eve@example.org",
            "ada@example.org\nBcc: eve@example.org",
            "\"ada\r\n\"@example.org",
            "ada@example.org, eve@example.org",
            "Ada <ada@example.org>",
            "ada@example.org\0",
            "",
            "@",
        ] {
            let error = compose(&from(), to, &rendered(), ID, at()).unwrap_err();
            assert!(is_permanent(&error), "{to}");
            assert!(!error.to_string().contains("example"));
        }
    }

    #[test]
    fn a_subject_with_a_line_break_is_refused() {
        let mut letter = rendered();
        letter.subject.push_str("\r\nBcc: eve@example.org");
        assert!(compose(&from(), "ada@example.org", &letter, ID, at()).is_err());
    }

    #[test]
    fn lines_of_a_mail_end_with_cr_lf_and_are_short() {
        let mail = mail("ada@example.org");
        assert_eq!(mail.matches('\n').count(), mail.matches("\r\n").count());
        assert!(mail.split("\r\n").all(|line| line.len() <= 78));
    }

    #[test]
    fn a_spool_file_is_renamed_within_its_directory() {
        let file = SpoolFile::mail(Path::new("/m"), ID);
        assert_eq!(file.path, Path::new("/m/01934b1e-6c7d-7a11-8000-123456789abc.eml"));
        assert_eq!(file.temporary, Path::new("/m/.01934b1e-6c7d-7a11-8000-123456789abc.eml.tmp"));
    }

    #[test]
    fn a_text_message_file_keeps_the_recipient_on_its_line() {
        assert_eq!(
            text_message_file("+2348031234567\r\nX: y", "042917 is it.", ID),
            "To: +2348031234567X: y\nId: 01934b1e-6c7d-7a11-8000-123456789abc\n\n042917 is it.\n"
        );
    }

    #[test]
    fn a_root_certificate_that_is_none_is_a_clear_sentence() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = SmtpServer::new("h", 25, Security::Tls, None, Some(file.path())).err().unwrap();
        assert!(error.to_string().ends_with("it holds no PEM certificate"));
        let missing = SmtpServer::new("h", 25, Security::Tls, None, Some(Path::new("/nowhere")));
        assert!(missing.is_err());
        assert!(SmtpServer::new("h", 25, Security::Tls, None, None).is_ok());
    }

    #[test]
    fn an_enhanced_status_is_read_from_the_start_of_a_reply() {
        assert_eq!(enhanced_status("5.1.1 <a@b>: unknown").as_deref(), Some("5.1.1"));
        assert_eq!(enhanced_status("a.b.c unknown"), None);
        assert_eq!(enhanced_status("203.0.113.9 is blocked"), None);
        assert_eq!(enhanced_status(""), None);
    }

    #[test]
    fn a_request_to_twilio_encodes_every_value() {
        let request = TwilioRequest::new(
            ("AC1/..", &Secret::new("to:ken")),
            &"http://127.0.0.1:9/base/".parse().unwrap(),
            "+15550100",
            "+2348031234567",
            "a&To=+1 \u{fc}",
        )
        .unwrap();
        assert_eq!(request.url.as_str(), "http://127.0.0.1:9/base/2010-04-01/Accounts/AC1%2F../Messages.json");
        assert_eq!(request.authorization, "Basic QUMxLy4uOnRvOmtlbg==");
        assert_eq!(request.form, "To=%2B2348031234567&From=%2B15550100&Body=a%26To%3D%2B1+%C3%BC");
    }

    #[test]
    fn a_messaging_service_is_named_in_its_own_field() {
        let service = "MG0123456789abcdef0123456789abcdef";
        let base_url = "https://api.twilio.com".parse().unwrap();
        let request = TwilioRequest::new(("AC1", &Secret::new("t")), &base_url, service, "+1", "x").unwrap();
        assert_eq!(request.form, format!("To=%2B1&MessagingServiceSid={service}&Body=x"));
    }

    #[test]
    fn answers_of_twilio_are_judged() {
        assert_eq!(twilio_verdict(201, b"{}"), Ok(()));
        for status in [408, 429, 500, 503, 599] {
            assert!(!is_permanent(&twilio_verdict(status, b"").unwrap_err()));
        }
        for status in [301, 307, 400, 401, 403, 404] {
            assert!(is_permanent(&twilio_verdict(status, b"no json").unwrap_err()));
        }
        assert_eq!(
            twilio_verdict(400, br#"{"code":21211,"message":"+234 is bad"}"#).unwrap_err().to_string(),
            "the SMS provider refused the message (HTTP 400, code 21211)"
        );
    }
}
