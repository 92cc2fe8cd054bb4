//! Processes stand still and go on: the leader, a follower, all of them at once, a zone's control plane.
//!
//! In: a cluster at work. Out: checks. Invariant: nothing is lost, and who wakes up as a leader of the past answers no read from it
//! (readers at every node run all the while).
use std::time::Duration;

use tokio::time::Instant;

use crate::chaos::stage::Stage;
use crate::demo::START;
use crate::demo::topology::Global;
use crate::faults::pause;
use crate::oracles;
use crate::report::milliseconds;

/// Several election timeouts.
const LONG: Duration = Duration::from_secs(3);
/// The others accept writes within this while the leader stands still. The issue bounds what a killed leader costs, not this.
const LIMIT: Duration = Duration::from_secs(6);

/// # Errors
/// If the cluster does not recover.
pub async fn run(stage: &mut Stage<'_>, rounds: u32) -> anyhow::Result<()> {
    for _ in 0..rounds {
        leader(stage).await?;
        follower(stage).await?;
        all(stage).await?;
        zone(stage).await?;
    }
    Ok(())
}

/// The leader stands still; the others go on without it.
///
/// # Errors
/// If they do not.
pub async fn leader(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let (leader, before) = stage.leader().await?;
    let name = leader.name();
    let probe = stage.background.probe().await?;
    stage.demo.report.injected("pause", &format!("the leader {name}"));
    let begin = Instant::now();
    pause::begin(&stage.demo.fleet, &name)?;
    let accepted = probe
        .accepted_after(begin, "a write is accepted while the leader stands still", START)
        .await;
    probe.stop();
    if accepted.is_ok() {
        stage.last(LONG).await;
    }
    pause::end(&stage.demo.fleet, &name)?;
    let took = accepted?;
    let after = stage.whole("the leader stood still").await?;
    let limit = LIMIT * stage.slack;
    stage.demo.report.verdict(
        oracles::LEADERSHIP,
        &format!("the leader {name} stands still: another one leads within {}", milliseconds(limit)),
        took <= limit && after.term > before.term,
        format!("{}; term {}, then {}", milliseconds(took), before.term, after.term),
    );
    Ok(())
}

/// A follower stands still: nobody else notices, also when it goes on.
///
/// # Errors
/// If the cluster is not whole afterwards.
pub async fn follower(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let (leader, before) = stage.leader().await?;
    let follower = stage.another(leader.id)?.name();
    stage.demo.report.injected("pause", &format!("the follower {follower}"));
    pause::begin(&stage.demo.fleet, &follower)?;
    stage.last(LONG).await;
    let writes = stage.background.until_further(20).await;
    pause::end(&stage.demo.fleet, &follower)?;
    writes?;
    let after = stage.whole("a follower stood still").await?;
    stage.same_leader(before, after, &format!("{follower} stands still"));
    Ok(())
}

/// All nodes stand still at once, as when the machine below them does.
async fn all(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let names: Vec<String> = stage.demo.topology.globals.iter().map(Global::name).collect();
    stage.demo.report.injected("pause", "every global node");
    for name in &names {
        pause::begin(&stage.demo.fleet, name)?;
    }
    stage.last(LONG).await;
    for name in &names {
        pause::end(&stage.demo.fleet, name)?;
    }
    stage.whole("all nodes stood still").await?;
    Ok(())
}

/// A zone's control plane stands still: its proxies do not notice.
async fn zone(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let zone = stage.demo.topology.zone("west").control_plane();
    stage.demo.report.injected("pause", &zone);
    pause::begin(&stage.demo.fleet, &zone)?;
    stage.last(LONG).await;
    pause::end(&stage.demo.fleet, &zone)?;
    stage.whole("a zone's control plane stood still").await?;
    Ok(())
}
