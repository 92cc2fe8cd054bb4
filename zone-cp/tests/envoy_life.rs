//! The life of proxies and of their control plane under traffic that must not notice: orderly stops, renewals, restarts. Real Envoys,
//! real TLS, no retry anywhere. Needs `ENVOY_BIN`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;
mod life_support;

use std::{net::SocketAddr, time::Duration};

use common::{MESH, put};
use life_support::{Life, Outcome, Sidecar, Traffic, http::envoy_binary, stored, until, until_answered_by};
use serde_json::json;
use tokio::time::Instant;
use ursa_model::Kind;

/// Port of the frontend's way to the backend.
const OUTBOUND: u16 = 20001;
const RATE: u32 = 200;

/// A frontend and two backends, which both answer.
async fn three(life: &Life) -> (Sidecar, [Sidecar; 2], SocketAddr) {
    let one = life.workload("backend-1", "backend", 20, None).await;
    let two = life.workload("backend-2", "backend", 30, None).await;
    let frontend = life.workload("frontend-1", "frontend", 10, Some((OUTBOUND, "backend"))).await;
    let call: SocketAddr = (life.ip(10).parse::<std::net::IpAddr>().unwrap(), OUTBOUND).into();
    for name in ["backend-1", "backend-2"] {
        until_answered_by(call, name).await;
    }
    (frontend, [one, two], call)
}

fn all_right(outcome: &Outcome) {
    let first: Vec<_> = outcome.failed.iter().take(10).collect();
    assert!(
        outcome.failed.is_empty(),
        "{} of {} failed, the first {first:#?}",
        outcome.failed.len(),
        outcome.right() + outcome.failed.len() as u64
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_is_told_to_stop_fails_no_call() {
    let Some(binary) = envoy_binary() else { return };
    let life = Life::start(binary, "24h").await;
    let (_frontend, backends, call) = three(&life).await;
    let traffic = Traffic::start(call, RATE);
    let hosts = [("backend-1", 20), ("backend-2", 30)];
    let mut running: Vec<Sidecar> = backends.into();
    for _round in 0..2 {
        for (name, host) in hosts {
            let sidecar = running.remove(0);
            assert_eq!(sidecar.name, name);
            sidecar.stop().await;
            life.wait("its Dataplane is gone at once, not after its lease", |v| {
                !v.list(Kind::Dataplane).any(|d| d.name() == name)
            })
            .await;
            running.push(life.proxy(name, "backend", host, None).await);
            until_answered_by(call, name).await;
        }
    }
    let outcome = traffic.stop().await;
    all_right(&outcome);
    assert!(outcome.by.len() == 2 && outcome.right() > u64::from(RATE), "{:?}", outcome.by);
}

/// Handshakes are what renewals could break: connections between the proxies are closed all the time.
async fn renewals(seconds: u64, expiry: &str, connections: &str) {
    let Some(binary) = envoy_binary() else { return };
    let life = Life::start(binary, expiry).await;
    let closed = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"http": {"maxConnectionDuration": connections}}}]});
    life.store.put(vec![put(Kind::MeshTimeout, MESH, "closed", &[], closed)]);
    let (frontend, backends, call) = three(&life).await;
    let before = frontend.stat("ssl.handshake").await;
    let issued = |life: &Life| {
        let view = life.observed.view();
        let renewals = view
            .list(Kind::DataplaneInsight)
            .map(|i| i.spec["mTLS"]["certificateRegenerations"].as_u64().unwrap_or(0));
        renewals.min().unwrap_or(0)
    };
    let first = issued(&life);
    let traffic = Traffic::start(call, RATE);
    let end = Instant::now() + Duration::from_secs(seconds);
    until_instant(end).await;
    let outcome = traffic.stop().await;
    all_right(&outcome);
    assert!(issued(&life) >= first + 2, "every proxy's certificate was renewed twice at least");
    let made = frontend.stat("ssl.handshake").await - before;
    println!(
        "{} answers, {} failed, {made} handshakes, {} renewals of each certificate at least, in {seconds} s",
        outcome.right(),
        outcome.failed.len(),
        issued(&life) - first
    );
    assert!(made >= 5, "{made} handshakes are too few to tell");
    for sidecar in backends.iter().chain([&frontend]) {
        for bad in ["ssl.connection_error", "ssl.fail_verify_.*", "ssl.fail_no_sni_match"] {
            assert_eq!(sidecar.stat(bad).await, 0, "{}: {bad}", sidecar.name);
        }
    }
}

