//! Runs the built program, and gives its output in one piece for a snapshot.

mod config;
mod dbus;
mod errors;
mod examples;
mod help;
mod output;
mod shipped;

use std::fmt::Write as _;
use std::path::Path;

use assert_cmd::Command;

/// The program, away from this machine's bus, terminal and locale.
fn machinist() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_machinist"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent");
    command
}

/// What a person sees of a call: the command, its output, its errors, its exit status unless that is 0.
fn session(words: &[&str]) -> String {
    let output = machinist().args(words).output().unwrap();
    let mut text = format!("$ {}\n", shell_words::join([&["machinist"], words].concat()));
    text += &String::from_utf8(output.stdout).unwrap();
    for line in String::from_utf8(output.stderr).unwrap().lines() {
        let _ = writeln!(text, "stderr: {line}");
    }
    match output.status.code() {
        Some(0) => {}
        Some(status) => drop(writeln!(text, "status: {status}")),
        None => text += "killed by a signal\n",
    }
    text.replace(env!("CARGO_PKG_VERSION"), "[VERSION]")
        .replace("stderr: \n", "stderr:\n")
}

/// A file of the repository.
fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All verbs with their words, from the command tree itself: "start", "config", "config check".
fn verbs() -> Vec<(String, clap::Command)> {
    use clap::CommandFactory as _;
    let mut verbs = Vec::new();
    for verb in machinist::cli::Cli::command().get_subcommands() {
        let noun = verb.get_name();
        verbs.push((noun.to_owned(), verb.clone()));
        verbs.extend(
            verb.get_subcommands()
                .map(|below| (format!("{noun} {}", below.get_name()), below.clone())),
        );
    }
    verbs
}
