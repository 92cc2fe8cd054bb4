//! The two templates of a MeshIdentity: trust domain and path, in the part of Go's template syntax that they use:
//! `{{ .Name }}` and `{{ label "key" }}`. Source: Kuma, `pkg/core/resources/apis/meshidentity` (dataplane.md 3.2).

/// Why a template gives no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("template {0:?} is not closed")]
    Open(String),
    #[error("template has no value {0:?}")]
    Unknown(String),
    #[error("label {0:?} is not set")]
    NoLabel(String),
    #[error("template is longer than {MAX} bytes")]
    TooLong,
}

/// Longest template and longest result, in bytes; a SPIFFE id has at most 2048.
const MAX: usize = 4096;

/// Renders `template`; `value` gives the variables (without the dot), `label` the labels.
pub fn render(template: &str, value: impl Fn(&str) -> Option<String>, label: impl Fn(&str) -> Option<String>) -> Result<String, Error> {
    if template.len() > MAX {
        return Err(Error::TooLong);
    }
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let (expression, tail) = after.split_once("}}").ok_or_else(|| Error::Open(template.to_owned()))?;
        let expression = expression.trim_matches('-').trim();
        if let Some(name) = expression.strip_prefix('.') {
            out.push_str(&value(name).ok_or_else(|| Error::Unknown(expression.to_owned()))?);
        } else if let Some(key) = expression.strip_prefix("label").map(str::trim).and_then(quoted) {
            out.push_str(&label(key).ok_or_else(|| Error::NoLabel(key.to_owned()))?);
        } else {
            return Err(Error::Unknown(expression.to_owned()));
        }
        if out.len() > MAX {
            return Err(Error::TooLong);
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn quoted(text: &str) -> Option<&str> {
    text.strip_prefix('"').and_then(|t| t.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_labels() {
        let value = |name: &str| (name == "Mesh").then(|| "default".to_owned());
        let label = |key: &str| (key == "team").then(|| "pay".to_owned());
        assert_eq!(
            render("{{ .Mesh }}.{{label \"team\"}}.local", value, label).unwrap(),
            "default.pay.local"
        );
        assert_eq!(render("plain", value, label).unwrap(), "plain");
        assert!(matches!(render("{{ .Zone }}", value, label), Err(Error::Unknown(_))));
        assert!(matches!(render("{{ label \"x\" }}", value, label), Err(Error::NoLabel(_))));
        assert!(matches!(render("{{ .Mesh", value, label), Err(Error::Open(_))));
    }
}
