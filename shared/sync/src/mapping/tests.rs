use super::*;
use crate::{
    distribution::Distributor,
    testing::{Memory, key, labels_of, made_at},
};
use serde_json::json;
use ursa_model::{
    kind::{mesh_trust, secret::Secret},
    labels::Site,
};
use ursa_pki::token::{SigningKey, VerifyingKey};
use ursa_proto::kds::KumaResource;
use ursa_state::Role;

use prost::Message as _;

const TO_V3: Class = Class::ToZones {
    hash_suffix: true,
    line: Line::V3,
};

fn ours() -> Features {
    Features::OURS_IN_NODE
}

fn global() -> Memory {
    let memory = Memory::new(Role::Global, 1);
    for zone in ["east", "west"] {
        memory.put(Site::Global, Kind::Zone, "", zone, json!({"enabled": true}));
    }
    memory.put(Site::Global, Kind::Mesh, "", "default", json!({}));
    memory
}

/// A resource as the global stores it from a zone.
fn from_zone(memory: &Memory, zone: &str, kind: Kind, display: &str, extra: &[(&str, &str)], spec: Value) -> ResourceKey {
    let mut labels = labels_of(&[(ORIGIN, "zone"), (ZONE, zone), (DISPLAY_NAME, display)]);
    labels.extend(labels_of(extra));
    let name = hash::hashed("default", display, &[zone]);
    let key = key(kind, "default", &name);
    memory.put_with(key.clone(), labels, spec);
    key
}

/// Wire names of a kind that `zone` sees.
fn seen(memory: &Memory, class: &Class, zone: &str, kind: Kind) -> Vec<String> {
    let distribution = Distributor::new(class.clone()).update(memory.catalog());
    let recipient = Recipient {
        zone: Some(zone.into()),
        features: ours(),
    };
    distribution
        .of_kind(kind)
        .filter(|(_, e)| recipient.sees(e))
        .map(|(_, e)| e.name.to_string())
        .collect()
}

fn decoded(memory: &Memory, class: &Class, kind: Kind, name: &str) -> KumaResource {
    let distribution = Distributor::new(class.clone()).update(memory.catalog());
    let entry = distribution
        .get(&(kind, name.into()))
        .unwrap_or_else(|| panic!("{name} is not sent"))
        .clone();
    KumaResource::decode(entry.bytes.as_ref()).unwrap()
}

fn allow() -> Value {
    json!({"targetRef": {"kind": "Mesh"}, "rules": [{"default": {"allow": [{"spiffeID": {"type": "Prefix", "value": "spiffe://x"}}]}}]})
}

#[test]
fn a_policy_of_the_global_is_hashed_and_labelled() {
    let memory = global();
    memory.put(Site::Global, Kind::MeshTrafficPermission, "default", "allow-frontend", allow());
    let name = "allow-frontend-9586fw9x6wd94z46.default";
    assert_eq!(seen(&memory, &TO_V3, "east", Kind::MeshTrafficPermission), [name]);
    let meta = decoded(&memory, &TO_V3, Kind::MeshTrafficPermission, name).meta.unwrap();
    assert_eq!(
        (meta.name.as_str(), meta.mesh.as_str()),
        ("allow-frontend-9586fw9x6wd94z46", "default")
    );
    assert_eq!(meta.labels[ORIGIN], "global");
    assert_eq!(meta.labels[DISPLAY_NAME], "allow-frontend");
    let old = Class::ToZones {
        hash_suffix: false,
        line: Line::V2,
    };
    assert_eq!(seen(&memory, &old, "east", Kind::MeshTrafficPermission), ["allow-frontend.default"]);
    assert_eq!(seen(&memory, &TO_V3, "east", Kind::Mesh), ["default."], "a Mesh is never hashed");
}

#[test]
fn a_service_goes_to_the_other_zones_without_status() {
    let memory = global();
    let spec = json!({"selector": {}, "ports": [{"port": 8080}]});
    let stored = from_zone(&memory, "west", Kind::MeshService, "backend", &[], spec);
    memory.ops(vec![ursa_state::Op::Put(ursa_state::Put {
        key: stored.clone(),
        labels: memory.catalog().get(&stored).unwrap().labels.clone(),
        spec: json!({"selector": {}, "ports": [{"port": 8080}]}),
        status: Some(json!({"tls": {"status": "Ready"}})),
        owner: None,
        expect: Default::default(),
    })]);
    let name = "backend-d49vb4d82969fv4f.default";
    assert_eq!(
        seen(&memory, &TO_V3, "east", Kind::MeshService),
        [name],
        "hashing again gives the same name"
    );
    assert!(
        seen(&memory, &TO_V3, "west", Kind::MeshService).is_empty(),
        "not back to its own zone"
    );
    let sent = decoded(&memory, &TO_V3, Kind::MeshService, name);
    assert!(sent.status.is_none());
    let labels = sent.meta.unwrap().labels;
    assert_eq!((labels[ORIGIN].as_str(), labels[ZONE].as_str()), ("global", "west"));
}

