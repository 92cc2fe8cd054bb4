//! What users of a group rely on while nothing is wrong, and in planned changes.
use std::time::Duration;

use tokio::time::Instant;
use ursa_runtime::lease::Deadline;
use ursa_state::{Expect, HistoryId, OpError};

use super::{Group, PATIENCE, timings, wait, write};
use crate::testing::changeset;
use crate::tests::{key, put_expecting, set, value};
use crate::{Error, FirstStart, Role};

#[tokio::test(flavor = "multi_thread")]
async fn every_node_writes_and_reads() {
    let group = Group::of_three().await;
    for id in 1..=3 {
        let revision = write(group.store(id), "a", id).await.unwrap();
        let here = group.store(id).view();
        assert!(
            here.revision() >= revision && value(&here, "a") == Some(id),
            "node {id} sees its own write"
        );
        for other in 1..=3 {
            let view = group.store(other).read().await.unwrap();
            assert_eq!(value(&view, "a"), Some(id), "node {other} reads what node {id} wrote");
        }
    }
    group.level().await;
    let histories: Vec<HistoryId> = (1..=3).map(|id| group.store(id).status().history).collect();
    assert!(histories[0] != HistoryId::default() && histories.iter().all(|history| *history == histories[0]));
    let leader = group.leader().await;
    for id in 1..=3 {
        let status = group.store(id).status();
        let role = if id == leader { Role::Leader } else { Role::Follower };
        assert_eq!((status.role, status.leader, status.members.len()), (role, Some(leader), 3));
        assert!(status.admitted, "{status:?}");
        group
            .wait("it is in contact with a majority", || group.store(id).status().quorum.then_some(()))
            .await;
        assert_eq!(status.peers.len(), 2);
        assert!(status.peers.values().all(|peer| peer.problem.is_none()), "{status:?}");
        group.store(id).wait_recovered(Deadline::after(PATIENCE)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_keep_their_types_on_the_way_through_the_leader() {
    let group = Group::of_three().await;
    let leader = group.leader().await;
    let follower = leader % 3 + 1;
    let store = group.store(follower);
    let first = set("a", 1);
    let done = store.propose(first.clone()).await.unwrap();
    write(store, "a", 2).await.unwrap();
    for id in 1..=3 {
        assert_eq!(
            group.store(id).propose(first.clone()).await.unwrap(),
            done,
            "a repeat gets the first result on node {id}"
        );
    }
    let refused = changeset(1, vec![put_expecting("a", 3, Expect::Absent)]);
    let error = store.propose(refused).await.unwrap_err();
    assert!(
        matches!(&error, Error::Rejected { op: 0, reason: OpError::Exists(at), .. } if *at == key("a")),
        "{error}"
    );
    let large = changeset(1, (0..40_000).map(|n| crate::tests::put(&format!("m{n}"), n)).collect());
    let error = store.propose(large).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    // Close to the limit: it passes through the leader and reaches everyone.
    let close = changeset(1, (0..10_000).map(|n| crate::tests::put(&format!("m{n}"), n)).collect());
    store.propose(close).await.unwrap();
    group.level().await;
    let mut unnamed = set("b", 1);
    unnamed.id = Default::default();
    store.propose(unnamed).await.unwrap();
    assert_eq!(value(&store.view(), "b"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_is_enough_to_begin_and_the_third_comes_later() {
    let mut group = Group::new(3, timings()).await;
    for id in [1, 2] {
        group.node(id).start().await.unwrap();
    }
    write(group.store(1), "a", 1).await.unwrap();
    group.node(3).start().await.unwrap();
    assert_eq!(value(&group.store(3).read().await.unwrap(), "a"), Some(1));
    write(group.store(3), "a", 2).await.unwrap();
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_one_grows_into_three_and_keeps_what_it_has() {
    let mut group = Group::new(3, timings()).await;
    let cluster = group.node(1).config.cluster.take();
    group.node(1).start().await.unwrap();
    write(group.store(1), "a", 1).await.unwrap();
    let history = group.store(1).status().history;
    group.node(1).kill().await;
    group.node(1).config.cluster = cluster;
    // The empty ones come first, and found nothing of their own.
    for id in [2, 3] {
        group.node(id).config.first_start = FirstStart::WaitToBeAdded;
        group.node(id).start().await.unwrap();
    }
    wait("the two have met", || group.store(2).status().peers[&3].answered_ago).await;
    assert!([2, 3].iter().all(|id| !group.store(*id).is_founded()));
    group.node(1).start().await.unwrap();
    let voters = |group: &Group| group.store(1).inner().raft.voter_ids().count();
    wait("the group has three voters", || (voters(&group) == 3).then_some(())).await;
    write(group.store(2), "b", 1).await.unwrap();
    group.level().await;
    assert_eq!(
        (group.store(3).status().history, value(&group.store(3).view(), "a")),
        (history, Some(1))
    );
    group.node(1).kill().await;
    write(group.store(3), "c", 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_alone_waits_and_says_so() {
    let mut group = Group::new(3, timings()).await;
    group.node(1).config.propose_timeout = Duration::from_millis(300);
    group.node(1).config.read_timeout = Duration::from_millis(300);
    group.node(1).start().await.unwrap();
    let store = group.store(1);
    let error = write(store, "a", 1).await.unwrap_err();
    assert!(matches!(error, Error::NotLeader { leader: None, .. }), "{error}");
    let error = store.read().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let error = store.wait_recovered(Deadline::after(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    let status = store.status();
    assert!(!status.admitted && !status.recovered && status.leader.is_none(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_hands_over_without_a_gap() {
    let group = Group::of_three().await;
    for round in 0..5 {
        let before = group.leader().await;
        write(group.store(before), "a", round).await.unwrap();
        let after = group.store(before).hand_over(Deadline::after(PATIENCE)).await.unwrap();
        assert!(after.is_some_and(|after| after != before), "{after:?}");
        for id in 1..=3 {
            write(group.store(id), "b", round).await.unwrap();
        }
        assert_eq!(value(&group.store(before).read().await.unwrap(), "b"), Some(round));
    }
    group.level().await;
    let follower = group.leader().await % 3 + 1;
    let leads = group.store(follower).hand_over(Deadline::after(PATIENCE)).await.unwrap();
    assert!(leads.is_some_and(|leads| leads != follower), "a follower has nothing to hand over");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_lose_two() {
    let mut group = Group::new(5, timings()).await;
    group.start_all().await;
    let first = group.leader().await;
    write(group.store(first), "a", 1).await.unwrap();
    group.node(first).kill().await;
    let second = group.leader_other_than(first).await;
    group.node(second).kill().await;
    let left = group.running();
    write(group.store(left[0]), "a", 2).await.unwrap();
    assert_eq!(value(&group.store(left[1]).read().await.unwrap(), "a"), Some(2));
    group.node(first).start().await.unwrap();
    group.node(second).start().await.unwrap();
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_in_place() {
    let mut group = Group::new(3, timings()).await;
    let (sender, receiver) = tokio::sync::watch::channel(std::sync::Arc::new(group.ca.tls(1)));
    group.node(1).config.cluster.as_mut().unwrap().tls = receiver;
    group.start_all().await;
    write(group.store(1), "a", 1).await.unwrap();
    // One that cannot be used changes nothing.
    let mut broken = group.ca.tls(1);
    broken.key_pem.clear();
    sender.send_replace(std::sync::Arc::new(broken));
    group.node(2).kill().await;
    group.node(2).start().await.unwrap();
    write(group.store(2), "a", 2).await.unwrap();
    sender.send_replace(std::sync::Arc::new(group.ca.tls(1)));
    group.node(2).kill().await;
    group.node(2).start().await.unwrap();
    write(group.store(2), "a", 3).await.unwrap();
    let begin = Instant::now();
    wait("node 1 and 2 talk", || {
        let answered = group.store(2).status().peers[&1].answered_ago?;
        (answered < begin.elapsed()).then_some(())
    })
    .await;
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_before_the_history_has_its_name() {
    for _ in 0..3 {
        let mut group = Group::new(3, timings()).await;
        group.start_all().await;
        // From the first moment on, and so before anybody leads.
        let writes = (1..=3).map(|id| {
            let store = group.store(id).clone();
            tokio::spawn(async move { write(&store, "a", id).await })
        });
        for written in writes.collect::<Vec<_>>() {
            written.await.unwrap().unwrap();
        }
        for id in 1..=3 {
            let entries = group.store(id).inner().log.read(0..u64::MAX, usize::MAX).await.unwrap();
            let commands = entries.iter().filter_map(|entry| match &entry.payload {
                openraft::EntryPayload::Normal(proposal) => Some(proposal.command()),
                _ => None,
            });
            let first = commands.into_iter().next();
            assert!(
                matches!(first, None | Some(ursa_state::Command::Init { .. })),
                "node {id}: {first:?}"
            );
        }
    }
}
