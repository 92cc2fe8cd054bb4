//! Merging of configurations of rising precedence. Source: RFC 7396; Kuma, `pkg/plugins/policies/core/rules/merge`;
//! dataplane.md 5.5.
//!
//! Confs are merged as JSON. An absent field is left alone (typed confs never carry a null, so nothing is ever deleted);
//! objects merge field by field; lists replace, except those whose name starts with `append`, which are concatenated, and the
//! rules of a MeshHTTPRoute, which are one list keyed by `matches`.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use ursa_model::kind::mesh_http_route::{Match, Rule};

/// Merges `patch` into `target`: RFC 7396, and lists named `append…` are concatenated.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(key);
            continue;
        }
        let have = fields.entry(key.as_str()).or_insert(Value::Null);
        match (have, value) {
            (Value::Array(have), Value::Array(more)) if is_appended(key) => have.extend(more.iter().cloned()),
            (have, value) => merge_patch(have, value),
        }
    }
}

/// `appendModifications`, `appendMatch`, `appendProfiles`; not `appendix`.
fn is_appended(key: &str) -> bool {
    key.strip_prefix("append")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// Merges confs of rising precedence. `None` when there are none. An error means that the merge of valid confs is no valid
/// conf, which the schemas rule out.
pub fn merge_confs<'a, C>(confs: impl IntoIterator<Item = &'a C>) -> Result<Option<C>, serde_json::Error>
where
    C: Serialize + DeserializeOwned + Clone + 'a,
{
    let mut confs = confs.into_iter();
    let Some(first) = confs.next() else { return Ok(None) };
    let Some(second) = confs.next() else {
        return Ok(Some(first.clone()));
    };
    let mut merged = serde_json::to_value(first)?;
    merge_patch(&mut merged, &serde_json::to_value(second)?);
    for conf in confs {
        merge_patch(&mut merged, &serde_json::to_value(conf)?);
    }
    C::deserialize(merged).map(Some)
}

/// Merges lists of route rules of rising precedence: rules with equal `matches` become one, at the place of the most
/// important of them, their defaults merged.
///
/// Within one list the *first* rule is the most important one. So each list is reversed before, and the result after.
pub fn merge_rules<'a>(lists: impl IntoIterator<Item = &'a [Rule]>) -> Result<Vec<Rule>, serde_json::Error> {
    // In the order of precedence; rules whose matches come again move to the end with all they had.
    let mut groups: Vec<Option<(&[Match], Vec<&Rule>)>> = Vec::new();
    let mut by_matches: BTreeMap<&[Match], usize> = BTreeMap::new();
    for rule in lists.into_iter().flat_map(|list| list.iter().rev()) {
        let matches = rule.matches.as_slice();
        let before = by_matches.insert(matches, groups.len());
        let mut same = before
            .and_then(|at| groups.get_mut(at)?.take())
            .map_or_else(Vec::new, |(_, same)| same);
        same.push(rule);
        groups.push(Some((matches, same)));
    }
    groups
        .into_iter()
        .flatten()
        .rev()
        .map(|(matches, same)| {
            let default = merge_confs(same.iter().map(|r| &r.default))?.unwrap_or_default();
            Ok(Rule {
                matches: matches.to_vec(),
                default,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
