//! Calls that may share one answer: who comes while nothing is asked asks at once; who comes meanwhile asks next, all of them together.
//! In: callers. Out: answers. Invariant: whoever gets an answer came before its question was asked.
use std::future::Future;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

type Answer<T> = Shared<BoxFuture<'static, T>>;

/// One kind of question, of which one is under way at a time.
pub(super) struct Share<T: Clone> {
    turn: tokio::sync::Mutex<()>,
    /// Not asked yet: it can still be joined.
    next: parking_lot::Mutex<Option<Answer<T>>>,
}

impl<T: Clone> Default for Share<T> {
    fn default() -> Self {
        Self {
            turn: tokio::sync::Mutex::default(),
            next: parking_lot::Mutex::default(),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Share<T> {
    /// The answer to the next question; `ask` is called if nobody waits for it yet. Any waiter may be dropped at any time: the others
    /// carry the question on.
    pub(super) fn join<F>(self: &Arc<Self>, ask: impl FnOnce() -> F) -> Answer<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut next = self.next.lock();
        if let Some(next) = &*next {
            return next.clone();
        }
        let (share, question) = (self.clone(), ask());
        let asking = async move {
            let _turn = share.turn.lock().await;
            // From here on it is being asked: who comes now needs another one.
            share.next.lock().take();
            question.await
        };
        let asking = asking.boxed().shared();
        *next = Some(asking.clone());
        asking
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// Answers with the number of the question, as often as it is let.
    fn asked(count: &Arc<AtomicU32>, let_go: &Arc<Semaphore>) -> impl Future<Output = u32> + Send + use<> {
        let (count, let_go) = (count.clone(), let_go.clone());
        async move {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let_go.acquire().await.unwrap().forget();
            number
        }
    }

    #[tokio::test]
    async fn who_comes_while_one_is_asked_shares_the_next() {
        let (share, count, let_go) = (Arc::new(Share::default()), Arc::default(), Arc::new(Semaphore::new(0)));
        let mut first = share.join(|| asked(&count, &let_go));
        assert!((&mut first).now_or_never().is_none());
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let mut others: Vec<_> = (0..10).map(|_| share.join(|| asked(&count, &let_go))).collect();
        assert!(others.iter_mut().all(|other| other.now_or_never().is_none()));
        let_go.add_permits(1);
        assert_eq!(first.await, 1);
        // The one that would have asked goes; the others still get their answer.
        drop(others.swap_remove(0));
        let_go.add_permits(1);
        assert_eq!(futures::future::join_all(others).await, [2; 9]);
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_question_that_nobody_waits_for_keeps_nobody() {
        let (share, count, let_go) = (Arc::new(Share::default()), Arc::default(), Arc::new(Semaphore::new(2)));
        drop(share.join(|| asked(&count, &let_go)));
        let mut half = share.join(|| asked(&count, &Arc::new(Semaphore::new(0))));
        assert_eq!((&mut half).now_or_never(), Some(1), "it takes up the one that was never asked");
        assert_eq!(share.join(|| asked(&count, &let_go)).await, 2);
    }
}
