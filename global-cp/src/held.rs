//! `global-cp held-removals`: what zones' first sets lacked and is not removed yet, and the operator's decision.
//! In: a running control plane's API. Out: lines for people.

use anyhow::Result;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::Value;

use crate::admin::Access;

/// What `global-cp held-removals` can do.
#[derive(Subcommand)]
pub enum Command {
    /// Show what is held, of which zone and kind, since when, and when it goes.
    ///
    /// A zone that comes back with less than it had may have lost its store: what its first set lacks is not removed at once.
    List(List),
    /// Remove now what is held for a zone: it is really gone there.
    Confirm(Confirm),
    /// Keep what is held for a zone, now and later, until `confirm` or until the label ursa.io/held-removals of its Zone is removed.
    Keep(Keep),
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    access: Access,
}

#[derive(Args)]
pub struct Confirm {
    /// Name of the zone; `global` at a zone control plane.
    zone: String,
    /// Only what is held of this kind, such as MeshService.
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    #[command(flatten)]
    access: Access,
}

#[derive(Args)]
pub struct Keep {
    /// Name of the zone; `global` at a zone control plane.
    zone: String,
    #[command(flatten)]
    access: Access,
}

/// Runs it and prints what came of it.
///
/// # Errors
/// The control plane cannot be asked, or refuses.
pub async fn run(command: &Command) -> Result<()> {
    match command {
        Command::List(list) => {
            let held = list.access.open()?.call(Method::GET, "/held-removals").await?;
            print!("{}", shown(&held));
        }
        Command::Confirm(confirm) => {
            let kind = confirm.kind.as_deref().map(|kind| format!("?kind={}", escaped(kind)));
            let path = format!("/held-removals/{}/confirm{}", escaped(&confirm.zone), kind.unwrap_or_default());
            let done = confirm.access.open()?.call(Method::POST, &path).await?;
            println!("{} removals of {} are being done.", done["confirmed"], confirm.zone);
        }
        Command::Keep(keep) => {
            let path = format!("/held-removals/{}/keep", escaped(&keep.zone));
            keep.access.open()?.call(Method::POST, &path).await?;
            println!("What is held for {} stays until it is confirmed.", keep.zone);
        }
    }
    Ok(())
}

/// As part of a URL.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

fn shown(held: &Value) -> String {
    let text = |item: &Value, field: &str| item.get(field).and_then(Value::as_str).unwrap_or("-").to_owned();
    let items = held.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut out = String::new();
    for item in &items {
        let when = match (
            item.get("ends").and_then(Value::as_str),
            item["kept"] == true,
            item["connected"] == true,
        ) {
            (_, true, _) => "kept".to_owned(),
            (Some(ends), ..) => format!("goes at {ends}"),
            (None, _, false) => "time stands still: not connected".to_owned(),
            (None, ..) => "waits for confirm".to_owned(),
        };
        let names = item.get("names").and_then(Value::as_array).cloned().unwrap_or_default();
        let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
        out += &format!(
            "{} {} {}: since {}, {when}, at node {}: {}\n",
            text(item, "peer"),
            text(item, "kind"),
            item["count"],
            text(item, "since"),
            item["node"],
            names.join(" ")
        );
    }
    if items.is_empty() {
        out += "Nothing is held.\n";
    }
    if let Some(missing) = held.get("unreachableNodes") {
        out += &format!("Nodes {missing} did not answer; what they hold is missing here.\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_state_has_its_words() {
        let item = |more: Value| {
            let mut item = json!({"peer": "east", "kind": "MeshService", "count": 2, "names": ["default/a", "default/b"],
                "since": "S", "waitsFor": "time", "connected": true, "kept": false, "node": 1});
            item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            shown(&json!({"total": 1, "items": [item]}))
        };
        assert_eq!(
            item(json!({"ends": "E"})),
            "east MeshService 2: since S, goes at E, at node 1: default/a default/b\n"
        );
        assert!(item(json!({})).contains("waits for confirm"));
        assert!(item(json!({"connected": false})).contains("not connected"));
        assert!(item(json!({"kept": true})).contains("kept"));
        assert_eq!(
            shown(&json!({"items": [], "unreachableNodes": [3]})),
            "Nothing is held.\nNodes [3] did not answer; what they hold is missing here.\n"
        );
        assert_eq!(escaped("a/b c"), "a%2Fb%20c");
    }
}
