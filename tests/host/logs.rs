//! logs: what journalctl says of the same journals is what is shown, in the order of time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Guest, Running, alone, machinist, run, sh, shared, unique, wait_until};

/// The lines of `logs -o json` or `journalctl -o json`.
#[track_caller]
pub(crate) fn entries(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

pub(crate) fn field<'a>(entry: &'a Value, name: &str) -> &'a str {
    entry[name].as_str().unwrap_or_default()
}

/// What systemd's own reader finds in the journals of a directory.
#[track_caller]
fn by_journalctl(directory: &Path) -> Vec<Value> {
    let directory = directory.to_string_lossy().into_owned();
    entries(
        &run("journalctl", ["-q", "--all", "-o", "json", "-D", &directory])
            .ok()
            .stdout,
    )
}

fn cursors(entries: &[Value]) -> Vec<String> {
    let mut all: Vec<String> = entries
        .iter()
        .map(|entry| field(entry, "__CURSOR").to_owned())
        .collect();
    all.sort();
    all
}

fn of<'a>(entries: &'a [Value], source: &str) -> Vec<Value> {
    let its = |entry: &&'a Value| entry["MACHINIST_SOURCE"] == source;
    entries.iter().filter(its).cloned().collect()
}

#[track_caller]
fn times_rise(entries: &[Value]) {
    let times: Vec<u64> = entries
        .iter()
        .map(|entry| field(entry, "__REALTIME_TIMESTAMP").parse().expect("a time"))
        .collect();
    assert!(times.is_sorted(), "not in the order of time");
}

/// A logger of a guest.
#[track_caller]
fn say(guest: &Guest, text: &str) {
    machinist(["exec", &guest.name, "--", "logger", "-t", "teller", text]).ok();
}

/// `logs -f` in the background, what it shows, and what it says.
pub(crate) struct Follower {
    running: Running,
    shown: PathBuf,
}

impl Follower {
    pub(crate) fn new(words: &[&str]) -> Self {
        Self::of(&[&["machinist", "logs", "-f"], words].concat())
    }

    /// Any command that goes on until it is ended.
    pub(crate) fn of(command: &[&str]) -> Self {
        let shown = PathBuf::from(format!("/root/{}", unique("follow")));
        let script = "out=$1; shift; exec \"$@\" >\"$out\" 2>\"$out.err\"";
        let running = sh(script, [&[shown.to_str().expect("a path")], command].concat()).spawn();
        Self { running, shown }
    }

    pub(crate) fn shown(&self) -> String {
        fs::read_to_string(&self.shown).unwrap_or_default()
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.shown.with_extension("err")).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn shows(&self, text: &str) {
        wait_until(&format!("'{text}' is followed"), || self.shown().contains(text));
    }

    pub(crate) fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// What is shown is thrown away.
    pub(crate) fn to_nowhere(command: &[&str]) -> Self {
        let shown = PathBuf::from(format!("/root/{}", unique("follow")));
        let script = "out=$1; shift; exec \"$@\" >/dev/null 2>\"$out.err\"";
        let running = sh(script, [&[shown.to_str().expect("a path")], command].concat()).spawn();
        Self { running, shown }
    }

    /// Waits for its own end, which is a good one: all that was shown.
    #[track_caller]
    pub(crate) fn ends(self) -> String {
        let shown = self.shown.clone();
        let said = self.said();
        assert_eq!(self.running.wait().status, 0, "{said}");
        let text = fs::read_to_string(&shown).unwrap_or_default();
        let _ = fs::remove_file(shown.with_extension("err"));
        let _ = fs::remove_file(shown);
        text
    }

    /// Ends it as Ctrl-C does.
    #[track_caller]
    pub(crate) fn end(self) -> String {
        self.running.signal(nix::sys::signal::Signal::SIGINT);
        let shown = self.shown.clone();
        assert_eq!(self.running.wait().status, 130);
        let text = fs::read_to_string(&shown).unwrap_or_default();
        let _ = fs::remove_file(shown.with_extension("err"));
        let _ = fs::remove_file(shown);
        text
    }
}

