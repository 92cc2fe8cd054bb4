//! One key, the ring, sealed files: what opens where, and what is said when it does not.
use std::path::Path;
use std::sync::Arc;

use super::file::{Unopened, Writer, key_of, open as open_file};
use super::*;
use crate::disk::{Disk, DiskFile, SimDisk};
use crate::folder::Folder;
use crate::log::EntryId;

const DIR: &str = "/node";

fn kek(n: u8) -> Kek {
    Kek::parse(&format!("{n:02x}{}", "5a".repeat(31))).unwrap()
}

fn given(kek: &Kek) -> Encryption {
    Encryption {
        kek: Some(kek.clone()),
        previous: Vec::new(),
    }
}

fn ring(disk: &SimDisk, encryption: Option<&Encryption>) -> Result<Keys, Error> {
    let (mut folder, _) = Folder::open(Arc::new(disk.clone()), Path::new(DIR), 1).unwrap();
    Keys::open(&mut folder, encryption)
}

fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
    disk.files(Path::new(DIR)).unwrap().remove(name)
}

#[test]
fn what_is_sealed_opens_only_with_its_key_at_its_place() {
    let key = DataKey::for_now().unwrap();
    let id = EntryId { term: 2, index: 7 };
    let entry = |id, segment, offset| Place::Entry { id, segment, offset };
    let at = entry(id, 3, 64);
    let sealed = key.seal(&at, b"content").unwrap();
    assert_eq!(sealed.len(), b"content".len() + OVERHEAD);
    assert_eq!(key.open(&at, &sealed).unwrap(), b"content");
    assert_ne!(key.seal(&at, b"content").unwrap(), sealed, "no nonce is used twice");
    let file = [1; 16];
    for other in [
        entry(EntryId { term: 3, ..id }, 3, 64),
        entry(EntryId { index: 8, ..id }, 3, 64),
        entry(id, 4, 64),
        entry(id, 3, 72),
        Place::Block {
            file: &file,
            number: 7,
            last: false,
        },
        Place::Value(b"key"),
        Place::Key(KeyId(file)),
    ] {
        assert_eq!(key.open(&other, &sealed), Err(Sealed), "{other:?}");
    }
    assert_eq!(DataKey::for_now().unwrap().open(&at, &sealed), Err(Sealed));
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(key.open(&at, &changed), Err(Sealed), "bit {bit}");
    }
    for len in 0..sealed.len() {
        assert_eq!(key.open(&at, &sealed[..len]), Err(Sealed), "cut to {len}");
    }
    let block = |number, last| Place::Block { file: &file, number, last };
    let sealed = key.seal(&block(1, false), b"").unwrap();
    assert_eq!(key.open(&block(1, false), &sealed).unwrap(), b"");
    assert!(key.open(&block(1, true), &sealed).is_err() && key.open(&block(2, false), &sealed).is_err());
}

#[test]
fn nonces_are_drawn_anew_for_each_message() {
    let key = DataKey::for_now().unwrap();
    let nonces: std::collections::BTreeSet<Vec<u8>> = (0..5000)
        .map(|_| key.seal(&Place::Value(b"k"), b"v").unwrap()[..12].to_vec())
        .collect();
    assert_eq!(nonces.len(), 5000);
}

#[test]
fn keys_are_taken_as_people_write_them_and_never_shown() {
    let hex = "00".repeat(31) + "ff";
    let one = Kek::parse(&hex).unwrap();
    for same in [
        hex.to_uppercase(),
        format!("  {hex}\n"),
        "A".repeat(41) + "P8=",
        "A".repeat(41) + "P8",
    ] {
        assert_eq!(Kek::parse(&same).unwrap().id(), one.id(), "{same}");
    }
    assert_ne!(kek(1).id(), kek(2).id());
    for bad in ["", "secret", &"0".repeat(63), &"g".repeat(64), &"A".repeat(42), &"A".repeat(88)] {
        assert_eq!(Kek::parse(bad).unwrap_err(), BadKek::NotAKey, "{bad}");
    }
    assert_eq!(Kek::parse(&"00".repeat(32)).unwrap_err(), BadKek::NotRandom);
    let disk = SimDisk::new(1);
    let keys = ring(
        &disk,
        Some(&Encryption {
            kek: Some(one.clone()),
            previous: vec![],
        }),
    )
    .unwrap();
    let shown = format!("{one:?} {keys:?} {:?}", keys.active().unwrap());
    assert!(!shown.contains(&hex) && shown.contains("***"), "{shown}");
}

