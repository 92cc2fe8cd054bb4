//! Random zones: small pools, so that things meet, and values that no write would let pass.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use serde_json::{Value, json};
use ursa_model::{Kind, Labels, labels};
use ursa_zone_cp::world::{IssuedSvid, ProxyId};

use crate::support::{MESH, Zone, labels as label_map, spiffe_id};

type Addresses = &'static [String];
type Ports = &'static [u32];

pub const PROXIES: [&str; 4] = ["p0", "p1", "p2", "p3"];
const NAMES: [&str; 4] = ["a", "b", "under_score", "c"];
const SECTIONS: [&str; 3] = ["", "http", "x"];
const PROTOCOLS: [&str; 5] = ["", "tcp", "http", "http2", "grpc"];

fn pick<T: Clone + std::fmt::Debug + 'static>(of: &'static [T]) -> impl Strategy<Value = T> {
    proptest::sample::select(of)
}

fn arb_reference(ports: Ports) -> impl Strategy<Value = Value> {
    (pick(&NAMES), prop::option::of(pick(&["east", "west"])), pick(ports), any::<bool>()).prop_map(|(name, zone, port, by_name)| {
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

fn arb_inbound(addresses: Addresses, ports: Ports) -> impl Strategy<Value = Value> {
    (pick(ports), pick(ports), pick(addresses), pick(&SECTIONS), pick(&PROTOCOLS), pick(&["Ready", "NotReady", "Ignored"])).prop_map(
        |(port, service_port, address, name, protocol, state)| {
            json!({"port": port, "servicePort": service_port, "serviceAddress": address, "name": name, "protocol": protocol, "state": state})
        },
    )
}

/// A Dataplane and whether it has a certificate.
fn arb_dataplane(addresses: Addresses, ports: Ports) -> impl Strategy<Value = (Value, &'static str, bool)> {
    let outbound = (pick(addresses), pick(ports), arb_reference(ports))
        .prop_map(|(address, port, backend)| json!({"address": address, "port": port, "backendRef": backend}));
    let listener = (pick(addresses), pick(ports), pick(&SECTIONS), pick(&["ZoneIngress", "ZoneEgress"]))
        .prop_map(|(address, port, name, kind)| json!({"type": kind, "address": address, "port": port, "name": name}));
    let lists = (
        prop::collection::vec(arb_inbound(addresses, ports), 0..4),
        prop::collection::vec(outbound, 0..8),
        prop::collection::vec(listener, 0..2),
    );
    (pick(addresses), lists, pick(&NAMES), any::<bool>()).prop_map(|(address, (inbound, outbound, listeners), workload, certified)| {
        let networking = json!({"address": address, "inbound": inbound, "outbound": outbound, "listeners": listeners});
        (json!({"networking": networking}), workload, certified)
    })
}

/// Name, zone, spec and status of a MeshService.
fn arb_service(ports: Ports) -> impl Strategy<Value = (&'static str, &'static str, Value, bool)> {
    let target = prop_oneof![pick(ports).prop_map(|p| json!(p)), pick(&SECTIONS).prop_map(|s| json!(s))];
    let port = (pick(ports), prop::option::of(target), pick(&SECTIONS), pick(&PROTOCOLS)).prop_map(|(port, target, name, protocol)| {
        let mut out = json!({"port": port, "name": name, "appProtocol": protocol});
        if let Some(target) = target {
            out["targetPort"] = target;
        }
        out
    });
    (
        pick(&NAMES),
        pick(&["east", "west"]),
        prop::collection::vec(port, 0..5),
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

fn arb_route(ports: Ports) -> impl Strategy<Value = Value> {
    let path =
        (pick(&["Exact", "PathPrefix", "RegularExpression"]), pick(&["/", "/a", "/a/b"])).prop_map(|(t, v)| json!({"type": t, "value": v}));
    let backend = (arb_reference(ports), 0..4_u32)
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
    pub fn arb_zone(addresses: Addresses, ports: Ports)(
        dataplanes in prop::collection::vec(arb_dataplane(addresses, ports), 1..=PROXIES.len()),
        services in prop::collection::vec(arb_service(ports), 0..8),
        addresses in prop::collection::vec((pick(&["east", "west"]), pick(addresses), pick(ports)), 0..3),
        routes in prop::collection::vec(arb_route(ports), 0..3),
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
