//! Both ends of a stream over a link that keeps order and may break, driven by any script of changes, answers, refusals, slow and
//! failing stores, reconnects. Whatever the script, both ends agree in the end, and on the way nothing is claimed that is not so.
//! In: scripts from proptest. Invariants checked at every step are named in `Link`. Real machines, real mapping, real `State`.
#[path = "../src/testing.rs"]
mod testing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use serde_json::{Value, json};
use testing::{Memory, each, key, labels_of};
use ursa_model::{
    Kind, Labels, ResourceKey, Timestamp,
    kind::ALL,
    labels::{DISPLAY_NAME, ORIGIN, Site as Made, ZONE},
    wire,
};
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ursa_state::{GlobalRevision, HistoryId, OpResult, Role, observed::Observation};
use ursa_sync::{
    PROGRESS_TYPE_URL,
    distribution::{Distribution, Distributor},
    mapping::{Class, Recipient},
    peer::{Features, Identity, Line},
    receiver::{self, Batch, Receiver, Site},
    sender::{self, MAX_ROUNDS, Sender},
};

const SOURCE_HISTORY: u128 = 0xa;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Down,
    Up,
}

/// One step of a script.
#[derive(Clone, Debug)]
enum Step {
    /// Writes a slot of the source with one of a few contents; 3 is one that the receiver must refuse.
    Put(usize, u8),
    Delete(usize),
    /// Switches another zone off or on.
    Switch(bool),
    /// A resource of the receiver's own.
    Local(u8),
    /// The sender hears of the newest content.
    Feed,
    /// Messages to the receiver, to the sender.
    Down(usize),
    Up(usize),
    /// The batch in the store is there.
    Stored,
    /// It is not.
    Failed,
    Retry,
    /// The link breaks; what was being stored is stored, or lost.
    Break {
        stored: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..SLOTS, 0..4_u8).prop_map(|(slot, variant)| Step::Put(slot, variant)),
        3 => (0..SLOTS).prop_map(Step::Delete),
        1 => any::<bool>().prop_map(Step::Switch),
        1 => (0..3_u8).prop_map(Step::Local),
        5 => Just(Step::Feed),
        5 => (1..12_usize).prop_map(Step::Down),
        5 => (1..12_usize).prop_map(Step::Up),
        4 => Just(Step::Stored),
        1 => Just(Step::Failed),
        1 => Just(Step::Retry),
        1 => any::<bool>().prop_map(|stored| Step::Break { stored }),
    ]
}

const SLOTS: usize = 14;