#[test]
fn a_ring_is_made_once_and_found_again() {
    let mut disk = SimDisk::new(1);
    let first = ring(&disk, Some(&Encryption::default())).unwrap();
    let sealed = first.active().unwrap().seal(&Place::Value(b"k"), b"v").unwrap();
    let (file, own) = (content(&disk, RING_FILE).unwrap(), content(&disk, KEK_FILE).unwrap());
    for _ in 0..3 {
        disk = disk.power_loss();
        let again = ring(&disk, Some(&Encryption::default())).unwrap();
        assert_eq!(again.ids(), first.ids());
        assert_eq!(again.active().unwrap().open(&Place::Value(b"k"), &sealed).unwrap(), b"v");
        assert_eq!(
            (content(&disk, RING_FILE).unwrap(), content(&disk, KEK_FILE).unwrap()),
            (file.clone(), own.clone())
        );
    }
}

#[test]
fn making_it_and_rotating_it_can_be_cut_short_anywhere() {
    let mut rotated = 0;
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        disk.power_off_in(seed % 60);
        let cut = Folder::open(Arc::new(disk.clone()), Path::new(DIR), 1).map(|(mut folder, _)| {
            let keys = Keys::open(&mut folder, Some(&Encryption::default()))?;
            let made = keys.rotate().and_then(|_| keys.rotate());
            Ok::<_, Error>((keys, made))
        });
        let disk = disk.power_loss();
        let found = ring(&disk, Some(&Encryption::default())).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        if let Ok(Ok((_, Ok(newest)))) = cut {
            assert_eq!(
                (found.active_id(), found.ids().len()),
                (Some(newest), 3),
                "seed {seed}: what was answered is there"
            );
            assert_eq!(found.keep_only(newest).unwrap(), 2);
            assert_eq!(ring(&disk.power_loss(), Some(&Encryption::default())).unwrap().ids(), [newest]);
            rotated += 1;
        }
    }
    assert!(rotated > 20, "only {rotated}");
}

#[test]
fn rotations_do_not_pile_up() {
    let disk = SimDisk::new(1);
    let keys = ring(&disk, Some(&Encryption::default())).unwrap();
    let first = keys.active_id().unwrap();
    let error = loop {
        if let Err(error) = keys.rotate() {
            break error;
        }
    };
    assert!(matches!(error, Error::Busy { keys: 8 }), "{error}");
    assert_eq!(keys.keep_only(first).unwrap(), 0, "it is not the active one");
    assert_eq!(keys.keep_only(keys.active_id().unwrap()).unwrap(), 7);
    assert!(matches!(keys.get(first), Err(Error::UnknownKey { id }) if id == first));
    assert!(matches!(Keys::default().rotate(), Err(Error::Off)));
}

#[test]
fn another_key_encryption_key_takes_over() {
    let disk = SimDisk::new(1);
    let ids = ring(&disk, Some(&Encryption::default())).unwrap().ids();
    // From the folder to one that is given: the one in the folder goes, once it is not needed.
    let moved = ring(&disk, Some(&given(&kek(1)))).unwrap();
    assert_eq!((moved.ids(), moved.kek_id().unwrap()), (ids.clone(), kek(1).id().to_owned()));
    assert_eq!(content(&disk, KEK_FILE), None);
    let disk = disk.power_loss();
    let both = Encryption {
        kek: Some(kek(2)),
        previous: vec![kek(9), kek(1)],
    };
    assert_eq!(ring(&disk, Some(&both)).unwrap().ids(), ids);
    let disk = disk.power_loss();
    assert_eq!(
        ring(&disk, Some(&given(&kek(2)))).unwrap().ids(),
        ids,
        "wrapped by the new one alone"
    );
    let before = disk.files(Path::new(DIR)).unwrap();
    let error = ring(&disk, Some(&given(&kek(1)))).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::WrongKek { .. }) && text.contains(kek(2).id()) && text.contains("previous_key_files"),
        "{text}"
    );
    let error = ring(&disk, Some(&Encryption::default())).unwrap_err();
    assert!(matches!(&error, Error::KekLost { wanted, .. } if wanted == kek(2).id()), "{error}");
    let after = disk.files(Path::new(DIR)).unwrap();
    assert_eq!(
        (&before[RING_FILE], before.len()),
        (&after[RING_FILE], after.len()),
        "nothing was changed"
    );
}

