//! What processor a program is for, by the head of its file: see elf(5), and binfmt.d(5) for emulators.

use std::fs::{self, File};
use std::io::Read as _;

use super::files::Root;

/// What an emulator comes with. The flag F, without which the kernel would look for it inside, Debian 12 has only there.
pub const PACKAGES: &str = "package qemu-user-static (Debian 12) or qemu-user-binfmt (Debian 13 and later)";
/// Where the kernel tells what it hands programs to, see its own documentation: admin-guide/binfmt-misc.
const REGISTERED: &str = "/proc/sys/fs/binfmt_misc";

/// The beginning of a program.
const MAGIC: &[u8] = b"\x7fELF";
/// How much of a file tells for what processor it is.
const HEAD: usize = 20;
/// Where in it its byte order is, and the value of big endian.
const ORDER: (usize, u8) = (5, 2);

/// `e_machine` and whether it is big endian, with what Debian calls the architecture, and QEMU.
const KNOWN: [(u16, bool, &str, &str); 12] = [
    (3, false, "i386", "i386"),
    (8, true, "mips", "mips"),
    (8, false, "mipsel", "mipsel"),
    (20, true, "powerpc", "ppc"),
    (21, true, "ppc64", "ppc64"),
    (21, false, "ppc64el", "ppc64le"),
    (22, true, "s390x", "s390x"),
    (40, false, "armhf", "arm"),
    (62, false, "amd64", "x86_64"),
    (183, false, "arm64", "aarch64"),
    (243, false, "riscv64", "riscv64"),
    (258, false, "loong64", "loongarch64"),
];

/// A kind of processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    number: u16,
    is_big_endian: bool,
}

/// What a file is for whoever runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// For a processor.
    For(Processor),
    /// It names in its first line what runs it.
    Script,
    /// Neither.
    Other,
}

impl Program {
    /// Reads the head of a file.
    pub fn of(file: File) -> std::io::Result<Self> {
        let mut head = Vec::new();
        file.take(HEAD as u64).read_to_end(&mut head)?;
        Ok(Self::from_head(&head))
    }

    fn from_head(head: &[u8]) -> Self {
        match Processor::from_head(head) {
            Some(processor) => Self::For(processor),
            None if head.starts_with(b"#!") => Self::Script,
            None => Self::Other,
        }
    }

    /// Whether the kernel runs it in a machine of this tree, by itself or by an emulator.
    #[must_use]
    pub fn runs_in(self, root: &Root) -> bool {
        match (self, Processor::ours()) {
            (Self::For(theirs), Some(ours)) => ours.runs(theirs) || theirs.is_emulated_in(root),
            (Self::For(_), None) | (Self::Script, _) => true,
            (Self::Other, _) => false,
        }
    }
}

/// What the kernel hands programs for another processor to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulator {
    /// Where it is.
    path: String,
    /// Whether the kernel has it open (flag F); otherwise it is looked for by whoever runs such a program, in its own tree.
    is_open: bool,
}

impl Emulator {
    /// By QEMU's name of the processor; `None` if there is none, or it is switched off.
    #[must_use]
    pub fn of(qemu: &str) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("{REGISTERED}/qemu-{qemu}")).ok()?)
    }

    fn parse(entry: &str) -> Option<Self> {
        let field = |name: &str| entry.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        (entry.lines().next() == Some("enabled")).then_some(())?;
        Some(Self {
            path: field("interpreter ")?.to_owned(),
            is_open: field("flags:").is_some_and(|flags| flags.contains('F')),
        })
    }

    /// Whether it is found in any tree.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.is_open
    }
}

impl Processor {
    /// That of this program.
    #[must_use]
    pub fn ours() -> Option<Self> {
        match Program::of(File::open("/proc/self/exe").ok()?) {
            Ok(Program::For(processor)) => Some(processor),
            _ => None,
        }
    }

