//! Scenarios: nodes, zones, disks, clocks and networks fail under constant traffic, writes and reads; longer and harder than in the demo.
//!
//! In: a name of [`SCENARIOS`], how often, built programs and an Envoy. Out: `target/chaos/<name>/{report.json,summary.txt}`.
//! Invariant: every scenario starts with the demo's set-up and ends with its post-conditions: no panic, no end that was not asked
//! for, nothing rejected, nothing pushed twice unchanged, no unlisted WARN or ERROR, equal replicas, nothing left running.
//! Source: DESIGN.md section 9. Not here: processes ([`crate::harness`]), single faults ([`crate::faults`]).
pub mod all_partitions;
pub mod background;
pub mod clocks;
pub mod cluster;
pub mod damaged;
pub mod disks;
pub mod flapping;
pub mod graceful;
pub mod leader;
pub mod links;
pub mod outage;
pub mod partition;
pub mod pauses;
pub mod power;
pub mod soak;
pub mod stage;
pub mod wiped;

use std::time::Duration;

use anyhow::Context as _;
use background::{Background, open_the_way};
use links::Links;
use outage::{How, JOIN_LIMIT};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use stage::Stage;

use crate::demo::topology::Topology;
use crate::demo::{Demo, Options, conduct, steps};
use crate::faults::damage;
use crate::faults::shim::Shim;
use crate::oracles::caps::Watch;

/// Requests of each pair while there is no global: 30 s, longer than any of the programs' own deadlines for it.
const OUTAGE: u32 = 6_000;
/// Requests of each pair between two faults.
const BETWEEN: u32 = 400;

/// What a scenario needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: a global of one node will do.
    Any,
    /// A global of several nodes.
    Cluster,
    /// The same, behind links.
    Links,
    /// The same, with the shim in every node.
    Shim,
}

/// What can happen.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name, and that of its folder.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// Rounds unless told otherwise.
    pub rounds: u32,
    /// What so many rounds take, in seconds, on a machine of two cores that does nothing else. All scenarios together are to take about a
    /// quarter of an hour.
    pub takes: u32,
}

const fn scenario(name: &'static str, needs: Needs, (rounds, takes): (u32, u32), about: &'static str) -> Scenario {
    Scenario {
        name,
        about,
        needs,
        rounds,
        takes,
    }
}

/// All of them.
pub const SCENARIOS: [Scenario; 14] = [
    scenario(
        "leader-kill",
        Needs::Cluster,
        (5, 40),
        "kill -9 of the leader under writes and traffic, again and again",
    ),
    scenario(
        "global-down",
        Needs::Any,
        (1, 60),
        "kill -9 of every global node, a zone lives on and takes in a new sidecar, the global returns",
    ),
    scenario(
        "zone-cp-restart",
        Needs::Any,
        (5, 70),
        "kill -9 of a zone's control plane with no global reachable, again and again",
    ),
    scenario(
        "rolling-restart",
        Needs::Any,
        (1, 20),
        "SIGTERM to every program in turn, each started again before the next",
    ),
    scenario(
        "partition",
        Needs::Links,
        (1, 105),
        "links between nodes, and between zones and nodes, are silent, one-way, slow or cut",
    ),
    scenario(
        "partitions",
        Needs::Links,
        (64, 160),
        "all 64 directed partitions of three nodes; rounds: how many of them",
    ),
    scenario(
        "flapping",
        Needs::Links,
        (1, 45),
        "links come and go: of a follower, of the leader, all of them",
    ),
    scenario(
        "pause",
        Needs::Links,
        (2, 50),
        "SIGSTOP and SIGCONT: the leader, a follower, all nodes, a zone's control plane",
    ),
    scenario("wiped", Needs::Links, (2, 12), "a node comes back without its data folder"),
    scenario(
        "damaged",
        Needs::Links,
        (10, 25),
        "a node comes back with a file cut short, changed or gone; rounds: how many damages",
    ),
    scenario(
        "disks",
        Needs::Shim,
        (1, 70),
        "disks are full, slow, or fail to sync: a follower's, the leader's, all",
    ),
    scenario(
        "power",
        Needs::Shim,
        (3, 45),
        "one, two, all nodes lose their power at once, and what was not synced",
    ),
    scenario("clocks", Needs::Shim, (1, 30), "the time of day jumps at one node"),
    scenario(
        "soak",
        Needs::Shim,
        (20, 130),
        "faults of chance, one after another or two at once; rounds: how many",
    ),
];

impl Scenario {
    /// About what it takes with so many rounds, its set-up included.
    #[must_use]
    pub fn takes(&self, rounds: u32) -> Duration {
        let round = self.takes.saturating_sub(SET_UP).saturating_mul(rounds) / self.rounds.max(1);
        Duration::from_secs(u64::from(SET_UP) + u64::from(round))
    }
}

/// Of that, in seconds, until the programs of the demo stand and after all have ended.
const SET_UP: u32 = 5;

