//! Sends mail from the v2 engine: into a directory of files, or to an SMTP server.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use lettre::transport::smtp::{
    Error,
    client::AsyncSmtpConnection,
    commands::{Data, Noop},
};
use uuid::Uuid;

use crate::{
    mail::{
        IDLE, IDLE_CONNECTIONS, MECHANISMS, SendError, SetupError, SmtpServer, Spool, SpoolFile, Stage, Transaction,
        out_of_time, refused,
    },
    services::deliver::Posted,
    settings::MailUrl,
};

/// How long `QUIT` after a refusal may take.
const PARTING: Duration = Duration::from_secs(1);

/// Sends mail; used from the runtime it first sends in, since connections are kept.
pub struct Mailer {
    route: Route,
}

enum Route {
    Directory(PathBuf),
    Server(Box<Server>),
}

struct Server {
    server: SmtpServer,
    timeout: Duration,
    idle: Mutex<Vec<(AsyncSmtpConnection, Instant)>>,
}

impl Mailer {
    /// Makes a mailer; `timeout` bounds one letter from connecting to the server's last reply.
    ///
    /// # Errors
    ///
    /// When the configured root certificate cannot be used.
    pub fn new(url: &MailUrl, timeout: Duration) -> Result<Self, SetupError> {
        let route = match url {
            MailUrl::File(directory) => Route::Directory(directory.clone()),
            MailUrl::Smtp { host, port, security, credentials, root } => Route::Server(Box::new(Server {
                server: SmtpServer::new(host, *port, *security, credentials.as_ref(), root.as_deref())?,
                timeout,
                idle: Mutex::new(Vec::new()),
            })),
        };
        Ok(Self { route })
    }

    /// Sends one mail; `id` is the outbox row's and names the file.
    ///
    /// # Errors
    ///
    /// [`SendError::Permanent`] when the server refused this letter, else [`SendError::Transient`].
    pub async fn send(&self, message: &lettre::Message, id: Uuid) -> Result<(), SendError> {
        match &self.route {
            Route::Directory(directory) => write_file(SpoolFile::mail(directory, id), message.formatted()).await,
            Route::Server(server) => server.send(message).await,
        }
    }
}

struct Failure {
    error: SendError,
    is_reply: bool,
}

impl Failure {
    fn at(stage: Stage) -> impl Fn(Error) -> Self {
        move |error| Self { is_reply: error.status().is_some(), error: refused(stage, &error) }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        Self { error, is_reply: false }
    }
}

impl Server {
    async fn send(&self, message: &lettre::Message) -> Result<(), SendError> {
        // A connection that is given up half-way is dropped with this future, never kept.
        tokio::time::timeout(self.timeout, self.exchange(message)).await.unwrap_or_else(|_elapsed| Err(out_of_time()))
    }

    async fn exchange(&self, message: &lettre::Message) -> Result<(), SendError> {
        let mut connection = match self.idle_connection().await {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let transaction = Transaction::new(message, connection.server_info())?;
        match deliver(&mut connection, &transaction).await {
            Ok(()) => {
                self.keep(connection);
                Ok(())
            }
            Err(failure) => {
                // After a refusal the server still listens; after silence it does not.
                if failure.is_reply {
                    _ = tokio::time::timeout(PARTING, connection.quit()).await;
                }
                Err(failure.error)
            }
        }
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, SendError> {
        let setup = |error: Error| refused(Stage::Setup, &error);
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((self.server.host.as_str(), self.server.port))
            .await
            .map_err(|_error| SendError::Transient("the mail server's name cannot be resolved".to_owned()))?
            .collect();
        let mut waiting = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let deadline = Instant::now() + self.timeout;
        let mut failure = SendError::Transient("the mail server's name has no address".to_owned());
        for address in addresses {
            // One address that swallows packets must not use up the time of the next.
            let share = deadline.saturating_duration_since(Instant::now()) / waiting.max(1);
            waiting = waiting.saturating_sub(1);
            let opening = AsyncSmtpConnection::connect_tokio1(
                address,
                None,
                &self.server.hello,
                self.server.tls_at_once().cloned(),
                None,
            );
            let mut connection = match tokio::time::timeout(share, opening).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => {
                    failure = setup(error);
                    continue;
                }
                Err(_elapsed) => {
                    failure = out_of_time();
                    continue;
                }
            };
            if let Some(tls) = self.server.tls_after_greeting() {
                connection.starttls(tls.clone(), &self.server.hello).await.map_err(setup)?;
            }
            if let Some(credentials) = &self.server.credentials {
                connection.auth(MECHANISMS, credentials).await.map_err(setup)?;
            }
            return Ok(connection);
        }
        Err(failure)
    }

    async fn idle_connection(&self) -> Option<AsyncSmtpConnection> {
        loop {
            let (mut connection, since) = self.pop()?;
            if since.elapsed() < IDLE && connection.command(Noop).await.is_ok() {
                return Some(connection);
            }
        }
    }

    fn pop(&self) -> Option<(AsyncSmtpConnection, Instant)> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, connection: AsyncSmtpConnection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS {
            idle.push((connection, Instant::now()));
        }
    }
}

