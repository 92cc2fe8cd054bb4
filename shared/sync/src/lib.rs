//! Zone sync: Kuma's KDS, wire-identical, as pure state machines plus the stream tasks around them, for the global and for zones.
//!
//! A change's way: store -> [`Source`] -> [`distribution::Distributor`] (mapping, filters, encoding, once per class of peer) ->
//! [`sender::Sender`] (per stream) -> the wire -> [`receiver::Receiver`] -> [`Sink`] -> the other store. Nothing on it waits for a timer.
//!
//! - [`mapping`]: what a resource looks like to a peer, and whether it is shown at all. Pure.
//! - [`distribution`]: everything that one class of peers may see, with what changed since when. Pure.
//! - [`sender`], [`receiver`]: the two ends of a stream, `handle(event) -> actions`. Pure.
//! - [`server`]: the global's gRPC services; [`client`]: a zone's connection to the global.
//! - [`peer`]: features and classes of peers. [`ports`]: what the host gives: content, storage, authentication.
//!
//! Invariants: a stream's end deletes nothing; a first response is complete or not sent; a progress marker never claims a revision
//! whose changes were not sent before it; a stock peer never sees anything that Kuma would not send.
//! Source: Kuma, `pkg/kds`, `api/mesh/v1alpha1/kds.proto`.

pub mod auth;
pub mod client;
pub mod distribution;
pub mod mapping;
pub mod metrics;
pub mod peer;
pub mod ports;
pub mod receiver;
mod revision;
pub mod sender;
pub mod server;
mod shell;
#[cfg(test)]
mod testing;

pub use auth::TokenAuth;
pub use client::{ClientConfig, ClientParts, ClientStatus, KdsClient};
pub use metrics::Metrics;
pub use ports::{Denied, Sink, SinkError, Source, ZoneAuth};
pub use server::{KdsServer, ServerConfig, ServerParts};

/// `type_url` of a progress marker: "everything for you up to the revision in `system_version_info` was sent before this".
/// Sent only to a peer that subscribed to it, which a stock peer never does.
pub const PROGRESS_TYPE_URL: &str = "ursa.io/progress";
/// Largest message in bytes after decompression, as Kuma's default in both directions.
pub const MAX_MESSAGE_BYTES: usize = 10 * 1024 * 1024;
