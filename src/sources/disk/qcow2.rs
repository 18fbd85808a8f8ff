//! qcow2 images, see qemu's `docs/interop/qcow2.txt`.
//!
//! Read here, and not by qemu-img: of a hostile image that opens whatever file of the host its header names, and it need
//! not be installed. What refers to another file is refused before anything is read.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;

use flate2::read::DeflateDecoder;

use super::content::{first, u32_be_at, u64_be_at};
use super::error::Qcow2Problem;
use super::image::Image;
use crate::machine::{Cancel, Report};
use crate::sources::SourceError;
use crate::sources::disk::DiskError;

/// Features that an older reader must know, of which these do not matter to who only reads.
const DIRTY: u64 = 1;
const COMPRESSION: u64 = 8;
/// These do.
const CORRUPT: u64 = 2;
const DATA_FILE: u64 = 4;

/// Where a table or cluster is, in an entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// An entry of a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// An entry of a cluster of zeros.
const ZEROS: u64 = 1;

/// qemu's own limit, in bytes of the table.
const MAX_L1: u64 = 32 << 20;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    cluster_bits: u32,
    /// Of the disk that it holds, in bytes.
    size: u64,
    l1_offset: u64,
    l1_size: u64,
    zstd: bool,
}

impl Header {
    /// Checks everything that would lead elsewhere.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Qcow2Problem> {
        let damaged = Qcow2Problem::Damaged;
        let cut = || damaged("its header is cut off");
        let number = |at| u32_be_at(bytes, at).ok_or_else(cut);
        let large = |at| u64_be_at(bytes, at).ok_or_else(cut);
        let version = number(4)?;
        if !(2..=3).contains(&version) {
            return Err(Qcow2Problem::Version(version));
        }
        if large(8)? != 0 {
            return Err(Qcow2Problem::BackingFile);
        }
        if number(32)? != 0 {
            return Err(Qcow2Problem::Encrypted);
        }
        let features = if version == 3 { large(72)? } else { 0 };
        if features & DATA_FILE != 0 {
            return Err(Qcow2Problem::DataFile);
        }
        if features & CORRUPT != 0 {
            return Err(Qcow2Problem::Corrupt);
        }
        if features & !(DIRTY | COMPRESSION) != 0 {
            return Err(Qcow2Problem::Features(features & !(DIRTY | COMPRESSION)));
        }
        let kind = if features & COMPRESSION == 0 {
            0
        } else {
            *bytes.get(104).ok_or_else(cut)?
        };
        if kind > 1 {
            return Err(damaged("its compression is unknown"));
        }
        let header = Self {
            cluster_bits: number(20)?,
            size: large(24)?,
            l1_offset: large(40)?,
            l1_size: u64::from(number(36)?),
            zstd: kind == 1,
        };
        if !(9..=21).contains(&header.cluster_bits) {
            return Err(damaged("the size of its clusters makes no sense"));
        }
        if header.size > i64::MAX as u64 || header.tables() > header.l1_size || header.l1_size * 8 > MAX_L1 {
            return Err(damaged("its size and that of its table contradict each other"));
        }
        Ok(header)
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of a table of the second level, which fills a cluster.
    fn entries(&self) -> u64 {
        self.cluster() / 8
    }

    /// Tables of the second level that the disk needs.
    fn tables(&self) -> u64 {
        self.size.div_ceil(self.cluster() * self.entries())
    }

