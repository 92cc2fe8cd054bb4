//! Step 2: every proxy gets an identity; without permission a call is denied, with it the callee sees who called.
//!
//! Invariant: what is claimed is read where it happens: the denial in the destination's Envoy, the TLS version in both sidecars,
//! the absence of TLS in the ingress's own config dump.
use anyhow::Context as _;
use tokio::time::Instant;

use crate::client::{Answer, Api, Mode};
use crate::demo::topology::port;
use crate::demo::{Demo, SOON, answered, describe, said};
use crate::harness::{POLL, Poll, wait_through};
use crate::traffic::load::{Judge, Load, Plan};

/// Calls that must all be denied, or all be answered.
const CALLS: u32 = 40;
/// Calls per second.
const RATE: u32 = 200;

/// # Errors
/// If something does not come about in time.
pub async fn run(demo: &mut Demo) -> anyhow::Result<()> {
    demo.report
        .step("2. Identities, and a permission: frontend (east) calls backend (west)");
    certificates(demo).await?;
    denied(demo).await?;
    allowed(demo).await?;
    path_of_the_call(demo).await
}

async fn certificates(demo: &mut Demo) -> anyhow::Result<()> {
    let start = Instant::now();
    demo.apply("mesh-identity.yaml").await?;
    for sidecar in demo.topology.sidecars().cloned().collect::<Vec<_>>() {
        let (envoy, id) = (demo.envoy(&sidecar), sidecar.spiffe_id());
        wait_through(&format!("{} has the certificate {id}", sidecar.name), SOON, POLL, async || {
            let uris = envoy.certificate_uris().await?;
            Ok(Poll::when(uris.contains(&id), (), || format!("{uris:?}")))
        })
        .await?;
        demo.report.check(&format!("{} has its certificate", sidecar.name), true, id);
    }
    demo.report.did("every sidecar has its certificate", start.elapsed());

    let zones = demo.topology.zones.clone();
    for zone in &zones {
        let api = demo.zone(zone)?;
        wait_through(&format!("zone {} knows the CAs of all zones", zone.name), SOON, POLL, async || {
            let trusts = api.get_json("/meshes/default/meshtrusts").await?;
            Ok(Poll::when(trusts["total"].as_u64() == Some(zones.len() as u64), (), || {
                trusts.to_string()
            }))
        })
        .await?;
    }
    demo.report.did("every zone trusts the CAs of both zones", start.elapsed());
    Ok(())
}

/// A denial by RBAC, which Envoy words like this.
fn is_denied(answer: &Answer) -> bool {
    answer.status == http::StatusCode::FORBIDDEN && answer.text().contains("RBAC: access denied")
}

async fn denied(demo: &mut Demo) -> anyhow::Result<()> {
    let start = Instant::now();
    let api = Api::new(demo.call().target);
    wait_through("the call reaches the backend in west and is denied there", SOON, POLL, async || {
        Ok(match api.get("/").await {
            Ok(answer) => Poll::when(is_denied(&answer), (), || describe(&answer)),
            Err(error) => Poll::NotYet(error.to_string()),
        })
    })
    .await?;
    demo.report.did("the call is denied", start.elapsed());
    let judge: Judge = std::sync::Arc::new(|answer| {
        if is_denied(answer) {
            Ok("403".into())
        } else {
            Err(describe(answer))
        }
    });
    let outcome = Load::exactly(
        Plan {
            name: "denied".into(),
            shot: demo.call(),
            rate: RATE,
            mode: Mode::NewConnection,
            judge,
        },
        CALLS,
    )
    .await;
    demo.report.check(
        "without a permission every call is 403, RBAC",
        outcome.failed == 0,
        outcome.summary(),
    );
    let stats = demo.envoy(demo.topology.proxy("backend-west")).stats().await?;
    let denied = stats.sum(|name| name.ends_with("rbac.denied"));
    demo.report.check(
        "it is the destination's Envoy that denies",
        denied >= u64::from(CALLS),
        format!("rbac.denied of backend-west: {denied}"),
    );
    Ok(())
}

async fn allowed(demo: &mut Demo) -> anyhow::Result<()> {
    let start = Instant::now();
    demo.apply("allow-frontend.yaml").await?;
    let api = Api::new(demo.call().target);
    let (said, _) = wait_through("the call is answered", SOON, POLL, async || {
        let answer = api.get("/hello").await?;
        Ok(said(&answer).map_or_else(Poll::NotYet, Poll::Ready))
    })
    .await?;
    demo.report.did("the call is answered", start.elapsed());
    let caller = demo.topology.proxy("frontend-east").spiffe_id();
    demo.report.check(
        "the backend in west answers",
        said.instance == "backend-west" && said.zone == "west",
        said.instance.clone(),
    );
    demo.report.check(
        "it sees the caller's SPIFFE ID",
        said.caller.as_deref() == Some(&caller),
        said.caller.unwrap_or_default(),
    );
    let plan = Plan {
        name: "allowed".into(),
        shot: demo.call(),
        rate: RATE,
        mode: Mode::NewConnection,
        judge: answered(),
    };
    let outcome = Load::exactly(plan, CALLS).await;
    demo.report
        .check("with the permission every call is 200", outcome.failed == 0, outcome.summary());
    Ok(())
}

async fn path_of_the_call(demo: &mut Demo) -> anyhow::Result<()> {
    let topology = demo.topology.clone();
    let ingress = demo.envoy(topology.proxy("zone-ingress-west"));
    let listeners = ingress.listeners().await?;
    let listener = listeners
        .iter()
        .find(|l| l.port == u64::from(port::INGRESS))
        .context("the ingress has no listener on its port")?;
    let passed = ingress.stats().await?;
    let through = passed.of_listeners("downstream_cx_total");
    demo.report.check(
        "the call passes west's zone ingress",
        through > 0,
        format!("{through} connections, SNI {}", listener.server_names.join(" ")),
    );
    let detail = format!(
        "{} filter chains, {} with a transport socket",
        listener.chains, listener.chains_with_tls
    );
    demo.report.check(
        "the ingress has no TLS context: it cannot read the call",
        listener.chains > 0 && listener.chains_with_tls == 0,
        detail,
    );

    let caller = demo.envoy(topology.proxy("frontend-east")).stats().await?;
    let callee = demo.envoy(topology.proxy("backend-west")).stats().await?;
    let (up, down) = (
        caller.of_clusters("ssl.versions.TLSv1.3"),
        callee.of_listeners("ssl.versions.TLSv1.3"),
    );
    let older = caller.of_clusters("ssl.versions.TLSv1.2") + callee.of_listeners("ssl.versions.TLSv1.2");
    let detail = format!("TLS 1.3 handshakes: {up} at the caller, {down} at the callee; TLS 1.2: {older}");
    demo.report
        .check("mutual TLS 1.3 from sidecar to sidecar", up > 0 && down > 0 && older == 0, detail);
    Ok(())
}
