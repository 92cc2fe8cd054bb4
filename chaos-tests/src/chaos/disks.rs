//! Disks of global nodes are slow, fail, or are full: of a follower, of the leader, of all.
//!
//! In: a cluster at work whose nodes run with the shim. Out: checks.
//! Invariant: nothing acknowledged is lost, and a majority with good disks goes on; a node whose sync failed does not go on as if
//! nothing had been (DESIGN.md section 3: it stops). A node whose disk only takes nothing runs on, answers 507, and takes writes again by
//! itself.
//! The faults are calls of the process that fail (the shim): they need no rights, and no file system of their own.
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use crate::chaos::stage::Stage;
use crate::chaos::{leader, outage};
use crate::demo::topology::Global;
use crate::demo::{SOON, START};
use crate::faults::shim::Shim;
use crate::faults::{disk_full, failing_sync, kill, read_only, slow_sync};
use crate::harness::logs::Allowed;
use crate::harness::{POLL, Poll, wait_through};
use crate::oracles;
use crate::report::milliseconds;

/// How long a fault lasts that nobody need end for.
const LASTS: Duration = Duration::from_secs(4);
/// Of a sync on a slow disk. Longer than an election timeout may be: a slow disk is no dead node.
const SLOW: Duration = Duration::from_millis(200);
/// Bytes of a write that is to fill the disk: some of them are more than the log takes ahead.
const MUCH: usize = 400 << 10;
/// The others accept writes within this. The issue bounds only what a killed leader costs.
const LIMIT: Duration = Duration::from_secs(6);

/// What nodes say about such disks, and about their own end.
const SAID: [Allowed; 8] = [
    Allowed {
        process: "global-",
        text: "the lead was not taken over yet",
        reason: "the scenario has its disk take nothing, and another one may have taken over by itself",
    },
    Allowed {
        process: "global-",
        text: "ursa_sync::storing: what a peer sent cannot be stored yet",
        reason: "the scenario has its disk take nothing",
    },
    Allowed {
        process: "global-",
        text: "the disk takes nothing: this node refuses writes until it does",
        reason: "the scenario has its disk take nothing",
    },
    Allowed {
        process: "global-",
        text: "the disk of this leader takes nothing: it gives the lead away",
        reason: "the scenario has its disk take nothing",
    },
    Allowed {
        process: "global-",
        text: "os error",
        reason: "the scenario has writes or syncs of this node fail",
    },
    Allowed {
        process: "global-",
        text: "ERROR openraft::",
        reason: "the library tells at every layer that the log cannot be written",
    },
    Allowed {
        process: "global-",
        text: "ERROR sled::",
        reason: "the cache cannot be written either; it is rebuilt",
    },
    Allowed {
        process: "global-",
        text: "ursa_store::cache",
        reason: "the cache cannot be written either; it is rebuilt",
    },
];
/// sled panics where a sync fails. It has a thread of its own, on which that is caught: what it keeps is rebuilt.
const CRASHES: [Allowed; 1] = [Allowed {
    process: "global-",
    text: "/src/pagecache/logger.rs",
    reason: "sled 0.34 unwraps the result of a sync, on the thread of the cache",
}];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    Full,
    ReadOnly,
    Failing,
}

impl Disk {
    fn name(self) -> &'static str {
        match self {
            Self::Full => "disk full",
            Self::ReadOnly => "read-only disk",
            Self::Failing => "failing sync",
        }
    }

    fn begin(self, shim: &Shim, node: &str) -> anyhow::Result<()> {
        match self {
            Self::Full => disk_full::begin(shim, node),
            Self::ReadOnly => read_only::begin(shim, node),
            Self::Failing => failing_sync::begin(shim, node),
        }
    }

    fn end(self, shim: &Shim, node: &str) -> anyhow::Result<()> {
        match self {
            Self::Full => disk_full::end(shim, node),
            Self::ReadOnly => read_only::end(shim, node),
            Self::Failing => failing_sync::end(shim, node),
        }
    }
}

