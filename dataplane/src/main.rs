//! The program `dataplane`.
use std::process::ExitCode;

use clap::Parser;
use ursa_dataplane::{Cli, Command, run};
use ursa_proxy::envoy::run_guarded;
use ursa_runtime::error::Chain;

fn main() -> ExitCode {
    let error: Box<dyn std::error::Error> = match Cli::parse().command {
        Command::Run(args) => match run(&args) {
            Ok(status) => status.exit(),
            Err(error) => error.into(),
        },
        Command::Version => {
            println!("dataplane {}", ursa_proxy::VERSION);
            return ExitCode::SUCCESS;
        }
        // Returns only if the process could not become Envoy.
        Command::EnvoyGuard(guarded) => run_guarded(&guarded).into(),
    };
    eprintln!("error: {}", Chain(error.as_ref()));
    ExitCode::FAILURE
}
