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
    build::{Encoder, build, plan, plan::check::check},
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
