//! What the log knows without reading: where each entry is, and the newest entries themselves.
//! In: entries as they are admitted and as they are written. Out: entries, or where to read them.
//! Invariant: the slots are contiguous from the entry after the purged one to the last; an entry that is not on disk yet is in memory.
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::sync::watch;

use super::part::Part;
use super::{EntryId, Error, Failure, Item, Refused, Vote};

/// Where the record of an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: u64,
    pub offset: u64,
    pub size: usize,
}

#[derive(Debug)]
struct Slot<E> {
    term: u64,
    /// Bytes of the encoding.
    size: usize,
    place: Option<Place>,
    item: Option<E>,
}

/// An entry, or how to get it.
#[derive(Debug)]
pub(super) enum Found<E> {
    Here(E),
    On { id: EntryId, place: Place, part: Part },
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Memory<E> {
    pub vote: Option<Vote>,
    pub committed: Option<EntryId>,
    pub purged: Option<EntryId>,
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot<E>>,
    /// Entry before the first slot.
    base: Option<EntryId>,
    pub files: BTreeMap<u64, Part>,
    /// Slots before this index hold no entry any more, only its place.
    cached_from: u64,
    cached_bytes: usize,
    cache_limit: usize,
    failed: watch::Sender<Option<Failure>>,
    /// Why the disk takes nothing at the moment.
    refused: watch::Sender<Option<Refused>>,
    /// How often the log was synced, and how long all of that took.
    pub syncs: (u64, Duration),
}

impl<E> Memory<E> {
    pub(super) fn new(base: Option<EntryId>, cache_limit: usize) -> Self {
        Self {
            vote: None,
            committed: None,
            purged: base,
            first: base.map_or(0, |id| id.index + 1),
            slots: VecDeque::new(),
            base,
            files: BTreeMap::new(),
            cached_from: 0,
            cached_bytes: 0,
            cache_limit,
            failed: watch::Sender::new(None),
            refused: watch::Sender::new(None),
            syncs: (0, Duration::ZERO),
        }
    }

    /// Newest entry, or the purged one.
    pub(super) fn last(&self) -> Option<EntryId> {
        match self.slots.back() {
            Some(slot) => Some(EntryId {
                term: slot.term,
                index: self.first + self.slots.len() as u64 - 1,
            }),
            None => self.base,
        }
    }

    /// Index range of the entries that are kept.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.slots.len() as u64
    }

    fn slot(&mut self, index: u64) -> Option<&mut Slot<E>> {
        let nth = index.checked_sub(self.first)?;
        self.slots.get_mut(usize::try_from(nth).ok()?)
    }

    /// Room for an entry that follows the last. `size` is the length of its encoding.
    pub(super) fn push(&mut self, id: EntryId, size: usize, item: Option<E>, place: Option<Place>) -> Result<(), Error> {
        self.may_follow(id)?;
        if self.last().is_none() {
            self.first = id.index;
        }
        if item.is_some() {
            self.cached_bytes += size;
        }
        self.slots.push_back(Slot {
            term: id.term,
            size,
            place,
            item,
        });
        Ok(())
    }

    fn may_follow(&self, id: EntryId) -> Result<(), Error> {
        self.last().map_or(Ok(()), |last| follows(id, last))
    }

    /// Whether these could be pushed one after the other.
    pub(super) fn check_run(&self, ids: &[EntryId]) -> Result<(), Error> {
        ids.first().map_or(Ok(()), |first| self.may_follow(*first))?;
        ids.windows(2).try_for_each(|pair| match pair {
            [before, after] => follows(*after, *before),
            _ => Ok(()),
        })
    }

    /// Removes the entries after `to`. At open, `to` may lie before what is known.
    pub(super) fn truncate_after(&mut self, to: Option<EntryId>) {
        let keep = to.map_or(0, |id| id.index + 1);
        while self.range().end > keep
            && let Some(slot) = self.slots.pop_back()
        {
            self.uncount(&slot);
        }
        if self.base.is_some_and(|base| base.index >= keep) {
            self.base = to.max(self.purged);
        }
        self.settle();
    }

