//! Reads the ring of stages of a process: which revision reached which stage at what time.
//!
//! In: `GET /stages?since=N` of a diagnostics port. Out: entries, each once. All processes run on one machine, so their times compare.
//! Invariant: an entry that the ring has dropped before it was read is an error, never a silent gap.
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::wait::{POLL, Poll, wait_until};
use crate::client::Api;

/// Entries kept here; far more than one wait looks back over.
const KEEP: usize = 16 * 1024;

/// One stage reached.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    /// Position in the ring, rising by one.
    pub seq: u64,
    /// The global revision.
    pub revision: u64,
    /// `received`, `committed`, `sent`, `stored`, `built`, `pushed` or `acked`.
    pub stage: String,
    /// What it is about: a zone for `sent`, a proxy id for `built`, `pushed`, `acked`.
    #[serde(default)]
    pub subject: String,
    /// When, in nanoseconds since 1970.
    pub at_unix_ns: u64,
}

#[derive(Debug, Deserialize)]
struct Page {
    oldest: u64,
    entries: Vec<Entry>,
}

/// A reader of one process's ring.
#[derive(Debug)]
pub struct Stages {
    api: Api,
    last: Option<u64>,
    seen: Vec<Entry>,
}

impl Stages {
    /// Reads from the client of a diagnostics port.
    #[must_use]
    pub fn new(api: Api) -> Self {
        Self {
            api,
            last: None,
            seen: Vec::new(),
        }
    }

    /// Forgets what was seen and skips what is in the ring now.
    ///
    /// # Errors
    /// If the port does not answer.
    pub async fn skip(&mut self) -> anyhow::Result<()> {
        self.fetch().await?;
        self.seen.clear();
        Ok(())
    }

    /// The earliest entry seen since the last [`Stages::skip`] for which `wanted` holds, waiting for it if need be.
    ///
    /// # Errors
    /// At the deadline, if the ring lost entries, or if the port does not answer.
    pub async fn first(&mut self, what: &str, deadline: Duration, wanted: impl Fn(&Entry) -> bool) -> anyhow::Result<Entry> {
        let (entry, _) = wait_until(what, deadline, POLL, async || {
            if !self.seen.iter().any(&wanted) {
                self.fetch().await?;
            }
            Ok(match self.seen.iter().find(|e| wanted(e)) {
                Some(entry) => Poll::Ready(entry.clone()),
                None => Poll::NotYet(format!("{} entries, the last {:?}", self.seen.len(), self.seen.last())),
            })
        })
        .await?;
        Ok(entry)
    }

    async fn fetch(&mut self) -> anyhow::Result<()> {
        // One answer holds a limited number of entries: ask on until there are no further ones.
        loop {
            let since = self.last.unwrap_or(0);
            let answer = self
                .api
                .get(&format!("/stages?since={since}"))
                .await
                .with_context(|| format!("stages of {}", self.api.target()))?;
            let page: Page = answer.success()?.json()?;
            if page.entries.is_empty() {
                return Ok(());
            }
            self.take(page)?;
        }
    }

    fn take(&mut self, page: Page) -> anyhow::Result<()> {
        if let Some(last) = self.last
            && page.oldest > last + 1
        {
            bail!(
                "the ring of stages of {} went on from {last} to {} before it was read",
                self.api.target(),
                page.oldest
            );
        }
        for entry in page.entries {
            if self.last.is_none_or(|last| entry.seq > last) {
                self.last = Some(entry.seq);
                self.seen.push(entry);
            }
        }
        if self.seen.len() > KEEP {
            self.seen.drain(..self.seen.len() - KEEP);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Target;

    fn page(oldest: u64, seqs: &[u64]) -> Page {
        let entry = |seq: &u64| Entry {
            seq: *seq,
            revision: 9,
            stage: "acked".into(),
            subject: String::new(),
            at_unix_ns: *seq,
        };
        Page {
            oldest,
            entries: seqs.iter().map(entry).collect(),
        }
    }

    #[test]
    fn each_entry_is_taken_once_and_a_gap_is_an_error() {
        let mut stages = Stages::new(Api::new(Target::Unix("/nowhere".into())));
        stages.take(page(1, &[1, 2, 3])).unwrap();
        stages.take(page(1, &[3, 4])).unwrap();
        assert_eq!(stages.seen.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
        stages.take(page(5, &[5])).unwrap();
        assert!(stages.take(page(9, &[9])).is_err());
    }

    #[test]
    fn the_format_is_the_one_of_the_diagnostics_port() {
        let json = r#"{"oldest":1,"entries":[{"seq":1,"history":"h","revision":7,"stage":"committed","subject":"","at_unix_ns":1763000000000000000}]}"#;
        let page: Page = serde_json::from_str(json).unwrap();
        assert_eq!(
            (page.entries[0].revision, page.entries[0].at_unix_ns),
            (7, 1_763_000_000_000_000_000)
        );
    }
}
