use std::collections::{BTreeMap, BTreeSet, VecDeque};

use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// What a node believes to speak for.
#[derive(Clone, Default)]
struct Claims(Arc<Mutex<BTreeMap<String, u64>>>);

impl Authority for Claims {
    fn claimed(&self, zone: &str) -> Option<u64> {
        self.0.lock().get(zone).copied()
    }
}

impl Claims {
    fn claim(&self, zone: &str, epoch: u64) {
        self.0.lock().insert(zone.to_owned(), epoch);
    }

    fn release(&self, zone: &str) {
        self.0.lock().remove(zone);
    }
}

fn zone_key(zone: &str) -> ResourceKey {
    ResourceKey::new(Kind::Zone, "", zone).unwrap()
}

fn put(zone: &str, name: &str, value: u32) -> Observation {
    Observation::Put {
        key: ResourceKey::new(Kind::Dataplane, "default", &format!("{zone}-{name}")).unwrap(),
        labels: Labels::new(),
        spec: json!({ "value": value }),
        owner: Some(zone_key(zone)),
    }
}

fn insight(zone: &str, spec: serde_json::Value) -> Observation {
    Observation::Put {
        key: ResourceKey::new(Kind::ZoneInsight, "", zone).unwrap(),
        labels: Labels::new(),
        spec,
        owner: Some(zone_key(zone)),
    }
}

fn delete(zone: &str, name: &str) -> Observation {
    Observation::Delete(ResourceKey::new(Kind::Dataplane, "default", &format!("{zone}-{name}")).unwrap())
}

fn node(id: u64) -> (Observed, Claims) {
    let claims = Claims::default();
    (Observed::of_node(id, Arc::new(claims.clone())), claims)
}

/// What must be the same everywhere.
type Content = BTreeMap<ResourceKey, (serde_json::Value, Timestamp, Timestamp, u64)>;

fn content(view: &ObservedView, zone: &str) -> Content {
    let entry = |r: &Arc<Resource>| (r.key.clone(), (r.spec.clone(), r.created, r.modified, r.version));
    view.of_zone(zone).map(entry).collect()
}

fn tell(from: (u64, &Observed), to: &Observed, follower: &mut Follower) -> Vec<Merged> {
    let updates = follower.updates(&from.1.view(), Timestamp(9));
    updates.into_iter().map(|update| to.merge(from.0, update)).collect()
}

#[test]
fn a_holder_sends_a_full_copy_and_then_what_changed() {
    let ((one, claims), (two, _)) = (node(1), node(2));
    claims.claim("east", 5);
    one.apply(Timestamp(1), [put("east", "a", 1), put("east", "b", 1)]);
    let mut follower = Follower::new(2);
    assert_eq!(tell((1, &one), &two, &mut follower), [Merged::Taken]);
    assert_eq!(two.view().copy_of("east").unwrap().holder, Holder::Node(1));

    one.apply(Timestamp(2), [put("east", "a", 2), put("east", "c", 1)]);
    one.apply(Timestamp(3), [delete("east", "b")]);
    let updates = follower.updates(&one.view(), Timestamp(9));
    let [Update::Delta { puts, deletes, .. }] = updates.as_slice() else {
        panic!("{updates:?}")
    };
    assert_eq!((puts.len(), deletes.len()), (2, 1), "two batches are one update");
    assert_eq!(two.merge(1, updates[0].clone()), Merged::Taken);
    assert_eq!(two.merge(1, updates[0].clone()), Merged::Known, "again is harmless");
    assert_eq!(content(&one.view(), "east"), content(&two.view(), "east"));
    assert!(follower.updates(&one.view(), Timestamp(9)).is_empty());

    one.apply(Timestamp(4), [put("east", "a", 2)]);
    assert!(follower.updates(&one.view(), Timestamp(9)).is_empty(), "nothing changed");
}

