//! A whole state on its way to a node that is too far behind for the log: a snapshot file, in chunks.
//! In: the file here. Out: the same file there, aside, until the state machine takes it in.
//! Invariants: never more than a few chunks in memory on either side; a file that is not whole and intact is never installed; what was
//! received aside is removed however the transfer ends, once nobody needs it any more.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::{Request, Streaming};
use ursa_proto::peer::{Call, Chunk};
use ursa_runtime::lease;

#[cfg(any(test, feature = "testing"))]
use super::peers::Method;
use super::peers::{CallError, Peers, call_error, malformed};
use super::{Lane, Refusal};
use crate::disk::{self, Disk, DiskFile};
use crate::snapshot::{RaftSnapshot, Snapshots};

/// Bytes of a chunk: large enough that its message costs nothing, small against the window of the connection.
const CHUNK: usize = 256 << 10;
/// Largest file that is taken: far beyond what fits in memory as a state.
const MAX_SIZE: u64 = 64 << 30;
/// Longest wait for the next chunk: the sender reads a file and has nothing else to do.
const CHUNK_WAIT: Duration = Duration::from_secs(30);

/// Reads a file front to back as messages. A file that cannot be read ends early, which the receiver notices by the size.
struct Reader {
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    offset: u64,
    size: u64,
    head: Option<Call>,
}

impl Reader {
    async fn next(mut self) -> Option<(Chunk, Self)> {
        if self.offset >= self.size && self.head.is_none() {
            return None;
        }
        let (file, offset) = (self.file.clone(), self.offset);
        let want = CHUNK.min(usize::try_from(self.size - self.offset).unwrap_or(CHUNK));
        let read = disk::run(&*self.disk, move || {
            let mut data = vec![0; want];
            let read = file.read_at(offset, &mut data)?;
            data.truncate(read);
            Ok(data)
        });
        match read.await {
            Ok(data) if data.len() == want => {
                self.offset += data.len() as u64;
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

/// An open snapshot file and its size.
pub(crate) async fn open(snapshot: &RaftSnapshot) -> std::io::Result<(Arc<dyn DiskFile>, u64)> {
    let (disk, path) = (snapshot.disk.clone(), snapshot.path.clone());
    disk::run(&*snapshot.disk, move || {
        let file = disk.open(&path)?;
        let size = file.size()?;
        Ok((file, size))
    })
    .await
}

/// Sends an open snapshot; `payload` is its head. Dropped, the transfer is cancelled.
///
/// # Errors
/// See [`CallError`].
pub(crate) async fn send(
    peers: &Peers,
    node: u64,
    payload: Bytes,
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    size: u64,
    limit: Duration,
) -> Result<Bytes, CallError> {
    peers.shared.may_lead()?;
    let reader = Reader {
        disk,
        file,
        offset: 0,
        size,
        head: Some(peers.shared.head(node, payload)),
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

/// Receives `size` bytes, of which `first` has come already. The file is removed with the last clone of what is returned: a caller that
/// goes away leaves it to the core, which may have it queued.
///
/// # Errors
/// The stream breaks off, or brings anything else than announced; the disk.
pub(crate) async fn receive(
    disk: &Arc<dyn Disk>,
    snapshots: &Arc<Snapshots>,
    size: u64,
    first: Bytes,
    chunks: &mut Streaming<Chunk>,
) -> Result<RaftSnapshot, Refusal> {
    if size > MAX_SIZE {
        return Err(malformed("the snapshot is too large"));
    }
    let io = |error: std::io::Error| {
        tracing::error!(%error, "cannot store a snapshot that is being received");
        malformed("the snapshot cannot be stored")
    };
    let aside = snapshots.clone();
    let (file, path): (Arc<dyn DiskFile>, PathBuf) = disk::run(&**disk, move || Ok(aside.receiving()?)).await.map_err(io)?;
    let received = RaftSnapshot::aside(disk.clone(), path);
    let (mut offset, mut data) = (0, first);
    loop {
        let end = offset + data.len() as u64;
        if end > size {
            return Err(malformed("the snapshot is longer than announced"));
        }
        let file = file.clone();
        disk::run(&**disk, move || file.write_at(offset, &data)).await.map_err(io)?;
        offset = end;
        let next = lease::within(CHUNK_WAIT, chunks.message()).await;
        match next {
            Ok(Ok(Some(chunk))) => data = chunk.data,
            Ok(Ok(None)) => break,
            Ok(Err(status)) => return Err(malformed(&format!("the snapshot broke off: {}", status.message()))),
            Err(_) => return Err(malformed("the snapshot stopped coming")),
        }
    }
    if offset == size {
        Ok(received)
    } else {
        Err(malformed("the snapshot is shorter than announced"))
    }
}
