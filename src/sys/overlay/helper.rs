//! The helper: a process of one thread that mounts an overlay where only it sees it, and becomes another program.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, StatVfsMountFlags, statvfs};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{WaitOptions, chdir, wait};

use super::{LOWER, Overlay, Shift, TREE, UPPER, WORK};
use crate::sys::image_lock::{ImageLock, Sharing};
use crate::sys::raw::enter::{clone_child, exit_now};
use crate::sys::raw::mount::make_read_only;

/// What the overlay is to be. The layer below is not trusted: nothing that it says of itself leads elsewhere, as
/// `metacopy=on` would follow it; a redirect is only read from the layer above, which is new. With `redirect_dir` a directory
/// can be renamed, with `index` a hard link stays one. What is thrown away is not written to the disk before it is.
const OPTIONS: [(&str, &str); 7] = [
    ("lowerdir", LOWER),
    ("upperdir", UPPER),
    ("workdir", WORK),
    ("redirect_dir", "on"),
    ("index", "on"),
    ("metacopy", "off"),
    ("source", "machinist"),
];

/// Does the helper's work.
pub(in crate::sys) fn helper_main(words: impl Iterator<Item = OsString>) -> ExitCode {
    concluded(work(words))
}

/// Mounts a layer with the owners of its files shifted, for systemd: the words are the layer, the place, and how.
pub(in crate::sys) fn shift_main(words: impl Iterator<Item = OsString>) -> ExitCode {
    concluded(shift(words))
}

fn concluded(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let _ = writeln!(io::stderr(), "{reason}");
            ExitCode::FAILURE
        }
    }
}

pub(super) fn failed<E: std::fmt::Display>(doing: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("cannot {doing}: {error}")
}

/// The words are those of [`Overlay::words`], without the locks and the program to try it only.
fn work(mut words: impl Iterator<Item = OsString>) -> Result<(), String> {
    let (Some(layers), Some(image), Some(shift)) = (words.next(), words.next(), words.next()) else {
        return Err("cannot read the order".into());
    };
    let shift = shift.to_string_lossy();
    let overlay = Overlay {
        layers: layers.into(),
        image: image.into(),
        shift: match Shift::parse(&shift) {
            None if !shift.is_empty() => return Err(format!("cannot read the order: '{shift}'")),
            shift => shift,
        },
    };
    let Some(locks) = words.next().map(PathBuf::from) else {
        mount(&overlay)?;
        // At once, and not some time after our end: until then nobody else can have these layers.
        return unmount(TREE, UnmountFlags::empty()).map_err(failed("unmount the overlay"));
    };
    let lock = ImageLock::take(&overlay.image, &locks, Sharing::Shared).map_err(|error| error.to_string())?;
    forget_former_mount(&overlay.layers);
    mount(&overlay)?;
    chdir("/").map_err(failed("leave the layers"))?;
    lock.keep_over_exec().map_err(|error| error.to_string())?;
    let words: Result<Vec<CString>, _> = words.map(|word| CString::new(word.into_vec())).collect();
    let words = words.map_err(failed("read the order"))?;
    let [program, arguments @ ..] = words.as_slice() else {
        return Err("cannot read the order: no program".into());
    };
    let Err(errno) = nix::unistd::execv(program, arguments);
    Err(failed(format!("execute {}", program.to_string_lossy()))(errno))
}

fn shift(mut words: impl Iterator<Item = OsString>) -> Result<(), String> {
    let (Some(layer), Some(place), Some(shift)) = (words.next(), words.next(), words.next()) else {
        return Err("cannot read the order".into());
    };
    let shift = shift.to_string_lossy();
    let shift = Shift::parse(&shift).ok_or_else(|| format!("cannot read the order: '{shift}'"))?;
    let place = PathBuf::from(place);
    // Who passes through here could execute what the users of a machine own.
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&place);
    made.map_err(failed(format!("create directory '{}'", place.display())))?;
    let mount = detached(Path::new(&layer), Some(shift))?;
    attach(&mount, &place).map_err(failed(format!("mount the layer on '{}'", place.display())))
}

/// A mount of a directory that is attached nowhere, read-only, with shifted owners.
fn detached(directory: &Path, shift: Option<Shift>) -> Result<OwnedFd, String> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, directory, flags).map_err(failed("mount the image"))?;
    let users = shift.map(user_namespace).transpose();
    let users = users.map_err(failed("make a user namespace"))?;
    let shifted = make_read_only(mount.as_fd(), users.as_ref().map(OwnedFd::as_fd));
    shifted.map_err(failed("shift the owners of the image's files"))?;
    Ok(mount)
}

