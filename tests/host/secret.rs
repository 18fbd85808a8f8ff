//! Secrets: what a machine is given, and where else the value is seen.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::support::{Guest, Run, machinist, run, sh, shared, unique, unit_property};

const BINARY: &[u8] = b"\0one\ntwo\xff\xfe\r\n\0";

pub(crate) fn directory(guest: &Guest) -> PathBuf {
    Path::new("/var/lib/machinist/secrets").join(&guest.name)
}

pub(crate) fn drop_in(guest: &Guest) -> PathBuf {
    guest.drop_ins().join("50-machinist-secret.conf")
}

pub(crate) fn set(guest: &Guest, key: &str, value: impl Into<Vec<u8>>) -> Run {
    machinist(["secret", "set", &guest.name, key]).stdin(value)
}

/// What the machine was given, read as root of the host where its first process was told to look.
pub(crate) fn given(guest: &Guest, key: &str) -> Option<Vec<u8>> {
    let process = format!("/proc/{}", guest.leader());
    let environment = fs::read(format!("{process}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let directory = environment
        .split('\0')
        .find_map(|word| word.strip_prefix("CREDENTIALS_DIRECTORY="))?;
    fs::read(format!("{process}/root{directory}/{key}")).ok()
}

pub(crate) fn keys(guest: &Guest) -> Vec<String> {
    let rows = machinist(["secret", "list", &guest.name, "--json"]).ok().json();
    let key = |row: &Value| row["key"].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(key).collect()
}

/// The unit's command line, as systemd has it.
fn command_line(guest: &Guest) -> String {
    let said = guest.property("ExecStart");
    let line = said.split("argv[]=").nth(1).unwrap_or_default();
    line.split(" ;").next().unwrap_or_default().to_owned()
}

/// What `config check` finds of the drop-in.
pub(crate) fn findings(guest: &Guest) -> Vec<String> {
    let found = machinist(["config", "check", &guest.name, "--json"]).any().json();
    let file = drop_in(guest);
    let ours = |row: &&Value| row["file"] == file.to_str().unwrap();
    let all = found.as_array().unwrap().iter().filter(ours);
    all.map(|row| row["code"].as_str().unwrap().to_owned()).collect()
}

fn uid_range(guest: &Guest) -> String {
    let map = fs::read_to_string(format!("/proc/{}/uid_map", guest.leader())).unwrap();
    map.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_machine_is_given_its_secrets_when_it_starts() {
    let _host = shared();
    let guest = Guest::busybox("sec");
    let name = guest.name.as_str();
    let plain = command_line(&guest);
    machinist(["secret", "set", name, "token", "--dry-run"])
        .ok()
        .stdout_has("encrypt the value by `systemd-creds encrypt --name=token - -`\n")
        .stdout_has("have systemd read its unit files anew\n");
    assert!(!directory(&guest).exists() && !guest.drop_ins().exists());
    set(&guest, "token", BINARY)
        .ok()
        .stdout_is("")
        .stderr_is(&format!("{name} gets token; holds from its next start\n"));
    set(&guest, "empty", "").ok();
    let file = directory(&guest).join("token");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&file), mode(&directory(&guest))), (0o600, 0o700));
    assert!(!fs::read(&file).unwrap().windows(3).any(|bytes| bytes == b"one"));
    run("systemd-analyze", ["verify", &guest.unit()])
        .any()
        .lacks("50-machinist");
    guest.start();
    assert_eq!(given(&guest, "token").as_deref(), Some(BINARY));
    assert_eq!(given(&guest, "empty").as_deref(), Some(&b""[..]));
    // Its root owns it, and nobody else in there reads it.
    let base = uid_range(&guest);
    assert_ne!(base, "0", "the template has private users");
    let seen = fs::metadata(format!("/proc/{}/root/run/host/credentials/token", guest.leader())).unwrap();
    assert_eq!((seen.uid().to_string(), seen.mode() & 0o777), (base, 0o400));

    // The same value is no change.
    let before = fs::metadata(&file).unwrap();
    let same = set(&guest, "token", BINARY).args(["--json"]).ok().json();
    let expected = serde_json::json!([{"machine": name, "result": "unchanged", "keys": ["token"], "holds": "now"}]);
    assert_eq!(same, expected);
    let after = fs::metadata(&file).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    // Another one is, from the next start on.
    set(&guest, "token", "two\n")
        .ok()
        .stderr_has("it runs with the former ones until it is restarted");
    assert_eq!(given(&guest, "token").as_deref(), Some(BINARY));
    set(&guest, "token", "three")
        .args(["--restart"])
        .ok()
        .stderr_has("and restarted it");
    assert_eq!(given(&guest, "token").as_deref(), Some(&b"three"[..]));

    // Without private users, too.
    machinist(["config", "set", name, "Exec.PrivateUsers=no", "--restart"]).ok();
    assert_eq!(uid_range(&guest), "0");
    assert_eq!(given(&guest, "token").as_deref(), Some(&b"three"[..]));
    machinist(["config", "show", name])
        .ok()
        .stdout_has("--load-credential")
        .stdout_has("LoadCredentialEncrypted");

    machinist(["secret", "remove", name, "empty", "nothing"])
        .ok()
        .stderr_has(&format!("{name} no longer gets empty; it runs"));
    assert_eq!(keys(&guest), ["token"]);
    machinist(["restart", name]).ok();
    assert_eq!(given(&guest, "empty"), None);
    machinist(["secret", "remove", name, "token"]).ok();
    machinist(["secret", "remove", name, "token"])
        .ok()
        .stderr_has(&format!("{name} was not given token"));
    assert!(!directory(&guest).exists() && !guest.drop_ins().exists());
    assert_eq!(command_line(&guest), plain);
}

