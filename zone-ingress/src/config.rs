//! Settings and flags of `zone-ingress run`.
//! In: flags, environment, a config file. Out: a checked [`Config`].
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ursa_proxy::{ProxyArgs, ProxyConfig};
use ursa_runtime::config::{Error, Problems};

/// Port of Kuma's zone ingress.
const PORT: u16 = 10001;
/// Name and workload, when none is given.
const NAME: &str = "zone-ingress";
/// Longest DNS name.
const MAX_HOST: usize = 253;

/// Settings of `zone-ingress run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of its Dataplane. Default `zone-ingress`.
    pub name: String,
    /// The mesh it serves; exactly one. Default `[default]`.
    pub meshes: Vec<String>,
    /// Value of the label `kuma.io/workload`, which its identity is made from. Default `zone-ingress`.
    pub workload: String,
    /// Further labels of its Dataplane.
    pub labels: BTreeMap<String, String>,
    /// IP address of this host that Envoy listens on. Must be given.
    pub address: IpAddr,
    /// Port of the ingress. Default 10001.
    pub port: u16,
    /// Host name or IP address at which other zones reach it, through NAT or a load balancer for instance. Unset: `address`.
    pub advertised_address: Option<String>,
    /// The port that belongs to it. Unset: `port`.
    pub advertised_port: Option<u16>,
    /// Port of a zone egress in the same Envoy. Unset: none.
    pub egress_port: Option<u16>,
    /// The Envoy and its control plane.
    pub proxy: ProxyConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: NAME.to_owned(),
            meshes: vec!["default".to_owned()],
            workload: NAME.to_owned(),
            labels: BTreeMap::new(),
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: PORT,
            advertised_address: None,
            advertised_port: None,
            egress_port: None,
            proxy: ProxyConfig::default(),
        }
    }
}

impl Config {
    fn check(&self, problems: &mut Problems) {
        problems.check(self.meshes.len() == 1 && self.meshes.iter().all(|mesh| !mesh.is_empty()), || {
            format!("meshes: exactly one, not {:?}; run a zone-ingress per mesh", self.meshes)
        });
        problems.check(!self.name.is_empty(), || "--name must not be empty".to_owned());
        problems.check(!self.workload.is_empty(), || {
            "--workload must not be empty: without it no identity is issued".to_owned()
        });
        problems.check(!self.address.is_unspecified(), || {
            "--address is needed: the IP address of this host that the ingress listens on".to_owned()
        });
        for (flag, port) in [
            ("--port", Some(self.port)),
            ("--advertised-port", self.advertised_port),
            ("--egress-port", self.egress_port),
        ] {
            problems.check(port != Some(0), || format!("{flag} must not be 0"));
        }
        problems.check(self.egress_port != Some(self.port), || {
            "--egress-port must differ from --port".to_owned()
        });
        if let Some(host) = &self.advertised_address {
            problems.check(is_host(host), || {
                format!("--advertised-address {host:?} is neither an IP address nor a host name")
            });
        }
    }
}

fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        let inside = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        inside && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    match text.parse::<IpAddr>() {
        Ok(address) => !address.is_unspecified(),
        // A last label of digits would be an IP address gone wrong.
        Err(_) => text.len() <= MAX_HOST && text.split('.').all(label) && !text.ends_with(|c: char| c.is_ascii_digit()),
    }
}

/// Flags of `zone-ingress run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// IP address of this host that the ingress listens on
    #[arg(long, value_name = "IP", help_heading = "Zone ingress")]
    address: Option<IpAddr>,

    /// Port of the ingress [default: 10001]
    #[arg(long, help_heading = "Zone ingress")]
    port: Option<u16>,

    /// Host name or IP address at which other zones reach it [default: --address]
    #[arg(long, value_name = "HOST", help_heading = "Zone ingress")]
    advertised_address: Option<String>,

    /// The port that belongs to it [default: --port]
    #[arg(long, value_name = "PORT", help_heading = "Zone ingress")]
    advertised_port: Option<u16>,

    /// Also be the zone's egress, on this port
    #[arg(long, value_name = "PORT", help_heading = "Zone ingress")]
    egress_port: Option<u16>,

    /// Name of its Dataplane [default: zone-ingress]
    #[arg(long, env = "KUMA_DATAPLANE_NAME", help_heading = "Zone ingress")]
    name: Option<String>,

    /// The mesh it serves [default: default]
    #[arg(long, env = "KUMA_DATAPLANE_MESH", help_heading = "Zone ingress")]
    mesh: Option<String>,

    /// Value of its label kuma.io/workload, which its identity and token are bound to [default: zone-ingress]
    #[arg(long, help_heading = "Zone ingress")]
    workload: Option<String>,

    /// Flags that every proxy has.
    #[command(flatten)]
    pub proxy: ProxyArgs,
}

impl RunArgs {
    /// Flags over environment over file over defaults, checked.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn load(&self) -> Result<Config, Error> {
        self.proxy.load(&self.overrides(), |config: &Config| &config.proxy, Config::check)
    }

    fn overrides(&self) -> Value {
        let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        json!({
            "name": given(&self.name),
            "meshes": given(&self.mesh).map(|mesh| [mesh]),
            "workload": given(&self.workload),
            "address": self.address,
            "port": self.port,
            "advertised_address": given(&self.advertised_address),
            "advertised_port": self.advertised_port,
            "egress_port": self.egress_port,
            "proxy": self.proxy.overrides(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cli, Command};
    use clap::{CommandFactory, Parser};

    fn load(arguments: &[&str]) -> Result<Config, String> {
        let cli = Cli::try_parse_from([&["zone-ingress", "run"], arguments].concat()).map_err(|error| error.to_string())?;
        let Command::Run(args) = cli.command else {
            return Err("another command".into());
        };
        args.load().map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_reach_the_config() {
        let config = load(&[
            "--address=127.0.1.2",
            "--advertised-address=lb.east.example",
            "--advertised-port=443",
            "--mesh=m",
            "--drain-time=1s",
        ]);
        let config = config.unwrap();
        assert_eq!((config.name.as_str(), config.workload.as_str(), config.port), (NAME, NAME, PORT));
        assert_eq!(config.meshes, ["m"]);
        assert_eq!(config.advertised_address.as_deref(), Some("lb.east.example"));
        assert_eq!(config.proxy.drain.time.as_secs(), 1);
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(load(&[]).unwrap_err().contains("--address is needed"));
        let error = load(&[
            "--address=::1",
            "--port=7",
            "--egress-port=7",
            "--advertised-address=1.2.3.4.5",
            "--advertised-port=0",
        ])
        .unwrap_err();
        for part in ["--egress-port must differ", "\"1.2.3.4.5\"", "--advertised-port must not be 0"] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for good in ["10.0.0.1", "fd00::1", "ingress.east.example.com", "lb"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "0.0.0.0", "a..b", "-a", "http://x", "a:1", "10.0.0"] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
