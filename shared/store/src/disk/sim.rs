//! A disk in memory that loses power on demand, and with it whatever was not synced.
//! In: a seed. Out: [`Disk`]; [`SimDisk::power_loss`] gives the disk as the machine finds it afterwards.
//! Invariant: what survives is what was synced plus any subset of what was not: writes by sector, names one by one, in any order.
//! Lengths may grow without their content; nothing that was synced is ever lost or changed.
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Disk, DiskFile};

/// Bytes that a device writes whole or not at all.
const SECTOR: u64 = 512;

/// Shared handle to one simulated disk. After [`SimDisk::power_loss`] the handles (and files) from before fail.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    generation: u64,
}

#[derive(Debug)]
struct State {
    generation: u64,
    rng: StdRng,
    inodes: BTreeMap<u64, Inode>,
    dirs: BTreeMap<PathBuf, Dir>,
    next_inode: u64,
    /// Calls so far that change or sync something.
    ops: u64,
    /// The call with this number and all after it fail: the machine is off.
    off_at: Option<u64>,
    /// The sync with this number (counted from now) fails, and drops what it should have written.
    fail_sync_in: Option<(u64, ErrorKind)>,
    syncs: u64,
    /// How long a sync of the log takes.
    sync_time: Option<Range<Duration>>,
    /// Why nothing new is taken, see [`SimDisk::refuse`].
    refuses: Option<ErrorKind>,
}

#[derive(Debug, Default)]
struct Inode {
    live: Vec<u8>,
    /// Space is taken up to here, whatever the length.
    taken: u64,
    durable: Vec<u8>,
    pending: Vec<FileOp>,
}

#[derive(Debug)]
enum FileOp {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

#[derive(Debug, Default)]
struct Dir {
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<DirOp>,
}

#[derive(Clone, Debug)]
enum DirOp {
    Link(String, u64),
    Unlink(String),
    Rename { from: String, to: String, inode: u64 },
}

/// Whether the call just counted still happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// It goes during this call, which is left half done: it counts among the un-synced.
    Going,
    Off,
}

fn power_is_off() -> io::Error {
    io::Error::other("power is off")
}

/// What happens to the un-synced at a power loss; chosen anew for each file.
#[derive(Clone, Copy)]
enum Fate {
    AllLost,
    AllKept,
    /// The first so many operations survive; the next one is torn.
    Prefix(usize),
    /// Each operation and each sector of it by itself.
    Subset,
}

impl SimDisk {
    /// An empty disk; `seed` decides what a power loss takes.
    pub fn new(seed: u64) -> Self {
        let state = State {
            generation: 0,
            rng: StdRng::seed_from_u64(seed),
            inodes: BTreeMap::new(),
            dirs: BTreeMap::from([(PathBuf::from("/"), Dir::default())]),
            next_inode: 1,
            ops: 0,
            off_at: None,
            fail_sync_in: None,
            syncs: 0,
            sync_time: None,
            refuses: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            generation: 0,
        }
    }

    /// Number of calls so far that change or sync something.
    pub fn ops(&self) -> u64 {
        self.state.lock().ops
    }

    /// Number of `sync_data` calls that succeeded.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// The machine goes off during the `n`-th such call from now (0 = the next): that call and all later ones fail.
    pub fn power_off_in(&self, n: u64) {
        let mut state = self.state.lock();
        state.off_at = Some(state.ops + n);
    }

    /// The `n`-th `sync_data` from now (0 = the next) fails as a device error would, and what it should have written is gone.
    pub fn fail_sync_in(&self, n: u64) {
        self.fail_sync_with(n, ErrorKind::Other);
    }

    /// As [`SimDisk::fail_sync_in`], with this error.
    pub fn fail_sync_with(&self, n: u64, error: ErrorKind) {
        self.state.lock().fail_sync_in = Some((n, error));
    }

    /// From now on a sync of the log takes as long as `times` say, in simulated time. To be set before a store is opened on the disk.
    pub fn set_sync_time(&self, times: Range<Duration>) {
        self.state.lock().sync_time = Some(times);
    }

