//! What a zone derives from its resources: services, certificate authorities, trust, addresses, certificates. Each scenario
//! applies what is derived until nothing more follows, and checks that this comes to rest.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use ursa_model::{
    Kind, Labels, ResourceKey, Timestamp, ZoneName,
    labels::{Site, computed},
};
use ursa_state::{Changeset, Command, Expect, HistoryId, Op, Put, RequestId, State};
use ursa_zone_cp::{
    connections::{Connected, Connections, NewStream},
    derive::addresses::Advertised,
    issuer::Issuer,
    reconcile::derive,
    world::{ProxyId, World},
};

struct Zone {
    state: State,
    index: u64,
    world: World,
    connections: Connections,
    problems: Vec<String>,
}

fn key(kind: Kind, name: &str) -> ResourceKey {
    let mesh = if kind == Kind::Mesh { "" } else { "default" };
    ResourceKey::new(kind, mesh, name).unwrap()
}

impl Zone {
    fn new() -> Self {
        let zone: ZoneName = "west".parse().unwrap();
        let mut z = Self {
            state: State::default(),
            index: 0,
            world: World::empty(zone),
            connections: Connections::default(),
            problems: Vec::new(),
        };
        z.run(Command::Init { history: HistoryId(1) });
        z.apply(vec![put(Kind::Mesh, "default", json!({}), &[("kuma.io/origin", "global")])]);
        z
    }

    fn run(&mut self, command: Command) {
        self.index += 1;
        self.state.apply(self.index, &command);
    }

    fn apply(&mut self, ops: Vec<Op>) {
        let set = Changeset::each(RequestId(u128::from(self.index) + 10), Timestamp(self.index), ops);
        self.run(Command::Change(set));
    }

    /// Derives until nothing follows; returns how many rounds it took.
    fn settle(&mut self, now: Timestamp) -> usize {
        for round in 0..10 {
            self.problems.clear();
            self.world = self.world.next(self.state.view(), Arc::default(), &mut self.problems);
            let connected: Connected = self.connections.now();
            let ops = derive(&self.world, self.state.view(), &connected, now, &mut self.problems);
            if ops.is_empty() {
                return round;
            }
            self.apply(ops);
        }
        panic!("derived resources do not come to rest");
    }

    fn get(&self, kind: Kind, name: &str) -> Option<Value> {
        self.state
            .view()
            .get(&key(kind, name))
            .map(|r| serde_json::to_value(r.as_ref()).unwrap())
    }
}

fn put(kind: Kind, name: &str, spec: Value, labels: &[(&str, &str)]) -> Op {
    let labels: Labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let spec = (kind.descriptor().canonical)(spec).unwrap();
    Op::Put(Put {
        key: key(kind, name),
        labels,
        spec,
        status: None,
        owner: None,
        expect: Expect::Any,
    })
}

fn dataplane(name: &str, workload: &str, networking: Value) -> Op {
    let labels = Labels::from([("kuma.io/workload".into(), workload.into())]);
    let labels = computed(Site::Zone("west"), Kind::Dataplane, "default", name, labels, Some((false, false)));
    let spec = (Kind::Dataplane.descriptor().canonical)(json!({ "networking": networking })).unwrap();
    Op::Put(Put {
        key: key(Kind::Dataplane, name),
        labels,
        spec,
        status: None,
        owner: None,
        expect: Expect::Any,
    })
}

fn backend(name: &str, address: &str) -> Op {
    dataplane(
        name,
        "backend",
        json!({"address": address, "inbound": [{"port": 8080, "servicePort": 18080, "name": "http", "protocol": "http"}]}),
    )
}

fn identity(selects: Value) -> Op {
    let spec = json!({
        "selector": {"dataplane": {"matchLabels": selects}},
        "spiffeID": {"trustDomain": "{{ .Mesh }}.{{ .Zone }}.mesh.local", "path": "/workload/{{ .Workload }}"},
        "provider": {"type": "Bundled", "bundled": {"insecureAllowSelfSigned": true, "autogenerate": {"enabled": true}}},
    });
    put(
        Kind::MeshIdentity,
        "identity-fx89fx8cww447z7x",
        spec,
        &[
            ("kuma.io/display-name", "identity"),
            ("kuma.io/origin", "global"),
            ("kuma.io/mesh", "default"),
        ],
    )
}

