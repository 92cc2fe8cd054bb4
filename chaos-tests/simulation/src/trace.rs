//! What happened, in order: a hash of all of it, and the last part as text.
//! In: events, as they happen. Out: the hash, by which two runs are compared; lines, for whoever looks into a failure.
//! Invariant: a line depends on nothing but the seed: simulated time, and no address, no pointer, no clock of the machine.
use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Shared handle.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    start: Instant,
    hasher: DefaultHasher,
    count: u64,
    kept: VecDeque<String>,
    keep: usize,
}

impl Trace {
    /// An empty one that keeps the last `keep` lines. It begins now.
    pub fn new(keep: usize) -> Self {
        Self(Arc::new(Mutex::new(Lines {
            start: Instant::now(),
            // Its keys are fixed, unlike those of `RandomState`.
            hasher: DefaultHasher::new(),
            count: 0,
            kept: VecDeque::new(),
            keep,
        })))
    }

    /// Since the beginning, in simulated time.
    pub fn now(&self) -> Duration {
        self.0.lock().start.elapsed()
    }

    /// Enters an event.
    pub fn note(&self, event: fmt::Arguments<'_>) {
        let mut lines = self.0.lock();
        let now = lines.start.elapsed();
        let line = format!("{:>9.3} ms  {event}", now.as_secs_f64() * 1000.0);
        lines.hasher.write(line.as_bytes());
        lines.hasher.write_u8(b'\n');
        lines.count += 1;
        if lines.kept.len() == lines.keep {
            lines.kept.pop_front();
        }
        lines.kept.push_back(line);
    }

    /// Hash of all lines, and how many.
    pub fn hash(&self) -> (u64, u64) {
        let lines = self.0.lock();
        (lines.hasher.finish(), lines.count)
    }

    /// The lines that were kept.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().kept.iter().cloned().collect()
    }
}

/// Enters a formatted event into a [`Trace`].
#[macro_export]
macro_rules! note {
    ($trace:expr, $($event:tt)*) => {
        $trace.note(format_args!($($event)*))
    };
}
