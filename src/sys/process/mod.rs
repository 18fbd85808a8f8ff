//! The one place that starts child programs.
//!
//! Programs get an argument vector, never a shell string; an environment of their own, never the caller's; `/dev/null` as
//! input unless bytes are given; a process group of their own, so that Ctrl-C on a terminal reaches only us and we decide.
//! Everything here blocks: asynchronous callers use `spawn_blocking`.

mod child;
mod error;
mod find;
mod output;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{Sender, channel};

pub use error::{ProcessError, Tail, describe};
pub use find::{find_program, program_exists, require_program};
pub(crate) use output::printable;

use self::child::{Child, Chunk, Stream, forward};
use self::find::{PATH, find};
use self::output::Collected;
use crate::machine::Cancel;

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
        let program = find(&self.name)?;
        let mut words: Vec<OsString> = Vec::new();
        if self.contained {
            // setpriv becomes unshare, which dies with our thread; its child, PID 1 of the namespace, dies with unshare;
            // and with PID 1 the kernel kills everything else in there, and with the last process go the mounts.
            words.push(find(OsStr::new("setpriv"))?.into());
            words.extend(["--pdeathsig", "KILL", "--"].map(OsString::from));
            words.push(find(OsStr::new("unshare"))?.into());
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
    let path = find(OsStr::new(name))?;
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

/// Runs a program that a person works with, such as an editor: on our own terminal and in our own environment, until it
/// ends. Blocks.
pub fn run_on_terminal(name: &str, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Result<(), ProcessError> {
    let program = name.to_owned();
    #[expect(clippy::disallowed_methods, reason = "this is sys::process")]
    let status = std::process::Command::new(name).args(args).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(ProcessError::Failed {
            program,
            status,
            tail: None,
            log: None,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ProcessError::NotFound { program, package: None }),
        Err(source) => Err(ProcessError::Start {
            program,
            action: "starting it".to_owned(),
            source,
        }),
    }
}
