//! cp to and from machines that mean no good.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::cp::Scratch;
use crate::support::{Guest, machinist, shared, unique, wait_until};

#[test]
fn links_that_change_lead_nowhere_else() {
    let _host = shared();
    let guest = Guest::busybox("cprace");
    let name = guest.name.as_str();
    guest.start();
    let scratch = Scratch::new();
    // What only the host has.
    let marker = unique("marker");
    fs::write(format!("/etc/{marker}"), "the host's\n").unwrap();
    let planted = unique("planted");
    let root_of_host = |name: &str| [format!("/{name}"), format!("/etc/{name}"), format!("/root/{name}")];
    // d is a directory, and then a link to /, and back; each change is one rename.
    let script = "mkdir -p /x/d/etc /x/d/root; echo inside >/x/d/etc/file; ln -s / /x/l; cd /x; touch ready; \
                  while :; do mv d t; mv l d; mv d l; mv t d; done";
    let script =
        format!("export PATH=/bin; for a in mkdir ln mv touch; do /bin/busybox ln -sf busybox /bin/$a; done; {script}");
    let swapper = guest.inside(["/bin/sh", "-c", &script]).spawn();
    wait_until("links change", || guest.image().join("x/ready").exists());
    fs::create_dir_all(scratch.0.join("in/etc")).unwrap();
    fs::write(scratch.0.join("in/etc").join(&planted), "planted\n").unwrap();
    fs::write(scratch.0.join(&planted), "planted\n").unwrap();
    let (file, tree) = (scratch.path(&planted), format!("{}/.", scratch.path("in")));
    let (mut went_in, mut came_out) = (0, 0);
    for round in 0..40 {
        let to = scratch.path(&format!("out{round}"));
        let outcomes = [
            machinist(["cp", &file, &format!("{name}:/x/d/etc/")]).any().status,
            machinist(["cp", "-r", &tree, &format!("{name}:/x/d")]).any().status,
            machinist(["cp", "-r", &format!("{name}:/x/d/etc"), &to]).any().status,
            machinist(["cp", &format!("{name}:/x/d/etc/{marker}"), &to])
                .any()
                .status,
        ];
        went_in += usize::from(outcomes[0] == 0);
        came_out += usize::from(outcomes[2] == 0);
        assert_ne!(outcomes[3], 0, "the host's own file was copied");
        for place in root_of_host(&planted) {
            assert!(fs::symlink_metadata(&place).is_err(), "'{place}' was made on the host");
        }
        assert!(!Path::new(&to).join(&marker).exists(), "the host's files were copied");
    }
    drop(swapper);
    let _ = fs::remove_file(format!("/etc/{marker}"));
    assert!(
        went_in > 0 && came_out > 0,
        "nothing was copied at all: {went_in}, {came_out}"
    );
}

#[test]
fn a_link_that_came_out_before_leads_nowhere() {
    let _host = shared();
    let guest = Guest::busybox("cplink");
    let name = guest.name.as_str();
    let (scratch, root) = (Scratch::new(), guest.image().join("root"));
    fs::create_dir(scratch.path("victims")).unwrap();
    fs::write(scratch.path("victim"), "the host's\n").unwrap();
    for (what, leads_to) in [("file", "victim"), ("tree", "victims")] {
        let (inside, outside) = (format!("{name}:/root/{what}"), scratch.path(what));
        symlink(scratch.path(leads_to), root.join(what)).unwrap();
        machinist(["cp", "-a", &inside, &outside]).ok();
        assert!(Path::new(&outside).is_symlink());
        fs::remove_file(root.join(what)).unwrap();
        if what == "file" {
            fs::write(root.join(what), "the guest's\n").unwrap();
        } else {
            fs::create_dir(root.join(what)).unwrap();
            fs::write(root.join(what).join("planted"), "").unwrap();
        }
        for dry_run in [&["--dry-run"][..], &[]] {
            let words = [&["cp", "-a", &inside, &outside], dry_run].concat();
            machinist(words)
                .status(1)
                .stderr_has("is a symbolic link, which may have come from the machine");
        }
    }
    assert_eq!(fs::read_to_string(scratch.path("victim")).unwrap(), "the host's\n");
    assert_eq!(fs::read_dir(scratch.path("victims")).unwrap().count(), 0);
    // Who means it says so.
    machinist([
        "cp",
        "-a",
        &format!("{name}:/root/tree"),
        &format!("{}/", scratch.path("tree")),
    ])
    .ok();
    assert!(Path::new(&scratch.path("victims/tree/planted")).exists());
}

#[test]
fn where_its_root_may_not_write_nothing_is_written() {
    let _host = shared();
    let guest = Guest::busybox("cpbind");
    let name = guest.name.as_str();
    let scratch = Scratch::new();
    let shared_directory = scratch.path("shared");
    fs::create_dir_all(format!("{shared_directory}/conf")).unwrap();
    fs::write(format!("{shared_directory}/conf/file"), "the host's\n").unwrap();
    guest.write_settings(&format!("[Files]\nBind={shared_directory}:/srv\n"));
    guest.start();
    fs::create_dir(scratch.path("conf")).unwrap();
    fs::write(scratch.path("conf/file"), "other\n").unwrap();
    let before = fs::metadata(format!("{shared_directory}/conf")).unwrap();
    for (source, target) in [
        ("conf", "/srv"),
        ("conf/file", "/srv/conf/"),
        ("conf/file", "/srv/conf/new"),
    ] {
        let words = ["cp", "-a", &scratch.path(source), &format!("{name}:{target}")];
        machinist(words).status(1).stderr_has("Permission denied");
    }
    let tar = std::process::Command::new("tar")
        .args(["-C", &scratch.path("conf"), "-cf", "-", "file"])
        .output()
        .unwrap();
    machinist(["cp", "-", &format!("{name}:/srv/conf")])
        .stdin(tar.stdout)
        .status(1)
        .stderr_has("Permission denied");
    let after = fs::metadata(format!("{shared_directory}/conf")).unwrap();
    assert_eq!(
        fs::read_to_string(format!("{shared_directory}/conf/file")).unwrap(),
        "the host's\n"
    );
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    // Its own places are its own.
    machinist(["cp", "-a", &scratch.path("conf"), &format!("{name}:/root")]).ok();
    assert!(guest.image().join("root/conf/file").exists());
}
