//! Tells when writes are accepted, finer than clients that wait for their answers can: a small write every [`PERIOD`], at each node in turn.
//!
//! In: a client per node. Out: when each accepted write was sent and acknowledged.
//! Invariant: open loop: a write is sent when it is due, however many are unanswered, and each has a deadline of its own. So a pause
//! is measured to within [`PERIOD`], wherever the fault is. Nothing is sent twice. What is lost here is nobody's loss: the judge of
//! acknowledged writes looks at [`super::registers`].
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::registers::{path, resource};
use crate::client::Api;
use crate::demo::topology::MESH;
use crate::harness::wait::{POLL, Pace, Poll, wait_until};

/// Time between two writes.
pub const PERIOD: Duration = Duration::from_millis(50);
/// One write. A node that finds a leader again answers those that it holds; a younger one is there all the time.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Resources that are written by turns, so that writes under way do not meet.
const KEYS: u64 = 8;

/// A running probe. Dropping it stops it.
#[derive(Debug)]
pub struct WriteProbe {
    stop: CancellationToken,
    /// Ends with the probe.
    _task: JoinSet<()>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    accepted: Vec<Accepted>,
    last_failure: String,
}

/// An acknowledged write.
#[derive(Clone, Copy, Debug)]
struct Accepted {
    sent: Instant,
    acked: Instant,
    node: usize,
}

impl WriteProbe {
    /// Starts, and waits until every node has accepted a write: from then on connections stand.
    ///
    /// # Errors
    /// If a node accepts none within `deadline`.
    pub async fn start(nodes: &[Api], deadline: Duration) -> anyhow::Result<Self> {
        anyhow::ensure!(!nodes.is_empty(), "no node to write to");
        let (stop, seen, mut task) = (CancellationToken::new(), Arc::<Mutex<Seen>>::default(), JoinSet::new());
        task.spawn(run(nodes.to_vec(), stop.clone(), seen.clone()));
        let probe = Self { stop, _task: task, seen };
        wait_until("every node accepts a write", deadline, POLL, async || {
            let seen = probe.seen.lock();
            let missing = (0..nodes.len()).find(|node| !seen.accepted.iter().any(|a| a.node == *node));
            Ok(Poll::when(missing.is_none(), (), || {
                format!("none at node {missing:?}, last failure: {}", seen.last_failure)
            }))
        })
        .await?;
        Ok(probe)
    }

    /// The first acknowledgement of a write that was sent at `from` or later.
    #[must_use]
    pub fn first_accepted(&self, from: Instant) -> Option<Instant> {
        let seen = self.seen.lock();
        seen.accepted.iter().filter(|a| a.sent >= from).map(|a| a.acked).min()
    }

    /// Waits for the first accepted write that was sent at `from` or later. Returns how long after `from` that was.
    ///
    /// # Errors
    /// If there is none within `deadline`.
    pub async fn accepted_after(&self, from: Instant, what: &str, deadline: Duration) -> anyhow::Result<Duration> {
        let (at, _) = wait_until(what, deadline, POLL, async || {
            Ok(match self.first_accepted(from) {
                Some(at) => Poll::Ready(at),
                None => Poll::NotYet(self.seen.lock().last_failure.clone()),
            })
        })
        .await?;
        Ok(at - from)
    }

    /// The longest time within `from..until` without any acknowledgement, its ends counting as if there were one.
    #[must_use]
    pub fn longest_pause(&self, from: Instant, until: Instant) -> Duration {
        let seen = self.seen.lock();
        longest_pause(seen.accepted.iter().map(|a| a.acked), from, until)
    }

    /// Stops. What was written stays: see [`paths`].
    pub fn stop(self) {
        self.stop.cancel();
    }
}

/// Where everything lies that probes write.
pub fn paths() -> impl Iterator<Item = String> {
    (0..KEYS).map(|turn| path(MESH, &key(turn)))
}

