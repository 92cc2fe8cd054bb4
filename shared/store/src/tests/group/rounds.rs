//! Nodes die and come back at random while others write: nothing that was acknowledged is lost, and all nodes end up the same.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Cut, Group};
use crate::tests::{set, value};
use crate::{Store, Timings};

const ROUNDS: u64 = 12;

/// A number from the environment: to look for more with other seeds.
fn given(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// Writes counting values into one key through whichever node is given it, until told to stop. Returns the newest acknowledged.
async fn writer(name: String, through: Arc<Mutex<Vec<Store>>>, acknowledged: Arc<Mutex<BTreeMap<String, u64>>>, stop: Arc<AtomicBool>) {
    for n in 1.. {
        // One changeset, sent again through other nodes until it is taken.
        let set = set(&name, n);
        for turn in n.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let store = {
                let stores = through.lock();
                stores[usize::try_from(turn).unwrap() % stores.len()].clone()
            };
            let done = store.propose(set.clone()).await;
            drop(store);
            match done {
                Ok(_) => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        acknowledged.lock().insert(name.clone(), n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_over_many_deaths() {
    let (seed, rounds, heartbeat) = (
        given("ROUNDS_SEED", 0x5eed),
        given("ROUNDS", ROUNDS),
        given("ROUNDS_HEARTBEAT_MS", 80),
    );
    let mut rng = StdRng::seed_from_u64(seed);
    let heartbeat = Duration::from_millis(heartbeat);
    let timings = Timings {
        heartbeat,
        election_min: heartbeat * 3,
        election_max: heartbeat * 11 / 2,
        snapshot_every: 300,
    };
    let mut group = Group::new(3, timings).await;
    for node in group.nodes.values_mut() {
        node.config.propose_timeout = Duration::from_millis(800);
    }
    group.start_all().await;
    group.leader().await;
    let through = Arc::new(Mutex::new(
        group.nodes.values().map(|node| node.store().clone()).collect::<Vec<_>>(),
    ));
    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|lane| tokio::spawn(writer(format!("lane{lane}"), through.clone(), acknowledged.clone(), stop.clone())))
        .collect();
    for round in 0..rounds {
        let victim = if rng.random_bool(0.5) {
            group.leader().await
        } else {
            rng.random_range(1..=3)
        };
        let before = acknowledged.lock().values().sum::<u64>();
        let dies = rng.random_bool(0.7);
        if dies {
            *through.lock() = group
                .nodes
                .iter()
                .filter(|(id, _)| **id != victim)
                .map(|(_, node)| node.store().clone())
                .collect();
            group.node(victim).kill().await;
        } else {
            let cut = if rng.random_bool(0.5) { Cut::Requests } else { Cut::Answers };
            group.isolate(victim, Some(cut));
        }
        let how = if dies { "dead" } else { "cut off" };
        group
            .wait(
                &format!("seed {seed:#x}, round {round}: writes go on without node {victim}, which is {how}"),
                || (acknowledged.lock().values().sum::<u64>() > before + 8).then_some(()),
            )
            .await;
        if dies {
            group.node(victim).start().await.unwrap();
            *through.lock() = group.nodes.values().map(|node| node.store().clone()).collect();
        } else {
            group.isolate(victim, None);
        }
        // Whoever comes back reads what was acknowledged before it asked.
        let floor = acknowledged.lock().clone();
        let view = wait_read(group.store(victim)).await;
        for (name, n) in floor {
            let found = value(&view, &name).unwrap_or(0);
            assert!(
                found >= n,
                "round {round}, seed {seed:#x}: {name} is {found} on node {victim}, {n} was acknowledged"
            );
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    through.lock().clear();
    group.level().await;
    let view = group.store(1).view();
    for (name, n) in acknowledged.lock().iter() {
        let found = value(&view, name).unwrap_or(0);
        assert!(
            found == *n || found == n + 1,
            "{name} is {found}, {n} was acknowledged and at most one more proposed"
        );
    }
}

async fn wait_read(store: &Store) -> ursa_state::View {
    loop {
        match store.read().await {
            Ok(view) => return view,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
}
