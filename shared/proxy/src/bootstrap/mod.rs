//! How an Envoy gets its bootstrap from the zone control plane.
//! In: who this proxy is, what runs here. Out: the Envoy configuration to start with, word for word as the control plane wrote it.
//! Source: Kuma's `POST /bootstrap`, as kuma-dp uses it.
mod answer;
mod client;
mod request;
mod withdraw;

pub use answer::{Bootstrap, InvalidAnswer};
pub use client::{Client, ControlPlane, Error, Failure, InvalidAddress, Retry};
pub use request::{BootstrapRequest, EnvoyVersion, KumaDpVersion, MetricsResources, ProxyResources, SpireResources, Version};
pub use withdraw::{DrainRequest, Withdrawn};
