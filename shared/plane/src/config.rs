//! Sections that the configurations of both control planes share.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use ursa_runtime::config::Problems;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Address and port to listen on.
    pub address: SocketAddr,
}

impl Listen {
    /// On every interface.
    pub fn everywhere(port: u16) -> Self {
        Self {
            address: ([0, 0, 0, 0], port).into(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// This node's number among the nodes of its control plane, 1 or greater. It belongs to the data folder and never changes.
    /// Default 1.
    pub id: u64,
}

impl Default for Node {
    fn default() -> Self {
        Self { id: 1 }
    }
}

/// The certificate of every server of the process. Without files a CA and a certificate are made under `<data_dir>/tls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Server certificate chain, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The CA that signed it, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Further names and addresses for the certificate that is made here, such as those of a load balancer.
    pub extra_sans: Vec<String>,
}

impl Tls {
    pub fn validate(&self, problems: &mut Problems) {
        problems.check(self.cert_file.is_some() == self.key_file.is_some(), || {
            "tls.cert_file and tls.key_file go together".into()
        });
    }
}
