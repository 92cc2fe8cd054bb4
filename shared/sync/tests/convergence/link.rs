//! A sender, a receiver, and what is between them.

use super::*;

/// What a peer should hold: labels and spec by key, and the keys whose content it must refuse.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    pub good: BTreeMap<ResourceKey, (Labels, Value)>,
    pub bad: BTreeSet<ResourceKey>,
}

pub struct Link {
    pub way: Way,
    pub progress: bool,
    pub source: Memory,
    pub target: Memory,
    pub distributor: Distributor,
    pub sender: Sender,
    pub receiver: Receiver,
    pub fed: Option<Distribution>,
    /// Content of each revision that the sender heard of.
    pub told: BTreeMap<u64, Content>,
    pub to_receiver: VecDeque<DeltaDiscoveryResponse>,
    pub to_sender: VecDeque<DeltaDiscoveryRequest>,
    pub storing: Option<Batch>,
    pub first: BTreeSet<String>,
    pub known: Option<GlobalRevision>,
    pub closed: bool,
    pub refusals: usize,
    /// Somebody meddled with the target: sums may differ.
    pub corrupted: bool,
    /// The first responses on this stream are changes.
    pub resumed: bool,
}

pub fn class(way: Way) -> Class {
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

/// Without markers it is a peer of Kuma's.
pub fn recipient(way: Way, progress: bool) -> Recipient {
    let stock = Features::HASH_SUFFIX
        .with(Features::HG_MZ_SELECTOR)
        .with(Features::PRODUCER_POLICY_FLOW);
    match way {
        Way::Down => Recipient {
            zone: Some("east".into()),
            features: if progress { Features::OURS_IN_NODE } else { stock },
        },
        Way::Up => Recipient::default(),
    }
}

pub fn machines(way: Way, progress: bool, known: Option<GlobalRevision>) -> (Sender, Receiver) {
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
        recipient: recipient(way, progress),
        kinds: kinds.iter().copied().collect(),
        announce_idle: way == Way::Down,
        // So small that a set of a few is cut.
        chunk_bytes: 700,
        stock_bytes: STOCK_BYTES,
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
    pub fn new(way: Way, progress: bool) -> Self {
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
            corrupted: false,
            resumed: false,
        };
        link.receive(receiver::Event::Start);
        link
    }

    pub fn step(&mut self, step: &Step) {
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
            Step::Grace => {
                let held = self.receiver.held().values().flat_map(|held| held.keys.iter().cloned()).collect();
                self.receive(receiver::Event::GraceOver(held));
            }
            Step::Heartbeat => self.send(sender::Event::Heartbeat),
            Step::Corrupt(n, gone) => self.corrupt(n, gone),
            Step::Break { stored } => self.reconnect(stored),
        }
        if self.closed {
            self.reconnect(true);
        }
    }

    /// With a stock peer nobody would notice.
    pub fn corrupt(&mut self, n: usize, gone: bool) {
        let held = self.held_by_target();
        let covered: Vec<_> = held.into_iter().filter(|(key, _)| is_covered(key.kind())).collect();
        if !self.progress || covered.is_empty() {
            return;
        }
        let (key, (mut labels, spec)) = covered[n % covered.len()].clone();
        self.corrupted = true;
        if gone {
            self.target.ops(vec![ursa_state::Op::delete(key)]);
        } else {
            labels.insert("corrupt".into(), "yes".into());
            self.target.put_with(key, labels, spec);
        }
    }

    pub fn reconnect(&mut self, stored: bool) {
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
        self.resumed = false;
        (self.sender, self.receiver) = machines(self.way, self.progress, self.known);
        self.try_to_resume();
        self.receive(receiver::Event::Start);
        assert_eq!(before, self.held_by_target(), "the end of a stream deletes nothing");
    }

    /// As the global does with what a zone says of itself.
    pub fn try_to_resume(&mut self) {
        let (Way::Down, true, Some(at)) = (self.way, self.progress, self.target.view().global()) else {
            return;
        };
        let mut tally = Tally::new(Site::Zone);
        tally.update(&self.target.catalog());
        let claimed = tally.total(class(self.way).kinds());
        // A node that knows nothing yet but the newest picture.
        let mut distributor = Distributor::new(class(self.way));
        distributor.update(self.source.catalog());
        let Some(shown) = distributor.at(at, 1000) else { return };
        let recipient = recipient(self.way, self.progress);
        let class = class(self.way);
        let mut sums = class.kinds().filter(|k| is_covered(*k)).map(|k| shown.sum(k, &recipient));
        let sum = sums.try_fold(0_u128, |total, sum| Some(total.wrapping_add(sum?)));
        if sum == Some(claimed) {
            let have = self.held_by_target();
            let expected = self.expected(&shown);
            assert_eq!(have, expected.good, "equal sums are equal content");
            self.sender.resume(shown);
            self.resumed = true;
        }
    }

    pub fn feed(&mut self) {
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

    pub fn send(&mut self, event: sender::Event) {
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
            // A round has at most a response per slot.
            let bound = if self.progress { SLOTS * (2 * MAX_ROUNDS + 2) } else { 1 };
            assert!(
                self.sender.unanswered(*kind) <= bound,
                "{kind}: {} unanswered",
                self.sender.unanswered(*kind)
            );
        }
    }

    /// Nothing before there is content; the first response of a type is the complete set, or the first piece of it.
    pub fn check_sent(&mut self, message: &DeltaDiscoveryResponse) {
        let content = self.fed.as_ref().expect("nothing is sent before there is content");
        let Ok(kind) = message.type_url.parse::<Kind>() else { return };
        if self.first.insert(message.type_url.clone()) && !self.resumed {
            let recipient = recipient(self.way, self.progress);
            let all: Vec<&str> = content
                .of_kind(kind)
                .filter(|(_, e)| recipient.sees(e))
                .map(|(_, e)| e.name.as_ref())
                .collect();
            let sent: Vec<&str> = message.resources.iter().map(|r| r.name.as_str()).collect();
            let whole = if self.progress { all.starts_with(&sent) } else { sent == all };
            assert!(whole, "the first response of {kind} is complete: {sent:?} of {all:?}");
        }
    }

    pub fn deliver_down(&mut self) {
        if self.receiver.has_room()
            && let Some(message) = self.to_receiver.pop_front()
        {
            self.receive(receiver::Event::Response(message));
        }
    }

    pub fn deliver_up(&mut self) {
        if let Some(message) = self.to_sender.pop_front() {
            self.send(sender::Event::Request(message));
        }
    }

    pub fn receive(&mut self, event: receiver::Event) {
        for action in self.receiver.handle(event, &self.target.catalog()) {
            match action {
                receiver::Action::Send(mut message) => {
                    assert!(message.node.is_some(), "every request carries a node");
                    if !self.progress {
                        message.node = Some(Identity::default().bare_node());
                    }
                    self.to_sender.push_back(message);
                }
                receiver::Action::Apply(batch) => assert!(self.storing.replace(*batch).is_none(), "one batch at a time"),
                receiver::Action::Report(report) => {
                    assert!(
                        self.corrupted || !matches!(report, receiver::Report::Differs { .. }),
                        "{report:?}: nothing differs unless somebody meddles"
                    );
                }
                receiver::Action::Close(receiver::Close::Store(_)) => self.closed = true,
                receiver::Action::Close(close) => panic!("{close}"),
            }
        }
    }

    pub fn stored(&mut self) {
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
        assert!(
            batch.peer.is_some() == self.progress,
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
    pub fn check_claim(&self, at: GlobalRevision, refused: &[(ResourceKey, String)]) {
        if self.corrupted {
            return;
        }
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
    pub fn expected(&self, content: &Distribution) -> Content {
        let mut out = Content::default();
        let recipient = recipient(self.way, self.progress);
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
    pub fn held_by_target(&self) -> BTreeMap<ResourceKey, (Labels, Value)> {
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
    pub fn settle(&mut self) {
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
