//! What each member has confirmed of its log to the group, so that one that comes back with less is not listened to.
//! In: the answers of followers, what other members tell. Out: whether a member's log is all there was.
//! Invariants: what is held against a member it has confirmed itself, in an earlier life or to this very leader, and the group has
//! committed it, so that nobody ever cut it on purpose; a follower's state never stops a leader.
//!
//! A member notes by itself what it confirmed (`raft::confirmed`), and refuses to start with less. This is for what that note missed: it
//! was lost together with the log, or with the power. A leader knows by heart what each follower has; it writes that down when it loses
//! sight of one, and tells it with every greeting.
use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Refusal;
use super::peers::Shared;
use crate::log::{EntryId, Vote};

/// What a member has confirmed for certain, in the life with this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Promise {
    pub(crate) boot: Uuid,
    pub(crate) term: u64,
    pub(crate) index: u64,
}

impl Promise {
    fn id(&self) -> EntryId {
        EntryId {
            term: self.term,
            index: self.index,
        }
    }
}

#[derive(Debug, Default)]
struct Member {
    /// What it confirmed to this node as the leader by this vote.
    acked: Option<(Vote, EntryId)>,
    promise: Option<Promise>,
    /// It was found without what it had, in this life.
    lacks: Option<(Uuid, Refusal)>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    members: Mutex<BTreeMap<u64, Member>>,
}

impl Promises {
    pub(crate) fn new(known: BTreeMap<u64, Promise>) -> Self {
        let member = |promise| Member {
            promise: Some(promise),
            ..Member::default()
        };
        let members = known.into_iter().map(|(node, promise)| (node, member(promise)));
        Self {
            members: Mutex::new(members.collect()),
        }
    }

    /// What `node` has confirmed to the leader by this vote.
    pub(crate) fn acked(&self, node: u64, vote: Vote) -> Option<EntryId> {
        let members = self.members.lock();
        members.get(&node)?.acked.filter(|(by, _)| *by == vote).map(|(_, upto)| upto)
    }

    /// `node`, in the life with `boot`, has confirmed the entries up to `upto` to the leader by this vote, which has committed so much.
    pub(crate) fn ack(&self, node: u64, boot: Uuid, vote: Vote, upto: EntryId, committed: Option<EntryId>) {
        let mut members = self.members.lock();
        let member = members.entry(node).or_default();
        match &mut member.acked {
            Some((by, known)) if *by == vote => *known = (*known).max(upto),
            acked => *acked = Some((vote, upto)),
        }
        member.settle(boot, vote, committed);
    }

    /// What is certain of `node` now that so much is committed.
    pub(crate) fn promise(&self, node: u64, boot: Uuid, vote: Vote, committed: Option<EntryId>) -> Option<Promise> {
        let mut members = self.members.lock();
        let member = members.get_mut(&node)?;
        member.settle(boot, vote, committed);
        member.promise
    }

    /// What is certain of all.
    pub(crate) fn all(&self) -> BTreeMap<u64, Promise> {
        let members = self.members.lock();
        members.iter().filter_map(|(node, member)| Some((*node, member.promise?))).collect()
    }

    /// Another member tells this of the others.
    pub(crate) fn told(&self, promises: &BTreeMap<u64, Promise>) {
        let mut members = self.members.lock();
        for (node, promise) in promises {
            let known = &mut members.entry(*node).or_default().promise;
            if known.is_none_or(|known| known.id() < promise.id()) {
                *known = Some(*promise);
            }
        }
    }

    /// `node`, in the life with `boot`, says that it lacks what it had confirmed.
    pub(crate) fn lacks(&self, node: u64, boot: Uuid, refusal: Refusal) {
        self.members.lock().entry(node).or_default().lacks = Some((boot, refusal));
    }

    /// Whether to listen to `node`, whose log ended at `end` when its life with `boot` began.
    ///
    /// # Errors
    /// [`Refusal::Shortened`].
    pub(crate) fn check(&self, node: u64, boot: Uuid, end: Option<Option<EntryId>>) -> Result<(), Refusal> {
        let members = self.members.lock();
        let Some(member) = members.get(&node) else { return Ok(()) };
        if let Some((_, refusal)) = member.lacks.as_ref().filter(|(of, _)| *of == boot) {
            return Err(refusal.clone());
        }
        match (member.promise, end) {
            // What was confirmed in this very life came after that.
            (Some(promise), Some(end)) if promise.boot != boot && end < Some(promise.id()) => Err(Refusal::Shortened {
                node,
                had: promise.index,
                has: end.map(|end| end.index),
            }),
            _ => Ok(()),
        }
    }
}

impl Member {
    fn settle(&mut self, boot: Uuid, vote: Vote, committed: Option<EntryId>) {
        let acked = self.acked.filter(|(by, _)| *by == vote).map(|(_, upto)| upto);
        if let (Some(upto), Some(committed)) = (acked, committed)
            && self.promise.is_none_or(|promise| promise.id() < upto.min(committed))
        {
            let EntryId { term, index } = upto.min(committed);
            self.promise = Some(Promise { boot, term, index });
        }
    }
}

