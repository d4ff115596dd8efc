//! Request fields as a Django REST framework serializer reads and refuses them.

use std::{collections::BTreeMap, fmt};

use garde::{Report, Validate};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, Visitor, value::MapDeserializer},
};
use serde_json::Value;

use super::passwords::Password;

/// Sentences by field name, or by `non_field_errors`.
pub type FieldErrors = BTreeMap<String, Vec<String>>;

/// Where a sentence goes that is about no single field.
pub const NON_FIELD: &str = "non_field_errors";

/// One sentence about one field.
pub fn field_error(field: &str, sentence: impl Into<String>) -> FieldErrors {
    FieldErrors::from([(field.to_owned(), vec![sentence.into()])])
}

/// A text field: a string, or a number as it is written; outer white space is trimmed; NUL is
/// refused, which PostgreSQL cannot store.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(pub String);

impl fmt::Debug for Text {
    // Fields may be addresses, codes or tokens.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Text(…)")
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;

        impl Visitor<'_> for AsText {
            type Value = Text;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                if text.contains('\0') {
                    return Err(E::custom("Null characters are not allowed."));
                }
                Ok(Text(text.trim().to_owned()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Text, E> {
                Err(E::custom("This field may not be null."))
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Text, E> {
                Err(E::custom("Not a valid string."))
            }
        }

        deserializer.deserialize_any(AsText)
    }
}

/// A text that is taken as it is: a token with white space around it is no token.
#[derive(Clone, PartialEq, Eq)]
pub struct Exact(pub String);

impl fmt::Debug for Exact {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Exact(…)")
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(text)),
            Value::Null => Err(de::Error::custom("This field may not be null.")),
            _ => Err(de::Error::custom("Not a valid string.")),
        }
    }
}

/// For `deserialize_with` on optional fields: missing is `None`, null is refused.
///
/// # Errors
/// As the field's own type, and for null.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// For `deserialize_with` on optional fields where null means the same as missing.
///
/// # Errors
/// As the field's own type.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::<T>::deserialize(deserializer)
}

/// A switch: a boolean, or one of the words that DRF takes for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flag(pub bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let word = match &value {
            Value::Bool(flag) => return Ok(Self(*flag)),
            Value::String(word) => word.trim().to_lowercase(),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
        };
        match word.as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Ok(Self(true)),
            "false" | "f" | "no" | "n" | "off" | "0" => Ok(Self(false)),
            _ => Err(de::Error::custom("Must be a valid boolean.")),
        }
    }
}

/// garde: the field is there and not blank.
///
/// # Errors
/// The sentence that says what is missing.
pub fn required(value: &Option<Text>, (): &()) -> garde::Result {
    check_present(value.as_ref().map(|text| text.0.as_str()))
}

/// garde: the token is there and not blank.
///
/// # Errors
/// The sentence that says what is missing.
pub fn required_exact(value: &Option<Exact>, (): &()) -> garde::Result {
    check_present(value.as_ref().map(|text| text.0.as_str()))
}

/// garde: the password is there and not blank.
///
/// # Errors
/// The sentence that says what is missing.
pub fn required_password(value: &Option<Password>, (): &()) -> garde::Result {
    check_present(value.as_ref().map(Password::expose))
}

/// garde: the field has at most `MOST` characters.
///
/// # Errors
/// The sentence that says so.
pub fn at_most<const MOST: usize>(value: &Option<Text>, (): &()) -> garde::Result {
    match value {
        Some(text) if text.0.chars().count() > MOST => {
            Err(garde::Error::new(format!("Ensure this field has no more than {MOST} characters.")))
        }
        _ => Ok(()),
    }
}

/// garde: a password to be verified is not absurdly long; longer ones are never hashed.
///
/// # Errors
/// The sentence that says so.
pub fn bounded_password(value: &Option<Password>, (): &()) -> garde::Result {
    match value {
        // Four bytes a character at most, and no policy allows more than 128 characters.
        Some(password) if password.expose().len() > 512 => {
            Err(garde::Error::new("Ensure this field has no more than 128 characters."))
        }
        _ => Ok(()),
    }
}

