//! `bench`: see [`ursa_chaos_tests::bench`]. `make bench-store` builds what it needs and starts it.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ursa_chaos_tests::bench::{Options, Part, run};

/// Measurements with real programs on loopback, beside the bare disk and a peer.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The replicated store: store.json and store.txt go to OUT; exit 0 if every bar is met, else 1
    Store(Store),
}

#[derive(Debug, Args)]
struct Store {
    /// Folder for the reports and the data; the disk that it is on is measured
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    /// Folder of the built programs [default: where this one is]
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
    /// Numbers of clients
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    clients: Vec<usize>,
    /// Seconds of a slice
    #[arg(long, value_name = "S", default_value_t = 3)]
    seconds: u64,
    /// Slices of each system in a row
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: u32,
    /// Kills of the leader
    #[arg(long, value_name = "N", default_value_t = 10)]
    kills: u32,
    /// Resources for memory and restart
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    resources: u64,
    /// Which parts [default: all]
    #[arg(long, value_enum, value_name = "PART,PART", value_delimiter = ',')]
    parts: Vec<Parts>,
    /// Without etcd
    #[arg(long)]
    no_peer: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Parts {
    Syncs,
    Writes,
    Reads,
    Failover,
    Restart,
}

impl From<Parts> for Part {
    fn from(part: Parts) -> Self {
        match part {
            Parts::Syncs => Self::Syncs,
            Parts::Writes => Self::Writes,
            Parts::Reads => Self::Reads,
            Parts::Failover => Self::Failover,
            Parts::Restart => Self::Restart,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Store(arguments) = Cli::parse().command;
    match store(arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Without the backtrace that anyhow adds: the text says what to do.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn store(arguments: Store) -> anyhow::Result<bool> {
    let here = std::env::current_exe().context("where is this program?")?;
    let bin = arguments
        .bin
        .or_else(|| Some(here.parent()?.to_owned()))
        .context("no folder of the programs")?;
    let all = Parts::value_variants().to_vec();
    let parts = if arguments.parts.is_empty() { all } else { arguments.parts };
    let options = Options {
        out: arguments.out,
        bin,
        clients: arguments.clients.into_iter().map(|clients| clients.clamp(1, 4096)).collect(),
        slice: Duration::from_secs(arguments.seconds.clamp(1, 600)),
        rounds: arguments.rounds.max(1),
        kills: arguments.kills,
        resources: arguments.resources.max(1),
        parts: parts.into_iter().map(Part::from).collect(),
        peer: !arguments.no_peer,
    };
    run(&options).await
}
