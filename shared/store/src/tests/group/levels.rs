//! Rolling upgrades and downgrades: nodes of two versions in one group, restarted one by one under writers.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use ursa_runtime::lease::Deadline;

use super::misuse::{problem, stopped};
use super::{Group, PATIENCE, patient, timings, wait, write};
use crate::level::EXAMPLE;
use crate::{Levels, MemberChange, MemberDone, OpenError, Refusal, Store};

const OLD: Levels = Levels { min: 1, max: 1 };
const NEW: Levels = Levels { min: 1, max: EXAMPLE };

async fn of(levels: [Levels; 3]) -> Group {
    let mut group = Group::new(3, patient()).await;
    for (id, levels) in (1..).zip(levels) {
        group.node(id).config.levels = levels;
    }
    group.start_all().await;
    group.leader().await;
    group
}

/// Writes through one node until it is told to stop; every write must be taken. The longest that one took.
fn writer(store: Store, stop: Arc<AtomicBool>, written: Arc<AtomicU64>) -> tokio::task::JoinHandle<Duration> {
    tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        for n in 0.. {
            if stop.load(Ordering::Acquire) {
                break;
            }
            let began = Instant::now();
            write(&store, "written", n).await.expect("no write is refused");
            longest = longest.max(began.elapsed());
            written.fetch_add(1, Ordering::AcqRel);
        }
        longest
    })
}

