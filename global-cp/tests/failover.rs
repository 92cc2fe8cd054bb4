//! The leader dies or hangs: whoever asks a surviving node is answered by the next leader, and does not hear of the change.

mod nodes;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures::future::join_all;
use nodes::{Cluster, init, wait};
use serde_json::{Value, json};
use tokio::time::Instant;

/// A refusal that comes sooner is an early one: reads are held for 5 s, writes for 10 s.
const HELD: Duration = Duration::from_secs(4);

/// What a client of one node was told that it should not have been.
async fn client(cluster: &Cluster, node: u8, name: &str, stop: &AtomicBool) -> Vec<String> {
    let mut bad = Vec::new();
    for n in 0.. {
        let path = format!("/meshes/{name}-{n}");
        let mesh = json!({ "type": "Mesh", "name": format!("{name}-{n}"), "skipCreatingInitialPolicies": ["*"] });
        for (method, body) in [("PUT", Some(&mesh)), ("GET", None)] {
            let asked = Instant::now();
            match cluster.call(node, method, &path, body).await {
                Some((200 | 201, _)) => {}
                // It was held as long as it may be: elections take their time on this machine.
                Some(_) if asked.elapsed() >= HELD => break,
                other => bad.push(format!("{method} {path} at {node}: {other:?}")),
            }
        }
        if stop.load(Ordering::SeqCst) {
            break;
        }
    }
    bad
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_of_another_node_hears_of_the_loss_of_the_leader() {
    init();
    let mut cluster = Cluster::prepare(3, 0);
    (1..=3).for_each(|n| cluster.start(n));
    for n in 1..=3 {
        cluster.ready(n).await;
    }
    for signal in ["KILL", "STOP", "KILL"] {
        let mut leader = 0;
        wait("all know the leader", async || {
            let mut known = Vec::new();
            for n in 1..=3 {
                known.push(cluster.status(n).await.get("leader").and_then(Value::as_u64));
            }
            leader = known[0].and_then(|id| u8::try_from(id).ok()).unwrap_or_default();
            leader != 0 && known.iter().all(|k| *k == known[0])
        })
        .await;
        let survivors: Vec<u8> = (1..=3).filter(|n| *n != leader).collect();
        let stop = AtomicBool::new(false);
        let clients = survivors.iter().flat_map(|n| (0..3).map(move |c| (*n, c)));
        let clients = join_all(clients.map(|(n, c)| {
            let (cluster, stop) = (&cluster, &stop);
            async move { client(cluster, n, &format!("{}-{leader}-{n}-{c}", signal.to_lowercase()), stop).await }
        }));
        let kill = async {
            cluster.signal(leader, signal);
            wait("another one leads", async || {
                let mut next = true;
                for n in &survivors {
                    let seen = cluster.status(*n).await.get("leader").and_then(Value::as_u64);
                    next &= seen.is_some_and(|id| id != u64::from(leader));
                }
                next
            })
            .await;
            stop.store(true, Ordering::SeqCst);
        };
        let (bad, ()) = tokio::join!(clients, kill);
        let bad: Vec<String> = bad.into_iter().flatten().collect();
        assert!(bad.is_empty(), "{} answers: {bad:#?}", bad.len());
        if signal == "STOP" {
            cluster.signal(leader, "CONT");
        } else {
            assert_ne!(cluster.ended(leader).await, 0);
            cluster.start(leader);
            // From its first answer on it refuses nothing early.
            wait("the node that comes back answers", async || {
                let asked = Instant::now();
                match cluster.call(leader, "GET", "/meshes/default", None).await {
                    None => false,
                    Some((200, _)) => true,
                    Some((status, body)) => {
                        assert!(asked.elapsed() >= HELD, "{status} {body}");
                        false
                    }
                }
            })
            .await;
        }
        cluster.ready(leader).await;
    }
}
