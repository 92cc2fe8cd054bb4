//! The writer in simulated time: a task instead of a thread, and syncs that take as long as the disk says.
//! In: jobs. Out: their callbacks. Invariant: as on the thread, what collects while one batch syncs is the next batch.
use tokio::sync::{mpsc, watch};
use ursa_runtime::lease::Deadline;

use super::Item;
use super::handle::gather;
use super::writer::{Job, Op, Writer};

/// Runs the writer beside its callers.
#[allow(clippy::disallowed_methods, reason = "it ends with the last handle to the log, as the thread does")]
pub(super) fn spawn<E: Item>(writer: Writer<E>, queue: mpsc::Receiver<Job<E>>, running: watch::Sender<()>) {
    tokio::spawn(run(writer, queue, running));
}

async fn run<E: Item>(mut writer: Writer<E>, mut queue: mpsc::Receiver<Job<E>>, running: watch::Sender<()>) {
    let limit = writer.options.batch_bytes;
    while let Some(first) = queue.recv().await {
        let jobs = gather(first, &mut queue, limit);
        let closes = jobs.iter().any(|job| matches!(job.op, Op::Close));
        if let Some(time) = writer.disk.sync_time() {
            Deadline::after(time).passed().await;
        }
        writer.process(jobs);
        if closes {
            break;
        }
    }
    drop(writer.guard.take());
    drop(running);
}
