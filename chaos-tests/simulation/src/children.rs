//! One process per seed, several at once.
//! In: seeds. Out: their reports, as they come.
//! Invariant: a seed's run is the same alone as among others. Within one process it would not be: tokio counts its runtimes, and draws
//! the order of `select!` from that count. A run that hangs or dies is a finding like any other.
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::run::{Options, Report};

/// Longest that a seed may take, in real time: a hundred times the usual.
const LONGEST: Duration = Duration::from_secs(120);

/// Seeds to run.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The `simulate` binary.
    pub program: PathBuf,
    pub seeds: std::ops::Range<u64>,
    /// At once.
    pub jobs: usize,
    pub options: Options,
    /// The seeded defect to run with.
    pub defect: Option<String>,
}

impl Batch {
    /// Runs the seeds; `each` gets every report, and says whether to go on.
    pub fn run(&self, mut each: impl FnMut(Report) -> bool) {
        let (next, stop) = (AtomicU64::new(self.seeds.start), AtomicBool::new(false));
        let (sender, reports) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                let (sender, next, stop) = (sender.clone(), &next, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.seeds.end || sender.send(self.one(seed)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for report in reports {
                if !each(report) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        });
    }

    /// Runs one seed in a process of its own.
    pub fn one(&self, seed: u64) -> Report {
        self.try_one(seed).unwrap_or_else(|what| Report::given_up(seed, what))
    }

    fn try_one(&self, seed: u64) -> Result<Report, String> {
        let mut command = Command::new(&self.program);
        command
            .arg("one")
            .args(["--seed", &seed.to_string(), "--json"])
            .args(["--seconds", &self.options.faults_for.as_secs().to_string()])
            .args(["--lines", &self.options.keep.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(defect) = &self.defect {
            command.args(["--defect", defect]);
        }
        let child = command.spawn().map_err(|error| describe(&self.program, &error))?;
        let text = output(child)?;
        serde_json::from_str(&text).map_err(|error| format!("the run died: {error}"))
    }
}

fn describe(program: &Path, error: &std::io::Error) -> String {
    format!("cannot run {}: {error}", program.display())
}

/// What the child says, if it ends in time.
fn output(mut child: Child) -> Result<String, String> {
    let Some(mut pipe) = child.stdout.take() else {
        return Err("no output".to_owned());
    };
    let (sender, done) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let read = pipe.read_to_string(&mut text);
        // Whoever waited may have given up.
        let _ = sender.send(read.map(|_| text));
    });
    let told = done.recv_timeout(LONGEST);
    if told.is_err() {
        let _ = child.kill();
    }
    let _ = child.wait();
    let _ = reader.join();
    match told {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it hangs: not done after {LONGEST:?}")),
    }
}