async fn deliver(connection: &mut AsyncSmtpConnection, transaction: &Transaction) -> Result<(), Failure> {
    connection.command(&transaction.mail).await.map_err(Failure::at(Stage::Setup))?;
    for recipient in &transaction.recipients {
        connection.command(recipient).await.map_err(Failure::at(Stage::Letter))?;
    }
    connection.command(Data).await.map_err(Failure::at(Stage::Letter))?;
    connection.message(&transaction.bytes).await.map_err(Failure::at(Stage::Letter))?;
    Ok(())
}

/// Writes a spool file on a thread that may wait for the disk.
///
/// # Errors
///
/// [`SendError::Transient`] with the kind of failure.
#[expect(clippy::disallowed_methods, reason = "once, where tokio's own files would do it at every step")]
pub(super) async fn write_file(file: SpoolFile, bytes: Vec<u8>) -> Result<(), SendError> {
    let written = tokio::task::spawn_blocking(move || file.write(&bytes)).await;
    written.unwrap_or_else(|_panic| Err(SendError::Transient("the file was not written to its end".to_owned())))
}

/// Writes letters to their directories. Nothing is told of any where the code panicked.
#[expect(clippy::disallowed_methods, reason = "once, where tokio's own files would do it at every step")]
pub(super) async fn write_all(spool: &Spool, letters: &[Posted]) -> Vec<Result<(), SendError>> {
    let (spool, letters) = (spool.clone(), letters.to_vec());
    tokio::task::spawn_blocking(move || spool.write(&letters)).await.unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "each test has a runtime of its own")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::mail::scripted::{Manner, files, is_permanent, listener, mail, smtp};

    const SHORT: Duration = Duration::from_millis(500);

    fn mailer(url: &MailUrl) -> Mailer {
        Mailer::new(url, SHORT).unwrap()
    }

    #[tokio::test]
    async fn a_mail_becomes_one_private_file() {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path().join("a/mail");
        let mailer = mailer(&MailUrl::File(spool.clone()));
        mailer.send(&mail(), Uuid::nil()).await.unwrap();
        mailer.send(&mail(), Uuid::nil()).await.unwrap();
        assert_eq!(files(&spool), [("00000000-0000-0000-0000-000000000000.eml".to_owned(), 0o600)]);
        let mode = spool.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let written = std::fs::read(spool.join("00000000-0000-0000-0000-000000000000.eml"));
        assert_eq!(written.unwrap(), mail().formatted());
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_written_is_tried_again_later() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = mailer(&MailUrl::File(file.path().join("mail"))).send(&mail(), Uuid::nil()).await.unwrap_err();
        assert!(!is_permanent(&error));
        assert!(!error.to_string().contains('/'));
    }

    #[tokio::test]
    async fn a_server_receives_the_mail_and_a_lone_dot_does_not_end_it() {
        let (url, received) = smtp(Manner::Accept);
        mailer(&url).send(&mail(), Uuid::nil()).await.unwrap();
        let lines: Vec<_> = received.try_iter().collect();
        assert!(lines.contains(&"MAIL FROM:<no-reply@id.example>".to_owned()));
        assert!(lines.contains(&"RCPT TO:<ada@example.org>".to_owned()));
        assert!(lines.contains(&"..".to_owned()));
        assert!(lines.contains(&"...two".to_owned()));
        assert!(lines.contains(&"<p>042917</p>".to_owned()));
    }

    #[tokio::test]
    async fn the_next_mail_uses_the_same_connection() {
        let (url, received) = smtp(Manner::Accept);
        let mailer = mailer(&url);
        for _ in 0..3 {
            mailer.send(&mail(), Uuid::nil()).await.unwrap();
        }
        let connections = received.try_iter().filter(|line| line == "connected");
        assert_eq!(connections.count(), 1);
    }

    #[tokio::test]
    async fn a_refused_recipient_is_permanent_and_its_address_is_not_repeated() {
        let (url, _received) = smtp(Manner::Recipient("550 5.1.1 <ada@example.org> unknown"));
        assert_eq!(
            mailer(&url).send(&mail(), Uuid::nil()).await,
            Err(SendError::Permanent("the mail server refused the letter (550 5.1.1)".to_owned()))
        );
    }

    #[tokio::test]
    async fn a_recipient_put_off_is_tried_again_later() {
        let (url, _received) = smtp(Manner::Recipient("451 greylisted"));
        assert_eq!(
            mailer(&url).send(&mail(), Uuid::nil()).await,
            Err(SendError::Transient("the mail server put the letter off (451)".to_owned()))
        );
    }

    #[tokio::test]
    async fn a_refused_sender_is_no_fault_of_the_letter() {
        let (url, _received) = smtp(Manner::Sender("530 5.7.0 sign in first"));
        let error = mailer(&url).send(&mail(), Uuid::nil()).await.unwrap_err();
        assert!(!is_permanent(&error), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_after_the_content_is_tried_again_later() {
        let (url, _received) = smtp(Manner::HangUpAfterData);
        let error = mailer(&url).send(&mail(), Uuid::nil()).await.unwrap_err();
        assert!(!is_permanent(&error));
        assert_eq!(error.to_string(), "the mail server closed the connection or answered out of turn");
    }

    #[tokio::test]
    async fn a_silent_or_sluggish_server_holds_a_letter_no_longer_than_the_timeout() {
        for manner in [Manner::Silent, Manner::SilentAfterData, Manner::Sluggish] {
            let (url, _received) = smtp(manner);
            let started = Instant::now();
            let error = mailer(&url).send(&mail(), Uuid::nil()).await.unwrap_err();
            assert_eq!(error, out_of_time());
            // Room for a busy machine; eight sluggish replies alone would take 2.4 seconds.
            assert!(started.elapsed() < SHORT * 3);
        }
    }

    #[tokio::test]
    async fn a_connection_given_up_half_way_is_not_used_again() {
        let (url, received) = smtp(Manner::SilentAfterData);
        let mailer = Mailer::new(&url, Duration::from_secs(60)).unwrap();
        let message = mail();
        let cancelled = tokio::time::timeout(SHORT, mailer.send(&message, Uuid::nil()));
        assert!(cancelled.await.is_err());
        let again = tokio::time::timeout(SHORT, mailer.send(&message, Uuid::nil()));
        assert!(again.await.is_err());
        let connections = received.try_iter().filter(|line| line == "connected");
        assert_eq!(connections.count(), 2);
    }

    #[tokio::test]
    async fn a_server_that_is_down_is_tried_again_later() {
        let (closed, address) = listener();
        drop(closed);
        let url = MailUrl::Smtp {
            host: address.ip().to_string(),
            port: address.port(),
            security: crate::settings::Security::Plain,
            credentials: None,
            root: None,
        };
        assert_eq!(
            mailer(&url).send(&mail(), Uuid::nil()).await,
            Err(SendError::Transient("the mail server cannot be reached".to_owned()))
        );
    }

    #[tokio::test]
    async fn nothing_is_sent_in_the_clear_when_the_server_offers_no_starttls() {
        let (url, received) = smtp(Manner::Accept);
        let MailUrl::Smtp { host, port, .. } = url else { panic!("not a server") };
        let url = MailUrl::Smtp {
            host,
            port,
            security: crate::settings::Security::StartTls,
            credentials: Some(("u".to_owned(), crate::settings::Secret::new("p"))),
            root: None,
        };
        let error = mailer(&url).send(&mail(), Uuid::nil()).await.unwrap_err();
        assert!(!is_permanent(&error));
        assert!(received.try_iter().all(|line| !line.starts_with("MAIL") && !line.starts_with("AUTH")));
    }
}
