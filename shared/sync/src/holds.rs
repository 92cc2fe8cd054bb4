//! Removals that are held, over streams: of whom, since when, until when; and what the operator says about them.
//! In: what each stream's receiver holds; time while a stream is up; "confirm", "keep". Out: events for the receiver, lists for people.
//! Invariants: the grace of a hold runs only while a stream of the peer says that the resource is missing, and goes on with the next
//! stream of the same process; another process, or one that is not known, gets a whole one. Nothing is removed here.
//! Source: DESIGN.md 4, "Deletion". Not here: what is held at all ([`crate::receiver::batch`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use ursa_model::{Kind, Resource, ResourceKey, Timestamp};
use ursa_runtime::lease::Deadline;

use crate::receiver::{Event, Held, Wait};

/// Name of the peer in a zone, where there is only one.
pub const GLOBAL: &str = "global";

/// Label of a Zone by which the operator says, at whichever node and for as long as it is there, that time removes nothing of what is held
/// for the zone. Its value is [`KEEP`].
pub const KEEP_LABEL: &str = "ursa.io/held-removals";
pub const KEEP: &str = "keep";

/// Whether the Zone has the label.
pub fn is_kept(zone: &Resource) -> bool {
    zone.label(KEEP_LABEL) == Some(KEEP)
}

/// See the module's text. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Holds(Arc<Mutex<BTreeMap<Arc<str>, Peer>>>);

#[derive(Debug, Default)]
struct Peer {
    /// Whose first sets lacked it; empty if that is not known.
    process: String,
    /// Counts the streams, so that one that ends late changes nothing of its successor's.
    streams: u64,
    open: bool,
    /// The stream has said what it holds of some kind.
    noted: bool,
    kept: bool,
    kinds: BTreeMap<Kind, OfKind>,
    confirmed: BTreeSet<Option<Kind>>,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct OfKind {
    wait: Wait,
    keys: BTreeMap<ResourceKey, Hold>,
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    since: Timestamp,
    /// Of the grace, when it stands still.
    left: Duration,
    /// When it ends, while a stream says that the resource is missing.
    ends: Option<Deadline>,
}

/// What is held of one kind for one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name of the zone; [`GLOBAL`] in a zone.
    pub peer: Arc<str>,
    pub kind: Kind,
    pub keys: Vec<ResourceKey>,
    pub wait: Wait,
    /// Since the first of them is missing.
    pub since: Timestamp,
    /// When the first of them goes, if time is enough and runs.
    pub ends: Option<Timestamp>,
    /// A stream of the peer is up: only then time runs, and only then they can be confirmed.
    pub connected: bool,
    /// The operator keeps them ([`Holds::keep`]).
    pub kept: bool,
}

/// Nothing can be confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotConfirmed {
    #[error("no removals of {0} are held here")]
    NothingHeld(String),
    #[error("{0} is not connected here; what is held can be confirmed once it is and still lacks it")]
    NotConnected(String),
}

impl Holds {
    /// Everything that is held, by peer and kind.
    pub fn list(&self) -> Vec<Listed> {
        let all = self.0.lock();
        let of = |(name, peer): (&Arc<str>, &Peer)| {
            let (name, connected, kept) = (name.clone(), peer.open, peer.kept);
            let listed = peer.kinds.iter().map(move |(kind, of)| {
                let ends = of.keys.values().filter_map(|h| h.ends).min();
                let ends = ends.filter(|_| of.wait == Wait::Grace).map(|ends| after(ends.remaining()));
                Listed {
                    peer: name.clone(),
                    kind: *kind,
                    keys: of.keys.keys().cloned().collect(),
                    wait: of.wait,
                    since: of.keys.values().map(|h| h.since).min().unwrap_or_default(),
                    ends,
                    connected,
                    kept,
                }
            });
            listed.collect::<Vec<_>>()
        };
        all.iter().flat_map(of).collect()
    }

    /// For the operator: what is held is removed now, of one kind or of all. Tells how many.
    ///
    /// # Errors
    /// [`NotConfirmed`]
    pub fn confirm(&self, peer: &str, kind: Option<Kind>) -> Result<usize, NotConfirmed> {
        let mut all = self.0.lock();
        let nothing = || NotConfirmed::NothingHeld(peer.to_owned());
        let found = all.get_mut(peer).ok_or_else(nothing)?;
        let kinds = found.kinds.iter().filter(|(of, _)| kind.is_none_or(|kind| kind == **of));
        let count = kinds.map(|(_, of)| of.keys.len()).sum();
        if count == 0 {
            return Err(nothing());
        }
        if !found.open {
            return Err(NotConfirmed::NotConnected(peer.to_owned()));
        }
        found.confirmed.insert(kind);
        found.wake.notify_one();
        Ok(count)
    }

