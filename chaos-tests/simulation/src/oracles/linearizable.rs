//! Per-key linearizability: there is one order of the operations on a key, in agreement with real time, that explains every answer.
//! In: the history of each key. Out: a key whose history has no such order.
//! Invariant: a write whose outcome is unknown may have its effect at any time after it was sent, or never.
//! Source: Wing & Gong, "Testing and Verifying Concurrent Objects" (1993), with the memory of Lowe, "Testing for linearizability" (2017).
use std::collections::{BTreeMap, HashSet};

use crate::judge::Judge;

/// Content of a register; `None`: it does not exist.
pub type Value = Option<u64>;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Also a delete: `None`.
    Write(Value),
    Read(Value),
}

/// One operation on one key. Moments are numbered over the whole run, so that no two are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub action: Action,
    pub called: u64,
    /// `None`: nobody knows its outcome.
    pub returned: Option<u64>,
}

/// Steps after which a history counts as undecided. Far more than any history here has needed.
const MAX_STEPS: u64 = 1_000_000;

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    Not,
    /// Given up.
    Undecided,
}

/// Judges the histories of all keys.
pub fn judge(histories: BTreeMap<String, Vec<Operation>>, judge: &Judge) {
    for (key, history) in histories {
        let all = history.len();
        match check(history.clone()) {
            Verdict::Linearizable => {}
            Verdict::Not => {
                let window = smallest_prefix(&history);
                judge.report(
                    "linearizable",
                    format!("{key}: no order explains its {all} operations; the last of the shortest prefix: {window:?}"),
                );
            }
            Verdict::Undecided => judge.report("linearizable", format!("{key}: undecided after {MAX_STEPS} steps")),
        }
    }
}

/// The last operations of the shortest part of the history, cut by time of return, that has no order either.
fn smallest_prefix(history: &[Operation]) -> Vec<Operation> {
    let mut ends: Vec<u64> = history.iter().filter_map(|op| op.returned).collect();
    ends.sort_unstable();
    let cut = |end: u64| -> Vec<Operation> {
        let known = history.iter().filter(|op| op.called <= end);
        known
            .map(|op| match (op.action, op.returned) {
                (_, Some(at)) if at <= end => *op,
                _ => Operation { returned: None, ..*op },
            })
            .filter(|op| op.returned.is_some() || matches!(op.action, Action::Write(_)))
            .collect()
    };
    let bad = ends.partition_point(|end| check(cut(*end)) == Verdict::Linearizable);
    let mut shown = ends.get(bad).map(|end| cut(*end)).unwrap_or_default();
    shown.sort_by_key(|op| op.returned.unwrap_or(op.called));
    shown.split_off(shown.len().saturating_sub(8))
}

/// Drops what changes nothing: reads without an answer, and writes without one whose value nobody has read.
fn prune(history: Vec<Operation>) -> Vec<Operation> {
    let read: HashSet<Value> = history
        .iter()
        .filter_map(|op| match op.action {
            Action::Read(value) if op.returned.is_some() => Some(value),
            _ => None,
        })
        .collect();
    let matters = |op: &Operation| match (op.action, op.returned) {
        (_, Some(_)) => true,
        (Action::Write(value), None) => read.contains(&value),
        (Action::Read(_), None) => false,
    };
    history.into_iter().filter(matters).collect()
}

/// Whether the history of one register has an order. It begins without content.
pub fn check(history: Vec<Operation>) -> Verdict {
    let mut history = prune(history);
    history.sort_by_key(|op| op.called);
    let ends: Vec<u64> = history.iter().map(|op| op.returned.unwrap_or(u64::MAX)).collect();
    let mut search = Search {
        done: vec![0; history.len().div_ceil(64)],
        history,
        ends,
        first: 0,
        seen: HashSet::new(),
    };
    search.run()
}

struct Search {
    /// By time of call.
    history: Vec<Operation>,
    ends: Vec<u64>,
    /// One bit per operation: it has its place.
    done: Vec<u64>,
    /// All before it have theirs.
    first: usize,
    seen: HashSet<(Vec<u64>, Value)>,
}

impl Search {
    fn is_done(&self, nth: usize) -> bool {
        self.done.get(nth / 64).is_some_and(|word| word >> (nth % 64) & 1 == 1)
    }

    fn flip(&mut self, nth: usize) {
        if let Some(word) = self.done.get_mut(nth / 64) {
            *word ^= 1 << (nth % 64);
        }
        self.first = self.first.min(nth);
        while self.is_done(self.first) {
            self.first += 1;
        }
    }

    /// The operations that may come next: called before any other that is left has returned. The one that returns first comes first.
    fn next(&self) -> Vec<usize> {
        let mut earliest = u64::MAX;
        let mut found = Vec::new();
        for nth in self.first..self.history.len() {
            let (Some(op), Some(end)) = (self.history.get(nth), self.ends.get(nth)) else {
                break;
            };
            if op.called > earliest {
                break;
            }
            if !self.is_done(nth) {
                earliest = earliest.min(*end);
                found.push(nth);
            }
        }
        found.retain(|nth| self.history.get(*nth).is_some_and(|op| op.called <= earliest));
        found.sort_by_key(|nth| self.ends.get(*nth).copied());
        found
    }

