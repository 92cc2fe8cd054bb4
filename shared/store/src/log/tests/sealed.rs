//! The log with keys: the same promises, nothing in the clear, and a new key at any moment.
use super::super::record::{self, Content};
use super::super::segment;
use super::*;
use crate::seal;
use crate::seal::tests::keys;

/// A rotation as the store does it: a new key, everything sealed anew, what was removed stays removed, the old key goes.
pub(super) fn rotate_at_times(disk: &SimDisk, keys: &Keys, life: &mut Life<'_>) {
    if keys.active().is_none() || life.rng.random_range(0..8) > 0 {
        return;
    }
    if keys.rotate().is_ok() && now(life.log.reseal()).is_ok() && disk.sync_dir(Path::new(DIR)).is_ok() {
        assert_eq!(life.log.foreign(), Vec::<u64>::new());
        keys.keep_only(keys.active_id().unwrap()).unwrap();
    }
}

fn files(disk: &SimDisk) -> BTreeMap<String, Vec<u8>> {
    disk.files(Path::new(DIR)).unwrap()
}

fn holds(disk: &SimDisk, wanted: &[u8]) -> bool {
    files(disk)
        .values()
        .any(|bytes| bytes.windows(wanted.len()).any(|window| window == wanted))
}

fn append(log: &Log<Text>, range: std::ops::Range<u64>) {
    for index in range {
        log.submit_batch(vec![Job {
            op: Op::Append(vec![text(1, index, 60)]),
            done: None,
        }])
        .unwrap();
    }
}

fn entries(log: &Log<Text>) -> Vec<Text> {
    now(log.read(0..u64::MAX, usize::MAX)).unwrap()
}

fn expected(range: std::ops::Range<u64>) -> Vec<Text> {
    range.map(|index| text(1, index, 60)).collect()
}

#[test]
fn no_acknowledged_entry_is_lost_at_any_power_loss_while_keys_change() {
    let checked: usize = (0..6000).map(|seed| play(seed, 3, &keys())).sum();
    assert!(checked > 60_000, "only {checked} acknowledged effects were put to the test");
}

#[test]
fn nothing_is_in_the_clear() {
    let disk = SimDisk::new(1);
    append(&open(&disk).unwrap(), 0..5);
    assert!(holds(&disk, b"entry 1.3"), "without keys it is there");
    let (disk, keys) = (SimDisk::new(1), keys());
    let log = open_with(&disk, &keys).unwrap();
    append(&log, 0..20);
    assert!(files(&disk).len() > 2);
    assert!(!holds(&disk, b"entry ") && !holds(&disk, b"xxxx"));
    assert!(holds(&disk, &keys.active_id().unwrap().0), "the files name their key");
    assert_eq!(entries(&log), expected(0..20));
    assert_eq!(entries(&open_with(&disk.power_loss(), &keys).unwrap()), expected(0..20));
}

#[test]
fn a_log_that_was_in_the_clear_is_sealed_anew() {
    let disk = SimDisk::new(1);
    append(&open(&disk).unwrap(), 0..20);
    let (disk, keys) = (disk.power_loss(), keys());
    let log = open_with(&disk, &keys).unwrap();
    let before = log.foreign().len();
    assert!(before > 2);
    append(&log, 20..21);
    assert_eq!(log.foreign().len(), before, "what comes is sealed");
    assert!(holds(&disk, b"entry 1.19") && !holds(&disk, b"entry 1.20"));
    now(log.reseal()).unwrap();
    assert!(log.foreign().is_empty() && !holds(&disk, b"entry "));
    append(&log, 21..25);
    now(log.truncate_after(Some(id(1, 22)))).unwrap();
    assert_eq!(entries(&log), expected(0..23));
    let disk = disk.power_loss();
    let log = open_with(&disk, &keys).unwrap();
    assert!(log.foreign().is_empty());
    assert_eq!(entries(&log), expected(0..23));
    // Once more, over files that were written anew before.
    let old = keys.active_id().unwrap();
    keys.rotate().unwrap();
    now(log.reseal()).unwrap();
    assert!(!holds(&disk, &old.0), "no file names the old key");
    keys.keep_only(keys.active_id().unwrap()).unwrap();
    now(log.purge(id(1, 9))).unwrap();
    assert_eq!(entries(&open_with(&disk.power_loss(), &keys).unwrap()), expected(10..23));
}

