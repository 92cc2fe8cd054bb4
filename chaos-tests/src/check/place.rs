//! Where a check works: the addresses of an installation, and a mesh of its own there.
//!
//! In: addresses, a token, a name. Out: clients; a mesh that did not exist before, and is gone after [`Place::remove`].
//! Invariant: a mesh that exists already is never touched; a token never leaves in plain text but to this machine.
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use http::StatusCode;
use serde_json::{Value, json};

use super::Options;
use crate::client::{Answer, Api, Target, Trust};
use crate::harness::wait::{Poll, wait_through};

/// Of a REST API.
const PORT: u16 = 5682;
/// The installation may be without a leader at the moment; somebody breaks it, after all.
const PATIENCE: Duration = Duration::from_secs(60);
/// One request of these.
const ATTEMPT: Duration = Duration::from_secs(12);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(200);

/// `https://HOST[:PORT]`; `http://` to this machine alone, as to a forwarded port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    plain: Option<SocketAddr>,
    host: String,
    port: u16,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not https://HOST[:PORT]");
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let authority: http::uri::Authority = rest.trim_end_matches('/').parse().map_err(|_| wrong())?;
        if rest.contains('@') || authority.host().is_empty() {
            return Err(wrong());
        }
        let (host, port) = (authority.host().to_owned(), authority.port_u16().unwrap_or(PORT));
        let plain = match scheme {
            "https" => None,
            "http" => {
                let ip: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
                let ip = ip.filter(IpAddr::is_loopback);
                Some(
                    ip.map(|ip| (ip, port).into())
                        .ok_or("http:// would send the token in plain text: only to a loopback address")?,
                )
            }
            _ => return Err(wrong()),
        };
        Ok(Self { plain, host, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.plain.is_some() { "http" } else { "https" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// A client per address.
///
/// # Errors
/// If a file cannot be read.
pub fn clients(options: &Options) -> anyhow::Result<Vec<Api>> {
    let trust = options.ca_file.as_deref().map(Trust::from_ca_file).transpose()?;
    let token = &options.token_file;
    let token = std::fs::read_to_string(token).with_context(|| format!("cannot read {}", token.display()))?;
    let client = |address: &Address| {
        let target = match (address.plain, &trust) {
            (Some(at), _) => Target::Tcp(at),
            (None, Some(trust)) => Target::Host(address.host.clone(), address.port, trust.clone()),
            (None, None) => anyhow::bail!("{address} needs --ca-file: the CA of the servers' certificates"),
        };
        Ok(Api::new(target).with_token(&token))
    };
    options.addresses.iter().map(client).collect()
}

/// A mesh of the check's own.
#[derive(Debug)]
pub struct Place {
    nodes: Vec<Api>,
    mesh: String,
}

/// The first answer of any node that is one.
async fn ask(nodes: &[Api], what: &str, request: impl AsyncFn(&Api) -> Result<Answer, crate::client::Error>) -> anyhow::Result<Answer> {
    let mut turn = 0;
    let (answer, _) = wait_through(what, PATIENCE, AGAIN, async || {
        let node = nodes.get(turn % nodes.len().max(1)).context("no address")?;
        turn += 1;
        let answer = request(&node.fork().with_deadline(ATTEMPT)).await?;
        let later = answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS;
        let why = format!("{} of {}: {}", answer.status, node.target(), crate::client::head(&answer.text()));
        Ok(Poll::when(!later, answer, || why))
    })
    .await?;
    Ok(answer)
}

impl Place {
    /// Makes the mesh.
    ///
    /// # Errors
    /// It exists, or cannot be made; then nothing was changed, or the text says what to do.
    pub async fn claim(nodes: &[Api], mesh: &str) -> anyhow::Result<Self> {
        let path = format!("/meshes/{mesh}");
        let there = ask(nodes, "whether the mesh exists", async |api: &Api| api.get(&path).await).await?;
        match there.status {
            StatusCode::NOT_FOUND => {}
            status if status.is_success() => anyhow::bail!(
                "the mesh {mesh} exists: choose another name with --mesh; if it was left behind by a check that was killed, delete what is in \
                 it and then DELETE {path}"
            ),
            _ => drop(there.success()?),
        }
        let document = json!({"type": "Mesh", "name": mesh, "skipCreatingInitialPolicies": ["*"]});
        // Under one id: of an attempt whose outcome is unknown, the next one is a repeat.
        let id = uuid::Uuid::new_v4();
        let made = ask(nodes, "the mesh is made", async |api: &Api| {
            api.put_once(&path, &document, id).await
        })
        .await?;
        made.success().with_context(|| format!("the mesh {mesh} cannot be made"))?;
        Ok(Self {
            nodes: nodes.to_vec(),
            mesh: mesh.to_owned(),
        })
    }

    /// Removes everything in the mesh, and the mesh.
    ///
    /// # Errors
    /// What is left behind, and how to remove it.
    pub async fn remove(self) -> anyhow::Result<()> {
        self.try_remove()
            .await
            .with_context(|| format!("the mesh {0} is left behind: remove it with DELETE /meshes/{0}", self.mesh))
    }

    async fn try_remove(&self) -> anyhow::Result<()> {
        let list = format!("/meshes/{}/meshtrafficpermissions?size=1000", self.mesh);
        loop {
            let page = ask(&self.nodes, "what is in the mesh", async |api: &Api| api.get(&list).await).await?;
            let page: Value = page.success()?.json()?;
            let items = page["items"].as_array().cloned().unwrap_or_default();
            for item in &items {
                let name = item["name"].as_str().context("a resource without a name")?;
                let path = crate::traffic::registers::path(&self.mesh, name);
                let gone = ask(&self.nodes, "a register is removed", async |api: &Api| api.delete(&path).await).await?;
                anyhow::ensure!(
                    gone.status.is_success() || gone.status == StatusCode::NOT_FOUND,
                    "DELETE {path}: {} {}",
                    gone.status,
                    gone.text()
                );
            }
            if items.is_empty() {
                break;
            }
        }
        let path = format!("/meshes/{}", self.mesh);
        // Refused while a zone is away that may have proxies in it.
        let gone = async || -> anyhow::Result<Poll<()>> {
            let gone = ask(&self.nodes, "the mesh is removed", async |api: &Api| api.delete(&path).await).await?;
            let done = gone.status.is_success() || gone.status == StatusCode::NOT_FOUND;
            Ok(Poll::when(done, (), || format!("{} {}", gone.status, gone.text())))
        };
        wait_through("the mesh may be removed", PATIENCE, AGAIN, gone).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_plain_text_stays_on_this_machine() {
        let shown = |text: &str| text.parse::<Address>().map(|address| address.to_string());
        assert_eq!(shown("https://cp.example").unwrap(), "https://cp.example:5682");
        assert_eq!(shown("https://127.0.0.1:443/").unwrap(), "https://127.0.0.1:443");
        assert_eq!(shown("https://[::1]:1").unwrap(), "https://[::1]:1");
        assert_eq!(shown("http://127.0.0.1:80").unwrap(), "http://127.0.0.1:80");
        for wrong in ["cp.example", "ftp://x", "https://", "https://a@b", "https://a b"] {
            assert!(shown(wrong).unwrap_err().contains("is not https://"), "{wrong}");
        }
        assert!(shown("http://cp.example").unwrap_err().contains("only to a loopback address"));
    }
}
