//! Lists: of a kind in a mesh, over all meshes, and overviews. Sorted by mesh and name, filtered, then cut into pages.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use ursa_model::{Kind, Resource, ResourceKey};
use ursa_state::Wanted;

use super::Answer;
use crate::{
    call::{Call, json, set_revision},
    envelope::{Envelope, Overview, insight_of},
    error::Error,
    past::{self, Point},
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

/// A page of a kind, in the mesh of the path or in all; as it was, if a revision is named.
pub(super) async fn get(kind: Kind, overview: bool, call: Call) -> Answer {
    match past::asked(&call, kind, overview)? {
        Some(point) => list_past(kind, point, call).await,
        None => list(kind, overview, &call),
    }
}

async fn list_past(kind: Kind, point: Point, call: Call) -> Answer {
    let size = call.query.size()?;
    let filter = Filter::parse(kind, &call.query, &call.route)?;
    call.require_read(kind)?;
    let mesh = call.param("mesh").to_owned();
    let (revision, all) = past::look(&call, move |view| {
        let revision = point.resolve(view, "revision")?;
        let past = view.past();
        let failed = |error| past::failed("revision", error);
        if !mesh.is_empty() {
            let itself = ResourceKey::mesh_itself(&mesh).ok();
            let itself = itself.map(|key| past.get(&key, revision)).transpose().map_err(failed)?;
            itself.flatten().ok_or(Error::not_found("Failed to retrieve Mesh"))?;
        }
        let wanted = |key: &ResourceKey| key.kind() == kind && (mesh.is_empty() || key.mesh() == mesh);
        Ok((revision, past.those(Wanted::Those(&wanted), revision).map_err(failed)?))
    })
    .await?;
    let matching: Vec<Arc<Resource>> = all.into_iter().filter(|r| filter.matches(r)).collect();
    let page = Page::cut(&call, size, matching)?;
    let mut response = json(StatusCode::OK, &page.borrowed(|resource| Envelope(resource)));
    set_revision(response.headers_mut(), &call.catalog, revision);
    Ok(response)
}

fn list(kind: Kind, overview: bool, call: &Call) -> Answer {
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
