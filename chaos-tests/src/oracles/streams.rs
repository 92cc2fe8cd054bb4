//! Judges what those who follow the changes were told: at every node, from wherever they began, through every fault.
//!
//! In: a [`Story`] of each follower, the acknowledged writes. Out: what must not have been told, or was not told.
//! Invariant: what is told goes on where it ended, without gap, repeat or change of order; all nodes tell the same of the same revision;
//! every acknowledged write is told, at the revision of its acknowledgement; and what was told of values makes exactly what there is.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Findings that are told; what follows the first is seldom news.
const KEEP: usize = 20;

/// One revision, as a node tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub revision: u64,
    /// Operation, type and name of each change.
    pub changes: BTreeSet<String>,
}

/// What became of one resource between two revisions.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Type and name.
    pub key: String,
    /// As it was, if it was there.
    pub before: Option<Value>,
    /// As it is, if it is there.
    pub after: Option<Value>,
}

/// One answer: everything after `from` up to `to`.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Where the follower was.
    pub from: u64,
    /// Where it is now.
    pub to: u64,
    /// The history that the revisions belong to.
    pub history: String,
    /// In the order of their telling, oldest first.
    pub entries: Vec<Entry>,
    /// The same by value, what came and went in between left out.
    pub values: Vec<Changed>,
    /// The follower had to begin anew: what it lacked is no longer kept.
    pub anew: bool,
    /// The node denied a revision that it, or another, had told of before.
    pub denied: Option<String>,
}

/// Everything that one follower was told.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// Who told it.
    pub node: String,
    /// In order.
    pub batches: Vec<Batch>,
    /// Questions without an answer.
    pub unanswered: u64,
    /// What there was at the end of the last batch, if that could be asked.
    pub end: Option<BTreeMap<String, Value>>,
}

impl Story {
    /// Revisions that were told.
    #[must_use]
    pub fn told(&self) -> usize {
        self.batches.iter().map(|batch| batch.entries.len()).sum()
    }

    fn covers(&self, revision: u64) -> bool {
        self.batches.iter().any(|batch| batch.from < revision && revision <= batch.to)
    }
}

/// An acknowledged write.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// At which revision.
    pub revision: u64,
    /// Name of the resource.
    pub name: String,
}

/// What is wrong with these stories.
#[must_use]
pub fn wrong(stories: &[Story], acknowledged: &[Acknowledged]) -> Vec<String> {
    let mut found = Vec::new();
    for story in stories {
        order(story, &mut found);
        values(story, &mut found);
    }
    histories(stories, &mut found);
    let known = same(stories, &mut found);
    for story in stories {
        for write in acknowledged.iter().filter(|write| story.covers(write.revision)) {
            let told = known.get(&write.revision).is_some_and(|entry| entry.names(&write.name));
            if !told {
                found.push(format!(
                    "{} does not tell of {}, acknowledged at revision {}",
                    story.node, write.name, write.revision
                ));
            }
        }
    }
    found.truncate(KEEP);
    found
}

impl Entry {
    fn names(&self, name: &str) -> bool {
        self.changes.iter().any(|change| change.rsplit(' ').next() == Some(name))
    }
}

fn order(story: &Story, found: &mut Vec<String>) {
    let node = &story.node;
    let mut at: Option<u64> = None;
    for batch in &story.batches {
        if let Some(denied) = &batch.denied {
            found.push(format!("{node} denies revision {}, told before: {denied}", batch.from));
            continue;
        }
        let (from, to) = (batch.from, batch.to);
        if let Some(at) = at.filter(|at| *at != from && !batch.anew) {
            found.push(format!("{node} was asked from {at} and answers from {from}"));
        }
        if to < from {
            found.push(format!("{node} went back from revision {from} to {to}"));
        }
        let mut last = from;
        for entry in &batch.entries {
            if entry.revision <= last {
                found.push(format!("{node} tells revision {} after {last}", entry.revision));
            } else if entry.revision > to {
                found.push(format!("{node} tells revision {}, and says that it ends at {to}", entry.revision));
            }
            last = last.max(entry.revision);
        }
        at = Some(to.max(from));
    }
}

