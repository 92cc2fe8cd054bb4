//! Worlds for tests: a store in memory, filled with resources as a zone would hold them, and the demo's two zones.

#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::{Value, json};
use time::OffsetDateTime;
use ursa_model::{Kind, Labels, ResourceKey, Timestamp, hash::hashed, labels};
use ursa_pki::CertificateAuthority;
use ursa_state::{Changeset, Command, Expect, Op, Put, RequestId, State};
use ursa_zone_cp::{
    build::{self, Encoder, plan::Plan},
    resolve::Names,
    snapshot::ProxySnapshot,
    world::{IssuedSvid, ProxyId, Svids, World},
};

pub const MESH: &str = "default";

/// The CA of a zone's trust domain, made once per process.
pub fn ca(zone: &str) -> Arc<CertificateAuthority> {
    static ALL: OnceLock<parking_lot::Mutex<BTreeMap<String, Arc<CertificateAuthority>>>> = OnceLock::new();
    let all = ALL.get_or_init(parking_lot::Mutex::default);
    all.lock()
        .entry(zone.to_owned())
        .or_insert_with(|| {
            let made = CertificateAuthority::generate(&trust_domain(zone).parse().unwrap(), OffsetDateTime::now_utc()).unwrap();
            Arc::new(CertificateAuthority::load(&made.cert_pem, &made.key_pem).unwrap())
        })
        .clone()
}

pub fn trust_domain(zone: &str) -> String {
    format!("{MESH}.{zone}.mesh.local")
}

pub fn spiffe_id(zone: &str, workload: &str) -> String {
    format!("spiffe://{}/workload/{workload}", trust_domain(zone))
}

/// A zone's store and certificates.
#[derive(Clone)]
pub struct Zone {
    pub name: String,
    state: State,
    index: u64,
    pub svids: Svids,
    /// Problems that the last world reported.
    pub problems: Vec<String>,
    /// What DNS names stand for.
    pub names: Names,
}

impl std::fmt::Debug for Zone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<_> = self.state.view().iter().map(|r| (&r.key, &r.labels, &r.spec)).collect();
        f.debug_struct("Zone")
            .field("name", &self.name)
            .field("resources", &all)
            .field("certified", &self.svids.keys())
            .finish()
    }
}

pub fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

impl Zone {
    pub fn new(name: &str) -> Self {
        let mut zone = Self {
            name: name.into(),
            state: State::default(),
            index: 0,
            svids: Svids::new(),
            problems: Vec::new(),
            names: Names::new(),
        };
        zone.put_at(Kind::Mesh, "", MESH, Labels::new(), json!({}), None);
        zone
    }

    /// Stores a resource whose spec must be valid.
    pub fn put(&mut self, kind: Kind, name: &str, labels: Labels, spec: Value) {
        self.put_at(kind, MESH, name, labels, spec, None);
    }

    pub fn put_at(&mut self, kind: Kind, mesh: &str, name: &str, labels: Labels, spec: Value, status: Option<Value>) {
        let spec = (kind.descriptor().canonical)(spec).unwrap_or_else(|found| panic!("{kind} {name}: {found:?}"));
        self.put_raw(kind, mesh, name, labels, spec, status);
    }

    /// Stores a resource as it is, valid or not.
    pub fn put_raw(&mut self, kind: Kind, mesh: &str, name: &str, labels: Labels, spec: Value, status: Option<Value>) {
        let key = ResourceKey::new(kind, mesh, name).unwrap();
        self.apply(Op::Put(Put {
            key,
            labels,
            spec,
            status,
            owner: None,
            expect: Expect::Any,
        }));
    }

    pub fn delete(&mut self, kind: Kind, name: &str) {
        self.apply(Op::delete(ResourceKey::new(kind, MESH, name).unwrap()));
    }

    fn apply(&mut self, op: Op) {
        self.index += 1;
        let set = Changeset::atomic(RequestId::default(), Timestamp(self.index), vec![op]);
        let applied = self.state.apply(self.index, &Command::Change(set));
        assert_eq!(applied.rejected, None);
    }

