//! What part of its life a proxy is in, as its stored Dataplane shows it. Pure.
//!
//! ```text
//! first stream of an Envoy ──> Starting ── its Envoy has its listeners ──> Serving ── told to drain ──> Draining ── stream ends ──> removed
//!                                                                              ^── another run is there, or it is live again ──┘
//! ```
//! The phase is the label [`LABEL`], which nobody else writes; a drain also names the run that asked for it, so that it does not stick to
//! the next one. No listener or endpoint shows the label ([`shown`]): a change of it replaces none.
//!
//! For stock readers it is kept in the fields that Kuma has for it as well: of a proxy that starts, inbounds are `NotReady`; of one that
//! drains, they are `NotReady` with `health.ready: false`, and its zone listeners `NotReady`.
//! Invariants: what is not ready without us stays so in every phase, and never tells a phase; what a phase made not ready is ready again
//! after it. A proxy that brings its Dataplane says what that was. For a Dataplane made by hand it is told from the fields, so of these
//! only inbounds are marked, and one that was `NotReady` with `health.ready: false` before is `NotReady` alone afterwards.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ursa_model::{Kind, Labels, Resource};
use ursa_state::{Expect, Op, Put};

/// `starting`, `draining`, or `draining.<run>`; a Dataplane without it serves.
pub const LABEL: &str = "ursa.io/phase";
/// Value of label [`LIFECYCLE`]: the Dataplane came with its proxy's connection and goes with its lease.
pub const BY_PROXY: &str = "proxy";
/// Who decides over the life of a Dataplane.
pub const LIFECYCLE: &str = "ursa.io/lifecycle";

const STARTING: &str = "starting";
const DRAINING: &str = "draining";

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its Envoy has no listeners yet: nobody may be sent there.
    Starting,
    Serving,
    /// It takes what still comes and wants nothing new.
    Draining,
}

impl Phase {
    /// The phase that a stored Dataplane is in.
    pub fn of(stored: &Resource) -> Self {
        match stored.label(LABEL) {
            Some(STARTING) => Self::Starting,
            Some(label) if label.split('.').next() == Some(DRAINING) => Self::Draining,
            _ => Self::Serving,
        }
    }

    /// The spec of a Dataplane in this phase. `given`: what its proxy brought, or in the phase Serving what is stored.
    /// `by_hand`: nobody will bring it again.
    pub fn apply(self, given: &Value, by_hand: bool) -> Value {
        let mut out = given.clone();
        for inbound in entries(&mut out, "inbound") {
            let state = inbound.get("state").and_then(Value::as_str).unwrap_or("Ready");
            let is_off = inbound.get("health").is_some_and(|h| h.get("ready") != Some(&Value::Bool(true)));
            match (self, state) {
                (Self::Starting, "Ready") if !is_off => {
                    inbound.insert("state".into(), "NotReady".into());
                }
                (Self::Draining, "Ready") if !is_off => {
                    inbound.insert("state".into(), "NotReady".into());
                    inbound.insert("health".into(), json!({"ready": false}));
                }
                // The same without this field, and told from ours.
                (Self::Draining, "NotReady") if is_off => {
                    inbound.remove("health");
                }
                _ => {}
            }
        }
        if self == Self::Draining && !by_hand {
            for listener in entries(&mut out, "listeners") {
                listener.insert("state".into(), "NotReady".into());
            }
        }
        canonical(out)
    }

    /// The label's value; `run`: the one that asked to drain.
    fn value(self, run: Option<&str>) -> Option<String> {
        match (self, run) {
            (Self::Starting, _) => Some(STARTING.to_owned()),
            (Self::Draining, Some(run)) => Some(format!("{DRAINING}.{}", short(run))),
            (Self::Draining, None) => Some(DRAINING.to_owned()),
            (Self::Serving, _) => None,
        }
    }

    /// Labels of a Dataplane in this phase; `run`: the one that asked to drain.
    pub fn label(self, mut labels: Labels, run: Option<&str>) -> Labels {
        match self.value(run) {
            Some(value) => labels.insert(LABEL.to_owned(), value),
            None => labels.remove(LABEL),
        };
        labels
    }
}

