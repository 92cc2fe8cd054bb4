//! What nodes say of their group before a check and after it.
//!
//! In: clients. Out: sightings. Invariant: read only. Not here: what they say meanwhile ([`crate::traffic::sightings`]).
use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;

use crate::client::Api;
use crate::harness::wait::{Poll, wait_through};
use crate::oracles::standings::{self, Sighting};
use crate::traffic::sightings::{LOOK, PERIOD, look};

/// At the end, so long all that answer may take to agree.
const SETTLE: Duration = Duration::from_secs(60);

/// What every address says, before anything is done.
///
/// # Errors
/// One does not answer, or they are not of one installation.
pub async fn all(nodes: &[Api]) -> anyhow::Result<Vec<Sighting>> {
    let mut seen = Vec::new();
    for api in nodes {
        let one = look(&api.fork().with_deadline(LOOK * 5)).await;
        seen.push(one.with_context(|| format!("{} does not answer: begin when all is well", api.target()))?);
    }
    let first = seen.first().context("no address: give at least one --address")?;
    for (api, one) in nodes.iter().zip(&seen) {
        anyhow::ensure!(
            one.history == first.history,
            "{} has the history {}, the first address has {}: these are two installations",
            api.target(),
            one.history,
            first.history
        );
    }
    Ok(seen)
}

/// The last word of each address that answers, once they agree or their time is over.
pub async fn settled(nodes: &[Api]) -> Vec<Sighting> {
    let clients: Vec<Api> = nodes.iter().map(|api| api.fork().with_deadline(LOOK)).collect();
    let mut last = Vec::new();
    let agreed = wait_through("all that answer agree", SETTLE, PERIOD, async || {
        last = join_all(clients.iter().map(look)).await.into_iter().flatten().collect();
        let disagreement = standings::disagreement(&last);
        Ok(Poll::when(disagreement.is_none(), (), || disagreement.unwrap_or_default()))
    });
    // What they say, agreed or not, is judged.
    let _agreed = agreed.await;
    last
}
