//! The router over a backend in memory, one request at a time.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::OnceCell;
use tower::ServiceExt;
use ursa_model::{Kind, ResourceKey, Timestamp};
use ursa_pki::token::{self, Claims, Family, SigningKey, UserClaims};
use ursa_runtime::Stages;
use ursa_state::{Changeset, Command, Op, Put, RequestId};
use uuid::Uuid;

use crate::{Api, Info, Site, bootstrap, keys, router, testing::Memory};

mod auth;
mod bad_calls;
mod bad_documents;
mod early;
mod history;
mod inspect;
mod random;
mod resources;
mod rollback;
mod system;
mod table;
mod writes;

/// A control plane in memory.
struct Server {
    router: Router,
    memory: Memory,
    stages: Stages,
    admin: String,
}

/// An answer.
#[derive(Debug)]
struct Got {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.bytes)))
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes.clone()).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    fn revision(&self) -> u64 {
        self.header("ursa-revision").parse().unwrap()
    }

    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        self
    }
}

fn zone_site(federated: bool) -> Site {
    Site::Zone {
        name: "west".parse().unwrap(),
        federated,
    }
}

/// Making RSA keys takes its time, so the defaults are made once per site and copied.
static GLOBAL: OnceCell<(Memory, String)> = OnceCell::const_new();
static FEDERATED: OnceCell<(Memory, String)> = OnceCell::const_new();

async fn bootstrapped(site: &Site) -> (Memory, String) {
    let memory = Memory::new(site);
    let made = bootstrap::ensure_defaults(&memory, site, &bootstrap::Options::default())
        .await
        .unwrap();
    (memory, made.admin_token.unwrap())
}

impl Server {
    async fn global() -> Self {
        let (memory, admin) = GLOBAL.get_or_init(|| bootstrapped(&Site::Global)).await;
        Self::over(Site::Global, memory.fork(), admin.clone())
    }

    /// A federated zone that has received the mesh `default` and its signing key.
    async fn zone() -> Self {
        let site = zone_site(true);
        let (memory, admin) = FEDERATED.get_or_init(|| bootstrapped(&site)).await;
        let server = Self::over(site, memory.fork(), admin.clone());
        server.store(Kind::Mesh, "", "default", &[("kuma.io/origin", "global")], json!({}));
        let global = GLOBAL.get_or_init(|| bootstrapped(&Site::Global)).await.0.now();
        let key = global
            .get(&ResourceKey::new(Kind::Secret, "default", "dataplane-token-signing-key-default-1").unwrap())
            .unwrap()
            .clone();
        server.store(
            Kind::Secret,
            "default",
            key.name(),
            &[("kuma.io/origin", "global")],
            key.spec.clone(),
        );
        server
    }

    fn over(site: Site, memory: Memory, admin: String) -> Self {
        let info = Info {
            hostname: "h".into(),
            version: Info::DEFAULT_VERSION.into(),
            instance_id: "i-1".into(),
            based_on_kuma: None,
        };
        let stages = Stages::default();
        let config = json!({"store": {"data_dir": "/x"}, "password": "*****"});
        let api = Api::new(site, Arc::new(memory.clone()), info, config, stages.clone());
        Self {
            router: router(api),
            memory,
            stages,
            admin,
        }
    }

    /// Writes beside the API, as the sync does.
    fn store(&self, kind: Kind, mesh: &str, name: &str, labels: &[(&str, &str)], spec: Value) {
        let put = Put {
            key: ResourceKey::new(kind, mesh, name).unwrap(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            spec,
            status: None,
            owner: None,
            expect: Default::default(),
        };
        let set = Changeset::atomic(
            RequestId(Uuid::new_v4().as_u128()),
            Timestamp(1_700_000_000_000),
            vec![Op::Put(put)],
        );
        assert!(self.memory.apply(&Command::Change(set)).rejected.is_none());
    }

    async fn send(&self, request: Request<Body>) -> Got {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Got {
            status: parts.status,
            headers: parts.headers,
            bytes: body.collect().await.unwrap().to_bytes().into(),
        }
    }

    /// Without a token.
    async fn get(&self, path: &str) -> Got {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// As the administrator.
    async fn admin(&self, method: Method, path: &str, body: &Value) -> Got {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.admin))
            .header(header::CONTENT_TYPE, "application/json");
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        self.send(request.body(body).unwrap()).await
    }

    async fn put(&self, path: &str, body: Value) -> Got {
        self.admin(Method::PUT, path, &body).await
    }

    async fn delete(&self, path: &str) -> Got {
        self.admin(Method::DELETE, path, &Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> Got {
        self.admin(Method::POST, path, &body).await
    }

    async fn admin_get(&self, path: &str) -> Got {
        self.admin(Method::GET, path, &Value::Null).await
    }

    /// The key that signs tokens of a family.
    fn key(&self, family: &Family) -> (String, SigningKey) {
        let secrets = keys::of_family(&self.memory.now(), family, "default");
        family.signing_key(keys::named(&secrets)).unwrap()
    }

    fn user_token(&self, name: &str, groups: &[&str]) -> String {
        let claims = UserClaims {
            name: name.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        };
        self.sign(&Family::user(), &claims, OffsetDateTime::now_utc())
    }

    /// A token that is valid for an hour from `at`; of data planes, in the mesh `default`.
    fn sign<C: Claims>(&self, family: &Family, claims: &C, at: OffsetDateTime) -> String {
        let (id, key) = self.key(family);
        token::issue(&key, &id, claims, Duration::from_secs(3600), at).unwrap().token
    }
}

fn a_permission(mesh: &str, name: &str) -> Value {
    json!({
        "type": "MeshTrafficPermission", "mesh": mesh, "name": name,
        "spec": {"rules": [{"default": {"allow": [{"spiffeID": {"type": "Prefix", "value": "spiffe://default"}}]}}]},
    })
}

fn a_dataplane(name: &str) -> Value {
    json!({
        "type": "Dataplane", "mesh": "default", "name": name,
        "networking": {"address": "127.0.2.10", "inbound": [{"port": 8080, "servicePort": 18080, "name": "http", "protocol": "http"}]},
    })
}
