//! One HTTP/1.1 request over one connection, without a pool and without a task of its own.
//! In: a connected stream, a request. Out: status and whole body, at most `limit` bytes.
//! Invariant: the connection lives no longer than the returned future; dropping it closes the socket.
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Why there is no whole answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer broke off, or speaks no HTTP.
    #[error("no HTTP answer")]
    Http(#[from] hyper::Error),
    /// The body is too large or ended early.
    #[error("cannot read the answer's body")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends `request` and reads the answer. Has no deadline of its own: callers set one.
pub(crate) async fn exchange<S>(stream: S, request: Request<Full<Bytes>>, limit: usize) -> Result<(StatusCode, Bytes), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limit).collect().await.map_err(Error::Body)?;
        Ok((status, body.to_bytes()))
    };
    // Once the connection has ended, `answer` resolves by itself: with what has arrived, or with the error.
    let driver = async {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        answer = answer => answer,
        () = driver => Err(Error::Body("the connection ended".into())),
    }
}
