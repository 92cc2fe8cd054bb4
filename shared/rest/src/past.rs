//! Reading the past over the API: which revision a request means, and looking there without holding up anybody.
//! In: parameters, a view. Out: revisions; what a closure found, away from the async threads.
//! Invariant: whoever may not read a kind now may not read its past either; nothing internal is ever shown.

use serde::Deserialize;
use ursa_model::{
    Kind, ResourceKey, Timestamp,
    kind::{ALL, Tier},
};
use ursa_runtime::error::Chain;
use ursa_state::{PastError, Revision, View};

use crate::{call::Call, error::Error};

/// Requests that may read the past at once, of anybody and of administrators: each may keep a processor busy for seconds.
pub(crate) const MAX_HISTORIANS: usize = 2;
const TITLE: &str = "Could not read the history";

/// A revision as a request names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    Revision(Revision),
    /// The newest revision at that time.
    Time(Timestamp),
}

impl Point {
    pub(crate) fn parse(text: &str, field: &str) -> Result<Self, Error> {
        if let Ok(revision) = text.parse() {
            return Ok(Self::Revision(revision));
        }
        match Timestamp::parse_rfc3339(text) {
            Some(time) => Ok(Self::Time(time)),
            None => Err(Error::invalid_field(
                TITLE,
                field,
                "must be a revision, or a time such as 2026-01-31T10:00:00Z for the newest revision then",
            )),
        }
    }

    /// The revision that is meant. Not on an async thread.
    pub(crate) fn resolve(self, view: &View, field: &str) -> Result<Revision, Error> {
        let time = match self {
            Self::Revision(revision) => return Ok(revision),
            Self::Time(time) => time,
        };
        let past = view.past();
        match past.revision_at(time).map_err(|error| failed(field, error))? {
            Some(revision) => Ok(revision),
            None if past.oldest() == 0 => Ok(0),
            None => Err(Error::compacted(
                field,
                format!(
                    "what there was at that time is no longer kept: the oldest that can be read is {}",
                    past.oldest()
                ),
            )),
        }
    }
}

/// A [`Point`] in JSON: a number or a text.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum PointText {
    Number(Revision),
    Text(String),
}

impl PointText {
    pub(crate) fn point(self, field: &str) -> Result<Point, Error> {
        match self {
            Self::Number(revision) => Ok(Point::Revision(revision)),
            Self::Text(text) => Point::parse(&text, field),
        }
    }
}

/// What keeps the past from being read, by what the caller can do about it.
pub(crate) fn failed(field: &str, error: PastError) -> Error {
    match error {
        PastError::Compacted { .. } => Error::compacted(field, error.to_string()),
        PastError::Newer { .. } => Error::invalid_field(TITLE, field, error.to_string()),
        PastError::Damaged { .. } => {
            tracing::error!(error = %Chain(&error), "the history cannot be read");
            Error::internal(TITLE)
        }
    }
}

/// The parameter, if it is there.
pub(crate) fn parameter(call: &Call, field: &str) -> Result<Option<Point>, Error> {
    match call.query.first(field) {
        "" => Ok(None),
        text => Point::parse(text, field).map(Some),
    }
}

/// The revision at which a resource or a list is asked for; `None` for now.
pub(crate) fn asked(call: &Call, kind: Kind, overview: bool) -> Result<Option<Point>, Error> {
    let point = parameter(call, "revision")?;
    if point.is_none() {
        return Ok(None);
    }
    if overview {
        return Err(Error::invalid_field(
            TITLE,
            "revision",
            "an overview shows what is observed now: ask without _overview",
        ));
    }
    require_history(call, call.query.first("history"))?;
    require_kept(call, kind, "revision")?;
    Ok(point)
}

/// Revisions belong to a history; whoever names one means that.
pub(crate) fn require_history(call: &Call, asked: &str) -> Result<(), Error> {
    let ours = call.catalog.durable.history_id();
    if asked.is_empty() || asked == ours.to_string() {
        return Ok(());
    }
    let reason = format!("this control plane is at history {ours}, to which revisions of another do not belong");
    Err(Error::invalid_field(TITLE, "history", reason))
}

/// Only what is stored has a past.
pub(crate) fn require_kept(call: &Call, kind: Kind, field: &str) -> Result<(), Error> {
    match call.catalog.role.tier(kind) {
        Tier::Durable => Ok(()),
        Tier::Observed => {
            let reason = format!("a {kind} is observed here, not stored: it has no history");
            Err(Error::invalid_field(TITLE, field, reason))
        }
    }
}

/// Runs `work` on a thread for it, if there is a place.
pub(crate) async fn look<T, F>(call: &Call, work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce(&View) -> Result<T, Error> + Send + 'static,
{
    let place = call.place_in_the_past().ok_or_else(Error::too_many_historians)?;
    let view = call.catalog.durable.clone();
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work(&view)
    });
    done.await.map_err(|error| {
        tracing::error!(error = %Chain(&error), "the thread that reads the history failed");
        Error::internal(TITLE)
    })?
}

/// Which resources a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    kind: Option<Kind>,
    mesh: String,
    name: String,
    /// The kinds that the caller may know about.
    kinds: Vec<Kind>,
}

impl Selection {
    /// What a caller wants: empty texts stand for anything. A mesh means what is in it and the mesh itself.
    ///
    /// # Errors
    /// There is no such kind, it has no past, or the caller may not read it.
    pub(crate) fn of(call: &Call, kind: &str, mesh: &str, name: &str) -> Result<Self, Error> {
        let kind = match kind {
            "" => None,
            text => {
                let known = text.parse::<Kind>().ok().filter(|kind| !kind.descriptor().internal);
                let kind = known.ok_or_else(|| Error::invalid_field(TITLE, "type", format!("there is no type {text:?}")))?;
                call.require_read(kind)?;
                require_kept(call, kind, "type")?;
                Some(kind)
            }
        };
        if kind.is_none() && !name.is_empty() {
            return Err(Error::invalid_field(TITLE, "name", "goes together with type"));
        }
        let is_admin = call.api().access.is_admin(&call.caller.user);
        let visible = |kind: &Kind| {
            let descriptor = kind.descriptor();
            let kept = call.catalog.role.tier(*kind) == Tier::Durable;
            kept && !descriptor.internal && (is_admin || !descriptor.admin_only)
        };
        Ok(Self {
            kind,
            mesh: mesh.to_owned(),
            name: name.to_owned(),
            kinds: ALL.iter().copied().filter(visible).collect(),
        })
    }

    pub(crate) fn has(&self, key: &ResourceKey) -> bool {
        let in_mesh = || key.mesh() == self.mesh || (key.kind() == Kind::Mesh && key.name() == self.mesh);
        self.kind.is_none_or(|kind| kind == key.kind())
            && (self.name.is_empty() || key.name() == self.name)
            && (self.mesh.is_empty() || in_mesh())
            && self.kinds.contains(&key.kind())
    }

    /// The one resource that it can only be.
    pub(crate) fn key(&self) -> Option<ResourceKey> {
        let kind = self.kind.filter(|_| !self.name.is_empty())?;
        ResourceKey::new(kind, &self.mesh, &self.name).ok()
    }

    /// Everything that the caller may know about.
    pub(crate) fn is_everything(&self) -> bool {
        self.kind.is_none() && self.mesh.is_empty()
    }
}
