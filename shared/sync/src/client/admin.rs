//! The three streams on which a global asks for an Envoy's configuration, statistics and clusters. They are held open, and every
//! question is answered with an error: a real global treats a missing stream as a zone that cannot be asked.
//! Source: kds.md 1.4, 6.

use futures::{Stream, StreamExt, future::select_all};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use ursa_proto::kds::{ClustersResponse, StatsResponse, XdsConfigResponse, clusters_response, stats_response, xds_config_response};

use super::session::Session;

/// One question is answered before the next is read.
const ANSWERS: usize = 4;
const UNSUPPORTED: &str = "this zone control plane does not answer questions about its proxies over KDS";

/// Runs all three; the first that ends for good says why. A global that has no such stream is fine.
pub(super) async fn run(session: &Session<'_>) -> String {
    let configs = async {
        let (tx, rx) = mpsc::channel(ANSWERS);
        match session.global().stream_xds_configs(session.request(ReceiverStream::new(rx))).await {
            Ok(questions) => {
                let answer = |id| XdsConfigResponse {
                    request_id: id,
                    result: Some(xds_config_response::Result::Error(UNSUPPORTED.into())),
                };
                serve(questions.into_inner().map(|q| q.map(|q| q.request_id)), tx, answer).await
            }
            Err(status) => absent(status).await,
        }
    };
    let stats = async {
        let (tx, rx) = mpsc::channel(ANSWERS);
        match session.global().stream_stats(session.request(ReceiverStream::new(rx))).await {
            Ok(questions) => {
                let answer = |id| StatsResponse {
                    request_id: id,
                    result: Some(stats_response::Result::Error(UNSUPPORTED.into())),
                };
                serve(questions.into_inner().map(|q| q.map(|q| q.request_id)), tx, answer).await
            }
            Err(status) => absent(status).await,
        }
    };
    let clusters = async {
        let (tx, rx) = mpsc::channel(ANSWERS);
        match session.global().stream_clusters(session.request(ReceiverStream::new(rx))).await {
            Ok(questions) => {
                let answer = |id| ClustersResponse {
                    request_id: id,
                    result: Some(clusters_response::Result::Error(UNSUPPORTED.into())),
                };
                serve(questions.into_inner().map(|q| q.map(|q| q.request_id)), tx, answer).await
            }
            Err(status) => absent(status).await,
        }
    };
    select_all([
        Box::pin(configs) as futures::future::BoxFuture<'_, String>,
        Box::pin(stats),
        Box::pin(clusters),
    ])
    .await
    .0
}

async fn serve<A>(
    mut questions: impl Stream<Item = Result<String, Status>> + Unpin,
    answers: mpsc::Sender<A>,
    answer: impl Fn(String) -> A,
) -> String {
    while let Some(question) = questions.next().await {
        match question {
            Ok(id) => {
                if answers.send(answer(id)).await.is_err() {
                    return "the global no longer listens".to_owned();
                }
            }
            Err(status) => return absent(status).await,
        }
    }
    "the global ended the stream".to_owned()
}

/// A stream that the global does not have, or that it gave to another connection, is simply absent.
async fn absent(status: Status) -> String {
    if matches!(status.code(), Code::Unimplemented | Code::Cancelled) {
        return std::future::pending().await;
    }
    format!("{:?}: {}", status.code(), status.message())
}
