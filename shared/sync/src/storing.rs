//! Storing what a peer sent: proposing until it is known to be stored, cutting what is too large, and only while the stream that brought it
//! still speaks for the peer.
//! In: ops in pieces, a place to store. Out: what was refused, or why nothing more can be stored.
//! Invariant: a changeset that is late, of a stream that was taken over meanwhile, is rejected whole by the store itself ([`Guard`]).

use std::{collections::VecDeque, time::Duration};

use tokio_util::sync::CancellationToken;
use tonic::Status;
use ursa_model::Timestamp;
use ursa_runtime::{
    backoff::Backoff,
    lease::{Deadline, within},
};
use ursa_state::{Applied, Changeset, GlobalRevision, Mode, Op, OpResult, RequestId};

use crate::{
    ports::{Sink, SinkError},
    shell::Outcome,
};

/// First and longest wait before a changeset is proposed again.
const PROPOSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// One proposal's longest time: then its outcome is unknown and it is proposed again under the same id.
const PROPOSE_ONCE: Duration = Duration::from_secs(10);
/// Longest time without a store until the stream ends.
const PROPOSE_ALL: Duration = Duration::from_secs(30);
/// Longest wait for a read barrier: an election and some. Then another node may do better.
const BARRIER: Duration = Duration::from_secs(5);
/// Told to a stream whose peer is somewhere else by now.
pub(crate) const TAKEN_OVER: &str = "a newer connection of this zone took over";
/// How often a changeset is made anew because its condition did not hold any more.
pub(crate) const RACES: usize = 5;

/// Under which condition changesets may be stored.
pub(crate) trait Guard: Sync {
    /// It is known not to hold any more: no attempt begins.
    fn lost(&self) -> bool;
    /// First op of every changeset, by the newest view: refused where it does not hold. Or why it does not.
    fn op(&self) -> Result<Op, String>;
}

/// Proposes until it is known to be stored; the same id makes a repeat harmless. Cancellation ends it after the running attempt. Once
/// the guard is lost no attempt begins, not even the first.
pub(crate) async fn propose(
    sink: &dyn Sink,
    set: Changeset,
    cancel: &CancellationToken,
    guard: Option<&dyn Guard>,
) -> Result<Applied, SinkError> {
    let mut backoff = Backoff::new(PROPOSE.0, PROPOSE.1);
    let deadline = Deadline::after(PROPOSE_ALL);
    loop {
        if guard.is_some_and(Guard::lost) {
            return Err(SinkError::Unavailable(TAKEN_OVER.to_owned()));
        }
        let result = within(PROPOSE_ONCE, sink.apply(set.clone())).await;
        let why = match result {
            Ok(Ok(applied)) => return Ok(applied),
            Ok(Err(err @ SinkError::Refused(_))) => return Err(err),
            Ok(Err(err @ (SinkError::Unavailable(_) | SinkError::NoSpace(_)))) => err,
            Err(late) => SinkError::Unavailable(late.to_string()),
        };
        if deadline.has_passed() || !backoff.wait(cancel).await {
            return Err(why);
        }
        tracing::debug!(error = %why, "proposing again");
    }
}

/// What a peer is told whose first words could not be stored.
pub(crate) fn status(error: &SinkError) -> Status {
    match error {
        SinkError::NoSpace(_) => Status::resource_exhausted(error.to_string()),
        SinkError::Unavailable(_) | SinkError::Refused(_) => Status::unavailable(error.to_string()),
    }
}

/// A changeset of independent ops, as of now.
pub(crate) fn changeset(ops: Vec<Op>, actor: &str) -> Changeset {
    let id = RequestId(uuid::Uuid::new_v4().as_u128());
    Changeset {
        id,
        at: Timestamp::now(),
        mode: Mode::Each,
        ops,
        global: None,
        actor: actor.to_owned(),
    }
}

/// Stores a batch's ops, piece by piece; the last piece carries `global`. What the store will never take is found by halving and
/// refused alone, so that one resource that is too large does not stop the others for ever.
pub(crate) async fn store(
    sink: &dyn Sink,
    pieces: Vec<Vec<Op>>,
    global: Option<GlobalRevision>,
    actor: &str,
    cancel: &CancellationToken,
    guard: Option<&dyn Guard>,
) -> Outcome {
    let mut left = VecDeque::from(pieces);
    if left.is_empty() && global.is_some() {
        left.push_back(Vec::new());
    }
    let mut refused = Vec::new();
    while let Some(mut ops) = left.pop_front() {
        let mut set = changeset(ops.clone(), actor);
        set.global = global.filter(|_| left.is_empty());
        let stored = loop {
            let stored = match guard {
                Some(guard) => guarded(sink, set.clone(), cancel, guard).await,
                None => propose(sink, set.clone(), cancel, None).await,
            };
            match stored {
                // Another node would have no more room: the stream stays, and what it brought waits.
                Err(SinkError::NoSpace(why)) if !cancel.is_cancelled() => {
                    tracing::warn!(error = why, "what a peer sent cannot be stored yet");
                }
                stored => break stored,
            }
        };
        match stored {
            Ok(applied) => refused.extend(ops.iter().zip(&applied.results).filter_map(|(op, result)| match result {
                OpResult::Refused(why) => Some((op.key().clone(), why.to_string())),
                _ => None,
            })),
            Err(SinkError::Refused(why)) if ops.len() == 1 => {
                refused.extend(ops.first().map(|op| (op.key().clone(), why)));
                if left.is_empty() && global.is_some() {
                    left.push_back(Vec::new());
                }
            }
            Err(SinkError::Refused(_)) if ops.len() > 1 => {
                let second = ops.split_off(ops.len() / 2);
                left.push_front(second);
                left.push_front(ops);
            }
            Err(err) => return Err(err.to_string()),
        }
    }
    Ok(refused)
}