/// # Errors
/// If the cluster does not recover.
pub async fn run(stage: &mut Stage<'_>, rounds: u32) -> anyhow::Result<()> {
    stage.demo.allowed.extend(SAID);
    stage.demo.known_crashes.extend(CRASHES);
    stage.demo.allowed.extend(leader::ALLOWED);
    stage.demo.allowed.extend(outage::GONE);
    for _ in 0..rounds {
        for disk in [Disk::Failing, Disk::Full, Disk::ReadOnly] {
            for of_leader in [false, true] {
                of_one(stage, disk, of_leader).await?;
            }
        }
        all_full(stage).await?;
        slow(stage).await?;
    }
    Ok(())
}

fn shim(stage: &Stage<'_>) -> anyhow::Result<Shim> {
    stage.demo.places.shim.clone().context("the nodes run without the shim")
}

/// One node's disk fails or is full. The others go on; with the disk well again the node is back, by itself or started anew.
async fn of_one(stage: &mut Stage<'_>, disk: Disk, of_leader: bool) -> anyhow::Result<()> {
    let (shim, (leading, _)) = (shim(stage)?, stage.leader().await?);
    let (node, role) = if of_leader {
        (leading, "the leader")
    } else {
        (stage.another(leading.id)?, "the follower")
    };
    let name = node.name();
    let what = format!("{} of {role} {name}", disk.name());
    if disk == Disk::Failing {
        stage.demo.fleet.may_end(&name)?;
    }
    let probe = stage.background.probe().await?;
    stage.demo.report.injected(disk.name(), &format!("{role} {name}"));
    let begin = Instant::now();
    disk.begin(&shim, &name)?;
    // Not the first one that gets through: the first after which they keep doing so.
    stage.last(Duration::from_millis(500)).await;
    let took = probe
        .accepted_after(Instant::now(), "a write is accepted", START)
        .await
        .map(|_| begin.elapsed());
    probe.stop();
    stage.last(LASTS).await;
    let ended = stage.demo.fleet.ended(&name)?;
    let refused = if disk == Disk::Failing {
        None
    } else {
        Some(refuses(stage, &node).await)
    };
    disk.end(&shim, &name)?;
    let limit = LIMIT * stage.slack;
    stage.demo.report.verdict(
        oracles::LEADERSHIP,
        &format!("{what}: writes go on within {}", milliseconds(limit)),
        took.as_ref().is_ok_and(|took| *took <= limit),
        took.map_or_else(|error| format!("{error:#}"), milliseconds),
    );
    if disk == Disk::Failing {
        stage.demo.report.verdict(
            oracles::CRASHES,
            &format!("{what}: it stops, in order"),
            ended.as_deref() == Some("exit code 1"),
            ended.clone().unwrap_or_else(|| "it runs on".to_owned()),
        );
    }
    if let Some(refused) = refused {
        stage.demo.report.verdict(
            oracles::CRASHES,
            &format!("{what}: it runs on, answers 507 and says what to do"),
            ended.is_none() && refused.is_ok(),
            ended.clone().map_or_else(
                || refused.unwrap_or_else(|error| format!("{error:#}")),
                |how| format!("it ended, {how}"),
            ),
        );
    }
    if disk != Disk::Failing && ended.is_none() {
        takes_writes_again(stage, &node).await.with_context(|| what.clone())?;
    }
    back(stage, &node, ended.is_some(), &what).await
}

/// Writes at this node until it says that its disk takes nothing: a full one is noticed when what was taken ahead is used up.
async fn refuses(stage: &Stage<'_>, node: &Global) -> anyhow::Result<String> {
    let api = stage.demo.api(&node.name(), node.ip)?.with_deadline(SOON);
    let text = "x".repeat(MUCH);
    let secret = serde_json::json!({ "type": "Secret", "mesh": "default", "name": "filler", "data": text });
    wait_through("a write is refused for want of space", START, POLL, async || {
        let answer = api.put("/meshes/default/secrets/filler", &secret).await?;
        Ok(match (answer.status.as_u16(), answer.text()) {
            (507, text) if text.contains("make room") => Poll::Ready(text),
            (status, text) => Poll::NotYet(format!("{status}: {text}")),
        })
    })
    .await
    .map(|(text, _)| text)
}

