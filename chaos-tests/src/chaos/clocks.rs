//! The time of day jumps at one node: forward, back, at the leader, at a follower.
//!
//! In: a cluster at work whose nodes run with the shim. Out: checks. Invariant: leadership, leases and deadlines go by the monotonic
//! clock, so nobody is deposed; times in what is stored never go back.
use std::time::Duration;

use anyhow::Context as _;

use crate::chaos::stage::Stage;
use crate::faults::clock;

/// How long the clock is off.
const LASTS: Duration = Duration::from_secs(3);
/// By so many seconds: a leap, what a wrong start-up sets right, a wrong time zone. Not back by more than a token's leeway of 5 s: a node
/// that is further behind rightly refuses the tokens of this very run.
const JUMPS: [i64; 4] = [1, -3, 60, 2 * 3600];
/// What chance may pick, in seconds.
pub const ANY: std::ops::Range<i64> = -4..4_000;

/// # Errors
/// If the cluster is not whole afterwards.
pub async fn run(stage: &mut Stage<'_>, rounds: u32) -> anyhow::Result<()> {
    for _ in 0..rounds {
        for seconds in JUMPS {
            for of_leader in [false, true] {
                jump(stage, seconds, of_leader).await?;
            }
        }
    }
    Ok(())
}

/// There and back again.
///
/// # Errors
/// As [`run`].
pub async fn jump(stage: &mut Stage<'_>, seconds: i64, of_leader: bool) -> anyhow::Result<()> {
    let shim = stage.demo.places.shim.clone().context("the nodes run without the shim")?;
    let (leading, before) = stage.leader().await?;
    let (node, role) = if of_leader {
        (leading, "the leader")
    } else {
        (stage.another(leading.id)?, "the follower")
    };
    let what = format!("the clock of {role} {} jumps by {seconds} s and back", node.name());
    stage.demo.report.injected("clock", &what);
    clock::begin(&shim, &node.name(), seconds)?;
    stage.last(LASTS).await;
    let writes = stage.background.until_further(20).await;
    clock::end(&shim, &node.name())?;
    writes.with_context(|| what.clone())?;
    let after = stage.whole(&what).await?;
    stage.same_leader(before, after, &what);
    Ok(())
}