#[test]
fn a_service_comes_from_its_proxies() {
    let mut z = Zone::new();
    z.apply(vec![backend("backend-1", "127.0.2.10"), backend("backend-2", "127.0.2.11")]);
    assert!(z.settle(Timestamp(5)) <= 2);
    let service = z.get(Kind::MeshService, "backend").unwrap();
    assert_eq!(
        service["spec"]["ports"],
        json!([{"name": "http", "port": 8080, "targetPort": 8080, "appProtocol": "http"}])
    );
    assert_eq!(
        service["spec"]["selector"],
        json!({"dataplaneLabels": {"matchLabels": {"kuma.io/workload": "backend"}}})
    );
    assert_eq!(service["spec"]["state"], "Available");
    assert_eq!(service["status"]["tls"]["status"], "NotReady");
    assert_eq!(service["labels"]["kuma.io/zone"], "west");
    assert_eq!(z.settle(Timestamp(6)), 0, "settled twice");
}

#[test]
fn an_identity_gives_ca_trust_ids_and_tls() {
    let mut z = Zone::new();
    z.apply(vec![backend("backend-1", "127.0.2.10"), identity(json!({}))]);
    z.settle(Timestamp(5));
    let trust = z
        .get(Kind::MeshTrust, "identity-fx89fx8cww447z7x")
        .expect("a MeshTrust under the identity's stored name");
    assert_eq!(trust["spec"]["trustDomain"], "default.west.mesh.local");
    assert_eq!(trust["status"]["origin"]["kri"], "kri_mid_default___identity_");
    assert!(z.get(Kind::Secret, "identity-root-ca").is_some() && z.get(Kind::Secret, "identity-private-key").is_some());
    let service = z.get(Kind::MeshService, "backend").unwrap();
    assert_eq!(
        service["spec"]["identities"],
        json!([{"type": "SpiffeID", "value": "spiffe://default.west.mesh.local/workload/backend"}])
    );
    assert_eq!(service["status"]["tls"]["status"], "Ready");
    let ready = &z.get(Kind::MeshIdentity, "identity-fx89fx8cww447z7x").unwrap()["status"]["conditions"];
    assert!(
        ready
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True"),
        "{ready}"
    );

    // TLS is a latch: a proxy that no identity selects does not turn it off.
    z.apply(vec![dataplane(
        "backend-9",
        "backend",
        json!({"address": "127.0.2.19", "inbound": [{"port": 8080, "name": "http", "protocol": "http"}]}),
    )]);
    z.apply(vec![identity(json!({"kuma.io/display-name": "backend-1"}))]);
    z.settle(Timestamp(6));
    assert_eq!(z.get(Kind::MeshService, "backend").unwrap()["status"]["tls"]["status"], "Ready");
}

#[test]
fn key_certificate_and_trust_of_a_new_ca_are_one_changeset() {
    let mut z = Zone::new();
    z.apply(vec![identity(json!({}))]);
    let before = z.state.view().revision();
    z.settle(Timestamp(5));
    let first = z.state.view().changes_since(before).unwrap().next().unwrap().clone();
    let kinds: Vec<Kind> = first.changes.iter().map(|c| c.key.kind()).collect();
    assert_eq!(kinds, [Kind::Secret, Kind::Secret, Kind::MeshIdentity, Kind::MeshTrust]);
}

#[test]
fn the_ca_stays_when_its_identity_is_gone() {
    let mut z = Zone::new();
    z.apply(vec![backend("backend-1", "127.0.2.10"), identity(json!({}))]);
    z.settle(Timestamp(5));
    z.apply(vec![Op::delete(key(Kind::MeshIdentity, "identity-fx89fx8cww447z7x"))]);
    z.settle(Timestamp(6));
    assert!(z.get(Kind::Secret, "identity-root-ca").is_some() && z.get(Kind::MeshTrust, "identity-fx89fx8cww447z7x").is_some());
}

