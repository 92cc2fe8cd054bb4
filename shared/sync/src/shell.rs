//! The loops around the state machines, the same at both ends: they move messages, wait, and store; they decide nothing.
//! In: a machine, the peer's messages, content or a place to store. Out: messages in a bounded queue, what was observed, why it ended.
//! Invariant: a peer that does not read its messages makes us wait, never queue: newer content is taken up only when the last was sent.

use std::{collections::VecDeque, future::Future, pin::pin, time::Duration};

use futures::{Stream, StreamExt, future::BoxFuture};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use ursa_model::{ResourceKey, Timestamp};
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ursa_runtime::{
    backoff::Backoff,
    lease::{Deadline, within},
};
use ursa_state::{Applied, Catalog, Changeset, GlobalRevision, Mode, Op, OpResult, RequestId};

use crate::{
    distribution::Distribution,
    ports::{Sink, SinkError},
    receiver::{self, Batch, Close, Receiver},
    sender::{self, Sender},
};

/// Messages handed to the transport and not yet written.
pub(crate) const OUTBOUND_QUEUE: usize = 64;
/// First and longest wait before a refused resource is sent again.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// First and longest wait before a changeset is proposed again.
const PROPOSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// One proposal's longest time: then its outcome is unknown and it is proposed again under the same id.
const PROPOSE_ONCE: Duration = Duration::from_secs(10);
/// How often the peer is told what it should hold, when nothing else is said.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Longest time without a store until the stream ends.
const PROPOSE_ALL: Duration = Duration::from_secs(30);
/// Longest wait for a read barrier: an election and some. Then another node may do better.
const BARRIER: Duration = Duration::from_secs(5);

/// Why a loop ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Cancelled,
    /// The peer closed its side, or no longer takes messages.
    PeerClosed,
    /// The transport, or the peer, says why.
    Transport(Status),
    Closed(Close),
    /// Our own store is gone: the process is stopping.
    SourceGone,
}

impl End {
    /// What the peer is told. Never OK: a Kuma zone takes that for the peaceful end of a direction and does not come back.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Cancelled | Self::SourceGone => Status::unavailable("this node is going away: connect to another node"),
            Self::PeerClosed => Status::cancelled("the peer closed the stream"),
            Self::Transport(status) if status.code() == tonic::Code::Ok => Status::cancelled("the peer closed the stream"),
            Self::Transport(status) => Status::new(status.code(), status.message()),
            Self::Closed(close @ Close::Protocol(_)) => Status::invalid_argument(close.to_string()),
            Self::Closed(close @ Close::Store(_)) => Status::unavailable(close.to_string()),
        }
    }
}

/// Where content comes from: the first call gives what there is, later ones wait for something newer. Cancel-safe.
pub(crate) trait Contents: Send {
    fn next(&mut self) -> impl Future<Output = Option<Distribution>> + Send;
}

/// Where messages go: a bounded queue that the transport empties, and the form it wants them in.
pub(crate) struct Wire<M, T> {
    pub(crate) outbound: mpsc::Sender<T>,
    pub(crate) wrap: fn(M) -> T,
}

enum Item {
    Message(DeltaDiscoveryResponse),
    /// Everything before it went out.
    Report(sender::Report),
}

