//! Faults, one per file, each with a name; scenarios combine them.
//!
//! In: a link, a process, a folder. Out: the fault; its end. Invariant: a fault that has ended leaves nothing behind that its
//! description does not name. Of the network: bytes are never changed, reordered or lost within a connection that lives: what TCP
//! promises holds, as in a real network.
//!
//! | fault | what happens |
//! |---|---|
//! | [`proxy`] | a link is silent, one-way, slow or cut |
//! | [`partition`] | any set of directions between nodes is cut |
//! | [`kill`] | a process ends at once |
//! | [`pause`] | a process stands still |
//! | [`wipe`] | a data folder is lost |
//! | [`damage`] | a file is cut short, changed or gone |
//! | [`disk_full`] | what needs more space fails, reads do not |
//! | [`read_only`] | writes fail, reads do not |
//! | [`slow_sync`] | syncs take longer |
//! | [`failing_sync`] | syncs fail |
//! | [`power_loss`] | what was not synced is gone |
//! | [`clock`] | the time of day jumps |
pub mod clock;
pub mod damage;
pub mod disk_full;
pub mod failing_sync;
pub mod kill;
pub mod partition;
pub mod pause;
pub mod power_loss;
pub mod proxy;
pub mod read_only;
pub mod shim;
pub mod slow_sync;
pub mod wipe;

pub use partition::Partition;
pub use proxy::{Link, Way, Weather};
