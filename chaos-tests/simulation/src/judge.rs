//! Where the oracles say what is wrong.
//! In: what they found. Out: the first findings, and a signal that ends the run.
//! Invariant: what an oracle found is never lost, and a run with a finding has failed.
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use ursa_runtime::CancellationToken;

use crate::note;
use crate::trace::Trace;

/// Findings kept; what follows the first is seldom news.
const KEEP: usize = 20;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Who says so.
    pub oracle: String,
    pub what: String,
}

/// Shared handle.
#[derive(Clone, Debug)]
pub struct Judge {
    trace: Trace,
    findings: Arc<Mutex<Vec<Finding>>>,
    failed: CancellationToken,
}

impl Judge {
    pub fn new(trace: Trace) -> Self {
        Self {
            trace,
            findings: Arc::default(),
            failed: CancellationToken::new(),
        }
    }

    /// Something is wrong.
    pub fn report(&self, oracle: &'static str, what: impl Into<String>) {
        let what = what.into();
        note!(self.trace, "FAILED {oracle}: {what}");
        let mut findings = self.findings.lock();
        if findings.len() < KEEP {
            findings.push(Finding {
                oracle: oracle.to_owned(),
                what,
            });
        }
        self.failed.cancel();
    }

    /// Cancelled by the first finding.
    pub fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    pub fn findings(&self) -> Vec<Finding> {
        self.findings.lock().clone()
    }
}
