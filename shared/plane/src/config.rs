//! Sections that the configurations of both control planes share.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use ursa_runtime::config::Problems;

mod encryption;
mod history;
mod store;
mod timings;

pub use encryption::Encryption;
pub use history::History;
pub use store::Store;
pub(crate) use timings::{Timing, apply};

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

/// This node among the others of its control plane. All nodes have the same list of members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// Address and port to listen on for the other nodes. Default 0.0.0.0:5683.
    pub listen: SocketAddr,
    /// All members, this node included, as the others reach them. It founds the group on the first start; an odd number of three or
    /// more survives the loss of any minority.
    pub members: Vec<Member>,
    /// Where this node, unlike the others, reaches a member: through a forwarder, say. Default empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dial: Vec<Member>,
    /// How often the leader gives a sign of life. The same on all nodes, as are the two below. It must be more than twice the longest round
    /// trip between two nodes; the default suits round trips of up to about 40 ms. Default 80ms.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Shortest time without a sign of the leader before a node stands for election: at least three heartbeats. Default 240ms.
    #[serde(with = "humantime_serde")]
    pub election_timeout_min: Duration,
    /// Longest such time, and how long the leader's silence is believed to be a pause: at least a heartbeat more than the shortest. A
    /// fail-over takes up to about twice as long. Default 450ms.
    #[serde(with = "humantime_serde")]
    pub election_timeout_max: Duration,
    /// What this node does while it has nothing yet: `found` the group together with the other members, `wait` until a node that has data
    /// takes it in (a control plane of one node that grows: the node with the data founds, the empty ones wait), or `join` a group that runs.
    /// Afterwards it means nothing. Default `found`.
    pub first_start: FirstStart,
    /// With `first_start: join`: file with the token that `POST /cluster/members` or `global-cp member add` gave for this node. It may be
    /// deleted once the node has joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_token_file: Option<PathBuf>,
    /// This node's certificate, PEM; `global-cp pki node` makes it. It also serves the REST API and zone sync unless `tls` is configured.
    pub cert_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
    /// The cluster's CA, PEM.
    pub ca_file: PathBuf,
}

/// What a node does on its first start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirstStart {
    #[default]
    Found,
    Wait,
    Join,
}

/// A node and where it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The node's `node.id`.
    pub id: u64,
    /// `host:port` of its `cluster.listen`.
    pub address: String,
}

impl Default for Cluster {
    fn default() -> Self {
        let timings = ursa_store::Timings::default();
        Self {
            listen: ([0, 0, 0, 0], 5683).into(),
            members: Vec::new(),
            dial: Vec::new(),
            heartbeat: timings.heartbeat,
            election_timeout_min: timings.election_min,
            election_timeout_max: timings.election_max,
            first_start: FirstStart::default(),
            join_token_file: None,
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            ca_file: PathBuf::new(),
        }
    }
}

impl Cluster {
    pub fn validate(&self, node: u64, problems: &mut Problems) {
        let members = self.addresses();
        problems.check(!self.members.is_empty(), || {
            "cluster.members must name every node, this one too".into()
        });
        problems.check(members.len() == self.members.len(), || "cluster.members names a node twice".into());
        problems.check(self.members.is_empty() || members.contains_key(&node), || {
            format!("node.id {node} is not among cluster.members")
        });
        for member in self.members.iter().chain(&self.dial) {
            problems.check(member.id > 0, || "cluster.members: an id is 1 or greater".into());
            problems.check(is_address(&member.address), || {
                format!("cluster.members: {:?} of node {} is not host:port", member.address, member.id)
            });
        }
        let distinct: std::collections::BTreeSet<&String> = members.values().collect();
        problems.check(distinct.len() == members.len(), || {
            "cluster.members: two nodes have the same address".into()
        });
        for member in &self.dial {
            problems.check(members.contains_key(&member.id), || {
                format!("cluster.dial: node {} is not among cluster.members", member.id)
            });
        }
        timings::check(self, problems);
        problems.check((self.first_start == FirstStart::Join) == self.join_token_file.is_some(), || {
            "cluster.join_token_file goes with cluster.first_start: join, and is needed for it".into()
        });
        problems.check(
            self.first_start == FirstStart::Found || members.len() > 1 || self.members.is_empty(),
            || "cluster.members must name the nodes of the group that this one waits for or joins".into(),
        );
        for (name, file) in [
            ("cert_file", &self.cert_file),
            ("key_file", &self.key_file),
            ("ca_file", &self.ca_file),
        ] {
            problems.check(file.is_file(), || match file.as_os_str().is_empty() {
                true => format!("cluster.{name} must be set; `global-cp pki node` makes it"),
                false => format!("cluster.{name}: there is no file {}; `global-cp pki node` makes it", file.display()),
            });
        }
    }

