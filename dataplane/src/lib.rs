//! The program `dataplane`: runs the sidecar Envoy of one workload, as kuma-dp does.
//! In: flags, kuma-dp's environment, a config file; the workload's Dataplane. Out: an Envoy, ready and drained in order.
//! Not here: the Envoy itself ([`ursa_proxy`]); its configuration, which the zone control plane makes.
use clap::{CommandFactory, Parser, Subcommand};
use ursa_proxy::args::warn_of_unknown_kuma_variables;
use ursa_proxy::envoy::{GUARD_COMMAND, Guarded};
use ursa_proxy::{ProxySpec, program};
use ursa_runtime::ExitStatus;

mod config;
mod resource;

pub use config::{Config, RunArgs};
pub use resource::Dataplane;

/// Runs the sidecar Envoy of one workload and joins it to the mesh.
#[derive(Debug, Parser)]
#[command(name = "dataplane", version, arg_required_else_help = true)]
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
Who the proxy is, one of:
  --dataplane-file FILE    brings its own Dataplane (a VM); mesh and name are in it
  --name NAME --mesh MESH  a Dataplane that exists at the control plane

Example:
  dataplane run --cp-address https://zone-cp:5678 --ca-cert-file ca.crt --dataplane-token-file token \\
    --dataplane-file dataplane.yaml --dataplane-var name=web-1 --dataplane-var address=10.0.0.7

When Envoy ends by itself this program ends too, with exit code 1 and Envoy's last words: let systemd restart it (Restart=always).";

/// Why the program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ursa_runtime::config::Error),
    /// The Dataplane is wrong.
    #[error(transparent)]
    Dataplane(#[from] resource::Error),
    /// The proxy cannot be started.
    #[error(transparent)]
    Proxy(#[from] program::Error),
}

/// `dataplane run`.
///
/// # Errors
/// The program cannot start. What fails later is in the exit status.
pub fn run(args: &RunArgs) -> Result<ExitStatus, Error> {
    let config = args.load()?;
    let spec = spec(&config)?;
    warn_of_unknown_kuma_variables(&Cli::command());
    if config.dns_enabled {
        // Goes past the log level: whoever asked for it would otherwise look for the fault elsewhere.
        eprintln!("warning: --dns-enabled was asked for, but this version has no DNS server: mesh names are not resolved here");
    }
    Ok(program::start(&config, config.proxy.clone(), spec, args.proxy.host())?)
}

/// Who the proxy is.
///
/// # Errors
/// The Dataplane is no Dataplane.
pub fn spec(config: &Config) -> Result<ProxySpec, Error> {
    let resource = resource::read(config)?;
    let (mesh, name) = match &resource {
        Some(dataplane) => (dataplane.mesh.clone(), dataplane.name.clone()),
        None => (config.mesh.clone().unwrap_or_default(), config.name.clone().unwrap_or_default()),
    };
    Ok(ProxySpec {
        dataplane: resource.map(|dataplane| dataplane.json),
        bind_outbounds: config.bind_outbounds,
        strict_inbound_ports: config.strict_inbound_ports,
        reuse_port: config.reuse_port,
        metrics_certificate: config.metrics_cert_path.clone().zip(config.metrics_key_path.clone()),
        system_ca_path: config.system_ca_path.clone(),
        ipv6: config.ipv6_enabled,
        max_memory_bytes: config.max_memory_bytes,
        ..ProxySpec::new(mesh, name)
    })
}
