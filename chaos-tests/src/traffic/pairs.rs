//! Constant traffic between pairs of workloads, through whatever a scenario does.
//!
//! In: a request per pair. Out: for each pair how many requests were right, and how long they took.
//! Invariant: [`RATE`] requests per second and pair, open loop, no retry: one failed request is one too many.
//! Source: issue text, "constant traffic (200 requests/s per pair, open loop, no client retry)".
use futures::future::join_all;

use super::load::{Load, Outcome, Plan};

/// Requests per second of each pair.
pub const RATE: u32 = 200;

/// Running traffic. Dropping it stops it and loses the numbers.
#[derive(Debug)]
pub struct Pairs(Vec<(String, Load)>);

impl Pairs {
    /// Starts all of them.
    #[must_use]
    pub fn start(plans: Vec<Plan>) -> Self {
        Self(plans.into_iter().map(|plan| (plan.name.clone(), Load::start(plan))).collect())
    }

    /// Stops all of them and returns the numbers by pair.
    pub async fn stop(self) -> Vec<(String, Outcome)> {
        join_all(self.0.into_iter().map(async |(name, load)| (name, load.stop().await))).await
    }
}
