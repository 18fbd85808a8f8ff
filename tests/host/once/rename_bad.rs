//! rename with bad input, failures and kills.

use std::fs;
use std::path::Path;

use crate::rename::{forget, is_all_of, known};
use crate::support::{Guest, There, agree, alone, machinist, make_busybox_image, run, sh, shared};

#[test]
fn killed_before_each_step_it_is_done_or_not() {
    // Another's sweep would do it before we look.
    let _host = alone();
    let (guest, after) = known("rdie");
    let new = Guest::new("rdie2");
    let (name, other) = (guest.name.as_str(), new.name.as_str());
    let (mut old, mut renamed) = (0, 0);
    loop {
        let step = old + renamed;
        let output = machinist(["rename", name, other])
            .env("MACHINIST_DIE_AT_STEP", step.to_string())
            .any();
        if output.status == 0 {
            break;
        }
        assert_eq!(output.status, 128 + 9, "step {step}\n{output:?}");
        assert_ne!(guest.image().exists(), new.image().exists(), "step {step}");
        if step == 9 {
            // A sweep may be killed, too.
            machinist(["clean"]).env("MACHINIST_DIE_AT_STEP", "0").any();
        }
        machinist(["clean"]).ok();
        if guest.image().exists() {
            is_all_of(&guest, &new, &after);
            old += 1;
        } else {
            is_all_of(&new, &guest, &after);
            renamed += 1;
            machinist(["rename", other, name]).ok();
        }
    }
    assert!(old > 5 && renamed > 5, "{old} and {renamed} steps");
    is_all_of(&new, &guest, &after);
    let hidden = sh("ls -A /var/lib/machines | grep -c machinist-rename || :", [""; 0]).ok();
    assert_eq!(hidden.stdout, "0\n");
    forget(&[&guest, &new]);
}

#[test]
fn what_fails_in_the_middle_is_undone() {
    let _host = shared();
    let (guest, after) = known("rfail");
    let new = Guest::new("rfail2");
    let (name, other) = (guest.name.as_str(), new.name.as_str());
    // The image has the new name by then.
    run("chattr", ["+i", &guest.settings().to_string_lossy()]).ok();
    machinist(["rename", name, other])
        .status(1)
        .stderr_has(&format!("cannot remove '/etc/systemd/nspawn/{name}.nspawn'"))
        .lacks("cannot undo");
    run("chattr", ["-i", &guest.settings().to_string_lossy()]).ok();
    is_all_of(&guest, &new, &after);
    forget(&[&guest, &new]);
}

#[test]
fn what_cannot_be_renamed_is_refused() {
    let _host = shared();
    let (guest, there, new) = (Guest::busybox("rbad"), Guest::busybox("rbad2"), Guest::new("rbad3"));
    let (name, other) = (guest.name.as_str(), new.name.as_str());
    let refused = |status: i32, from: &str, to: &str| {
        let output = machinist(["rename", "--", from, to]).status(status);
        assert!(!new.image().exists() && output.stdout.is_empty(), "{output:?}");
        output
    };
    refused(2, name, name).stderr_has(&format!("machine '{name}' has that name already"));
    refused(2, name, "a_b").stderr_has("contains '_'");
    refused(3, "no-such-machine", other).fails_with("no machine or image 'no-such-machine'", "machinist images");
    let taken = format!("image '/var/lib/machines/{}' exists already", there.name);
    refused(1, name, &there.name).stderr_has(&taken);
    new.write_settings("[Exec]\n");
    refused(1, name, other).stderr_has(&format!(
        "settings file '/etc/systemd/nspawn/{other}.nspawn' exists already"
    ));
    fs::remove_file(new.settings()).unwrap();
    guest.start();
    refused(1, name, other).fails_with(
        &format!("machine '{name}' is running"),
        &format!("machinist stop {name}"),
    );
    machinist(["stop", name]).ok();
    let nobody = ["-u", "nobody", "--", "machinist", "rename", name, other];
    run("runuser", nobody).status(4).fails_with("rename needs root", "sudo");
    let vendor = Path::new("/usr/lib/machines").join(other);
    make_busybox_image(&vendor);
    machinist(["rename", other, "other-name"]).status(1).fails_with(
        &format!("cannot rename image '/usr/lib/machines/{other}': what lies below /usr belongs to the system"),
        "machinist clone",
    );
    fs::remove_dir_all(vendor).unwrap();
    let begin = |to: &str| machinist(["rename", name, to]).spawn();
    let (one, two) = (begin(other), begin("rbad-x"));
    let mut outputs = [one.wait(), two.wait()];
    outputs.sort_by_key(|output| output.status);
    assert_eq!(outputs[0].status, 0, "{outputs:?}");
    assert_ne!(outputs[1].status, 0, "{outputs:?}");
    agree(name, There::Nowhere);
    drop(Guest::named("rbad-x"));
}
