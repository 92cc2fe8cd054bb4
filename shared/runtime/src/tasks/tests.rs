//! What the end of a task does, and how the process stops.
use super::*;
use tokio::time::Instant;

const GRACE: Duration = Duration::from_secs(10);

/// Not the process's own signals: all tests of this process would hear them.
struct NoSignal;

impl SignalSource for NoSignal {
    fn next(&mut self) -> impl Future<Output = &'static str> + Send {
        std::future::pending()
    }
}

struct Always(&'static str);

impl SignalSource for Always {
    fn next(&mut self) -> impl Future<Output = &'static str> + Send {
        std::future::ready(self.0)
    }
}

async fn until_cancelled(cancel: CancellationToken) {
    cancel.cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_needed_task_stops_the_process() {
    let tasks = Tasks::new();
    tasks.spawn("other", OnExit::Shutdown, until_cancelled);
    tasks.spawn("needed", OnExit::Shutdown, |_| async {});
    let status = tasks.run_with(GRACE, NoSignal).await;
    assert_eq!(status.reason, StopReason::Ended { task: "needed".into() });
    assert_eq!((status.code(), status.still_running.len(), status.forced), (1, 0, false));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_another_task_does_not() {
    let tasks = Tasks::new();
    tasks.spawn("may-end", OnExit::Ignore, |_| async {});
    tasks.spawn_fallible("may-fail", OnExit::Ignore, |_| async { Err(std::io::Error::other("no")) });
    tasks.idle().await;
    assert_eq!(tasks.stop_reason(), None);
    assert!(!tasks.cancel_token().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_panic_stops_the_process_and_is_counted() {
    let tasks = Tasks::new();
    tasks.spawn("careless", OnExit::Ignore, |_| async { panic!("index {}", 7) });
    let handle = tasks.clone();
    let status = tasks.run_with(GRACE, NoSignal).await;
    assert_eq!(
        status.reason,
        StopReason::Panicked {
            task: "careless".into(),
            message: "index 7".into()
        }
    );
    assert_eq!((status.code(), handle.panics()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_contained_panic_is_counted_and_stops_nothing() {
    let tasks = Tasks::new();
    tasks.spawn("one-peer", OnExit::Contain, |_| async { panic!("bad peer") });
    tasks.idle().await;
    assert_eq!((tasks.panics(), tasks.stop_reason()), (1, None));
}

#[tokio::test(start_paused = true)]
async fn a_failure_carries_its_chain() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot listen")]
    struct Failure(#[source] std::io::Error);
    let tasks = Tasks::new();
    tasks.spawn_fallible("server", OnExit::Shutdown, |_| async {
        Err(Failure(std::io::Error::other("in use")))
    });
    let status = tasks.run_with(GRACE, NoSignal).await;
    assert_eq!(
        status.reason,
        StopReason::Failed {
            task: "server".into(),
            error: "cannot listen: in use".into()
        }
    );
}

#[tokio::test(start_paused = true)]
async fn tasks_that_do_not_end_are_named_after_the_grace() {
    let tasks = Tasks::new();
    tasks.spawn("obedient", OnExit::Shutdown, until_cancelled);
    tasks.spawn("stuck", OnExit::Ignore, |_| std::future::pending());
    tasks.cancel_token().cancel();
    let start = Instant::now();
    let status = tasks.run_with(GRACE, NoSignal).await;
    assert_eq!(status.reason, StopReason::Requested);
    assert_eq!((status.still_running, start.elapsed()), (vec!["stuck".to_owned()], GRACE));
}

#[tokio::test(start_paused = true)]
async fn a_child_ends_alone_and_with_its_parent() {
    let tasks = Tasks::new();
    let (first, second) = (tasks.child(), tasks.child());
    first.spawn("first", OnExit::Shutdown, until_cancelled);
    second.spawn("second", OnExit::Shutdown, until_cancelled);
    assert_eq!(tasks.running(), ["first", "second"]);
    first.shutdown(GRACE).await;
    assert_eq!((tasks.running(), tasks.stop_reason()), (vec!["second".to_owned()], None));
    tasks.shutdown(GRACE).await;
    assert!(second.running().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_cancels_its_own_token_harms_no_other() {
    let tasks = Tasks::new();
    tasks.spawn("selfish", OnExit::Ignore, |cancel| async move { cancel.cancel() });
    tasks.idle().await;
    assert!(!tasks.cancel_token().is_cancelled());
}

#[tokio::test]
async fn a_thread_is_waited_for_and_its_panic_counted() {
    let tasks = Tasks::new();
    tasks.spawn_thread("disk-loop", OnExit::Contain, |_| panic!("disk")).unwrap();
    tasks.idle().await;
    assert_eq!((tasks.panics(), tasks.running().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_signal_stops_and_a_second_one_does_not_wait() {
    let tasks = Tasks::new();
    tasks.spawn("stuck", OnExit::Ignore, |_| std::future::pending());
    let start = Instant::now();
    let status = tasks.run_with(GRACE, Always("SIGTERM")).await;
    assert_eq!(status.reason, StopReason::Signal("SIGTERM"));
    assert_eq!((status.forced, start.elapsed()), (true, Duration::ZERO));
    assert_eq!((status.still_running.clone(), status.code()), (vec!["stuck".to_owned()], 2));
}