#[test]
fn files_of_another_ring_are_refused_and_left_alone() {
    let disk = SimDisk::new(1);
    let mine = keys();
    let old = {
        append(&open_with(&disk, &mine).unwrap(), 0..20);
        let disk = disk.power_loss();
        (disk.clone(), files(&disk))
    };
    let (disk, before) = old;
    for ring in [&keys(), &Keys::default()] {
        let error = open_with(&disk, ring).unwrap_err();
        let Error::Key { source, .. } = &error else { panic!("{error}") };
        assert!(
            matches!(source, seal::Error::UnknownKey { id } if Some(*id) == mine.active_id()),
            "{source}"
        );
        assert!(source.to_string().contains("restore a backup"), "{source}");
        assert_eq!(files(&disk), before, "nothing is cut");
    }
    // A torn tail is one all the same: what is there of it says nothing about keys.
    let newest = before.keys().next_back().unwrap();
    let mut torn = before[newest].clone();
    // Behind the last record is space that was taken ahead.
    let end = torn.iter().rposition(|byte| *byte != 0).unwrap();
    torn.truncate(end - 9);
    let path = Path::new(DIR).join(newest);
    disk.damage(&path, |bytes| bytes.clone_from(&torn)).unwrap();
    assert!(matches!(open_with(&disk, &keys()).unwrap_err(), Error::Key { .. }));
    assert_eq!(files(&disk)[newest], torn, "a wrong key cuts nothing");
    assert_eq!(entries(&open_with(&disk, &mine).unwrap()).len(), 19);
    // Files of before a rotation do not open with what the ring has then.
    mine.rotate().unwrap();
    mine.keep_only(mine.active_id().unwrap()).unwrap();
    assert!(matches!(open_with(&disk, &mine).unwrap_err(), Error::Key { .. }));
}

/// The file with its records given to `change` and written again, checksums and all.
fn edited(bytes: &[u8], change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    let mut payloads = Vec::new();
    let mut at = segment::HEADER;
    let mut head = Vec::new();
    let mut ids = Vec::new();
    while let Ok(record) = record::decode(bytes, 1, at) {
        match record.content {
            Content::Head(payload) => head = payload.to_vec(),
            Content::Entry(id, payload) => {
                ids.push(id);
                payloads.push(payload.to_vec());
            }
            other => panic!("{other:?}"),
        }
        at += record.size;
    }
    change(&mut payloads);
    let mut file = bytes[..segment::HEADER].to_vec();
    record::encode(&mut file, 1, 0, 0, &Content::Head(&head));
    for (id, payload) in ids.iter().zip(&payloads) {
        record::encode(&mut file, 1, 0, 0, &Content::Entry(*id, payload));
    }
    file
}

#[test]
fn entries_cannot_change_places() {
    let (disk, keys) = (SimDisk::new(1), keys());
    append(&open_with(&disk, &keys).unwrap(), 0..3);
    let disk = disk.power_loss();
    let (name, bytes) = files(&disk).pop_first().unwrap();
    let path = Path::new(DIR).join(name);
    disk.damage(&path, |file| *file = edited(&bytes, |_| {})).unwrap();
    assert_eq!(entries(&open_with(&disk, &keys).unwrap()), expected(0..3), "as it was");
    let changes: [fn(&mut Vec<Vec<u8>>); 3] = [|all| all.swap(0, 1), |all| all[1] = all[2].clone(), |all| all[0][20] ^= 1];
    for change in changes {
        disk.damage(&path, |file| *file = edited(&bytes, change)).unwrap();
        let log = open_with(&disk, &keys).unwrap();
        let error = now(log.read(0..3, usize::MAX)).unwrap_err();
        assert!(
            matches!(&error, Error::Damaged { reason, .. } if reason.contains("seal")),
            "{error}"
        );
    }
}

