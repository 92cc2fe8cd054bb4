//! `GET /_changes?from=&to=` (what is different between two revisions) and `GET /_history?from=&to=` (what each revision changed, newest
//! first). Both take `type`, `mesh` and `name`, and `history`, the history that the revisions belong to.
//! Anybody may ask about what anybody may read; who made a change only administrators are told.

use http::StatusCode;
use serde::{Serialize, Serializer};
use ursa_model::{Resource, ResourceKey};
use ursa_state::{Change, LogEntry, Operation, Wanted};

use super::{Answer, list::Page};
use crate::{
    call::{Call, json},
    envelope::Envelope,
    error::Error,
    past::{self, Selection},
};

/// One resource that changed, without values.
#[derive(Serialize)]
pub(super) struct Named<'a> {
    pub(super) operation: &'static str,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) mesh: &'a str,
    pub(super) name: &'a str,
}

impl<'a> Named<'a> {
    pub(super) fn of(key: &'a ResourceKey, operation: Operation) -> Self {
        Self {
            operation: match operation {
                Operation::Create => "create",
                Operation::Update => "update",
                Operation::Delete => "delete",
            },
            kind: key.kind().name(),
            mesh: key.mesh(),
            name: key.name(),
        }
    }
}

/// One resource that changed, with its values.
#[derive(Serialize)]
pub(super) struct Valued<'a> {
    #[serde(flatten)]
    named: Named<'a>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "enveloped")]
    before: Option<&'a Resource>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "enveloped")]
    after: Option<&'a Resource>,
}

fn enveloped<S: Serializer>(resource: &Option<&Resource>, s: S) -> Result<S::Ok, S::Error> {
    match resource {
        Some(resource) => Envelope(resource).serialize(s),
        None => s.serialize_none(),
    }
}

impl<'a> Valued<'a> {
    pub(super) fn of(change: &'a Change) -> Self {
        let operation = match (&change.before, &change.after) {
            (None, _) => Operation::Create,
            (_, None) => Operation::Delete,
            _ => Operation::Update,
        };
        Self {
            named: Named::of(&change.key, operation),
            before: change.before.as_deref(),
            after: change.after.as_deref(),
        }
    }
}

/// What every answer about a range of revisions begins with.
#[derive(Serialize)]
struct Range<T> {
    history: String,
    /// The oldest revision that can be read.
    oldest: u64,
    from: u64,
    to: u64,
    #[serde(flatten)]
    rest: T,
}

fn selection(call: &Call) -> Result<Selection, Error> {
    past::require_history(call, call.query.first("history"))?;
    Selection::of(call, call.query.first("type"), call.query.first("mesh"), call.query.first("name"))
}

/// `GET /_changes`.
pub(super) async fn changes(call: Call) -> Answer {
    let size = call.query.size()?;
    let wanted = selection(&call)?;
    let from = past::parameter(&call, "from")?
        .ok_or_else(|| Error::invalid_field("Could not read the history", "from", "must be given: a revision, or a time"))?;
    let to = past::parameter(&call, "to")?;
    let (from, to, found) = past::look(&call, move |view| {
        let from = from.resolve(view, "from")?;
        let to = to.map_or(Ok(view.revision()), |to| to.resolve(view, "to"))?;
        in_order(from, to)?;
        let has = |key: &ResourceKey| wanted.has(key);
        let one = wanted.key();
        let all = one.as_ref().map_or(Wanted::Those(&has), Wanted::Key);
        let past = view.past();
        past.diff(to, to, all).map_err(|error| past::failed("to", error))?;
        Ok((from, to, past.diff(from, to, all).map_err(|error| past::failed("from", error))?))
    })
    .await?;
    let page = Page::cut(&call, size, found)?;
    let rest = page.borrowed(Valued::of);
    Ok(json(StatusCode::OK, &range(&call, from, to, rest)))
}

#[derive(Serialize)]
struct Log<'a> {
    items: Vec<Entry<'a>>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Entry<'a> {
    revision: u64,
    time: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    actor: &'a str,
    changes: Vec<Named<'a>>,
}

/// `GET /_history`.
pub(super) async fn log(call: Call) -> Answer {
    let size = call.query.size()?;
    let wanted = selection(&call)?;
    let (from, to) = (past::parameter(&call, "from")?, past::parameter(&call, "to")?);
    let (from, to, mut found) = past::look(&call, move |view| {
        let past = view.past();
        let from = from.map_or(Ok(past.oldest()), |from| from.resolve(view, "from"))?;
        let to = to.map_or(Ok(view.revision()), |to| to.resolve(view, "to"))?;
        in_order(from, to)?;
        let has = |key: &ResourceKey| wanted.has(key);
        let one = wanted.key();
        let all = one.as_ref().map_or(Wanted::Those(&has), Wanted::Key);
        past.diff(to, to, all).map_err(|error| past::failed("to", error))?;
        let found = past.log(from, to, all, !wanted.is_everything(), size + 1);
        Ok((from, to, found.map_err(|error| past::failed("from", error))?))
    })
    .await?;
    let more = found.len() > size;
    found.truncate(size);
    let is_admin = call.api().access.is_admin(&call.caller.user);
    let last = found.last().map(|entry| entry.revision).filter(|_| more);
    let rest = Log {
        items: found.iter().map(|entry| shown(entry, is_admin)).collect(),
        next: last.map(|last| call.link_with("to", &last.saturating_sub(1).to_string())),
    };
    Ok(json(StatusCode::OK, &range(&call, from, to, rest)))
}

fn shown(entry: &LogEntry, is_admin: bool) -> Entry<'_> {
    Entry {
        revision: entry.revision,
        time: entry.at.rfc3339(),
        actor: if is_admin { &entry.actor } else { "" },
        changes: entry.changes.iter().map(|(key, operation)| Named::of(key, *operation)).collect(),
    }
}

fn range<T>(call: &Call, from: u64, to: u64, rest: T) -> Range<T> {
    let view = &call.catalog.durable;
    Range {
        history: view.history_id().to_string(),
        oldest: view.past().oldest(),
        from,
        to,
        rest,
    }
}

fn in_order(from: u64, to: u64) -> Result<(), Error> {
    if from <= to {
        return Ok(());
    }
    let reason = format!("must not be newer than to, which is revision {to}");
    Err(Error::invalid_field("Could not read the history", "from", reason))
}
