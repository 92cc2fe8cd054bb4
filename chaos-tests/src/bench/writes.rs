//! Durable writes: ours, etcd's and the bare disk's, in slices of seconds in turn, so that all three meet the same moods of the machine.
//!
//! In: both clusters, numbers of clients. Out: rates, times, CPU, bytes written. Invariant: a row is valid only if the probe's median
//! moved by at most a factor of 2 between its slices.
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::cluster::{Cluster, Places, System};
use super::load::{Outcome, VALUE, Work, connect, ratio, run};
use super::probe::Probe;
use super::syncs;
use super::usage::Usage;
use super::{Options, RATIO_OF_VALID};
use crate::report::{Report, Row, milliseconds};
use crate::traffic::stats::Times;

/// Of the disk alone, around each slice of a system.
const PROBE: Duration = Duration::from_millis(500);

/// How one system syncs at one number of clients.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Batch {
    /// Accepted writes for each sync of the leader.
    pub writes_per_sync: f64,
    /// Growth of the leader's log for each accepted write, in bytes.
    pub log_bytes: f64,
}

/// Writes per sync, by number of clients: what a probe must append at a time to be comparable.
pub type Batches = BTreeMap<usize, Batch>;

/// Counts the syncs of both systems under strace, on clusters of their own.
///
/// # Errors
/// If a cluster does not come up, or a load fails.
pub async fn sync_counts(options: &Options, places: &Places, report: &mut Report) -> anyhow::Result<Batches> {
    report.step("Syncs, counted by strace: is an accepted write durable, and how many share one sync?");
    let mut batches = Batches::new();
    let mut told = Vec::new();
    for system in options.systems(places) {
        let cluster = Cluster::start(system, places, &format!("{}-traced", system.name()), true).await?;
        for &clients in &options.clients {
            let leader = cluster.leader().await?;
            let before = log_bytes(&cluster, &leader);
            let loaded = connect(&[cluster.door(&leader)?], clients).await?;
            let (outcome, from) = run(loaded, Work::Put, options.slice, || Ok(syncs::now())).await?;
            let to = from + options.slice;
            let grown = log_bytes(&cluster, &leader).saturating_sub(before);
            let writes = outcome.times.count();
            let mut each = Vec::new();
            for member in &cluster.members {
                let seen = syncs::counted(&cluster.syncs_file(member), from, to)?;
                if member.id == leader.id {
                    let batch = Batch {
                        writes_per_sync: ratio(writes as f64, syncs::sum(&seen) as f64),
                        // The warm-up's writes are in the growth too, so they are in the divisor.
                        log_bytes: ratio(
                            grown as f64,
                            writes as f64 * ratio(options.slice.as_secs_f64() + 0.3, options.slice.as_secs_f64()),
                        ),
                    };
                    if system == System::Ursa {
                        batches.insert(clients, batch);
                    }
                    report.fact(
                        &format!("{}, {clients} clients", system.name()),
                        format!(
                            "{writes} writes, {:.1} for each sync of the leader; its log grew by {:.0} bytes a write",
                            batch.writes_per_sync, batch.log_bytes
                        ),
                    );
                    told.push(json!({"system": system.name(), "clients": clients, "writes": writes, "leader": batch, "syncs": seen}));
                }
                let role = if member.id == leader.id { "leader" } else { "follower" };
                each.push(format!("{role}: {}", syncs::shown(&seen)));
                if clients == 1 && member.id == leader.id {
                    let holds = syncs::sum(&seen) as f64 >= writes as f64 * 0.95;
                    report.check(
                        &format!("{}: with one client the leader syncs for every write", system.name()),
                        holds,
                        format!("{writes} writes, {}", syncs::shown(&seen)),
                    );
                }
            }
            report.note(&each.join("; "));
            note_failures(report, system, &outcome);
        }
    }
    report.about("syncs", told);
    Ok(batches)
}

/// Bytes of a member's log, without what is reserved at its end. etcd's files are used again, so that they say nothing.
fn log_bytes(cluster: &Cluster, member: &super::cluster::Member) -> u64 {
    if cluster.system == System::Etcd {
        return 0;
    }
    let dir = cluster.data_of(member).join("log");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|file| file.path())
        // The lock lies there too.
        .filter(|path| path.extension().is_some_and(|end| end == "log"))
        .collect();
    files.sort();
    let newest = files.pop().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    let used = newest.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    let older: u64 = files
        .iter()
        .filter_map(|path| std::fs::metadata(path).ok())
        .map(|file| file.len())
        .sum();
    older + used as u64
}

/// What one system did in all its slices of one row.
#[derive(Debug, Default)]
struct Part {
    outcome: Outcome,
    used: Vec<Usage>,
    /// The leader is the first of `used`.
    slices: Vec<f64>,
}