impl Shared {
    /// Under which boot `node` is known.
    fn boot_of(&self, node: u64) -> Uuid {
        self.known.life_of(node).map(|life| life.boot).unwrap_or_default()
    }

    /// See [`Promises::ack`].
    pub(crate) fn acked(&self, node: u64, vote: Vote, upto: EntryId, committed: Option<EntryId>) {
        self.promises.ack(node, self.boot_of(node), vote, upto, committed);
    }

    /// A follower is out of sight: writes down what it has confirmed for certain.
    pub(crate) async fn lost_sight(&self, node: u64, vote: Vote, committed: Option<EntryId>) {
        let Some(promise) = self.promises.promise(node, self.boot_of(node), vote, committed) else {
            return;
        };
        if let Err(refusal) = self.known.promised(node, promise).await {
            tracing::debug!(peer = node, %refusal, "what a member has confirmed is not noted");
        }
    }

    /// A follower says that it lacks `prev`, which it had confirmed to this leader: it is not listened to any more.
    pub(crate) fn found_short(&self, node: u64, had: EntryId, prev: EntryId) -> Refusal {
        let refusal = Refusal::Shortened {
            node,
            had: had.index,
            has: prev.index.checked_sub(1),
        };
        self.promises.lacks(node, self.boot_of(node), refusal.clone());
        self.refused(node, &refusal);
        refusal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOTE: Vote = Vote {
        term: 2,
        node_id: 1,
        committed: true,
    };

    fn id(term: u64, index: u64) -> EntryId {
        EntryId { term, index }
    }

    fn boot(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn short(had: u64, has: Option<u64>) -> Result<(), Refusal> {
        Err(Refusal::Shortened { node: 3, had, has })
    }

    #[test]
    fn who_comes_back_with_less_than_the_group_has_committed_is_not_listened_to() {
        let promises = Promises::default();
        promises.ack(3, boot(1), VOTE, id(2, 9), Some(id(2, 7)));
        // In this life it began with nothing, and that was fine.
        assert_eq!(promises.check(3, boot(1), Some(None)), Ok(()));
        assert_eq!(promises.check(3, boot(2), Some(Some(id(2, 6)))), short(7, Some(6)));
        assert_eq!(promises.check(3, boot(2), Some(None)), short(7, None));
        // Beyond what is committed it may have been cut on purpose.
        assert_eq!(promises.check(3, boot(2), Some(Some(id(2, 7)))), Ok(()));
        // A program that does not say is believed as before.
        assert_eq!(promises.check(3, boot(2), None), Ok(()));
        // Committed by its own word.
        assert_eq!(promises.promise(3, boot(1), VOTE, Some(id(2, 12))).unwrap().index, 9);
        assert_eq!(promises.check(3, boot(2), Some(Some(id(2, 8)))), short(9, Some(8)));
    }

    #[test]
    fn what_another_leader_was_told_counts_once_it_is_committed() {
        let promises = Promises::default();
        promises.ack(3, boot(1), VOTE, id(2, 9), Some(id(2, 4)));
        let next = Vote { term: 3, ..VOTE };
        assert_eq!((promises.acked(3, VOTE), promises.acked(3, next)), (Some(id(2, 9)), None));
        // Cut on purpose by the next one.
        promises.ack(3, boot(1), next, id(3, 6), Some(id(3, 6)));
        assert_eq!((promises.acked(3, VOTE), promises.acked(3, next)), (None, Some(id(3, 6))));
        assert_eq!(promises.check(3, boot(2), Some(Some(id(3, 6)))), Ok(()));
        assert_eq!(promises.check(3, boot(2), Some(Some(id(2, 9)))), short(6, Some(9)));
    }

    #[test]
    fn what_others_tell_is_held_against_it_too() {
        let teller = Promises::default();
        teller.ack(3, boot(1), VOTE, id(2, 9), Some(id(2, 9)));
        let promises = Promises::default();
        promises.told(&teller.all());
        assert_eq!(promises.check(3, boot(2), Some(Some(id(2, 8)))), short(9, Some(8)));
        let older = Promise {
            boot: boot(0),
            term: 1,
            index: 3,
        };
        promises.told(&BTreeMap::from([(3, older)]));
        assert_eq!(promises.all(), teller.all());
        assert_eq!(Promises::new(teller.all()).all(), teller.all());
    }

    #[test]
    fn who_was_found_short_is_so_until_its_next_life() {
        let promises = Promises::default();
        let refusal = short(9, Some(4)).unwrap_err();
        promises.lacks(3, boot(1), refusal.clone());
        assert_eq!(promises.check(3, boot(1), None), Err(refusal));
        assert_eq!(promises.check(3, boot(2), None), Ok(()));
    }
}
