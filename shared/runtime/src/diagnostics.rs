//! The diagnostics port of every program: readiness, health, metrics, stage timestamps.
//! In: guards of the parts that must be up, a metrics registry, the stage ring. Out: `/ready`, `/healthy`, `/metrics`, `/stages?since=`.
//! Invariant: ready only when every guard is gone and the process is not stopping; the answer lists what is missing.
//! Source: Kuma's diagnostics port 5680 has the same first three paths.
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::stages::{StageEntry, Stages};

/// The process's metrics; components register at start, `/metrics` reads.
pub type SharedRegistry = Arc<Mutex<Registry>>;

/// A registry without a prefix: names that Kuma has stay as its dashboards know them.
pub fn new_registry() -> SharedRegistry {
    Arc::new(Mutex::new(Registry::default()))
}

/// Most entries that one `/stages` answer holds; the reader asks again from the last one.
const MAX_STAGES: usize = 10_000;
/// Content type of the text that prometheus-client writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Default)]
struct Waiting {
    /// Parts that are not ready: name to number of guards.
    parts: BTreeMap<String, usize>,
    stopping: bool,
}

/// Is this process ready for work? Clones share one answer.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    waiting: Arc<Mutex<Waiting>>,
    cancel: Option<CancellationToken>,
}

/// While it lives, the part it is named for is not ready.
#[derive(Debug)]
#[must_use = "dropping the guard says that the part is ready"]
pub struct ReadinessGuard {
    name: String,
    waiting: Arc<Mutex<Waiting>>,
}

impl Readiness {
    /// Ready, until the first guard.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Readiness::new`], and not ready any more once `cancel` is cancelled: the first step of a shutdown.
    pub fn until(cancel: CancellationToken) -> Self {
        Self {
            cancel: Some(cancel),
            ..Self::default()
        }
    }

    /// Not ready until the guard is dropped or [`ReadinessGuard::ready`] is called.
    pub fn guard(&self, name: impl Into<String>) -> ReadinessGuard {
        let name = name.into();
        *self.waiting.lock().parts.entry(name.clone()).or_default() += 1;
        ReadinessGuard {
            name,
            waiting: self.waiting.clone(),
        }
    }

    /// Not ready for good: the process stops.
    pub fn not_ready(&self) {
        self.waiting.lock().stopping = true;
    }

    /// Names of the parts that are missing, sorted; `stopping` during a shutdown. Empty: ready.
    pub fn unready(&self) -> Vec<String> {
        let waiting = self.waiting.lock();
        let stopping = waiting.stopping || self.cancel.as_ref().is_some_and(CancellationToken::is_cancelled);
        let stopping = stopping.then(|| "stopping".to_owned());
        waiting.parts.keys().cloned().chain(stopping).collect()
    }

    /// Nothing is missing.
    pub fn is_ready(&self) -> bool {
        self.unready().is_empty()
    }
}

impl ReadinessGuard {
    /// The part is ready.
    pub fn ready(self) {}
}

impl Drop for ReadinessGuard {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        if let Some(guards) = waiting.parts.get_mut(&self.name) {
            *guards -= 1;
            if *guards == 0 {
                waiting.parts.remove(&self.name);
            }
        }
    }
}

#[derive(Clone)]
struct Parts {
    readiness: Readiness,
    registry: SharedRegistry,
    stages: Stages,
}

/// Routes of the diagnostics port. Served in plaintext: it shows no secrets, but should not face the world.
pub fn router(readiness: Readiness, registry: SharedRegistry, stages: Stages) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/healthy", get(|| async { "healthy\n" }))
        .route("/metrics", get(metrics))
        .route("/stages", get(stages_since))
        .with_state(Parts {
            readiness,
            registry,
            stages,
        })
}

async fn ready(State(parts): State<Parts>) -> Response {
    let missing = parts.readiness.unready();
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", "))).into_response()
}

async fn metrics(State(parts): State<Parts>) -> Response {
    let mut text = String::new();
    let encoded = prometheus_client::encoding::text::encode(&mut text, &parts.registry.lock());
    match encoded {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
}

/// Answer of `/stages`. If `oldest` is above `since + 1`, entries were lost to this reader.
#[derive(Serialize)]
struct StagesAnswer {
    oldest: u64,
    entries: Vec<StageEntry>,
}

async fn stages_since(State(parts): State<Parts>, Query(query): Query<Since>) -> Response {
    let (oldest, entries) = parts.stages.since_at_most(query.since, MAX_STAGES);
    match serde_json::to_vec(&StagesAnswer { oldest, entries }) {
        Ok(body) => (NO_STORE, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

const NO_STORE: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http_body_util::BodyExt;
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt;

    async fn get(router: &Router, path: &str) -> (StatusCode, String) {
        let request = http::Request::get(path).body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn parts() -> (Router, Readiness, SharedRegistry, Stages) {
        let (readiness, registry, stages) = (Readiness::new(), new_registry(), Stages::new(10));
        (
            router(readiness.clone(), registry.clone(), stages.clone()),
            readiness,
            registry,
            stages,
        )
    }

    #[tokio::test]
    async fn ready_lists_what_is_missing() {
        let (router, readiness, ..) = parts();
        let (store, kds) = (readiness.guard("store"), readiness.guard("kds"));
        let twice = readiness.guard("store");
        assert_eq!(
            get(&router, "/ready").await,
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: kds, store\n".into())
        );
        store.ready();
        drop(kds);
        assert_eq!(readiness.unready(), ["store"]);
        drop(twice);
        assert_eq!(get(&router, "/ready").await, (StatusCode::OK, "ready\n".into()));
        readiness.not_ready();
        assert_eq!(get(&router, "/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get(&router, "/healthy").await.0, StatusCode::OK);
    }

    #[test]
    fn a_cancelled_process_is_not_ready() {
        let cancel = CancellationToken::new();
        let readiness = Readiness::until(cancel.clone());
        assert!(readiness.is_ready());
        cancel.cancel();
        assert_eq!(readiness.unready(), ["stopping"]);
    }

    #[tokio::test]
    async fn metrics_are_text() {
        let (router, _, registry, _) = parts();
        let counter: Counter = Counter::default();
        counter.inc_by(3);
        registry.lock().register("nacks", "Refused", counter);
        let (status, text) = get(&router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("nacks_total 3") && text.ends_with("# EOF\n"), "{text}");
    }

    #[tokio::test]
    async fn stages_are_read_from_where_the_reader_was() {
        let (router, _, _, stages) = parts();
        stages.record_at("committed", "h1", 7, "", 1_000);
        stages.record_at("sent", "h1", 7, "east", 2_000);
        let (status, text) = get(&router, "/stages?since=1").await;
        assert_eq!(status, StatusCode::OK);
        let wanted = r#"{"oldest":1,"entries":[{"seq":2,"history":"h1","revision":7,"stage":"sent","subject":"east","at_unix_ns":2000}]}"#;
        assert_eq!(text, wanted);
        assert!(get(&router, "/stages").await.1.contains("\"seq\":1"));
        assert_eq!(get(&router, "/stages?since=x").await.0, StatusCode::BAD_REQUEST);
    }
}
