//! Mistakes of operators: each is refused, says so by type, says the way out, and does the group no harm.
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ursa_runtime::tasks::StopReason;

use super::{Ca, Group, Node, free_address, lose, timings, wait, write};
use crate::tests::value;
use crate::{Error, OpenError, Refusal, Store};

/// Waits until `store` has this to say about `node`.
pub(super) async fn problem(store: &Store, node: u64, which: impl Fn(&Refusal) -> bool) -> String {
    wait("the problem is found", || {
        let status = store.peers().unwrap().status();
        let problem = status[&node].problem.clone().filter(|problem| which(problem))?;
        Some(problem.to_string())
    })
    .await
}

/// Waits until the node was told to stop, and why.
pub(super) async fn stopped(node: &Node) -> String {
    wait("the node stops", || match node.tasks().stop_reason() {
        Some(StopReason::Failed { error, .. }) => Some(error),
        _ => None,
    })
    .await
}

pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            match std::fs::copy(entry.path(), to) {
                // Written aside, and renamed since it was listed: by a node that runs, or one that was killed a moment ago.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => {
                    copied.unwrap();
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_cluster() {
    for ca in [Ca::new("test"), Ca::new("other")] {
        let mut group = Group::new(3, timings()).await;
        group.node(3).config.cluster.as_mut().unwrap().tls = tokio::sync::watch::channel(std::sync::Arc::new(ca.tls(3))).1;
        group.start_all().await;
        write(group.store(1), "a", 1).await.unwrap();
        let foreign = |refusal: &Refusal| matches!(refusal, Refusal::ForeignCertificate { .. });
        let text = problem(group.store(3), 1, foreign).await;
        assert!(text.contains("same cluster CA"), "{text}");
        problem(group.store(1), 3, foreign).await;
        assert!(!group.store(3).status().admitted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_node_or_none() {
    let group = Group::new(3, timings()).await;
    let mut config = group.nodes[&3].config.clone();
    let open = |config| Store::open(config, std::sync::Arc::new(crate::disk::RealDisk), Box::leak(Box::default()));
    config.cluster.as_mut().unwrap().tls = tokio::sync::watch::channel(std::sync::Arc::new(group.ca.tls(2))).1;
    let error = open(config.clone()).await.unwrap_err();
    assert!(error.to_string().contains("it is node 2's, this is node 3"), "{error}");
    let mut tls = group.ca.tls(3);
    tls.key_pem = group.ca.tls(3).key_pem;
    config.cluster.as_mut().unwrap().tls = tokio::sync::watch::channel(std::sync::Arc::new(tls)).1;
    let error = open(config.clone()).await.unwrap_err();
    assert!(matches!(&error, OpenError::Certificate { .. }), "{error}");
    config.cluster.as_mut().unwrap().members.remove(&3);
    let error = open(config).await.unwrap_err();
    assert!(matches!(&error, OpenError::Members { .. }), "{error}");
    assert!(!group.folder(3).exists(), "nothing was made before that was clear");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_at_which_another_node_answers() {
    let mut group = Group::new(3, timings()).await;
    let address = group.nodes[&2].address.to_string();
    group.node(1).config.cluster.as_mut().unwrap().dial = BTreeMap::from([(3, address)]);
    group.start_all().await;
    write(group.store(2), "a", 1).await.unwrap();
    let text = problem(group.store(1), 3, |refusal| *refusal == Refusal::OtherNode { asked: 3, is: 2 }).await;
    assert!(text.contains("correct the address of node 3"), "{text}");
    // Node 1 reaches one of the two others, and both reach it.
    write(group.store(1), "a", 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_history() {
    let mut group = Group::of_three().await;
    write(group.store(1), "a", 1).await.unwrap();
    group.level().await;
    let histories = |group: &Group| group.store(1).status().history;
    let ours = histories(&group);
    // The same cluster, founded a second time by mistake, elsewhere; then one of its nodes is brought here.
    let mut second = Group::new(3, timings()).await;
    for node in second.nodes.values_mut() {
        let tls = group.ca.tls(node.config.node_id);
        node.config.cluster.as_mut().unwrap().tls = tokio::sync::watch::channel(std::sync::Arc::new(tls)).1;
    }
    second.start_all().await;
    write(second.store(1), "b", 1).await.unwrap();
    second.level().await;
    second.node(3).kill().await;
    group.node(3).kill().await;
    lose(&group.folder(3));
    copy(&second.folder(3), &group.folder(3));
    // Nobody here has met node 3 with a folder of its own, so that only the history tells.
    for id in [1, 2] {
        group.node(id).kill().await;
        let peers = group.folder(id).join("peers.json");
        let mut known: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&std::fs::read(&peers).unwrap()).unwrap();
        known.remove("3");
        std::fs::write(&peers, serde_json::to_vec(&known).unwrap()).unwrap();
        std::fs::write(group.folder(3).join("peers.json"), "{}").unwrap();
    }
    group.start_all().await;
    write(group.store(1), "a", 2).await.unwrap();
    let other = |refusal: &Refusal| matches!(refusal, Refusal::OtherHistory { .. });
    let text = problem(group.store(1), 3, other).await;
    assert!(text.contains(&ours.to_string()) && text.contains("never mixed"), "{text}");
    problem(group.store(3), 1, other).await;
    assert_eq!(value(&group.store(3).view(), "a"), None);
    assert_eq!(value(&group.store(1).view(), "b"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_takes_no_part() {
    let mut group = Group::of_three().await;
    let leader = group.leader().await;
    let (wiped, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    // Acknowledged by the leader and the node that is wiped afterwards, alone.
    group.node(other).kill().await;
    write(group.store(leader), "a", 1).await.unwrap();
    group.node(wiped).kill().await;
    lose(&group.folder(wiped));
    group.node(wiped).start().await.unwrap();
    let text = stopped(group.nodes.get(&wiped).unwrap()).await;
    assert!(
        text.contains("another data folder") && text.contains("a backup of it will not do"),
        "{text}"
    );
    let error = write(group.store(wiped), "a", 2).await.unwrap_err();
    assert!(
        matches!(&error, Error::Stopped(why) if why.contains("another data folder")),
        "{error}"
    );
    // Also to one that was away meanwhile it gives no vote: what was acknowledged is not lost.
    group.node(leader).kill().await;
    group.node(wiped).kill().await;
    group.node(other).config.propose_timeout = Duration::from_secs(2);
    group.node(other).start().await.unwrap();
    group.node(wiped).start().await.unwrap();
    stopped(group.nodes.get(&wiped).unwrap()).await;
    write(group.store(other), "a", 3).await.unwrap_err();
    assert!(!group.store(other).is_leader() && group.store(other).status().role != crate::Role::Leader);
    // The others have all of it.
    group.node(leader).start().await.unwrap();
    assert_eq!(value(&group.store(other).read().await.unwrap(), "a"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_with_one_id() {
    let group = Group::of_three().await;
    write(group.store(1), "a", 1).await.unwrap();
    // On a folder of its own.
    let mut config = group.nodes[&3].config.clone();
    let dir = tempfile::tempdir().unwrap();
    config.data_dir = dir.path().join("fresh");
    let address = free_address().await;
    let disk = group.nodes[&3].disk.clone();
    let mut twin = Node {
        config,
        disk,
        address,
        others: axum::Router::new(),
        running: None,
    };
    twin.start().await.unwrap();
    let text = stopped(&twin).await;
    assert!(text.contains("node 3 with another data folder"), "{text}");
    twin.kill().await;
    // The true one goes on.
    write(group.store(3), "a", 2).await.unwrap();
    // On the same folder.
    let mut config = group.nodes[&3].config.clone();
    let tasks = ursa_runtime::Tasks::new();
    let error = Store::open(config.clone(), twin.disk.clone(), &tasks).await.unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    // On a copy of it: the group cannot tell which one is right, but it never listens to both.
    config.data_dir = dir.path().join("copy");
    copy(&group.folder(3), &config.data_dir);
    twin.config = config;
    twin.start().await.unwrap();
    let text = stopped(&group.nodes[&3]).await;
    assert!(text.contains("in one place only"), "{text}");
    twin.kill().await;
    write(group.store(1), "a", 3).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_of_a_newer_version_or_without_its_log() {
    let mut group = Group::of_three().await;
    group.node(3).kill().await;
    let version = group.folder(3).join("VERSION");
    std::fs::write(&version, "9\n").unwrap();
    let error = group.node(3).start().await.unwrap_err();
    assert!(
        matches!(&error, OpenError::Newer { found: 9, .. }) && error.to_string().contains("run the version"),
        "{error}"
    );
    std::fs::write(&version, "2\n").unwrap();
    let log = group.folder(3).join("log");
    std::fs::rename(&log, group.folder(3).join("aside")).unwrap();
    let error = group.node(3).start().await.unwrap_err();
    assert!(matches!(&error, OpenError::LogLost { .. }), "{error}");
    std::fs::remove_dir_all(&log).ok();
    std::fs::rename(group.folder(3).join("aside"), &log).unwrap();
    group.node(3).start().await.unwrap();
    write(group.store(3), "a", 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_was_started_more_often_than_the_original() {
    let mut group = Group::of_three().await;
    write(group.store(1), "a", 1).await.unwrap();
    group.level().await;
    group.node(3).kill().await;
    let backup = group.folder(3).with_extension("backup");
    copy(&group.folder(3), &backup);
    // The original goes on, and promises something that the backup knows nothing of.
    group.node(3).start().await.unwrap();
    write(group.store(3), "a", 2).await.unwrap();
    for other in [1, 2] {
        wait("it has met all", || group.store(3).status().peers[&other].answered_ago).await;
    }
    group.node(3).kill().await;
    let lost = group.folder(3).with_extension("original");
    std::fs::rename(group.folder(3), &lost).unwrap();
    std::fs::rename(&backup, group.folder(3)).unwrap();
    for start in 0..5 {
        group.node(3).start().await.unwrap();
        let text = stopped(&group.nodes[&3]).await;
        assert!(text.contains("a restored backup"), "start {start}: {text}");
        group.node(3).kill().await;
    }
    // Nobody is harmed, and the original is still the one that is known.
    write(group.store(1), "a", 3).await.unwrap();
    assert!([1, 2].iter().all(|id| group.nodes[id].tasks().stop_reason().is_none()));
    std::fs::rename(group.folder(3), &backup).unwrap();
    std::fs::rename(&lost, group.folder(3)).unwrap();
    group.node(3).start().await.unwrap();
    write(group.store(3), "a", 4).await.unwrap();
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_cluster_is_not_enough() {
    use axum::routing::post;
    use tower::Service;

    let mut group = Group::new(3, timings()).await;
    let stranger = free_address().await;
    // It knows all of them, none knows it.
    let mut config = group.nodes[&3].config.clone();
    let dir = tempfile::tempdir().unwrap();
    (config.node_id, config.data_dir) = (4, dir.path().join("4"));
    let cluster = config.cluster.as_mut().unwrap();
    cluster.members.insert(4, stranger.to_string());
    cluster.tls = tokio::sync::watch::channel(std::sync::Arc::new(group.ca.tls(4))).1;
    for id in 1..=3 {
        group.node(id).others = axum::Router::new().route("/other.Service/Call", post(|| async { "in" }));
    }
    group.start_all().await;
    write(group.store(1), "a", 1).await.unwrap();
    let disk = group.nodes[&3].disk.clone();
    let mut node = Node {
        config,
        disk,
        address: stranger,
        others: axum::Router::new(),
        running: None,
    };
    node.start().await.unwrap();
    let refused = |refusal: &Refusal| *refusal == Refusal::NotMember { node: 4, here: 1 };
    let text = problem(node.store(), 1, refused).await;
    assert!(text.contains("add it to the group first"), "{text}");
    assert!(!node.store().status().admitted);
    let known = std::fs::read_to_string(group.folder(1).join("peers.json")).unwrap();
    assert!(known.contains("\"3\"") && !known.contains("\"4\""), "{known}");
    // Neither to the other services of that listener.
    let call = |store: Store| async move {
        let mut channel = store.peers().unwrap().channel(1);
        std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
        let request = http::Request::post("http://node/other.Service/Call").body(tonic::body::Body::empty());
        channel.call(request.unwrap()).await.unwrap()
    };
    let answer = call(node.store().clone()).await;
    assert_eq!(answer.headers()["grpc-status"], "7");
    let text = answer.headers()["grpc-message"].to_str().unwrap();
    assert!(text.contains("node 4 is no member"), "{text}");
    let answer = call(group.store(2).clone()).await;
    assert!(
        answer.status().is_success() && !answer.headers().contains_key("grpc-status"),
        "a member gets in: {answer:?}"
    );
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn founders_that_were_given_different_members() {
    let mut group = Group::new(3, timings()).await;
    let right = group.nodes[&2].config.cluster.as_ref().unwrap().members.clone();
    let mut wrong = right.clone();
    wrong.insert(3, "127.0.0.1:1".to_owned());
    group.node(2).config.cluster.as_mut().unwrap().members = wrong;
    group.node(2).config.cluster.as_mut().unwrap().dial = BTreeMap::from([(3, right[&3].clone())]);
    group.start_all().await;
    for (id, other) in [(1, 2), (2, 1), (3, 2)] {
        let which = |refusal: &Refusal| matches!(refusal, Refusal::OtherMembers { .. });
        let text = problem(group.store(id), other, which).await;
        assert!(text.contains("3=127.0.0.1:1") && text.contains("the same list"), "{text}");
    }
    for id in 1..=3 {
        assert!(!group.store(id).is_founded() && !group.store(id).status().admitted, "node {id}");
    }
    // Corrected, they begin.
    group.node(2).kill().await;
    group.node(2).config.cluster.as_mut().unwrap().members = right;
    group.node(2).start().await.unwrap();
    write(group.store(2), "a", 1).await.unwrap();
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_has_lost_who_the_others_are() {
    let mut group = Group::of_three().await;
    write(group.store(1), "a", 1).await.unwrap();
    group.node(3).kill().await;
    let (peers, aside) = (group.folder(3).join("peers.json"), group.folder(3).join("aside"));
    std::fs::rename(&peers, &aside).unwrap();
    let error = group.node(3).start().await.unwrap_err();
    assert!(matches!(&error, OpenError::PeersLost { .. }), "{error}");
    assert!(error.to_string().contains("restore that file") && !peers.exists(), "{error}");
    std::fs::rename(&aside, &peers).unwrap();
    group.node(3).start().await.unwrap();
    write(group.store(3), "a", 2).await.unwrap();
}
