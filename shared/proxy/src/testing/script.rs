//! A program that a test writes and then runs.
//! Invariant: no descriptor of the file that may be written ever lives in this process. Another thread that forks in that moment would
//! carry it until its exec, and running the file would fail with "text file busy".
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Writes `dir/name` as a shell script that its owner may run.
pub fn script(dir: &Path, name: &str, script: &str) -> PathBuf {
    let path = dir.join(name);
    let mut tee = Command::new("tee")
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("tee of coreutils");
    let mut input = tee.stdin.take().expect("piped");
    input.write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).expect("tee reads");
    drop(input);
    assert!(tee.wait().expect("tee ends").success(), "cannot write {}", path.display());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
    path
}
