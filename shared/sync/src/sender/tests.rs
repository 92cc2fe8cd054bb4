use super::*;
use crate::{
    distribution::Distributor,
    mapping::Class,
    peer::{Features, Line},
    testing::Memory,
};
use serde_json::json;
use ursa_model::labels::Site;
use ursa_state::Role;

const CLASS: Class = Class::ToZones {
    hash_suffix: true,
    line: Line::V3,
};

struct Bench {
    memory: Memory,
    distributor: Distributor,
    sender: Sender,
}

impl Bench {
    fn new() -> Self {
        let memory = Memory::new(Role::Global, 7);
        memory.put(Site::Global, Kind::Mesh, "", "default", json!({}));
        let config = Config {
            identifier: "global".into(),
            recipient: Recipient {
                zone: Some("east".into()),
                features: Features::OURS_IN_NODE,
            },
            kinds: CLASS.kinds().collect(),
            announce_idle: true,
        };
        Self {
            memory,
            distributor: Distributor::new(CLASS),
            sender: Sender::new(config),
        }
    }

    fn mesh(&self, name: &str) {
        self.memory
            .put(Site::Global, Kind::Mesh, "", name, json!({"skipCreatingInitialPolicies": [name]}));
    }

    fn content(&mut self) -> Vec<DeltaDiscoveryResponse> {
        let content = self.distributor.update(self.memory.catalog());
        sent(self.sender.handle(Event::Content(content)))
    }

    fn ask(&mut self, type_url: &str) -> Vec<DeltaDiscoveryResponse> {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: vec!["*".into()],
            ..Default::default()
        };
        sent(self.sender.handle(Event::Request(request)))
    }

    fn answer(&mut self, response: &DeltaDiscoveryResponse, error: Option<&str>) -> Vec<Action> {
        self.sender.handle(Event::Request(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|e| ursa_proto::discovery::ErrorDetail {
                code: 0,
                message: e.into(),
            }),
            ..Default::default()
        }))
    }
}

