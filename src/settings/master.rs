//! The secrets that keys are made of: read from the configuration, from a file, or, on the
//! embedded default, generated on the first start.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Settings, SettingsError, pem};
use crate::services::keys::{Algorithm, SigningKey, VerifyingKey};

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

/// A further key that verifies tokens.
pub struct FurtherKey {
    /// The key.
    pub key: VerifyingKey,
    /// Its `kid`, `None` when it is to be derived from the key.
    pub id: Option<String>,
}

/// The configured signing key, else the one that derives from `master`.
///
/// # Errors
/// When the file cannot be read, or holds no key of the algorithm.
pub fn load_signing_key(settings: &Settings, master: &MasterSecret) -> Result<SigningKey, SettingsError> {
    let configured = load_configured_signing_key(settings)?;
    Ok(configured.unwrap_or_else(|| SigningKey::derive(master.expose(), settings.tokens.algorithm)))
}

/// The configured signing key, `None` when it is to be derived from the master secret.
///
/// # Errors
/// As [`load_signing_key`].
pub fn load_configured_signing_key(settings: &Settings) -> Result<Option<SigningKey>, SettingsError> {
    let algorithm = settings.tokens.algorithm;
    if let Some(key) = &settings.tokens.signing_key {
        return signing_key(key.expose(), algorithm)
            .map(Some)
            .map_err(|reason| SettingsError::refused("tokens.signing_key", settings, reason));
    }
    let Some(path) = &settings.tokens.signing_key_file else {
        return Ok(None);
    };
    let text = read(path)?;
    signing_key(line(&text), algorithm).map(Some).map_err(|reason| refused_file(path, reason))
}

/// The keys of `tokens.verification_keys`; those that derive need `master` and are left out without it.
///
/// # Errors
/// When a file cannot be read, or holds no key of the algorithm.
pub fn load_verification_keys(
    settings: &Settings,
    master: Option<&MasterSecret>,
) -> Result<Vec<FurtherKey>, SettingsError> {
    let algorithm = settings.tokens.algorithm;
    let mut keys = Vec::new();
    for further in &settings.tokens.verification_keys {
        let key = match (&further.file, master) {
            (Some(path), _) => {
                verifying_key(line(&read(path)?), algorithm).map_err(|reason| refused_file(path, reason))?
            }
            (None, Some(master)) => SigningKey::derive(master.expose(), algorithm).verifying_key(),
            (None, None) => continue,
        };
        keys.push(FurtherKey { key, id: further.id.clone() });
    }
    Ok(keys)
}

/// Reads a signing key: the text itself for HS256, a PKCS#8 key in PEM for EdDSA.
pub(super) fn signing_key(text: &str, algorithm: Algorithm) -> Result<SigningKey, &'static str> {
    match algorithm {
        Algorithm::Hs256 => secret(text).map(SigningKey::Hs256),
        Algorithm::EdDsa => match pem::decode(text)? {
            pem::Key::Private(seed, written) => {
                let key = SigningKey::Ed25519(seed);
                match (key.verifying_key(), written) {
                    (VerifyingKey::Ed25519(public), Some(written)) if public != written => {
                        Err("its public key is not that of its private key")
                    }
                    _ => Ok(key),
                }
            }
            pem::Key::Public(_) => Err("it is a public key, which signs nothing; the private key is needed"),
        },
    }
}

fn verifying_key(text: &str, algorithm: Algorithm) -> Result<VerifyingKey, &'static str> {
    if algorithm == Algorithm::EdDsa
        && let pem::Key::Public(public) = pem::decode(text)?
    {
        return VerifyingKey::ed25519(public).ok_or("it is no point of the curve, so no public key of Ed25519");
    }
    signing_key(text, algorithm).map(|key| key.verifying_key())
}

fn secret(text: &str) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    if pem::is_pem(text) {
        // A public key that verified as a secret would let everybody sign.
        return Err("it is a PEM key, which needs tokens.algorithm = \"EdDSA\"; HS256 takes a secret text");
    }
    if text.len() < LEAST_BYTES {
        return Err("a signing key needs at least 32 bytes (RFC 7518, 3.2)");
    }
    Ok(Zeroizing::new(text.as_bytes().to_vec()))
}

