//! How what a node stores is encrypted on its disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use ursa_runtime::{
    config::{Problems, Secret},
    fs,
};
use ursa_store::Kek;

/// A key, and whatever somebody wrote around it.
const MAX_FILE: u64 = 4096;

/// What this node stores (log, snapshots, cache) is encrypted on its disk with data keys, which are wrapped by a key-encryption key: 32 random
/// bytes as base64 or hexadecimal digits (`openssl rand -base64 32`). Every node may have another one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Encryption {
    /// Whether to encrypt. It cannot be switched off for a folder that is encrypted; a folder that is not is encrypted once it is on.
    /// Default true.
    pub enabled: bool,
    /// File with the key-encryption key, such as a mounted Kubernetes Secret. Default: `encryption.key` in the data folder, made at the first
    /// start. That protects whoever gets hold of a part of the folder, not of all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The key itself, for `URSA_ENCRYPTION__KEY`, in place of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret<String>>,
    /// Files with key-encryption keys of before. At the start the data keys are wrapped anew by the present one; the files may go then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub previous_key_files: Vec<PathBuf>,
}

impl Default for Encryption {
    fn default() -> Self {
        Self {
            enabled: true,
            key_file: None,
            key: None,
            previous_key_files: Vec::new(),
        }
    }
}

impl Encryption {
    pub fn validate(&self, problems: &mut Problems) {
        problems.check(self.key_file.is_none() || self.key.is_none(), || {
            "encryption.key_file and encryption.key are two ways to give one key: take one".into()
        });
        if let Some(key) = &self.key {
            problems.check(Kek::parse(key.expose()).is_ok(), || {
                "encryption.key must be 32 random bytes as base64 or as 64 hexadecimal digits; `openssl rand -base64 32` makes one".into()
            });
        }
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// A file cannot be read, or holds no key.
    pub(crate) fn open(&self) -> Result<Option<ursa_store::Encryption>> {
        if !self.enabled {
            return Ok(None);
        }
        let kek = match (&self.key_file, &self.key) {
            (Some(file), _) => Some(read(file, "encryption.key_file")?),
            (None, Some(key)) => Some(Kek::parse(key.expose()).context("encryption.key")?),
            (None, None) => None,
        };
        let previous = self
            .previous_key_files
            .iter()
            .map(|file| read(file, "encryption.previous_key_files"));
        Ok(Some(ursa_store::Encryption {
            kek,
            previous: previous.collect::<Result<_>>()?,
        }))
    }
}

fn read(file: &Path, setting: &str) -> Result<Kek> {
    let bytes = fs::read_bounded(file, MAX_FILE).with_context(|| {
        format!(
            "{setting}: cannot read {}; without the key nothing here can be decrypted, and none is made in its place",
            file.display()
        )
    })?;
    let text = String::from_utf8_lossy(&bytes);
    Kek::parse(&text).with_context(|| format!("{setting}: {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn problems(encryption: &Encryption) -> String {
        let mut problems = Problems::new();
        encryption.validate(&mut problems);
        problems.into_result().err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn keys_come_from_a_file_or_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, format!("{KEY}\n")).unwrap();
        let by_file = Encryption {
            key_file: Some(file.clone()),
            ..Encryption::default()
        };
        let by_text = Encryption {
            key: Some(Secret::new(KEY.to_owned())),
            previous_key_files: vec![file.clone()],
            ..Encryption::default()
        };
        assert_eq!(problems(&by_file) + &problems(&by_text) + &problems(&Encryption::default()), "");
        let kek = |encryption: &Encryption| encryption.open().unwrap().unwrap().kek.map(|kek| kek.id().to_owned());
        assert_eq!(kek(&by_file), kek(&by_text));
        assert_eq!(kek(&Encryption::default()), None);
        assert!(!format!("{by_text:?} {}", serde_json::to_string(&by_text).unwrap()).contains(KEY));
        let off = Encryption {
            enabled: false,
            ..by_file.clone()
        };
        assert!(off.open().unwrap().is_none());
    }

    #[test]
    fn what_is_no_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "correct horse battery staple").unwrap();
        let with = |key_file: Option<PathBuf>, key: Option<&str>| Encryption {
            key_file,
            key: key.map(|key| Secret::new(key.to_owned())),
            ..Encryption::default()
        };
        assert!(problems(&with(Some(file.clone()), Some(KEY))).contains("take one"));
        let text = problems(&with(None, Some("letmein")));
        assert!(text.contains("openssl rand") && !text.contains("letmein"), "{text}");
        let text = format!("{:#}", with(Some(file), None).open().unwrap_err());
        assert!(text.contains("openssl rand") && !text.contains("battery"), "{text}");
        let text = format!("{:#}", with(Some("/nowhere/key".into()), None).open().unwrap_err());
        assert!(text.contains("/nowhere/key") && text.contains("none is made"), "{text}");
    }
}
