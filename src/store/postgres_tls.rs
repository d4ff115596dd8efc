//! TLS to PostgreSQL, for the driver that has none of its own: `sslmode=verify-full` with the
//! roots of `sslrootcert`, as libpq does it.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use url::Url;

use crate::settings::{PostgresTls, Settings};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// libpq has no usable roots of its own.
    #[error("`database.url`: sslmode=verify-full needs sslrootcert=FILE, the certificates to trust")]
    NoRoots,
    /// The file is no certificate file.
    #[error("`database.url`: the sslrootcert file {0} cannot be used: {1}")]
    Roots(String, String),
    /// The TLS library refuses.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// A TLS configuration when the URL asks for TLS.
///
/// # Errors
/// [`TlsError`].
pub fn client_config(settings: &Settings, url: &str) -> Result<Option<ClientConfig>, TlsError> {
    if matches!(settings.postgres_tls(), PostgresTls::Off) {
        return Ok(None);
    }
    let file = parameter(url, "sslrootcert").ok_or(TlsError::NoRoots)?;
    let refused = |reason: String| TlsError::Roots(file.clone(), reason);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&file).map_err(|error| refused(error.to_string()))? {
        let certificate = certificate.map_err(|error| refused(error.to_string()))?;
        roots.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Some(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// The URL without the parameters that tokio-postgres does not know; TLS is decided beside it.
pub fn without_tls_parameters(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return url.to_owned() };
    let kept: Vec<(String, String)> =
        parsed.query_pairs().filter(|(name, _)| !name.starts_with("ssl")).map(|(n, v)| (n.into(), v.into())).collect();
    parsed.set_query(None);
    if !kept.is_empty() {
        parsed.query_pairs_mut().extend_pairs(kept);
    }
    parsed.into()
}

fn parameter(url: &str, wanted: &str) -> Option<String> {
    let parsed = Url::parse(url).ok()?;
    parsed.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tls_parameters_are_taken_away() {
        let url = "postgres://u:p@db.example:5432/app?sslmode=verify-full&application_name=x&sslrootcert=/ca.pem";
        assert_eq!(without_tls_parameters(url), "postgres://u:p@db.example:5432/app?application_name=x");
        assert_eq!(without_tls_parameters("postgres://u@127.0.0.1/app"), "postgres://u@127.0.0.1/app");
        assert_eq!(parameter(url, "sslrootcert").as_deref(), Some("/ca.pem"));
    }
}
