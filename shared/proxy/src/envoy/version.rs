//! Which Envoy is run.
//! In: the configured path. Out: the path that is run, and what `--version` says.
//! Source: Envoy prints `envoy  version: <revision>/<version>/<status>/<build type>/<ssl>`; Kuma insists on the five parts.
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use ursa_runtime::lease::within;

use crate::ENVOY_LINE;
use crate::bootstrap::EnvoyVersion;

/// `--version` takes milliseconds; a cold disk has to read 100 MB.
const DEADLINE: Duration = Duration::from_secs(30);
/// The binary's name.
const NAME: &str = "envoy";

/// Why the Envoy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// Not there, or not executable.
    #[error("cannot run Envoy at {} (give its path with --envoy; deploy/envoy/install.sh installs one)", path.display())]
    Run { path: PathBuf, source: std::io::Error },
    /// It hangs.
    #[error("{} --version did not end within {DEADLINE:?}", path.display())]
    Timeout { path: PathBuf },
    /// It is not an Envoy.
    #[error("{} --version does not say revision/version/status/type/ssl but {said:?}", path.display())]
    Format { path: PathBuf, said: String },
}

/// The Envoy to run: the configured one, else `from_environment` (`$ENVOY_BIN`), else the one beside our own binary, else the one on PATH.
pub fn find(configured: Option<&Path>, from_environment: Option<&Path>) -> PathBuf {
    if let Some(path) = configured.or(from_environment).filter(|path| !path.as_os_str().is_empty()) {
        return path.to_owned();
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(NAME)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(NAME))
}

/// Asks the binary for its version.
///
/// # Errors
/// It cannot be run or is no Envoy.
pub async fn version(path: &Path) -> Result<EnvoyVersion, VersionError> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = within(DEADLINE, output)
        .await
        .map_err(|_| VersionError::Timeout { path: path.to_owned() })?
        .map_err(|source| VersionError::Run {
            path: path.to_owned(),
            source,
        })?;
    let said = String::from_utf8_lossy(&output.stdout);
    parse(&said).ok_or_else(|| VersionError::Format {
        path: path.to_owned(),
        said: said.trim().chars().take(200).collect(),
    })
}

fn parse(said: &str) -> Option<EnvoyVersion> {
    let build = said.lines().find_map(|line| line.split_once("version:"))?.1.trim();
    let [_, version, _, _, _] = build.split('/').collect::<Vec<_>>()[..] else {
        return None;
    };
    let line = version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    Some(EnvoyVersion {
        version: version.to_owned(),
        build: build.to_owned(),
        kuma_dp_compatible: line == ENVOY_LINE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_has_five_parts() {
        let said = "\n/x/envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL\n\n";
        let version = parse(said).unwrap();
        assert_eq!((version.version.as_str(), version.kuma_dp_compatible), ("1.40.0", true));
        assert_eq!(
            version.build,
            "9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL"
        );
        assert!(!parse("envoy version: a/1.4.0/c/d/e").unwrap().kuma_dp_compatible);
        assert_eq!(parse("envoy version: 1.40.0"), None);
        assert_eq!(parse("GNU bash, version 5"), None);
    }

    #[test]
    fn the_configured_path_wins() {
        let (configured, environment) = (Path::new("/a"), Path::new("/b"));
        assert_eq!(find(Some(configured), Some(environment)), configured);
        assert_eq!(find(None, Some(environment)), environment);
        assert_eq!(find(None, Some(Path::new(""))).file_name(), Some(NAME.as_ref()));
    }

    #[tokio::test]
    async fn what_is_no_envoy_is_named() {
        let missing = version(Path::new("/nonexistent/envoy")).await.unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/envoy"), "{missing}");
        let other = version(Path::new("/bin/echo")).await.unwrap_err();
        assert!(matches!(other, VersionError::Format { .. }), "{other}");
    }
}
