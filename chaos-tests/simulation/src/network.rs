//! The network between the nodes: every message goes its own way, later, twice or not at all.
//! In: calls of the stores. Out: the answers of the nodes that run at the time when the calls arrive.
//! Invariants: a node that is dead, or whose machine is off, neither says nor hears anything; a link has two directions, each with a
//! fate of its own; a message that is lost stays lost, and its caller learns of it by the keep-alive or its own deadline.
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;
use ursa_runtime::CancellationToken;
use ursa_runtime::tasks::{OnExit, Tasks};
use ursa_store::testing::{Carrier, Listener, Lost, SimDisk};

use crate::note;
use crate::oracles::promises::Promises;
use crate::pause;
use crate::trace::Trace;

/// After this long without a sign of the other side a connection is given up, as the store's keep-alive does, and with it what was on
/// its way.
const KEEPALIVE: Duration = Duration::from_millis(1500);

/// One run of a node's process, from its start to its end.
#[derive(Clone, Debug)]
pub struct Life {
    pub node: u64,
    /// Counts the lives of the node.
    pub number: u32,
    pub disk: SimDisk,
    pub ended: CancellationToken,
}

impl Life {
    /// Whether nothing that it does can be seen any more.
    pub fn is_over(&self) -> bool {
        self.ended.is_cancelled() || !self.disk.is_on()
    }
}

/// How messages fare in one direction of a link.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Nothing gets through.
    pub cut: bool,
    pub delay: Range<Duration>,
    /// Part of the messages that are lost.
    pub loss: f64,
    /// Part of the messages that arrive twice.
    pub twice: f64,
}

/// Shared handle.
#[derive(Clone, Debug)]
pub struct Network {
    trace: Trace,
    promises: Promises,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    rng: StdRng,
    usual: Link,
    links: BTreeMap<(u64, u64), Link>,
    ports: BTreeMap<u64, Port>,
    calls: u64,
    /// Who was sent a whole state.
    restored: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
struct Port {
    life: Life,
    /// `None` while the store is being opened.
    listener: Option<Listener>,
    tasks: Tasks,
}

/// The way from one life of a node to the others.
#[derive(Debug)]
struct Wire {
    network: Network,
    life: Life,
}

impl Network {
    pub fn new(seed: u64, usual: Link, trace: Trace, promises: Promises) -> Self {
        Self {
            trace,
            promises,
            state: Arc::new(Mutex::new(State {
                rng: StdRng::seed_from_u64(seed),
                usual,
                links: BTreeMap::new(),
                ports: BTreeMap::new(),
                calls: 0,
                restored: BTreeSet::new(),
            })),
        }
    }

    /// The life begins; it can call, and nobody listens yet.
    pub fn plug(&self, life: &Life, tasks: &Tasks) -> Arc<dyn Carrier> {
        let port = Port {
            life: life.clone(),
            listener: None,
            tasks: tasks.clone(),
        };
        self.state.lock().ports.insert(life.node, port);
        Arc::new(Wire {
            network: self.clone(),
            life: life.clone(),
        })
    }

    /// From now on the node answers.
    pub fn listen(&self, node: u64, listener: Listener) {
        if let Some(port) = self.state.lock().ports.get_mut(&node) {
            port.listener = Some(listener);
        }
    }

    /// The node is gone.
    pub fn unplug(&self, node: u64) {
        self.state.lock().ports.remove(&node);
    }

    /// Changes one direction of a link.
    pub fn set(&self, from: u64, to: u64, change: impl FnOnce(&mut Link)) {
        let mut state = self.state.lock();
        let usual = state.usual.clone();
        change(state.links.entry((from, to)).or_insert(usual));
    }

    /// One direction of a link as it was at the beginning.
    pub fn restore(&self, from: u64, to: u64) {
        self.state.lock().links.remove(&(from, to));
    }

    /// Whether both directions are as they were at the beginning.
    pub fn is_usual(&self, a: u64, b: u64) -> bool {
        let state = self.state.lock();
        [(a, b), (b, a)]
            .iter()
            .all(|way| state.links.get(way).is_none_or(|link| *link == state.usual))
    }

    /// Whether a node was ever sent a whole state. Its log then begins behind that, whatever its own snapshots reach.
    pub fn was_restored(&self, node: u64) -> bool {
        self.state.lock().restored.contains(&node)
    }