    /// For the operator: whether time removes nothing of what is or will be held for the peer. Only as long as this process runs.
    pub fn keep(&self, peer: &str, keep: bool) {
        self.0.lock().entry(peer.into()).or_default().kept = keep;
    }

    /// Forgets peers that are no more.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.0.lock().retain(|name, peer| peer.open || is_there(name));
    }

    /// A stream of the peer begins; `grace` is how long it must lack something. One that is still open loses its say.
    pub(crate) fn open(&self, peer: &str, grace: Duration) -> Stream {
        let mut all = self.0.lock();
        let found = all.entry(peer.into()).or_default();
        found.pause();
        found.streams += 1;
        (found.open, found.noted) = (true, false);
        found.confirmed.clear();
        Stream {
            holds: self.clone(),
            peer: peer.into(),
            number: found.streams,
            grace,
        }
    }
}

fn after(time: Duration) -> Timestamp {
    Timestamp(
        Timestamp::now()
            .0
            .saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    )
}

impl Peer {
    /// No stream says any more that anything is missing.
    fn pause(&mut self) {
        self.open = false;
        for hold in self.kinds.values_mut().flat_map(|of| of.keys.values_mut()) {
            if let Some(ends) = hold.ends.take() {
                hold.left = ends.remaining();
            }
        }
    }

    fn earliest(&self) -> Option<Deadline> {
        self.kinds.values().flat_map(|of| of.keys.values()).filter_map(|h| h.ends).min()
    }

    /// Whose grace is over. What stays all the same gets another one.
    fn due(&mut self, grace: Duration) -> BTreeSet<ResourceKey> {
        let mut due = BTreeSet::new();
        for (key, hold) in self.kinds.values_mut().flat_map(|of| &mut of.keys) {
            if hold.ends.is_some_and(|ends| ends.has_passed()) {
                hold.ends = Some(Deadline::after(grace));
                due.insert(key.clone());
            }
        }
        due
    }
}

/// One stream's part in it: until dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    holds: Holds,
    peer: Arc<str>,
    number: u64,
    grace: Duration,
}

impl Stream {
    fn with<T>(&self, change: impl FnOnce(&mut Peer) -> T) -> Option<T> {
        let mut all = self.holds.0.lock();
        let peer = all.get_mut(&self.peer).filter(|peer| peer.open && peer.streams == self.number)?;
        Some(change(peer))
    }

    /// What the receiver holds of a kind now. `process` names the peer's; empty if it is not known.
    pub(crate) fn note(&self, process: &str, kind: Kind, held: &Held) {
        self.with(|peer| {
            if !std::mem::replace(&mut peer.noted, true) {
                if process.is_empty() || process != peer.process {
                    peer.kinds
                        .values_mut()
                        .flat_map(|of| of.keys.values_mut())
                        .for_each(|h| h.left = self.grace);
                }
                process.clone_into(&mut peer.process);
            }
            let before = peer.kinds.remove(&kind).map(|of| of.keys).unwrap_or_default();
            let now = Timestamp::now();
            let holds = held.keys.iter().map(|key| {
                let mut hold = before.get(key).copied().unwrap_or(Hold {
                    since: now,
                    left: self.grace,
                    ends: None,
                });
                hold.ends.get_or_insert_with(|| Deadline::after(hold.left));
                (key.clone(), hold)
            });
            let keys: BTreeMap<_, _> = holds.collect();
            if !keys.is_empty() {
                peer.kinds.insert(kind, OfKind { wait: held.wait, keys });
            }
            peer.wake.notify_one();
        });
    }

