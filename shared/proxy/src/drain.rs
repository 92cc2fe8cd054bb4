//! When has an Envoy drained? A pure decision; [`crate::supervisor`] feeds it.
//! In: time since the drain began, counts of connections. Out: wait on, or stop and why.
//! Invariant: never over before `quiet` has passed without a connection, or `limit` has passed.
//!
//! Why a quiet period, and not the first moment without connections: after the drain begins others still send here, until the
//! news has reached them. Whoever leaves in a pause between two of their requests refuses the second. A connection that comes and
//! goes between two samples shows in the total.
use std::time::Duration;

use crate::admin::Connections;

/// Whether to wait on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Somebody is connected, or was a moment ago.
    Wait,
    /// Nobody has been connected for the whole quiet period.
    Quiet,
    /// The drain time is over; what is still open will be cut.
    TimeUp,
}

/// Watches one drain.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    limit: Duration,
    quiet: Duration,
    /// Since when nobody is connected, and the total at that time.
    silent_since: Option<(Duration, u64)>,
}

impl DrainWatch {
    /// `limit`: longest drain. `quiet`: how long nobody must have been connected to end it earlier.
    pub fn new(limit: Duration, quiet: Duration) -> Self {
        Self {
            limit,
            quiet,
            silent_since: None,
        }
    }

    /// `elapsed` since the drain began, never decreasing; `None` when Envoy could not be asked, which proves nothing.
    pub fn observe(&mut self, elapsed: Duration, sample: Option<Connections>) -> Verdict {
        self.silent_since = match (sample, self.silent_since) {
            (Some(Connections { active: 0, total }), Some((since, before))) if total == before => Some((since, before)),
            (Some(Connections { active: 0, total }), _) => Some((elapsed, total)),
            _ => None,
        };
        match self.silent_since {
            Some((since, _)) if elapsed.saturating_sub(since) >= self.quiet => Verdict::Quiet,
            _ if elapsed >= self.limit => Verdict::TimeUp,
            _ => Verdict::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_secs(30);
    const QUIET: Duration = Duration::from_secs(2);

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn connections(active: u64, total: u64) -> Option<Connections> {
        Some(Connections { active, total })
    }

    #[test]
    fn it_ends_when_nobody_came_for_the_quiet_period() {
        let mut watch = DrainWatch::new(LIMIT, QUIET);
        assert_eq!(watch.observe(at(0), connections(1, 9)), Verdict::Wait);
        assert_eq!(watch.observe(at(100), connections(0, 9)), Verdict::Wait);
        assert_eq!(watch.observe(at(2000), connections(0, 9)), Verdict::Wait);
        assert_eq!(watch.observe(at(2100), connections(0, 9)), Verdict::Quiet);
    }

    #[test]
    fn a_connection_between_two_samples_starts_the_quiet_period_anew() {
        let mut watch = DrainWatch::new(LIMIT, QUIET);
        assert_eq!(watch.observe(at(0), connections(0, 9)), Verdict::Wait);
        assert_eq!(watch.observe(at(1900), connections(0, 10)), Verdict::Wait);
        assert_eq!(watch.observe(at(2100), connections(0, 10)), Verdict::Wait);
        assert_eq!(watch.observe(at(3900), connections(0, 10)), Verdict::Quiet);
    }

    #[test]
    fn an_envoy_that_does_not_answer_is_not_quiet() {
        let mut watch = DrainWatch::new(LIMIT, QUIET);
        assert_eq!(watch.observe(at(0), connections(0, 9)), Verdict::Wait);
        assert_eq!(watch.observe(at(2500), None), Verdict::Wait);
        assert_eq!(watch.observe(LIMIT, None), Verdict::TimeUp);
    }

    proptest! {
        #[test]
        fn it_never_ends_early_and_never_late(
            steps in proptest::collection::vec((1_u64..3000, proptest::option::of((0_u64..3, 0_u64..2))), 1..200),
        ) {
            let mut watch = DrainWatch::new(LIMIT, QUIET);
            let (mut now, mut total) = (0, 0);
            let mut busy_at = Some(0_u64); // last time that somebody was, or may have been, connected
            for (advance, sample) in steps {
                now += advance;
                let sample = sample.map(|(active, new)| { total += new; (active, new, total) });
                if sample.is_none_or(|(active, new, _)| active > 0 || new > 0) { busy_at = Some(now); }
                match watch.observe(at(now), sample.and_then(|(active, _, total)| connections(active, total))) {
                    Verdict::Wait => prop_assert!(at(now) < LIMIT),
                    Verdict::Quiet => {
                        prop_assert!(at(now - busy_at.unwrap_or(0)) >= QUIET);
                        return Ok(());
                    }
                    Verdict::TimeUp => { prop_assert!(at(now) >= LIMIT); return Ok(()); }
                }
            }
        }
    }
}
