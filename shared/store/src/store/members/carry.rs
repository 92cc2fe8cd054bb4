//! The leader's side of changes of the group.
//! In: what is asked for. Out: what was done. Invariants: one change at a time; what is stored beside the list of members is stored before the
//! list changes, and means nothing without it: an id that is said to have left is a member for as long as the list has it.
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;
use ursa_model::Timestamp;
use ursa_runtime::lease::{self, Deadline};

use super::ledger::Ledger;
use super::{MemberAnswer, MemberChange, MemberDone, Newcomer, Objection, judge};
use crate::codec::Peer;
use crate::error::Error;
use crate::level::Levels;
use crate::raft::members::{self, Failed, Picture, Step};
use crate::store::Store;

/// Shortest and longest life of a token.
const VALID_MS: std::ops::RangeInclusive<u64> = 1000..=30 * 24 * 60 * 60 * 1000;
/// A member that has not answered for so long after it was asked for does not answer. Heartbeats go out many times a second.
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// Between two looks at who has.
const LOOK: Duration = Duration::from_millis(50);

/// Why a change is not made here.
enum Not {
    Objected(Objection),
    Leader(Option<u64>),
    Now(String),
}

impl From<Objection> for Not {
    fn from(objection: Objection) -> Self {
        Self::Objected(objection)
    }
}

impl From<Error> for Not {
    fn from(error: Error) -> Self {
        match error {
            Error::NotLeader { leader, .. } => Self::Leader(leader),
            // Among others: the ledger was changed by somebody else.
            error => Self::Now(error.to_string()),
        }
    }
}

impl From<Failed> for Not {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::NotLeader(leader) => Self::Leader(leader),
            Failed::UnderWay => Self::Objected(Objection::UnderWay),
            Failed::Unknown(reason) => Self::Now(reason),
        }
    }
}

impl Store {
    /// Does what an operator asks for, if this node leads.
    pub(crate) async fn carry_out(&self, wanted: &MemberChange, deadline: Deadline) -> MemberAnswer {
        let doing = Box::pin(async {
            let _turn = self.inner.changing.lock().await;
            self.change(wanted, deadline).await
        });
        match self.if_leading(doing, deadline).await {
            Ok(done) => {
                tracing::info!(?wanted, ?done, "the members have changed");
                MemberAnswer::Done { done }
            }
            Err(not) => self.answer_of(not),
        }
    }

    /// Lets a node in that comes with a token, as a learner, if this node leads.
    pub(crate) async fn let_in(&self, newcomer: Newcomer, token: &str, deadline: Deadline) -> MemberAnswer {
        let doing = Box::pin(async {
            let _turn = self.inner.changing.lock().await;
            self.add_learner(newcomer, token, deadline).await
        });
        match self.if_leading(doing, deadline).await {
            Ok(()) => MemberAnswer::Joined,
            Err(not) => self.answer_of(not),
        }
    }

    async fn if_leading<T>(&self, doing: impl Future<Output = Result<T, Not>>, deadline: Deadline) -> Result<T, Not> {
        if !self.is_leader() {
            return Err(Not::Leader(*self.inner.leader.borrow()));
        }
        match lease::within(deadline.remaining(), doing).await {
            Ok(done) => done,
            Err(expired) => Err(Not::Now(expired.to_string())),
        }
    }

    fn answer_of(&self, not: Not) -> MemberAnswer {
        match not {
            Not::Objected(objection) => MemberAnswer::Objected { objection },
            Not::Now(reason) => MemberAnswer::NotNow { reason },
            Not::Leader(leader) => {
                let members = self.group_members();
                let address = leader.and_then(|id| members.get(&id).cloned()).unwrap_or_default();
                MemberAnswer::NotLeader { leader, address }
            }
        }
    }

    /// Answering is who was heard since `asked`.
    fn picture_since(&self, asked: Instant) -> Picture {
        let mut picture = members::picture(&self.inner.raft, asked.elapsed());
        // A member that was added when this was a group of one has its address in the configuration alone.
        let configured = self.inner.config.cluster.iter().flat_map(|cluster| &cluster.members);
        for (id, address) in configured {
            if let Some(known) = picture.nodes.get_mut(id).filter(|known| known.is_empty()) {
                known.clone_from(address);
            }
        }
        picture
    }

