//! A TCP proxy with a fault of its own in each direction.
//!
//! In: connections at one address; a [`Weather`] that may change at any time. Out: the same bytes at the other address.
//! Invariant: `Silent` holds bytes back and delivers them once it ends, for that is what TCP does after a partition; only `cut`
//! ends connections. Memory per connection and direction is bounded by [`QUEUE`] pieces of [`PIECE`] bytes.
//! Not here: which links a scenario has ([`crate::chaos`]).
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::wait::pause_until;

/// Largest piece that is read at once.
const PIECE: usize = 16 * 1024;
/// Pieces on their way in one direction of one connection: 1 MiB, so that a delay does not throttle what a scenario sends.
const QUEUE: usize = 64;

/// What happens to bytes that go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Way {
    /// They are passed on at once.
    #[default]
    Open,
    /// They arrive later by this much, in order.
    Delayed(Duration),
    /// They do not arrive until this ends, and neither does the end of the connection.
    Silent,
}

/// The state of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Weather {
    /// From who connects to who listens.
    pub there: Way,
    /// Back.
    pub back: Way,
    /// Connections are reset, the open ones and every new one.
    pub cut: bool,
}

impl Weather {
    /// Nothing wrong.
    pub const FAIR: Self = Self {
        there: Way::Open,
        back: Way::Open,
        cut: false,
    };
    /// Open connections are reset, new ones too: the other side is known to be gone.
    pub const CUT: Self = Self {
        there: Way::Open,
        back: Way::Open,
        cut: true,
    };
    /// Connections stand and new ones are taken, but nothing moves: a partition, or a half-open connection.
    pub const SILENT: Self = Self {
        there: Way::Silent,
        back: Way::Silent,
        cut: false,
    };
    /// What is sent there does not arrive; what comes back does.
    pub const DEAF: Self = Self {
        there: Way::Silent,
        back: Way::Open,
        cut: false,
    };
    /// What is sent there arrives; what comes back does not.
    pub const MUTE: Self = Self {
        there: Way::Open,
        back: Way::Silent,
        cut: false,
    };

    /// Everything arrives, later by this much each way.
    #[must_use]
    pub fn slow(each_way: Duration) -> Self {
        Self {
            there: Way::Delayed(each_way),
            back: Way::Delayed(each_way),
            cut: false,
        }
    }
}

/// A link: an address that leads to another one. Dropping it ends its connections and frees the address.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    counts: Arc<Counts>,
    /// Ends with the link.
    _task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    open: AtomicU64,
    there: AtomicU64,
    back: AtomicU64,
}

impl Link {
    /// Listens on `at` (port 0 picks a free one) and connects to `to` for each connection. Begins with fair weather.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn new(at: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let address = listener.local_addr()?;
        let (weather, watched) = watch::channel(Weather::FAIR);
        let counts = Arc::<Counts>::default();
        let mut task = JoinSet::new();
        task.spawn(accept(listener, to, watched, counts.clone()));
        Ok(Self {
            address,
            weather,
            counts,
            _task: task,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on. What was held back by `Silent` arrives when that ends.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// What holds now.
    #[must_use]
    pub fn weather(&self) -> Weather {
        *self.weather.borrow()
    }

    /// Connections taken so far, those that were reset at once not counted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Connections that stand now, to both sides.
    #[must_use]
    pub fn open_connections(&self) -> u64 {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// Bytes that arrived so far: there, and back.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.counts.there.load(Ordering::Relaxed), self.counts.back.load(Ordering::Relaxed))
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, weather: watch::Receiver<Weather>, counts: Arc<Counts>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_ended) = open.join_next() => {}
            accepted = listener.accept() => {
                // An accept error concerns the one connection that vanished before it was taken.
                let Ok((client, _peer)) = accepted else { continue };
                if weather.borrow().cut {
                    reset(&client);
                    continue;
                }
                counts.connections.fetch_add(1, Ordering::Relaxed);
                open.spawn(carry(client, to, weather.clone(), counts.clone()));
            }
        }
    }
}

