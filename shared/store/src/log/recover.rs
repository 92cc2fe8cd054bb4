//! Reads the whole log at open: checks every record, rebuilds the index, cuts a torn tail, refuses damage.
//! In: the folder. Out: a writer that goes on where the log ends, and its memory.
//! Invariants: only bytes that were never reported durable are cut; whatever is returned is on disk, even if the process before died
//! with it in the page cache only (the doubtful part is written again and synced).
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::memory::{Memory, Place};
use super::part::{Part, content_len};
use super::record::{self, Content, Invalid};
use super::rewrite;
use super::segment::{self, Head, Header, Sealing};
use super::writer::{self, Current, Writer};
use super::{Error, Item, Options};
use crate::defects::{self, Defect};
use crate::disk::{self, Disk, DiskFile};
use crate::seal::{DataKey, Keys};

/// Longest file that is read. The writer closes a file at [`Options::segment_bytes`], so only one batch can exceed that.
const MAX_FILE: u64 = 1 << 32;

struct Scan<'a, E> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    memory: Memory<E>,
    head: Head,
    newest_in: BTreeMap<u64, Option<u64>>,
    keys: &'a Keys,
    /// Of the file that is read.
    sealing: Option<Sealing>,
    /// Number of the file before, and where its records end, or ended before it was written anew.
    previous: Option<(u64, u64)>,
}

