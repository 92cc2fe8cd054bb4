//! Nodes lose their power: one, two, all three at once, while clients write; what was not synced is gone.
//!
//! In: a cluster at work whose nodes run with the shim. Out: checks. Invariant: every acknowledged write is there afterwards: the judge
//! of [`crate::oracles::registers`] reads them all.
use anyhow::Context as _;
use rand::seq::SliceRandom;

use crate::chaos::stage::Stage;
use crate::demo::topology::Global;
use crate::demo::{SOON, START};
use crate::faults::{kill, power_loss};

/// # Errors
/// If the cluster does not recover.
pub async fn run(stage: &mut Stage<'_>, rounds: u32) -> anyhow::Result<()> {
    for _ in 0..rounds {
        for count in 1..=stage.demo.topology.globals.len() {
            lose(stage, count).await?;
        }
    }
    Ok(())
}

/// So many nodes of chance lose their power at once.
///
/// # Errors
/// As [`run`].
pub async fn lose(stage: &mut Stage<'_>, count: usize) -> anyhow::Result<()> {
    let shim = stage.demo.places.shim.clone().context("the nodes run without the shim")?;
    stage.leader().await?;
    stage.background.until_further(20).await?;
    let mut names: Vec<String> = stage.demo.topology.globals.iter().map(Global::name).collect();
    names.shuffle(&mut stage.rng);
    names.truncate(count);
    // All signals first: they are gone at the same moment, as far as one can.
    for name in &names {
        stage.demo.fleet.signal(name, nix::sys::signal::Signal::SIGKILL)?;
    }
    let mut lost = Vec::new();
    for name in &names {
        stage.demo.fleet.wait_gone(name, SOON).await?;
        let bytes = power_loss::begin(&shim, name, &stage.demo.places.data.join(name))?;
        lost.push(format!("{name} loses {bytes} bytes that were not synced"));
    }
    stage.demo.report.injected("power loss", &lost.join(", "));
    for name in &names {
        kill::end(&stage.demo.fleet, name)?;
    }
    for name in &names {
        stage.demo.fleet.wait_ready(name, START).await?;
    }
    stage.whole("a loss of power").await?;
    Ok(())
}
