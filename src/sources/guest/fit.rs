//! Whether a tree boots here at all: told before the first start fails.

use std::fs::File;
use std::io::Read as _;

use super::Init;
use crate::machine::OsRelease;
use crate::machine::text::printable;
use crate::sys::files::Root;
use crate::sys::guest::os_release;

/// The beginning of a program, see elf(5).
const MAGIC: &[u8] = b"\x7fELF";
/// How much of it tells for what processor it is.
const HEAD: usize = 20;

/// Processors by their number in elf(5), with what Debian calls them, and QEMU.
const PROCESSORS: [(u16, &str, &str); 9] = [
    (3, "i386", "i386"),
    (8, "mips", "mips"),
    (20, "powerpc", "ppc"),
    (21, "ppc64el", "ppc64le"),
    (22, "s390x", "s390x"),
    (40, "armhf", "arm"),
    (62, "amd64", "x86_64"),
    (183, "arm64", "aarch64"),
    (243, "riscv64", "riscv64"),
];

/// What of a tree does not boot here, in the user's words.
pub(super) fn misfits(root: &Root, init: &Init) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(release) = os_release(root).filter(OsRelease::lacks_cgroup_v2) {
        notes.push(format!(
            "it does not boot here: the systemd of {} {} knows nothing of cgroup v2",
            printable(&release.id),
            printable(release.version().unwrap_or_default())
        ));
    }
    let programs: &[&str] = match init {
        Init::Systemd => &["usr/lib/systemd/systemd", "lib/systemd/systemd"],
        _ => &["sbin/init"],
    };
    let found = programs.iter().find_map(|program| root.resolve(program).ok());
    let Some(theirs) = found.and_then(|path| machine_of_file(root.open_file(path).ok()?)) else {
        return notes;
    };
    let ours = File::open("/proc/self/exe").ok().and_then(machine_of_file);
    if ours.is_none_or(|ours| runs(ours, theirs)) {
        return notes;
    }
    let known = PROCESSORS.iter().find(|(number, ..)| *number == theirs);
    let (debian, qemu) = known.map_or(("another processor", "its processor"), |(_, debian, qemu)| {
        (debian, qemu)
    });
    if !emulated(qemu) {
        notes.push(format!(
            "it does not start here: its programs are for {debian}, which needs qemu-user-static and binfmt-support (in Debian \
             `apt install qemu-user-static binfmt-support`)"
        ));
    }
    notes
}

fn machine_of_file(file: File) -> Option<u16> {
    let mut head = Vec::new();
    file.take(HEAD as u64).read_to_end(&mut head).ok()?;
    machine_of(&head)
}

/// `e_machine` of a program, by its byte order.
fn machine_of(program: &[u8]) -> Option<u16> {
    let head = program.get(..HEAD).filter(|head| head.starts_with(MAGIC))?;
    let machine = [head[18], head[19]];
    Some(if head[5] == 2 {
        u16::from_be_bytes(machine)
    } else {
        u16::from_le_bytes(machine)
    })
}

/// Whether a processor runs what is for another: its own smaller brother.
fn runs(ours: u16, theirs: u16) -> bool {
    ours == theirs || matches!((ours, theirs), (62, 3) | (183, 40))
}

/// Whether the kernel hands such programs to an emulator, see binfmt.d(5).
fn emulated(qemu: &str) -> bool {
    let entry = std::fs::read_to_string(format!("/proc/sys/fs/binfmt_misc/qemu-{qemu}"));
    entry.is_ok_and(|entry| entry.starts_with("enabled"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_in_their_byte_order() {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(MAGIC);
        head[18] = 243;
        assert_eq!(machine_of(&head), Some(243));
        (head[5], head[18], head[19]) = (2, 0, 22);
        assert_eq!(machine_of(&head), Some(22));
        assert_eq!(machine_of(b"#!/bin/sh\nexec true and more"), None);
        assert_eq!(machine_of(b"\x7fELF"), None);
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(runs(machine_of(&own).unwrap(), machine_of(&own).unwrap()) && !runs(62, 183));
    }
}
