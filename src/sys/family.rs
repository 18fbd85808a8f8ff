//! The processes of the host, and which of them belong to a container that something else has started.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// A process, as /proc shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its number on the host.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its control group of the unified hierarchy, with a leading `/`.
    pub control_group: String,
    /// Its PID namespace: the inode's number.
    pub namespace: u64,
    /// Its number in that namespace.
    pub inner: u32,
    /// It is a thread of the kernel.
    pub of_kernel: bool,
}

impl Process {
    /// One of them; `None` if it is gone, or may not be looked at.
    #[must_use]
    pub fn read(pid: u32) -> Option<Self> {
        let text = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        let (parent, flags) = parent_and_flags(&text("stat")?)?;
        Some(Self {
            pid,
            parent,
            control_group: control_group(&text("cgroup")?)?,
            namespace: fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?.ino(),
            inner: inner(&text("status")?)?,
            of_kernel: flags & PF_KTHREAD != 0,
        })
    }

    /// All of them.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read).collect()
    }
}

/// See include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;

/// Of `/proc/PID/stat`: the name before it may hold anything.
fn parent_and_flags(stat: &str) -> Option<(u32, u32)> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some((fields.get(1)?.parse().ok()?, fields.get(6)?.parse().ok()?))
}

fn control_group(text: &str) -> Option<String> {
    let group = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(group.to_owned())
}

/// Of `/proc/PID/status`: the last number of `NSpid:` is that of its own namespace.
fn inner(status: &str) -> Option<u32> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().last()?.parse().ok()
}

/// Whether the number is that of a thread which does not lead its process.
#[must_use]
pub fn is_thread(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let leader = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    leader.is_some_and(|leader| leader.trim().parse() != Ok(pid))
}

/// The processes of a container: its leader, what comes of it, and what has entered its PID namespace. Of one without a
/// namespace of its own (`host` is the host's), only what comes of it.
#[must_use]
pub fn family<'a>(all: &'a [Process], leader: &Process, host: u64) -> Vec<&'a Process> {
    let is_inside = |process: &Process| leader.namespace != host && process.namespace == leader.namespace;
    let mut known: HashSet<u32> = all
        .iter()
        .filter(|process| is_inside(process))
        .map(|process| process.pid)
        .collect();
    known.insert(leader.pid);
    loop {
        let before = known.len();
        for process in all {
            if known.contains(&process.parent) {
                known.insert(process.pid);
            }
        }
        if known.len() == before {
            break;
        }
    }
    all.iter().filter(|process| known.contains(&process.pid)).collect()
}

/// The unit that a control group belongs to, as systemd reads it: behind the slices a service or scope. Not one of a user's
/// sessions, nor PID 1's own.
#[must_use]
pub fn unit_of(control_group: &str) -> Option<&str> {
    let mut names = control_group.split('/').filter(|name| !name.is_empty()).peekable();
    if names.peek() == Some(&"user.slice") {
        return None;
    }
    let unit = names.find(|name| !name.ends_with(".slice"))?;
    let is_unit = unit.ends_with(".service") || unit.ends_with(".scope");
    (is_unit && unit != "init.scope").then_some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_proc_is_read() {
        let stat = "7 (a) b) S 42 7 7 0 -1 2097216 120 0 0 0\n";
        assert_eq!(parent_and_flags(stat), Some((42, 2_097_216)));
        assert_eq!(parent_and_flags(""), None);
        assert_eq!(control_group("1:cpu:/a\n0::/b/c\n").as_deref(), Some("/b/c"));
        assert_eq!(inner("Name:\tsh\nNSpid:\t4711\t12\t1\n"), Some(1));
        let own = Process::read(std::process::id()).unwrap();
        assert!(Process::all().contains(&own) && !own.of_kernel);
        assert!(!is_thread(std::process::id()));
        assert_eq!(Process::read(u32::MAX), None);
    }

    #[test]
    fn a_container_is_what_comes_of_it_and_what_went_in() {
        let process = |pid, parent, namespace| Process {
            pid,
            parent,
            namespace,
            ..Process::default()
        };
        let all = [
            process(1, 0, 1),
            process(10, 1, 1),
            // Its first process, a child, one with a namespace in there, and one of that whose parent comes later.
            process(20, 10, 2),
            process(24, 23, 3),
            process(23, 20, 3),
            process(25, 20, 2),
            // One that has entered it, its child, and another container.
            process(30, 10, 2),
            process(31, 30, 2),
            process(40, 10, 4),
        ];
        let pids = |leader: usize| -> Vec<u32> {
            let mut pids: Vec<u32> = family(&all, &all[leader], 1)
                .iter()
                .map(|process| process.pid)
                .collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(pids(2), [20, 23, 24, 25, 30, 31]);
        assert_eq!(pids(8), [40]);
        // Without a namespace of its own: all that was started by it.
        assert_eq!(pids(1), [10, 20, 23, 24, 25, 30, 31, 40]);
    }

    #[test]
    fn units_of_sessions_are_none_of_its_own() {
        assert_eq!(unit_of("/machine.slice/box.service/payload"), Some("box.service"));
        assert_eq!(unit_of("/a.slice/a-b.slice/x.scope"), Some("x.scope"));
        for none in [
            "/",
            "/user.slice/user-0.slice/session-1.scope",
            "/user.slice/user-0.slice/user@0.service/app.slice/x.service",
            "/init.scope",
            "/lxc.payload.box/init.scope",
            "/system.slice",
        ] {
            assert_eq!(unit_of(none), None, "{none}");
        }
    }
}
