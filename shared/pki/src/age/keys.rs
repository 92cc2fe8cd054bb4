//! Keys as text: `age1...` for everybody, `AGE-SECRET-KEY-1...` for whoever may open what was encrypted to it.
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};

use super::{Error, random};

const PUBLIC: &str = "age";
const SECRET: &str = "age-secret-key-";
/// A text that is longer is not shown in an error.
const SHOWN: usize = 80;

/// To whom a file is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recipient(pub(super) [u8; 32]);

/// Who can open it. Its text is a secret; `Debug` does not show it.
pub struct Identity {
    seed: [u8; 32],
    recipient: Recipient,
}

fn decode(text: &str, prefix: &str) -> Result<[u8; 32], String> {
    let checked = CheckedHrpstring::new::<Bech32>(text).map_err(|error| error.to_string())?;
    if checked.hrp() != Hrp::parse(prefix).map_err(|error| error.to_string())? {
        return Err(format!("it does not begin with {prefix}1"));
    }
    let bytes: Vec<u8> = checked.byte_iter().collect();
    <[u8; 32]>::try_from(bytes).map_err(|bytes| format!("a key of {} bytes instead of 32", bytes.len()))
}

fn encode(bytes: &[u8; 32], prefix: &str) -> Result<String, fmt::Error> {
    let hrp = Hrp::parse(prefix).map_err(|_| fmt::Error)?;
    bech32::encode::<Bech32>(hrp, bytes).map_err(|_| fmt::Error)
}

impl FromStr for Recipient {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let refused = |reason: String| Error::NoRecipient {
            given: match text.to_ascii_lowercase().starts_with(SECRET) {
                // What was given by mistake is not spread further.
                true => "AGE-SECRET-KEY-1...".to_owned(),
                false => text.chars().take(SHOWN).collect(),
            },
            reason,
        };
        let key = decode(text, PUBLIC).map_err(refused)?;
        let recipient = Self(key);
        // A point with which no secret can be agreed on is refused now, and not in the middle of a backup.
        Identity::generate()?
            .agree(&recipient.0)
            .map_err(|_| refused("no key can be agreed on with it".to_owned()))?;
        Ok(recipient)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0, PUBLIC)?)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("recipient", &self.recipient)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// No random bytes.
    pub fn generate() -> Result<Self, Error> {
        Self::of_seed(random()?)
    }

    fn of_seed(seed: [u8; 32]) -> Result<Self, Error> {
        let key = PrivateKey::from_private_key(&X25519, &seed).map_err(|_| Error::Crypto)?;
        let public = key.compute_public_key().map_err(|_| Error::Crypto)?;
        let recipient = Recipient(public.as_ref().try_into().map_err(|_| Error::Crypto)?);
        Ok(Self { seed, recipient })
    }

    /// Every identity in the text of an identity file: one on each line, between comments.
    ///
    /// # Errors
    /// [`Error::NoIdentity`].
    pub fn read_all(text: &str) -> Result<Vec<Self>, Error> {
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let read: Vec<Self> = lines
            .map(|line| {
                let seed = decode(line, SECRET).map_err(|reason| Error::NoIdentity { reason })?;
                Self::of_seed(seed)
            })
            .collect::<Result<_, Error>>()?;
        if read.is_empty() {
            let reason = "no line holds one".to_owned();
            return Err(Error::NoIdentity { reason });
        }
        Ok(read)
    }

    /// To whom is to be encrypted what this opens.
    pub fn recipient(&self) -> Recipient {
        self.recipient
    }

    /// The secret, as the line of a file.
    pub fn secret_text(&self) -> String {
        encode(&self.seed, SECRET).unwrap_or_default().to_ascii_uppercase()
    }

    /// What this key and the other one have in common.
    pub(super) fn agree(&self, other: &[u8; 32]) -> Result<[u8; 32], Error> {
        let key = PrivateKey::from_private_key(&X25519, &self.seed).map_err(|_| Error::Crypto)?;
        agreement::agree(&key, UnparsedPublicKey::new(&X25519, other), Error::Crypto, |shared| {
            <[u8; 32]>::try_from(shared).map_err(|_| Error::Crypto)
        })
    }
}
