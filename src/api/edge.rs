//! What the configuration says of the outer edge: proxies, origins, cookies, and where the other
//! engine listens.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{Version, docs::Documents};
use crate::settings::Settings;

/// Settings that a request is read and answered with.
#[derive(Debug, Clone)]
pub struct Edge {
    trusted_proxies: Vec<IpNet>,
    origins: Vec<String>,
    own_origin: String,
    cookies_are_secure: bool,
    device_ttl: Duration,
    documents: Option<Documents>,
    ports: [Option<u16>; 2],
}

impl Edge {
    /// Reads them.
    pub fn new(settings: &Settings) -> Self {
        let (v1, v2) = (&settings.engines.v1, &settings.engines.v2);
        Self {
            trusted_proxies: settings.trusted_proxies.clone(),
            origins: settings.cors.origins.iter().map(|origin| origin.to_lowercase()).collect(),
            own_origin: settings.public_url.origin().ascii_serialization(),
            cookies_are_secure: settings.cookies_are_secure(),
            device_ttl: settings.devices.ttl,
            documents: settings.docs.enabled.then(|| Documents::new(settings.public_url.as_str())),
            ports: [v1.enabled.then(|| v1.bind.port()), v2.enabled.then(|| v2.bind.port())],
        }
    }

    /// The client's address: the peer's, or when the peer is a trusted proxy, the right-most hop of
    /// `X-Forwarded-For` that is none. What stands further left could be anybody's invention.
    pub fn client_address<'a>(&self, peer: IpAddr, forwarded: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let is_trusted = |ip: IpAddr| self.trusted_proxies.iter().any(|net| net.contains(&ip.to_canonical()));
        let mut client = peer.to_canonical();
        for hop in forwarded.rev().flat_map(|line| line.rsplit(',')) {
            if !is_trusted(client) {
                break;
            }
            let Some(ip) = hop_address(hop) else { break };
            client = ip.to_canonical();
        }
        client
    }

    /// Whether a browser's page of this origin may read answers, with credentials.
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
    }

    /// Whether a request that carries its refresh token in a cookie may come from here.
    pub fn allows_cookie_from(&self, origin: Option<&str>) -> bool {
        // Without an origin it is no browser: these send one with every POST.
        origin.is_none_or(|origin| self.allows_origin(origin) || self.own_origin.eq_ignore_ascii_case(origin))
    }

    /// The refresh cookie's name. `__Host-` binds it to this host and to https (RFC 6265bis §4.1.3.2).
    pub const fn cookie_name(&self) -> &'static str {
        cookie_name(self.cookies_are_secure)
    }

    /// A `Set-Cookie` for the refresh token; without a value it removes it.
    pub fn refresh_cookie(&self, value: Option<(&str, i64)>) -> String {
        let (value, seconds) = value.unwrap_or(("", 0));
        let secure = if self.cookies_are_secure { "; Secure" } else { "" };
        format!("{}={value}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}", self.cookie_name())
    }

    /// The name of the cookie that a device is known by.
    pub const fn device_cookie_name(&self) -> &'static str {
        if self.cookies_are_secure { "__Host-bifrons_device" } else { "bifrons_device" }
    }

    /// A `Set-Cookie` for a device that has signed in.
    pub fn device_cookie(&self, token: &str) -> String {
        let secure = if self.cookies_are_secure { "; Secure" } else { "" };
        let (name, seconds) = (self.device_cookie_name(), self.device_ttl.as_secs());
        format!("{name}={token}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}")
    }

    /// The OpenAPI documents, when they and Swagger UI are served.
    pub const fn documents(&self) -> Option<&Documents> {
        self.documents.as_ref()
    }

    /// The port that serves a version, when its engine runs.
    pub const fn port(&self, version: Version) -> Option<u16> {
        let [v1, v2] = self.ports;
        match version {
            Version::V1 => v1,
            Version::V2 => v2,
        }
    }
}

/// The refresh cookie's name where cookies are secure or not.
pub const fn cookie_name(is_secure: bool) -> &'static str {
    if is_secure { "__Host-bifrons_refresh" } else { "bifrons_refresh" }
}

// `192.0.2.1`, `192.0.2.1:1234`, `2001:db8::1`, `[2001:db8::1]:1234`.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let with_port = || hop.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    hop.parse().ok().or_else(with_port).or_else(in_brackets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(overrides: &[&str]) -> Edge {
        Edge::new(&Settings::from_overrides(overrides).unwrap())
    }

    fn client(edge: &Edge, peer: &str, lines: &[&str]) -> String {
        edge.client_address(peer.parse().unwrap(), lines.iter().copied()).to_string()
    }

    #[test]
    fn a_forwarded_address_is_believed_from_trusted_proxies_only() {
        let edge = edge(&["trusted_proxies=10.0.0.0/8"]);
        assert_eq!(client(&edge, "192.0.2.9", &["1.2.3.4"]), "192.0.2.9");
        assert_eq!(client(&edge, "10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(client(&edge, "10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"]), "1.2.3.4");
        assert_eq!(client(&edge, "10.0.0.1", &["6.6.6.6", "1.2.3.4"]), "1.2.3.4");
        assert_eq!(client(&edge, "10.0.0.1", &["1.2.3.4, nonsense"]), "10.0.0.1");
        assert_eq!(client(&edge, "10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client(&edge, "::ffff:10.0.0.1", &["[2001:db8::1]:443"]), "2001:db8::1");
    }

    #[test]
    fn origins_are_compared_whole() {
        let edge = edge(&["cors.origins=https://shop.example.org"]);
        assert!(edge.allows_origin("https://shop.example.org"));
        for origin in
            ["https://shop.example.org.evil.net", "http://shop.example.org", "null", "", "https://example.org"]
        {
            assert!(!edge.allows_origin(origin), "{origin}");
            assert!(!edge.allows_cookie_from(Some(origin)), "{origin}");
        }
        assert!(edge.allows_cookie_from(None));
        assert!(edge.allows_cookie_from(Some("http://127.0.0.1:8002")));
    }

    #[test]
    fn the_cookie_is_secure_where_the_address_is() {
        let cookie = edge(&["public_url=https://id.example.org"]).refresh_cookie(Some(("t", 5)));
        assert_eq!(cookie, "__Host-bifrons_refresh=t; Max-Age=5; Path=/; HttpOnly; SameSite=Lax; Secure");
        assert!(!edge(&[]).refresh_cookie(None).contains("Secure"));
    }
}
