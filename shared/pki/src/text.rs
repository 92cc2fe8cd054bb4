//! PEM in and out, within bounds.
//! In: text of unknown origin. Out: its sections, with their labels.
//! Invariant: nothing is skipped: whatever is framed as PEM is either understood or an error.
use pem::{EncodeConfig, LineEnding, Pem};

/// A key or a CA takes 1 to 4 KB; a bundle of many zones some hundred KB.
pub(crate) const MAX_PEM_BYTES: usize = 1024 * 1024;

/// Label of a certificate.
pub(crate) const CERTIFICATE: &str = "CERTIFICATE";

/// The sections of `text`, in order. Text around them is allowed; a broken section is an error.
pub(crate) fn sections(text: &[u8]) -> Result<Vec<Pem>, String> {
    if text.len() > MAX_PEM_BYTES {
        return Err(format!("larger than {MAX_PEM_BYTES} bytes"));
    }
    let sections = pem::parse_many(text).map_err(|error| error.to_string())?;
    let framed = text.windows(BEGIN.len()).filter(|window| *window == BEGIN).count();
    if framed == sections.len() {
        Ok(sections)
    } else {
        Err("a PEM section is incomplete".to_owned())
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";

/// `der` as PEM with Unix line ends.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    pem::encode_config(&Pem::new(label, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

/// Is this label one of a private key, in whatever format, encrypted or not?
pub(crate) fn is_private_key(label: &str) -> bool {
    label.ends_with("PRIVATE KEY")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_around_sections_is_allowed_and_broken_ones_are_not() {
        let text = format!("a comment\n{}\nanother\n{}", encode("A", b"1"), encode("B", b"2"));
        let labels: Vec<_> = sections(text.as_bytes()).unwrap().iter().map(|s| s.tag().to_owned()).collect();
        assert_eq!(labels, ["A", "B"]);
        assert_eq!(sections(b"").unwrap(), []);
        let cut = &text[..text.len() - 10];
        for broken in [cut, "-----BEGIN A-----\n", "-----BEGIN A-----\n!!!\n-----END A-----\n"] {
            assert!(sections(broken.as_bytes()).is_err(), "{broken}");
        }
        assert!(sections(&vec![b'x'; MAX_PEM_BYTES + 1]).is_err());
    }
}
