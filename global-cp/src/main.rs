//! The program `global-cp`.

use clap::Parser;
use ursa_global_cp::{
    app,
    cli::{Cli, Command},
    config::Config,
    encryption, held, member, pki,
};
use ursa_runtime::{config, telemetry, tls};

/// A control plane allocates from all threads, mostly small things, and lives for months: the system's allocator costs a sixth of the
/// processor under load, and more memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let (file, overrides) = match Cli::parse().command {
        Command::Run { config, overrides } => (config, overrides),
        Command::Pki(command) => return pki::run(&command),
        Command::HeldRemovals(command) => {
            tls::install_provider();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            return runtime.block_on(held::run(&command));
        }
        Command::Member(command) => {
            tls::install_provider();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            return runtime.block_on(member::run(&command));
        }
        Command::Encryption(command) => {
            tls::install_provider();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            return runtime.block_on(encryption::run(&command));
        }
    };
    let config = config::load::<Config>(file.as_deref(), &overrides)?.validate()?;
    telemetry::init(&config.telemetry);
    tls::install_provider();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(app::run(config))?
        .exit()
}
