//! How long no write is accepted when the leader is killed, with clients at the other two members.
//!
//! In: both clusters, a number of kills. Out: the longest time without an accepted write around each kill.
//! Invariant: the same clients for both systems: each gives a call 100 ms, then drops it and makes another, so that one that hangs
//! on the old leader does not hide the new one.
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Options;
use super::client::{Client, Door};
use super::cluster::{Cluster, System};
use super::load::value;
use crate::harness::wait::pause_until;
use crate::harness::{POLL, Poll, wait_until};
use crate::report::{Report, Row};
use crate::traffic::stats::Times;

/// Clients in all.
const CLIENTS: usize = 16;
/// What a client gives one call.
const PATIENCE: Duration = Duration::from_millis(100);
/// Between two calls of one client.
const PAUSE: Duration = Duration::from_millis(5);
/// Writes that must have been accepted before a kill, and since it, before it is over.
const ENOUGH: usize = 50;
/// For a group to accept writes again.
const PATIENT: Duration = Duration::from_secs(60);

/// # Errors
/// If writes are not accepted again, or a killed member does not come back.
pub async fn run_all(options: &Options, clusters: &[Cluster], report: &mut Report) -> anyhow::Result<()> {
    report.step(&format!("Fail-over: {} kills of the leader", options.kills));
    let mut rows: Vec<(System, Times)> = clusters.iter().map(|c| (c.system, Times::default())).collect();
    for _ in 0..options.kills {
        for (cluster, (system, times)) in clusters.iter().zip(&mut rows) {
            times.record(kill(cluster).await.with_context(|| format!("fail-over of {}", system.name()))?);
        }
    }
    report.times(
        rows.iter()
            .map(|(system, times)| Row {
                group: "time without accepted writes".to_owned(),
                name: system.name().to_owned(),
                times: times.clone(),
            })
            .collect(),
    );
    if let Some((_, ours)) = rows.first() {
        let p99 = ours.quantile(0.99);
        report.check(
            "p99 of the time without accepted writes is at most 1 s",
            p99 <= Duration::from_secs(1),
            format!("{p99:?}"),
        );
    }
    let told: Vec<_> = rows
        .iter()
        .map(|(system, times)| {
            let ms = |q| times.quantile(q).as_secs_f64() * 1e3;
            json!({"system": system.name(), "kills": times.count(), "p50_ms": ms(0.5), "p99_ms": ms(0.99), "max_ms": ms(1.0)})
        })
        .collect();
    report.about("failover", told);
    Ok(())
}

/// One kill, and back to three members.
async fn kill(cluster: &Cluster) -> anyhow::Result<Duration> {
    let leader = cluster.leader().await?;
    let doors = cluster.doors_but(Some(leader.id))?;
    let accepted: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let mut clients = JoinSet::new();
    for (number, door) in (0..).zip(doors.iter().cycle().take(CLIENTS)) {
        clients.spawn(write(door.clone(), number, accepted.clone()));
    }
    let since = async |from: Instant| {
        wait_until("writes are accepted", PATIENT, POLL, async || {
            let count = accepted.lock().iter().filter(|at| **at > from).count();
            Ok(Poll::when(count >= ENOUGH, (), || format!("{count} so far")))
        })
        .await
    };
    since(Instant::now()).await?;
    let killed = Instant::now();
    cluster.fleet.signal(&leader.name, Signal::SIGKILL)?;
    since(killed).await?;
    clients.shutdown().await;
    let gap = longest_gap(accepted.lock().clone(), killed);
    cluster.fleet.wait_gone(&leader.name, PATIENT).await?;
    cluster.fleet.restart(&leader.name)?;
    cluster.wait_ready(&leader).await?;
    Ok(gap)
}

/// The longest time between two accepted writes of which the later came after the kill.
fn longest_gap(mut accepted: Vec<Instant>, killed: Instant) -> Duration {
    accepted.sort_unstable();
    let pairs = accepted.windows(2).filter_map(|pair| match pair {
        [a, b] if *b > killed => Some(b.duration_since((*a).max(killed))),
        _ => None,
    });
    pairs.max().unwrap_or_default()
}

async fn write(door: Door, number: u64, accepted: Arc<Mutex<Vec<Instant>>>) {
    let mut client = None;
    let mut n = number << 32;
    loop {
        n += 1;
        let call = async {
            let open: &mut Client = match &mut client {
                Some(open) => open,
                none => none.insert(Client::open(&door).await?),
            };
            open.put(number, value(n)).await
        };
        // Otherwise not accepted; what it was is no matter here.
        if let Ok(Ok(())) = tokio::time::timeout(PATIENCE, call).await {
            accepted.lock().push(Instant::now());
        }
        pause_until(Instant::now() + PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_longest_after_the_kill() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let gap = |accepted: &[u64], killed| longest_gap(accepted.iter().map(|ms| at(*ms)).collect(), at(killed));
        // A pause before the kill is none of its doing, and the one that it falls into counts from the kill.
        assert_eq!(gap(&[0, 500, 510, 520, 900, 910], 515), Duration::from_millis(380));
        assert_eq!(gap(&[0, 500], 400), Duration::from_millis(100));
        assert_eq!(gap(&[0, 10], 20), Duration::ZERO);
    }
}
