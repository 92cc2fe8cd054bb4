//! The log against a disk that loses power, and against damage.
//! Each seed plays a script of batches, with the power going at some call; what is found afterwards must be the effect of a prefix
//! of what was handed in that contains everything that was acknowledged.
mod sealed;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::writer::{Job, Op};
use super::*;
use crate::disk::{Disk, RealDisk, SimDisk};
use crate::seal::Keys;

mod full;

const DIR: &str = "/node/log";

#[derive(Clone, Debug, PartialEq, Eq)]
struct Text(EntryId, String);

impl Item for Text {
    fn id(&self) -> EntryId {
        self.0
    }

    fn encode(&self) -> Bytes {
        Bytes::from(self.1.clone())
    }

    fn decode(id: EntryId, bytes: &[u8]) -> Result<Self, String> {
        String::from_utf8(bytes.to_vec())
            .map(|text| Self(id, text))
            .map_err(|error| error.to_string())
    }
}

fn id(term: u64, index: u64) -> EntryId {
    EntryId { term, index }
}

fn text(term: u64, index: u64, len: usize) -> Text {
    Text(id(term, index), format!("entry {term}.{index} {}", "x".repeat(len)))
}

fn small() -> Options {
    Options {
        segment_bytes: 700,
        cache_bytes: 200,
        ..Options::default()
    }
}

fn open(disk: &SimDisk) -> Result<Log<Text>, Error> {
    open_with(disk, &Keys::default())
}

fn open_with(disk: &SimDisk, keys: &Keys) -> Result<Log<Text>, Error> {
    Log::open(Arc::new(disk.clone()), Path::new(DIR), small(), keys, None)
}

fn now<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// What a log holds, as far as it must survive.
#[derive(Clone, Default, PartialEq, Eq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<EntryId>,
    entries: BTreeMap<u64, Text>,
}

/// One durable effect.
#[derive(Clone, Debug)]
enum Effect {
    Entry(Text),
    Vote(Vote),
    Truncate(Option<EntryId>),
    Purge(EntryId),
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<String> = self.entries.values().map(|entry| entry.0.to_string()).collect();
        write!(f, "{:?}, purged {:?}, entries {}", self.vote, self.purged, ids.join(" "))
    }
}

impl Model {
    fn last(&self) -> Option<EntryId> {
        self.entries.values().next_back().map(Item::id).or(self.purged)
    }

    fn take(&mut self, effect: &Effect) {
        match effect {
            Effect::Entry(entry) => {
                self.entries.insert(entry.0.index, entry.clone());
            }
            Effect::Vote(vote) => self.vote = Some(*vote),
            Effect::Truncate(to) => self.entries.retain(|index, _| to.is_some_and(|to| *index <= to.index)),
            Effect::Purge(upto) => {
                self.purged = self.purged.max(Some(*upto));
                self.entries.retain(|index, _| *index > upto.index);
            }
        }
    }

    fn of(log: &Log<Text>) -> Self {
        let state = log.state();
        let entries = now(log.read(0..u64::MAX, usize::MAX)).unwrap();
        let model = Self {
            vote: state.vote,
            purged: state.purged,
            entries: entries.into_iter().map(|e| (e.0.index, e)).collect(),
        };
        assert_eq!(model.last(), state.last);
        model
    }
}

/// One life of the node: what is handed in, and how much of it was acknowledged.
struct Life<'a> {
    rng: &'a mut StdRng,
    log: Log<Text>,
    /// As handed in.
    model: Model,
    term: u64,
    committed: Option<EntryId>,
    effects: Vec<Effect>,
    /// So many effects are acknowledged; set by the callbacks.
    acknowledged: Arc<Mutex<usize>>,
}

