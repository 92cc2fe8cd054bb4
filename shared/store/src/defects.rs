//! Seeded defects, by which the simulation is tested itself: does it notice?
//! In: a name, chosen at run time, in a build with the feature `defects`. Out: code that does the wrong thing where it asks [`on`].
//! Invariant: in any other build [`on`] is the constant `false`, so that the compiler leaves nothing of this; no program is built with the
//! feature (`ursa-plane`, of which programs are made, does not compile with it).

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "defects"), allow(dead_code, reason = "asked for, never set"))]
pub enum Defect {
    AnswerBeforeSync,
    VoteNotSynced,
    VoteForgotten,
    TornRecordIgnored,
    DeposedLeaderReads,
    AppliedTwice,
    TombstonesLost,
    PurgedAhead,
    StaleAppendAnswer,
    WatchSkipsAtCompaction,
    FolderOfLogNotSynced,
    TruncateNotWritten,
    FailedSyncIgnored,
    DoubtfulTailKept,
    RequestsLostInSnapshot,
    EntrySkippedAtRestart,
    FollowerReadsEarly,
    ResentUnderNewId,
    EntriesDropped,
    PreVoteGranted,
    DeafLeaderTalks,
    SmallFilesNotSynced,
    SnapshotNotSynced,
    PurgedBehindNewest,
    RefusedCountsAsWritten,
}

/// Whether this build can have any.
pub const COMPILED: bool = cfg!(feature = "defects");

/// Whether to be wrong in this way.
#[cfg(not(feature = "defects"))]
pub(crate) const fn on(_: Defect) -> bool {
    false
}

#[cfg(feature = "defects")]
pub(crate) use chosen::on;
#[cfg(feature = "defects")]
pub use chosen::{ALL, by_name, choose};
#[cfg(feature = "defects")]
pub(crate) use wrong::{again, fresh, without_oldest_change, without_requests, without_tombstones};

#[cfg(feature = "defects")]
mod chosen {
    use std::sync::OnceLock;

    use super::Defect;

    static CHOSEN: OnceLock<Defect> = OnceLock::new();

    /// All, with their names and what they do.
    pub const ALL: [(Defect, &str, &str); 25] = [
        (
            Defect::AnswerBeforeSync,
            "answer-before-sync",
            "entries are acknowledged before they are synced",
        ),
        (Defect::VoteNotSynced, "vote-not-synced", "a vote is answered without a sync"),
        (Defect::VoteForgotten, "vote-forgotten", "the vote is not read at a restart"),
        (
            Defect::TornRecordIgnored,
            "torn-record-ignored",
            "a record of the log counts although its checksum does not match",
        ),
        (
            Defect::DeposedLeaderReads,
            "deposed-leader-reads",
            "a leader reads without asking a majority",
        ),
        (
            Defect::AppliedTwice,
            "applied-twice",
            "the first entries after a restart are applied twice",
        ),
        (Defect::TombstonesLost, "tombstones-lost", "a snapshot's history lacks the deletes"),
        (Defect::PurgedAhead, "purged-ahead", "the log is purged ahead of the snapshot"),
        (
            Defect::StaleAppendAnswer,
            "stale-append-answer",
            "an earlier answer of a follower is taken for that to the last append",
        ),
        (
            Defect::WatchSkipsAtCompaction,
            "watch-skips-at-compaction",
            "compaction takes one revision too many from what watchers are told",
        ),
        (
            Defect::FolderOfLogNotSynced,
            "folder-of-log-not-synced",
            "the name of a new file of the log is not synced",
        ),
        (
            Defect::TruncateNotWritten,
            "truncate-not-written",
            "that entries were cut off is not written down",
        ),
        (
            Defect::FailedSyncIgnored,
            "failed-sync-ignored",
            "a sync that failed counts as done",
        ),
        (
            Defect::DoubtfulTailKept,
            "doubtful-tail-kept",
            "what a restart finds behind the last proven sync is not written again",
        ),
        (
            Defect::RequestsLostInSnapshot,
            "requests-lost-in-snapshot",
            "a snapshot lacks the ids of requests",
        ),
        (
            Defect::EntrySkippedAtRestart,
            "entry-skipped-at-restart",
            "the first entry after a restart is not applied",
        ),
        (
            Defect::FollowerReadsEarly,
            "follower-reads-early",
            "a read does not wait until the barrier is applied",
        ),
        (
            Defect::ResentUnderNewId,
            "resent-under-new-id",
            "a proposal that is sent again gets another id",
        ),
        (
            Defect::EntriesDropped,
            "entries-dropped",
            "a follower acknowledges some entries without keeping them",
        ),
        (Defect::PreVoteGranted, "pre-vote-granted", "every pre-vote is granted"),
        (
            Defect::DeafLeaderTalks,
            "deaf-leader-talks",
            "a leader that hears nobody goes on sending",
        ),
        (
            Defect::SmallFilesNotSynced,
            "small-files-not-synced",
            "small files are renamed into place without a sync",
        ),
        (
            Defect::SnapshotNotSynced,
            "snapshot-not-synced",
            "snapshots are renamed into place without a sync",
        ),
        (
            Defect::PurgedBehindNewest,
            "purged-behind-newest",
            "the log is purged behind the newest snapshot, not the one before",
        ),
        (
            Defect::RefusedCountsAsWritten,
            "refused-counts-as-written",
            "what a full disk refused is reported durable",
        ),
    ];

