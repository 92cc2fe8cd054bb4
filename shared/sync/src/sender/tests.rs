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
            chunk_bytes: CHUNK_BYTES,
            stock_bytes: STOCK_BYTES,
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

/// A zone of Kuma's: it announces no extension of ours.
fn stock(bench: &mut Bench, stock_bytes: usize) {
    let config = Config {
        recipient: Recipient {
            zone: Some("east".into()),
            features: Features::HASH_SUFFIX,
        },
        stock_bytes,
        ..bench.sender.config.clone()
    };
    bench.sender = Sender::new(config);
}

#[test]
fn a_first_set_that_a_stock_peer_cannot_take_is_reported_and_nothing_of_it_is_sent() {
    let mut bench = Bench::new();
    stock(&mut bench, 1000);
    for n in 0..20 {
        bench.mesh(&format!("mesh-{n}"));
    }
    assert_eq!(bench.ask("MeshTimeout").len() + bench.ask("Mesh").len(), 0);
    let content = bench.distributor.update(bench.memory.catalog());
    let actions = bench.sender.handle(Event::Content(content));
    let too_large: Vec<_> = actions
        .iter()
        .filter(|a| matches!(a, Action::Report(Report::TooLarge { kind: Kind::Mesh, bytes }) if *bytes > 1000))
        .collect();
    assert_eq!(too_large.len(), 1);
    assert_eq!(
        sent(actions).iter().map(|m| m.type_url.as_str()).collect::<Vec<_>>(),
        ["MeshTimeout"]
    );
    // It does not matter what changes, as long as it is too large; and it is said once.
    bench.memory.delete(Kind::Mesh, "", "mesh-0");
    let content = bench.distributor.update(bench.memory.catalog());
    assert!(
        bench
            .sender
            .handle(Event::Content(content))
            .iter()
            .all(|a| matches!(a, Action::Report(Report::SentUpTo(_))))
    );
    for n in 1..20 {
        bench.memory.delete(Kind::Mesh, "", &format!("mesh-{n}"));
    }
    let first = bench.content();
    assert_eq!(names(&first[0]), ["default."], "small enough: the complete set");
}

#[test]
fn changes_come_to_a_stock_peer_in_pieces_one_at_a_time() {
    let mut bench = Bench::new();
    stock(&mut bench, 1000);
    bench.ask("Mesh");
    let first = bench.content();
    assert!(bench.answer(&first[0], None).iter().all(|a| matches!(a, Action::Report(_))));
    for n in 0..20 {
        bench.mesh(&format!("mesh-{n:02}"));
    }
    let mut got = Vec::new();
    let mut piece = bench.content();
    while let Some(response) = piece.pop() {
        assert!(piece.is_empty(), "one in flight");
        assert!(response.resources.len() < 8);
        got.extend(names(&response).into_iter().map(str::to_owned));
        piece = sent(bench.answer(&response, None));
    }
    assert_eq!(got.len(), 20);
    assert!(got.is_sorted());
}

#[test]
fn a_large_first_set_comes_in_pieces_closed_by_one_marker() {
    let mut bench = Bench::new();
    bench.sender.config.chunk_bytes = 1000;
    for n in 0..20 {
        bench.mesh(&format!("mesh-{n:02}"));
    }
    bench.content();
    let before = bench.ask("Mesh");
    assert_eq!(before.len(), 1, "the peer has not asked for markers yet");
    let rest = bench.ask(PROGRESS_TYPE_URL);
    assert!(rest.len() > 3);
    assert_eq!(rest.last().unwrap().type_url, PROGRESS_TYPE_URL);
    let of_meshes = before.iter().chain(&rest).filter(|r| r.type_url == "Mesh");
    let all: Vec<&str> = of_meshes.flat_map(names).collect();
    assert_eq!(all.len(), 21);
    assert_eq!(rest.iter().filter(|r| r.type_url == PROGRESS_TYPE_URL).count(), 1);
}