/// A machine that reboots has been unmounted in good order; the kernel, which cannot know, refuses to mount again what was
/// not written to the disk, unless the mark is removed: see "Volatile mount" in its documentation.
fn forget_former_mount(layers: &Path) {
    let marks = layers.join(WORK).join("work/incompat");
    let volatile = marks.join("volatile");
    // There is none the first time.
    let _ = fs::remove_file(volatile.join("dirty"));
    let _ = fs::remove_dir(volatile);
    let _ = fs::remove_dir(marks);
}

/// Mounts it in a namespace of our own, where what the host mounts and unmounts is still seen: systemd-nspawn hands such
/// mounts on. The working directory is that of the layers afterwards.
fn mount(overlay: &Overlay) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace"))?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(failed("make the mounts our own"))?;
    chdir(&overlay.layers).map_err(failed("enter the layers"))?;

    let lower = detached(&overlay.image, overlay.shift)?;
    // Kernels before 6.15 take no layer that is attached nowhere.
    attach(&lower, Path::new(LOWER)).map_err(failed("mount the image"))?;
    let view = overlay_of_layers(&overlay.layers)?;
    attach(&view, Path::new(TREE)).map_err(failed("mount the overlay"))?;
    // The overlay has a mount of its own.
    unmount(LOWER, UnmountFlags::DETACH).map_err(failed("unmount the image"))
}

fn attach(mount: &OwnedFd, place: &Path) -> rustix::io::Result<()> {
    move_mount(mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// The overlay of the layers in the working directory, attached nowhere, with the restrictions of the filesystem that they
/// are on.
fn overlay_of_layers(layers: &Path) -> Result<OwnedFd, String> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("make an overlay"))?;
    for (key, value) in OPTIONS {
        fsconfig_set_string(&context, key, value)
            .map_err(|errno| explained(&context, &format!("set {key}={value}"), errno))?;
    }
    rustix::mount::fsconfig_set_flag(&context, "volatile")
        .map_err(|errno| explained(&context, "set volatile", errno))?;
    fsconfig_create(&context).map_err(|errno| explained(&context, "make an overlay", errno))?;
    let flags = statvfs(layers).map_err(failed("look at the layers"))?.f_flag;
    let restrictions = [
        (StatVfsMountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (StatVfsMountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (StatVfsMountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ];
    let restrictions = restrictions.into_iter().filter(|(flag, _)| flags.contains(*flag));
    let restrictions = restrictions.fold(MountAttrFlags::empty(), |all, (_, flag)| all | flag);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, restrictions).map_err(failed("make an overlay"))
}

/// What the kernel says of a refusal, where it says anything, see fsopen(2).
fn explained(context: &OwnedFd, doing: &str, errno: rustix::io::Errno) -> String {
    let mut said = [0; 512];
    let context = context.try_clone().map(fs::File::from);
    let length = context.and_then(|mut context| context.read(&mut said)).unwrap_or(0);
    match String::from_utf8_lossy(&said[..length]).trim() {
        "" => failed(doing)(errno),
        said => failed(doing)(said.get(2..).unwrap_or(said)),
    }
}

/// A user namespace that maps as told; nobody is in it.
fn user_namespace(shift: Shift) -> io::Result<OwnedFd> {
    let (mut its_words, words) = io::pipe()?;
    let (mut end, our_end) = io::pipe()?;
    if clone_child()? {
        drop((its_words, our_end));
        let made = unshare(CloneFlags::CLONE_NEWUSER);
        let pid = if made.is_ok() { std::process::id() } else { 0 };
        let _ = (&words).write_all(&pid.to_ne_bytes());
        // Until the caller closes it, also by its death.
        let _ = end.read(&mut [0]);
        exit_now();
    }
    drop((words, end));
    let mut pid = [0; 4];
    let namespace = its_words.read_exact(&mut pid).and_then(|()| {
        let pid = match u32::from_ne_bytes(pid) {
            0 => return Err(io::ErrorKind::PermissionDenied.into()),
            pid => pid,
        };
        let map = shift.maps().map(|map| map.replace(':', " ")).join("\n");
        fs::write(format!("/proc/{pid}/uid_map"), &map)?;
        fs::write(format!("/proc/{pid}/gid_map"), &map)?;
        fs::File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from)
    });
    drop(our_end);
    while matches!(wait(WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    namespace
}
