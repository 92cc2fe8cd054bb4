use super::*;
use proptest::prelude::*;

fn zone() -> ZoneName {
    "east".parse().unwrap()
}

/// What one node tells another now.
fn tell(from: &Claims, to: &Claims) {
    to.learn(from.node(), from.own().borrow().to_vec());
}

#[tokio::test(start_paused = true)]
async fn the_newer_wins_until_two_processes_fight() {
    let claims = Claims::new("n1");
    let up = |instance| claims.claim(&zone(), StreamKind::ZoneToGlobal, instance, 1);
    let first = up("a").unwrap();
    let again = up("a").unwrap();
    assert!(first.lost.is_cancelled() && !again.lost.is_cancelled());
    assert!(!again.predecessors[0].is_cancelled());
    drop(first);
    assert!(
        again.predecessors[0].is_cancelled(),
        "the newcomer hears that its predecessor is gone"
    );
    let mut holder = again;
    for instance in ["b", "a", "b"] {
        holder = up(instance).unwrap();
    }
    let refused = up("a").unwrap_err();
    assert!(refused.to_string().contains("instance \"b\""), "{refused}");
    assert!(!holder.lost.is_cancelled(), "the incumbent stays");
    assert!(
        claims.claim(&zone(), StreamKind::GlobalToZone, "a", 1).is_ok(),
        "other streams have their own holder"
    );
    tokio::time::advance(SWAP_WINDOW).await;
    assert!(up("a").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_late_session_of_the_same_process_is_refused() {
    let claims = Claims::new("n1");
    let held = claims.claim(&zone(), StreamKind::GlobalToZone, "a", 7).unwrap();
    let refused = claims.claim(&zone(), StreamKind::GlobalToZone, "a", 6).unwrap_err();
    assert!(matches!(refused, Refused::Late { session: 6, .. }) && !held.lost.is_cancelled());
    assert!(claims.claim(&zone(), StreamKind::GlobalToZone, "a", 8).is_ok() && held.lost.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn an_older_stream_ends_when_its_node_hears_of_the_newer() {
    let (n1, n2) = (Claims::new("n1"), Claims::new("n2"));
    let old = n1.claim(&zone(), StreamKind::ZoneToGlobal, "a", 1).unwrap();
    tell(&n1, &n2);
    let new = n2.claim(&zone(), StreamKind::ZoneToGlobal, "a", 2).unwrap();
    assert!(new.claim().epoch > old.claim().epoch && !old.lost.is_cancelled());
    tell(&n2, &n1);
    assert!(old.lost.is_cancelled() && !new.lost.is_cancelled());
    assert_eq!(n1.owner(&zone()).unwrap().node.as_ref(), "n2");
    tell(&n1, &n2);
    assert!(
        !new.remote_predecessors[0].is_cancelled() && !new.lost.is_cancelled(),
        "the old one still stores what it had begun"
    );
    drop(old);
    tell(&n1, &n2);
    assert!(new.remote_predecessors[0].is_cancelled());
    let third = n1.claim(&zone(), StreamKind::ZoneToGlobal, "a", 3).unwrap();
    n1.node_gone("n2");
    assert!(third.remote_predecessors[0].is_cancelled(), "nobody waits for a node that is gone");
}

#[tokio::test(start_paused = true)]
async fn two_processes_at_two_nodes_fight_three_times_and_the_incumbent_stays() {
    let (n1, n2) = (Claims::new("n1"), Claims::new("n2"));
    let mut held = Vec::new();
    let mut refused = None;
    for round in 0..4 {
        let (here, there, instance) = if round % 2 == 0 { (&n1, &n2, "a") } else { (&n2, &n1, "b") };
        match here.claim(&zone(), StreamKind::ZoneToGlobal, instance, round) {
            Ok(claim) => held.push(claim),
            Err(err) => refused = Some(err),
        }
        tell(here, there);
        tell(there, here);
    }
    assert_eq!(refused, None, "three swaps are allowed");
    let err = n1.claim(&zone(), StreamKind::ZoneToGlobal, "a", 9).unwrap_err();
    assert!(matches!(err, Refused::Contested { .. }));
    let alive: Vec<_> = held.iter().filter(|h| !h.lost.is_cancelled()).collect();
    assert_eq!((alive.len(), alive[0].claim().instance.as_ref()), (1, "b"));
}

#[tokio::test]
async fn what_a_node_says_of_others_or_too_much_is_ignored() {
    let (n1, n2) = (Claims::new("n1"), Claims::new("n2"));
    let held = n1.claim(&zone(), StreamKind::ZoneToGlobal, "a", 1).unwrap();
    let mut forged = held.claim().clone();
    forged.epoch = u64::MAX;
    n1.learn("n2", [forged.clone()]);
    n1.learn("n1", [forged]);
    assert!(!held.lost.is_cancelled());
    // A node whose clock is far ahead: the next claim elsewhere is still newer, or as good as.
    n2.learn("n1", n1.own().borrow().to_vec());
    assert!(n2.claim(&zone(), StreamKind::ZoneToGlobal, "a", 2).unwrap().claim().epoch > held.claim().epoch);
}

/// One step among three nodes.
#[derive(Clone, Debug)]
enum Step {
    /// The zone's process opens its next session at a node.
    Open(usize),
    /// The oldest stream that still stands ends.
    End,
    /// One node hears of another.
    Tell(usize, usize),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// However the news travels: once everybody has heard everybody, exactly the newest stream holds, and the others know.
    #[test]
    fn nodes_agree_on_the_newest(steps in proptest::collection::vec(prop_oneof![
        3 => (0..3_usize).prop_map(Step::Open),
        1 => Just(Step::End),
        4 => (0..3_usize, 0..3_usize).prop_map(|(a, b)| Step::Tell(a, b)),
    ], 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _enter = runtime.enter();
        let nodes = [Claims::new("n0"), Claims::new("n1"), Claims::new("n2")];
        let mut held: Vec<Held> = Vec::new();
        for (session, step) in steps.into_iter().enumerate() {
            match step {
                Step::Open(node) => {
                    let new = nodes[node].claim(&zone(), StreamKind::ZoneToGlobal, "a", session as u64).unwrap();
                    prop_assert!(!new.lost.is_cancelled());
                    held.push(new);
                }
                Step::End => { if !held.is_empty() { held.remove(0); } }
                Step::Tell(from, to) => tell(&nodes[from], &nodes[to]),
            }
            for node in &nodes {
                let alive = held.iter().filter(|h| h.claim().node == *node.node() && !h.lost.is_cancelled()).count();
                prop_assert!(alive <= 1, "one holder per node at all times");
            }
        }
        for _ in 0..2 {
            for from in &nodes { for to in &nodes { tell(from, to); } }
        }
        let newest = held.iter().map(|h| h.claim().clone()).max_by(|a, b| a.fence().cmp(&b.fence()));
        // Streams whose successor is gone already stay lost: their zone was told to connect anew.
        for h in &held {
            prop_assert!(h.lost.is_cancelled() || Some(h.claim()) == newest.as_ref());
        }
        drop(held);
        for node in &nodes {
            prop_assert!(node.own().borrow().is_empty());
        }
    }
}
