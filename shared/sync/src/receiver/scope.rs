//! Whose a resource is: what a peer may change here, and how its resources are labelled when they arrive.
//! Source: kds.md 4.4 (global), 4.6 last part (zone).

use std::time::Duration;

use ursa_model::{
    Kind, Labels, Origin, Resource, ResourceKey, ZoneName,
    labels::{ORIGIN, ZONE},
    wire::Incoming,
};

/// Which end receives.
#[derive(Clone, Debug)]
pub enum Site {
    /// The global, from this zone.
    Global {
        zone: ZoneName,
        /// The zone's gRPC metadata lacks `hash-suffix`: its names get the prefix `<zone>.`.
        prefix_names: bool,
    },
    /// A zone, from the global.
    Zone,
}

impl Site {
    /// How long a removal that a first set implies is held. A zone's workloads depend on what it holds; the global mostly shows it.
    pub(crate) fn grace(&self) -> Duration {
        match self {
            Self::Global { .. } => Duration::from_secs(60),
            Self::Zone => Duration::from_secs(600),
        }
    }

    /// Whether a stored resource is the peer's to change and remove.
    pub(crate) fn owns(&self, stored: &Resource) -> bool {
        match self {
            Self::Global { zone, .. } => {
                stored.zone() == Some(zone.as_str()) && stored.label(ORIGIN) == Some(Origin::Zone.as_str())
                    || stored.zone().is_none() && stored.name().strip_prefix(zone.as_str()).is_some_and(|rest| rest.starts_with('.'))
            }
            Self::Zone => from_global(stored.kind(), &stored.labels),
        }
    }

    /// The key that a peer's key is stored under.
    pub(super) fn received_key(&self, key: ResourceKey) -> Result<ResourceKey, ursa_model::resource::InvalidKey> {
        match self {
            Self::Global { zone, prefix_names: true } => key.renamed(&format!("{zone}.{}", key.name())),
            _ => Ok(key),
        }
    }

    /// The form in which a peer's resource is stored, and whether it came under another zone's name. `None`: not for us.
    pub(super) fn receive(&self, mut incoming: Incoming) -> Result<Option<(Incoming, bool)>, ursa_model::resource::InvalidKey> {
        match self {
            Self::Zone => Ok(from_global(incoming.key.kind(), &incoming.labels).then_some((incoming, false))),
            Self::Global { zone, .. } => {
                let claimed = incoming.labels.insert(ZONE.into(), zone.as_str().into());
                incoming.labels.insert(ORIGIN.into(), Origin::Zone.as_str().into());
                let mut renamed = claimed.is_some_and(|claimed| claimed != zone.as_str());
                renamed |= pin_gateway_tag(&mut incoming, zone);
                incoming.key = self.received_key(incoming.key)?;
                Ok(Some((incoming, renamed)))
            }
        }
    }
}

/// Kinds that zones do not make are the global's altogether; of the others, what is labelled as made elsewhere.
fn from_global(kind: Kind, labels: &Labels) -> bool {
    !kind.descriptor().flags.provided_by_zone() || labels.get(ORIGIN).is_some_and(|origin| origin != Origin::Zone.as_str())
}

/// A Dataplane cannot speak for another zone in its gateway tags either.
fn pin_gateway_tag(incoming: &mut Incoming, zone: &ZoneName) -> bool {
    if incoming.key.kind() != Kind::Dataplane {
        return false;
    }
    match incoming.spec.pointer_mut("/networking/gateway/tags/kuma.io~1zone") {
        Some(tag) if tag.as_str() != Some(zone.as_str()) => {
            *tag = zone.as_str().into();
            true
        }
        _ => false,
    }
}
