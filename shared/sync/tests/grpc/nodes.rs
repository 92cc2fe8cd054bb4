//! A global of several nodes: zones go to the next one when theirs dies, refuses, falls silent or drains; the newest stream wins.

use super::{
    pipe::{Mode, Pipe},
    *,
};

/// Three nodes that tell each other their claims, as the host does between nodes.
struct Nodes {
    all: Vec<Global>,
    _gossip: tokio::task::JoinSet<()>,
}

impl Nodes {
    async fn start() -> Self {
        let first = Global::start().await;
        let (second, third) = (first.another("global-2").await, first.another("global-3").await);
        let all = vec![first, second, third];
        let mut gossip = tokio::task::JoinSet::new();
        for from in &all {
            for to in all.iter().filter(|to| to.name != from.name) {
                let (mut own, node, to) = (from.claims.own(), from.claims.node().clone(), to.claims.clone());
                gossip.spawn(async move {
                    loop {
                        let claims = own.borrow_and_update().to_vec();
                        to.learn(&node, claims);
                        if own.changed().await.is_err() {
                            return to.node_gone(&node);
                        }
                    }
                });
            }
        }
        Self { all, _gossip: gossip }
    }

    fn refs(&self) -> Vec<&Global> {
        self.all.iter().collect()
    }

