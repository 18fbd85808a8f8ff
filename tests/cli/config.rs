//! `config check` on files: what it shows, and what it makes of bad input.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use insta::assert_snapshot;

use super::{machinist, session};

/// A directory with files of these names and bytes.
fn files(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

/// Checks a file; its exit status, and `line:column code` of every finding.
fn check(path: &Path) -> (i32, Vec<String>) {
    let output = machinist()
        .args(["config", "check", "--json", "--systemd-version", "257"])
        .arg(path)
        .timeout(Duration::from_secs(60))
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let found = findings.iter().map(|finding| {
        assert_eq!(finding["file"], path.to_str().unwrap());
        let code = finding["code"].as_str().unwrap();
        match (&finding["line"], &finding["column"]) {
            (serde_json::Value::Null, _) => code.to_owned(),
            (line, column) => format!("{line}:{column} {code}"),
        }
    });
    (output.status.code().unwrap(), found.collect())
}

#[test]
fn what_is_shown() {
    let directory = files(&[
        (
            "bad.nspawn",
            b"[Exec]\nBoot=perhaps\n\tHostnam = a\n\n[Files]\nBind=/a:b\nBind=/srv:\\\n  b\n[Netwrok]\nBridge=x\n",
        ),
        ("odd.nspawn", b"[Network]\nMACVLAN=eth0\n[Exec]\nBoot=no\nBoot=yes\n"),
        ("good.nspawn", b"# Fine.\n[Exec]\nBoot=yes\n"),
        ("new.nspawn", b"[Exec]\nRestrictAddressFamilies=AF_UNIX\n"),
    ]);
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (bad, odd, good, new, missing) = (
        at("bad.nspawn"),
        at("odd.nspawn"),
        at("good.nspawn"),
        at("new.nspawn"),
        at("no.nspawn"),
    );
    let calls: &[&[&str]] = &[
        &["config", "check", &bad],
        &["config", "check", &odd],
        &["config", "check", "--strict", &odd, "--quiet"],
        &["config", "check", &good, "--strict"],
        &["config", "check", &new, "--systemd-version", "257"],
        &["config", "check", &missing, directory.path().to_str().unwrap()],
        &["config", "check", &new, &good, "--json", "--systemd-version", "252"],
        &["config", "check", "web"],
        &["config", "check", "we b"],
        &["config", "check", "--systemd-version", "251"],
        &["config"],
    ];
    let text: Vec<String> = calls.iter().map(|words| session(words)).collect();
    assert_snapshot!(text.join("\n").replace(directory.path().to_str().unwrap(), "[DIR]"));
}

#[test]
fn standard_input_is_read() {
    let assert = machinist()
        .args(["config", "check", "-"])
        .write_stdin("[Exec]\nBoot=maybe\n")
        .assert()
        .code(1);
    let shown = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    assert!(shown.contains("--> <stdin>:2:6"), "{shown}");
}

#[test]
fn bad_input_is_told_and_never_hangs() {
    let binds = [b"[Files]\n".to_vec(), b"Bind=/srv:/a\n".repeat(10_000)].concat();
    let long_line = [b"[Exec]\nUser=".to_vec(), vec![b'x'; 1 << 20]].concat();
    let almost = [b"[Exec]\nParameters=".to_vec(), vec![b'x'; 1_000_000]].concat();
    let large = b"rubbish\n".repeat((10 << 20) / 8);
    let large_section = [b"[Exec]\n".to_vec(), b"Hostnmae=\xc3\xa4\n".repeat(1 << 19)].concat();
    let too_large = vec![b'#'; (16 << 20) + 1];
    let cases: &[(&str, &[u8], i32, &[&str])] = &[
        ("empty", b"", 0, &[]),
        ("latin1", b"[Exec]\nHostname=k\xe4se\n", 1, &["2:1 not-utf8"]),
        ("nul", b"[Exec]\nUser=a\0b\n", 1, &["3:1 missing-equals"]),
        ("crlf", b"[Exec]\r\nBoot=yes\r\n", 0, &[]),
        ("bom", b"\xef\xbb\xbf[Exec]\nBoot=yes\n", 0, &[]),
        ("bom16", b"\xff\xfe[\0E\0x\0e\0c\0]\0", 1, &["1:1 not-utf8"]),
        ("binds", &binds, 0, &[]),
        ("long-line", &long_line, 1, &["2:1 line-too-long"]),
        ("almost-too-long", &almost, 1, &["2:1 parameters-alone"]),
        ("elf", b"\x7fELF\x02\x01\x01\0\0", 1, &["1:1 outside-section"]),
        ("too-large", &too_large, 1, &["unreadable"]),
    ];
    let named: Vec<(String, &[u8])> = cases
        .iter()
        .map(|case| (format!("{}.nspawn", case.0), case.1))
        .collect();
    let directory = files(
        &named
            .iter()
            .map(|(name, bytes)| (name.as_str(), *bytes))
            .collect::<Vec<_>>(),
    );
    let at = |name: &str| directory.path().join(format!("{name}.nspawn"));
    for (name, _, status, found) in cases {
        let (got, findings) = check(&at(name));
        assert_eq!(got, *status, "{name}");
        assert_eq!(
            findings[..found.len().min(findings.len())],
            **found,
            "{name}: {findings:?}"
        );
        assert!(
            findings.len() >= found.len() && (!found.is_empty() || findings.is_empty()),
            "{name}"
        );
    }
    for (name, bytes) in [("large", &large), ("large-section", &large_section)] {
        fs::write(at(name), bytes).unwrap();
        let began = Instant::now();
        let (status, findings) = check(&at(name));
        assert_eq!((status, findings.len()), (1, 1001), "{name}");
        assert_eq!(findings[1000], "more", "{name}");
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{name}: {:?}",
            began.elapsed()
        );
    }

    // What is no file in the place of one.
    fs::create_dir(at("directory")).unwrap();
    let fifo = CString::new(at("fifo").as_os_str().as_bytes()).unwrap();
    nix::unistd::mkfifo(fifo.as_c_str(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::os::unix::fs::symlink(at("fifo"), at("link-to-fifo")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("link-to-device")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    std::os::unix::fs::symlink("loop.nspawn", at("loop")).unwrap();
    for name in [
        "directory",
        "fifo",
        "link-to-fifo",
        "link-to-device",
        "dangling",
        "loop",
        "missing",
    ] {
        assert_eq!(check(&at(name)), (1, vec!["unreadable".to_owned()]), "{name}");
    }
    std::os::unix::fs::symlink(at("crlf"), at("link")).unwrap();
    assert_eq!(check(&at("link")), (0, Vec::new()));
}

#[test]
fn the_examples_are_clean() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/nspawn-examples");
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "nspawn") {
            let output = machinist()
                .args(["config", "check", "--strict", "--systemd-version", "262"])
                .arg(&path)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
