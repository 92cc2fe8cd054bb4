//! Checks up front that all addresses of a scenario are free, and says clearly which are not.
//!
//! In: addresses with the name of their user. Out: nothing, or one error that lists every address in use and a way out.
//! Invariant: nothing stays bound. A port may still be taken between the check and the start; then the program's own error says so.
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

/// Some addresses cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot start, these addresses are not free:\n{}\nAnother run may still be up. `ss -ltnp` shows who holds them.", lines(.0))]
pub struct NotFree(pub Vec<(SocketAddr, String, String)>);

fn lines(taken: &[(SocketAddr, String, String)]) -> String {
    taken
        .iter()
        .map(|(address, user, problem)| format!("  {address:<22} for {user}: {problem}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Tries to bind each address for a moment.
///
/// # Errors
/// [`NotFree`] with all that cannot be bound.
pub fn require_free<'a>(wanted: impl IntoIterator<Item = (SocketAddr, &'a str)>) -> Result<(), NotFree> {
    let mut taken = Vec::new();
    for (address, user) in wanted {
        if let Err(error) = TcpListener::bind(address) {
            let problem = if error.kind() == ErrorKind::AddrInUse {
                "in use".to_owned()
            } else {
                error.to_string()
            };
            taken.push((address, user.to_owned(), problem));
        }
    }
    if taken.is_empty() { Ok(()) } else { Err(NotFree(taken)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_every_address_in_use_and_keeps_none() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = require_free([(held.local_addr().unwrap(), "global-cp API"), (free, "nobody")]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("global-cp API: in use") && !text.contains("nobody"), "{text}");
        require_free([(free, "nobody")]).unwrap();
        require_free([(free, "nobody")]).unwrap();
    }
}
