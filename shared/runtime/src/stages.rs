//! A bounded ring of what happened to which revision when, from which the time of a change through the system is measured.
//! In: one call per stage of a change. Out: the entries since a sequence number, at `GET /stages?since=` of the diagnostics port.
//! Invariant: recording never blocks for long and never grows; the oldest entry is lost first, and a reader can tell.
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;

/// A write arrived at the global.
pub const RECEIVED: &str = "received";
/// The global committed it.
pub const COMMITTED: &str = "committed";
/// The global sent it to the zone named by the subject.
pub const SENT: &str = "sent";
/// A zone has it on disk.
pub const STORED: &str = "stored";
/// A zone built the config of the proxy named by the subject.
pub const BUILT: &str = "built";
/// A zone pushed it to that proxy.
pub const PUSHED: &str = "pushed";
/// That proxy's Envoy acknowledged it.
pub const ACKED: &str = "acked";

/// One stage of one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StageEntry {
    /// Position in this process's sequence; starts at 1, no gaps.
    pub seq: u64,
    /// History id of the store that numbered the revision.
    pub history: Arc<str>,
    /// The **global** revision.
    pub revision: u64,
    /// One of the constants of this module.
    pub stage: &'static str,
    /// What it happened to: a zone or a proxy id; empty if the stage has no subject.
    pub subject: Arc<str>,
    /// Wall clock, nanoseconds since 1970: comparable between processes of one machine.
    pub at_unix_ns: u64,
}

#[derive(Debug)]
struct Ring {
    entries: VecDeque<StageEntry>,
    capacity: usize,
    next_seq: u64,
}

/// Handle to the ring of this process.
#[derive(Clone, Debug)]
pub struct Stages(Arc<Mutex<Ring>>);

impl Stages {
    /// A ring of at most `capacity` entries (at least 1). An entry takes about 150 bytes.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self(Arc::new(Mutex::new(Ring {
            entries: VecDeque::new(),
            capacity,
            next_seq: 1,
        })))
    }

    /// Notes that `revision` of `history` reached `stage` now.
    pub fn record(&self, stage: &'static str, history: &str, revision: u64, subject: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.record_at(stage, history, revision, subject, u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    }

    /// As [`Stages::record`], for a stage that was reached at `at_unix_ns`.
    pub fn record_at(&self, stage: &'static str, history: &str, revision: u64, subject: &str, at_unix_ns: u64) {
        let subject: Arc<str> = subject.into();
        let mut ring = self.0.lock();
        // One history lasts for the life of a store: nearly every entry shares the text of the one before.
        let history = match ring.entries.back() {
            Some(last) if *last.history == *history => last.history.clone(),
            _ => history.into(),
        };
        if ring.entries.len() == ring.capacity {
            ring.entries.pop_front();
        }
        let seq = ring.next_seq;
        ring.next_seq += 1;
        ring.entries.push_back(StageEntry {
            seq,
            history,
            revision,
            stage,
            subject,
            at_unix_ns,
        });
    }

    /// Sequence number of the oldest entry kept (of the next one, if there is none), and all entries with a number above `seq`.
    /// Entries were lost to the reader if the oldest is above `seq + 1`.
    pub fn since(&self, seq: u64) -> (u64, Vec<StageEntry>) {
        self.since_at_most(seq, usize::MAX)
    }

    /// As [`Stages::since`], the first `limit` of them.
    pub fn since_at_most(&self, seq: u64, limit: usize) -> (u64, Vec<StageEntry>) {
        let ring = self.0.lock();
        let oldest = ring.entries.front().map_or(ring.next_seq, |entry| entry.seq);
        let skip = usize::try_from(seq.saturating_add(1).saturating_sub(oldest)).unwrap_or(usize::MAX);
        (oldest, ring.entries.iter().skip(skip).take(limit).cloned().collect())
    }
}

impl Default for Stages {
    /// Room for 16,384 entries, about 2.5 MB.
    fn default() -> Self {
        Self::new(16_384)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_order_and_from_where_the_reader_was() {
        let stages = Stages::new(10);
        assert_eq!(stages.since(0), (1, vec![]));
        for revision in 1..=5 {
            stages.record(COMMITTED, "h1", revision, "");
        }
        let (oldest, all) = stages.since(0);
        assert_eq!((oldest, all.len()), (1, 5));
        assert!(
            all.iter()
                .zip(1..)
                .all(|(entry, n)| entry.seq == n && entry.revision == n && entry.at_unix_ns > 0)
        );
        assert!(Arc::ptr_eq(&all[0].history, &all[4].history), "the text of the history is shared");
        assert_eq!(stages.since(3).1.iter().map(|e| e.seq).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(stages.since_at_most(0, 2).1.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(stages.since(5).1, []);
        assert_eq!(stages.since(u64::MAX).1, []);
    }

    #[test]
    fn the_oldest_is_lost_first_and_the_reader_can_tell() {
        let stages = Stages::new(3);
        for revision in 1..=7 {
            stages.record(BUILT, "h1", revision, "default.web");
        }
        let (oldest, kept) = stages.since(2);
        assert_eq!(oldest, 5);
        assert_eq!(kept.iter().map(|e| e.revision).collect::<Vec<_>>(), [5, 6, 7]);
    }

    #[test]
    fn a_new_history_is_told_apart() {
        let stages = Stages::new(3);
        stages.record(STORED, "h1", 9, "");
        stages.record(STORED, "h2", 1, "");
        let histories: Vec<_> = stages.since(0).1.into_iter().map(|e| e.history.to_string()).collect();
        assert_eq!(histories, ["h1", "h2"]);
    }
}
