//! What the v2 engine asks other services with.

use std::time::Duration;

use reqwest::{Client, redirect};
use rustls::{ClientConfig, RootCertStore};

use crate::{
    mail::{SetupError, cryptography},
    services::breaches::USER_AGENT,
};

/// A client whose questions take no longer than `timeout`, from the look-up of the name to the end of the answer.
///
/// # Errors
/// It cannot be set up; `setting` is what asked for it.
pub fn client(setting: &str, timeout: Duration) -> Result<Client, SetupError> {
    let setup = |error: String| SetupError(format!("{setting}: TLS cannot be set up: {error}"));
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let tls = ClientConfig::builder_with_provider(cryptography())
        .with_safe_default_protocol_versions()
        .map_err(|error| setup(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .timeout(timeout)
        .user_agent(USER_AGENT)
        // The operator named the service; nobody else is to learn what it is asked or to give the answer.
        .redirect(redirect::Policy::none())
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .build()
        .map_err(|error| setup(error.without_url().to_string()))
}
