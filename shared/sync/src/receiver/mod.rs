//! The receiving end of one sync stream, for both directions.
//! In: the peer's responses, "stored" or "failed" for what was given out, and the newest catalog with each event. Out: requests
//! (subscriptions, ACKs, NACKs), batches to store, reports. Pure: no I/O, no clock.
//! Invariants: the end of a stream deletes nothing; a resource that is not the peer's is neither changed nor deleted; at most one batch
//! is being stored; with a peer that sends progress markers a batch ends at a marker, so nothing half-arrived is ever stored.
//! Source: kds.md 2.2 to 2.4, 4.4, 4.6; facts.md F15, F16; DESIGN.md 4. Not here: what a batch does to the store ([`batch`]).
//!
//! **When an ACK goes out.** After the batch is stored, for both kinds of peer: an ACK then means "on disk", a marker's ACK means "this
//! zone runs that revision", and a refusal by the store becomes a NACK. It costs no latency: a sender that knows markers does not
//! wait for ACKs, and a stock sender has nothing newer to say about a type it just sent. While one batch is being stored, what arrives
//! is merged into one next batch.

use std::collections::{BTreeMap, BTreeSet};

use ursa_model::{
    Kind, ResourceKey,
    kind::config::{CLUSTER_ID, Config as ConfigSpec},
    wire,
};
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail};
use ursa_state::{Catalog, GlobalRevision, HistoryId};

use crate::{
    FULL_SET_TYPE_URL, PROGRESS_TYPE_URL, RESUMED_TYPE_URL,
    digest::{self, Hash, Tally},
    peer::Identity,
    revision,
};

pub mod batch;
mod pending;
mod scope;

pub use batch::{Batch, Held, Wait};
pub use scope::Site;

use pending::{COST, Pending, Upsert, nack_text};

/// Bytes that may wait for a marker or for the store before the stream is no longer read. A first set of every kind fits.
const MAX_WAITING: usize = 64 * 1024 * 1024;
/// Bytes without a marker after which the peer is taken for one that never sends any.
const MAX_UNMARKED: usize = 4 * MAX_WAITING;
/// In the place of the history of a peer that stepped back, while its removals are held: no peer proves to be it.
const UNPROVEN: HistoryId = HistoryId(0);
/// Refused resources that are remembered per kind. More cost at worst a repair that changes nothing.
const MAX_TAINTED: usize = 4096;
/// Largest sum of label bytes of one resource.
const MAX_LABEL_BYTES: usize = 64 * 1024;

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The stream is open.
    Start,
    Response(DeltaDiscoveryResponse),
    /// The batch given out last is stored, except for what the store refused.
    Stored {
        refused: Vec<(ResourceKey, String)>,
    },
    /// The batch given out last is not stored.
    Failed(String),
    /// These have been held for their grace.
    GraceOver(BTreeSet<ResourceKey>),
    /// The operator wants what is held to be removed, of this kind or of all.
    Confirmed(Option<Kind>),
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Send(DeltaDiscoveryRequest),
    /// Store this, then say so by [`Event::Stored`] or [`Event::Failed`].
    Apply(Box<Batch>),
    Report(Report),
    /// End the stream.
    Close(Close),
}

/// Why the stream must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Close {
    /// The peer does not speak the protocol. Nothing of the message is kept.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// What the peer sent cannot be stored now. A new stream will bring it again.
    #[error("cannot store: {0}")]
    Store(String),
}

/// What an observer may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    Received {
        kind: Kind,
        resources: usize,
    },
    /// Refused resources, by wire name.
    Refused {
        kind: Kind,
        names: Vec<String>,
        text: String,
    },
    /// Removals that a first response implied and that are not done; replaces the last report for the kind.
    Held {
        kind: Kind,
        held: Held,
    },
    /// Resources came under another zone's name; this many.
    Rewritten(usize),
    /// The peer said that everything up to this revision was sent.
    UpTo(GlobalRevision),
    /// The peer goes on from the revision that we have.
    Resumed(GlobalRevision),
    /// What we hold of a kind is not what the peer says we should; `repair`: it is asked for the complete set.
    Differs {
        kind: Kind,
        repair: bool,
    },
}

