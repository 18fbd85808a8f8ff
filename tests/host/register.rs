//! register: containers that something else has started, and what then works on them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::logs::Follower;
use crate::support::{
    Run, There, agree, holds_within, machine_property, machinist, run, sh, shared, stays, unique, unit_property,
    wait_until,
};

/// What starts a container, with `$1` as its program.
const UNSHARE: &str = "exec unshare --fork --pid --mount-proc --uts --ipc --net --kill-child";

/// A container by unshare(1): killed when this is dropped.
struct Container {
    name: String,
    /// Its first process, by its number on the host.
    leader: u32,
    /// The service that it was started in, if in one of its own.
    service: Option<String>,
}

impl Container {
    /// Outside of all units, as from a shell.
    fn of_shell() -> Self {
        let name = unique("reg");
        let script = format!(
            "setsid {} sh -c \"$2\" \"$1\" >/dev/null 2>&1 </dev/null &",
            &UNSHARE[5..]
        );
        sh(&script, [name.as_str(), PROGRAM]).ok();
        Self::started(name, None)
    }

    /// In a service.
    fn of_service(script: &str) -> Self {
        let name = unique("reg");
        let unit = format!("test-{name}.service");
        let words = [
            "-q",
            "--unit",
            &unit,
            "-p",
            "Delegate=yes",
            "--",
            "/bin/sh",
            "-c",
            script,
            &name,
            PROGRAM,
        ];
        run("systemd-run", words).ok();
        Self::started(name, Some(unit))
    }

    fn started(name: String, service: Option<String>) -> Self {
        let mut leader = 0;
        let pattern = format!("sh -c {PROGRAM} {name}");
        wait_until("the container runs", || {
            let found = run("pgrep", ["-xf", &regex(&pattern)]).any().stdout;
            leader = found
                .lines()
                .filter_map(|line| line.parse().ok())
                .find(|pid| inner(*pid) == Some(1))
                .unwrap_or(0);
            leader > 0
        });
        // It has children before it is registered.
        wait_until("its child runs", || {
            run("pgrep", ["-P", &leader.to_string(), "-x", "sleep"]).any().status == 0
        });
        Self { name, leader, service }
    }

    fn register(&self, more: &[&str]) -> Run {
        let leader = self.leader.to_string();
        machinist(["register", &self.name, "--leader", &leader].iter().chain(more))
    }

    /// Its processes, by the namespace that they are in.
    fn processes(&self) -> Vec<u32> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(self.leader);
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| namespace(*pid) == own).collect()
    }

    /// Everything that must work on it.
    #[track_caller]
    fn works(&self, unit: &str) {
        let name = self.name.as_str();
        let property = |key: &str| machine_property(name, key).unwrap_or_default();
        assert_eq!(property("Unit"), unit);
        assert_eq!(property("Leader"), self.leader.to_string());
        assert_eq!(
            (property("Class"), property("Service")),
            ("container".to_owned(), "machinist".to_owned())
        );
        agree(name, There::WithoutImage);
        let group = unit_property(unit, "ControlGroup");
        for pid in self.processes() {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            assert!(
                groups.contains(&format!("0::{group}")),
                "{pid} is not in {group}: {groups}"
            );
        }
        machinist([
            "exec",
            name,
            "--",
            "sh",
            "-c",
            "echo $$ in $(hostname); cat /proc/1/comm",
        ])
        .ok()
        .stdout_has("sh\n");
        machinist(["status", name]).ok().stdout_has(unit);
        machinist(["logs", name]).ok();
        machinist(["top", name, "--once"]).ok().stdout_has(name);
        machinist(["limit", name, "--runtime", "tasks=500"]).ok();
        assert_eq!(unit_property(unit, "TasksMax"), "500");
        machinist(["freeze", name]).ok();
        machinist(["list", "--filter", &format!("name={name}"), "--columns", "state"])
            .ok()
            .stdout_has("frozen");
        machinist(["thaw", name]).ok();
        run("machinectl", ["status", "--no-pager", name]).ok().stdout_has(unit);
    }

    /// It ends, and all that is told of it.
    #[track_caller]
    fn ends(&self) {
        let name = self.name.as_str();
        let follower = Follower::of(&["machinist", "events", name, "--json"]);
        wait_until("it is told that it is frozen", || {
            machinist(["freeze", name]).ok();
            // What is over at once need not be told, nor what was so when it began to listen.
            let told = |what: &str| holds_within(Duration::from_secs(1), || follower.shown().contains(what));
            let is_told = told("frozen");
            machinist(["thaw", name]).ok();
            if !is_told {
                told("running");
            }
            is_told
        });
        let mut waits = machinist(["wait", name, "--for", "stopped", "--timeout", "60"]).spawn();
        stays("it is waited for", Duration::from_secs(1), || !waits.has_ended());
        machinist(["kill", name, "-s", "KILL", "--whom", "leader"]).ok();
        // One that has only just begun finds no such machine.
        let waited = waits.wait();
        assert!([0, 3].contains(&waited.status), "{waited:?}");
        follower.shows("\"gone\"");
        wait_until("it is not registered any more", || {
            machine_property(name, "State").is_none()
        });
        follower.end();
        agree(name, There::Nowhere);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if inner(self.leader) == Some(1) {
            run("kill", ["-KILL", &self.leader.to_string()]).any();
        }
        for unit in self
            .service
            .iter()
            .cloned()
            .chain([format!("machine-{}.scope", self.name)])
        {
            run("systemctl", ["stop", &unit]).any();
            run("systemctl", ["reset-failed", &unit]).any();
        }
    }
}