/// One connection, until both directions have ended or it is cut.
async fn carry(client: TcpStream, to: SocketAddr, mut weather: watch::Receiver<Weather>, counts: Arc<Counts>) {
    // A server behind silence is not reached before the silence ends.
    let mut heard = weather.clone();
    let through = async {
        until(&mut heard, |w| w.there != Way::Silent).await;
        TcpStream::connect(to).await
    };
    let server = tokio::select! {
        biased;
        () = until(&mut weather, |w| w.cut) => None,
        server = through => Some(server),
    };
    // Nobody listens there: the client learns it as it would without us.
    let Some(Ok(server)) = server else { return reset(&client) };
    let _unsupported = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    counts.open.fetch_add(1, Ordering::Relaxed);
    let orderly = {
        let both = async {
            tokio::try_join!(
                pass(&mut from_client, &mut to_server, weather.clone(), |w| w.there, &counts.there),
                pass(&mut from_server, &mut to_client, weather.clone(), |w| w.back, &counts.back),
            )
        };
        let mut cut = weather.clone();
        tokio::select! {
            biased;
            () = until(&mut cut, |w| w.cut) => false,
            ended = both => ended.is_ok(),
        }
    };
    counts.open.fetch_sub(1, Ordering::Relaxed);
    if !orderly {
        reset(to_client.as_ref());
        reset(to_server.as_ref());
        // Dropped as it is, a half says FIN first.
        to_client.forget();
        to_server.forget();
    }
}