#[test]
fn the_newer_stream_wins_and_the_late_words_of_the_older_are_lost() {
    let ((one, first), (two, second)) = (node(1), node(2));
    first.claim("east", 5);
    one.apply(Timestamp(1), [put("east", "a", 1)]);
    let (mut to_two, mut to_one) = (Follower::new(2), Follower::new(1));
    tell((1, &one), &two, &mut to_two);

    second.claim("east", 6);
    two.apply(Timestamp(2), [put("east", "a", 2)]);
    // Node 1 does not know yet, and writes.
    one.apply(Timestamp(3), [put("east", "a", 99)]);
    first.release("east");
    tell((1, &one), &two, &mut to_two);
    assert_eq!(content(&two.view(), "east").values().next().unwrap().0, json!({ "value": 2 }));
    tell((2, &two), &one, &mut to_one);
    assert_eq!(content(&one.view(), "east"), content(&two.view(), "east"));
    assert_eq!(one.view().copy_of("east").unwrap().holder, Holder::Node(2));
    // Now it knows.
    one.apply(Timestamp(4), [put("east", "a", 100), delete("east", "a")]);
    assert_eq!(content(&one.view(), "east"), content(&two.view(), "east"));
}

#[test]
fn a_clock_that_is_behind_does_not_lose_what_the_zone_says() {
    let ((one, first), (two, second)) = (node(1), node(2));
    first.claim("east", 1_000);
    one.apply(Timestamp(1), [put("east", "a", 1)]);
    tell((1, &one), &two, &mut Follower::new(2));
    // Node 1 dies; node 2's clock is far behind.
    two.lost(1, Timestamp(7));
    second.claim("east", 3);
    two.apply(Timestamp(2), [put("east", "a", 2)]);
    assert_eq!(two.view().copy_of("east").unwrap().holder, Holder::Here);
    // Node 1 comes back with what it had.
    let (back, _) = node(1);
    back.merge(1, one.view().full("east", Timestamp(8)).unwrap());
    back.lost(1, Timestamp(8));
    tell((1, &back), &two, &mut Follower::new(2));
    tell((2, &two), &back, &mut Follower::new(1));
    assert_eq!(content(&back.view(), "east").values().next().unwrap().0, json!({ "value": 2 }));
    assert_eq!(content(&back.view(), "east"), content(&two.view(), "east"));
}

#[test]
fn who_is_too_far_behind_gets_a_full_copy() {
    let ((one, claims), (two, _)) = (node(1), node(2));
    claims.claim("east", 5);
    one.apply(Timestamp(1), [put("east", "a", 0)]);
    let mut follower = Follower::new(2);
    tell((1, &one), &two, &mut follower);
    for value in 0..=u32::try_from(MAX_JOURNAL).unwrap() {
        one.apply(Timestamp(2), [put("east", "b", value)]);
    }
    let updates = follower.updates(&one.view(), Timestamp(9));
    assert!(matches!(updates.as_slice(), [Update::Full { .. }]), "{updates:?}");
    assert!(one.view().journal.size() <= MAX_JOURNAL);
    two.merge(1, updates[0].clone());
    assert_eq!(content(&one.view(), "east"), content(&two.view(), "east"));
}

#[test]
fn a_delta_on_something_else_is_a_gap() {
    let ((one, claims), (two, _)) = (node(1), node(2));
    claims.claim("east", 5);
    one.apply(Timestamp(1), [put("east", "a", 1)]);
    let mut follower = Follower::new(2);
    follower.updates(&one.view(), Timestamp(9));
    one.apply(Timestamp(2), [put("east", "b", 1)]);
    assert_eq!(tell((1, &one), &two, &mut follower), [Merged::Gap]);
    assert_eq!(tell((1, &one), &two, &mut Follower::new(2)), [Merged::Taken]);
    assert_eq!(content(&one.view(), "east"), content(&two.view(), "east"));
}

#[test]
fn a_deleted_zone_goes_everywhere_and_may_come_again() {
    let ((one, claims), (two, _)) = (node(1), node(2));
    claims.claim("east", 5);
    one.apply(Timestamp(1), [put("east", "a", 1)]);
    let mut follower = Follower::new(2);
    tell((1, &one), &two, &mut follower);
    one.forget(|zone| zone == "east");
    claims.release("east");
    one.apply(Timestamp(2), [put("east", "a", 2)]);
    assert!(one.view().copy_of("east").is_none(), "nobody speaks for it any more");
    assert_eq!(tell((1, &one), &two, &mut follower), [Merged::Taken]);
    assert_eq!(two.view().list(Kind::Dataplane).count(), 0);
    claims.claim("east", 6);
    one.apply(Timestamp(3), [put("east", "b", 1)]);
    assert_eq!(tell((1, &one), &two, &mut follower), [Merged::Taken]);
    assert_eq!(content(&one.view(), "east"), content(&two.view(), "east"));
}

