//! Judges, one per file, each with a name in the reports. In: what was seen. Out: what must not have happened.
//! Not here: making the histories ([`crate::traffic::registers`]), reading logs for panics ([`crate::harness::logs`]).
pub mod applied;
pub mod caps;
pub mod leadership;
pub mod registers;
pub mod replicas;
pub mod standings;
pub mod streams;

/// The names under which reports list them, and what each says.
pub const NAMES: [(&str, &str); 10] = [
    (
        REGISTERS,
        "every read of a key lies between the last acknowledged and the last attempted write, none goes back",
    ),
    (ACKNOWLEDGED, "every write that is sent until it is acknowledged is acknowledged"),
    (
        STREAMS,
        "what followers of the changes are told has no gap, repeat or disorder, is the same at all nodes, and holds every acknowledged write",
    ),
    (REPLICAS, "all nodes hold the same at the same revision"),
    (
        LEADERSHIP,
        "a leader wherever a majority is connected both ways; no election while a minority is disturbed",
    ),
    (APPLIED, "what `?wait` says is stored in every zone is stored there"),
    (TRAFFIC, "no request between workloads fails"),
    (CRASHES, "no panic, no crash, no end that nobody asked for"),
    (LOGS, "no WARN or ERROR that the faults do not explain"),
    (CAPS, "memory and disk stay below their caps"),
];

/// See [`registers`].
pub const REGISTERS: &str = "linearizable";
/// See [`registers`].
pub const ACKNOWLEDGED: &str = "acknowledged";
/// See [`streams`].
pub const STREAMS: &str = "streams";
/// See [`applied`].
pub const APPLIED: &str = "applied";
/// See [`replicas`].
pub const REPLICAS: &str = "equal replicas";
/// See [`leadership`] and [`standings`].
pub const LEADERSHIP: &str = "leadership";
/// See [`crate::traffic::pairs`].
pub const TRAFFIC: &str = "traffic";
/// See [`crate::harness::logs`].
pub const CRASHES: &str = "no panic";
/// See [`crate::harness::logs`].
pub const LOGS: &str = "quiet logs";
/// See [`caps`].
pub const CAPS: &str = "caps";
