//! The members change while everything else happens: nodes join and get a vote, leave, move, take the lead.
//!
//! In: a world. Out: other members. Invariants: one such change at a time, as one operator makes it; what is not known to have happened is
//! asked for again, and if nobody can tell, the node is either in or out, and both is right.
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use ursa_runtime::lease::Deadline;
use ursa_store::{MemberChange, MemberDone, MemberError, Objection};

use super::any_node;
use crate::world::{World, address};
use crate::{ms, note, pause};

/// One request.
const REQUEST: Duration = Duration::from_millis(2500);
/// Requests of one change.
const REQUESTS: usize = 4;
/// Between two of them.
const BETWEEN: Duration = Duration::from_millis(300);
/// So long a new node may take until it has everything.
const ARRIVAL: Duration = Duration::from_secs(8);
const HOUR_MS: u64 = 3_600_000;

/// What came of a change.
#[derive(Debug)]
pub(super) enum Outcome {
    Done(MemberDone),
    Refused,
    /// It may happen yet.
    Unknown,
}

/// Asks nodes of chance for a change until one of them says what came of it.
pub(super) async fn change(world: &World, rng: &mut StdRng, wanted: &MemberChange) -> Outcome {
    let mut doubt = false;
    for _ in 0..REQUESTS {
        if let Some(running) = world.running(any_node(world, rng)) {
            note!(world.trace, "n{} is asked: {wanted:?}", running.life.node);
            let answer = tokio::select! {
                biased;
                () = running.life.ended.cancelled() => None,
                answer = Box::pin(running.store.change_members(wanted.clone(), Deadline::after(REQUEST))) => Some(answer),
            };
            match answer.filter(|_| !running.life.is_over()) {
                Some(Ok(done)) => {
                    note!(world.trace, "done: {done:?}");
                    return Outcome::Done(done);
                }
                // Of what was asked for before, some may be under way.
                Some(Err(MemberError::Refused(objection))) if !doubt && objection != Objection::UnderWay => {
                    note!(world.trace, "refused: {objection}");
                    return Outcome::Refused;
                }
                Some(Err(error)) => note!(world.trace, "no answer: {error}"),
                None => {}
            }
            doubt = true;
        }
        pause(BETWEEN).await;
    }
    Outcome::Unknown
}

/// A node comes, and is told of by all in the end. Its id, if it came in time.
pub(super) async fn arrive(world: &World, rng: &mut StdRng) -> Option<u64> {
    let new = world.new_id()?;
    let invite = MemberChange::Invite {
        node: new,
        address: address(new),
        valid_ms: HOUR_MS,
    };
    let Outcome::Done(MemberDone::Invited { token, .. }) = change(world, rng, &invite).await else {
        return None;
    };
    world.add(new, token);
    let end = world.trace.now() + ARRIVAL;
    while world.trace.now() < end && world.all_ids().contains(&new) {
        pause(ms(50)).await;
        let Some(running) = world.running(new) else { continue };
        let status = running.store.status();
        if status.recovered && status.admitted && status.members.contains_key(&new) {
            world.is_in(new);
            world.count(|changes| changes.joined += 1);
            return Some(new);
        }
    }
    None
}

/// A node joins, and gets a vote, now or never.
pub async fn joins(world: World, mut rng: StdRng) {
    let Some(_turn) = world.turn() else { return };
    let Some(new) = arrive(&world, &mut rng).await else { return };
    if rng.random_range(0..4_u8) > 0 {
        let promote = MemberChange::Promote {
            node: new,
            instead_of: None,
        };
        if let Outcome::Done(_) = change(&world, &mut rng, &promote).await {
            world.count(|changes| changes.promoted += 1);
        }
    }
}

/// A node leaves for good, often the leader.
pub async fn leaves(world: World, mut rng: StdRng) {
    let Some(_turn) = world.turn() else { return };
    let ids = world.ids();
    // Whoever is on its way in counts on those that it was told of.
    let all_in = ids.iter().all(|id| world.is_settled(*id));
    let fewest = if rng.random_range(0..6_u8) == 0 { 3 } else { 4 };
    if ids.len() < fewest || !all_in || !world.wiped_ids().is_empty() {
        return;
    }
    let leader = super::leader_of(&world).filter(|_| rng.random());
    let Some(node) = leader.or_else(|| ids.choose(&mut rng).copied()) else {
        return;
    };
    world.leaves(node);
    world.elections_are_asked_for(true);
    let outcome = change(&world, &mut rng, &MemberChange::Remove { node }).await;
    match outcome {
        Outcome::Done(_) => world.count(|changes| changes.removed += 1),
        Outcome::Refused => world.stays(node),
        Outcome::Unknown => {}
    }
    pause(ms(1000)).await;
    world.elections_are_asked_for(false);
}

/// A node is reached elsewhere. Nobody goes there: it is the list that changes.
pub async fn moves(world: World, mut rng: StdRng) {
    let Some(_turn) = world.turn() else { return };
    let node = any_node(&world, &mut rng);
    let address = format!("node-{node}:{}", rng.random_range(2..100_u8));
    if let Outcome::Done(_) = change(&world, &mut rng, &MemberChange::Move { node, address }).await {
        world.count(|changes| changes.moved += 1);
    }
}

/// A node is asked to take the lead.
pub async fn transfer(world: World, mut rng: StdRng) {
    let Some(_turn) = world.turn() else { return };
    let to = Some(any_node(&world, &mut rng)).filter(|_| rng.random());
    world.elections_are_asked_for(true);
    let _ = change(&world, &mut rng, &MemberChange::Transfer { to }).await;
    pause(ms(1000)).await;
    world.elections_are_asked_for(false);
}