    pub fn world(&mut self) -> World {
        self.problems.clear();
        let before = World {
            names: Arc::new(self.names.clone()),
            ..World::empty(self.name.parse().unwrap())
        };
        before.next(self.state.view(), Arc::new(self.svids.clone()), &mut self.problems)
    }

    /// The world that follows another one of this zone, and shares with it what did not change.
    pub fn next_world(&mut self, before: &World) -> World {
        before.next(self.state.view(), before.svids.clone(), &mut self.problems)
    }

    /// Takes over a resource of another zone, whatever it replaces.
    pub fn take_from(&mut self, other: &Self, nth: usize) {
        let all: Vec<_> = other.state.view().iter().filter(|r| r.key.kind() != Kind::Mesh).cloned().collect();
        let Some(r) = all.get(nth % all.len().max(1)) else { return };
        self.put_raw(r.key.kind(), r.mesh(), r.name(), r.labels.clone(), r.spec.clone(), r.status.clone());
    }

    /// Deletes a resource.
    pub fn lose(&mut self, nth: usize) {
        let all: Vec<_> = self
            .state
            .view()
            .iter()
            .map(|r| r.key.clone())
            .filter(|k| k.kind() != Kind::Mesh)
            .collect();
        let Some(key) = all.get(nth % all.len().max(1)) else { return };
        self.delete(key.kind(), key.name());
    }

    pub fn plan(&mut self, proxy: &str) -> Plan {
        let world = self.world();
        let plan = build::plan(&world, &ProxyId::new(MESH, proxy)).unwrap_or_else(|| panic!("no proxy {proxy}"));
        assert_eq!(build::plan::check::check(&plan), Vec::<String>::new());
        plan
    }

    pub fn snapshot(&mut self, proxy: &str, encoder: &Encoder) -> ProxySnapshot {
        let world = self.world();
        build::build(&world, &ProxyId::new(MESH, proxy), encoder).unwrap_or_else(|| panic!("no proxy {proxy}"))
    }

    /// Gives a proxy the certificate it would have.
    pub fn issue(&mut self, proxy: &str, workload: &str) {
        let id = spiffe_id(&self.name, workload);
        let svid = ca(&self.name)
            .issue(&id.parse().unwrap(), Duration::from_secs(3600), OffsetDateTime::now_utc())
            .unwrap();
        let issued = IssuedSvid {
            secret_name: "kri_mid_default___identity_".into(),
            spiffe_id: id,
            chain_pem: svid.cert_chain_pem,
            key_pem: svid.key_pem,
            serial: svid.serial,
            not_before: svid.not_before.unix_timestamp(),
            not_after: svid.not_after.unix_timestamp(),
        };
        self.svids.insert(ProxyId::new(MESH, proxy), Arc::new(issued));
    }

    /// The identity that selects everything, as it came from the global.
    pub fn put_identity(&mut self) {
        let name = hashed(MESH, "identity", &[]);
        self.put(
            Kind::MeshIdentity,
            &name,
            labels([(labels::DISPLAY_NAME, "identity"), (labels::ORIGIN, "global"), (labels::MESH, MESH)]),
            json!({
                "selector": {"dataplane": {"matchLabels": {}}},
                "spiffeID": {"trustDomain": "{{ .Mesh }}.{{ .Zone }}.mesh.local", "path": "/workload/{{ .Workload }}"},
                "provider": {"type": "Bundled", "bundled": {"meshTrustCreation": "Enabled", "insecureAllowSelfSigned": true, "autogenerate": {"enabled": true}}}
            }),
        );
    }

    pub fn put_trust(&mut self, of_zone: &str) {
        let bundle = json!([{"type": "Pem", "pem": {"value": ca(of_zone).cert_pem()}}]);
        self.put(
            Kind::MeshTrust,
            &format!("trust-{of_zone}"),
            labels([(labels::ZONE, of_zone), (labels::MESH, MESH)]),
            json!({"trustDomain": trust_domain(of_zone), "caBundles": bundle}),
        );
    }

