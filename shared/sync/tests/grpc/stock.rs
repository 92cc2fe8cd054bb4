//! What a stock Kuma zone sees.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_zone_is_served_as_kuma_would() {
    let global = Global::start().await;
    let token = global.token("stock");
    let pairs = [
        ("client-id", "stock"),
        ("authorization", token.as_str()),
        ("features", "hash-suffix"),
        ("features", "zone-ping-health"),
    ];
    let (tx, rx) = mpsc::channel(64);
    let mut client = global.raw().await.send_compressed(CompressionEncoding::Gzip);
    let node = {
        let mut node = Identity {
            zone: "stock".into(),
            version: "3.0.0".into(),
            ..Identity::default()
        }
        .full_node();
        let features = node.metadata.as_mut().unwrap().fields.get_mut("features").unwrap();
        if let Some(prost_types::value::Kind::ListValue(list)) = features.kind.as_mut() {
            list.values
                .retain(|v| !matches!(&v.kind, Some(prost_types::value::Kind::StringValue(s)) if s.starts_with("ursa")));
        }
        Some(node)
    };
    for kind in ["MeshTrafficPermission", "TrafficRoute", "Mesh"] {
        tx.send(DeltaDiscoveryRequest {
            node: node.clone(),
            type_url: kind.into(),
            resource_names_subscribe: vec!["*".into()],
            ..Default::default()
        })
        .await
        .unwrap();
    }
    let response = client.global_to_zone_sync(request(ReceiverStream::new(rx), &pairs)).await.unwrap();
    assert_eq!(
        response.metadata().get("grpc-encoding").and_then(|v| v.to_str().ok()),
        Some("gzip"),
        "answered in the encoding of the request"
    );
    let mut stream = response.into_inner();
    let mut first = Vec::new();
    for _ in 0..2 {
        first.push(within("first sets", stream.message()).await.unwrap().unwrap());
    }
    first.sort_by(|a, b| b.type_url.cmp(&a.type_url));
    assert_eq!(
        first.iter().map(|r| (r.type_url.as_str(), r.resources.len())).collect::<Vec<_>>(),
        [("MeshTrafficPermission", 0), ("Mesh", 1)]
    );
    // Unanswered: nothing more of that type, but of the others.
    global.memory.put(Site::Global, Kind::Mesh, "", "second", json!({}));
    global.memory.put(Site::Global, Kind::Mesh, "", "third", json!({}));
    // One delta, or two if the server had not heard of the second change when the answer came.
    let (mut names, mut nonce) = (Vec::new(), first[1].nonce.clone());
    while names.len() < 2 {
        tx.send(DeltaDiscoveryRequest {
            node: node.clone(),
            type_url: "Mesh".into(),
            response_nonce: nonce,
            ..Default::default()
        })
        .await
        .unwrap();
        let next = within("the delta", stream.message()).await.unwrap().unwrap();
        assert_eq!(next.type_url, "Mesh", "and no marker of ours");
        names.extend(next.resources.into_iter().map(|r| r.name));
        nonce = next.nonce;
    }
    assert_eq!(names, ["second.", "third."]);
    wait("online at once", || global.insight("stock").is_online()).await;
    // The admin streams are held open.
    let mut admin = GlobalKdsServiceClient::new(global.channel().await);
    let mut held = admin
        .stream_xds_configs(request(tokio_stream::pending(), &pairs))
        .await
        .unwrap()
        .into_inner();
    assert!(tokio::time::timeout(Duration::from_millis(50), held.message()).await.is_err());
    // A newer connection takes over; the old one is told, and not with OK.
    let (tx2, rx2) = mpsc::channel(64);
    let mut newer = client
        .global_to_zone_sync(request(ReceiverStream::new(rx2), &pairs))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(end_of(&mut stream).await.code(), Code::Cancelled);
    tx2.send(DeltaDiscoveryRequest {
        node,
        type_url: "Mesh".into(),
        ..Default::default()
    })
    .await
    .unwrap();
    assert_eq!(
        within("the newer one is served", newer.message())
            .await
            .unwrap()
            .unwrap()
            .resources
            .len(),
        3
    );
    // The end of the server ends all streams with a reason.
    let (_tx, mut up) = open_up(&global, "stock", &[]).await;
    global.tasks.cancel_token().cancel();
    for status in [end_of(&mut newer).await, end_of(&mut held).await, end_of(&mut up).await] {
        assert_ne!(status.code(), Code::Ok, "{status:?}");
    }
    within("the server ends", global.tasks.idle()).await;
    assert_eq!(global.tasks.panics(), 0);
}
