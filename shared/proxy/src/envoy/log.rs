//! Envoy's log file: private, bounded, and quoted when Envoy dies.
//! In: the path, a size. Out: a fresh file at start, one older generation, its last lines.
//! Invariant: readable by our user alone (a refused bootstrap may be printed into it, token included).
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ursa_runtime::fs::PRIVATE;

/// Enough for the last lines; a single line can be a whole configuration.
const TAIL_BYTES: u64 = 64 * 1024;
/// The reason is among the last lines.
const TAIL_LINES: usize = 8;
/// More of one line tells nobody anything.
const LINE_CHARS: usize = 400;

/// Envoy's log file.
#[derive(Clone, Debug)]
pub struct LogFile {
    path: PathBuf,
}

impl LogFile {
    /// Nothing is touched before [`LogFile::rotate`] or [`LogFile::open`].
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its path, for `--log-path`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it for appending; made 0600 if missing. Envoy appends too, so lines do not overwrite each other.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(PRIVATE).open(&self.path)
    }

    /// Renames it to `….1`, replacing the older one. Nothing to do if there is none.
    ///
    /// # Errors
    /// The folder does not allow it.
    pub fn rotate(&self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        match std::fs::rename(&self.path, old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Its size in bytes; 0 if it is not there.
    pub fn size(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }

    /// Its last lines on one line, joined by ` | `, each shortened, every one of `secrets` replaced.
    pub fn tail(&self, secrets: &[&str]) -> String {
        match self.last_bytes() {
            Ok(bytes) => quote(&String::from_utf8_lossy(&bytes), secrets),
            Err(error) => format!("its log cannot be read: {error}"),
        }
    }

    fn last_bytes(&self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

fn quote(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "***");
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
    let short = |line: &&str| line.chars().filter(|c| !c.is_control()).take(LINE_CHARS).collect::<String>();
    if last.is_empty() {
        "it logged nothing".to_owned()
    } else {
        last.iter().map(short).collect::<Vec<_>>().join(" | ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_private_and_keeps_one_older_generation() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFile::new(dir.path().join("envoy.log"));
        log.rotate().unwrap();
        for text in ["first", "second", "third"] {
            log.rotate().unwrap();
            log.open().unwrap().write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::metadata(log.path()).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert_eq!(log.tail(&[]), "third");
        assert_eq!(std::fs::read_to_string(dir.path().join("envoy.log.1")).unwrap(), "second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_tail_is_short_and_holds_no_secret() {
        let lines: String = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let text = format!("{lines}bad: token ey.J.w in {}\n", "x".repeat(10_000));
        let tail = quote(&text, &["ey.J.w", ""]);
        assert!(tail.starts_with("line 93 | line 94"), "{tail}");
        assert!(tail.contains("token *** in") && tail.len() < 1000);
        assert_eq!(quote("\n \n", &[]), "it logged nothing");
    }
}
