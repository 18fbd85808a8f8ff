//! Opening a compressed file: what it is, is told by its first bytes, never by its name.
//!
//! Decompression runs in a thread of its own, ahead of whoever reads. Also good for compressed disk images.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use decode::{GzipMembers, XzStreams, ahead};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Advice, CWD, Mode, OFlags, fadvise, fcntl_getfl, fcntl_setfl, openat};
use rustix::io::Errno;

use super::sum::{Sum, Summed};
use crate::machine::Cancel;

mod decode;
mod tap;

pub use tap::Tap;

/// How many first bytes are looked at: a tar header's magic ends at byte 263.
const PEEK: usize = 512;

/// Bytes per read of the compressed file, and per piece that the decompressing thread hands over.
const PIECE: usize = 256 << 10;

/// How often it is asked whether to go on while nothing comes.
const CANCEL_POLL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all, as far as the first bytes tell.
    None,
    /// gzip, one member or several.
    Gzip,
    /// xz, one stream or several.
    Xz,
    /// Zstandard, one frame or several.
    Zstd,
    /// bzip2, one stream or several.
    Bzip2,
}

impl Compression {
    /// Tells the compression from the first bytes of a file.
    #[must_use]
    pub fn detect(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // The second is a skippable frame, which pzstd and others put in front.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Self::Bzip2,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// How much of a compressed file was read.
#[derive(Clone, Debug)]
pub struct Position {
    read: Arc<AtomicU64>,
    size: Option<u64>,
}

impl Position {
    /// Bytes of the compressed file that were read.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The size of the compressed file in bytes, `None` for a pipe.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.size
    }
}

/// The sum of a file that is being read.
#[derive(Debug)]
pub struct FileSum(Summed<Patient>);

impl FileSum {
    /// Reads what nobody has read of the file, and returns the sum of all of it.
    pub fn finish(&self) -> io::Result<Sum> {
        self.0.finish()
    }
}

/// Looks at a file that is to be read.
fn begin(file: &File) -> io::Result<Position> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // Only advice: a pipe refuses it.
    let _ = fadvise(file, 0, None, Advice::Sequential);
    Ok(Position {
        read: Arc::default(),
        size: metadata.is_file().then_some(metadata.len()),
    })
}

/// The decompressed contents of a file.
pub struct Contents {
    reader: Box<dyn BufRead + Send>,
    compression: Compression,
    position: Position,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents")
            .field("compression", &self.compression)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Contents {
    /// Reads on from where `file` stands, until `cancel` is set: then every read fails.
    pub fn from_file(file: File, cancel: &Cancel) -> io::Result<Self> {
        let position = begin(&file)?;
        Self::decode(Patient::new(file, cancel), position)
    }

    /// The same, and adds up the file as it is, compressed.
    pub fn summed(file: File, cancel: &Cancel) -> io::Result<(Self, FileSum)> {
        let position = begin(&file)?;
        let summed = Summed::new(Patient::new(file, cancel));
        Ok((Self::decode(summed.clone(), position)?, FileSum(summed)))
    }

    fn decode(mut file: impl Read + Send + 'static, position: Position) -> io::Result<Self> {
        let mut first = Vec::with_capacity(PEEK);
        file.by_ref().take(PEEK as u64).read_to_end(&mut first)?;
        let compression = Compression::detect(&first);
        let counted = Counted {
            inner: Cursor::new(first).chain(file),
            read: Arc::clone(&position.read),
        };
        let input = BufReader::with_capacity(PIECE, counted);
        let reader: Box<dyn BufRead + Send> = match compression {
            Compression::None => Box::new(input),
            Compression::Gzip => ahead(GzipMembers::new(input))?,
            Compression::Bzip2 => ahead(bzip2::bufread::MultiBzDecoder::new(input))?,
            Compression::Zstd => ahead(zstd::Decoder::with_buffer(input)?)?,
            Compression::Xz => ahead(XzStreams::new(input)?)?,
        };
        Ok(Self {
            reader,
            compression,
            position,
        })
    }

    /// How the file is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The same, and what is read of it from here on is added up.
    #[must_use]
    pub fn tapped(self) -> (Self, Tap) {
        let tap = Tap::default();
        let reader = tap::Tapped {
            inner: self.reader,
            tap: tap.clone(),
        };
        let tapped = Self {
            reader: Box::new(reader),
            ..self
        };
        (tapped, tap)
    }

    /// A view of the progress, for use while the contents are being read.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position.clone()
    }
}

impl Read for Contents {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf)
    }
}

