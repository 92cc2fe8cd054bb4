//! Some revisions packed together: compressed, with what is needed to know whether a look inside is worth it.
//! In: revisions as they were applied. Out: them, each change with the value before it (the value after it is the one before the next
//! change of the same key, or what there is now).
//! Format in a snapshot: length of the head (4), head (postcard), length of the data (4), data. Integers are little-endian. The data is an
//! LZ4 block of a postcard list of [`Packed`]; the values in it are JSON.
use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use ursa_model::{Kind, Resource, ResourceKey};

use crate::change::{GlobalRevision, HistoryId, Revision, RevisionChanges};

/// Most bytes of a head or of data, which are read before anything about them is known. A block holds a few revisions; one of them may
/// have removed everything there was.
const MAX_PART: u64 = 1 << 31;

/// What is in a block cannot be read: a bug, or damaged memory, for files are checked by their sums.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Damaged(pub(crate) String);

fn damaged(error: impl std::fmt::Display) -> Damaged {
    Damaged(error.to_string())
}

/// What is known of a block without unpacking it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) first: Revision,
    pub(crate) last: Revision,
    pub(crate) first_at: u64,
    pub(crate) last_at: u64,
    pub(crate) revisions: u32,
    /// Of the data before packing.
    pub(crate) bytes: u32,
    /// The newest in it.
    pub(crate) global: Option<GlobalRevision>,
    /// Of the keys that changed: their [`hash`]es, sorted.
    keys: Box<[u32]>,
}

/// See the module's text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) head: Head,
    data: Box<[u8]>,
}

/// One revision in a block.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Packed<'a> {
    pub(crate) revision: Revision,
    pub(crate) at: u64,
    global: Option<(u128, u64)>,
    pub(crate) actor: &'a str,
    #[serde(borrow)]
    pub(crate) changes: Vec<PackedChange<'a>>,
}

/// One change in it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PackedChange<'a> {
    kind: &'a str,
    mesh: &'a str,
    name: &'a str,
    /// The revision removed it.
    pub(crate) gone: bool,
    /// JSON; `None` if the revision made it.
    before: Option<&'a [u8]>,
}

impl Packed<'_> {
    pub(crate) fn global(&self) -> Option<GlobalRevision> {
        let (history, revision) = self.global?;
        let history = HistoryId(history);
        Some(GlobalRevision { history, revision })
    }
}

impl PackedChange<'_> {
    pub(crate) fn key(&self) -> Result<ResourceKey, Damaged> {
        let kind: Kind = self.kind.parse().map_err(damaged)?;
        ResourceKey::new(kind, self.mesh, self.name).map_err(damaged)
    }

    pub(crate) fn is_new(&self) -> bool {
        self.before.is_none()
    }

    pub(crate) fn before(&self) -> Result<Option<Arc<Resource>>, Damaged> {
        self.before.map(|json| serde_json::from_slice(json).map_err(damaged)).transpose()
    }
}

/// Of a key, for the index of a block; equal on every machine.
pub(crate) fn hash(key: &ResourceKey) -> u32 {
    const PRIME: u32 = 0x0100_0193;
    let parts = [key.kind().name(), "/", key.mesh(), "/", key.name()];
    let bytes = parts.iter().flat_map(|part| part.bytes());
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(PRIME))
}

impl Block {
    /// Packs revisions, oldest first. `None` if there are none, or if they have no encoding or one of more than 4 GiB.
    pub(crate) fn of(revisions: &[Arc<RevisionChanges>]) -> Option<Self> {
        let (first, last) = (revisions.first()?, revisions.last()?);
        let json = |before: &Option<Arc<Resource>>| before.as_deref().map(serde_json::to_vec).transpose().ok();
        let values: Vec<Vec<Option<Vec<u8>>>> = revisions
            .iter()
            .map(|r| r.changes.iter().map(|c| json(&c.before)).collect::<Option<Vec<_>>>())
            .collect::<Option<Vec<_>>>()?;
        let packed: Vec<Packed<'_>> = revisions
            .iter()
            .zip(&values)
            .map(|(r, values)| Packed {
                revision: r.revision,
                at: r.at.0,
                global: r.global.map(|g| (g.history.0, g.revision)),
                actor: &r.actor,
                changes: r
                    .changes
                    .iter()
                    .zip(values)
                    .map(|(change, before)| PackedChange {
                        kind: change.key.kind().name(),
                        mesh: change.key.mesh(),
                        name: change.key.name(),
                        gone: change.after.is_none(),
                        before: before.as_deref(),
                    })
                    .collect(),
            })
            .collect();
        let raw = postcard::to_allocvec(&packed).ok()?;
        let mut keys: Vec<u32> = revisions.iter().flat_map(|r| &r.changes).map(|c| hash(&c.key)).collect();
        keys.sort_unstable();
        keys.dedup();
        Some(Self {
            head: Head {
                first: first.revision,
                last: last.revision,
                first_at: first.at.0,
                last_at: last.at.0,
                revisions: u32::try_from(revisions.len()).ok()?,
                bytes: u32::try_from(raw.len()).ok()?,
                global: revisions.iter().rev().find_map(|r| r.global),
                keys: keys.into(),
            },
            data: lz4_flex::block::compress(&raw).into(),
        })
    }

    /// Whether a key with this hash may have changed in it.
    pub(crate) fn may_touch(&self, hash: u32) -> bool {
        self.head.keys.binary_search(&hash).is_ok()
    }

    /// The unpacked data; [`Block::read`] makes sense of it.
    pub(crate) fn unpack(&self) -> Result<Vec<u8>, Damaged> {
        let bytes = usize::try_from(self.head.bytes).map_err(damaged)?;
        lz4_flex::block::decompress(&self.data, bytes).map_err(damaged)
    }

    pub(crate) fn read(unpacked: &[u8]) -> Result<Vec<Packed<'_>>, Damaged> {
        postcard::from_bytes(unpacked).map_err(damaged)
    }

    /// Bytes that it takes in memory, roughly, and in a snapshot.
    pub(crate) fn packed_len(&self) -> u64 {
        (self.data.len() + self.head.keys.len() * size_of::<u32>() + size_of::<Self>()) as u64
    }

    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let head = postcard::to_allocvec(&self.head).map_err(io::Error::other)?;
        for part in [&head[..], &self.data] {
            let len = u32::try_from(part.len()).map_err(io::Error::other)?;
            out.write_all(&len.to_le_bytes())?;
            out.write_all(part)?;
        }
        Ok(())
    }

    pub(crate) fn read_from(input: &mut impl Read) -> Result<Self, Damaged> {
        let head = part(input)?;
        let head: Head = postcard::from_bytes(&head).map_err(damaged)?;
        if head.first > head.last || head.revisions == 0 {
            return Err(Damaged("a block of no revisions".to_owned()));
        }
        let data = part(input)?.into();
        Ok(Self { head, data })
    }
}

fn part(input: &mut impl Read) -> Result<Vec<u8>, Damaged> {
    let mut len = [0; 4];
    input.read_exact(&mut len).map_err(damaged)?;
    let len = u64::from(u32::from_le_bytes(len));
    if len > MAX_PART {
        return Err(Damaged(format!("a part of {len} bytes")));
    }
    let mut bytes = Vec::new();
    input.take(len).read_to_end(&mut bytes).map_err(damaged)?;
    if bytes.len() as u64 == len {
        Ok(bytes)
    } else {
        Err(Damaged("it ends early".to_owned()))
    }
}
