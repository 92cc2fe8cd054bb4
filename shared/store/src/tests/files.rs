//! The whole store on real files: killed, restarted, given to the wrong node.
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ursa_runtime::tasks::Tasks;

use super::{picture, value, write};
use crate::disk::RealDisk;
use crate::{OpenError, Store, StoreConfig};

/// Tells a test process that it is the one to be killed.
const CHILD: &str = "URSA_STORE_TEST_DIR";

async fn open(dir: &Path) -> Result<Store, OpenError> {
    Store::open(StoreConfig::new(dir, 1), Arc::new(RealDisk), &Tasks::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_locked_and_stays_with_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    write(&store, "a", 1).await.unwrap();
    let before = picture(&store.view());
    assert!(matches!(open(dir.path()).await.unwrap_err(), OpenError::Locked(_)));
    store.shutdown().await.unwrap();
    let other = Store::open(StoreConfig::new(dir.path(), 2), Arc::new(RealDisk), &Tasks::new())
        .await
        .unwrap_err();
    assert!(matches!(other, OpenError::OtherNode { found: 1, given: 2, .. }), "{other}");
    let store = open(dir.path()).await.unwrap();
    assert_eq!(picture(&store.view()), before);
    let mut names: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "VERSION",
        "cache",
        "confirmed",
        "encryption.key",
        "keys.json",
        "log",
        "node.json",
        "snapshots",
    ];
    assert_eq!(names, expected);
}

/// Not a test of its own: the process that [`what_was_acknowledged_survives_kill_minus_9`] kills.
#[test]
#[ignore = "started by another test"]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = open(Path::new(&dir)).await.unwrap();
        let start = value(&store.view(), "last").unwrap_or(0);
        let mut writers = Vec::new();
        for lane in 0..8_u64 {
            let store = store.clone();
            writers.push(tokio::spawn(async move {
                for n in start + 1.. {
                    write(&store, &format!("lane{lane}"), n).await.unwrap();
                    write(&store, "last", n).await.unwrap();
                    println!("\nack {lane} {n}");
                }
            }));
        }
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_minus_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = [0_u64; 8];
    for round in 0..3 {
        let program = std::env::current_exe().unwrap();
        let args = ["--exact", "tests::files::child", "--ignored", "--nocapture", "--test-threads=1"];
        let mut child = Command::new(program)
            .args(args)
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = 0;
        for line in lines.by_ref() {
            let line = line.unwrap();
            let Some((lane, n)) = line.strip_prefix("ack ").and_then(|ack| ack.split_once(' ')) else {
                continue;
            };
            acknowledged[lane.parse::<usize>().unwrap()] = n.parse().unwrap();
            heard += 1;
            if heard == 200 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(heard >= 200, "round {round}: it died by itself");
        let store = open(dir.path()).await.unwrap();
        for (lane, newest) in acknowledged.iter().enumerate() {
            let found = value(&store.view(), &format!("lane{lane}")).unwrap_or(0);
            assert!(found >= *newest, "round {round}: lane {lane} is {found}, {newest} was acknowledged");
        }
        store.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_only_dropped_lets_go_of_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    write(&store, "a", 7).await.unwrap();
    drop(store);
    let deadline = tokio::time::Instant::now() + super::PATIENCE;
    let store = loop {
        match open(dir.path()).await {
            Err(OpenError::Locked(_)) if tokio::time::Instant::now() < deadline => tokio::task::yield_now().await,
            opened => break opened.unwrap(),
        }
    };
    assert_eq!(value(&store.view(), "a"), Some(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_the_log_names_file_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    for n in 0..20 {
        write(&store, "a", n).await.unwrap();
    }
    store.shutdown().await.unwrap();
    let path = dir.path().join("log/00000000000000000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let error = open(dir.path()).await.unwrap_err().to_string();
    assert!(error.contains("00000000000000000001.log is damaged at offset "), "{error}");
    bytes[middle] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(value(&open(dir.path()).await.unwrap().view(), "a"), Some(19));
}
