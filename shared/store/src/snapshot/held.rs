//! Snapshots that are on their way to other nodes, and what must stay for that: the file, and the log after it.
//! In: transfers as they begin and end. Out: which files stay, and how far the log may go.
//! Invariant: nothing is kept for ever: a transfer that does not go on is forgotten after [`GRACE`], one without an end after [`LONGEST`].
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ursa_runtime::lease::Deadline;

use crate::log::EntryId;

/// After a transfer broke off, until it goes on; after it is over, until the receiver has the log that follows.
const GRACE: Duration = Duration::from_secs(60);
/// A file of 64 GiB at the pace of a slow link between regions takes hours; the log of so long a time is more than the file.
const LONGEST: Duration = Duration::from_secs(30 * 60);

#[derive(Debug)]
struct Hold {
    path: PathBuf,
    last: EntryId,
    until: Deadline,
    longest: Deadline,
    /// It has arrived.
    sent: bool,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<u64, Hold>);

impl Held {
    /// A transfer to `node` begins, or goes on.
    pub(super) fn begin(&mut self, node: u64, path: &Path, last: EntryId) {
        let goes_on = self.0.get_mut(&node).filter(|hold| hold.path == path && !hold.sent);
        match goes_on {
            Some(hold) => hold.until = Deadline::after(LONGEST).min(hold.longest),
            None => {
                let hold = Hold {
                    path: path.to_owned(),
                    last,
                    until: Deadline::after(LONGEST),
                    longest: Deadline::after(LONGEST),
                    sent: false,
                };
                self.0.insert(node, hold);
            }
        }
    }

    /// The transfer to `node` is over, or broke off.
    pub(super) fn end(&mut self, node: u64, sent: bool) {
        if let Some(hold) = self.0.get_mut(&node) {
            hold.sent = sent;
            hold.until = match sent {
                true => Deadline::after(GRACE),
                false => Deadline::after(GRACE).min(hold.longest),
            };
        }
    }

    /// Forgets what has waited long enough.
    pub(super) fn forget(&mut self) {
        self.0.retain(|_, hold| !hold.until.has_passed());
    }

    /// Whether this file is still needed.
    pub(super) fn needs(&self, path: &Path) -> bool {
        self.0.values().any(|hold| hold.path == path && !hold.sent)
    }

    /// The oldest file whose transfer is not over: whoever needs a snapshot can have that one.
    pub(super) fn under_way(&self) -> Option<&Path> {
        let open = self.0.values().filter(|hold| !hold.sent && !hold.until.has_passed());
        open.min_by_key(|hold| hold.last).map(|hold| &*hold.path)
    }

    /// The log after this entry stays.
    pub(super) fn floor(&self) -> Option<EntryId> {
        self.0.values().map(|hold| hold.last).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "/snapshots/a";
    const B: &str = "/snapshots/b";

    fn id(index: u64) -> EntryId {
        EntryId { term: 1, index }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_stays_and_the_log_after_it_a_while_longer() {
        let mut held = Held::default();
        assert_eq!((held.floor(), held.under_way()), (None, None));
        held.begin(3, A.as_ref(), id(5));
        held.begin(2, B.as_ref(), id(9));
        assert_eq!((held.floor(), held.under_way()), (Some(id(5)), Some(A.as_ref())));
        held.end(3, true);
        assert!(!held.needs(A.as_ref()) && held.needs(B.as_ref()));
        assert_eq!((held.floor(), held.under_way()), (Some(id(5)), Some(B.as_ref())));
        tokio::time::advance(GRACE).await;
        held.forget();
        assert_eq!(held.floor(), Some(id(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_go_on_or_does_not_end_is_forgotten() {
        let mut held = Held::default();
        held.begin(3, A.as_ref(), id(5));
        held.end(3, false);
        held.forget();
        assert!(held.needs(A.as_ref()));
        tokio::time::advance(GRACE).await;
        held.forget();
        assert!(!held.needs(A.as_ref()));
        let mut rounds = 0;
        held.begin(3, A.as_ref(), id(5));
        while held.needs(A.as_ref()) {
            held.begin(3, A.as_ref(), id(5));
            tokio::time::advance(GRACE / 2).await;
            held.end(3, false);
            held.forget();
            rounds += 1;
        }
        assert_eq!(rounds, LONGEST.as_secs() / (GRACE / 2).as_secs());
    }
}
