//! How long a durable write takes, beside a raw append + fdatasync of the same bytes on the same disk in the same run.
//! How long writes and reads of a group of three take, and a fail-over.
//! Not a check: `cargo test -p ursa-store --release -- --ignored --nocapture writes_beside_a_raw_probe`. The folder is TMPDIR's.
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use ursa_runtime::tasks::Tasks;

use super::{set, write};
use crate::codec::Proposal;
use crate::disk::RealDisk;
use crate::{Store, StoreConfig};

/// Measured time per row.
const TIME: Duration = Duration::from_secs(2);

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    format!("p50 {:>6.0} us  p99 {:>7.0} us  max {:>8.0} us", at(0.5), at(0.99), at(1.0))
}

/// A file to which the same bytes are appended and synced.
struct Probe {
    file: std::fs::File,
    offset: u64,
    bytes: Vec<u8>,
}

impl Probe {
    fn new(dir: &Path, bytes: Vec<u8>) -> Self {
        Self {
            file: std::fs::File::create(dir.join("probe")).unwrap(),
            offset: 0,
            bytes,
        }
    }

    fn once(&mut self) -> Duration {
        let begin = Instant::now();
        self.file.write_all_at(&self.bytes, self.offset).unwrap();
        self.file.sync_data().unwrap();
        self.offset += self.bytes.len() as u64;
        begin.elapsed()
    }
}

fn report(what: &str, seconds: f64, times: Vec<Duration>) {
    println!("{what:<24} {:>7.0}/s  {}", times.len() as f64 / seconds, percentiles(times));
    std::io::stdout().flush().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn writes_beside_a_raw_probe() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig::new(dir.path().join("store"), 1), Arc::new(RealDisk), &Tasks::new())
        .await
        .unwrap();
    let bytes = vec![b'x'; Proposal::new(&ursa_state::Command::Change(set("m1", 1))).unwrap().size() + 40];
    println!("{} bytes per entry", bytes.len());
    let mut probe = Probe::new(dir.path(), bytes);
    // Turn by turn: the disks of virtual machines have moods that last for seconds.
    let (mut raw, mut ours, begin) = (Vec::new(), Vec::new(), Instant::now());
    while begin.elapsed() < TIME * 2 {
        raw.push(probe.once());
        let start = Instant::now();
        write(&store, "m", raw.len() as u64).await.unwrap();
        ours.push(start.elapsed());
    }
    let mut ratios: Vec<f64> = raw
        .iter()
        .zip(&ours)
        .map(|(raw, ours)| ours.as_secs_f64() / raw.as_secs_f64())
        .collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let both = begin.elapsed().as_secs_f64();
    report("raw, turn by turn", both, raw);
    report("1 client, turn by turn", both, ours);
    println!("median of the ratios: {:.2}", ratios[ratios.len() / 2]);
    for clients in [16, 64, 256_u64] {
        let end = Instant::now() + TIME;
        let lanes: Vec<_> = (0..clients)
            .map(|lane| {
                let store = store.clone();
                tokio::spawn(async move {
                    let (mut n, mut times) = (0, Vec::new());
                    while Instant::now() < end {
                        let begin = Instant::now();
                        write(&store, &format!("m{lane}"), n).await.unwrap();
                        times.push(begin.elapsed());
                        n += 1;
                    }
                    times
                })
            })
            .collect();
        let mut times = Vec::new();
        for lane in lanes {
            times.extend(lane.await.unwrap());
        }
        report(&format!("{clients} clients"), TIME.as_secs_f64(), times);
        let raw: Vec<Duration> = (0..100).map(|_| probe.once()).collect();
        let seconds = raw.iter().sum::<Duration>().as_secs_f64();
        report("raw", seconds, raw);
    }
    store.shutdown().await.unwrap();
}