#[test]
fn services_of_a_debian_machine_take_them() {
    let _host = shared();
    let guest = Guest::debian("secdeb");
    let name = guest.name.as_str();
    set(&guest, "db.password", BINARY).ok();
    machinist(["start", name, "--wait"]).ok();
    let inside = "/run/credentials/@system/db.password";
    assert_eq!(
        fs::read(format!("/proc/{}/root{inside}", guest.leader())).unwrap(),
        BINARY
    );
    let script = format!(
        "systemd-run -q --wait -p LoadCredential=db.password bash -c 'cmp $CREDENTIALS_DIRECTORY/db.password {inside}'"
    );
    machinist(["exec", name, "--", "/bin/bash", "-c", &script]).ok();
    // An ordinary user of the machine does not see it.
    machinist(["exec", name, "--user", "nobody", "--", "/bin/cat", inside])
        .any()
        .lacks("two");
}

#[test]
fn the_value_is_seen_nowhere_else() {
    let _host = shared();
    let guest = Guest::busybox("secsee");
    let name = guest.name.as_str();
    let value = unique("hush-hush-value");
    // All processes, as long as it takes.
    let done = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut seen = Vec::new();
            let mut rounds = 0;
            while !done.load(Ordering::SeqCst) {
                for process in fs::read_dir("/proc").unwrap().flatten() {
                    for file in ["cmdline", "environ"] {
                        let text = fs::read(process.path().join(file)).unwrap_or_default();
                        if text.windows(value.len()).any(|bytes| bytes == value.as_bytes()) {
                            seen.push(process.path());
                        }
                    }
                }
                rounds += 1;
            }
            assert!(rounds > 3, "only {rounds} looks");
            seen
        });
        for key in ["a", "b", "c"] {
            set(&guest, key, value.as_str()).args(["--json"]).ok().lacks(&value);
        }
        done.store(true, Ordering::SeqCst);
        watch.join().unwrap()
    });
    assert_eq!(seen, Vec::<PathBuf>::new());
    set(&guest, "d", value.as_str()).args(["--dry-run"]).ok().lacks(&value);
    guest.start();
    assert_eq!(given(&guest, "a").as_deref(), Some(value.as_bytes()));
    machinist(["secret", "list", name])
        .ok()
        .stdout_has("3 secrets listed.")
        .lacks(&value);
    for words in [
        &["config", "show", name][..],
        &["config", "check", name],
        &["config", "undo", name, "--list"],
        &["status", name],
        &["show", name],
    ] {
        machinist(words).any().lacks(&value);
    }
    machinist(["stop", name]).ok();
    // Base64 of it would be there as well.
    run("systemctl", ["show", &guest.unit()]).ok().lacks(&value);
    run("journalctl", ["--sync"]).ok();
    run("journalctl", ["-q", "-o", "export"]).ok().lacks(&value);
    let script =
        "grep -r -l -e \"$1\" /etc /var/lib/machinist /var/lib/systemd /run/machinist /run/systemd /tmp /var/tmp";
    let found = sh(script, [&value]).any();
    assert_eq!(found.stdout, "", "{found:?}");
    // Nobody else may look at the encrypted one either.
    let user = ["--reuid=1000", "--regid=1000", "--clear-groups"];
    let file = directory(&guest).join("a");
    run("setpriv", user.iter().chain(&["cat", file.to_str().unwrap()])).status(1);
    let listed = run(
        "setpriv",
        user.iter().chain(&["machinist", "secret", "list", name, "--json"]),
    );
    assert_eq!(
        listed.ok().json()[0],
        serde_json::json!({"key": "a", "size": null, "changed": null, "file": file})
    );
}