/// How one receiver behaves.
#[derive(Clone, Debug)]
pub struct Config {
    pub site: Site,
    /// What our requests say of us.
    pub identity: Identity,
    /// Kinds to ask for.
    pub kinds: Vec<Kind>,
    /// The peer announced progress markers.
    pub progress: bool,
    /// What is known of the peer's store: its history, and the newest revision seen. With the same history and no step back, a first
    /// set is believed without holding any removal.
    pub known: Option<GlobalRevision>,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Receiver {
    config: Config,
    /// Whether the first response of the type was seen.
    first_seen: BTreeMap<Kind, bool>,
    /// Since the last marker.
    open: Pending,
    /// Complete, waits for its turn.
    ready: Pending,
    /// What is owed once the batch in the store is there.
    storing: Option<Storing>,
    held: BTreeMap<Kind, Held>,
    /// In a zone: the id of the global that we knew when the stream began, and whether this peer has named its own.
    cluster_id: Option<String>,
    cluster_id_named: bool,
    /// Sums of what we hold of the peer.
    tally: Tally,
    /// Wire names of what is refused at present: sums of such kinds mean nothing.
    tainted: BTreeMap<Kind, BTreeSet<String>>,
    /// Kinds that were asked for again and did not agree since: what one repair does not cure, a second would not.
    repaired: BTreeSet<Kind>,
    /// Those of them whose complete set did not begin yet.
    asked: BTreeSet<Kind>,
    closed: bool,
}

/// A batch that is being stored.
#[derive(Clone, Debug, Default)]
struct Storing {
    answers: Vec<pending::Answer>,
    /// What we should hold then.
    digests: BTreeMap<Kind, Hash>,
}

impl Receiver {
    pub fn new(config: Config) -> Self {
        let first_seen = config.kinds.iter().map(|k| (*k, false)).collect();
        Self {
            tally: Tally::new(config.site.clone()),
            config,
            first_seen,
            open: Pending::default(),
            ready: Pending::default(),
            storing: None,
            held: BTreeMap::new(),
            cluster_id: None,
            cluster_id_named: false,
            tainted: BTreeMap::new(),
            repaired: BTreeSet::new(),
            asked: BTreeSet::new(),
            closed: false,
        }
    }

    /// With sums that are kept over streams, so that they need not be made from nothing.
    #[must_use]
    pub fn with_tally(mut self, tally: Tally) -> Self {
        self.tally = tally;
        self
    }

    /// `catalog` is the newest picture of our own store; after [`Event::Stored`] it must contain what was stored.
    pub fn handle(&mut self, event: Event, catalog: &Catalog) -> Vec<Action> {
        let mut out = Vec::new();
        if self.closed {
            return out;
        }
        match event {
            Event::Start => {
                self.cluster_id = cluster_id(catalog);
                self.subscribe(&mut out);
            }
            Event::Response(response) => {
                if let Err(close) = self.on_response(response, &mut out) {
                    self.closed = true;
                    out.push(Action::Close(close));
                    return out;
                }
                self.release(catalog, &mut out);
            }
            Event::Stored { refused } => {
                self.answer(&refused, catalog, &mut out);
                self.release(catalog, &mut out);
            }
            Event::GraceOver(keys) => {
                let same = self.is_the_same_global(catalog);
                let by_time = |wait| match wait {
                    Wait::Grace => true,
                    Wait::Operator => same,
                    Wait::OtherHistory => false,
                };
                self.remove_held(|held, key| by_time(held.wait) && keys.contains(key));
                self.release(catalog, &mut out);
            }
            Event::Confirmed(kind) => {
                self.remove_held(|_, key| kind.is_none_or(|kind| kind == key.kind()));
                self.release(catalog, &mut out);
            }
            Event::Failed(why) => {
                self.closed = true;
                out.push(Action::Close(Close::Store(why)));
            }
        }
        out
    }

    /// Whether the stream should be read on. If not, it can be again after the next [`Event::Stored`].
    pub fn has_room(&self) -> bool {
        self.storing.is_none() || self.open.bytes + self.ready.bytes < MAX_WAITING
    }

    /// Removals that are held, by kind.
    pub fn held(&self) -> &BTreeMap<Kind, Held> {
        &self.held
    }

    /// A stock global cannot prove that its store is the one we know; but one that lost it has another cluster id.
    fn is_the_same_global(&self, catalog: &Catalog) -> bool {
        matches!(self.config.site, Site::Zone)
            && self.cluster_id_named
            && self.cluster_id.is_some()
            && self.cluster_id == cluster_id(catalog)
    }

