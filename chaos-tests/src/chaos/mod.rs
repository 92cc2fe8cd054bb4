//! Scenarios: nodes, zones and networks fail under constant traffic, writes and reads; longer and harder than in the demo.
//!
//! In: a name of [`SCENARIOS`], how often, built programs and an Envoy. Out: `target/chaos/<name>/{report.json,summary.txt}`.
//! Invariant: every scenario starts with the demo's set-up and ends with its post-conditions: no panic, no end that was not asked
//! for, nothing rejected, nothing pushed twice unchanged, no unlisted WARN or ERROR, nothing left running.
//! Source: DESIGN.md section 9. Not here: processes ([`crate::harness`]), faults of the network ([`crate::faults`]).
pub mod background;
pub mod cluster;
pub mod graceful;
pub mod leader;
pub mod outage;
pub mod partition;

use anyhow::Context as _;
use background::{Background, open_the_way};
use outage::{How, JOIN_LIMIT};

use crate::demo::topology::Topology;
use crate::demo::{Demo, Options, conduct, steps};

/// Requests of each pair while there is no global: 30 s, longer than any of the programs' own deadlines for it.
const OUTAGE: u32 = 6_000;
/// Requests of each pair between two faults.
const BETWEEN: u32 = 400;

/// What can happen.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name, and that of its folder.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// It needs a global of several nodes.
    pub cluster: bool,
    /// Rounds unless told otherwise.
    pub rounds: u32,
}

/// All of them.
pub const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "leader-kill",
        about: "kill -9 of the leader under writes and traffic, again and again",
        cluster: true,
        rounds: 5,
    },
    Scenario {
        name: "global-down",
        about: "kill -9 of every global node, a zone lives on and takes in a new sidecar, the global returns",
        cluster: false,
        rounds: 1,
    },
    Scenario {
        name: "zone-cp-restart",
        about: "kill -9 of a zone's control plane with no global reachable, again and again",
        cluster: false,
        rounds: 5,
    },
    Scenario {
        name: "rolling-restart",
        about: "SIGTERM to every program in turn, each started again before the next",
        cluster: false,
        rounds: 1,
    },
    Scenario {
        name: "partition",
        about: "links between nodes, and between zones and nodes, are silent, one-way, slow or cut",
        cluster: true,
        rounds: 1,
    },
];

/// Runs one scenario to its end. Returns whether every check passed.
///
/// # Errors
/// If it cannot begin, or its report cannot be written.
pub async fn run(scenario: &Scenario, rounds: u32, options: &Options) -> anyhow::Result<bool> {
    anyhow::ensure!(
        !scenario.cluster || options.nodes > 1,
        "{} needs a global of three nodes",
        scenario.name
    );
    let mut topology = Topology::with_globals(options.nodes);
    // Held until the end: they carry the connections between the programs.
    let links = if scenario.name == "partition" {
        Some(partition::links(&mut topology).await?)
    } else {
        None
    };
    let mut demo = Demo::prepare(scenario.name, topology, options)?;
    demo.report.about("rounds", rounds);
    let name = scenario.name;
    let done = conduct(demo, options, async |demo: &mut Demo| {
        steps::bring_up::run(demo).await.context("bring-up")?;
        steps::identity::run(demo).await.context("identities")?;
        demo.report.step(&format!("{}: {}", name, scenario.about));
        open_the_way(demo).await?;
        match (name, &links) {
            ("leader-kill", _) => leader_kill(demo, rounds).await,
            ("global-down", _) => global_down(demo, rounds).await,
            ("zone-cp-restart", _) => zone_cp_restart(demo, rounds).await,
            ("rolling-restart", _) => rolling_restart(demo, rounds).await,
            ("partition", Some(links)) => partition::run(demo, links, rounds).await,
            _ => anyhow::bail!("there is no scenario {name}"),
        }
    })
    .await;
    drop(links);
    done
}

async fn leader_kill(demo: &mut Demo, rounds: u32) -> anyhow::Result<()> {
    let background = Background::start(demo, Some("kills"))?;
    let done = leader::kill(demo, &background, rounds).await;
    background.finish(demo, "leaders die").await;
    done
}

async fn global_down(demo: &mut Demo, rounds: u32) -> anyhow::Result<()> {
    let background = Background::start(demo, None)?;
    let done = async {
        for round in 0..rounds {
            outage::kill_globals(demo).await?;
            background.pass(OUTAGE).await;
            if round == 0 {
                outage::join_sidecar(demo, "backend-west-2", Some(JOIN_LIMIT)).await?;
            }
            outage::globals_return(demo).await?;
        }
        Ok(())
    }
    .await;
    background.finish(demo, "the global is away and returns").await;
    done
}

async fn zone_cp_restart(demo: &mut Demo, rounds: u32) -> anyhow::Result<()> {
    let background = Background::start(demo, None)?;
    let done = async {
        outage::kill_globals(demo).await?;
        for _ in 0..rounds {
            background.pass(BETWEEN).await;
            outage::restart_zone(demo, "west", How::Killed).await?;
        }
        outage::join_sidecar(demo, "backend-west-2", Some(JOIN_LIMIT)).await?;
        outage::globals_return(demo).await
    }
    .await;
    background.finish(demo, "zone west restarts without a global").await;
    done
}

async fn rolling_restart(demo: &mut Demo, rounds: u32) -> anyhow::Result<()> {
    let cluster = demo.topology.is_cluster();
    let background = Background::start(demo, cluster.then_some("rolling"))?;
    let done = async {
        for round in 0..rounds {
            if cluster {
                graceful::globals(demo, &background).await?;
            }
            graceful::zones(demo).await?;
            if round == 0 {
                graceful::ingress(demo, "west", true).await?;
            }
            graceful::sidecars(demo).await?;
        }
        Ok(())
    }
    .await;
    background.finish(demo, "every program restarts in turn").await;
    done
}
