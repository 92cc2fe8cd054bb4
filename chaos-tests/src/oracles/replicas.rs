//! Judges whether all nodes hold the same at the same revision.
//!
//! In: a [`Copy`] of each node, read through its REST API. Out: the differences.
//! Invariant: copies are compared only at equal revisions, and a copy counts only if all of its answers carry the same one. Kinds that
//! are merely observed are left out: they are no part of the replicated state.
use std::collections::BTreeMap;

use anyhow::Context as _;
use serde_json::Value;

use crate::client::Api;

/// Resources per page.
const PAGE: usize = 500;
/// Kinds of the observed tier at the global: their name is this, or ends so.
const OBSERVED: [&str; 2] = ["Insight", "Dataplane"];

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The revision of all of it.
    pub revision: u64,
    /// By kind, mesh and name.
    pub resources: BTreeMap<String, Value>,
}

/// Reads a node's copy. None if something was written while it was read.
///
/// # Errors
/// If the node does not answer as expected.
pub async fn copy(api: &Api) -> anyhow::Result<Option<Copy>> {
    let kinds = api.get_json("/_resources").await?;
    let kinds = kinds["resources"].as_array().context("no list of kinds")?;
    let mut copy: Option<Copy> = None;
    for kind in kinds {
        let (name, path) = (text(&kind["name"]), text(&kind["path"]));
        if OBSERVED.iter().any(|observed| name.ends_with(observed)) {
            continue;
        }
        let mut offset = 0;
        loop {
            let answer = api.get(&format!("/{path}?size={PAGE}&offset={offset}")).await?.success()?;
            let revision = answer.revision().context("an answer without a revision")?;
            let seen = copy.get_or_insert_with(|| Copy {
                revision,
                resources: BTreeMap::new(),
            });
            if seen.revision != revision {
                return Ok(None);
            }
            let page: Value = answer.json()?;
            for item in page["items"].as_array().into_iter().flatten() {
                let key = format!("{name} {}/{}", text(&item["mesh"]), text(&item["name"]));
                seen.resources.insert(key, item.clone());
            }
            if page["next"].is_null() {
                break;
            }
            offset += PAGE;
        }
    }
    Ok(Some(copy.context("no kind at all")?))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether all copies are of one revision.
#[must_use]
pub fn comparable(copies: &[(String, Copy)]) -> bool {
    copies.windows(2).all(|pair| pair[0].1.revision == pair[1].1.revision)
}

/// In what they differ from the first.
#[must_use]
pub fn differences(copies: &[(String, Copy)]) -> Vec<String> {
    let Some(((first, one), others)) = copies.split_first() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (name, other) in others {
        for key in one
            .resources
            .keys()
            .chain(other.resources.keys().filter(|k| !one.resources.contains_key(*k)))
        {
            match (one.resources.get(key), other.resources.get(key)) {
                (a, b) if a == b => {}
                (Some(a), Some(b)) => found.push(format!("{key} is {a} at {first}, {b} at {name}")),
                (Some(_), None) => found.push(format!("{key} is at {first}, not at {name}")),
                (None, _) => found.push(format!("{key} is at {name}, not at {first}")),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, revision: u64, resources: &[(&str, u64)]) -> (String, Copy) {
        let resources = resources.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        (name.to_owned(), Copy { revision, resources })
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let same = [node("a", 7, &[("x", 1), ("y", 2)]), node("b", 7, &[("x", 1), ("y", 2)])];
        assert!(comparable(&same) && differences(&same).is_empty());
        assert!(!comparable(&[node("a", 7, &[]), node("b", 8, &[])]));
        let other = [
            node("a", 7, &[("x", 1), ("y", 2)]),
            same[1].clone(),
            node("c", 7, &[("x", 3), ("z", 2)]),
        ];
        assert_eq!(
            differences(&other),
            ["x is 1 at a, 3 at c", "y is at a, not at c", "z is at c, not at a"]
        );
    }
}
