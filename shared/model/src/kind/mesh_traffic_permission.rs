//! MeshTrafficPermission: which callers a proxy's inbounds let in; and [`Match`], how policies name a caller.
//! With an identity and no permission everything is denied. Source: Kuma, `pkg/plugins/policies/meshtrafficpermission`,
//! `api/common/v1alpha1/match.go`; dataplane.md 4.

use serde::{Deserialize, Serialize};

use super::{
    Spec,
    common::{TargetKind, TargetRef, validate_len, validate_target_ref},
};
use crate::{name::is_dns1123_subdomain, validate::Violations};

/// Most rules of one policy.
const MAX_RULES: usize = 1024;
/// Most callers in one list.
pub const MAX_MATCHES: usize = 4096;
/// Longest SPIFFE ID, in bytes (SPIFFE-ID standard, 2.3).
pub const MAX_SPIFFE_ID: usize = 2048;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshTrafficPermission {
    /// Proxies whose inbounds it is about; absent means the whole mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    #[serde(default)]
    pub default: RuleConf,
}

/// Lists of callers; the items of a list are ORed. Any deny wins over every allow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleConf {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Match>,
    /// Let in, but logged as if denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_with_shadow_deny: Vec<Match>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Match>,
}

/// Names callers by what the connection proves and asks for; the fields that are set are ANDed.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Match {
    #[serde(rename = "spiffeID", default, skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeIdMatch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<SniMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpiffeIdMatch {
    #[serde(rename = "type")]
    pub kind: SpiffeIdMatchType,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SpiffeIdMatchType {
    Exact,
    /// The text starts with the value; no separator is asked for.
    Prefix,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SniMatch {
    #[serde(rename = "type")]
    pub kind: SniMatchType,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SniMatchType {
    Exact,
}

impl Match {
    /// Names nobody: neither field is set.
    pub fn is_empty(&self) -> bool {
        self.spiffe_id.is_none() && self.sni.is_none()
    }

    /// Checks the fields that are set, and that one is.
    pub fn validate(&self, at: &str, out: &mut Violations) {
        if self.is_empty() {
            out.add(at, "must specify at least one of 'spiffeID' or 'sni'");
        }
        if let Some(id) = &self.spiffe_id
            && let Err(why) = check_spiffe_id(&id.value)
        {
            out.add(format!("{at}.spiffeID.value"), format!("must be a valid Spiffe ID: {why}"));
        }
        if let Some(sni) = &self.sni {
            if sni.value.is_empty() {
                out.add(format!("{at}.sni.value"), "must be set");
            } else if !is_dns1123_subdomain(&sni.value) {
                out.add(
                    format!("{at}.sni.value"),
                    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
                );
            }
        }
    }
}

/// Checks the syntax of a SPIFFE ID (SPIFFE-ID standard, 2.1 to 2.3). Also asked of a prefix, as Kuma does: so a prefix
/// ends at a whole path segment's character and never in '/'.
pub fn check_spiffe_id(text: &str) -> Result<(), &'static str> {
    let rest = text.strip_prefix("spiffe://").ok_or("scheme is missing or invalid")?;
    if text.len() > MAX_SPIFFE_ID {
        return Err("must not be longer than 2048 bytes");
    }
    let (domain, path) = rest.split_once('/').map_or((rest, None), |(d, p)| (d, Some(p)));
    if domain.is_empty() {
        return Err("trust domain is missing");
    }
    if !domain
        .bytes()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.' | b'_'))
    {
        return Err("trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores");
    }
    let Some(path) = path else { return Ok(()) };
    for segment in path.split('/') {
        match segment {
            "" => return Err("path cannot have empty segments or a trailing slash"),
            "." | ".." => return Err("path cannot contain dot segments"),
            _ if !segment
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_')) =>
            {
                return Err("path segment characters are limited to letters, numbers, dots, dashes, and underscores");
            }
            _ => {}
        }
    }
    Ok(())
}

impl Spec for MeshTrafficPermission {
    fn validate(&self, out: &mut Violations) {
        if let Some(target) = &self.target_ref {
            validate_target_ref(
                "targetRef",
                target,
                &[TargetKind::Mesh, TargetKind::Dataplane],
                !self.rules.is_empty(),
                out,
            );
        }
        if self.rules.is_empty() {
            out.add("rules", "policy must define rules");
        }
        validate_len("rules", &self.rules, MAX_RULES, out);
        for (i, rule) in self.rules.iter().enumerate() {
            let at = format!("rules[{i}].default");
            let conf = &rule.default;
            if conf.deny.is_empty() && conf.allow.is_empty() && conf.allow_with_shadow_deny.is_empty() {
                out.add(at, "at least one of 'allow', 'allowWithShadowDeny', 'deny' has to be defined");
                continue;
            }
            for (field, list) in [
                ("allow", &conf.allow),
                ("allowWithShadowDeny", &conf.allow_with_shadow_deny),
                ("deny", &conf.deny),
            ] {
                validate_len(&format!("{at}.{field}"), list, MAX_MATCHES, out);
                for (j, caller) in list.iter().enumerate() {
                    caller.validate(&format!("{at}.{field}[{j}]"), out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Kind;

    fn fields(spec: Value) -> Vec<String> {
        (Kind::MeshTrafficPermission.descriptor().canonical)(spec)
            .unwrap_err()
            .0
            .into_iter()
            .map(|v| v.field)
            .collect()
    }

    fn allow(caller: Value) -> Value {
        json!({"rules": [{"default": {"allow": [caller]}}]})
    }

    #[test]
    fn the_demo_s_permission_is_canonical() {
        let spec = json!({
            "targetRef": {"kind": "Dataplane", "labels": {"kuma.io/workload": "backend"}},
            "rules": [{"default": {"allow": [{"spiffeID": {"type": "Exact", "value": "spiffe://default.east.mesh.local/workload/frontend"}}]}}]
        });
        assert_eq!((Kind::MeshTrafficPermission.descriptor().canonical)(spec.clone()), Ok(spec));
    }

    #[test]
    fn good_ones() {
        for caller in [
            json!({"spiffeID": {"type": "Prefix", "value": "spiffe://trust.domain"}}),
            json!({"spiffeID": {"type": "Exact", "value": "spiffe://td/ns/a-b/sa/c.d_E"}, "sni": {"type": "Exact", "value": "sni.msvc.default.west.backend.http"}}),
            json!({"sni": {"type": "Exact", "value": "a.b"}, "unknown": 1}),
        ] {
            (Kind::MeshTrafficPermission.descriptor().canonical)(allow(caller)).unwrap();
        }
        (Kind::MeshTrafficPermission.descriptor().canonical)(json!({
            "targetRef": {"kind": "Dataplane", "sectionName": "http"},
            "rules": [{"default": {"deny": [{"sni": {"type": "Exact", "value": "a"}}]}}]
        }))
        .unwrap();
    }

    #[test]
    fn bad_ones_name_their_field() {
        assert_eq!(fields(json!({})), ["rules"]);
        assert_eq!(fields(json!({"rules": []})), ["rules"]);
        assert_eq!(fields(json!({"rules": [{}]})), ["rules[0].default"]);
        assert_eq!(fields(json!({"rules": [{"default": {"allow": []}}]})), ["rules[0].default"]);
        assert_eq!(fields(allow(json!({}))), ["rules[0].default.allow[0]"]);
        assert_eq!(
            fields(allow(json!({"sni": {"type": "Exact", "value": ""}}))),
            ["rules[0].default.allow[0].sni.value"]
        );
        assert_eq!(
            fields(allow(json!({"sni": {"type": "Exact", "value": "*.a"}}))),
            ["rules[0].default.allow[0].sni.value"]
        );
        assert_eq!(
            fields(allow(json!({"sni": {"type": "Prefix", "value": "a"}}))),
            ["rules[0].default.allow[0].sni.type"]
        );
        assert_eq!(
            fields(allow(json!({"spiffeID": {"value": "spiffe://a"}}))),
            ["rules[0].default.allow[0].spiffeID"]
        );
        for bad in [
            "",
            "spiffe://",
            "spiffe:///a",
            "SPIFFE://a",
            "http://a/b",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/../b",
            "spiffe://A/b",
            "spiffe://a/b c",
            "spiffe://a:8080/b",
            "spiffe://u@a/b",
            "spiffe://a/b?c",
        ] {
            assert_eq!(
                fields(allow(json!({"spiffeID": {"type": "Exact", "value": bad}}))),
                ["rules[0].default.allow[0].spiffeID.value"],
                "{bad}"
            );
        }
        let long = format!("spiffe://a/{}", "b".repeat(MAX_SPIFFE_ID));
        assert_eq!(
            fields(allow(json!({"spiffeID": {"type": "Prefix", "value": long}}))),
            ["rules[0].default.allow[0].spiffeID.value"]
        );
        assert_eq!(
            fields(
                json!({"targetRef": {"kind": "MeshService"}, "rules": [{"default": {"deny": [{"sni": {"type": "Exact", "value": "a"}}]}}]})
            ),
            ["targetRef.kind"]
        );
        assert_eq!(
            fields(json!({"targetRef": {"kind": "Mesh", "labels": {"a": "b"}, "sectionName": "x"}, "rules": [{"default": {}}]})),
            ["targetRef.labels", "targetRef.sectionName", "rules[0].default"]
        );
        let many = vec![json!({"sni": {"type": "Exact", "value": "a"}}); MAX_MATCHES + 1];
        assert_eq!(fields(json!({"rules": [{"default": {"deny": many}}]})), ["rules[0].default.deny"]);
    }
}