    /// The defect of this name.
    pub fn by_name(name: &str) -> Option<Defect> {
        ALL.iter().find(|(_, known, _)| *known == name).map(|(defect, _, _)| *defect)
    }

    /// From now on this process is wrong in this way. Only the first choice counts.
    pub fn choose(defect: Defect) {
        CHOSEN.get_or_init(|| defect);
    }

    pub(crate) fn on(defect: Defect) -> bool {
        CHOSEN.get() == Some(&defect)
    }
}

/// The wrong results.
#[cfg(feature = "defects")]
mod wrong {
    use serde_json::{Value, json};
    use ursa_state::{Command, RequestId, State};

    use crate::codec::Proposal;
    use crate::testing::edited;

    fn changed(state: &State, edit: impl FnOnce(&mut Value)) -> State {
        edited(state, edit).unwrap_or_else(|_| state.clone())
    }

    /// As after applying these entries once more.
    pub(crate) fn again(state: &State, entries: &[(u64, Command)]) -> State {
        let Some((first, _)) = entries.first() else { return state.clone() };
        let mut state = changed(state, |document| {
            document["applied_index"] = json!(first.saturating_sub(1));
            document["requests"] = json!([]);
        });
        for (index, command) in entries {
            state.apply(*index, command);
        }
        state
    }

    pub(crate) fn without_tombstones(state: &State) -> State {
        changed(state, |document| {
            for revision in document["changes"].as_array_mut().into_iter().flatten() {
                if let Some(changes) = revision["changes"].as_array_mut() {
                    changes.retain(|change| change.get("after").is_some_and(|after| !after.is_null()));
                }
            }
        })
    }

    pub(crate) fn without_requests(state: &State) -> State {
        changed(state, |document| document["requests"] = json!([]))
    }

    pub(crate) fn without_oldest_change(state: &State) -> State {
        changed(state, |document| {
            if let Some(changes) = document["changes"].as_array_mut()
                && !changes.is_empty()
            {
                changes.remove(0);
            }
        })
    }

    /// The same under another id.
    pub(crate) fn fresh(proposal: &Proposal) -> Proposal {
        let Command::Change(set) = proposal.command() else {
            return proposal.clone();
        };
        let mut set = set.clone();
        set.id = RequestId(uuid::Uuid::new_v4().as_u128());
        Proposal::new(&Command::Change(set)).unwrap_or_else(|_| proposal.clone())
    }
}