#[test]
fn a_late_drop_does_not_take_what_came_after_it() {
    let ((one, first), (two, second)) = (node(1), node(2));
    first.claim("east", 5);
    one.apply(Timestamp(1), [put("east", "a", 1)]);
    let fence = one.view().copy_of("east").unwrap().at.fence;
    second.claim("east", 6);
    two.apply(Timestamp(2), [put("east", "a", 2)]);
    let (three, _) = node(3);
    tell((2, &two), &three, &mut Follower::new(3));
    let drop = Update::Drop {
        zone: "east".into(),
        up_to: fence,
    };
    assert_eq!(three.merge(1, drop), Merged::Known);
    assert_eq!(content(&three.view(), "east"), content(&two.view(), "east"));
}

#[test]
fn a_delta_of_another_line_is_a_gap() {
    let ((one, first), (two, second), (three, _)) = (node(1), node(2), node(3));
    first.claim("east", 5);
    one.apply(Timestamp(1), [put("east", "a", 1)]);
    tell((1, &one), &three, &mut Follower::new(3));
    second.claim("east", 6);
    let mut follower = Follower::new(3);
    two.apply(Timestamp(2), [put("east", "a", 2)]);
    follower.updates(&two.view(), Timestamp(9));
    two.apply(Timestamp(3), [put("east", "b", 2)]);
    assert_eq!(tell((2, &two), &three, &mut follower), [Merged::Gap], "it would mix two copies");
    assert_eq!(content(&three.view(), "east"), content(&one.view(), "east"));
}

#[test]
fn what_no_zone_owns_stays_here() {
    let ((one, _), (two, _)) = (node(1), node(2));
    let mine = Observation::Put {
        key: ResourceKey::new(Kind::Dataplane, "default", "mine").unwrap(),
        labels: Labels::new(),
        spec: json!({}),
        owner: None,
    };
    one.apply(Timestamp(1), [mine]);
    assert_eq!(one.view().list(Kind::Dataplane).count(), 1);
    assert!(tell((1, &one), &two, &mut Follower::new(2)).is_empty());
}

#[test]
fn a_zone_that_nobody_sees_is_shown_offline_with_its_proxies() {
    let ((one, claims), (two, _)) = (node(1), node(2));
    claims.claim("east", 5);
    let open = json!({ "subscriptions": [{ "id": "1", "connectTime": "2026-01-31T12:00:00Z" }] });
    let proxy = Observation::Put {
        key: ResourceKey::new(Kind::DataplaneInsight, "default", "a").unwrap(),
        labels: Labels::new(),
        spec: open.clone(),
        owner: Some(zone_key("east")),
    };
    one.apply(Timestamp(1), [insight("east", open), proxy, put("east", "a", 1)]);
    tell((1, &one), &two, &mut Follower::new(2));
    let ends = |view: &ObservedView| {
        let of = |kind| {
            view.list(kind)
                .next()
                .unwrap()
                .spec
                .pointer("/subscriptions/0/disconnectTime")
                .cloned()
        };
        [of(Kind::ZoneInsight), of(Kind::DataplaneInsight)]
    };
    assert_eq!(ends(&two.view().shown()), [None, None]);
    let heard = Timestamp::parse_rfc3339("2026-01-31T12:34:56Z").unwrap();
    two.lost(1, heard);
    let shown = two.view().shown();
    assert_eq!(
        ends(&shown),
        [Some(json!("2026-01-31T12:34:56Z")), Some(json!("2026-01-31T12:34:56Z"))]
    );
    let dataplane = shown.list(Kind::Dataplane).next().unwrap();
    assert_eq!(dataplane.label(OBSERVED_AS_OF), Some("20260131T123456Z"));
    assert_eq!(ends(&two.view()), [None, None], "what is stored stays");
    assert_eq!(ends(&one.view().shown()), [None, None], "its node sees it");

    let closed =
        json!({ "subscriptions": [{ "id": "1", "connectTime": "2026-01-31T12:00:00Z", "disconnectTime": "2026-01-31T13:00:00Z" }] });
    one.apply(Timestamp(2), [insight("east", closed)]);
    assert_eq!(
        ends(&one.view().shown())[1],
        Some(json!("2026-01-31T13:00:00Z")),
        "the zone itself went"
    );
}

