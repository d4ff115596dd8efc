//! The letters the gateway writes to people, and how they read as mail and as a text message.

use std::fmt;

use askama::Template;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Most characters of an untrusted value that are shown in a letter.
const SHOWN: usize = 48;

/// Most characters of one GSM text message.
const TEXT_MESSAGE: usize = 160;

/// A letter before it is put into words.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "template", rename_all = "snake_case")]
pub enum Letter {
    /// A one-time code that proves the address.
    VerificationCode {
        /// The digits.
        code: String,
        /// For how many minutes the code is good.
        minutes: u64,
    },
    /// Someone registered with an address that already has an account.
    AlreadyRegistered {
        /// Where to sign in, made from `public_url`.
        sign_in_url: String,
        /// Where to ask for a new password, made from `public_url`.
        reset_url: String,
    },
    /// A refresh token was used twice and its session was ended (RFC 9700 section 4.14).
    SessionReuseDetected {
        /// When the token was used again.
        #[serde(with = "time::serde::rfc3339")]
        when: OffsetDateTime,
        /// Browser of the session, as parsed from its user agent.
        browser: String,
        /// Operating system of the session, as parsed from its user agent.
        os: String,
    },
    /// A link that sets a new password.
    PasswordReset {
        /// The link, made from `public_url`.
        url: String,
        /// For how many minutes it is good.
        minutes: u64,
    },
    /// A one-time code that sets a new password.
    PasswordResetCode {
        /// The digits.
        code: String,
        /// For how many minutes the code is good.
        minutes: u64,
    },
    /// The password was changed or reset.
    PasswordChanged {
        /// When.
        #[serde(with = "time::serde::rfc3339")]
        when: OffsetDateTime,
        /// Browser that it was done with, as parsed from its user agent.
        browser: String,
        /// Operating system that it was done with, as parsed from its user agent.
        os: String,
        /// Where to ask for a new password, made from `public_url`.
        reset_url: String,
    },
    /// The second factor was set up, changed or removed.
    SecondFactorChanged {
        /// How.
        change: FactorChange,
        /// When.
        #[serde(with = "time::serde::rfc3339")]
        when: OffsetDateTime,
        /// Browser that it was done with, as parsed from its user agent.
        browser: String,
        /// Operating system that it was done with, as parsed from its user agent.
        os: String,
        /// Where to ask for a new password, made from `public_url`.
        reset_url: String,
    },
    /// A recovery code was used.
    RecoveryCodeUsed {
        /// How many are left.
        left: usize,
        /// Where to ask for a new password, made from `public_url`.
        reset_url: String,
    },
    /// Too many wrong codes were shown: no code is taken for a while.
    SecondFactorLocked {
        /// For how many minutes.
        minutes: u64,
        /// Where to ask for a new password, made from `public_url`.
        reset_url: String,
    },
    /// A Google account was linked and signs in from now on.
    GoogleLinked {
        /// When.
        #[serde(with = "time::serde::rfc3339")]
        when: OffsetDateTime,
        /// Browser that it was done with, as parsed from its user agent.
        browser: String,
        /// Operating system that it was done with, as parsed from its user agent.
        os: String,
    },
    /// The account was confirmed, but its pending password was contested and is gone.
    PasswordRemoved {
        /// Where to ask for a new password, made from `public_url`.
        reset_url: String,
    },
}

/// What became of a second factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FactorChange {
    /// It was set up.
    Enabled,
    /// Its user switched it off.
    Disabled,
    /// It has new recovery codes.
    CodesReplaced,
    /// An operator removed it.
    Reset,
}

impl FactorChange {
    /// As audit events name it.
    pub const fn action(self) -> &'static str {
        match self {
            Self::Enabled => "mfa_enable",
            Self::Disabled => "mfa_disable",
            Self::CodesReplaced => "recovery_codes_replace",
            Self::Reset => "mfa_reset",
        }
    }

    const fn sentence(self) -> &'static str {
        match self {
            Self::Enabled => "Two-step sign-in was switched on for your account.",
            Self::Disabled => "Two-step sign-in was switched off for your account.",
            Self::CodesReplaced => "Your account has new recovery codes. The old ones no longer work.",
            Self::Reset => "Two-step sign-in of your account was removed by an operator.",
        }
    }

    // What somebody else has switched on keeps its owner out, and no new password removes it.
    const fn needs_support(self) -> bool {
        matches!(self, Self::Enabled)
    }
}

