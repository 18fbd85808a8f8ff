//! Secrets: what is refused, and what is left when something fails.

use std::fs;

use nix::sys::signal::Signal;

use crate::secret::{directory, drop_in, findings, given, keys, set};
use crate::support::{Guest, Output, machinist, run, sh, shared, wait_until};

#[test]
fn a_killed_change_is_made_or_not() {
    let _host = shared();
    let guest = Guest::busybox("seckill");
    let name = guest.name.as_str();
    let steps = |words: &[&str]| -> usize { machinist(words).args(["--dry-run"]).ok().stdout.lines().count() };
    for step in 0..steps(&["secret", "set", name, "token"]) {
        set(&guest, "token", "one")
            .env("MACHINIST_DIE_AT_STEP", step.to_string())
            .status(128 + 9);
        // It starts with it or without it.
        guest.start();
        assert!(
            [None, Some(b"one".to_vec())].contains(&given(&guest, "token")),
            "step {step}"
        );
        machinist(["stop", name]).ok();
        // What nobody hands on is swept.
        machinist(["secret", "remove", name, "token"]).ok();
        assert!(!directory(&guest).exists() && !guest.drop_ins().exists(), "step {step}");
        assert_eq!(guest.property("NeedDaemonReload"), "no");
    }
    set(&guest, "token", "one").ok();
    set(&guest, "other", "two").ok();
    for step in 0..steps(&["secret", "remove", name, "token"]) {
        machinist(["secret", "remove", name, "token"])
            .env("MACHINIST_DIE_AT_STEP", step.to_string())
            .status(128 + 9);
        guest.start();
        assert_eq!(given(&guest, "other").as_deref(), Some(&b"two"[..]));
        machinist(["stop", name]).ok();
        set(&guest, "token", "one").ok();
        assert_eq!(keys(&guest), ["other", "token"]);
        assert_eq!(fs::read_dir(directory(&guest)).unwrap().count(), 2);
    }
}

