//! What PID 1 of a machine may do: read from it, and taken on by the process that joins it.

use std::fs;
use std::io;
use std::num::ParseIntError;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::label::Label;
use crate::sys::raw::enter as raw;

/// How long somebody else's tracer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often in a row nobody is seen tracing before a refusal counts as one.
const LOOKS: u32 = 10;

/// A process's privileges, as `/proc/PID/status` and ptrace(2) tell them.
#[derive(Debug)]
pub(super) struct Privileges {
    inheritable: u64,
    permitted: u64,
    effective: u64,
    bounding: u64,
    ambient: u64,
    no_new_privs: bool,
    umask: u32,
    /// The oldest first, each with its flags.
    filters: Vec<(Vec<raw::Instruction>, u64)>,
    /// If it is not ours already.
    label: Option<Label>,
}

/// Why the same privileges cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrivilegeError {
    /// Something of it cannot be read or set.
    #[error("cannot {doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
    /// It has seccomp filters, and the kernel does not show them to us.
    #[error(
        "its seccomp filters cannot be read{}: {source}",
        if *.filtered { ", because this process is filtered itself" } else { "" }
    )]
    Hidden { filtered: bool, source: io::Error },
    /// It has a filter that could make our own calls seem to succeed.
    #[error("it has a seccomp filter that does more than allow, refuse or kill")]
    Filter,
    /// Its label is not ours, and the kernel does not let us have it.
    #[error("its security label is '{0}', which cannot be taken on")]
    Label(String),
}

impl PrivilegeError {
    pub(super) fn io<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            doing,
            source: source.into(),
        }
    }
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// A field of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> io::Result<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .ok_or_else(invalid)
}

fn number(status: &str, name: &str, radix: u32) -> io::Result<u64> {
    u64::from_str_radix(field(status, name)?, radix).map_err(|_: ParseIntError| invalid())
}

/// Whether a process of this status is another user than root in a user namespace of this map.
fn is_ordinary(status: &str, map: &str) -> bool {
    let ids = field(status, "Uid").unwrap_or_default();
    let effective = ids.split_whitespace().nth(1);
    let mut lines = map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let root = lines.find(|fields| fields.len() == 3 && fields[0] == "0");
    match (effective, root) {
        (Some(effective), Some(root)) => effective != root[1],
        _ => false,
    }
}

/// Whether PID 1 of a process id namespace has this status: the last number it is known by is 1, and not the only one.
pub(super) fn is_init(status: &str) -> bool {
    let numbers = field(status, "NSpid").unwrap_or_default();
    numbers.split_whitespace().count() > 1 && numbers.split_whitespace().last() == Some("1")
}

