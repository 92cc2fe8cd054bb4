//! The members of the group as this node reaches them: connections, calls, and what is known of each.
//! In: calls with a deadline. Out: the answer of the node that was meant, or why there is none.
//! Invariants: heartbeats and votes have a connection of their own, so nothing large is ever ahead of them; an answer counts only after
//! its sender was checked like a caller; a call that the other side refused had no effect.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tower::service_fn;
use ursa_proto::peer;
use ursa_proto::peer::answer::Result as AnswerResult;
use ursa_proto::peer::raft_client::RaftClient;
use ursa_runtime::lease;
use ursa_state::HistoryId;
use uuid::Uuid;

use super::dial::Dial;
use super::disks::Disks;
use super::known::{Incarnation, Known, Shown};
use super::promises::Promises;
use super::roster::Roster;
use super::tls::Identity;
use super::{Contact, Refusal};
use crate::level::Levels;
use crate::log::EntryId;

/// A ping after this long without traffic, and its deadline: a connection over a dead link is given up within 1.5 s and made anew, instead
/// of waiting for TCP, whose retries grow apart.
const KEEPALIVE: Duration = Duration::from_millis(500);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes in flight per stream and connection: one round trip of 50 ms at 80 MB/s.
const WINDOW: u32 = 4 << 20;

/// What a connection is for. Each has its own, made when first used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Heartbeats, votes, hand-overs.
    Signs,
    /// Entries of the log.
    Append,
    /// Snapshots.
    Bulk,
    /// Proposals and barriers that are passed on, greetings.
    Calls,
    /// What others than the store send.
    Streams,
}

/// The calls with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Append,
    Vote,
    PreVote,
    TransferLeader,
    Propose,
    Barrier,
    Hello,
    Members,
    SnapshotAt,
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nothing reached the other side.
    #[error("not reached: {0}")]
    Unreachable(String),
    /// It broke off; the call may have had its effect.
    #[error("broken off: {0}")]
    Broken(String),
    /// The time was over; the call may have had its effect.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Refused by the other side, before it did anything.
    #[error(transparent)]
    Refused(Refusal),
    /// There is an answer, but this node cannot go by it: it is not from the node that is known here, or is not understood. The call may
    /// have had its effect.
    #[error("the answer does not count: {0}")]
    Unheard(Refusal),
}

/// One member as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    pub address: String,
    /// A mistake of set-up that keeps the two apart.
    pub problem: Option<Refusal>,
    /// Why the last connection failed, if it did.
    pub unreachable: Option<String>,
    /// Since the last answer.
    pub answered_ago: Option<Duration>,
    /// The feature levels that it knows, by its own word.
    pub levels: Option<Levels>,
    /// Why its disk takes nothing, if so.
    pub disk_refuses: Option<String>,
}

/// What the nodes of a group know of this one and it of them. Shared by both sides of the calls.
pub(crate) struct Shared {
    pub(crate) node: u64,
    pub(crate) me: Incarnation,
    pub(crate) history: RwLock<Option<HistoryId>>,
    pub(crate) known: Known,
    /// Where the log of this node ended when it was opened.
    log_end: Option<EntryId>,
    /// Feature levels: what this node knows, what the group is at as far as it has heard, what the others have said they know.
    levels: Levels,
    level: watch::Receiver<u32>,
    pub(crate) announced: watch::Sender<BTreeMap<u64, Levels>>,
    pub(crate) promises: Promises,
    pub(crate) roster: Roster,
    /// This node has taken its place: it may vote and take entries.
    pub(crate) admitted: AtomicBool,
    pub(crate) contact: Contact,
    /// Nothing is sent as a leader any more, see `keeper`.
    pub(crate) muted: AtomicBool,
    /// This leader has given up its lead, and is silent until somebody else has it.
    pub(crate) replaced: AtomicBool,
    pub(crate) disks: Disks,
    /// The group knows this node as another one.
    pub(crate) disowned: watch::Sender<Option<Refusal>>,
    pub(crate) leader: watch::Sender<Option<u64>>,
    pub(crate) message_limit: usize,
    /// Bytes of snapshots that were sent.
    pub(crate) snapshot_bytes: AtomicU64,
    dial: Arc<Dial>,
    channels: Mutex<BTreeMap<(u64, Lane), Channel>>,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) faults: super::faults::Faults,
    /// Stands in for connections.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) carrier: Option<Arc<dyn super::carrier::Carrier>>,
}