/// Versions of the commands in the log of a node, up to the one that raises the level, and after it.
async fn versions(store: &Store) -> (Vec<u8>, Vec<u8>) {
    let entries = store.inner().log.read(0..u64::MAX, usize::MAX).await.unwrap();
    let commands = entries.iter().filter_map(|entry| match &entry.payload {
        openraft::EntryPayload::Normal(proposal) => Some(proposal.clone()),
        _ => None,
    });
    let (mut before, mut after, mut raised) = (Vec::new(), Vec::new(), false);
    for proposal in commands {
        let part = if raised { &mut after } else { &mut before };
        part.push(proposal.encoded()[0]);
        raised |= matches!(proposal.command(), ursa_state::Command::RaiseFeatureLevel { .. });
    }
    (before, after)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_waits_for_the_last_node_and_no_write_for_the_level() {
    let mut group = of([NEW, NEW, OLD]).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = [1, 2]
        .map(|id| writer(group.store(id).clone(), stop.clone(), written.clone()))
        .into();
    for id in [1, 2] {
        group
            .wait("all have said what they know", || {
                let peers = group.store(id).status().peers;
                peers.values().all(|peer| peer.levels.is_some()).then_some(())
            })
            .await;
        assert_eq!(group.store(id).status().peers[&3].levels, Some(OLD));
    }
    for _ in 0..3 {
        let leader = group.leader().await;
        assert_eq!(group.store(leader).raise_level().await.unwrap(), 1, "one does not know it");
    }
    group.store(3).hand_over(Deadline::after(PATIENCE)).await.unwrap();
    group.node(3).kill().await;
    for id in [1, 2] {
        let _ = group.store(id).raise_level().await;
        assert_eq!(group.store(id).feature_level(), 1, "one does not answer");
    }
    group.node(3).config.levels = NEW;
    group.node(3).start().await.unwrap();
    for id in 1..=3 {
        group
            .wait("the level rises", || (group.store(id).status().level == EXAMPLE).then_some(()))
            .await;
    }
    let now = written.load(Ordering::Acquire);
    group
        .wait("there are writes after it", || {
            (written.load(Ordering::Acquire) > now + 10).then_some(())
        })
        .await;
    stop.store(true, Ordering::Release);
    for writer in writers {
        writer.await.unwrap();
    }
    write(group.store(3), "written", 0).await.unwrap();
    group.level().await;
    for id in 1..=3 {
        let (before, after) = versions(group.store(id)).await;
        assert!(before.iter().all(|version| *version == 1), "node {id}: {before:?}");
        assert!(after.last() == Some(&2), "node {id}: {after:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_not_know_the_level_is_refused_by_its_folder_and_by_the_others() {
    let mut group = of([NEW, NEW, NEW]).await;
    for id in 1..=3 {
        group
            .wait("the level rises", || (group.store(id).status().level == EXAMPLE).then_some(()))
            .await;
    }
    write(group.store(1), "a", 1).await.unwrap();
    group.level().await;
    group.node(3).kill().await;
    group.node(3).config.levels = OLD;
    let error = group.node(3).start().await.unwrap_err();
    assert!(matches!(&error, OpenError::Level { level: EXAMPLE, .. }), "{error}");
    assert!(
        error.to_string().contains("a newer version") && error.to_string().contains("install"),
        "{error}"
    );
    // Without that note, what is in its log or the others say so.
    let note = group.folder(3).join("level");
    std::fs::rename(&note, group.folder(3).join("aside")).unwrap();
    let text = match group.node(3).start().await {
        Err(error) => ursa_runtime::error::Chain(&error).to_string(),
        Ok(()) => stopped(&group.nodes[&3]).await,
    };
    assert!(text.contains("level 2") && text.contains("install the version"), "{text}");
    group.node(3).kill().await;
    // As it was, nothing is lost.
    std::fs::rename(group.folder(3).join("aside"), &note).unwrap();
    group.node(3).config.levels = NEW;
    group.node(3).start().await.unwrap();
    write(group.store(3), "a", 2).await.unwrap();
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_do_not_listen_to_a_version_that_does_not_know_the_level() {
    let mut group = Group::new(4, timings()).await;
    for id in 1..=4 {
        group.node(id).config.levels = NEW;
    }
    for id in 1..=3 {
        group.node(id).config.cluster.as_mut().unwrap().members.remove(&4);
        group.node(id).start().await.unwrap();
    }
    for id in 1..=3 {
        group
            .wait("the level rises", || (group.store(id).status().level == EXAMPLE).then_some(()))
            .await;
    }
    let invite = MemberChange::Invite {
        node: 4,
        address: group.nodes[&4].address.to_string(),
        valid_ms: 3_600_000,
    };
    let done = group.store(1).change_members(invite, Deadline::after(PATIENCE)).await.unwrap();
    let token = match done {
        MemberDone::Invited { token, .. } => token,
        other => panic!("{other:?}"),
    };
    group.node(4).config.cluster.as_mut().unwrap().join = Some(ursa_runtime::config::Secret::new(token));
    group.node(4).config.first_start = crate::FirstStart::WaitToBeAdded;
    group.node(4).config.levels = OLD;
    group.node(4).start().await.unwrap();
    let text = stopped(&group.nodes[&4]).await;
    assert!(
        text.contains("knows feature levels 1 to 1") && text.contains("is at level 2"),
        "{text}"
    );
    group.node(4).kill().await;
    // The token is still good, for a version that fits.
    group.node(4).config.levels = NEW;
    group.node(4).start().await.unwrap();
    group
        .wait("it is let in", || (group.store(4).status().level == EXAMPLE).then_some(()))
        .await;
    // A member that knows nothing of the level itself, so that only the others say so.
    *group.store(3).peers().unwrap().shared.faults.announces.lock() = Some(OLD);
    let text = stopped(&group.nodes[&3]).await;
    assert!(text.contains("node 3 runs a version"), "{text}");
    let level = |refusal: &Refusal| {
        matches!(
            refusal,
            Refusal::Level {
                node: 3,
                level: EXAMPLE,
                ..
            }
        )
    };
    let text = problem(group.store(1), 3, level).await;
    assert!(text.contains("install the version that the other nodes run on node 3"), "{text}");
    write(group.store(2), "a", 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_refuses_no_write() {
    let mut group = of([OLD, OLD, OLD]).await;
    for restarted in 1..=3 {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let others = (1..=3).filter(|id| *id != restarted);
        let writers: Vec<_> = others
            .map(|id| writer(group.store(id).clone(), stop.clone(), written.clone()))
            .collect();
        let some = |group: &Group| {
            let (from, written) = (written.load(Ordering::Acquire), written.clone());
            let report = group.report();
            async move {
                super::wait_or(
                    "writes go on",
                    || (written.load(Ordering::Acquire) > from + 10).then_some(()),
                    || report.clone(),
                )
                .await
            }
        };
        some(&group).await;
        group.store(restarted).hand_over(Deadline::after(PATIENCE)).await.unwrap();
        group.store(restarted).shutdown().await.unwrap();
        group.node(restarted).kill().await;
        some(&group).await;
        group.node(restarted).start().await.unwrap();
        group
            .node(restarted)
            .store()
            .wait_recovered(Deadline::after(PATIENCE))
            .await
            .unwrap();
        some(&group).await;
        stop.store(true, Ordering::Release);
        for writer in writers {
            // Longer than a fail-over is only the deadline of a write, and no write came to that.
            let longest = writer.await.unwrap();
            assert!(longest < group.nodes[&restarted].config.propose_timeout, "{longest:?}");
        }
    }
    wait("all are level", || {
        let applied: Vec<_> = (1..=3).map(|id| group.store(id).status().applied).collect();
        applied.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
    })
    .await;
    group.level().await;
}
