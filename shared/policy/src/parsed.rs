//! A resource together with its typed spec, parsed once and shared.

use std::sync::Arc;

use ursa_model::{Kri, Resource, Spec};

/// A resource with its typed spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<T> {
    pub resource: Arc<Resource>,
    pub spec: T,
}

impl<T: Spec> Parsed<T> {
    /// Parses the spec. An error means that what is stored is not of the kind's schema.
    pub fn parse(resource: Arc<Resource>) -> Result<Self, serde_json::Error> {
        let spec = resource.spec()?;
        Ok(Self { resource, spec })
    }
}

impl<T> Parsed<T> {
    /// The resource's KRI, without section; the empty one for kinds that have none.
    pub fn kri(&self) -> Kri {
        Kri::of(&self.resource).unwrap_or_default()
    }
}