/// Handle to the members; clones share the connections.
#[derive(Clone)]
pub struct Peers {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// What a node is made of at its start.
pub(crate) struct Parts {
    pub(crate) me: Incarnation,
    pub(crate) history: Option<HistoryId>,
    pub(crate) known: Known,
    pub(crate) log_end: Option<EntryId>,
    pub(crate) levels: Levels,
    pub(crate) level: watch::Receiver<u32>,
    pub(crate) roster: Roster,
    pub(crate) admitted: bool,
    pub(crate) addresses: BTreeMap<u64, String>,
    /// Of these the ones that count whatever is heard later.
    pub(crate) detours: BTreeMap<u64, String>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) message_limit: usize,
    pub(crate) disks: Disks,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) carrier: Option<Arc<dyn super::carrier::Carrier>>,
}

impl Peers {
    pub(crate) fn new(node: u64, parts: Parts) -> Self {
        Self {
            shared: Arc::new(Shared {
                node,
                me: parts.me,
                history: RwLock::new(parts.history),
                promises: Promises::new(parts.known.promises()),
                known: parts.known,
                log_end: parts.log_end,
                levels: parts.levels,
                level: parts.level,
                announced: watch::Sender::default(),
                roster: parts.roster,
                admitted: AtomicBool::new(parts.admitted),
                contact: Contact::new(false),
                muted: AtomicBool::new(false),
                replaced: AtomicBool::new(false),
                disks: parts.disks,
                disowned: watch::Sender::new(None),
                leader: watch::Sender::new(None),
                message_limit: parts.message_limit,
                snapshot_bytes: AtomicU64::new(0),
                dial: Arc::new(Dial::new(parts.identity, parts.addresses, parts.detours)),
                channels: Mutex::default(),
                #[cfg(any(test, feature = "testing"))]
                faults: super::faults::Faults::default(),
                #[cfg(any(test, feature = "testing"))]
                carrier: parts.carrier,
            }),
        }
    }

    /// This node's id.
    pub fn node_id(&self) -> u64 {
        self.shared.node
    }

    /// All members with addresses, this node included.
    pub fn members(&self) -> BTreeMap<u64, String> {
        self.shared.dial.addresses()
    }

    /// The others.
    pub fn others(&self) -> Vec<u64> {
        self.members().into_keys().filter(|id| *id != self.shared.node).collect()
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> watch::Receiver<Option<u64>> {
        self.shared.leader.subscribe()
    }

    /// A connection to a member for other services on its peer listener. It is made when first used, and anew when it breaks; a call
    /// fails while the member cannot be reached.
    pub fn channel(&self, node: u64) -> Channel {
        self.lane(node, Lane::Streams)
    }

    /// Every other member as this node sees it.
    pub fn status(&self) -> BTreeMap<u64, PeerStatus> {
        let states = self.shared.dial.states();
        let announced = self.shared.announced.borrow().clone();
        let members = self.members().into_iter().filter(|(id, _)| *id != self.shared.node);
        members
            .map(|(id, address)| {
                let state = states.get(&id).cloned().unwrap_or_default();
                let status = PeerStatus {
                    address,
                    problem: state.problem,
                    unreachable: state.unreachable,
                    answered_ago: state.answered.map(|at| at.elapsed()),
                    levels: announced.get(&id).copied(),
                    disk_refuses: self.shared.disks.of(id),
                };
                (id, status)
            })
            .collect()
    }

    /// Why this node may not take part, if the group has said so.
    pub fn disowned(&self) -> Option<Refusal> {
        self.shared.disowned.borrow().clone()
    }

    pub(crate) fn learn(&self, node: u64, address: &str) {
        self.shared.dial.learn(node, address);
    }

    /// It has left.
    pub(crate) fn forget(&self, node: u64) {
        self.shared.dial.forget(node);
        self.shared.disks.note(node, "", false);
        self.shared.channels.lock().retain(|(id, _), _| *id != node);
    }

    /// A member is reached there from now on, unless this node was told a way of its own.
    pub(crate) fn moved(&self, node: u64, address: &str) {
        self.shared.dial.moved(node, address);
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.shared.dial.identity
    }

    fn lane(&self, node: u64, lane: Lane) -> Channel {
        self.shared
            .channels
            .lock()
            .entry((node, lane))
            .or_insert_with(|| self.open(node))
            .clone()
    }

    fn open(&self, node: u64) -> Channel {
        let dial = self.shared.dial.clone();
        // Only a name: the connector decides where to, and does TLS by itself.
        Endpoint::from_static("http://ursa-node")
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .connect_with_connector_lazy(service_fn(move |_| dial.clone().connect(node)))
    }

    pub(crate) fn client(&self, node: u64, lane: Lane) -> RaftClient<Channel> {
        RaftClient::new(self.lane(node, lane))
            .max_decoding_message_size(self.shared.message_limit)
            .max_encoding_message_size(self.shared.message_limit)
    }

    /// Asks `node`. Dropped, the call is cancelled.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(crate) async fn call(&self, node: u64, lane: Lane, method: Method, payload: Bytes, limit: Duration) -> Result<Bytes, CallError> {
        if method == Method::Append {
            self.shared.may_lead()?;
        }
        let call = self.shared.head(node, payload);
        let ask = async {
            #[cfg(any(test, feature = "testing"))]
            self.shared.faults.request(node, method).await;
            #[cfg(any(test, feature = "testing"))]
            if let Some(carrier) = &self.shared.carrier {
                return super::carrier::ask(&**carrier, node, method, &call).await;
            }
            let mut client = self.client(node, lane);
            let request = Request::new(call);
            #[cfg_attr(not(any(test, feature = "testing")), expect(unused_mut, reason = "for faults"))]
            let mut answer = match method {
                Method::Append => client.append(request).await,
                Method::Vote => client.vote(request).await,
                Method::PreVote => client.pre_vote(request).await,
                Method::TransferLeader => client.transfer_leader(request).await,
                Method::Propose => client.propose(request).await,
                Method::Barrier => client.barrier(request).await,
                Method::Hello => client.hello(request).await,
                Method::Members => client.members(request).await,
                Method::SnapshotAt => client.snapshot_at(request).await,
            };
            #[cfg(any(test, feature = "testing"))]
            self.shared.faults.answer(node, method, &mut answer).await;
            answer
        };
        match lease::within(limit, ask).await {
            Ok(Ok(answer)) => self.shared.hear(node, answer.into_inner()).await,
            Ok(Err(status)) => Err(call_error(&status)),
            Err(_) => Err(CallError::Timeout(limit)),
        }
    }
}

