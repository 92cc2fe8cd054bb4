//! Says the same thing once per period: for log lines that a peer could cause as often as it likes.
//! In: what would be said. Out: whether to say it, and how often it was swallowed since it was last said.
//! Invariant: remembers at most `capacity` texts; when that many are new within one period, further new ones are swallowed.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// See the module's text. Clones share what they remember.
#[derive(Clone, Debug)]
pub struct Throttle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    period: Duration,
    capacity: usize,
    said: Mutex<HashMap<String, Said>>,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    swallowed: u64,
}

/// Once a minute, for up to a thousand texts.
impl Default for Throttle {
    fn default() -> Self {
        Self::new(Duration::from_secs(60), 1024)
    }
}

impl Throttle {
    /// Each text at most once per `period`; at most `capacity` texts are remembered.
    pub fn new(period: Duration, capacity: usize) -> Self {
        Self(Arc::new(Inner {
            period,
            capacity: capacity.max(1),
            said: Mutex::default(),
        }))
    }

    /// `Some(n)`: say it; it was swallowed `n` times since it was last said. `None`: it was said a moment ago.
    pub fn pass(&self, text: &str) -> Option<u64> {
        let Inner { period, capacity, said } = &*self.0;
        let now = Instant::now();
        let mut said = said.lock();
        if let Some(known) = said.get_mut(text) {
            if now.duration_since(known.at) < *period {
                known.swallowed = known.swallowed.saturating_add(1);
                return None;
            }
            known.at = now;
            return Some(std::mem::take(&mut known.swallowed));
        }
        if said.len() >= *capacity {
            said.retain(|_, known| now.duration_since(known.at) < *period);
        }
        if said.len() >= *capacity {
            return None;
        }
        said.insert(text.to_owned(), Said { at: now, swallowed: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_text_passes_once_per_period_and_the_memory_is_bounded() {
        let throttle = Throttle::new(Duration::from_secs(60), 2);
        assert_eq!((throttle.pass("a"), throttle.pass("a"), throttle.pass("a")), (Some(0), None, None));
        assert_eq!((throttle.pass("b"), throttle.pass("c")), (Some(0), None), "no room for a third");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(throttle.pass("a"), Some(2));
        assert_eq!(throttle.pass("c"), Some(0), "the expired one made room");
    }
}