    /// Takes held removals up, except of what the peer spoke of since.
    fn remove_held(&mut self, which: impl Fn(&Held, &ResourceKey) -> bool) {
        for held in self.held.values() {
            for key in held.keys.iter().filter(|k| which(held, k) && !self.open.mentions(k)) {
                if !self.ready.mentions(key) {
                    self.ready.remove(key.clone());
                }
            }
        }
    }

    /// The peer reports progress, as it turned out after the stream was opened (a zone learns it from response headers).
    pub fn peer_reports_progress(&mut self) -> Vec<Action> {
        if std::mem::replace(&mut self.config.progress, true) {
            Vec::new()
        } else {
            vec![Action::Send(self.initial(PROGRESS_TYPE_URL))]
        }
    }

    fn initial(&self, type_url: &str) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(self.config.identity.full_node()),
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// One request per type, and last of all the one for markers: its arrival tells the sender that every type was asked for.
    fn subscribe(&self, out: &mut Vec<Action>) {
        out.extend(self.config.kinds.iter().map(|kind| Action::Send(self.initial(kind.name()))));
        if self.config.progress {
            out.push(Action::Send(self.initial(PROGRESS_TYPE_URL)));
        }
    }

    fn on_response(&mut self, response: DeltaDiscoveryResponse, out: &mut Vec<Action>) -> Result<(), Close> {
        let protocol = |what: String| Close::Protocol(what);
        let shown = |text: &str| text.chars().take(64).collect::<String>();
        if response.nonce.is_empty() {
            return Err(protocol("a response without nonce".into()));
        }
        if response.type_url == PROGRESS_TYPE_URL && self.config.progress {
            let at = revision::parse(&response.system_version_info).ok_or_else(|| {
                protocol(format!(
                    "a progress marker without revision: {:?}",
                    shown(&response.system_version_info)
                ))
            })?;
            let digests = response
                .resources
                .iter()
                .filter_map(|r| Some((r.name.parse().ok()?, digest::parse(&r.version)?)));
            let mut open = std::mem::take(&mut self.open);
            open.mark(at, response.nonce, digests.collect());
            self.ready.append(open);
            out.push(Action::Report(Report::UpTo(at)));
            return Ok(());
        }
        if response.type_url == RESUMED_TYPE_URL {
            return self.on_resumed(&response.system_version_info, out);
        }
        if response.type_url == FULL_SET_TYPE_URL {
            let kind = response.system_version_info.parse().ok().filter(|k| self.repaired.contains(k));
            self.asked.retain(|asked| Some(*asked) != kind);
            let seen = kind.and_then(|k| self.first_seen.get_mut(&k));
            *seen.ok_or_else(|| protocol("a complete set that was not asked for".into()))? = false;
            return Ok(());
        }
        let kind = response.type_url.parse::<Kind>().ok();
        let Some((kind, seen)) = kind.and_then(|k| self.first_seen.get_mut(&k).map(|seen| (k, seen))) else {
            return Err(protocol(format!("type {:?} was not asked for", shown(&response.type_url))));
        };
        let first = !std::mem::replace(seen, true);
        let resources = response.resources.len() + response.removed_resources.len();
        let pending = self.read(kind, first, response, out)?;
        out.push(Action::Report(Report::Received { kind, resources }));
        if self.config.progress {
            self.open.append(pending);
        } else {
            self.ready.append(pending);
        }
        if self.open.bytes > MAX_UNMARKED {
            return Err(protocol(format!("no progress marker within {MAX_UNMARKED} bytes")));
        }
        Ok(())
    }

    /// The peer believes what we said that we hold. It must be the first thing that it says.
    fn on_resumed(&mut self, text: &str, out: &mut Vec<Action>) -> Result<(), Close> {
        let at = revision::parse(text).filter(|at| self.config.known == Some(*at));
        let (Some(at), true) = (at, self.config.progress && self.first_seen.values().all(|seen| !seen)) else {
            return Err(Close::Protocol(format!(
                "resumed where it cannot be: {:?}",
                text.chars().take(64).collect::<String>()
            )));
        };
        for (_, seen) in self.first_seen.iter_mut().filter(|(kind, _)| digest::is_covered(**kind)) {
            *seen = true;
        }
        out.push(Action::Report(Report::Resumed(at)));
        Ok(())
    }

