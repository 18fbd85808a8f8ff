//! Signatures that vouch for nothing: whatever is wrong with them, nothing is made.

use std::fs;

use crate::download::{archive, served};
use crate::sources::is_nowhere;
use crate::support::{Guest, machinist, shared};
use crate::trust::{ARMOR, Keys, put_signed_list};
use crate::web::Page;

#[test]
fn what_nobody_trusted_has_signed_is_refused() {
    let _host = shared();
    let (work, web, file) = served();
    let (keys, url, guest) = (Keys::new(), web.url("/x/web.tar.zst"), Guest::new("bad"));
    let alice = keys.make("alice", &[]);
    keys.make("mallory", &[]);
    // Two days ago, for one day.
    let past = time_of_gpg(-2);
    let then = ["--faked-system-time", &past];
    let carol = keys.make("carol", &then);
    let refused = |words: &[&str], status: i32, message: &str| {
        let all = [&["create", &guest.name, &url] as &[&str], words].concat();
        let output = machinist(all).status(status);
        assert!(output.stderr.contains(message), "no {message:?}\n{output:?}");
        is_nowhere(&guest);
    };
    let with_alice = ["--keyring", &alice];
    let put = |name: &str, body: Vec<u8>| web.put(&format!("/x/{name}"), Page::new(body));
    refused(&with_alice, 1, "is not signed: there is neither");
    refused(&["--verify=signature"], 1, "no key is known that");
    refused(&["--keyring", "/no/such.asc"], 1, "cannot read '/no/such.asc'");
    refused(&["--keyring", &file], 1, "has no OpenPGP keys: ");
    refused(
        &["--keyring", &alice, "--verify=no"],
        2,
        "--keyring cannot be used with --verify=no",
    );
    let trouble = machinist(["create", &guest.name, "template:busybox", "--keyring", &alice]);
    trouble
        .status(2)
        .stderr_has("--keyring is for debian:SUITE, ubuntu:SUITE and downloads");
    // By a key that is not in the keyring; in the list, too.
    put_signed_list(&web, &keys, "mallory", &file);
    let unknown = format!(
        "was made by key {}, which is not in '{alice}'",
        keys.fingerprint("mallory")
    );
    refused(&with_alice, 1, &unknown);
    put("web.tar.zst.sig", keys.sign("mallory", &["--detach-sign"], &file));
    refused(&with_alice, 1, &unknown);
    // Over another file, by the right one; a whole signed message; none at all.
    let other = work.file("other");
    fs::write(&other, "other").unwrap();
    put("web.tar.zst.asc", keys.sign("alice", ARMOR, &other));
    refused(
        &with_alice,
        1,
        "web.tar.zst.asc' was made over something else, or this was changed on its way",
    );
    // What is kept of it was refused; so is what was changed behind the signature.
    put("web.tar.zst.asc", keys.sign("alice", ARMOR, &file));
    let mut bytes = fs::read(&file).unwrap();
    bytes[100] ^= 1;
    put("web.tar.zst", bytes);
    refused(
        &with_alice,
        1,
        "was made over something else, or this was changed on its way",
    );
    // Cut off in the middle, by a server that says that this is all.
    let mut page = archive(&file);
    page.body.truncate(1000);
    page.etag = None;
    web.put("/x/web.tar.zst", page);
    refused(
        &with_alice,
        1,
        "was made over something else, or this was changed on its way",
    );
    web.put("/x/web.tar.zst", archive(&file));
    let signed = [&then[..], ARMOR].concat();
    put("web.tar.zst.asc", keys.sign("carol", &signed, &file));
    refused(
        &["--keyring", &carol],
        1,
        "by a key that has expired: carol <carol@example.org>",
    );
    put("web.tar.zst.asc", keys.sign("alice", &["--sign"], &file));
    put("web.tar.zst.sig", b"<html>".to_vec());
    put("SHA256SUMS.gpg", Vec::new());
    refused(&with_alice, 1, "is not signed: there is neither");
}

/// The time so many days from now, as gpg takes it.
fn time_of_gpg(days: i64) -> String {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    format!("{}!", i64::try_from(seconds).unwrap() + days * 24 * 60 * 60)
}