    /// From now on the disk takes nothing new, or (`None`) everything again. `StorageFull` and `QuotaExceeded`: what has its space already can
    /// be written; of anything else a part may be. `ReadOnlyFilesystem`: nothing at all changes.
    pub fn refuse(&self, why: Option<ErrorKind>) {
        self.state.lock().refuses = why;
    }

    /// Whether the machine is on and the process lives that got this handle.
    pub fn is_on(&self) -> bool {
        let state = self.state.lock();
        state.generation == self.generation && state.is_on()
    }

    /// Power is lost now (or was, see [`SimDisk::power_off_in`]) and returns: the disk as it is found. Old handles fail from here on.
    pub fn power_loss(&self) -> Self {
        let mut state = self.state.lock();
        let State { rng, inodes, dirs, .. } = &mut *state;
        for inode in inodes.values_mut() {
            inode.lose_power(rng);
        }
        for dir in dirs.values_mut() {
            dir.lose_power(rng);
        }
        state.generation += 1;
        state.off_at = None;
        state.fail_sync_in = None;
        Self {
            state: self.state.clone(),
            generation: state.generation,
        }
    }

    /// The process is killed but the machine lives: nothing is lost, old handles fail from here on. If the power went before,
    /// this is a [`SimDisk::power_loss`].
    pub fn process_kill(&self) -> Self {
        let mut state = self.state.lock();
        if state.power() != Power::On {
            drop(state);
            return self.power_loss();
        }
        state.generation += 1;
        state.off_at = None;
        state.fail_sync_in = None;
        Self {
            state: self.state.clone(),
            generation: state.generation,
        }
    }

    /// Changes durable bytes behind everyone's back, as a failing device does. `change` gets the whole content.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = state.find(path)?;
        let inode = state.inode(inode)?;
        change(&mut inode.live);
        inode.durable = inode.live.clone();
        inode.pending.clear();
        Ok(())
    }

    /// The files of `dir` with their content, synced or not.
    pub fn files(&self, dir: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
        let state = self.state.lock();
        let dir = state.dirs.get(dir).ok_or(ErrorKind::NotFound)?;
        let content = |inode: &u64| state.inodes.get(inode).map(|inode| inode.live.clone()).unwrap_or_default();
        Ok(dir.live.iter().map(|(name, inode)| (name.clone(), content(inode))).collect())
    }

    /// Begins a call: whether this handle is current and the machine on. `changes` counts it.
    fn enter(&self, changes: bool) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        if state.generation != self.generation {
            return Err(io::Error::other("the process that held this is dead"));
        }
        if changes {
            state.ops += 1;
        }
        Ok(state)
    }
}

impl State {
    fn power(&self) -> Power {
        match self.off_at {
            Some(at) if self.ops == at + 1 => Power::Going,
            Some(at) if self.ops > at => Power::Off,
            _ => Power::On,
        }
    }

    /// Whether the call that makes the power go is still to come.
    fn is_on(&self) -> bool {
        self.off_at.is_none_or(|at| self.ops <= at)
    }

    /// For calls of which nothing remains when the power goes during them.
    fn powered(&self) -> io::Result<()> {
        match self.power() {
            Power::On => Ok(()),
            Power::Going | Power::Off => Err(power_is_off()),
        }
    }

    /// For calls that change what is there without taking space.
    fn writable(&self) -> io::Result<()> {
        match self.refuses {
            Some(ErrorKind::ReadOnlyFilesystem) => Err(ErrorKind::ReadOnlyFilesystem.into()),
            _ => Ok(()),
        }
    }

    fn dir(&mut self, path: &Path) -> io::Result<(&mut Dir, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(ErrorKind::InvalidInput)?;
        let dir = path.parent().and_then(|dir| self.dirs.get_mut(dir)).ok_or(ErrorKind::NotFound)?;
        Ok((dir, name.to_owned()))
    }

