//! Links that a test cuts.
//! In: which way to which member. Out: calls that never arrive, or whose answers never do, or too late, or damaged.
//! Invariant: a call that is held ends at its own deadline, as on a network that swallows packets.
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::{Response, Status};
use ursa_proto::peer;
use ursa_runtime::lease::Deadline;

use super::peers::Method;
use crate::level::Levels;

/// What is lost on the way to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Requests, and so everything.
    Requests,
    /// The answers alone.
    Answers,
    /// Answers to what a leader sends, and its last words. All other calls are answered.
    Appends,
    /// Nothing, but answers take this much longer.
    Late(Duration),
    /// Answers come, but do not say whose they are.
    Nameless,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Faults {
    cuts: watch::Sender<BTreeMap<u64, Cut>>,
    /// This node does not say where its log ended, as a program from before that was said.
    pub(crate) hides_log_end: AtomicBool,
    /// This node says that it knows these feature levels.
    pub(crate) announces: Mutex<Option<Levels>>,
    /// Snapshots are sent up to here.
    snapshot: watch::Sender<Option<Stop>>,
}

/// Where the sending of a snapshot stops, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) at: u64,
    /// The connection breaks, once; otherwise nobody reads on, until this is lifted.
    pub(crate) breaks: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            cuts: watch::Sender::new(BTreeMap::new()),
            hides_log_end: AtomicBool::new(false),
            announces: Mutex::default(),
            snapshot: watch::Sender::new(None),
        }
    }
}

impl Faults {
    pub(crate) fn set(&self, node: u64, cut: Option<Cut>) {
        self.cuts.send_modify(|cuts| {
            match cut {
                Some(cut) => cuts.insert(node, cut),
                None => cuts.remove(&node),
            };
        });
    }

    pub(crate) fn stop_snapshots(&self, stop: Option<Stop>) {
        self.snapshot.send_replace(stop);
    }

    /// Whether to send what follows, once it may be.
    pub(crate) async fn snapshot_goes_on(&self, offset: u64) -> bool {
        let mut stop = self.snapshot.subscribe();
        let now = *stop.borrow_and_update();
        match now {
            Some(Stop { at, breaks: true }) if offset >= at => {
                self.snapshot.send_replace(None);
                false
            }
            Some(Stop { at, breaks: false }) if offset >= at => stop.wait_for(Option::is_none).await.is_ok(),
            _ => true,
        }
    }

    fn of(&self, node: u64) -> Option<Cut> {
        self.cuts.borrow().get(&node).copied()
    }

    /// Returns when a request to `node` may go.
    pub(crate) async fn request(&self, node: u64, method: Method) {
        match self.of(node) {
            Some(Cut::Requests) => std::future::pending().await,
            Some(Cut::Appends) if method == Method::TransferLeader => std::future::pending().await,
            _ => {}
        }
    }

    /// Returns when an answer of `node` may be heard. One that was lost stays lost.
    pub(crate) async fn answer(&self, node: u64, method: Method, answer: &mut Result<Response<peer::Answer>, Status>) {
        match self.of(node) {
            None => {}
            Some(Cut::Appends) if method != Method::Append => {}
            Some(Cut::Requests | Cut::Answers | Cut::Appends) => std::future::pending().await,
            Some(Cut::Late(by)) => Deadline::after(by).passed().await,
            Some(Cut::Nameless) => {
                if let Ok(answer) = answer {
                    answer.get_mut().from = None;
                }
            }
        }
    }
}
