//! why: an image that a machine does not run from, and what it lies on.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::clone::Clone;
use crate::linked::{LAYERS, layers};
use crate::support::{
    Disk, Guest, MACHINES, alone, machinist, nspawn_in, run, sh, shared, unique, unit_property, wait_until,
};
use crate::why::{fails, has, is_told, is_told_too};

#[test]
fn what_is_wrong_with_its_image_is_told() {
    let _host = shared();
    let guest = Guest::busybox("whye");
    let name = guest.name.as_str();
    let init = guest.image().join("sbin/init");
    let hint = format!("/var/lib/machines/{name}");

    fs::remove_file(&init).unwrap();
    is_told_too(name, "no-init");
    fails(&guest);
    let cause = is_told(name, "no-init", "error", "systemd-sysv");
    has(&cause, &hint);
    fs::write(&init, "neither program nor script\n").unwrap();
    is_told_too(name, "init-not-executable");
    fails(&guest);
    let cause = is_told(name, "init-not-executable", "error", "chmod +x");
    has(&cause, "no execute permission");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    is_told_too(name, "init-wrong-format");
    fails(&guest);
    let cause = is_told(name, "init-wrong-format", "error", "uname -m");
    has(&cause, "neither a program nor a script");
    // Of another processor.
    let mut program = fs::read("/bin/busybox").unwrap();
    program[18] = if program[18] == 183 { 62 } else { 183 };
    fs::write(&init, program).unwrap();
    fails(&guest);
    let cause = is_told(name, "init-wrong-format", "error", "uname -m");
    has(&cause, "is for arm64");
    fs::remove_file(&init).unwrap();
    symlink("../bin/busybox", &init).unwrap();

    let release = guest.image().join("usr/lib/os-release");
    let text = fs::read(&release).unwrap();
    fs::remove_file(&release).unwrap();
    fails(&guest);
    let cause = is_told(name, "no-os-tree", "error", "os-release file must be there");
    has(&cause, &hint);
    fs::write(&release, "ID=debian\nVERSION_ID=\"8\"\n").unwrap();
    is_told_too(name, "guest-too-old");
    fs::write(&release, text).unwrap();
    run("systemctl", ["reset-failed", &guest.unit()]).ok();

    // Somebody else runs on it.
    let (unit, other) = (format!("test-{name}.service"), unique("busy"));
    nspawn_in(&unit, &guest.image(), &other, &["--register=no", "--keep-unit"]);
    let supervisor = unit_property(&unit, "MainPID");
    wait_until("the other guest runs", || {
        run("pgrep", ["-P", &supervisor]).any().status == 0
    });
    fails(&guest);
    let told = std::panic::catch_unwind(|| {
        let cause = is_told(name, "image-busy", "error", "machinectl list");
        has(&cause, &format!("systemd-nspawn (PID {supervisor}) has it now"));
    });
    run("systemctl", ["kill", "-s", "KILL", &unit]).ok();
    run("systemctl", ["stop", &unit]).any();
    run("systemctl", ["reset-failed", &unit]).any();
    run("umount", ["-l", &format!("/run/systemd/nspawn/unix-export/{other}")]).any();
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    run("systemctl", ["reset-failed", &guest.unit()]).any();

    machinist(["read-only", name, "on"]).ok();
    let told = is_told_too(name, "image-read-only");
    assert!(
        told["hints"]
            .to_string()
            .contains(&format!("machinist read-only {name} off")),
        "{told}"
    );
    machinist(["read-only", name, "off"]).ok();

    // A link whose disk is not mounted.
    let away = guest.image().with_file_name(format!(".{name}"));
    fs::rename(guest.image(), &away).unwrap();
    symlink("/no/such/disk/image", guest.image()).unwrap();
    let told = std::panic::catch_unwind(|| {
        let cause = is_told(name, "image-missing", "error", "mount");
        has(&cause, "/no/such/disk/image");
    });
    fs::remove_file(guest.image()).unwrap();
    // With its settings left, it is known; and asked for by its failed unit.
    let gone = std::panic::catch_unwind(|| is_told(name, "image-missing", "error", "machinist create"));
    fs::rename(&away, guest.image()).unwrap();
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    gone.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn a_full_disk_is_told() {
    let _host = shared();
    let guest = Guest::busybox("whyf");
    let name = guest.name.as_str();
    // As this process sees it.
    let there = |options: &str, files: u32| {
        let script = format!(
            "mount --make-rprivate / && mount -t tmpfs -o mode=700,{options} none {MACHINES} && mkdir {MACHINES}/{name} && \
             touch $(seq -f {MACHINES}/{name}/%.0f {files}) && exec machinist why {name} --json"
        );
        let answers = run("unshare", ["--mount", "sh", "-ec", &script]).any().json();
        let all = answers[0]["troubles"].as_array().unwrap().clone();
        all.into_iter()
            .map(|trouble| trouble["code"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let full = there("size=20M", 1);
    assert!(full.contains(&"disk-full".to_owned()), "{full:?}");
    let few = there("size=500M,nr_inodes=100", 94);
    assert!(few.contains(&"inodes-almost-gone".to_owned()), "{few:?}");
    let well = there("size=500M", 1);
    assert!(
        !well
            .iter()
            .any(|code| code.starts_with("disk") || code.starts_with("inodes")),
        "{well:?}"
    );
}

#[test]
fn a_layer_that_is_lost_or_changed_is_told() {
    let _host = shared();
    let (source, clone) = (Guest::busybox("whyl"), Clone::of("whym"));
    let (name, other) = (source.name.as_str(), clone.0.name.as_str());
    fs::write(source.image().join("etc/both"), "first\n").unwrap();
    machinist(["clone", "--linked", name, other]).ok();
    let sealed = layers(name).into_iter().find(|layer| layer.join("sealed").is_symlink());
    let base = sealed.expect("a layer");
    sh("echo more >>\"$1\"", [base.join("tree/etc/both")]).ok();
    is_told_too(other, "layer-changed");
    for guest in [&source, &clone.0] {
        let mount = crate::linked::mount_unit(guest);
        wait_until("it is unmounted", || {
            run("systemctl", ["stop", &mount]).any().status == 0
        });
    }
    let below = "cd /etc/systemd/system; for unit in $(ls | grep -F \"$(systemd-escape -- \"$1\")\"); do
                     systemctl stop \"$unit\" || :; done";
    sh(below, [other]).ok();
    let away = Path::new(LAYERS).with_file_name(format!("{name}.lost"));
    fs::rename(&base, &away).unwrap();
    let told = std::panic::catch_unwind(|| {
        machinist(["start", other]).status(1);
        let cause = is_told(other, "layer-lost", "error", "backup");
        has(&cause, &base.display().to_string());
    });
    fs::rename(&away, &base).unwrap();
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    machinist(["start", other]).ok();
}

#[test]
fn a_quota_that_is_used_up_is_told() {
    let _host = alone();
    let place = Path::new("/var/lib/container");
    let _disk = Disk::btrfs(place);
    sh(
        "btrfs quota enable \"$1\" && btrfs quota rescan -w \"$1\" >/dev/null",
        [place],
    )
    .ok();
    let guest = Guest::new("whyq");
    let name = guest.name.as_str();
    let image = place.join(name);
    sh("btrfs subvolume create \"$1\" >/dev/null", [&image]).ok();
    crate::support::make_busybox_image(&image);
    machinist(["quota", name, "8M"]).ok();
    sh(
        "dd if=/dev/zero of=\"$1/fill\" bs=64k count=200 conv=fsync 2>/dev/null || sync -f \"$1\"",
        [&image],
    )
    .ok();
    let told = is_told_too(name, "quota-exceeded");
    has(&told, "of 8.0M are used");
}