#[test]
fn a_given_key_that_is_the_one_in_the_folder_leaves_it_there() {
    let disk = SimDisk::new(1);
    ring(&disk, Some(&Encryption::default())).unwrap();
    let own = Kek::parse(std::str::from_utf8(&content(&disk, KEK_FILE).unwrap()).unwrap()).unwrap();
    ring(&disk, Some(&given(&own))).unwrap();
    assert!(content(&disk, KEK_FILE).is_some(), "it may be the very file");
}

#[test]
fn taking_over_can_be_cut_short_anywhere() {
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let ids = ring(&disk, Some(&Encryption::default())).unwrap().ids();
        let (mut folder, _) = Folder::open(Arc::new(disk.clone()), Path::new(DIR), 1).unwrap();
        disk.power_off_in(seed % 10);
        let _ = Keys::open(&mut folder, Some(&given(&kek(1))));
        let disk = disk.power_loss();
        assert_eq!(ring(&disk, Some(&given(&kek(1)))).unwrap().ids(), ids, "seed {seed}");
    }
}

#[test]
fn what_is_gone_or_damaged_is_named_with_the_way_out() {
    let made = || {
        let disk = SimDisk::new(1);
        ring(&disk, Some(&Encryption::default())).unwrap();
        disk
    };
    let on = Encryption::default();
    let disk = made();
    let error = ring(&disk, None).unwrap_err();
    assert!(matches!(error, Error::SwitchedOff), "{error}");
    disk.remove(&Path::new(DIR).join(RING_FILE)).unwrap();
    let error = ring(&disk, Some(&on)).unwrap_err();
    assert!(
        matches!(error, Error::RingLost { .. }) && error.to_string().contains("restore a backup"),
        "{error}"
    );
    assert!(matches!(ring(&disk, None).unwrap_err(), Error::SwitchedOff));
    let disk = made();
    disk.remove(&Path::new(DIR).join(KEK_FILE)).unwrap();
    let error = ring(&disk, Some(&on)).unwrap_err();
    assert!(
        matches!(error, Error::KekLost { .. }) && error.to_string().contains("encryption.key_file"),
        "{error}"
    );
    let change = |name: &str, from: &str, to: &str| {
        let disk = made();
        disk.damage(&Path::new(DIR).join(name), |bytes| {
            *bytes = String::from_utf8(bytes.clone()).unwrap().replacen(from, to, 1).into_bytes();
        })
        .unwrap();
        ring(&disk, Some(&on)).unwrap_err()
    };
    assert!(matches!(change(KEK_FILE, "\n", "x\n"), Error::BadKek { .. }));
    assert!(matches!(
        change(RING_FILE, "\"format\": 1", "\"format\": 2"),
        Error::Newer { found: 2, .. }
    ));
    assert!(matches!(change(RING_FILE, "{", ""), Error::RingDamaged { .. }));
    assert!(matches!(
        change(RING_FILE, "\"wrapped\": \"", "\"wrapped\": \"AAAA"),
        Error::RingDamaged { .. }
    ));
    let error = change(
        RING_FILE,
        "\"active\": \"",
        "\"active\": \"00000000000000000000000000000000\", \"x\": \"",
    );
    assert!(
        matches!(&error, Error::RingDamaged { reason, .. } if reason.contains("active")),
        "{error}"
    );
}

#[test]
fn without_encryption_there_is_nothing() {
    let disk = SimDisk::new(1);
    let keys = ring(&disk, None).unwrap();
    assert!(keys.active().is_none() && keys.ids().is_empty());
    assert!(content(&disk, RING_FILE).is_none() && content(&disk, KEK_FILE).is_none());
    assert!(
        ring(&disk, Some(&Encryption::default())).unwrap().active().is_some(),
        "it can be switched on later"
    );
}

// Files.

const BLOCK: usize = 64 << 10;

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
}

fn sealed_file(disk: &SimDisk, keys: &Keys, name: &str, content: &[u8], step: usize) -> Arc<dyn DiskFile> {
    let file = disk.create(&Path::new(DIR).join(name)).unwrap();
    let writer = Writer::new(file.clone(), keys.active().unwrap()).unwrap();
    for (nth, part) in content.chunks(step).enumerate() {
        writer.write_at((nth * step) as u64, part).unwrap();
    }
    assert!(writer.write_at(content.len() as u64 + 1, b"x").is_err(), "no holes");
    let mut back = vec![0; content.len() + 1];
    assert_eq!(writer.read_at(0, &mut back).unwrap(), content.len(), "what was written can be read");
    assert_eq!(back[..content.len()], *content);
    writer.finish().unwrap();
    file
}

