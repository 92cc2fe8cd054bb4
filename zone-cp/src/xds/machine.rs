//! One Envoy's delta ADS stream as a pure state machine: requests and snapshots in, responses and reports out. No I/O, no clock.
//!
//! Invariants:
//! - at most one unanswered response per type, and no type waits for the ACK of another before it is answered: Envoy subscribes
//!   to endpoints before it ACKs the clusters that name them;
//! - make before break: listeners and routes of a snapshot wait until its clusters and endpoints are in place, clusters are
//!   removed only after the listeners and routes that named them are gone;
//! - content that was NACKed is not sent again until it changes;
//! - nothing is sent that the client is known to hold, with one exception: endpoints follow a changed cluster again, because a
//!   cluster warms up anew and waits for them.
//!
//! Source: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>, "Incremental xDS".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use ursa_state::GlobalRevision;

use crate::snapshot::{ProxySnapshot, XdsType};

/// Most names a client may subscribe to, per type: bounds what a broken client makes us keep.
const MAX_NAMES: usize = 20_000;
/// Longest name, in bytes.
const MAX_NAME: usize = 2_048;

/// What happens to the machine.
#[allow(clippy::large_enum_variant, reason = "events are handled at once and never kept")]
#[derive(Debug)]
pub enum Event {
    Request(DeltaDiscoveryRequest),
    Snapshot(Arc<ProxySnapshot>),
}

/// What the shell must do.
#[derive(Debug)]
pub enum Action {
    Send {
        kind: XdsType,
        response: DeltaDiscoveryResponse,
        /// Resources of the response that the client already held in the same version (see the module's last invariant).
        unchanged: usize,
    },
    Report(Report),
    /// The client breaks the protocol.
    Close(tonic::Status),
}

/// What the stream tells about its proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    Acked(XdsType),
    Nacked {
        kind: XdsType,
        names: Vec<String>,
        message: String,
    },
    /// The client runs everything of this snapshot that it accepts.
    Settled {
        zone_revision: u64,
        global: Option<GlobalRevision>,
        refused: bool,
    },
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    sent: Vec<(String, Option<Arc<str>>)>,
}

