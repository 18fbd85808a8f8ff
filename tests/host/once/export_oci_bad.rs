//! export and import of images in OCI layouts that are damaged, taken, full, or of others.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::create::traces;
use crate::export::Shelf;
use crate::oci::images;
use crate::support::{Guest, machinist, run, sh, shared};

#[test]
fn a_damaged_image_is_refused_and_leaves_nothing() {
    let _host = shared();
    let (guest, other) = (Guest::busybox("eodam"), Guest::new("eodam2"));
    let shelf = Shelf::new(&guest);
    machinist(["limit", &guest.name, "tasks=77"]).ok();
    let layout = shelf.path("l");
    let image = format!("oci:{layout}:web");
    machinist(["export", &guest.name, &image]).ok();
    let refused = |image: &str, message: &str, hint: &str| {
        let output = machinist(["import", image, &other.name]).status(1);
        assert!(
            output.stderr.contains(message) && output.stderr.contains(hint),
            "{message}, {hint}: {output:?}"
        );
        assert_eq!(traces(&other.name), Vec::<String>::new(), "{message}");
    };
    let blobs: Vec<PathBuf> = fs::read_dir(format!("{layout}/blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let mut damaged = 0;
    for blob in blobs {
        let whole = fs::read(&blob).unwrap();
        // It stands for nothing.
        if whole == b"{}" {
            continue;
        }
        damaged += 1;
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&blob, &bytes).unwrap();
        refused(&image, "error: ", "hint: ");
        fs::write(&blob, &whole[..middle]).unwrap();
        refused(&image, "bytes, and not the", "copy the image anew");
        fs::remove_file(&blob).unwrap();
        refused(&image, "is missing", "copy the image anew");
        fs::write(&blob, &whole).unwrap();
    }
    assert_eq!(damaged, 5);
    // Without what is said of it, it is any image; as those that others made.
    let index = format!("{layout}/index.json");
    let whole = fs::read_to_string(&index).unwrap();
    fs::write(&index, whole.replace("vnd.machinist.machine", "vnd.other.machine")).unwrap();
    refused(&image, "is no machine that", &format!("machinist create NAME {image}"));
    fs::write(&index, &whole).unwrap();
    let foreign = format!("oci:{}/images:app", images().display());
    refused(
        &foreign,
        "is no machine that",
        &format!("machinist create NAME {foreign}"),
    );
    refused(&format!("oci:{layout}:none"), "no image 'none'", "oci:DIR:TAG");
    machinist(["import", &image, &other.name]).ok();
}

/// All files of a layout, with their sums.
fn sums(layout: &str) -> String {
    sh("cd \"$1\" && find . -type f -exec sha256sum {} + | sort -k2", [layout])
        .ok()
        .stdout
}

#[test]
fn an_image_that_cannot_be_written_leaves_the_layout_as_it_was() {
    let _host = shared();
    let (guest, other) = (Guest::busybox("eoref"), Guest::new("eoref2"));
    let (name, shelf) = (guest.name.as_str(), Shelf::new(&guest));
    let layout = shelf.path("l");
    let image = format!("oci:{layout}:web");
    machinist(["export", name, &image]).ok();
    let before = sums(&layout);
    machinist(["export", name, &image])
        .status(1)
        .stderr_has("has an image 'web' already")
        .stderr_has("--force");
    for (to, status, message) in [
        (format!("oci:{layout}:a/b"), 2, "a tag has letters"),
        ("oci:".to_owned(), 2, "it names no directory"),
        (format!("oci:{}", shelf.path("none/l")), 1, "No such file"),
        ("oci:/etc".to_owned(), 1, "is no OCI layout"),
        ("oci:/etc/passwd".to_owned(), 1, "is no directory"),
    ] {
        machinist(["export", name, &to]).status(status).stderr_has(message);
    }
    machinist(["export", name, &format!("oci:{layout}:x"), "--format", "tar.xz"])
        .status(2)
        .stderr_has("compressed with xz");
    let hidden = guest.image().join(".wh.etc");
    fs::write(&hidden, "").unwrap();
    machinist(["export", name, &format!("oci:{layout}:x")])
        .status(1)
        .stderr_has("an image cannot have");
    fs::remove_file(&hidden).unwrap();
    assert_eq!(sums(&layout), before);
    // Blobs of a stranger's layout that lead elsewhere stay in it.
    let hostile = shelf.path("h");
    sh(
        "umoci init --layout \"$1\"; rm -r \"$1/blobs\"; ln -s /etc \"$1/blobs\"",
        [&hostile],
    )
    .ok();
    machinist(["export", name, &format!("oci:{hostile}:x")]).any();
    assert!(!Path::new("/etc/sha256").exists());
    // A full disk.
    let script = "mount -t tmpfs -o size=400k tmpfs \"$2\"; umoci init --layout \"$2/l\"; set +e
        machinist export \"$1\" \"oci:$2/n\"; machinist export \"$1\" \"oci:$2/l:web\"; status=$?
        ls -A \"$2\"; find \"$2/l\" -type f -printf '%P\n' | sort; exit $status";
    run(
        "unshare",
        ["-m", "--", "bash", "-euc", script, "bash", name, &shelf.path("")],
    )
    .status(1)
    .stderr_has("No space left on device")
    .stdout_is("l\nindex.json\noci-layout\n");
    // Killed at any moment, it leaves a layout, and the image that was there.
    for step in 0..8 {
        fs::write(guest.image().join("etc/step"), step.to_string()).unwrap();
        let mut exporting = machinist(["export", "--force", name, &image]).spawn();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(25 * step) && !exporting.has_ended() {}
        exporting.signal(Signal::SIGKILL);
        exporting.wait();
        run("umoci", ["ls", "--layout", &layout]).ok().stdout_is("web\n");
        machinist(["import", "--dry-run", &image, &other.name]).ok();
    }
    // What it may leave goes with the next one.
    let left = Path::new(&layout).join("blobs/sha256/.#machinist-0123456789abcdef");
    fs::write(&left, "").unwrap();
    machinist(["export", "--force", name, &image]).ok();
    assert!(!left.exists());
    run("umoci", ["gc", "--layout", &layout]).ok();
    assert_eq!(sums(&layout).lines().count(), 8, "{}", sums(&layout));
    machinist(["import", &image, &other.name]).ok();
    assert_eq!(fs::read_to_string(other.image().join("etc/step")).unwrap(), "7");
}

#[test]
fn whoever_else_uses_a_layout_holds_up_nothing_and_loses_nothing() {
    let _host = shared();
    let (one, two) = (Guest::busybox("eoone"), Guest::busybox("eotwo"));
    let shelf = Shelf::new(&one);
    let layout = shelf.path("l");
    // Of two that make it one adds to what the other has made.
    let both = "machinist export \"$1\" \"oci:$3:one\" & machinist export \"$2\" \"oci:$3:two\"; wait $!
        umoci ls --layout \"$3\" | sort";
    sh(both, [&one.name, &two.name, &layout]).ok().stdout_is("one\ntwo\n");
    // A blob that others may have, too, and a lock that anybody could take.
    let shared = "empty=$1/blobs/sha256/$(printf {} | sha256sum | cut -c -64); chmod 640 \"$empty\"
        flock \"$1\" machinist export \"$2\" \"oci:$1:three\"; stat -c %a \"$empty\"";
    sh(shared, [&layout, &one.name]).ok().stdout_has("640\n");
    let nowhere = shelf.path("nowhere");
    std::os::unix::fs::symlink("none", &nowhere).unwrap();
    machinist(["export", &one.name, &format!("oci:{nowhere}")])
        .status(1)
        .stderr_has("is a link to nothing");
}
