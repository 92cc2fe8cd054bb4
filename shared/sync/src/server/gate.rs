//! Whether this node may serve zones: not without a quorum, and not while it goes away. Zones then go to another node.
//! In: how long ago there was a quorum; "drain". Out: for each stream an admission that ends with the reason. Invariants: a short loss (an
//! election) disturbs nobody; a node that cannot know what is true does not go on telling zones for long.
//! Source: DESIGN.md 4. Not here: what a quorum is ([`Quorum`]).

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use ursa_runtime::lease::Deadline;

use crate::ports::Quorum;

/// Without a quorum for so long, new streams are refused: an election takes a second or two.
pub(super) const REFUSE_AFTER: Duration = Duration::from_secs(10);
/// Without a quorum for so long, streams are ended: their zones find a better node, if there is one.
pub(super) const END_AFTER: Duration = Duration::from_secs(30);
/// How often to look. Not on the path of a change.
const LOOK: Duration = Duration::from_secs(1);

/// Why streams end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    NoQuorum,
    Draining,
}

impl Closing {
    pub(super) fn status(self) -> Status {
        Status::unavailable(match self {
            Self::NoQuorum => "this node has no contact with a quorum of its group: connect to another node",
            Self::Draining => "this node is going away: connect to another node",
        })
    }
}

pub(super) struct Gate {
    quorum: Arc<dyn Quorum>,
    /// How often streams were ended for lack of a quorum, and whether the node drains.
    state: watch::Sender<(u64, bool)>,
}

/// A stream's leave to go on.
pub(super) struct Admission(watch::Receiver<(u64, bool)>, u64);

impl Admission {
    /// Waits until the stream must end. Cancel-safe.
    pub(super) async fn ended(&mut self) -> Closing {
        let admitted = self.1;
        match self.0.wait_for(|(ends, draining)| *draining || *ends != admitted).await.as_deref() {
            Ok((_, false)) => Closing::NoQuorum,
            _ => Closing::Draining,
        }
    }
}

impl Gate {
    pub(super) fn new(quorum: Arc<dyn Quorum>) -> Self {
        Self {
            quorum,
            state: watch::Sender::new((0, false)),
        }
    }

    /// Lets a new stream in.
    pub(super) fn admit(&self) -> Result<Admission, Closing> {
        let receiver = self.state.subscribe();
        let (ends, draining) = *receiver.borrow();
        if draining {
            return Err(Closing::Draining);
        }
        if self.quorum.since_contact() >= REFUSE_AFTER {
            return Err(Closing::NoQuorum);
        }
        Ok(Admission(receiver, ends))
    }

    /// Ends all streams and takes no more. It does not wait.
    pub(super) fn drain(&self) {
        self.state.send_modify(|(_, draining)| *draining = true);
    }

    /// Ends streams when the quorum is away for too long, until cancelled.
    pub(super) async fn run(&self, cancel: CancellationToken) {
        let mut ended = false;
        loop {
            let silence = self.quorum.since_contact();
            if silence >= END_AFTER && !ended {
                tracing::warn!(?silence, "no contact with a quorum: the streams of all zones are ended");
                self.state.send_modify(|(ends, _)| *ends += 1);
            }
            ended = silence >= END_AFTER;
            let look = Deadline::after(LOOK);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return self.drain(),
                () = look.passed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use tokio::time::Instant;
    use ursa_runtime::lease::within;

    struct Fake(Mutex<Instant>);

    impl Quorum for Fake {
        fn since_contact(&self) -> Duration {
            self.0.lock().elapsed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_quorum_new_streams_are_refused_first_and_running_ones_ended_later() {
        let quorum = Arc::new(Fake(Mutex::new(Instant::now())));
        let gate = Arc::new(Gate::new(quorum.clone()));
        let cancel = CancellationToken::new();
        let running = tokio::spawn({
            let (gate, cancel) = (gate.clone(), cancel.clone());
            async move { gate.run(cancel).await }
        });
        let mut stream = gate.admit().unwrap();
        tokio::time::sleep(REFUSE_AFTER - LOOK).await;
        assert!(gate.admit().is_ok(), "an election disturbs nobody");
        tokio::time::sleep(LOOK).await;
        assert_eq!(gate.admit().err(), Some(Closing::NoQuorum));
        let begin = Instant::now();
        assert_eq!(within(END_AFTER * 2, stream.ended()).await, Ok(Closing::NoQuorum));
        assert!(begin.elapsed() >= END_AFTER - REFUSE_AFTER && begin.elapsed() <= END_AFTER - REFUSE_AFTER + LOOK);
        // The quorum returns: new streams are served, and not ended by the old loss.
        *quorum.0.lock() = Instant::now();
        let mut stream = gate.admit().unwrap();
        assert!(within(LOOK * 5, stream.ended()).await.is_err());
        // Streams end again with the next loss; then the node goes.
        assert_eq!(within(END_AFTER * 2, stream.ended()).await, Ok(Closing::NoQuorum));
        *quorum.0.lock() = Instant::now();
        let mut stream = gate.admit().unwrap();
        cancel.cancel();
        assert_eq!(stream.ended().await, Closing::Draining);
        assert_eq!(gate.admit().err(), Some(Closing::Draining));
        running.await.unwrap();
    }
}
