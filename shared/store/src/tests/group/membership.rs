//! The life of a group: nodes join, vote, move, take the lead, leave and are replaced, while it runs.
use std::time::Duration;

use ursa_runtime::config::Secret;
use ursa_runtime::lease::Deadline;

use super::misuse::{problem, stopped};
use super::{Group, PATIENCE, free_address, lose, timings, wait, write};
use crate::store::members::Newcomer;
use crate::tests::value;
use crate::{FirstStart, MemberChange, MemberDone, MemberError, Objection, Refusal, Role};

const HOUR_MS: u64 = 3_600_000;

impl Group {
    /// Nodes 1 to `size` run; the next one has a certificate and a configuration that names it and them, and nobody knows it.
    async fn with_newcomer(size: u64) -> (Self, u64) {
        let new = size + 1;
        let mut group = Self::new(new, timings()).await;
        for id in 1..=size {
            group.node(id).config.cluster.as_mut().unwrap().members.remove(&new);
        }
        group.node(new).config.first_start = FirstStart::WaitToBeAdded;
        for id in 1..=size {
            group.node(id).start().await.unwrap();
        }
        group.leader().await;
        (group, new)
    }

    async fn change(&self, through: u64, wanted: MemberChange) -> Result<MemberDone, Objection> {
        match self.store(through).change_members(wanted, Deadline::after(PATIENCE)).await {
            Ok(done) => Ok(done),
            Err(MemberError::Refused(objection)) => Err(objection),
            Err(MemberError::Store(error)) => panic!("{error}"),
        }
    }

    fn invitation(&self, node: u64) -> MemberChange {
        MemberChange::Invite {
            node,
            address: self.nodes[&node].address.to_string(),
            valid_ms: HOUR_MS,
        }
    }

    async fn invite(&self, through: u64, node: u64) -> String {
        match self.change(through, self.invitation(node)).await.unwrap() {
            MemberDone::Invited { token, .. } => token,
            other => panic!("{other:?}"),
        }
    }

    fn give_token(&mut self, node: u64, token: &str) {
        self.node(node).config.cluster.as_mut().unwrap().join = Some(Secret::new(token.to_owned()));
    }

    /// Invites and starts it, and waits until it has what the others have.
    async fn join(&mut self, through: u64, node: u64) {
        let token = self.invite(through, node).await;
        self.give_token(node, &token);
        self.node(node).start().await.unwrap();
        self.wait("it follows the others", || {
            let status = self.store(node).status();
            (status.role == Role::Learner && status.recovered && status.members.contains_key(&node)).then_some(())
        })
        .await;
    }

    async fn promote(&self, through: u64, node: u64, instead_of: Option<u64>) -> Result<MemberDone, Objection> {
        self.change(through, MemberChange::Promote { node, instead_of }).await
    }

    fn voters(&self, at: u64) -> Vec<u64> {
        self.store(at).inner().raft.voter_ids().collect()
    }

