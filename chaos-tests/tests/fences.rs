//! The fences of the house, as tests: who may depend on whom, and what may be named where.
//!
//! In: `cargo metadata` and the sources of the workspace. Out: a failure that names the crate or the file and line.
//! Invariant: a fence is checked on every machine, by the same `cargo test` as everything else.
//! Source: DESIGN.md section 1, CONVENTIONS.md C1, C2, C9, C16.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

const PROGRAMS: [&str; 4] = ["ursa-global-cp", "ursa-zone-cp", "ursa-dataplane", "ursa-zone-ingress"];
/// A file's longest length, its tests not counted.
const MAX_LINES: usize = 600;
/// A `main.rs` only puts the library together.
const MAX_MAIN_LINES: usize = 60;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
        .to_owned()
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(root()).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What cargo knows of the dependency graph, for this machine's platform.
struct Graph {
    /// Every package's versions.
    versions: BTreeMap<String, BTreeSet<String>>,
    /// The direct dependencies of the workspace's own packages, of every kind.
    members: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Read once for all tests.
    fn read() -> &'static Self {
        static GRAPH: LazyLock<Graph> = LazyLock::new(Graph::ask_cargo);
        &GRAPH
    }

    fn ask_cargo() -> Self {
        let host = output("rustc", &["-vV"]);
        let host = host
            .lines()
            .find_map(|l| l.strip_prefix("host: "))
            .expect("rustc -vV names its host");
        // Only this platform's packages: those of others were never downloaded.
        let metadata = [
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--locked",
            "--filter-platform",
            host,
        ];
        let metadata = serde_json::from_str(&output(env!("CARGO"), &metadata)).unwrap();
        // What is compiled: cargo's metadata also lists optional dependencies that no feature switches on.
        let tree = output(
            env!("CARGO"),
            &[
                "tree",
                "--workspace",
                "--prefix",
                "none",
                "--format",
                "{p}",
                "--offline",
                "--locked",
            ],
        );
        Self::from(&metadata, &tree)
    }

    fn from(metadata: &Value, tree: &str) -> Self {
        let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let names: BTreeMap<String, String> = list(&metadata["packages"])
            .iter()
            .map(|p| (text(&p["id"]), text(&p["name"])))
            .collect();
        let own: BTreeSet<String> = list(&metadata["workspace_members"]).iter().map(text).collect();
        let members = list(&metadata["resolve"]["nodes"])
            .iter()
            .filter(|node| own.contains(&text(&node["id"])))
            .map(|node| {
                let deps = list(&node["deps"])
                    .iter()
                    .filter_map(|d| names.get(&text(&d["pkg"])).cloned())
                    .collect();
                (names[&text(&node["id"])].clone(), deps)
            })
            .collect();
        let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in tree.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(version)) = (words.next(), words.next()) {
                versions.entry(name.to_owned()).or_default().insert(version.to_owned());
            }
        }
        Self { versions, members }
    }

    fn dependents_of(&self, name: &str) -> Vec<&str> {
        self.members
            .iter()
            .filter(|(_, deps)| deps.contains(name))
            .map(|(member, _)| member.as_str())
            .collect()
    }

    /// Dependencies within the house that point the wrong way.
    fn wrong_ways(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (member, deps) in &self.members {
            for dep in deps.iter().filter(|d| self.members.contains_key(*d)) {
                let program = PROGRAMS.contains(&dep.as_str());
                let allowed = match member.as_str() {
                    "ursa-proto" => false,
                    "ursa-chaos-tests" => true,
                    _ => !program && dep != "ursa-chaos-tests",
                };
                if !allowed {
                    wrong.push(format!("{member} -> {dep}"));
                }
            }
        }
        wrong
    }
}

#[test]
fn only_the_store_knows_raft_and_sled() {
    let graph = Graph::read();
    assert_eq!(graph.dependents_of("openraft"), ["ursa-store"]);
    assert_eq!(graph.dependents_of("sled"), ["ursa-store"]);
}

