//! Prints an error with everything that caused it.
//! In: any error. Out: one line, `outer: middle: inner`.
//! Invariant: a text that the outer error already ends with is not printed twice (some libraries print their source themselves).
use std::error::Error;
use std::fmt;

/// No honest chain is longer; a cyclic `source()` would otherwise never end.
const MAX_DEPTH: usize = 32;

/// Displays `self.0` followed by its sources, separated by `": "`.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut printed = self.0.to_string();
        f.write_str(&printed)?;
        let mut source = self.0.source();
        for _ in 0..MAX_DEPTH {
            let Some(error) = source else { break };
            let text = error.to_string();
            if !printed.ends_with(&text) {
                write!(f, ": {text}")?;
                printed = text;
            }
            source = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("cannot read the log")]
        Outer(#[source] Box<Sample>),
        #[error("segment 7: disk full")]
        PrintsItsSource(#[source] std::io::Error),
        #[error("segment 7")]
        Inner(#[source] std::io::Error),
    }

    #[test]
    fn the_whole_chain_is_printed() {
        let error = Sample::Outer(Box::new(Sample::Inner(std::io::Error::other("disk full"))));
        assert_eq!(Chain(&error).to_string(), "cannot read the log: segment 7: disk full");
    }

    #[test]
    fn a_source_that_was_printed_is_not_repeated() {
        let error = Sample::Outer(Box::new(Sample::PrintsItsSource(std::io::Error::other("disk full"))));
        assert_eq!(Chain(&error).to_string(), "cannot read the log: segment 7: disk full");
    }
}
