//! The program `zone-cp`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde::Serialize;
use ursa_runtime::{config, telemetry, tls};
use ursa_zone_cp::{app, config::Config};

/// The zone control plane of Ursa: configures the zone's Envoys by what the global control plane sends.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane until it is told to stop (SIGTERM or Ctrl-C).
    Run {
        /// Configuration file (YAML). Every setting can also be given as URSA_<SECTION>__<KEY>.
        #[arg(long, value_name = "FILE", env = "CONFIG_PATH")]
        config: Option<PathBuf>,
        #[command(flatten)]
        overrides: Overrides,
    },
}

#[derive(clap::Args, Serialize)]
struct Overrides {
    /// Name of the zone.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    /// Folder of everything this node keeps.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
}

/// A control plane allocates from all threads, mostly small things, and lives for months: the system's allocator costs a sixth of the
/// processor under load, and more memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let Command::Run { config: file, overrides } = Cli::parse().command;
    let config = config::load::<Config>(file.as_deref(), &overrides)?.validate()?;
    telemetry::init(&config.telemetry);
    tls::install_provider();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(app::run(config))?
        .exit()
}
