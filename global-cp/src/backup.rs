//! `global-cp backup`: everything a running control plane holds, as one encrypted file; the keys for it; what such a file holds.
//! In: a running control plane's API; recipients. Out: a file under its final name only when it is whole.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use hyper::HeaderMap;
use serde_json::json;
use ursa_model::Timestamp;
use ursa_pki::age::{Identity, Recipient};
use ursa_runtime::fs;
use ursa_store::backup::{Backup, Head};

use crate::admin::Access;

/// Some hundred keys.
const MAX_KEYS: u64 = 64 * 1024;
/// Progress is told after so many bytes.
const STEP: u64 = 16 * 1024 * 1024;

/// Flags of `global-cp backup`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    take: Take,
}

/// What else there is to do.
#[derive(Subcommand)]
enum Command {
    /// Make a key pair: an identity file (mode 0600) that opens backups, and the recipient to encrypt them to, on stdout.
    ///
    /// Keep the file away from the control plane: whoever has it can read every Secret in every backup that is encrypted to it.
    Keys(Keys),
    /// Show what a backup holds, and whether it is whole.
    Inspect(Inspect),
}

#[derive(clap::Args)]
struct Take {
    /// To whom it is encrypted: an age recipient, as `backup keys` prints one. May be given several times: each of them can open it.
    #[arg(long = "recipient", value_name = "AGE1...")]
    recipients: Vec<String>,
    /// File with recipients, one on each line.
    #[arg(long, value_name = "FILE")]
    recipient_file: Option<PathBuf>,
    /// The file to write; `-` for stdout. Nothing has this name before it is whole, and nothing that exists is overwritten.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

#[derive(clap::Args)]
struct Keys {
    /// The identity file to write; it must not exist.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(clap::Args)]
struct Inspect {
    /// The backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Identity file that opens it.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
}

/// Runs it and says what came of it.
///
/// # Errors
/// The control plane cannot be asked, or refuses; a file cannot be written, or is no backup; each with the way out.
pub async fn run(args: &Args) -> Result<()> {
    match &args.command {
        None => args.take.run().await,
        Some(Command::Keys(keys)) => keys.run(),
        Some(Command::Inspect(inspect)) => inspect.run(),
    }
}

impl Keys {
    fn run(&self) -> Result<()> {
        if self.out.symlink_metadata().is_ok() {
            bail!("{} exists already and is left alone: name another file", self.out.display());
        }
        let identity = Identity::generate()?;
        let text = format!("# public key: {}\n{}\n", identity.recipient(), identity.secret_text());
        fs::write_atomic(&self.out, text.as_bytes(), fs::PRIVATE).with_context(|| format!("cannot write {}", self.out.display()))?;
        println!("{}", identity.recipient());
        eprintln!(
            "The identity is in {}. Keep it safe, and away from the control plane: without it no backup can be opened.",
            self.out.display()
        );
        Ok(())
    }
}

/// The identities of a file.
pub(crate) fn identities(path: &Path) -> Result<Vec<Identity>> {
    let read = fs::read_bounded(path, MAX_KEYS).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8(read)
        .ok()
        .with_context(|| format!("{} is not text", path.display()))?;
    Identity::read_all(&text).with_context(|| format!("{}", path.display()))
}

/// Opens a backup, to be read.
pub(crate) fn open(file: &Path, identity: &Path) -> Result<Backup<BufReader<File>>> {
    let identities = identities(identity)?;
    let opened = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    Backup::open(&identities, BufReader::with_capacity(1 << 20, opened)).with_context(|| format!("{}", file.display()))
}

/// Lines for people.
pub(crate) fn shown(head: &Head) -> String {
    let kinds: Vec<String> = head.kinds.iter().map(|(kind, count)| format!("  {count} {kind}\n")).collect();
    let origin = head.origin.as_ref().map(|origin| {
        format!(
            "goes on from history {} at revision {} ({} at {})\n",
            origin.history,
            origin.revision,
            origin.by.as_str(),
            origin.at.rfc3339()
        )
    });
    format!(
        "history {} at revision {} (changed {}), with the past from revision {} on\n{}taken {} by node {} of {:?}, version {}, feature level {}\n{} resources:\n{}",
        head.history,
        head.revision,
        head.changed.rfc3339(),
        head.oldest,
        origin.unwrap_or_default(),
        head.taken.rfc3339(),
        head.node,
        head.members.keys().collect::<Vec<_>>(),
        head.program,
        head.feature_level,
        head.resources(),
        kinds.concat()
    )
}

impl Inspect {
    fn run(&self) -> Result<()> {
        let backup = open(&self.file, &self.identity)?;
        let size = self.file.metadata().map(|meta| meta.len()).unwrap_or_default();
        print!("{}", shown(&backup.head));
        let content = backup.check().with_context(|| format!("{}", self.file.display()))?;
        println!("{size} bytes, {content} of them content. It is whole.");
        Ok(())
    }
}

impl Take {
    fn recipients(&self) -> Result<Vec<Recipient>> {
        let mut texts = self.recipients.clone();
        if let Some(path) = &self.recipient_file {
            let read = fs::read_bounded(path, MAX_KEYS).with_context(|| format!("cannot read {}", path.display()))?;
            let text = String::from_utf8(read)
                .ok()
                .with_context(|| format!("{} is not text", path.display()))?;
            let lines = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'));
            texts.extend(lines.map(str::to_owned));
        }
        let parsed = texts.iter().map(|text| text.parse());
        let recipients: Vec<Recipient> = parsed.collect::<Result<_, _>>()?;
        if recipients.is_empty() {
            bail!(
                "--recipient or --recipient-file is needed: a backup holds every Secret and is always encrypted; `global-cp backup keys` makes a key"
            );
        }
        Ok(recipients)
    }

