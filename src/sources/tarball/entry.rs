//! Headers of a tar archive, one entry after the other, see tar(5) and pax(1p).
//!
//! The `tar` crate reads the fields of a header block. The rest is ours, because its reader holds extended headers of any
//! size in memory, takes a newline in a pax value for its end, and takes a cut file for a complete one.

use std::io;
use std::sync::Arc;

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::blocks::{BLOCK, Blocks};
use super::pax::{self, Records, Sparse};
use super::{Problem, TarballError};
use crate::sys::files::xattr::is_harmless;

/// The longest extended header or long name that is held in memory, in bytes.
const MAX_EXTENSION: u64 = 8 << 20;

/// `S_IFMT` and `S_IFSOCK` of inode(7): star and old tars write the whole `st_mode`.
const TYPE_MASK: u32 = 0o170_000;
const TYPE_SOCKET: u32 = 0o140_000;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A regular file; with its size in bytes if there are holes, maybe at its end.
    File {
        sparse: Option<u64>,
    },
    Directory,
    /// A symbolic link, with its text.
    Symlink(Vec<u8>),
    /// A hard link, with the name of an earlier entry.
    HardLink(Vec<u8>),
    Fifo,
    Device,
    Socket,
}

/// One entry, its names as they stand in the archive.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) content: Content,
    pub(super) attributes: Attributes,
    /// Extended attributes that were dropped.
    pub(super) skipped_xattrs: u64,
    /// Whether there was an ACL in the form of text.
    pub(super) acl_text: bool,
}

/// What chown(2), chmod(2), utimensat(2) and setxattr(2) set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Permission bits, set-user-ID and the like included.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// Names and values.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// Bytes of the extended attributes.
    pub(super) fn xattr_bytes(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl Entry {
    /// Whether it lies in the directory `top` at the root.
    pub(super) fn is_below(&self, top: &[u8]) -> bool {
        let mut names = self
            .name
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".");
        names.next() == Some(top) && names.next().is_some()
    }
}

/// Headers that describe the next entry.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Records,
}

impl Blocks {
    /// The next entry, past whatever was not read of the last one; `None` after the end marker.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarballError> {
        let mut extensions = Extensions::default();
        loop {
            self.end_entry()?;
            let Some(header) = self.header()? else {
                if extensions.name.is_some() || extensions.link.is_some() || !extensions.pax.is_empty() {
                    return Err(self.truncated("after a header that describes the next entry"));
                }
                return Ok(None);
            };
            self.name = header.path_bytes().into_owned();
            match header.entry_type().as_byte() {
                b'L' => extensions.name = Some(self.long_name(&header)?),
                b'K' => extensions.link = Some(self.long_name(&header)?),
                b'x' => {
                    let bytes = self.extension(&header)?;
                    extensions.pax.read(&bytes).map_err(|problem| self.bad(problem))?;
                }
                b'g' => {
                    let bytes = self.extension(&header)?;
                    let read = Arc::make_mut(&mut self.global).read(&bytes);
                    read.map_err(|problem| self.bad(problem))?;
                }
                // A label of a volume, and extended headers of Solaris.
                b'V' | b'X' | b'A' => self.data_follows(self.size(&header, None)?),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, TarballError> {
        let records = extensions.pax.over(&self.global);
        let sparse_name = records.get("GNU.sparse.name").or(records.get("path"));
        if let Some(name) = sparse_name.map(<[u8]>::to_vec).or(extensions.name) {
            self.name = name;
        }
        let link = records.get("linkpath").map(<[u8]>::to_vec).or(extensions.link);
        let link = link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let attributes = self.attributes(header, &records)?;
        let size = self.size(header, Some(&records))?;
        let kind = header.entry_type();
        let mode = header.mode().map_err(|_| self.bad(Problem::BadField("mode")))?;
        let content = match kind {
            // Links, directories and the like have no data, whatever their size field says: there it is a hint.
            EntryType::Link => Content::HardLink(link),
            EntryType::Symlink => Content::Symlink(link),
            EntryType::Directory => Content::Directory,
            EntryType::Char | EntryType::Block => Content::Device,
            EntryType::Fifo => Content::Fifo,
            EntryType::GNUSparse => self.old_sparse(header, size)?,
            EntryType::Regular | EntryType::Continuous if self.name.ends_with(b"/") => {
                self.data_follows(size);
                Content::Directory
            }
            EntryType::Regular if size == 0 && mode & TYPE_MASK == TYPE_SOCKET => Content::Socket,
            EntryType::Regular | EntryType::Continuous => self.regular(&records, size)?,
            _ => match kind.as_byte() {
                // A directory in an incremental archive; its data lists what was there.
                b'D' => {
                    self.data_follows(size);
                    Content::Directory
                }
                other => return Err(self.bad(Problem::Unsupported(char::from(other)))),
            },
        };
        let mut entry = Entry {
            name: self.name.clone(),
            content,
            attributes,
            skipped_xattrs: 0,
            acl_text: false,
        };
        for (name, value) in records.with_prefix(pax::XATTR) {
            if is_harmless(name) {
                entry.attributes.xattrs.push((name.to_vec(), value.to_vec()));
            } else {
                entry.skipped_xattrs += 1;
            }
        }
        let mut acls = records.with_prefix(b"SCHILY.acl.").into_values();
        entry.acl_text = acls.any(|text| !text.is_empty());
        Ok(entry)
    }

    fn attributes(&self, header: &Header, records: &Records) -> Result<Attributes, TarballError> {
        let owner = |key: &'static str, field: io::Result<u64>| {
            let id = match records.number(key) {
                Ok(Some(id)) => id,
                Ok(None) => field.map_err(|_| self.bad(Problem::BadField(key)))?,
                Err(problem) => return Err(self.bad(problem)),
            };
            // The highest means "leave it" to chown(2).
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| self.bad(Problem::BadField(key)))
        };
        let mtime = match records.time("mtime").map_err(|problem| self.bad(problem))? {
            Some(time) => time,
            // In base 256 the field may be negative.
            None => (
                header
                    .mtime()
                    .map_err(|_| self.bad(Problem::BadField("mtime")))?
                    .cast_signed(),
                0,
            ),
        };
        Ok(Attributes {
            mode: header.mode().map_err(|_| self.bad(Problem::BadField("mode")))? & 0o7777,
            uid: owner("uid", header.uid())?,
            gid: owner("gid", header.gid())?,
            mtime,
            xattrs: Vec::new(),
        })
    }