impl Part {
    fn add(&mut self, outcome: &Outcome, used: Vec<Usage>) {
        self.slices.push(outcome.rate());
        self.outcome.add(outcome);
        if self.used.is_empty() {
            self.used = used;
        } else {
            for (sum, more) in self.used.iter_mut().zip(used) {
                *sum = Usage {
                    cpu_s: sum.cpu_s + more.cpu_s,
                    disk_bytes: sum.disk_bytes + more.disk_bytes,
                    ..more
                };
            }
        }
    }

    fn writes(&self) -> f64 {
        self.outcome.times.count() as f64
    }

    fn cpu_us(&self) -> f64 {
        ratio(self.used.iter().map(|u| u.cpu_s).sum::<f64>() * 1e6, self.writes())
    }

    /// Bytes that the three members had written, for each byte of a value stored three times.
    fn amplification(&self) -> f64 {
        let written: u64 = self.used.iter().map(|u| u.disk_bytes).sum();
        ratio(written as f64, self.writes() * VALUE as f64 * self.used.len() as f64)
    }

    fn json(&self) -> serde_json::Value {
        let times = &self.outcome.times;
        let us = |q| times.quantile(q).as_micros() as u64;
        json!({
            "writes": times.count(), "failed": self.outcome.failed, "failure": self.outcome.failure, "per_second": self.outcome.rate(),
            "p50_us": us(0.5), "p90_us": us(0.9), "p99_us": us(0.99), "p999_us": us(0.999), "max_us": times.max().as_micros() as u64,
            "cpu_us_per_write": self.cpu_us(), "written_per_byte": self.amplification(), "members": self.used, "slices_per_second": self.slices,
        })
    }
}

/// Measures one slice of a system under load at its leader.
///
/// # Errors
/// If the load cannot run.
pub async fn slice(cluster: &Cluster, work: Work, clients: usize, time: Duration) -> anyhow::Result<(Outcome, Vec<Usage>)> {
    let leader = cluster.leader().await?;
    let loaded = connect(&[cluster.door(&leader)?], clients).await?;
    let (outcome, before) = run(loaded, work, time, || cluster.usage()).await?;
    let after = cluster.usage()?;
    let mut used: Vec<(bool, Usage)> = cluster
        .members
        .iter()
        .zip(after.iter().zip(&before))
        .map(|(member, (after, before))| (member.id != leader.id, after.since(before)))
        .collect();
    used.sort_by_key(|(follows, _)| *follows);
    Ok((outcome, used.into_iter().map(|(_, used)| used).collect()))
}

/// # Errors
/// If a load cannot run.
pub async fn run_all(options: &Options, clusters: &[Cluster], probe: &Probe, batches: &Batches, report: &mut Report) -> anyhow::Result<()> {
    report.step("Writes through the API of the leader, in turn with the bare disk");
    let mut told = Vec::new();
    for &clients in &options.clients {
        let batch = batches.get(&clients).copied().unwrap_or(Batch {
            writes_per_sync: 1.0,
            log_bytes: 1024.0,
        });
        let bytes = (batch.writes_per_sync.max(1.0) * batch.log_bytes) as usize;
        let mut parts: Vec<(System, Part)> = clusters.iter().map(|c| (c.system, Part::default())).collect();
        let (mut raw, mut medians) = (Times::default(), Vec::new());
        for _ in 0..options.rounds {
            for (cluster, (_, part)) in clusters.iter().zip(&mut parts) {
                let bare = probe.run(bytes, PROBE).await?;
                medians.push(bare.quantile(0.5));
                raw.add(&bare);
                let (outcome, used) = slice(cluster, Work::Put, clients, options.slice).await?;
                part.add(&outcome, used);
            }
        }
        let row = RowOf {
            clients,
            batch,
            probe: raw,
            medians,
            parts,
        };
        row.show(report);
        row.judge(report);
        told.push(row.json());
    }
    report.about("writes", told);
    Ok(())
}

struct RowOf {
    clients: usize,
    batch: Batch,
    probe: Times,
    medians: Vec<Duration>,
    parts: Vec<(System, Part)>,
}

impl RowOf {
    fn moved(&self) -> f64 {
        let (least, most) = (self.medians.iter().min(), self.medians.iter().max());
        ratio(most.map_or(0.0, Duration::as_secs_f64), least.map_or(0.0, Duration::as_secs_f64))
    }

    fn of(&self, system: System) -> Option<&Part> {
        self.parts.iter().find(|(of, _)| *of == system).map(|(_, part)| part)
    }

    /// Writes per second that the probe would do at the same batch size.
    fn limit(&self) -> f64 {
        ratio(self.batch.writes_per_sync.max(1.0), self.probe.mean().as_secs_f64())
    }

