//! A node that is down finds one of its files cut short, changed or gone when it starts.
//!
//! In: a cluster at work. Out: for each damage what came of it. Invariant: either the node repairs it and ends up with what the others
//! have, or it refuses to start and names the file; it never panics, and never do the others lose or change anything.
use std::time::Duration;

use crate::chaos::stage::Stage;
use crate::chaos::{leader, outage};
use crate::demo::topology::port;
use crate::demo::{SOON, START};
use crate::faults::damage::{Damage, Damaged};
use crate::faults::kill;
use crate::harness::logs::{self, Allowed};
use crate::harness::{POLL, Poll, wait_through};
use crate::oracles;

/// What a node says about its damaged files.
const SAID: [Allowed; 3] = [
    Allowed {
        process: "global-",
        text: "/log",
        reason: "the scenario damaged the log",
    },
    Allowed {
        process: "global-",
        text: "cache",
        reason: "the scenario damaged the cache",
    },
    Allowed {
        process: "global-",
        text: ".json",
        reason: "the scenario damaged a file of the folder",
    },
];

/// How a start with a damaged folder went.
enum Outcome {
    Repaired,
    Refused(String),
    Neither(String),
}

/// # Errors
/// If the cluster does not recover.
pub async fn run(stage: &mut Stage<'_>, damages: &[Damage]) -> anyhow::Result<()> {
    stage.demo.allowed.extend(SAID);
    stage.demo.allowed.extend(leader::ALLOWED);
    stage.demo.allowed.extend(outage::GONE);
    for damage in damages {
        let (leading, _) = stage.leader().await?;
        let node = stage.another(leading.id)?;
        let (name, folder) = (node.name(), stage.demo.places.data.join(node.name()));
        kill::begin(&stage.demo.fleet, &name, SOON).await?;
        let Some(damaged) = damage.begin(&folder)? else {
            stage.demo.report.note(&format!("{}: {name} has no such file", damage.name));
            kill::end(&stage.demo.fleet, &name)?;
            stage.demo.fleet.wait_ready(&name, START).await?;
            continue;
        };
        stage.demo.report.injected("damage", &format!("{name}, {}", damaged.what));
        let what = damaged.what.clone();
        one(stage, &name, node.ip, damaged).await?;
        stage.whole(&what).await?;
    }
    Ok(())
}

async fn one(stage: &mut Stage<'_>, name: &str, ip: std::net::Ipv4Addr, damaged: Damaged) -> anyhow::Result<()> {
    let what = damaged.what.clone();
    let length = stage.demo.fleet.log_length(name);
    kill::end(&stage.demo.fleet, name)?;
    stage.demo.fleet.may_end(name)?;
    let ready = stage.demo.diagnostics(ip).with_deadline(Duration::from_secs(2));
    let started = wait_through("the node is ready, or has ended", START, POLL, async || {
        if let Some(how) = stage.demo.fleet.ended(name)? {
            return Ok(Poll::Ready(Some(how)));
        }
        let answer = ready.get("/ready").await?;
        Ok(Poll::when(answer.status.is_success(), None, || {
            format!("{port}: {}", answer.status, port = port::DIAGNOSTICS)
        }))
    })
    .await;
    let told = logs::since(&stage.demo.fleet.log(name), length);
    // Its last words name the file, and not only that something is wrong.
    let folder = stage.demo.places.data.join(name).display().to_string();
    let names_a_file = |line: &&str| {
        let rest = line.split_once(&folder).map_or("", |(_, rest)| rest);
        ["/log", "/cache", "/node.json", "/peers.json", "/confirmed"]
            .iter()
            .any(|part| rest.starts_with(part))
    };
    let named = told.lines().skip_while(|line| !line.starts_with("Error:")).find(names_a_file);
    let outcome = match started {
        Ok((None, _)) => Outcome::Repaired,
        Ok((Some(how), _)) => match named {
            Some(line) if how == "exit code 1" => Outcome::Refused(line.trim().to_owned()),
            Some(_) | None => Outcome::Neither(format!("{how}: {}", logs::tail(&stage.demo.fleet.log(name), 8))),
        },
        Err(error) => Outcome::Neither(format!("{error:#}")),
    };
    let (fine, detail) = match &outcome {
        Outcome::Repaired => (true, "it repaired it".to_owned()),
        Outcome::Refused(why) => (true, format!("it refuses to start: {why}")),
        Outcome::Neither(why) => (false, why.clone()),
    };
    stage.demo.report.verdict(
        oracles::CRASHES,
        &format!("{name} starts, or says which file is damaged: {what}"),
        fine,
        detail,
    );
    if matches!(outcome, Outcome::Repaired) {
        return damaged.keep();
    }
    if matches!(outcome, Outcome::Neither(_)) {
        kill::begin(&stage.demo.fleet, name, SOON).await?;
    }
    damaged.undo()?;
    kill::end(&stage.demo.fleet, name)?;
    stage.demo.fleet.wait_ready(name, START).await?;
    Ok(())
}
