//! Command-line flags of every program that runs a proxy, and kuma-dp's environment names for them.
//! In: flags; `KUMA_…` variables, so that an existing unit file of kuma-dp works. Out: overrides for the `proxy` part of the config.
//! Order: defaults < config file < `URSA_PROXY__…` < `KUMA_…` < flags. An empty value counts as not given.
//! Source: kuma-dp `pkg/config/app/kuma-dp/config.go`.
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{BoolishValueParser, OsStringValueParser, TypedValueParser};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ursa_runtime::config::{self, Error, Problems};

use crate::config::ProxyConfig;
use crate::program::Host;

/// Flags of every program that runs a proxy.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ProxyArgs {
    /// Configuration file (YAML); every setting can also be given as URSA_<SECTION>__<KEY>, e.g. URSA_PROXY__DRAIN__TIME
    #[arg(long, value_name = "FILE", env = "CONFIG_PATH", value_parser = path())]
    pub config: Option<PathBuf>,

    /// URL of the zone control plane's proxy server; repeat it, or separate by commas, for several nodes [default: https://localhost:5678]
    #[arg(
        long,
        value_name = "URL",
        env = "KUMA_CONTROL_PLANE_URL",
        value_delimiter = ',',
        help_heading = "Control plane"
    )]
    pub cp_address: Vec<String>,

    /// PEM file of the CA that signed the control plane's certificate [default: the operating system's CAs]
    #[arg(long, value_name = "FILE", env = "KUMA_CONTROL_PLANE_CA_CERT_FILE", value_parser = path(), help_heading = "Control plane")]
    pub ca_cert_file: Option<PathBuf>,

    /// The CA as PEM text; wins over the file
    #[arg(
        long,
        value_name = "PEM",
        env = "KUMA_CONTROL_PLANE_CA_CERT",
        hide_env_values = true,
        hide_short_help = true,
        help_heading = "Control plane"
    )]
    pub ca_cert: Option<String>,

    /// File with the dataplane token
    #[arg(long, alias = "token-file", value_name = "FILE", env = "KUMA_DATAPLANE_RUNTIME_TOKEN_PATH", value_parser = path(), help_heading = "Control plane")]
    pub dataplane_token_file: Option<PathBuf>,

    /// The dataplane token itself; everyone on this machine can list flags, so prefer the file
    #[arg(
        long,
        value_name = "TOKEN",
        env = "KUMA_DATAPLANE_RUNTIME_TOKEN",
        hide_env_values = true,
        help_heading = "Control plane"
    )]
    pub dataplane_token: Option<String>,

    /// Longest pause between two rounds of asking for the bootstrap [default: 3s]
    #[arg(long, value_name = "DURATION", env = "KUMA_CONTROL_PLANE_RETRY_BACKOFF", value_parser = humantime::parse_duration, hide_short_help = true, help_heading = "Control plane")]
    pub retry_backoff: Option<Duration>,

    /// Give up, and end, after this long without a bootstrap [default: 5m]
    #[arg(long, value_name = "DURATION", env = "KUMA_CONTROL_PLANE_RETRY_MAX_DURATION", value_parser = humantime::parse_duration, hide_short_help = true, help_heading = "Control plane")]
    pub retry_max_duration: Option<Duration>,

    #[arg(long, hide = true, env = "KUMA_CONTROL_PLANE_TLS_SKIP_VERIFY", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    skip_verify: Option<bool>,

    /// The Envoy binary [default: $ENVOY_BIN, else `envoy` beside this program, else `envoy` on PATH]
    #[arg(long, alias = "binary-path", value_name = "PATH", env = "KUMA_DATAPLANE_RUNTIME_BINARY_PATH", value_parser = path(), help_heading = "Envoy")]
    pub envoy: Option<PathBuf>,

    #[arg(long = "envoy-default", hide = true, env = "ENVOY_BIN", value_parser = path())]
    envoy_default: Option<PathBuf>,

    #[arg(long, hide = true, env = "HOST_IP")]
    host_ip: Option<String>,

    /// Envoy's log level: trace, debug, info, warning, error, critical or off [default: info]
    #[arg(long, value_name = "LEVEL", env = "KUMA_DATAPLANE_RUNTIME_ENVOY_LOG_LEVEL", help_heading = "Envoy")]
    pub envoy_log_level: Option<String>,

    /// Envoy's log level per component, e.g. upstream:debug,connection:trace
    #[arg(
        long,
        value_name = "LEVELS",
        env = "KUMA_DATAPLANE_RUNTIME_ENVOY_COMPONENT_LOG_LEVEL",
        help_heading = "Envoy"
    )]
    pub envoy_component_log_level: Option<String>,

    /// Envoy's worker threads [default: as many as this process may use CPUs]
    #[arg(long, value_name = "N", env = "KUMA_DATAPLANE_RUNTIME_CONCURRENCY", help_heading = "Envoy")]
    pub concurrency: Option<u32>,

    /// Folder for the bootstrap, sockets and Envoy's log; keep its path short [default: a temporary one]
    #[arg(long, alias = "config-dir", value_name = "DIR", env = "KUMA_DATAPLANE_RUNTIME_WORK_DIR", value_parser = path(), help_heading = "Envoy")]
    pub work_dir: Option<PathBuf>,

    /// On SIGTERM: longest wait for connections to end before they are cut [default: 30s]
    #[arg(long, value_name = "DURATION", env = "KUMA_DATAPLANE_DRAIN_TIME", value_parser = humantime::parse_duration, help_heading = "Stopping")]
    pub drain_time: Option<Duration>,

    /// On SIGTERM: stop earlier when nobody has been connected for this long [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "Stopping")]
    pub drain_quiet: Option<Duration>,

    /// Address where GET /ready answers [default: 127.0.0.1]
    #[arg(long, value_name = "IP", help_heading = "Observing")]
    pub readiness_address: Option<IpAddr>,

    /// Port where GET /ready answers; 0 takes a free one [default: 9902]
    #[arg(long, value_name = "PORT", env = "KUMA_READINESS_PORT", help_heading = "Observing")]
    pub readiness_port: Option<u16>,

    /// Where this program's own /ready, /metrics and /stages are served, e.g. 127.0.0.1:5680 [default: nowhere]
    #[arg(long, value_name = "IP:PORT", help_heading = "Observing")]
    pub diagnostics_address: Option<SocketAddr>,

    /// This program's log level, or directives such as info,ursa_proxy=debug [default: info]
    #[arg(long, value_name = "LEVEL", help_heading = "Observing")]
    pub log_level: Option<String>,

    /// This program's log format: text or json [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = "Observing")]
    pub log_format: Option<String>,
}

