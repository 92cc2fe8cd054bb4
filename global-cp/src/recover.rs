//! `global-cp recover`: going on with one node when the majority of a control plane is lost for good.
//! In: data folders of nodes that do not run. Out: what is in them and what may be lost; with consent, one of them as a group of one.
//! Invariant: without consent nothing is changed, and nothing is while a majority could be brought together.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Result, bail};
use ursa_model::Timestamp;
use ursa_plane::offline;
use ursa_runtime::config;
use ursa_store::{
    backup::recover::{self, Survey},
    disk::{Disk, RealDisk},
};

use crate::{cli::Overrides, config::Config};

/// Exit code when what may be lost was shown and not accepted.
pub const NOT_ACCEPTED: i32 = 3;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    NotAccepted,
}

/// Flags of `global-cp recover`.
#[derive(clap::Args)]
pub struct Args {
    /// Configuration of this node, the one to go on with.
    #[arg(long, value_name = "FILE", env = "CONFIG_PATH")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// Data folder of another node that is left, or a copy of it: to find out which of them has most. May be given several times.
    #[arg(long, value_name = "DIR")]
    compare: Vec<PathBuf>,
    /// What was shown may be lost: do it.
    #[arg(long)]
    accept_data_loss: bool,
    /// Do it although other members answer, or another folder has more.
    #[arg(long)]
    force: bool,
}

/// Runs it.
///
/// # Errors
/// A folder cannot be looked at, is in use, or must not be used; each with the way out. Then nothing was changed.
pub async fn run(args: &Args) -> Result<Outcome> {
    let config = config::load::<Config>(args.config.as_deref(), &args.overrides)?.validate()?;
    let store = offline::store_config(&config.data_dir, config.node.id, config.cluster.as_ref(), &config.encryption)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mine = recover::survey(&store, &disk, None).await?;
    let mut all = vec![mine.clone()];
    for dir in &args.compare {
        all.push(recover::survey(&store, &disk, Some(dir)).await?);
    }
    for survey in &all {
        print!("{}", shown(survey));
    }
    print!("{}", loss(&mine));
    let mut objections = Vec::new();
    match recover::best(&all) {
        None => objections.push(
            "The folders are of different histories: they hold different data. Decide which one is right, and leave the others out."
                .to_owned(),
        ),
        Some(best) if best.dir != mine.dir => objections.push(format!(
            "The folder of node {} in {} has more than this one: recover from it, and less is lost.",
            best.node,
            best.dir.display()
        )),
        Some(_) if all.len() > 1 => println!("\nOf the folders that were compared, this one has most."),
        Some(_) => {}
    }
    objections.extend(quorum(mine.node, &mine.voters, &recover::answering(&store).await?));
    if !objections.is_empty() && !args.force {
        bail!("{}\nNothing was changed. --force does it all the same.", objections.join("\n"));
    }
    for objection in &objections {
        println!("\n{objection} (--force)");
    }
    if !args.accept_data_loss {
        println!("\nNothing was changed. To go on with this node alone and accept the loss, run the same command with --accept-data-loss.");
        return Ok(Outcome::NotAccepted);
    }
    let (history, origin) = recover::recover(&store, &disk, Timestamp::now()).await?;
    println!(
        "\nNode {} goes on alone, in history {history}, which follows history {} at revision {}; its revisions begin at {}.",
        mine.node, origin.history, origin.revision, origin.begins
    );
    println!(
        "Start it with `global-cp run`. The other nodes are refused with their old folders: empty them, set `cluster.first_start: wait`, and they join."
    );
    Ok(Outcome::Done)
}

/// Whether there may be a majority after all.
fn quorum(mine: u64, voters: &BTreeSet<u64>, answering: &BTreeSet<u64>) -> Option<String> {
    let others: BTreeSet<u64> = answering.intersection(voters).copied().filter(|id| *id != mine).collect();
    let votes = others.len() + usize::from(voters.contains(&mine));
    if others.is_empty() || votes < voters.len() / 2 + 1 {
        return None;
    }
    Some(format!(
        "Nodes {others:?} answer; with this one they are {votes} of {}, which is a majority: start this node instead of recovering it, and nothing is lost.",
        voters.len()
    ))
}

/// When anything in the log was last written, by the file system.
fn written(dir: &Path) -> Option<Timestamp> {
    let files = std::fs::read_dir(dir.join("log")).ok()?;
    let logs = files
        .flatten()
        .filter(|file| file.path().extension().is_some_and(|end| end == "log"));
    let newest = logs.filter_map(|file| file.metadata().ok()?.modified().ok()).max()?;
    let since = newest.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Timestamp(u64::try_from(since.as_millis()).ok()?))
}

fn shown(survey: &Survey) -> String {
    let id = |id: Option<ursa_store::log::EntryId>| id.map_or_else(|| "none".to_owned(), |id| format!("{} of term {}", id.index, id.term));
    let members: Vec<String> = survey
        .members
        .iter()
        .map(|(id, address)| {
            let votes = if survey.voters.contains(id) { "" } else { ", without a vote" };
            format!("{id} ({address}{votes})")
        })
        .collect();
    let written = written(&survey.dir).map_or_else(|| "unknown".to_owned(), |at| at.rfc3339());
    format!(
        "Node {} in {}: history {}, term {}\n  newest entry {}, known to be committed up to {}\n  committed: revision {} of {}, {} resources\n  \
         with all entries: revision {} of {}, {} resources\n  log last written {written}\n  members {}\n",
        survey.node,
        survey.dir.display(),
        survey.history,
        survey.term,
        id(survey.last),
        id(survey.committed),
        survey.sure.revision,
        survey.sure.changed.rfc3339(),
        survey.sure.resources,
        survey.all.revision,
        survey.all.changed.rfc3339(),
        survey.all.resources,
        members.join(", ")
    )
}

/// What whoever accepts it accepts.
fn loss(mine: &Survey) -> String {
    let doubtful = match mine.doubtful {
        0 => "Every entry here is known to be committed.".to_owned(),
        count => format!(
            "{count} changesets here, up to revision {}, are not known to be committed: they are taken for it, although whoever sent them may have been told nothing.",
            mine.all.revision
        ),
    };
    format!(
        "\nWhat may be lost: everything that the other members acknowledged after revision {}, of {}. How much that is cannot be seen here.\n{doubtful}\n",
        mine.all.revision,
        mine.all.changed.rfc3339()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_makes_a_majority_with_this_node_is_named() {
        let of = |mine, voters: &[u64], answering: &[u64]| {
            let set = |ids: &[u64]| ids.iter().copied().collect();
            quorum(mine, &set(voters), &set(answering))
        };
        assert_eq!(of(1, &[1, 2, 3], &[]), None);
        assert!(of(1, &[1, 2, 3], &[3]).unwrap().contains("2 of 3"));
        assert_eq!(of(1, &[1, 2, 3, 4, 5], &[3]), None);
        assert!(of(1, &[1, 2, 3, 4, 5], &[3, 4]).is_some());
        // Without a vote it makes none; nor does a node that has none.
        assert_eq!(of(9, &[1, 2, 3], &[3]), None);
        assert!(of(9, &[1, 2, 3], &[2, 3]).is_some());
        assert_eq!(of(1, &[1, 2, 3], &[7, 8]), None);
        assert_eq!(of(1, &[1], &[1]), None);
    }
}
