//! `chaos`: see [`ursa_chaos_tests::chaos`]. `make chaos SCENARIO=name` builds what it needs and starts it.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use ursa_chaos_tests::chaos::{SCENARIOS, run};
use ursa_chaos_tests::demo::Options;

/// Scenarios in which nodes, zones and networks fail under constant traffic, with real programs and real Envoys on loopback.
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
    /// Run one scenario: report.json and summary.txt go to OUT/NAME; exit 0 if every check passed, else 1
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// One of `chaos list`
    name: String,
    /// How often the fault is repeated [default: what the scenario says]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
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
                println!("{:<18} {} ({} by default)", scenario.name, scenario.about, scenario.rounds);
            }
            return ExitCode::SUCCESS;
        }
        Command::Run(arguments) => chaos(arguments).await,
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

async fn chaos(arguments: Run) -> anyhow::Result<bool> {
    let scenario = SCENARIOS
        .iter()
        .find(|s| s.name == arguments.name)
        .with_context(|| format!("there is no scenario {}: `chaos list` names them", arguments.name))?;
    let here = std::env::current_exe().context("where is this program?")?;
    let bin = arguments
        .bin
        .or_else(|| Some(here.parent()?.to_owned()))
        .context("no folder of the programs")?;
    let rounds = arguments.rounds.unwrap_or(scenario.rounds).max(1);
    let options = Options {
        out: arguments.out.join(scenario.name),
        resources: arguments.resources,
        bin,
        envoy: arguments.envoy,
        check: true,
        nodes: arguments.nodes.unwrap_or(3),
        changes: 0,
        kills: rounds,
    };
    run(scenario, rounds, &options).await
}
