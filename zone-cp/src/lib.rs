//! The zone control plane: keeps a durable replica of what the global sends, derives services and identities, and configures
//! the zone's Envoys over delta ADS.

pub mod app;
pub mod build;
pub mod config;
pub mod connections;
pub mod derive;
pub mod dp;
pub mod issuer;
pub mod metrics;
pub mod reconcile;
pub mod resolve;
pub mod snapshot;
pub mod world;
pub mod xds;
