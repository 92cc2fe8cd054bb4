//! No build but the one that asks for them has seeded defects in it.
use std::process::Command;

use ursa_store::defects;

/// Features of the store in a build like this, as cargo resolves them.
fn features(args: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--prefix", "none", "--format", "{p}|{f}|", "--offline", "--locked"])
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let stores = text.lines().filter(|line| line.starts_with("ursa-store "));
    let features = stores
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|features| features.split(','));
    features.map(str::to_owned).collect()
}

#[test]
fn only_a_build_that_asks_for_them_has_defects() {
    let normal = features(&["--workspace"]);
    assert!(
        normal.iter().any(|feature| feature == "testing"),
        "the list was not understood: {normal:?}"
    );
    assert!(!normal.iter().any(|feature| feature == "defects"), "{normal:?}");
    let asked = features(&["-p", "ursa-simulation", "--features", "defects"]);
    assert!(asked.iter().any(|feature| feature == "defects"), "{asked:?}");
}

#[test]
fn a_build_says_whether_it_can_be_wrong() {
    assert_eq!(defects::COMPILED, cfg!(feature = "defects"));
    let run = Command::new(env!("CARGO_BIN_EXE_simulate"))
        .args(["one", "--seed", "1", "--seconds", "1", "--json", "--defect", "vote-forgotten"])
        .output()
        .unwrap();
    // Refused before anything runs, or run with a report.
    assert_eq!(run.stdout.is_empty(), !defects::COMPILED);
    let text = String::from_utf8_lossy(&run.stderr);
    assert_eq!(text.contains("built without defects"), !defects::COMPILED, "{text}");
}
