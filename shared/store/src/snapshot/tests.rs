use std::path::Path;
use std::sync::Arc;

use ursa_model::{ResourceKey, Timestamp};
use ursa_state::{Changeset, Command, Expect, HistoryId, Op, Put, RequestId, State};

use super::*;
use crate::codec::StoredMembers;
use crate::disk::SimDisk;
use crate::seal::tests::keys;

const DIR: &str = "/node/snapshots";

fn state(upto: u64) -> State {
    let mut state = State::default();
    state.apply(1, &Command::Init { history: HistoryId(7) });
    for index in 2..=upto {
        let key = ResourceKey::mesh_itself(&format!("m{index}")).unwrap();
        let put = Put {
            key,
            labels: Default::default(),
            spec: serde_json::json!({"n": index}),
            status: None,
            owner: None,
            expect: Expect::Any,
        };
        let id = RequestId(u128::from(index));
        state.apply(index, &Command::Change(Changeset::atomic(id, Timestamp(index), vec![Op::Put(put)])));
    }
    state
}

fn meta(state: &State) -> Meta {
    let last = Some(EntryId {
        term: 1,
        index: state.applied_index(),
    });
    Meta {
        last,
        members: StoredMembers::default(),
        history: state.history_id(),
        revision: state.view().revision(),
    }
}

fn open(disk: &SimDisk) -> (Snapshots, Option<Loaded>, Vec<Error>) {
    open_with(disk, &Keys::default())
}

fn open_with(disk: &SimDisk, keys: &Keys) -> (Snapshots, Option<Loaded>, Vec<Error>) {
    Snapshots::open(Arc::new(disk.clone()), Path::new(DIR), keys).unwrap()
}

fn same(a: &State, b: &State) -> bool {
    let document = |state: &State| {
        let mut bytes = Vec::new();
        state.write_snapshot(&mut bytes).unwrap();
        bytes
    };
    document(a) == document(b)
}

#[test]
fn the_newest_is_found_again_and_two_generations_are_kept() {
    let disk = SimDisk::new(1);
    let (snapshots, none, _) = open(&disk);
    assert!(none.is_none() && snapshots.newest().is_none());
    for (upto, purgeable) in [(5, None), (9, Some(5)), (20, Some(9))] {
        let state = state(upto);
        snapshots.save(&meta(&state), &state).unwrap();
        assert_eq!(snapshots.purgeable().borrow().map(|id| id.index), purgeable);
    }
    let disk = disk.power_loss();
    let (snapshots, loaded, damaged) = open(&disk);
    assert_eq!(
        disk.list(Path::new(DIR)).unwrap().len(),
        2,
        "also when the power loss undid a removal"
    );
    let loaded = loaded.unwrap();
    assert!(damaged.is_empty() && same(&loaded.state, &state(20)));
    assert_eq!(loaded.meta, meta(&state(20)));
    assert_eq!(snapshots.purgeable().borrow().map(|id| id.index), Some(9));
}

#[test]
fn saving_can_be_cut_short_anywhere() {
    let (old, new) = (state(5), state(30));
    for seed in 0..300 {
        let disk = SimDisk::new(seed);
        let (snapshots, ..) = open(&disk);
        snapshots.save(&meta(&old), &old).unwrap();
        disk.power_off_in(seed % 8);
        let saved = snapshots.save(&meta(&new), &new).is_ok();
        let (_, loaded, damaged) = open(&disk.power_loss());
        let loaded = loaded.unwrap();
        assert!(damaged.is_empty(), "seed {seed}: {damaged:?}");
        assert!(
            same(&loaded.state, &new) || (!saved && same(&loaded.state, &old)),
            "seed {seed}, saved {saved}"
        );
    }
}

#[test]
fn a_damaged_newest_gives_way_to_the_older() {
    for bit in 0..8 {
        let disk = SimDisk::new(1);
        let (snapshots, ..) = open(&disk);
        let (old, new) = (state(5), state(9));
        snapshots.save(&meta(&old), &old).unwrap();
        let newest = snapshots.save(&meta(&new), &new).unwrap().path;
        let len = disk.files(Path::new(DIR)).unwrap()[newest.file_name().unwrap().to_str().unwrap()].len();
        for at in 0..len {
            // A copy, so that each byte is damaged alone.
            let disk = SimDisk::new(1);
            let (snapshots, ..) = open(&disk);
            snapshots.save(&meta(&old), &old).unwrap();
            snapshots.save(&meta(&new), &new).unwrap();
            disk.damage(&newest, |bytes| bytes[at] ^= 1 << bit).unwrap();
            let (_, loaded, damaged) = open(&disk);
            assert!(same(&loaded.unwrap().state, &old), "byte {at}");
            assert!(
                matches!(&damaged[..], [Error::Damaged { path, .. }] if *path == newest),
                "byte {at}: {damaged:?}"
            );
            let names = disk.list(Path::new(DIR)).unwrap();
            assert!(names.iter().any(|name| name.ends_with(".damaged")), "{names:?}");
        }
    }
}

