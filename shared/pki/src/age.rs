//! Files encrypted to recipients, in the format of age (`age -d` opens them): X25519 recipients, no passphrases, no armor.
//! In: recipients and bytes, or an identity and a file. Out: the file, or the bytes.
//! Invariants: nothing that was changed, cut short or reordered is ever given out as whole; memory is bounded by one chunk; the only
//! cryptography is aws-lc-rs, as everywhere.
//! Source: the specification at age-encryption.org/v1 (C2SP `age.md`). Not by the crate `age`: it brings a second implementation of all
//! primitives, and sixty crates of translations of its messages. `tests` has files made by it.
//!
//! - [`keys`]: recipients and identities as text. - `header`: the key of the file, once for each recipient. - `stream`: the content.
mod header;
mod keys;
mod stream;
#[cfg(test)]
mod tests;

use std::io;

pub use keys::{Identity, Recipient};
pub use stream::{Reader, Writer};

/// Recipients of one file, at the most.
pub const MAX_RECIPIENTS: usize = 64;

/// What is wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{given:?} is no age recipient ({reason}): one looks like age1..., `global-cp backup keys` makes one")]
    NoRecipient { given: String, reason: String },
    /// The text is not shown: it may be a key with a mistake in it.
    #[error("there is no age identity in it ({reason}): a line of it looks like AGE-SECRET-KEY-1...")]
    NoIdentity { reason: String },
    #[error("between 1 and {MAX_RECIPIENTS} recipients are needed, not {0}")]
    Recipients(usize),
    /// Not an age file, or one of a later version.
    #[error("it is not a file of age version 1 ({0})")]
    Format(String),
    #[error("it is encrypted to {0} other recipients: none of them belongs to the identities that were given")]
    NotForUs(usize),
    /// Some key fits, but not what follows.
    #[error("it was changed or damaged: {0}")]
    Damaged(&'static str),
    #[error("it ends too early: it was cut short, or its end was changed")]
    CutShort,
    #[error("random bytes, or a key that the library refuses")]
    Crypto,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(error) => error,
            Error::CutShort => Self::new(io::ErrorKind::UnexpectedEof, error),
            error => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

fn derive(secret: &[u8], salt: &[u8], info: &[u8]) -> Result<[u8; 32], Error> {
    let prk = aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, salt).extract(secret);
    let mut out = [0; 32];
    let info = [info];
    let okm = prk.expand(&info, aws_lc_rs::hkdf::HKDF_SHA256).map_err(|_| Error::Crypto)?;
    okm.fill(&mut out).map_err(|_| Error::Crypto)?;
    Ok(out)
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Crypto)?;
    Ok(bytes)
}