#[test]
fn only_the_zone_compiles_the_types_of_envoy() {
    assert_eq!(Graph::read().dependents_of("envoy-types"), ["ursa-zone-cp"]);
}

#[test]
fn dependencies_point_one_way() {
    assert_eq!(Graph::read().wrong_ways(), Vec::<String>::new());
}

#[test]
fn one_provider_of_cryptography_and_no_abandoned_yaml() {
    let graph = Graph::read();
    for banned in ["ring", "openssl", "openssl-sys", "native-tls", "serde_yaml", "serde_yml"] {
        assert!(
            !graph.versions.contains_key(banned),
            "{banned} is in the tree: `cargo tree -i {banned}` shows who brought it"
        );
    }
}

#[test]
fn one_version_of_what_meets_on_the_wire() {
    let graph = Graph::read();
    for name in [
        "tokio",
        "tonic",
        "prost",
        "hyper",
        "http",
        "axum",
        "rustls",
        "tokio-rustls",
        "openraft",
    ] {
        let versions = graph.versions.get(name).unwrap_or_else(|| panic!("{name} is not in the tree"));
        assert_eq!(versions.len(), 1, "{name}: {versions:?}");
    }
}

#[test]
fn the_graph_fences_see_a_breach() {
    let package = |name: &str| serde_json::json!({"id": format!("{name} 1"), "name": name});
    let node = |name: &str, deps: &[&str]| {
        let deps: Vec<Value> = deps.iter().map(|d| serde_json::json!({"pkg": format!("{d} 1")})).collect();
        serde_json::json!({"id": format!("{name} 1"), "deps": deps})
    };
    let metadata = serde_json::json!({
        "packages": [package("ursa-sync"), package("ursa-zone-cp"), package("openraft")],
        "workspace_members": ["ursa-sync 1", "ursa-zone-cp 1"],
        "resolve": {"nodes": [node("ursa-sync", &["ursa-zone-cp", "openraft"]), node("ursa-zone-cp", &[]), node("openraft", &[])]},
    });
    let graph = Graph::from(
        &metadata,
        "ursa-sync v0.1.0 (/somewhere)\nhyper v1.12.0\nhyper v0.14.3\nhyper v1.12.0 (*)\n",
    );
    assert_eq!(graph.wrong_ways(), ["ursa-sync -> ursa-zone-cp"]);
    assert_eq!(graph.dependents_of("openraft"), ["ursa-sync"]);
    assert_eq!(graph.versions["hyper"].len(), 2);
}

/// A source file, its tests cut away.
struct Source {
    /// Path from the workspace's root.
    path: String,
    /// Line number and text, without the inline test modules.
    lines: Vec<(usize, String)>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let all: Vec<&str> = text.lines().collect();
        let mut lines = Vec::new();
        let mut at = 0;
        while let Some(line) = all.get(at) {
            let next = all.get(at + 1).copied().unwrap_or_default();
            if line.starts_with("#[cfg(test)]") && next.starts_with("mod ") {
                // `mod tests;` is one line; an inline module ends with a brace in the first column, rustfmt sees to it.
                at += 2;
                while next.ends_with('{') && all.get(at).is_some_and(|l| *l != "}") {
                    at += 1;
                }
                at += usize::from(next.ends_with('{'));
                continue;
            }
            at += 1;
            lines.push((at, (*line).to_owned()));
        }
        Self {
            path: path.to_owned(),
            lines,
        }
    }

    /// Where one of the texts stands in the code; comments do not count.
    fn naming(&self, texts: &[&str]) -> Vec<String> {
        let code = self.lines.iter().filter(|(_, line)| !line.trim_start().starts_with("//"));
        code.filter(|(_, line)| texts.iter().any(|t| line.contains(t)))
            .map(|(n, l)| format!("{}:{n}: {}", self.path, l.trim()))
            .collect()
    }
}