#[test]
fn cut_files_are_damaged_and_newer_ones_refused() {
    let disk = SimDisk::new(1);
    let (snapshots, ..) = open(&disk);
    let state = state(5);
    let path = snapshots.save(&meta(&state), &state).unwrap().path;
    for len in [0, 1, 15, 16, 31, 32, 100] {
        let disk = SimDisk::new(1);
        open(&disk).0.save(&meta(&state), &state).unwrap();
        disk.damage(&path, |bytes| bytes.truncate(len)).unwrap();
        let (_, loaded, damaged) = open(&disk);
        assert!(loaded.is_none() && damaged.len() == 1, "{len} bytes");
    }
    disk.damage(&path, |bytes| {
        bytes[8] = 3;
        let end = bytes.len() - 8;
        let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..end + 4].copy_from_slice(&crc);
    })
    .unwrap();
    let error = Snapshots::open(Arc::new(disk), Path::new(DIR), &Keys::default()).unwrap_err();
    assert!(matches!(error, Error::Newer { found: 3, known: 2, .. }), "{error}");
}

/// The layout is a promise to every later version: this test changes only together with the format.
#[test]
fn golden_file() {
    let disk = SimDisk::new(1);
    let state = State::default();
    let path = open(&disk).0.save(&meta(&state), &state).unwrap().path;
    assert_eq!(path.file_name().unwrap(), "00000000000000000000-00000000000000000001.snap");
    let bytes = disk
        .files(Path::new(DIR))
        .unwrap()
        .remove(path.file_name().unwrap().to_str().unwrap())
        .unwrap();
    let meta = r#"{"last":{"term":1,"index":0},"members":{"since":null,"members":{"voters":[],"nodes":{}}},"history":"00000000000000000000000000000000","revision":0}"#;
    assert_eq!(&bytes[..12], b"URSASNAP\x02\0\0\0");
    assert_eq!(bytes[12..16], u32::try_from(meta.len()).unwrap().to_le_bytes());
    assert_eq!(std::str::from_utf8(&bytes[16..16 + meta.len()]).unwrap(), meta);
    let content = bytes.len() - 16 - meta.len() - 16;
    assert_eq!(bytes[bytes.len() - 16..bytes.len() - 8], (content as u64).to_le_bytes());
    assert_eq!(&bytes[bytes.len() - 4..], b"END\n");
}

/// Behind one that came from elsewhere there is no log, and nothing older that would do.
#[test]
fn one_from_elsewhere_can_lose_a_file_too() {
    let elsewhere = SimDisk::new(2);
    let (sent, newer) = (state(20), state(30));
    let from = open(&elsewhere).0.save(&meta(&sent), &sent).unwrap();
    for damaged in [None, Some(0), Some(1)] {
        let disk = SimDisk::new(1);
        let (snapshots, ..) = open(&disk);
        let old = state(5);
        snapshots.save(&meta(&old), &old).unwrap();
        assert!(same(&snapshots.adopt(&from).unwrap().state, &sent));
        assert_eq!(snapshots.purgeable().borrow().map(|id| id.index), Some(20));
        let names = disk.list(Path::new(DIR)).unwrap();
        assert_eq!(names.len(), 2, "{names:?}");
        if let Some(nth) = damaged {
            let path = Path::new(DIR).join(&names[nth]);
            disk.damage(&path, |bytes| bytes[100] ^= 1).unwrap();
        }
        let (snapshots, loaded, found) = open(&disk.power_loss());
        assert_eq!(found.len(), usize::from(damaged.is_some()));
        assert!(same(&loaded.unwrap().state, &sent), "{damaged:?}");
        // The next one needs a single file again.
        snapshots.save(&meta(&newer), &newer).unwrap();
        let purgeable = snapshots.purgeable().borrow().map(|id| id.index);
        assert_eq!(purgeable, Some(20));
    }
}

fn bytes_of(disk: &SimDisk) -> Vec<u8> {
    disk.files(Path::new(DIR)).unwrap().into_values().flatten().collect()
}

fn holds(disk: &SimDisk, wanted: &[u8]) -> bool {
    bytes_of(disk).windows(wanted.len()).any(|window| window == wanted)
}

