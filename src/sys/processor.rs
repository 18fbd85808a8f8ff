//! What processor a program is for, by the head of its file: see elf(5), and binfmt.d(5) for emulators.

use std::fs::{self, File};
use std::io::Read as _;

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

    /// Whether the kernel runs it here, by itself or by an emulator.
    #[must_use]
    pub fn runs_here(self) -> bool {
        match (self, Processor::ours()) {
            (Self::For(theirs), Some(ours)) => ours.runs(theirs) || theirs.is_emulated(),
            (Self::For(_), None) | (Self::Script, _) => true,
            (Self::Other, _) => false,
        }
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

    /// Whether the kernel hands programs for it to an emulator.
    fn is_emulated(self) -> bool {
        let Some((.., qemu)) = self.known() else { return false };
        let entry = fs::read_to_string(format!("/proc/sys/fs/binfmt_misc/qemu-{qemu}"));
        entry.is_ok_and(|entry| entry.starts_with("enabled"))
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
        assert!(Program::from_head(b"#!/bin/sh\n").runs_here());
        for other in [&b""[..], b"hello and more and more and more", b"\x7fELF"] {
            assert_eq!(Program::from_head(other), Program::Other);
            assert!(!Program::from_head(other).runs_here());
        }
        assert!(Program::of(File::open("/proc/self/exe").unwrap()).unwrap().runs_here());
        // The AVR, for which there is no emulator of this kind.
        assert!(!Program::from_head(&head(83, false)).runs_here());
    }
}
