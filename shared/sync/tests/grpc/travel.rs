//! Changes in both directions: what arrives, with which labels, in how many changesets.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_travels_in_both_directions() {
    let global = Global::start().await;
    let (east, west) = (Zone::start(&global, "east", 0xe), Zone::start(&global, "west", 0xf));
    for zone in [&east, &west] {
        zone.connected().await;
        zone.caught_up(&global).await;
        assert!(zone.status.borrow().progress);
        assert!(zone.memory.get(Kind::Mesh, "", "default").is_some());
    }
    // Down, with its revision.
    global
        .memory
        .put(Site::Global, Kind::MeshTrafficPermission, "default", "allow-frontend", permission());
    west.caught_up(&global).await;
    let hashed = "allow-frontend-9586fw9x6wd94z46";
    let stored = west.memory.get(Kind::MeshTrafficPermission, "default", hashed).unwrap();
    assert_eq!(
        (stored.label(ORIGIN), stored.label(DISPLAY_NAME)),
        (Some("global"), Some("allow-frontend"))
    );
    let revision = global.memory.view().revision();
    let (_, entries) = west.stages.since(0);
    assert!(
        entries
            .iter()
            .any(|e| e.stage == "stored" && e.revision == revision && e.subject.as_ref() == "west")
    );
    let (_, entries) = global.stages.since(0);
    assert!(
        entries
            .iter()
            .any(|e| e.stage == "sent" && e.revision == revision && e.subject.as_ref() == "west")
    );
    // Up, both tiers, and on to the other zone.
    west.put(Kind::MeshZoneAddress, "zone-ingress", address(10001));
    west.put(
        Kind::Dataplane,
        "backend-1",
        json!({"networking": {"address": "127.0.2.10", "inbound": [{"port": 8080, "name": "http"}]}}),
    );
    wait("the address is in east", || {
        east.memory
            .get(Kind::MeshZoneAddress, "default", "zone-ingress-xw2dzb9ccb74x47f")
            .is_some()
    })
    .await;
    let copy = east
        .memory
        .get(Kind::MeshZoneAddress, "default", "zone-ingress-xw2dzb9ccb74x47f")
        .unwrap();
    assert_eq!((copy.label(ORIGIN), copy.label(ZONE)), (Some("global"), Some("west")));
    wait("the Dataplane is observed", || {
        global
            .memory
            .get(Kind::Dataplane, "default", "backend-1-bv8bz2f55764xz77")
            .is_some()
    })
    .await;
    assert!(
        global.memory.view().list(Kind::Dataplane).next().is_none(),
        "and costs the global no log entry"
    );
    let at_global = global
        .memory
        .get(Kind::MeshZoneAddress, "default", "zone-ingress-xw2dzb9ccb74x47f")
        .unwrap();
    assert_eq!(at_global.owner, Some(key(Kind::Zone, "", "west")));
    // A MeshTrust reaches the other zone by itself.
    let pem = "-----BEGIN CERTIFICATE-----\nwest\n-----END CERTIFICATE-----";
    west.put(
        Kind::MeshTrust,
        "identity",
        json!({"trustDomain": "default.west.mesh.local", "caBundles": [{"type": "Pem", "pem": {"value": pem}}]}),
    );
    wait("the trust is in east", || {
        east.memory.view().list(Kind::MeshTrust).any(|t| t.zone() == Some("west"))
    })
    .await;
    // Removals.
    global.memory.delete(Kind::MeshTrafficPermission, "default", "allow-frontend");
    wait("removed in west", || {
        west.memory.get(Kind::MeshTrafficPermission, "default", hashed).is_none()
    })
    .await;
    west.memory.delete(Kind::MeshZoneAddress, "default", "zone-ingress");
    wait("removed in east", || {
        east.memory
            .get(Kind::MeshZoneAddress, "default", "zone-ingress-xw2dzb9ccb74x47f")
            .is_none()
    })
    .await;
    // Bookkeeping.
    wait("both are online and nothing was refused", || {
        ["east", "west"].iter().all(|zone| {
            let insight = global.insight(zone);
            let total = insight.subscriptions.last().map(|s| s.status.total.clone()).unwrap_or_default();
            insight.is_online()
                && insight.health_check.is_some()
                && total.responses_sent == total.responses_acknowledged
                && total.responses_rejected.is_empty()
        })
    })
    .await;
    wait("the zones' progress is known", || {
        let newest = Some(global.memory.view().at_global());
        global
            .server
            .progress()
            .values()
            .filter(|p| p.sent == newest && p.stored == newest)
            .count()
            == 2
    })
    .await;
    west.stop().await;
    wait("west is offline", || !global.insight("west").is_online()).await;
    assert!(
        global
            .memory
            .get(Kind::Dataplane, "default", "backend-1-bv8bz2f55764xz77")
            .is_some(),
        "its end deletes nothing"
    );
    assert_eq!(global.tasks.panics(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_during_a_slow_store_arrive_as_one_changeset() {
    let global = Global::start().await;
    let zone = Zone::start(&global, "east", 0xe);
    zone.connected().await;
    zone.caught_up(&global).await;
    let closed = zone.memory.gate.clone().write_owned().await;
    let (before, at_first) = (zone.memory.view().revision(), global.memory.view().revision());
    for n in 0..20 {
        global.memory.put(Site::Global, Kind::Mesh, "", &format!("m{n}"), json!({}));
    }
    wait("some of it was sent", || {
        global
            .server
            .progress()
            .values()
            .any(|p| p.sent.is_some_and(|s| s.revision > at_first))
    })
    .await;
    drop(closed);
    zone.caught_up(&global).await;
    let changesets = zone.memory.view().revision() - before;
    assert!((1..=10).contains(&changesets), "{changesets} changesets for 20 revisions");
    assert_eq!(zone.memory.view().list(Kind::Mesh).count(), 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_set_larger_than_a_message_arrives_whole() {
    let global = Global::start().await;
    let half_a_mib = "QUFB".repeat(128 * 1024);
    for n in 0..24 {
        let secret = json!({ "data": half_a_mib });
        global.memory.put(Site::Global, Kind::Secret, "default", &format!("s{n}"), secret);
    }
    let zone = Zone::start(&global, "east", 0xe);
    zone.caught_up(&global).await;
    assert_eq!(zone.memory.view().list(Kind::Secret).count(), 24);
    // Pruning comes after the last piece: nothing is missing for a moment either.
    let memory = zone.stop().await;
    global.memory.delete(Kind::Secret, "default", "s0");
    let revision = memory.view().revision();
    let again = Zone::with(memory, &global, "east", Token::Text(global.token("east").into()));
    again.caught_up(&global).await;
    assert_eq!(again.memory.view().list(Kind::Secret).count(), 23);
    assert_eq!(changesets_since(&again.memory, revision), 1, "the removal");
    assert_eq!(global.tasks.panics() + again.tasks.panics(), 0);
}
