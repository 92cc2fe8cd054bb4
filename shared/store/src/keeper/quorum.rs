//! Contact with the majority, as seen by the leader, and what follows from its loss.
//! In: ticks. Out: the moment of the last contact; silence ([`super::voice`] decides), with a word to the others as it begins.
//! Invariant: nothing here waits while it ticks.
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;
use ursa_runtime::{CancellationToken, heartbeat};

use super::voice::{Act, Limits, Seen, Voice};
use crate::defects::{self, Defect};
use crate::log;
use crate::net::peers::Method;
use crate::net::wire::{self, Transfer};
use crate::net::{Lane, Peers, admission};
use crate::raft::Timings;
use crate::store::{Inner, Store};

/// What a tick finds.
struct Found {
    /// The term in which this node leads, if it does.
    leads: Option<u64>,
    voters: Vec<u64>,
    /// Whom to recommend as the next leader.
    next: Option<u64>,
}

/// Keeps the moment of the last contact with a majority, and silences a leader that gets no answers.
pub(super) async fn run(inner: Weak<Inner>, peers: Peers, timings: Timings, closing: CancellationToken) {
    let limits = Limits::of(&timings);
    let (period, wait) = (timings.sane().heartbeat, timings.sane().election_min);
    let mut ticker = heartbeat::every(period, &closing);
    let shared = peers.shared.clone();
    let mut voice = Voice::Follows;
    let mut led = None;
    // Greetings and last words under way; whether a greeting was answered.
    let mut calls: FuturesUnordered<BoxFuture<'static, bool>> = FuturesUnordered::new();
    let mut answered = 0;
    loop {
        tokio::select! {
            biased;
            ticked = ticker.tick() => if !ticked { return },
            Some(greeted) = calls.next() => {
                answered += usize::from(greeted);
                continue;
            }
        }
        let Some(found) = inner.upgrade().map(|inner| look(&inner.into(), &peers)) else {
            return;
        };
        if led != found.leads {
            if found.leads.is_some() {
                // A majority has just elected it.
                shared.contact.seen_ago(Duration::ZERO);
            }
            shared.replaced.store(false, Ordering::Release);
        }
        led = found.leads;
        let seen = Seen {
            now: Instant::now(),
            leads: found.leads,
            age: shared.contact.now().age(),
            gave_up: shared.replaced.load(Ordering::Acquire),
            greeted: (answered + 1) * 2 > found.voters.len(),
        };
        let others = found.voters.iter().copied().filter(|id| *id != peers.node_id());
        match voice.tick(&limits, seen) {
            Act::GoOn => {}
            Act::FallSilent if defects::on(Defect::DeafLeaderTalks) => {}
            Act::FallSilent => {
                tracing::warn!(target: "ursa_store::keeper", "no majority answers this leader: it falls silent, so that the others can elect another one");
                shared.muted.store(true, Ordering::Release);
                (calls, answered) = (FuturesUnordered::new(), 0);
                if let (Some(term), Some(next)) = (found.leads, found.next) {
                    let words = last_words(peers.node_id(), term, next);
                    calls.extend(others.map(|id| tell(peers.clone(), id, words.clone(), wait)));
                }
            }
            Act::Greet if calls.is_empty() => {
                answered = 0;
                calls.extend(others.map(|id| greet(peers.clone(), id)));
            }
            Act::Greet => {}
            Act::Speak => {
                tracing::info!(target: "ursa_store::keeper", term = found.leads, "another member leads, or a majority answers: this node speaks again");
                shared.muted.store(false, Ordering::Release);
                (calls, answered) = (FuturesUnordered::new(), 0);
            }
        }
    }
}

fn look(store: &Store, peers: &Peers) -> Found {
    let metrics = store.inner().raft.metrics();
    let metrics = metrics.borrow_watched();
    let leads = metrics.current_leader == Some(peers.node_id());
    let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
    let contact = &peers.shared.contact;
    if voters == [peers.node_id()] {
        contact.seen_ago(Duration::ZERO); // alone, it is the majority
    } else if leads && let Some(at) = &metrics.last_quorum_acked {
        contact.seen_ago(at.elapsed());
    }
    let leads = leads.then_some(metrics.current_term);
    drop(metrics);
    Found {
        leads,
        voters,
        next: store.furthest(&[]),
    }
}

/// Who hears this clings to the silent leader no longer, and `next` stands for election at once. If that is in vain, the others stand
/// after their election timeouts.
fn last_words(me: u64, term: u64, next: u64) -> bytes::Bytes {
    let from = log::Vote {
        term,
        node_id: me,
        committed: true,
    };
    // What it holds that nobody acknowledged must not keep the others from leading.
    wire::encode(&Transfer {
        from,
        to: next,
        last: None,
    })
}

fn tell(peers: Peers, node: u64, words: bytes::Bytes, wait: Duration) -> BoxFuture<'static, bool> {
    Box::pin(async move {
        let told = peers.call(node, Lane::Signs, Method::TransferLeader, words, wait).await;
        tracing::debug!(peer = node, ?told, "told that this leader falls silent");
        false
    })
}

fn greet(peers: Peers, node: u64) -> BoxFuture<'static, bool> {
    Box::pin(async move { admission::greet(&peers, node).await.is_ok() })
}
