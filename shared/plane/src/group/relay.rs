//! Hearing a node through another one, while the link between the two is cut: what it holds stays shown as it is.
//! In: a third node's word of what it hears itself. Out: the local tier, as if the node had told it.
//! Invariants: only what a node hears directly is passed on, so no word goes in circles; it comes whole, once a second at most, and only while
//! the link is cut; owners and copies move by the same rules as ever. Claims are not passed on: two nodes that do not hear each other do
//! not end each other's streams.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::mpsc;
use tonic::{Status, Streaming, transport::Channel};
use tracing::info;
use ursa_model::Timestamp;
use ursa_proto::peer::{Alive, FollowRequest, Frame, Hello, frame::Body, observed_client::ObservedClient};
use ursa_runtime::{
    CancellationToken, heartbeat,
    lease::{Deadline, within},
};
use ursa_state::observed::{CopyAt, Holder, Update};

use super::{
    ALIVE, GRACE, Group, SILENCE, about,
    serve::{history_bytes, same_history},
    wire::{self, Assembler, MAX_FRAME_BYTES, Message},
};

/// What a peer hears of `of` through this node, until one of the three goes. Says why.
pub(super) async fn tell(group: &Group, of: u64, tx: &mpsc::Sender<Result<Frame, Status>>, cancel: &CancellationToken) -> &'static str {
    let Some(instance) = group.hears(of) else {
        return "this node does not hear it either";
    };
    let hello = Hello {
        instance: instance.clone(),
        history: history_bytes(group.history()),
        timing: None,
    };
    let mut frames = vec![wire::frame(Body::Hello(hello))];
    let mut sent: BTreeMap<Arc<str>, CopyAt> = BTreeMap::new();
    let mut ticker = heartbeat::every(ALIVE, cancel);
    loop {
        if group.hears(of).as_ref() != Some(&instance) {
            return "this node does not hear it any more";
        }
        let view = group.inner.observed.view();
        let held = view
            .copies()
            .filter(|(zone, copy)| copy.holder == Holder::Node(of) && copy.at.fence.node == of && sent.get(*zone) != Some(&copy.at));
        let news: Vec<(Arc<str>, CopyAt)> = held.map(|(zone, copy)| (zone.into(), copy.at)).collect();
        let now = Timestamp::now();
        let updates = news.iter().map(|(zone, at)| Update::Full {
            zone: zone.clone(),
            at: *at,
            held: true,
            as_of: now,
            resources: view.of_zone(zone).cloned().collect(),
        });
        let updates: Vec<Update> = updates.collect();
        sent.extend(news);
        drop(view);
        let status = group.peers().get(&of).and_then(|peer| peer.status.as_ref().map(about::status_to));
        let alive = wire::frame(Body::Alive(Alive { status }));
        for frame in frames.drain(..).chain(updates.into_iter().flat_map(wire::frames)).chain([alive]) {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return "the control plane is shutting down",
                sent = tx.send(Ok(frame)) => if sent.is_err() { return "the peer is gone" },
            }
        }
        tokio::select! {
            biased;
            () = tx.closed() => return "the peer is gone",
            tick = ticker.tick() => if !tick { return "the control plane is shutting down" },
        }
    }
}

/// A node that was heard through another one and is not any more.
struct Unheard {
    instance: String,
    heard: Timestamp,
    until: Deadline,
}

impl Group {
    /// The process of a node whose own stream is whole.
    fn hears(&self, node: u64) -> Option<String> {
        let peers = self.inner.peers.lock();
        peers.get(&node).filter(|peer| peer.connected).map(|peer| peer.instance.clone())
    }

    /// Hears `node` through one of `ways` whenever it is not heard directly, until cancelled.
    pub async fn follow_through(self, node: u64, ways: Vec<(u64, Channel)>, cancel: CancellationToken) {
        let mut ticker = heartbeat::every(ALIVE, &cancel);
        let mut unheard: Option<Unheard> = None;
        while ticker.tick().await {
            for (via, channel) in &ways {
                if self.hears(node).is_some() || self.hears(*via).is_none() {
                    continue;
                }
                if let Ok(Some(mut stream)) = within(SILENCE, self.open_through(node, channel)).await {
                    let ended = tokio::select! {
                        biased;
                        () = cancel.cancelled() => return,
                        ended = self.hear_through(node, *via, &mut stream) => ended,
                    };
                    self.note(node, |peer| peer.through = None);
                    unheard = ended.or(unheard);
                }
            }
            if self.hears(node).is_some() {
                unheard = None;
            }
            if let Some(gone) = unheard.take_if(|gone| gone.until.has_passed()) {
                info!(
                    raft_node = node,
                    instance = gone.instance,
                    "the node is not heard through another one any more"
                );
                self.inner.observed.lost(node, gone.heard);
                self.inner.claims.node_gone(&gone.instance);
            }
        }
    }

    async fn open_through(&self, node: u64, channel: &Channel) -> Option<Streaming<Frame>> {
        let mut client = ObservedClient::new(channel.clone()).max_decoding_message_size(MAX_FRAME_BYTES);
        let request = FollowRequest {
            history: history_bytes(self.history()),
            relay_of: node,
        };
        client.follow(request).await.ok().map(tonic::Response::into_inner)
    }

    /// Takes what comes until the end, or until the node is heard itself. `None`: nothing was heard.
    async fn hear_through(&self, node: u64, via: u64, stream: &mut Streaming<Frame>) -> Option<Unheard> {
        let mut assembler = Assembler::default();
        let mut unheard: Option<Unheard> = None;
        while self.hears(node).is_none()
            && let Ok(Ok(Some(frame))) = within(SILENCE, stream.message()).await
        {
            let Ok(message) = assembler.take(frame) else { break };
            let now = Timestamp::now();
            match message {
                None => {}
                Some(Message::Hello { instance, history, .. }) if unheard.is_none() => {
                    if !same_history(self.history(), &history) {
                        break;
                    }
                    let before = self.peers().get(&node).map(|peer| peer.instance.clone()).unwrap_or_default();
                    if !before.is_empty() && before != instance {
                        // Another process: it vouches for nothing that the one before did.
                        self.inner.observed.lost(node, now);
                        self.inner.claims.node_gone(&before);
                    }
                    info!(raft_node = node, through = via, instance, "a node is heard through another one");
                    self.note(node, |peer| {
                        peer.instance.clone_from(&instance);
                        peer.through = Some(via);
                    });
                    unheard = Some(Unheard {
                        instance,
                        heard: now,
                        until: Deadline::after(GRACE),
                    });
                }
                Some(Message::Update(update)) => {
                    let whole = matches!(&update, Update::Full { at, .. } if at.fence.node == node);
                    if !whole || unheard.is_none() {
                        break;
                    }
                    self.inner.observed.merge(node, update);
                }
                Some(Message::Alive(status)) => {
                    let Some(unheard) = &mut unheard else { break };
                    unheard.heard = now;
                    self.note(node, |peer| (peer.heard, peer.status) = (now, status));
                }
                Some(Message::Hello { .. } | Message::Claims(_)) => break,
            }
        }
        if let Some(unheard) = &mut unheard {
            unheard.until = Deadline::after(GRACE);
        }
        unheard
    }
}
