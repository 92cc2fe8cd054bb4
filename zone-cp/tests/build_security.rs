//! Who a proxy speaks to and lets in: identities, certificates, endpoints, sockets; and that equal worlds give equal versions.

#![allow(clippy::unwrap_used)]

#[path = "build_support/demo.rs"]
mod demo;
#[path = "build_support/mod.rs"]
mod support;

use std::time::Duration;

use demo::*;
use serde_json::json;
use support::{Zone, labels as label_map, spiffe_id, trust_domain};
use ursa_model::{Kind, labels};
use ursa_zone_cp::{
    build::{
        Encoder, Plan, build,
        plan::{self, cluster::Members, listener::Handler},
    },
    snapshot::XdsType,
    world::ProxyId,
};

#[test]
fn a_remote_service_without_known_identities_is_not_spoken_to() {
    let (mut east, _) = demo();
    let ports = json!([{"name": "http", "port": 8080, "targetPort": 8080, "appProtocol": "http"}]);
    east.put_service("backend", "west", ports.clone(), &[], true);
    let plan = east.plan("frontend-1");
    assert!(plan.clusters[BACKEND_WEST].tls.is_none() && plan.endpoints[BACKEND_WEST].is_empty());
    assert_eq!(
        plan.warnings,
        [format!("{BACKEND_WEST} has no endpoints: its identities are not known")]
    );

    // Nor any remote one by a proxy that has no identity itself.
    east.put_service("backend", "west", ports, &[spiffe_id("west", "backend")], true);
    east.svids.clear();
    east.delete(Kind::MeshIdentity, &ursa_model::hash::hashed("default", "identity", &[]));
    let plan = east.plan("frontend-1");
    assert!(plan.clusters[BACKEND_WEST].tls.is_none() && plan.endpoints[BACKEND_WEST].is_empty());
    assert_eq!(names(&plan.secrets), Vec::<&str>::new());
    assert!(plan.warnings[0].contains("this proxy has no identity"), "{:?}", plan.warnings);
}

#[test]
fn a_local_service_is_spoken_to_with_tls_once_all_of_it_is_ready() {
    let (mut east, _) = demo();
    put_route(
        &mut east,
        json!([{"matches": root(), "default": {"backendRefs": [backend("east", 1)]}}]),
    );
    let ports = json!([{"name": "http", "port": 8080, "targetPort": 8080, "appProtocol": "http"}]);
    east.put_service(
        "backend",
        "east",
        ports.clone(),
        &[spiffe_id("east", "backend"), "spiffe://a/b".into()],
        true,
    );
    let plan = east.plan("frontend-1");
    let sans = &plan.clusters[BACKEND_EAST].tls.as_ref().unwrap().sans;
    assert_eq!(sans, &["spiffe://a/b".into(), spiffe_id("east", "backend")], "sorted");

    let mut before = Zone::clone(&east);
    before.delete(Kind::MeshService, "backend");
    before.put_service("backend", "east", ports, &[], false);
    let plan = before.plan("frontend-1");
    assert!(plan.clusters[BACKEND_EAST].tls.is_none());
    assert_eq!(plan.endpoints[BACKEND_EAST].len(), 1);
}

#[test]
fn inbounds_are_plain_without_identity_and_closed_while_one_is_missing() {
    let (_, mut west) = demo();
    let mut plain = Zone::clone(&west);
    plain.svids.clear();
    plain.delete(Kind::MeshIdentity, &ursa_model::hash::hashed("default", "identity", &[]));
    let plan = plain.plan("backend-1");
    assert!(plan.listeners[INBOUND].chains[0].tls.is_none());
    assert!(plan.routes[INBOUND].routes[0].permissions.is_none());
    assert_eq!(plan.warnings, Vec::<String>::new());

    // The identity is there and cannot have issued yet, because its authority does not exist: still plain, as before it.
    let mut early = Zone::clone(&west);
    early.svids.clear();
    early.delete(Kind::MeshTrust, "trust-west");
    assert!(early.plan("backend-1").listeners[INBOUND].chains[0].tls.is_none());

    // Nor does one that only names identities, for a migration.
    let naming = json!({"selector": {"dataplane": {"matchLabels": {}}}});
    early.put_trust("west");
    early.put(
        Kind::MeshIdentity,
        &ursa_model::hash::hashed("default", "identity", &[]),
        label_map([]),
        naming,
    );
    assert!(early.plan("backend-1").listeners[INBOUND].chains[0].tls.is_none());

    // The authority is there and the certificate is not: nothing is let in.
    west.svids.clear();
    let plan = west.plan("backend-1");
    assert_eq!(names(&plan.listeners), Vec::<&str>::new());
    assert!(plan.warnings[0].contains("its inbounds are closed"), "{:?}", plan.warnings);

    // A certificate without anybody to trust is no use either.
    west.issue("backend-1", "backend");
    for zone in ["east", "west"] {
        west.delete(Kind::MeshTrust, &format!("trust-{zone}"));
    }
    let plan = west.plan("backend-1");
    assert_eq!((names(&plan.listeners), names(&plan.secrets)), (vec![], vec![]));
}

