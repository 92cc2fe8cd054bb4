//! The program `zone-ingress`: runs the Envoy through which other zones reach this one (and, if asked, the one through which
//! this zone reaches what is outside the mesh), and tells the zone control plane the address it is reached at.
//! In: addresses and ports. Out: an Envoy whose Dataplane it makes itself.
//! Invariant: withdrawing the address is the zone control plane's work; it sees the proxy go.
//! Not here: the Envoy itself ([`ursa_proxy`]); its configuration, which the zone control plane makes.
use clap::{CommandFactory, Parser, Subcommand};
use ursa_proxy::args::warn_of_unknown_kuma_variables;
use ursa_proxy::envoy::{GUARD_COMMAND, Guarded};
use ursa_proxy::program;
use ursa_runtime::ExitStatus;

mod config;
mod resource;

pub use config::{Config, RunArgs};
pub use resource::{ADVERTISED_ADDRESS, ADVERTISED_PORT, spec};

/// Runs the Envoy through which other zones reach this one.
#[derive(Debug, Parser)]
#[command(name = "zone-ingress", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy until it is told to stop (SIGTERM or Ctrl-C), then drain it
    #[command(after_help = AFTER_RUN, after_long_help = AFTER_RUN)]
    Run(Box<RunArgs>),
    /// Print the version
    Version,
    /// Become Envoy, tied to the life of the process that asked for it
    #[command(hide = true, name = GUARD_COMMAND)]
    EnvoyGuard(Guarded),
}

const AFTER_RUN: &str = "\
Example:
  zone-ingress run --cp-address https://zone-cp:5678 --ca-cert-file ca.crt --dataplane-token-file token \\
    --address 10.0.0.2 --advertised-address ingress.east.example.com --advertised-port 443

When Envoy ends by itself this program ends too, with exit code 1 and Envoy's last words: let systemd restart it (Restart=always).";

/// Why the program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ursa_runtime::config::Error),
    /// The proxy cannot be started.
    #[error(transparent)]
    Proxy(#[from] program::Error),
}

/// `zone-ingress run`.
///
/// # Errors
/// The program cannot start. What fails later is in the exit status.
pub fn run(args: &RunArgs) -> Result<ExitStatus, Error> {
    let config = args.load()?;
    warn_of_unknown_kuma_variables(&Cli::command());
    Ok(program::start(&config, config.proxy.clone(), spec(&config), args.proxy.host())?)
}