    /// When the copies of a message arrive; none if it is lost.
    fn fate(&self, from: u64, to: u64) -> Vec<Duration> {
        let mut state = self.state.lock();
        let link = state.links.get(&(from, to)).unwrap_or(&state.usual).clone();
        let State { rng, .. } = &mut *state;
        // Always the same number of draws, so that one message's fate does not change that of the next more than it must.
        let (lost, twice) = (rng.random::<f64>() < link.loss, rng.random::<f64>() < link.twice);
        let (first, second) = (rng.random_range(link.delay.clone()), rng.random_range(link.delay.clone()) * 3);
        match (link.cut || lost, twice) {
            (true, _) => Vec::new(),
            (false, false) => vec![first],
            (false, true) => vec![first, first + second],
        }
    }

    fn number(&self) -> u64 {
        let mut state = self.state.lock();
        state.calls += 1;
        state.calls
    }

    /// A call arrives. Its answer, if any, goes into `answer`.
    fn arrive(&self, call: Call, answer: Option<oneshot::Sender<Result<Bytes, Lost>>>) {
        let port = {
            let mut state = self.state.lock();
            if call.method == "Snapshot" {
                state.restored.insert(call.to);
            }
            state.ports.get(&call.to).cloned()
        };
        let Some(port) = port.filter(|port| !port.life.is_over()) else {
            return note!(self.trace, "n{} is away, #{} is lost", call.to, call.number);
        };
        let Some(listener) = port.listener else {
            // Nobody listens at that port: the machine says so.
            let back = self.fate(call.to, call.from).first().copied();
            if let (Some(back), Some(answer)) = (back, answer) {
                port.tasks.spawn("refusal", OnExit::Contain, |_| async move {
                    pause(back).await;
                    let _ = answer.send(Err(Lost::Unreachable("connection refused".to_owned())));
                });
            }
            return;
        };
        let network = self.clone();
        port.tasks.spawn("call", OnExit::Contain, |cancel| async move {
            let work = async {
                let answered = listener.answer(call.from, call.method, &call.messages).await;
                if port.life.is_over() {
                    return;
                }
                network.heard(&call, &answered);
                let back = network.fate(call.to, call.from).first().copied();
                if let (Some(back), Some(answer)) = (back, answer) {
                    pause(back).await;
                    let _ = answer.send(answered);
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = port.life.ended.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// An answer leaves.
    fn heard(&self, call: &Call, answered: &Result<Bytes, Lost>) {
        match answered {
            Ok(bytes) => {
                note!(self.trace, "n{}<n{} #{} {:08x}", call.from, call.to, call.number, digest(bytes));
                self.promises.answered(call.to, call.method, bytes);
            }
            Err(lost) => note!(self.trace, "n{}<n{} #{} {lost:?}", call.from, call.to, call.number),
        }
    }
}

/// A call on its way.
#[derive(Clone, Debug)]
struct Call {
    number: u64,
    from: u64,
    to: u64,
    method: &'static str,
    messages: Vec<Bytes>,
}

fn digest(bytes: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    (hasher.finish() & 0xffff_ffff) as u32
}

impl Carrier for Wire {
    fn carry(&self, to: u64, method: &'static str, messages: Vec<Bytes>) -> BoxFuture<'_, Result<Bytes, Lost>> {
        Box::pin(async move {
            if self.life.is_over() {
                return pending().await;
            }
            let (network, from) = (&self.network, self.life.node);
            let number = network.number();
            let size: usize = messages.iter().map(Bytes::len).sum();
            let sum = messages.iter().fold(0_u32, |sum, bytes| digest(bytes) ^ sum.rotate_left(1));
            note!(network.trace, "n{from}>n{to} #{number} {method} {size} {sum:08x}");
            if let Some(first) = messages.first() {
                network.promises.asked(from, method, first);
            }
            let call = Call {
                number,
                from,
                to,
                method,
                messages,
            };
            let fate = network.fate(from, to);
            let (answer, answered) = oneshot::channel();
            let mut answer = Some(answer);
            let tasks = {
                let state = network.state.lock();
                let port = state.ports.get(&from).filter(|port| port.life.number == self.life.number);
                port.map(|port| port.tasks.clone())
            };
            let Some(tasks) = tasks else { return pending().await };
            for delay in fate {
                let (network, call, answer) = (network.clone(), call.clone(), answer.take());
                // What is on its way arrives, whatever becomes of its sender: the task is no part of it. See `Network::new`.
                tasks.spawn("message", OnExit::Contain, |_| async move {
                    pause(delay).await;
                    network.arrive(call, answer);
                });
            }
            // Of a message that is lost there is no answer.
            drop(answer);
            match answered.await {
                Ok(answer) => answer,
                Err(_) => {
                    pause(KEEPALIVE).await;
                    Err(Lost::Broken("the connection is dead".to_owned()))
                }
            }
        })
    }
}
