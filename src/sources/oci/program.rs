//! What an image starts, as settings of systemd-nspawn.
//!
//! An image that has an init boots like any other. What has none, as most images of applications, runs its program as
//! process 2, behind systemd-nspawn's own PID 1, which passes the request to stop on as SIGTERM, whether the program has a
//! handler for it or not. It sends SIGHUP right behind that, which would end a program that is about to end in good order: a
//! shell has it ignored. Where the image has no shell, or wants another signal, the program is PID 1 itself, as Docker has it.

use std::fmt::Write as _;

use super::error::OciError;
use super::manifest::{Config, Execution};
use super::user;
use crate::machine::signal::Signal;
use crate::machine::text::printable;
use crate::nspawn::assignment::{Assignment, parse_assignment};
use crate::sources::SourceError;
use crate::sources::guest::{Init, detect_init};
use crate::sys::files::Root;
use crate::sys::processor::Program as Head;

/// What the script is called that starts a program whose words no line of settings can say.
const SCRIPT: &str = "usr/lib/machinist/start";

/// What systemd-nspawn's PID 1 takes for a request to power off.
pub(crate) const POWER_OFF: &str = "SIGRTMIN+4";

/// What starts a program that SIGHUP does not end.
pub(crate) const SHIELD: [&str; 4] = ["/bin/sh", "-c", "trap '' HUP; exec \"$@\"", "sh"];

/// The most variables that are set.
const MAX_VARIABLES: usize = 1000;

/// The most ports that are told of.
const MAX_PORTS: usize = 32;

/// What an image starts, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    image: String,
    words: Vec<String>,
    environment: Vec<String>,
    user: String,
    directory: String,
    ports: Vec<String>,
    stop_signal: Option<String>,
}

/// What is to run in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// The init in it.
    Init,
    /// The image's own program.
    Program,
    /// Another one, which its settings name.
    Other,
    /// A command, in a machine that is up without anything of its own.
    Command,
}

/// What follows from an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Settings for its .nspawn file.
    pub settings: Vec<Assignment>,
    /// Lines for the head of that file.
    pub comments: Vec<String>,
    /// What is not as the image wants it, in the user's words.
    pub notes: Vec<String>,
}

impl Settled {
    /// Adds a setting, or tells that it is left out.
    fn set(&mut self, key: &str, value: &str) {
        match parse_assignment(&format!("Exec.{key}={value}")) {
            Ok(assignment) => self.settings.push(assignment),
            Err(error) => self.notes.push(format!(
                "what the image says is left out: {}",
                printable(&error.to_string())
            )),
        }
    }
}

impl Program {
    pub(super) fn new(image: &str, config: Config) -> Self {
        let Execution {
            user,
            env,
            entrypoint,
            cmd,
            working_dir,
            stop_signal,
            exposed_ports,
        } = config.execution.unwrap_or_default();
        let mut environment = env.unwrap_or_default();
        // Each is an edit of the whole file.
        environment.truncate(MAX_VARIABLES);
        let mut words = entrypoint.unwrap_or_default();
        words.extend(cmd.unwrap_or_default());
        Self {
            image: image.to_owned(),
            words,
            environment,
            user: user.unwrap_or_default(),
            directory: working_dir.unwrap_or_default(),
            ports: exposed_ports
                .unwrap_or_default()
                .into_keys()
                .filter(|port| is_port(port))
                .take(MAX_PORTS)
                .collect(),
            stop_signal,
        }
    }

    /// What runs in a tree of this image: its init, if it has one that is meant to.
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn runs(&self, root: &Root) -> Result<Runs, SourceError> {
        Ok(match detect_init(root)? {
            Init::None => Runs::Program,
            // One of the many names of busybox, which is there whatever the image is for.
            Init::Busybox if !self.is_shell() && !self.is_init(root) => Runs::Program,
            _ => Runs::Init,
        })
    }

    /// Whether it starts nothing but a shell for who sits there, or nothing at all.
    fn is_shell(&self) -> bool {
        let name = |word: &String| word.rsplit('/').next().unwrap_or_default().to_owned();
        match self.words.as_slice() {
            [] => true,
            [only] => ["sh", "ash", "bash", "dash", "zsh"].contains(&name(only).as_str()),
            _ => false,
        }
    }

