//! History over three processes: every node tells the same past, a roll-back at one is a roll-back everywhere, it survives a kill, and what
//! the leader lets go is gone on all.

mod nodes;

use nodes::{Cluster, init, wait};
use serde_json::{Value, json};

const P: &str = "/meshes/default/meshtrafficpermissions/p";

/// Writes `p` at node `n` and gives the revision.
async fn put(cluster: &Cluster, n: u8, value: &str) -> u64 {
    let document = json!({
        "type": "MeshTrafficPermission", "mesh": "default", "name": "p",
        "spec": {"rules": [{"default": {"allow": [{"spiffeID": {"type": "Prefix", "value": format!("spiffe://{value}")}}]}}]},
    });
    let answer = cluster.call(n, "PUT", P, Some(&document)).await;
    assert!(matches!(answer, Some((200 | 201, _))), "{answer:?}");
    newest(cluster, n).await
}

/// The newest revision that changed `p`, as node `n` tells it.
async fn newest(cluster: &Cluster, n: u8) -> u64 {
    let path = "/_history?type=MeshTrafficPermission&mesh=default&name=p&size=1";
    let log = cluster.get(n, path).await;
    log["items"][0]["revision"].as_u64().unwrap_or_else(|| panic!("{log}"))
}

fn value(resource: &Value) -> &str {
    resource["spec"]["rules"][0]["default"]["allow"][0]["spiffeID"]["value"]
        .as_str()
        .unwrap_or("?")
}

async fn oldest(cluster: &Cluster, n: u8) -> u64 {
    cluster.get(n, "/_history?size=1").await["oldest"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_have_one_past() {
    init();
    let mut cluster = Cluster::prepare(3, 0);
    for n in 1..=3 {
        let path = cluster.path(&format!("node{n}.yaml"));
        let config = std::fs::read_to_string(&path).unwrap() + "history: { max_revisions: 100 }\n";
        std::fs::write(path, config).unwrap();
        cluster.start(n);
    }
    for n in 1..=3 {
        cluster.ready(n).await;
    }
    let one = put(&cluster, 1, "one").await;
    let two = put(&cluster, 2, "two").await;
    for n in 1..=3 {
        assert_eq!(value(&cluster.get(n, &format!("{P}?revision={one}")).await), "spiffe://one");
        let changes = cluster.get(n, &format!("/_changes?from={one}&to={two}")).await;
        assert_eq!(
            (changes["total"].as_u64(), value(&changes["items"][0]["after"])),
            (Some(1), "spiffe://two")
        );
    }

    // A roll-back at any node, seen at the others at once.
    let body = json!({"to": one, "type": "MeshTrafficPermission", "mesh": "default", "name": "p"});
    let (status, done) = cluster.call(3, "POST", "/_rollback", Some(&body)).await.unwrap();
    assert_eq!((status, done["changes"][0]["operation"].as_str()), (200, Some("update")), "{done}");
    for n in 1..=3 {
        assert_eq!(value(&cluster.get(n, P).await), "spiffe://one");
        assert_eq!(Some(newest(&cluster, n).await), done["revision"].as_u64());
    }

    // What a node knew before it was killed it knows again.
    let before = cluster.get(2, "/_history").await;
    cluster.kill(2);
    cluster.start(2);
    cluster.ready(2).await;
    assert_eq!(cluster.get(2, "/_history").await, before);
    assert_eq!(value(&cluster.get(2, &format!("{P}?revision={two}")).await), "spiffe://two");

    // Too much of it: the leader lets the oldest go, on all nodes alike.
    for round in 0..200u32 {
        put(&cluster, u8::try_from(round % 3).unwrap() + 1, &format!("round-{round}")).await;
    }
    wait("the oldest revisions are gone everywhere", async || {
        let (a, b, c) = (oldest(&cluster, 1).await, oldest(&cluster, 2).await, oldest(&cluster, 3).await);
        let kept = cluster.get(1, &format!("/_history?size=1000&from={a}")).await;
        let kept = kept["items"].as_array().map_or(0, Vec::len);
        a > two && a == b && b == c && (100..=165).contains(&kept)
    })
    .await;
    for n in 1..=3 {
        let (status, gone) = cluster.call(n, "GET", &format!("{P}?revision={one}"), None).await.unwrap();
        let detail = gone["detail"].as_str().unwrap_or_default();
        let named = format!("the oldest that can be read is {}", oldest(&cluster, n).await);
        assert!(status == 410 && detail.contains(&named), "node {n}: {status} {gone}");
    }
    let body = json!({"to": one});
    let (status, gone) = cluster.call(1, "POST", "/_rollback", Some(&body)).await.unwrap();
    assert_eq!(status, 410, "{gone}");
}
