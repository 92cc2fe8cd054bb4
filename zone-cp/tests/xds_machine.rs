//! The delta ADS machine against a model of Envoy: any script of snapshots, slow answers, refusals and reconnects ends with the
//! client holding what it can accept; nothing names what is not there; refused content is not sent again.

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

/// Clusters by name with a version; listener `l<i>` uses route `r<i>`, which names clusters.
#[derive(Clone, Debug, Default)]
struct Config {
    clusters: BTreeMap<String, u8>,
    endpoints: BTreeMap<String, u8>,
    routes: BTreeMap<String, BTreeSet<String>>,
    listeners: BTreeMap<String, u8>,
}

/// A cluster of this version is refused by the model.
const BAD: u8 = 3;

fn snapshot(config: &Config, revision: u64) -> Arc<ProxySnapshot> {
    let resource = |text: String| XdsResource {
        version: text.clone().into(),
        bytes: text.into_bytes().into(),
    };
    let mut snapshot = ProxySnapshot {
        zone_revision: revision,
        ..ProxySnapshot::default()
    };
    let numbers = |m: &BTreeMap<String, u8>| m.iter().map(|(n, v)| (n.clone(), resource(v.to_string()))).collect();
    snapshot.resources.insert(XdsType::Cluster, numbers(&config.clusters));
    snapshot.resources.insert(XdsType::Endpoint, numbers(&config.endpoints));
    snapshot.resources.insert(XdsType::Listener, numbers(&config.listeners));
    let routes = config
        .routes
        .iter()
        .map(|(n, c)| (n.clone(), resource(c.iter().cloned().collect::<Vec<_>>().join(","))))
        .collect();
    snapshot.resources.insert(XdsType::Route, routes);
    Arc::new(snapshot)
}

/// Holds what it accepted and talks as Envoy 1.40 was seen to: endpoints are asked for before the clusters are ACKed.
#[derive(Default)]
struct Envoy {
    held: BTreeMap<XdsType, BTreeMap<String, String>>,
    asked: BTreeMap<XdsType, BTreeSet<String>>,
    refused: BTreeSet<(String, String)>,
    inbox: VecDeque<DeltaDiscoveryResponse>,
    outbox: VecDeque<DeltaDiscoveryRequest>,
    listeners_asked: bool,
}