/// Key, labels and contents of a slot. Variant 3 is refused by the receiver, where the kind allows such a thing.
fn slot(way: Way, slot: usize, variant: u8) -> (ResourceKey, Labels, Value) {
    let global = |kind, mesh, name: &str, spec| (key(kind, mesh, name), labels_of(&[(ORIGIN, "global"), (DISPLAY_NAME, name)]), spec);
    let of_zone = |zone: &str, kind, name: &str, spec| {
        let labels = labels_of(&[(ORIGIN, "zone"), (ZONE, zone), (DISPLAY_NAME, name)]);
        (key(kind, "default", name), labels, spec)
    };
    let address = if variant == 3 {
        json!({"address": "", "port": 0})
    } else {
        json!({"address": "127.0.0.1", "port": 100 + u32::from(variant)})
    };
    let data = ["YQ==", "Yg==", "Yw==", ""][usize::from(variant)];
    let secret = if variant == 3 { json!({}) } else { json!({ "data": data }) };
    let mesh = json!({"skipCreatingInitialPolicies": [format!("v{variant}")]});
    let rule = json!({"targetRef": {"kind": "Mesh"}, "rules": [{"default": {"allow": [{"spiffeID": {"type": "Exact", "value": format!("spiffe://d/v{variant}")}}]}}]});
    let pem = format!("-----BEGIN CERTIFICATE-----\n{variant}\n-----END CERTIFICATE-----");
    let trust = json!({"trustDomain": "west.local", "caBundles": [{"type": "Pem", "pem": {"value": pem}}]});
    let dataplane = json!({"networking": {"address": "127.0.0.1", "inbound": [{"port": 80 + u32::from(variant)}]}});
    match (way, slot) {
        (Way::Down, 0) => global(Kind::Mesh, "", "m0", mesh),
        (Way::Down, 1) => global(Kind::Mesh, "", "m1", mesh),
        (Way::Down, 2) => global(Kind::Secret, "default", "s0", secret),
        (Way::Down, 3) => global(Kind::Config, "", "kuma-cluster-id", json!({"config": format!("v{variant}")})),
        (Way::Down, 4) => global(Kind::GlobalSecret, "", "g0", secret),
        (Way::Down, 5) => global(Kind::MeshTrafficPermission, "default", "p0", rule),
        (Way::Down, 6) => global(Kind::MeshTrafficPermission, "default", "p1", rule),
        (Way::Down, 7) => of_zone("west", Kind::MeshZoneAddress, "a0", address),
        (Way::Down, 8) => of_zone("west", Kind::MeshZoneAddress, "a1", address),
        (Way::Down, 9) => of_zone("west", Kind::MeshTrust, "t0", trust),
        (Way::Down, 10) => of_zone("north", Kind::MeshTrust, "t1", trust),
        (Way::Down, 11) => of_zone("east", Kind::MeshZoneAddress, "own", address),
        (Way::Down, 12) => global(Kind::Config, "", "not-for-zones", json!({"config": format!("v{variant}")})),
        (Way::Down, _) => of_zone("north", Kind::MeshZoneAddress, "a2", address),
        (Way::Up, 0 | 1) => of_zone("east", Kind::Dataplane, ["d0", "d1"][slot], dataplane),
        (Way::Up, 2..=5) => of_zone("east", Kind::MeshZoneAddress, ["a0", "a1", "a2", "a3"][slot - 2], address),
        (Way::Up, 6) => of_zone("east", Kind::MeshTrust, "t0", trust),
        (Way::Up, 7 | 8) => of_zone("east", Kind::MeshTrafficPermission, ["p0", "p1"][slot - 7], rule),
        (Way::Up, 9) => global(Kind::MeshTrafficPermission, "default", "from-global", rule),
        (Way::Up, 10 | 11) => (
            key(Kind::DataplaneInsight, "default", ["d0", "d1"][slot - 10]),
            Labels::new(),
            json!({"metadata": {"v": variant}}),
        ),
        (Way::Up, _) => of_zone(
            "east",
            Kind::MeshService,
            ["s0", "s1"][slot % 2],
            json!({"ports": [{"port": 80 + u32::from(variant)}]}),
        ),
    }
}

/// What a peer should hold: labels and spec by key, and the keys whose content it must refuse.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    good: BTreeMap<ResourceKey, (Labels, Value)>,
    bad: BTreeSet<ResourceKey>,
}

struct Link {
    way: Way,
    progress: bool,
    source: Memory,
    target: Memory,
    distributor: Distributor,
    sender: Sender,
    receiver: Receiver,
    fed: Option<Distribution>,
    /// Content of each revision that the sender heard of.
    told: BTreeMap<u64, Content>,
    to_receiver: VecDeque<DeltaDiscoveryResponse>,
    to_sender: VecDeque<DeltaDiscoveryRequest>,
    storing: Option<Batch>,
    first: BTreeSet<String>,
    known: Option<GlobalRevision>,
    closed: bool,
    refusals: usize,
}

fn class(way: Way) -> Class {
    match way {
        Way::Down => Class::ToZones {
            hash_suffix: true,
            line: Line::V3,
        },
        Way::Up => Class::ToGlobal {
            zone: "east".parse().unwrap(),
        },
    }
}

fn recipient(way: Way) -> Recipient {
    match way {
        Way::Down => Recipient {
            zone: Some("east".into()),
            features: Features::OURS_IN_NODE,
        },
        Way::Up => Recipient::default(),
    }
}

fn machines(way: Way, progress: bool, known: Option<GlobalRevision>) -> (Sender, Receiver) {
    let kinds: Vec<Kind> = class(way).kinds().collect();
    let site = match way {
        Way::Down => Site::Zone,
        Way::Up => Site::Global {
            zone: "east".parse().unwrap(),
            prefix_names: false,
        },
    };
    let sender = sender::Config {
        identifier: "x".into(),
        recipient: recipient(way),
        kinds: kinds.iter().copied().collect(),
        announce_idle: way == Way::Down,
    };
    let receiver = receiver::Config {
        site,
        identity: Identity {
            zone: "east".into(),
            ..Identity::default()
        },
        kinds,
        progress,
        known,
    };
    (Sender::new(sender), Receiver::new(receiver))
}

