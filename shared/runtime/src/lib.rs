//! What every program of Ursa is run by: configuration, ownership of tasks and orderly shutdown, telemetry, server TLS,
//! the accept loop, diagnostics, back-off, small durable files.
//! Invariant: this crate knows nothing of meshes, zones or resources; it holds every timer and every spawned task of the workspace.
//!
//! A program puts it together like this:
//! ```no_run
//! # use std::time::Duration;
//! # use ursa_runtime::tasks::{OnExit, Tasks};
//! # async fn a_service(_: ursa_runtime::CancellationToken) {}
//! # async fn program() {
//! ursa_runtime::tls::install_provider();
//! ursa_runtime::telemetry::init(&Default::default());
//! let tasks = Tasks::new();
//! tasks.spawn("a-service", OnExit::Shutdown, a_service);
//! tasks.run(Duration::from_secs(10)).await.exit();
//! # }
//! ```
pub mod backoff;
pub mod config;
pub mod diagnostics;
pub mod error;
pub mod fs;
pub mod heartbeat;
pub mod lease;
pub mod lock;
pub mod serve;
pub mod stages;
pub mod tasks;
pub mod telemetry;
pub mod throttle;
pub mod tls;

pub use backoff::Backoff;
pub use config::Secret;
pub use diagnostics::{Readiness, ReadinessGuard, SharedRegistry};
pub use stages::{StageEntry, Stages};
pub use tasks::{ExitStatus, OnExit, StopReason, Tasks};
/// The token every task gets; cancelled when the task should end.
pub use tokio_util::sync::CancellationToken;
