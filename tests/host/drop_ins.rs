//! The drop-ins of a unit: ours is the order of systemd's `DropInPaths`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::{Guest, alone, machinist, run, unit_property};

/// Files that are removed in any case, and systemd told.
struct Files(Vec<PathBuf>);

impl Files {
    fn write(&mut self, path: String, text: &str) {
        let path = PathBuf::from(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        self.0.push(path);
    }

    fn link(&mut self, target: &str, path: String) {
        let path = PathBuf::from(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, &path).unwrap();
        self.0.push(path);
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
            let _ = fs::remove_dir(path.parent().unwrap());
        }
        run("systemctl", ["daemon-reload"]).any();
    }
}

const PLACES: [&str; 7] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];

#[test]
fn drop_ins_are_in_systemds_order() {
    let _host = alone();
    let guest = Guest::busybox("drops");
    let (name, unit) = (guest.name.as_str(), guest.unit());
    let directories =
        [unit.as_str(), "systemd-nspawn@.service", "systemd-.service", "service"].map(|name| format!("{name}.d"));
    let mut files = Files(Vec::new());
    // Every directory against every other one that comes later: of one name only the first is read.
    let all: Vec<String> = directories
        .iter()
        .flat_map(|directory| PLACES.map(|place| format!("{place}/{directory}")))
        .collect();
    let says = |path: &str| format!("[X-Machinist]\nGroup={path}\n[Service]\nEnvironment=\"AT={path}\"\n");
    for (at, one) in all.iter().enumerate() {
        let path = format!("{one}/z{:02}-alone.conf", all.len() - at);
        files.write(path.clone(), &says(&path));
        for (other_at, other) in all.iter().enumerate().skip(at + 1) {
            for directory in [one, other] {
                let path = format!("{directory}/a{at:02}{other_at:02}.conf");
                files.write(path.clone(), &says(&path));
            }
        }
    }
    let lib = format!("/usr/lib/systemd/system/{unit}.d");
    let etc = "/etc/systemd/system/systemd-nspawn@.service.d";
    for name in ["m1-null.conf", "m2-none.conf", "m3-empty.conf", "B.conf", "b.conf"] {
        let path = format!("{lib}/{name}");
        files.write(path.clone(), &says(&path));
    }
    files.link("/dev/null", format!("{etc}/m1-null.conf"));
    files.link("/no/such/file", format!("{etc}/m2-none.conf"));
    files.write(format!("{etc}/m3-empty.conf"), "");
    for name in [".hidden.conf", "old.conf~", "note.txt"] {
        let path = format!("{etc}/{name}");
        files.write(path.clone(), &says(&path));
    }
    run("systemctl", ["daemon-reload"]).ok();

    let loaded = unit_property(&unit, "DropInPaths");
    let loaded: Vec<&str> = loaded.split_whitespace().collect();
    let speaking = |path: &&&str| fs::read(Path::new(path)).is_ok_and(|text| !text.is_empty());
    let wanted: Vec<&str> = loaded.iter().filter(speaking).copied().collect();
    assert!(wanted.len() > all.len() * all.len() / 2, "{loaded:?}");
    assert!(
        loaded.iter().any(|path| *path == format!("{etc}/m1-null.conf")),
        "{loaded:?}"
    );

    let rows = machinist(["order", name, "--json"]).ok().json();
    let groups: Vec<&str> = rows[0]["group"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|group| group.as_str())
        .collect();
    assert_eq!(groups, wanted);

    let shown = machinist(["config", "show", name, "--json"]).ok().json();
    let rows: Vec<_> = shown
        .as_array()
        .or_else(|| shown["settings"].as_array())
        .unwrap()
        .iter()
        .filter(|row| row["key"] == "Environment" && row["value"].as_str().is_some_and(|value| value.contains("AT=")))
        .collect();
    let mut said: Vec<&str> = Vec::new();
    for row in &rows {
        let file = row["origin"]["file"].as_str().or_else(|| row["file"].as_str()).unwrap();
        if row["code"] == "shadowed" {
            assert!(!loaded.contains(&file), "{row}");
            let by = loaded
                .iter()
                .find(|path| Path::new(path).file_name() == Path::new(file).file_name())
                .unwrap();
            assert!(row["reason"].as_str().unwrap().contains(*by), "{row}");
        } else {
            said.push(file);
        }
    }
    assert_eq!(said, wanted);

    // What holds is what the last one says.
    let last = *wanted.last().unwrap();
    assert!(guest.property("Environment").contains(last));
}
