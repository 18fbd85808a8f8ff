//! logs of machines that make their journals to harm whoever reads them.

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::logs::{Follower, entries, field};
use crate::support::{Guest, alone, machinist, sh, shared, wait_until};

const ID: &str = "0123456789abcdef0123456789abcdef";

/// A machine that has never run, and the directory of its journal.
fn with_journal(stem: &str, id: &str) -> (Guest, PathBuf) {
    let guest = Guest::busybox(stem);
    fs::write(guest.image().join("etc/machine-id"), format!("{id}\n")).unwrap();
    let directory = guest.image().join("var/log/journal").join(id);
    fs::create_dir_all(&directory).unwrap();
    (guest, directory)
}

/// Some journal of the host's, whole: one that nobody writes to any more, for what grows while it is read is torn. Of those
/// the one with the most entries: other tests rotate, too.
fn sample() -> Vec<u8> {
    sh(
        "seq 100 | systemd-cat && journalctl --sync && journalctl --rotate",
        [""; 0],
    )
    .ok();
    let id = fs::read_to_string("/etc/machine-id").unwrap();
    let files = fs::read_dir(format!("/var/log/journal/{}", id.trim())).unwrap();
    let archived = files.map(|file| file.unwrap().path()).filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("system@") && name.ends_with(".journal")
    });
    // One may go meanwhile, as room is made for others.
    let whole = archived.filter_map(|path| fs::read(path).ok());
    let entries = |whole: &Vec<u8>| u64::from_le_bytes(whole[152..160].try_into().unwrap());
    whole.max_by_key(entries).expect("a journal")
}

#[track_caller]
fn shown(guest: &Guest) -> crate::support::Output {
    machinist(["logs", &guest.name, "--from", "guest", "-o", "json"])
        .within(Duration::from_secs(60))
        .ok()
}

#[test]
fn files_that_are_none_are_left_alone() {
    let _host = shared();
    let (guest, directory) = with_journal("lnone", ID);
    let host_id = fs::read_to_string("/etc/machine-id").unwrap();
    let of_host = format!("/var/log/journal/{}/system.journal", host_id.trim());
    symlink(&of_host, directory.join("system.journal")).unwrap();
    symlink(
        format!("../../../../../../../..{of_host}"),
        directory.join("user-1.journal"),
    )
    .unwrap();
    let make = "cd \"$1\"; mkfifo a.journal; mknod b.journal c 1 5; mknod c.journal c 1 3; mkdir d.journal
                head -c 4096 /dev/urandom >e.journal; : >f.journal; printf LPKSHHRH >g.journal";
    sh(make, [&directory]).ok();
    let output = shown(&guest);
    assert_eq!(output.stdout, "", "{output:?}");
    let output = output.stderr_has("e.journal: it is no journal");
    let output = output.stderr_has("g.journal: it is no journal");
    // One that systemd-journald is just making has nothing in it.
    assert!(!output.stderr.contains("f.journal"), "{output:?}");

    // The directory itself, and of all places with the host's own ID.
    let (guest, directory) = with_journal("lroot", host_id.trim());
    for target in [
        "/var/log/journal",
        "../../../../../../var/log/journal",
        "/proc/self/root/var/log/journal",
    ] {
        let _ = fs::remove_dir_all(directory.parent().unwrap());
        let _ = fs::remove_file(directory.parent().unwrap());
        symlink(target, directory.parent().unwrap()).unwrap();
        let output = shown(&guest);
        assert_eq!(output.stdout, "", "{target}: {output:?}");
    }
}

#[test]
fn a_file_is_read_once_it_has_begun() {
    let _host = shared();
    let (guest, directory) = with_journal("lnew", ID);
    let (file, mut whole) = (directory.join("system.journal"), sample());
    // As journald has it while it writes: one that is archived never grows.
    whole[16] = 1;
    fs::write(&file, "").unwrap();
    guest.start();
    let follower = Follower::new(&[&guest.name, "--from", "guest", "-n", "all"]);
    let ready = directory.join("ready.journal");
    wait_until("it follows", || {
        fs::write(&ready, "no journal").unwrap();
        follower.said().contains("ready.journal")
    });
    // A header that tells of no entries, then what it will tell of.
    let (header, rest) = whole.split_at(208);
    let mut empty = header.to_vec();
    empty[152..184].fill(0);
    let file = fs::File::options().write(true).open(&file).unwrap();
    for (bytes, at) in [(empty.as_slice(), 0), (rest, 208), (header, 0)] {
        file.write_all_at(bytes, at).unwrap();
    }
    follower.shows("systemd");
    assert!(!follower.said().contains("system.journal"), "{}", follower.said());
    follower.end();
}

