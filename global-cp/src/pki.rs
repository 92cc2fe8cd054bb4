//! `global-cp pki`: the CA of a cluster of global control planes, and the certificates of its nodes.
//! In: folders, a node's id and addresses. Out: PEM files, keys with mode 0600.
//! Invariant: nothing that exists is overwritten; a key is on disk before its certificate.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use time::{Duration, OffsetDateTime};
use ursa_pki::{
    CaMaterial,
    node::{ClusterCa, ClusterName},
};
use ursa_runtime::fs;

const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const NODE_CERT: &str = "node.crt";
const NODE_KEY: &str = "node.key";
/// A PEM file of ours has 1 to 2 KB.
const MAX_FILE: u64 = 256 * 1024;
/// Every node is reached by these from its own machine.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// What `global-cp pki` can do.
#[derive(Subcommand)]
pub enum Command {
    /// Make the cluster's CA: DIR/ca.crt and DIR/ca.key.
    ///
    /// Once per cluster. Every node trusts ca.crt, and so do the clients of the REST API and the zones unless `tls` is configured.
    /// ca.key signs the nodes' certificates and nothing else: keep it away from the nodes.
    Init(Init),
    /// Make one node's certificate: OUT/node.crt, OUT/node.key and a copy of ca.crt.
    ///
    /// The node presents it to the other nodes, and serves the REST API and zone sync with it unless `tls` is configured.
    /// Give it to that node alone: whoever has it is that node.
    Node(Node),
}

/// Flags of `pki init`.
#[derive(Args)]
pub struct Init {
    /// Folder for ca.crt and ca.key; made if it does not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name of the cluster, part of every node's identity: lower-case letters, digits and dashes.
    #[arg(long, value_name = "NAME", default_value = "ursa")]
    cluster: ClusterName,
}

/// Flags of `pki node`.
#[derive(Args)]
pub struct Node {
    /// Folder with the ca.crt and ca.key that `pki init` made.
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// The node's id, as in its configuration (`node.id`): 1 or greater.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// IP address or DNS name, without port, by which other nodes, zones and clients reach it. May be given several times.
    /// localhost is added.
    #[arg(long = "address", value_name = "HOST", required = true)]
    addresses: Vec<String>,
    /// Folder for node.crt, node.key and ca.crt; made if it does not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Days until the certificate ends.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

/// Runs it and says on stdout what was made.
///
/// # Errors
/// Files exist already or cannot be read or written; the CA cannot issue. Nothing is overwritten.
pub fn run(command: &Command) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    match command {
        Command::Init(init) => init.run(now),
        Command::Node(node) => node.run(now),
    }
}

impl Init {
    fn run(&self, now: OffsetDateTime) -> Result<()> {
        let material = ClusterCa::generate(&self.cluster, now)?;
        write_all(
            &self.out,
            &[(CA_KEY, &material.key_pem, fs::PRIVATE), (CA_CERT, &material.cert_pem, fs::PUBLIC)],
        )?;
        println!("The CA of cluster {} is in {}.", self.cluster, self.out.display());
        println!(
            "Next, for each node: global-cp pki node --ca {} --id <N> --address <HOST> --out <DIR>",
            self.out.display()
        );
        Ok(())
    }
}

impl Node {
    fn run(&self, now: OffsetDateTime) -> Result<()> {
        let material = CaMaterial {
            cert_pem: read(&self.ca.join(CA_CERT))?,
            key_pem: read(&self.ca.join(CA_KEY))?,
        };
        let ca = ClusterCa::load(&material).with_context(|| format!("in {}", self.ca.display()))?;
        let mut addresses = self.addresses.clone();
        addresses.extend(
            LOCAL
                .iter()
                .filter(|l| !self.addresses.iter().any(|a| a == *l))
                .map(|l| (*l).to_owned()),
        );
        let made = ca.issue(self.id, &addresses, Duration::days(self.days.into()), now)?;
        write_all(
            &self.out,
            &[
                (NODE_KEY, &made.key_pem, fs::PRIVATE),
                (NODE_CERT, &made.cert_pem, fs::PUBLIC),
                (CA_CERT, &material.cert_pem, fs::PUBLIC),
            ],
        )?;
        let date = made.not_after.date();
        println!(
            "The certificate of node {} of cluster {} is in {}, valid until {date}.",
            self.id,
            ca.cluster(),
            self.out.display()
        );
        Ok(())
    }
}

/// Writes none of them if one exists.
fn write_all(dir: &Path, files: &[(&str, &str, u32)]) -> Result<()> {
    if let Some((name, ..)) = files.iter().find(|(name, ..)| dir.join(name).symlink_metadata().is_ok()) {
        bail!(
            "{} exists already and is left alone: name another folder, or move it away if it is no longer needed",
            dir.join(name).display()
        );
    }
    fs::create_dir(dir, 0o755).with_context(|| format!("cannot make folder {}", dir.display()))?;
    for (name, content, mode) in files {
        let path = dir.join(name);
        fs::write_atomic(&path, content.as_bytes(), *mode).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let bytes =
        fs::read_bounded(path, MAX_FILE).with_context(|| format!("cannot read {}; `global-cp pki init` makes a CA", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{} is no PEM file", path.display()))
}
