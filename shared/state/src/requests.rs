//! Which requests were answered, and how, so that one that is sent again changes nothing and gets the first answer.
//! In: ids and answers, with the index and the time of their entries. Out: the first answer to an id.
//! Invariants: the same on every replica, for time is what the entries say; bounded; an id is known for as long as anybody may still
//! send it again, unless more were answered meanwhile than are ever kept.

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use ursa_model::Timestamp;

use crate::change::{Applied, RequestId};

/// Kept for so long at least, in milliseconds of the entries' time: a proposal is sent again for up to 10 s, and its caller may have
/// begun again with the same id by then.
pub const REQUEST_MILLIS: u64 = 60_000;
/// Kept at least, however old: clocks of proposers differ, and one may be far ahead.
pub const MIN_REQUESTS: usize = 8_192;
/// Kept at most, some 300 bytes each: 10 s of 13,000 sets per second.
pub const MAX_REQUESTS: usize = 131_072;

/// See the module's text. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    answers: RedBlackTreeMapSync<RequestId, Arc<Applied>>,
    /// The ids by the log index that brought them, oldest first. Their times never fall.
    order: RedBlackTreeMapSync<u64, (RequestId, Timestamp)>,
    newest: Timestamp,
}

impl Requests {
    pub(crate) fn get(&self, id: &RequestId) -> Option<&Arc<Applied>> {
        self.answers.get(id)
    }

    /// Remembers an answer. The id of nobody is not kept.
    pub(crate) fn remember(&mut self, index: u64, id: RequestId, at: Timestamp, answer: Arc<Applied>) {
        if id == RequestId::default() {
            return;
        }
        self.newest = self.newest.max(at);
        self.answers.insert_mut(id, answer);
        self.order.insert_mut(index, (id, self.newest));
        while let Some((oldest, (id, at))) = self.order.first().map(|(index, kept)| (*index, *kept)) {
            let known = self.order.size();
            let is_old = self.newest.0.saturating_sub(at.0) > REQUEST_MILLIS;
            if known <= MIN_REQUESTS || !is_old && known <= MAX_REQUESTS {
                break;
            }
            self.order.remove_mut(&oldest);
            self.answers.remove_mut(&id);
        }
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, RequestId, Timestamp, &Applied)> {
        self.order
            .iter()
            .filter_map(|(index, (id, at))| self.answers.get(id).map(|answer| (*index, *id, *at, answer.as_ref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(count: u64, millis_between: u64) -> Requests {
        let mut requests = Requests::default();
        for n in 1..=count {
            let answer = Applied {
                revision: n,
                ..Applied::default()
            };
            requests.remember(n, RequestId(n.into()), Timestamp(1_000 + n * millis_between), Arc::new(answer));
        }
        requests
    }

    #[test]
    fn a_busy_store_remembers_by_time_and_a_quiet_one_by_number() {
        // 1,000 in a second.
        let busy = of(70_000, 1);
        assert!(busy.get(&RequestId(10_001)).is_some_and(|answer| answer.revision == 10_001));
        assert!(busy.get(&RequestId(9_000)).is_none(), "older than a minute");
        assert_eq!(busy.iter().count() as u64, REQUEST_MILLIS + 1);
        // One in a minute.
        let quiet = of(10_000, 60_000);
        assert_eq!(quiet.iter().count(), MIN_REQUESTS);
        assert_eq!(busy.answers.size(), busy.order.size());
    }

    #[test]
    fn there_is_a_bound_and_a_clock_that_is_ahead_forgets_no_more_than_a_quiet_store() {
        let flood = of(MAX_REQUESTS as u64 + 5_000, 0);
        assert_eq!((flood.iter().count(), flood.answers.size()), (MAX_REQUESTS, MAX_REQUESTS));
        let mut ahead = of(20_000, 1);
        let before = ahead.iter().count();
        ahead.remember(20_001, RequestId(1 << 80), Timestamp(u64::MAX), Arc::default());
        assert_eq!((before, ahead.iter().count()), (20_000, MIN_REQUESTS));
        for n in 20_002..=40_000_u64 {
            ahead.remember(n, RequestId(n.into()), Timestamp(n), Arc::default());
        }
        assert!(ahead.get(&RequestId(20_002)).is_some(), "its successors are as new");
    }

    #[test]
    fn nobodys_id_is_not_kept() {
        let mut requests = of(1, 1);
        requests.remember(2, RequestId::default(), Timestamp(5), Arc::default());
        assert_eq!(requests.iter().map(|(index, ..)| index).collect::<Vec<_>>(), [1]);
    }
}