impl ProxyArgs {
    /// What the environment says that is not configuration. (`$ENVOY_BIN` comes after the config, so it is no override.)
    pub fn host(&self) -> Host {
        Host {
            envoy: given_path(&self.envoy_default).cloned(),
            host_ip: given(&self.host_ip).map(str::to_owned),
        }
    }

    /// The config file's `C`, under the environment and `overrides`; what is wrong with the `proxy` part and what `check` finds, at once.
    ///
    /// # Errors
    /// The file cannot be read, or anything is wrong.
    pub fn load<C>(
        &self,
        overrides: &Value,
        proxy: impl FnOnce(&C) -> &ProxyConfig,
        check: impl FnOnce(&C, &mut Problems),
    ) -> Result<C, Error>
    where
        C: Serialize + DeserializeOwned + Default,
    {
        let config = config::load::<C>(given_path(&self.config).map(PathBuf::as_path), overrides)?;
        let mut problems = Problems::new();
        problems.check(self.skip_verify != Some(true), || {
            "skipping the check of the control plane's certificate is not supported, for the request carries the token: \
             give its CA with --ca-cert-file"
                .to_owned()
        });
        proxy(&config).check(&mut problems);
        check(&config, &mut problems);
        problems.into_result()?;
        Ok(config)
    }

    /// What overrides the `proxy` part of the config; `null` where nothing was given.
    pub fn overrides(&self) -> Value {
        let duration = |value: Option<Duration>| value.map(|value| humantime::format_duration(value).to_string());
        let addresses: Vec<&str> = self.cp_address.iter().map(|url| url.trim()).filter(|url| !url.is_empty()).collect();
        json!({
            "control_plane": {
                "addresses": Some(addresses).filter(|addresses| !addresses.is_empty()),
                "ca_cert_file": given_path(&self.ca_cert_file),
                "ca_cert": given(&self.ca_cert),
                "retry_backoff": duration(self.retry_backoff),
                "retry_max_duration": duration(self.retry_max_duration),
            },
            "token": given(&self.dataplane_token),
            "token_file": given_path(&self.dataplane_token_file),
            "envoy": {
                "path": given_path(&self.envoy),
                "log_level": given(&self.envoy_log_level),
                "component_log_level": given(&self.envoy_component_log_level),
                "concurrency": self.concurrency,
            },
            "work_dir": given_path(&self.work_dir),
            "drain": {"time": duration(self.drain_time), "quiet": duration(self.drain_quiet)},
            "readiness": {"address": self.readiness_address, "port": self.readiness_port},
            "diagnostics_address": self.diagnostics_address,
            "telemetry": {"level": given(&self.log_level), "format": given(&self.log_format)},
        })
    }
}

