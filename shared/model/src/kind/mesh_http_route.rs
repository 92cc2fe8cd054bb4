//! MeshHTTPRoute. Being written.
use serde::{Deserialize, Serialize};
use super::{Spec, common::TargetRef};
use crate::validate::Violations;
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshHTTPRoute {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
}
impl Spec for MeshHTTPRoute { fn validate(&self, _: &mut Violations) {} }
