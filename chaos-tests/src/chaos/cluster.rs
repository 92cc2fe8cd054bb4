//! What a scenario asks of the nodes of the global: who leads, who holds which zone's stream.
//!
//! In: a demo. Out: facts of this moment. Invariant: read only, and asked of nodes that are up.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::client::Api;
use crate::demo::topology::Global;
use crate::demo::{Demo, SOON, START};
use crate::harness::{POLL, Poll, wait_through, wait_until};

/// A node that does not answer its diagnostics port in this time is not asked further.
const LOOK: Duration = Duration::from_secs(2);

/// The node that leads. Waits until there is one.
///
/// # Errors
/// If there is none in time.
pub async fn leader(demo: &Demo) -> anyhow::Result<Global> {
    leader_without(demo, None).await
}

/// The node that leads, as all nodes but this one say: of two answers the one of the higher term. Waits until there is one.
///
/// # Errors
/// If there is none in time.
pub async fn leader_without(demo: &Demo, left_out: Option<u64>) -> anyhow::Result<Global> {
    let globals = &demo.topology.globals;
    if let [only] = globals.as_slice() {
        return Ok(only.clone());
    }
    let (leader, _) = wait_until("a leader", SOON, POLL, async || {
        let mut best: Option<Standing> = None;
        for global in globals.iter().filter(|g| Some(g.id) != left_out) {
            best = best.max(standing(demo, global).await.ok());
        }
        Ok(match best.and_then(|b| b.leader) {
            Some(id) => Poll::Ready(id),
            None => Poll::NotYet("no node names one".into()),
        })
    })
    .await?;
    globals
        .iter()
        .find(|g| g.id == leader)
        .cloned()
        .context("a leader that is no node of ours")
}

/// The ids of all nodes.
#[must_use]
pub fn ids(demo: &Demo) -> Vec<u64> {
    demo.topology.globals.iter().map(|g| g.id).collect()
}

/// Waits until every node answers a linearizable read and all name the same leader in the same term. Returns what they say.
///
/// # Errors
/// If they do not in time.
pub async fn whole(demo: &Demo) -> anyhow::Result<Standing> {
    let (nodes, globals) = (demo.nodes()?, &demo.topology.globals);
    let (seen, _) = wait_through("all nodes agree on the leader and read", START, POLL, async || {
        let mut seen = Vec::new();
        for (node, global) in nodes.iter().zip(globals) {
            let read = node.fork().with_deadline(LOOK).get("/meshes/default").await;
            let standing = standing(demo, global).await?;
            read.with_context(|| format!("{}: {standing:?}", global.name()))?
                .success()
                .with_context(|| format!("{}: {standing:?}", global.name()))?;
            seen.push(standing);
        }
        let first = seen.first().copied().context("no node")?;
        let agreed = seen
            .iter()
            .all(|s| s.leader.is_some() && s.quorum && (s.leader, s.term) == (first.leader, first.term));
        Ok(Poll::when(agreed, first, || format!("{seen:?}")))
    })
    .await?;
    Ok(seen)
}

/// What a node knows of the group: a higher term is a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// The term that it is in.
    pub term: u64,
    /// Who leads.
    pub leader: Option<u64>,
    /// It hears a majority, and the leader too.
    pub quorum: bool,
}

/// Asks a node's diagnostics port, which answers without a majority too.
///
/// # Errors
/// If it does not answer as expected.
pub async fn standing(demo: &Demo, node: &Global) -> anyhow::Result<Standing> {
    let seen = demo.diagnostics(node.ip).with_deadline(LOOK).get_json("/cluster").await?;
    standing_in(&seen).with_context(|| format!("/cluster of {} answers {seen}", node.name()))
}

fn standing_in(seen: &Value) -> Option<Standing> {
    Some(Standing {
        term: seen["term"].as_u64()?,
        leader: seen["leader"].as_u64(),
        quorum: seen["quorum"].as_bool()?,
    })
}

/// A zone's open stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Its id: a new one for each connection.
    pub id: String,
    /// The instance of the node at which it ends.
    pub instance: String,
}

/// The open streams of all zones, as this node knows them.
///
/// # Errors
/// If it does not answer.
pub async fn streams(node: &Api) -> anyhow::Result<BTreeMap<String, Stream>> {
    Ok(streams_in(&node.get_json("/zones/_overview").await?))
}

fn streams_in(overview: &Value) -> BTreeMap<String, Stream> {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut open = BTreeMap::new();
    for zone in list(&overview["items"]) {
        for subscription in list(&zone["zoneInsight"]["subscriptions"]) {
            if subscription["disconnectTime"].is_null() {
                let stream = Stream {
                    id: text(&subscription["id"]),
                    instance: text(&subscription["globalInstanceId"]),
                };
                open.insert(text(&zone["name"]), stream);
            }
        }
    }
    open
}

/// The revision that each online zone reports, as this node knows it.
///
/// # Errors
/// If it does not answer.
pub async fn zone_revisions(node: &Api) -> anyhow::Result<BTreeMap<String, u64>> {
    Ok(revisions_in(&node.get_json("/zones/_overview").await?))
}

fn revisions_in(overview: &Value) -> BTreeMap<String, u64> {
    let number = |v: &Value| v.as_u64().or_else(|| v.as_str()?.parse().ok());
    let items = overview["items"].as_array();
    items
        .into_iter()
        .flatten()
        .filter_map(|zone| {
            Some((
                zone["name"].as_str()?.to_owned(),
                number(&zone["zoneInsight"]["ursaProgress"]["stored"])?,
            ))
        })
        .collect()
}

/// The instance id of a node: another one after each start.
///
/// # Errors
/// If it does not answer.
pub async fn instance(node: &Api) -> anyhow::Result<String> {
    let index = node.get_json("/").await?;
    Ok(index["instanceId"].as_str().context("no instanceId at /")?.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_later_term_is_believed() {
        let seen = |term: u64, leader: Value| standing_in(&json!({"term": term, "leader": leader, "quorum": true})).unwrap();
        assert_eq!(seen(3, json!(1)).max(seen(4, json!(2))).leader, Some(2));
        assert_eq!(seen(4, Value::Null).max(seen(4, json!(2))).leader, Some(2));
        assert!(standing_in(&json!({"term": 1})).is_none());
    }

    #[test]
    fn a_zone_reports_what_it_has_stored() {
        let overview =
            json!({"items": [{"name": "east", "zoneInsight": {"ursaProgress": {"stored": "752", "sent": "753"}}}, {"name": "west"}]});
        assert_eq!(revisions_in(&overview), BTreeMap::from([("east".to_owned(), 752)]));
    }

    #[test]
    fn only_open_streams_count() {
        let overview = json!({"items": [
            {"name": "east", "zoneInsight": {"subscriptions": [{"id": "1", "globalInstanceId": "a", "disconnectTime": "x"}, {"id": "2", "globalInstanceId": "b"}]}},
            {"name": "west", "zoneInsight": {"subscriptions": [{"id": "3", "globalInstanceId": "a", "disconnectTime": "x"}]}}]});
        let open = streams_in(&overview);
        assert_eq!(open.len(), 1);
        assert_eq!((open["east"].id.as_str(), open["east"].instance.as_str()), ("2", "b"));
    }
}