#[test]
fn an_authority_that_is_no_certificate_is_left_out_alone() {
    let (_, mut west) = demo();
    let rubbish = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    west.put(
        Kind::MeshTrust,
        "bad",
        label_map([]),
        json!({"trustDomain": "bad.test", "caBundles": [{"type": "Pem", "pem": {"value": rubbish}}]}),
    );
    let plan = west.plan("backend-1");
    let plan::Secret::Trust { domains } = &plan.secrets[TRUST] else {
        panic!("no bundle")
    };
    assert_eq!(names(domains), [trust_domain("east"), trust_domain("west")]);
    assert!(west.problems[0].contains("bad.test"), "{:?}", west.problems);
}

#[test]
fn only_ready_inbounds_of_the_right_port_are_endpoints() {
    let mut zone = Zone::new("east");
    let inbounds = |state: &str| json!([{"port": 80, "name": "web", "protocol": "http", "state": state}, {"port": 81, "name": "other"}]);
    for (name, address, state) in [
        ("b", "10.0.0.2", "Ready"),
        ("a", "10.0.0.10", "Ready"),
        ("c", "10.0.0.3", "NotReady"),
        ("d", "10.0.0.4", "Ignored"),
    ] {
        zone.put_dataplane(name, "web", json!({"address": address, "inbound": inbounds(state)}));
    }
    zone.put_dataplane("named", "web", json!({"address": "host.test", "inbound": inbounds("Ready")}));
    zone.put_dataplane("other", "other", json!({"address": "10.0.0.9", "inbound": inbounds("Ready")}));
    zone.put_service(
        "web",
        "east",
        json!([{"port": 8000, "targetPort": "web", "appProtocol": "http"}]),
        &[],
        false,
    );
    let reference = json!({"kind": "MeshService", "name": "web", "port": 8000});
    zone.put_dataplane(
        "caller",
        "caller",
        json!({"address": "10.0.0.1", "inbound": [{"port": 9}], "outbound": [{"port": 7000, "backendRef": reference}]}),
    );
    let plan = zone.plan("caller");
    let name = "kri_msvc_default_east__web_8000";
    let sockets: Vec<String> = plan.endpoints[name]
        .groups
        .iter()
        .flat_map(|g| &g.endpoints)
        .map(|e| e.socket.to_string())
        .collect();
    assert_eq!(sockets, ["10.0.0.2:80", "10.0.0.10:80"], "by address as a number");
    assert_eq!(
        plan.listeners[name].socket.to_string(),
        "127.0.0.1:7000",
        "the default address of an outbound"
    );
    assert!(plan.warnings[0].contains("host.test"), "{:?}", plan.warnings);
}

