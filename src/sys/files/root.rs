//! [`Root`]: the tree of a guest, which nothing leads out of.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use super::error::{FileError, Kind};
use super::host::temporary_name;
use super::replace::replace;
use super::tree;

/// How many symbolic links [`Root::resolve`] follows: as many as the kernel does, see `path_resolution(7)`.
const MAX_LINKS: usize = 40;

/// How often a lookup is repeated that the kernel gave up because of a concurrent rename, see openat2(2), EAGAIN.
const MAX_RETRIES: usize = 128;

/// The part of a user or group number that tells by how much a tree is shifted, see `PrivateUsers=` in systemd.nspawn(5).
const SHIFT_MASK: u32 = 0xffff_0000;

/// A directory that is `/` to every path looked up in it: `..` and absolute links stay inside.
///
/// All paths are relative to it; a leading `/` means the same directory. Links are followed inside the root unless a
/// method says otherwise. What is newly made belongs to the guest's root user, also where a tree was shifted for private
/// users.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
    /// Whose is what is made, if that is known.
    maker: Option<(Uid, Gid)>,
}

impl Root {
    /// Opens `path`, a directory of the host whose own path is trusted.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::openat(CWD, path, flags, Mode::empty()).map_err(FileError::io("open directory", path))?;
        Ok(Self {
            fd,
            path: path.to_path_buf(),
            maker: None,
        })
    }

    /// A directory that is open (`O_PATH` will do); its path is for messages.
    pub(crate) fn of(fd: OwnedFd, path: &Path) -> Self {
        Self {
            fd,
            path: path.to_path_buf(),
            maker: None,
        }
    }

    /// Says who the guest's root user is, where more is known than the owner of `/` tells.
    pub(crate) fn owned_by(mut self, uid: u32, gid: u32) -> Self {
        self.maker = Some((Uid::from_raw(uid), Gid::from_raw(gid)));
        self
    }

    /// The path that it was opened by, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a regular file of at most `cap` bytes. Never blocks on a fifo and never opens a device.
    pub fn read(&self, rel: impl AsRef<Path>, cap: u64) -> Result<Vec<u8>, FileError> {
        let rel = rel.as_ref();
        let path = self.full(rel);
        let found = self.open_at(rel, OFlags::PATH).map_err(FileError::io("read", &path))?;
        read_found(found.as_fd(), &path, cap)
    }

    /// Like [`Root::read`], for text.
    pub fn read_to_string(&self, rel: impl AsRef<Path>, cap: u64) -> Result<String, FileError> {
        let rel = rel.as_ref();
        String::from_utf8(self.read(rel, cap)?).map_err(|_| FileError::NotUtf8 { path: self.full(rel) })
    }

    /// Opens `rel`, a regular file and no link, for reading. Never blocks on a fifo and never opens a device.
    pub fn open_file(&self, rel: impl AsRef<Path>) -> Result<File, FileError> {
        let rel = rel.as_ref();
        let path = self.full(rel);
        let found = self
            .open_at(rel, OFlags::PATH | OFlags::NOFOLLOW)
            .map_err(FileError::io("read", &path))?;
        open_found(found.as_fd(), &path)
    }

    /// What `rel` itself is, without following it if it is a link; `None` if there is nothing.
    pub fn kind(&self, rel: impl AsRef<Path>) -> Result<Option<Kind>, FileError> {
        let rel = rel.as_ref();
        match self
            .open_at(rel, OFlags::PATH | OFlags::NOFOLLOW)
            .and_then(|fd| fs::fstat(&fd))
        {
            Ok(stat) => Ok(Some(Kind::from_mode(stat.st_mode))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(FileError::io("look at", &self.full(rel))(errno)),
        }
    }

    /// What device `rel` itself is: its kind and number; `None` if there is none.
    pub fn device(&self, rel: impl AsRef<Path>) -> Result<Option<(Kind, u64)>, FileError> {
        let rel = rel.as_ref();
        match self
            .open_at(rel, OFlags::PATH | OFlags::NOFOLLOW)
            .and_then(|fd| fs::fstat(&fd))
        {
            Ok(stat) => {
                let kind = Kind::from_mode(stat.st_mode);
                let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
                Ok(is_device.then_some((kind, stat.st_rdev)))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(FileError::io("look at", &self.full(rel))(errno)),
        }
    }

    /// Makes a device where nothing is.
    pub fn make_device(&self, rel: impl AsRef<Path>, kind: Kind, mode: u32, number: u64) -> Result<(), FileError> {
        let rel = rel.as_ref();
        let (parent, name) = self.parent(rel, "make")?;
        let file_type = match kind {
            Kind::BlockDevice => fs::FileType::BlockDevice,
            _ => fs::FileType::CharacterDevice,
        };
        let make = || {
            fs::mknodat(&parent, name, file_type, Mode::from_raw_mode(0o600), number)?;
            // Whoever owns the directory may have put a link in its place.
            let made = fs::openat(
                &parent,
                name,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let stat = fs::fstat(&made)?;
            if (Kind::from_mode(stat.st_mode), stat.st_rdev) != (kind, number) {
                return Err(Errno::EXIST);
            }
            fs::chmodat(
                CWD,
                magic_link(made.as_fd()),
                Mode::from_raw_mode(mode),
                AtFlags::empty(),
            )
        };
        make().map_err(FileError::io("make", &self.full(rel)))
    }

    /// Whether the file where `rel` ends can be executed by anybody; `None` if there is no file.
    #[must_use]
    pub fn is_executable(&self, rel: impl AsRef<Path>) -> Option<bool> {
        let stat = self
            .open_at(rel.as_ref(), OFlags::PATH)
            .and_then(|fd| fs::fstat(&fd))
            .ok()?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        let is_file = Kind::from_mode(stat.st_mode) == Kind::File;
        is_file.then(|| mode.intersects(Mode::XUSR | Mode::XGRP | Mode::XOTH))
    }

    /// The path within the root, without a leading `/`, where `rel` ends once all links are followed; it exists. Empty
    /// for the root itself. At most 40 links are followed.
    pub fn resolve(&self, rel: impl AsRef<Path>) -> Result<PathBuf, FileError> {
        let rel = rel.as_ref();
        self.walk(rel).map_err(FileError::io("resolve", &self.full(rel)))
    }

    /// Follows links by hand because the kernel tells where a lookup ended only by way of /proc, which fails over
    /// names that end in " (deleted)" and over trees that are mounted twice.
    fn walk(&self, rel: &Path) -> Result<PathBuf, Errno> {
        let mut links = 0;
        let mut done: Vec<(OwnedFd, OsString)> = Vec::new();
        let mut todo: Vec<OsString> = Vec::new();
        push_components(&mut todo, rel);
        while let Some(name) = todo.pop() {
            if name == ".." {
                done.pop();
                continue;
            }
            let here = done.last().map_or(self.fd.as_fd(), |(fd, _)| fd.as_fd());
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = fs::openat(here, &name, flags, Mode::empty())?;
            if Kind::from_mode(fs::fstat(&fd)?.st_mode) == Kind::Symlink {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = fs::readlinkat(&fd, "", Vec::new())?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    done.clear();
                }
                push_components(&mut todo, &target);
            } else {
                done.push((fd, name));
            }
        }
        Ok(done.into_iter().map(|(_, name)| name).collect())
    }

    /// Writes a whole file atomically: a temporary file beside it, fsync, rename. A link of that name is replaced, not
    /// followed. `mode` is set exactly; the owner of a regular file that is replaced is kept.
    pub fn write(&self, rel: impl AsRef<Path>, bytes: &[u8], mode: u32) -> Result<(), FileError> {
        let rel = rel.as_ref();
        let path = self.full(rel);
        let (parent, name) = self.parent(rel, "write")?;
        let owner = match fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if Kind::from_mode(stat.st_mode) == Kind::File => {
                (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
            }
            _ => self.owner()?,
        };
        replace(parent.as_fd(), name, bytes, mode, owner).map_err(FileError::io("write", &path))
    }

    /// Makes a directory and those on the way to it, each with `mode`; one that exists is left as it is.
    pub fn create_dir_all(&self, rel: impl AsRef<Path>, mode: u32) -> Result<(), FileError> {
        let rel = rel.as_ref();
        let (uid, gid) = self.owner()?;
        let mut prefix = PathBuf::new();
        for component in rel.components() {
            prefix.push(component);
            let path = self.full(&prefix);
            let failed = "create directory";
            match self.open_at(&prefix, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(_) => continue,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(FileError::io(failed, &path)(errno)),
            }
            let (parent, name) = self.parent(&prefix, failed)?;
            fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)).map_err(FileError::io(failed, &path))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fs::openat(&parent, name, flags, Mode::empty())
                .and_then(|made| {
                    fs::fchown(&made, Some(uid), Some(gid))?;
                    fs::fchmod(&made, Mode::from_raw_mode(mode))
                })
                .map_err(FileError::io(failed, &path))?;
        }
        Ok(())
    }

    /// Where the link leads that is at `rel`, as it stands there.
    pub fn read_link(&self, rel: impl AsRef<Path>) -> Result<PathBuf, FileError> {
        let rel = rel.as_ref();
        let link = self.open_at(rel, OFlags::PATH | OFlags::NOFOLLOW);
        let target = link.and_then(|link| fs::readlinkat(link, "", Vec::new()));
        let target = target.map_err(FileError::io("read", &self.path.join(rel)))?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// Makes `rel` a symbolic link with the text `target`, replacing atomically what has that name and is no directory.
    pub fn symlink(&self, target: impl AsRef<Path>, rel: impl AsRef<Path>) -> Result<(), FileError> {
        let rel = rel.as_ref();
        let path = self.full(rel);
        let (parent, name) = self.parent(rel, "link")?;
        let (uid, gid) = self.owner()?;
        let temporary = loop {
            let temporary = temporary_name(name);
            match fs::symlinkat(target.as_ref(), &parent, &temporary) {
                Ok(()) => break temporary,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(FileError::io("link", &path)(errno)),
            }
        };
        fs::chownat(&parent, &temporary, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|()| fs::renameat(&parent, &temporary, &parent, name))
            .map_err(|errno| {
                let _ = fs::unlinkat(&parent, &temporary, AtFlags::empty());
                FileError::io("link", &path)(errno)
            })
    }

    /// Removes a file or link (not what it points to).
    pub fn remove_file(&self, rel: impl AsRef<Path>) -> Result<(), FileError> {
        let rel = rel.as_ref();
        let (parent, name) = self.parent(rel, "remove")?;
        fs::unlinkat(&parent, name, AtFlags::empty()).map_err(FileError::io("remove", &self.full(rel)))
    }

    /// Removes a directory and everything in it, following no link.
    pub fn remove_dir_all(&self, rel: impl AsRef<Path>) -> Result<(), FileError> {
        let rel = rel.as_ref();
        let (parent, name) = self.parent(rel, "remove")?;
        tree::remove_at(parent.as_fd(), name, &self.full(rel))
    }

    /// The names in a directory, sorted by bytes, without `.` and `..`.
    pub fn list(&self, rel: impl AsRef<Path>) -> Result<Vec<OsString>, FileError> {
        let rel = rel.as_ref();
        let failed = || FileError::io::<Errno>("list", &self.full(rel));
        let fd = self
            .open_at(rel, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| failed()(e))?;
        let mut names = Vec::new();
        for entry in fs::Dir::new(fd).map_err(|e| failed()(e))? {
            let entry = entry.map_err(|e| failed()(e))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Sets the permission bits of what `rel` leads to.
    pub fn chmod(&self, rel: impl AsRef<Path>, mode: u32) -> Result<(), FileError> {
        let rel = rel.as_ref();
        self.open_at(rel, OFlags::PATH)
            // fchmod(2) refuses O_PATH, and fchmodat2(2) is newer than Debian 12's kernel.
            .and_then(|fd| fs::chmodat(CWD, magic_link(fd.as_fd()), Mode::from_raw_mode(mode), AtFlags::empty()))
            .map_err(FileError::io("change the mode of", &self.full(rel)))
    }

    /// The permission bits of what `rel` leads to; `None` if there is nothing.
    pub fn mode(&self, rel: impl AsRef<Path>) -> Result<Option<u32>, FileError> {
        let rel = rel.as_ref();
        match self.open_at(rel, OFlags::PATH).and_then(|fd| fs::fstat(&fd)) {
            Ok(stat) => Ok(Some(stat.st_mode & 0o7777)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(FileError::io("look at", &self.full(rel))(errno)),
        }
    }

    /// Makes a user and a group, as the guest numbers them, the owners of what has this name: of a link itself.
    pub fn give(&self, rel: impl AsRef<Path>, uid: u32, gid: u32) -> Result<(), FileError> {
        let rel = rel.as_ref();
        let failed = || FileError::io("change the owner of", &self.full(rel));
        let (base_uid, base_gid) = self.owner()?;
        if !geteuid().is_root() {
            return Ok(());
        }
        let (uid, gid) = (base_uid.as_raw() + uid, base_gid.as_raw() + gid);
        let found = self
            .open_at(rel, OFlags::PATH | OFlags::NOFOLLOW)
            .map_err(|e| failed()(e))?;
        fs::chownat(
            &found,
            "",
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::EMPTY_PATH,
        )
        .map_err(|e| failed()(e))
    }

    /// A file or directory inside, by open(2) flags; `O_CLOEXEC` is added.
    pub(crate) fn open_at(&self, rel: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        open_in(
            self.fd.as_fd(),
            rel,
            flags,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// The directory that `rel` is in, open for fsync(2) and ioctl(2), and its last name.
    fn parent<'a>(&self, rel: &'a Path, action: &'static str) -> Result<(OwnedFd, &'a OsStr), FileError> {
        let Some(name) = rel.file_name().filter(|_| !rel.as_os_str().as_bytes().ends_with(b"/.")) else {
            return Err(FileError::NoName {
                path: rel.to_path_buf(),
            });
        };
        let parent = rel.parent().unwrap_or(Path::new(""));
        let fd = self
            .open_at(parent, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(FileError::io(action, &self.full(rel)))?;
        Ok((fd, name))
    }

    /// The guest's root user, by the shift that systemd-nspawn takes from the owner of `/`: that may be any user of the
    /// guest, for example who packed the archive.
    pub(crate) fn owner(&self) -> Result<(Uid, Gid), FileError> {
        if !geteuid().is_root() {
            // Who is not root can give nothing away.
            return Ok((geteuid(), getegid()));
        }
        if let Some(owner) = self.maker {
            return Ok(owner);
        }
        let stat = fs::fstat(&self.fd).map_err(FileError::io("look at", &self.path))?;
        Ok((
            Uid::from_raw(stat.st_uid & SHIFT_MASK),
            Gid::from_raw(stat.st_gid & SHIFT_MASK),
        ))
    }

    fn full(&self, rel: &Path) -> PathBuf {
        self.path.join(rel.strip_prefix("/").unwrap_or(rel))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// openat2(2) that asks again when a concurrent rename made the kernel give up; an empty path means `dir` itself.
pub(crate) fn open_in(dir: BorrowedFd<'_>, rel: &Path, flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let rel = if rel.as_os_str().is_empty() {
        Path::new(".")
    } else {
        rel
    };
    let mut tries = 0;
    loop {
        match fs::openat2(dir, rel, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN) if tries < MAX_RETRIES => tries += 1,
            result => return result,
        }
    }
}

/// Opens what an `O_PATH` descriptor stands for, if it is a regular file.
fn open_found(found: BorrowedFd<'_>, path: &Path) -> Result<File, FileError> {
    let stat = fs::fstat(found).map_err(FileError::io("read", path))?;
    let kind = Kind::from_mode(stat.st_mode);
    if kind != Kind::File {
        return Err(FileError::NotRegular {
            action: "read",
            path: path.to_path_buf(),
            kind,
        });
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = fs::openat(CWD, magic_link(found), flags, Mode::empty()).map_err(FileError::io("read", path))?;
    Ok(file.into())
}

/// Reads what an `O_PATH` descriptor stands for, if it is a regular file of at most `cap` bytes.
pub(super) fn read_found(found: BorrowedFd<'_>, path: &Path, cap: u64) -> Result<Vec<u8>, FileError> {
    let file = open_found(found, path)?;
    let mut bytes = Vec::new();
    // The size that stat tells may change meanwhile, and is 0 in proc: only what was read counts.
    file.take(cap.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(FileError::io("read", path))?;
    if bytes.len() as u64 > cap {
        let path = path.to_path_buf();
        return Err(FileError::TooLarge { path, cap });
    }
    Ok(bytes)
}

/// The path by which an `O_PATH` descriptor can be opened for reading.
pub(crate) fn magic_link(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Puts the components of `path` on a stack, the first on top; `.` and a leading `/` are left out.
fn push_components(stack: &mut Vec<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => stack.push(name.to_owned()),
            Component::ParentDir => stack.push("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
}
