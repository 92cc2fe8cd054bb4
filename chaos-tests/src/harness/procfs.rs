//! What /proc says about processes: who is whose child, who carries a mark, and which one exactly a number means.
//!
//! In: process ids. Out: facts of this moment; a process that ends while it is looked at is simply absent.
//! Invariant: a process is named by number and start time, for numbers are used again. Source: proc(5).
use std::collections::BTreeMap;
use std::fs;

/// One process, not just its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub started: u64,
}

/// The fields of `/proc/<pid>/stat` that are of use here.
#[derive(Clone, Debug)]
struct Stat {
    id: Identity,
    parent: i32,
    command: String,
    zombie: bool,
}

/// Reads one process. None if there is no such process.
fn stat(pid: i32) -> Option<Stat> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(pid: i32, text: &str) -> Option<Stat> {
    // The command is in parentheses and may itself contain parentheses and spaces.
    let (open, close) = (text.find('(')?, text.rfind(')')?);
    let command = text.get(open + 1..close)?.to_owned();
    let rest: Vec<&str> = text.get(close + 1..)?.split_whitespace().collect();
    let zombie = matches!(*rest.first()?, "Z" | "X");
    Some(Stat {
        id: Identity {
            pid,
            started: rest.get(19)?.parse().ok()?,
        },
        parent: rest.get(1)?.parse().ok()?,
        command,
        zombie,
    })
}

fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(stat)
        .collect()
}

/// This process as it is now; none if it is gone or a zombie.
#[must_use]
pub fn identity(pid: i32) -> Option<Identity> {
    stat(pid).filter(|s| !s.zombie).map(|s| s.id)
}

/// Resident memory in bytes; none if the process is gone.
#[must_use]
pub fn resident(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// All living descendants of `pid` with their command names (at most 15 bytes, as the kernel keeps them).
#[must_use]
pub fn descendants(pid: i32) -> Vec<(Identity, String)> {
    let mut children: BTreeMap<i32, Vec<Stat>> = BTreeMap::new();
    for stat in all() {
        children.entry(stat.parent).or_default().push(stat);
    }
    let (mut found, mut queue) = (Vec::new(), vec![pid]);
    while let Some(parent) = queue.pop() {
        for stat in children.remove(&parent).unwrap_or_default() {
            queue.push(stat.id.pid);
            if !stat.zombie {
                found.push((stat.id, stat.command));
            }
        }
    }
    found
}

/// All living processes whose environment holds exactly `variable=value`. A child inherits it, also when its parent dies first.
#[must_use]
pub fn marked(variable: &str, value: &str) -> Vec<Identity> {
    let wanted = format!("{variable}={value}").into_bytes();
    all()
        .into_iter()
        .filter(|stat| !stat.zombie)
        .filter(|stat| {
            fs::read(format!("/proc/{}/environ", stat.id.pid)).is_ok_and(|env| env.split(|byte| *byte == 0).any(|entry| entry == wanted))
        })
        .map(|stat| stat.id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_contain_anything() {
        let rest = "S 42 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1";
        let stat = parse_stat(7, &format!("7 (a) b (c) {rest}")).unwrap();
        assert_eq!((stat.command.as_str(), stat.parent, stat.id.started), ("a) b (c", 42, 777));
        assert!(parse_stat(7, "7 (short) S").is_none());
    }

    #[test]
    fn this_process_is_alive_and_the_same() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert_eq!(identity(me), identity(me));
        assert!(identity(me).is_some());
    }
}
