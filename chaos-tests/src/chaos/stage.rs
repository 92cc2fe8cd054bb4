//! What the scenarios of single faults share: a cluster at work behind links, chance, and what is checked after every fault.
//!
//! In: a demo whose programs meet over [`Links`]. Out: checks.
//! Invariant: after every fault all nodes agree on a leader, answer reads and accept writes before the next fault begins.
use std::time::Duration;

use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::time::Instant;

use crate::chaos::background::Background;
use crate::chaos::cluster::{self, Standing};
use crate::chaos::links::Links;
use crate::demo::topology::Global;
use crate::demo::{Demo, SOON, START};
use crate::harness::wait::pause_until;
use crate::harness::{POLL, Poll, wait_through};
use crate::oracles;
use crate::oracles::caps::{self, Watch};
use crate::oracles::leadership::{self, Expected, Seen};
use crate::oracles::replicas;
use crate::report::milliseconds;
use crate::traffic::probe::WriteProbe;

/// Writes that must pass after each fault.
const AFTER: usize = 20;

/// What a scenario works with.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The programs.
    pub demo: &'a mut Demo,
    /// What they meet over.
    pub links: &'a Links,
    /// Traffic, writes and reads.
    pub background: &'a Background,
    /// Chance, from the seed of the run.
    pub rng: StdRng,
    /// Limits of time are this many times as long: for machines that are busy with other things.
    pub slack: u32,
}

impl Stage<'_> {
    /// Lets time pass while a fault lasts.
    pub async fn last(&self, time: Duration) {
        pause_until(Instant::now() + time).await;
    }

    /// The node that leads, and the standing that says so.
    ///
    /// # Errors
    /// If there is none.
    pub async fn leader(&self) -> anyhow::Result<(Global, Standing)> {
        let standing = cluster::whole(self.demo).await?;
        let leader = self.node(standing.leader.context("a whole group has a leader")?)?;
        Ok((leader, standing))
    }

    /// The node of this id.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, id: u64) -> anyhow::Result<Global> {
        let node = self.demo.topology.globals.iter().find(|g| g.id == id);
        node.cloned().with_context(|| format!("no node {id}"))
    }

    /// Some node but this one.
    ///
    /// # Errors
    /// If there is no other.
    pub fn another(&mut self, than: u64) -> anyhow::Result<Global> {
        let others: Vec<&Global> = self.demo.topology.globals.iter().filter(|g| g.id != than).collect();
        others.choose(&mut self.rng).copied().cloned().context("no other node")
    }

    /// Heals the links, and waits until the group is whole and writes pass. Returns who leads now, and in which term.
    ///
    /// # Errors
    /// If it does not become whole.
    pub async fn whole(&mut self, after: &str) -> anyhow::Result<Standing> {
        let start = Instant::now();
        self.links.heal();
        let standing = cluster::whole(self.demo).await.with_context(|| format!("after: {after}"))?;
        self.background.until_further(AFTER).await?;
        self.demo.report.did(&format!("whole again after: {after}"), start.elapsed());
        Ok(standing)
    }

    /// A majority was connected all the time since the fault at `from`: writes go on within the judge's limit.
    pub async fn goes_on(&mut self, probe: WriteProbe, from: Instant, after: &str) {
        let limit = leadership::LIMIT * self.slack;
        // Far beyond the limit: how long it took says more than that it took too long.
        let took = probe.accepted_after(from, "a write is accepted", limit.max(START)).await;
        probe.stop();
        self.demo.report.verdict(
            oracles::LEADERSHIP,
            &format!("{after}: a majority is connected, writes go on within {}", milliseconds(limit)),
            took.as_ref().is_ok_and(|took| *took <= limit),
            took.map_or_else(|error| format!("{error:#}"), milliseconds),
        );
    }

    /// The same process leads in the same term as before, as [`leadership`] has it.
    pub fn same_leader(&mut self, before: Standing, after: Standing, during: &str) {
        let of = |standing: Standing| (standing.leader.unwrap_or_default(), standing.term);
        let seen = Seen {
            before: of(before),
            after: of(after),
            accepted: Some(Duration::ZERO),
        };
        let same = leadership::wrong(Expected::Stays, &seen, self.slack).is_none();
        let told = |s: Standing| format!("{} in term {}", s.leader.unwrap_or_default(), s.term);
        self.demo.report.verdict(
            oracles::LEADERSHIP,
            &format!("{during}: the leader stays and so does its term"),
            same,
            format!("{} leads, then {}", told(before), told(after)),
        );
    }
}

/// All nodes hold the same at the same revision. To be asked when nobody writes.
///
/// # Errors
/// If they do not come to the same revision in time.
pub async fn equal_replicas(demo: &mut Demo) -> anyhow::Result<()> {
    let nodes = demo.nodes()?;
    let names: Vec<String> = demo.topology.globals.iter().map(Global::name).collect();
    let (copies, _) = wait_through("a copy of every node at the same revision", SOON, POLL, async || {
        let mut copies = Vec::new();
        for (node, name) in nodes.iter().zip(&names) {
            match replicas::copy(node).await.with_context(|| name.clone())? {
                Some(copy) => copies.push((name.clone(), copy)),
                None => return Ok(Poll::NotYet(format!("somebody writes while {name} is read"))),
            }
        }
        let revisions: Vec<u64> = copies.iter().map(|(_, copy)| copy.revision).collect();
        Ok(Poll::when(replicas::comparable(&copies), copies, || {
            format!("revisions {revisions:?}")
        }))
    })
    .await?;
    let found = replicas::differences(&copies);
    let size = copies.first().map_or((0, 0), |(_, copy)| (copy.resources.len(), copy.revision));
    demo.report.verdict(
        oracles::REPLICAS,
        "all nodes hold the same at the same revision",
        found.is_empty() && size.0 > 0,
        match found.first() {
            Some(first) => format!("{} differences, the first: {first}", found.len()),
            None => format!("{} resources of {} nodes at revision {}", size.0, copies.len(), size.1),
        },
    );
    Ok(())
}

/// Memory and disk of every process stayed below their caps.
pub fn within_caps(demo: &mut Demo, watch: &Watch) {
    let most = watch.most();
    let over = caps::over(&most);
    let mib = |bytes: u64| bytes >> 20;
    let top = most.iter().max_by_key(|(_, used)| used.memory);
    let detail = match (over.first(), top) {
        (Some(first), _) => first.clone(),
        (None, Some((name, used))) => format!("most memory: {name}, {} MiB; its folder {} MiB", mib(used.memory), mib(used.disk)),
        (None, None) => "nothing was seen".to_owned(),
    };
    demo.report.verdict(
        oracles::CAPS,
        "memory and disk of every process stay below their caps",
        over.is_empty() && top.is_some(),
        detail,
    );
}
