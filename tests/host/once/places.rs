//! Where /var/lib/machines is a mount of its own, or a link: machines live there, and what cannot be is refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::backends::{MACHINES, live};
use crate::clone::read;
use crate::support::{Disk, alone};

/// What becomes a layer is renamed: from there it cannot be.
#[test]
fn a_life_on_a_mount_of_its_own() {
    let _host = alone();
    let _disk = Disk::ext4(Path::new(MACHINES), "200M");
    live("copy", None);
}

#[test]
fn a_life_where_a_link_leads() {
    let _host = alone();
    let there = Path::new("/srv/machines");
    fs::create_dir_all("/srv").unwrap();
    fs::rename(MACHINES, there).unwrap();
    symlink(there, MACHINES).unwrap();
    let lives = std::panic::catch_unwind(|| live("copy", None));
    fs::remove_file(MACHINES).unwrap();
    fs::rename(there, MACHINES).unwrap();
    if let Err(failure) = lives {
        std::panic::resume_unwind(failure);
    }
    assert!(!read("/proc/self/mountinfo").contains("/srv/machines"));
}
