//! What a write accepts, a real Envoy accepts: policies of hostile values, each checked as the REST API checks them, and those that
//! pass given to an Envoy. And the checker of regular expressions against the engine it stands for. Needs `ENVOY_BIN`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "build_support/ads.rs"]
mod ads;
#[path = "build_support/arb.rs"]
mod arb;
#[path = "build_support/envoy.rs"]
mod envoy;
#[path = "build_support/hostile.rs"]
mod hostile;
#[path = "build_support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use ads::Ads;
use arb::arb_zone;
use envoy::{Envoy, binary, free_addresses, free_port};
use hostile::{Policy, arb_policy, arb_regex};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use serde_json::{Value, json};
use support::{MESH, Zone, spiffe_id};
use ursa_model::{
    Kind, Labels,
    header_format::{self, Reading},
    labels, re2,
};
use ursa_zone_cp::{
    build::{Encoder, build},
    snapshot::ProxySnapshot,
    world::ProxyId,
};

const NODE: &str = "default.p0";

/// One proxy with everything that a policy can be about: inbounds and outbounds of HTTP, gRPC and TCP.
struct Proxy {
    zone: Zone,
    networking: Value,
    ports: Value,
    encoder: Encoder,
    ads: Ads,
    /// Runs as long as this lives.
    _envoy: Envoy,
}

impl Proxy {
    async fn start(binary: &std::path::Path, host: &str) -> Self {
        let mut taken = Vec::new();
        let mut free = || {
            taken.push(free_port(host, &taken));
            taken.last().copied()
        };
        let mut zone = Zone::new("east");
        zone.put_identity();
        zone.put_trust("east");
        let protocols = ["http", "grpc", "tcp"];
        let inbound: Vec<Value> = protocols
            .iter()
            .map(|p| json!({"port": free(), "servicePort": free(), "serviceAddress": host, "name": p, "protocol": p}))
            .collect();
        let ports: Vec<Value> = inbound
            .iter()
            .map(|i| json!({"name": i["name"], "port": i["port"], "targetPort": i["port"], "appProtocol": i["protocol"]}))
            .collect();
        let outbound: Vec<Value> = inbound
            .iter()
            .map(|i| {
                let to = json!({labels::DISPLAY_NAME: "backend"});
                json!({"address": host, "port": free(), "backendRef": {"kind": "MeshService", "labels": to, "port": i["port"]}})
            })
            .collect();
        let (networking, ports) = (
            json!({"address": host, "inbound": inbound, "outbound": outbound}),
            Value::from(ports),
        );
        zone.put_dataplane("p0", "backend", networking.clone());
        zone.put_service("backend", "east", ports.clone(), &[spiffe_id("east", "backend")], true);
        zone.issue("p0", "backend");
        let encoder = Encoder::default();
        let ads = Ads::start().await;
        ads.serve(NODE, zone.snapshot("p0", &encoder));
        let envoy = Envoy::start(binary, NODE, ads.address);
        assert_eq!(ads.settled(NODE).await, Vec::<String>::new());
        Self {
            zone,
            networking,
            ports,
            encoder,
            ads,
            _envoy: envoy,
        }
    }

    /// Gives Envoy a policy, valid or not; what it says to that.
    async fn refusals(&mut self, kind: Kind, spec: Value) -> Vec<String> {
        self.zone.put_raw(kind, MESH, "hostile", Labels::new(), spec, None);
        self.serve().await
    }

    async fn serve(&mut self) -> Vec<String> {
        self.ads.serve(NODE, self.zone.snapshot("p0", &self.encoder));
        self.ads.settled(NODE).await
    }

    async fn serve_nothing(&mut self) {
        self.ads.serve(NODE, ProxySnapshot::default());
        assert_eq!(self.ads.settled(NODE).await, Vec::<String>::new());
    }

