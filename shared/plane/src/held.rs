//! `/held-removals`: what peers' first sets lacked and is not removed yet; the operator's decision to remove it or to keep it.
//! In: [`Holds`] of this node; of the other nodes, by a call to each. Out: JSON. Administrators only.
//! Invariants: every node answers for all; a decision that not every node heard of is said to be so; nothing is removed by a list that
//! somebody else would have seen otherwise: only what is held at that moment goes.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tracing::info;
use ursa_model::{Kind, ResourceKey, Timestamp};
use ursa_proto::peer::{HeldAnswer, HeldRequest, observed_client::ObservedClient};
use ursa_rest::{Access, Caller, Error};
use ursa_runtime::lease::within;
use ursa_state::{Changeset, Expect, Op, Put, RequestId, Role};
use ursa_sync::{
    Holds,
    holds::{self, GLOBAL, KEEP, KEEP_LABEL, Listed},
    receiver::Wait,
};

use crate::{Plane, group::Group};

/// Longest wait for another node.
const PATIENCE: Duration = Duration::from_secs(3);
/// Names shown per zone and kind.
const MAX_NAMES: usize = 100;
/// How often the label is tried to be set while others change the Zone.
const RACES: usize = 5;
const ACCESS: &str = "the removals that are held";

/// One zone and kind, as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HeldView {
    /// Whose first set lacked it: a zone, or `global` in a zone.
    peer: String,
    kind: String,
    count: usize,
    /// At most 100 of them, as `mesh/name`.
    names: Vec<String>,
    /// Since the first of them is missing.
    since: String,
    /// `time`: they go at `ends`; `operator`: only when somebody confirms it.
    waits_for: String,
    /// When the first of them goes, unless it returns. Missing: it waits for the operator, is kept, or the peer is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ends: Option<String>,
    /// The peer has a stream: only then time runs, and only then can they be confirmed.
    connected: bool,
    kept: bool,
    /// Where the stream ends.
    node: u64,
}

impl HeldView {
    fn of(listed: Listed, node: u64, kept: bool) -> Self {
        let kept = kept || listed.kept;
        let name = |key: &ResourceKey| match key.mesh() {
            "" => key.name().to_owned(),
            mesh => format!("{mesh}/{}", key.name()),
        };
        Self {
            peer: listed.peer.to_string(),
            kind: listed.kind.name().to_owned(),
            count: listed.keys.len(),
            names: listed.keys.iter().take(MAX_NAMES).map(name).collect(),
            since: listed.since.rfc3339(),
            waits_for: match listed.wait {
                Wait::Grace if !kept => "time",
                Wait::Grace | Wait::Operator | Wait::OtherHistory => "operator",
            }
            .to_owned(),
            ends: listed.ends.filter(|_| !kept).map(|ends| ends.rfc3339()),
            connected: listed.connected,
            kept,
            node,
        }
    }
}

/// What the routes work with; the holds are known once zone sync is there.
#[derive(Clone)]
pub(crate) struct Held {
    plane: Plane,
    node: u64,
    group: Option<Group>,
    holds: Arc<OnceLock<Holds>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List {
    total: usize,
    items: Vec<HeldView>,
    /// Nodes that did not answer: what they hold is missing here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreachable_nodes: Vec<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    /// Removals that are being done now.
    confirmed: u64,
    kept: bool,
}

#[derive(Deserialize)]
struct Which {
    #[serde(default)]
    kind: String,
}

impl Held {
    pub(crate) fn new(plane: Plane, node: u64, group: Option<Group>) -> Self {
        Self {
            plane,
            node,
            group,
            holds: Arc::default(),
        }
    }

    /// Zone sync is there.
    pub(crate) fn set(&self, holds: Holds) {
        let _ = self.holds.set(holds);
    }

    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/held-removals", get(list))
            .route("/held-removals/{peer}/confirm", post(confirm))
            .route("/held-removals/{peer}/keep", post(keep))
            .with_state(self.clone())
    }

    /// This node's part, for another node or for itself.
    pub(crate) fn answer(&self, request: &HeldRequest) -> Result<(Vec<HeldView>, u64), tonic::Status> {
        let Some(holds) = self.holds.get() else {
            return Ok((Vec::new(), 0));
        };
        let kind = parse_kind(&request.confirm_kind).ok_or_else(|| tonic::Status::invalid_argument("no such kind"))?;
        let confirmed = match request.confirm_zone.as_str() {
            "" => 0,
            peer => holds.confirm(peer, kind).unwrap_or(0),
        };
        let is_kept = |peer: &str| self.zone(peer).is_some_and(|zone| holds::is_kept(&zone));
        let views = holds.list().into_iter().map(|listed| {
            let kept = self.plane.role == Role::Global && is_kept(&listed.peer);
            HeldView::of(listed, self.node, kept)
        });
        Ok((views.collect(), confirmed as u64))
    }

    fn zone(&self, name: &str) -> Option<Arc<ursa_model::Resource>> {
        let key = ResourceKey::new(Kind::Zone, "", name).ok()?;
        self.plane.store.view().get(&key).cloned()
    }

