//! Reads the mails and text messages that the gateway's file back-ends have written.

use data_encoding::BASE64_MIME_PERMISSIVE;
use std::fs;
use std::path::Path;

/// One mail, decoded.
#[derive(Clone, Debug)]
pub struct Mail {
    /// Names in lower case, values unfolded.
    pub headers: Vec<(String, String)>,
    pub text: String,
    pub html: String,
    pub raw: String,
}

impl Mail {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The six-digit code of the text part.
    pub fn code(&self) -> Option<String> {
        six_digits(&self.text)
    }
}

/// One text message.
#[derive(Clone, Debug)]
pub struct Sms {
    pub to: String,
    pub text: String,
}

impl Sms {
    pub fn code(&self) -> Option<String> {
        six_digits(&self.text)
    }
}

/// The mails in a directory that may be to this address, oldest first: their file names begin with a UUIDv7.
pub(super) fn mails(directory: &Path, address: &str) -> Vec<Mail> {
    let address = address.to_ascii_lowercase();
    // An address of other letters is encoded.
    let is_candidate = |raw: &&String| !address.is_ascii() || raw.to_ascii_lowercase().contains(&address);
    files(directory, "eml").iter().filter(is_candidate).map(|raw| parse_mail(raw)).collect()
}

/// The text messages in a directory that may be to this number.
pub(super) fn messages(directory: &Path, number: &str) -> Vec<Sms> {
    let parse = |raw: &String| {
        let raw = raw.replace("\r\n", "\n");
        let (head, text) = raw.split_once("\n\n")?;
        Some(Sms { to: find(&headers(head), "to")?.to_owned(), text: text.to_owned() })
    };
    files(directory, "txt").iter().filter(|raw| raw.contains(number)).filter_map(parse).collect()
}

fn files(directory: &Path, extension: &str) -> Vec<String> {
    let mut paths: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| fs::read(path).ok()).map(|raw| String::from_utf8_lossy(&raw).into_owned()).collect()
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}

fn headers(head: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in head.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = found.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            found.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    found
}

fn parse_mail(raw: &str) -> Mail {
    let raw = raw.replace("\r\n", "\n");
    let (head, _) = raw.split_once("\n\n").unwrap_or((&raw, ""));
    let mut mail = Mail { headers: headers(head), text: String::new(), html: String::new(), raw: String::new() };
    collect_parts(&raw, &mut mail);
    mail.raw = raw;
    mail
}

fn collect_parts(entity: &str, mail: &mut Mail) {
    let (head, body) = entity.split_once("\n\n").unwrap_or((entity, ""));
    let headers = headers(head);
    let kind = find(&headers, "content-type").unwrap_or("text/plain");
    if let Some(boundary) = kind.split(';').find_map(|part| part.trim().strip_prefix("boundary=")) {
        let mark = format!("--{}", boundary.trim_matches('"'));
        for part in body.split(mark.as_str()).skip(1).take_while(|part| !part.starts_with("--")) {
            collect_parts(part.strip_prefix('\n').unwrap_or(part), mail);
        }
        return;
    }
    let encoding = find(&headers, "content-transfer-encoding").unwrap_or("7bit").to_ascii_lowercase();
    let decoded = match encoding.as_str() {
        "base64" => BASE64_MIME_PERMISSIVE.decode(body.trim().as_bytes()).unwrap_or_default(),
        "quoted-printable" => quoted_printable(body),
        _ => body.as_bytes().to_vec(),
    };
    let text = String::from_utf8_lossy(&decoded).replace("\r\n", "\n");
    if kind.starts_with("text/html") { mail.html.push_str(&text) } else { mail.text.push_str(&text) }
}

fn quoted_printable(body: &str) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = body.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let escaped = (*byte == b'=').then(|| after.split_at_checked(2)).flatten();
        let value = escaped.and_then(|(digits, _)| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (value, escaped, after.strip_prefix(b"\n")) {
            (Some(value), Some((_, after)), _) => {
                decoded.push(value);
                rest = after;
            }
            // A soft line break.
            (None, _, Some(after)) if *byte == b'=' => rest = after,
            _ => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    decoded
}

fn six_digits(text: &str) -> Option<String> {
    text.split(|letter: char| !letter.is_ascii_digit()).find(|run| run.len() == 6).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_multipart_mail_is_decoded_and_its_code_found() {
        let raw = "To: =?utf-8?q?Ada?=\r\n <ada@example.com>\r\nContent-Type: multipart/alternative;\r\n boundary=\"b1\"\r\n\r\n\
            --b1\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n\
            Order 1234567. C=C3=B6de: 042=\r\n137\r\n--b1\r\nContent-Type: text/html\r\n\
            Content-Transfer-Encoding: base64\r\n\r\nPGI+MDQyMTM3PC9iPg==\r\n--b1--\r\n";
        let mail = parse_mail(raw);
        assert_eq!(mail.header("to"), Some("=?utf-8?q?Ada?= <ada@example.com>"));
        assert_eq!(mail.code().as_deref(), Some("042137"));
        assert!(mail.text.contains("Cöde"));
        assert_eq!(mail.html.trim(), "<b>042137</b>");
    }
}