    fn serving(&self, zone: &Zone) -> Option<&Global> {
        let connected = zone.status.borrow().connected.clone()?;
        self.all.iter().find(|n| connected.ends_with(&n.address.to_string()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_goes_to_the_next_node_and_stays_there() {
    let nodes = Nodes::start().await;
    let zone = Zone::across(Memory::new(Role::Zone, 0xe), &nodes.refs(), "east");
    zone.connected().await;
    zone.caught_up(&nodes.all[0]).await;
    let first = nodes.serving(&zone).unwrap();
    assert_eq!(first.claims.own().borrow().len(), 2, "both streams end at one node");
    first.stop().await;
    wait("another node serves it", || {
        nodes.serving(&zone).is_some_and(|n| n.name != first.name)
    })
    .await;
    let second = nodes.serving(&zone).unwrap();
    second.memory.put(Site::Global, Kind::Mesh, "", "second", json!({}));
    zone.caught_up(second).await;
    zone.put(Kind::MeshZoneAddress, "a", address(1));
    wait("what the zone makes arrives", || {
        second.memory.view().list(Kind::MeshZoneAddress).count() == 1
    })
    .await;
    // A node that comes back is no reason to leave one that works.
    let reconnects = zone.metrics.reconnects.get();
    second.memory.put(Site::Global, Kind::Mesh, "", "third", json!({}));
    zone.caught_up(second).await;
    assert_eq!(
        (zone.metrics.reconnects.get(), nodes.serving(&zone).unwrap().name),
        (reconnects, second.name)
    );
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_down_then_one_returns() {
    let mut nodes = Nodes::start().await;
    let zone = Zone::across(Memory::new(Role::Zone, 0xe), &nodes.refs(), "east");
    zone.connected().await;
    zone.caught_up(&nodes.all[0]).await;
    let before = zone.memory.view();
    for node in &nodes.all {
        node.stop().await;
    }
    wait("the zone noticed", || zone.status.borrow().connected.is_none()).await;
    let failures = zone.metrics.reconnects.get();
    wait("it goes round the nodes", || zone.metrics.reconnects.get() > failures + 6).await;
    assert_eq!(changesets_since(&zone.memory, before.revision()), 0, "nothing shrinks meanwhile");
    let last = nodes.all.pop().unwrap().restart().await;
    last.memory.put(Site::Global, Kind::Mesh, "", "after", json!({}));
    zone.caught_up(&last).await;
    assert!(zone.memory.get(Kind::Mesh, "", "after").is_some());
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_quorum_takes_no_streams_and_ends_its_own() {
    let nodes = Nodes::start().await;
    let zone = Zone::across(Memory::new(Role::Zone, 0xe), &nodes.refs(), "east");
    zone.connected().await;
    zone.caught_up(&nodes.all[0]).await;
    let first = nodes.serving(&zone).unwrap();
    // Eleven seconds: its streams go on, new ones go elsewhere.
    first.quorum.0.store(11_000, Ordering::SeqCst);
    let token = first.token("west");
    let pairs = [("client-id", "west"), ("authorization", token.as_str())];
    let refused = first
        .raw()
        .await
        .zone_to_global_sync(request(tokio_stream::pending(), &pairs))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("quorum"), "{refused:?}");
    let west = Zone::across(Memory::new(Role::Zone, 0xf), &nodes.refs(), "west");
    west.connected().await;
    assert_ne!(nodes.serving(&west).unwrap().name, first.name);
    first.memory.put(Site::Global, Kind::Mesh, "", "second", json!({}));
    zone.caught_up(first).await;
    assert_eq!(nodes.serving(&zone).unwrap().name, first.name);
    // Thirty seconds: its streams end.
    first.quorum.0.store(31_000, Ordering::SeqCst);
    wait("the zone left", || nodes.serving(&zone).is_some_and(|n| n.name != first.name)).await;
    // It drains: the zone of that node leaves at once, the process still runs.
    let second = nodes.serving(&zone).unwrap();
    second.server.drain();
    wait("the zone left", || {
        nodes.serving(&zone).is_some_and(|n| n.name != second.name && n.name != first.name)
    })
    .await;
    zone.caught_up(first).await;
    assert!(
        nodes.all.iter().all(|n| n.tasks.panics() == 0) && !second.tasks.cancel_token().is_cancelled(),
        "nobody was stopped"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_or_silent_node_is_noticed_within_seconds() {
    let nodes = Nodes::start().await;
    let (first, second) = (&nodes.all[0], &nodes.all[1]);
    for mode in [Mode::Cut, Mode::Silent] {
        let pipe = Pipe::to(first.address).await;
        let addresses = vec![format!("grpcs://{}", pipe.address), format!("grpcs://{}", second.address)];
        // A name whose first address is the pipe's.
        let token = Token::Text(first.token("north").into());
        let zone = Zone::at(Memory::new(Role::Zone, 0xe), first, addresses, "north", token);
        wait("it is connected", || zone.status.borrow().connected.is_some()).await;
        if zone.status.borrow().connected.as_deref() != Some(format!("grpcs://{}", pipe.address).as_str()) {
            second.server.drain();
            wait("it is connected by the pipe", || {
                zone.status.borrow().connected.as_deref() == Some(format!("grpcs://{}", pipe.address).as_str())
            })
            .await;
        }
        zone.caught_up(first).await;
        pipe.set(mode);
        let through_pipe = || {
            zone.status
                .borrow()
                .connected
                .as_deref()
                .is_some_and(|a| a.contains(&pipe.address.to_string()))
        };
        wait("the zone noticed", || !through_pipe()).await;
        zone.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_streams_at_two_nodes_the_newest_wins() {
    let nodes = Nodes::start().await;
    let (n1, n2) = (&nodes.all[0], &nodes.all[1]);
    let (_tx, mut old) = open_up(n1, "east", &[("ursa-instance-id", "a"), ("ursa-session", "1")]).await;
    within("it is served", old.message()).await.unwrap().unwrap();
    let (_tx2, mut new) = open_up(n2, "east", &[("ursa-instance-id", "a"), ("ursa-session", "2")]).await;
    within("it is served", new.message()).await.unwrap().unwrap();
    let end = end_of(&mut old).await;
    assert_eq!(end.code(), Code::Cancelled);
    assert!(end.message().contains("newer"), "{end:?}");
    assert_eq!(n1.claims.owner(&"east".parse().unwrap()).unwrap().node.as_ref(), "global-2");
    // The old session's attempt arrives late.
    let token = n1.token("east");
    let pairs = [
        ("client-id", "east"),
        ("authorization", token.as_str()),
        ("ursa-instance-id", "a"),
        ("ursa-session", "1"),
    ];
    wait("the news is at n1", || {
        n1.claims.owner(&"east".parse().unwrap()).is_some_and(|c| c.session == 2)
    })
    .await;
    let late = n1.raw().await.zone_to_global_sync(request(tokio_stream::pending(), &pairs)).await;
    assert_eq!(late.unwrap_err().code(), Code::Cancelled);
    // The newest still works.
    _tx2.send(response("MeshZoneAddress", "1", vec![zone_address("a", &address(1))]))
        .await
        .unwrap();
    wait("it stores", || n1.memory.get(Kind::MeshZoneAddress, "default", "a").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cut_off_node_had_on_its_way_does_not_land_late() {
    // Two nodes that do not hear each other, over one store.
    let n1 = Global::start().await;
    let n2 = n1.another("global-2").await;
    let port = || {
        let stored = n1.memory.get(Kind::MeshZoneAddress, "default", "a");
        stored.and_then(|a| a.spec.get("port").and_then(Value::as_u64))
    };
    let (tx, mut old) = open_up(&n1, "east", &[("ursa-instance-id", "a"), ("ursa-session", "1")]).await;
    within("it is served", old.message()).await.unwrap().unwrap();
    let (stuck, begun) = (n1.way.free.clone().write_owned().await, n1.way.begun.load(Ordering::SeqCst));
    tx.send(response("MeshZoneAddress", "1", vec![zone_address("a", &address(1))]))
        .await
        .unwrap();
    wait("it is on its way", || n1.way.begun.load(Ordering::SeqCst) > begun).await;

    let (tx2, mut new) = open_up(&n2, "east", &[("ursa-instance-id", "a"), ("ursa-session", "2")]).await;
    within("it is served", new.message()).await.unwrap().unwrap();
    tx2.send(response("MeshZoneAddress", "1", vec![zone_address("a", &address(2))]))
        .await
        .unwrap();
    wait("the newer is stored", || port() == Some(2)).await;

    drop(stuck);
    let end = end_of(&mut old).await;
    assert!(end.message().contains("newer"), "{end:?}");
    assert_eq!(port(), Some(2), "what came late changed nothing");
    tx2.send(response("MeshZoneAddress", "2", vec![zone_address("a", &address(3))]))
        .await
        .unwrap();
    wait("the newer stream goes on", || port() == Some(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_leader_drops_no_stream() {
    let nodes = Nodes::start().await;
    let zone = Zone::across(Memory::new(Role::Zone, 0xe), &nodes.refs(), "east");
    zone.connected().await;
    zone.caught_up(&nodes.all[0]).await;
    let reconnects = zone.metrics.reconnects.get();
    // While there is no leader nothing can be written, for longer than one attempt takes.
    let global = nodes.serving(&zone).unwrap();
    global.memory.failing.store(true, Ordering::SeqCst);
    zone.put(Kind::MeshZoneAddress, "a", address(1));
    let begin = tokio::time::Instant::now();
    wait("the global has tried some times", || begin.elapsed() > Duration::from_millis(600)).await;
    global.memory.failing.store(false, Ordering::SeqCst);
    wait("it arrives", || global.memory.view().list(Kind::MeshZoneAddress).count() == 1).await;
    global.memory.put(Site::Global, Kind::Mesh, "", "second", json!({}));
    zone.caught_up(global).await;
    assert_eq!(zone.metrics.reconnects.get(), reconnects, "no stream was dropped");
}
