//! The sending end of one sync stream, for both directions.
//! In: the peer's requests, newer content, "time to retry". Out: responses, reports. Pure: no I/O, no clock.
//! Invariants: the first response of a type is the complete set and is never sent before there is content; a stock peer has at most
//! one unanswered response per type; a progress marker for revision N comes after everything up to N.
//! Source: kds.md 2.2 to 2.4, 2.6, 8.1; facts.md F15; DESIGN.md 4.
//!
//! A peer that subscribed to progress markers gets *rounds*: the changes of every type, at once and without waiting for answers, closed
//! by a marker. It answers a marker when everything before it is stored; at most [`MAX_ROUNDS`] are unanswered, and what changes
//! meanwhile is coalesced. A marker goes out also when nothing of a revision passed the filters (if the sender announces that), so the
//! peer's applied revision moves on.
//!
//! Each marker also says what the peer should hold of each kind, as a sum ([`crate::digest`]); a heartbeat repeats it. A peer that holds
//! something else asks for the type again and gets the complete set. A peer that proves to hold what it was shown at a revision goes on
//! from there ([`Sender::resume`]).
//!
//! Delivered means sent, as in Kuma. What a peer refuses is remembered, by resource where it can be told: the text of the NACK names it,
//! or the response held nothing else. Otherwise the retries split the response in halves until the refused resource is alone.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use ursa_model::{Kind, wire};
use ursa_proto::discovery::{ControlPlane, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use ursa_state::GlobalRevision;

use crate::{
    FULL_SET_TYPE_URL, MAX_MESSAGE_BYTES, PROGRESS_TYPE_URL, RESUMED_TYPE_URL, digest,
    distribution::Distribution,
    mapping::{Entry, Recipient},
    peer::{Features, Peer},
    revision,
};

mod content;

pub use content::Refused;
use content::{InFlight, Limit, Next, TypeState};

/// Unanswered rounds towards a peer that reports progress. More would only queue what coalesces better here.
pub const MAX_ROUNDS: usize = 8;
/// Bytes of resources in one response to a peer that takes a set in several: small enough that other types get through meanwhile.
pub const CHUNK_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of resources in one response to a stock peer, which takes messages of [`MAX_MESSAGE_BYTES`].
pub const STOCK_BYTES: usize = MAX_MESSAGE_BYTES - 64 * 1024;
/// Longest NACK text that is kept.
const MAX_TEXT: usize = 4096;
/// Names of types asked for that are unknown here; only told once each.
const MAX_UNKNOWN: usize = 64;

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The peer asks for a type, accepts or refuses.
    Request(DeltaDiscoveryRequest),
    /// There is newer content.
    Content(Distribution),
    /// Time to send again what the peer refused.
    Retry,
    /// Time to say again what the peer should hold. Does nothing while answers are missing.
    Heartbeat,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Send(DeltaDiscoveryResponse),
    Report(Report),
}

/// What an observer may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A response goes out: this many resources and removals.
    Sent { kind: Kind, resources: usize },
    /// The peer took a response.
    Acked { kind: Kind },
    /// The peer refused a response. `names`: the resources that are to blame; empty when it cannot be told yet.
    Nacked { kind: Kind, names: Vec<String>, text: String },
    /// Everything up to this revision was sent.
    SentUpTo(GlobalRevision),
    /// The peer says it has stored everything up to this revision.
    StoredUpTo(GlobalRevision),
    /// The peer asks for a type that is not sent here; it gets no answer.
    Unknown { type_url: String },
    /// The first set of a type is larger than a stock peer takes, and must come whole: nothing of the type is sent until it is smaller.
    TooLarge { kind: Kind, bytes: usize },
    /// The peer asks for a type again: what it holds differs from what it should, and it gets the complete set.
    AskedAgain { kind: Kind },
}

/// How one sender behaves.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `control_plane.identifier`: `global`, or the zone's name.
    pub identifier: String,
    /// Who listens.
    pub recipient: Recipient,
    /// Kinds that this direction carries.
    pub kinds: BTreeSet<Kind>,
    /// Markers also for revisions of which nothing was sent.
    pub announce_idle: bool,
    /// Bytes of resources in one response: at most this to a peer that takes a set in several ([`CHUNK_BYTES`]). Zero: no limit.
    pub chunk_bytes: usize,
    /// The same to a stock peer ([`STOCK_BYTES`]).
    pub stock_bytes: usize,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Sender {
    config: Config,
    content: Option<Distribution>,
    types: BTreeMap<Kind, TypeState>,
    last_nonce: u64,
    progress: Option<Progress>,
    /// The peer announced that it takes markers: it will ask for them, and merges what comes before one.
    takes_chunks: bool,
    /// Something was sent after the last marker.
    dirty: bool,
    sent_up_to: Option<GlobalRevision>,
    stored_up_to: Option<GlobalRevision>,
    unknown: BTreeSet<String>,
    /// What the peer holds already, until it was told that it is believed; then what its types begin with.
    resume: Option<Distribution>,
    resumed: bool,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    last: Option<GlobalRevision>,
    /// The last marker that the peer answered well.
    stored: Option<GlobalRevision>,
    in_flight: VecDeque<(u64, GlobalRevision)>,
}

