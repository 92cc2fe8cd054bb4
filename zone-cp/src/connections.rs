//! Which proxies are connected to this zone control plane, over which stream, and how far each is. The newer stream of a proxy wins:
//! a half-open connection must not lock its proxy out. Two proxies that fight over one name are damped: after [`MAX_SWAPS`] swaps
//! within [`SWAP_WINDOW`] the incumbent stays.
//! In: streams that begin and end, what their Envoys accepted. Out: who is connected, and a way to wait until all run a revision.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use ursa_runtime::{lease::within, throttle::Throttle};

use crate::{derive::addresses::Advertised, world::ProxyId};

/// So many times within [`SWAP_WINDOW`] may one proxy take the name of another that is connected; then the incumbent stays.
pub const MAX_SWAPS: usize = 3;
/// See [`MAX_SWAPS`]. As for zones that fight over a name.
pub const SWAP_WINDOW: Duration = Duration::from_secs(60);
/// Names whose swaps are remembered; more are forgotten, the ones without recent swaps first.
const MAX_CONTESTED: usize = 4_096;

/// The process at the other end of a stream, as far as it can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    pub address: Option<SocketAddr>,
    /// Of one run of our `dataplane` or `zone-ingress`; stock proxies have none.
    pub instance: Option<Arc<str>>,
}

impl Peer {
    /// Certainly the same process.
    pub fn is_same(&self, other: &Self) -> bool {
        self.instance.is_some() && self.instance == other.instance
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => write!(f, "{address}")?,
            None => f.write_str("an unknown address")?,
        }
        match &self.instance {
            Some(instance) => write!(f, " (instance {instance})"),
            None => Ok(()),
        }
    }
}

/// What is known of a stream when it begins.
#[derive(Clone, Debug, Default)]
pub struct NewStream {
    pub peer: Peer,
    /// What a zone ingress advertises.
    pub advertised: Option<Advertised>,
    /// The workload that the proxy's token is bound to; `None` for a token that fits any.
    pub workload: Option<Arc<str>>,
    /// Its Envoy runs with a configuration already: the stream is not its first.
    pub warm: bool,
    /// The spec of its Dataplane as the proxy brought it; `None` when it exists without its proxy.
    pub given: Option<Arc<Value>>,
}

/// Two proxies claim to be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "another proxy calls itself {proxy} and stays: it is connected from {incumbent}, this one comes from {newcomer}, and the name changed hands {MAX_SWAPS} times within a minute; give each proxy a name of its own"
)]
pub struct Contested {
    proxy: ProxyId,
    incumbent: Peer,
    newcomer: Peer,
}

/// One connected proxy. Clones mean the same stream.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Tells streams of one proxy apart; grows.
    pub stream: u64,
    pub peer: Peer,
    /// What a zone ingress advertises.
    pub advertised: Option<Advertised>,
    /// The workload that its token is bound to.
    pub workload: Option<Arc<str>>,
    /// The spec of its Dataplane as the proxy brought it.
    pub given: Option<Arc<Value>>,
    state: Arc<StreamState>,
}

#[derive(Debug)]
struct StreamState {
    /// Cancelled when a newer stream takes over.
    replaced: CancellationToken,
    /// Cancelled when the stream ended.
    ended: CancellationToken,
    /// Its Envoy listens.
    serving: AtomicBool,
    /// How far its Envoy is.
    reached: watch::Sender<Reached>,
}

/// How far an Envoy is.
#[derive(Debug, Default)]
struct Reached {
    /// Revision of the zone that it runs completely.
    applied: u64,
    /// Revision of the zone of which it has said what it refuses, and why. It will not run that.
    refused: Option<(u64, Arc<str>)>,
}

impl Reached {
    /// It runs the revision, or has said that it will not.
    fn is_at(&self, revision: u64) -> bool {
        self.applied >= revision || self.refusal(revision).is_some()
    }