fn histories(stories: &[Story], found: &mut Vec<String>) {
    let batches = stories.iter().flat_map(|story| &story.batches);
    let ids: BTreeSet<&str> = batches.map(|batch| batch.history.as_str()).filter(|id| !id.is_empty()).collect();
    if ids.len() > 1 {
        found.push(format!("revisions of {} histories were told: {ids:?}", ids.len()));
    }
}

/// What is told of a revision is told by all whose batches go over it.
fn same<'a>(stories: &'a [Story], found: &mut Vec<String>) -> BTreeMap<u64, &'a Entry> {
    let mut known: BTreeMap<u64, (&str, &Entry)> = BTreeMap::new();
    for story in stories {
        for entry in story.batches.iter().flat_map(|batch| &batch.entries) {
            let (first, one) = *known.entry(entry.revision).or_insert((&story.node, entry));
            if one != entry {
                found.push(format!(
                    "{first} and {} tell different changes of revision {}",
                    story.node, entry.revision
                ));
            }
        }
    }
    for story in stories {
        let told: BTreeSet<u64> = story.batches.iter().flat_map(|b| &b.entries).map(|entry| entry.revision).collect();
        for (revision, (by, _)) in &known {
            if story.covers(*revision) && !told.contains(revision) {
                found.push(format!("{} leaves out revision {revision}, of which {by} tells", story.node));
            }
        }
    }
    known.into_iter().map(|(revision, (_, entry))| (revision, entry)).collect()
}

