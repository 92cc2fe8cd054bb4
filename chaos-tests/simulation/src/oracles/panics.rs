//! No panic, whoever caught it.
//! In: the panic hook. Out: the texts of the panics of this thread. Invariant: a run's panics are its own: one thread runs one seed.
use std::cell::RefCell;
use std::sync::Once;

use crate::judge::Judge;

thread_local! {
    static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// From now on panics are noted, and not printed.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if WATCHED.get() {
                SEEN.with_borrow_mut(|seen| seen.push(info.to_string().replace('\n', " ")));
            } else {
                usual(info);
            }
        }));
    });
    WATCHED.set(true);
}

thread_local! {
    static WATCHED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Reports what panicked on this thread.
pub fn report(judge: &Judge) {
    for text in SEEN.with_borrow_mut(std::mem::take) {
        judge.report("panics", text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;

    #[tokio::test]
    async fn a_panic_that_was_caught_is_seen() {
        let judge = Judge::new(Trace::new(1));
        watch();
        let _ = std::panic::catch_unwind(|| panic!("of this test"));
        report(&judge);
        assert!(judge.findings()[0].what.contains("of this test"));
        WATCHED.set(false);
    }
}
