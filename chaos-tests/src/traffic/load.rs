//! Constant load in the background of a scenario.
//!
//! In: a [`Plan`]. Out, when it is stopped: an [`Outcome`].
//! Invariant: `rate` requests per second are sent whatever the system does; each counts once, as right or as failed.
//! Latency runs from the moment a request was due, so a stall counts for every request that it held up.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::stats::Times;
use super::{Pool, Shot, fire, in_words};
use crate::client::{Answer, Conn, Error, Mode};
use crate::harness::wait::Pace;

/// Failures that are kept with their text; further ones are only counted.
const KEEP_FAILURES: usize = 50;

/// Tells right from wrong: the label under which a right answer is counted, or what is wrong with it.
pub type Judge = Arc<dyn Fn(&Answer) -> Result<String, String> + Send + Sync>;

/// What to send.
#[derive(Clone)]
pub struct Plan {
    /// For the report.
    pub name: String,
    /// The request.
    pub shot: Shot,
    /// Requests per second, at least 1.
    pub rate: u32,
    /// New connection each time, or as few kept ones as the load needs.
    pub mode: Mode,
    /// What the right answer is.
    pub judge: Judge,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}/s, {:?}", self.name, self.rate, self.mode)
    }
}

/// One second of the series.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Second {
    /// Right answers to requests that were due in this second.
    pub ok: u64,
    /// Failures of requests that were due in this second.
    pub failed: u64,
    /// The slowest right answer.
    pub slowest: Duration,
}

/// One failed request.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it was due, from the start of the load.
    pub at: Duration,
    /// Why.
    pub why: String,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Right answers.
    pub ok: u64,
    /// Failures.
    pub failed: u64,
    /// Right answers by label.
    pub counts: BTreeMap<String, u64>,
    /// Time of the right answers, from when they were due.
    pub times: Times,
    /// By second from the start.
    pub seconds: Vec<Second>,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// Connections opened.
    pub connections: u64,
}

impl Outcome {
    /// All requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ok + self.failed
    }

    /// One line: how many, and the first failure if there is one.
    #[must_use]
    pub fn summary(&self) -> String {
        let first = self
            .failures
            .first()
            .map(|f| format!("; first failure at {:?}: {}", f.at, f.why))
            .unwrap_or_default();
        format!("{} of {} right, {} connections{first}", self.ok, self.total(), self.connections)
    }

    fn count(&mut self, start: Instant, due: Instant, judged: Result<(String, Instant), String>) {
        let at = due.saturating_duration_since(start);
        let second = usize::try_from(at.as_secs()).unwrap_or(usize::MAX);
        while self.seconds.len() <= second {
            self.seconds.push(Second::default());
        }
        let series = &mut self.seconds[second];
        match judged {
            Ok((label, received)) => {
                let took = received.saturating_duration_since(due);
                self.ok += 1;
                series.ok += 1;
                series.slowest = series.slowest.max(took);
                self.times.record(took);
                *self.counts.entry(label).or_default() += 1;
            }
            Err(why) => {
                self.failed += 1;
                series.failed += 1;
                if self.failures.len() < KEEP_FAILURES {
                    self.failures.push(Failure { at, why });
                }
            }
        }
    }
}

/// Running load. Dropping it stops it at once and loses the numbers; [`Load::stop`] gets them.
#[derive(Debug)]
pub struct Load {
    stop: CancellationToken,
    task: JoinSet<Outcome>,
}

impl Load {
    /// Starts sending.
    #[must_use]
    pub fn start(plan: Plan) -> Self {
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(run(plan, stop.clone()));
        Self { stop, task }
    }

    /// Stops sending, waits for the requests that are on their way (at most [`super::LIMIT`]) and returns the numbers.
    pub async fn stop(mut self) -> Outcome {
        self.stop.cancel();
        match self.task.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Outcome {
                failed: 1,
                failures: vec![Failure {
                    at: Duration::ZERO,
                    why: error.to_string(),
                }],
                ..Outcome::default()
            },
            None => Outcome::default(),
        }
    }

    /// Sends exactly `requests` requests and returns the numbers.
    pub async fn exactly(plan: Plan, requests: u32) -> Outcome {
        send(plan, Some(requests), CancellationToken::new()).await
    }
}

async fn run(plan: Plan, stop: CancellationToken) -> Outcome {
    send(plan, None, stop).await
}

type Done = (Instant, Result<Answer, Error>, Option<Conn>);