impl Life<'_> {
    fn batch(&mut self) -> Result<(), Error> {
        let jobs = (0..self.rng.random_range(1..5)).map(|_| self.job()).collect();
        self.log.submit_batch(jobs)
    }

    fn job(&mut self) -> Job<Text> {
        let op = self.op();
        let lazy = matches!(op, Op::Committed(_) | Op::Close);
        let (count, acknowledged) = (self.effects.len(), self.acknowledged.clone());
        let done: super::Done = Box::new(move |result| {
            if result.is_ok() {
                let mut acknowledged = acknowledged.lock();
                *acknowledged = count.max(*acknowledged);
            }
        });
        Job {
            op,
            done: (!lazy).then_some(done),
        }
    }

    fn op(&mut self) -> Op<Text> {
        let last = self.model.last();
        let range = self.model.entries.keys().next().copied().zip(last.map(|id| id.index));
        let pick = |rng: &mut StdRng| range.filter(|(from, to)| from <= to).map(|(from, to)| rng.random_range(from..=to));
        match self.rng.random_range(0..20) {
            0..12 => {
                let count = self.rng.random_range(1..4);
                let next = last.map_or(0, |id| id.index + 1);
                let entries: Vec<Text> = (next..next + count)
                    .map(|index| text(self.term, index, self.rng.random_range(0..200)))
                    .collect();
                entries.iter().for_each(|entry| self.effect(Effect::Entry(entry.clone())));
                Op::Append(entries)
            }
            12..15 => {
                self.term += 1;
                let vote = Vote {
                    term: self.term,
                    node_id: self.rng.random_range(1..4),
                    committed: self.rng.random(),
                };
                self.effect(Effect::Vote(vote));
                Op::Vote(vote)
            }
            15 => {
                let at = pick(self.rng).filter(|index| self.committed.is_none_or(|id| *index >= id.index));
                let Some(entry) = at.and_then(|index| self.model.entries.get(&index)) else {
                    return self.op();
                };
                let to = Some(entry.0);
                self.term += 1;
                self.effect(Effect::Truncate(to));
                Op::Truncate(to)
            }
            16 | 17 => {
                let Some(committed) = pick(self.rng).and_then(|index| self.model.entries.get(&index)).map(Item::id) else {
                    return self.op();
                };
                self.committed = self.committed.max(Some(committed));
                Op::Committed(committed)
            }
            _ => {
                let Some(committed) = self.committed else { return self.op() };
                // Now and then a snapshot from elsewhere replaces more than there is.
                let ahead = self.rng.random_range(0..10) == 0;
                let upto = if ahead {
                    id(self.term, last.map_or(0, |id| id.index) + 5)
                } else {
                    committed
                };
                self.effect(Effect::Purge(upto));
                if ahead {
                    self.committed = Some(upto);
                }
                Op::Purge(upto)
            }
        }
    }

    fn effect(&mut self, effect: Effect) {
        self.model.take(&effect);
        self.effects.push(effect);
    }
}

/// `found` must be what some prefix of `effects` makes of `before`, a prefix that holds all that was acknowledged.
fn check(before: Model, effects: &[Effect], acknowledged: usize, found: &Model, context: &str) {
    let (sure, perhaps) = effects.split_at(acknowledged);
    let mut expected = before;
    sure.iter().for_each(|effect| expected.take(effect));
    let mut perhaps = perhaps.iter();
    while *found != expected {
        let Some(effect) = perhaps.next() else {
            panic!(
                "{context}: found is no prefix that holds the {acknowledged} acknowledged of {} effects: {found:?}",
                effects.len()
            );
        };
        expected.take(effect);
    }
}

