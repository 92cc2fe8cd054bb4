//! Step 1: every process starts, a node leads, both zones are online, every proxy has its configuration.
//!
//! Invariant: nothing is prepared by hand; tokens, CAs and configuration come from the programs themselves, as for a user.
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::Api;
use crate::demo::topology::{MESH, Proxy};
use crate::demo::{Demo, SOON, START};
use crate::harness::{POLL, Poll, wait_through};

/// How long the demo's tokens are valid.
const TOKEN_VALIDITY: &str = "24h";

/// # Errors
/// If a process does not start, or something does not come about in time.
pub async fn run(demo: &mut Demo) -> anyhow::Result<()> {
    let title = match demo.topology.globals.len() {
        1 => "1. One global control plane, two zones, three workloads",
        _ => "1. A global control plane of three nodes, two zones, three workloads",
    };
    demo.report.step(title);
    if demo.topology.is_cluster() {
        cluster_pki(demo).await?;
    }
    globals(demo).await?;
    zones(demo).await?;
    proxies(demo).await
}

/// The CA of the cluster and a certificate for each node, as an operator makes them.
async fn cluster_pki(demo: &mut Demo) -> anyhow::Result<()> {
    let start = Instant::now();
    for arguments in demo.places.pki_commands(&demo.topology) {
        let done = tokio::process::Command::new(demo.places.program("global-cp"))
            .args(&arguments)
            .env_clear()
            .output()
            .await?;
        anyhow::ensure!(
            done.status.success(),
            "global-cp {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&done.stderr)
        );
    }
    demo.report.did(
        "global-cp pki init, and pki node for each: a CA and the nodes' certificates",
        start.elapsed(),
    );
    Ok(())
}

async fn globals(demo: &mut Demo) -> anyhow::Result<()> {
    let start = Instant::now();
    // All at once: none is ready before a majority is there.
    for global in demo.topology.globals.clone() {
        demo.fleet.start(demo.places.global(&demo.topology, &global)?)?;
    }
    for global in demo.topology.globals.clone() {
        demo.fleet.wait_ready(&global.name(), START).await?;
        demo.report.did(&format!("{} is ready", global.name()), start.elapsed());
    }
    let (revision, _) = demo.apply("mesh.yaml").await?;
    demo.report
        .check("a node leads: it commits a write", revision > 0, format!("revision {revision}"));
    Ok(())
}

async fn zones(demo: &mut Demo) -> anyhow::Result<()> {
    let global = demo.global()?;
    let zones = demo.topology.zones.clone();
    let start = Instant::now();
    for zone in &zones {
        let body = json!({"zone": zone.name, "validFor": TOKEN_VALIDITY});
        save_token(&global, "/tokens/zone", &body, &demo.places.token_file(&zone.control_plane())).await?;
        demo.fleet.start(demo.places.zone(&demo.topology, zone)?)?;
    }
    let names: Vec<String> = zones.iter().map(|z| z.control_plane()).collect();
    try_join_all(names.iter().map(|name| demo.fleet.wait_ready(name, START))).await?;
    demo.report.did("both zone control planes are ready", start.elapsed());

    let (seen, _) = wait_through("both zones are online at GET /zones/_overview", SOON, POLL, async || {
        let overview = global.get_json("/zones/_overview").await?;
        let online = online_zones(&overview);
        Ok(Poll::when(
            zones.iter().all(|z| online.contains(&z.name)),
            online.join(", "),
            || overview.to_string(),
        ))
    })
    .await?;
    demo.report.did("both zones are online", start.elapsed());
    demo.report.check("zones online at GET /zones/_overview", true, seen);
    Ok(())
}