    /// A file was written anew: its entries are elsewhere in it. What was truncated meanwhile stays away.
    pub(super) fn moved(&mut self, seq: u64, part: Part, places: &[(EntryId, Place, Place)]) {
        for (id, from, to) in places {
            if let Some(slot) = self.slot(id.index).filter(|slot| slot.term == id.term && slot.place == Some(*from)) {
                slot.place = Some(*to);
            }
        }
        self.files.insert(seq, part);
    }

    /// Forgets the entries up to `upto`, which may lie after the last one (a snapshot replaced them).
    pub(super) fn purge(&mut self, upto: EntryId) {
        self.purged = self.purged.max(Some(upto));
        while self.first <= upto.index
            && let Some(slot) = self.slots.pop_front()
        {
            self.uncount(&slot);
            self.first += 1;
        }
        if self.base.is_none_or(|base| base.index < upto.index) && self.slots.is_empty() | (self.first == upto.index + 1) {
            self.base = Some(upto);
        }
        self.settle();
    }

    /// With no entries, the next index follows from what is before them.
    fn settle(&mut self) {
        if self.slots.is_empty() {
            self.first = self.base.map_or(0, |id| id.index + 1);
        }
    }

    fn uncount(&mut self, slot: &Slot<E>) {
        if slot.item.is_some() {
            self.cached_bytes = self.cached_bytes.saturating_sub(slot.size);
        }
    }

    /// Whether nothing is missing between the purged entry and the first slot.
    pub(super) fn is_whole(&self) -> bool {
        self.base.map(|id| id.index) <= self.purged.map(|id| id.index)
    }

    pub(super) fn cache_limit(&self) -> usize {
        self.cache_limit
    }

    /// Why nothing more is taken, if so.
    pub(super) fn failed(&self) -> Option<Failure> {
        self.failed.borrow().clone()
    }

    pub(super) fn watch_refused(&self) -> watch::Receiver<Option<Refused>> {
        self.refused.subscribe()
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused.borrow().is_some()
    }

    /// The disk takes nothing, or takes writes again. Says whether that is news.
    pub(super) fn refuse(&self, now: Option<Refused>) -> bool {
        let news = self.is_refused() != now.is_some();
        self.refused.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
        news
    }

    pub(super) fn watch_failed(&self) -> watch::Receiver<Option<Failure>> {
        self.failed.subscribe()
    }

    /// Nothing more is taken from here on; the first reason stays. Returns the one that holds.
    pub(super) fn fail(&mut self, failure: Failure) -> Failure {
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert_with(|| failure.clone());
            first
        });
        self.failed().unwrap_or(failure)
    }
}

impl<E: Item> Memory<E> {
    /// The entry with this id is on disk (perhaps not synced). One that was truncated meanwhile is passed over.
    pub(super) fn written(&mut self, id: EntryId, place: Place) {
        let Some(slot) = self.slot(id.index) else { return };
        if slot.term != id.term {
            return;
        }
        slot.place = Some(place);
        self.evict();
    }

    fn evict(&mut self) {
        self.cached_from = self.cached_from.clamp(self.first, self.range().end);
        while self.cached_bytes > self.cache_limit {
            let index = self.cached_from;
            let Some(slot) = self.slot(index) else { return };
            if slot.place.is_none() {
                return;
            }
            if slot.item.take().is_some() {
                let size = slot.size;
                self.cached_bytes = self.cached_bytes.saturating_sub(size);
            }
            self.cached_from += 1;
        }
    }

