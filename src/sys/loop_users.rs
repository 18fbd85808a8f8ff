//! Who else may write to a disk image: a loop device, whoever made it. systemd-nspawn's lock says nothing of those of losetup(8).

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Where the kernel lists its disks.
const DISKS: &str = "/sys/block";

/// The loop device by which something may write to a file, as `/dev/loop3`, if there is one.
pub(crate) fn writer_of(file: &File) -> Option<PathBuf> {
    among(Path::new(DISKS), file)
}

fn among(disks: &Path, file: &File) -> Option<PathBuf> {
    let wanted = file.metadata().ok()?;
    let wanted = (wanted.dev(), wanted.ino());
    fs::read_dir(disks).ok()?.flatten().find_map(|disk| {
        let name = disk.file_name();
        let name = name.to_str().filter(|name| name.starts_with("loop"))?;
        let said = |what: &str| fs::read_to_string(disk.path().join(what)).ok();
        // Without it, it has no file.
        let backing = said("loop/backing_file")?;
        let found = fs::metadata(backing.trim_end_matches('\n')).ok()?;
        let is_read_only = said("ro").is_some_and(|ro| ro.trim() == "1");
        ((found.dev(), found.ino()) == wanted && !is_read_only).then(|| Path::new("/dev").join(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_that_writes_to_this_very_file_is_meant() {
        let root = tempfile::tempdir().unwrap();
        let disk = |name: &str, file: &Path, ro: &str| {
            let disk = root.path().join("block").join(name);
            fs::create_dir_all(disk.join("loop")).unwrap();
            fs::write(disk.join("loop/backing_file"), format!("{}\n", file.display())).unwrap();
            fs::write(disk.join("ro"), ro).unwrap();
        };
        let [one, two] = ["one", "two"].map(|name| root.path().join(name));
        fs::write(&one, "").unwrap();
        fs::write(&two, "").unwrap();
        fs::create_dir_all(root.path().join("block/loop0")).unwrap();
        disk("loop1", &two, "0\n");
        disk("loop2", &one, "1\n");
        disk("sda", &one, "0\n");
        disk("loop4", &root.path().join("gone (deleted)"), "0\n");
        let file = File::open(&one).unwrap();
        let find = || among(&root.path().join("block"), &file);
        assert_eq!(find(), None);
        disk("loop3", &one, "0\n");
        assert_eq!(find(), Some("/dev/loop3".into()));
    }
}