const ZONES: [&str; 2] = ["east", "west"];
const NODES: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// A zone's stream begins at a node; the others do not know.
    Connect(usize, usize),
    Learn(usize),
    Put(usize, usize, u8, u32),
    Delete(usize, usize, u8),
    /// A node puts what it has to tell on the way to another.
    Send(usize, usize),
    Deliver(usize, usize),
    /// A connection ends; what was on the way is lost. The receiver may or may not notice.
    Cut(usize, usize, bool),
    /// A process is killed and starts with an old checkpoint, or none.
    Restart(usize, bool),
    Checkpoint(usize),
    DeleteZone(usize),
    HearOfDeletion(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (n, z, k) = (0..NODES, 0..ZONES.len(), 0_u8..4);
    prop_oneof![
        2 => (z.clone(), n.clone()).prop_map(|(z, n)| Step::Connect(z, n)),
        2 => z.clone().prop_map(Step::Learn),
        8 => (n.clone(), z.clone(), k.clone(), any::<u32>()).prop_map(|(n, z, k, v)| Step::Put(n, z, k, v)),
        3 => (n.clone(), z.clone(), k).prop_map(|(n, z, k)| Step::Delete(n, z, k)),
        8 => (n.clone(), n.clone()).prop_map(|(a, b)| Step::Send(a, b)),
        8 => (n.clone(), n.clone()).prop_map(|(a, b)| Step::Deliver(a, b)),
        1 => (n.clone(), n.clone(), any::<bool>()).prop_map(|(a, b, seen)| Step::Cut(a, b, seen)),
        1 => (n.clone(), any::<bool>()).prop_map(|(n, old)| Step::Restart(n, old)),
        1 => n.clone().prop_map(Step::Checkpoint),
        1 => z.prop_map(Step::DeleteZone),
        2 => n.prop_map(Step::HearOfDeletion),
    ]
}

struct Link {
    follower: Follower,
    queue: VecDeque<Update>,
}

struct World {
    nodes: Vec<(Observed, Claims)>,
    links: BTreeMap<(usize, usize), Link>,
    checkpoints: Vec<Vec<Update>>,
    /// Where a zone's newest stream is.
    truth: BTreeMap<&'static str, usize>,
    clock: u64,
    deleted: BTreeSet<&'static str>,
}

fn id(n: usize) -> u64 {
    u64::try_from(n).unwrap() + 1
}

