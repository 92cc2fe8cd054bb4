//! An HTTP/1.1 client that asks once and keeps a connection if it may. No retry.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// Longest wait for an answer: a stop and start of a slow machine is no failure of ours.
const PATIENCE: Duration = Duration::from_secs(20);

/// The Envoy binary, from `ENVOY_BIN`. Says so when it is missing, and fails under CI.
pub fn envoy_binary() -> Option<PathBuf> {
    let path = std::env::var_os("ENVOY_BIN").map(PathBuf::from).filter(|p| p.is_file());
    if path.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "ENVOY_BIN must name an Envoy binary under CI: run deploy/envoy/install.sh"
        );
        eprintln!("SKIPPED: ENVOY_BIN names no Envoy binary; run deploy/envoy/install.sh and set it to what that prints");
    }
    path
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    /// The server closes the connection.
    pub closes: bool,
}

/// A connection that may be kept.
pub struct Connection(http1::SendRequest<Empty<Bytes>>);

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|e| format!("cannot connect: {e}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// The server has not closed it.
    pub fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    pub async fn get(&mut self) -> Result<Answer, String> {
        let request = Request::get("/").header(header::HOST, "test").body(Empty::new()).unwrap();
        let exchange = async {
            self.0.ready().await.map_err(|e| e.to_string())?;
            let answer = self.0.send_request(request).await.map_err(|e| e.to_string())?;
            let status = answer.status().as_u16();
            let closes = answer.headers().get(header::CONNECTION).is_some_and(|v| v == "close");
            let body = answer.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
            Ok(Answer {
                status,
                body: String::from_utf8_lossy(&body).into_owned(),
                closes,
            })
        };
        timeout(PATIENCE, exchange)
            .await
            .map_err(|_| format!("no answer within {PATIENCE:?}"))?
    }
}
