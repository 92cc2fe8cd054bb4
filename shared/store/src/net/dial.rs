//! One connection to one member: address, TCP, handshake.
//! In: who. Out: an encrypted stream to that node and no other, or why not.
//! Invariant: every step has a deadline; a mistake of set-up is kept, typed, until a connection succeeds.
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, RwLock};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use ursa_runtime::lease;

use super::Refusal;
use super::tls::{Identity, refusal_of};

/// TCP and handshake. A lost SYN is sent again after 1 s; a member that needs longer counts as away, and is tried again.
const CONNECT: Duration = Duration::from_secs(2);
/// Sent as server name. The certificate's URI counts, not this.
const SERVER_NAME: &str = "ursa-node";

/// What is known of the way to a member.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) problem: Option<Refusal>,
    pub(super) unreachable: Option<String>,
    pub(super) answered: Option<Instant>,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) identity: Arc<Identity>,
    addresses: RwLock<BTreeMap<u64, String>>,
    /// Ways of this node's own.
    detours: BTreeMap<u64, String>,
    states: Mutex<BTreeMap<u64, State>>,
}

impl Dial {
    pub(super) fn new(identity: Arc<Identity>, mut addresses: BTreeMap<u64, String>, detours: BTreeMap<u64, String>) -> Self {
        addresses.extend(detours.clone());
        Self {
            identity,
            addresses: RwLock::new(addresses),
            detours,
            states: Mutex::default(),
        }
    }

    /// Notes an address for a member that has none.
    pub(super) fn learn(&self, node: u64, address: &str) {
        if !address.is_empty() && !self.addresses.read().contains_key(&node) {
            self.addresses.write().insert(node, address.to_owned());
        }
    }

    /// Notes another address for a member. Connections that stand are used until they break.
    pub(super) fn moved(&self, node: u64, address: &str) {
        let known = self.addresses.read().get(&node).is_some_and(|known| known == address);
        if !known && !self.detours.contains_key(&node) {
            tracing::info!(peer = node, address, "a member is reached elsewhere from now on");
            self.addresses.write().insert(node, address.to_owned());
        }
    }

    /// Forgets a member that has left.
    pub(super) fn forget(&self, node: u64) {
        self.addresses.write().remove(&node);
        self.states.lock().remove(&node);
    }

    pub(super) fn addresses(&self) -> BTreeMap<u64, String> {
        self.addresses.read().clone()
    }

    pub(super) fn states(&self) -> BTreeMap<u64, State> {
        self.states.lock().clone()
    }

    pub(super) fn answered(&self, node: u64) {
        let mut states = self.states.lock();
        let state = states.entry(node).or_default();
        if state.problem.take().is_some() {
            tracing::info!(peer = node, "the member answers as it should");
        }
        state.unreachable = None;
        state.answered = Some(Instant::now());
    }

    /// Keeps a mistake of set-up; logged when it is another than before.
    pub(super) fn refused(&self, node: u64, refusal: &Refusal) {
        let mut states = self.states.lock();
        let state = states.entry(node).or_default();
        if refusal.is_transient() {
            state.unreachable = Some(refusal.to_string());
        } else if state.problem.as_ref() != Some(refusal) {
            match (&state.problem, refusal) {
                // Said by those who know it already while others have yet to hear of it.
                (Some(Refusal::NotMember { .. } | Refusal::HasLeft { .. }), Refusal::NotMember { .. }) => {}
                (_, Refusal::NotMember { .. }) => tracing::warn!(peer = node, %refusal, "no traffic with a member"),
                _ => tracing::error!(peer = node, %refusal, "no traffic with a member"),
            }
            state.problem = Some(refusal.clone());
        }
    }

    fn lost(&self, node: u64, address: &str, error: &io::Error) {
        if let Some(refusal) = refusal_of(error) {
            return self.refused(node, &refusal);
        }
        let mut states = self.states.lock();
        let state = states.entry(node).or_default();
        if state.unreachable.is_none() {
            tracing::info!(peer = node, address, %error, "a member cannot be reached");
        }
        state.unreachable = Some(error.to_string());
    }

    /// Connects to the member.
    ///
    /// # Errors
    /// It cannot be reached, or is not the one meant.
    pub(super) async fn connect(self: Arc<Self>, node: u64) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let address = self.addresses.read().get(&node).cloned();
        let Some(address) = address else {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("no address of node {node} is known"),
            ));
        };
        let connected = match lease::within(CONNECT, self.open(node, &address)).await {
            Ok(connected) => connected,
            Err(expired) => Err(io::Error::new(io::ErrorKind::TimedOut, expired)),
        };
        if let Err(error) = &connected {
            self.lost(node, &address, error);
        }
        connected.map(TokioIo::new)
    }

    async fn open(&self, node: u64, address: &str) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        TlsConnector::from(self.identity.client_config(node)).connect(name, stream).await
    }
}
