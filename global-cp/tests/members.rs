//! Who is in a control plane of several nodes, changed while it runs, by its operator's commands: a dead node is replaced, a token lets one
//! node in once, what would lose the majority is refused, who has left stays out; and one node grows into three.

mod nodes;

use nodes::{Cluster, init, run, wait};
use serde_json::{Value, json};

/// A command as an operator on node `n` gives it: exit, what it prints, what it says.
fn member(cluster: &Cluster, n: u8, args: &[&str]) -> (bool, String, String) {
    let config = cluster.path(&format!("node{n}.yaml"));
    let mut all = vec!["member"];
    all.extend(args);
    all.extend(["--config", &config]);
    let output = run(&all);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn done(cluster: &Cluster, n: u8, args: &[&str]) -> String {
    let (ok, out, err) = member(cluster, n, args);
    assert!(ok, "member {args:?}: {out} {err}");
    out
}

#[track_caller]
fn refused(cluster: &Cluster, n: u8, args: &[&str], words: &str) {
    let (ok, out, err) = member(cluster, n, args);
    assert!(!ok && err.contains(words), "member {args:?}: {out} {err}");
}

/// Changes a node's configuration.
fn edit(cluster: &Cluster, n: u8, change: impl FnOnce(String) -> String) {
    let path = cluster.path(&format!("node{n}.yaml"));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, change(text)).unwrap();
}

fn without(text: &str, line: &str) -> String {
    text.lines().filter(|at| !at.contains(line)).map(|at| format!("{at}\n")).collect()
}

async fn put_mesh(cluster: &Cluster, n: u8, name: &str) {
    let mesh = json!({ "type": "Mesh", "name": name, "skipCreatingInitialPolicies": ["*"] });
    let answer = cluster.call(n, "PUT", &format!("/meshes/{name}"), Some(&mesh)).await;
    assert!(matches!(answer, Some((200 | 201, _))), "{answer:?}");
}

