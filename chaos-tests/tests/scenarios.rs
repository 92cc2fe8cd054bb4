//! The short form of the scenarios that the demo does not contain, with the real programs and real Envoys.
//!
//! In: the built programs beside the test's own (`make build` makes them) and `ENVOY_BIN`. Out: the scenario's own checks.
//! Invariant: one at a time, for all of them use the same addresses. Reports: `target/chaos/short/<name>`.
use std::path::Path;
use std::process::Command;

/// All use the addresses of the demo.
static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// `rounds`: how often, or how many; [`ursa_chaos_tests::chaos::SCENARIOS`] says which.
fn passes(name: &str, rounds: u32) {
    let Some(envoy) = std::env::var_os("ENVOY_BIN") else {
        assert!(
            std::env::var_os("CI").is_none(),
            "ENVOY_BIN is not set: `make envoy` installs one, `make test` sets it"
        );
        eprintln!("skipped: ENVOY_BIN is not set; `make test` sets it");
        return;
    };
    let _alone = ONE_AT_A_TIME.lock();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace");
    let program = Path::new(env!("CARGO_BIN_EXE_chaos"));
    let out = program.parent().and_then(Path::parent).expect("target/debug/chaos").join("chaos");
    let run = Command::new(program)
        // The machine builds and tests other things at the same time. The seed is fixed: what chance picks is for `make chaos`.
        .args(["run", name, "--slack", "3", "--seed", "1", "--rounds", &rounds.to_string(), "--out"])
        .arg(out.join("short"))
        .env("ENVOY_BIN", envoy)
        .current_dir(root)
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{name}:\n{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
}

#[test]
fn links_between_nodes_and_to_zones_fail() {
    passes("partition", 1);
}

#[test]
fn every_program_restarts_in_turn() {
    passes("rolling-restart", 1);
}

#[test]
fn eight_of_the_directed_partitions_have_the_right_leader() {
    passes("partitions", 8);
}

#[test]
fn processes_stand_still_and_go_on() {
    passes("pause", 1);
}

#[test]
fn a_node_without_its_data_folder_is_refused() {
    passes("wiped", 1);
}

#[test]
fn damaged_files_are_repaired_or_named() {
    passes("damaged", 3);
}

#[test]
fn what_was_acknowledged_survives_a_loss_of_power_of_all_nodes() {
    passes("power", 1);
}

#[test]
fn an_unknown_scenario_is_refused_with_a_way_out() {
    let run = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["run", "nonsense", "--envoy", "/nowhere"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && text.contains("`chaos list` names them"), "{text}");
}