#[test]
fn all_sources_are_merged_as_journalctl_has_them() {
    let _host = shared();
    let guest = Guest::debian("merge");
    let name = guest.name.as_str();
    machinist(["start", "--wait", name]).ok();
    say(&guest, "while it runs");
    let shows = |words: &[&str], text: &str| {
        let words: Vec<&str> = ["logs", name].iter().chain(words).copied().collect();
        machinist(words).ok().stdout.contains(text)
    };
    wait_until("its own words are shown", || shows(&[], "teller"));
    assert!(shows(&["--from", "guest", "-n", "200", "-o", "cat"], "while it runs\n"));
    assert!(!shows(&["--from", "supervisor", "--from", "console"], "while it runs"));
    machinist(["stop", name]).ok();
    run("journalctl", ["--sync"]).ok();

    let ours = entries(&machinist(["logs", name, "-o", "json"]).ok().stdout);
    times_rise(&ours);
    assert!(ours.iter().all(|entry| entry["MACHINIST_MACHINE"] == name));
    let theirs = by_journalctl(&guest.image().join("var/log/journal"));
    let of_guest = of(&ours, "guest");
    assert!(theirs.len() > 50, "only {} entries", theirs.len());
    assert_eq!(cursors(&of_guest), cursors(&theirs));
    for (ours, theirs) in of_guest.iter().zip(&theirs) {
        for key in [
            "MESSAGE",
            "_PID",
            "SYSLOG_IDENTIFIER",
            "_BOOT_ID",
            "__MONOTONIC_TIMESTAMP",
            "_CMDLINE",
        ] {
            assert_eq!(ours[key], theirs[key], "{key}");
        }
    }
    let unit = run("journalctl", ["-q", "-o", "json", "-u", &guest.unit()]).ok().stdout;
    let on_host = [of(&ours, "supervisor"), of(&ours, "console")].concat();
    assert_eq!(cursors(&on_host), cursors(&entries(&unit)));
    assert!(
        on_host
            .iter()
            .any(|entry| entry["_PID"] == "1" && entry["MACHINIST_SOURCE"] == "supervisor")
    );

    // As journalctl shows them, but for what it makes of the machine's name.
    let directory = guest.image().join("var/log/journal").to_string_lossy().into_owned();
    let theirs = run("journalctl", ["-q", "-o", "cat", "-n", "20", "-D", &directory])
        .ok()
        .stdout;
    machinist(["logs", name, "--from", "guest", "-o", "cat", "-n", "20"])
        .ok()
        .stdout_is(&theirs);
    machinist(["logs", name, "-n", "0"]).ok().stdout_is("");
    let last = machinist(["logs", name, "-n", "7", "--json"]).ok().stdout;
    assert_eq!(entries(&last), ours[ours.len() - 7..]);

    // By time.
    let middle = field(&ours[ours.len() / 2], "__REALTIME_TIMESTAMP");
    let time = format!("@{}.{}", &middle[..middle.len() - 6], &middle[middle.len() - 6..]);
    let since = entries(&machinist(["logs", name, "--json", "--since", &time]).ok().stdout);
    let until = entries(&machinist(["logs", name, "--json", "--until", &time]).ok().stdout);
    let at_that_time = ours
        .iter()
        .filter(|entry| field(entry, "__REALTIME_TIMESTAMP") == middle)
        .count();
    assert_eq!(since.len() + until.len(), ours.len() + at_that_time);
    assert!(since.iter().all(|entry| field(entry, "__REALTIME_TIMESTAMP") >= middle));
    let few = entries(
        &machinist(["logs", name, "--json", "--until", &time, "-n", "3"])
            .ok()
            .stdout,
    );
    assert_eq!(few, until[until.len() - 3..]);
}