fn line(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

fn refused_file(path: &Path, reason: &str) -> SettingsError {
    SettingsError::Key { path: path.to_owned(), reason: reason.to_owned() }
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
    Err(refused_file(path, reason))
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
    Ok(Zeroizing::new(BASE64URL_NOPAD.encode(fresh_bytes()?.as_slice())))
}

/// A fresh private key of Ed25519 as PEM.
///
/// # Errors
/// As [`fresh_key`].
pub fn fresh_ed25519_key() -> io::Result<Zeroizing<String>> {
    Ok(pem::encode(&*fresh_bytes()?))
}

fn fresh_bytes() -> io::Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    #[expect(clippy::disallowed_methods, reason = "keys are generated before there are ports")]
    getrandom::fill(bytes.as_mut_slice()).map_err(io::Error::other)?;
    Ok(bytes)
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

    fn in_file(dir: &Path, algorithm: &str, content: &str) -> Settings {
        let path = dir.join("signing");
        fs::write(&path, content).unwrap();
        let file = format!("tokens.signing_key_file={}", path.display());
        Settings::from_overrides(&[&file, &format!("tokens.algorithm={algorithm}")]).unwrap()
    }

    fn loaded(settings: &Settings) -> SigningKey {
        load_configured_signing_key(settings).unwrap().unwrap()
    }

    fn refusal(settings: &Settings) -> String {
        load_configured_signing_key(settings).err().unwrap().to_string()
    }

    const ED25519: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    const ED25519_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";
    const P256: &str = "-----BEGIN PRIVATE KEY-----\n\
        MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgc0TW2blPOaIAWZqX\n\
        /uUrA6qmPhvCdeWCLJ8mRMUChvuhRANCAAR4ZfzD7ARyi26x7CJLifSPQlW5vfDC\n\
        -----END PRIVATE KEY-----\n";

    #[test]
    fn a_signing_key_file_is_taken_as_it_stands_without_its_line_end() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refusal(&in_file(dir.path(), "HS256", "too short\n")).contains("32 bytes"));
        let secret = "django-insecure-0123456789abcdefgh";
        let SigningKey::Hs256(key) = loaded(&in_file(dir.path(), "HS256", &format!("{secret}\n"))) else {
            panic!("another algorithm")
        };
        assert_eq!(*key, secret.as_bytes());
    }

    #[test]
    fn an_ed25519_key_is_read_from_a_file_or_a_value() {
        let dir = tempfile::tempdir().unwrap();
        let value = format!("tokens.signing_key={ED25519}");
        let on_one_line = format!("tokens.signing_key={}", ED25519.replace('\n', " "));
        for settings in [
            in_file(dir.path(), "EdDSA", ED25519),
            Settings::from_overrides(&[&value, "tokens.algorithm=EdDSA"]).unwrap(),
            Settings::from_overrides(&[&on_one_line, "tokens.algorithm=EdDSA"]).unwrap(),
        ] {
            let VerifyingKey::Ed25519(public) = loaded(&settings).verifying_key() else { panic!("another algorithm") };
            assert!(matches!(pem::decode(ED25519_PUBLIC), Ok(pem::Key::Public(known)) if known == public));
        }
    }

    #[test]
    fn what_is_no_private_ed25519_key_is_refused_with_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let rsa = ED25519.replace("PRIVATE", "RSA PRIVATE");
        let other_half = {
            let seed = [HEAD_OF_PAIR, &[1; 32], &[0x81, 0x21, 0x00], &[2; 32]].concat();
            format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", BASE64.encode(&seed))
        };
        for (content, reason) in [
            ("", "no PEM key"),
            ("django-insecure-0123456789abcdefgh", "keys generate --kind signing --algorithm EdDSA"),
            (ED25519_PUBLIC, "a public key, which signs nothing"),
            (P256, "of another kind"),
            (&rsa, "of another kind"),
            (&other_half, "not that of its private key"),
        ] {
            let error = refusal(&in_file(dir.path(), "EdDSA", content));
            assert!(error.contains(reason) && error.contains("signing"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    const HEAD_OF_PAIR: &[u8] = &[0x30, 0x51, 2, 1, 1, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

    #[test]
    fn hs256_takes_no_pem_key_for_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        for pem in [ED25519, ED25519_PUBLIC, P256] {
            assert!(refusal(&in_file(dir.path(), "HS256", pem)).contains("EdDSA"));
        }
    }

    #[test]
    fn without_a_configured_key_each_algorithm_has_one_of_the_master_secret() {
        let dir = tempfile::tempdir().unwrap();
        let settings = embedded(dir.path());
        let master = load_master_secret(&settings).unwrap();
        assert!(matches!(load_signing_key(&settings, &master).unwrap(), SigningKey::Hs256(_)));
        let data_dir = format!("data_dir={}", dir.path().display());
        let settings = Settings::from_overrides(&[&data_dir, "tokens.algorithm=EdDSA"]).unwrap();
        assert!(matches!(load_signing_key(&settings, &master).unwrap(), SigningKey::Ed25519(_)));
    }

    #[test]
    fn verification_keys_are_secrets_private_or_public_keys_of_the_algorithm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let master = MasterSecret(vec![7; 32]);
        let further = |algorithm: &str, content: &str| {
            fs::write(&path, content).unwrap();
            let keys = format!("tokens.verification_keys=k1={},derived", path.display());
            let settings = Settings::from_overrides(&[&keys, &format!("tokens.algorithm={algorithm}")]).unwrap();
            assert_eq!(load_verification_keys(&settings, None).map_or(1, |keys| keys.len()), 1);
            load_verification_keys(&settings, Some(&master)).map_err(|error| error.to_string())
        };
        for (algorithm, content) in
            [("HS256", "django-insecure-0123456789abcdefgh"), ("EdDSA", ED25519), ("EdDSA", ED25519_PUBLIC)]
        {
            let keys = further(algorithm, content).unwrap();
            let ids: Vec<_> = keys.iter().map(|key| key.id.as_deref()).collect();
            assert_eq!(ids, [Some("k1"), None]);
        }
        for (algorithm, content, reason) in [
            ("HS256", ED25519_PUBLIC, "EdDSA"),
            ("HS256", "short", "32 bytes"),
            ("EdDSA", "django-insecure-0123456789abcdefgh", "no PEM key"),
            ("EdDSA", P256, "of another kind"),
            (
                "EdDSA",
                &ED25519_PUBLIC
                    .replace("Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE", &format!("Ag{}", "A".repeat(41))),
                "no point",
            ),
        ] {
            let error = further(algorithm, content).err().unwrap();
            assert!(error.contains(reason) && error.contains("key"), "{error}");
        }
    }
}
