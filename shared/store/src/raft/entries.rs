//! Our log as openraft's log storage.
//! In: entries and votes. Out: the same, and a callback once they are durable.
//! Invariant: votes and entries go through one queue, so their order on disk is the order of the calls.
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::alias::{LogIdOf, VoteOf};
use openraft::{LogState, OptionalSend, RaftLogReader};
use ursa_runtime::{Backoff, CancellationToken};

use super::{Confirmed, Entry, TypeConfig, entry_id, from_vote, log_id, to_vote};
use crate::defects::{self, Defect};
use crate::disk::{self, Disk};
use crate::log::Log;

/// Before the log is cut that could not be. No file system tells when it has room.
const NO_SPACE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Encoded bytes of one replication request: under the 4 MiB that gRPC takes by default, with room for what is around them.
const MAX_REQUEST: usize = 2 << 20;

/// Handle to the log; openraft's readers are clones of it.
#[derive(Clone, Debug)]
pub(crate) struct Entries {
    log: Log<Entry>,
    confirmed: Arc<Confirmed>,
    disk: Arc<dyn Disk>,
}

impl Entries {
    pub(crate) fn new(log: Log<Entry>, confirmed: Arc<Confirmed>, disk: Arc<dyn Disk>) -> Self {
        Self { log, confirmed, disk }
    }
}

fn range_of<R: RangeBounds<u64>>(range: &R) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for Entries {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.log.read(range_of(&range), usize::MAX).await?)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.log.read(start..end, MAX_REQUEST).await?)
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<TypeConfig>>, io::Error> {
        let vote = self.log.state().vote.filter(|_| !defects::on(Defect::VoteForgotten));
        Ok(vote.map(to_vote))
    }
}

impl RaftLogStorage<TypeConfig> for Entries {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(log_id),
            last_log_id: state.last.map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<TypeConfig>) -> Result<(), io::Error> {
        let vote = from_vote(vote);
        self.log.save_vote(vote).await?;
        self.confirmed.voted(vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<TypeConfig>>) -> Result<(), io::Error> {
        match committed {
            Some(id) => Ok(self.log.save_committed(entry_id(&id)).await?),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<TypeConfig>>, io::Error> {
        Ok(self.log.state().committed.map(log_id))
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let last = entries.last().map(|entry| entry_id(&entry.log_id));
        let (confirmed, epoch) = (self.confirmed.clone(), self.confirmed.epoch());
        let done = move |result: Result<(), crate::log::Failure>| {
            if let (Ok(()), Some(last)) = (&result, last) {
                confirmed.has(epoch, last);
            }
            flushed.io_completed(result.map_err(io::Error::from));
        };
        Ok(self.log.append(entries, Box::new(done)).await?)
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<TypeConfig>>) -> Result<(), io::Error> {
        let to = last.as_ref().map(entry_id);
        let (mut backoff, mut ended) = (Backoff::new(NO_SPACE.0, NO_SPACE.1), self.log.failure());
        let never = CancellationToken::new();
        loop {
            let confirmed = self.confirmed.clone();
            match disk::run(&*self.disk, move || confirmed.lower(to)).await {
                Ok(()) => break,
                // To the core a failure is the end; the log would wait as well.
                Err(error) if disk::is_refusal(&error) => tracing::warn!(%error, "the log cannot be cut yet"),
                Err(error) => return Err(error),
            }
            tokio::select! {
                biased;
                _ = ended.wait_for(Option::is_some) => break,
                _ = backoff.wait(&never) => {}
            }
        }
        Ok(self.log.truncate_after(to).await?)
    }

    async fn purge(&mut self, upto: LogIdOf<TypeConfig>) -> Result<(), io::Error> {
        let mut upto = entry_id(&upto);
        if defects::on(Defect::PurgedAhead) {
            upto = self.log.state().committed.map_or(upto, |committed| committed.max(upto));
        }
        Ok(self.log.purge(upto).await?)
    }
}
