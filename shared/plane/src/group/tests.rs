//! Three nodes in one process, over real gRPC.

use std::collections::BTreeMap;

use axum::Extension;
use serde_json::json;
use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint};
use ursa_model::{Labels, ZoneName};
use ursa_runtime::{
    OnExit, Tasks,
    lease::within,
    serve::{self, Limits},
};
use ursa_state::{
    ObservedView,
    observed::{Holder, Observation},
};
use ursa_sync::claims::{Held, StreamKind};

use super::*;
use crate::config::Timing;

/// In place of a certificate.
#[derive(Clone, Copy)]
struct Caller(u64);

fn caller(extensions: &tonic::Extensions) -> Option<u64> {
    extensions.get::<Caller>().map(|c| c.0)
}

struct TestNode {
    id: u64,
    group: Group,
    tasks: Tasks,
    views: watch::Sender<View>,
}

/// Where node `.0` is reached by node `.1`: a listener each, as the caller is known by it.
type Addresses = BTreeMap<(u64, u64), String>;

async fn start(id: u64, life: &str, addresses: &mut Addresses) -> TestNode {
    start_with(id, life, addresses, Timing::default()).await
}

async fn start_with(id: u64, life: &str, addresses: &mut Addresses, timing: Timing) -> TestNode {
    let tasks = Tasks::new();
    let claims = Claims::new(format!("{id}-{life}"));
    let observed = Observed::of_node(id, Arc::new(ByClaims::new(claims.clone())));
    let views = watch::Sender::new(View::default());
    let about = About {
        timing,
        status: Arc::new(move || NodeStatus {
            term: id,
            ..NodeStatus::default()
        }),
    };
    let group = Group::new(id, claims, observed, views.subscribe(), about);
    for other in (1..=3).filter(|other| *other != id) {
        let wanted = addresses.get(&(id, other)).cloned().unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let listener = TcpListener::bind(wanted).await.unwrap();
        addresses.insert((id, other), listener.local_addr().unwrap().to_string());
        let router = group.routes(caller, &tasks).layer(Extension(Caller(other)));
        let limits = Limits {
            drain_timeout: Duration::ZERO,
            ..Limits::default()
        };
        let serving = tasks.clone();
        tasks.spawn("peers", OnExit::Shutdown, move |cancel| {
            serve::http(listener, router, limits, serving, cancel)
        });
    }
    TestNode { id, group, tasks, views }
}

impl TestNode {
    fn follow_all(&self, addresses: &Addresses) {
        for other in (1..=3).filter(|other| *other != self.id) {
            self.follow(other, addresses);
        }
    }

    fn channel(&self, other: u64, addresses: &Addresses) -> Channel {
        let uri = format!("http://{}", addresses[&(other, self.id)]);
        Endpoint::from_shared(uri).unwrap().connect_lazy()
    }

    fn follow(&self, other: u64, addresses: &Addresses) {
        let (channel, group) = (self.channel(other, addresses), self.group.clone());
        self.tasks
            .spawn("observed", OnExit::Shutdown, move |cancel| group.follow(other, channel, cancel));
    }

    fn view(&self) -> ObservedView {
        self.group.inner.observed.view()
    }

    fn connect(&self, zone: &str, session: u64) -> Held {
        let zone: ZoneName = zone.parse().unwrap();
        self.group.claims().claim(&zone, StreamKind::ZoneToGlobal, "zone", session).unwrap()
    }

    fn put(&self, zone: &str, name: &str, value: u32) {
        let put = Observation::Put {
            key: ResourceKey::new(Kind::Dataplane, "default", name).unwrap(),
            labels: Labels::new(),
            spec: json!({ "value": value }),
            owner: ResourceKey::new(Kind::Zone, "", zone).ok(),
        };
        self.group.inner.observed.apply(Timestamp::now(), [put]);
    }

    async fn wait(&self, what: &str, is: impl FnMut(&ObservedView) -> bool) {
        let mut views = self.group.inner.observed.subscribe();
        let waited = within(Duration::from_secs(20), views.wait_for(is)).await;
        assert!(waited.is_ok(), "node {}: {what}: {:#?}", self.id, self.view());
    }

    /// As a process that is killed: nothing more is said.
    async fn kill(self) {
        self.tasks.shutdown(Duration::from_secs(10)).await;
    }
}

fn value(view: &ObservedView, name: &str) -> Option<u64> {
    let key = ResourceKey::new(Kind::Dataplane, "default", name).unwrap();
    view.get(&key)?.spec.get("value")?.as_u64()
}

fn holder(view: &ObservedView, zone: &str) -> Option<Holder> {
    view.copy_of(zone).map(|c| c.holder)
}

async fn three() -> (Vec<TestNode>, Addresses) {
    let mut addresses = Addresses::new();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(start(id, "a", &mut addresses).await);
    }
    nodes.iter().for_each(|node| node.follow_all(&addresses));
    (nodes, addresses)
}