    /// Without regard to who answers.
    fn picture(&self) -> Picture {
        self.picture_since(Instant::now())
    }

    /// The judgement of what is heard from now on: who answered a moment ago may be dead by now.
    async fn settled<T>(&self, deadline: Deadline, judge: impl Fn(&Picture) -> Result<T, Objection>) -> Result<T, Not> {
        let (asked, patience) = (Instant::now(), Deadline::after(SILENT_AFTER.min(deadline.remaining())));
        let mut metrics = self.inner.raft.metrics();
        loop {
            match judge(&self.picture_since(asked)) {
                Err(Objection::LosesQuorum { .. } | Objection::Silent { .. }) if !patience.has_passed() => {}
                judged => return judged.map_err(Not::from),
            }
            if let Ok(Err(_ended)) = lease::within(LOOK.min(patience.remaining()), metrics.changed()).await {
                return Err(Not::Now("the store of the leader has stopped".to_owned()));
            }
        }
    }

    async fn ledger(&self) -> Result<Ledger, Not> {
        Ledger::of(&self.read().await?).map_err(Not::Now)
    }

    async fn change(&self, wanted: &MemberChange, deadline: Deadline) -> Result<MemberDone, Not> {
        match wanted {
            MemberChange::Invite { node, address, valid_ms } => self.invite(*node, address, *valid_ms).await,
            MemberChange::Promote { node, instead_of } => self.promote(*node, *instead_of, deadline).await,
            MemberChange::Remove { node } => self.remove(*node, deadline).await,
            MemberChange::Move { node, address } => self.readdress(*node, address, deadline).await,
            MemberChange::Transfer { to } => self.transfer(*to, deadline).await,
        }
    }

    async fn invite(&self, node: u64, address: &str, valid_ms: u64) -> Result<MemberDone, Not> {
        let mut ledger = self.ledger().await?;
        let picture = self.picture();
        if ledger.left.contains(&node) {
            return Err(Objection::HasLeft { node }.into());
        }
        if picture.nodes.contains_key(&node) {
            return Err(Objection::IsMember { node }.into());
        }
        judge::may_live_at(&picture.nodes, node, address)?;
        if !VALID_MS.contains(&valid_ms) {
            return Err(Objection::BadValidity.into());
        }
        let (token, until) = ledger.invite(node, address.to_owned(), Timestamp::now(), valid_ms);
        self.keep_ledger(&ledger).await?;
        Ok(MemberDone::Invited { token, until })
    }

    async fn add_learner(&self, newcomer: Newcomer, token: &str, deadline: Deadline) -> Result<(), Not> {
        let Newcomer { node, folder, levels } = newcomer;
        let mut ledger = self.ledger().await?;
        let (address, new) = ledger.take(node, token, folder, Timestamp::now())?;
        let picture = self.picture();
        // The view is the one that a barrier has just led to, and nobody raises the level meanwhile.
        let level = self.feature_level();
        if !levels.know(level) {
            let Levels { min, max } = levels;
            return Err(Objection::OtherLevel { node, level, min, max }.into());
        }
        if picture.nodes.contains_key(&node) {
            return match new {
                true => Err(Objection::IsMember { node }.into()),
                false => Ok(()),
            };
        }
        judge::may_live_at(&picture.nodes, node, &address)?;
        if new {
            self.keep_ledger(&ledger).await?;
        }
        members::change(&self.inner.raft, Step::AddLearner(node, Peer::at(&address)), deadline).await?;
        tracing::info!(peer = node, address, "a node has joined, without a vote so far");
        Ok(())
    }

