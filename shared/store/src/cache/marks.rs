//! Whether a cache may be used again: two small files beside sled's own.
//! `boot` names the boot of the machine under which it was written; `clean` says that it was closed in order, and lists sled's files
//! with length and checksum as they were then.
//! Invariant: `clean` is written after everything it speaks of is on disk, and removed, durably, before anything changes.
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use ursa_runtime::fs::{PRIVATE, create_dir, write_atomic};

use super::Error;

/// Where Linux says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Longest of the two files: sled has one file per large value.
const MAX_MARK: u64 = 16 << 20;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Clean {
    files: Vec<(PathBuf, u64, u32)>,
}

/// Id of this boot of the machine; empty (never equal to one) if there is none.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

pub(super) fn db_path(dir: &Path) -> PathBuf {
    dir.join("db")
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// Whether what is in `dir` may be used. From here on it counts as in use.
pub(super) fn begin(dir: &Path, boot_id: &str) -> Result<bool, Error> {
    let clean = match ursa_runtime::fs::read_bounded(&dir.join("clean"), MAX_MARK) {
        Ok(bytes) => serde_json::from_slice::<Clean>(&bytes)
            .ok()
            .is_some_and(|clean| files(&db_path(dir)).is_ok_and(|files| files == clean.files)),
        Err(_) => {
            let same_boot = ursa_runtime::fs::read_bounded(&dir.join("boot"), MAX_MARK).is_ok_and(|boot| boot == boot_id.as_bytes());
            same_boot && !boot_id.is_empty()
        }
    };
    if clean {
        mark_used(dir, boot_id)?;
    }
    Ok(clean)
}

fn mark_used(dir: &Path, boot_id: &str) -> Result<(), Error> {
    let clean = dir.join("clean");
    match std::fs::remove_file(&clean) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io_error("remove", &clean)(error)),
        _ => {}
    }
    let boot = dir.join("boot");
    write_atomic(&boot, boot_id.as_bytes(), PRIVATE).map_err(io_error("write", &boot))
}

/// Removes everything and begins anew.
pub(super) fn wipe(dir: &Path, boot_id: &str) -> Result<(), Error> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io_error("remove", dir)(error)),
        _ => {}
    }
    create_dir(dir, 0o700).map_err(io_error("make", dir))?;
    mark_used(dir, boot_id)
}

/// Makes sled's files durable, then says so.
pub(super) fn end(dir: &Path) -> Result<(), Error> {
    let db = db_path(dir);
    let listed = files(&db).map_err(io_error("read", &db))?;
    for (name, ..) in &listed {
        let path = db.join(name);
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(io_error("sync", &path))?;
        let parent = path.parent().unwrap_or(&db);
        File::open(parent)
            .and_then(|dir| dir.sync_all())
            .map_err(io_error("sync", parent))?;
    }
    File::open(&db).and_then(|dir| dir.sync_all()).map_err(io_error("sync", &db))?;
    let clean = dir.join("clean");
    let text = serde_json::to_vec(&Clean { files: listed }).map_err(|error| io_error("write", &clean)(error.into()))?;
    write_atomic(&clean, &text, PRIVATE).map_err(io_error("write", &clean))
}

/// All files below `db`, with length and checksum, sorted.
fn files(db: &Path) -> io::Result<Vec<(PathBuf, u64, u32)>> {
    let mut found = Vec::new();
    let mut folders = vec![db.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let (len, sum) = sum(&path)?;
            found.push((path.strip_prefix(db).map_err(io::Error::other)?.to_owned(), len, sum));
        }
    }
    found.sort();
    Ok(found)
}

fn sum(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let (mut len, mut sum) = (0, 0);
    let mut buf = vec![0; 1 << 18];
    loop {
        let read = file.read(&mut buf)?;
        if read == 0 {
            return Ok((len, sum));
        }
        len += read as u64;
        sum = crc32c::crc32c_append(sum, buf.get(..read).unwrap_or_default());
    }
}