impl Privileges {
    /// Reads those of the process `pid`, with its seccomp filters, for which it is stopped for a moment.
    pub(super) fn of(pid: i32) -> Result<Self, PrivilegeError> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(PrivilegeError::io("read the status of PID 1"))?;
        let read = |name, radix| number(&status, name, radix).map_err(PrivilegeError::io("read the status of PID 1"));
        let label = Label::to_take_on(pid)?;
        let filters = match read("Seccomp", 10)? {
            0 => Vec::new(),
            _ => filters_of(pid)?,
        };
        let (bounding, no_new_privs) = (read("CapBnd", 16)?, read("NoNewPrivs", 10)? != 0);
        let (mut permitted, mut effective) = (read("CapPrm", 16)?, read("CapEff", 16)?);
        // With `User=` PID 1 has none in effect, as it is not root; root of the machine, whom it can become by a program of
        // root's (set-user-ID), has what is in the bounding set. (systemd 262 leaves its own PID 1 all as permitted.)
        let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap_or_default();
        if effective == 0 && !no_new_privs && is_ordinary(&status, &map) {
            (permitted, effective) = (bounding, bounding);
        }
        Ok(Self {
            inheritable: read("CapInh", 16)?,
            permitted,
            effective,
            bounding,
            ambient: read("CapAmb", 16)?,
            no_new_privs,
            umask: u32::try_from(read("Umask", 8)?).unwrap_or(0o022),
            filters,
            label,
        })
    }

    /// Why those of the process `pid` cannot even be read by us, where that is plain from the start: whoever is filtered is
    /// shown no filters.
    pub(super) fn hidden(pid: u32) -> Option<PrivilegeError> {
        (is_filtered("self") && is_filtered(&pid.to_string())).then(|| PrivilegeError::Hidden {
            filtered: true,
            source: io::ErrorKind::PermissionDenied.into(),
        })
    }

    /// The umask, as a number.
    pub(super) fn umask(&self) -> u32 {
        self.umask
    }

    /// Opens what a label is taken on by. To be called before the join, by the process that calls [`Privileges::take_on`].
    pub(super) fn open_label(&mut self) -> Result<(), PrivilegeError> {
        self.label.as_mut().map_or(Ok(()), Label::open)
    }

    /// Takes them on, for good. To be called after the join, which gives all capabilities of the user namespace, and
    /// before the process is seen by the guest.
    pub(super) fn take_on(self) -> Result<(), PrivilegeError> {
        for capability in all_capabilities() {
            if !self.bounding & capability.bits() != 0 && capability_is_in_bounding_set(capability).unwrap_or(false) {
                remove_capability_from_bounding_set(capability)
                    .map_err(PrivilegeError::io("drop a capability from the bounding set"))?;
            }
        }
        clear_ambient_capability_set().map_err(PrivilegeError::io("clear the ambient capabilities"))?;
        let ours = capabilities(None)
            .map_err(PrivilegeError::io("read the capabilities"))?
            .permitted;
        // A caller that was itself given less stays with less.
        let of = |bits| CapabilitySet::from_bits_retain(bits) & ours;
        let sets = |more| {
            let sets = CapabilitySets {
                effective: of(self.effective) | more,
                permitted: of(self.permitted) | more,
                inheritable: of(self.inheritable),
            };
            set_capabilities(None, sets).map_err(PrivilegeError::io("take on the capabilities of PID 1"))
        };
        // no_new_privs first would let anybody install filters, but it would stay. CAP_SYS_ADMIN allows it, too; where PID 1
        // has not got that, it is given up after the filters.
        sets(CapabilitySet::SYS_ADMIN & ours)?;
        for (filter, flags) in &self.filters {
            raw::install_seccomp_filter(filter, *flags).map_err(PrivilegeError::io("install a seccomp filter"))?;
        }
        sets(CapabilitySet::empty())?;
        for capability in all_capabilities().filter(|capability| self.ambient & capability.bits() & ours.bits() != 0) {
            configure_capability_in_ambient_set(capability, true)
                .map_err(PrivilegeError::io("take on the ambient capabilities of PID 1"))?;
        }
        if self.no_new_privs {
            set_no_new_privs(true).map_err(PrivilegeError::io("set no_new_privs"))?;
        }
        // Last: a profile may forbid any of these. no_new_privs keeps nobody from it who has no profile yet.
        self.label.map_or(Ok(()), Label::take_on)
    }
}

/// Gives up all that a process can do but connect(2), clone(2) as fork(2) does it, and ending; for good.
pub(super) fn keep_only_connect() -> Result<(), PrivilegeError> {
    for capability in all_capabilities() {
        // Without CAP_SETPCAP it stays there, out of reach: no_new_privs below.
        let _ = remove_capability_from_bounding_set(capability);
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )
    .map_err(PrivilegeError::io("give up all capabilities"))?;
    set_no_new_privs(true).map_err(PrivilegeError::io("set no_new_privs"))?;
    raw::allow_connect_only().map_err(PrivilegeError::io("install a seccomp filter"))
}

/// Every capability that the kernel knows.
fn all_capabilities() -> impl Iterator<Item = CapabilitySet> {
    (0..64)
        .map(|number| CapabilitySet::from_bits_retain(1 << number))
        .take_while(|capability| capability_is_in_bounding_set(*capability).is_ok())
}

fn is_filtered(process: &str) -> bool {
    fs::read_to_string(format!("/proc/{process}/status"))
        .is_ok_and(|status| number(&status, "Seccomp", 10).is_ok_and(|mode| mode != 0))
}

/// Reads all seccomp filters of a process. Needs CAP_SYS_ADMIN on the host, and no filter of our own.
fn filters_of(pid: i32) -> Result<Vec<(Vec<raw::Instruction>, u64)>, PrivilegeError> {
    let hidden = |source: io::Error| PrivilegeError::Hidden {
        filtered: is_filtered("self"),
        source,
    };
    let traced = Traced::stop(Pid::from_raw(pid)).map_err(hidden)?;
    let mut filters = Vec::new();
    while let Some(filter) = raw::seccomp_filter(traced.0.as_raw(), filters.len()).map_err(hidden)? {
        if !filter.iter().copied().all(is_harmless) {
            return Err(PrivilegeError::Filter);
        }
        let flags = raw::seccomp_flags(traced.0.as_raw(), filters.len()).map_err(hidden)?;
        filters.push((filter, flags));
    }
    Ok(filters)
}

