//! The lead goes elsewhere by request.
use rand::rngs::StdRng;

use super::leader_of;
use crate::ms;
use crate::world::World;

/// The leader hands over, and goes on as a follower.
pub async fn hand_over(world: World, _: StdRng) {
    let leader = leader_of(&world).and_then(|id| world.running(id));
    if let Some(running) = leader {
        world.hand_over(&running, ms(2000)).await;
    }
}