#[test]
fn listeners_never_share_a_socket() {
    let (mut east, _) = demo();
    let to = |zone: &str| json!({"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: zone}, "port": 8080});
    east.put_dataplane(
        "frontend-1",
        "frontend",
        json!({
            "address": "127.0.1.10",
            "inbound": [{"port": 8080, "servicePort": 18080, "name": "http", "protocol": "http"}],
            "outbound": [
                {"address": "127.0.1.10", "port": 20001, "backendRef": to("west")},
                {"address": "127.0.1.10", "port": 20002, "backendRef": to("west")},
                {"address": "127.0.1.10", "port": 20001, "backendRef": to("east")},
                {"address": "127.0.1.10", "port": 8080, "backendRef": to("east")},
                {"address": "127.0.1.10", "port": 20003, "backendRef": to("nowhere")},
            ]
        }),
    );
    let plan = east.plan("frontend-1");
    let second = format!("{BACKEND_WEST}@127.0.1.10:20002");
    assert_eq!(names(&plan.listeners), [BACKEND_WEST, &second, INBOUND]);
    assert_eq!(plan.listeners[BACKEND_WEST].socket.to_string(), "127.0.1.10:20001");
    assert_eq!(plan.listeners[&second].chains, plan.listeners[BACKEND_WEST].chains);
    assert_eq!(plan.warnings.len(), 3, "{:?}", plan.warnings);
    assert_eq!(
        plan.clusters[INBOUND].members,
        Members::Static(plan::Socket {
            ip: "127.0.0.1".parse().unwrap(),
            port: 18080
        })
    );
}

#[test]
fn tcp_is_guarded_in_the_listener() {
    let (_, mut west) = demo();
    west.put_dataplane(
        "db-1",
        "db",
        json!({"address": "127.0.2.30", "inbound": [{"port": 5432, "servicePort": 15432, "name": "sql"}]}),
    );
    west.issue("db-1", "db");
    let plan = west.plan("db-1");
    let Handler::Tcp(tcp) = &plan.listeners["self_inbound_dp_sql"].chains[0].handler else {
        panic!("not TCP")
    };
    assert!(tcp.permissions.as_ref().is_some_and(|p| p.allow.is_empty()));
    assert_eq!(tcp.idle_timeout, Some(Duration::from_secs(7200)));
    assert_eq!(names(&plan.routes), Vec::<&str>::new());

    west.put_policy(
        Kind::MeshTrafficPermission,
        "by-sni",
        json!({"rules": [{"default": {"allow": [{"sni": {"type": "Exact", "value": "sni.msvc.default.west.db.sql"}}]}}]}),
    );
    assert!(
        west.plan("db-1").listeners["self_inbound_dp_sql"].tls_inspector,
        "an SNI has to be read to be compared"
    );
}

#[test]
fn callers_may_have_timeouts_of_their_own() {
    let (_, mut west) = demo();
    west.put_policy(
        Kind::MeshTimeout,
        "for-frontend",
        json!({"targetRef": {"kind": "Dataplane", "labels": {labels::WORKLOAD: "backend"}}, "rules": [{
            "matches": [{"spiffeID": {"type": "Exact", "value": spiffe_id("east", "frontend")}}],
            "default": {"http": {"requestTimeout": "3s"}}}]}),
    );
    let plan = west.plan("backend-1");
    let routes = &plan.routes[INBOUND].routes;
    assert_eq!(routes.len(), 2);
    assert_eq!(
        routes[0].matcher.caller.as_ref().unwrap().spiffe_id.as_ref().unwrap().value,
        spiffe_id("east", "frontend")
    );
    assert_eq!(
        (forward(&routes[0]).timeout, forward(&routes[0]).idle_timeout),
        (Some(Duration::from_secs(3)), Some(Duration::from_secs(3600)))
    );
    assert_eq!(
        (routes[1].matcher.caller.as_ref(), forward(&routes[1]).timeout),
        (None, Some(Duration::ZERO))
    );
    assert!(routes.iter().all(|r| r.permissions.is_some()), "every route is guarded");
}

#[test]
fn keys_are_not_shown_and_certificates_change_only_their_secret() {
    let (_, mut west) = demo();
    let encoder = Encoder::default();
    let before = west.snapshot("backend-1", &encoder);
    let key = west.svids[&ProxyId::new("default", "backend-1")].key_pem.clone();
    let plan: Plan = west.plan("backend-1");
    let shown = format!("{plan:?}{}", serde_json::to_string(&plan).unwrap());
    assert!(!shown.contains("PRIVATE KEY") && !shown.contains(key.lines().nth(1).unwrap()));
    assert!(!format!("{encoder:?}{before:?}").contains("PRIVATE KEY"));

    west.issue("backend-1", "backend");
    assert_eq!(
        changed(&before, &west.snapshot("backend-1", &encoder)),
        [(XdsType::Secret, IDENTITY.to_owned())]
    );
}

#[test]
fn equal_worlds_give_equal_versions_and_share_bytes() {
    let (mut east_a, _) = demo();
    let mut east_b = Zone::clone(&east_a);
    let encoder = Encoder::default();
    let a = east_a.snapshot("frontend-1", &encoder);
    let b = east_b.snapshot("frontend-1", &Encoder::default());
    assert_eq!(versions(&a), versions(&b), "the cache does not matter");
    let again = east_b.snapshot("frontend-1", &encoder);
    for (name, resource) in a.of(XdsType::Cluster) {
        assert_eq!(
            resource.bytes.as_ptr(),
            again.of(XdsType::Cluster)[name].bytes.as_ptr(),
            "{name} is encoded once"
        );
    }
    assert!(a.resources.values().flatten().all(|(_, r)| r.version.len() == 16));
    let world = east_a.world();
    assert!(build(&world, &ProxyId::new("default", "nobody"), &encoder).is_none());
    assert!(build(&world, &ProxyId::new("other", "frontend-1"), &encoder).is_none());
    assert_eq!(a.zone_revision, world.zone_revision);
}

#[test]
fn names_stand_for_the_addresses_they_were_resolved_to() {
    let (mut east, mut west) = demo();
    let inbound = json!([{"port": 8080, "servicePort": 18080, "serviceAddress": "127.0.2.10", "name": "http", "protocol": "http"}]);
    west.put_dataplane("backend-1", "backend", json!({"address": "backend.test", "inbound": inbound}));
    east.put_zone_address("west", "ingress.test", 10001);
    let unresolved = west.plan("backend-1");
    assert!(!unresolved.listeners.contains_key(INBOUND));
    assert!(
        unresolved.warnings.iter().any(|w| w.contains("backend.test")),
        "{:?}",
        unresolved.warnings
    );
    assert!(west.plan("zone-ingress").endpoints[BACKEND_WEST].is_empty());
    assert!(east.plan("frontend-1").endpoints[BACKEND_WEST].is_empty());

    west.names.insert("backend.test".into(), "127.0.2.10".parse().unwrap());
    east.names.insert("ingress.test".into(), "127.0.2.2".parse().unwrap());
    assert_eq!(west.plan("backend-1").listeners[INBOUND].socket.to_string(), "127.0.2.10:8080");
    let sockets = |plan: Plan| -> Vec<String> {
        let groups = plan.endpoints[BACKEND_WEST].groups.clone();
        groups.into_iter().flat_map(|g| g.endpoints).map(|e| e.socket.to_string()).collect()
    };
    assert_eq!(sockets(west.plan("zone-ingress")), ["127.0.2.10:8080"]);
    assert_eq!(sockets(east.plan("frontend-1")), ["127.0.2.2:10001"]);
}
