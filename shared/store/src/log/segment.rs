//! A segment is one file of the log: `<number, 20 digits>.log`. It opens with a fixed header (24 bytes) and a head record.
//!
//! ```text
//! 0  "URSALOG\0"  8
//! 8  format       4   1: entries in the clear; 2: the head has [`Sealing`]; a newer one is refused by name
//! 12 crc32c       4   over the other 20 bytes
//! 16 number       8
//! ```
//! The head carries what records of earlier files said, so that these can be removed, and the length of the file before it, so that
//! a file cut at a record's end is noticed.
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{EntryId, Vote};
use crate::seal::KeyId;

/// First bytes of every segment.
const MAGIC: &[u8; 8] = b"URSALOG\0";
/// Newest layout known here. The header keeps its place in every later one.
pub(super) const FORMAT: u32 = 2;
/// The layout of files whose entries are in the clear.
const PLAIN: u32 = 1;
/// Bytes of the header.
pub(super) const HEADER: usize = 24;
const SUFFIX: &str = ".log";

/// Payload of the first record: the state at the start of the file. Encoded with postcard, whose layout for these types is fixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Length of the file with the number before, bytes; `None` in the first.
    pub previous_len: Option<u64>,
    pub vote: Option<Vote>,
    pub committed: Option<EntryId>,
    pub purged: Option<EntryId>,
    /// Newest entry (or the purged one, if none follows it).
    pub last: Option<EntryId>,
    /// Files before this one are no longer needed.
    pub first_segment: u64,
}

impl Head {
    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain integers always encode")
    }

    /// The head, and how the file is sealed, if it is.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, Option<Sealing>)> {
        match postcard::take_from_bytes(bytes) {
            Ok((head, [])) => Some((head, None)),
            Ok((head, rest)) => Some((head, Some(Sealing::decode(rest)?))),
            Err(_) => None,
        }
    }
}

/// What follows the head in a file whose entries are sealed: 33 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sealing {
    pub key: KeyId,
    /// The file was written anew, under another key: its length, and that of the file which the next one knows.
    pub instead: Option<(u64, u64)>,
}

impl Sealing {
    /// Of one length, whatever it says.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (own, of) = self.instead.unwrap_or_default();
        let parts: [&[u8]; 4] = [
            &self.key.0,
            &[u8::from(self.instead.is_some())],
            &own.to_le_bytes(),
            &of.to_le_bytes(),
        ];
        parts.concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk()?;
        let (instead, rest) = rest.split_first()?;
        let (own, rest) = rest.split_first_chunk()?;
        let (of, []) = rest.split_first_chunk()? else { return None };
        let lengths = (u64::from_le_bytes(*own), u64::from_le_bytes(*of));
        Some(Self {
            key: KeyId(*key),
            instead: match instead {
                0 => None,
                1 => Some(lengths),
                _ => return None,
            },
        })
    }
}

/// What the header of a file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    Good,
    /// Too short or not intact.
    Bad,
    Newer(u32),
    /// Intact, but of another file.
    Number(u64),
}

pub(super) fn path(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("{seq:020}{SUFFIX}"))
}

/// The number of a segment's file name; `None` for other files.
pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|seq| *seq > 0)
}

/// The header of a file whose entries are sealed, or not.
pub(super) fn header(seq: u64, sealed: bool) -> [u8; HEADER] {
    let written = if sealed { FORMAT } else { PLAIN };
    let mut header = [0; HEADER];
    let (magic, rest) = header.split_at_mut(8);
    magic.copy_from_slice(MAGIC);
    let (format, rest) = rest.split_at_mut(4);
    format.copy_from_slice(&written.to_le_bytes());
    let (crc, number) = rest.split_at_mut(4);
    number.copy_from_slice(&seq.to_le_bytes());
    crc.copy_from_slice(&header_crc(written, seq).to_le_bytes());
    header
}

fn header_crc(format: u32, seq: u64) -> u32 {
    let crc = crc32c::crc32c(MAGIC);
    let crc = crc32c::crc32c_append(crc, &format.to_le_bytes());
    crc32c::crc32c_append(crc, &seq.to_le_bytes())
}

pub(super) fn check_header(file: &[u8], seq: u64) -> Header {
    let Some(header) = file.first_chunk::<HEADER>() else {
        return Header::Bad;
    };
    let u32_at = |at: usize| header.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b));
    let format = u32_at(8);
    let number = header.last_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    if !header.starts_with(MAGIC) || u32_at(12) != header_crc(format, number) {
        return Header::Bad;
    }
    if format > FORMAT {
        return Header::Newer(format);
    }
    if number != seq { Header::Number(number) } else { Header::Good }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let path = path(Path::new("/log"), 42);
        assert_eq!(path.to_str().unwrap(), "/log/00000000000000000042.log");
        assert_eq!(number("00000000000000000042.log"), Some(42));
        for name in [
            "lock",
            "42.log",
            "00000000000000000000.log",
            "0000000000000000004x.log",
            "00000000000000000042.log.new",
        ] {
            assert_eq!(number(name), None, "{name}");
        }
    }

    #[test]
    fn headers_tell_what_is_wrong() {
        assert_eq!(check_header(&header(7, true), 7), Header::Good);
        let good = header(7, false);
        assert_eq!(check_header(&good, 7), Header::Good);
        assert_eq!(check_header(&good, 8), Header::Number(7));
        assert_eq!(check_header(&good[..23], 7), Header::Bad);
        for bit in 0..HEADER * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check_header(&bad, 7), Header::Bad, "bit {bit}");
        }
        let mut newer = good;
        newer[8] = 3;
        newer[12..16].copy_from_slice(&header_crc(3, 7).to_le_bytes());
        assert_eq!(check_header(&newer, 7), Header::Newer(3));
    }

    /// The layout is a promise to every later version: this test changes only together with `FORMAT`.
    #[test]
    fn golden_head() {
        let id = |term, index| Some(EntryId { term, index });
        let head = Head {
            previous_len: Some(300),
            vote: Some(Vote {
                term: 2,
                node_id: 1,
                committed: true,
            }),
            committed: id(2, 9),
            purged: id(1, 4),
            last: id(2, 10),
            first_segment: 3,
        };
        assert_eq!(head.encode(), [1, 0xac, 2, 1, 2, 1, 1, 1, 2, 9, 1, 1, 4, 1, 2, 10, 3]);
        assert_eq!(Head::decode(&head.encode()), Some((head.clone(), None)));
        assert_eq!(Head::decode(&[head.encode(), vec![0]].concat()), None);
        let mut sealing = Sealing {
            key: KeyId([9; 16]),
            instead: None,
        };
        assert_eq!(sealing.encode(), [vec![9; 16], vec![0; 17]].concat());
        sealing.instead = Some((1, 258));
        assert_eq!(
            sealing.encode(),
            [vec![9; 16], vec![1], 1_u64.to_le_bytes().to_vec(), vec![2, 1, 0, 0, 0, 0, 0, 0]].concat()
        );
        let both = [head.encode(), sealing.encode()].concat();
        assert_eq!(Head::decode(&both), Some((head, Some(sealing))));
        assert_eq!(Head::decode(&both[..both.len() - 1]), None);
    }
}