    pub fn put_dataplane(&mut self, name: &str, workload: &str, networking: Value) {
        let labels = labels([
            (labels::DISPLAY_NAME, name),
            (labels::MESH, MESH),
            (labels::ORIGIN, "zone"),
            (labels::ZONE, &self.name.clone()),
            (labels::ENV, "universal"),
            (labels::WORKLOAD, workload),
        ]);
        self.put(Kind::Dataplane, name, labels, json!({"networking": networking}));
    }

    /// The service of a workload, as its own zone (`of_zone` is this one) or another holds it.
    pub fn put_service(&mut self, name: &str, of_zone: &str, ports: Value, identities: &[String], tls_ready: bool) {
        let local = of_zone == self.name;
        let stored = if local { name.to_owned() } else { hashed(MESH, name, &[of_zone]) };
        let identities: Vec<Value> = identities.iter().map(|id| json!({"type": "SpiffeID", "value": id})).collect();
        let spec = json!({
            "state": "Available",
            "selector": {"dataplaneLabels": {"matchLabels": {labels::WORKLOAD: name}}},
            "ports": ports,
            "identities": identities
        });
        let labels = labels([
            (labels::DISPLAY_NAME, name),
            (labels::MESH, MESH),
            (labels::ORIGIN, if local { "zone" } else { "global" }),
            (labels::ZONE, of_zone),
            (labels::ENV, "universal"),
        ]);
        let status = tls_ready.then(|| json!({"tls": {"status": "Ready"}}));
        self.put_at(Kind::MeshService, MESH, &stored, labels, spec, status);
    }

    pub fn put_zone_address(&mut self, of_zone: &str, address: &str, port: u16) {
        let local = of_zone == self.name;
        let stored = if local {
            "zone-ingress".to_owned()
        } else {
            hashed(MESH, "zone-ingress", &[of_zone])
        };
        let labels = labels([
            (labels::DISPLAY_NAME, "zone-ingress"),
            (labels::MESH, MESH),
            (labels::ORIGIN, if local { "zone" } else { "global" }),
            (labels::ZONE, of_zone),
        ]);
        self.put(Kind::MeshZoneAddress, &stored, labels, json!({"address": address, "port": port}));
    }

    /// A policy as it came from the global.
    pub fn put_policy(&mut self, kind: Kind, name: &str, spec: Value) {
        let labels = labels([(labels::DISPLAY_NAME, name), (labels::MESH, MESH), (labels::ORIGIN, "global")]);
        self.put(kind, &hashed(MESH, name, &[]), labels, spec);
    }

    pub fn delete_policy(&mut self, kind: Kind, name: &str) {
        self.delete(kind, &hashed(MESH, name, &[]));
    }

    /// What every mesh gets when it is made.
    pub fn put_default_policies(&mut self) {
        self.put_policy(
            Kind::MeshTimeout,
            "mesh-timeout-all-default",
            json!({"rules": [{"default": {"connectionTimeout": "10s", "idleTimeout": "2h",
                "http": {"requestTimeout": "0s", "streamIdleTimeout": "1h", "maxStreamDuration": "0s"}}}]}),
        );
        self.put_policy(
            Kind::MeshTimeout,
            "mesh-timeout-to-all-default",
            json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "5s", "idleTimeout": "1h",
                "http": {"requestTimeout": "15s", "streamIdleTimeout": "30m"}}}]}),
        );
        self.put_policy(
            Kind::MeshCircuitBreaker,
            "mesh-circuit-breaker-all-default",
            json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionLimits":
                {"maxConnections": 1024, "maxPendingRequests": 1024, "maxRequests": 1024, "maxRetries": 3}}}]}),
        );
        let http = json!({"numRetries": 5, "perTryTimeout": "16s", "backOff": {"baseInterval": "25ms", "maxInterval": "250ms"}});
        self.put_policy(
            Kind::MeshRetry,
            "mesh-retry-all-default",
            json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"tcp": {"maxConnectAttempt": 5}, "http": http, "grpc": http}}]}),
        );
    }

    pub fn allow_frontend(&mut self) {
        self.put_policy(
            Kind::MeshTrafficPermission,
            "allow-frontend",
            json!({
                "targetRef": {"kind": "Dataplane", "labels": {labels::WORKLOAD: "backend"}},
                "rules": [{"default": {"allow": [{"spiffeID": {"type": "Exact", "value": spiffe_id("east", "frontend")}}]}}]
            }),
        );
    }
}

