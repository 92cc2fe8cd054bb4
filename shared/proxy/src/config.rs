//! Settings of one proxy, the same in every program that runs one.
//! In: the `proxy` part of a program's config. Out: checked values; files read, a working folder made.
//! Invariant: a problem is found before anything is started, and all problems are reported at once.
//! Source: kuma-dp's settings and their defaults. Not here: who the proxy is, see [`crate::ProxySpec`].
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ursa_runtime::config::{self, Problems, Secret};
use ursa_runtime::telemetry;

use crate::bootstrap::ControlPlane;
use crate::host;

/// What Envoy's `--log-level` takes.
pub const LOG_LEVELS: [&str; 8] = ["trace", "debug", "info", "warning", "warn", "error", "critical", "off"];
/// A token is some hundred bytes; signatures of large keys make it a few KiB.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;
/// The CA bundle of an operating system is about 200 KiB.
const MAX_CA_BYTES: u64 = 4 * 1024 * 1024;
/// Longer drains than a day are typing errors.
const MAX_DRAIN: Duration = Duration::from_secs(24 * 3600);

/// Settings of one proxy.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// Where the bootstrap comes from.
    pub control_plane: ControlPlaneConfig,
    /// The dataplane token itself; wins over `token_file`. Prefer the file: a token in the environment is seen by more than the program.
    pub token: Option<Secret<String>>,
    /// File with the dataplane token.
    pub token_file: Option<PathBuf>,
    /// The Envoy to run.
    pub envoy: EnvoyConfig,
    /// Folder for the bootstrap, sockets and Envoy's log, made (0700) if missing. Unset: a temporary folder, removed at the end.
    /// Keep the path short: a unix socket's path holds at most 107 bytes.
    pub work_dir: Option<PathBuf>,
    /// How it stops.
    pub drain: DrainConfig,
    /// Where probes ask whether it is ready.
    pub readiness: ReadinessConfig,
    /// Where `/ready`, `/healthy`, `/metrics` and `/stages` of our own process are served, in plaintext. Unset: nowhere.
    pub diagnostics_address: Option<SocketAddr>,
    /// How our own process logs.
    pub telemetry: telemetry::Config,
}

/// Where the bootstrap comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlPlaneConfig {
    /// URLs of the zone control plane's proxy server, tried in turn. Default `https://localhost:5678`.
    pub addresses: Vec<String>,
    /// PEM file of the CA that signed the control plane's certificate. Unset: the operating system's CAs.
    pub ca_cert_file: Option<PathBuf>,
    /// The same as text; wins over the file.
    pub ca_cert: Option<String>,
    /// Longest pause between two rounds of tries; the first pauses are shorter. Default 3 s.
    #[serde(with = "humantime_serde")]
    pub retry_backoff: Duration,
    /// After this long without a bootstrap the program ends with the last error. Default 5 min.
    #[serde(with = "humantime_serde")]
    pub retry_max_duration: Duration,
}

impl Default for ControlPlaneConfig {
    fn default() -> Self {
        Self {
            addresses: vec!["https://localhost:5678".to_owned()],
            ca_cert_file: None,
            ca_cert: None,
            retry_backoff: Duration::from_secs(3),
            retry_max_duration: Duration::from_secs(5 * 60),
        }
    }
}

/// The Envoy to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnvoyConfig {
    /// The binary; a bare name is looked for on PATH. Unset: `$ENVOY_BIN`, then `envoy` beside our own binary, then on PATH.
    pub path: Option<PathBuf>,
    /// Envoy's log level. Default `info`.
    pub log_level: String,
    /// Envoy's `--component-log-level`, e.g. `upstream:debug,connection:trace`.
    pub component_log_level: Option<String>,
    /// Worker threads. Unset or 0: as many as the process may use CPUs.
    pub concurrency: Option<u32>,
    /// When Envoy's log has grown to this size it becomes `envoy.log.1` (one is kept). Default 32 MiB.
    pub log_max_bytes: u64,
}

impl Default for EnvoyConfig {
    fn default() -> Self {
        Self {
            path: None,
            log_level: "info".to_owned(),
            component_log_level: None,
            concurrency: None,
            log_max_bytes: 32 * 1024 * 1024,
        }
    }
}

/// How the proxy stops.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// Longest time between the request to stop and Envoy's end; what is still open then is cut. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub time: Duration,
    /// Part of that time, at most half of it: longest wait until the control plane says that nothing new is sent here. Default 8 s.
    #[serde(with = "humantime_serde")]
    pub withdraw: Duration,
    /// The drain ends earlier when nobody has been connected for this long. Default 2 s.
    #[serde(with = "humantime_serde")]
    pub quiet: Duration,
    /// Envoy gets SIGKILL when it has not ended this long after SIGTERM. Default 5 s.
    #[serde(with = "humantime_serde")]
    pub stop_grace: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(30),
            withdraw: Duration::from_secs(8),
            quiet: Duration::from_secs(2),
            stop_grace: Duration::from_secs(5),
        }
    }
}

/// Where probes ask whether the proxy is ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadinessConfig {
    /// Address to listen on. Default 127.0.0.1.
    pub address: IpAddr,
    /// Port to listen on; 0 takes any free one, which the log names. Default 9902.
    pub port: u16,
}

impl Default for ReadinessConfig {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 9902,
        }
    }
}

/// What the files hold that the config names.
pub struct Loaded {
    /// Who is asked for the bootstrap.
    pub control_planes: Vec<ControlPlane>,
    /// PEM of the CA that the operator gave; sent along, so that Envoy trusts the same. `None`: the operating system's CAs.
    pub given_ca: Option<String>,
    /// PEM of what the bootstrap connection trusts.
    pub trusted_ca: Vec<u8>,
    /// The dataplane token, without white space around it.
    pub token: Option<Secret<String>>,
}

