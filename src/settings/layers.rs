//! The sources of a configuration, laid over one another; keys that do not exist are named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map};
use figment::{Figment, Metadata, Profile, Provider};
use toml::{Table, Value};

use super::SettingsError;

/// The embedded defaults, which document every key.
pub const DEFAULTS: &str = include_str!("../defaults.toml");

const PREFIX: &str = "BIFRONS_";
const CONFIG_VARIABLE: &str = "BIFRONS_CONFIG";
const CONFIG_FILE: &str = "bifrons.toml";

/// Where a configuration comes from, least binding first; the defaults lie below all of it.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables; only those that begin with `BIFRONS_` are looked at.
    pub environment: Vec<(String, String)>,
    /// `key=value` from the command line.
    pub overrides: Vec<String>,
}

impl Sources {
    /// The sources of this process: `file` or else `BIFRONS_CONFIG` or else `./bifrons.toml` when it
    /// exists, the environment, and `overrides`.
    ///
    /// # Errors
    /// When a `BIFRONS_` variable is not UTF-8.
    pub fn of_process(file: Option<PathBuf>, overrides: Vec<String>) -> Result<Self, SettingsError> {
        let mut environment = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
                continue;
            };
            let value = value.into_string().map_err(|_value| SettingsError::Syntax {
                origin: format!("environment {name}"),
                reason: "the value is not UTF-8".to_owned(),
            })?;
            environment.push((name.to_owned(), value));
        }
        let file = file
            .or_else(|| std::env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from))
            .or_else(|| Some(PathBuf::from(CONFIG_FILE)).filter(|path| path.exists()));
        Ok(Self { file, environment, overrides })
    }
}

/// One source: its name as it is shown, and the values it states under their dotted keys.
struct Layer {
    origin: String,
    values: Vec<(String, Value)>,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut dict = Dict::new();
        for (key, value) in &self.values {
            insert(&mut dict, key, figment::value::Value::serialize(value)?);
        }
        Ok(Profile::Default.collect(dict))
    }
}

/// Puts a value into nested dictionaries, `a.b.c` into `c` of `b` of `a`.
fn insert(dict: &mut Dict, key: &str, value: figment::value::Value) {
    use figment::value::Value;

    let Some((section, rest)) = key.split_once('.') else {
        dict.insert(key.to_owned(), value);
        return;
    };
    let inner = dict.entry(section.to_owned()).or_insert_with(|| Value::from(Dict::new()));
    if let Value::Dict(_, inner) = inner {
        insert(inner, rest, value);
    }
}

/// Every key with its default value.
pub(super) fn keys() -> Result<BTreeMap<String, Value>, SettingsError> {
    let origin = "default";
    let table = parse(DEFAULTS, origin)?;
    let mut keys = BTreeMap::new();
    collect(table, "", &mut |key, value| match value {
        Value::Table(section) => Ok(Some(section)),
        value => {
            keys.insert(key.to_owned(), value);
            Ok(None)
        }
    })?;
    Ok(keys)
}

/// Lays the sources over the defaults.
pub(super) fn lay(sources: &Sources, keys: &BTreeMap<String, Value>) -> Result<Figment, SettingsError> {
    let mut figment = Figment::new().merge(Layer {
        origin: "default".to_owned(),
        values: keys.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
    });
    if let Some(path) = &sources.file {
        figment = figment.merge(file(path, keys)?);
    }
    let mut environment: Vec<_> =
        sources.environment.iter().filter(|(name, _)| name.starts_with(PREFIX) && name != CONFIG_VARIABLE).collect();
    environment.sort();
    for (name, text) in environment {
        figment = figment.merge(variable(name, text, keys)?);
    }
    for assignment in &sources.overrides {
        figment = figment.merge(assigned(assignment, keys)?);
    }
    Ok(figment)
}

fn file(path: &Path, keys: &BTreeMap<String, Value>) -> Result<Layer, SettingsError> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| SettingsError::file(path, &error))?;
    let mut values = Vec::new();
    collect(parse(&text, &origin)?, "", &mut |key, value| {
        let is_section = keys
            .range(format!("{key}.")..)
            .next()
            .is_some_and(|(next, _)| next.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')));
        match value {
            Value::Table(section) if is_section => Ok(Some(section)),
            // A section that does not exist is best named by a key in it.
            Value::Table(section) if !section.is_empty() && !keys.contains_key(key) => Ok(Some(section)),
            value if keys.contains_key(key) => {
                values.push((key.to_owned(), value));
                Ok(None)
            }
            _ if is_section => Err(SettingsError::Invalid {
                key: key.to_owned(),
                origin: origin.clone(),
                reason: format!("it is a section; its keys stand below [{key}]"),
            }),
            _ => Err(SettingsError::UnknownKey {
                key: key.to_owned(),
                origin: origin.clone(),
                nearest: nearest(key, keys).map(|near| format!("`{near}`")),
            }),
        }
    })?;
    Ok(Layer { origin, values })
}

fn variable(name: &str, text: &str, keys: &BTreeMap<String, Value>) -> Result<Layer, SettingsError> {
    let key = name.strip_prefix(PREFIX).unwrap_or(name).to_lowercase().replace("__", ".");
    let origin = format!("environment {name}");
    let Some(default) = keys.get(&key) else {
        return Err(SettingsError::UnknownKey {
            origin,
            nearest: nearest(&key, keys).map(|near| variable_name(&near)),
            key,
        });
    };
    let value = typed(text, default, &key, &origin)?;
    Ok(Layer { origin, values: vec![(key, value)] })
}

