//! Delta ADS: the protocol as a pure machine, and the server around it.

pub mod machine;