#[test]
fn a_disabled_zone_is_withdrawn_and_comes_back() {
    let memory = global();
    from_zone(&memory, "west", Kind::MeshService, "backend", &[], json!({"ports": []}));
    let mut distributor = Distributor::new(TO_V3);
    let of = |d: &crate::distribution::Distribution| d.of_kind(Kind::MeshService).count();
    let first = distributor.update(memory.catalog());
    assert_eq!(of(&first), 1);
    memory.put(Site::Global, Kind::Zone, "", "west", json!({"enabled": false}));
    let second = distributor.update(memory.catalog());
    assert_eq!(of(&second), 0);
    assert_eq!(second.changed_since(&first, Kind::MeshService).len(), 1);
    memory.put(Site::Global, Kind::Zone, "", "west", json!({"enabled": true}));
    assert_eq!(of(&distributor.update(memory.catalog())), 1);
}

#[test]
fn what_must_stay_at_the_global_stays() {
    let memory = global();
    for name in [
        "envoy-admin-ca",
        "admin-user-token",
        "inter-cp-ca",
        "user-token-revocations",
        "user-token-signing-key-1",
        "mine",
    ] {
        memory.put(
            Site::Global,
            Kind::GlobalSecret,
            "",
            name,
            serde_json::to_value(Secret::of(b"x")).unwrap(),
        );
    }
    for name in ["kuma-cluster-id", "cp-catalog"] {
        memory.put(Site::Global, Kind::Config, "", name, json!({"config": "x"}));
    }
    from_zone(&memory, "west", Kind::MeshIdentity, "own", &[], json!({}));
    memory.put(Site::Global, Kind::MeshService, "default", "made-at-global", json!({"ports": []}));
    let disabled = key(Kind::Secret, "default", "not-synced");
    let mut labels = made_at(Site::Global, &disabled);
    labels.insert(KDS_SYNC.into(), "disabled".into());
    memory.put_with(disabled, labels, serde_json::to_value(Secret::of(b"x")).unwrap());
    assert_eq!(seen(&memory, &TO_V3, "east", Kind::GlobalSecret), ["mine."]);
    assert_eq!(seen(&memory, &TO_V3, "east", Kind::Config), ["kuma-cluster-id."]);
    for kind in [Kind::MeshIdentity, Kind::MeshService, Kind::Secret, Kind::Zone] {
        assert!(seen(&memory, &TO_V3, "east", kind).is_empty(), "{kind}");
    }
}

#[test]
fn a_signing_key_travels_as_its_public_half() {
    let memory = global();
    let signing = SigningKey::generate().unwrap();
    memory.put(
        Site::Global,
        Kind::GlobalSecret,
        "",
        "zone-token-signing-key-1",
        serde_json::to_value(Secret::of(signing.private_pem().as_bytes())).unwrap(),
    );
    memory.put(
        Site::Global,
        Kind::GlobalSecret,
        "",
        "zone-token-signing-key-2",
        serde_json::to_value(Secret::of(b"no key")).unwrap(),
    );
    let name = "zone-token-signing-public-key-1.";
    assert_eq!(seen(&memory, &TO_V3, "east", Kind::GlobalSecret), [name]);
    let sent = decoded(&memory, &TO_V3, Kind::GlobalSecret, name).spec.unwrap();
    let json = wire::proto_to_json("kuma.system.v1alpha1.Secret", &sent.value).unwrap();
    let secret: Secret = serde_json::from_value(json).unwrap();
    let text = secret.text().unwrap();
    assert!(text.contains("PUBLIC KEY") && !text.contains("PRIVATE"));
    assert_eq!(VerifyingKey::parse(text.as_bytes()).unwrap(), signing.verifying_key());
    let mut distributor = Distributor::new(TO_V3);
    distributor.update(memory.catalog());
    assert!(distributor.problems().values().any(|p| matches!(p, Problem::SigningKey { .. })));
}

