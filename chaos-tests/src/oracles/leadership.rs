//! Judges who led while links between nodes were cut.
//!
//! In: what was cut, who led before and after, when a write was accepted. Out: what must not have been.
//! Invariant: a leader that is joined with a majority stays, in its term, whatever else is cut: only a minority is disturbed. If it
//! is not, but some other node is, that one leads within the limit. Where nobody is, nothing is promised but safety.
//! Source: issue text, "a leader within 2 s whenever a majority is connected in both directions; no election while only a minority is
//! disturbed".
use std::time::Duration;

use crate::faults::Partition;

/// Writes are accepted again within this, on a machine that is not busy.
pub const LIMIT: Duration = Duration::from_secs(2);

/// What a cut must bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The leader stays, and so does its term.
    Stays,
    /// Another node leads within the limit, if the leader cannot.
    Fails,
    /// There may be none.
    Nothing,
}

/// What to expect of this cut while `leader` leads `nodes`.
#[must_use]
pub fn expected(partition: &Partition, nodes: &[u64], leader: u64) -> Expected {
    if partition.has_majority(leader, nodes) {
        Expected::Stays
    } else if partition.leaves_a_majority(nodes) {
        Expected::Fails
    } else {
        Expected::Nothing
    }
}

/// What was seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Leader and term before the cut.
    pub before: (u64, u64),
    /// Leader and term after it was healed.
    pub after: (u64, u64),
    /// From the cut to the first accepted write that was sent after it.
    pub accepted: Option<Duration>,
}

/// What is wrong with it. `slack` is 1 on a machine that does nothing else; on a busier one the limit is so many times as long, and
/// there may be one election less than that without need: a process that gets no time to run is no leader.
#[must_use]
pub fn wrong(expected: Expected, seen: &Seen, slack: u32) -> Option<String> {
    let limit = LIMIT * slack;
    let Seen { before, after, accepted } = seen;
    let late = accepted.is_none_or(|took| took > limit);
    match expected {
        Expected::Stays if after.1 >= before.1 + u64::from(slack) || after.1 == before.1 && after.0 != before.0 => Some(format!(
            "an election, though the leader had a majority: {} led in term {}, then {} in term {}",
            before.0, before.1, after.0, after.1
        )),
        Expected::Stays | Expected::Fails if late => Some(match accepted {
            Some(took) => format!("the first write was accepted after {took:?}"),
            None => "no write was accepted".to_owned(),
        }),
        Expected::Stays | Expected::Fails | Expected::Nothing => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [u64; 3] = [1, 2, 3];

    #[test]
    fn what_is_expected_depends_on_who_leads() {
        let alone = Partition::of_one(2, &NODES, true, true);
        assert_eq!(expected(&alone, &NODES, 1), Expected::Stays);
        assert_eq!(expected(&alone, &NODES, 2), Expected::Fails);
        let deaf = Partition::of_one(2, &NODES, false, true);
        assert_eq!(expected(&deaf, &NODES, 2), Expected::Fails);
        let all = Partition::all(&NODES).pop().unwrap();
        assert_eq!(expected(&all, &NODES, 2), Expected::Nothing);
        let whole = Partition::default();
        assert_eq!(expected(&whole, &NODES, 2), Expected::Stays);
    }

    #[test]
    fn an_election_without_need_is_wrong_and_so_is_a_pause_that_is_too_long() {
        let ms = Duration::from_millis;
        let seen = |after: (u64, u64), accepted: Option<u64>| Seen {
            before: (1, 4),
            after,
            accepted: accepted.map(ms),
        };
        let is_wrong = |expected, seen: Seen| wrong(expected, &seen, 1).is_some();
        assert!(!is_wrong(Expected::Stays, seen((1, 4), Some(20))));
        assert!(is_wrong(Expected::Stays, seen((1, 6), Some(20))), "the same node in a later term");
        assert!(is_wrong(Expected::Stays, seen((2, 5), Some(20))));
        assert!(is_wrong(Expected::Stays, seen((1, 4), Some(2001))));
        assert!(!is_wrong(Expected::Fails, seen((2, 5), Some(1900))));
        assert!(is_wrong(Expected::Fails, seen((2, 5), Some(2100))));
        assert!(is_wrong(Expected::Fails, seen((2, 5), None)));
        assert!(!is_wrong(Expected::Nothing, seen((2, 9), None)));
        let with_slack = |seen: Seen| wrong(Expected::Stays, &seen, 3).is_some();
        assert!(!with_slack(seen((2, 6), Some(5_900))) && with_slack(seen((2, 7), Some(20))) && with_slack(seen((1, 4), Some(6_100))));
        assert!(with_slack(seen((2, 4), Some(20))), "two leaders of one term");
    }
}
