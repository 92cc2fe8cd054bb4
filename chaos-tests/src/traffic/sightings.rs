//! What the nodes of a global say of their group, again and again.
//!
//! In: clients. Out: sightings, for [`crate::oracles::standings`]. Invariant: read only; whoever does not answer is left out.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::client::Api;
use crate::harness::wait::Pace;
use crate::oracles;
use crate::oracles::standings::{self, Sighting};
use crate::report::Report;

/// Between two looks at each node.
pub const PERIOD: Duration = Duration::from_millis(500);
/// One look.
pub const LOOK: Duration = Duration::from_secs(2);

/// What a node says now.
///
/// # Errors
/// If it does not answer as expected, or has not taken its place in the group.
pub async fn look(api: &Api) -> anyhow::Result<Sighting> {
    let seen = api.get_json("/cluster").await?;
    Sighting::of(&seen).with_context(|| format!("{}/cluster answers {seen}", api.target()))
}

/// Running looks. Dropping it stops them.
#[derive(Debug)]
pub struct Sightings {
    seen: Arc<Mutex<Vec<Sighting>>>,
    task: JoinSet<()>,
}

impl Sightings {
    /// Starts looking at each node.
    #[must_use]
    pub fn start(nodes: &[Api]) -> Self {
        let (seen, mut task) = (Arc::<Mutex<Vec<Sighting>>>::default(), JoinSet::new());
        for api in nodes {
            let (api, seen) = (api.fork().with_deadline(LOOK), seen.clone());
            task.spawn(async move {
                let mut pace = Pace::every(PERIOD);
                loop {
                    pace.slot().await;
                    match look(&api).await {
                        Ok(one) => seen.lock().push(one),
                        Err(_away) => pace = Pace::every(PERIOD),
                    }
                }
            });
        }
        Self { seen, task }
    }

    /// Who leads now, in words.
    #[must_use]
    pub fn now(&self) -> String {
        let seen = self.seen.lock();
        let newest = seen
            .iter()
            .rev()
            .take(16)
            .filter(|one| one.leader.is_some())
            .max_by_key(|one| one.term);
        match newest {
            Some(one) => format!("node {} leads in term {}", one.leader.unwrap_or_default(), one.term),
            None => "nobody leads".to_owned(),
        }
    }

    /// Stops.
    pub async fn stop(mut self) -> Seen {
        self.task.shutdown().await;
        Seen(std::mem::take(&mut *self.seen.lock()))
    }
}

/// All that was seen.
#[derive(Debug)]
pub struct Seen(Vec<Sighting>);

impl Seen {
    /// Judges it, and what was said at last.
    pub fn judge(mut self, report: &mut Report, during: &str, last: &[Sighting]) {
        self.0.extend_from_slice(last);
        let found = standings::wrong(&self.0);
        let nodes: BTreeMap<u64, usize> = self.0.iter().fold(BTreeMap::new(), |mut counts, one| {
            *counts.entry(one.node).or_default() += 1;
            counts
        });
        report.verdict(
            oracles::LEADERSHIP,
            &format!("{during}a term has one leader, no node goes back to an older term, all have one history"),
            found.is_empty() && !self.0.is_empty(),
            match found.first() {
                Some(first) => first.clone(),
                None => format!("{} terms with a leader; looks per node {nodes:?}", standings::reigns(&self.0)),
            },
        );
    }
}
