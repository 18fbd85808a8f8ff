//! What an image or a partition has, by what stands at its beginning.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use crate::machine::text::printable;
use crate::sys::loop_mount::Filesystem;

/// How many first bytes are looked at: btrfs has its own 64 KiB behind the beginning.
const PEEK: usize = (64 << 10) + 4096;

/// What begins here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A filesystem that can be mounted.
    Filesystem {
        kind: Filesystem,
        /// Its size in bytes, where it says that.
        size: Option<u64>,
        /// Its label, if it has one.
        label: String,
    },
    /// A filesystem that cannot be mounted by itself, or something else than a filesystem, in words: "a FAT filesystem".
    Other(&'static str),
    /// A disk image in itself.
    Qcow2,
    /// An image of a compact disc.
    Iso,
    /// Nothing that is known.
    Unknown,
}

impl Content {
    /// Looks at a range of an image.
    pub(super) fn of(image: &File, range: &Range<u64>) -> io::Result<Self> {
        Ok(Self::from_first(&first(image, range, PEEK)?))
    }

    pub(super) fn from_first(first: &[u8]) -> Self {
        let has = |at: usize, magic: &[u8]| first.get(at..at + magic.len()) == Some(magic);
        let filesystem = |kind, size, label| Self::Filesystem { kind, size, label };
        if has(0, b"QFI\xfb") {
            return Self::Qcow2;
        }
        if has(0, b"hsqs") {
            return filesystem(Filesystem::Squashfs, u64_at(first, 40), String::new());
        }
        if has(0, b"XFSB") {
            let size = |(block, blocks): (u32, u64)| u64::from(block).checked_mul(blocks);
            let size = u32_be_at(first, 4).zip(u64_be_at(first, 8)).and_then(size);
            return filesystem(Filesystem::Xfs, size, label(first, 108, 12));
        }
        // These have the first kilobyte to themselves, where others may have left something.
        if has(0, b"LUKS\xba\xbe") {
            return Self::Other("encrypted (LUKS)");
        }
        if (0..4).any(|sector| has(sector * 512, b"LABELONE") && has(sector * 512 + 24, b"LVM2 001")) {
            return Self::Other("a physical volume of LVM");
        }
        if has(1024, &[0xe2, 0xe1, 0xf5, 0xe0]) {
            // The kernels of some years open whatever device of the host its table names.
            if u32_at(first, 1024 + 80).unwrap_or(0) & 0x8 != 0 {
                return Self::Other("an erofs filesystem on several disks");
            }
            let bits = first.get(1024 + 12).copied().unwrap_or(0);
            let size = u32_at(first, 1024 + 36).and_then(|blocks| u64::from(blocks).checked_shl(bits.into()));
            return filesystem(Filesystem::Erofs, size, label(first, 1024 + 64, 16));
        }
        if has(0x1_0040, b"_BHRfS_M") {
            // The kernel looks for the others among the disks of the host.
            if u64_at(first, 0x1_0088) != Some(1) {
                return Self::Other("a btrfs filesystem on several disks");
            }
            return filesystem(
                Filesystem::Btrfs,
                u64_at(first, 0x1_0070),
                label(first, 0x1_0000 + 299, 256),
            );
        }
        if has(0x8001, b"CD001") {
            return Self::Iso;
        }
        if has(1024 + 56, &[0x53, 0xef]) {
            return ext(first);
        }
        Self::other(first)
    }

    fn other(first: &[u8]) -> Self {
        let has = |at: usize, magic: &[u8]| first.get(at..at + magic.len()) == Some(magic);
        let known: &[(usize, &[u8], &'static str)] = &[
            (4086, b"SWAPSPACE2", "swap space"),
            (3, b"NTFS    ", "an NTFS filesystem"),
            (3, b"EXFAT   ", "an exFAT filesystem"),
            (3, b"-FVE-FS-", "encrypted (BitLocker)"),
            (1024, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS filesystem"),
            (0, &[0xfc, 0x4e, 0x2b, 0xa9], "part of a RAID array"),
            (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "part of a RAID array"),
            (54, b"FAT1", "a FAT filesystem"),
            (82, b"FAT32", "a FAT filesystem"),
            (
                4096 + 24,
                &[
                    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
                ],
                "a bcachefs filesystem",
            ),
        ];
        known
            .iter()
            .find(|(at, magic, _)| has(*at, magic))
            .map_or(Self::Unknown, |(_, _, what)| Self::Other(what))
    }

    /// For a list of what there is: "ext4 'rootfs'", "a FAT filesystem".
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Filesystem { kind, label, .. } if label.is_empty() => kind.as_str().to_owned(),
            Self::Filesystem { kind, label, .. } => format!("{} '{}'", kind.as_str(), printable(label)),
            Self::Other(what) => (*what).to_owned(),
            Self::Qcow2 => "a qcow2 image".to_owned(),
            Self::Iso => "an ISO image".to_owned(),
            Self::Unknown => "unknown".to_owned(),
        }
    }
}

