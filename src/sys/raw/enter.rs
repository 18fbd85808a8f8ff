//! What entering a guest asks of the kernel: clone(2), ptrace(2), seccomp(2), prlimit(2), keyctl(2), close_range(2),
//! sigaction(2).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::libc;
use tokio::io::unix::AsyncFd;

/// One instruction of a seccomp filter, see seccomp(2).
pub(crate) type Instruction = libc::sock_filter;

const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
/// libc's own does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `BPF_MAXINSNS`
const INSTRUCTIONS_MAX: usize = 4096;

/// `struct seccomp_metadata`
#[repr(C)]
struct Metadata {
    filter_off: u64,
    flags: u64,
}

/// Which side of [`clone_sibling`] goes on.
pub(crate) enum Cloned {
    /// The new process.
    Child,
    /// The caller, with a pidfd of the new process.
    Caller(OwnedFd),
}

/// Makes a copy of the calling process whose parent is the caller's parent. The caller must have one thread only.
pub(crate) fn clone_sibling() -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::SIGCHLD;
    if clone_process(flags, &raw mut pidfd)? {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(Cloned::Caller(unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Makes a copy of the calling process, of which it is the parent: true in the copy. The caller must have one thread only.
pub(crate) fn clone_child() -> io::Result<bool> {
    clone_process(libc::SIGCHLD, std::ptr::null_mut())
}

/// As [`clone_sibling`], but the copy is in a control group from the start, see CLONE_INTO_CGROUP in clone(2): much quicker
/// than to move there, for which the kernel stops all forks.
pub(crate) fn clone_sibling_into(group: BorrowedFd<'_>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD;
    // SAFETY: all zero is what clone3(2) takes for "nothing", for each of its fields.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.unsigned_abs()) | CLONE_INTO_CGROUP;
    args.pidfd = (&raw mut pidfd) as u64;
    args.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    // SAFETY: without CLONE_VM this is fork(2), with a null stack, as in `clone_process`; the kernel reads a structure of the
    // given size and writes the pidfd through a valid pointer.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) } {
        ..0 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        _ => Ok(Cloned::Caller(unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

/// clone(2) without CLONE_VM. With CLONE_PIDFD, `pidfd` must be valid for a write.
fn clone_process(flags: libc::c_int, pidfd: *mut RawFd) -> io::Result<bool> {
    let (flags, stack) = (libc::c_long::from(flags), 0_usize);
    #[cfg(target_arch = "s390x")]
    let (first, second) = (stack, flags);
    #[cfg(not(target_arch = "s390x"))]
    let (first, second) = (flags, stack);
    // SAFETY: without CLONE_VM this is fork(2): the child has a copy of all memory, and a null stack means its own copy of
    // ours. The kernel writes to the pointer only with CLONE_PIDFD, and then it is valid. There is no other thread whose
    // locks could be lost.
    match unsafe { libc::syscall(libc::SYS_clone, first, second, pidfd, 0_usize, 0_usize) } {
        ..0 => Err(io::Error::last_os_error()),
        0 => Ok(true),
        _ => Ok(false),
    }
}

/// What `struct seccomp_data` says of the architecture: `AUDIT_ARCH_*` of <linux/audit.h>.
pub(super) const AUDIT_ARCH: Option<u32> = {
    if cfg!(target_arch = "x86_64") {
        Some(0xc000_003e)
    } else if cfg!(target_arch = "aarch64") {
        Some(0xc000_00b7)
    } else if cfg!(target_arch = "riscv64") {
        Some(0xc000_00f3)
    } else {
        None
    }
};

/// Installs a seccomp filter that lets the thread call connect(2), exit_group(2), and clone(2) as [`clone_child`] does. It
/// needs no_new_privs.
pub(crate) fn allow_connect_only() -> io::Result<()> {
    let arch = AUDIT_ARCH.ok_or(io::ErrorKind::Unsupported)?;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let load = |offset| step(0x20, offset, 0, 0);
    let unless_equal = |number: u32, jt, jf| step(0x15, number, jt, jf);
    let number = |number: libc::c_long| u32::try_from(number).unwrap_or(u32::MAX);
    let filter = [
        load(4),
        unless_equal(arch, 0, 6),
        load(0),
        unless_equal(number(libc::SYS_connect), 5, 0),
        unless_equal(number(libc::SYS_exit_group), 4, 0),
        unless_equal(number(libc::SYS_clone), 0, 2),
        load(16),
        unless_equal(libc::SIGCHLD.unsigned_abs(), 1, 0),
        step(0x06, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        step(0x06, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    install_seccomp_filter(&filter, 0)
}

/// A seccomp filter of a process that we trace and that is stopped, the oldest has number 0; `None` past the last.
pub(crate) fn seccomp_filter(pid: i32, number: usize) -> io::Result<Option<Vec<Instruction>>> {
    let mut filter = vec![
        libc::sock_filter {
            code: 0,
            jt: 0,
            jf: 0,
            k: 0
        };
        INSTRUCTIONS_MAX
    ];
    // SAFETY: the kernel writes at most BPF_MAXINSNS instructions, for which there is room.
    let count = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, pid, number, filter.as_mut_ptr()) };
    let Ok(count) = usize::try_from(count) else {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOENT) {
            Ok(None)
        } else {
            Err(error)
        };
    };
    filter.truncate(count);
    Ok(Some(filter))
}

/// The flags that a seccomp filter was installed with (`SECCOMP_FILTER_FLAG_LOG` is the only one that is kept).
pub(crate) fn seccomp_flags(pid: i32, number: usize) -> io::Result<u64> {
    let mut metadata = Metadata {
        filter_off: number as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads and writes at most the given number of bytes, which is the structure's size.
    let result = unsafe {
        libc::ptrace(
            PTRACE_SECCOMP_GET_METADATA,
            pid,
            size_of::<Metadata>(),
            &raw mut metadata,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(metadata.flags)
    }
}

/// Installs a seccomp filter on the calling thread, for good.
pub(crate) fn install_seccomp_filter(filter: &[Instruction], flags: u64) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions from a slice of that length, and checks them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// How a process that we trace has stopped.
pub(crate) enum Stop {
    /// As it was asked to.
    Event,
    /// A signal of this number was about to be delivered.
    Signal(i32),
}

/// Looks whether a process that we trace has stopped, see ptrace(2); an error if it has ended.
pub(crate) fn traced_stop(pid: i32) -> io::Result<Option<Stop>> {
    const PTRACE_EVENT_STOP: i32 = 128;
    let mut status = 0;
    // SAFETY: the kernel writes an int through a valid pointer.
    match unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::WNOHANG) } {
        ..0 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ if !libc::WIFSTOPPED(status) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        _ if status >> 16 == PTRACE_EVENT_STOP => Ok(Some(Stop::Event)),
        _ => Ok(Some(Stop::Signal(libc::WSTOPSIG(status)))),
    }
}

/// Has a process that we trace go on with a signal.
pub(crate) fn continue_traced(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: PTRACE_CONT reads no memory; its last argument is a number.
    let result = unsafe { libc::ptrace(libc::PTRACE_CONT, pid, 0_usize, libc::c_long::from(signal)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives the calling process the scheduling of another: policy, niceness, priorities, and on which CPUs, see sched(7).
pub(crate) fn take_scheduling_of(pid: i32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    /// `struct sched_attr` of the first version
    #[repr(C, align(8))]
    struct Space([u8; 48]);
    let check = |result: libc::c_long| match result {
        ..0 => Err(io::Error::last_os_error()),
        other => Ok(other),
    };
    let mut space = Space([0; 48]);
    let mut cpus = [0_u64; 128];
    // SAFETY: the kernel writes at most the given number of bytes, which is the structure's and the list's size, and reads
    // as many as it wrote; the others take numbers.
    unsafe {
        check(libc::syscall(
            libc::SYS_sched_getattr,
            pid,
            &raw mut space,
            size_of::<Space>(),
            0_usize,
        ))?;
        check(libc::syscall(libc::SYS_sched_setattr, 0, &raw const space, 0_usize))?;
        let length = check(libc::syscall(
            libc::SYS_sched_getaffinity,
            pid,
            size_of_val(&cpus),
            &raw mut cpus,
        ))?;
        check(libc::syscall(libc::SYS_sched_setaffinity, 0, length, &raw const cpus))?;
        let priority = check(libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, pid))?;
        check(libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority))?;
    }
    Ok(())
}

/// Has ended children wait for us again: who started us may have left SIGCHLD ignored, and a child that nobody waits for is
/// gone with its status.
pub(crate) fn keep_children() {
    // SAFETY: the default action runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Gives the calling process all resource limits of another, see prlimit(2).
pub(crate) fn take_resource_limits_of(pid: i32) -> io::Result<()> {
    /// `RLIM_NLIMITS`
    const COUNT: libc::c_uint = 16;
    for resource in 0..COUNT {
        let mut limit = libc::rlimit64 {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the kernel writes one rlimit64 through the last pointer; a null pointer changes nothing.
        let got = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, 0_usize, &raw mut limit) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel reads one rlimit64, and a null pointer gets nothing written.
        let set = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, 0_usize) };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Leaves the caller's session keyring for an anonymous, empty one, see keyctl(2).
pub(crate) fn join_anonymous_keyring() -> io::Result<()> {
    // SAFETY: a null name means an anonymous keyring; no memory is handed over.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0_usize) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Has execve(2) close every descriptor from `first` on.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: setting the close-on-exec flag breaks no descriptor that anybody owns.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Closes every descriptor from `first` on. For a process that ends without using any of them again: whoever owns them must
/// not be dropped.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the kernel closes numbers; that nobody uses or closes them again is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives every signal its default action and unblocks it: execve(2) hands on what is ignored or blocked.
pub(crate) fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: the default action runs no code of ours. What cannot be set (SIGKILL, SIGSTOP) is default anyway.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Ends the process at once, without running what is registered for its end: that belongs to the process it was cloned
/// from.
pub(crate) fn exit_now() -> ! {
    // SAFETY: it does not return, and touches no memory.
    unsafe { libc::_exit(libc::EXIT_FAILURE) }
}

/// Watches a descriptor, which it owns, for the runtime.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and only the AsyncFd has it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}
