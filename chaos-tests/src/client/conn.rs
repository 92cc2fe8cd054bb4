//! One HTTP/1.1 connection, driven only while a request is on it: no task runs behind it, dropping it closes the socket.
//!
//! In: a [`Target`], then one request after another. Out: one [`Answer`] each.
//! Invariant: nothing is written twice; a connection that the server closed is noticed before the next request is written.
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};

use bytes::Bytes;
use futures::FutureExt as _;
use http::Request;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::{Answer, BODY_LIMIT, Error, Trust};

/// Where a request goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// Plain HTTP: a diagnostics port, a workload, a sidecar's outbound listener.
    Tcp(SocketAddr),
    /// HTTPS: the server must prove this address with a certificate of a trusted CA.
    Tls(SocketAddr, Trust),
    /// HTTPS to a host by its name, or an address, and port: the server must prove that name. Looked up for every connection.
    Host(String, u16, Trust),
    /// A unix socket: an Envoy's admin interface.
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Tls(address, _) => write!(f, "https://{address}"),
            Self::Host(host, port, _) => write!(f, "https://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Target {
    /// What belongs into the Host header.
    #[must_use]
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp(address) | Self::Tls(address, _) => address.to_string(),
            Self::Host(host, port, _) => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// An open connection.
pub struct Conn {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Moves the bytes while it is polled; ends when the connection does.
    io: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Conn {
    /// Connects, with the TLS handshake if the target wants one. Has no deadline of its own.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Tls`], [`Error::Broken`].
    pub async fn open(target: &Target) -> Result<Self, Error> {
        let connect = |source| Error::Connect {
            target: target.to_string(),
            source,
        };
        match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(connect)?;
                stream.set_nodelay(true).map_err(connect)?;
                Self::start(stream).await
            }
            Target::Tls(address, trust) => {
                let stream = TcpStream::connect(address).await.map_err(connect)?;
                Self::secure(target, ServerName::from(address.ip()), trust, stream).await
            }
            Target::Host(host, port, trust) => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let name = ServerName::try_from(bare.to_owned()).map_err(|wrong| connect(std::io::Error::other(wrong)))?;
                let stream = TcpStream::connect((bare, *port)).await.map_err(connect)?;
                Self::secure(target, name, trust, stream).await
            }
            Target::Unix(path) => Self::start(UnixStream::connect(path).await.map_err(connect)?).await,
        }
    }

    async fn secure(target: &Target, name: ServerName<'static>, trust: &Trust, stream: TcpStream) -> Result<Self, Error> {
        let failed = |source| Error::Tls {
            target: target.to_string(),
            source,
        };
        stream.set_nodelay(true).map_err(failed)?;
        Self::start(TlsConnector::from(trust.0.clone()).connect(name, stream).await.map_err(failed)?).await
    }

    async fn start<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Result<Self, Error> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Error::Broken)?;
        // An error of the connection also reaches the request that waits on it, so nothing is lost by dropping it here.
        let io = Box::pin(connection.map(|_ended| ()));
        Ok(Self { sender, io, ended: false })
    }

    /// Whether the server has kept the connection open so far, as far as can be seen without asking it anything.
    pub fn is_open(&mut self) -> bool {
        if !self.ended && self.io.as_mut().now_or_never().is_some() {
            self.ended = true;
        }
        !self.ended && !self.sender.is_closed()
    }

    /// Writes the request and reads the whole answer. Not cancel-safe: after a cancelled call the connection must be dropped.
    /// `asked` is when the caller began, so that the answer's time includes opening the connection.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Body`].
    pub async fn send(&mut self, asked: Instant, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
        let Self { sender, io, ended } = self;
        let mut exchange = pin!(async move {
            sender.ready().await.map_err(Error::Broken)?;
            let (head, body) = sender.send_request(request).await.map_err(Error::Broken)?.into_parts();
            let body = Limited::new(body, BODY_LIMIT)
                .collect()
                .await
                .map_err(|e| Error::Body(e.to_string()))?
                .to_bytes();
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
                asked,
                received: Instant::now(),
            })
        });
        loop {
            tokio::select! {
                biased;
                done = &mut exchange => return done,
                () = io.as_mut(), if !*ended => *ended = true,
            }
        }
    }
}
