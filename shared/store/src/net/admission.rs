//! Taking one's place in the group on the first start of a data folder, before anything is voted or acknowledged.
//! In: what the other members say to a greeting. Out: this node takes part; or it never does, because they know it with another folder.
//! Invariant: a node whose folder was lost and that is known under it takes no part again, whoever is reachable at the moment.
//!
//! Why it holds. A folder is noted durably by whoever hears of it. A node of N takes its place only once
//! - N - N/2 others have noted its folder and know no other one: any earlier life of this node was noted by at least N/2 others, so one of
//!   these would have said so; or
//! - N/2 others have noted it and nobody who answered holds anything yet: then a majority, this node included, is empty, so no majority
//!   that could have acknowledged anything is among them, and the group is being founded. This alone needs no more than a majority.
//!
//! Only in the second case does it write down the members by itself. Where somebody holds something already, the log comes from there: so
//! a group of one that is given more members is joined by them, and not founded anew beside it.
//!
//! Founders compare the lists of members that they were given before they write anything down: whoever answers with another one keeps
//! the group from being founded until the lists are the same. A node that is to be added to a group waits for the first of the two.
//!
//! What it cannot see: of three nodes one never started, one lost its folder, and the third, which has all the data, is away. The two
//! then found a new group with a new history, and the third is refused by name when it returns. That is the loss of a majority.
use std::collections::BTreeMap;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use ursa_runtime::error::Chain;
use ursa_runtime::tasks::{StopReason, Tasks};
use ursa_runtime::{Backoff, CancellationToken};

use super::peers::{CallError, Method};
use super::wire::{self, Greeting, Hail};
use super::{Lane, Peers, Refusal};
use crate::codec::Peer;
use crate::disk;
use crate::store::{FirstStart, Inner, Store};

/// Longest wait for the answer to a greeting.
const GREETING: Duration = Duration::from_secs(1);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(300));

/// Whether a node of `members` may take its place, given who noted it and whether they were founded, and whether it may found. Pure.
fn may_enter(members: usize, noted: &BTreeMap<u64, bool>, founds: bool) -> bool {
    let half = members / 2;
    noted.len() >= members - half || founds && is_new(noted) && noted.len() >= half
}

/// Nobody holds anything yet.
fn is_new(noted: &BTreeMap<u64, bool>) -> bool {
    noted.values().all(|founded| !founded)
}

/// Greets a member.
///
/// # Errors
/// See [`CallError`].
pub(crate) async fn greet(peers: &Peers, node: u64) -> Result<Greeting, CallError> {
    say(peers, node, Bytes::new()).await
}

async fn say(peers: &Peers, node: u64, words: Bytes) -> Result<Greeting, CallError> {
    let answer = peers.call(node, Lane::Calls, Method::Hello, words, GREETING).await?;
    let greeting: Greeting = wire::decode(&answer).map_err(CallError::Unheard)?;
    let roster = &peers.shared.roster;
    for (id, address) in greeting.members.iter().filter(|(id, _)| !roster.has_left(**id)) {
        peers.learn(*id, address);
    }
    peers.shared.promises.told(&greeting.confirmed);
    roster.tell(node, greeting.members.keys().copied().collect());
    Ok(greeting)
}