/// clap's own parser of paths refuses the empty text, which an empty variable of a unit file is.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|value| !value.is_empty())
}

fn given_path(value: &Option<PathBuf>) -> Option<&PathBuf> {
    value.as_ref().filter(|path| !path.as_os_str().is_empty())
}

/// Says on standard error which of kuma-dp's variables are set and have no effect here: whoever brings a unit file along should know.
pub fn warn_of_unknown_kuma_variables(command: &clap::Command) {
    let unknown = unknown_kuma_variables(command, std::env::vars_os().map(|(name, _)| name));
    if !unknown.is_empty() {
        eprintln!("warning: these variables of kuma-dp have no effect here: {}", unknown.join(", "));
    }
}

/// Names of kuma-dp's variables in `environment` that `command` does not know, sorted.
fn unknown_kuma_variables(command: &clap::Command, environment: impl Iterator<Item = OsString>) -> Vec<String> {
    fn known<'a>(command: &'a clap::Command, names: &mut Vec<&'a str>) {
        names.extend(command.get_arguments().filter_map(|argument| argument.get_env()?.to_str()));
        command.get_subcommands().for_each(|command| known(command, names));
    }
    let mut names = Vec::new();
    known(command, &mut names);
    let mut unknown: Vec<String> = environment
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("KUMA_") && !names.contains(&name.as_str()))
        .collect();
    unknown.sort();
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};
    use ursa_runtime::config::load_with_env;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        proxy: ProxyArgs,
    }

    fn config(arguments: &[&str]) -> ProxyConfig {
        let cli = Cli::try_parse_from([&["x"], arguments].concat()).unwrap_or_else(|error| panic!("{error}"));
        load_with_env(None, [], cli.proxy.overrides()).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn flags_reach_the_config() {
        let config = config(&[
            "--cp-address=https://a:5678,https://b:5678",
            "--ca-cert-file=/ca",
            "--dataplane-token-file=/t",
            "--dataplane-token=ey",
            "--binary-path=/envoy",
            "--concurrency=2",
            "--config-dir=/w",
            "--drain-time=1m30s",
            "--readiness-address=127.0.1.10",
            "--readiness-port=0",
            "--diagnostics-address=127.0.0.1:5680",
            "--envoy-log-level=debug",
            "--log-format=json",
        ]);
        assert_eq!(config.control_plane.addresses, ["https://a:5678", "https://b:5678"]);
        assert_eq!(config.token.as_ref().map(|token| token.expose().as_str()), Some("ey"));
        assert_eq!(config.envoy.path, Some("/envoy".into()));
        assert_eq!(config.work_dir, Some("/w".into()));
        assert_eq!(config.drain.time, Duration::from_secs(90));
        assert_eq!(config.readiness.address, "127.0.1.10".parse::<IpAddr>().unwrap());
        assert_eq!((config.readiness.port, config.envoy.concurrency), (0, Some(2)));
        assert_eq!(config.diagnostics_address, Some("127.0.0.1:5680".parse().unwrap()));
    }

    #[test]
    fn what_is_not_given_stays_as_it_was() {
        let config = config(&["--ca-cert-file=", "--cp-address="]);
        assert_eq!(config.control_plane.addresses, ["https://localhost:5678"]);
        assert_eq!((config.control_plane.ca_cert_file, config.token.is_some()), (None, false));
    }

    #[test]
    fn skipping_the_certificate_check_is_refused() {
        let cli = Cli::try_parse_from(["x", "--skip-verify"]).unwrap_or_else(|error| panic!("{error}"));
        let refused = cli
            .proxy
            .load::<ProxyConfig>(&cli.proxy.overrides(), |config| config, |_, _| ())
            .unwrap_err();
        assert!(refused.to_string().contains("--ca-cert-file"), "{refused}");
    }

    #[test]
    fn variables_without_effect_are_found() {
        let set = ["KUMA_DNS_PROXY_PORT", "KUMA_CONTROL_PLANE_URL", "HOME"].map(OsString::from);
        assert_eq!(unknown_kuma_variables(&Cli::command(), set.into_iter()), ["KUMA_DNS_PROXY_PORT"]);
    }
}