    /// Bytes that follow in the archive.
    fn size(&self, header: &Header, records: Option<&Records>) -> Result<u64, TarballError> {
        let size = match records.map(|records| records.number("size")).transpose() {
            Ok(size) => size.flatten(),
            Err(problem) => return Err(self.bad(problem)),
        };
        let size = size
            .map_or_else(|| header.entry_size(), Ok)
            .map_err(|_| self.bad(Problem::BadField("size")))?;
        // Leaves room for the padding; nothing that large can follow.
        if size > i64::MAX as u64 {
            return Err(self.bad(Problem::BadField("size")));
        }
        Ok(size)
    }

    fn regular(&mut self, records: &Records, size: u64) -> Result<Content, TarballError> {
        self.data_follows(size);
        let bad = |problem| TarballError::entry(&self.name, problem);
        let real = records.number("GNU.sparse.realsize").map_err(bad)?;
        let real = real
            .map_or_else(|| records.number("GNU.sparse.size"), |size| Ok(Some(size)))
            .map_err(bad)?;
        let Some(real) = real else {
            self.pieces = if size > 0 { vec![(0, size)] } else { Vec::new() };
            return Ok(Content::File { sparse: None });
        };
        let map = match records.number("GNU.sparse.major").map_err(bad)? {
            None | Some(0) => pax::old_map(records).map_err(bad)?,
            Some(1) => self.sparse_map()?,
            Some(_) => return Err(bad(Problem::SparseMap)),
        };
        let data = self.data;
        self.sparse(real, map, data)
    }

    /// The list in front of the data in format 1.0: decimal numbers, a line each, their count first.
    fn sparse_map(&mut self) -> Result<Vec<(u64, u64)>, TarballError> {
        let mut numbers = Vec::new();
        let mut count = None;
        let mut line = Vec::new();
        let mut read = 0;
        loop {
            let mut block = [0; BLOCK];
            read += BLOCK as u64;
            if self.data < BLOCK as u64 || read > MAX_EXTENSION {
                return Err(self.bad(Problem::SparseMap));
            }
            if self.fill(&mut block)? < BLOCK {
                return Err(self.truncated_inside());
            }
            self.data -= BLOCK as u64;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let number = pax::decimal(&line).ok_or_else(|| self.bad(Problem::SparseMap))?;
                line.clear();
                if count.is_none() {
                    count = Some(number.checked_mul(2).ok_or_else(|| self.bad(Problem::SparseMap))?);
                } else {
                    numbers.push(number);
                }
                if count == Some(numbers.len() as u64) {
                    return pax::pairs(&numbers).map_err(|problem| self.bad(problem));
                }
            }
        }
    }

    /// GNU's old format: four pieces in the header, more in blocks after it.
    fn old_sparse(&mut self, header: &Header, size: u64) -> Result<Content, TarballError> {
        let bad = || TarballError::entry(&self.name, Problem::SparseMap);
        let gnu = header.as_gnu().ok_or_else(bad)?;
        let file_size = gnu.real_size().map_err(|_| bad())?;
        let mut map = Vec::new();
        let mut add = |pieces: &[tar::GnuSparseHeader]| {
            for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                map.push((piece.offset()?, piece.length()?));
            }
            Ok::<_, io::Error>(())
        };
        add(&gnu.sparse).map_err(|_| bad())?;
        let mut more = gnu.is_extended();
        let mut read = 0;
        while more {
            let mut next = GnuExtSparseHeader::new();
            if self.fill(next.as_mut_bytes())? < BLOCK {
                return Err(self.truncated_inside());
            }
            read += BLOCK as u64;
            if read > MAX_EXTENSION || add(next.sparse()).is_err() {
                return Err(self.bad(Problem::SparseMap));
            }
            more = next.is_extended();
        }
        self.data_follows(size);
        self.sparse(file_size, map, size)
    }

    fn sparse(&mut self, real: u64, map: Vec<(u64, u64)>, data: u64) -> Result<Content, TarballError> {
        let mut sparse = Sparse::new(real, map, data).map_err(|problem| self.bad(problem))?;
        sparse.pieces.reverse();
        self.pieces = sparse.pieces;
        Ok(Content::File {
            sparse: Some(sparse.size),
        })
    }

    /// The bytes of a header that describes the next entry.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarballError> {
        let size = self.size(header, None)?;
        if size > MAX_EXTENSION {
            return Err(self.bad(Problem::HugeExtension(size)));
        }
        self.data_follows(size);
        let mut bytes = Vec::new();
        while bytes.len() as u64 != size {
            self.pieces = vec![(0, size - bytes.len() as u64)];
            self.read_piece(&mut bytes)?;
        }
        self.pieces.clear();
        Ok(bytes)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, TarballError> {
        let mut name = self.extension(header)?;
        // The end of the name is its first NUL, as in C.
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn bad(&self, problem: Problem) -> TarballError {
        TarballError::entry(&self.name, problem)
    }
}