/// The node shows at once that its disk is well, without having been started anew.
async fn takes_writes_again(stage: &Stage<'_>, node: &Global) -> anyhow::Result<()> {
    let api = stage.demo.api(&node.name(), node.ip)?.with_deadline(SOON);
    let filler = "/meshes/default/secrets/filler";
    wait_through("the node takes writes again", START, POLL, async || {
        let answer = api.delete(filler).await?;
        let done = answer.status.is_success() || answer.status.as_u16() == 404;
        Ok(Poll::when(done, (), || answer.text()))
    })
    .await?;
    Ok(())
}

/// Started again if it ended, ready, and part of the group.
async fn back(stage: &mut Stage<'_>, node: &Global, ended: bool, what: &str) -> anyhow::Result<()> {
    let name = node.name();
    if ended {
        kill::end(&stage.demo.fleet, &name)?;
    }
    // It may also end by what it is told only now.
    let ready = stage.demo.diagnostics(node.ip).with_deadline(Duration::from_secs(2));
    wait_through(&format!("{name} is ready"), START, POLL, async || {
        if stage.demo.fleet.ended(&name)?.is_some() {
            kill::end(&stage.demo.fleet, &name)?;
        }
        let answer = ready.get("/ready").await?;
        Ok(Poll::when(answer.status.is_success(), (), || answer.text()))
    })
    .await?;
    stage.whole(what).await?;
    Ok(())
}

/// No node can write: nothing is accepted, nothing is lost, reads go on; with room again all is as before, without a restart.
async fn all_full(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let shim = shim(stage)?;
    let globals = stage.demo.topology.globals.clone();
    stage.demo.report.injected("disk full", "every global node");
    let (leader, _) = stage.leader().await?;
    for node in &globals {
        disk_full::begin(&shim, &node.name())?;
    }
    let refused = refuses(stage, &leader).await;
    stage.demo.report.verdict(
        oracles::CRASHES,
        "every disk is full: writes are answered 507 with what to do",
        refused.is_ok(),
        refused.unwrap_or_else(|error| format!("{error:#}")),
    );
    // Whoever leads by now answers as before.
    let mut read = Vec::new();
    for node in &globals {
        let api = stage.demo.api(&node.name(), node.ip)?.with_deadline(SOON);
        let answer = api.get("/meshes/default").await?;
        read.push(format!("{}: {}", node.name(), answer.status.as_u16()));
    }
    stage.demo.report.verdict(
        oracles::CRASHES,
        "every disk is full: linearizable reads go on",
        read.iter().any(|answer| answer.ends_with(": 200")),
        read.join(", "),
    );
    stage.last(LASTS).await;
    let mut ended = Vec::new();
    for node in &globals {
        disk_full::end(&shim, &node.name())?;
        ended.extend(stage.demo.fleet.ended(&node.name())?);
    }
    stage.demo.report.verdict(
        oracles::CRASHES,
        "every disk is full: all nodes run on",
        ended.is_empty(),
        ended.join("; "),
    );
    for node in &globals {
        takes_writes_again(stage, node).await?;
    }
    for node in &globals {
        stage.demo.fleet.wait_ready(&node.name(), START).await?;
    }
    stage.whole("every disk was full").await?;
    Ok(())
}

/// A slow disk is no dead node: of a follower nobody notices, of the leader writes are slower.
///
/// # Errors
/// If the cluster is not whole afterwards.
pub async fn slow(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let shim = shim(stage)?;
    for of_leader in [false, true] {
        let (leading, before) = stage.leader().await?;
        let (node, role) = if of_leader {
            (leading, "the leader")
        } else {
            (stage.another(leading.id)?, "the follower")
        };
        let what = format!("{role} {} needs {} more for each sync", node.name(), milliseconds(SLOW));
        stage.demo.report.injected("slow sync", &what);
        slow_sync::begin(&shim, &node.name(), SLOW)?;
        stage.last(LASTS).await;
        let writes = stage.background.until_further(5).await;
        slow_sync::end(&shim, &node.name())?;
        writes.with_context(|| what.clone())?;
        let after = stage.whole(&what).await?;
        stage.same_leader(before, after, &what);
    }
    Ok(())
}