impl Link {
    fn new(way: Way, progress: bool) -> Self {
        let (source_role, target_role) = match way {
            Way::Down => (Role::Global, Role::Zone),
            Way::Up => (Role::Zone, Role::Global),
        };
        let source = Memory::new(source_role, SOURCE_HISTORY);
        let target = Memory::new(target_role, 0xb);
        for zone in ["east", "west", "north"] {
            for memory in [&source, &target] {
                memory.put(Made::Global, Kind::Zone, "", zone, json!({"enabled": true}));
            }
        }
        let (sender, receiver) = machines(way, progress, None);
        let mut link = Self {
            way,
            progress,
            source,
            target,
            distributor: Distributor::new(class(way)),
            sender,
            receiver,
            fed: None,
            told: BTreeMap::new(),
            to_receiver: VecDeque::new(),
            to_sender: VecDeque::new(),
            storing: None,
            first: BTreeSet::new(),
            known: None,
            closed: false,
            refusals: 0,
        };
        link.receive(receiver::Event::Start);
        link
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Put(n, variant) => {
                let (key, labels, spec) = slot(self.way, n, variant);
                if key.kind() == Kind::DataplaneInsight {
                    self.source.observed.apply(
                        Timestamp(1),
                        [Observation::Put {
                            key,
                            labels,
                            spec,
                            owner: None,
                        }],
                    );
                } else {
                    self.source.put_with(key, labels, spec);
                }
            }
            Step::Delete(n) => {
                let (key, ..) = slot(self.way, n, 0);
                self.source.observed.apply(Timestamp(1), [Observation::Delete(key.clone())]);
                self.source.ops(vec![ursa_state::Op::delete(key)]);
            }
            Step::Switch(on) => self.source.put(Made::Global, Kind::Zone, "", "west", json!({"enabled": on})),
            Step::Local(n) => {
                let origin = if self.way == Way::Down { "zone" } else { "global" };
                let labels = labels_of(&[(ORIGIN, origin)]);
                self.target.put_with(
                    key(Kind::MeshTrafficPermission, "default", &format!("local-{n}")),
                    labels,
                    json!({"rules": []}),
                );
            }
            Step::Feed => self.feed(),
            Step::Down(n) => (0..n).for_each(|_| self.deliver_down()),
            Step::Up(n) => (0..n).for_each(|_| self.deliver_up()),
            Step::Stored => self.stored(),
            Step::Failed => {
                if self.storing.take().is_some() {
                    self.receive(receiver::Event::Failed("as the script says".into()));
                }
            }
            Step::Retry => self.send(sender::Event::Retry),
            Step::Break { stored } => self.reconnect(stored),
        }
        if self.closed {
            self.reconnect(true);
        }
    }

    fn reconnect(&mut self, stored: bool) {
        if stored {
            self.stored();
        }
        let before = self.held_by_target();
        self.storing = None;
        self.to_receiver.clear();
        self.to_sender.clear();
        self.first.clear();
        self.fed = None;
        self.closed = false;
        (self.sender, self.receiver) = machines(self.way, self.progress, self.known);
        self.receive(receiver::Event::Start);
        assert_eq!(before, self.held_by_target(), "the end of a stream deletes nothing");
    }

    fn feed(&mut self) {
        let content = self.distributor.update(self.source.catalog());
        // What was kept up to date step by step is what one would make from nothing.
        let fresh = Distributor::new(class(self.way)).update(self.source.catalog());
        for kind in class(self.way).kinds() {
            let facts = |d: &Distribution| {
                d.of_kind(kind)
                    .map(|(_, e)| (e.name.clone(), e.version.clone(), e.source.clone(), e.needs))
                    .collect::<Vec<_>>()
            };
            assert_eq!(facts(&content), facts(&fresh), "{kind} is up to date");
        }
        let expected = self.expected(&content);
        self.told.insert(content.at().revision, expected);
        self.fed = Some(content.clone());
        self.send(sender::Event::Content(content));
    }

    fn send(&mut self, event: sender::Event) {
        for action in self.sender.handle(event) {
            match action {
                sender::Action::Send(message) => {
                    self.check_sent(&message);
                    self.to_receiver.push_back(message);
                }
                sender::Action::Report(sender::Report::Nacked { .. }) => self.refusals += 1,
                sender::Action::Report(_) => {}
            }
        }
        for kind in ALL {
            let bound = if self.progress { 2 * MAX_ROUNDS + 2 } else { 1 };
            assert!(
                self.sender.unanswered(*kind) <= bound,
                "{kind}: {} unanswered",
                self.sender.unanswered(*kind)
            );
        }
    }

    /// Nothing before there is content; the first response of a type is the complete set.
    fn check_sent(&mut self, message: &DeltaDiscoveryResponse) {
        let content = self.fed.as_ref().expect("nothing is sent before there is content");
        if message.type_url != PROGRESS_TYPE_URL && self.first.insert(message.type_url.clone()) {
            let kind: Kind = message.type_url.parse().unwrap();
            let recipient = recipient(self.way);
            let all: Vec<&str> = content
                .of_kind(kind)
                .filter(|(_, e)| recipient.sees(e))
                .map(|(_, e)| e.name.as_ref())
                .collect();
            let sent: Vec<&str> = message.resources.iter().map(|r| r.name.as_str()).collect();
            assert_eq!(sent, all, "the first response of {kind} is complete");
        }
    }

    fn deliver_down(&mut self) {
        if self.receiver.has_room()
            && let Some(message) = self.to_receiver.pop_front()
        {
            self.receive(receiver::Event::Response(message));
        }
    }

    fn deliver_up(&mut self) {
        if let Some(message) = self.to_sender.pop_front() {
            self.send(sender::Event::Request(message));
        }
    }

    fn receive(&mut self, event: receiver::Event) {
        for action in self.receiver.handle(event, &self.target.catalog()) {
            match action {
                receiver::Action::Send(message) => {
                    assert!(message.node.is_some(), "every request carries a node");
                    self.to_sender.push_back(message);
                }
                receiver::Action::Apply(batch) => assert!(self.storing.replace(*batch).is_none(), "one batch at a time"),
                receiver::Action::Report(_) => {}
                receiver::Action::Close(receiver::Close::Store(_)) => self.closed = true,
                receiver::Action::Close(close) => panic!("{close}"),
            }
        }
    }

    fn stored(&mut self) {
        let Some(batch) = self.storing.take() else { return };
        let mut refused = Vec::new();
        if !batch.ops.is_empty() || batch.global.is_some() {
            let ops = &batch.ops;
            let applied = self.target.change(each(ops.clone(), batch.global));
            for (op, result) in ops.iter().zip(&applied.results) {
                if let OpResult::Refused(why) = result {
                    refused.push((op.key().clone(), why.to_string()));
                }
            }
        }
        self.target.observed.apply(Timestamp(1), batch.observations.clone());
        assert_eq!(
            batch.peer.is_some(),
            self.progress,
            "with a peer that sends markers, a batch ends at a marker"
        );
        if let Some(at) = batch.peer {
            self.check_claim(at, &refused);
            self.known = Some(if self.way == Way::Down {
                at
            } else {
                GlobalRevision {
                    history: at.history,
                    revision: 0,
                }
            });
            if self.way == Way::Down {
                assert_eq!(self.target.view().global(), Some(at));
            }
        }
        self.receive(receiver::Event::Stored { refused });
    }

    /// A claimed revision is completely there: no more, no less.
    fn check_claim(&self, at: GlobalRevision, refused: &[(ResourceKey, String)]) {
        assert_eq!(at.history, HistoryId(SOURCE_HISTORY));
        let told = self
            .told
            .get(&at.revision)
            .unwrap_or_else(|| panic!("revision {} was never told", at.revision));
        let but = |key: &ResourceKey| told.bad.contains(key) || refused.iter().any(|(k, _)| k == key);
        let mut have = self.held_by_target();
        have.retain(|key, _| !but(key));
        let mut want = told.good.clone();
        want.retain(|key, _| !but(key));
        // The observed tier has no revisions: what it holds may be newer than the revision says.
        let durable = |all: &mut BTreeMap<ResourceKey, (Labels, Value)>| all.retain(|key, _| key.kind() != Kind::DataplaneInsight);
        durable(&mut have);
        durable(&mut want);
        assert_eq!(have, want, "revision {} is claimed", at.revision);
    }

    /// What the receiver should hold when it has taken up this content.
    fn expected(&self, content: &Distribution) -> Content {
        let mut out = Content::default();
        let recipient = recipient(self.way);
        for kind in class(self.way).kinds() {
            for (_, entry) in content.of_kind(kind).filter(|(_, e)| recipient.sees(e)) {
                match wire::decode(kind, wire::RESOURCE_TYPE_URL, &entry.bytes) {
                    Ok(incoming) => {
                        out.good.insert(incoming.key, (incoming.labels, incoming.spec));
                    }
                    Err(wire::Error::Invalid { key, .. }) => {
                        out.bad.insert(key);
                    }
                    Err(err) => panic!("{err}"),
                }
            }
        }
        out
    }

    /// What the target holds of the source.
    fn held_by_target(&self) -> BTreeMap<ResourceKey, (Labels, Value)> {
        let catalog = self.target.catalog();
        let mut out = BTreeMap::new();
        for kind in class(self.way).kinds() {
            for resource in catalog.list(kind) {
                let theirs = match self.way {
                    Way::Down => !kind.descriptor().flags.provided_by_zone() || resource.label(ORIGIN) != Some("zone"),
                    Way::Up => resource.label(ORIGIN) == Some("zone"),
                };
                if theirs {
                    out.insert(resource.key.clone(), (resource.labels.clone(), resource.spec.clone()));
                }
            }
        }
        out
    }

    /// Lets everything happen that is still to happen.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let sequence = self.fed.as_ref().map(Distribution::sequence);
            self.feed();
            while self.receiver.has_room() && !self.to_receiver.is_empty() {
                self.deliver_down();
            }
            while !self.to_sender.is_empty() {
                self.deliver_up();
            }
            self.stored();
            if self.closed {
                self.reconnect(true);
            }
            let quiet = self.to_receiver.is_empty() && self.to_sender.is_empty() && self.storing.is_none();
            if quiet && sequence == self.fed.as_ref().map(Distribution::sequence) {
                return;
            }
        }
        panic!("it does not settle");
    }
}

