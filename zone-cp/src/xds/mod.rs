//! Delta ADS: the protocol as a pure machine. Beside it the messages of health discovery.

pub mod hds;
pub mod machine;