#[test]
fn a_full_disk_leaves_the_former_secret() {
    let _host = shared();
    let guest = Guest::busybox("secfull");
    let name = guest.name.as_str();
    set(&guest, "token", "one").ok();
    let file = directory(&guest).join("token");
    let before = (fs::read(&file).unwrap(), fs::read(drop_in(&guest)).unwrap());
    let in_namespace = |prepare: &str, key: &str| -> Output {
        let script = format!("{prepare}\nprintf two | machinist secret set \"$1\" \"$2\"");
        run("unshare", ["-m", "--", "bash", "-euc", &script, "bash", name, key]).status(1)
    };
    let full = |directory: &str| {
        format!(
            "keep=$(mktemp -d); cp -a {directory}/. $keep; mount -t tmpfs -o size=64k,mode=700 tmpfs {directory}
            cp -a $keep/. {directory}; rm -r $keep; head -c 1M /dev/zero >{directory}/filler || true"
        )
    };
    let read_only =
        |directory: &str| format!("mount --bind {directory} {directory}; mount -o remount,bind,ro {directory}");
    let secrets = "/var/lib/machinist/secrets";
    let units = guest.drop_ins().to_string_lossy().into_owned();
    for (prepare, key, reason) in [
        (full(secrets), "token", "No space left on device"),
        (full(secrets), "new", "No space left on device"),
        (read_only(secrets), "token", "Read-only file system"),
        // The secret is written, and taken back when the drop-in cannot be.
        (full(&units), "new", "No space left on device"),
        (read_only(&units), "new", "Read-only file system"),
        // systemd-creds has nothing to encrypt with.
        (
            "mount -t tmpfs tmpfs /var/lib/systemd".to_owned(),
            "new",
            "cannot encrypt secret 'new'",
        ),
    ] {
        let output = in_namespace(&prepare, key).stderr_has(reason);
        assert!(!output.stderr.contains("panicked"), "{output:?}");
        let after = (fs::read(&file).unwrap(), fs::read(drop_in(&guest)).unwrap());
        assert_eq!(before, after, "{prepare}");
        assert_eq!(fs::read_dir(directory(&guest)).unwrap().count(), 1, "{prepare}");
        assert_eq!(guest.property("NeedDaemonReload"), "no");
    }
    in_namespace("mount -t tmpfs tmpfs /var/lib/systemd", "new")
        .stderr_has("hint: systemd-creds needs a TPM2, or a key in /var/lib/systemd on a disk");
    // Ctrl-C, while the value is waited for and in the middle of it.
    let waiting = sh("sleep 60 | machinist secret set \"$1\" new", [name]);
    let waiting = waiting.spawn();
    let program = || {
        let found = run("pgrep", ["-f", &format!("^machinist secret set {name} new")])
            .any()
            .stdout;
        found.trim().parse::<i32>().ok()
    };
    wait_until("it reads", || program().is_some());
    let pid = program().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGINT).unwrap();
    wait_until("it is gone", || program().is_none());
    waiting.signal(Signal::SIGTERM);
    run("pkill", ["-P", &waiting.pid().to_string()]).any();
    waiting.wait();
    assert_eq!(keys(&guest), ["token"]);
    assert_eq!(fs::read_dir(directory(&guest)).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_a_secret_is_refused() {
    let _host = shared();
    let guest = Guest::busybox("secbad");
    let name = guest.name.as_str();
    for (words, status) in [
        (&["secret", "set", "no-such-machine", "token"][..], 3),
        (&["secret", "remove", "no-such-machine", "token"], 3),
        (&["secret", "list", "no-such-machine"], 3),
        (&["secret", "set", name], 2),
        (&["secret", "remove", name], 2),
        (&["secret", "set", name, "a:b"], 2),
        (&["secret", "set", name, "../a"], 2),
        (&["secret", "set", name, "a b"], 2),
        (&["secret", "set", name, ""], 2),
        (&["secret", "set", name, "token", "--refresh"], 2),
        (&["secret", "set", name, "token", "--file", "/no/such"], 1),
        (&["secret", "set", name, "token", "--file", "/etc"], 1),
    ] {
        machinist(words).stdin("x").status(status);
    }
    for words in [&["set", name, "token"][..], &["remove", name, "token"]] {
        let user = ["--reuid=1000", "--regid=1000", "--clear-groups", "machinist", "secret"];
        run("setpriv", user.iter().chain(words))
            .stdin("x")
            .status(4)
            .stderr_has("needs root");
    }
    // A terminal would show what is typed.
    let on_terminal = format!("machinist secret set {name} token");
    run("script", ["-qec", &on_terminal, "/dev/null"])
        .status(2)
        .stdout_has("which is a terminal");
    set(&guest, "token", vec![b'x'; (768 << 10) + 1])
        .status(1)
        .fails_with("secret 'token' is larger than 768 KiB", "Files.BindReadOnly");
    assert!(!directory(&guest).exists() && !guest.drop_ins().exists());
    // What is taken is taken by systemd, too, up to the last page.
    set(&guest, "large", vec![b'x'; 768 << 10]).ok();
    set(&guest, "rest", vec![b'y'; 240 << 10]).ok();
    set(&guest, "last", "z").ok();
    set(&guest, "more", vec![b'z'; 5000])
        .status(1)
        .stderr_has("is too large");
    guest.start();
    assert_eq!(given(&guest, "large").unwrap().len(), 768 << 10);
    assert_eq!(given(&guest, "last").as_deref(), Some(&b"z"[..]));
}

#[test]
fn a_file_that_is_gone_is_told() {
    let _host = shared();
    let guest = Guest::busybox("secgone");
    let name = guest.name.as_str();
    set(&guest, "token", "one").ok();
    fs::remove_file(directory(&guest).join("token")).unwrap();
    assert_eq!(findings(&guest), ["secret-missing"]);
    machinist(["config", "check", name]).status(1);
    machinist(["start", name]).status(1).fails_with(
        &format!("cannot start machine '{name}': its secrets cannot be loaded"),
        &format!("machinist config check {name}"),
    );
    set(&guest, "token", "two").ok();
    guest.start();
    assert_eq!(given(&guest, "token").as_deref(), Some(&b"two"[..]));
}

#[test]
fn what_our_drop_in_names_is_never_swept() {
    let _host = shared();
    let guest = Guest::busybox("seckeep");
    let name = guest.name.as_str();
    set(&guest, "token", "one").ok();
    // For now systemd loads none of them.
    let other = guest.drop_ins().join("99-none.conf");
    fs::write(&other, "[Service]\nLoadCredentialEncrypted=\n").unwrap();
    set(&guest, "other", "two").any();
    machinist(["secret", "set", name, "--refresh"]).any();
    machinist(["secret", "remove", name, "nosuch"]).any();
    for key in ["token", "other"] {
        assert!(directory(&guest).join(key).exists(), "{key}");
    }
    // What is to go goes, even if the rest cannot be handed on any more.
    let start = guest.drop_ins().join("10-start.conf");
    fs::write(
        &start,
        "[Service]\nExecStart=\nExecStart=/usr/bin/env systemd-nspawn -M %i\n",
    )
    .unwrap();
    machinist(["secret", "remove", name, "token"]).ok();
    assert!(!directory(&guest).join("token").exists());
    assert_eq!(keys(&guest), ["other"]);
    fs::remove_file(other).unwrap();
    fs::remove_file(start).unwrap();
}
