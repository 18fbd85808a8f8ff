//! Settings: what a change does to the file, to the machine, and to the next call.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::{Guest, Run, alone, machinist, newest_entry, run, shared, systemd_version, unique};

/// What the first process in a machine has as FROM_SETTINGS.
fn environment(guest: &Guest) -> Option<String> {
    let bytes = fs::read(format!("/proc/{}/environ", guest.leader())).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.split('\0')
        .find_map(|word| word.strip_prefix("FROM_SETTINGS="))
        .map(str::to_owned)
}

fn text(guest: &Guest) -> String {
    fs::read_to_string(guest.settings()).unwrap()
}

fn history(name: &str) -> PathBuf {
    Path::new("/var/lib/machinist/history").join(name)
}

/// Runs `machinist` in a mount namespace of its own, after `prepare`.
fn in_namespace(prepare: &str, words: &[&str]) -> Run {
    let script = format!("{prepare}\nmachinist \"$@\"");
    let mut all = vec!["-m", "--", "bash", "-euc", &script, "bash"];
    all.extend(words);
    run("unshare", all)
}

#[test]
fn a_change_holds_from_the_next_start() {
    let _host = shared();
    let guest = Guest::busybox("cfset");
    let name = guest.name.as_str();
    let set = |value: &str| {
        let setting = format!("Exec.Environment=FROM_SETTINGS={value}");
        vec!["config".to_owned(), "set".to_owned(), name.to_owned(), setting]
    };
    machinist(set("one"))
        .ok()
        .stdout_is("")
        .stderr_is(&format!("changed {name}; holds from its next start\n"));
    assert_eq!(
        text(&guest),
        "[Exec]\nKillSignal=SIGUSR2\nEnvironment=FROM_SETTINGS=one\n"
    );
    guest.start();
    assert_eq!(environment(&guest).as_deref(), Some("one"));
    let before = fs::metadata(guest.settings()).unwrap();
    let same = machinist(set("one")).args(["--json"]).ok().json();
    let settings = guest.settings();
    let expected = serde_json::json!([{
        "machine": name, "result": "unchanged", "file": settings, "change": null, "holds": "now", "overridden": []
    }]);
    assert_eq!(same, expected);
    let after = fs::metadata(guest.settings()).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    machinist(set("two")).ok().stderr_is(&format!(
        "changed {name}; it runs with the former ones until it is restarted\n"
    ));
    assert_eq!(environment(&guest).as_deref(), Some("one"));
    machinist(set("two"))
        .args(["--json"])
        .ok()
        .stdout_has("\"holds\":\"after-restart\"");
    machinist(set("two"))
        .args(["--restart", "--dry-run"])
        .ok()
        .stdout_has(&format!("restart unit {}", guest.unit()));
    machinist(set("two")).args(["--restart"]).ok();
    assert_eq!(environment(&guest).as_deref(), Some("two"));
    machinist(set("three"))
        .args(["--restart"])
        .ok()
        .stderr_is(&format!("changed {name}, and restarted it\n"));
    assert_eq!(environment(&guest).as_deref(), Some("three"));
    machinist(["config", "undo", name, "--restart"]).ok();
    assert_eq!(environment(&guest).as_deref(), Some("two"));
    let entry = newest_entry(&[format!("MACHINE={name}"), "MACHINIST_VERB=config undo".to_owned()]).unwrap();
    assert_eq!(entry["MACHINIST_RESULT"], "done", "{entry}");
    machinist(["stop", name]).ok();
}

