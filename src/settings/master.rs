//! The secrets that keys are made of: read from the configuration, from a file, or, on the
//! embedded default, generated on the first start.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Settings, SettingsError};

/// The least number of bytes in a master secret or a signing key (RFC 7518, 3.2).
pub(super) const LEAST_BYTES: usize = 32;

/// Longer key files are no key files.
const LARGEST_FILE: u64 = 64 * 1024;

/// The secret from which all other keys are derived: at least 32 bytes, overwritten when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterSecret(Vec<u8>);

impl MasterSecret {
    /// The bytes of the secret.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for MasterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(super::MASK)
    }
}

/// The master secret: `secrets.master`, else the file `secrets.master_file`, else, with SQLite and
/// the embedded store only, `{data_dir}/master.key`, which is created when it does not exist.
///
/// # Errors
/// When a file cannot be read or written, is readable by others, or holds no secret.
pub fn load_master_secret(settings: &Settings) -> Result<MasterSecret, SettingsError> {
    if let Some(master) = &settings.secrets.master {
        return decode(master.expose()).map_err(|reason| SettingsError::refused("secrets.master", settings, reason));
    }
    if let Some(path) = &settings.secrets.master_file {
        return decode_file(path, &read(path)?);
    }
    if !settings.is_embedded() {
        return Err(SettingsError::refused(
            "secrets.master",
            settings,
            "PostgreSQL and Redis need a configured master secret",
        ));
    }
    settings.create_data_dir()?;
    let path = settings.data_dir.join("master.key");
    if !path.try_exists().map_err(|error| SettingsError::file(&path, &error))? {
        generate(&settings.data_dir, &path)?;
    }
    let mode = fs::metadata(&path).map_err(|error| SettingsError::file(&path, &error))?.mode();
    if mode & 0o077 != 0 {
        return Err(SettingsError::Key {
            path,
            reason: format!(
                "its mode {:04o} lets others on this machine use it; set it to 0600, \
                 and replace the key if anyone may have read it",
                mode & 0o7777
            ),
        });
    }
    decode_file(&path, &read(&path)?)
}

/// The configured signing key as it stands, `None` when it is to be derived from the master secret.
///
/// # Errors
/// When the file cannot be read, or the key has fewer than 32 bytes.
pub fn load_signing_key(settings: &Settings) -> Result<Option<Zeroizing<Vec<u8>>>, SettingsError> {
    if let Some(key) = &settings.tokens.signing_key {
        return Ok(Some(Zeroizing::new(key.expose().as_bytes().to_vec())));
    }
    let Some(path) = &settings.tokens.signing_key_file else {
        return Ok(None);
    };
    let text = read(path)?;
    let key = Zeroizing::new(text.trim_end_matches(['\r', '\n']).as_bytes().to_vec());
    if key.len() < LEAST_BYTES {
        return Err(SettingsError::Key {
            path: path.clone(),
            reason: "a signing key needs at least 32 bytes".to_owned(),
        });
    }
    Ok(Some(key))
}

/// Decodes a master secret written as hex, base64url or base64.
pub(super) fn decode(text: &str) -> Result<MasterSecret, &'static str> {
    let text = text.trim();
    // Hex digits are base64 as well, so hex is tried first.
    let bytes = [HEXLOWER_PERMISSIVE, BASE64URL_NOPAD, BASE64URL, BASE64_NOPAD, BASE64]
        .iter()
        .find_map(|encoding| encoding.decode(text.as_bytes()).ok())
        .map(MasterSecret)
        .ok_or("the master secret must be written as base64url, base64 or hex")?;
    if bytes.0.len() < LEAST_BYTES {
        return Err("the master secret needs at least 32 bytes; `bifrons keys generate` makes one");
    }
    Ok(bytes)
}

fn decode_file(path: &Path, text: &str) -> Result<MasterSecret, SettingsError> {
    let reason = if text.trim().is_empty() {
        "it is empty; restore it from a backup, for without it stored data cannot be read"
    } else {
        match decode(text) {
            Ok(master) => return Ok(master),
            Err(reason) => reason,
        }
    };
    Err(SettingsError::Key { path: path.to_owned(), reason: reason.to_owned() })
}

fn read(path: &Path) -> Result<Zeroizing<String>, SettingsError> {
    let mut text = Zeroizing::new(String::new());
    File::open(path)
        .and_then(|file| file.take(LARGEST_FILE).read_to_string(&mut text))
        .map_err(|error| SettingsError::file(path, &error))?;
    Ok(text)
}