fn play(way: Way, progress: bool, script: &[Step]) {
    let mut link = Link::new(way, progress);
    let mut locals = BTreeSet::new();
    for step in script {
        if let Step::Local(n) = step {
            locals.insert(format!("local-{n}"));
        }
        link.step(step);
    }
    link.settle();
    // What is refused is tried again, and refused again, without disturbing the rest.
    link.step(&Step::Retry);
    link.settle();
    let want = link.expected(link.fed.as_ref().unwrap());
    let mut have = link.held_by_target();
    // Removals that a stock peer implied wait for an operator.
    let held: BTreeSet<ResourceKey> = link.receiver.held().values().flatten().cloned().collect();
    assert!(!progress || held.is_empty(), "a peer that is known is believed: {held:?}");
    have.retain(|key, _| want.good.contains_key(key) || !(want.bad.contains(key) || held.contains(key)));
    assert_eq!(have, want.good, "both ends agree");
    assert_eq!(
        want.bad.is_empty(),
        link.sender.refused().next().is_none(),
        "what is refused now is known to the sender"
    );
    for local in locals {
        assert!(
            link.target.get(Kind::MeshTrafficPermission, "default", &local).is_some(),
            "{local} is the receiver's own"
        );
    }
    if progress && way == Way::Down {
        assert_eq!(
            link.target.view().global(),
            Some(link.source.view().at_global()),
            "the newest revision is reached"
        );
    }
}

fn script() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_zone_of_ours_converges(script in script()) {
        play(Way::Down, true, &script);
    }

    #[test]
    fn a_stock_zone_converges(script in script()) {
        play(Way::Down, false, &script);
    }

    #[test]
    fn our_global_converges(script in script()) {
        play(Way::Up, true, &script);
    }

    #[test]
    fn a_stock_global_converges(script in script()) {
        play(Way::Up, false, &script);
    }
}
