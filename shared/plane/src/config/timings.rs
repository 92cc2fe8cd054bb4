//! The periods of the group: which make sense, what depends on them, and whether two nodes have the same.
//! In: `cluster.heartbeat` and the election timeouts. Out: problems with their way out; the store's configuration.
//! Invariant: whatever passes [`check`] is used as it is; the store corrects nothing silently.

use std::time::Duration;

use ursa_runtime::config::Problems;
use ursa_store::StoreConfig;

use super::Cluster;

/// Shorter ones are lost in the noise of a busy machine; longer ones would make every loss of a leader an outage.
const HEARTBEAT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// One heartbeat may be lost and one late without an election.
const HEARTBEATS: u32 = 3;
/// A fail-over takes up to twice as long, and clients wait for it.
const LONGEST: Duration = Duration::from_secs(10);
/// Requests are held over a fail-over (two election timeouts, a vote, an entry) and somewhat longer.
const HELD: u32 = 4;

/// What a node tells the others of its periods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) heartbeat: Duration,
    pub(crate) election_min: Duration,
    pub(crate) election_max: Duration,
}

impl Timing {
    /// In whole milliseconds, as they are told.
    pub(crate) fn of(store: &StoreConfig) -> Self {
        let whole = |time: Duration| Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        Self {
            heartbeat: whole(store.timings.heartbeat),
            election_min: whole(store.timings.election_min),
            election_max: whole(store.timings.election_max),
        }
    }

    /// What is wrong between a node of ours and one with `theirs`; `None` if they agree.
    pub(crate) fn differs(&self, theirs: &Self) -> Option<String> {
        let said = |t: &Self| format!("{:?}, {:?}, {:?}", t.heartbeat, t.election_min, t.election_max);
        (self != theirs).then(|| {
            format!(
                "cluster.heartbeat, election_timeout_min and election_timeout_max are {} there and {} here: give all nodes the same",
                said(theirs),
                said(self)
            )
        })
    }
}

/// Every problem, each with what to do.
pub(super) fn check(cluster: &Cluster, problems: &mut Problems) {
    let Cluster {
        heartbeat,
        election_timeout_min: min,
        election_timeout_max: max,
        ..
    } = cluster;
    problems.check((HEARTBEAT.0..=HEARTBEAT.1).contains(heartbeat), || {
        format!(
            "cluster.heartbeat {heartbeat:?} is not between {:?} and {:?}: take a little more than twice the longest round trip between two nodes",
            HEARTBEAT.0, HEARTBEAT.1
        )
    });
    let least = heartbeat.saturating_mul(HEARTBEATS);
    problems.check(*min >= least, || {
        format!(
            "cluster.election_timeout_min {min:?} is less than {HEARTBEATS} heartbeats, so that a late one would cause an election: \
             set it to {least:?} or more, or cluster.heartbeat to {:?} or less",
            *min / HEARTBEATS
        )
    });
    let least = min.saturating_add(*heartbeat);
    problems.check(*max >= least, || {
        format!(
            "cluster.election_timeout_max {max:?} is not a heartbeat more than cluster.election_timeout_min ({min:?}), so that nodes \
             would stand for election at once: set it to {least:?} or more, better to twice the shortest"
        )
    });
    problems.check(*max <= LONGEST, || {
        format!("cluster.election_timeout_max {max:?} is more than {LONGEST:?}: a fail-over would take twice as long; lower it")
    });
}

/// Brings them, and what must not be shorter than a fail-over, into the store's configuration.
pub(crate) fn apply(cluster: &Cluster, store: &mut StoreConfig) {
    store.timings.heartbeat = cluster.heartbeat;
    store.timings.election_min = cluster.election_timeout_min;
    store.timings.election_max = cluster.election_timeout_max;
    let held = cluster.election_timeout_max * HELD;
    store.read_timeout = store.read_timeout.max(held);
    store.propose_timeout = store.propose_timeout.max(held);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn with(heartbeat: u64, min: u64, max: u64) -> Cluster {
        Cluster {
            heartbeat: MS(heartbeat),
            election_timeout_min: MS(min),
            election_timeout_max: MS(max),
            ..Cluster::default()
        }
    }

    fn problems(heartbeat: u64, min: u64, max: u64) -> String {
        let mut problems = Problems::new();
        check(&with(heartbeat, min, max), &mut problems);
        problems.into_result().err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_does() {
        let default = Cluster::default();
        let mut none = Problems::new();
        check(&default, &mut none);
        assert!(none.into_result().is_ok());
        // 150 ms of round trip, and the extremes.
        for good in [(320, 960, 1800), (20, 60, 80), (2000, 6000, 10_000)] {
            assert_eq!(problems(good.0, good.1, good.2), "", "{good:?}");
        }
        for (bad, wanted) in [
            ((0, 240, 450), "heartbeat 0ns is not between 20ms and 2s"),
            ((2001, 6003, 9000), "heartbeat 2.001s is not between"),
            ((100, 240, 450), "set it to 300ms or more, or cluster.heartbeat to 80ms or less"),
            ((80, 240, 240), "set it to 320ms or more"),
            ((80, 240, 10_001), "is more than 10s"),
        ] {
            let text = problems(bad.0, bad.1, bad.2);
            assert!(text.contains(wanted), "{bad:?}: {text}");
        }
    }

    #[test]
    fn they_reach_the_store_with_what_depends_on_them() {
        let of = |cluster: &Cluster| {
            let mut store = StoreConfig::new("/nowhere", 1);
            apply(cluster, &mut store);
            store
        };
        let defaults = StoreConfig::new("/nowhere", 1);
        let same = of(&Cluster::default());
        assert_eq!(same.timings, defaults.timings, "the defaults are the store's");
        assert_eq!(
            (same.read_timeout, same.propose_timeout),
            (defaults.read_timeout, defaults.propose_timeout)
        );

        let slow = of(&with(700, 2100, 4000));
        let timings = slow.timings;
        assert_eq!(
            (timings.heartbeat, timings.election_min, timings.election_max),
            (MS(700), MS(2100), MS(4000))
        );
        assert_eq!(timings.snapshot_every, defaults.timings.snapshot_every);
        assert_eq!((slow.read_timeout, slow.propose_timeout), (MS(16_000), MS(16_000)));
        assert_eq!(Timing::of(&slow).differs(&Timing::of(&slow)), None);
        let text = Timing::of(&slow).differs(&Timing::of(&same)).unwrap();
        assert!(text.contains("are 80ms, 240ms, 450ms there and 700ms, 2.1s, 4s here"), "{text}");
    }
}
