use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ursa_model::{ResourceKey, Timestamp};
use ursa_state::{Changeset, Command, Expect, Op, Put, RequestId, State};

use super::*;

fn state() -> State {
    let mut state = State::default();
    state.apply(1, &Command::Init { history: HistoryId(9) });
    state
}

/// Applies some changes, among them deletions.
fn change(state: &mut State, rng: &mut StdRng, revisions: u64) {
    for _ in 0..revisions {
        let index = state.applied_index() + 1;
        let ops = (0..rng.random_range(1..5))
            .map(|_| {
                let key = ResourceKey::mesh_itself(&format!("m{}", rng.random_range(0..60))).unwrap();
                if rng.random_range(0..4) == 0 {
                    return Op::delete(key);
                }
                let spec = serde_json::json!({"n": rng.random::<u32>()});
                Op::Put(Put {
                    key,
                    labels: Default::default(),
                    spec,
                    status: None,
                    owner: None,
                    expect: Expect::Any,
                })
            })
            .collect();
        state.apply(
            index,
            &Command::Change(Changeset::each(RequestId(index.into()), Timestamp(index), ops)),
        );
    }
}

fn assert_same(inner: &Inner, view: &View, context: &str) {
    let db = inner.db.as_ref().unwrap();
    let meta = db.meta();
    assert_eq!(
        (meta.history, meta.revision, meta.objects),
        (view.history_id(), view.revision(), view.len() as u64),
        "{context}"
    );
    for resource in view.iter() {
        assert_eq!(db.get(&resource.key).unwrap().as_ref(), Some(resource.as_ref()), "{context}");
    }
    for changes in view.changes_since(view.floor()).unwrap() {
        assert_eq!(db.changes(changes.revision).unwrap().as_ref(), Some(changes.as_ref()), "{context}");
    }
    assert_eq!(
        db.changes(view.floor()).unwrap(),
        None,
        "{context}: what is below the floor is gone"
    );
}

/// The cache without its thread.
fn open(dir: &Path, boot: &str) -> Inner {
    let (views, status) = (watch::channel(View::default()).1, watch::channel(CacheStatus::default()).0);
    let mut inner = Inner {
        dir: dir.to_owned(),
        keys: Keys::default(),
        db: None,
        views,
        status,
        closed: false,
    };
    inner.begin(boot);
    inner
}

impl Inner {
    fn show(&mut self, view: &View) {
        self.views = watch::channel(view.clone()).1;
        self.catch_up();
    }

    fn seen(&self) -> CacheStatus {
        *self.status.borrow()
    }
}

#[test]
fn it_follows_the_views() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut state = state();
    let mut cache = open(dir.path(), "boot-1");
    for round in 0..30 {
        change(&mut state, &mut rng, round * 5);
        if round % 10 == 9 {
            let floor = state.view().revision() - 20;
            state.apply(state.applied_index() + 1, &Command::Compact { floor });
        }
        cache.show(state.view());
        assert_same(&cache, state.view(), &format!("round {round}"));
    }
    assert_eq!(cache.seen().rebuilt, 1);
    // Another history: nothing of the first remains.
    let mut other = State::default();
    other.apply(1, &Command::Init { history: HistoryId(10) });
    change(&mut other, &mut rng, 3);
    cache.show(other.view());
    assert_same(&cache, other.view(), "another history");
}

