//! The listener for the other nodes: mutual TLS, and who is calling.
//! In: routes. Out: the same, with [`PeerNode`] in each request's extensions.
//! Invariants: no request reaches a route without a certificate of this cluster that names a node; none reaches the routes of other
//! services unless that node is a member of the group (the store's own calls say so by themselves, with the reason); what they send to a
//! member ends when it leaves.
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::HeaderValue;
use http_body_util::{BodyExt, StreamBody};
use ursa_runtime::serve::{Limits, Peer};

use super::tls::Identity;
use super::{Peers, Refusal};

/// A stream per call in flight: appends, proposals passed on and what other services add.
const MAX_STREAMS: u32 = 4096;
/// A handful of members with a handful of connections each.
const MAX_CONNECTIONS: usize = 1024;
/// After the store has ended there is nothing to wait for.
const DRAIN: Duration = Duration::from_millis(500);

/// The member at the other end of a request on the peer listener, as its certificate says: a request extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerNode {
    pub id: u64,
}

/// Bounds of the listener.
pub(crate) fn limits() -> Limits {
    Limits {
        max_concurrent_streams: MAX_STREAMS,
        max_connections: MAX_CONNECTIONS,
        keepalive_interval: Duration::from_secs(5),
        keepalive_timeout: Duration::from_secs(5),
        drain_timeout: DRAIN,
        ..Limits::default()
    }
}

/// The store's routes and those of others, each behind its checks.
pub(crate) fn identified(ours: Router, others: Router, peers: &Peers) -> Router {
    let others = others.layer(middleware::from_fn_with_state(peers.clone(), members_only));
    ours.merge(others)
        .layer(middleware::from_fn_with_state(peers.identity().clone(), identify))
}

async fn members_only(State(peers): State<Peers>, request: Request, next: Next) -> Response {
    // Put there by the layer around this one.
    let Some(PeerNode { id }) = request.extensions().get::<PeerNode>().copied() else {
        return refused(UNAUTHENTICATED, "");
    };
    match peers.shared.roster.check(id) {
        Ok(()) => next.run(request).await.map(|body| while_member(body, peers, id)),
        Err(refusal) => refused(PERMISSION_DENIED, &refusal.to_string()),
    }
}

/// A stream does not outlive the place of its reader in the group.
fn while_member(body: Body, peers: Peers, id: u64) -> Body {
    let open = Some((body, Box::pin(left(peers, id))));
    let frames = futures::stream::unfold(open, |open| async {
        let (mut body, mut left) = open?;
        tokio::select! {
            biased;
            refusal = &mut left => Some((Err(axum::Error::new(refusal)), None)),
            frame = body.frame() => frame.map(|frame| (frame, Some((body, left)))),
        }
    });
    Body::new(StreamBody::new(frames))
}

/// Returns when `id` is no member any more.
async fn left(peers: Peers, id: u64) -> Refusal {
    let mut others = peers.watch_others();
    loop {
        others.mark_unchanged();
        if let Err(refusal) = peers.shared.roster.check(id) {
            return refusal;
        }
        if others.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn identify(State(identity): State<Arc<Identity>>, mut request: Request, next: Next) -> Response {
    let leaf = request
        .extensions()
        .get::<Peer>()
        .and_then(|peer| peer.tls.as_ref()?.certificates.first());
    match leaf.map(|leaf| identity.member(leaf)) {
        Some(Ok(id)) => {
            request.extensions_mut().insert(PeerNode { id });
            next.run(request).await
        }
        // The handshake lets nobody in like this; it is a defect of whoever mounted the routes.
        _ => refused(UNAUTHENTICATED, ""),
    }
}

const PERMISSION_DENIED: HeaderValue = HeaderValue::from_static("7");
const UNAUTHENTICATED: HeaderValue = HeaderValue::from_static("16");

/// A code of gRPC, as an answer without a body.
fn refused(code: HeaderValue, message: &str) -> Response {
    let mut answer = Response::new(Body::empty());
    let headers = answer.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", code);
    if let Ok(message) = HeaderValue::from_str(message) {
        headers.insert("grpc-message", message);
    }
    answer
}
