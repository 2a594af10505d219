//! What the environment says about OpenTelemetry, read once and strictly: the names are those of its specification.

use http::uri::{PathAndQuery, Scheme, Uri};
use http::{HeaderName, HeaderValue};

/// Where and what to export.
#[derive(Debug, Clone)]
pub struct OtlpConfig {
    /// `http://host:port[/path]`; `/v1/traces` and `/v1/logs` are appended.
    pub endpoint: Uri,
    /// Fields of every request, for example credentials.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The name of the ingress among services.
    pub service: String,
    /// Further attributes of every resource.
    pub attributes: Vec<(String, String)>,
    /// Which traces that begin here are recorded.
    pub sampler: Sampler,
    /// Spans are exported.
    pub traces: bool,
    /// Log lines are exported.
    pub logs: bool,
}

/// Which traces are recorded that come without a decision; a decision that comes with a request is followed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampler {
    /// All.
    Always,
    /// None.
    Never,
    /// This part of all, 0 to 1, by trace id.
    Ratio(f64),
}

impl Sampler {
    /// The part of all traces that is recorded, 0 to 1.
    pub fn part(self) -> f64 {
        match self {
            Self::Always => 1.0,
            Self::Never => 0.0,
            Self::Ratio(ratio) => ratio,
        }
    }
}

/// The environment asks for something that cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is `{value}`: {why}")]
pub struct OtlpError {
    /// The variable.
    pub name: &'static str,
    /// What it says.
    pub value: String,
    /// What is expected.
    pub why: &'static str,
}

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const SERVICE: &str = "OTEL_SERVICE_NAME";
const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
const TRACES: &str = "OTEL_TRACES_EXPORTER";
const LOGS: &str = "OTEL_LOGS_EXPORTER";

impl OtlpConfig {
    /// From the process's environment; `None` where no endpoint is named.
    ///
    /// # Errors
    /// [`OtlpError`]: what is not understood is refused, not ignored.
    pub fn from_env() -> Result<Option<Self>, OtlpError> {
        Self::read(|name| std::env::var(name).ok())
    }

    pub(crate) fn read(var: impl Fn(&'static str) -> Option<String>) -> Result<Option<Self>, OtlpError> {
        // An empty variable counts as absent, says the specification.
        let var = |name| var(name).filter(|value| !value.trim().is_empty());
        let Some(text) = var(ENDPOINT) else { return Ok(None) };
        if let Some(protocol) = var(PROTOCOL).filter(|protocol| protocol != "http/protobuf") {
            return Err(bad(PROTOCOL, &protocol, "only http/protobuf is spoken"));
        }
        // Credentials: the value is not repeated.
        let pairs =
            var(HEADERS).map(|text| list(&text).ok_or_else(|| bad(HEADERS, "…", "expected name=value,name=value")));
        let pairs = pairs.transpose()?.unwrap_or_default();
        let headers = pairs.iter().map(|(name, value)| {
            let mut value = HeaderValue::try_from(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name).ok()?, value))
        });
        let headers = headers.collect::<Option<_>>().ok_or_else(|| bad(HEADERS, "…", "not header fields"))?;
        let attributes = match var(ATTRIBUTES) {
            None => Vec::new(),
            Some(text) => list(&text).ok_or_else(|| bad(ATTRIBUTES, &text, "expected name=value,name=value"))?,
        };
        let exported = |name| match var(name).as_deref() {
            None | Some("otlp") => Ok(true),
            Some("none") => Ok(false),
            Some(other) => Err(bad(name, other, "expected `otlp` or `none`")),
        };
        Ok(Some(Self {
            endpoint: endpoint(&text).ok_or_else(|| {
                bad(ENDPOINT, &text, "expected http://host:port; for TLS put a collector on this machine")
            })?,
            headers,
            service: var(SERVICE).unwrap_or_else(|| "sidereal".to_owned()),
            attributes,
            sampler: sampler(var(SAMPLER).as_deref(), var(SAMPLER_ARG).as_deref())?,
            traces: exported(TRACES)?,
            logs: exported(LOGS)?,
        }))
    }

    /// Where a signal goes: `traces` or `logs`.
    pub(super) fn url(&self, signal: &str) -> Uri {
        let mut parts = self.endpoint.clone().into_parts();
        let base = self.endpoint.path().trim_end_matches('/');
        parts.path_and_query = PathAndQuery::try_from(format!("{base}/v1/{signal}")).ok();
        Uri::from_parts(parts).unwrap_or_else(|_| self.endpoint.clone())
    }
}