    fn refusal(&self, revision: u64) -> Option<&Arc<str>> {
        self.refused.as_ref().filter(|(at, _)| *at >= revision).map(|(_, why)| why)
    }
}

impl Connection {
    /// Whether its Envoy has taken its listeners, so that it can be sent traffic.
    pub fn is_serving(&self) -> bool {
        self.state.serving.load(Ordering::Acquire)
    }
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
    swaps: Mutex<BTreeMap<ProxyId, Swaps>>,
    /// A stream began to serve.
    hint: Notify,
    refusals: Throttle,
}

/// When a name changed hands.
#[derive(Debug, Default)]
struct Swaps {
    times: VecDeque<Instant>,
    /// The fight was logged.
    told: bool,
}

impl Swaps {
    fn forget_old(&mut self, now: Instant) {
        self.times.retain(|at| now.duration_since(*at) < SWAP_WINDOW);
        if self.times.is_empty() {
            self.told = false;
        }
    }
}

/// Who is behind a revision when the wait for it is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Streams that run it.
    pub done: usize,
    /// Proxies that refused part of it, and why: they run the rest, and all of it only once that part changes.
    pub refused: Vec<(ProxyId, Arc<str>)>,
    /// Proxies that are connected and have not answered yet.
    pub behind: Vec<ProxyId>,
}

/// Keeps a proxy registered; dropping it unregisters this stream (and never a newer one).
#[derive(Debug)]
pub struct Registration {
    connections: Connections,
    proxy: ProxyId,
    stream: u64,
    state: Arc<StreamState>,
}

impl Connections {
    pub fn subscribe(&self) -> watch::Receiver<Connected> {
        self.0.connected.subscribe()
    }

    pub fn now(&self) -> Connected {
        self.0.connected.borrow().clone()
    }

    /// Whether a stream from there may speak for the proxy: nobody is connected under its name, or from the same host.
    pub fn is_of_host(&self, proxy: &ProxyId, host: Option<IpAddr>) -> bool {
        let connected = self.0.connected.borrow();
        connected.get(proxy).is_none_or(|c| c.peer.address.map(|a| a.ip()) == host)
    }

    /// Refusals of proxies and their reasons, each logged once a minute.
    pub fn refusals(&self) -> &Throttle {
        &self.0.refusals
    }

    /// Completes when some stream began to serve since the last call completed. Cancel-safe.
    pub async fn served(&self) {
        self.0.hint.notified().await;
    }

    /// Whether this peer may take the proxy's name now. Changes nothing.
    ///
    /// # Errors
    /// [`Contested`]: another one has it and stays.
    pub fn check(&self, proxy: &ProxyId, peer: &Peer) -> Result<(), Box<Contested>> {
        self.contest(proxy, peer, false)
    }

    /// Registers a stream and ends an older one of the same proxy.
    ///
    /// # Errors
    /// [`Contested`]: another one has the name and stays.
    pub fn register(&self, proxy: ProxyId, new: NewStream) -> Result<Registration, Box<Contested>> {
        self.contest(&proxy, &new.peer, true)?;
        let stream = self.0.next.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(StreamState {
            replaced: CancellationToken::new(),
            ended: CancellationToken::new(),
            serving: AtomicBool::new(new.warm),
            reached: watch::Sender::default(),
        });
        let connection = Connection {
            stream,
            peer: new.peer,
            advertised: new.advertised,
            workload: new.workload,
            given: new.given,
            state: state.clone(),
        };
        self.0.connected.send_modify(|connected| {
            if let Some(older) = Arc::make_mut(connected).insert(proxy.clone(), connection) {
                older.state.replaced.cancel();
            }
        });
        Ok(Registration {
            connections: self.clone(),
            proxy,
            stream,
            state,
        })
    }

