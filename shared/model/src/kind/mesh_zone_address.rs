//! MeshZoneAddress: where the ingress of a zone is reached from other zones.

use serde::{Deserialize, Serialize};

use super::{
    Spec,
    common::{is_address, validate_port},
};
use crate::validate::Violations;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshZoneAddress {
    /// IP address or DNS name, no wildcard.
    pub address: String,
    pub port: u32,
}

impl Spec for MeshZoneAddress {
    fn validate(&self, out: &mut Violations) {
        if !is_address(&self.address) {
            out.add("address", "must be a valid IP address or domain name and must not be 0.0.0.0 or ::");
        }
        validate_port("port", self.port, out);
    }
}
