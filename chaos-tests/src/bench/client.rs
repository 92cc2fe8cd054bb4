//! One client of one member: the same two calls for both systems.
//!
//! In: the number of a key, a value. Out: whether it was accepted. Invariant: one call at a time on one connection of its own; nothing
//! is sent twice.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use tokio::time::Instant;

use super::etcd_api::EtcdApi;
use crate::client::{Conn, Target, Trust};

/// The mesh whose secrets the benchmark writes.
pub const MESH: &str = "default";

/// How to reach one member.
#[derive(Clone, Debug)]
pub enum Door {
    /// Our REST API over TLS, as the administrator.
    Rest {
        /// Its API.
        address: SocketAddr,
        /// Its CA.
        trust: Trust,
        /// A token that may write.
        token: Arc<str>,
    },
    /// etcd's gRPC API over TLS.
    Etcd {
        /// Its API.
        address: SocketAddr,
        /// Its CA.
        ca_file: PathBuf,
    },
}

/// See the module's header.
#[derive(Debug)]
pub enum Client {
    /// Over HTTP/1.1.
    Rest {
        /// Where.
        target: Target,
        /// `Authorization`.
        bearer: String,
        /// None after a call that failed: the next one opens another.
        conn: Option<Conn>,
    },
    /// Over gRPC.
    Etcd(EtcdApi),
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// If the member cannot be reached.
    pub async fn open(door: &Door) -> anyhow::Result<Self> {
        Ok(match door {
            Door::Rest { address, trust, token } => {
                let target = Target::Tls(*address, trust.clone());
                Self::Rest {
                    conn: Some(Conn::open(&target).await?),
                    target,
                    bearer: format!("Bearer {token}"),
                }
            }
            Door::Etcd { address, ca_file } => Self::Etcd(EtcdApi::connect(*address, ca_file).await?),
        })
    }

    /// Stores `value` under the key of this number.
    ///
    /// # Errors
    /// It was not accepted, or it is unknown whether it was.
    pub async fn put(&mut self, key: u64, value: Bytes) -> anyhow::Result<()> {
        match self {
            Self::Etcd(api) => Ok(api.put(etcd_key(key), value).await?),
            Self::Rest { .. } => {
                let text = std::str::from_utf8(&value).context("a value of the benchmark is base64")?;
                let name = name(key);
                let body = format!(r#"{{"type":"Secret","mesh":"{MESH}","name":"{name}","data":"{text}"}}"#);
                self.rest(Method::PUT, key, body.into()).await.map(drop)
            }
        }
    }

    /// Reads the key of this number, which must exist, linearizably.
    ///
    /// # Errors
    /// It was not answered, or there is no such key.
    pub async fn get(&mut self, key: u64) -> anyhow::Result<()> {
        match self {
            Self::Etcd(api) => {
                let found = api.get(etcd_key(key)).await?;
                found.map(drop).with_context(|| format!("etcd has no key {key}"))
            }
            Self::Rest { .. } => self.rest(Method::GET, key, Bytes::new()).await.map(drop),
        }
    }

    async fn rest(&mut self, method: Method, key: u64, body: Bytes) -> anyhow::Result<Bytes> {
        let Self::Rest { target, bearer, conn } = self else {
            anyhow::bail!("this is no client of the REST API")
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("/meshes/{MESH}/secrets/{}", name(key)))
            .header(header::HOST, target.authority())
            .header(header::AUTHORIZATION, bearer.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        // Taken out while in use: a call that fails or is dropped leaves no half-read connection behind.
        let mut open = match conn.take() {
            Some(open) => open,
            None => Conn::open(target).await?,
        };
        let answer = open.send(Instant::now(), request).await?;
        *conn = Some(open);
        Ok(answer.success()?.body)
    }
}

fn name(key: u64) -> String {
    format!("bench-{key:08}")
}

fn etcd_key(key: u64) -> Bytes {
    format!("/bench/{key:08}").into()
}