/// What a status means. tonic says `Unavailable` when there is no connection; a connection that breaks under a call gives other codes.
pub(crate) fn call_error(status: &Status) -> CallError {
    let text = ursa_runtime::error::Chain(status).to_string();
    match status.code() {
        Code::Unavailable => CallError::Unreachable(text),
        _ => CallError::Broken(text),
    }
}

impl Shared {
    /// Notes which feature levels `node` knows.
    fn check_levels(&self, node: u64, theirs: Levels) -> Result<(), Refusal> {
        let level = *self.level.borrow();
        if !theirs.know(level) {
            let Levels { min, max } = theirs;
            let refusal = Refusal::Level { node, level, min, max };
            self.refused(node, &refusal);
            return Err(refusal);
        }
        self.announced.send_if_modified(|known| known.insert(node, theirs) != Some(theirs));
        Ok(())
    }

    /// Keeps why there is no traffic with `node`.
    pub(super) fn refused(&self, node: u64, refusal: &Refusal) {
        self.dial.refused(node, refusal);
    }

    /// Whether calls of a leader may go out.
    ///
    /// # Errors
    /// It keeps silent.
    pub(crate) fn may_lead(&self) -> Result<(), CallError> {
        if self.muted.load(Ordering::Acquire) {
            return Err(CallError::Unreachable("this leader keeps silent, for nobody answers it".to_owned()));
        }
        Ok(())
    }

    fn sender(&self, to: u64) -> peer::Sender {
        let history = *self.history.read();
        peer::Sender {
            node: self.node,
            history: history.map_or_else(Bytes::new, |history| Bytes::copy_from_slice(&history.0.to_be_bytes())),
            folder: Bytes::copy_from_slice(self.me.folder.as_bytes()),
            start: self.me.start,
            boot: Bytes::copy_from_slice(self.me.boot.as_bytes()),
            past: Some(self.past_for(to)),
            log_end: self.says_log_end(),
            levels: Some(self.says_levels()),
            disk_refuses: self.disks.own().unwrap_or_default(),
            disk_closed: self.disks.closed().is_some(),
        }
    }

    fn says_levels(&self) -> peer::Levels {
        let Levels { min, max } = self.levels;
        #[cfg(any(test, feature = "testing"))]
        if let Some(Levels { min, max }) = *self.faults.announces.lock() {
            return peer::Levels { min, max };
        }
        peer::Levels { min, max }
    }

    fn says_log_end(&self) -> Option<peer::LogEnd> {
        #[cfg(any(test, feature = "testing"))]
        if self.faults.hides_log_end.load(Ordering::Acquire) {
            return None;
        }
        Some(peer::LogEnd {
            term: self.log_end.map(|end| end.term),
            index: self.log_end.map(|end| end.index),
        })
    }

