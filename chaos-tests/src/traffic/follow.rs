//! Follows the changes of registers at every node, as a consumer does that keeps its place: asks for what came after the last answer.
//!
//! In: a client per node, a mesh. Out: the [`Story`] of each follower, for [`crate::oracles::streams`].
//! Invariant: a follower asks one node alone, one question at a time, and its place is always the end of the last answer; a question
//! without an answer is asked again.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{Answer, Api};
use crate::harness::wait::{Pace, pause_until};
use crate::oracles::streams::{Batch, Changed, Entry, Story};

/// Between two questions.
const PERIOD: Duration = Duration::from_millis(250);
/// One question.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The last look at each node, when the faults are over.
const LAST: Duration = Duration::from_secs(60);
/// Items per answer: the most that there may be.
const PAGE: usize = 1000;
/// Fields of a resource that say when, not what.
const TIMES: [&str; 2] = ["creationTime", "modificationTime"];
/// What is followed: see [`super::registers`].
const KIND: &str = "MeshTrafficPermission";

/// Running followers. Dropping it stops them and loses what they were told.
#[derive(Debug)]
pub struct Followers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    stories: Vec<Arc<Mutex<Story>>>,
}

struct Follower {
    api: Api,
    mesh: String,
    story: Arc<Mutex<Story>>,
    at: Option<u64>,
    anew: bool,
}

impl Followers {
    /// Starts one at each node.
    #[must_use]
    pub fn start(nodes: &[Api], mesh: &str) -> Self {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let mut stories = Vec::new();
        for api in nodes {
            let story = Arc::new(Mutex::new(Story {
                node: api.target().to_string(),
                ..Story::default()
            }));
            stories.push(story.clone());
            let follower = Follower {
                api: api.fork().with_deadline(ATTEMPT),
                mesh: mesh.to_owned(),
                story,
                at: None,
                anew: false,
            };
            tasks.spawn(follower.run(stop.clone()));
        }
        Self { stop, tasks, stories }
    }

    /// Has each follower come to the present of its node, and returns what they were told. To be called when nobody writes any more.
    pub async fn stop(mut self) -> Vec<Story> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.stories.iter().map(|story| story.lock().clone()).collect()
    }
}

impl Follower {
    async fn run(mut self, stop: CancellationToken) {
        let mut pace = Pace::every(PERIOD);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _due = pace.slot() => {}
            }
            if self.step().await.is_err() {
                self.story.lock().unanswered += 1;
                pace = Pace::every(PERIOD);
            }
        }
        // To the end, and what there is then. A node that is away for good is left where it is.
        let end = Instant::now() + LAST;
        while Instant::now() < end {
            if self.step().await.is_ok()
                && let Ok(all) = self.all().await
            {
                self.story.lock().end = Some(all);
                return;
            }
            pause_until(Instant::now() + PERIOD).await;
        }
    }

    /// Asks on from where it is.
    async fn step(&mut self) -> anyhow::Result<()> {
        let Some(from) = self.at else {
            let answer = self.api.get(&format!("/_history?{}&size=1", self.what())).await?.success()?;
            self.at = answer.json::<Value>()?["to"].as_u64();
            return Ok(());
        };
        let mut batch = Batch {
            from,
            anew: std::mem::take(&mut self.anew),
            ..Batch::default()
        };
        let mut until = None;
        loop {
            let bound = until.map(|to: u64| format!("&to={to}")).unwrap_or_default();
            let question = format!("/_history?{}&from={from}&size={PAGE}{bound}", self.what());
            let answer = self.api.get(&question).await?;
            if let Some(problem) = self.refused(&answer) {
                batch.to = from;
                batch.denied = Some(problem);
                self.at = None;
                self.anew = true;
                break self.story.lock().batches.push(batch);
            }
            if answer.status == http::StatusCode::GONE {
                (self.at, self.anew) = (None, true);
                return Ok(());
            }
            let page: Value = answer.success()?.json()?;
            if until.is_none() {
                batch.to = page["to"].as_u64().unwrap_or_default();
                batch.history = text(&page["history"]).to_owned();
            }
            // Newest first; a batch is oldest first.
            batch.entries.extend(items(&page).iter().map(entry));
            match batch.entries.last() {
                Some(oldest) if !page["next"].is_null() && oldest.revision > from => until = Some(oldest.revision - 1),
                _ => {
                    batch.entries.reverse();
                    batch.values = self.values(from, batch.to).await?;
                    self.at = Some(batch.to);
                    // Most answers say that nothing happened.
                    if batch.to != from || batch.anew {
                        self.story.lock().batches.push(batch);
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    /// The node says that there is no such revision, which it told of itself.
    fn refused(&self, answer: &Answer) -> Option<String> {
        (answer.status == http::StatusCode::BAD_REQUEST).then(|| crate::client::head(&answer.text()))
    }

    async fn values(&self, from: u64, to: u64) -> anyhow::Result<Vec<Changed>> {
        if from == to {
            return Ok(Vec::new());
        }
        let question = format!("/_changes?{}&from={from}&to={to}", self.what());
        let some = |value: &Value| (!value.is_null()).then(|| content(value));
        let changed = |item: &Value| Changed {
            key: text(&item["name"]).to_owned(),
            before: some(&item["before"]),
            after: some(&item["after"]),
        };
        Ok(self.pages(&question).await?.iter().map(changed).collect())
    }

    /// Everything at the revision where it is.
    async fn all(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let at = self.at.unwrap_or_default();
        let all = self
            .pages(&format!("/meshes/{}/meshtrafficpermissions?revision={at}", self.mesh))
            .await?;
        Ok(all.iter().map(|item| (text(&item["name"]).to_owned(), content(item))).collect())
    }

    async fn pages(&self, question: &str) -> anyhow::Result<Vec<Value>> {
        let mut all = Vec::new();
        loop {
            let question = format!("{question}&size={PAGE}&offset={}", all.len());
            let page: Value = self.api.get(&question).await?.success()?.json()?;
            let found = items(&page);
            all.extend_from_slice(found);
            if page["next"].is_null() || found.is_empty() {
                return Ok(all);
            }
        }
    }

    fn what(&self) -> String {
        format!("type={KIND}&mesh={}", self.mesh)
    }
}

fn items(page: &Value) -> &[Value] {
    page["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Without the times: what was changed and changed back is no difference to `_changes`.
fn content(resource: &Value) -> Value {
    let mut content = resource.clone();
    if let Some(fields) = content.as_object_mut() {
        fields.retain(|name, _| !TIMES.contains(&name.as_str()));
    }
    content
}

fn entry(item: &Value) -> Entry {
    let changes = item["changes"].as_array().into_iter().flatten();
    Entry {
        revision: item["revision"].as_u64().unwrap_or_default(),
        changes: changes
            .map(|change| format!("{} {} {}", text(&change["operation"]), text(&change["type"]), text(&change["name"])))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_changed_back_is_the_same_content() {
        let at = |time: &str, value: u64| json!({"name": "x", "creationTime": time, "modificationTime": time, "spec": {"n": value}});
        assert_eq!(content(&at("a", 1)), content(&at("b", 1)));
        assert_ne!(content(&at("a", 1)), content(&at("a", 2)));
    }
}