#[test]
fn single_settings_are_read_and_taken_out() {
    let _host = shared();
    let guest = Guest::busybox("cfget");
    let name = guest.name.as_str();
    machinist(["config", "add", name, "Network.Port=tcp:8080:80", "Network.Port=udp:53"]).ok();
    machinist(["config", "get", name, "Network.Port"])
        .ok()
        .stdout_is("tcp:8080:80\nudp:53\n");
    machinist(["config", "get", name, "Network.Port", "Exec.Boot", "--json"])
        .ok()
        .stdout_is("{\"Exec.Boot\":null,\"Network.Port\":[\"tcp:8080:80\",\"udp:53\"]}\n");
    machinist(["config", "get", name, "Exec.Boot"]).status(1).fails_with(
        &format!("machine '{name}' does not set Exec.Boot="),
        &format!("machinist config cat {name}"),
    );
    machinist(["config", "unset", name, "Network.Port=udp:53"]).ok();
    let file = guest.settings();
    machinist(["config", "cat", name]).ok().stdout_is(&format!(
        "# {}\n[Exec]\nKillSignal=SIGUSR2\n\n[Network]\nPort=tcp:8080:80\n",
        file.display()
    ));
    machinist(["config", "unset", name, "Network.Port"]).ok();
    machinist(["config", "get", name, "Network.Port"]).status(1);
    let list = machinist(["config", "undo", name, "--list", "--json"]).ok().json();
    let what: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["what"].as_str().unwrap())
        .collect();
    assert_eq!(
        what,
        [
            "add Network.Port=tcp:8080:80 Network.Port=udp:53",
            "unset Network.Port=udp:53",
            "unset Network.Port"
        ]
    );
    for words in [
        &["config", "cat", "no-such-machine"][..],
        &["config", "get", "no-such-machine", "Exec.Boot"],
        &["config", "set", "no-such-machine", "Exec.Boot=yes"],
        &["config", "check", "no-such-machine"],
    ] {
        machinist(words).status(3).stderr_has("no-such-machine");
    }
    machinist(["remove", "-y", name]).ok();
    assert!(!history(name).exists());
}

#[test]
fn a_wrong_setting_changes_nothing() {
    let _host = shared();
    let guest = Guest::busybox("cfbad");
    let name = guest.name.as_str();
    let before = text(&guest);
    for (setting, status) in [
        ("Exec.Boot=perhaps", 2),
        ("Exec.Boto=yes", 2),
        ("Exec.User=a\nb", 2),
        ("Exec.User=\u{1b}[2J", 2),
        ("Exec.Parameters=/bin/sh", 1),
    ] {
        machinist(["config", "set", name, "Exec.WorkingDirectory=/tmp", setting]).status(status);
        assert_eq!(text(&guest), before, "{setting}");
    }
    let newest = "Exec.RestrictAddressFamilies=AF_UNIX";
    let new = machinist(["config", "set", name, newest]).any();
    assert_eq!(new.status == 0, systemd_version() >= 261, "{new:?}");
    // An ordinary user sees, and changes nothing.
    let user = ["--reuid=1000", "--regid=1000", "--clear-groups", "machinist", "config"];
    let as_user = |words: &[&str]| run("setpriv", user.iter().chain(words));
    as_user(&["cat", name])
        .ok()
        .stdout_has("KillSignal=SIGUSR2")
        .stderr_is("");
    as_user(&["set", name, "Exec.User=a"])
        .status(4)
        .stderr_has("config set needs root");
    as_user(&["undo", name]).status(4);
    as_user(&["set", name, "Exec.User=a", "--dry-run"])
        .ok()
        .stdout_has(&format!("write '{}'", guest.settings().display()));
}

#[test]
fn a_file_beside_the_image_moves_to_etc() {
    let _host = shared();
    let guest = Guest::busybox("cfside");
    let name = guest.name.as_str();
    fs::remove_file(guest.settings()).unwrap();
    let beside = guest.image().with_file_name(format!("{name}.nspawn"));
    fs::write(&beside, "[Exec]\nKillSignal=SIGUSR2\nCapability=CAP_SYS_ADMIN\n").unwrap();
    machinist(["config", "check", name])
        .status(1)
        .stdout_has("error[not-trusted]");
    let copied = format!("copied '{}' to '{}'", beside.display(), guest.settings().display());
    machinist(["config", "set", name, "Exec.Environment=FROM_SETTINGS=x"])
        .ok()
        .stderr_has(&copied)
        .stderr_has("1 settings that systemd did not heed");
    guest.start();
    assert_eq!(environment(&guest).as_deref(), Some("x"));
    machinist(["stop", name]).ok();
    machinist(["config", "check", name])
        .ok()
        .stdout_has("warning[hidden-file]");
    fs::remove_file(beside).unwrap();
}

