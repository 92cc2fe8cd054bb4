//! Judges reads and writes of registers: many keys, one writer each, many readers, every node of a cluster.
//!
//! In: a [`History`] of operations with the times at which they began and ended. Out: every [`Violation`].
//! Invariant: a writer writes 1, 2, 3, ... to its key and begins a value only after the one before it was acknowledged; an attempt
//! whose outcome it does not know is sent again under the same request id, or is the last of its key. So a key never goes back, and
//! a history is linearizable exactly if each read lies between the last value acknowledged before it began and the last one attempted
//! before it ended, and no read that begins after another has ended sees less.
//! Source: issue text; M. Herlihy, J. Wing, "Linearizability" (1990), for one writer.
use std::collections::BTreeMap;
use std::fmt;

use tokio::time::Instant;

use super::streams::Acknowledged;

/// A value written to a key. Values of one key rise by one.
#[derive(Clone, Debug)]
pub struct Write {
    /// The register.
    pub key: String,
    /// The value, from 1.
    pub value: u64,
    /// When the first attempt was sent.
    pub began: Instant,
    /// When the acknowledged attempt was sent, if there is one.
    pub last_began: Instant,
    /// When its acknowledgement was there; none if it never was.
    pub acked: Option<Instant>,
    /// How often it was sent.
    pub attempts: u32,
    /// The node that acknowledged it.
    pub node: usize,
    /// The revision that the acknowledgement named.
    pub revision: Option<u64>,
}

/// What a client read.
#[derive(Clone, Debug)]
pub struct Read {
    /// Who read; a client does one thing after another.
    pub client: String,
    /// The register.
    pub key: String,
    /// What it held; 0 if it did not exist.
    pub value: u64,
    /// When it was asked for.
    pub began: Instant,
    /// When the answer was there.
    pub ended: Instant,
    /// The node that answered.
    pub node: usize,
}

/// All that happened, in any order.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Writes, acknowledged or not.
    pub writes: Vec<Write>,
    /// Reads that were answered.
    pub reads: Vec<Read>,
}

/// What was wrong with a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It saw less than what was acknowledged before it began: the write is lost, or the read is stale.
    Missing { acked: u64 },
    /// It saw a value that nobody had sent when it ended.
    Invented { attempted: u64 },
    /// Its client had seen a later value before.
    WentBack { before: u64 },
    /// Another client had seen a later value before it began.
    Inverted { before: u64, client: String },
}

/// A read that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The read.
    pub read: Read,
    /// Why not.
    pub wrong: Wrong,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Read {
            client, key, value, node, ..
        } = &self.read;
        write!(f, "{client} read {key} = {value} at node {node}, ")?;
        match &self.wrong {
            Wrong::Missing { acked } => write!(f, "but {acked} was acknowledged before"),
            Wrong::Invented { attempted } => write!(f, "but only {attempted} was ever sent by then"),
            Wrong::WentBack { before } => write!(f, "after it had read {before} itself"),
            Wrong::Inverted { before, client } => write!(f, "after {client} had read {before}"),
        }
    }
}

impl History {
    /// Adds all of another history.
    pub fn add(&mut self, other: Self) {
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
    }

    /// Acknowledged writes.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.writes.iter().filter(|w| w.acked.is_some()).count()
    }

    /// Acknowledged writes that changed something, with the revision of their acknowledgement.
    pub fn with_revisions(&self) -> impl Iterator<Item = Acknowledged> {
        let acknowledged = self.writes.iter().filter(|w| w.acked.is_some());
        acknowledged.filter_map(|w| {
            Some(Acknowledged {
                revision: w.revision?,
                name: w.key.clone(),
            })
        })
    }

    /// The last acknowledged value of each key.
    #[must_use]
    pub fn newest(&self) -> BTreeMap<&str, u64> {
        let mut newest = BTreeMap::new();
        for write in self.writes.iter().filter(|w| w.acked.is_some()) {
            let value: &mut u64 = newest.entry(write.key.as_str()).or_default();
            *value = (*value).max(write.value);
        }
        newest
    }

    /// Judges all reads. Empty if the history is linearizable.
    ///
    /// # Panics
    /// If the writes are not what the module's header says: a fault of the test that made them.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        let mut keys: BTreeMap<&str, (Vec<&Write>, Vec<&Read>)> = BTreeMap::new();
        for write in &self.writes {
            keys.entry(&write.key).or_default().0.push(write);
        }
        for read in &self.reads {
            keys.entry(&read.key).or_default().1.push(read);
        }
        let mut found = Vec::new();
        for (key, (mut writes, reads)) in keys {
            writes.sort_unstable_by_key(|w| w.value);
            require_one_after_another(key, &writes);
            bounds(&writes, &reads, &mut found);
            order(reads, &mut found);
        }
        found
    }
}

fn require_one_after_another(key: &str, writes: &[&Write]) {
    for (at, write) in writes.iter().enumerate() {
        assert_eq!(write.value, at as u64 + 1, "the values of {key} rise by one");
        if let Some(next) = writes.get(at + 1) {
            assert!(
                write.acked.is_some_and(|acked| acked <= next.began),
                "{key}: {} was begun before {} was acknowledged",
                next.value,
                write.value
            );
        }
    }
}

fn bounds(writes: &[&Write], reads: &[&Read], found: &mut Vec<Violation>) {
    for read in reads {
        // Both times rise with the value.
        let acked = writes.partition_point(|w| w.acked.is_some_and(|acked| acked < read.began)) as u64;
        let attempted = writes.partition_point(|w| w.began <= read.ended) as u64;
        let wrong = if read.value < acked {
            Wrong::Missing { acked }
        } else if read.value > attempted {
            Wrong::Invented { attempted }
        } else {
            continue;
        };
        found.push(Violation {
            read: (*read).clone(),
            wrong,
        });
    }
}

