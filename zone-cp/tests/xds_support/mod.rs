//! A model of Envoy as a delta ADS client, and a link between it and the machine: what goes over the wire, one message at a time.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use proptest::prelude::*;
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail};
use ursa_zone_cp::{
    snapshot::{ProxySnapshot, XdsResource, XdsType},
    xds::machine::{Action, Event, Machine, Report},
};

/// Clusters by name with a version; listener `l<i>` uses route `r<i>`, which names clusters and has a version too.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub clusters: BTreeMap<String, u8>,
    pub endpoints: BTreeMap<String, u8>,
    pub routes: BTreeMap<String, (BTreeSet<String>, u8)>,
    pub listeners: BTreeMap<String, u8>,
}

pub const KINDS: [XdsType; 4] = [XdsType::Cluster, XdsType::Endpoint, XdsType::Listener, XdsType::Route];

/// Whatever has this version is refused by the model.
pub const BAD: u8 = 3;

/// Most responses that one bad content may be part of, from its first one until it is refused alone, with 6 names to a type:
/// the whole, halves of it three times, and endpoints that follow a cluster.
const PATIENCE: usize = 10;

pub fn is_bad(content: &str) -> bool {
    content.ends_with(&format!("#{BAD}"))
}

fn clusters_of(route: &str) -> impl Iterator<Item = &str> {
    let (clusters, _) = route.split_once('#').unwrap();
    clusters.split(',').filter(|c| !c.is_empty())
}

pub fn snapshot(config: &Config, revision: u64) -> Arc<ProxySnapshot> {
    let resource = |text: String| XdsResource {
        version: text.clone().into(),
        bytes: text.into_bytes().into(),
    };
    let mut snapshot = ProxySnapshot {
        zone_revision: revision,
        ..ProxySnapshot::default()
    };
    let numbers = |m: &BTreeMap<String, u8>| m.iter().map(|(n, v)| (n.clone(), resource(format!("#{v}")))).collect();
    snapshot.resources.insert(XdsType::Cluster, numbers(&config.clusters));
    snapshot.resources.insert(XdsType::Endpoint, numbers(&config.endpoints));
    snapshot.resources.insert(XdsType::Listener, numbers(&config.listeners));
    let routes = config
        .routes
        .iter()
        .map(|(n, (c, v))| {
            (
                n.clone(),
                resource(format!("{}#{v}", c.iter().cloned().collect::<Vec<_>>().join(","))),
            )
        })
        .collect();
    snapshot.resources.insert(XdsType::Route, routes);
    Arc::new(snapshot)
}

/// What a response with something bad in it comes to.
#[derive(Clone, Copy, Debug, Default)]
pub enum Refusal {
    /// Nothing of it is taken, as when a message cannot be decoded.
    #[default]
    Whole,
    /// All but the bad is taken, and the answer names the bad: Envoy's clusters and listeners.
    Named,
    /// Nothing of it is taken, and the answer names what is good: the machine must not depend on texts.
    Lying,
}

/// Holds what it accepted and talks as Envoy 1.40 was seen to: endpoints are asked for before the clusters are ACKed.
#[derive(Default)]
pub struct Envoy {
    pub refusal: Refusal,
    /// Listeners whose sockets somebody else has.
    pub busy: BTreeSet<String>,
    pub held: BTreeMap<XdsType, BTreeMap<String, String>>,
    pub asked: BTreeMap<XdsType, BTreeSet<String>>,
    /// What was refused alone, by name.
    pub alone: BTreeMap<(XdsType, String), String>,
    /// Clusters of which some content was refused alone on this stream. It stays refused, also when it comes back after another one.
    pub lacking: BTreeSet<String>,
    /// How often a content came in a row.
    pub came: BTreeMap<(XdsType, String), (String, usize)>,
    pub inbox: VecDeque<DeltaDiscoveryResponse>,
    pub outbox: VecDeque<DeltaDiscoveryRequest>,
    pub listeners_asked: bool,
}

impl Envoy {
    pub fn request(kind: XdsType) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    pub fn connect(&mut self) {
        self.inbox.clear();
        self.outbox.clear();
        // A new stream may try again what the last one refused.
        self.alone.clear();
        self.lacking.clear();
        self.came.clear();
        for kind in KINDS {
            let asked = self.asked.get(&kind).cloned().unwrap_or_default();
            let starts = kind == XdsType::Cluster || (kind == XdsType::Listener && self.listeners_asked) || !asked.is_empty();
            if !starts {
                continue;
            }
            let mut request = Self::request(kind);
            request.resource_names_subscribe = asked.into_iter().collect();
            request.initial_resource_versions = self.held.get(&kind).cloned().unwrap_or_default().into_iter().collect();
            self.outbox.push_back(request);
        }
    }

    pub fn subscribe(&mut self, kind: XdsType, wanted: BTreeSet<String>) {
        let asked = self.asked.entry(kind).or_default();
        let add: Vec<String> = wanted.difference(asked).cloned().collect();
        let drop: Vec<String> = asked.difference(&wanted).cloned().collect();
        if add.is_empty() && drop.is_empty() {
            return;
        }
        *asked = wanted;
        for name in &drop {
            self.held.entry(kind).or_default().remove(name);
            self.alone.remove(&(kind, name.clone()));
            self.came.remove(&(kind, name.clone()));
        }
        let mut request = Self::request(kind);
        request.resource_names_subscribe = add;
        request.resource_names_unsubscribe = drop;
        self.outbox.push_back(request);
    }