    async fn run(&self) -> Result<()> {
        let recipients = self.recipients()?;
        let Some(out) = &self.out else {
            bail!("--out is needed: the file to write, or - for stdout");
        };
        let admin = self.access.open()?;
        let texts: Vec<String> = recipients.iter().map(ToString::to_string).collect();
        let body = json!({ "recipients": texts });
        if out.as_os_str() == "-" {
            if io::stdout().is_terminal() {
                bail!("a backup is binary: name a file with --out, or redirect stdout");
            }
            let mut stdout = BufWriter::with_capacity(1 << 20, io::stdout().lock());
            let mut told = Told::default();
            let take = |piece: &[u8]| told.count(piece).and_then(|()| Ok(stdout.write_all(piece)?));
            admin.download("/cluster/backup", &body, begun, take).await?;
            return stdout.flush().context("cannot write to stdout");
        }
        let mut file = Aside::create(out)?;
        let mut told = Told::default();
        let take = |piece: &[u8]| told.count(piece).and_then(|()| file.write(piece));
        admin.download("/cluster/backup", &body, begun, take).await?;
        file.finish()?;
        eprintln!("{} bytes are in {}.", told.bytes, out.display());
        Ok(())
    }
}

fn begun(headers: &HeaderMap) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("?").to_owned();
    eprintln!(
        "History {} at revision {}, {} resources.",
        text("ursa-backup-history"),
        text("ursa-backup-revision"),
        text("ursa-backup-resources")
    );
}

/// What was told of the progress.
#[derive(Default)]
struct Told {
    bytes: u64,
    told: u64,
}

impl Told {
    fn count(&mut self, piece: &[u8]) -> Result<()> {
        self.bytes += piece.len() as u64;
        if self.bytes - self.told >= STEP {
            self.told = self.bytes;
            eprintln!("{} MiB ...", self.bytes >> 20);
        }
        Ok(())
    }
}

/// A file that gets its name when it is whole; what is left before that is removed.
struct Aside {
    path: PathBuf,
    aside: PathBuf,
    file: BufWriter<File>,
}

impl Aside {
    fn create(path: &Path) -> Result<Self> {
        if path.symlink_metadata().is_ok() {
            bail!("{} exists already and is left alone: name another file", path.display());
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{}-{}.part", std::process::id(), Timestamp::now().0));
        let aside = PathBuf::from(aside);
        let file = File::options().write(true).create_new(true).mode(fs::PRIVATE).open(&aside);
        let file = file.with_context(|| format!("cannot write {}", aside.display()))?;
        Ok(Self {
            path: path.to_owned(),
            aside,
            file: BufWriter::with_capacity(1 << 20, file),
        })
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.file
            .write_all(piece)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn finish(mut self) -> Result<()> {
        let aside = self.aside.clone();
        let named = (|| {
            self.file.flush()?;
            self.file.get_ref().sync_all()?;
            // Unlike a rename this overwrites nothing; not every file system has it.
            match std::fs::hard_link(&aside, &self.path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => std::fs::rename(&aside, &self.path)?,
                linked => linked?,
            }
            let dir = self
                .path
                .parent()
                .filter(|dir| !dir.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            File::open(dir)?.sync_all()
        })();
        named.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.aside);
    }
}
