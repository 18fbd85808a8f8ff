//! What is merged, and what is told of it.

use super::*;

/// `path=value origin state code` of every row, with a command line and files of (path, text, trusted).
fn rows(command: &str, files: &[(&str, &str, bool)]) -> Vec<String> {
    let words: Vec<String> = format!("systemd-nspawn {command}")
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let command = CommandLine::parse(&words);
    let documents: Vec<Document> = files.iter().map(|file| Document::parse(file.1.as_bytes())).collect();
    let files: Vec<File<'_>> = files
        .iter()
        .zip(&documents)
        .map(|(file, document)| File {
            path: file.0,
            document,
            trusted: file.2,
            changed: false,
        })
        .collect();
    let origin = Origin::line(Source::Template, "/t", 9);
    let reader = Reader {
        systemd: 257,
        command: command.as_ref(),
        origin: &origin,
    };
    merge(&reader, &files)
        .into_iter()
        .map(|row| {
            let code = row.code.map_or_else(String::new, |code| format!(" {code}"));
            let (path, state) = (row.path(), row.state.as_str());
            format!("{path}={} {} {state}{code}", row.value, row.origin.text())
        })
        .collect()
}

#[test]
fn one_network_key_replaces_all_network_switches() {
    assert_eq!(
        rows(
            "-b -U -n --settings=override",
            &[("/w", "[Network]\nMACVLAN=eth0\n", true)]
        ),
        [
            "Exec.Boot=yes template:9 in_force",
            "Exec.PrivateUsers=pick template:9 in_force",
            "Files.PrivateUsersOwnership=auto template:9 in_force",
            "Network.MACVLAN=eth0 /w:2 in_force",
            "Network.VirtualEthernet=yes template:9 ignored overridden",
            "--settings=override template:9 in_force",
        ]
    );
    let keeps = rows("-n --settings=override", &[("/w", "[Network]\nPort=80\n", true)]);
    assert_eq!(keeps[0], "Network.VirtualEthernet=yes template:9 in_force");
}

#[test]
fn ownership_alone_switches_private_users_off() {
    assert_eq!(
        rows(
            "-U --settings=override",
            &[("/w", "[Files]\nPrivateUsersOwnership=chown\n", true)]
        )[..3],
        [
            "Exec.PrivateUsers=no /w:2 in_force implied",
            "Exec.PrivateUsers=pick template:9 ignored overridden",
            "Files.PrivateUsersOwnership=chown /w:2 in_force",
        ]
    );
}

#[test]
fn without_override_the_command_line_wins() {
    let file = [("/w", "[Exec]\nBoot=no\nUser=a\n[Files]\nBindReadOnly=/b\n", true)];
    assert_eq!(
        rows("-b --bind=/a", &file),
        [
            "Exec.Boot=yes template:9 in_force",
            "Exec.Boot=no /w:2 ignored command-line",
            "Exec.User=a /w:3 in_force",
            "Files.Bind=/a template:9 in_force",
            "Files.BindReadOnly=/b /w:5 ignored command-line",
        ]
    );
    assert_eq!(
        rows("--settings=no", &file)[..2],
        [
            "Exec.Boot=no /w:2 ignored settings-off",
            "Exec.User=a /w:3 ignored settings-off"
        ]
    );
}

#[test]
fn everything_ignored_is_told() {
    let text = "User=x\n[Exec]\nUser=a\nUser=b\nHostnam=c\nBoot=perhaps\nnothing\nCapability=CAP_CHOWN\n\
                Environment=A=1\nEnvironment=\nEnvironment=B=2\n[Foo]\nA=1\n[X-Mine]\nB=2\n[Exec]\n\
                PrivateUsersDelegate=1\n";
    let files = [("/beside", text, false), ("/other", "[Exec]\nUser=z\n", false)];
    assert_eq!(
        rows("--settings=override", &files),
        [
            "Exec.Boot=perhaps /beside:6 ignored bad-value",
            "Exec.Environment=B=2 /beside:11 in_force",
            "Exec.Environment=A=1 /beside:9 ignored repeated-key",
            "Exec.User=b /beside:4 in_force",
            "Exec.User=a /beside:3 ignored repeated-key",
            "Exec.User=z /other:2 ignored hidden-file",
            "Exec.Capability=CAP_CHOWN /beside:8 ignored not-trusted",
            "Exec.PrivateUsersDelegate=1 /beside:17 ignored key-too-new",
            "Exec.Hostnam=c /beside:5 ignored unknown-key",
            "User=x /beside:1 ignored outside-section",
            "Foo.A=1 /beside:13 ignored unknown-section",
            "=nothing /beside:7 ignored missing-equals",
            "=[Foo] /beside:12 ignored unknown-section",
            "--settings=override template:9 in_force",
        ]
    );
    let refused = rows("--settings=override", &[("/w", "[Exec]\nUser=a\n[Files\n", true)]);
    assert!(
        refused.contains(&"Exec.User=a /w:2 ignored file-refused".to_owned()),
        "{refused:?}"
    );
    assert!(
        refused.contains(&"=[Files /w:3 ignored unclosed-header".to_owned()),
        "{refused:?}"
    );
}

#[test]
fn capabilities_add_up() {
    assert_eq!(
        rows(
            "--capability=CAP_A --settings=override",
            &[("/w", "[Exec]\nCapability=CAP_SYS_TIME\n", true)]
        )[..2],
        [
            "Exec.Capability=CAP_A template:9 in_force",
            "Exec.Capability=CAP_SYS_TIME /w:2 in_force"
        ]
    );
}

#[test]
fn a_flood_is_cut() {
    let text = format!("[Exec]\nUser=a\n{}", "nonsense\n".repeat(200_000));
    let found = rows(
        "--settings=override",
        &[("/w", &text, true), ("/x", &text.replace("nonsense", "A=1"), true)],
    );
    assert_eq!(found.iter().filter(|row| row.ends_with("ignored more")).count(), 2);
    assert_eq!(found.len(), 2 * MAX_IGNORED + 4);
    assert_eq!(found[0], "Exec.User=a /w:2 in_force");
}
