//! Whether the other zones have stored what one changed.

use super::*;
use ursa_sync::{
    client::Unknown,
    peer::{BEHIND_HEADER, WAIT_HEADER, Zones},
};

/// How a MeshZoneAddress `zone-ingress` of west is called elsewhere.
const COPY: &str = "zone-ingress-xw2dzb9ccb74x47f";

fn has_copy(zone: &Zone) -> bool {
    zone.memory.get(Kind::MeshZoneAddress, "default", COPY).is_some()
}

fn names(zones: &[ursa_model::ZoneName]) -> Vec<&str> {
    zones.iter().map(ursa_model::ZoneName::as_str).collect()
}

/// Asks until the answer is as wanted: a zone that is slow to begin is named among others first.
async fn until(zone: &Zone, own: GlobalRevision, limit: Duration, wanted: impl Fn(&Result<Zones, Unknown>) -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = zone.elsewhere.stored(own, limit).await;
        if wanted(&answer) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "the last answer was {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_learns_when_the_others_have_what_it_withdrew() {
    let global = Global::start().await;
    let west = Zone::start(&global, "west", 0xa1);
    let (east, south) = (Zone::start(&global, "east", 0xa2), Zone::start(&global, "south", 0xa3));
    for zone in [&west, &east, &south] {
        zone.connected().await;
        zone.caught_up(&global).await;
    }
    west.put(Kind::MeshZoneAddress, "zone-ingress", address(10001));
    wait("everybody has the address", || has_copy(&east) && has_copy(&south)).await;

    // South stores nothing for a while.
    let slow = south.memory.gate.write().await;
    west.memory.delete(Kind::MeshZoneAddress, "default", "zone-ingress");
    let own = west.memory.view().at_global();
    until(&west, own, Duration::from_secs(2), |answer| {
        answer
            .as_ref()
            .is_ok_and(|zones| names(&zones.behind) == ["south"] && zones.silent.is_empty())
    })
    .await;
    assert!(has_copy(&south));
    drop(slow);
    until(&west, own, PATIENCE, |answer| answer == &Ok(Zones::default())).await;
    assert!(!has_copy(&east) && !has_copy(&south), "whoever is not named has it");

    // What is none of the others' business needs no news from the global.
    west.put(Kind::Secret, "own", serde_json::to_value(SecretSpec::of(b"x")).unwrap());
    let own = west.memory.view().at_global();
    until(&west, own, PATIENCE, |answer| answer == &Ok(Zones::default())).await;

    // A zone that is away is named, and not waited for.
    south.stop().await;
    wait("south is offline", || !global.insight("south").is_online()).await;
    west.put(Kind::MeshZoneAddress, "zone-ingress", address(10002));
    let own = west.memory.view().at_global();
    until(&west, own, PATIENCE, |answer| {
        answer
            .as_ref()
            .is_ok_and(|zones| zones.behind.is_empty() && names(&zones.silent) == ["south"])
    })
    .await;
    assert!(has_copy(&east));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_global_nothing_is_known_until_it_is_back() {
    let global = Global::start().await;
    let (west, east) = (Zone::start(&global, "west", 0xa1), Zone::start(&global, "east", 0xa2));
    for zone in [&west, &east] {
        zone.connected().await;
        zone.caught_up(&global).await;
    }
    global.stop().await;
    west.put(Kind::MeshZoneAddress, "zone-ingress", address(10001));
    let own = west.memory.view().at_global();
    let limit = Duration::from_millis(300);
    until(&west, own, limit, |answer| answer == &Err(Unknown::NotConnected)).await;
    let (confirmed, global) = tokio::join!(west.elsewhere.stored(own, PATIENCE), global.restart());
    // East may be slower to return than west: then it is named.
    assert!(confirmed.as_ref().is_ok_and(|z| z.behind.is_empty()), "{confirmed:?}");
    until(&west, own, PATIENCE, |answer| answer == &Ok(Zones::default())).await;
    assert!(has_copy(&east));
    drop(global);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_zone_is_answered_and_garbage_is_no_question() {
    let global = Global::start().await;
    let west = Zone::start(&global, "west", 0xa1);
    west.connected().await;
    let token = global.token("west");
    let mut client = GlobalKdsServiceClient::new(global.channel().await);
    for (wait, answers) in [("0", true), ("99999999999999999999", false), ("5s", false), ("-1", false)] {
        let pairs = [("client-id", "west"), ("authorization", token.as_str()), (WAIT_HEADER, wait)];
        let answer = within("an answer", client.health_check(request(ZoneHealthCheckRequest {}, &pairs))).await;
        assert_eq!(answer.unwrap().metadata().contains_key(BEHIND_HEADER), answers, "{wait}");
    }
    let pairs = [("client-id", "east"), ("authorization", token.as_str()), (WAIT_HEADER, "0")];
    let refused = within("an answer", client.health_check(request(ZoneHealthCheckRequest {}, &pairs))).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}