    fn is_init(&self, root: &Root) -> bool {
        let init = root.resolve("sbin/init").ok();
        let first = self.words.first().filter(|word| word.contains("init"));
        init.is_some() && first.is_some_and(|word| root.resolve(word).ok() == init)
    }

    /// What the settings are to be in a tree of this image, which is prepared for them.
    ///
    /// # Errors
    /// [`OciError::NoProgram`] and [`OciError::Program`] if there is nothing to start, or it cannot be; those of files.
    pub fn settle(&self, root: &Root, runs: Runs) -> Result<Settled, SourceError> {
        let mut settled = Settled::default();
        if !self.ports.is_empty() {
            settled.comments.push(format!(
                "The image says that its program listens at {}: see Port= in [Network].",
                self.ports.join(", ")
            ));
        }
        if runs == Runs::Init {
            return Ok(settled);
        }
        if self.environment.len() == MAX_VARIABLES {
            let note = format!("the image sets very many variables: it gets the first {MAX_VARIABLES}");
            settled.notes.push(note);
        }
        let variables = self.variables(&mut settled.notes);
        let mut lost = Vec::new();
        for variable in &variables {
            match word(variable) {
                Some(word) => settled.set("Environment", &word),
                None => lost.push(variable.as_str()),
            }
        }
        if runs == Runs::Command {
            lost.drain(..)
                .for_each(|variable| settled.notes.push(is_left_out(variable)));
        } else {
            self.start(root, runs, &lost, &mut settled)?;
        }
        if let Some(user) = user::settle(root, &self.user, runs == Runs::Command, &mut settled.notes)? {
            settled.set("User", &user);
        }
        self.enter_directory(root, &mut settled)?;
        Ok(settled)
    }

    /// What is started, and how it is stopped.
    fn start(&self, root: &Root, runs: Runs, lost: &[&str], settled: &mut Settled) -> Result<(), SourceError> {
        let stop: Option<Signal> = self.stop_signal.as_ref().and_then(|signal| signal.parse().ok());
        let signal = stop.map_or_else(|| "SIGTERM".to_owned(), |signal| signal.to_string());
        let has_shell = root.is_executable("bin/sh") == Some(true);
        let is_second = signal == "SIGTERM" && (has_shell || runs == Runs::Other);
        if is_second {
            settled.set("ProcessTwo", "yes");
            settled.set("KillSignal", POWER_OFF);
        } else {
            settled.set("Boot", "no");
            settled.set("KillSignal", &signal);
        }
        if runs == Runs::Other {
            settled.notes.extend(lost.iter().copied().map(is_left_out));
            return Ok(());
        }
        if self.words.iter().all(String::is_empty) {
            return Err(OciError::NoProgram {
                image: self.image.clone(),
            }
            .into());
        }
        let shield = SHIELD.into_iter().filter(|_| is_second);
        let words = shield.chain(self.words.iter().map(String::as_str)).map(word);
        let words: Option<Vec<String>> = words.collect();
        let setting = words.and_then(|words| parse_assignment(&format!("Exec.Parameters={}", words.join(" "))).ok());
        match setting.filter(|_| lost.is_empty()) {
            Some(setting) => settled.settings.push(setting),
            None => {
                self.write_script(root, lost, is_second)?;
                settled.set("Parameters", &format!("/{SCRIPT}"));
            }
        }
        if self.is_shell() {
            settled.notes.push(
                "all that it starts is a shell, which ends at once as nobody types: run commands in it with `machinist run`"
                    .to_owned(),
            );
        }
        settled.notes.extend(self.misfit(root));
        Ok(())
    }