    pub fn step(&mut self) -> Result<(), TestCaseError> {
        let Some(response) = self.inbox.pop_front() else { return Ok(()) };
        let kind = XdsType::by_type_url(&response.type_url).unwrap();
        let versions: Vec<(String, String)> = response
            .resources
            .iter()
            .map(|r| {
                (
                    r.name.clone(),
                    String::from_utf8(r.resource.as_ref().unwrap().value.clone()).unwrap(),
                )
            })
            .collect();
        let mut answer = Self::request(kind);
        answer.response_nonce.clone_from(&response.nonce);
        for (name, version) in &versions {
            let key = (kind, name.clone());
            prop_assert!(
                self.alone.get(&key) != Some(version),
                "refused content came again: {key:?} {version}"
            );
            self.alone.remove(&key);
            let came = self.came.entry(key).or_default();
            *came = (version.clone(), if came.0 == *version { came.1 + 1 } else { 1 });
            prop_assert!(!is_bad(version) || came.1 <= PATIENCE, "{kind:?} {name} comes again and again");
        }
        let (bad, good): (Vec<_>, Vec<_>) = versions.into_iter().partition(|(_, version)| is_bad(version));
        let is_busy = |name: &String| kind == XdsType::Listener && self.busy.contains(name);
        let (unbound_ones, good): (Vec<_>, Vec<_>) = good.into_iter().partition(|(name, _)| is_busy(name));
        if let ([(name, version)], [], []) = (bad.as_slice(), good.as_slice(), unbound_ones.as_slice()) {
            self.alone.insert((kind, name.clone()), version.clone());
            if kind == XdsType::Cluster {
                self.lacking.insert(name.clone());
            }
        }
        let unbound = |(name, _): &(String, String)| format!("{name}: cannot bind '127.0.0.1:80': Address already in use");
        let unbound: Vec<String> = unbound_ones.iter().map(unbound).collect();
        if !bad.is_empty() || !unbound.is_empty() {
            let names = |list: &[(String, String)]| list.iter().map(|(n, _)| format!("{n}: bad")).collect::<Vec<_>>().join(", ");
            let message = match self.refusal {
                // A socket is asked for once the message is understood: then the others are taken.
                _ if bad.is_empty() => format!("Error adding/updating listener(s) {}", unbound.join("\n")),
                Refusal::Whole => "Proto constraint validation failed".into(),
                Refusal::Named => format!("Error adding/updating {}\n{}", names(&bad), unbound.join("\n")),
                Refusal::Lying => format!("Error adding/updating {}", names(&good)),
            };
            answer.error_detail = Some(ErrorDetail { code: 13, message });
        }
        if bad.is_empty() || matches!(self.refusal, Refusal::Named) {
            for (name, version) in good {
                // Nobody in Envoy waits for it any more: the answer crossed the unsubscription.
                let unasked = !kind.is_wildcard() && !self.asked.get(&kind).is_some_and(|a| a.contains(&name));
                if unasked {
                    continue;
                }
                if kind == XdsType::Route {
                    for cluster in clusters_of(&version) {
                        let held = self.held.get(&XdsType::Cluster).is_some_and(|c| c.contains_key(cluster));
                        let refused = self.lacking.contains(cluster);
                        prop_assert!(held || refused, "route {name} names cluster {cluster} that is not there");
                    }
                }
                self.held.entry(kind).or_default().insert(name, version);
            }
            for name in &response.removed_resources {
                if kind == XdsType::Cluster {
                    for (route, content) in self.held.get(&XdsType::Route).into_iter().flatten() {
                        prop_assert!(
                            !clusters_of(content).any(|c| c == name),
                            "cluster {name} is taken from under route {route}"
                        );
                    }
                }
                self.held.entry(kind).or_default().remove(name);
            }
        }
        if kind == XdsType::Cluster {
            let clusters = self.held.get(&kind).map(|c| c.keys().cloned().collect()).unwrap_or_default();
            self.subscribe(XdsType::Endpoint, clusters);
        }
        self.outbox.push_back(answer);
        if kind == XdsType::Cluster && !self.listeners_asked {
            self.listeners_asked = true;
            self.outbox.push_back(Self::request(XdsType::Listener));
        }
        if kind == XdsType::Listener {
            let routes = self
                .held
                .get(&kind)
                .map(|l| l.keys().map(|n| n.replace('l', "r")).collect())
                .unwrap_or_default();
            self.subscribe(XdsType::Route, routes);
        }
        Ok(())
    }
}

pub struct Link {
    pub machine: Machine,
    pub envoy: Envoy,
    pub unanswered: BTreeMap<XdsType, usize>,
    pub settled: Option<u64>,
}

impl Link {
    pub fn feed(&mut self, event: Event) -> Result<(), TestCaseError> {
        for action in self.machine.handle(event) {
            match action {
                Action::Send { kind, response, .. } => {
                    *self.unanswered.entry(kind).or_default() += 1;
                    prop_assert!(self.unanswered[&kind] <= 1, "two unanswered responses of {kind:?}");
                    self.envoy.inbox.push_back(response);
                }
                Action::Report(Report::Acked(kind) | Report::Nacked { kind, .. }) => *self.unanswered.entry(kind).or_default() -= 1,
                Action::Report(Report::Settled { zone_revision, .. }) => self.settled = Some(zone_revision),
                Action::Close(status) => prop_assert!(false, "closed: {status}"),
            }
        }
        Ok(())
    }

    pub fn feed_next(&mut self) -> Result<(), TestCaseError> {
        match self.envoy.outbox.pop_front() {
            Some(request) => self.feed(Event::Request(request)),
            None => Ok(()),
        }
    }

    pub fn drain(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..2_000 {
            if self.envoy.inbox.is_empty() && self.envoy.outbox.is_empty() {
                return Ok(());
            }
            self.envoy.step()?;
            self.feed_next()?;
        }
        prop_assert!(false, "the stream does not come to rest");
        Ok(())
    }
}
