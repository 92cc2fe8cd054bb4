//! What an operator meets: stopping a node that cannot start yet, periods that do not fit together, removals that are held.

mod nodes;

use nodes::{Cluster, init, run, wait};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};
use ursa_model::{Kind, Labels, wire};
use ursa_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    kds::kds_sync_service_client::KdsSyncServiceClient,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_waits_for_the_others_ends_in_order_when_told_to() {
    init();
    let mut cluster = Cluster::prepare(3, 0);
    cluster.start(1);
    wait("it waits for the others", async || {
        let listens = cluster.log(1).contains("store is open");
        listens && matches!(cluster.get_plain(1, "/ready").await, Some((503, _)))
    })
    .await;
    assert_eq!(cluster.get_plain(1, "/healthy").await.unwrap().0, 200, "alive without a quorum");
    assert_eq!(cluster.stop(1).await, 0);
    let log = cluster.log(1);
    assert!(log.contains("SIGTERM received") && log.contains("stopped"), "in order");
    assert!(!log.contains("not closed cleanly") && !log.contains("still running"), "{log}");
    // Nothing of it stands in the way of the next start.
    (1..=3).for_each(|n| cluster.start(n));
    for n in 1..=3 {
        cluster.ready(n).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_shows_all_and_says_what_is_configured_otherwise() {
    init();
    let mut cluster = Cluster::prepare(3, 1);
    for n in 1..=3 {
        let heartbeat = if n == 3 { "120ms" } else { "100ms" };
        let file = cluster.path(&format!("node{n}.yaml"));
        let periods = format!("cluster:\n  heartbeat: {heartbeat}\n  election_timeout_min: 400ms\n  election_timeout_max: 800ms\n");
        let text = std::fs::read_to_string(&file).unwrap().replace("cluster:\n", &periods);
        std::fs::write(&file, text).unwrap();
        cluster.start(n);
    }
    for n in 1..=3 {
        cluster.ready(n).await;
    }
    for n in 1..=3_u64 {
        let node = u8::try_from(n).unwrap();
        let mut seen = Value::Null;
        wait("every member's own word is here", async || {
            seen = cluster.status(node).await;
            let members = seen["members"].as_array().cloned().unwrap_or_default();
            let told =
                |m: &Value| m["role"].is_string() && m["applied"].is_u64() && m["ready"] == json!(true) && m["healthy"] == json!(true);
            members.len() == 3 && members.iter().all(told)
        })
        .await;
        assert_eq!(seen["heartbeatMs"], json!(if n == 3 { 120 } else { 100 }));
        assert_eq!(seen["electionTimeoutMaxMs"], json!(800));
        let members = seen["members"].as_array().unwrap();
        let leaders: Vec<&Value> = members.iter().filter(|m| m["role"] == json!("leader")).collect();
        assert!(leaders.len() == 1 && leaders[0]["id"] == seen["leader"], "{seen}");
        for member in members {
            let differs = (member["id"] == json!(3)) != (n == 3);
            let problem = member["problem"].as_str().unwrap_or_default();
            assert_eq!(problem.contains("give all nodes the same"), differs, "{seen}");
            assert!(member["lag"].is_u64() && member.get("snapshot").is_some(), "{seen}");
        }
        let (_, metrics) = cluster.get_plain(node, "/metrics").await.unwrap();
        let leads = u8::from(seen["role"] == json!("leader"));
        for line in [
            format!("\nleader {leads}\n"),
            format!("\nraft_leader_id {}\n", seen["leader"]),
            format!("\nraft_role{{role=\"{}\"}} 1\n", seen["role"].as_str().unwrap()),
            "\nraft_quorum 1\n".to_owned(),
            "\nready 1\n".to_owned(),
            "\nraft_members_healthy 3\n".to_owned(),
            "\nraft_member_healthy{member=\"3\"} 1\n".to_owned(),
            "\nraft_member_lag_entries{member=\"1\"} ".to_owned(),
            "\nraft_quorum_age_seconds ".to_owned(),
        ] {
            assert!(metrics.contains(&line), "{line:?} is not in {metrics}");
        }
    }
    let text = std::fs::read_to_string(cluster.path("node1.yaml")).unwrap();
    let file = cluster.path("bad.yaml");
    std::fs::write(&file, text.replace("election_timeout_min: 400ms", "election_timeout_min: 200ms")).unwrap();
    let refused = run(&["run", "--config", &file]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && told.contains("set it to 300ms or more"), "{told}");
}

/// A stream by which a zone sends, as a stock zone opens it.
struct Up {
    responses: mpsc::Sender<DeltaDiscoveryResponse>,
    _requests: Streaming<DeltaDiscoveryRequest>,
}

async fn zone_sends(cluster: &Cluster, n: u8, names: std::ops::Range<u16>) -> Up {
    let (responses, rx) = mpsc::channel(4);
    let mut request = Request::new(ReceiverStream::new(rx));
    for (name, value) in [("client-id", "east"), ("features", "hash-suffix")] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    let mut client = KdsSyncServiceClient::new(cluster.kds(n).await);
    let requests = client.zone_to_global_sync(request).await.unwrap().into_inner();
    let resources = names.map(|i| {
        let (name, spec) = (format!("a{i}"), json!({ "address": "127.0.2.2", "port": 1000 + i }));
        let labels = Labels::from([("kuma.io/origin".to_owned(), "zone".to_owned())]);
        let bytes = wire::encode(Kind::MeshZoneAddress, "default", &name, &labels, &spec, None).unwrap();
        Resource {
            name: wire::kds_name("default", &name),
            resource: Some(prost_types::Any {
                type_url: wire::RESOURCE_TYPE_URL.into(),
                value: bytes.to_vec(),
            }),
            ..Resource::default()
        }
    });
    let first = DeltaDiscoveryResponse {
        type_url: "MeshZoneAddress".to_owned(),
        nonce: "1".to_owned(),
        resources: resources.collect(),
        ..DeltaDiscoveryResponse::default()
    };
    responses.send(first).await.unwrap();
    Up {
        responses,
        _requests: requests,
    }
}

async fn addresses(cluster: &Cluster, n: u8) -> usize {
    let list = cluster.get(n, "/meshes/default/meshzoneaddresses").await;
    list["items"].as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_removals_are_shown_kept_and_confirmed_at_any_node() {
    init();
    let mut cluster = Cluster::prepare(3, 2);
    (1..=3).for_each(|n| cluster.start(n));
    for n in 1..=3 {
        cluster.ready(n).await;
    }
    let first = zone_sends(&cluster, 1, 0..10).await;
    wait("they are stored", async || addresses(&cluster, 1).await == 10).await;
    drop(first);
    // It comes back with less.
    let second = zone_sends(&cluster, 2, 1..10).await;
    let mut held = Value::Null;
    wait("what it lacks is held", async || {
        held = cluster.get(3, "/held-removals").await;
        held["total"] == json!(1)
    })
    .await;
    let item = &held["items"][0];
    assert_eq!(
        (&item["peer"], &item["kind"], &item["names"], &item["node"]),
        (&json!("east"), &json!("MeshZoneAddress"), &json!(["default/a0"]), &json!(2))
    );
    assert_eq!(
        (&item["waitsFor"], &item["connected"], &item["kept"]),
        (&json!("time"), &json!(true), &json!(false))
    );
    assert!(item["ends"].as_str() > item["since"].as_str(), "{item}");
    assert_eq!(addresses(&cluster, 3).await, 10);

    // Kept by one node's word, for all nodes.
    let kept = cluster.call(1, "POST", "/held-removals/east/keep", None).await;
    assert!(matches!(kept, Some((200, _))), "{kept:?}");
    wait("it is kept", async || {
        let item = cluster.get(3, "/held-removals").await["items"][0].clone();
        item["kept"] == json!(true) && item["waitsFor"] == json!("operator") && item["ends"].is_null()
    })
    .await;
    assert_eq!(
        cluster.get(2, "/zones/east").await["labels"]["ursa.io/held-removals"],
        json!("keep")
    );

    // Nothing else, and nobody else.
    for (path, wanted) in [
        ("/held-removals/east/confirm?kind=Mesh", 404),
        ("/held-removals/east/confirm?kind=Nonsense", 400),
        ("/held-removals/nowhere/confirm", 404),
        ("/held-removals/nowhere/keep", 404),
    ] {
        let answer = cluster.call(1, "POST", path, None).await.unwrap();
        assert_eq!(answer.0, wanted, "{path}: {answer:?}");
    }
    let (config, no_token) = (cluster.path("node3.yaml"), cluster.path("no-token"));
    std::fs::write(&no_token, "nonsense").unwrap();
    let refused = run(&["held-removals", "list", "--config", &config, "--token-file", &no_token]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && told.contains("401"), "{told}");

    // By the command, at a node that neither leads nor serves the zone.
    let listed = run(&["held-removals", "list", "--config", &config]);
    let told = String::from_utf8(listed.stdout).unwrap();
    assert!(
        told.starts_with("east MeshZoneAddress 1: since ") && told.contains("kept"),
        "{told}"
    );
    let confirmed = run(&["held-removals", "confirm", "east", "--kind", "MeshZoneAddress", "--config", &config]);
    assert!(confirmed.status.success(), "{confirmed:?}");
    wait("it is gone", async || addresses(&cluster, 1).await == 9).await;
    wait("nothing is held", async || {
        cluster.get(1, "/held-removals").await["total"] == json!(0)
    })
    .await;
    drop(second.responses);
}
