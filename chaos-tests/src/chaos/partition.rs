//! The network between the nodes of the global, and between zones and nodes, fails in every way a link can.
//!
//! In: a topology whose connections all pass [`Links`]. Out: checks of what each fault may cost.
//! Invariant: every fault ends before the next begins, and after each the cluster accepts writes at every node again.
//! Source: issue text; DESIGN.md section 3, "pre-vote", "watchdog", and section 4.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use crate::chaos::background::Background;
use crate::chaos::cluster;
use crate::chaos::links::Links;
use crate::chaos::stage::Stage;
use crate::demo::topology::Global;
use crate::demo::{Demo, SOON, START};
use crate::faults::{Partition, Weather};
use crate::harness::{POLL, Poll, wait_through};
use crate::oracles;
use crate::oracles::leadership::{self, Expected, Seen};
use crate::report::milliseconds;

/// A majority that was cut off from its leader accepts writes within this, on a machine that is slow and busy too. The issue bounds only
/// what a killed leader costs ([`crate::chaos::leader`]); this is several times what the programs' own deadlines add up to.
const ELECTION_LIMIT: Duration = Duration::from_secs(6);
/// Several election timeouts: who would stand for election has done so by then.
const DISTURBED: Duration = Duration::from_secs(3);
/// Writes that must pass during a fault which must not stop them.
const DURING: usize = 60;

/// All faults, one after another, so many times.
///
/// # Errors
/// If the cluster does not recover from one.
pub async fn run(stage: &mut Stage<'_>, rounds: u32) -> anyhow::Result<()> {
    let slack = stage.slack;
    let (demo, links, background) = (&mut *stage.demo, stage.links, stage.background);
    for _ in 0..rounds {
        leader_alone(demo, links, background).await.context("the leader is cut off")?;
        leader_deaf(demo, links, background).await.context("the leader does not hear")?;
        follower_alone(demo, links, background, slack)
            .await
            .context("a follower is cut off")?;
        follower_deaf(demo, links, background, slack)
            .await
            .context("a follower does not hear")?;
        slow(demo, links, background).await.context("the links are slow")?;
        resets(demo, links, background).await.context("the links are cut")?;
        zone_silent(demo, links, background).await.context("a zone's link is half open")?;
    }
    Ok(())
}

/// Every node answers a linearizable read and accepts a write again, and all name the same leader.
async fn healed(demo: &mut Demo, links: &Links, background: &Background, what: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    links.heal();
    cluster::whole(demo).await?;
    background.until_further(DURING).await?;
    demo.report.did(&format!("healed after: {what}"), start.elapsed());
    Ok(())
}

async fn elects_another(
    demo: &mut Demo,
    links: &Links,
    background: &Background,
    what: &str,
    (sent, heard): (bool, bool),
) -> anyhow::Result<()> {
    let old = cluster::leader(demo).await?;
    let probe = background.probe().await?;
    let begin = Instant::now();
    links.cut(&Partition::of_one(old.id, &cluster::ids(demo), sent, heard));
    let took = probe.accepted_after(begin, "a write is accepted", START).await?;
    probe.stop();
    let (new, _) = wait_through("another node leads", START, POLL, async || {
        let new = cluster::leader_without(demo, Some(old.id)).await?;
        Ok(Poll::when(new.id != old.id, new.clone(), || format!("{} still", new.name())))
    })
    .await?;
    background.until_further(DURING).await?;
    demo.report.check(
        &format!("{what}: another one leads, writes go on within {}", milliseconds(ELECTION_LIMIT)),
        took <= ELECTION_LIMIT,
        format!("{}; {} follows {}", milliseconds(took), new.name(), old.name()),
    );
    deposed(demo, &old, what).await?;
    healed(demo, links, background, what).await
}

/// A leader that is cut off notices it, and answers no linearizable read.
async fn deposed(demo: &mut Demo, old: &Global, what: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    wait_through(&format!("{} knows that it hears no majority", old.name()), SOON, POLL, async || {
        let standing = cluster::standing(demo, old).await?;
        Ok(Poll::when(!standing.quorum, (), || format!("{standing:?}")))
    })
    .await?;
    demo.report
        .did(&format!("{} knows that it hears no majority", old.name()), start.elapsed());
    let api = demo.api(&old.name(), old.ip)?.with_deadline(Duration::from_secs(2));
    let read = api.get("/meshes/default").await;
    let answered = read.as_ref().is_ok_and(|answer| answer.status.is_success());
    demo.report.check(
        &format!("{what}: the old leader {} answers no linearizable read", old.name()),
        !answered,
        read.map_or_else(|error| error.to_string(), |answer| answer.status.to_string()),
    );
    Ok(())
}

async fn leader_alone(demo: &mut Demo, links: &Links, background: &Background) -> anyhow::Result<()> {
    elects_another(demo, links, background, "the leader is cut off from both others", (true, true)).await
}

async fn leader_deaf(demo: &mut Demo, links: &Links, background: &Background) -> anyhow::Result<()> {
    elects_another(demo, links, background, "the leader can send but hears nothing", (false, true)).await
}

