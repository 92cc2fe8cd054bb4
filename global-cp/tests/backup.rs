//! The operator's commands for the day that nobody wants: a backup of a running control plane, restored into a new one; and the majority of
//! three lost, with one to go on. Each misuse is refused with its way out, and loses nothing.

mod nodes;

use std::path::Path;

use nodes::{Cluster, data, init, run, wait, zone::Zone};
use serde_json::json;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn command(args: &[&str]) -> Ran {
    let output = run(args);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

#[track_caller]
fn done(args: &[&str]) -> String {
    let ran = command(args);
    assert_eq!(ran.code, 0, "{args:?}: {} {}", ran.out, ran.err);
    ran.out
}

#[track_caller]
fn refused(args: &[&str], words: &str) {
    let ran = command(args);
    assert!(
        ran.code == 1 && ran.err.contains(words),
        "{args:?}: {} {} {}",
        ran.code,
        ran.out,
        ran.err
    );
}

async fn mesh(cluster: &Cluster, n: u8, name: &str) {
    let document = json!({"type": "Mesh", "name": name});
    let answer = cluster.call(n, "PUT", &format!("/meshes/{name}"), Some(&document)).await;
    assert!(matches!(answer, Some((200 | 201, _))), "{answer:?}");
}

async fn has(cluster: &Cluster, n: u8, name: &str) -> bool {
    matches!(cluster.call(n, "GET", &format!("/meshes/{name}"), None).await, Some((200, _)))
}

/// Every file of a folder, but the lock.
fn content(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(content(&entry.path())),
            false if entry.file_name() == "lock" => {}
            false => files.push((entry.path(), std::fs::read(entry.path()).unwrap())),
        }
    }
    files.sort();
    files
}

async fn zone(cluster: &Cluster) -> Zone {
    let addresses = (1..=cluster.size).map(|n| format!("grpcs://{}:5685", cluster.ip(n)));
    Zone::connect(&cluster.dir.path().join("zone"), addresses.collect(), cluster.ca_pem()).await
}

