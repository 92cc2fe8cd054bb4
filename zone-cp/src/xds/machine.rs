//! One Envoy's delta ADS stream as a pure state machine: requests and snapshots in, responses and reports out. No I/O, no clock.
//!
//! Invariants:
//! - at most one unanswered response per type, and no type waits for the ACK of another before it is answered: Envoy subscribes
//!   to endpoints before it ACKs the clusters that name them;
//! - make before break: listeners and routes of a snapshot wait until its clusters and endpoints are in place, clusters are
//!   removed only after the listeners and routes that named them are gone;
//! - one bad resource keeps none of its companions from the client: of a response that was NACKed the parts are sent again, in
//!   smaller and smaller responses, until what is bad is alone. So each content is NACKed a logarithmic number of times at most;
//! - content that was NACKed alone is not sent again until it changes, with one exception: a listener whose socket is taken by another
//!   process is refused for a reason that is not in it. It is sent again when the proxy's other listeners change, for one of them may
//!   have had the socket, and on [`Event::Retry`];
//! - nothing is sent that the client is known to hold, with one exception: endpoints follow a changed cluster again, because a
//!   cluster warms up anew and waits for them.
//!
//! Source: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>, "Incremental xDS".

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use ursa_state::GlobalRevision;

use crate::snapshot::{ProxySnapshot, XdsResource, XdsType};

/// Most names a client may subscribe to, per type: bounds what a broken client makes us keep.
const MAX_NAMES: usize = 20_000;
/// Longest name, in bytes.
const MAX_NAME: usize = 2_048;
/// What is kept of the reason for a NACK, in characters.
const MAX_MESSAGE: usize = 2_048;
/// How Envoy says that it cannot have a listener's socket: `cannot bind '127.0.0.1:80': Address already in use`. Where it says
/// otherwise, the listener stays refused until it changes.
const CANNOT_BIND: &str = "cannot bind";

/// What happens to the machine.
#[allow(clippy::large_enum_variant, reason = "events are handled at once and never kept")]
#[derive(Debug)]
pub enum Event {
    Request(DeltaDiscoveryRequest),
    Snapshot(Arc<ProxySnapshot>),
    /// Time to try again what was refused for want of a socket.
    Retry,
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

/// Names with the versions sent; `None` is a removal.
type Sent = Vec<(String, Option<Arc<str>>)>;

#[derive(Debug)]
struct InFlight {
    nonce: String,
    sent: Sent,
}

/// What we know of one type on this stream.
#[derive(Debug, Default)]
struct TypeState {
    /// The first request came.
    subscribed: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    /// By name, what the client was last told: a version, or that it does not exist. The latter also after a NACK, which leaves
    /// open what it holds.
    known: BTreeMap<String, Option<Arc<str>>>,
    /// By name, the version that the client refused, alone.
    refused: BTreeMap<String, Arc<str>>,
    /// Those of the refused that lack nothing but a socket.
    unbound: BTreeSet<String>,
    /// By name, the version that the client refused in company and that is still to be sent again.
    suspects: BTreeMap<String, Arc<str>>,
    /// The suspects in parts, each of which is a response of its own. Names that are no suspects any more do not count.
    parts: VecDeque<Vec<String>>,
    /// The last response was such a part: then it is the turn of what is new, so that neither keeps the other waiting.
    probed: bool,
    in_flight: Option<InFlight>,
    /// An answer is due even when empty: the first one of a wildcard, which a starting Envoy waits for.
    owes_answer: bool,
    /// Endpoints to send again, because their cluster changed.
    again: BTreeSet<String>,
}

impl TypeState {
    /// Takes a NACK in. What was refused alone is refused; of several it is not known which: an Envoy may take none of them (one
    /// cannot be decoded), or all but those that its message names. So they are sent again in parts: first those that the
    /// message does not name, then each that it names; without a hint, the two halves. The message is only a hint: whatever it
    /// says, each part is smaller than the whole, so this ends.
    fn refuse(&mut self, kind: XdsType, sent: Sent, message: &str) {
        let resources: Vec<(String, Arc<str>)> = sent.iter().filter_map(|(n, v)| Some((n.clone(), v.clone()?))).collect();
        for (name, _) in &resources {
            // It may hold this, something older or nothing.
            self.known.insert(name.clone(), None);
        }
        if !resources.is_empty() {
            // Removals beside resources may have been left out as well. A NACK of nothing but removals has no remedy.
            for (name, _) in sent.into_iter().filter(|(_, version)| version.is_none()) {
                if kind.is_wildcard() {
                    self.known.insert(name, None);
                } else {
                    self.known.remove(&name);
                }
            }
        }
        let parts = match <[_; 1]>::try_from(resources) {
            Ok([(name, version)]) => {
                if kind == XdsType::Listener && message.contains(CANNOT_BIND) {
                    self.unbound.insert(name.clone());
                } else {
                    self.unbound.remove(&name);
                }
                self.refused.insert(name, version);
                return;
            }
            Err(resources) => {
                let (named, others): (Vec<_>, Vec<_>) = resources.into_iter().partition(|(name, _)| message.contains(name.as_str()));
                if named.is_empty() || others.is_empty() {
                    let mut first = [named, others].concat();
                    let second = first.split_off(first.len() / 2);
                    vec![first, second]
                } else {
                    let alone = named.into_iter().map(|one| vec![one]);
                    [others].into_iter().chain(alone).collect()
                }
            }
        };
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            self.parts.push_back(part.iter().map(|(name, _)| name.clone()).collect());
            self.suspects.extend(part);
        }
    }

