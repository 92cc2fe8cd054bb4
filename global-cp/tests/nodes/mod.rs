//! Real `global-cp` processes on addresses of their own, and what a client and a zone need to talk to them.
#![allow(dead_code, reason = "each test uses a part of it")]

pub mod zone;

use std::{
    fs::File,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use ursa_runtime::{
    CancellationToken, heartbeat,
    lease::{Deadline, within},
    tls,
};

/// For anything that should take a second or two, on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A cluster of nodes 1 to `size`, not started yet.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub size: u8,
    network: [u8; 3],
    nodes: Vec<Option<Child>>,
}

/// A program run to its end.
pub fn run(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_global-cp"))
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

impl Cluster {
    /// Certificates and configuration. `tag`, 0 to 3, tells tests of one process apart.
    pub fn prepare(size: u8, tag: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        let part = |n: u32| u8::try_from(n % 250).unwrap();
        let cluster = Self {
            // 127.64.0.0 and up: nobody else's on loopback.
            network: [127, 64 + part(pid / 250) % 48 + 48 * tag, part(pid)],
            dir,
            size,
            nodes: (0..size).map(|_| None).collect(),
        };
        let ca = cluster.path("ca");
        assert!(run(&["pki", "init", "--out", &ca, "--cluster", "test"]).status.success());
        for n in 1..=size {
            let (id, address, out) = (n.to_string(), cluster.ip(n).to_string(), cluster.path(&format!("pki{n}")));
            let made = run(&["pki", "node", "--ca", &ca, "--id", &id, "--address", &address, "--out", &out]);
            assert!(made.status.success(), "{made:?}");
            std::fs::write(cluster.path(&format!("node{n}.yaml")), cluster.config(n)).unwrap();
        }
        cluster
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn ip(&self, n: u8) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, n)
    }

    fn config(&self, n: u8) -> String {
        let (ip, dir) = (self.ip(n), self.dir.path().display());
        let member = |m: u8| format!("    - {{ id: {m}, address: \"{}:5683\" }}\n", self.ip(m));
        let members: String = (1..=self.size).map(member).collect();
        format!(
            "data_dir: {dir}/data{n}\nnode: {{ id: {n} }}\napi: {{ address: \"{ip}:5682\" }}\n\
             kds: {{ address: \"{ip}:5685\", require_zone_token: false }}\ndiagnostics: {{ address: \"{ip}:5680\" }}\n\
             cluster:\n  listen: \"{ip}:5683\"\n  members:\n{members}  cert_file: {dir}/pki{n}/node.crt\n  \
             key_file: {dir}/pki{n}/node.key\n  ca_file: {dir}/pki{n}/ca.crt\n"
        )
    }

    pub fn start(&mut self, n: u8) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("log{n}")))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_global-cp"))
            .args(["run", "--config", &self.path(&format!("node{n}.yaml"))])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.nodes[usize::from(n) - 1] = Some(child);
    }

    /// As a loss of power.
    pub fn kill(&mut self, n: u8) {
        let mut child = self.nodes[usize::from(n) - 1].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal, by its name without `SIG`.
    pub fn signal(&self, n: u8, name: &str) {
        let pid = self.nodes[usize::from(n) - 1].as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// SIGTERM; gives the exit code.
    pub async fn stop(&mut self, n: u8) -> i32 {
        self.signal(n, "TERM");
        self.ended(n).await
    }

    /// Waits for the end of a node; gives the exit code.
    pub async fn ended(&mut self, n: u8) -> i32 {
        let mut child = self.nodes[usize::from(n) - 1].take().unwrap();
        let mut code = None;
        wait(&format!("node {n} ends"), async || {
            code = child.try_wait().unwrap();
            code.is_some()
        })
        .await;
        code.unwrap().code().unwrap_or(-1)
    }

    pub async fn ready(&self, n: u8) {
        let what = format!("node {n} is ready");
        wait(&what, async || {
            self.get_plain(n, "/ready").await.is_some_and(|(status, _)| status == 200)
        })
        .await;
    }

    pub fn ca_pem(&self) -> String {
        std::fs::read_to_string(self.path("ca/ca.crt")).unwrap()
    }

    pub fn token(&self, n: u8) -> String {
        std::fs::read_to_string(self.path(&format!("data{n}/admin-user-token"))).unwrap()
    }

    /// A request to the REST API of node `n`, over TLS with the cluster's CA. `None`: nobody answers.
    pub async fn call(&self, n: u8, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let stream = TcpStream::connect((self.ip(n), 5682)).await.ok()?;
        let config = tls::client_config(self.ca_pem().as_bytes(), &["http/1.1"]).unwrap();
        let name = ServerName::from(std::net::IpAddr::from(self.ip(n)));
        let stream = TlsConnector::from(config).connect(name, stream).await.ok()?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let token = self.token(n);
        let head = format!("authorization: Bearer {token}\r\ncontent-type: application/json\r\n");
        let (status, text) = exchange(stream, method, path, &head, &body).await?;
        Some((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    pub async fn get(&self, n: u8, path: &str) -> Value {
        let (status, body) = self.call(n, "GET", path, None).await.unwrap_or((0, Value::Null));
        assert_eq!(status, 200, "GET {path} at node {n}: {body}");
        body
    }

    /// The diagnostics port.
    pub async fn get_plain(&self, n: u8, path: &str) -> Option<(u16, String)> {
        let stream = TcpStream::connect((self.ip(n), 5680)).await.ok()?;
        exchange(stream, "GET", path, "", "").await
    }

    /// What node `n` says about the cluster, whether it has a quorum or not.
    pub async fn status(&self, n: u8) -> Value {
        let (_, text) = self.get_plain(n, "/cluster").await.unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// A channel to the zone-sync server of node `n`.
    pub async fn kds(&self, n: u8) -> Channel {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.ca_pem()));
        let endpoint = Endpoint::from_shared(format!("https://{}:5685", self.ip(n))).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }

    pub fn log(&self, n: u8) -> String {
        std::fs::read_to_string(self.path(&format!("log{n}"))).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for n in 1..=self.size {
                let log = self.log(n);
                let tail: Vec<&str> = log.lines().rev().take(40).collect();
                eprintln!("--- node {n}");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

async fn exchange<S>(mut stream: S, method: &str, path: &str, head: &str, body: &str) -> Option<(u16, String)>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n{head}\r\n{body}");
    let mut answer = Vec::new();
    let talk = async {
        stream.write_all(request.as_bytes()).await.ok()?;
        // A close without close_notify, as of a process that is killed, is an end too.
        let _ = stream.read_to_end(&mut answer).await;
        Some(())
    };
    within(SOON, talk).await.ok()??;
    let text = String::from_utf8(answer).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        let mut whole = String::new();
        let mut rest = body;
        while let Some((size, more)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            whole.push_str(more.get(..size)?);
            if size == 0 {
                break;
            }
            rest = more.get(size..)?.strip_prefix("\r\n")?;
        }
        return Some((status, whole));
    }
    Some((status, body.to_owned()))
}

/// Until `is` holds; fails after [`SOON`].
#[track_caller]
pub fn wait(what: &str, is: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    let what = what.to_owned();
    let mut is = is;
    async move {
        let (deadline, never) = (Deadline::after(SOON), CancellationToken::new());
        let mut ticker = heartbeat::every(Duration::from_millis(20), &never);
        while !is().await {
            assert!(!deadline.has_passed(), "{place}: not within {SOON:?}: {what}");
            ticker.tick().await;
        }
    }
}

/// Programs and clients use one crypto provider.
pub fn init() {
    tls::install_provider();
}

/// Where a file of the data folder is.
pub fn data(cluster: &Cluster, n: u8, name: &str) -> PathBuf {
    cluster.dir.path().join(format!("data{n}")).join(name)
}
