//! Ends that were asked for: of the leader, of a zone ingress, of sidecars, of every program in turn.
//!
//! In: a demo under load. Out: how long each took and what it cost, as checks.
//! Invariant: a program that got SIGTERM hands over first and ends by itself with exit code 0; it is started again before the next
//! one gets it. Source: issue text, step 8; CONVENTIONS.md C9.
use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::Instant;

use crate::chaos::background::Background;
use crate::chaos::{cluster, leader, outage};
use crate::demo::steps::bring_up::start_proxy;
use crate::demo::topology::{Proxy, port};
use crate::demo::{Demo, SOON, START, after};
use crate::harness::fleet::Ending;
use crate::harness::{POLL, Poll, wait_through};
use crate::report::milliseconds;
use crate::traffic::stats::Times;

/// Longest orderly end of a process.
const GRACE: Duration = Duration::from_secs(60);
/// Writes may stand still for so long while leadership is handed over. Source: issue text.
const HANDOVER_LIMIT: Duration = Duration::from_millis(300);
/// Writes before and after, which show the pause between them.
const AROUND: usize = 30;

/// SIGTERM to the leader: leadership is handed over first. Then it is started again.
///
/// # Errors
/// If the cluster does not go on.
pub async fn leader(demo: &mut Demo, background: &Background, slack: u32) -> anyhow::Result<()> {
    demo.allowed.extend(leader::ALLOWED);
    demo.allowed.extend(outage::GONE);
    background.until_further(AROUND).await?;
    let leader = cluster::leader(demo).await?;
    after::counters_before_the_end_of(demo, &leader.name()).await;
    let probe = background.probe().await?;
    let asked = Instant::now();
    let ending = demo.fleet.terminate(&leader.name(), GRACE).await?;
    let successor = cluster::leader_without(demo, Some(leader.id)).await?;
    background.until_further(AROUND).await?;
    let pause = probe.longest_pause(asked, Instant::now());
    probe.stop();
    let limit = HANDOVER_LIMIT * slack;
    ended(demo, &ending);
    demo.report.check(
        &format!(
            "SIGTERM to the leader {}: writes pause for less than {}",
            leader.name(),
            milliseconds(limit)
        ),
        pause < limit,
        format!("{}; {} leads", milliseconds(pause), successor.name()),
    );
    restart(demo, &leader.name()).await
}

/// SIGTERM to each node of the global in turn, the leader of the beginning last.
///
/// # Errors
/// If one does not come back.
pub async fn globals(demo: &mut Demo, background: &Background, slack: u32) -> anyhow::Result<()> {
    let first = cluster::leader(demo).await?;
    let followers: Vec<_> = demo.topology.globals.iter().filter(|g| g.id != first.id).cloned().collect();
    for follower in followers {
        background.until_further(AROUND).await?;
        after::counters_before_the_end_of(demo, &follower.name()).await;
        let ending = demo.fleet.terminate(&follower.name(), GRACE).await?;
        ended(demo, &ending);
        restart(demo, &follower.name()).await?;
    }
    leader(demo, background, slack).await
}

/// SIGTERM to every zone's control plane in turn.
///
/// # Errors
/// If one does not come back.
pub async fn zones(demo: &mut Demo) -> anyhow::Result<()> {
    for zone in demo.topology.zones.clone() {
        outage::restart_zone(demo, &zone.name, outage::How::Asked(GRACE)).await?;
    }
    Ok(())
}

/// SIGTERM to a zone's first ingress while a second one is there, then the other way round.
///
/// # Errors
/// If one does not come about.
pub async fn ingress(demo: &mut Demo, zone: &str, both: bool) -> anyhow::Result<()> {
    let first = demo.topology.zone(zone).ingress.clone();
    let second = demo.topology.join(&format!("{}-2", first.name));
    let start = Instant::now();
    start_proxy(demo, &second).await?;
    demo.fleet.wait_ready(&second.name, START).await?;
    demo.fleet.remember_new_envoys();
    wait_addressed(demo, &second, true).await?;
    demo.report.did(
        &format!("a second ingress, {}, is ready and known to the callers elsewhere", second.name),
        start.elapsed(),
    );
    end_ingress(demo, &first).await?;
    if both {
        end_ingress(demo, &second).await?;
    }
    Ok(())
}

