//! cp when the disk is full: what is not whole is not there.

use std::fs;

use crate::cp::{Scratch, leaves_nothing};
use crate::support::{Disk, Guest, machinist, sh, shared};

#[test]
fn a_full_disk_has_no_half_of_a_file() {
    let _host = shared();
    let guest = Guest::busybox("cpfull");
    let name = guest.name.as_str();
    let scratch = Scratch::new();
    let small = scratch.0.join("small");
    let _disk = Disk::ext4(&small, "8M");
    let root = guest.image().join("root");
    sh(
        "mkdir \"$1/d\"; for n in 1 2 3; do head -c 5M /dev/urandom >\"$1/d/$n\"; done; head -c 20M /dev/urandom >\"$1/one\"",
        [&root],
    )
    .ok();
    fs::write(small.join("one"), "before\n").unwrap();
    let small = small.to_string_lossy().into_owned();
    let copy = |words: &[&str]| machinist([&["cp"], words].concat());
    // A file that was there stays what it was; of a new directory nothing is there.
    copy(&[&format!("{name}:/root/one"), &small])
        .status(1)
        .fails_with(&format!("cannot write '{small}/one'"), "free some space");
    copy(&["-a", &format!("{name}:/root/d"), &small]).status(1);
    assert_eq!(fs::read_to_string(format!("{small}/one")).unwrap(), "before\n");
    assert!(!scratch.0.join("small/d").exists());
    leaves_nothing(&scratch.0.join("small"));
    // What a directory that was there has got already is whole.
    fs::create_dir(format!("{small}/d")).unwrap();
    copy(&["-a", &format!("{name}:/root/d/."), &format!("{small}/d")]).status(1);
    assert_eq!(
        fs::read(format!("{small}/d/1")).unwrap(),
        fs::read(root.join("d/1")).unwrap()
    );
    assert!(!scratch.0.join("small/d/3").exists());
    leaves_nothing(&scratch.0.join("small"));
}
