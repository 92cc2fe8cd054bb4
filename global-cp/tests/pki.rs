//! `global-cp pki` from outside: the files it makes, and what it refuses.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

fn pki(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_global-cp"))
        .arg("pki")
        .args(args)
        .env_clear()
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn made(output: &Output) {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[track_caller]
fn refused(output: &Output, why: &str) {
    assert!(
        !output.status.success() && text(&output.stderr).contains(why),
        "{}",
        text(&output.stderr)
    );
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_cluster_is_made_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, one) = (dir.path().join("ca"), dir.path().join("one"));
    let (ca_arg, one_arg) = (ca.to_str().unwrap(), one.to_str().unwrap());
    made(&pki(&["init", "--out", ca_arg, "--cluster", "demo"]));
    let node = [
        "node",
        "--ca",
        ca_arg,
        "--id",
        "1",
        "--address",
        "127.0.100.1",
        "--address",
        "global-1",
        "--out",
        one_arg,
    ];
    let output = pki(&node);
    made(&output);
    assert!(text(&output.stdout).contains("node 1 of cluster demo"), "{}", text(&output.stdout));
    assert_eq!([mode(&ca.join("ca.key")), mode(&one.join("node.key"))], [0o600, 0o600]);
    assert_eq!([mode(&ca.join("ca.crt")), mode(&one.join("node.crt"))], [0o644, 0o644]);
    let read = |path: &Path| std::fs::read(path).unwrap();
    assert_eq!(read(&ca.join("ca.crt")), read(&one.join("ca.crt")));
    assert!(!one.join("ca.key").exists(), "the CA's key stays where it is");
    let tls = ursa_runtime::tls::ServerTls::from_files(&one.join("node.crt"), &one.join("node.key"), Some(&one.join("ca.crt"))).unwrap();
    let (names, ips) = tls.dns_and_ip_sans();
    assert_eq!(names, ["global-1", "localhost"]);
    assert_eq!(ips.len(), 3, "{ips:?}");

    let before = (read(&ca.join("ca.key")), read(&one.join("node.key")));
    refused(&pki(&["init", "--out", ca_arg]), "exists already and is left alone");
    refused(&pki(&node), "exists already and is left alone");
    assert_eq!(before, (read(&ca.join("ca.key")), read(&one.join("node.key"))));
}

#[test]
fn misuse_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, out) = (dir.path().join("ca"), dir.path().join("out"));
    let (ca, out_arg) = (ca.to_str().unwrap(), out.to_str().unwrap());
    let node = |id: &str, address: &str| pki(&["node", "--ca", ca, "--id", id, "--address", address, "--out", out_arg]);
    refused(&node("1", "a"), "`global-cp pki init` makes a CA");
    refused(&pki(&["init", "--out", ca, "--cluster", "Not a name"]), "cannot name a cluster");
    made(&pki(&["init", "--out", ca]));
    refused(&node("0", "a"), "0 is not in 1..");
    refused(&node("1", "a:5683"), "without port");
    refused(&pki(&["node", "--ca", ca, "--id", "1", "--out", out_arg]), "--address");
    std::fs::write(dir.path().join("ca/ca.key"), "nonsense").unwrap();
    refused(&node("1", "a"), "cluster CA key");
    assert!(!out.exists(), "a refusal leaves nothing behind");
    let help = pki(&["node", "--help"]);
    made(&help);
    assert!(text(&help.stdout).contains("whoever has it is that node"));
}