#[test]
fn it_is_used_again_only_after_a_clean_close_or_under_the_same_boot() {
    let mut rng = StdRng::seed_from_u64(2);
    for (clean, boot, reused) in [
        (true, "boot-1", true),
        (true, "boot-2", true),
        (false, "boot-1", true),
        (false, "boot-2", false),
        (false, "", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut state = state();
        change(&mut state, &mut rng, 40);
        let mut cache = open(dir.path(), "boot-1");
        cache.show(state.view());
        if clean {
            cache.close();
        }
        drop(cache);
        let mut cache = open(dir.path(), boot);
        let context = format!("clean {clean}, {boot}");
        assert_eq!(
            (cache.seen().reused, cache.seen().rebuilt),
            (reused, u32::from(!reused)),
            "{context}"
        );
        change(&mut state, &mut rng, 10);
        cache.show(state.view());
        assert_same(&cache, state.view(), &context);
        // The mark of the clean end was used up.
        drop(cache);
        assert!(!open(dir.path(), "boot-3").seen().reused, "{context}");
    }
}

#[test]
fn any_damage_costs_a_rebuild_and_nothing_else() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut state = state();
    change(&mut state, &mut rng, 60);
    for round in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = open(dir.path(), "boot-1");
        cache.show(state.view());
        let clean = round % 2 == 0;
        if clean {
            cache.close();
        }
        drop(cache);
        let path = dir.path().join("db/db");
        let mut bytes = std::fs::read(&path).unwrap();
        match round % 3 {
            0 => {
                let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
                bytes[rng.random_range(0..=used)] ^= 1 << rng.random_range(0..8);
            }
            1 => bytes.truncate(rng.random_range(0..bytes.len())),
            _ => {
                let at = rng.random_range(0..bytes.len());
                bytes[at..].iter_mut().take(4096).for_each(|byte| *byte = 0);
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let mut cache = open(dir.path(), "boot-1");
        cache.show(state.view());
        assert_same(
            &cache,
            state.view(),
            &format!("round {round}, clean {clean}, reused {}", cache.seen().reused),
        );
    }
}

#[test]
fn a_missing_or_foreign_key_is_noticed() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut state = state();
    change(&mut state, &mut rng, 20);
    let dir = tempfile::tempdir().unwrap();
    let mut cache = open(dir.path(), "boot-1");
    cache.show(state.view());
    cache.close();
    let db = sled::open(marks::db_path(dir.path())).unwrap();
    let first = db.scan_prefix("o").keys().next().unwrap().unwrap();
    db.remove(first).unwrap();
    db.flush().unwrap();
    drop(db);
    // sled lets go of its lock on a thread of its own.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let opened = loop {
        match Db::open(&marks::db_path(dir.path()), None) {
            Err(Error::Sled(_)) if std::time::Instant::now() < deadline => std::thread::yield_now(),
            opened => break opened.map(|_| ()),
        }
    };
    assert!(matches!(opened, Err(Error::Damaged(_))), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_has_the_same_state_whatever_happened_to_its_cache() {
    use crate::disk::RealDisk;
    use crate::{Store, StoreConfig};
    let dir = tempfile::tempdir().unwrap();
    let open = async || {
        Store::open(StoreConfig::new(dir.path(), 1), Arc::new(RealDisk), &ursa_runtime::Tasks::new())
            .await
            .unwrap()
    };
    let write = async |store: &Store, n: u64| {
        let key = ResourceKey::mesh_itself(&format!("m{}", n % 9)).unwrap();
        let put = Put {
            key,
            labels: Default::default(),
            spec: serde_json::json!({"n": n}),
            status: None,
            owner: None,
            expect: Expect::Any,
        };
        store
            .propose(crate::testing::changeset(n, vec![Op::Put(put)]))
            .await
            .unwrap()
            .revision
    };
    let store = open().await;
    let mut revision = 0;
    for n in 0..50 {
        revision = write(&store, n).await;
    }
    store.shutdown().await.unwrap();
    let cache_dir = dir.path().join("cache");
    type Change = fn(&Path);
    let unclean: Change = |dir| {
        std::fs::remove_file(dir.join("clean")).unwrap();
        std::fs::write(dir.join("boot"), "another").unwrap();
    };
    let flipped: Change = |dir| {
        let path = dir.join("db/db");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let cases: [(&str, Change, bool); 4] = [
        ("left alone", |_| {}, true),
        ("wiped", |dir| std::fs::remove_dir_all(dir).unwrap(), false),
        ("unclean", unclean, false),
        ("flipped", flipped, false),
    ];
    for (name, change, reused) in cases {
        change(&cache_dir);
        let store = open().await;
        assert_eq!(store.view().revision(), revision, "{name}");
        let cache = store.cache().unwrap().clone();
        revision = write(&store, 1000).await;
        let view = store.view();
        cache.watch_status().wait_for(|status| status.revision == revision).await.unwrap();
        for resource in view.iter() {
            assert_eq!(
                cache.get(resource.key.clone()).await.unwrap().as_ref(),
                Some(resource.as_ref()),
                "{name}"
            );
        }
        assert_eq!(cache.changes(revision).await.unwrap().unwrap().revision, revision, "{name}");
        store.shutdown().await.unwrap();
        assert_eq!(cache.status().reused, reused, "{name}");
        assert_eq!(
            (cache.status().revision, cache.status().objects),
            (revision, view.len() as u64),
            "{name}"
        );
    }
}

/// As on a disk that takes nothing for a while.
#[test]
fn a_cache_that_cannot_be_made_is_made_later() {
    let (dir, mut state) = (tempfile::tempdir().unwrap(), state());
    change(&mut state, &mut StdRng::seed_from_u64(1), 20);
    let at = dir.path().join("cache");
    std::fs::write(&at, "in the way").unwrap();
    let mut inner = open(&at, "boot");
    inner.show(state.view());
    assert!(inner.db.is_none() && inner.seen().revision == 0);
    std::fs::remove_file(&at).unwrap();
    inner.show(state.view());
    assert_same(&inner, state.view(), "with room again");
}
