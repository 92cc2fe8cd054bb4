//! What this node has confirmed, noted outside of the log: so that a log that was cut short is never taken for all there was.
//! In: entries and votes, once they are durable in the log. Out: at the next open, whether the log still has them. File: `confirmed` in the
//! data folder.
//! Invariants: the note never says more than the log durably held when it was written; before the log is cut on purpose the note is
//! lowered, durably; no sync is spent on a write.
//!
//! The note is two slots of one file that are written in turn, each with a number and a checksum, so that a torn one costs nothing but the
//! newest word. It survives the death of the process with every write that was answered. A loss of power may take what was noted since the
//! last sync of it; but that alone takes nothing from the log that was answered for. What such a note missed, the other members know, see
//! `net::promises`.
//! Source: "Protocol-Aware Recovery for Consensus-Based Storage" (FAST 2018): a tail that was lost is told from one that never was.
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::disk::{self, Disk, DiskFile};
use crate::error::OpenError;
use crate::log::{EntryId, LogState, Vote};

const NAME: &str = "confirmed";
const MAGIC: &[u8; 4] = b"UCF1";
/// Checksum, magic, number of the note, entry, vote.
const SLOT: usize = 64;
/// Apart by more than a sector, which a disk writes whole.
const SLOTS: [u64; 2] = [0, 4096];
const MAX_FILE: u64 = 64 << 10;

/// What was confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Note {
    /// Grows with every note.
    number: u64,
    last: Option<EntryId>,
    vote: Option<Vote>,
}

impl Note {
    fn encode(&self) -> [u8; SLOT] {
        let mut rest = Vec::with_capacity(SLOT);
        rest.extend_from_slice(MAGIC);
        rest.extend_from_slice(&self.number.to_le_bytes());
        let last = self.last.unwrap_or(EntryId { term: 0, index: 0 });
        rest.push(u8::from(self.last.is_some()));
        rest.extend_from_slice(&last.term.to_le_bytes());
        rest.extend_from_slice(&last.index.to_le_bytes());
        let vote = self.vote.map_or((0, 0), |vote| (vote.term, vote.node_id));
        rest.push(u8::from(self.vote.is_some()));
        rest.extend_from_slice(&vote.0.to_le_bytes());
        rest.extend_from_slice(&vote.1.to_le_bytes());
        rest.resize(SLOT - 4, 0);
        let mut slot = [0; SLOT];
        let (sum, to) = slot.split_at_mut(4);
        sum.copy_from_slice(&crc32c::crc32c(&rest).to_le_bytes());
        to.copy_from_slice(&rest);
        slot
    }

    fn decode(slot: &[u8]) -> Option<Self> {
        let (sum, rest) = slot.get(..SLOT)?.split_first_chunk()?;
        if u32::from_le_bytes(*sum) != crc32c::crc32c(rest) || !rest.starts_with(MAGIC) {
            return None;
        }
        let number = |at: usize| rest.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let set = |at: usize| rest.get(at).map(|flag| *flag == 1);
        let last = EntryId {
            term: number(13)?,
            index: number(21)?,
        };
        let vote = Vote {
            term: number(30)?,
            node_id: number(38)?,
            committed: false,
        };
        Some(Self {
            number: number(4)?,
            last: set(12)?.then_some(last),
            vote: set(29)?.then_some(vote),
        })
    }

    /// Why a log with this in it is not all there was.
    fn lacking(&self, log: &LogState) -> Option<String> {
        let name = |last: Option<EntryId>| last.map_or_else(|| "none".to_owned(), |id| format!("those up to {id}"));
        if self.last > log.last {
            return Some(format!("of the entries it has {}, and it had {}", name(log.last), name(self.last)));
        }
        let vote = self.vote?;
        let given = log.vote.map(|vote| (vote.term, vote.node_id));
        let kept = given.is_some_and(|(term, node)| term > vote.term || (term, node) == (vote.term, vote.node_id));
        (!kept).then(|| format!("it lacks the vote of term {} for node {}", vote.term, vote.node_id))
    }
}