#[test]
fn a_connected_ingress_publishes_its_address_and_a_hand_made_one_wins() {
    let mut z = Zone::new();
    let ingress = |name: &str| {
        dataplane(
            name,
            "zone-ingress",
            json!({"address": "127.0.2.2", "listeners": [{"type": "ZoneIngress", "port": 10001, "name": "ingress"}]}),
        )
    };
    z.apply(vec![ingress("zone-ingress"), ingress("second")]);
    z.settle(Timestamp(5));
    assert!(
        z.get(Kind::MeshZoneAddress, "zone-ingress").is_none(),
        "published before it is connected"
    );
    let by_hand = put(
        Kind::MeshZoneAddress,
        "second",
        json!({"address": "10.9.9.9", "port": 1}),
        &[("kuma.io/origin", "zone"), ("kuma.io/zone", "west")],
    );
    z.apply(vec![by_hand]);
    let advertised = |port| NewStream {
        advertised: Some(Advertised {
            address: "203.0.113.7".into(),
            port,
        }),
        ..NewStream::default()
    };
    let first = z
        .connections
        .register(ProxyId::new("default", "zone-ingress"), advertised(443))
        .unwrap();
    let second = z.connections.register(ProxyId::new("default", "second"), advertised(443)).unwrap();
    z.settle(Timestamp(5));
    assert!(
        z.get(Kind::MeshZoneAddress, "zone-ingress").is_none(),
        "published before its Envoy listens"
    );
    first.serving();
    second.serving();
    z.settle(Timestamp(6));
    assert_eq!(
        z.get(Kind::MeshZoneAddress, "zone-ingress").unwrap()["spec"],
        json!({"address": "203.0.113.7", "port": 443})
    );
    assert_eq!(z.get(Kind::MeshZoneAddress, "second").unwrap()["spec"]["address"], "10.9.9.9");
    // The stream's end withdraws nothing; the end of the ingress' Dataplane does.
    drop(first);
    z.settle(Timestamp(7));
    assert!(z.get(Kind::MeshZoneAddress, "zone-ingress").is_some());
    z.apply(vec![Op::delete(key(Kind::Dataplane, "zone-ingress"))]);
    z.settle(Timestamp(8));
    assert!(z.get(Kind::MeshZoneAddress, "zone-ingress").is_none());
}

#[test]
fn an_address_that_cannot_be_one_is_reported_and_not_published() {
    let mut z = Zone::new();
    z.apply(vec![dataplane(
        "zone-ingress",
        "zone-ingress",
        json!({"address": "127.0.2.2", "listeners": [{"type": "ZoneIngress", "port": 10001}]}),
    )]);
    let new = NewStream {
        advertised: Some(Advertised {
            address: "0.0.0.0".into(),
            port: 0,
        }),
        warm: true,
        ..NewStream::default()
    };
    let _held = z.connections.register(ProxyId::new("default", "zone-ingress"), new).unwrap();
    z.settle(Timestamp(5));
    assert!(z.get(Kind::MeshZoneAddress, "zone-ingress").is_none());
    assert!(z.problems.iter().any(|p| p.contains("unusable address")), "{:?}", z.problems);
}

#[test]
fn a_service_that_lost_its_proxies_becomes_unavailable_and_goes_after_the_grace() {
    let mut z = Zone::new();
    z.apply(vec![backend("backend-1", "127.0.2.10")]);
    z.settle(Timestamp(1_000));
    z.apply(vec![Op::delete(key(Kind::Dataplane, "backend-1"))]);
    z.settle(Timestamp(2_000));
    assert_eq!(z.get(Kind::MeshService, "backend").unwrap()["spec"]["state"], "Unavailable");
    z.settle(Timestamp(2_000 + 3_599_999));
    assert!(z.get(Kind::MeshService, "backend").is_some());
    z.settle(Timestamp(2_000 + 3_600_000));
    assert!(z.get(Kind::MeshService, "backend").is_none());
}

#[test]
fn a_workload_that_is_no_label_is_reported() {
    let mut z = Zone::new();
    z.apply(vec![dataplane(
        "x",
        "Not_A_Label",
        json!({"address": "127.0.2.10", "inbound": [{"port": 1}]}),
    )]);
    z.settle(Timestamp(1));
    assert!(z.problems.iter().any(|p| p.contains("RFC 1035")), "{:?}", z.problems);
}

