//! No acknowledged write is lost, none is done twice, and none that was refused is done.
//! In: what clients were told, and what the revisions say of who asked for them. Out: what does not fit.
//! Invariant: a revision carries the id of the operation that made it, whatever way that took and however often it was sent.
use std::collections::BTreeMap;

use ursa_state::Revision;

use super::agreement::Entry;
use crate::judge::Judge;

/// What a client was told of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Done, at this revision.
    Done(Revision),
    /// It met what was there already and changed nothing.
    Unchanged,
    /// It was not taken in.
    Refused,
    /// Nobody knows.
    Nothing,
}

/// Judges all writes of a run. `kept_from`: revisions up to this one may have been forgotten.
pub fn judge(writes: &BTreeMap<String, Told>, revisions: &BTreeMap<Revision, Entry>, kept_from: Revision, judge: &Judge) {
    let mut by_actor: BTreeMap<&str, Vec<Revision>> = BTreeMap::new();
    for (revision, entry) in revisions {
        by_actor.entry(&entry.actor).or_default().push(*revision);
    }
    for (id, told) in writes {
        let made = by_actor.get(id.as_str()).map(Vec::as_slice).unwrap_or_default();
        let wrong = match (told, made) {
            (_, [_, _, ..]) => Some(format!("{id} was done twice, at revisions {made:?}")),
            (Told::Done(at), [made]) if made != at => Some(format!("{id} was acknowledged at {at} and is at {made}")),
            (Told::Done(at), []) if *at > kept_from => Some(format!("{id}, acknowledged at revision {at}, is lost")),
            (Told::Unchanged, [at]) => Some(format!("{id} was said to change nothing and is at revision {at}")),
            (Told::Refused, [at]) => Some(format!("{id} was refused and is at revision {at}")),
            _ => None,
        };
        if let Some(wrong) = wrong {
            judge.report("writes", wrong);
        }
    }
}

#[cfg(test)]
mod tests {
    use ursa_state::RevisionChanges;

    use super::super::agreement::Agreement;
    use super::*;
    use crate::trace::Trace;

    fn findings(told: Told, revisions: &[u64]) -> usize {
        let found = Judge::new(Trace::new(9));
        let agreement = Agreement::new(found.clone());
        for revision in revisions {
            let changes = RevisionChanges {
                revision: *revision,
                at: Default::default(),
                global: None,
                actor: "w1".to_owned(),
                changes: Vec::new(),
            };
            agreement.told(1, &changes);
        }
        judge(&BTreeMap::from([("w1".to_owned(), told)]), &agreement.changes(), 3, &found);
        found.findings().len()
    }

    #[tokio::test]
    async fn what_was_told_must_be_there_once() {
        assert_eq!(findings(Told::Done(7), &[7]), 0);
        assert_eq!(findings(Told::Done(7), &[]), 1, "lost");
        assert_eq!(findings(Told::Done(2), &[]), 0, "forgotten by compaction");
        assert_eq!(findings(Told::Done(7), &[8]), 1, "elsewhere");
        assert_eq!(findings(Told::Done(7), &[7, 8]), 1, "twice");
        assert_eq!((findings(Told::Refused, &[]), findings(Told::Refused, &[7])), (0, 1));
        assert_eq!((findings(Told::Unchanged, &[]), findings(Told::Unchanged, &[7])), (0, 1));
        assert_eq!((findings(Told::Nothing, &[]), findings(Told::Nothing, &[7])), (0, 0));
    }
}