/// Runs a [`Sender`] until its stream ends. `first` are requests that were read already.
pub(crate) async fn run_sender<T: Send>(
    mut sender: Sender,
    first: Vec<DeltaDiscoveryRequest>,
    inbound: impl Stream<Item = Result<DeltaDiscoveryRequest, Status>> + Send,
    mut contents: impl Contents,
    wire: Wire<DeltaDiscoveryResponse, T>,
    mut observe: impl FnMut(sender::Report) + Send,
    stop: impl Future<Output = ()> + Send,
) -> End {
    let mut inbound = pin!(inbound);
    let mut stop = pin!(stop);
    let mut queue: VecDeque<Item> = VecDeque::new();
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut retry: Option<Deadline> = None;
    let mut heartbeat = Deadline::after(HEARTBEAT);
    let mut events: VecDeque<sender::Event> = first.into_iter().map(sender::Event::Request).collect();
    loop {
        for event in events.drain(..) {
            for action in sender.handle(event) {
                match action {
                    sender::Action::Send(message) => queue.push_back(Item::Message(message)),
                    sender::Action::Report(report @ (sender::Report::Sent { .. } | sender::Report::SentUpTo(_))) => {
                        queue.push_back(Item::Report(report));
                    }
                    sender::Action::Report(report) => observe(report),
                }
            }
        }
        match (sender.wants_retry(), &retry) {
            (true, None) => retry = Some(Deadline::after(backoff.next_delay())),
            (false, Some(_)) if sender.refused().next().is_none() => {
                retry = None;
                backoff.reset();
            }
            _ => {}
        }
        while let Some(Item::Report(_)) = queue.front() {
            if let Some(Item::Report(report)) = queue.pop_front() {
                observe(report);
            }
        }
        tokio::select! {
            biased;
            () = &mut stop => return End::Cancelled,
            permit = wire.outbound.reserve(), if !queue.is_empty() => {
                let Ok(permit) = permit else { return End::PeerClosed };
                if let Some(Item::Message(message)) = queue.pop_front() {
                    permit.send((wire.wrap)(message));
                }
            }
            request = inbound.next() => match request {
                Some(Ok(request)) => events.push_back(sender::Event::Request(request)),
                Some(Err(status)) => return End::Transport(status),
                None => return End::PeerClosed,
            },
            content = contents.next(), if queue.is_empty() => match content {
                Some(content) => events.push_back(sender::Event::Content(content)),
                None => return End::SourceGone,
            },
            () = heartbeat.passed() => {
                heartbeat = Deadline::after(HEARTBEAT);
                events.push_back(sender::Event::Heartbeat);
            }
            () = passed(retry), if retry.is_some() => {
                retry = None;
                events.push_back(sender::Event::Retry);
            }
        }
    }
}

async fn passed(deadline: Option<Deadline>) {
    match deadline {
        Some(deadline) => deadline.passed().await,
        None => std::future::pending().await,
    }
}

/// What the store refused of a batch, or why nothing more can be stored, which ends the stream.
pub(crate) type Outcome = Result<Vec<(ResourceKey, String)>, String>;

/// Stores batches.
pub(crate) trait Applier: Send {
    /// The newest picture of the store; contains every batch whose outcome is known.
    fn catalog(&self) -> Catalog;
    fn apply(&self, batch: Box<Batch>) -> BoxFuture<'static, Outcome>;
}

/// What reaches a receiver's loop from outside its stream.
pub(crate) struct Signals<'a, F> {
    /// The operator wants what is held to be removed.
    pub(crate) confirmed: &'a Notify,
    /// The loop should end.
    pub(crate) stop: F,
}

/// Runs a [`Receiver`] until its stream ends. `opening` are the messages that open it; `None` lets the receiver start itself.
pub(crate) async fn run_receiver<T: Send>(
    mut receiver: Receiver,
    opening: Option<Vec<receiver::Action>>,
    inbound: impl Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send,
    applier: impl Applier,
    wire: Wire<DeltaDiscoveryRequest, T>,
    mut observe: impl FnMut(receiver::Report) + Send,
    signals: Signals<'_, impl Future<Output = ()> + Send>,
) -> End {
    let mut inbound = pin!(inbound);
    let Signals { confirmed, stop } = signals;
    let mut stop = pin!(stop);
    let (mut grace, mut holds) = (None, 0);
    let mut queue: VecDeque<DeltaDiscoveryRequest> = VecDeque::new();
    let mut storing: Option<BoxFuture<'static, Outcome>> = None;
    let mut actions = match opening {
        Some(actions) => actions,
        None => receiver.handle(receiver::Event::Start, &applier.catalog()),
    };
    let end = loop {
        let mut close = None;
        for action in actions.drain(..) {
            match action {
                receiver::Action::Send(message) => queue.push_back(message),
                receiver::Action::Apply(batch) => storing = Some(applier.apply(batch)),
                receiver::Action::Report(report) => observe(report),
                receiver::Action::Close(why) => close = Some(why),
            }
        }
        if let Some(why) = close {
            break End::Closed(why);
        }
        if receiver.holds() != holds {
            holds = receiver.holds();
            grace = Some(Deadline::after(receiver.site().grace()));
        }
        let event = tokio::select! {
            biased;
            () = &mut stop => break End::Cancelled,
            stored = stored(&mut storing), if storing.is_some() => {
                storing = None;
                match stored {
                    Ok(refused) => receiver::Event::Stored { refused },
                    Err(why) => receiver::Event::Failed(why),
                }
            }
            permit = wire.outbound.reserve(), if !queue.is_empty() => {
                let Ok(permit) = permit else { break End::PeerClosed };
                if let Some(message) = queue.pop_front() {
                    permit.send((wire.wrap)(message));
                }
                continue;
            }
            // ACKs that the peer does not read stop the reading too: the queue is bounded by what was stored.
            response = inbound.next(), if receiver.has_room() && queue.len() < OUTBOUND_QUEUE => match response {
                Some(Ok(response)) => receiver::Event::Response(response),
                Some(Err(status)) => break End::Transport(status),
                None => break End::PeerClosed,
            },
            () = passed(grace), if grace.is_some() => {
                grace = None;
                receiver::Event::GraceOver
            }
            () = confirmed.notified() => receiver::Event::Confirmed,
        };
        actions = receiver.handle(event, &applier.catalog());
    };
    // A batch that was given to the store is seen through: the next stream must find what it did.
    if let Some(storing) = storing {
        let _ = storing.await;
    }
    end
}

