//! `chaos`: see [`ursa_chaos_tests::chaos`]. `make chaos SCENARIO=name` builds what it needs and starts it.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use futures::FutureExt as _;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use ursa_chaos_tests::chaos::{SCENARIOS, Scenario, Settings, run};
use ursa_chaos_tests::check;
use ursa_chaos_tests::check::place::Address;
use ursa_chaos_tests::demo::Options;
use ursa_chaos_tests::report::page;

/// Scenarios in which nodes, zones, disks and networks fail under constant traffic, with real programs and real Envoys on loopback.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the scenarios
    List,
    /// Run scenarios, all of them unless some are named: each one's report goes to OUT/NAME, the page of all to OUT/report.html
    /// and OUT/report.json; exit 0 if every check passed, else 1
    Run(Run),
    /// Check a running installation from outside, through its REST API, while you break it or leave it alone: writes and reads in a mesh
    /// that is made for it and removed; exit 0 if every check passed, else 1
    Check(Check),
}

#[derive(Debug, Args)]
struct Check {
    /// A node's REST API, https://HOST[:PORT]; give each node's
    #[arg(long = "address", required = true, value_name = "URL")]
    addresses: Vec<Address>,
    /// The CA of the servers' certificates
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A file with an administrator's token
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// How long, such as 60s, 15m
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// The mesh to make and to remove [default: chaos-check- and something of chance]
    #[arg(long, value_name = "NAME")]
    mesh: Option<String>,
    /// Operations per second of each of six clients
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Fail if no write is acknowledged for so long [default: only reported]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    longest_pause: Option<Duration>,
    /// Folder for report.json and report.html
    #[arg(long, default_value = "target/chaos-check", value_name = "DIR")]
    out: PathBuf,
    /// Do it; otherwise it only says what it would do
    #[arg(long)]
    yes: bool,
}

impl Check {
    fn options(self) -> check::Options {
        let chance = || format!("chaos-check-{:08x}", uuid::Uuid::new_v4().as_fields().0);
        check::Options {
            addresses: self.addresses,
            ca_file: self.ca_file,
            token_file: self.token_file,
            duration: self.duration,
            mesh: self.mesh.unwrap_or_else(chance),
            rate: self.rate,
            longest_pause: self.longest_pause,
            out: self.out,
            yes: self.yes,
            quiet: false,
        }
    }
}

#[derive(Debug, Args)]
struct Run {
    /// Some of `chaos list` [default: all]
    names: Vec<String>,
    /// How often the fault is repeated [default: what the scenario says]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Picks what is left to chance [default: another one each time; the report says which]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Makes limits of time so many times as long, for a machine that is slow or does other things; the demo's own stay
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    slack: u32,
    /// How long `soak` goes on, such as 90s, 15m, 2h [default: what its rounds take]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Nodes of the global control plane, 1 or 3 [default: what the scenario needs]
    #[arg(long, value_name = "N", value_parser = nodes)]
    nodes: Option<u8>,
    /// The Envoy binary
    #[arg(long, env = "ENVOY_BIN", value_name = "PATH")]
    envoy: PathBuf,
    /// Folder for the reports, data and logs
    #[arg(long, default_value = "target/chaos", value_name = "DIR")]
    out: PathBuf,
    /// Folder of the resource files
    #[arg(long, default_value = "deploy/demo", value_name = "DIR")]
    resources: PathBuf,
    /// Folder of the built programs [default: where this one is]
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
}

/// One node, or a group that survives the loss of one.
fn nodes(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3".into()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::List => {
            for scenario in SCENARIOS {
                let takes = scenario.takes(scenario.rounds).as_secs();
                println!(
                    "{:<18} {} ({} by default, about {takes} s)",
                    scenario.name, scenario.about, scenario.rounds
                );
            }
            return ExitCode::SUCCESS;
        }
        Command::Run(arguments) => chaos(arguments).await,
        Command::Check(arguments) => check(arguments).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Without the backtrace that anyhow adds: the text says what to do.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn check(arguments: Check) -> anyhow::Result<bool> {
    // Ctrl-C ends the writing; everything is judged and removed all the same.
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = async {
        tokio::select! {
            _got = interrupted.recv() => {}
            _got = terminated.recv() => {}
        }
    };
    let options = arguments.options();
    let passed = check::run(&options, stop).await?;
    println!("page: {}", options.out.join("report.html").display());
    Ok(passed)
}

