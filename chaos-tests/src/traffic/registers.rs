//! Constant writes and reads through the REST API, over all nodes of the global control plane.
//!
//! In: a client per node. Out: a [`History`] for [`crate::oracles::registers`], and what the faults cost the clients.
//! Invariant: one writer per key; it begins a value only when the one before is acknowledged. An attempt without an answer is sent
//! again to the next node under the same request id ([`Retry::SameId`]), or is the last of its key ([`Retry::Never`]). The register
//! is a MeshTrafficPermission that selects no proxy: it goes all the way to the zones and changes nothing there.
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::stats::Times;
use crate::client::{Answer, Api, Error};
use crate::harness::wait::{POLL, Pace, pause_until};
use crate::oracles::registers::{History, Read, Write};

/// One attempt. A node that has no leader answers within it or not at all; then the next one is asked.
const ATTEMPT: Duration = Duration::from_secs(1);
/// After the end of the writing, so long a write in progress may still take.
const SETTLE: Duration = Duration::from_secs(60);
/// Refusals that are kept with their text.
const KEEP_REFUSALS: usize = 20;

/// What a writer does when it does not know the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Sends the same again under the same request id until it is acknowledged.
    SameId,
    /// Leaves that key for good and goes on with another.
    Never,
}

/// What to write and read.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A client per node, with credentials.
    pub nodes: Vec<Api>,
    /// The mesh that the registers lie in.
    pub mesh: String,
    /// Begins the name of every key.
    pub name: String,
    /// Writers, each with a key of its own.
    pub writers: u32,
    /// Readers, each of every key.
    pub readers: u32,
    /// Operations per second of each of them.
    pub rate: u32,
    /// After an attempt without an answer.
    pub retry: Retry,
}

/// What came of it, besides the history.
#[derive(Clone, Debug, Default)]
pub struct Costs {
    /// Attempts to write that were not acknowledged.
    pub failed_attempts: u64,
    /// Reads that were not answered.
    pub failed_reads: u64,
    /// From the first attempt to the acknowledgement.
    pub writes: Times,
    /// From the question to the answer.
    pub reads: Times,
    /// Answers that say that the request itself was wrong: a fault, whatever happens to the nodes.
    pub refusals: Vec<String>,
}

/// Running writes and reads. Dropping it stops them at once.
#[derive(Debug)]
pub struct Registers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    /// The present key of each writer.
    keys: Mutex<Vec<String>>,
    history: Mutex<History>,
    costs: Mutex<Costs>,
}

impl Registers {
    /// Starts writing and reading.
    #[must_use]
    pub fn start(plan: Plan) -> Self {
        let keys = (0..plan.writers).map(|w| key(&plan.name, w, 0)).collect();
        let shared = Arc::new(Shared {
            plan,
            keys: Mutex::new(keys),
            history: Mutex::default(),
            costs: Mutex::default(),
        });
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for writer in 0..shared.plan.writers {
            tasks.spawn(write(shared.clone(), writer, stop.clone()));
        }
        for reader in 0..shared.plan.readers {
            tasks.spawn(read(shared.clone(), reader, stop.clone()));
        }
        Self { stop, tasks, shared }
    }

    /// Looks at what has happened so far.
    pub fn so_far<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.shared.history.lock())
    }

    /// Stops, lets writes in progress end, reads every key once at every node, and returns all that happened.
    pub async fn stop(mut self) -> (History, Costs) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(panicked) = ended {
                self.shared.refused(format!("a client of the test ended: {panicked}"));
            }
        }
        let mut keys: Vec<String> = self.shared.history.lock().writes.iter().map(|w| w.key.clone()).collect();
        keys.sort_unstable();
        keys.dedup();
        for (node, api) in self.shared.plan.nodes.iter().enumerate() {
            for key in &keys {
                self.shared.read_once(api, node, "the last look", key).await;
            }
        }
        (self.shared.history.lock().clone(), self.shared.costs.lock().clone())
    }
}

impl Shared {
    fn refused(&self, why: String) {
        let mut costs = self.costs.lock();
        if costs.refusals.len() < KEEP_REFUSALS {
            costs.refusals.push(why);
        }
    }

    /// Connections of its own for one client.
    fn clients(&self) -> Vec<Api> {
        self.plan.nodes.iter().map(|api| api.fork().with_deadline(ATTEMPT)).collect()
    }

    fn pace(&self) -> Pace {
        Pace::every(Duration::from_secs(1) / self.plan.rate.max(1))
    }

    async fn read_once(&self, api: &Api, node: usize, client: &str, key: &str) {
        let began = Instant::now();
        let value = match api.get(&path(&self.plan.mesh, key)).await {
            Ok(answer) if answer.status == http::StatusCode::NOT_FOUND => Some(0),
            Ok(answer) if answer.status.is_success() => value(&answer),
            Ok(answer) if is_refusal(&answer) => return self.refused(format!("GET {key}: {} {}", answer.status, answer.text())),
            Ok(_) | Err(_) => {
                self.costs.lock().failed_reads += 1;
                return;
            }
        };
        let ended = Instant::now();
        let Some(value) = value else {
            return self.refused(format!("GET {key}: no value in the answer"));
        };
        self.costs.lock().reads.record(ended - began);
        self.history.lock().reads.push(Read {
            client: client.to_owned(),
            key: key.to_owned(),
            value,
            began,
            ended,
            node,
        });
    }
}

