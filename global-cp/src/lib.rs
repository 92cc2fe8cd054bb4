//! The global control plane: a node of the replicated store, the REST API, and the KDS server that zones connect to.

pub mod admin;
pub mod app;
pub mod backup;
pub mod cli;
pub mod config;
pub mod encryption;
pub mod held;
pub mod member;
pub mod pki;
pub mod recover;
pub mod restore;
