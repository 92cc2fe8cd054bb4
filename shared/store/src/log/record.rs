//! One record: 24 bytes of header, payload, zeros up to a multiple of 8. Integers are little-endian.
//!
//! ```text
//! 0  magic    4  FF 55 52 FE: not text, so no payload of text contains it; one that is sealed may, by chance, but not the rest too
//! 4  crc32c   4  over everything after it, padding included, seeded with segment number and offset
//! 8  length   4  of the payload
//! 12 kind     1
//! 13 version  1  of this layout
//! 14 zero     2
//! 16 durable  8  this file was synced up to here when the record was written
//! ```
//! `durable` is what tells a torn tail from damage: bytes before the `durable` of any valid record were on disk, so if they are bad
//! now, something acknowledged is lost. The seed makes a record valid only where it was written: a swapped file or a misdirected
//! write does not pass.
use crate::defects::{self, Defect};
use crate::log::{EntryId, Vote};

/// First bytes of a record.
pub(crate) const MAGIC: [u8; 4] = [0xFF, b'U', b'R', 0xFE];
/// Bytes before the payload.
pub(crate) const HEADER: usize = 24;
/// Records begin at multiples of this.
pub(crate) const ALIGN: usize = 8;
/// Layout written here.
const VERSION: u8 = 1;

/// What a record says. The payload of an entry stays where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// First record of a file, see [`super::segment::Head`].
    Head(&'a [u8]),
    Entry(EntryId, &'a [u8]),
    Vote(Vote),
    /// Everything up to it is committed, as far as this node knew.
    Committed(EntryId),
    /// Entries up to `upto` are gone, and so may be the files before `first_segment`.
    Purge {
        upto: EntryId,
        first_segment: u64,
    },
    /// Entries after it are gone (all, if none is named).
    Truncate(Option<EntryId>),
    /// The log was closed in order; nothing follows until the next start.
    Close,
}

impl Content<'_> {
    fn kind(&self) -> u8 {
        match self {
            Self::Head(_) => 1,
            Self::Entry(..) => 2,
            Self::Vote(_) => 3,
            Self::Committed(_) => 4,
            Self::Purge { .. } => 5,
            Self::Truncate(_) => 6,
            Self::Close => 7,
        }
    }
}

/// A valid record found at some offset.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub content: Content<'a>,
    pub durable: u64,
    /// Length in the file, padding included.
    pub size: usize,
}

