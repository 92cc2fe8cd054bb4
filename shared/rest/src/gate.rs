//! What every request passes first: the picture of the state it is answered from, and who makes it.
//! Invariant: no handler runs before; a bad token is refused on every path but `/`; every answer names its revision.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, header};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use ursa_runtime::serve::Peer;
use ursa_state::Catalog;

use crate::{
    Api, audit,
    auth::{Authenticator, Caller, User},
    backend::Freshness,
    call::{Context, REVISION_HEADER, STALE_HEADER, set_revision},
    error::Error,
    query::Query,
};

/// What all handlers share.
pub(crate) struct Shared {
    pub(crate) api: Api,
    pub(crate) authenticator: Authenticator,
    /// One permit for each request that may wait for zones.
    pub(crate) waiters: Arc<Semaphore>,
    /// One permit for each request that may read the past: of anybody, and of administrators.
    pub(crate) historians: [Arc<Semaphore>; 2],
}

pub(crate) async fn gate(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let (freshness, refused) = match freshness(&request) {
        Ok(freshness) => (freshness, None),
        Err(error) => (Freshness::Stale, Some(error)),
    };
    let catalog = match shared.api.backend.catalog(freshness).await {
        Ok(catalog) => catalog,
        Err(unavailable) => {
            let mut response = Error::unavailable(&unavailable).into_response();
            // How far this node is tells a client whether another one is further.
            if let Ok(stale) = shared.api.backend.catalog(Freshness::Stale).await {
                set_revision(response.headers_mut(), &stale, stale.durable.revision());
            }
            return response;
        }
    };
    let admitted = refused.map_or_else(|| admit(&shared, &request, &catalog), Err);
    match admitted {
        Ok(context) => answer(context, &catalog, request, next).await,
        Err(error) => with_revision(error.into_response(), &catalog),
    }
}

/// As [`gate`], for routes whose handlers make a picture that is only provisional the newest where they need it: all that take a
/// [`crate::call::Call`]. A caller who is not let in on it is looked at again on the newest.
pub(crate) async fn gate_early(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let changes_one = matches!(*request.method(), Method::PUT | Method::DELETE);
    if changes_one
        && freshness(&request).is_ok()
        && let Some((catalog, term)) = shared.api.backend.provisional()
        && let Ok(context) = identify(&shared, &request, &catalog)
    {
        audit::token_used(&context.caller, request.method(), request.uri().path());
        let term = Some(term);
        return answer(Context { term, ..context }, &catalog, request, next).await;
    }
    gate(State(shared), request, next).await
}

async fn answer(context: Context, catalog: &Catalog, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(context.caller.clone());
    request.extensions_mut().insert(context);
    with_revision(next.run(request).await, catalog)
}

fn with_revision(mut response: Response, catalog: &Catalog) -> Response {
    if !response.headers().contains_key(REVISION_HEADER) {
        set_revision(response.headers_mut(), catalog, catalog.durable.revision());
    }
    response
}

/// Why a request is not let in.
enum NotAdmitted {
    NotAcceptable,
    Token {
        peer: Option<SocketAddr>,
        reason: ursa_pki::token::Error,
    },
}

fn admit(shared: &Shared, request: &Request, catalog: &Catalog) -> Result<Context, Error> {
    let (method, path) = (request.method(), request.uri().path());
    match identify(shared, request, catalog) {
        Ok(context) => {
            if path != "/" {
                audit::token_used(&context.caller, method, path);
            }
            Ok(context)
        }
        Err(NotAdmitted::NotAcceptable) => Err(Error::not_acceptable()),
        Err(NotAdmitted::Token { peer, reason }) => {
            audit::token_refused(peer, method, path, &reason);
            Err(Error::unauthenticated())
        }
    }
}

/// Who makes the request. Nothing is written into the audit log.
fn identify(shared: &Shared, request: &Request, catalog: &Catalog) -> Result<Context, NotAdmitted> {
    let path = request.uri().path();
    if !accepts_json(request.headers(), path.starts_with("/tokens/")) {
        return Err(NotAdmitted::NotAcceptable);
    }
    let tls = request.extensions().get::<Peer>();
    let peer = tls
        .map(|p| p.addr)
        .or_else(|| request.extensions().get::<ConnectInfo<SocketAddr>>().map(|c| c.0));
    let https = tls.is_some_and(|p| p.tls.is_some());
    // kumactl asks for the index to learn what it talks to, before it knows whether its token is right.
    let (user, jti) = if path == "/" {
        (User::anonymous(), None)
    } else {
        let now = OffsetDateTime::now_utc();
        let who = shared.authenticator.authenticate(catalog, request.headers(), now);
        who.map_err(|reason| NotAdmitted::Token { peer, reason })?
    };
    Ok(Context {
        catalog: catalog.clone(),
        term: None,
        caller: Caller { user, jti, peer },
        https,
    })
}

/// Reads may ask for less than the newest; writes are always decided on the newest, be it by what their commit shows. The index never waits for a leader.
fn freshness(request: &Request) -> Result<Freshness, Error> {
    if request.uri().path() == "/" {
        return Ok(Freshness::Stale);
    }
    let query = Query::parse(request.uri())?;
    let asked = match request.headers().get(STALE_HEADER) {
        Some(value) => value.to_str().unwrap_or("?"),
        None => query.first("stale"),
    };
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match asked {
        "" | "false" => Ok(Freshness::Linearizable),
        "true" if is_read => Ok(Freshness::Stale),
        "true" => Ok(Freshness::Linearizable),
        _ => Err(Error::bad_request("stale must be true or false")),
    }
}

/// Whether the Accept headers allow JSON (or, for a token, plain text). No header allows everything.
fn accepts_json(headers: &HeaderMap, text_too: bool) -> bool {
    let mut any = false;
    for value in headers.get_all(header::ACCEPT) {
        for range in value.to_str().unwrap_or_default().split(',') {
            any = true;
            match range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
                "*/*" | "application/*" | "application/json" | "" => return true,
                "text/plain" | "text/*" if text_too => return true,
                _ => {}
            }
        }
    }
    !any
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn accept_headers() {
        let accepts = |value: &'static str, text| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(value));
            accepts_json(&headers, text)
        };
        assert!(accepts("text/html, application/xhtml+xml, */*;q=0.8", false));
        assert!(accepts("application/json", false) && accepts("Application/JSON; q=1", false));
        assert!(!accepts("text/html", false) && !accepts("text/plain", false) && accepts("text/plain", true));
        assert!(accepts_json(&HeaderMap::new(), false));
    }
}
