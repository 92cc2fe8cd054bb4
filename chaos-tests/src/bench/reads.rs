//! Linearizable reads of both systems, in turn: at the leader, and at a follower.
//!
//! In: both clusters, numbers of clients. Out: rates and times.
use serde_json::json;

use super::Options;
use super::cluster::{Cluster, System};
use super::load::{KEYS, Outcome, Work, connect, fill, ratio, run};
use super::writes::note_failures;
use crate::report::{Report, Row};

/// # Errors
/// If a load cannot run.
pub async fn run_all(options: &Options, clusters: &[Cluster], report: &mut Report) -> anyhow::Result<()> {
    report.step("Linearizable reads through the API");
    let most = options.clients.iter().copied().max().unwrap_or(1) as u64;
    for cluster in clusters {
        fill(&[cluster.door(&cluster.leader().await?)?], most * KEYS).await?;
    }
    let mut told = Vec::new();
    for (&clients, at_leader) in options.clients.iter().map(|c| (c, true)).chain([(&64, false)]) {
        let mut parts: Vec<(System, Outcome)> = clusters.iter().map(|c| (c.system, Outcome::default())).collect();
        for _ in 0..options.rounds {
            for (cluster, (_, sum)) in clusters.iter().zip(&mut parts) {
                let leader = cluster.leader().await?;
                let mut doors = cluster.doors_but(Some(leader.id))?;
                doors.truncate(1);
                if at_leader {
                    doors = vec![cluster.door(&leader)?];
                }
                let (outcome, ()) = run(connect(&doors, clients).await?, Work::Get, options.slice, || Ok(())).await?;
                sum.add(&outcome);
            }
        }
        let place = if at_leader { "at the leader" } else { "at a follower" };
        let group = format!("{clients} clients, {place}");
        report.times(
            parts
                .iter()
                .map(|(system, outcome)| Row {
                    group: group.clone(),
                    name: system.name().to_owned(),
                    times: outcome.times.clone(),
                })
                .collect(),
        );
        for (system, outcome) in &parts {
            report.note(&format!("{:<5} {:>7.0} reads/s", system.name(), outcome.rate()));
            note_failures(report, *system, outcome);
            told.push(json!({
                "system": system.name(), "clients": clients, "at": place, "per_second": outcome.rate(), "failed": outcome.failed,
                "p50_us": outcome.times.quantile(0.5).as_micros() as u64, "p99_us": outcome.times.quantile(0.99).as_micros() as u64,
            }));
        }
        if let [(_, ours), (_, theirs)] = parts.as_slice() {
            let faster = ratio(ours.rate(), theirs.rate());
            let tail = ratio(ours.times.quantile(0.99).as_secs_f64(), theirs.times.quantile(0.99).as_secs_f64());
            report.note(&format!("ursa : etcd   reads/s {faster:.2}; p99 {tail:.2}"));
        }
        if let Some((_, ours)) = parts.first() {
            report.check(&format!("{group}: no read failed"), ours.failed == 0, "");
        }
    }
    report.about("reads", told);
    Ok(())
}
