use std::path::Path;
use std::sync::Arc;

use ursa_model::Timestamp;
use ursa_pki::age::Identity;
use ursa_runtime::tasks::Tasks;
use ursa_state::{By, GAP, HistoryId, State};

use super::recover::{self, Survey};
use super::restore::{self, RestoreError};
use super::*;
use crate::disk::{Disk, SimDisk};
use crate::log::EntryId;
use crate::testing::on_disk;
use crate::tests::{value, write as put};
use crate::{OpenError, Store, StoreConfig};

const DIR: &str = "/node";
const NOW: Timestamp = Timestamp(1_800_000_000_000);

fn config() -> StoreConfig {
    StoreConfig::new(DIR, 1)
}

fn shared(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

/// A store with `a` to 1 and `b` to 2, and its backup for `identity`.
async fn backed_up(identity: &Identity) -> (Store, Vec<u8>) {
    let store = crate::testing::in_memory(&Tasks::new()).await;
    put(&store, "a", 1).await.unwrap();
    put(&store, "b", 2).await.unwrap();
    let mut file = Vec::new();
    let export = store.export("test", NOW).await.unwrap();
    export.write(&[identity.recipient()], &mut file).unwrap();
    (store, file)
}

fn opened<'a>(identity: &Identity, file: &'a [u8]) -> Result<Backup<&'a [u8]>, Error> {
    Backup::open(&Identity::read_all(&identity.secret_text())?, file)
}

fn read(identity: &Identity, file: &[u8]) -> Result<State, Error> {
    opened(identity, file)?.state()
}

