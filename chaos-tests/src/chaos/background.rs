//! What runs through every fault: traffic between workloads, and writes and reads at every node of the global.
//!
//! In: a demo whose calls are permitted. Out: checks of what came of it.
//! Invariant: the traffic is judged whole: one failed request of one pair fails the scenario, whatever was going on.
//! Not here: the generators ([`crate::traffic`]), the judge of the history ([`crate::oracles::registers`]).
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;

use crate::client::{Api, Mode};
use crate::demo::topology::MESH;
use crate::demo::{Demo, SOON, describe, said};
use crate::harness::wait::Pace;
use crate::harness::{POLL, Poll, wait_through};
use crate::oracles::streams::{self, Acknowledged};
use crate::oracles::{self, registers::History};
use crate::report::Row;
use crate::traffic::Shot;
use crate::traffic::follow::Followers;
use crate::traffic::load::{Judge, Load, Plan};
use crate::traffic::pairs::{Pairs, RATE};
use crate::traffic::probe::{self, WriteProbe};
use crate::traffic::registers::{self, Costs, Registers, Retry};
use crate::traffic::sightings::Sightings;
use crate::traffic::stats::Times;
use crate::traffic::views::Views;

/// Who writes and reads: as clients that send again what was not answered, and as clients that never do. So the outcome of a write
/// may stay unknown, and must then be the same for all who look.
const CLIENTS: [Clients; 2] = [
    Clients {
        name: "again",
        retry: Retry::SameId,
        writers: 2,
        readers: 2,
    },
    Clients {
        name: "once",
        retry: Retry::Never,
        writers: 1,
        readers: 1,
    },
];
/// Operations per second of each of them.
const OPERATIONS: u32 = 25;

