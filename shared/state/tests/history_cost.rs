//! What history costs: run it with `cargo test --release -p ursa-state --test history_cost -- --ignored --nocapture`.
//! 100,000 resources of about half a KiB, then 1,000,000 changes of one each.

use std::{fs, time::Instant};

use serde_json::json;
use ursa_model::{Kind, Labels, ResourceKey, Timestamp};
use ursa_state::{Changeset, Command, Expect, HistoryId, Op, Put, RequestId, State, Wanted};

const RESOURCES: u64 = 100_000;
const REVISIONS: u64 = 1_000_000;

fn rss_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn put(n: u64, value: u64) -> Op {
    let mut labels = Labels::new();
    for (key, value) in [("kuma.io/origin", "global"), ("kuma.io/mesh", "default"), ("team", "payments")] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    let noise = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Op::Put(Put {
        key: ResourceKey::new(Kind::MeshTimeout, "default", &format!("timeout-{n:06}")).unwrap(),
        labels,
        spec: json!({
            "targetRef": {"kind": "Dataplane", "labels": {"app": format!("service-{}", n % 1000)}},
            "to": [{"targetRef": {"kind": "MeshService", "name": format!("backend-{noise:x}")},
                    "default": {"connectionTimeout": format!("{}ms", value % 977), "idleTimeout": "1h",
                                "http": {"requestTimeout": format!("{}s", noise % 601), "streamIdleTimeout": "30m"}}}],
            "rules": [{"default": {"idleTimeout": format!("{}m", noise % 59)}}],
        }),
        status: None,
        owner: None,
        expect: Expect::Any,
    })
}

#[test]
#[ignore = "a measurement of a minute and a GiB"]
fn memory_restart_and_reads() {
    let mut state = State::default();
    let mut index = 1;
    let mut run = |state: &mut State, ops: Vec<Op>| {
        index += 1;
        state.apply(
            index,
            &Command::Change(Changeset::atomic(RequestId::default(), Timestamp(1_700_000_000_000 + index), ops)),
        );
    };
    state.apply(1, &Command::Init { history: HistoryId(1) });
    for chunk in 0..RESOURCES / 1000 {
        run(&mut state, (0..1000).map(|n| put(chunk * 1000 + n, 0)).collect());
    }
    let empty = rss_mib();
    println!("{RESOURCES} resources: {empty} MiB");
    let started = Instant::now();
    let mut slowest = std::time::Duration::ZERO;
    for n in 0..REVISIONS {
        let ops = vec![put(n.wrapping_mul(7919) % RESOURCES, n + 1)];
        let one = Instant::now();
        run(&mut state, ops);
        slowest = slowest.max(one.elapsed());
    }
    let kept = state.view().past().kept();
    println!(
        "{REVISIONS} changes in {:?}, the slowest {slowest:?}; {} MiB more; {kept:?}: {} bytes packed, {} before packing per revision",
        started.elapsed(),
        rss_mib().saturating_sub(empty),
        kept.packed_bytes * 10 / (kept.revisions - 10_000) / 10,
        kept.bytes / (kept.revisions - 10_000),
    );
    let started = Instant::now();
    let mut bytes = Vec::new();
    state.write_snapshot(&mut bytes).unwrap();
    println!("snapshot of {} MiB written in {:?}", bytes.len() >> 20, started.elapsed());
    let view = state.view().clone();
    let past = view.past();
    let (oldest, newest) = (past.oldest(), view.revision());
    let timed = |what: &str, work: &mut dyn FnMut() -> usize| {
        let started = Instant::now();
        let found = work();
        println!("{what}: {found} in {:?}", started.elapsed());
    };
    let one = ResourceKey::new(Kind::MeshTimeout, "default", "timeout-000077").unwrap();
    let all = |_: &ResourceKey| true;
    timed("one resource at the oldest revision", &mut || {
        usize::from(past.get(&one, oldest).unwrap().is_some())
    });
    timed("its log", &mut || {
        past.log(oldest, newest, Wanted::Key(&one), true, 100).unwrap().len()
    });
    timed("the newest 100 of the log", &mut || {
        past.log(oldest, newest, Wanted::Those(&all), false, 100).unwrap().len()
    });
    timed("changes of the last 100,000 revisions", &mut || {
        past.diff(newest - 100_000, newest, Wanted::Those(&all)).unwrap().len()
    });
    timed("everything at the oldest revision", &mut || past.view(oldest).unwrap().len());
    drop(state);
    let started = Instant::now();
    let again = State::read_snapshot(bytes.as_slice()).unwrap();
    println!("snapshot read in {:?}", started.elapsed());
    assert_eq!(again.view().past().kept(), kept);
    assert_eq!(again.view().len(), view.len());
}