/// All sources of libraries and programs. Files that hold only tests or test doubles are left out.
fn sources() -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if entry.is_dir() && !matches!(name.as_str(), "tests" | "testing") {
                walk(&entry, found);
            } else if name.ends_with(".rs") && !matches!(name.as_str(), "tests.rs" | "testing.rs") && !name.ends_with("_tests.rs") {
                found.push(entry);
            }
        }
    }
    let root = root();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let members = manifest
        .lines()
        .skip_while(|l| !l.starts_with("members"))
        .skip(1)
        .take_while(|l| !l.starts_with(']'));
    let mut files = Vec::new();
    for member in members {
        walk(&root.join(member.trim().trim_matches([',', '"'])).join("src"), &mut files);
    }
    assert!(
        files.len() > 50,
        "only {} sources found: the list of members was not understood",
        files.len()
    );
    files.sort();
    let read = |f: PathBuf| Source::new(&f.strip_prefix(&root).unwrap().to_string_lossy(), &fs::read_to_string(&f).unwrap());
    files.into_iter().map(read).collect()
}

fn named_outside(texts: &[&str], allowed: &[&str]) -> Vec<String> {
    let outside = |s: &Source| !allowed.iter().any(|a| s.path.starts_with(a));
    sources().iter().filter(|s| outside(s)).flat_map(|s| s.naming(texts)).collect()
}

const NONE: Vec<String> = Vec::new();

#[test]
fn the_types_of_envoy_stay_in_the_builder_and_the_server() {
    assert_eq!(named_outside(&["envoy_types"], &["zone-cp/src/build", "zone-cp/src/xds"]), NONE);
}

#[test]
fn only_the_runtime_spawns_tasks() {
    assert_eq!(
        named_outside(&["tokio::spawn(", "tokio::task::spawn(", " task::spawn("], &["shared/runtime/src"]),
        NONE
    );
}

#[test]
fn no_unfinished_code() {
    assert_eq!(named_outside(&["todo!(", "unimplemented!(", "dbg!("], &[]), NONE);
    let marks = ["TODO", "FIXME", "XXX"].map(|m| format!("// {m}"));
    let found = |s: &Source| {
        s.lines
            .iter()
            .filter(|(_, l)| marks.iter().any(|m| l.contains(m)))
            .map(|(n, _)| format!("{}:{n}", s.path))
            .collect()
    };
    assert_eq!(
        sources()
            .iter()
            .flat_map(|s: &Source| -> Vec<String> { found(s) })
            .collect::<Vec<_>>(),
        NONE
    );
}

#[test]
fn files_are_short() {
    let limit = |s: &Source| {
        if s.path.ends_with("src/main.rs") {
            MAX_MAIN_LINES
        } else {
            MAX_LINES
        }
    };
    let long = sources()
        .iter()
        .filter(|s| s.lines.len() > limit(s))
        .map(|s| format!("{}: {} lines", s.path, s.lines.len()))
        .collect::<Vec<_>>();
    assert_eq!(long, NONE);
}

#[test]
fn every_file_opens_with_what_it_is() {
    let headless = |s: &&Source| !s.lines.first().is_some_and(|(n, l)| *n == 1 && l.starts_with("//!"));
    assert_eq!(sources().iter().filter(headless).map(|s| s.path.clone()).collect::<Vec<_>>(), NONE);
}

#[test]
fn the_source_fences_see_a_breach_and_leave_tests_alone() {
    let text = "//! Header.\n// tokio::spawn( in a comment\nfn a() { tokio::spawn(b()) }\n#[cfg(test)]\nmod tests;\nfn c() {}\n\
        #[cfg(test)]\nmod more {\n    fn d() { tokio::spawn(e()) }\n}\nfn f() {}\n";
    let source = Source::new("x.rs", text);
    assert_eq!(source.naming(&["tokio::spawn("]), ["x.rs:3: fn a() { tokio::spawn(b()) }"]);
    assert_eq!(source.lines.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3, 6, 11]);
}