fn variable_name(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fn assigned(assignment: &str, keys: &BTreeMap<String, Value>) -> Result<Layer, SettingsError> {
    let origin = "--set".to_owned();
    let Some((key, text)) = assignment.split_once('=') else {
        return Err(SettingsError::Syntax { origin, reason: "it takes KEY=VALUE".to_owned() });
    };
    let key = key.trim();
    let Some(default) = keys.get(key) else {
        return Err(SettingsError::UnknownKey {
            key: key.to_owned(),
            origin,
            nearest: nearest(key, keys).map(|near| format!("`{near}`")),
        });
    };
    let value = typed(text, default, key, &origin)?;
    Ok(Layer { origin, values: vec![(key.to_owned(), value)] })
}

/// Reads text as the type of the key's default, so that a password of digits stays a text. What
/// does not fit stays a text too, and is refused with the key's own words.
fn typed(text: &str, default: &Value, key: &str, origin: &str) -> Result<Value, SettingsError> {
    let as_text = || Value::String(text.to_owned());
    Ok(match default {
        Value::Integer(_) => text.trim().parse().map_or_else(|_| as_text(), Value::Integer),
        Value::Boolean(_) => text.trim().parse().map_or_else(|_| as_text(), Value::Boolean),
        Value::Array(_) if text.trim().is_empty() => Value::Array(Vec::new()),
        Value::Array(_) if text.trim_start().starts_with('[') => {
            let mut table = toml::from_str::<Table>(&format!("list = {text}")).unwrap_or_default();
            table.remove("list").filter(|_| table.is_empty()).ok_or_else(|| SettingsError::Invalid {
                key: key.to_owned(),
                origin: origin.to_owned(),
                reason: "a list is comma separated, or a TOML array such as [\"a\", \"b\"]".to_owned(),
            })?
        }
        Value::Array(_) => Value::Array(text.split(',').map(|item| Value::String(item.trim().to_owned())).collect()),
        _ => as_text(),
    })
}

fn parse(text: &str, origin: &str) -> Result<Table, SettingsError> {
    toml::from_str(text).map_err(|error| {
        // The error's own form quotes the line, which may hold a secret.
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        let message = error.message().replace('\n', ", ");
        SettingsError::Syntax { origin: origin.to_owned(), reason: format!("line {line}: {message}") }
    })
}

/// Walks a table depth first; `visit` returns the table into which to descend.
fn collect(
    table: Table,
    prefix: &str,
    visit: &mut impl FnMut(&str, Value) -> Result<Option<Table>, SettingsError>,
) -> Result<(), SettingsError> {
    for (name, value) in table {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        let value = match value {
            Value::Datetime(time) => Value::String(time.to_string()),
            value => value,
        };
        if let Some(section) = visit(&key, value)? {
            collect(section, &key, visit)?;
        }
    }
    Ok(())
}

/// The existing key that is most like an unknown one, if any is alike enough to be meant.
fn nearest(key: &str, keys: &BTreeMap<String, Value>) -> Option<String> {
    let key = key.to_lowercase().replace(['_', '-'], ".");
    keys.keys()
        .map(|known| {
            let spelled = known.replace('_', ".");
            let likeness = strsim::normalized_damerau_levenshtein(&key, &spelled);
            // A key without its section is meant as well.
            let last = known.rsplit('.').next().unwrap_or(known).replace('_', ".");
            let by_name = strsim::normalized_damerau_levenshtein(&key, &last) * 0.99;
            (likeness.max(by_name), known)
        })
        .filter(|(likeness, _)| *likeness > 0.6)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| known.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_defaults_has_a_comment_above_it() {
        let mut section = String::new();
        let mut has_comment = false;
        let mut documented = Vec::new();
        for line in DEFAULTS.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = format!("{}.", name.trim_end_matches(']'));
                has_comment = false;
            } else if let Some(text) = line.strip_prefix("# ") {
                has_comment = text.len() > 10;
            } else if let Some((name, _)) = line.split_once(" = ") {
                assert!(has_comment, "{section}{name} has no comment");
                has_comment = false;
                documented.push(format!("{section}{name}"));
            } else {
                assert!(line.is_empty() || line == "#", "{line}");
                has_comment = has_comment && line == "#";
            }
        }
        documented.sort();
        assert_eq!(documented, keys().unwrap().into_keys().collect::<Vec<_>>());
    }

    #[test]
    fn the_nearest_key_is_suggested() {
        let keys = keys().unwrap();
        for (wrong, right) in [
            ("tokens.acces_ttl", "tokens.access_ttl"),
            ("tokens_access_ttl", "tokens.access_ttl"),
            ("token.refresh_ttl", "tokens.refresh_ttl"),
            ("publicurl", "public_url"),
            ("access_ttl", "tokens.access_ttl"),
            ("engines.v1.thread", "engines.v1.threads"),
            ("engine.v2.bind", "engines.v2.bind"),
        ] {
            assert_eq!(nearest(wrong, &keys).as_deref(), Some(right), "{wrong}");
        }
        assert_eq!(nearest("completely_different_matter", &keys), None);
    }
}
