//! The other side of the calls: checks who calls, then hands the payload to where it belongs.
//! In: calls over connections whose certificate was verified. Out: answers.
//! Invariants: certificate, membership, addressee, history and folder are checked in this order before a payload is looked at; a node that
//! has not taken its place answers greetings alone, so it neither votes nor acknowledges anything.
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming, async_trait};
use ursa_proto::peer::raft_server::Raft as RaftService;
use ursa_proto::peer::{Answer, Call, Chunk};
use ursa_runtime::lease::Deadline;
use uuid::Uuid;

use super::peers::{levels_of, malformed, sixteen};
use super::receiving::Receiving;
use super::wire::{self, BarrierCall, Greeting, Hail, ProposeHead, Proposed, SnapshotAsk, SnapshotHave, SnapshotHead};
use super::{PeerNode, Peers, Refusal};
use crate::codec::Proposal;
use crate::level::Levels;
use crate::raft::answers;
use crate::store::members::{MemberCall, Newcomer};
use crate::store::{Inner, Store};

/// Longest that a call of another node is worked on.
const LONGEST: Duration = Duration::from_secs(60);
/// Longest that a node waits to be let in, before it asks again.
const JOINING: Duration = Duration::from_secs(8);

/// See the module's text.
#[derive(Clone)]
pub(crate) struct Service {
    peers: Peers,
    /// Does not keep the store alive.
    store: Weak<Inner>,
    receiving: Receiving,
}

/// Whether the caller's kind of call needs this node to have taken its place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Place,
    /// It has, and the caller need not be a member: it comes with a token.
    PlaceAlone,
}

impl Service {
    pub(crate) fn new(peers: Peers, store: Weak<Inner>) -> Self {
        Self {
            peers,
            store,
            receiving: Receiving::default(),
        }
    }

    /// Whether to look at this call. What is new about its sender is durable on return.
    async fn check(&self, certified: Option<PeerNode>, call: &Call, needs: Needs) -> Result<Store, Refusal> {
        let shared = &self.peers.shared;
        let sender = call.from.as_ref().ok_or_else(|| malformed("a call without a sender"))?;
        // The layer before this one lets nobody through without.
        let is = certified.ok_or_else(|| malformed("a call without a certificate"))?.id;
        if is != sender.node {
            return Err(Refusal::OtherCertificate { says: sender.node, is });
        }
        if needs != Needs::PlaceAlone {
            shared.roster.check(is)?;
        }
        if call.to != shared.node {
            return Err(Refusal::OtherNode {
                asked: call.to,
                is: shared.node,
            });
        }
        if sender.node == shared.node {
            return Err(Refusal::Doubled { node: shared.node });
        }
        if needs != Needs::PlaceAlone {
            shared.check_sender(sender).await?;
        }
        shared.check_known_as(call).await?;
        if needs != Needs::Nothing && !shared.admitted.load(Ordering::Acquire) {
            return Err(Refusal::NotReady { node: shared.node });
        }
        let stopped = Refusal::Stopped { node: shared.node };
        let store = self.store.upgrade().map(Store::from).ok_or_else(|| stopped.clone())?;
        if store.why_stopped().is_some() {
            return Err(stopped);
        }
        Ok(store)
    }

    async fn serve<W, F>(&self, request: Request<Call>, needs: Needs, work: W) -> Result<Response<Answer>, Status>
    where
        W: FnOnce(Store, Bytes) -> F + Send,
        F: Future<Output = Result<Bytes, Refusal>> + Send,
    {
        let certified = request.extensions().get::<PeerNode>().copied();
        let call = request.into_inner();
        let result = match self.check(certified, &call, needs).await {
            Ok(store) => work(store, call.payload).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &result {
            tracing::debug!(%refusal, "a call was refused");
        }
        let to = certified.map(|node| node.id).unwrap_or_default();
        Ok(Response::new(self.peers.shared.answer(to, result)))
    }

    async fn install(&self, request: Request<Streaming<Chunk>>) -> Result<Bytes, Refusal> {
        let certified = request.extensions().get::<PeerNode>().copied();
        let mut chunks = request.into_inner();
        let first = chunks.message().await.map_err(|status| malformed(status.message()))?;
        let first = first.ok_or_else(|| malformed("a snapshot without anything"))?;
        let head = first.head.ok_or_else(|| malformed("a snapshot without a head"))?;
        let store = self.check(certified, &head, Needs::Place).await?;
        if let Some(reason) = self.peers.shared.disks.own() {
            let node = self.peers.shared.node;
            return Err(Refusal::DiskRefuses { node, reason });
        }
        let head: SnapshotHead = wire::decode(&head.payload)?;
        let inner = store.inner();
        let received = self
            .receiving
            .receive(&inner.disk, &inner.snapshots, &head, first.data, &mut chunks)
            .await?;
        answers::install(&inner.raft, head.vote, received).await
    }
}

#[async_trait]
impl RaftService for Service {
    async fn append(&self, request: Request<Call>) -> Result<Response<Answer>, Status> {
        let peers = self.peers.clone();
        self.serve(request, Needs::Place, |store, payload| async move {
            let closed = peers.shared.disks.closed();
            answers::append(&store.inner().raft, &peers.shared.contact, closed, &payload).await
        })
        .await
    }

