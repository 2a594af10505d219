//! From process start to the first call: who may start it, the one line, the two networks, TLS, and its end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use plugin::contracts::grpc::health::v1::HealthCheckRequest;
use plugin::contracts::hashicorp::nomad::plugins::base::proto::PluginInfoRequest;
use plugin::contracts::plugin::Empty;
use plugin::handshake::{COOKIE, COOKIE_NAME};
use plugin::tls::self_signed;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use crate::agent::PROGRAM;
use crate::host::{Clients, Process, connect, until};

/// 1: no cookie, no plugin.
#[test]
fn a_person_who_starts_it_is_told_what_it_is() {
    let run = |cookie: Option<&str>| {
        let mut command = Command::new(PROGRAM);
        command.env_remove("NOMAD_PLUGIN_MAGIC_COOKIE").stdin(Stdio::null());
        if let Some(cookie) = cookie {
            command.env("NOMAD_PLUGIN_MAGIC_COOKIE", cookie);
        }
        command.output().unwrap()
    };
    for cookie in [None, Some("wrong")] {
        let out = run(cookie);
        assert_eq!(out.status.code(), Some(1));
        assert!(out.stdout.is_empty());
        assert!(String::from_utf8_lossy(&out.stderr).contains("started by a Nomad agent"));
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// 2: whoever reads the line can connect: a plugin that cannot print it yet, because its host does not read, listens already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_listens_before_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (mut host, mut full) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&full).unwrap();
    fcntl_setfl(&full, flags | OFlags::NONBLOCK).unwrap();
    let mut filled = 0;
    while let Ok(count) = full.write(&[b' '; 4096]) {
        filled += count;
    }
    fcntl_setfl(&full, flags).unwrap();
    let mut command = Command::new(PROGRAM);
    command.env(COOKIE_NAME, COOKIE).env("PLUGIN_UNIX_SOCKET_DIR", dir.path()).stdin(Stdio::null()).stdout(full);
    let child = Killed(command.spawn().unwrap());
    // The other end of the pipe that the command has.
    drop(command);
    let socket = || std::fs::read_dir(dir.path()).unwrap().next().map(|entry| entry.unwrap().path());
    let connects = || socket().is_some_and(|path| std::os::unix::net::UnixStream::connect(path).is_ok());
    until("a socket that can be connected to", connects).await;
    let mut before = vec![0; filled];
    host.read_exact(&mut before).unwrap();
    assert!(before.iter().all(|byte| *byte == b' '), "nothing was said before");
    let mut line = String::new();
    BufReader::new(host).read_line(&mut line).unwrap();
    assert_eq!(line.split('|').nth(3).unwrap(), socket().unwrap().to_str().unwrap(), "{line}");
    let mut clients = Clients::new(connect(line.trim_end()).await);
    clients.base.plugin_info(PluginInfoRequest {}).await.unwrap();
    drop(child);
}

/// 2, 3: one line, on unix and tcp; the listener is there before it; shutdown ends the process and its socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_speaks_on_both_networks_and_ends_when_told() {
    for (env, network) in [(vec![], "unix"), (vec![("SIDEREAL_PLUGIN_NETWORK", "tcp")], "tcp")] {
        let mut process = Process::launch(PROGRAM, &env);
        let fields: Vec<&str> = process.line.split('|').collect();
        assert_eq!((fields.len(), fields[2], fields[5]), (6, network, ""), "{}", process.line);
        let address = fields[3].to_owned();
        let mut clients = Clients::new(process.connect().await);
        let info = clients.base.plugin_info(PluginInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.plugin_api_versions, ["v0.1.0"]);
        // What hosts open always.
        let _broker = clients.broker.start_stream(futures::stream::pending()).await.unwrap();
        let _stdio = clients.stdio.stream_stdio(()).await.unwrap();
        let health = HealthCheckRequest { service: "plugin".into() };
        assert_eq!(clients.health.check(health).await.unwrap().into_inner().status, 1);
        let unknown = HealthCheckRequest { service: "other".into() };
        assert_eq!(clients.health.check(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
        clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(process.ended().success());
        assert_eq!(*process.rest.lock().unwrap(), "", "one line, and no more");
        if network == "unix" {
            assert!(!std::path::Path::new(&address).exists(), "the socket is gone");
        }
    }
}

/// 4: Ctrl-C on the agent's terminal reaches its plugins too, and is not for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_is_the_agents() {
    let mut process = Process::launch(PROGRAM, &[]);
    for _ in 0..3 {
        process.signal(Signal::INT);
    }
    let mut clients = Clients::new(process.connect().await);
    clients.base.plugin_info(PluginInfoRequest {}).await.unwrap();
    assert!(process.running());
    process.signal(Signal::TERM);
    assert!(process.ended().success());
}

/// 6: hosts that can multiplex are told that we do not; others count six fields.
#[test]
fn the_seventh_field_is_for_those_who_ask() {
    let process = Process::launch(PROGRAM, &[("PLUGIN_MULTIPLEX_GRPC", "true")]);
    assert!(process.line.ends_with("|grpc||false"), "{}", process.line);
}

#[test]
fn the_socket_goes_where_the_host_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let process = Process::launch(PROGRAM, &[("PLUGIN_UNIX_SOCKET_DIR", &path)]);
    assert!(process.line.split('|').nth(3).unwrap().starts_with(&path), "{}", process.line);
}