#[test]
fn certificates_are_issued_to_connected_proxies_kept_and_renewed() {
    let mut z = Zone::new();
    z.apply(vec![backend("backend-1", "127.0.2.10"), identity(json!({}))]);
    z.settle(Timestamp(5));
    let proxy = ProxyId::new("default", "backend-1");
    let connected = BTreeMap::from([(proxy.clone(), ())]);
    let mut issuer = Issuer::default();
    let t0 = OffsetDateTime::now_utc();
    let mut update = |issuer: &mut Issuer, connected: &BTreeMap<ProxyId, ()>, now| {
        issuer.update(&z.world, z.state.view(), connected.keys(), now, &mut z.problems);
        issuer.svids().get(&proxy).cloned()
    };
    assert!(
        update(&mut issuer, &BTreeMap::new(), t0).is_none(),
        "issued to a proxy that is not connected"
    );
    let first = update(&mut issuer, &connected, t0).expect("a certificate");
    assert_eq!(
        (first.spiffe_id.as_str(), first.secret_name.as_str()),
        ("spiffe://default.west.mesh.local/workload/backend", "kri_mid_default___identity_")
    );
    let again = update(&mut issuer, &connected, t0 + Duration::hours(10)).unwrap();
    assert!(Arc::ptr_eq(&first, &again), "issued anew without need");
    let due = issuer.next_renewal(t0).unwrap();
    assert!(
        due > std::time::Duration::from_secs(13 * 3600) && due < std::time::Duration::from_secs(19 * 3600),
        "{due:?}"
    );
    let renewed = update(&mut issuer, &connected, t0 + due + Duration::seconds(1)).unwrap();
    assert_ne!(first.serial, renewed.serial);
    assert_eq!(issuer.total, 2);
}

#[test]
fn a_renewal_that_fails_is_postponed_and_a_step_back_of_the_clock_is_survived() {
    let mut z = Zone::new();
    z.apply(vec![backend("backend-1", "127.0.2.10"), identity(json!({}))]);
    z.settle(Timestamp(5));
    let proxy = ProxyId::new("default", "backend-1");
    let mut issuer = Issuer::default();
    let t0 = OffsetDateTime::now_utc();
    issuer.update(&z.world, z.state.view(), [&proxy].into_iter(), t0, &mut z.problems);
    let first = issuer.svids()[&proxy].clone();
    // Without its workload label the proxy has no SPIFFE id: what it holds stays, and its renewal must not be due without end.
    let unlabelled = dataplane("backend-1", "", json!({"address": "127.0.2.10"}));
    z.apply(vec![unlabelled]);
    z.settle(Timestamp(6));
    let late = t0 + Duration::hours(23);
    let mut problems = Vec::new();
    issuer.update(&z.world, z.state.view(), [&proxy].into_iter(), late, &mut problems);
    assert!(!problems.is_empty() && Arc::ptr_eq(&first, &issuer.svids()[&proxy]), "{problems:?}");
    assert!(
        issuer.next_renewal(late).unwrap() >= std::time::Duration::from_secs(1),
        "the reconciler would spin"
    );

    z.apply(vec![backend("backend-1", "127.0.2.10")]);
    z.settle(Timestamp(7));
    let earlier = t0 - Duration::minutes(5);
    issuer.update(&z.world, z.state.view(), [&proxy].into_iter(), earlier, &mut problems);
    // The CA is not valid yet either: the certificate stays, and nothing spins.
    assert!(issuer.next_renewal(earlier).unwrap() >= std::time::Duration::from_secs(1));
}

#[test]
fn a_changed_trust_domain_takes_no_trust_away() {
    let mut z = Zone::new();
    z.apply(vec![backend("backend-1", "127.0.2.10"), identity(json!({}))]);
    z.settle(Timestamp(5));
    let before = z.get(Kind::MeshTrust, "identity-fx89fx8cww447z7x").unwrap();
    let Op::Put(mut changed) = identity(json!({})) else { panic!() };
    changed.spec["spiffeID"]["trustDomain"] = json!("other.local");
    z.apply(vec![Op::Put(changed)]);
    z.settle(Timestamp(6));
    assert_eq!(z.get(Kind::MeshTrust, "identity-fx89fx8cww447z7x").unwrap()["spec"], before["spec"]);
    let status = z.get(Kind::MeshIdentity, "identity-fx89fx8cww447z7x").unwrap()["status"].to_string();
    assert!(status.contains("cannot be changed"), "{status}");
}

