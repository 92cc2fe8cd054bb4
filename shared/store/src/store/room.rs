//! Whether a write can be stored by a majority, and by whose lead, while disks take nothing.
//! In: whose disk takes nothing, who answers. Out: a verdict. Invariant: with all disks well nothing here says anything.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use ursa_runtime::lease::{self, Deadline};

use super::Store;
use crate::raft::members::picture;

/// Who was heard within this time answers. Long against a heartbeat, and against the pause of a busy machine.
const HEARD: Duration = Duration::from_secs(2);

/// Where a write can be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Enough,
    /// A majority can, but this node is not among it: one of these should lead.
    Elsewhere(BTreeSet<u64>),
    /// Whose disks are in the way, and why.
    Nowhere(String),
    /// It depends on voters that have had no time to answer since this node leads.
    NotKnown(Deadline),
}

/// The verdict for a leader. Pure.
fn judge(me: u64, full: &BTreeMap<u64, String>, voters: &BTreeSet<u64>, answering: &BTreeSet<u64>) -> Room {
    let well: BTreeSet<u64> = voters
        .iter()
        .copied()
        .filter(|id| !full.contains_key(id) && (*id == me || answering.contains(id)))
        .collect();
    let in_the_way: Vec<String> = full
        .iter()
        .filter(|(id, _)| voters.contains(id))
        .map(|(id, reason)| format!("node {id}, {reason}"))
        .collect();
    match (well.len() * 2 > voters.len(), full.contains_key(&me)) {
        (true, false) => Room::Enough,
        (true, true) => Room::Elsewhere(well),
        (false, _) if in_the_way.is_empty() => Room::Enough, // what is wrong is something else
        (false, _) => Room::Nowhere(in_the_way.join("; ")),
    }
}

impl Store {
    /// Why the disk of this node takes nothing at the moment, if so.
    pub fn refusing(&self) -> Option<String> {
        let refused = self.inner.refused.borrow().clone();
        refused.map(|refused| format!("{}: {}", self.inner.config.data_dir.display(), refused.reason))
    }

    /// Whether what is proposed to this node, if it leads, can be stored.
    pub(crate) fn room(&self) -> Room {
        let Some(peers) = &self.inner.peers else {
            return self.refusing().map_or(Room::Enough, Room::Nowhere);
        };
        let disks = &peers.shared.disks;
        if disks.are_well() || !self.is_leader() {
            return Room::Enough;
        }
        let me = peers.node_id();
        let mut full = disks.others().borrow().clone();
        full.extend(disks.own().map(|own| (me, own)));
        let mut picture = picture(&self.inner.raft, HEARD);
        let room = judge(me, &full, &picture.voters, &picture.answering);
        let until = self.all_had_time();
        if !matches!(room, Room::Nowhere(_)) || until.has_passed() {
            return room;
        }
        picture.answering.append(&mut picture.unheard);
        match judge(me, &full, &picture.voters, &picture.answering) {
            Room::Nowhere(_) => room,
            _ => Room::NotKnown(until),
        }
    }

    /// As [`Store::room`], once it is known.
    pub(crate) async fn room_known(&self) -> Room {
        let mut metrics = self.inner.raft.metrics();
        loop {
            let room = self.room();
            let Room::NotKnown(until) = room else { return room };
            if let Ok(Err(_)) = lease::within(until.remaining(), metrics.changed()).await {
                // The core has ended, and will say so itself.
                return Room::Enough;
            }
        }
    }

    /// When all followers have had the time to answer this leader, from when it was first asked in its term.
    fn all_had_time(&self) -> Deadline {
        let term = self.inner.raft.as_leader().map(|leader| leader.term()).unwrap_or_default();
        let mut known = self.inner.all_had_time.lock();
        match &*known {
            Some((of, until)) if *of == term => *until,
            _ => {
                let until = Deadline::after(HEARD);
                *known = Some((term, until));
                until
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(ids: &[u64]) -> BTreeMap<u64, String> {
        ids.iter().map(|id| (*id, "/data: full".to_owned())).collect()
    }

    fn verdict(me: u64, full_ones: &[u64], answering: &[u64]) -> Room {
        judge(
            me,
            &full(full_ones),
            &BTreeSet::from([1, 2, 3]),
            &answering.iter().copied().collect(),
        )
    }

    #[test]
    fn a_majority_of_good_disks_is_enough() {
        assert_eq!(verdict(1, &[], &[1, 2, 3]), Room::Enough);
        assert_eq!(verdict(1, &[2], &[1, 2, 3]), Room::Enough);
        assert_eq!(verdict(1, &[1], &[1, 2, 3]), Room::Elsewhere(BTreeSet::from([2, 3])));
    }

    #[test]
    fn without_a_majority_of_good_disks_that_answer_nothing_is_taken() {
        for (me, full, answering) in [
            (1, &[1, 2][..], &[1, 2, 3][..]),
            (3, &[1, 2], &[1, 2, 3]),
            (1, &[2], &[1, 2]),
            (1, &[1], &[1, 2]),
        ] {
            let Room::Nowhere(reason) = verdict(me, full, answering) else {
                panic!("{me} {full:?} {answering:?}");
            };
            assert!(
                full.iter().all(|id| reason.contains(&format!("node {id}, /data: full"))),
                "{reason}"
            );
        }
    }

    #[test]
    fn a_majority_that_is_away_is_no_matter_of_disks() {
        assert_eq!(verdict(1, &[], &[1]), Room::Enough);
        assert_eq!(verdict(1, &[4], &[1]), Room::Enough, "a learner's disk");
    }

    #[test]
    fn a_group_of_one() {
        let alone = BTreeSet::from([1]);
        assert_eq!(judge(1, &full(&[]), &alone, &alone), Room::Enough);
        assert!(matches!(judge(1, &full(&[1]), &alone, &alone), Room::Nowhere(_)));
    }
}
