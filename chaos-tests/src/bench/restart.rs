//! Memory and restart with many resources.
//!
//! In: clusters, a number of resources. Out: memory for each byte stored; how long a member, and how long all, take to be back.
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::Instant;

use super::Options;
use super::cluster::Cluster;
use super::load::{VALUE, connect, fill, ratio};
use crate::report::{Report, milliseconds};

/// For a member to end.
const GRACE: Duration = Duration::from_secs(30);

/// # Errors
/// If a member does not come back.
pub async fn run_all(options: &Options, clusters: &[Cluster], report: &mut Report) -> anyhow::Result<()> {
    let count = options.resources;
    report.step(&format!("Memory and restart with {count} resources of {VALUE} bytes"));
    let mut told = Vec::new();
    for cluster in clusters {
        let name = cluster.system.name();
        let filled = fill(&[cluster.door(&cluster.leader().await?)?], count).await?;
        let used = cluster.usage()?;
        let stored = count as f64 * VALUE as f64;
        let most = used.iter().map(|u| u.resident).max().unwrap_or_default();
        let peak = used.iter().map(|u| u.peak).max().unwrap_or_default();
        report.fact(
            &format!("{name}: stored by 64 clients in"),
            format!(
                "{}, {:.0} writes/s",
                milliseconds(filled),
                ratio(count as f64, filled.as_secs_f64())
            ),
        );
        report.fact(
            &format!("{name}: memory of the largest member"),
            format!(
                "{} MiB, {:.1} for each byte stored; peak {} MiB",
                most >> 20,
                ratio(most as f64, stored),
                peak >> 20
            ),
        );
        let leader = cluster.leader().await?;
        let mut orderly = Vec::new();
        let mut killed = Vec::new();
        for member in cluster.members.iter().filter(|m| m.id != leader.id) {
            for (signal, times) in [(Signal::SIGTERM, &mut orderly), (Signal::SIGKILL, &mut killed)] {
                cluster.fleet.signal(&member.name, signal)?;
                cluster.fleet.wait_gone(&member.name, GRACE).await?;
                cluster.fleet.restart(&member.name)?;
                times.push(cluster.wait_ready(member).await?);
            }
        }
        for member in &cluster.members {
            cluster.fleet.signal(&member.name, Signal::SIGKILL)?;
        }
        for member in &cluster.members {
            cluster.fleet.wait_gone(&member.name, GRACE).await?;
        }
        let start = Instant::now();
        for member in &cluster.members {
            cluster.fleet.restart(&member.name)?;
        }
        for member in &cluster.members {
            cluster.wait_ready(member).await?;
        }
        let all = start.elapsed();
        let mut client = connect(&[cluster.door(&cluster.leader().await?)?], 1).await?;
        let kept = match client.first_mut() {
            Some(client) => client.get(count.saturating_sub(1)).await,
            None => Ok(()),
        };
        report.check(
            &format!("{name}: the last resource is there after all were killed"),
            kept.is_ok(),
            kept.err().map_or_else(String::new, |e| format!("{e:#}")),
        );
        let shown = |times: &[Duration]| times.iter().map(|t| milliseconds(*t)).collect::<Vec<_>>().join(", ");
        report.fact(&format!("{name}: a follower is ready after an orderly restart"), shown(&orderly));
        report.fact(&format!("{name}: a follower is ready after kill -9"), shown(&killed));
        report.fact(&format!("{name}: all three are ready after kill -9 of all"), milliseconds(all));
        let after = cluster.usage()?.iter().map(|u| u.resident).max().unwrap_or_default();
        report.fact(
            &format!("{name}: memory of the largest member after that"),
            format!("{} MiB", after >> 20),
        );
        let ms = |times: &[Duration]| times.iter().map(|t| t.as_secs_f64() * 1e3).collect::<Vec<_>>();
        told.push(json!({
            "system": name, "resources": count, "fill_ms": filled.as_secs_f64() * 1e3, "resident": most, "peak": peak, "resident_after": after,
            "orderly_ms": ms(&orderly), "killed_ms": ms(&killed), "all_killed_ms": all.as_secs_f64() * 1e3,
        }));
    }
    report.about("restart", told);
    Ok(())
}