#[test]
fn a_2_14_zone_gets_exclusive_mesh_services() {
    let memory = global();
    let spec = |line| {
        decoded(&memory, &Class::ToZones { hash_suffix: true, line }, Kind::Mesh, "default.")
            .spec
            .unwrap()
            .value
    };
    assert_eq!(spec(Line::V3), Vec::<u8>::new());
    assert_eq!(spec(Line::V2), [0x4a, 2, 8, 3]);
}

#[test]
fn only_producer_policies_cross_zones() {
    let memory = global();
    let to = |labels: Value| json!({"targetRef": {"kind": "Mesh"}, "to": [{"targetRef": {"kind": "MeshService", "labels": labels}, "default": {}}]});
    let own = json!({DISPLAY_NAME: "backend", K8S_NAMESPACE: "ns"});
    let ns = &[("kuma.io/policy-role", "producer"), (K8S_NAMESPACE, "ns")];
    let producer = from_zone(&memory, "west", Kind::MeshTimeout, "producer", ns, to(own.clone()));
    from_zone(
        &memory,
        "west",
        Kind::MeshTimeout,
        "liar",
        ns,
        to(json!({DISPLAY_NAME: "backend", K8S_NAMESPACE: "other"})),
    );
    from_zone(
        &memory,
        "west",
        Kind::MeshTimeout,
        "no-namespace",
        &[("kuma.io/policy-role", "producer")],
        to(own.clone()),
    );
    from_zone(
        &memory,
        "west",
        Kind::MeshTimeout,
        "consumer",
        &[("kuma.io/policy-role", "consumer"), (K8S_NAMESPACE, "ns")],
        to(own),
    );
    let distribution = Distributor::new(TO_V3).update(memory.catalog());
    let sent: Vec<_> = distribution.of_kind(Kind::MeshTimeout).map(|(_, e)| e.clone()).collect();
    assert_eq!(sent.len(), 1);
    assert_eq!((&sent[0].source, sent[0].needs), (&producer, Features::PRODUCER_POLICY_FLOW));
    assert!(
        !Recipient {
            zone: Some("east".into()),
            features: Features::HASH_SUFFIX
        }
        .sees(&sent[0])
    );
}

fn trust(domain: &str, pem: &str) -> Value {
    serde_json::to_value(mesh_trust::MeshTrust {
        trust_domain: domain.into(),
        ca_bundles: vec![mesh_trust::CaBundle {
            kind: mesh_trust::BundleType::Pem,
            pem: Some(mesh_trust::Pem { value: pem.into() }),
        }],
    })
    .unwrap()
}

#[test]
fn a_trust_domain_belongs_to_the_zone_that_published_it_first() {
    let memory = global();
    let west = from_zone(
        &memory,
        "west",
        Kind::MeshTrust,
        "west-trust",
        &[],
        trust("west.local", "CA of west"),
    );
    let name = |key: &ResourceKey| {
        let distribution = Distributor::new(TO_V3).update(memory.catalog());
        distribution
            .of_kind(Kind::MeshTrust)
            .find(|(_, e)| e.source == *key)
            .map(|(_, e)| e.name.to_string())
    };
    assert_eq!(
        name(&west).unwrap(),
        format!("{}.default", west.name()),
        "to the others under the hash of its zone"
    );
    assert!(seen(&memory, &TO_V3, "west", Kind::MeshTrust).is_empty());
    // East claims west's trust domain, in other letters too.
    let thief = from_zone(&memory, "east", Kind::MeshTrust, "thief", &[], trust("West.local", "CA of east"));
    assert_eq!(name(&thief), None);
    let mut distributor = Distributor::new(TO_V3);
    distributor.update(memory.catalog());
    assert!(matches!(&distributor.problems()[&thief], Problem::Quarantined { owner, .. } if owner == "west"));
    // The same CA adds nothing and passes.
    let copy = from_zone(&memory, "east", Kind::MeshTrust, "copy", &[], trust("west.local", " CA of west\n"));
    assert!(name(&copy).is_some());
    // The owner rotates its CA: it stays the owner, though its resource is changed last.
    from_zone(
        &memory,
        "west",
        Kind::MeshTrust,
        "west-trust",
        &[],
        trust("west.local", "next CA of west"),
    );
    assert!(name(&west).is_some() && name(&thief).is_none());
    // The operator takes it on.
    memory.put(
        Site::Global,
        Kind::MeshTrust,
        "default",
        "by-hand",
        trust("west.local", "CA by hand"),
    );
    distributor.update(memory.catalog());
    assert!(name(&thief).is_some() && distributor.problems().is_empty());
    memory.delete(Kind::MeshTrust, "default", "by-hand");
    assert!(name(&thief).is_none());
    // With the owner's MeshTrust gone, the next one owns the trust domain.
    memory.ops(vec![ursa_state::Op::delete(west)]);
    assert!(name(&thief).is_some());
}

