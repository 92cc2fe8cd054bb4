//! Writes that wait for zones, and whether what they are told then is so.
//!
//! In: clients, a mesh. Out: claims, for [`crate::oracles::applied`].
//! Invariant: a claim is looked into at the node that made it, at once.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::chaos::cluster;
use crate::client::{Answer, Api};
use crate::harness::wait::Pace;
use crate::oracles::applied::{self, Claim, ZoneSeen};
use crate::traffic::registers;

/// Between two writes.
const PERIOD: Duration = Duration::from_secs(1);
/// The longest that a write waits for zones, as it is asked for and as a call.
const WAIT: &str = "5s";
const CALL: Duration = Duration::from_secs(20);
/// On answers to writes that waited.
const APPLIED_HEADER: &str = "ursa-applied";

#[derive(Debug, Default)]
struct Seen {
    claims: Vec<Claim>,
    /// Writes that were not said to be stored everywhere.
    without: u64,
}

/// Running writes. Dropping it stops them.
#[derive(Debug)]
pub struct Waits {
    seen: Arc<Mutex<Seen>>,
    task: JoinSet<()>,
}

impl Waits {
    /// Starts writing, at each node in turn.
    #[must_use]
    pub fn start(nodes: &[Api], mesh: &str) -> Self {
        let (seen, mut task) = (Arc::<Mutex<Seen>>::default(), JoinSet::new());
        let (nodes, mesh, to) = (nodes.to_vec(), mesh.to_owned(), seen.clone());
        task.spawn(async move {
            let (mut pace, mut turn) = (Pace::every(PERIOD), 0_u64);
            loop {
                pace.slot().await;
                turn += 1;
                let Some(node) = usize::try_from(turn).ok().and_then(|n| nodes.get(n % nodes.len().max(1))) else {
                    return;
                };
                match once(&node.fork().with_deadline(CALL), &mesh, turn).await {
                    Ok(Some(claim)) => to.lock().claims.push(claim),
                    Ok(None) | Err(_) => {
                        to.lock().without += 1;
                        pace = Pace::every(PERIOD);
                    }
                }
            }
        });
        Self { seen, task }
    }

    /// Stops. Returns the claims, and how many writes came to none.
    pub async fn stop(mut self) -> (Vec<Claim>, u64) {
        self.task.shutdown().await;
        let seen = self.seen.lock();
        (seen.claims.clone(), seen.without)
    }
}

async fn once(api: &Api, mesh: &str, turn: u64) -> anyhow::Result<Option<Claim>> {
    let streams = async || -> anyhow::Result<BTreeMap<String, String>> {
        let open = cluster::streams(api).await?;
        Ok(open.into_iter().map(|(zone, stream)| (zone, stream.id)).collect())
    };
    let before = streams().await?;
    let path = format!("{}?wait={WAIT}", registers::path(mesh, "waiting"));
    let answer: Answer = api.put(&path, &registers::resource(mesh, "waiting", turn)).await?.success()?;
    if answer.headers.get(APPLIED_HEADER).is_none_or(|value| value != "true") {
        return Ok(None);
    }
    let revision = answer.revision().context("an answer without a revision")?;
    let stored = api.get_json(&format!("/zones/_applied?revision={revision}")).await?;
    let stored = applied::stored_in(&stored);
    let after = streams().await?.into_iter().map(|(zone, stream)| {
        let stored = stored.get(&zone).copied();
        (zone, ZoneSeen { stream, stored })
    });
    Ok(Some(Claim {
        revision,
        before,
        after: after.collect(),
    }))
}