impl World {
    fn new() -> Self {
        let pairs = (0..NODES).flat_map(|a| (0..NODES).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let link = |(a, b)| {
            let (follower, queue) = (Follower::new(id(b)), VecDeque::new());
            ((a, b), Link { follower, queue })
        };
        Self {
            nodes: (0..NODES).map(|n| node(id(n))).collect(),
            links: pairs.map(link).collect(),
            checkpoints: vec![Vec::new(); NODES],
            truth: BTreeMap::new(),
            clock: 0,
            deleted: BTreeSet::new(),
        }
    }

    fn reset(&mut self, a: usize, b: usize) {
        let (follower, queue) = (Follower::new(id(b)), VecDeque::new());
        self.links.insert((a, b), Link { follower, queue });
    }

    fn play(&mut self, step: Step) {
        self.clock += 1;
        let now = Timestamp(self.clock);
        match step {
            Step::Connect(z, n) if !self.deleted.contains(ZONES[z]) => {
                self.nodes[n].1.claim(ZONES[z], self.clock);
                self.truth.insert(ZONES[z], n);
                self.nodes[n]
                    .0
                    .apply(now, [put(ZONES[z], "connected", u32::try_from(self.clock).unwrap())]);
            }
            Step::Connect(..) => {}
            Step::Learn(z) => self.learn(ZONES[z]),
            Step::Put(n, z, k, v) => self.nodes[n].0.apply(now, [put(ZONES[z], &k.to_string(), v)]),
            Step::Delete(n, z, k) => self.nodes[n].0.apply(now, [delete(ZONES[z], &k.to_string())]),
            Step::Send(a, b) => {
                if let Some(link) = self.links.get_mut(&(a, b)) {
                    link.queue.extend(link.follower.updates(&self.nodes[a].0.view(), now));
                }
            }
            Step::Deliver(a, b) => self.deliver(a, b),
            Step::Cut(a, b, seen) => {
                if a != b {
                    self.reset(a, b);
                    if seen {
                        self.nodes[b].0.lost(id(a), now);
                    }
                }
            }
            Step::Checkpoint(n) => {
                let view = self.nodes[n].0.view();
                self.checkpoints[n] = view.copies().filter_map(|(zone, _)| view.full(zone, now)).collect();
            }
            Step::Restart(n, old) => {
                self.nodes[n] = node(id(n));
                if old {
                    for update in self.checkpoints[n].clone() {
                        self.nodes[n].0.merge(0, update);
                    }
                }
                self.truth.retain(|_, holder| *holder != n);
                for other in (0..NODES).filter(|o| *o != n) {
                    self.reset(n, other);
                    self.reset(other, n);
                    self.nodes[other].0.lost(id(n), now);
                }
            }
            Step::DeleteZone(z) => {
                self.deleted.insert(ZONES[z]);
                self.truth.remove(ZONES[z]);
            }
            Step::HearOfDeletion(n) => {
                for zone in &self.deleted {
                    self.nodes[n].1.release(zone);
                }
                let deleted = self.deleted.clone();
                self.nodes[n].0.forget(|zone| deleted.contains(zone));
            }
        }
    }

    fn learn(&self, zone: &'static str) {
        for (n, (_, claims)) in self.nodes.iter().enumerate() {
            if self.truth.get(zone) != Some(&n) {
                claims.release(zone);
            }
        }
    }

    fn deliver(&mut self, a: usize, b: usize) {
        let Some(update) = self.links.get_mut(&(a, b)).and_then(|link| link.queue.pop_front()) else {
            return;
        };
        if self.nodes[b].0.merge(id(a), update) == Merged::Gap {
            self.reset(a, b);
        }
    }

    /// All connections are made anew, everybody knows who serves what, everything arrives.
    fn heal(&mut self) {
        ZONES.iter().for_each(|zone| self.learn(zone));
        (0..NODES).for_each(|n| self.play(Step::HearOfDeletion(n)));
        let pairs: Vec<_> = self.links.keys().copied().collect();
        for (a, b) in &pairs {
            self.reset(*a, *b);
        }
        for _ in 0..6 {
            for (a, b) in &pairs {
                self.play(Step::Send(*a, *b));
                while self.links.get(&(*a, *b)).is_some_and(|link| !link.queue.is_empty()) {
                    self.deliver(*a, *b);
                }
            }
            (0..NODES).for_each(|n| self.play(Step::HearOfDeletion(n)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn all_nodes_end_with_what_the_newest_stream_said(script in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in script {
            world.play(step);
        }
        ZONES.iter().for_each(|zone| world.learn(zone));
        // What the node of the newest stream has, if it holds the copy. It does after its next word at the latest.
        let mut wanted = BTreeMap::new();
        for (zone, n) in world.truth.clone() {
            world.nodes[n].0.apply(Timestamp(world.clock), [put(zone, "last", 1)]);
            wanted.insert(zone, content(&world.nodes[n].0.view(), zone));
        }
        world.heal();
        let views: Vec<ObservedView> = world.nodes.iter().map(|(observed, _)| observed.view()).collect();
        for zone in ZONES {
            let first = content(&views[0], zone);
            for view in &views[1..] {
                prop_assert_eq!(&first, &content(view, zone));
                prop_assert_eq!(views[0].copy_of(zone).map(|c| c.at), view.copy_of(zone).map(|c| c.at));
            }
            if let Some(wanted) = wanted.get(zone) {
                prop_assert_eq!(&first, wanted);
            }
            prop_assert!(!world.deleted.contains(zone) || first.is_empty());
        }
        for view in &views {
            let members: usize = ZONES.iter().map(|zone| view.of_zone(zone).count()).sum();
            prop_assert_eq!(members, view.list(Kind::Dataplane).count(), "nothing is left outside the copies");
        }
    }
}
