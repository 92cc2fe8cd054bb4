//! What runs through every fault: traffic between workloads, and writes and reads at every node of the global.
//!
//! In: a demo whose calls are permitted. Out: checks of what came of it.
//! Invariant: the traffic is judged whole: one failed request of one pair fails the scenario, whatever was going on.
//! Not here: the generators ([`crate::traffic`]), the judge of the history ([`crate::oracles::registers`]).
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;

use crate::client::{Api, Mode};
use crate::demo::{Demo, SOON, describe, said};
use crate::harness::wait::Pace;
use crate::harness::{POLL, Poll, wait_until};
use crate::oracles::registers::History;
use crate::report::Row;
use crate::traffic::Shot;
use crate::traffic::load::{Judge, Load, Plan};
use crate::traffic::pairs::{Pairs, RATE};
use crate::traffic::registers::{self, Costs, Registers, Retry};
use crate::traffic::stats::Times;

/// Keys, and so writers.
const WRITERS: u32 = 3;
/// Readers, each of all keys.
const READERS: u32 = 3;
/// Operations per second of each of them.
const OPERATIONS: u32 = 25;

/// Who calls whom, and which zone must answer.
fn pairs(demo: &Demo) -> [(&'static str, Shot, &'static str); 2] {
    [
        ("frontend (east) -> backend (west)", demo.call(), "west"),
        ("frontend (east) -> backend (east)", demo.call().with("x-canary", "yes"), "east"),
    ]
}

fn answered_in(zone: &'static str) -> Judge {
    Arc::new(move |answer| {
        let said = said(answer)?;
        if said.zone == zone {
            Ok(said.instance)
        } else {
            Err(format!("answered by {} instead of {zone}: {}", said.instance, describe(answer)))
        }
    })
}

/// Permits the calls and routes them: with a header to east, all others to west. Waits until it is so.
///
/// # Errors
/// If a resource is refused or does not take effect.
pub async fn open_the_way(demo: &mut Demo) -> anyhow::Result<()> {
    demo.apply("allow-frontend.yaml").await?;
    demo.apply("mesh-http-route-header.yaml").await?;
    for (name, shot, zone) in pairs(demo) {
        let judge = answered_in(zone);
        wait_until(&format!("{name} is answered"), SOON, POLL, async || {
            let mut outcome = Load::exactly(
                Plan {
                    name: name.into(),
                    shot: shot.clone(),
                    rate: RATE,
                    mode: Mode::KeptAlive,
                    judge: judge.clone(),
                },
                5,
            )
            .await;
            let why = outcome.failures.pop().map(|f| f.why);
            Ok(Poll::when(why.is_none(), (), || why.unwrap_or_default()))
        })
        .await?;
    }
    Ok(())
}

/// Running. Dropping it stops it and loses the numbers.
#[derive(Debug)]
pub struct Background {
    pairs: Pairs,
    registers: Option<Registers>,
    nodes: Vec<Api>,
}

impl Background {
    /// Starts the traffic, and with a name also writes and reads of registers of that name.
    ///
    /// # Errors
    /// If a control plane's credentials cannot be read.
    pub fn start(demo: &Demo, registers: Option<&str>) -> anyhow::Result<Self> {
        let modes = [Mode::KeptAlive, Mode::NewConnection];
        let plans = pairs(demo).into_iter().zip(modes).map(|((name, shot, zone), mode)| Plan {
            name: name.into(),
            shot,
            rate: RATE,
            mode,
            judge: answered_in(zone),
        });
        let pairs = Pairs::start(plans.collect());
        let nodes = demo.nodes()?;
        let registers = registers.map(|name| {
            Registers::start(registers::Plan {
                nodes: nodes.clone(),
                name: format!("register-{name}"),
                writers: WRITERS,
                readers: READERS,
                rate: OPERATIONS,
                retry: Retry::SameId,
            })
        });
        Ok(Self { pairs, registers, nodes })
    }

    /// What was written and read so far.
    ///
    /// # Errors
    /// If nothing is written at all.
    pub fn so_far<T>(&self, look: impl FnOnce(&History) -> T) -> anyhow::Result<T> {
        Ok(self.registers.as_ref().context("nothing is written")?.so_far(look))
    }

    /// Waits until so many further requests of the traffic were due.
    pub async fn pass(&self, requests: u32) {
        let mut pace = Pace::every(Duration::from_secs(1) / RATE);
        for _ in 0..requests {
            pace.slot().await;
        }
    }

    /// Waits until so many further writes are acknowledged and so many further reads answered.
    ///
    /// # Errors
    /// If they are not within [`SOON`].
    pub async fn until_further(&self, writes: usize) -> anyhow::Result<()> {
        let before = self.so_far(|h| h.acknowledged())?;
        wait_until(&format!("{writes} further writes"), SOON, POLL, async || {
            let now = self.so_far(|h| h.acknowledged())?;
            Ok(Poll::when(now >= before + writes, (), || format!("{} so far", now - before)))
        })
        .await?;
        Ok(())
    }

    /// Stops, and judges what came of it. Returns the history, empty if nothing was written.
    pub async fn finish(self, demo: &mut Demo, during: &str) -> History {
        let outcomes = self.pairs.stop().await;
        let mut rows = Vec::new();
        for (name, outcome) in outcomes {
            let by: Vec<String> = outcome.counts.iter().map(|(who, n)| format!("{who} {n}")).collect();
            demo.report.check(
                &format!("{during}: no request of {name} fails"),
                outcome.failed == 0 && outcome.ok > 0,
                format!("{}; {}", outcome.summary(), by.join(", ")),
            );
            rows.push(row(during, &name, outcome.times));
        }
        let mut history = History::default();
        if let Some(registers) = self.registers {
            let costs;
            (history, costs) = registers.stop().await;
            judge(demo, during, &history, &costs);
            rows.push(row(during, "write, until acknowledged", costs.writes));
            rows.push(row(during, "read, linearizable", costs.reads));
            remove(&self.nodes, &history).await;
        }
        demo.report.times(rows);
        history
    }
}

fn row(group: &str, name: &str, times: Times) -> Row {
    Row {
        group: group.into(),
        name: name.into(),
        times,
    }
}

fn judge(demo: &mut Demo, during: &str, history: &History, costs: &Costs) {
    let violations = history.violations();
    let first = violations.first().map(|v| format!("; the first of {}: {v}", violations.len()));
    demo.report.check(
        &format!("{during}: every read lies between the last acknowledged and the last attempted write, none goes back"),
        violations.is_empty(),
        format!(
            "{} writes acknowledged, {} reads{}",
            history.acknowledged(),
            history.reads.len(),
            first.unwrap_or_default()
        ),
    );
    let open = history.writes.len() - history.acknowledged();
    demo.report.check(
        &format!("{during}: every write was acknowledged in the end"),
        open == 0 && history.acknowledged() > 0,
        format!("{open} open"),
    );
    demo.report.check(
        &format!("{during}: no call was refused as wrong"),
        costs.refusals.is_empty(),
        costs.refusals.first().cloned().unwrap_or_default(),
    );
    demo.report.fact(
        &format!("{during}: attempts without an answer, sent again by the client"),
        format!("{} writes, {} reads", costs.failed_attempts, costs.failed_reads),
    );
}

/// The registers are of no use afterwards.
async fn remove(nodes: &[Api], history: &History) {
    let Some(node) = nodes.first() else { return };
    let paths: Vec<String> = history.newest().keys().map(|key| registers::path(key)).collect();
    // What is left over changes nothing for anybody.
    let _answers = join_all(paths.iter().map(|path| node.delete(path))).await;
}