#[test]
fn a_trust_of_the_global_under_the_name_of_this_zone_s_is_left_alone_and_reported() {
    const NAME: &str = "identity-fx89fx8cww447z7x";
    let ready = |z: &Zone| {
        let status = z.get(Kind::MeshIdentity, NAME).unwrap()["status"]["conditions"].clone();
        let of = |kind: &str| status.as_array().unwrap().iter().find(|c| c["type"] == kind).cloned().unwrap();
        (of("MeshTrustCreated"), of("Ready"))
    };
    let global = [
        ("kuma.io/display-name", "identity"),
        ("kuma.io/origin", "global"),
        ("kuma.io/mesh", "default"),
    ];
    let with = |domain: &str, pems: &[&str]| {
        let bundles: Vec<Value> = pems.iter().map(|p| json!({"type": "Pem", "pem": {"value": p}})).collect();
        put(Kind::MeshTrust, NAME, json!({"trustDomain": domain, "caBundles": bundles}), &global)
    };
    let ca = |z: &Zone| {
        let data = z.get(Kind::Secret, "identity-root-ca").unwrap()["spec"]["data"]
            .as_str()
            .unwrap()
            .to_owned();
        String::from_utf8(base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).unwrap()).unwrap()
    };
    let other = ursa_pki::ca::CertificateAuthority::generate(&"other.local".parse().unwrap(), OffsetDateTime::now_utc()).unwrap();

    let mut z = Zone::new();
    z.apply(vec![
        backend("backend-1", "127.0.2.10"),
        with("other.local", &[&other.cert_pem]),
        identity(json!({})),
    ]);
    let before = z.get(Kind::MeshTrust, NAME).unwrap();
    z.settle(Timestamp(5));
    assert_eq!(z.get(Kind::MeshTrust, NAME).unwrap(), before, "it is the global's");
    let (created, is_ready) = ready(&z);
    assert_eq!((&created["status"], &is_ready["status"]), (&json!("False"), &json!("False")));
    assert!(created["message"].as_str().unwrap().contains("another name"), "{created}");
    assert!(z.problems.iter().any(|p| p.contains("another name")), "{:?}", z.problems);
    // The CA exists, so that proxies are closed (certificates that nobody trusts) and not open (no identity).
    let pem = ca(&z);
    assert_eq!(z.get(Kind::MeshService, "backend").unwrap()["status"]["tls"]["status"], "NotReady");

    // With this zone's CA in it, it does what the zone's own would.
    z.apply(vec![with("default.west.mesh.local", &[&other.cert_pem, &pem])]);
    z.settle(Timestamp(6));
    assert_eq!(ready(&z).1["status"], "True");
    assert_eq!(z.problems, Vec::<String>::new());

    // Once it is gone, the zone makes its own.
    z.apply(vec![Op::delete(key(Kind::MeshTrust, NAME))]);
    z.settle(Timestamp(7));
    let own = z.get(Kind::MeshTrust, NAME).unwrap();
    assert_eq!(
        (&own["labels"]["kuma.io/origin"], &own["spec"]["trustDomain"]),
        (&json!("zone"), &json!("default.west.mesh.local"))
    );
    assert_eq!(ready(&z).1["status"], "True");
}

#[test]
fn half_a_ca_is_reported_and_never_completed() {
    let mut z = Zone::new();
    z.apply(vec![backend("backend-1", "127.0.2.10"), identity(json!({}))]);
    z.settle(Timestamp(5));
    z.apply(vec![Op::delete(key(Kind::Secret, "identity-private-key"))]);
    z.settle(Timestamp(6));
    assert!(z.get(Kind::Secret, "identity-private-key").is_none(), "a key of another CA");
    assert!(z.problems.iter().any(|p| p.contains("complete CA")), "{:?}", z.problems);
}
