//! Which part of an image is the root filesystem, and its mount.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags};

use super::content::Content;
use super::error::MountError;
use super::image::Image;
use super::table::Partition;
use super::{DiskError, iso, table};
use crate::machine::Cancel;
use crate::machine::text::printable;
use crate::sources::SourceError;
use crate::sys::loop_mount::{Access, Filesystem, LoopError, mount};

/// What the root's partition or filesystem is called in images that are made for many machines.
const LABELS: &[&str] = &["root", "rootfs", "cloudimg-rootfs", "linux-root", "writable", "/"];

/// Where distributions have the root in a btrfs that has several subvolumes: Debian, openSUSE and Ubuntu, Fedora.
const SUBVOLUMES: &[&str] = &["@rootfs", "@", "root"];

/// A part of an image that may be mounted.
pub(super) struct Candidate {
    /// "partition 2"
    pub(super) place: String,
    pub(super) range: Range<u64>,
    pub(super) kind: Filesystem,
    /// Whether systemd-nspawn would find it by its type, in an image that has it.
    pub(super) is_typed: bool,
}

/// What dracut's live systems have in their squashfs image, see dmsquash-live: the image of another filesystem.
const INNER: [&str; 2] = ["LiveOS/rootfs.img", "LiveOS/ext3fs.img"];

/// Mounts the root filesystem of an image, which is not a qcow2 image, and returns its root directory.
pub(super) fn open(image: &mut Image, number: Option<u32>, cancel: &Cancel) -> Result<OwnedFd, SourceError> {
    let root = find(image, number, cancel)?;
    let entered = enter(image, &root, cancel)?;
    if is_root(&entered) || !matches!(root.kind, Filesystem::Squashfs | Filesystem::Erofs) {
        return Ok(entered);
    }
    let inner = open_inner(image, &root, &entered, cancel)?;
    Ok(inner.unwrap_or(entered))
}

/// Mounts the filesystem whose image lies in another one; `None` if there is none. One in that is not looked for.
fn open_inner(
    image: &Image,
    outer: &Candidate,
    directory: &OwnedFd,
    cancel: &Cancel,
) -> Result<Option<OwnedFd>, SourceError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
    for name in INNER {
        let Ok(file) = fs::openat2(directory, name, flags, Mode::empty(), how) else {
            continue;
        };
        let file = File::from(file);
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            continue;
        }
        let mut inner = image.inside(file)?;
        let all = 0..inner.size;
        let content = content(&inner, &all)?;
        let candidate = usable(&inner, format!("'{name}' in {}", outer.place), all, &content)?;
        return enter(&mut inner, &candidate, cancel).map(Some);
    }
    Ok(None)
}

/// The root filesystem of an image, which is not a qcow2 image.
pub(super) fn find(image: &mut Image, number: Option<u32>, cancel: &Cancel) -> Result<Candidate, SourceError> {
    let all = 0..image.size;
    let content = content(image, &all)?;
    match content {
        Content::Iso => {
            no_partition(image, number, "an ISO image")?;
            let (place, range) = live(image)?;
            let content = self::content(image, &range)?;
            return usable(image, place, range, &content);
        }
        Content::Filesystem { kind, .. } => {
            no_partition(image, number, kind.as_str())?;
            return usable(image, "all".to_owned(), all, &content);
        }
        _ => {}
    }
    let partitions = table::read(&image.file, image.size).map_err(|error| error.of(&image.name))?;
    let Some(partitions) = partitions else {
        let looks_like = super::content::looks_like(&peek(image)?);
        return Err(match content {
            Content::Other(what) => unusable(image, "all".to_owned(), what),
            _ => DiskError::NotDisk {
                image: image.name.clone(),
                looks_like,
            }
            .into(),
        });
    };
    let mut found = Vec::new();
    for partition in partitions {
        let content = self::content(image, &partition.range)?;
        found.push((partition, content));
    }
    if let Some(number) = number {
        let Some((partition, content)) = found.iter().find(|(it, _)| it.number == number) else {
            let (image, there) = (image.name.clone(), list(&found));
            return Err(DiskError::NoPartition { image, number, there }.into());
        };
        return usable(image, place(partition), partition.range.clone(), content);
    }
    choose(image, &found, cancel)
}

/// Whether an image has no disk but a single tree, of which nothing else can be made than a directory.
pub(super) fn is_tree(image: &Image) -> Result<bool, SourceError> {
    Ok(match content(image, &(0..image.size))? {
        Content::Iso => true,
        Content::Filesystem { kind, .. } => matches!(kind, Filesystem::Squashfs | Filesystem::Erofs),
        _ => false,
    })
}