fn check_present(value: Option<&str>) -> garde::Result {
    match value {
        None => Err(garde::Error::new("This field is required.")),
        Some("") => Err(garde::Error::new("This field may not be blank.")),
        Some(_) => Ok(()),
    }
}

/// Why a body's fields do not make a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Unfit {
    /// A known field stands there twice: which one is meant would be a guess.
    Duplicate(String),
    /// Fields are missing or wrong.
    Invalid(FieldErrors),
}

/// Makes a request of a body's fields, in the order they came. Unknown fields are ignored.
///
/// # Errors
/// [`Unfit`].
pub fn read_fields<T>(fields: Vec<(String, Value)>) -> Result<T, Unfit>
where
    T: DeserializeOwned + Validate<Context = ()>,
{
    let source = MapDeserializer::<_, serde_json::Error>::new(fields.into_iter());
    let request: T = serde_path_to_error::deserialize(source).map_err(|error| {
        let field = error.path().to_string();
        let sentence = error.into_inner().to_string();
        match sentence.strip_prefix("duplicate field `") {
            Some(name) => Unfit::Duplicate(name.trim_end_matches('`').to_owned()),
            None if sentence.starts_with("invalid type") => Unfit::Invalid(field_error(&field, "Not a valid string.")),
            None => Unfit::Invalid(field_error(&field, sentence)),
        }
    })?;
    request.validate().map_err(|report| Unfit::Invalid(sentences(&report)))?;
    Ok(request)
}

fn sentences(report: &Report) -> FieldErrors {
    let mut errors = FieldErrors::new();
    for (path, error) in report.iter() {
        errors.entry(path.to_string()).or_default().push(error.message().to_owned());
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Validate)]
    struct Sample {
        #[serde(default, deserialize_with = "present")]
        #[garde(custom(required), custom(at_most::<5>))]
        name: Option<Text>,
        #[serde(default)]
        #[garde(skip)]
        all: Flag,
    }

    fn read(json: &str) -> Result<Sample, Unfit> {
        // Keys may repeat here, as they may in a body.
        let fields = json.split(';').filter(|part| !part.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap();
            (name.to_owned(), serde_json::from_str(value).unwrap())
        });
        read_fields(fields.collect())
    }

    fn invalid(json: &str) -> FieldErrors {
        match read(json) {
            Err(Unfit::Invalid(errors)) => errors,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn fields_are_read_as_drf_reads_them() {
        assert_eq!(read(r#"name=" ada ""#).unwrap().name.unwrap().0, "ada");
        assert_eq!(read("name=12345").unwrap().name.unwrap().0, "12345");
        assert!(read(r#"name="a";all="yes";other=[1]"#).unwrap().all.0);
        assert!(!read(r#"name="a";all=false"#).unwrap().all.0);
    }

    #[test]
    fn what_is_wrong_is_said_of_its_field() {
        assert_eq!(invalid(""), field_error("name", "This field is required."));
        assert_eq!(invalid(r#"name="  ""#), field_error("name", "This field may not be blank."));
        assert_eq!(invalid("name=null"), field_error("name", "This field may not be null."));
        assert_eq!(invalid("name={}"), field_error("name", "Not a valid string."));
        assert_eq!(invalid("name=true"), field_error("name", "Not a valid string."));
        assert_eq!(invalid(r#"name="a\u0000""#), field_error("name", "Null characters are not allowed."));
        assert_eq!(
            invalid(r#"name="abcdef""#),
            field_error("name", "Ensure this field has no more than 5 characters.")
        );
        assert_eq!(invalid(r#"name="a";all="perhaps""#), field_error("all", "Must be a valid boolean."));
    }

    #[test]
    fn a_known_field_stands_there_once() {
        assert_eq!(read(r#"name="a";name="b""#).unwrap_err(), Unfit::Duplicate("name".into()));
        assert!(read(r#"name="a";x=1;x=2"#).is_ok());
    }
}