async fn proxies(demo: &mut Demo) -> anyhow::Result<()> {
    let start = Instant::now();
    for zone in demo.topology.zones.clone() {
        for proxy in zone.proxies() {
            start_proxy(demo, proxy).await?;
        }
    }
    let names: Vec<String> = demo
        .topology
        .sidecars()
        .map(Proxy::application)
        .chain(demo.topology.proxies().map(|p| p.name.clone()))
        .collect();
    try_join_all(names.iter().map(|name| demo.fleet.wait_ready(name, START))).await?;
    demo.report
        .did("three workloads with sidecars and two zone ingresses are ready", start.elapsed());

    let proxies: Vec<Proxy> = demo.topology.proxies().cloned().collect();
    let with_envoy = proxies.iter().filter(|p| demo.fleet.envoy_count(&p.name) == 1).count();
    demo.report.check(
        "each proxy runs one Envoy",
        with_envoy == proxies.len(),
        format!("{with_envoy} of {}", proxies.len()),
    );
    let version = demo.envoy(&proxies[0]).version().await?;
    demo.report.about("envoy", version.clone());
    demo.report.note(&format!("Envoy {version}"));
    demo.fleet.remember_envoys();
    Ok(())
}

/// Gets a token for a proxy from its zone and starts it, with its application if it is a sidecar. Does not wait until it is ready.
///
/// # Errors
/// If there is no token in time, or a program cannot be started.
pub async fn start_proxy(demo: &Demo, proxy: &Proxy) -> anyhow::Result<()> {
    let zone = demo.topology.zone(&proxy.zone);
    save_dataplane_token(demo, &demo.zone(zone)?, proxy).await?;
    if proxy.is_ingress() {
        return demo.fleet.start(demo.places.ingress(zone, proxy));
    }
    demo.fleet.start(demo.places.application(proxy))?;
    demo.fleet.start(demo.places.sidecar(zone, proxy))
}

/// The zone's key for these tokens comes from the global: right after the start it may still be on its way.
async fn save_dataplane_token(demo: &Demo, api: &Api, proxy: &Proxy) -> anyhow::Result<()> {
    let mut body =
        json!({"name": proxy.dataplane, "mesh": MESH, "type": "dataplane", "workload": proxy.workload, "validFor": TOKEN_VALIDITY});
    if proxy.is_ingress() {
        // Lets it publish the zone's address.
        body["tags"] = json!({"kuma.io/listener-zoneingress": ["enabled"]});
    }
    let what = format!("a token for {} from zone {}", proxy.name, proxy.zone);
    wait_through(&what, SOON, POLL, async || {
        let got = save_token(api, "/tokens/dataplane", &body, &demo.places.token_file(&proxy.name)).await;
        Ok(got.map_or_else(|error| Poll::NotYet(format!("{error:#}")), Poll::Ready))
    })
    .await?;
    Ok(())
}

async fn save_token(api: &Api, path: &str, body: &Value, file: &Path) -> anyhow::Result<()> {
    let token = api
        .post(path, body)
        .await?
        .success()
        .with_context(|| format!("POST {path}"))?
        .text();
    anyhow::ensure!(token.split('.').count() == 3, "POST {path} did not answer with a token");
    let mut out = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(file)?;
    std::io::Write::write_all(&mut out, token.trim().as_bytes())?;
    Ok(())
}

/// Zones with a subscription that has a connect time and no disconnect time.
fn online_zones(overview: &Value) -> Vec<String> {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let connected = |s: &Value| s["connectTime"].is_string() && s["disconnectTime"].is_null();
    list(&overview["items"])
        .iter()
        .filter(|zone| list(&zone["zoneInsight"]["subscriptions"]).iter().any(connected))
        .filter_map(|zone| zone["name"].as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_online_while_a_subscription_is_open() {
        let overview = json!({"total": 3, "next": null, "items": [
            {"type": "ZoneOverview", "name": "east", "zone": {}, "zoneInsight": {"subscriptions": [
                {"connectTime": "2026-11-21T04:00:00Z", "disconnectTime": "2026-11-21T04:00:01Z"}, {"connectTime": "2026-11-21T04:00:02Z"}]}},
            {"type": "ZoneOverview", "name": "west", "zone": {}, "zoneInsight": {"subscriptions": [
                {"connectTime": "2026-11-21T04:00:00Z", "disconnectTime": "2026-11-21T04:00:01Z"}]}},
            {"type": "ZoneOverview", "name": "north", "zone": {}}]});
        assert_eq!(online_zones(&overview), ["east"]);
    }
}