    async fn vote(&self, request: Request<Call>) -> Result<Response<Answer>, Status> {
        self.serve(request, Needs::Place, |store, payload| async move {
            answers::vote(&store.inner().raft, &payload, false).await
        })
        .await
    }

    async fn pre_vote(&self, request: Request<Call>) -> Result<Response<Answer>, Status> {
        self.serve(request, Needs::Place, |store, payload| async move {
            answers::vote(&store.inner().raft, &payload, true).await
        })
        .await
    }

    async fn transfer_leader(&self, request: Request<Call>) -> Result<Response<Answer>, Status> {
        self.serve(request, Needs::Place, |store, payload| async move {
            answers::transfer(&store.inner().raft, &payload).await
        })
        .await
    }

    async fn propose(&self, request: Request<Call>) -> Result<Response<Answer>, Status> {
        self.serve(request, Needs::Place, |store, payload| async move {
            let (head, encoded) = wire::decode_with::<ProposeHead>(&payload)?;
            let answer = match Proposal::decode(encoded) {
                Ok(proposal) => {
                    let wait = Duration::from_millis(head.wait_ms).min(LONGEST);
                    store.submit_for(proposal, Deadline::after(wait), head.relay).await
                }
                Err(reason) => Proposed::Invalid { reason },
            };
            Ok(wire::encode(&answer))
        })
        .await
    }

    async fn barrier(&self, request: Request<Call>) -> Result<Response<Answer>, Status> {
        self.serve(request, Needs::Place, |store, payload| async move {
            let call: BarrierCall = wire::decode(&payload)?;
            let wait = Duration::from_millis(call.wait_ms).min(LONGEST);
            Ok(wire::encode(&store.barrier_for(Deadline::after(wait), call.relay).await))
        })
        .await
    }

    async fn hello(&self, request: Request<Call>) -> Result<Response<Answer>, Status> {
        let admitted = self.peers.shared.admitted.load(Ordering::Acquire);
        let node = self.peers.shared.node;
        self.serve(request, Needs::Nothing, |store, payload| async move {
            let founded = store.is_founded();
            let ours = store.founders();
            if let (false, Some(ours), false) = (founded, &ours, payload.is_empty()) {
                wire::decode::<Hail>(&payload)?.agrees(node, ours)?;
            }
            let members = store.group_members();
            let confirmed = store.peers().map(|peers| peers.shared.promises.all()).unwrap_or_default();
            Ok(wire::encode(&Greeting {
                admitted,
                founded,
                members,
                confirmed,
            }))
        })
        .await
    }

    async fn members(&self, request: Request<Call>) -> Result<Response<Answer>, Status> {
        let call = request.get_ref();
        let joins = matches!(wire::decode(&call.payload), Ok(MemberCall::Join { .. }));
        let node = call.from.as_ref().map(|sender| sender.node).unwrap_or_default();
        let folder = call.from.as_ref().map(|sender| sixteen(&sender.folder));
        let levels = call.from.as_ref().map_or(Levels::UNSAID, levels_of);
        let needs = if joins { Needs::PlaceAlone } else { Needs::Place };
        self.serve(request, needs, |store, payload| async move {
            let answer = match wire::decode(&payload)? {
                MemberCall::Change { wanted, wait_ms } => {
                    let wait = Duration::from_millis(wait_ms).min(LONGEST);
                    store.carry_out(&wanted, Deadline::after(wait)).await
                }
                MemberCall::Join { token } => {
                    let folder = folder.ok_or_else(|| malformed("a call without a sender"))??;
                    let newcomer = Newcomer {
                        node,
                        folder: Uuid::from_bytes(folder),
                        levels,
                    };
                    store.let_in(newcomer, &token, Deadline::after(JOINING)).await
                }
            };
            Ok(wire::encode(&answer))
        })
        .await
    }

    async fn snapshot_at(&self, request: Request<Call>) -> Result<Response<Answer>, Status> {
        let receiving = self.receiving.clone();
        self.serve(request, Needs::Place, |store, payload| async move {
            let ask: SnapshotAsk = wire::decode(&payload)?;
            let offset = receiving.has(&*store.inner().disk, &ask.id, ask.size).await?;
            Ok(wire::encode(&SnapshotHave { offset }))
        })
        .await
    }

    async fn snapshot(&self, request: Request<Streaming<Chunk>>) -> Result<Response<Answer>, Status> {
        let to = request.extensions().get::<PeerNode>().map(|node| node.id).unwrap_or_default();
        let result = self.install(request).await;
        if let Err(refusal) = &result {
            tracing::warn!(%refusal, "a snapshot was not taken in");
        }
        Ok(Response::new(self.peers.shared.answer(to, result)))
    }
}