#[derive(Debug)]
struct State {
    note: Note,
    /// Grows when the log is cut on purpose: what was handed in before that counts no more.
    epoch: u64,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Confirmed {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    state: Mutex<State>,
    failed: AtomicBool,
}

impl Confirmed {
    /// Compares the note in `folder` with the log, and begins a new one. Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError::Shortened`]; the note cannot be read or written.
    pub(crate) fn open(disk: &dyn Disk, folder: &Path, log: &LogState) -> Result<Self, OpenError> {
        let path = folder.join(NAME);
        let io = |action| {
            let path = path.clone();
            move |source| OpenError::Io { action, path, source }
        };
        let (file, new) = match disk.open(&path) {
            Ok(file) => (file, false),
            Err(error) if error.kind() == ErrorKind::NotFound => (disk.create(&path).map_err(io("make"))?, true),
            Err(error) => return Err(io("open")(error)),
        };
        let bytes = disk::read_all(&*file, MAX_FILE).map_err(io("read"))?;
        let slots = SLOTS.iter().filter_map(|at| Note::decode(bytes.get(usize::try_from(*at).ok()?..)?));
        let before = slots.max_by_key(|note| note.number).unwrap_or_default();
        if let Some(lacking) = before.lacking(log) {
            return Err(OpenError::Shortened {
                dir: folder.to_owned(),
                log: folder.join("log"),
                lacking,
            });
        }
        let confirmed = Self {
            path: path.clone(),
            file,
            state: Mutex::new(State { note: before, epoch: 0 }),
            failed: AtomicBool::new(false),
        };
        confirmed
            .change(|note| (note.last, note.vote) = (log.last, log.vote))
            .and_then(|()| confirmed.file.sync_data())
            .map_err(io("write"))?;
        if new {
            disk.sync_dir(folder).map_err(io("sync the folder of"))?;
        }
        Ok(confirmed)
    }

    fn change(&self, change: impl FnOnce(&mut Note)) -> io::Result<()> {
        self.write(&mut self.state.lock(), change)
    }

    fn write(&self, state: &mut State, change: impl FnOnce(&mut Note)) -> io::Result<()> {
        let mut note = state.note;
        change(&mut note);
        note.number += 1;
        let slot = SLOTS[usize::from(note.number % 2 == 1)];
        self.file.write_at(slot, &note.encode())?;
        // One that was not written was not made: the next goes to the same place.
        state.note = note;
        Ok(())
    }

    /// For [`Confirmed::has`], of what is handed in to the log now.
    pub(crate) fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// The log durably has the entries up to `last`, which were handed in at `epoch`. Quick: the page cache takes it.
    pub(crate) fn has(&self, epoch: u64, last: EntryId) {
        let mut state = self.state.lock();
        if state.epoch == epoch && state.note.last < Some(last) {
            let written = self.write(&mut state, |note| note.last = Some(last));
            self.noted(written);
        }
    }

    /// The log durably has this vote.
    pub(crate) fn voted(&self, vote: Vote) {
        let written = self.change(|note| note.vote = Some(vote));
        self.noted(written);
    }

    /// A note that is not written is one that knows less: no reason to stop.
    fn noted(&self, written: io::Result<()>) {
        match written {
            Ok(()) => self.failed.store(false, Ordering::Relaxed),
            Err(error) if !self.failed.swap(true, Ordering::Relaxed) => {
                tracing::warn!(path = %self.path.display(), %error, "it cannot be noted what the log has: a log that is cut short might not be noticed");
            }
            Err(_) => {}
        }
    }

    /// The log is about to be cut after `to`. Durable on return. Blocks on the disk.
    ///
    /// # Errors
    /// It must not be cut then. A disk that took nothing ([`disk::is_refusal`]) may be asked again.
    pub(crate) fn lower(&self, to: Option<EntryId>) -> io::Result<()> {
        let mut state = self.state.lock();
        state.epoch += 1;
        if state.note.last <= to {
            return Ok(());
        }
        self.write(&mut state, |note| note.last = to)?;
        drop(state);
        // A sync that fails is never one to try again.
        self.file.sync_data().map_err(io::Error::other)
    }

