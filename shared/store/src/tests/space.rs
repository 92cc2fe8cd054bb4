//! A disk that takes nothing for a while: reads go on, writes say what to do, and everything goes on by itself once it takes writes again.
use std::io::ErrorKind;
use std::sync::Arc;

use ursa_runtime::tasks::Tasks;

use super::group::wait;
use super::{value, write};
use crate::disk::SimDisk;
use crate::testing::changeset;
use crate::{Error, Store, StoreConfig};

/// With small files, so that little is taken ahead.
async fn open(disk: &SimDisk, tasks: &Tasks) -> Store {
    let mut config = StoreConfig::new("/node", 1);
    config.log.segment_bytes = 16 << 10;
    Store::open(config, Arc::new(disk.clone()), tasks).await.unwrap()
}

fn no_space(error: &Error) {
    assert!(matches!(error, Error::NoSpace(_)) && error.is_retryable(), "{error}");
    assert!(
        error.to_string().contains("make room") && error.to_string().contains("/node"),
        "{error}"
    );
}

#[tokio::test]
async fn a_full_disk_is_known_before_anything_is_in_doubt() {
    let (disk, tasks) = (SimDisk::new(1), Tasks::new());
    let store = open(&disk, &tasks).await;
    write(&store, "a", 0).await.unwrap();
    disk.refuse(Some(ErrorKind::StorageFull));
    let (mut last, mut error) = (0, None);
    while error.is_none() {
        match write(&store, "a", last + 1).await {
            Ok(_) => last += 1,
            Err(refused) => error = Some(refused),
        }
    }
    no_space(&error.unwrap());
    assert!(last > 0, "what has its space already can be used");
    assert_eq!(value(&store.read().await.unwrap(), "a"), Some(last));
    assert!(store.status().disk_refuses.is_some());
    disk.refuse(None);
    wait("nobody has to write for it to be found out", || {
        store.refusing().is_none().then_some(())
    })
    .await;
    write(&store, "a", 1000).await.unwrap();
    assert_eq!((value(&store.view(), "a"), store.why_stopped()), (Some(1000), None));
    drop(store);
    let store = open(&disk.power_loss(), &tasks).await;
    assert_eq!(value(&store.view(), "a"), Some(1000));
}

#[tokio::test]
async fn what_a_read_only_disk_was_given_is_written_once_it_can_be() {
    let (disk, tasks) = (SimDisk::new(1), Tasks::new());
    let store = open(&disk, &tasks).await;
    write(&store, "a", 1).await.unwrap();
    disk.refuse(Some(ErrorKind::ReadOnlyFilesystem));
    // This one finds it out; nobody knows what becomes of it.
    let first = tokio::spawn({
        let store = store.clone();
        async move { write(&store, "a", 2).await }
    });
    wait("the store knows", || store.refusing()).await;
    no_space(&write(&store, "a", 3).await.unwrap_err());
    assert_eq!(
        value(&store.read().await.unwrap(), "a"),
        Some(1),
        "it is not counted before it is written"
    );
    store.snapshot().await.unwrap();
    disk.refuse(None);
    first.await.unwrap().unwrap();
    write(&store, "a", 4).await.unwrap();
    wait("the snapshot is written, too", || store.status().snapshot).await;
    assert_eq!((value(&store.view(), "a"), store.why_stopped()), (Some(4), None));
    drop(store);
    let store = open(&disk.power_loss(), &tasks).await;
    assert_eq!(value(&store.view(), "a"), Some(4));
}

#[tokio::test]
async fn a_store_that_is_as_large_as_it_may_be_takes_deletes_and_nothing_that_makes_it_larger() {
    let (disk, tasks) = (SimDisk::new(1), Tasks::new());
    let mut config = StoreConfig::new("/node", 1);
    config.max_bytes = 1000;
    let store = Store::open(config, Arc::new(disk.clone()), &tasks).await.unwrap();
    let mut n = 0;
    let (bytes, growth) = loop {
        n += 1;
        let before = store.status().bytes;
        match write(&store, &format!("m{n}"), n).await {
            Ok(_) => wait("it is counted", || (store.status().bytes > before).then_some(())).await,
            Err(Error::Full { bytes, growth, limit }) => {
                assert_eq!(limit, 1000);
                break (bytes, growth);
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert!(n > 2 && bytes <= 1000 && bytes + growth > 1000, "{n}: {bytes} and {growth}");
    let error = write(&store, "more", 1).await.unwrap_err();
    assert!(error.to_string().contains("store.max_bytes") && error.is_retryable(), "{error}");
    write(&store, "m1", 9).await.expect("what does not grow is taken");
    assert_eq!(value(&store.read().await.unwrap(), "m1"), Some(9));
    store
        .propose(changeset(1, vec![ursa_state::Op::delete(super::key("m1"))]))
        .await
        .expect("and so are deletes");
    wait("there is room", || (store.status().bytes < bytes).then_some(())).await;
    write(&store, "more", 1).await.unwrap();
    assert!(store.status().bytes <= 1000 || store.status().bytes == bytes);
}

#[tokio::test]
async fn a_changeset_may_be_as_long_as_its_limit_and_no_longer() {
    let (disk, tasks) = (SimDisk::new(1), Tasks::new());
    let set = super::set("a", 1);
    let exact = crate::codec::Proposal::new(&ursa_state::Command::Change(set.clone()))
        .unwrap()
        .size();
    for (limit, fits) in [(exact, true), (exact - 1, false)] {
        let mut config = StoreConfig::new("/node", 1);
        config.max_changeset_bytes = limit;
        let store = Store::open(config, Arc::new(disk.clone()), &tasks).await.unwrap();
        match store.propose(set.clone()).await {
            Ok(_) => assert!(fits),
            Err(Error::TooLarge { bytes, limit: told }) => assert_eq!((fits, bytes, told), (false, exact, limit)),
            Err(other) => panic!("{other}"),
        }
        store.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_store_whose_disk_takes_nothing_can_be_closed() {
    let (disk, tasks) = (SimDisk::new(1), Tasks::new());
    let store = open(&disk, &tasks).await;
    write(&store, "a", 1).await.unwrap();
    disk.refuse(Some(ErrorKind::ReadOnlyFilesystem));
    let unsure = tokio::spawn({
        let store = store.clone();
        async move { write(&store, "a", 2).await }
    });
    wait("the store knows", || store.refusing()).await;
    assert!(store.shutdown().await.is_err(), "what waited was not written");
    assert!(matches!(unsure.await.unwrap(), Err(Error::Unknown(_))));
    disk.refuse(None);
    let store = open(&disk.process_kill(), &tasks).await;
    assert_eq!(value(&store.view(), "a"), Some(1));
}
