//! Downloads that are signed: by keys that gpg makes, from a server on loopback.

use std::fs;

use crate::download::{archive, served};
use crate::sources::{Work, is_nowhere, sum_of};
use crate::support::{Guest, There, agree, machinist, run, sh, shared};
use crate::web::{Page, Web};

/// gpg with a home of its own, which nothing asks for a password.
const GPG: &str = r#"home=$1; shift; mkdir -p -m 700 "$home"
    exec gpg --homedir "$home" --batch --quiet --no-tty --pinentry-mode loopback --passphrase '' "$@""#;

/// Keys of one's own.
pub(crate) struct Keys {
    pub(crate) work: Work,
}

impl Keys {
    pub(crate) fn new() -> Self {
        Self {
            work: Work::new("keys"),
        }
    }

    pub(crate) fn gpg(&self, words: &[&str]) {
        let home = self.work.file("home");
        sh(GPG, [&[home.as_str()], words].concat()).ok();
    }

    /// A new key; the file that has its public half.
    pub(crate) fn make(&self, name: &str, options: &[&str]) -> String {
        let (user, file) = (
            format!("{name} <{name}@example.org>"),
            self.work.file(&format!("{name}.asc")),
        );
        self.gpg(&[options, &["--quick-gen-key", &user, "ed25519", "sign", "1d"]].concat());
        self.gpg(&["--armor", "--output", &file, "--export", name]);
        file
    }

    /// A signature of what a file has, as gpg writes it: `--armor --detach-sign`, `--clear-sign`.
    pub(crate) fn sign(&self, name: &str, what: &[&str], file: &str) -> Vec<u8> {
        let made = self.work.file("made");
        let _ = fs::remove_file(&made);
        self.gpg(&[&["--local-user", name, "--output", &made], what, &[file]].concat());
        fs::read(made).unwrap()
    }

    pub(crate) fn fingerprint(&self, name: &str) -> String {
        let home = self.work.file("home");
        let list = run("gpg", ["--homedir", &home, "--with-colons", "--list-keys", name]).ok();
        let line = list.stdout.lines().find_map(|line| line.strip_prefix("fpr:::::::::"));
        line.unwrap().trim_end_matches(':').to_owned()
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let home = self.work.file("home");
        run("gpgconf", ["--homedir", &home, "--kill", "gpg-agent"]).any();
    }
}

pub(crate) const ARMOR: &[&str] = &["--armor", "--detach-sign"];

/// Puts a list of checksums to a file, and a signature of it as `SHA256SUMS.gpg`.
pub(crate) fn put_signed_list(web: &Web, keys: &Keys, name: &str, file: &str) {
    let list = keys.work.file("SHA256SUMS");
    fs::write(&list, format!("{}  web.tar.zst\n", sum_of(file))).unwrap();
    web.put("/x/SHA256SUMS", Page::new(fs::read(&list).unwrap()));
    web.put(
        "/x/SHA256SUMS.gpg",
        Page::new(keys.sign(name, &["--detach-sign"], &list)),
    );
}

#[test]
fn a_signed_download_becomes_a_machine() {
    let _host = shared();
    let (work, web, file) = served();
    let (keys, url) = (Keys::new(), web.url("/x/web.tar.zst"));
    let alice = keys.make("alice", &[]);
    let fingerprint = keys.fingerprint("alice");
    let signer = format!("alice <alice@example.org> ({fingerprint})");
    put_signed_list(&web, &keys, "alice", &file);
    let guest = Guest::new("list");
    machinist(["create", &guest.name, &url, "--keyring", &alice, "--start"])
        .ok()
        .stderr_has(&format!("SHA256SUMS', signed by {signer}"))
        .lacks("vouches for");
    agree(&guest.name, There::Running);
    // As Debian's images have it.
    let (long, listed) = (Guest::new("long"), web.url("/z/web.tar.zst"));
    let list = keys.work.file("SHA512SUMS");
    sh("cd \"${1%/*}\"; sha512sum \"${1##*/}\" >\"$2\"", [&file, &list]).ok();
    web.put("/z/web.tar.zst", archive(&file));
    web.put("/z/SHA512SUMS", Page::new(fs::read(&list).unwrap()));
    web.put("/z/SHA512SUMS.sign", Page::new(keys.sign("alice", ARMOR, &list)));
    machinist(["create", &long.name, &listed, "--verify=signature", "--keyring", &alice])
        .ok()
        .stderr_has(&format!(
            "its SHA-512 sum is the one of '{}', signed by {signer}",
            web.url("/z/SHA512SUMS")
        ))
        .lacks("vouches for");
    agree(&long.name, There::Stopped);
    // One of its own is stronger.
    web.put("/x/web.tar.zst.asc", Page::new(keys.sign("alice", ARMOR, &file)));
    let second = Guest::new("own");
    machinist(["create", &second.name, &url, "--keyring", &alice, "--verify=signature"])
        .ok()
        .stderr_has(&format!("it is signed by {signer}"))
        .lacks("vouches for");
    agree(&second.name, There::Stopped);
    machinist(["create", "x", &url, "--keyring", &alice, "--dry-run"])
        .ok()
        .stdout_has(&format!("check that it is signed by a key of '{alice}'"));
    // The list of this file alone, in one with its signature; and with sqv, where that is all there is.
    let sum = work.file("sum");
    fs::write(&sum, format!("{}  web.tar.zst\n", sum_of(&file))).unwrap();
    web.put("/y/web.tar.zst", archive(&file));
    web.put(
        "/y/web.tar.zst.sha256.asc",
        Page::new(keys.sign("alice", &["--clear-sign"], &sum)),
    );
    let (third, other) = (Guest::new("sqv"), web.url("/y/web.tar.zst"));
    let script = "if [ -e /usr/bin/sqv ]; then mount --bind /dev/null /usr/bin/gpgv; fi
        exec machinist create \"$@\"";
    let create = [
        "-m",
        "--",
        "sh",
        "-euc",
        script,
        "sh",
        &third.name,
        &other,
        "--keyring",
        &alice,
    ];
    run("unshare", create)
        .ok()
        .stderr_has(&fingerprint)
        .lacks("vouches for");
    agree(&third.name, There::Stopped);
}

