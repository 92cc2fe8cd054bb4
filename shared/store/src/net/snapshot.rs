//! A whole state on its way to a node that is too far behind for the log: a snapshot file, in chunks.
//! In: the file here. Out: the same file there, aside, until the state machine takes it in; see [`super::receiving`].
//! Invariants: never more than a few chunks in memory on either side; a file that is not whole and intact is never installed; what has
//! arrived is not sent again while it is the same file; the disk and the network are left to the log most of the time.
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tonic::Request;
use ursa_proto::peer::{Call, Chunk};
use ursa_runtime::heartbeat::Ticker;
use ursa_runtime::{CancellationToken, heartbeat, lease};

use super::Lane;
use super::peers::{CallError, Method, Peers, call_error};
use super::wire::{self, SnapshotAsk, SnapshotHave};
use crate::disk::{self, Disk, DiskFile};
use crate::snapshot::RaftSnapshot;

/// Bytes of a chunk: large enough that its message costs nothing, small against the window of the connection.
const CHUNK: usize = 256 << 10;
/// What is sent at most per [`PACE`]: 50 MiB/s. The log's disk and the nodes' links have something else to do.
const BURST: usize = 1 << 20;
const PACE: Duration = Duration::from_millis(20);
/// Longest wait for the answer to what has arrived.
const ASK: Duration = Duration::from_secs(30);
/// The last bytes of a file, with its length and checksum.
const TRAILER: u64 = 16;

/// Reads a file front to back as messages. A file that cannot be read ends early, which the receiver notices by the size.
struct Reader {
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    offset: u64,
    size: u64,
    head: Option<Call>,
    peers: Peers,
    pace: Ticker,
    /// Bytes that may be sent before the next tick.
    allowed: usize,
}

impl Reader {
    async fn next(mut self) -> Option<(Chunk, Self)> {
        if self.offset >= self.size && self.head.is_none() {
            return None;
        }
        #[cfg(any(test, feature = "testing"))]
        if !self.peers.shared.faults.snapshot_goes_on(self.offset).await {
            return None;
        }
        let (file, offset) = (self.file.clone(), self.offset);
        let want = CHUNK.min(usize::try_from(self.size - self.offset).unwrap_or(CHUNK));
        if self.allowed < want {
            self.pace.tick().await;
            self.allowed = BURST;
        }
        self.allowed -= want;
        let read = disk::run(&*self.disk, move || {
            let mut data = vec![0; want];
            let read = file.read_at(offset, &mut data)?;
            data.truncate(read);
            Ok(data)
        });
        match read.await {
            Ok(data) if data.len() == want => {
                self.offset += data.len() as u64;
                self.peers.shared.snapshot_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                let head = self.head.take();
                Some((Chunk { head, data: data.into() }, self))
            }
            Ok(_) => {
                tracing::error!("a snapshot is shorter than it was");
                None
            }
            Err(error) => {
                tracing::error!(%error, "a snapshot cannot be read");
                None
            }
        }
    }
}

/// An open snapshot file and its size: of its content, which is sent in the clear inside mutual TLS.
pub(crate) async fn open(snapshot: &RaftSnapshot) -> std::io::Result<(Arc<dyn DiskFile>, u64)> {
    let from = snapshot.clone();
    disk::run(&*snapshot.disk, move || {
        let file = from.open()?;
        let size = file.size()?;
        Ok((file, size))
    })
    .await
}

/// Names the content of a file: its length, and the checksum at its end.
pub(crate) async fn id(disk: &Arc<dyn Disk>, file: &Arc<dyn DiskFile>, size: u64) -> std::io::Result<String> {
    let file = file.clone();
    disk::run(&**disk, move || {
        let mut trailer = vec![0; usize::try_from(TRAILER.min(size)).unwrap_or_default()];
        let read = file.read_at(size.saturating_sub(TRAILER), &mut trailer)?;
        trailer.truncate(read);
        let sum: String = trailer.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("{size}-{sum}"))
    })
    .await
}

/// Asks how much of this file has arrived already.
///
/// # Errors
/// See [`CallError`].
pub(crate) async fn arrived(peers: &Peers, node: u64, id: &str, size: u64) -> Result<u64, CallError> {
    let ask = wire::encode(&SnapshotAsk { id: id.to_owned(), size });
    match peers.call(node, Lane::Bulk, Method::SnapshotAt, ask, ASK).await {
        Ok(answer) => {
            let have: SnapshotHave = wire::decode(&answer).map_err(CallError::Unheard)?;
            Ok(if have.offset < size { have.offset } else { 0 })
        }
        // A program that does not know the question.
        Err(CallError::Broken(_)) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Sends an open snapshot from `offset` on; `payload` is its head. Dropped, the transfer is cancelled.
///
/// # Errors
/// See [`CallError`].
pub(crate) async fn send(
    peers: &Peers,
    node: u64,
    payload: Bytes,
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    (offset, size): (u64, u64),
    limit: Duration,
) -> Result<Bytes, CallError> {
    peers.shared.may_lead()?;
    let reader = Reader {
        disk,
        file,
        offset,
        size,
        head: Some(peers.shared.head(node, payload)),
        peers: peers.clone(),
        pace: heartbeat::every(PACE, &CancellationToken::new()),
        allowed: BURST,
    };
    let ask = async {
        #[cfg(any(test, feature = "testing"))]
        peers.shared.faults.request(node, Method::Append).await;
        let chunks = futures::stream::unfold(reader, Reader::next);
        #[cfg(any(test, feature = "testing"))]
        if let Some(carrier) = &peers.shared.carrier {
            return super::carrier::stream(&**carrier, node, chunks).await;
        }
        #[cfg_attr(not(any(test, feature = "testing")), expect(unused_mut, reason = "for faults"))]
        let mut answer = peers.client(node, Lane::Bulk).snapshot(Request::new(chunks)).await;
        #[cfg(any(test, feature = "testing"))]
        peers.shared.faults.answer(node, Method::Append, &mut answer).await;
        answer
    };
    match lease::within(limit, ask).await {
        Ok(Ok(answer)) => peers.shared.hear(node, answer.into_inner()).await,
        Ok(Err(status)) => Err(call_error(&status)),
        Err(_) => Err(CallError::Timeout(limit)),
    }
}