#[test]
fn consoles_are_shown_and_steer_nothing() {
    let _host = shared();
    let guest = Guest::busybox("cons");
    let name = guest.name.as_str();
    fs::write(
        guest.image().join("etc/inittab"),
        "::sysinit:/bin/sh -c 'printf \"\\033[2Jsum \\033[31m%d\\033[0m\\n\" $((40+2))'\n",
    )
    .unwrap();
    let other = Guest::busybox("conb");
    guest.start();
    other.start();
    let console = |words: &[&str]| {
        let words: Vec<&str> = ["logs", name, "--from", "console"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        machinist(words).ok().stdout
    };
    wait_until("its console is shown", || console(&[]).contains("\\u{1b}[2Jsum 42"));
    assert!(!console(&[]).contains('\x1b'));
    let raw = &entries(&console(&["-o", "json"]))[0];
    assert_eq!(raw["MACHINIST_SOURCE"], "console", "{raw}");
    machinist(["logs", name, "--from", "guest"]).ok().stdout_is("");
    let both = machinist(["logs", name, &other.name, "--from", "supervisor"])
        .ok()
        .stdout;
    for name in [name, &other.name] {
        assert!(
            both.lines().any(|line| line.starts_with(&format!("{name}: "))),
            "{both}"
        );
    }
}

#[test]
fn followers_outlive_the_machine() {
    // A machine whose start meets a machined that goes fails.
    let _host = alone();
    let guest = Guest::debian("foll");
    let name = guest.name.as_str();
    let follower = Follower::new(&[name]);
    machinist(["start", "--wait", name]).ok();
    // What was said before it was noticed that it runs.
    follower.shows("systemd-journald");
    follower.shows("Started systemd-nspawn@");
    say(&guest, "the first");
    follower.shows("the first");
    machinist(["restart", name]).ok();
    wait_until("it answers", || {
        machinist(["exec", name, "--", "test", "-S", "/run/systemd/journal/dev-log"])
            .any()
            .status
            == 0
    });
    say(&guest, "the second");
    follower.shows("the second");
    run("systemctl", ["restart", "systemd-machined"]).ok();
    say(&guest, "the third");
    follower.shows("the third");
    run("systemctl", ["kill", "-s", "KILL", &guest.unit()]).ok();
    wait_until("the end is told", || {
        follower.said().matches("has stopped").count() >= 2
    });
    machinist(["start", name]).ok();
    wait_until("it answers", || {
        machinist(["exec", name, "--", "test", "-S", "/run/systemd/journal/dev-log"])
            .any()
            .status
            == 0
    });
    say(&guest, "the fourth");
    follower.shows("the fourth");
    let said = follower.said();
    assert!(!said.contains("warning"), "{said}");
    let shown = follower.end();
    for word in ["first", "second", "third", "fourth"] {
        assert_eq!(shown.matches(&format!("]: the {word}\n")).count(), 1, "{word}");
    }
    // Nothing of ours goes on.
    wait_until("journalctl is gone", || !is_read(&guest.unit()));
}

/// Whether a journalctl of ours runs for that unit.
fn is_read(unit: &str) -> bool {
    let found = run("ps", ["-eo", "args"]).ok().stdout;
    found
        .lines()
        .any(|line| line.contains("journalctl") && line.contains(unit))
}

#[test]
fn a_volatile_journal_is_read_while_it_lasts() {
    let _host = shared();
    let guest = Guest::debian("vola");
    let name = guest.name.as_str();
    let place = guest.image().join("etc/systemd/journald.conf.d");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("volatile.conf"), "[Journal]\nStorage=volatile\n").unwrap();
    machinist(["start", "--wait", name]).ok();
    let follower = Follower::new(&[name, "--from", "guest", "-n", "50"]);
    say(&guest, "not for long");
    follower.shows("not for long");
    follower.end();
    machinist(["logs", name, "-o", "cat"]).ok().stdout_has("not for long\n");
    machinist(["stop", name]).ok();
    machinist(["logs", name, "-o", "cat"]).ok().lacks("not for long");
}

#[test]
fn boots_are_told_apart() {
    let _host = shared();
    let guest = Guest::debian("boot");
    let name = guest.name.as_str();
    machinist(["logs", name, "--boot"])
        .status(1)
        .stderr_has("knows no boot '0'");
    let mut boots = Vec::new();
    for text in ["run one", "run two"] {
        machinist(["start", "--wait", name]).ok();
        say(&guest, text);
        let id = guest.inside(["cat", "/proc/sys/kernel/random/boot_id"]).ok().stdout;
        boots.push((id.trim().replace('-', ""), guest.property("InvocationID"), text));
        machinist(["stop", name]).ok();
    }
    let of = |boot: &str| {
        machinist(["logs", name, &format!("--boot{boot}"), "-o", "cat"])
            .ok()
            .stdout
    };
    for (option, there, not_there) in [
        ("", "run two", "run one"),
        ("=-1", "run one", "run two"),
        ("=1", "run one", "run two"),
        (&format!("={}", boots[0].0), "run one", "run two"),
        (&format!("={}", boots[1].0), "run two", "run one"),
        (&format!("={}", boots[0].1), "run one", "run two"),
    ] {
        let shown = of(option);
        assert!(shown.contains(there) && !shown.contains(not_there), "{option}: {shown}");
        assert!(shown.contains("Starting systemd-nspawn@"), "{option}: {shown}");
    }
    machinist(["logs", name, "--boot=-1", "-f"])
        .status(2)
        .stderr_has("is over");
    machinist(["logs", name, "--boot=-2"])
        .status(1)
        .stderr_has("no boot '-2'");
}

#[test]
fn a_clone_shows_nothing_of_its_source() {
    let _host = shared();
    let source = Guest::debian("lsrc");
    machinist(["start", "--wait", &source.name]).ok();
    say(&source, "of the source");
    machinist(["stop", &source.name]).ok();
    let clone = Guest::new("lcln");
    machinist(["clone", &source.name, &clone.name]).ok();
    machinist(["logs", &clone.name]).ok().lacks("of the source");
    machinist(["logs", &source.name]).ok().stdout_has("of the source");
}