/// Writes a fresh key beside its place and links it there: a start that runs at the same time finds
/// a whole key or none, and the first link wins.
fn generate(dir: &Path, path: &Path) -> Result<(), SettingsError> {
    let mut key = fresh_key().map_err(|error| SettingsError::file(path, &error))?;
    let mut name = fresh_key().map_err(|error| SettingsError::file(path, &error))?;
    name.truncate(12);
    let draft = dir.join(format!("master.key.{}", name.as_str()));
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).and_then(|mut file| {
        key.push('\n');
        file.write_all(key.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    });
    let removed = fs::remove_file(&draft);
    written.and(removed).and_then(|()| File::open(dir)?.sync_all()).map_err(|error| SettingsError::file(path, &error))
}

/// 32 fresh random bytes as base64url.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn fresh_key() -> io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    #[expect(clippy::disallowed_methods, reason = "keys are generated before there are ports")]
    getrandom::fill(bytes.as_mut_slice()).map_err(io::Error::other)?;
    Ok(Zeroizing::new(BASE64URL_NOPAD.encode(bytes.as_slice())))
}

/// Creates a directory, and those above it, for this user alone; one that exists is left as it is.
pub(super) fn create_private_dir(path: &Path) -> Result<(), SettingsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| SettingsError::File { path: PathBuf::from(path), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn embedded(dir: &Path) -> Settings {
        Settings::from_overrides(&[&format!("data_dir={}", dir.display())]).unwrap()
    }

    #[test]
    fn the_first_start_generates_a_private_key_and_the_second_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("new/data");
        let first = load_master_secret(&embedded(&data)).unwrap();
        let second = load_master_secret(&embedded(&data)).unwrap();
        assert_eq!(first.expose(), second.expose());
        assert_eq!(first.expose().len(), 32);
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(data.join("master.key")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "the draft is removed");
    }

    #[test]
    fn starts_at_the_same_time_end_with_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let settings = embedded(dir.path());
        let keys: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let starts: Vec<_> =
                (0..16).map(|_| scope.spawn(|| load_master_secret(&settings).unwrap().expose().to_vec())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn a_key_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let settings = embedded(dir.path());
        load_master_secret(&settings).unwrap();
        fs::set_permissions(dir.path().join("master.key"), fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_master_secret(&settings).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("master.key"), "{error}");
    }

    #[test]
    fn an_empty_or_garbled_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let settings = embedded(dir.path());
        load_master_secret(&settings).unwrap();
        for (content, word) in [("", "empty"), ("\n", "empty"), ("not a key!", "base64url"), ("c2hvcnQ", "32 bytes")] {
            fs::write(dir.path().join("master.key"), content).unwrap();
            let error = load_master_secret(&settings).unwrap_err().to_string();
            assert!(error.contains(word), "{content:?}: {error}");
        }
    }

    #[test]
    fn a_configured_master_secret_is_taken_in_every_spelling() {
        let bytes = [0xfb_u8; 32];
        for text in [
            HEXLOWER_PERMISSIVE.encode(&bytes),
            HEXLOWER_PERMISSIVE.encode(&bytes).to_uppercase(),
            BASE64URL_NOPAD.encode(&bytes),
            BASE64URL.encode(&bytes),
            BASE64.encode(&bytes),
            BASE64_NOPAD.encode(&bytes),
        ] {
            let settings = Settings::from_overrides(&[&format!("secrets.master={text}")]).unwrap();
            assert_eq!(load_master_secret(&settings).unwrap().expose(), bytes, "{text}");
        }
    }

    #[test]
    fn a_master_file_is_read_and_never_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master");
        let settings = Settings::from_overrides(&[&format!("secrets.master_file={}", path.display())]).unwrap();
        assert!(load_master_secret(&settings).unwrap_err().to_string().contains("master"));
        assert!(!path.exists());
        fs::write(&path, format!("{}\n", fresh_key().unwrap().as_str())).unwrap();
        assert_eq!(load_master_secret(&settings).unwrap().expose().len(), 32);
    }

    #[test]
    fn a_signing_key_file_is_taken_as_it_stands_without_its_line_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signing");
        let settings = Settings::from_overrides(&[&format!("tokens.signing_key_file={}", path.display())]).unwrap();
        fs::write(&path, "too short\n").unwrap();
        assert!(load_signing_key(&settings).unwrap_err().to_string().contains("32 bytes"));
        fs::write(&path, "django-insecure-0123456789abcdefgh\n").unwrap();
        assert_eq!(*load_signing_key(&settings).unwrap().unwrap(), b"django-insecure-0123456789abcdefgh");
    }
}
