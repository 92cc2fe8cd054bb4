//! Black-box checks of a running installation, while somebody disturbs it or nobody does.
//!
//! In: the addresses of its nodes, an administrator's token. Out: `report.json` and a page: a verdict of each judge that needs nothing but
//! the public REST API.
//! Invariants: nothing happens before whoever asks has said yes to what will; everything is written into a mesh of its own, which did not
//! exist before and is gone afterwards; nothing of anybody else's is written, and no fault is made here.
//!
//! - [`place`]: addresses, the mesh. - [`wait`]: writes that wait for zones. - [`cluster`]: what nodes say before and after.
pub mod cluster;
pub mod place;
pub mod wait;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::Api;
use crate::harness::wait::{Pace, pause_until};
use crate::oracles::registers::History;
use crate::oracles::streams::Acknowledged;
use crate::oracles::{self, applied, standings, streams};
use crate::report::{Report, Row, milliseconds, page};
use crate::traffic::follow::Followers;
use crate::traffic::registers::{self, Costs, Registers, Retry};
use crate::traffic::sightings::Sightings;
use crate::traffic::views::Views;
use place::{Address, Place};
use wait::Waits;

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);

/// What to check, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes of the global control plane, or what stands before them.
    pub addresses: Vec<Address>,
    /// Whom to trust as a server.
    pub ca_file: Option<PathBuf>,
    /// An administrator's token.
    pub token_file: PathBuf,
    /// How long writes and reads go on.
    pub duration: Duration,
    /// The mesh that is made and removed.
    pub mesh: String,
    /// Operations per second of each of the six clients.
    pub rate: u32,
    /// Writes may stand still for so long; none: it is only reported.
    pub longest_pause: Option<Duration>,
    /// Where the report goes.
    pub out: PathBuf,
    /// Do it, instead of saying what would be done.
    pub yes: bool,
    /// Nothing on standard output.
    pub quiet: bool,
}

impl Options {
    /// What will be done, for whoever is to say yes.
    #[must_use]
    pub fn plan(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        format!(
            "chaos check of {}:\n\
             - makes the mesh {mesh} with nothing in it, and removes it at the end, with everything in it;\n\
             - for {:?}, 3 clients write and 3 read MeshTrafficPermissions in that mesh that select no proxy, {} operations per second each;\n\
             - every second, writes one of them with ?wait=5s; four times a second, follows the history at each address;\n\
             - it makes no fault itself: break what you like meanwhile.\n\
             Zones are sent the mesh and what is in it. Nothing of anybody else's is written. The history keeps the revisions.",
            addresses.join(", "),
            self.duration,
            self.rate,
            mesh = self.mesh,
        )
    }
}

/// Who writes and reads.
const CLIENTS: [(&str, Retry, u32); 2] = [("again", Retry::SameId, 2), ("once", Retry::Never, 1)];