/// Each value begins where the one before ended, and the last ones are what there is.
fn values(story: &Story, found: &mut Vec<String>) {
    let node = &story.node;
    let mut mirror: BTreeMap<&str, Option<&Value>> = BTreeMap::new();
    for batch in &story.batches {
        if batch.anew {
            mirror.clear();
        }
        for changed in &batch.values {
            let before = mirror.insert(&changed.key, changed.after.as_ref());
            if before.is_some_and(|before| before != changed.before.as_ref()) {
                found.push(format!(
                    "{node}, from {} to {}, changes {} from something that it was not",
                    batch.from, batch.to, changed.key
                ));
            }
        }
    }
    let Some(end) = &story.end else { return };
    for (key, value) in &mirror {
        if *value != end.get(*key) {
            found.push(format!("{node}: what was told of {key} is not what there is"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(revision: u64, name: &str) -> Entry {
        Entry {
            revision,
            changes: BTreeSet::from([format!("update T {name}")]),
        }
    }

    fn batch(from: u64, to: u64, told: &[(u64, &str)]) -> Batch {
        Batch {
            from,
            to,
            history: "h".into(),
            entries: told.iter().map(|(revision, name)| entry(*revision, name)).collect(),
            ..Batch::default()
        }
    }

    fn story(node: &str, batches: Vec<Batch>) -> Story {
        Story {
            node: node.into(),
            batches,
            ..Story::default()
        }
    }

    fn good(node: &str) -> Story {
        story(
            node,
            vec![batch(3, 6, &[(4, "a"), (6, "b")]), batch(6, 6, &[]), batch(6, 9, &[(8, "a")])],
        )
    }

    /// What is found beside a good follower.
    fn beside(other: Story) -> Vec<String> {
        let acknowledged = [(4, "a"), (8, "a")].map(|(revision, name)| Acknowledged {
            revision,
            name: name.into(),
        });
        wrong(&[good("one"), other], &acknowledged)
    }

    #[test]
    fn good_stories_pass_also_those_that_begin_later_or_anew() {
        assert_eq!(beside(good("two")), Vec::<String>::new());
        assert_eq!(beside(story("two", vec![batch(5, 7, &[(6, "b")])])), Vec::<String>::new());
        let anew = Batch {
            anew: true,
            ..batch(7, 9, &[(8, "a")])
        };
        assert_eq!(beside(story("two", vec![batch(3, 4, &[(4, "a")]), anew])), Vec::<String>::new());
    }

    #[test]
    fn gaps_repeats_and_disorder_are_found() {
        let found = |batches| beside(story("two", batches)).join("; ");
        let gap = found(vec![batch(3, 9, &[(4, "a"), (8, "a")])]);
        assert_eq!(gap, "two leaves out revision 6, of which one tells");
        let skipped = found(vec![batch(3, 4, &[(4, "a")]), batch(6, 9, &[(8, "a")])]);
        assert!(skipped.contains("asked from 4 and answers from 6"), "{skipped}");
        let repeat = found(vec![batch(3, 6, &[(4, "a"), (6, "b")]), batch(6, 9, &[(6, "b"), (8, "a")])]);
        assert!(repeat.contains("tells revision 6 after 6"), "{repeat}");
        let reordered = found(vec![batch(3, 9, &[(6, "b"), (4, "a"), (8, "a")])]);
        assert!(reordered.contains("tells revision 4 after 6"), "{reordered}");
        let beyond = found(vec![batch(3, 6, &[(4, "a"), (6, "b"), (8, "a")])]);
        assert!(beyond.contains("says that it ends at 6"), "{beyond}");
        let back = found(vec![batch(3, 6, &[(4, "a"), (6, "b")]), batch(6, 5, &[])]);
        assert!(back.contains("went back from revision 6 to 5"), "{back}");
        let denied = Batch {
            denied: Some("has not happened yet".into()),
            ..batch(6, 6, &[])
        };
        assert!(found(vec![denied]).contains("denies revision 6"));
    }

    #[test]
    fn nodes_that_disagree_are_found() {
        let other = story("two", vec![batch(3, 9, &[(4, "a"), (6, "c"), (8, "a")])]);
        assert!(beside(other).join("; ").contains("different changes of revision 6"));
        let alien = Batch {
            history: "other".into(),
            ..batch(9, 9, &[])
        };
        assert!(beside(story("two", vec![alien])).join("; ").contains("2 histories"));
    }

    #[test]
    fn an_acknowledged_write_that_nobody_tells_of_is_found() {
        let acknowledged = |revision, name: &str| {
            let write = Acknowledged {
                revision,
                name: name.into(),
            };
            wrong(&[good("one")], &[write])
        };
        assert_eq!(acknowledged(6, "b"), Vec::<String>::new());
        assert_eq!(acknowledged(7, "b").len(), 1, "no such revision");
        assert_eq!(acknowledged(6, "a").len(), 1, "another resource");
        assert_eq!(acknowledged(12, "a"), Vec::<String>::new(), "later than all that was told");
    }

    #[test]
    fn values_that_do_not_add_up_are_found() {
        let changed = |before: Option<u64>, after: Option<u64>| Changed {
            key: "T a".into(),
            before: before.map(|n| json!(n)),
            after: after.map(|n| json!(n)),
        };
        let told = |values: Vec<Changed>, end: Option<u64>| {
            let batches = values.into_iter().zip(3..).map(|(changed, from)| Batch {
                values: vec![changed],
                ..batch(from, from + 1, &[])
            });
            let mut story = story("one", batches.collect());
            story.end = Some(end.map(|n| ("T a".to_owned(), json!(n))).into_iter().collect());
            wrong(&[story], &[]).len()
        };
        let life = vec![changed(None, Some(1)), changed(Some(1), Some(2)), changed(Some(2), None)];
        assert_eq!(told(life.clone(), None), 0);
        assert_eq!(told(life.clone(), Some(2)), 1, "the delete is not done");
        assert_eq!(told(life[..2].to_vec(), Some(1)), 1, "an older value");
        assert_eq!(told(vec![life[0].clone(), life[2].clone()], None), 1, "one is left out");
        assert_eq!(told(vec![life[0].clone(), life[0].clone()], Some(1)), 1, "one is told twice");
    }
}
