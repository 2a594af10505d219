//! A database in a process beside the platform that speaks wRPC: `sidereal:sql/database@0.1.0`, the functions of the
//! contract's `database`, of which each process has one (see `docs/providers/external.md`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use model::ProviderName;
use model::sql::{Answer, Call, ConstraintKind, MAX_ANSWER, Rows, STATEMENT_MS, SqlError, Statement, Value};
use tokio_util::codec::{Decoder, Encoder};
use wrpc_transport::{Decode, Encode, ListDecoder, Packer, SyncCodec};

use super::{Backend, fitting};
use crate::external::open::number;
use crate::external::{
    AT_FIRST, Answered, CONNECT, CallError, Connect, Function, Kind, Params, Patience, Process, SHORT, words,
};

const DATABASE: &str = "sidereal:sql/database@0.1.0";

/// As [`SHORT`], with rows.
const ROWS: u64 = MAX_ANSWER as u64 + SHORT;
/// The statements of a call have their time, and a process a little more to say that they took it.
const STATEMENTS: Patience = Patience { connect: CONNECT, answer: Duration::from_millis(STATEMENT_MS + 2000) };

/// One app's database in one external process.
pub struct External(Process);

impl External {
    /// The database behind `connect`. Nothing is connected before the first call.
    pub fn new(name: ProviderName, connect: Arc<dyn Connect>) -> Self {
        Self(Process::new(name, connect))
    }

    /// Runs a statement of nothing: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), SqlError> {
        self.asked::<_, Vec<u64>>(AT_FIRST, "batch", Kind::Read, SHORT, (Vec::<(String, Vec<Cell>)>::new(),))
            .await
            .map(drop)
    }

    async fn asked<P: Params + Clone, R: Answered>(
        &self,
        patience: Patience,
        name: &'static str,
        kind: Kind,
        limit: u64,
        params: P,
    ) -> Result<R, SqlError>
    where
        Result<R, Refusal>: Answered,
    {
        let answered = self.0.call(patience, &Function(DATABASE, name, kind, limit), params).await;
        let answered: Result<R, Refusal> = answered.map_err(|cause| match cause {
            CallError::Away(why) => SqlError::Unavailable(why),
            CallError::TimedOut { ms } => SqlError::TimedOut { ms },
            CallError::TooLarge(why) => SqlError::TooLarge(why),
        })?;
        answered.map_err(|refusal| refusal.0)
    }

    async fn answer(&self, call: Call) -> Result<Answer, SqlError> {
        let name = |one: Statement| (one.sql, cells(one.params));
        let statements = call.statements().len();
        let answer = match call {
            Call::Query(one) => {
                // What a statement does only its words say: it is not run again where the process ended under it.
                let answered = self.asked(STATEMENTS, "query", Kind::Write, ROWS, name(one)).await?;
                let (columns, rows): (Vec<String>, Vec<Vec<Cell>>) = answered;
                let values = |row: Vec<Cell>| row.into_iter().map(|cell| cell.0).collect::<Vec<_>>();
                Answer::Rows(Rows { columns, rows: rows.into_iter().map(values).collect() })
            }
            Call::Execute(one) => {
                Answer::Changed(self.asked(STATEMENTS, "execute", Kind::Write, SHORT, name(one)).await?)
            }
            Call::Batch(all) => {
                let all: Vec<_> = all.into_iter().map(name).collect();
                Answer::Each(self.asked(STATEMENTS, "batch", Kind::Write, SHORT, (all,)).await?)
            }
        };
        fitting(answer, statements, |what| self.0.garbage(what))
    }
}

impl Backend for External {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, SqlError>> {
        self.answer(call).boxed()
    }
}

/// A value as it goes over the wire: the number of its kind in the contract, and what it is.
#[derive(Debug, Clone, PartialEq)]
struct Cell(Value);

fn cells(values: Vec<Value>) -> Vec<Cell> {
    values.into_iter().map(Cell).collect()
}

/// A signed number as wRPC has it (LEB128).
fn signed(mut n: i64, out: &mut BytesMut) {
    loop {
        let byte = (n & 0x7f) as u8;
        n >>= 7;
        if (n == 0 && byte & 0x40 == 0) || (n == -1 && byte & 0x40 != 0) {
            return out.put_u8(byte);
        }
        out.put_u8(byte | 0x80);
    }
}

/// Writes a [`Cell`].
#[derive(Debug, Default)]
struct CellEncoder;

impl Encoder<Cell> for CellEncoder {
    type Error = io::Error;

    fn encode(&mut self, Cell(value): Cell, out: &mut BytesMut) -> io::Result<()> {
        let data = |kind, bytes: &[u8], out: &mut BytesMut| {
            out.put_u8(kind);
            number(bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        };
        match value {
            Value::Null => out.put_u8(0),
            Value::Boolean(value) => out.put_slice(&[1, u8::from(value)]),
            Value::Int64(value) => {
                out.put_u8(2);
                signed(value, out);
            }
            Value::Float64(value) => {
                out.put_u8(3);
                out.put_f64_le(value);
            }
            Value::Text(text) => data(4, text.as_bytes(), out),
            Value::Bytes(bytes) => data(5, &bytes, out),
        }
        Ok(())
    }
}

impl Encode<Packer> for Cell {
    type Encoder = SyncCodec<CellEncoder>;
}

/// Reads a [`Cell`]: first which kind it is, then what it is.
#[derive(Default)]
struct CellDecoder {
    number: <u32 as Decode>::Decoder,
    kind: Option<u32>,
    boolean: <bool as Decode>::Decoder,
    int64: <i64 as Decode>::Decoder,
    float64: <f64 as Decode>::Decoder,
    text: <String as Decode>::Decoder,
    bytes: <Bytes as Decode>::Decoder,
}

impl Decoder for CellDecoder {
    type Item = Cell;
    type Error = io::Error;

