//! Every command line that README, a `--help` or a topic shows can be typed as it stands.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use machinist::cli::Cli;
use machinist::help::TOPICS;

use super::{repository, verbs};

/// Whether clap takes these words; the first is the program.
pub(super) fn parse(words: &[String]) -> Result<(), String> {
    match Cli::try_parse_from(words) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => Ok(()),
        Err(error) => Err(format!("{words:?}: {error}")),
    }
}

/// The calls of machinist in a line of shell: alone, in a pipe, or in `<( )`.
fn calls(line: &str) -> Vec<Vec<String>> {
    let line = line.replace("<(", " | ").replace(')', " ");
    line.split(['|', ';', '>', '<'])
        .map(|part| shell_words::split(part).unwrap_or_else(|error| panic!("{part}: {error}")))
        .filter_map(|words| {
            words
                .iter()
                .position(|word| word == "machinist")
                .map(|at| words[at..].to_vec())
        })
        .collect()
}

/// An example in a help text: the command, two blanks or more, what it is for.
fn command_of(line: &str) -> &str {
    let line = line.trim_start();
    line.split_once("  ").map_or(line, |(command, _)| command)
}

/// Text files of the repository in which commands are spoken of: (path, text).
pub(super) fn sources() -> Vec<(String, String)> {
    fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![
        root.join("README.md"),
        root.join("CHANGELOG.md"),
        root.join("units/machinist.conf"),
    ];
    walk(&root.join("src"), &mut files);
    files
        .into_iter()
        .map(|file| {
            (
                file.strip_prefix(root).unwrap().display().to_string(),
                std::fs::read_to_string(&file).unwrap(),
            )
        })
        .collect()
}

#[test]
fn examples_of_every_help() {
    let root = Cli::command();
    let mut seen = 0;
    for command in std::iter::once(root).chain(verbs().into_iter().map(|(_, verb)| verb)) {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples = after.lines().skip_while(|line| *line != "Examples:").skip(1);
        for line in examples.take_while(|line| line.starts_with("  ")) {
            let command = command_of(line);
            let calls = calls(command);
            assert!(!calls.is_empty(), "no call of machinist in: {line}");
            for words in calls {
                parse(&words).unwrap();
                // One blank before the explanation makes names of its words.
                let stray = words
                    .iter()
                    .find(|word| word.starts_with(|c: char| c.is_ascii_uppercase()) && !word.contains(['=', '.', ',']));
                assert!(
                    stray.is_none() || words.contains(&"-p".to_owned()),
                    "is '{stray:?}' part of the command in: {line}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "only {seen} examples");
}

/// Parses all commands in a Markdown text; how many there were.
fn commands_in(text: &str) -> usize {
    let mut seen = 0;
    let mut inside = false;
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            inside = !inside && matches!(language, "console" | "sh");
        } else if inside {
            for words in line.strip_prefix("$ ").map(calls).unwrap_or_default() {
                parse(&words).unwrap();
                seen += 1;
            }
        }
    }
    // In tables and in running text. A verb alone is spoken of, not called.
    let codes = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.starts_with("machinist "));
    for code in codes.filter(|code| code.split(' ').count() > 2) {
        for words in calls(&code.replace("\\|", "|").replace('…', "")) {
            parse(&words).unwrap();
            seen += 1;
        }
    }
    seen
}

#[test]
fn examples_of_the_readme() {
    let seen = commands_in(&repository("README.md"));
    assert!(seen > 20, "only {seen} commands");
}

#[test]
fn examples_of_every_topic() {
    for topic in TOPICS {
        let seen = commands_in(&repository(&format!("src/help/{}.md", topic.name)));
        assert!(seen >= 2, "{} has {seen} commands", topic.name);
    }
}