    /// Waits until every proxy that is connected now runs this revision of the zone, has refused part of it, or has left; at most for
    /// `limit`.
    pub async fn applied(&self, revision: u64, limit: Duration) -> Applied {
        let connected = self.now();
        let all = async {
            for connection in connected.values() {
                let mut reached = connection.state.reached.subscribe();
                tokio::select! {
                    biased;
                    _ = reached.wait_for(|reached| reached.is_at(revision)) => {}
                    () = connection.state.ended.cancelled() => {}
                }
            }
        };
        // Late is an answer too: it names who is behind.
        let _late = within(limit, all).await;
        let mut out = Applied::default();
        for (proxy, connection) in connected.iter() {
            let reached = connection.state.reached.borrow();
            if reached.applied >= revision {
                out.done += 1;
            } else if connection.state.ended.is_cancelled() {
                // It has left.
            } else if let Some(why) = reached.refusal(revision) {
                out.refused.push((proxy.clone(), why.clone()));
            } else {
                out.behind.push(proxy.clone());
            }
        }
        out
    }

    fn contest(&self, proxy: &ProxyId, peer: &Peer, take: bool) -> Result<(), Box<Contested>> {
        let Some(incumbent) = self.0.connected.borrow().get(proxy).map(|c| c.peer.clone()) else {
            return Ok(());
        };
        if incumbent.is_same(peer) {
            return Ok(());
        }
        let now = Instant::now();
        let mut all = self.0.swaps.lock();
        if all.len() >= MAX_CONTESTED {
            all.retain(|_, swaps| {
                swaps.forget_old(now);
                !swaps.times.is_empty()
            });
            if all.len() >= MAX_CONTESTED {
                all.pop_first();
            }
        }
        let swaps = all.entry(proxy.clone()).or_default();
        swaps.forget_old(now);
        if swaps.times.len() >= MAX_SWAPS {
            let contested = Contested {
                proxy: proxy.clone(),
                incumbent,
                newcomer: peer.clone(),
            };
            if !swaps.told {
                swaps.told = true;
                tracing::warn!("{contested}");
            }
            return Err(Box::new(contested));
        }
        if take {
            swaps.times.push_back(now);
        }
        Ok(())
    }
}

impl Registration {
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Completes when a newer stream of the same proxy took over.
    pub async fn replaced(&self) {
        self.state.replaced.cancelled().await;
    }

    /// Its Envoy has taken its listeners.
    pub fn serving(&self) {
        if !self.state.serving.swap(true, Ordering::AcqRel) {
            self.connections.0.hint.notify_one();
        }
    }

    /// Its Envoy runs everything up to this revision of the zone.
    pub fn applied(&self, revision: u64) {
        self.state.reached.send_if_modified(|reached| {
            let newer = reached.applied < revision;
            reached.applied = revision.max(reached.applied);
            newer
        });
    }

