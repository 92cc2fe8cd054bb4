//! A network that a test makes itself, in place of TCP, TLS and HTTP/2.
//! In: the messages of a call, encoded as gRPC encodes them. Out: the answer of the node that was meant, or why there is none.
//! Invariant: everything above the connection is real on both sides: the bytes, the checks of who calls, refusals, deadlines.
use std::fmt::Debug;

use axum::Router;
use axum::body::Body;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use prost::Message;
use tonic::server::NamedService;
use tonic::{Code, Response, Status};
use tower::ServiceExt;
use ursa_proto::peer::Answer;
use ursa_proto::peer::raft_server::RaftServer;

use super::PeerNode;
use super::peers::Method;
use super::server::Service;
use crate::Store;

/// Before each message of gRPC: whether it is compressed, and its length.
const FRAME: usize = 5;
/// Longest answer that is taken in.
const LONGEST: usize = 64 << 20;

/// Why a call was not carried to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Nothing reached the other side.
    Unreachable(String),
    /// It broke off; the call may have had its effect.
    Broken(String),
}

/// The way from one node to the others.
pub trait Carrier: Debug + Send + Sync + 'static {
    /// Carries one call: its messages, in order. Dropped, the caller has given up.
    fn carry(&self, to: u64, method: &'static str, messages: Vec<Bytes>) -> BoxFuture<'_, Result<Bytes, Lost>>;
}

/// The other end: what answers the calls that were carried here. Does not keep the store alive.
#[derive(Clone, Debug)]
pub struct Listener {
    routes: Router,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Append => "Append",
            Self::Vote => "Vote",
            Self::PreVote => "PreVote",
            Self::TransferLeader => "TransferLeader",
            Self::Propose => "Propose",
            Self::Barrier => "Barrier",
            Self::Hello => "Hello",
            Self::Members => "Members",
            Self::SnapshotAt => "SnapshotAt",
        }
    }
}

pub(super) async fn ask(carrier: &dyn Carrier, to: u64, method: Method, call: &impl Message) -> Result<Response<Answer>, Status> {
    answer(carrier.carry(to, method.name(), vec![call.encode_to_vec().into()]).await)
}

/// As [`ask`], for a call with many messages. All of them are on their way at once.
pub(super) async fn stream<M: Message>(
    carrier: &dyn Carrier,
    to: u64,
    messages: impl Stream<Item = M>,
) -> Result<Response<Answer>, Status> {
    let messages = messages.map(|message| Bytes::from(message.encode_to_vec())).collect().await;
    answer(carrier.carry(to, "Snapshot", messages).await)
}

fn answer(carried: Result<Bytes, Lost>) -> Result<Response<Answer>, Status> {
    let bytes = carried.map_err(|lost| match lost {
        Lost::Unreachable(reason) => Status::unavailable(reason),
        Lost::Broken(reason) => Status::unknown(reason),
    })?;
    let answer = Answer::decode(bytes).map_err(|error| Status::new(Code::Internal, error.to_string()))?;
    Ok(Response::new(answer))
}

impl Store {
    /// What answers the other nodes when no listener does.
    pub fn listener(&self) -> Listener {
        Listener {
            routes: self.peer_routes(),
        }
    }
}

impl Listener {
    /// Answers a call of node `from`, as if its certificate had said so.
    ///
    /// # Errors
    /// gRPC's status, when there is no answer.
    pub async fn answer(&self, from: u64, method: &str, messages: &[Bytes]) -> Result<Bytes, Lost> {
        let mut body = BytesMut::new();
        for message in messages {
            body.put_u8(0);
            body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
            body.put_slice(message);
        }
        let broken = |error: &dyn std::fmt::Display| Lost::Broken(error.to_string());
        let request = http::Request::post(format!("/{}/{method}", RaftServer::<Service>::NAME))
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .extension(PeerNode { id: from })
            .body(Body::from(body.freeze()))
            .map_err(|error| broken(&error))?;
        let response = self.routes.clone().oneshot(request).await.map_err(|error| broken(&error))?;
        let status = format!("{:?}", response.headers().get("grpc-status"));
        let body = axum::body::to_bytes(response.into_body(), LONGEST).await;
        let mut body = body.map_err(|error| broken(&error))?;
        if body.len() < FRAME {
            return Err(Lost::Broken(format!("no answer, status {status}")));
        }
        body.advance(FRAME);
        Ok(body)
    }
}
