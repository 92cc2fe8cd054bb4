//! No global at all: zones go on by themselves, one restarts, a new proxy joins; then the global returns.
//!
//! In: a demo under traffic. Out: actions and checks.
//! Invariant: nothing of a zone depends on the global being there: no endpoint disappears, tokens and certificates are issued.
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::chaos::{cluster, leader};
use crate::client::{Answer, Api, Mode};
use crate::demo::steps::bring_up::start_proxy;
use crate::demo::topology::{Global, MESH, Proxy, port};
use crate::demo::{Demo, SOON, START, after};
use crate::envoy_admin::{Endpoints, lost};
use crate::harness::logs::Allowed;
use crate::harness::metrics::Metrics;
use crate::harness::stages::Stages;
use crate::harness::{POLL, Poll, wait_through};
use crate::report::milliseconds;
use crate::traffic::registers;

/// A new sidecar must have configuration and certificate within this. Source: issue text.
pub const JOIN_LIMIT: Duration = Duration::from_secs(2);
/// After the first accepted write every zone must have it within this. Source: issue text.
const RETURN_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at the endpoints of every Envoy of a zone.
const LOOK: Duration = Duration::from_millis(25);

/// What zones say when the node that holds their stream is gone.
pub const GONE: [Allowed; 1] = [Allowed {
    process: "zone-",
    text: "ursa_sync::client: the connection to the global ended, reconnecting",
    reason: "the node that held the zone's stream was killed or stopped",
}];

/// `kill -9` of every node of the global at once.
///
/// # Errors
/// If one does not end.
pub async fn kill_globals(demo: &mut Demo) -> anyhow::Result<()> {
    demo.allowed.extend(GONE);
    demo.allowed.extend(leader::ALLOWED);
    let names: Vec<String> = demo.topology.globals.iter().map(Global::name).collect();
    for name in &names {
        after::counters_before_the_end_of(demo, name).await;
    }
    for name in &names {
        demo.fleet.signal(name, Signal::SIGKILL)?;
    }
    for name in &names {
        demo.fleet.wait_gone(name, SOON).await?;
    }
    let count = names.len();
    demo.report
        .note(&format!("kill -9 of every global node: {count} of {count} are gone"));
    Ok(())
}

/// How a process is made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// `kill -9`.
    Killed,
    /// SIGTERM, and so long to end.
    Asked(Duration),
}

/// The end of a zone's control plane and its restart, with an eye on every endpoint of its proxies.
///
/// # Errors
/// If it does not come back, or a proxy does not find it again.
pub async fn restart_zone(demo: &mut Demo, name: &str, how: How) -> anyhow::Result<()> {
    let zone = demo.topology.zone(name).clone();
    let process = zone.control_plane();
    let proxies: Vec<Proxy> = zone.proxies().cloned().collect();
    after::counters_before_the_end_of(demo, &process).await;
    let before = endpoints(demo, &proxies).await?;
    let start = Instant::now();
    let how = match how {
        How::Killed => {
            demo.fleet.signal(&process, Signal::SIGKILL)?;
            demo.fleet.wait_gone(&process, SOON).await?;
            format!("kill -9 of {process}")
        }
        How::Asked(grace) => {
            let ending = demo.fleet.terminate(&process, grace).await?;
            demo.report
                .check(&format!("{process} ends in order when asked to"), ending.clean, ending.how);
            format!("SIGTERM to {process}")
        }
    };
    demo.fleet.restart(&process)?;

    let (mut looks, mut losses) = (0, Vec::new());
    let mut ready = None;
    let want = f64::from(u32::try_from(proxies.len())?);
    let diagnostics = demo.diagnostics(zone.ip).with_mode(Mode::NewConnection);
    // Every look at the zone is also a look at the endpoints, and two more after it says that all are back.
    let mut calm = 0;
    wait_through(&format!("{process} serves its proxies again"), START, LOOK, async || {
        looks += 1;
        let now = endpoints(demo, &proxies).await?;
        losses.extend(losses_between(&proxies, &before, &now));
        let Ok(answer) = diagnostics.get("/ready").await else {
            return Ok(Poll::NotYet("no answer".into()));
        };
        if !answer.status.is_success() {
            return Ok(Poll::NotYet("not ready".into()));
        }
        ready.get_or_insert_with(|| start.elapsed());
        let connected = Metrics::parse(&diagnostics.get("/metrics").await?.text()).sum("xds_connected_proxies");
        calm += u32::from(connected == Some(want));
        Ok(Poll::when(calm > 2, (), || format!("{connected:?} of {want} proxies connected")))
    })
    .await?;
    demo.report
        .did(&format!("{how}; started again, it is ready"), ready.unwrap_or_default());
    demo.report
        .did(&format!("its {} proxies are connected again", proxies.len()), start.elapsed());
    losses.dedup();
    demo.report.check(
        &format!("no endpoint list of zone {name} shrinks while its control plane restarts"),
        losses.is_empty(),
        format!(
            "{looks} looks at {} endpoints{}",
            before.iter().flat_map(Endpoints::values).map(BTreeSet::len).sum::<usize>(),
            losses.first().map(|l| format!("; lost {l}")).unwrap_or_default()
        ),
    );
    Ok(())
}

async fn endpoints(demo: &Demo, proxies: &[Proxy]) -> anyhow::Result<Vec<Endpoints>> {
    try_join_all(proxies.iter().map(async |proxy| demo.envoy(proxy).endpoints().await)).await
}

fn losses_between(proxies: &[Proxy], before: &[Endpoints], now: &[Endpoints]) -> Vec<String> {
    let each = proxies.iter().zip(before).zip(now);
    each.flat_map(|((proxy, before), now)| lost(before, now).into_iter().map(|l| format!("{l} at {}", proxy.name)))
        .collect()
}