/// Why there is no valid record at an offset.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// Too short, wrong magic, wrong checksum: never written, torn or damaged.
    NotARecord(&'static str),
    /// Whole and intact, but of a layout or kind that this program does not know.
    Newer { what: &'static str, found: u32, known: u32 },
    /// Whole and intact, but its payload is none of its kind.
    Malformed(&'static str),
}

/// Highest kind known here.
const LAST_KIND: u8 = 7;

/// Appends a record to `buf`, which will be written at `base` of segment `seq`. Returns where in the segment it will be, and its size.
pub(crate) fn encode(buf: &mut Vec<u8>, seq: u64, base: u64, durable: u64, content: &Content<'_>) -> (u64, usize) {
    let start = buf.len();
    buf.extend_from_slice(&MAGIC);
    buf.extend_from_slice(&[0; 8]);
    buf.extend_from_slice(&[content.kind(), VERSION, 0, 0]);
    buf.extend_from_slice(&durable.to_le_bytes());
    match content {
        Content::Head(bytes) => buf.extend_from_slice(bytes),
        Content::Entry(id, bytes) => {
            put_id(buf, *id);
            buf.extend_from_slice(bytes);
        }
        Content::Vote(vote) => {
            buf.extend_from_slice(&vote.term.to_le_bytes());
            buf.extend_from_slice(&vote.node_id.to_le_bytes());
            buf.push(u8::from(vote.committed));
        }
        Content::Committed(id) => put_id(buf, *id),
        Content::Purge { upto, first_segment } => {
            put_id(buf, *upto);
            buf.extend_from_slice(&first_segment.to_le_bytes());
        }
        Content::Truncate(to) => {
            buf.push(u8::from(to.is_some()));
            put_id(buf, to.unwrap_or(EntryId { term: 0, index: 0 }));
        }
        Content::Close => {}
    }
    let length = u32::try_from(buf.len() - start - HEADER).unwrap_or(u32::MAX);
    buf.resize(buf.len().next_multiple_of(ALIGN), 0);
    patch(buf, start + 8, length);
    let crc = checksum(seq, base + start as u64, buf.get(start + 8..).unwrap_or_default());
    patch(buf, start + 4, crc);
    (base + start as u64, buf.len() - start)
}

fn put_id(buf: &mut Vec<u8>, id: EntryId) {
    buf.extend_from_slice(&id.term.to_le_bytes());
    buf.extend_from_slice(&id.index.to_le_bytes());
}

fn patch(buf: &mut [u8], at: usize, value: u32) {
    if let Some(place) = buf.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

fn checksum(seq: u64, offset: u64, bytes: &[u8]) -> u32 {
    let seed = crc32c::crc32c_append(crc32c::crc32c(&seq.to_le_bytes()), &offset.to_le_bytes());
    crc32c::crc32c_append(seed, bytes)
}

/// Reads the record at `offset` of segment `seq`, whose whole content is `file`.
pub(crate) fn decode(file: &[u8], seq: u64, offset: usize) -> Result<Record<'_>, Invalid> {
    decode_at(file.get(offset..).unwrap_or_default(), seq, offset as u64)
}

/// Reads the record with which `rest` begins; it was read from `offset` of segment `seq`.
pub(crate) fn decode_at(rest: &[u8], seq: u64, offset: u64) -> Result<Record<'_>, Invalid> {
    let header: &[u8; HEADER] = rest.first_chunk().ok_or(Invalid::NotARecord("the file ends within a header"))?;
    if !header.starts_with(&MAGIC) {
        return Err(Invalid::NotARecord("no record begins here"));
    }
    let length = usize::try_from(u32_at(header, 8)).unwrap_or(usize::MAX);
    let size = length.saturating_add(HEADER).checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
    let whole = rest.get(..size).ok_or(Invalid::NotARecord("the file ends within a record"))?;
    let intact = checksum(seq, offset, whole.get(8..).unwrap_or_default()) == u32_at(header, 4);
    if !intact && !defects::on(Defect::TornRecordIgnored) {
        return Err(Invalid::NotARecord("the checksum does not match"));
    }
    let [_, _, _, _, _, _, _, _, _, _, _, _, kind, version, ..] = *header;
    if version > VERSION {
        return Err(Invalid::Newer {
            what: "record version",
            found: version.into(),
            known: VERSION.into(),
        });
    }
    if kind > LAST_KIND {
        return Err(Invalid::Newer {
            what: "record kind",
            found: kind.into(),
            known: LAST_KIND.into(),
        });
    }
    let payload = whole.get(HEADER..HEADER + length).unwrap_or_default();
    let content = parse(kind, payload).ok_or(Invalid::Malformed("the payload does not fit its kind"))?;
    Ok(Record {
        content,
        durable: u64_at(header, 16),
        size,
    })
}

fn parse(kind: u8, payload: &[u8]) -> Option<Content<'_>> {
    let mut fields = Fields(payload);
    let content = match kind {
        1 => return Some(Content::Head(payload)),
        2 => return Some(Content::Entry(fields.id()?, fields.0)),
        3 => Content::Vote(Vote {
            term: fields.u64()?,
            node_id: fields.u64()?,
            committed: fields.bool()?,
        }),
        4 => Content::Committed(fields.id()?),
        5 => Content::Purge {
            upto: fields.id()?,
            first_segment: fields.u64()?,
        },
        6 => {
            let named = fields.bool()?;
            let id = fields.id()?;
            Content::Truncate(named.then_some(id))
        }
        7 => Content::Close,
        _ => return None,
    };
    fields.0.is_empty().then_some(content)
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn bool(&mut self) -> Option<bool> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        match first {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn id(&mut self) -> Option<EntryId> {
        Some(EntryId {
            term: self.u64()?,
            index: self.u64()?,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |b| u64::from_le_bytes(*b))
}

/// Offset of the first valid record after `from` that proves that `from` was once durable, if there is one.
pub(crate) fn proof_of_durability(file: &[u8], seq: u64, from: usize) -> Option<usize> {
    let mut at = from.next_multiple_of(ALIGN);
    while at + HEADER <= file.len() {
        let magic = file.get(at..at + MAGIC.len());
        if magic == Some(&MAGIC[..]) {
            match decode(file, seq, at) {
                Ok(record) if record.durable > from as u64 => return Some(at),
                Ok(record) => {
                    at += record.size;
                    continue;
                }
                // Intact, whatever it says: only a newer program writes such a thing, and what it proves is not known here.
                Err(Invalid::Newer { .. } | Invalid::Malformed(_)) => return Some(at),
                Err(Invalid::NotARecord(_)) => {}
            }
        }
        at += ALIGN;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EntryId = EntryId { term: 3, index: 7 };

    fn all() -> Vec<Content<'static>> {
        vec![
            Content::Head(b"head"),
            Content::Entry(ID, b"{\"a\":1}"),
            Content::Vote(Vote {
                term: 5,
                node_id: 2,
                committed: true,
            }),
            Content::Committed(ID),
            Content::Purge {
                upto: ID,
                first_segment: 4,
            },
            Content::Truncate(Some(ID)),
            Content::Truncate(None),
            Content::Close,
        ]
    }

    #[test]
    fn records_round_trip_and_stay_aligned() {
        let mut file = vec![0; 24];
        let mut places = Vec::new();
        for content in all() {
            places.push((file.len(), content.clone()));
            encode(&mut file, 9, 0, 24, &content);
        }
        for (at, content) in places {
            assert_eq!(at % ALIGN, 0);
            let record = decode(&file, 9, at).unwrap();
            assert_eq!(record.content, content);
            assert_eq!(record.durable, 24);
        }
    }

    /// The layout is a promise to every later version: this test changes only together with `VERSION`.
    #[test]
    fn golden_bytes() {
        let mut file = Vec::new();
        encode(&mut file, 1, 0, 0, &Content::Entry(ID, b"x"));
        let hex: String = file.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "ff5552fe",
                "a5f5203e",
                "11000000",
                "02010000",
                "0000000000000000",
                "0300000000000000",
                "0700000000000000",
                "7800000000000000"
            )
        );
        let mut file = Vec::new();
        encode(
            &mut file,
            1,
            24,
            8,
            &Content::Vote(Vote {
                term: 1,
                node_id: 2,
                committed: true,
            }),
        );
        let hex: String = file.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "ff5552fe",
                "3b7c091e",
                "11000000",
                "03010000",
                "0800000000000000",
                "0100000000000000",
                "0200000000000000",
                "0100000000000000"
            )
        );
    }

    #[test]
    fn a_record_is_valid_only_where_it_was_written() {
        let mut file = vec![0; 24];
        encode(&mut file, 1, 0, 0, &Content::Close);
        assert!(decode(&file, 1, 24).is_ok());
        assert!(decode(&file, 2, 24).is_err(), "another segment");
        let moved: Vec<u8> = [&[0; 8][..], &file].concat();
        assert!(decode(&moved, 1, 32).is_err(), "another offset");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut good = Vec::new();
        encode(&mut good, 1, 0, 0, &Content::Entry(ID, b"payload of an entry"));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(&bad, 1, 0), Err(Invalid::NotARecord(_))), "bit {bit}");
        }
    }

    #[test]
    fn newer_layouts_are_named() {
        let reseal = |change: fn(&mut Vec<u8>)| {
            let mut file = Vec::new();
            encode(&mut file, 1, 0, 0, &Content::Close);
            change(&mut file);
            let crc = checksum(1, 0, &file[8..]);
            patch(&mut file, 4, crc);
            decode(&file, 1, 0).err()
        };
        assert_eq!(
            reseal(|f| f[13] = 2),
            Some(Invalid::Newer {
                what: "record version",
                found: 2,
                known: 1
            })
        );
        assert_eq!(
            reseal(|f| f[12] = 8),
            Some(Invalid::Newer {
                what: "record kind",
                found: 8,
                known: 7
            })
        );
        assert!(matches!(reseal(|f| f[12] = 3), Some(Invalid::Malformed(_))));
    }
}
