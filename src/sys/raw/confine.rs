//! A process that can no more than read what it was given, and write.

use std::io;

use nix::libc;

use super::enter::{AUDIT_ARCH, install_seccomp_filter};

/// The system calls of a program that reads, takes descriptors from a socket, writes, and has memory.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The standard library looks whether what it closes is open, if it is built to.
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Has the kernel kill the process over any other system call than those of a reader, from now on. It needs no_new_privs.
pub(crate) fn allow_reading_only() -> io::Result<()> {
    let arch = AUDIT_ARCH.ok_or(io::ErrorKind::Unsupported)?;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let count = u8::try_from(ALLOWED.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut filter = vec![step(0x20, 4, 0, 0), step(0x15, arch, 1, 0)];
    filter.extend([step(0x06, libc::SECCOMP_RET_KILL_PROCESS, 0, 0), step(0x20, 0, 0, 0)]);
    for (number, left) in ALLOWED.iter().zip((0..count).rev()) {
        let number = u32::try_from(*number).unwrap_or(u32::MAX);
        filter.push(step(0x15, number, left + 1, 0));
    }
    filter.push(step(0x06, libc::SECCOMP_RET_KILL_PROCESS, 0, 0));
    filter.push(step(0x06, libc::SECCOMP_RET_ALLOW, 0, 0));
    install_seccomp_filter(&filter, 0)
}