fn minutes(time: Duration) -> String {
    format!("{}:{:02} min", time.as_secs() / 60, time.as_secs() % 60)
}

/// The named ones, in the order of the list.
fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Scenario>> {
    for name in names {
        anyhow::ensure!(
            SCENARIOS.iter().any(|s| s.name == *name),
            "there is no scenario {name}: `chaos list` names them"
        );
    }
    Ok(SCENARIOS
        .iter()
        .filter(|s| names.is_empty() || names.iter().any(|n| n == s.name))
        .collect())
}

async fn chaos(arguments: Run) -> anyhow::Result<bool> {
    let scenarios = chosen(&arguments.names)?;
    let here = std::env::current_exe().context("where is this program?")?;
    let bin = arguments
        .bin
        .clone()
        .or_else(|| Some(here.parent()?.to_owned()))
        .context("no folder of the programs")?;
    let seed = arguments.seed.unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0));
    // Ctrl-C ends the scenario in order, and the ones after it do not begin.
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (mut reports, mut passed) = (Vec::new(), true);
    let rounds = |scenario: &Scenario| arguments.rounds.unwrap_or(scenario.rounds).max(1);
    let takes = |scenario: &&Scenario| match (scenario.name, arguments.duration) {
        ("soak", Some(lasts)) => lasts,
        _ => scenario.takes(rounds(scenario)),
    };
    let (began, many) = (Instant::now(), scenarios.len());
    let all: Duration = scenarios.iter().map(takes).sum();
    println!("{many} scenarios, about {} on a machine that does nothing else", minutes(all));
    for (nth, scenario) in (1..).zip(scenarios) {
        let settings = Settings {
            rounds: rounds(scenario),
            seed,
            slack: arguments.slack,
            lasts: arguments.duration,
        };
        let options = Options {
            out: arguments.out.join(scenario.name),
            resources: arguments.resources.clone(),
            bin: bin.clone(),
            envoy: arguments.envoy.clone(),
            check: true,
            nodes: arguments.nodes.unwrap_or(3),
            changes: 0,
            kills: settings.rounds,
        };
        println!(
            "\n=== {nth} of {many}, {} of about {}: {} --rounds {} --seed {seed}, about {}",
            minutes(began.elapsed()),
            minutes(all),
            scenario.name,
            settings.rounds,
            minutes(takes(&scenario))
        );
        passed &= run(scenario, &settings, &options).await?;
        let report = std::fs::read(options.out.join("report.json")).ok();
        let report: Option<Value> = report.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        reports.push(report.unwrap_or_else(|| json!({"title": scenario.name})));
        if interrupted.recv().now_or_never().is_some() || terminated.recv().now_or_never().is_some() {
            break;
        }
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let about = json!({"seed": seed, "took": minutes(began.elapsed()), "expected": minutes(all), "slack": arguments.slack, "cores": cores, "version": env!("CARGO_PKG_VERSION")});
    page::write(&arguments.out, &about, &reports)?;
    let (fine, failed) = page::result(&reports);
    println!(
        "\n{} scenarios, seed {seed}: {fine} checks passed, {failed} failed; page: {}",
        reports.len(),
        arguments.out.join("report.html").display()
    );
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(chosen(&[]).unwrap().len(), SCENARIOS.len());
        assert_eq!(chosen(&["soak".into(), "pause".into()]).unwrap()[0].name, "pause");
        assert!(
            chosen(&["nonsense".into()])
                .unwrap_err()
                .to_string()
                .contains("`chaos list` names them")
        );
    }
}
