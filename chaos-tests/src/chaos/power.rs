//! Nodes lose their power: one, two, all three at once, while clients write and the disks are busy; what was not synced is gone.
//!
//! In: a cluster at work whose nodes run with the shim. Out: checks.
//! Invariants: every acknowledged write is there afterwards: the judge of [`crate::oracles::registers`] reads them all. A run in which
//! nothing was lost has proved nothing, and fails.
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use rand::RngExt as _;
use rand::seq::SliceRandom;
use tokio::time::Instant;

use crate::chaos::stage::Stage;
use crate::demo::topology::Global;
use crate::demo::{SOON, START};
use crate::faults::{kill, power_loss, slow_sync};

/// How much longer than it takes a sync takes, milliseconds: so that power goes between a write and its sync. As long as on a busy disk;
/// nobody stands for election because of it.
const BUSY: std::ops::Range<u64> = 50..200;
/// How long that is so, milliseconds, until the power goes.
const UNTIL: std::ops::Range<u64> = 300..1500;

/// # Errors
/// If the cluster does not recover.
pub async fn run(stage: &mut Stage<'_>, rounds: u32) -> anyhow::Result<()> {
    let nodes = stage.demo.topology.globals.len();
    let mut lost = vec![0; nodes];
    for _ in 0..rounds {
        for (count, lost) in (1..).zip(&mut lost) {
            *lost += lose(stage, count).await?;
        }
    }
    for (count, lost) in (1..).zip(lost) {
        stage.demo.report.check(
            &format!("{count} of {nodes} nodes without power at once have lost what they had not synced: otherwise nothing is proved"),
            lost > 0,
            format!("{lost} bytes"),
        );
    }
    Ok(())
}

/// So many nodes of chance lose their power at once. Returns how many bytes they lost.
///
/// # Errors
/// As [`run`].
pub async fn lose(stage: &mut Stage<'_>, count: usize) -> anyhow::Result<u64> {
    let shim = stage.demo.places.shim.clone().context("the nodes run without the shim")?;
    stage.leader().await?;
    stage.background.until_further(20).await?;
    let mut names: Vec<String> = stage.demo.topology.globals.iter().map(Global::name).collect();
    names.shuffle(&mut stage.rng);
    names.truncate(count);
    for name in &names {
        slow_sync::begin(&shim, name, Duration::from_millis(stage.rng.random_range(BUSY)))?;
    }
    let until = Duration::from_millis(stage.rng.random_range(UNTIL));
    stage.last(until).await;
    let minority = count * 2 < stage.demo.topology.globals.len();
    let probe = if minority { Some(stage.background.probe().await?) } else { None };
    // All signals first: they are gone at the same moment, as far as one can.
    let off = Instant::now();
    for name in &names {
        stage.demo.fleet.signal(name, Signal::SIGKILL)?;
    }
    if let Some(probe) = probe {
        stage.goes_on(probe, off, &format!("{} loses its power", names.join(", "))).await;
    }
    let (mut lost, mut told) = (0, Vec::new());
    for name in &names {
        stage.demo.fleet.wait_gone(name, SOON).await?;
        slow_sync::end(&shim, name)?;
        let bytes = power_loss::begin(&shim, name, &stage.demo.places.data.join(name))?;
        lost += bytes;
        told.push(format!("{name} loses {bytes} bytes that were not synced"));
    }
    stage.demo.report.injected("power loss", &told.join(", "));
    for name in &names {
        kill::end(&stage.demo.fleet, name)?;
    }
    for name in &names {
        stage.demo.fleet.wait_ready(name, START).await?;
    }
    stage.whole("a loss of power").await?;
    Ok(lost)
}