/// Ends one ingress, sees that it was withdrawn before it ended, and starts it again.
async fn end_ingress(demo: &mut Demo, ingress: &Proxy) -> anyhow::Result<()> {
    let asked = Instant::now();
    let withdrawn = async {
        wait_addressed(demo, ingress, false).await?;
        Ok::<_, anyhow::Error>(asked.elapsed())
    };
    let (withdrawn, ending) = tokio::join!(withdrawn, demo.fleet.terminate(&ingress.name, GRACE));
    let (withdrawn, ending) = (withdrawn?, ending?);
    ended(demo, &ending);
    demo.report.check(
        &format!("{} is withdrawn at the callers before it ends", ingress.name),
        withdrawn < ending.took,
        format!(
            "withdrawn after {}, ended after {}",
            milliseconds(withdrawn),
            milliseconds(ending.took)
        ),
    );
    demo.fleet.restart(&ingress.name)?;
    demo.fleet.wait_ready(&ingress.name, START).await?;
    demo.fleet.remember_new_envoys();
    wait_addressed(demo, ingress, true).await
}

/// Waits until the callers in other zones have an ingress among their endpoints, or no longer have it.
async fn wait_addressed(demo: &Demo, ingress: &Proxy, wanted: bool) -> anyhow::Result<()> {
    let address = ingress.at(port::INGRESS).to_string();
    let callers: Vec<&Proxy> = demo
        .topology
        .sidecars()
        .filter(|p| p.zone != ingress.zone && p.workload == "frontend")
        .collect();
    let what = format!("{} is {} at its callers", ingress.name, if wanted { "known" } else { "withdrawn" });
    wait_through(&what, SOON, POLL, async || {
        let lists = try_join_all(callers.iter().map(async |c| demo.envoy(c).endpoints().await)).await?;
        let everywhere = lists.iter().all(|list| list.values().any(|a| a.contains(&address)) == wanted);
        Ok(Poll::when(everywhere, (), || format!("{lists:?}")))
    })
    .await?;
    Ok(())
}

/// SIGTERM to each backend's sidecar in turn; those that have no second instance yet get one first.
///
/// # Errors
/// If one does not come back.
pub async fn sidecars(demo: &mut Demo) -> anyhow::Result<()> {
    for zone in demo.topology.zones.clone() {
        let spare = zone.spares.iter().find(|p| !p.is_ingress());
        if let Some(spare) = spare {
            outage::join_sidecar(demo, &spare.name, None).await?;
        }
    }
    let backends: Vec<Proxy> = demo.topology.sidecars().filter(|p| p.workload == "backend").cloned().collect();
    let (mut ends, mut returns) = (Times::default(), Times::default());
    for backend in backends {
        let ending = demo.fleet.terminate(&backend.name, GRACE).await?;
        ends.record(ending.took);
        ended(demo, &ending);
        let start = Instant::now();
        demo.fleet.restart(&backend.name)?;
        demo.fleet.wait_ready(&backend.name, START).await?;
        outage::wait_called(demo, &backend).await?;
        returns.record(start.elapsed());
        demo.fleet.remember_new_envoys();
    }
    demo.report.times(vec![
        leader::row("SIGTERM to sidecars in turn", "until it has ended", ends),
        leader::row("SIGTERM to sidecars in turn", "until it is called again", returns),
    ]);
    Ok(())
}

fn ended(demo: &mut Demo, ending: &Ending) {
    demo.report.did(&format!("SIGTERM to {}: {}", ending.name, ending.how), ending.took);
    if !ending.clean {
        demo.report
            .check(&format!("{} ends in order when asked to", ending.name), false, ending.how.clone());
    }
}

async fn restart(demo: &mut Demo, name: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    demo.fleet.restart(name)?;
    demo.fleet.wait_ready(name, START).await?;
    demo.report.did(&format!("{name} is back"), start.elapsed());
    Ok(())
}
