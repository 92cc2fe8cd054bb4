//! Times when a change takes effect for requests: one request each millisecond until the first answer under the new rule.
//!
//! In: the moment the change was sent, a [`Side`] for each answer. Out: [`Seen`].
//! Invariant: requests start on schedule, not when the last one was answered (on one kept connection HTTP/1.1 allows just one at a
//! time: there the next starts at the next free slot). After the first new answer some more are sent, to see whether the old rule
//! comes back. Not here: sending the change.
use std::time::Duration;

use anyhow::bail;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Pool, Shot, fire, in_words};
use crate::client::{Answer, Error, Mode};
use crate::harness::wait::Pace;

/// Time between two requests: well below the times that are measured.
const PERIOD: Duration = Duration::from_millis(1);
/// New connections on their way at once. More would measure this machine's queue instead of the change.
const OVERLAP: usize = 16;
/// Further requests after the first answer under the new rule.
const AFTERWARDS: u32 = 10;

/// What an answer says about the rule that it was made under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// The rule before the change.
    Old,
    /// The rule after it.
    New,
    /// Neither: a failed request.
    Wrong(String),
}

/// What one probe saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// From the change's sending to the first answer under the new rule.
    pub first_new: Duration,
    /// Answers under the old rule to requests that were sent after the first new answer was there.
    pub old_after_new: u64,
    /// Failed requests.
    pub wrong: Vec<String>,
    /// How long each request took that was answered.
    pub requests: Vec<Duration>,
}

/// A probe of one kind of connection. The kept connection lives as long as the probe: the same for all changes.
#[derive(Debug)]
pub struct Probe {
    mode: Mode,
    pool: Pool,
}

impl Probe {
    /// A probe that opens a connection for each request, or keeps one.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            pool: Pool::default(),
        }
    }

    /// Connections opened so far. One that is kept stays at 1 unless it was closed by the other side.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.pool.opened
    }

    /// Sends requests until the new rule shows, and some more.
    ///
    /// # Errors
    /// If it does not show within `deadline`.
    pub async fn watch(
        &mut self,
        shot: &Shot,
        changed: Instant,
        deadline: Duration,
        side: impl Fn(&Answer) -> Side,
    ) -> anyhow::Result<Seen> {
        let overlap = if self.mode == Mode::KeptAlive { 1 } else { OVERLAP };
        let mut pace = Pace::every(PERIOD);
        let mut on_their_way = JoinSet::new();
        let (mut seen, mut first_new, mut further) = (Seen::default(), None, 0);
        while first_new.is_none() || further < AFTERWARDS {
            if changed.elapsed() > deadline && first_new.is_none() {
                let wrong = seen.wrong.last().map(|w| format!(", last failure: {w}")).unwrap_or_default();
                bail!(
                    "no answer under the new rule within {deadline:?} ({} answers under the old one{wrong})",
                    seen.requests.len()
                );
            }
            tokio::select! {
                biased;
                Some(done) = on_their_way.join_next() => self.settle(done?, &side, changed, &mut first_new, &mut seen),
                due = pace.slot() => {
                    // A slot that finds no free place is left out, not made up for.
                    if on_their_way.len() < overlap {
                        further += u32::from(first_new.is_some());
                        let (shot, conn) = (shot.clone(), self.pool.take());
                        let _running = on_their_way.spawn(async move { fire(&shot, conn, due.max(Instant::now())).await });
                    }
                }
            }
        }
        while let Some(done) = on_their_way.join_next().await {
            self.settle(done?, &side, changed, &mut first_new, &mut seen);
        }
        Ok(seen)
    }

    fn settle(
        &mut self,
        (answer, conn): (Result<Answer, Error>, Option<crate::client::Conn>),
        side: &impl Fn(&Answer) -> Side,
        changed: Instant,
        first_new: &mut Option<Instant>,
        seen: &mut Seen,
    ) {
        self.pool.put(self.mode, conn);
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return seen.wrong.push(in_words(&error)),
        };
        seen.requests.push(answer.took());
        match side(&answer) {
            Side::New => {
                let first = first_new.get_or_insert(answer.received);
                *first = (*first).min(answer.received);
                seen.first_new = first.saturating_duration_since(changed);
            }
            Side::Old => seen.old_after_new += u64::from(first_new.is_some_and(|first| answer.asked > first)),
            Side::Wrong(why) => seen.wrong.push(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::client::Target;
    use crate::echo::{Config, Workload};

    /// The rule is new for every answer from the tenth on, but old again for the thirteenth.
    fn turns_at_ten(count: &AtomicUsize) -> Side {
        match count.fetch_add(1, Ordering::Relaxed) + 1 {
            1..=9 | 13 => Side::Old,
            11 => Side::Wrong("odd".into()),
            _ => Side::New,
        }
    }

    #[tokio::test]
    async fn the_first_new_answer_is_timed_and_the_old_one_after_it_seen() {
        let workload = Workload::start(Config::local("a", "west")).await.unwrap();
        let shot = Shot::get(Target::Tcp(workload.address()));
        let (count, start) = (AtomicUsize::new(0), Instant::now());
        let mut probe = Probe::new(Mode::KeptAlive);
        let seen = probe
            .watch(&shot, start, Duration::from_secs(30), |_| turns_at_ten(&count))
            .await
            .unwrap();
        assert!(seen.first_new >= PERIOD * 9 && seen.first_new <= start.elapsed(), "{seen:?}");
        assert_eq!((seen.old_after_new, seen.wrong.len(), seen.requests.len()), (1, 1, 20));
        assert_eq!((probe.connections(), workload.connections()), (1, 1));
        // The next change on the same connection.
        probe
            .watch(&shot, Instant::now(), Duration::from_secs(30), |_| Side::New)
            .await
            .unwrap();
        assert_eq!(workload.connections(), 1);
    }

    #[tokio::test]
    async fn new_connections_are_new() {
        let workload = Workload::start(Config::local("a", "west")).await.unwrap();
        let shot = Shot::get(Target::Tcp(workload.address()));
        let mut probe = Probe::new(Mode::NewConnection);
        let seen = probe
            .watch(&shot, Instant::now(), Duration::from_secs(30), |_| Side::New)
            .await
            .unwrap();
        assert_eq!(workload.connections(), seen.requests.len());
        assert_eq!(probe.connections(), u64::try_from(seen.requests.len()).unwrap());
    }

    #[tokio::test]
    async fn a_change_that_never_shows_is_an_error() {
        let workload = Workload::start(Config::local("a", "west")).await.unwrap();
        let shot = Shot::get(Target::Tcp(workload.address()));
        let error = Probe::new(Mode::KeptAlive)
            .watch(&shot, Instant::now(), Duration::from_millis(50), |_| Side::Old)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("no answer under the new rule"), "{error}");
    }
}
