//! One data key: seals content for a place, opens it there.
//! In: content, a [`Place`]. Out: nonce, ciphertext, tag; or the content. Invariant: the key leaves this type only wrapped.
use std::fmt;
use std::io;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rand::{Rng, TryRng};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::log::EntryId;

/// Bytes of a key.
pub(super) const KEY: usize = 32;
const TAG: usize = 16;
/// What sealing adds.
pub(crate) const OVERHEAD: usize = NONCE_LEN + TAG;

/// Names a data key, in the files that were sealed with it too. Drawn at random; no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 16]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        u128::from_str_radix(text, 16)
            .ok()
            .filter(|_| text.len() == 32)
            .map(|id| Self(id.to_be_bytes()))
            .ok_or_else(|| format!("{text:?} is no id of a key"))
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where content is written: it opens nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// An entry, and where in the log its record begins.
    Entry { id: EntryId, segment: u64, offset: u64 },
    /// A block of a sealed file.
    Block { file: &'a [u8; 16], number: u64, last: bool },
    /// The value of a key of the cache.
    Value(&'a [u8]),
    /// A data key in the ring.
    Key(KeyId),
}

impl Place<'_> {
    /// No two places have the same bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        let mut put = |name: u8, parts: &[&[u8]]| {
            bytes.extend_from_slice(b"ursa 1 ");
            bytes.push(name);
            parts.iter().for_each(|part| bytes.extend_from_slice(part));
        };
        match self {
            Self::Entry { id, segment, offset } => put(
                b'e',
                &[
                    &id.term.to_le_bytes(),
                    &id.index.to_le_bytes(),
                    &segment.to_le_bytes(),
                    &offset.to_le_bytes(),
                ],
            ),
            Self::Block { file, number, last } => put(b'b', &[&file[..], &number.to_le_bytes(), &[u8::from(*last)]]),
            Self::Value(key) => put(b'v', &[key]),
            Self::Key(id) => put(b'k', &[&id.0]),
        }
        bytes
    }
}

/// The content was not sealed with this key for this place, or has been changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the seal does not fit: it was not written here, or has been changed since")]
pub struct Sealed;

impl From<Sealed> for io::Error {
    fn from(error: Sealed) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// The cipher with a key.
pub(super) struct Cipher(LessSafeKey);

impl Cipher {
    pub(super) fn new(key: &[u8; KEY]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM_SIV, key).expect("the cipher's keys have 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// Appends nonce, ciphertext and tag to `out`.
    ///
    /// # Errors
    /// The content is longer than the cipher takes: 64 GiB.
    pub(super) fn seal(&self, place: &Place<'_>, content: &[u8]) -> io::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::rng().fill_bytes(&mut nonce);
        let mut out = Vec::with_capacity(content.len() + OVERHEAD);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(content);
        let text = out.get_mut(NONCE_LEN..).unwrap_or_default();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(place.bytes()), text)
            .map_err(|_| io::Error::other("the content is too long for the cipher"))?;
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    pub(super) fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, Sealed> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Sealed)?;
        let mut text = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = match self.0.open_in_place(nonce, Aad::from(place.bytes()), &mut text) {
            Ok(content) => content.len(),
            Err(_) => return Err(Sealed),
        };
        text.truncate(len);
        Ok(text)
    }
}

/// See the module's text. What it holds in memory is wiped by the library when it is dropped.
pub(crate) struct DataKey {
    id: KeyId,
    cipher: Cipher,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({}, ***)", self.id)
    }
}

impl DataKey {
    pub(super) fn new(id: KeyId, key: &[u8; KEY]) -> Self {
        Self {
            id,
            cipher: Cipher::new(key),
        }
    }

    /// A key that lives as long as this process: for files that nobody reads after it.
    ///
    /// # Errors
    /// The machine has no randomness.
    pub(crate) fn for_now() -> io::Result<Self> {
        Ok(Self::new(KeyId(*random()?), &*random()?))
    }

    pub(crate) fn id(&self) -> KeyId {
        self.id
    }

    /// Nonce, ciphertext and tag: [`OVERHEAD`] bytes more than the content.
    ///
    /// # Errors
    /// The content is longer than the cipher takes: 64 GiB.
    pub(crate) fn seal(&self, place: &Place<'_>, content: &[u8]) -> io::Result<Vec<u8>> {
        self.cipher.seal(place, content)
    }

    /// Reverses [`DataKey::seal`].
    ///
    /// # Errors
    /// It was not sealed with this key for this place.
    pub(crate) fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, Sealed> {
        self.cipher.open(place, sealed)
    }
}

/// From the operating system; in the simulation that follows from the seed.
pub(super) fn random<const N: usize>() -> io::Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes[..])
        .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}
