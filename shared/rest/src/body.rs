//! Reading a request's body: bounded in bytes, time and depth; JSON or YAML as its Content-Type says.

use axum::body::Body;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use ursa_runtime::lease;

use crate::{
    Limits,
    depth::{self, MAX_DEPTH},
    error::Error,
};

/// Larger bodies are parsed away from the async threads: a megabyte of YAML takes tens of milliseconds.
const PARSE_INLINE: usize = 64 * 1024;
/// YAML nodes of one document; a JSON text of the largest size has about as many.
const MAX_NODES: usize = 1_000_000;

/// Resources come one by one.
const MANY_DOCUMENTS: &str = "more than one document";

/// What a body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
}

/// The format that the Content-Type names; 415 for any other, and for none.
pub(crate) fn format(headers: &HeaderMap) -> Result<Format, Error> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => Ok(Format::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml" => Ok(Format::Yaml),
        _ => Err(Error::unsupported_media_type()),
    }
}

/// The bytes of a body.
pub(crate) async fn read(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<Vec<u8>, Error> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > limits.max_body) {
        return Err(Error::too_large(limits.max_body));
    }
    match lease::within(limits.body_timeout, Limited::new(body, limits.max_body).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => Err(Error::too_large(limits.max_body)),
        Ok(Err(_)) => Err(Error::bad_request("the body of the request ended early")),
        Err(lease::Expired(_)) => Err(Error::body_timeout()),
    }
}

/// Parses a body; the error is its reason.
pub(crate) async fn parse(format: Format, bytes: Vec<u8>) -> Result<Value, String> {
    if bytes.len() <= PARSE_INLINE {
        return parse_now(format, &bytes);
    }
    match tokio::task::spawn_blocking(move || parse_now(format, &bytes)).await {
        Ok(parsed) => parsed,
        Err(_) => Err("it cannot be parsed".into()),
    }
}

fn parse_now(format: Format, bytes: &[u8]) -> Result<Value, String> {
    match format {
        Format::Json => {
            if depth::exceeds(bytes, MAX_DEPTH) {
                return Err(format!("nested deeper than {MAX_DEPTH} levels"));
            }
            serde_json::from_slice(bytes).map_err(|error| error.to_string())
        }
        Format::Yaml => {
            let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
            let options = serde_saphyr::options! {
                budget: serde_saphyr::budget! {
                    max_depth: MAX_DEPTH,
                    flow_nesting_limit: MAX_DEPTH,
                    max_nodes: MAX_NODES,
                    max_events: 2 * MAX_NODES,
                    max_documents: 1,
                    max_anchors: 100,
                    max_aliases: 1_000,
                    max_recorded_anchor_events: 100_000,
                },
                alias_limits: serde_saphyr::alias_limits! { max_replay_stack_depth: 4 },
                with_snippet: false,
            };
            let value = serde_saphyr::from_str_with_options::<Value>(text, options).map_err(|error| yaml_reason(&error))?;
            // Aliases can nest deeper than the text does.
            if is_deeper(&value, MAX_DEPTH) {
                Err(format!("nested deeper than {MAX_DEPTH} levels"))
            } else {
                Ok(value)
            }
        }
    }
}

/// What is wrong with a text of YAML, and where. The library's own words for limits are those of its insides.
fn yaml_reason(error: &serde_saphyr::Error) -> String {
    let error = error.without_snippet();
    match (yaml_limit(error), error.location().filter(|at| at.line() > 0)) {
        (None, _) => error.to_string(),
        (Some(limit), Some(at)) => format!("{limit} at line {}, column {}", at.line(), at.column()),
        (Some(limit), None) => limit,
    }
}

