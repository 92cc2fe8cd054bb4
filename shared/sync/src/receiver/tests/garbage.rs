//! What no peer should send.

use super::*;

#[test]
fn garbage_ends_the_stream_and_keeps_nothing() {
    let memory = Memory::new(Role::Zone, 1);
    let any = |type_url: &str, value: &[u8]| Resource {
        name: "x.default".into(),
        resource: Some(prost_types::Any {
            type_url: type_url.into(),
            value: value.to_vec(),
        }),
        ..Resource::default()
    };
    let bad_json = {
        let resource = ursa_proto::kds::KumaResource {
            meta: Some(ursa_proto::kds::kuma_resource::Meta {
                name: "x".into(),
                mesh: "default".into(),
                ..Default::default()
            }),
            spec: Some(prost_types::Any {
                type_url: String::new(),
                value: b"{".to_vec(),
            }),
            status: None,
        };
        any(wire::RESOURCE_TYPE_URL, &prost::Message::encode_to_vec(&resource))
    };
    for event in [
        response("Nonsense", "1", vec![], &[]),
        response("MeshRetry", "1", vec![], &[]),
        response("MeshZoneAddress", "", vec![], &[]),
        response("MeshZoneAddress", "1", vec![any("type.googleapis.com/other", b"")], &[]),
        response("MeshZoneAddress", "1", vec![any(wire::RESOURCE_TYPE_URL, b"\xff\xff")], &[]),
        response(
            "MeshZoneAddress",
            "1",
            vec![address("good", "global"), any(wire::RESOURCE_TYPE_URL, b"")],
            &[],
        ),
        response("MeshZoneAddress", "1", vec![Resource::default()], &[]),
        response("MeshZoneAddress", "1", vec![bad_json], &[]),
        response(PROGRESS_TYPE_URL, "1", vec![], &[]),
    ] {
        let mut receiver = receiver(Site::Zone, true, None);
        let actions = receiver.handle(event.clone(), &memory.catalog());
        assert!(
            matches!(actions.last(), Some(Action::Close(Close::Protocol(_)))),
            "{event:?}: {actions:?}"
        );
        assert!(batch(&actions).is_none());
        assert!(
            receiver.handle(marker(1, "9"), &memory.catalog()).is_empty(),
            "a closed receiver does nothing any more"
        );
    }
    let mut stock = receiver(Site::Zone, false, None);
    assert!(
        matches!(stock.handle(marker(1, "1"), &memory.catalog()).last(), Some(Action::Close(_))),
        "a marker that was not asked for"
    );
}

#[test]
fn a_name_that_cannot_be_stored_is_refused_alone() {
    let memory = Memory::new(Role::Zone, 1);
    let mut receiver = receiver(Site::Zone, false, None);
    let big = "x".repeat(70_000);
    let resources = vec![
        address("UPPER", "global"),
        resource(
            Kind::MeshZoneAddress,
            "labels",
            &[(ORIGIN, "global"), ("x", &big)],
            json!({"address": "127.0.0.1", "port": 1}),
        ),
        address("good", "global"),
    ];
    let released = batch(&receiver.handle(response("MeshZoneAddress", "1", resources, &[]), &memory.catalog())).unwrap();
    assert_eq!(put_keys(&released), ["good"]);
    store(&memory, &released);
    let text = answers(&receiver.handle(stored(), &memory.catalog()))[0].2.clone().unwrap();
    assert!(text.contains("UPPER.default: ") && text.contains("labels.default: "), "{text}");
}

#[test]
fn a_peer_that_never_sends_a_marker_is_sent_away() {
    let memory = Memory::new(Role::Zone, 1);
    let mut receiver = receiver(Site::Zone, true, None);
    let size = |receiver: &Receiver| receiver.open.bytes;
    receiver.handle(response("Mesh", "1", vec![], &[]), &memory.catalog());
    let empty = size(&receiver);
    assert!(empty >= pending::COST, "a response costs something though it holds nothing");
    receiver.handle(response("Mesh", "2", vec![], &["a", "b"]), &memory.catalog());
    assert!(size(&receiver) >= empty + 3 * pending::COST);
    receiver.open.bytes = MAX_UNMARKED;
    let last = receiver.handle(response("Mesh", "3", vec![], &[]), &memory.catalog()).pop();
    assert!(matches!(last, Some(Action::Close(Close::Protocol(_)))), "{last:?}");
}