async fn until_instant(end: Instant) {
    tokio::time::sleep_until(end).await; // the length of the test is its input
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_under_traffic() {
    renewals(22, "10s", "1s").await;
}

/// `make renewals`: the long form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes five minutes"]
async fn certificates_of_30_s_are_renewed_under_traffic_for_five_minutes() {
    renewals(300, "30s", "5s").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_control_plane_is_not_noticed() {
    let Some(binary) = envoy_binary() else { return };
    let mut life = Life::start(binary, "24h").await;
    let (frontend, backends, call) = three(&life).await;
    let changes = async |sidecar: &Sidecar| {
        (
            sidecar.stat("cluster.*membership_change").await,
            sidecar
                .stat("listener_manager.listener_(modified|removed|in_place_updated|added)")
                .await,
            sidecar.stat("cluster_manager.cluster_(modified|removed|added)").await,
        )
    };
    let before = changes(&frontend).await;
    let dataplanes = || ["backend-1", "backend-2", "frontend-1"].map(|n| stored(&life.store, Kind::Dataplane, n).unwrap());
    let was = dataplanes();
    let traffic = Traffic::start(call, RATE);

    life.stop_plane().await;
    let so_far = traffic.so_far().right();
    until("the traffic goes on", async || traffic.so_far().right() > so_far + u64::from(RATE)).await;
    life.start_plane().await;
    until("all streams are back", async || life.connections().now().len() == 3).await;
    // What would be changed by then is changed.
    let revision = life
        .store
        .put(vec![put(
            Kind::MeshTrafficPermission,
            MESH,
            "another",
            &[],
            json!({"rules": [{"default": {"deny": [
        {"spiffeID": {"type": "Exact", "value": "spiffe://default.west.mesh.local/workload/nobody"}}]}}]}),
        )])
        .revision;
    let applied = life.connections().applied(revision, life_support::PATIENCE).await;
    assert_eq!((applied.done, applied.behind.len()), (3, 0), "{applied:?}");
    let so_far = traffic.so_far().right();
    until("the traffic goes on", async || traffic.so_far().right() > so_far + u64::from(RATE)).await;
    let outcome = traffic.stop().await;
    all_right(&outcome);
    assert_eq!(changes(&frontend).await, before, "endpoints, listeners or clusters were touched");
    let now = ["backend-1", "backend-2", "frontend-1"].map(|n| stored(&life.store, Kind::Dataplane, n).unwrap());
    assert_eq!(was, now);
    drop(backends);
}

/// The port of its inbound belongs to another process when it starts, which leaves it later. Nothing else changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_whose_port_was_taken_listens_once_it_is_free() {
    let Some(binary) = envoy_binary() else { return };
    let life = Life::start(binary, "24h").await;
    let inbound: SocketAddr = (life.ip(20).parse::<std::net::IpAddr>().unwrap(), life_support::INBOUND).into();
    let other = tokio::net::TcpListener::bind(inbound).await.unwrap();
    let sidecar = life.workload("backend-1", "backend", 20, None).await;
    // Refused once, and once more when it was tried again.
    until("its listener is refused", async || {
        sidecar.stat("listener_manager.lds.update_rejected").await >= 2
    })
    .await;
    drop(other);
    until("it listens", async || tokio::net::TcpStream::connect(inbound).await.is_ok()).await;
    let timeouts = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"http": {"maxConnectionDuration": "1h"}}}]});
    let revision = life.store.put(vec![put(Kind::MeshTimeout, MESH, "any", &[], timeouts)]).revision;
    let applied = life.connections().applied(revision, life_support::PATIENCE).await;
    assert_eq!(
        (applied.done, applied.refused.len(), applied.behind.len()),
        (1, 0, 0),
        "{applied:?}"
    );
}

/// What a stock kuma-dp does on SIGTERM: it makes its Envoy fail its health check, waits, and ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_proxy_that_drains_is_withdrawn_and_leaves_in_order() {
    let Some(binary) = envoy_binary() else { return };
    let life = Life::start(binary, "24h").await;
    let stock = life.stock("backend-1", "backend", 20).await;
    let two = life.workload("backend-2", "backend", 30, None).await;
    let _frontend = life.workload("frontend-1", "frontend", 10, Some((OUTBOUND, "backend"))).await;
    let call: SocketAddr = (life.ip(10).parse::<std::net::IpAddr>().unwrap(), OUTBOUND).into();
    until_answered_by(call, "backend-1").await;
    let state = |v: &ursa_state::View| {
        let one = v.list(Kind::Dataplane).find(|d| d.name() == "backend-1");
        one.map(|d| d.spec["networking"]["inbound"][0]["health"]["ready"] == false)
    };
    // Its Envoy has said at least once that it is live.
    until("a report of health", async || life.stock_is_live(&stock).await).await;
    let traffic = Traffic::start(call, RATE);
    stock.admin.fail_health_checks().await.unwrap();
    life.wait("it is withdrawn", |v| state(v) == Some(true)).await;
    let revision = life.store.view().revision();
    let applied = life.connections().applied(revision, life_support::PATIENCE).await;
    assert!(applied.behind.is_empty(), "{applied:?}");
    until("nobody is connected", async || stock.admin.connections().await.unwrap().active == 0).await;
    drop(stock);
    life.wait("it left in order", |v| state(v).is_none()).await;
    all_right(&traffic.stop().await);
    drop(two);
}