    /// A script that starts it: it can say whatever a program can be given.
    fn write_script(&self, root: &Root, variables: &[&str], is_second: bool) -> Result<(), SourceError> {
        let refused = |reason| OciError::Program {
            image: self.image.clone(),
            reason,
        };
        if self.words.iter().any(|word| word.contains('\0')) || variables.iter().any(|text| text.contains('\0')) {
            return Err(refused("it is given a NUL byte").into());
        }
        if root.is_executable("bin/sh") != Some(true) {
            return Err(refused(
                "it is given characters that no settings file can have, and there is no /bin/sh to hand them on",
            )
            .into());
        }
        let mut script =
            "#!/bin/sh\n# Written by machinist: what the image starts has characters that no settings file can have.\n"
                .to_owned();
        if is_second {
            script.push_str("trap '' HUP\n");
        }
        for variable in variables {
            if let Some((name, value)) = variable.split_once('=') {
                let _ = writeln!(script, "export {name}={}", shell_quoted(value));
            }
        }
        let words: Vec<String> = self.words.iter().map(|word| shell_quoted(word)).collect();
        let _ = writeln!(script, "exec {}", words.join(" "));
        root.create_dir_all("usr/lib/machinist", 0o755)?;
        Ok(root.write(SCRIPT, script.as_bytes(), 0o755)?)
    }

    /// Those that can be set; the others are told.
    fn variables(&self, notes: &mut Vec<String>) -> Vec<String> {
        let is_sound = |variable: &&String| {
            let name = variable.split('=').next().unwrap_or_default();
            variable.contains('=')
                && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        let (sound, others): (Vec<&String>, Vec<&String>) = self.environment.iter().partition(is_sound);
        notes.extend(others.into_iter().map(|variable| is_left_out(variable)));
        sound.into_iter().cloned().collect()
    }

    fn enter_directory(&self, root: &Root, settled: &mut Settled) -> Result<(), SourceError> {
        let names: Vec<&str> = self
            .directory
            .split('/')
            .filter(|name| !matches!(*name, "" | "."))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let path = format!("/{}", names.join("/"));
        if names.contains(&"..") || path.contains('\0') {
            settled
                .notes
                .push(format!("its directory '{}' is left out", printable(&self.directory)));
            return Ok(());
        }
        // As Docker makes it.
        root.create_dir_all(names.join("/"), 0o755)?;
        settled.set("WorkingDirectory", &path);
        Ok(())
    }

    /// Whether the program is for another processor.
    fn misfit(&self, root: &Root) -> Option<String> {
        let first = self.words.first()?;
        let places = self
            .environment
            .iter()
            .find_map(|variable| variable.strip_prefix("PATH="));
        let places = places.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let found = if first.contains('/') {
            root.resolve(first).ok()
        } else {
            places
                .split(':')
                .take(100)
                .find_map(|place| root.resolve(format!("{place}/{first}")).ok())
        };
        let Some(found) = found else {
            return Some(format!("what it is to start is not in it: '{}'", printable(first)));
        };
        match Head::of(root.open_file(found).ok()?).ok()? {
            program @ Head::For(processor) if !program.runs_in(root) => Some(processor.is_missing()),
            _ => None,
        }
    }
}

fn is_left_out(variable: &str) -> String {
    let name = variable.split('=').next().unwrap_or_default();
    format!("its variable '{}' is left out: it cannot be set", printable(name))
}

/// `80/tcp`
fn is_port(text: &str) -> bool {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    number.parse::<u16>().is_ok() && ["tcp", "udp", "sctp"].contains(&protocol)
}

/// A word as systemd's lists have it: quotes group, and a backslash is a character as any other. `None` if no file can say it.
fn word(text: &str) -> Option<String> {
    if text.chars().any(char::is_control) {
        return None;
    }
    let is_plain = |c: char| c.is_alphanumeric() || "_-+=./:,@%^~!*?(){}[]<>|&;$#".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) && !text.starts_with(['#', ';']) {
        return Some(text.to_owned());
    }
    // Quoted in pieces: each has not the other kind of quote.
    let mut quoted = String::new();
    let mut rest = text;
    loop {
        let quote = if rest.starts_with('"') { '\'' } else { '"' };
        let end = rest.find(quote).unwrap_or(rest.len());
        let _ = write!(quoted, "{quote}{}{quote}", &rest[..end]);
        rest = &rest[end..];
        if rest.is_empty() {
            return Some(quoted);
        }
    }
}

/// A word as a shell has it.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
