//! MeshTimeout: timeouts of outbound (`to`) or inbound (`rules`) traffic. Every field of a conf is optional, so that
//! merging policies sees what is absent; the defaults are applied after the merge, in `ursa-policy`.
//! Source: Kuma, `pkg/plugins/policies/meshtimeout`; dataplane.md 4.

use serde::{Deserialize, Serialize};

use super::{
    Spec,
    common::{FromItem, TargetKind, TargetRef, validate_len, validate_target_ref},
    mesh_traffic_permission::{MAX_MATCHES, Match},
};
use crate::{duration::GoDuration, validate::Violations};

/// Most items of `to` or `rules`.
const MAX_ITEMS: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshTimeout {
    /// Proxies it is about; absent means the whole mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Kuma 2's rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<FromItem<Conf>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct To {
    pub target_ref: TargetRef,
    #[serde(default)]
    pub default: Conf,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Callers it is about; absent or empty means all traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match>,
    #[serde(default)]
    pub default: Conf,
}

/// Zero switches a timeout off, except `connectionTimeout`, which may not be zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conf {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_timeout: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_idle_timeout: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_stream_duration: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_headers_timeout: Option<GoDuration>,
}

impl Conf {
    fn validate(&self, at: &str, out: &mut Violations) {
        if self.connection_timeout.is_none() && self.idle_timeout.is_none() && self.http.is_none() {
            out.add(at, "at least one timeout should be configured");
            return;
        }
        if self.connection_timeout.is_some_and(|d| d.0.is_zero()) {
            out.add(format!("{at}.connectionTimeout"), "must be greater than zero when defined");
        }
        // As in Kuma, requestHeadersTimeout alone does not count: a stock zone would refuse what we accept.
        if let Some(http) = &self.http
            && http.request_timeout.is_none()
            && http.stream_idle_timeout.is_none()
            && http.max_stream_duration.is_none()
            && http.max_connection_duration.is_none()
        {
            out.add(format!("{at}.http"), "at least one timeout in this section should be configured");
        }
    }

    /// What cannot depend on who calls: settings of a connection or of the listener.
    fn validate_for_callers(&self, at: &str, out: &mut Violations) {
        let http = self.http.clone().unwrap_or_default();
        for (field, set) in [
            ("connectionTimeout", self.connection_timeout.is_some()),
            ("idleTimeout", self.idle_timeout.is_some()),
            ("http.requestHeadersTimeout", http.request_headers_timeout.is_some()),
            ("http.maxStreamDuration", http.max_stream_duration.is_some()),
            ("http.maxConnectionDuration", http.max_connection_duration.is_some()),
        ] {
            if set {
                out.add(
                    format!("{at}.{field}"),
                    "can't be specified when matches contain spiffeID because this field cannot be conditioned on source identity",
                );
            }
        }
    }
}