impl BufRead for Contents {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.reader.consume(amount);
    }
}

/// Opens a file for reading; a fifo or `/dev/stdin` will do. Never waits for who feeds a fifo: reading does.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = openat(CWD, path, flags, Mode::empty())?;
    fcntl_setfl(&fd, fcntl_getfl(&fd)?.difference(OFlags::NONBLOCK))?;
    Ok(fd.into())
}

/// A file that keeps who reads it waiting, but not after it was cancelled.
#[derive(Debug)]
struct Patient {
    file: File,
    cancel: Cancel,
}

impl Patient {
    fn new(file: File, cancel: &Cancel) -> Self {
        Self {
            file,
            cancel: cancel.clone(),
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            self.cancel.check().map_err(io::Error::other)?;
            // Also while nobody has opened a fifo for writing yet: read(2) would take that for its end, poll(2) does not.
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&CANCEL_POLL)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.file.read(buf),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Counts what passes through.
struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use liblzma::stream::MtStreamBuilder;

    use super::*;

    fn read_back(bytes: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        io::Seek::rewind(&mut file)?;
        let mut contents = Contents::from_file(file, &Cancel::default())?;
        let mut out = Vec::new();
        contents.read_to_end(&mut out)?;
        let position = contents.position();
        assert_eq!(position.size(), Some(bytes.len() as u64));
        assert_eq!(position.read(), bytes.len() as u64);
        Ok((contents.compression(), out))
    }

    fn sample(len: usize) -> Vec<u8> {
        // A linear congruence: hardly compressible, so that half of a file is more than a header.
        let mut state = 1_u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0] & 0x3f
        };
        (0..len).map(next).collect()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn bzip2(data: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_compression_is_found_by_its_bytes() {
        for len in [0, 1, 511, 512, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let data = sample(len);
            assert_eq!(read_back(&data).unwrap(), (Compression::None, data.clone()), "{len}");
            assert_eq!(
                read_back(&gzip(&data)).unwrap(),
                (Compression::Gzip, data.clone()),
                "{len}"
            );
            assert_eq!(read_back(&xz(&data)).unwrap(), (Compression::Xz, data.clone()), "{len}");
            assert_eq!(
                read_back(&bzip2(&data)).unwrap(),
                (Compression::Bzip2, data.clone()),
                "{len}"
            );
            let zstd = zstd::encode_all(&data[..], 1).unwrap();
            assert_eq!(read_back(&zstd).unwrap(), (Compression::Zstd, data.clone()), "{len}");
        }
    }

    #[test]
    fn several_members_are_read_as_one() {
        let (a, b) = (sample(1000), sample(70_000));
        let both = [a.clone(), b.clone()].concat();
        for one in [gzip as fn(&[u8]) -> Vec<u8>, xz, bzip2, |d| {
            zstd::encode_all(d, 1).unwrap()
        }] {
            assert_eq!(read_back(&[one(&a), one(&b)].concat()).unwrap().1, both);
        }
    }

    #[test]
    fn a_truncated_file_is_an_error_whatever_its_compression() {
        let data = sample(200_000);
        for one in [gzip as fn(&[u8]) -> Vec<u8>, xz, bzip2, |d| {
            zstd::encode_all(d, 1).unwrap()
        }] {
            let whole = one(&data);
            // The last makes the error the first thing that the decompressing thread has to tell.
            for cut in [whole.len() - 1, whole.len() / 2, 20] {
                let error = read_back(&whole[..cut]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
            }
        }
    }

    #[test]
    fn other_data_after_gzip_is_told_from_a_truncated_file() {
        let whole = gzip(&sample(1000));
        for other in [&b"x"[..], b"trailing", &[0xff; 100]] {
            let error = read_back(&[whole.as_slice(), other].concat()).unwrap_err();
            assert_eq!(error.to_string(), "it has other data after its compressed data");
        }
        let padded = [whole.as_slice(), &[0; 1000]].concat();
        assert_eq!(read_back(&padded).unwrap().1, sample(1000));
        // The second member is cut off in its header.
        let error = read_back(&[whole.as_slice(), &whole[..5]].concat()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    }

    #[test]
    fn xz_in_blocks_is_decoded_by_several_threads() {
        let data = sample(900_000);
        let stream = MtStreamBuilder::new()
            .threads(2)
            .block_size(100_000)
            .preset(0)
            .encoder()
            .unwrap();
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(&data).unwrap();
        assert_eq!(read_back(&encoder.finish().unwrap()).unwrap(), (Compression::Xz, data));
    }
}
