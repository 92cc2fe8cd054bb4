//! Sets that are decided on the leader's own picture.
use ursa_runtime::lease::Deadline;
use ursa_state::Applied;

use super::{Cut, Group, PATIENCE, patient, wait, write};
use crate::tests::{set, value};
use crate::{NotEarly, Store};

/// Adds one to a number, as a request does: decided on the picture of the one who leads, in its term.
async fn add_one(store: &Store) -> Option<Result<Applied, NotEarly>> {
    let (term, view) = store.lead()?;
    let n = value(&view, "n").unwrap_or_default() + 1;
    Some(store.propose_in(term, set("n", n)).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_leader_decides_early_and_only_in_its_term() {
    let group = Group::of_three_with(patient()).await;
    let leader = group.leader().await;
    let old = group.store(leader).clone();
    write(&old, "n", 1).await.unwrap();
    for id in (1..=3).filter(|id| *id != leader) {
        assert!(group.store(id).lead().is_none(), "node {id}");
    }
    let (term, view) = old.lead().unwrap();
    assert_eq!(value(&view, "n"), Some(1));
    add_one(&old).await.unwrap().unwrap();
    let other = leader % 3 + 1;
    old.hand_over_to(Some(other), Deadline::after(PATIENCE)).await.unwrap();
    let new = group.leader_other_than(leader).await;
    // What was decided before, by whoever led then, is not taken in later.
    let late = old.propose_in(term, set("n", 100)).await;
    assert!(matches!(late, Err(NotEarly::Deposed)), "{late:?}");
    let next = group.store(new).clone();
    wait("the new leader has what the old one acknowledged", || next.lead().map(drop)).await;
    let (term, view) = next.lead().unwrap();
    assert_eq!(value(&view, "n"), Some(2));
    let early = next.propose_in(term - 1, set("n", 100)).await;
    assert!(matches!(early, Err(NotEarly::Deposed)), "{early:?}");
    add_one(&next).await.unwrap().unwrap();
    assert_eq!(value(&old.read().await.unwrap(), "n"), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_that_does_not_know_it_commits_nothing() {
    let group = Group::of_three().await;
    let leader = group.leader().await;
    let old = group.store(leader).clone();
    write(&old, "n", 1).await.unwrap();
    let (term, stale) = old.lead().unwrap();
    group.isolate(leader, Some(Cut::Requests));
    let new = group.leader_other_than(leader).await;
    write(group.store(new), "n", 7).await.unwrap();
    // Decided on what is not the newest any more, and proposed before the others are heard of again.
    let unsure = tokio::spawn({
        let (old, n) = (old.clone(), value(&stale, "n").unwrap() + 1);
        async move { old.propose_in(term, set("n", n)).await }
    });
    group.isolate(leader, None);
    let ended = unsure.await.unwrap();
    assert!(matches!(ended, Err(NotEarly::Deposed | NotEarly::Doubt(_))), "{ended:?}");
    assert_eq!(value(&old.read().await.unwrap(), "n"), Some(7));
    group.level().await;
}
