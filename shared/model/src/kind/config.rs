//! Config: a text under a name that control planes share, such as `kuma-cluster-id`. Not in the REST API.

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::validate::Violations;

/// Name of the Config that identifies the whole deployment.
pub const CLUSTER_ID: &str = "kuma-cluster-id";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub config: String,
}

impl Spec for Config {
    fn validate(&self, _: &mut Violations) {}
}
