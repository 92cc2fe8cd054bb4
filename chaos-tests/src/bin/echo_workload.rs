//! `echo-workload`: the demo's application, see [`ursa_chaos_tests::echo`]. Runs until SIGTERM or Ctrl-C.
use std::net::SocketAddr;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use ursa_chaos_tests::echo::{Config, Workload};

/// A small HTTP server that answers its instance, its zone and the identity that the caller proved.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address and port to listen on.
    #[arg(long)]
    listen: SocketAddr,
    /// Name of this instance.
    #[arg(long)]
    instance: String,
    /// Zone that it runs in.
    #[arg(long)]
    zone: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let config = Config {
        listen: args.listen,
        instance: args.instance,
        zone: args.zone,
    };
    let workload = Workload::start(config)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    println!("listening on {}", workload.address());
    tokio::select! {
        _asked = terminate.recv() => {}
        asked = tokio::signal::ctrl_c() => asked?,
    }
    workload.stop().await;
    Ok(())
}
