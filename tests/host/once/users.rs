//! Without root: reading works, changing is refused with status 4.

use crate::create::traces;
use crate::support::{Guest, Run, There, agree, alone, machinist, run, shared, wait_until};

/// machinist as an ordinary user, without any terminal.
fn as_tester(words: &[&str]) -> Run {
    let start = [
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "--reset-env",
        "machinist",
    ];
    run("setpriv", start.iter().chain(words))
}

#[test]
fn an_ordinary_user_may_look() {
    let _host = shared();
    let guest = Guest::new("user");
    let name = &guest.name;
    machinist(["create", name, "template:busybox", "--start"]).ok();
    let filter = format!("name={name}");
    let rows = as_tester(&["list", "--json", "--filter", &filter]).ok().json();
    assert_eq!(
        (&rows[0]["name"], &rows[0]["state"]),
        (&name.as_str().into(), &"running".into())
    );
    assert_eq!(rows[0]["leader"], guest.leader());
    crate::support::wait_until("its address is shown", || {
        let rows = as_tester(&["list", "--json", "--filter", &filter]).ok().json();
        rows[0]["addresses"]
            .as_array()
            .is_some_and(|all| all.iter().any(|address| address.as_str().unwrap().contains('.')))
    });
    let listed = as_tester(&["list", "-a"]).ok().stdout;
    assert!(listed.contains(name.as_str()), "{listed}");
    let images = as_tester(&["images", "--json", "--filter", &filter]).ok().json();
    assert_eq!(
        (&images[0]["type"], &images[0]["used_by"]),
        (&"directory".into(), &name.as_str().into())
    );
    as_tester(&["show", name, "-p", "Leader", "--value"])
        .ok()
        .stdout_is(&format!("{}\n", guest.leader()));
    as_tester(&["status", name]).ok().stdout_has(name);
    as_tester(&["storage", "show"])
        .status(4)
        .stderr_has("storage show needs root");
}

#[test]
fn an_ordinary_user_may_not_change_anything() {
    let _host = shared();
    let guest = Guest::busybox("deny");
    let name = &guest.name;
    let before = traces(name);
    for words in [vec!["start", name], vec!["enable", name], vec!["restart", name]] {
        as_tester(&words)
            .status(4)
            .stderr_has("error: not permitted to")
            .stderr_has("hint: run it as root: `sudo machinist …`");
        agree(name, There::Stopped);
    }
    guest.start();
    for words in [
        vec!["stop", name],
        vec!["terminate", name],
        vec!["restart", "--inside", name],
    ] {
        as_tester(&words)
            .status(4)
            .stderr_has("error: not permitted to")
            .stderr_has("sudo machinist");
        agree(name, There::Running);
    }
    let other = Guest::new("deny");
    for (words, message) in [
        (vec!["create", &other.name, "template:busybox"], "create needs root"),
        (vec!["remove", "-y", name], "remove needs root"),
        (vec!["clean"], "clean needs root"),
    ] {
        as_tester(&words).status(4).fails_with(message, "sudo machinist");
    }
    let error = as_tester(&["stop", name, "--json"]).status(4).json_error();
    assert_eq!(error["kind"], "denied");
    agree(name, There::Running);
    agree(&other.name, There::Nowhere);
    // What systemd-nspawn has of a running machine under /run is its own.
    let left: Vec<String> = traces(name)
        .into_iter()
        .filter(|path| !path.contains("/run/systemd/"))
        .collect();
    assert_eq!(left, before);
}

#[test]
fn an_ordinary_user_runs_commands_if_polkit_permits() {
    let _host = alone();
    let guest = Guest::debian("polkit");
    let name = &guest.name;
    machinist(["start", "--wait", name]).ok();
    let exec = |options: &[&str], script: &str| {
        as_tester(&[&["exec", name.as_str()], options, &["--", "sh", "-c", script]].concat())
    };
    exec(&["-t"], "id").status(4).fails_with(
        &format!("not permitted to run a command in machine '{name}'"),
        "sudo machinist",
    );
    let _rule = Rule::new(
        "polkit.addRule(function(action, subject) {\n\
         if (action.id == \"org.freedesktop.machine1.shell\" && subject.user == \"tester\") return polkit.Result.YES;\n});\n",
    );
    // polkitd reads its rules anew by itself, a little later.
    wait_until("polkit permits", || exec(&["-t"], "true").any().status == 0);
    let output = exec(
        &["-t", "-u", "nobody", "--cwd", "/etc", "-e", "A=b c"],
        "id -un; pwd; echo \"$A\" '$A ${A} %n'; exit 42",
    )
    .status(42);
    output.stdout_is("nobody\r\n/etc\r\nb c $A ${A} %n\r\n");
    exec(&["-t"], "kill -KILL $$").status(137);
    as_tester(&["exec", "-t", name, "--", "nosuch"]).status(127);
    as_tester(&["exec", "-t", name, "--", "/etc/passwd"]).status(126);
    exec(&["-t", "-u", "eve"], "true")
        .status(125)
        .stderr_has("did not say how the command ended");
    exec(&["-t", "--cwd", "/no/such"], "true").status(125);
    let echoed = as_tester(&["exec", "-t", name, "--", "cat"]).stdin("hello\n").ok();
    assert_eq!(echoed.stdout, "hello\r\nhello\r\n", "by the terminal, and by cat");
    exec(&[], "true").status(4).fails_with(
        "without root a command gets a terminal, and no streams of its own",
        "--terminal",
    );
    exec(&["-t", "-u", "root:adm"], "true")
        .status(4)
        .stderr_has("needs root");
    let unregistered = as_tester(&["exec", "-t", "nosuch", "--", "true"]);
    unregistered.status(3);
}

/// A polkit rule that goes with its guard.
pub(crate) struct Rule;

impl Rule {
    const PATH: &str = "/etc/polkit-1/rules.d/50-machinist-test.rules";

    pub(crate) fn new(text: &str) -> Self {
        std::fs::create_dir_all("/etc/polkit-1/rules.d").expect("making a directory");
        std::fs::write(Self::PATH, text).expect("writing a rule");
        Self
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(Self::PATH);
    }
}