#[test]
fn a_zone_sends_its_own_resources_under_its_name() {
    let zone: ZoneName = "west".parse().unwrap();
    let memory = Memory::new(Role::Zone, 2);
    let own = key(Kind::MeshService, "default", "backend");
    let mut labels = made_at(Site::Zone("west"), &own);
    labels.insert(ZONE.into(), "somewhere-else".into());
    labels.insert(ursa_model::labels::DELETION_GRACE.into(), "x".into());
    memory.put_with(own, labels, json!({"ports": []}));
    // F5: a MeshTrust without labels counts as made here, under the hash of its stored name.
    memory.put_with(
        key(Kind::MeshTrust, "default", "identity-fx89fx8cww447z7x"),
        Labels::new(),
        trust("west.local", "CA"),
    );
    let foreign = key(Kind::MeshTimeout, "default", "from-global");
    memory.put_with(foreign, labels_of(&[(ORIGIN, "global")]), json!({}));
    let distribution = Distributor::new(Class::ToGlobal { zone }).update(memory.catalog());
    let (_, service) = distribution.of_kind(Kind::MeshService).next().unwrap();
    assert_eq!(&*service.name, "backend-d49vb4d82969fv4f.default");
    let labels = KumaResource::decode(service.bytes.as_ref()).unwrap().meta.unwrap().labels;
    assert_eq!((labels[ORIGIN].as_str(), labels[ZONE].as_str()), ("zone", "west"));
    assert!(!labels.contains_key(ursa_model::labels::DELETION_GRACE));
    let (_, own_trust) = distribution.of_kind(Kind::MeshTrust).next().unwrap();
    assert_eq!(
        own_trust.name.as_ref(),
        format!("{}.default", hash::hashed("default", "identity-fx89fx8cww447z7x", &["west"]))
    );
    let labels = KumaResource::decode(own_trust.bytes.as_ref()).unwrap().meta.unwrap().labels;
    assert_eq!(labels[DISPLAY_NAME], "identity-fx89fx8cww447z7x");
    assert_eq!(
        distribution.of_kind(Kind::MeshTimeout).count(),
        0,
        "what came from the global does not go back"
    );
}

#[test]
fn what_only_looks_changed_is_not_sent_again() {
    let memory = global();
    let stored = from_zone(&memory, "west", Kind::MeshService, "backend", &[], json!({"ports": []}));
    let mut distributor = Distributor::new(TO_V3);
    let first = distributor.update(memory.catalog());
    let labels = memory.catalog().get(&stored).unwrap().labels.clone();
    let op = ursa_state::Put {
        key: stored,
        labels,
        spec: json!({"ports": []}),
        status: Some(json!({"vips": []})),
        owner: None,
        expect: Default::default(),
    };
    memory.ops(vec![ursa_state::Op::Put(op)]);
    let second = distributor.update(memory.catalog());
    assert_eq!(second.sequence(), first.sequence(), "a status is not sent down");
    assert!(second.at().revision > first.at().revision);
}

#[test]
fn two_resources_of_one_wire_name_take_turns() {
    let memory = global();
    let twin = |name: &str, port: u16| {
        let labels = labels_of(&[(ORIGIN, "zone"), (ZONE, "west"), (DISPLAY_NAME, "backend")]);
        memory.put_with(key(Kind::MeshService, "default", name), labels, json!({"ports": [{"port": port}]}));
    };
    twin("b", 2);
    let mut distributor = Distributor::new(TO_V3);
    let holder = |d: &crate::distribution::Distribution| {
        d.of_kind(Kind::MeshService)
            .map(|(_, e)| e.source.name().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(holder(&distributor.update(memory.catalog())), ["b"]);
    twin("a", 1);
    assert_eq!(holder(&distributor.update(memory.catalog())), ["a"]);
    memory.delete(Kind::MeshService, "default", "a");
    assert_eq!(holder(&distributor.update(memory.catalog())), ["b"]);
    twin("a", 1);
    memory.delete(Kind::MeshService, "default", "b");
    assert_eq!(holder(&distributor.update(memory.catalog())), ["a"]);
    memory.delete(Kind::MeshService, "default", "a");
    assert!(holder(&distributor.update(memory.catalog())).is_empty());
}