    /// Sends again what lacked a socket, each in a response of its own.
    fn retry(&mut self) {
        for name in std::mem::take(&mut self.unbound) {
            if let Some(version) = self.refused.remove(&name) {
                self.suspects.insert(name.clone(), version);
                self.parts.push_back(vec![name]);
            }
        }
    }

    /// What of `missing` goes into the next response, and whether that is a part of a NACKed one.
    fn next_part(&mut self, missing: Vec<String>, newest: &BTreeMap<String, XdsResource>) -> (Vec<String>, bool) {
        if self.suspects.is_empty() {
            return (missing, false);
        }
        // Of what changed or went since the NACK, nothing is known.
        let (current, new): (BTreeSet<String>, BTreeSet<String>) = missing.into_iter().partition(|name| {
            self.suspects
                .get(name)
                .is_some_and(|v| newest.get(name).is_some_and(|r| r.version == *v))
        });
        self.suspects.retain(|name, _| current.contains(name));
        if !new.is_empty() && self.probed {
            self.probed = false;
            return (new.into_iter().collect(), false);
        }
        while let Some(mut part) = self.parts.pop_front() {
            part.retain(|name| self.suspects.remove(name).is_some());
            if !part.is_empty() {
                self.probed = true;
                return (part, true);
            }
        }
        self.suspects.clear();
        (new.into_iter().chain(current).collect(), false)
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Machine {
    types: BTreeMap<XdsType, TypeState>,
    snapshot: Option<Arc<ProxySnapshot>>,
    nonce: u64,
    settled: Option<(u64, Option<GlobalRevision>)>,
    /// `None` while something is to be sent or unanswered.
    standing: Option<Standing>,
}

/// How the client stands to the newest snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    RunsAll,
    Refuses,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            types: XdsType::ALL.into_iter().map(|t| (t, TypeState::default())).collect(),
            ..Self::default()
        }
    }

    /// The client took everything of the newest snapshot, and refused nothing of it.
    pub fn runs_all(&self) -> bool {
        self.standing == Some(Standing::RunsAll)
    }

    /// Something lacks nothing but a socket: a timer with back-off should run and end in [`Event::Retry`].
    pub fn wants_retry(&self) -> bool {
        let listeners = &self.types[&XdsType::Listener];
        listeners.in_flight.is_none() && !listeners.unbound.is_empty()
    }

    /// The client took everything of the newest snapshot but what it refused, and nothing is left to send.
    pub fn refuses(&self) -> bool {
        self.standing == Some(Standing::Refuses)
    }

    fn retry(&mut self) {
        if let Some(listeners) = self.types.get_mut(&XdsType::Listener) {
            listeners.retry();
        }
    }

    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Snapshot(snapshot) => {
                let before = self.snapshot.replace(snapshot.clone());
                // One of them may have had the socket that another lacks.
                if before.is_some_and(|before| !same_versions(XdsType::Listener, &before, &snapshot)) {
                    self.retry();
                }
            }
            Event::Retry => self.retry(),
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
            state.suspects.remove(&name);
        }
        if state.in_flight.as_ref().is_none_or(|f| f.nonce != request.response_nonce) {
            return Ok(());
        }
        let Some(answered) = state.in_flight.take() else { return Ok(()) };
        match request.error_detail {
            None => {
                for (name, _) in answered.sent.iter().filter(|(_, version)| version.is_some()) {
                    state.refused.remove(name);
                    state.unbound.remove(name);
                }
                actions.push(Action::Report(Report::Acked(kind)));
            }
            Some(error) => {
                let names = answered.sent.iter().map(|(name, _)| name.clone()).collect();
                let message: String = error.message.chars().take(MAX_MESSAGE).collect();
                state.refuse(kind, answered.sent, &message);
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
        let refused = done && XdsType::ALL.into_iter().any(|kind| self.refuses_any(kind, &snapshot));
        self.standing = done.then_some(if refused { Standing::Refuses } else { Standing::RunsAll });
        if done && self.settled != Some(at) {
            self.settled = Some(at);
            actions.push(Action::Report(Report::Settled {
                zone_revision: at.0,
                global: at.1,
                refused,
            }));
        }
    }

    /// Clusters and endpoints of the snapshot are accepted, so that listeners and routes may name them. A refused cluster must
    /// not hold the others' listeners up for ever: nobody asks for its endpoints.
    fn foundations_in_place(&self, snapshot: &ProxySnapshot) -> bool {
        let (clusters, endpoints) = (&self.types[&XdsType::Cluster], &self.types[&XdsType::Endpoint]);
        let refused = |name: &String| {
            let newest = snapshot.of(XdsType::Cluster).get(name).map(|r| &r.version);
            newest.is_some() && clusters.refused.get(name) == newest
        };
        self.is_settled(XdsType::Cluster, snapshot)
            && self.is_settled(XdsType::Endpoint, snapshot)
            && snapshot
                .of(XdsType::Endpoint)
                .keys()
                .all(|name| endpoints.known.contains_key(name) || refused(name))
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
        let (names, probing) = state.next_part(names, snapshot.of(kind));
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
                    let told = state.known.get(&name).is_some_and(|k| k.as_ref() == Some(&resource.version));
                    if told && !probing && !state.again.contains(&name) {
                        unchanged += 1;
                    }
                    state.again.remove(&name);
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
        sent: Sent,
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

/// Both snapshots hold the same of this type.
fn same_versions(kind: XdsType, a: &ProxySnapshot, b: &ProxySnapshot) -> bool {
    let (a, b) = (a.of(kind), b.of(kind));
    a.len() == b.len() && a.iter().zip(b).all(|((x, v), (y, w))| x == y && v.version == w.version)
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
