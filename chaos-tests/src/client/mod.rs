//! An HTTP/1.1 client that does exactly what it is told: one request, one answer, no retry, no pool behind the back.
//!
//! In: a [`Target`] and a request. Out: an [`Answer`] with the moments it was asked and got, or a typed [`Error`].
//! Invariant: a request is written at most once; whoever wants a second try asks again and counts it.
//! Source: RFC 9112. Not here: load ([`crate::traffic`]).
pub mod api;
pub mod conn;
pub mod tls;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

pub use api::{Api, Mode};
pub use conn::{Conn, Target};
pub use tls::Trust;

/// Header in which every answer of a control plane carries its store's revision, in decimal.
pub const REVISION_HEADER: &str = "ursa-revision";

/// Header that makes a write safe to send again: 32 hexadecimal digits.
pub const REQUEST_ID_HEADER: &str = "ursa-request-id";

/// The largest body that is read: an Envoy's whole config dump is some megabytes.
const BODY_LIMIT: usize = 64 * 1024 * 1024;

/// What came back, and when.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Response headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// When the call began; for a new connection, before it was opened.
    pub asked: Instant,
    /// When the last byte of the body was there.
    pub received: Instant,
}

impl Answer {
    /// Time from the call to the last byte.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.received.duration_since(self.asked)
    }

    /// The body as text; bytes that are no UTF-8 show as the replacement character.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// [`Error::NotJson`] with the start of the body.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|source| Error::NotJson {
            start: head(&self.text()),
            source,
        })
    }

    /// The store's revision that the answer was given at; none if the header is missing or no number.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.headers.get(REVISION_HEADER)?.to_str().ok()?.trim().parse().ok()
    }

    /// This answer if it is a success (2xx).
    ///
    /// # Errors
    /// [`Error::Refused`] with the status and the start of the body.
    pub fn success(self) -> Result<Self, Error> {
        if self.status.is_success() {
            Ok(self)
        } else {
            Err(Error::Refused {
                status: self.status,
                start: head(&self.text()),
            })
        }
    }
}

/// Why there is no answer, or not the one that was asked for. One variant per place where a request can end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: nothing listens, or the address is unreachable.
    #[error("cannot connect to {target}")]
    Connect { target: String, source: std::io::Error },
    /// The TLS handshake failed.
    #[error("TLS handshake with {target} failed")]
    Tls { target: String, source: std::io::Error },
    /// The connection broke before the answer was complete.
    #[error("connection broke before the answer was complete")]
    Broken(#[source] hyper::Error),
    /// The body is larger than this client reads, or broke off.
    #[error("cannot read the body: {0}")]
    Body(String),
    /// No complete answer in time.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// The request cannot be built: a bad path or header. A fault of the test.
    #[error("bad request")]
    Request(#[from] http::Error),
    /// The body is not the JSON that was expected.
    #[error("not the expected JSON, it starts {start:?}")]
    NotJson { start: String, source: serde_json::Error },
    /// The answer is not a success.
    #[error("answered {status}: {start}")]
    Refused { status: StatusCode, start: String },
    /// The CA file cannot be used.
    #[error("cannot use the CA file {path}: {problem}")]
    CaFile { path: String, problem: String },
}

impl Error {
    /// A short name for counting failures by kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Tls { .. } => "tls",
            Self::Broken(_) => "broken",
            Self::Body(_) => "body",
            Self::Deadline(_) => "deadline",
            Self::Request(_) => "request",
            Self::NotJson { .. } => "not-json",
            Self::Refused { .. } => "refused",
            Self::CaFile { .. } => "ca-file",
        }
    }
}

/// The first 300 characters, for messages.
pub(crate) fn head(text: &str) -> String {
    match text.char_indices().nth(300) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}
