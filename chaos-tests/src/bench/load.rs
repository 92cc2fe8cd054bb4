//! A closed loop: each client has one call on its way, and makes the next when that is answered.
//!
//! In: connected clients, the calls to make, a time. Out: how long each took, and what failed.
//! Invariant: connecting and warming up are not part of what is counted; a call that failed is counted as failed and never as a time.
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::{Client, Door};
use crate::traffic::stats::Times;

/// Length of a value, in bytes.
pub const VALUE: usize = 512;
/// Keys of one client; it writes them in turn, over and over.
pub const KEYS: u64 = 16;
/// Before anything is counted.
const WARM_UP: Duration = Duration::from_millis(300);

/// Which calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Store a new value.
    Put,
    /// Read a key linearizably.
    Get,
}

/// What became of a load.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Of calls that were accepted.
    pub times: Times,
    /// Calls that were not.
    pub failed: u64,
    /// The first failure.
    pub failure: Option<String>,
    /// How long was counted.
    pub took: Duration,
}

impl Outcome {
    /// Accepted calls per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        ratio(self.times.count() as f64, self.took.as_secs_f64())
    }

    /// Adds another part of the same measurement.
    pub fn add(&mut self, other: &Self) {
        self.times.add(&other.times);
        self.failed += other.failed;
        self.failure = self.failure.take().or_else(|| other.failure.clone());
        self.took += other.took;
    }
}

/// A quotient; 0 if there is nothing to divide by.
#[must_use]
pub fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// A value that no other write has: base64 text, as a secret's must be.
#[must_use]
pub fn value(n: u64) -> Bytes {
    let mut text = format!("{n:016x}");
    // Different for every value, so that nothing along the way can make it small.
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while text.len() < VALUE {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        text.push(char::from(b'a' + u8::try_from((state >> 33) % 26).unwrap_or_default()));
    }
    text.into()
}

/// One client for each of `count`, at these doors in turn.
///
/// # Errors
/// If one cannot connect.
pub async fn connect(doors: &[Door], count: usize) -> anyhow::Result<Vec<Client>> {
    anyhow::ensure!(!doors.is_empty(), "nobody to connect to");
    let mut clients = Vec::with_capacity(count);
    let all: Vec<&Door> = doors.iter().cycle().take(count).collect();
    // Not all handshakes at once: servers limit how many they take in a moment.
    for some in all.chunks(16) {
        clients.extend(try_join_all(some.iter().map(|door| Client::open(door))).await?);
    }
    Ok(clients)
}

/// Runs the load. `counted` is called when counting begins, and its result is given back with the outcome.
///
/// # Errors
/// If a client panicked, or `counted` failed.
pub async fn run<T>(
    clients: Vec<Client>,
    work: Work,
    time: Duration,
    counted: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(Outcome, T)> {
    let begin = Instant::now() + WARM_UP;
    let end = begin + time;
    let mut running = JoinSet::new();
    for (n, client) in (0..).zip(clients) {
        running.spawn(one(client, n, work, begin, end));
    }
    crate::harness::wait::pause_until(begin).await;
    let told = counted()?;
    let mut outcome = Outcome {
        took: time,
        ..Outcome::default()
    };
    while let Some(done) = running.join_next().await {
        let part = done.context("a client of the load ended badly")?;
        outcome.add(&part);
    }
    Ok((outcome, told))
}

async fn one(mut client: Client, number: u64, work: Work, begin: Instant, end: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    // Values differ from run to run, too.
    let mut n = (rand_seed() << 20) | (number << 40);
    loop {
        let start = Instant::now();
        if start >= end {
            return outcome;
        }
        n += 1;
        let key = number * KEYS + n % KEYS;
        let done = match work {
            Work::Put => client.put(key, value(n)).await,
            Work::Get => client.get(key).await,
        };
        let now = Instant::now();
        match done {
            // What ends within the time counts: the rate is then right, whatever was under way at its ends.
            Ok(()) if now >= begin && now < end => outcome.times.record(now - start),
            Ok(()) => {}
            Err(error) => {
                outcome.failed += 1;
                outcome.failure.get_or_insert_with(|| format!("{error:#}"));
                // A server that refuses at once must not be asked ten thousand times a second.
                crate::harness::wait::pause_until(now + Duration::from_millis(5)).await;
            }
        }
    }
}

fn rand_seed() -> u64 {
    u64::from_be_bytes(uuid::Uuid::new_v4().as_bytes().first_chunk::<8>().copied().unwrap_or_default())
}

/// Stores every key below `count` once, with 64 clients.
///
/// # Errors
/// If a write fails.
pub async fn fill(doors: &[Door], count: u64) -> anyhow::Result<Duration> {
    const CLIENTS: u64 = 64;
    let clients = connect(doors, usize::try_from(CLIENTS)?).await?;
    let start = Instant::now();
    let seed = rand_seed();
    try_join_all((0..).zip(clients).map(|(first, mut client)| async move {
        for key in (first..count).step_by(usize::try_from(CLIENTS)?) {
            client
                .put(key, value(seed.wrapping_add(key)))
                .await
                .with_context(|| format!("key {key}"))?;
        }
        anyhow::Ok(())
    }))
    .await?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_base64_of_the_right_length_and_all_different() {
        let values: std::collections::BTreeSet<Bytes> = (0..100).map(value).collect();
        assert_eq!(values.len(), 100);
        assert!(
            values
                .iter()
                .all(|v| v.len() == VALUE && VALUE.is_multiple_of(4) && v.iter().all(u8::is_ascii_alphanumeric))
        );
    }

    #[test]
    fn outcomes_add_up() {
        let mut part = Outcome {
            took: Duration::from_secs(2),
            ..Outcome::default()
        };
        part.times.record(Duration::from_millis(1));
        let mut all = part.clone();
        all.add(&Outcome {
            failed: 1,
            failure: Some("no".into()),
            ..part
        });
        assert_eq!((all.times.count(), all.failed, all.failure.as_deref()), (2, 1, Some("no")));
        assert!((all.rate() - 0.5).abs() < 1e-9);
        assert!(ratio(1.0, 0.0).abs() < 1e-9);
    }
}
