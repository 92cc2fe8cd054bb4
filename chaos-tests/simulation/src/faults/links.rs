//! Links that are cut, in one direction or both, lose messages, delay them or bring them twice.
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::{any_node, leader_of};
use crate::world::World;
use crate::{ms, pause};

fn how_long(rng: &mut StdRng) -> Duration {
    let longest = if rng.random() { 700 } else { 6000 };
    ms(rng.random_range(50..longest))
}

/// Cuts these directions for a while.
async fn cut(world: &World, ways: Vec<(u64, u64)>, time: Duration) {
    for (from, to) in &ways {
        world.network.set(*from, *to, |link| link.cut = true);
    }
    pause(time).await;
    for (from, to) in ways {
        world.network.restore(from, to);
    }
}

fn others(world: &World, id: u64) -> Vec<u64> {
    world.all_ids().into_iter().filter(|other| *other != id).collect()
}

/// Every direction there is.
fn all_ways(world: &World) -> Vec<(u64, u64)> {
    let ids = world.all_ids();
    let ways = ids.iter().flat_map(|from| ids.iter().map(move |to| (*from, *to)));
    ways.filter(|(from, to)| from != to).collect()
}

fn around(world: &World, id: u64) -> Vec<(u64, u64)> {
    others(world, id).into_iter().flat_map(|other| [(id, other), (other, id)]).collect()
}

/// One node is alone.
pub async fn isolate(world: World, mut rng: StdRng) {
    let ways = around(&world, any_node(&world, &mut rng));
    cut(&world, ways, how_long(&mut rng)).await;
}

/// The leader is alone.
pub async fn isolate_leader(world: World, mut rng: StdRng) {
    let Some(leader) = leader_of(&world) else { return };
    let ways = around(&world, leader);
    cut(&world, ways, how_long(&mut rng)).await;
}

/// One node, often the leader, hears nobody, and is heard.
pub async fn deaf(world: World, mut rng: StdRng) {
    let id = one(&world, &mut rng);
    let ways = others(&world, id).into_iter().map(|other| (other, id)).collect();
    cut(&world, ways, how_long(&mut rng)).await;
}

/// One node, often the leader, hears everybody, and is not heard.
pub async fn mute(world: World, mut rng: StdRng) {
    let id = one(&world, &mut rng);
    let ways = others(&world, id).into_iter().map(|other| (id, other)).collect();
    cut(&world, ways, how_long(&mut rng)).await;
}

fn one(world: &World, rng: &mut StdRng) -> u64 {
    let any = any_node(world, rng);
    if rng.random() { leader_of(world).unwrap_or(any) } else { any }
}

/// Two halves do not hear each other.
pub async fn split(world: World, mut rng: StdRng) {
    let left: Vec<u64> = world.all_ids().into_iter().filter(|_| rng.random()).collect();
    let ways = all_ways(&world)
        .into_iter()
        .filter(|(from, to)| left.contains(from) != left.contains(to))
        .collect();
    cut(&world, ways, how_long(&mut rng)).await;
}

/// Two nodes do not hear each other, and everybody else hears both.
pub async fn one_link(world: World, mut rng: StdRng) {
    let a = one(&world, &mut rng);
    let b = others(&world, a).choose(&mut rng).copied().unwrap_or(a);
    cut(&world, vec![(a, b), (b, a)], how_long(&mut rng)).await;
}

/// Any of the directed partitions there are.
pub async fn some_directions(world: World, mut rng: StdRng) {
    let ways = all_ways(&world).into_iter().filter(|_| rng.random()).collect();
    cut(&world, ways, how_long(&mut rng)).await;
}

/// One link comes and goes.
pub async fn flapping(world: World, mut rng: StdRng) {
    let ways = around(&world, one(&world, &mut rng));
    for _ in 0..rng.random_range(2..10_u8) {
        let (down, up) = (ms(rng.random_range(10..400)), ms(rng.random_range(10..400)));
        cut(&world, ways.clone(), down).await;
        pause(up).await;
    }
}

/// All links are bad: slow, lossy, or bring messages twice.
pub async fn bad(world: World, mut rng: StdRng) {
    let (loss, twice) = (rng.random_range(0.0..0.3), rng.random_range(0.0..0.5));
    let most = ms(if rng.random() {
        rng.random_range(2..30)
    } else {
        rng.random_range(30..300)
    });
    let ways: Vec<(u64, u64)> = all_ways(&world).into_iter().filter(|_| rng.random_range(0..3_u8) > 0).collect();
    for (from, to) in &ways {
        world.network.set(*from, *to, |link| {
            link.loss = loss;
            link.twice = twice;
            link.delay = ms(0)..most;
        });
    }
    pause(how_long(&mut rng)).await;
    for (from, to) in ways {
        world.network.restore(from, to);
    }
    // What is on its way still arrives late.
    pause(most * 2).await;
}
