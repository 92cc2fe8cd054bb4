//! Everything that one class of peers may see, as an immutable picture that all streams of the class share, with what changed since.
//! In: catalogs as they come. Out: a [`Distribution`] per catalog. Pure: no I/O, no clock.
//! Invariant: one changed resource is mapped and encoded once per class, however many zones there are; a stream keeps nothing of its
//! own but a clone of the picture it sent last.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rpds::RedBlackTreeMapSync;
use ursa_model::{Kind, ResourceKey, kind::Tier};
use ursa_state::{Catalog, GlobalRevision, Revision};

use crate::{
    digest::{self, Sum},
    mapping::{Class, Context, Entry, Problem, Recipient, down::is_enabled, map, trust::Bindings},
    peer::Features,
};

/// Changes remembered. A stream that is further behind compares two pictures instead, which is slower and gives the same.
const MAX_LOG: usize = 4096;

/// A kind and the name on the wire. Ordered so that a range holds one kind.
pub type WireKey = (Kind, Arc<str>);

/// What decides who sees an entry: its kind, the zone that it comes from, the features that it needs.
type Audience = (Kind, Option<Arc<str>>, Features);

/// See the module's text. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    /// Names the distributor: sequences of different ones have nothing to do with each other.
    lineage: u64,
    at: GlobalRevision,
    sequence: u64,
    entries: RedBlackTreeMapSync<WireKey, Arc<Entry>>,
    sums: RedBlackTreeMapSync<Audience, Sum>,
    log: RedBlackTreeMapSync<u64, Arc<[WireKey]>>,
    /// Changes up to and including this sequence are forgotten.
    floor: u64,
}

impl Distribution {
    /// Revision of the store that it shows.
    pub fn at(&self) -> GlobalRevision {
        self.at
    }

    /// Counts its changes: equal sequences of one distributor mean equal content.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    pub fn get(&self, key: &WireKey) -> Option<&Arc<Entry>> {
        self.entries.get(key)
    }

    /// All of a kind, ordered by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&WireKey, &Arc<Entry>)> {
        let start: WireKey = (kind, "".into());
        self.entries
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(move |((k, _), _)| *k == kind)
    }

    /// Sum of what a peer of the class sees of a kind; `None` when some of it will be refused.
    pub fn sum(&self, kind: Kind, recipient: &Recipient) -> Option<digest::Hash> {
        self.whole_sum(kind, recipient).known()
    }

    fn whole_sum(&self, kind: Kind, recipient: &Recipient) -> Sum {
        let start: Audience = (kind, None, Features::default());
        let of_kind = self
            .sums
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(|((k, ..), _)| *k == kind);
        let seen = of_kind.filter(|((_, from, needs), _)| recipient.sees_those(*needs, from.as_ref()));
        seen.fold(Sum::default(), |all, (_, sum)| all.plus(*sum))
    }

    /// What a peer has that says it holds so much of these kinds together, if that is what it was shown here: all of it, but for what it
    /// refuses, which is to be sent to it again. `None`: it has something else.
    pub fn held_by(&self, kinds: &[Kind], recipient: &Recipient, sum: digest::Hash) -> Option<Self> {
        let whole = kinds.iter().map(|kind| self.whole_sum(*kind, recipient));
        let whole = whole.fold(Sum::default(), Sum::plus);
        if !whole.is_held_by(sum) {
            return None;
        }
        let mut held = self.clone();
        if whole.has_refused() {
            let refused = self
                .entries
                .iter()
                .filter(|((kind, _), entry)| kinds.contains(kind) && matches!(entry.hash, digest::Stored::Refused(_)));
            let refused: Vec<WireKey> = refused.map(|(wire, _)| wire.clone()).collect();
            // Another picture than the one that the log of changes goes on from.
            held.lineage = lineage();
            refused.iter().for_each(|wire| held.set(wire, None));
        }
        Some(held)
    }

    fn set(&mut self, wire: &WireKey, entry: Option<Arc<Entry>>) {
        let audience = |e: &Entry| (wire.0, e.from.clone(), e.needs);
        if let Some(old) = self.entries.get(wire).cloned() {
            let mut sum = self.sums.get(&audience(&old)).copied().unwrap_or_default();
            sum.remove(old.hash);
            self.sums.insert_mut(audience(&old), sum);
        }
        match entry {
            Some(new) => {
                let mut sum = self.sums.get(&audience(&new)).copied().unwrap_or_default();
                sum.add(new.hash);
                self.sums.insert_mut(audience(&new), sum);
                self.entries.insert_mut(wire.clone(), new);
            }
            None => {
                self.entries.remove_mut(wire);
            }
        }
    }

    /// Names of a kind that may differ between `older` and this picture. Exact where the log of one distributor reaches.
    pub fn changed_since(&self, older: &Self, kind: Kind) -> BTreeSet<Arc<str>> {
        let related = older.lineage == self.lineage;
        if related && older.sequence == self.sequence {
            return BTreeSet::new();
        }
        let of_kind = |(k, name): &WireKey| (*k == kind).then(|| name.clone());
        if related && older.sequence >= self.floor && older.sequence < self.sequence {
            let later = self.log.range((Bound::Excluded(older.sequence), Bound::Unbounded));
            return later.flat_map(|(_, keys)| keys.iter()).filter_map(of_kind).collect();
        }
        let all = older.of_kind(kind).chain(self.of_kind(kind)).map(|(key, _)| key);
        all.filter_map(of_kind).collect()
    }
}

