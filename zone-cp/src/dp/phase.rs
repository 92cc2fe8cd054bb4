//! What part of its life a proxy is in, as its stored Dataplane shows it. Pure.
//!
//! ```text
//! first stream of an Envoy ──> Starting ── its Envoy has its listeners ──> Serving ── told to drain ──> Draining ── stream ends ──> removed
//! ```
//! It is kept in the fields that Kuma has for it, so that stock readers understand it and no label changes (labels travel in
//! listeners and endpoints, which a change would replace): a proxy that starts has its inbounds `NotReady`; one that drains has
//! them `NotReady` with `health.ready: false`, and its zone listeners `NotReady`.
//! Invariant: what a proxy itself calls not ready stays so in every phase.

use serde_json::{Value, json};
use ursa_model::{
    Kind, Resource,
    kind::dataplane::{Dataplane, InboundState, ListenerState},
};
use ursa_state::{Expect, Op, Put};

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
    /// The phase that a stored Dataplane shows.
    pub fn of(stored: &Dataplane) -> Self {
        let net = &stored.networking;
        let told = |ready: Option<bool>| ready == Some(false);
        if net
            .inbound
            .iter()
            .any(|i| i.state == InboundState::NotReady && told(i.health.as_ref().map(|h| h.ready)))
            || net.listeners.iter().any(|l| l.state == ListenerState::NotReady)
        {
            Self::Draining
        } else if net.inbound.iter().any(|i| i.state == InboundState::NotReady) {
            Self::Starting
        } else {
            Self::Serving
        }
    }

    /// A Dataplane in this phase. `given` is the Dataplane as its proxy brought it, or one in any other phase.
    pub fn apply(self, given: &Value) -> Value {
        let mut out = given.clone();
        let lists = |out: &mut Value, name: &str, change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
            let list = out.pointer_mut(&format!("/networking/{name}")).and_then(Value::as_array_mut);
            list.into_iter().flatten().filter_map(Value::as_object_mut).for_each(change);
        };
        lists(&mut out, "inbound", &|inbound| {
            let state = inbound.get("state").and_then(Value::as_str).unwrap_or("Ready").to_owned();
            let is_off = inbound.get("health").is_some_and(|h| h.get("ready") != Some(&Value::Bool(true)));
            match self {
                Self::Starting if state == "Ready" && !is_off => {
                    inbound.insert("state".into(), "NotReady".into());
                }
                Self::Draining if state != "Ignored" => {
                    inbound.insert("state".into(), "NotReady".into());
                    inbound.insert("health".into(), json!({"ready": false}));
                }
                Self::Starting | Self::Serving | Self::Draining => {}
            }
        });
        if self == Self::Draining {
            lists(&mut out, "listeners", &|listener| {
                listener.insert("state".into(), "NotReady".into());
            });
        }
        // As the store would write it: equal content must be equal text.
        (Kind::Dataplane.descriptor().canonical)(out.clone()).unwrap_or(out)
    }

    /// A Dataplane that nobody brings with its proxy, taken back from `Starting` or `Draining`: what it was before is what it is
    /// when everything is ready.
    pub fn reset(stored: &Value) -> Value {
        let mut out = stored.clone();
        for (name, fields) in [("inbound", ["state", "health"].as_slice()), ("listeners", &["state"])] {
            let list = out.pointer_mut(&format!("/networking/{name}")).and_then(Value::as_array_mut);
            for entry in list.into_iter().flatten().filter_map(Value::as_object_mut) {
                if entry.get("state").and_then(Value::as_str) == Some("NotReady") {
                    for field in fields {
                        entry.remove(*field);
                    }
                }
            }
        }
        (Kind::Dataplane.descriptor().canonical)(out.clone()).unwrap_or(out)
    }
}

/// The op that gives a stored Dataplane another spec and leaves all else.
pub fn mark(stored: &Resource, spec: Value) -> Op {
    Op::Put(Put {
        key: stored.key.clone(),
        labels: stored.labels.clone(),
        spec,
        status: stored.status.clone(),
        owner: stored.owner.clone(),
        expect: Expect::Version(stored.version),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &Value) -> Dataplane {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn canonical(value: Value) -> Value {
        (Kind::Dataplane.descriptor().canonical)(value).unwrap()
    }

    #[test]
    fn each_phase_is_read_as_it_was_written() {
        let sidecar = canonical(json!({"networking": {"address": "127.0.2.10", "inbound": [
            {"port": 8080, "name": "http"}, {"port": 8081, "state": "Ignored"}]}}));
        let ingress = canonical(json!({"networking": {"address": "127.0.2.2", "listeners": [{"type": "ZoneIngress", "port": 10001}]}}));
        for phase in [Phase::Starting, Phase::Serving, Phase::Draining] {
            assert_eq!(Phase::of(&parse(&phase.apply(&sidecar))), phase);
        }
        assert_eq!(Phase::Serving.apply(&sidecar), sidecar);
        for phase in [Phase::Starting, Phase::Draining] {
            assert_eq!(Phase::reset(&phase.apply(&sidecar)), sidecar);
        }
        assert_eq!(
            Phase::Starting.apply(&ingress),
            ingress,
            "an ingress that starts is told by its connection"
        );
        assert_eq!(Phase::of(&parse(&Phase::Draining.apply(&ingress))), Phase::Draining);
        assert_eq!(Phase::reset(&Phase::Draining.apply(&ingress)), ingress);
        let draining = parse(&Phase::Draining.apply(&sidecar));
        assert!(!draining.networking.inbound[0].is_ready());
        assert_eq!(draining.networking.inbound[1].state, InboundState::Ignored);
    }

    #[test]
    fn what_a_proxy_calls_not_ready_stays_so() {
        let given = canonical(json!({"networking": {"address": "127.0.2.10", "inbound": [
            {"port": 8080, "health": {"ready": false}}, {"port": 8081, "state": "NotReady"}]}}));
        for phase in [Phase::Starting, Phase::Serving] {
            assert_eq!(phase.apply(&given), given);
        }
        assert!(parse(&given).networking.inbound.iter().all(|i| !i.is_ready()));
    }
}
