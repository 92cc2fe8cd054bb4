//! Both ends of a stream over a link that keeps order and may break, driven by any script of changes, answers, refusals, slow and
//! failing stores, reconnects. Whatever the script, both ends agree in the end, and on the way nothing is claimed that is not so.
//! In: scripts from proptest. Invariants checked at every step are named in `link::Link`. Real machines, real mapping, real `State`.
#[path = "../../src/testing.rs"]
mod testing;

mod link;
mod script;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use serde_json::{Value, json};
use testing::{Memory, each, key, labels_of};
use ursa_model::{
    Kind, Labels, ResourceKey, Timestamp,
    kind::ALL,
    labels::{DISPLAY_NAME, ORIGIN, Site as Made, ZONE},
    wire,
};
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ursa_state::{GlobalRevision, HistoryId, OpResult, Role, observed::Observation};
use ursa_sync::{
    digest::{Tally, is_covered},
    distribution::{Distribution, Distributor},
    mapping::{Class, Recipient},
    peer::{Features, Identity, Line},
    receiver::{self, Batch, Receiver, Site},
    sender::{self, MAX_ROUNDS, STOCK_BYTES, Sender},
};

use link::*;
use script::*;

fn play(way: Way, progress: bool, script: &[Step]) {
    let mut link = Link::new(way, progress);
    let mut locals = BTreeSet::new();
    for step in script {
        if let Step::Local(n) = step {
            locals.insert(format!("local-{n}"));
        }
        link.step(step);
    }
    link.settle();
    // What is refused is tried again, and refused again, without disturbing the rest.
    link.step(&Step::Retry);
    link.settle();
    link.step(&Step::Grace);
    link.settle();
    if progress {
        // Whatever somebody did to the receiver is found by the next heartbeat and repaired; a new stream does so too.
        link.step(&Step::Heartbeat);
        link.settle();
        if link.corrupted {
            // A kind is repaired once per stream, and not at all while something of it is refused.
            link.step(&Step::Break { stored: true });
            link.settle();
        }
    }
    let want = link.expected(link.fed.as_ref().unwrap());
    let mut have = link.held_by_target();
    // Removals that a stock peer implied wait for an operator, if they are many or of roots.
    assert!(
        link.receiver
            .held()
            .values()
            .all(|h| h.keys.is_empty() || h.wait == receiver::Wait::Operator)
    );
    let held: BTreeSet<ResourceKey> = link.receiver.held().values().flat_map(|h| h.keys.iter().cloned()).collect();
    assert!(!progress || held.is_empty(), "a peer that is known is believed: {held:?}");
    have.retain(|key, _| want.good.contains_key(key) || !(want.bad.contains(key) || held.contains(key)));
    assert_eq!(have, want.good, "both ends agree");
    assert_eq!(
        want.bad.is_empty(),
        link.sender.refused().next().is_none(),
        "what is refused now is known to the sender"
    );
    for local in locals {
        assert!(
            link.target.get(Kind::MeshTrafficPermission, "default", &local).is_some(),
            "{local} is the receiver's own"
        );
    }
    if progress && way == Way::Down {
        assert_eq!(
            link.target.view().global(),
            Some(link.source.view().at_global()),
            "the newest revision is reached"
        );
    }
}

#[test]
fn a_stream_goes_on_where_the_last_one_ended() {
    let mut link = Link::new(Way::Down, true);
    for n in [0, 1, 5, 7, 8] {
        link.step(&Step::Put(n, 0));
    }
    link.settle();
    // While apart one thing changes, one goes, and one is hidden.
    link.step(&Step::Put(5, 1));
    link.step(&Step::Delete(1));
    link.step(&Step::Switch(false));
    link.step(&Step::Break { stored: true });
    assert!(link.resumed);
    link.feed();
    while !link.to_sender.is_empty() {
        link.deliver_up();
    }
    let mut sent: Vec<_> = link
        .to_receiver
        .iter()
        .filter(|m| m.type_url.parse::<Kind>().is_ok())
        .map(|m| (m.type_url.as_str(), m.resources.len(), m.removed_resources.len()))
        .collect();
    sent.sort_unstable();
    assert_eq!(
        sent,
        [("Mesh", 0, 1), ("MeshTrafficPermission", 1, 0), ("MeshZoneAddress", 0, 2)],
        "only what changed"
    );
    link.settle();
    let want = link.expected(link.fed.as_ref().unwrap());
    assert_eq!(link.held_by_target(), want.good);
    // A zone that holds something else than it was shown begins anew.
    link.step(&Step::Corrupt(0, true));
    link.step(&Step::Break { stored: true });
    assert!(!link.resumed);
    link.settle();
    assert_eq!(link.held_by_target(), want.good);
}

#[test]
fn a_heartbeat_finds_and_repairs_what_differs() {
    for way in [Way::Down, Way::Up] {
        for gone in [true, false] {
            let mut link = Link::new(way, true);
            for n in [5, 7, 8] {
                link.step(&Step::Put(n, 0));
            }
            link.settle();
            let want = link.held_by_target();
            link.step(&Step::Corrupt(0, gone));
            assert_ne!(link.held_by_target(), want);
            link.settle();
            assert_ne!(link.held_by_target(), want, "nobody has looked yet");
            link.step(&Step::Heartbeat);
            link.settle();
            assert_eq!(link.held_by_target(), want, "{way:?} {gone}");
        }
    }
}

fn script() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_zone_of_ours_converges(script in script()) {
        play(Way::Down, true, &script);
    }

    #[test]
    fn a_stock_zone_converges(script in script()) {
        play(Way::Down, false, &script);
    }

    #[test]
    fn our_global_converges(script in script()) {
        play(Way::Up, true, &script);
    }

    #[test]
    fn a_stock_global_converges(script in script()) {
        play(Way::Up, false, &script);
    }
}
