//! The store of a node that does not run, for the commands that work on its data folder.
//! In: the node's configuration. Out: the store's.

use std::{path::Path, sync::Arc};

use anyhow::Result;
use tokio::sync::watch;
use ursa_store::{ClusterConfig, StoreConfig};

use crate::{
    cluster::node_tls,
    config::{Cluster, Encryption},
};

/// As the node itself would open it.
///
/// # Errors
/// The node's certificate, or its key-encryption key, cannot be read.
pub fn store_config(data_dir: &Path, node_id: u64, cluster: Option<&Cluster>, encryption: &Encryption) -> Result<StoreConfig> {
    let mut config = StoreConfig::new(data_dir, node_id);
    config.encryption = encryption.open()?;
    if let Some(cluster) = cluster {
        config.cluster = Some(ClusterConfig {
            members: cluster.addresses(),
            dial: cluster.detours(),
            join: None,
            tls: watch::channel(Arc::new(node_tls(cluster)?)).1,
        });
    }
    Ok(config)
}
