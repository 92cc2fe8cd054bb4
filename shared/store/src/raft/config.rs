//! The settings of openraft and why they are so.
//! In: [`Timings`]. Out: a valid `openraft::Config`. Source: measurements with this version (`reference/openraft.md` 2 and 3.6).
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

/// Least heartbeats in the shortest election timeout: one may be lost and one late without an election.
const MIN_HEARTBEATS: u32 = 3;
/// The shortest period that makes sense on a thread that also does other work.
const MIN_HEARTBEAT: Duration = Duration::from_millis(10);

/// Periods of the group. The same on all nodes.
///
/// A fail-over takes the leader's lease (`election_max`), then an election timeout (`election_min..election_max`), then a vote and an
/// entry: 0.7 to 0.95 s with the defaults. A leader must be silent for as long before anybody stands against it, so that a pause of
/// half a second (a slow sync, a busy machine) changes nothing. A slow sync of one node does not silence it: heartbeats are sent and
/// heard without waiting for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Heartbeat period of the leader. Default 80 ms. Three quarters of it is the deadline of a heartbeat's answer, so between regions it
    /// must be more than one and a half round trips. Entries have longer, see `election_min`.
    pub heartbeat: Duration,
    /// Shortest time without a leader before a follower stands for election; at least three heartbeats. Default 240 ms. Also how long the
    /// leader waits for a follower to sync and answer before it sends entries again.
    pub election_min: Duration,
    /// Longest such time, and the leader's lease. Default 450 ms: the range of 210 ms is many of the library's ticks, so that two
    /// followers seldom stand at once; a tie costs one more timeout.
    pub election_max: Duration,
    /// Entries between two snapshots. Default 20,000: at 1 KiB each about 20 MiB of log, applied in a second at start.
    pub snapshot_every: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(80),
            election_min: Duration::from_millis(240),
            election_max: Duration::from_millis(450),
            snapshot_every: 20_000,
        }
    }
}

impl Timings {
    /// The same, with what makes no sense brought to the nearest that does.
    pub(crate) fn sane(self) -> Self {
        let heartbeat = self.heartbeat.max(MIN_HEARTBEAT);
        let election_min = self.election_min.max(heartbeat * MIN_HEARTBEATS);
        // A range is needed, or nodes that start together stand for election together for ever.
        let election_max = self.election_max.max(election_min + heartbeat);
        Self {
            heartbeat,
            election_min,
            election_max,
            snapshot_every: self.snapshot_every.max(1),
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The settings. Always valid.
pub(crate) fn config(timings: &Timings) -> Config {
    let timings = timings.sane();
    let config = Config {
        cluster_name: "ursa".to_owned(),
        heartbeat_interval: ms(timings.heartbeat),
        election_timeout_min: ms(timings.election_min),
        election_timeout_max: ms(timings.election_max),
        // Without it every node that was cut off deposes a healthy leader on its return (measured: 24 of 24; with it 0 of 54).
        enable_pre_vote: Some(true),
        // A leader may count an entry as committed on the word of two followers before its own sync. If it then lost that entry with the
        // power and led on in the same term, it would put another entry in its place. A new term costs one vote; a group of one takes
        // it at once (see `store`).
        enable_leader_restore: Some(false),
        // For the whole transfer; the default of 200 ms is for a test.
        install_snapshot_timeout: 120_000,
        max_payload_entries: 300,
        // Constant and short: a long one costs up to 1.7 s after a network heals, and only a watchdog helps a leader that hears nothing.
        backoff: "100ms 100ms 100ms".to_owned(),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(timings.snapshot_every),
        // A follower that lags further gets a snapshot instead.
        replication_lag_threshold: timings.snapshot_every.saturating_mul(2),
        // openraft would purge behind the newest snapshot. The store purges behind the older one, by itself (see `keeper`).
        max_in_snapshot_log_to_keep: u64::MAX,
        purge_batch_size: 1024,
        // Back-pressure: a proposal waits in its caller, where it has a deadline, and not by the ten thousand in here.
        api_channel_size: Some(4096),
        ..Config::default()
    };
    config.validate().expect("`sane` leaves nothing to object to")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_timings_give_valid_settings() {
        config(&Timings::default());
        for (heartbeat, min, max) in [(0, 0, 0), (1000, 1, 1), (50, 5000, 10), (10_000, 10_000, 10_000)] {
            let timings = Timings {
                heartbeat: Duration::from_millis(heartbeat),
                election_min: Duration::from_millis(min),
                election_max: Duration::from_millis(max),
                snapshot_every: 0,
            };
            let config = config(&timings);
            assert!(config.election_timeout_min >= 3 * config.heartbeat_interval);
            assert!(config.election_timeout_max > config.election_timeout_min);
        }
    }
}
