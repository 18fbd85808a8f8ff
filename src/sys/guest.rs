//! Reading a running guest from outside: its root, its network namespace. Everything it says is hostile.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;

use super::files::Root;
use super::raw::enter::watch;
use crate::machine::OsRelease;

/// The largest os-release that is read, in bytes.
const OS_RELEASE_MAX: u64 = 64 * 1024;

/// A machine's leader, held by a pidfd: its number is not trusted after the process is gone.
#[derive(Debug)]
pub struct Leader {
    pid: u32,
    pidfd: OwnedFd,
}

impl Leader {
    /// Takes hold of the leader; `None` if it is gone.
    #[must_use]
    pub fn open(pid: u32) -> Option<Self> {
        let number = Pid::from_raw(i32::try_from(pid).ok()?)?;
        Some(Self {
            pid,
            pidfd: pidfd_open(number, PidfdFlags::empty()).ok()?,
        })
    }

    /// Its number; only good for asking, together with [`Leader::is_alive`].
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its pidfd.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Whether it ends in that time: a pidfd becomes readable when its process ends. Blocks.
    #[must_use]
    pub fn ends_within(&self, limit: Duration) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        !matches!(rustix::event::poll(&mut fds, Some(&limit)), Ok(0))
    }

    /// Whether it has ended, or is about to: a PID 1 that is killed takes all processes of its namespace along first.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        let stat = std::fs::read_to_string(self.proc("stat")).unwrap_or_default();
        is_exiting(&stat) || !self.is_alive()
    }

    fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.pid))
    }

    /// Its root directory. Needs the right to look into the process.
    #[must_use]
    pub fn root(&self) -> Option<Root> {
        let root = Root::open(&self.proc("root")).ok()?;
        // Opened by number: only if the leader still lives was it the leader's.
        self.is_alive().then_some(root)
    }

    /// A namespace of it: "net", "user", "mnt" …
    #[must_use]
    pub fn namespace(&self, kind: &str) -> Option<File> {
        let file = File::open(self.proc(&format!("ns/{kind}"))).ok()?;
        self.is_alive().then_some(file)
    }

    /// Whether it shares a namespace with us; `None` where that cannot be told.
    #[must_use]
    pub fn shares(&self, kind: &str) -> Option<bool> {
        let theirs = std::fs::read_link(self.proc(&format!("ns/{kind}"))).ok()?;
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
        self.is_alive().then_some(theirs == ours)
    }

    /// The inode number of a namespace, as lsns(8) shows it.
    #[must_use]
    pub fn namespace_id(&self, kind: &str) -> Option<String> {
        let link = std::fs::read_link(self.proc(&format!("ns/{kind}"))).ok()?;
        let text = link.to_str()?;
        self.is_alive()
            .then(|| text.trim_matches(|c: char| !c.is_ascii_digit()).to_owned())
    }

    /// The name of what it runs, as in `/proc/PID/comm`.
    #[must_use]
    pub fn command_name(&self) -> Option<String> {
        let name = std::fs::read_to_string(self.proc("comm")).ok()?;
        self.is_alive().then(|| name.trim_end().to_owned())
    }

    /// What it does, as `proc_pid_status(5)` says it: "S (sleeping)", "T (stopped)" …
    #[must_use]
    pub fn scheduling(&self) -> Option<String> {
        let status = std::fs::read_to_string(self.proc("status")).ok()?;
        let state = status.lines().find_map(|line| line.strip_prefix("State:"))?;
        self.is_alive().then(|| state.trim().to_owned())
    }

    /// Whether it does something of its own about a signal: it catches, blocks or awaits it, as init systems do, or
    /// ignores it. One that does not, yet, loses the signal if it is PID 1 of its namespace: see `pid_namespaces(7)`.
    /// `None` if it is gone.
    #[must_use]
    pub fn minds(&self, signal: i32) -> Option<bool> {
        let status = std::fs::read_to_string(self.proc("status")).ok()?;
        let call = std::fs::read_to_string(self.proc("syscall")).unwrap_or_default();
        self.is_alive().then(|| minds(&status, signal) || awaits_signals(&call))
    }

    /// Whether the freezer holds it, by its own control group or one above; false where that cannot be told.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let Some(group) = self.control_group() else {
            return false;
        };
        // Only the unified hierarchy has the freezer that systemd uses; beside v1 it has another place.
        let read = |mount: &str| std::fs::read_to_string(Path::new(mount).join(&group).join("cgroup.events")).ok();
        let events = read("/sys/fs/cgroup").or_else(|| read("/sys/fs/cgroup/unified"));
        events.is_some_and(|events| events.lines().any(|line| line == "frozen 1")) && self.is_alive()
    }

    /// Its control group of the unified hierarchy, without a leading `/`.
    pub(crate) fn control_group(&self) -> Option<String> {
        let groups = std::fs::read_to_string(self.proc("cgroup")).ok()?;
        let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        self.is_alive().then(|| group.to_owned())
    }

    /// Becomes ready whenever its control group may have been frozen or thawed; `None` where that cannot be watched.
    pub(crate) fn watch_freezer(&self) -> Option<AsyncFd<OwnedFd>> {
        let group = self.control_group()?;
        let open = |mount: &str| File::open(Path::new(mount).join(&group).join("cgroup.events"));
        let events = open("/sys/fs/cgroup")
            .or_else(|_| open("/sys/fs/cgroup/unified"))
            .ok()?;
        watch(events.into()).ok()
    }

    /// Becomes ready when it has ended.
    pub(crate) fn watch(&self) -> std::io::Result<AsyncFd<OwnedFd>> {
        watch(self.pidfd.try_clone()?)
    }

    /// The network interfaces of its network namespace: see `proc_pid_net(5)`.
    #[must_use]
    pub fn interfaces(&self) -> Option<Vec<String>> {
        let table = std::fs::read_to_string(self.proc("net/dev")).ok()?;
        let name = |line: &str| Some(line.split_once(':')?.0.trim().to_owned());
        // The first two lines are its heads.
        let names = table.lines().skip(2).filter_map(name).collect();
        self.is_alive().then_some(names)
    }

    /// The first line of its uid map: (first uid on the host, how many), for its uid 0.
    #[must_use]
    pub fn uid_shift(&self) -> Option<(u32, u32)> {
        let map = std::fs::read_to_string(self.proc("uid_map")).ok()?;
        let mut fields = map.lines().next()?.split_whitespace().map(str::parse::<u32>);
        match (fields.next()?, fields.next()?, fields.next()?) {
            (Ok(0), Ok(base), Ok(count)) => self.is_alive().then_some((base, count)),
            _ => None,
        }
    }

    /// Its maps of users and of groups, see `user_namespaces(7)`.
    #[must_use]
    pub fn id_maps(&self) -> Option<(String, String)> {
        let map = |file| std::fs::read_to_string(self.proc(file)).ok();
        let maps = (map("uid_map")?, map("gid_map")?);
        self.is_alive().then_some(maps)
    }

    /// The numbers that a user and a group of the guest have on the host.
    #[must_use]
    pub fn ids_on_host(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        let id = |map: &str, id| mapped(&std::fs::read_to_string(self.proc(map)).ok()?, id);
        let ids = (id("uid_map", uid)?, id("gid_map", gid)?);
        self.is_alive().then_some(ids)
    }
}

