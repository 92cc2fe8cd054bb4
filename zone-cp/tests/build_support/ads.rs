//! A small state-of-the-world ADS server: serves snapshots to real Envoys and notes every refusal. Independent of the product's
//! own server, so that a failure here is a failure of the configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    google::protobuf::Any,
};
use futures::{StreamExt, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use ursa_zone_cp::snapshot::{ProxySnapshot, XdsType};

type Snapshots = BTreeMap<String, Arc<ProxySnapshot>>;

/// The order in which types are pushed when several changed.
const ORDER: [XdsType; 5] = [
    XdsType::Secret,
    XdsType::Cluster,
    XdsType::Endpoint,
    XdsType::Listener,
    XdsType::Route,
];

#[derive(Clone)]
pub struct Ads {
    snapshots: Arc<watch::Sender<Snapshots>>,
    pub refusals: Arc<Mutex<Vec<String>>>,
    pub address: SocketAddr,
    progress: Arc<watch::Sender<BTreeMap<String, Progress>>>,
}

/// How far a proxy is.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// The newest snapshot that was looked at, by address.
    seen: Option<Arc<ProxySnapshot>>,
    /// Newest response without an answer, by type. Envoy may answer several at once, with the newest nonce.
    open: BTreeMap<XdsType, String>,
}

impl Ads {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ads = Self {
            snapshots: Arc::new(watch::channel(Snapshots::new()).0),
            refusals: Arc::default(),
            address: listener.local_addr().unwrap(),
            progress: Arc::new(watch::channel(BTreeMap::new()).0),
        };
        let service = AggregatedDiscoveryServiceServer::new(ads.clone());
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        ads
    }

    /// Serves this to the proxy with this node id from now on.
    pub fn serve(&self, node: &str, snapshot: ProxySnapshot) {
        self.snapshots.send_modify(|all| {
            all.insert(node.to_owned(), Arc::new(snapshot));
        });
    }

    /// Waits until the proxy has answered everything of the snapshot it is served, and says what it refused since the last call.
    pub async fn settled(&self, node: &str) -> Vec<String> {
        let wanted = self.snapshots.borrow().get(node).cloned().unwrap();
        let mut progress = self.progress.subscribe();
        let done = progress.wait_for(|all| {
            all.get(node)
                .is_some_and(|p| p.open.is_empty() && p.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &wanted)))
        });
        let done = tokio::time::timeout(std::time::Duration::from_secs(20), done).await.map(drop);
        assert!(
            done.is_ok(),
            "{node} did not answer: {:?}",
            self.progress.borrow().get(node).map(|p| p.open.clone())
        );
        std::mem::take(&mut *self.refusals.lock())
    }
}

/// What one stream knows of one type.
#[derive(Default)]
struct Subscription {
    names: BTreeSet<String>,
    sent: BTreeMap<String, Arc<str>>,
    nonce: u64,
    answered: bool,
}

impl Subscription {
    /// A response when what the client should hold differs from what it was sent.
    fn response(&mut self, kind: XdsType, snapshot: &ProxySnapshot) -> Option<DiscoveryResponse> {
        // Envoy does not answer for a type that it asks nothing of.
        if !kind.is_wildcard() && self.names.is_empty() {
            self.sent.clear();
            return None;
        }
        let all = snapshot.of(kind);
        let wanted: BTreeMap<String, Arc<str>> = all
            .iter()
            .filter(|(name, _)| kind.is_wildcard() || self.names.contains(*name))
            .map(|(name, r)| (name.clone(), r.version.clone()))
            .collect();
        if self.answered && wanted == self.sent {
            return None;
        }
        self.nonce += 1;
        self.answered = true;
        let resources = wanted
            .keys()
            .map(|name| Any {
                type_url: kind.type_url().into(),
                value: all[name].bytes.to_vec(),
            })
            .collect();
        self.sent = wanted;
        Some(DiscoveryResponse {
            version_info: self.nonce.to_string(),
            nonce: format!("{}-{}", kind.short(), self.nonce),
            type_url: kind.type_url().into(),
            resources,
            ..DiscoveryResponse::default()
        })
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let mut requests = request.into_inner();
        let (send, receive) = mpsc::channel(64);
        let mut snapshots = self.snapshots.subscribe();
        let refusals = self.refusals.clone();
        let progress = self.progress.clone();
        tokio::spawn(async move {
            let mut node = String::new();
            let mut subscriptions: BTreeMap<XdsType, Subscription> = BTreeMap::new();
            loop {
                tokio::select! {
                    request = requests.next() => {
                        let Some(Ok(request)) = request else { return };
                        if let Some(n) = request.node {
                            node = n.id;
                        }
                        let Some(kind) = XdsType::by_type_url(&request.type_url) else { continue };
                        if let Some(error) = request.error_detail {
                            refusals.lock().push(format!("{node} {}: {}", kind.short(), error.message));
                        }
                        let asks = kind.is_wildcard() || !request.resource_names.is_empty();
                        progress.send_modify(|all| {
                            all.entry(node.clone())
                                .or_default()
                                .open
                                .retain(|of, nonce| *nonce != request.response_nonce && (asks || *of != kind));
                        });
                        let subscription = subscriptions.entry(kind).or_default();
                        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
                        if names != subscription.names {
                            subscription.names = names;
                            subscription.answered = false;
                        }
                    }
                    changed = snapshots.changed() => if changed.is_err() { return },
                }
                let Some(snapshot) = snapshots.borrow_and_update().get(&node).cloned() else {
                    continue;
                };
                let responses: Vec<_> = ORDER
                    .iter()
                    .filter_map(|kind| subscriptions.get_mut(kind)?.response(*kind, &snapshot))
                    .collect();
                progress.send_modify(|all| {
                    let own = all.entry(node.clone()).or_default();
                    let nonces = responses
                        .iter()
                        .filter_map(|r| Some((XdsType::by_type_url(&r.type_url)?, r.nonce.clone())));
                    own.open.extend(nonces);
                    own.seen = Some(snapshot);
                });
                for response in responses {
                    if send.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("this test serves the state of the world"))
    }
}