/// A spare sidecar joins: token, application, sidecar. Checks that it has configuration and certificate within the limit, if there is one.
///
/// # Errors
/// If it gets none at all.
pub async fn join_sidecar(demo: &mut Demo, name: &str, limit: Option<Duration>) -> anyhow::Result<()> {
    let start = Instant::now();
    let proxy = demo.topology.join(name);
    start_proxy(demo, &proxy).await?;
    demo.report.did(
        &format!("zone {} mints a token for {name}; it is started", proxy.zone),
        start.elapsed(),
    );
    demo.fleet.wait_ready(name, START).await?;
    let (envoy, id) = (demo.envoy(&proxy), proxy.spiffe_id());
    wait_through(&format!("{name} has its certificate {id}"), SOON, POLL, async || {
        let (uris, listeners) = (envoy.certificate_uris().await?, envoy.listeners().await?);
        let inbound = listeners.iter().any(|l| l.port == u64::from(port::INBOUND));
        Ok(Poll::when(uris.contains(&id) && inbound, (), || format!("{uris:?}, {listeners:?}")))
    })
    .await?;
    let took = start.elapsed();
    match limit {
        Some(limit) => drop(demo.report.check(
            &format!("{name} has token, configuration and certificate within {}", milliseconds(limit)),
            took <= limit,
            milliseconds(took),
        )),
        None => demo.report.did(&format!("{name} has configuration and certificate"), took),
    }
    demo.fleet.remember_new_envoys();
    wait_called(demo, &proxy).await
}

/// Waits until the callers of a workload's instance have its endpoint: the frontend beside it, or its zone's ingresses.
///
/// # Errors
/// If they do not get it.
pub async fn wait_called(demo: &mut Demo, proxy: &Proxy) -> anyhow::Result<()> {
    let start = Instant::now();
    let zone = demo.topology.zone(&proxy.zone).clone();
    let callers: Vec<Proxy> = zone
        .ingresses()
        .chain(zone.sidecars.iter().filter(|p| p.workload == "frontend"))
        .cloned()
        .collect();
    let address = proxy.at(port::INBOUND).to_string();
    wait_through(
        &format!("{} is among the endpoints of its callers", proxy.name),
        SOON,
        POLL,
        async || {
            let now = endpoints(demo, &callers).await?;
            let without = now.iter().zip(&callers).find(|(e, _)| !e.values().any(|a| a.contains(&address)));
            Ok(Poll::when(without.is_none(), (), || {
                format!("not at {}", without.map_or("", |(_, caller)| &caller.name))
            }))
        },
    )
    .await?;
    demo.report.did(&format!("{} is called", proxy.name), start.elapsed());
    Ok(())
}

/// Starts all nodes of the global again, and times the first write and its way to every zone, as every node tells.
///
/// # Errors
/// If they do not come back.
pub async fn globals_return(demo: &mut Demo) -> anyhow::Result<()> {
    let start = Instant::now();
    for name in demo.topology.globals.iter().map(Global::name) {
        demo.fleet.restart(&name)?;
    }
    let nodes: Vec<Api> = demo.nodes()?;
    let (path, write) = registers::probe(MESH, "first-write");
    let mut turn = 0;
    let (answer, _) = wait_through("the first accepted write", START, POLL, async || {
        turn += 1;
        let node = nodes[turn % nodes.len()].fork().with_deadline(Duration::from_secs(1));
        Ok(match node.put(&path, &write).await.map(Answer::success) {
            Ok(Ok(answer)) => Poll::Ready(answer),
            Ok(Err(error)) | Err(error) => Poll::NotYet(error.to_string()),
        })
    })
    .await?;
    let accepted = Instant::now();
    demo.report
        .did("all nodes are started; the first write is accepted", start.elapsed());
    let revision = answer.revision().context("the answer to a PUT has no revision")?;
    for zone in demo.topology.zones.clone() {
        let mut stages = Stages::new(demo.diagnostics(zone.ip));
        stages
            .first(&format!("zone {} stores revision {revision}", zone.name), START, |e| {
                e.stage == "stored" && e.revision >= revision
            })
            .await?;
        demo.report.did(&format!("zone {} has stored it", zone.name), accepted.elapsed());
    }
    reported_everywhere(demo, &nodes, revision).await?;
    let took = accepted.elapsed();
    demo.report.check(
        &format!(
            "within {} of the first accepted write every zone reports its revision at every node",
            milliseconds(RETURN_LIMIT)
        ),
        took <= RETURN_LIMIT,
        format!("revision {revision}, {}", milliseconds(took)),
    );
    for global in demo.topology.globals.clone() {
        demo.fleet.wait_ready(&global.name(), START).await?;
    }
    nodes[0].delete(&path).await?.success()?;
    Ok(())
}

/// Waits until every node tells of every zone that it has this revision.
async fn reported_everywhere(demo: &Demo, nodes: &[Api], revision: u64) -> anyhow::Result<()> {
    wait_through("every zone reports the newest revision at every node", START, POLL, async || {
        for (node, global) in nodes.iter().zip(&demo.topology.globals) {
            let reported = match cluster::zone_revisions(node).await {
                Ok(reported) => reported,
                Err(error) => return Ok(Poll::NotYet(format!("{}: {error:#}", global.name()))),
            };
            let behind = demo
                .topology
                .zones
                .iter()
                .find(|z| reported.get(&z.name).is_none_or(|r| *r < revision));
            if let Some(zone) = behind {
                let at = reported.get(&zone.name);
                return Ok(Poll::NotYet(format!("{}: {} at {at:?}, not {revision}", global.name(), zone.name)));
            }
        }
        Ok(Poll::Ready(()))
    })
    .await?;
    Ok(())
}