    /// Compares what we hold with what the peer says we should. A kind that differs is asked for again.
    fn check(&mut self, digests: &BTreeMap<Kind, Hash>, catalog: &Catalog, out: &mut Vec<Action>) {
        if digests.is_empty() {
            return;
        }
        self.tally.update(catalog);
        for (kind, want) in digests {
            let ours =
                self.first_seen.contains_key(kind) && digest::is_covered(*kind) && self.tainted.get(kind).is_none_or(BTreeSet::is_empty);
            let held = self.held.get(kind).is_some_and(|h| !h.keys.is_empty());
            if !ours || held {
                continue;
            }
            if self.tally.sum(*kind) == *want {
                if !self.asked.contains(kind) {
                    self.repaired.remove(kind);
                }
                continue;
            }
            let repair = self.repaired.insert(*kind);
            out.push(Action::Report(Report::Differs { kind: *kind, repair }));
            if repair {
                self.asked.insert(*kind);
                out.push(Action::Send(self.initial(kind.name())));
            }
        }
    }

    /// Decodes and checks one response.
    fn read(&self, kind: Kind, first: bool, response: DeltaDiscoveryResponse, out: &mut Vec<Action>) -> Result<Pending, Close> {
        let protocol = |name: &str, err: &dyn std::fmt::Display| {
            Close::Protocol(format!("{kind} {:?}: {err}", name.chars().take(128).collect::<String>()))
        };
        let mut pending = Pending::of_response(kind, first, response.nonce);
        let mut rewritten = 0;
        for name in response.removed_resources {
            pending.bytes += COST + name.len();
            // A name that could not be stored has nothing to remove.
            if let Ok(key) = wire::parse_kds_name(kind, &name).and_then(|key| self.config.site.received_key(key)) {
                pending.remove(key);
            }
            pending.names(name);
        }
        for resource in response.resources {
            let any = resource.resource.ok_or_else(|| protocol(&resource.name, &"no resource in it"))?;
            pending.bytes += COST + resource.name.len() + any.value.len();
            // What the name says is only used to protect the stored copy of a resource that cannot be read.
            let named = || {
                wire::parse_kds_name(kind, &resource.name)
                    .and_then(|key| self.config.site.received_key(key))
                    .ok()
            };
            match wire::decode(kind, &any.type_url, &any.value) {
                Ok(incoming) => {
                    let wire_name = wire::kds_name(incoming.key.mesh(), incoming.key.name());
                    let labels: usize = incoming.labels.iter().map(|(k, v)| k.len() + v.len()).sum();
                    let received = self.config.site.receive(incoming);
                    match received {
                        Ok(None) => {}
                        Ok(Some((incoming, renamed))) if labels <= MAX_LABEL_BYTES => {
                            rewritten += usize::from(renamed);
                            pending.names(wire_name.clone());
                            pending.upsert(Upsert {
                                incoming,
                                wire_name,
                                answer: 0,
                            });
                        }
                        Ok(Some((incoming, _))) => {
                            pending.refuse(Some(incoming.key), wire_name, format!("labels: more than {MAX_LABEL_BYTES} bytes"));
                        }
                        Err(err) => pending.refuse(named(), wire_name, err.to_string()),
                    }
                }
                Err(wire::Error::Invalid { key, source }) => {
                    let wire_name = wire::kds_name(key.mesh(), key.name());
                    let key = self.config.site.received_key(key).ok().or_else(named);
                    pending.refuse(key, wire_name, source.to_string());
                }
                Err(err @ (wire::Error::Key(_) | wire::Error::Labels)) => {
                    pending.refuse(named(), resource.name.chars().take(512).collect(), err.to_string());
                }
                Err(err @ (wire::Error::Decode(_) | wire::Error::Missing(_) | wire::Error::TypeUrl { .. } | wire::Error::Json(_))) => {
                    return Err(protocol(&resource.name, &err));
                }
            }
        }
        if rewritten > 0 {
            out.push(Action::Report(Report::Rewritten(rewritten)));
        }
        Ok(pending)
    }

