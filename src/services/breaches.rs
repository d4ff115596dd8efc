//! Asks a list of breached passwords without telling it the password (ASVS 6.2.12): the range protocol of Have I Been
//! Pwned. The list learns the first five of the forty hexadecimal digits of a SHA-1 and answers with all that begin so.

use data_encoding::HEXUPPER;
use sha1::{Digest as _, Sha1};
use url::Url;
use zeroize::Zeroizing;

use super::{error::Unavailable, passwords::Password};

/// The header that asks for lines that mean nothing, so that an answer's length does not tell which range was asked.
pub const PADDING: (&str, &str) = ("Add-Padding", "true");
/// What the gateway calls itself; the list refuses requests without a name.
pub const USER_AGENT: &str = concat!("bifrons/", env!("CARGO_PKG_VERSION"));
/// How much of an answer is read, in bytes; a padded one has about 40 000.
pub const ANSWER_LIMIT: u64 = 256 * 1024;

const PREFIX_DIGITS: usize = 5;
const SUFFIX_DIGITS: usize = 35;

/// The part of the list in which a password stands, if it stands there.
pub struct Range {
    /// What the list is asked for: five hexadecimal digits, upper-case.
    pub prefix: String,
    suffix: Zeroizing<String>,
}

/// Why an answer cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The status was not 200.
    #[error("it answered with status {0}")]
    Status(u16),
    /// The body has more than [`ANSWER_LIMIT`] bytes.
    #[error("its answer is longer than {ANSWER_LIMIT} bytes")]
    TooLong,
    /// No address can be made of the configured one.
    #[error("its address cannot have a path")]
    Address,
}

impl Range {
    /// The range of a password.
    pub fn of(password: &Password) -> Self {
        let digits = Zeroizing::new(HEXUPPER.encode(&Sha1::digest(password.expose())));
        let (prefix, suffix) = digits.split_at(PREFIX_DIGITS);
        Self { prefix: prefix.to_owned(), suffix: Zeroizing::new(suffix.to_owned()) }
    }

    /// Whether the list's answer names the password. Lines with a count of 0 are padding.
    ///
    /// `None` when the answer is not a range. An empty one is none either: each range of the real list has hundreds of
    /// lines.
    pub fn is_listed(&self, answer: &str) -> Option<bool> {
        let mut lines = answer.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
        lines.peek()?;
        let mut is_listed = false;
        // To the end: half a page of something else must not pass for an answer.
        for line in lines {
            let (suffix, count) = entry(line)?;
            is_listed |= suffix.eq_ignore_ascii_case(&self.suffix) && count.bytes().any(|digit| digit != b'0');
        }
        Some(is_listed)
    }
}

/// A line's suffix and count.
fn entry(line: &str) -> Option<(&str, &str)> {
    let (suffix, count) = line.split_once(':')?;
    let is_suffix = suffix.len() == SUFFIX_DIGITS && suffix.bytes().all(|digit| digit.is_ascii_hexdigit());
    let is_count = !count.is_empty() && count.bytes().all(|digit| digit.is_ascii_digit());
    (is_suffix && is_count).then_some((suffix, count))
}

/// Where the list at this address keeps a range.
///
/// # Errors
///
/// When the address can have no path.
pub fn address(list: &Url, prefix: &str) -> Result<Url, Unavailable> {
    let mut address = list.clone();
    match address.path_segments_mut() {
        Ok(mut segments) => segments.pop_if_empty().extend(["range", prefix]),
        Err(()) => return Err(Unavailable::breaches(Unusable::Address)),
    };
    Ok(address)
}

/// The text of an answer; without a body there was too much of it.
///
/// # Errors
///
/// When the answer cannot be a range, whatever it says.
pub fn text(status: u16, body: Option<Vec<u8>>) -> Result<String, Unavailable> {
    if status != 200 {
        return Err(Unavailable::breaches(Unusable::Status(status)));
    }
    let body = body.ok_or_else(|| Unavailable::breaches(Unusable::TooLong))?;
    String::from_utf8(body).map_err(Unavailable::breaches)
}

#[cfg(test)]
mod tests {
    use super::*;

