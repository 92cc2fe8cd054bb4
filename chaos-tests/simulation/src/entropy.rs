//! Randomness that follows from a seed, for everything on a thread: hash maps, `select!`, election timeouts, ids; and a time of day that
//! stands still.
//! In: a seed per thread. Out: the same bytes in the same order, [`TODAY`]. Threads without a seed get the machine's.
//! Invariant: all of these ask the C library's `getrandom` and `clock_gettime`, which this file takes the place of in the binaries of this
//! crate.
#![allow(
    unsafe_code,
    reason = "the C library calls it with a raw buffer, and a thread without a seed passes it on to the system"
)]
use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};

/// The time of day on a thread with a seed, in seconds since 1970.
pub const TODAY: i64 = 1_780_000_000;

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread draws from `seed`. To be called first on a new thread: what was drawn before stays drawn.
pub fn seed_this_thread(seed: u64) {
    STATE.set(Some(mix(seed ^ 0x5151_9abc_def0_1234)));
}

/// SplitMix64's finalizer.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// In place of the C library's.
///
/// # Safety
/// As `getrandom(2)`: `buf` is `len` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buf: *mut c_void, len: usize, flags: c_uint) -> isize {
    let Some(mut state) = STATE.get() else {
        // SAFETY: the caller's promise, passed on.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buf, len, flags) };
        return isize::try_from(got).unwrap_or(-1);
    };
    let mut done = 0;
    while done < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bytes = mix(state).to_le_bytes();
        let part = bytes.len().min(len - done);
        // SAFETY: `done + part` is at most `len`, which the caller promises to be writable.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buf.cast::<u8>().add(done), part) };
        done += part;
    }
    STATE.set(Some(state));
    isize::try_from(len).unwrap_or(-1)
}

/// In place of the C library's. Only the time of day is another one: time that passes is tokio's business.
///
/// # Safety
/// As `clock_gettime(2)`: `now` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, now: *mut libc::timespec) -> c_int {
    if STATE.get().is_some() && clock == libc::CLOCK_REALTIME && !now.is_null() {
        let today = libc::timespec { tv_sec: TODAY, tv_nsec: 0 };
        // SAFETY: the caller's promise.
        unsafe { now.write(today) };
        return 0;
    }
    // SAFETY: the caller's promise, passed on.
    let done = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, now) };
    c_int::try_from(done).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::hash::BuildHasher;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    fn drawn(seed: Option<u64>) -> (u64, u64) {
        let draw = move || {
            if let Some(seed) = seed {
                seed_this_thread(seed);
            }
            (rand::random(), HashMap::<u8, u8>::new().hasher().hash_one(1))
        };
        std::thread::spawn(draw).join().unwrap()
    }

    #[test]
    fn a_seed_decides_what_a_thread_draws() {
        assert_eq!(drawn(Some(1)), drawn(Some(1)));
        let (other, unseeded) = (drawn(Some(2)), drawn(None));
        let one = drawn(Some(1));
        assert!(one.0 != other.0 && one.1 != other.1);
        assert!(one.0 != unseeded.0 && one.1 != unseeded.1);
    }

    #[test]
    fn the_time_of_day_stands_still_on_a_thread_with_a_seed() {
        let today = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let seeded = std::thread::spawn(move || {
            seed_this_thread(1);
            today()
        });
        assert_eq!(seeded.join().unwrap(), TODAY as u64);
        assert!(today() != TODAY as u64, "the machine's own");
    }
}
