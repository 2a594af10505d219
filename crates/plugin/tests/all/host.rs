//! An agent's side of a plugin: launching the program, its handshake, its clients. For whatever driver it is; those that tests
//! of other crates launch come here too.
#![allow(dead_code, reason = "each of the suites that launch a plugin uses a part of it")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use plugin::contracts::grpc::health::v1::health_client::HealthClient;
use plugin::contracts::hashicorp::nomad::plugins::base::proto::base_plugin_client::BasePluginClient;
use plugin::contracts::hashicorp::nomad::plugins::base::proto::{NomadConfig, SetConfigRequest};
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::driver_client::DriverClient;
use plugin::contracts::hashicorp::nomad::plugins::shared::hclspec::Spec;
use plugin::contracts::plugin::grpc_broker_client::GrpcBrokerClient;
use plugin::contracts::plugin::grpc_controller_client::GrpcControllerClient;
use plugin::contracts::plugin::grpc_stdio_client::GrpcStdioClient;
use plugin::handshake::{COOKIE, COOKIE_NAME};
use prost::bytes::{Buf as _, BufMut as _};
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::block::block;

/// For what happens soon, also on a slow machine with much to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// The largest message, as hosts have it.
const MAX: usize = i32::MAX as usize;

/// A running plugin process.
pub struct Process {
    child: Child,
    /// What it said on stderr.
    pub log: Arc<Mutex<String>>,
    /// The handshake line.
    pub line: String,
    /// What it printed on stdout after that line.
    pub rest: Arc<Mutex<String>>,
    deaf: Arc<AtomicBool>,
}

impl Process {
    /// Launches the plugin with the environment agents give it, changed by `env`.
    pub fn launch(program: &str, env: &[(&str, &str)]) -> Self {
        Self::of(Command::new(program), env)
    }

    /// As [`Process::launch`], by a command that becomes the plugin.
    pub fn of(mut command: Command, env: &[(&str, &str)]) -> Self {
        command
            .env(COOKIE_NAME, COOKIE)
            .env("PLUGIN_PROTOCOL_VERSIONS", "2")
            .env("PLUGIN_MIN_PORT", "10000")
            .env("PLUGIN_MAX_PORT", "25000")
            .env_remove("RUST_BACKTRACE")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let until = Instant::now() + PATIENCE;
        let mut child = loop {
            match command.spawn() {
                // A script that was just written: a child of another test had it open, too, between its fork and its exec.
                Err(cause) if cause.kind() == std::io::ErrorKind::ExecutableFileBusy && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                spawned => break spawned.unwrap(),
            }
        };
        let log = Arc::new(Mutex::new(String::new()));
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let deaf = Arc::new(AtomicBool::new(false));
        let (lines, leaves) = (log.clone(), deaf.clone());
        std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|count| count > 0) {
                lines.lock().unwrap().push_str(&std::mem::take(&mut line));
                if leaves.load(SeqCst) {
                    break;
                }
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let rest = Arc::new(Mutex::new(String::new()));
        let more = rest.clone();
        std::thread::spawn(move || {
            let mut text = String::new();
            drop(stdout.read_to_string(&mut text));
            more.lock().unwrap().push_str(&text);
        });
        Self { child, log, line: line.trim_end().to_owned(), rest, deaf }
    }

    /// Its host is gone: after the next line nobody reads its log any more.
    pub fn orphan(&self) {
        self.deaf.store(true, SeqCst);
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end. Agents wait two seconds; a machine with much else to do may need five times as long for the same.
    pub fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the plugin does not end: {}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A connection as hosts make it: at once, without waiting for anything after the line.
    pub async fn connect(&self) -> Channel {
        connect(&self.line).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Connects to where a handshake line says.
pub async fn connect(line: &str) -> Channel {
    let fields: Vec<String> = line.split('|').map(str::to_owned).collect();
    assert!(fields.len() >= 5 && fields[0] == "1" && fields[1] == "2" && fields[4] == "grpc", "{line}");
    let (network, address) = (fields[2].clone(), fields[3].clone());
    let endpoint = Endpoint::from_static("http://plugin.local");
    match network.as_str() {
        "unix" => {
            let service = tower::service_fn(move |_| {
                let address = address.clone();
                async move { UnixStream::connect(address).await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector(service).await.unwrap()
        }
        "tcp" => {
            let service = tower::service_fn(move |_| {
                let address = address.clone();
                async move { TcpStream::connect(address).await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector(service).await.unwrap()
        }
        other => panic!("a plugin on the network {other}"),
    }
}

/// The clients of one connection.
#[derive(Clone)]
pub struct Clients {
    pub base: BasePluginClient<Channel>,
    pub driver: DriverClient<Channel>,
    pub controller: GrpcControllerClient<Channel>,
    pub broker: GrpcBrokerClient<Channel>,
    pub stdio: GrpcStdioClient<Channel>,
    pub health: HealthClient<Channel>,
}

impl Clients {
    pub fn new(channel: Channel) -> Self {
        Self {
            base: BasePluginClient::new(channel.clone()),
            driver: DriverClient::new(channel.clone()).max_decoding_message_size(MAX).max_encoding_message_size(MAX),
            controller: GrpcControllerClient::new(channel.clone()),
            broker: GrpcBrokerClient::new(channel.clone()),
            stdio: GrpcStdioClient::new(channel.clone()),
            health: HealthClient::new(channel),
        }
    }
}

/// A call with these very bytes, as an agent of another version may send them; the bytes of the answer.
pub async fn raw(channel: Channel, method: &'static str, bytes: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let answer = client.unary(Request::new(bytes), PathAndQuery::from_static(method), Raw).await?;
    Ok(answer.into_inner())
}

/// A message, and a field of this number that we do not know: a text.
pub fn with_field(mut message: Vec<u8>, number: u32, value: &[u8]) -> Vec<u8> {
    prost::encoding::bytes::encode(number, &value.to_vec(), &mut message);
    message
}

/// Messages as bytes.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        *self
    }
    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, bytes: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Ok(Some(bytes.to_vec()))
    }
}

/// A configuration as agents send it.
pub fn set(schema: &Spec, config: &Value, nomad_config: Option<NomadConfig>) -> SetConfigRequest {
    let msgpack_config = block(schema, config).unwrap();
    SetConfigRequest { msgpack_config, nomad_config, plugin_api_version: "v0.1.0".into() }
}

/// Waits until something is so.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
