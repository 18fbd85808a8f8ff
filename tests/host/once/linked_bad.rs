//! clone --linked and --flatten on full disks, killed, two at once, and layers that were lost.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use crate::clone::{Clone, read, swept};
use crate::linked::{LAYERS, layers, mount_unit, mounted_on, traces};
use crate::support::{Guest, There, agree, alone, machinist, shared, unit_property, wait_until};

/// Takes all room of the host's disk but some, until it is dropped: what can be had, not what is said to be free, which is more.
struct Filler(PathBuf);

impl Filler {
    #[track_caller]
    fn leaving(room: u64) -> Self {
        let path = PathBuf::from("/var/lib/machinist/filler");
        let file = fs::File::create(&path).expect("making a file");
        let filler = Self(path);
        let (mut end, mut step) = (0, 1 << 30);
        while step >= 4096 {
            match fallocate(&file, FallocateFlags::empty(), end, step) {
                Ok(()) => end += step,
                Err(_) => step /= 2,
            }
        }
        let end = file.metadata().expect("looking at a file").len();
        file.set_len(end - room).expect("giving some of it back");
        filler
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    // The disk of all.
    let _host = alone();
    let source = Guest::busybox("lfa");
    let name = source.name.as_str();
    fs::write(source.image().join("etc/mine"), "mine\n").unwrap();
    fs::create_dir_all("/var/lib/machinist").unwrap();
    assert_eq!(
        fs::metadata("/var/lib/machinist").unwrap().dev(),
        fs::metadata(source.image()).unwrap().dev()
    );
    let (clone, mut refused) = (Clone::of("lfb"), 0);
    let other = clone.0.name.as_str();
    for room in [0, 8, 16, 32, 64, 128, 4096] {
        let filler = Filler::leaving(room << 10);
        let output = machinist(["clone", "--linked", name, other]).any();
        drop(filler);
        if output.status == 0 {
            machinist(["remove", "-y", other]).ok();
        } else {
            refused += 1;
            assert_eq!(output.status, 1, "{output:?}");
            output.stderr_has("No space left on device").stderr_has("hint: ");
            swept(other);
            agree(other, There::Nowhere);
        }
        assert_eq!((traces(other), layers(other)), (String::new(), vec![]), "{room} KiB");
        machinist(["run", name, "--", "cat", "/etc/mine"])
            .ok()
            .stdout_is("mine\n");
    }
    assert!(refused >= 1, "there was always room");
    machinist(["clone", "--linked", name, other]).ok();
    let size = 3 << 20;
    fs::write(clone.0.image().join("etc/much"), vec![7; size]).unwrap();
    for room in [0, 256, 2048] {
        let filler = Filler::leaving(room << 10);
        machinist(["clone", "--flatten", other])
            .status(1)
            .stderr_has("No space left on device")
            .stderr_has("hint: ");
        drop(filler);
        swept(other);
        assert_eq!(mounted_on(&clone.0.image()), "overlay", "{room} KiB");
        assert_eq!(read(clone.0.image().join("etc/mine")), "mine\n");
    }
    machinist(["clone", "--flatten", other]).ok();
    assert_eq!(mounted_on(&clone.0.image()), "");
    assert_eq!(
        fs::metadata(clone.0.image().join("etc/much")).unwrap().len(),
        size as u64
    );
    machinist(["remove", "-y", other, name]).ok();
    assert_eq!((layers(name), layers(other)), (vec![], vec![]));
}

#[test]
fn a_flattening_killed_before_each_step_is_done_or_not() {
    let _host = shared();
    let source = Guest::busybox("lga");
    let name = source.name.as_str();
    let clone = Clone::of("lgb");
    let (clone, other) = (&clone.0, clone.0.name.as_str());
    let (mut linked, mut plain) = (0, 0);
    loop {
        if !clone.image().exists() {
            machinist(["clone", "--linked", name, other]).ok();
            fs::write(clone.image().join("etc/mine"), "mine\n").unwrap();
        }
        let output = machinist(["clone", "--flatten", other])
            .env("MACHINIST_DIE_AT_STEP", (linked + plain).to_string())
            .any();
        if output.status == 0 {
            break;
        }
        assert_eq!(output.status, 128 + 9, "{output:?}");
        swept(other);
        machinist(["run", other, "--", "cat", "/etc/mine"])
            .ok()
            .stdout_is("mine\n");
        if mounted_on(&clone.image()) == "overlay" {
            linked += 1;
        } else {
            plain += 1;
            machinist(["clone", "--flatten", other]).ok();
            assert_eq!((traces(other).contains(".mount"), layers(other)), (false, vec![]));
            machinist(["remove", "-y", other]).ok();
            assert_eq!(traces(other), "");
        }
    }
    assert!(linked >= 2 && plain >= 1, "{linked} and {plain} steps");
    assert_eq!((mounted_on(&clone.image()), layers(other)), (String::new(), vec![]));
    machinist(["remove", "-y", name, other]).ok();
    assert_eq!(layers(name), Vec::<PathBuf>::new());
}

#[test]
fn a_lost_layer_is_told() {
    let _host = shared();
    let source = Guest::busybox("lha");
    let name = source.name.as_str();
    let clone = Clone::of("lhb");
    let (clone, other) = (&clone.0, clone.0.name.as_str());
    machinist(["clone", "--linked", name, other]).ok();
    let base = layers(name).into_iter().find(|layer| !layer.join("below").exists());
    let base = base.expect("the layer that both lie on");
    let away = Path::new(LAYERS).with_file_name(format!("{name}.lost"));
    for guest in [&source, clone] {
        wait_until("it is unmounted", || {
            crate::support::run("systemctl", ["stop", &mount_unit(guest)])
                .any()
                .status
                == 0
        });
    }
    crate::support::sh(
        "cd /etc/systemd/system; for unit in $(ls | grep -F \"$(systemd-escape -- \"$1\")\"); do
            systemctl stop \"$unit\" || :; done",
        [other],
    )
    .ok();
    fs::rename(&base, &away).unwrap();
    let layer = base.file_name().unwrap().to_string_lossy().into_owned();
    machinist(["start", other])
        .status(1)
        .stderr_has(&layer)
        .stderr_has("is missing")
        .stderr_has("hint: ");
    assert_eq!(unit_property(&clone.unit(), "ActiveState"), "inactive");
    // Who looks at it is not told that nothing is there, and nothing is taken for rubbish.
    machinist(["clone", other, "lhc"]).status(1).stderr_has(&layer);
    machinist(["clone", "--flatten", other]).status(1).stderr_has(&layer);
    machinist(["clean"]).any();
    assert_eq!(layers(other).len(), 1);
    // It is brought back from a backup.
    fs::rename(&away, &base).unwrap();
    machinist(["start", other]).ok();
    machinist(["stop", other]).ok();
    // It can be removed without.
    wait_until("it is unmounted", || {
        crate::support::run("systemctl", ["stop", &mount_unit(clone)])
            .any()
            .status
            == 0
    });
    fs::remove_dir_all(&base).unwrap();
    machinist(["remove", "-y", other, name]).ok();
    for name in [name, other] {
        agree(name, There::Nowhere);
        assert_eq!((traces(name), layers(name)), (String::new(), vec![]));
    }
}

#[test]
fn two_at_once_each_make_theirs() {
    let _host = shared();
    let source = Guest::busybox("lia");
    let name = source.name.as_str();
    fs::write(source.image().join("etc/mine"), "mine\n").unwrap();
    let clones: Vec<Clone> = (0..6).map(|_| Clone::of("lib")).collect();
    let running: Vec<_> = clones
        .iter()
        .map(|clone| machinist(["clone", "--linked", name, &clone.0.name]).spawn())
        .collect();
    for running in running {
        assert_eq!(running.wait().status, 0);
    }
    for clone in &clones {
        assert_eq!(read(clone.0.image().join("etc/mine")), "mine\n");
        assert_eq!(mounted_on(&clone.0.image()), "overlay");
    }
    // All lie on what it was, but for those on top; nothing was changed in between that would have to be kept.
    assert_eq!(layers(name).len(), 2);
    let going: Vec<_> = clones[..3]
        .iter()
        .flat_map(|clone| {
            [
                machinist(["clone", "--flatten", &clone.0.name]).spawn(),
                machinist(["remove", "-y", &clone.0.name]).spawn(),
            ]
        })
        .collect();
    for running in going {
        // One of the two comes first: what is gone cannot be flattened.
        let output = running.wait();
        assert!([0, 1, 3].contains(&output.status), "{output:?}");
    }
    for clone in &clones[..3] {
        agree(&clone.0.name, There::Nowhere);
        assert_eq!(traces(&clone.0.name), "");
    }
    for clone in &clones[3..] {
        machinist(["remove", "-y", &clone.0.name]).ok();
    }
    machinist(["remove", "-y", name]).ok();
    assert_eq!(layers(name), Vec::<PathBuf>::new());
}
