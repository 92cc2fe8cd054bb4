//! `demo`: see [`ursa_chaos_tests::demo`]. `make demo` builds what it needs and starts it.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use ursa_chaos_tests::demo::{Options, run};

/// Starts a global control plane of three nodes, two zones and three workloads with real Envoys on loopback, and shows what they do.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Check every step, write report.json, stop everything, exit 0 or 1; without it the demo stays up until Ctrl-C
    #[arg(long)]
    check: bool,
    /// The Envoy binary
    #[arg(long, env = "ENVOY_BIN", value_name = "PATH")]
    envoy: PathBuf,
    /// Folder for the report, data and logs
    #[arg(long, default_value = "target/demo", value_name = "DIR")]
    out: PathBuf,
    /// Folder of the resource files
    #[arg(long, default_value = "deploy/demo", value_name = "DIR")]
    resources: PathBuf,
    /// Folder of the built programs [default: where this one is]
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
    /// Nodes of the global control plane: 1 or 3
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = nodes)]
    nodes: u8,
    /// Leaders that are killed in step 5
    #[arg(long, default_value_t = 5, value_name = "N")]
    kills: u32,
    /// Changes that are timed in step 4
    #[arg(long, default_value_t = 200, value_name = "N")]
    changes: u32,
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
    match demo(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Without the backtrace that anyhow adds: the text says what to do.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(args: Args) -> anyhow::Result<bool> {
    let here = std::env::current_exe().context("where is this program?")?;
    let bin = args
        .bin
        .or_else(|| Some(here.parent()?.to_owned()))
        .context("no folder of the programs")?;
    run(Options {
        out: args.out,
        resources: args.resources,
        bin,
        envoy: args.envoy,
        check: args.check,
        nodes: args.nodes,
        changes: args.changes,
        kills: args.kills,
    })
    .await
}
