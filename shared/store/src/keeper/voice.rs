//! When a leader that nobody answers falls silent, and when it speaks again. Its messages alone keep the others from electing one that
//! hears them.
//! In: what was seen at each tick. Out: what to do. Pure.
//! Invariants: a pause of this process is no silence of the others: what is too old must be so over several ticks, between which this
//! process ran and called; once silent it stays so for as long as the others need to elect somebody, whatever answers greetings; once it
//! speaks again it is heard out: it gets as long to be answered as a leader that was just elected.
use std::time::Duration;

use tokio::time::Instant;

use crate::raft::Timings;

/// Ticks in a row at which the last answer of a majority was older than a lease. A tick is a heartbeat's period.
const DEAF_TICKS: u32 = 3;
/// Periods for votes and the first entry, after the others' leases and election timeouts.
const VOTES: u32 = 3;

/// How long is long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// After it without an answer a leader takes no writes, so silence takes nothing from anybody.
    lease: Duration,
    /// Longest time without an answer.
    deaf: Duration,
    /// Shortest silence.
    silence: Duration,
}

impl Limits {
    pub(super) fn of(timings: &Timings) -> Self {
        let lease = crate::raft::lease(timings);
        let timings = timings.sane();
        Self {
            lease,
            deaf: lease * 3 / 2,
            silence: lease + timings.election_max + timings.heartbeat * VOTES,
        }
    }
}

/// What a tick saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) now: Instant,
    /// The term in which this node leads, if it does.
    pub(super) leads: Option<u64>,
    /// Since the newest moment at which a majority was in contact.
    pub(super) age: Duration,
    /// It has begun to hand over, so it takes no writes any more, whoever answers.
    pub(super) gave_up: bool,
    /// A majority answers greetings, which keep nobody from anything.
    pub(super) greeted: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    GoOn,
    /// Send nothing as a leader from now on, and tell the others to elect another one.
    FallSilent,
    /// Ask the others whether they are there.
    Greet,
    Speak,
}

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(super) enum Voice {
    Follows,
    Speaks { term: u64, since: Instant, deaf_ticks: u32 },
    Silent { term: u64, since: Instant },
}

impl Voice {
    pub(super) fn tick(&mut self, limits: &Limits, seen: Seen) -> Act {
        let now = seen.now;
        if seen.leads != self.term() {
            let was_silent = matches!(self, Self::Silent { .. });
            *self = seen.leads.map_or(Self::Follows, |term| Self::spoken(term, now));
            return if was_silent { Act::Speak } else { Act::GoOn };
        }
        match self {
            Self::Follows => Act::GoOn,
            Self::Speaks { term, since, deaf_ticks } => {
                let spoken = now.saturating_duration_since(*since);
                let unheard = seen.age.min(spoken);
                *deaf_ticks = if unheard > limits.lease { deaf_ticks.saturating_add(1) } else { 0 };
                let deaf = *deaf_ticks >= DEAF_TICKS && unheard > limits.deaf;
                if deaf || seen.gave_up && spoken > limits.deaf {
                    *self = Self::Silent { term: *term, since: now };
                    return Act::FallSilent;
                }
                Act::GoOn
            }
            Self::Silent { since, .. } if now.saturating_duration_since(*since) < limits.silence => Act::GoOn,
            Self::Silent { term, .. } if seen.greeted => {
                *self = Self::spoken(*term, now);
                Act::Speak
            }
            Self::Silent { .. } => Act::Greet,
        }
    }

    /// The term in which it leads, as far as the last tick knew.
    fn term(&self) -> Option<u64> {
        match self {
            Self::Follows => None,
            Self::Speaks { term, .. } | Self::Silent { term, .. } => Some(*term),
        }
    }

