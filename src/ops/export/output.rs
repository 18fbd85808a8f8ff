//! Where an archive goes: standard output, a file that is there when it is whole, or a layer of an image in a layout.
//!
//! The file has no name before: after an interruption, a kill or a power cut nothing of it is left.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;

use flate2::write::GzEncoder;
use liblzma::stream::{Check, MtStreamBuilder};
use liblzma::write::XzEncoder;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat, renameat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::layout::Layout;
use crate::machine::manifest::Part;
use crate::ops::OpError;
use crate::ops::cp::STDOUT;
use crate::sources::sum::Sum;
use crate::sys::files::{magic_link, shown, temporary_name};

/// How an archive is compressed. All of it is fixed, levels and blocks, so that the same tar makes the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Not at all.
    Tar,
    /// gzip
    Gzip,
    /// xz
    Xz,
    /// Zstandard
    Zstd,
}

/// Level of gzip(1).
const GZIP_LEVEL: u32 = 6;
/// Preset of xz(1), and bytes of a block: how many threads there are makes no difference then.
const XZ_PRESET: u32 = 6;
const XZ_BLOCK: u64 = 16 << 20;
/// Level of zstd(1).
const ZSTD_LEVEL: i32 = 3;

impl Format {
    /// The words and endings of each, the usual one first.
    const ALL: [(Self, &'static [&'static str]); 4] = [
        (Self::Tar, &["tar"]),
        (Self::Gzip, &["tar.gz", "tgz"]),
        (Self::Xz, &["tar.xz", "txz"]),
        (Self::Zstd, &["tar.zst", "tzst"]),
    ];

    /// What a file of that name is.
    #[must_use]
    pub fn of_file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let has = |ending: &str| {
            name.strip_suffix(ending)
                .is_some_and(|stem| stem.len() > 1 && stem.ends_with('.'))
        };
        Self::ALL
            .iter()
            .find(|(_, endings)| endings.iter().any(|ending| has(ending)))
            .map(|(format, _)| *format)
    }
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|(_, words)| words.contains(&text));
        found
            .map(|(format, _)| *format)
            .ok_or("expected tar, tar.gz, tar.xz or tar.zst")
    }
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file; whether one that is there is replaced.
    File(PathBuf, bool),
    /// An OCI layout, which may have other images.
    Layout(Layout),
    /// A disk image; whether one that is there is replaced.
    Disk(PathBuf, bool),
}

impl Target {
    /// What it is, for messages.
    #[must_use]
    pub fn label(&self) -> &Path {
        match self {
            Self::Stdout => Path::new(STDOUT),
            Self::File(path, _) | Self::Disk(path, _) => path,
            Self::Layout(layout) => &layout.directory,
        }
    }

    /// Refuses what cannot be written.
    pub(super) fn check(&self) -> Result<(), OpError> {
        let (path, replaces) = match self {
            Self::Stdout => return Ok(()),
            Self::File(path, replaces) | Self::Disk(path, replaces) => (path, replaces),
            Self::Layout(layout) => return layout.check(),
        };
        let refused = |message, hint: &str| {
            let hint = hint.to_owned();
            Err(OpError::Option { message, hint })
        };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => refused(
                format!("'{}' exists already, and is no plain file", shown(path)),
                "choose another name for the archive",
            ),
            Ok(_) if !replaces => refused(
                format!("file '{}' exists already", shown(path)),
                "replace it with --force, or choose another name",
            ),
            _ => Ok(()),
        }
    }
}

/// An archive that is being written.
pub(super) struct Output {
    encoder: Encoder,
    pub(super) file: Hidden,
    target: Target,
    /// What is added up.
    sum: Option<(Sha256, u64)>,
}

/// What is written while nothing is to be seen of it.
pub(super) enum Hidden {
    /// Standard output: all is seen.
    Stdout(File),
    /// A file without a name.
    Unnamed(File),
    /// One with a hidden name, where there are no others, as on NFS.
    Named(NamedTempFile),
}

