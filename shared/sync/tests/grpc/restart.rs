//! Restarts and outages of either side: nothing shrinks, nothing is lost, everything catches up.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_outlives_its_global_and_catches_up() {
    let global = Global::start().await;
    let zone = Zone::start(&global, "east", 0xe);
    global
        .memory
        .put(Site::Global, Kind::MeshTrafficPermission, "default", "p", permission());
    zone.connected().await;
    zone.caught_up(&global).await;
    zone.put(Kind::MeshZoneAddress, "a", address(1));
    zone.put(Kind::MeshZoneAddress, "b", address(1));
    wait("the addresses are at the global", || {
        global.memory.view().list(Kind::MeshZoneAddress).count() == 2
    })
    .await;
    let before = zone.memory.view();
    global.tasks.cancel_token().cancel();
    within("the server ends", global.tasks.idle()).await;
    wait("the zone noticed", || zone.status.borrow().connected.is_none()).await;
    let same = |kind| zone.memory.view().list(kind).count() == before.list(kind).count();
    assert!(same(Kind::Mesh) && same(Kind::MeshTrafficPermission));
    // Both sides change while apart: a Mesh goes, and the zone loses an address.
    global.memory.put(Site::Global, Kind::Mesh, "", "second", json!({}));
    global.memory.delete(Kind::Mesh, "", "default");
    global.memory.delete(Kind::MeshTrafficPermission, "default", "p");
    zone.memory.delete(Kind::MeshZoneAddress, "default", "a");
    let global = global.restart().await;
    zone.caught_up(&global).await;
    let meshes: Vec<String> = zone.memory.view().list(Kind::Mesh).map(|m| m.name().to_owned()).collect();
    assert_eq!(
        meshes,
        ["second"],
        "a global that proves to be the same is believed, roots included"
    );
    assert_eq!(zone.memory.view().list(Kind::MeshTrafficPermission).count(), 0);
    wait("the global took the zone's removal too", || {
        global.memory.view().list(Kind::MeshZoneAddress).count() == 1
    })
    .await;
    // A zone that starts anew from its disk changes nothing.
    let revision = zone.memory.view().revision();
    let memory = zone.stop().await;
    let again = Zone::with(memory, &global, "east", Token::Text(global.token("east").into()));
    again.connected().await;
    wait("the reconnect is through", || {
        global
            .server
            .progress()
            .values()
            .any(|p| p.stored == Some(global.memory.view().at_global()))
    })
    .await;
    again.caught_up(&global).await;
    assert_eq!(changesets_since(&again.memory, revision), 0, "what is stored already costs nothing");
    assert_eq!(again.tasks.panics() + global.tasks.panics(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_that_returns_gets_what_changed_and_no_first_sets() {
    let global = Global::start().await;
    for n in 0..50 {
        global.memory.put(Site::Global, Kind::Mesh, "", &format!("m{n}"), json!({}));
    }
    let zone = Zone::start(&global, "east", 0xe);
    zone.caught_up(&global).await;
    let memory = zone.stop().await;
    // Another process of the global, and of the zone: what they know of each other is on their disks.
    let global = global.restart().await;
    global.memory.put(Site::Global, Kind::Mesh, "", "new", json!({}));
    global.memory.delete(Kind::Mesh, "", "m0");
    let zone = Zone::with(memory, &global, "east", Token::Text(global.token("east").into()));
    zone.caught_up(&global).await;
    assert_eq!(zone.metrics.resumed.get(), 1);
    let received: u64 = ursa_model::kind::ALL
        .iter()
        .map(|kind| {
            let label = ursa_sync::metrics::KindLabel {
                zone_name: "east".into(),
                resource_type: kind.name(),
            };
            zone.metrics.resources_received.get_or_create(&label).get()
        })
        .sum();
    assert_eq!(received, 2, "one Mesh more, one less");
    assert_eq!(zone.memory.view().list(Kind::Mesh).count(), 51);
    assert!(zone.status.borrow().connected.is_some());
    // And when nothing changed, it is connected all the same.
    let memory = zone.stop().await;
    let zone = Zone::with(memory, &global, "east", Token::Text(global.token("east").into()));
    zone.connected().await;
    assert_eq!(zone.metrics.resumed.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_starts_without_any_global_and_keeps_everything() {
    let global = Global::start().await;
    let zone = Zone::start(&global, "east", 0xe);
    global
        .memory
        .put(Site::Global, Kind::MeshTrafficPermission, "default", "p", permission());
    zone.caught_up(&global).await;
    zone.put(Kind::MeshZoneAddress, "a", address(1));
    wait("the address is at the global", || {
        global.memory.view().list(Kind::MeshZoneAddress).count() == 1
    })
    .await;
    let memory = zone.stop().await;
    global.stop().await;
    let before: Vec<_> = memory.view().iter().cloned().collect();
    let token = Token::Text(global.token("east").into());
    let zone = Zone::with(memory, &global, "east", token);
    wait("it has tried", || zone.metrics.reconnects.get() > 3).await;
    let now: Vec<_> = zone.memory.view().iter().cloned().collect();
    assert_eq!(before, now, "nothing is less, nothing was touched");
    // What is made meanwhile goes up when there is a global again, and what the global missed does not shrink it.
    zone.put(Kind::MeshZoneAddress, "b", address(2));
    let global = global.restart().await;
    wait("both addresses are at the global", || {
        global.memory.view().list(Kind::MeshZoneAddress).count() == 2
    })
    .await;
    zone.caught_up(&global).await;
    assert_eq!(zone.tasks.panics() + global.tasks.panics(), 0);
}
