//! What people receive.

use crate::support::{PASSWORD, Request, for_each_backend, for_each_world};
use crate::{ORDINARY, PROMPT};
use serde_json::json;

#[test]
fn the_code_comes_as_text_and_as_html_and_is_easy_to_read() {
    for_each_world(ORDINARY, |side| {
        let email = side.email("ada");
        let (code, _) = side.register(&email, PASSWORD);
        let mail = side.gateway.wait_for_mail(&email, 1);
        let kind = mail.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("multipart/alternative"), "{kind}");
        assert!(mail.text.lines().any(|line| line.trim() == code), "the code has a line of its own: {}", mail.text);
        assert!(mail.html.contains(&code), "{}", mail.html);
        assert!(mail.html.to_ascii_lowercase().contains("<html"), "{}", mail.html);
        for name in ["from", "to", "subject", "date", "message-id", "mime-version"] {
            assert_eq!(mail.headers.iter().filter(|(other, _)| other == name).count(), 1, "{name}");
        }
        assert!(!mail.header("subject").unwrap_or_default().contains(&code), "a subject is shown on a locked screen");
        assert!(mail.text.lines().all(|line| line.chars().count() <= 78), "{}", mail.text);
        for remote in ["<img", "<script", "<link", "url(", "@import"] {
            assert!(!mail.html.contains(remote), "{remote}");
        }
    });
}

#[test]
fn nothing_of_the_request_gets_into_a_mail() {
    for_each_world(PROMPT, |side| {
        let email = side.email("ada");
        let body = json!({
            "email": email, "password": PASSWORD, "first_name": "Click https://evil.example\r\nBcc: all@evil.example",
            "last_name": "<script>evil</script>"
        });
        let mut request = Request::post("/api/{v}/auth/register/", &body);
        for name in ["Host", "X-Forwarded-Host", "X-Original-URL", "User-Agent", "Referer", "Origin", "Accept-Language"]
        {
            request = request.header(name, "evil.example");
        }
        let request = request.header("Forwarded", "host=evil.example").header("X-Forwarded-Proto", "evil");
        for turn in 1..=2 {
            let answer = side.send(&request);
            assert_eq!(answer.status, 201, "{}", answer.shown());
            if turn == 1 {
                let code = side.gateway.wait_for_mail(&email, 1).code().expect("a code");
                let answer = side.post("auth/verify-otp/", &json!({ "email": email, "otp": code }));
                assert_eq!(answer.status, 200, "{}", answer.shown());
            }
            let mail = side.gateway.wait_for_mail(&email, turn);
            for part in [&mail.text, &mail.html, &mail.raw] {
                assert!(!part.to_ascii_lowercase().contains("evil"), "{part}");
            }
            assert!(mail.header("bcc").is_none() && mail.header("cc").is_none());
        }
    });
}

#[test]
fn links_begin_with_the_public_url() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let body = json!({ "email": account.email, "password": PASSWORD });
        let request = Request::post("/api/{v}/auth/register/", &body).header("Host", "evil.example");
        assert_eq!(side.send(&request).status, 201);
        let mail = side.gateway.wait_for_mail(&account.email, 2);
        let words = mail.text.split_whitespace().chain(mail.html.split(['"', '\'', ' ', '<', '>']));
        let links: Vec<_> = words.filter(|word| word.starts_with("http")).collect();
        for link in links {
            assert!(link.starts_with("http://127.0.0.1:8002"), "{link}");
        }
    });
}

#[test]
fn a_text_message_shows_its_code_first_and_fits_into_one() {
    for_each_world(ORDINARY, |side| {
        let phone = side.phone("ada");
        let answer = side.post("auth/register/", &json!({ "phone": phone, "password": PASSWORD }));
        assert_eq!(answer.status, 201, "{}", answer.shown());
        let message = side.gateway.wait_for_text(&phone, 1);
        let code = message.code().expect("a code");
        assert!(message.text.trim().starts_with(&code), "{}", message.text);
        assert!(message.text.trim().chars().count() <= 160, "{}", message.text);
    });
}

#[test]
fn a_letter_waits_for_its_place_and_is_sent_once() {
    for_each_backend(&[("BIFRONS_OUTBOX__BACKOFF", "200ms")], |gateway| {
        let place = gateway.data_directory().join("mail");
        let away = gateway.data_directory().join("away");
        std::fs::create_dir_all(&place).expect("the mail directory");
        std::fs::rename(&place, &away).expect("the mail directory can be moved");
        // A file in its place: the back-end cannot write.
        std::fs::write(&place, b"").expect("a file in its place");
        let mut side = crate::Side::new(gateway, crate::support::Engine::V1);
        let email = side.email("ada");
        let answer = side.post("auth/register/", &json!({ "email": email, "password": PASSWORD }));
        assert_eq!(answer.status, 201, "a mail that cannot be sent now fails no request: {}", answer.shown());
        crate::support::pause(std::time::Duration::from_millis(500));
        std::fs::remove_file(&place).expect("the file goes");
        std::fs::rename(&away, &place).expect("the mail directory comes back");
        let _ = gateway.wait_for_mail(&email, 1);
        crate::support::pause(std::time::Duration::from_millis(500));
        assert_eq!(gateway.mails_to(&email).len(), 1);
    });
}

#[test]
fn the_letters_about_a_password_come_as_text_and_as_html_and_tell_no_secret_in_the_subject() {
    for_each_world(PROMPT, |side| {
        let account = side.account("ada");
        let link = crate::password_reset::link(side, &account.email, 2);
        let body = link.sets("copper-lantern-58-harbour");
        let request = Request::post("/api/{v}/password/reset-confirm/", &body);
        let agent = "<b>evil</b>\u{202e} https://evil.example/ Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0";
        assert_eq!(side.send(&request.header("User-Agent", agent)).status, 200);
        for (nth, subject) in [(2, "Set a new password"), (3, "Your password was changed")] {
            let mail = side.gateway.wait_for_mail(&account.email, nth);
            assert_eq!(mail.header("subject"), Some(subject));
            let kind = mail.header("content-type").unwrap_or_default();
            assert!(kind.starts_with("multipart/alternative"), "{kind}");
            for name in ["from", "to", "subject", "date", "message-id", "mime-version"] {
                assert_eq!(mail.headers.iter().filter(|(other, _)| other == name).count(), 1, "{name}");
            }
            for part in [&mail.text, &mail.html] {
                assert!(!part.contains("evil") && !part.contains("copper-lantern"), "{part}");
            }
            for remote in ["<img", "<script", "<link", "url(", "@import"] {
                assert!(!mail.html.contains(remote), "{remote}");
            }
            assert_eq!(mail.text.contains(&link.token), nth == 2);
            assert_eq!(mail.html.contains(&link.token), nth == 2);
            // A link must not be broken over two lines; everything else fits into one.
            let is_long = |line: &&str| line.chars().count() > 78 && !line.starts_with("http");
            assert_eq!(mail.text.lines().find(is_long), None, "{}", mail.text);
            assert!(mail.text.contains(if nth == 2 { "It expires in 60 minutes." } else { "UTC" }), "{}", mail.text);
        }
    });
}
