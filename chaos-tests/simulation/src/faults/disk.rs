//! Disks that fail, take nothing or are slow, snapshots and new data keys at any moment.
use std::io::ErrorKind;
use std::path::Path;

use rand::RngExt;
use rand::rngs::StdRng;

use super::{any_node, leader_of};
use crate::world::{End, World};
use crate::{ms, pause};

const SNAPSHOTS: &str = "/node/snapshots";

/// A sync fails, and what it should have written is gone. The node must stop.
pub async fn sync_fails(world: World, mut rng: StdRng) {
    let id = any_node(&world, &mut rng);
    let Some(disk) = world.disk(id) else { return };
    world.disk_is_bad(id, true);
    disk.fail_sync_in(rng.random_range(0..20));
    pause(ms(rng.random_range(500..3000))).await;
    // Whatever it came to, the machine is replaced around the disk.
    let how = if rng.random() { End::Kill } else { End::PowerLoss };
    world.end(id, how, ms(rng.random_range(10..500)));
    world.disk_is_bad(id, false);
}

/// A disk takes nothing for a while: it is full, or read-only. The node must not stop for it, and goes on by itself afterwards.
pub async fn refuses(world: World, mut rng: StdRng) {
    let any = any_node(&world, &mut rng);
    let id = if rng.random() { leader_of(&world).unwrap_or(any) } else { any };
    let Some(disk) = world.disk(id) else { return };
    world.disk_refuses(id, true);
    let full = rng.random_range(0..3_u8) > 0;
    disk.refuse(Some(if full {
        ErrorKind::StorageFull
    } else {
        ErrorKind::ReadOnlyFilesystem
    }));
    let longest = if rng.random() { 700 } else { 5000 };
    pause(ms(rng.random_range(50..longest))).await;
    disk.refuse(None);
    // Until it has found out, and has what it missed.
    pause(ms(4000)).await;
    world.disk_refuses(id, false);
}

/// Syncs take long.
pub async fn slow(world: World, mut rng: StdRng) {
    let id = any_node(&world, &mut rng);
    let Some(disk) = world.disk(id) else { return };
    world.disk_is_bad(id, true);
    let most = rng.random_range(10..600);
    disk.set_sync_time(ms(most / 4)..ms(most));
    pause(ms(rng.random_range(200..4000))).await;
    disk.set_sync_time(world.settings.sync_time.clone());
    // What waits for the slow ones is still waited for.
    pause(ms(most)).await;
    world.disk_is_bad(id, false);
}

/// A snapshot, now.
pub async fn snapshot(world: World, mut rng: StdRng) {
    let id = any_node(&world, &mut rng);
    if let Some(running) = world.running(id) {
        let _ = running.store.snapshot().await;
    }
}

/// A new data key for one node: everything on its disk is encrypted anew while the rest goes on.
pub async fn new_key(world: World, mut rng: StdRng) {
    let id = any_node(&world, &mut rng);
    if let Some(running) = world.running(id) {
        let _ = running.store.rotate_key().await;
    }
}

/// While a node is down, its newest snapshot is damaged. The one before it and the log must do.
pub async fn snapshot_damaged(world: World, mut rng: StdRng) {
    let id = any_node(&world, &mut rng);
    // Where the newest came from the leader, the log does not reach back to the one before it, and the node must be told to rejoin.
    if !world.is_disk_well(id) || world.running(id).is_none() || world.network.was_restored(id) {
        return;
    }
    world.end(id, End::Kill, ms(500));
    let Some(disk) = world.disk(id) else { return };
    let Ok(files) = disk.files(Path::new(SNAPSHOTS)) else { return };
    let mut whole = files.iter().rev().filter(|(name, _)| name.ends_with(".snap"));
    if let (Some((newest, content)), Some(_)) = (whole.next(), whole.next())
        && !content.is_empty()
    {
        let at = rng.random_range(0..content.len());
        let path = Path::new(SNAPSHOTS).join(newest);
        let _ = disk.damage(&path, |bytes| bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 0x10));
    }
}
