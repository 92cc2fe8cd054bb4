//! Nodes that end, one or all, at any moment, also in the middle of a write, and return.
use rand::RngExt;
use rand::rngs::StdRng;

use super::{any_node, leader_of};
use crate::world::{End, World};
use crate::{ms, pause};

/// Down for a moment or for a while.
fn down_for(rng: &mut StdRng) -> std::time::Duration {
    let longest = if rng.random() { 200 } else { 4000 };
    ms(rng.random_range(1..longest))
}

/// Leaders are where it hurts.
fn victim(world: &World, rng: &mut StdRng) -> u64 {
    let any = any_node(world, rng);
    if rng.random() { leader_of(world).unwrap_or(any) } else { any }
}

/// One process is killed.
pub async fn kill(world: World, mut rng: StdRng) {
    let id = victim(&world, &mut rng);
    world.end(id, End::Kill, down_for(&mut rng));
}

/// One machine goes off between two calls to its disk.
pub async fn power_loss(world: World, mut rng: StdRng) {
    let id = victim(&world, &mut rng);
    world.end(id, End::PowerLoss, down_for(&mut rng));
}

/// One machine goes off during one of its next writes or syncs, which is torn.
pub async fn power_loss_at_a_write(world: World, mut rng: StdRng) {
    let id = victim(&world, &mut rng);
    let Some(disk) = world.disk(id) else { return };
    disk.power_off_in(rng.random_range(0..60));
    for _ in 0..20 {
        pause(ms(50)).await;
        if !disk.is_on() {
            break;
        }
    }
    world.end(id, End::PowerLoss, down_for(&mut rng));
}

/// All machines go off, at once or within a few milliseconds.
pub async fn power_loss_of_all(world: World, mut rng: StdRng) {
    let at_once = rng.random::<bool>();
    for id in world.ids() {
        world.end(id, End::PowerLoss, down_for(&mut rng));
        if !at_once {
            pause(ms(rng.random_range(0..20))).await;
        }
    }
}

/// One node after the other is stopped in order and started again.
pub async fn rolling_restart(world: World, mut rng: StdRng) {
    for id in world.ids() {
        if let Some(running) = world.running(id) {
            world.hand_over(&running, ms(1000)).await;
            let _ = running.store.shutdown().await;
        }
        world.end(id, End::Kill, ms(rng.random_range(1..300)));
        pause(ms(rng.random_range(300..1500))).await;
    }
}