/// The unit of one machine stands for the template, so that other tests keep theirs.
#[test]
fn another_command_line_of_the_unit_is_noticed() {
    let _host = shared();
    let guest = Guest::busybox("sectpl");
    let name = guest.name.as_str();
    set(&guest, "token", "one").ok();
    assert_eq!(findings(&guest), [""; 0]);
    let installed = run("systemctl", ["cat", "systemd-nspawn@.service"]).ok().stdout;
    let unit = PathBuf::from(format!("/etc/systemd/system/{}", guest.unit()));
    let upgraded = installed.replacen(
        "systemd-nspawn --quiet",
        "systemd-nspawn --quiet --setenv=UPGRADED=1",
        1,
    );
    assert_ne!(installed, upgraded);
    fs::write(&unit, upgraded).unwrap();
    run("systemctl", ["daemon-reload"]).ok();
    assert_eq!(findings(&guest), ["template-changed"]);
    machinist(["config", "check", name])
        .ok()
        .stdout_has(&format!("machinist secret set {name} --refresh"));
    machinist(["config", "check", name, "--strict"]).status(1);
    assert!(!command_line(&guest).contains("UPGRADED"));
    machinist(["secret", "set", name, "--refresh"]).ok();
    assert_eq!(findings(&guest), [""; 0]);
    assert!(command_line(&guest).contains("--load-credential=token:token --quiet --setenv=UPGRADED=1"));
    machinist(["secret", "set", name, "--refresh"])
        .ok()
        .stderr_has("has the unit's command line already");
    guest.start();
    assert_eq!(given(&guest, "token").as_deref(), Some(&b"one"[..]));
    machinist(["stop", name]).ok();
    // Any other set does it, too.
    fs::remove_file(&unit).unwrap();
    run("systemctl", ["daemon-reload"]).ok();
    assert_eq!(findings(&guest), ["template-changed"]);
    set(&guest, "token", "one").ok();
    assert_eq!(findings(&guest), [""; 0]);
    assert!(!command_line(&guest).contains("UPGRADED"));
}