    fn spoken(term: u64, since: Instant) -> Self {
        Self::Speaks {
            term,
            since,
            deaf_ticks: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(80);

    /// A leader with the default timings.
    struct Leader {
        voice: Voice,
        limits: Limits,
        now: Instant,
        answered: Instant,
        term: u64,
    }

    impl Leader {
        fn elected() -> Self {
            let now = Instant::now();
            let mut leader = Self {
                voice: Voice::Follows,
                limits: Limits::of(&Timings::default()),
                now,
                answered: now,
                term: 7,
            };
            assert_eq!(leader.tick(true, false), Act::GoOn);
            leader
        }

        fn tick(&mut self, leads: bool, greeted: bool) -> Act {
            self.now += TICK;
            let seen = Seen {
                now: self.now,
                leads: leads.then_some(self.term),
                age: self.now - self.answered,
                gave_up: false,
                greeted,
            };
            self.voice.tick(&self.limits, seen)
        }

        /// Ticks without answers until something is to be done; how long that took.
        fn until(&mut self, act: Act, greeted: bool) -> Duration {
            let begin = self.now;
            for _ in 0..1000 {
                match self.tick(true, greeted) {
                    Act::GoOn => {}
                    now => {
                        assert_eq!(now, act);
                        return self.now - begin;
                    }
                }
            }
            panic!("never {act:?}");
        }
    }

    #[test]
    fn a_deaf_leader_is_silent_after_a_lease_and_a_half() {
        let mut leader = Leader::elected();
        let after = leader.until(Act::FallSilent, false);
        assert!(
            after > leader.limits.deaf - TICK && after < leader.limits.deaf + 2 * TICK,
            "{after:?}"
        );
    }

    #[test]
    fn a_pause_of_the_process_is_no_deafness() {
        let mut leader = Leader::elected();
        for pause in [1, 10, 3600] {
            leader.now += Duration::from_secs(pause);
            for _ in 0..2 {
                assert_eq!(leader.tick(true, false), Act::GoOn, "its calls are on their way");
            }
            leader.answered = leader.now;
            assert_eq!(leader.tick(true, false), Act::GoOn);
        }
        leader.now += Duration::from_secs(10);
        assert_eq!(leader.until(Act::FallSilent, false), TICK * DEAF_TICKS);
    }

    #[test]
    fn silence_lasts_until_the_others_could_elect_whoever_answers() {
        let mut leader = Leader::elected();
        leader.until(Act::FallSilent, true);
        let timings = Timings::default();
        assert!(leader.until(Act::Speak, true) > 2 * timings.election_max);
        leader.until(Act::FallSilent, false);
        leader.until(Act::Greet, false);
        assert_eq!(leader.tick(true, false), Act::Greet, "until they answer");
        assert_eq!(leader.tick(true, true), Act::Speak);
    }

    /// Without this a leader that is answered a little late falls silent again at the next tick, and again, for ever; and where its log is
    /// the longest, nobody else can be elected meanwhile.
    #[test]
    fn who_speaks_again_is_heard_out() {
        let mut leader = Leader::elected();
        for _ in 0..3 {
            leader.until(Act::FallSilent, false);
            leader.until(Act::Speak, true);
            assert_eq!(leader.tick(true, true), Act::GoOn);
            assert_eq!(leader.tick(true, true), Act::GoOn);
        }
        let spoke = leader.now;
        leader.until(Act::FallSilent, false);
        assert!(leader.now - spoke > leader.limits.lease);
    }

    #[test]
    fn another_leader_ends_the_silence_and_answers_prevent_it() {
        let mut leader = Leader::elected();
        leader.until(Act::FallSilent, false);
        assert_eq!(leader.tick(false, false), Act::Speak);
        assert_eq!(leader.tick(false, false), Act::GoOn);
        // Elected anew between two ticks: nobody has heard it yet.
        leader.until(Act::FallSilent, false);
        leader.term += 2;
        assert_eq!(leader.tick(true, false), Act::Speak);
        assert_eq!(leader.tick(true, false), Act::GoOn);
        for _ in 0..100 {
            leader.answered = leader.now;
            assert_eq!(leader.tick(true, false), Act::GoOn);
        }
    }

    #[test]
    fn who_gave_up_its_lead_speaks_only_to_bring_the_others_up_to_date() {
        let mut leader = Leader::elected();
        let mut silent = 0;
        for _ in 0..200 {
            leader.now += TICK;
            leader.answered = leader.now;
            let seen = Seen {
                now: leader.now,
                leads: Some(1),
                age: Duration::ZERO,
                gave_up: true,
                greeted: true,
            };
            silent += u32::from(leader.voice.tick(&leader.limits, seen) == Act::FallSilent);
        }
        assert!((5..=15).contains(&silent), "{silent}");
    }
}
