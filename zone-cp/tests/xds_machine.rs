//! The delta ADS machine against a model of Envoy: any script of snapshots, slow answers, refusals and reconnects ends with the
//! client holding everything that it can accept, whatever bad came with it; nothing names what is not there; content that was
//! refused alone is not sent again.

#![allow(clippy::unwrap_used)]

mod xds_support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ursa_proto::discovery::{DeltaDiscoveryRequest, ErrorDetail};
use ursa_zone_cp::{
    snapshot::XdsType,
    xds::machine::{Action, Event, Machine, Report},
};
use xds_support::{BAD, Config, Envoy, KINDS, Link, Refusal, is_bad, snapshot};

#[derive(Clone, Debug)]
enum Step {
    Snapshot(Config),
    Envoy,
    Machine,
    Reconnect,
    /// Somebody else takes the sockets of these listeners, and leaves all others.
    Busy(BTreeSet<String>),
    /// The time for another try is over.
    Retry,
}

fn arb_config(worst: u8) -> impl Strategy<Value = Config> {
    let cluster = (0..6u8).prop_map(|i| format!("c{i}"));
    let named = prop::collection::vec(any::<prop::sample::Index>(), 0..3);
    (
        prop::collection::btree_map(cluster, 1..=worst, 0..6),
        prop::collection::vec(1..=worst, 6),
        prop::collection::vec((0..4u8, named, 1..=worst, 1..=worst), 0..5),
    )
        .prop_map(|(clusters, endpoint_versions, listeners)| {
            let names: Vec<String> = clusters.keys().cloned().collect();
            let endpoints = names.iter().zip(endpoint_versions).map(|(n, v)| (n.clone(), v)).collect();
            let mut config = Config {
                clusters,
                endpoints,
                ..Config::default()
            };
            for (i, picks, listener, route) in listeners {
                let named = picks
                    .iter()
                    .filter(|_| !names.is_empty())
                    .map(|p| names[p.index(names.len())].clone())
                    .collect();
                config.routes.insert(format!("r{i}"), (named, route));
                config.listeners.insert(format!("l{i}"), listener);
            }
            config
        })
}

fn arb_script(worst: u8) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![2 => arb_config(worst).prop_map(Step::Snapshot), 5 => Just(Step::Envoy), 5 => Just(Step::Machine), 1 => Just(Step::Reconnect),
            1 => prop::collection::btree_set((0..4u8).prop_map(|i| format!("l{i}")), 0..3).prop_map(Step::Busy), 1 => Just(Step::Retry)],
        1..60,
    )
}

fn arb_refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![Just(Refusal::Whole), Just(Refusal::Named), Just(Refusal::Lying)]
}