/// What we know of one type on this stream.
#[derive(Debug, Default)]
struct TypeState {
    /// The first request came.
    subscribed: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    /// By name, what the client was last told: a version, or that it does not exist.
    known: BTreeMap<String, Option<Arc<str>>>,
    /// By name, the version that the client refused.
    refused: BTreeMap<String, Arc<str>>,
    in_flight: Option<InFlight>,
    /// An answer is due even when empty: the first one of a wildcard, which a starting Envoy waits for.
    owes_answer: bool,
    /// Endpoints to send again, because their cluster changed.
    again: BTreeSet<String>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Machine {
    types: BTreeMap<XdsType, TypeState>,
    snapshot: Option<Arc<ProxySnapshot>>,
    nonce: u64,
    settled: Option<(u64, Option<GlobalRevision>)>,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            types: XdsType::ALL.into_iter().map(|t| (t, TypeState::default())).collect(),
            ..Self::default()
        }
    }

    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Snapshot(snapshot) => self.snapshot = Some(snapshot),
            Event::Request(request) => {
                if let Err(status) = self.request(request, &mut actions) {
                    actions.push(Action::Close(status));
                    return actions;
                }
            }
        }
        self.respond(&mut actions);
        actions
    }

    fn request(&mut self, request: DeltaDiscoveryRequest, actions: &mut Vec<Action>) -> Result<(), tonic::Status> {
        let Some(kind) = XdsType::by_type_url(&request.type_url) else {
            // A type this control plane never serves (a newer Envoy asks for more): silence, as the protocol allows.
            return if request.type_url.is_empty() {
                Err(tonic::Status::invalid_argument("a request without type_url"))
            } else {
                Ok(())
            };
        };
        let too_long = |names: &[String]| names.iter().any(|n| n.len() > MAX_NAME);
        if too_long(&request.resource_names_subscribe) || request.initial_resource_versions.keys().any(|n| n.len() > MAX_NAME) {
            return Err(tonic::Status::invalid_argument(format!(
                "a resource name is longer than {MAX_NAME} bytes"
            )));
        }
        let state = self.types.entry(kind).or_default();
        if state.names.len() + request.resource_names_subscribe.len() > MAX_NAMES || request.initial_resource_versions.len() > MAX_NAMES {
            return Err(tonic::Status::resource_exhausted(format!(
                "more than {MAX_NAMES} resources of one type"
            )));
        }
        if !state.subscribed {
            state.subscribed = true;
            state.wildcard = kind.is_wildcard() && request.resource_names_subscribe.is_empty();
            state.owes_answer = state.wildcard && request.initial_resource_versions.is_empty();
            state.known = request
                .initial_resource_versions
                .into_iter()
                .map(|(name, version)| (name, Some(version.into())))
                .collect();
        }
        for name in request.resource_names_subscribe {
            if name == "*" {
                state.wildcard = true;
                state.owes_answer |= state.known.is_empty();
            } else if !state.names.insert(name.clone()) {
                // Asked again by name: the client wants it again, whatever it was told.
                state.known.remove(&name);
            }
        }
        for name in request.resource_names_unsubscribe {
            if name == "*" {
                state.wildcard = false;
            }
            state.names.remove(&name);
            state.known.remove(&name);
            state.refused.remove(&name);
            state.again.remove(&name);
        }
        if state.in_flight.as_ref().is_none_or(|f| f.nonce != request.response_nonce) {
            return Ok(());
        }
        let Some(answered) = state.in_flight.take() else { return Ok(()) };
        match request.error_detail {
            None => {
                for (name, _) in answered.sent.iter().filter(|(_, version)| version.is_some()) {
                    state.refused.remove(name);
                }
                actions.push(Action::Report(Report::Acked(kind)));
            }
            Some(error) => {
                let names = answered.sent.iter().map(|(name, _)| name.clone()).collect();
                for (name, version) in answered.sent {
                    if let Some(version) = version {
                        state.refused.insert(name, version);
                    }
                }
                let message = error.message.chars().take(2_048).collect();
                actions.push(Action::Report(Report::Nacked { kind, names, message }));
            }
        }
        Ok(())
    }

    /// Sends what each type lacks, in the order of make-before-break, and reports when nothing is left to do.
    fn respond(&mut self, actions: &mut Vec<Action>) {
        let Some(snapshot) = self.snapshot.clone() else { return };
        for kind in XdsType::ALL {
            let hold = match kind {
                XdsType::Secret | XdsType::Cluster | XdsType::Endpoint => false,
                XdsType::Listener | XdsType::Route => !self.foundations_in_place(&snapshot),
            };
            if !hold {
                self.send_missing(kind, &snapshot, actions);
            }
        }
        self.send_cluster_removals(&snapshot, actions);
        let done = XdsType::ALL.into_iter().all(|kind| self.is_settled(kind, &snapshot)) && self.types[&XdsType::Cluster].subscribed;
        let at = (snapshot.zone_revision, snapshot.global);
        if done && self.settled != Some(at) {
            self.settled = Some(at);
            let refused = XdsType::ALL.into_iter().any(|kind| self.refuses_any(kind, &snapshot));
            actions.push(Action::Report(Report::Settled {
                zone_revision: at.0,
                global: at.1,
                refused,
            }));
        }
    }

    /// Clusters and endpoints of the snapshot are accepted, so that listeners and routes may name them. A refused cluster must
    /// not hold the others' listeners up for ever.
    fn foundations_in_place(&self, snapshot: &ProxySnapshot) -> bool {
        let (clusters, endpoints) = (&self.types[&XdsType::Cluster], &self.types[&XdsType::Endpoint]);
        if self.refuses_any(XdsType::Cluster, snapshot) || self.refuses_any(XdsType::Endpoint, snapshot) {
            return clusters.in_flight.is_none() && endpoints.in_flight.is_none();
        }
        self.is_settled(XdsType::Cluster, snapshot)
            && self.is_settled(XdsType::Endpoint, snapshot)
            && snapshot.of(XdsType::Endpoint).keys().all(|name| endpoints.known.contains_key(name))
    }

    /// Listeners and routes of the snapshot are in place, so that nothing names a cluster that it lacks. On a new stream of a
    /// running Envoy this needs its subscriptions first: what it holds from an older stream is not known before.
    fn nothing_names_old_clusters(&self, snapshot: &ProxySnapshot) -> bool {
        let (listeners, routes) = (&self.types[&XdsType::Listener], &self.types[&XdsType::Route]);
        listeners.subscribed
            && self.is_settled(XdsType::Listener, snapshot)
            && self.is_settled(XdsType::Route, snapshot)
            // What was refused keeps running in its older form, which names older clusters.
            && !self.refuses_any(XdsType::Listener, snapshot)
            && !self.refuses_any(XdsType::Route, snapshot)
            && snapshot.of(XdsType::Route).keys().all(|name| routes.known.contains_key(name))
    }

    /// The client refused something of this type that the snapshot still holds.
    fn refuses_any(&self, kind: XdsType, snapshot: &ProxySnapshot) -> bool {
        self.types[&kind]
            .refused
            .iter()
            .any(|(name, version)| snapshot.of(kind).get(name).is_some_and(|r| r.version == *version))
    }

    /// Nothing of this type is unanswered, and nothing is left to send except removals of clusters.
    fn is_settled(&self, kind: XdsType, snapshot: &ProxySnapshot) -> bool {
        let state = &self.types[&kind];
        !state.subscribed || (state.in_flight.is_none() && !state.owes_answer && missing(state, kind, snapshot).is_empty())
    }

    fn send_missing(&mut self, kind: XdsType, snapshot: &ProxySnapshot, actions: &mut Vec<Action>) {
        let Some(state) = self.types.get_mut(&kind) else { return };
        if !state.subscribed || state.in_flight.is_some() {
            return;
        }
        let names = missing(state, kind, snapshot);
        if names.is_empty() && !state.owes_answer {
            return;
        }
        state.owes_answer = false;
        let mut unchanged = 0;
        let mut sent = Vec::with_capacity(names.len());
        let mut resources = Vec::new();
        let mut removed = Vec::new();
        for name in names {
            match snapshot.of(kind).get(&name) {
                Some(resource) => {
                    if state.known.get(&name).is_some_and(|k| k.as_ref() == Some(&resource.version)) && !state.again.contains(&name) {
                        unchanged += 1;
                    }
                    resources.push(Resource {
                        version: resource.version.to_string(),
                        resource: Some(prost_types::Any {
                            type_url: kind.type_url().into(),
                            value: resource.bytes.to_vec(),
                        }),
                        name: name.clone(),
                        aliases: Vec::new(),
                    });
                    state.known.insert(name.clone(), Some(resource.version.clone()));
                    sent.push((name, Some(resource.version.clone())));
                }
                None => {
                    removed.push(name.clone());
                    state.known.insert(name.clone(), None);
                    sent.push((name, None));
                }
            }
        }
        if kind == XdsType::Listener {
            // In one response, of which Envoy does the removals first: a listener may take over the address of one that goes.
            for name in gone(state, kind, snapshot) {
                state.known.remove(&name);
                removed.push(name.clone());
                sent.push((name, None));
            }
        }
        state.again.clear();
        let changed: Vec<String> = if kind == XdsType::Cluster {
            sent.iter().map(|(n, _)| n.clone()).collect()
        } else {
            Vec::new()
        };
        self.send(kind, snapshot, resources, removed, sent, unchanged, actions);
        if let Some(endpoints) = self.types.get_mut(&XdsType::Endpoint) {
            let held: Vec<String> = changed
                .into_iter()
                .filter(|c| endpoints.known.get(c).is_some_and(Option::is_some))
                .collect();
            endpoints.again.extend(held);
        }
    }

    /// Clusters (and listeners, which nothing names) that the snapshot no longer has. Clusters wait until listeners and routes
    /// of the snapshot are in place, listeners for those that come with the same snapshot.
    fn send_cluster_removals(&mut self, snapshot: &ProxySnapshot, actions: &mut Vec<Action>) {
        for kind in [XdsType::Listener, XdsType::Cluster] {
            if kind == XdsType::Cluster && !self.nothing_names_old_clusters(snapshot) {
                continue;
            }
            let Some(state) = self.types.get_mut(&kind) else { continue };
            if !state.subscribed || state.in_flight.is_some() || (kind == XdsType::Listener && !missing(state, kind, snapshot).is_empty()) {
                continue;
            }
            let gone = gone(state, kind, snapshot);
            if gone.is_empty() {
                continue;
            }
            for name in &gone {
                // What was refused stays refused, should the same content come back.
                state.known.remove(name);
            }
            let sent = gone.iter().map(|n| (n.clone(), None)).collect();
            self.send(kind, snapshot, Vec::new(), gone, sent, 0, actions);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one response")]
    fn send(
        &mut self,
        kind: XdsType,
        snapshot: &ProxySnapshot,
        resources: Vec<Resource>,
        removed: Vec<String>,
        sent: Vec<(String, Option<Arc<str>>)>,
        unchanged: usize,
        actions: &mut Vec<Action>,
    ) {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let response = DeltaDiscoveryResponse {
            system_version_info: snapshot.zone_revision.to_string(),
            resources,
            type_url: kind.type_url().into(),
            nonce: nonce.clone(),
            removed_resources: removed,
            control_plane: None,
        };
        if let Some(state) = self.types.get_mut(&kind) {
            state.in_flight = Some(InFlight { nonce, sent });
        }
        actions.push(Action::Send { kind, response, unchanged });
    }
}

/// Names that the client holds and the snapshot lacks.
fn gone(state: &TypeState, kind: XdsType, snapshot: &ProxySnapshot) -> Vec<String> {
    state
        .known
        .keys()
        .filter(|name| !snapshot.of(kind).contains_key(*name))
        .cloned()
        .collect()
}

/// Names whose newest version the client lacks and has not refused. Removals of what it holds are not here: for types asked by
/// name the client unsubscribes itself once nothing names them, and [`Machine::send_cluster_removals`] does the others.
fn missing(state: &TypeState, kind: XdsType, snapshot: &ProxySnapshot) -> Vec<String> {
    let available = snapshot.of(kind);
    let lacks = |name: &String, version: &Arc<str>| {
        state.refused.get(name) != Some(version)
            && (state.again.contains(name) || state.known.get(name).is_none_or(|k| k.as_ref() != Some(version)))
    };
    let mut names: Vec<String> = if state.wildcard {
        available
            .iter()
            .filter(|(name, r)| lacks(name, &r.version))
            .map(|(name, _)| name.clone())
            .collect()
    } else {
        state
            .names
            .iter()
            .filter(|name| match available.get(*name) {
                Some(resource) => lacks(name, &resource.version),
                // Told once that it does not exist, so that the client stops waiting.
                None => !state.known.contains_key(*name),
            })
            .cloned()
            .collect()
    };
    names.dedup();
    names
}
