//! What stands before every handler: the name we were called by, the page that calls, the token, and what it may do. In
//! this order, so that a browser tricked into calling us learns nothing at all.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::problem::Code;
use axum::extract::{FromRequestParts as _, MatchedPath, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use store::audit::{Act, Outcome};

use super::Api;
use super::access::{self, Effect, Need};
use super::bounds::{self, UnderWay};
use super::refusal::{Answer, Refusal, Why};
use super::serve::Peer;
use super::shares::Held;
use crate::audit;
use crate::tokens::Caller;

/// Characters of a path that the audit log keeps.
const PATH: usize = 300;
/// Flags of a change that the audit log keeps; nothing else of a query is.
const FLAGS: [&str; 2] = ["purge-data=true", "force=true"];

/// What a handler says of the change it made, for the audit log.
#[derive(Debug, Clone)]
pub(super) struct Said(pub(super) String);

/// By which name we may be called.
pub(crate) struct Guard {
    listen: SocketAddr,
    allowed: Vec<String>,
}

impl Guard {
    pub(crate) fn new(listen: SocketAddr, allowed: Vec<String>) -> Self {
        Self { listen, allowed }
    }

    fn check(&self, request: &Parts) -> Answer<()> {
        let authority = self.host(request)?;
        self.origin(&request.headers, &authority)
    }

    /// A page of another site can make a browser resolve its own name to us; the name then gives it away.
    fn host(&self, request: &Parts) -> Answer<Authority> {
        let forbidden = |why: &str| Refusal::new(Code::Forbidden, format!("the request's `Host` {why}"));
        let mut hosts = request.headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(forbidden("is missing or there are several"));
        };
        let host: Authority =
            host.to_str().ok().and_then(|h| h.parse().ok()).ok_or_else(|| forbidden("cannot be read"))?;
        let asked = request.uri.authority();
        if !self.ours(&host) || asked.is_some_and(|asked| *asked != host) {
            // Whoever listens everywhere has no name until somebody gives it one.
            let help = match self.listen.ip().is_unspecified() {
                true => format!(
                    "call it by `localhost:{}`, or by a name it was given: sidereal up --api-name NAME",
                    self.listen.port()
                ),
                false => format!("call it by `{}`", self.listen),
            };
            return Err(forbidden("is not a name of this server").help(help));
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
}

/// The one token that was sent, if it is one.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut sent = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (sent.next(), sent.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// A request that may go on, and what the audit log says of it.
struct Admitted {
    request: Request,
    effect: Effect,
    act: Act,
    /// Of its body, until it is answered.
    room: Option<Held>,
    /// Among the changes of its tenant, until it is answered.
    place: Option<UnderWay>,
}

/// Lets a request through to its handler, which then finds a [`Caller`] in it; else also says who was refused.
async fn admit(api: &Api, request: Request) -> Result<Admitted, Box<(Refusal, Act)>> {
    let peer = request.extensions().get::<Peer>().map_or_else(String::new, |Peer(peer)| peer.to_string());
    let (mut parts, body) = request.into_parts();
    let route = MatchedPath::from_request_parts(&mut parts, &()).await.ok();
    // What is no route can be anything, also a secret that was pasted into the wrong place.
    let path: String = route.as_ref().map_or("(no such path)", |_| parts.uri.path()).chars().take(PATH).collect();
    let mut act = audit::act(audit::NOBODY.to_owned(), None, peer, format!("{} {path}", parts.method));
    let refused = |refusal: Refusal, act: &Act| Err(Box::new((refusal, act.clone())));
    if let Err(refusal) = api.guard.check(&parts) {
        return refused(refusal, &act);
    }
    let (need, effect) = match &route {
        Some(route) => access::needs(&parts.method, route.as_str()),
        // What is no route is said to whoever has a token.
        None => (Need::Token, Effect::Reads),
    };
    let flags = parts.uri.query().unwrap_or_default().split('&');
    let flags: Vec<&str> = flags.filter(|flag| effect == Effect::Changes && FLAGS.contains(flag)).collect();
    if !flags.is_empty() {
        act.what = format!("{}?{}", act.what, flags.join("&"));
    }
    if need == Need::Nobody {
        return Ok(Admitted { request: Request::from_parts(parts, body), effect, act, room: None, place: None });
    }
    let caller = match api.tokens.caller(bearer(&parts.headers)).await {
        Ok(caller) => caller,
        Err(refusal) => return refused(refusal, &act),
    };
    // As the handler will read it: decoded, and by the router's own rules.
    let names = RawPathParams::from_request_parts(&mut parts, &()).await.ok();
    let tenant = names.as_ref().and_then(|names| names.iter().find(|(name, _)| *name == "tenant")).map(|(_, t)| t);
    act.who = caller.name();
    act.tenant = match &caller {
        Caller::Operator => tenant.and_then(|tenant| tenant.parse().ok()),
        Caller::Member { tenant, .. } => Some(tenant.clone()),
    };
    if let Err(refusal) = access::admit(&caller, need, tenant) {
        return refused(refusal, &act);
    }
    let (mut room, mut place) = (None, None);
    if let Caller::Member { tenant, id, .. } = &caller {
        if effect == Effect::Changes {
            let begun = api.writer.active(tenant).await.and_then(|()| api.bounds.change(tenant, id));
            place = match begun.and_then(|place| api.audit.room().map(|()| place)) {
                Ok(place) => Some(place),
                Err(refusal) => return refused(refusal, &act),
            };
        }
        if effect == Effect::Reads {
            let read = match api.bounds.read(tenant, id).await {
                // Its token may have ended meanwhile.
                Ok(true) => api.tokens.still(&caller).await,
                read => read.map(drop),
            };
            if let Err(refusal) = read {
                return refused(refusal, &act);
            }
        }
        let size = bounds::size(route.as_ref().map_or("", MatchedPath::as_str), &body);
        room = match api.bounds.body(tenant, size).await {
            Ok(room) => room,
            Err(refusal) => return refused(refusal, &act),
        };
    }
    parts.extensions.insert(caller);
    Ok(Admitted { request: Request::from_parts(parts, body), effect, act, room, place })
}

/// The same line, saying what came of it.
fn ended(act: Act, begun: Option<u64>, response: &Response) -> Act {
    let code = response.extensions().get::<Why>().map(|why| why.code.as_str().to_owned());
    let outcome = if response.status().is_success() { Outcome::Done } else { Outcome::Refused };
    let what = match response.extensions().get::<Said>() {
        Some(Said(said)) => format!("{}: {said}", act.what),
        None => act.what,
    };
    Act { what, outcome, status: Some(response.status().as_u16()), code, begun, ..act }
}

async fn answer(api: Arc<Api>, request: Request, next: Next) -> Response {
    let Admitted { request, effect, act, room, place } = match admit(&api, request).await {
        Ok(admitted) => admitted,
        Err(refused) => {
            let (refusal, act) = *refused;
            let response = refusal.into_response();
            api.audit.refused(ended(act, None, &response)).await;
            return response;
        }
    };
    if effect == Effect::Reads {
        let response = next.run(request).await;
        if response.extensions().get::<Why>().is_some_and(|why| why.denied) {
            api.audit.refused(ended(act, None, &response)).await;
        }
        return response;
    }
    let begun = match api.audit.write(act.clone()).await {
        Ok(number) => number,
        Err(refusal) => return refusal.into_response(),
    };
    // A task of its own: what was begun ends, and is written down, also where the caller hangs up.
    let changing = tokio::spawn(async move {
        let response = next.run(request).await;
        drop((room, place));
        if let Err(cause) = api.audit.write(ended(act, Some(begun), &response)).await {
            tracing::error!(begun, cause = %cause.problem, "what came of a change is not in the audit log");
        }
        response
    });
    let ended = changing.await;
    ended.unwrap_or_else(|cause| Refusal::new(Code::Internal, format!("a change ended badly: {cause}")).into_response())
}

/// The middleware around every route, also those that do not exist.
pub(crate) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let mut response = answer(api, request, next).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &str)]) -> Result<(), Code> {
        let guard = Guard::new("127.0.0.1:4000".parse().unwrap(), vec!["sidereal.example".into()]);
        let mut request = axum::http::Request::builder().uri("/v1/version");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard.check(&request.body(()).unwrap().into_parts().0).map_err(|r| r.problem.code)
    }

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
            assert_eq!(check(&[("host", good)]), Ok(()), "{good}");
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
            assert_eq!(check(&[("host", bad)]), Err(Code::Forbidden), "{bad}");
        }
        assert_eq!(check(&[]), Err(Code::Forbidden));
        assert_eq!(check(&[("host", "localhost:4000"), ("host", "localhost:4000")]), Err(Code::Forbidden));
    }

    #[test]
    fn whoever_listens_everywhere_is_called_by_loopback_or_by_a_name_it_was_given() {
        for listen in ["0.0.0.0:4000", "[::]:4000"] {
            let guard = Guard::new(listen.parse().unwrap(), vec!["api.example:4000".into(), "10.0.0.5".into()]);
            let ask = |host: &str| {
                let request = axum::http::Request::builder().uri("/v1/version").header("host", host).body(()).unwrap();
                guard.check(&request.into_parts().0).map_err(|refusal| refusal.problem.help.unwrap_or_default())
            };
            for good in ["127.0.0.1:4000", "[::1]:4000", "localhost:4000", "api.example:4000", "10.0.0.5:4000"] {
                assert_eq!(ask(good), Ok(()), "{listen} {good}");
            }
            for bad in [listen, "10.0.0.6:4000", "api.example:4001", "evil.example:4000"] {
                assert!(ask(bad).unwrap_err().contains("--api-name"), "{listen} {bad}");
            }
        }
    }

    #[test]
    fn only_our_own_pages() {
        let host = ("host", "localhost:4000");
        assert_eq!(check(&[host, ("origin", "http://localhost:4000")]), Ok(()));
        for bad in [
            "null",
            "http://evil.example",
            "http://localhost:4001",
            "http://127.0.0.1:4000",
            "file://localhost:4000",
            "",
        ] {
            assert_eq!(check(&[host, ("origin", bad)]), Err(Code::Forbidden), "{bad}");
        }
    }

    #[test]
    fn one_bearer_token_and_nothing_like_it() {
        let token = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(token(&["bearer 0123456789abcdef"]).unwrap(), b"0123456789abcdef");
        for bad in [&["Bearer"][..], &["Basic 0123456789abcdef"], &["0123456789abcdef"], &["Bearer a", "Bearer a"], &[]]
        {
            assert_eq!(token(bad), None, "{bad:?}");
        }
    }
}