/// Towards a global, which hears nothing of revisions without news for it: who waits for one of those must know all the same.
#[test]
fn what_is_not_for_the_peer_is_stored_when_all_before_it_is() {
    let mut bench = Bench::new();
    bench.sender.config.announce_idle = false;
    bench.content();
    bench.ask("Mesh");
    let first = bench.ask(PROGRESS_TYPE_URL).pop().unwrap();
    let filtered = |bench: &Bench, value: &str| {
        bench
            .memory
            .put(Site::Global, Kind::Config, "", "cp-catalog", json!({"config": value}));
        bench.memory.view().at_global()
    };
    let content = |bench: &mut Bench| {
        let content = bench.distributor.update(bench.memory.catalog());
        bench.sender.handle(Event::Content(content))
    };
    let stored = |actions: &[Action], at| actions.contains(&Action::Report(Report::StoredUpTo(at)));
    let idle = filtered(&bench, "1");
    let actions = content(&mut bench);
    assert!(
        sent(actions.clone()).is_empty() && !stored(&actions, idle),
        "the first marker is unanswered"
    );
    let actions = bench.answer(&first, None);
    assert!(stored(&actions, idle), "nothing lies between: {actions:?}");
    let idle = filtered(&bench, "2");
    let actions = content(&mut bench);
    assert!(stored(&actions, idle), "{actions:?}");
    assert!(content(&mut bench).is_empty(), "once");

    bench.mesh("a");
    let marker = bench.content().pop().unwrap();
    let idle = filtered(&bench, "3");
    content(&mut bench);
    let refused = bench.answer(&marker, Some("not stored"));
    assert!(!stored(&refused, idle), "{refused:?}");
    let idle = filtered(&bench, "4");
    let actions = content(&mut bench);
    assert!(!stored(&actions, idle), "the peer may lack the mesh: {actions:?}");
}

/// Stored by an earlier version of the program, with rules that have become stricter since: no receiver of this version takes it.
#[test]
fn what_a_peer_refuses_does_not_keep_it_from_going_on_where_it_was() {
    use crate::digest::Stored;
    let mut bench = Bench::new();
    bench.mesh("good");
    let labels = ursa_model::labels::computed(Site::Global, Kind::MeshTimeout, "default", "old", Default::default(), None);
    let old = crate::testing::key(Kind::MeshTimeout, "default", "old");
    bench.memory.put_with(old, labels, json!({"to": "nonsense"}));
    let shown = bench.distributor.update(bench.memory.catalog());
    let kinds = [Kind::Mesh, Kind::MeshTimeout];
    let recipient = bench.sender.recipient().clone();
    assert_eq!(shown.sum(Kind::MeshTimeout, &recipient), None);
    let (mut taken, mut as_it_stands) = (0_u128, 0_u128);
    for (_, entry) in kinds.iter().flat_map(|kind| shown.of_kind(*kind)) {
        match entry.hash {
            Stored::Taken(hash) => taken = taken.wrapping_add(hash),
            Stored::Refused(hash) => as_it_stands = hash,
        }
    }
    assert!(taken != 0 && as_it_stands != 0);
    assert!(shown.held_by(&kinds, &recipient, as_it_stands).is_none(), "it lacks something else");
    assert!(shown.held_by(&kinds, &recipient, 0).is_none());
    // Without it, and with it from before.
    for sum in [taken, taken.wrapping_add(as_it_stands)] {
        let held = shown.held_by(&kinds, &recipient, sum).unwrap();
        let mut sender = Sender::new(bench.sender.config.clone());
        sender.resume(held);
        sender.handle(Event::Content(shown.clone()));
        let mut messages = Vec::new();
        for type_url in ["Mesh", "MeshTimeout", PROGRESS_TYPE_URL] {
            let request = DeltaDiscoveryRequest {
                type_url: type_url.into(),
                resource_names_subscribe: vec!["*".into()],
                ..Default::default()
            };
            messages.extend(sent(sender.handle(Event::Request(request))));
        }
        assert_eq!(messages.first().map(|m| m.type_url.as_str()), Some(crate::RESUMED_TYPE_URL));
        let again: Vec<&str> = messages
            .iter()
            .filter(|m| m.type_url != PROGRESS_TYPE_URL)
            .flat_map(names)
            .collect();
        assert_eq!(again.len(), 1, "only what may be missing: {again:?}");
        assert!(messages.iter().any(|m| m.type_url == "MeshTimeout" && !m.resources.is_empty()));
    }
}