    /// Where a compressed cluster lies in the file: its last sector may be shared with others.
    fn compressed(&self, entry: u64) -> Range<u64> {
        let split = 62 - (self.cluster_bits - 8);
        let start = entry & ((1 << split) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> split;
        start..start + (sectors + 1) * 512 - start % 512
    }
}

/// Makes a plain image of a qcow2 image.
pub(super) fn convert(image: &Image, report: &dyn Report, cancel: &Cancel) -> Result<Image, SourceError> {
    let refused = |problem| DiskError::Qcow2 {
        image: image.name.clone(),
        problem,
    };
    let start = first(&image.file, &(0..image.size), 512).map_err(|error| image.unreadable(error))?;
    let header = Header::parse(&start).map_err(refused)?;
    let mut made = image.another()?;
    let conversion = Conversion { image, header };
    let table = conversion.table(header.l1_offset, header.tables())?;
    let mut buffer = Vec::new();
    for (number, l1) in (0..).zip(table) {
        report.progress(number * header.cluster() * header.entries(), Some(header.size));
        let offset = l1 & OFFSET;
        if offset == 0 {
            continue;
        }
        for (cluster, l2) in (number * header.entries()..).zip(conversion.table(offset, header.entries())?) {
            cancel.check()?;
            let at = cluster * header.cluster();
            if at >= header.size || !conversion.read(l2, &mut buffer)? {
                continue;
            }
            let length = usize::try_from(header.size - at).unwrap_or(usize::MAX);
            made.write(&buffer[..buffer.len().min(length)], at)?;
        }
    }
    made.finish(header.size)?;
    Ok(made)
}

struct Conversion<'a> {
    image: &'a Image,
    header: Header,
}

impl Conversion<'_> {
    fn damaged(&self, what: &'static str) -> SourceError {
        let problem = Qcow2Problem::Damaged(what);
        let image = self.image.name.clone();
        DiskError::Qcow2 { image, problem }.into()
    }

    fn bytes(&self, range: &Range<u64>, length: u64) -> Result<Vec<u8>, SourceError> {
        if range.start >= self.image.size {
            let what = format!(
                "it refers to byte {}, and ends at byte {}",
                range.start, self.image.size
            );
            let image = self.image.name.clone();
            return Err(DiskError::Truncated { image, what }.into());
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        first(&self.image.file, range, length).map_err(|error| self.image.unreadable(error))
    }

    /// A table of that many entries.
    fn table(&self, offset: u64, entries: u64) -> Result<Vec<u64>, SourceError> {
        if entries == 0 {
            return Ok(Vec::new());
        }
        let bytes = self.bytes(&(offset..offset.saturating_add(entries * 8)), entries * 8)?;
        if bytes.len() as u64 != entries * 8 {
            let what = "it ends inside of one of its tables".to_owned();
            let image = self.image.name.clone();
            return Err(DiskError::Truncated { image, what }.into());
        }
        Ok(bytes.chunks_exact(8).filter_map(|entry| u64_be_at(entry, 0)).collect())
    }

    /// Reads a cluster; `false` if it has only zeros.
    fn read(&self, entry: u64, buffer: &mut Vec<u8>) -> Result<bool, SourceError> {
        let cluster = self.header.cluster();
        if entry & COMPRESSED != 0 {
            let range = self.header.compressed(entry);
            let bytes = self.bytes(&range, range.end - range.start)?;
            buffer.clear();
            self.decompress(&bytes, buffer)
                .map_err(|_| self.damaged("a compressed cluster cannot be decompressed"))?;
            if buffer.len() as u64 != cluster {
                return Err(self.damaged("a compressed cluster is too short"));
            }
            return Ok(true);
        }
        let offset = entry & OFFSET;
        if offset == 0 || entry & ZEROS != 0 {
            return Ok(false);
        }
        // The last one of the file need not be whole.
        *buffer = self.bytes(&(offset..offset + cluster), cluster)?;
        Ok(true)
    }

    fn decompress(&self, bytes: &[u8], buffer: &mut Vec<u8>) -> io::Result<()> {
        let cluster = self.header.cluster();
        if self.header.zstd {
            let decoder = zstd::Decoder::with_buffer(bytes)?.single_frame();
            decoder.take(cluster).read_to_end(buffer)?;
        } else {
            DeflateDecoder::new(bytes).take(cluster).read_to_end(buffer)?;
        }
        Ok(())
    }
}

