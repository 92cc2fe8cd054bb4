//! `simulate`: the real store on simulated time, network and disks, one seed after the other.
//! In: seeds. Out: progress; of a seed that failed, the verdict of each oracle, the last part of its trace, and how to repeat it.
//! Exit code 1 if any failed.
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ursa_simulation::children::Batch;
use ursa_simulation::run::{self, Options, Report};
use ursa_simulation::world::Changes;

/// The real store on simulated time, network and disks.
#[derive(Debug, Parser)]
#[command(name = "simulate")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Many seeds, until one fails.
    Seeds(Seeds),
    /// One seed, with all of its trace.
    One(One),
    /// Every seeded defect (or those named), until it is caught: which oracle says so, at which seed. Needs the feature `defects`.
    Defects(Defects),
}

#[derive(Debug, Args)]
struct Seeds {
    /// How many.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// At once. Default: one per processor.
    #[arg(long)]
    jobs: Option<usize>,
    /// How long faults happen in each, simulated seconds.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
    /// Lines of the trace to show of a seed that failed.
    #[arg(long, default_value_t = 60)]
    lines: usize,
    /// Goes on after a seed that failed.
    #[arg(long)]
    keep_going: bool,
}

#[derive(Debug, Args)]
struct Defects {
    /// Names. Default: all.
    names: Vec<String>,
    /// Most seeds for each.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// At once. Default: one per processor.
    #[arg(long)]
    jobs: Option<usize>,
    /// How long faults happen in each, simulated seconds.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
}

#[derive(Debug, Args)]
struct One {
    #[arg(long)]
    seed: u64,
    /// With this seeded defect. Needs the feature `defects`.
    #[arg(long)]
    defect: Option<String>,
    /// How long faults happen, simulated seconds.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
    /// Lines of the trace to show. Default: all.
    #[arg(long)]
    lines: Option<usize>,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
    /// What the store logs goes to standard error. Example: `ursa_store=debug`.
    #[arg(long)]
    log: Option<String>,
}

