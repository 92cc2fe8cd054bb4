//! Secret (in a mesh) and GlobalSecret: base64 data under a name.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::Spec;
use crate::validate::Violations;

/// Largest secret, in bytes of its base64 text.
const MAX_DATA: usize = 1024 * 1024;

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Standard base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

impl Secret {
    pub fn of(data: &[u8]) -> Self {
        Self {
            data: Some(STANDARD.encode(data)),
        }
    }

    /// The decoded data; `None` when it is absent or no base64.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        STANDARD.decode(self.data.as_deref()?).ok()
    }

    /// The data as text, as keys and certificates are stored.
    pub fn text(&self) -> Option<String> {
        String::from_utf8(self.bytes()?).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl Spec for Secret {
    fn validate(&self, out: &mut Violations) {
        match &self.data {
            None => out.add("data", "cannot be empty"),
            Some(d) if d.is_empty() => out.add("data", "cannot be empty"),
            Some(d) if d.len() > MAX_DATA => out.add("data", "must not be larger than 1 MiB"),
            Some(d) if STANDARD.decode(d).is_err() => out.add("data", "must be base64"),
            Some(_) => {}
        }
    }
}