/// Whether the flags of `/proc/PID/stat` say that the process is exiting: see `proc_pid_stat(5)`. Its name may hold anything.
fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u32 = 0x4;
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let flags = fields.split(' ').nth(6).and_then(|flags| flags.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

/// The answer of [`Leader::minds`], by the masks in `/proc/PID/status`: see `proc_pid_status(5)`.
fn minds(status: &str, signal: i32) -> bool {
    let masks = status
        .lines()
        .filter_map(|line| {
            ["SigBlk:", "SigIgn:", "SigCgt:"]
                .iter()
                .find_map(|mask| line.strip_prefix(mask))
        })
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = u32::try_from(signal - 1)
        .ok()
        .and_then(|shift| 1_u64.checked_shl(shift));
    bit.is_some_and(|bit| masks.fold(0, |all, mask| all | mask) & bit != 0)
}

/// Whether `/proc/PID/syscall` says that the process waits in sigtimedwait(2), as busybox' init does: for that time the
/// signals are neither blocked nor caught, by the masks that are shown.
fn awaits_signals(call: &str) -> bool {
    let number = call.split_whitespace().next().and_then(|number| number.parse().ok());
    number == Some(nix::libc::SYS_rt_sigtimedwait)
}

/// What number of the host's a user or group of the guest is, by a map of user_namespaces(7): lines of the first number
/// inside, the first outside, and how many.
#[must_use]
pub fn mapped(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
        let offset = id.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

/// The os-release of a root filesystem: `/etc/os-release`, otherwise `/usr/lib/os-release`.
#[must_use]
pub fn os_release(root: &Root) -> Option<OsRelease> {
    let text = ["etc/os-release", "usr/lib/os-release"]
        .iter()
        .find_map(|path| root.read(path, OS_RELEASE_MAX).ok())?;
    Some(OsRelease::parse(&String::from_utf8_lossy(&text)))
}

/// Reads addresses in the network namespaces of leaders, one after the other.
///
/// Enters them with the calling thread, which must do nothing else after it.
#[derive(Debug)]
pub struct AddressReader {
    runtime: Runtime,
    ours: (u64, u64),
}

impl AddressReader {
    /// To be called on the thread that is going to read.
    #[must_use]
    pub fn new() -> Option<Self> {
        let ours = std::fs::metadata("/proc/self/ns/net").ok()?;
        Some(Self {
            runtime: super::netlink::runtime().ok()?,
            ours: (ours.dev(), ours.ino()),
        })
    }

    /// The addresses in a leader's network namespace; `None` if it shares ours, or may not be entered.
    #[must_use]
    pub fn read(&self, leader: &Leader) -> Option<Vec<IpAddr>> {
        let namespace = leader.namespace("net")?;
        let theirs = namespace.metadata().ok()?;
        if (theirs.dev(), theirs.ino()) == self.ours {
            return None;
        }
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
        super::netlink::addresses(&self.runtime).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{awaits_signals, is_exiting, mapped, minds};

    #[test]
    fn a_process_that_exits_says_so() {
        assert!(is_exiting("7 (a) b) S 1 7 7 0 -1 4194564 120 0 0 0\n"));
        assert!(!is_exiting("7 (a) b) S 1 7 7 0 -1 4194560 120 0 0 0\n"));
        assert!(!is_exiting(""));
    }

    #[test]
    fn a_signal_is_minded_by_any_mask() {
        let status = "Name:\tinit\nSigQ:\t3/95\nSigPnd:\t0000000000000800\nShdPnd:\t0000000000000000\n\
                      SigBlk:\t0000000000000001\nSigIgn:\t0000000000000002\nSigCgt:\t8000000000000004\n";
        for signal in [1, 2, 3, 64] {
            assert!(minds(status, signal), "{signal}");
        }
        for signal in [0, 4, 12, 65, -1] {
            assert!(!minds(status, signal), "{signal}");
        }
        assert!(!minds("", 1));
    }

    #[test]
    fn a_process_that_waits_for_signals_awaits_them() {
        let number = nix::libc::SYS_rt_sigtimedwait;
        assert!(awaits_signals(&format!(
            "{number} 0x5f59e8 0x0 0x0 0x8 0x0 0x0 0x7ffc3eeff690 0x4ae3f7\n"
        )));
        assert!(!awaits_signals(&format!(
            "{} 0x1 0x7ffc3eeff690 0x4ae3f7\n",
            nix::libc::SYS_read
        )));
        assert!(!awaits_signals("running\n"));
        assert!(!awaits_signals(""));
    }

    #[test]
    fn numbers_are_mapped_within_their_ranges() {
        let map = "         0     524288      65536\n     70000       1000          1\n";
        assert_eq!(mapped(map, 0), Some(524_288));
        assert_eq!(mapped(map, 65_535), Some(589_823));
        assert_eq!(mapped(map, 65_536), None);
        assert_eq!(mapped(map, 70_000), Some(1000));
        assert_eq!(mapped("0 0 4294967295\n", 4711), Some(4711));
        assert_eq!(mapped("0 4294967290 100\nx\n", 50), None);
    }
}
