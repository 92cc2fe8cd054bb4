//! What comes into being with a Mesh: its default policies and the key that signs its dataplane tokens.
//! Source: `reference/api.md` 5.1. Here all of it is in the changeset that creates the Mesh.

use tokio::task::spawn_blocking;
use ursa_model::{Kind, Labels, ResourceKey, kind::secret::Secret, labels, resource::InvalidKey};
use ursa_pki::token::{Family, KeyError, SigningKey};
use ursa_state::{Catalog, Expect, Op, Put};

use crate::{Site, keys};

/// Why the resources of a new Mesh cannot be made; both mean a fault of this program or machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot generate a signing key")]
    Key(#[source] KeyError),
    #[error("the thread that generates a signing key failed")]
    Thread(#[source] tokio::task::JoinError),
    #[error("a default resource has an invalid name")]
    Name(#[from] InvalidKey),
    #[error("a default resource cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// New signing keys. Each takes 0.1 to 0.3 s of a processor, so away from the async threads.
pub(crate) async fn signing_keys(count: usize) -> Result<Vec<SigningKey>, Error> {
    spawn_blocking(move || (0..count).map(|_| SigningKey::generate()).collect::<Result<Vec<_>, _>>())
        .await
        .map_err(Error::Thread)?
        .map_err(Error::Key)
}

/// A put of a resource that the control plane itself makes, with computed labels; refused if it exists.
pub(crate) fn create(site: &Site, key: ResourceKey, spec: serde_json::Value, owner: Option<ResourceKey>) -> Op {
    let labels = labels::computed(site.labels(), key.kind(), key.mesh(), key.name(), Labels::new(), None);
    Op::Put(Put {
        key,
        labels,
        spec,
        status: None,
        owner,
        expect: Expect::Absent,
    })
}

/// A secret that holds `data`.
pub(crate) fn secret(site: &Site, kind: Kind, mesh: &str, name: &str, data: &[u8], owner: Option<ResourceKey>) -> Result<Op, Error> {
    Ok(create(
        site,
        ResourceKey::new(kind, mesh, name)?,
        serde_json::to_value(Secret::of(data))?,
        owner,
    ))
}

/// The ops that follow the creation of `mesh`. What exists already (left by a mesh of that name) is left alone.
/// `skip` is the Mesh's `skipCreatingInitialPolicies`; the signing key is made regardless.
pub(crate) async fn of_mesh(site: &Site, catalog: &Catalog, mesh: &str, skip: &[String]) -> Result<Vec<Op>, Error> {
    let owner = ResourceKey::mesh_itself(mesh)?;
    let mut ops = Vec::new();
    let family = Family::dataplane(mesh);
    if !keys::has_key(catalog, &family, mesh) {
        for key in signing_keys(1).await? {
            ops.push(secret(
                site,
                Kind::Secret,
                mesh,
                &family.key_name(1),
                key.private_pem().as_bytes(),
                Some(owner.clone()),
            )?);
        }
    }
    for (kind, name, spec) in ursa_policy::defaults::initial_policies(mesh, skip) {
        let key = ResourceKey::new(kind, mesh, &name)?;
        if catalog.get(&key).is_none() {
            ops.push(create(site, key, spec, Some(owner.clone())));
        }
    }
    Ok(ops)
}