enum Encoder {
    Tar(io::BufWriter<File>),
    Gzip(Box<GzEncoder<File>>),
    Xz(Box<XzEncoder<File>>),
    Zstd(Box<zstd::Encoder<'static, File>>),
}

/// Bytes that are written at once where nothing is compressed.
const PIECE: usize = 256 << 10;

impl Output {
    pub(super) fn create(target: &Target, format: Format) -> Result<Self, OpError> {
        let label = target.label();
        let file = match target {
            Target::Stdout => io::stdout()
                .as_fd()
                .try_clone_to_owned()
                .map(|fd| Hidden::Stdout(fd.into())),
            Target::File(path, _) | Target::Disk(path, _) => hidden(directory_of(path)),
            Target::Layout(layout) => hidden(layout.room()),
        };
        let file = file.map_err(OpError::path("write", label))?;
        let encoder = file
            .file()
            .try_clone()
            .and_then(|file| encoder(file, format))
            .map_err(OpError::path("write", label))?;
        Ok(Self {
            encoder,
            file,
            target: target.clone(),
            sum: None,
        })
    }

    /// Adds up what is written from here on.
    pub(super) fn begin_sum(&mut self) {
        self.sum = Some((Sha256::new(), 0));
    }

    /// The sum of what was written since, up to now.
    pub(super) fn sum(&self) -> Part {
        let (sum, size) = self.sum.clone().unwrap_or_default();
        part(sum, size)
    }

    /// Writes the end, and has the file be seen; that of a layout or a disk image is not seen yet.
    pub(super) fn finish(self) -> Result<Hidden, OpError> {
        let label = self.target.label();
        let ended = match self.encoder {
            Encoder::Tar(mut out) => out.flush(),
            Encoder::Gzip(out) => out.finish().map(drop),
            Encoder::Xz(out) => out.finish().map(drop),
            Encoder::Zstd(out) => out.finish().map(drop),
        };
        ended.map_err(OpError::path("write", label))?;
        let Target::File(path, replaces) = &self.target else {
            return Ok(self.file);
        };
        self.file.show(path, *replaces)
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let out: &mut dyn Write = match &mut self.encoder {
            Encoder::Tar(out) => out,
            Encoder::Gzip(out) => out,
            Encoder::Xz(out) => out,
            Encoder::Zstd(out) => out,
        };
        let written = out.write(buf)?;
        if let Some((sum, size)) = &mut self.sum {
            sum.update(&buf[..written]);
            *size += written as u64;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        // What an encoder holds comes at its end: a flush would make other bytes.
        Ok(())
    }
}

/// A part with that sum.
fn part(sum: Sha256, size: u64) -> Part {
    let sha256 = Sum::from_digest(sum).to_string();
    Part { sha256, size }
}

/// The part that these bytes are.
pub(in crate::ops) fn part_of(bytes: &[u8]) -> Part {
    part(Sha256::new().chain_update(bytes), bytes.len() as u64)
}

fn encoder(file: File, format: Format) -> io::Result<Encoder> {
    Ok(match format {
        Format::Tar => Encoder::Tar(io::BufWriter::with_capacity(PIECE, file)),
        Format::Gzip => Encoder::Gzip(Box::new(GzEncoder::new(file, flate2::Compression::new(GZIP_LEVEL)))),
        Format::Xz => {
            let threads = thread::available_parallelism().map_or(1, usize::from);
            let stream = MtStreamBuilder::new()
                .threads(u32::try_from(threads).unwrap_or(1))
                .block_size(XZ_BLOCK)
                .preset(XZ_PRESET)
                .check(Check::Crc64)
                .encoder()?;
            Encoder::Xz(Box::new(XzEncoder::new_stream(file, stream)))
        }
        Format::Zstd => {
            let mut encoder = zstd::Encoder::new(file, ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            Encoder::Zstd(Box::new(encoder))
        }
    })
}

/// The directory that a path is in.
pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A file in that directory of which nothing is seen yet. It will hold what only root may read.
pub(super) fn hidden(directory: &Path) -> io::Result<Hidden> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(Hidden::Unnamed(fd.into())),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let named = tempfile::Builder::new().prefix(".#machinist-").tempfile_in(directory);
            named.map(Hidden::Named)
        }
        Err(errno) => Err(errno.into()),
    }
}

