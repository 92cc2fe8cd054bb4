//! Any world, however odd, builds: nothing panics, every plan is whole, everything encodes, and the result depends on nothing
//! but the world.

#![allow(clippy::unwrap_used)]

#[path = "build_support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use envoy_types::pb::envoy::{
    config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener, route::v3::RouteConfiguration},
    extensions::transport_sockets::tls::v3::Secret,
};
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};
use support::{MESH, Zone, labels as label_map, spiffe_id};
use ursa_model::{Kind, Labels, labels};
use ursa_zone_cp::{
    build::{Encoder, build, plan, plan::check::check},
    snapshot::{ProxySnapshot, XdsType},
    world::{IssuedSvid, ProxyId, World},
};

const PROXIES: [&str; 4] = ["p0", "p1", "p2", "p3"];
const NAMES: [&str; 4] = ["a", "b", "under_score", "c"];
const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.0.2", "127.0.0.1", "::1", "host.test", "0.0.0.0"];
const PORTS: [u32; 6] = [0, 80, 81, 8080, 49151, 70_000];
const SECTIONS: [&str; 3] = ["", "http", "x"];
const PROTOCOLS: [&str; 5] = ["", "tcp", "http", "http2", "grpc"];

fn pick<T: Copy + std::fmt::Debug + 'static>(of: &'static [T]) -> impl Strategy<Value = T> {
    proptest::sample::select(of)
}

fn arb_reference() -> impl Strategy<Value = Value> {
    (pick(&NAMES), prop::option::of(pick(&["east", "west"])), pick(&PORTS), any::<bool>()).prop_map(|(name, zone, port, by_name)| {
        if by_name {
            return json!({"kind": "MeshService", "name": name, "port": port});
        }
        let mut wanted = label_map([(labels::DISPLAY_NAME, name)]);
        if let Some(zone) = zone {
            wanted.insert(labels::ZONE.into(), zone.into());
        }
        json!({"kind": "MeshService", "labels": wanted, "port": port})
    })
}

fn arb_inbound() -> impl Strategy<Value = Value> {
    (pick(&PORTS), pick(&PORTS), pick(&ADDRESSES), pick(&SECTIONS), pick(&PROTOCOLS), pick(&["Ready", "NotReady", "Ignored"])).prop_map(
        |(port, service_port, address, name, protocol, state)| {
            json!({"port": port, "servicePort": service_port, "serviceAddress": address, "name": name, "protocol": protocol, "state": state})
        },
    )
}

/// A Dataplane and whether it has a certificate.
fn arb_dataplane() -> impl Strategy<Value = (Value, &'static str, bool)> {
    let outbound = (pick(&ADDRESSES), pick(&PORTS), arb_reference())
        .prop_map(|(address, port, backend)| json!({"address": address, "port": port, "backendRef": backend}));
    let listener = (
        pick(&ADDRESSES),
        pick(&PORTS),
        pick(&SECTIONS),
        pick(&["ZoneIngress", "ZoneEgress"]),
    )
        .prop_map(|(address, port, name, kind)| json!({"type": kind, "address": address, "port": port, "name": name}));
    let lists = (
        prop::collection::vec(arb_inbound(), 0..3),
        prop::collection::vec(outbound, 0..5),
        prop::collection::vec(listener, 0..2),
    );
    (pick(&ADDRESSES), lists, pick(&NAMES), any::<bool>()).prop_map(|(address, (inbound, outbound, listeners), workload, certified)| {
        let networking = json!({"address": address, "inbound": inbound, "outbound": outbound, "listeners": listeners});
        (json!({"networking": networking}), workload, certified)
    })
}

/// Name, zone, spec and status of a MeshService.
fn arb_service() -> impl Strategy<Value = (&'static str, &'static str, Value, bool)> {
    let target = prop_oneof![pick(&PORTS).prop_map(|p| json!(p)), pick(&SECTIONS).prop_map(|s| json!(s))];
    let port = (pick(&PORTS), prop::option::of(target), pick(&SECTIONS), pick(&PROTOCOLS)).prop_map(|(port, target, name, protocol)| {
        let mut out = json!({"port": port, "name": name, "appProtocol": protocol});
        if let Some(target) = target {
            out["targetPort"] = target;
        }
        out
    });
    (
        pick(&NAMES),
        pick(&["east", "west"]),
        prop::collection::vec(port, 0..3),
        0..3_usize,
        any::<bool>(),
    )
        .prop_map(|(name, zone, ports, identities, ready)| {
            let identities: Vec<Value> = (0..identities)
                .map(|i| json!({"type": "SpiffeID", "value": spiffe_id(zone, &format!("{name}{i}"))}))
                .collect();
            let selector = json!({"dataplaneLabels": {"matchLabels": {labels::WORKLOAD: name}}});
            (
                name,
                zone,
                json!({"state": "Available", "selector": selector, "ports": ports, "identities": identities}),
                ready,
            )
        })
}

