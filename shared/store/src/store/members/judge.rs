//! What may be done to a group. Pure.
//! In: a picture of the group as its leader sees it, and what is asked for. Out: the change of its list, or the objection.
//! Invariant: of the voters after a change, a majority answers the leader.
use std::collections::{BTreeMap, BTreeSet};

use super::Objection;
use crate::raft::members::Picture;

/// How many of so many make a majority.
fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Whether these may be the voters.
///
/// # Errors
/// [`Objection::LosesQuorum`].
pub(super) fn may_vote(picture: &Picture, voters: &BTreeSet<u64>) -> Result<(), Objection> {
    let answering: Vec<u64> = voters.intersection(&picture.answering).copied().collect();
    let needed = majority(voters.len());
    if answering.len() >= needed {
        return Ok(());
    }
    let voters = voters.iter().copied().collect();
    Err(Objection::LosesQuorum { voters, answering, needed })
}

/// Whether a member, or one that is to be, may have this address.
///
/// # Errors
/// [`Objection::NoAddress`], [`Objection::AddressTaken`].
pub(super) fn may_live_at(addresses: &BTreeMap<u64, String>, node: u64, address: &str) -> Result<(), Objection> {
    if !crate::store::is_address(address) {
        let address = address.to_owned();
        return Err(Objection::NoAddress { address });
    }
    match addresses.iter().find(|(id, at)| **id != node && at.as_str() == address) {
        None => Ok(()),
        Some((node, address)) => Err(Objection::AddressTaken {
            address: address.clone(),
            node: *node,
        }),
    }
}

/// The voters once `node` is one, maybe in place of another.
///
/// # Errors
/// One of them is not what it must be; too few of them answer.
pub(super) fn with_voter(picture: &Picture, node: u64, instead_of: Option<u64>) -> Result<BTreeSet<u64>, Objection> {
    if !picture.nodes.contains_key(&node) {
        return Err(Objection::NoMember { node });
    }
    let mut voters = picture.voters.clone();
    voters.insert(node);
    if let Some(old) = instead_of.filter(|old| *old != node) {
        if !picture.nodes.contains_key(&old) {
            return Err(Objection::NoMember { node: old });
        }
        voters.remove(&old);
    }
    may_vote(picture, &voters)?;
    Ok(voters)
}

/// The voters once `node` has left.
///
/// # Errors
/// As [`with_voter`]; it is the only one.
pub(super) fn without(picture: &Picture, node: u64) -> Result<BTreeSet<u64>, Objection> {
    if !picture.nodes.contains_key(&node) {
        return Err(Objection::NoMember { node });
    }
    let mut voters = picture.voters.clone();
    if voters.remove(&node) {
        if voters.is_empty() {
            return Err(Objection::LastVoter { node });
        }
        may_vote(picture, &voters)?;
    }
    Ok(voters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(voters: &[u64], learners: &[u64], answering: &[u64]) -> Picture {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let nodes = voters.iter().chain(learners).map(|id| (*id, format!("n{id}:1")));
        Picture {
            nodes: nodes.collect(),
            voters: set(voters),
            answering: set(answering),
            ..Picture::default()
        }
    }

    fn loses(result: Result<BTreeSet<u64>, Objection>) -> bool {
        matches!(result, Err(Objection::LosesQuorum { .. }))
    }

    #[test]
    fn no_step_takes_the_majority_away() {
        let all = picture(&[1, 2, 3], &[4], &[1, 2, 3, 4]);
        assert_eq!(without(&all, 3).unwrap(), BTreeSet::from([1, 2]));
        assert_eq!(with_voter(&all, 4, None).unwrap(), BTreeSet::from([1, 2, 3, 4]));
        assert_eq!(with_voter(&all, 4, Some(3)).unwrap(), BTreeSet::from([1, 2, 4]));
        // Three is dead.
        let one_dead = picture(&[1, 2, 3], &[4], &[1, 2, 4]);
        assert!(loses(without(&one_dead, 2)), "two would be left, of which one answers");
        assert!(without(&one_dead, 3).is_ok() && without(&one_dead, 4).is_ok());
        assert!(with_voter(&one_dead, 4, None).is_ok() && with_voter(&one_dead, 4, Some(3)).is_ok());
        assert!(loses(
            with_voter(&one_dead, 4, Some(2)).and_then(|voters| without(&picture(&[1, 3, 4], &[], &[1, 4]), 4).map(|_| voters))
        ));
        let text = without(&one_dead, 2).unwrap_err().to_string();
        assert!(
            text.contains("[1, 3]") && text.contains("only [1]") && text.contains("bring a voter back"),
            "{text}"
        );
        // A new voter that does not answer.
        assert!(loses(with_voter(&picture(&[1], &[2], &[1]), 2, None)));
        assert_eq!(without(&picture(&[1], &[2], &[1, 2]), 1), Err(Objection::LastVoter { node: 1 }));
        for result in [without(&all, 9), with_voter(&all, 9, None), with_voter(&all, 4, Some(9))] {
            assert_eq!(result, Err(Objection::NoMember { node: 9 }));
        }
    }

    #[test]
    fn an_address_belongs_to_one() {
        let all = picture(&[1, 2], &[], &[]);
        assert_eq!(may_live_at(&all.nodes, 2, "n2:1"), Ok(()));
        assert!(matches!(
            may_live_at(&all.nodes, 3, "n2:1"),
            Err(Objection::AddressTaken { node: 2, .. })
        ));
        assert!(matches!(may_live_at(&all.nodes, 3, "n3"), Err(Objection::NoAddress { .. })));
    }
}