/// Checks, for the time that was asked for or until `stop`. Returns whether every check passed.
///
/// # Errors
/// If it cannot begin, and then nothing was done; or its report cannot be written.
pub async fn run(options: &Options, stop: impl Future<Output = ()>) -> anyhow::Result<bool> {
    anyhow::ensure!(options.yes, "{}\nNothing was done: say --yes to do it.", options.plan());
    let nodes = place::clients(options)?;
    let first = cluster::all(&nodes).await?;
    let mut report = if options.quiet {
        Report::quiet("check")
    } else {
        Report::new("check")
    };
    report.about("command", "chaos check");
    report.about(
        "scenario",
        format!("black-box checks of {} addresses for {:?}", nodes.len(), options.duration),
    );
    report.about("addresses", options.addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
    report.about("mesh", options.mesh.as_str());
    report.step("before");
    for one in &first {
        let role = if one.leads { "leads" } else { "follows" };
        report.note(&format!("node {} {role} in term {}, revision {}", one.node, one.term, one.revision));
    }
    let place = Place::claim(&nodes, &options.mesh).await?;
    report.step(&format!("writes and reads for {:?}", options.duration));
    let judged = observe(options, &nodes, stop, &mut report).await;
    report.step("after");
    let removed = place.remove().await;
    report.check(
        "what was made is removed",
        removed.is_ok(),
        removed.err().map(|error| format!("{error:#}")).unwrap_or_default(),
    );
    judged?;
    let (_, failed) = report.finish();
    let path = options.out.join("check.json");
    report
        .write_json(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let one: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    page::write(&options.out, &json!({"version": env!("CARGO_PKG_VERSION")}), &[one])?;
    Ok(failed == 0)
}

async fn observe(options: &Options, nodes: &[Api], stop: impl Future<Output = ()>, report: &mut Report) -> anyhow::Result<()> {
    let followers = Followers::start(nodes, &options.mesh);
    let sightings = Sightings::start(nodes);
    let clients: Vec<Registers> = CLIENTS
        .iter()
        .map(|(name, retry, many)| {
            Registers::start(registers::Plan {
                nodes: nodes.to_vec(),
                mesh: options.mesh.clone(),
                name: format!("register-{name}"),
                writers: *many,
                readers: *many,
                rate: options.rate,
                retry: *retry,
            })
        })
        .collect();
    let (waits, views) = (Waits::start(nodes, &options.mesh), Views::start(nodes, &options.mesh));
    let begun = Instant::now();
    tokio::select! {
        () = stop => report.note("stopped before its time"),
        () = progress(options, &clients, &sightings) => {}
    }
    let ended = Instant::now();
    let (claims, unproven) = waits.stop().await;
    let (mut history, mut costs) = (History::default(), Vec::new());
    for registers in clients {
        let (seen, cost) = registers.stop().await;
        history.add(seen);
        costs.push(cost);
    }
    // The clients settle before anybody is asked for the last time.
    let last = cluster::settled(nodes).await;
    let stories = followers.stop().await;
    judge_registers(report, &history, &costs);
    let pause = judge_pauses(report, &history, options.longest_pause, begun, ended);
    judge_streams(report, &stories, &history);
    views.stop().await.judge(report, "");
    let found = applied::wrong(&claims);
    report.verdict(
        oracles::APPLIED,
        "what ?wait says is stored in every zone is stored there",
        found.is_empty(),
        match found.first() {
            Some(first) => first.clone(),
            None => format!("{} claims, {unproven} without one", claims.len()),
        },
    );
    sightings.stop().await.judge(report, "", &last);
    let disagreement = standings::disagreement(&last);
    report.verdict(
        oracles::LEADERSHIP,
        "at the end all that answer agree on a leader that hears a majority",
        disagreement.is_none(),
        disagreement.unwrap_or_else(|| format!("{} answer", last.len())),
    );
    report.times(times(costs, pause));
    Ok(())
}

/// Says every now and then how it goes, until the time is over.
async fn progress(options: &Options, clients: &[Registers], sightings: &Sightings) {
    let (begun, mut pace) = (Instant::now(), Pace::every(PROGRESS));
    loop {
        tokio::select! {
            biased;
            () = pause_until(begun + options.duration) => return,
            _due = pace.slot() => {}
        }
        if !options.quiet {
            let sum = |look: fn(&History) -> usize| clients.iter().map(|c| c.so_far(look)).sum::<usize>();
            println!(
                "   {:>4.0} of {:.0} s: {} writes acknowledged, {} reads; {}",
                begun.elapsed().as_secs_f64(),
                options.duration.as_secs_f64(),
                sum(History::acknowledged),
                sum(|history| history.reads.len()),
                sightings.now()
            );
        }
    }
}

fn judge_registers(report: &mut Report, history: &History, costs: &[Costs]) {
    let violations = history.violations();
    let first = violations.first().map(|v| format!("; the first of {}: {v}", violations.len()));
    report.verdict(
        oracles::REGISTERS,
        "every read lies between the last acknowledged and the last attempted write, none goes back",
        violations.is_empty() && history.acknowledged() > 0 && !history.reads.is_empty(),
        format!(
            "{} writes acknowledged, {} reads{}",
            history.acknowledged(),
            history.reads.len(),
            first.unwrap_or_default()
        ),
    );
    let open = history
        .writes
        .iter()
        .filter(|w| w.acked.is_none() && w.key.starts_with("register-again"))
        .count();
    report.verdict(
        oracles::ACKNOWLEDGED,
        "every write that is sent until it is acknowledged is acknowledged",
        open == 0,
        format!("{open} open"),
    );
    let refusals: Vec<&String> = costs.iter().flat_map(|cost| &cost.refusals).collect();
    report.check(
        "no call was refused as wrong",
        refusals.is_empty(),
        refusals.first().map(ToString::to_string).unwrap_or_default(),
    );
    let sum = |of: fn(&Costs) -> u64| costs.iter().map(of).sum::<u64>();
    report.fact(
        "attempts without an answer",
        format!("{} writes, {} reads", sum(|c| c.failed_attempts), sum(|c| c.failed_reads)),
    );
}

/// The longest time without an acknowledged write.
fn judge_pauses(report: &mut Report, history: &History, limit: Option<Duration>, begun: Instant, ended: Instant) -> Duration {
    let mut moments: Vec<Instant> = history.writes.iter().filter_map(|w| w.acked).filter(|at| *at < ended).collect();
    moments.extend([begun, ended]);
    moments.sort_unstable();
    let longest = moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    let name = "the longest time without an acknowledged write";
    match limit {
        Some(limit) => drop(report.check(
            &format!("{name} is at most {}", milliseconds(limit)),
            longest <= limit,
            milliseconds(longest),
        )),
        None => report.fact(name, milliseconds(longest)),
    }
    longest
}

fn judge_streams(report: &mut Report, stories: &[streams::Story], history: &History) {
    let acknowledged: Vec<Acknowledged> = history.with_revisions().collect();
    let found = streams::wrong(stories, &acknowledged);
    let told: usize = stories.iter().map(streams::Story::told).sum();
    report.verdict(
        oracles::STREAMS,
        "followers of the history are told every change once, in order, the same at every address",
        found.is_empty() && told > 0 && acknowledged.len() == history.acknowledged(),
        match found.first() {
            Some(first) => format!("{} findings, the first: {first}", found.len()),
            None => format!("{told} revisions told; {} acknowledged writes are among them", acknowledged.len()),
        },
    );
    // Its last answer is compared with what there is: without it a follower proves less.
    let unfinished: Vec<&str> = stories.iter().filter(|s| s.end.is_none()).map(|s| s.node.as_str()).collect();
    report.fact("addresses that did not answer at the end", unfinished.join(", "));
}

fn times(costs: Vec<Costs>, pause: Duration) -> Vec<Row> {
    let (mut writes, mut reads, mut pauses) = (Costs::default().writes, Costs::default().reads, Costs::default().writes);
    for cost in costs {
        writes.add(&cost.writes);
        reads.add(&cost.reads);
    }
    pauses.record(pause);
    let row = |name: &str, times| Row {
        group: "clients".into(),
        name: name.into(),
        times,
    };
    vec![
        row("write, until acknowledged", writes),
        row("read, linearizable", reads),
        row("longest time without a write", pauses),
    ]
}
