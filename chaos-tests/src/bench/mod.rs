//! How fast the store is, beside the bare disk and beside etcd, on the same machine in the same minutes.
//!
//! In: the built global-cp; etcd and strace if they are installed. Out: a report with tables, bars and the raw figures.
//! Invariant: what is compared is measured in slices in turn, with the same values, TLS, durability and number of connections.
//! Source: `docs/benchmarks.md`.
pub mod client;
pub mod cluster;
pub mod etcd_api;
pub mod failover;
pub mod load;
pub mod probe;
pub mod reads;
pub mod restart;
pub mod syncs;
pub mod usage;
pub mod writes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use cluster::{Cluster, Places, System};
use probe::Probe;

use crate::demo::programs::fresh_folder;
use crate::report::Report;

/// A row counts only if the probe's median moved by at most this factor between its slices.
pub const RATIO_OF_VALID: f64 = 2.0;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder for reports and data.
    pub out: PathBuf,
    /// Folder of the built programs.
    pub bin: PathBuf,
    /// Numbers of clients.
    pub clients: Vec<usize>,
    /// Of one system, before it is the other's turn.
    pub slice: Duration,
    /// Slices of each in a row.
    pub rounds: u32,
    /// Kills of the leader.
    pub kills: u32,
    /// For memory and restart.
    pub resources: u64,
    /// Which parts.
    pub parts: Vec<Part>,
    /// Whether to run the peer.
    pub peer: bool,
}

/// A part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Syncs counted by strace.
    Syncs,
    /// Writes.
    Writes,
    /// Linearizable reads.
    Reads,
    /// Kills of the leader.
    Failover,
    /// Memory and restart.
    Restart,
}

impl Options {
    fn systems(&self, places: &Places) -> Vec<System> {
        let etcd = (self.peer && places.etcd.is_some()).then_some(System::Etcd);
        [System::Ursa].into_iter().chain(etcd).collect()
    }
}

/// The program of this name in one of the folders of PATH.
fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs it. Returns whether every check passed.
///
/// # Errors
/// A missing program, an address in use, a member that fails.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let data = options.out.join("data");
    std::fs::create_dir_all(&options.out).with_context(|| format!("cannot make {}", options.out.display()))?;
    fresh_folder(&data)?;
    let absolute = |path: &Path| path.canonicalize().with_context(|| format!("cannot use {}", path.display()));
    let global_cp = options.bin.join("global-cp");
    anyhow::ensure!(global_cp.is_file(), "{} is missing: `make build` makes it", global_cp.display());
    let places = Places {
        global_cp: absolute(&global_cp)?,
        etcd: installed("etcd"),
        strace: installed("strace"),
        data: absolute(&data)?,
        network: 40,
    };
    let mut report = Report::new("bench-store");
    let done = parts(options, &places, &mut report).await;
    if let Err(error) = &done {
        report.check("the run came to its end", false, format!("{error:#}"));
    }
    let (_, failed) = report.finish();
    report.write_json(&options.out.join("store.json"))?;
    report.write_summary(&options.out.join("store.txt"))?;
    // Logs stay for whoever wants to know why; data of gigabytes does not.
    if done.is_ok() {
        std::fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
    }
    done.map(|()| failed == 0)
}

async fn parts(options: &Options, places: &Places, report: &mut Report) -> anyhow::Result<()> {
    report.step("What is measured");
    report.about("cores", std::thread::available_parallelism().map_or(0, usize::from));
    report.about("debug_assertions", cfg!(debug_assertions));
    report.about("value_bytes", load::VALUE);
    report.note("one machine for all: three members of each system, the clients, and whatever else runs; ratios count, not figures");
    report.note("ursa is this build, which has one profile for all: optimised for short builds, with assertions and overflow checks on");
    if options.peer && places.etcd.is_none() {
        report.fact("peer", "none: etcd is not installed; `apt-get install etcd-server` installs it");
    }
    if places.strace.is_none() {
        report.fact(
            "syncs",
            "not counted: strace is not installed; `apt-get install strace` installs it",
        );
    }
    let asked = |part: Part| options.parts.contains(&part);
    let probe = Probe::new(&places.data)?;
    let batches = if asked(Part::Syncs) && places.strace.is_some() {
        writes::sync_counts(options, places, report).await?
    } else {
        writes::Batches::new()
    };
    if !options.parts.iter().any(|part| *part != Part::Syncs) {
        return Ok(());
    }
    let mut clusters = Vec::new();
    for system in options.systems(places) {
        clusters.push(Cluster::start(system, places, system.name(), false).await?);
    }
    if asked(Part::Writes) {
        writes::run_all(options, &clusters, &probe, &batches, report).await?;
    }
    if asked(Part::Reads) {
        reads::run_all(options, &clusters, report).await?;
    }
    if asked(Part::Failover) {
        failover::run_all(options, &clusters, report).await?;
    }
    if asked(Part::Restart) {
        restart::run_all(options, &clusters, report).await?;
    }
    Ok(())
}