/// As [`propose`], behind the guard's op, which is made anew when somebody else changed what it is about.
async fn guarded(sink: &dyn Sink, set: Changeset, cancel: &CancellationToken, guard: &dyn Guard) -> Result<Applied, SinkError> {
    for _ in 0..RACES {
        let condition = guard.op().map_err(SinkError::Unavailable)?;
        let mut set = set.clone();
        set.id = RequestId(uuid::Uuid::new_v4().as_u128());
        set.mode = Mode::Guarded;
        set.ops.insert(0, condition);
        let mut applied = propose(sink, set, cancel, Some(guard)).await?;
        if applied.rejected.is_none() {
            if !applied.results.is_empty() {
                applied.results.remove(0);
            }
            return Ok(applied);
        }
        barrier(sink, cancel)
            .await
            .map_err(|status| SinkError::Unavailable(status.message().to_owned()))?;
    }
    Err(SinkError::Unavailable(
        "what it depends on is being changed all the time".to_owned(),
    ))
}

/// Waits for the read barrier. While a leader is being elected there is none: that is waited for.
pub(crate) async fn barrier(sink: &dyn Sink, cancel: &CancellationToken) -> Result<(), Status> {
    let mut backoff = Backoff::new(PROPOSE.0, PROPOSE.1);
    let deadline = Deadline::after(BARRIER);
    loop {
        let why = match within(deadline.remaining(), sink.barrier()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(err)) => err.to_string(),
            Err(late) => late.to_string(),
        };
        if deadline.has_passed() || !backoff.wait(cancel).await {
            return Err(Status::unavailable(format!(
                "the store does not confirm that it is up to date: {why}"
            )));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, key, put_op};
    use futures::{FutureExt, future::BoxFuture};
    use serde_json::json;
    use ursa_model::{Kind, Labels};
    use ursa_state::{HistoryId, Role};

    /// Takes at most three ops, and never the one called `big`.
    struct Picky(Memory);

    impl Sink for Picky {
        fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
            let bad = set.ops.len() > 3 || set.ops.iter().any(|op| op.key().name() == "big");
            let result = if bad {
                Err(SinkError::Refused("too large".into()))
            } else {
                Ok(self.0.change(set))
            };
            futures::future::ready(result).boxed()
        }

        fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
            futures::future::ready(Ok(())).boxed()
        }
    }

    #[tokio::test]
    async fn what_is_too_large_is_cut_and_refused_alone() {
        let sink = Picky(Memory::new(Role::Zone, 1));
        let names = ["a", "b", "c", "d", "e", "f", "big"];
        let op = |name: &&str| put_op(key(Kind::Mesh, "", name), Labels::new(), json!({}));
        let global = GlobalRevision {
            history: HistoryId(7),
            revision: 3,
        };
        let pieces = vec![names.iter().map(op).collect()];
        let refused = store(&sink, pieces, Some(global), "", &CancellationToken::new(), None)
            .await
            .unwrap();
        assert_eq!(refused, [(key(Kind::Mesh, "", "big"), "too large".to_owned())]);
        assert_eq!(sink.0.view().list(Kind::Mesh).count(), 6);
        assert_eq!(sink.0.view().global(), Some(global), "the revision comes with the last piece");
    }

    /// Has no room for so many tries.
    struct Full(Memory, std::sync::atomic::AtomicU32);

    impl Sink for Full {
        fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
            let left = self
                .1
                .fetch_update(std::sync::atomic::Ordering::SeqCst, std::sync::atomic::Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                });
            let result = match left {
                Ok(_) => Err(SinkError::NoSpace("the disk is full".to_owned())),
                Err(_) => Ok(self.0.change(set)),
            };
            futures::future::ready(result).boxed()
        }

        fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
            futures::future::ready(Ok(())).boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_without_room_is_waited_for_longer_than_one_that_is_away() {
        let start = tokio::time::Instant::now();
        let sink = Full(Memory::new(Role::Global, 1), 100.into());
        let outcome = store(&sink, vec![piece("a")], None, "", &CancellationToken::new(), None).await;
        assert_eq!(outcome.unwrap(), []);
        assert_eq!(meshes(&sink.0), ["a"]);
        assert!(start.elapsed() > PROPOSE_ALL);
    }

    #[tokio::test(start_paused = true)]
    async fn first_words_that_find_no_room_are_told_so() {
        let sink = Full(Memory::new(Role::Global, 1), u32::MAX.into());
        let set = changeset(piece("a"), "");
        let refused = propose(&sink, set, &CancellationToken::new(), None).await.unwrap_err();
        assert_eq!(status(&refused).code(), tonic::Code::ResourceExhausted);
        let cancel = CancellationToken::new();
        cancel.cancel();
        store(&sink, vec![piece("a")], None, "", &cancel, None).await.unwrap_err();
    }

    /// Loses the claim while the first piece is being stored.
    struct Losing(Memory, CancellationToken);

    impl Sink for Losing {
        fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
            self.1.cancel();
            futures::future::ready(Ok(self.0.change(set))).boxed()
        }

        fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
            futures::future::ready(Ok(())).boxed()
        }
    }

    /// The condition: a Mesh has a version.
    struct OfMesh<'a>(&'a Memory, &'a CancellationToken);

    impl Guard for OfMesh<'_> {
        fn lost(&self) -> bool {
            self.1.is_cancelled()
        }

        fn op(&self) -> Result<Op, String> {
            let mesh = self.0.get(Kind::Mesh, "", "guard").ok_or("there is no mesh")?;
            if mesh.label("taken").is_some() {
                return Err(TAKEN_OVER.to_owned());
            }
            Ok(Op::Put(ursa_state::Put {
                key: mesh.key.clone(),
                labels: mesh.labels.clone(),
                spec: mesh.spec.clone(),
                status: None,
                owner: None,
                expect: ursa_state::Expect::Version(mesh.version),
            }))
        }
    }

    fn piece(name: &str) -> Vec<Op> {
        vec![put_op(key(Kind::Mesh, "", name), Labels::new(), json!({}))]
    }

    fn meshes(memory: &Memory) -> Vec<String> {
        memory.view().list(Kind::Mesh).map(|m| m.name().to_owned()).collect()
    }

    /// Changes the guard's mesh while the first changeset is on its way.
    struct Racing(Memory, std::sync::atomic::AtomicBool, Labels);

    impl Sink for Racing {
        fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
            if !self.1.swap(true, std::sync::atomic::Ordering::SeqCst) {
                self.0
                    .ops(vec![put_op(key(Kind::Mesh, "", "guard"), self.2.clone(), json!({"other": 1}))]);
            }
            futures::future::ready(Ok(self.0.change(set))).boxed()
        }

        fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
            futures::future::ready(Ok(())).boxed()
        }
    }

    #[tokio::test]
    async fn a_late_changeset_lands_only_if_its_condition_still_holds() {
        let (never, cancel) = (CancellationToken::new(), CancellationToken::new());
        for (labels, lands) in [(Labels::new(), true), (crate::testing::labels_of(&[("taken", "yes")]), false)] {
            let memory = Memory::new(Role::Global, 1);
            memory.ops(piece("guard"));
            let sink = Racing(memory.clone(), false.into(), labels);
            let bad = Op::Put(ursa_state::Put {
                owner: Some(key(Kind::Zone, "", "nowhere")),
                ..match piece("orphan").remove(0) {
                    Op::Put(put) => put,
                    Op::Delete { .. } => unreachable!(),
                }
            });
            let ops = [piece("a"), vec![bad], piece("b")].concat();
            let outcome = store(&sink, vec![ops], None, "", &cancel, Some(&OfMesh(&memory, &never))).await;
            if lands {
                let refused = outcome.unwrap();
                assert_eq!(refused.len(), 1, "a bad op stops no other: {refused:?}");
                assert_eq!(refused[0].0.name(), "orphan");
                assert_eq!(meshes(&memory), ["a", "b", "guard"]);
            } else {
                assert_eq!(outcome.unwrap_err(), SinkError::Unavailable(TAKEN_OVER.to_owned()).to_string());
                assert_eq!(meshes(&memory), ["guard"]);
            }
        }
    }

    #[tokio::test]
    async fn who_lost_the_claim_proposes_nothing_more() {
        let lost = CancellationToken::new();
        let memory = Memory::new(Role::Global, 1);
        memory.ops(piece("guard"));
        let sink = Losing(memory.clone(), lost.clone());
        let cancel = CancellationToken::new();
        let outcome = store(
            &sink,
            vec![piece("a"), piece("b")],
            None,
            "",
            &cancel,
            Some(&OfMesh(&memory, &lost)),
        )
        .await;
        assert!(outcome.unwrap_err().contains("took over"));
        assert_eq!(meshes(&memory), ["a", "guard"], "what was begun is seen through, nothing else");
    }
}