#[test]
fn an_administrators_command_line_is_kept() {
    let _host = shared();
    let guest = Guest::busybox("secown");
    let name = guest.name.as_str();
    let own = "ExecStart=\nExecStart=systemd-nspawn --setenv=MINE=1 --quiet --keep-unit --boot -U --settings=override -M %i\n";
    // Read before ours: the secrets go along.
    fs::create_dir_all(guest.drop_ins()).unwrap();
    let early = guest.drop_ins().join("10-mine.conf");
    fs::write(&early, format!("[Service]\n{own}")).unwrap();
    set(&guest, "token", "one").ok();
    guest.start();
    let environment = fs::read(format!("/proc/{}/environ", guest.leader())).unwrap();
    assert!(String::from_utf8_lossy(&environment).contains("MINE=1"));
    assert_eq!(given(&guest, "token").as_deref(), Some(&b"one"[..]));
    machinist(["stop", name]).ok();
    // Read after ours: it wins, and is named.
    let late = guest.drop_ins().join("override.conf");
    fs::rename(&early, &late).unwrap();
    run("systemctl", ["daemon-reload"]).ok();
    assert_eq!(findings(&guest), ["secret-overruled"]);
    let (before, theirs) = (fs::read(drop_in(&guest)).unwrap(), fs::read(&late).unwrap());
    set(&guest, "other", "two").status(1).fails_with(
        &format!(
            "secrets cannot be handed to machine '{name}': '{}' sets ExecStart= after the secrets' drop-in",
            late.display()
        ),
        "rename it so that systemd reads it before, such as to 10-override.conf",
    );
    assert_eq!(
        (fs::read(drop_in(&guest)).unwrap(), fs::read(&late).unwrap()),
        (before, theirs)
    );
    assert_eq!(keys(&guest), ["token"]);
    // What is to go goes all the same.
    machinist(["secret", "remove", name, "token"]).ok();
    assert!(!drop_in(&guest).exists() && late.exists());
    fs::remove_file(&late).unwrap();
    // What runs no systemd-nspawn, or by a shell, cannot be changed.
    fs::write(
        &early,
        "[Service]\nExecStart=\nExecStart=/bin/sh -c 'exec systemd-nspawn -M %i'\n",
    )
    .unwrap();
    set(&guest, "token", "one")
        .status(1)
        .stderr_has("command line is no plain one of systemd-nspawn");
    assert!(!drop_in(&guest).exists() && !directory(&guest).exists());
    fs::remove_file(&early).unwrap();
    // Who edits our file is told before it is lost.
    set(&guest, "token", "one").ok();
    let edited = fs::read_to_string(drop_in(&guest))
        .unwrap()
        .replace(" --quiet", " --quiet --as-pid2");
    fs::write(drop_in(&guest), &edited).unwrap();
    assert_eq!(
        findings(&guest),
        ["template-changed"],
        "CommandLine= was edited as well"
    );
    let edited = edited.replacen(" --as-pid2", "", 1);
    fs::write(drop_in(&guest), &edited).unwrap();
    assert_eq!(findings(&guest), ["secret-edited"]);
    set(&guest, "other", "two").status(1).stderr_has("was changed by hand");
    assert_eq!(fs::read_to_string(drop_in(&guest)).unwrap(), edited);
}

#[test]
fn all_that_are_set_at_once_are_there() {
    let _host = shared();
    let guest = Guest::busybox("secmany");
    let names: Vec<String> = (0..6).map(|number| format!("key{number}")).collect();
    let calls: Vec<_> = names.iter().map(|key| set(&guest, key, key.as_str()).spawn()).collect();
    for call in calls {
        let output = call.wait();
        assert_eq!(output.status, 0, "{output:?}");
    }
    assert_eq!(keys(&guest), names);
    guest.start();
    for key in &names {
        assert_eq!(given(&guest, key).as_deref(), Some(key.as_bytes()));
    }
}

#[test]
fn they_go_with_their_machine() {
    let _host = shared();
    let guest = Guest::busybox("secrm");
    let name = guest.name.as_str();
    set(&guest, "token", "one").ok();
    let file = directory(&guest).join("token");
    machinist(["remove", "--yes", name, "--dry-run"])
        .ok()
        .stdout_has(&format!("remove '{}'", file.display()));
    machinist(["remove", "--yes", name]).ok().lacks("secrets");
    assert!(!directory(&guest).exists() && !guest.drop_ins().exists());
    let trash = sh("find /var/lib/machinist/trash -name token", [""; 0]).any().stdout;
    assert_eq!(trash, "");
    assert!(!unit_property(&guest.unit(), "ExecStart").contains("load-credential"));
}

#[test]
fn the_shell_knows_their_names() {
    let _host = shared();
    let guest = Guest::busybox("seccomp");
    for key in ["alpha", "beta"] {
        set(&guest, key, "x").ok();
    }
    let offered = |words: &[&str]| {
        let all = ["--", "machinist", "secret"].iter().chain(words).copied();
        let run = machinist(all)
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (words.len() + 1).to_string())
            .env("_CLAP_COMPLETE_COMP_TYPE", "9")
            .env("_CLAP_COMPLETE_SPACE", "true");
        let offered = run.ok().stdout;
        let names = offered.split_whitespace().filter(|word| !word.starts_with('-'));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let name = guest.name.as_str();
    assert_eq!(offered(&["remove", name, ""]), ["alpha", "beta"]);
    assert_eq!(offered(&["remove", name, "beta", ""]), ["alpha"]);
    assert_eq!(offered(&["set", name, "al"]), ["alpha"]);
    assert!(offered(&["list", "seccomp"]).contains(&guest.name));
}