    fn decode(&mut self, from: &mut BytesMut) -> io::Result<Option<Cell>> {
        if self.kind.is_none() {
            self.kind = self.number.decode(from)?;
        }
        let Some(kind) = self.kind else { return Ok(None) };
        let value = match kind {
            0 => Some(Value::Null),
            1 => self.boolean.decode(from)?.map(Value::Boolean),
            2 => self.int64.decode(from)?.map(Value::Int64),
            3 => self.float64.decode(from)?.map(Value::Float64),
            4 => self.text.decode(from)?.map(Value::Text),
            5 => self.bytes.decode(from)?.map(|bytes| Value::Bytes(bytes.to_vec())),
            n => return Err(no_such("value", n)),
        };
        if value.is_some() {
            self.kind = None;
        }
        Ok(value.map(Cell))
    }
}

impl Decode for Cell {
    type Decoder = SyncCodec<CellDecoder>;
    type ListDecoder = ListDecoder<Self::Decoder>;
}

/// The error of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal(SqlError);

/// Reads a [`Refusal`]: which it is, of a broken rule which one, and what the process says of it.
#[derive(Default)]
struct RefusalDecoder {
    number: <u32 as Decode>::Decoder,
    kind: Option<u32>,
    rule: Option<u32>,
    text: <String as Decode>::Decoder,
}

/// Of [`SqlError`] in the contract: a broken rule, which has a kind of its own.
const CONSTRAINT: u32 = 3;

impl Decoder for RefusalDecoder {
    type Item = Refusal;
    type Error = io::Error;

    fn decode(&mut self, from: &mut BytesMut) -> io::Result<Option<Refusal>> {
        if self.kind.is_none() {
            self.kind = self.number.decode(from)?;
        }
        if self.kind == Some(CONSTRAINT) && self.rule.is_none() {
            self.rule = self.number.decode(from)?;
        }
        let kind = match (self.kind, self.rule) {
            (None, _) | (Some(CONSTRAINT), None) => return Ok(None),
            (Some(0), _) => return Ok(Some(Refusal(SqlError::Unavailable("it has no such database".to_owned())))),
            (Some(kind), _) => kind,
        };
        let rule = match self.rule {
            None | Some(4) => ConstraintKind::Other,
            Some(0) => ConstraintKind::Unique,
            Some(1) => ConstraintKind::NotNull,
            Some(2) => ConstraintKind::ForeignKey,
            Some(3) => ConstraintKind::Check,
            Some(n) => return Err(no_such("rule", n)),
        };
        let Some(text) = self.text.decode(from)? else { return Ok(None) };
        let text = words(&text);
        (self.kind, self.rule) = (None, None);
        Ok(Some(Refusal(match kind {
            1 => SqlError::Invalid(text),
            2 => SqlError::Value(text),
            CONSTRAINT => SqlError::Constraint { kind: rule, message: text },
            4 => SqlError::Conflict(text),
            5 => SqlError::Denied(text),
            6 => SqlError::TooLarge(text),
            7 => SqlError::TimedOut { ms: STATEMENT_MS },
            8 => SqlError::Unavailable(text),
            n => return Err(no_such("error", n)),
        })))
    }
}

impl Decode for Refusal {
    type Decoder = SyncCodec<RefusalDecoder>;
    type ListDecoder = ListDecoder<Self::Decoder>;
}

fn no_such(what: &str, n: u32) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{n} is no {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_refusals_are_read_however_they_are_cut() {
        let values = [
            Value::Null,
            Value::Boolean(true),
            Value::Int64(i64::MIN),
            Value::Int64(-1),
            Value::Int64(64),
            Value::Int64(i64::MAX),
            Value::Float64(-1.5e300),
            Value::Text("naïve".to_owned()),
            Value::Bytes(vec![0, 255]),
        ];
        let mut wire = BytesMut::new();
        for value in &values {
            CellEncoder.encode(Cell(value.clone()), &mut wire).unwrap();
        }
        for size in [1, 2, 7, wire.len()] {
            let (mut decoder, mut here, mut read) = (CellDecoder::default(), BytesMut::new(), Vec::new());
            for piece in wire.chunks(size) {
                here.extend_from_slice(piece);
                while let Some(Cell(value)) = decoder.decode(&mut here).unwrap() {
                    read.push(value);
                    if here.is_empty() {
                        break;
                    }
                }
            }
            assert_eq!(read, values, "{size}");
        }
        let refused = |bytes: &[u8]| RefusalDecoder::default().decode(&mut BytesMut::from(bytes));
        assert_eq!(refused(b"\x01\x02no").unwrap(), Some(Refusal(SqlError::Invalid("no".to_owned()))));
        let broken = SqlError::Constraint { kind: ConstraintKind::ForeignKey, message: "no".to_owned() };
        assert_eq!(refused(b"\x03\x02\x02no").unwrap(), Some(Refusal(broken)));
        assert_eq!(refused(b"\x03").unwrap(), None);
        assert!(refused(b"\x09\x02no").is_err() && refused(b"\x03\x05\x02no").is_err());
        assert!(CellDecoder::default().decode(&mut BytesMut::from(&b"\x06"[..])).is_err());
    }
}
