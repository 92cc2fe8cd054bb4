//! The same revision at all nodes, looked at again and again while clients write.
//!
//! In: clients, a mesh. Out: copies of the mesh as it was at one revision, for [`crate::oracles::replicas`].
//! Invariant: the revision is one that some node has shown; each of the others is asked for that very one.
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::client::Api;
use crate::harness::wait::Pace;
use crate::oracles;
use crate::oracles::replicas::{self, Copy};
use crate::report::Report;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// One answer.
const LOOK: Duration = Duration::from_secs(5);
/// Differences that are kept.
const KEEP: usize = 20;

#[derive(Debug, Default)]
struct Found {
    compared: u64,
    wrong: Vec<String>,
}

/// Running looks. Dropping it stops them.
#[derive(Debug)]
pub struct Views {
    found: Arc<Mutex<Found>>,
    several: bool,
    task: JoinSet<()>,
}

/// What came of them.
#[derive(Debug)]
pub struct Compared {
    looks: u64,
    wrong: Vec<String>,
    /// There is something to compare with.
    several: bool,
}

enum Answered {
    Here(Copy),
    /// It says that this revision has not happened.
    Denied(String),
    Away,
}

impl Views {
    /// Starts looking.
    #[must_use]
    pub fn start(nodes: &[Api], mesh: &str) -> Self {
        let (found, mut task) = (Arc::<Mutex<Found>>::default(), JoinSet::new());
        let (seen, path) = (found.clone(), format!("/meshes/{mesh}/meshtrafficpermissions"));
        let nodes: Vec<Api> = nodes.iter().map(|api| api.fork().with_deadline(LOOK)).collect();
        let several = nodes.len() > 1;
        task.spawn(async move {
            let (mut pace, mut turn) = (Pace::every(PERIOD), 0);
            loop {
                pace.slot().await;
                turn += 1;
                if look(&nodes, turn % nodes.len().max(1), &path, &seen).await.is_none() {
                    pace = Pace::every(PERIOD);
                }
            }
        });
        Self { found, several, task }
    }

    /// Stops.
    pub async fn stop(mut self) -> Compared {
        self.task.shutdown().await;
        let found = self.found.lock();
        Compared {
            looks: found.compared,
            wrong: found.wrong.clone(),
            several: self.several,
        }
    }
}

async fn look(nodes: &[Api], first: usize, path: &str, found: &Mutex<Found>) -> Option<()> {
    // Any answer to a read tells the newest revision.
    let revision = nodes
        .get(first)?
        .get(&format!("{path}?size=1"))
        .await
        .ok()?
        .success()
        .ok()?
        .revision()?;
    let answers = join_all(nodes.iter().map(|api| at(api, path, revision))).await;
    let mut copies = Vec::new();
    let mut wrong = Vec::new();
    for (api, answer) in nodes.iter().zip(answers) {
        match answer {
            Answered::Here(copy) => copies.push((api.target().to_string(), copy)),
            Answered::Denied(text) => wrong.push(format!("{} denies revision {revision}: {text}", api.target())),
            Answered::Away => {}
        }
    }
    wrong.extend(
        replicas::differences(&copies)
            .into_iter()
            .map(|d| format!("at revision {revision}, {d}")),
    );
    let mut found = found.lock();
    found.compared += u64::from(copies.len() > 1);
    let room = KEEP.saturating_sub(found.wrong.len());
    found.wrong.extend(wrong.into_iter().take(room));
    Some(())
}

async fn at(api: &Api, path: &str, revision: u64) -> Answered {
    let Ok(answer) = api.get(&format!("{path}?revision={revision}&size=1000")).await else {
        return Answered::Away;
    };
    if answer.status == StatusCode::BAD_REQUEST {
        return Answered::Denied(crate::client::head(&answer.text()));
    }
    match (answer.status.is_success(), answer.json::<Value>()) {
        (true, Ok(page)) => {
            let items = page["items"].as_array().into_iter().flatten();
            let resources = items.map(|item| (item["name"].as_str().unwrap_or_default().to_owned(), item.clone()));
            Answered::Here(Copy {
                revision,
                resources: resources.collect(),
            })
        }
        _ => Answered::Away,
    }
}

impl Compared {
    /// Judges it.
    pub fn judge(&self, report: &mut Report, during: &str) {
        let Self { looks, wrong, several } = self;
        report.verdict(
            oracles::REPLICAS,
            &format!("{during}all nodes show the same at the same revision"),
            wrong.is_empty() && (*looks > 0 || !several),
            match wrong.first() {
                Some(first) => format!("{} differences, the first: {first}", wrong.len()),
                None => format!("{looks} revisions compared"),
            },
        );
    }
}
