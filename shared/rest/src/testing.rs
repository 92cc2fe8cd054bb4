//! A backend in memory, and requests without a network, for tests.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use ursa_model::{Timestamp, ZoneName, kind::ALL};
use ursa_state::{Applied, Catalog, Changeset, Command, HistoryId, Observed, ObservedView, Role, State, observed::Observation};

use crate::{
    Site,
    backend::{Backend, BoxFuture, Freshness, ProposeError, Unavailable},
};

/// [`State`] behind a mutex; every proposal is applied at once. Clones share it.
#[derive(Clone)]
pub struct Memory {
    role: Role,
    inner: Arc<Mutex<Inner>>,
    observed: Observed,
}

#[derive(Default)]
struct Inner {
    state: State,
    index: u64,
    read_fault: Option<Unavailable>,
    /// The fault, and whether the proposal is applied all the same.
    write_fault: Option<(ProposeError, bool)>,
    unknown_zones: Vec<ZoneName>,
    proposals: usize,
}

impl Memory {
    pub fn new(site: &Site) -> Self {
        let memory = Self {
            role: if site.is_global() { Role::Global } else { Role::Zone },
            inner: Arc::default(),
            observed: Observed::default(),
        };
        memory.apply(&Command::Init { history: HistoryId(7) });
        memory
    }

    /// A backend of its own with the same content and no faults.
    pub fn fork(&self) -> Self {
        let inner = self.inner.lock();
        let copy = Inner {
            state: inner.state.clone(),
            index: inner.index,
            ..Inner::default()
        };
        let observed = Observed::default();
        let view = self.observed.view();
        let all = ALL.iter().flat_map(|kind| view.list(*kind)).map(|r| Observation::Put {
            key: r.key.clone(),
            labels: r.labels.clone(),
            spec: r.spec.clone(),
            owner: r.owner.clone(),
        });
        observed.apply(Timestamp(1), all);
        Self {
            role: self.role,
            inner: Arc::new(Mutex::new(copy)),
            observed,
        }
    }

    /// Applies a command directly.
    pub fn apply(&self, command: &Command) -> Applied {
        let mut inner = self.inner.lock();
        inner.index += 1;
        let index = inner.index;
        inner.state.apply(index, command)
    }

    /// Changes the observed tier.
    pub fn observe(&self, batch: impl IntoIterator<Item = Observation>) {
        self.observed.apply(Timestamp(1), batch);
    }

    /// The picture now, whatever faults are set.
    pub fn now(&self) -> Catalog {
        Catalog {
            role: self.role,
            durable: self.inner.lock().state.view().clone(),
            observed: self.observed.view(),
        }
    }

    /// Everything that is stored, as the bytes of a snapshot without what repeats no state: equal bytes mean that nothing changed.
    pub fn fingerprint(&self) -> Vec<u8> {
        let catalog = self.now();
        let all: Vec<_> = catalog.durable.iter().collect();
        serde_json::to_vec(&(catalog.durable.revision(), all)).unwrap_or_default()
    }

    /// Proposals received so far.
    pub fn proposals(&self) -> usize {
        self.inner.lock().proposals
    }

    /// From now on linearizable reads fail; stale ones go on.
    pub fn fail_reads(&self, fault: Option<Unavailable>) {
        self.inner.lock().read_fault = fault;
    }

    /// From now on proposals fail; `applied` tells whether they take effect all the same.
    pub fn fail_writes(&self, fault: Option<(ProposeError, bool)>) {
        self.inner.lock().write_fault = fault;
    }

    pub fn set_unknown_zones(&self, zones: Vec<ZoneName>) {
        self.inner.lock().unknown_zones = zones;
    }
}

impl Backend for Memory {
    fn catalog(&self, freshness: Freshness) -> BoxFuture<'_, Result<Catalog, Unavailable>> {
        let fault = self.inner.lock().read_fault.clone();
        let answer = match fault {
            Some(fault) if freshness == Freshness::Linearizable => Err(fault),
            _ => Ok(self.now()),
        };
        Box::pin(async move { answer })
    }

    fn propose(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, ProposeError>> {
        let fault = {
            let mut inner = self.inner.lock();
            inner.proposals += 1;
            inner.write_fault.clone()
        };
        let answer = match fault {
            Some((fault, applied)) => {
                if applied {
                    self.apply(&Command::Change(set));
                }
                Err(fault)
            }
            None => Ok(self.apply(&Command::Change(set))),
        };
        Box::pin(async move { answer })
    }

    fn observed(&self) -> watch::Receiver<ObservedView> {
        self.observed.subscribe()
    }

    fn unknown_zones(&self) -> Vec<ZoneName> {
        self.inner.lock().unknown_zones.clone()
    }
}
