//! The one way into a running machine: a process of ours that becomes as weak as the guest's PID 1, and then acts.
//!
//! A helper (this program again, from a sealed memfd, so that `/proc/PID/exe` leads nowhere) joins all namespaces of the
//! leader, takes on its control group, capabilities, seccomp filters, limits and the rest, and only then makes the process
//! that the guest sees. Where the same privileges cannot be had it refuses ([`EnterError::Refused`]); then the guest's own
//! systemd can start the program, with the privileges that it has itself.
//!
//! What is only read (os-release, addresses) needs no such process: see [`super::guest`].

mod helper;
mod privileges;
mod protocol;
pub mod relay;
mod terminal;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;

pub use helper::helper_main;
pub use terminal::{RawTerminal, copy_size};

use self::protocol::{Order, Reply, Run, Task, as_file, receive, send};
use super::files::Root;
use super::guest::Leader;
use super::raw::enter as raw;
use crate::machine::text::printable;
use crate::machine::users::{User, UserError, find_user};

/// Where a program without a slash in its name is looked for, and `PATH` inside.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The largest passwd(5) or group(5) that is read, in bytes.
const ACCOUNTS_MAX: u64 = 4 << 20;

/// Why a program did not run inside a machine.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// It could not have been as weak as the machine's PID 1. Nothing was done.
    #[error("a process in the machine would have more privileges than its PID 1: {0}")]
    Refused(String),
    /// It failed on the way.
    #[error("{0}")]
    Failed(String),
    /// There is no such program in the machine.
    #[error("there is no program '{}' in the machine", printable(.0))]
    NotFound(String),
    /// There is, but the kernel does not execute it.
    #[error("cannot execute '{}' in the machine: {}", printable(.0), .1)]
    NotExecutable(String, io::Error),
    /// The user or group.
    #[error(transparent)]
    User(#[from] UserError),
    /// A system call on our side.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> EnterError {
    move |error| EnterError::Io {
        doing,
        source: error.into(),
    }
}

/// A program to run in a machine.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name or path, and its arguments.
    pub command: Vec<OsString>,
    /// Variables beside `PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL` and `container`; the last of a name counts.
    pub env: Vec<(OsString, OsString)>,
    /// As whom.
    pub user: User,
    /// Where; the user's home, or `/`, if `None`.
    pub directory: Option<PathBuf>,
    /// What it reads and writes.
    pub streams: Streams,
}

/// What a program reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// Three pipes.
    Pipes,
    /// A terminal of the guest's own.
    Terminal,
    /// Nothing, and it goes on when we end.
    Detached,
}

/// A program that runs in a machine, as a child of this process.
#[derive(Debug)]
pub struct Running {
    pidfd: AsyncFd<OwnedFd>,
    ends: Ends,
}

/// Our ends of a program's streams.
#[derive(Debug)]
pub enum Ends {
    /// Its standard input to write to, its outputs to read from.
    Pipes {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// The master of its terminal.
    Terminal(OwnedFd),
    /// None.
    Detached,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Status(u8),
    /// By this signal.
    Signal(u8),
}

impl Exit {
    /// As shells tell it: the status, or 128 and the signal's number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Status(status) => status,
            Self::Signal(number) => 128_u8.saturating_add(number),
        }
    }
}

/// Finds a user, `NAME` or `NAME:GROUP` or numbers, in the guest's own files.
pub fn user_of(leader: &Leader, user: &str) -> Result<User, EnterError> {
    let root = leader
        .root()
        .ok_or_else(|| EnterError::Failed("the machine has stopped".into()))?;
    let (user, group) = user
        .split_once(':')
        .map_or((user, None), |(user, group)| (user, Some(group)));
    Ok(find_user(
        user,
        group,
        &accounts(&root, "etc/passwd"),
        &accounts(&root, "etc/group"),
    )?)
}

