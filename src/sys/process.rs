//! The one place that starts child programs.
//!
//! Programs get an argument vector, never a shell string; an environment of their own, never the caller's; `/dev/null` as
//! input unless bytes are given; a process group of their own, so that Ctrl-C on a terminal reaches only us and we decide.
//! Everything here blocks: asynchronous callers use `spawn_blocking`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::machine::Cancel;

/// Where programs are looked for, and what they get as `PATH`: the caller's own `PATH` is not trusted.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How many of the last lines of output an error carries.
const TAIL_LINES: usize = 12;
/// The longest line that an error carries, in characters; the rest is cut.
const TAIL_WIDTH: usize = 300;
/// Captured output beyond this many bytes is thrown away.
const CAPTURE_MAX: usize = 4 << 20;
/// How often a running child's caller is asked whether it was cancelled.
const POLL: Duration = Duration::from_millis(50);
/// How long a child may take to end after SIGTERM before SIGKILL follows.
const GRACE: Duration = Duration::from_secs(3);

/// The Debian package of each program that this crate may run.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("debootstrap", "debootstrap"),
    ("gpgv", "gpgv"),
    ("journalctl", "systemd"),
    ("mmdebstrap", "mmdebstrap"),
    ("nft", "nftables"),
    ("pkttyagent", "polkitd"),
    ("qemu-img", "qemu-utils"),
    ("setpriv", "util-linux"),
    ("sqv", "sqv"),
    ("ssh", "openssh-client"),
    ("systemd-analyze", "systemd"),
    ("systemd-creds", "systemd"),
    ("systemd-nspawn", "systemd-container"),
    ("unshare", "util-linux"),
];

/// A child program about to be run.
#[derive(Clone, Debug)]
pub struct Program {
    name: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    dir: Option<PathBuf>,
    log: Option<PathBuf>,
    contained: bool,
}

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, at most [`CAPTURE_MAX`] bytes; empty if it went to a log.
    pub stdout: Vec<u8>,
    /// Its standard error, likewise.
    pub stderr: Vec<u8>,
    /// The last lines of the log, or of standard error (standard output if that is empty), safe to print.
    pub tail: Vec<String>,
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It is not installed.
    #[error("program '{program}' is not installed{}", .package.map(|p| format!(" (Debian package '{p}')")).unwrap_or_default())]
    NotFound {
        /// Its name.
        program: String,
        /// The Debian package that has it, where known.
        package: Option<&'static str>,
    },
    /// It could not be started, or its log or pipes could not be used.
    #[error("cannot run '{program}': {action}")]
    Start {
        /// Its name.
        program: String,
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ran, and failed.
    #[error("'{program}' {}", describe(*.status))]
    Failed {
        /// Its name.
        program: String,
        /// Exit code or signal.
        status: ExitStatus,
        /// The last lines of what it printed.
        #[source]
        tail: Option<Tail>,
        /// Where the whole of its output is kept.
        log: Option<PathBuf>,
    },
    /// The caller gave up; the child and its children are gone.
    #[error(transparent)]
    Cancelled(#[from] crate::machine::Cancelled),
}

/// The last lines of a program's output, as the cause of an error; control characters are escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail(pub Vec<String>);

impl std::fmt::Display for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("its last output:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl std::error::Error for Tail {}

impl ProcessError {
    /// Commands that mend it, or that tell more.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::NotFound {
                package: Some(package), ..
            } => vec![format!("install it with `apt install {package}`")],
            Self::Failed { log: Some(log), .. } => vec![format!("its whole output is kept in '{}'", log.display())],
            _ => Vec::new(),
        }
    }
}