async fn write(shared: Arc<Shared>, writer: u32, stop: CancellationToken) {
    let (nodes, mut pace, mesh) = (shared.clients(), shared.pace(), shared.plan.mesh.as_str());
    let (mut generation, mut value, mut node) = (0, 0, writer as usize);
    let mut key = key(&shared.plan.name, writer, generation);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _due = pace.slot() => {}
        }
        value += 1;
        let (id, began, mut attempts) = (uuid::Uuid::new_v4(), Instant::now(), 0);
        let body = resource(mesh, &key, value);
        let acked = loop {
            let last_began = Instant::now();
            attempts += 1;
            node = (node + 1) % nodes.len();
            // Known from the first attempt on: a read may see it before we hear of it.
            let mut known = Write {
                key: key.clone(),
                value,
                began,
                last_began,
                acked: None,
                attempts,
                node: usize::MAX,
                revision: None,
            };
            record(&shared, known.clone());
            match nodes[node].put_once(&path(mesh, &key), &body, id).await {
                Ok(answer) if answer.status.is_success() => {
                    (known.acked, known.node, known.revision) = (Some(answer.received), node, answer.revision());
                    record(&shared, known);
                    shared.costs.lock().writes.record(answer.received - began);
                    break true;
                }
                Ok(answer) if is_refusal(&answer) => {
                    shared.refused(format!("PUT {key} = {value}: {} {}", answer.status, answer.text()));
                    return;
                }
                Ok(_) | Err(_) => shared.costs.lock().failed_attempts += 1,
            }
            if shared.plan.retry == Retry::Never || (stop.is_cancelled() && began.elapsed() > SETTLE) {
                break false;
            }
            pause_until(last_began + POLL).await;
        };
        if !acked {
            if stop.is_cancelled() {
                return;
            }
            (generation, value) = (generation + 1, 0);
            key = self::key(&shared.plan.name, writer, generation);
            if let Some(current) = shared.keys.lock().get_mut(writer as usize) {
                current.clone_from(&key);
            }
        }
        if attempts > 1 {
            // A writer that was held up goes on at its rate; it does not make up for what it missed.
            pace = shared.pace();
        }
    }
}

/// Adds the write, or what is new about it.
fn record(shared: &Shared, write: Write) {
    let mut history = shared.history.lock();
    // The present write of a writer is among the last few.
    let known = history
        .writes
        .iter_mut()
        .rev()
        .find(|w| w.key == write.key && w.value == write.value);
    match known {
        Some(known) => *known = write,
        None => history.writes.push(write),
    }
}

async fn read(shared: Arc<Shared>, reader: u32, stop: CancellationToken) {
    let (nodes, mut pace) = (shared.clients(), shared.pace());
    let client = format!("reader {}", reader + 1);
    let mut turn = reader as usize;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _due = pace.slot() => {}
        }
        turn += 1;
        let node = turn % nodes.len();
        let key = {
            let keys = shared.keys.lock();
            keys.get((turn / nodes.len()) % keys.len().max(1)).cloned()
        };
        let Some(key) = key else { return };
        let began = Instant::now();
        shared.read_once(&nodes[node], node, &client, &key).await;
        if began.elapsed() > ATTEMPT / 2 {
            pace = shared.pace();
        }
    }
}

/// The request itself is wrong. Too many requests, or too slow ones, are the server's state.
fn is_refusal(answer: &Answer) -> bool {
    answer.status.is_client_error()
        && !matches!(
            answer.status,
            http::StatusCode::REQUEST_TIMEOUT | http::StatusCode::TOO_MANY_REQUESTS | http::StatusCode::CONFLICT
        )
}

fn key(name: &str, writer: u32, generation: u32) -> String {
    match generation {
        0 => format!("{name}-{writer}"),
        generation => format!("{name}-{writer}-{generation}"),
    }
}

/// Where a key lives in the API.
pub(crate) fn path(mesh: &str, key: &str) -> String {
    format!("/meshes/{mesh}/meshtrafficpermissions/{key}")
}

const VALUE: &str = "spiffe://register/";

/// A permission for a workload that does not exist; the value is part of whom it permits.
pub(crate) fn resource(mesh: &str, key: &str, value: u64) -> Value {
    json!({
        "type": "MeshTrafficPermission", "mesh": mesh, "name": key,
        "spec": {
            "targetRef": {"kind": "Dataplane", "labels": {"kuma.io/workload": "register"}},
            "rules": [{"default": {"allow": [{"spiffeID": {"type": "Exact", "value": format!("{VALUE}{value}")}}]}}],
        },
    })
}

