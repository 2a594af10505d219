//! Which server: its address parsed once, with what it takes to believe that it is the one.

use http::Uri;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::http_out::{Origin, Scheme, Tls, public_roots};

/// The settings of the provider are wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// One that must be there is not.
    #[error("the provider needs `{name}`, for example `{example}`")]
    Missing {
        /// The setting.
        name: &'static str,
        /// A value that works.
        example: &'static str,
    },
    /// Not an address. Never holds the text: it may hold a password.
    #[error("the provider's `url` is not `http[s]://host[:port][/path]`")]
    Url,
    /// The certificates cannot be read.
    #[error("the provider's `ca` is not a list of certificates in PEM: {0}")]
    Ca(String),
    /// A value that is not one of those it may have.
    #[error("the provider's `{name}` {why}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What is wrong with it. Never a secret.
        why: String,
    },
}

/// One server.
#[derive(Clone)]
pub struct Server {
    /// Scheme, host and port.
    pub(super) place: String,
    /// Before the path of every request; without a `/` at its end.
    pub(super) path: String,
    pub(super) tls: Tls,
}

impl Server {
    /// The server at `url`. With `ca`, certificates in PEM, exactly those are believed; without, the public authorities.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn parse(url: &str, ca: Option<&str>) -> Result<Self, SettingsError> {
        let uri: Uri = url.parse().map_err(|_| SettingsError::Url)?;
        let origin = Origin::of(&uri).ok_or(SettingsError::Url)?;
        let path = uri.path().trim_end_matches('/');
        if uri.query().is_some() || url.contains('#') || path.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(SettingsError::Url);
        }
        if ca.is_some() && origin.scheme == Scheme::Http {
            return Err(SettingsError::Ca("it proves nothing where `url` is not `https`".to_owned()));
        }
        Ok(Self { place: origin.to_string(), path: path.to_owned(), tls: trust(ca)? })
    }

    /// What it takes to believe that it is the one.
    pub(crate) fn tls(&self) -> Tls {
        self.tls.clone()
    }
}

/// TLS that believes the certificates in PEM of `ca` and no others; without it, the public authorities.
pub(crate) fn trust(ca: Option<&str>) -> Result<Tls, SettingsError> {
    let roots = ca.map_or_else(|| Ok(public_roots()), roots)?;
    Tls::new(roots).map_err(|cause| SettingsError::Ca(cause.to_string()))
}

pub(crate) fn roots(pem: &str) -> Result<RootCertStore, SettingsError> {
    let bad = |cause: String| SettingsError::Ca(cause);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|cause| bad(cause.to_string()))?;
        roots.add(certificate).map_err(|cause| bad(cause.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(bad("it holds none".to_owned())),
        false => Ok(roots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart_once() {
        let server = |url| Server::parse(url, None).map(|server| (server.place, server.path)).ok();
        let is = |place: &str, path: &str| Some((place.to_owned(), path.to_owned()));
        assert_eq!(server("http://127.0.0.1:8200"), is("http://127.0.0.1:8200", ""));
        assert_eq!(server("https://Vault.example/"), is("https://vault.example:443", ""));
        assert_eq!(server("https://[::1]:8200/vault/"), is("https://[::1]:8200", "/vault"));
        for bad in [
            "",
            "vault.example",
            "vault.example:8200",
            "ftp://vault.example",
            "http://user:hunter2@vault.example",
            "http://vault.example?x=1",
            "http://vault.example/#x",
            "http://vault.example/a/../b",
            "http://vault.example:0",
        ] {
            assert_eq!(server(bad), None, "{bad}");
        }
    }

    #[test]
    fn certificates_are_read_or_refused() {
        let made = rcgen::generate_simple_self_signed(["vault.example".to_owned()]).unwrap();
        let pem = |what: &str, der: &[u8]| {
            format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", data_encoding::BASE64.encode(der))
        };
        let good = pem("CERTIFICATE", made.cert.der());
        assert!(Server::parse("https://vault.example", Some(&good)).is_ok());
        assert!(Server::parse("http://vault.example", Some(&good)).is_err());
        let key = pem("PRIVATE KEY", &made.signing_key.serialize_der());
        for bad in ["", "hello", &key, &pem("CERTIFICATE", b"hello")] {
            assert!(matches!(Server::parse("https://vault.example", Some(bad)), Err(SettingsError::Ca(_))), "{bad}");
        }
    }
}
