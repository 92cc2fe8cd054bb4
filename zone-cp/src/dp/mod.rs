//! The data-plane server (port 5678): bootstrap over HTTP and delta ADS over gRPC, on one TLS port, as kuma-dp expects them.

pub mod ads;
pub mod auth;
pub mod bootstrap;
pub mod insight;
pub mod metadata;
