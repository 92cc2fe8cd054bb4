//! How far the Envoy of a stream is, and when to try again what it could not take. The timer is the only thing here that is not pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ursa_runtime::{backoff::Backoff, lease::Deadline};

use crate::{
    snapshot::{ProxySnapshot, XdsType},
    xds::machine::Machine,
};

/// A listener that lacked a socket is tried again after the first of these at the earliest, and then after ever longer. A timer, because
/// nobody tells when another process leaves a port. Nothing else of the proxy waits meanwhile.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// See the module's text.
#[derive(Debug)]
pub(super) struct Progress {
    /// Types with an unanswered response.
    pub(super) unanswered: BTreeSet<XdsType>,
    /// Types of which it has accepted something, on this stream or before.
    pub(super) accepted: BTreeSet<XdsType>,
    pub(super) asked_for_secrets: bool,
    /// Newest revision of the zone that this stream was told of, or that changes nothing for it.
    pub(super) revision: u64,
    pub(super) serving: bool,
    /// What it said when it last refused something, by type.
    pub(super) refusals: BTreeMap<XdsType, String>,
    backoff: Backoff,
    retry: Option<Deadline>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            unanswered: BTreeSet::new(),
            accepted: BTreeSet::new(),
            asked_for_secrets: false,
            revision: 0,
            serving: false,
            refusals: BTreeMap::new(),
            backoff: Backoff::new(RETRY.0, RETRY.1),
            retry: None,
        }
    }
}

impl Progress {
    /// Its Envoy listens: it has taken listeners, and everything that they wait for. An Envoy answers a response when it has
    /// done what it says, so its listeners take connections then.
    pub(super) fn listens(&self, snapshot: &ProxySnapshot, inbounds: &[String]) -> bool {
        let has = |kind| snapshot.of(kind).is_empty() || self.accepted.contains(&kind);
        has(XdsType::Listener)
            && has(XdsType::Route)
            && (!self.asked_for_secrets || self.accepted.contains(&XdsType::Secret))
            && (inbounds.is_empty() || inbounds.iter().any(|name| snapshot.of(XdsType::Listener).contains_key(name)))
    }

    /// Sets the timer while something lacks a socket, each time for longer.
    pub(super) fn plan_retry(&mut self, machine: &Machine) {
        if !machine.wants_retry() {
            self.retry = None;
        } else if self.retry.is_none() {
            self.retry = Some(Deadline::after(self.backoff.next_delay()));
        }
        if machine.runs_all() {
            self.backoff.reset();
            self.refusals.clear();
        }
    }

    /// Completes when it is time to try again. Cancel-safe.
    pub(super) async fn retry_is_due(&self) {
        match &self.retry {
            Some(at) => at.passed().await,
            None => std::future::pending().await,
        }
    }

    /// It is tried again.
    pub(super) fn retried(&mut self) {
        self.retry = None;
    }

    /// Why it does not run all that it was sent.
    pub(super) fn refusal(&self) -> Arc<str> {
        let all = self.refusals.iter().map(|(kind, why)| format!("{}: {why}", kind.short()));
        all.collect::<Vec<_>>().join("; ").into()
    }
}