#[test]
fn a_linked_machine_is_read_like_others() {
    let _host = shared();
    let source = Guest::debian("lnks");
    let clone = crate::clone::Clone::of("lnkc");
    let name = clone.0.name.as_str();
    machinist(["clone", "--linked", &source.name, name]).ok();
    machinist(["start", "--wait", name]).ok();
    // It may be said before anybody listens.
    let follower = Follower::new(&[name, "-n", "50"]);
    say(&clone.0, "on layers");
    follower.shows("on layers");
    follower.end();
    machinist(["stop", name]).ok();
    machinist(["logs", name, "--from", "guest"])
        .ok()
        .stdout_has("on layers");
}

#[test]
fn outputs_end_quietly() {
    let _host = shared();
    let guest = Guest::debian("pipe");
    let name = guest.name.as_str();
    machinist(["start", "--wait", name]).ok();
    let first = "machinist logs \"$2\" \"$1\" 2>/root/\"$1\".err | head -n 1 >/dev/null; test \"${PIPESTATUS[0]}\" = 141 && \
                 test ! -s /root/\"$1\".err; rm -f /root/\"$1\".err";
    sh(first, [name, "-fn3"]).within(Duration::from_secs(20)).ok();
    sh("machinist logs \"$1\" >/dev/full", [name])
        .status(1)
        .stderr_has("No space left");
    machinist(["logs", "nosuch-machine"])
        .status(3)
        .stderr_has("journalctl --unit");
    machinist(["logs", name, "--since", "whenever"])
        .status(2)
        .fails_with("'whenever' is no time", "systemd.time(7)");
    machinist(["logs", name, "-f", "--until", "now"]).status(2);
    machinist(["logs", name, "-n", "few"]).status(2);
}

#[test]
fn without_root_the_host_journal_is_all() {
    let _host = shared();
    let guest = Guest::busybox("luse");
    guest.start();
    let name = guest.name.as_str();
    let as_user = |groups: &str, words: &[&str]| {
        let start = [
            "--reuid=1000",
            "--regid=1000",
            groups,
            "--reset-env",
            "machinist",
            "logs",
            name,
        ];
        run("setpriv", start.iter().chain(words))
    };
    as_user("--clear-groups", &["--from", "guest"])
        .status(4)
        .fails_with("machines' own journals are read for root only", "sudo machinist");
    as_user("--groups=systemd-journal", &[])
        .status(4)
        .stdout_has("Starting systemd-nspawn@")
        .stderr_has("read for root only");
    as_user("--groups=systemd-journal", &["--from", "supervisor"])
        .ok()
        .stdout_has("Starting systemd-nspawn@")
        .stderr_is("");
    let none = as_user("--clear-groups", &["--from", "supervisor"]).any();
    assert!(none.stdout.is_empty(), "{none:?}");
}

#[test]
fn floods_take_no_memory() {
    let _host = shared();
    let guest = Guest::debian("flod");
    let name = guest.name.as_str();
    let place = guest.image().join("etc/systemd/journald.conf.d");
    fs::create_dir_all(&place).unwrap();
    // As quickly as it can, and its files are put aside all the time.
    fs::write(
        place.join("flood.conf"),
        "[Journal]\nRateLimitBurst=0\nSystemMaxUse=32M\nSystemMaxFileSize=4M\n",
    )
    .unwrap();
    machinist(["start", "--wait", name]).ok();
    let flood = "systemd-run -q --unit=flood sh -c 'exec yes \"$(head -c 300 /dev/zero | tr \"\\0\" x)\"'";
    machinist(["exec", name, "--", "sh", "-c", flood]).ok();
    // Nobody reads what is followed.
    let script = "rm -f \"$2\"; mkfifo \"$2\"; exec 3<>\"$2\"; exec machinist logs -f -n 5 \"$1\" >&3";
    let mut idle = sh(script, [name, "/root/nobody-reads"]).spawn();
    let follower = Follower::new(&[name, "-o", "json"]);
    wait_until("much is followed", || {
        fs::metadata(&follower.shown).is_ok_and(|file| file.len() > 40 << 20)
    });
    assert!(!idle.has_ended());
    for (what, kib) in resident("machinist logs")
        .into_iter()
        .chain(resident("machinist: journal reader"))
    {
        assert!(kib < 96 << 10, "{what} takes {kib} KiB");
    }
    assert!(resident("machinist logs").len() >= 2);
    let pid = follower.pid();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    follower.end();
    idle.signal(nix::sys::signal::Signal::SIGKILL);
    idle.wait();
    let _ = fs::remove_file("/root/nobody-reads");
}

/// Resident memory in KiB of the processes whose command line begins so.
pub(crate) fn resident(command: &str) -> Vec<(String, u64)> {
    let processes = run("ps", ["-eo", "rss=,args="]).ok().stdout;
    let found = processes.lines().filter_map(|line| {
        let (size, words) = line.trim_start().split_once(' ')?;
        words
            .trim_start()
            .starts_with(command)
            .then(|| (words.to_owned(), size.parse().unwrap_or(0)))
    });
    found.collect()
}
