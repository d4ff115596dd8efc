//! Ed25519 keys as PEM (RFC 7468, RFC 8410): what `openssl genpkey -algorithm ed25519` writes.

use data_encoding::BASE64;
use zeroize::Zeroizing;

use crate::services::keys::ED25519_HEAD;

/// The same as [`ED25519_HEAD`] with a public key after the private one (version 2, RFC 5958).
const HEAD_OF_PAIR: [u8; 16] =
    [0x30, 0x51, 0x02, 0x01, 0x01, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Between the private and the public key of version 2.
const PUBLIC_FIELD: [u8; 3] = [0x81, 0x21, 0x00];

/// SubjectPublicKeyInfo up to the key itself.
const PUBLIC_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

const BEGIN: &str = "-----BEGIN ";

/// An Ed25519 key.
pub(super) enum Key {
    /// The private key, and the public key where it is written beside it.
    Private(Zeroizing<[u8; 32]>, Option<[u8; 32]>),
    /// The public key alone.
    Public([u8; 32]),
}

/// Whether the text means to be PEM.
pub(super) fn is_pem(text: &str) -> bool {
    text.trim_start().starts_with(BEGIN)
}

/// Reads one Ed25519 key, and says of anything else what it is.
pub(super) fn decode(text: &str) -> Result<Key, &'static str> {
    const NO_PEM: &str = "it is no PEM key; `bifrons keys generate --kind signing --algorithm EdDSA` makes one";
    const NOT_WHOLE: &str = "it is no whole PEM key, or more than one";
    const OTHER: &str = "it is a key of another kind; tokens.algorithm = \"EdDSA\" needs an Ed25519 key";
    let rest = text.trim().strip_prefix(BEGIN).ok_or(NO_PEM)?;
    let (label, rest) = rest.split_once("-----").ok_or(NOT_WHOLE)?;
    let content = rest.strip_suffix("-----").and_then(|rest| rest.strip_suffix(label)).ok_or(NOT_WHOLE)?;
    let content = content.strip_suffix("-----END ").ok_or(NOT_WHOLE)?;
    // In lines, or broken by the spaces of a variable that holds one line only.
    let content = Zeroizing::new(content.split_ascii_whitespace().collect::<String>());
    let der = || BASE64.decode(content.as_bytes()).map(Zeroizing::new).or(Err(NOT_WHOLE));
    match label {
        "PRIVATE KEY" => private(&der()?).ok_or(OTHER),
        "PUBLIC KEY" => public(&der()?).ok_or(OTHER),
        "ENCRYPTED PRIVATE KEY" => Err("it is encrypted; `openssl pkey -in FILE` decrypts it"),
        "OPENSSH PRIVATE KEY" => Err("it is a key of OpenSSH; a PKCS#8 key is needed"),
        _ => Err(OTHER),
    }
}

/// Writes a private key as PKCS#8.
pub(super) fn encode(seed: &[u8; 32]) -> Zeroizing<String> {
    let der = Zeroizing::new([ED25519_HEAD.as_slice(), seed].concat());
    let content = Zeroizing::new(BASE64.encode(&der));
    Zeroizing::new(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", content.as_str()))
}

fn private(der: &[u8]) -> Option<Key> {
    let (head, rest) = der.split_first_chunk::<16>()?;
    let (seed, rest) = rest.split_first_chunk::<32>()?;
    let public = match *head {
        ED25519_HEAD if rest.is_empty() => None,
        HEAD_OF_PAIR => Some(<[u8; 32]>::try_from(rest.strip_prefix(&PUBLIC_FIELD)?).ok()?),
        _ => return None,
    };
    Some(Key::Private(Zeroizing::new(*seed), public))
}

fn public(der: &[u8]) -> Option<Key> {
    <[u8; 32]>::try_from(der.strip_prefix(&PUBLIC_HEAD)?).ok().map(Key::Public)
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8410, 10.1 and 10.3.
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";

    fn seed(text: &str) -> [u8; 32] {
        match decode(text) {
            Ok(Key::Private(seed, _)) => *seed,
            _ => panic!("no private key: {text}"),
        }
    }

    fn refusal(text: &str) -> &'static str {
        decode(text).err().unwrap_or_else(|| panic!("it was taken: {text}"))
    }

    #[test]
    fn the_examples_of_rfc_8410_are_read_and_written() {
        assert_eq!(data_encoding::HEXLOWER.encode(&seed(PRIVATE)), {
            "d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842"
        });
        assert_eq!(encode(&seed(PRIVATE)).as_str(), PRIVATE);
        let Ok(Key::Public(public)) = decode(PUBLIC) else { panic!("no public key") };
        assert_eq!(data_encoding::HEXLOWER.encode(&public), {
            "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1"
        });
    }

    #[test]
    fn a_key_is_read_however_its_lines_end() {
        for text in [PRIVATE.replace('\n', "\r\n"), PRIVATE.replace('\n', " "), format!("\n{}", PRIVATE.trim())] {
            assert_eq!(seed(&text), seed(PRIVATE), "{text:?}");
        }
    }

    #[test]
    fn a_private_key_with_its_public_key_is_read() {
        let Ok(Key::Public(public)) = decode(PUBLIC) else { panic!("no public key") };
        let der = [HEAD_OF_PAIR.as_slice(), &seed(PRIVATE), &PUBLIC_FIELD, &public].concat();
        let text = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", BASE64.encode(&der));
        match decode(&text) {
            Ok(Key::Private(seed_read, Some(public_read))) => {
                assert_eq!((*seed_read, public_read), (seed(PRIVATE), public));
            }
            _ => panic!("not read"),
        }
    }

    #[test]
    fn anything_else_is_refused() {
        assert!(refusal("").contains("no PEM key"));
        assert!(refusal("a text of more than thirty-two bytes, as HS256 takes it").contains("no PEM key"));
        for text in [
            PRIVATE.replace("-----END PRIVATE KEY-----", ""),
            PRIVATE.replace("END PRIVATE", "END PUBLIC"),
            PRIVATE.replace("MC4C", "MC4"),
            PRIVATE.replace("MC4C", "MC4!"),
            format!("{PRIVATE}{PRIVATE}"),
            "-----BEGIN PRIVATE KEY-----".to_owned(),
        ] {
            assert!(refusal(&text).contains("no whole PEM key"), "{text}");
        }
        for text in [
            PRIVATE.replace("PRIVATE", "RSA PRIVATE"),
            PRIVATE.replace("PRIVATE", "EC PRIVATE"),
            PRIVATE.replace("PRIVATE", "PUBLIC"),
            PUBLIC.replace("PUBLIC", "PRIVATE"),
            // The same of X25519, whose algorithm is 1.3.101.110.
            PRIVATE.replace("K2Vw", "K2Vu"),
            // An empty one.
            "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----".to_owned(),
        ] {
            assert!(refusal(&text).contains("another kind"), "{text}");
        }
        assert!(refusal(&PRIVATE.replace("PRIVATE", "ENCRYPTED PRIVATE")).contains("encrypted"));
        assert!(refusal(&PRIVATE.replace("PRIVATE", "OPENSSH PRIVATE")).contains("OpenSSH"));
    }
}