    fn from_head(head: &[u8]) -> Option<Self> {
        let head = head.get(..HEAD).filter(|head| head.starts_with(MAGIC))?;
        let (number, is_big_endian) = ([head[18], head[19]], head[ORDER.0] == ORDER.1);
        let number = if is_big_endian {
            u16::from_be_bytes(number)
        } else {
            u16::from_le_bytes(number)
        };
        Some(Self { number, is_big_endian })
    }

    /// Whether it runs what is for another: that of its smaller brother.
    fn runs(self, other: Self) -> bool {
        self == other || (!other.is_big_endian && [(62, 3), (183, 40)].contains(&(self.number, other.number)))
    }

    /// Whether the kernel hands programs for it to an emulator that it finds in this tree.
    fn is_emulated_in(self, root: &Root) -> bool {
        let emulator = self.known().and_then(|(.., qemu)| Emulator::of(qemu));
        emulator.is_some_and(|emulator| emulator.is_open || root.is_executable(&emulator.path) == Some(true))
    }

    /// What is missing for programs that do not run here.
    #[must_use]
    pub fn is_missing(self) -> String {
        let instead = match self.known() {
            Some(_) => format!("which needs an emulator: {PACKAGES}"),
            None => "which nothing here runs".to_owned(),
        };
        format!("it does not start here: its programs are for {self}, {instead}")
    }

    fn known(self) -> Option<&'static (u16, bool, &'static str, &'static str)> {
        KNOWN
            .iter()
            .find(|known| (known.0, known.1) == (self.number, self.is_big_endian))
    }
}

/// As Debian calls the architecture.
impl std::fmt::Display for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.known() {
            Some((_, _, debian, _)) => f.write_str(debian),
            None => write!(f, "processors of ELF's number {}", self.number),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn head(number: u8, is_big_endian: bool) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(MAGIC);
        (head[5], head[if is_big_endian { 19 } else { 18 }]) = (1 + u8::from(is_big_endian), number);
        head
    }

    #[test]
    fn processors_are_told_by_number_and_order() {
        let processor = |number, is_big_endian| Processor::from_head(&head(number, is_big_endian)).unwrap();
        assert_eq!(processor(62, false).to_string(), "amd64");
        assert_eq!(processor(22, true).to_string(), "s390x");
        assert_eq!(processor(21, true).to_string(), "ppc64");
        assert_eq!(processor(83, false).to_string(), "processors of ELF's number 83");
        assert!(processor(62, false).runs(processor(3, false)) && !processor(62, false).runs(processor(183, false)));
        assert!(processor(183, false).runs(processor(40, false)) && !processor(183, false).runs(processor(62, false)));
        assert!(!processor(62, false).runs(processor(62, true)));
    }

    #[test]
    fn what_is_no_program_does_not_run() {
        let root = Root::open(Path::new("/")).unwrap();
        assert!(Program::from_head(b"#!/bin/sh\n").runs_in(&root));
        for other in [&b""[..], b"hello and more and more and more", b"\x7fELF"] {
            assert_eq!(Program::from_head(other), Program::Other);
            assert!(!Program::from_head(other).runs_in(&root));
        }
        assert!(
            Program::of(File::open("/proc/self/exe").unwrap())
                .unwrap()
                .runs_in(&root)
        );
        // The AVR, for which there is no emulator of this kind.
        assert!(!Program::from_head(&head(83, false)).runs_in(&root));
    }

    #[test]
    fn emulators_are_read_as_the_kernel_tells_them() {
        let entry = |state: &str, flags: &str| {
            format!(
                "{state}\ninterpreter /usr/bin/qemu-riscv64\nflags: {flags}\noffset 0\nmagic 7f454c46\nmask ffffffff\n"
            )
        };
        let emulator = Emulator::parse(&entry("enabled", "POCF")).unwrap();
        assert!(emulator.is_everywhere() && emulator.path == "/usr/bin/qemu-riscv64");
        assert!(!Emulator::parse(&entry("enabled", "OC")).unwrap().is_everywhere());
        assert_eq!(Emulator::parse(&entry("disabled", "F")), None);
        assert_eq!(Emulator::parse(""), None);
    }
}
