//! What is in a machine, as a tar stream: owners and attributes as the machine sees them.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{self, Mode, OFlags, SeekFrom, Stat};
use rustix::io::{Errno, pread};

use super::header::{BLOCK, Header, sparse_map};
use super::ids::Translation;
use super::kernel::{is_kernels, refuse_kernels};
use super::side::{Found, identity, reopen};
use super::walk::names;
use super::{Copied, Options};
use crate::machine::Cancel;
use crate::ops::OpError;
use crate::sys::files::{FileError, Kind, shown, xattr};

/// How names begin that hide others in layers of images, see layer.md of the image specification.
const WHITEOUT: &[u8] = b".wh.";
/// Bits of a mode that make a program run as another.
const SET_ID: u32 = 0o6000;
/// Bytes that are read at once.
const PIECE: usize = 256 << 10;
/// More pieces than that, and a sparse file is written whole.
const PIECES_MAX: usize = 10_000;
/// How deep a tree may be.
const DEPTH_MAX: usize = 2048;
/// How long a name in the stream may be: each directory on the way has one.
const NAME_MAX: usize = 16 << 10;
/// How many bytes of names are remembered; files that come after that are written once for each name.
const LINKED_MAX: usize = 64 << 20;

/// A stream that is written.
pub(in crate::ops) struct Pack<'a, W> {
    pub(in crate::ops) out: W,
    /// What it is, for messages.
    label: &'a Path,
    /// Whether device nodes are written.
    pub(in crate::ops) keeps_devices: bool,
    /// Whether it is a layer of an image, in which some names mean that files are hidden.
    pub(in crate::ops) is_layer: bool,
    /// The time of what was changed last, in seconds.
    pub(in crate::ops) newest: i64,
    pub(in crate::ops) options: Options,
    pub(in crate::ops) ids: Translation,
    pub(in crate::ops) cancel: &'a Cancel,
    pub(in crate::ops) check: &'a dyn Fn() -> Result<(), OpError>,
    pub(in crate::ops) copied: &'a AtomicU64,
    pub(in crate::ops) done: Copied,
    /// The first name of a file with several.
    pub(in crate::ops) links: HashMap<(u64, u64), Vec<u8>>,
    /// Bytes of these names.
    linked: usize,
    pub(in crate::ops) scratch: xattr::Scratch,
    pub(in crate::ops) buffer: Vec<u8>,
}