#[test]
fn a_file_that_was_written_anew_is_checked_as_any_other() {
    let (disk, keys) = (SimDisk::new(1), keys());
    append(&open_with(&disk, &keys).unwrap(), 0..20);
    keys.rotate().unwrap();
    let log = open_with(&disk, &keys).unwrap();
    now(log.reseal()).unwrap();
    drop(log);
    let disk = disk.power_loss();
    let (name, bytes) = files(&disk).pop_first().unwrap();
    let path = Path::new(DIR).join(&name);
    // What an interrupted one left is no part of the log.
    disk.create(&Path::new(DIR).join(format!("{name}.new"))).unwrap();
    assert_eq!(entries(&open_with(&disk, &keys).unwrap()), expected(0..20));
    assert!(!files(&disk).keys().any(|name| name.ends_with(".new")));
    // Cut at the end of a record, and damaged.
    let mut ends = Vec::new();
    let mut at = segment::HEADER;
    while let Ok(record) = record::decode(&bytes, 1, at) {
        at += record.size;
        ends.push(at);
    }
    assert!(ends.len() > 3 && at == bytes.len());
    for end in &ends[..ends.len() - 1] {
        disk.damage(&path, |file| *file = bytes[..*end].to_vec()).unwrap();
        assert!(
            matches!(open_with(&disk, &keys).unwrap_err(), Error::Damaged { .. }),
            "cut at {end}"
        );
    }
    for at in (0..bytes.len()).step_by(7) {
        disk.damage(&path, |file| {
            file.clone_from(&bytes);
            file[at] ^= 4;
        })
        .unwrap();
        let error = open_with(&disk, &keys).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. } | Error::Missing { .. }), "{at}: {error}");
    }
}

/// What sealing costs: `cargo test -p ursa-store --release --lib sealing_costs -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_types, reason = "it measures")]
fn sealing_costs() {
    use std::time::Instant;
    let ring = keys();
    let key = ring.active().unwrap();
    for len in [64_usize, 512, 4096, 65_536] {
        let content = vec![b'x'; len];
        let place = |n: u64| seal::Place::Entry {
            id: id(1, n),
            segment: 1,
            offset: n * 512,
        };
        let count = 2000;
        let sealed = key.seal(&place(7), &content).unwrap();
        // The best of some rounds: the machine does other things too.
        let best = |work: &dyn Fn()| {
            let rounds = (0..20).map(|_| {
                let begin = Instant::now();
                (0..count).for_each(|_| work());
                begin.elapsed().as_nanos() as f64 / f64::from(count)
            });
            rounds.fold(f64::INFINITY, f64::min)
        };
        let sealing = best(&|| drop(std::hint::black_box(key.seal(&place(7), &content).unwrap())));
        let opening = best(&|| drop(std::hint::black_box(key.open(&place(7), &sealed).unwrap())));
        let rate = |nanos: f64| len as f64 / nanos * 1000.0;
        println!(
            "{len:6} bytes: seal {sealing:7.0} ns ({:5.0} MB/s), open {opening:7.0} ns ({:5.0} MB/s)",
            rate(sealing),
            rate(opening)
        );
    }
    // Its share of an append that is synced, alone and in batches: medians, both in turn on the same disk.
    let dir = tempfile::tempdir().unwrap();
    for batch in [1_u64, 64] {
        let logs = [("clear", Keys::default()), ("sealed", ring.clone())].map(|(name, keys)| {
            let path = dir.path().join(format!("{name}{batch}"));
            let log: Log<Text> = Log::open(Arc::new(RealDisk), &path, Options::default(), &keys, None).unwrap();
            (name, log)
        });
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..300 {
            for ((_, log), times) in logs.iter().zip(&mut times) {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                let done: Done = Box::new(move |result| sender.send(result).unwrap());
                let entries = (0..batch).map(|n| text(1, round * batch + n, 500)).collect();
                let begin = Instant::now();
                now(log.append(entries, done)).unwrap();
                now(receiver).unwrap().unwrap();
                times.push(begin.elapsed().as_nanos() as f64 / 1000.0);
            }
        }
        for ((name, log), times) in logs.iter().zip(&mut times) {
            times.sort_by(f64::total_cmp);
            println!(
                "append of {batch} entries of 512 bytes, one sync, {name}: {:.0} us",
                times[times.len() / 2]
            );
            now(log.close()).unwrap();
        }
    }
}