#[test]
fn a_pinned_key_has_to_vouch_for_what_comes_from_there() {
    let _host = shared();
    let (_work, web, file) = served();
    let (keys, url, prefix) = (Keys::new(), web.url("/x/web.tar.zst"), web.url("/x"));
    let [alice, mallory] = ["alice", "mallory"].map(|name| keys.make(name, &[]));
    let [of_alice, of_mallory] = ["alice", "mallory"].map(|name| keys.fingerprint(name));
    let guest = Guest::new("pin");
    let trust = |words: &[&str]| machinist([&["trust"], words].concat());
    let pinned = |prefix: &str| {
        let rows = trust(&["list", "--json", "--filter", &format!("prefix={prefix}")])
            .ok()
            .json();
        rows.as_array()
            .unwrap()
            .iter()
            .map(|row| row["fingerprint"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    trust(&["add", &prefix, &alice, "--dry-run"])
        .ok()
        .stdout_has(&format!("pin for '{prefix}': {of_alice} (alice <"));
    assert!(pinned(&prefix).is_empty());
    let said = trust(&["add", &prefix, &alice, "--json"]).ok().json();
    assert_eq!(
        (said[0]["result"].as_str(), said[0]["keys"][0]["fingerprint"].as_str()),
        (Some("added"), Some(&*of_alice))
    );
    let pin = said[0]["file"].as_str().unwrap().to_owned();
    assert!(pin.starts_with("/etc/machinist/keys.d/127.0.0.1-"), "{pin}");
    // gpg reads it as it is.
    run("gpg", ["--homedir", &keys.work.file("home"), "--show-keys", &pin])
        .ok()
        .stdout_has(&of_alice);
    // A login in the address, a longer path, and no word of it.
    let is_missing = format!("'{url}' is not signed: there is neither '{url}.asc'");
    machinist(["create", &guest.name, &url])
        .status(1)
        .stderr_has(&is_missing)
        .stderr_has(&pin);
    web.put("/x/web.tar.zst.asc", Page::new(keys.sign("mallory", ARMOR, &file)));
    let refused = machinist(["create", &guest.name, &url]).status(1);
    refused
        .stderr_has(&format!("by key {of_mallory}, which is not in '{pin}'"))
        .stderr_has("trust add URL-PREFIX FILE --replace");
    machinist(["run", &url, "--", "true"])
        .status(125)
        .stderr_has("which is not in");
    is_nowhere(&guest);
    // A change is refused, until somebody says that it is one.
    trust(&["add", &prefix, &alice]).ok().stderr_has("pinned already for");
    trust(&["add", &format!("{prefix}/"), &mallory])
        .status(1)
        .stderr_has(&format!("already: {of_alice} in '{pin}', and this is {of_mallory}"))
        .stderr_has("--replace");
    assert_eq!(pinned(&prefix), [of_alice.as_str()]);
    trust(&["add", &prefix, &mallory, "--replace"])
        .ok()
        .stderr_has("replaced for");
    assert_eq!(pinned(&prefix), [of_mallory]);
    machinist(["create", &guest.name, &url, "--start"])
        .ok()
        .stderr_has("it is signed by mallory");
    agree(&guest.name, There::Running);
    trust(&["remove", &prefix, "--dry-run"])
        .ok()
        .stdout_has(&format!("remove '{pin}', the pin of '{prefix}'"));
    trust(&["remove", &prefix]).ok();
    assert!(pinned(&prefix).is_empty() && !std::path::Path::new(&pin).exists());
    trust(&["remove", &prefix]).status(1).stderr_has("no key is pinned for");
    // Everybody may look, root may change.
    let nobody = |words: &str| {
        sh(
            &format!("exec setpriv --reuid=65534 --clear-groups machinist trust {words}"),
            [""],
        )
    };
    nobody("list").ok();
    nobody(&format!("add {prefix} {alice}")).status(4);
    nobody("remove 'http://*'").status(4);
    for (prefix, key, status) in [
        ("ftp://h/", &alice, 2),
        ("http://h/?x", &alice, 2),
        ("http://u:p@h/", &alice, 2),
        (&*prefix, &file, 1),
        (&*prefix, &"/no/such".to_owned(), 1),
    ] {
        trust(&["add", prefix, key]).status(status);
    }
}
