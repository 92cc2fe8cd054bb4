//! Updates of observed copies as frames, and back.
//! In: updates; frames of a peer. Out: frames of bounded size; updates, or why the peer is not believed.
//! Invariant: what is decoded belongs to the zone it was sent for and to the observed tier; nothing is taken before it is whole.

use std::sync::Arc;

use bytes::Bytes;
use ursa_model::{Resource, ResourceKey, Timestamp, ZoneName, kind::Tier};
use ursa_proto::peer::{self, Frame, frame::Body};
use ursa_state::{
    Role,
    observed::{CopyAt, Fence, Update},
};
use ursa_sync::claims::{Claim, StreamKind};

use super::about::{self, NodeStatus};
use crate::config::Timing;

/// Resources are collected to frames of about this size.
const FRAME_BYTES: usize = 512 * 1024;
/// Largest frame: one resource (at most some MiB) or the deletions of one update.
pub(super) const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// Largest copy of one zone: 100,000 proxies with their insights.
const MAX_COPY_BYTES: usize = 1024 * 1024 * 1024;

/// What a peer sent makes no sense.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("a frame without content")]
    Empty,
    #[error("a frame lacks {0}")]
    Lacks(&'static str),
    #[error("{0:?} is no zone")]
    Zone(String),
    #[error("a resource cannot be read")]
    Json(#[from] serde_json::Error),
    #[error("{key} is not observed in zone {zone}")]
    Foreign { key: ResourceKey, zone: ZoneName },
    #[error("resources that belong to nothing")]
    Stray,
    #[error("another frame comes before the last copy is whole")]
    Incomplete,
    #[error("a copy of more than {MAX_COPY_BYTES} bytes")]
    TooLarge,
}

/// What a frame says, once it is whole.
#[derive(Debug)]
pub(super) enum Message {
    Hello {
        instance: String,
        history: Bytes,
        timing: Option<Timing>,
    },
    Claims(Vec<ClaimOf>),
    Update(Update),
    Alive(Option<NodeStatus>),
}

/// A claim without the node, which is known by the connection.
#[derive(Debug)]
pub(super) struct ClaimOf {
    zone: ZoneName,
    kind: StreamKind,
    instance: Arc<str>,
    session: u64,
    epoch: u64,
}

impl ClaimOf {
    pub(super) fn of(self, node: &Arc<str>) -> Claim {
        Claim {
            zone: self.zone,
            kind: self.kind,
            node: node.clone(),
            instance: self.instance,
            session: self.session,
            epoch: self.epoch,
        }
    }
}

pub(super) fn frame(body: Body) -> Frame {
    Frame { body: Some(body) }
}

pub(super) fn claims(all: &[Claim]) -> Frame {
    let claims = all.iter().map(|c| peer::ZoneClaim {
        zone: c.zone.to_string(),
        kind: match c.kind {
            StreamKind::GlobalToZone => 0,
            StreamKind::ZoneToGlobal => 1,
        },
        instance: c.instance.to_string(),
        session: c.session,
        epoch: c.epoch,
    });
    frame(Body::Claims(peer::ClaimSet { claims: claims.collect() }))
}

fn at(at: CopyAt) -> Option<peer::CopyAt> {
    Some(peer::CopyAt {
        epoch: at.fence.epoch,
        node: at.fence.node,
        version: at.version,
    })
}

/// The frames of an update, made one by one as they are asked for.
pub(super) fn frames(update: Update) -> impl Iterator<Item = Frame> + Send {
    let (head, resources) = match update {
        Update::Drop { zone, up_to } => {
            let up_to = at(CopyAt { fence: up_to, version: 0 });
            let zone = zone.to_string();
            (Body::Drop(peer::Drop { zone, up_to }), Vec::new())
        }
        Update::Full {
            zone,
            at: is_at,
            held,
            as_of,
            resources,
        } => {
            let full = peer::Full {
                zone: zone.to_string(),
                at: at(is_at),
                held,
                as_of: as_of.0,
                more: !resources.is_empty(),
            };
            (Body::Full(full), resources)
        }
        Update::Delta {
            zone,
            from,
            to,
            puts,
            deletes,
        } => {
            let delta = peer::Delta {
                zone: zone.to_string(),
                from: at(from),
                to: at(to),
                deletes: deletes.iter().filter_map(json).collect(),
                more: !puts.is_empty(),
            };
            (Body::Delta(delta), puts)
        }
    };
    let mut resources = resources.into_iter().peekable();
    let rest = std::iter::from_fn(move || {
        resources.peek()?;
        let (mut encoded, mut size) = (Vec::new(), 0);
        while size < FRAME_BYTES
            && let Some(resource) = resources.next()
        {
            // Keys and JSON values always encode.
            let Some(bytes) = json(resource.as_ref()) else { continue };
            size += bytes.len();
            encoded.push(bytes);
        }
        let more = resources.peek().is_some();
        Some(frame(Body::Resources(peer::Resources { resources: encoded, more })))
    });
    std::iter::once(frame(head)).chain(rest)
}

fn json(value: &impl serde::Serialize) -> Option<Bytes> {
    serde_json::to_vec(value).ok().map(Bytes::from)
}

/// Puts frames together.
#[derive(Default)]
pub(super) struct Assembler {
    /// An update whose resources are still coming, and their bytes so far.
    open: Option<(Update, usize)>,
}

impl Assembler {
    /// The next message, if this frame completes one.
    ///
    /// # Errors
    /// [`DecodeError`]; the stream is then of no use any more.
    pub(super) fn take(&mut self, frame: Frame) -> Result<Option<Message>, DecodeError> {
        let body = frame.body.ok_or(DecodeError::Empty)?;
        if let Body::Resources(part) = body {
            let (mut update, size) = self.open.take().ok_or(DecodeError::Stray)?;
            let size = size + part.resources.iter().map(Bytes::len).sum::<usize>();
            if size > MAX_COPY_BYTES {
                return Err(DecodeError::TooLarge);
            }
            let (Update::Full { zone, resources: into, .. } | Update::Delta { zone, puts: into, .. }) = &mut update else {
                return Err(DecodeError::Stray);
            };
            let of: ZoneName = zone.parse().map_err(|_| DecodeError::Zone(zone.to_string()))?;
            for bytes in &part.resources {
                let resource: Resource = serde_json::from_slice(bytes)?;
                into.push(Arc::new(check(resource, &of)?));
            }
            if part.more {
                self.open = Some((update, size));
                return Ok(None);
            }
            return Ok(Some(Message::Update(update)));
        }
        if self.open.is_some() {
            return Err(DecodeError::Incomplete);
        }
        let (update, more) = match body {
            Body::Hello(hello) => {
                return Ok(Some(Message::Hello {
                    instance: hello.instance,
                    history: hello.history,
                    timing: hello.timing.map(about::timing_of),
                }));
            }
            Body::Alive(alive) => return Ok(Some(Message::Alive(alive.status.map(about::status_of)))),
            Body::Claims(set) => {
                let claims = set.claims.into_iter().map(claim).collect::<Result<_, _>>()?;
                return Ok(Some(Message::Claims(claims)));
            }
            Body::Drop(drop) => {
                let up_to = copy_at(drop.up_to)?.fence;
                let zone = zone(&drop.zone)?;
                (Update::Drop { zone, up_to }, false)
            }
            Body::Full(full) => {
                let update = Update::Full {
                    zone: zone(&full.zone)?,
                    at: copy_at(full.at)?,
                    held: full.held,
                    as_of: Timestamp(full.as_of),
                    resources: Vec::new(),
                };
                (update, full.more)
            }
            Body::Delta(delta) => {
                let keys = delta.deletes.iter().map(|bytes| serde_json::from_slice(bytes));
                let update = Update::Delta {
                    zone: zone(&delta.zone)?,
                    from: copy_at(delta.from)?,
                    to: copy_at(delta.to)?,
                    puts: Vec::new(),
                    deletes: keys.collect::<Result<_, _>>()?,
                };
                (update, delta.more)
            }
            Body::Resources(_) => return Err(DecodeError::Stray),
        };
        if more {
            self.open = Some((update, 0));
            return Ok(None);
        }
        Ok(Some(Message::Update(update)))
    }
}

/// Is it what may be seen of this zone?
pub(super) fn check(resource: Resource, zone: &ZoneName) -> Result<Resource, DecodeError> {
    let owner = ResourceKey::new(ursa_model::Kind::Zone, "", zone.as_str()).ok();
    if Role::Global.tier(resource.kind()) == Tier::Observed && owner.is_some() && resource.owner == owner {
        return Ok(resource);
    }
    Err(DecodeError::Foreign {
        key: resource.key,
        zone: zone.clone(),
    })
}

fn zone(name: &str) -> Result<Arc<str>, DecodeError> {
    let parsed: Result<ZoneName, _> = name.parse();
    parsed
        .map(|zone| zone.as_str().into())
        .map_err(|_| DecodeError::Zone(name.chars().take(100).collect()))
}

fn copy_at(at: Option<peer::CopyAt>) -> Result<CopyAt, DecodeError> {
    let at = at.ok_or(DecodeError::Lacks("its version"))?;
    let (epoch, node) = (at.epoch, at.node);
    Ok(CopyAt {
        fence: Fence { epoch, node },
        version: at.version,
    })
}

fn claim(claim: peer::ZoneClaim) -> Result<ClaimOf, DecodeError> {
    Ok(ClaimOf {
        zone: claim
            .zone
            .parse()
            .map_err(|_| DecodeError::Zone(claim.zone.chars().take(100).collect()))?,
        kind: match claim.kind {
            0 => StreamKind::GlobalToZone,
            1 => StreamKind::ZoneToGlobal,
            _ => return Err(DecodeError::Lacks("a kind of stream")),
        },
        instance: claim.instance.into(),
        session: claim.session,
        epoch: claim.epoch,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use ursa_model::{Kind, Labels};

    fn dataplane(zone: &str, name: &str, size: usize) -> Arc<Resource> {
        Arc::new(Resource {
            key: ResourceKey::new(Kind::Dataplane, "default", name).unwrap(),
            labels: Labels::new(),
            spec: json!({ "filler": "x".repeat(size) }),
            status: None,
            owner: ResourceKey::new(Kind::Zone, "", zone).ok(),
            created: Timestamp(1),
            modified: Timestamp(2),
            version: 3,
            create_revision: 4,
            mod_revision: 5,
        })
    }

    fn some_at(version: u64) -> CopyAt {
        let fence = Fence { epoch: 7, node: 2 };
        CopyAt { fence, version }
    }

    fn decode(frames: impl IntoIterator<Item = Frame>) -> Vec<Message> {
        let mut assembler = Assembler::default();
        frames.into_iter().filter_map(|f| assembler.take(f).unwrap()).collect()
    }

    #[test]
    fn updates_survive_the_wire_in_pieces() {
        let many: Vec<_> = (0..10).map(|n| dataplane("east", &format!("dp-{n}"), 200_000)).collect();
        let updates = [
            Update::Full {
                zone: "east".into(),
                at: some_at(1),
                held: true,
                as_of: Timestamp(99),
                resources: many.clone(),
            },
            Update::Full {
                zone: "east".into(),
                at: some_at(1),
                held: false,
                as_of: Timestamp(99),
                resources: Vec::new(),
            },
            Update::Delta {
                zone: "east".into(),
                from: some_at(1),
                to: some_at(4),
                puts: many,
                deletes: vec![ResourceKey::new(Kind::DataplaneInsight, "default", "gone").unwrap()],
            },
            Update::Drop {
                zone: "east".into(),
                up_to: some_at(0).fence,
            },
        ];
        for update in updates {
            let pieces: Vec<Frame> = frames(update.clone()).collect();
            let largest = pieces.iter().map(prost::Message::encoded_len).max().unwrap();
            assert!(largest < 2 * FRAME_BYTES, "{largest}");
            match decode(pieces).as_slice() {
                [Message::Update(back)] => assert_eq!(*back, update),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let full = |resources| Update::Full {
            zone: "east".into(),
            at: some_at(1),
            held: true,
            as_of: Timestamp(0),
            resources,
        };
        let refused = |frames: Vec<Frame>| {
            let mut assembler = Assembler::default();
            frames.into_iter().find_map(|f| assembler.take(f).err()).unwrap().to_string()
        };
        let of_another_zone: Vec<Frame> = frames(full(vec![dataplane("west", "a", 1)])).collect();
        assert_eq!(refused(of_another_zone), "Dataplane/default/a is not observed in zone east");
        let mut durable = dataplane("east", "a", 1).as_ref().clone();
        durable.key = ResourceKey::new(Kind::Secret, "default", "a").unwrap();
        assert!(refused(frames(full(vec![durable.into()])).collect()).contains("is not observed"));
        let whole: Vec<Frame> = frames(full(vec![dataplane("east", "a", 1)])).collect();
        assert_eq!(refused(whole[1..].to_vec()), "resources that belong to nothing");
        assert!(refused(vec![whole[0].clone(), whole[0].clone()]).contains("before the last copy is whole"));
        assert_eq!(refused(vec![Frame { body: None }]), "a frame without content");
        let bad = peer::Drop {
            zone: "No Zone".to_owned(),
            up_to: at(some_at(1)),
        };
        assert!(refused(vec![frame(Body::Drop(bad))]).contains("is no zone"));
        let no_json = peer::Resources {
            resources: vec![Bytes::from_static(b"{")],
            more: false,
        };
        assert!(refused(vec![whole[0].clone(), frame(Body::Resources(no_json))]).contains("cannot be read"));
    }
}