#[tokio::test]
async fn what_one_node_observes_is_at_all_and_moves_with_the_zone() {
    let (nodes, _) = three().await;
    let first = nodes[0].connect("east", 1);
    nodes[0].put("east", "a", 1);
    for node in &nodes[1..] {
        node.wait("a copy", |v| value(v, "a") == Some(1) && holder(v, "east") == Some(Holder::Node(1)))
            .await;
    }
    nodes[0].put("east", "b", 2);
    for node in &nodes[1..] {
        node.wait("a delta", |v| value(v, "b") == Some(2)).await;
    }
    // The zone comes to node 2: the older stream hears that it lost, and its late words change nothing.
    let second = nodes[1].connect("east", 2);
    within(Duration::from_secs(20), first.lost.cancelled()).await.unwrap();
    nodes[1].put("east", "a", 3);
    for node in &nodes {
        node.wait("the new holder's", |v| value(v, "a") == Some(3)).await;
    }
    nodes[0].put("east", "a", 99);
    drop(first);
    nodes[1].put("east", "c", 4);
    for node in &nodes {
        node.wait("the newest", |v| value(v, "c") == Some(4) && value(v, "a") == Some(3))
            .await;
    }
    assert_eq!(holder(&nodes[0].view(), "east"), Some(Holder::Node(2)));
    drop(second);
}

#[tokio::test]
async fn every_node_says_how_it_is() {
    let (nodes, _) = three().await;
    for node in &nodes {
        let told = || {
            let peers = node.group.peers();
            peers.len() == 2 && peers.iter().all(|(id, peer)| peer.status.as_ref().is_some_and(|s| s.term == *id))
        };
        let waited = within(Duration::from_secs(20), async {
            while !told() {
                tokio::task::yield_now().await;
            }
        });
        waited.await.unwrap();
        assert!(node.group.peers().values().all(|peer| peer.differs.is_none()));
    }
}

#[tokio::test]
async fn other_periods_are_noticed() {
    let mut addresses = Addresses::new();
    let one = start(1, "a", &mut addresses).await;
    let two = start_with(
        2,
        "a",
        &mut addresses,
        Timing {
            heartbeat: Duration::from_millis(80),
            ..Timing::default()
        },
    )
    .await;
    let three = start(3, "a", &mut addresses).await;
    for node in [&one, &two, &three] {
        node.follow_all(&addresses);
    }
    let waited = within(Duration::from_secs(20), async {
        while one.group.peers().values().filter(|peer| peer.connected).count() < 2 {
            tokio::task::yield_now().await;
        }
    });
    waited.await.unwrap();
    let peers = one.group.peers();
    assert!(peers[&2].differs.as_ref().unwrap().contains("80ms"), "{peers:?}");
    assert_eq!(peers[&3].differs, None);
}

#[tokio::test]
async fn a_dead_node_leaves_its_copies_and_comes_back_with_nothing() {
    let (mut nodes, mut addresses) = three().await;
    let held = nodes[0].connect("east", 1);
    nodes[0].put("east", "a", 1);
    for node in &nodes[1..] {
        node.wait("a copy", |v| value(v, "a") == Some(1)).await;
    }
    let before = Timestamp::now();
    drop(held);
    nodes.remove(0).kill().await;
    for node in &nodes {
        node.wait("nobody vouches", |v| holder(v, "east") == Some(Holder::Nobody)).await;
        let view = node.view();
        assert_eq!(value(&view, "a"), Some(1), "what was seen stays");
        assert!(view.copy_of("east").unwrap().as_of >= before);
    }
    // Its next life knows nothing, and learns it from the others.
    let again = start(1, "b", &mut addresses).await;
    again.follow_all(&addresses);
    again.wait("a copy from the others", |v| value(v, "a") == Some(1)).await;
    assert_eq!(holder(&again.view(), "east"), Some(Holder::Nobody));
    let _held = nodes[0].connect("east", 2);
    nodes[0].put("east", "a", 2);
    again.wait("the new holder's", |v| value(v, "a") == Some(2)).await;
}

/// Nodes 1 and 2 do not hear each other; both hear 3, and are heard by it.
async fn cut_between_one_and_two() -> [TestNode; 3] {
    let mut addresses = Addresses::new();
    let one = start(1, "a", &mut addresses).await;
    let two = start(2, "a", &mut addresses).await;
    let three = start(3, "a", &mut addresses).await;
    for (node, other) in [(&one, 3), (&two, 3), (&three, 1), (&three, 2)] {
        node.follow(other, &addresses);
    }
    for (node, other) in [(&one, 2), (&two, 1)] {
        let (ways, group) = (vec![(3, node.channel(3, &addresses))], node.group.clone());
        node.tasks
            .spawn("through", OnExit::Shutdown, move |cancel| group.follow_through(other, ways, cancel));
    }
    [one, two, three]
}

