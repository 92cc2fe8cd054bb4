//! The two calls of etcd that the benchmark makes, over gRPC and TLS.
//!
//! In: keys and values. Out: whether they are stored, and what is. Invariant: a read is linearizable, which is etcd's default.
//! Source: etcd's API, `rpc.proto` and `kv.proto` of version 3 (field numbers). Own messages, because the crate `etcd-client` needs
//! protoc to be built; unknown fields are skipped, as protobuf does.
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// Fields that are left out have their defaults: one key, the newest revision, linearizable.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

/// A client of one member; clones share its connection.
#[derive(Clone, Debug)]
pub struct EtcdApi {
    grpc: Grpc<Channel>,
}

impl EtcdApi {
    /// Connects to this member, which must show a certificate of this CA.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub async fn connect(address: SocketAddr, ca_file: &Path) -> anyhow::Result<Self> {
        let pem = std::fs::read(ca_file).with_context(|| format!("cannot read {}", ca_file.display()))?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(pem))
            .domain_name(address.ip().to_string());
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?
            .tcp_nodelay(true)
            .tls_config(tls)?;
        let channel = endpoint.connect().await.with_context(|| format!("etcd at {address}"))?;
        Ok(Self { grpc: Grpc::new(channel) })
    }

    /// Stores a value.
    ///
    /// # Errors
    /// It may or may not be stored.
    pub async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), tonic::Status> {
        let _stored: PutResponse = self.call("/etcdserverpb.KV/Put", PutRequest { key, value }).await?;
        Ok(())
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The call's.
    pub async fn get(&mut self, key: Bytes) -> Result<Option<Bytes>, tonic::Status> {
        let mut found: RangeResponse = self.call("/etcdserverpb.KV/Range", RangeRequest { key }).await?;
        Ok(found.kvs.pop().map(|kv| kv.value))
    }

    async fn call<Q, A>(&mut self, path: &'static str, message: Q) -> Result<A, tonic::Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let ready = self.grpc.ready().await;
        ready.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        let answer = self
            .grpc
            .unary(Request::new(message), PathAndQuery::from_static(path), codec)
            .await?;
        Ok(answer.into_inner())
    }
}
