//! Exports `wasmcloud:secrets`, `wasmcloud:messaging/consumer` and `sidereal:sql/client`, and imports them: a component
//! that stands before a store of secrets, a broker and a database. It says of every secret that it was seen, passes no
//! message on of which the subject begins with `private`, and drops no table.
mod bindings {
    wit_bindgen::generate!({
        path: ["../wit/secrets", "../wit/messaging", "../wit/sql"],
        inline: "
            package sidereal:go-between;
            world provider {
                import wasmcloud:secrets/store@0.1.0-draft;
                import wasmcloud:secrets/reveal@0.1.0-draft;
                import wasmcloud:messaging/consumer@0.2.0;
                import sidereal:sql/client@0.1.0;
                export wasmcloud:secrets/store@0.1.0-draft;
                export wasmcloud:secrets/reveal@0.1.0-draft;
                export wasmcloud:messaging/consumer@0.2.0;
                export sidereal:sql/client@0.1.0;
            }
        ",
        world: "sidereal:go-between/provider",
        generate_all,
    });
}

use bindings::exports::sidereal::sql::client;
use bindings::exports::wasmcloud::messaging::consumer;
use bindings::exports::wasmcloud::secrets::{reveal, store};
use bindings::sidereal::sql::client as databases;
use bindings::sidereal::sql::types::{Error, Rows, Statement, Value};
use bindings::wasmcloud::messaging::consumer as broker;
use bindings::wasmcloud::messaging::types::BrokerMessage;
use bindings::wasmcloud::secrets as theirs;

struct Between;

struct Seen(theirs::store::Secret);

impl store::GuestSecret for Seen {}

impl store::Guest for Between {
    type Secret = Seen;

    fn get(key: String) -> Result<store::Secret, store::SecretsError> {
        if key == "forbidden" {
            return Err(store::SecretsError::Upstream("the go-between gives none of these".to_owned()));
        }
        match theirs::store::get(&key) {
            Ok(secret) => Ok(store::Secret::new(Seen(secret))),
            Err(theirs::store::SecretsError::NotFound) => Err(store::SecretsError::NotFound),
            Err(theirs::store::SecretsError::Upstream(text)) => Err(store::SecretsError::Upstream(text)),
            Err(theirs::store::SecretsError::Io(text)) => Err(store::SecretsError::Io(text)),
        }
    }
}

impl reveal::Guest for Between {
    fn reveal(secret: store::SecretBorrow<'_>) -> store::SecretValue {
        match theirs::reveal::reveal(&secret.get::<Seen>().0) {
            theirs::store::SecretValue::String(text) => store::SecretValue::String(format!("seen:{text}")),
            theirs::store::SecretValue::Bytes(bytes) => store::SecretValue::Bytes(bytes),
        }
    }
}

fn passes(subject: &str) -> Result<(), String> {
    match subject.starts_with("private") {
        true => Err(format!("the go-between does not pass on `{subject}`")),
        false => Ok(()),
    }
}

impl consumer::Guest for Between {
    fn request(subject: String, body: Vec<u8>, timeout_ms: u32) -> Result<BrokerMessage, String> {
        passes(&subject)?;
        broker::request(&subject, &body, timeout_ms)
    }

    fn publish(message: BrokerMessage) -> Result<(), String> {
        passes(&message.subject)?;
        broker::publish(&message)
    }
}

struct Database(databases::Database);

fn keeps(sql: &str) -> Result<(), Error> {
    match sql.trim_start().get(..4).is_some_and(|word| word.eq_ignore_ascii_case("drop")) {
        true => Err(Error::Denied("the go-between drops nothing".to_owned())),
        false => Ok(()),
    }
}

impl client::GuestDatabase for Database {
    fn query(&self, sql: String, params: Vec<Value>) -> Result<Rows, Error> {
        keeps(&sql)?;
        self.0.query(&sql, &params)
    }

    fn execute(&self, sql: String, params: Vec<Value>) -> Result<u64, Error> {
        keeps(&sql)?;
        self.0.execute(&sql, &params)
    }

    fn batch(&self, statements: Vec<Statement>) -> Result<Vec<u64>, Error> {
        statements.iter().try_for_each(|one| keeps(&one.sql))?;
        self.0.batch(&statements)
    }
}

impl client::Guest for Between {
    type Database = Database;

    fn open(name: String) -> Result<client::Database, Error> {
        Ok(client::Database::new(Database(databases::open(&name)?)))
    }
}

bindings::export!(Between with_types_in bindings);