#[test]
fn two_calls_at_once_both_land() {
    let _host = shared();
    let guest = Guest::busybox("cftwo");
    let name = guest.name.as_str();
    let calls: Vec<_> = (0..8)
        .map(|number| machinist(["config", "add", name, &format!("Files.Bind=/tmp:/mnt/{number}")]).spawn())
        .collect();
    for call in calls {
        let output = call.wait();
        assert_eq!(output.status, 0, "{output:?}");
    }
    for number in 0..8 {
        assert!(
            text(&guest).contains(&format!("Bind=/tmp:/mnt/{number}\n")),
            "{}",
            text(&guest)
        );
    }
}

#[test]
fn a_disk_that_is_full_or_read_only_leaves_the_old_file() {
    let _host = shared();
    let guest = Guest::busybox("cfdisk");
    let name = guest.name.as_str();
    let before = text(&guest);
    let set = ["config", "set", name, "Exec.User=root"];
    let unchanged = |prepare: &str, reason: &str| {
        let output = in_namespace(prepare, &set).status(1).stderr_has(reason);
        assert!(!output.stderr.contains("panicked"), "{output:?}");
        assert_eq!(text(&guest), before);
        assert!(!history(name).exists() || fs::read_dir(history(name)).unwrap().count() == 0);
    };
    unchanged(
        "mount --bind /etc/systemd/nspawn /etc/systemd/nspawn; mount -o remount,bind,ro /etc/systemd/nspawn",
        "Read-only file system",
    );
    unchanged(
        "keep=$(mktemp -d); cp /etc/systemd/nspawn/* $keep; mount -t tmpfs -o size=64k tmpfs /etc/systemd/nspawn
        cp $keep/* /etc/systemd/nspawn/; rm -r $keep; head -c 1M /dev/zero >/etc/systemd/nspawn/filler || true",
        "No space left on device",
    );
    unchanged(
        "mkdir -p /var/lib/machinist; mount -t tmpfs -o size=4k,nr_inodes=2 tmpfs /var/lib/machinist",
        "No space left on device",
    );
    // What is no file is not taken for one.
    fs::remove_file(guest.settings()).unwrap();
    run("mkfifo", [guest.settings()]).ok();
    for words in [
        &set[..],
        &["config", "cat", name],
        &["config", "get", name, "Exec.User"],
    ] {
        machinist(words).status(1).stderr_has("it is a fifo");
    }
    machinist(["config", "check", name])
        .status(1)
        .stdout_has("error[unreadable]");
    fs::remove_file(guest.settings()).unwrap();
}

#[test]
fn a_killed_change_is_made_or_not() {
    let _host = shared();
    let guest = Guest::busybox("cfkill");
    let name = guest.name.as_str();
    let before = text(&guest);
    for step in 0..2 {
        machinist(["config", "set", name, "Exec.User=root"])
            .env("MACHINIST_DIE_AT_STEP", step.to_string())
            .status(128 + 9);
        assert_eq!(text(&guest), before);
    }
    machinist(["config", "set", name, "Exec.User=root"]).ok();
    machinist(["config", "undo", name])
        .env("MACHINIST_DIE_AT_STEP", "2")
        .status(128 + 9);
    assert_eq!(text(&guest), before);
}

#[test]
fn check_knows_this_host() {
    let _host = shared();
    let guest = Guest::busybox("cfchk");
    let name = guest.name.as_str();
    let missing = unique("nobr");
    guest.write_settings(&format!(
        "[Exec]\nKillSignal=SIGUSR2\n[Network]\nBridge={missing}\n[Files]\nBind=/no/such\n"
    ));
    let found = machinist(["config", "check", name, "--json"]).ok().json();
    let codes: Vec<&str> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["code"].as_str().unwrap())
        .collect();
    assert_eq!(codes, ["missing-bridge", "missing-source"]);
    machinist(["config", "check", name, "--strict"]).status(1);
    run("ip", ["link", "add", &missing, "type", "bridge"]).ok();
    guest.write_settings(&format!("[Network]\nBridge={missing}\n[Files]\nBind=/usr\n"));
    machinist(["config", "check", name, "--strict"])
        .ok()
        .stdout_is("")
        .stderr_is("1 file checked: 0 errors, 0 warnings\n");
    run("ip", ["link", "delete", &missing]).ok();
    guest.write_settings("[Network]\nMACVLAN=host0\n");
    machinist(["config", "check", name, "--strict"])
        .status(1)
        .stdout_has("warning[host0-dropped]");
}

#[test]
fn users_that_are_not_the_machines_alone_are_told() {
    let _host = alone();
    let (guest, other) = (Guest::busybox("cfuid"), Guest::busybox("cfuid2"));
    let (name, neighbour) = (guest.name.as_str(), other.name.as_str());
    // Chosen by systemd-nspawn, at the first start.
    other.start();
    let map = fs::read_to_string(format!("/proc/{}/uid_map", other.leader())).unwrap();
    let base: u32 = map.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(base >= 524_288, "{map}");
    let warned = machinist([
        "config",
        "set",
        name,
        &format!("Exec.PrivateUsers={}:65536", base + 65_535),
    ])
    .ok();
    warned.stderr_has(&format!(
        "{base} to {} are those of machine '{neighbour}', which runs",
        base + 65_535
    ));
    machinist(["stop", neighbour]).ok();
    let said = machinist(["config", "set", neighbour, "Exec.PrivateUsers=1879048192:65536"])
        .ok()
        .stderr;
    assert!(!said.contains("alone"), "{said}");
    let subuid = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let line = subuid.lines().count() + 1;
    fs::write(
        "/etc/subuid",
        format!("{subuid}nobody:1879113728:65536\n{name}:1879244800:65536\n"),
    )
    .unwrap();
    let check = |value: &str| {
        guest.write_settings(&format!("[Exec]\nKillSignal=SIGUSR2\nPrivateUsers={value}\n"));
        let found = machinist(["config", "check", name, "--json"]).ok().json();
        let found = found.as_array().unwrap();
        assert!(found.len() < 2, "{found:?}");
        found.first().map(|found| {
            assert_eq!((&found["code"], &found["line"]), (&json!("shared-users"), &json!(3)));
            (
                found["message"].as_str().unwrap().to_owned(),
                found["hint"].as_str().unwrap().to_owned(),
            )
        })
    };
    let (message, _) = check("1879048193:1").expect("the neighbour's");
    let place = format!("machine '{neighbour}' ({}:", other.settings().display());
    assert!(message.contains(&place), "{message}");
    let (message, hint) = check("1879113728:131072").expect("of subuid(5)");
    assert!(
        message.contains(&format!(
            "are those of subordinate users of 'nobody' (/etc/subuid:{line})"
        )),
        "{message}"
    );
    let (_, free) = hint.split_once("PrivateUsers=").unwrap();
    assert_eq!(check(free.split_once(',').unwrap().0), None);
    let (message, _) = check("1:65534").expect("those of the host");
    assert!(message.contains("user 'daemon' (/etc/passwd:"), "{message}");
    // Kept for this very machine; and nobody's.
    for mine in ["1879244800:65536", "1879310336:65536"] {
        assert_eq!(check(mine), None, "{mine}");
    }
    // Its own numbers are no one else's while it runs, either.
    guest.start();
    assert_eq!(check("1879310336:65536"), None);
    // Files that systemd-nspawn gave to a range say whose it is.
    std::os::unix::fs::chown(other.image(), Some(700_000), Some(700_000)).unwrap();
    let (message, _) = check("720895:1").expect("the neighbour's files'");
    let place = format!("machine '{neighbour}' (the owner of {})", other.image().display());
    assert!(message.contains(&place), "{message}");
    std::os::unix::fs::chown(other.image(), Some(0), Some(0)).unwrap();
    let map = fs::read_to_string(format!("/proc/{}/uid_map", guest.leader())).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1879310336", "65536"]);
    fs::write("/etc/subuid", subuid).unwrap();
}

#[test]
fn an_editor_replaces_the_file_only_with_what_systemd_takes() {
    let _host = shared();
    let guest = Guest::busybox("cfedit");
    let name = guest.name.as_str();
    let before = text(&guest);
    let edit = |editor: &str| {
        machinist(["config", "edit", name])
            .env("SYSTEMD_EDITOR", "")
            .env("VISUAL", editor)
    };
    edit("true").ok().stderr_is("nothing was changed\n");
    edit("false").status(1).stderr_has("'false' ");
    edit("no-such-editor").status(1).stderr_has("is not installed");
    let refused = edit("sed -i s/SIGUSR2/SIGNONE/")
        .status(1)
        .stdout_has("error[bad-value]")
        .stderr_has("what you wrote is kept in '");
    let (_, kept) = refused.stderr.split_once("kept in '").unwrap();
    let kept = Path::new(kept.split_once('\'').unwrap().0);
    assert!(fs::read_to_string(kept).unwrap().contains("SIGNONE"));
    assert_eq!(text(&guest), before);
    // Somebody else writes the file while the editor is open.
    let script = format!(
        "bash -c 'echo \"# theirs\" >>{}; echo \"# ours\" >>$0'",
        guest.settings().display()
    );
    edit(&script)
        .status(1)
        .stderr_has("was changed by somebody else meanwhile")
        .stderr_has("what you wrote is kept");
    assert_eq!(text(&guest), format!("{before}# theirs\n"));
    edit("sed -i s/SIGUSR2/SIGUSR1/")
        .ok()
        .stderr_is(&format!("changed {name}; holds from its next start\n"));
    assert_eq!(text(&guest), "[Exec]\nKillSignal=SIGUSR1\n# theirs\n");
    machinist(["config", "undo", name]).ok();
    assert_eq!(text(&guest), format!("{before}# theirs\n"));
    machinist(["config", "undo", name, "--list"])
        .ok()
        .stdout_has("CHANGE TIME")
        .stdout_has("2 changes listed.");
    // A new file begins with a word about what it is.
    fs::remove_file(guest.settings()).unwrap();
    edit("sed -i $a[Exec]").ok();
    assert_eq!(
        text(&guest),
        format!("# Settings of machine '{name}', see systemd.nspawn(5).\n[Exec]\n")
    );
}

#[test]
fn only_what_settings_mean_is_compared() {
    let _host = shared();
    let (one, two) = (Guest::busybox("cfdiff"), Guest::busybox("cfdiff"));
    let (a, b) = (one.name.as_str(), two.name.as_str());
    one.write_settings("[Exec]\nBoot=yes\nUser=a\n[Files]\nBind=/usr:/a\nBind=/usr:/b\n");
    two.write_settings("# c\n[Files]\nBind=/usr:/b\nBind=/usr:/c\nNonsense=1\n[Exec]\nUser=b\nBoot=yes\n");
    machinist(["config", "diff", a, b])
        .ok()
        .stdout_is("-Exec.User=a\n+Exec.User=b\n-Files.Bind=/usr:/a\n+Files.Bind=/usr:/c\n");
    machinist(["config", "diff", a, a]).ok().stdout_is("");
    machinist(["config", "diff", a])
        .ok()
        .stdout_is("+Exec.Boot=yes\n+Exec.User=a\n+Files.Bind=/usr:/a\n+Files.Bind=/usr:/b\n");
    machinist(["config", "diff", b, "--json"])
        .ok()
        .stdout_has("{\"from\":null,\"setting\":\"Exec.Boot\",\"to\":[\"yes\"]}");
    machinist(["config", "diff", a, "no-such-machine"]).status(3);
}

#[test]
fn undo_gives_a_file_its_mode_and_owner_again() {
    let _host = shared();
    let guest = Guest::busybox("cfmode");
    let name = guest.name.as_str();
    let file = guest.settings();
    let mode_and_owner = || {
        let found = fs::metadata(&file).unwrap();
        (found.mode() & 0o7777, found.uid(), found.gid())
    };
    run("chmod", ["0600", file.to_str().unwrap()]).ok();
    run("chown", ["1000:1000", file.to_str().unwrap()]).ok();
    let before = text(&guest);
    machinist(["config", "set", name, "Exec.Environment=SECRET=1"]).ok();
    assert_eq!(mode_and_owner(), (0o600, 1000, 1000));
    fs::remove_file(&file).unwrap();
    machinist(["config", "undo", name]).ok();
    assert_eq!((text(&guest), mode_and_owner()), (before, (0o600, 1000, 1000)));
    // It was not there before that.
    machinist(["config", "undo", name, "2"]).ok();
    assert!(!file.exists());
    machinist(["config", "undo", name, "3"]).ok();
    assert_eq!(mode_and_owner(), (0o600, 1000, 1000));
    // Nor does a change that fails half-way leave it open to all.
    let drop_in = guest.drop_ins().join("50-machinist-restart.conf");
    machinist(["config", "set", name, "restart=always"]).ok();
    run("chmod", ["0600", drop_in.to_str().unwrap()]).ok();
    machinist(["config", "unset", name, "restart"]).ok();
    assert!(!drop_in.exists());
    machinist(["config", "undo", name]).ok();
    assert_eq!(fs::metadata(&drop_in).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn check_knows_what_private_users_go_with() {
    let _host = shared();
    let guest = Guest::busybox("cfusers");
    let name = guest.name.as_str();
    // What is warned of is so: for each, whether it starts, and whether its root is another user of the host.
    for (text, code, starts, private) in [
        ("OOMScoreAdjust=5\n", Some("oom-score-private-users"), false, false),
        ("OOMScoreAdjust=0\n", None, true, true),
        ("OOMScoreAdjust=5\nPrivateUsers=no\n", None, true, false),
        (
            "[Files]\nPrivateUsersOwnership=auto\n",
            Some("private-users-dropped"),
            true,
            false,
        ),
        (
            "[Files]\nPrivateUsersChown=no\n",
            Some("private-users-dropped"),
            true,
            false,
        ),
        (
            "PrivateUsers=pick\n[Files]\nPrivateUsersOwnership=auto\n",
            None,
            true,
            true,
        ),
    ] {
        guest.write_settings(&format!("[Exec]\nKillSignal=SIGUSR2\n{text}"));
        let found = machinist(["config", "check", name]).ok().stdout;
        match code {
            Some(code) => assert!(found.contains(&format!("warning[{code}]")), "{text}{found}"),
            None => assert!(!found.contains("private-users"), "{text}{found}"),
        }
        let started = machinist(["start", name]).any();
        assert_eq!(started.status == 0, starts, "{text}{started:?}");
        if starts {
            let map = fs::read_to_string(format!("/proc/{}/uid_map", guest.leader())).unwrap();
            let base = map.split_whitespace().nth(1).unwrap();
            assert_eq!(base != "0", private, "{text}{map}");
            machinist(["stop", name]).ok();
        }
        run("systemctl", ["reset-failed", &guest.unit()]).any();
    }
    // The remedy that is named.
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n");
    machinist(["limit", name, "oom-score=5"]).ok();
    guest.start();
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", guest.leader())).unwrap();
    assert_eq!(score, "5\n");
    machinist(["stop", name]).ok();
}