/// What the zone has and the new control plane does not stays, until somebody says otherwise; everything else goes on.
async fn held_in(zone: &Zone, cluster: &Cluster, lost: &str, before: ursa_state::GlobalRevision) {
    wait("the zone holds what the new one lacks", async || zone.held() == [lost]).await;
    assert!(zone.has(lost));
    wait("new writes reach the zone", async || zone.has("new")).await;
    assert!(
        zone.has(lost) && zone.store.view().global() == Some(before),
        "its revision stands still"
    );
    wait("what the zone made is sent up again", async || {
        let items = cluster
            .call(1, "GET", "/meshtimeouts", None)
            .await
            .map(|(_, body)| body.to_string());
        items.is_some_and(|items| items.contains("\"own"))
    })
    .await;
    zone.holds.keep(ursa_sync::holds::GLOBAL, true);
    assert!(zone.has(lost));
    zone.holds.confirm(ursa_sync::holds::GLOBAL, None).unwrap();
    wait("the confirmed one goes", async || !zone.has(lost)).await;
    mesh(cluster, 1, "newer").await;
    wait("the zone follows the new history", async || {
        let now = zone.store.view().global();
        zone.has("newer") && now.is_some_and(|now| now.history != before.history && now.revision > before.revision)
    })
    .await;
    assert!(zone.has("new") && zone.has("default"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_made_while_running_and_restored_into_a_new_control_plane() {
    init();
    let mut cluster = Cluster::prepare(1, 0);
    cluster.start(1);
    cluster.ready(1).await;
    mesh(&cluster, 1, "before").await;
    let zone = zone(&cluster).await;
    wait("the zone has the mesh", async || zone.has("before")).await;

    let path = |name: &str| cluster.path(name);
    let (config, key, other, file) = (path("node1.yaml"), path("key"), path("other"), path("b.age"));
    let recipient = done(&["backup", "keys", "--out", &key]);
    assert!(recipient.starts_with("age1"), "{recipient}");
    refused(&["backup", "keys", "--out", &key], "exists already and is left alone");
    done(&["backup", "keys", "--out", &other]);
    assert_eq!(
        std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&key).unwrap()) & 0o777,
        0o600
    );

    // To nobody, to what is no key, as nobody, as somebody without rights.
    let take = |more: &[&str]| {
        let mut args = vec!["backup", "--config", &config];
        args.extend(more);
        args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()
    };
    let refuse = |more: &[&str], words: &str| refused(&take(more).iter().map(String::as_str).collect::<Vec<_>>(), words);
    refuse(&["--out", &file], "--recipient or --recipient-file is needed");
    refuse(&["--out", &file, "--recipient", "ssh-ed25519 AAAA"], "is no age recipient");
    refuse(&["--recipient", &recipient], "--out is needed");
    let wrong = path("wrong-token");
    std::fs::write(&wrong, "no.such.token").unwrap();
    refuse(&["--out", &file, "--recipient", &recipient, "--token-file", &wrong], "401");
    let answer = cluster
        .call(
            1,
            "POST",
            "/tokens/user",
            Some(&json!({"name": "jo", "groups": ["team"], "validFor": "1h"})),
        )
        .await;
    let Some((200, serde_json::Value::String(token))) = answer else {
        panic!("{answer:?}")
    };
    std::fs::write(&wrong, token).unwrap();
    refuse(&["--out", &file, "--recipient", &recipient, "--token-file", &wrong], "403");
    let body = json!({"recipients": []});
    let answer = cluster.call(1, "POST", "/cluster/backup", Some(&body)).await;
    assert!(
        matches!(&answer, Some((400, text)) if text.to_string().contains("always encrypted")),
        "{answer:?}"
    );
    assert!(
        !Path::new(&file).exists()
            && std::fs::read_dir(cluster.dir.path())
                .unwrap()
                .flatten()
                .all(|f| !f.file_name().to_string_lossy().contains(".part"))
    );

    let good = take(&["--out", &file, "--recipient", &recipient]);
    done(&good.iter().map(String::as_str).collect::<Vec<_>>());
    refuse(&["--out", &file, "--recipient", &recipient], "exists already and is left alone");
    mesh(&cluster, 1, "after").await;
    let shown = done(&["backup", "inspect", &file, "--identity", &key]);
    assert!(shown.contains("2 Mesh") && shown.contains("It is whole."), "{shown}");
    assert!(cluster.log(1).contains("backup_done"));

    // Cut short, changed, another's: neither inspected nor restored.
    let bytes = std::fs::read(&file).unwrap();
    let bad = path("bad.age");
    let fresh = path("fresh");
    let restore = |from: &str, identity: &str, dir: &str| {
        let args = [
            "restore",
            "--from",
            from,
            "--identity",
            identity,
            "--config",
            &config,
            "--data-dir",
            dir,
        ];
        args.map(str::to_owned)
    };
    let refuse_restore = |from: &str, identity: &str, dir: &str, words: &str| {
        let args = restore(from, identity, dir);
        refused(&args.each_ref().map(String::as_str), words);
    };
    for len in [0, 10, 150, 300, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&bad, &bytes[..len]).unwrap();
        refuse_restore(&bad, &key, &fresh, "cut short");
        refused(&["backup", "inspect", &bad, "--identity", &key], "cut short");
    }
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    std::fs::write(&bad, changed).unwrap();
    refuse_restore(&bad, &key, &fresh, "use another copy");
    refuse_restore(&file, &other, &fresh, "none of them belongs to the identities");
    refuse_restore(&config, &key, &fresh, "it is no backup");
    refuse_restore(&file, &config, &fresh, "there is no age identity in it");
    refuse_restore(&file, &key, &path("data1"), "is not empty, there is");
    assert!(!Path::new(&fresh).exists(), "nothing was made");
    // A list of members without this node.
    let alone = path("alone.yaml");
    let text = std::fs::read_to_string(&config)
        .unwrap()
        .replace("{ id: 1, address", "{ id: 2, address");
    std::fs::write(&alone, text).unwrap();
    let args = [
        "restore",
        "--from",
        &file,
        "--identity",
        &key,
        "--config",
        &alone,
        "--data-dir",
        &fresh,
    ];
    refused(&args, "members");
    assert!(!Path::new(&fresh).exists(), "nothing was made");

    // The zone is ahead of the backup, in both directions.
    zone.make("own").await;
    wait("the zone has the later mesh", async || zone.has("after")).await;
    wait("the zone knows where it is", async || zone.store.view().global().is_some()).await;

    // The real one, under the old name.
    let before = cluster.status(1).await;
    let token = cluster.token(1);
    assert_eq!(cluster.stop(1).await, 0);
    let known = zone.store.view().global().unwrap();
    std::fs::rename(cluster.path("data1"), cluster.path("old")).unwrap();
    let args = restore(&file, &key, &cluster.path("data1"));
    let said = done(&args.each_ref().map(String::as_str));
    assert!(said.contains("goes on from history"), "{said}");
    cluster.start(1);
    cluster.ready(1).await;
    let now = cluster.status(1).await;
    assert_ne!(now["history"], before["history"]);
    assert_eq!(
        (&now["origin"]["history"], now["origin"]["by"].as_str()),
        (&before["history"], Some("restore"))
    );
    assert!(now["revision"].as_u64().unwrap() > 1_000_000_000, "{now}");
    wait("the token is written", async || data(&cluster, 1, "admin-user-token").exists()).await;
    assert_eq!(cluster.token(1), token, "tokens stay valid");
    assert!(has(&cluster, 1, "before").await && !has(&cluster, 1, "after").await);
    mesh(&cluster, 1, "new").await;
    assert!(cluster.status(1).await["revision"].as_u64() > now["revision"].as_u64());
    held_in(&zone, &cluster, "after", known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_goes_on_when_the_others_are_lost() {
    init();
    let mut cluster = Cluster::prepare(3, 1);
    (1..=3).for_each(|n| cluster.start(n));
    for n in 1..=3 {
        cluster.ready(n).await;
    }
    mesh(&cluster, 1, "kept").await;
    let zone = zone(&cluster).await;
    zone.make("own").await;
    wait("the zone has the mesh", async || zone.has("kept")).await;
    let config = cluster.path("node1.yaml");
    let recover = ["recover", "--config", &config];
    refused(&recover, "is in use by process");
    cluster.kill(1);
    refused(&recover, "which is a majority: start this node instead");
    refused(&["recover", "--config", &config, "--accept-data-loss"], "Nothing was changed");
    // What the others acknowledge without it is what will be lost.
    wait("the others go on", async || {
        let document = json!({"type": "Mesh", "name": "lost"});
        matches!(cluster.call(2, "PUT", "/meshes/lost", Some(&document)).await, Some((200 | 201, _)))
    })
    .await;
    let before = cluster.status(2).await;
    wait("the zone has what will be lost", async || zone.has("lost")).await;
    cluster.kill(2);
    cluster.kill(3);
    let known = zone.store.view().global().unwrap();

    let untouched = content(&data(&cluster, 1, ""));
    let ran = command(&recover);
    assert_eq!(ran.code, 3, "{} {}", ran.out, ran.err);
    for words in [
        "What may be lost",
        "known to be committed",
        "log last written",
        "--accept-data-loss",
    ] {
        assert!(ran.out.contains(words), "{words}: {}", ran.out);
    }
    let other = cluster.path("data2");
    refused(&["recover", "--config", &config, "--compare", &other], "has more than this one");
    refused(
        &["recover", "--config", &config, "--compare", &cluster.path("ca")],
        "is no data folder of a node",
    );
    assert!(content(&data(&cluster, 1, "")) == untouched, "looking changes nothing");
    let second = cluster.path("node2.yaml");
    let ran = command(&["recover", "--config", &second, "--compare", &cluster.path("data1")]);
    assert!(ran.code == 3 && ran.out.contains("this one has most"), "{} {}", ran.out, ran.err);

    let said = done(&["recover", "--config", &config, "--accept-data-loss"]);
    assert!(said.contains("goes on alone"), "{said}");
    cluster.start(1);
    cluster.ready(1).await;
    let now = cluster.status(1).await;
    assert_eq!(
        (&now["origin"]["history"], now["origin"]["by"].as_str()),
        (&before["history"], Some("recover"))
    );
    assert!(now["history"] != before["history"] && now["revision"].as_u64() > before["revision"].as_u64());
    assert!(has(&cluster, 1, "kept").await && !has(&cluster, 1, "lost").await);
    mesh(&cluster, 1, "new").await;
    held_in(&zone, &cluster, "lost", known).await;

    // An old member does not get in, and changes nothing; with an empty folder it does.
    cluster.start(2);
    wait("node 2 is told that it is of another history", async || {
        let status = cluster.status(2).await.to_string();
        status.contains("belongs to history") || cluster.log(2).contains("belongs to history")
    })
    .await;
    assert!(has(&cluster, 1, "new").await);
    cluster.kill(2);
    std::fs::remove_dir_all(cluster.path("data2")).unwrap();
    let text = std::fs::read_to_string(&second)
        .unwrap()
        .replace("cluster:\n", "cluster:\n  first_start: wait\n");
    std::fs::write(&second, text).unwrap();
    // All that are configured must be there before the group grows: one that is away would be a voter that is missed.
    let third = cluster.path("node3.yaml");
    let text = std::fs::read_to_string(&third)
        .unwrap()
        .replace("cluster:\n", "cluster:\n  first_start: wait\n");
    std::fs::write(&third, text).unwrap();
    std::fs::remove_dir_all(cluster.path("data3")).unwrap();
    cluster.start(2);
    cluster.start(3);
    cluster.ready(2).await;
    wait("node 2 has everything", async || {
        has(&cluster, 2, "new").await && has(&cluster, 2, "kept").await
    })
    .await;
    assert_eq!(cluster.status(2).await["history"], now["history"]);
}
