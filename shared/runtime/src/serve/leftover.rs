//! What a handler leaves unread of a request's body is read and thrown away, within bounds, before the answer goes out.
//! In: a body on its way to the app. Out: the same body; afterwards, what was dropped of it.
//! Invariant: bounded in bytes and time, and never while the app still reads (a stream of gRPC is read longer than it is answered).
//! Why: an answer that overtakes the end of an upload is followed by a reset of the HTTP/2 stream (RFC 9113 8.1), and curl 7.88 then
//! shows the reset instead of the answer; on HTTP/1.1 a connection closed over unread bytes may take the answer with it.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http::{HeaderMap, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use parking_lot::Mutex;

use crate::lease::within;
use crate::tasks::{OnExit, Tasks};

/// Read before the answer goes out: all that a well-meaning client sends with a mistaken request.
const BEFORE_ANSWER: usize = 1024 * 1024;
/// How long the answer waits for that.
const BEFORE_ANSWER_TIME: Duration = Duration::from_secs(1);
/// How long the rest may take.
const AFTER_ANSWER_TIME: Duration = Duration::from_secs(10);

/// Where a body that is dropped before its end comes to lie.
pub(super) struct Leftover(Arc<Mutex<Option<Incoming>>>);

/// The body as the app sees it.
struct Watched {
    /// `None` once it has ended.
    inner: Option<Incoming>,
    left: Arc<Mutex<Option<Incoming>>>,
}

/// The body for the app, and a handle to what it leaves.
pub(super) fn watch(body: Incoming) -> (Body, Leftover) {
    let left = Arc::default();
    let watched = Watched {
        inner: (!body.is_end_stream()).then_some(body),
        left: Arc::clone(&left),
    };
    (Body::new(watched), Leftover(left))
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = self.inner.as_mut() else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.inner = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take().filter(|body| !body.is_end_stream()) {
            *self.left.lock() = Some(inner);
        }
    }
}

/// What is needed of a request to know whether its body may be thrown away.
pub(super) struct About {
    version: Version,
    /// The client waits for leave to send its body, which an answer instead refuses.
    waits: bool,
    grpc: bool,
}

impl About {
    pub(super) fn of(version: Version, headers: &HeaderMap, grpc: bool) -> Self {
        Self {
            version,
            waits: headers.contains_key(header::EXPECT),
            grpc,
        }
    }
}

impl Leftover {
    /// Called with the answer at hand. Reads the rest of the body: a little now, up to `max` bytes once the answer is out. A stream
    /// whose body is longer is reset then, with the answer already delivered.
    pub(super) async fn discard(self, about: About, max: usize, tasks: &Tasks) {
        let left = self.0.lock().take();
        let Some(mut body) = left.filter(|_| !about.grpc && !about.waits) else {
            return;
        };
        let now = BEFORE_ANSWER.min(max);
        if matches!(within(BEFORE_ANSWER_TIME, drain(&mut body, now)).await, Ok(true)) || about.version != Version::HTTP_2 {
            // HTTP/1.1 has one stream: hyper closes the connection, for nothing can follow a body that is still coming.
            return;
        }
        tasks.spawn("discard-body", OnExit::Contain, move |cancel| async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                _ = within(AFTER_ANSWER_TIME, drain(&mut body, max.saturating_sub(now))) => {}
            }
        });
    }
}

/// Reads up to `max` bytes; whether that was all.
async fn drain(body: &mut Incoming, max: usize) -> bool {
    let mut read = 0_usize;
    while read <= max {
        match body.frame().await {
            Some(Ok(frame)) => read = read.saturating_add(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) | None => return true,
        }
    }
    body.is_end_stream()
}