fn refused<T>(result: Result<T, Error>) -> Error {
    match result {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_backup_holds_everything_at_one_revision() {
    let identity = Identity::generate().unwrap();
    let (store, file) = backed_up(&identity).await;
    let head = opened(&identity, &file).unwrap().head;
    put(&store, "a", 3).await.unwrap();
    let state = read(&identity, &file).unwrap();
    let view = state.view();
    assert_eq!((value(view, "a"), value(view, "b")), (Some(1), Some(2)));
    assert_eq!((head.history, head.revision), (view.history_id(), view.revision()));
    assert_eq!((head.resources(), head.kinds["Mesh"], head.node), (2, 2, 1));
    assert_eq!(opened(&identity, &file).unwrap().check().unwrap(), {
        let mut document = Vec::new();
        state.write_snapshot(&mut document).unwrap();
        document.len() as u64
    });
    assert!(!file.windows(4).any(|part| part == b"mesh" || part == b"Mesh"), "it is encrypted");
    let other = Identity::generate().unwrap();
    let error = refused(read(&other, &file));
    assert!(error.to_string().contains("none of them belongs to the identities"), "{error}");
}

#[tokio::test]
async fn a_backup_that_was_cut_anywhere_or_changed_is_refused() {
    let identity = Identity::generate().unwrap();
    let (_, file) = backed_up(&identity).await;
    for len in (0..file.len()).step_by(7).chain(file.len() - 60..file.len()) {
        for error in [
            refused(read(&identity, &file[..len])),
            refused(opened(&identity, &file[..len]).and_then(Backup::check)),
        ] {
            assert!(matches!(error, Error::CutShort), "{len} bytes: {error}");
            assert!(error.to_string().contains("use another copy"));
        }
    }
    for at in (0..file.len()).step_by(3) {
        let mut bad = file.clone();
        bad[at] ^= 4;
        refused(read(&identity, &bad));
        refused(opened(&identity, &bad).and_then(Backup::check));
    }
}

/// What would be inside an intact envelope.
fn sealed(identity: &Identity, content: &[u8]) -> Vec<u8> {
    let mut writer = age::Writer::new(&[identity.recipient()], Vec::new()).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

#[tokio::test]
async fn what_is_wrong_inside_is_named() {
    let identity = Identity::generate().unwrap();
    let (_, file) = backed_up(&identity).await;
    let mut inside = Vec::new();
    age::Reader::new(std::slice::from_ref(&identity), file.as_slice())
        .unwrap()
        .read_to_end(&mut inside)
        .unwrap();
    let with = |change: fn(&mut Vec<u8>)| {
        let mut changed = inside.clone();
        change(&mut changed);
        sealed(&identity, &changed)
    };
    let newer = refused(read(&identity, &with(|bytes| bytes[8] = 2)));
    assert!(matches!(newer, Error::Newer { found: 2, known: 1 }) && newer.to_string().contains("use the version"));
    assert!(matches!(
        refused(read(&identity, &with(|bytes| bytes[0] = b'X'))),
        Error::NotABackup(_)
    ));
    assert!(matches!(refused(read(&identity, b"hello\n")), Error::NotABackup(_)));
    for change in [
        (|bytes| bytes[300] ^= 1) as fn(&mut Vec<u8>),
        |bytes| {
            let at = bytes.len() - 70;
            bytes[at] ^= 1;
        },
        |bytes| {
            let at = bytes.len() - 20;
            bytes[at] ^= 1;
        },
    ] {
        let error = refused(opened(&identity, &with(change)).and_then(Backup::check));
        assert!(matches!(error, Error::Damaged(_)), "{error}");
        refused(read(&identity, &with(change)));
    }
    let short = with(|bytes| bytes.truncate(bytes.len() - 1));
    assert!(matches!(
        refused(opened(&identity, &short).and_then(Backup::check)),
        Error::CutShort
    ));
}

async fn restored(disk: &SimDisk, head: &Head, state: &State) -> Result<(HistoryId, Origin), RestoreError> {
    restore::restore(&config(), &shared(disk), head, state, NOW).await
}

#[tokio::test]
async fn a_restored_node_goes_on_in_a_history_of_its_own() {
    let identity = Identity::generate().unwrap();
    let (old, file) = backed_up(&identity).await;
    let head = opened(&identity, &file).unwrap().head;
    let state = read(&identity, &file).unwrap();
    let disk = SimDisk::new(7);
    let (history, origin) = restored(&disk, &head, &state).await.unwrap();
    let tasks = Tasks::new();
    let disk = disk.power_loss();
    let store = on_disk(&disk, &tasks).await.unwrap();
    let view = store.view();
    assert_eq!((value(&view, "a"), value(&view, "b")), (Some(1), Some(2)));
    assert!(view.history_id() == history && history != old.view().history_id());
    assert_eq!(
        (origin.by, origin.history, origin.revision),
        (By::Restore, head.history, head.revision)
    );
    assert_eq!(view.origin(), Some(&origin));
    assert_eq!(view.revision(), origin.begins);
    let next = put(&store, "c", 3).await.unwrap();
    assert!(next > GAP && next > origin.begins);
    store.shutdown().await.unwrap();
    // It starts again, and is never restored over.
    let disk = disk.power_loss();
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    assert_eq!((store.view().history_id(), value(&store.view(), "c")), (history, Some(3)));
    let error = restored(&disk, &head, &state).await.unwrap_err();
    assert!(
        matches!(&error, RestoreError::NotEmpty { found, .. } if found.contains(&"node.json".to_owned())),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_backup_of_a_newer_feature_level_is_refused() {
    let identity = Identity::generate().unwrap();
    let (_, file) = backed_up(&identity).await;
    let head = opened(&identity, &file).unwrap().head;
    let mut state = read(&identity, &file).unwrap();
    let level = crate::Levels::BUILT.max + 1;
    state.apply(100, &ursa_state::Command::RaiseFeatureLevel { level });
    let disk = SimDisk::new(1);
    let mut config = config();
    config.levels = crate::Levels::BUILT;
    let error = restore::restore(&config, &shared(&disk), &head, &state, NOW).await.unwrap_err();
    assert!(
        matches!(&error, RestoreError::Level { .. }) && error.to_string().contains("with the version that wrote it"),
        "{error}"
    );
    assert!(disk.list(Path::new(DIR)).is_err(), "nothing was made");
}

#[tokio::test]
async fn a_restore_that_is_cut_short_is_never_taken_for_a_node() {
    let identity = Identity::generate().unwrap();
    let (_, file) = backed_up(&identity).await;
    let head = opened(&identity, &file).unwrap().head;
    let state = read(&identity, &file).unwrap();
    let mut seen = [0; 3];
    for seed in 0..300 {
        let disk = SimDisk::new(seed);
        disk.power_off_in(seed % 150);
        let done = restored(&disk, &head, &state).await.is_ok();
        let disk = disk.power_loss();
        let empty = disk.list(Path::new(DIR)).map_or(true, |names| names.is_empty());
        match on_disk(&disk, &Tasks::new()).await {
            Ok(store) if value(&store.view(), "b") == Some(2) => seen[0] += 1,
            // Nothing of it was there yet: that is a new node, and looks like one.
            Ok(_) => {
                assert!(empty && !done, "seed {seed}");
                seen[1] += 1;
            }
            Err(error) => {
                assert!(matches!(error, OpenError::Unfinished { .. }) && !done, "seed {seed}: {error}");
                let again = restored(&disk, &head, &state).await.unwrap_err();
                assert!(matches!(again, RestoreError::Unfinished { .. }), "seed {seed}: {again}");
                seen[2] += 1;
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

/// A node that was one of three, and what is on its disk.
async fn survivor(seed: u64) -> (SimDisk, HistoryId, u64) {
    let disk = SimDisk::new(seed);
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    put(&store, "a", 1).await.unwrap();
    store.snapshot().await.unwrap();
    let revision = put(&store, "b", 2).await.unwrap();
    let history = store.view().history_id();
    drop(store);
    (disk.power_loss(), history, revision)
}

async fn surveyed(disk: &SimDisk) -> Survey {
    recover::survey(&config(), &shared(disk), None).await.unwrap()
}

#[tokio::test]
async fn looking_changes_nothing_and_tells_what_is_there() {
    let (disk, history, revision) = survivor(1).await;
    let before = |dir: &str| disk.files(Path::new(dir)).unwrap();
    let files = ["/node", "/node/log", "/node/snapshots"].map(before);
    let survey = surveyed(&disk).await;
    assert_eq!((survey.node, survey.history, survey.all.revision), (1, history, revision));
    assert_eq!((survey.all.resources, survey.voters.len()), (2, 1));
    assert!(survey.sure.revision <= survey.all.revision && survey.committed <= survey.last);
    assert_eq!(survey.doubtful, u64::from(survey.sure.revision < survey.all.revision));
    assert_eq!(["/node", "/node/log", "/node/snapshots"].map(before), files);
    // Without a snapshot the members are those of the first entry.
    let young = SimDisk::new(2);
    drop(on_disk(&young, &Tasks::new()).await.unwrap());
    let survey = surveyed(&young.power_loss()).await;
    assert_eq!((survey.voters.len(), survey.members.len()), (1, 1));
    let nothing = recover::survey(&config(), &shared(&SimDisk::new(3)), None).await.unwrap_err();
    assert!(nothing.to_string().contains("no data folder of a node"), "{nothing}");
}

#[tokio::test]
async fn the_one_with_the_newest_entry_is_the_best() {
    let (disk, ..) = survivor(1).await;
    let mine = surveyed(&disk).await;
    let other = |change: fn(&mut Survey)| {
        let mut other = Survey { node: 2, ..mine.clone() };
        change(&mut other);
        recover::best(&[mine.clone(), other]).map(|best| best.node)
    };
    assert_eq!(other(|_| {}), Some(1));
    assert_eq!(other(|s| s.last = s.last.map(|id| EntryId { index: id.index + 1, ..id })), Some(2));
    assert_eq!(
        other(|s| s.last = s.last.map(|id| EntryId {
            index: 1,
            term: id.term + 1
        })),
        Some(2)
    );
    assert_eq!(other(|s| s.last = None), Some(1));
    assert_eq!(other(|s| s.history = HistoryId(1)), None);
}

#[tokio::test]
async fn a_recovered_node_is_the_old_one_or_the_new_one_whenever_the_power_goes() {
    let mut seen = [0; 2];
    for seed in 0..300 {
        let (disk, old, revision) = survivor(seed).await;
        disk.power_off_in(seed % 150);
        let done = recover::recover(&config(), &shared(&disk), NOW).await;
        let disk = disk.power_loss();
        let store = on_disk(&disk, &Tasks::new()).await.unwrap();
        let view = store.view();
        assert_eq!((value(&view, "a"), value(&view, "b")), (Some(1), Some(2)), "seed {seed}");
        let is_new = view.history_id() != old;
        assert!(is_new || done.is_err(), "seed {seed}: a recovery that was reported is there");
        seen[usize::from(is_new)] += 1;
        let next = put(&store, "c", 3).await.unwrap();
        if is_new {
            let origin = view.origin().unwrap();
            assert_eq!((origin.by, origin.history, origin.revision), (By::Recover, old, revision));
            assert!(next > GAP);
        }
        let history = view.history_id();
        drop(store);
        let store = on_disk(&disk.power_loss(), &Tasks::new()).await.unwrap();
        assert_eq!(
            (store.view().history_id(), value(&store.view(), "c")),
            (history, Some(3)),
            "seed {seed}"
        );
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[tokio::test]
async fn a_recovered_folder_is_another_folder_and_has_two_generations() {
    let (disk, ..) = survivor(1).await;
    let folder = |disk: &SimDisk| -> serde_json::Value {
        let bytes = disk.files(Path::new(DIR)).unwrap().remove("node.json").unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let before = folder(&disk);
    let (history, _) = recover::recover(&config(), &shared(&disk), NOW).await.unwrap();
    let after = folder(&disk);
    assert_ne!(before["folder"], after["folder"]);
    assert_eq!(
        (after["history"].as_str(), &after["formed"]),
        (Some(history.to_string().as_str()), &serde_json::json!(false))
    );
    // The newest is damaged: the other one and the log do.
    let dir = Path::new("/node/snapshots");
    let newest = disk.list(dir).unwrap().pop().unwrap();
    disk.damage(&dir.join(newest), |bytes| bytes[40] ^= 1).unwrap();
    let store = on_disk(&disk, &Tasks::new()).await.unwrap();
    assert_eq!((store.view().history_id(), value(&store.view(), "b")), (history, Some(2)));
}

#[test]
fn no_bytes_make_it_panic() {
    use rand::{RngExt, SeedableRng};
    let identity = Identity::generate().unwrap();
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    for _ in 0..300 {
        let bytes: Vec<u8> = (0..random.random_range(0..400)).map(|_| random.random()).collect();
        refused(read(&identity, &bytes));
        refused(read(&identity, &sealed(&identity, &bytes)));
        let head = [&b"URSABACK\x01\0\0\0"[..], &bytes].concat();
        refused(read(&identity, &sealed(&identity, &head)));
    }
}

/// Most memory that this process had so far, MiB.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok())
        .unwrap_or_default()
        / 1024
}

/// `cargo test -p ursa-store --lib -- --ignored --nocapture a_hundred_thousand`: what a backup and a restore of that many cost.
#[tokio::test]
#[ignore = "measures, and takes a while"]
async fn a_hundred_thousand_resources() {
    let mut state = State::default();
    state.apply(1, &ursa_state::Command::Init { history: HistoryId(1) });
    for n in 0..1000 {
        let ops = (0..100).map(|m| crate::tests::op(&format!("m{}", n * 100 + m), n)).collect();
        state.apply(n + 2, &ursa_state::Command::Change(crate::testing::changeset(NOW.0, ops)));
    }
    let identity = Identity::generate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    let head = Head {
        program: String::new(),
        history: state.history_id(),
        revision: state.view().revision(),
        oldest: 0,
        changed: NOW,
        taken: NOW,
        node: 1,
        term: 1,
        members: BTreeMap::new(),
        feature_level: 0,
        kinds: BTreeMap::new(),
        origin: None,
    };
    let (before, begun) = (most_memory(), tokio::time::Instant::now());
    let mut out = io::BufWriter::new(std::fs::File::create(&path).unwrap());
    write(&head, &state, &[identity.recipient()], &mut out).unwrap();
    out.flush().unwrap();
    let size = path.metadata().unwrap().len() >> 20;
    println!(
        "backup: {:?}, {size} MiB, {} MiB more memory",
        begun.elapsed(),
        most_memory() - before
    );
    let (before, begun) = (most_memory(), tokio::time::Instant::now());
    let input = io::BufReader::new(std::fs::File::open(&path).unwrap());
    let state = Backup::open(&[identity], input).unwrap().state().unwrap();
    println!("read: {:?}, {} MiB more memory", begun.elapsed(), most_memory() - before);
    let begun = tokio::time::Instant::now();
    let disk: Arc<dyn Disk> = Arc::new(crate::disk::RealDisk);
    let config = StoreConfig::new(dir.path().join("data"), 1);
    restore::restore(&config, &disk, &head, &state, NOW).await.unwrap();
    println!("restore: {:?}, at most {} MiB memory", begun.elapsed(), most_memory());
    let store = Store::open(config, disk, &Tasks::new()).await.unwrap();
    assert_eq!(store.view().len(), 100_000);
    store.shutdown().await.unwrap();
}