/// Plays `lives` lives with a power loss (or a kill) between them. Returns how many acknowledged effects were checked.
fn play(seed: u64, lives: u32, keys: &Keys) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = SimDisk::new(seed);
    let mut durable = Model::default();
    let mut term = 1;
    let mut checked = 0;
    for life in 0..lives {
        let context = || format!("seed {seed}, life {life}");
        // Power may go during recovery too: nothing may be lost by trying again.
        if rng.random_range(0..4) == 0 {
            disk.power_off_in(rng.random_range(0..6));
            let _ = open_with(&disk, keys);
            disk = disk.power_loss();
        }
        let log = open_with(&disk, keys).unwrap_or_else(|error| panic!("{}: {error}", context()));
        assert_eq!(Model::of(&log), durable, "{}: a second open finds something else", context());
        let committed = log.state().committed;
        assert!(
            committed.map(|id| id.index) <= durable.last().map(|id| id.index),
            "{}: committed beyond the end",
            context()
        );
        if rng.random_range(0..8) > 0 {
            disk.power_off_in(rng.random_range(0..40));
        }
        let mut life = Life {
            rng: &mut rng,
            log,
            model: durable.clone(),
            term,
            committed,
            effects: vec![],
            acknowledged: Arc::default(),
        };
        for _ in 0..25 {
            if life.batch().is_err() || life.log.failure().borrow().is_some() {
                break;
            }
            sealed::rotate_at_times(&disk, keys, &mut life);
        }
        if life.rng.random_range(0..6) == 0 {
            // A clean end, if the power is still on.
            let _ = now(life.log.close());
        }
        let (effects, acknowledged) = (life.effects, *life.acknowledged.lock());
        term = life.term + 1;
        disk = if rng.random_range(0..5) == 0 {
            disk.process_kill()
        } else {
            disk.power_loss()
        };
        let log = open_with(&disk, keys).unwrap_or_else(|error| panic!("{}: {error}", context()));
        let found = Model::of(&log);
        check(durable, &effects, acknowledged, &found, &context());
        checked += acknowledged;
        durable = found;
        disk = disk.power_loss();
    }
    checked
}

#[test]
fn no_acknowledged_entry_is_lost_at_any_power_loss() {
    let checked: usize = (0..12_000).map(|seed| play(seed, 3, &Keys::default())).sum();
    assert!(checked > 200_000, "only {checked} acknowledged effects were put to the test");
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_the_next_start_trusts_no_page_cache() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::new(seed);
        let log = open(&disk).unwrap();
        let mut life = Life {
            rng: &mut rng,
            log,
            model: Model::default(),
            term: 1,
            committed: None,
            effects: vec![],
            acknowledged: Arc::default(),
        };
        disk.fail_sync_in(life.rng.random_range(0..8));
        for _ in 0..100 {
            let _ = life.batch();
        }
        assert!(life.log.failure().borrow().is_some());
        let (acknowledged, failed) = (*life.acknowledged.lock(), life.effects.len());
        assert!(life.batch().is_err(), "it stays failed");
        assert_eq!(*life.acknowledged.lock(), acknowledged);
        assert!(acknowledged < failed);
        let effects = life.effects;
        // The process restarts on the same machine: it reads pages that are not on disk. What it then stands by must be.
        let disk = disk.process_kill();
        let seen = Model::of(&open(&disk).unwrap());
        let disk = disk.power_loss();
        assert_eq!(
            Model::of(&open(&disk).unwrap()),
            seen,
            "seed {seed}: seen after the restart, lost with the power"
        );
        check(Model::default(), &effects, acknowledged, &seen, &format!("seed {seed}"));
    }
}

/// A closed log of several files.
fn closed_log(seed: u64) -> (SimDisk, Model) {
    let disk = SimDisk::new(seed);
    let log = open(&disk).unwrap();
    now(log.save_vote(Vote {
        term: 1,
        node_id: 1,
        committed: true,
    }))
    .unwrap();
    for index in 0..30 + seed % 17 {
        now(log.append(vec![text(1, index, 40)], Box::new(|result| result.unwrap()))).unwrap();
        now(log.save_committed(id(1, index))).unwrap();
    }
    let model = Model::of(&log);
    now(log.close()).unwrap();
    (disk, model)
}

fn files(disk: &SimDisk) -> Vec<(PathBuf, Vec<u8>)> {
    disk.files(Path::new(DIR))
        .unwrap()
        .into_iter()
        .map(|(name, bytes)| (Path::new(DIR).join(name), bytes))
        .collect()
}

