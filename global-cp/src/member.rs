//! `global-cp member`: who is in a control plane of several nodes, shown and changed while it runs.
//! In: a running control plane's API. Out: lines for people; a token for a new node, on stdout alone.

use anyhow::Result;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use crate::admin::Access;

/// What `global-cp member` can do. Every step may be repeated; the control plane refuses, with the reason, what would lose its quorum.
#[derive(Subcommand)]
pub enum Command {
    /// Show the members: where they are, what they are, whether they answer.
    List(List),
    /// Let a new node join; prints its token.
    ///
    /// Make its certificate with `pki node`, give it `cluster.first_start: join` and the token in `cluster.join_token_file`, and start it.
    /// It copies everything, and has no vote until `promote`.
    Add(Add),
    /// Give a node that has joined a vote, once it has caught up.
    Promote(Promote),
    /// Remove a member for good. Its id is never used again.
    Remove(Remove),
    /// A member is reached at another address from now on.
    Move(Move),
    /// Give the lead to another member.
    Transfer(Transfer),
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    access: Access,
}

#[derive(Args)]
pub struct Add {
    /// An id that was never used.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Where the others will reach it: the address of its `cluster.listen`.
    #[arg(long, value_name = "HOST:PORT")]
    member_address: String,
    /// How long the token is valid, such as 30m.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    valid_for: String,
    #[command(flatten)]
    access: Access,
}

#[derive(Args)]
pub struct Promote {
    id: u64,
    /// This member leaves in the same step: to replace a node that is dead.
    #[arg(long, value_name = "N")]
    instead_of: Option<u64>,
    #[command(flatten)]
    access: Access,
}

#[derive(Args)]
pub struct Remove {
    id: u64,
    #[command(flatten)]
    access: Access,
}

#[derive(Args)]
pub struct Move {
    id: u64,
    /// Where the others will reach it.
    #[arg(long, value_name = "HOST:PORT")]
    member_address: String,
    #[command(flatten)]
    access: Access,
}

#[derive(Args)]
pub struct Transfer {
    /// The one that is to lead; without it, the one whose log is furthest.
    #[arg(long, value_name = "N")]
    to: Option<u64>,
    #[command(flatten)]
    access: Access,
}

/// Runs it and prints what came of it.
///
/// # Errors
/// The control plane cannot be asked, or refuses.
pub async fn run(command: &Command) -> Result<()> {
    match command {
        Command::List(List { access }) => {
            let cluster = access.open()?.call(Method::GET, "/cluster").await?;
            print!("{}", shown(&cluster));
        }
        Command::Add(add) => {
            let body = json!({"id": add.id, "address": add.member_address, "validFor": add.valid_for});
            let answer = add.access.open()?.send(Method::POST, "/cluster/members", &body).await?;
            let text = |field: &str| answer.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
            println!("{}", text("token"));
            eprintln!("The token lets node {} join, once, until {}.", add.id, text("validUntil"));
        }
        Command::Promote(Promote { id, instead_of, access }) => {
            let path = format!("/cluster/members/{id}/promote");
            let body = instead_of.map_or_else(|| json!({}), |old| json!({"insteadOf": old}));
            access.open()?.send(Method::POST, &path, &body).await?;
            println!("Node {id} has a vote.");
        }
        Command::Remove(Remove { id, access }) => {
            access.open()?.call(Method::DELETE, &format!("/cluster/members/{id}")).await?;
            println!("Node {id} has left. Stop it for good; its id is never used again.");
        }
        Command::Move(Move {
            id,
            member_address,
            access,
        }) => {
            let body = json!({"address": member_address});
            access.open()?.send(Method::PUT, &format!("/cluster/members/{id}"), &body).await?;
            println!("Node {id} is reached at {member_address} from now on.");
        }
        Command::Transfer(Transfer { to, access }) => {
            let body = to.map_or_else(|| json!({}), |to| json!({"id": to}));
            let answer = access.open()?.send(Method::POST, "/cluster/leader", &body).await?;
            println!("Node {} leads.", answer["id"]);
        }
    }
    Ok(())
}

fn shown(cluster: &Value) -> String {
    let members = cluster.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
    let line = |member: &Value| {
        let role = member.get("role").and_then(Value::as_str).unwrap_or("-");
        let health = match (&member["healthy"], member.get("problem").and_then(Value::as_str)) {
            (_, Some(problem)) => problem,
            (Value::Bool(true), None) => "healthy",
            _ => "does not answer",
        };
        let address = member.get("address").and_then(Value::as_str).unwrap_or("-");
        format!("{} {address} {role}: {health}\n", member["id"])
    };
    members.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_member() {
        let cluster = json!({"members": [
            {"id": 1, "address": "a:1", "role": "leader", "healthy": true},
            {"id": 2, "address": "b:1", "role": "learner", "healthy": false},
            {"id": 3, "address": "c:1", "healthy": false, "problem": "it runs twice"},
        ]});
        let expected = "1 a:1 leader: healthy\n2 b:1 learner: does not answer\n3 c:1 -: it runs twice\n";
        assert_eq!(shown(&cluster), expected);
    }
}
