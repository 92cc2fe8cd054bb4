//! What was observed, on disk: so that a restart shows what it knew, as of when.
//! In: views of the observed tier. Out: one small file per zone, and the copies they hold.
//! Invariant: off the path of any change, at a bounded rate; a file is the old or the new one, never half; one that is damaged is
//! forgotten, with a warning: the zone tells again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tracing::warn;
use ursa_model::{Resource, Timestamp, ZoneName};
use ursa_runtime::{CancellationToken, error::Chain, fs, heartbeat};
use ursa_state::{
    Observed, ObservedView,
    observed::{Copy, CopyAt, Holder, Update},
};

use super::wire;

/// How often zones that changed are written.
const PERIOD: Duration = Duration::from_secs(10);
/// Files written per period; the longest unwritten first. Each costs an fsync beside those of the log.
const PER_PERIOD: usize = 32;
/// Files written when the process ends in order.
const AT_END: usize = 1_000;
/// Largest file that is read.
const MAX_FILE: u64 = 1024 * 1024 * 1024;
const SUFFIX: &str = ".json";
const FORMAT: &str = "ursa-observed-1";

/// Content of a file, behind a line with format and checksum.
#[derive(Serialize, Deserialize)]
struct Document<R> {
    zone: ZoneName,
    at: CopyAt,
    as_of: Timestamp,
    resources: Vec<R>,
}

/// The folder and what is in it.
pub(crate) struct Checkpoint {
    dir: PathBuf,
    /// What the file of a zone holds, and in which round it was written.
    written: BTreeMap<ZoneName, (CopyAt, u64)>,
    round: u64,
}

impl Checkpoint {
    /// Reads all files of `dir` into the tier: as copies that nobody vouches for. Blocks on the disk.
    pub(crate) fn load(dir: PathBuf, observed: &Observed) -> Self {
        let mut written = BTreeMap::new();
        let files = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in files.filter(|path| path.to_string_lossy().ends_with(SUFFIX)) {
            match read(&path) {
                Ok(document) => {
                    let (zone, at) = (document.zone.clone(), document.at);
                    let update = Update::Full {
                        zone: zone.as_str().into(),
                        at,
                        held: false,
                        as_of: document.as_of,
                        resources: document.resources.into_iter().map(Arc::new).collect(),
                    };
                    observed.merge(0, update);
                    written.insert(zone, (at, 0));
                }
                Err(why) => {
                    warn!(file = %path.display(), error = why, "what was observed of a zone cannot be read and is forgotten; the zone tells again");
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        Self { dir, written, round: 0 }
    }

    /// Writes until cancelled, and once more then.
    pub(crate) async fn run(self, observed: Observed, cancel: CancellationToken) {
        let mut ticker = heartbeat::every(PERIOD, &cancel);
        let mut checkpoint = self;
        loop {
            let go_on = ticker.tick().await;
            let (view, limit) = (observed.view(), if go_on { PER_PERIOD } else { AT_END });
            let round = spawn_blocking(move || {
                checkpoint.write(&view, limit);
                checkpoint
            });
            match round.await {
                Ok(same) if go_on => checkpoint = same,
                Ok(_) => return,
                Err(error) => {
                    warn!(error = %Chain(&error), "what is observed is not written any more");
                    return cancel.cancelled().await;
                }
            }
        }
    }

    /// One round. Blocks on the disk.
    fn write(&mut self, view: &ObservedView, limit: usize) {
        self.round += 1;
        let copies: BTreeMap<ZoneName, Copy> = view.copies().filter_map(|(zone, copy)| Some((zone.parse().ok()?, *copy))).collect();
        let gone: BTreeSet<ZoneName> = self.written.keys().filter(|zone| !copies.contains_key(*zone)).cloned().collect();
        for zone in gone {
            self.written.remove(&zone);
            let _ = std::fs::remove_file(self.path(&zone));
        }
        let mut due: Vec<(u64, &ZoneName, &Copy)> = copies
            .iter()
            .filter_map(|(zone, copy)| match self.written.get(zone) {
                Some((at, _)) if *at == copy.at => None,
                Some((_, round)) => Some((*round, zone, copy)),
                None => Some((0, zone, copy)),
            })
            .collect();
        due.sort_by_key(|(round, ..)| *round);
        for (_, zone, copy) in due.into_iter().take(limit) {
            let document = Document {
                zone: zone.clone(),
                at: copy.at,
                as_of: if copy.holder == Holder::Nobody {
                    copy.as_of
                } else {
                    Timestamp::now()
                },
                resources: view.of_zone(zone.as_str()).map(AsRef::as_ref).collect(),
            };
            match save(&self.dir, &self.path(zone), &document) {
                Ok(()) => {
                    self.written.insert(zone.clone(), (copy.at, self.round));
                }
                Err(error) => {
                    warn!(%zone, error = %Chain(&error), "what is observed of a zone cannot be written");
                    return;
                }
            }
        }
    }

    fn path(&self, zone: &ZoneName) -> PathBuf {
        self.dir.join(format!("{zone}{SUFFIX}"))
    }
}

fn save(dir: &Path, path: &Path, document: &Document<&Resource>) -> std::io::Result<()> {
    fs::create_dir(dir, 0o700)?;
    let body = serde_json::to_vec(document)?;
    let mut bytes = format!("{FORMAT} {:08x}\n", crc32c::crc32c(&body)).into_bytes();
    bytes.extend(body);
    fs::write_atomic(path, &bytes, fs::PRIVATE)
}

fn read(path: &Path) -> Result<Document<Resource>, String> {
    let bytes = fs::read_bounded(path, MAX_FILE).map_err(|error| error.to_string())?;
    let end = bytes.iter().position(|b| *b == b'\n').ok_or("it has no head")?;
    let (head, body) = (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default());
    let wanted = format!("{FORMAT} {:08x}", crc32c::crc32c(body));
    if head != wanted.as_bytes() {
        return Err("its format or checksum is not right".to_owned());
    }
    let document: Document<Resource> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let zone = document.zone.clone();
    let resources = document.resources.into_iter().map(|r| wire::check(r, &zone));
    let resources = resources.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    Ok(Document { resources, ..document })
}
