//! The JSON client for control planes, diagnostics ports and Envoy's admin socket.
//!
//! In: method, path, JSON. Out: an [`Answer`]. One deadline per call covers connecting, sending and reading.
//! Invariant: in kept-alive mode at most one connection, used by one call at a time; a failed one is never used again.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Answer, Conn, Error, REQUEST_ID_HEADER, Target};

/// A write on a loaded two-core machine takes milliseconds; half a minute means that something is broken.
const DEADLINE: Duration = Duration::from_secs(30);

/// Whether calls share a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A connection is opened for every call and closed after it.
    NewConnection,
    /// One connection is kept and opened again when the server closed it between two calls.
    KeptAlive,
}

/// A client of one server. Clones share the kept connection; [`Api::fork`] does not.
#[derive(Clone, Debug)]
pub struct Api {
    target: Target,
    token: Option<Arc<str>>,
    mode: Mode,
    deadline: Duration,
    kept: Arc<Mutex<Option<Conn>>>,
}

impl Api {
    /// A client without credentials that keeps its connection.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            token: None,
            mode: Mode::KeptAlive,
            deadline: DEADLINE,
            kept: Arc::default(),
        }
    }

    /// Sends `Authorization: Bearer <token>` with every call.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.trim().into());
        self
    }

    /// The token in this file, surrounding white space removed.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn with_token_file(self, path: &Path) -> std::io::Result<Self> {
        Ok(self.with_token(&std::fs::read_to_string(path)?))
    }

    /// How connections are used.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The time a call may take in all.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same client with a connection of its own.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            kept: Arc::default(),
            ..self.clone()
        }
    }

    /// Where it sends.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// # Errors
    /// As [`Api::call`].
    pub async fn get(&self, path: &str) -> Result<Answer, Error> {
        self.call(Method::GET, path, None).await
    }

    /// A GET that must succeed, as JSON.
    ///
    /// # Errors
    /// As [`Api::call`], and [`Error::Refused`], [`Error::NotJson`].
    pub async fn get_json(&self, path: &str) -> Result<Value, Error> {
        self.get(path).await?.success()?.json()
    }

    /// # Errors
    /// As [`Api::call`].
    pub async fn put(&self, path: &str, body: &Value) -> Result<Answer, Error> {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// # Errors
    /// As [`Api::call`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer, Error> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// # Errors
    /// As [`Api::call`].
    pub async fn delete(&self, path: &str) -> Result<Answer, Error> {
        self.call(Method::DELETE, path, None).await
    }

    /// One request, one answer, whatever its status.
    ///
    /// # Errors
    /// Every [`Error`] but [`Error::Refused`]; after [`Error::Deadline`] or [`Error::Broken`] the outcome of a write is unknown.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, Error> {
        self.exchange_in_time(self.request(method, path, body)?).await
    }

    /// A PUT that may be sent again, to any node, with the same id: it takes effect once.
    ///
    /// # Errors
    /// As [`Api::call`].
    pub async fn put_once(&self, path: &str, body: &Value, id: uuid::Uuid) -> Result<Answer, Error> {
        let mut request = self.request(Method::PUT, path, Some(body))?;
        let id = http::HeaderValue::from_str(&id.simple().to_string()).map_err(http::Error::from)?;
        request.headers_mut().insert(REQUEST_ID_HEADER, id);
        self.exchange_in_time(request).await
    }

    async fn exchange_in_time(&self, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
        match tokio::time::timeout(self.deadline, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(Error::Deadline(self.deadline)),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, Error> {
        let asked = Instant::now();
        if self.mode == Mode::NewConnection {
            return Conn::open(&self.target).await?.send(asked, request).await;
        }
        let mut kept = self.kept.lock().await;
        // Taken out while in use: a call that is cancelled or fails leaves no half-read connection behind.
        let mut conn = match kept.take().and_then(|mut conn| conn.is_open().then_some(conn)) {
            Some(conn) => conn,
            None => Conn::open(&self.target).await?,
        };
        let answer = conn.send(asked, request).await?;
        *kept = Some(conn);
        Ok(answer)
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.target.authority());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = match body {
            Some(json) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(json.to_string())
            }
            None => Bytes::new(),
        };
        Ok(request.body(Full::new(body))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::echo;

    #[tokio::test]
    async fn a_kept_connection_is_kept_and_a_new_one_is_new() {
        let workload = echo::Workload::start(echo::Config::local("one", "east")).await.unwrap();
        let kept = Api::new(Target::Tcp(workload.address()));
        for _ in 0..3 {
            kept.get("/x").await.unwrap().success().unwrap();
        }
        assert_eq!(workload.connections(), 1);
        let new = kept.fork().with_mode(Mode::NewConnection);
        for _ in 0..3 {
            new.get("/x").await.unwrap().success().unwrap();
        }
        assert_eq!(workload.connections(), 4);
    }

    #[tokio::test]
    async fn a_closed_connection_is_noticed_and_a_dead_server_is_an_error() {
        let workload = echo::Workload::start(echo::Config::local("one", "east")).await.unwrap();
        let address = workload.address();
        let api = Api::new(Target::Tcp(address));
        api.get("/").await.unwrap();
        drop(workload);
        let error = api.get("/").await.unwrap_err();
        assert!(matches!(error, Error::Connect { .. } | Error::Broken(_)), "{error:?}");
        let again = echo::Workload::start(echo::Config {
            listen: address,
            ..echo::Config::local("two", "west")
        })
        .await
        .unwrap();
        let answer: Value = api.get("/").await.unwrap().json().unwrap();
        assert_eq!(answer["instance"], "two");
        drop(again);
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Api::new(Target::Tcp(silent.local_addr().unwrap())).with_deadline(Duration::from_millis(50));
        assert!(matches!(api.get("/").await.unwrap_err(), Error::Deadline(_)));
    }
}