    /// Takes all configuration away: a cluster that changes would wait for endpoints that this server does not send again.
    async fn clear(&mut self, kind: Kind) {
        self.zone.delete(kind, "hostile");
        self.serve_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_write_accepts_envoy_accepts() {
    let Some(binary) = binary() else { return };
    let mut proxy = Proxy::start(&binary, "127.63.0.1").await;
    let mut runner = TestRunner::deterministic();
    let strategy = arb_policy();
    let mut taken: BTreeMap<Kind, usize> = BTreeMap::new();
    let mut refused = BTreeMap::new();
    for _ in 0..3_000 {
        let Policy { kind, spec } = strategy.new_tree(&mut runner).unwrap().current();
        let Ok(canonical) = (kind.descriptor().canonical)(spec) else {
            continue;
        };
        *taken.entry(kind).or_default() += 1;
        for why in proxy.refusals(kind, canonical.clone()).await {
            refused.entry(why).or_insert_with(|| format!("{kind} {canonical}"));
        }
        proxy.clear(kind).await;
    }
    assert!(refused.is_empty(), "{refused:#?}");
    for kind in hostile::KINDS {
        let taken = taken.get(&kind).copied().unwrap_or_default();
        assert!(taken >= 100, "only {taken} valid ones of {kind}: they show nothing");
    }
    // Every command that a header value may hold.
    let with_arguments = [
        "START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ %s %z %F)",
        "REQ(:path?x-a):7",
        "RESP(a)",
        "TRAILER(a)",
        "DYNAMIC_METADATA(a:b)",
        "CLUSTER_METADATA(a:b)",
        "UPSTREAM_METADATA(a:b)",
        "DOWNSTREAM_PEER_CERT_V_START(%Y-%m-%d)",
        "DOWNSTREAM_PEER_CERT_V_END(%s)",
        "UPSTREAM_PEER_CERT_V_START(%Y)",
        "UPSTREAM_PEER_CERT_V_END(%Y)",
        "ENVIRONMENT(HOME)",
        "ENVIRONMENT(NO_SUCH-VAR.x):5",
        "FILTER_STATE(a.b)",
        "FILTER_STATE(a:PLAIN):7",
        "FILTER_STATE(a:TYPED)",
        "FILTER_STATE(a:FIELD:b)",
    ];
    let commands = header_format::PLAIN.iter().chain(&with_arguments).map(|c| format!("%{c}%"));
    let headers: Vec<Value> = commands
        .inspect(|value| assert_eq!(header_format::read(value), Reading::Formatted, "{value}"))
        .enumerate()
        .map(|(i, value)| json!({"name": format!("x-{i}"), "value": value}))
        .collect();
    let filters: Vec<Value> = ["requestHeaderModifier", "responseHeaderModifier"]
        .map(|field| json!({"type": format!("R{}", &field[1..]), field: {"set": headers}}))
        .into();
    let rules = json!([{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "default": {"filters": filters}}]);
    let to = json!({"targetRef": {"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend"}}, "rules": rules});
    assert_eq!(proxy.refusals(Kind::MeshHTTPRoute, json!({"to": [to]})).await, Vec::<String>::new());
}

/// What other kinds hold that reaches an Envoy: addresses, names of ports, identities, trust domains.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_resources_hold_envoy_accepts() {
    const TEXTS: [&str; 12] = ["", "a", "A b", "a/b", "a:b", "é", "\n", "\0", "%", "\"", "*", "a_b"];
    const ADDRESSES: [&str; 12] = [
        "0.0.0.0",
        "::",
        "::1",
        "127.0.0.1",
        "10.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
        "::ffff:1.2.3.4",
        "fe80::1",
        "2001:db8::1",
        "ff02::1",
        "a.test",
    ];
    let Some(binary) = binary() else { return };
    let mut proxy = Proxy::start(&binary, "127.63.0.3").await;
    let whole = proxy.zone.clone();
    let (networking, ports) = (proxy.networking.clone(), proxy.ports.clone());
    let long = "x".repeat(300);
    let texts = || TEXTS.into_iter().chain([long.as_str()]);
    let mut cases: Vec<(Kind, &str, &str, Value)> = Vec::new();
    for address in ADDRESSES {
        let mut own = networking.clone();
        for inbound in own["inbound"].as_array_mut().unwrap() {
            inbound["serviceAddress"] = json!(address);
        }
        cases.push((Kind::Dataplane, "p0", "east", json!({"networking": own})));
        let mut endpoint = networking.clone();
        endpoint["address"] = json!(address);
        endpoint["outbound"] = json!([]);
        cases.push((Kind::Dataplane, "p1", "east", json!({"networking": endpoint})));
        cases.push((Kind::MeshZoneAddress, "ingress", "west", json!({"address": address, "port": 1})));
    }
    for text in texts() {
        for field in ["name", "appProtocol"] {
            let mut named = ports.clone();
            named[0][field] = json!(text);
            cases.push((Kind::MeshService, "other", "east", service(&named, &spiffe_id("east", "backend"))));
            cases.push((Kind::MeshService, "other", "west", service(&named, &spiffe_id("west", "backend"))));
        }
        cases.push((Kind::MeshService, "other", "east", service(&ports, text)));
        let bundle = json!([{"type": "Pem", "pem": {"value": support::ca("east").cert_pem()}}]);
        cases.push((Kind::MeshTrust, "other", "west", json!({"trustDomain": text, "caBundles": bundle})));
    }
    let (mut taken, mut refused) = (0, BTreeMap::new());
    for (kind, name, of_zone, spec) in cases {
        let Ok(canonical) = (kind.descriptor().canonical)(spec) else {
            continue;
        };
        taken += 1;
        proxy.zone = whole.clone();
        // The remote service that an ingress' address is for, and an outbound to the service with odd ports.
        proxy
            .zone
            .put_service("backend", "west", ports.clone(), &[spiffe_id("west", "backend")], true);
        proxy.zone.put_zone_address("west", "127.0.0.1", 1);
        let mut own = networking.clone();
        for (i, label) in ["west", "other"].into_iter().enumerate() {
            let labels = if label == "other" {
                json!({labels::DISPLAY_NAME: "other"})
            } else {
                json!({labels::DISPLAY_NAME: "backend", labels::ZONE: "west"})
            };
            own["outbound"][i]["backendRef"] = json!({"kind": "MeshService", "labels": labels, "port": ports[0]["port"]});
        }
        proxy.zone.put_dataplane("p0", "backend", own.clone());
        let origin = if of_zone == "east" { "zone" } else { "global" };
        let given = [
            (labels::DISPLAY_NAME, name),
            (labels::ZONE, of_zone),
            (labels::ORIGIN, origin),
            (labels::WORKLOAD, "backend"),
        ];
        let given: Labels = given.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let ready = (kind == Kind::MeshService).then(|| json!({"tls": {"status": "Ready"}}));
        proxy.zone.put_raw(kind, MESH, name, given, canonical.clone(), ready);
        for why in proxy.serve().await {
            refused
                .entry(why)
                .or_insert_with(|| format!("{kind} {name} of {of_zone} {canonical}"));
        }
        proxy.serve_nothing().await;
    }
    assert!(refused.is_empty(), "{refused:#?}");
    assert!(taken >= 60, "only {taken} valid ones");
}