/// Features of ext filesystems, see `fs/ext4/ext4.h`.
const EXT_HAS_JOURNAL: u32 = 0x4;
const EXT_IS_JOURNAL: u32 = 0x8;

fn ext(first: &[u8]) -> Content {
    let at = |offset: usize| u32_at(first, 1024 + offset).unwrap_or(0);
    let (compatible, incompatible, journal_inode) = (at(0x5c), at(0x60), at(0xe0));
    if incompatible & EXT_IS_JOURNAL != 0 {
        return Content::Other("the journal of an ext4 filesystem");
    }
    // Else the kernel opens whatever device of the host the image says.
    if compatible & EXT_HAS_JOURNAL != 0 && journal_inode == 0 {
        return Content::Other("an ext4 filesystem whose journal is on another disk");
    }
    // The upper half of the number counts if it is a large one.
    let high = if incompatible & 0x80 == 0 { 0 } else { at(0x150) };
    let blocks = (u64::from(high) << 32) | u64::from(at(0x4));
    let block = 1024_u64.checked_shl(at(0x18));
    Content::Filesystem {
        kind: Filesystem::Ext4,
        size: block.and_then(|block| block.checked_mul(blocks)),
        label: label(first, 1024 + 0x78, 16),
    }
}

/// The first bytes of a range of a file, as many as there are up to `count`.
pub(super) fn first(image: &File, range: &Range<u64>, count: usize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(count);
    let mut bytes = vec![0; length.min(count)];
    let mut filled = 0;
    while filled < bytes.len() {
        match image.read_at(&mut bytes[filled..], range.start + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// What a file is that has no disk image, by its first bytes; `None` if that cannot be told.
pub(super) fn looks_like(first: &[u8]) -> Option<&'static str> {
    let text = first.trim_ascii_start();
    if first.get(257..262) == Some(b"ustar") {
        return Some("a tar archive");
    }
    match first {
        [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
        [b'7', b'z', 0xbc, 0xaf, ..] => Some("a 7z archive"),
        [b'!', b'<', b'a', b'r', b'c', b'h', b'>', ..] => Some("a Debian package or ar archive"),
        [b'K', b'D', b'M', b'V', ..] => Some("a VMDK image"),
        [b'c', b'o', b'n', b'e', b'c', b't', b'i', b'x', ..] | [b'v', b'h', b'd', b'x', b'f', b'i', b'l', b'e', ..] => {
            Some("a VHD image")
        }
        [0x7f, b'E', b'L', b'F', ..] => Some("a program"),
        // A page of a server that has something else to say than the file.
        _ if text.starts_with(b"<") => Some("a web page"),
        _ => None,
    }
}

fn label(bytes: &[u8], at: usize, length: usize) -> String {
    let field = bytes.get(at..at + length).unwrap_or_default();
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).trim_end().to_owned()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

pub(super) fn u32_be_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

pub(super) fn u64_be_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(parts: &[(usize, &[u8])]) -> Content {
        let mut first = vec![0; PEEK];
        for (at, bytes) in parts {
            first[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        Content::from_first(&first)
    }

    #[test]
    fn ext_says_its_size_and_label() {
        let parts: &[(usize, &[u8])] = &[
            (1024 + 0x38, &[0x53, 0xef]),
            (1024 + 0x4, &[0, 0x10]),
            (1024 + 0x18, &[2]),
            (1024 + 0x78, b"rootfs"),
        ];
        let found = with(parts);
        assert_eq!(found.describe(), "ext4 'rootfs'");
        assert!(matches!(found, Content::Filesystem { size: Some(size), .. } if size == 4096 * 4096));
        let elsewhere = with(&[parts, &[(1024 + 0x5c, &[4]), (1024 + 0xe4, &[1, 8])]].concat());
        assert!(elsewhere.describe().contains("journal is on another disk"));
        // What would overflow.
        let huge = with(&[parts, &[(1024 + 0x18, &[200])]].concat());
        assert!(matches!(huge, Content::Filesystem { size: None, .. }));
    }

    #[test]
    fn what_cannot_be_mounted_is_named() {
        for (at, magic, what) in [
            (0, &b"LUKS\xba\xbe\x00\x02"[..], "encrypted"),
            (4086, b"SWAPSPACE2", "swap"),
            (82, b"FAT32   ", "FAT"),
            (0, b"QFI\xfb", "qcow2"),
            (0x8001, b"CD001", "ISO"),
            (0x1_0040, b"_BHRfS_M", "several disks"),
        ] {
            assert!(with(&[(at, magic)]).describe().contains(what), "{what}");
        }
        assert!(
            with(&[(512, b"LABELONE"), (536, b"LVM2 001")])
                .describe()
                .contains("LVM")
        );
        assert_eq!(with(&[]), Content::Unknown);
        assert_eq!(Content::from_first(b""), Content::Unknown);
        assert_eq!(looks_like(b"\n <!DOCTYPE html>"), Some("a web page"));
    }
}