impl ProxyConfig {
    /// Notes everything that is wrong with the values.
    pub fn check(&self, problems: &mut Problems) {
        let ControlPlaneConfig {
            addresses,
            retry_backoff,
            retry_max_duration,
            ..
        } = &self.control_plane;
        problems.check(!addresses.is_empty(), || {
            "control_plane.addresses: at least one is needed".to_owned()
        });
        for address in addresses {
            if let Err(error) = address.parse::<ControlPlane>() {
                problems.check(false, || format!("control_plane.addresses: {address:?}: {error}"));
            }
        }
        problems.check(!retry_backoff.is_zero(), || {
            "control_plane.retry_backoff must be above zero".to_owned()
        });
        problems.check(!retry_max_duration.is_zero(), || {
            "control_plane.retry_max_duration must be above zero".to_owned()
        });
        let level = self.envoy.log_level.as_str();
        problems.check(LOG_LEVELS.contains(&level), || {
            format!("envoy.log_level: {level:?} is none of {}", LOG_LEVELS.join(", "))
        });
        problems.check(self.envoy.log_max_bytes >= 64 * 1024, || {
            "envoy.log_max_bytes must be at least 65536".to_owned()
        });
        problems.check(self.drain.time <= MAX_DRAIN, || "drain.time must not be above a day".to_owned());
        problems.check(!self.drain.stop_grace.is_zero(), || {
            "drain.stop_grace must be above zero".to_owned()
        });
        if let Err(problem) = self.telemetry.check() {
            problems.check(false, || problem);
        }
    }

    /// Longest orderly end of the process: drain, end of Envoy, and some time for the rest.
    pub fn shutdown_grace(&self) -> Duration {
        self.drain.time + self.drain.stop_grace * 2 + Duration::from_secs(5)
    }

    /// Reads the CA and token files.
    ///
    /// # Errors
    /// All files that cannot be read or hold nothing.
    pub fn load_files(&self) -> Result<Loaded, config::Error> {
        let mut problems = Problems::new();
        let control_planes = self
            .control_plane
            .addresses
            .iter()
            .filter_map(|address| address.parse().ok())
            .collect();
        let mut read = |what: &str, path: &Path, limit: u64| match read_text(path, limit) {
            Ok(text) => Some(text),
            Err(reason) => {
                problems.check(false, || format!("{what} {}: {reason}", path.display()));
                None
            }
        };
        let given_ca = match (&self.control_plane.ca_cert, &self.control_plane.ca_cert_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => read("CA certificate file", path, MAX_CA_BYTES),
            (None, None) => None,
        };
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.expose().trim().to_owned()),
            (None, Some(path)) => read("token file", path, MAX_TOKEN_BYTES).map(|text| text.trim().to_owned()),
            (None, None) => None,
        };
        let trusted_ca = match (&given_ca, &self.control_plane.ca_cert_file, host::system_ca_path()) {
            (Some(text), ..) => Some(text.clone()),
            (None, Some(_), _) => None, // noted above
            (None, None, Some(path)) => read("CA bundle of the system", path, MAX_CA_BYTES),
            (None, None, None) => None,
        };
        let none_at_all = trusted_ca.is_none() && self.control_plane.ca_cert_file.is_none();
        problems.check(!none_at_all, || {
            "no CA to check the control plane's certificate with: give --ca-cert-file".to_owned()
        });
        problems.check(token.as_deref() != Some(""), || "the dataplane token is empty".to_owned());
        problems.into_result()?;
        Ok(Loaded {
            control_planes,
            given_ca,
            trusted_ca: trusted_ca.unwrap_or_default().into_bytes(),
            token: token.map(Secret::new),
        })
    }
}

fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    let bytes = ursa_runtime::fs::read_bounded(path, limit).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|_| "is not text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &ProxyConfig) -> String {
        let mut problems = Problems::new();
        config.check(&mut problems);
        problems.into_result().map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn the_defaults_are_kumas() {
        let config = ProxyConfig::default();
        assert_eq!(problems(&config), "");
        assert_eq!(config.control_plane.addresses, ["https://localhost:5678"]);
        assert_eq!((config.drain.time, config.readiness.port), (Duration::from_secs(30), 9902));
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let mut config = ProxyConfig::default();
        config.control_plane.addresses = vec!["http://cp:5678".into(), "https://".into()];
        config.envoy.log_level = "loud".into();
        config.drain.time = MAX_DRAIN * 2;
        let text = problems(&config);
        for part in ["http://cp:5678", "\"https://\"", "loud", "drain.time"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }

    #[test]
    fn files_are_read_and_missing_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, token) = (dir.path().join("ca.crt"), dir.path().join("token"));
        let mut config = ProxyConfig::default();
        config.control_plane.ca_cert_file = Some(ca.clone());
        config.token_file = Some(token.clone());
        let text = config.load_files().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("ca.crt") && text.contains("token"), "{text}");
        std::fs::write(&ca, "PEM").unwrap();
        std::fs::write(&token, " \n").unwrap();
        assert!(
            config
                .load_files()
                .err()
                .is_some_and(|error| error.to_string().contains("token is empty"))
        );
        std::fs::write(&token, "ey.J.w\n").unwrap();
        let loaded = config.load_files().unwrap();
        assert_eq!(loaded.token.map(|token| token.expose().clone()), Some("ey.J.w".to_owned()));
        assert_eq!(
            (loaded.given_ca.as_deref(), loaded.trusted_ca.as_slice()),
            (Some("PEM"), b"PEM".as_slice())
        );
    }
}
