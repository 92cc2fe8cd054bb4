//! When this node was last known to be in contact with a majority.
//! In: acknowledgements (on the leader), the leader's calls (elsewhere). Out: a moment, to be watched.
//! Invariant: the moment is never later than the truth: a follower takes off how old the leader's own contact was.
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The newest moment at which a majority was in contact with this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuorumContact(Option<Instant>);

impl QuorumContact {
    /// A group of one is always in contact with itself.
    pub(crate) const ALWAYS: Self = Self(None);

    /// How long ago; zero in a group of one. Before the first contact it counts from the start of the store.
    pub fn age(&self) -> Duration {
        self.0.map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// The moment; `None` in a group of one.
    pub fn at(&self) -> Option<Instant> {
        self.0
    }
}

/// Where the moment is kept.
#[derive(Debug)]
pub(crate) struct Contact(watch::Sender<QuorumContact>);

impl Contact {
    pub(crate) fn new(sole: bool) -> Self {
        let first = if sole {
            QuorumContact::ALWAYS
        } else {
            QuorumContact(Some(Instant::now()))
        };
        Self(watch::Sender::new(first))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<QuorumContact> {
        self.0.subscribe()
    }

    pub(crate) fn now(&self) -> QuorumContact {
        *self.0.borrow()
    }

    /// There was contact at `at`.
    fn seen(&self, at: Instant) {
        self.0.send_if_modified(|last| match last.0 {
            Some(known) if known < at => {
                last.0 = Some(at);
                true
            }
            _ => false,
        });
    }

    /// There was contact `age` ago.
    pub(crate) fn seen_ago(&self, age: Duration) {
        if let Some(at) = Instant::now().checked_sub(age) {
            self.seen(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_only_moves_forward_and_a_leaders_age_is_taken_off() {
        let contact = Contact::new(false);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(contact.now().age(), Duration::from_secs(10));
        contact.seen_ago(Duration::from_secs(3));
        contact.seen_ago(Duration::from_secs(7));
        assert_eq!(contact.now().age(), Duration::from_secs(3));
        assert_eq!(Contact::new(true).now().age(), Duration::ZERO);
    }
}
