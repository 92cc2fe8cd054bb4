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

/// What node `n` of three, of which the third has other periods, should show and does not.
fn lacking(n: u8, seen: &Value, metrics: &str) -> Vec<String> {
    let mut lacks = Vec::new();
    let mut check = |what: String, is: bool| {
        if !is {
            lacks.push(what);
        }
    };
    check("heartbeat".into(), seen["heartbeatMs"] == json!(if n == 3 { 120 } else { 100 }));
    check("timeout".into(), seen["electionTimeoutMaxMs"] == json!(800));
    let members = seen["members"].as_array().cloned().unwrap_or_default();
    check("members".into(), members.len() == 3);
    let leaders: Vec<&Value> = members.iter().filter(|m| m["role"] == json!("leader")).collect();
    check("one leader".into(), leaders.len() == 1 && leaders[0]["id"] == seen["leader"]);
    for member in &members {
        let id = &member["id"];
        check(
            format!("health of {id}"),
            member["healthy"] == json!(true) && member["ready"] == json!(true),
        );
        let logs = ["lastLog", "applied", "lag", "term", "revision"]
            .iter()
            .all(|field| member[*field].is_u64());
        check(
            format!("the word of {id}"),
            logs && member["role"].is_string() && member.get("snapshot").is_some(),
        );
        let problem = member["problem"].as_str().unwrap_or_default();
        let differs = (*id == json!(3)) != (n == 3);
        check(
            format!("what differs at {id}"),
            problem.contains("give all nodes the same") == differs,
        );
    }
    for line in [
        format!("leader {}", u8::from(seen["role"] == json!("leader"))),
        format!("raft_leader_id {}", seen["leader"]),
        format!("raft_role{{role=\"{}\"}} 1", seen["role"].as_str().unwrap_or_default()),
        "raft_quorum 1".to_owned(),
        "ready 1".to_owned(),
        "raft_members_healthy 3".to_owned(),
        "raft_member_healthy{member=\"3\"} 1".to_owned(),
    ] {
        check(line.clone(), metrics.lines().any(|l| l == line));
    }
    for begin in [
        "raft_member_lag_entries{member=\"1\"} ",
        "raft_quorum_age_seconds ",
        "raft_applied_index ",
        "store_revision ",
    ] {
        check(begin.to_owned(), metrics.lines().any(|l| l.starts_with(begin)));
    }
    lacks
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
    for n in 1..=3 {
        let mut lacks = Vec::new();
        wait("every member's own word is here, and the same as metrics", async || {
            let seen = cluster.status(n).await;
            let (_, metrics) = cluster.get_plain(n, "/metrics").await.unwrap_or_default();
            let now = lacking(n, &seen, &metrics);
            if now != lacks {
                eprintln!("node {n}: not yet {now:?} in {seen}");
            }
            lacks = now;
            lacks.is_empty()
        })
        .await;
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