async fn send(plan: Plan, limit: Option<u32>, stop: CancellationToken) -> Outcome {
    let shot = Arc::new(plan.shot);
    let mut pace = Pace::every(Duration::from_secs(1) / plan.rate.max(1));
    let start = Instant::now();
    let (mut outcome, mut pool, mut sent) = (Outcome::default(), Pool::default(), 0);
    // Each lives at most LIMIT, so at most about `rate` are on their way at any time.
    let mut on_their_way: JoinSet<Done> = JoinSet::new();
    let settle = |outcome: &mut Outcome, pool: &mut Pool, done: Result<Done, tokio::task::JoinError>| match done {
        Ok((due, answer, conn)) => {
            pool.put(plan.mode, conn);
            let judged = answer.map_err(|e| in_words(&e)).and_then(|a| Ok(((plan.judge)(&a)?, a.received)));
            outcome.count(start, due, judged);
        }
        Err(error) => outcome.count(start, Instant::now(), Err(error.to_string())),
    };
    while limit.is_none_or(|limit| sent < limit) {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(done) = on_their_way.join_next() => settle(&mut outcome, &mut pool, done),
            due = pace.slot() => {
                let (shot, conn) = (shot.clone(), pool.take());
                sent = sent.saturating_add(1);
                on_their_way.spawn(async move {
                    let (answer, conn) = fire(&shot, conn, due).await;
                    (due, answer, conn)
                });
            }
        }
    }
    while let Some(done) = on_their_way.join_next().await {
        settle(&mut outcome, &mut pool, done);
    }
    outcome.connections = pool.opened;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Target;
    use crate::echo::{Config, Said, Workload};
    use crate::harness::{POLL, Poll, wait_until};

    fn plan(target: Target, rate: u32, mode: Mode) -> Plan {
        let judge: Judge = Arc::new(|answer| answer.json::<Said>().map(|said| said.zone).map_err(|e| e.to_string()));
        Plan {
            name: "test".into(),
            shot: Shot::get(target),
            rate,
            mode,
            judge,
        }
    }

    #[tokio::test]
    async fn it_sends_at_its_rate_and_counts_by_label() {
        let workload = Workload::start(Config::local("a", "west")).await.unwrap();
        let start = Instant::now();
        let kept = Load::exactly(plan(Target::Tcp(workload.address()), 500, Mode::KeptAlive), 100).await;
        assert!(start.elapsed() >= Duration::from_millis(198), "100 requests at 500/s take 198 ms");
        assert_eq!(
            (kept.ok, kept.failed, kept.counts["west"], kept.times.count()),
            (100, 0, 100, 100),
            "{kept:?}"
        );
        assert!(kept.connections < 100 && workload.connections() < 100);
        let before = workload.connections();
        let new = Load::exactly(plan(Target::Tcp(workload.address()), 500, Mode::NewConnection), 50).await;
        assert_eq!((new.ok, new.connections, workload.connections() - before), (50, 50, 50));
    }

    #[tokio::test]
    async fn a_dead_server_fails_every_request_and_the_load_goes_on() {
        let workload = Workload::start(Config::local("a", "west")).await.unwrap();
        let address = workload.address();
        let load = Load::start(plan(Target::Tcp(address), 200, Mode::KeptAlive));
        let busy = async || Ok(Poll::when(workload.connections() > 0, (), || "no connection yet".into()));
        wait_until("the load has begun", Duration::from_secs(30), POLL, busy).await.unwrap();
        drop(workload);
        let dead = Load::exactly(plan(Target::Tcp(address), 200, Mode::KeptAlive), 20).await;
        assert_eq!((dead.ok, dead.failed), (0, 20));
        let outcome = load.stop().await;
        assert!(outcome.ok > 0 && outcome.failed > 0, "{}", outcome.summary());
        assert_eq!(outcome.seconds.iter().map(|s| s.ok + s.failed).sum::<u64>(), outcome.total());
        assert!(!outcome.failures.is_empty());
    }

    #[tokio::test]
    async fn silence_is_a_failure_after_the_limit_and_does_not_stop_the_load() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outcome = Load::exactly(plan(Target::Tcp(silent.local_addr().unwrap()), 1000, Mode::KeptAlive), 30).await;
        assert_eq!((outcome.failed, outcome.connections), (30, 30), "{}", outcome.summary());
        assert!(outcome.failures[0].why.contains("no answer within 1s"));
    }

    #[tokio::test]
    async fn an_answer_that_is_not_expected_is_a_failure() {
        let workload = Workload::start(Config::local("a", "west")).await.unwrap();
        let judge: Judge = Arc::new(|answer| Err(format!("got {}", answer.status)));
        let outcome = Load::exactly(
            Plan {
                judge,
                ..plan(Target::Tcp(workload.address()), 1000, Mode::KeptAlive)
            },
            5,
        )
        .await;
        assert_eq!((outcome.ok, outcome.failed), (0, 5));
        assert_eq!(outcome.failures[0].why, "got 200 OK");
    }
}