    /// The entries of `range` that exist, oldest first, at least one and then as many as fit in `limit` bytes.
    pub(super) fn find(&self, range: std::ops::Range<u64>, limit: usize) -> Result<Vec<Found<E>>, Error> {
        let kept = self.range();
        let (start, end) = (range.start.max(kept.start), range.end.min(kept.end));
        let mut found = Vec::new();
        let mut bytes = 0_usize;
        for index in start..end {
            let nth = usize::try_from(index - self.first).unwrap_or(usize::MAX);
            let Some(slot) = self.slots.get(nth) else { break };
            bytes = bytes.saturating_add(slot.size);
            if bytes > limit && !found.is_empty() {
                break;
            }
            let id = EntryId { term: slot.term, index };
            found.push(match (&slot.item, slot.place) {
                (Some(item), _) => Found::Here(item.clone()),
                (None, Some(place)) => match self.files.get(&place.segment) {
                    Some(part) => Found::On {
                        id,
                        place,
                        part: part.clone(),
                    },
                    None => {
                        return Err(Error::Hole {
                            got: id,
                            after: format!("what segment {} held", place.segment),
                        });
                    }
                },
                (None, None) => {
                    return Err(Error::Hole {
                        got: id,
                        after: "what memory held".to_owned(),
                    });
                }
            });
        }
        Ok(found)
    }
}

fn follows(id: EntryId, last: EntryId) -> Result<(), Error> {
    if id.index == last.index + 1 && id.term >= last.term {
        Ok(())
    } else {
        Err(Error::Hole {
            got: id,
            after: last.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> EntryId {
        EntryId { term, index }
    }

    fn filled(indexes: std::ops::RangeInclusive<u64>) -> Memory<()> {
        let mut memory = Memory::new(None, 0);
        for index in indexes {
            memory.push(id(1, index), 1, None, None).unwrap();
        }
        memory
    }

    #[test]
    fn entries_follow_each_other() {
        let mut memory = filled(0..=4);
        assert_eq!((memory.last(), memory.range()), (Some(id(1, 4)), 0..5));
        assert!(memory.push(id(1, 6), 1, None, None).is_err());
        assert!(memory.push(id(0, 5), 1, None, None).is_err(), "terms do not fall");
    }

    #[test]
    fn truncate_and_purge() {
        let mut memory = filled(0..=9);
        memory.truncate_after(Some(id(1, 7)));
        assert_eq!(memory.range(), 0..8);
        memory.purge(id(1, 3));
        assert_eq!(
            (memory.range(), memory.last(), memory.purged),
            (4..8, Some(id(1, 7)), Some(id(1, 3)))
        );
        memory.truncate_after(Some(id(1, 3)));
        assert_eq!((memory.range(), memory.last()), (4..4, Some(id(1, 3))));
        memory.push(id(2, 4), 1, None, None).unwrap();
        memory.purge(id(5, 20));
        assert_eq!((memory.range(), memory.last(), memory.is_whole()), (21..21, Some(id(5, 20)), true));
        memory.truncate_after(None);
        assert_eq!(memory.last(), Some(id(5, 20)), "what is purged stays purged");
    }

    #[test]
    fn a_whole_log_can_be_truncated() {
        let mut memory = filled(0..=9);
        memory.truncate_after(None);
        assert_eq!((memory.range(), memory.last()), (0..0, None));
        memory.push(id(3, 0), 1, None, None).unwrap();
    }

    #[test]
    fn at_open_the_base_may_be_ahead_of_what_is_known_to_be_purged() {
        // Entries up to 10 were in files that are gone; the mark that allowed it comes later in the log.
        let mut memory: Memory<()> = Memory::new(Some(id(1, 10)), 0);
        memory.purged = None;
        assert!(!memory.is_whole());
        memory.truncate_after(Some(id(1, 5)));
        assert_eq!(memory.range(), 6..6);
        for index in 6..=20 {
            memory.push(id(2, index), 1, None, None).unwrap();
        }
        memory.purge(id(2, 12));
        assert_eq!((memory.range(), memory.is_whole()), (13..21, true));
    }
}