/// How far a file is good.
struct Good {
    file: Arc<dyn DiskFile>,
    key: Option<Arc<DataKey>>,
    /// Valid records end here.
    end: u64,
    len: u64,
    /// Bytes before this are known to have been synced.
    proven: u64,
    bytes: Vec<u8>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// Opens the log in `dir`, making an empty one if there is none.
pub(super) fn open<E: Item>(disk: &Arc<dyn Disk>, dir: &Path, options: Options, keys: &Keys) -> Result<Writer<E>, Error> {
    disk.create_dir(dir).map_err(failed("make", dir))?;
    rewrite::remove_unfinished(&**disk, dir).map_err(failed("clean up", dir))?;
    let mut numbers = numbers(&**disk, dir)?;
    let scan = Scan {
        disk: &**disk,
        dir,
        memory: Memory::new(None, options.cache_bytes),
        head: Head::default(),
        newest_in: BTreeMap::new(),
        keys,
        sealing: None,
        previous: None,
    };
    let Some((scan, seq, good)) = scan.run(&mut numbers)? else {
        return create(disk, dir, options, keys);
    };
    let Scan {
        mut memory,
        head,
        mut newest_in,
        ..
    } = scan;
    newest_in.retain(|seq, _| *seq >= head.first_segment);
    memory.files.retain(|seq, _| *seq >= head.first_segment);
    let current = Current {
        seq,
        file: good.file.clone(),
        key: good.key.clone(),
        written: good.end,
        durable: good.end,
        reserved: good.end,
        named: true,
    };
    let path = segment::path(dir, seq);
    make_durable(&**disk, dir, &good).map_err(failed("rewrite the end of", &path))?;
    let writer = Writer {
        disk: disk.clone(),
        dir: dir.to_owned(),
        options,
        keys: keys.clone(),
        memory: Arc::new(Mutex::new(memory)),
        current,
        head,
        newest_in,
        buf: Vec::new(),
        waiting: Vec::new(),
        batch: None,
        no_room: None,
        guard: None,
    };
    remove_leftovers(&**disk, dir, &numbers, writer.head.first_segment);
    Ok(writer)
}

/// Numbers of the segments there are, ascending.
fn numbers(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, Error> {
    let names = disk.list(dir).map_err(failed("list", dir))?;
    Ok(names.iter().filter_map(|name| segment::number(name)).collect())
}

fn create<E: Item>(disk: &Arc<dyn Disk>, dir: &Path, options: Options, keys: &Keys) -> Result<Writer<E>, Error> {
    let path = segment::path(dir, 1);
    let current = writer::begin(&**disk, dir, 1, keys.active()).map_err(failed("make", &path))?;
    let mut writer = Writer {
        disk: disk.clone(),
        dir: dir.to_owned(),
        options,
        keys: keys.clone(),
        memory: Arc::new(Mutex::new(Memory::new(None, options.cache_bytes))),
        current,
        head: Head {
            first_segment: 1,
            ..Head::default()
        },
        newest_in: BTreeMap::new(),
        buf: Vec::new(),
        waiting: Vec::new(),
        batch: None,
        no_room: None,
        guard: None,
    };
    writer.open_current();
    writer.flush_head().map_err(failed("write", &path))?;
    Ok(writer)
}

/// Cuts what lies behind the last valid record, writes again what is not proven to be on disk, and syncs. After a sync that failed,
/// or after the process alone was killed, a page can be readable and yet not on disk; a plain sync would not write it.
fn make_durable(disk: &dyn Disk, dir: &Path, good: &Good) -> io::Result<()> {
    if good.len > good.end {
        good.file.set_len(good.end)?;
    }
    let proven = usize::try_from(good.proven.min(good.end)).map_err(io::Error::other)?;
    let end = usize::try_from(good.end).map_err(io::Error::other)?;
    if let Some(doubtful) = good.bytes.get(proven..end).filter(|bytes| !bytes.is_empty())
        && !defects::on(Defect::DoubtfulTailKept)
    {
        good.file.write_at(good.proven.min(good.end), doubtful)?;
    }
    good.file.sync_data()?;
    disk.sync_dir(dir)
}

fn remove_leftovers(disk: &dyn Disk, dir: &Path, numbers: &[u64], first_needed: u64) {
    for seq in numbers.iter().filter(|seq| **seq < first_needed) {
        let path = segment::path(dir, *seq);
        if let Err(error) = disk.remove(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove an old part of the log");
        }
    }
}

impl<E: Item> Scan<'_, E> {
    /// Reads the run of files that ends with the newest. `None`: there is no log. Drops a torn newest file from `numbers`.
    fn run(mut self, numbers: &mut Vec<u64>) -> Result<Option<(Self, u64, Good)>, Error> {
        let Some(newest) = numbers.last().copied() else { return Ok(None) };
        let run = run_of(numbers);
        let mut last = None;
        for seq in run.clone() {
            let path = segment::path(self.dir, seq);
            let file = self.disk.open(&path).map_err(failed("open", &path))?;
            let bytes = disk::read_all(&*file, MAX_FILE).map_err(failed("read", &path))?;
            if seq == newest && is_unborn(&bytes, seq) && (last.is_some() || seq == 1) {
                tracing::warn!(path = %path.display(), bytes = bytes.len(), "the power went while this part of the log was begun: removed");
                self.disk.remove(&path).map_err(failed("remove", &path))?;
                self.disk.sync_dir(self.dir).map_err(failed("sync", self.dir))?;
                numbers.pop();
                break;
            }
            check_header(&bytes, seq, &path)?;
            let (end, proven) = self.records(&bytes, seq, seq == newest, &path)?;
            let key = self.key(&path)?;
            let part = Part {
                file: file.clone(),
                key: key.clone(),
            };
            self.memory.files.insert(seq, part);
            let len = bytes.len() as u64;
            self.previous = Some((seq, self.known_end(end, &path)?));
            last = Some((
                seq,
                Good {
                    file,
                    key,
                    end,
                    len,
                    proven,
                    bytes,
                },
            ));
        }
        let Some((seq, good)) = last else { return Ok(None) };
        if !self.memory.is_whole() || *run.start() > self.head.first_segment {
            let missing = run.start().saturating_sub(1).max(1);
            return Err(Error::Missing {
                path: segment::path(self.dir, missing),
            });
        }
        Ok(Some((self, seq, good)))
    }

    /// The key of the file that was read.
    fn key(&self, path: &Path) -> Result<Option<Arc<DataKey>>, Error> {
        let key = self.sealing.map(|sealing| self.keys.get(sealing.key)).transpose();
        key.map_err(|source| Error::Key {
            path: path.to_owned(),
            source,
        })
    }

    /// Where the next file knows that this one ends.
    fn known_end(&self, end: u64, path: &Path) -> Result<u64, Error> {
        match self.sealing.and_then(|sealing| sealing.instead) {
            None => Ok(end),
            Some((own, of)) if own == end => Ok(of),
            Some((own, _)) => Err(Error::Damaged {
                path: path.to_owned(),
                offset: end.min(own),
                reason: format!("it has {end} bytes, it had {own} when it was written"),
            }),
        }
    }

    /// Takes in the records of one file. Returns where the valid ones end and up to where they prove that the file was synced.
    fn records(&mut self, bytes: &[u8], seq: u64, newest: bool, path: &Path) -> Result<(u64, u64), Error> {
        self.newest_in.insert(seq, None);
        let mut at = segment::HEADER;
        let mut proven = 0;
        while at < bytes.len() {
            match record::decode(bytes, seq, at) {
                Ok(record) => {
                    if (at == segment::HEADER) != matches!(record.content, Content::Head(_)) {
                        return Err(damaged(path, at, "a file has one head, at its start".to_owned()));
                    }
                    match record.content {
                        Content::Head(head) => self.begin_file(head, path)?,
                        content => {
                            let place = Place {
                                segment: seq,
                                offset: at as u64,
                                size: record.size,
                            };
                            self.take(&content, place).map_err(|error| damaged(path, at, error.to_string()))?;
                        }
                    }
                    proven = proven.max(record.durable);
                    at += record.size;
                }
                Err(Invalid::Newer { what, found, known }) => {
                    return Err(Error::Newer {
                        path: path.to_owned(),
                        what,
                        found,
                        known,
                    });
                }
                Err(Invalid::Malformed(reason)) => return Err(damaged(path, at, reason.to_owned())),
                // Space taken ahead. A sync that failed can have forgotten that it was given back; the head of the next file says
                // where this one ends.
                Err(Invalid::NotARecord(_)) if !newest && bytes.iter().skip(at).all(|byte| *byte == 0) => break,
                Err(Invalid::NotARecord(reason)) if !newest => {
                    return Err(damaged(
                        path,
                        at,
                        format!("{reason}, and a later file was begun after this one was whole"),
                    ));
                }
                Err(Invalid::NotARecord(reason)) => {
                    if let Some(proof) = record::proof_of_durability(bytes, seq, at) {
                        return Err(damaged(
                            path,
                            at,
                            format!("{reason}, and the record at {proof} was written after this was durable"),
                        ));
                    }
                    if bytes.iter().skip(at).any(|byte| *byte != 0) {
                        tracing::warn!(path = %path.display(), offset = at, bytes = bytes.len() - at, reason, "torn tail of the log: cut");
                    }
                    break;
                }
            }
        }
        if at == segment::HEADER {
            return Err(damaged(path, at, "the head is missing".to_owned()));
        }
        Ok((at as u64, proven))
    }

    fn take(&mut self, content: &Content<'_>, place: Place) -> Result<(), Error> {
        match content {
            Content::Head(_) | Content::Close => {}
            Content::Entry(id, payload) => {
                self.memory
                    .push(*id, content_len(self.sealing.is_some(), payload), None, Some(place))?;
                self.head.last = Some(*id);
                let newest = self.newest_in.entry(place.segment).or_default();
                *newest = (*newest).max(Some(id.index));
            }
            Content::Vote(vote) => {
                self.memory.vote = Some(*vote);
                self.head.vote = Some(*vote);
            }
            Content::Committed(id) => {
                self.memory.committed = self.memory.committed.max(Some(*id));
                self.head.committed = self.memory.committed;
            }
            Content::Purge { upto, first_segment } => {
                self.memory.purge(*upto);
                self.head.purged = self.memory.purged;
                self.head.last = self.memory.last();
                self.head.first_segment = *first_segment;
            }
            Content::Truncate(to) => {
                self.memory.truncate_after(*to);
                self.head.last = self.memory.last();
            }
        }
        Ok(())
    }

    /// Takes in the head of a file: all there is to know if it is the first that is read, a check of the others.
    fn begin_file(&mut self, head: &[u8], path: &Path) -> Result<(), Error> {
        let wrong = |reason: &str| damaged(path, segment::HEADER, reason.to_owned());
        let (head, sealing) = Head::decode(head).ok_or_else(|| wrong("the head cannot be read"))?;
        self.sealing = sealing;
        if let Some((previous, len)) = self.previous {
            let had = head.previous_len.ok_or_else(|| wrong("there should be no file before it"))?;
            if had != len {
                let reason = format!("it has {len} bytes, it had {had} when the next file was begun");
                return Err(Error::Damaged {
                    path: segment::path(self.dir, previous),
                    offset: len.min(had),
                    reason,
                });
            }
            if (head.vote, head.committed, head.purged, head.last)
                != (self.head.vote, self.head.committed, self.head.purged, self.head.last)
            {
                return Err(wrong("the head does not say what the files before it say"));
            }
        } else {
            // What came before this file is gone, on the word of a purge mark that comes later if it is not in the head.
            self.memory = Memory::new(head.last, self.memory.cache_limit());
            self.memory.purged = head.purged;
            self.memory.vote = head.vote;
            self.memory.committed = head.committed;
        }
        self.head = head;
        Ok(())
    }
}

fn check_header(bytes: &[u8], seq: u64, path: &Path) -> Result<(), Error> {
    match segment::check_header(bytes, seq) {
        Header::Good => Ok(()),
        Header::Bad => Err(damaged(path, 0, "the header is not intact".to_owned())),
        Header::Number(number) => Err(damaged(path, 0, format!("it is segment {number} under another name"))),
        Header::Newer(found) => Err(Error::Newer {
            path: path.to_owned(),
            what: "log format",
            found,
            known: segment::FORMAT,
        }),
    }
}

fn damaged(path: &Path, offset: usize, reason: String) -> Error {
    Error::Damaged {
        path: PathBuf::from(path),
        offset: offset as u64,
        reason,
    }
}

/// The unbroken run of numbers that ends with the last. Files before a gap were purged, or the run lacks its start; which of the two,
/// the newest purge mark tells.
fn run_of(numbers: &[u64]) -> std::ops::RangeInclusive<u64> {
    let last = numbers.last().copied().unwrap_or(1);
    let mut first = last;
    for seq in numbers.iter().rev().skip(1) {
        if *seq + 1 != first {
            break;
        }
        first = *seq;
    }
    first..=last
}

/// A file whose making was cut short: header or head are not there, and nothing in it proves that they ever were.
fn is_unborn(bytes: &[u8], seq: u64) -> bool {
    let torn = match segment::check_header(bytes, seq) {
        Header::Bad => true,
        Header::Good => matches!(record::decode(bytes, seq, segment::HEADER), Err(Invalid::NotARecord(_))),
        Header::Newer(_) | Header::Number(_) => false,
    };
    torn && record::proof_of_durability(bytes, seq, 0).is_none()
}
