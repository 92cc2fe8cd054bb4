//! `global-cp encryption`: how the data of one node is encrypted on its disk, and a new data key for it.
//! In: a running control plane's API. Out: lines for people. Invariant: only ids of keys are shown.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::Value;

use crate::admin::Access;

/// What `global-cp encryption` can do. It speaks of the node that it asks, and of no other.
#[derive(Subcommand)]
pub enum Command {
    /// Show which data key is in use, and what is still to be encrypted with it.
    Status(Status),
    /// Make a new data key for the node that is asked, encrypt with it everything on its disk, and drop the old one.
    ///
    /// The node goes on serving. Interrupted, it goes on at its next start. Do it at one node after the other.
    Rotate(Rotate),
}

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    access: Access,
}

#[derive(Args)]
pub struct Rotate {
    /// Do not wait until the old key is dropped.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    access: Access,
}

/// Runs it and prints what came of it.
///
/// # Errors
/// The control plane cannot be asked, or refuses.
pub async fn run(command: &Command) -> Result<()> {
    match command {
        Command::Status(status) => {
            let now = status.access.open()?.call(Method::GET, "/encryption").await?;
            print!("{}", shown(&now));
        }
        Command::Rotate(rotate) => {
            let admin = rotate.access.open()?;
            let mut now = admin.call(Method::POST, "/encryption/rotate").await?;
            let key = now["key"].clone();
            while !rotate.no_wait && now["settled"] != Value::Bool(true) {
                now = admin.call(Method::GET, "/encryption?wait=20s").await?;
                if let Some(problem) = now["problem"].as_str() {
                    print!("{}", shown(&now));
                    bail!("it does not get on ({problem}); the node tries it again, `global-cp encryption status` shows how far it is");
                }
                if now["key"] != key {
                    bail!("somebody has asked for another new key meanwhile; `global-cp encryption status` shows how far it is");
                }
            }
            print!("{}", shown(&now));
        }
    }
    Ok(())
}

fn shown(now: &Value) -> String {
    if now["enabled"] != Value::Bool(true) {
        return "Encryption is off: the data of this node is in the clear.\n".to_owned();
    }
    let text = |field: &str| now[field].as_str().unwrap_or_default();
    let mut lines = format!(
        "data key            {}\nkey-encryption key  {}\n",
        text("key"),
        text("keyEncryptionKey")
    );
    if now["settled"] == Value::Bool(true) {
        lines.push_str("Everything on disk is encrypted with this key; there is no other.\n");
    } else {
        lines.push_str(&format!(
            "Being encrypted anew: {} files of the log and {} snapshots are left.\n",
            now["logFilesLeft"], now["snapshotsLeft"]
        ));
    }
    for key in now["oldKeys"].as_array().into_iter().flatten() {
        lines.push_str(&format!("old key             {}\n", key.as_str().unwrap_or_default()));
    }
    if !text("problem").is_empty() {
        lines.push_str(&format!("Problem: {}\n", text("problem")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_shown() {
        assert!(shown(&json!({"enabled": false})).contains("in the clear"));
        let settled = shown(&json!({"enabled": true, "settled": true, "key": "k", "keyEncryptionKey": "e", "oldKeys": []}));
        assert!(
            settled.contains("data key            k\n") && settled.contains("there is no other"),
            "{settled}"
        );
        let left = json!({
            "enabled": true, "settled": false, "key": "k", "keyEncryptionKey": "e", "oldKeys": ["a", "b"], "logFilesLeft": 3,
            "snapshotsLeft": 2, "problem": "no space"
        });
        let left = shown(&left);
        assert!(
            left.contains("3 files of the log and 2 snapshots") && left.contains("old key             b\n"),
            "{left}"
        );
        assert!(left.contains("Problem: no space"), "{left}");
    }
}
