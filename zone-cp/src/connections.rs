//! Which proxies are connected to this zone control plane, over which stream. The newer stream of a proxy wins: a half-open
//! connection must not lock its proxy out.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{derive::addresses::Advertised, world::ProxyId};

/// One connected proxy.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Tells streams of one proxy apart; grows.
    pub stream: u64,
    /// What a zone ingress advertises.
    pub advertised: Option<Advertised>,
    /// Cancelled when a newer stream takes over.
    replaced: CancellationToken,
}

/// Everything connected now.
pub type Connected = Arc<BTreeMap<ProxyId, Connection>>;

/// Shared registry.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: AtomicU64,
    connected: watch::Sender<Connected>,
}

/// Keeps a proxy registered; dropping it unregisters this stream (and never a newer one).
#[derive(Debug)]
pub struct Registration {
    connections: Connections,
    proxy: ProxyId,
    stream: u64,
    replaced: CancellationToken,
}

impl Connections {
    pub fn subscribe(&self) -> watch::Receiver<Connected> {
        self.0.connected.subscribe()
    }

    pub fn now(&self) -> Connected {
        self.0.connected.borrow().clone()
    }

    /// Registers a stream and ends an older one of the same proxy.
    pub fn register(&self, proxy: ProxyId, advertised: Option<Advertised>) -> Registration {
        let stream = self.0.next.fetch_add(1, Ordering::Relaxed);
        let replaced = CancellationToken::new();
        let connection = Connection {
            stream,
            advertised,
            replaced: replaced.clone(),
        };
        self.0.connected.send_modify(|connected| {
            if let Some(older) = Arc::make_mut(connected).insert(proxy.clone(), connection) {
                older.replaced.cancel();
            }
        });
        Registration {
            connections: self.clone(),
            proxy,
            stream,
            replaced,
        }
    }
}

impl Registration {
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Completes when a newer stream of the same proxy took over.
    pub async fn replaced(&self) {
        self.replaced.cancelled().await;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.connections.0.connected.send_if_modified(|connected| {
            let mine = connected.get(&self.proxy).is_some_and(|c| c.stream == self.stream);
            if mine {
                Arc::make_mut(connected).remove(&self.proxy);
            }
            mine
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newer_stream_wins_and_outlives_the_older_ones_end() {
        let connections = Connections::default();
        let proxy = ProxyId::new("default", "dp-1");
        let first = connections.register(proxy.clone(), None);
        let second = connections.register(proxy.clone(), None);
        first.replaced().await;
        drop(first);
        assert_eq!(connections.now().get(&proxy).map(|c| c.stream), Some(second.stream()));
        drop(second);
        assert!(connections.now().is_empty());
    }
}
