//! Zone sync: Kuma's KDS, wire-identical, as pure state machines plus the stream tasks around them, for the global and for zones.
//!
//! A change's way: store -> [`Source`] -> [`distribution::Distributor`] (mapping, filters, encoding, once per class of peer) ->
//! [`sender::Sender`] (per stream) -> the wire -> [`receiver::Receiver`] -> [`Sink`] -> the other store. Nothing on it waits for a timer.
//!
//! - [`mapping`]: what a resource looks like to a peer, and whether it is shown at all. Pure.
//! - [`distribution`]: everything that one class of peers may see, with what changed since when. Pure.
//! - [`sender`], [`receiver`]: the two ends of a stream, `handle(event) -> actions`. Pure.
//! - [`server`]: the global's gRPC services; [`client`]: a zone's connection to the global.
//! - [`claims`]: which of several connections speaks for a zone, over all nodes of a global.
//! - [`digest`]: whether two ends hold the same. [`holds`]: removals that wait for time or for the operator.
//! - [`peer`]: features and classes of peers. [`ports`]: what the host gives: content, storage, authentication.
//!
//! Invariants: a stream's end deletes nothing; a first response is complete or not sent; a progress marker never claims a revision
//! whose changes were not sent before it; a stock peer never sees anything that Kuma would not send.
//! Source: Kuma, `pkg/kds`, `api/mesh/v1alpha1/kds.proto`.

pub mod auth;
pub mod claims;
pub mod client;
pub mod digest;
pub mod distribution;
pub mod holds;
pub mod mapping;
pub mod metrics;
pub mod peer;
pub mod ports;
pub mod receiver;
mod revision;
pub mod sender;
pub mod server;
mod shell;
mod storing;
#[cfg(test)]
mod testing;

pub use auth::TokenAuth;
pub use claims::Claims;
pub use client::{ClientConfig, ClientParts, ClientStatus, KdsClient};
pub use holds::Holds;
pub use metrics::Metrics;
pub use ports::{Alone, Denied, Quorum, Sink, SinkError, Source, ZoneAuth};
pub use server::{Group, KdsServer, ServerConfig, ServerParts};

/// `type_url` of a progress marker: "everything for you up to the revision in `system_version_info` was sent before this".
/// Sent only to a peer that subscribed to it, which a stock peer never does.
pub const PROGRESS_TYPE_URL: &str = "ursa.io/progress";
/// `type_url` of the first message on a stream that goes on where the last one ended: no first sets follow, only what changed since the
/// revision in `system_version_info`. Sent only to a peer that asked for it ([`peer::RESUME_HEADER`]).
pub const RESUMED_TYPE_URL: &str = "ursa.io/resumed";
/// `type_url` of a message that says: the next response of the kind in `system_version_info` is a complete set again. Sent only to a
/// peer that asked for a kind a second time.
pub const FULL_SET_TYPE_URL: &str = "ursa.io/full-set";
/// Largest message that is sent, in bytes: what a stock peer takes, as Kuma's default in both directions.
pub const MAX_MESSAGE_BYTES: usize = 10 * 1024 * 1024;
/// Largest message that is taken, in bytes after decompression: a stock peer may be configured to send more than its default.
pub const MAX_DECODED_BYTES: usize = 32 * 1024 * 1024;