/// Numbers distributors within the process.
static LINEAGES: AtomicU64 = AtomicU64::new(1);

fn lineage() -> u64 {
    LINEAGES.fetch_add(1, Ordering::Relaxed)
}

/// Keeps the distribution of one class up to date.
#[derive(Clone, Debug)]
pub struct Distributor {
    class: Class,
    catalog: Option<Catalog>,
    trust: Bindings,
    by_source: BTreeMap<ResourceKey, Arc<Entry>>,
    /// Further resources that map to a name that is taken: the smallest source key has it, the others wait here.
    waiting: BTreeMap<WireKey, BTreeMap<ResourceKey, Arc<Entry>>>,
    problems: BTreeMap<ResourceKey, Problem>,
    current: Distribution,
}

impl Distributor {
    /// Nothing is known before the first [`Distributor::update`].
    pub fn new(class: Class) -> Self {
        Self {
            class,
            catalog: None,
            trust: Bindings::default(),
            by_source: BTreeMap::new(),
            waiting: BTreeMap::new(),
            problems: BTreeMap::new(),
            current: Distribution {
                lineage: lineage(),
                ..Distribution::default()
            },
        }
    }

    /// The newest picture; `None` before the first update.
    pub fn current(&self) -> Option<&Distribution> {
        self.catalog.as_ref().map(|_| &self.current)
    }

    /// Resources that should be sent but cannot be, by key.
    pub fn problems(&self) -> &BTreeMap<ResourceKey, Problem> {
        &self.problems
    }

    /// Takes a newer catalog up. Costs what changed, not what there is.
    pub fn update(&mut self, catalog: Catalog) -> Distribution {
        let suspects = self.suspects(&catalog);
        self.take(catalog, suspects)
    }

    /// The picture at an earlier revision of the same history, as it was shown then; the observed tier as it is now. `None` when the
    /// changes since are no longer kept, or are so many that sending everything is better. Costs what changed since, and a copy of the
    /// index.
    pub fn at(&self, at: GlobalRevision, max_changes: usize) -> Option<Distribution> {
        let catalog = self.catalog.as_ref()?;
        let newest = catalog.durable.at_global();
        if at.history != newest.history || at.revision > newest.revision {
            return None;
        }
        if at.revision == newest.revision {
            return Some(self.current.clone());
        }
        let keys = self.changed_keys(catalog, at.revision)?;
        if keys.len() > max_changes {
            return None;
        }
        let durable = catalog.durable.at(at.revision).ok()?;
        let older = Catalog {
            durable,
            ..catalog.clone()
        };
        let mut back = self.clone();
        back.current.lineage = lineage();
        let mut suspects = keys;
        back.add_dependants(&mut suspects, catalog);
        back.add_dependants(&mut suspects, &older);
        suspects.retain(|key| back.class.sends(key.kind()));
        Some(back.take(older, suspects))
    }

    /// Keys that changed after `revision`; `None` when that is no longer kept.
    fn changed_keys(&self, newer: &Catalog, revision: Revision) -> Option<BTreeSet<ResourceKey>> {
        let changes = newer.durable.changes_since(revision).ok()?;
        Some(changes.flat_map(|c| c.changes.iter().map(|c| c.key.clone())).collect())
    }

    /// Maps these keys anew, from this catalog.
    fn take(&mut self, catalog: Catalog, suspects: BTreeSet<ResourceKey>) -> Distribution {
        if suspects.iter().any(|key| key.kind() == Kind::MeshTrust) || self.catalog.is_none() {
            self.trust = Bindings::of(&catalog);
        }
        let mut touched: BTreeSet<WireKey> = BTreeSet::new();
        for key in suspects {
            let entry = match catalog.get(&key) {
                None => None,
                Some(resource) => match map(
                    &Context {
                        catalog: &catalog,
                        trust: &self.trust,
                    },
                    &self.class,
                    resource,
                ) {
                    Ok(entry) => {
                        self.problems.remove(&key);
                        entry
                    }
                    Err(problem) => {
                        self.problems.insert(key.clone(), problem);
                        None
                    }
                },
            };
            if catalog.get(&key).is_none() {
                self.problems.remove(&key);
            }
            self.place(key, entry, &mut touched);
        }
        if !touched.is_empty() {
            self.current.sequence += 1;
            self.current.log.insert_mut(self.current.sequence, touched.into_iter().collect());
            while self.current.log.size() > MAX_LOG {
                let Some(oldest) = self.current.log.first().map(|(s, _)| *s) else {
                    break;
                };
                self.current.log.remove_mut(&oldest);
                self.current.floor = oldest;
            }
        }
        self.current.at = catalog.durable.at_global();
        self.catalog = Some(catalog);
        self.current.clone()
    }

