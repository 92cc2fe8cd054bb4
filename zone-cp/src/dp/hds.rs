//! Health discovery (HDS): how a stock kuma-dp tells that it drains. On SIGTERM it makes its Envoy's `/ready` fail and waits; Envoy
//! reports that here. Ours say it themselves ([`super::drain`]).
//! In: reports of an Envoy about itself. Out: its Dataplane marked as draining, and back if it recovers.
//! Invariant: only a change from live to not live counts: a proxy that starts is not live either, and one late answer proves nothing.
//! Source: dataplane.md 1.11.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;
use ursa_model::{Kind, ResourceKey};
use ursa_runtime::{
    error::Chain,
    lease, serve,
    tasks::{OnExit, Tasks},
};

use super::{auth, registrar::Registrar};
use crate::{
    connections::Connections,
    world::ProxyId,
    xds::hds::{self, HealthDiscoveryService, Message, Specifier},
};

/// How long a client may take to say who it is, and its Dataplane to be there: its other stream brings it.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module's text.
#[derive(Clone)]
pub struct HdsServer {
    pub registrar: Registrar,
    pub connections: Connections,
    pub tasks: Tasks,
}

#[tonic::async_trait]
impl HealthDiscoveryService for HdsServer {
    type StreamHealthCheckStream = Pin<Box<dyn Stream<Item = Result<Specifier, Status>> + Send>>;

    async fn stream_health_check(&self, request: Request<Streaming<Message>>) -> Result<Response<Self::StreamHealthCheckStream>, Status> {
        let token = request
            .metadata()
            .get("authorization")
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned);
        let peer = request.extensions().get::<serve::Peer>().map(|peer| peer.addr.ip());
        let reports = request.into_inner();
        let (specifiers, outbound) = mpsc::channel(1);
        let server = self.clone();
        self.tasks.spawn("hds-stream", OnExit::Ignore, move |cancel| async move {
            if let Err(status) = server.serve(reports, &specifiers, token, peer, cancel).await {
                // The client may be gone already: then nobody waits for the reason.
                let _ = specifiers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn fetch_health_check(&self, _: Request<Message>) -> Result<Response<Specifier>, Status> {
        Err(Status::unimplemented("health is reported over a stream"))
    }
}

impl HdsServer {
    async fn serve(
        &self,
        mut reports: Streaming<Message>,
        specifiers: &mpsc::Sender<Result<Specifier, Status>>,
        token: Option<String>,
        peer: Option<IpAddr>,
        cancel: CancellationToken,
    ) -> Result<(), Status> {
        let stopping = || Status::unavailable("the zone control plane is stopping");
        let late = |_| Status::deadline_exceeded(format!("no request within {PATIENCE:?}"));
        let first = tokio::select! {
            () = cancel.cancelled() => return Err(stopping()),
            first = lease::within(PATIENCE, reports.message()) => first.map_err(late)??,
        };
        let Some(first) = first else { return Ok(()) };
        let hello = hds::hello(&first).ok_or_else(|| Status::invalid_argument("the first request names no node with an admin socket"))?;
        let proxy = ProxyId::parse(&hello.node_id)
            .ok_or_else(|| Status::invalid_argument(format!("node id {:?} is not <mesh>.<name>", hello.node_id)))?;
        let key = ResourceKey::new(Kind::Dataplane, &proxy.mesh, &proxy.name).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let mut views = self.registrar.views.clone();
        let view = tokio::select! {
            () = cancel.cancelled() => return Err(stopping()),
            view = lease::within(PATIENCE, views.wait_for(|v| v.get(&key).is_some())) => match view {
                Ok(Ok(view)) => view.clone(),
                Ok(Err(_)) => return Err(stopping()),
                Err(_) => return Err(Status::not_found(format!("{key} does not exist"))),
            },
        };
        if let Some(stored) = view.get(&key).map(Arc::as_ref) {
            auth::may_drain(&view, &proxy, stored, token.as_deref(), OffsetDateTime::now_utc())
                .map_err(|e| Status::unauthenticated(Chain(&e).to_string()))?;
        }
        if specifiers.send(Ok(hds::specifier(&hello.admin_socket))).await.is_err() {
            return Ok(());
        }
        let mut live = None;
        loop {
            let report = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(stopping()),
                report = reports.message() => report,
            };
            // Its end says nothing: the Envoy's other stream tells whether it left.
            let Ok(Some(report)) = report else { return Ok(()) };
            match (live, hds::is_live(&report)) {
                (_, Some(_)) if !self.connections.is_of_host(&proxy, peer) => {
                    // Another process of that name: it must not end this one, nor call it back.
                    info!(%proxy, peer = peer.map(tracing::field::display), "its health is reported from elsewhere than it is connected from: ignored");
                }
                (Some(true), Some(false)) => {
                    info!(%proxy, "its Envoy fails its own health check: it drains");
                    self.registrar.drain(&key, None).await?;
                    live = Some(false);
                }
                (None | Some(false), Some(true)) => {
                    let given = self.connections.now().get(&proxy).and_then(|c| c.given.clone());
                    if self.registrar.recover(&key, given.as_deref()).await? {
                        info!(%proxy, "its Envoy is live again");
                    }
                    live = Some(true);
                }
                _ => {}
            }
        }
    }
}
