//! Which life of each member this node has met, and which of its own lives each member may have met: kept durably, so that neither a node
//! that lost its folder nor one that came back on a copy of it is ever taken for the one it was.
//! In: who speaks. Out: whether to listen. File: `peers.json` in the data folder.
//! Invariants: what a member says counts only after its folder was durably noted here; a folder once noted is never replaced; a later
//! start of a folder is noted only if the start known so far is among those that the member itself, durably, holds possible.
//!
//! A start is named by an id that its process draws (`boot`), not by its number, for a copy of a folder counts on like the original. What
//! a member may know of us is a handful of boots and not all there ever were, because it says itself what it knows before it notes anything
//! new: a start is introduced by [`Refusal::Introduce`], which names the boot known so far; that one and ours are written down, and only
//! then does the member note ours. So the list goes from what the member last said to know up to now. It grows only by starts that died
//! between writing it and hearing of it again; a start that never got as far as that leaves no trace at either end, so a node that fails
//! over and over at its start is never refused for it. Of [`MAX_POSSIBLE`] such deaths in a row the oldest are dropped: a member that answers
//! a later start has long said what became of those.
//!
//! A member that knows us by a boot that we never drew shows that we are the copy. One that knows us by a boot of ours that it had long
//! left behind has itself gone back in time: that is told from the other by the boots in `node.json`.
//! Source: why a wiped node must not vote, Raft dissertation 11.7.3 ("loss of state"), and "Protocol-Aware Recovery" (FAST 2018).
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Refusal;
use super::promises::Promise;
use crate::disk::{self, Disk};
use crate::error::OpenError;
use crate::folder::{Folder, Held};

/// A few members; more is something else.
const MAX_FILE: u64 = 1 << 20;
/// Members remembered at the most: ids are bounded by the CA that certifies them, this bounds the file all the same.
const MAX_KNOWN: usize = 1024;
/// Own boots that one member may know, at the most. Two in the normal run of things.
pub(crate) const MAX_POSSIBLE: usize = 16;

/// One life of a node: a data folder, how often it was opened, and the process that did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incarnation {
    pub(crate) folder: Uuid,
    pub(crate) start: u64,
    pub(crate) boot: Uuid,
}

/// A member as it shows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) life: Incarnation,
    /// Under which boots it may be known here; `None` from a program that does not keep them.
    pub(crate) past: Option<Vec<Uuid>>,
}

/// What a member was when it was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Met {
    life: Incarnation,
    /// It keeps under which boots it may be known.
    keeps: bool,
}

/// What is kept of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
struct Entry {
    met: Option<Met>,
    /// Under which boots of ours it may know this node, oldest first.
    ours: Vec<Uuid>,
    /// What it has confirmed of its log.
    promise: Option<Promise>,
}

/// An [`Entry`] in the file; the first three go together.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    folder: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<Uuid>,
    #[serde(default)]
    keeps: bool,
    #[serde(default)]
    ours: Vec<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    promise: Option<Promise>,
}

impl TryFrom<Written> for Entry {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let keeps = written.keeps;
        let met = match (written.folder, written.start, written.boot) {
            (Some(folder), Some(start), Some(boot)) => Some(Met {
                life: Incarnation { folder, start, boot },
                keeps,
            }),
            (None, None, None) => None,
            _ => return Err("folder, start and boot go together".to_owned()),
        };
        let (ours, promise) = (written.ours, written.promise);
        Ok(Self { met, ours, promise })
    }
}

impl From<Entry> for Written {
    fn from(entry: Entry) -> Self {
        let life = entry.met.map(|met| met.life);
        Self {
            folder: life.map(|life| life.folder),
            start: life.map(|life| life.start),
            boot: life.map(|life| life.boot),
            keeps: entry.met.is_some_and(|met| met.keeps),
            ours: entry.ours,
            promise: entry.promise,
        }
    }
}

/// What to make of a member that shows itself as `found`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Same,
    /// Not met before, or a later start of the same folder: to be noted.
    Note,
    /// The same, but it must first write down what is known of it.
    Introduce,
    OtherFolder,
    OlderCopy,
    Doubled,
}

