//! The squashfs image of a live system on an ISO image, see ECMA-119: `live/*.squashfs`, as Debian's live-boot has it,
//! `casper/*.squashfs`, as Ubuntu's casper has it, or `LiveOS/squashfs.img`, as dracut's dmsquash-live has it.
//!
//! Read here, as many kernels have no iso9660; of it no more than the list of two directories is needed.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::content::{first, u32_at};

/// Bytes of a sector.
const SECTOR: u64 = 2048;

/// Bytes of a directory that are read.
const MAX_DIRECTORY: u64 = 1 << 20;

/// The most of them that are looked at.
const MOST: usize = 64;

/// Where live systems are, and what they are called there, if that is fixed.
const PLACES: [(&str, Option<&str>); 3] = [("live", None), ("casper", None), ("LiveOS", Some("squashfs.img"))];

/// An image of the filesystem of a live system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) name: String,
    pub(super) range: Range<u64>,
}

/// All of them, sorted by name: those of the first place that has any.
pub(super) fn find(image: &File, size: u64) -> io::Result<Vec<Live>> {
    // The primary descriptor has the record of the root directory.
    let descriptor = first(image, &(16 * SECTOR..size), 2048)?;
    let Some(root) = descriptor.get(156..190).and_then(Record::parse) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let directories = list(image, &root.range, size)?;
    for (place, called) in PLACES {
        // There is one: a hostile image may have thousands, which are the same.
        let directory = directories
            .iter()
            .find(|it| it.is_directory && it.name.eq_ignore_ascii_case(place));
        let Some(directory) = directory.filter(|_| found.is_empty()) else {
            continue;
        };
        let mut files = list(image, &directory.range, size)?;
        files.retain(|file| !file.is_directory);
        // A file of more than 4 GiB has several records, one after the other.
        files.dedup_by(|next, file| {
            let goes_on = file.goes_on && next.range.start == file.range.end.next_multiple_of(SECTOR);
            if goes_on {
                (file.range.end, file.goes_on) = (next.range.end, next.goes_on);
            }
            goes_on
        });
        files.retain(|file| called.is_none_or(|called| file.name.eq_ignore_ascii_case(called)));
        for file in files {
            // Names may be cut short to three letters behind the dot.
            if is_image(image, &file.range)? {
                if found.len() == MOST {
                    break;
                }
                found.push(Live {
                    name: format!("{place}/{}", file.name),
                    range: file.range,
                });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Whether it is squashfs, or erofs, as Fedora's is by now.
fn is_image(image: &File, range: &Range<u64>) -> io::Result<bool> {
    let first = first(image, range, 1028)?;
    Ok(first.starts_with(b"hsqs") || first.get(1024..) == Some(&[0xe2, 0xe1, 0xf5, 0xe0]))
}

#[derive(Debug)]
struct Record {
    name: String,
    range: Range<u64>,
    is_directory: bool,
    goes_on: bool,
}

impl Record {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (flags, length) = (*bytes.get(25)?, usize::from(*bytes.get(32)?));
        let start = u64::from(u32_at(bytes, 2)?) * SECTOR;
        let plain = bytes.get(33..33 + length)?;
        let plain = String::from_utf8_lossy(plain).to_lowercase();
        // Behind the name, which is padded to an even length, are the records of Rock Ridge.
        let rest = bytes.get((33 + length).next_multiple_of(2)..).unwrap_or_default();
        let name = rock_ridge(rest).unwrap_or_else(|| {
            let name = plain.split(';').next().unwrap_or_default();
            name.trim_end_matches('.').to_owned()
        });
        Some(Self {
            name,
            range: start..start + u64::from(u32_at(bytes, 10)?),
            is_directory: flags & 0x02 != 0,
            goes_on: flags & 0x80 != 0,
        })
    }
}

/// The name as Linux has it.
fn rock_ridge(mut rest: &[u8]) -> Option<String> {
    while let [a, b, length, _, ..] = rest {
        let length = usize::from(*length);
        let record = rest.get(..length).filter(|_| length >= 5)?;
        if [*a, *b] == *b"NM" {
            return Some(String::from_utf8_lossy(&record[5..]).into_owned());
        }
        rest = &rest[length..];
    }
    None
}

fn list(image: &File, range: &Range<u64>, size: u64) -> io::Result<Vec<Record>> {
    let end = range.end.min(size).min(range.start.saturating_add(MAX_DIRECTORY));
    let length = usize::try_from(end.saturating_sub(range.start)).unwrap_or(0);
    let bytes = first(image, &(range.start..end), length)?;
    let mut records = Vec::new();
    // A record does not cross the end of a sector: the rest of it is zeros.
    for sector in bytes.chunks(2048) {
        let mut rest = sector;
        while let Some(length) = rest.first().map(|length| usize::from(*length)).filter(|it| *it > 0) {
            let Some(record) = rest.get(..length) else { break };
            records.extend(Record::parse(record).filter(|record| record.range.end <= size));
            rest = &rest[length..];
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn record(name: &[u8], sector: u32, size: u32, flags: u8, rock_ridge: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 33];
        bytes[2..6].copy_from_slice(&sector.to_le_bytes());
        bytes[10..14].copy_from_slice(&size.to_le_bytes());
        bytes[25] = flags;
        bytes[32] = u8::try_from(name.len()).unwrap();
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes.extend(rock_ridge);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes[0] = u8::try_from(bytes.len()).unwrap();
        bytes
    }

    fn iso(parts: &[(usize, Vec<u8>)]) -> File {
        let mut bytes = vec![0; 24 * 2048];
        for (at, part) in parts {
            bytes[*at..*at + part.len()].copy_from_slice(part);
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn the_squashfs_of_a_live_system_is_found() {
        let root = record(b"\0", 18, 2048, 2, b"");
        let live = [
            record(b"\0", 19, 2048, 2, b""),
            record(b"INITRD.IMG;1", 20, 100, 0, b""),
            record(b"OTHER.SQU;1", 21, 2000, 0, b""),
            record(b"FILESYST.SQU;1", 20, 2048, 0x80, b"NM\x18\x01\0filesystem.squashfs"),
            record(b"FILESYST.SQU;1", 21, 100, 0, b"NM\x18\x01\0filesystem.squashfs"),
        ]
        .concat();
        let file = iso(&[
            (16 * 2048 + 156, root),
            (18 * 2048, record(b"LIVE", 19, 2048, 2, b"")),
            (19 * 2048, live.clone()),
            (20 * 2048, b"hsqs".to_vec()),
        ]);
        let found = find(&file, 24 * 2048).unwrap();
        let wanted = [
            Live {
                name: "live/filesystem.squashfs".to_owned(),
                range: 20 * 2048..21 * 2048 + 100,
            },
            Live {
                name: "live/initrd.img".to_owned(),
                range: 20 * 2048..20 * 2048 + 100,
            },
        ];
        assert_eq!(found, wanted);
        // The same of others; one of a fixed name is no other.
        for (directory, name, is_taken) in [
            (&b"CASPER"[..], &b"FILESYST.SQU;1"[..], true),
            (b"LIVEOS", b"SQUASHFS.IMG;1", true),
            (b"LIVEOS", b"FILESYST.SQU;1", false),
            (b"OTHER", b"FILESYST.SQU;1", false),
        ] {
            let file = iso(&[
                (16 * 2048 + 156, record(b"\0", 18, 2048, 2, b"")),
                (18 * 2048, record(directory, 19, 2048, 2, b"")),
                (19 * 2048, record(name, 20, 100, 0, b"")),
                (20 * 2048, b"hsqs".to_vec()),
            ]);
            let found = find(&file, 24 * 2048).unwrap();
            assert_eq!(found.len(), usize::from(is_taken), "{found:?}");
        }
        // Cut off, and full of nonsense.
        assert_eq!(find(&file, 20 * 2048).unwrap(), []);
        assert_eq!(find(&iso(&[(16 * 2048, vec![0xff; 8 * 2048])]), 24 * 2048).unwrap(), []);
    }
}
