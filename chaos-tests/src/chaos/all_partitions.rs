//! All 64 directed partitions of three nodes, in the order of chance.
//!
//! In: a cluster at work behind links. Out: for each whether the right one led, and in time ([`crate::oracles::leadership`]).
//! Invariant: each begins with a whole group and ends with one.
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::time::Instant;

use crate::chaos::cluster::{self, Standing};
use crate::chaos::leader::row;
use crate::chaos::stage::Stage;
use crate::demo::START;
use crate::faults::Partition;
use crate::oracles;
use crate::oracles::leadership::{self, Expected, LIMIT, Seen};
use crate::report::milliseconds;
use crate::traffic::stats::Times;

/// How long each lasts at least: who would stand for election has done so by then.
const LASTS: Duration = Duration::from_millis(1500);

/// So many of the 64; all if there are no more.
///
/// # Errors
/// If the cluster does not recover from one.
pub async fn run(stage: &mut Stage<'_>, count: usize) -> anyhow::Result<()> {
    let nodes = cluster::ids(stage.demo);
    let mut all = Partition::all(&nodes);
    all.shuffle(&mut stage.rng);
    all.truncate(count);
    let limit = LIMIT * stage.slack;
    let (mut elections, mut wrongs, mut counts) = (Times::default(), Vec::new(), [0; 3]);
    for partition in &all {
        let (expected, seen) = one(stage, partition, &nodes, limit).await?;
        counts[expected as usize] += 1;
        if let (Expected::Fails, Some(took)) = (expected, seen.accepted) {
            elections.record(took);
        }
        wrongs.extend(leadership::wrong(expected, &seen, stage.slack).map(|why| format!("{partition}, {} led: {why}", seen.before.0)));
    }
    stage.demo.report.verdict(
        oracles::LEADERSHIP,
        &format!(
            "{} directed partitions: who has a majority leads within {}, who keeps it stays",
            all.len(),
            milliseconds(limit)
        ),
        wrongs.is_empty(),
        format!(
            "in {} the leader kept a majority, in {} another one had it, in {} nobody{}",
            counts[0],
            counts[1],
            counts[2],
            wrongs.iter().map(|w| format!("; {w}")).collect::<String>()
        ),
    );
    let times = row(
        "directed partitions",
        "until the next accepted write, the leader cut off",
        elections,
    );
    stage.demo.report.times(vec![times]);
    Ok(())
}

/// One partition of chance, judged by itself.
///
/// # Errors
/// If the cluster does not recover.
pub async fn any(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let nodes = cluster::ids(stage.demo);
    let mut all = Partition::all(&nodes);
    all.shuffle(&mut stage.rng);
    let Some(partition) = all.pop() else { return Ok(()) };
    let limit = LIMIT * stage.slack;
    let (expected, seen) = one(stage, &partition, &nodes, limit).await?;
    let wrong = leadership::wrong(expected, &seen, stage.slack);
    stage.demo.report.verdict(
        oracles::LEADERSHIP,
        &format!("{partition}: the right one leads, in time"),
        wrong.is_none(),
        wrong.unwrap_or_else(|| format!("{seen:?}")),
    );
    Ok(())
}

async fn one(stage: &mut Stage<'_>, partition: &Partition, nodes: &[u64], limit: Duration) -> anyhow::Result<(Expected, Seen)> {
    let of = |standing: Standing| (standing.leader.unwrap_or_default(), standing.term);
    let (leader, before) = stage.leader().await?;
    let expected = leadership::expected(partition, nodes, leader.id);
    let probe = stage.background.probe().await?;
    stage
        .demo
        .report
        .injected("partition", &format!("{partition} while {} leads", leader.id));
    let begin = Instant::now();
    stage.links.cut(partition);
    let accepted = match expected {
        Expected::Nothing => None,
        // Far beyond the limit: how long it took says more than that it took too long.
        Expected::Stays | Expected::Fails => probe.accepted_after(begin, "a write is accepted", limit.max(START)).await.ok(),
    };
    if let Some(left) = LASTS.checked_sub(begin.elapsed()) {
        stage.last(left).await;
    }
    probe.stop();
    let after = stage.whole(&partition.to_string()).await?;
    let seen = Seen {
        before: of(before),
        after: of(after),
        accepted,
    };
    Ok((expected, seen))
}
