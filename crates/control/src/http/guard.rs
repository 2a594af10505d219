//! What stands before every handler: the name we were called by, the page that calls, and the token. In this order, so
//! that a browser tricked into calling us learns nothing at all.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::problem::Code;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Api;
use super::refusal::{Answer, Refusal};

/// The one path that needs no token.
const HEALTH: &str = "/v1/healthz";

/// Who may call, and by which name.
pub(crate) struct Guard {
    listen: SocketAddr,
    allowed: Vec<String>,
    /// Hashed, so that comparing takes the same time for every length.
    token: [u8; 32],
}

impl Guard {
    pub(crate) fn new(listen: SocketAddr, allowed: Vec<String>, token: &str) -> Self {
        Self { listen, allowed, token: Sha256::digest(token.as_bytes()).into() }
    }

    fn check(&self, request: &Request) -> Answer<()> {
        let headers = request.headers();
        let authority = self.host(request)?;
        self.origin(headers, &authority)?;
        if request.uri().path() == HEALTH || self.authorized(headers) {
            return Ok(());
        }
        Err(Refusal::new(Code::Unauthorized, "the bearer token is missing or wrong")
            .help("send `Authorization: Bearer <token>`; the token is in the file `token` of the data folder"))
    }

    /// A page of another site can make a browser resolve its own name to us; the name then gives it away.
    fn host(&self, request: &Request) -> Answer<Authority> {
        let forbidden = |why: &str| Refusal::new(Code::Forbidden, format!("the request's `Host` {why}"));
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(forbidden("is missing or there are several"));
        };
        let host: Authority =
            host.to_str().ok().and_then(|h| h.parse().ok()).ok_or_else(|| forbidden("cannot be read"))?;
        let asked = request.uri().authority();
        if !self.ours(&host) || asked.is_some_and(|asked| *asked != host) {
            return Err(forbidden("is not a name of this server").help(format!("call it by `{}`", self.listen)));
        }
        Ok(host)
    }

    fn ours(&self, host: &Authority) -> bool {
        let name = host.host();
        let port = host.port_u16().unwrap_or(80);
        // `Authority` accepts `user@host`; no client of ours sends it.
        if host.as_str().contains('@') {
            return false;
        }
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let loopback = name.eq_ignore_ascii_case("localhost") || address.as_ref().is_ok_and(IpAddr::is_loopback);
        let own = address.is_ok_and(|ip| ip == self.listen.ip() && !ip.is_unspecified());
        let named =
            |allowed: &String| allowed.eq_ignore_ascii_case(name) || allowed.eq_ignore_ascii_case(host.as_str());
        ((loopback || own) && port == self.listen.port()) || self.allowed.iter().any(named)
    }

    /// Only pages we served ourselves may call us from a browser.
    fn origin(&self, headers: &HeaderMap, host: &Authority) -> Answer<()> {
        let same = |origin: &HeaderValue| {
            let origin = origin.to_str().ok().and_then(|o| o.strip_prefix("http://").or(o.strip_prefix("https://")));
            origin.is_some_and(|o| o.eq_ignore_ascii_case(host.as_str()))
        };
        if headers.get_all(header::ORIGIN).iter().all(same) {
            return Ok(());
        }
        Err(Refusal::new(Code::Forbidden, "the request's `Origin` is another site"))
    }

    fn authorized(&self, headers: &HeaderMap) -> bool {
        let mut sent = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (sent.next(), sent.next()) else { return false };
        let Some((scheme, token)) = value.as_bytes().split_at_checked(7) else { return false };
        let hash: [u8; 32] = Sha256::digest(token).into();
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(hash.ct_eq(&self.token))
    }
}

/// The middleware around every route, also those that do not exist.
pub(crate) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let mut response = match api.guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &str)]) -> Result<(), Code> {
        let guard = Guard::new("127.0.0.1:4000".parse().unwrap(), vec!["sidereal.example".into()], "0123456789abcdef");
        let mut request = axum::http::Request::builder().uri("/v1/version");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard.check(&request.body(axum::body::Body::empty()).unwrap()).map_err(|r| r.problem.code)
    }

    const BEARER: (&str, &str) = ("authorization", "Bearer 0123456789abcdef");

    #[test]
    fn only_our_own_names() {
        for good in [
            "127.0.0.1:4000",
            "localhost:4000",
            "LOCALHOST:4000",
            "[::1]:4000",
            "127.9.9.9:4000",
            "sidereal.example",
            "sidereal.example:80",
        ] {
            assert_eq!(check(&[("host", good), BEARER]), Ok(()), "{good}");
        }
        for bad in [
            "evil.example:4000",
            "localhost",
            "localhost:4001",
            "localhost.evil.example:4000",
            "127.0.0.1.evil.example:4000",
            "app.localhost:4000",
            "10.0.0.1:4000",
            "0.0.0.0:4000",
            "user@localhost:4000",
            "",
            "local host",
            "[::2]:4000",
        ] {
            assert_eq!(check(&[("host", bad), BEARER]), Err(Code::Forbidden), "{bad}");
        }
        assert_eq!(check(&[BEARER]), Err(Code::Forbidden));
        assert_eq!(check(&[("host", "localhost:4000"), ("host", "localhost:4000"), BEARER]), Err(Code::Forbidden));
    }

    #[test]
    fn only_our_own_pages() {
        let host = ("host", "localhost:4000");
        assert_eq!(check(&[host, ("origin", "http://localhost:4000"), BEARER]), Ok(()));
        for bad in [
            "null",
            "http://evil.example",
            "http://localhost:4001",
            "http://127.0.0.1:4000",
            "file://localhost:4000",
            "",
        ] {
            assert_eq!(check(&[host, ("origin", bad), BEARER]), Err(Code::Forbidden), "{bad}");
        }
    }

    #[test]
    fn only_the_token() {
        let host = ("host", "localhost:4000");
        assert_eq!(check(&[host, ("authorization", "bearer 0123456789abcdef")]), Ok(()));
        for bad in [
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef ",
            "Bearer 0123456789abcdeF",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert_eq!(check(&[host, ("authorization", bad)]), Err(Code::Unauthorized), "{bad}");
        }
        assert_eq!(check(&[host, BEARER, BEARER]), Err(Code::Unauthorized));
        assert_eq!(check(&[host]), Err(Code::Unauthorized));
    }
}
