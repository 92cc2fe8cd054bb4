//! Dataplanes that proxies bring along: checked, and stored in the phase that their proxies are in.
//! In: JSON or YAML from a node's metadata. Out: a stored Dataplane, or a typed refusal. Invariant: what was checked against the
//! stored resource is what is replaced; a change that came between is a conflict.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::Status;
use ursa_model::{
    Kind, Labels, Resource, ResourceKey, Timestamp, ZoneName,
    kind::dataplane::Dataplane,
    labels::{self, Site, computed},
};
use ursa_state::{Changeset, Expect, Op, OpError, Put, RequestId, View};

use super::phase::{self, BY_PROXY, LIFECYCLE, Phase};
use crate::{derive::addresses, reconcile::Propose, world::ProxyId};

/// Tries to mark a Dataplane that others change at the same time.
const MARK_TRIES: usize = 5;

/// A Dataplane that a proxy brought, checked.
#[derive(Clone, Debug)]
pub struct Registered {
    pub proxy: ProxyId,
    /// Computed labels included, without that of the phase.
    pub labels: Labels,
    pub spec: Dataplane,
    /// The spec as its proxy brought it, or as it is stored.
    pub canonical: Arc<serde_json::Value>,
    given_labels: Labels,
}

impl Registered {
    /// The resource as a proxy hands it back in its node's metadata.
    pub fn json(&self) -> String {
        let mut out = self.canonical.as_ref().clone();
        if let serde_json::Value::Object(fields) = &mut out {
            fields.insert("type".into(), "Dataplane".into());
            fields.insert("mesh".into(), self.proxy.mesh.as_ref().into());
            fields.insert("name".into(), self.proxy.name.as_ref().into());
            fields.insert("labels".into(), serde_json::json!(self.given_labels));
        }
        out.to_string()
    }
}

/// Why a Dataplane cannot be registered.
#[derive(Debug, thiserror::Error)]
pub enum Unregistered {
    #[error("the Dataplane is no valid JSON or YAML: {0}")]
    Syntax(String),
    #[error("the resource has type {0:?}, not Dataplane")]
    Type(String),
    #[error(transparent)]
    Key(#[from] ursa_model::resource::InvalidKey),
    #[error("the Dataplane is not valid: {0}")]
    Invalid(ursa_model::Violations),
}

/// Checks and stores the Dataplanes that proxies bring.
#[derive(Clone)]
pub struct Registrar {
    pub zone: ZoneName,
    pub views: watch::Receiver<View>,
    pub store: Arc<dyn Propose>,
}

impl Registrar {
    pub fn view(&self) -> View {
        self.views.borrow().clone()
    }

    pub fn mesh_exists(&self, mesh: &str) -> bool {
        ResourceKey::mesh_itself(mesh).is_ok_and(|key| self.views.borrow().get(&key).is_some())
    }

    /// The Dataplane as stored.
    pub fn stored(&self, key: &ResourceKey) -> Option<Registered> {
        let resource = self.views.borrow().get(key).cloned()?;
        let spec = resource.spec().ok()?;
        Some(Registered {
            proxy: ProxyId::new(resource.mesh(), resource.name()),
            labels: phase::without(&resource.labels),
            given_labels: phase::without(&resource.labels),
            spec,
            canonical: Arc::new(resource.spec.clone()),
        })
    }

    /// Parses and validates a Dataplane given as JSON or YAML.
    pub fn check(&self, text: &str) -> Result<Registered, Unregistered> {
        let mut value: serde_json::Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(_) => serde_saphyr::from_str(text).map_err(|e| Unregistered::Syntax(e.to_string()))?,
        };
        let mut take = |field: &str| value.as_object_mut().and_then(|o| o.remove(field));
        let text_of = |v: Option<serde_json::Value>| v.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let kind = text_of(take("type"));
        if kind != Kind::Dataplane.name() {
            return Err(Unregistered::Type(kind));
        }
        let (mesh, name) = (text_of(take("mesh")), text_of(take("name")));
        let mut given: Labels = take("labels")
            .map(serde_json::from_value)
            .transpose()
            .map_err(|e| Unregistered::Syntax(e.to_string()))?
            .unwrap_or_default();
        let key = ResourceKey::new(Kind::Dataplane, &mesh, &name)?;
        // Where it comes from a stored one, it is of another time.
        given.remove(phase::LABEL);
        let mut found = ursa_model::Violations::default();
        if let Err(err) = ursa_model::name::check_resource_name(&name) {
            found.add("name", err.to_string());
        }
        labels::validate_brought(&given, self.zone.as_str(), &mesh, &mut found);
        found.into_result().map_err(Unregistered::Invalid)?;
        let canonical = (Kind::Dataplane.descriptor().canonical)(value).map_err(Unregistered::Invalid)?;
        let spec: Dataplane = serde_json::from_value(canonical.clone()).map_err(|e| Unregistered::Syntax(e.to_string()))?;
        let mut labels = computed(
            Site::Zone(self.zone.as_str()),
            Kind::Dataplane,
            key.mesh(),
            key.name(),
            given.clone(),
            Some(spec.zone_listeners()),
        );
        labels.insert(LIFECYCLE.into(), BY_PROXY.into());
        Ok(Registered {
            proxy: ProxyId::new(&mesh, &name),
            labels,
            given_labels: given,
            spec,
            canonical: Arc::new(canonical),
        })
    }

