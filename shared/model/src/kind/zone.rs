//! Zone: a part of the deployment with a control plane of its own. Absent `enabled` means enabled.

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::validate::Violations;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

impl Zone {
    pub fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }
}

impl Spec for Zone {
    fn validate(&self, _: &mut Violations) {}
}