fn main() -> ExitCode {
    let good = match Cli::parse().command {
        Command::Seeds(args) => seeds(&args),
        Command::One(args) => one(&args),
        Command::Defects(args) => defects(&args),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(args: &One) -> bool {
    if let Some(filter) = &args.log {
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
        subscriber.without_time().with_writer(std::io::stderr).init();
    }
    if let Some(name) = &args.defect
        && let Err(reason) = defect::choose(name)
    {
        eprintln!("{reason}");
        return false;
    }
    let options = Options {
        faults_for: Duration::from_secs(args.seconds),
        keep: args.lines.unwrap_or(usize::MAX),
    };
    let report = run::seed(args.seed, options);
    if args.json {
        match serde_json::to_string(&report) {
            Ok(json) => println!("{json}"),
            Err(error) => eprintln!("{error}"),
        }
        return report.is_good();
    }
    for line in &report.lines {
        println!("{line}");
    }
    print_verdict(&report);
    println!("trace {:016x}, {} events", report.hash, report.events);
    report.is_good()
}

fn seeds(args: &Seeds) -> bool {
    let seeds = args.from..args.from.saturating_add(args.seeds);
    let Some(batch) = batch(seeds, args.jobs, args.seconds, args.lines, None) else {
        return false;
    };
    let mut totals = Totals::default();
    batch.run(|report| {
        totals.take(&report);
        if report.is_good() {
            return true;
        }
        print_failure(&report, args);
        args.keep_going
    });
    println!("{totals}");
    totals.failed.is_empty()
}

/// Seeds in processes of this program.
fn batch(seeds: std::ops::Range<u64>, jobs: Option<usize>, seconds: u64, keep: usize, defect: Option<String>) -> Option<Batch> {
    let processors = || std::thread::available_parallelism().ok().map(Into::into);
    let program = std::env::current_exe().inspect_err(|error| eprintln!("cannot tell where this program is: {error}"));
    Some(Batch {
        program: program.ok()?,
        seeds,
        jobs: jobs.or_else(processors).unwrap_or(1),
        options: Options {
            faults_for: Duration::from_secs(seconds),
            keep,
        },
        defect,
    })
}

/// Runs each defect until it is caught; whether all were.
fn defects(args: &Defects) -> bool {
    let all = match defect::chosen(&args.names) {
        Ok(all) => all,
        Err(reason) => {
            eprintln!("{reason}");
            return false;
        }
    };
    println!("{:<28} {:<14} {:>5}  it is wrong in that", "defect", "caught by", "seed");
    let mut missed = 0;
    for (name, what) in &all {
        let Some(batch) = batch(1..1 + args.seeds, args.jobs, args.seconds, 1, Some((*name).to_owned())) else {
            return false;
        };
        let mut caught: BTreeMap<u64, String> = BTreeMap::new();
        batch.run(|report| {
            if let Some(finding) = report.findings.first() {
                caught.insert(report.seed, finding.oracle.clone());
            }
            report.is_good()
        });
        match caught.first_key_value() {
            Some((seed, oracle)) => println!("{name:<28} {oracle:<14} {seed:>5}  {what}"),
            None => {
                missed += 1;
                println!("{name:<28} {:<14} {:>5}  {what}", "MISSED", args.seeds);
            }
        }
    }
    println!("{} of {} defects were caught", all.len() - missed, all.len());
    missed == 0
}

#[cfg(feature = "defects")]
mod defect {
    use ursa_store::defects;

    pub fn choose(name: &str) -> Result<(), String> {
        defects::choose(defects::by_name(name).ok_or_else(|| unknown(name))?);
        Ok(())
    }

    /// Names and descriptions.
    pub fn chosen(names: &[String]) -> Result<Vec<(&'static str, &'static str)>, String> {
        if let Some(name) = names.iter().find(|name| defects::by_name(name).is_none()) {
            return Err(unknown(name));
        }
        let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
        let all = defects::ALL.iter().filter(|(_, name, _)| wanted(name));
        Ok(all.map(|(_, name, what)| (*name, *what)).collect())
    }

    fn unknown(name: &str) -> String {
        let names: Vec<&str> = defects::ALL.iter().map(|(_, name, _)| *name).collect();
        format!("there is no defect {name}; there are: {}", names.join(", "))
    }
}

#[cfg(not(feature = "defects"))]
mod defect {
    const WAY_OUT: &str = "this program was built without defects: cargo build -p ursa-simulation --features defects";

    pub fn choose(_: &str) -> Result<(), String> {
        Err(WAY_OUT.to_owned())
    }

    pub fn chosen(_: &[String]) -> Result<Vec<(&'static str, &'static str)>, String> {
        Err(WAY_OUT.to_owned())
    }
}

/// What all seeds came to.
#[derive(Debug, Default)]
struct Totals {
    seeds: u64,
    acknowledged: u64,
    reads: u64,
    unknown: u64,
    events: u64,
    simulated: Duration,
    members: Changes,
    failed: BTreeMap<u64, String>,
}

impl Totals {
    fn take(&mut self, report: &Report) {
        self.seeds += 1;
        self.acknowledged += report.done.acknowledged;
        self.reads += report.done.reads;
        self.unknown += report.done.unknown;
        self.events += report.events;
        self.simulated += report.time;
        self.members += report.done.members;
        if let Some(finding) = report.findings.first() {
            self.failed.insert(report.seed, finding.oracle.clone());
        }
        if self.seeds.is_multiple_of(100) {
            println!("{self}");
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} seeds, {} failed; {} writes acknowledged, {} unknown, {} reads, {} events in {:.0} simulated seconds",
            self.seeds,
            self.failed.len(),
            self.acknowledged,
            self.unknown,
            self.reads,
            self.events,
            self.simulated.as_secs_f64()
        )?;
        write!(f, "\n  {}", self.members)?;
        for (seed, oracle) in &self.failed {
            write!(f, "\n  seed {seed}: {oracle}")?;
        }
        Ok(())
    }
}

fn print_verdict(report: &Report) {
    for finding in &report.findings {
        println!("seed {}: {}: {}", report.seed, finding.oracle, finding.what);
    }
    if report.is_good() {
        println!("seed {}: every oracle is content; {:?}", report.seed, report.done);
    }
}

fn print_failure(report: &Report, args: &Seeds) {
    println!("--- seed {} failed; the last of its trace:", report.seed);
    for line in &report.lines {
        println!("{line}");
    }
    print_verdict(report);
    println!(
        "again, with all of its trace: simulate one --seed {} --seconds {}",
        report.seed, args.seconds
    );
}
