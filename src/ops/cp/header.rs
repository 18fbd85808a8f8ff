//! Headers of a tar archive, as pax(1p) has them; lists of sparse pieces as GNU tar has them.

/// The size of a block in bytes.
pub(in crate::ops) const BLOCK: usize = 512;

/// What a header says of an entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Header {
    /// Any bytes but NUL.
    pub(super) name: Vec<u8>,
    /// `0` a file, `1` a hard link, `2` a link, `3` and `4` devices, `5` a directory, `6` a fifo.
    pub(super) kind: u8,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) mtime: i64,
    /// Nanoseconds besides.
    pub(super) nanos: u32,
    /// Bytes that follow.
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    /// Further records, by key.
    pub(super) records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Header {
    /// All blocks of it: those that describe it further first.
    pub(super) fn blocks(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if self.name.len() > 100 {
            records.extend(record(b"path", &self.name));
        }
        if self.link.len() > 100 {
            records.extend(record(b"linkpath", &self.link));
        }
        for (key, value, max) in [
            (&b"size"[..], self.size, 0o777_7777_7777),
            (b"uid", self.uid.into(), 0o777_7777),
            (b"gid", self.gid.into(), 0o777_7777),
        ] {
            if value > max {
                records.extend(record(key, value.to_string().as_bytes()));
            }
        }
        if self.mtime < 0 || self.nanos > 0 {
            records.extend(record(b"mtime", time(self.mtime, self.nanos).as_bytes()));
        }
        for (key, value) in &self.records {
            records.extend(record(key, value));
        }
        let mut blocks = Vec::new();
        if !records.is_empty() {
            let further = Header {
                name: b"pax".to_vec(),
                kind: b'x',
                mode: 0o644,
                size: records.len() as u64,
                ..Header::default()
            };
            blocks.extend(further.block());
            blocks.extend(&records);
            blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
        }
        blocks.extend(self.block());
        blocks
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        let octal = |number: u64, digits: usize| {
            let largest = (1_u64 << (digits * 3)) - 1;
            // What is larger stands in a record, which counts.
            format!("{:0digits$o}", if number > largest { 0 } else { number })
        };
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, octal(self.mode.into(), 7).as_bytes());
        put(108, octal(self.uid.into(), 7).as_bytes());
        put(116, octal(self.gid.into(), 7).as_bytes());
        put(124, octal(self.size, 11).as_bytes());
        put(136, octal(u64::try_from(self.mtime).unwrap_or(0), 11).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, octal(self.device.0.into(), 7).as_bytes());
        put(337, octal(self.device.1.into(), 7).as_bytes());
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }
}

/// Seconds since 1970 with their fraction.
fn time(seconds: i64, nanos: u32) -> String {
    let whole = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (sign, whole) = (if whole < 0 { "-" } else { "" }, whole.unsigned_abs());
    let (seconds, nanos) = (whole / 1_000_000_000, whole % 1_000_000_000);
    if nanos == 0 {
        format!("{sign}{seconds}")
    } else {
        format!("{sign}{seconds}.{nanos:09}")
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// The list in front of the pieces of a sparse file, as whole blocks.
pub(super) fn sparse_map(pieces: &[(u64, u64)]) -> Vec<u8> {
    let numbers = pieces.iter().flat_map(|(offset, length)| [*offset, *length]);
    let lines = std::iter::once(pieces.len() as u64).chain(numbers);
    let mut map: Vec<u8> = lines.flat_map(|number| format!("{number}\n").into_bytes()).collect();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        assert_eq!(record(b"path", b"a\nb"), b"12 path=a\nb\n");
        assert_eq!(record(b"a", b""), b"5 a=\n");
        let long = record(b"path", &[b'x'; 91]);
        assert_eq!((long.len(), &long[..4]), (101, &b"101 "[..]));
        let edge = record(b"path", &[b'x'; 90]);
        assert!(edge.starts_with(format!("{} ", edge.len()).as_bytes()), "{edge:?}");
    }

    #[test]
    fn times_have_fractions_also_before_1970() {
        assert_eq!([time(7, 0), time(7, 50), time(-7, 0)], ["7", "7.000000050", "-7"]);
        assert_eq!([time(-1, 500_000_000), time(-2, 1)], ["-0.500000000", "-1.999999999"]);
    }

    #[test]
    fn the_tar_crate_reads_what_is_written() {
        let name = [b'n'; 150];
        let header = Header {
            name: name.to_vec(),
            kind: b'0',
            mode: 0o640,
            uid: 33,
            gid: 3_000_000,
            mtime: 1_700_000_000,
            size: 5,
            ..Header::default()
        };
        let mut archive = header.blocks();
        archive.extend(b"12345");
        archive.resize(archive.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
        let mut archive = tar::Archive::new(&archive[..]);
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(&*entry.path_bytes(), &name[..]);
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.mode().unwrap()), (33, 0o640));
        assert_eq!((header.mtime().unwrap(), entry.size()), (1_700_000_000, 5));
    }

    #[test]
    fn a_map_fills_blocks() {
        let map = sparse_map(&[(0, 10), (4096, 5)]);
        assert_eq!(map.len(), BLOCK);
        assert!(map.starts_with(b"2\n0\n10\n4096\n5\n\0"));
    }
}
