//! What a group does when nodes and links fail.
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use ursa_runtime::lease::Deadline;

use super::{Cut, Group, lose, patient, timings, wait, write};
use crate::net::admission;
use crate::net::peers::CallError;
use crate::tests::hooked::{Doing, Hooked};
use crate::tests::value;
use crate::{Error, Timings};

#[tokio::test(flavor = "multi_thread")]
async fn the_next_write_after_the_leader_died_is_taken() {
    let mut group = Group::of_three().await;
    for round in 0..3 {
        let leader = group.leader().await;
        write(group.store(leader), "a", round).await.unwrap();
        group.node(leader).kill().await;
        // No waiting for anything here: the store does.
        for id in group.running() {
            write(group.store(id), "b", round * 10 + id).await.unwrap();
        }
        group.node(leader).start().await.unwrap();
        let view = group.store(leader).read().await.unwrap();
        assert_eq!(value(&view, "a"), Some(round));
    }
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_follower_returns_without_deposing_the_leader() {
    let group = Group::of_three_with(patient()).await;
    let leader = group.leader().await;
    let follower = leader % 3 + 1;
    write(group.store(leader), "a", 1).await.unwrap();
    group.level().await;
    let term = group.term();
    group.isolate(follower, Some(Cut::Requests));
    let alone = group.store(follower).clone();
    wait("the follower has lost contact for several elections", || {
        (alone.status().quorum_age > Duration::from_secs(5)).then_some(())
    })
    .await;
    assert!(!alone.status().quorum);
    write(group.store(leader), "a", 2).await.unwrap();
    assert_eq!(value(&alone.view(), "a"), Some(1));
    group.isolate(follower, None);
    write(&alone, "a", 3).await.unwrap();
    group.level().await;
    assert_eq!((group.leader().await, group.term()), (leader, term));
    wait("contact is back", || alone.status().quorum.then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_reach_the_leader_asks_through_the_third() {
    let group = Group::of_three_with(patient()).await;
    let leader = group.leader().await;
    let (half, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    group.cut(half, leader, Some(Cut::Requests));
    write(group.store(half), "a", 1).await.unwrap();
    write(group.store(third), "a", 2).await.unwrap();
    assert_eq!(value(&group.store(half).read().await.unwrap(), "a"), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_leader_is_replaced_and_takes_nothing() {
    let mut group = Group::of_three().await;
    let old = group.leader().await;
    group.node(old).config.propose_timeout = Duration::from_secs(1);
    write(group.store(old), "a", 1).await.unwrap();
    group.isolate(old, Some(Cut::Requests));
    let alone = group.store(old).clone();
    // The outcome of this one is unknown at first; here it is one of both, on all nodes.
    let unsure = tokio::spawn({
        let alone = alone.clone();
        async move { write(&alone, "unsure", 1).await }
    });
    let new = group.leader_other_than(old).await;
    write(group.store(new), "a", 2).await.unwrap();
    wait("the old leader knows that it is alone", || (!alone.status().quorum).then_some(())).await;
    group.isolate(old, None);
    assert_eq!(value(&alone.read().await.unwrap(), "a"), Some(2));
    // The retry went on until the links were mended.
    unsure.await.unwrap().unwrap();
    group.level().await;
    assert_eq!(value(&alone.view(), "unsure"), Some(1));
}

/// Cuts the leader's links to both others in the same way, until another one leads and takes a write. Returns how long that took.
async fn replace_the_leader(group: &Group, cut: Cut, n: u64) -> Duration {
    let old = group.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    write(group.store(old), "a", n).await.unwrap();
    for id in &others {
        group.cut(old, *id, Some(cut));
    }
    let begin = Instant::now();
    // Something to send there is, all the time.
    let deaf = group.store(old).clone();
    let load = tokio::spawn(async move { write(&deaf, "load", n).await });
    write(group.store(others[0]), "b", n).await.unwrap();
    let took = begin.elapsed();
    let new = group.leader_other_than(old).await;
    for id in &others {
        group.cut(old, *id, None);
    }
    load.await.unwrap().unwrap();
    group.level().await;
    assert_eq!(value(&group.store(new).view(), "load"), Some(n));
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_leader_falls_silent_and_is_replaced() {
    let group = Group::of_three().await;
    for n in 1..=5 {
        let took = replace_the_leader(&group, Cut::Answers, n).await;
        eprintln!("a deaf leader: the next write after {took:?}");
    }
}

/// Nor do the greetings that are answered meanwhile make it speak before the others could elect somebody; its last words do not reach them.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_deaf_in_one_ear_is_replaced_too() {
    let group = Group::of_three().await;
    for n in 1..=3 {
        let took = replace_the_leader(&group, Cut::Appends, n).await;
        eprintln!("a leader that hears greetings alone: the next write after {took:?}");
    }
}

/// Nobody else can be elected: of the two that are connected, one holds more than the other. Answers that come late must do.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_leader_with_the_longest_log_gets_through_again() {
    let mut group = Group::new(3, timings()).await;
    for node in group.nodes.values_mut() {
        node.config.propose_timeout = Duration::from_secs(30);
    }
    group.start_all().await;
    let leader = group.leader().await;
    let (away, behind) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    write(group.store(leader), "before", 1).await.unwrap();
    group.level().await;
    group.isolate(away, Some(Cut::Requests));
    group.cut(leader, behind, Some(Cut::Requests));
    let store = group.store(leader).clone();
    let load = tokio::spawn(async move { write(&store, "load", 1).await });
    let muted = || {
        group
            .store(leader)
            .peers()
            .unwrap()
            .shared
            .muted
            .load(std::sync::atomic::Ordering::Acquire)
    };
    group.wait("the leader falls silent", || muted().then_some(())).await;
    let last = |id| group.store(id).status().last_log;
    assert!(last(leader) > last(behind), "it alone holds the newest entry");
    // Within the deadline of a heartbeat.
    group.cut(leader, behind, Some(Cut::Late(timings().heartbeat * 5 / 8)));
    let begin = Instant::now();
    load.await.unwrap().unwrap();
    eprintln!("late answers: the write was taken after {:?}", begin.elapsed());
    assert_eq!(value(&group.store(behind).read().await.unwrap(), "load"), Some(1));
    group.isolate(away, None);
    group.level().await;
}

/// The leader has executed it, so it cannot be said that nothing was changed.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_count_leaves_the_outcome_unknown() {
    let mut group = Group::new(3, patient()).await;
    for node in group.nodes.values_mut() {
        node.config.propose_timeout = Duration::from_secs(1);
    }
    group.start_all().await;
    let leader = group.leader().await;
    let asking = leader % 3 + 1;
    for id in (1..=3).filter(|id| *id != asking) {
        group.cut(asking, id, Some(Cut::Nameless));
    }
    let peers = group.store(asking).peers().unwrap().clone();
    let greeted = admission::greet(&peers, leader).await;
    assert!(matches!(greeted, Err(CallError::Unheard(_))), "{greeted:?}");
    let error = write(group.store(asking), "a", 1).await.unwrap_err();
    assert!(matches!(&error, Error::Unknown(_)), "{error}");
    assert_eq!(value(&group.store(leader).view(), "a"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_alone_for_long_leads_again() {
    let mut group = Group::of_three().await;
    let leader = group.leader().await;
    // So that everything it holds is committed before it is alone.
    write(group.store(leader), "before", 1).await.unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        group.node(*id).kill().await;
    }
    let alone = group.store(leader).clone();
    wait("it is alone for so long that it falls silent", || {
        (alone.status().quorum_age > Duration::from_secs(2)).then_some(())
    })
    .await;
    let refused = alone.wait_recovered(Deadline::after(Duration::from_secs(1))).await;
    assert!(refused.is_ok(), "what it had, it has");
    for id in &others {
        group.node(*id).start().await.unwrap();
    }
    write(&alone, "a", 1).await.unwrap();
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_that_nobody_takes_is_an_error_and_no_end() {
    let group = Group::of_three().await;
    let leader = group.leader().await;
    group.isolate(leader, Some(Cut::Requests));
    let error = group.store(leader).hand_over(Deadline::after(Duration::from_millis(700))).await;
    assert!(matches!(error, Err(Error::Unavailable(_))) || error.is_ok_and(|leads| leads != Some(leader)));
    group.isolate(leader, None);
    for id in 1..=3 {
        write(group.store(id), "a", id).await.unwrap();
    }
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_beyond_the_log_gets_a_snapshot() {
    let few = Timings {
        snapshot_every: 20,
        ..timings()
    };
    let mut group = Group::new(3, few).await;
    group.start_all().await;
    let leader = group.leader().await;
    let away = leader % 3 + 1;
    write(group.store(leader), "before", 1).await.unwrap();
    group.node(away).kill().await;
    for n in 0..120 {
        write(group.store(leader), &format!("m{}", n % 7), n).await.unwrap();
    }
    let behind = group.store(leader).status().applied.unwrap() - 100;
    wait("the log is purged beyond what the node has", || {
        let purged = group.running().into_iter().map(|id| group.store(id).status().purged);
        purged.min().flatten().filter(|purged| *purged > behind)
    })
    .await;
    group.node(away).start().await.unwrap();
    let view = group.store(away).read().await.unwrap();
    assert_eq!((value(&view, "before"), value(&view, "m0")), (Some(1), Some(119)));
    group.level().await;
    let left = std::fs::read_dir(group.folder(away).join("snapshots")).unwrap();
    let left: Vec<String> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| name.ends_with(".snap")), "nothing is left aside: {left:?}");
    // It is whole: it can lead, and starts again by itself.
    group.node(away).kill().await;
    group.node(away).start().await.unwrap();
    group.node(leader).kill().await;
    write(group.store(away), "after", 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_of_a_node_is_made_anew_when_it_is_gone() {
    let mut group = Group::of_three().await;
    write(group.store(1), "a", 1).await.unwrap();
    group.node(2).kill().await;
    lose(&group.folder(2).join("cache"));
    group.node(2).start().await.unwrap();
    assert_eq!(value(&group.store(2).read().await.unwrap(), "a"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_sync_causes_no_election() {
    let mut group = Group::new(3, patient()).await;
    let mut slow = Vec::new();
    for node in group.nodes.values_mut() {
        let next = Arc::new(Mutex::new(None));
        slow.push(next.clone());
        node.disk = Arc::new(Hooked::new(move |doing, _| {
            let wait = if doing == Doing::Sync { next.lock().take() } else { None };
            if let Some(wait) = wait {
                std::thread::sleep(wait);
            }
            Ok(())
        }));
    }
    group.start_all().await;
    let leader = group.leader().await;
    write(group.store(leader), "a", 0).await.unwrap();
    let term = group.term();
    for id in [leader, leader % 3 + 1] {
        // Longer than lease and election timeout together.
        *slow[usize::try_from(id).unwrap() - 1].lock() = Some(Duration::from_millis(3000));
        let begin = Instant::now();
        write(group.store(leader), "a", id).await.unwrap();
        assert!(begin.elapsed() < Duration::from_millis(3000), "the two others are a majority");
        // So that the slow one has synced before the next round.
        wait("the slow node has it, too", || {
            (value(&group.store(id).view(), "a") == Some(id)).then_some(())
        })
        .await;
        wait("the slow sync is over", || {
            (begin.elapsed() > Duration::from_millis(3100)).then_some(())
        })
        .await;
    }
    assert_eq!((group.leader().await, group.term()), (leader, term));
    group.level().await;
}
