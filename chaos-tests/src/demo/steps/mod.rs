//! The steps of the demo, one file each. In: a [`super::Demo`] as the step before left it. Out: actions and checks in its report.
pub mod bring_up;
pub mod canary;
pub mod identity;
pub mod propagation;
pub mod survive;
