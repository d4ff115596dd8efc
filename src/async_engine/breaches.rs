//! Asks a list of breached passwords from the v2 engine.

use std::time::Duration;

use reqwest::Client;
use url::Url;

use super::web::client;
use crate::{
    mail::SetupError,
    services::{
        breaches::{ANSWER_LIMIT, PADDING, address, text},
        error::Unavailable,
    },
    settings::Settings,
};

/// A list that answers by the range protocol, as Have I Been Pwned does.
pub struct BreachList {
    client: Client,
    url: Url,
}

impl BreachList {
    /// Makes a client; `timeout` bounds one question from the look-up of the name to the end of the answer.
    ///
    /// # Errors
    ///
    /// When the client cannot be set up.
    pub fn new(url: &Url, timeout: Duration) -> Result<Self, SetupError> {
        Ok(Self { client: client("passwords.breaches_url", timeout)?, url: url.clone() })
    }

    /// The one that is configured, if any.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn of(settings: &Settings) -> Result<Option<Self>, SetupError> {
        let passwords = &settings.passwords;
        passwords.breaches_url.as_ref().map(|url| Self::new(url, passwords.breaches_timeout)).transpose()
    }

    /// Asks for the lines of a range ([`crate::services::breaches::Range`]).
    ///
    /// # Errors
    ///
    /// When there is no whole answer in time, or one with another status than 200.
    pub async fn range(&self, prefix: &str) -> Result<String, Unavailable> {
        let url = address(&self.url, prefix)?;
        let mut answer = self.client.get(url).header(PADDING.0, PADDING.1).send().await.map_err(failure)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failure)? {
            body.extend_from_slice(&chunk);
            if u64::try_from(body.len()).is_ok_and(|length| length > ANSWER_LIMIT) {
                return text(answer.status().as_u16(), None);
            }
        }
        text(answer.status().as_u16(), Some(body))
    }
}

fn failure(error: reqwest::Error) -> Unavailable {
    Unavailable::breaches(error.without_url())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "each test has a runtime of its own")]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        sync::mpsc::Receiver,
        thread,
        time::Instant,
    };

    use super::*;
    use crate::{
        mail::scripted::{listener, twilio},
        services::{breaches::Range, passwords::Password},
        settings::SmsUrl,
    };

    const SHORT: Duration = Duration::from_millis(500);
    const LINE: &str = "1E4C9B93F3F0682250B6CF8331B7EE68FD8:3\r\n";

    /// A list that gives every request this answer.
    fn list(answer: String) -> (BreachList, Receiver<String>) {
        let (SmsUrl::Twilio { base_url, .. }, received) = twilio(answer.leak()) else { unreachable!() };
        (BreachList::new(&base_url, SHORT).unwrap(), received)
    }

    fn with_body(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    async fn failure(answer: String) -> String {
        list(answer).0.range("5BAA6").await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn the_list_is_asked_for_a_range_with_padding_and_no_more() {
        let (list, received) = list(with_body(LINE));
        let range = Range::of(&Password::new("password"));
        let answer = list.range(&range.prefix).await.unwrap();
        assert_eq!(answer, LINE);
        assert!(range.is_listed(&answer).unwrap());
        let request = received.recv().unwrap();
        assert!(request.starts_with("GET /range/5BAA6 HTTP/1.1\r\n"), "{request}");
        let lower = request.to_lowercase();
        assert!(lower.contains("\r\nadd-padding: true\r\n"), "{request}");
        assert!(lower.contains("\r\nuser-agent: bifrons/"), "{request}");
        assert!(!lower.contains("1e4c9") && !lower.contains("password"), "{request}");
        assert!(received.try_recv().is_err());
    }

    #[tokio::test]
    async fn another_status_than_200_is_no_answer() {
        for status in ["204 Empty", "404 Nowhere", "429 Too Many", "500 Broken", "503 Down"] {
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{LINE}", LINE.len());
            let number = status.split(' ').next().unwrap();
            assert!(failure(answer).await.ends_with(&format!("it answered with status {number}")), "{status}");
        }
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let (elsewhere, address) = listener();
        let answer = format!(
            "HTTP/1.1 302 Over There\r\nLocation: http://{address}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        assert!(failure(answer).await.ends_with("it answered with status 302"));
        elsewhere.set_nonblocking(true).unwrap();
        assert!(elsewhere.accept().is_err());
    }

    #[tokio::test]
    async fn a_silent_list_is_waited_for_no_longer_than_the_timeout() {
        let (silent, address) = listener();
        let list = BreachList::new(&format!("http://{address}").parse().unwrap(), SHORT).unwrap();
        let began = Instant::now();
        assert!(list.range("5BAA6").await.is_err());
        assert!((SHORT..SHORT * 6).contains(&began.elapsed()), "{:?}", began.elapsed());
        drop(silent);
        assert!(list.range("5BAA6").await.is_err());
    }

    #[tokio::test]
    async fn a_list_that_stops_half_way_is_waited_for_no_longer_than_the_timeout() {
        let (listener, address) = listener();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n").unwrap();
            stream.write_all(LINE.as_bytes()).unwrap();
            stream
        });
        let list = BreachList::new(&format!("http://{address}").parse().unwrap(), SHORT).unwrap();
        let began = Instant::now();
        assert!(list.range("5BAA6").await.is_err());
        assert!((SHORT..SHORT * 6).contains(&began.elapsed()), "{:?}", began.elapsed());
        drop(server.join());
    }

    #[tokio::test]
    async fn half_an_answer_is_none() {
        assert!(list(with_body(LINE)).0.range("5BAA6").await.is_ok());
        let half = with_body(LINE).replace(&format!("{}\r\n", LINE.len()), "4000\r\n");
        failure(half).await;
        let chunk = format!("{:x}\r\n{LINE}\r\n", LINE.len());
        let chunks = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunk}");
        assert!(list(format!("{chunks}0\r\n\r\n")).0.range("5BAA6").await.is_ok());
        failure(chunks).await;
    }

    #[tokio::test]
    async fn an_answer_is_read_up_to_its_limit() {
        let limit = usize::try_from(ANSWER_LIMIT).unwrap();
        let most = "x".repeat(limit);
        assert_eq!(list(with_body(&most)).0.range("5BAA6").await.unwrap().len(), limit);
        let more = "x".repeat(limit + 1);
        assert!(failure(with_body(&more)).await.ends_with("longer than 262144 bytes"));
        let endless = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{more}");
        assert!(failure(endless).await.ends_with("longer than 262144 bytes"));
    }
}
