//! Which of several addresses is tried next, and how long to wait before. Pure but for the jitter.
//! In: how the last session went. Out: an address, a wait. Invariants: a healthy session is never given up for another address; after
//! a failure another address comes first, at once; when all of them failed in a row the waits grow, so nothing hammers.

use std::time::Duration;

use ursa_runtime::Backoff;

/// Before another address is tried: at most this, the last half random, so that the zones of a node that died do not come to the next
/// one in the same millisecond.
const SPREAD: Duration = Duration::from_millis(50);
/// First and longest wait when every address failed. The cap is short: a group that returns should have all its zones within a second
/// or two, and a refused connection costs next to nothing.
const ALL_FAILED: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// See the module's text.
#[derive(Debug)]
pub(super) struct Rotation {
    count: usize,
    at: usize,
    /// Failures since the last healthy session.
    failures: usize,
    backoff: Backoff,
}

impl Rotation {
    /// Begins at an address that depends on the zone's name, so that zones with one configuration spread over the nodes. `count` is
    /// at least 1.
    pub(super) fn new(count: usize, zone: &str) -> Self {
        let count = count.max(1);
        // FNV-1a: any hash does that does not change between starts.
        let hash = zone
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Self {
            count,
            at: usize::try_from(hash % count as u64).unwrap_or_default(),
            failures: 0,
            backoff: Backoff::new(ALL_FAILED.0, ALL_FAILED.1),
        }
    }

    /// Index of the address to try.
    pub(super) fn current(&self) -> usize {
        self.at
    }

    /// Failures since the last healthy session.
    pub(super) fn failures(&self) -> usize {
        self.failures
    }

    /// The session at [`Rotation::current`] ended, or could not be made; `healthy`: content flowed for a while. Moves on to the next
    /// address and gives the wait before it.
    pub(super) fn ended(&mut self, healthy: bool) -> Backoff {
        if healthy {
            self.failures = 0;
            self.backoff.reset();
        }
        self.at = (self.at + 1) % self.count;
        self.failures += 1;
        if self.failures.is_multiple_of(self.count) {
            let wait = self.backoff.clone();
            self.backoff.next_delay();
            wait
        } else {
            Backoff::new(SPREAD, SPREAD)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(rotation: &mut Rotation, ends: &[bool]) -> Vec<(usize, bool)> {
        let step = |healthy: &bool| {
            let short = rotation.ended(*healthy).next_delay() <= SPREAD;
            (rotation.current(), short)
        };
        ends.iter().map(step).collect()
    }

    #[test]
    fn after_a_failure_another_address_comes_at_once_and_a_round_of_failures_waits() {
        let mut rotation = Rotation::new(3, "east");
        let first = rotation.current();
        let next = |n: usize| (first + n) % 3;
        // A long session ends: the two others at once, then the round is full.
        let seen = waits(&mut rotation, &[true, false, false]);
        assert_eq!(seen[0], (next(1), true));
        assert_eq!(seen[1], (next(2), true));
        assert_eq!(seen[2].0, next(3));
        assert_eq!(rotation.failures(), 3);
        let longest = (0..30).map(|_| rotation.ended(false).next_delay()).max().unwrap();
        assert!(
            longest > ALL_FAILED.1 / 2 && longest <= ALL_FAILED.1,
            "waits grow up to the cap: {longest:?}"
        );
        rotation.ended(true);
        assert_eq!(rotation.failures(), 1, "a healthy session makes up for it");
    }

    #[test]
    fn a_single_address_always_waits_and_sessions_that_end_at_once_do_not_hammer() {
        let mut rotation = Rotation::new(1, "east");
        let delays: Vec<Duration> = (0..8).map(|_| rotation.ended(false).next_delay()).collect();
        assert!(delays[0] >= ALL_FAILED.0 / 2 && delays[7] >= ALL_FAILED.1 / 2, "{delays:?}");
        assert_eq!(rotation.current(), 0);
    }

    #[test]
    fn zones_spread_over_the_nodes() {
        let starts: std::collections::BTreeSet<usize> = (0..20).map(|n| Rotation::new(3, &format!("zone-{n}")).current()).collect();
        assert_eq!(starts.len(), 3);
    }
}