    /// Gives the next batch out, if one is complete and none is being stored.
    fn release(&mut self, catalog: &Catalog, out: &mut Vec<Action>) {
        if self.storing.is_some() || self.ready.is_empty() {
            return;
        }
        let mut pending = std::mem::take(&mut self.ready);
        let known = self.config.known;
        let mut batch = batch::build(&mut pending, &self.config.site, catalog, known);
        self.cluster_id_named |= batch.mentioned.iter().any(|k| k.kind() == Kind::Config && k.name() == CLUSTER_ID);
        for (kind, held) in batch.held.clone() {
            out.push(Action::Report(Report::Held { kind, held: held.clone() }));
            self.held.insert(kind, held);
        }
        self.drop_returned(&batch, catalog, out);
        self.believe(&mut batch);
        // A zone's history is kept even when that is all there is to keep.
        let identity =
            matches!(self.config.site, Site::Global { .. }) && batch.peer.is_some_and(|at| known.map(|k| k.history) != Some(at.history));
        self.storing = Some(Storing {
            answers: pending.answers,
            digests: pending.digests,
        });
        if batch.is_empty() && !identity {
            self.answer(&[], catalog, out);
        } else {
            out.push(Action::Apply(Box::new(batch)));
        }
    }

    /// Whom the peer is taken for from now on, here and by the next stream. While removals are held because it did not prove who it is,
    /// it stays unproven: otherwise the next stream would believe it, and remove them all.
    fn believe(&mut self, batch: &mut Batch) {
        let Some(at) = batch.peer else { return };
        if self.held.values().all(|held| held.keys.is_empty()) {
            self.config.known = Some(at);
            return;
        }
        (batch.peer, batch.global) = (None, None);
        // One that stepped back comes to where it was before; that must not pass for a proof.
        if let Some(known) = self.config.known.filter(|known| known.history == at.history) {
            let unproven = GlobalRevision {
                history: UNPROVEN,
                ..known
            };
            self.config.known = Some(unproven);
            batch.global = Some(unproven).filter(|_| matches!(self.config.site, Site::Zone));
        }
    }

    /// A held removal is over when the resource is sent again, or removed by name, or gone anyway.
    fn drop_returned(&mut self, batch: &Batch, catalog: &Catalog, out: &mut Vec<Action>) {
        for (kind, held) in &mut self.held {
            let before = held.keys.len();
            held.keys.retain(|key| !batch.mentioned.contains(key) && catalog.get(key).is_some());
            if held.keys.len() != before {
                out.push(Action::Report(Report::Held {
                    kind: *kind,
                    held: held.clone(),
                }));
            }
        }
    }

    /// Sends the answers of the batch that is stored now.
    fn answer(&mut self, refused: &[(ResourceKey, String)], catalog: &Catalog, out: &mut Vec<Action>) {
        let Storing { mut answers, digests } = self.storing.take().unwrap_or_default();
        for (key, why) in refused {
            if let Some((answer, wire_name)) = answers.iter_mut().find_map(|a| a.keys.get(key).cloned().map(|name| (a, name))) {
                answer.refused.push((wire_name, why.clone()));
            }
        }
        for answer in answers {
            self.taint(&answer);
            let mut request = DeltaDiscoveryRequest {
                node: Some(self.config.identity.bare_node()),
                type_url: answer.type_url,
                response_nonce: answer.nonce,
                ..DeltaDiscoveryRequest::default()
            };
            if !answer.refused.is_empty() {
                let text = nack_text(&answer.refused);
                request.resource_names_subscribe = vec!["*".to_owned()];
                request.error_detail = Some(ErrorDetail {
                    code: 0,
                    message: text.clone(),
                });
                if let Ok(kind) = request.type_url.parse() {
                    let names = answer.refused.into_iter().map(|(name, _)| name).collect();
                    out.push(Action::Report(Report::Refused { kind, names, text }));
                }
            }
            out.push(Action::Send(request));
        }
        self.check(&digests, catalog, out);
    }

    /// What the peer named anew, or left out of a complete set, is no longer refused; what is refused now is.
    fn taint(&mut self, answer: &pending::Answer) {
        let Ok(kind) = answer.type_url.parse::<Kind>() else { return };
        let tainted = self.tainted.entry(kind).or_default();
        if answer.full {
            tainted.clear();
        }
        for name in &answer.named {
            tainted.remove(name);
        }
        let room = MAX_TAINTED.saturating_sub(tainted.len());
        tainted.extend(answer.refused.iter().take(room).map(|(name, _)| name.clone()));
    }
}

/// The global's own id, as it syncs it down.
fn cluster_id(catalog: &Catalog) -> Option<String> {
    let key = ResourceKey::new(Kind::Config, "", CLUSTER_ID).ok()?;
    Some(catalog.get(&key)?.spec::<ConfigSpec>().ok()?.config)
}

#[cfg(test)]
mod tests;
