//! One seed: a world is made, used and disturbed for a while, made well, and judged.
//! In: a seed. Out: a report. Invariant: everything that varies follows from the seed; nothing is carried over from one run to the next.
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use ursa_pki::node::{ClusterCa, ClusterName, NODE_LIFE};
use ursa_runtime::tasks::OnExit;
use ursa_store::{NodeTls, Timings, log};

use crate::clients::{Book, Client, Done, Habits};
use crate::judge::{Finding, Judge};
use crate::network::{Link, Network};
use crate::oracles::agreement::{self, Agreement};
use crate::oracles::promises::Promises;
use crate::oracles::{linearizable, panics, progress, writes};
use crate::trace::Trace;
use crate::watchers::Watcher;
use crate::world::{Settings, World};
use crate::{entropy, faults, ms, note, pause};

/// Highest id of a node, those included that join later.
pub(crate) const MOST: u64 = 9;
/// Longest time until all is well again once nothing disturbs any more.
const RECOVERY: Duration = Duration::from_secs(30);
/// Simulated time after which a run is given up: far beyond the longest.
const LONGEST: Duration = Duration::from_secs(600);
/// Size of a run's stack.
const STACK: usize = 8 << 20;

/// What is not drawn from the seed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long faults happen, in simulated time.
    pub faults_for: Duration,
    /// Lines of the trace to keep.
    pub keep: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            faults_for: Duration::from_secs(12),
            keep: 200,
        }
    }
}

/// What came of a seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub seed: u64,
    pub findings: Vec<Finding>,
    /// Hash of the trace.
    pub hash: u64,
    /// Events in it.
    pub events: u64,
    pub lines: Vec<String>,
    pub done: Done,
    /// Simulated.
    pub time: Duration,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }

    /// Of a run that did not end.
    pub fn given_up(seed: u64, what: String) -> Self {
        let finding = Finding {
            oracle: "ends".to_owned(),
            what,
        };
        Self {
            seed,
            findings: vec![finding],
            hash: 0,
            events: 0,
            lines: Vec::new(),
            done: Done::default(),
            time: Duration::ZERO,
        }
    }
}

/// Certificates for all nodes, made once per process: they are checked when a store is opened, and never sent anywhere here.
fn certificates() -> Arc<BTreeMap<u64, NodeTls>> {
    static MADE: OnceLock<Arc<BTreeMap<u64, NodeTls>>> = OnceLock::new();
    MADE.get_or_init(|| Arc::new(make_certificates())).clone()
}

#[allow(clippy::unwrap_used, reason = "constant input")]
fn make_certificates() -> BTreeMap<u64, NodeTls> {
    let now = time::OffsetDateTime::from_unix_timestamp(entropy::TODAY).unwrap();
    let name: ClusterName = "simulation".parse().unwrap();
    let material = ClusterCa::generate(&name, now).unwrap();
    let ca = ClusterCa::load(&material).unwrap();
    let issue = |id| {
        let made = ca.issue(id, &["127.0.0.1".to_owned()], NODE_LIFE, now).unwrap();
        let tls = NodeTls {
            ca_pem: material.cert_pem.clone(),
            cert_pem: made.cert_pem,
            key_pem: made.key_pem,
        };
        (id, tls)
    };
    (1..=MOST).map(issue).collect()
}

/// Runs one seed, on a thread of its own. Once per process: see [`crate::children`].
pub fn seed(seed: u64, options: Options) -> Report {
    let tls = certificates();
    let work = move || {
        entropy::seed_this_thread(seed);
        panics::watch();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(Box::pin(run(seed, options, tls))),
            Err(error) => Report::given_up(seed, format!("no runtime: {error}")),
        }
    };
    let thread = std::thread::Builder::new()
        .name(format!("seed-{seed}"))
        .stack_size(STACK)
        .spawn(work);
    let joined = thread.map(std::thread::JoinHandle::join);
    match joined {
        Ok(Ok(report)) => report,
        Ok(Err(_)) => Report::given_up(seed, "the run itself panicked".to_owned()),
        Err(error) => Report::given_up(seed, format!("no thread: {error}")),
    }
}

/// What a seed says of its world.
fn draw(rng: &mut StdRng, tls: Arc<BTreeMap<u64, NodeTls>>) -> (Settings, Link, Habits, u64) {
    let nodes = *[3, 3, 3, 5].choose(rng).unwrap_or(&3);
    let pick = |rng: &mut StdRng, from: &[u64]| *from.choose(rng).unwrap_or(&1);
    let sync = pick(rng, &[1, 2, 5]);
    let settings = Settings {
        nodes,
        timings: Timings {
            snapshot_every: pick(rng, &[15, 40, 150, 1000]),
            ..Timings::default()
        },
        log: log::Options {
            segment_bytes: pick(rng, &[2 << 10, 16 << 10, 1 << 20]),
            cache_bytes: usize::try_from(pick(rng, &[256, 16 << 10, 1 << 20])).unwrap_or(256),
            ..log::Options::default()
        },
        sync_time: Duration::from_micros(200)..ms(sync),
        propose_timeout: ms(pick(rng, &[1000, 3000, 10_000])),
        encrypted: true,
        tls,
    };
    let link = Link {
        cut: false,
        delay: Duration::from_micros(100)..ms(pick(rng, &[1, 3, 8])),
        loss: 0.0,
        twice: 0.0,
    };
    let habits = Habits {
        keys: rng.random_range(1..6),
        think: pick(rng, &[20, 80, 300]),
        padding: usize::try_from(pick(rng, &[0, 50, 600])).unwrap_or_default(),
    };
    (settings, link, habits, rng.random_range(2..7))
}