impl Sender {
    pub fn new(config: Config) -> Self {
        Self {
            takes_chunks: config.recipient.features.contains(Features::PROGRESS),
            config,
            content: None,
            types: BTreeMap::new(),
            last_nonce: 0,
            progress: None,
            dirty: false,
            sent_up_to: None,
            stored_up_to: None,
            unknown: BTreeSet::new(),
            resume: None,
            resumed: false,
        }
    }

    /// Who listens.
    pub fn recipient(&self) -> &Recipient {
        &self.config.recipient
    }

    /// The peer asked to go on from where it was, and holds exactly this. Before the first event; only if it asked.
    pub fn resume(&mut self, held: Distribution) {
        self.resume = Some(held);
    }

    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Request(request) => self.on_request(request, &mut out),
            Event::Content(content) => {
                self.content = Some(content);
                self.flush(&mut out);
            }
            Event::Retry => {
                self.queue_retries();
                self.flush(&mut out);
            }
            Event::Heartbeat => {
                if self.progress.as_ref().is_some_and(|p| p.last.is_some() && p.in_flight.is_empty()) {
                    self.dirty = true;
                    self.flush(&mut out);
                }
            }
        }
        out
    }

    /// Something was refused and is not being retried: a timer with back-off should run and end in [`Event::Retry`].
    pub fn wants_retry(&self) -> bool {
        self.types
            .values()
            .any(|t| !t.refused.is_empty() && t.retry.is_empty() && t.in_flight.is_empty())
    }

    /// What the peer refuses now.
    pub fn refused(&self) -> impl Iterator<Item = (Kind, &str, &Refused)> {
        self.types
            .iter()
            .flat_map(|(kind, t)| t.refused.iter().map(move |(name, r)| (*kind, name.as_ref(), r)))
    }

    /// Unanswered responses of a type.
    pub fn unanswered(&self, kind: Kind) -> usize {
        self.types.get(&kind).map_or(0, |t| t.in_flight.len())
    }

    fn on_request(&mut self, request: DeltaDiscoveryRequest, out: &mut Vec<Action>) {
        if request.type_url == PROGRESS_TYPE_URL {
            self.on_progress(&request, out);
            return;
        }
        let kind = request.type_url.parse::<Kind>().ok().filter(|k| self.config.kinds.contains(k));
        let Some(kind) = kind else {
            // Silence: an empty answer would make a stock peer delete its copies of a type that is not ours.
            let type_url: String = request.type_url.chars().take(64).collect();
            if self.unknown.len() < MAX_UNKNOWN && self.unknown.insert(type_url.clone()) {
                out.push(Action::Report(Report::Unknown { type_url }));
            }
            return;
        };
        if request.response_nonce.is_empty() {
            self.takes_chunks |= Peer::of(request.node.as_ref()).features.contains(Features::PROGRESS);
            match self.types.get_mut(&kind) {
                Some(state) if self.progress.is_some() => {
                    state.again();
                    out.push(Action::Report(Report::AskedAgain { kind }));
                }
                Some(_) => {}
                None => {
                    let held = self.resume.as_ref().filter(|_| digest::is_covered(kind)).cloned();
                    self.types.insert(kind, TypeState::beginning_with(held));
                }
            }
        } else if let Ok(nonce) = request.response_nonce.parse::<u64>() {
            self.on_answer(kind, nonce, request.error_detail.map(|e| e.message), out);
        }
        self.flush(out);
    }

    fn on_progress(&mut self, request: &DeltaDiscoveryRequest, out: &mut Vec<Action>) {
        self.takes_chunks = true;
        let progress = self.progress.get_or_insert_default();
        if let Ok(nonce) = request.response_nonce.parse::<u64>()
            && let Some(position) = progress.in_flight.iter().position(|(n, _)| *n == nonce)
        {
            // Answers come in order: a later one answers the earlier ones too.
            let answered = progress.in_flight.drain(..=position).next_back();
            if let (Some((_, revision)), None) = (answered, &request.error_detail) {
                progress.stored = Some(revision);
                self.stored_up_to = Some(revision);
                out.push(Action::Report(Report::StoredUpTo(revision)));
            }
        }
        self.flush(out);
    }

    fn on_answer(&mut self, kind: Kind, nonce: u64, error: Option<String>, out: &mut Vec<Action>) {
        let Some(state) = self.types.get_mut(&kind) else { return };
        // A stale nonce answers nothing.
        let Some(position) = state.in_flight.iter().position(|f| f.nonce == nonce) else {
            return;
        };
        let Some(answered) = state.in_flight.remove(position) else { return };
        let Some(text) = error else {
            for (name, version) in &answered.names {
                if state.refused.get(name).is_some_and(|r| r.version == *version) {
                    state.refused.remove(name);
                }
            }
            out.push(Action::Report(Report::Acked { kind }));
            return;
        };
        let text: String = text.chars().take(MAX_TEXT).collect();
        let named: Vec<_> = answered.names.iter().filter(|(name, _)| mentions(&text, name)).cloned().collect();
        let (blamed, suspect) = match (named.is_empty(), answered.names.len()) {
            (false, _) => (named, None),
            (true, 0 | 1) => (answered.names.clone(), None),
            (true, _) => (answered.names.clone(), Some(nonce)),
        };
        for (name, _) in &answered.names {
            if !blamed.iter().any(|(b, _)| b == name) {
                state.refused.remove(name);
            }
        }
        let names = if suspect.is_none() {
            blamed.iter().map(|(name, _)| name.to_string()).collect()
        } else {
            Vec::new()
        };
        for (name, version) in blamed {
            // Towards a peer with rounds something newer may be on its way, which will get an answer of its own.
            if state
                .sent
                .as_ref()
                .and_then(|s| s.get(&(kind, name.clone())))
                .is_none_or(|e| e.version != version)
            {
                continue;
            }
            state.refused.insert(
                name,
                Refused {
                    version,
                    text: text.clone(),
                    suspect,
                },
            );
        }
        out.push(Action::Report(Report::Nacked { kind, names, text }));
        if let Some(group) = suspect {
            self.split(kind, group);
        }
    }

    /// Queues both halves of a group of suspects.
    fn split(&mut self, kind: Kind, group: u64) {
        let Some(state) = self.types.get_mut(&kind) else { return };
        let names: Vec<_> = state
            .refused
            .iter()
            .filter(|(_, r)| r.suspect == Some(group))
            .map(|(n, _)| n.clone())
            .collect();
        let half = names.len().div_ceil(2).max(1);
        state.retry.extend(names.chunks(half).map(<[_]>::to_vec));
    }

    /// Queues everything refused that is not queued already: a response each, so that one bad resource does not hide another.
    fn queue_retries(&mut self) {
        for state in self.types.values_mut().filter(|t| t.retry.is_empty() && t.in_flight.is_empty()) {
            state.retry.extend(state.refused.keys().map(|name| vec![name.clone()]));
        }
    }

    fn flush(&mut self, out: &mut Vec<Action>) {
        let Some(content) = self.content.clone() else { return };
        let rounds = self.progress.as_ref().map(|p| p.in_flight.len());
        if rounds.is_some_and(|r| r >= MAX_ROUNDS) {
            return;
        }
        let pipelined = rounds.is_some();
        if let Some(held) = self.resume.as_ref().filter(|_| !self.resumed && !self.types.is_empty()) {
            let revision = revision::format(held.at());
            self.resumed = true;
            let message = self.control(RESUMED_TYPE_URL, revision);
            out.push(Action::Send(message));
        }
        let kinds: Vec<Kind> = self.types.keys().copied().collect();
        let mut complete = !kinds.is_empty();
        let limit = if self.takes_chunks {
            Limit::Chunks(self.config.chunk_bytes)
        } else {
            Limit::Whole(self.config.stock_bytes)
        };
        for kind in kinds {
            while let Some(state) = self.types.get_mut(&kind) {
                if !pipelined && !state.in_flight.is_empty() {
                    complete &= state.is_told(&content);
                    break;
                }
                match state.next(&self.config.recipient, kind, &content, limit) {
                    Next::Nothing => {
                        complete &= state.is_told(&content);
                        break;
                    }
                    Next::TooLarge(bytes) => {
                        complete = false;
                        out.push(Action::Report(Report::TooLarge { kind, bytes }));
                        break;
                    }
                    Next::Response((upserts, removals)) => {
                        if state.announces_full_set() {
                            let message = self.control(FULL_SET_TYPE_URL, kind.name().to_owned());
                            out.push(Action::Send(message));
                        }
                        let response = self.respond(kind, &content, &upserts, removals, out);
                        out.push(Action::Send(response));
                    }
                }
            }
        }
        if complete {
            self.close_round(&content, out);
        }
    }

    /// A message of our own to a peer of our own. It gets no answer.
    fn control(&mut self, type_url: &str, text: String) -> DeltaDiscoveryResponse {
        self.last_nonce += 1;
        DeltaDiscoveryResponse {
            system_version_info: text,
            type_url: type_url.to_owned(),
            nonce: self.last_nonce.to_string(),
            control_plane: Some(ControlPlane {
                identifier: self.config.identifier.clone(),
            }),
            ..DeltaDiscoveryResponse::default()
        }
    }

    /// What the peer should hold of each kind now: the kind's name, and the sum in place of a version. Kinds of which the peer refuses
    /// something are left out.
    fn digests(&self, content: &Distribution) -> Vec<Resource> {
        let whole = self
            .types
            .iter()
            .filter(|(kind, state)| digest::is_covered(**kind) && state.refused.is_empty());
        let sums = whole.filter_map(|(kind, _)| Some((kind, content.sum(*kind, &self.config.recipient)?)));
        let entry = |(kind, sum): (&Kind, _)| Resource {
            name: kind.name().to_owned(),
            version: digest::format(sum),
            ..Resource::default()
        };
        sums.map(entry).collect()
    }

    fn respond(
        &mut self,
        kind: Kind,
        content: &Distribution,
        upserts: &[Arc<Entry>],
        removals: Vec<Arc<str>>,
        out: &mut Vec<Action>,
    ) -> DeltaDiscoveryResponse {
        self.last_nonce += 1;
        let nonce = self.last_nonce;
        self.dirty = true;
        if let Some(state) = self.types.get_mut(&kind) {
            state.in_flight.push_back(InFlight {
                nonce,
                names: upserts.iter().map(|e| (e.name.clone(), e.version.clone())).collect(),
            });
        }
        out.push(Action::Report(Report::Sent {
            kind,
            resources: upserts.len() + removals.len(),
        }));
        DeltaDiscoveryResponse {
            system_version_info: revision::format(content.at()),
            resources: upserts.iter().map(|e| resource(e)).collect(),
            type_url: kind.name().to_owned(),
            nonce: nonce.to_string(),
            removed_resources: removals.iter().map(ToString::to_string).collect(),
            control_plane: Some(ControlPlane {
                identifier: self.config.identifier.clone(),
            }),
        }
    }

    /// All types are up to date with `at`.
    fn close_round(&mut self, content: &Distribution, out: &mut Vec<Action>) {
        let at = content.at();
        let last = self.progress.as_ref().map(|p| p.last);
        let moved = last.is_some_and(|last| last != Some(at) && (self.config.announce_idle || last.is_none()));
        if last.is_some() && (self.dirty || moved) {
            self.dirty = false;
            let mut marker = self.control(PROGRESS_TYPE_URL, revision::format(at));
            marker.resources = self.digests(content);
            if let Some(progress) = &mut self.progress {
                progress.last = Some(at);
                progress.in_flight.push_back((self.last_nonce, at));
            }
            out.push(Action::Send(marker));
        }
        if self.sent_up_to != Some(at) {
            self.sent_up_to = Some(at);
            out.push(Action::Report(Report::SentUpTo(at)));
        }
        // Nothing of what came after the last marker was for the peer: what it has stored of that one is all.
        let all = self
            .progress
            .as_ref()
            .is_some_and(|p| p.in_flight.is_empty() && p.last.is_some() && p.stored == p.last);
        if all && !self.dirty && self.stored_up_to != Some(at) {
            self.stored_up_to = Some(at);
            out.push(Action::Report(Report::StoredUpTo(at)));
        }
    }
}

fn resource(entry: &Entry) -> Resource {
    Resource {
        version: entry.version.to_string(),
        resource: Some(prost_types::Any {
            type_url: wire::RESOURCE_TYPE_URL.to_owned(),
            value: entry.bytes.to_vec(),
        }),
        name: entry.name.to_string(),
        aliases: Vec::new(),
    }
}

/// Whether a text names a resource: the name is not part of a longer one.
fn mentions(text: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
    })
}

#[cfg(test)]
mod tests;
