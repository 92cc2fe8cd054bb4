//! The loops around the state machines, the same at both ends: they move messages, wait, and store; they decide nothing.
//! In: a machine, the peer's messages, content or a place to store. Out: messages in a bounded queue, what was observed, why it ended.
//! Invariant: a peer that does not read its messages makes us wait, never queue: newer content is taken up only when the last was sent.

use std::{collections::VecDeque, future::Future, pin::pin, time::Duration};

use futures::{Stream, StreamExt, future::BoxFuture};
use tokio::sync::mpsc;
use tonic::Status;
use ursa_model::ResourceKey;
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ursa_runtime::{backoff::Backoff, lease::Deadline};
use ursa_state::Catalog;

use crate::{
    distribution::Distribution,
    holds,
    receiver::{self, Batch, Close, Receiver},
    sender::{self, Sender},
};

/// Messages handed to the transport and not yet written.
pub(crate) const OUTBOUND_QUEUE: usize = 64;
/// First and longest wait before a refused resource is sent again.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// How often the peer is told what it should hold, when nothing else is said.
const HEARTBEAT: Duration = Duration::from_secs(10);

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
    /// Removals that are held, of this peer.
    pub(crate) holds: &'a holds::Stream,
    /// Names the peer's process, if that is known by now.
    pub(crate) process: &'a (dyn Fn() -> String + Sync),
    /// The operator keeps what is held.
    pub(crate) kept: &'a (dyn Fn() -> bool + Sync),
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
    let Signals {
        holds,
        process,
        kept,
        stop,
    } = signals;
    let mut stop = pin!(stop);
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
                receiver::Action::Report(report) => {
                    if let receiver::Report::Held { kind, held } = &report {
                        holds.note(&process(), *kind, held);
                    }
                    observe(report);
                }
                receiver::Action::Close(why) => close = Some(why),
            }
        }
        if let Some(why) = close {
            break End::Closed(why);
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
            event = holds.next(kept) => event,
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

#[cfg(test)]
mod tests {
    use super::*;

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
