use super::*;
use crate::testing::{Memory, each, key, labels_of};
use serde_json::{Value, json};
use ursa_model::labels::{DISPLAY_NAME, ORIGIN, Site as Made, ZONE};
use ursa_proto::discovery::Resource;
use ursa_state::{GlobalRevision, HistoryId, Op, Role};

mod digest;
mod garbage;
mod held;

fn at(revision: u64) -> GlobalRevision {
    GlobalRevision {
        history: HistoryId(9),
        revision,
    }
}

fn receiver(site: Site, progress: bool, known: Option<GlobalRevision>) -> Receiver {
    let kinds = vec![
        Kind::Mesh,
        Kind::Config,
        Kind::MeshService,
        Kind::MeshZoneAddress,
        Kind::MeshTimeout,
        Kind::MeshTrust,
        Kind::Secret,
        Kind::Dataplane,
    ];
    let identity = Identity {
        zone: "east".into(),
        ..Identity::default()
    };
    Receiver::new(Config {
        site,
        identity,
        kinds,
        progress,
        known,
    })
}

fn global_site() -> Site {
    Site::Global {
        zone: "east".parse().unwrap(),
        prefix_names: false,
    }
}

fn resource(kind: Kind, name: &str, labels: &[(&str, &str)], spec: Value) -> Resource {
    let mesh = if matches!(kind, Kind::Mesh | Kind::Config) { "" } else { "default" };
    let bytes = wire::encode(kind, mesh, name, &labels_of(labels), &spec, None).unwrap();
    Resource {
        name: wire::kds_name(mesh, name),
        resource: Some(prost_types::Any {
            type_url: wire::RESOURCE_TYPE_URL.into(),
            value: bytes.to_vec(),
        }),
        ..Resource::default()
    }
}

fn address(name: &str, origin: &str) -> Resource {
    resource(
        Kind::MeshZoneAddress,
        name,
        &[(ORIGIN, origin)],
        json!({"address": "127.0.0.1", "port": 10001}),
    )
}