// Codes and addresses must not reach a log by way of `{:?}`.
impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VerificationCode { .. } => "Letter::VerificationCode",
            Self::AlreadyRegistered { .. } => "Letter::AlreadyRegistered",
            Self::SessionReuseDetected { .. } => "Letter::SessionReuseDetected",
            Self::PasswordReset { .. } => "Letter::PasswordReset",
            Self::PasswordResetCode { .. } => "Letter::PasswordResetCode",
            Self::PasswordChanged { .. } => "Letter::PasswordChanged",
            Self::SecondFactorChanged { .. } => "Letter::SecondFactorChanged",
            Self::RecoveryCodeUsed { .. } => "Letter::RecoveryCodeUsed",
            Self::SecondFactorLocked { .. } => "Letter::SecondFactorLocked",
            Self::GoogleLinked { .. } => "Letter::GoogleLinked",
            Self::PasswordRemoved { .. } => "Letter::PasswordRemoved",
        })
    }
}

/// Whom a letter goes to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipient {
    /// An e-mail address.
    Email(String),
    /// A phone number, E.164.
    Phone(String),
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Email(_) => "Recipient::Email",
            Self::Phone(_) => "Recipient::Phone",
        })
    }
}

/// A letter and whom it goes to; kept sealed in the outbox until it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Whom the letter goes to.
    pub to: Recipient,
    /// What it says.
    pub letter: Letter,
}

/// A letter in words, for mail.
#[derive(Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The subject line: fixed words, never text of a person or a request.
    pub subject: String,
    /// The plain-text part.
    pub text: String,
    /// The HTML part.
    pub html: String,
}

#[derive(Template)]
#[template(path = "verification_code.html")]
struct VerificationCodeHtml<'a> {
    subject: &'a str,
    code: &'a str,
    validity: &'a str,
}

#[derive(Template)]
#[template(path = "verification_code.txt")]
struct VerificationCodeText<'a> {
    code: &'a str,
    validity: &'a str,
}

#[derive(Template)]
#[template(path = "already_registered.html")]
struct AlreadyRegisteredHtml<'a> {
    subject: &'a str,
    sign_in_url: &'a str,
    reset_url: &'a str,
}

#[derive(Template)]
#[template(path = "already_registered.txt")]
struct AlreadyRegisteredText<'a> {
    sign_in_url: &'a str,
    reset_url: &'a str,
}

#[derive(Template)]
#[template(path = "session_reuse_detected.html")]
struct SessionReuseDetectedHtml<'a> {
    subject: &'a str,
    when: &'a str,
    browser: &'a str,
    os: &'a str,
}

#[derive(Template)]
#[template(path = "session_reuse_detected.txt")]
struct SessionReuseDetectedText<'a> {
    when: &'a str,
    browser: &'a str,
    os: &'a str,
}

#[derive(Template)]
#[template(path = "password_removed.html")]
struct PasswordRemovedHtml<'a> {
    subject: &'a str,
    reset_url: &'a str,
}

#[derive(Template)]
#[template(path = "password_removed.txt")]
struct PasswordRemovedText<'a> {
    reset_url: &'a str,
}

#[derive(Template)]
#[template(path = "password_reset.html")]
struct PasswordResetHtml<'a> {
    subject: &'a str,
    url: &'a str,
    validity: &'a str,
}

#[derive(Template)]
#[template(path = "password_reset.txt")]
struct PasswordResetText<'a> {
    url: &'a str,
    validity: &'a str,
}

#[derive(Template)]
#[template(path = "password_reset_code.html")]
struct PasswordResetCodeHtml<'a> {
    subject: &'a str,
    code: &'a str,
    validity: &'a str,
}

#[derive(Template)]
#[template(path = "password_reset_code.txt")]
struct PasswordResetCodeText<'a> {
    code: &'a str,
    validity: &'a str,
}

#[derive(Template)]
#[template(path = "password_changed.html")]
struct PasswordChangedHtml<'a> {
    subject: &'a str,
    when: &'a str,
    browser: &'a str,
    os: &'a str,
    reset_url: &'a str,
}

#[derive(Template)]
#[template(path = "password_changed.txt")]
struct PasswordChangedText<'a> {
    when: &'a str,
    browser: &'a str,
    os: &'a str,
    reset_url: &'a str,
}

