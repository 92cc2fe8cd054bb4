//! What the simulated disk keeps and loses.
use super::*;

fn disk_with(content: &[u8], seed: u64) -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = SimDisk::new(seed);
    disk.create_dir(Path::new("/d")).unwrap();
    let file = disk.create(Path::new("/d/f")).unwrap();
    file.write_at(0, content).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    (disk, file)
}

#[test]
fn what_was_synced_survives_and_the_rest_may_not() {
    let mut kept = 0;
    for seed in 0..200 {
        let (disk, file) = disk_with(b"safe", seed);
        file.write_at(4, b"+more").unwrap();
        let disk = disk.power_loss();
        assert!(file.size().is_err(), "handles from before are dead");
        let after = crate::disk::read_file(&disk, Path::new("/d/f"), 100).unwrap();
        assert!(after.starts_with(b"safe"), "{after:?}");
        kept += u32::from(after == b"safe+more");
    }
    assert!((20..180).contains(&kept), "{kept} of 200 kept the un-synced write");
}

#[test]
fn a_name_needs_its_folder_synced() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let (disk, file) = disk_with(b"old", seed);
        let new = disk.create(Path::new("/d/f.new")).unwrap();
        new.write_at(0, b"new").unwrap();
        new.sync_data().unwrap();
        disk.rename(Path::new("/d/f.new"), Path::new("/d/f")).unwrap();
        drop(file);
        let disk = disk.power_loss();
        seen.insert(crate::disk::read_file(&disk, Path::new("/d/f"), 100).unwrap());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [b"new".to_vec(), b"old".to_vec()]);
}

#[test]
fn the_power_goes_at_the_chosen_call() {
    let (disk, file) = disk_with(b"x", 1);
    disk.power_off_in(1);
    file.write_at(1, b"y").unwrap();
    file.write_at(2, b"z").unwrap_err();
    file.sync_data().unwrap_err();
    let disk = disk.power_loss();
    assert!(disk.open(Path::new("/d/f")).is_ok());
}

#[test]
fn a_full_disk_takes_what_has_its_space_already() {
    let (disk, file) = disk_with(b"old", 1);
    file.reserve(3, 1000).unwrap();
    disk.refuse(Some(ErrorKind::StorageFull));
    file.write_at(3, &[7; 1000]).unwrap();
    assert_eq!(file.write_at(1003, b"more").unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(
        file.write_at(900, &[8; 1000]).unwrap_err().kind(),
        ErrorKind::StorageFull,
        "a part of it is there"
    );
    let mut read = [0; 103];
    assert_eq!(file.read_at(900, &mut read).unwrap(), 103);
    assert_eq!(read, [8; 103]);
    assert!(file.reserve(1003, 1).is_err());
    file.sync_data().unwrap();
    disk.remove(Path::new("/d/f")).unwrap();
    disk.refuse(None);
    file.write_at(1003, b"more").unwrap();
}

#[test]
fn a_read_only_disk_changes_nothing() {
    let (disk, file) = disk_with(b"old", 1);
    file.reserve(3, 1000).unwrap();
    disk.refuse(Some(ErrorKind::ReadOnlyFilesystem));
    for refused in [
        file.write_at(0, b"new"),
        file.set_len(1),
        file.reserve(3, 1),
        disk.remove(Path::new("/d/f")),
        disk.rename(Path::new("/d/f"), Path::new("/d/g")),
        disk.create(Path::new("/d/g")).map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }
    let mut read = [0; 3];
    file.read_at(0, &mut read).unwrap();
    assert_eq!(&read, b"old");
}