type Found = (Partition, Content);

/// The most filesystems that are looked into for a root.
const MOST_MOUNTED: usize = 128;

/// By its type, else by its label, else by what is in it.
fn choose(image: &mut Image, found: &[Found], cancel: &Cancel) -> Result<Candidate, SourceError> {
    let several = |image: &Image, which: &[&Found]| DiskError::SeveralRoots {
        image: image.name.clone(),
        there: list(which.iter().copied()),
    };
    let typed: Vec<&Found> = found.iter().filter(|(partition, _)| partition.is_root).collect();
    let labelled: Vec<&Found> = found.iter().filter(|found| is_labelled(found)).collect();
    let chosen = match (typed.as_slice(), labelled.as_slice()) {
        ([one], _) | ([], [one]) => Some(*one),
        ([], _) => None,
        _ => return Err(several(image, &typed).into()),
    };
    if let Some((partition, content)) = chosen {
        return Ok(Candidate {
            is_typed: partition.is_root,
            ..usable(image, place(partition), partition.range.clone(), content)?
        });
    }
    let mut roots = Vec::new();
    let mut failed = None;
    let mut looked_at = 0;
    for one @ (partition, content) in found {
        if !matches!(content, Content::Filesystem { .. }) {
            continue;
        }
        cancel.check()?;
        looked_at += 1;
        if looked_at > MOST_MOUNTED {
            return Err(several(image, &found.iter().collect::<Vec<_>>()).into());
        }
        let entered = usable(image, place(partition), partition.range.clone(), content)
            .and_then(|candidate| Ok((enter(image, &candidate, cancel)?, candidate)));
        match entered {
            Ok((root, candidate)) if is_root(&root) => roots.push((one, candidate)),
            Ok(_) => {}
            // Only of interest if there is no other.
            Err(SourceError::Disk(error)) => failed = failed.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    if roots.len() > 1 {
        let which: Vec<&Found> = roots.iter().map(|(one, _)| *one).collect();
        return Err(several(image, &which).into());
    }
    if let Some((_, candidate)) = roots.pop() {
        return Ok(candidate);
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    // What cannot be read may be it: a single one is told of by itself.
    let closed =
        |content: &Content| matches!(content, Content::Other(what) if !what.contains("FAT") && !what.contains("swap"));
    let closed: Vec<&Found> = found.iter().filter(|(_, content)| closed(content)).collect();
    if let [(partition, content)] = closed.as_slice() {
        return Err(unusable(image, place(partition), &content.describe()));
    }
    let there = if found.is_empty() {
        "it has no partitions".to_owned()
    } else {
        list(found)
    };
    let image = image.name.clone();
    Err(DiskError::NoRoot { image, there }.into())
}

fn is_labelled((partition, content): &Found) -> bool {
    let label = match content {
        Content::Filesystem { label, .. } => label.as_str(),
        _ => return false,
    };
    [label, &partition.name]
        .iter()
        .any(|name| LABELS.contains(&name.to_lowercase().as_str()))
}

fn place(partition: &Partition) -> String {
    format!("partition {}", partition.number)
}

/// "partition 1 is a FAT filesystem, partition 2 is ext4 'rootfs'"
fn list<'a>(found: impl IntoIterator<Item = &'a Found>) -> String {
    let one = |(partition, content): &Found| {
        let name = match partition.name.as_str() {
            "" => String::new(),
            name => format!(" '{}'", printable(name)),
        };
        format!("{}{name} is {}", place(partition), content.describe())
    };
    found.into_iter().map(one).collect::<Vec<_>>().join(", ")
}

fn content(image: &Image, range: &Range<u64>) -> Result<Content, SourceError> {
    Content::of(&image.file, range).map_err(|error| image.unreadable(error))
}

fn peek(image: &Image) -> Result<Vec<u8>, SourceError> {
    super::content::first(&image.file, &(0..image.size), 512).map_err(|error| image.unreadable(error))
}

fn no_partition(image: &Image, number: Option<u32>, what: &str) -> Result<(), SourceError> {
    let Some(number) = number else { return Ok(()) };
    let there = format!("all of it is {what}");
    let image = image.name.clone();
    Err(DiskError::NoPartition { image, number, there }.into())
}

fn unusable(image: &Image, place: String, what: &str) -> SourceError {
    let (image, what) = (image.name.clone(), what.to_owned());
    DiskError::Unusable { image, place, what }.into()
}

/// The image of a live system on an ISO image.
fn live(image: &Image) -> Result<(String, Range<u64>), SourceError> {
    let mut found = iso::find(&image.file, image.size).map_err(|error| image.unreadable(error))?;
    // A live system may have others, to be laid over it.
    let usual = |name: &str| matches!(name, "live/filesystem.squashfs" | "casper/filesystem.squashfs");
    let usual = found.iter().position(|it| usual(&it.name));
    if let Some(at) = usual.or((found.len() == 1).then_some(0)) {
        let live = found.swap_remove(at);
        return Ok((format!("'{}'", printable(&live.name)), live.range));
    }
    // As Ubuntu's: 'minimal.standard' is what is laid over 'minimal'.
    let stem = |live: &iso::Live| live.name.trim_end_matches(".squashfs").to_owned();
    let lies_over = |live: &iso::Live| {
        found
            .iter()
            .any(|below| stem(live).starts_with(&format!("{}.", stem(below))))
    };
    let is_layered = found.iter().any(lies_over);
    let names: Vec<String> = found
        .iter()
        .map(|live| format!("'{}'", printable(&live.name)))
        .collect();
    let image = image.name.clone();
    Err(if names.is_empty() {
        let there = "it is an ISO image without live/*.squashfs, casper/*.squashfs or LiveOS/squashfs.img".to_owned();
        DiskError::NoRoot { image, there }.into()
    } else if is_layered {
        let there = names.join(", ");
        DiskError::Layered { image, there }.into()
    } else {
        let there = names.join(", ");
        DiskError::SeveralRoots { image, there }.into()
    })
}

/// What is to be mounted, unless it cannot be, or is cut off.
fn usable(image: &Image, place: String, range: Range<u64>, content: &Content) -> Result<Candidate, SourceError> {
    let Content::Filesystem { kind, size, .. } = content else {
        let what = match content {
            Content::Unknown => "no filesystem that is known here".to_owned(),
            other => other.describe(),
        };
        return Err(unusable(image, place, &what));
    };
    let there = range.end - range.start;
    if let Some(size) = size.filter(|size| *size > there) {
        let what = format!(
            "{} of {place} has {size} bytes, of which {there} are there",
            kind.as_str()
        );
        let image = image.name.clone();
        return Err(DiskError::Truncated { image, what }.into());
    }
    Ok(Candidate {
        place,
        range,
        kind: *kind,
        is_typed: false,
    })
}

/// Mounts it, and returns the directory at its top.
pub(super) fn enter_top(image: &mut Image, candidate: &Candidate, cancel: &Cancel) -> Result<OwnedFd, SourceError> {
    let Candidate { range, kind, .. } = candidate;
    let range = image.sectors(range, cancel)?;
    let try_out = |file: &File, access| mount(file, &range, *kind, access);
    let mounted = match try_out(&image.file, Access::Read) {
        // What is in its journal goes into a copy.
        Err(LoopError::Dirty) => {
            image.own(cancel)?;
            try_out(&image.file, Access::Replay)
        }
        result => result,
    };
    mounted.map_err(|error| not_mounted(image, candidate, error))
}

/// Mounts it, and returns its root directory.
fn enter(image: &mut Image, candidate: &Candidate, cancel: &Cancel) -> Result<OwnedFd, SourceError> {
    let mounted = enter_top(image, candidate, cancel)?;
    if candidate.kind == Filesystem::Btrfs && !is_root(&mounted) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        let open = |name: &&str| fs::openat2(&mounted, *name, flags, Mode::empty(), how).ok();
        if let Some(root) = SUBVOLUMES.iter().filter_map(open).find(is_root) {
            return Ok(root);
        }
    }
    Ok(mounted)
}

pub(super) fn not_mounted(image: &Image, candidate: &Candidate, error: LoopError) -> SourceError {
    let (image, place) = (image.name.clone(), candidate.place.clone());
    let source = MountError(error);
    DiskError::Mount { image, place, source }.into()
}

/// Whether a directory looks like the root of a system. Nothing that is a link counts: it may lead anywhere.
pub(super) fn is_root(directory: &OwnedFd) -> bool {
    let has = |name: &str| {
        fs::statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| fs::FileType::from_raw_mode(found.st_mode) == fs::FileType::Directory)
    };
    has("usr") && has("etc")
}
