//! Judges, one per file, each with a name in the reports. In: what was seen. Out: what must not have happened.
//! Not here: making the histories ([`crate::traffic::registers`]), reading logs for panics ([`crate::harness::logs`]).
pub mod caps;
pub mod leadership;
pub mod registers;
pub mod replicas;

/// The names under which reports list them, and what each says.
pub const NAMES: [(&str, &str); 8] = [
    (
        REGISTERS,
        "every read of a key lies between the last acknowledged and the last attempted write, none goes back",
    ),
    (ACKNOWLEDGED, "every write that is sent until it is acknowledged is acknowledged"),
    (REPLICAS, "all nodes hold the same at the same revision"),
    (
        LEADERSHIP,
        "a leader wherever a majority is connected both ways; no election while a minority is disturbed",
    ),
    (TRAFFIC, "no request between workloads fails"),
    (CRASHES, "no panic, no crash, no end that nobody asked for"),
    (LOGS, "no WARN or ERROR that the faults do not explain"),
    (CAPS, "memory and disk stay below their caps"),
];

/// See [`registers`].
pub const REGISTERS: &str = "linearizable";
/// See [`registers`].
pub const ACKNOWLEDGED: &str = "acknowledged";
/// See [`replicas`].
pub const REPLICAS: &str = "equal replicas";
/// See [`leadership`].
pub const LEADERSHIP: &str = "leadership";
/// See [`crate::traffic::pairs`].
pub const TRAFFIC: &str = "traffic";
/// See [`crate::harness::logs`].
pub const CRASHES: &str = "no panic";
/// See [`crate::harness::logs`].
pub const LOGS: &str = "quiet logs";
/// See [`caps`].
pub const CAPS: &str = "caps";
