//! Settings and flags of `dataplane run`.
//! In: flags and kuma-dp's environment, a config file. Out: a checked [`Config`].
//! Source: kuma-dp `pkg/config/app/kuma-dp/config.go`, `app/kuma-dp/cmd/run.go`.
use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ursa_proxy::{ProxyArgs, ProxyConfig};
use ursa_runtime::config::{Error, Problems};

/// The only type of proxy that Kuma 3 knows; zone proxies are Dataplanes too.
const PROXY_TYPE: &str = "dataplane";

/// Settings of `dataplane run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of a Dataplane that exists at the control plane. Not together with a Dataplane of our own.
    pub name: Option<String>,
    /// Its mesh.
    pub mesh: Option<String>,
    /// `dataplane`.
    pub proxy_type: String,
    /// The Dataplane itself, YAML or JSON, `{{ variable }}` replaced.
    pub dataplane: Option<String>,
    /// File with the Dataplane; `-`: standard input. Wins over `dataplane`.
    pub dataplane_file: Option<PathBuf>,
    /// Values for the variables; a dot in a name goes one level down.
    pub dataplane_vars: BTreeMap<String, String>,
    /// Ask for a DNS server for mesh names. This version has none and says so. Default false.
    pub dns_enabled: bool,
    /// Bind outbound listeners to real addresses. Default false.
    pub bind_outbounds: bool,
    /// Let inbounds refuse ports that the Dataplane does not name. Default true.
    pub strict_inbound_ports: bool,
    /// Give each worker of Envoy listening sockets of its own. Default true.
    pub reuse_port: bool,
    /// Certificate of the metrics listener, when the mesh wants it to have one.
    pub metrics_cert_path: Option<PathBuf>,
    /// Its key.
    pub metrics_key_path: Option<PathBuf>,
    /// CA bundle of this host. Unset: looked for at the usual places.
    pub system_ca_path: Option<PathBuf>,
    /// May Envoy use IPv6, if this host has it? Default true.
    pub ipv6_enabled: bool,
    /// Memory that Envoy may use, in bytes; 0: the cgroup's limit. Default 0.
    pub max_memory_bytes: u64,
    /// The Envoy and its control plane.
    pub proxy: ProxyConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            mesh: None,
            proxy_type: PROXY_TYPE.to_owned(),
            dataplane: None,
            dataplane_file: None,
            dataplane_vars: BTreeMap::new(),
            dns_enabled: false,
            bind_outbounds: false,
            strict_inbound_ports: true,
            reuse_port: true,
            metrics_cert_path: None,
            metrics_key_path: None,
            system_ca_path: None,
            ipv6_enabled: true,
            max_memory_bytes: 0,
            proxy: ProxyConfig::default(),
        }
    }
}

impl Config {
    fn check(&self, problems: &mut Problems) {
        let own = self.dataplane.is_some() || self.dataplane_file.is_some();
        let (name, mesh) = (self.name.as_deref(), self.mesh.as_deref());
        problems.check(!own || (name.is_none() && mesh.is_none()), || {
            "--name and --mesh cannot be given together with a Dataplane: both are in it".to_owned()
        });
        problems.check(own || (name.is_some() && mesh.is_some()), || {
            "who is this proxy? Give --dataplane-file, or --name and --mesh of a Dataplane that exists at the control plane".to_owned()
        });
        for (flag, value) in [("--name", name), ("--mesh", mesh)] {
            // What an unexpanded template leaves behind.
            problems.check(!value.is_some_and(|value| value.contains(['$', '(', ')', '{', '}'])), || {
                format!("{flag} {value:?} contains one of $ ( ) {{ }}")
            });
        }
        problems.check(self.proxy_type == PROXY_TYPE, || {
            format!("--proxy-type {:?} is not known; the only one is {PROXY_TYPE:?}", self.proxy_type)
        });
        problems.check(self.metrics_cert_path.is_some() == self.metrics_key_path.is_some(), || {
            "metrics_cert_path and metrics_key_path need each other".to_owned()
        });
    }
}