fn judge(known: Option<&Met>, found: &Shown) -> Judged {
    // A program that does not keep its past cannot be asked to.
    let later = match &found.past {
        Some(past) if !past.contains(&found.life.boot) => Judged::Introduce,
        _ => Judged::Note,
    };
    let Some(Met { life, keeps }) = known else { return later };
    if life.folder != found.life.folder {
        return Judged::OtherFolder;
    }
    if life.boot == found.life.boot {
        return Judged::Same;
    }
    let past = found.past.as_deref().unwrap_or_default();
    if past.contains(&life.boot) {
        later
    } else if *keeps || !past.is_empty() {
        Judged::OlderCopy
    } else {
        // Its program did not keep its past when it was noted: the number is all there is.
        match life.start.cmp(&found.life.start) {
            Ordering::Less => later,
            Ordering::Equal => Judged::Doubled,
            Ordering::Greater => Judged::OlderCopy,
        }
    }
}

/// The boots under which a member may know us, now that it said `known` and `boot` is to be introduced to it.
fn possible(before: &[Uuid], known: Option<Uuid>, boot: Uuid) -> Vec<Uuid> {
    let since = known.and_then(|known| before.iter().position(|at| *at == known)).unwrap_or(0);
    let mut after: Vec<Uuid> = before.get(since..).unwrap_or_default().to_vec();
    if let Some(known) = known
        && after.first() != Some(&known)
    {
        after.insert(0, known);
    }
    if !after.contains(&boot) {
        after.push(boot);
    }
    // What it said counts in any case.
    let first = usize::from(known.is_some());
    let excess = after.len().saturating_sub(MAX_POSSIBLE);
    after.drain(first..first + excess);
    after
}