    /// Depth first, without recursion: histories are long.
    fn run(&mut self) -> Verdict {
        let open = self.ends.iter().filter(|end| **end != u64::MAX).count();
        let (mut value, mut left, mut steps) = (None, open, 0_u64);
        // What was chosen, the value before it, and what else could have been.
        let mut chosen: Vec<(usize, Value)> = Vec::new();
        let mut choices = vec![self.next()];
        loop {
            if left == 0 {
                return Verdict::Linearizable;
            }
            steps += 1;
            if steps > MAX_STEPS {
                return Verdict::Undecided;
            }
            let mut step = None;
            if let Some(candidates) = choices.last_mut() {
                candidates.reverse();
                while let Some(nth) = candidates.pop() {
                    let after = match self.history.get(nth).map(|op| op.action) {
                        Some(Action::Write(new)) => new,
                        Some(Action::Read(read)) if read == value => value,
                        _ => continue,
                    };
                    step = Some((nth, after));
                    break;
                }
                candidates.reverse();
            }
            match step {
                Some((nth, after)) => {
                    self.flip(nth);
                    if self.seen.insert((self.done.clone(), after)) {
                        chosen.push((nth, value));
                        value = after;
                        left -= usize::from(self.ends.get(nth) != Some(&u64::MAX));
                        choices.push(self.next());
                    } else {
                        self.flip(nth);
                    }
                }
                None => {
                    choices.pop();
                    let Some((nth, before)) = chosen.pop() else { return Verdict::Not };
                    self.flip(nth);
                    value = before;
                    left += usize::from(self.ends.get(nth) != Some(&u64::MAX));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(action: Action, called: u64, returned: u64) -> Operation {
        Operation {
            action,
            called,
            returned: (returned != 0).then_some(returned),
        }
    }

    fn write(value: u64, called: u64, returned: u64) -> Operation {
        op(Action::Write(Some(value)), called, returned)
    }

    fn delete(called: u64, returned: u64) -> Operation {
        op(Action::Write(None), called, returned)
    }

    fn read(value: u64, called: u64, returned: u64) -> Operation {
        op(Action::Read((value != 0).then_some(value)), called, returned)
    }

    #[test]
    fn good_histories_pass() {
        let good: [Vec<Operation>; 9] = [
            vec![],
            vec![read(0, 1, 2), write(1, 3, 4), read(1, 5, 6)],
            // Concurrent with the write: old or new.
            vec![write(1, 1, 10), read(0, 2, 3), read(1, 4, 5), read(1, 11, 12)],
            // Two writes at once, either first.
            vec![write(1, 1, 10), write(2, 2, 9), read(1, 11, 12)],
            vec![write(1, 1, 10), write(2, 2, 9), read(2, 11, 12)],
            // Unknown: it happened late, or never.
            vec![write(1, 1, 0), write(2, 2, 3), read(2, 4, 5), read(1, 6, 7)],
            vec![write(1, 1, 0), write(2, 2, 3), read(2, 4, 5), read(2, 6, 7)],
            vec![write(1, 1, 2), delete(3, 0), read(1, 4, 5), read(0, 6, 7), read(0, 8, 9)],
            vec![write(1, 1, 2), delete(3, 4), read(0, 5, 6), write(2, 7, 8), read(2, 9, 10)],
        ];
        for history in good {
            assert_eq!(check(history.clone()), Verdict::Linearizable, "{history:?}");
        }
    }

    #[test]
    fn bad_histories_do_not() {
        let bad: [Vec<Operation>; 9] = [
            // A value that nobody wrote.
            vec![read(7, 1, 2)],
            // An acknowledged write that was lost.
            vec![write(1, 1, 2), read(0, 3, 4)],
            vec![write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)],
            // A stale read after a newer one.
            vec![write(1, 1, 10), read(1, 2, 3), read(0, 4, 5)],
            vec![write(1, 1, 2), write(2, 3, 20), read(2, 4, 5), read(1, 6, 7)],
            // A delete that came back.
            vec![write(1, 1, 2), delete(3, 4), read(1, 5, 6)],
            // Two readers see two orders.
            vec![write(1, 1, 10), write(2, 2, 11), read(1, 12, 13), read(2, 14, 15), read(1, 16, 17)],
            // An unknown write that took effect, was overwritten, and came back.
            vec![write(1, 1, 0), read(1, 2, 3), write(2, 4, 5), read(1, 6, 7)],
            // Read before it was sent.
            vec![read(1, 1, 2), write(1, 3, 4)],
        ];
        for history in bad {
            assert_eq!(check(history.clone()), Verdict::Not, "{history:?}");
            assert!(!smallest_prefix(&history).is_empty());
        }
    }

    /// A long history made from a real register, and the same with one answer changed.
    #[test]
    fn long_histories_are_decided_and_one_wrong_answer_is_found() {
        use rand::rngs::StdRng;
        use rand::{RngExt, SeedableRng};
        for seed in 0..40 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut value, mut history) = (None, Vec::new());
            for n in 1..=600_u64 {
                // Each has its effect at 100 n, and is called and answered around it.
                let called = (100 * n).saturating_sub(rng.random_range(1..400)) * 1000 + n;
                let returned = (100 * n + rng.random_range(1..400)) * 1000 + n;
                let action = match rng.random_range(0..10_u8) {
                    0 => Action::Write(None),
                    1..4 => Action::Write(Some(n)),
                    _ => Action::Read(value),
                };
                if let Action::Write(new) = action {
                    value = new;
                }
                let unknown = matches!(action, Action::Write(_)) && rng.random_range(0..30_u8) == 0;
                history.push(Operation {
                    action,
                    called,
                    returned: (!unknown).then_some(returned),
                });
            }
            assert_eq!(check(history.clone()), Verdict::Linearizable, "seed {seed}");
            let nth = history.iter().rposition(|op| matches!(op.action, Action::Read(_))).unwrap();
            history[nth].action = Action::Read(Some(1_000_000));
            // To try every order may take more steps than there are; that is reported all the same.
            assert_ne!(check(history), Verdict::Linearizable, "seed {seed}");
        }
    }
}