async fn stored(storing: &mut Option<BoxFuture<'static, Outcome>>) -> Outcome {
    match storing {
        Some(storing) => storing.await,
        None => std::future::pending().await,
    }
}

/// Proposes until it is known to be stored; the same id makes a repeat harmless. Cancellation ends it after the running attempt. Once
/// `lost` is cancelled no attempt begins, not even the first.
pub(crate) async fn propose(
    sink: &dyn Sink,
    set: Changeset,
    cancel: &CancellationToken,
    lost: Option<&CancellationToken>,
) -> Result<Applied, SinkError> {
    let mut backoff = Backoff::new(PROPOSE.0, PROPOSE.1);
    let deadline = Deadline::after(PROPOSE_ALL);
    loop {
        if lost.is_some_and(CancellationToken::is_cancelled) {
            return Err(SinkError::Unavailable("a newer connection of this zone took over".to_owned()));
        }
        let result = within(PROPOSE_ONCE, sink.apply(set.clone())).await;
        let why = match result {
            Ok(Ok(applied)) => return Ok(applied),
            Ok(Err(err @ SinkError::Refused(_))) => return Err(err),
            Ok(Err(SinkError::Unavailable(why))) => why,
            Err(late) => late.to_string(),
        };
        if deadline.has_passed() || !backoff.wait(cancel).await {
            return Err(SinkError::Unavailable(why));
        }
        tracing::debug!(error = %why, "proposing again");
    }
}

/// A changeset of independent ops, as of now.
pub(crate) fn changeset(ops: Vec<Op>, actor: &str) -> Changeset {
    let id = RequestId(uuid::Uuid::new_v4().as_u128());
    Changeset {
        id,
        at: Timestamp::now(),
        mode: Mode::Each,
        ops,
        global: None,
        actor: actor.to_owned(),
    }
}

/// Stores a batch's ops, piece by piece; the last piece carries `global`. What the store will never take is found by halving and
/// refused alone, so that one resource that is too large does not stop the others for ever.
pub(crate) async fn store(
    sink: &dyn Sink,
    pieces: Vec<Vec<Op>>,
    global: Option<GlobalRevision>,
    actor: &str,
    cancel: &CancellationToken,
    lost: Option<&CancellationToken>,
) -> Outcome {
    let mut left = VecDeque::from(pieces);
    if left.is_empty() && global.is_some() {
        left.push_back(Vec::new());
    }
    let mut refused = Vec::new();
    while let Some(mut ops) = left.pop_front() {
        let mut set = changeset(ops.clone(), actor);
        set.global = global.filter(|_| left.is_empty());
        match propose(sink, set, cancel, lost).await {
            Ok(applied) => refused.extend(ops.iter().zip(&applied.results).filter_map(|(op, result)| match result {
                OpResult::Refused(why) => Some((op.key().clone(), why.to_string())),
                _ => None,
            })),
            Err(SinkError::Refused(why)) if ops.len() == 1 => {
                refused.extend(ops.first().map(|op| (op.key().clone(), why)));
                if left.is_empty() && global.is_some() {
                    left.push_back(Vec::new());
                }
            }
            Err(SinkError::Refused(_)) if ops.len() > 1 => {
                let second = ops.split_off(ops.len() / 2);
                left.push_front(second);
                left.push_front(ops);
            }
            Err(err) => return Err(err.to_string()),
        }
    }
    Ok(refused)
}

