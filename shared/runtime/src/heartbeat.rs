//! Periodic work: heartbeats, resyncs, renewal checks. One of the three modules that may hold a timer (the others: backoff, lease).
//! In: a period. Out: ticks until cancelled.
//! Invariant: nothing on the path of a change waits for a tick; a tick only repairs or reports.
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// A period of zero would spin.
const MIN_PERIOD: Duration = Duration::from_millis(1);

/// Ticks once per period. A missed tick is not made up for: the next comes one period after the late one.
#[derive(Debug)]
pub struct Ticker {
    interval: Interval,
    cancel: CancellationToken,
}

/// A ticker whose first tick comes one `period` from now.
pub fn every(period: Duration, cancel: &CancellationToken) -> Ticker {
    let period = period.max(MIN_PERIOD);
    every_from(Instant::now() + period, period, cancel)
}

/// A ticker whose first tick comes after a random part of `period`, so that many peers do not tick together.
pub fn every_spread(period: Duration, cancel: &CancellationToken) -> Ticker {
    let period = period.max(MIN_PERIOD);
    every_from(Instant::now() + period.mul_f64(rand::random::<f64>()), period, cancel)
}

fn every_from(start: Instant, period: Duration, cancel: &CancellationToken) -> Ticker {
    #[allow(clippy::disallowed_methods, reason = "the module that holds periodic timers")]
    let mut interval = tokio::time::interval_at(start, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Ticker {
        interval,
        cancel: cancel.clone(),
    }
}

impl Ticker {
    /// Waits for the next tick: `true` at a tick, `false` as soon as the token is cancelled (and ever after). Cancel-safe.
    pub async fn tick(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => false,
            _ = self.interval.tick() => true,
        }
    }

    /// Starts the period anew from now.
    pub fn reset(&mut self) {
        self.interval.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ticks_once_per_period_and_not_at_once() {
        let start = Instant::now();
        let mut ticker = every(Duration::from_secs(5), &CancellationToken::new());
        assert!(ticker.tick().await);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        assert!(ticker.tick().await);
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn missed_ticks_are_not_made_up_for() {
        let mut ticker = every(Duration::from_secs(1), &CancellationToken::new());
        tokio::time::advance(Duration::from_millis(10_500)).await;
        assert!(ticker.tick().await);
        let late = Instant::now();
        assert!(ticker.tick().await);
        assert_eq!(late.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_spread_ticker_starts_within_its_period() {
        let start = Instant::now();
        assert!(every_spread(Duration::from_secs(60), &CancellationToken::new()).tick().await);
        assert!(start.elapsed() <= Duration::from_secs(61));
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_its_token() {
        let cancel = CancellationToken::new();
        let mut ticker = every(Duration::ZERO, &cancel);
        cancel.cancel();
        assert!(!ticker.tick().await);
        assert!(!ticker.tick().await);
    }
}
