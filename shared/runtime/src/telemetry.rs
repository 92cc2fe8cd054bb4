//! Logging: where it goes and how it looks.
//! In: level and format from the config, `RUST_LOG` over them. Out: one line per event on standard error.
//! Invariant: a panic is logged like any other error, with its place, before anything else happens.
use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

const DEFAULT_LEVEL: &str = "info,openraft=warn,openraft::core::heartbeat=error,openraft::replication=error,\
    openraft::engine::handler::replication_handler=error";

/// How a program logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A level, or directives such as `info,ursa_sync=debug`. `RUST_LOG` wins over it. Default `info`, without openraft's word on
    /// every single message that a missing node does not answer (hundreds a second; the store says once that a member is gone).
    pub level: String,
    /// Default `text`.
    pub format: Format,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: DEFAULT_LEVEL.to_owned(),
            format: Format::Text,
        }
    }
}

impl Config {
    /// # Errors
    /// What is wrong with `level`.
    pub fn check(&self) -> Result<(), String> {
        self.level
            .parse::<EnvFilter>()
            .map(drop)
            .map_err(|error| format!("telemetry.level: {error}"))
    }
}

/// Starts logging for the process. A second call changes nothing.
pub fn init(config: &Config) {
    let (filter, problem) = filter(config);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let installed = match config.format {
        Format::Text => registry.with(layer.with_ansi(std::io::stderr().is_terminal())).try_init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    if installed.is_ok() {
        log_panics();
    }
    if let Some(problem) = problem {
        tracing::warn!(problem, "log filter not understood, using info");
    }
}

fn filter(config: &Config) -> (EnvFilter, Option<String>) {
    let chosen = match EnvFilter::try_from_default_env() {
        Ok(filter) => return (filter, None),
        // RUST_LOG is set but wrong, or simply not set: the config decides, the first case is reported.
        Err(error) if std::env::var_os(EnvFilter::DEFAULT_ENV).is_some_and(|value| !value.is_empty()) => {
            Some(format!("{}: {error}", EnvFilter::DEFAULT_ENV))
        }
        Err(_) => None,
    };
    match config.level.parse() {
        Ok(filter) => (filter, chosen),
        Err(error) => (EnvFilter::new("info"), Some(format!("{}: {error}", config.level))),
    }
}

fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = crate::tasks::panic_message(panic.payload());
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(panic = message, place, thread, "panic");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_is_found_before_start() {
        assert_eq!(Config::default().check(), Ok(()));
        let wrong = Config {
            level: "ursa=loudly".into(),
            format: Format::Json,
        };
        assert!(wrong.check().unwrap_err().starts_with("telemetry.level"));
        assert!(filter(&wrong).1.is_some() || std::env::var_os("RUST_LOG").is_some());
    }

    #[test]
    fn starting_twice_is_harmless() {
        init(&Config::default());
        init(&Config {
            level: "debug".into(),
            format: Format::Json,
        });
    }
}