fn arb_route() -> impl Strategy<Value = Value> {
    let path =
        (pick(&["Exact", "PathPrefix", "RegularExpression"]), pick(&["/", "/a", "/a/b"])).prop_map(|(t, v)| json!({"type": t, "value": v}));
    let backend = (arb_reference(), 0..4_u32)
        .prop_map(|(mut backend, weight)| {
            if backend.get("labels").is_none() {
                backend["labels"] = json!({labels::DISPLAY_NAME: backend["name"]});
            }
            backend["weight"] = weight.into();
            backend
        })
        .boxed();
    let filter = prop_oneof![
        Just(
            json!({"type": "RequestRedirect", "requestRedirect": {"statusCode": 301, "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/z"}}})
        ),
        Just(json!({"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "no-slash"}}})),
        Just(json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "x", "value": "1%"}]}})),
        backend
            .clone()
            .prop_map(|b| json!({"type": "RequestMirror", "requestMirror": {"percentage": 50, "backendRef": b}})),
    ];
    let rule = (
        prop::collection::vec(path, 1..3),
        prop::collection::vec(filter, 0..3),
        prop::collection::vec(backend, 0..4),
    )
        .prop_map(|(paths, filters, backends)| {
            let matches: Vec<Value> = paths.into_iter().map(|p| json!({"path": p})).collect();
            json!({"matches": matches, "default": {"filters": filters, "backendRefs": backends}})
        });
    (pick(&NAMES), prop::collection::vec(rule, 0..3)).prop_map(
        |(name, rules)| json!({"to": [{"targetRef": {"kind": "MeshService", "labels": {labels::DISPLAY_NAME: name}}, "rules": rules}]}),
    )
}

fn arb_permission() -> impl Strategy<Value = Value> {
    let caller = prop_oneof![
        Just(json!({"spiffeID": {"type": "Prefix", "value": "spiffe://default.east.mesh.local"}})),
        Just(json!({"sni": {"type": "Exact", "value": "sni.a"}})),
        Just(json!({})),
    ];
    let list = || prop::collection::vec(caller.clone(), 0..3);
    (list(), list(), list())
        .prop_map(|(deny, shadow, allow)| json!({"rules": [{"default": {"deny": deny, "allowWithShadowDeny": shadow, "allow": allow}}]}))
}

prop_compose! {
    fn arb_zone()(
        dataplanes in prop::collection::vec(arb_dataplane(), 1..=PROXIES.len()),
        services in prop::collection::vec(arb_service(), 0..5),
        addresses in prop::collection::vec((pick(&["east", "west"]), pick(&ADDRESSES), pick(&PORTS)), 0..3),
        routes in prop::collection::vec(arb_route(), 0..3),
        permissions in prop::collection::vec(arb_permission(), 0..3),
        trusts in prop::collection::vec(pick(&["east", "west"]), 0..3),
        identity in any::<bool>(),
        defaults in any::<bool>(),
    ) -> Zone {
        let mut zone = Zone::new("east");
        for ((spec, workload, certified), name) in dataplanes.into_iter().zip(PROXIES) {
            let labels = label_map([(labels::DISPLAY_NAME, name), (labels::ORIGIN, "zone"), (labels::ZONE, "east"), (labels::WORKLOAD, workload)]);
            zone.put_raw(Kind::Dataplane, MESH, name, labels, spec, None);
            if certified {
                zone.svids.insert(ProxyId::new(MESH, name), svid());
            }
        }
        for (i, (name, of_zone, spec, ready)) in services.into_iter().enumerate() {
            let origin = if of_zone == "east" { "zone" } else { "global" };
            let labels = label_map([(labels::DISPLAY_NAME, name), (labels::ORIGIN, origin), (labels::ZONE, of_zone)]);
            zone.put_raw(Kind::MeshService, MESH, &format!("s{i}"), labels, spec, ready.then(|| json!({"tls": {"status": "Ready"}})));
        }
        for (i, (of_zone, address, port)) in addresses.into_iter().enumerate() {
            let labels = label_map([(labels::ZONE, of_zone)]);
            zone.put_raw(Kind::MeshZoneAddress, MESH, &format!("z{i}"), labels, json!({"address": address, "port": port}), None);
        }
        for (i, spec) in routes.into_iter().enumerate() {
            zone.put_raw(Kind::MeshHTTPRoute, MESH, &format!("r{i}"), Labels::new(), spec, None);
        }
        for (i, spec) in permissions.into_iter().enumerate() {
            zone.put_raw(Kind::MeshTrafficPermission, MESH, &format!("p{i}"), Labels::new(), spec, None);
        }
        for of_zone in trusts {
            zone.put_trust(of_zone);
        }
        if identity {
            zone.put_identity();
        }
        if defaults {
            zone.put_default_policies();
        }
        zone
    }
}

/// One certificate for all: making keys is slow.
fn svid() -> Arc<IssuedSvid> {
    static SVID: OnceLock<Arc<IssuedSvid>> = OnceLock::new();
    SVID.get_or_init(|| {
        let mut zone = Zone::new("east");
        zone.issue("p", "a");
        zone.svids.values().next().unwrap().clone()
    })
    .clone()
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
    fn every_plan_is_whole_and_everything_encodes(zone in arb_zone()) {
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
    fn versions_depend_on_the_content_alone(zone in arb_zone(), other in arb_zone()) {
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
