//! Any world, however odd, builds: nothing panics, every plan is whole, everything encodes, and the result depends on nothing
//! but the world.

#![allow(clippy::unwrap_used)]

#[path = "build_support/arb.rs"]
mod arb;
#[path = "build_support/mod.rs"]
mod support;

use std::{collections::BTreeMap, sync::OnceLock};

use arb::{PROXIES, arb_zone};
use envoy_types::pb::envoy::{
    config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener, route::v3::RouteConfiguration},
    extensions::transport_sockets::tls::v3::Secret,
};
use proptest::prelude::*;
use prost::Message;
use serde_json::json;
use support::{MESH, Zone, labels as label_map};
use ursa_model::{Kind, Labels, labels};
use ursa_zone_cp::{
    build::{Encoder, build, plan, plan::check::check, plan_tracked},
    snapshot::{ProxySnapshot, XdsType},
    world::{ProxyId, World},
};

fn any_zone() -> impl Strategy<Value = Zone> {
    static ADDRESSES: OnceLock<Vec<String>> = OnceLock::new();
    let addresses = ADDRESSES.get_or_init(|| {
        ["10.0.0.1", "10.0.0.2", "127.0.0.1", "::1", "host.test", "0.0.0.0", ""]
            .map(str::to_owned)
            .to_vec()
    });
    arb_zone(addresses, &[0, 80, 81, 8080, 49151, 70_000])
}

fn all_snapshots(world: &World, encoder: &Encoder) -> BTreeMap<&'static str, ProxySnapshot> {
    PROXIES
        .into_iter()
        .filter_map(|p| Some((p, build(world, &ProxyId::new(MESH, p), encoder)?)))
        .collect()
}

/// Everything but the bytes and the revision.
fn content(all: &BTreeMap<&'static str, ProxySnapshot>) -> BTreeMap<(&'static str, XdsType, String), String> {
    let mut out = BTreeMap::new();
    for (proxy, snapshot) in all {
        for (kind, resources) in &snapshot.resources {
            out.extend(
                resources
                    .iter()
                    .map(|(name, r)| ((*proxy, *kind, name.clone()), r.version.to_string())),
            );
        }
    }
    out
}

