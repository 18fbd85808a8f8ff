use super::*;

/// A tree, and what an image that says this makes of it.
fn settled(files: &[&str], image: &str, runs: Option<Runs>) -> (tempfile::TempDir, Result<Settled, SourceError>) {
    let tree = tempfile::tempdir().unwrap();
    let root = Root::open(tree.path()).unwrap();
    for file in files {
        let (path, text) = file.split_once('=').unwrap_or((file, "#!/bin/sh\n"));
        root.create_dir_all(std::path::Path::new(path).parent().unwrap(), 0o755)
            .unwrap();
        root.write(path, text.as_bytes(), 0o755).unwrap();
    }
    let config = Config::parse(format!(r#"{{"config":{image}}}"#).as_bytes()).unwrap();
    let program = Program::new("oci:x", config);
    let runs = runs.unwrap_or_else(|| program.runs(&root).unwrap());
    let settled = program.settle(&root, runs);
    (tree, settled)
}

fn lines(settled: &Settled) -> Vec<String> {
    settled
        .settings
        .iter()
        .map(|one| format!("{}={}", one.key.name, one.value))
        .collect()
}

#[test]
fn a_program_becomes_settings() {
    let image = r#"{"Entrypoint":["/bin/app"],"Cmd":["-x","a b","it's \"so\"",""],"Env":["PATH=/bin","GREETING=hi there","bad-name=1"],
        "WorkingDir":"/srv//data/","ExposedPorts":{"80/tcp":{},"\u001b[31m":{}},"StopSignal":"TERM"}"#;
    let (tree, settled) = settled(&["bin/app", "bin/sh"], image, None);
    let settled = settled.unwrap();
    assert_eq!(
        lines(&settled),
        [
            "Environment=PATH=/bin",
            "Environment=\"GREETING=hi there\"",
            "ProcessTwo=yes",
            "KillSignal=SIGRTMIN+4",
            "Parameters=/bin/sh -c \"trap '' HUP; exec \"'\"$@\"' sh /bin/app -x \"a b\" \"it's \"'\"so\"' \"\"",
            "WorkingDirectory=/srv/data",
        ]
    );
    assert!(tree.path().join("srv/data").is_dir());
    assert_eq!(
        settled.comments,
        ["The image says that its program listens at 80/tcp: see Port= in [Network]."]
    );
    assert_eq!(settled.notes, ["its variable 'bad-name' is left out: it cannot be set"]);
}

#[test]
fn another_signal_goes_to_the_program_itself() {
    let image = r#"{"Entrypoint":["app"],"StopSignal":"SIGQUIT"}"#;
    let (_tree, settled) = settled(&["bin/app"], image, None);
    assert_eq!(
        lines(&settled.unwrap()),
        ["Boot=no", "KillSignal=SIGQUIT", "Parameters=app"]
    );
}

#[test]
fn what_no_file_can_say_a_script_does() {
    let image = r#"{"Cmd":["sh","-c","echo 'a'\n\techo b"],"Env":["A=1\n2"]}"#;
    let (tree, settled) = settled(&["bin/sh"], image, None);
    assert_eq!(lines(&settled.unwrap())[2..], ["Parameters=/usr/lib/machinist/start"]);
    let script = std::fs::read_to_string(tree.path().join(SCRIPT)).unwrap();
    assert!(
        script.ends_with("trap '' HUP\nexport A='1\n2'\nexec 'sh' '-c' 'echo '\\''a'\\''\n\techo b'\n"),
        "{script}"
    );
    let (_tree, refused) = self::settled(&["bin/app"], image, None);
    assert!(refused.unwrap_err().to_string().contains("there is no /bin/sh"));
    let (_tree, refused) = self::settled(&["bin/sh"], r#"{"Cmd":["a\u0000b"]}"#, None);
    assert!(refused.unwrap_err().to_string().contains("NUL"));
}

#[test]
fn an_image_with_an_init_boots() {
    let runs = |files: &[&str], image: &str| {
        let tree = tempfile::tempdir().unwrap();
        let root = Root::open(tree.path()).unwrap();
        for file in files {
            root.create_dir_all(std::path::Path::new(file).parent().unwrap(), 0o755)
                .unwrap();
            root.write(file, b"", 0o755).unwrap();
        }
        if files.contains(&"bin/busybox") {
            root.create_dir_all("sbin", 0o755).unwrap();
            root.symlink("/bin/busybox", "sbin/init").unwrap();
        }
        let config = Config::parse(format!(r#"{{"config":{image}}}"#).as_bytes()).unwrap();
        Program::new("x", config).runs(&root).unwrap()
    };
    let app = r#"{"Entrypoint":["/app"]}"#;
    assert_eq!(runs(&["usr/lib/systemd/systemd"], app), Runs::Init);
    assert_eq!(runs(&["app"], app), Runs::Program);
    // Every image of Alpine has busybox under that name, too.
    assert_eq!(runs(&["bin/busybox"], app), Runs::Program);
    assert_eq!(runs(&["bin/busybox"], r#"{"Cmd":["/bin/sh"]}"#), Runs::Init);
    assert_eq!(runs(&["bin/busybox"], r#"{"Cmd":["/sbin/init"]}"#), Runs::Init);
    assert_eq!(runs(&["bin/busybox"], "{}"), Runs::Init);
}

#[test]
fn users_are_those_that_can_be_found() {
    const PASSWD: &str = "etc/passwd=root:x:0:0::/:/bin/sh\nwww:x:33:34::/:/bin/sh";
    let user = |files: &[&str], user: &str, runs: Runs| {
        let image = format!(r#"{{"Entrypoint":["/app"],"User":"{user}"}}"#);
        let (tree, settled) = settled(&[files, &["app"]].concat(), &image, Some(runs));
        let settled = settled.unwrap();
        let passwd = std::fs::read_to_string(tree.path().join("etc/passwd")).unwrap_or_default();
        let found = lines(&settled)
            .into_iter()
            .find_map(|line| line.strip_prefix("User=").map(str::to_owned));
        (found, settled.notes, passwd)
    };
    let has_all = [PASSWD, "etc/group=web:x:34:\n", "usr/bin/getent"];
    for root in ["", "root", "0", "0:0", "root:web"] {
        assert_eq!(user(&has_all, root, Runs::Program).0, None, "{root}");
    }
    for www in ["www", "33", "www:web", "www:34"] {
        let (found, notes, _) = user(&has_all, www, Runs::Program);
        assert_eq!((found.as_deref(), notes.len()), (Some("www"), 0), "{www}: {notes:?}");
    }
    let (found, notes, _) = user(&has_all, "www:7", Runs::Program);
    assert!(found.is_some() && notes[0].contains("in the group 34"), "{notes:?}");
    let (found, notes, passwd) = user(&has_all, "1001", Runs::Program);
    assert_eq!((found.as_deref(), notes.len()), (Some("user1001"), 0));
    assert!(passwd.ends_with("/bin/sh\nuser1001:x:1001:0::/:/bin/sh\n"), "{passwd}");
    let (found, notes, _) = user(&has_all, "nobody-here", Runs::Program);
    assert!(found.is_none() && notes[0].contains("there is no user"), "{notes:?}");
    // Without what systemd-nspawn asks.
    let (found, notes, _) = user(&[PASSWD], "www", Runs::Program);
    assert!(found.is_none() && notes[0].contains("getent"), "{notes:?}");
    for (said, wanted) in [("www", "www"), ("1001", "1001")] {
        assert_eq!(user(&[PASSWD], said, Runs::Command).0.as_deref(), Some(wanted));
    }
}

#[test]
fn nothing_to_start_is_an_error() {
    for image in [
        "{}",
        r#"{"Cmd":[]}"#,
        r#"{"Entrypoint":[""]}"#,
        r#"{"Cmd":null,"Env":null}"#,
    ] {
        let (_tree, refused) = settled(&["bin/app"], image, None);
        let error = refused.unwrap_err();
        assert!(error.to_string().contains("nothing to start"), "{image}: {error}");
        let (_tree, other) = settled(&["bin/app"], image, Some(Runs::Other));
        assert_eq!(lines(&other.unwrap()), ["ProcessTwo=yes", "KillSignal=SIGRTMIN+4"]);
    }
    let (_tree, missing) = settled(&["bin/sh"], r#"{"Cmd":["none"]}"#, None);
    assert!(missing.unwrap().notes[0].contains("is not in it: 'none'"));
}