#[test]
fn sealed_ones_are_found_again_and_damage_is_noticed_as_ever() {
    let keys = keys();
    let (old, new) = (state(5), state(9));
    let filled = || {
        let disk = SimDisk::new(1);
        let (snapshots, ..) = open_with(&disk, &keys);
        snapshots.save(&meta(&old), &old).unwrap();
        let newest = snapshots.save(&meta(&new), &new).unwrap();
        assert_eq!(newest.check().unwrap(), meta(&new));
        (disk, newest.path)
    };
    let (disk, newest) = filled();
    assert!(!holds(&disk, b"URSASNAP") && !holds(&disk, b"revision"));
    assert!(same(&open_with(&disk.power_loss(), &keys).1.unwrap().state, &new));
    let len = disk.files(Path::new(DIR)).unwrap()[newest.file_name().unwrap().to_str().unwrap()].len();
    for at in 0..len {
        let (disk, newest) = filled();
        disk.damage(&newest, |bytes| bytes[at] ^= 1 << (at % 8)).unwrap();
        let (_, loaded, damaged) = open_with(&disk, &keys);
        assert!(same(&loaded.unwrap().state, &old), "byte {at}");
        assert!(matches!(&damaged[..], [Error::Damaged { .. }]), "byte {at}: {damaged:?}");
    }
    // Intact, but of another ring: refused, and left alone.
    let (disk, _) = filled();
    let before = disk.files(Path::new(DIR)).unwrap();
    let error = Snapshots::open(Arc::new(disk.clone()), Path::new(DIR), &Keys::default()).unwrap_err();
    assert!(matches!(error, Error::Key { .. }) && !error.is_damage(), "{error}");
    assert_eq!(disk.files(Path::new(DIR)).unwrap(), before);
}

#[test]
fn a_new_key_can_be_cut_short_anywhere() {
    let (old, new) = (state(5), state(30));
    let mut whole = 0;
    for seed in 0..200 {
        let (disk, keys) = (SimDisk::new(seed), keys());
        let first = keys.active_id().unwrap();
        // The older one in the clear, as before there were keys.
        let (snapshots, ..) = open(&disk);
        snapshots.save(&meta(&old), &old).unwrap();
        let disk = disk.power_loss();
        let (snapshots, ..) = open_with(&disk, &keys);
        snapshots.save(&meta(&new), &new).unwrap();
        assert_eq!(snapshots.foreign().unwrap().len(), 1);
        keys.rotate().unwrap();
        assert_eq!(snapshots.foreign().unwrap().len(), 2);
        disk.power_off_in(seed % 40);
        let done = snapshots.reseal().is_ok() && disk.sync_dir(Path::new(DIR)).is_ok();
        let disk = disk.power_loss();
        if done {
            keys.keep_only(keys.active_id().unwrap()).unwrap();
            assert!(!holds(&disk, &first.0) && !holds(&disk, b"URSASNAP"), "seed {seed}");
            whole += 1;
        }
        let (snapshots, loaded, damaged) = open_with(&disk, &keys);
        assert!(damaged.is_empty() && same(&loaded.unwrap().state, &new), "seed {seed}");
        assert_eq!(snapshots.purgeable().borrow().map(|id| id.index), Some(5));
        snapshots.reseal().unwrap();
        assert!(snapshots.foreign().unwrap().is_empty());
    }
    assert!(whole > 20 && whole < 180, "{whole}");
}

#[test]
fn what_is_received_is_never_in_the_clear_and_damaged_ones_go_with_their_key() {
    let (disk, keys, state) = (SimDisk::new(1), keys(), state(9));
    let plain = SimDisk::new(2);
    let sent = open(&plain).0.save(&meta(&state), &state).unwrap().open().unwrap();
    let (snapshots, ..) = open_with(&disk, &keys);
    let (file, path) = snapshots.receiving().unwrap();
    let content = crate::disk::read_all(&*sent, 1 << 20).unwrap();
    for (nth, part) in content.chunks(100).enumerate() {
        file.write_at(nth as u64 * 100, part).unwrap();
    }
    assert!(!holds(&disk, b"URSASNAP") && !holds(&disk, b"revision"));
    let received = RaftSnapshot::aside(Arc::new(disk.clone()), path, file);
    assert_eq!(received.check().unwrap(), meta(&state));
    let loaded = snapshots.adopt(&received).unwrap();
    drop(received);
    assert!(same(&loaded.state, &state) && !holds(&disk, b"revision"));
    let names = disk.list(Path::new(DIR)).unwrap();
    assert_eq!(names.len(), 2, "{names:?}");
    for name in &names {
        disk.damage(&Path::new(DIR).join(name), |bytes| bytes.truncate(100)).unwrap();
    }
    let (snapshots, none, _) = open_with(&disk, &keys);
    let names = disk.list(Path::new(DIR)).unwrap();
    assert!(none.is_none() && names.iter().all(|name| name.ends_with(DAMAGED)), "{names:?}");
    snapshots.reseal().unwrap();
    assert_eq!(disk.list(Path::new(DIR)).unwrap().len(), 2, "their key is still the active one");
    keys.rotate().unwrap();
    snapshots.reseal().unwrap();
    assert!(disk.list(Path::new(DIR)).unwrap().is_empty());
}