/// A file of accounts; nothing if it is missing, endless or no file: then only numbers and root are known.
fn accounts(root: &Root, file: &str) -> String {
    let bytes = root.read(file, ACCOUNTS_MAX).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Starts a program in the machine whose leader and unit these are. To be called on the main thread: when the thread ends,
/// the program is killed.
pub async fn start(leader: &Leader, unit: &str, program: &Program) -> Result<Running, EnterError> {
    let (mut ours, mut theirs): (Vec<OwnedFd>, Vec<OwnedFd>) = (Vec::new(), Vec::new());
    match program.streams {
        Streams::Pipes => {
            for is_output in [false, true, true] {
                let (reader, writer) = relay::wide_pipe().map_err(failed("make a pipe"))?;
                let (our, their) = if is_output { (reader, writer) } else { (writer, reader) };
                ours.push(our);
                theirs.push(their);
            }
        }
        Streams::Detached => {
            let null = File::options().read(true).write(true).open("/dev/null");
            let null: OwnedFd = null.map_err(failed("open /dev/null"))?.into();
            for _ in 0..3 {
                theirs.push(null.try_clone().map_err(failed("open /dev/null"))?);
            }
        }
        Streams::Terminal => {}
    }
    let mut helper = Helper::start(leader, unit, Task::Run(run_order(program)), &theirs)?;
    drop(theirs);
    let (reply, mut fds) = helper
        .reply()
        .await?
        .ok_or_else(|| EnterError::Failed("the helper died".into()))?;
    let Reply::Started = reply else {
        return Err(explain(reply, program));
    };
    let terminal = (program.streams == Streams::Terminal).then(|| fds.pop()).flatten();
    let pidfd = fds
        .pop()
        .ok_or_else(|| EnterError::Failed("the helper sent nothing".into()))?;
    let running = Running {
        pidfd: raw::watch(pidfd).map_err(failed("watch the program"))?,
        ends: match (program.streams, terminal) {
            (Streams::Terminal, Some(master)) => Ends::Terminal(master),
            (Streams::Terminal, None) => return Err(EnterError::Failed("the helper sent no terminal".into())),
            (Streams::Detached, _) => Ends::Detached,
            (Streams::Pipes, _) => {
                let stderr = ours.pop();
                let stdout = ours.pop();
                match (ours.pop(), stdout, stderr) {
                    (Some(stdin), Some(stdout), Some(stderr)) => Ends::Pipes { stdin, stdout, stderr },
                    _ => return Err(EnterError::Failed("no pipes".into())),
                }
            }
        },
    };
    // The socket is closed by execve(2): then the program runs. A word instead is the reason why it does not.
    match helper.reply().await? {
        None => Ok(running),
        Some((reply, _)) => {
            running.wait().await?;
            Err(explain(reply, program))
        }
    }
}

fn explain(reply: Reply, program: &Program) -> EnterError {
    let name = || {
        program
            .command
            .first()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    match reply {
        Reply::Refused(reason) => EnterError::Refused(printable(&reason)),
        Reply::Failed(reason) => EnterError::Failed(printable(&reason)),
        Reply::NotFound => EnterError::NotFound(name()),
        Reply::NotExecutable(errno) => EnterError::NotExecutable(name(), io::Error::from_raw_os_error(errno)),
        Reply::Started | Reply::Connected => EnterError::Failed("the helper answered strangely".into()),
    }
}

fn run_order(program: &Program) -> Run {
    let user = &program.user;
    let mut env: Vec<(OsString, OsString)> = [
        ("PATH", PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("container", "systemd-nspawn"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    for (name, value) in &program.env {
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), value.clone()));
    }
    let path = env
        .iter()
        .find(|(name, _)| name == "PATH")
        .map(|(_, path)| path.clone().into_vec())
        .unwrap_or_default();
    let name = program.command.first().cloned().unwrap_or_default().into_vec();
    let candidates = if name.contains(&b'/') {
        vec![name]
    } else {
        path.split(|byte| *byte == b':')
            .map(|directory| [directory, b"/", name.as_slice()].concat())
            .collect()
    };
    let directories = match &program.directory {
        Some(directory) => vec![directory.clone().into_os_string().into_vec()],
        None => vec![user.home.clone().into_bytes(), b"/".to_vec()],
    };
    Run {
        candidates,
        args: program.command.iter().cloned().map(OsString::into_vec).collect(),
        env: env
            .into_iter()
            .map(|(name, value)| [name.into_vec(), b"=".to_vec(), value.into_vec()].concat())
            .collect(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
        directories,
        terminal: (program.streams == Streams::Terminal).then(|| terminal::size_of(io::stdin())),
        detached: program.streams == Streams::Detached,
    }
}

/// Connects to a socket inside the machine, by its path there, as the machine's root.
pub async fn connect(leader: &Leader, unit: &str, path: &str) -> Result<OwnedFd, EnterError> {
    let mut helper = Helper::start(leader, unit, Task::Connect(path.to_owned()), &[])?;
    match helper.reply().await? {
        Some((Reply::Connected, mut fds)) if fds.len() == 1 => Ok(fds.remove(0)),
        Some((Reply::Failed(reason) | Reply::Refused(reason), _)) => Err(EnterError::Failed(printable(&reason))),
        _ => Err(EnterError::Failed("the helper answered strangely".into())),
    }
}

impl Running {
    /// Our ends of its streams; none the second time.
    pub fn take_ends(&mut self) -> Ends {
        std::mem::replace(&mut self.ends, Ends::Detached)
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Result<Exit, EnterError> {
        let _ = self.pidfd.readable().await.map_err(failed("watch the program"))?;
        let status = loop {
            match waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                other => break other.map_err(failed("wait for the program"))?,
            }
        };
        let status = status.ok_or_else(|| EnterError::Failed("the program has no status".into()))?;
        let byte = |number: Option<i32>| number.and_then(|number| u8::try_from(number & 0xff).ok());
        Ok(match (byte(status.exit_status()), byte(status.terminating_signal())) {
            (Some(status), _) => Exit::Status(status),
            (None, Some(number)) => Exit::Signal(number),
            (None, None) => return Err(EnterError::Failed("the program has no status".into())),
        })
    }

    /// Sends it a signal, and to its process group: a shell's children are to hear it, too.
    pub fn signal(&self, signal: Signal) {
        // It is a session leader and our child, not yet waited for: its number is nobody else's.
        if let Some(pid) = pid_of(self.pidfd.get_ref().as_fd())
            && rustix::process::kill_process_group(pid, signal).is_ok()
        {
            return;
        }
        let _ = pidfd_send_signal(self.pidfd.get_ref(), signal);
    }
}

/// The number behind a pidfd.
fn pid_of(pidfd: BorrowedFd<'_>) -> Option<rustix::process::Pid> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim();
    rustix::process::Pid::from_raw(number.parse().ok()?)
}

/// The helper process, which is gone when this is dropped. What it has made stays: that is our child, not its.
#[derive(Debug)]
struct Helper {
    child: Child,
    control: AsyncFd<OwnedFd>,
}

impl Helper {
    fn start(leader: &Leader, unit: &str, task: Task, streams: &[OwnedFd]) -> Result<Self, EnterError> {
        let order = Order {
            leader: i32::try_from(leader.pid()).map_err(|_| EnterError::Failed("no leader".into()))?,
            unit: unit.to_owned(),
            task,
        };
        let order = as_file(&order).map_err(failed("write the order"))?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(failed("make a socket"))?;
        let mut fds = vec![order.as_fd(), leader.pidfd()];
        fds.extend(streams.iter().map(AsFd::as_fd));
        send(&ours, &(), &fds).map_err(failed("send the order"))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(failed("make a socket"))?;

        let program = sealed_copy_of_ourselves().map_err(failed("copy this program into memory"))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "no program of the system but ourselves, with a socket as input"
        )]
        let mut command = std::process::Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        let child = command
            .arg0(helper::NAME)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed("start the helper"))?;
        Ok(Self {
            child,
            control: raw::watch(ours).map_err(failed("watch the helper"))?,
        })
    }

    /// The next word of the helper; `None` when nobody on its side is left.
    async fn reply(&mut self) -> Result<Option<(Reply, Vec<OwnedFd>)>, EnterError> {
        loop {
            let mut ready = self.control.readable().await.map_err(failed("listen to the helper"))?;
            match ready.try_io(|control| receive(control.get_ref())) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Ok(reply) => return reply.map_err(failed("understand the helper")),
                Err(_would_block) => {}
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This program in a memfd that cannot be changed any more: whoever gets hold of `/proc/PID/exe` inside has a copy.
fn sealed_copy_of_ourselves() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag; later ones may want it, see sysctl vm.memfd_noexec.
    let copy = memfd_create("machinist", flags | MemfdFlags::EXEC).or_else(|_| memfd_create("machinist", flags))?;
    let ourselves = File::open("/proc/self/exe")?;
    let mut left = usize::try_from(ourselves.metadata()?.len()).unwrap_or(usize::MAX);
    while left > 0 {
        match rustix::fs::sendfile(&copy, &ourselves, None, left)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left -= count,
        }
    }
    protocol::seal(&copy)?;
    Ok(copy)
}

/// Whether something can be read; of a pidfd: whether its process has ended.
fn is_readable(fd: impl AsFd) -> bool {
    has_event(fd, PollFlags::IN)
}

/// Whether the other side of a socket is closed.
fn is_hung_up(fd: impl AsFd) -> bool {
    has_event(fd, PollFlags::HUP)
}

fn has_event(fd: impl AsFd, event: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, event)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1..)) && fds[0].revents().intersects(event)
}
