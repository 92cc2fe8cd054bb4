//! The side of a node that joins: shows its token to the members it was told of, until one lets it in or says why it does not.
//! In: the token. Out: this node is a member without a vote, which the others then count among them.
//! Invariant: a token that is refused ends the start, with the reason; a group that cannot be reached does not.
use std::collections::BTreeSet;
use std::time::Duration;

use ursa_runtime::{Backoff, CancellationToken};

use super::{MemberAnswer, MemberCall, Objection};
use crate::net::peers::{CallError, Method};
use crate::net::{Lane, Peers, wire};

/// Longest wait for the answer of one member: a change of the list is committed meanwhile.
const ANSWER: Duration = Duration::from_secs(10);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Returns once this node is let in; `false` if it was told to stop before.
///
/// # Errors
/// Why it never will be.
pub(crate) async fn run(peers: &Peers, token: &str, cancel: &CancellationToken) -> Result<bool, Objection> {
    let call = MemberCall::Join { token: token.to_owned() };
    let payload = wire::encode(&call);
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let mut asked = BTreeSet::new();
        let mut next: Vec<u64> = peers.others();
        while let Some(node) = next.pop() {
            if !asked.insert(node) {
                continue;
            }
            let answer = peers.call(node, Lane::Calls, Method::Members, payload.clone(), ANSWER).await;
            match answer.and_then(|bytes| wire::decode(&bytes).map_err(CallError::Refused)) {
                Ok(MemberAnswer::Joined) => {
                    tracing::info!(node = peers.node_id(), "this node was let into the group");
                    return Ok(true);
                }
                Ok(MemberAnswer::Objected {
                    objection: Objection::UnderWay,
                }) => {}
                Ok(MemberAnswer::Objected { objection }) => return Err(objection),
                Ok(MemberAnswer::NotLeader { leader, address }) => {
                    // It may be this node that they still take for the leader: with the folder it had before.
                    if let Some(leader) = leader.filter(|leader| *leader != peers.node_id()) {
                        peers.learn(leader, &address);
                        next.push(leader);
                    }
                }
                Ok(MemberAnswer::NotNow { reason }) => tracing::info!(peer = node, reason, "not let in yet"),
                Ok(MemberAnswer::Done { .. }) => {}
                Err(error) => tracing::debug!(peer = node, %error, "asked in vain"),
            }
        }
        if !backoff.wait(cancel).await {
            return Ok(false);
        }
    }
}
