//! A node loses its data folder, and whoever runs it starts it again as if nothing had happened.
//!
//! In: a world. Out: a node that must be refused for ever; mostly another one, new, in its place.
//! Invariant: no more nodes lose their folders than the group can lose for good, by what every voter knows of who votes.
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use ursa_store::MemberChange;

use super::leader_of;
use super::members::{Outcome, arrive, change};
use crate::world::World;
use crate::{ms, pause};

/// Whether a majority of voters is left for good without this one.
fn may_be_lost(world: &World, node: u64) -> bool {
    let dead = world.wiped_ids();
    let configs = world.all_running().into_iter().flat_map(|running| running.store.status().voters);
    let mut seen = 0;
    for voters in configs {
        seen += 1;
        let left = voters.iter().filter(|id| **id != node && !dead.contains(id)).count();
        if left <= voters.len() / 2 {
            return false;
        }
    }
    seen > 0
}

/// See the module's text.
pub async fn wiped(world: World, mut rng: StdRng) {
    let Some(_turn) = world.turn() else { return };
    let ids = world.ids();
    // What is not known to have failed may happen yet, and take away whoever is counted on here.
    if world.all_running().len() < ids.len() || !ids.iter().all(|id| world.is_settled(*id)) {
        return;
    }
    let leader = leader_of(&world).filter(|_| rng.random());
    let Some(node) = leader.or_else(|| ids.choose(&mut rng).copied()) else {
        return;
    };
    if !may_be_lost(&world, node) || world.has_bad_disk(node) {
        return;
    }
    world.wipe(node, ms(rng.random_range(1..500)));
    pause(ms(rng.random_range(500..3000))).await;
    if rng.random_range(0..4_u8) == 0 {
        return;
    }
    let Some(new) = arrive(&world, &mut rng).await else { return };
    let replace = MemberChange::Promote {
        node: new,
        instead_of: Some(node),
    };
    world.elections_are_asked_for(true);
    if let Outcome::Done(_) = change(&world, &mut rng, &replace).await {
        world.count(|changes| changes.replaced += 1);
        // Its owner has heard: it is not started any more.
        world.gone(node);
    }
    pause(ms(1000)).await;
    world.elections_are_asked_for(false);
}