    /// Waits until time or the operator has something to say. With `kept`, time has not. Cancel-safe.
    pub(crate) async fn next(&self, kept: &(dyn Fn() -> bool + Sync)) -> Event {
        loop {
            let look = |peer: &mut Peer| {
                if let Some(kind) = peer.confirmed.pop_first() {
                    return Ok(Event::Confirmed(kind));
                }
                let due = peer.due(self.grace);
                if !due.is_empty() && !peer.kept && !kept() {
                    return Ok(Event::GraceOver(due));
                }
                Err((peer.wake.clone(), peer.earliest()))
            };
            let (wake, earliest) = match self.with(look) {
                Some(Ok(event)) => return event,
                Some(Err(wait)) => wait,
                // A newer stream has the say.
                None => return std::future::pending().await,
            };
            let over = async {
                match earliest {
                    Some(earliest) => earliest.passed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wake.notified() => {}
                () = over => {}
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.with(Peer::pause);
        // Nothing to remember of who has nothing held.
        let mut all = self.holds.0.lock();
        if all.get(&self.peer).is_some_and(|p| !p.open && !p.kept && p.kinds.is_empty()) {
            all.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;
    use futures::FutureExt;
    use ursa_runtime::lease::within;

    const GRACE: Duration = Duration::from_secs(60);
    const NEVER: &(dyn Fn() -> bool + Sync) = &|| false;

    fn held(names: &[&str], wait: Wait) -> Held {
        let keys = names.iter().map(|name| key(Kind::MeshService, "default", name)).collect();
        Held { keys, wait }
    }

    fn note(stream: &Stream, process: &str, names: &[&str]) {
        stream.note(process, Kind::MeshService, &held(names, Wait::Grace));
    }

    /// Names that are due, within so long.
    async fn due(stream: &Stream, time: u64) -> Vec<String> {
        match within(Duration::from_secs(time), stream.next(NEVER)).await {
            Ok(Event::GraceOver(keys)) => keys.iter().map(|key| key.name().to_owned()).collect(),
            Ok(other) => panic!("{other:?}"),
            Err(_) => Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_goes_on_with_the_next_stream_of_the_same_process() {
        for (second, left) in [("one", 20), ("two", 60), ("", 60)] {
            let holds = Holds::default();
            let stream = holds.open("east", GRACE);
            note(&stream, "one", &["a"]);
            assert!(due(&stream, 40).await.is_empty());
            drop(stream);
            tokio::time::advance(Duration::from_secs(1000)).await;
            assert!(!holds.list()[0].connected, "time stands still");
            let stream = holds.open("east", GRACE);
            assert!(due(&stream, 1000).await.is_empty(), "nothing is missing yet");
            note(&stream, second, &["a", "b"]);
            assert!(due(&stream, left - 1).await.is_empty(), "{second}");
            let first = due(&stream, 2).await;
            assert_eq!(first, if left == 60 { vec!["a", "b"] } else { vec!["a"] }, "{second}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_returned_is_forgotten_and_what_stays_is_due_again() {
        let holds = Holds::default();
        let stream = holds.open("east", GRACE);
        note(&stream, "one", &["a", "b"]);
        assert!(due(&stream, 30).await.is_empty());
        note(&stream, "one", &["b"]);
        assert_eq!(due(&stream, 31).await, ["b"]);
        assert!(due(&stream, 59).await.is_empty());
        assert_eq!(due(&stream, 2).await, ["b"], "the receiver still holds it");
        note(&stream, "one", &[]);
        assert!(holds.list().is_empty());
        note(&stream, "one", &["a"]);
        assert!(due(&stream, 59).await.is_empty(), "a new hold");
        drop(stream);
        assert_eq!(holds.list().len(), 1);
        holds.retain(|_| false);
        assert!(holds.list().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_operator_decides() {
        let holds = Holds::default();
        let nothing = NotConfirmed::NothingHeld("east".to_owned());
        assert_eq!(holds.confirm("east", None), Err(nothing.clone()));
        let stream = holds.open("east", GRACE);
        assert_eq!(holds.confirm("east", None), Err(nothing.clone()));
        note(&stream, "one", &["a", "b"]);
        assert_eq!(holds.confirm("east", Some(Kind::Mesh)), Err(nothing));
        assert_eq!(holds.confirm("east", Some(Kind::MeshService)), Ok(2));
        assert!(matches!(stream.next(NEVER).await, Event::Confirmed(Some(Kind::MeshService))));
        assert!(stream.next(NEVER).now_or_never().is_none(), "once");

        // Kept: time alone does nothing.
        holds.keep("east", true);
        assert!(within(GRACE * 3, stream.next(NEVER)).await.is_err());
        holds.keep("east", false);
        assert!(within(GRACE * 3, stream.next(&|| true)).await.is_err());
        let listed = &holds.list()[0];
        assert_eq!((listed.keys.len(), listed.wait, listed.connected), (2, Wait::Grace, true));
        assert!(listed.ends.is_some_and(|ends| ends > listed.since));
        assert_eq!(due(&stream, 61).await, ["a", "b"]);

        drop(stream);
        assert_eq!(holds.confirm("east", None), Err(NotConfirmed::NotConnected("east".to_owned())));
        // A confirmation that came too late for its stream does not hit the next one.
        let stream = holds.open("east", GRACE);
        note(&stream, "one", &["a"]);
        assert_eq!(holds.confirm("east", None), Ok(1));
        let late = stream;
        let stream = holds.open("east", GRACE);
        assert!(late.next(NEVER).now_or_never().is_none() && stream.next(NEVER).now_or_never().is_none());
        drop(late);
        note(&stream, "one", &["a"]);
        assert!(holds.list()[0].connected, "the older one's end is not the newer one's");
    }
}
