//! Mesh: a set of services that trust each other. Its one field names the default policies not to create ("*" = all).

use serde::{Deserialize, Serialize};

use super::{Spec, common::validate_len};
use crate::validate::Violations;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_creating_initial_policies: Vec<String>,
}

impl Spec for Mesh {
    fn validate(&self, out: &mut Violations) {
        validate_len("skipCreatingInitialPolicies", &self.skip_creating_initial_policies, 64, out);
    }
}