impl Hidden {
    /// Has it be seen, all of it on the disk.
    pub(super) fn show(self, path: &Path, replaces: bool) -> Result<Self, OpError> {
        let shown = self.file().sync_all().and_then(|()| {
            Ok(match self {
                Self::Stdout(file) => Self::Stdout(file),
                Self::Unnamed(file) => {
                    name(&file, path, replaces)?;
                    Self::Unnamed(file)
                }
                Self::Named(file) if replaces => Self::Unnamed(file.persist(path)?),
                Self::Named(file) => Self::Unnamed(file.persist_noclobber(path)?),
            })
        });
        let shown = shown.map_err(OpError::path("write", path))?;
        crate::ops::create::sync_directory(directory_of(path))?;
        Ok(shown)
    }

    pub(super) fn file(&self) -> &File {
        match self {
            Self::Stdout(file) | Self::Unnamed(file) => file,
            Self::Named(file) => file.as_file(),
        }
    }
}

/// Gives it its name.
fn name(file: &File, path: &Path, replaces: bool) -> Result<(), Errno> {
    let link = |path: &Path| linkat(CWD, magic_link(file.as_fd()), CWD, path, AtFlags::SYMLINK_FOLLOW);
    match link(path) {
        Err(Errno::EXIST) if replaces => {
            // Nothing replaces a name but a rename.
            let temporary = directory_of(path).join(temporary_name(path.file_name().unwrap_or_default()));
            link(&temporary)?;
            renameat(CWD, &temporary, CWD, path).inspect_err(|_| {
                let _ = std::fs::remove_file(&temporary);
            })
        }
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Cancel;
    use crate::sources::archive::Contents;

    #[test]
    fn a_format_is_told_by_the_end_of_a_name() {
        let of = |name: &str| Format::of_file(Path::new(name));
        assert_eq!(of("web.tar"), Some(Format::Tar));
        assert_eq!(of("/a.b/web.TAR.zst"), Some(Format::Zstd));
        assert_eq!(
            (of("web.tgz"), of("web.tar.xz")),
            (Some(Format::Gzip), Some(Format::Xz))
        );
        for none in ["web", "web.raw", ".tar", "tar.zst", "web.zst", ""] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn a_file_is_there_when_it_is_whole_and_reads_back() {
        let place = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
        for (format, endings) in Format::ALL {
            let path = place.path().join(format!("a.{}", endings[0]));
            let make = |replaces| {
                let target = Target::File(path.clone(), replaces);
                let mut output = Output::create(&target, format)?;
                output.begin_sum();
                // In other pieces each time.
                for piece in bytes.chunks(if replaces { 100_000 } else { 12_345 }) {
                    output.write_all(piece).unwrap();
                }
                assert_eq!(output.sum(), part_of(&bytes));
                output.finish().map(drop)
            };
            make(false).unwrap();
            let first = std::fs::read(&path).unwrap();
            let error = make(false).unwrap_err();
            assert!(error.to_string().contains("cannot write"), "{error}");
            make(true).unwrap();
            assert!(std::fs::read(&path).unwrap() == first, "{format:?} differs");
            let mut contents = Contents::from_file(File::open(&path).unwrap(), &Cancel::default()).unwrap();
            let mut read = Vec::new();
            io::Read::read_to_end(&mut contents, &mut read).unwrap();
            assert!(read == bytes, "{format:?} does not read back");
        }
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 4);
        drop(Output::create(&Target::File(place.path().join("b.tar"), false), Format::Tar).unwrap());
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 4);
    }
}
