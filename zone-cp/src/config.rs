//! Configuration of the zone control plane: defaults < file < `URSA_…` < flags.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use ursa_model::ZoneName;
use ursa_plane::config::{Encryption, History, Listen, Node, Store, Tls};
use ursa_runtime::{config, telemetry};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of the zone: an RFC 1035 label, unique in the deployment. No default.
    pub zone: String,
    /// Folder of everything this node keeps. Default `/var/lib/ursa/zone-cp`.
    pub data_dir: PathBuf,
    pub node: Node,
    pub global: Global,
    /// Default of the zone: 10,000 revisions, 7 days.
    pub history: History,
    pub store: Store,
    pub api: Listen,
    /// For proxies: bootstrap and xDS.
    pub dp_server: Listen,
    pub diagnostics: Listen,
    pub tls: Tls,
    pub encryption: Encryption,
    pub telemetry: telemetry::Config,
    /// What `GET /` reports as version; kumactl compares it with its own. Empty: our own.
    pub reported_version: String,
    /// How long running requests and streams may take to end at shutdown. Default 10s.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

/// The global control plane. Without addresses the zone works on its own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Global {
    /// `host:port` or `grpcs://host:port` of each global node. Which one comes first depends on the zone's name; the others are tried
    /// as soon as it fails.
    pub addresses: Vec<String>,
    /// The CA of the global's server certificates, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// File with the zone's token (`POST /tokens/zone` at the global). Read again at every connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            zone: String::new(),
            data_dir: "/var/lib/ursa/zone-cp".into(),
            node: Node::default(),
            global: Global::default(),
            history: History {
                max_revisions: 10_000,
                max_age: Duration::from_secs(7 * 24 * 3600),
            },
            store: Store::default(),
            api: Listen::everywhere(5682),
            dp_server: Listen::everywhere(5678),
            diagnostics: Listen::everywhere(5680),
            tls: Tls::default(),
            encryption: Encryption::default(),
            telemetry: telemetry::Config::default(),
            reported_version: String::new(),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Every problem at once.
    pub fn validate(self) -> Result<Self, config::Error> {
        let mut problems = config::Problems::new();
        if let Err(err) = self.zone.parse::<ZoneName>() {
            problems.check(false, || format!("zone {:?}: {err}", self.zone));
        }
        problems.check(self.node.id > 0, || "node.id must be 1 or greater".into());
        problems.check(!self.data_dir.as_os_str().is_empty(), || "data_dir must be set".into());
        self.tls.validate(&mut problems);
        self.history.validate(&mut problems);
        self.store.validate(&mut problems);
        self.encryption.validate(&mut problems);
        for address in &self.global.addresses {
            problems.check(address.starts_with("grpcs://") || !address.contains("://"), || {
                format!("global.addresses: {address:?} must be host:port or grpcs://host:port")
            });
        }
        problems.check(self.global.addresses.is_empty() || self.global.ca_file.is_some(), || {
            "global.ca_file must be set: the CA of the global control plane (its <data_dir>/tls/ca.crt)".into()
        });
        if let Err(problem) = self.telemetry.check() {
            problems.check(false, || problem);
        }
        problems.into_result()?;
        Ok(self)
    }

    /// It has a global control plane.
    pub fn is_federated(&self) -> bool {
        !self.global.addresses.is_empty()
    }
}
