//! A node whose log was cut while it was down: it takes no part, by its own note or by what the others know, and nobody else is harmed.
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::misuse::{problem, stopped};
use super::{Group, timings, wait, write};
use crate::tests::value;
use crate::{OpenError, Refusal};

const CUT: fn(&Refusal) -> bool = |refusal| matches!(refusal, Refusal::Shortened { .. });

/// The newest file of a node's log.
fn newest(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder.join("log")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == "log")).max().unwrap()
}

/// More than what a file begins with: the rest are records.
const BEGINNING: usize = 1500;

/// Where the newest file's data ends. Files with next to none are removed first.
fn data_end(folder: &Path) -> (PathBuf, usize) {
    loop {
        let file = newest(folder);
        let bytes = std::fs::read(&file).unwrap();
        match bytes.iter().rposition(|byte| *byte != 0) {
            Some(end) if end >= BEGINNING => return (file, end),
            _ => std::fs::remove_file(file).unwrap(),
        }
    }
}

/// Cuts the last records off, and the space that was taken ahead.
fn cut_tail(folder: &Path) {
    let (file, end) = data_end(folder);
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(end as u64 - 600).unwrap();
}

/// Takes the newest file with records away.
fn cut_file(folder: &Path) {
    std::fs::remove_file(data_end(folder).0).unwrap();
}

/// Three nodes with small files, and a follower of theirs.
async fn with_follower() -> (Group, u64, u64, u64) {
    let mut group = Group::new(3, timings()).await;
    for node in group.nodes.values_mut() {
        node.config.log.segment_bytes = 4096;
    }
    group.start_all().await;
    let leader = group.leader().await;
    (group, leader, leader % 3 + 1, (leader + 1) % 3 + 1)
}

