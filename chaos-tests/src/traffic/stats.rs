//! Times, counted.
//!
//! In: durations. Out: quantiles. Invariant: microseconds, three significant digits, from 1 us to 10 minutes; what is longer counts
//! as 10 minutes rather than being lost.
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest time that is told apart, in microseconds.
const LONGEST: u64 = 600_000_000;

/// A histogram of durations.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST, 3).expect("1 < LONGEST and three digits are within the crate's limits"))
    }
}

impl Times {
    /// Counts one.
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(LONGEST));
    }

    /// Adds all of another.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so that nothing can be out of range.
        let _same_bounds = self.0.add(&other.0);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that a fraction `q` (0..=1) of all stayed within; zero if none was counted.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Duration {
        Duration::from_micros(if self.0.is_empty() { 0 } else { self.0.value_at_quantile(q) })
    }

    /// The mean; zero if none was counted.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64((self.0.mean() / 1e6).max(0.0))
    }

    /// The longest.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.0.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_within_three_digits() {
        let mut times = Times::default();
        assert_eq!(times.quantile(0.99), Duration::ZERO);
        for ms in 1..=1000 {
            times.record(Duration::from_millis(ms));
        }
        let near = |got: Duration, ms: u64| got.abs_diff(Duration::from_millis(ms)) < Duration::from_millis(2);
        assert!(near(times.quantile(0.5), 500) && near(times.quantile(0.99), 990) && near(times.max(), 1000));
        assert!(near(times.mean(), 500));
        times.record(Duration::from_secs(100_000));
        assert_eq!(times.count(), 1001);
        let mut sum = Times::default();
        sum.add(&times);
        assert_eq!(sum.count(), 1001);
    }
}
