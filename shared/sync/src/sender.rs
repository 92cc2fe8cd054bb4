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
    PROGRESS_TYPE_URL,
    distribution::Distribution,
    mapping::{Entry, Recipient},
    revision,
};

/// Unanswered rounds towards a peer that reports progress. More would only queue what coalesces better here.
pub const MAX_ROUNDS: usize = 8;
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
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Sender {
    config: Config,
    content: Option<Distribution>,
    types: BTreeMap<Kind, TypeState>,
    last_nonce: u64,
    progress: Option<Progress>,
    /// Something was sent after the last marker.
    dirty: bool,
    sent_up_to: Option<GlobalRevision>,
    unknown: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
struct TypeState {
    /// What the peer was told; `None` before the first response.
    sent: Option<Distribution>,
    in_flight: VecDeque<InFlight>,
    refused: BTreeMap<Arc<str>, Refused>,
    /// Names to be sent again, a response per group.
    retry: VecDeque<Vec<Arc<str>>>,
}

/// An unanswered response: the names and versions it held.
#[derive(Clone, Debug)]
struct InFlight {
    nonce: u64,
    names: Vec<(Arc<str>, Arc<str>)>,
}

/// A resource that the peer refused, or that was in a response which it refused in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub version: Arc<str>,
    pub text: String,
    /// Not told apart yet: the group is retried in halves.
    pub suspect: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    last: Option<GlobalRevision>,
    in_flight: VecDeque<(u64, GlobalRevision)>,
}

impl Sender {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            content: None,
            types: BTreeMap::new(),
            last_nonce: 0,
            progress: None,
            dirty: false,
            sent_up_to: None,
            unknown: BTreeSet::new(),
        }
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
            self.types.entry(kind).or_default();
        } else if let Ok(nonce) = request.response_nonce.parse::<u64>() {
            self.on_answer(kind, nonce, request.error_detail.map(|e| e.message), out);
        }
        self.flush(out);
    }

    fn on_progress(&mut self, request: &DeltaDiscoveryRequest, out: &mut Vec<Action>) {
        let progress = self.progress.get_or_insert_default();
        if let Ok(nonce) = request.response_nonce.parse::<u64>()
            && let Some(position) = progress.in_flight.iter().position(|(n, _)| *n == nonce)
        {
            // Answers come in order: a later one answers the earlier ones too.
            let answered = progress.in_flight.drain(..=position).next_back();
            if let (Some((_, revision)), None) = (answered, &request.error_detail) {
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
        let kinds: Vec<Kind> = self.types.keys().copied().collect();
        let mut complete = !kinds.is_empty();
        for kind in kinds {
            let Some(state) = self.types.get_mut(&kind) else { continue };
            if !pipelined && !state.in_flight.is_empty() {
                complete &= state.sent.as_ref().is_some_and(|s| s.sequence() == content.sequence());
                continue;
            }
            let Some((upserts, removals)) = next_response(&self.config.recipient, kind, state, &content) else {
                continue;
            };
            let response = self.respond(kind, &content, &upserts, removals, out);
            out.push(Action::Send(response));
        }
        if complete {
            self.close_round(content.at(), out);
        }
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
    fn close_round(&mut self, at: GlobalRevision, out: &mut Vec<Action>) {
        if let Some(progress) = &mut self.progress {
            let moved = progress.last != Some(at) && (self.config.announce_idle || progress.last.is_none());
            if self.dirty || moved {
                self.last_nonce += 1;
                progress.last = Some(at);
                progress.in_flight.push_back((self.last_nonce, at));
                self.dirty = false;
                out.push(Action::Send(DeltaDiscoveryResponse {
                    system_version_info: revision::format(at),
                    type_url: PROGRESS_TYPE_URL.to_owned(),
                    nonce: self.last_nonce.to_string(),
                    control_plane: Some(ControlPlane {
                        identifier: self.config.identifier.clone(),
                    }),
                    ..DeltaDiscoveryResponse::default()
                }));
            }
        }
        if self.sent_up_to != Some(at) {
            self.sent_up_to = Some(at);
            out.push(Action::Report(Report::SentUpTo(at)));
        }
    }
}

/// Upserts, and names that are removed.
type Delta = (Vec<Arc<Entry>>, Vec<Arc<str>>);

/// What the next response of a type holds; `None` when there is nothing to say. Marks it as sent.
fn next_response(recipient: &Recipient, kind: Kind, state: &mut TypeState, content: &Distribution) -> Option<Delta> {
    let visible = |d: &Distribution, name: &Arc<str>| d.get(&(kind, name.clone())).filter(|e| recipient.sees(e)).cloned();
    let Some(sent) = state.sent.replace(content.clone()) else {
        let all = content
            .of_kind(kind)
            .filter(|(_, e)| recipient.sees(e))
            .map(|(_, e)| e.clone())
            .collect();
        return Some((all, Vec::new()));
    };
    let mut upserts = Vec::new();
    let mut removals = Vec::new();
    for name in content.changed_since(&sent, kind) {
        match (visible(&sent, &name), visible(content, &name)) {
            (old, Some(new)) if old.as_ref().is_none_or(|o| o.version != new.version) => upserts.push(new),
            (Some(_), None) => removals.push(name),
            _ => {}
        }
    }
    for name in upserts.iter().map(|e| &e.name).chain(&removals) {
        state.refused.remove(name);
    }
    if !upserts.is_empty() || !removals.is_empty() {
        return Some((upserts, removals));
    }
    // Retries come after news.
    while let Some(group) = state.retry.pop_front() {
        let again: Vec<_> = group
            .iter()
            .filter(|n| state.refused.contains_key(*n))
            .filter_map(|n| visible(content, n))
            .collect();
        if !again.is_empty() {
            return Some((again, Vec::new()));
        }
    }
    None
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
