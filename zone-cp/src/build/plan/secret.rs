//! Secrets over SDS: this proxy's certificate, and whom it trusts.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// An SDS secret; its name is its key in the plan.
#[derive(Clone, PartialEq, Serialize)]
pub enum Secret {
    Identity {
        /// Leaf first, PEM.
        chain_pem: String,
        /// Left out of every serialisation: the chain tells certificates apart, and a dry run must not show keys.
        #[serde(skip_serializing)]
        key_pem: String,
    },
    /// Per trust domain the PEM texts of its authorities, joined; never empty, since Envoy refuses an empty one.
    Trust { domains: BTreeMap<String, String> },
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity { .. } => f.write_str("Identity(***)"),
            Self::Trust { domains } => f.debug_struct("Trust").field("domains", &domains.keys()).finish(),
        }
    }
}

impl Secret {
    /// It holds a private key: never kept in a shared cache.
    pub fn is_private(&self) -> bool {
        matches!(self, Self::Identity { .. })
    }
}
