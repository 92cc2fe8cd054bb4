//! The side of a stream that hears: one task per other node.
//! In: frames. Out: the local tier with what the node holds; its claims. Invariant: a node that is silent or away for [`GRACE`] vouches
//! for nothing; one that comes back as another process vouches for nothing that the first did.

use std::{sync::Arc, time::Duration};

use tonic::{Status, Streaming, transport::Channel};
use tracing::{debug, info, warn};
use ursa_model::Timestamp;
use ursa_proto::peer::{FollowRequest, Frame, observed_client::ObservedClient};
use ursa_runtime::{
    Backoff, CancellationToken,
    error::Chain,
    lease::{Deadline, within},
};
use ursa_state::observed::Merged;

use super::{
    GRACE, Group, PeerLabel, PeerState, SILENCE,
    serve::{history_bytes, same_history},
    wire::{Assembler, MAX_FRAME_BYTES, Message},
};

/// First and longest wait before a node is called again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("silent for {SILENCE:?}")]
    Silent,
    #[error("the stream ended")]
    Ended,
    #[error("the stream broke")]
    Broken(#[source] Status),
    #[error("it sent something that is not understood")]
    Nonsense(#[source] super::wire::DecodeError),
    #[error("it belongs to another history")]
    OtherHistory,
    #[error("an update does not follow on what is here")]
    Gap,
}

/// A process that was heard and is away.
struct Away {
    instance: Arc<str>,
    heard: Timestamp,
    until: Deadline,
}

impl Group {
    /// Hears node `node` until cancelled. `channel` makes connections by itself.
    pub async fn follow(self, node: u64, channel: Channel, cancel: CancellationToken) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut away: Option<Away> = None;
        let mut last_problem = String::new();
        loop {
            let client = ObservedClient::new(channel.clone()).max_decoding_message_size(MAX_FRAME_BYTES);
            let until = away.as_ref().map(|a| a.until);
            let opened = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = passed(until) => {
                    self.over(node, &mut away);
                    continue;
                }
                opened = within(SILENCE, self.open(client)) => opened.unwrap_or(Err(End::Silent)),
            };
            let end = match opened {
                Ok(mut stream) => {
                    let mut heard = None;
                    let end = tokio::select! {
                        biased;
                        () = cancel.cancelled() => return,
                        end = self.hear(node, &mut stream, &mut away, &mut heard) => end,
                    };
                    if let Some((instance, heard)) = heard {
                        backoff.reset();
                        last_problem.clear();
                        self.note(node, |peer| peer.connected = false);
                        let until = Deadline::after(GRACE);
                        away = Some(Away { instance, heard, until });
                        info!(raft_node = node, error = %Chain(&end), "the stream of observed state from a node ended");
                    }
                    end
                }
                Err(end) => end,
            };
            // One that is away is told of once.
            let problem = Chain(&end).to_string();
            if problem != last_problem {
                match end {
                    End::Nonsense(_) | End::OtherHistory => {
                        warn!(raft_node = node, error = problem, "observed state cannot be had from a node")
                    }
                    _ => debug!(raft_node = node, error = problem, "no observed state from a node"),
                }
                last_problem = problem;
            }
            let until = away.as_ref().map(|a| a.until);
            let waited = tokio::select! {
                biased;
                () = passed(until) => {
                    self.over(node, &mut away);
                    true
                }
                waited = backoff.wait(&cancel) => waited,
            };
            if !waited {
                return;
            }
        }
    }

    async fn open(&self, mut client: ObservedClient<Channel>) -> Result<Streaming<Frame>, End> {
        let request = FollowRequest {
            history: history_bytes(self.history()),
            relay_of: 0,
        };
        client.follow(request).await.map(tonic::Response::into_inner).map_err(End::Broken)
    }

    /// Takes what comes until the end. `heard` is set once the node said who it is, and moves with every frame.
    async fn hear(
        &self,
        node: u64,
        stream: &mut Streaming<Frame>,
        away: &mut Option<Away>,
        heard: &mut Option<(Arc<str>, Timestamp)>,
    ) -> End {
        let inner = &self.inner;
        let mut assembler = Assembler::default();
        loop {
            let frame = match within(SILENCE, stream.message()).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => return End::Ended,
                Ok(Err(status)) => return End::Broken(status),
                Err(_) => return End::Silent,
            };
            let now = Timestamp::now();
            if let Some((_, last)) = heard {
                *last = now;
                self.note(node, |peer| peer.heard = now);
            }
            match (assembler.take(frame), heard.as_ref()) {
                (Err(error), _) => return End::Nonsense(error),
                (Ok(None), _) => {}
                (Ok(Some(Message::Hello { instance, history, timing })), None) => {
                    if !same_history(self.history(), &history) {
                        return End::OtherHistory;
                    }
                    let instance: Arc<str> = instance.into();
                    // The same process again is heard again; another one begins with nothing.
                    if away.as_ref().is_some_and(|a| a.instance != instance) {
                        self.gone(node, away.take());
                    }
                    *away = None;
                    info!(raft_node = node, %instance, "a node tells what it observes");
                    let differs = timing.and_then(|theirs| inner.about.timing.differs(&theirs));
                    self.note(node, |peer| {
                        if let Some(differs) = differs.as_ref().filter(|_| peer.differs != differs) {
                            warn!(raft_node = node, problem = %differs, "a node is configured otherwise");
                        }
                        *peer = PeerState {
                            connected: true,
                            heard: now,
                            instance: instance.to_string(),
                            status: None,
                            differs,
                            through: None,
                        }
                    });
                    *heard = Some((instance, now));
                }
                (Ok(Some(Message::Claims(claims))), Some((instance, _))) => {
                    inner.claims.learn(instance, claims.into_iter().map(|c| c.of(instance)));
                }
                (Ok(Some(Message::Update(update))), Some(_)) => {
                    inner.metrics.received.get_or_create(&PeerLabel { node }).inc();
                    if inner.observed.merge(node, update) == Merged::Gap {
                        inner.metrics.gaps.inc();
                        return End::Gap;
                    }
                }
                (Ok(Some(Message::Alive(status))), Some(_)) => self.note(node, |peer| peer.status = status),
                // Hello is the first, and there is one.
                (Ok(Some(_)), _) => return End::Nonsense(super::wire::DecodeError::Lacks("its place in the stream")),
            }
        }
    }

    /// The time of one that is away is over; but not while it is heard through another node.
    fn over(&self, node: u64, away: &mut Option<Away>) {
        let through = self.inner.peers.lock().get(&node).is_some_and(|peer| peer.through.is_some());
        match away {
            Some(away) if through => away.until = Deadline::after(GRACE),
            _ => self.gone(node, away.take()),
        }
    }

    pub(super) fn note(&self, node: u64, change: impl FnOnce(&mut PeerState)) {
        let mut peers = self.inner.peers.lock();
        let peer = peers.entry(node).or_default();
        change(peer);
        self.inner
            .metrics
            .connected
            .get_or_create(&PeerLabel { node })
            .set(i64::from(peer.connected));
    }

    /// Nothing that this process of the node held is seen any more.
    fn gone(&self, node: u64, away: Option<Away>) {
        if let Some(away) = away {
            info!(raft_node = node, instance = %away.instance, "the node no longer vouches for the zones it served");
            self.inner.observed.lost(node, away.heard);
            self.inner.claims.node_gone(&away.instance);
        }
    }
}

async fn passed(deadline: Option<Deadline>) {
    match deadline {
        Some(deadline) => deadline.passed().await,
        None => std::future::pending().await,
    }
}
