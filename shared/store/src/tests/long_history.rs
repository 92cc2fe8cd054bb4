//! What a long history costs a node: memory, and the time of a start.
//! Not a check: `cargo test -p ursa-store --lib -- --ignored --nocapture restart_with_a_long_history`; RESOURCES and REVISIONS may be set.
//! The folder is TMPDIR's.
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;
use ursa_runtime::tasks::Tasks;
use ursa_state::Changeset;

use super::PATIENCE;
use crate::disk::RealDisk;
use crate::{Store, StoreConfig};

/// Writers at once: they share syncs, or a million revisions would take an hour.
const WRITERS: u64 = 256;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn line(text: &str) {
    println!("{text}");
    std::io::stdout().flush().unwrap();
}

/// Resident memory of this process, MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Size of all files below a folder, MiB.
fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let bytes = |path: &Path| path.metadata().unwrap().len() >> 20;
    entries
        .map(|entry| entry.path())
        .map(|path| if path.is_dir() { size(&path) } else { bytes(&path) })
        .sum()
}

/// A resource of about 512 bytes that is never the same twice, nor easy to compress.
fn resource(number: u64, n: u64) -> Changeset {
    let mut seed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let text: String = (0..28)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            format!("{seed:016x}")
        })
        .collect();
    let put = ursa_state::Put {
        key: super::key(&format!("resource-{number}")),
        labels: Default::default(),
        spec: serde_json::json!({ "data": text }),
        status: None,
        owner: None,
        expect: ursa_state::Expect::Any,
    };
    crate::testing::changeset(1_700_000_000_000 + n, vec![ursa_state::Op::Put(put)])
}

async fn open(dir: &Path) -> (Store, Tasks) {
    let tasks = Tasks::new();
    let begin = Instant::now();
    let store = Store::open(StoreConfig::new(dir, 1), Arc::new(RealDisk), &tasks).await.unwrap();
    let (took, revision) = (begin.elapsed(), store.view().revision());
    line(&format!("  open: {took:.1?}, at revision {revision}, {} MiB of memory", resident()));
    (store, tasks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of minutes and GiB"]
async fn restart_with_a_long_history() {
    let (resources, revisions) = (setting("RESOURCES", 100_000), setting("REVISIONS", 1_000_000));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    line("an empty store");
    let (store, tasks) = open(&path).await;
    let (begin, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (store, next) = (store.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= revisions {
                        return;
                    }
                    store.propose(resource(n % resources, n)).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let took = begin.elapsed().as_secs_f64();
    let (written, rate) = (next.load(Ordering::Relaxed).min(revisions), revisions as f64 / took);
    line(&format!(
        "{written} revisions of {resources} resources: {took:.0} s, {rate:.0}/s, {} MiB of memory, {} MiB on disk",
        resident(),
        size(&path)
    ));
    let before = super::picture(&store.view());
    store.shutdown().await.unwrap();
    drop(store);
    tasks.shutdown(PATIENCE).await;
    line(&format!("after an orderly end ({} MiB on disk)", size(&path)));
    let (store, tasks) = open(&path).await;
    drop(store);
    tasks.shutdown(PATIENCE).await;
    line("after an end without a word");
    let (store, _tasks) = open(&path).await;
    assert!(super::picture(&store.view()) == before, "another state than was written");
    store.shutdown().await.unwrap();
}
