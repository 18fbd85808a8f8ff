//! The whole `--help` tree as one snapshot: a change of the command line is seen in review.

use clap::CommandFactory as _;
use machinist::cli::Cli;

use super::{machinist, session, verbs};

#[test]
fn whole_tree() {
    let mut text = session(&["--help"]);
    for (verb, _) in verbs() {
        text += "\n";
        text += &session(&verb.split(' ').chain(["--help"]).collect::<Vec<_>>());
    }
    insta::assert_snapshot!(text);
}

#[test]
fn topics_are_shown_like_verbs() {
    let help = |words: &[&str]| session(words).split_once('\n').unwrap().1.to_owned();
    assert_eq!(help(&["help"]), help(&["--help"]));
    assert_eq!(help(&["help", "exec"]), help(&["exec", "--help"]));
    assert_eq!(help(&["help", "help"]), help(&["help", "--help"]));
    insta::assert_snapshot!(session(&["help", "security"]));
}

#[test]
fn headings_are_bold_where_colours_are_shown() {
    let page = |variables: &[(&str, &str)]| {
        let mut command = machinist();
        let output = command
            .envs(variables.iter().copied())
            .args(["help", "security"])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let (bold, plain) = (page(&[("CLICOLOR_FORCE", "1")]), page(&[]));
    assert!(bold.starts_with("\x1b[1mWhat exec guarantees"), "{bold}");
    assert!(!plain.contains('\x1b'));
    assert_eq!(anstream::adapter::strip_str(&bold).to_string(), plain);
}

#[test]
fn unknown_topics() {
    insta::assert_snapshot!(
        [
            session(&["help", "securty"]),
            session(&["help", "strat"]),
            session(&["help", "securty", "--json"]),
        ]
        .join("\n")
    );
}

#[test]
fn every_verb_has_two_examples_and_short_help() {
    for (name, verb) in verbs() {
        assert!(verb.get_about().is_some(), "{name} says nothing of itself");
        let after = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples = after.lines().filter(|line| line.contains("machinist")).count();
        assert!(examples >= 2, "{name} has {examples} examples");
    }
}

#[test]
fn the_command_tree_is_sound() {
    Cli::command().debug_assert();
}