    /// The parts of all nodes, and who did not answer.
    async fn all(&self, request: HeldRequest) -> Result<(Vec<HeldView>, u64, Vec<u64>), Error> {
        let (mut items, mut confirmed) = self.answer(&request).map_err(|status| Error::bad_request(status.message()))?;
        let peers = self.plane.store.peers().filter(|_| self.group.is_some());
        let others = peers.map(|peers| peers.others().into_iter().map(|id| (id, peers.channel(id))).collect::<Vec<_>>());
        let calls = others.unwrap_or_default().into_iter().map(|(id, channel)| {
            let request = request.clone();
            async move { (id, within(PATIENCE, ObservedClient::new(channel).held_removals(request)).await) }
        });
        let mut missing = Vec::new();
        for (id, answer) in join_all(calls).await {
            let Ok(Ok(answer)) = answer else {
                missing.push(id);
                continue;
            };
            let HeldAnswer { held, confirmed: there } = answer.into_inner();
            items.extend(held.iter().filter_map(|bytes| serde_json::from_slice::<HeldView>(bytes).ok()));
            confirmed += there;
        }
        items.sort_by(|a, b| (&a.peer, &a.kind, a.node).cmp(&(&b.peer, &b.kind, b.node)));
        Ok((items, confirmed, missing))
    }

    /// Whether time may remove what is held for the peer: at a global by a label of the Zone, which every node sees and which stays; in a
    /// zone for as long as this process runs.
    async fn set_kept(&self, peer: &str, kept: bool, caller: &Caller) -> Result<(), Error> {
        if self.plane.role == Role::Zone {
            if peer != GLOBAL {
                return Err(Error::not_found(
                    "A zone holds nothing but what the global lacked: its name here is \"global\"",
                ));
            }
            if let Some(holds) = self.holds.get() {
                holds.keep(GLOBAL, kept);
            }
            return Ok(());
        }
        for _ in 0..RACES {
            let unavailable = || {
                Error::unavailable(&ursa_rest::Unavailable {
                    reason: "the store has no quorum or did not answer in time",
                    leader: None,
                })
            };
            self.plane.store.read().await.map_err(|_| unavailable())?;
            let zone = self.zone(peer).ok_or_else(|| Error::not_found("Could not find the Zone"))?;
            if holds::is_kept(&zone) == kept {
                return Ok(());
            }
            let mut labels = zone.labels.clone();
            match kept {
                true => labels.insert(KEEP_LABEL.to_owned(), KEEP.to_owned()),
                false => labels.remove(KEEP_LABEL),
            };
            let put = Put {
                key: zone.key.clone(),
                labels,
                spec: zone.spec.clone(),
                status: None,
                owner: None,
                expect: Expect::Version(zone.version),
            };
            let mut set = Changeset::atomic(RequestId(uuid::Uuid::new_v4().as_u128()), Timestamp::now(), vec![Op::Put(put)]);
            set.actor = caller.user.name.clone();
            let applied = self.plane.propose(set).await.map_err(|_| unavailable())?;
            if applied.rejected.is_none() {
                return Ok(());
            }
        }
        Err(Error::conflict("the Zone is being changed by others all the time"))
    }
}

/// `None` is no kind; the empty text means all.
fn parse_kind(text: &str) -> Option<Option<Kind>> {
    match text {
        "" => Some(None),
        text => text.parse().ok().map(Some),
    }
}

fn require_admin(caller: &Caller) -> Result<(), Error> {
    match Access::default().is_admin(&caller.user) {
        true => Ok(()),
        false => Err(Error::denied(&caller.user, ACCESS)),
    }
}

async fn list(State(held): State<Held>, Extension(caller): Extension<Caller>) -> Result<Response, Error> {
    require_admin(&caller)?;
    let (items, _, unreachable_nodes) = held.all(HeldRequest::default()).await?;
    let total = items.len();
    let list = List {
        total,
        items,
        unreachable_nodes,
    };
    Ok(Json(list).into_response())
}

async fn confirm(
    State(held): State<Held>,
    Extension(caller): Extension<Caller>,
    Path(peer): Path<String>,
    Query(which): Query<Which>,
) -> Result<Response, Error> {
    require_admin(&caller)?;
    if parse_kind(&which.kind).is_none() {
        return Err(Error::bad_request(format_args!("there is no kind {:?}", which.kind)));
    }
    let request = HeldRequest {
        confirm_zone: peer.clone(),
        confirm_kind: which.kind.clone(),
    };
    let (items, confirmed, missing) = held.all(request).await?;
    info!(target: "audit", event = "held_removals_confirmed", user = %caller.user.name, peer_name = peer, kind = which.kind, confirmed);
    if confirmed > 0 {
        if which.kind.is_empty() && held.plane.role == Role::Global {
            held.set_kept(&peer, false, &caller).await?;
        }
        return Ok(Json(Done { confirmed, kept: false }).into_response());
    }
    let of_peer: BTreeMap<bool, usize> = items
        .iter()
        .filter(|item| item.peer == peer && (which.kind.is_empty() || item.kind == which.kind))
        .map(|item| (item.connected, item.count))
        .collect();
    Err(match (of_peer.is_empty(), missing.is_empty()) {
        (_, false) => Error::conflict(format_args!(
            "nothing was confirmed, and nodes {missing:?} did not answer: the stream may end there; try again when they are back"
        )),
        (false, true) => Error::conflict(format_args!(
            "{peer:?} is not connected: what is held can be confirmed once it is and still lacks it"
        )),
        (true, true) => Error::not_found("No removals are held for this peer and kind"),
    })
}

async fn keep(State(held): State<Held>, Extension(caller): Extension<Caller>, Path(peer): Path<String>) -> Result<Response, Error> {
    require_admin(&caller)?;
    held.set_kept(&peer, true, &caller).await?;
    info!(target: "audit", event = "held_removals_kept", user = %caller.user.name, peer_name = peer);
    Ok((StatusCode::OK, Json(Done { confirmed: 0, kept: true })).into_response())
}