async fn fill(group: &Group, leader: u64) {
    for n in 0..40 {
        write(group.store(leader), "a", n).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_notices_by_itself_that_its_log_was_cut() {
    let cuts: [fn(&Path); 2] = [cut_tail, cut_file];
    for cut in cuts {
        let (mut group, leader, cut_one, _) = with_follower().await;
        fill(&group, leader).await;
        group.level().await;
        group.node(cut_one).kill().await;
        let (folder, aside) = (group.folder(cut_one), group.folder(cut_one).with_extension("whole"));
        super::misuse::copy(&folder, &aside);
        cut(&folder);
        for _ in 0..3 {
            let error = group.node(cut_one).start().await.unwrap_err();
            assert!(matches!(&error, OpenError::Shortened { .. }), "{error}");
            let text = error.to_string();
            let log = format!("{}/", folder.join("log").display());
            assert!(text.contains(&log) && text.contains("an id that was never used"), "{text}");
        }
        let term = group.term();
        write(group.store(leader), "a", 100).await.unwrap();
        assert_eq!((group.term(), group.store(leader).is_leader()), (term, true));
        // Put back as it was it takes part again.
        std::fs::rename(&folder, folder.with_extension("cut")).unwrap();
        std::fs::rename(&aside, &folder).unwrap();
        group.node(cut_one).start().await.unwrap();
        assert_eq!(value(&group.store(cut_one).read().await.unwrap(), "a"), Some(100));
        group.level().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_know_what_a_node_had_that_has_lost_its_note_too() {
    let cuts: [fn(&Path); 2] = [cut_tail, cut_file];
    for cut in cuts {
        let (mut group, leader, cut_one, other) = with_follower().await;
        fill(&group, leader).await;
        group.level().await;
        group.node(cut_one).kill().await;
        // The leader loses sight of it.
        write(group.store(leader), "a", 100).await.unwrap();
        let noted = group.folder(leader).join("peers.json");
        wait("it is written down what the follower had", || {
            let known: serde_json::Value = serde_json::from_slice(&std::fs::read(&noted).unwrap()).unwrap();
            known[cut_one.to_string()]["promise"]["index"].as_u64()
        })
        .await;
        let folder = group.folder(cut_one);
        cut(&folder);
        std::fs::remove_file(folder.join("confirmed")).unwrap();
        let term = group.term();
        group.node(cut_one).start().await.unwrap();
        let text = stopped(&group.nodes[&cut_one]).await;
        assert!(text.contains("that it had confirmed") && text.contains("never used"), "{text}");
        let text = problem(group.store(leader), cut_one, CUT).await;
        assert!(text.contains(&format!("node {cut_one} has come back without")), "{text}");
        write(group.store(leader), "a", 101).await.unwrap();
        write(group.store(other), "a", 102).await.unwrap();
        assert_eq!((group.store(leader).is_leader(), group.store(leader).status().term), (true, term));
        for id in [leader, other] {
            assert_eq!(group.nodes[&id].tasks().stop_reason(), None, "node {id}");
        }
    }
}

/// Also when the one that knows best is gone by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_log_was_cut_gives_no_vote_to_one_that_was_away() {
    let (mut group, leader, cut_one, other) = with_follower().await;
    group.level().await;
    group.node(other).kill().await;
    // Acknowledged by the leader and the one that is cut afterwards, alone.
    fill(&group, leader).await;
    write(group.store(leader), "b", 7).await.unwrap();
    group.node(cut_one).kill().await;
    let folder = group.folder(cut_one);
    let aside = folder.with_extension("whole");
    super::misuse::copy(&folder, &aside);
    cut_file(&folder);
    std::fs::remove_file(folder.join("confirmed")).unwrap();
    // The other one comes back, hears of it, and has nothing itself yet.
    group.node(leader).config.propose_timeout = Duration::from_millis(1);
    group.node(other).config.propose_timeout = Duration::from_secs(2);
    let members = group.node(other).config.cluster.clone().unwrap().members;
    assert_eq!(members.len(), 3);
    group.node(other).start().await.unwrap();
    wait("it is told what the third one had", || {
        let known = group.store(other).peers().unwrap().shared.promises.all();
        known.contains_key(&cut_one).then_some(())
    })
    .await;
    group.node(leader).kill().await;
    group.node(cut_one).start().await.unwrap();
    let text = stopped(&group.nodes[&cut_one]).await;
    assert!(text.contains("its log was cut"), "{text}");
    write(group.store(other), "a", 1000).await.unwrap_err();
    assert!(!group.store(other).is_leader());
    // Nothing is lost.
    group.node(leader).start().await.unwrap();
    assert_eq!(value(&group.store(other).read().await.unwrap(), "b"), Some(7));
}

/// Nobody remembers but the leader's core, which takes it for granted that no follower ever lacks what it confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_does_not_stop_over_a_follower_that_was_cut() {
    let (mut group, leader, cut_one, other) = with_follower().await;
    fill(&group, leader).await;
    group.level().await;
    group.node(cut_one).kill().await;
    let folder = group.folder(cut_one);
    cut_tail(&folder);
    std::fs::remove_file(folder.join("confirmed")).unwrap();
    // As by a program that does not say where its log ended.
    let silent = |store: &crate::Store| {
        let shared = &store.peers().unwrap().shared;
        shared.faults.hides_log_end.store(true, std::sync::atomic::Ordering::Release);
    };
    group.node(cut_one).start_after(silent).await.unwrap();
    let text = stopped(&group.nodes[&cut_one]).await;
    assert!(text.contains("its log was cut"), "{text}");
    problem(group.store(leader), cut_one, CUT).await;
    write(group.store(other), "a", 1001).await.unwrap();
    assert!(group.store(leader).is_leader());
    assert_eq!(group.nodes[&leader].tasks().stop_reason(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_others_does_not_forget_silently_either() {
    let dir = tempfile::tempdir().unwrap();
    let open = || async {
        let tasks = ursa_runtime::Tasks::new();
        let opened = crate::Store::open(
            crate::StoreConfig::new(dir.path(), 1),
            std::sync::Arc::new(crate::disk::RealDisk),
            &tasks,
        );
        opened.await.map(|store| (store, tasks))
    };
    let (store, tasks) = open().await.unwrap();
    for n in 0..10 {
        write(&store, "a", n).await.unwrap();
    }
    store.shutdown().await.unwrap();
    tasks.shutdown(super::PATIENCE).await;
    drop(store);
    cut_tail(dir.path());
    let error = open().await.unwrap_err();
    assert!(
        matches!(&error, OpenError::Shortened { .. }) && error.to_string().contains("restored from a backup"),
        "{error}"
    );
}