/// How a scenario is played.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How often, or how many.
    pub rounds: u32,
    /// Of chance: the same seed picks the same faults in the same order.
    pub seed: u64,
    /// Limits of time are so many times as long as they need be on a machine that does nothing else. Those of the demo are not.
    pub slack: u32,
    /// `soak` goes on for so long, whatever `rounds` says.
    pub lasts: Option<Duration>,
}

/// Runs one scenario to its end. Returns whether every check passed.
///
/// # Errors
/// If it cannot begin, or its report cannot be written.
pub async fn run(scenario: &Scenario, settings: &Settings, options: &Options) -> anyhow::Result<bool> {
    let rounds = settings.rounds;
    anyhow::ensure!(
        scenario.needs == Needs::Any || options.nodes > 1,
        "{} needs a global of three nodes",
        scenario.name
    );
    let mut topology = Topology::with_globals(options.nodes);
    // Held until the end: they carry the connections between the programs.
    let links = match scenario.needs {
        Needs::Links | Needs::Shim => Some(Links::between(&mut topology).await?),
        Needs::Any | Needs::Cluster => None,
    };
    let mut demo = Demo::prepare(scenario.name, topology, options)?;
    if scenario.needs == Needs::Shim {
        demo.places.shim = Some(Shim::build(&demo.places.data)?);
    }
    let name = scenario.name;
    demo.report.about("rounds", rounds);
    demo.report.about("seed", settings.seed);
    demo.report.about("slack", settings.slack);
    demo.report.about("scenario", format!("{name}: {}", scenario.about));
    demo.report.about(
        "command",
        format!("make chaos SCENARIO={name} ROUNDS={rounds} SEED={}", settings.seed),
    );
    let done = conduct(demo, options, async |demo: &mut Demo| {
        let watch = Watch::start(&demo.fleet);
        steps::bring_up::run(demo).await.context("bring-up")?;
        steps::identity::run(demo).await.context("identities")?;
        demo.report.step(&format!("{name}: {}", scenario.about));
        open_the_way(demo).await?;
        match (name, &links) {
            ("leader-kill", _) => leader_kill(demo, rounds).await,
            ("global-down", _) => global_down(demo, rounds).await,
            ("zone-cp-restart", _) => zone_cp_restart(demo, rounds).await,
            ("rolling-restart", _) => rolling_restart(demo, rounds, settings.slack).await,
            (_, Some(links)) => staged(demo, links, name, settings).await,
            _ => anyhow::bail!("there is no scenario {name}"),
        }?;
        if demo.topology.is_cluster() {
            stage::equal_replicas(demo).await?;
        }
        stage::within_caps(demo, &watch);
        Ok(())
    })
    .await;
    drop(links);
    done
}

/// Scenarios on a [`Stage`].
async fn staged(demo: &mut Demo, links: &Links, name: &str, settings: &Settings) -> anyhow::Result<()> {
    let rounds = settings.rounds;
    demo.allowed.extend(leader::ALLOWED);
    demo.allowed.extend(outage::GONE);
    let background = Background::start(demo, Some(name))?;
    let mut stage = Stage {
        demo,
        links,
        background: &background,
        rng: StdRng::seed_from_u64(settings.seed),
        slack: settings.slack,
    };
    let many = usize::try_from(rounds)?;
    let done = match name {
        "partition" => partition::run(&mut stage, rounds).await,
        "partitions" => all_partitions::run(&mut stage, many).await,
        "flapping" => flapping::run(&mut stage, rounds).await,
        "pause" => pauses::run(&mut stage, rounds).await,
        "wiped" => wiped::run(&mut stage, rounds).await,
        "damaged" => damaged::run(&mut stage, &damage::ALL[..many.min(damage::ALL.len())]).await,
        "disks" => disks::run(&mut stage, rounds).await,
        "power" => power::run(&mut stage, rounds).await,
        "clocks" => clocks::run(&mut stage, rounds).await,
        "soak" => soak::run(&mut stage, rounds, settings.lasts).await,
        _ => Err(anyhow::anyhow!("there is no scenario {name}")),
    };
    links.heal();
    background.finish(demo, name).await;
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

async fn rolling_restart(demo: &mut Demo, rounds: u32, slack: u32) -> anyhow::Result<()> {
    let cluster = demo.topology.is_cluster();
    let background = Background::start(demo, cluster.then_some("rolling"))?;
    let done = async {
        for round in 0..rounds {
            if cluster {
                graceful::globals(demo, &background, slack).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_them_take_about_a_quarter_of_an_hour() {
        let all: Duration = SCENARIOS.iter().map(|s| s.takes(s.rounds)).sum();
        let minutes = all.as_secs() / 60;
        assert!((12..=16).contains(&minutes), "{all:?}");
        let leader_kill = &SCENARIOS[0];
        assert!(leader_kill.takes(20) > leader_kill.takes(5) * 3 && leader_kill.takes(0) < leader_kill.takes(1));
    }
}