fn service(ports: &Value, identity: &str) -> Value {
    json!({"state": "Available", "selector": {"dataplaneLabels": {"matchLabels": {labels::WORKLOAD: "backend"}}}, "ports": ports,
        "identities": [{"type": "SpiffeID", "value": identity}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regular_expressions_are_told_apart_as_envoy_does() {
    let Some(binary) = binary() else { return };
    let mut proxy = Proxy::start(&binary, "127.63.0.2").await;
    let mut runner = TestRunner::deterministic();
    let strategy = arb_regex();
    let route = |regex: &str| {
        let to = json!({"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend"}});
        let rules = json!([{"matches": [{"path": {"type": "RegularExpression", "value": regex}}], "default": {}}]);
        json!({"to": [{"targetRef": to, "rules": rules}]})
    };
    let (mut accepted, mut wrong) = (0, Vec::new());
    for _ in 0..2_000 {
        let regex = strategy.new_tree(&mut runner).unwrap().current();
        if regex.is_empty() {
            continue;
        }
        let refusals = proxy.refusals(Kind::MeshHTTPRoute, route(&regex)).await;
        let ours = re2::check(&regex);
        accepted += usize::from(ours.is_ok());
        if refusals.is_empty() != ours.is_ok() {
            wrong.push((regex, ours, refusals));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        (300..1_700).contains(&accepted),
        "{accepted} accepted: the expressions are too plain or too wild"
    );
}

/// Any world's configuration, as long as its addresses can be bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_worlds_are_accepted_too() {
    let Some(binary) = binary() else { return };
    let ads = Ads::start().await;
    let node = "default.p0";
    ads.serve(node, ProxySnapshot::default());
    let envoy = Envoy::start(&binary, node, ads.address);
    let encoder = Encoder::default();
    let mut runner = TestRunner::deterministic();
    let a = free_addresses();
    // Mostly ports that are free right now, and some that never can be.
    let good = [a.frontend_outbound, a.frontend_inbound, a.app_port].map(u32::from);
    let ports: &'static [u32] = Vec::leak([good, good, good].concat().into_iter().chain([0, 70_000]).collect());
    let mut addresses = vec![
        a.frontend.clone(),
        a.ingress.clone(),
        a.backend_west.clone(),
        a.backend_east.clone(),
    ];
    addresses.extend(addresses.clone());
    addresses.push("host.test".to_owned());
    let addresses: &'static [String] = Vec::leak(addresses);
    let strategy = arb_zone(addresses, ports);
    let mut listeners = 0;
    for round in 0..200 {
        let mut zone = strategy.new_tree(&mut runner).unwrap().current();
        let Some(snapshot) = build(&zone.world(), &ProxyId::new(MESH, "p0"), &encoder) else {
            continue;
        };
        listeners += snapshot.of(ursa_zone_cp::snapshot::XdsType::Listener).len();
        // With nothing in between, a listener could ask for the socket that another one is about to leave.
        for (step, snapshot) in [("it", snapshot), ("nothing", ProxySnapshot::default())] {
            ads.serve(node, snapshot);
            assert_eq!(ads.settled(node).await, Vec::<String>::new(), "round {round}, {step}: {zone:?}");
        }
    }
    assert!(listeners > 150, "the worlds are too poor to show anything: {listeners} listeners");
    assert_eq!(envoy.complaints().await, Vec::<String>::new());
}
