//! Precedence, unknown keys, secrets.
use super::*;
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    name: String,
    port: u16,
    addresses: Vec<String>,
    labels: BTreeMap<String, String>,
    token: Option<Secret<String>>,
    raft: Raft,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raft {
    #[serde(with = "humantime_serde")]
    heartbeat: Duration,
    voters: u32,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            name: "zone-1".into(),
            port: 5682,
            addresses: vec!["127.0.0.1".into()],
            labels: BTreeMap::new(),
            token: None,
            raft: Raft::default(),
        }
    }
}

impl Default for Raft {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            voters: 1,
        }
    }
}

#[derive(Default, Serialize)]
struct Flags {
    port: Option<u16>,
    raft: FlagsOfRaft,
}

#[derive(Default, Serialize)]
struct FlagsOfRaft {
    voters: Option<u32>,
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn loaded(text: &str, env: &[(&str, &str)], flags: Flags) -> Result<Sample, Error> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load_with_env(Some(file(text).path()), env, flags)
}

fn problems(result: Result<Sample, Error>) -> Vec<String> {
    match result {
        Err(Error::Invalid { problems }) => problems,
        other => panic!("expected problems, got {other:?}"),
    }
}

#[test]
fn without_anything_the_defaults_hold() {
    let config: Sample = load_with_env(None, [], ()).unwrap();
    assert_eq!(config, Sample::default());
    assert_eq!(loaded("", &[], Flags::default()).unwrap(), Sample::default());
    assert_eq!(loaded("# nothing yet\n", &[], Flags::default()).unwrap(), Sample::default());
}

#[test]
fn flags_beat_environment_beats_file_beats_defaults() {
    let yaml = "name: from-file\nport: 1\naddresses: [a, b]\nraft: {heartbeat: 1s, voters: 3}\nlabels: {k: v}\n";
    let env = [
        ("URSA_PORT", "2"),
        ("URSA_RAFT__HEARTBEAT", "150ms"),
        ("URSA_RAFT__VOTERS", "5"),
        ("HOME", "/root"),
    ];
    let flags = Flags {
        port: None,
        raft: FlagsOfRaft { voters: Some(7) },
    };
    let config = loaded(yaml, &env, flags).unwrap();
    assert_eq!(config.name, "from-file");
    assert_eq!(config.port, 2, "a flag that was not given overrides nothing");
    assert_eq!(config.addresses, ["a", "b"]);
    assert_eq!(config.labels, BTreeMap::from([("k".into(), "v".into())]));
    assert_eq!(
        config.raft,
        Raft {
            heartbeat: Duration::from_millis(150),
            voters: 7
        }
    );
}

#[test]
fn a_number_in_the_environment_serves_as_text() {
    assert_eq!(loaded("", &[("URSA_NAME", "01")], Flags::default()).unwrap().name, "01");
    assert_eq!(loaded("", &[("URSA_NAME", "true")], Flags::default()).unwrap().name, "true");
    assert_eq!(
        loaded("", &[("URSA_ADDRESSES", "[x, y]")], Flags::default()).unwrap().addresses,
        ["x", "y"]
    );
}

#[test]
fn every_unknown_key_is_named_with_its_source() {
    let found = problems(loaded(
        "nam: x\nraft: {voter: 3}\n",
        &[("URSA_RAFT__HEARTBEET", "1s")],
        Flags::default(),
    ));
    assert_eq!(found.len(), 3, "{found:?}");
    let has = |key: &str, source: &str| found.iter().any(|text| text.contains(key) && text.contains(source));
    assert!(has("`nam`", "in file /"), "{found:?}");
    assert!(has("`raft.voter`", "in file /"), "{found:?}");
    assert!(has("`raft.heartbeet`", "in environment"), "{found:?}");
}

#[test]
fn every_value_that_does_not_fit_is_named() {
    let found = problems(loaded("port: 70000\nraft: {heartbeat: soon}\nname: [1]\n", &[], Flags::default()));
    assert_eq!(found.len(), 3, "{found:?}");
    for key in ["port", "raft.heartbeat", "name"] {
        assert!(found.iter().any(|text| text.contains(&format!("`{key}`"))), "{key} in {found:?}");
    }
}

#[test]
fn a_file_that_is_no_yaml_is_refused() {
    for text in ["a: [", "- just\n- a list", "words", "a: 1\na: 2\n"] {
        assert!(!problems(loaded(text, &[], Flags::default())).is_empty(), "{text}");
    }
}

#[test]
fn a_named_file_must_exist_and_be_small() {
    let missing = load_with_env::<Sample>(Some(Path::new("/nowhere/ursa.yaml")), [], ());
    assert!(matches!(missing, Err(Error::Read { .. })));
    let large = file(&"#".repeat(usize::try_from(MAX_FILE_BYTES).unwrap() + 1));
    assert!(matches!(
        load_with_env::<Sample>(Some(large.path()), [], ()),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn contradicting_variables_are_refused() {
    let found = problems(loaded("", &[("URSA_RAFT", "1"), ("URSA_RAFT__VOTERS", "1")], Flags::default()));
    assert!(found.iter().any(|text| text.contains("URSA_RAFT__VOTERS")), "{found:?}");
    assert!(!problems(loaded("", &[("URSA_", "1")], Flags::default())).is_empty());
}

#[test]
fn a_secret_is_read_and_never_shown() {
    let config = loaded("token: hunter2\n", &[], Flags::default()).unwrap();
    let secret = config.token.as_ref().unwrap();
    assert_eq!(secret.expose(), "hunter2");
    let shown = format!("{config:?} {secret} {}", serde_json::to_string(&config).unwrap());
    assert!(!shown.contains("hunter2"), "{shown}");
    let from_env = loaded("", &[("URSA_TOKEN", "hunter3")], Flags::default()).unwrap();
    assert_eq!(from_env.token.unwrap().expose(), "hunter3");
}

#[test]
fn the_redacted_form_and_a_wrong_type_are_refused_without_showing_it() {
    assert!(problems(loaded("token: '***'\n", &[], Flags::default()))[0].contains("redacted"));
    let found = problems(loaded("token: {nested: hunter2}\n", &[], Flags::default()));
    assert!(!found.concat().contains("hunter2"), "{found:?}");
}

#[test]
fn problems_are_reported_all_at_once() {
    let mut problems = Problems::new();
    problems.check(true, || unreachable!());
    problems.check(false, || "a is wrong".into());
    problems.check(false, || "b is wrong".into());
    let text = problems.into_result().unwrap_err().to_string();
    assert_eq!(text, "invalid configuration: a is wrong; b is wrong");
}
