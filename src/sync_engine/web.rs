//! What the v1 engine asks other services with.

use std::time::Duration;

use ureq::{
    Agent,
    tls::{RootCerts, TlsConfig},
};

use crate::{mail::cryptography, services::breaches::USER_AGENT};

/// A client whose questions take no longer than `timeout`, from the look-up of the name to the end of the answer.
pub fn agent(timeout: Duration) -> Agent {
    Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .user_agent(USER_AGENT)
        // The operator named the service; nobody else is to learn what it is asked or to give the answer.
        .max_redirects(0)
        .proxy(None)
        .tls_config(
            TlsConfig::builder()
                .root_certs(RootCerts::WebPki)
                .unversioned_rustls_crypto_provider(cryptography())
                .build(),
        )
        .build()
        .new_agent()
}