    /// Stores the Dataplane in place of `stored`, in its phase, unless it is stored like that already. One that drains keeps who asked
    /// for that.
    pub(super) async fn register(
        &self,
        key: ResourceKey,
        registered: &Registered,
        stored: Option<&Resource>,
        phase: Phase,
    ) -> Result<(), Status> {
        let spec = phase.apply(&registered.canonical, false);
        let mut labels = phase.label(registered.labels.clone(), None);
        if let (Phase::Draining, Some(asked)) = (phase, stored.and_then(|s| s.label(phase::LABEL))) {
            labels.insert(phase::LABEL.into(), asked.to_owned());
        }
        if stored.is_some_and(|r| r.spec == spec && r.labels == labels) {
            return Ok(());
        }
        // The token was checked against `stored`: what came between has to be checked as well.
        let expect = stored.map_or(Expect::Absent, |r| Expect::Version(r.version));
        let put = Put {
            owner: ResourceKey::mesh_itself(key.mesh()).ok(),
            key,
            labels,
            spec,
            status: None,
            expect,
        };
        match self.store_atomic(vec![Op::Put(put)]).await? {
            Ok(_) => Ok(()),
            Err(why @ (OpError::Exists(_) | OpError::Missing(_) | OpError::Conflict { .. })) => Err(Status::aborted(format!(
                "the Dataplane was changed at the same time, connect again: {why}"
            ))),
            Err(why) => Err(Status::failed_precondition(format!("the Dataplane cannot be stored: {why}"))),
        }
    }

    /// Marks a stored Dataplane as draining because `run` asked for it, and withdraws the address of the zone that was derived from
    /// it. Returns the revision of the zone at which that is so; `None` when there is no such Dataplane.
    pub(super) async fn drain(&self, key: &ResourceKey, run: Option<&str>) -> Result<Option<u64>, Status> {
        let mut last = None;
        for _ in 0..MARK_TRIES {
            let view = self.view();
            let Some(stored) = view.get(key) else { return Ok(None) };
            let mut ops = Vec::from_iter(phase::drain(stored, run));
            let address = ResourceKey::new(Kind::MeshZoneAddress, key.mesh(), key.name()).ok();
            let derived = address.filter(|a| {
                view.get(a)
                    .is_some_and(|r| r.label(labels::MANAGED_BY) == Some(addresses::MANAGED_BY))
            });
            ops.extend(derived.map(Op::delete));
            if ops.is_empty() {
                return Ok(Some(view.revision()));
            }
            match self.store_atomic(ops).await? {
                Ok(revision) => return Ok(Some(revision)),
                Err(why) => last = Some(why),
            }
        }
        let why = last.map(|w| w.to_string()).unwrap_or_default();
        Err(Status::aborted(format!("the Dataplane changes all the time: {why}")))
    }

    /// Takes a Dataplane back from a drain that is over. `given`: its spec as its proxy brought it. Says whether it drained.
    pub(super) async fn recover(&self, key: &ResourceKey, given: Option<&serde_json::Value>) -> Result<bool, Status> {
        let view = self.view();
        match view.get(key).filter(|stored| Phase::of(stored) == Phase::Draining) {
            Some(stored) => self.serve(stored, given).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Takes a stored Dataplane back from any phase.
    pub(super) async fn serve(&self, stored: &Resource, given: Option<&serde_json::Value>) -> Result<(), Status> {
        match self.store_atomic(vec![phase::serve(stored, given)]).await? {
            Ok(_) => Ok(()),
            Err(why) => Err(Status::aborted(format!(
                "the Dataplane was changed at the same time, connect again: {why}"
            ))),
        }
    }

    async fn store_atomic(&self, ops: Vec<Op>) -> Result<Result<u64, OpError>, Status> {
        let set = Changeset::atomic(RequestId(rand::random()), Timestamp::now(), ops);
        let applied = self.store.propose(set).await.map_err(Status::unavailable)?;
        Ok(match applied.rejected {
            None => Ok(applied.revision),
            Some((_, why)) => Err(why),
        })
    }
}