impl Program {
    /// A program found in the system's directories, or at the given path if `name` has a slash.
    pub fn new(name: impl Into<OsString>) -> Self {
        Self {
            name: name.into(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: Vec::new(),
            dir: None,
            log: None,
            contained: false,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable in the otherwise minimal environment (`PATH`, `HOME`, `LC_ALL`).
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Hands on a variable of our own environment, if it is set.
    #[must_use]
    pub fn inherit_env(self, name: &str) -> Self {
        match std::env::var_os(name) {
            Some(value) => self.env(name, value),
            None => self,
        }
    }

    /// What the program reads from its standard input. Secrets go this way, never as arguments.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// The directory it runs in; `/` otherwise, so that a child never keeps the caller's directory busy.
    #[must_use]
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Both outputs go, in their order, to the end of this file (made with mode 0640) instead of being captured.
    #[must_use]
    pub fn log_to(mut self, file: impl Into<PathBuf>) -> Self {
        self.log = Some(file.into());
        self
    }

    /// Runs it in a mount and a process namespace of its own which the kernel takes down, mounts and daemons included,
    /// when the program ends, is cancelled, or we are killed with SIGKILL. Needs root.
    #[must_use]
    pub fn contained(mut self) -> Self {
        self.contained = true;
        self
    }

    /// The command as a line for `--dry-run`, quoted for a shell.
    #[must_use]
    pub fn shown(&self) -> String {
        let words = std::iter::once(&self.name).chain(&self.args);
        let plain = |c: char| c.is_alphanumeric() || "-_=./:,+@%…".contains(c);
        let shown = words.map(|word| match word.to_string_lossy() {
            // Not quoting '=' keeps "--option=value" readable; it only matters in a command's first word.
            word if !word.is_empty() && word.chars().all(plain) => word.into_owned(),
            word => shell_words::quote(&word).into_owned(),
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    /// Runs it to its end; a status other than 0 is an error.
    pub fn run(&self, cancel: &Cancel) -> Result<Output, ProcessError> {
        self.run_watched(cancel, &mut |_| {})
    }

    /// As [`Program::run`], and hands each line that goes to the log to `watch`, without its newline, as it comes.
    pub fn run_watched(&self, cancel: &Cancel, watch: &mut dyn FnMut(&str)) -> Result<Output, ProcessError> {
        let output = self.run_any(cancel, watch)?;
        if output.status.success() {
            return Ok(output);
        }
        Err(ProcessError::Failed {
            program: self.shown_name(),
            status: output.status,
            tail: (!output.tail.is_empty()).then_some(Tail(output.tail)),
            log: self.log.clone(),
        })
    }

    /// Runs it to its end, whatever its status. Cancelling kills all of it.
    pub fn run_any(&self, cancel: &Cancel, watch: &mut dyn FnMut(&str)) -> Result<Output, ProcessError> {
        cancel.check()?;
        let mut log = self.open_log()?;
        let (sender, chunks) = channel();
        let child = self.start(&sender)?;
        drop(sender);
        let mut output = Collected::default();
        let status = child.wait(cancel, &chunks, &mut |chunk| output.take(chunk, log.as_mut(), watch))?;
        output.flush_line(watch);
        if let Some(error) = output.log_error {
            return Err(self.start_error("writing its log", error));
        }
        Ok(Output {
            status: status.map_err(|error| self.start_error("waiting for it", error))?,
            tail: output.tail(log.is_some()),
            stdout: output.stdout,
            stderr: output.stderr,
        })
    }

    fn shown_name(&self) -> String {
        let name = Path::new(&self.name).file_name().unwrap_or(&self.name);
        name.to_string_lossy().into_owned()
    }

    fn start_error(&self, action: &str, source: io::Error) -> ProcessError {
        ProcessError::Start {
            program: self.shown_name(),
            action: action.to_owned(),
            source,
        }
    }

    fn find(name: &OsStr) -> Result<PathBuf, ProcessError> {
        find_program(name).ok_or_else(|| {
            let program = Path::new(name)
                .file_name()
                .unwrap_or(name)
                .to_string_lossy()
                .into_owned();
            let package = PACKAGES.iter().find(|(known, _)| *known == program).map(|(_, p)| *p);
            ProcessError::NotFound { program, package }
        })
    }

    fn open_log(&self) -> Result<Option<File>, ProcessError> {
        let Some(path) = &self.log else { return Ok(None) };
        File::options()
            .create(true)
            .append(true)
            .mode(0o640)
            .open(path)
            .map(Some)
            .map_err(|error| self.start_error(&format!("opening its log '{}'", path.display()), error))
    }

    /// The words that are really executed: the program itself, or util-linux around it.
    fn command_line(&self) -> Result<Vec<OsString>, ProcessError> {
        let program = Self::find(&self.name)?;
        let mut words: Vec<OsString> = Vec::new();
        if self.contained {
            // setpriv becomes unshare, which dies with our thread; its child, PID 1 of the namespace, dies with unshare;
            // and with PID 1 the kernel kills everything else in there, and with the last process go the mounts.
            words.push(Self::find(OsStr::new("setpriv"))?.into());
            words.extend(["--pdeathsig", "KILL", "--"].map(OsString::from));
            words.push(Self::find(OsStr::new("unshare"))?.into());
            words.extend(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"].map(OsString::from));
        }
        words.push(program.into());
        words.extend(self.args.iter().cloned());
        Ok(words)
    }

    fn start(&self, sender: &Sender<Chunk>) -> Result<Child, ProcessError> {
        let mut words = self.command_line()?.into_iter();
        let program = words.next().unwrap_or_default();
        let pipe = || io::pipe().map_err(|error| self.start_error("making a pipe", error));
        let (out_reader, out_writer) = pipe()?;
        #[expect(clippy::disallowed_methods, reason = "this is sys::process")]
        let mut command = duct::cmd(program, words)
            .full_env(self.environment())
            .dir(self.dir.as_deref().unwrap_or(Path::new("/")))
            .before_spawn(|command| {
                command.process_group(0);
                Ok(())
            })
            .unchecked();
        command = if self.stdin.is_empty() {
            command.stdin_null()
        } else {
            command.stdin_bytes(self.stdin.clone())
        };
        let err_reader = if self.log.is_some() {
            command = command.stderr_to_stdout().stdout_file(out_writer);
            None
        } else {
            let (reader, writer) = pipe()?;
            command = command.stdout_file(out_writer).stderr_file(writer);
            Some(reader)
        };
        let handle = command
            .start()
            .map_err(|error| self.start_error("starting it", error))?;
        // Our copies of the pipes' writing ends go with the expression; only the child's remain.
        drop(command);
        forward(out_reader, Stream::Out, sender.clone());
        if let Some(reader) = err_reader {
            forward(reader, Stream::Err, sender.clone());
        }
        Ok(Child {
            handle,
            contained: self.contained,
            ended: false,
        })
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut all: Vec<(OsString, OsString)> = [("PATH", PATH), ("HOME", "/root"), ("LC_ALL", "C.UTF-8")]
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        all.extend(self.env.iter().cloned());
        all
    }
}

/// Starts a program that goes on beside us; what it writes to its standard output comes through the pipe.
///
/// The caller ends it: see [`duct::Handle::kill`].
pub(crate) fn start_beside(name: &str, args: &[&str]) -> Result<(duct::Handle, PipeReader), ProcessError> {
    let program = Program::new(name);
    let path = Program::find(OsStr::new(name))?;
    let (reader, writer) = io::pipe().map_err(|error| program.start_error("making a pipe", error))?;
    #[expect(clippy::disallowed_methods, reason = "this is sys::process")]
    let command = duct::cmd(path, args)
        .full_env(program.environment())
        .stdin_null()
        .stdout_file(writer)
        .unchecked();
    let handle = command
        .start()
        .map_err(|error| program.start_error("starting it", error))?;
    Ok((handle, reader))
}

/// Whether a program is installed where [`Program`] would find it.
#[must_use]
pub fn program_exists(name: &str) -> bool {
    find_program(OsStr::new(name)).is_some()
}

/// An error that names the program and its package unless it is installed.
pub fn require_program(name: &str) -> Result<(), ProcessError> {
    Program::find(OsStr::new(name)).map(drop)
}

/// The path of an installed program; a name with a slash stands for itself.
#[must_use]
pub fn find_program(name: &OsStr) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(executable);
    }
    PATH.split(':').map(|dir| Path::new(dir).join(name)).find(executable)
}

/// How a program ended, in words: "failed with exit status 2", "was killed by signal 9".
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "succeeded".to_owned(),
        (Some(code), _) => format!("failed with exit status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {number}"),
        },
        (None, None) => "ended strangely".to_owned(),
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

type Chunk = (Stream, Vec<u8>);

fn forward(mut pipe: PipeReader, stream: Stream, sender: Sender<Chunk>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            if sender.send((stream, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    });
}

struct Child {
    handle: duct::Handle,
    contained: bool,
    ended: bool,
}

impl Child {
    /// Feeds what the child prints to `take` until it has ended and its pipes are closed.
    fn wait(
        mut self,
        cancel: &Cancel,
        chunks: &Receiver<Chunk>,
        take: &mut dyn FnMut(Chunk),
    ) -> Result<io::Result<ExitStatus>, ProcessError> {
        let mut closed = false;
        let mut until = None;
        loop {
            if cancel.is_cancelled() {
                self.end();
                return Err(crate::machine::Cancelled.into());
            }
            if closed {
                std::thread::sleep(POLL.min(Duration::from_millis(5)));
            } else {
                match chunks.recv_timeout(POLL) {
                    Ok(chunk) => {
                        take(chunk);
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => closed = true,
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
            let status = match self.handle.try_wait() {
                Ok(None) => continue,
                Ok(Some(output)) => Ok(output.status),
                Err(error) => Err(error),
            };
            // A daemon that the child left behind may hold the pipes for ever: a second is enough for what is in them.
            let until = *until.get_or_insert_with(|| Instant::now() + Duration::from_secs(1));
            if closed || Instant::now() >= until {
                self.ended = true;
                return Ok(status);
            }
        }
    }

    /// Kills the child with everything it started, and waits until it is gone.
    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        for pid in self.handle.pids() {
            let Ok(raw) = i32::try_from(pid) else { continue };
            // unshare waits for PID 1 of the namespace, which the kernel reaps last: when unshare has ended by itself, nothing
            // is left that could still write into the tree. Killing unshare first would lose that.
            let inner = if self.contained { children_of(raw) } else { Vec::new() };
            if inner.is_empty() {
                let _ = killpg(Pid::from_raw(raw), Signal::SIGTERM);
            }
            for pid in inner {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if matches!(self.handle.wait_timeout(GRACE), Ok(None)) {
                let _ = killpg(Pid::from_raw(raw), Signal::SIGKILL);
            } else if !self.contained {
                // The leader went politely; whoever of its group did not, goes now.
                let _ = killpg(Pid::from_raw(raw), Signal::SIGKILL);
            }
        }
        let _ = self.handle.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// The direct children of a process.
fn children_of(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

#[derive(Default)]
struct Collected {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    line: Vec<u8>,
    last: VecDeque<String>,
    log_error: Option<io::Error>,
}

impl Collected {
    fn take(&mut self, (stream, bytes): Chunk, log: Option<&mut File>, watch: &mut dyn FnMut(&str)) {
        let Some(log) = log else {
            let store = match stream {
                Stream::Out => &mut self.stdout,
                Stream::Err => &mut self.stderr,
            };
            let room = CAPTURE_MAX.saturating_sub(store.len());
            store.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return;
        };
        if let Err(error) = log.write_all(&bytes) {
            // A log that cannot be written must not stop a child that can go on; it is an error at the end.
            self.log_error.get_or_insert(error);
        }
        for byte in bytes {
            match byte {
                b'\n' => self.flush_line(watch),
                _ if self.line.len() < 4096 => self.line.push(byte),
                _ => {}
            }
        }
    }

    fn flush_line(&mut self, watch: &mut dyn FnMut(&str)) {
        if self.line.is_empty() {
            return;
        }
        // What a terminal would show of a line redrawn with carriage returns is its last version.
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        watch(line);
        if !line.trim().is_empty() {
            self.last.push_back(printable(line));
            if self.last.len() > TAIL_LINES {
                self.last.pop_front();
            }
        }
    }

    fn tail(&self, logged: bool) -> Vec<String> {
        if logged {
            return self.last.iter().cloned().collect();
        }
        let whole = if self.stderr.is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        let text = String::from_utf8_lossy(whole);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let first = lines.len().saturating_sub(TAIL_LINES);
        lines[first..].iter().map(|line| printable(line)).collect()
    }
}

/// One line, cut to [`TAIL_WIDTH`], with control characters escaped: a program's words may carry terminal sequences.
pub(crate) fn printable(line: &str) -> String {
    let mut shown = String::new();
    for character in line.trim_end().chars().take(TAIL_WIDTH) {
        match character {
            '\t' => shown.push(' '),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Program {
        Program::new("sh").args(["-c", script])
    }

    #[test]
    fn captures_both_streams_and_input() {
        let program = sh("cat; echo err >&2; echo $FOO $PATH").env("FOO", "bar").stdin("in\n");
        let output = program.run(&Cancel::default()).unwrap();
        assert_eq!(output.stdout, format!("in\nbar {PATH}\n").as_bytes());
        assert_eq!(output.stderr, b"err\n");
    }

    #[test]
    fn environment_is_not_inherited() {
        let output = Program::new("env").run(&Cancel::default()).unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 3);
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = Program::new("no-such-program").run(&Cancel::default()).unwrap_err();
        assert_eq!(error.to_string(), "program 'no-such-program' is not installed");
        assert!(error.hints().is_empty());
        let error = Program::new("/nowhere/debootstrap")
            .run(&Cancel::default())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "program 'debootstrap' is not installed (Debian package 'debootstrap')"
        );
        assert_eq!(error.hints(), ["install it with `apt install debootstrap`"]);
    }

    #[test]
    fn failure_carries_status_and_escaped_tail() {
        let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do echo line $i >&2; done; printf '\\033[31mred\\n' >&2; exit 7";
        let error = sh(script).run(&Cancel::default()).unwrap_err();
        assert_eq!(error.to_string(), "'sh' failed with exit status 7");
        let ProcessError::Failed {
            tail: Some(Tail(tail)), ..
        } = error
        else {
            panic!("{error:?}")
        };
        assert_eq!(tail.len(), TAIL_LINES);
        assert_eq!(tail[0], "line 4");
        assert_eq!(tail[11], "\\u{1b}[31mred");
        let error = sh("kill -9 $$").run(&Cancel::default()).unwrap_err();
        assert_eq!(error.to_string(), "'sh' was killed by SIGKILL");
    }

    #[test]
    fn a_log_gets_both_streams_in_order_and_lines_are_watched() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut seen = Vec::new();
        let program = sh("echo one; echo two >&2; printf three; exit 1").log_to(&log);
        let error = program
            .run_watched(&Cancel::default(), &mut |line| seen.push(line.to_owned()))
            .unwrap_err();
        assert_eq!(seen, ["one", "two", "three"]);
        assert_eq!(std::fs::read(&log).unwrap(), b"one\ntwo\nthree");
        assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(
            error.hints(),
            [format!("its whole output is kept in '{}'", log.display())]
        );
    }

    #[test]
    fn cancelling_kills_the_whole_group() {
        let cancel = Cancel::default();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!(
            "trap '' TERM; sleep 1000 & echo $! > {}; wait; wait; sleep 1000",
            file.display()
        );
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let handle = scope.spawn(|| sh(&script).run(&cancel));
            while std::fs::read_to_string(&file).unwrap_or_default().is_empty() {
                std::thread::sleep(Duration::from_millis(10));
            }
            cancel.cancel();
            assert!(matches!(handle.join().unwrap(), Err(ProcessError::Cancelled(_))));
        });
        assert!(begun.elapsed() < Duration::from_secs(6));
        let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(kill(Pid::from_raw(pid), None).is_err() || is_zombie(pid));
    }

    fn is_zombie(pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| text.contains(") Z "))
    }

    #[test]
    fn a_daemon_holding_the_pipe_does_not_hold_us() {
        let begun = Instant::now();
        let output = sh("sleep 30 & echo done").run(&Cancel::default()).unwrap();
        assert_eq!(output.stdout, b"done\n");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