/// No read sees less than one that had ended before it began.
fn order(reads: Vec<&Read>, found: &mut Vec<Violation>) {
    let mut by_end = reads.clone();
    by_end.sort_unstable_by_key(|r| r.ended);
    let mut by_begin = reads;
    by_begin.sort_unstable_by_key(|r| r.began);
    let (mut ended, mut highest) = (by_end.into_iter().peekable(), None::<&Read>);
    let mut own: BTreeMap<&str, u64> = BTreeMap::new();
    for read in by_begin {
        while let Some(earlier) = ended.next_if(|e| e.ended < read.began) {
            if highest.is_none_or(|h| h.value < earlier.value) {
                highest = Some(earlier);
            }
            let seen = own.entry(&earlier.client).or_default();
            *seen = (*seen).max(earlier.value);
        }
        let before = own.get(read.client.as_str()).copied().unwrap_or_default();
        let wrong = if read.value < before {
            Wrong::WentBack { before }
        } else if let Some(earlier) = highest.filter(|h| h.value > read.value) {
            Wrong::Inverted {
                before: earlier.value,
                client: earlier.client.clone(),
            }
        } else {
            continue;
        };
        found.push(Violation { read: read.clone(), wrong });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Times in milliseconds from a common start.
    struct Made(Instant, History);

    impl Made {
        fn new() -> Self {
            Self(Instant::now(), History::default())
        }

        fn at(&self, ms: u64) -> Instant {
            self.0 + Duration::from_millis(ms)
        }

        /// Key `k` gets `value` from `began` to `acked`.
        fn write(mut self, value: u64, began: u64, acked: Option<u64>) -> Self {
            let (began, acked) = (self.at(began), acked.map(|ms| self.at(ms)));
            self.1.writes.push(Write {
                key: "k".into(),
                value,
                began,
                last_began: began,
                acked,
                attempts: 1,
                node: 0,
                revision: None,
            });
            self
        }

        fn read(mut self, client: &str, value: u64, began: u64, ended: u64) -> Self {
            let (began, ended) = (self.at(began), self.at(ended));
            self.1.reads.push(Read {
                client: client.into(),
                key: "k".into(),
                value,
                began,
                ended,
                node: 1,
            });
            self
        }

        fn wrongs(&self) -> Vec<Wrong> {
            self.1.violations().into_iter().map(|v| v.wrong).collect()
        }
    }

    /// 1 is acknowledged at 10, 2 at 30, 3 is sent at 40 and never acknowledged.
    fn three() -> Made {
        Made::new().write(1, 0, Some(10)).write(2, 20, Some(30)).write(3, 40, None)
    }

    #[test]
    fn good_histories_pass() {
        let good = three()
            .read("a", 0, 0, 5) // not yet there
            .read("b", 1, 1, 6) // in flight: either may be seen, and what is in flight too
            .read("a", 1, 15, 18)
            .read("a", 2, 22, 29) // ends before the acknowledgement
            .read("b", 2, 31, 35)
            .read("a", 2, 50, 60) // 3 is unknown: it may be there or not
            .read("b", 3, 55, 58) // overlaps the read before
            .read("b", 3, 61, 62);
        assert_eq!(good.wrongs(), []);
        assert_eq!((good.1.acknowledged(), good.1.newest()["k"]), (2, 2));
    }

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        assert_eq!(three().read("a", 1, 31, 35).wrongs(), [Wrong::Missing { acked: 2 }]);
        assert_eq!(three().read("a", 0, 90, 95).wrongs(), [Wrong::Missing { acked: 2 }]);
        // At the very moment of the acknowledgement both are right.
        assert_eq!(three().read("a", 1, 30, 35).wrongs(), []);
    }

    #[test]
    fn a_value_from_nowhere_is_found() {
        assert_eq!(three().read("a", 2, 11, 19).wrongs(), [Wrong::Invented { attempted: 1 }]);
        assert_eq!(three().read("a", 4, 50, 60).wrongs(), [Wrong::Invented { attempted: 3 }]);
        assert_eq!(Made::new().read("a", 1, 0, 1).wrongs(), [Wrong::Invented { attempted: 0 }]);
    }

    #[test]
    fn a_client_that_goes_back_is_found() {
        // The attempt without an outcome was seen: from then on it is there for good.
        let back = three().read("a", 3, 50, 55).read("a", 2, 60, 65);
        assert_eq!(back.wrongs(), [Wrong::WentBack { before: 3 }]);
        assert!(
            back.1.violations()[0]
                .to_string()
                .contains("a read k = 2 at node 1, after it had read 3 itself"),
            "{}",
            back.1.violations()[0]
        );
    }

    #[test]
    fn two_clients_that_disagree_on_the_order_are_found() {
        let inverted = three().read("a", 3, 50, 55).read("b", 2, 60, 65);
        let wrong = Wrong::Inverted {
            before: 3,
            client: "a".into(),
        };
        assert_eq!(inverted.wrongs(), [wrong]);
        // Reads that overlap may see either.
        assert_eq!(three().read("a", 3, 50, 61).read("b", 2, 60, 65).wrongs(), []);
    }

    #[test]
    fn keys_do_not_mix() {
        let mut two = three();
        let mut other = three().1;
        other.writes.iter_mut().for_each(|w| w.key = "other".into());
        two.1.add(other);
        let found = two.read("a", 0, 50, 60);
        assert_eq!(found.wrongs(), [Wrong::Missing { acked: 2 }]);
    }

    #[test]
    #[should_panic(expected = "was begun before")]
    fn a_writer_that_does_not_wait_is_a_fault_of_the_test() {
        let _judged = Made::new().write(1, 0, None).write(2, 5, Some(6)).1.violations();
    }
}