fn all(file: &dyn DiskFile) -> std::io::Result<Vec<u8>> {
    crate::disk::read_all(file, 1 << 30)
}

#[test]
fn a_sealed_file_reads_as_what_was_written() {
    let disk = SimDisk::new(1);
    let keys = ring(&disk, Some(&Encryption::default())).unwrap();
    for (nth, len) in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 17]
        .into_iter()
        .enumerate()
    {
        for step in [BLOCK / 3 + 1, 2 * BLOCK + 5, 1 << 20] {
            let content = bytes(len);
            let file = sealed_file(&disk, &keys, &format!("{nth}-{step}"), &content, step);
            assert_eq!(key_of(&*file).unwrap(), keys.active_id());
            let opened = open_file(file.clone(), &keys).unwrap();
            assert_eq!(
                (opened.size().unwrap(), all(&*opened).unwrap()),
                (len as u64, content.clone()),
                "{len}"
            );
            let mut part = vec![0; 100];
            let from = len.saturating_sub(60);
            let read = opened.read_at(from as u64, &mut part).unwrap();
            assert_eq!(part[..read], content[from..]);
            let raw = all(&*file).unwrap();
            assert!(
                content.len() < 16 || !raw.windows(16).any(|window| window == &content[..16]),
                "nothing is in the clear"
            );
        }
    }
    let plain = disk.create(Path::new("/node/plain")).unwrap();
    plain.write_at(0, b"plain").unwrap();
    assert_eq!(
        (key_of(&*plain).unwrap(), all(&*open_file(plain, &keys).unwrap()).unwrap()),
        (None, b"plain".to_vec())
    );
}

#[test]
fn a_file_that_is_not_what_was_written_does_not_open() {
    let disk = SimDisk::new(1);
    let keys = ring(&disk, Some(&Encryption::default())).unwrap();
    let content = bytes(3 * BLOCK + 100);
    let path = Path::new(DIR).join("file");
    let file = sealed_file(&disk, &keys, "file", &content, BLOCK);
    let whole = all(&*file).unwrap();
    // Damage is seen without a key, and named as such.
    for at in [8, 20, 40, 60, whole.len() / 2, whole.len() - 20, whole.len() - 10, whole.len() - 1] {
        disk.damage(&path, |bytes| {
            *bytes = whole.clone();
            bytes[at] ^= 1;
        })
        .unwrap();
        for keys in [&keys, &Keys::default()] {
            let error = open_file(file.clone(), keys).unwrap_err();
            assert!(matches!(error, Unopened::Damaged(_)), "{at}: {error:?}");
        }
    }
    for len in [0, 4, 30, 48, 100, whole.len() / 2, whole.len() - 1] {
        disk.damage(&path, |bytes| *bytes = whole[..len].to_vec()).unwrap();
        match open_file(file.clone(), &keys) {
            Ok(_) => assert!(len < 8, "cut to {len}"),
            Err(error) => assert!(matches!(error, Unopened::Damaged(_)), "{len}: {error:?}"),
        }
    }
    disk.damage(&path, |bytes| *bytes = whole.clone()).unwrap();
    // Intact, but the key is not there.
    let other = ring(&SimDisk::new(2), Some(&Encryption::default())).unwrap();
    assert!(
        matches!(open_file(file.clone(), &other).unwrap_err(), Unopened::Key(Error::UnknownKey { id }) if Some(id) == keys.active_id())
    );
    // Blocks that change places, with a checksum that fits.
    let sealed = BLOCK + OVERHEAD;
    disk.damage(&path, |bytes| {
        let (first, second) = bytes[48..].split_at_mut(sealed);
        first.swap_with_slice(&mut second[..sealed]);
        let end = bytes.len() - 8;
        let sum = crc32c::crc32c(&bytes[..end]);
        bytes[end..end + 4].copy_from_slice(&sum.to_le_bytes());
    })
    .unwrap();
    let error = all(&*open_file(file.clone(), &keys).unwrap()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
    // A file that was cut behind a block, and given a new end.
    disk.damage(&path, |bytes| {
        *bytes = whole[..48 + sealed].to_vec();
        bytes.extend_from_slice(&(BLOCK as u64).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
        bytes.extend_from_slice(b"SEAL");
    })
    .unwrap();
    let error = all(&*open_file(file, &keys).unwrap()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
}

/// The keys of a folder on a disk of their own.
pub(crate) fn keys() -> Keys {
    ring(&SimDisk::new(0), Some(&Encryption::default())).unwrap()
}