/// Whether the file must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Nobody was ever met: there is no group.
    Fine,
    /// Made now, so that it is missed later.
    Made,
    /// This node has its place in a group, so it has met somebody.
    Lost,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Known {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    held: Held,
    /// Of this node, as its folder remembers them.
    boots: Vec<Uuid>,
    entries: Arc<Mutex<BTreeMap<u64, Entry>>>,
    /// One writer of the file at a time.
    /// Held by whoever writes until the file is written, also when nobody waits for that any more.
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl Known {
    /// Reads the file. Blocks on the disk.
    ///
    /// # Errors
    /// It is there but cannot be read or understood; it is not there and must be.
    pub(crate) fn open(disk: Arc<dyn Disk>, folder: &Folder, missing: Missing) -> Result<Self, OpenError> {
        let path = folder.part("peers.json");
        let entries = match disk::read_file(&*disk, &path, MAX_FILE) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| OpenError::Folder {
                path: path.clone(),
                reason: error.to_string(),
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound && missing == Missing::Lost => {
                return Err(OpenError::PeersLost { path });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if missing == Missing::Made {
                    disk::write_atomic(&*disk, &path, b"{}\n").map_err(|source| OpenError::Io {
                        action: "write",
                        path: path.clone(),
                        source,
                    })?;
                }
                BTreeMap::new()
            }
            Err(source) => {
                return Err(OpenError::Io {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        Ok(Self {
            disk,
            path,
            held: folder.held(),
            boots: folder.boots().to_vec(),
            entries: Arc::new(Mutex::new(entries)),
            writing: Arc::default(),
        })
    }

    /// The life under which `node` is known.
    pub(crate) fn life_of(&self, node: u64) -> Option<Incarnation> {
        self.entries.lock().get(&node)?.met.map(|met| met.life)
    }

    /// Under which boots of ours `node` may know us.
    pub(crate) fn possible(&self, node: u64) -> Vec<Uuid> {
        self.entries.lock().get(&node).map(|entry| entry.ours.clone()).unwrap_or_default()
    }

    /// Whether a process on this folder, not too long ago, drew `boot`.
    pub(crate) fn was_ours(&self, boot: Uuid) -> bool {
        self.boots.contains(&boot)
    }

    /// Whether `node` is the one that is known, in whatever life.
    ///
    /// # Errors
    /// It is another one.
    pub(crate) fn recognise(&self, node: u64, found: &Shown) -> Result<(), Refusal> {
        match self.admit(node, found) {
            Ok(_) | Err(Refusal::Introduce { .. }) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// Whether to listen to `node`. What is new is durable on return.
    ///
    /// # Errors
    /// It is not the node that is known; or it cannot be noted.
    pub(crate) async fn meet(&self, node: u64, found: Shown) -> Result<(), Refusal> {
        if self.admit(node, &found)? {
            return Ok(());
        }
        let writing = self.writing.clone().lock_owned().await;
        if self.admit(node, &found)? {
            return Ok(());
        }
        let met = Met {
            life: found.life,
            keeps: found.past.is_some(),
        };
        self.change(writing, node, |entry| entry.met = Some(met)).await
    }

    /// Notes that `node`, which knew us as `known`, may from now on know us as `boot`. Durable on return.
    ///
    /// # Errors
    /// It cannot be noted.
    pub(crate) async fn introduce(&self, node: u64, known: Option<Uuid>, boot: Uuid) -> Result<(), Refusal> {
        let writing = self.writing.clone().lock_owned().await;
        let before = self.possible(node);
        let after = possible(&before, known, boot);
        if before == after {
            return Ok(());
        }
        self.change(writing, node, |entry| entry.ours = after).await
    }

    /// What each member is known to have confirmed of its log.
    pub(crate) fn promises(&self) -> BTreeMap<u64, Promise> {
        let entries = self.entries.lock();
        entries.iter().filter_map(|(node, entry)| Some((*node, entry.promise?))).collect()
    }

    /// Notes what `node` has confirmed. Durable on return.
    ///
    /// # Errors
    /// It cannot be noted.
    pub(crate) async fn promised(&self, node: u64, promise: Promise) -> Result<(), Refusal> {
        let noted = || self.entries.lock().get(&node).and_then(|entry| entry.promise) == Some(promise);
        if noted() {
            return Ok(());
        }
        let writing = self.writing.clone().lock_owned().await;
        if noted() {
            return Ok(());
        }
        self.change(writing, node, |entry| entry.promise = Some(promise)).await
    }

    /// Under the lock for writers. A caller that is gone does not end the write, nor the lock before it.
    async fn change(
        &self,
        writing: tokio::sync::OwnedMutexGuard<()>,
        node: u64,
        change: impl FnOnce(&mut Entry) + Send,
    ) -> Result<(), Refusal> {
        let mut entries = self.entries.lock().clone();
        if entries.len() >= MAX_KNOWN && !entries.contains_key(&node) {
            return Err(Refusal::Malformed {
                reason: "too many members".to_owned(),
            });
        }
        change(entries.entry(node).or_default());
        let (disk, path, held, known) = (self.disk.clone(), self.path.clone(), self.held.clone(), self.entries.clone());
        let text = serde_json::to_vec_pretty(&entries).unwrap_or_default();
        let written = disk::run(&*self.disk, move || {
            let _writing = writing;
            let _held = held.keep()?;
            disk::write_atomic(&*disk, &path, &text)?;
            *known.lock() = entries;
            Ok(())
        })
        .await;
        if let Err(error) = written {
            tracing::error!(path = %self.path.display(), %error, "cannot note who the members are");
            return Err(Refusal::Malformed {
                reason: "it cannot be noted who calls".to_owned(),
            });
        }
        Ok(())
    }

    /// `true`: nothing to note.
    fn admit(&self, node: u64, found: &Shown) -> Result<bool, Refusal> {
        let known = self.entries.lock().get(&node).and_then(|entry| entry.met);
        match judge(known.as_ref(), found) {
            Judged::Same => Ok(true),
            Judged::Note => Ok(false),
            Judged::Introduce => Err(Refusal::Introduce {
                node,
                known: known.map(|met| met.life.boot),
            }),
            Judged::OtherFolder => Err(Refusal::OtherFolder { node }),
            Judged::OlderCopy => Err(Refusal::OlderCopy { node }),
            Judged::Doubled => Err(Refusal::Doubled { node }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn life(folder: u128, start: u64, boot: u128) -> Incarnation {
        Incarnation {
            folder: id(folder),
            start,
            boot: id(boot),
        }
    }

    fn shown(life: Incarnation, past: &[u128]) -> Shown {
        let past = Some(past.iter().map(|n| id(*n)).collect());
        Shown { life, past }
    }

    /// As a program shows itself that does not keep its past.
    fn old(life: Incarnation) -> Shown {
        Shown { life, past: None }
    }

    fn open(disk: &SimDisk) -> Known {
        disk.create_dir("/node".as_ref()).unwrap();
        let (folder, _) = Folder::open(Arc::new(disk.clone()), "/node".as_ref(), 1).unwrap();
        Known::open(Arc::new(disk.clone()), &folder, Missing::Made).unwrap()
    }

    #[tokio::test]
    async fn a_folder_once_met_is_the_only_one_ever_after() {
        let disk = SimDisk::new(1);
        let known = open(&disk);
        let introduce = |known| Err(Refusal::Introduce { node: 2, known });
        assert_eq!(known.meet(2, shown(life(20, 1, 1), &[])).await, introduce(None));
        known.meet(2, shown(life(20, 1, 1), &[1])).await.unwrap();
        known.meet(2, shown(life(20, 1, 1), &[1])).await.unwrap();
        let other = Err(Refusal::OtherFolder { node: 2 });
        assert_eq!(known.meet(2, shown(life(21, 9, 5), &[1, 5])).await, other);
        // A later start writes down what is known, then it is noted.
        assert_eq!(known.meet(2, shown(life(20, 3, 2), &[1])).await, introduce(Some(id(1))));
        known.meet(2, shown(life(20, 3, 2), &[1, 2])).await.unwrap();
        let known = open(&disk.power_loss());
        assert_eq!(known.life_of(2), Some(life(20, 3, 2)));
        assert_eq!(known.meet(2, shown(life(21, 9, 5), &[2, 5])).await, other);
        known.meet(2, shown(life(20, 3, 2), &[1, 2])).await.unwrap();
    }

    #[tokio::test]
    async fn a_copy_is_one_however_often_it_was_started() {
        let known = open(&SimDisk::new(1));
        for boot in 1..=3 {
            known
                .meet(2, shown(life(20, 3 + boot as u64, boot), &[boot.max(2) - 1, boot]))
                .await
                .unwrap();
        }
        // Taken while boot 2 ran.
        let copy = Err(Refusal::OlderCopy { node: 2 });
        for start in 1..20 {
            assert_eq!(known.meet(2, shown(life(20, start, 77), &[1, 2, 77])).await, copy, "start {start}");
        }
        // Of two copies of what is known the first one counts.
        known.meet(2, shown(life(20, 7, 8), &[3, 8])).await.unwrap();
        assert_eq!(known.meet(2, shown(life(20, 7, 9), &[3, 9])).await, copy);
    }

    #[tokio::test]
    async fn programs_that_keep_no_past_are_judged_by_their_number_until_they_do() {
        let known = open(&SimDisk::new(1));
        known.meet(2, old(life(20, 3, 1))).await.unwrap();
        assert_eq!(known.meet(2, old(life(20, 2, 9))).await, Err(Refusal::OlderCopy { node: 2 }));
        assert_eq!(known.meet(2, old(life(20, 3, 9))).await, Err(Refusal::Doubled { node: 2 }));
        known.meet(2, old(life(20, 4, 2))).await.unwrap();
        // A newer program has nothing written down yet.
        let introduce = Refusal::Introduce {
            node: 2,
            known: Some(id(2)),
        };
        assert_eq!(known.meet(2, shown(life(20, 5, 3), &[])).await, Err(introduce));
        known.meet(2, shown(life(20, 5, 3), &[2, 3])).await.unwrap();
        // From then on it counts.
        for copy in [old(life(20, 6, 4)), shown(life(20, 6, 4), &[]), shown(life(20, 6, 4), &[2, 4])] {
            assert_eq!(known.meet(2, copy).await, Err(Refusal::OlderCopy { node: 2 }));
        }
    }

    #[tokio::test]
    async fn a_file_of_the_first_form_is_read_and_half_an_entry_is_not() {
        let disk = SimDisk::new(1);
        drop(open(&disk));
        let text = format!(r#"{{"2":{{"folder":"{}","start":3,"boot":"{}"}}}}"#, id(20), id(1));
        let path = std::path::Path::new("/node/peers.json");
        disk.damage(path, |bytes| *bytes = text.into_bytes()).unwrap();
        assert_eq!(open(&disk).life_of(2), Some(life(20, 3, 1)));
        let half = format!(r#"{{"2":{{"start":3,"boot":"{}"}}}}"#, id(1));
        disk.damage(path, |bytes| *bytes = half.into_bytes()).unwrap();
        let (folder, _) = Folder::open(Arc::new(disk.clone()), "/node".as_ref(), 1).unwrap();
        let open_with = |missing| Known::open(Arc::new(disk.clone()), &folder, missing);
        let error = open_with(Missing::Made).unwrap_err();
        assert!(matches!(error, OpenError::Folder { .. }), "{error}");
        disk.remove(path).unwrap();
        let error = open_with(Missing::Lost).unwrap_err();
        assert!(matches!(error, OpenError::PeersLost { .. }), "{error}");
        assert!(open_with(Missing::Fine).is_ok());
        assert!(!disk.files("/node".as_ref()).unwrap().contains_key("peers.json"));
    }

    /// Both ends of one pair, with a process that dies at any step and a peer that is away at any time: a node that runs on its own folder
    /// is never refused, the list stays short, and a copy taken at any time is refused once the original was noted again.
    #[tokio::test]
    async fn a_node_that_dies_over_and_over_is_never_taken_for_a_copy() {
        let mut rng = 7_u64;
        let mut draw = |n: u64| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (rng >> 33) % n
        };
        let (a, b) = (SimDisk::new(1), SimDisk::new(2));
        let b = open(&b);
        let (mut disk, mut copy) = (a, None);
        let mut noted_since_copy = 0;
        for start in 1..400_u64 {
            let boot = u128::from(start) + 1000;
            let known = open(&disk);
            // It gets as far as: nothing; a first call; what it writes down; the call after that.
            let away = draw(3) == 0;
            let reach = if away { 0 } else { draw(4) };
            let show = |known: &Known| Shown {
                life: life(20, start, boot),
                past: Some(known.possible(2)),
            };
            if reach >= 1 {
                match b.meet(1, show(&known)).await {
                    Err(Refusal::Introduce { node: 1, known: told }) => {
                        if reach >= 2 {
                            known.introduce(2, told, id(boot)).await.unwrap();
                        }
                        if reach >= 3 {
                            b.meet(1, show(&known)).await.unwrap();
                            noted_since_copy += 1;
                        }
                    }
                    other => panic!("start {start}: {other:?}"),
                }
            }
            assert!(known.possible(2).len() <= MAX_POSSIBLE);
            drop(known);
            disk = disk.power_loss();
            if start == 200 {
                let files = disk.files("/node".as_ref()).unwrap();
                (copy, noted_since_copy) = (Some(files["peers.json"].clone()), 0);
            }
        }
        assert!(noted_since_copy > 0);
        let copied = SimDisk::new(3);
        drop(open(&copied));
        copied.damage("/node/peers.json".as_ref(), |bytes| *bytes = copy.unwrap()).unwrap();
        let copied = open(&copied);
        for start in [201, 300, 399, 400, 900] {
            let found = Shown {
                life: life(20, start, 9999),
                past: Some(copied.possible(2)),
            };
            assert_eq!(b.meet(1, found).await, Err(Refusal::OlderCopy { node: 1 }));
        }
    }

    #[test]
    fn what_a_member_said_counts_however_many_starts_died_since() {
        let mut ours = Vec::new();
        for boot in 1..100 {
            ours = possible(&ours, (boot > 1).then_some(id(1)), id(boot));
            assert!(ours.len() <= MAX_POSSIBLE && ours.last() == Some(&id(boot)) && ours[0] == id(1));
        }
        assert_eq!(possible(&ours, Some(id(99)), id(100)), [id(99), id(100)]);
        assert_eq!(possible(&[], Some(id(5)), id(6)), [id(5), id(6)], "the first time it is kept");
    }
}
