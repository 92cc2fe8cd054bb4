//! The only place of this crate that lets time pass: waiting for a predicate, and pacing an open loop.
//!
//! In: a question that is asked again and again, and a deadline. Out: its answer, or an error that says what was waited for and
//! what was missing at the last look. Invariant: no test sleeps for a guessed time; a deadline is a failure, never a way on.
//! Source: CONVENTIONS.md C13, "wait for a predicate on state with a reason".
use std::time::Duration;

use tokio::time::Instant;

/// How often a question is asked. 5 ms is far below anything a person notices and costs a local process next to nothing.
pub const POLL: Duration = Duration::from_millis(5);

/// The answer to one look.
#[derive(Debug)]
pub enum Poll<T> {
    /// The condition holds; this is what was seen.
    Ready(T),
    /// Not yet, and why: the text ends up in the error if the deadline passes.
    NotYet(String),
}

impl<T> Poll<T> {
    /// Ready when `holds`, otherwise not yet because of `why`.
    pub fn when(holds: bool, value: T, why: impl FnOnce() -> String) -> Self {
        if holds { Self::Ready(value) } else { Self::NotYet(why()) }
    }
}

/// The deadline passed.
#[derive(Debug, thiserror::Error)]
#[error("waited {waited:?} in vain for: {what}; last seen: {last}")]
pub struct TimedOut {
    /// What was waited for.
    pub what: String,
    /// How long.
    pub waited: Duration,
    /// What the last look found instead.
    pub last: String,
}

/// Asks `look` every `poll` (2-10 ms; see [`POLL`]) until it is ready, fails, or `deadline` has passed since the call.
///
/// A look that hangs is cut off at the deadline, so this never waits longer than asked. Returns what was seen and how long it took.
/// Cancel-safe as far as `look` is.
///
/// # Errors
/// [`TimedOut`] at the deadline; an error of `look` at once, for it says that waiting is pointless.
pub async fn wait_until<T, F>(what: &str, deadline: Duration, poll: Duration, mut look: F) -> anyhow::Result<(T, Duration)>
where
    F: AsyncFnMut() -> anyhow::Result<Poll<T>>,
{
    let start = Instant::now();
    let end = start + deadline;
    let mut last = "nothing: the first look did not come back".to_owned();
    loop {
        match tokio::time::timeout_at(end, look()).await {
            Ok(Ok(Poll::Ready(seen))) => return Ok((seen, start.elapsed())),
            Ok(Ok(Poll::NotYet(why))) => last = why,
            Ok(Err(error)) => return Err(error.context(format!("while waiting for: {what}"))),
            Err(_elapsed) => {
                return Err(TimedOut {
                    what: what.to_owned(),
                    waited: start.elapsed(),
                    last,
                }
                .into());
            }
        }
        if Instant::now() + poll >= end {
            return Err(TimedOut {
                what: what.to_owned(),
                waited: start.elapsed(),
                last,
            }
            .into());
        }
        pause_until(Instant::now() + poll).await;
    }
}

/// As [`wait_until`] while faults are under way: whoever is asked may fail for a moment, so an error of `look` is one more "not yet".
///
/// # Errors
/// [`TimedOut`] at the deadline, with the last error.
pub async fn wait_through<T, F>(what: &str, deadline: Duration, poll: Duration, mut look: F) -> anyhow::Result<(T, Duration)>
where
    F: AsyncFnMut() -> anyhow::Result<Poll<T>>,
{
    let look = async || Ok(look().await.unwrap_or_else(|error| Poll::NotYet(format!("{error:#}"))));
    wait_until(what, deadline, poll, look).await
}

/// The schedule of an open loop: slot `n` is due at `start + n / rate`, whatever happened to the slots before.
///
/// A loop that fell behind gets its missed slots at once, one after another, so that the offered load stays what was asked for.
#[derive(Debug)]
pub struct Pace {
    start: Instant,
    period: Duration,
    next: u32,
}

impl Pace {
    /// A schedule with one slot each `period`, the first one now. Holds for `u32::MAX` slots.
    #[must_use]
    pub fn every(period: Duration) -> Self {
        Self {
            start: Instant::now(),
            period,
            next: 0,
        }
    }

    /// Waits for the next slot and returns the time it was due: latency is counted from there, not from when the loop got to it.
    /// Cancel-safe: a slot is used up only when it is returned.
    pub async fn slot(&mut self) -> Instant {
        let due = self.start + self.period.saturating_mul(self.next);
        pause_until(due).await;
        self.next = self.next.saturating_add(1);
        due
    }
}

/// Lets time pass until `due`; at once if that is over.
#[allow(
    clippy::disallowed_methods,
    reason = "test code waits here and nowhere else; no change of the system passes through"
)]
pub(crate) async fn pause_until(due: Instant) {
    tokio::time::sleep_until(due).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_returns_what_was_seen_and_the_time_it_took() {
        let mut looks = 0;
        let (seen, took) = wait_until("the third look", Duration::from_secs(1), POLL, async || {
            looks += 1;
            Ok(Poll::when(looks == 3, looks, || format!("look {looks}")))
        })
        .await
        .unwrap();
        assert_eq!(seen, 3);
        assert_eq!(took, POLL * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_says_what_was_missing() {
        let error = wait_until::<(), _>("rain", Duration::from_millis(20), POLL, async || Ok(Poll::NotYet("sun".into())))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("in vain for: rain; last seen: sun"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_is_cut_off() {
        let error = wait_until::<(), _>("an answer", Duration::from_secs(2), POLL, async || std::future::pending().await)
            .await
            .unwrap_err();
        assert!(
            error.downcast_ref::<TimedOut>().is_some_and(|t| t.waited == Duration::from_secs(2)),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_ends_the_wait_at_once() {
        let start = Instant::now();
        let error = wait_until::<(), _>("a sign", Duration::from_secs(60), POLL, async || anyhow::bail!("it died"))
            .await
            .unwrap_err();
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(error.root_cause().to_string(), "it died");
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_only_a_look_while_faults_are_under_way() {
        let mut looks = 0;
        let look = async || {
            looks += 1;
            anyhow::ensure!(looks > 2, "it is away");
            Ok(Poll::Ready(looks))
        };
        assert_eq!(wait_through("it", Duration::from_secs(1), POLL, look).await.unwrap().0, 3);
        let error = wait_through::<(), _>("it", Duration::from_secs(1), POLL, async || anyhow::bail!("it is away"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("last seen: it is away"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_keeps_its_rate_and_catches_up() {
        let start = Instant::now();
        let mut pace = Pace::every(Duration::from_millis(10));
        for _ in 0..3 {
            pace.slot().await;
        }
        assert_eq!(start.elapsed(), Duration::from_millis(20));
        tokio::time::advance(Duration::from_millis(25)).await; // now at 45 ms: the slots of 30 and 40 ms are overdue
        assert_eq!(pace.slot().await, start + Duration::from_millis(30));
        assert_eq!(pace.slot().await, start + Duration::from_millis(40));
        assert_eq!(start.elapsed(), Duration::from_millis(45));
        pace.slot().await;
        assert_eq!(start.elapsed(), Duration::from_millis(50));
    }
}