    /// Makes the note durable. Blocks on the disk.
    pub(crate) fn settle(&self) {
        self.noted(self.file.sync_data());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    const DIR: &str = "/node";

    fn id(term: u64, index: u64) -> EntryId {
        EntryId { term, index }
    }

    fn vote(term: u64, node_id: u64) -> Vote {
        Vote {
            term,
            node_id,
            committed: false,
        }
    }

    fn log(last: Option<EntryId>, vote: Option<Vote>) -> LogState {
        LogState {
            last,
            vote,
            ..LogState::default()
        }
    }

    fn open(disk: &SimDisk, log: &LogState) -> Result<Confirmed, OpenError> {
        disk.create_dir(DIR.as_ref()).unwrap();
        Confirmed::open(disk, DIR.as_ref(), log)
    }

    #[test]
    fn a_log_that_has_less_than_was_confirmed_is_refused_for_as_long_as_it_has() {
        let disk = SimDisk::new(1);
        let confirmed = open(&disk, &log(None, None)).unwrap();
        confirmed.voted(vote(2, 1));
        confirmed.has(confirmed.epoch(), id(2, 7));
        drop(confirmed);
        for short in [
            log(Some(id(2, 6)), Some(vote(2, 1))),
            log(None, Some(vote(2, 1))),
            log(Some(id(1, 9)), Some(vote(2, 1))),
        ] {
            let error = open(&disk, &short).unwrap_err();
            assert!(error.to_string().contains("it had those up to 2.7"), "{error}");
            assert!(
                error.to_string().contains("/node/log/") && error.to_string().contains("empty folder"),
                "{error}"
            );
        }
        for forgotten in [Some(vote(2, 3)), Some(vote(1, 1)), None] {
            let error = open(&disk, &log(Some(id(2, 7)), forgotten)).unwrap_err();
            assert!(error.to_string().contains("the vote of term 2 for node 1"), "{error}");
        }
        // What the log has beyond it is fine, and counts from now on.
        drop(open(&disk, &log(Some(id(3, 8)), Some(vote(3, 2)))).unwrap());
        assert!(open(&disk, &log(Some(id(2, 7)), Some(vote(3, 2)))).is_err());
    }

    #[test]
    fn a_log_that_was_cut_on_purpose_is_whole() {
        let disk = SimDisk::new(1);
        let confirmed = open(&disk, &log(None, None)).unwrap();
        let before = confirmed.epoch();
        confirmed.has(before, id(2, 7));
        confirmed.lower(Some(id(2, 4))).unwrap();
        // Handed in before the cut, and durable only now: it is cut all the same.
        confirmed.has(before, id(2, 9));
        drop(confirmed);
        let disk = disk.power_loss();
        let confirmed = open(&disk, &log(Some(id(2, 4)), None)).unwrap();
        confirmed.has(confirmed.epoch(), id(3, 5));
        drop(confirmed);
        assert!(open(&disk, &log(Some(id(2, 4)), None)).is_err());
    }

    /// Whatever a power loss leaves of the notes, a log that kept all that was synced is accepted, and never one that lost what was noted
    /// before the last sync.
    #[test]
    fn a_power_loss_leaves_a_note_that_says_no_more_than_the_log() {
        for seed in 0..200 {
            let disk = SimDisk::new(seed);
            let confirmed = open(&disk, &log(Some(id(1, 3)), None)).unwrap();
            for index in 4..=4 + seed % 5 {
                confirmed.has(confirmed.epoch(), id(1, index));
            }
            drop(confirmed);
            let disk = disk.power_loss();
            assert!(open(&disk, &log(Some(id(1, 2)), None)).is_err(), "seed {seed}");
            open(&disk, &log(Some(id(1, 4 + seed % 5)), None)).unwrap();
        }
    }

    #[test]
    fn a_note_that_cannot_be_read_says_nothing() {
        let disk = SimDisk::new(1);
        let confirmed = open(&disk, &log(None, None)).unwrap();
        confirmed.has(confirmed.epoch(), id(2, 7));
        confirmed.has(confirmed.epoch(), id(2, 8));
        drop(confirmed);
        let path = Path::new("/node/confirmed");
        // The newest is in the slot of odd numbers: without it the one before counts.
        disk.damage(path, |bytes| bytes[4096] ^= 1).unwrap();
        let error = open(&disk, &log(None, None)).unwrap_err();
        assert!(error.to_string().contains("it had those up to 2.7"), "{error}");
        disk.damage(path, |bytes| bytes[0] ^= 1).unwrap();
        open(&disk, &log(None, None)).unwrap();
    }

    /// A promise to every later version.
    #[test]
    fn golden_note() {
        let note = Note {
            number: 5,
            last: Some(id(2, 7)),
            vote: Some(vote(3, 1)),
        };
        let bytes = note.encode();
        assert_eq!(&bytes[4..24], b"UCF1\x05\0\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0");
        assert_eq!(Note::decode(&bytes), Some(note));
        for bit in 0..SLOT * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Note::decode(&bad), None, "bit {bit}");
        }
        let none = Note::default();
        assert_eq!(Note::decode(&none.encode()), Some(none));
    }

    /// What was not noted is noted at the next try, and not taken for done.
    #[test]
    fn a_disk_that_takes_nothing_is_asked_again() {
        let disk = SimDisk::new(1);
        let confirmed = open(&disk, &log(Some(id(1, 9)), None)).unwrap();
        disk.refuse(Some(ErrorKind::ReadOnlyFilesystem));
        for _ in 0..2 {
            assert!(disk::is_refusal(&confirmed.lower(Some(id(1, 4))).unwrap_err()));
        }
        disk.refuse(None);
        confirmed.lower(Some(id(1, 4))).unwrap();
        drop(confirmed);
        open(&disk.power_loss(), &log(Some(id(1, 4)), None)).unwrap();
    }
}
