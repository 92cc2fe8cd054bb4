//! The command line of `global-cp`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::{backup, encryption, held, member, pki, recover, restore};

/// The global control plane of Ursa: keeps the meshes' resources and syncs them to the zones.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the control plane until it is told to stop (SIGTERM or Ctrl-C).
    Run {
        /// Configuration file (YAML). Every setting can also be given as URSA_<SECTION>__<KEY>.
        #[arg(long, value_name = "FILE", env = "CONFIG_PATH")]
        config: Option<PathBuf>,
        #[command(flatten)]
        overrides: Overrides,
    },
    /// Make the CA and the node certificates of a control plane of several nodes.
    #[command(subcommand)]
    Pki(pki::Command),
    /// Removals that are held back because a zone came back with less than it had.
    #[command(subcommand)]
    HeldRemovals(held::Command),
    /// The nodes of a control plane: add, promote, remove, move, hand over the lead.
    #[command(subcommand)]
    Member(member::Command),
    /// How the data of a node is encrypted on its disk; a new data key.
    #[command(subcommand)]
    Encryption(encryption::Command),
    /// Write everything that a running control plane holds into a file that is encrypted to recipients.
    Backup(backup::Args),
    /// Make the data folder of the first node of a new control plane from a backup.
    Restore(restore::Args),
    /// When the majority of the nodes is lost for good: go on alone with what this node has, after showing what may be lost.
    Recover(recover::Args),
}

/// Settings that can be given as flags.
#[derive(clap::Args, Serialize)]
pub struct Overrides {
    /// Folder of everything this node keeps.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
}
