//! Three processes are one control plane: any node answers for all, the loss of one stops nothing, and what zones are seen to do is known
//! everywhere.

mod nodes;

use nodes::{Cluster, data, init, run, wait};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};
use ursa_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node},
    kds::kds_sync_service_client::KdsSyncServiceClient,
};

/// A zone's stream, as long as it lives.
struct ZoneStream {
    _requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

async fn connect_zone(cluster: &Cluster, n: u8, zone: &str) -> ZoneStream {
    let (requests, rx) = mpsc::channel(4);
    let first = DeltaDiscoveryRequest {
        node: Some(Node {
            id: zone.to_owned(),
            ..Node::default()
        }),
        type_url: "Mesh".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(rx));
    request.metadata_mut().insert("client-id", zone.parse().unwrap());
    let mut client = KdsSyncServiceClient::new(cluster.kds(n).await);
    let responses = client.global_to_zone_sync(request).await.unwrap().into_inner();
    ZoneStream {
        _requests: requests,
        responses,
    }
}

/// Disconnect times of the zone's subscriptions, as node `n` shows them; `None` for an open one.
async fn ends(cluster: &Cluster, n: u8, zone: &str) -> Vec<Option<String>> {
    let path = format!("/zone-insights/{zone}");
    let Some((200, insight)) = cluster.call(n, "GET", &path, None).await else {
        return Vec::new();
    };
    let all = insight.get("subscriptions").and_then(Value::as_array).cloned().unwrap_or_default();
    all.iter()
        .map(|s| s.get("disconnectTime").and_then(Value::as_str).map(str::to_owned))
        .collect()
}

async fn is_online(cluster: &Cluster, n: u8, zone: &str) -> bool {
    ends(cluster, n, zone).await.iter().any(Option::is_none)
}

async fn put_mesh(cluster: &Cluster, n: u8, name: &str) {
    let mesh = json!({ "type": "Mesh", "name": name, "skipCreatingInitialPolicies": ["*"] });
    let answer = cluster.call(n, "PUT", &format!("/meshes/{name}"), Some(&mesh)).await;
    assert!(matches!(answer, Some((200 | 201, _))), "{answer:?}");
}

async fn leader(cluster: &Cluster, n: u8) -> u8 {
    let mut leader = None;
    wait("there is a leader", async || {
        leader = cluster.status(n).await.get("leader").and_then(Value::as_u64);
        leader.is_some()
    })
    .await;
    leader.unwrap().try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_are_one_control_plane() {
    init();
    let mut cluster = Cluster::prepare(3, 0);
    (1..=3).for_each(|n| cluster.start(n));
    for n in 1..=3 {
        cluster.ready(n).await;
    }
    assert_eq!(cluster.token(1), cluster.token(2));
    assert_eq!(cluster.token(1), cluster.token(3));

    // A write on any node is read on every other one.
    for n in 1..=3 {
        let name = format!("mesh-{n}");
        put_mesh(&cluster, n, &name).await;
        for reader in 1..=3 {
            assert_eq!(cluster.get(reader, &format!("/meshes/{name}")).await["name"], json!(name));
        }
    }
    let first = leader(&cluster, 1).await;
    for n in 1..=3 {
        let over_rest = cluster.get(n, "/cluster").await;
        assert_eq!((&over_rest["nodeId"], &over_rest["leader"]), (&json!(n), &json!(first)));
        assert_eq!(over_rest["members"].as_array().unwrap().len(), 3);
        assert_eq!(over_rest["history"], cluster.status(1).await["history"]);
    }
    wait("all hear all", async || {
        let members = cluster.status(1).await["members"].as_array().cloned().unwrap_or_default();
        members.len() == 3 && members.iter().all(|m| m["healthy"] == json!(true))
    })
    .await;

    // A zone at a node that does not lead is online everywhere.
    let home = first % 3 + 1;
    let others: Vec<u8> = (1..=3).filter(|n| *n != home).collect();
    let stream = connect_zone(&cluster, home, "east").await;
    for n in 1..=3 {
        wait("the zone is online everywhere", async || is_online(&cluster, n, "east").await).await;
    }

    // Its node dies: writes go on, and the zone is shown offline, as of when it was last seen, not gone.
    cluster.kill(home);
    drop(stream);
    put_mesh(&cluster, others[0], "meanwhile").await;
    for n in &others {
        wait("the zone is shown offline", async || {
            let ends = ends(&cluster, *n, "east").await;
            !ends.is_empty() && ends.iter().all(Option::is_some)
        })
        .await;
        let labels = &cluster.get(*n, "/zone-insights/east").await["labels"];
        assert!(labels.get("ursa.io/observed-as-of").is_some_and(Value::is_string), "{labels}");
    }
    // It comes to another node: online again, also there.
    let mut again = connect_zone(&cluster, others[0], "east").await;
    for n in &others {
        wait("the zone is online again", async || is_online(&cluster, *n, "east").await).await;
    }

    // The dead node catches up with both.
    cluster.start(home);
    cluster.ready(home).await;
    assert_eq!(cluster.get(home, "/meshes/meanwhile").await["name"], json!("meanwhile"));
    wait("it knows of the zone", async || is_online(&cluster, home, "east").await).await;

    // An orderly end of the zone's node: the zone is told to go elsewhere, and the node ends well.
    assert_eq!(cluster.stop(others[0]).await, 0);
    let end = loop {
        match again.responses.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stream never ends with OK"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end}");
    put_mesh(&cluster, home, "after").await;
    assert!(data(&cluster, others[0], "observed/east.json").exists(), "what was seen is on disk");

    // Without a majority: not ready, healthy, and it says so.
    cluster.kill(others[1]);
    wait(
        "no majority, not ready",
        async || matches!(cluster.get_plain(home, "/ready").await, Some((503, text)) if text.contains("quorum")),
    )
    .await;
    assert_eq!(cluster.get_plain(home, "/healthy").await.unwrap().0, 200);
    assert_eq!(cluster.status(home).await["quorum"], json!(false));
    let stale = cluster.call(home, "GET", "/meshes/after?stale=true", None).await.unwrap();
    assert_eq!(stale.0, 200, "{stale:?}");

    // All are stopped and started again: nothing is lost.
    cluster.kill(home);
    (1..=3).for_each(|n| cluster.start(n));
    for n in 1..=3 {
        cluster.ready(n).await;
        assert_eq!(cluster.get(n, "/meshes/after").await["name"], json!("after"));
        // From its checkpoint, or another's.
        wait("what was seen is shown", async || {
            let ends = ends(&cluster, n, "east").await;
            !ends.is_empty() && ends.iter().all(Option::is_some)
        })
        .await;
    }
    for n in 1..=3 {
        assert!(!cluster.log(n).contains("panicked"), "node {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_belong_is_kept_out_and_the_others_go_on() {
    init();
    let mut cluster = Cluster::prepare(3, 1);
    (1..=3).for_each(|n| cluster.start(n));
    for n in 1..=3 {
        cluster.ready(n).await;
    }
    put_mesh(&cluster, 1, "before").await;
    assert_eq!(cluster.stop(3).await, 0);

    // It comes back without its folder: it has forgotten what it promised, and says so.
    let (folder, aside) = (cluster.path("data3"), cluster.path("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    cluster.start(3);
    assert_eq!(cluster.ended(3).await, 1);
    assert!(cluster.log(3).contains("another data folder"), "the way out is named");
    put_mesh(&cluster, 2, "meanwhile").await;
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();

    // With the certificate of another cluster, of the same name.
    let (ca, out, ip) = (cluster.path("other-ca"), cluster.path("other-pki3"), cluster.ip(3).to_string());
    assert!(run(&["pki", "init", "--out", &ca, "--cluster", "test"]).status.success());
    assert!(
        run(&["pki", "node", "--ca", &ca, "--id", "3", "--address", &ip, "--out", &out])
            .status
            .success()
    );
    let (mine, theirs) = (cluster.path("pki3"), cluster.path("pki3-mine"));
    std::fs::rename(&mine, &theirs).unwrap();
    std::fs::rename(&out, &mine).unwrap();
    cluster.start(3);
    wait("it says why it is alone", async || {
        let members = cluster.status(3).await["members"].as_array().cloned().unwrap_or_default();
        members.iter().any(|m| m.get("problem").is_some_and(Value::is_string))
    })
    .await;
    assert!(matches!(cluster.get_plain(3, "/ready").await, Some((503, _))));
    put_mesh(&cluster, 1, "still").await;
    cluster.kill(3);

    // With its own again it catches up.
    std::fs::rename(&mine, &out).unwrap();
    std::fs::rename(&theirs, &mine).unwrap();
    cluster.start(3);
    cluster.ready(3).await;
    for name in ["before", "meanwhile", "still"] {
        assert_eq!(cluster.get(3, &format!("/meshes/{name}")).await["name"], json!(name));
    }
}

#[test]
fn a_configuration_that_cannot_work_is_refused_whole() {
    let cluster = Cluster::prepare(3, 3);
    let config = cluster.path("node1.yaml");
    let good = std::fs::read_to_string(&config).unwrap();
    let refused = |text: &str| {
        let file = cluster.path("bad.yaml");
        std::fs::write(&file, text).unwrap();
        let output = run(&["run", "--config", &file]);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let several = refused(
        &good
            .replace("node: { id: 1 }", "node: { id: 9 }")
            .replace("pki1/node.key", "pki1/none.key"),
    );
    assert!(
        several.contains("node.id 9 is not among cluster.members") && several.contains("none.key"),
        "{several}"
    );
    let unknown = refused(&good.replace("  listen:", "  lisen:"));
    assert!(unknown.contains("lisen"), "{unknown}");
    // Another node's certificate.
    let other = refused(
        &good
            .replace("pki1/node.crt", "pki2/node.crt")
            .replace("pki1/node.key", "pki2/node.key"),
    );
    assert!(other.contains("it is node 2's, this is node 1"), "{other}");
    let mixed = refused(&good.replace("pki1/node.key", "pki2/node.key"));
    assert!(mixed.contains("key"), "{mixed}");
}