fn longest_pause(acks: impl Iterator<Item = Instant>, from: Instant, until: Instant) -> Duration {
    let mut acks: Vec<Instant> = acks.filter(|at| (from..until).contains(at)).collect();
    acks.extend([from, until]);
    acks.sort_unstable();
    acks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn key(turn: u64) -> String {
    format!("probe-{}", turn % KEYS)
}

async fn run(nodes: Vec<Api>, stop: CancellationToken, seen: Arc<Mutex<Seen>>) {
    let mut idle: Vec<VecDeque<Api>> = nodes.iter().map(|_| VecDeque::new()).collect();
    // Each lives at most ATTEMPT, so at most ATTEMPT / PERIOD are on their way.
    let mut on_their_way: JoinSet<(usize, Api)> = JoinSet::new();
    let (mut pace, mut turn) = (Pace::every(PERIOD), 0_u64);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(done) = on_their_way.join_next() => {
                if let Ok((node, client)) = done && let Some(idle) = idle.get_mut(node) {
                    idle.push_back(client);
                }
            }
            _due = pace.slot() => {
                turn += 1;
                let node = usize::try_from(turn).unwrap_or_default() % nodes.len();
                let client = idle[node].pop_front().unwrap_or_else(|| nodes[node].fork().with_deadline(ATTEMPT));
                let (key, seen) = (key(turn), seen.clone());
                on_their_way.spawn(async move {
                    let sent = Instant::now();
                    match client.put(&path(MESH, &key), &resource(MESH, &key, turn)).await.and_then(crate::client::Answer::success) {
                        Ok(answer) => seen.lock().accepted.push(Accepted { sent, acked: answer.received, node }),
                        Err(error) => seen.lock().last_failure = super::in_words(&error),
                    }
                    (node, client)
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::Router;
    use axum::extract::State;
    use axum::http::StatusCode;
    use axum::routing::put;

    use super::*;
    use crate::client::Target;

    const LONG: Duration = Duration::from_secs(30);

    async fn answer(State(takes): State<Arc<AtomicBool>>) -> StatusCode {
        if takes.load(Ordering::Relaxed) {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }

    /// A node that takes writes while it is told to.
    async fn node(takes: Arc<AtomicBool>, server: &mut JoinSet<()>) -> Api {
        let router = Router::new()
            .route("/meshes/default/meshtrafficpermissions/{name}", put(answer))
            .with_state(takes);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Api::new(Target::Tcp(address))
    }

    #[tokio::test]
    async fn the_first_write_after_a_fault_is_found_even_while_a_node_says_nothing() {
        let (takes, mut server) = (Arc::new(AtomicBool::new(true)), JoinSet::new());
        let nodes = [
            node(takes.clone(), &mut server).await,
            node(Arc::new(AtomicBool::new(true)), &mut server).await,
        ];
        let probe = WriteProbe::start(&nodes, LONG).await.unwrap();
        // The other node hangs from here on.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hanging = [nodes[0].clone(), Api::new(Target::Tcp(silent.local_addr().unwrap()))];
        let refused = WriteProbe::start(&hanging, Duration::from_millis(200)).await.unwrap_err();
        assert!(refused.to_string().contains("none at node Some(1)"), "{refused}");
        probe.stop();

        let probe = WriteProbe::start(&nodes[..1], LONG).await.unwrap();
        takes.store(false, Ordering::Relaxed);
        let fault = Instant::now();
        let none = probe.accepted_after(fault + PERIOD, "a write", PERIOD * 8).await.unwrap_err();
        assert!(none.to_string().contains("503"), "{none}");
        takes.store(true, Ordering::Relaxed);
        let healed = Instant::now();
        let took = probe.accepted_after(fault + PERIOD, "a write", LONG).await.unwrap();
        assert!(fault + PERIOD + took >= healed);
        assert!(probe.longest_pause(fault, Instant::now()) >= PERIOD * 4);
    }

    #[test]
    fn a_pause_counts_from_and_to_the_ends() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let pause = |until: u64| longest_pause([at(10), at(30)].into_iter(), at(0), at(until)).as_millis();
        assert_eq!((pause(35), pause(100)), (20, 70));
    }
}