/// A fault of one follower: the leader stays, its term stays, writes go on.
async fn leaves_the_leader(
    demo: &mut Demo,
    links: &Links,
    background: &Background,
    slack: u32,
    what: &str,
    (sent, heard): (bool, bool),
) -> anyhow::Result<()> {
    let leading = cluster::leader(demo).await?;
    let term = cluster::standing(demo, &leading).await?.term;
    let follower = demo
        .topology
        .globals
        .iter()
        .find(|g| g.id != leading.id)
        .cloned()
        .context("no follower")?;
    let begin = Instant::now();
    links.cut(&Partition::of_one(follower.id, &cluster::ids(demo), sent, heard));
    wait_through("the follower has had time to stand for election", START, POLL, async || {
        Ok(Poll::when(begin.elapsed() > DISTURBED, (), || "not yet".into()))
    })
    .await?;
    background.until_further(DURING).await?;
    healed(demo, links, background, what).await?;
    let (now, after) = (cluster::leader(demo).await?, cluster::standing(demo, &leading).await?.term);
    // Who stood for election all the while would have been elected, or have raised the term, many times.
    let seen = Seen {
        before: (leading.id, term),
        after: (now.id, after),
        accepted: Some(Duration::ZERO),
    };
    demo.report.verdict(
        oracles::LEADERSHIP,
        &format!("{what}: the leader stays and so does its term, also when it returns"),
        leadership::wrong(Expected::Stays, &seen, slack).is_none(),
        format!("{} in term {term}, then {} in term {after}", leading.name(), now.name()),
    );
    Ok(())
}

async fn follower_alone(demo: &mut Demo, links: &Links, background: &Background, slack: u32) -> anyhow::Result<()> {
    leaves_the_leader(demo, links, background, slack, "a follower is cut off", (true, true)).await
}

async fn follower_deaf(demo: &mut Demo, links: &Links, background: &Background, slack: u32) -> anyhow::Result<()> {
    leaves_the_leader(
        demo,
        links,
        background,
        slack,
        "a follower can send but hears nothing",
        (false, true),
    )
    .await
}

async fn slow(demo: &mut Demo, links: &Links, background: &Background) -> anyhow::Result<()> {
    // A round trip of 24 ms is that of a large region. The default heartbeat of 80 ms bears one of 50 ms on a quiet machine; wider groups
    // need longer periods.
    let each = Duration::from_millis(12);
    let leading = cluster::leader(demo).await?;
    let term = cluster::standing(demo, &leading).await?.term;
    links.between_nodes(Weather::slow(each));
    background.until_further(DURING).await?;
    healed(demo, links, background, "slow links").await?;
    let now = cluster::leader(demo).await?;
    let after = cluster::standing(demo, &now).await?.term;
    // A busy machine adds to the delay what it likes: an election costs nothing but time.
    demo.report.check(
        &format!("{} each way between the nodes: writes go on", milliseconds(each)),
        true,
        format!("{DURING} further writes"),
    );
    demo.report.fact(
        "elections during it",
        format!("term {term}, then {after}; {} led, then {}", leading.name(), now.name()),
    );
    Ok(())
}

/// Every connection between nodes is reset once: nothing is lost, writes go on.
async fn resets(demo: &mut Demo, links: &Links, background: &Background) -> anyhow::Result<()> {
    let probe = background.probe().await?;
    let begin = Instant::now();
    links.between_nodes(Weather::CUT);
    links.between_nodes(Weather::FAIR);
    let took = probe.accepted_after(begin, "a write is accepted", START).await?;
    probe.stop();
    demo.report.check(
        "every connection between nodes is reset: writes go on",
        took <= ELECTION_LIMIT,
        milliseconds(took),
    );
    healed(demo, links, background, "resets").await
}

/// Longest until a zone with a half-open link has its stream elsewhere: it notices by missing answers.
const HALF_OPEN_LIMIT: Duration = Duration::from_secs(90);

/// The link of a zone to the node that holds its stream goes silent: the zone finds another node, and gets what is new.
async fn zone_silent(demo: &mut Demo, links: &Links, background: &Background) -> anyhow::Result<()> {
    let nodes = demo.nodes()?;
    let mut instances = BTreeMap::new();
    for (node, global) in nodes.iter().zip(&demo.topology.globals) {
        instances.insert(cluster::instance(node).await?, global.id);
    }
    let streams = cluster::streams(&nodes[0]).await?;
    let before = streams.get("east").context("zone east has no stream")?.clone();
    let holder = *instances.get(&before.instance).context("a stream at a node that is none of ours")?;
    let begin = Instant::now();
    let link = links.zone_to("east", holder).context("no such link")?;
    link.set(Weather::SILENT);
    wait_through("zone east has a stream to another node", HALF_OPEN_LIMIT, POLL, async || {
        let now = cluster::streams(&nodes[0]).await?;
        let east = now.get("east");
        Ok(Poll::when(east.is_some_and(|s| s.instance != before.instance), (), || {
            format!("{east:?}")
        }))
    })
    .await?;
    demo.report.check(
        "a zone's half-open stream is noticed, and the zone finds another node",
        true,
        milliseconds(begin.elapsed()),
    );
    // Cut off from all: it lives on, and returns by itself.
    links.of_zone("east", Weather::CUT);
    background.until_further(DURING).await?;
    links.of_zone("east", Weather::FAIR);
    let begin = Instant::now();
    wait_through("zone east is back", SOON, POLL, async || {
        let now = cluster::streams(&nodes[0]).await?;
        Ok(Poll::when(now.contains_key("east"), (), || format!("{now:?}")))
    })
    .await?;
    demo.report
        .did("zone east was cut off from every node; it is back", begin.elapsed());
    healed(demo, links, background, "a zone's links").await
}
