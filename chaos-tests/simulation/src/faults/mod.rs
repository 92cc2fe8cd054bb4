//! What happens to the nodes, their disks and the links between them, drawn from the seed.
//! In: a world. Out: faults that come, overlap and go; in the end everything is well again.
//! Invariant: every fault undoes itself, and ends within a bounded time.
mod crash;
mod disk;
mod leader;
mod links;
mod members;
mod wiped;

use std::time::Duration;

use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use ursa_runtime::tasks::OnExit;

use crate::world::World;
use crate::{ms, note, pause};

/// One fault: told of by its name, over when it returns.
type Fault = fn(World, StdRng) -> BoxFuture<'static, ()>;

/// All faults, with how often each is drawn.
const FAULTS: [(&str, u32, Fault); 26] = [
    ("kill", 6, |world, rng| Box::pin(crash::kill(world, rng))),
    ("power-loss", 6, |world, rng| Box::pin(crash::power_loss(world, rng))),
    ("power-loss-at-a-write", 8, |world, rng| {
        Box::pin(crash::power_loss_at_a_write(world, rng))
    }),
    ("power-loss-of-all", 3, |world, rng| Box::pin(crash::power_loss_of_all(world, rng))),
    ("rolling-restart", 2, |world, rng| Box::pin(crash::rolling_restart(world, rng))),
    ("sync-fails", 3, |world, rng| Box::pin(disk::sync_fails(world, rng))),
    ("disk-refuses", 6, |world, rng| Box::pin(disk::refuses(world, rng))),
    ("slow-disk", 4, |world, rng| Box::pin(disk::slow(world, rng))),
    ("snapshot", 5, |world, rng| Box::pin(disk::snapshot(world, rng))),
    ("new-key", 4, |world, rng| Box::pin(disk::new_key(world, rng))),
    ("snapshot-damaged", 3, |world, rng| Box::pin(disk::snapshot_damaged(world, rng))),
    ("isolate", 6, |world, rng| Box::pin(links::isolate(world, rng))),
    ("isolate-leader", 5, |world, rng| Box::pin(links::isolate_leader(world, rng))),
    ("deaf", 5, |world, rng| Box::pin(links::deaf(world, rng))),
    ("mute", 5, |world, rng| Box::pin(links::mute(world, rng))),
    ("split", 4, |world, rng| Box::pin(links::split(world, rng))),
    ("one-link", 5, |world, rng| Box::pin(links::one_link(world, rng))),
    ("some-directions", 6, |world, rng| Box::pin(links::some_directions(world, rng))),
    ("flapping", 3, |world, rng| Box::pin(links::flapping(world, rng))),
    ("bad-links", 6, |world, rng| Box::pin(links::bad(world, rng))),
    ("node-joins", 3, |world, rng| Box::pin(members::joins(world, rng))),
    ("node-leaves", 3, |world, rng| Box::pin(members::leaves(world, rng))),
    ("node-moves", 1, |world, rng| Box::pin(members::moves(world, rng))),
    ("transfer", 2, |world, rng| Box::pin(members::transfer(world, rng))),
    ("node-wiped", 3, |world, rng| Box::pin(wiped::wiped(world, rng))),
    ("hand-over", 3, |world, rng| Box::pin(leader::hand_over(world, rng))),
];

/// Names of all faults.
pub fn names() -> impl Iterator<Item = &'static str> {
    FAULTS.iter().map(|(name, _, _)| *name)
}

/// Lets faults happen for `how_long`, then waits until all are over.
pub async fn play(world: World, seed: u64, how_long: Duration) {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9).wrapping_add(17));
    // Calm and wild runs.
    let gap = rng.random_range(100..2500_u64);
    let end = world.trace.now() + how_long;
    let all = world.tasks.child();
    while world.trace.now() < end {
        pause(ms(rng.random_range(gap / 2..gap * 2))).await;
        let total = FAULTS.iter().map(|(_, weight, _)| weight).sum();
        let mut drawn = rng.random_range(0..total);
        let chosen = FAULTS.iter().find(|(_, weight, _)| {
            let hit = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            hit
        });
        let Some((name, _, fault)) = chosen else { continue };
        let (here, own) = (world.clone(), StdRng::seed_from_u64(rng.random()));
        all.spawn("fault", OnExit::Ignore, |_| async move {
            note!(here.trace, "fault {name} begins");
            fault(here.clone(), own).await;
            note!(here.trace, "fault {name} is over");
        });
    }
    all.idle().await;
}

fn any_node(world: &World, rng: &mut StdRng) -> u64 {
    world.ids().choose(rng).copied().unwrap_or(1)
}

/// Who leads, if anybody knows.
fn leader_of(world: &World) -> Option<u64> {
    let up = world.all_running();
    up.iter().find(|running| running.store.is_leader()).map(|running| running.life.node)
}