/// Where the demo's processes listen. Tests with a real Envoy take free ports.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub frontend: String,
    pub frontend_outbound: u16,
    pub frontend_inbound: u16,
    pub ingress: String,
    pub ingress_port: u16,
    pub backend_west: String,
    pub backend_east: String,
    pub backend_inbound: u16,
    pub app_port: u16,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            frontend: "127.0.1.10".into(),
            frontend_outbound: 20001,
            frontend_inbound: 8080,
            ingress: "127.0.2.2".into(),
            ingress_port: 10001,
            backend_west: "127.0.2.10".into(),
            backend_east: "127.0.1.20".into(),
            backend_inbound: 8080,
            app_port: 18080,
        }
    }
}

fn backend_ports(a: &Addresses) -> Value {
    json!([{"name": "http", "port": a.backend_inbound, "targetPort": a.backend_inbound, "appProtocol": "http"}])
}

fn backend_networking(address: &str, a: &Addresses) -> Value {
    json!({"address": address, "inbound": [{
        "port": a.backend_inbound, "servicePort": a.app_port, "serviceAddress": address, "name": "http", "protocol": "http"}]})
}

/// Zone east of the demo: the frontend, and its own backend.
pub fn east(a: &Addresses) -> Zone {
    let mut zone = Zone::new("east");
    zone.put_identity();
    zone.put_trust("east");
    zone.put_trust("west");
    zone.put_default_policies();
    zone.put_dataplane(
        "frontend-1",
        "frontend",
        json!({
            "address": a.frontend,
            "inbound": [{"port": a.frontend_inbound, "servicePort": a.app_port, "serviceAddress": a.frontend, "name": "http", "protocol": "http"}],
            "outbound": [{"address": a.frontend, "port": a.frontend_outbound, "backendRef": {"kind": "MeshService",
                "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: "west"}, "port": a.backend_inbound}}]
        }),
    );
    zone.put_dataplane("backend-1", "backend", backend_networking(&a.backend_east, a));
    zone.put_service("backend", "east", backend_ports(a), &[spiffe_id("east", "backend")], true);
    zone.put_service("backend", "west", backend_ports(a), &[spiffe_id("west", "backend")], true);
    zone.put_zone_address("west", &a.ingress, a.ingress_port);
    zone.issue("frontend-1", "frontend");
    zone.issue("backend-1", "backend");
    zone
}

/// Zone west of the demo: the ingress, and a backend.
pub fn west(a: &Addresses) -> Zone {
    let mut zone = Zone::new("west");
    zone.put_identity();
    zone.put_trust("east");
    zone.put_trust("west");
    zone.put_default_policies();
    zone.put_dataplane("backend-1", "backend", backend_networking(&a.backend_west, a));
    zone.put_dataplane(
        "zone-ingress",
        "zone-ingress",
        json!({"address": a.ingress, "listeners": [{"type": "ZoneIngress", "address": a.ingress, "port": a.ingress_port, "name": "ingress"}]}),
    );
    zone.put_service("backend", "west", backend_ports(a), &[spiffe_id("west", "backend")], true);
    zone.put_service("backend", "east", backend_ports(a), &[spiffe_id("east", "backend")], true);
    zone.put_zone_address("west", &a.ingress, a.ingress_port);
    zone.issue("backend-1", "backend");
    zone.issue("zone-ingress", "zone-ingress");
    zone
}