    fn find(&mut self, path: &Path) -> io::Result<u64> {
        let (dir, name) = self.dir(path)?;
        dir.live.get(&name).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Inode {
    fn lose_power(&mut self, rng: &mut StdRng) {
        let pending = std::mem::take(&mut self.pending);
        let mut survivor = std::mem::take(&mut self.durable);
        let fate = Fate::choose(rng, pending.len());
        for (nth, op) in pending.iter().enumerate() {
            match (fate, op) {
                (Fate::AllLost, _) => break,
                (Fate::Prefix(kept), _) if nth > kept => break,
                (Fate::Prefix(kept), FileOp::Write { offset, data }) if nth == kept => {
                    let torn = rng.random_range(0..=data.len());
                    write(&mut survivor, *offset, data.get(..torn).unwrap_or_default());
                }
                (Fate::Subset, FileOp::Write { offset, data }) => write_some(&mut survivor, *offset, data, rng),
                (Fate::Subset, FileOp::SetLen(_)) if rng.random::<bool>() => {}
                (_, FileOp::Write { offset, data }) => write(&mut survivor, *offset, data),
                (_, FileOp::SetLen(len)) => set_len(&mut survivor, *len),
            }
        }
        self.durable = survivor;
        self.live = self.durable.clone();
        self.taken = self.live.len() as u64;
    }

    fn sync(&mut self) {
        // Not simply what is live: a sync that failed before has made the system forget some of it.
        for op in self.pending.drain(..) {
            match op {
                FileOp::Write { offset, data } => write(&mut self.durable, offset, &data),
                FileOp::SetLen(len) => set_len(&mut self.durable, len),
            }
        }
    }
}

impl Dir {
    fn change(&mut self, power: Power, op: DirOp) -> io::Result<()> {
        if power == Power::On {
            op.clone().apply(&mut self.live);
        }
        if power != Power::Off {
            self.pending.push(op);
        }
        if power == Power::On { Ok(()) } else { Err(power_is_off()) }
    }

    fn lose_power(&mut self, rng: &mut StdRng) {
        let pending = std::mem::take(&mut self.pending);
        let fate = Fate::choose(rng, pending.len());
        for (nth, op) in pending.into_iter().enumerate() {
            let lost = match fate {
                Fate::AllLost => true,
                Fate::AllKept => false,
                Fate::Prefix(kept) => nth >= kept,
                Fate::Subset => rng.random(),
            };
            if !lost {
                op.apply(&mut self.durable);
            }
        }
        self.live = self.durable.clone();
    }
}

impl DirOp {
    fn apply(self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name, inode);
            }
            Self::Unlink(name) => {
                names.remove(&name);
            }
            Self::Rename { from, to, inode } => {
                names.remove(&from);
                names.insert(to, inode);
            }
        }
    }
}