impl<'a, W: Write> Pack<'a, W> {
    pub(in crate::ops) fn new(
        (out, label): (W, &'a Path),
        options: Options,
        ids: Translation,
        cancel: &'a Cancel,
        check: &'a dyn Fn() -> Result<(), OpError>,
        copied: &'a AtomicU64,
    ) -> Self {
        Self {
            out,
            label,
            keeps_devices: options.keep_special,
            is_layer: false,
            newest: 0,
            options,
            ids,
            cancel,
            check,
            copied,
            done: Copied::default(),
            links: HashMap::new(),
            linked: 0,
            scratch: xattr::Scratch::default(),
            buffer: vec![0; PIECE],
        }
    }

    /// Writes all of it, under its own name, or `.` for what is in a directory.
    pub(in crate::ops) fn run(&mut self, found: &Found) -> Result<(), OpError> {
        let name = match &found.name {
            Some(name) if !found.contents => name.as_bytes().to_vec(),
            _ => b".".to_vec(),
        };
        self.tree(found, &name)?;
        self.end()
    }

    /// Writes all of it under this name.
    pub(in crate::ops) fn tree(&mut self, found: &Found, name: &[u8]) -> Result<(), OpError> {
        refuse_kernels(found)?;
        self.entry(&found.fd, &found.stat, name, &found.label, 0)
    }

    /// Writes a small file that is in no tree.
    pub(in crate::ops) fn member(&mut self, name: &str, bytes: &[u8]) -> Result<(), OpError> {
        self.put(&member(name, bytes))
    }

    /// Writes the mark of the end.
    pub(in crate::ops) fn end(&mut self) -> Result<(), OpError> {
        self.put(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(OpError::path("write", self.label))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), OpError> {
        self.out.write_all(bytes).map_err(OpError::path("write", self.label))
    }

    fn entry(&mut self, fd: &OwnedFd, stat: &Stat, name: &[u8], label: &Path, depth: usize) -> Result<(), OpError> {
        self.cancel.check()?;
        (self.check)()?;
        let failed = |errno: Errno| OpError::from(FileError::io("copy", label)(errno));
        let kind = Kind::from_mode(stat.st_mode);
        let mut header = self.header(stat, kind, name);
        match kind {
            Kind::Socket => self.done.skipped.sockets += 1,
            Kind::CharDevice | Kind::BlockDevice if !self.keeps_devices => self.done.skipped.devices += 1,
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                header.kind = match kind {
                    Kind::CharDevice => b'3',
                    Kind::BlockDevice => b'4',
                    _ => b'6',
                };
                if kind != Kind::Fifo {
                    header.device = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
                }
                self.write(&header)?;
                self.done.files += 1;
            }
            Kind::Symlink => {
                let text = fs::readlinkat(fd, c"", Vec::new()).map_err(failed)?;
                (header.kind, header.link) = (b'2', text.into_bytes());
                header.mode = 0o777;
                self.write(&header)?;
                self.done.links += 1;
            }
            Kind::Directory => return self.directory(fd, stat, header, label, depth),
            Kind::File => {
                if let Some(first) = self.links.get(&identity(stat)).filter(|_| stat.st_nlink > 1).cloned() {
                    (header.kind, header.link) = (b'1', first);
                    self.write(&header)?;
                    self.done.files += 1;
                    return Ok(());
                }
                let file = reopen(fd, OFlags::empty()).map_err(failed)?;
                self.attributes(&file, &mut header).map_err(failed)?;
                self.file(&file, stat, header, label)?;
                if stat.st_nlink > 1 && self.linked < LINKED_MAX {
                    self.linked += name.len();
                    self.links.insert(identity(stat), name.to_vec());
                }
            }
        }
        Ok(())
    }

    fn header(&mut self, stat: &Stat, kind: Kind, name: &[u8]) -> Header {
        let mut mode = stat.st_mode & 0o7777;
        if kind == Kind::File && mode & SET_ID != 0 && !self.options.keep_special {
            mode &= !SET_ID;
            self.done.stripped += 1;
        }
        self.newest = self.newest.max(stat.st_mtime);
        let (uid, gid) = self.ids.owner(stat.st_uid, stat.st_gid);
        Header {
            name: name.to_vec(),
            mode,
            uid,
            gid,
            mtime: stat.st_mtime,
            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ..Header::default()
        }
    }

    fn attributes(&mut self, fd: &OwnedFd, header: &mut Header) -> Result<(), Errno> {
        let (ids, records, stripped) = (&self.ids, &mut header.records, &mut self.done.stripped);
        let add = |name: &CStr, value: &[u8]| -> Result<(), Errno> {
            *stripped += u64::from(!ids.capabilities && name == c"security.capability");
            if let Some(value) = ids.attribute(name.to_bytes(), value) {
                records.push(([b"SCHILY.xattr.", name.to_bytes()].concat(), value));
            }
            Ok(())
        };
        xattr::each(fd.as_fd(), &mut self.scratch, add)?;
        // The kernel lists them as they came: the same file is to make the same bytes.
        header.records.sort();
        Ok(())
    }

    fn write(&mut self, header: &Header) -> Result<(), OpError> {
        self.put(&header.blocks())
    }

    fn directory(
        &mut self,
        fd: &OwnedFd,
        stat: &Stat,
        mut header: Header,
        label: &Path,
        depth: usize,
    ) -> Result<(), OpError> {
        let failed = |errno: Errno| OpError::from(FileError::io("copy", label)(errno));
        if depth > DEPTH_MAX || header.name.len() > NAME_MAX {
            return Err(failed(Errno::NAMETOOLONG));
        }
        let here = reopen(fd, OFlags::DIRECTORY).map_err(failed)?;
        self.attributes(&here, &mut header).map_err(failed)?;
        header.kind = b'5';
        header.name.push(b'/');
        let name = header.name.clone();
        self.write(&header)?;
        self.done.directories += 1;
        for inner in names(&here).map_err(failed)? {
            let (path, label) = ([&name, inner.as_bytes()].concat(), label.join(&inner));
            if self.is_layer && inner.as_bytes().starts_with(WHITEOUT) {
                return Err(OpError::Option {
                    message: format!(
                        "an image cannot have '{}': there, such a name says that a file is hidden",
                        shown(&label)
                    ),
                    hint: "export the machine to FILE.tar.zst, or remove that file".to_owned(),
                });
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = fs::openat(&here, &inner, flags, Mode::empty()).and_then(|fd| Ok((fs::fstat(&fd)?, fd)));
            let (found, inner) = match found {
                // It is gone since: whoever is copied may be at work.
                Err(Errno::NOENT) => continue,
                found => found.map_err(FileError::io("copy", &label))?,
            };
            if found.st_dev != stat.st_dev && is_kernels(&inner).map_err(FileError::io("copy", &label))? {
                self.done.skipped.kernel += 1;
                if Kind::from_mode(found.st_mode) == Kind::Directory {
                    let path = [&path[..], b"/"].concat();
                    let mut header = self.header(&found, Kind::Directory, &path);
                    header.kind = b'5';
                    self.write(&header)?;
                }
                continue;
            }
            self.entry(&inner, &found, &path, &label, depth + 1)?;
        }
        Ok(())
    }

    fn file(&mut self, file: &OwnedFd, stat: &Stat, mut header: Header, label: &Path) -> Result<(), OpError> {
        let failed = |errno: Errno| OpError::from(FileError::io("copy", label)(errno));
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let is_sparse = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        let mut pieces = vec![(0, size)];
        let mut map = Vec::new();
        // A compressed file takes less than its size, and has no holes.
        let found = if is_sparse {
            pieces_of(file, size).map_err(failed)?
        } else {
            None
        };
        if let Some(found) = found.filter(|found| *found != pieces) {
            pieces = found;
            // The end is told by a piece without bytes.
            let mut told = pieces.clone();
            told.push((size, 0));
            map = sparse_map(&told);
            for (key, value) in [
                ("GNU.sparse.major", b"1".to_vec()),
                ("GNU.sparse.minor", b"0".to_vec()),
                ("GNU.sparse.name", header.name.clone()),
                ("GNU.sparse.realsize", size.to_string().into_bytes()),
            ] {
                header.records.push((key.as_bytes().to_vec(), value));
            }
            header.name = [&b"GNUSparseFile.0/"[..], &header.name].concat();
        }
        let data: u64 = pieces.iter().map(|(_, length)| length).sum();
        (header.kind, header.size) = (b'0', data + map.len() as u64);
        self.write(&header)?;
        self.put(&map)?;
        for (offset, length) in pieces {
            self.piece(file, offset, length).map_err(failed)??;
        }
        let padding = usize::try_from(data.next_multiple_of(BLOCK as u64) - data).unwrap_or(0);
        self.put(&[0; BLOCK][..padding])?;
        self.done.files += 1;
        self.done.bytes += size;
        Ok(())
    }

    /// Writes exactly so many bytes: zeros where the file became shorter.
    fn piece(&mut self, file: &OwnedFd, mut offset: u64, mut length: u64) -> Result<Result<(), OpError>, Errno> {
        while length > 0 {
            if let Err(cancelled) = self.cancel.check() {
                return Ok(Err(cancelled.into()));
            }
            let wanted = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
            let mut read = match pread(file, &mut self.buffer[..wanted], offset) {
                Err(Errno::INTR) => continue,
                read => read?,
            };
            if read == 0 {
                self.buffer[..wanted].fill(0);
                read = wanted;
            }
            if let Err(error) = self.out.write_all(&self.buffer[..read]) {
                return Ok(Err(OpError::path("write", self.label)(error)));
            }
            self.copied.fetch_add(read as u64, Ordering::Relaxed);
            offset += read as u64;
            length -= read as u64;
        }
        Ok(Ok(()))
    }
}

/// A small file that is in no tree, as it is in a stream.
pub(in crate::ops) fn member(name: &str, bytes: &[u8]) -> Vec<u8> {
    let header = Header {
        name: name.as_bytes().to_vec(),
        kind: b'0',
        mode: 0o600,
        size: bytes.len() as u64,
        ..Header::default()
    };
    let mut blocks = header.blocks();
    blocks.extend(bytes);
    blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
    blocks
}

/// Where a file has data; `None` if that cannot be told, or not in short.
fn pieces_of(file: &OwnedFd, size: u64) -> Result<Option<Vec<(u64, u64)>>, Errno> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    while at < size && pieces.len() < PIECES_MAX {
        let start = match fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(Some(pieces)),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            start => start?,
        };
        let end = match fs::seek(file, SeekFrom::Hole(start)) {
            // It has become shorter.
            Err(Errno::NXIO) => return Ok(Some(pieces)),
            end => end?.min(size),
        };
        if end <= start {
            return Ok(Some(pieces));
        }
        pieces.push((start, end - start));
        at = end;
    }
    Ok((at >= size).then_some(pieces))
}
