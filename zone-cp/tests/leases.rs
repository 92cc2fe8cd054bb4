//! How long a Dataplane outlives its proxy. The clock is paused: nothing here waits.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{MESH, MemoryStore, put};
use serde_json::{Value, json};
use tokio::sync::watch;
use ursa_model::{Kind, ResourceKey, ZoneName};
use ursa_runtime::tasks::{OnExit, Tasks};
use ursa_state::{Op, Put};
use ursa_zone_cp::{
    connections::{Connections, NewStream, Peer, Registration},
    dp::phase,
    reconcile::{LEASE, Propose, Reconciler},
    world::{ProxyId, World},
};

const STEP: Duration = Duration::from_secs(1);

struct Plane {
    tasks: Tasks,
    connections: Connections,
    worlds: watch::Receiver<Arc<World>>,
}

/// A control plane as it starts on this store.
fn start(store: &MemoryStore) -> Plane {
    let zone: ZoneName = "west".parse().unwrap();
    let (worlds, seen) = watch::channel(Arc::new(World::empty(zone.clone())));
    let (tasks, connections) = (Tasks::new(), Connections::default());
    let propose: Arc<dyn Propose> = Arc::new(store.clone());
    let reconciler = Reconciler {
        zone,
        views: store.subscribe(),
        connections: connections.clone(),
        store: propose,
        worlds,
    };
    tasks.spawn("reconcile", OnExit::Shutdown, |cancel| reconciler.run(cancel));
    Plane {
        tasks,
        connections,
        worlds: seen,
    }
}

impl Plane {
    fn connect(&self, name: &str) -> Registration {
        self.connect_as(name, None)
    }

    /// As this run of our own program.
    fn connect_as(&self, name: &str, run: Option<&str>) -> Registration {
        let new = NewStream {
            warm: true,
            peer: Peer {
                address: None,
                instance: run.map(Into::into),
            },
            ..NewStream::default()
        };
        self.connections.register(ProxyId::new(MESH, name), new).unwrap()
    }
}

fn spec(host: u8) -> Value {
    json!({"networking": {"address": format!("127.0.2.{host}"), "inbound": [{"port": 8080, "name": "http", "protocol": "http"}]}})
}

const LABELS: [(&str, &str); 4] = [
    ("kuma.io/workload", "backend"),
    ("kuma.io/zone", "west"),
    ("kuma.io/origin", "zone"),
    ("ursa.io/lifecycle", "proxy"),
];

fn dataplane(name: &str, host: u8) -> Op {
    put(Kind::Dataplane, MESH, name, &LABELS, spec(host))
}

/// Notes that a proxy drains, as this run asked.
fn drain(store: &MemoryStore, name: &str, run: Option<&str>) {
    let stored = store
        .view()
        .get(&ResourceKey::new(Kind::Dataplane, MESH, name).unwrap())
        .unwrap()
        .clone();
    store.put(vec![phase::drain(&stored, run).unwrap()]);
}

fn is_draining(store: &MemoryStore, name: &str) -> bool {
    let view = store.view();
    let stored = view.list(Kind::Dataplane).find(|d| d.name() == name).unwrap();
    phase::Phase::of(stored) == phase::Phase::Draining
}

fn store() -> MemoryStore {
    let store = MemoryStore::new();
    store.put(vec![
        put(Kind::Mesh, "", MESH, &[], json!({})),
        dataplane("dp-1", 1),
        dataplane("dp-2", 2),
        dataplane("dp-3", 3),
    ]);
    store
}

fn names(store: &MemoryStore) -> Vec<String> {
    store.view().list(Kind::Dataplane).map(|d| d.name().to_owned()).collect()
}

