//! Verbs that work without systemd: version, completions, man, and dry runs.

use insta::assert_snapshot;
use machinist::help::TOPICS;

use super::{machinist, session, verbs};

#[test]
fn version() {
    assert_snapshot!(
        [
            session(&["version"]),
            session(&["version", "--json"]),
            session(&["--version"])
        ]
        .join("\n")
    );
}

#[test]
fn signals_are_listed_without_a_machine() {
    let listed = session(&["kill", "-s", "list"]);
    let lines: Vec<&str> = listed.lines().skip(1).collect();
    assert_eq!(lines[..3], ["HUP", "INT", "QUIT"]);
    assert!(
        lines.contains(&"TERM") && lines.ends_with(&["RTMIN", "RTMAX"]),
        "{listed}"
    );
    assert!(session(&["kill", "-s", "list", "--json"]).contains("\"TERM\""));
    for words in [&["kill", "-s", "list", "web"][..], &["kill", "-s", "HUP"], &["kill"]] {
        let refused = session(words);
        assert!(refused.ends_with("status: 2\n"), "{refused}");
    }
}

#[test]
fn completion_scripts_ask_the_program_in_the_path() {
    let built = env!("CARGO_BIN_EXE_machinist");
    for (shell, registers) in [
        ("bash", "complete -o"),
        ("zsh", "#compdef machinist"),
        ("fish", "complete --"),
    ] {
        let script = session(&["completions", shell]);
        assert!(script.contains(registers) && script.contains("machinist"), "{script}");
        assert!(!script.contains(built), "{shell}: {built} is gone tomorrow");
    }
}

/// What bash is offered for the last of these words, sorted.
fn offered(words: &[&str]) -> Vec<String> {
    // As the script does it: words, and which of them is being typed.
    let output = machinist()
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("_CLAP_COMPLETE_COMP_TYPE", "9")
        .env("_CLAP_COMPLETE_SPACE", "true")
        .arg("--")
        .args(words)
        .output()
        .unwrap();
    let offered = String::from_utf8(output.stdout).unwrap();
    let mut offered: Vec<String> = offered.split_whitespace().map(str::to_owned).collect();
    offered.sort_unstable();
    offered
}

#[test]
fn bash_is_offered_verbs_and_topics() {
    assert_eq!(offered(&["machinist", "st"]), ["start", "status", "stop", "storage"]);
    assert_eq!(
        offered(&["machinist", "help", "st"]),
        ["start", "status", "stop", "storage"]
    );
    assert_eq!(offered(&["machinist", "help", "sec"]), ["secret", "security"]);
    assert_eq!(offered(&["machinist", "man", "sec"]), ["secret", "security"]);
}

#[test]
fn bash_is_offered_signals_and_conditions() {
    assert_eq!(offered(&["machinist", "kill", "--signal", "US"]), ["USR1", "USR2"]);
    assert_eq!(offered(&["machinist", "kill", "-s", "RT"]), ["RTMAX", "RTMIN"]);
    assert_eq!(offered(&["machinist", "wait", "--for", "p"]), ["port="]);
    assert_eq!(offered(&["machinist", "wait", "--for", "boo"]), ["booted"]);
}

#[test]
fn a_page_for_every_verb_and_topic() {
    let directory = tempfile::tempdir().unwrap();
    machinist()
        .arg("man")
        .arg("--output")
        .arg(directory.path())
        .assert()
        .success();
    let page = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let first = page("man1/machinist.1");
    assert!(first.contains("machine manager") || first.contains("Machine manager"));
    for (verb, _) in verbs() {
        let page = page(&format!("man1/machinist-{}.1", verb.replace(' ', "-")));
        assert!(page.starts_with(".ie") || page.contains(".TH"), "{verb}: {page}");
        let printed = machinist().arg("man").args(verb.split(' ')).output().unwrap();
        assert!(printed.status.success() && !printed.stdout.is_empty(), "{verb}");
    }
    for topic in TOPICS {
        let page = page(&format!("man7/machinist-{}.7", topic.name));
        assert!(page.contains(&format!(".TH machinist-{} 7 ", topic.name)), "{page}");
        let printed = machinist().args(["man", topic.name]).output().unwrap();
        assert_eq!(String::from_utf8(printed.stdout).unwrap(), page);
    }
}

#[test]
fn dry_run_of_create() {
    let directory = tempfile::tempdir().unwrap();
    let tarball = directory.path().join("rootfs.tar");
    tar::Builder::new(std::fs::File::create(&tarball).unwrap())
        .finish()
        .unwrap();
    let tarball = tarball.to_str().unwrap();
    let calls = [
        vec!["create", "web", tarball, "--dry-run"],
        vec![
            "create",
            "web",
            tarball,
            "--dry-run",
            "--network",
            "bridge=br0",
            "--enable",
            "--start",
        ],
        vec!["create", "web", tarball, "--dry-run", "--json"],
    ];
    let text = calls.map(|words| session(&words)).join("\n");
    assert_snapshot!(text.replace(directory.path().to_str().unwrap(), "[DIR]"));
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let output = machinist().args(["man", "create"]).output().unwrap();
    assert!(output.status.success());
    let script = format!(
        "{} man create | head -n 1 >&2; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_machinist")
    );
    let output = assert_cmd::Command::new("bash").args(["-c", &script]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!errors.contains("panicked"), "{errors}");
}
