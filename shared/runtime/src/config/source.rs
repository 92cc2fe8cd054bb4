//! The layers a configuration is merged from, and how the environment becomes one.
//! In: `URSA_A__B=value`. Out: `{a: {b: value}}`, with the raw texts kept.
//! Invariant: a layer remembers its name, so that a problem says where the value came from.
use figment::value::{Dict, Map, Tag, Value};
use figment::{Metadata, Profile, Provider};

use super::ENV_PREFIX;

/// Separates the levels of a key in a variable's name.
const LEVEL: &str = "__";
/// Name of the layer made from variables.
const ENVIRONMENT: &str = "environment";
/// Deeper keys than this are no configuration of ours.
const MAX_DEPTH: usize = 16;

/// One source of values.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    name: String,
    dict: Dict,
}

impl Layer {
    pub(super) fn new(name: impl Into<String>, dict: Dict) -> Self {
        Self { name: name.into(), dict }
    }

    pub(super) fn is_environment(&self) -> bool {
        self.name == ENVIRONMENT
    }

    /// Takes out the value at `path`, or of the closest key above it that is no map. `false` if there is none.
    pub(super) fn remove(&mut self, path: &[String]) -> bool {
        remove(&mut self.dict, path)
    }

    /// Makes the value at `path` the text `raw`; `false` if it is one already or is not there.
    pub(super) fn retype_as_text(&mut self, path: &[String], raw: &str) -> bool {
        let Some((last, parents)) = path.split_last() else {
            return false;
        };
        let mut dict = &mut self.dict;
        for key in parents {
            match dict.get_mut(key) {
                Some(Value::Dict(_, inner)) => dict = inner,
                _ => return false,
            }
        }
        match dict.get_mut(last) {
            Some(value) if value.as_str().is_none() => {
                *value = Value::from(raw);
                true
            }
            _ => false,
        }
    }
}

fn remove(dict: &mut Dict, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return false;
    };
    match dict.get_mut(first) {
        Some(Value::Dict(_, inner)) if !rest.is_empty() => remove(inner, rest),
        Some(_) => dict.remove(first).is_some(),
        None => false,
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}

/// Parses a config file. An empty one is an empty map.
pub(super) fn parse_yaml(text: &str) -> Result<Dict, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    match serde_saphyr::from_str_with_options::<Option<Dict>>(text, options) {
        Ok(dict) => Ok(dict.unwrap_or_default()),
        Err(error) => Err(error.to_string()),
    }
}

/// The variables that are configuration.
#[derive(Clone, Debug)]
pub(super) struct Environment {
    pub(super) layer: Layer,
    pub(super) problems: Vec<String>,
    raw: Vec<(Vec<String>, String)>,
}

impl Environment {
    /// Those of this process.
    pub(super) fn of_process() -> Self {
        let mut problems = Vec::new();
        let mut variables = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else {
                continue;
            };
            match value.to_str() {
                Some(value) => variables.push((name.to_owned(), value.to_owned())),
                None => problems.push(format!("variable {name} is not UTF-8")),
            }
        }
        variables.sort();
        let mut environment = Self::of(variables);
        environment.problems.append(&mut problems);
        environment
    }

    /// Those given.
    pub(super) fn of(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut dict = Dict::new();
        let mut problems = Vec::new();
        let mut raw = Vec::new();
        for (name, value) in variables {
            let Some(key) = name.strip_prefix(ENV_PREFIX) else {
                continue;
            };
            let path: Vec<String> = key.split(LEVEL).map(str::to_ascii_lowercase).collect();
            // Value::from_str reads numbers, booleans, [lists] and {maps}; anything else is text.
            let parsed: Value = value.parse().unwrap_or_else(|never: std::convert::Infallible| match never {});
            if path.len() > MAX_DEPTH || path.iter().any(String::is_empty) || !insert(&mut dict, &path, parsed) {
                problems.push(format!("variable {name} names no key, or another variable sets the same"));
                continue;
            }
            raw.push((path, value));
        }
        Self {
            layer: Layer::new(ENVIRONMENT, dict),
            problems,
            raw,
        }
    }

    /// Text of the variable for `path`.
    pub(super) fn raw(&self, path: &[String]) -> Option<&str> {
        self.raw.iter().find(|(key, _)| key == path).map(|(_, text)| text.as_str())
    }
}

fn insert(dict: &mut Dict, path: &[String], value: Value) -> bool {
    match path.split_first() {
        None => false,
        Some((last, [])) if dict.contains_key(last) => false,
        Some((last, [])) => dict.insert(last.clone(), value).is_none(),
        Some((first, rest)) => match dict.entry(first.clone()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new())) {
            Value::Dict(_, inner) => insert(inner, rest, value),
            _ => false,
        },
    }
}
