//! Sends text messages from the v1 engine: into a directory of files, or through Twilio.

use std::{path::PathBuf, time::Duration};

use ureq::{
    Agent,
    tls::{RootCerts, TlsConfig},
};
use url::Url;
use uuid::Uuid;

use crate::{
    mail::{
        ANSWER_LIMIT, FORM, SendError, SetupError, SpoolFile, TwilioRequest, cryptography, text_message_file,
        twilio_verdict, unreachable_provider,
    },
    settings::{Secret, SmsUrl},
};

/// Sends text messages.
pub struct SmsSender {
    route: Route,
}

enum Route {
    Directory(PathBuf),
    Twilio(Box<Twilio>),
}

struct Twilio {
    agent: Agent,
    sid: String,
    token: Secret,
    from: String,
    base_url: Url,
}

impl SmsSender {
    /// Makes a sender; `timeout` bounds one message from the look-up of the name to the answer.
    ///
    /// # Errors
    ///
    /// When the client for the provider cannot be set up.
    pub fn new(url: &SmsUrl, timeout: Duration) -> Result<Self, SetupError> {
        let route = match url {
            SmsUrl::File(directory) => Route::Directory(directory.clone()),
            SmsUrl::Twilio { sid, token, from, base_url } => Route::Twilio(Box::new(Twilio {
                agent: agent(timeout),
                sid: sid.clone(),
                token: token.clone(),
                from: from.clone(),
                base_url: base_url.clone(),
            })),
        };
        Ok(Self { route })
    }

    /// Sends one text; `id` is the outbox row's and names the file.
    ///
    /// # Errors
    ///
    /// [`SendError::Permanent`] when the provider refused this message, else
    /// [`SendError::Transient`].
    pub fn send(&self, to: &str, text: &str, id: Uuid) -> Result<(), SendError> {
        match &self.route {
            Route::Directory(directory) => {
                SpoolFile::text_message(directory, id).write(text_message_file(to, text, id).as_bytes())
            }
            Route::Twilio(twilio) => twilio.send(to, text),
        }
    }
}

fn agent(timeout: Duration) -> Agent {
    Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        // A redirect would carry the token and the number to another host.
        .max_redirects(0)
        .proxy(None)
        .tls_config(
            TlsConfig::builder()
                .root_certs(RootCerts::WebPki)
                .unversioned_rustls_crypto_provider(cryptography())
                .build(),
        )
        .build()
        .new_agent()
}

impl Twilio {
    fn send(&self, to: &str, text: &str) -> Result<(), SendError> {
        let request = TwilioRequest::new((&self.sid, &self.token), &self.base_url, &self.from, to, text)?;
        let mut answer = self
            .agent
            .post(request.url.as_str())
            .header("Authorization", &request.authorization)
            .content_type(FORM)
            .send(request.form.as_str())
            .map_err(|error| unreachable_provider(matches!(error, ureq::Error::Timeout(_))))?;
        let body = answer.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec().unwrap_or_default();
        twilio_verdict(answer.status().as_u16(), &body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::scripted::{files, is_permanent, listener, twilio};

    const SHORT: Duration = Duration::from_millis(500);

    fn sender(url: &SmsUrl) -> SmsSender {
        SmsSender::new(url, SHORT).unwrap()
    }

    #[test]
    fn a_text_becomes_one_private_file() {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path().join("sms");
        sender(&SmsUrl::File(spool.clone())).send("+2348031234567", "042917 is it.", Uuid::nil()).unwrap();
        let name = "00000000-0000-0000-0000-000000000000.txt";
        assert_eq!(files(&spool), [(name.to_owned(), 0o600)]);
        assert_eq!(
            std::fs::read_to_string(spool.join(name)).unwrap(),
            text_message_file("+2348031234567", "042917 is it.", Uuid::nil())
        );
    }

    #[test]
    fn the_provider_receives_one_form_with_the_account_s_credentials() {
        let (url, received) = twilio("HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
        sender(&url).send("+2348031234567", "042917 is it.", Uuid::nil()).unwrap();
        let request = received.recv().unwrap();
        assert!(request.starts_with("POST /2010-04-01/Accounts/AC1/Messages.json HTTP/1.1\r\n"));
        let lower = request.to_lowercase();
        assert!(lower.contains("content-type: application/x-www-form-urlencoded\r\n"));
        assert!(request.contains(": Basic QUMxOnRva2VuLW9mLWEtdGVzdA==\r\n"));
        assert!(request.ends_with("To=%2B2348031234567&From=%2B15550100&Body=042917+is+it."));
        assert!(received.try_recv().is_err());
    }

    #[test]
    fn a_refusal_is_permanent_and_its_number_is_kept() {
        let (url, _received) =
            twilio("HTTP/1.1 400 Bad Request\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{\"code\":21211}");
        assert_eq!(
            sender(&url).send("+1", "x", Uuid::nil()),
            Err(SendError::Permanent("the SMS provider refused the message (HTTP 400, code 21211)".to_owned()))
        );
    }

    #[test]
    fn an_overloaded_provider_is_tried_again_later() {
        for answer in [
            "HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 503 Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ] {
            let (url, _received) = twilio(answer);
            let error = sender(&url).send("+1", "x", Uuid::nil()).unwrap_err();
            assert!(!is_permanent(&error));
        }
    }

    #[test]
    fn a_redirect_is_not_followed() {
        let (elsewhere, address) = listener();
        let answer = format!(
            "HTTP/1.1 307 Over There\r\nLocation: http://{address}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let (url, _received) = twilio(answer.leak());
        let error = sender(&url).send("+1", "x", Uuid::nil()).unwrap_err();
        assert!(is_permanent(&error));
        elsewhere.set_nonblocking(true).unwrap();
        assert!(elsewhere.accept().is_err());
    }

    #[test]
    fn a_silent_provider_holds_a_text_no_longer_than_the_timeout() {
        let (silent, address) = listener();
        let url = SmsUrl::Twilio {
            sid: "AC1".to_owned(),
            token: Secret::new("t"),
            from: "+1".to_owned(),
            base_url: format!("http://{address}").parse().unwrap(),
        };
        assert_eq!(sender(&url).send("+1", "x", Uuid::nil()), Err(unreachable_provider(true)));
        drop(silent);
        assert_eq!(sender(&url).send("+1", "x", Uuid::nil()), Err(unreachable_provider(false)));
    }
}