/// The limit that was hit, if one was.
fn yaml_limit(error: &serde_saphyr::Error) -> Option<String> {
    use serde_saphyr::{Error as E, budget::BudgetBreach as B};
    let aliases = "its aliases stand for too much";
    Some(match error {
        E::AliasError { error, .. } | E::WithSnippet { error, .. } => return yaml_limit(error),
        E::Budget { breach, .. } => match breach {
            B::Depth { .. } => format!("nested deeper than {MAX_DEPTH} levels"),
            B::Nodes { .. } | B::Events { .. } => format!("more than {MAX_NODES} values"),
            B::Documents { .. } => MANY_DOCUMENTS.to_owned(),
            B::Anchors { .. } | B::Aliases { .. } | B::AliasAnchorRatio { .. } => "too many anchors and aliases".to_owned(),
            B::RecordedAnchorEvents { .. } | B::RecordedAnchorBytes { .. } => aliases.to_owned(),
            B::MergeKeys { .. } => "too many merge keys".to_owned(),
            B::SequenceUnbalanced => "a list or a mapping is closed that was not opened".to_owned(),
            _ => "larger than a resource may be".to_owned(),
        },
        E::AliasReplayCounterOverflow { .. }
        | E::AliasReplayLimitExceeded { .. }
        | E::AliasExpansionLimitExceeded { .. }
        | E::AliasReplayStackDepthExceeded { .. } => aliases.to_owned(),
        E::MultipleDocuments { .. } => MANY_DOCUMENTS.to_owned(),
        _ => return None,
    })
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    let mut inner: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => return false,
    };
    match levels.checked_sub(1) {
        None => true,
        Some(rest) => inner.any(|v| is_deeper(v, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_reads_as_the_same_value_as_json() {
        let yaml = "type: Mesh\nname: demo\nskipCreatingInitialPolicies: ['*']\nn: 4\n";
        assert_eq!(
            parse_now(Format::Yaml, yaml.as_bytes()).unwrap(),
            json!({"type": "Mesh", "name": "demo", "skipCreatingInitialPolicies": ["*"], "n": 4})
        );
    }

    #[test]
    fn hostile_yaml_is_refused() {
        let bomb = format!("a: &a [x, x, x, x, x, x, x, x, x, x]\n{}", {
            let mut all = String::new();
            for i in 1..10 {
                let (before, this) = (char::from(b'a' + i - 1), char::from(b'a' + i));
                all.push_str(&format!(
                    "{this}: &{this} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n"
                ));
            }
            all
        });
        for bad in [
            bomb.as_str(),
            "a: [",
            "a: 1\na: 2\n",
            "---\na: 1\n---\nb: 2\n",
            &"[".repeat(10_000),
            &format!("{}{}", "[".repeat(65), "]".repeat(65)),
        ] {
            assert!(
                parse_now(Format::Yaml, bad.as_bytes()).is_err(),
                "{}",
                bad.chars().take(40).collect::<String>()
            );
        }
    }

    #[test]
    fn reasons_say_where_and_nothing_of_the_insides() {
        let deep = format!("a: 1\nb: {}{}", "[".repeat(80), "]".repeat(80));
        let mut chain = String::from("a0: &a0 x\n");
        for i in 1..20 {
            chain.push_str(&format!("a{i}: &a{i} [*a{}, *a{}, *a{}]\n", i - 1, i - 1, i - 1));
        }
        for (yaml, says, at) in [
            (deep.as_str(), "recursion limit exceeded", "at line 2"),
            ("---\na: 1\n---\nb: 2\n", "more than one document", ""),
            (chain.as_str(), "its aliases stand for too much", "at line"),
            ("a: 1\na: 2\n", "duplicate", "line 2"),
            ("a: [1,\n b: {", "", "line "),
        ] {
            let reason = parse_now(Format::Yaml, yaml.as_bytes()).unwrap_err();
            assert!(reason.contains(says) && reason.contains(at), "{says}: {reason}");
            assert!(
                !reason.contains(" { ") && !reason.contains('_') && !reason.contains("breach"),
                "{reason}"
            );
        }
        let reason = parse_now(Format::Json, b"{\n\"a\": 1,,}").unwrap_err();
        assert!(reason.contains("line 2 column"), "{reason}");
    }

    proptest::proptest! {
        /// Whatever comes, there is a value or a short reason, within the limits.
        #[test]
        fn any_yaml_is_a_value_or_a_reason(text in "[\\[\\]{}&*a-c0-9:,!|>'\"#?\\- \\n\\t%@`<]{0,200}") {
            match parse_now(Format::Yaml, text.as_bytes()) {
                Ok(value) => proptest::prop_assert!(!is_deeper(&value, MAX_DEPTH)),
                Err(reason) => proptest::prop_assert!(!reason.is_empty() && !reason.contains("BudgetBreach") && !reason.contains("Location")),
            }
        }
    }

    #[test]
    fn json_up_to_the_depth_is_read() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse_now(Format::Json, nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(
            parse_now(Format::Json, nested(MAX_DEPTH + 1).as_bytes())
                .unwrap_err()
                .contains("deeper")
        );
    }
}