#[derive(Template)]
#[template(path = "second_factor_changed.html")]
struct SecondFactorChangedHtml<'a> {
    subject: &'a str,
    sentence: &'a str,
    when: &'a str,
    browser: &'a str,
    os: &'a str,
    reset_url: &'a str,
    needs_support: bool,
}

#[derive(Template)]
#[template(path = "second_factor_changed.txt")]
struct SecondFactorChangedText<'a> {
    sentence: &'a str,
    when: &'a str,
    browser: &'a str,
    os: &'a str,
    reset_url: &'a str,
    needs_support: bool,
}

#[derive(Template)]
#[template(path = "recovery_code_used.html")]
struct RecoveryCodeUsedHtml<'a> {
    subject: &'a str,
    left: &'a str,
    reset_url: &'a str,
}

#[derive(Template)]
#[template(path = "recovery_code_used.txt")]
struct RecoveryCodeUsedText<'a> {
    left: &'a str,
    reset_url: &'a str,
}

#[derive(Template)]
#[template(path = "second_factor_locked.html")]
struct SecondFactorLockedHtml<'a> {
    subject: &'a str,
    lasting: &'a str,
    reset_url: &'a str,
}

#[derive(Template)]
#[template(path = "second_factor_locked.txt")]
struct SecondFactorLockedText<'a> {
    lasting: &'a str,
    reset_url: &'a str,
}

#[derive(Template)]
#[template(path = "google_linked.html")]
struct GoogleLinkedHtml<'a> {
    subject: &'a str,
    when: &'a str,
    browser: &'a str,
    os: &'a str,
}

#[derive(Template)]
#[template(path = "google_linked.txt")]
struct GoogleLinkedText<'a> {
    when: &'a str,
    browser: &'a str,
    os: &'a str,
}

