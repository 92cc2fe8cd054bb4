//! Judges what nodes say of the group over time: who leads, in which term, of which history.
//!
//! In: what `GET /cluster` showed of each node, in the order of asking. Out: what must not have been.
//! Invariant (Raft, section 5.2): a term has one leader, whoever is asked; a node's term never goes back; there is one history.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What a node said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which one: its id.
    pub node: u64,
    /// Its term.
    pub term: u64,
    /// It says that it leads.
    pub leads: bool,
    /// Who leads, as it knows.
    pub leader: Option<u64>,
    /// It hears a majority.
    pub quorum: bool,
    /// The id of its history.
    pub history: String,
    /// Its newest revision.
    pub revision: u64,
}

impl Sighting {
    /// From the answer of `GET /cluster`. None if that lacks something, or if the node has not taken its place in the group.
    #[must_use]
    pub fn of(cluster: &Value) -> Option<Self> {
        (cluster["admitted"] == true).then_some(())?;
        Some(Self {
            node: cluster["nodeId"].as_u64()?,
            term: cluster["term"].as_u64()?,
            leads: cluster["role"].as_str()? == "leader",
            leader: cluster["leader"].as_u64(),
            quorum: cluster["quorum"].as_bool()?,
            history: cluster["history"].as_str()?.to_owned(),
            revision: cluster["revision"].as_u64()?,
        })
    }
}

/// What is wrong with them.
#[must_use]
pub fn wrong(seen: &[Sighting]) -> Vec<String> {
    let mut found = Vec::new();
    let mut leaders: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut terms: BTreeMap<u64, u64> = BTreeMap::new();
    let mut histories = BTreeSet::new();
    for one in seen {
        let of_term = leaders.entry(one.term).or_default();
        of_term.extend(one.leads.then_some(one.node));
        of_term.extend(one.leader);
        let before = terms.entry(one.node).or_default();
        if one.term < *before {
            found.push(format!("node {} went back from term {before} to {}", one.node, one.term));
        }
        *before = one.term.max(*before);
        histories.insert(one.history.as_str());
    }
    let many = leaders.iter().filter(|(_, nodes)| nodes.len() > 1);
    found.extend(many.map(|(term, nodes)| format!("term {term} has the leaders {nodes:?}")));
    if histories.len() > 1 {
        found.push(format!("there are {} histories: {histories:?}", histories.len()));
    }
    found
}

/// How many terms had a leader.
#[must_use]
pub fn reigns(seen: &[Sighting]) -> usize {
    seen.iter()
        .filter(|one| one.leads || one.leader.is_some())
        .map(|one| one.term)
        .collect::<BTreeSet<_>>()
        .len()
}

/// Why these do not agree on who leads. Each is the last word of a node that answers.
#[must_use]
pub fn disagreement(last: &[Sighting]) -> Option<String> {
    let Some(first) = last.first() else {
        return Some("nobody answers".to_owned());
    };
    let agree = last
        .iter()
        .all(|one| one.quorum && one.leader.is_some() && (one.leader, one.term) == (first.leader, first.term));
    (!agree).then(|| {
        let said = last.iter().map(|one| {
            let leader = one.leader.map_or("nobody".to_owned(), |id| format!("node {id}"));
            let heard = if one.quorum { "a majority" } else { "no majority" };
            format!("node {} says that {leader} leads in term {} and hears {heard}", one.node, one.term)
        });
        said.collect::<Vec<_>>().join("; ")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(node: u64, term: u64, leader: Option<u64>) -> Sighting {
        Sighting {
            node,
            term,
            leads: leader == Some(node),
            leader,
            quorum: true,
            history: "h".into(),
            revision: 1,
        }
    }

    #[test]
    fn one_leader_per_term_and_no_way_back() {
        let good = [
            seen(1, 1, Some(1)),
            seen(2, 1, Some(1)),
            seen(2, 2, None),
            seen(2, 2, Some(2)),
            seen(1, 2, Some(2)),
        ];
        assert_eq!(wrong(&good), Vec::<String>::new());
        assert_eq!(reigns(&good), 2);
        assert_eq!(
            wrong(&[seen(1, 1, Some(1)), seen(2, 1, Some(2))]),
            ["term 1 has the leaders {1, 2}"]
        );
        assert_eq!(
            wrong(&[seen(3, 1, Some(1)), seen(2, 1, Some(2))]),
            ["term 1 has the leaders {1, 2}"]
        );
        assert_eq!(wrong(&[seen(1, 3, None), seen(1, 2, None)]), ["node 1 went back from term 3 to 2"]);
        let other = Sighting {
            history: "other".into(),
            ..seen(2, 1, None)
        };
        assert_eq!(wrong(&[seen(1, 1, None), other]).len(), 1);
    }

    #[test]
    fn at_the_end_all_agree() {
        assert_eq!(disagreement(&[seen(1, 2, Some(2)), seen(2, 2, Some(2))]), None);
        assert!(disagreement(&[]).is_some());
        assert!(disagreement(&[seen(1, 2, None)]).is_some());
        assert!(disagreement(&[seen(1, 2, Some(2)), seen(2, 3, Some(2))]).is_some());
        let alone = Sighting {
            quorum: false,
            ..seen(1, 2, Some(1))
        };
        assert!(disagreement(&[alone]).unwrap().contains("hears no majority"));
    }

    #[test]
    fn it_is_read_from_the_answer() {
        let mut answer = json!({"nodeId": 2, "term": 7, "role": "leader", "leader": 2, "quorum": true, "history": "h",
            "revision": 9, "admitted": true});
        let read = Sighting::of(&answer).unwrap();
        assert_eq!((read.node, read.term, read.leads, read.revision), (2, 7, true, 9));
        let before = std::mem::replace(&mut answer["admitted"], json!(false));
        assert_eq!(Sighting::of(&answer), None);
        (answer["admitted"], answer["role"]) = (before, Value::Null);
        assert_eq!(Sighting::of(&answer), None);
    }
}