    async fn promote(&self, node: u64, instead_of: Option<u64>, deadline: Deadline) -> Result<MemberDone, Not> {
        let picture = self.picture();
        let old = instead_of.filter(|old| *old != node);
        let gone = old.is_none_or(|old| !picture.nodes.contains_key(&old));
        if picture.voters.contains(&node) && gone {
            return Ok(MemberDone::Promoted);
        }
        if !picture.nodes.contains_key(&node) {
            return Err(Objection::NoMember { node }.into());
        }
        let raft = &self.inner.raft;
        // A fixed mark: entries that come while it is waited for do not move it, so a busy group can be joined too.
        let mark = picture.last;
        let enough = Deadline::after(deadline.remaining() * 3 / 4);
        if !picture.voters.contains(&node) && !members::caught_up(raft, node, mark, enough).await {
            if !self.is_leader() {
                return Err(Not::Leader(*self.inner.leader.borrow()));
            }
            let now = self.picture();
            let behind = now.last.saturating_sub(now.matched.get(&node).copied().unwrap_or_default());
            return Err(Objection::Lags { node, behind }.into());
        }
        let voters = self.settled(deadline, |picture| judge::with_voter(picture, node, old)).await?;
        let Some(old) = old else {
            members::change(raft, Step::Voters(voters), deadline).await?;
            return Ok(MemberDone::Promoted);
        };
        if old == self.inner.config.node_id {
            return Err(self.pass_lead(deadline).await);
        }
        self.says_left(old).await?;
        members::change(raft, Step::Voters(voters), deadline).await?;
        if self.picture().nodes.contains_key(&old) {
            members::change(raft, Step::RemoveLearner(old), deadline).await?; // it had no vote
        }
        Ok(MemberDone::Promoted)
    }

    async fn remove(&self, node: u64, deadline: Deadline) -> Result<MemberDone, Not> {
        let picture = self.picture();
        if !picture.nodes.contains_key(&node) {
            let ledger = self.ledger().await?;
            return match ledger.left.contains(&node) || ledger.invited.contains_key(&node) {
                true => self.says_left(node).await.map(|()| MemberDone::Removed),
                false => Err(Objection::NoMember { node }.into()),
            };
        }
        let voters = self.settled(deadline, |picture| judge::without(picture, node)).await?;
        if node == self.inner.config.node_id {
            return Err(self.pass_lead(deadline).await);
        }
        self.says_left(node).await?;
        let step = match picture.voters.contains(&node) {
            true => Step::Voters(voters),
            false => Step::RemoveLearner(node),
        };
        members::change(&self.inner.raft, step, deadline).await?;
        Ok(MemberDone::Removed)
    }

    async fn readdress(&self, node: u64, address: &str, deadline: Deadline) -> Result<MemberDone, Not> {
        let picture = self.picture();
        let Some(now) = picture.nodes.get(&node) else {
            return Err(Objection::NoMember { node }.into());
        };
        judge::may_live_at(&picture.nodes, node, address)?;
        if now != address {
            let peer = Peer {
                moved: true,
                ..Peer::at(address)
            };
            members::change(&self.inner.raft, Step::Set(node, peer), deadline).await?;
        }
        Ok(MemberDone::Moved)
    }

    async fn transfer(&self, to: Option<u64>, deadline: Deadline) -> Result<MemberDone, Not> {
        let me = self.inner.config.node_id;
        let may = |picture: &Picture| match to {
            Some(node) if !picture.nodes.contains_key(&node) => Err(Objection::NoMember { node }),
            Some(node) if !picture.voters.contains(&node) => Err(Objection::NoVoter { node }),
            Some(node) if !picture.answering.contains(&node) => Err(Objection::Silent { node }),
            _ => Ok(()),
        };
        self.settled(deadline, may).await?;
        if to == Some(me) {
            return Ok(MemberDone::Leads { node: me });
        }
        match self.hand_over_to(to, deadline).await? {
            Some(node) if to.is_none_or(|to| to == node) => Ok(MemberDone::Leads { node }),
            // Somebody else was elected meanwhile: it is for that one to hand over.
            leader => Err(Not::Leader(leader)),
        }
    }

    /// A leader that is to leave hands over first; the next one does the rest.
    async fn pass_lead(&self, deadline: Deadline) -> Not {
        match self.hand_over(deadline).await {
            Ok(leader) => Not::Leader(leader),
            Err(error) => error.into(),
        }
    }

    /// Notes durably that `node` has left, before it does.
    async fn says_left(&self, node: u64) -> Result<(), Not> {
        let mut ledger = self.ledger().await?;
        let invited = ledger.invited.remove(&node).is_some();
        if ledger.left.insert(node) || invited {
            self.keep_ledger(&ledger).await?;
        }
        Ok(())
    }
}