fn response(kind: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> Event {
    Event::Response(DeltaDiscoveryResponse {
        type_url: kind.into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.iter().map(|r| (*r).to_owned()).collect(),
        ..Default::default()
    })
}

fn marker(revision: u64, nonce: &str) -> Event {
    Event::Response(DeltaDiscoveryResponse {
        type_url: PROGRESS_TYPE_URL.into(),
        nonce: nonce.into(),
        system_version_info: crate::revision::format(at(revision)),
        ..Default::default()
    })
}

fn stored() -> Event {
    Event::Stored { refused: vec![] }
}

fn batch(actions: &[Action]) -> Option<Batch> {
    actions
        .iter()
        .find_map(|a| if let Action::Apply(b) = a { Some((**b).clone()) } else { None })
}

fn answers(actions: &[Action]) -> Vec<(String, String, Option<String>)> {
    let answer = |a: &Action| match a {
        Action::Send(m) => Some((
            m.type_url.clone(),
            m.response_nonce.clone(),
            m.error_detail.as_ref().map(|e| e.message.clone()),
        )),
        _ => None,
    };
    actions.iter().filter_map(answer).collect()
}

fn put_keys(batch: &Batch) -> Vec<&str> {
    batch
        .ops
        .iter()
        .filter(|op| matches!(op, Op::Put(_)))
        .map(|op| op.key().name())
        .collect()
}

fn delete_keys(batch: &Batch) -> Vec<&str> {
    batch
        .ops
        .iter()
        .filter(|op| matches!(op, Op::Delete { .. }))
        .map(|op| op.key().name())
        .collect()
}

/// Stores what a batch says, as the shell does.
fn store(memory: &Memory, batch: &Batch) {
    if !batch.ops.is_empty() || batch.global.is_some() {
        memory.change(each(batch.ops.clone(), batch.global));
    }
    memory.observed.apply(ursa_model::Timestamp(1), batch.observations.clone());
}

#[test]
fn every_request_carries_a_node_and_the_one_for_markers_comes_last() {
    let memory = Memory::new(Role::Zone, 1);
    let mut receiver = receiver(Site::Zone, true, None);
    let actions = receiver.handle(Event::Start, &memory.catalog());
    let sent: Vec<_> = actions
        .iter()
        .filter_map(|a| if let Action::Send(m) = a { Some(m) } else { None })
        .collect();
    assert_eq!(sent.len(), 9);
    assert!(
        sent.iter()
            .all(|m| m.node.as_ref().is_some_and(|n| n.id == "east" && n.metadata.is_some()))
    );
    assert!(
        sent.iter()
            .all(|m| m.resource_names_subscribe == ["*"] && m.response_nonce.is_empty())
    );
    assert_eq!(sent.last().unwrap().type_url, PROGRESS_TYPE_URL);
}

#[test]
fn with_a_stock_peer_each_response_is_a_batch_and_is_acked_once_stored() {
    let memory = Memory::new(Role::Zone, 1);
    let mut receiver = receiver(Site::Zone, false, None);
    let actions = receiver.handle(
        response("MeshZoneAddress", "1", vec![address("a", "global"), address("own", "zone")], &[]),
        &memory.catalog(),
    );
    let first = batch(&actions).unwrap();
    assert_eq!(
        put_keys(&first),
        ["a"],
        "what is labelled as made in a zone is not the global's to send"
    );
    assert!(answers(&actions).is_empty());
    // Two more arrive while it is being stored: one batch.
    assert!(
        batch(&receiver.handle(
            response("MeshZoneAddress", "2", vec![address("b", "global")], &[]),
            &memory.catalog()
        ))
        .is_none()
    );
    assert!(
        batch(&receiver.handle(
            response("MeshZoneAddress", "3", vec![address("c", "global")], &["b.default"]),
            &memory.catalog()
        ))
        .is_none()
    );
    store(&memory, &first);
    let actions = receiver.handle(stored(), &memory.catalog());
    assert_eq!(answers(&actions), [("MeshZoneAddress".into(), "1".into(), None)]);
    let second = batch(&actions).unwrap();
    assert_eq!(put_keys(&second), ["c"]);
    store(&memory, &second);
    let acks = answers(&receiver.handle(stored(), &memory.catalog()));
    assert_eq!(acks.iter().map(|a| a.1.as_str()).collect::<Vec<_>>(), ["2", "3"]);
}

#[test]
fn with_markers_nothing_is_released_before_the_marker() {
    let memory = Memory::new(Role::Zone, 1);
    let mut receiver = receiver(Site::Zone, true, None);
    assert!(
        batch(&receiver.handle(
            response("Mesh", "1", vec![resource(Kind::Mesh, "default", &[], json!({}))], &[]),
            &memory.catalog()
        ))
        .is_none()
    );
    assert!(
        batch(&receiver.handle(
            response("MeshZoneAddress", "2", vec![address("a", "global")], &[]),
            &memory.catalog()
        ))
        .is_none()
    );
    let released = batch(&receiver.handle(marker(5, "3"), &memory.catalog())).unwrap();
    assert_eq!((put_keys(&released), released.global), (vec!["default", "a"], Some(at(5))));
    store(&memory, &released);
    let acks = answers(&receiver.handle(stored(), &memory.catalog()));
    assert_eq!(
        acks.iter().map(|a| (a.0.as_str(), a.1.as_str())).collect::<Vec<_>>(),
        [("Mesh", "1"), ("MeshZoneAddress", "2"), (PROGRESS_TYPE_URL, "3")]
    );
    assert_eq!(memory.view().global(), Some(at(5)));
    // All was filtered: the revision moves on, nothing else does.
    let idle = batch(&receiver.handle(marker(6, "4"), &memory.catalog())).unwrap();
    assert_eq!((idle.ops.len(), idle.global), (0, Some(at(6))));
    store(&memory, &idle);
    receiver.handle(stored(), &memory.catalog());
    assert_eq!(
        answers(&receiver.handle(marker(6, "5"), &memory.catalog())).len(),
        1,
        "old news is answered at once"
    );
}

#[test]
fn an_invalid_resource_is_skipped_and_named_and_its_stored_copy_stays() {
    let memory = Memory::new(Role::Zone, 1);
    memory.put_with(
        key(Kind::MeshZoneAddress, "default", "bad"),
        labels_of(&[(ORIGIN, "global")]),
        json!({"address": "127.0.0.1", "port": 1}),
    );
    let mut receiver = receiver(Site::Zone, false, None);
    let bad = resource(
        Kind::MeshZoneAddress,
        "bad",
        &[(ORIGIN, "global")],
        json!({"address": "", "port": 0}),
    );
    let actions = receiver.handle(
        response("MeshZoneAddress", "1", vec![bad, address("good", "global")], &[]),
        &memory.catalog(),
    );
    let released = batch(&actions).unwrap();
    assert_eq!((put_keys(&released), delete_keys(&released).len()), (vec!["good"], 0));
    assert!(released.held[&Kind::MeshZoneAddress].keys.is_empty());
    store(&memory, &released);
    let acks = answers(&receiver.handle(stored(), &memory.catalog()));
    let text = acks[0].2.clone().unwrap();
    assert!(text.starts_with("user error: bad.default: ") && !text.contains("good"), "{text}");
}

#[test]
fn what_the_store_refuses_becomes_a_nack() {
    let memory = Memory::new(Role::Zone, 1);
    let mut receiver = receiver(Site::Zone, true, None);
    receiver.handle(
        response("MeshZoneAddress", "1", vec![address("a", "global")], &[]),
        &memory.catalog(),
    );
    receiver.handle(
        response("MeshZoneAddress", "2", vec![address("b", "global")], &[]),
        &memory.catalog(),
    );
    receiver.handle(marker(1, "3"), &memory.catalog());
    let refused = vec![(key(Kind::MeshZoneAddress, "default", "b"), "no".to_owned())];
    let acks = answers(&receiver.handle(Event::Stored { refused }, &memory.catalog()));
    assert_eq!(acks[0].2, None);
    assert_eq!(acks[1].2.as_deref(), Some("user error: b.default: no"));
}

#[test]
fn a_zone_touches_nothing_but_its_own_at_the_global() {
    let memory = Memory::new(Role::Global, 1);
    memory.put(Made::Global, Kind::Zone, "", "east", json!({}));
    memory.put(
        Made::Global,
        Kind::MeshZoneAddress,
        "default",
        "global-policy",
        json!({"address": "127.0.0.1", "port": 1}),
    );
    let by_west = labels_of(&[(ORIGIN, "zone"), (ZONE, "west")]);
    memory.put_with(key(Kind::MeshZoneAddress, "default", "west-policy"), by_west, json!({}));
    // An operator's resource that bears the zone's label is the operator's.
    let marked = labels_of(&[(ORIGIN, "global"), (ZONE, "east")]);
    memory.put_with(key(Kind::MeshZoneAddress, "default", "marked"), marked, json!({}));
    let mut receiver = receiver(global_site(), false, None);
    let claims: Vec<Resource> = ["global-policy", "west-policy", "new"]
        .iter()
        .map(|n| {
            resource(
                Kind::MeshZoneAddress,
                n,
                &[(ZONE, "west"), (ORIGIN, "global")],
                json!({"address": "127.0.0.1", "port": 1}),
            )
        })
        .collect();
    let actions = receiver.handle(
        response(
            "MeshZoneAddress",
            "1",
            claims,
            &["global-policy.default", "west-policy.default", "marked.default"],
        ),
        &memory.catalog(),
    );
    let released = batch(&actions).unwrap();
    assert_eq!((put_keys(&released), delete_keys(&released).len()), (vec!["new"], 0));
    let Op::Put(put) = &released.ops[0] else { panic!() };
    assert_eq!((put.labels[ZONE].as_str(), put.labels[ORIGIN].as_str()), ("east", "zone"));
    assert_eq!(put.owner, Some(key(Kind::Zone, "", "east")));
    assert!(actions.contains(&Action::Report(Report::Rewritten(3))));
    store(&memory, &released);
    let acks = answers(&receiver.handle(stored(), &memory.catalog()));
    let text = acks[0].2.clone().unwrap();
    assert!(
        text.contains("global-policy.default: ") && text.contains("west-policy.default: "),
        "{text}"
    );
}

#[test]
fn a_zone_without_hash_suffix_gets_a_prefix() {
    let memory = Memory::new(Role::Global, 1);
    let mut receiver = receiver(
        Site::Global {
            zone: "east".parse().unwrap(),
            prefix_names: true,
        },
        false,
        None,
    );
    let first = batch(&receiver.handle(response("MeshZoneAddress", "1", vec![address("a", "zone")], &[]), &memory.catalog())).unwrap();
    assert_eq!(put_keys(&first), ["east.a"]);
    store(&memory, &first);
    memory.put(Made::Global, Kind::Zone, "", "east", json!({}));
    store(&memory, &first);
    receiver.handle(stored(), &memory.catalog());
    let second = batch(&receiver.handle(response("MeshZoneAddress", "2", vec![], &["a.default"]), &memory.catalog())).unwrap();
    assert_eq!(delete_keys(&second), ["east.a"]);
}

#[test]
fn observed_kinds_are_observed_and_their_first_set_is_believed() {
    let memory = Memory::new(Role::Global, 1);
    let dataplane = |name: &str| {
        resource(
            Kind::Dataplane,
            name,
            &[(DISPLAY_NAME, name)],
            json!({"networking": {"address": "127.0.0.1", "inbound": [{"port": 80}]}}),
        )
    };
    let mut first = receiver(global_site(), false, None);
    let released = batch(&first.handle(
        response("Dataplane", "1", vec![dataplane("a"), dataplane("b")], &[]),
        &memory.catalog(),
    ))
    .unwrap();
    assert_eq!((released.ops.len(), released.observations.len()), (0, 2));
    store(&memory, &released);
    let mut second = receiver(global_site(), false, None);
    let released = batch(&second.handle(response("Dataplane", "1", vec![dataplane("a")], &[]), &memory.catalog())).unwrap();
    assert_eq!(
        released.observations,
        [ursa_state::observed::Observation::Delete(key(Kind::Dataplane, "default", "b"))]
    );
}

#[test]
fn a_mesh_trust_for_another_trust_domain_is_another_mesh_trust() {
    let memory = Memory::new(Role::Global, 1);
    memory.put(Made::Global, Kind::Zone, "", "east", json!({}));
    let trust = |domain: &str, ca: &str| {
        let pem = format!("-----BEGIN CERTIFICATE-----\n{ca}\n-----END CERTIFICATE-----");
        resource(
            Kind::MeshTrust,
            "t",
            &[],
            json!({"trustDomain": domain, "caBundles": [{"type": "Pem", "pem": {"value": pem}}]}),
        )
    };
    let mut receiver = receiver(global_site(), false, None);
    let mut step = |nonce: &str, r: Resource| {
        let released = batch(&receiver.handle(response("MeshTrust", nonce, vec![r], &[]), &memory.catalog())).unwrap();
        store(&memory, &released);
        receiver.handle(stored(), &memory.catalog());
        memory.get(Kind::MeshTrust, "default", "t").unwrap()
    };
    let first = step("1", trust("a.local", "one"));
    let rotated = step("2", trust("A.local", "two"));
    assert_eq!(
        rotated.create_revision, first.create_revision,
        "another CA for the same trust domain"
    );
    let moved = step("3", trust("b.local", "two"));
    assert!(
        moved.create_revision > first.create_revision,
        "it cannot bring its age to another trust domain"
    );
}

#[test]
fn what_is_stored_already_costs_nothing() {
    let memory = Memory::new(Role::Zone, 1);
    let mut first = receiver(Site::Zone, false, None);
    let released = batch(&first.handle(
        response("MeshZoneAddress", "1", vec![address("a", "global")], &[]),
        &memory.catalog(),
    ))
    .unwrap();
    store(&memory, &released);
    let mut second = receiver(Site::Zone, false, None);
    let actions = second.handle(
        response("MeshZoneAddress", "1", vec![address("a", "global")], &[]),
        &memory.catalog(),
    );
    assert!(batch(&actions).is_none());
    assert_eq!(answers(&actions).len(), 1, "and is answered at once");
}

#[test]
fn a_store_that_fails_ends_the_stream() {
    let memory = Memory::new(Role::Zone, 1);
    let mut receiver = receiver(Site::Zone, false, None);
    receiver.handle(
        response("MeshZoneAddress", "1", vec![address("a", "global")], &[]),
        &memory.catalog(),
    );
    assert_eq!(
        receiver.handle(Event::Failed("disk".into()), &memory.catalog()),
        [Action::Close(Close::Store("disk".into()))]
    );
}

#[test]
fn large_batches_are_cut_for_the_log() {
    let memory = Memory::new(Role::Global, 1);
    let mut receiver = receiver(global_site(), false, None);
    let resources = (0..100).map(|i| {
        resource(
            Kind::MeshZoneAddress,
            &format!("a{i}"),
            &[("pad", &"x".repeat(1000))],
            json!({"address": "127.0.0.1", "port": 1}),
        )
    });
    let released = batch(&receiver.handle(response("MeshZoneAddress", "1", resources.collect(), &[]), &memory.catalog())).unwrap();
    let pieces = released.pieces(16 * 1024);
    assert!(
        pieces.len() >= 7 && pieces.iter().all(|p| p.len() <= 16),
        "{:?}",
        pieces.iter().map(Vec::len).collect::<Vec<_>>()
    );
    assert_eq!(pieces.concat(), released.ops);
}
