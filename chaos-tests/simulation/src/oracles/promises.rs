//! What a node has said to the others it still knows after any restart; and it never says two things that exclude each other.
//! In: the messages as they leave, the state of a store that was just opened. Out: what was broken.
//! Invariants (Raft, section 5.2): a node gives one vote per term; a term has one leader; the term of a vote that was given is never
//! forgotten.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use serde::Deserialize;
use ursa_proto::peer::answer::Result as AnswerResult;
use ursa_proto::peer::{Answer, Call};
use ursa_store::StoreStatus;
use ursa_store::log::Vote;

use crate::judge::Judge;

/// Shared handle.
#[derive(Clone, Debug)]
pub struct Promises {
    judge: Judge,
    said: Arc<Mutex<Said>>,
}

#[derive(Debug, Default)]
struct Said {
    /// Newest term in which a node has voted.
    terms: BTreeMap<u64, u64>,
    /// For whom a node has voted, by (node, term).
    votes: BTreeMap<(u64, u64), u64>,
    /// Who led, by term.
    leaders: BTreeMap<u64, u64>,
    /// Nodes that have lost their folder, and with it what they had promised: they must not vote any more.
    lost: BTreeSet<u64>,
}

/// The part of these messages that matters here; see `ursa_store`'s wire format.
#[derive(Deserialize)]
struct Voted {
    vote: Vote,
    granted: bool,
}

#[derive(Deserialize)]
struct Headed {
    vote: Vote,
}

/// Version, then JSON, then what is not JSON.
fn parse<T: for<'a> Deserialize<'a>>(payload: &[u8]) -> Option<T> {
    let (_, json) = payload.split_first()?;
    serde_json::Deserializer::from_slice(json).into_iter().next()?.ok()
}

/// The same where the length of the JSON stands before it, in four bytes.
fn parse_head<T: for<'a> Deserialize<'a>>(payload: &[u8]) -> Option<T> {
    serde_json::Deserializer::from_slice(payload.get(5..)?).into_iter().next()?.ok()
}

impl Promises {
    pub fn new(judge: Judge) -> Self {
        Self {
            judge,
            said: Arc::default(),
        }
    }

    /// `node` asks another one.
    pub fn asked(&self, node: u64, method: &str, message: &[u8]) {
        let Ok(call) = Call::decode(message) else { return };
        match method {
            "Vote" => {
                if let Some(asked) = parse::<Headed>(&call.payload) {
                    self.voted(node, asked.vote.term, asked.vote.node_id);
                }
            }
            "Append" => {
                if let Some(head) = parse_head::<Headed>(&call.payload) {
                    self.led(node, head.vote.term);
                }
            }
            _ => {}
        }
    }

    /// `node` answers.
    pub fn answered(&self, node: u64, method: &str, message: &[u8]) {
        if method != "Vote" {
            return;
        }
        let Ok(Answer {
            result: Some(AnswerResult::Payload(payload)),
            ..
        }) = Answer::decode(message)
        else {
            return;
        };
        if let Some(voted) = parse::<Voted>(&payload)
            && voted.granted
        {
            self.voted(node, voted.vote.term, voted.vote.node_id);
        }
    }

    fn voted(&self, node: u64, term: u64, candidate: u64) {
        let mut said = self.said.lock();
        let newest = said.terms.entry(node).or_default();
        *newest = term.max(*newest);
        if said.lost.contains(&node) {
            let text = format!("node {node}, which has lost its folder, votes for {candidate} in term {term}");
            self.judge.report("promises", text);
        }
        let first = *said.votes.entry((node, term)).or_insert(candidate);
        if first != candidate {
            self.judge.report(
                "promises",
                format!("node {node} voted for {first} and for {candidate} in term {term}"),
            );
        }
    }

    fn led(&self, node: u64, term: u64) {
        let first = *self.said.lock().leaders.entry(term).or_insert(node);
        if first != node {
            self.judge
                .report("promises", format!("nodes {first} and {node} both lead in term {term}"));
        }
    }

    /// The node's folder is lost.
    pub fn lost(&self, node: u64) {
        self.said.lock().lost.insert(node);
    }

    /// A store was opened.
    ///
    /// # Errors
    /// What it has forgotten.
    pub fn opened(&self, node: u64, status: &StoreStatus) -> Result<(), String> {
        if self.said.lock().lost.contains(&node) {
            return Ok(());
        }
        let promised = self.said.lock().terms.get(&node).copied().unwrap_or_default();
        if status.term < promised {
            return Err(format!(
                "node {node} voted in term {promised}, and after a restart knows of term {} only",
                status.term
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;

    #[tokio::test]
    async fn two_votes_and_two_leaders_of_a_term_are_seen() {
        let judge = Judge::new(Trace::new(9));
        let promises = Promises::new(judge.clone());
        promises.voted(1, 4, 2);
        promises.voted(1, 4, 2);
        promises.voted(1, 5, 3);
        promises.led(2, 4);
        promises.led(2, 4);
        assert_eq!(judge.findings(), []);
        promises.voted(1, 4, 3);
        promises.led(3, 4);
        let found: Vec<String> = judge.findings().into_iter().map(|finding| finding.what).collect();
        assert_eq!(
            found,
            ["node 1 voted for 2 and for 3 in term 4", "nodes 2 and 3 both lead in term 4"]
        );
    }

    #[tokio::test]
    async fn a_vote_of_a_node_that_has_lost_its_folder_is_seen() {
        let judge = Judge::new(Trace::new(9));
        let promises = Promises::new(judge.clone());
        promises.voted(1, 4, 2);
        promises.lost(1);
        promises.voted(2, 5, 2);
        assert_eq!(judge.findings(), []);
        promises.voted(1, 5, 2);
        assert!(
            judge.findings()[0]
                .what
                .contains("node 1, which has lost its folder, votes for 2 in term 5")
        );
    }
}
