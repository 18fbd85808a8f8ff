//! Which user numbers of this host are whose, for `PrivateUsers=FIRST:COUNT` of another machine.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::files::{all_names, of_machine};
use crate::machine::MachineName;
use crate::nspawn::document::Document;
use crate::nspawn::settings::Settings;
use crate::nspawn::users::{Entries, Taken, UserRange, accounts, subordinate};
use crate::ops::Places;
use crate::sys::files::{read_regular, shown};

/// How many bytes of passwd(5) and its like are read.
const ACCOUNTS_MAX: u64 = 16 << 20;

/// Who has user numbers on this host. Read once, when first asked for.
#[derive(Debug, Default)]
pub struct HostUsers {
    found: OnceCell<Vec<(Option<MachineName>, Taken)>>,
}

impl HostUsers {
    /// The numbers that are not `machine`'s. A line of subuid(5) for the machine itself keeps its numbers from new users.
    pub fn besides(&self, machine: Option<&MachineName>, systemd: u32, places: &Places) -> Vec<Taken> {
        let found = self.found.get_or_init(|| find(systemd, places));
        let others = found
            .iter()
            .filter(|(owner, _)| owner.is_none() || owner.as_ref() != machine);
        others.map(|(_, taken)| taken.clone()).collect()
    }
}

fn find(systemd: u32, places: &Places) -> Vec<(Option<MachineName>, Taken)> {
    let settings = all_names(places)
        .into_iter()
        .filter_map(|name| of_settings(name, systemd, places));
    let directories = places
        .all_machines()
        .filter_map(|directory| fs::read_dir(directory).ok());
    let images = directories
        .flatten()
        .flatten()
        .filter_map(|entry| of_image(&entry.path()));
    let mut found: Vec<_> = settings.chain(images).chain(in_use()).collect();
    for (file, what, entries) in [
        ("passwd", "user", accounts as fn(&str) -> Entries<'_>),
        ("group", "group", accounts),
        ("subuid", "subordinate users of", subordinate),
        ("subgid", "subordinate groups of", subordinate),
    ] {
        let path = places.accounts.join(file);
        let text = read_regular(&path, ACCOUNTS_MAX).unwrap_or_default();
        for (owner, range, line) in entries(&String::from_utf8_lossy(&text)) {
            let by = format!("{what} '{}' ({}:{line})", owner.escape_debug(), shown(&path));
            // Who gives the machine's name to subordinate numbers means the machine.
            let machine = if file.starts_with("sub") {
                owner.parse().ok()
            } else {
                None
            };
            found.push((machine, Taken { range, by }));
        }
    }
    found
}

/// What a machine's settings give it.
fn of_settings(name: MachineName, systemd: u32, places: &Places) -> Option<(Option<MachineName>, Taken)> {
    let file = of_machine(&name, places).into_iter().next()?;
    let document = Document::from_bytes(file.read().ok()?);
    let settings = Settings::effective(&document, systemd, file.trusted);
    let value = settings.values("Exec", "PrivateUsers").last()?;
    let range = UserRange::parse(&value.value).filter(|range| range.first != 0)?;
    let entries = document.entries_of("Exec", "PrivateUsers");
    let line = entries.filter(|entry| entry.value == value.value).last()?.first_line;
    let by = format!("machine '{name}' ({}:{line})", shown(&file.path));
    Some((Some(name), Taken { range, by }))
}

/// What runs: where systemd-nspawn chooses and maps the owners of files, only the user namespaces tell. Those of other
/// container managers are among them.
fn in_use() -> BTreeSet<(Option<MachineName>, Taken)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let maps = processes.filter_map(|process| {
        let map = fs::read_to_string(process.path().join("uid_map")).ok()?;
        let groups = fs::read_to_string(process.path().join("cgroup")).ok()?;
        // Inside of a machine there are units as well.
        let mut parts = groups.lines().find_map(|line| line.strip_prefix("0::"))?.split('/');
        let unit = parts.find(|part| part.ends_with(".service") || part.ends_with(".scope"))?;
        Some((unit.to_owned(), map))
    });
    let mut found = BTreeSet::new();
    for (unit, map) in maps {
        let machine = MachineName::of_unit(&unit);
        for range in outside(&map) {
            let by = match &machine {
                Some(name) => format!("machine '{name}', which runs"),
                None => format!("unit '{}', which runs", unit.escape_debug()),
            };
            found.insert((machine.clone(), Taken { range, by }));
        }
    }
    found
}

/// The numbers on the host of a map of user_namespaces(7); those that are the same inside are nobody's own.
fn outside(map: &str) -> impl Iterator<Item = UserRange> {
    map.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
        UserRange::new(outside, count).filter(|_| inside != outside)
    })
}

/// What the owner of an image says: systemd-nspawn has given it a range.
fn of_image(path: &Path) -> Option<(Option<MachineName>, Taken)> {
    let name: MachineName = path.file_name()?.to_str()?.parse().ok()?;
    let found = fs::metadata(path).ok().filter(fs::Metadata::is_dir)?;
    let range = UserRange::of_owner(found.uid())?;
    let by = format!("machine '{name}' (the owner of {})", shown(path));
    Some((Some(name), Taken { range, by }))
}