impl Letter {
    /// The stable name of the letter's kind, the same as in its serialised form.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::VerificationCode { .. } => "verification_code",
            Self::AlreadyRegistered { .. } => "already_registered",
            Self::SessionReuseDetected { .. } => "session_reuse_detected",
            Self::PasswordReset { .. } => "password_reset",
            Self::PasswordResetCode { .. } => "password_reset_code",
            Self::PasswordChanged { .. } => "password_changed",
            Self::SecondFactorChanged { .. } => "second_factor_changed",
            Self::RecoveryCodeUsed { .. } => "recovery_code_used",
            Self::SecondFactorLocked { .. } => "second_factor_locked",
            Self::GoogleLinked { .. } => "google_linked",
            Self::PasswordRemoved { .. } => "password_removed",
        }
    }

    /// The subject line.
    #[must_use]
    pub fn subject(&self) -> &'static str {
        match self {
            Self::VerificationCode { .. } => "Your verification code",
            Self::AlreadyRegistered { .. } => "You already have an account",
            Self::SessionReuseDetected { .. } => "We ended one of your sessions",
            Self::PasswordReset { .. } => "Set a new password",
            Self::PasswordResetCode { .. } => "Your code to set a new password",
            Self::PasswordChanged { .. } => "Your password was changed",
            Self::SecondFactorChanged { .. } => "Your two-step sign-in was changed",
            Self::RecoveryCodeUsed { .. } => "A recovery code was used",
            Self::SecondFactorLocked { .. } => "Your two-step sign-in is locked for a while",
            Self::GoogleLinked { .. } => "Google sign-in was added to your account",
            Self::PasswordRemoved { .. } => "Choose a password for your account",
        }
    }

    /// Puts the letter into words for mail.
    #[must_use]
    pub fn render(&self) -> Rendered {
        let subject = self.subject();
        let (text, html) = match self {
            Self::VerificationCode { code, minutes } => {
                let code = &one_line(code);
                let validity = &validity(*minutes);
                (
                    words(&VerificationCodeText { code, validity }),
                    words(&VerificationCodeHtml { subject, code, validity }),
                )
            }
            Self::AlreadyRegistered { sign_in_url, reset_url } => {
                let sign_in_url = &link(sign_in_url);
                let reset_url = &link(reset_url);
                (
                    words(&AlreadyRegisteredText { sign_in_url, reset_url }),
                    words(&AlreadyRegisteredHtml { subject, sign_in_url, reset_url }),
                )
            }
            Self::SessionReuseDetected { when, browser, os } => {
                let when = &in_words(*when);
                let browser = &one_line(browser);
                let os = &one_line(os);
                (
                    words(&SessionReuseDetectedText { when, browser, os }),
                    words(&SessionReuseDetectedHtml { subject, when, browser, os }),
                )
            }
            Self::PasswordReset { url, minutes } => {
                let url = &link(url);
                let validity = &validity(*minutes);
                (words(&PasswordResetText { url, validity }), words(&PasswordResetHtml { subject, url, validity }))
            }
            Self::PasswordResetCode { code, minutes } => {
                let code = &one_line(code);
                let validity = &validity(*minutes);
                (
                    words(&PasswordResetCodeText { code, validity }),
                    words(&PasswordResetCodeHtml { subject, code, validity }),
                )
            }
            Self::PasswordChanged { when, browser, os, reset_url } => {
                let when = &in_words(*when);
                let browser = &one_line(browser);
                let os = &one_line(os);
                let reset_url = &link(reset_url);
                (
                    words(&PasswordChangedText { when, browser, os, reset_url }),
                    words(&PasswordChangedHtml { subject, when, browser, os, reset_url }),
                )
            }
            Self::SecondFactorChanged { change, when, browser, os, reset_url } => {
                let (sentence, needs_support) = (change.sentence(), change.needs_support());
                let when = &in_words(*when);
                let browser = &one_line(browser);
                let os = &one_line(os);
                let reset_url = &link(reset_url);
                (
                    words(&SecondFactorChangedText { sentence, when, browser, os, reset_url, needs_support }),
                    words(&SecondFactorChangedHtml { subject, sentence, when, browser, os, reset_url, needs_support }),
                )
            }
            Self::RecoveryCodeUsed { left, reset_url } => {
                let left = &left_over(*left);
                let reset_url = &link(reset_url);
                (
                    words(&RecoveryCodeUsedText { left, reset_url }),
                    words(&RecoveryCodeUsedHtml { subject, left, reset_url }),
                )
            }
            Self::SecondFactorLocked { minutes, reset_url } => {
                let lasting = &lasting(*minutes);
                let reset_url = &link(reset_url);
                (
                    words(&SecondFactorLockedText { lasting, reset_url }),
                    words(&SecondFactorLockedHtml { subject, lasting, reset_url }),
                )
            }
            Self::GoogleLinked { when, browser, os } => {
                let when = &in_words(*when);
                let browser = &one_line(browser);
                let os = &one_line(os);
                (
                    words(&GoogleLinkedText { when, browser, os }),
                    words(&GoogleLinkedHtml { subject, when, browser, os }),
                )
            }
            Self::PasswordRemoved { reset_url } => {
                let reset_url = &link(reset_url);
                (words(&PasswordRemovedText { reset_url }), words(&PasswordRemovedHtml { subject, reset_url }))
            }
        };
        Rendered { subject: subject.to_owned(), text, html }
    }

    /// Puts the letter into one GSM text message of at most 160 characters, a code first.
    #[must_use]
    pub fn sms(&self) -> String {
        match self {
            Self::VerificationCode { code, minutes } => format!(
                "{} is your verification code. {} Do not give it to anyone.",
                gsm(&one_line(code)),
                validity(*minutes)
            ),
            Self::AlreadyRegistered { sign_in_url, .. } => {
                with_link("This number already has an account. If you just registered, sign in instead.", sign_in_url)
            }
            Self::SessionReuseDetected { .. } => "We ended one of your sessions because its \
                 token was used twice. If you do not recognise this, change your password."
                .to_owned(),
            Self::PasswordReset { url, .. } => with_link("Set a new password with this link.", url),
            Self::PasswordResetCode { code, minutes } => format!(
                "{} is your code to set a new password. {} Do not give it to anyone.",
                gsm(&one_line(code)),
                validity(*minutes)
            ),
            Self::PasswordChanged { reset_url, .. } => {
                with_link("Your password was changed. If it was not you, set a new one at once.", reset_url)
            }
            Self::SecondFactorChanged { change, reset_url, .. } => {
                let support = if change.needs_support() { ", then ask support to remove it" } else { "" };
                let sentence = format!("{} If it was not you, set a new password{support}.", change.sentence());
                with_link(&sentence, reset_url)
            }
            Self::RecoveryCodeUsed { left, reset_url } => {
                let sentence = format!("A recovery code was used. {} Not you? Set a new password.", left_over(*left));
                with_link(&sentence, reset_url)
            }
            Self::SecondFactorLocked { minutes, reset_url } => {
                let lasting = lasting(*minutes);
                let sentence = format!("Too many wrong codes: your two-step sign-in is locked for {lasting}.");
                with_link(&format!("{sentence} Not you? Set a new password."), reset_url)
            }
            Self::GoogleLinked { .. } => "A Google account can now sign in to your account. \
                 If it was not you, set a new password: that ends it."
                .to_owned(),
            Self::PasswordRemoved { reset_url } => {
                with_link("Your number is confirmed. Choose a password to be able to sign in.", reset_url)
            }
        }
    }
}

