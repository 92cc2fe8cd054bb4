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

use std::collections::BTreeMap;

use ursa_model::{Kind, ResourceKey, wire};
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail};
use ursa_state::{Catalog, GlobalRevision};

use crate::{PROGRESS_TYPE_URL, peer::Identity, revision};

pub mod batch;
mod pending;
mod scope;

pub use batch::Batch;
pub use scope::Site;

use pending::{Pending, Upsert};

/// Bytes that may wait for a marker or for the store before the stream is no longer read. A first set of every kind fits.
const MAX_WAITING: usize = 64 * 1024 * 1024;
/// Largest sum of label bytes of one resource.
const MAX_LABEL_BYTES: usize = 64 * 1024;
/// Resources named in one NACK.
const MAX_NAMED: usize = 256;
/// Longest reason per resource in a NACK.
const MAX_REASON: usize = 512;

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
        keys: Vec<ResourceKey>,
    },
    /// Resources came under another zone's name; this many.
    Rewritten(usize),
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
    /// Answers to send once the batch in the store is there.
    storing: Option<Vec<pending::Answer>>,
    held: BTreeMap<Kind, Vec<ResourceKey>>,
    closed: bool,
}

impl Receiver {
    pub fn new(config: Config) -> Self {
        let first_seen = config.kinds.iter().map(|k| (*k, false)).collect();
        Self {
            config,
            first_seen,
            open: Pending::default(),
            ready: Pending::default(),
            storing: None,
            held: BTreeMap::new(),
            closed: false,
        }
    }

    /// `catalog` is the newest picture of our own store; after [`Event::Stored`] it must contain what was stored.
    pub fn handle(&mut self, event: Event, catalog: &Catalog) -> Vec<Action> {
        let mut out = Vec::new();
        if self.closed {
            return out;
        }
        match event {
            Event::Start => self.subscribe(&mut out),
            Event::Response(response) => {
                if let Err(close) = self.on_response(response, &mut out) {
                    self.closed = true;
                    out.push(Action::Close(close));
                    return out;
                }
                self.release(catalog, &mut out);
            }
            Event::Stored { refused } => {
                self.answer(&refused, &mut out);
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
    pub fn held(&self) -> &BTreeMap<Kind, Vec<ResourceKey>> {
        &self.held
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
            let mut open = std::mem::take(&mut self.open);
            open.mark(at, response.nonce);
            self.ready.append(open);
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
            self.open.append(pending)
        } else {
            self.ready.append(pending)
        }
        Ok(())
    }

    /// Decodes and checks one response.
    fn read(&self, kind: Kind, first: bool, response: DeltaDiscoveryResponse, out: &mut Vec<Action>) -> Result<Pending, Close> {
        let protocol = |name: &str, err: &dyn std::fmt::Display| {
            Close::Protocol(format!("{kind} {:?}: {err}", name.chars().take(128).collect::<String>()))
        };
        let mut pending = Pending::of_response(kind, first, response.nonce);
        let mut rewritten = 0;
        for name in &response.removed_resources {
            // A name that could not be stored has nothing to remove.
            if let Ok(key) = wire::parse_kds_name(kind, name).and_then(|key| self.config.site.received_key(key)) {
                pending.remove(key);
            }
        }
        for resource in response.resources {
            let any = resource.resource.ok_or_else(|| protocol(&resource.name, &"no resource in it"))?;
            pending.bytes += any.value.len();
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
        let batch = batch::build(&mut pending, &self.config.site, catalog, self.config.known);
        if let Some(at) = pending.global {
            self.config.known = Some(at);
        }
        for (kind, keys) in batch.held.clone() {
            out.push(Action::Report(Report::Held { kind, keys: keys.clone() }));
            self.held.insert(kind, keys);
        }
        self.drop_returned(&batch, out);
        self.storing = Some(pending.answers);
        if batch.is_empty() {
            self.answer(&[], out);
        } else {
            out.push(Action::Apply(Box::new(batch)));
        }
    }

    /// A held removal is over when the resource is sent again, or removed by name.
    fn drop_returned(&mut self, batch: &Batch, out: &mut Vec<Action>) {
        for (kind, keys) in &mut self.held {
            let before = keys.len();
            keys.retain(|key| !batch.mentioned.contains(key));
            if keys.len() != before {
                out.push(Action::Report(Report::Held {
                    kind: *kind,
                    keys: keys.clone(),
                }));
            }
        }
    }

    /// Sends the answers of the batch that is stored now.
    fn answer(&mut self, refused: &[(ResourceKey, String)], out: &mut Vec<Action>) {
        let mut answers = self.storing.take().unwrap_or_default();
        for (key, why) in refused {
            if let Some((answer, wire_name)) = answers.iter_mut().find_map(|a| a.keys.get(key).cloned().map(|name| (a, name))) {
                answer.refused.push((wire_name, why.clone()));
            }
        }
        for answer in answers {
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
    }
}

/// `user error: <name>: <reason>; ...`: Kuma's prefix for the sender's fault, and every refused resource by its wire name.
fn nack_text(refused: &[(String, String)]) -> String {
    let named: Vec<String> = refused
        .iter()
        .take(MAX_NAMED)
        .map(|(name, reason)| format!("{name}: {}", reason.chars().take(MAX_REASON).collect::<String>()))
        .collect();
    let more = refused.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("user error: {}{more}", named.join("; "))
}

#[cfg(test)]
mod tests;
