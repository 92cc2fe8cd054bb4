//! `POST /drain`: a proxy that is about to end asks to be sent nothing new. Ours; a stock control plane answers 404.
//! In: who it is, with its dataplane token. Out: an answer once its endpoints (and the zone's address, if it is an ingress) are
//! withdrawn, every proxy of this zone runs without them (or has refused what it was sent), and of an ingress the other zones know,
//! or the time for that is over.
//! Invariant: asking again changes nothing. What a proxy still gets while it drains, it serves.
//!
//! ```text
//! POST /drain                                                    200 {"revision": 17, "applied": true, "proxies": 3, "behind": []}
//! {"mesh": "default", "name": "backend-1", "dataplaneToken": "ey..", "instance": "6f.."}
//! ```
//! For an ingress the answer has `"elsewhere": {"confirmed": true}`, as the global says. Without the global's word (it cannot be reached,
//! or some zone does not report) the answer comes when the time is over, and says so.
//! 401: the token is not its own. 404: no such Dataplane. 409: another run of this proxy is connected, which this one must not end.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Extension, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tracing::{info, warn};
use ursa_model::{Kind, Resource, ResourceKey, kind::dataplane::Dataplane, labels};
use ursa_runtime::{
    error::Chain,
    lease::{Deadline, within},
    serve,
};
use ursa_state::{GlobalRevision, View};

use super::{
    auth,
    elsewhere::{OtherZones, Others},
    phase::Phase,
    registrar::Registrar,
};
use crate::{
    connections::{Connections, Peer},
    world::ProxyId,
};

/// Largest request, in bytes: two names and a token.
const MAX_BODY: usize = 64 * 1024;
/// How long the other proxies and zones may take. Whoever is slower is stuck, and the proxy that drains serves on for a while anyway.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How long the last proxy of a workload waits for another that is about to serve. An Envoy takes its listeners in tens of milliseconds.
const MAX_SUCCESSION: Duration = Duration::from_secs(2);
/// Proxies named in an answer.
const MAX_NAMED: usize = 10;

/// What the handler needs.
#[derive(Clone)]
pub struct Drain {
    pub registrar: Registrar,
    pub connections: Connections,
    /// `None`: there are no other zones.
    pub elsewhere: Option<Arc<dyn OtherZones>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request {
    mesh: String,
    name: String,
    #[serde(default)]
    dataplane_token: Option<String>,
    /// Of the run that ends; as in its node's metadata.
    #[serde(default)]
    instance: Option<String>,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Answer {
    /// Revision of the zone's store from which on nothing new is sent there.
    revision: u64,
    /// Every proxy of the zone runs that revision.
    applied: bool,
    /// How many do.
    proxies: usize,
    /// Some of those that have not answered.
    behind: Vec<String>,
    /// Some of those that run it but for what they refuse.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<String>,
    /// Of an ingress: whether the other zones know.
    #[serde(skip_serializing_if = "Option::is_none")]
    elsewhere: Option<Others>,
}

struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, [(header::CONTENT_TYPE, "text/plain")], self.1).into_response()
    }
}

/// The route, to be served beside ADS.
pub fn router(drain: Drain) -> Router {
    Router::new()
        .route("/drain", post(handle))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(drain)
}

async fn handle(State(drain): State<Drain>, peer: Option<Extension<serve::Peer>>, body: Bytes) -> Response {
    let address = peer.map(|Extension(peer)| peer.addr);
    match drain.run(&body, address).await {
        Ok(answer) => Json(answer).into_response(),
        Err(refused) => {
            if drain
                .connections
                .refusals()
                .pass(&format!("drain\n{address:?}\n{}", refused.1))
                .is_some()
            {
                warn!(address = address.map(tracing::field::display), status = refused.0.as_u16(), reason = %refused.1, "drain refused");
            }
            refused.into_response()
        }
    }
}

