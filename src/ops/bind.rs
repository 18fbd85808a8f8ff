//! Mounts of the host in a machine's settings: `Bind=` and `BindReadOnly=` of systemd.nspawn(5), found by where they are seen.

use std::path::{Component, Path};

use super::config::draft;
use super::{OpError, Places};
use crate::machine::MachineName;
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::nspawn::settings::Settings;
use crate::sys::files::shown;

const SECTION: &str = "Files";
const KEYS: [&str; 2] = ["Bind", "BindReadOnly"];

/// A mount that is to last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lasting {
    key: &'static str,
    value: String,
}

impl Lasting {
    /// The one of `source` on `place`; `mapped` shows its files as those of the machine's private users.
    ///
    /// # Errors
    /// [`OpError::Option`] for paths that cannot be said there.
    pub fn new(source: &Path, place: &Path, read_only: bool, mapped: bool) -> Result<Self, OpError> {
        let words = [source, place].map(|path| path.to_str().filter(|text| text.chars().all(is_plain)));
        let [Some(source), Some(place)] = words else {
            let bad = if words[0].is_none() { source } else { place };
            return Err(OpError::Option {
                message: format!("the path '{}' cannot stand in the settings of a machine", shown(bad)),
                hint: "paths with colons, quotes, backslashes or control characters can be mounted without --persist"
                    .to_owned(),
            });
        };
        let options = if mapped { ":idmap" } else { "" };
        Ok(Self {
            key: if read_only { KEYS[1] } else { KEYS[0] },
            value: format!("{source}:{place}{options}"),
        })
    }
}

fn is_plain(c: char) -> bool {
    !c.is_control() && !matches!(c, ':' | '\\' | '"' | '\'')
}

/// The edits after which the settings have this mount, and no other on its place; `None` takes away what is mounted there.
pub fn edits(
    name: &MachineName,
    place: &Path,
    wanted: Option<&Lasting>,
    systemd: u32,
    places: &Places,
) -> Result<Vec<Edit>, OpError> {
    let document = Document::from_bytes(draft(name, places)?.text);
    let settings = Settings::effective(&document, systemd, true);
    let mut edits = Vec::new();
    for key in KEYS {
        for value in settings.values(SECTION, key) {
            let is_wanted = wanted.is_some_and(|wanted| (wanted.key, &wanted.value) == (key, &value.value));
            if !is_wanted && place_of(&value.value).is_some_and(|there| is_same(Path::new(&there), place)) {
                edits.push(Edit::remove(SECTION, key, Some(value.value.clone())));
            }
        }
    }
    if let Some(Lasting { key, value }) = wanted {
        edits.push(Edit::Add {
            section: SECTION.to_owned(),
            key: (*key).to_owned(),
            value: value.clone(),
        });
    }
    Ok(edits)
}

/// Whether a machine gets private users at its next start, as far as its settings tell: the unit gives them to all others.
pub fn will_have_private_users(name: &MachineName, systemd: u32, places: &Places) -> Result<bool, OpError> {
    let document = Document::from_bytes(draft(name, places)?.text);
    let settings = Settings::effective(&document, systemd, true);
    let said = settings.value("Exec", "PrivateUsers");
    Ok(said.is_none_or(|said| crate::nspawn::names::boolean(said) != Some(false)))
}

/// Where a mount is seen: `[+-]SOURCE[:PLACE[:OPTIONS]]`, a colon in a path behind a backslash.
fn place_of(value: &str) -> Option<String> {
    let value = value.strip_prefix(['+', '-']).unwrap_or(value);
    let mut words = vec![String::new()];
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => words.push(String::new()),
            c => {
                let c = if c == '\\' { chars.next()? } else { c };
                words.last_mut()?.push(c);
            }
        }
    }
    let mut words = words.into_iter();
    let source = words.next()?;
    Some(words.next().filter(|place| !place.is_empty()).unwrap_or(source))
}

/// Whether two paths of a machine say the same.
fn is_same(one: &Path, other: &Path) -> bool {
    let names = |path: &Path| -> Vec<_> {
        let components = path
            .components()
            .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
        components.map(|c| c.as_os_str().to_owned()).collect()
    };
    names(one) == names(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_place() {
        for (value, place) in [
            ("/srv", "/srv"),
            ("/srv:/data", "/data"),
            ("-/srv:/data:idmap", "/data"),
            ("+/srv::norbind", "+/srv"),
            (r"/a\:b:/c\:d", "/c:d"),
        ] {
            let place = place.trim_start_matches('+');
            assert_eq!(place_of(value).as_deref(), Some(place), "{value}");
        }
        assert!(is_same(Path::new("/srv//data/"), Path::new("srv/data")));
        assert!(!is_same(Path::new("/srv"), Path::new("/srv/data")));
    }

    #[test]
    fn what_settings_cannot_say_is_refused() {
        let lasting = |source: &str, read_only, mapped| {
            Lasting::new(Path::new(source), Path::new("/data"), read_only, mapped).map(|it| (it.key, it.value))
        };
        assert_eq!(
            lasting("/srv", false, true).unwrap(),
            ("Bind", "/srv:/data:idmap".to_owned())
        );
        assert_eq!(
            lasting("/s v", true, false).unwrap(),
            ("BindReadOnly", "/s v:/data".to_owned())
        );
        for bad in ["/a:b", "/a\\b", "/a\nb", "/a\"b"] {
            assert!(lasting(bad, false, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_place_has_one_mount() {
        let root = tempfile::tempdir().unwrap();
        let places = Places {
            settings: root.path().join("settings"),
            runtime_settings: root.path().join("runtime"),
            machines: root.path().join("machines"),
            other_machines: Vec::new(),
            ..Places::default()
        };
        let name: MachineName = "web".parse().unwrap();
        std::fs::create_dir_all(&places.settings).unwrap();
        let text = "[Files]\nBind=/a:/data\nBindReadOnly=/b:/data/ /c:/other\nBind=/d\n";
        std::fs::write(places.settings_file(&name), text).unwrap();
        let removed = edits(&name, Path::new("/data"), None, 257, &places).unwrap();
        assert!(
            removed.contains(&Edit::remove("Files", "Bind", Some("/a:/data".to_owned()))),
            "{removed:?}"
        );
        let lasting = Lasting::new(Path::new("/a"), Path::new("/data"), false, false).unwrap();
        let edits = edits(&name, Path::new("/data"), Some(&lasting), 257, &places).unwrap();
        assert!(
            !edits.contains(&Edit::remove("Files", "Bind", Some("/a:/data".to_owned()))),
            "{edits:?}"
        );
        assert!(will_have_private_users(&name, 257, &places).unwrap());
    }
}
