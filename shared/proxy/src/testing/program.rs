//! One of our programs as a process of a test.
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use ursa_runtime::lease::within;

/// No step of a test may take longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running program, killed when dropped. Its output goes into a file.
pub struct Program {
    child: Child,
    output: PathBuf,
}

impl Program {
    /// Starts `binary` without this process's environment. Its output goes to `dir`.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(binary: &str, dir: &Path, arguments: &[String], environment: &[(&str, &str)]) -> Self {
        let output = dir.join("output");
        let file = File::create(&output).expect("a file for the output");
        let child = Command::new(binary)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .expect("a built program");
        Self { child, output }
    }

    /// Its process id.
    ///
    /// # Panics
    /// It has ended.
    pub fn pid(&self) -> i32 {
        self.child.id().expect("a running program").cast_signed()
    }

    /// What it has printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = within(PATIENCE, self.child.wait()).await;
        ended
            .unwrap_or_else(|_| panic!("it did not end; it said:\n{}", self.output()))
            .expect("a child of ours")
    }
}

/// One GET over a connection of its own, closed when the answer is there. What came, if it breaks off early.
///
/// # Errors
/// No connection, or it broke.
pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    // Envoy keeps a draining connection for 6 s when the client does not close it, so the end is not waited for.
    while !is_whole(&answer) && stream.read_buf(&mut answer).await? > 0 {}
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    length.is_some_and(|length: usize| body.len() >= length)
}

/// Asks until `done`.
///
/// # Panics
/// It does not come.
pub async fn until<F: AsyncFnMut() -> bool>(what: &str, mut done: F) {
    let asked = async {
        while !done().await {
            tokio::task::yield_now().await;
        }
    };
    assert!(within(PATIENCE, asked).await.is_ok(), "waited in vain for: {what}");
}

/// An address of loopback that is free now.
///
/// # Panics
/// There is none.
pub async fn free_address() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    listener.local_addr().expect("an address")
}