/// The spec of a Dataplane made by hand as it was before it drained.
pub fn reset(stored: &Value) -> Value {
    let mut out = stored.clone();
    for inbound in entries(&mut out, "inbound") {
        let is_off = inbound.get("health").is_some_and(|h| h.get("ready") != Some(&Value::Bool(true)));
        if is_off && inbound.get("state").and_then(Value::as_str) == Some("NotReady") {
            inbound.remove("state");
            inbound.remove("health");
        }
    }
    canonical(out)
}

/// Whether this run is the one that asked to drain.
pub fn is_drained_by(stored: &Resource, run: &str) -> bool {
    stored
        .label(LABEL)
        .is_some_and(|label| Phase::Draining.value(Some(run)).as_deref() == Some(label))
}

/// The proxy brought its Dataplane.
pub fn is_by_proxy(stored: &Resource) -> bool {
    stored.label(LIFECYCLE) == Some(BY_PROXY)
}

/// The labels that listeners and endpoints show.
pub fn shown(stored: &Resource) -> Labels {
    without(&stored.labels)
}

/// The labels without that of the phase.
pub fn without(labels: &Labels) -> Labels {
    let others = labels.iter().filter(|(key, _)| *key != LABEL);
    others.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The op that takes a stored Dataplane into a phase, with this spec.
pub fn mark(stored: &Resource, phase: Phase, run: Option<&str>, spec: Value) -> Op {
    Op::Put(Put {
        key: stored.key.clone(),
        labels: phase.label(stored.labels.clone(), run),
        spec,
        status: stored.status.clone(),
        owner: stored.owner.clone(),
        expect: Expect::Version(stored.version),
    })
}

/// The op that takes a stored Dataplane back from any phase. `given`: its spec as its proxy brought it.
pub fn serve(stored: &Resource, given: Option<&Value>) -> Op {
    let spec = match given {
        Some(given) => Phase::Serving.apply(given, false),
        None => reset(&stored.spec),
    };
    mark(stored, Phase::Serving, None, spec)
}

/// The op that notes on a stored Dataplane that it drains, as this run asked; `None`: it is noted already.
pub fn drain(stored: &Resource, run: Option<&str>) -> Option<Op> {
    let is_noted = Phase::of(stored) == Phase::Draining;
    if is_noted && run.is_none_or(|run| is_drained_by(stored, run)) {
        return None;
    }
    let spec = if is_noted {
        stored.spec.clone()
    } else {
        Phase::Draining.apply(&stored.spec, !is_by_proxy(stored))
    };
    Some(mark(stored, Phase::Draining, run, spec))
}

/// The entries of a list of `networking`.
fn entries<'a>(spec: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut serde_json::Map<String, Value>> {
    let list = spec.pointer_mut(&format!("/networking/{list}")).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

/// As the store would write it: equal content must be equal text.
fn canonical(spec: Value) -> Value {
    (Kind::Dataplane.descriptor().canonical)(spec.clone()).unwrap_or(spec)
}

/// A run's id as part of a label's value, whatever the proxy calls it.
fn short(run: &str) -> String {
    let hash = Sha256::digest(run.as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ursa_model::{
        ResourceKey, Timestamp,
        kind::dataplane::{Dataplane, InboundState},
        labels::is_label_value,
    };

    fn stored(spec: Value, labels: &[(&str, &str)]) -> Resource {
        Resource {
            key: ResourceKey::new(Kind::Dataplane, "default", "dp-1").unwrap(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            spec: canonical(spec),
            status: None,
            owner: None,
            created: Timestamp(0),
            modified: Timestamp(0),
            version: 1,
            create_revision: 1,
            mod_revision: 1,
        }
    }

    fn after(stored: &Resource, op: Op) -> Resource {
        let Op::Put(put) = op else { panic!("{op:?}") };
        Resource {
            labels: put.labels,
            spec: put.spec,
            ..stored.clone()
        }
    }

    fn parse(stored: &Resource) -> Dataplane {
        stored.spec().unwrap()
    }

    const BROUGHT: [(&str, &str); 1] = [(LIFECYCLE, BY_PROXY)];

    /// Everything that an operator may write about readiness.
    fn any_readiness() -> Value {
        let mut inbound = vec![json!({"port": 8080, "name": "http"})];
        let (states, healths) = (
            [None, Some("Ready"), Some("NotReady"), Some("Ignored")],
            [None, Some(true), Some(false)],
        );
        for (i, (state, health)) in states.iter().flat_map(|s| healths.map(|h| (s, h))).enumerate() {
            let mut one = json!({"port": 9000 + i});
            if let Some(state) = state {
                one["state"] = json!(state);
            }
            if let Some(ready) = health {
                one["health"] = json!({"ready": ready});
            }
            inbound.push(one);
        }
        json!({"networking": {"address": "127.0.2.10", "inbound": inbound,
            "listeners": [{"type": "ZoneIngress", "port": 10001}, {"type": "ZoneEgress", "port": 10002, "state": "NotReady"}]}})
    }

    fn ready(dataplane: &Dataplane) -> Vec<(bool, bool)> {
        let inbounds = dataplane.networking.inbound.iter();
        inbounds.map(|i| (i.is_ready(), i.state == InboundState::Ignored)).collect()
    }

    #[test]
    fn a_phase_is_read_as_it_was_written_and_what_an_operator_wrote_is_none() {
        let before = stored(any_readiness(), &BROUGHT);
        assert_eq!(Phase::of(&before), Phase::Serving);
        for phase in [Phase::Starting, Phase::Serving, Phase::Draining] {
            let marked = after(&before, mark(&before, phase, Some("run"), phase.apply(&before.spec, false)));
            assert_eq!(Phase::of(&marked), phase);
            assert!(marked.labels.values().all(|v| is_label_value(v)), "{:?}", marked.labels);
            assert_eq!(shown(&marked), before.labels);
            if phase != Phase::Serving {
                assert!(parse(&marked).networking.inbound.iter().all(|i| !i.is_ready()));
            }
            let again = after(&marked, serve(&marked, Some(&before.spec)));
            assert_eq!((&again.spec, &again.labels), (&before.spec, &before.labels));
        }
        let drained = parse(&after(&before, drain(&before, None).unwrap()));
        let listeners = serde_json::to_value(&drained.networking.listeners).unwrap();
        assert_eq!(
            (&listeners[0]["state"], &listeners[1]["state"]),
            (&json!("NotReady"), &json!("NotReady"))
        );
    }

    #[test]
    fn of_a_dataplane_made_by_hand_what_was_ready_is_ready_again_and_nothing_else() {
        let before = stored(any_readiness(), &[]);
        let drained = after(&before, drain(&before, None).unwrap());
        assert_eq!(Phase::of(&drained), Phase::Draining);
        assert!(parse(&drained).networking.inbound.iter().all(|i| !i.is_ready()));
        assert_eq!(drain(&drained, None), None, "asking again changes nothing");
        let again = after(&drained, serve(&drained, None));
        assert_eq!(Phase::of(&again), Phase::Serving);
        assert_eq!(ready(&parse(&again)), ready(&parse(&before)));
        assert_eq!(parse(&again).networking.listeners, parse(&before).networking.listeners);
    }

    #[test]
    fn a_drain_is_that_of_the_run_that_asked_for_it() {
        let before = stored(any_readiness(), &BROUGHT);
        let one = after(&before, drain(&before, Some("run-1")).unwrap());
        assert!(is_drained_by(&one, "run-1") && !is_drained_by(&one, "run-2"));
        assert_eq!(drain(&one, Some("run-1")), None);
        assert_eq!(drain(&one, None), None, "whoever has no name changes no name");
        let two = after(&one, drain(&one, Some("run-2")).unwrap());
        assert!(is_drained_by(&two, "run-2") && two.spec == one.spec);
        let nobody = after(&before, drain(&before, None).unwrap());
        assert!(!is_drained_by(&nobody, "run-1"));
    }
}