/// 5: with a certificate of the host, both sides prove who they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutual_tls_where_the_host_asks_for_it() {
    let (certificate, key) = self_signed().unwrap();
    let process = Process::launch(PROGRAM, &[("PLUGIN_CLIENT_CERT", &pem(&certificate))]);
    let fields: Vec<&str> = process.line.split('|').collect();
    let theirs = data_encoding::BASE64_NOPAD.decode(fields[5].as_bytes()).unwrap();
    let socket = fields[3].to_owned();

    let ours = client(theirs.clone().into(), Some((certificate, key)));
    let mut clients = Clients::new(channel(&socket, ours).await.unwrap());
    clients.base.plugin_info(PluginInfoRequest {}).await.unwrap();

    // Nobody else, and nobody without a certificate.
    for stranger in [Some(self_signed().unwrap()), None] {
        let config = client(theirs.clone().into(), stranger);
        if let Ok(channel) = channel(&socket, config).await {
            assert!(Clients::new(channel).base.plugin_info(PluginInfoRequest {}).await.is_err());
        }
    }
    let plain = UnixStream::connect(&socket).await.unwrap();
    let mut plain = Some(plain);
    let service = tower::service_fn(move |_| {
        let stream = plain.take();
        async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("once")) }
    });
    if let Ok(channel) = Endpoint::from_static("http://plugin.local").connect_with_connector(service).await {
        assert!(Clients::new(channel).base.plugin_info(PluginInfoRequest {}).await.is_err());
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = data_encoding::BASE64.encode(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

type Identity = (CertificateDer<'static>, rustls::pki_types::PrivateKeyDer<'static>);

fn client(theirs: CertificateDer<'static>, ours: Option<Identity>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Only(theirs)));
    let mut config = match ours {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

async fn channel(
    socket: &str,
    config: Arc<ClientConfig>,
) -> Result<tonic::transport::Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let service = tower::service_fn(move |_| {
        let (socket, config) = (socket.clone(), config.clone());
        async move {
            let stream = UnixStream::connect(socket).await?;
            let name = ServerName::try_from("localhost").unwrap();
            tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://plugin.local").connect_with_connector(service).await
}

#[derive(Debug)]
struct Only(CertificateDer<'static>);

impl ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        assert_eq!(*end_entity, self.0);
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::ring::default_provider();
        verify_tls12_signature(message, cert, dss, &provider.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::ring::default_provider();
        verify_tls13_signature(message, cert, dss, &provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
