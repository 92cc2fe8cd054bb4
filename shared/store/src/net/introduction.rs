//! How a start of this node is made known to the others, and what it means when they do not know it.
//! In: what the other side says it knows. Out: what is said of ourselves, after it was written down; whether this node may go on.
//! Invariant: nobody can note this start before this node has durably written down under which one it was known. A node that has its
//! place is stopped by a member that shows that it knows a start which this folder does not, or by the mere word of more than half of the
//! others: any one of them may itself run on a copy.
use std::sync::atomic::Ordering;

use bytes::Bytes;
use ursa_proto::peer;
use uuid::Uuid;

use super::Refusal;
use super::known::MAX_POSSIBLE;
use super::peers::{Shared, malformed, sixteen};

/// The boots that a sender lists.
///
/// # Errors
/// [`Refusal::Malformed`].
pub(super) fn boots(past: &peer::Past) -> Result<Vec<Uuid>, Refusal> {
    if past.boots.len() > MAX_POSSIBLE {
        return Err(malformed("too many boots"));
    }
    past.boots.iter().map(|id| Ok(Uuid::from_bytes(sixteen(id)?))).collect()
}

impl Shared {
    /// For what is said to `node`.
    pub(super) fn past_for(&self, node: u64) -> peer::Past {
        let boots = self.known.possible(node);
        peer::Past {
            boots: boots.iter().map(|boot| Bytes::copy_from_slice(boot.as_bytes())).collect(),
        }
    }

    /// If `node` asks for it, this start is introduced to it: the next call will be listened to.
    pub(super) async fn introduced(&self, node: u64, refusal: Refusal) -> Refusal {
        if let Refusal::Introduce { node: it, known } = &refusal
            && *it == self.node
            && let Err(failed) = self.known.introduce(node, *known, self.me.boot).await
        {
            return failed;
        }
        refusal
    }

    /// Whether a caller knows this node as what it is. What the answer tells it about this start may be noted on return.
    ///
    /// # Errors
    /// It knows another folder, or a start that this folder knows nothing of.
    pub(super) async fn check_known_as(&self, call: &peer::Call) -> Result<(), Refusal> {
        let caller = call.from.as_ref().map(|sender| sender.node).unwrap_or_default();
        if !call.to_folder.is_empty() && Uuid::from_bytes(sixteen(&call.to_folder)?) != self.me.folder {
            let refusal = Refusal::OtherFolder { node: self.node };
            self.told_of_me(caller, &refusal);
            return Err(refusal);
        }
        let known = match call.to_boot.len() {
            0 => None,
            _ => Some(Uuid::from_bytes(sixteen(&call.to_boot)?)),
        };
        if known == Some(self.me.boot) {
            return Ok(());
        }
        let possible = self.known.possible(caller);
        match known {
            Some(known) if !possible.is_empty() && !possible.contains(&known) => {
                if self.known.was_ours(known) {
                    // It had noted a later one.
                    return Err(Refusal::OlderCopy { node: caller });
                }
                let refusal = Refusal::OlderCopy { node: self.node };
                self.disown(&refusal);
                return Err(refusal);
            }
            _ => {}
        }
        self.known.introduce(caller, known, self.me.boot).await
    }

    /// Takes note if `by` says that this node is not what it knows. Another folder ends a node that has no place yet, and is a mistake of a
    /// single member to one that has.
    pub(super) fn told_of_me(&self, by: u64, refusal: &Refusal) {
        if !refusal.disowns(self.node) {
            return;
        }
        if let Refusal::HasLeft { history, .. } = refusal {
            // That is for the group to decide, and it has; but another group decides nothing here.
            if self.history.read().is_none_or(|ours| ours == *history) {
                self.disown(refusal);
            }
            return;
        }
        if matches!(refusal, Refusal::Shortened { .. } | Refusal::Level { .. }) {
            // A member that has itself gone back in time knows less than it did, never more: the word of one is enough.
            self.disown(refusal);
            return;
        }
        let placed = self.admitted.load(Ordering::Acquire);
        let copy = !matches!(refusal, Refusal::OtherFolder { .. });
        if !placed || copy && self.roster.disowned_by(by) {
            self.disown(refusal);
        }
    }

    fn disown(&self, refusal: &Refusal) {
        self.disowned.send_if_modified(|told| {
            let new = told.is_none();
            told.get_or_insert_with(|| refusal.clone());
            new
        });
    }
}