fn bad(name: &'static str, value: &str, why: &'static str) -> OtlpError {
    OtlpError { name, value: value.to_owned(), why }
}

fn endpoint(text: &str) -> Option<Uri> {
    let uri: Uri = text.trim().parse().ok()?;
    let plain = uri.scheme() == Some(&Scheme::HTTP) && uri.host().is_some() && uri.query().is_none();
    plain.then_some(uri)
}

/// `name=value,name=value`, values percent-encoded.
fn list(text: &str) -> Option<Vec<(String, String)>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.trim().to_owned(), decode(value.trim())?)).filter(|(name, _)| !name.is_empty())
        })
        .collect()
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
        out.push(u8::from_str_radix(hex, 16).ok()?);
        rest = rest.get(2..)?;
    }
    String::from_utf8(out).ok()
}

fn sampler(name: Option<&str>, arg: Option<&str>) -> Result<Sampler, OtlpError> {
    match name {
        None | Some("parentbased_always_on") => Ok(Sampler::Always),
        Some("parentbased_always_off") => Ok(Sampler::Never),
        Some("parentbased_traceidratio") => {
            let arg = arg.unwrap_or("1");
            let ratio = arg.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
            ratio.map(Sampler::Ratio).ok_or_else(|| bad(SAMPLER_ARG, arg, "expected a number from 0 to 1"))
        }
        Some(other) => Err(bad(
            SAMPLER,
            other,
            "expected parentbased_always_on, parentbased_always_off or parentbased_traceidratio",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&'static str, &str)]) -> Result<Option<OtlpConfig>, OtlpError> {
        OtlpConfig::read(|name| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn nothing_is_exported_unless_an_endpoint_is_named() {
        assert!(read(&[]).unwrap().is_none());
        assert!(read(&[(ENDPOINT, " "), (SAMPLER, "nonsense")]).unwrap().is_none());
    }

    #[test]
    fn the_environment_is_read_as_the_specification_says() {
        let config = read(&[
            (ENDPOINT, "http://127.0.0.1:4318/base/"),
            (HEADERS, "authorization=Basic%20abc, x-scope=1"),
            (ATTRIBUTES, "deployment.environment.name=test"),
            (SAMPLER, "parentbased_traceidratio"),
            (SAMPLER_ARG, "0.25"),
            (LOGS, "none"),
        ]);
        let config = config.unwrap().unwrap();
        assert_eq!(config.url("traces").to_string(), "http://127.0.0.1:4318/base/v1/traces");
        assert_eq!(config.headers[0].1, "Basic abc");
        assert!(!format!("{config:?}").contains("abc"), "credentials are not shown");
        assert_eq!((config.sampler, config.traces, config.logs), (Sampler::Ratio(0.25), true, false));
        assert_eq!(config.attributes, [("deployment.environment.name".to_owned(), "test".to_owned())]);
        let root = read(&[(ENDPOINT, "http://collector:4318")]).unwrap().unwrap();
        assert_eq!(root.url("logs").to_string(), "http://collector:4318/v1/logs");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (name, value) in [
            (ENDPOINT, "https://collector:4318"),
            (ENDPOINT, "collector:4318"),
            (PROTOCOL, "grpc"),
            (HEADERS, "novalue"),
            (HEADERS, "a b=1"),
            (SAMPLER, "always_on"),
            (TRACES, "jaeger"),
            (ATTRIBUTES, "=x"),
        ] {
            let error = read(&[(name, value), (ENDPOINT, "http://c:4318")]).unwrap_err();
            assert_eq!(error.name, name);
        }
        assert!(read(&[(ENDPOINT, "http://c"), (SAMPLER, "parentbased_traceidratio"), (SAMPLER_ARG, "2")]).is_err());
    }
}
