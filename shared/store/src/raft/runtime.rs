//! The async runtime that openraft runs on: tokio's, with one difference.
//! openraft gathers reports of finished I/O for a microsecond before it looks at them. tokio's timers go by the millisecond, so that
//! microsecond becomes one or two milliseconds on the way of a write, many times what the write itself takes.
//! Here a sleep below the timer's resolution gives way to the other tasks once instead.
//! Invariant: no sleep that openraft means in earnest (ticks, backoff, deadlines: all of 10 ms and more) is shortened.
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

#[allow(deprecated, reason = "its new home is one more crate to pin")]
use openraft::TokioRuntime;
use openraft::type_config::AsyncRuntime;

/// tokio's timers are no finer.
const RESOLUTION: Duration = Duration::from_millis(1);

/// See the module's text.
#[allow(deprecated, reason = "as above")]
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

#[allow(deprecated, reason = "as above")]
type Tokio = TokioRuntime;

/// A sleep, or a single step aside.
pub enum Nap {
    Aside(bool),
    Sleep(Pin<Box<<Tokio as AsyncRuntime>::Sleep>>),
}

impl Future for Nap {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self {
            Self::Aside(true) => Poll::Ready(()),
            Self::Aside(done) => {
                *done = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Self::Sleep(sleep) => sleep.as_mut().poll(cx),
        }
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: openraft::OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = Nap;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + openraft::OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Tokio as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = <Tokio as AsyncRuntime>::Watch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: openraft::OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + openraft::OptionalSend + 'static,
        T::Output: openraft::OptionalSend + 'static,
    {
        Tokio::spawn(future)
    }

    fn sleep(duration: Duration) -> Nap {
        if duration < RESOLUTION {
            Nap::Aside(false)
        } else {
            Nap::Sleep(Box::pin(Tokio::sleep(duration)))
        }
    }

    fn sleep_until(deadline: Self::Instant) -> Nap {
        let now = <Self::Instant as openraft::Instant>::now();
        if deadline < now + RESOLUTION {
            Nap::Aside(false)
        } else {
            Nap::Sleep(Box::pin(Tokio::sleep_until(deadline)))
        }
    }

    fn timeout<R, F: Future<Output = R> + openraft::OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + openraft::OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        Tokio::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Tokio::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(Tokio::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}
