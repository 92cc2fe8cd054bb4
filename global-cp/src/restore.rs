//! `global-cp restore`: the data folder of the first node of a new control plane, from a backup.
//! In: the backup, its key, the node's configuration. Out: a folder that `global-cp run` starts on.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use ursa_model::Timestamp;
use ursa_plane::offline;
use ursa_runtime::config;
use ursa_store::{
    backup::restore,
    disk::{Disk, RealDisk},
};

use crate::{backup, cli::Overrides, config::Config};

/// Flags of `global-cp restore`.
#[derive(clap::Args)]
pub struct Args {
    /// The backup.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Identity file that opens it.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Configuration of the node that is to be made: its `data_dir`, `node.id` and `cluster` count.
    #[arg(long, value_name = "FILE", env = "CONFIG_PATH")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

/// Runs it and says what was made.
///
/// # Errors
/// The backup is not whole, or for somebody else; the folder is not empty; each with the way out. Then nothing was made.
pub async fn run(args: &Args) -> Result<()> {
    let config = config::load::<Config>(args.config.as_deref(), &args.overrides)?.validate()?;
    let store = offline::store_config(&config.data_dir, config.node.id, config.cluster.as_ref(), &config.encryption)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    restore::is_possible(&store, &*disk)?;
    let from = backup::open(&args.from, &args.identity)?;
    let head = from.head.clone();
    eprint!("{}", backup::shown(&head));
    let state = from.state().with_context(|| format!("{}", args.from.display()))?;
    let (history, origin) = restore::restore(&store, &disk, &head, &state, Timestamp::now()).await?;
    println!(
        "{} is restored as history {history}, which goes on from history {} at revision {}; its revisions begin at {}.",
        config.data_dir.display(),
        origin.history,
        origin.revision,
        origin.begins
    );
    println!(
        "Start it with `global-cp run`. Tokens and keys of the old control plane are those of this one; what is left of the old one must not run any more."
    );
    if config.cluster.is_some() {
        println!("The other nodes join it with empty folders and `cluster.first_start: wait`.");
    }
    if config.cluster.is_none() && config.tls.cert_file.is_none() && !config.data_dir.join("tls").exists() {
        println!(
            "It will make a new CA for its servers, which zones and clients do not know: to spare them that, copy `tls` of the old data folder into {} before the first start.",
            config.data_dir.display()
        );
    }
    Ok(())
}
