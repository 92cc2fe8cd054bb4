//! The data-plane server (port 5678): bootstrap and drain over HTTP and delta ADS and health discovery over gRPC, on one TLS port, as kuma-dp expects them.

pub mod ads;
pub mod auth;
pub mod bootstrap;
pub mod drain;
pub mod elsewhere;
pub mod hds;
pub mod insight;
pub mod metadata;
pub mod phase;
mod progress;
mod registrar;