/// Lets that much time pass, in steps, so that everything that is due in between happens.
async fn pass(time: Duration) {
    let mut left = time;
    while !left.is_zero() {
        let step = left.min(STEP);
        tokio::time::advance(step).await;
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        left -= step;
    }
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_starts_with_nobody_connected_keeps_every_endpoint() {
    let store = store();
    let plane = start(&store);
    pass(LEASE * 10).await;
    assert_eq!(names(&store), ["dp-1", "dp-2", "dp-3"], "who is cut off must not judge");
    let world = plane.worlds.borrow().clone();
    assert_eq!(world.mesh(MESH).unwrap().dataplanes.len(), 3);
    // The first that comes back must find the others; they have a whole lease from now on.
    let _one = plane.connect("dp-1");
    pass(LEASE - STEP * 2).await;
    assert_eq!(names(&store), ["dp-1", "dp-2", "dp-3"]);
    let _two = plane.connect("dp-2");
    pass(STEP * 4).await;
    assert_eq!(
        names(&store),
        ["dp-1", "dp-2"],
        "one that does not come back within its lease is gone"
    );
    pass(LEASE * 3).await;
    assert_eq!(names(&store), ["dp-1", "dp-2"]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_gives_every_lease_anew() {
    let store = store();
    let plane = start(&store);
    let held = [plane.connect("dp-1"), plane.connect("dp-2"), plane.connect("dp-3")];
    pass(STEP).await;
    let [one, two, three] = held;
    drop(three);
    pass(LEASE / 2).await;
    plane.tasks.shutdown(STEP).await;
    drop((one, two));
    let plane = start(&store);
    let _one = plane.connect("dp-1");
    let _two = plane.connect("dp-2");
    pass(LEASE - STEP * 2).await;
    assert_eq!(names(&store).len(), 3, "counted from the start, not from when the stream ended");
    pass(STEP * 4).await;
    assert_eq!(names(&store), ["dp-1", "dp-2"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_drained_goes_with_its_stream_and_one_whose_stream_broke_after_its_lease() {
    let store = store();
    let plane = start(&store);
    let held = [plane.connect("dp-1"), plane.connect("dp-2"), plane.connect("dp-3")];
    pass(STEP).await;
    drain(&store, "dp-2", None);
    pass(LEASE * 2).await;
    assert_eq!(names(&store).len(), 3, "while it drains it stays");
    let [_one, two, three] = held;
    drop((two, three));
    pass(STEP).await;
    assert_eq!(names(&store), ["dp-1", "dp-3"]);
    pass(LEASE).await;
    assert_eq!(names(&store), ["dp-1"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_start_one_that_drains_has_its_lease_too() {
    let store = store();
    drain(&store, "dp-2", None);
    let plane = start(&store);
    let _one = plane.connect("dp-1");
    pass(LEASE / 2).await;
    assert!(
        store
            .view()
            .get(&ResourceKey::new(Kind::Dataplane, MESH, "dp-2").unwrap())
            .is_some(),
        "its stream may be on its way back"
    );
}

/// Whoever drained must be the one that left. Here it was the run before, late, while this one's stream was broken.
#[tokio::test(start_paused = true)]
async fn a_run_that_did_not_ask_to_drain_has_its_lease_and_serves_when_it_returns() {
    let store = store();
    let plane = start(&store);
    let held = [
        plane.connect("dp-1"),
        plane.connect_as("dp-2", Some("run-2")),
        plane.connect_as("dp-3", Some("run-3")),
    ];
    pass(STEP).await;
    let [_one, two, three] = held;
    drop((two, three));
    pass(STEP).await;
    drain(&store, "dp-2", Some("run-1"));
    drain(&store, "dp-3", Some("run-3"));
    pass(STEP).await;
    assert_eq!(
        names(&store),
        ["dp-1", "dp-2"],
        "one left as it said it would, of the other nothing is known"
    );
    assert!(is_draining(&store, "dp-2"));
    let _two = plane.connect_as("dp-2", Some("run-2"));
    pass(STEP).await;
    assert!(!is_draining(&store, "dp-2"), "this run never asked");
    let stored = store.view().list(Kind::Dataplane).find(|d| d.name() == "dp-2").unwrap().clone();
    assert_eq!(stored.spec, (Kind::Dataplane.descriptor().canonical)(spec(2)).unwrap());
    pass(LEASE * 2).await;
    assert_eq!(names(&store), ["dp-1", "dp-2"]);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_asked_to_drain_drains_on_when_it_returns() {
    let store = store();
    drain(&store, "dp-2", Some("run-2"));
    drain(&store, "dp-3", None);
    let plane = start(&store);
    let _held = [
        plane.connect("dp-1"),
        plane.connect_as("dp-2", Some("run-2")),
        plane.connect("dp-3"),
    ];
    pass(LEASE * 2).await;
    assert!(is_draining(&store, "dp-2"), "it is about to end");
    assert!(is_draining(&store, "dp-3"), "of a stock proxy its Envoy's health tells");
}

/// Both fields say what they say of one that drains.
#[tokio::test(start_paused = true)]
async fn what_an_operator_calls_not_ready_is_no_drain() {
    let store = store();
    let mut off = spec(2);
    let first = off["networking"]["inbound"][0].clone();
    let mut second = first.clone();
    second["port"] = json!(8081);
    second["name"] = json!("admin");
    second["state"] = json!("NotReady");
    second["health"] = json!({"ready": false});
    off["networking"]["inbound"] = json!([first, second]);
    let op = put(Kind::Dataplane, MESH, "dp-2", &LABELS, off);
    let Op::Put(Put { spec: wanted, .. }) = &op else { panic!("{op:?}") };
    let wanted = wanted.clone();
    store.put(vec![op]);
    let plane = start(&store);
    let (_one, two) = (plane.connect("dp-1"), plane.connect("dp-2"));
    pass(STEP).await;
    let stored = store.view().list(Kind::Dataplane).find(|d| d.name() == "dp-2").unwrap().clone();
    assert_eq!(stored.spec, wanted, "it stays as it was written");
    drop(two);
    pass(LEASE / 2).await;
    assert!(names(&store).contains(&"dp-2".to_owned()), "it did not leave in order");
    pass(LEASE).await;
    assert!(!names(&store).contains(&"dp-2".to_owned()));
}