/// Waits for the read barrier. While a leader is being elected there is none: that is waited for.
pub(crate) async fn barrier(sink: &dyn Sink, cancel: &CancellationToken) -> Result<(), Status> {
    let mut backoff = Backoff::new(PROPOSE.0, PROPOSE.1);
    let deadline = Deadline::after(BARRIER);
    loop {
        let why = match within(deadline.remaining(), sink.barrier()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(err)) => err.to_string(),
            Err(late) => late.to_string(),
        };
        if deadline.has_passed() || !backoff.wait(cancel).await {
            return Err(Status::unavailable(format!(
                "the store does not confirm that it is up to date: {why}"
            )));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, key, put_op};
    use futures::FutureExt;
    use serde_json::json;
    use ursa_model::{Kind, Labels};
    use ursa_state::{HistoryId, Role};

    /// Takes at most three ops, and never the one called `big`.
    struct Picky(Memory);

    impl Sink for Picky {
        fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
            let bad = set.ops.len() > 3 || set.ops.iter().any(|op| op.key().name() == "big");
            let result = if bad {
                Err(SinkError::Refused("too large".into()))
            } else {
                Ok(self.0.change(set))
            };
            futures::future::ready(result).boxed()
        }

        fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
            futures::future::ready(Ok(())).boxed()
        }
    }

    #[tokio::test]
    async fn what_is_too_large_is_cut_and_refused_alone() {
        let sink = Picky(Memory::new(Role::Zone, 1));
        let names = ["a", "b", "c", "d", "e", "f", "big"];
        let op = |name: &&str| put_op(key(Kind::Mesh, "", name), Labels::new(), json!({}));
        let global = GlobalRevision {
            history: HistoryId(7),
            revision: 3,
        };
        let pieces = vec![names.iter().map(op).collect()];
        let refused = store(&sink, pieces, Some(global), "", &CancellationToken::new(), None)
            .await
            .unwrap();
        assert_eq!(refused, [(key(Kind::Mesh, "", "big"), "too large".to_owned())]);
        assert_eq!(sink.0.view().list(Kind::Mesh).count(), 6);
        assert_eq!(sink.0.view().global(), Some(global), "the revision comes with the last piece");
    }

    /// Loses the claim while the first piece is being stored.
    struct Losing(Memory, CancellationToken);

    impl Sink for Losing {
        fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
            self.1.cancel();
            futures::future::ready(Ok(self.0.change(set))).boxed()
        }

        fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
            futures::future::ready(Ok(())).boxed()
        }
    }

    #[tokio::test]
    async fn who_lost_the_claim_proposes_nothing_more() {
        let lost = CancellationToken::new();
        let sink = Losing(Memory::new(Role::Global, 1), lost.clone());
        let piece = |name| vec![put_op(key(Kind::Mesh, "", name), Labels::new(), json!({}))];
        let cancel = CancellationToken::new();
        let outcome = store(&sink, vec![piece("a"), piece("b")], None, "", &cancel, Some(&lost)).await;
        assert!(outcome.unwrap_err().contains("took over"));
        let names: Vec<_> = sink.0.view().list(Kind::Mesh).map(|m| m.name().to_owned()).collect();
        assert_eq!(names, ["a"], "what was begun is seen through, nothing else");
    }

    #[test]
    fn no_end_of_a_stream_is_ok() {
        let ends = [
            End::Cancelled,
            End::PeerClosed,
            End::SourceGone,
            End::Transport(Status::ok("")),
            End::Transport(Status::internal("x")),
            End::Closed(Close::Protocol(String::new())),
            End::Closed(Close::Store(String::new())),
        ];
        assert!(ends.iter().all(|end| end.status().code() != tonic::Code::Ok));
    }
}