fn words(template: &impl Template) -> String {
    template.render().expect("a template that only shows strings does not fail")
}

fn validity(minutes: u64) -> String {
    match minutes {
        0 => "It expires in less than a minute.".to_owned(),
        1 => "It expires in 1 minute.".to_owned(),
        many => format!("It expires in {many} minutes."),
    }
}

fn left_over(codes: usize) -> String {
    match codes {
        0 => "None is left: make new ones.".to_owned(),
        1 => "1 is left.".to_owned(),
        many => format!("{many} are left."),
    }
}

fn lasting(minutes: u64) -> String {
    if minutes == 1 { "1 minute".to_owned() } else { format!("{minutes} minutes") }
}

fn in_words(when: OffsetDateTime) -> String {
    let when = when.to_offset(time::UtcOffset::UTC);
    format!("{} {} {}, {:02}:{:02} UTC", when.day(), when.month(), when.year(), when.hour(), when.minute())
}

/// Shows an untrusted value on one line: no control or direction characters, bounded in length.
fn one_line(value: &str) -> String {
    let shown: String = value.chars().map(|c| if is_breaking(c) { ' ' } else { c }).take(SHOWN).collect();
    let shown = shown.trim();
    if shown.is_empty() { "unknown".to_owned() } else { shown.to_owned() }
}

/// Keeps a link on one line and inert unless it is a web address.
fn link(url: &str) -> String {
    let url: String = url.chars().filter(|c| !is_breaking(*c) && !c.is_whitespace()).collect();
    if url.starts_with("https://") || url.starts_with("http://") { url } else { String::new() }
}