/// What runs as its first process: it has children, one after the other.
const PROGRAM: &str = "while :; do sleep 1; done";

/// A pattern that matches just this.
fn regex(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '-' | ':' | ';');
    text.chars()
        .map(|c| if plain(c) { c.to_string() } else { format!("[{c}]") })
        .collect()
}

/// Its number in its own PID namespace.
fn inner(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

#[test]
fn a_container_of_a_shell_gets_a_scope() {
    let _host = shared();
    let container = Container::of_shell();
    let name = container.name.as_str();
    let unit = format!("machine-{name}.scope");
    container
        .register(&["--dry-run"])
        .ok()
        .stdout_has(&format!("into a new unit {unit}\n"))
        .stdout_has(&format!("leader {}, unit {unit}\n", container.leader));
    assert_eq!(machine_property(name, "State"), None);
    assert_eq!(unit_property(&unit, "ActiveState"), "inactive");
    container
        .register(&[])
        .ok()
        .stdout_is("")
        .stderr_is(&format!("registered {name}, in {unit}\n"));
    container.works(&unit);
    assert_eq!(unit_property(&unit, "Slice"), "machine.slice");
    assert_eq!(unit_property(&unit, "Delegate"), "yes");
    // Once is enough.
    container.register(&[]).status(1).fails_with(
        &format!(
            "cannot register machine '{name}': there is a machine of that name, whose leader is {}",
            container.leader
        ),
        "machinist list",
    );
    let leader = container.leader.to_string();
    machinist(["register", &unique("other"), "--leader", &leader])
        .status(1)
        .stderr_has(&format!("belongs to machine '{name}'"));
    container.ends();
    wait_until("the scope is gone", || {
        unit_property(&unit, "ActiveState") == "inactive"
    });
}

#[test]
fn a_container_with_a_service_of_its_own_keeps_it() {
    let _host = shared();
    let container = Container::of_service(&format!("{UNSHARE} sh -c \"$1\" \"$0\""));
    let unit = container.service.clone().unwrap();
    container.register(&["--dry-run"]).ok().stdout_is(&format!(
        "register container '{}' with systemd-machined: leader {}, unit {unit}\n",
        container.name, container.leader
    ));
    let done = container.register(&["--json"]).ok().json();
    assert_eq!(done[0]["unit"], unit.as_str());
    assert_eq!(
        (&done[0]["result"], &done[0]["leader"]),
        (&"registered".into(), &container.leader.into())
    );
    container.works(&unit);
    container.ends();
}

#[test]
fn a_service_that_holds_others_is_not_taken() {
    let _host = shared();
    let script = format!("sleep 1000 & {} sh -c \"$1\" \"$0\"; wait", &UNSHARE[5..]);
    let container = Container::of_service(&script);
    let (name, service) = (container.name.as_str(), container.service.clone().unwrap());
    let unit = format!("machine-{name}.scope");
    container
        .register(&[])
        .ok()
        .stderr_is(&format!("registered {name}, in {unit}\n"));
    container.works(&unit);
    // It is terminated, and the service goes on.
    machinist(["terminate", name]).ok();
    wait_until("it is not registered any more", || {
        machine_property(name, "State").is_none()
    });
    assert_eq!(unit_property(&service, "ActiveState"), "active");
}

#[test]
fn a_container_with_control_groups_of_its_own_in_no_unit_is_refused() {
    let _host = shared();
    let container = Container::of_shell();
    let name = container.name.as_str();
    let group = format!("/sys/fs/cgroup/lxc.payload.{name}");
    for group in [&group, &format!("{group}/init")] {
        fs::create_dir(group).unwrap();
    }
    let put = |group: &str, pid: u32| fs::write(Path::new(group).join("cgroup.procs"), pid.to_string());
    put(&format!("{group}/init"), container.leader).unwrap();
    // Those that it starts from now on are there, too; one that enters it is not.
    let leader = container.leader.to_string();
    let entered = run("nsenter", ["-t", &leader, "-p", "-m", "sleep", "1000"]).spawn();
    wait_until("somebody is in it", || {
        container.processes().iter().any(|pid| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            !groups.contains(&format!("lxc.payload.{name}"))
        })
    });
    container
        .register(&[])
        .status(1)
        .stderr_has("limits and freezing would not reach all of them")
        .stderr_has("hint: start it in a unit of its own");
    assert_eq!(machine_property(name, "State"), None);
    // All that is in its namespace ends with it.
    run("kill", ["-KILL", &leader]).ok();
    entered.wait();
    wait_until("its groups are empty", || {
        [format!("{group}/init"), group.clone()]
            .iter()
            .all(|group| !Path::new(group).exists() || fs::remove_dir(group).is_ok())
    });
}