impl Spec for MeshTimeout {
    fn validate(&self, out: &mut Violations) {
        if let Some(target) = &self.target_ref {
            validate_target_ref(
                "targetRef",
                target,
                &[TargetKind::Mesh, TargetKind::Dataplane],
                !self.rules.is_empty() || !self.from.is_empty(),
                out,
            );
        }
        if !self.rules.is_empty() && !self.to.is_empty() {
            out.add("", "fields 'to' must be empty when 'rules' is defined");
        }
        if self.rules.is_empty() && self.to.is_empty() && self.from.is_empty() {
            out.add("", "at least one of 'to' or 'rules' has to be defined");
        }
        validate_len("to", &self.to, MAX_ITEMS, out);
        validate_len("rules", &self.rules, MAX_ITEMS, out);
        validate_len("from", &self.from, MAX_ITEMS, out);
        for (i, from) in self.from.iter().enumerate() {
            validate_target_ref(&format!("from[{i}].targetRef"), &from.target_ref, &[TargetKind::Mesh], false, out);
            from.default.validate(&format!("from[{i}].default"), out);
        }
        for (i, to) in self.to.iter().enumerate() {
            let kinds = [
                TargetKind::Mesh,
                TargetKind::MeshService,
                TargetKind::MeshExternalService,
                TargetKind::MeshMultiZoneService,
                TargetKind::MeshHTTPRoute,
            ];
            validate_target_ref(&format!("to[{i}].targetRef"), &to.target_ref, &kinds, false, out);
            to.default.validate(&format!("to[{i}].default"), out);
        }
        for (i, rule) in self.rules.iter().enumerate() {
            let at = format!("rules[{i}]");
            validate_len(&format!("{at}.matches"), &rule.matches, MAX_MATCHES, out);
            for (j, caller) in rule.matches.iter().enumerate() {
                caller.validate(&format!("{at}.matches[{j}]"), out);
            }
            if rule.matches.iter().any(|m| m.spiffe_id.is_some()) {
                rule.default.validate_for_callers(&format!("{at}.default"), out);
            }
            rule.default.validate(&format!("{at}.default"), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::Kind;

    fn canonical(spec: Value) -> Result<Value, Vec<String>> {
        (Kind::MeshTimeout.descriptor().canonical)(spec).map_err(|v| v.0.into_iter().map(|v| v.field).collect())
    }

    #[test]
    fn absent_stays_absent_and_durations_are_go_s() {
        let spec = json!({
            "to": [{"targetRef": {"kind": "MeshHTTPRoute", "labels": {"a": "b"}}, "default": {"idleTimeout": "60m", "http": {"requestTimeout": "0s"}}}],
            "proxyTypes": ["Sidecar"]
        });
        let want = json!({
            "to": [{"targetRef": {"kind": "MeshHTTPRoute", "labels": {"a": "b"}}, "default": {"idleTimeout": "1h0m0s", "http": {"requestTimeout": "0s"}}}]
        });
        assert_eq!(canonical(spec), Ok(want));
    }

    #[test]
    fn what_kuma_2_says_of_proxy_types_is_kept() {
        let spec = json!({
            "targetRef": {"kind": "Mesh", "proxyTypes": ["Gateway"]},
            "to": [{"targetRef": {"kind": "Mesh"}, "default": {"http": {"streamIdleTimeout": "5s"}}}]
        });
        assert_eq!(canonical(spec.clone()), Ok(spec));
    }

    #[test]
    fn what_kuma_2_says_by_from_is_kept_if_it_is_about_all_traffic() {
        let conf = json!({"idleTimeout": "5m0s"});
        let of = |kind: &str| json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": conf}], "from": [{"targetRef": {"kind": kind}, "default": conf}]});
        assert_eq!(canonical(of("Mesh")), Ok(of("Mesh")));
        assert_eq!(canonical(of("MeshService")), Err(vec!["from[0].targetRef.kind".to_owned()]));
        canonical(of("MeshSubset")).unwrap_err();
        let mut alone = of("Mesh");
        alone.as_object_mut().unwrap().remove("to");
        assert_eq!(canonical(alone.clone()), Ok(alone));
    }

    #[test]
    fn good_ones() {
        for spec in [
            json!({"rules": [{"default": {"connectionTimeout": "10s", "http": {"requestHeadersTimeout": "1s", "maxStreamDuration": "0s"}}}]}),
            json!({"targetRef": {"kind": "Dataplane", "sectionName": "http"}, "rules": [
                {"matches": [{"spiffeID": {"type": "Prefix", "value": "spiffe://a"}}], "default": {"http": {"requestTimeout": "1s", "streamIdleTimeout": "2s"}}},
                {"matches": [{"sni": {"type": "Exact", "value": "a"}}], "default": {"connectionTimeout": "1s"}}
            ]}),
            json!({"to": [{"targetRef": {"kind": "MeshService", "labels": {"a": "b"}, "sectionName": "http"}, "default": {"connectionTimeout": "1ms"}}]}),
        ] {
            canonical(spec).unwrap();
        }
    }

    #[test]
    fn bad_ones_name_their_field() {
        let conf = json!({"idleTimeout": "1s"});
        let mesh = json!({"kind": "Mesh"});
        let caller = json!({"spiffeID": {"type": "Exact", "value": "spiffe://a/b"}});
        for (spec, want) in [
            (json!({}), vec![""]),
            (
                json!({"to": [{"targetRef": mesh, "default": conf}], "rules": [{"default": conf}]}),
                vec![""],
            ),
            (json!({"to": [{"targetRef": mesh}]}), vec!["to[0].default"]),
            (
                json!({"to": [{"targetRef": mesh, "default": {"http": {}}}]}),
                vec!["to[0].default.http"],
            ),
            (
                json!({"to": [{"targetRef": mesh, "default": {"http": {"requestHeadersTimeout": "1s"}}}]}),
                vec!["to[0].default.http"],
            ),
            (
                json!({"to": [{"targetRef": mesh, "default": {"connectionTimeout": "0s"}}]}),
                vec!["to[0].default.connectionTimeout"],
            ),
            (
                json!({"to": [{"targetRef": mesh, "default": {"idleTimeout": "-1s"}}]}),
                vec!["to[0].default.idleTimeout"],
            ),
            (
                json!({"to": [{"targetRef": mesh, "default": {"idleTimeout": 5}}]}),
                vec!["to[0].default.idleTimeout"],
            ),
            (json!({"to": [{"default": conf}]}), vec!["to[0]"]),
            (
                json!({"to": [{"targetRef": {"kind": "Dataplane"}, "default": conf}]}),
                vec!["to[0].targetRef.kind"],
            ),
            (
                json!({"to": [{"targetRef": {"kind": "MeshService"}, "default": conf}]}),
                vec!["to[0].targetRef.labels"],
            ),
            (
                json!({"targetRef": {"kind": "Dataplane", "sectionName": "http"}, "to": [{"targetRef": mesh, "default": conf}]}),
                vec!["targetRef.sectionName"],
            ),
            (json!({"rules": [{"matches": [{}], "default": conf}]}), vec!["rules[0].matches[0]"]),
            (
                json!({"rules": [{"matches": [caller], "default": conf}]}),
                vec!["rules[0].default.idleTimeout"],
            ),
            (
                json!({"rules": [{"matches": [caller], "default": {"connectionTimeout": "1s", "http": {
                    "requestTimeout": "1s", "maxStreamDuration": "1s", "maxConnectionDuration": "1s", "requestHeadersTimeout": "1s"}}}]}),
                vec![
                    "rules[0].default.connectionTimeout",
                    "rules[0].default.http.requestHeadersTimeout",
                    "rules[0].default.http.maxStreamDuration",
                    "rules[0].default.http.maxConnectionDuration",
                ],
            ),
        ] {
            assert_eq!(canonical(spec.clone()).unwrap_err(), want, "{spec}");
        }
    }
}