/// Flags of `dataplane run`, and kuma-dp's environment names for them.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Dataplane (YAML or JSON) that this proxy is, with {{ variables }}; - reads standard input
    #[arg(
        short = 'd',
        long,
        value_name = "FILE",
        env = "KUMA_DATAPLANE_RUNTIME_RESOURCE_PATH",
        help_heading = "Who the proxy is"
    )]
    dataplane_file: Option<String>,

    /// The same as text
    #[arg(
        long,
        value_name = "YAML",
        env = "KUMA_DATAPLANE_RUNTIME_RESOURCE",
        help_heading = "Who the proxy is"
    )]
    dataplane: Option<String>,

    /// Value for a {{ variable }} of the Dataplane; repeat it for several
    #[arg(short = 'v', long, value_name = "KEY=VALUE", value_parser = variable, value_delimiter = ',', help_heading = "Who the proxy is")]
    dataplane_var: Vec<(String, String)>,

    /// Name of a Dataplane that exists at the control plane
    #[arg(long, env = "KUMA_DATAPLANE_NAME", help_heading = "Who the proxy is")]
    name: Option<String>,

    /// Its mesh
    #[arg(long, env = "KUMA_DATAPLANE_MESH", help_heading = "Who the proxy is")]
    mesh: Option<String>,

    /// Only "dataplane" is known; accepted for unit files of kuma-dp
    #[arg(
        long,
        value_name = "TYPE",
        env = "KUMA_DATAPLANE_PROXY_TYPE",
        hide_short_help = true,
        help_heading = "Who the proxy is"
    )]
    proxy_type: Option<String>,

    /// Accepted for unit files of kuma-dp; this version has no DNS server and says so
    #[arg(long, value_name = "BOOL", env = "KUMA_DNS_ENABLED", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "true", require_equals = true, hide_short_help = true, help_heading = "Envoy")]
    dns_enabled: Option<bool>,

    /// Bind outbound listeners to real addresses
    #[arg(long, value_name = "BOOL", env = "KUMA_DATAPLANE_RUNTIME_BIND_OUTBOUNDS", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "true", require_equals = true, hide_short_help = true, help_heading = "Envoy")]
    bind_outbounds: Option<bool>,

    /// Certificate of the metrics listener
    #[arg(
        long,
        value_name = "FILE",
        env = "KUMA_DATAPLANE_RUNTIME_METRICS_CERT_PATH",
        hide_short_help = true,
        help_heading = "Envoy"
    )]
    metrics_cert_path: Option<String>,

    /// Key of the metrics listener
    #[arg(
        long,
        value_name = "FILE",
        env = "KUMA_DATAPLANE_RUNTIME_METRICS_KEY_PATH",
        hide_short_help = true,
        help_heading = "Envoy"
    )]
    metrics_key_path: Option<String>,

    // Kuma has these only as variables, so they are not shown among the flags.
    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RUNTIME_DYNAMIC_SYSTEM_CA_PATH")]
    system_ca_path: Option<String>,

    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RUNTIME_IPV6_ENABLED", value_parser = BoolishValueParser::new())]
    ipv6_enabled: Option<bool>,

    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RUNTIME_STRICT_INBOUND_PORTS_ENABLED", value_parser = BoolishValueParser::new())]
    strict_inbound_ports: Option<bool>,

    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RUNTIME_REUSE_PORT_ENABLED", value_parser = BoolishValueParser::new())]
    reuse_port: Option<bool>,

    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RESOURCES_MAX_MEMORY_BYTES")]
    max_memory_bytes: Option<u64>,

    /// Flags that every proxy has.
    #[command(flatten)]
    pub proxy: ProxyArgs,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("is not KEY=VALUE".to_owned()),
    }
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
        let variables: BTreeMap<_, _> = self.dataplane_var.iter().cloned().collect();
        json!({
            "name": given(&self.name),
            "mesh": given(&self.mesh),
            "proxy_type": given(&self.proxy_type),
            "dataplane": given(&self.dataplane),
            "dataplane_file": given(&self.dataplane_file),
            "dataplane_vars": variables,
            "dns_enabled": self.dns_enabled,
            "bind_outbounds": self.bind_outbounds,
            "strict_inbound_ports": self.strict_inbound_ports,
            "reuse_port": self.reuse_port,
            "metrics_cert_path": given(&self.metrics_cert_path),
            "metrics_key_path": given(&self.metrics_key_path),
            "system_ca_path": given(&self.system_ca_path),
            "ipv6_enabled": self.ipv6_enabled,
            "max_memory_bytes": self.max_memory_bytes,
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
        let cli = Cli::try_parse_from([&["dataplane", "run"], arguments].concat()).map_err(|error| error.to_string())?;
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
    fn a_command_line_of_kuma_dp_is_understood() {
        let config = load(&[
            "--cp-address=https://zone:5678",
            "--ca-cert-file",
            "/ca",
            "--dataplane-token-file=/t",
            "--dataplane-file=/d.yaml",
            "--dataplane-var",
            "name=web",
            "-v",
            "address=10.0.0.7,port=80",
            "--dns-enabled",
            "--binary-path",
            "envoy",
            "--proxy-type=dataplane",
        ])
        .unwrap();
        assert_eq!(config.dataplane_file, Some("/d.yaml".into()));
        assert_eq!(config.dataplane_vars["address"], "10.0.0.7");
        assert_eq!(config.dataplane_vars["port"], "80");
        assert!(config.dns_enabled);
        assert_eq!(config.proxy.envoy.path, Some("envoy".into()));
        assert!(!load(&["--name=a", "--mesh=default", "--dns-enabled=false"]).unwrap().dns_enabled);
    }

    #[test]
    fn who_the_proxy_is_must_be_clear() {
        assert!(load(&[]).unwrap_err().contains("who is this proxy"));
        assert!(load(&["--name=a"]).unwrap_err().contains("--mesh"));
        assert!(load(&["--name=a", "--mesh=m", "--dataplane=x"]).unwrap_err().contains("together"));
        assert!(load(&["--name=${POD}", "--mesh=m"]).unwrap_err().contains("--name"));
        assert!(
            load(&["--name=a", "--mesh=m", "--proxy-type=ingress"])
                .unwrap_err()
                .contains("ingress")
        );
        assert!(load(&["--name=a", "--mesh=m", "-v", "x"]).unwrap_err().contains("KEY=VALUE"));
    }
}
