//! The key-encryption key: wraps the data keys, is kept elsewhere.
//! In: text, from a file or the environment. Out: wrapped and unwrapped data keys. Invariant: it is never printed; its id, a part of a
//! hash of it, is.
use std::fmt;
use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::key::{Cipher, DataKey, KEY, KeyId, Place, Sealed, random};

/// Base64 as people write it.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKek {
    #[error("it must be 32 random bytes as base64 or as 64 hexadecimal digits; `openssl rand -base64 32` makes one")]
    NotAKey,
    #[error("all its bytes are the same: that is no random key; `openssl rand -base64 32` makes one")]
    NotRandom,
}

/// See the module's text. Clones share it.
#[derive(Clone)]
pub struct Kek {
    id: Arc<str>,
    cipher: Arc<Cipher>,
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kek({}, ***)", self.id)
    }
}

impl Kek {
    /// Takes 32 bytes as base64 or hexadecimal digits; blanks around them do not count.
    ///
    /// # Errors
    /// See [`BadKek`].
    pub fn parse(text: &str) -> Result<Self, BadKek> {
        let text = text.trim();
        let hex = (text.len() == KEY * 2).then(|| from_hex(text)).flatten();
        let bytes = match hex {
            Some(bytes) => bytes,
            None => Zeroizing::new(BASE64.decode(text).map_err(|_| BadKek::NotAKey)?),
        };
        let key: &[u8; KEY] = bytes.as_slice().try_into().map_err(|_| BadKek::NotAKey)?;
        match key.split_first() {
            Some((first, rest)) if rest.iter().all(|byte| byte == first) => Err(BadKek::NotRandom),
            _ => Ok(Self::new(key)),
        }
    }

    fn new(key: &[u8; KEY]) -> Self {
        let hash = Sha256::new()
            .chain_update(b"ursa key-encryption key\0")
            .chain_update(key)
            .finalize();
        let id: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self {
            id: id.into(),
            cipher: Arc::new(Cipher::new(key)),
        }
    }

    /// A new one, as the text that [`Kek::parse`] takes.
    ///
    /// # Errors
    /// The machine has no randomness.
    pub(super) fn make() -> io::Result<(Self, Zeroizing<String>)> {
        let key = random::<KEY>()?;
        Ok((Self::new(&key), Zeroizing::new(BASE64.encode(&key[..]) + "\n")))
    }

    /// Tells it from others; says nothing about it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A new data key, and its wrapped form.
    pub(super) fn make_key(&self) -> io::Result<(DataKey, Vec<u8>)> {
        let (id, key) = (KeyId(*random()?), random::<KEY>()?);
        let wrapped = self.cipher.seal(&Place::Key(id), &key[..])?;
        Ok((DataKey::new(id, &key), wrapped))
    }

    pub(super) fn unwrap(&self, id: KeyId, wrapped: &[u8]) -> Result<DataKey, Sealed> {
        let key = Zeroizing::new(self.cipher.open(&Place::Key(id), wrapped)?);
        let key: &[u8; KEY] = key.as_slice().try_into().map_err(|_| Sealed)?;
        Ok(DataKey::new(id, key))
    }

    /// Wraps with this key what the other one has wrapped.
    pub(super) fn rewrap(&self, from: &Self, id: KeyId, wrapped: &[u8]) -> io::Result<Vec<u8>> {
        let key = Zeroizing::new(from.cipher.open(&Place::Key(id), wrapped)?);
        self.cipher.seal(&Place::Key(id), &key)
    }
}

fn from_hex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some((digit(high)? << 4) | digit(low)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect::<Option<Vec<u8>>>().map(Zeroizing::new)
}
