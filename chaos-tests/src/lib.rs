//! What every test of the whole system is made of, and the demo that is the first of them.
//!
//! In: the built programs (`global-cp`, `zone-cp`, `dataplane`, `zone-ingress`, `echo-workload`) and a real Envoy.
//! Out: a report of steps, checks and histograms. The programs are met only on the wire: nothing here links them.
//! Invariant: a scenario ends with no process of its own left, whatever happened in between.
//! Source: DESIGN.md sections 8 and 9, CONVENTIONS.md C13.
//!
//! - [`harness`]: processes, waiting, logs, addresses, the ring of stages
//! - [`client`]: HTTP/1.1 over TCP, TLS or a unix socket, one answer at a time, never retried
//! - [`traffic`]: open-loop load and the probe that times the first answer under a new rule
//! - [`echo`]: the workload behind the sidecars
//! - [`faults`]: what can happen to the network between two programs
//! - [`oracles`]: what a history of reads and writes must fulfil
//! - [`envoy_admin`]: what an Envoy says about itself
//! - [`report`]: steps, checks, histograms, as a table and as JSON
//! - [`demo`]: the main job of Ursa, narrated
//! - [`chaos`]: scenarios in which nodes, zones and networks fail under load
//! - [`check`]: a running installation, from outside, whoever disturbs it
//! - [`bench`]: how fast the store is, beside the bare disk and a peer
pub mod bench;
pub mod chaos;
pub mod check;
pub mod client;
pub mod demo;
pub mod echo;
pub mod envoy_admin;
pub mod faults;
pub mod harness;
pub mod oracles;
pub mod report;
pub mod traffic;