impl Fate {
    fn choose(rng: &mut StdRng, ops: usize) -> Self {
        match rng.random_range(0..6_u8) {
            0 => Self::AllLost,
            1 => Self::AllKept,
            2 | 3 => Self::Prefix(rng.random_range(0..=ops)),
            _ => Self::Subset,
        }
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn set_len(bytes: &mut Vec<u8>, len: u64) {
    bytes.resize(index(len), 0);
}

fn write(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (index(offset), index(offset) + data.len());
    if !data.is_empty() && bytes.len() < end {
        bytes.resize(end, 0);
    }
    if let Some(place) = bytes.get_mut(start..end) {
        place.copy_from_slice(data);
    }
}

/// Writes some sectors of `data`. A sector that is lost is a hole of zeros, or now and then what a deleted file left there.
fn write_some(bytes: &mut Vec<u8>, offset: u64, data: &[u8], rng: &mut StdRng) {
    let end = offset + data.len() as u64;
    let length_kept = rng.random::<bool>();
    let old_len = bytes.len() as u64;
    if length_kept && old_len < end {
        set_len(bytes, end);
        if rng.random_range(0..8_u8) == 0 {
            bytes.iter_mut().skip(index(old_len)).for_each(|byte| *byte = rng.random());
        }
    }
    let mut at = offset;
    while at < end {
        let stop = end.min((at / SECTOR + 1) * SECTOR);
        if rng.random::<bool>() {
            write(bytes, at, data.get(index(at - offset)..index(stop - offset)).unwrap_or_default());
        }
        at = stop;
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.enter(true)?;
        state.powered()?;
        for at in dir.ancestors() {
            state.dirs.entry(at.to_owned()).or_default();
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.enter(false)?;
        state.powered()?;
        Ok(state.dirs.get(dir).ok_or(ErrorKind::NotFound)?.live.keys().cloned().collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.enter(true)?;
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        let power = state.power();
        state.writable()?;
        // There may or may not be room for a name.
        if let Some(why) = state.refuses
            && state.rng.random()
        {
            return Err(why.into());
        }
        let (dir, name) = state.dir(path)?;
        if dir.live.contains_key(&name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        dir.change(power, DirOp::Link(name, inode))?;
        Ok(Arc::new(SimFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.enter(false)?;
        state.powered()?;
        let inode = state.find(path)?;
        Ok(Arc::new(SimFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.enter(true)?;
        let power = state.power();
        state.writable()?;
        let inode = state.find(from)?;
        let (_, to) = state.dir(to)?;
        let (dir, from) = state.dir(from)?;
        dir.change(power, DirOp::Rename { from, to, inode })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter(true)?;
        let power = state.power();
        state.writable()?;
        state.find(path)?;
        let (dir, name) = state.dir(path)?;
        dir.change(power, DirOp::Unlink(name))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.enter(true)?;
        state.powered()?;
        let dir = state.dirs.get_mut(dir).ok_or(ErrorKind::NotFound)?;
        dir.durable = dir.live.clone();
        dir.pending.clear();
        Ok(())
    }

    fn waits(&self) -> bool {
        false
    }

    fn sync_time(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        let times = state.sync_time.clone()?;
        Some(if times.is_empty() {
            times.start
        } else {
            state.rng.random_range(times)
        })
    }

    fn real_path(&self, _: &Path) -> Option<PathBuf> {
        None
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        let mut state = self.disk.enter(false)?;
        state.powered()?;
        Ok(state.inode(self.inode)?.live.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.disk.enter(false)?;
        state.powered()?;
        let live = &state.inode(self.inode)?.live;
        let rest = live.get(index(offset)..).unwrap_or_default();
        let read = rest.len().min(buf.len());
        buf.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(read)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.enter(true)?;
        let power = state.power();
        state.writable()?;
        let taken = state.inode(self.inode)?.taken;
        let inside = data.len().min(index(taken.saturating_sub(offset)));
        let refused = state.refuses.filter(|_| inside < data.len());
        let part = match refused {
            Some(_) => state.rng.random_range(inside..data.len()),
            None => data.len(),
        };
        let data = data.get(..part).unwrap_or_default();
        let inode = state.inode(self.inode)?;
        if power != Power::Off {
            inode.pending.push(FileOp::Write {
                offset,
                data: data.to_vec(),
            });
        }
        if power != Power::On {
            return Err(power_is_off());
        }
        write(&mut inode.live, offset, data);
        inode.taken = taken.max(inode.live.len() as u64);
        refused.map_or(Ok(()), |why| Err(why.into()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.enter(true)?;
        state.powered()?;
        state.writable()?;
        let inode = state.inode(self.inode)?;
        inode.pending.push(FileOp::SetLen(len));
        inode.taken = if len < inode.live.len() as u64 { len } else { inode.taken };
        set_len(&mut inode.live, len);
        Ok(())
    }

    /// The space is taken, but the file becomes less long than was asked for: enough to have a tail of zeros.
    fn reserve(&self, from: u64, len: u64) -> io::Result<()> {
        if let Some(why) = self.disk.enter(false)?.refuses {
            return Err(why.into());
        }
        self.set_len(from + len.min(SECTOR * 3))?;
        let mut state = self.disk.enter(false)?;
        let inode = state.inode(self.inode)?;
        inode.taken = inode.taken.max(from + len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.enter(true)?;
        state.powered()?;
        if let Some((n, error)) = state.fail_sync_in {
            state.fail_sync_in = n.checked_sub(1).map(|n| (n, error));
            if n == 0 {
                // The system forgets that the pages were dirty: what is read still shows them, what is on disk does not.
                state.inode(self.inode)?.pending.clear();
                return Err(io::Error::new(error, "input/output error"));
            }
        }
        state.syncs += 1;
        state.inode(self.inode)?.sync();
        Ok(())
    }
}
