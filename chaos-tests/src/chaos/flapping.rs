//! Links that come and go faster than anybody can settle.
//!
//! In: a cluster at work behind links. Out: checks: nothing is lost, and a follower that comes and goes deposes nobody.
//! Invariant: the periods are of chance, around the length of an election timeout, where they hurt most.
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use crate::chaos::cluster;
use crate::chaos::stage::Stage;
use crate::faults::{Partition, Weather};
use crate::report::milliseconds;

/// How long links come and go.
const LASTS: Duration = Duration::from_secs(8);
/// Of one state.
const PERIOD: std::ops::Range<u64> = 50..800;

/// # Errors
/// If the cluster does not recover.
pub async fn run(stage: &mut Stage<'_>, rounds: u32) -> anyhow::Result<()> {
    for _ in 0..rounds {
        follower(stage, LASTS).await?;
        leader(stage, LASTS).await?;
        resets(stage, LASTS).await?;
    }
    Ok(())
}

/// A follower is there and not there: the leader stays.
///
/// # Errors
/// If the cluster does not recover.
pub async fn follower(stage: &mut Stage<'_>, lasts: Duration) -> anyhow::Result<()> {
    let (leader, before) = stage.leader().await?;
    let follower = stage.another(leader.id)?;
    let what = format!("the links of the follower {} come and go", follower.name());
    stage.demo.report.injected("flapping", &what);
    let nodes = cluster::ids(stage.demo);
    let ways = [
        Partition::of_one(follower.id, &nodes, true, true),
        Partition::of_one(follower.id, &nodes, false, true),
        Partition::of_one(follower.id, &nodes, true, false),
    ];
    flap(stage, lasts, &ways).await;
    let after = stage.whole(&what).await?;
    stage.same_leader(before, after, &what);
    Ok(())
}

/// The leader is there and not there: whoever leads in the end, all agree.
///
/// # Errors
/// If the cluster does not recover.
pub async fn leader(stage: &mut Stage<'_>, lasts: Duration) -> anyhow::Result<()> {
    let (leader, before) = stage.leader().await?;
    let what = format!("the links of the leader {} come and go", leader.name());
    stage.demo.report.injected("flapping", &what);
    let nodes = cluster::ids(stage.demo);
    let probe = stage.background.probe().await?;
    let begin = Instant::now();
    flap(stage, lasts, &[Partition::of_one(leader.id, &nodes, true, true)]).await;
    let pause = probe.longest_pause(begin, Instant::now());
    probe.stop();
    let after = stage.whole(&what).await?;
    stage.demo.report.fact(
        &what,
        format!(
            "longest time without an accepted write {}; term {}, then {}",
            milliseconds(pause),
            before.term,
            after.term
        ),
    );
    Ok(())
}

async fn flap(stage: &mut Stage<'_>, lasts: Duration, ways: &[Partition]) {
    let begin = Instant::now();
    let mut turn = 0;
    while begin.elapsed() < lasts {
        stage.links.cut(&ways[turn % ways.len()]);
        let away = Duration::from_millis(stage.rng.random_range(PERIOD));
        stage.last(away).await;
        stage.links.heal();
        let there = Duration::from_millis(stage.rng.random_range(PERIOD));
        stage.last(there).await;
        turn += 1;
    }
}

/// All connections between nodes are reset again and again.
async fn resets(stage: &mut Stage<'_>, lasts: Duration) -> anyhow::Result<()> {
    let what = "all connections between nodes are reset again and again";
    stage.demo.report.injected("flapping", what);
    let begin = Instant::now();
    while begin.elapsed() < lasts {
        stage.links.between_nodes(Weather::CUT);
        stage.links.between_nodes(Weather::FAIR);
        let there = Duration::from_millis(stage.rng.random_range(PERIOD));
        stage.last(there).await;
    }
    stage.whole(what).await?;
    Ok(())
}
