//! Partition tables: GPT and MBR, see the UEFI specification, chapter 5.
//!
//! Read here, and not by the kernel: it would make devices of all partitions of a hostile image, which the whole host sees.

use std::fs::File;
use std::io;
use std::ops::Range;

use flate2::Crc;

use super::content::{first, u32_at, u64_at};
use super::error::TableError;

/// The most bytes of a list of partitions: 128 times what is usual.
const MAX_ENTRIES: u64 = 2 << 20;

/// Logical partitions of an MBR at most: each names the next, and may name an earlier one.
const MAX_LOGICAL: u32 = 128;

/// A partition of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// As Linux counts them, from 1 on.
    pub(super) number: u32,
    /// Its bytes in the image.
    pub(super) range: Range<u64>,
    /// Whether its type says that it is the root of this processor's systems.
    pub(super) is_root: bool,
    /// Its type in a GPT.
    pub(super) kind: Option<u128>,
    /// Its name in the table; an MBR has none.
    pub(super) name: String,
}

/// Reads the table of an image; `None` if it has none.
pub(super) fn read(image: &File, size: u64) -> Result<Option<Vec<Partition>>, TableError> {
    let start = first(image, &(0..size), 2 * 4096)?;
    for sector in [512_u32, 4096] {
        let at = sector as usize;
        if start.get(at..at + 8) == Some(b"EFI PART") {
            let partitions = gpt(image, size, &start[at..], u64::from(sector))?;
            return check(partitions, size).map(Some);
        }
    }
    if start.get(510..512) != Some(&[0x55, 0xaa]) {
        return Ok(None);
    }
    let entries = entries(&start);
    if entries.iter().any(|entry| entry.kind == 0xee) {
        return Err(TableError::Damaged("its GPT has no header".to_owned()));
    }
    // Boot sectors of filesystems end in the same two bytes.
    if entries.iter().any(|entry| entry.flag & 0x7f != 0) || entries.iter().all(|entry| entry.sectors == 0) {
        return Ok(None);
    }
    check(mbr(image, size, &entries)?, size).map(Some)
}

/// Refuses what lies outside of the image, or over each other.
fn check(mut partitions: Vec<Partition>, size: u64) -> Result<Vec<Partition>, TableError> {
    if let Some(partition) = partitions.iter().find(|partition| partition.range.end > size) {
        return Err(TableError::Truncated {
            number: partition.number,
            end: partition.range.end,
            size,
        });
    }
    partitions.sort_by_key(|partition| partition.range.start);
    for pair in partitions.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            let (a, b) = (pair[0].number, pair[1].number);
            return Err(TableError::Damaged(format!("partitions {a} and {b} overlap")));
        }
    }
    partitions.sort_by_key(|partition| partition.number);
    Ok(partitions)
}