    /// Its Envoy has answered everything up to this revision of the zone, and refused part of it for this reason.
    pub fn refused(&self, revision: u64, why: &Arc<str>) {
        self.state.reached.send_if_modified(|reached| {
            let newer = !reached.is_at(revision);
            if newer {
                reached.refused = Some((revision, why.clone()));
            }
            newer
        });
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.state.ended.cancel();
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

    fn from(port: u16, instance: Option<&str>) -> NewStream {
        NewStream {
            peer: Peer {
                address: Some(([127, 0, 0, 1], port).into()),
                instance: instance.map(Into::into),
            },
            ..NewStream::default()
        }
    }

    #[tokio::test]
    async fn the_newer_stream_wins_and_outlives_the_older_ones_end() {
        let connections = Connections::default();
        let proxy = ProxyId::new("default", "dp-1");
        let first = connections.register(proxy.clone(), from(1, None)).unwrap();
        let second = connections.register(proxy.clone(), from(2, None)).unwrap();
        first.replaced().await;
        drop(first);
        assert_eq!(connections.now().get(&proxy).map(|c| c.stream), Some(second.stream()));
        drop(second);
        assert!(connections.now().is_empty());
    }

    #[tokio::test]
    async fn only_the_host_of_a_connected_proxy_speaks_for_it() {
        let connections = Connections::default();
        let proxy = ProxyId::new("default", "dp-1");
        let (own, other) = (Some([127, 0, 0, 1].into()), Some([127, 0, 0, 2].into()));
        assert!(connections.is_of_host(&proxy, other), "nobody is connected");
        let _stream = connections.register(proxy.clone(), from(1, None)).unwrap();
        assert!(connections.is_of_host(&proxy, own));
        assert!(!connections.is_of_host(&proxy, other) && !connections.is_of_host(&proxy, None));
    }

    #[tokio::test(start_paused = true)]
    async fn two_proxies_of_one_name_are_damped_and_one_that_reconnects_is_not() {
        let connections = Connections::default();
        let proxy = ProxyId::new("default", "dp-1");
        let mut held = Vec::new();
        for _ in 0..10 {
            held.push(connections.register(proxy.clone(), from(1, Some("a"))).unwrap());
        }
        for (port, instance) in [(2, "b"), (1, "a"), (2, "b")] {
            held.push(connections.register(proxy.clone(), from(port, Some(instance))).unwrap());
        }
        let refused = connections.register(proxy.clone(), from(1, Some("a"))).unwrap_err();
        let text = refused.to_string();
        assert!(
            text.contains("127.0.0.1:2 (instance b)") && text.contains("127.0.0.1:1 (instance a)"),
            "{text}"
        );
        assert_eq!(
            connections
                .check(&proxy, &from(1, None).peer)
                .unwrap_err()
                .incumbent
                .instance
                .as_deref(),
            Some("b")
        );
        assert!(!held.last().unwrap().state.replaced.is_cancelled(), "the incumbent stays");
        assert!(connections.register(ProxyId::new("default", "dp-2"), from(1, Some("a"))).is_ok());
        held.clear();
        let alone = connections.register(proxy.clone(), from(1, Some("a"))).unwrap();
        assert!(
            connections.register(proxy.clone(), from(2, Some("b"))).is_err(),
            "within the minute"
        );
        tokio::time::advance(SWAP_WINDOW).await;
        connections.register(proxy, from(2, Some("b"))).unwrap();
        assert!(alone.state.replaced.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_when_all_that_stay_run_the_revision() {
        let connections = Connections::default();
        let streams: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|name| connections.register(ProxyId::new("default", name), from(1, None)).unwrap())
            .collect();
        let [a, b, c] = <[Registration; 3]>::try_from(streams).unwrap();
        let limit = Duration::from_secs(5);
        a.applied(7);
        b.applied(6);
        let late = connections.applied(7, limit).await;
        assert_eq!((late.done, late.behind.len()), (1, 2), "{late:?}");
        let (done, ()) = tokio::join!(connections.applied(7, limit), async {
            b.applied(9);
            drop(c);
        });
        assert_eq!((done.done, done.behind.len(), done.refused.len()), (2, 0, 0), "{done:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_refuses_the_revision_holds_nobody_up_and_is_named() {
        let connections = Connections::default();
        let [a, b] = ["a", "b"].map(|name| connections.register(ProxyId::new("default", name), from(1, None)).unwrap());
        let limit = Duration::from_secs(5);
        a.applied(7);
        b.refused(6, &"an older one".into());
        let began = Instant::now();
        let late = connections.applied(7, limit).await;
        assert_eq!(
            (began.elapsed(), late.behind.len()),
            (limit, 1),
            "an older refusal says nothing: {late:?}"
        );
        let (done, ()) = tokio::join!(connections.applied(7, limit), async {
            b.refused(7, &"the port is in use".into());
        });
        assert_eq!(began.elapsed(), limit, "it does not wait");
        assert_eq!((done.done, done.behind), (1, vec![]));
        let [(proxy, why)] = done.refused.as_slice() else {
            panic!("{:?}", done.refused)
        };
        assert_eq!((proxy.name.as_ref(), why.as_ref()), ("b", "the port is in use"));
        b.applied(7);
        assert_eq!(connections.applied(7, limit).await.done, 2, "it changed its mind");
    }
}