/// Moves the bytes of one direction. `Ok` after an orderly end that was passed on.
async fn pass(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    way: impl Fn(&Weather) -> Way,
    count: &AtomicU64,
) -> io::Result<()> {
    let (queue, mut queued) = mpsc::channel::<(Instant, Bytes)>(QUEUE);
    let seen = weather.clone();
    let read = async {
        loop {
            let mut piece = bytes::BytesMut::with_capacity(PIECE);
            let length = from.read_buf(&mut piece).await?;
            let delay = match way(&seen.borrow()) {
                Way::Delayed(delay) => delay,
                Way::Open | Way::Silent => Duration::ZERO,
            };
            // An empty piece is the end.
            if queue.send((Instant::now() + delay, piece.freeze())).await.is_err() || length == 0 {
                return Ok::<_, io::Error>(());
            }
        }
    };
    let write = async {
        while let Some((due, piece)) = queued.recv().await {
            pause_until(due).await;
            until(&mut weather, |w| way(w) != Way::Silent).await;
            if piece.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&piece).await?;
            count.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    let mut write = std::pin::pin!(write);
    tokio::select! {
        // Not biased: whoever is ready moves on. The writer ends first only by an error.
        ended = read => { ended?; write.await }
        ended = &mut write => ended,
    }
}

/// Waits for a weather. Returns at once when the link is gone, which aborts its tasks anyway.
async fn until(weather: &mut watch::Receiver<Weather>, holds: impl Fn(&Weather) -> bool) {
    let _gone = weather.wait_for(|w| holds(w)).await.is_err();
}

/// Closing this socket sends RST instead of FIN from now on.
fn reset(stream: &TcpStream) {
    let _unsupported = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::client::{Api, Mode, Target};
    use crate::echo::{Config, Workload};
    use crate::harness::{POLL, Poll, wait_until};

    const LONG: Duration = Duration::from_secs(30);
    /// Long enough that an answer would be there by far if it came.
    const SHORT: Duration = Duration::from_millis(150);

    async fn link() -> (Workload, Link, Api) {
        let workload = Workload::start(Config::local("a", "west")).await.unwrap();
        let link = Link::new((Ipv4Addr::LOCALHOST, 0).into(), workload.address()).await.unwrap();
        let api = Api::new(Target::Tcp(link.address())).with_deadline(LONG);
        (workload, link, api)
    }

    /// A server that sends back what it gets, and a connected client.
    async fn raw() -> (TcpStream, TcpStream, Link) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let link = Link::new((Ipv4Addr::LOCALHOST, 0).into(), listener.local_addr().unwrap())
            .await
            .unwrap();
        let client = TcpStream::connect(link.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let up = async || Ok(Poll::when(link.open_connections() == 1, (), || "not yet".into()));
        wait_until("the link stands", LONG, POLL, up).await.unwrap();
        (client, server, link)
    }

    async fn got(stream: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        tokio::time::timeout(LONG, stream.read_exact(&mut bytes)).await.expect("in time")?;
        Ok(bytes)
    }

    #[tokio::test]
    async fn in_fair_weather_everything_passes_both_ways_and_so_does_the_end() {
        let (mut client, mut server, link) = raw().await;
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let (wrote, read) = tokio::join!(client.write_all(&sent), got(&mut server, sent.len()));
        wrote.unwrap();
        assert_eq!(read.unwrap(), sent);
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "the end arrives as an end");
        // The other direction lives on.
        server.write_all(b"bye").await.unwrap();
        drop(server);
        assert_eq!(got(&mut client, 3).await.unwrap(), b"bye");
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!((link.connections(), link.bytes()), (1, (1_000_000, 3)));
    }

    #[tokio::test]
    async fn silence_one_way_holds_what_goes_that_way_and_delivers_it_afterwards() {
        for (weather, arrives) in [(Weather::DEAF, false), (Weather::MUTE, true)] {
            let (mut client, mut server, link) = raw().await;
            link.set(weather);
            client.write_all(b"there").await.unwrap();
            server.write_all(b"back").await.unwrap();
            let there = tokio::time::timeout(if arrives { LONG } else { SHORT }, server.peek(&mut [0]))
                .await
                .is_ok();
            let back = tokio::time::timeout(if arrives { SHORT } else { LONG }, client.peek(&mut [0]))
                .await
                .is_ok();
            assert_eq!((there, back), (arrives, !arrives), "{weather:?}");
            link.set(Weather::FAIR);
            assert_eq!(got(&mut server, 5).await.unwrap(), b"there");
            assert_eq!(got(&mut client, 4).await.unwrap(), b"back");
        }
    }

    #[tokio::test]
    async fn a_half_open_link_takes_connections_and_says_nothing_until_it_ends() {
        let (workload, link, api) = link().await;
        link.set(Weather::SILENT);
        let hasty = api.fork().with_mode(Mode::NewConnection).with_deadline(SHORT);
        let error = hasty.get("/").await.unwrap_err();
        assert_eq!(error.kind(), "deadline", "connected, but no answer: {error}");
        assert_eq!(workload.connections(), 0);
        let patient = api.get("/late");
        let healed = async {
            let taken = async || Ok(Poll::when(link.connections() == 2, (), || "not taken".into()));
            wait_until("the second connection is taken", LONG, POLL, taken).await.unwrap();
            link.set(Weather::FAIR);
        };
        let (answer, ()) = tokio::join!(patient, healed);
        assert_eq!(answer.unwrap().status, 200);
    }

    #[tokio::test]
    async fn a_cut_resets_open_connections_and_refuses_new_ones() {
        let (mut client, mut server, link) = raw().await;
        link.set(Weather::CUT);
        for stream in [&mut client, &mut server] {
            let error = got(stream, 1).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        }
        let refused = async {
            let mut client = TcpStream::connect(link.address()).await?;
            got(&mut client, 1).await
        };
        assert_eq!(refused.await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let (_workload, link, api) = self::link().await;
        link.set(Weather::CUT);
        api.get("/").await.unwrap_err();
        link.set(Weather::FAIR);
        api.get("/").await.unwrap().success().unwrap();
    }

    #[tokio::test]
    async fn a_delay_adds_to_each_way_keeps_the_order_and_the_throughput() {
        let (mut client, mut server, link) = raw().await;
        let each = Duration::from_millis(200);
        link.set(Weather::slow(each));
        let start = Instant::now();
        client.write_all(b"1").await.unwrap();
        assert_eq!(got(&mut server, 1).await.unwrap(), b"1");
        server.write_all(b"2").await.unwrap();
        assert_eq!(got(&mut client, 1).await.unwrap(), b"2");
        assert!(start.elapsed() >= each * 2, "{:?}", start.elapsed());
        let sent: Vec<u8> = (0..500_000u32).map(|n| (n % 241) as u8).collect();
        let start = Instant::now();
        let (wrote, read) = tokio::join!(client.write_all(&sent), got(&mut server, sent.len()));
        wrote.unwrap();
        assert_eq!(read.unwrap(), sent);
        // One piece after another would take 30 delays, 6 s.
        assert!(start.elapsed() < each * 20, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn nobody_behind_the_link_is_a_reset_and_dropping_it_frees_the_address() {
        let (workload, link, api) = link().await;
        workload.stop().await;
        api.get("/").await.unwrap_err();
        let address = link.address();
        drop(link);
        let again = async || {
            Ok(match Link::new(address, address).await {
                Ok(link) => Poll::Ready(link),
                Err(error) => Poll::NotYet(error.to_string()),
            })
        };
        wait_until("the address is free", LONG, POLL, again).await.unwrap();
    }
}
