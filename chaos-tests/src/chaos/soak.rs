//! Faults of chance, one after another, some two at once, for as long as one likes.
//!
//! In: a cluster at work behind links, with the shim in every node; a seed. Out: the checks of each fault, and those of the end.
//! Invariant: the same seed picks the same faults with the same parameters in the same order; what they hit depends on who leads.
use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;
use tokio::time::Instant;

use crate::chaos::cluster;
use crate::chaos::stage::Stage;
use crate::chaos::{all_partitions, clocks, disks, flapping, leader, outage, pauses, power};
use crate::demo::{SOON, START};
use crate::faults::{Partition, Weather, kill};

/// What can happen. Each leaves a whole group behind.
#[derive(Clone, Copy, Debug)]
enum Fault {
    KillLeader,
    KillFollower,
    KillDuringPartition,
    PauseLeader,
    PauseFollower,
    Partition,
    FlappingFollower,
    FlappingLeader,
    SlowLinks,
    SlowDisks,
    PowerLoss,
    Clock,
    RestartZone,
}

const FAULTS: [Fault; 13] = [
    Fault::KillLeader,
    Fault::KillFollower,
    Fault::KillDuringPartition,
    Fault::PauseLeader,
    Fault::PauseFollower,
    Fault::Partition,
    Fault::FlappingFollower,
    Fault::FlappingLeader,
    Fault::SlowLinks,
    Fault::SlowDisks,
    Fault::PowerLoss,
    Fault::Clock,
    Fault::RestartZone,
];

/// So many faults; or as many as `lasts` has time for, if it is given.
///
/// # Errors
/// If the cluster does not recover from one.
pub async fn run(stage: &mut Stage<'_>, rounds: u32, lasts: Option<Duration>) -> anyhow::Result<()> {
    stage.demo.allowed.extend(leader::ALLOWED);
    stage.demo.allowed.extend(outage::GONE);
    let begin = Instant::now();
    let mut done = 0;
    while lasts.map_or(done < rounds, |lasts| begin.elapsed() < lasts) {
        let Some(fault) = FAULTS.choose(&mut stage.rng).copied() else {
            break;
        };
        one(stage, fault)
            .await
            .map_err(|error| error.context(format!("fault {done}, {fault:?}")))?;
        done += 1;
    }
    stage.demo.report.fact("faults of chance", done.to_string());
    Ok(())
}

async fn one(stage: &mut Stage<'_>, fault: Fault) -> anyhow::Result<()> {
    let lasts = Duration::from_millis(stage.rng.random_range(500..5_000));
    match fault {
        Fault::KillLeader => kill_one(stage, true, None).await,
        Fault::KillFollower => kill_one(stage, false, None).await,
        Fault::KillDuringPartition => {
            let of_leader = stage.rng.random_bool(0.5);
            kill_one(stage, of_leader, Some(lasts)).await
        }
        Fault::PauseLeader => pauses::leader(stage).await,
        Fault::PauseFollower => pauses::follower(stage).await,
        Fault::Partition => all_partitions::any(stage).await,
        Fault::FlappingFollower => flapping::follower(stage, lasts).await,
        Fault::FlappingLeader => flapping::leader(stage, lasts).await,
        Fault::SlowLinks => {
            stage.demo.report.injected("slow links", "10 ms each way between the nodes");
            stage.links.between_nodes(Weather::slow(Duration::from_millis(10)));
            stage.last(lasts).await;
            stage.whole("slow links").await?;
            Ok(())
        }
        Fault::SlowDisks => disks::slow(stage).await,
        Fault::PowerLoss => {
            let count = stage.rng.random_range(1..=stage.demo.topology.globals.len());
            power::lose(stage, count).await.map(drop)
        }
        Fault::Clock => {
            let (seconds, of_leader) = (stage.rng.random_range(clocks::ANY), stage.rng.random_bool(0.5));
            clocks::jump(stage, seconds, of_leader).await
        }
        Fault::RestartZone => {
            stage.demo.report.injected("kill", "the control plane of zone west");
            outage::restart_zone(stage.demo, "west", outage::How::Killed).await?;
            stage.whole("a zone's control plane was killed").await?;
            Ok(())
        }
    }
}

/// Kills a node, maybe while it is cut off from the others, and starts it again.
async fn kill_one(stage: &mut Stage<'_>, of_leader: bool, cut_off: Option<Duration>) -> anyhow::Result<()> {
    let (leading, _) = stage.leader().await?;
    let node = if of_leader { leading } else { stage.another(leading.id)? };
    let name = node.name();
    if let Some(lasts) = cut_off {
        stage
            .demo
            .report
            .injected("partition", &format!("{name} is cut off from both others"));
        stage.links.cut(&Partition::of_one(node.id, &cluster::ids(stage.demo), true, true));
        stage.last(lasts).await;
    }
    stage.demo.report.injected("kill", &name);
    let probe = match cut_off {
        None => Some(stage.background.probe().await?),
        Some(_) => None,
    };
    let killed = Instant::now();
    kill::begin(&stage.demo.fleet, &name, SOON).await?;
    if let Some(probe) = probe {
        stage.goes_on(probe, killed, &format!("{name} is killed")).await;
    }
    stage.background.until_further(10).await?;
    kill::end(&stage.demo.fleet, &name)?;
    stage.links.heal();
    stage.demo.fleet.wait_ready(&name, START).await?;
    stage.whole("a node was killed").await?;
    Ok(())
}
