//! The table of routes. Every resource kind is served from its descriptor: a new kind needs no line here.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::State,
    middleware,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use http::Uri;
use tokio::sync::Semaphore;
use ursa_model::{Kind, Scope, kind::ALL};

use crate::{
    Api, absent,
    auth::Authenticator,
    call::{Call, Early},
    envelope,
    error::Error,
    gate,
    gate::Shared,
    past, wait,
};

mod applied;
mod crud;
mod history;
mod index;
mod insights;
mod inspect;
mod kri;
mod legacy;
mod list;
mod rollback;
mod tokens;
mod types;

/// Why a kind is read-only.
const GLOBAL_READ_ONLY: &str = "resources of this kind belong to the zones: they are made and changed at the zone control plane, and can only be read at the global control plane";
const ZONE_READ_ONLY: &str = "resources of this kind belong to the global control plane: they are made and changed there, and can only be read at the zone control plane";
const NOT_ON_GLOBAL: &str = "Not allowed on global CP";

/// The API.
pub fn router(api: Api) -> Router {
    router_with(api, Router::new())
}

/// The API with further routes. They pass the same gate, and find the caller as the extension [`crate::Caller`].
pub fn router_with(api: Api, more: Router) -> Router {
    let shared = Arc::new(Shared {
        api,
        authenticator: Authenticator::default(),
        waiters: Arc::new(Semaphore::new(wait::MAX_WAITERS)),
        historians: [(); 2].map(|()| Arc::new(Semaphore::new(past::MAX_HISTORIANS))),
    });
    let mut router = Router::new()
        .route("/", get(index::index))
        .route("/config", get(index::config))
        .route("/who-am-i", get(index::who_am_i))
        .route("/policies", get(types::policies))
        .route("/_resources", get(types::resources))
        .route("/_kri/{kri}", get(kri::by_kri))
        .route("/_changes", get(history::changes))
        .route("/_history", get(history::log))
        .route("/_rollback", post(rollback::post))
        .route("/global-insight", get(insights::global))
        .route("/global-insights", get(insights::legacy_global))
        .route("/mesh-insights", get(insights::meshes))
        .route("/mesh-insights/{name}", read_only(&shared.api, get(insights::mesh)))
        .route("/tokens/dataplane", post(tokens::dataplane))
        .route("/tokens/zone", post(tokens::zone))
        .route("/tokens/user", post(tokens::user));
    if shared.api.site.is_global() {
        router = router.route("/zones/_applied", get(applied::get));
    }
    router = inspect::routes(legacy::routes(router));
    for kind in ALL.iter().copied().filter(|k| !k.descriptor().internal) {
        let descriptor = kind.descriptor();
        for segment in [Some(descriptor.path), descriptor.path_alias].into_iter().flatten() {
            router = kind_routes(router, &shared.api, kind, segment);
        }
    }
    let no_method = async || Error::no_method();
    // Their handlers know nothing of provisional pictures.
    let more = more
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(shared.clone(), gate::gate));
    router
        .with_state(shared.clone())
        .method_not_allowed_fallback(no_method)
        .fallback(async |uri: Uri| absent::explain(uri.path()))
        .layer(middleware::from_fn_with_state(shared, gate::gate_early))
        .merge(more)
}

type Routes = Router<Arc<Shared>>;

fn kind_routes(mut router: Routes, api: &Api, kind: Kind, segment: &str) -> Routes {
    let collection = match kind.descriptor().scope {
        Scope::Global => format!("/{segment}"),
        Scope::Mesh => {
            let everywhere = format!("/{segment}");
            router = overview_routes(
                router.route(&everywhere, get(async move |call: Call| list::get(kind, false, call).await)),
                kind,
                &everywhere,
                false,
            );
            format!("/meshes/{{mesh}}/{segment}")
        }
    };
    let item = get(async move |call: Call| crud::get(kind, false, call).await);
    let item = if api.is_read_only(kind) {
        read_only(api, item)
    } else {
        item.put(async move |call: Early, body: Body| crud::put(kind, call, body).await)
            .delete(async move |call: Early| crud::delete(kind, call).await)
    };
    router = router
        .route(&collection, get(async move |call: Call| list::get(kind, false, call).await))
        .route(&format!("{collection}/{{name}}"), item);
    if kind == Kind::Dataplane && api.site.is_global() {
        router = router.route(
            &format!("{collection}/{{name}}/_config"),
            get(async || Error::read_only(NOT_ON_GLOBAL)),
        );
    }
    overview_routes(router, kind, &collection, true)
}

/// `<collection>/_overview`, `<item>/_overview` and the older `<collection>+insights[/<name>]`.
fn overview_routes(mut router: Routes, kind: Kind, collection: &str, items: bool) -> Routes {
    if envelope::insight_of(kind).is_none() {
        return router;
    }
    for path in [format!("{collection}/_overview"), format!("{collection}+insights")] {
        router = router.route(&path, get(async move |call: Call| list::get(kind, true, call).await));
    }
    if items {
        for path in [
            format!("{collection}/{{name}}/_overview"),
            format!("{collection}+insights/{{name}}"),
        ] {
            router = router.route(&path, get(async move |call: Call| crud::get(kind, true, call).await));
        }
    }
    router
}

/// Answers PUT and DELETE with the reason why not.
fn read_only(api: &Api, item: MethodRouter<Arc<Shared>>) -> MethodRouter<Arc<Shared>> {
    let why = if api.site.is_global() { GLOBAL_READ_ONLY } else { ZONE_READ_ONLY };
    item.put(async move || Error::read_only(why))
        .delete(async move || Error::read_only(why))
}

/// What handlers return.
type Answer = Result<Response, Error>;

/// State extractor of handlers that need no more.
type SharedState = State<Arc<Shared>>;

/// An answer of plain text, as tokens are.
fn text(body: String) -> Response {
    ([(http::header::CONTENT_TYPE, "text/plain")], body).into_response()
}