    /// What is allowed but hardly meant.
    pub fn advice(&self) -> Option<String> {
        let count = self.members.len();
        (count.is_multiple_of(2)).then(|| {
            format!(
                "{count} members survive the loss of {} only, as {} do: an odd number is better",
                count.saturating_sub(1) / 2,
                count.saturating_sub(1)
            )
        })
    }

    pub(crate) fn addresses(&self) -> std::collections::BTreeMap<u64, String> {
        addresses(&self.members)
    }

    pub(crate) fn detours(&self) -> std::collections::BTreeMap<u64, String> {
        addresses(&self.dial)
    }
}

fn addresses(members: &[Member]) -> std::collections::BTreeMap<u64, String> {
    members.iter().map(|m| (m.id, m.address.clone())).collect()
}

fn is_address(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(cluster: &Cluster) -> String {
        let mut problems = Problems::new();
        cluster.validate(1, &mut problems);
        problems.into_result().err().map(|e| e.to_string()).unwrap_or_default()
    }

    fn member(id: u64, address: &str) -> Member {
        let address = address.to_owned();
        Member { id, address }
    }

    #[test]
    fn every_mistake_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let good = Cluster {
            members: vec![member(1, "a:5683"), member(2, "b:5683"), member(3, "[::1]:5683")],
            cert_file: file.clone(),
            key_file: file.clone(),
            ca_file: file,
            ..Cluster::default()
        };
        assert_eq!(problems(&good), "");
        assert_eq!(good.advice(), None);
        let with = |members: &[(u64, &str)]| Cluster {
            members: members.iter().map(|(id, address)| member(*id, address)).collect(),
            ..good.clone()
        };
        for (members, wanted) in [
            (&[][..], "must name every node"),
            (&[(1, "a:1"), (1, "b:1")], "names a node twice"),
            (&[(2, "a:1")], "node.id 1 is not among cluster.members"),
            (&[(1, "a")], "\"a\" of node 1 is not host:port"),
            (&[(1, "a:0")], "is not host:port"),
            (&[(1, "a:1"), (2, "a:1")], "two nodes have the same address"),
            (&[(1, "a:1"), (0, "b:1")], "an id is 1 or greater"),
        ] {
            assert!(problems(&with(members)).contains(wanted), "{}", problems(&with(members)));
        }
        let waits = |first_start, token: Option<&str>, cluster: &Cluster| {
            problems(&Cluster {
                first_start,
                join_token_file: token.map(PathBuf::from),
                ..cluster.clone()
            })
        };
        assert_eq!(waits(FirstStart::Wait, None, &good), "");
        assert_eq!(waits(FirstStart::Join, Some("token"), &good), "", "it may be gone by now");
        for (first_start, token) in [
            (FirstStart::Join, None),
            (FirstStart::Wait, Some("token")),
            (FirstStart::Found, Some("token")),
        ] {
            assert!(waits(first_start, token, &good).contains("cluster.join_token_file goes with"));
        }
        assert!(waits(FirstStart::Wait, None, &with(&[(1, "a:1")])).contains("that this one waits for or joins"));
        let detour = Cluster {
            dial: vec![member(9, "x:1")],
            ..good.clone()
        };
        assert!(problems(&detour).contains("cluster.dial: node 9"));
        let no_files = problems(&Cluster {
            cert_file: "/nowhere/node.crt".into(),
            key_file: PathBuf::new(),
            ..good.clone()
        });
        assert!(
            no_files.contains("there is no file /nowhere/node.crt") && no_files.contains("cluster.key_file must be set"),
            "{no_files}"
        );
        assert!(
            with(&[(1, "a:1"), (2, "b:1")])
                .advice()
                .unwrap()
                .contains("loss of 0 only, as 1 do")
        );
        assert!(
            with(&[(1, "a:1"), (2, "b:1"), (3, "c:1"), (4, "d:1")])
                .advice()
                .unwrap()
                .contains("loss of 1 only, as 3 do")
        );
    }
}
