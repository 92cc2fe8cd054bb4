//! Configuration of the global control plane: defaults < file < `URSA_…` < flags.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use ursa_plane::config::{Cluster, Encryption, History, Listen, Node, Store, Tls};
use ursa_runtime::{config, telemetry};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of everything this node keeps. Default `/var/lib/ursa/global-cp`.
    pub data_dir: PathBuf,
    pub node: Node,
    /// The other nodes of this control plane. Default: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    pub api: Listen,
    pub kds: Kds,
    pub history: History,
    pub store: Store,
    pub diagnostics: Listen,
    pub tls: Tls,
    pub encryption: Encryption,
    pub telemetry: telemetry::Config,
    /// What `GET /` reports as version; kumactl compares it with its own. Empty: our own.
    pub reported_version: String,
    /// How long running requests may take to end at shutdown. Default 10s.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kds {
    /// Address and port to listen on for zones. Default 0.0.0.0:5685.
    pub address: SocketAddr,
    /// Zones must present a token bound to their name. Switch it off only for stock Kuma zones on a network of their own: they
    /// cannot send one, and then anyone who reaches the port can be any zone. Default true.
    pub require_zone_token: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/ursa/global-cp".into(),
            node: Node::default(),
            cluster: None,
            api: Listen::everywhere(5682),
            kds: Kds::default(),
            history: History::default(),
            store: Store::default(),
            diagnostics: Listen::everywhere(5680),
            tls: Tls::default(),
            encryption: Encryption::default(),
            telemetry: telemetry::Config::default(),
            reported_version: String::new(),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

impl Default for Kds {
    fn default() -> Self {
        Self {
            address: ([0, 0, 0, 0], 5685).into(),
            require_zone_token: true,
        }
    }
}

impl Config {
    /// Every problem at once.
    pub fn validate(self) -> Result<Self, config::Error> {
        let mut problems = config::Problems::new();
        problems.check(self.node.id > 0, || "node.id must be 1 or greater".into());
        problems.check(!self.data_dir.as_os_str().is_empty(), || "data_dir must be set".into());
        self.tls.validate(&mut problems);
        self.history.validate(&mut problems);
        self.store.validate(&mut problems);
        self.encryption.validate(&mut problems);
        if let Some(cluster) = &self.cluster {
            cluster.validate(self.node.id, &mut problems);
        }
        if let Err(problem) = self.telemetry.check() {
            problems.check(false, || problem);
        }
        problems.into_result()?;
        Ok(self)
    }
}