/// Three nodes of one process over TLS on loopback, on files: values of 512 bytes through [`Store::propose`] at the leader, in turn
/// with the bare disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn writes_of_a_group_beside_a_raw_probe() {
    let mut group = super::group::Group::of_three().await;
    let dir = tempfile::tempdir().unwrap();
    let entry = Proposal::new(&ursa_state::Command::Change(large(0, 0))).unwrap().size() + 40;
    println!("{entry} bytes per entry");
    let mut probe = Probe::new(dir.path(), vec![b'x'; entry]);
    for clients in [1, 16, 64, 256_u64] {
        let (mut raw, mut times, mut seconds) = (Vec::new(), Vec::new(), 0.0);
        for _ in 0..3 {
            let begin = Instant::now();
            while begin.elapsed() < TIME / 4 {
                raw.push(probe.once());
            }
            let store = group.store(group.leader().await).clone();
            let end = Instant::now() + TIME;
            let lanes: Vec<_> = (0..clients)
                .map(|lane| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        let (mut n, mut times) = (0, Vec::new());
                        while Instant::now() < end {
                            let begin = Instant::now();
                            store.propose(large(lane, n)).await.unwrap();
                            times.push(begin.elapsed());
                            n += 1;
                        }
                        times
                    })
                })
                .collect();
            for lane in lanes {
                times.extend(lane.await.unwrap());
            }
            seconds += TIME.as_secs_f64();
        }
        let bare = raw.iter().sum::<Duration>().as_secs_f64();
        report("raw", bare, raw);
        report(&format!("{clients} clients"), seconds, times);
    }
    for id in 1..=3 {
        group.node(id).kill().await;
    }
}

/// A changeset with a value of 512 bytes, one of 16 for each lane.
fn large(lane: u64, n: u64) -> ursa_state::Changeset {
    let name = format!("bench-{lane}-{}", n % 16);
    let spec = serde_json::json!({ "data": format!("{n:0512}") });
    let put = ursa_state::Put {
        key: super::key(&name),
        labels: Default::default(),
        spec,
        status: None,
        owner: None,
        expect: ursa_state::Expect::Any,
    };
    crate::testing::changeset(1_700_000_000_000 + n, vec![ursa_state::Op::Put(put)])
}

/// Three nodes of one process over TLS on loopback.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn a_group_of_three() {
    let mut group = super::group::Group::of_three().await;
    let leader = group.leader().await;
    for (what, id) in [("write at the leader", leader), ("write at a follower", leader % 3 + 1)] {
        let (store, begin, mut times) = (group.store(id).clone(), Instant::now(), Vec::new());
        while begin.elapsed() < TIME {
            let start = Instant::now();
            write(&store, "m", times.len() as u64).await.unwrap();
            times.push(start.elapsed());
        }
        report(what, begin.elapsed().as_secs_f64(), times);
        let (begin, mut times) = (Instant::now(), Vec::new());
        while begin.elapsed() < TIME {
            let start = Instant::now();
            store.read().await.unwrap();
            times.push(start.elapsed());
        }
        report("  read there", begin.elapsed().as_secs_f64(), times);
    }
    let (mut gaps, begin) = (Vec::new(), Instant::now());
    for round in 0..20 {
        let leader = group.leader().await;
        let follower = group.store(leader % 3 + 1).clone();
        write(&follower, "a", round).await.unwrap();
        group.isolate(leader, Some(crate::net::faults::Cut::Requests));
        let start = Instant::now();
        write(&follower, "b", round).await.unwrap();
        gaps.push(start.elapsed());
        group.isolate(leader, None);
        group.store(leader).read().await.unwrap();
    }
    report("fail-over", begin.elapsed().as_secs_f64(), gaps);
    let (mut gaps, begin) = (Vec::new(), Instant::now());
    for round in 0..20 {
        let leader = group.leader().await;
        let follower = group.store(leader % 3 + 1).clone();
        let start = Instant::now();
        let done = group
            .store(leader)
            .hand_over(ursa_runtime::lease::Deadline::after(super::PATIENCE))
            .await;
        assert!(done.is_ok());
        write(&follower, "c", round).await.unwrap();
        gaps.push(start.elapsed());
    }
    report("hand-over", begin.elapsed().as_secs_f64(), gaps);
    for id in 1..=3 {
        group.node(id).kill().await;
    }
}
