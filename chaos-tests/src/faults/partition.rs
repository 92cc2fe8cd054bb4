//! Fault `partition`: of every two nodes each may be unable to reach the other, in one direction or in both.
//!
//! In: nodes. Out: every set of cut directions: 64 for three nodes. Invariant: a direction that is cut loses requests and answers alike.
//! Source: issue text, "all 64 directed partitions of three nodes". Not here: the links that are cut ([`crate::chaos::links`]).
use std::collections::BTreeSet;
use std::fmt;

/// Who cannot send to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition(BTreeSet<(u64, u64)>);

impl Partition {
    /// Every one of these nodes, the whole network among them.
    #[must_use]
    pub fn all(nodes: &[u64]) -> Vec<Self> {
        let ways: Vec<(u64, u64)> = nodes
            .iter()
            .flat_map(|from| nodes.iter().map(|to| (*from, *to)))
            .filter(|(from, to)| from != to)
            .collect();
        let chosen = |set: u64| {
            ways.iter()
                .enumerate()
                .filter(move |(at, _)| set >> at & 1 == 1)
                .map(|(_, way)| *way)
        };
        (0..1_u64 << ways.len()).map(|set| Self(chosen(set).collect())).collect()
    }

    /// What this node sends to the others does not arrive (`sent`), nor does what they send to it (`heard`).
    #[must_use]
    pub fn of_one(node: u64, nodes: &[u64], sent: bool, heard: bool) -> Self {
        let others = || nodes.iter().copied().filter(|other| *other != node);
        let from = others().filter(|_| sent).map(|other| (node, other));
        let to = others().filter(|_| heard).map(|other| (other, node));
        Self(from.chain(to).collect())
    }

    /// What `from` sends does not reach `to`.
    #[must_use]
    pub fn cuts(&self, from: u64, to: u64) -> bool {
        self.0.contains(&(from, to))
    }

    /// Nothing between these two is cut.
    #[must_use]
    pub fn joined(&self, a: u64, b: u64) -> bool {
        !self.cuts(a, b) && !self.cuts(b, a)
    }

    /// This node is joined to so many others that they are a majority with it.
    #[must_use]
    pub fn has_majority(&self, node: u64, nodes: &[u64]) -> bool {
        let with = nodes.iter().filter(|other| **other == node || self.joined(node, **other)).count();
        with > nodes.len() / 2
    }

    /// Some node has a majority.
    #[must_use]
    pub fn leaves_a_majority(&self, nodes: &[u64]) -> bool {
        nodes.iter().any(|node| self.has_majority(*node, nodes))
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "nothing is cut");
        }
        let ways: Vec<String> = self.0.iter().map(|(from, to)| format!("{from}->{to}")).collect();
        write!(f, "cut {}", ways.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [u64; 3] = [1, 2, 3];

    #[test]
    fn three_nodes_have_64_and_37_of_them_leave_two_that_are_joined() {
        let all = Partition::all(&NODES);
        assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (64, 64));
        // A pair is whole in 1 of 4 cases: 1 - (3/4)^3 of 64.
        assert_eq!(all.iter().filter(|p| p.leaves_a_majority(&NODES)).count(), 37);
    }

    #[test]
    fn a_node_that_hears_nothing_has_no_majority_and_the_others_have() {
        let deaf = Partition::of_one(2, &NODES, false, true);
        assert_eq!(deaf.to_string(), "cut 1->2 3->2");
        assert!(!deaf.has_majority(2, &NODES) && deaf.has_majority(1, &NODES));
        assert!(deaf.cuts(1, 2) && !deaf.cuts(2, 1) && !deaf.joined(1, 2));
        let alone = Partition::of_one(2, &NODES, true, true);
        assert_eq!(alone.to_string(), "cut 1->2 2->1 2->3 3->2");
        assert_eq!(Partition::default().to_string(), "nothing is cut");
    }
}
