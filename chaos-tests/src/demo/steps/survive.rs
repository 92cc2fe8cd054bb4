//! Steps 5 to 8: nothing stops. Leaders die, the global vanishes and returns, programs end in order; traffic goes on throughout.
//!
//! Invariant: one stream of traffic runs through all four steps, and not one request of it fails.
//! Source: issue text. Not here: the faults themselves ([`crate::chaos`]), which the scenarios do longer and harder.
use anyhow::Context as _;

use crate::chaos::background::{Background, open_the_way};
use crate::chaos::outage::{self, How, JOIN_LIMIT};
use crate::chaos::{graceful, leader};
use crate::demo::Demo;

/// Requests of each pair that show what a fault does after the first moment: 2 s.
const CALM: u32 = 400;

/// # Errors
/// If something does not come about at all.
pub async fn run(demo: &mut Demo) -> anyhow::Result<()> {
    if demo.topology.is_cluster() {
        kills(demo).await.context("step 5")?;
    }
    outage(demo).await.context("steps 6 and 7")?;
    ends(demo).await.context("step 8")?;
    demo.apply("mesh-http-route-90-10.yaml").await?;
    Ok(())
}

async fn kills(demo: &mut Demo) -> anyhow::Result<()> {
    let rounds = demo.kills;
    demo.report.step(&format!(
        "5. kill -9 of the leader, {rounds} times, under constant writes and traffic"
    ));
    open_the_way(demo).await?;
    let background = Background::start(demo, Some("kills"))?;
    let done = leader::kill(demo, &background, rounds).await;
    background.finish(demo, "leaders die").await;
    done
}

async fn outage(demo: &mut Demo) -> anyhow::Result<()> {
    demo.report
        .step("6. No global at all: zone west restarts, and a new sidecar joins it");
    open_the_way(demo).await?;
    let background = Background::start(demo, None)?;
    let done = async {
        outage::kill_globals(demo).await?;
        background.pass(CALM).await;
        outage::restart_zone(demo, "west", How::Killed).await?;
        background.pass(CALM).await;
        outage::join_sidecar(demo, "backend-west-2", Some(JOIN_LIMIT)).await?;
        demo.report.step("7. The global returns");
        outage::globals_return(demo).await
    }
    .await;
    background.finish(demo, "the global is away and returns").await;
    done
}

async fn ends(demo: &mut Demo) -> anyhow::Result<()> {
    demo.report.step("8. Graceful ends");
    let cluster = demo.topology.is_cluster();
    let background = Background::start(demo, cluster.then_some("ends"))?;
    let done = async {
        if cluster {
            graceful::leader(demo, &background, 1).await?;
        }
        graceful::ingress(demo, "west", false).await?;
        graceful::sidecars(demo).await
    }
    .await;
    background.finish(demo, "graceful ends").await;
    done
}
