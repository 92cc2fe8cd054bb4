//! The simulation as CI runs it: two hundred seeds, each judged by every oracle; and that a seed says everything.
use std::path::PathBuf;
use std::time::Duration;

use ursa_simulation::children::Batch;
use ursa_simulation::run::{Options, Report};
use ursa_simulation::world::Changes;

fn batch(seeds: std::ops::Range<u64>, seconds: u64, jobs: usize) -> Batch {
    Batch {
        program: PathBuf::from(env!("CARGO_BIN_EXE_simulate")),
        seeds,
        jobs,
        options: Options {
            faults_for: Duration::from_secs(seconds),
            keep: 80,
        },
        defect: None,
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn failure(report: &Report, seconds: u64) -> String {
    let findings: Vec<String> = report
        .findings
        .iter()
        .map(|found| format!("{}: {}", found.oracle, found.what))
        .collect();
    format!(
        "seed {}:\n{}\nthe last of its trace:\n{}\nagain: simulate one --seed {} --seconds {seconds}",
        report.seed,
        findings.join("\n"),
        report.lines.join("\n"),
        report.seed
    )
}

#[test]
fn two_hundred_seeds_pass() {
    let (mut runs, mut acknowledged, mut unknown, mut members) = (0, 0, 0, Changes::default());
    batch(1..201, 6, processors()).run(|report| {
        assert!(report.is_good(), "{}", failure(&report, 6));
        (runs, acknowledged, unknown) = (runs + 1, acknowledged + report.done.acknowledged, unknown + report.done.unknown);
        members += report.done.members;
        true
    });
    assert_eq!(runs, 200);
    // Otherwise nothing was tested.
    assert!(
        acknowledged > 20_000 && unknown > 100,
        "{acknowledged} writes acknowledged, {unknown} without an answer"
    );
    let each = [
        members.joined,
        members.promoted,
        members.removed,
        members.replaced,
        members.moved,
        members.wiped,
        members.refused,
    ];
    assert!(each.iter().all(|count| *count > 5), "{members}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let seeds = 1001..1009;
    let mut together = Vec::new();
    batch(seeds.clone(), 4, 4).run(|report| {
        together.push((report.seed, report.hash, report.events));
        true
    });
    together.sort_unstable();
    let alone = batch(seeds.clone(), 4, 1);
    let alone: Vec<_> = seeds
        .map(|seed| alone.one(seed))
        .map(|report| (report.seed, report.hash, report.events))
        .collect();
    assert_eq!(together, alone);
    assert!(
        alone.iter().all(|(_, _, events)| *events > 500),
        "next to nothing happened: {alone:?}"
    );
    let hashes: std::collections::BTreeSet<u64> = alone.iter().map(|(_, hash, _)| *hash).collect();
    assert_eq!(hashes.len(), alone.len(), "other seeds give other traces");
}