    // SHA-1 of "password": 5BAA6 1E4C9B93F3F0682250B6CF8331B7EE68FD8.
    const OURS: &str = "1E4C9B93F3F0682250B6CF8331B7EE68FD8";
    const OTHER: &str = "1E4C9B93F3F0682250B6CF8331B7EE68FD9";

    fn range() -> Range {
        Range::of(&Password::new("password"))
    }

    fn listed(answer: &str) -> Option<bool> {
        range().is_listed(answer)
    }

    #[test]
    fn the_list_learns_five_digits_of_the_hash() {
        let range = range();
        assert_eq!(range.prefix, "5BAA6");
        assert_eq!(*range.suffix, OURS);
    }

    #[test]
    fn a_password_is_listed_when_its_suffix_has_a_count() {
        assert_eq!(listed(&format!("{OTHER}:3\r\n{OURS}:9545824\r\n")), Some(true));
        assert_eq!(listed(&format!("{OTHER}:3\r\n")), Some(false));
    }

    #[test]
    fn line_ends_case_and_counts_of_any_size_are_read() {
        assert_eq!(listed(&format!("{OTHER}:3\n{OURS}:1")), Some(true));
        assert_eq!(listed(&format!("\n{}:1\n\n", OURS.to_lowercase())), Some(true));
        assert_eq!(listed(&format!("{OURS}:{}", "9".repeat(60))), Some(true));
        assert_eq!(listed(&format!("{OURS}:10")), Some(true));
    }

    #[test]
    fn padding_lists_nothing() {
        assert_eq!(listed(&format!("{OURS}:0\r\n{OTHER}:0\r\n")), Some(false));
        assert_eq!(listed(&format!("{OURS}:000")), Some(false));
        assert_eq!(listed(&format!("{OURS}:0\r\n{OURS}:2\r\n")), Some(true));
    }

    #[test]
    fn what_is_no_range_is_no_answer() {
        let short = OURS.get(1..).unwrap();
        for answer in [
            String::new(),
            "\r\n\r\n".to_owned(),
            "<html>Sign in to the wireless network</html>".to_owned(),
            format!("{OURS}:9545824\r\n<html>"),
            format!("{OURS}:9545824\r\n{OTHER}"),
            format!("{OURS}:9545824\r\n{OTHER}:"),
            format!("{OURS}:-1"),
            format!("{OURS}:1 2"),
            format!("{OURS}: 1"),
            format!("{OURS} 1"),
            format!("{short}:1"),
            format!("0{OURS}:1"),
            format!("{short}g:1"),
            format!("5BAA6{OURS}:1"),
        ] {
            assert_eq!(listed(&answer), None, "{answer:?}");
        }
    }

    #[test]
    fn a_range_stands_below_the_list_s_address() {
        let of = |list: &str| address(&list.parse().unwrap(), "5BAA6").unwrap().to_string();
        assert_eq!(of("https://list.example"), "https://list.example/range/5BAA6");
        assert_eq!(of("https://list.example/"), "https://list.example/range/5BAA6");
        assert_eq!(of("http://127.0.0.1:9/mirror"), "http://127.0.0.1:9/mirror/range/5BAA6");
        assert_eq!(of("http://127.0.0.1:9/mirror/"), "http://127.0.0.1:9/mirror/range/5BAA6");
        assert_eq!(of("https://list.example/?mode=ntlm"), "https://list.example/range/5BAA6?mode=ntlm");
        assert!(address(&"mailto:list@list.example".parse().unwrap(), "5BAA6").is_err());
    }

    #[test]
    fn only_a_whole_text_with_status_200_is_an_answer() {
        let body = || Some(b"x".to_vec());
        assert_eq!(text(200, body()).unwrap(), "x");
        for (status, body) in
            [(200, None), (200, Some(vec![0xff])), (204, body()), (302, body()), (429, body()), (500, body())]
        {
            assert!(text(status, body).is_err(), "{status}");
        }
        let sentence = text(429, body()).unwrap_err().to_string();
        assert_eq!(sentence, "the look-up of breached passwords is unavailable: it answered with status 429");
    }
}