#[test]
fn damage_is_named_by_file_and_offset() {
    let mut rng = StdRng::seed_from_u64(7);
    for seed in 0..400 {
        let (disk, model) = closed_log(seed);
        let files = files(&disk);
        assert!(files.len() > 3);
        let (path, bytes) = files.choose(&mut rng).unwrap();
        let at = rng.random_range(0..bytes.len());
        disk.damage(path, |bytes| bytes[at] ^= 1 << rng.random_range(0..8)).unwrap();
        let unproven = *path == files.last().unwrap().0 && at as u64 >= proven(bytes, files.len() as u64);
        match open(&disk.power_loss()) {
            // The last batch (here: the mark of the clean end, perhaps with a head) may itself be torn; nothing is lost with it.
            Ok(log) => {
                assert!(unproven, "byte {at} of {} was damaged and nobody noticed", path.display());
                assert_eq!(Model::of(&log), model);
            }
            Err(Error::Damaged { path: named, offset, .. }) => {
                assert_eq!(&named, path);
                let offset = usize::try_from(offset).unwrap();
                assert!(
                    offset <= at && at < offset + 120,
                    "byte {at} was damaged, offset {offset} was named"
                );
            }
            Err(error) => panic!("byte {at} of {}: {error}", path.display()),
        }
    }
}

#[test]
fn cut_swapped_and_missing_files_are_noticed() {
    for seed in 0..20 {
        let (disk, _) = closed_log(seed);
        let files = files(&disk);
        let (first, second) = (&files[0], &files[1]);
        // Cut at a record's end, which leaves only valid records.
        let head_end = segment::HEADER + record::decode(&first.1, 1, segment::HEADER).unwrap().size;
        disk.damage(&first.0, |bytes| bytes.truncate(head_end)).unwrap();
        let error = open(&disk).unwrap_err();
        assert!(
            matches!(&error, Error::Damaged { path, offset, .. } if *path == first.0 && *offset == head_end as u64),
            "{error}"
        );
        // Another file's content.
        disk.damage(&first.0, |bytes| *bytes = second.1.clone()).unwrap();
        let error = open(&disk).unwrap_err();
        assert!(
            matches!(&error, Error::Damaged { path, offset: 0, .. } if *path == first.0),
            "{error}"
        );
        disk.damage(&first.0, |bytes| *bytes = first.1.clone()).unwrap();
        open(&disk).unwrap();
        disk.remove(&second.0).unwrap();
        let error = open(&disk).unwrap_err();
        assert!(matches!(&error, Error::Missing { path } if *path == second.0), "{error}");
    }
}

/// A sync that failed can forget that a file gave back what it had taken ahead (seed 107 of the simulation).
#[test]
fn zeros_behind_a_whole_file_are_no_damage_but_a_lost_record_is() {
    let (disk, model) = closed_log(1);
    let (path, bytes) = files(&disk).swap_remove(0);
    disk.damage(&path, |bytes| bytes.resize(bytes.len() + 600, 0)).unwrap();
    assert_eq!(Model::of(&open(&disk.power_loss()).unwrap()), model);
    let disk = disk.power_loss();
    disk.damage(&path, |bytes| *bytes.last_mut().unwrap() = 1).unwrap();
    assert!(matches!(open(&disk), Err(Error::Damaged { .. })));
    // The last record is zeros, too.
    let (mut at, mut last) = (segment::HEADER, 0);
    while let Ok(record) = record::decode(&bytes, 1, at) {
        (last, at) = (at, at + record.size);
    }
    disk.damage(&path, |bytes| bytes[last..].fill(0)).unwrap();
    assert!(matches!(open(&disk), Err(Error::Damaged { .. })));
}

/// Up to where the records of a file prove that it was durable.
fn proven(bytes: &[u8], seq: u64) -> u64 {
    let (mut at, mut proven) = (segment::HEADER, 0);
    while let Ok(record) = record::decode(bytes, seq, at) {
        at += record.size;
        proven = proven.max(record.durable);
    }
    proven
}