fn sent(actions: Vec<Action>) -> Vec<DeltaDiscoveryResponse> {
    actions
        .into_iter()
        .filter_map(|a| if let Action::Send(m) = a { Some(m) } else { None })
        .collect()
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

#[test]
fn nothing_is_said_before_there_is_content() {
    let mut bench = Bench::new();
    assert!(bench.ask("Mesh").is_empty() && bench.ask("MeshTimeout").is_empty());
    let first = bench.content();
    assert_eq!(first.len(), 2, "one first response per type, empty ones too");
    assert_eq!(names(&first[0]), ["default."]);
    assert!(first[1].resources.is_empty());
    assert!(
        first
            .iter()
            .all(|r| !r.nonce.is_empty() && r.control_plane.as_ref().unwrap().identifier == "global")
    );
    assert_eq!(
        first[0].system_version_info,
        crate::revision::format(bench.memory.view().at_global())
    );
    assert_eq!(first[0].resources[0].resource.as_ref().unwrap().type_url, wire::RESOURCE_TYPE_URL);
}

#[test]
fn types_that_are_not_ours_get_silence() {
    let mut bench = Bench::new();
    bench.content();
    let unknown = DeltaDiscoveryRequest {
        type_url: "TrafficRoute".into(),
        ..Default::default()
    };
    assert_eq!(
        bench.sender.handle(Event::Request(unknown.clone())),
        [Action::Report(Report::Unknown {
            type_url: "TrafficRoute".into()
        })]
    );
    assert!(bench.sender.handle(Event::Request(unknown)).is_empty());
    assert!(bench.ask("Dataplane").is_empty(), "a kind of the other direction");
    assert!(bench.ask("Zone").is_empty());
}

#[test]
fn a_stock_peer_has_one_unanswered_response_per_type_and_what_waits_is_coalesced() {
    let mut bench = Bench::new();
    bench.content();
    let first = bench.ask("Mesh").remove(0);
    for name in ["a", "b", "c"] {
        bench.mesh(name);
        assert!(bench.content().is_empty(), "it waits for the answer");
    }
    bench.memory.delete(Kind::Mesh, "", "b");
    bench.memory.delete(Kind::Mesh, "", "default");
    assert!(bench.content().is_empty());
    let next = sent(bench.answer(&first, None));
    assert_eq!(next.len(), 1);
    assert_eq!(names(&next[0]), ["a.", "c."], "b came and went meanwhile");
    assert_eq!(next[0].removed_resources, ["default."]);
    assert!(sent(bench.answer(&first, None)).is_empty(), "a stale nonce answers nothing");
    assert_eq!(bench.sender.unanswered(Kind::Mesh), 1);
    assert!(sent(bench.answer(&next[0], None)).is_empty());
}

#[test]
fn a_peer_with_progress_gets_rounds_that_end_in_a_marker() {
    let mut bench = Bench::new();
    bench.content();
    bench.ask("Mesh");
    bench.ask("MeshTimeout");
    let marker = bench.ask(PROGRESS_TYPE_URL);
    assert_eq!(marker.len(), 1, "{marker:?}");
    assert_eq!(marker[0].type_url, PROGRESS_TYPE_URL);
    bench.mesh("a");
    let round = bench.content();
    assert_eq!(
        round.iter().map(|r| r.type_url.as_str()).collect::<Vec<_>>(),
        ["Mesh", PROGRESS_TYPE_URL],
        "without waiting for an ACK"
    );
    let at = bench.memory.view().at_global();
    assert_eq!(round[1].system_version_info, crate::revision::format(at));
    // Filtered altogether: the marker comes all the same.
    bench
        .memory
        .put(Site::Global, Kind::Config, "", "cp-catalog", json!({"config": "x"}));
    let idle = bench.content();
    assert_eq!(idle.iter().map(|r| r.type_url.as_str()).collect::<Vec<_>>(), [PROGRESS_TYPE_URL]);
    assert!(bench.content().is_empty(), "once per revision");
    let stored = bench.answer(&round[1], None);
    assert!(stored.contains(&Action::Report(Report::StoredUpTo(at))));
}

#[test]
fn unanswered_rounds_are_bounded() {
    let mut bench = Bench::new();
    bench.content();
    bench.ask("Mesh");
    let mut markers = bench.ask(PROGRESS_TYPE_URL);
    let mut n = 0;
    while markers.len() < MAX_ROUNDS {
        n += 1;
        bench.mesh(&format!("m{n}"));
        markers.extend(bench.content().pop());
    }
    for name in ["x", "y"] {
        bench.mesh(name);
        assert!(bench.content().is_empty());
    }
    let round = sent(bench.answer(&markers[0], None));
    assert_eq!(round.len(), 2);
    assert_eq!(names(&round[0]), ["x.", "y."]);
}

#[test]
fn a_nack_that_names_its_resource_blames_it_alone() {
    let mut bench = Bench::new();
    bench.mesh("bad");
    bench.mesh("bad-too");
    bench.content();
    let first = bench.ask("Mesh").remove(0);
    let actions = bench.answer(&first, Some("user error: bad.: not to my taste"));
    assert_eq!(
        actions,
        [Action::Report(Report::Nacked {
            kind: Kind::Mesh,
            names: vec!["bad.".into()],
            text: "user error: bad.: not to my taste".into()
        })]
    );
    assert!(bench.sender.wants_retry());
    let again = sent(bench.sender.handle(Event::Retry));
    assert_eq!(again.len(), 1);
    assert_eq!(names(&again[0]), ["bad."]);
    bench.answer(&again[0], None);
    assert!(!bench.sender.wants_retry() && bench.sender.refused().next().is_none());
}

#[test]
fn without_names_the_halves_are_tried_until_the_culprit_is_alone() {
    let mut bench = Bench::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        bench.mesh(name);
    }
    bench.content();
    let mut waiting = bench.ask("Mesh");
    let mut blamed = Vec::new();
    let mut rounds = 0;
    while let Some(response) = waiting.pop() {
        rounds += 1;
        assert!(rounds < 20, "it must end");
        let bad = names(&response).contains(&"d.");
        let actions = bench.answer(&response, bad.then_some("something is wrong"));
        for action in &actions {
            if let Action::Report(Report::Nacked { names, .. }) = action {
                blamed.extend(names.clone());
            }
        }
        waiting.extend(sent(actions));
    }
    assert_eq!(blamed, ["d."]);
    assert_eq!(
        bench.sender.refused().map(|(_, name, _)| name.to_owned()).collect::<Vec<_>>(),
        ["d."]
    );
    // New content makes it good.
    bench.memory.put(Site::Global, Kind::Mesh, "", "d", json!({}));
    let fixed = bench.content();
    assert_eq!(names(&fixed[0]), ["d."]);
    assert!(bench.sender.refused().next().is_none());
}

#[test]
fn names_are_matched_whole() {
    assert!(mentions("user error: a.default: no", "a.default"));
    assert!(mentions("\"a.default\"", "a.default"));
    assert!(!mentions("user error: aa.default: no", "a.default"));
    assert!(!mentions("user error: a.default-2: no", "a.default"));
    assert!(mentions("ba. and a.", "a."));
}
