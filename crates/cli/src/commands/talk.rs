//! `logs` and `call`: listening to a component and speaking to it.

use std::io::{ErrorKind, Read as _};

use anyhow::Context as _;
use api::agent::{LogLine, LogStream};
use api::control::CallRequest;
use api::node::LogQuery;
use api::{Code, Problem};
use data_encoding::BASE64;
use futures::StreamExt as _;
use model::{AppName, ComponentName};

use crate::args::{Call, Logs};
use crate::context::{Context, broken_off, refused};
use crate::output::{clock, raw, stdout};

/// `sidereal logs`
///
/// # Errors
/// When there is no such app; with `--follow`, when the platform stops or the token ends.
pub async fn logs(context: &Context, args: Logs) -> anyhow::Result<()> {
    let client = context.client()?;
    let chosen = args.component.is_some() || args.instance.is_some() || args.level.is_some() || args.since.is_some();
    let query = LogQuery {
        component: args.component,
        instance: args.instance,
        level: args.level,
        since: args.since,
        last: args.last.unwrap_or(if args.since.is_some() { 10_000 } else { 100 }),
        follow: args.follow,
    };
    let mut lines = client.logs(&context.tenant, &args.app, query).await.map_err(refused)?;
    let mut any = false;
    while let Some(line) = lines.next().await {
        let line = line.map_err(refused)?;
        any = true;
        if context.out.json() { context.out.result(&line, String::new) } else { stdout(&pretty(&line)) }
    }
    if args.follow {
        return Err(broken_off(&format!("the log of {}", args.app)));
    }
    if !any {
        let what = if chosen { "has logged nothing of this kind" } else { "has logged nothing yet" };
        context.out.note(&format!("{} {what}", args.app));
    }
    Ok(())
}

fn pretty(line: &LogLine) -> String {
    let time = clock(line.time_ms);
    let stream = match line.stream {
        LogStream::Stdout => "out",
        LogStream::Stderr => "err",
        LogStream::Trace => "trace",
        LogStream::Debug => "debug",
        LogStream::Info => "info",
        LogStream::Warn => "warn",
        LogStream::Error => "error",
        LogStream::Critical => "critical",
        LogStream::Platform => "platform",
    };
    let context = if line.context.is_empty() { String::new() } else { format!(" [{}]", line.context) };
    let instance = if line.instance.is_empty() { "-" } else { &line.instance };
    format!("{time} {} {instance} r{} {stream:<8}{context} {}", line.component, line.revision, line.text)
}

/// `sidereal call`
///
/// # Errors
/// When the component cannot be called. A status of 400 or more is an answer, and exit 1.
pub async fn call(context: &Context, args: Call) -> anyhow::Result<bool> {
    let (app, component) = target(&args.target)?;
    let headers = args.headers.iter().map(|field| {
        let (name, value) = field.split_once(':').ok_or_else(|| {
            Problem::new(Code::RequestInvalid, format!("`{field}` is no header field")).help("write -H 'name: value'")
        })?;
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    });
    let request = CallRequest {
        component,
        method: args.method.unwrap_or_else(|| method(args.data.is_some()).to_owned()),
        path: args.path,
        headers: headers.collect::<Result<_, Problem>>()?,
        body: BASE64.encode(&body(args.data.as_deref())?),
    };
    let answer = context.client()?.call(&context.tenant, &app, &request).await.map_err(refused)?;
    let bytes = BASE64.decode(answer.body.as_bytes()).context("the answer's body is not base64")?;
    if context.out.json() {
        context.out.result(&answer, String::new);
        return Ok(answer.status < 400);
    }
    let mut head = String::new();
    if args.include {
        head.push_str(&format!("{}\n", answer.status));
        answer.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\n")));
        head.push('\n');
    }
    // Byte for byte: it may be an image.
    raw(&[head.as_bytes(), &bytes]);
    Ok(answer.status < 400)
}

/// What is meant where no method is named.
fn method(body: bool) -> &'static str {
    if body { "POST" } else { "GET" }
}

/// `APP` or `APP/COMPONENT`.
fn target(text: &str) -> Result<(AppName, Option<ComponentName>), Problem> {
    let odd = |cause: String| {
        Problem::new(Code::RequestInvalid, format!("`{text}` names nothing that can be called: {cause}"))
            .help("write APP or APP/COMPONENT; `sidereal status` shows the apps")
    };
    let (app, component) = match text.split_once('/') {
        Some((app, component)) => (app, Some(component.parse().map_err(|cause| odd(format!("{cause}")))?)),
        None => (text, None),
    };
    Ok((app.parse().map_err(|cause| odd(format!("{cause}")))?, component))
}

fn body(data: Option<&str>) -> anyhow::Result<Vec<u8>> {
    match data.map(|data| (data, data.strip_prefix('@'))) {
        None => Ok(Vec::new()),
        Some((_, Some("-"))) => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read stdin")?;
            Ok(bytes)
        }
        Some((_, Some(file))) => Ok(std::fs::read(file).map_err(|cause| {
            let code = match cause.kind() {
                ErrorKind::NotFound => Code::NotFound,
                _ => Code::RequestInvalid,
            };
            Problem::new(code, format!("cannot read the body from `{file}`: {cause}"))
                .help("after -d, `@FILE` is a file's content, `@-` is stdin, anything else is the body itself")
        })?),
        Some((text, None)) => Ok(text.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_called_is_the_callers_fault() {
        assert!(target("counter").is_ok_and(|(app, component)| app.as_str() == "counter" && component.is_none()));
        assert!(target("counter/api").is_ok_and(|(_, component)| component.is_some()));
        for odd in ["a/b/c", "/", "a/", "/a", "A", ""] {
            assert_eq!(target(odd).unwrap_err().code, Code::RequestInvalid, "{odd}");
        }
        let dir = tempfile::tempdir().unwrap();
        let code = |file: &std::path::Path| {
            let error = body(Some(&format!("@{}", file.display()))).unwrap_err();
            error.downcast_ref::<Problem>().map(|problem| problem.code)
        };
        assert_eq!(code(&dir.path().join("missing")), Some(Code::NotFound));
        assert_eq!(code(dir.path()), Some(Code::RequestInvalid));
    }
}
