//! A table of partitions, as the UEFI specification has it in chapter 5: one that is read by `sources::disk`, and by systemd.

use flate2::Crc;

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// Sectors of the table at the beginning, and of its copy at the end.
const HEAD: u64 = 34;
pub(super) const TAIL: u64 = 33;
/// Entries of the list of partitions, and bytes of each.
const ENTRIES: (u32, u32) = (128, 128);
const ENTRY: usize = 128;

/// A partition.
pub(super) struct Partition {
    /// What it is, and which one, as they are written down.
    pub(super) kind: u128,
    pub(super) id: u128,
    /// The first and the last sector.
    pub(super) first: u64,
    pub(super) last: u64,
    /// At most 36 letters of ASCII.
    pub(super) name: &'static str,
}

/// As it stands on a disk: the first three parts are little-endian.
fn guid(number: u128) -> [u8; 16] {
    let mut bytes = number.to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

fn list(partitions: &[Partition]) -> Vec<u8> {
    let mut list = vec![0; ENTRY * ENTRIES.0 as usize];
    for (entry, partition) in list.chunks_exact_mut(ENTRY).zip(partitions) {
        put(entry, 0, &guid(partition.kind));
        put(entry, 16, &guid(partition.id));
        put(entry, 32, &partition.first.to_le_bytes());
        put(entry, 40, &partition.last.to_le_bytes());
        for (at, letter) in partition.name.bytes().enumerate() {
            entry[56 + 2 * at] = letter;
        }
    }
    list
}

/// A header at sector `here`, of which there is another at `other`, and the list at `list_at`.
fn header(disk: u128, sectors: u64, (here, other, list_at): (u64, u64, u64), list: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 92];
    put(&mut header, 0, b"EFI PART");
    put(&mut header, 8, &0x0001_0000_u32.to_le_bytes());
    put(&mut header, 12, &92_u32.to_le_bytes());
    put(&mut header, 24, &here.to_le_bytes());
    put(&mut header, 32, &other.to_le_bytes());
    put(&mut header, 40, &HEAD.to_le_bytes());
    put(&mut header, 48, &(sectors - TAIL - 1).to_le_bytes());
    put(&mut header, 56, &guid(disk));
    put(&mut header, 72, &list_at.to_le_bytes());
    put(&mut header, 80, &ENTRIES.0.to_le_bytes());
    put(&mut header, 84, &ENTRIES.1.to_le_bytes());
    put(&mut header, 88, &crc(list));
    let sum = crc(&header);
    put(&mut header, 16, &sum);
    header.resize(SECTOR.try_into().unwrap_or_default(), 0);
    header
}

/// The first and the last bytes of a disk of so many sectors.
pub(super) fn table(disk: u128, partitions: &[Partition], sectors: u64) -> (Vec<u8>, Vec<u8>) {
    let list = list(partitions);
    let end = sectors - 1;
    // For those who know no GPT: all of it is taken.
    let mut head = vec![0; 512];
    put(&mut head, 446, &[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    put(&mut head, 458, &u32::try_from(end).unwrap_or(u32::MAX).to_le_bytes());
    put(&mut head, 510, &[0x55, 0xaa]);
    head.extend(header(disk, sectors, (1, end, 2), &list));
    head.extend(&list);
    let mut tail = list.clone();
    tail.extend(header(disk, sectors, (end, 1, sectors - TAIL), &list));
    (head, tail)
}