/// Whether a file is one.
pub(super) fn is_qcow2(image: &File, size: u64) -> io::Result<bool> {
    Ok(first(image, &(0..size), 4)? == b"QFI\xfb")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;

    use super::*;

    const CLUSTER: usize = 512;

    /// A header of version 3 with clusters of 512 bytes, its first table in the second cluster.
    fn header(size: u64, change: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; CLUSTER];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = 9;
        bytes[24..32].copy_from_slice(&size.to_be_bytes());
        bytes[39] = 64;
        bytes[40..48].copy_from_slice(&(CLUSTER as u64).to_be_bytes());
        for (at, change) in change {
            bytes[*at..*at + change.len()].copy_from_slice(change);
        }
        bytes
    }

    fn converted(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let place = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let image = Image::borrowed(file, Path::new("x"), place.path(), None).unwrap();
        let made = convert(&image, &(), &Cancel::default()).map_err(|error| error.to_string())?;
        Ok(first(&made.file, &(0..made.size), 1 << 20).unwrap())
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for (change, problem) in [
            ((4, &[0, 0, 0, 4][..]), Qcow2Problem::Version(4)),
            ((8, &[0, 0, 0, 0, 0, 0, 1, 0]), Qcow2Problem::BackingFile),
            ((32, &[0, 0, 0, 2]), Qcow2Problem::Encrypted),
            ((79, &[4]), Qcow2Problem::DataFile),
            ((79, &[2]), Qcow2Problem::Corrupt),
            ((79, &[16]), Qcow2Problem::Features(16)),
        ] {
            assert_eq!(Header::parse(&header(4096, &[change])), Err(problem));
        }
        for change in [(23, &[0][..]), (23, &[63]), (24, &[0xff]), (24, &[0x7f]), (36, &[0xff])] {
            let refused = Header::parse(&header(4096, &[change]));
            assert!(matches!(refused, Err(Qcow2Problem::Damaged(_))), "{change:?}");
        }
        assert!(Header::parse(&header(4096, &[])[..70]).is_err());
        // What version 2 does not have is not looked at.
        assert!(Header::parse(&header(4096, &[(7, &[2]), (72, &[0xff; 8])])).is_ok());
    }

    /// As `qemu-img convert -O qcow2 -c -o cluster_size=512` made them, the second with `compression_type=zstd`, the third without
    /// `-c` and with `compat=0.10`.
    #[test]
    fn what_qemu_has_written_is_read() {
        let mut wanted = vec![0; 24576 + 512];
        for (at, byte) in wanted[..4096].iter_mut().enumerate() {
            *byte = u8::try_from(at * 7 % 251).unwrap();
        }
        wanted[9000..9600].fill(b'A');
        wanted[24576 + 511] = b'Z';
        for file in [
            &include_bytes!("../../../tests/qcow2/zlib.qcow2")[..],
            include_bytes!("../../../tests/qcow2/zstd.qcow2"),
            include_bytes!("../../../tests/qcow2/version-2.qcow2"),
        ] {
            assert!(converted(file).unwrap() == wanted);
        }
    }

    #[test]
    fn clusters_of_each_kind_are_read() {
        let mut deflated = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        deflated.write_all(&[b'c'; CLUSTER]).unwrap();
        let deflated = deflated.finish().unwrap();
        let zstd = zstd::encode_all(&[b'c'; CLUSTER][..], 1).unwrap();
        for (compressed, change) in [(deflated, &[][..]), (zstd, &[(79, &[8][..]), (104, &[1])])] {
            // The disk: data, nothing, zeros over data, compressed, and a half cluster of data.
            let mut file = header(4 * 512 + 256, change);
            let mut table = |entries: &[u64]| {
                let mut bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
                bytes.resize(CLUSTER, 0);
                file.extend(bytes);
            };
            table(&[(1 << 63) | (2 * 512)]);
            table(&[
                (1 << 63) | (3 * 512),
                0,
                (3 * 512) | 1,
                COMPRESSED | (4 * 512 + 7),
                3 * 512,
            ]);
            file.extend([b'd'; CLUSTER]);
            file.extend([0; 7]);
            file.extend(&compressed);
            let disk = converted(&file).unwrap();
            let wanted = [&[b'd'; 512][..], &[0; 1024], &[b'c'; 512], &[b'd'; 256]].concat();
            assert!(disk == wanted, "{disk:?}");
            for (cut, what) in [
                (1500, "inside of one of its tables"),
                (1100, "tables"),
                (1536, "refers to"),
            ] {
                let error = converted(&file[..cut]).unwrap_err();
                assert!(error.contains("is truncated") && error.contains(what), "{error}");
            }
            let broken = file.len() - compressed.len();
            let mut bad = file[..broken].to_vec();
            bad.extend([0xff; 40]);
            assert!(converted(&bad).unwrap_err().contains("cannot be decompressed"));
        }
    }
}
