//! Lists: of a kind in a mesh, over all meshes, and overviews. Sorted by mesh and name, filtered, then cut into pages.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use ursa_model::{Kind, Resource, ResourceKey};

use super::Answer;
use crate::{
    call::{Call, json},
    envelope::{Envelope, Overview, insight_of},
    error::Error,
    query::Filter,
};

/// One page. `next` is always there, `items` is never null.
#[derive(Serialize)]
pub(super) struct Page<T> {
    /// How many match, over all pages.
    total: usize,
    items: Vec<T>,
    next: Option<String>,
}

impl<T> Page<T> {
    /// Cuts a page out of everything that matches.
    pub(super) fn cut(call: &Call, size: usize, all: Vec<T>) -> Result<Self, Error> {
        let offset = call.query.offset()?;
        let total = all.len();
        let end = offset.saturating_add(size);
        Ok(Self {
            total,
            items: all.into_iter().skip(offset).take(size).collect(),
            next: (end < total).then(|| call.next_link(end)),
        })
    }

    /// The same page with each item shown in another way.
    pub(super) fn borrowed<'a, U>(&'a self, show: impl FnMut(&'a T) -> U) -> Page<U> {
        Page {
            total: self.total,
            items: self.items.iter().map(show).collect(),
            next: self.next.clone(),
        }
    }
}

/// A page of a kind, in the mesh of the path or in all.
pub(super) fn list(kind: Kind, overview: bool, call: &Call) -> Answer {
    let size = call.query.size()?;
    let filter = Filter::parse(kind, &call.query, &call.route)?;
    let mesh = call.mesh()?;
    call.require_read(kind)?;
    let all = if mesh.is_empty() {
        call.catalog.list(kind)
    } else {
        call.catalog.list_in(kind, mesh)
    };
    let matching: Vec<Arc<Resource>> = all.into_iter().filter(|r| filter.matches(r)).collect();
    let page = Page::cut(call, size, matching)?;
    let Some((insight, ..)) = insight_of(kind).filter(|_| overview) else {
        return Ok(json(StatusCode::OK, &page.borrowed(|resource| Envelope(resource))));
    };
    let with_insight = page.borrowed(|resource| {
        let key = ResourceKey::new(insight, resource.mesh(), resource.name()).ok();
        Overview {
            resource,
            insight: key.and_then(|k| call.catalog.get(&k)).map(AsRef::as_ref),
        }
    });
    Ok(json(StatusCode::OK, &with_insight))
}
