//! An archive as a stream of blocks: headers, data in pieces, the end; and how it can be cut or damaged.

use std::io::{self, BufRead as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar::Header;

use super::pax::Global;
use super::{TarballError, shortened};
use crate::sources::archive::Contents;
use crate::sys::files::shown;

/// The size of a block in bytes.
pub(super) const BLOCK: usize = 512;

/// The most bytes that are handed over at once.
const PIECE: u64 = 512 << 10;

/// Reads an archive block by block.
pub(super) struct Blocks {
    contents: Contents,
    archive: PathBuf,
    /// Bytes that were read.
    offset: u64,
    /// Whether it may end without an end marker, as layers that umoci inserts do: their digest tells whether they are whole.
    pub(super) may_just_end: bool,
    /// Records of pax that hold for all entries to come.
    pub(super) global: Arc<Global>,
    /// The entry at hand, for messages.
    pub(super) name: Vec<u8>,
    /// What is left of its data, and of the padding to the next block.
    pub(super) data: u64,
    pub(super) padding: u64,
    /// Where the data belongs, the next piece last.
    pub(super) pieces: Vec<(u64, u64)>,
}

impl Blocks {
    pub(super) fn new(contents: Contents, archive: &Path) -> Self {
        Self {
            contents,
            archive: archive.to_path_buf(),
            offset: 0,
            may_just_end: false,
            global: Arc::default(),
            name: Vec::new(),
            data: 0,
            padding: 0,
            pieces: Vec::new(),
        }
    }

    /// Where the next piece of the current file belongs; `None` after the last.
    pub(super) fn next_piece(&self) -> Option<u64> {
        self.pieces.last().map(|(offset, _)| *offset)
    }

    /// Fills an empty `buffer` with (at most 512 KiB of) the next piece.
    pub(super) fn read_piece(&mut self, buffer: &mut Vec<u8>) -> Result<(), TarballError> {
        let Some((offset, length)) = self.pieces.pop() else {
            return Ok(());
        };
        let wanted = length.min(PIECE);
        if wanted < length {
            self.pieces.push((offset + wanted, length - wanted));
        }
        let read = (&mut self.contents)
            .take(wanted)
            .read_to_end(buffer)
            .map_err(|error| self.read_failed(error))?;
        self.offset += read as u64;
        self.data -= read as u64;
        if (read as u64) < wanted {
            return Err(self.truncated_inside());
        }
        Ok(())
    }

    /// One header block; `None` at the end marker.
    pub(super) fn header(&mut self) -> Result<Option<Header>, TarballError> {
        let mut header = Header::new_old();
        let at = self.offset;
        let read = self.fill(header.as_mut_bytes())?;
        match read {
            0 if at == 0 => {
                return Err(TarballError::Empty {
                    archive: self.archive.clone(),
                });
            }
            0 if self.may_just_end => return Ok(None),
            0 => return Err(self.truncated("without an end marker")),
            BLOCK => {}
            _ if at == 0 => return Err(self.not_tar(&header.as_bytes()[..read])),
            _ => return Err(self.truncated("inside of a header")),
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            self.only_zeros()?;
            return Ok(None);
        }
        if !has_valid_checksum(&header) {
            if at == 0 {
                return Err(self.not_tar(header.as_bytes()));
            }
            return Err(self.damaged(at));
        }
        Ok(Some(header))
    }

    /// Reads to the end, which also lets the decompressor check its sums.
    pub(super) fn only_zeros(&mut self) -> Result<(), TarballError> {
        loop {
            let bytes = match self.contents.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) => return Err(self.read_failed(error)),
            };
            if bytes.is_empty() {
                return Ok(());
            }
            if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
                let offset = self.offset + at as u64;
                return Err(TarballError::TrailingBytes {
                    archive: self.archive.clone(),
                    offset,
                });
            }
            let length = bytes.len();
            self.contents.consume(length);
            self.offset += length as u64;
        }
    }

    pub(super) fn data_follows(&mut self, size: u64) {
        self.data_follows_in(size, BLOCK as u64);
    }

    /// The same, where it ends at a multiple of another number of bytes.
    pub(super) fn data_follows_in(&mut self, size: u64, block: u64) {
        self.data = size;
        self.padding = size.next_multiple_of(block) - size;
    }

    /// Skips what was not read of the last entry.
    pub(super) fn end_entry(&mut self) -> Result<(), TarballError> {
        self.skip(self.data + self.padding)?;
        (self.data, self.padding) = (0, 0);
        self.pieces.clear();
        Ok(())
    }

    /// Bytes that were read.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn archive(&self) -> &Path {
        &self.archive
    }

    /// There is no header where one should be.
    pub(super) fn damaged(&self, offset: u64) -> TarballError {
        TarballError::Damaged {
            archive: self.archive.clone(),
            offset,
        }
    }

    pub(super) fn skip(&mut self, mut count: u64) -> Result<(), TarballError> {
        while count > 0 {
            let available = match self.contents.fill_buf() {
                Ok(bytes) => bytes.len() as u64,
                Err(error) => return Err(self.read_failed(error)),
            };
            if available == 0 {
                return Err(self.truncated_inside());
            }
            let step = available.min(count);
            self.contents.consume(usize::try_from(step).unwrap_or(usize::MAX));
            self.offset += step;
            count -= step;
        }
        Ok(())
    }

    /// Reads until `buffer` is full or the archive ends.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TarballError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.contents.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_failed(error)),
            }
        }
        self.offset += filled as u64;
        Ok(filled)
    }

    fn read_failed(&self, source: io::Error) -> TarballError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return self.truncated("inside of its compressed data");
        }
        TarballError::Read {
            archive: self.archive.clone(),
            source,
        }
    }

    pub(super) fn truncated(&self, place: &str) -> TarballError {
        TarballError::Truncated {
            archive: self.archive.clone(),
            place: place.to_owned(),
        }
    }

    pub(super) fn truncated_inside(&self) -> TarballError {
        let name = shown(&shortened(&self.name));
        self.truncated(&format!("inside of entry '{name}'"))
    }

    fn not_tar(&self, first: &[u8]) -> TarballError {
        let looks_like = match first {
            [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
            [b'h', b's', b'q', b's', ..] => Some("a squashfs image"),
            [b'Q', b'F', b'I', 0xfb, ..] => Some("a qcow2 image"),
            [b'7', b'z', 0xbc, 0xaf, ..] => Some("a 7z archive"),
            [b'0', b'7', b'0', b'7', b'0', ..] => Some("a cpio archive"),
            [b'!', b'<', b'a', b'r', b'c', b'h', b'>', ..] => Some("a Debian package or ar archive"),
            [0xed, 0xab, 0xee, 0xdb, ..] => Some("an RPM package"),
            [b'<', ..] => Some("a web page"),
            [0x04, 0x22, 0x4d, 0x18, ..] => Some("an lz4 file, which is not supported"),
            [b'L', b'Z', b'I', b'P', ..] | [0x5d, 0, 0, ..] => Some("an lzma file, which is not supported"),
            [.., 0x55, 0xaa] if first.len() == BLOCK => Some("a disk image"),
            _ => None,
        };
        TarballError::NotTar {
            archive: self.archive.clone(),
            looks_like,
        }
    }
}

/// The sum of all bytes, those of the sum itself taken as spaces. Old tars added signed bytes.
fn has_valid_checksum(header: &Header) -> bool {
    let bytes = header.as_bytes();
    let others = || bytes[..148].iter().chain(&bytes[156..]);
    let unsigned = others().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    let signed = others().map(|byte| i32::from(byte.cast_signed())).sum::<i32>() + 8 * 32;
    header
        .cksum()
        .is_ok_and(|sum| sum == unsigned || i64::from(sum) == i64::from(signed))
}