/// Whether an instruction does nothing but what a filter is for. The guest has written it, and we run under it before we are
/// its: a call that it makes "succeed" without doing it (an error of 0), or hands to a tracer, a handler or another process,
/// would be one that we rely on.
fn is_harmless(instruction: raw::Instruction) -> bool {
    const CLASS: u16 = 0x07;
    const RETURN: u16 = 0x06;
    const KILL_PROCESS: u32 = 0x8000_0000;
    const KILL_THREAD: u32 = 0;
    const ERROR: u32 = 0x0005_0000;
    const LOG: u32 = 0x7ffc_0000;
    const ALLOW: u32 = 0x7fff_0000;
    if instruction.code & CLASS != RETURN {
        return true;
    }
    // Anything but a constant (`BPF_K`) could become anything.
    let (action, data) = (instruction.k & 0xffff_0000, instruction.k & 0xffff);
    instruction.code == RETURN
        && match action {
            ERROR => (1..4096).contains(&data),
            KILL_PROCESS | KILL_THREAD | LOG | ALLOW => true,
            _ => false,
        }
}

/// A process that we trace and that is stopped; it goes on when this is dropped, or when we die.
struct Traced(Pid);

impl Traced {
    fn stop(pid: Pid) -> io::Result<Self> {
        let traced = Self::seize(pid)?;
        ptrace::interrupt(pid)?;
        let end = Instant::now() + PATIENCE;
        loop {
            match raw::traced_stop(pid.as_raw())? {
                Some(raw::Stop::Event) => return Ok(traced),
                // It was on its way to the process, and still is.
                Some(raw::Stop::Signal(number)) => raw::continue_traced(pid.as_raw(), number)?,
                None if Instant::now() > end => return Err(io::Error::other("it does not stop for a look")),
                None => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    /// A process has one tracer at a time: that of another command on its way in is gone in a moment.
    fn seize(pid: Pid) -> io::Result<Self> {
        let end = Instant::now() + PATIENCE;
        let mut seen_free = 0;
        loop {
            match ptrace::seize(pid, ptrace::Options::empty()) {
                Err(Errno::EPERM) => {}
                other => return Ok(other.map(|()| Self(pid))?),
            }
            // The tracer may have left between the call and the look; whoever may not trace at all sees none time and again.
            seen_free = if is_traced(pid)? { 0 } else { seen_free + 1 };
            if seen_free == LOOKS {
                return Err(Errno::EPERM.into());
            }
            if Instant::now() > end {
                return Err(io::Error::other("another process traces it"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn is_traced(pid: Pid) -> io::Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(number(&status, "TracerPid", 10)? != 0)
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_is_told_by_its_last_number() {
        assert!(is_init("Name:\tsystemd\nNSpid:\t4711\t1\n"));
        assert!(is_init("NSpid:\t4711\t33\t1\n"));
        assert!(!is_init("NSpid:\t1\n"), "the host's own");
        assert!(!is_init("NSpid:\t4711\t12\n"));
        assert!(!is_init("NSpid:\t4711\n"), "a supervisor");
        assert!(!is_init("Name:\tx\n"));
    }

    #[test]
    fn filters_that_could_fool_us_are_told() {
        let returns = |k| raw::Instruction {
            code: 0x06,
            jt: 0,
            jf: 0,
            k,
        };
        for k in [0x7fff_0000, 0x7ffc_0000, 0x8000_0000, 0, 0x0005_0001, 0x0005_0026] {
            assert!(is_harmless(returns(k)), "{k:#x}");
        }
        // An error of 0, too large an error, a trap, a tracer, a supervisor, nonsense.
        for k in [
            0x0005_0000,
            0x0005_1000,
            0x0003_0000,
            0x7ff0_0000,
            0x7fc0_0000,
            0x1234_0000,
        ] {
            assert!(!is_harmless(returns(k)), "{k:#x}");
        }
        let of_accumulator = raw::Instruction {
            code: 0x16,
            ..returns(0x7fff_0000)
        };
        assert!(!is_harmless(of_accumulator));
        let load = raw::Instruction {
            code: 0x20,
            ..returns(0x0005_0000)
        };
        assert!(is_harmless(load));
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let map = "         0  861798400      65536\n";
        let uid = |effective: u32| format!("Uid:\t861798400\t{effective}\t861798400\t861798400\n");
        assert!(is_ordinary(&uid(861_798_433), map) && !is_ordinary(&uid(861_798_400), map));
        assert!(!is_ordinary("", map) && !is_ordinary(&uid(5), ""));
        let status = "Seccomp_filters:\t3\nSeccomp:\t2\nCapBnd:\t00000000fdecafff\nUmask:\t0022\n";
        assert_eq!(number(status, "Seccomp", 10).unwrap(), 2);
        assert_eq!(number(status, "CapBnd", 16).unwrap(), 0xfdec_afff);
        assert_eq!(number(status, "Umask", 8).unwrap(), 0o022);
        assert!(number(status, "CapAmb", 16).is_err());
    }
}