/// Path and body of a single write that changes nothing for any proxy.
#[must_use]
pub fn probe(mesh: &str, name: &str) -> (String, Value) {
    (path(mesh, name), resource(mesh, name, 1))
}

fn value(answer: &Answer) -> Option<u64> {
    let resource: Value = answer.json::<Value>().map_err(|_: Error| ()).ok()?;
    let text = resource["spec"]["rules"][0]["default"]["allow"][0]["spiffeID"]["value"].as_str()?;
    text.strip_prefix(VALUE)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::Router;
    use axum::extract::{Path, State};
    use axum::http::StatusCode;
    use axum::routing::get;
    use axum::{Json, http};

    use super::*;
    use crate::client::Target;
    use crate::harness::{Poll, wait_until};
    use crate::oracles::registers::Wrong;

    /// A store with faults: every `lie`-th read answers an old value; every `fail`-th write is done but not
    /// acknowledged; of every two `lose` writes the second half is acknowledged but not done.
    #[derive(Default)]
    struct Store {
        values: Mutex<BTreeMap<String, Vec<Value>>>,
        calls: AtomicU64,
        lie: u64,
        fail: u64,
        lose: u64,
    }

    impl Store {
        fn every(&self, nth: u64) -> bool {
            nth > 0 && (self.calls.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(nth)
        }

        /// As many writes in a row as were kept before.
        fn loses(&self) -> bool {
            self.lose > 0 && (self.calls.fetch_add(1, Ordering::Relaxed) / self.lose) % 2 == 1
        }
    }

    async fn read_one(State(store): State<Arc<Store>>, Path(name): Path<String>) -> Result<Json<Value>, StatusCode> {
        let lies = store.every(store.lie);
        let values = store.values.lock();
        let values = values.get(&name).ok_or(StatusCode::NOT_FOUND)?;
        // Old enough to be wrong even beside a write in flight.
        let at = values.len().saturating_sub(if lies { 5 } else { 1 });
        Ok(Json(values[at].clone()))
    }

    async fn write_one(
        State(store): State<Arc<Store>>,
        Path(name): Path<String>,
        headers: http::HeaderMap,
        Json(body): Json<Value>,
    ) -> StatusCode {
        assert_eq!(headers[crate::client::REQUEST_ID_HEADER].len(), 32);
        if !store.loses() {
            store.values.lock().entry(name).or_default().push(body);
        }
        if store.every(store.fail) {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        }
    }

    async fn judged(store: Store, retry: Retry) -> (History, Costs) {
        let router = Router::new()
            .route("/meshes/default/meshtrafficpermissions/{name}", get(read_one).put(write_one))
            .with_state(Arc::new(store));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let nodes = vec![Api::new(Target::Tcp(address)), Api::new(Target::Tcp(address))];
        let registers = Registers::start(Plan {
            nodes,
            mesh: "default".into(),
            name: "register".into(),
            writers: 2,
            readers: 2,
            rate: 500,
            retry,
        });
        let enough = async || {
            let done = registers.so_far(|h| (h.acknowledged(), h.reads.len()));
            Ok(Poll::when(done.0 > 150 && done.1 > 150, (), || format!("{done:?}")))
        };
        wait_until("enough operations", Duration::from_secs(60), POLL, enough)
            .await
            .unwrap();
        registers.stop().await
    }

    #[tokio::test]
    async fn a_right_store_passes() {
        let (history, costs) = judged(Store::default(), Retry::SameId).await;
        assert!(history.violations().is_empty(), "{}", history.violations()[0]);
        assert_eq!(
            (costs.failed_attempts, costs.failed_reads, costs.refusals.len()),
            (0, 0, 0),
            "{costs:?}"
        );
        assert_eq!(history.acknowledged(), history.writes.len());
    }

    #[tokio::test]
    async fn an_attempt_without_an_answer_is_sent_again_or_ends_its_key() {
        let fails = || Store {
            fail: 10,
            ..Store::default()
        };
        let (history, costs) = judged(fails(), Retry::SameId).await;
        assert!(history.violations().is_empty() && costs.failed_attempts > 0);
        assert_eq!((history.acknowledged(), history.newest().len()), (history.writes.len(), 2));
        assert!(history.writes.iter().any(|w| w.attempts > 1));
        let (history, _) = judged(fails(), Retry::Never).await;
        assert!(history.violations().is_empty());
        assert!(history.acknowledged() < history.writes.len() && history.newest().len() > 2);
    }

    #[tokio::test]
    async fn a_store_that_loses_or_lies_is_caught() {
        let (history, _) = judged(
            Store {
                lose: 20,
                ..Store::default()
            },
            Retry::SameId,
        )
        .await;
        let lost = |v: &crate::oracles::registers::Violation| matches!(v.wrong, Wrong::Missing { .. });
        assert!(history.violations().iter().any(lost));
        let (history, _) = judged(
            Store {
                lie: 9,
                ..Store::default()
            },
            Retry::SameId,
        )
        .await;
        assert!(!history.violations().is_empty());
    }
}
