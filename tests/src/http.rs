//! A client that sends exactly the bytes it is told, and reads one answer.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
}

impl Answer {
    /// The first field of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// A kept-alive connection to the ingress.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn open(addr: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, Duration::from_secs(60))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// When the connection breaks or the answer is no HTTP.
    pub fn send(&mut self, method: &str, host: &str, path: &str, body: &[u8]) -> anyhow::Result<Answer> {
        self.ask(method, host, path, &[], body)
    }

    /// As [`Connection::send`], with further header fields.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub fn ask(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> anyhow::Result<Answer> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
        fields.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
        if !body.is_empty() || method == "POST" {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.get_mut().write_all(&bytes)?;
        self.read()
    }

    /// Begins a call of the guest `probe` that is under way until [`Connection::finish`] ends it: the component has answered half
    /// of what it is sent. The status, which is another than 200 where the call was refused.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub fn begin(&mut self, host: &str) -> anyhow::Result<u16> {
        let request = format!("POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 8\r\n\r\nhalf");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
        let mut said = Vec::new();
        while status == 200 && !said.ends_with(b"half") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            said.push(byte[0]);
        }
        Ok(status)
    }

    /// Sends the rest of a call that was begun; whether the rest of its answer came, to its end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn finish(mut self) -> anyhow::Result<bool> {
        self.stream.get_mut().write_all(b"done")?;
        let mut rest = Vec::new();
        while !rest.ends_with(b"0\r\n\r\n") {
            let mut byte = [0];
            if self.stream.read(&mut byte)? == 0 {
                break;
            }
            rest.push(byte[0]);
        }
        let rest = String::from_utf8_lossy(&rest);
        Ok(rest.contains("done") && rest.ends_with("0\r\n\r\n"))
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end().to_owned())
    }

    fn read(&mut self) -> anyhow::Result<Answer> {
        let status = self.line()?.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let mut body = Vec::new();
        if find("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
            loop {
                let size = usize::from_str_radix(self.line()?.split(';').next().unwrap_or_default().trim(), 16)?;
                let mut chunk = vec![0; size];
                self.stream.read_exact(&mut chunk)?;
                body.extend_from_slice(&chunk);
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = find("content-length") {
            body = vec![0; length.parse()?];
            self.stream.read_exact(&mut body)?;
        }
        Ok(Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// As [`Connection::send`].
pub fn get(addr: SocketAddr, host: &str, path: &str) -> anyhow::Result<Answer> {
    Connection::open(addr)?.send("GET", host, path, &[])
}