    /// Waits until the node has stopped because it has left.
    async fn has_left(&self, node: u64) {
        let text = stopped(&self.nodes[&node]).await;
        assert!(text.contains(&format!("node {node} was removed from the group")), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_catches_up_votes_and_another_leaves() {
    let (mut group, new) = Group::with_newcomer(3).await;
    for n in 0..50 {
        write(group.store(1 + n % 3), "a", n).await.unwrap();
    }
    let leader = group.leader().await;
    let (follower, leaves) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    group.join(follower, new).await;
    assert_eq!(group.voters(leader).len(), 3, "it has no vote yet");
    assert_eq!(value(&group.store(new).read().await.unwrap(), "a"), Some(49));
    // Asked for through the node itself, and twice.
    for _ in 0..2 {
        assert_eq!(group.promote(new, new, None).await, Ok(MemberDone::Promoted));
    }
    group.level().await;
    assert_eq!(group.voters(new), [1, 2, 3, 4]);
    write(group.store(new), "a", 50).await.unwrap();
    group
        .wait("those who were not configured with it know it", || {
            let peer = group.store(follower).status().peers.get(&new)?.clone();
            peer.answered_ago
        })
        .await;

    for _ in 0..2 {
        let done = group.change(new, MemberChange::Remove { node: leaves }).await;
        assert_eq!(done, Ok(MemberDone::Removed));
    }
    group.has_left(leaves).await;
    group.node(leaves).kill().await;
    // Its vote counts: with one more dead there are two of three.
    group.node(follower).kill().await;
    write(group.store(new), "a", 51).await.unwrap();
    group.node(follower).start().await.unwrap();
    group.level().await;

    // Whoever left stays out, with its folder, without it, and by a token.
    group.node(leaves).start().await.unwrap();
    group.has_left(leaves).await;
    group.node(leaves).kill().await;
    lose(&group.folder(leaves));
    group.node(leaves).start().await.unwrap();
    stopped(&group.nodes[&leaves]).await;
    group.node(leaves).kill().await;
    let again = group.change(new, group.invitation(leaves)).await.unwrap_err();
    assert_eq!(again, Objection::HasLeft { node: leaves });
    assert!(again.to_string().contains("an id that was never used"), "{again}");
    write(group.store(new), "a", 52).await.unwrap();
    assert!(group.store(new).status().members.keys().all(|id| *id != leaves));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_one_node_in_once_and_says_why_it_does_not() {
    let (mut group, new) = Group::with_newcomer(3).await;
    write(group.store(1), "a", 1).await.unwrap();
    let refused = async |group: &mut Group, token: &str, words: &str| {
        group.give_token(new, token);
        group.node(new).start().await.unwrap();
        let text = stopped(&group.nodes[&new]).await;
        assert!(text.contains(words), "{text}");
        assert!(!group.store(new).status().admitted);
        group.node(new).kill().await;
    };
    // Nobody was invited.
    refused(&mut group, "4.abc", "an administrator adds it first").await;
    // Of another node; guessed.
    group.invite(1, new).await;
    refused(&mut group, "4.abc", "not the one that node 4 was given last").await;
    // Expired.
    let short = MemberChange::Invite {
        node: new,
        address: group.nodes[&new].address.to_string(),
        valid_ms: 1000,
    };
    let MemberDone::Invited { token, until } = group.change(2, short).await.unwrap() else {
        panic!("it is invited");
    };
    wait("the token has expired", || (ursa_model::Timestamp::now() > until).then_some(())).await;
    refused(&mut group, &token, "was valid until").await;
    assert_eq!(group.voters(1), [1, 2, 3]);
    assert!(!group.store(1).status().members.contains_key(&new));
    // Used: it lets in, again after a restart, and then no other folder.
    group.join(3, new).await;
    group.node(new).kill().await;
    group.node(new).start().await.unwrap();
    group.level().await;
    let leader = group.leader().await;
    let token = group.nodes[&new].config.cluster.as_ref().unwrap().join.clone().unwrap();
    let other_folder = Newcomer {
        node: new,
        folder: uuid::Uuid::new_v4(),
        levels: crate::Levels::BUILT,
    };
    let answer = group
        .store(leader)
        .let_in(other_folder, token.expose(), Deadline::after(PATIENCE))
        .await;
    let text = format!("{answer:?}");
    assert!(text.contains("TokenUsed"), "{text}");
    group.node(new).kill().await;
    lose(&group.folder(new));
    group.node(new).start().await.unwrap();
    let text = stopped(&group.nodes[&new]).await;
    // The group calls it as what it knows, and that may be the first that it hears.
    assert!(text.contains("was used already") || text.contains("another data folder"), "{text}");
    // Mistakes of whoever invites.
    let invite = |node, address: &str, valid_ms| MemberChange::Invite {
        node,
        address: address.to_owned(),
        valid_ms,
    };
    let taken = group.nodes[&2].address.to_string();
    for (wanted, objection) in [
        (invite(2, &taken, HOUR_MS), Objection::IsMember { node: 2 }),
        (
            invite(9, "nowhere", HOUR_MS),
            Objection::NoAddress {
                address: "nowhere".to_owned(),
            },
        ),
        (
            invite(9, &taken, HOUR_MS),
            Objection::AddressTaken {
                address: taken.clone(),
                node: 2,
            },
        ),
        (invite(9, "127.0.0.1:9", 0), Objection::BadValidity),
    ] {
        assert_eq!(group.change(1, wanted).await, Err(objection));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_step_takes_the_majority_away() {
    let (mut group, new) = Group::with_newcomer(3).await;
    write(group.store(1), "a", 1).await.unwrap();
    // Let in, and then it does not run: it must not become a voter.
    group.join(1, new).await;
    group.node(new).kill().await;
    write(group.store(1), "a", 2).await.unwrap();
    let short = Deadline::after(Duration::from_secs(6));
    let promoted = group
        .store(1)
        .change_members(
            MemberChange::Promote {
                node: new,
                instead_of: None,
            },
            short,
        )
        .await;
    assert!(
        matches!(&promoted, Err(MemberError::Refused(Objection::Lags { node, behind })) if *node == new && *behind > 0),
        "{promoted:?}"
    );
    let leader = group.leader().await;
    let (dead, alive) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    group.node(dead).kill().await;
    let error = group.change(alive, MemberChange::Remove { node: alive }).await.unwrap_err();
    assert!(matches!(&error, Objection::LosesQuorum { needed: 2, .. }), "{error}");
    assert_eq!(group.voters(alive), [1, 2, 3]);
    write(group.store(alive), "a", 3).await.unwrap();
    assert_eq!(
        group.change(alive, MemberChange::Remove { node: 9 }).await,
        Err(Objection::NoMember { node: 9 })
    );
    let to_learner = MemberChange::Transfer { to: Some(new) };
    assert_eq!(group.change(alive, to_learner).await, Err(Objection::NoVoter { node: new }));
    let to_dead = MemberChange::Transfer { to: Some(dead) };
    assert_eq!(group.change(alive, to_dead).await, Err(Objection::Silent { node: dead }));
    // The dead one may go, then nobody else.
    assert_eq!(
        group.change(alive, MemberChange::Remove { node: dead }).await,
        Ok(MemberDone::Removed)
    );
    group.node(alive).kill().await;
    group.node(alive).start().await.unwrap();
    write(group.store(alive), "a", 4).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced_in_one_step_and_learns_of_it() {
    let (mut group, new) = Group::with_newcomer(3).await;
    write(group.store(1), "a", 1).await.unwrap();
    let leader = group.leader().await;
    let (dead, alive) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    group.node(dead).kill().await;
    group.join(alive, new).await;
    assert_eq!(group.promote(alive, new, Some(dead)).await, Ok(MemberDone::Promoted));
    let mut expected = vec![leader, alive, new];
    expected.sort_unstable();
    group.level().await;
    assert_eq!(group.voters(alive), expected);
    // A full group again: one more may die.
    group.node(leader).kill().await;
    write(group.store(new), "a", 2).await.unwrap();
    group.node(leader).start().await.unwrap();
    group.node(dead).start().await.unwrap();
    group.has_left(dead).await;
    group.node(dead).kill().await;
    group.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_moves_to_another_address() {
    let mut group = Group::of_three().await;
    write(group.store(1), "a", 1).await.unwrap();
    group.node(3).kill().await;
    let (there, taken) = (free_address().await, group.nodes[&2].address.to_string());
    let wanted = |address: &str| MemberChange::Move {
        node: 3,
        address: address.to_owned(),
    };
    let error = group.change(1, wanted(&taken)).await.unwrap_err();
    assert_eq!(error, Objection::AddressTaken { address: taken, node: 2 });
    for _ in 0..2 {
        assert_eq!(group.change(1, wanted(&there.to_string())).await, Ok(MemberDone::Moved));
    }
    group.node(3).address = there;
    group.node(3).start().await.unwrap();
    write(group.store(3), "a", 2).await.unwrap();
    group.level().await;
    // Also those who start with a configuration of before reach it there.
    for id in [1, 2] {
        group.node(id).kill().await;
        group.node(id).start().await.unwrap();
    }
    group.level().await;
    write(group.store(1), "a", 3).await.unwrap();
    for id in [1, 2] {
        group
            .wait("it is reached at its new address", || {
                let peer = group.store(id).status().peers[&3].clone();
                (peer.address == there.to_string() && peer.answered_ago.is_some()).then_some(())
            })
            .await;
    }
    assert_eq!(group.store(1).status().members[&3], there.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_goes_where_it_is_wanted_and_a_leader_may_leave() {
    let mut group = Group::of_three().await;
    for to in [2, 3, 1, 3] {
        let done = group.change(1, MemberChange::Transfer { to: Some(to) }).await;
        assert_eq!(done, Ok(MemberDone::Leads { node: to }));
        write(group.store(1), "a", to).await.unwrap();
    }
    let before = group.leader().await;
    let done = group.change(1, MemberChange::Transfer { to: None }).await;
    assert!(matches!(done, Ok(MemberDone::Leads { node }) if node != before), "{done:?}");
    let leader = group.leader().await;
    let other = leader % 3 + 1;
    let done = group.change(leader, MemberChange::Remove { node: leader }).await;
    assert_eq!(done, Ok(MemberDone::Removed));
    group.has_left(leader).await;
    group.node(leader).kill().await;
    write(group.store(other), "a", 9).await.unwrap();
    assert_eq!(group.voters(other).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_away_while_the_others_changed_finds_them_again() {
    let (mut group, new) = Group::with_newcomer(3).await;
    write(group.store(1), "a", 1).await.unwrap();
    group.level().await;
    group.node(3).kill().await;
    group.join(1, new).await;
    group.promote(1, new, None).await.unwrap();
    // A member that it never heard of leads when it returns.
    let done = group.change(1, MemberChange::Transfer { to: Some(new) }).await;
    assert_eq!(done, Ok(MemberDone::Leads { node: new }));
    write(group.store(1), "a", 2).await.unwrap();
    group.node(3).start().await.unwrap();
    write(group.store(3), "a", 3).await.unwrap();
    group.level().await;
    assert!(group.store(3).status().members.contains_key(&new));
    // Who was never let in has no part in any of it.
    let which = |refusal: &Refusal| matches!(refusal, Refusal::NotMember { .. });
    let mut config = group.nodes[&new].config.clone();
    let dir = tempfile::tempdir().unwrap();
    (config.node_id, config.data_dir) = (9, dir.path().join("9"));
    let address = free_address().await;
    let cluster = config.cluster.as_mut().unwrap();
    cluster.members.insert(9, address.to_string());
    cluster.join = None;
    cluster.tls = tokio::sync::watch::channel(std::sync::Arc::new(group.ca.tls(9))).1;
    let mut stranger = super::Node {
        config,
        disk: group.nodes[&1].disk.clone(),
        address,
        others: axum::Router::new(),
        running: None,
    };
    stranger.start().await.unwrap();
    problem(stranger.store(), 1, which).await;
    stranger.kill().await;
}

/// What other services send on the listener of the nodes.
#[tokio::test(flavor = "multi_thread")]
async fn streams_to_a_node_that_leaves_are_cut() {
    use axum::body::{Body, Bytes};
    use http_body_util::BodyExt;
    use tower::Service;

    let mut group = Group::new(4, timings()).await;
    for id in 1..=4 {
        let endless = || async {
            let first = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"first"))]);
            Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending()))
        };
        group.node(id).others = axum::Router::new().route("/other.Service/Follow", axum::routing::post(endless));
    }
    group.start_all().await;
    let leader = group.leader().await;
    let (leaves, stays) = (leader % 4 + 1, (leader + 1) % 4 + 1);
    let mut streams = std::collections::BTreeMap::new();
    for id in [leaves, stays] {
        let mut channel = group.store(id).peers().unwrap().channel(leader);
        std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
        let request = http::Request::post("http://node/other.Service/Follow").body(tonic::body::Body::empty());
        let mut body = channel.call(request.unwrap()).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        streams.insert(id, (channel, body));
    }
    let done = group.change(stays, MemberChange::Remove { node: leaves }).await;
    assert_eq!(done, Ok(MemberDone::Removed));
    let (_channel, mut cut) = streams.remove(&leaves).unwrap();
    let end = tokio::time::timeout(PATIENCE, cut.frame()).await.expect("it is cut");
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    let (_channel, mut goes_on) = streams.remove(&stays).unwrap();
    let polled = futures::FutureExt::now_or_never(goes_on.frame());
    assert!(polled.is_none(), "{polled:?}");
}

/// Found by the simulation: whoever was waiting went round in circles, and then called the other node silent.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_closes_says_so_to_whoever_changes_the_members() {
    let mut group = Group::of_three().await;
    let leader = group.leader().await;
    let dead = leader % 3 + 1;
    group.node(dead).kill().await;
    let store = group.store(leader).clone();
    let to_dead = MemberChange::Transfer { to: Some(dead) };
    let asked = Box::pin(store.change_members(to_dead, Deadline::after(PATIENCE)));
    let (answer, closed) = tokio::join!(asked, store.shutdown());
    closed.unwrap();
    assert!(matches!(answer, Err(MemberError::Store(_))), "{answer:?}");
}

/// Found by the simulation: the others sent it to itself, for it was the leader, and it took itself for a second one.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_lost_its_folder_and_comes_with_its_old_token_is_told_what_is_wrong() {
    let (mut group, new) = Group::with_newcomer(3).await;
    group.join(1, new).await;
    group.promote(1, new, None).await.unwrap();
    let done = group.change(1, MemberChange::Transfer { to: Some(new) }).await;
    assert_eq!(done, Ok(MemberDone::Leads { node: new }));
    group.node(new).kill().await;
    lose(&group.folder(new));
    group.node(new).start().await.unwrap();
    let told = stopped(&group.nodes[&new]).await;
    assert!(told.contains("another data folder"), "{told}");
}
