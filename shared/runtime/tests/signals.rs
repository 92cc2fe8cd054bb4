//! Real signals, in a process of its own.
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use ursa_runtime::{OnExit, StopReason, Tasks};

#[tokio::test]
async fn a_signal_stops_in_order_and_a_second_one_at_once() {
    let tasks = Tasks::new();
    tasks.spawn("stuck", OnExit::Ignore, |_| std::future::pending());
    let cancel = tasks.cancel_token();
    let run = tokio::spawn(tasks.run(Duration::from_secs(600)));
    // The handlers are installed when `run` is first polled; a signal before that would end the test.
    tokio::task::yield_now().await;
    raise(Signal::SIGINT).unwrap();
    cancel.cancelled().await;
    raise(Signal::SIGTERM).unwrap();
    let status = run.await.unwrap();
    assert_eq!(status.reason, StopReason::Signal("SIGINT"));
    assert_eq!(
        (status.forced, status.still_running.clone(), status.code()),
        (true, vec!["stuck".to_owned()], 2)
    );
}
