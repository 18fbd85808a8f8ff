//! The one way into a running machine: a process of ours that becomes as weak as the guest's PID 1, and then acts.
//!
//! A helper ([`super::helper`], from a sealed memfd, so that `/proc/PID/exe` leads nowhere) joins all namespaces of the
//! leader, takes on its control group, capabilities, seccomp filters, label, limits and the rest, and only then makes the
//! process that the guest sees ([`joined`]). Where the same privileges cannot be had, because this process is itself
//! filtered or kept from the label, the guest's own systemd starts the program, with the privileges that it has itself
//! ([`transient`]).
//! Where there is none, nothing is run ([`EnterError::Refused`]).
//!
//! What is only read (os-release, addresses) needs no such process: see [`super::guest`].

mod caller;
mod copy;
mod events;
pub mod health;
mod helper;
mod joined;
mod label;
mod private;
mod privileges;
mod properties;
mod protocol;
pub mod relay;
mod terminal;
mod transient;
pub mod unit;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use rustix::fs::{Gid, Uid};
use rustix::process::Signal;

pub(crate) use super::raw::enter::keep_children;
pub(super) use helper::{JOB, helper_main};
pub use terminal::{Keyboard, RawTerminal, copy_size};

use self::joined::Joined;
use self::privileges::Privileges;
use self::protocol::Run;
use self::transient::Service;
use super::files::Root;
use super::guest::Leader;
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

/// A program that runs in a machine.
#[derive(Debug)]
pub struct Running {
    process: Process,
    ends: Ends,
}

/// Whose child the program is.
#[derive(Debug)]
enum Process {
    /// Ours.
    Joined(Joined),
    /// The machine's systemd's.
    Service(Box<Service>),
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
    let run = run_order(program);
    let (ours, theirs) = match program.streams {
        Streams::Pipes => {
            let (their_stdin, stdin) = pipe()?;
            let (stdout, their_stdout) = pipe()?;
            let (stderr, their_stderr) = pipe()?;
            let theirs = vec![their_stdin, their_stdout, their_stderr];
            give(&theirs, leader, &program.user);
            (Ends::Pipes { stdin, stdout, stderr }, theirs)
        }
        Streams::Detached | Streams::Terminal => (Ends::Detached, Vec::new()),
    };
    let joined = match Privileges::hidden(leader.pid()) {
        Some(reason) => Err(EnterError::Refused(reason.to_string())),
        None => joined::start(leader, unit, &run, &theirs).await,
    };
    let (process, master) = match joined {
        Ok((joined, master)) => (Process::Joined(joined), master),
        Err(EnterError::Refused(why)) => {
            let started = transient::start(leader, unit, &run, &theirs).await;
            let (service, master) = started.map_err(|error| match error {
                EnterError::Refused(too) => EnterError::Refused(format!("{why}; nor can its systemd start it: {too}")),
                other => other,
            })?;
            (Process::Service(Box::new(service)), master)
        }
        Err(error) => return Err(error),
    };
    let ends = match (program.streams, master) {
        (Streams::Terminal, Some(master)) => Ends::Terminal(master),
        (Streams::Terminal, None) => return Err(EnterError::Failed("there is no terminal".into())),
        _ => ours,
    };
    Ok(Running { process, ends })
}

/// Starts a program in a machine that lives as long as `life` is open anywhere: a process of ours keeps it open, in the
/// machine's control group and out of its sight, until the program ends. The program has nothing to read or write. To be
/// called on the main thread.
pub async fn start_and_leave(leader: &Leader, unit: &str, program: &Program, life: OwnedFd) -> Result<(), EnterError> {
    let run = Run {
        detached: true,
        ..run_order(program)
    };
    if let Some(reason) = Privileges::hidden(leader.pid()) {
        return Err(EnterError::Refused(reason.to_string()));
    }
    joined::start_and_leave(leader, unit, &run, life).await
}

/// Makes the program's user the owner of its pipes, who may then open them again as /dev/stderr and the like.
fn give(pipes: &[OwnedFd], leader: &Leader, user: &User) {
    if let Some((uid, gid)) = leader.ids_on_host(user.uid, user.gid) {
        for pipe in pipes {
            // Whoever runs us may not be allowed to; then only that does not work.
            let _ = rustix::fs::fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        }
    }
}

/// A pipe: (reader, writer).
fn pipe() -> Result<(OwnedFd, OwnedFd), EnterError> {
    relay::wide_pipe().map_err(failed("make a pipe"))
}

impl Running {
    /// Our ends of its streams; none the second time.
    pub fn take_ends(&mut self) -> Ends {
        std::mem::replace(&mut self.ends, Ends::Detached)
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Result<Exit, EnterError> {
        match &self.process {
            Process::Joined(joined) => joined.wait().await,
            Process::Service(service) => service.wait().await,
        }
    }

    /// Sends a signal to it and to what it started in its process group: a shell's children are to hear it, too.
    pub async fn signal(&self, signal: Signal) {
        match &self.process {
            Process::Joined(joined) => joined.signal(signal),
            Process::Service(service) => service.signal(signal).await,
        }
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