fn play(refusal: Refusal, script: Vec<Step>) -> Result<(), TestCaseError> {
    let mut link = Link {
        machine: Machine::new(),
        envoy: Envoy {
            refusal,
            ..Envoy::default()
        },
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
                link.envoy.connect();
                link.feed(Event::Snapshot(snapshot(&newest, revision)))?;
            }
            Step::Busy(names) => link.envoy.busy = names,
            Step::Retry => link.feed(Event::Retry)?,
        }
    }
    link.drain()?;
    // Everybody leaves; one more try must do.
    link.envoy.busy.clear();
    link.feed(Event::Retry)?;
    link.drain()?;
    prop_assert!(!link.machine.wants_retry());
    prop_assert_eq!(link.settled, Some(revision), "not settled");
    let want = snapshot(&newest, revision);
    let text = |kind: XdsType, name: &str| String::from_utf8(want.of(kind)[name].bytes.to_vec()).unwrap();
    // What a refused listener or route names in its older form stays.
    let older = [XdsType::Listener, XdsType::Route]
        .into_iter()
        .any(|kind| want.of(kind).keys().any(|name| is_bad(&text(kind, name))));
    for kind in KINDS {
        let held = link.envoy.held.get(&kind).cloned().unwrap_or_default();
        for name in want.of(kind).keys() {
            let version = text(kind, name);
            // Asked for are the endpoints of clusters held, and the routes of listeners held.
            let asked = kind.is_wildcard() || link.envoy.asked.get(&kind).is_some_and(|a| a.contains(name));
            prop_assert!(
                held.get(name) == Some(&version) || is_bad(&version) || !asked,
                "{:?} {} is {:?}, not {}",
                kind,
                name,
                held.get(name),
                version
            );
        }
        for name in held.keys() {
            let kept = older && matches!(kind, XdsType::Cluster | XdsType::Endpoint);
            prop_assert!(kept || want.of(kind).contains_key(name), "{:?} {} was left behind", kind, name);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_stream_converges(script in arb_script(2)) {
        play(Refusal::Whole, script)?;
    }

    #[test]
    fn refused_content_keeps_nothing_else_away_and_is_not_sent_again(refusal in arb_refusal(), script in arb_script(BAD)) {
        play(refusal, script)?;
    }
}

/// What `machine` sends to a client that refuses every response with a bad resource in it as a whole, in order.
fn dialogue(machine: &mut Machine, mut actions: Vec<Action>, bad: &[&str]) -> Vec<Vec<String>> {
    let mut sent = Vec::new();
    while let Some(at) = actions.iter().position(|a| matches!(a, Action::Send { .. })) {
        let Action::Send { kind, response, .. } = actions.remove(at) else {
            continue;
        };
        let names: Vec<String> = response.resources.into_iter().map(|r| r.name).collect();
        let refuses = names.iter().any(|n| bad.contains(&n.as_str()));
        actions.extend(machine.handle(Event::Request(DeltaDiscoveryRequest {
            response_nonce: response.nonce,
            error_detail: refuses.then(|| ErrorDetail {
                code: 13,
                message: "Proto constraint validation failed".into(),
            }),
            ..Envoy::request(kind)
        })));
        sent.push(names);
        assert!(sent.len() < 1_000, "endless");
    }
    sent
}

#[test]
fn a_bad_cluster_among_hundreds_is_found_in_a_few_steps() {
    let mut machine = Machine::new();
    let clusters: BTreeMap<String, u8> = (0..500).map(|i| (format!("c{i:03}"), 1)).collect();
    let config = Config {
        clusters,
        ..Config::default()
    };
    machine.handle(Event::Snapshot(snapshot(&config, 1)));
    let first = machine.handle(Event::Request(Envoy::request(XdsType::Cluster)));
    let sent = dialogue(&mut machine, first, &["c123"]);
    // Once as a whole, then two halves of what remains each time.
    assert!(sent.len() <= 1 + 2 * 9, "{} responses", sent.len());
    for name in config.clusters.keys().filter(|n| *n != "c123") {
        let (last, _) = sent.iter().enumerate().rfind(|(_, names)| names.contains(name)).unwrap();
        assert!(!sent[last].contains(&"c123".to_owned()), "{name} came only in refused company");
    }
    // The same content again: silence. Another content of it: sent.
    assert!(
        machine
            .handle(Event::Snapshot(snapshot(&config, 2)))
            .iter()
            .all(|a| !matches!(a, Action::Send { .. }))
    );
    let mut mended = config;
    mended.clusters.insert("c123".into(), 2);
    let actions = machine.handle(Event::Snapshot(snapshot(&mended, 3)));
    assert_eq!(dialogue(&mut machine, actions, &[]), [["c123"]]);
}

#[test]
fn what_changes_meanwhile_does_not_wait_for_the_search() {
    let mut machine = Machine::new();
    let mut config = Config {
        clusters: (0..16).map(|i| (format!("c{i:02}"), 1)).collect(),
        ..Config::default()
    };
    machine.handle(Event::Snapshot(snapshot(&config, 1)));
    let actions = machine.handle(Event::Request(Envoy::request(XdsType::Cluster)));
    let Some(Action::Send { response, .. }) = actions.into_iter().find(|a| matches!(a, Action::Send { .. })) else {
        panic!("nothing sent")
    };
    let actions = machine.handle(Event::Request(DeltaDiscoveryRequest {
        response_nonce: response.nonce,
        error_detail: Some(ErrorDetail::default()),
        ..Envoy::request(XdsType::Cluster)
    }));
    // While the first half is under way, c15 (of the second) changes, and a cluster is new.
    config.clusters.insert("c15".into(), 2);
    config.clusters.insert("new".into(), 1);
    assert!(machine.handle(Event::Snapshot(snapshot(&config, 2))).is_empty());
    let sent = dialogue(&mut machine, actions, &["c03"]);
    assert_eq!(sent[1], ["c15", "new"], "{sent:?}");
    assert!(
        sent.iter()
            .any(|names| names.contains(&"c14".to_owned()) && !names.contains(&"c15".to_owned())),
        "{sent:?}"
    );
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
    config.routes.insert("r0".into(), (["c0".into()].into(), 1));
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

/// The client's refusal of a response.
fn refuse(machine: &mut Machine, actions: &[Action], message: &str) -> Vec<Action> {
    let [Action::Send { kind, response, .. }] = actions else {
        panic!("{actions:?}")
    };
    machine.handle(Event::Request(DeltaDiscoveryRequest {
        response_nonce: response.nonce.clone(),
        error_detail: Some(ErrorDetail {
            code: 13,
            message: message.into(),
        }),
        ..Envoy::request(*kind)
    }))
}

fn sends(actions: &[Action]) -> Vec<(XdsType, Vec<&str>)> {
    let sent = actions.iter().filter_map(|action| match action {
        Action::Send { kind, response, .. } => Some((*kind, response.resources.iter().map(|r| r.name.as_str()).collect())),
        _ => None,
    });
    sent.collect()
}

#[test]
fn a_listener_without_a_socket_is_tried_again_and_one_that_is_bad_is_not() {
    let busy = "Error adding/updating listener(s) l1: cannot bind '127.0.0.1:80': Address already in use";
    for (message, again) in [(busy, true), ("Error adding/updating listener(s) l1: no filter chain", false)] {
        let mut machine = settled_machine();
        let mut config = with_listener("l0", 1);
        config.listeners.insert("l1".into(), 1);
        config.routes.insert("r1".into(), (["c0".into()].into(), 1));
        let actions = machine.handle(Event::Snapshot(snapshot(&config, 2)));
        assert_eq!(sends(&actions), [(XdsType::Listener, vec!["l1"])]);
        assert!(sends(&refuse(&mut machine, &actions, message)).is_empty(), "not at once");
        assert!(machine.refuses() && !machine.runs_all());
        assert_eq!(machine.wants_retry(), again);
        // The same once more, and a change of something else.
        config.clusters.insert("c0".into(), 2);
        let actions = machine.handle(Event::Snapshot(snapshot(&config, 3)));
        assert!(!sends(&actions).iter().any(|(kind, _)| *kind == XdsType::Listener), "{actions:?}");
        let actions = acknowledge(&mut machine, actions);
        acknowledge(&mut machine, actions);
        let actions = machine.handle(Event::Retry);
        let wanted: &[(XdsType, Vec<&str>)] = if again { &[(XdsType::Listener, vec!["l1"])] } else { &[] };
        assert_eq!(sends(&actions), wanted, "{message}");
        if !again {
            continue;
        }
        assert!(!machine.wants_retry() && !machine.refuses(), "it is under way");
        refuse(&mut machine, &actions, message);
        assert!(machine.wants_retry() && machine.refuses());
        // Another listener goes: it may have been the one that had the socket.
        config.listeners.remove("l0");
        let actions = machine.handle(Event::Snapshot(snapshot(&config, 4)));
        let tried = sends(&actions).contains(&(XdsType::Listener, vec!["l1"]));
        let later = acknowledge(&mut machine, actions);
        assert!(tried || sends(&later).contains(&(XdsType::Listener, vec!["l1"])), "{later:?}");
        acknowledge(&mut machine, later);
        assert!(!machine.wants_retry());
    }
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
    config.routes.insert("r0".into(), (["c1".into()].into(), 1));
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
    config.routes.insert("r0".into(), (BTreeSet::new(), 1));
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