#[test]
fn a_torn_tail_is_cut_and_the_log_goes_on() {
    for torn in [
        &[0_u8; 40][..],
        &record::MAGIC,
        &[0xFF, b'U', b'R', 0xFE, 1, 2, 3, 4, 255, 255, 255, 255, 2, 1, 0, 0],
        b"garbage of any kind",
    ] {
        let (disk, model) = closed_log(0);
        let (newest, bytes) = files(&disk).pop().unwrap();
        disk.damage(&newest, |bytes| bytes.extend_from_slice(torn)).unwrap();
        let log = open(&disk).unwrap();
        assert_eq!(Model::of(&log), model);
        let cut = disk.files(Path::new(DIR)).unwrap();
        assert_eq!(cut[newest.file_name().unwrap().to_str().unwrap()], bytes);
        now(log.append(vec![text(2, 30, 10)], Box::new(|result| result.unwrap()))).unwrap();
        assert_eq!(Model::of(&open(&disk.power_loss()).unwrap()).last(), Some(id(2, 30)));
    }
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let (disk, _) = closed_log(1);
    let (newest, _) = files(&disk).pop().unwrap();
    disk.damage(&newest, |bytes| {
        let crc = crc32c::crc32c_append(crc32c::crc32c(b"URSALOG\0"), &3_u32.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &bytes[16..24]);
        bytes[8..12].copy_from_slice(&3_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    })
    .unwrap();
    let error = open(&disk).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Newer {
                what: "log format",
                found: 3,
                known: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("run the version that wrote it"), "{error}");
}

#[test]
fn purging_removes_whole_files_and_survives() {
    let (disk, _) = closed_log(0);
    let before = files(&disk).len();
    let log = open(&disk).unwrap();
    now(log.purge(id(1, 20))).unwrap();
    let after = files(&disk);
    assert!(after.len() < before, "{} files of {before}", after.len());
    let log = open(&disk.power_loss()).unwrap();
    assert_eq!(log.state().purged, Some(id(1, 20)));
    assert_eq!(now(log.read(0..100, usize::MAX)).unwrap().len(), 9);
    assert_eq!(
        log.state().vote,
        Some(Vote {
            term: 1,
            node_id: 1,
            committed: true
        }),
        "from the head of a later file"
    );
}

#[test]
fn a_hole_is_refused_and_changes_nothing() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    let append = |entries| now(log.append(entries, Box::new(|result| result.unwrap())));
    append(vec![text(1, 0, 1), text(1, 1, 1)]).unwrap();
    assert!(matches!(append(vec![text(1, 3, 1)]), Err(Error::Hole { .. })));
    assert!(matches!(append(vec![text(1, 2, 1), text(1, 4, 1)]), Err(Error::Hole { .. })));
    assert_eq!(log.state().last, Some(id(1, 1)));
    append(vec![text(1, 2, 1)]).unwrap();
}

#[test]
fn reads_are_limited_by_bytes_but_never_empty() {
    let (disk, _) = closed_log(0);
    let log = open(&disk).unwrap();
    assert_eq!(now(log.read(3..30, 1)).unwrap().len(), 1);
    assert_eq!(now(log.read(3..30, 120)).unwrap().len(), 2);
    assert_eq!(
        now(log.read(3..7, usize::MAX))
            .unwrap()
            .iter()
            .map(|e| e.0.index)
            .collect::<Vec<_>>(),
        [3, 4, 5, 6]
    );
    assert!(now(log.read(30..40, usize::MAX)).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_share_syncs_on_a_real_disk_and_all_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let options = Options {
        segment_bytes: 64 << 10,
        cache_bytes: 4 << 10,
        ..Options::default()
    };
    let log = Log::open(disk.clone(), dir.path(), options, &Keys::default(), None).unwrap();
    let mut waiting = Vec::new();
    for index in 0..2000 {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done: super::Done = Box::new(move |result| sender.send(result).unwrap());
        log.append(vec![text(1, index, 100)], done).await.unwrap();
        waiting.push(receiver);
    }
    for receiver in waiting {
        receiver.await.unwrap().unwrap();
    }
    let all = log.read(0..2000, usize::MAX).await.unwrap();
    assert_eq!(all.len(), 2000);
    // Dropped, not closed: as if killed.
    drop(log);
    let log: Log<Text> = Log::open(disk, dir.path(), options, &Keys::default(), None).unwrap();
    assert_eq!(log.read(0..2000, usize::MAX).await.unwrap(), all);
    log.close().await.unwrap();
    assert!(matches!(
        log.save_vote(Vote {
            term: 1,
            node_id: 1,
            committed: false
        })
        .await,
        Err(Error::Failed(Failure::Closed))
    ));
}
