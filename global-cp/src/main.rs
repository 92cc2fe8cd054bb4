//! The program `global-cp`.

use clap::Parser;
use ursa_global_cp::{
    app, backup,
    cli::{Cli, Command},
    config::Config,
    encryption, held, member, pki, recover, restore,
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
        Command::HeldRemovals(command) => return wait(held::run(&command)),
        Command::Member(command) => return wait(member::run(&command)),
        Command::Encryption(command) => return wait(encryption::run(&command)),
        Command::Backup(args) => return wait(backup::run(&args)),
        Command::Restore(args) => return wait(restore::run(&args)),
        Command::Recover(args) => match wait(recover::run(&args))? {
            recover::Outcome::Done => return Ok(()),
            recover::Outcome::NotAccepted => std::process::exit(recover::NOT_ACCEPTED),
        },
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

/// Runs a command that is soon done.
fn wait<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tls::install_provider();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}
