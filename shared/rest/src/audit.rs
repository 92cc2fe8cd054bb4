//! The audit log: tracing events with target `audit`, one line for every write, token use and denied request.
//! Invariant: who, from where, what, and the revision; never a token or a secret.

use std::{fmt, net::SocketAddr};

use http::{Method, StatusCode};
use tracing::info;
use ursa_state::Revision;

use crate::auth::Caller;

/// Target of all events here.
pub(crate) const TARGET: &str = "audit";

struct Peer(Option<SocketAddr>);

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(addr) => addr.fmt(f),
            None => f.write_str("unknown"),
        }
    }
}

/// A token was accepted.
pub(crate) fn token_used(caller: &Caller, method: &Method, path: &str) {
    if let Some(jti) = &caller.jti {
        info!(target: TARGET, event = "token_used", user = %caller.user.name, jti, peer = %Peer(caller.peer), %method, path);
    }
}

/// A token was refused.
pub(crate) fn token_refused(peer: Option<SocketAddr>, method: &Method, path: &str, reason: &dyn fmt::Display) {
    info!(target: TARGET, event = "token_refused", peer = %Peer(peer), %method, path, %reason);
}

/// The caller may not do what they asked for.
pub(crate) fn denied(caller: &Caller, method: &Method, path: &str, what: &dyn fmt::Display) {
    info!(target: TARGET, event = "denied", user = %caller.user.name, peer = %Peer(caller.peer), %method, path, %what);
}

/// A write was proposed and answered.
pub(crate) fn written(
    caller: &Caller,
    method: &Method,
    subject: &str,
    revision: Revision,
    status: StatusCode,
    request_id: &dyn fmt::Display,
) {
    info!(
        target: TARGET, event = "write", user = %caller.user.name, jti = caller.jti.as_deref().unwrap_or_default(), peer = %Peer(caller.peer),
        %method, subject, revision, status = status.as_u16(), %request_id
    );
}

/// A write was proposed and its end is not known, or the store refused it.
pub(crate) fn write_failed(caller: &Caller, method: &Method, subject: &str, reason: &dyn fmt::Display, request_id: &dyn fmt::Display) {
    info!(
        target: TARGET, event = "write_failed", user = %caller.user.name, jti = caller.jti.as_deref().unwrap_or_default(),
        peer = %Peer(caller.peer), %method, subject, %reason, %request_id
    );
}

/// A token was issued.
pub(crate) fn token_issued(
    caller: &Caller,
    kind: &dyn fmt::Display,
    subject: &str,
    jti: &str,
    expires: &dyn fmt::Display,
    revision: Revision,
) {
    info!(
        target: TARGET, event = "token_issued", user = %caller.user.name, peer = %Peer(caller.peer), %kind, subject, issued = jti, %expires,
        revision
    );
}