/// Greets the others until this node may take its place, then takes it.
pub(crate) async fn run(store: Weak<Inner>, peers: Peers, members: BTreeMap<u64, String>, tasks: Tasks, cancel: CancellationToken) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut noted = BTreeMap::new();
    let others: Vec<u64> = members.keys().copied().filter(|id| *id != peers.node_id()).collect();
    let Some(founds) = store.upgrade().map(|store| store.config.first_start == FirstStart::Found) else {
        return;
    };
    let token = store.upgrade().and_then(|store| store.config.cluster.as_ref()?.join.clone());
    if let Some(token) = token {
        match crate::store::members::join(&peers, token.expose(), &cancel).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(objection) => {
                let error = format!("this node is not let into the group: {objection}");
                tracing::error!(error, "the token was refused");
                return tasks.stop(StopReason::Failed {
                    task: "store".to_owned(),
                    error,
                });
            }
        }
    }
    let words = match founds {
        true => wire::encode(&Hail { members: members.clone() }),
        false => Bytes::new(),
    };
    loop {
        let greetings = join_all(others.iter().map(|id| say(&peers, *id, words.clone()))).await;
        let mut disagree = false;
        for (id, greeting) in others.iter().zip(greetings) {
            match greeting {
                Ok(greeting) => {
                    noted.insert(*id, greeting.founded);
                }
                Err(error) => {
                    disagree |= matches!(&error, CallError::Refused(Refusal::OtherMembers { .. }));
                    tracing::debug!(peer = id, %error, "greeted in vain");
                }
            }
        }
        if peers.shared.disowned.borrow().is_some() {
            return; // `keeper` says so and stops the process
        }
        if !disagree && may_enter(members.len(), &noted, founds) {
            break;
        }
        if !backoff.wait(&cancel).await {
            return;
        }
    }
    let Some(store) = store.upgrade().map(Store::from) else { return };
    let members = members.into_iter().map(|(id, address)| (id, Peer::at(&address))).collect();
    let first = is_new(&noted).then_some(members);
    if let Err(error) = enter(&store, &peers, first).await {
        tracing::error!(error, "cannot take this node's place in the group");
        tasks.stop(StopReason::Failed {
            task: "store".to_owned(),
            error,
        });
    }
}

/// Takes the place; `first` are the members of a group that is being founded.
async fn enter(store: &Store, peers: &Peers, first: Option<BTreeMap<u64, Peer>>) -> Result<(), String> {
    let inner = store.inner();
    let mut founder = false;
    if inner.config.first_start == FirstStart::Found
        && let Some(members) = first
    {
        let is_member = inner.raft.is_initialized().await.map_err(|error| Chain(&error).to_string())?;
        if !is_member {
            inner.raft.initialize(members).await.map_err(|error| Chain(&error).to_string())?;
        }
        founder = true;
    }
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let folder = inner.folder.clone();
        match disk::run(&*inner.disk, move || folder.lock().formed(founder)).await {
            Ok(()) => break,
            Err(error) if disk::is_refusal(&error) => tracing::warn!(%error, "that this node has its place cannot be noted yet"),
            Err(error) => return Err(format!("node.json: {error}")),
        }
        if !backoff.wait(&inner.closing).await {
            return Err("the store was closed".to_owned());
        }
    }
    peers.shared.admitted.store(true, Ordering::Release);
    tracing::info!(node = peers.node_id(), "this node has taken its place in the group");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enters(members: usize, noted: &[bool]) -> bool {
        may_enter(
            members,
            &noted.iter().enumerate().map(|(id, founded)| (id as u64, *founded)).collect(),
            true,
        )
    }

    #[test]
    fn a_node_that_waits_enters_only_where_enough_others_noted_it() {
        let noted = |ids: &[u64]| ids.iter().map(|id| (*id, false)).collect();
        assert!(!may_enter(3, &noted(&[1]), false) && may_enter(3, &noted(&[1, 2]), false));
        assert!(may_enter(3, &noted(&[1]), true) && !may_enter(1, &noted(&[]), false));
    }

    #[test]
    fn a_majority_founds_and_enough_others_must_know_a_late_one() {
        let (founded, empty) = (true, false);
        assert!(!enters(3, &[]));
        assert!(enters(3, &[empty]), "two of three begin");
        assert!(!enters(3, &[founded]), "the other one may know better");
        assert!(enters(3, &[founded, founded]));
        assert!(enters(3, &[founded, empty]));
        assert!(!enters(5, &[empty]));
        assert!(enters(5, &[empty, empty]));
        assert!(
            !enters(5, &[founded, empty]) && !enters(7, &[founded, empty, empty]),
            "founded once is enough"
        );
        assert!(enters(5, &[founded, founded, empty]));
        assert!(!enters(2, &[]) && enters(2, &[founded]));
    }

    /// Whoever entered was noted by so many that any later life meets one of them, unless a majority is empty.
    #[test]
    fn any_two_entries_meet() {
        for members in 2..=7_usize {
            let others = members - 1;
            let least = (0..=others).find(|n| enters(members, &vec![false; *n])).unwrap();
            let late = (0..=others).find(|n| enters(members, &vec![true; *n])).unwrap();
            assert!(least + late > others, "{members}: {least} and {late} of {others}");
            assert!(least + 1 > members / 2, "{members}");
        }
    }
}
