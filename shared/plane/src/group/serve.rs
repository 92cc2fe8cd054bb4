//! The side of a stream that tells: everything once, then what this node holds, as it changes.
//! In: a peer's call. Out: frames. Invariant: a peer that does not read makes us wait, never queue: what changes meanwhile is sent once.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status};
use tracing::{Instrument, debug, info, info_span};
use ursa_model::Timestamp;
use ursa_proto::peer::{
    Alive, FollowRequest, Frame, HeldAnswer, HeldRequest, Hello,
    frame::Body,
    observed_server::{Observed as Service, ObservedServer},
};
use ursa_runtime::{CancellationToken, OnExit, Tasks, heartbeat, lease::within};
use ursa_state::{HistoryId, observed::Follower};

use super::{ALIVE, Group, about, relay, wire};

/// Frames handed to the transport and not yet written, half a MiB each at most but for single large resources.
const QUEUE: usize = 4;
/// For the last words when this process ends.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_millis(500);

/// Which node is calling, by what the listener knows of the connection.
pub type NodeOf = fn(&Extensions) -> Option<u64>;

/// The gRPC service.
pub(super) struct Server {
    group: Group,
    node_of: NodeOf,
    tasks: Tasks,
}

impl Group {
    /// Routes for the listener of the other nodes. `tasks` owns the streams.
    pub fn routes(&self, node_of: NodeOf, tasks: &Tasks) -> axum::Router {
        let server = Server {
            group: self.clone(),
            node_of,
            tasks: tasks.clone(),
        };
        tonic::service::Routes::new(ObservedServer::new(server))
            .prepare()
            .into_axum_router()
    }
}

pub(super) fn history_bytes(history: HistoryId) -> Bytes {
    match history.0 {
        0 => Bytes::new(),
        id => Bytes::copy_from_slice(&id.to_be_bytes()),
    }
}

/// Two nodes of different histories have nothing to tell each other. One without any learns its.
pub(super) fn same_history(ours: HistoryId, theirs: &[u8]) -> bool {
    ours.0 == 0 || theirs.is_empty() || theirs == ours.0.to_be_bytes()
}

#[tonic::async_trait]
impl Service for Server {
    type FollowStream = ReceiverStream<Result<Frame, Status>>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let node = (self.node_of)(request.extensions()).ok_or_else(|| Status::unauthenticated("no certificate of a node"))?;
        if node == self.group.inner.node {
            return Err(Status::failed_precondition(format!("node {node} is here: two nodes have this id")));
        }
        if !same_history(self.group.history(), &request.get_ref().history) {
            return Err(Status::failed_precondition("this node belongs to another history"));
        }
        let (tx, rx) = mpsc::channel(QUEUE);
        let group = self.group.clone();
        let of = request.get_ref().relay_of;
        if of != 0 {
            self.tasks.spawn("observed-relay", OnExit::Contain, move |cancel| async move {
                let reason = relay::tell(&group, of, &tx, &cancel).await;
                debug!(raft_node = node, of, reason, "what another node holds is not passed on");
                let _ = tx.try_send(Err(Status::unavailable(reason)));
            });
            return Ok(Response::new(ReceiverStream::new(rx)));
        }
        self.tasks.spawn("observed-to-peer", OnExit::Contain, move |cancel| {
            let span = info_span!("observed-to-peer", raft_node = node);
            async move {
                let reason = tell(&group, node, &tx, &cancel).await;
                info!(reason, "the stream ends");
                let _ = tx.try_send(Err(Status::unavailable(reason)));
            }
            .instrument(span)
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn held_removals(&self, request: Request<HeldRequest>) -> Result<Response<HeldAnswer>, Status> {
        (self.node_of)(request.extensions()).ok_or_else(|| Status::unauthenticated("no certificate of a node"))?;
        answer_held(&self.group, request.get_ref()).map(Response::new)
    }
}

/// Only nodes of the cluster may ask; whether they may confirm, their own API has decided.
fn answer_held(group: &Group, request: &HeldRequest) -> Result<HeldAnswer, Status> {
    let Some(held) = group.inner.held.get() else {
        return Ok(HeldAnswer::default());
    };
    let (views, confirmed) = held.answer(request)?;
    let held = views.iter().filter_map(|view| serde_json::to_vec(view).ok().map(Bytes::from));
    Ok(HeldAnswer {
        held: held.collect(),
        confirmed,
    })
}

type Sender = mpsc::Sender<Result<Frame, Status>>;

/// A sign of life, with how this node is.
fn alive(group: &Group) -> Frame {
    let status = Some(about::status_to(&(group.inner.about.status)()));
    wire::frame(Body::Alive(Alive { status }))
}

/// Until the peer or this process goes. Says why.
async fn tell(group: &Group, node: u64, tx: &Sender, cancel: &CancellationToken) -> &'static str {
    let inner = &group.inner;
    let (mut views, mut claims) = (inner.observed.subscribe(), inner.claims.own());
    let mut follower = Follower::new(node);
    let mut ticker = heartbeat::every(ALIVE, cancel);
    let hello = Hello {
        instance: inner.claims.node().to_string(),
        history: history_bytes(group.history()),
        timing: Some(about::timing_to(inner.about.timing)),
    };
    let mut frames = vec![wire::frame(Body::Hello(hello)), alive(group)];
    claims.mark_changed();
    loop {
        if claims.has_changed().unwrap_or(false) {
            frames.push(wire::claims(&claims.borrow_and_update()));
        }
        let view = views.borrow_and_update().clone();
        let updates = follower.updates(&view, Timestamp::now());
        drop(view);
        for frame in frames.drain(..).chain(updates.into_iter().flat_map(wire::frames)) {
            tokio::select! {
                biased;
                sent = tx.send(Ok(frame)) => if sent.is_err() { return "the peer is gone" },
                () = cancel.cancelled() => return last_words(group, tx, &mut follower).await,
            }
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return last_words(group, tx, &mut follower).await,
            () = tx.closed() => return "the peer is gone",
            changed = views.changed() => if changed.is_err() { return "the tier is gone" },
            changed = claims.changed() => match changed {
                // Marked again for the top of the loop.
                Ok(()) => claims.mark_changed(),
                Err(_) => return "the claims are gone",
            },
            tick = ticker.tick() => if tick { frames.push(alive(group)) },
        }
    }
}

/// What the end of the zones' streams changed.
async fn last_words(group: &Group, tx: &Sender, follower: &mut Follower) -> &'static str {
    let updates = follower.updates(&group.inner.observed.view(), Timestamp::now());
    let send = async {
        for frame in updates.into_iter().flat_map(wire::frames) {
            if tx.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    };
    let _ = within(LAST_WORDS, send).await;
    "the control plane is shutting down"
}
