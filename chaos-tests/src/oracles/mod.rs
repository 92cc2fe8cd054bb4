//! Judges of what clients saw. In: histories. Out: what must not have happened. Not here: making the histories ([`crate::traffic::registers`]).
pub mod registers;
