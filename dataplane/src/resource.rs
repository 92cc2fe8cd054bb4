//! The Dataplane that a proxy brings along.
//! In: a template and values for its variables. Out: mesh, name, and the resource as JSON text for the control plane.
//! Invariant: a variable without a value is an error, never an empty text.
//! Source: kuma-dp renders Mustache; `{{ name }}` means the same here. Not here: the schema, which the control plane checks.
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use minijinja::{Environment, UndefinedBehavior, Value as Variable};
use serde_json::Value;
use tracing::debug;

use crate::Config;

/// A Dataplane is some KiB.
const MAX_BYTES: u64 = 1024 * 1024;
/// `kind` of the resource, in Kuma's universal format.
const TYPE: &str = "Dataplane";
/// Standard input, as a file name.
const STDIN: &str = "-";

/// The Dataplane that a proxy brings along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataplane {
    /// Its mesh.
    pub mesh: String,
    /// Its name.
    pub name: String,
    /// All of it.
    pub json: String,
}

/// Why there is no Dataplane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the Dataplane from {from}")]
    Read { from: String, source: std::io::Error },
    /// A variable without a value, or not only variables.
    #[error(
        "the Dataplane's template cannot be filled in: {reason} (only {{{{ variables }}}} are known; give their values with --dataplane-var)"
    )]
    Template { reason: String },
    /// Neither YAML nor JSON.
    #[error("the Dataplane is not valid YAML: {reason}")]
    Yaml { reason: String },
    /// Something else.
    #[error("this is no Dataplane: {reason}")]
    Other { reason: String },
}

/// The Dataplane that `config` names; `None` if it names none.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read(config: &Config) -> Result<Option<Dataplane>, Error> {
    let template = match (&config.dataplane_file, &config.dataplane) {
        (Some(path), _) => read_file(path)?,
        (None, Some(text)) => text.clone(),
        (None, None) => return Ok(None),
    };
    let text = render(&template, &config.dataplane_vars)?;
    debug!(text, "filled in the Dataplane");
    parse(&text).map(Some)
}

fn read_file(path: &Path) -> Result<String, Error> {
    let (from, bytes) = if path == Path::new(STDIN) {
        let mut bytes = Vec::new();
        let read = std::io::stdin().take(MAX_BYTES).read_to_end(&mut bytes);
        ("standard input".to_owned(), read.map(|_| bytes))
    } else {
        (path.display().to_string(), ursa_runtime::fs::read_bounded(path, MAX_BYTES))
    };
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
    text.map_err(|source| Error::Read { from, source })
}

fn render(template: &str, variables: &BTreeMap<String, String>) -> Result<String, Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let rendered = environment.render_str(template, tree(variables));
    rendered.map_err(|error| {
        let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
        let undefined = error.kind() == minijinja::ErrorKind::UndefinedError;
        let hint = if undefined {
            "a variable has no value".to_owned()
        } else {
            error.detail().unwrap_or("syntax error").to_owned()
        };
        Error::Template {
            reason: format!("{hint}{line}"),
        }
    })
}

/// `a.b=1` becomes `{a: {b: 1}}`.
fn tree(variables: &BTreeMap<String, String>) -> Variable {
    let mut leaves = Vec::new();
    let mut branches: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (key, value) in variables {
        match key.split_once('.') {
            None => leaves.push((key.clone(), Variable::from(value.as_str()))),
            Some((first, rest)) => {
                branches.entry(first.to_owned()).or_default().insert(rest.to_owned(), value.clone());
            }
        }
    }
    leaves.extend(branches.iter().map(|(key, below)| (key.clone(), tree(below))));
    Variable::from_pairs(leaves)
}

fn parse(text: &str) -> Result<Dataplane, Error> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| Error::Yaml { reason: error.to_string() })?;
    let other = |reason: String| Error::Other { reason };
    let field = |name: &str| match value.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(found) => Err(other(format!("`{name}` is {found}, not a text"))),
        None => Err(other(format!("it has no `{name}`"))),
    };
    let kind = field("type")?;
    if kind != TYPE {
        return Err(other(format!("its `type` is {kind:?}, not {TYPE:?}")));
    }
    Ok(Dataplane {
        mesh: field("mesh")?,
        name: field("name")?,
        json: value.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "\
type: Dataplane
mesh: default
name: {{ name }}
labels: {kuma.io/workload: backend}
networking:
  address: {{ net.address }}
  inbound: [{port: {{ net.port }}, servicePort: 18080, name: http, protocol: http}]
";

    fn config(template: &str, variables: &[(&str, &str)]) -> Config {
        let dataplane_vars = variables
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Config {
            dataplane: Some(template.to_owned()),
            dataplane_vars,
            ..Config::default()
        }
    }

    fn problem(template: &str) -> String {
        read(&config(template, &[])).unwrap_err().to_string()
    }

    #[test]
    fn variables_are_filled_in_and_types_kept() {
        let config = config(
            TEMPLATE,
            &[("name", "backend-1"), ("net.address", "127.0.2.10"), ("net.port", "8080")],
        );
        let dataplane = read(&config).unwrap().unwrap();
        assert_eq!((dataplane.mesh.as_str(), dataplane.name.as_str()), ("default", "backend-1"));
        let json: Value = serde_json::from_str(&dataplane.json).unwrap();
        assert_eq!(json["networking"]["address"], "127.0.2.10");
        assert_eq!(json["networking"]["inbound"][0]["port"], 8080);
        assert_eq!(json["labels"]["kuma.io/workload"], "backend");
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(
            problem(TEMPLATE).contains("a variable has no value in line 3"),
            "{}",
            problem(TEMPLATE)
        );
        assert!(problem("name: {{#if}}").contains("--dataplane-var"));
        assert!(problem("a: [").contains("YAML"));
        assert!(problem("type: Mesh\nname: default").contains("\"Mesh\""));
        assert!(problem("type: Dataplane\nname: a").contains("no `mesh`"));
        assert!(problem("type: Dataplane\nmesh: m\nname: 7").contains("`name` is 7"));
        assert!(problem("- a list").contains("no `type`"));
    }

    #[test]
    fn a_file_is_read_and_a_missing_one_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.yaml");
        let config = Config {
            dataplane_file: Some(path.clone()),
            ..Config::default()
        };
        assert!(read(&config).unwrap_err().to_string().contains("d.yaml"));
        std::fs::write(&path, r#"{"type": "Dataplane", "mesh": "m", "name": "n"}"#).unwrap();
        assert_eq!(read(&config).unwrap().unwrap().name, "n");
        assert_eq!(read(&Config::default()).unwrap(), None);
    }
}