#[test]
fn what_is_no_container_is_refused() {
    let _host = shared();
    let container = Container::of_shell();
    let refused = |pid: u32| {
        let name = unique("no");
        let output = machinist(["register", &name, "--leader", &pid.to_string()]).status(1);
        assert_eq!(machine_property(&name, "State"), None);
        output
    };
    refused(1).stderr_has("process 1 is the host's own init");
    refused(2).stderr_has("process 2");
    refused(4_194_304).stderr_has("there is no process 4194304");
    let parent = fs::read_to_string(format!("/proc/{}/stat", container.leader)).unwrap();
    let parent: u32 = parent
        .rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    refused(parent)
        .stderr_has("is in the host's own PID namespace")
        .stderr_has(&format!("--leader {}`", container.leader));
    let child = run("pgrep", ["-P", &container.leader.to_string()]).ok().stdout;
    if let Some(child) = child.lines().next().and_then(|line| line.parse().ok()) {
        // Or it has ended by now.
        refused(child);
    }
    // A thread of this program.
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut threads = threads.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let thread = threads.find(|thread| *thread != std::process::id()).unwrap();
    refused(thread).stderr_has("is a thread, and no process");

    let leader = container.leader.to_string();
    for name in ["a_b", "", "-x"] {
        machinist(["register", "--leader", &leader, "--", name]).status(2);
    }
    for pid in ["0", "-1", "x", "99999999999"] {
        machinist(["register", "web", &format!("--leader={pid}")]).status(2);
    }
    let words = [
        "-u",
        "nobody",
        "--",
        "machinist",
        "register",
        "web",
        "--leader",
        &leader,
    ];
    run("runuser", words).status(4).stderr_has("register needs root");
}

#[test]
fn a_virtual_machine_has_no_namespaces() {
    let _host = shared();
    let name = unique("regvm");
    let child = sh("setsid sleep 5151 >/dev/null 2>&1 </dev/null & echo $!", [""; 0])
        .ok()
        .stdout;
    let pid = child.trim();
    wait_until("it runs", || {
        run("pgrep", ["-xf", "sleep 5151"]).any().stdout.trim() == pid
    });
    machinist(["register", &name, "--leader", pid, "--class", "vm"]).ok();
    assert_eq!(machine_property(&name, "Class").as_deref(), Some("vm"));
    assert_eq!(machine_property(&name, "Leader").as_deref(), Some(pid));
    machinist(["list", "--filter", &format!("name={name}")])
        .ok()
        .stdout_has("vm");
    run("kill", [pid]).ok();
    wait_until("it is not registered any more", || {
        machine_property(&name, "State").is_none()
    });
}

#[test]
fn a_leader_that_dies_meanwhile_leaves_nothing() {
    let _host = shared();
    for _ in 0..5 {
        let container = Container::of_shell();
        let leader = container.leader.to_string();
        let registers = container.register(&[]).spawn();
        run("kill", ["-KILL", &leader]).ok();
        // It was quicker, or it is told.
        let output = registers.wait();
        assert!([0, 1].contains(&output.status), "{output:?}");
        wait_until("it is not registered any more", || {
            machine_property(&container.name, "State").is_none()
        });
    }
}
