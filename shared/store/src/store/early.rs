//! Deciding a write at the leader before anybody was asked whether it still leads.
//!
//! A write is decided on a picture: which version it replaces, whether its mesh exists, whether its token counts. That picture must hold
//! everything that was acknowledged before the write was asked for, which a read barrier shows at the price of one round to a majority.
//! The leader can do without: its commit shows the same afterwards. For if an entry of term T is committed, a majority took it in after the
//! picture was taken, so nobody had been elected in a later term by then, and all that had been acknowledged was acknowledged by the leader
//! of T or before it. The leader of T holds the first in its view before it answers, and the second once it has applied an entry of T.
//!
//! Invariants: what was decided on such a picture is committed in its term or not by this call; an answer that is not a commit (a refusal,
//! "not found") has to be decided again after a barrier.
use ursa_runtime::lease::Deadline;
use ursa_state::{Applied, Changeset, Command, View};

use super::Store;
use super::submit::replaced;
use crate::error::Error;
use crate::net::wire::Proposed;

/// Why a set that was decided early was not, or not certainly, committed.
#[derive(Debug)]
pub enum NotEarly {
    /// This node does not lead in that term any more, and nothing was changed: decide again, after a barrier.
    Deposed,
    /// It may have been taken in, and may yet be committed by another leader: as [`Error::Unknown`], but sending it again is worth a try.
    Doubt(String),
    /// As [`Store::propose`] would have failed.
    Failed(Error),
}

impl Store {
    /// If this node leads, as far as it knows, and has applied all that its predecessors committed: its term, and its view. The view
    /// holds everything that was acknowledged before this call if [`Store::propose_in`] succeeds with that term.
    pub fn lead(&self) -> Option<(u64, View)> {
        let term = self.inner.raft.as_leader().ok()?.term();
        let applied = *self.inner.applied.borrow();
        (applied?.term == term).then(|| (term, self.view()))
    }

    /// As [`Store::propose`], if this node leads in `term`. The set should have a request id, by which it can be sent again.
    ///
    /// # Errors
    /// See [`NotEarly`].
    pub async fn propose_in(&self, term: u64, set: Changeset) -> Result<Applied, NotEarly> {
        let proposal = self.proposal(&Command::Change(set)).map_err(NotEarly::Failed)?;
        let deadline = Deadline::after(self.inner.config.propose_timeout);
        let here = self.submit_here(proposal, deadline, Some(term));
        let proposed = match self.inner.peers.clone() {
            None => here.await,
            Some(peers) => {
                let mut leads = peers.leader();
                leads.mark_unchanged();
                tokio::select! {
                    biased;
                    proposed = here => proposed,
                    // Waiting on for what a deposed leader took in could take until the deadline.
                    () = replaced(&mut leads, peers.node_id()) => return Err(NotEarly::Doubt("the leader changed".to_owned())),
                }
            }
        };
        match proposed {
            Ok(Proposed::Done { applied, .. }) => match applied.rejected {
                Some((op, reason)) => Err(NotEarly::Failed(Error::Rejected {
                    op,
                    reason,
                    revision: applied.revision,
                })),
                None => Ok(applied),
            },
            Ok(Proposed::NotLeader { .. }) => Err(NotEarly::Deposed),
            // Who has waited that long waits no longer.
            Ok(Proposed::Unknown { reason }) if deadline.has_passed() => Err(NotEarly::Failed(Error::Unknown(reason))),
            Ok(Proposed::Unknown { reason }) => Err(NotEarly::Doubt(reason)),
            Ok(Proposed::NoSpace { reason }) => Err(NotEarly::Failed(Error::NoSpace(reason))),
            Ok(Proposed::TooLarge { bytes, limit }) => Err(NotEarly::Failed(Error::TooLarge { bytes, limit })),
            Ok(Proposed::Invalid { reason }) => Err(NotEarly::Failed(Error::Invalid(reason))),
            Err(fatal) => Err(NotEarly::Failed(Error::Unknown(self.died(&fatal)))),
        }
    }
}