    /// A call of ours.
    pub(crate) fn head(&self, to: u64, payload: Bytes) -> peer::Call {
        let known = self.known.life_of(to);
        let bytes = |id: Option<Uuid>| id.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(id.as_bytes()));
        peer::Call {
            from: Some(self.sender(to)),
            to,
            to_folder: bytes(known.map(|life| life.folder)),
            to_boot: bytes(known.map(|life| life.boot)),
            payload,
        }
    }

    /// An answer of ours.
    pub(crate) fn answer(&self, to: u64, result: Result<Bytes, Refusal>) -> peer::Answer {
        let result = match result {
            Ok(payload) => AnswerResult::Payload(payload),
            Err(refusal) => AnswerResult::Refusal(super::wire::encode(&refusal)),
        };
        peer::Answer {
            from: Some(self.sender(to)),
            result: Some(result),
        }
    }

    /// What an answer says, once it is clear that it is `node`'s.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Unheard`].
    pub(crate) async fn hear(&self, node: u64, answer: peer::Answer) -> Result<Bytes, CallError> {
        let heard = self.hear_unnoted(node, answer).await;
        match &heard {
            Ok(_) => {
                self.dial.answered(node);
                self.roster.knows_me(node);
            }
            Err(CallError::Refused(refusal)) => {
                self.dial.refused(node, refusal);
                self.told_of_me(node, refusal);
            }
            Err(CallError::Unheard(refusal)) => self.dial.refused(node, refusal),
            Err(CallError::Unreachable(_) | CallError::Broken(_) | CallError::Timeout(_)) => {}
        }
        heard
    }

    async fn hear_unnoted(&self, node: u64, answer: peer::Answer) -> Result<Bytes, CallError> {
        // The refusal first: whoever refuses this node may well be unknown to it.
        match answer.result {
            Some(AnswerResult::Payload(payload)) => {
                let checked = self.check_answer(node, answer.from).await;
                checked.map(|()| payload).map_err(CallError::Unheard)
            }
            Some(AnswerResult::Refusal(refusal)) => {
                let refusal = super::wire::decode(&refusal).map_err(CallError::Unheard)?;
                Err(CallError::Refused(self.introduced(node, refusal).await))
            }
            None => Err(CallError::Unheard(malformed("an answer without content"))),
        }
    }

    async fn check_answer(&self, node: u64, sender: Option<peer::Sender>) -> Result<(), Refusal> {
        let sender = sender.ok_or_else(|| malformed("an answer without a sender"))?;
        if sender.node != node {
            return Err(Refusal::OtherNode {
                asked: node,
                is: sender.node,
            });
        }
        self.check_sender(&sender).await
    }

    /// Whether to listen to this sender: history and folder. What is new about it is durable on return.
    pub(crate) async fn check_sender(&self, sender: &peer::Sender) -> Result<(), Refusal> {
        let node = sender.node;
        let theirs = match sender.history.len() {
            0 => None,
            _ => Some(HistoryId(u128::from_be_bytes(sixteen(&sender.history)?))),
        };
        if let (Some(ours), Some(theirs)) = (*self.history.read(), theirs)
            && ours != theirs
        {
            return Err(Refusal::OtherHistory { node, ours, theirs });
        }
        let life = Incarnation {
            folder: Uuid::from_bytes(sixteen(&sender.folder)?),
            start: sender.start,
            boot: Uuid::from_bytes(sixteen(&sender.boot)?),
        };
        let past = sender.past.as_ref().map(super::introduction::boots).transpose()?;
        let found = Shown { life, past };
        self.known.recognise(node, &found)?;
        self.check_levels(node, levels_of(sender))?;
        let end = sender.log_end.as_ref().map(|end| {
            let (term, index) = (end.term?, end.index?);
            Some(EntryId { term, index })
        });
        if let Err(refusal) = self.promises.check(node, life.boot, end) {
            self.refused(node, &refusal);
            return Err(refusal);
        }
        self.known.meet(node, found).await?;
        self.disks.note(node, &sender.disk_refuses, sender.disk_closed);
        Ok(())
    }
}

/// The feature levels that a sender knows.
pub(crate) fn levels_of(sender: &peer::Sender) -> Levels {
    let said = sender.levels.as_ref();
    said.map_or(Levels::UNSAID, |said| Levels {
        min: said.min,
        max: said.max,
    })
}

pub(crate) fn malformed(reason: &str) -> Refusal {
    Refusal::Malformed { reason: reason.to_owned() }
}

pub(crate) fn sixteen(bytes: &[u8]) -> Result<[u8; 16], Refusal> {
    bytes.try_into().map_err(|_| malformed("an id that does not have 16 bytes"))
}
