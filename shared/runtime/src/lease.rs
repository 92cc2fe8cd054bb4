//! Deadlines and leases on the monotonic clock. One of the three modules that may hold a timer (the others: backoff, heartbeat).
//! In: a duration, renewals. Out: whether and when it runs out.
//! Invariant: uses tokio's clock, so that tests can pause it; a lease never ends early, whatever the wall clock does.
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// Far enough to mean never, near enough that adding it to an instant cannot overflow.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The time was over before the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not done within {0:?}")]
pub struct Expired(pub Duration);

/// A moment after which something no longer holds. It can be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// `duration` from now.
    pub fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration.min(NEVER))
    }

    /// At `instant`.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// Has it passed?
    pub fn has_passed(&self) -> bool {
        Instant::now() >= self.0
    }

    /// Time left; zero once it has passed.
    pub fn remaining(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Moves it to `duration` from now. It never moves towards the past.
    pub fn renew(&mut self, duration: Duration) {
        self.0 = self.0.max(Instant::now() + duration.min(NEVER));
    }

    /// Waits until it has passed, as seen when called: a later renewal does not prolong a running wait. Cancel-safe.
    pub async fn passed(&self) {
        #[allow(clippy::disallowed_methods, reason = "the module that holds deadlines")]
        tokio::time::sleep_until(self.0).await;
    }

    /// The instant itself.
    pub fn instant(&self) -> Instant {
        self.0
    }
}

/// Runs `future` for at most `limit`. Every wait for a peer goes through this.
///
/// # Errors
/// [`Expired`] when the time was over; `future` is then dropped.
pub async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, Expired> {
    tokio::time::timeout(limit.min(NEVER), future).await.map_err(|_| Expired(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_passes_once_and_can_be_renewed() {
        let mut deadline = Deadline::after(Duration::from_secs(3));
        assert!(!deadline.has_passed());
        tokio::time::advance(Duration::from_secs(2)).await;
        deadline.renew(Duration::from_secs(3));
        assert_eq!(deadline.remaining(), Duration::from_secs(3));
        deadline.renew(Duration::from_secs(1));
        assert_eq!(deadline.remaining(), Duration::from_secs(3), "never towards the past");
        deadline.passed().await;
        assert!(deadline.has_passed());
        assert_eq!(deadline.remaining(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn within_limits_a_wait() {
        assert_eq!(within(Duration::from_secs(1), async { 7 }).await, Ok(7));
        let limit = Duration::from_secs(1);
        assert_eq!(within(limit, std::future::pending::<()>()).await, Err(Expired(limit)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_duration_does_not_overflow() {
        assert!(!Deadline::after(Duration::MAX).has_passed());
        assert_eq!(within(Duration::MAX, async {}).await, Ok(()));
    }
}
