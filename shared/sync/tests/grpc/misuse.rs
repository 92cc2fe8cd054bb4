//! Bad callers and garbage: typed statuses, nothing stored changes.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_the_zone_is_told_so() {
    let global = Global::start().await;
    let before = global.everything();
    let (own, other) = (global.token("east"), global.token("west"));
    let mut client = global.raw().await;
    let mut call = async |pairs: Vec<(&'static str, &str)>| -> Status {
        let down = client.global_to_zone_sync(request(tokio_stream::pending(), &pairs)).await.err();
        let up = client.zone_to_global_sync(request(tokio_stream::pending(), &pairs)).await.err();
        let (down, up) = (down.expect("refused"), up.expect("refused"));
        assert_eq!(down.code(), up.code());
        down
    };
    assert_eq!(call(vec![]).await.code(), Code::InvalidArgument);
    assert_eq!(call(vec![("client-id", "No Zone")]).await.code(), Code::InvalidArgument);
    assert_eq!(call(vec![("client-id", "east")]).await.code(), Code::Unauthenticated);
    let garbage = call(vec![("client-id", "east"), ("authorization", "Bearer gar.ba.ge")]).await;
    assert_eq!(garbage.code(), Code::Unauthenticated);
    assert!(
        !garbage.message().contains("gar.ba"),
        "no part of a token comes back: {}",
        garbage.message()
    );
    let mut unsigned: Vec<&str> = own.split('.').collect();
    unsigned[2] = "";
    let unsigned = unsigned.join(".");
    assert_eq!(
        call(vec![("client-id", "east"), ("authorization", unsigned.as_str())]).await.code(),
        Code::Unauthenticated
    );
    let denied = call(vec![("client-id", "east"), ("authorization", other.as_str())]).await;
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(
        denied.message().contains("\"east\"") && denied.message().contains("\"west\""),
        "{}",
        denied.message()
    );
    let mut admin = GlobalKdsServiceClient::new(global.channel().await);
    let health = admin
        .health_check(request(
            ZoneHealthCheckRequest {},
            &[("client-id", "east"), ("authorization", &other)],
        ))
        .await;
    assert_eq!(health.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        admin
            .stream_stats(request(tokio_stream::pending(), &[("client-id", "east")]))
            .await
            .unwrap_err()
            .code(),
        Code::Unauthenticated
    );
    assert_eq!(global.everything(), before, "no Zone was made, nothing changed");
    // The right token is good, raw or Bearer.
    let good = request(ZoneHealthCheckRequest {}, &[("client-id", "east"), ("authorization", &own)]);
    let interval = admin.health_check(good).await.unwrap().into_inner().interval.unwrap();
    assert_eq!(interval.seconds, 10);
    // A client of ours with a wrong token says why, and goes on trying.
    let zone = Zone::with(Memory::new(Role::Zone, 1), &global, "east", Token::Text(other.clone().into()));
    wait("the client says why", || {
        zone.status
            .borrow()
            .last_error
            .as_ref()
            .is_some_and(|e| e.contains("PermissionDenied") && e.contains("\"west\""))
    })
    .await;
    assert_eq!(global.tasks.panics(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_gets_a_typed_status_and_changes_nothing() {
    let global = Global::start().await;
    let (tx, mut good) = open_up(&global, "east", &[]).await;
    let first = within("the global asks first", good.message()).await.unwrap().unwrap();
    assert!(first.node.is_some_and(|n| n.id == "east"));
    tx.send(response("MeshZoneAddress", "1", vec![zone_address("a", &address(1))]))
        .await
        .unwrap();
    wait("a is stored", || global.memory.get(Kind::MeshZoneAddress, "default", "a").is_some()).await;
    drop((tx, good));
    let before = global.everything();
    let any = |type_url: &str, value: Vec<u8>| Resource {
        resource: Some(prost_types::Any {
            type_url: type_url.into(),
            value,
        }),
        ..Resource::default()
    };
    let cases = [
        (response("Nonsense", "1", vec![]), vec![Code::InvalidArgument]),
        (response("Mesh", "1", vec![]), vec![Code::InvalidArgument]),
        (response(PROGRESS_TYPE_URL, "1", vec![]), vec![Code::InvalidArgument]),
        (response("MeshZoneAddress", "", vec![]), vec![Code::InvalidArgument]),
        (
            response("MeshZoneAddress", "1", vec![any("x/y", vec![])]),
            vec![Code::InvalidArgument],
        ),
        (
            response(
                "MeshZoneAddress",
                "1",
                vec![zone_address("b", &address(1)), any(wire::RESOURCE_TYPE_URL, vec![0xff; 9])],
            ),
            vec![Code::InvalidArgument],
        ),
        (
            response("MeshZoneAddress", "1", vec![any("x/y", vec![0; MAX_DECODED_BYTES + 1])]),
            vec![Code::OutOfRange, Code::ResourceExhausted],
        ),
    ];
    for (message, codes) in cases {
        let label = format!("{} with {} resources", message.type_url, message.resources.len());
        let (tx, mut stream) = open_up(&global, "east", &[]).await;
        tx.send(message).await.unwrap();
        let status = end_of(&mut stream).await;
        assert!(codes.contains(&status.code()), "{label}: {status:?}");
    }
    // A small message that inflates beyond the limit.
    let token = global.token("east");
    let (tx, rx) = mpsc::channel(1);
    let pairs = [("client-id", "east"), ("authorization", token.as_str())];
    let mut gzip = global.raw().await.send_compressed(CompressionEncoding::Gzip);
    let mut stream = gzip
        .zone_to_global_sync(request(ReceiverStream::new(rx), &pairs))
        .await
        .unwrap()
        .into_inner();
    tx.send(response("MeshZoneAddress", "1", vec![any("x/y", vec![0; 2 * MAX_DECODED_BYTES])]))
        .await
        .unwrap();
    let status = end_of(&mut stream).await;
    assert!(matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange), "{status:?}");
    // Requests on the other direction: unknown types meet silence, then the stream still works.
    let (tx, rx) = mpsc::channel(8);
    let mut stream = global
        .raw()
        .await
        .global_to_zone_sync(request(ReceiverStream::new(rx), &pairs))
        .await
        .unwrap()
        .into_inner();
    let ask = |type_url: &str| DeltaDiscoveryRequest {
        node: Some(Identity::default().full_node()),
        type_url: type_url.into(),
        ..Default::default()
    };
    tx.send(ask("TrafficRoute")).await.unwrap();
    tx.send(ask(&"x".repeat(100_000))).await.unwrap();
    tx.send(ask("Mesh")).await.unwrap();
    let answer = within("the answer", stream.message()).await.unwrap().unwrap();
    assert_eq!((answer.type_url.as_str(), answer.resources.len()), ("Mesh", 1));
    // An invalid resource among good ones is a NACK, and the stream goes on.
    let after = global.everything();
    assert_eq!(after, before, "nothing stored changed");
    let (tx, mut stream) = open_up(&global, "east", &[]).await;
    let bad = zone_address("bad", &json!({"address": "", "port": 0}));
    tx.send(response(
        "MeshZoneAddress",
        "1",
        vec![zone_address("a", &address(1)), bad, zone_address("c", &address(3))],
    ))
    .await
    .unwrap();
    let nack = within("the NACK", async {
        loop {
            let message = stream.message().await.unwrap().unwrap();
            if !message.response_nonce.is_empty() {
                return message;
            }
        }
    })
    .await;
    assert!(nack.error_detail.is_some_and(|e| e.message.contains("bad.default")) && nack.node.is_some());
    assert!(global.memory.get(Kind::MeshZoneAddress, "default", "c").is_some());
    assert_eq!(global.tasks.panics(), 0);
}
