//! Waiting before a retry. One of the three modules that may hold a timer (the others: heartbeat, lease).
//! In: base and cap. Out: growing, jittered delays.
//! Invariant: a delay is never above the cap and never below half of its step, so that retries spread but do not hammer.
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Shortest base; zero would make a busy loop of a failing peer.
const MIN_BASE: Duration = Duration::from_millis(1);

/// Jittered exponential back-off with a cap: the n-th delay is `min(base * 2^n, cap)`, of which the last half is random.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// `base` is the first step, at least 1 ms; `cap` the longest.
    pub fn new(base: Duration, cap: Duration) -> Self {
        let base = base.max(MIN_BASE);
        Self {
            base,
            cap: cap.max(base),
            attempt: 0,
        }
    }

    /// The next delay; the one after it is longer.
    pub fn next_delay(&mut self) -> Duration {
        let delay = delay(self.base, self.cap, self.attempt, rand::random::<f64>());
        self.attempt = self.attempt.saturating_add(1);
        delay
    }

    /// Waits for the next delay. `false` as soon as the token is cancelled: give up. Cancel-safe, but a cancelled wait counts.
    pub async fn wait(&mut self, cancel: &CancellationToken) -> bool {
        let delay = self.next_delay();
        #[allow(clippy::disallowed_methods, reason = "the module that holds retries")]
        let sleep = tokio::time::sleep(delay);
        tokio::select! {
            biased;
            () = cancel.cancelled() => false,
            () = sleep => true,
        }
    }

    /// Back to the first step: the last attempt succeeded.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// How many delays were handed out since the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }
}

/// The delay before retry `attempt` (0 is the first), with `random` in 0..1 choosing the jitter. Pure.
pub fn delay(base: Duration, cap: Duration, attempt: u32, random: f64) -> Duration {
    let step = base.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(cap);
    step.div_f64(2.0) + step.div_f64(2.0).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::time::Instant;

    #[test]
    fn it_doubles_up_to_the_cap() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(2));
        let delays: Vec<u128> = (0..7).map(|n| delay(base, cap, n, 1.0).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(delay(base, cap, 1, 0.0), Duration::from_millis(100), "half of it is jitter");
    }

    proptest! {
        #[test]
        fn a_delay_stays_in_its_bounds(base in 1_u64..10_000, cap in 1_u64..600_000, attempt: u32, random in 0.0..1.0_f64) {
            let mut backoff = Backoff::new(Duration::from_millis(base), Duration::from_millis(cap));
            backoff.attempt = attempt;
            let bounds = Duration::from_millis(base) / 2..=Duration::from_millis(cap.max(base));
            prop_assert!(bounds.contains(&delay(backoff.base, backoff.cap, attempt, random)));
            prop_assert!(bounds.contains(&backoff.next_delay()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wait_grows_and_reset_starts_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let cancel = CancellationToken::new();
        for attempt in 0..5 {
            let start = Instant::now();
            assert!(backoff.wait(&cancel).await);
            assert!(start.elapsed() >= Duration::from_millis(50 << attempt));
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_wait_says_so() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        assert!(!Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).wait(&cancel).await);
    }
}