async fn run(seed: u64, options: Options, tls: Arc<BTreeMap<u64, NodeTls>>) -> Report {
    let trace = Trace::new(options.keep);
    let judge = Judge::new(trace.clone());
    let promises = Promises::new(judge.clone());
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut settings, link, habits, clients) = draw(&mut rng, tls);
    settings.encrypted = !seed.is_multiple_of(4);
    note!(
        trace,
        "seed {seed}: {} nodes, a snapshot every {}, {:?}, {habits:?}, {clients} clients",
        settings.nodes,
        settings.timings.snapshot_every,
        settings.log
    );
    let network = Network::new(rng.random(), link, trace.clone(), promises.clone());
    let world = World::new(rng.random(), settings, network, judge.clone(), trace.clone(), promises);
    let (book, agreement) = (Book::default(), Agreement::new(judge.clone()));
    let failed = judge.failed();
    let work = async {
        tokio::select! {
            biased;
            () = failed.cancelled() => {}
            () = pause(LONGEST) => judge.report("progress", format!("not done after {LONGEST:?} of simulated time")),
            () = story(seed, &world, &book, &agreement, habits, clients, options.faults_for) => {}
        }
    };
    work.await;
    let floor = world.all_running().iter().map(|running| running.store.view().floor()).max();
    panics::report(&judge);
    if judge.findings().is_empty() {
        writes::judge(&book.writes(), &agreement.changes(), floor.unwrap_or_default(), &judge);
        linearizable::judge(book.histories(), &judge);
    }
    let (hash, events) = trace.hash();
    Report {
        seed,
        findings: judge.findings(),
        hash,
        events,
        lines: trace.lines(),
        done: Done {
            members: world.changes(),
            ..book.done()
        },
        time: trace.now(),
    }
}

/// What happens.
async fn story(seed: u64, world: &World, book: &Book, agreement: &Agreement, habits: Habits, clients: u64, faults_for: Duration) {
    let apart = seed % 7 * 50;
    let agreement_too = agreement.clone();
    world.start(
        |id| ms(id * apart),
        move |world, id| {
            for slow in [Duration::ZERO, ms(1500)] {
                let watcher = Watcher::new(id, seed, slow, world.clone(), agreement_too.clone());
                world.tasks.spawn("watcher", OnExit::Ignore, |_| watcher.work());
            }
        },
    );
    let beside = |name, work| world.tasks.spawn(name, OnExit::Ignore, |_| work);
    beside(
        "progress",
        Box::pin(progress::watch(world.clone())) as futures::future::BoxFuture<'static, ()>,
    );
    let busy = world.tasks.child();
    for id in 1..=clients {
        let client = Client::new(id, seed, world.clone(), book.clone(), habits.clone());
        busy.spawn("client", OnExit::Ignore, |cancel| async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = client.work() => {}
            }
        });
    }
    pause(ms(1500)).await;
    faults::play(world.clone(), seed, faults_for).await;
    note!(world.trace, "nothing disturbs any more");
    if !all_is_well(world, agreement, RECOVERY).await {
        let up: Vec<String> = world
            .all_running()
            .iter()
            .map(|running| format!("{:?}", running.store.status()))
            .collect();
        world
            .judge
            .report("progress", format!("not well {RECOVERY:?} after the last fault: {up:#?}"));
    }
    busy.shutdown(ms(1)).await;
    // What is on its way still arrives; then everybody has the same.
    pause(ms(3000)).await;
    all_is_well(world, agreement, RECOVERY).await;
    note!(world.trace, "the end");
}

/// Waits until every node answers a linearizable read, with what was written last.
async fn all_is_well(world: &World, agreement: &Agreement, limit: Duration) -> bool {
    let end = world.trace.now() + limit;
    'again: while world.trace.now() < end {
        pause(ms(100)).await;
        for id in world.ids() {
            let Some(running) = world.running(id) else { continue 'again };
            let Ok(view) = running.store.read().await else { continue 'again };
            agreement.showed(id, &view);
            note!(
                world.trace,
                "n{id} is well: revision {}, {:016x}",
                view.revision(),
                agreement::state_hash(&view)
            );
        }
        return true;
    }
    false
}
