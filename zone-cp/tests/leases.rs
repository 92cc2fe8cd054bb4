//! How long a Dataplane outlives its proxy. The clock is paused: nothing here waits.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{MESH, MemoryStore, put};
use serde_json::{Value, json};
use tokio::sync::watch;
use ursa_model::{Kind, ResourceKey, ZoneName};
use ursa_runtime::tasks::{OnExit, Tasks};
use ursa_state::Op;
use ursa_zone_cp::{
    connections::{Connections, NewStream, Registration},
    dp::phase::Phase,
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
        let new = NewStream {
            warm: true,
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
    let draining = Phase::Draining.apply(&(Kind::Dataplane.descriptor().canonical)(spec(2)).unwrap());
    store.put(vec![put(Kind::Dataplane, MESH, "dp-2", &LABELS, draining)]);
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
    let draining = Phase::Draining.apply(&(Kind::Dataplane.descriptor().canonical)(spec(2)).unwrap());
    store.put(vec![put(Kind::Dataplane, MESH, "dp-2", &LABELS, draining)]);
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
