//! Any bytes as a .nspawn file: reading, checking, merging and editing never panic, and keep what they promise.
//!
//! An input is a file; behind the first byte FE stand edits, separated by the same byte, which UTF-8 never has. The first
//! letter of an edit says which it is, and the rest is `Section.Key=Value`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use machinist::machine::setting::{Origin, State};
use machinist::nspawn::check::{self, check};
use machinist::nspawn::document::Document;
use machinist::nspawn::edit::Edit;
use machinist::nspawn::merge::{File, Reader, merge};
use machinist::nspawn::schema;
use machinist::nspawn::settings::Settings;
use machinist::nspawn::switches::CommandLine;
use machinist::unit::merge::{Status, Unit, UnitFile};

const SEPARATOR: u8 = 0xFE;
const COMMANDS: [&str; 3] = [
    "systemd-nspawn --keep-unit --boot --link-journal=try-guest --network-veth -U --settings=override",
    "systemd-nspawn -b --bind=/a --capability=CAP_CHOWN",
    "systemd-nspawn --settings=no",
];

fuzz_target!(|input: &[u8]| {
    let mut parts = input.split(|byte| *byte == SEPARATOR);
    let text = parts.next().unwrap_or_default();
    let mut document = Document::parse(text);
    assert_eq!(document.as_bytes(), text, "the bytes do not come back");
    read(&document);
    for edit in parts.take(16).filter_map(edit_of) {
        apply(&mut document, &edit);
    }
    read(&document);
});

/// All that looks at a file.
fn read(document: &Document) {
    let bytes = document.as_bytes();
    let mut all = Vec::with_capacity(bytes.len());
    let mut lines = 0;
    for line in document.lines() {
        lines += 1;
        assert_eq!((line.number, line.start), (lines, all.len()));
        all.extend_from_slice(line.content);
        all.extend_from_slice(line.ending);
    }
    assert_eq!(all, bytes, "the lines do not make up the file");
    // One reader an input: many inputs are worth more than many readers.
    let sum = bytes.iter().fold(0_usize, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(usize::from(*byte))
    });
    let systemd = [252, 257, 262][sum % 3];
    let trusted = sum % 2 == 0;
    let settings = Settings::effective(document, systemd, trusted);
    assert!(settings.fatal().is_none() || settings.settings().is_empty());
    let reader = check::Reader {
        systemd,
        trusted,
        host: None,
    };
    for finding in check(document, &reader) {
        let Some(place) = finding.place else { continue };
        assert!(place.line <= lines && place.column > 0 && place.bytes.end <= bytes.len());
    }
    merged(document, systemd, trusted, COMMANDS[sum / 6 % 3], lines);
    // The same bytes as a unit file.
    let files = [UnitFile {
        path: "/unit".to_owned(),
        source: machinist::machine::setting::Source::Unit,
        document: document.clone(),
        status: Status::Read,
    }];
    let unit = Unit {
        systemd: 257,
        need_reload: false,
        files: &files,
        properties: &std::collections::BTreeMap::new(),
    };
    for row in unit.settings() {
        assert!(row.origin.line.is_none_or(|line| (1..=lines + 1).contains(&line)));
    }
}

/// Whatever holds out of a file is what the file says, and is said to stand where it stands.
fn merged(document: &Document, systemd: u32, trusted: bool, command: &str, lines: usize) {
    let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    let command = CommandLine::parse(&words);
    let file = File {
        path: "/file",
        document,
        trusted,
        changed: false,
    };
    let origin = Origin::DEFAULT;
    let reader = Reader {
        systemd,
        command: command.as_ref(),
        origin: &origin,
    };
    let settings = Settings::effective(document, systemd, trusted);
    for row in merge(&reader, &[file]) {
        let Some(line) = row.origin.line else { continue };
        assert!((1..=lines + 1).contains(&line), "line {line} of {lines}");
        if row.state != State::InForce || row.code.is_some() {
            continue;
        }
        let key = row.key.as_deref().unwrap_or_default();
        let values = settings.values(&row.section, key);
        assert!(
            values
                .iter()
                .any(|value| value.value == row.value && value.first_line == line)
        );
    }
}

fn edit_of(text: &[u8]) -> Option<Edit> {
    let text = std::str::from_utf8(text).ok()?;
    let mut letters = text.chars();
    let kind = letters.next()?;
    let (path, value) = letters.as_str().split_once('=').unwrap_or((letters.as_str(), ""));
    let (section, key) = path.split_once('.')?;
    let (section, key, value) = (section.to_owned(), key.to_owned(), value.to_owned());
    Some(match kind {
        's' => Edit::Set { section, key, value },
        'a' => Edit::Add { section, key, value },
        'r' => Edit::Remove {
            section,
            key,
            value: Some(value).filter(|value| !value.is_empty()),
        },
        _ => Edit::Reset { section, key },
    })
}

fn apply(document: &mut Document, edit: &Edit) {
    let before = document.clone();
    match document.apply(edit) {
        Err(_) => assert_eq!(*document, before, "a refused edit changed something: {edit:?}"),
        Ok(changed) => {
            assert_eq!(changed, document.as_bytes() != before.as_bytes(), "{edit:?}");
            assert_eq!(Document::parse(document.as_bytes()), *document, "{edit:?}");
            // What is no key of systemd's has no value to be compared.
            let (Edit::Set { section, key, .. } | Edit::Add { section, key, .. }) = edit else {
                return;
            };
            if schema::find(section, key).is_some() {
                let after = document.clone();
                assert!(
                    !document.apply(edit).is_ok_and(|changed| changed),
                    "not idempotent: {edit:?}"
                );
                assert_eq!(*document, after);
            }
        }
    }
}