/// The name inside an encoded resource.
fn encoded_name(kind: XdsType, bytes: &[u8]) -> Result<String, prost::DecodeError> {
    Ok(match kind {
        XdsType::Secret => Secret::decode(bytes)?.name,
        XdsType::Cluster => Cluster::decode(bytes)?.name,
        XdsType::Endpoint => ClusterLoadAssignment::decode(bytes)?.cluster_name,
        XdsType::Listener => Listener::decode(bytes)?.name,
        XdsType::Route => RouteConfiguration::decode(bytes)?.name,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_is_whole_and_everything_encodes(zone in any_zone()) {
        let mut zone = zone;
        let world = zone.world();
        for proxy in PROXIES {
            let id = ProxyId::new(MESH, proxy);
            let Some(plan) = plan(&world, &id) else { continue };
            prop_assert_eq!(check(&plan), Vec::<String>::new());
            let snapshot = build(&world, &id, &Encoder::default()).unwrap();
            prop_assert_eq!(snapshot.of(XdsType::Listener).len(), plan.listeners.len());
            for (kind, resources) in &snapshot.resources {
                for (name, resource) in resources {
                    prop_assert_eq!(encoded_name(*kind, &resource.bytes).unwrap(), name.as_str());
                }
            }
        }
    }

    #[test]
    fn versions_depend_on_the_content_alone(zone in any_zone(), other in any_zone()) {
        let (mut zone, mut other) = (zone, other);
        let encoder = Encoder::default();
        let first = content(&all_snapshots(&zone.world(), &encoder));
        // Another world in between, through the same cache.
        all_snapshots(&other.world(), &encoder);
        prop_assert_eq!(&first, &content(&all_snapshots(&zone.world(), &encoder)));
        prop_assert_eq!(&first, &content(&all_snapshots(&zone.world(), &Encoder::default())));

        // What nobody here depends on: a remote service that nobody names, a policy for others, a second mesh.
        let stranger = json!({"ports": [{"port": 80, "appProtocol": "http"}], "selector": {}});
        let labels = label_map([(labels::DISPLAY_NAME, "stranger"), (labels::ORIGIN, "global"), (labels::ZONE, "west")]);
        zone.put_raw(Kind::MeshService, MESH, "stranger", labels, stranger, None);
        zone.put_policy(Kind::MeshTrafficPermission, "for-others", json!({
            "targetRef": {"kind": "Dataplane", "labels": {labels::WORKLOAD: "nobody"}},
            "rules": [{"default": {"allow": [{"spiffeID": {"type": "Exact", "value": "spiffe://a/b"}}]}}]}));
        zone.put_raw(Kind::Mesh, "", "second", Labels::new(), json!({}), None);
        zone.put_raw(Kind::Dataplane, "second", "p0", Labels::new(), json!({"networking": {"address": "10.0.0.9"}}), None);
        prop_assert_eq!(&first, &content(&all_snapshots(&zone.world(), &encoder)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// A full build is the judge of what may be left out.
    #[test]
    fn what_a_build_did_not_read_changes_nothing(
        zone in any_zone(),
        other in any_zone(),
        changes in prop::collection::vec((prop::bool::weighted(0.8), any::<usize>()), 1..3),
    ) {
        let mut zone = zone;
        let first = zone.world();
        for (put, nth) in changes {
            if put {
                zone.take_from(&other, nth);
            } else {
                zone.lose(nth);
            }
        }
        let second = zone.next_world(&first);
        for name in PROXIES {
            let proxy = ProxyId::new(MESH, name);
            let Some((before, reads)) = plan_tracked(&first, &proxy) else { continue };
            if reads.still_hold(first.mesh(MESH).unwrap(), second.mesh(MESH).unwrap(), name) {
                prop_assert_eq!(Some(before), plan(&second, &proxy), "{} would be different", name);
            }
        }
    }
}

#[test]
fn a_change_concerns_those_that_read_it() {
    let mut zone = support::east(&support::Addresses::default());
    let inbound = json!([{"port": 8080, "servicePort": 18080, "name": "http", "protocol": "http"}]);
    let ports = json!([{"name": "http", "port": 8080, "targetPort": 8080, "appProtocol": "http"}]);
    zone.put_service("other", "east", ports, &[support::spiffe_id("east", "other")], true);
    zone.put_dataplane("other-1", "other", json!({"address": "10.0.0.1", "inbound": inbound}));
    // Reaches the backend of its own zone.
    let outbound = json!([{"port": 20001, "backendRef": {"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: "east"}, "port": 8080}}]);
    zone.put_dataplane("caller-1", "caller", json!({"address": "10.0.0.2", "outbound": outbound}));
    zone.issue("caller-1", "caller");
    let first = zone.world();
    let reads: BTreeMap<&str, _> = ["frontend-1", "caller-1", "backend-1", "other-1"]
        .into_iter()
        .map(|name| (name, plan_tracked(&first, &ProxyId::new(MESH, name)).unwrap().1))
        .collect();
    let concerned = |second: &World| -> Vec<&str> {
        let (old, new) = (first.mesh(MESH).unwrap(), second.mesh(MESH).unwrap());
        reads
            .iter()
            .filter(|(name, r)| !r.still_hold(old, new, name))
            .map(|(name, _)| *name)
            .collect()
    };
    assert_eq!(concerned(&zone.next_world(&first)), Vec::<&str>::new());
    let mut one = zone.clone();
    one.put_dataplane("other-1", "other", json!({"address": "10.0.0.9", "inbound": inbound}));
    assert_eq!(concerned(&one.next_world(&first)), ["other-1"]);
    let mut two = zone.clone();
    two.put_dataplane("backend-1", "backend", json!({"address": "10.0.0.9", "inbound": inbound}));
    assert_eq!(concerned(&two.next_world(&first)), ["backend-1", "caller-1"]);
    let mut three = zone.clone();
    three.allow_frontend();
    assert_eq!(concerned(&three.next_world(&first)).len(), 4, "a policy may be about anybody");
}
