//! Files that are installed beside the program.

use std::collections::BTreeSet;

use machinist::help::topic;
use machinist::sys::config::{Config, KEYS};

use super::{repository, verbs};

/// The lines that set something, in force or commented out: section, key, value.
fn assignments(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            name.clone_into(&mut section);
        }
        // Prose has a blank behind the mark of a comment.
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some((key, value)) = line.split_once('=').filter(|(key, _)| !key.contains([' ', '#'])) {
            found.push((section.clone(), key.to_owned(), value.to_owned()));
        }
    }
    found
}

fn load(text: &str) -> Config {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("machinist.conf"), text).unwrap();
    Config::load_from(&[directory.path().to_owned()]).unwrap()
}

#[test]
fn configuration_names_exactly_the_keys_there_are() {
    let text = repository("units/machinist.conf");
    let shown: Vec<_> = assignments(&text)
        .into_iter()
        .map(|(section, key, _)| (section, key))
        .collect();
    let known: Vec<_> = KEYS
        .iter()
        .map(|(section, key)| ((*section).to_owned(), (*key).to_owned()))
        .collect();
    assert_eq!(shown, known);
}

#[test]
fn configuration_shows_the_defaults() {
    let text = repository("units/machinist.conf");
    assert_eq!(load(&text), Config::default(), "as it is shipped it sets nothing");
    let uncommented: String = assignments(&text)
        .iter()
        .map(|(section, key, value)| format!("[{section}]\n{key}={value}\n"))
        .collect::<Vec<_>>()
        .concat();
    let mut config = load(&uncommented);
    // These are told from "not set", and stand for the same.
    assert_eq!(config.bootstrapper.take().as_deref(), Some("auto"));
    assert_eq!(
        config.debian_mirror.take().as_deref(),
        Some("http://deb.debian.org/debian")
    );
    assert_eq!(
        config.ubuntu_mirror.take().as_deref(),
        Some("http://archive.ubuntu.com/ubuntu")
    );
    assert_eq!(
        config.image_server.take().as_deref(),
        Some(machinist::sources::catalogue::SERVER)
    );
    assert_eq!(config, Config::default());
}

#[test]
fn units_name_verbs_that_exist() {
    let unit = repository("units/machinist-clean.service.in");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let words = start
        .split(' ')
        .map(|word| word.strip_prefix("@BINDIR@/").unwrap_or(word));
    super::examples::parse(&words.map(str::to_owned).collect::<Vec<_>>()).unwrap();
}

#[test]
fn nothing_speaks_of_verbs_that_do_not_exist() {
    let verbs: BTreeSet<String> = verbs().into_iter().map(|(verb, _)| verb).collect();
    let mut strangers = Vec::new();
    for (file, text) in super::examples::sources() {
        for (at, _) in text.match_indices("`machinist ") {
            let rest = &text[at + "`machinist ".len()..];
            let word: String = rest
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                .collect();
            if !word.is_empty() && !word.starts_with('-') && !verbs.contains(&word) {
                strangers.push(format!("{file}: machinist {word}"));
            }
            if let Some(rest) = rest.strip_prefix("help ") {
                let name = rest.split(['`', ' ']).next().unwrap_or_default();
                if !verbs.contains(name) && topic(name).is_none() && name.chars().any(char::is_lowercase) {
                    strangers.push(format!("{file}: machinist help {name}"));
                }
            }
        }
    }
    assert!(strangers.is_empty(), "{strangers:#?}");
}
