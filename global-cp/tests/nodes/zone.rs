//! A zone's store and its side of zone sync, in the test's own process.
use std::{path::Path, sync::Arc, time::Duration};

use ursa_model::{Kind, ResourceKey, Timestamp};
use ursa_plane::Plane;
use ursa_runtime::{
    Stages,
    tasks::{OnExit, Tasks},
};
use ursa_state::{Changeset, Expect, Observed, Op, Put, RequestId, Role};
use ursa_store::{Store, StoreConfig, disk::RealDisk};
use ursa_sync::{ClientConfig, ClientParts, Holds, KdsClient, Metrics, client::Token};

pub struct Zone {
    pub store: Store,
    pub holds: Holds,
    plane: Plane,
    _tasks: Tasks,
}

impl Zone {
    /// The zone `east`, connected to these.
    pub async fn connect(dir: &Path, addresses: Vec<String>, ca_pem: String) -> Self {
        let tasks = Tasks::new();
        let store = Store::open(StoreConfig::new(dir, 1), Arc::new(RealDisk), &tasks).await.unwrap();
        let plane = Plane::new(Role::Zone, store.clone(), Observed::default());
        let config = ClientConfig {
            zone: "east".parse().unwrap(),
            instance_id: "east-1".to_owned(),
            version: "3.0.0".to_owned(),
            addresses,
            ca_pem: Some(ca_pem),
            token: Token::None,
            display_config: r#"{"store":{"type":"raft"}}"#.to_owned(),
            keepalive: Duration::from_secs(20),
            compress: false,
        };
        let parts = ClientParts {
            source: plane.source(),
            sink: Arc::new(plane.clone()),
            stages: Stages::new(16),
            metrics: Metrics::default(),
        };
        let (client, _) = KdsClient::new(config, parts).unwrap();
        let holds = client.holds();
        tasks.spawn("kds-client", OnExit::Ignore, move |cancel| client.run(cancel));
        Self {
            store,
            holds,
            plane,
            _tasks: tasks,
        }
    }

    pub fn has(&self, name: &str) -> bool {
        let key = ResourceKey::new(Kind::Mesh, "", name).unwrap();
        self.store.view().get(&key).is_some()
    }

    /// A policy that the zone makes itself.
    pub async fn make(&self, name: &str) {
        let labels = [("kuma.io/origin", "zone"), ("kuma.io/zone", "east"), ("kuma.io/mesh", "default")];
        let put = Put {
            key: ResourceKey::new(Kind::MeshTimeout, "default", name).unwrap(),
            labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            spec: serde_json::json!({"rules": [{"default": {"http": {"requestTimeout": "2s"}}}]}),
            status: None,
            owner: None,
            expect: Expect::Any,
        };
        let set = Changeset::atomic(RequestId(7), Timestamp::now(), vec![Op::Put(put)]);
        assert!(self.plane.propose(set).await.unwrap().rejected.is_none());
    }

    /// Meshes whose removal waits for the operator, whatever time says.
    pub fn held(&self) -> Vec<String> {
        let all = self.holds.list();
        assert!(all.iter().all(|held| held.ends.is_none()), "time alone removes nothing: {all:?}");
        let keys = all.iter().flat_map(|held| held.keys.iter());
        keys.filter(|key| key.kind() == Kind::Mesh)
            .map(|key| key.name().to_owned())
            .collect()
    }
}
