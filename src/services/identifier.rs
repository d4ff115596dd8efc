//! E-mail addresses and phone numbers: one spelling for look-ups, one to send to (contract §4).

use std::{fmt, str::FromStr};

use phonenumber::{Mode, country};
use unicode_normalization::is_nfkc;

use super::fields::{FieldErrors, NON_FIELD, Text, field_error};

/// What a person signs in with.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Identifier {
    /// The local part as typed, the domain in lower-case ASCII (IDNA).
    Email(String),
    /// E.164.
    Phone(String),
}

/// Why a text is no identifier; `Display` is the sentence for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentifier {
    /// Not `local@domain` in the form that mail can be sent to.
    #[error("Enter a valid email address.")]
    Email,
    /// No number of any country, nor of the default region.
    #[error("Enter a valid phone number.")]
    Phone,
}

impl Identifier {
    /// An e-mail address (RFC 5321 dot-atom, RFC 6531 letters, at most 254 bytes).
    ///
    /// # Errors
    /// [`InvalidIdentifier::Email`], also when NFKC would change it: two addresses that look
    /// alike must not be taken for one.
    pub fn email(typed: &str) -> Result<Self, InvalidIdentifier> {
        let invalid = InvalidIdentifier::Email;
        let typed = typed.trim();
        if typed.len() > 254 || !is_nfkc(typed) {
            return Err(invalid);
        }
        let (local, domain) = typed.rsplit_once('@').ok_or(invalid)?;
        let is_atom = |atom: &str| !atom.is_empty() && atom.chars().all(is_atom_character);
        if local.len() > 64 || !local.split('.').all(is_atom) {
            return Err(invalid);
        }
        let domain = idna::domain_to_ascii_strict(domain).or(Err(invalid))?;
        let is_label = |label: &str| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-');
        let top = domain.rsplit('.').next().unwrap_or_default();
        let is_named =
            domain.contains('.') && domain.split('.').all(is_label) && !top.bytes().all(|b| b.is_ascii_digit());
        let address = format!("{local}@{domain}");
        if !is_named || address.len() > 254 {
            return Err(invalid);
        }
        Ok(Self::Email(address))
    }

    /// A phone number in any spelling; without a country code it is one of `region` (ISO 3166).
    ///
    /// # Errors
    /// [`InvalidIdentifier::Phone`].
    pub fn phone(typed: &str, region: &str) -> Result<Self, InvalidIdentifier> {
        let typed = typed.trim();
        let is_dialled = |c: char| c.is_ascii_digit() || matches!(c, '+' | ' ' | '-' | '(' | ')' | '.' | '/');
        if typed.len() > 40 || !typed.chars().all(is_dialled) {
            return Err(InvalidIdentifier::Phone);
        }
        let region = country::Id::from_str(region).ok();
        let number = phonenumber::parse(region, typed).or(Err(InvalidIdentifier::Phone))?;
        if !number.is_valid() {
            return Err(InvalidIdentifier::Phone);
        }
        Ok(Self::Phone(number.format().mode(Mode::E164).to_string()))
    }

    /// Either, told apart by the `@`.
    ///
    /// # Errors
    /// As [`Self::email`] and [`Self::phone`].
    pub fn email_or_phone(typed: &str, region: &str) -> Result<Self, InvalidIdentifier> {
        if typed.contains('@') { Self::email(typed) } else { Self::phone(typed, region) }
    }

    /// `email` or `phone`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Email(_) => "email",
            Self::Phone(_) => "phone",
        }
    }

    /// The spelling to send to and to show.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Email(text) | Self::Phone(text) => text,
        }
    }

    /// The spelling that is compared: case does not matter in an address.
    pub fn comparable(&self) -> String {
        self.as_str().to_lowercase()
    }

    /// Enough for its owner to recognise it, too little for anybody else.
    pub fn masked(&self) -> String {
        match self {
            Self::Email(address) => {
                let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
                let first = local.chars().next().unwrap_or('*');
                format!("{first}***@{domain}")
            }
            Self::Phone(number) => {
                let digits: Vec<char> = number.chars().collect();
                let head: String = digits.iter().take(4).collect();
                let tail: String = digits.iter().skip(digits.len().saturating_sub(2)).collect();
                format!("{head}*****{tail}")
            }
        }
    }
}

/// The one identifier that a request gives, as `email_or_phone`, `email` or `phone`.
///
/// # Errors
/// Sentences when none or several are given, or the one given is malformed.
pub fn one_of(
    either: Option<Text>,
    email: Option<Text>,
    phone: Option<Text>,
    region: &str,
) -> Result<Identifier, FieldErrors> {
    let given = |text: Option<Text>| text.map(|text| text.0).filter(|text| !text.is_empty());
    let (field, read) = match (given(either), given(email), given(phone)) {
        (Some(either), None, None) => ("email_or_phone", Identifier::email_or_phone(&either, region)),
        (None, Some(email), None) => ("email", Identifier::email(&email)),
        (None, None, Some(phone)) => ("phone", Identifier::phone(&phone, region)),
        (None, None, None) => return Err(field_error("email_or_phone", "This field is required.")),
        _ => return Err(field_error(NON_FIELD, "Give only one of email_or_phone, email and phone.")),
    };
    read.map_err(|error| field_error(field, error.to_string()))
}

impl fmt::Debug for Identifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}({})", self.kind(), self.masked())
    }
}

fn is_atom_character(c: char) -> bool {
    c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_an_address_is_one_account() {
        let plain = Identifier::email("ada@example.org").unwrap();
        for typed in [" ada@example.org ", "ADA@EXAMPLE.ORG", "Ada@Example.Org"] {
            assert_eq!(Identifier::email(typed).unwrap().comparable(), plain.comparable(), "{typed}");
        }
        assert_eq!(Identifier::email("Ada@bücher.example").unwrap().as_str(), "Ada@xn--bcher-kva.example");
    }

    #[test]
    fn what_mail_cannot_be_sent_to_is_refused() {
        let long = format!("{}@example.org", "a".repeat(65));
        for typed in [
            "",
            "@",
            "a@",
            "@b.org",
            "a@b",
            "a b@c.org",
            "a..b@c.org",
            ".a@c.org",
            "a@c..org",
            "a@-c.org",
            "a@1.2.3.4",
            "a@b.org\r\nBcc: x@y.org",
            "a\u{0}@b.org",
            "<a@b.org>",
            "\"a b\"@c.org",
            "a@[127.0.0.1]",
            "ａ@b.org",
            &long,
        ] {
            assert_eq!(Identifier::email(typed), Err(InvalidIdentifier::Email), "{typed:?}");
        }
    }

    #[test]
    fn every_spelling_of_a_number_is_one_account() {
        for typed in ["0803 123 4567", "08031234567", "+2348031234567", "+234 (803) 123-4567", " +234 803 123 4567 "] {
            assert_eq!(Identifier::phone(typed, "NG"), Ok(Identifier::Phone("+2348031234567".into())), "{typed}");
        }
        for typed in ["", "12", "+", "abc", "+999999999999999999", "0803x1234567", "+1 800 FLOWERS"] {
            assert_eq!(Identifier::phone(typed, "NG"), Err(InvalidIdentifier::Phone), "{typed}");
        }
    }

    #[test]
    fn a_masked_identifier_keeps_its_secret() {
        assert_eq!(Identifier::Email("ada@example.org".into()).masked(), "a***@example.org");
        assert_eq!(Identifier::Phone("+2348031234567".into()).masked(), "+234*****67");
        assert!(!format!("{:?}", Identifier::Email("ada@example.org".into())).contains("ada"));
    }
}
