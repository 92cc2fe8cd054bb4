//! How much of the past is kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use ursa_runtime::config::Problems;
use ursa_state::{MAX_REVISIONS, Retention};

/// How much of the past can be read and rolled back to. The leader's configuration counts; give all nodes the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct History {
    /// Revisions that are kept, 100 to 1,000,000; up to a hundredth more before they are dropped. Default 100,000: about 10 MiB of
    /// memory and of each snapshot for policies of half a KiB, and 30 MiB for the newest 10,000.
    pub max_revisions: u64,
    /// Older ones are dropped, but never the newest 1,000. At least a minute. Default 30days.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
}

impl Default for History {
    fn default() -> Self {
        Self {
            max_revisions: 100_000,
            max_age: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

impl History {
    pub fn validate(&self, problems: &mut Problems) {
        problems.check((100..=MAX_REVISIONS).contains(&self.max_revisions), || {
            format!("history.max_revisions must be 100 to {MAX_REVISIONS}")
        });
        problems.check(self.max_age >= Duration::from_secs(60), || {
            "history.max_age must be a minute or longer".into()
        });
    }

    pub(crate) fn retention(&self) -> Retention {
        Retention {
            revisions: self.max_revisions,
            age: self.max_age,
        }
    }
}
