//! The leader is killed, again and again, while clients write, zones listen and workloads call each other.
//!
//! In: a cluster under load ([`Background`]). Out: the time until the next accepted write of each kill, and checks.
//! Invariant: time counts from the signal to the first acknowledgement of a write that was sent after it, at any node.
//! Source: issue text, step 5.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::chaos::background::Background;
use crate::chaos::cluster::{self, Stream};
use crate::chaos::outage;
use crate::client::Api;
use crate::demo::topology::Global;
use crate::demo::{Demo, SOON, START, after};
use crate::harness::logs::Allowed;
use crate::harness::{POLL, Poll, wait_through};
use crate::report::{Row, milliseconds};
use crate::traffic::stats::Times;

/// Writes may stand still for so long after the leader's death. Source: issue text.
const LIMIT: Duration = Duration::from_secs(3);
/// Writes between two kills, so that each one hits a cluster at work.
const BETWEEN: usize = 50;

/// What a missing node, or one that cannot be heard, brings about in the logs of the others.
pub const ALLOWED: [Allowed; 6] = [
    Allowed {
        process: "global-",
        text: "WARN h2::proto::streams::recv: recv_reset; remotely-reset pending-accept streams reached limit",
        reason: "calls that their sender gave up while a link was silent arrive all at once when that ends",
    },
    Allowed {
        process: "global-",
        text: "WARN openraft::core::raft_core: ",
        reason: "openraft tells of every vote that a dead or unheard node does not give, and of answers of an earlier term",
    },
    Allowed {
        process: "global-",
        text: "WARN openraft::raft: failed to forward IO completion",
        reason: "a node that was told to stop while it wrote",
    },
    Allowed {
        process: "global-",
        text: "WARN openraft::raft::responder::impls::progress_responder: ProgressResponder.complete_tx.send",
        reason: "a client gave up waiting before its write was done",
    },
    Allowed {
        process: "global-",
        text: "ursa_store::keeper: no majority answers this leader: it falls silent",
        reason: "a leader that the scenario cut off, or whose followers it ended",
    },
    Allowed {
        process: "global-",
        text: "ursa_sync::server::up: the node of the zone's earlier connection does not say that it ended",
        reason: "the node that the zone was connected to is dead",
    },
];

/// Kills the leader so many times. Each time the node is started again and catches up before the next one dies.
///
/// # Errors
/// If the cluster does not recover at all.
pub async fn kill(demo: &mut Demo, background: &Background, rounds: u32) -> anyhow::Result<()> {
    demo.allowed.extend(ALLOWED);
    demo.allowed.extend(outage::GONE);
    let (mut pauses, mut returns) = (Times::default(), Times::default());
    for round in 1..=rounds {
        background.until_further(BETWEEN).await?;
        let leader = cluster::leader(demo).await?;
        let nodes = survivors(demo, &leader)?;
        let witness = nodes.first().context("nobody survives the leader")?;
        let doomed = cluster::instance(&demo.api(&leader.name(), leader.ip)?).await?;
        let before = cluster::streams(witness).await?;
        after::counters_before_the_end_of(demo, &leader.name()).await;

        let probe = background.probe().await?;
        let killed = Instant::now();
        demo.fleet.signal(&leader.name(), Signal::SIGKILL)?;
        let what = format!("a write is accepted after the death of {}", leader.name());
        let pause = probe.accepted_after(killed, &what, START).await?;
        probe.stop();
        pauses.record(pause);
        let successor = cluster::leader_without(demo, Some(leader.id)).await?;
        demo.report.did(
            &format!(
                "kill -9 of the leader {}, {round} of {rounds}: next write accepted; {} leads",
                leader.name(),
                successor.name()
            ),
            pause,
        );
        background.until_further(BETWEEN).await?;
        streams_stood(demo, witness, &before, &doomed, &leader).await?;

        let start = Instant::now();
        demo.fleet.wait_gone(&leader.name(), SOON).await?;
        demo.fleet.restart(&leader.name())?;
        demo.fleet.wait_ready(&leader.name(), START).await?;
        caught_up(demo, &leader, witness).await?;
        returns.record(start.elapsed());
    }
    demo.report.check(
        &format!(
            "after each of {rounds} deaths of the leader a write is accepted within {}",
            milliseconds(LIMIT)
        ),
        pauses.max() <= LIMIT && pauses.count() == u64::from(rounds),
        format!("longest {}", milliseconds(pauses.max())),
    );
    let group = "kill -9 of the leader";
    demo.report.times(vec![
        row(group, "until the next accepted write", pauses),
        row(group, "the node is back and has caught up", returns),
    ]);
    Ok(())
}

/// A row of the table of times.
#[must_use]
pub fn row(group: &str, name: &str, times: Times) -> Row {
    Row {
        group: group.into(),
        name: name.into(),
        times,
    }
}

/// Clients of all nodes but one.
///
/// # Errors
/// If credentials cannot be read.
pub fn survivors(demo: &Demo, without: &Global) -> anyhow::Result<Vec<Api>> {
    let others = demo.topology.globals.iter().filter(|g| g.id != without.id);
    others.map(|g| demo.api(&g.name(), g.ip)).collect()
}

/// Streams that ended at a surviving node must be the same as before.
async fn streams_stood(
    demo: &mut Demo,
    witness: &Api,
    before: &BTreeMap<String, Stream>,
    doomed: &str,
    leader: &Global,
) -> anyhow::Result<()> {
    let (now, _) = wait_through("every zone has a stream", SOON, POLL, async || {
        let now = cluster::streams(witness).await?;
        // Those of the dead node find another one.
        let all = demo
            .topology
            .zones
            .iter()
            .all(|z| now.get(&z.name).is_some_and(|s| s.instance != doomed));
        Ok(Poll::when(all, now.clone(), || format!("{now:?}")))
    })
    .await?;
    let dropped: Vec<&String> = before
        .iter()
        .filter(|(_, stream)| stream.instance != doomed)
        .filter(|(zone, stream)| now.get(*zone) != Some(*stream))
        .map(|(zone, _)| zone)
        .collect();
    let stood = before.values().filter(|s| s.instance != doomed).count() - dropped.len();
    demo.report.check(
        &format!("no zone's stream to a surviving node is dropped by the death of {}", leader.name()),
        dropped.is_empty(),
        format!("{stood} of {} streams ended elsewhere; dropped {dropped:?}", before.len()),
    );
    Ok(())
}

/// Waits until a node that came back answers a linearizable read that is as new as another node's.
async fn caught_up(demo: &Demo, node: &Global, witness: &Api) -> anyhow::Result<()> {
    let read = "/meshes/default";
    let want = witness.get(read).await?.success()?.revision().context("no revision in an answer")?;
    let api = demo.api(&node.name(), node.ip)?;
    wait_through(&format!("{} has caught up to {want}", node.name()), SOON, POLL, async || {
        Ok(match api.get(read).await {
            Ok(answer) if answer.status.is_success() => {
                let seen = answer.revision();
                Poll::when(seen >= Some(want), (), || format!("{seen:?}"))
            }
            Ok(answer) => Poll::NotYet(answer.status.to_string()),
            Err(error) => Poll::NotYet(error.to_string()),
        })
    })
    .await?;
    Ok(())
}