fn is_breaking(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Replaces what is outside the part of the GSM alphabet that takes one septet each.
fn gsm(text: &str) -> String {
    text.chars().map(|c| if is_gsm(c) { c } else { '?' }).collect()
}

fn is_gsm(c: char) -> bool {
    (' '..='~').contains(&c) && !matches!(c, '`' | '^' | '{' | '}' | '[' | ']' | '~' | '\\' | '|')
}

/// Adds the link when it fits into the same text message unchanged.
fn with_link(sentence: &str, url: &str) -> String {
    let url = link(url);
    let whole = format!("{sentence} {url}");
    if !url.is_empty() && whole.chars().count() <= TEXT_MESSAGE && url.chars().all(is_gsm) {
        whole
    } else {
        sentence.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> Letter {
        Letter::VerificationCode { code: "042917".to_owned(), minutes: 5 }
    }

    fn changed(change: FactorChange) -> Letter {
        Letter::SecondFactorChanged {
            change,
            when: OffsetDateTime::from_unix_timestamp(1_795_215_240).unwrap(),
            browser: "Firefox".to_owned(),
            os: "Linux".to_owned(),
            reset_url: "https://id.example/reset".to_owned(),
        }
    }

    fn all() -> Vec<Letter> {
        vec![
            code(),
            Letter::AlreadyRegistered {
                sign_in_url: "https://id.example/sign-in".to_owned(),
                reset_url: "https://id.example/reset?a=1&b=2".to_owned(),
            },
            Letter::SessionReuseDetected {
                when: OffsetDateTime::from_unix_timestamp(1_795_215_240).unwrap(),
                browser: "Firefox".to_owned(),
                os: "Linux".to_owned(),
            },
            Letter::PasswordRemoved { reset_url: "https://id.example/reset".to_owned() },
            Letter::PasswordReset { url: "https://id.example/reset/MQ/abc/".to_owned(), minutes: 60 },
            Letter::PasswordResetCode { code: "042917".to_owned(), minutes: 5 },
            Letter::PasswordChanged {
                when: OffsetDateTime::from_unix_timestamp(1_795_215_240).unwrap(),
                browser: "Firefox".to_owned(),
                os: "Linux".to_owned(),
                reset_url: "https://id.example/reset".to_owned(),
            },
            changed(FactorChange::Enabled),
            changed(FactorChange::Disabled),
            changed(FactorChange::CodesReplaced),
            changed(FactorChange::Reset),
            Letter::RecoveryCodeUsed { left: 0, reset_url: "https://id.example/reset".to_owned() },
            Letter::RecoveryCodeUsed { left: 9, reset_url: "https://id.example/reset".to_owned() },
            Letter::SecondFactorLocked { minutes: 15, reset_url: "https://id.example/reset".to_owned() },
            Letter::GoogleLinked {
                when: OffsetDateTime::from_unix_timestamp(1_795_215_240).unwrap(),
                browser: "Firefox".to_owned(),
                os: "Linux".to_owned(),
            },
        ]
    }

    fn six_digits(text: &str) -> Vec<&str> {
        text.split(|c: char| !c.is_ascii_digit()).filter(|run| run.len() == 6).collect()
    }

    #[test]
    fn the_code_letter_reads_exactly_so() {
        let rendered = code().render();
        assert_eq!(rendered.subject, "Your verification code");
        assert_eq!(
            rendered.text.trim_end(),
            "Your verification code is:\n\n    042917\n\nEnter it to confirm that this address is \
             yours.\nIt expires in 5 minutes.\n\nIf you did not ask for it, ignore this \
             message.\nDo not give the code to anyone.\n\nThis message was sent automatically. \
             Replies are not read."
        );
    }

    #[test]
    fn the_code_is_one_word_and_the_only_six_digits() {
        let rendered = code().render();
        assert_eq!(six_digits(&rendered.text), ["042917"]);
        assert_eq!(six_digits(&rendered.html), ["042917"]);
        assert!(rendered.html.contains(">042917</p>"));
        assert!(!rendered.subject.contains("042917"));
    }

    #[test]
    fn only_letters_with_a_code_have_six_digits() {
        let has_code =
            |letter: &&Letter| matches!(letter, Letter::VerificationCode { .. } | Letter::PasswordResetCode { .. });
        for letter in all().iter().filter(|letter| !has_code(letter)) {
            let rendered = letter.render();
            assert!(six_digits(&rendered.text).is_empty());
            assert!(six_digits(&rendered.html).is_empty());
            assert!(six_digits(&letter.sms()).is_empty());
        }
    }

    // lettre encodes a part with a line of more than 74 characters, or of more than 75 if it is the first one: a tenth of
    // the work of a letter, and nobody can read it in its file.
    #[test]
    fn lines_are_short_and_ascii() {
        for letter in all() {
            let Rendered { text, html, .. } = letter.render();
            for (n, line) in text.lines().enumerate().chain(html.lines().enumerate()) {
                assert!(line.is_ascii() && line.len() <= if n == 0 { 75 } else { 74 }, "{line}");
            }
        }
    }

    #[test]
    fn letters_load_nothing_and_link_only_to_what_was_given() {
        for letter in all() {
            let html = letter.render().html;
            for part in ["src=", "<img", "@import", "<link", "<script", "url("] {
                assert!(!html.contains(part), "{part} in {html}");
            }
            for target in html.split("href=\"").skip(1) {
                assert!(target.starts_with("https://id.example/"), "{target}");
            }
            assert!(html.contains("lang=\"en\""));
            assert!(html.contains("prefers-color-scheme: dark"));
        }
    }

    #[test]
    fn given_links_are_complete_in_both_parts() {
        let rendered = all()[1].render();
        assert!(rendered.text.contains("\nhttps://id.example/reset?a=1&b=2\n"));
        assert!(rendered.html.contains("href=\"https://id.example/reset?a=1&#38;b=2\""));
    }

    #[test]
    fn the_time_is_given_in_utc() {
        let rendered = all()[2].render();
        assert!(rendered.text.contains("Time:    20 November 2026, 22:54 UTC"));
    }

    #[test]
    fn whose_account_was_guarded_by_somebody_else_is_sent_to_support_as_well() {
        for change in [FactorChange::Enabled, FactorChange::Disabled, FactorChange::CodesReplaced, FactorChange::Reset]
        {
            let (rendered, sms) = (changed(change).render(), changed(change).sms());
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            let is_sent = change == FactorChange::Enabled;
            for text in [words(&rendered.text), words(&rendered.html), sms] {
                assert!(text.contains("set a new password"), "{text}");
                assert_eq!(text.contains("ask support to remove"), is_sent, "{text}");
                assert!(text.contains("https://id.example/reset"), "{text}");
            }
        }
    }

    #[test]
    fn markup_in_a_browser_name_is_escaped() {
        let letter = Letter::SessionReuseDetected {
            when: OffsetDateTime::UNIX_EPOCH,
            browser: "<script>alert(1)</script>".to_owned(),
            os: "\"><img src=x onerror=y>".to_owned(),
        };
        let rendered = letter.render();
        assert!(!rendered.html.contains("<script"));
        assert!(!rendered.html.contains("<img"));
        assert!(rendered.html.contains("&#60;script&#62;"));
        assert_eq!(rendered.subject, "We ended one of your sessions");
    }

    #[test]
    fn line_breaks_and_direction_marks_in_a_browser_name_stay_on_its_line() {
        let letter = Letter::SessionReuseDetected {
            when: OffsetDateTime::UNIX_EPOCH,
            browser: "X\r\n.\r\nBcc: a@example.org\u{2028}visit\u{202e}".to_owned(),
            os: "\r\n\r\n".to_owned(),
        };
        let text = letter.render().text;
        assert!(text.contains("Browser: X  .  Bcc: a@example.org visit\n"), "{text}");
        assert!(text.contains("System:  unknown\n"));
        assert!(text.lines().all(|line| line != "."));
    }

    #[test]
    fn a_long_browser_name_is_cut() {
        let letter = Letter::SessionReuseDetected {
            when: OffsetDateTime::UNIX_EPOCH,
            browser: "é".repeat(5000),
            os: String::new(),
        };
        let text = letter.render().text;
        assert!(text.lines().all(|line| line.chars().count() < 78));
    }

    #[test]
    fn a_link_that_is_no_web_address_is_left_out() {
        let letter = Letter::PasswordRemoved { reset_url: "javascript:alert(1)".to_owned() };
        let rendered = letter.render();
        assert!(!rendered.html.contains("javascript"));
        assert!(!rendered.text.contains("javascript"));
        assert!(!letter.sms().contains("javascript"));
    }

    #[test]
    fn text_messages_fit_one_gsm_message_with_the_code_first() {
        for letter in all() {
            let text = letter.sms();
            assert!(text.chars().count() <= TEXT_MESSAGE, "{text}");
            assert!(text.chars().all(is_gsm), "{text}");
        }
        assert_eq!(
            code().sms(),
            "042917 is your verification code. It expires in 5 minutes. Do not give it to anyone."
        );
        let hostile = Letter::VerificationCode { code: "\u{1f600}\r\n".repeat(200), minutes: u64::MAX };
        assert!(hostile.sms().chars().count() <= TEXT_MESSAGE);
        assert!(hostile.sms().chars().all(is_gsm));
    }

    #[test]
    fn a_link_that_does_not_fit_a_text_message_is_left_out_whole() {
        let letter = Letter::PasswordRemoved { reset_url: format!("https://id.example/{}", "a".repeat(200)) };
        assert!(!letter.sms().contains("https"));
        assert!(all()[3].sms().ends_with(" https://id.example/reset"));
    }

    #[test]
    fn the_time_left_is_said_in_good_english() {
        assert_eq!(validity(0), "It expires in less than a minute.");
        assert_eq!(validity(1), "It expires in 1 minute.");
        assert_eq!(validity(10), "It expires in 10 minutes.");
        assert_eq!((lasting(1), lasting(15)), ("1 minute".to_owned(), "15 minutes".to_owned()));
    }

    #[test]
    fn a_message_survives_the_outbox() {
        for letter in all() {
            let message = Message { to: Recipient::Email("ada@example.org".to_owned()), letter };
            let sealed = serde_json::to_vec(&message).unwrap();
            assert_eq!(serde_json::from_slice::<Message>(&sealed).unwrap(), message);
        }
        assert_eq!(
            serde_json::to_value(code()).unwrap(),
            serde_json::json!({"template": "verification_code", "code": "042917", "minutes": 5})
        );
    }

    #[test]
    fn the_kind_is_the_template_of_the_serialised_form() {
        for letter in all() {
            assert_eq!(serde_json::to_value(&letter).unwrap()["template"], letter.kind());
        }
    }

    #[test]
    fn debug_shows_neither_code_nor_recipient() {
        let message = Message { to: Recipient::Phone("+2348031234567".to_owned()), letter: code() };
        assert_eq!(format!("{message:?}"), "Message { to: Recipient::Phone, letter: Letter::VerificationCode }");
    }
}
