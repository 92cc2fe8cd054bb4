//! Configuration: defaults < YAML file < environment `URSA_…` < flags; read once, at start.
//! In: a file, the environment, flags. Out: the program's own struct, or every problem found, each with where it came from.
//! Invariant: nothing else reads the environment; an unknown key is an error (structs are `deny_unknown_fields`); secrets print as `***`.
//! Source: CONVENTIONS C11.
use std::fmt;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind;
use figment::value::{Dict, Empty, Value};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod source;
#[cfg(test)]
mod tests;

use source::{Environment, Layer};

/// Variables with this prefix are configuration; `__` goes one level down: `URSA_RAFT__HEARTBEAT_INTERVAL=150ms`.
pub const ENV_PREFIX: &str = "URSA_";
/// A config is some kilobytes; a larger file is a mistake.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// After so many problems the operator has enough to do.
const MAX_PROBLEMS: usize = 32;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file was named but cannot be read.
    #[error("cannot read config file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is no config.
    #[error("config file {} is larger than {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// What was read does not fit. One text per problem, each naming key and source.
    #[error("invalid configuration: {}", problems.join("; "))]
    Invalid { problems: Vec<String> },
}

/// Builds `C` from its defaults, `file`, the environment and `overrides` (flags; `None` fields do not override).
/// `C` and its nested structs should be `#[serde(default, deny_unknown_fields)]`. Numbers and booleans given in the environment
/// for a text field are taken as text. A [`Secret`] may come from file and environment, not from flags (everyone can list those).
///
/// # Errors
/// The file is missing or unreadable; keys are unknown; values do not fit.
pub fn load<C>(file: Option<&Path>, overrides: impl Serialize) -> Result<C, Error>
where
    C: Serialize + DeserializeOwned + Default,
{
    load_from(file, Environment::of_process(), &overrides)
}

/// As [`load`], with the given variables (name, value) in place of the process's own.
///
/// # Errors
/// As [`load`].
pub fn load_with_env<C>(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>, overrides: impl Serialize) -> Result<C, Error>
where
    C: Serialize + DeserializeOwned + Default,
{
    load_from(file, Environment::of(env), &overrides)
}

fn load_from<C>(file: Option<&Path>, env: Environment, overrides: &impl Serialize) -> Result<C, Error>
where
    C: Serialize + DeserializeOwned + Default,
{
    let mut problems = env.problems.clone();
    let mut layers = Vec::with_capacity(4);
    let defaults = dict_of(&C::default()).map_err(|problem| Error::Invalid { problems: vec![problem] })?;
    layers.push(Layer::new("default", defaults));
    if let Some(path) = file {
        let name = format!("file {}", path.display());
        match source::parse_yaml(&read(path)?) {
            Ok(dict) => layers.push(Layer::new(name, dict)),
            Err(problem) => problems.push(format!("{problem} in {name}")),
        }
    }
    layers.push(env.layer.clone());
    match dict_of(overrides) {
        Ok(mut flags) => {
            drop_unset(&mut flags);
            layers.push(Layer::new("flags", flags));
        }
        Err(problem) => problems.push(problem),
    }
    let parsed = extract::<C>(&mut layers, &env, &mut problems);
    match parsed {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(Error::Invalid { problems }),
    }
}

/// Extracts `C`. serde stops at the first problem, so the offending key is noted, taken out, and the rest tried again.
fn extract<C: DeserializeOwned>(layers: &mut [Layer], env: &Environment, problems: &mut Vec<String>) -> Option<C> {
    while problems.len() < MAX_PROBLEMS {
        let figment = layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer));
        let error = match figment.extract::<C>() {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let path = match &error.kind {
            // figment reports the path of the unknown key itself.
            Kind::UnknownField(name, _) if error.path.last() != Some(name) => error.path.iter().chain([name]).cloned().collect(),
            _ => error.path.clone(),
        };
        if matches!(&error.kind, Kind::InvalidType(_, expected) if expected.contains("string"))
            && let Some(raw) = env.raw(&path)
            && layers
                .iter_mut()
                .any(|layer| layer.is_environment() && layer.retype_as_text(&path, raw))
        {
            continue;
        }
        problems.push(describe(&error, &path));
        let removed = layers.iter_mut().skip(1).rev().any(|layer| layer.remove(&path));
        if !removed {
            return None;
        }
    }
    None
}

fn describe(error: &figment::Error, path: &[String]) -> String {
    let key = path.join(".");
    let from = error
        .metadata
        .as_ref()
        .map(|metadata| format!(" in {}", metadata.name))
        .unwrap_or_default();
    match &error.kind {
        Kind::UnknownField(_, []) => format!("unknown key `{key}`{from}"),
        Kind::UnknownField(_, known) => format!("unknown key `{key}`{from}, expected one of {}", known.join(", ")),
        kind if key.is_empty() => format!("{kind}{from}"),
        kind => format!("`{key}`: {kind}{from}"),
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let error = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(error)?.len() > MAX_FILE_BYTES {
        return Err(Error::TooLarge { path: path.to_owned() });
    }
    std::fs::read_to_string(path).map_err(error)
}

fn dict_of(value: &impl Serialize) -> Result<Dict, String> {
    match Value::serialize(value).map_err(|error| error.to_string())? {
        Value::Dict(_, dict) => Ok(dict),
        Value::Empty(..) => Ok(Dict::new()),
        other => Err(format!("configuration must be a map, not {}", other.to_actual())),
    }
}

/// `None` in the flags means "not given", not "set to nothing".
fn drop_unset(dict: &mut Dict) {
    dict.retain(|_, value| {
        if let Value::Dict(_, inner) = value {
            drop_unset(inner);
        }
        !matches!(value, Value::Empty(_, Empty::None | Empty::Unit))
    });
}

/// Collects everything that is wrong with a config, so that the operator reads it all at once.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Nothing wrong so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes `problem` unless `ok`.
    pub fn check(&mut self, ok: bool, problem: impl FnOnce() -> String) {
        if !ok {
            self.0.push(problem());
        }
    }

    /// # Errors
    /// [`Error::Invalid`] with all problems, if there are any.
    pub fn into_result(self) -> Result<(), Error> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid { problems: self.0 })
        }
    }
}

/// Logs the effective configuration, as JSON on one line; secrets are `***`.
pub fn log_effective(config: &impl Serialize) {
    match serde_json::to_string(config) {
        Ok(config) => tracing::info!(%config, "effective configuration"),
        Err(error) => tracing::warn!(%error, "the configuration cannot be shown"),
    }
}

/// Stands where a secret would be printed.
const REDACTED: &str = "***";

/// A value that is never printed: Debug, Display and Serialize give `***`.
/// As the field of a config it should be `Option<Secret<…>>`: a default is serialized too, and the redacted form is refused when read.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps the value.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself: for use, never for printing.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T> Serialize for Secret<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = <Value as Deserialize>::deserialize(deserializer)?;
        if value.as_str() == Some(REDACTED) {
            return Err(serde::de::Error::custom("a secret is needed here, not its redacted form"));
        }
        // The error of the inner type would quote the value.
        value
            .deserialize()
            .map(Self)
            .map_err(|_| serde::de::Error::custom("the secret has the wrong type"))
    }
}
