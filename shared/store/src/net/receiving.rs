//! The receiving end of a snapshot: a transfer that broke off goes on from where it stopped.
//! In: chunks of a file, from its start or from where the last transfer of the same file ended. Out: the file, aside.
//! Invariants: one transfer at a time, and the newest is the one; what is written is what was sent, front to back, once; a file of another
//! snapshot is begun anew. Whether the whole is intact its checksum says, before it is installed.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tonic::Streaming;
use ursa_proto::peer::Chunk;
use ursa_runtime::CancellationToken;
use ursa_runtime::lease;

use super::Refusal;
use super::peers::malformed;
use super::wire::SnapshotHead;
use crate::disk::{self, Disk, DiskFile};
use crate::snapshot::{RaftSnapshot, Snapshots};

/// Largest file that is taken: far beyond what fits in memory as a state.
const MAX_SIZE: u64 = 64 << 30;
/// Longest name of a file.
const MAX_ID: usize = 256;
/// Longest wait for the next chunk: the sender reads a file and has nothing else to do.
const CHUNK_WAIT: Duration = Duration::from_secs(30);
/// Longest wait until a transfer that was told to end has done so: it writes a chunk at the most.
const TURN: Duration = Duration::from_secs(20);

/// What has come of a file.
struct Partial {
    id: String,
    size: u64,
    file: Arc<dyn DiskFile>,
    snapshot: RaftSnapshot,
    /// Bytes written. Held while a chunk is.
    written: Arc<Mutex<u64>>,
}

/// See the module's text.
#[derive(Clone, Default)]
pub(crate) struct Receiving {
    slot: Arc<tokio::sync::Mutex<Option<Partial>>>,
    /// Ends the transfer that is under way.
    under_way: Arc<Mutex<CancellationToken>>,
}

impl Receiving {
    async fn turn(&self) -> Result<(OwnedMutexGuard<Option<Partial>>, CancellationToken), Refusal> {
        let token = CancellationToken::new();
        std::mem::replace(&mut *self.under_way.lock(), token.clone()).cancel();
        let slot = lease::within(TURN, self.slot.clone().lock_owned()).await;
        let slot = slot.map_err(|_| malformed("another snapshot is being received"))?;
        Ok((slot, token))
    }

    /// How many bytes of this file are here. A transfer under way ends: whoever asks is about to begin the next one.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub(crate) async fn has(&self, disk: &dyn Disk, id: &str, size: u64) -> Result<u64, Refusal> {
        let (slot, _) = self.turn().await?;
        let Some(partial) = slot.as_ref().filter(|partial| partial.id == id && partial.size == size) else {
            return Ok(0);
        };
        let written = partial.written.clone();
        let written = disk::run(disk, move || Ok(*written.lock())).await;
        written.map_err(|error| malformed(&error.to_string()))
    }

    /// Receives the rest of a file, of which `first` has come already. The file is removed with the last clone of what is returned: a
    /// caller that goes away leaves it to the core, which may have it queued.
    ///
    /// # Errors
    /// The stream breaks off, or brings anything else than announced; the disk.
    pub(crate) async fn receive(
        &self,
        disk: &Arc<dyn Disk>,
        snapshots: &Arc<Snapshots>,
        head: &SnapshotHead,
        first: Bytes,
        chunks: &mut Streaming<Chunk>,
    ) -> Result<RaftSnapshot, Refusal> {
        let size = head.size;
        if size > MAX_SIZE || head.id.len() > MAX_ID {
            return Err(malformed("the snapshot is too large"));
        }
        let (mut slot, ended) = self.turn().await?;
        let goes_on = |partial: &Partial| !head.id.is_empty() && partial.id == head.id && partial.size == size;
        if head.offset == 0 || !slot.as_ref().is_some_and(goes_on) {
            // First of all the space of the one before.
            *slot = None;
            *slot = Some(begin(disk, snapshots, head).await?);
        }
        let Some(partial) = slot.as_ref() else {
            return Err(malformed("the snapshot cannot be stored"));
        };
        let (mut offset, mut data) = (head.offset, first);
        loop {
            let end = offset.saturating_add(data.len() as u64);
            if end > size {
                *slot = None;
                return Err(malformed("the snapshot is longer than announced"));
            }
            let (file, written) = (partial.file.clone(), partial.written.clone());
            let done = disk::run(&**disk, move || {
                let mut written = written.lock();
                if *written != offset {
                    return Ok(false);
                }
                file.write_at(offset, &data)?;
                *written = end;
                Ok(true)
            });
            match done.await {
                Ok(true) => offset = end,
                Ok(false) => return Err(malformed("the snapshot does not go on where it stopped")),
                Err(error) => {
                    *slot = None;
                    tracing::error!(%error, "cannot store a snapshot that is being received");
                    return Err(malformed("the snapshot cannot be stored"));
                }
            }
            let next = tokio::select! {
                biased;
                () = ended.cancelled() => return Err(malformed("a newer transfer takes its place")),
                next = lease::within(CHUNK_WAIT, chunks.message()) => next,
            };
            match next {
                Ok(Ok(Some(chunk))) => data = chunk.data,
                Ok(Ok(None)) => break,
                Ok(Err(status)) => return Err(malformed(&format!("the snapshot broke off: {}", status.message()))),
                Err(_) => return Err(malformed("the snapshot stopped coming")),
            }
        }
        match slot.take() {
            Some(partial) if offset == size => Ok(partial.snapshot),
            partial => {
                *slot = partial;
                Err(malformed("the snapshot is shorter than announced"))
            }
        }
    }
}

async fn begin(disk: &Arc<dyn Disk>, snapshots: &Arc<Snapshots>, head: &SnapshotHead) -> Result<Partial, Refusal> {
    let aside = snapshots.clone();
    let made = disk::run(&**disk, move || Ok(aside.receiving()?)).await;
    let (file, path) = made.map_err(|error| {
        tracing::error!(%error, "cannot store a snapshot that is being received");
        malformed("the snapshot cannot be stored")
    })?;
    Ok(Partial {
        id: head.id.clone(),
        size: head.size,
        snapshot: RaftSnapshot::aside(disk.clone(), path, file.clone()),
        file,
        written: Arc::default(),
    })
}