#[test]
fn damaged_files_are_read_as_far_as_they_go() {
    let _host = shared();
    let whole = sample();
    let (guest, directory) = with_journal("ldam", ID);
    let file = directory.join("system.journal");
    fs::write(&file, &whole).unwrap();
    let all = entries(&shown(&guest).stdout).len();
    assert!(all > 20, "{all} entries");

    // Cut off.
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let half = shown(&guest);
    assert!(entries(&half.stdout).len() <= all);
    // Of a systemd to come.
    let mut newer = whole.clone();
    newer[13] |= 0x40;
    fs::write(&file, &newer).unwrap();
    let output = shown(&guest);
    assert_eq!(output.stdout, "");
    output.stderr_has("of a newer systemd");
    // As large as can be, and all holes; and one that says so of its entries.
    fs::write(&file, &whole).unwrap();
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(8 << 40)
        .unwrap();
    assert_eq!(entries(&shown(&guest).stdout).len(), all);
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .write_all_at(&u64::MAX.to_le_bytes(), 152)
        .unwrap();
    assert_eq!(entries(&shown(&guest).stdout).len(), all);
    // A list of entries that goes round in circles.
    let array = u64::from_le_bytes(whole[176..184].try_into().unwrap());
    let mut circle = whole.clone();
    let place = usize::try_from(array).unwrap() + 16;
    circle[place..place + 8].copy_from_slice(&array.to_le_bytes());
    fs::write(&file, &circle).unwrap();
    let output = shown(&guest);
    assert!(entries(&output.stdout).len() <= all);
}

#[test]
fn flipped_bits_harm_nobody() {
    let _host = alone();
    let whole = sample();
    let (guest, directory) = with_journal("lflip", ID);
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let mut state = 4711_u64;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap()
    };
    for round in 0..6 {
        for number in 0..20 {
            let mut bytes = whole[..whole.len().min(used + 4096)].to_vec();
            for _ in 0..1 << (number % 10) {
                let at = if next() % 4 == 0 { next() % 272 } else { next() % used };
                bytes[at] = u8::try_from(next() & 255).unwrap();
            }
            // Half of them say that they are what they were.
            if number % 2 == 0 {
                bytes[..16].copy_from_slice(&whole[..16]);
            }
            fs::write(directory.join(format!("{number}.journal")), bytes).unwrap();
        }
        let measure = "python3 - \"$1\" <<'END'
import resource, subprocess, sys
done = subprocess.run(['machinist', 'logs', sys.argv[1], '--from', 'guest', '-o', 'json'], stdout=subprocess.PIPE)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.stdout.count(b'\\n'))
END";
        let output = sh(measure, [&guest.name]).within(Duration::from_secs(120)).ok();
        let numbers: Vec<u64> = output
            .stdout
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        assert_eq!(numbers[0], 0, "round {round}: {output:?}");
        assert!(numbers[1] < 128 << 10, "round {round}: {} KiB", numbers[1]);
        assert!(!output.stderr.contains("killed"), "round {round}: {output:?}");
    }
}

#[test]
fn fields_of_ours_cannot_be_forged() {
    let _host = shared();
    let guest = Guest::debian("lforge");
    let name = guest.name.as_str();
    machinist(["start", "--wait", name]).ok();
    let forge = "printf '%s\\n' MESSAGE=forged MACHINIST_MACHINE=host MACHINIST_SOURCE=supervisor __CURSOR=x A=1 A=2 \
                 | logger --journald";
    machinist(["exec", name, "--", "sh", "-c", forge]).ok();
    let find = || {
        let all = entries(&machinist(["logs", name, "-o", "json"]).ok().stdout);
        all.into_iter().find(|entry| entry["MESSAGE"] == "forged")
    };
    crate::support::wait_until("it is shown", || find().is_some());
    let entry = find().unwrap();
    assert_eq!(
        (field(&entry, "MACHINIST_MACHINE"), field(&entry, "MACHINIST_SOURCE")),
        (name, "guest")
    );
    assert_eq!(entry["A"], serde_json::json!(["1", "2"]));
    machinist([
        "exec",
        name,
        "--",
        "sh",
        "-c",
        "printf 'a\\033]0;title\\007\\nb: c\\n' | logger --journald || logger \"$(printf 'x\\033[2Jy')\"",
    ])
    .ok();
    machinist(["logs", name]).ok().lacks("\x1b");
}

#[test]
fn many_files_are_read_the_newest_first() {
    let _host = shared();
    let whole = sample();
    let (guest, directory) = with_journal("lmany", ID);
    let first: &Path = &directory.join("0.journal");
    fs::write(first, &whole).unwrap();
    sh(
        "cd \"$1\"; for i in $(seq 300); do ln 0.journal \"$i.journal\"; done",
        [&directory],
    )
    .ok();
    // The same file by other names is read once.
    let all = entries(&shown(&guest).stdout).len();
    let alone = {
        let (guest, directory) = with_journal("lone", ID);
        fs::write(directory.join("0.journal"), &whole).unwrap();
        entries(&shown(&guest).stdout).len()
    };
    assert_eq!(all, alone);
    sh(
        "cd \"$1\"; rm ?*.journal; for i in $(seq 300); do printf LPKS >\"$i.journal\"; done",
        [&directory],
    )
    .ok();
    shown(&guest).stderr_has("of the oldest files of its journal are left out");
}
