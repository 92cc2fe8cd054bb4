//! Encryption at rest: what the store writes is sealed under a data key of this node's folder, below Raft.
//! In: content and the place it is written to. Out: bytes that tell nothing without the key, and open only at that place.
//! Invariants: every entry, every block of a snapshot and every value of the cache is sealed, whatever kind it is, so that none can be
//! forgotten; checksums lie outside, so that a torn tail or damage is told apart from a wrong key; no key is ever printed or logged.
//!
//! - [`key`]: one key, seal and open. - [`kek`]: the key that wraps the data keys. - [`ring`]: the data keys of a folder, in `keys.json`.
//! - [`file`]: a whole file in sealed blocks. Rotation is `store::encryption`'s, with `log::rewrite`.
//!
//! The cipher is AES-256-GCM-SIV (RFC 8452) with a random nonce of 96 bits for each message, and the message's place (what it is, term and
//! index, segment and offset, file and block) as associated data. Why no nonce needs to be remembered, and none can be used up:
//!
//! - A counter would have to survive crashes, and would repeat all the same when a folder is restored or copied and both go on, or when the
//!   tail of the log is cut and written anew at the same offset. Random nonces have no state. That they never repeat is a matter of chance,
//!   and of the machine's random generator, which a restored image of a virtual machine may rewind.
//! - So the cipher is one for which a repeat is no catastrophe: under GCM it reveals the key of the authentication and the XOR of both
//!   contents; under GCM-SIV, where nonce, place and content together decide the key stream, it reveals only whether all three are the same.
//!   Two messages with one nonce at two places have nothing to do with each other.
//! - 100,000 records a second for ten years are 2^45 messages: the chance that any nonce has repeated by then is below 2^-7, and nothing
//!   but the above would follow. No key needs to be changed because it is worn out; `global-cp encryption rotate` is for keys that
//!   somebody may have seen.
pub(crate) mod file;
mod kek;
mod key;
mod ring;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;

pub use kek::{BadKek, Kek};
pub(crate) use key::{DataKey, OVERHEAD, Place};
pub use key::{KeyId, Sealed};
pub use ring::Keys;

/// How the data keys of a folder are wrapped.
#[derive(Clone, Debug, Default)]
pub struct Encryption {
    /// The key-encryption key. `None`: one that is made at first start and kept in the folder, in [`KEK_FILE`].
    pub kek: Option<Kek>,
    /// Such keys of before, which may unwrap what is there; it is wrapped anew at open.
    pub previous: Vec<Kek>,
}

/// The key-encryption key that is made when none is given.
pub const KEK_FILE: &str = "encryption.key";
/// The wrapped data keys.
pub const RING_FILE: &str = "keys.json";

/// Why nothing can be decrypted. Each text says the way out; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// The key-encryption key that was made here is gone.
    #[error(
        "{} is gone, but the data keys in {} are wrapped by it (key {wanted}): put that key back, or give it with encryption.key_file; without \
         it nothing here can be read: remove the folder and let the node join the group as a new member, or restore a backup",
        path.display(), ring.display()
    )]
    KekLost { path: PathBuf, ring: PathBuf, wanted: String },
    /// None of the given keys wraps the ring.
    #[error(
        "the data keys in {} are wrapped by the key-encryption key {wanted}, but this node was given {given}: give that key with \
         encryption.key_file, or with encryption.previous_key_files to replace it; if it is lost, remove the folder and let the node join the \
         group as a new member, or restore a backup",
        ring.display()
    )]
    WrongKek { ring: PathBuf, wanted: String, given: String },
    /// The file holds no key.
    #[error("{} holds no key-encryption key: {reason}", path.display())]
    BadKek { path: PathBuf, reason: BadKek },
    /// The ring is gone.
    #[error(
        "{} is gone, but this node has encrypted its data with the keys in it: restore that file, or remove the folder and let the node join \
         the group as a new member, or restore a backup",
        ring.display()
    )]
    RingLost { ring: PathBuf },
    /// The ring is not what was written.
    #[error(
        "{} is damaged ({reason}): restore that file, or remove the folder and let the node join the group as a new member, or restore a backup",
        ring.display()
    )]
    RingDamaged { ring: PathBuf, reason: String },
    #[error("{} has format {found}, this program knows up to {known}: run the version that wrote it, or a newer one", ring.display())]
    Newer { ring: PathBuf, found: u32, known: u32 },
    /// Encryption is switched off for a folder that has it.
    #[error(
        "encryption.enabled is false, but the data in this folder is encrypted: switch it on again; a folder is decrypted only by restoring a \
         backup of it into a new one"
    )]
    SwitchedOff,
    /// Something was sealed with a key that the ring does not have.
    #[error(
        "it was encrypted with the data key {id}, which is not in {RING_FILE}: that file, or this one, is from another time or folder; put \
         together what belongs together, or remove the folder and let the node join the group as a new member, or restore a backup"
    )]
    UnknownKey { id: KeyId },
    /// Too many rotations at once.
    #[error(
        "{keys} data keys are in use and rotations under way: wait until the older ones are dropped, `global-cp encryption status` shows it"
    )]
    Busy { keys: usize },
    /// Encryption is off.
    #[error("encryption is switched off on this node: there is no key to rotate")]
    Off,
}