    /// Keys whose mapped form may have changed.
    fn suspects(&self, new: &Catalog) -> BTreeSet<ResourceKey> {
        let Some(old) = &self.catalog else { return self.everything(new) };
        if old.durable.history_id() != new.durable.history_id() || new.durable.revision() < old.durable.revision() {
            return self.everything(new);
        }
        let Some(mut out) = self.changed_keys(new, old.durable.revision()) else {
            return self.everything(new);
        };
        if old.observed.sequence() != new.observed.sequence() {
            for kind in self.class.kinds().filter(|k| new.role.tier(*k) == Tier::Observed) {
                let seen = old.observed.sequence();
                out.extend(new.observed.list(kind).filter(|r| r.mod_revision > seen).map(|r| r.key.clone()));
                out.extend(self.sources(kind).filter(|key| new.observed.get(key).is_none()));
            }
        }
        // A Zone is changed with every stream that begins elsewhere; what others see of it changes only with its switch.
        let switched = |zone: &str| is_enabled(old, zone) != is_enabled(new, zone);
        out.retain(|key| key.kind() != Kind::Zone || switched(key.name()));
        self.add_dependants(&mut out, new);
        out.retain(|key| self.class.sends(key.kind()));
        out
    }

    fn everything(&self, catalog: &Catalog) -> BTreeSet<ResourceKey> {
        let mut all: BTreeSet<ResourceKey> = self.class.kinds().flat_map(|k| catalog.list(k)).map(|r| r.key.clone()).collect();
        all.extend(self.by_source.keys().cloned());
        all
    }

    fn sources(&self, kind: Kind) -> impl Iterator<Item = ResourceKey> + '_ {
        self.by_source
            .range(ResourceKey::first(kind, "")..)
            .map(|(key, _)| key)
            .take_while(move |key| key.kind() == kind)
            .cloned()
    }

    /// A Zone that is switched on or off changes what others see of it; one MeshTrust may decide over another.
    fn add_dependants(&self, out: &mut BTreeSet<ResourceKey>, catalog: &Catalog) {
        let zones: BTreeSet<String> = out.iter().filter(|k| k.kind() == Kind::Zone).map(|k| k.name().to_owned()).collect();
        if !zones.is_empty() {
            for kind in self.class.kinds().filter(|k| k.descriptor().flags.across_zones()) {
                let theirs = catalog
                    .list(kind)
                    .into_iter()
                    .filter(|r| r.label(ursa_model::labels::ORIGIN) == Some("zone"));
                out.extend(theirs.filter(|r| r.zone().is_none_or(|z| zones.contains(z))).map(|r| r.key.clone()));
            }
        }
        if out.iter().any(|k| k.kind() == Kind::MeshTrust) && matches!(self.class, Class::ToZones { .. }) {
            out.extend(catalog.list(Kind::MeshTrust).iter().map(|r| r.key.clone()));
        }
    }

    /// Puts the new form of one resource in the place of its old one.
    fn place(&mut self, source: ResourceKey, entry: Option<Entry>, touched: &mut BTreeSet<WireKey>) {
        let old = self.by_source.get(&source).cloned();
        if let (Some(old), Some(new)) = (&old, &entry)
            && (&old.name, &old.version, &old.from, old.needs) == (&new.name, &new.version, &new.from, new.needs)
        {
            return;
        }
        let kind = source.kind();
        if let Some(old) = old {
            let wire: WireKey = (kind, old.name.clone());
            if self.current.entries.get(&wire).is_some_and(|e| e.source == source) {
                let next = self.waiting.get_mut(&wire).and_then(BTreeMap::pop_first);
                self.current.set(&wire, next.map(|(_, next)| next));
                touched.insert(wire.clone());
            } else if let Some(waiting) = self.waiting.get_mut(&wire) {
                waiting.remove(&source);
            }
            if self.waiting.get(&wire).is_some_and(BTreeMap::is_empty) {
                self.waiting.remove(&wire);
            }
            self.by_source.remove(&source);
        }
        let Some(entry) = entry.map(Arc::new) else { return };
        self.by_source.insert(source, entry.clone());
        let wire: WireKey = (kind, entry.name.clone());
        match self.current.entries.get(&wire).cloned() {
            Some(holder) if holder.source < entry.source => {
                self.waiting.entry(wire).or_default().insert(entry.source.clone(), entry);
            }
            holder => {
                if let Some(holder) = holder {
                    self.waiting.entry(wire.clone()).or_default().insert(holder.source.clone(), holder);
                }
                self.current.set(&wire, Some(entry));
                touched.insert(wire);
            }
        }
    }
}
