//! Every operation of `sidereal:sql`, commanded by the request: `/<operation>/<database>`, `-` for the one without a name.
//!
//! The body has one statement a line, its parameters after it, with tabs between: `n:` null, `b:true`, `i:1`, `f:1.5`,
//! `t:text`, `x:00ff`. `query` and `execute` take the first line, `batch` all. Rows come back one a line in the same form,
//! under the names of the columns. Status: 200, 502 an error (its kind and text), 400 not a command.
use guests::sidereal::sql::client::{self, Database};
use guests::sidereal::sql::types::{Error, Statement, Value};
use guests::wasi::io::streams::StreamError;
use guests::{Guest, IncomingRequest, ResponseOutparam};

struct Probe;

impl Guest for Probe {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, query) = guests::target(&request);
        let parts: Vec<String> = path.trim_start_matches('/').split('/').map(guests::decode).collect();
        let body = match guests::param(&query, "sql") {
            Some(sql) => sql,
            None => body(&request),
        };
        let (status, text) = match (parts.as_slice(), statements(&body)) {
            ([operation, name], Some(statements)) => {
                match run(operation, if name == "-" { "" } else { name }, statements) {
                    Ok(Some(text)) => (200, text),
                    Ok(None) => (400, "no such command".to_owned()),
                    Err(error) => (502, said(error)),
                }
            }
            _ => (400, "no such command".to_owned()),
        };
        guests::reply(out, status, &text);
    }
}

fn run(operation: &str, name: &str, mut statements: Vec<Statement>) -> Result<Option<String>, Error> {
    let database: Database = client::open(name)?;
    let first = statements.first().cloned();
    Ok(match (operation, first) {
        ("query", Some(one)) => {
            let answer = database.query(&one.sql, &one.params)?;
            let mut lines = vec![answer.columns.join("\t")];
            lines.extend(answer.rows.iter().map(|row| row.iter().map(shown).collect::<Vec<_>>().join("\t")));
            Some(lines.join("\n"))
        }
        ("execute", Some(one)) => Some(database.execute(&one.sql, &one.params)?.to_string()),
        ("batch", _) => {
            let counts = database.batch(&std::mem::take(&mut statements))?;
            Some(counts.iter().map(u64::to_string).collect::<Vec<_>>().join(" "))
        }
        _ => None,
    })
}

fn said(error: Error) -> String {
    match error {
        Error::NoSuchDatabase => "no-such-database".to_owned(),
        Error::Invalid(text) => format!("invalid: {text}"),
        Error::Value(text) => format!("value: {text}"),
        Error::Constraint(broken) => format!("constraint {:?}: {}", broken.kind, broken.message),
        Error::Conflict(text) => format!("conflict: {text}"),
        Error::Denied(text) => format!("denied: {text}"),
        Error::TooLarge(text) => format!("too-large: {text}"),
        Error::Timeout(text) => format!("timeout: {text}"),
        Error::Unavailable(text) => format!("unavailable: {text}"),
    }
}

fn statements(body: &str) -> Option<Vec<Statement>> {
    let one = |line: &str| {
        let mut parts = line.split('\t');
        let sql = parts.next()?.to_owned();
        Some(Statement { sql, params: parts.map(value).collect::<Option<_>>()? })
    };
    body.lines().filter(|line| !line.is_empty()).map(one).collect()
}

fn value(text: &str) -> Option<Value> {
    let (kind, rest) = text.split_once(':')?;
    Some(match kind {
        "n" => Value::Null,
        "b" => Value::Boolean(rest.parse().ok()?),
        "i" => Value::Int64(rest.parse().ok()?),
        "f" => Value::Float64(rest.parse().ok()?),
        "t" => Value::Text(rest.to_owned()),
        "x" => Value::Bytes(
            rest.as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    })
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "n:".to_owned(),
        Value::Boolean(value) => format!("b:{value}"),
        Value::Int64(value) => format!("i:{value}"),
        Value::Float64(value) => format!("f:{value}"),
        Value::Text(value) => format!("t:{value}"),
        Value::Bytes(value) => {
            format!("x:{}", value.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
    }
}

fn body(request: &IncomingRequest) -> String {
    let Ok(body) = request.consume() else { return String::new() };
    let mut all = Vec::new();
    if let Ok(stream) = body.stream() {
        loop {
            match stream.blocking_read(64 << 10) {
                Ok(mut some) => all.append(&mut some),
                Err(StreamError::Closed | StreamError::LastOperationFailed(_)) => break,
            }
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

guests::export!(Probe);