#[tokio::test]
async fn a_node_that_is_cut_off_is_heard_through_another_one() {
    for dies in [2, 3] {
        let [one, two, three] = cut_between_one_and_two().await;
        let held = two.connect("east", 1);
        two.put("east", "a", 1);
        one.wait("a copy through node 3", |v| {
            value(v, "a") == Some(1) && holder(v, "east") == Some(Holder::Node(2))
        })
        .await;
        two.put("east", "a", 2);
        one.wait("the next one", |v| value(v, "a") == Some(2)).await;
        assert_eq!(one.group.peers()[&2].through, Some(3));
        // The zone comes to node 1, which is newer, and is heard by node 2 in the same way.
        let moved = one.connect("west", 1);
        one.put("west", "b", 1);
        two.wait("the other way", |v| holder(v, "west") == Some(Holder::Node(1))).await;
        drop(held);
        // Either end of the way goes: nobody vouches any more, and nothing vanishes.
        let rest = if dies == 2 { (two, three) } else { (three, two) };
        rest.0.kill().await;
        one.wait("nobody vouches", |v| holder(v, "east") == Some(Holder::Nobody)).await;
        assert_eq!(value(&one.view(), "a"), Some(2));
        assert_eq!(holder(&one.view(), "west"), Some(Holder::Here));
        drop(moved);
    }
}

#[tokio::test]
async fn what_was_observed_goes_with_the_zone() {
    let (nodes, _) = three().await;
    let _held = nodes[0].connect("east", 1);
    nodes[0].put("east", "a", 1);
    nodes[1].wait("a copy", |v| value(v, "a") == Some(1)).await;
    let mut state = ursa_state::State::default();
    let mut change = |index, op| {
        let set = ursa_state::Changeset::atomic(ursa_state::RequestId(index), Timestamp(1), vec![op]);
        state.apply(u64::try_from(index).unwrap(), &ursa_state::Command::Change(set));
        state.view().clone()
    };
    let key = ResourceKey::new(Kind::Zone, "", "east").unwrap();
    let made = change(
        1,
        ursa_state::Op::Put(ursa_state::Put {
            key: key.clone(),
            labels: Labels::new(),
            spec: json!({}),
            status: None,
            owner: None,
            expect: ursa_state::Expect::Any,
        }),
    );
    let deleted = change(2, ursa_state::Op::delete(key));
    for node in &nodes {
        node.views.send_replace(made.clone());
        let group = node.group.clone();
        node.tasks.spawn("sweep", OnExit::Shutdown, |cancel| group.sweep(cancel));
    }
    // Only node 1 hears of the deletion: the others do by it.
    nodes[0].wait("still there", |v| value(v, "a") == Some(1)).await;
    let sweeping = || nodes[0].views.receiver_count() > 1;
    within(Duration::from_secs(20), async {
        while !sweeping() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    nodes[0].views.send_replace(deleted);
    for node in &nodes {
        node.wait("gone", |v| v.copy_of("east").is_none() && value(v, "a").is_none()).await;
    }
}

#[tokio::test]
async fn a_node_of_another_history_is_not_heard() {
    let mut addresses = Addresses::new();
    let (one, two) = (start(1, "a", &mut addresses).await, start(2, "a", &mut addresses).await);
    addresses.insert((3, 1), addresses[&(2, 1)].clone());
    addresses.insert((3, 2), addresses[&(1, 2)].clone());
    for (node, history) in [(&one, 1), (&two, 2)] {
        let mut state = ursa_state::State::default();
        let history = HistoryId(history);
        state.apply(1, &ursa_state::Command::Init { history });
        node.views.send_replace(state.view().clone());
    }
    let uri = format!("http://{}", addresses[&(1, 2)]);
    let client = ursa_proto::peer::observed_client::ObservedClient::connect(uri).await;
    let request = ursa_proto::peer::FollowRequest {
        history: super::serve::history_bytes(HistoryId(2)),
        relay_of: 0,
    };
    let refused = client.unwrap().follow(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
}

#[tokio::test]
async fn a_checkpoint_is_read_again_and_damage_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut addresses = Addresses::new();
    let one = start(1, "a", &mut addresses).await;
    let _held = one.connect("east", 1);
    let _other = one.connect("west", 1);
    one.put("east", "a", 1);
    one.put("west", "b", 2);
    let checkpoint = Checkpoint::load(dir.path().to_owned(), &Observed::default());
    let cancel = CancellationToken::new();
    cancel.cancel();
    checkpoint.run(one.group.inner.observed.clone(), cancel.clone()).await;
    let load = async |life: &str| {
        let node = start(2, life, &mut Addresses::new()).await;
        let checkpoint = Checkpoint::load(dir.path().to_owned(), &node.group.inner.observed);
        (node, checkpoint)
    };
    let (two, _) = load("a").await;
    assert_eq!((value(&two.view(), "a"), value(&two.view(), "b")), (Some(1), Some(2)));
    assert_eq!(holder(&two.view(), "east"), Some(Holder::Nobody));
    assert_eq!(two.view().copy_of("east").unwrap().at, one.view().copy_of("east").unwrap().at);

    let file = dir.path().join("east.json");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 10;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (three, checkpoint) = load("b").await;
    assert_eq!((value(&three.view(), "a"), value(&three.view(), "b")), (None, Some(2)));
    assert!(!file.exists());
    // A zone that is gone takes its file along.
    three.group.inner.observed.forget(|zone| zone == "west");
    checkpoint.run(three.group.inner.observed.clone(), cancel).await;
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
