//! The header of a file: its key, wrapped once for each recipient, and a sum over all of it that only who has the key can make.
//!
//! ```text
//! age-encryption.org/v1
//! -> X25519 <share>
//! <wrapped key>
//! --- <sum>
//! ```
use std::io::BufRead;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::{Error, Identity, MAX_RECIPIENTS, Recipient, derive, random};

const VERSION: &str = "age-encryption.org/v1";
const KIND: &str = "X25519";
const WRAP: &[u8] = b"age-encryption.org/v1/X25519";
/// Longest header: many recipients, of kinds that are not known here too.
const MAX_HEADER: usize = 64 << 10;
/// Characters of a full line of a wrapped key.
const LINE: usize = 64;
/// Without padding, and nothing else is taken for it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone),
);

pub(super) type FileKey = [u8; 16];

pub(super) fn cipher(key: &[u8; 32]) -> Result<LessSafeKey, Error> {
    Ok(LessSafeKey::new(
        UnboundKey::new(&CHACHA20_POLY1305, key).map_err(|_| Error::Crypto)?,
    ))
}

/// Key by which a file key is wrapped: each is used once, so its nonce is zero.
fn wrapping(shared: &[u8; 32], share: &[u8; 32], recipient: &Recipient) -> Result<LessSafeKey, Error> {
    cipher(&derive(shared, &[&share[..], &recipient.0[..]].concat(), WRAP)?)
}

fn sum_key(key: &FileKey) -> Result<hmac::Key, Error> {
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &derive(key, &[], b"header")?))
}

/// A new file key, and the header that holds it.
pub(super) fn write(recipients: &[Recipient]) -> Result<(FileKey, Vec<u8>), Error> {
    if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
        return Err(Error::Recipients(recipients.len()));
    }
    let key: FileKey = random()?;
    let mut text = format!("{VERSION}\n");
    for recipient in recipients {
        let once = Identity::generate()?;
        let share = once.recipient().0;
        let wrap = wrapping(&once.agree(&recipient.0)?, &share, recipient)?;
        let mut wrapped = key.to_vec();
        wrap.seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut wrapped)
            .map_err(|_| Error::Crypto)?;
        text += &format!("-> {KIND} {}\n{}\n", BASE64.encode(share), BASE64.encode(wrapped));
    }
    text += "---";
    let sum = hmac::sign(&sum_key(&key)?, text.as_bytes());
    text += &format!(" {}\n", BASE64.encode(sum.as_ref()));
    Ok((key, text.into_bytes()))
}

/// One line, without its end; all of the header is kept in `whole`.
fn line(input: &mut impl BufRead, whole: &mut Vec<u8>) -> Result<String, Error> {
    let before = whole.len();
    loop {
        let piece = input.fill_buf()?;
        if piece.is_empty() {
            return Err(Error::CutShort);
        }
        let end = piece.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(piece.len(), |end| end + 1);
        whole.extend_from_slice(piece.get(..taken).unwrap_or_default());
        input.consume(taken);
        if whole.len() > MAX_HEADER {
            return Err(Error::Format("its header has no end".to_owned()));
        }
        if end.is_some() {
            break;
        }
    }
    let bytes = whole.get(before..whole.len() - 1).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Error::Format("its header is not text".to_owned())),
    }
}

fn bytes(text: &str, what: &str) -> Result<Vec<u8>, Error> {
    BASE64.decode(text).map_err(|_| Error::Format(format!("{what} is not base64")))
}

/// The file key, from a header that is whole.
pub(super) fn read(input: &mut impl BufRead, identities: &[Identity]) -> Result<FileKey, Error> {
    let mut whole = Vec::new();
    let first = line(input, &mut whole)?;
    if first != VERSION {
        return Err(Error::Format("it begins otherwise".to_owned()));
    }
    let (mut key, mut stanzas) = (None, 0);
    let mut next = line(input, &mut whole)?;
    loop {
        if let Some(sum) = next.strip_prefix("--- ") {
            let Some(key) = key else { return Err(Error::NotForUs(stanzas)) };
            let summed = whole.get(..whole.len() - next.len() - 1 + 3).unwrap_or_default();
            let sum = bytes(sum, "its sum")?;
            return match hmac::verify(&sum_key(&key)?, summed, &sum) {
                Ok(()) => Ok(key),
                Err(_) => Err(Error::Damaged("its header is not the one that was written")),
            };
        }
        let Some(words) = next.strip_prefix("-> ") else {
            return Err(Error::Format("its header has an odd line".to_owned()));
        };
        let words: Vec<&str> = words.split(' ').collect();
        stanzas += 1;
        let mut body = String::new();
        loop {
            let part = line(input, &mut whole)?;
            body += &part;
            if part.len() < LINE {
                break;
            }
        }
        if let [KIND, share] = words[..] {
            let share =
                <[u8; 32]>::try_from(bytes(share, "a share")?).map_err(|_| Error::Format("a share is too short or long".to_owned()))?;
            let body = bytes(&body, "a wrapped key")?;
            if key.is_none() {
                key = identities.iter().find_map(|identity| unwrap(identity, &share, &body));
            }
        }
        next = line(input, &mut whole)?;
    }
}

fn unwrap(identity: &Identity, share: &[u8; 32], wrapped: &[u8]) -> Option<FileKey> {
    let wrap = wrapping(&identity.agree(share).ok()?, share, &identity.recipient()).ok()?;
    let mut wrapped = wrapped.to_vec();
    let key = wrap
        .open_in_place(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut wrapped)
        .ok()?;
    FileKey::try_from(&*key).ok()
}