fn damaged(what: &str) -> TableError {
    TableError::Damaged(what.to_owned())
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn gpt(image: &File, size: u64, header: &[u8], sector: u64) -> Result<Vec<Partition>, TableError> {
    let bad = || damaged("the header of its GPT makes no sense");
    let length = u32_at(header, 12).ok_or_else(bad)? as usize;
    if !(92..=512).contains(&length) {
        return Err(bad());
    }
    let mut summed = header.get(..length).ok_or_else(bad)?.to_vec();
    let wanted = u32_at(&summed, 16).ok_or_else(bad)?;
    summed[16..20].fill(0);
    if crc(&summed) != wanted {
        return Err(damaged("the checksum of its GPT's header is wrong"));
    }
    let at = u64_at(header, 72).and_then(|block| block.checked_mul(sector));
    let (at, count) = at.zip(u32_at(header, 80)).ok_or_else(bad)?;
    let each = u32_at(header, 84).ok_or_else(bad)?;
    let bytes = u64::from(count) * u64::from(each);
    if each < 128 || each % 8 != 0 || bytes > MAX_ENTRIES {
        return Err(bad());
    }
    let end = at.checked_add(bytes).ok_or_else(bad)?;
    if end > size {
        return Err(damaged("it ends inside of its GPT"));
    }
    let list = first(image, &(at..end), usize::try_from(bytes).map_err(|_| bad())?)?;
    if Some(crc(&list)) != u32_at(header, 88) {
        return Err(damaged("the checksum of its GPT's partitions is wrong"));
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(list.chunks_exact(each as usize)) {
        if entry[..16].iter().all(|byte| *byte == 0) {
            continue;
        }
        let range = (|| {
            let start = u64_at(entry, 32)?.checked_mul(sector)?;
            let end = u64_at(entry, 40)?.checked_add(1)?.checked_mul(sector)?;
            (start < end).then_some(start..end)
        })();
        let range = range.ok_or_else(|| TableError::Damaged(format!("partition {number} ends before it begins")))?;
        partitions.push(Partition {
            number,
            range,
            is_root: native_root() == Some(guid(&entry[..16])),
            kind: Some(guid(&entry[..16])),
            name: utf16(&entry[56..128]),
        });
    }
    Ok(partitions)
}

/// A GUID as a number, in the order in which it is written down.
fn guid(bytes: &[u8]) -> u128 {
    // The first three parts are little-endian.
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    order.iter().fold(0, |number, at| {
        number << 8 | u128::from(bytes.get(*at).copied().unwrap_or(0))
    })
}

/// The type of a root partition for this processor, see the Discoverable Partitions Specification.
pub(crate) fn native_root() -> Option<u128> {
    let known: &[(&str, u128)] = &[
        ("x86_64", 0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709),
        ("x86", 0x4447_9540_f297_41b2_9af7_d131_d5f0_458a),
        ("aarch64", 0xb921_b045_1df0_41c3_af44_4c6f_280d_3fae),
        ("arm", 0x69da_d710_2ce4_4e3c_b16c_21a1_d49a_bed3),
        ("riscv64", 0x72ec_70a6_cf74_40e6_bd49_4bda_08e8_f224),
        ("powerpc64", 0xc31c_45e6_3f39_412e_80fb_4809_c498_0599),
        ("s390x", 0x5eea_d9a9_fe09_4a1e_a1d7_520d_0053_1306),
        ("loongarch64", 0x7705_5800_792c_4f94_b39a_98c9_1b76_2bb6),
    ];
    let found = known.iter().find(|(arch, _)| *arch == std::env::consts::ARCH);
    found.map(|(_, guid)| *guid)
}

fn utf16(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0);
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// An entry of an MBR or of a logical partition.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// 0x80 or nothing.
    flag: u8,
    kind: u8,
    /// In sectors, from wherever it counts.
    start: u32,
    sectors: u32,
}

fn entries(sector: &[u8]) -> Vec<Entry> {
    let table = sector.get(446..510).unwrap_or_default();
    let entry = |bytes: &[u8]| {
        Some(Entry {
            flag: bytes[0],
            kind: bytes[4],
            start: u32_at(bytes, 8)?,
            sectors: u32_at(bytes, 12)?,
        })
    };
    table.chunks_exact(16).filter_map(entry).collect()
}

impl Entry {
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn range(self, base: u64) -> Range<u64> {
        let start = base + u64::from(self.start) * 512;
        start..start + u64::from(self.sectors) * 512
    }
}

fn mbr(image: &File, size: u64, entries: &[Entry]) -> Result<Vec<Partition>, TableError> {
    let partition = |number, entry: Entry, base| Partition {
        number,
        range: entry.range(base),
        is_root: false,
        kind: None,
        name: String::new(),
    };
    let mut partitions = Vec::new();
    let mut logical = 5;
    for (number, entry) in (1..).zip(entries) {
        if entry.sectors == 0 || entry.kind == 0 {
            continue;
        }
        if !entry.is_extended() {
            partitions.push(partition(number, *entry, 0));
            continue;
        }
        // A chain: each link has a partition, counted from the link, and the next link, counted from the first one.
        let base = entry.range(0).start;
        let (mut link, mut links) = (base, 0);
        loop {
            if link >= size {
                return Err(damaged("its extended partition leads out of the image"));
            }
            let sector = first(image, &(link..size), 512)?;
            if sector.get(510..512) != Some(&[0x55, 0xaa]) {
                return Err(damaged("its extended partition has no table"));
            }
            let here = self::entries(&sector);
            for entry in here.iter().filter(|entry| entry.sectors > 0 && !entry.is_extended()) {
                partitions.push(partition(logical, *entry, link));
                logical += 1;
            }
            let Some(next) = here.iter().find(|entry| entry.sectors > 0 && entry.is_extended()) else {
                break;
            };
            link = next.range(base).start;
            links += 1;
            if links > MAX_LOGICAL || logical > MAX_LOGICAL || link == base {
                return Err(damaged("its extended partition has no end"));
            }
        }
    }
    Ok(partitions)
}

impl From<io::Error> for TableError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read_bytes(bytes: &[u8]) -> Result<Option<Vec<Partition>>, TableError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        read(&file, bytes.len() as u64)
    }

    fn entry(kind: u8, start: u32, sectors: u32) -> [u8; 16] {
        let mut entry = [0; 16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
        entry
    }

    fn sector(entries: &[[u8; 16]]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        for (at, entry) in entries.iter().enumerate() {
            sector[446 + 16 * at..446 + 16 * at + 16].copy_from_slice(entry);
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    fn disk(parts: &[(usize, &[u8])], sectors: usize) -> Vec<u8> {
        let mut disk = vec![0; sectors * 512];
        for (at, bytes) in parts {
            disk[at * 512..at * 512 + bytes.len()].copy_from_slice(bytes);
        }
        disk
    }

    /// A table with these partitions: first and last sector, and type.
    fn guid_table(partitions: &[(u64, u64, u128)]) -> Vec<u8> {
        let mut list = vec![0; 128 * 128];
        for (entry, (start, last, kind)) in list.chunks_exact_mut(128).zip(partitions) {
            let bytes = kind.to_be_bytes();
            let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
            for (at, from) in order.into_iter().enumerate() {
                entry[at] = bytes[from];
            }
            entry[32..40].copy_from_slice(&start.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            entry[56] = b'r';
        }
        let mut header = vec![0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        let sum = crc(&list);
        header[88..92].copy_from_slice(&sum.to_le_bytes());
        let sum = crc(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk(&[(0, &sector(&[entry(0xee, 1, 99)])), (1, &header), (2, &list)], 100)
    }

    #[test]
    fn a_gpt_is_read_and_its_sums_are_checked() {
        let root = native_root().unwrap_or(7);
        let good = guid_table(&[(40, 49, 7), (50, 99, root)]);
        let partitions = read_bytes(&good).unwrap().unwrap();
        assert_eq!(partitions[1].range, 50 * 512..100 * 512);
        assert_eq!((partitions[1].number, partitions[1].name.as_str()), (2, "r"));
        assert!(partitions[1].is_root && !partitions[0].is_root);
        for (at, what) in [
            (512 + 40, "header is wrong"),
            (1024 + 33, "partitions is wrong"),
            (512, "no header"),
        ] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(read_bytes(&bad).unwrap_err().to_string().contains(what), "{what}");
        }
        for (partitions, what) in [
            (&[(40, 100, 7)][..], "partition 1 ends at byte 51712"),
            (&[(50, 49, 7)], "ends before it begins"),
            (&[(40, 60, 7), (60, 70, 7)], "1 and 2 overlap"),
            (&[(40, u64::MAX, 7)], "ends before it begins"),
        ] {
            let error = read_bytes(&guid_table(partitions)).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        // Cut off in its list.
        assert!(
            read_bytes(&good[..4096])
                .unwrap_err()
                .to_string()
                .contains("inside of its GPT")
        );
    }

    #[test]
    fn logical_partitions_are_followed_and_circles_are_not() {
        let table = sector(&[entry(0x0c, 2, 8), entry(0x83, 10, 10), entry(0x05, 20, 60)]);
        let (one, two) = (
            sector(&[entry(0x83, 1, 9), entry(0x05, 10, 10)]),
            sector(&[entry(0x83, 1, 9)]),
        );
        let partitions = read_bytes(&disk(&[(0, &table), (20, &one), (30, &two)], 80))
            .unwrap()
            .unwrap();
        let numbers: Vec<(u32, u64)> = partitions.iter().map(|it| (it.number, it.range.start / 512)).collect();
        assert_eq!(numbers, [(1, 2), (2, 10), (5, 21), (6, 31)]);
        for link in [
            sector(&[entry(0x05, 0, 10)]),
            sector(&[entry(0x83, 1, 9), entry(0x05, 0, 10)]),
        ] {
            assert!(read_bytes(&disk(&[(0, &table), (20, &link)], 80)).is_err());
        }
        assert!(
            read_bytes(&disk(&[(0, &table)], 80))
                .unwrap_err()
                .to_string()
                .contains("no table")
        );
    }

    #[test]
    fn what_has_no_table_has_none() {
        assert_eq!(read_bytes(&[0; 4096]).unwrap(), None);
        assert_eq!(read_bytes(&[]).unwrap(), None);
        // A boot sector of something else.
        let mut boot = sector(&[]);
        boot[446..510].fill(b'x');
        assert_eq!(read_bytes(&boot).unwrap(), None);
    }
}