async fn members_are(cluster: &Cluster, n: u8, ids: &[u64]) {
    wait("these are the members", async || {
        let members = cluster.status(n).await["members"].as_array().cloned().unwrap_or_default();
        let mut seen: Vec<u64> = members.iter().filter_map(|m| m["id"].as_u64()).collect();
        seen.sort_unstable();
        seen == ids
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_replaced_and_stays_out() {
    init();
    let mut cluster = Cluster::prepare(4, 0);
    let (token_file, address) = (cluster.path("token"), format!("{}:5683", cluster.ip(4)));
    for n in 1..=3 {
        edit(&cluster, n, |text| without(&text, "id: 4,"));
    }
    edit(&cluster, 4, |text| {
        text.replace(
            "cluster:\n",
            &format!("cluster:\n  first_start: join\n  join_token_file: {token_file}\n"),
        )
    });
    (1..=3).for_each(|n| cluster.start(n));
    for n in 1..=3 {
        cluster.ready(n).await;
    }
    put_mesh(&cluster, 1, "before").await;

    // Nobody but an administrator.
    std::fs::write(cluster.path("nobody"), "nobody").unwrap();
    let add = ["add", "--id", "4", "--member-address", &address];
    let nobody = cluster.path("nobody");
    let by_nobody = [&add[..], &["--token-file", &nobody]].concat();
    refused(&cluster, 1, &by_nobody, "401");

    // Not without a token, and not with one that somebody made up.
    std::fs::write(&token_file, "4.guessed\n").unwrap();
    cluster.start(4);
    assert_eq!(cluster.ended(4).await, 1);
    assert!(cluster.log(4).contains("node 4 was given no token"));

    cluster.kill(3);
    let token = done(&cluster, 2, &add);
    assert!(
        !cluster.log(1).contains(&token) && !cluster.log(2).contains(&token),
        "it is in no log"
    );
    std::fs::write(&token_file, format!("{token}\n")).unwrap();
    cluster.start(4);
    cluster.ready(4).await;
    members_are(&cluster, 1, &[1, 2, 3, 4]).await;
    wait("it is shown as what it is", async || {
        done(&cluster, 1, &["list"]).contains("4 127.") && done(&cluster, 1, &["list"]).contains("learner")
    })
    .await;
    refused(&cluster, 1, &["transfer", "--to", "4"], "node 4 has no vote");
    assert_eq!(done(&cluster, 1, &["promote", "4", "--instead-of", "3"]), "Node 4 has a vote.");
    for n in [1, 2, 4] {
        members_are(&cluster, n, &[1, 2, 4]).await;
    }
    put_mesh(&cluster, 4, "after").await;

    // The dead one comes back: it learns that it has left, every time.
    for _ in 0..2 {
        cluster.start(3);
        assert_eq!(cluster.ended(3).await, 1);
    }
    assert!(cluster.log(3).contains("node 3 was removed from the group"));
    let again = format!("{}:5683", cluster.ip(3));
    refused(
        &cluster,
        1,
        &["add", "--id", "3", "--member-address", &again],
        "an id is never used twice",
    );

    // With one dead, nobody else may go.
    cluster.kill(2);
    refused(&cluster, 4, &["remove", "1"], "a majority of 2 must answer");
    cluster.start(2);
    cluster.ready(2).await;
    assert_eq!(done(&cluster, 2, &["transfer", "--to", "4"]), "Node 4 leads.");
    wait("all know who leads", async || cluster.status(2).await["leader"] == json!(4)).await;
    done(&cluster, 2, &["remove", "1"]);
    assert_eq!(cluster.ended(1).await, 1);
    for n in [2, 4] {
        members_are(&cluster, n, &[2, 4]).await;
        for name in ["before", "after"] {
            assert_eq!(cluster.get(n, &format!("/meshes/{name}")).await["name"], json!(name));
        }
    }
    put_mesh(&cluster, 2, "last").await;
    for n in 1..=4 {
        assert!(!cluster.log(n).contains("panicked"), "node {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_grows_into_three_and_the_empty_ones_wait_for_it() {
    init();
    let mut cluster = Cluster::prepare(3, 1);
    let several = std::fs::read_to_string(cluster.path("node1.yaml")).unwrap();
    // Alone; on its certificate, so that its clients notice nothing later.
    let (alone, _) = several.split_once("cluster:").unwrap();
    let pki = cluster.path("pki1");
    let tls = format!("tls: {{ cert_file: {pki}/node.crt, key_file: {pki}/node.key, ca_file: {pki}/ca.crt }}\n");
    std::fs::write(cluster.path("node1.yaml"), format!("{alone}{tls}")).unwrap();
    cluster.start(1);
    cluster.ready(1).await;
    put_mesh(&cluster, 1, "mine").await;
    let history = cluster.status(1).await["history"].clone();
    assert_eq!(cluster.stop(1).await, 0);

    for n in [2, 3] {
        edit(&cluster, n, |text| text.replace("cluster:\n", "cluster:\n  first_start: wait\n"));
        cluster.start(n);
    }
    wait("the empty ones have met", async || {
        let members = cluster.status(2).await;
        cluster.log(2).contains("store is open") && cluster.log(3).contains("store is open") && members["admitted"] == json!(false)
    })
    .await;
    std::fs::write(cluster.path("node1.yaml"), several).unwrap();
    cluster.start(1);
    for n in 1..=3 {
        cluster.ready(n).await;
        members_are(&cluster, n, &[1, 2, 3]).await;
        assert_eq!(cluster.status(n).await["history"], history, "nothing was founded beside it");
        assert_eq!(cluster.get(n, "/meshes/mine").await["name"], json!("mine"));
    }
    wait("three have a vote", async || {
        let members = cluster.status(1).await["members"].as_array().cloned().unwrap_or_default();
        let role = |m: &Value| m["role"].as_str().unwrap_or_default().to_owned();
        members
            .iter()
            .filter(|m| ["leader", "follower"].contains(&role(m).as_str()))
            .count()
            == 3
    })
    .await;
    cluster.kill(1);
    put_mesh(&cluster, 3, "ours").await;
}