struct Clients {
    name: &'static str,
    retry: Retry,
    /// Each of a key of its own.
    writers: u32,
    /// Each of all keys.
    readers: u32,
}

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
        wait_through(&format!("{name} is answered"), SOON, POLL, async || {
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
    /// In the order of [`CLIENTS`]; none if nothing is written.
    registers: Vec<Registers>,
    /// None if nothing is written.
    followers: Option<Followers>,
    /// The same.
    sightings: Option<Sightings>,
    /// The same.
    views: Option<Views>,
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
        let start = |name: &str, clients: &Clients| {
            Registers::start(registers::Plan {
                nodes: nodes.clone(),
                mesh: MESH.into(),
                name: format!("register-{name}-{}", clients.name),
                writers: clients.writers,
                readers: clients.readers,
                rate: OPERATIONS,
                retry: clients.retry,
            })
        };
        let followers = registers.map(|_| Followers::start(&nodes, MESH));
        let sightings = registers.map(|_| Sightings::start(&nodes));
        let views = registers.map(|_| Views::start(&nodes, MESH));
        let registers = registers.map(|name| CLIENTS.iter().map(|clients| start(name, clients)).collect());
        let registers = registers.unwrap_or_default();
        Ok(Self {
            pairs,
            registers,
            followers,
            sightings,
            views,
            nodes,
        })
    }

    /// What was written and read so far by the clients that send again.
    ///
    /// # Errors
    /// If nothing is written at all.
    fn so_far<T>(&self, look: impl FnOnce(&History) -> T) -> anyhow::Result<T> {
        Ok(self.registers.first().context("nothing is written")?.so_far(look))
    }

    /// Starts a probe of when writes are accepted, at every node.
    ///
    /// # Errors
    /// If some node accepts no write now.
    pub async fn probe(&self) -> anyhow::Result<WriteProbe> {
        WriteProbe::start(&self.nodes, SOON).await
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
        wait_through(&format!("{writes} further writes"), SOON, POLL, async || {
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
            demo.report.verdict(
                oracles::TRAFFIC,
                &format!("{during}: no request of {name} fails"),
                outcome.failed == 0 && outcome.ok > 0,
                format!("{}; {}", outcome.summary(), by.join(", ")),
            );
            rows.push(row(during, &name, outcome.times));
        }
        let mut history = History::default();
        let (mut writes, mut reads) = (Times::default(), Times::default());
        let stopped = join_all(self.registers.into_iter().map(Registers::stop)).await;
        for (clients, (seen, costs)) in CLIENTS.iter().zip(stopped) {
            judge(demo, during, clients, &seen, &costs);
            writes.add(&costs.writes);
            reads.add(&costs.reads);
            history.add(seen);
        }
        if !history.writes.is_empty() {
            rows.push(row(during, "write, until acknowledged", writes));
            rows.push(row(during, "read, linearizable", reads));
            if let Some(followers) = self.followers {
                told(demo, during, followers, &history).await;
            }
            if let Some(views) = self.views {
                views.stop().await.judge(&mut demo.report, &format!("{during}: "));
            }
            if let Some(sightings) = self.sightings {
                sightings.stop().await.judge(&mut demo.report, &format!("{during}: "), &[]);
            }
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

fn judge(demo: &mut Demo, during: &str, clients: &Clients, history: &History, costs: &Costs) {
    let during = format!("{during}, clients that send {}", clients.name);
    let violations = history.violations();
    let first = violations.first().map(|v| format!("; the first of {}: {v}", violations.len()));
    demo.report.verdict(
        oracles::REGISTERS,
        &format!("{during}: every read lies between the last acknowledged and the last attempted write, none goes back"),
        violations.is_empty() && history.acknowledged() > 0 && !history.reads.is_empty(),
        format!(
            "{} writes acknowledged, {} reads{}",
            history.acknowledged(),
            history.reads.len(),
            first.unwrap_or_default()
        ),
    );
    let open = history.writes.len() - history.acknowledged();
    match clients.retry {
        Retry::SameId => drop(demo.report.verdict(
            oracles::ACKNOWLEDGED,
            &format!("{during}: every write was acknowledged in the end"),
            open == 0,
            format!("{open} open"),
        )),
        Retry::Never => demo
            .report
            .fact(&format!("{during}: writes whose outcome stayed unknown"), open.to_string()),
    }
    demo.report.check(
        &format!("{during}: no call was refused as wrong"),
        costs.refusals.is_empty(),
        costs.refusals.first().cloned().unwrap_or_default(),
    );
    demo.report.fact(
        &format!("{during}: attempts without an answer"),
        format!("{} writes, {} reads", costs.failed_attempts, costs.failed_reads),
    );
}

/// What followers were told beside it.
async fn told(demo: &mut Demo, during: &str, followers: Followers, history: &History) {
    let stories = followers.stop().await;
    let acknowledged: Vec<Acknowledged> = history.with_revisions().collect();
    let found = streams::wrong(&stories, &acknowledged);
    let told: Vec<String> = stories.iter().map(|story| format!("{} by {}", story.told(), story.node)).collect();
    demo.report.verdict(
        oracles::STREAMS,
        &format!("{during}: followers are told every change once, in order, the same at every node"),
        found.is_empty() && stories.iter().all(|story| story.told() > 0) && !acknowledged.is_empty(),
        match found.first() {
            Some(first) => format!("{} findings, the first: {first}", found.len()),
            None => format!("revisions told: {}", told.join(", ")),
        },
    );
}

/// The registers are of no use afterwards.
async fn remove(nodes: &[Api], history: &History) {
    let Some(node) = nodes.first() else { return };
    // Those of an unknown outcome too: they may be there.
    let keys: BTreeSet<&str> = history.writes.iter().map(|w| w.key.as_str()).collect();
    let paths: Vec<String> = keys
        .into_iter()
        .map(|key| registers::path(MESH, key))
        .chain(probe::paths())
        .collect();
    // What is left over changes nothing for anybody.
    let _answers = join_all(paths.iter().map(|path| node.delete(path))).await;
}
