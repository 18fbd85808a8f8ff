//! The whole `--help` tree as one snapshot: a change of the command line is seen in review.

use clap::CommandFactory as _;
use machinist::cli::Cli;

use super::{session, verbs};

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
