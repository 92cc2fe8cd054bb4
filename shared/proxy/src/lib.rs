//! Runs and supervises one Envoy: what the programs `dataplane` and `zone-ingress` have in common.
//! In: a [`ProxyConfig`] and a [`ProxySpec`] (who this proxy is). Out: a running Envoy, its readiness, an orderly drain.
//! Invariant: one process of ours stands beside exactly one Envoy. An Envoy that ends unasked ends the process, with the reason;
//! restarting is the work of systemd or Kubernetes, which also see how often it happens.
//! Source: the contract of kuma-dp (flags, `POST /bootstrap`, readiness port, drain). Not here: what Envoy is configured to do.
//!
//! ```text
//! program::run ── tasks ──> Supervisor ── bootstrap::Client ──> POST https://<cp>/bootstrap
//!                               │─────── envoy::Process  (a thread of its own forks, waits, reaps)
//!                               │─────── Admin           (unix socket: ready, healthcheck/fail, stats)
//!                               └─────── readiness       (GET /ready for probes)
//! ```
pub mod admin;
pub mod args;
pub mod bootstrap;
pub mod config;
pub mod drain;
pub mod envoy;
pub mod host;
mod http1;
pub mod metrics;
pub mod program;
pub mod readiness;
pub mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;

pub use admin::Admin;
pub use args::ProxyArgs;
pub use config::ProxyConfig;
pub use supervisor::{ProxySpec, Supervisor};

/// Version of our programs, as told to the control plane and printed by `version`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The Envoy that our configuration is made for: major and minor must match, otherwise a warning is logged.
/// Moves together with `deploy/envoy/install.sh`.
pub const ENVOY_LINE: &str = "1.40";
