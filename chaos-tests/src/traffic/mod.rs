//! Traffic between workloads as a client sees it.
//!
//! In: what to send, how often, and what the right answer is. Out: latency histograms, a per-second series, every failure.
//! Invariant: no retry anywhere; a failure is any answer but the expected one within [`LIMIT`]; load does not wait for answers
//! (open loop), so that a stall of the system shows in the numbers instead of thinning out the load.
//! Source: issue text, "open-loop traffic generator". Not here: the HTTP connection ([`crate::client`]).
pub mod follow;
pub mod load;
pub mod pairs;
pub mod probe;
pub mod registers;
pub mod sightings;
pub mod stats;
pub mod switch;
pub mod views;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::Full;
use tokio::time::Instant;

use crate::client::{Answer, Conn, Error, Mode, Target};

/// An answer that takes longer than this from the moment its request was due is a failure.
pub const LIMIT: Duration = Duration::from_secs(1);

/// One request, sent over and over.
#[derive(Clone, Debug)]
pub struct Shot {
    /// Where to.
    pub target: Target,
    /// Path and query.
    pub path: String,
    /// Headers beside `host`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Shot {
    /// A GET of `/` without further headers.
    #[must_use]
    pub fn get(target: Target) -> Self {
        Self {
            target,
            path: "/".into(),
            headers: Vec::new(),
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((HeaderName::from_static(name), HeaderValue::from_static(value)));
        self
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(&self.path)
            .header(header::HOST, self.target.authority());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        Ok(request.body(Full::new(Bytes::new()))?)
    }
}

/// Connections of one stream of requests.
#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Conn>,
    opened: u64,
}

impl Pool {
    /// An idle connection that is still open. New-connection mode never puts one back, so it never gets one.
    fn take(&mut self) -> Option<Conn> {
        let open = std::iter::from_fn(|| self.idle.pop()).find_map(|mut conn| conn.is_open().then_some(conn));
        self.opened += u64::from(open.is_none());
        open
    }

    fn put(&mut self, mode: Mode, conn: Option<Conn>) {
        self.idle.extend(conn.filter(|_| mode == Mode::KeptAlive));
    }
}

/// Sends one request, on `conn` or on a new connection, and gives the connection back if it can be used again.
/// The answer must be complete [`LIMIT`] after `due`.
async fn fire(shot: &Shot, conn: Option<Conn>, due: Instant) -> (Result<Answer, Error>, Option<Conn>) {
    let exchange = async {
        let request = shot.request()?;
        let asked = Instant::now();
        let mut conn = match conn {
            Some(conn) => conn,
            None => Conn::open(&shot.target).await?,
        };
        let answer = conn.send(asked, request).await?;
        Ok((answer, conn))
    };
    match tokio::time::timeout_at(due + LIMIT, exchange).await {
        Ok(Ok((answer, conn))) => (Ok(answer), Some(conn)),
        Ok(Err(error)) => (Err(error), None),
        Err(_elapsed) => (Err(Error::Deadline(LIMIT)), None),
    }
}

/// An error with its causes, in one line.
fn in_words(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