impl Drain {
    async fn run(&self, body: &[u8], address: Option<std::net::SocketAddr>) -> Result<Answer, Refused> {
        let request: Request =
            serde_json::from_slice(body).map_err(|e| Refused(StatusCode::BAD_REQUEST, format!("the request is no valid JSON: {e}")))?;
        let key = ResourceKey::new(Kind::Dataplane, &request.mesh, &request.name)
            .map_err(|e| Refused(StatusCode::UNPROCESSABLE_ENTITY, e.to_string()))?;
        let proxy = ProxyId::new(&request.mesh, &request.name);
        let view = self.registrar.view();
        let stored = view
            .get(&key)
            .ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("{key} does not exist")))?;
        auth::may_drain(&view, &proxy, stored, request.dataplane_token.as_deref(), OffsetDateTime::now_utc())
            .map_err(|e| Refused(StatusCode::UNAUTHORIZED, Chain(&e).to_string()))?;
        let asking = Peer {
            address,
            instance: request.instance.as_deref().map(Into::into),
        };
        self.check_run(&proxy, &asking)?;
        self.let_a_successor_begin(&proxy, stored).await;
        // Meanwhile the next run may have connected.
        self.check_run(&proxy, &asking)?;
        let marked = self.registrar.drain(&key, request.instance.as_deref()).await;
        let revision = marked.map_err(|status| Refused(StatusCode::SERVICE_UNAVAILABLE, status.message().to_owned()))?;
        let revision = revision.ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("{key} does not exist")))?;
        let is_ingress = stored.spec::<Dataplane>().is_ok_and(|d| d.zone_listeners().0);
        let (applied, elsewhere) = tokio::join!(self.connections.applied(revision, MAX_WAIT), async {
            match &self.elsewhere {
                Some(others) if is_ingress => Some(self.applied_elsewhere(others.as_ref(), revision).await),
                _ => None,
            }
        });
        let name = |proxies: &mut dyn Iterator<Item = &ProxyId>| proxies.take(MAX_NAMED).map(ToString::to_string).collect();
        let answer = Answer {
            revision,
            applied: applied.behind.is_empty() && applied.refused.is_empty(),
            proxies: applied.done,
            behind: name(&mut applied.behind.iter()),
            refused: name(&mut applied.refused.iter().map(|(proxy, _)| proxy)),
            elsewhere,
        };
        if answer.behind.is_empty() {
            info!(%proxy, revision, proxies = answer.proxies, "proxy drains, nothing new is sent to it");
        } else {
            warn!(%proxy, revision, behind = ?answer.behind, "proxy drains, but some proxies do not take the news within {MAX_WAIT:?}");
        }
        for (refusing, why) in applied.refused.iter().take(MAX_NAMED) {
            warn!(%proxy, revision, %refusing, %why, "this one refuses part of what it is sent; it is not waited for");
        }
        match &answer.elsewhere {
            Some(others) if others.confirmed => info!(%proxy, revision, "the other zones do not send to this ingress any more"),
            Some(Others { behind, reason, .. }) => {
                warn!(%proxy, revision, ?behind, reason, "ingress drains, but it is not known that all other zones have the news; it had {MAX_WAIT:?} to reach them");
            }
            None => {}
        }
        Ok(answer)
    }

    /// Waits until the other zones have stored what this one withdrew. What nobody confirms gets the whole time: it may be on its way.
    async fn applied_elsewhere(&self, others: &dyn OtherZones, revision: u64) -> Others {
        let time = Deadline::after(MAX_WAIT);
        let own = GlobalRevision {
            revision,
            ..self.registrar.view().at_global()
        };
        let known = others.have(own, MAX_WAIT).await;
        if !known.confirmed {
            time.passed().await;
        }
        known
    }

    /// Refuses to end another run than the one that asks.
    fn check_run(&self, proxy: &ProxyId, asking: &Peer) -> Result<(), Refused> {
        match self.connections.now().get(proxy).filter(|c| !c.peer.is_same(asking)) {
            Some(connection) => {
                let text = format!("{proxy} is connected from {}, and that is not {asking}", connection.peer);
                Err(Refused(StatusCode::CONFLICT, text))
            }
            None => Ok(()),
        }
    }

    /// In a rolling restart the next one is told to stop as soon as the one before is ready in its own eyes. It must not be withdrawn
    /// before the other is known to serve: there would be nobody for a moment.
    async fn let_a_successor_begin(&self, proxy: &ProxyId, stored: &Resource) {
        let connected = self.connections.now();
        let others = || connected.iter().filter(|(p, _)| p.mesh == proxy.mesh && p.name != proxy.name);
        let workload = stored.label(labels::WORKLOAD);
        let phase = |view: &View, other: &ProxyId| {
            let key = ResourceKey::new(Kind::Dataplane, &other.mesh, &other.name).ok()?;
            let dataplane = view.get(&key).filter(|d| d.label(labels::WORKLOAD) == workload)?;
            Some(Phase::of(dataplane))
        };
        let has_address = |view: &View, other: &ProxyId| {
            ResourceKey::new(Kind::MeshZoneAddress, &other.mesh, &other.name).is_ok_and(|key| view.get(&key).is_some())
        };
        let is_ingress = connected.get(proxy).is_some_and(|c| c.advertised.is_some());
        let settled = |view: &View| {
            if is_ingress {
                let mut ingresses = others().filter(|(_, c)| c.advertised.is_some()).peekable();
                return ingresses.peek().is_none() || ingresses.any(|(p, _)| has_address(view, p));
            }
            let phases = || others().filter_map(|(p, _)| phase(view, p));
            phases().any(|p| p == Phase::Serving) || phases().all(|p| p != Phase::Starting)
        };
        let mut views = self.registrar.views.clone();
        // Late: then there is no successor, and the proxy ends all the same.
        let _late = within(MAX_SUCCESSION, views.wait_for(settled)).await.is_err();
    }
}
