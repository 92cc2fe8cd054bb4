//! Content for all zones' streams: one distributor per class of zones that is connected.
//! In: the store's changes. Out: a `watch` of the newest picture per class. Invariant: what a subscriber sees first is at least as new
//! as the store was when it subscribed.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use ursa_model::{Kind, ResourceKey, Timestamp, kind::Tier};
use ursa_state::{Catalog, GlobalRevision, Role, observed::Observation};

use crate::{
    distribution::{Distribution, Distributor},
    mapping::{Class, Problem},
    metrics::Metrics,
    ports::Source,
    shell::Contents,
};

/// A zone that missed more changed resources than this gets first sets: they are encoded already.
const MAX_RESUMED: usize = 2000;

/// See the module's text.
pub(super) struct Hub {
    source: Source,
    metrics: Metrics,
    classes: Mutex<BTreeMap<Class, OfClass>>,
    problems: Mutex<BTreeMap<ResourceKey, Problem>>,
}

struct OfClass {
    distributor: Distributor,
    newest: watch::Sender<Distribution>,
}

/// One stream's content.
pub(super) struct Subscription {
    newest: watch::Receiver<Distribution>,
    started: bool,
}

impl Contents for Subscription {
    async fn next(&mut self) -> Option<Distribution> {
        if self.started {
            self.newest.changed().await.ok()?;
        }
        self.started = true;
        Some(self.newest.borrow_and_update().clone())
    }
}

impl Hub {
    pub(super) fn new(source: Source, metrics: Metrics) -> Self {
        Self {
            source,
            metrics,
            classes: Mutex::default(),
            problems: Mutex::default(),
        }
    }

    pub(super) fn subscribe(&self, class: &Class) -> Subscription {
        let catalog = self.source.peek();
        let mut classes = self.classes.lock();
        let of_class = classes.entry(class.clone()).or_insert_with(|| OfClass {
            distributor: Distributor::new(class.clone()),
            newest: watch::Sender::new(Distribution::default()),
        });
        let newest = of_class.newest.subscribe();
        of_class.refresh(&catalog);
        Subscription { newest, started: false }
    }

    /// What the class was shown at an earlier revision of this history. Only for a class that somebody subscribes to.
    pub(super) fn at(&self, class: &Class, at: GlobalRevision) -> Option<Distribution> {
        self.classes.lock().get(class)?.distributor.at(at, MAX_RESUMED)
    }

    /// Keeps all classes up to date until cancelled.
    pub(super) async fn run(&self, cancel: CancellationToken) {
        let mut source = self.source.clone();
        let mut last = source.catalog();
        self.forget_zones(&last, None);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                alive = source.changed() => if !alive { return },
            }
            let catalog = source.catalog();
            self.refresh(&catalog);
            if catalog.durable.revision() != last.durable.revision() {
                self.forget_zones(&catalog, Some(&last));
            }
            last = catalog;
        }
    }

    fn refresh(&self, catalog: &Catalog) {
        let mut problems = BTreeMap::new();
        {
            let mut classes = self.classes.lock();
            classes.retain(|_, of_class| of_class.newest.receiver_count() > 0);
            for of_class in classes.values_mut() {
                of_class.refresh(catalog);
                problems.extend(of_class.distributor.problems().iter().map(|(k, p)| (k.clone(), p.clone())));
            }
        }
        let mut known = self.problems.lock();
        if *known != problems {
            for (key, problem) in problems.iter().filter(|(key, problem)| known.get(key) != Some(problem)) {
                tracing::warn!(resource = %key, "{problem}");
            }
            let quarantined = problems.values().filter(|p| matches!(p, Problem::Quarantined { .. })).count();
            self.metrics.quarantined.set(i64::try_from(quarantined).unwrap_or(i64::MAX));
            *known = problems;
        }
    }

    /// Resources that should reach zones but do not, and why.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.problems.lock().values().cloned().collect()
    }

    /// What was observed of a zone goes with its Zone (the durable tier does so by ownership).
    fn forget_zones(&self, catalog: &Catalog, last: Option<&Catalog>) {
        let deleted = match last.map(|last| catalog.durable.changes_since(last.durable.revision())) {
            Some(Ok(mut changes)) => changes.any(|c| c.changes.iter().any(|c| c.key.kind() == Kind::Zone && c.after.is_none())),
            _ => true,
        };
        if !deleted {
            return;
        }
        self.source.observed().update(Timestamp::now(), |view| {
            let zones: BTreeSet<ResourceKey> = catalog.durable.list(Kind::Zone).map(|z| z.key.clone()).collect();
            let observed = ursa_model::kind::ALL
                .iter()
                .copied()
                .filter(|k| Role::Global.tier(*k) == Tier::Observed);
            let orphans = observed.flat_map(|kind| view.list(kind)).filter(|r| {
                r.owner
                    .as_ref()
                    .is_some_and(|owner| owner.kind() == Kind::Zone && !zones.contains(owner))
            });
            orphans.map(|r| Observation::Delete(r.key.clone())).collect::<Vec<_>>()
        });
    }
}

impl OfClass {
    fn refresh(&mut self, catalog: &Catalog) {
        let distribution = self.distributor.update(catalog.clone());
        self.newest.send_if_modified(|newest| {
            let changed = newest.sequence() != distribution.sequence() || newest.at() != distribution.at();
            *newest = distribution;
            changed
        });
    }
}