impl Envoy {
    fn request(kind: XdsType) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn connect(&mut self) {
        self.inbox.clear();
        self.outbox.clear();
        for kind in [XdsType::Cluster, XdsType::Endpoint, XdsType::Listener, XdsType::Route] {
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

    fn subscribe(&mut self, kind: XdsType, wanted: BTreeSet<String>) {
        let asked = self.asked.entry(kind).or_default();
        let add: Vec<String> = wanted.difference(asked).cloned().collect();
        let drop: Vec<String> = asked.difference(&wanted).cloned().collect();
        if add.is_empty() && drop.is_empty() {
            return;
        }
        *asked = wanted;
        for name in &drop {
            self.held.entry(kind).or_default().remove(name);
        }
        let mut request = Self::request(kind);
        request.resource_names_subscribe = add;
        request.resource_names_unsubscribe = drop;
        self.outbox.push_back(request);
    }

    fn step(&mut self) -> Result<(), TestCaseError> {
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
        let refuses = versions.iter().any(|(_, v)| kind == XdsType::Cluster && *v == BAD.to_string());
        let mut answer = Self::request(kind);
        answer.response_nonce.clone_from(&response.nonce);
        for entry in &versions {
            prop_assert!(
                kind != XdsType::Cluster || !self.refused.contains(entry),
                "refused content came again: {entry:?}"
            );
        }
        if refuses {
            // The whole response is refused: none of it may come again unchanged.
            self.refused.retain(|(n, _)| !versions.iter().any(|(name, _)| name == n));
            self.refused.extend(versions);
            answer.error_detail = Some(ErrorDetail {
                code: 13,
                message: "bad".into(),
            });
        } else {
            for (name, version) in versions {
                // Nobody in Envoy waits for it any more: the answer crossed the unsubscription.
                let unasked = !kind.is_wildcard() && !self.asked.get(&kind).is_some_and(|a| a.contains(&name));
                if unasked {
                    continue;
                }
                if kind == XdsType::Route {
                    for cluster in version.split(',').filter(|c| !c.is_empty()) {
                        let held = self.held.get(&XdsType::Cluster).is_some_and(|c| c.contains_key(cluster));
                        let refused = self.refused.iter().any(|(n, _)| n == cluster);
                        prop_assert!(held || refused, "route {name} names cluster {cluster} that is not there");
                    }
                }
                // Other content of that name came between: what was refused before may be tried again.
                if kind == XdsType::Cluster {
                    self.refused.retain(|(n, _)| *n != name);
                }
                self.held.entry(kind).or_default().insert(name, version);
            }
            for name in &response.removed_resources {
                if kind == XdsType::Cluster {
                    for (route, clusters) in self.held.get(&XdsType::Route).into_iter().flatten() {
                        prop_assert!(
                            !clusters.split(',').any(|c| c == name),
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

struct Link {
    machine: Machine,
    envoy: Envoy,
    unanswered: BTreeMap<XdsType, usize>,
    settled: Option<u64>,
}

impl Link {
    fn feed(&mut self, event: Event) -> Result<(), TestCaseError> {
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

    fn feed_next(&mut self) -> Result<(), TestCaseError> {
        match self.envoy.outbox.pop_front() {
            Some(request) => self.feed(Event::Request(request)),
            None => Ok(()),
        }
    }

    fn drain(&mut self) -> Result<(), TestCaseError> {
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

#[derive(Clone, Debug)]
enum Step {
    Snapshot(Config),
    Envoy,
    Machine,
    Reconnect,
}

fn arb_config(worst: u8) -> impl Strategy<Value = Config> {
    let cluster = (0..4u8).prop_map(|i| format!("c{i}"));
    (
        prop::collection::btree_map(cluster, 1..=worst, 0..4),
        prop::collection::vec(1..4u8, 4),
        prop::collection::vec((0..3u8, prop::collection::vec(any::<prop::sample::Index>(), 0..3), 1..3u8), 0..3),
    )
        .prop_map(|(clusters, endpoint_versions, listeners)| {
            let names: Vec<String> = clusters.keys().cloned().collect();
            let endpoints = names.iter().zip(endpoint_versions).map(|(n, v)| (n.clone(), v)).collect();
            let mut config = Config {
                clusters,
                endpoints,
                ..Config::default()
            };
            for (i, picks, version) in listeners {
                let named = picks
                    .iter()
                    .filter(|_| !names.is_empty())
                    .map(|p| names[p.index(names.len())].clone())
                    .collect();
                config.routes.insert(format!("r{i}"), named);
                config.listeners.insert(format!("l{i}"), version);
            }
            config
        })
}

fn arb_script(worst: u8) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![2 => arb_config(worst).prop_map(Step::Snapshot), 5 => Just(Step::Envoy), 5 => Just(Step::Machine), 1 => Just(Step::Reconnect)],
        1..60,
    )
}

fn play(script: Vec<Step>) -> Result<(), TestCaseError> {
    let mut link = Link {
        machine: Machine::new(),
        envoy: Envoy::default(),
        unanswered: BTreeMap::new(),
        settled: None,
    };
    let mut newest = Config::default();
    let mut revision = 1;
    link.feed(Event::Snapshot(snapshot(&newest, revision)))?;
    link.envoy.connect();
    for step in script {
        match step {
            Step::Snapshot(config) => {
                newest = config;
                revision += 1;
                link.feed(Event::Snapshot(snapshot(&newest, revision)))?;
            }
            Step::Envoy => link.envoy.step()?,
            Step::Machine => link.feed_next()?,
            Step::Reconnect => {
                link.machine = Machine::new();
                link.unanswered.clear();
                // A new stream may try again what the last one refused.
                link.envoy.refused.clear();
                link.envoy.connect();
                link.feed(Event::Snapshot(snapshot(&newest, revision)))?;
            }
        }
    }
    link.drain()?;
    prop_assert_eq!(link.settled, Some(revision), "not settled");
    let want = snapshot(&newest, revision);
    for kind in [XdsType::Cluster, XdsType::Endpoint, XdsType::Listener, XdsType::Route] {
        let held = link.envoy.held.get(&kind).cloned().unwrap_or_default();
        for (name, resource) in want.of(kind) {
            let version = String::from_utf8(resource.bytes.to_vec()).unwrap();
            let refused = link.envoy.refused.contains(&(name.clone(), version.clone()));
            let of_refused = kind == XdsType::Endpoint && !link.envoy.held.get(&XdsType::Cluster).is_some_and(|c| c.contains_key(name));
            prop_assert!(
                held.get(name) == Some(&version) || refused || of_refused,
                "{:?} {} is {:?}, not {}",
                kind,
                name,
                held.get(name),
                version
            );
        }
        for name in held.keys() {
            prop_assert!(want.of(kind).contains_key(name), "{:?} {} was left behind", kind, name);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_stream_converges(script in arb_script(2)) {
        play(script)?;
    }

    #[test]
    fn refused_content_is_not_sent_again(script in arb_script(BAD)) {
        play(script)?;
    }
}

#[test]
fn a_stale_nonce_answers_nothing() {
    let mut machine = Machine::new();
    let config = Config {
        clusters: [("c0".into(), 1)].into(),
        endpoints: [("c0".into(), 1)].into(),
        ..Config::default()
    };
    machine.handle(Event::Snapshot(snapshot(&config, 1)));
    let first = machine.handle(Event::Request(Envoy::request(XdsType::Cluster)));
    assert!(matches!(
        first.as_slice(),
        [Action::Send {
            kind: XdsType::Cluster,
            ..
        }]
    ));
    let mut stale = Envoy::request(XdsType::Cluster);
    stale.response_nonce = "77".into();
    assert!(machine.handle(Event::Request(stale)).is_empty());
}

#[test]
fn a_name_that_does_not_exist_is_answered_once() {
    let mut machine = Machine::new();
    machine.handle(Event::Snapshot(snapshot(&Config::default(), 1)));
    let mut request = Envoy::request(XdsType::Route);
    request.resource_names_subscribe = vec!["nowhere".into()];
    let actions = machine.handle(Event::Request(request));
    let [Action::Send { response, .. }] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!(response.removed_resources, ["nowhere"]);
}

#[test]
fn a_starting_envoy_gets_an_answer_even_when_there_is_nothing() {
    let mut machine = Machine::new();
    machine.handle(Event::Snapshot(snapshot(&Config::default(), 1)));
    let actions = machine.handle(Event::Request(Envoy::request(XdsType::Cluster)));
    assert!(matches!(
        actions.as_slice(),
        [Action::Send {
            kind: XdsType::Cluster,
            ..
        }]
    ));
}

#[test]
fn garbage_closes_the_stream_with_a_typed_status() {
    let mut machine = Machine::new();
    let mut long = Envoy::request(XdsType::Endpoint);
    long.resource_names_subscribe = vec!["x".repeat(5_000)];
    let actions = machine.handle(Event::Request(long));
    assert!(matches!(actions.as_slice(), [Action::Close(s)] if s.code() == tonic::Code::InvalidArgument));
    let unknown = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/nonsense".into(),
        ..DeltaDiscoveryRequest::default()
    };
    assert!(machine.handle(Event::Request(unknown)).is_empty());
}

/// A machine whose client holds cluster `c0` and listener `l0` on its route, all acknowledged.
fn settled_machine() -> Machine {
    let mut machine = Machine::new();
    let mut actions = machine.handle(Event::Snapshot(snapshot(&with_listener("l0", 1), 1)));
    for kind in [XdsType::Cluster, XdsType::Endpoint, XdsType::Listener, XdsType::Route] {
        let mut request = Envoy::request(kind);
        match kind {
            XdsType::Endpoint => request.resource_names_subscribe = vec!["c0".into()],
            XdsType::Route => request.resource_names_subscribe = vec!["r0".into()],
            _ => {}
        }
        actions.extend(machine.handle(Event::Request(request)));
        actions = acknowledge(&mut machine, actions);
    }
    machine
}

fn with_listener(name: &str, version: u8) -> Config {
    let mut config = Config {
        clusters: [("c0".into(), 1)].into(),
        endpoints: [("c0".into(), 1)].into(),
        ..Config::default()
    };
    config.listeners.insert(name.into(), version);
    config.routes.insert("r0".into(), ["c0".into()].into());
    config
}

/// Acknowledges every response among `actions`; returns what follows.
fn acknowledge(machine: &mut Machine, actions: Vec<Action>) -> Vec<Action> {
    let mut after = Vec::new();
    for action in actions {
        if let Action::Send { kind, response, .. } = action {
            after.extend(machine.handle(Event::Request(DeltaDiscoveryRequest {
                response_nonce: response.nonce,
                ..Envoy::request(kind)
            })));
        }
    }
    after
}

#[test]
fn a_listener_that_takes_the_place_of_another_comes_with_its_removal() {
    let mut machine = settled_machine();
    let actions = machine.handle(Event::Snapshot(snapshot(&with_listener("l1", 1), 2)));
    let [
        Action::Send {
            kind: XdsType::Listener,
            response,
            ..
        },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}")
    };
    assert_eq!(response.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["l1"]);
    assert_eq!(response.removed_resources, ["l0"]);
}

#[test]
fn clusters_stay_while_a_refused_route_keeps_its_older_form() {
    let mut machine = settled_machine();
    let mut config = with_listener("l0", 1);
    (config.clusters, config.endpoints) = ([("c1".into(), 1)].into(), [("c1".into(), 1)].into());
    config.routes.insert("r0".into(), ["c1".into()].into());
    let mut actions = machine.handle(Event::Snapshot(snapshot(&config, 2)));
    let mut subscribe = Envoy::request(XdsType::Endpoint);
    subscribe.resource_names_subscribe = vec!["c1".into()];
    actions.extend(machine.handle(Event::Request(subscribe)));
    let actions = acknowledge(&mut machine, actions);
    let [
        ..,
        Action::Send {
            kind: XdsType::Route,
            response,
            ..
        },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}")
    };
    let refusal = DeltaDiscoveryRequest {
        response_nonce: response.nonce.clone(),
        error_detail: Some(ErrorDetail {
            code: 13,
            message: "bad".into(),
        }),
        ..Envoy::request(XdsType::Route)
    };
    let actions = machine.handle(Event::Request(refusal));
    assert!(
        !actions.iter().any(|a| matches!(a, Action::Send { .. })),
        "c0 is taken from under the older route: {actions:?}"
    );
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Report(Report::Settled { refused: true, .. }))),
        "{actions:?}"
    );
    // Once the refused content is gone, nothing is refused any more, and the old cluster goes.
    config.routes.insert("r0".into(), BTreeSet::new());
    let actions = machine.handle(Event::Snapshot(snapshot(&config, 3)));
    let actions = acknowledge(&mut machine, actions);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Send { kind: XdsType::Cluster, response, .. } if response.removed_resources == ["c0"])),
        "{actions:?}"
    );
    let actions = acknowledge(&mut machine, actions);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Report(Report::Settled { refused: false, .. }))),
        "{actions:?}"
    );
}