    fn show(&self, report: &mut Report) {
        let group = format!("{} clients", self.clients);
        let mut rows = vec![Row {
            group: group.clone(),
            name: format!("append + fdatasync of {:.0} writes", self.batch.writes_per_sync.max(1.0)),
            times: self.probe.clone(),
        }];
        rows.extend(self.parts.iter().map(|(system, part)| Row {
            group: group.clone(),
            name: system.name().to_owned(),
            times: part.outcome.times.clone(),
        }));
        report.times(rows);
        for (system, part) in &self.parts {
            let cpu: Vec<String> = part
                .used
                .iter()
                .map(|u| format!("{:.0}", ratio(u.cpu_s * 1e6, part.writes())))
                .collect();
            report.note(&format!(
                "{:<5} {:>7.0} writes/s; CPU of leader and followers {} us a write; {:.1} bytes written per byte stored",
                system.name(),
                part.outcome.rate(),
                cpu.join(" + "),
                part.amplification(),
            ));
            note_failures(report, *system, &part.outcome);
        }
        if let (Some(ours), Some(theirs)) = (self.of(System::Ursa), self.of(System::Etcd)) {
            report.note(&format!(
                "ursa : etcd   writes/s {:.2}; p50 {:.2}; p99 {:.2}; CPU a write {:.2}",
                ratio(ours.outcome.rate(), theirs.outcome.rate()),
                times_ratio(ours, theirs, 0.5),
                times_ratio(ours, theirs, 0.99),
                ratio(ours.cpu_us(), theirs.cpu_us()),
            ));
        }
    }

    /// The bars of the issue. On a machine whose disk changed its mind meanwhile nothing is judged.
    fn judge(&self, report: &mut Report) {
        let clients = self.clients;
        let Some(ours) = self.of(System::Ursa) else { return };
        report.check(&format!("{clients} clients: no write failed"), ours.outcome.failed == 0, "");
        let moved = self.moved();
        if moved > RATIO_OF_VALID {
            report.fact(
                &format!("{clients} clients: not judged"),
                format!("the probe's median moved by a factor of {moved:.1}"),
            );
            return;
        }
        let (p50, probe) = (ours.outcome.times.quantile(0.5), self.probe.quantile(0.5));
        if clients == 1 {
            let bar = probe * 3 + Duration::from_millis(1);
            report.check(
                "1 client: the median is at most 3 probes + 1 ms",
                p50 <= bar,
                format!("{} of {}", milliseconds(p50), milliseconds(bar)),
            );
        }
        let share = ratio(ours.outcome.rate(), self.limit());
        let shown = format!("{:.0} % of {:.0} writes/s", share * 100.0, self.limit());
        if clients >= 256 {
            report.check(
                &format!("{clients} clients: at least 40 % of what the probe does at this batch size"),
                share >= 0.4,
                shown,
            );
        } else {
            report.fact(
                &format!("{clients} clients: share of what the probe does at this batch size"),
                shown,
            );
        }
        if let Some(theirs) = self.of(System::Etcd)
            && clients >= 64
        {
            let faster = ratio(ours.outcome.rate(), theirs.outcome.rate());
            report.check(
                &format!("{clients} clients: at least 3 times etcd's writes/s"),
                faster >= 3.0,
                format!("{faster:.2} times"),
            );
            let slower = times_ratio(ours, theirs, 0.99);
            report.check(
                &format!("{clients} clients: a lower p99 than etcd's"),
                slower < 1.0,
                format!("{slower:.2} times"),
            );
        }
    }

    fn json(&self) -> serde_json::Value {
        let parts: BTreeMap<&str, serde_json::Value> = self.parts.iter().map(|(system, part)| (system.name(), part.json())).collect();
        json!({
            "clients": self.clients, "writes_per_sync": self.batch.writes_per_sync, "log_bytes_per_write": self.batch.log_bytes,
            "probe": {
                "p50_us": self.probe.quantile(0.5).as_micros() as u64, "p99_us": self.probe.quantile(0.99).as_micros() as u64,
                "mean_us": self.probe.mean().as_micros() as u64, "slices_p50_us": self.medians.iter().map(|m| m.as_micros() as u64).collect::<Vec<_>>(),
            },
            "valid": self.moved() <= RATIO_OF_VALID, "systems": parts,
        })
    }
}

fn times_ratio(ours: &Part, theirs: &Part, q: f64) -> f64 {
    let of = |part: &Part| part.outcome.times.quantile(q).as_secs_f64();
    ratio(of(ours), of(theirs))
}

pub(super) fn note_failures(report: &mut Report, system: System, outcome: &Outcome) {
    if let Some(failure) = &outcome.failure {
        report.note(&format!("{}: {} calls failed, the first: {failure}", system.name(), outcome.failed));
    }
}
