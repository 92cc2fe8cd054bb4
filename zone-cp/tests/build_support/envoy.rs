//! A real Envoy, and a plain HTTP client to go through it.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};

use crate::support::Addresses;

/// The binary, from `ENVOY_BIN`. Says so when it is missing, and fails under CI.
pub fn binary() -> Option<PathBuf> {
    #[allow(clippy::disallowed_methods)] // a test reads its own switch
    let path = std::env::var_os("ENVOY_BIN").map(PathBuf::from).filter(|p| p.is_file());
    if path.is_none() {
        #[allow(clippy::disallowed_methods)]
        let ci = std::env::var_os("CI").is_some();
        assert!(!ci, "ENVOY_BIN must name an Envoy binary under CI: run deploy/envoy/install.sh");
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary; run deploy/envoy/install.sh and set it to what that prints");
    }
    path
}

/// What Envoy says at every start with a bootstrap as small as this one, and at every end.
const EXPECTED: [&str; 2] = [
    "envoy.resource_monitors.global_downstream_max_connections",
    "gRPC config stream to system_ads closed",
];

/// A running Envoy; killed when dropped. Its files go with it, unless a test fails.
pub struct Envoy {
    child: Child,
    dir: Option<TempDir>,
    name: String,
}

impl Envoy {
    pub fn start(binary: &Path, node: &str, ads: SocketAddr) -> Self {
        let dir = tempfile::Builder::new().prefix("ursa-envoy-").tempdir().unwrap();
        let socket = dir.path().join("a.sock");
        let ads_source = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
        let bootstrap = json!({
            "node": {"id": node, "cluster": "test"},
            "admin": {"address": {"pipe": {"path": socket}}},
            "layered_runtime": {"layers": [{"name": "kuma", "static_layer": {"re2.max_program_size.error_level": 4_294_967_295_u32}}]},
            "dynamic_resources": {
                "lds_config": ads_source,
                "cds_config": ads_source,
                "ads_config": {
                    "api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "system_ads"}}]
                }
            },
            "static_resources": {"clusters": [{
                "name": "system_ads", "type": "STATIC", "connect_timeout": "1s",
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}}}},
                "load_assignment": {"cluster_name": "system_ads", "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
                    {"socket_address": {"address": ads.ip().to_string(), "port_value": ads.port()}}}}]}]}
            }]}
        });
        let config = dir.path().join("bootstrap.json");
        std::fs::write(&config, bootstrap.to_string()).unwrap();
        let child = Command::new(binary)
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "--drain-strategy",
                "immediate",
                "--drain-time-s",
                "30",
            ])
            .arg("--config-path")
            .arg(&config)
            .arg("--log-path")
            .arg(dir.path().join("envoy.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            dir: Some(dir),
            name: node.into(),
        }
    }

    fn path(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// The body of an admin page.
    pub async fn admin(&self, page: &str) -> String {
        let stream = UnixStream::connect(self.path().join("a.sock")).await.unwrap();
        Connection::new(stream).get(page, &[]).await.unwrap().body
    }

    /// The sum of all counters whose name ends so.
    pub async fn stat(&self, suffix: &str) -> u64 {
        let page = self.admin("/stats").await;
        page.lines()
            .filter_map(|l| l.split_once(": "))
            .filter(|(n, _)| n.ends_with(suffix))
            .filter_map(|(_, v)| v.parse::<u64>().ok())
            .sum()
    }

    /// Ends it, so that its log is complete, and gives the warnings and errors in there.
    pub async fn complaints(mut self) -> Vec<String> {
        let stream = UnixStream::connect(self.path().join("a.sock")).await.unwrap();
        Connection::new(stream).request("POST", "/quitquitquit", &[]).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            #[allow(clippy::disallowed_methods)] // a test that polls a real process
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = std::fs::read_to_string(self.path().join("envoy.log")).unwrap_or_default();
        log.lines()
            .filter(|l| ["[warning]", "[error]", "[critical]"].iter().any(|level| l.contains(level)))
            .filter(|l| !EXPECTED.iter().any(|known| l.contains(known)))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("Envoy of {}: log and bootstrap are kept in {}", self.name, dir.keep().display());
        }
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// A kept-alive HTTP/1.1 connection.
pub struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        self.request("GET", path, headers).await
    }

    pub async fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        let extra: String = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{extra}\r\n");
        self.stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
        timeout(Duration::from_secs(20), self.answer())
            .await
            .map_err(|_| "no answer within 5 s".to_owned())?
    }

    async fn answer(&mut self) -> Result<Answer, String> {
        let end = self.until(b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|l| l.split(' ').nth(1))
            .and_then(|s| s.parse().ok())
            .ok_or("no status line")?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|l| l.split_once(": "))
            .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
            .collect();
        let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let body = if get("transfer-encoding") == Some("chunked") {
            self.chunks().await?
        } else {
            let length = get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
            self.take(length).await?
        };
        Ok(Answer {
            status,
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        loop {
            let end = self.until(b"\r\n").await?;
            let size = usize::from_str_radix(String::from_utf8_lossy(&self.buffer[..end]).trim(), 16).map_err(|e| e.to_string())?;
            self.buffer.drain(..end + 2);
            body.extend(self.take(size).await?);
            self.take(2).await?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    async fn until(&mut self, mark: &[u8]) -> Result<usize, String> {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|w| w == mark) {
                return Ok(at);
            }
            self.fill().await?;
        }
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    async fn fill(&mut self) -> Result<(), String> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err("closed".into()),
            Ok(_) => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// A request over a connection of its own.
pub async fn get(address: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    Connection::new(stream).get(path, headers).await
}

/// Asks again until the answer is as wanted; the last answer is in the failure.
pub async fn wait_answer(what: &str, address: &str, path: &str, headers: &[(&str, &str)], wanted: impl Fn(&Answer) -> bool) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = get(address, path, headers).await;
        if let Ok(answer) = &answer
            && wanted(answer)
        {
            return answer.clone();
        }
        assert!(Instant::now() < deadline, "{what}: last answer {answer:?}");
        #[allow(clippy::disallowed_methods)] // a test that polls a real process
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A free port of `host`, and none of these: the system may give a port that was just given back once more.
pub fn free_port(host: &str, but: &[u16]) -> u16 {
    let free = || TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port();
    std::iter::repeat_with(free).find(|port| !but.contains(port)).unwrap()
}

/// Free ports on loopback addresses that no other test uses, in this process or another.
pub fn free_addresses() -> Addresses {
    static TESTS: AtomicU32 = AtomicU32::new(0);
    let test = TESTS.fetch_add(1, Ordering::Relaxed) * 4;
    let pid = std::process::id();
    let host = |n: u32| format!("127.{}.{}.{}", 64 + pid % 128, (pid / 128) % 250, 1 + test + n);
    let mut all = Addresses {
        frontend: host(0),
        ingress: host(1),
        backend_west: host(2),
        backend_east: host(3),
        ..Addresses::default()
    };
    all.frontend_outbound = free_port(&all.frontend, &[]);
    all.frontend_inbound = free_port(&all.frontend, &[all.frontend_outbound]);
    all.ingress_port = free_port(&all.ingress, &[]);
    all.backend_inbound = free_port(&all.backend_west, &[]);
    // The application is on every host.
    all.app_port = free_port(
        &all.backend_west,
        &[all.backend_inbound, all.frontend_inbound, all.frontend_outbound],
    );
    all
}
