//! export and import of disk images that are damaged, full, or of others.

use std::fs;
use std::os::unix::fs::FileExt as _;

use crate::create::traces;
use crate::export::Shelf;
use crate::support::{Guest, machinist, run, sh, shared};

#[test]
fn a_disk_image_that_is_no_machine_leaves_nothing() {
    let _host = shared();
    let (guest, other) = (Guest::busybox("eddam"), Guest::new("eddam2"));
    let (name, shelf) = (guest.name.as_str(), Shelf::new(&guest));
    machinist(["limit", name, "tasks=77"]).ok();
    let file = shelf.path("a.raw");
    machinist(["export", name, &file]).ok();
    machinist(["export", name, &file]).status(1).stderr_has("--force");
    let refused = |file: &str, message: &str, hint: &str| {
        let output = machinist(["import", file, &other.name]).status(1);
        assert!(
            output.stderr.contains(message) && output.stderr.contains(hint),
            "{message}, {hint}: {output:?}"
        );
        assert_eq!(traces(&other.name), Vec::<String>::new(), "{message}");
    };
    let bytes = fs::read(&file).unwrap();
    let changed = shelf.path("c.raw");
    let change = |at: usize| {
        sh("cp --sparse=always \"$1\" \"$2\"", [&file, &changed]).ok();
        let image = fs::File::options().write(true).open(&changed).unwrap();
        image.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    };
    let place = |text: &[u8]| bytes.windows(text.len()).position(|window| window == text).unwrap();
    change(place(b"PRETTY_NAME=\"BusyBox"));
    refused(&changed, "the sum of 'rootfs' is", "export the machine anew");
    change(place(b"TasksMax=77"));
    refused(&changed, "50-TasksMax.conf' is", "export the machine anew");
    // The entry of the second partition in the table.
    change(2 * 512 + 128);
    refused(&changed, "checksum", "gdisk");
    fs::write(&changed, &bytes[..bytes.len() / 2]).unwrap();
    refused(&changed, "ends at byte", "hint: ");
    sh("truncate -s 40M \"$1\"; mke2fs -q -F \"$1\"", [&changed]).ok();
    refused(
        &changed,
        "is no machine that `machinist export` wrote",
        "`machinist create NAME ",
    );
    // A full disk, and no mke2fs.
    let script = "mount -t tmpfs -o size=$3 tmpfs \"$2\"; set +e
        machinist export \"$1\" \"$2/a.raw\"; status=$?; ls -A \"$2\"; exit $status";
    for size in ["1M", "2100k"] {
        let words = ["-m", "--", "bash", "-euc", script, "bash", name, &shelf.path(""), size];
        run("unshare", words).status(1).stdout_is("");
    }
    let script = "mount --bind /dev/null \"$(readlink -f \"$(type -P mke2fs)\")\"; machinist export \"$1\" \"$2\"";
    run(
        "unshare",
        ["-m", "--", "bash", "-euc", script, "bash", name, &shelf.path("n.raw")],
    )
    .status(1)
    .stderr_has("e2fsprogs");
    fs::remove_file(&changed).unwrap();
    assert_eq!(shelf.names(), ["a.raw"]);
    assert!(
        !sh("ls -A /var/lib/machines", [""; 0])
            .ok()
            .stdout
            .contains(&format!("survey-{name}"))
    );
}
