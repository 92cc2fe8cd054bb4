//! Is this proxy ready for traffic? `GET /ready` for load balancers, systemd and kubelets.
//! In: the phase that the supervisor is in. Out: 200 `READY`; 503 `NOT_READY: …` or `TERMINATING`.
//! Invariant: nothing else of Envoy's admin interface is reachable here, for this port may face the network.
//! Source: kuma-dp's readiness port (9902).
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use crate::admin::Admin;

/// How far the supervisor is.
#[derive(Clone, Debug)]
pub enum Phase {
    /// No Envoy yet.
    Starting,
    /// Envoy runs; it knows itself whether it serves.
    Running(Admin),
    /// Draining: serves what comes, and should get nothing new.
    Terminating,
}

/// The routes.
pub fn router(phase: watch::Receiver<Phase>) -> Router {
    Router::new().route("/ready", get(ready)).with_state(phase)
}

async fn ready(State(phase): State<watch::Receiver<Phase>>) -> Response {
    let phase = phase.borrow().clone();
    let (status, text) = match phase {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "NOT_READY: starting".to_owned()),
        Phase::Terminating => (StatusCode::SERVICE_UNAVAILABLE, "TERMINATING".to_owned()),
        Phase::Running(admin) => match admin.ready().await {
            Ok(state) if state.live => (StatusCode::OK, "READY".to_owned()),
            Ok(state) => (StatusCode::SERVICE_UNAVAILABLE, format!("NOT_READY: Envoy is {}", state.text)),
            // The detail (a path of this machine) is for our log, not for the network.
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "NOT_READY: Envoy does not answer".to_owned()),
        },
    };
    (status, NO_CACHE, text).into_response()
}

const NO_CACHE: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-cache, max-age=0")];
